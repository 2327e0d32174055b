// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A policy by itself, and the order in which it lets runs go.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "kvstem/policy/eviction_policy.hpp"
#include "support/catch.hpp"

namespace kvstem::test {

using Runs = std::vector<std::uint32_t>;

template <class Policy>
struct Order {
  Policy policy;
  std::set<std::uint32_t> in_use;
  std::uint64_t now_ms = 0;

  explicit Order(std::uint32_t capacity = 64) {
    REQUIRE(policy.take(heap_memory(), {.max_runs = 16, .capacity_blocks = capacity, .path_blocks = 64}));
  }
  static BlockKey key(std::uint32_t n) { return {n * 0x9e3779b97f4a7c15ull, n}; }

  /// A request for blocks with these keys, none of them there.
  void request(std::initializer_list<std::uint32_t> keys = {}, std::uint64_t session = 0) {
    policy.on_request_begin({.session = session, .now_ms = now_ms});
    std::vector<BlockKey> path;
    for (const std::uint32_t n : keys) path.push_back(key(n));
    policy.on_path(path, 0);
  }
  /// A request that uses these runs, descendants first, and adds nothing.
  void use(std::initializer_list<std::uint32_t> runs, std::uint64_t session = 0, Retention retention = {}) {
    policy.on_request_begin({.session = session, .now_ms = now_ms});
    for (const std::uint32_t run : runs) policy.on_hit(run, 1);
    policy.on_path({}, 0);
    release(runs, session, retention);
  }
  void release(std::initializer_list<std::uint32_t> runs, std::uint64_t session = 0,
               Retention retention = {}) {
    policy.on_request_end({.session = session, .now_ms = now_ms, .retention = retention});
    for (const std::uint32_t run : runs) policy.on_release(run, 1);
    if (retention.keep == Keep::kCold)
      for (const std::uint32_t run : runs) policy.demote(run);
  }
  Victim victim() {
    return policy.victim(Evictable(
        [](const void* self, std::uint32_t run) noexcept {
          return static_cast<const Order*>(self)->in_use.count(run) == 0;
        },
        this));
  }
  /// The victim goes as a whole, its blocks known by these keys.
  void evict(std::uint32_t run, std::initializer_list<std::uint32_t> keys) {
    REQUIRE(victim().run == run);
    for (const std::uint32_t n : keys) policy.on_evicted(key(n));
    policy.on_erase(run);
  }
  /// All runs in the order in which they go, none of them with descendants.
  Runs drain() {
    Runs order;
    for (std::uint32_t run = victim().run; run != kNoVictim; run = victim().run) {
      order.push_back(run);
      policy.on_erase(run);
    }
    return order;
  }
};

}  // namespace kvstem::test
