// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A flight log says what a cache decided and never what anybody wrote.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>

#include "cache_support.hpp"
#include "support/ghost_policy.hpp"

using namespace kvstem;
using namespace kvstem::test;

namespace {

using Log = std::vector<std::byte>;
FlightSink into(Log& log) {
  return {[](void* user, std::span<const std::byte> bytes) {
            auto& out = *static_cast<Log*>(user);
            out.insert(out.end(), bytes.begin(), bytes.end());
          },
          &log};
}

template <class Policy = Lru>
std::unique_ptr<BasicCache<Policy>> replayer(CacheOptions recorded, Log& again) {
  recorded.replayed = recorded.mode;
  recorded.mode = IndexMode::kNothing;
  recorded.max_changes = 0;
  recorded.flight_log = into(again);
  auto cache = BasicCache<Policy>::create(recorded);
  REQUIRE(cache.ok());
  return std::move(*cache);
}

/// Some traffic with everything in it.
template <class Policy>
void drive(Host<Policy>& host) {
  const ScopeId other = host.open("other");
  const std::uint32_t b = host.cache->options().block_tokens;
  for (TokenId i = 0; i < 40; ++i) {
    const Tokens prompt =
        tokens(static_cast<std::uint32_t>(i) * 7 % (9 * b), i % 3 * 1000) + tokens(b + 1, i % 5 * 50);
    host.end_step();  // the leases of the round before are gone
    host.serve(
        prompt,
        {.keep = i % 4 == 0   ? Keep::kCold
                 : i % 4 == 1 ? Keep::kHigh
                              : Keep::kNormal,
         .until_ms = 10u * static_cast<std::uint64_t>(i) + 100},
        {.session = 1 + static_cast<std::uint64_t>(i % 3), .now_ms = 10u * static_cast<std::uint64_t>(i)});
    const Extra image[] = {{0, {}}, {static_cast<std::uint32_t>(prompt.size()) - 1, {}}};
    const ScopeChange change[] = {{b, other}};
    auto lease =
        host.cache->acquire({.scope = host.scope, .tokens = prompt, .extras = image, .changes = change},
                            {.session = 7, .grid_tokens = 2 * b, .have_tokens = b});
    REQUIRE(lease.ok());
    auto follower = host.acquire(prompt, {.publish = i % 6 != 0});
    (void)follower.refresh();
    REQUIRE(lease->append(tokens(b, 20)).ok());
    if (host.cache->options().fill == SlotFill::kInPlace)
      REQUIRE(lease->reserve(lease->known_tokens() - lease->reserved_tokens()).ok());
    REQUIRE(lease
                ->commit(lease->known_tokens() - lease->committed_tokens(),
                         {2, 1 + static_cast<std::uint64_t>(i)}, true)
                .ok());
    if (i % 5 == 0) REQUIRE(lease->abort().ok());
    REQUIRE(host.cache->reach({2, 1 + static_cast<std::uint64_t>(i)}).ok());
    StepEntry room[128];
    bool fail = i % 7 == 3;
    for (const StepEntry& e : host.cache->take_loads(follower, room))
      REQUIRE(host.cache->complete({e, {}}).ok());
    for (const StepEntry& e : host.cache->take_step(room)) {
      REQUIRE(host.cache->complete({e, fail ? Status(StatusCode::kUnavailable, "") : Status()}).ok());
      fail = false;
    }
    (void)follower.refresh();
    host.end_step();
  }
}

template <class Policy>
Log record(CacheOptions options, std::uint64_t& evicted) {
  Log log;
  options.flight_log = into(log);
  Host<Policy> host(options);
  drive(host);
  evicted = host.cache->stats().evicted_blocks;
  return log;
}

}  // namespace

TEMPLATE_TEST_CASE("a log replays to the same decisions, byte for byte", "", Lru, Lru2, Arc, Hinted<Adaptive>,
                   GhostPolicy) {
  for (const SlotFill fill : {SlotFill::kInPlace, SlotFill::kByStep})
    for (const std::uint32_t block_tokens : {1u, 4u, 16u, 40u}) {
      CacheOptions o = small(24);
      o.fill = fill;
      o.block_tokens = block_tokens;
      o.max_lease_tokens = 14 * block_tokens;
      std::uint64_t evicted = 0;
      const Log log = record<TestType>(o, evicted);
      Log again;
      auto cache = replayer<TestType>(o, again);
      INFO("blocks of " << block_tokens << " tokens, " << again.size() << " of " << log.size() << " bytes");
      CHECK(replay(log, *cache).ok());
      CHECK(again == log);
      CHECK(evicted > 0);
      CHECK(cache->stats().evicted_blocks == evicted);
      CHECK(cache->audit().balanced());
    }
}

TEST_CASE("the log of a keyed cache replays as well") {
  CacheOptions o = small(24);
  o.mode = IndexMode::kKeys;
  Log log, again;
  o.flight_log = into(log);
  Host<> host(o);
  for (std::uint64_t i = 0; i < 60; ++i) {
    std::vector<BlockKey> keys;
    for (std::uint64_t b = 0; b < 3 + i % 9; ++b) keys.push_back({b + 1, b < i % 4 ? 0 : i % 5});
    auto lease = host.cache->acquire({.scope = host.scope, .keys = keys});
    REQUIRE(lease.ok());
    host.compute(*lease);
    REQUIRE(lease->release().ok());
    host.end_step();
  }
  CHECK(host.cache->stats().hit_tokens > 0);
  CHECK(host.cache->stats().evicted_blocks > 0);
  auto cache = replayer(o, again);
  CHECK(replay(log, *cache).ok());
  CHECK(again == log);
}

TEST_CASE("no token is in a log") {
  CacheOptions o = small(24);
  Log log;
  o.flight_log = into(log);
  Host<> host(o);
  // Numbers that nothing else in a log would be.
  Tokens secret;
  for (TokenId i = 0; i < 30; ++i) secret.push_back(70'001 + 37 * i);
  host.serve(secret);
  host.serve(secret + tokens(3, 90'001));
  REQUIRE(log.size() > 100);
  for (const TokenId t : secret + tokens(3, 90'001)) {
    std::byte bytes[sizeof t];
    std::memcpy(bytes, &t, sizeof t);
    CHECK(std::search(log.begin(), log.end(), std::begin(bytes), std::end(bytes)) == log.end());
  }
}

TEST_CASE("a replaying cache does nothing else, and others do not replay") {
  CacheOptions o = small();
  Log log, again;
  auto cache = replayer(o, again);
  const auto scope = cache->open_scope({.model = "m", .vocab_size = 10});
  REQUIRE(scope.ok());
  CHECK(cache->acquire({.scope = *scope}).status().code() == StatusCode::kWrongState);
  auto reader = cache->register_reader();
  ProbeRange ranges[3];
  CHECK(cache->probe(*reader, {.scope = *scope}, ranges).status().code() == StatusCode::kWrongState);
  Host<> host(o);
  FlightReader empty{std::span<const std::byte>()};
  CHECK(host.cache->replay_next(empty).code() == StatusCode::kWrongState);
}

TEST_CASE("a log of another cache is refused, and a damaged one leads nowhere it should not") {
  CacheOptions o = small(24);
  o.fill = SlotFill::kByStep;
  std::uint64_t evicted = 0;
  const Log log = record<Lru>(o, evicted);
  {
    CacheOptions other = o;
    other.slots = 12;
    Log again;
    CHECK(replay(log, *replayer(other, again)).code() == StatusCode::kCorrupt);
  }
  {
    Log again;
    CHECK(replay(std::span(log).first(log.size() - 1), *replayer(o, again)).code() == StatusCode::kCorrupt);
  }
  constexpr std::uint32_t kSeed = 5;
  std::mt19937 random(kSeed);
  int refused = 0;
  for (int i = 0; i < 400; ++i) {
    Log damaged = log;
    for (int n = 0; n < 3; ++n) damaged[random() % damaged.size()] = static_cast<std::byte>(random());
    Log again;
    auto cache = replayer(o, again);
    refused += !replay(damaged, *cache).ok();
    CHECK(cache->pool().used_slots() <= 24);
  }
  std::printf("damaged flight logs, seed %u: %d of 400 refused\n", kSeed, refused);
  CHECK(refused > 100);
}
