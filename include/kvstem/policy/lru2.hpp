// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// LRU-2: least recent last use but one (O'Neil, O'Neil, Weikum 1993), and before those all blocks that were used once. Choose
// it when the cache is far too small for the working set: there it keeps what has proved to come back, where LRU evicts
// every chain just before its next use. Where the working set fits, LRU is better by up to three points.
//
// The blocks of a run have one last use. Whoever uses a block uses all before it, so the last use but one never gets later
// along a run; here it is one for all, but for a tail of blocks that were used once. Evicted blocks keep their last use as
// ghosts (64 bytes for each block of the cache), so that a block that comes back has been used twice. A run that comes back
// with several of them gets the earliest.
//
// Cost: O(log runs) for each call.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kvstem/policy/eviction_policy.hpp"
#include "kvstem/policy/ghost_table.hpp"
#include "kvstem/policy/leaf_heap.hpp"

namespace kvstem::inline v0 {

class Lru2 {
 public:
  static constexpr PolicyKeys kKeys = PolicyKeys::kMissed;

  [[nodiscard]] bool take(const Memory& memory, PolicyLimits limits) noexcept {
    return runs_.take(memory, limits.max_runs) && leaves_.take(memory, limits.max_runs) &&
           ghosts_.take(memory, std::uint64_t{4} * limits.capacity_blocks);
  }

  void on_request_begin(const RequestFacts&) noexcept {
    ++now_;
    leaves_.return_aside();
  }
  void on_request_end(const RequestFacts&) noexcept {}
  void on_hit(std::uint32_t run, std::uint32_t) noexcept {
    Run& r = runs_[run];
    r = {.used = now_, .before = r.used, .blocks = r.blocks, .once = 0, .cold = false};
    reorder(run);
  }
  void on_release(std::uint32_t run, std::uint32_t) noexcept {
    runs_[run].used = now_;
    reorder(run);
  }
  void on_path(std::span<const BlockKey> keys, std::uint32_t) noexcept {
    known_ = 0;
    for (std::uint32_t i = 0; i < keys.size(); ++i) {
      const std::uint64_t used = ghosts_.take_out(keys[i]);
      if (used == 0) continue;
      // Those before it were used as well then, whether or not their ghosts are left.
      known_ = i + 1;
      known_use_ = used;
    }
  }
  void on_insert(std::uint32_t run, std::uint32_t parent, std::uint32_t blocks) noexcept {
    runs_[run] = {.used = now_, .before = 0, .blocks = 0, .once = 0, .cold = false};
    if (parent != kNoVictim) leaves_.remove(parent);
    add(run, blocks);
    leaves_.put(run, rank(run));
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
    const Run& h = runs_[head];
    Run& t = runs_[tail];
    if (h.once < h.blocks) t.before = h.before;
    t.blocks += h.blocks;
    t.once += h.once;
    leaves_.remove(head);
    reorder(tail);
  }
  void on_trim(std::uint32_t run, std::uint32_t blocks) noexcept {
    runs_[run].blocks -= blocks;
    runs_[run].once -= std::min(blocks, runs_[run].once);
    reorder(run);
  }
  void on_erase(std::uint32_t run) noexcept { leaves_.remove(run); }
  void on_leaf(std::uint32_t run) noexcept { leaves_.put(run, rank(run)); }
  void on_evicted(BlockKey key) noexcept { (void)ghosts_.put(key, victim_used_); }
  void demote(std::uint32_t run) noexcept {
    runs_[run].cold = true;
    runs_[run].before = now_;
    reorder(run);
  }
  [[nodiscard]] bool mergeable(std::uint32_t head, std::uint32_t tail) const noexcept {
    const Run &h = runs_[head], &t = runs_[tail];
    return h.used == t.used && h.cold == t.cold &&
           (t.once == t.blocks || (h.once == 0 && h.before == t.before));
  }
  [[nodiscard]] Victim victim(Evictable evictable) noexcept {
    const std::uint32_t run = leaves_.first(evictable);
    return run == kNoVictim ? Victim{} : Victim{run, take_from(run)};
  }
  /// For a policy that chose the run itself: its blocks are evicted next. Returns those at its end that are of one class.
  std::uint32_t take_from(std::uint32_t run) noexcept {
    const Run& r = runs_[run];
    victim_used_ = r.used;
    return r.cold || r.once == 0 ? r.blocks : r.once;
  }

 private:
  struct Run {
    std::uint64_t used;  // when it was last
    std::uint64_t
        before;  // and the time before that, of all but the last `once` blocks; of a cold run, when it became so
    std::uint32_t blocks;
    std::uint32_t once;
    bool cold;
  };

  /// Cold before once before twice, the earliest first.
  [[nodiscard]] std::uint64_t rank(std::uint32_t run) const noexcept {
    const Run& r = runs_[run];
    if (r.cold) return r.before;
    return r.once > 0 ? r.used | std::uint64_t{1} << 62 : r.before | std::uint64_t{1} << 63;
  }
  void reorder(std::uint32_t run) noexcept {
    if (leaves_.holds(run)) leaves_.put(run, rank(run));
  }
  /// Blocks that were not there, the first ones of which may have been used before.
  void add(std::uint32_t run, std::uint32_t blocks) noexcept {
    Run& r = runs_[run];
    const std::uint32_t known = std::min(known_, blocks);
    known_ -= known;
    if (known > 0 && r.once == 0) {
      r.before = r.blocks == 0 ? known_use_ : std::min(r.before, known_use_);
      r.once = blocks - known;
    } else {
      r.once += blocks;
    }
    r.blocks += blocks;
  }

  FixedArray<Run> runs_;
  LeafHeap leaves_;
  GhostTable ghosts_;            // when an evicted block was used last
  std::uint64_t now_ = 1;        // requests so far
  std::uint32_t known_ = 0;      // leading blocks of those that come now that were used before
  std::uint64_t known_use_ = 0;  // and when
  std::uint64_t victim_used_ = 1;
};

static_assert(EvictionPolicy<Lru2>);

}  // namespace kvstem::inline v0
