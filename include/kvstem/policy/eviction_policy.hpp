// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What an eviction policy is. The cache tells it what happens to runs (chains of blocks, named by small numbers) and asks
// for a victim when a slot is needed; the policy never sees the tree, the pool or a token.
//
// A policy orders runs; the cache decides what may go. A victim is the end of a run: the cache trims as many of its last
// blocks as it needs, at most as many as the policy says, and asks again if that was not enough. A policy never has to
// know who is pinned or who has descendants: it calls `evictable(run)` while it searches.
//
// Order of calls for one request: on_request_begin, on_split if the match ends inside a run, on_hit for each run of the
// matched path (deepest first), on_path with keys (only if kKeys asks for them), on_insert / on_grow for what is added, ...,
// on_request_end, on_release for each run of its path (deepest first), demote for what it gives up, on_merge for runs that
// may be one again. Victims are asked for, and trimmed or erased, whenever room is needed; and while a request is open,
// others begin and end. A use counts once, when it begins; on_release says how long it lasted, so that what was in use all
// along is recent. A use undoes demote.
//
// The same calls must lead to the same answers (a flight log replays them). `evictable` may be asked about live runs only,
// and a victim should be found within a few rounds over them. Head and tail of a split must be mergeable until one is used.
//
// Threads: the cache's one. Cost: every call should be O(1) or O(log runs), on_path O(keys); `victim` may be amortised. No
// allocation after `take`.
//
//   which one?   lru        the working set fits or nearly fits
//                lru2       it does not, by far, and stays that way
//                arc        as a baseline from the literature
//                adaptive   all else: it follows the better of lru and lru2
#pragma once

#include <concepts>
#include <cstdint>
#include <span>

#include "kvstem/base/memory.hpp"
#include "kvstem/model/block_key.hpp"
#include "kvstem/model/retention.hpp"

namespace kvstem::inline v0 {

/// Of which blocks a policy wants to know the keys; they cost hashing.
enum class PolicyKeys : std::uint8_t {
  kNone,
  kMissed,  // of those that were asked for and not there, and of those that are evicted: for ghosts
  kPath,    // and of all others that a request asks for: for shadows
};

/// What a policy must be ready for.
struct PolicyLimits {
  std::uint32_t max_runs = 0;         // run ids are below this
  std::uint32_t capacity_blocks = 0;  // blocks that can be cached at once
  std::uint32_t path_blocks = 0;      // the longest path
};

/// What is known of a request when it begins and when it ends.
struct RequestFacts {
  std::uint64_t session = 0;          // 0: none
  std::uint64_t now_ms = 0;           // when it began, by the engine's clock; 0 if the engine does not say
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

/// No run: as a parent, that of a scope's first runs; as a victim, that none is evictable.
inline constexpr std::uint32_t kNoVictim = ~std::uint32_t{0};

/// The last `blocks` blocks of `run`, which may be more than it has. Of what lies before them another run may be the better
/// victim, so the cache asks again.
struct Victim {
  std::uint32_t run = kNoVictim;
  std::uint32_t blocks = ~std::uint32_t{0};
};

template <class P>
concept EvictionPolicy = requires(P policy, const P& view, const Memory& memory, PolicyLimits limits,
                                  RequestFacts facts, std::uint32_t run, std::uint32_t blocks,
                                  std::span<const BlockKey> keys, BlockKey key, Evictable evictable) {
  { P::kKeys } -> std::convertible_to<PolicyKeys>;
  /// Takes all memory; false if it is not to be had.
  { policy.take(memory, limits) } -> std::same_as<bool>;
  policy.on_request_begin(facts);
  policy.on_request_end(facts);
  policy.on_hit(run, blocks);      // a request begins to use the run's first `blocks` blocks
  policy.on_release(run, blocks);  // a request ends that used them
  /// The keys of the blocks that a request asks for, in order from the root, of which the first `blocks` are there.
  /// With kMissed it is those alone that are not there. What is added next (on_insert, on_grow) are they, in order.
  /// Called again for each block that a decoding request completes.
  policy.on_path(keys, blocks);
  policy.on_insert(run, run, blocks);  // (run, its parent or kNoVictim for a scope's root, blocks): new
  policy.on_grow(run, blocks);         // by that many
  policy.on_split(run, run,
                  blocks);      // (head, tail, blocks): head is new and takes that many first blocks of tail
  policy.on_merge(run, run);    // (head, tail): head is gone, tail has its blocks
  policy.on_trim(run, blocks);  // lost that many at its end
  policy.on_erase(run);         // gone
  policy.on_leaf(run);          // its last child went: it is now a leaf
  policy.on_evicted(key);       // a block was evicted: for ghosts. Before the on_trim or on_erase of its run
  policy.demote(run);           // it will hardly be used again: first to go. Called for descendants first
  /// Whether a head and its only child have equal recency and class, so that they may become one run.
  { view.mergeable(run, run) } -> std::same_as<bool>;
  /// Which blocks should go first, of the runs that are evictable; kNoVictim if there is none.
  { policy.victim(evictable) } -> std::same_as<Victim>;
};

}  // namespace kvstem::inline v0
