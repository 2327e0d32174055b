// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What a tier is: slots of bytes, each with the key of the block that it holds. The cache says what goes into which slot;
// a tier keeps it, and gives it back only if it is what was put there. Anything doubtful is a miss.
//
// A slot is staged (writable, holds nothing), sealed (holds a block) or dropped (holds nothing). A tier must never hand
// out bytes that differ from what was sealed, whatever happened to its memory: it checks.
//
// New tiers run the suite in testing/tier_contract.hpp.
//
//   std::span<std::byte> room = *tier.stage(slot);
//   if (engine.export_range(sequence, 0, range, room.first(n)).ok()) (void)tier.seal(slot, key, n);
//   Result<std::span<const std::byte>> bytes = tier.read(slot, key);
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/model/block_key.hpp"

namespace kvstem::inline v0 {

template <class T>
concept Tier = requires(T tier, const T view, SlotId slot, BlockKey key, std::size_t bytes) {
  { view.medium() } noexcept -> std::same_as<Medium>;
  { view.slots() } noexcept -> std::same_as<std::uint32_t>;
  /// Most bytes that one slot holds.
  { view.slot_bytes() } noexcept -> std::same_as<std::size_t>;
  /// The slot holds nothing from now on; the span (slot_bytes long) may be written until `seal` or `drop`.
  /// kOutOfRange for a slot that does not exist.
  { tier.stage(slot) } noexcept -> std::same_as<Result<std::span<std::byte>>>;
  /// The first `bytes` that were staged are the block `key`. kWrongState if not staged, kOutOfRange if too many.
  { tier.seal(slot, key, bytes) } noexcept -> std::same_as<Status>;
  /// The block, valid until the slot is staged or dropped. kCorrupt if the slot holds anything else: it is then dropped.
  { tier.read(slot, key) } noexcept -> std::same_as<Result<std::span<const std::byte>>>;
  { tier.drop(slot) } noexcept;
};

}  // namespace kvstem::inline v0
