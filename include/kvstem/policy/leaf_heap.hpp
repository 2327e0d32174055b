// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Runs by rank, the lowest on top: what a policy needs whose order is not that of the last use. Hold in it the runs that
// may be victims, those without children, and nothing else.
//
// A run that is found in use is set aside, so that the next search does not meet it again; `return_aside` brings all back.
// Call it when a request begins: what was in use then may not be any more.
//
// Cost: O(log runs) for each change; `first` amortised the same.
#pragma once

#include <cstdint>
#include <utility>

#include "kvstem/policy/eviction_policy.hpp"

namespace kvstem::inline v0 {

class LeafHeap {
 public:
  [[nodiscard]] bool take(const Memory& memory, std::uint32_t max_runs) noexcept {
    return entries_.take(memory, max_runs) && where_.take(memory, max_runs);
  }

  [[nodiscard]] bool holds(std::uint32_t run) const noexcept { return where_[run] != 0; }
  /// Puts a run in, or gives it another rank. Of equal ranks, the one that was put first goes first.
  void put(std::uint32_t run, std::uint64_t rank) noexcept {
    remove(run);
    const Entry entry{.rank = rank, .order = ++order_, .run = run};
    place(size_, entry);
    up(size_++);
  }
  /// Without effect if it is not there.
  void remove(std::uint32_t run) noexcept {
    const std::uint32_t at = std::exchange(where_[run], 0);
    if (at == 0) return;
    if (at > size_) {
      const auto last_aside = static_cast<std::uint32_t>(entries_.size()) - aside_--;
      if (at - 1 != last_aside) place(at - 1, entries_[last_aside]);
      return;
    }
    if (at == size_--) return;
    place(at - 1, entries_[size_]);
    up(at - 1);
    down(at - 1);
  }
  /// The evictable run of the lowest rank; kNoVictim if there is none.
  [[nodiscard]] std::uint32_t first(Evictable evictable) noexcept {
    for (bool asked_all = aside_ == 0;; asked_all = true) {
      while (size_ > 0) {
        const Entry top = entries_[0];
        if (evictable(top.run)) return top.run;
        remove(top.run);
        place(static_cast<std::uint32_t>(entries_.size()) - ++aside_, top);
      }
      return_aside();
      if (asked_all) return kNoVictim;
    }
  }
  void return_aside() noexcept {
    while (aside_ > 0) {
      const Entry entry = entries_[entries_.size() - aside_];
      remove(entry.run);
      place(size_, entry);
      up(size_++);
    }
  }

 private:
  struct Entry {
    std::uint64_t rank;
    std::uint32_t order, run;
    friend bool operator<(const Entry& a, const Entry& b) noexcept {
      return a.rank != b.rank ? a.rank < b.rank : static_cast<std::int32_t>(a.order - b.order) < 0;
    }
  };

  void place(std::uint32_t at, Entry entry) noexcept {
    entries_[at] = entry;
    where_[entry.run] = at + 1;
  }
  void up(std::uint32_t at) noexcept {
    const Entry entry = entries_[at];
    for (; at > 0 && entry < entries_[(at - 1) / 2]; at = (at - 1) / 2) place(at, entries_[(at - 1) / 2]);
    place(at, entry);
  }
  void down(std::uint32_t at) noexcept {
    const Entry entry = entries_[at];
    for (std::uint32_t child; (child = 2 * at + 1) < size_; at = child) {
      if (child + 1 < size_ && entries_[child + 1] < entries_[child]) ++child;
      if (!(entries_[child] < entry)) break;
      place(at, entries_[child]);
    }
    place(at, entry);
  }

  FixedArray<Entry> entries_;        // [0, size_) the heap; the last aside_ ones are set aside
  FixedArray<std::uint32_t> where_;  // by run: its entry, counted from 1
  std::uint32_t size_ = 0, aside_ = 0;
  std::uint32_t order_ = 0;
};

}  // namespace kvstem::inline v0
