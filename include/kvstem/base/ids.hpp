// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The small numbers that name things, each a type of its own where mixing two up would compile otherwise.
#pragma once

#include <cstdint>
#include <limits>

namespace kvstem::inline v0 {

/// A token of the model's vocabulary. 32 bits and signed, as engines keep them; a negative id is never valid.
using TokenId = std::int32_t;

/// Where a block lies in one medium's pool: 0 <= slot < that pool's size. Not the block's identity.
using SlotId = std::uint32_t;
inline constexpr SlotId kNoSlot = std::numeric_limits<SlotId>::max();

/// A group of layers that share a retention rule. 0 is the first, and often the only one.
using GroupId = std::uint8_t;

/// A sequence inside an opaque engine.
using SequenceId = std::int32_t;
inline constexpr SequenceId kNoSequence = -1;

/// Half-open range of token positions in a sequence.
struct TokenRange {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  [[nodiscard]] constexpr std::uint32_t size() const noexcept { return end - begin; }
  friend constexpr bool operator==(TokenRange, TokenRange) noexcept = default;
};
/// Half-open range of a sequence's blocks.
struct BlockRange {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  [[nodiscard]] constexpr bool empty() const noexcept { return begin >= end; }
  friend constexpr bool operator==(BlockRange, BlockRange) noexcept = default;
};
/// As a range's end: "to the end of the sequence".
inline constexpr std::uint32_t kToEnd = std::numeric_limits<std::uint32_t>::max();

/// Where state lies, nearest first.
enum class Medium : std::uint8_t { kDevice = 0, kHost, kFile, kStore };
[[nodiscard]] constexpr const char* to_string(Medium medium) noexcept {
  constexpr const char* kNames[] = {"device", "host", "file", "store"};
  return kNames[static_cast<int>(medium)];
}

/// A scope that was opened with `Cache::open_scope`; names it in prompts of that cache only.
enum class ScopeId : std::uint32_t {};
/// No scope at all: a prompt that forgot to name one is refused.
inline constexpr ScopeId kNoScope{std::numeric_limits<std::uint32_t>::max()};

}  // namespace kvstem::inline v0
