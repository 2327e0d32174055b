// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What an eviction policy is. The cache tells it what happens to runs (chains of blocks, named by small numbers) and asks
// for a victim when a slot is needed; the policy never sees the tree, the pool or a token.
//
// A policy orders runs; the cache decides what may go. A victim is the end of a run: the cache trims as many of its last
// blocks as it needs and asks again if that was not enough. A policy never has to know who is pinned or who has
// descendants: it calls `evictable(run)` while it searches.
//
// Order of calls for one request: on_request_begin, on_hit for each run of the matched path (deepest first), on_missed for
// each whole block that was not there (only if kWantsKeys), on_insert / on_grow for what is added, ..., on_hit again when
// the request ends (so that what was in use all along is recent), on_request_end. Other requests' calls come in between.
//
// Threads: the cache's one. Cost: every call should be O(1); `victim` may be amortised. No allocation after `take`.
#pragma once

#include <concepts>
#include <cstdint>

#include "kvstem/base/memory.hpp"
#include "kvstem/model/block_key.hpp"
#include "kvstem/model/retention.hpp"

namespace kvstem::inline v0 {

/// What a policy must be ready for.
struct PolicyLimits {
  std::uint32_t max_runs = 0;         // run ids are below this
  std::uint32_t capacity_blocks = 0;  // blocks that can be cached at once
};

/// What is known of a request when it begins and when it ends.
struct RequestFacts {
  std::uint64_t session = 0;          // 0: none
  std::uint32_t prompt_blocks = 0;    // whole blocks of the prompt
  std::uint32_t matched_blocks = 0;   // of which were found
  std::uint32_t computed_blocks = 0;  // at the end: whole blocks that were added
  Retention retention{};              // at the end
};

/// Whether the cache could take the run's last block: a leaf, not pinned, nothing in flight.
class Evictable {
 public:
  using Fn = bool (*)(const void* context, std::uint32_t run) noexcept;
  constexpr Evictable(Fn fn, const void* context) noexcept : fn_(fn), context_(context) {}
  [[nodiscard]] bool operator()(std::uint32_t run) const noexcept { return fn_(context_, run); }

 private:
  Fn fn_;
  const void* context_;
};

/// `victim`'s answer when no run is evictable.
inline constexpr std::uint32_t kNoVictim = ~std::uint32_t{0};

template <class P>
concept EvictionPolicy =
    requires(P policy, const P& view, const Memory& memory, PolicyLimits limits, RequestFacts facts,
             std::uint32_t run, std::uint32_t blocks, BlockKey key, Evictable evictable) {
      /// Whether on_missed and on_evicted are called; their keys cost hashing.
      { P::kWantsKeys } -> std::convertible_to<bool>;
      /// Takes all memory; false if it is not to be had.
      { policy.take(memory, limits) } -> std::same_as<bool>;
      policy.on_request_begin(facts);
      policy.on_request_end(facts);
      policy.on_hit(run, blocks);          // the run's first `blocks` blocks were used
      policy.on_insert(run, run, blocks);  // (run, its parent or kNoVictim for a scope's root, blocks): new
      policy.on_grow(run, blocks);         // by that many
      policy.on_split(run, run,
                      blocks);  // (head, tail, blocks): head is new and takes that many first blocks of tail
      policy.on_merge(run, run);    // (head, tail): head is gone, tail has its blocks
      policy.on_trim(run, blocks);  // lost that many at its end
      policy.on_erase(run);         // gone
      policy.on_leaf(run);          // its last child went: it is now a leaf
      policy.on_missed(key);        // a block was asked for and not there: for ghosts
      policy.on_evicted(key);       // a block was evicted: for ghosts
      policy.demote(run);           // the host says that it will hardly be used again: first to go
      /// Whether a head and its only child have equal recency and class, so that they may become one run.
      { view.mergeable(run, run) } -> std::same_as<bool>;
      /// The run whose last blocks should go first, among those that are evictable; kNoVictim if there is none.
      { policy.victim(evictable) } -> std::same_as<std::uint32_t>;
    };

}  // namespace kvstem::inline v0
