// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Least recently used. Choose it when the working set fits or nearly fits, and as the reference: within 1.5 points of the
// optimum there. When it does not fit, LRU is near the worst.
//
// A list of runs by last use. A path is touched from its end to its root, so a run is always more recent than its
// descendants, and the list's old end is a leaf unless it is in use. What is found there in use goes to the young end: it
// is touched again when its use ends, so its order meanwhile does not matter. What was demoted is in a list of its own,
// from which victims come first.
//
// Cost: O(1) for each call; `victim` amortised.
#pragma once

#include <cstdint>

#include "kvstem/policy/eviction_policy.hpp"

namespace kvstem::inline v0 {

class Lru {
 public:
  static constexpr PolicyKeys kKeys = PolicyKeys::kNone;

  [[nodiscard]] bool take(const Memory& memory, PolicyLimits limits) noexcept {
    // Two entries more: the lists' heads.
    head_ = limits.max_runs;
    cold_ = head_ + 1;
    if (!entries_.take(memory, std::size_t{limits.max_runs} + 2)) return false;
    for (const std::uint32_t head : {head_, cold_})
      entries_[head] = {.older = head, .younger = head, .tick = 0};
    return true;
  }

  void on_request_begin(const RequestFacts&) noexcept { ++tick_; }
  void on_request_end(const RequestFacts&) noexcept {}
  void on_hit(std::uint32_t run, std::uint32_t) noexcept {
    unlink(run);
    link_older_than(run, head_);
    entries_[run].tick = tick_;
  }
  void on_release(std::uint32_t run, std::uint32_t blocks) noexcept { on_hit(run, blocks); }
  void on_path(std::span<const BlockKey>, std::uint32_t) noexcept {}
  void on_insert(std::uint32_t run, std::uint32_t parent, std::uint32_t) noexcept {
    // Just older than its parent, so that descendants go first. Roots are not in the list.
    link_older_than(run, parent == kNoVictim ? head_ : parent);
    entries_[run].tick = tick_;
  }
  void on_grow(std::uint32_t, std::uint32_t) noexcept {}
  void on_split(std::uint32_t head, std::uint32_t tail, std::uint32_t) noexcept {
    link_older_than(head, entries_[tail].younger);
    entries_[head].tick = entries_[tail].tick;
  }
  void on_merge(std::uint32_t head, std::uint32_t) noexcept { on_erase(head); }
  void on_trim(std::uint32_t, std::uint32_t) noexcept {}
  void on_erase(std::uint32_t run) noexcept { unlink(run); }
  void on_leaf(std::uint32_t) noexcept {}
  void on_evicted(BlockKey) noexcept {}
  void demote(std::uint32_t run) noexcept {
    unlink(run);
    link_older_than(run, cold_);
    entries_[run].tick = 0;
  }
  [[nodiscard]] bool mergeable(std::uint32_t head, std::uint32_t tail) const noexcept {
    return entries_[head].tick == entries_[tail].tick;
  }
  [[nodiscard]] Victim victim(Evictable evictable) noexcept {
    for (std::uint32_t run = entries_[cold_].younger; run != cold_; run = entries_[run].younger)
      if (evictable(run)) return {run};
    std::uint32_t first = head_;  // that was passed over: one round, and the order is what it was
    for (std::uint32_t run = entries_[head_].younger; run != head_ && run != first;
         run = entries_[head_].younger) {
      if (evictable(run)) return {run};
      if (first == head_) first = run;
      unlink(run);
      link_older_than(run, head_);
    }
    return {};
  }

 private:
  // Two rings, each head -> oldest -> ... -> youngest -> head.
  struct Entry {
    std::uint32_t older, younger;
    std::uint64_t tick;  // request of the last use
  };

  void unlink(std::uint32_t run) noexcept {
    entries_[entries_[run].older].younger = entries_[run].younger;
    entries_[entries_[run].younger].older = entries_[run].older;
  }
  void link_older_than(std::uint32_t run, std::uint32_t younger) noexcept {
    const std::uint32_t older = entries_[younger].older;
    entries_[run].older = older;
    entries_[run].younger = younger;
    entries_[older].younger = run;
    entries_[younger].older = run;
  }

  FixedArray<Entry> entries_;
  std::uint32_t head_ = 0, cold_ = 0;
  std::uint64_t tick_ = 0;
};

static_assert(EvictionPolicy<Lru>);

}  // namespace kvstem::inline v0
