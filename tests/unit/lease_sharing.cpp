// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Requests that wait for the same prefix share one computation.
#include "cache_support.hpp"

using namespace kvstem;
using namespace kvstem::test;

TEST_CASE("two requests that wait for the same prefix compute it once") {
  Host<> host;
  auto first = host.acquire(tokens(13)), second = host.acquire(tokens(13)),
       third = host.acquire(tokens(9) + tokens(9, 70));
  CHECK(first.refresh().must_compute);
  const Progress waits = second.refresh();
  CHECK_FALSE(waits.must_compute);
  CHECK(waits.ready_tokens == 0);
  CHECK(waits.pending_tokens == 12);
  CHECK_FALSE(third.refresh().must_compute);
  REQUIRE(first.reserve(13).ok());
  REQUIRE(first.commit(9).ok());
  CHECK_FALSE(second.refresh().must_compute);  // a part of it is there
  CHECK(second.matched_tokens() == 8);
  CHECK(second.table(0).size() == 2);
  CHECK(second.table(0)[1] == first.table(0)[1]);
  const Progress branch = third.refresh();  // behind the common part nobody else computes its own
  CHECK(branch.must_compute);
  CHECK(branch.ready_tokens == 8);
  REQUIRE(first.commit(4).ok());
  CHECK(second.refresh().must_compute);  // the last token is always its own
  CHECK(second.matched_tokens() == 12);
  host.compute(second);
  host.compute(third);
  CHECK(host.cache->stats().duplicate_blocks == 0);
  CHECK(host.cache->stats().inserted_blocks == 3 + 2);
}

TEST_CASE("a longer prompt that goes on where another is being computed waits for that part only") {
  Host<> host;
  auto owner = host.acquire(tokens(8));
  REQUIRE(owner.reserve(8).ok());            // computes
  auto follower = host.acquire(tokens(24));  // grows the same run
  CHECK_FALSE(follower.refresh().must_compute);
  REQUIRE(owner.commit(8).ok());
  CHECK(follower.refresh().must_compute);
  CHECK(follower.matched_tokens() == 8);
  auto third = host.acquire(tokens(24));
  CHECK_FALSE(third.refresh().must_compute);
  host.compute(follower);
  CHECK(third.refresh().ready_tokens == 20);
  CHECK(host.cache->stats().duplicate_blocks == 0);
}

TEST_CASE("a request does not wait for the block that holds its last token") {
  Host<> host;
  auto owner = host.acquire(tokens(8)), twin = host.acquire(tokens(8));
  CHECK_FALSE(twin.refresh().must_compute);
  REQUIRE(owner.reserve(8).ok());
  REQUIRE(owner.commit(4).ok());
  CHECK(twin.refresh().must_compute);  // tokens 4 to 7 hold its last one
  CHECK(twin.matched_tokens() == 4);
}

TEST_CASE("if the owner gives up, the first to ask takes over, and only it") {
  for (const bool released : {false, true}) {
    Host<> host;
    auto owner = host.acquire(tokens(21));
    auto a = host.acquire(tokens(21)), b = host.acquire(tokens(21));
    REQUIRE(owner.reserve(21).ok());
    REQUIRE(owner.commit(9).ok());
    CHECK_FALSE(a.refresh().must_compute);
    CHECK((released ? owner.release() : owner.abort()).ok());
    CHECK(b.refresh().must_compute);
    CHECK(b.matched_tokens() == 8);  // what was valid stays
    CHECK_FALSE(a.refresh().must_compute);
    REQUIRE(b.reserve(13).ok());
    REQUIRE(b.commit(4).ok());
    CHECK_FALSE(a.refresh().must_compute);  // it took over all of it
    host.compute(b);
    CHECK(a.refresh().must_compute);
    CHECK(a.matched_tokens() == 20);
    CHECK(host.cache->stats().duplicate_blocks == 0);
  }
}

TEST_CASE("an owner that is released before its point is reached still owns") {
  Host<> host;
  auto owner = host.acquire(tokens(9)), follower = host.acquire(tokens(9));
  host.compute(owner, {1, 1});
  REQUIRE(owner.release().ok());
  CHECK_FALSE(follower.refresh().must_compute);
  REQUIRE(host.cache->reach({1, 1}).ok());
  CHECK(follower.refresh().ready_tokens == 8);
}

TEST_CASE("a lease that does not publish waits like others and never takes over for them") {
  Host<> host;
  auto owner = host.acquire(tokens(13));
  auto hidden = host.acquire(tokens(13), {.publish = false});
  CHECK_FALSE(hidden.refresh().must_compute);
  auto follower = host.acquire(tokens(13));
  REQUIRE(owner.abort().ok());
  CHECK(hidden.refresh().must_compute);
  CHECK(follower.refresh().must_compute);  // the hidden one's work would not help it
  host.compute(follower);
  CHECK(hidden.refresh().ready_tokens == 12);
}

TEST_CASE("once something is reserved the match is final") {
  Host<> host;
  auto a = host.acquire(tokens(13)), b = host.acquire(tokens(13));
  REQUIRE(b.reserve(13).ok());
  host.compute(a);
  const Progress progress = b.refresh();
  CHECK(progress.must_compute);
  CHECK(progress.ready_tokens == 0);
  CHECK(b.matched_tokens() == 0);
}

TEST_CASE("nothing pending is left when all who waited for it have gone") {
  Host<> host;
  // A place inside a run that somebody else made longer, in each order of ending and with a branch cut out of it.
  for (int order = 0; order < 6; ++order) {
    auto a = host.acquire(tokens(16)), b = host.acquire(tokens(32));
    REQUIRE(a.append(tokens(4, 800)).ok());
    auto c = host.acquire(tokens(8) + tokens(8, 600));
    Lease* leases[] = {&a, &b, &c};
    constexpr int kOrders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (const int i : kOrders[order]) REQUIRE(leases[i]->abort().ok());
    int runs = 0;
    host.cache->enumerate(host.scope, [&](RunId, const RunInfo&) { ++runs; });
    CHECK(runs == 0);
  }
  // The one that made it longer goes before the branch is made: what it left goes with the branch.
  auto a = host.acquire(tokens(16));
  auto b = host.acquire(tokens(32));
  REQUIRE(b.abort().ok());
  REQUIRE(a.append(tokens(4, 800)).ok());
  std::uint32_t blocks = 0;
  host.cache->enumerate(host.scope, [&](RunId, const RunInfo& info) { blocks += info.length; });
  CHECK(blocks == 5);
}
