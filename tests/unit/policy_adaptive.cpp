// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <list>
#include <random>
#include <vector>

#include "kvstem/cache/cache.hpp"
#include "kvstem/policy/adaptive.hpp"
#include "support/policy_order.hpp"

using namespace kvstem;
using test::Order;

namespace {

BlockKey key(std::uint64_t n) { return {n * 0x9e3779b97f4a7c15ull + 1, n * 0xbf58476d1ce4e5b9ull}; }

/// The real thing, one request after the other. Returns the blocks found in the second half.
template <class Policy>
std::uint64_t found(const std::vector<std::vector<BlockKey>>& requests, std::uint32_t slots) {
  auto cache = BasicCache<Policy>::create({.block_tokens = 1,
                                           .slots = slots,
                                           .mode = IndexMode::kKeys,
                                           .max_leases = 1,
                                           .max_lease_tokens = 64,
                                           .max_scopes = 1,
                                           .max_readers = 1});
  REQUIRE(cache.ok());
  const ScopeId scope = *(*cache)->open_scope({.model = "m", .vocab_size = 1});
  std::uint64_t step = 0, blocks = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    auto lease = (*cache)->acquire({.scope = scope, .keys = requests[i], .tail_tokens = 1});
    REQUIRE(lease.ok());
    if (2 * i >= requests.size()) blocks += lease->matched_tokens();
    const auto missing = static_cast<std::uint32_t>(requests[i].size()) - lease->matched_tokens();
    REQUIRE(lease->reserve(missing).ok());
    REQUIRE(lease->commit(missing).ok());
    REQUIRE(lease->release().ok());
    REQUIRE((*cache)->end_step({0, ++step}).ok());
  }
  REQUIRE((*cache)->audit().balanced());
  return blocks;
}

}  // namespace

TEST_CASE("a shadow cache under lru holds what a list by last use holds") {
  ShadowCache<Lru> shadow;
  const PolicyLimits limits{.max_runs = 64, .capacity_blocks = 50, .path_blocks = 32};
  const ShadowSample sample = ShadowSample::of(limits);
  REQUIRE(sample.capacity_blocks == 50);
  REQUIRE(shadow.take(heap_memory(), sample));
  std::list<BlockKey> list;  // the youngest first
  std::mt19937 rng(5);
  std::uint64_t hits = 0, asked = 0;
  for (int request = 0; request < 5000; ++request) {
    // Chains that share their beginnings.
    std::vector<BlockKey> path;
    std::uint64_t node = 1;
    for (std::uint32_t depth = 1 + rng() % 12; path.size() < depth;)
      path.push_back(key(node = node * 4 + (rng() % 8 == 0 ? 1 + rng() % 3 : 0)));
    std::uint32_t expected = 0;
    for (auto k = path.rbegin(); k != path.rend(); ++k) {
      const auto at = std::find(list.begin(), list.end(), *k);
      expected += at != list.end();
      if (at != list.end()) list.splice(list.begin(), list, at);
    }
    for (auto k = path.rbegin(); k != path.rend(); ++k) {
      if (std::find(list.begin(), list.end(), *k) != list.end()) continue;
      if (list.size() == 50) list.pop_back();
      list.push_front(*k);
    }
    REQUIRE(shadow.use(path) == expected);
    hits += expected;
    asked += path.size();
  }
  std::printf("shadow of lru: %d of %d blocks found\n", static_cast<int>(hits), static_cast<int>(asked));
  CHECK(hits > asked / 10);
  CHECK(hits < asked * 9 / 10);
}

TEST_CASE("a shadow takes a path that is longer than it is") {
  ShadowCache<Lru2> shadow;
  REQUIRE(
      shadow.take(heap_memory(), ShadowSample::of({.max_runs = 4, .capacity_blocks = 3, .path_blocks = 8})));
  std::vector<BlockKey> path;
  for (std::uint64_t n = 0; n < 8; ++n) path.push_back(key(n));
  CHECK(shadow.use(path) == 0);
  CHECK(shadow.use(std::span(path).first(3)) == 3);  // its beginning stayed
}

TEST_CASE("of many blocks a shadow looks at some, chosen by key") {
  const ShadowSample sample =
      ShadowSample::of({.max_runs = 1, .capacity_blocks = 1'000'000, .path_blocks = 64});
  CHECK(sample.capacity_blocks <= ShadowSample::kMostBlocks);
  CHECK(sample.capacity_blocks > ShadowSample::kMostBlocks / 2 - 2);
  std::uint32_t held = 0;
  for (std::uint64_t n = 0; n < 100'000; ++n) held += sample.holds(key(n));
  CHECK(held > 100'000 / 128 * 9 / 10);
  CHECK(held < 100'000 / 128 * 11 / 10);
}

TEST_CASE("adaptive finds about as much as the better of lru and lru2, whichever that is") {
  std::mt19937 rng(11);
  // Fifty sessions in turn, each with an own chain of ten; and between them many that come once.
  std::vector<std::vector<BlockKey>> thrash, recent;
  const auto chain = [](std::uint64_t name) {
    std::vector<BlockKey> path;
    for (std::uint64_t b = 0; b < 10; ++b) path.push_back(key(100 * name + b));
    return path;
  };
  for (std::uint64_t i = 0; i < 6000; ++i)
    thrash.push_back(chain(i % 2 == 0 ? 1 + rng() % 50 : 1'000'000 + i));
  // Each comes twice soon after another, a little later for the last time, and then never again.
  for (std::uint64_t i = 0; i < 6000; ++i)
    recent.push_back(chain(i / 3 - std::min<std::uint64_t>(i / 3, rng() % 20)));
  for (const auto* requests : {&thrash, &recent}) {
    const std::uint64_t lru = found<Lru>(*requests, 200), lru2 = found<Lru2>(*requests, 200),
                        adaptive = found<Adaptive>(*requests, 200);
    std::printf("found in the second half: lru %d, lru2 %d, adaptive %d\n", static_cast<int>(lru),
                static_cast<int>(lru2), static_cast<int>(adaptive));
    CHECK((requests == &thrash ? lru2 : lru) > (requests == &thrash ? lru : lru2) * 11 / 10);
    CHECK(adaptive * 100 >= std::max(lru, lru2) * 97);
  }
}

TEST_CASE("blocks that a request decodes are no questions to the shadows") {
  Order<Adaptive> o;
  o.request({1, 2, 3});
  o.policy.on_insert(0, kNoVictim, 3);
  const BlockKey decoded = Order<Adaptive>::key(4);
  o.policy.on_path({&decoded, 1}, 0);
  o.policy.on_grow(0, 1);
  o.release({0});
  CHECK(o.victim().run == 0);
  CHECK(o.victim().blocks == 4);
}
