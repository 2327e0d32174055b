// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What the tests of the cache share: a small cache, prompts, and an engine that computes at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "kvstem/kvstem.hpp"
#include "support/catch.hpp"

namespace kvstem::test {

using Tokens = std::vector<TokenId>;

/// n tokens that no other `start` has at the same place.
inline Tokens tokens(std::uint32_t n, TokenId start = 0) {
  Tokens t(n);
  std::iota(t.begin(), t.end(), start);
  return t;
}
inline Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

inline CacheOptions small(std::uint32_t slots = 16) {
  CacheOptions options;
  options.block_tokens = 4;
  options.slots = slots;
  options.max_leases = 8;
  options.max_lease_tokens = 64;
  options.max_scopes = 8;
  options.max_changes = 256;
  return options;
}

template <class Policy = Lru>
class Host {
 public:
  explicit Host(const CacheOptions& options = small()) {
    auto made = BasicCache<Policy>::create(options);
    REQUIRE(made.ok());
    cache = std::move(*made);
    scope = open("");
  }

  ScopeId open(const char* salt, std::uint32_t vocab = 100'000) {
    auto id =
        cache->open_scope({.model = "m", .positions = {}, .adapter = {}, .salt = salt, .vocab_size = vocab});
    REQUIRE(id.ok());
    return *id;
  }
  BasicLease<Policy> acquire(const Tokens& prompt, const AcquireOptions& how = {}) {
    auto lease = cache->acquire({.scope = scope, .tokens = prompt}, how);
    REQUIRE(lease.ok());
    return std::move(*lease);
  }
  /// Computes what is known and not yet committed.
  void compute(BasicLease<Policy>& lease, Point after = kNow, bool on_grid = false) {
    const std::uint32_t n = lease.known_tokens() - lease.committed_tokens();
    if (cache->options().fill == SlotFill::kInPlace)
      REQUIRE(lease.reserve(lease.known_tokens() - lease.reserved_tokens()).ok());
    REQUIRE(lease.commit(n, after, on_grid).ok());
  }
  /// A request from begin to end; by step its blocks are stored. Returns what was matched.
  std::uint32_t serve(const Tokens& prompt, Retention retention = {}, const AcquireOptions& how = {},
                      bool on_grid = false) {
    auto lease = acquire(prompt, how);
    const std::uint32_t matched = lease.matched_tokens();
    move_all();
    compute(lease, kNow, on_grid);
    move_all();
    REQUIRE(lease.release(retention).ok());
    end_step();
    return matched;
  }
  /// How much a request would find, without leaving a trace.
  std::uint32_t found(const Tokens& prompt) {
    auto reader = cache->register_reader();
    REQUIRE(reader.ok());
    ProbeRange ranges[3];
    const auto r = cache->probe(*reader, {.scope = scope, .tokens = prompt}, ranges);
    REQUIRE(r.ok());
    return ready_tokens(*r);
  }
  void move_all() {
    StepEntry room[8];
    for (;;) {
      const auto taken = cache->take_step(room);
      if (taken.empty()) return;
      for (const StepEntry& e : taken) REQUIRE(cache->complete({e, {}}).ok());
    }
  }
  void end_step() { REQUIRE(cache->end_step({0, ++step}).ok()); }

  std::unique_ptr<BasicCache<Policy>> cache;
  ScopeId scope{};
  std::uint64_t step = 0;
};

}  // namespace kvstem::test
