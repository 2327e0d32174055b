// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What a policy remembers of blocks that are not there (any more): 16 bytes for each, in sets of eight, of which the lowest
// value makes room. Let values grow with time, then that is the oldest.
//
// Cost: each call reads one set, two cache lines. Two keys are taken for one with a probability of 2^-61 for each pair.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "kvstem/base/memory.hpp"
#include "kvstem/model/block_key.hpp"

namespace kvstem::inline v0 {

class GhostTable {
 public:
  /// For at least so many, and at most seven more.
  [[nodiscard]] bool take(const Memory& memory, std::uint64_t ghosts) noexcept {
    return ghosts_.take(memory, std::max<std::uint64_t>(1, (ghosts + kWays - 1) / kWays) * kWays);
  }

  /// Removes the key and returns its value; 0 if it is not there.
  std::uint64_t take_out(BlockKey key) noexcept {
    Ghost* set = set_of(key);
    for (std::size_t i = 0; i < kWays; ++i)
      if (set[i].value != 0 && set[i].tag == key.lo) return std::exchange(set[i].value, 0);
    return 0;
  }
  /// `value` must not be 0. Returns the value that it replaced, which may be another key's; 0 if there was room.
  std::uint64_t put(BlockKey key, std::uint64_t value) noexcept {
    Ghost* set = set_of(key);
    Ghost* oldest = set;
    for (std::size_t i = 0; i < kWays; ++i) {
      if (set[i].value != 0 && set[i].tag == key.lo) return std::exchange(set[i].value, value);
      if (set[i].value < oldest->value) oldest = &set[i];
    }
    const std::uint64_t before = oldest->value;
    *oldest = {key.lo, value};
    return before;
  }

 private:
  static constexpr std::size_t kWays = 8;
  struct Ghost {
    std::uint64_t tag, value;  // value 0: empty
  };

  // Keys of an engine's own making may be small numbers, so they are mixed (SplitMix64: Steele, Lea, Flood 2014).
  [[nodiscard]] std::size_t set_index(BlockKey key) const noexcept {
    std::uint64_t x = key.lo + key.hi * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return static_cast<std::size_t>((x >> 32) * (ghosts_.size() / kWays) >> 32);
  }
  [[nodiscard]] Ghost* set_of(BlockKey key) noexcept { return ghosts_.data() + set_index(key) * kWays; }

  FixedArray<Ghost> ghosts_;
};

}  // namespace kvstem::inline v0
