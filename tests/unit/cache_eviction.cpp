// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What goes when room is needed, and what never does.
#include "cache_support.hpp"
#include "support/ghost_policy.hpp"

using namespace kvstem;
using namespace kvstem::test;

TEST_CASE("the least recently used goes first, from its end") {
  Host<> host(small(12));
  host.serve(tokens(16, 100));
  host.serve(tokens(16, 200));
  host.serve(tokens(16, 300));
  host.serve(tokens(17, 100));  // used again; takes one block for its last token, and gives it back
  CHECK(host.found(tokens(17, 200)) == 12);  // that block was 200's last
  host.serve(tokens(8, 400));
  CHECK(host.found(tokens(17, 100)) == 16);
  CHECK(host.found(tokens(17, 200)) == 8);
  CHECK(host.found(tokens(17, 300)) == 16);
  CHECK(host.found(tokens(9, 400)) == 8);
  CHECK(host.cache->stats().evicted_blocks == 2);
}

TEST_CASE("a shared prefix outlives its branches") {
  Host<> host(small(8));
  host.serve(tokens(8) + tokens(8, 100));
  host.serve(tokens(8) + tokens(8, 200));
  host.serve(tokens(12, 300));
  CHECK(host.found(tokens(8) + tokens(8, 100)) == 12);  // one block, from the end of the older branch
  CHECK(host.found(tokens(8) + tokens(8, 200)) == 16);
  host.serve(tokens(12, 400));
  CHECK(host.found(tokens(8) + tokens(8, 100)) == 8);
  CHECK(host.found(tokens(8) + tokens(8, 200)) == 8);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("what was released as cold goes before what is older") {
  Host<> host(small(8));
  host.serve(tokens(16, 100));
  host.serve(tokens(16, 200), {.keep = Keep::kCold});
  host.serve(tokens(8, 300));
  CHECK(host.found(tokens(16, 100)) == 16);
  CHECK(host.found(tokens(16, 200)) == 8);  // not gone: a wrong end is cheap
  host.serve(tokens(16, 200));              // and used again it is as recent as any
  host.serve(tokens(4, 400));
  CHECK(host.found(tokens(16, 200)) == 16);
}

TEST_CASE("admission never evicts what a lease has matched") {
  Host<> host(small(8));
  host.serve(tokens(16, 100));
  host.serve(tokens(16, 200));
  auto lease = host.acquire(tokens(17, 100));
  CHECK(lease.matched_tokens() == 16);
  auto other = host.acquire(tokens(40, 900));
  CHECK(other.reserve(20).code() == StatusCode::kExhausted);  // five slots, four can go
  CHECK(other.reserved_tokens() == 0);
  CHECK(host.cache->audit().balanced());
  CHECK(host.found(tokens(17, 100)) == 16);
  CHECK(other.reserve(16).ok());
  CHECK(host.found(tokens(17, 100)) == 16);
  CHECK(lease.reserve(1).code() == StatusCode::kExhausted);  // its own match is no room for itself
  CHECK(host.found(tokens(17, 100)) == 16);
  CHECK(host.cache->stats().refused_requests == 2);
  CHECK(other.abort().ok());
  host.end_step();
  CHECK(lease.reserve(1).ok());
}

TEST_CASE("a slot is not given out again before the step that may read it has ended, and carries its point") {
  Host<> host(small(4));
  auto lease = host.acquire(tokens(16));
  host.compute(lease);
  REQUIRE(lease.release().ok());
  auto next = host.acquire(tokens(16, 100));
  CHECK(next.reserve(4).code() == StatusCode::kExhausted);  // released in the open step
  REQUIRE(host.cache->end_step({3, 41}).ok());
  REQUIRE(next.reserve(4).ok());
  CHECK(next.not_before() == Point{3, 41});
  REQUIRE(next.abort().ok());
  CHECK(host.cache->pool().held_slots() == 1);
  auto third = host.acquire(tokens(16, 200));
  REQUIRE(third.reserve(12).ok());  // what is left of the first
  CHECK(third.reserve(4).code() == StatusCode::kExhausted);
  REQUIRE(host.cache->end_step({3, 42}).ok());
  REQUIRE(third.reserve(4).ok());
  CHECK(third.not_before() == Point{3, 42});
}

TEST_CASE("by step, what finds no room is not kept, and the request goes on") {
  CacheOptions o = small(4);
  o.fill = SlotFill::kByStep;
  Host<> host(o);
  host.serve(tokens(12));
  auto holds = host.acquire(tokens(13));
  host.move_all();
  auto lease = host.acquire(tokens(20, 100));
  auto follower = host.acquire(tokens(20, 100));
  CHECK_FALSE(follower.refresh().must_compute);
  host.compute(lease);
  host.move_all();
  CHECK(host.found(tokens(20, 100)) == 4);
  CHECK(host.cache->stats().unpublished_blocks == 4);
  CHECK(follower.refresh().must_compute);  // nobody will bring the rest
  REQUIRE(lease.append(tokens(4, 120)).ok());
  host.compute(lease);
  host.move_all();
  CHECK(host.cache->stats().unpublished_blocks == 5);
  CHECK(lease.unstored_blocks() == 0);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("an index without room for more runs keeps going without publishing") {
  CacheOptions o = small(32);
  o.max_runs = 3;
  o.max_scopes = 1;
  Host<> host(o);
  std::vector<Lease> leases;
  for (TokenId i = 0; i < 6; ++i) {
    leases.push_back(host.acquire(tokens(9, 100 * i)));
    host.compute(leases.back());
  }
  CHECK(host.cache->stats().inserted_blocks > 0);
  CHECK(host.cache->stats().unpublished_blocks > 0);
  CHECK(host.cache->stats().inserted_blocks + host.cache->stats().unpublished_blocks == 12);
  leases.clear();
  host.end_step();
  CHECK(host.serve(tokens(9, 900)) == 0);  // what nobody uses makes room
  CHECK(host.found(tokens(9, 900)) == 8);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("counters add up, each side counted on its own") {
  Host<> host(small(10));
  std::uint64_t queried = 0, hit = 0;
  for (TokenId i = 0; i < 60; ++i) {
    const Tokens prompt = tokens(static_cast<std::uint32_t>(i * 7 % 30), 1000 * (i % 3));
    queried += prompt.size();
    hit += host.serve(prompt);
  }
  const CacheStats& s = host.cache->stats();
  CHECK(s.requests == 60);
  CHECK(s.queried_tokens == queried);
  CHECK(s.hit_tokens == hit);
  CHECK(hit > 0);
  CHECK(s.hit_tokens + s.missed_tokens == s.queried_tokens);
  CHECK(s.evicted_blocks > 0);
  CHECK(s.inserted_blocks - s.evicted_blocks == host.cache->audit().ready_blocks);
}

TEST_CASE("a policy with ghosts sees every call of the seam and keeps what comes back") {
  GhostPolicy::seen = {};
  const GhostSeen& seen = GhostPolicy::seen;
  Host<GhostPolicy> host(small(7));
  host.serve(tokens(16, 100));
  CHECK(seen.begins == 1);
  CHECK(seen.missed == 4);
  CHECK(seen.inserts == 1);
  CHECK(seen.blocks == 4);
  host.serve(tokens(24, 100));  // goes on where it ended
  CHECK(seen.grows == 1);
  CHECK(seen.hits > 0);
  CHECK(seen.last.prompt_blocks == 6);
  CHECK(seen.last.matched_blocks == 4);
  CHECK(seen.last.computed_blocks == 2);
  host.serve(tokens(8, 100) + tokens(8, 500));  // splits, evicts one block
  CHECK(seen.splits == 1);
  CHECK(seen.victims > 0);
  CHECK(seen.trims > 0);
  host.serve(tokens(12, 700));  // evicts the branch that is older
  CHECK(seen.evicted > 0);
  host.serve(tokens(16, 100));  // comes back
  CHECK(seen.ghost_hits > 0);
  // What came back stays when as much that is new and more recent does not.
  host.serve(tokens(8, 800));
  host.serve(tokens(8, 900));
  CHECK(host.found(tokens(16, 100)) == 16);
  host.serve(tokens(8, 900), {.keep = Keep::kCold});
  CHECK(seen.demotions == 1);
  for (TokenId i = 0; i < 6; ++i) host.serve(tokens(20, 2000 + 100 * i));
  CHECK(seen.erases > 0);
  CHECK(seen.leaves > 0);
  CHECK(seen.ends == seen.begins);
  CHECK(seen.contradictions == 0);
}

TEST_CASE("a lease may take the room of what it found and cannot use, and publishes nothing then") {
  Host<> host(small(4));
  CHECK(host.serve(tokens(16)) == 0);
  auto lease = host.acquire(tokens(16));
  CHECK(lease.matched_tokens() == 12);  // the last block is there, but its last token must be computed
  CHECK(lease.reserve(5).code() == StatusCode::kOutOfRange);  // there are not that many slots
  CHECK(host.found(tokens(17)) == 16);
  REQUIRE(lease.reserve(4).ok());
  CHECK(host.found(tokens(17)) == 12);
  REQUIRE(lease.commit(4).ok());
  CHECK(host.cache->stats().unpublished_blocks == 1);
  CHECK(host.cache->audit().balanced());
  REQUIRE(lease.release().ok());
  host.end_step();
  CHECK(host.cache->audit().balanced());
  CHECK(host.serve(tokens(16)) == 12);
  CHECK(host.found(tokens(17)) == 16);  // computed again, it is there for all
}

TEST_CASE("what somebody else uses is not given up for a lease that cannot use it") {
  Host<> host(small(5));
  host.serve(tokens(16));
  auto other = host.acquire(tokens(17));
  CHECK(other.matched_tokens() == 16);
  auto lease = host.acquire(tokens(16));
  CHECK(lease.reserve(4).ok());
  auto third = host.acquire(tokens(16));
  CHECK(third.reserve(4).code() == StatusCode::kExhausted);
  CHECK(host.found(tokens(17)) == 16);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("a lease holds what it matched, and not what others have added behind it") {
  Host<> host(small(6));
  auto lease = host.acquire(tokens(8));
  host.compute(lease);
  CHECK(host.serve(tokens(16)) == 8);
  CHECK(host.serve(tokens(16, 100)) == 0);  // makes the other's two blocks go
  CHECK(host.found(tokens(17)) == 8);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("a request that is refused takes nothing from anybody") {
  Host<> host(small(8));
  host.serve(tokens(16, 100));
  auto holds = host.acquire(tokens(12, 200));
  host.compute(holds);
  auto waits = host.acquire(tokens(24, 300));
  CHECK(waits.reserve(24).code() == StatusCode::kExhausted);  // one slot is free, four could go
  CHECK(host.found(tokens(17, 100)) == 16);
  CHECK(waits.reserve(40).code() == StatusCode::kOutOfRange);  // never
  CHECK(host.cache->stats().evicted_blocks == 0);
  CHECK(waits.reserve(20).ok());
  CHECK(host.found(tokens(17, 100)) == 0);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("what ended in the open step cannot be had, and is not evicted for a request that needs it") {
  Host<> host(small(8));
  host.serve(tokens(12, 100));
  auto lease = host.acquire(tokens(16, 200));
  host.compute(lease);
  REQUIRE(lease.release().ok());
  auto waits = host.acquire(tokens(24, 300));
  CHECK(waits.reserve(24).code() ==
        StatusCode::kExhausted);  // one is free, three could go now, four after the step
  CHECK(host.found(tokens(13, 100)) == 12);
  host.end_step();
  CHECK(waits.reserve(24).ok());
}

TEST_CASE("a prompt that names no scope is refused") {
  Host<> host;
  const Tokens prompt = tokens(8);
  CHECK(host.cache->acquire({.tokens = prompt}).status().code() == StatusCode::kInvalidArgument);
}

TEST_CASE("prompts of a single block each can take all slots, with tokens and keyed") {
  for (const IndexMode mode : {IndexMode::kTokens, IndexMode::kKeys}) {
    constexpr std::uint32_t kSlots = 20'000;
    CacheOptions o = small(kSlots);
    o.mode = mode;
    o.max_runs = kSlots + 1;
    Host<> host(o);
    std::uint64_t step = 0;
    for (std::uint32_t i = 0; i < kSlots; ++i) {
      const TokenId word[5] = {static_cast<TokenId>(i), 1, 2, 3, 4};
      const BlockKey key{0x9e3779b97f4a7c15ull * (i + 1), i};
      auto lease = mode == IndexMode::kTokens
                       ? host.cache->acquire({.scope = host.scope, .tokens = word})
                       : host.cache->acquire({.scope = host.scope, .keys = {&key, 1}, .tail_tokens = 1});
      REQUIRE(lease.ok());
      REQUIRE(lease->matched_tokens() == 0);
      REQUIRE(lease->reserve(4).ok());
      REQUIRE(lease->commit(4).ok());
      REQUIRE(lease->release().ok());
      REQUIRE(host.cache->end_step({0, ++step}).ok());
    }
    CHECK(host.cache->stats().evicted_blocks == 0);
    CHECK(host.cache->audit().ready_blocks == kSlots);
  }
}
