// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What a lease promises from its first token to its last.
#include <algorithm>

#include "cache_support.hpp"

using namespace kvstem;
using namespace kvstem::test;

TEST_CASE("a match is the longest prefix of whole blocks, and never covers the last token") {
  Host<> host;
  host.serve(tokens(14));
  CHECK(host.acquire(tokens(14)).matched_tokens() == 12);
  CHECK(host.acquire(tokens(12)).matched_tokens() == 8);
  CHECK(host.acquire(tokens(13)).matched_tokens() == 12);
  CHECK(host.acquire(tokens(40)).matched_tokens() == 12);
  CHECK(host.acquire(tokens(8) + tokens(8, 500)).matched_tokens() == 8);
  CHECK(host.acquire(tokens(10) + tokens(8, 500)).matched_tokens() == 8);
  CHECK(host.acquire(tokens(14, 1)).matched_tokens() == 0);
  CHECK(host.acquire(tokens(4)).matched_tokens() == 0);
}

TEST_CASE("a match never crosses a scope, a changed scope or other media") {
  Host<> host;
  const ScopeId other = host.open("other");
  const Tokens prompt = tokens(13);
  host.serve(prompt);
  CHECK(host.cache->acquire({.scope = other, .tokens = prompt})->matched_tokens() == 0);
  Extra image{5, {}};
  const auto with_image = [&] {
    return host.cache->acquire({.scope = host.scope, .tokens = prompt, .extras = {&image, 1}});
  };
  {
    auto lease = with_image();
    CHECK(lease->matched_tokens() == 4);
    host.compute(*lease);
  }
  CHECK(with_image()->matched_tokens() == 12);
  image.digest[0] = std::byte{1};
  CHECK(with_image()->matched_tokens() == 4);
  image = {6, {}};
  CHECK(with_image()->matched_tokens() == 4);
  const ScopeChange tail[] = {{8, other}};
  const auto private_tail = [&] {
    return host.cache->acquire({.scope = host.scope, .tokens = prompt, .changes = tail});
  };
  {
    auto lease = private_tail();
    CHECK(lease->matched_tokens() == 8);
    host.compute(*lease);
  }
  CHECK(private_tail()->matched_tokens() == 12);
  CHECK(host.found(prompt) == 12);
}

TEST_CASE("marks in the prompt's unfinished block are part of the block that decoding completes") {
  Host<> host;
  const Tokens prompt = tokens(6);
  Extra image{5, {}};
  auto lease = host.cache->acquire({.scope = host.scope, .tokens = prompt, .extras = {&image, 1}});
  REQUIRE(lease.ok());
  REQUIRE(lease->append(tokens(7, 6)).ok());
  host.compute(*lease);
  REQUIRE(lease->release().ok());
  CHECK(host.found(tokens(13)) == 4);
  const Tokens whole = tokens(13);
  CHECK(
      host.cache->acquire({.scope = host.scope, .tokens = whole, .extras = {&image, 1}})->matched_tokens() ==
      12);
}

TEST_CASE("with a grid a match ends on it and holds only what was computed on it") {
  Host<> host(small(32));
  host.serve(tokens(25), {}, {}, true);
  CHECK(host.acquire(tokens(40), {.grid_tokens = 8}).matched_tokens() == 24);
  CHECK(host.acquire(tokens(40), {.grid_tokens = 16}).matched_tokens() == 16);
  CHECK(host.acquire(tokens(40), {.grid_tokens = 64}).matched_tokens() == 0);
  CHECK(host.acquire(tokens(23), {.grid_tokens = 8}).matched_tokens() == 16);
  host.serve(tokens(41), {}, {}, false);  // goes on off the grid
  CHECK(host.acquire(tokens(60)).matched_tokens() == 40);
  CHECK(host.acquire(tokens(60), {.grid_tokens = 4}).matched_tokens() == 24);
  host.serve(tokens(60), {}, {}, true);  // on top of what is off the grid, nothing is on it
  CHECK(host.acquire(tokens(61), {.grid_tokens = 4}).matched_tokens() == 24);
}

TEST_CASE("a grid holds for what is found while waiting as well") {
  Host<> host(small(32));
  auto on_grid = host.acquire(tokens(12));
  auto waits = host.acquire(tokens(40), {.grid_tokens = 8});
  host.compute(on_grid, kNow, true);
  CHECK(waits.refresh().ready_tokens == 8);
  REQUIRE(on_grid.append(tokens(12, 12)).ok());
  host.compute(on_grid, kNow, false);
  CHECK(waits.refresh().ready_tokens == 8);
  CHECK(host.acquire(tokens(40)).matched_tokens() == 24);
  // What goes on from there on the grid is on the grid.
  host.compute(waits, kNow, true);
  CHECK(host.acquire(tokens(41), {.grid_tokens = 8}).matched_tokens() ==
        8);  // the off-grid copies came first
}

TEST_CASE("a lease that does not publish keeps what it computes to itself") {
  Host<> host;
  auto owner = host.acquire(tokens(13));  // the same blocks are pending for everybody else
  auto lease = host.acquire(tokens(13), {.publish = false});
  host.compute(lease);
  CHECK(host.found(tokens(13)) == 0);
  CHECK(host.cache->stats().inserted_blocks == 0);
  CHECK(host.cache->stats().unpublished_blocks == 0);  // nobody wanted it
  CHECK(owner.refresh().must_compute);
  CHECK(lease.release().ok());
  host.compute(owner);
  CHECK(host.found(tokens(13)) == 12);
  auto again = host.acquire(tokens(13), {.publish = false});
  CHECK(again.matched_tokens() == 12);  // but it takes
}

TEST_CASE("a lease without reuse matches nothing and publishes nothing") {
  Host<> host;
  host.serve(tokens(13));
  auto lease = host.acquire(tokens(13), {.reuse = false});
  CHECK(lease.matched_tokens() == 0);
  host.compute(lease);
  CHECK(lease.release().ok());
  CHECK(host.cache->stats().inserted_blocks == 3);
  CHECK(host.found(tokens(13)) == 12);
}

TEST_CASE("blocks are found when their point is reached, not before, also after the lease ended") {
  Host<> host;
  auto lease = host.acquire(tokens(13));
  REQUIRE(lease.reserve(13).ok());
  REQUIRE(lease.commit(6, {1, 1}).ok());
  REQUIRE(lease.commit(3, {2, 1}).ok());
  REQUIRE(lease.commit(4, {1, 2}).ok());
  CHECK(host.found(tokens(13)) == 0);
  REQUIRE(host.cache->reach({2, 1}).ok());  // what comes before is not there yet
  CHECK(host.found(tokens(13)) == 0);
  REQUIRE(host.cache->reach({1, 1}).ok());
  CHECK(host.found(tokens(13)) == 8);
  REQUIRE(lease.release().ok());
  CHECK_FALSE(lease.live());
  CHECK(host.cache->audit().lease_pins == 1);  // still waits
  REQUIRE(host.cache->reach({1, 7}).ok());
  CHECK(host.found(tokens(13)) == 12);
  CHECK(host.cache->audit().lease_pins == 0);
  host.end_step();
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("a commit that needs one more timeline than can wait is refused and changes nothing") {
  CacheOptions o = small();
  o.fill = SlotFill::kByStep;
  Host<> host(o);
  auto lease = host.acquire(tokens(30));
  for (std::uint32_t i = 0; i < 8; ++i) REQUIRE(lease.commit(1, {i, 1}).ok());
  CHECK(lease.commit(1, {9, 1}).code() == StatusCode::kExhausted);
  CHECK(lease.committed_tokens() == 8);
  CHECK(lease.reserved_tokens() == 8);
  CHECK(lease.commit(2, {7, 5}).ok());  // a later point of the last one's timeline covers both
  for (std::uint32_t i = 0; i < 7; ++i) REQUIRE(host.cache->reach({i, 1}).ok());
  REQUIRE(host.cache->reach({7, 4}).ok());
  CHECK(lease.unstored_blocks() == 1);
  REQUIRE(host.cache->reach({7, 5}).ok());
  CHECK(lease.unstored_blocks() == 2);
}

TEST_CASE("an aborted lease gives up what waits for its point and keeps what was valid") {
  Host<> host;
  {
    auto lease = host.acquire(tokens(13));
    REQUIRE(lease.reserve(13).ok());
    REQUIRE(lease.commit(4).ok());
    REQUIRE(lease.commit(9, {1, 1}).ok());
  }  // out of scope
  REQUIRE(host.cache->reach({1, 1}).ok());
  CHECK(host.found(tokens(13)) == 4);
  CHECK(host.cache->audit().lease_pins == 0);
  host.end_step();
  CHECK(host.cache->pool().used_slots() == 1);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("a table stays where it is and keeps its entries while the lease lives") {
  std::vector<std::int32_t> tables(8 * 16, -7);
  CacheOptions o = small();
  o.tables = tables;
  Host<> host(o);
  host.serve(tokens(9));
  auto lease = host.acquire(tokens(13));
  REQUIRE(lease.table(0).size() == 2);
  CHECK(lease.table(0).data() >= tables.data());
  CHECK(lease.table(0).data() < tables.data() + tables.size());
  const std::int32_t* row = lease.table(0).data();
  const std::vector<std::int32_t> matched(lease.table(0).begin(), lease.table(0).end());
  REQUIRE(lease.reserve(5).ok());
  REQUIRE(lease.table(0).size() == 4);
  const std::vector<std::int32_t> all(lease.table(0).begin(), lease.table(0).end());
  host.serve(tokens(20, 900));
  host.compute(lease);
  CHECK(lease.table(0).data() == row);
  CHECK(std::equal(all.begin(), all.end(), row));
  CHECK(std::equal(matched.begin(), matched.end(), row));
}

TEST_CASE("what two leases compute twice is kept once") {
  Host<> host;
  auto a = host.acquire(tokens(9)), b = host.acquire(tokens(9));
  host.compute(a);
  host.compute(b);
  CHECK(host.cache->stats().inserted_blocks == 2);
  CHECK(host.cache->stats().duplicate_blocks == 2);
  CHECK(b.table(0)[0] == a.table(0)[0]);  // and both use it
  REQUIRE(a.append(tokens(4, 9)).ok());
  REQUIRE(b.append(tokens(4, 9)).ok());  // the same continuation
  host.compute(a);
  host.compute(b);
  CHECK(host.cache->stats().inserted_blocks == 3);
  CHECK(a.release().ok());
  CHECK(b.release().ok());
  host.end_step();
  CHECK(host.cache->pool().used_slots() == 3);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("decoding goes on over the prompt's end, and the next turn finds it") {
  Host<> host;
  auto lease = host.acquire(tokens(10));
  host.compute(lease);
  for (TokenId t = 10; t < 23; ++t) {  // look ahead by one, then verify
    REQUIRE(lease.reserve(1).ok());
    REQUIRE(lease.append({&t, 1}).ok());
    REQUIRE(lease.commit(1).ok());
  }
  REQUIRE(lease.release().ok());
  host.end_step();
  CHECK(host.acquire(tokens(30)).matched_tokens() == 20);
}

TEST_CASE("slots that were reserved and not used come back") {
  Host<> host;
  auto lease = host.acquire(tokens(4));
  REQUIRE(lease.reserve(40).ok());  // drafts
  REQUIRE(lease.commit(4).ok());
  REQUIRE(lease.release().ok());
  CHECK(host.cache->pool().held_slots() == 9);
  host.end_step();
  CHECK(host.cache->pool().free_slots() == 15);
}

TEST_CASE("an attempt that was given up before it began is no request") {
  Host<> host(small(6));
  host.serve(tokens(9));
  auto holds = host.acquire(tokens(9));
  host.compute(holds);
  for (int i = 0; i < 5; ++i) {
    auto waits = host.acquire(tokens(24, 0));
    CHECK(waits.matched_tokens() == 8);
    CHECK(waits.reserve(16).code() == StatusCode::kExhausted);  // three slots are free
  }
  CHECK(host.cache->stats().requests == 1);
  CHECK(host.cache->stats().refused_requests == 5);
  CHECK(host.cache->stats().hit_tokens == 0);
  REQUIRE(holds.release().ok());
  auto fails = host.acquire(tokens(24, 0));
  REQUIRE(fails.reserve(4).ok());
  REQUIRE(fails.abort().ok());
  CHECK(host.cache->stats().requests == 3);
  CHECK(host.cache->stats().hit_tokens == 16);
}
