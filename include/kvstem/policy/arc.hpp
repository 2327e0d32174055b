// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// ARC, the adaptive replacement cache (Megiddo, Modha 2003): blocks used once and blocks used more often, each by last use,
// and a share of the cache for the first kind that moves with what comes back after it was evicted. Choose it as a baseline
// that people know; `adaptive` finds more on every trace that we have.
//
// The blocks of a run have one last use; those of its end that were used once are counted. ARC's two ghost lists are one
// table that forgets the oldest of both, for half as many blocks as the cache has: of our traces, one finds four points
// more with twice as many, the other loses one and a half in a cache that is far too small. When it is not the turn of
// blocks used once, the oldest leaf of either kind goes, since a block used often may be old and yet have a descendant.
//
// Cost: O(log runs) for each call.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kvstem/policy/eviction_policy.hpp"
#include "kvstem/policy/ghost_table.hpp"
#include "kvstem/policy/leaf_heap.hpp"

namespace kvstem::inline v0 {

class Arc {
 public:
  static constexpr PolicyKeys kKeys = PolicyKeys::kMissed;

  [[nodiscard]] bool take(const Memory& memory, PolicyLimits limits) noexcept {
    capacity_ = limits.capacity_blocks;
    return runs_.take(memory, limits.max_runs) && leaves_[kOnce].take(memory, limits.max_runs) &&
           leaves_[kOften].take(memory, limits.max_runs) && ghosts_.take(memory, limits.capacity_blocks / 2);
  }

  void on_request_begin(const RequestFacts&) noexcept {
    ++now_;
    for (LeafHeap& leaves : leaves_) leaves.return_aside();
  }
  void on_request_end(const RequestFacts&) noexcept {}
  void on_hit(std::uint32_t run, std::uint32_t) noexcept {
    Run& r = runs_[run];
    blocks_[kOnce] -= r.once;
    blocks_[kOften] += r.once;
    r = {.used = now_, .blocks = r.blocks, .once = 0, .cold = false};
    reorder(run);
  }
  void on_release(std::uint32_t run, std::uint32_t) noexcept {
    runs_[run].used = now_;
    reorder(run);
  }
  void on_path(std::span<const BlockKey> keys, std::uint32_t) noexcept {
    often_ = 0;
    for (std::uint32_t i = 0; i < keys.size(); ++i) {
      const std::uint64_t ghost = ghosts_.take_out(keys[i]);
      if (ghost == 0) continue;
      // Those before it were asked for as well then, whether or not their ghosts are left.
      often_ = i + 1;
      const std::uint32_t kind = kind_of(ghost), other = kOften - kind;
      const std::uint64_t step = std::max<std::uint64_t>(1, ghosts_of_[other] / ghosts_of_[kind]);
      --ghosts_of_[kind];
      share_ =
          kind == kOnce ? std::min<std::uint64_t>(capacity_, share_ + step) : share_ - std::min(share_, step);
    }
  }
  void on_insert(std::uint32_t run, std::uint32_t parent, std::uint32_t blocks) noexcept {
    runs_[run] = {.used = now_, .blocks = 0, .once = 0, .cold = false};
    if (parent != kNoVictim) leave(parent);
    add(run, blocks);
    on_leaf(run);
  }
  void on_grow(std::uint32_t run, std::uint32_t blocks) noexcept {
    add(run, blocks);
    reorder(run);
  }
  void on_split(std::uint32_t head, std::uint32_t tail, std::uint32_t blocks) noexcept {
    runs_[head] = runs_[tail];
    runs_[head].blocks = blocks;
    runs_[tail].blocks -= blocks;
    runs_[tail].once = std::min(runs_[tail].once, runs_[tail].blocks);
    runs_[head].once -= runs_[tail].once;
  }
  void on_merge(std::uint32_t head, std::uint32_t tail) noexcept {
    runs_[tail].blocks += runs_[head].blocks;
    runs_[tail].once += runs_[head].once;
    leave(head);
    reorder(tail);
  }
  void on_trim(std::uint32_t run, std::uint32_t blocks) noexcept {
    lose(run, blocks);
    reorder(run);
  }
  void on_erase(std::uint32_t run) noexcept {
    lose(run, runs_[run].blocks);
    leave(run);
  }
  void on_leaf(std::uint32_t run) noexcept { leaves_[kind(run)].put(run, rank(run)); }
  void on_evicted(BlockKey key) noexcept {
    const std::uint64_t gone = ghosts_.put(key, victim_used_ << 1 | victim_kind_);
    if (gone != 0) --ghosts_of_[kind_of(gone)];
    ++ghosts_of_[victim_kind_];
  }
  void demote(std::uint32_t run) noexcept {
    runs_[run].cold = true;
    reorder(run);
  }
  [[nodiscard]] bool mergeable(std::uint32_t head, std::uint32_t tail) const noexcept {
    const Run &h = runs_[head], &t = runs_[tail];
    return h.used == t.used && h.cold == t.cold && (t.once == t.blocks || h.once == 0);
  }
  [[nodiscard]] Victim victim(Evictable evictable) noexcept {
    std::uint32_t run = leaves_[kOnce].first(evictable);
    const bool cold = run != kNoVictim && runs_[run].cold;
    if (run == kNoVictim || (!cold && blocks_[kOnce] <= share_)) {
      const std::uint32_t often = leaves_[kOften].first(evictable);
      if (often != kNoVictim && (run == kNoVictim || runs_[often].used < runs_[run].used)) run = often;
    }
    if (run == kNoVictim) return {};
    const Run& r = runs_[run];
    victim_used_ = r.used;
    victim_kind_ = r.once > 0 ? kOnce : kOften;
    if (r.once == 0) return {run, r.blocks};
    const std::uint64_t above = blocks_[kOnce] - std::min(blocks_[kOnce], share_);
    return {run, static_cast<std::uint32_t>(cold ? r.once : std::clamp<std::uint64_t>(above, 1, r.once))};
  }

 private:
  enum Kind : std::uint32_t { kOnce, kOften };
  struct Run {
    std::uint64_t used;
    std::uint32_t blocks;
    std::uint32_t once;  // of which the last ones were used once
    bool cold;
  };

  [[nodiscard]] static std::uint32_t kind_of(std::uint64_t ghost) noexcept {
    return static_cast<std::uint32_t>(ghost & 1);
  }
  /// Cold runs go before all others, so they stand where the search begins.
  [[nodiscard]] Kind kind(std::uint32_t run) const noexcept {
    return runs_[run].once > 0 || runs_[run].cold ? kOnce : kOften;
  }
  [[nodiscard]] std::uint64_t rank(std::uint32_t run) const noexcept {
    return runs_[run].used | std::uint64_t{!runs_[run].cold} << 63;
  }
  [[nodiscard]] bool holds(std::uint32_t run) const noexcept {
    return leaves_[kOnce].holds(run) || leaves_[kOften].holds(run);
  }
  void leave(std::uint32_t run) noexcept {
    for (LeafHeap& leaves : leaves_) leaves.remove(run);
  }
  void reorder(std::uint32_t run) noexcept {
    if (!holds(run)) return;
    leave(run);
    on_leaf(run);
  }
  void add(std::uint32_t run, std::uint32_t blocks) noexcept {
    Run& r = runs_[run];
    const std::uint32_t often = r.once == 0 ? std::min(often_, blocks) : 0;
    often_ -= std::min(often_, blocks);
    r.blocks += blocks;
    r.once += blocks - often;
    blocks_[kOnce] += blocks - often;
    blocks_[kOften] += often;
  }
  void lose(std::uint32_t run, std::uint32_t blocks) noexcept {
    Run& r = runs_[run];
    const std::uint32_t once = std::min(blocks, r.once);
    r.blocks -= blocks;
    r.once -= once;
    blocks_[kOnce] -= once;
    blocks_[kOften] -= blocks - once;
  }

  FixedArray<Run> runs_;
  LeafHeap leaves_[2];
  GhostTable ghosts_;      // twice the last use, and the kind
  std::uint64_t now_ = 1;  // requests so far
  std::uint64_t capacity_ = 0;
  std::uint64_t share_ = 0;  // blocks used once that the cache should hold: ARC's p
  std::uint64_t blocks_[2]{};
  std::uint64_t ghosts_of_[2]{};
  std::uint32_t often_ = 0;  // leading blocks of those that come now that were used before
  std::uint64_t victim_used_ = 1;
  std::uint32_t victim_kind_ = kOnce;
};

static_assert(EvictionPolicy<Arc>);

}  // namespace kvstem::inline v0
