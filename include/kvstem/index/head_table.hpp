// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// From the key of a run's first block to the run. One cache line holds seven entries and a count of those that did not
// fit and went on to a later line; so a miss costs one line, nothing is ever moved, and nothing is left behind by an
// erasure. (The overflow count is the idea of F14, Bronson and Shi 2019.)
//
// An entry is a hint: 32 bits of the key and a run. Whoever asks proves each candidate by comparing content, so two runs
// with the same key may stand here side by side.
//
// For the index only. Threads: one writer, any number of readers; an entry is one atomic word.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>

#include "kvstem/base/memory.hpp"
#include "kvstem/model/block_key.hpp"

namespace kvstem::inline v0 {

class HeadTable {
  struct alignas(64) Line {
    std::atomic<std::uint64_t> entry[7];  // tag << 32 | run + 1; 0 is empty
    std::atomic<std::uint64_t>
        overflow;  // entries whose home is this line or an earlier one and that lie behind it
  };

 public:
  [[nodiscard]] bool take(const Memory& memory, std::uint32_t max_runs) noexcept {
    // At most 2.5 entries a line on average: hardly one in a thousand lines needs a second look.
    const std::size_t lines = std::bit_ceil(std::size_t{max_runs} * 2 / 5 + 1);
    if (!lines_.take(memory, lines)) return false;
    for (std::size_t i = 0; i < lines; ++i) ::new (&lines_[i]) Line{};
    return true;
  }

  [[nodiscard]] std::size_t bytes() const noexcept { return lines_.bytes(); }

  /// Calls `accept(run)` for each candidate until it returns true; false if none did.
  template <class Accept>
  bool find(BlockKey key, Accept&& accept) const noexcept {
    const std::uint64_t wanted = tag(key);
    std::size_t i = home(key);
    for (std::size_t looked = 0; looked < lines_.size(); ++looked, i = (i + 1) & (lines_.size() - 1)) {
      const Line& line = lines_[i];
      for (const auto& entry : line.entry) {
        const std::uint64_t e = entry.load(std::memory_order_acquire);
        if (e >> 32 == wanted && e != 0 && accept(static_cast<std::uint32_t>(e) - 1)) return true;
      }
      if (line.overflow.load(std::memory_order_acquire) == 0) break;
    }
    return false;
  }

  /// There is always room for `max_runs` entries.
  void insert(BlockKey key, std::uint32_t run) noexcept {
    for (std::size_t i = home(key);; i = (i + 1) & (lines_.size() - 1)) {
      for (auto& entry : lines_[i].entry) {
        if (entry.load(std::memory_order_relaxed) != 0) continue;
        entry.store(tag(key) << 32 | (run + 1), std::memory_order_release);
        return;
      }
      lines_[i].overflow.fetch_add(1, std::memory_order_release);
    }
  }

  /// The entry (key, from) now leads to `to`; readers see one or the other.
  void replace(BlockKey key, std::uint32_t from, std::uint32_t to) noexcept {
    locate(key, from).store(tag(key) << 32 | (to + 1), std::memory_order_release);
  }

  void erase(BlockKey key, std::uint32_t run) noexcept {
    const std::uint64_t wanted = tag(key) << 32 | (run + 1);
    std::size_t at = home(key);
    for (;; at = (at + 1) & (lines_.size() - 1)) {
      bool here = false;
      for (auto& entry : lines_[at].entry) {
        if (entry.load(std::memory_order_relaxed) != wanted) continue;
        entry.store(0, std::memory_order_release);
        here = true;
        break;
      }
      if (here) break;
    }
    for (std::size_t i = home(key); i != at; i = (i + 1) & (lines_.size() - 1))
      lines_[i].overflow.fetch_sub(1, std::memory_order_release);
  }

 private:
  std::size_t home(BlockKey key) const noexcept { return key.lo & (lines_.size() - 1); }
  static std::uint64_t tag(BlockKey key) noexcept { return static_cast<std::uint32_t>(key.hi); }

  std::atomic<std::uint64_t>& locate(BlockKey key, std::uint32_t run) noexcept {
    const std::uint64_t wanted = tag(key) << 32 | (run + 1);
    for (std::size_t i = home(key);; i = (i + 1) & (lines_.size() - 1))
      for (auto& entry : lines_[i].entry)
        if (entry.load(std::memory_order_relaxed) == wanted) return entry;
  }

  FixedArray<Line> lines_;
};

}  // namespace kvstem::inline v0
