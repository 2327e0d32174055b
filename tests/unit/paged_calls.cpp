// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What a paged engine calls in every step: many sequences at once, slots of new tokens, a digest that ranks compare.
#include <algorithm>
#include <vector>

#include "cache_support.hpp"

using namespace kvstem;
using namespace kvstem::test;

TEST_CASE("many sequences go on by a token each in one call, as if one after the other") {
  Host<> together(small(64)), apart(small(64));
  for (Host<>* host : {&together, &apart}) {
    std::vector<Lease> leases;
    for (TokenId s = 0; s < 5; ++s) {
      leases.push_back(host->acquire(tokens(6, 100 * s)));
      host->compute(leases.back());
    }
    for (TokenId t = 0; t < 9; ++t) {
      const Point point{1, static_cast<std::uint64_t>(t) + 1};
      if (host == &together) {
        std::vector<DecodeItem<Lease>> items;
        for (TokenId s = 0; s < 5; ++s)
          items.push_back({&leases[static_cast<std::size_t>(s)], 100 * s + 6 + t});
        CHECK(host->cache->decode(items, point) == 5);
      } else {
        for (TokenId s = 0; s < 5; ++s) {
          Lease& lease = leases[static_cast<std::size_t>(s)];
          const TokenId token = 100 * s + 6 + t;
          REQUIRE(lease.reserve(1).ok());
          REQUIRE(lease.append({&token, 1}).ok());
          REQUIRE(lease.commit(1, point).ok());
        }
      }
      host->end_step();
      REQUIRE(host->cache->reach(point).ok());
    }
    for (TokenId s = 0; s < 5; ++s) CHECK(host->found(tokens(17, 100 * s)) == 12);
    CHECK(host->cache->audit().balanced());
  }
  CHECK(together.cache->decisions() == apart.cache->decisions());
}

TEST_CASE("a sequence that cannot go on stays as it was and says why; the others go on") {
  Host<> host(small(4));
  Lease a = host.acquire(tokens(8)), b = host.acquire(tokens(7, 100)), over = host.acquire(tokens(3, 200));
  host.compute(a);
  host.compute(b);
  REQUIRE(over.release().ok());
  Lease ahead = host.acquire(tokens(2, 300));  // nothing of it is computed
  DecodeItem<Lease> items[] = {{&a, 8}, {&b, 107}, {&over, 1}, {nullptr, 1}, {&ahead, 5}, {&b, 200'000}};
  CHECK(host.cache->decode(items, {1, 1}) == 1);
  CHECK(items[0].status.code() == StatusCode::kExhausted);  // four slots are in use
  CHECK(a.known_tokens() == 8);
  CHECK(a.reserved_tokens() == 8);
  CHECK(items[1].status.ok());  // its last block had room
  CHECK(b.committed_tokens() == 8);
  CHECK(items[2].status.code() == StatusCode::kStale);
  CHECK(items[3].status.code() == StatusCode::kInvalidArgument);
  CHECK(items[4].status.code() == StatusCode::kWrongState);
  CHECK(items[5].status.code() == StatusCode::kOutOfRange);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("new tokens have a slot mapping by group") {
  const KvGroup groups[] = {{.bytes_per_token = 1},
                            {.kind = GroupKind::kSlidingWindow, .window_tokens = 6, .bytes_per_token = 1},
                            {.bytes_per_token = 1, .block_tokens = 8},
                            {.kind = GroupKind::kStateCheckpoint, .bytes_per_token = 1}};
  CacheOptions o = small(32);
  o.groups = groups;
  Host<> host(o);
  Lease lease = host.acquire(tokens(20));
  REQUIRE(lease.reserve(20).ok());
  std::int64_t out[20];
  for (const GroupId g : {0, 1, 2}) {
    const std::uint32_t block = g == 2 ? 8 : 4;
    REQUIRE(lease.slot_mapping(g, 3, 20, out).ok());
    for (std::uint32_t i = 3; i < 20; ++i)
      CHECK(out[i - 3] == std::int64_t{lease.table(g)[i / block]} * block + i % block);
    CHECK(lease.slot_mapping(g, 0, 25, out).code() == StatusCode::kOutOfRange);
    CHECK(lease.slot_mapping(g, 5, 4, out).code() == StatusCode::kOutOfRange);
    CHECK(lease.slot_mapping(g, 0, 20, std::span(out).first(19)).code() == StatusCode::kOutOfRange);
  }
  CHECK(lease.slot_mapping(3, 0, 1, out).code() == StatusCode::kUnsupported);
  CHECK(lease.slot_mapping(9, 0, 1, out).code() == StatusCode::kUnsupported);
  REQUIRE(lease.commit(20).ok());
  CHECK(lease.slot_mapping(1, 0, 4, out).code() == StatusCode::kOutOfRange);  // the window has gone on
  CHECK(lease.slot_mapping(1, 14, 20, out).ok());
  REQUIRE(lease.release().ok());
  CHECK(lease.slot_mapping(0, 0, 1, out).code() == StatusCode::kStale);
}

TEST_CASE("a hit is no longer than the request allows, also when it waits for others") {
  Host<> host;
  host.serve(tokens(17));
  CHECK(host.acquire(tokens(17), {.max_hit_tokens = 0}).matched_tokens() == 0);
  CHECK(host.acquire(tokens(17), {.max_hit_tokens = 11}).matched_tokens() == 8);
  CHECK(host.acquire(tokens(17), {.max_hit_tokens = 12}).matched_tokens() == 12);
  auto owner = host.acquire(tokens(17, 100));
  auto waits = host.acquire(tokens(17, 100), {.max_hit_tokens = 8});
  host.compute(owner);
  CHECK(waits.refresh().ready_tokens == 8);
  CHECK(waits.refresh().must_compute);
}

TEST_CASE("two caches that hear the same decide the same, and one that hears something else is found out") {
  Host<> a, b, other;
  const auto hear = [](Host<>& host, std::uint32_t n) {
    host.serve(tokens(9));
    host.serve(tokens(9) + tokens(n, 50));
    host.serve(tokens(40, 300));
  };
  CHECK(a.cache->decisions() == b.cache->decisions());
  hear(a, 7);
  hear(b, 7);
  hear(other, 12);
  CHECK(a.cache->decisions() == b.cache->decisions());
  CHECK(a.cache->decisions() != other.cache->decisions());
}

TEST_CASE("a window keeps what a step that was committed and not launched yet still sees") {
  const KvGroup groups[] = {{}, {.kind = GroupKind::kSlidingWindow, .window_tokens = 10}};
  CacheOptions o = small(32);
  o.groups = groups;
  o.null_slot = true;
  Host<> host(o);
  Lease lease = host.acquire(tokens(29));
  host.compute(lease);
  host.end_step();
  auto fork = lease.fork();
  REQUIRE(fork.ok());
  DecodeItem<Lease> item{&lease, 29};
  REQUIRE(host.cache->decode({&item, 1}, {1, 1}) == 1);
  host.move_all();                // the copy that the fork makes necessary
  CHECK(lease.table(1)[4] != 0);  // position 29 sees 19 to 28
  REQUIRE(host.cache->reach({1, 1}).ok());
  CHECK(lease.table(1)[4] == 0);
}

TEST_CASE("after a call for many sequences a state's row is that of the step") {
  const KvGroup groups[] = {{}, {.kind = GroupKind::kStateCheckpoint}};
  CacheOptions o = small(32);
  o.groups = groups;
  Host<> host(o);
  Lease lease = host.acquire(tokens(6));
  REQUIRE(lease.reserve(6).ok());
  const std::int32_t state = lease.table(1)[1];
  REQUIRE(lease.commit(6).ok());
  DecodeItem<Lease> item{&lease, 6};
  for (std::uint64_t step = 1; step < 4; ++step) {
    const std::int32_t before = step == 1 ? state : lease.table(1)[1];
    REQUIRE(host.cache->decode({&item, 1}, {1, step}) == 1);
    CHECK(lease.table(1)[0] == before);
    CHECK(lease.table(1)[1] >= 0);
    CHECK(lease.table(1)[1] != before);
    host.end_step();
  }
}

TEST_CASE("a quote counts what the lease itself has found and cannot use") {
  Host<> host(small(4));
  host.serve(tokens(16));
  Lease lease = host.acquire(tokens(16));
  CHECK(lease.matched_tokens() == 12);
  const ReserveQuote quote = lease.quote(4);
  CHECK(quote.verdict == ReserveQuote::Verdict::kEvicts);
  CHECK(lease.reserve(4).ok());
}
