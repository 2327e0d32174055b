// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What the cache asks an executor to move: plain data, so that it can be carried out on another thread, in another
// process or on every rank, and reported later, in any order. Where one writes what another reads or writes they are
// carried out in the order in which they were handed out; a device queue that takes them in that order does so by itself.
//
//   StepEntry entries[64];
//   for (const StepEntry& e : cache.take_step(entries)) {
//     const Status moved = move(e);             // or later
//     (void)cache.complete({e, moved});
//   }
//
//   kind    SlotFill::kInPlace                           SlotFill::kByStep
//   kLoad   from a lower tier or a peer into the slot    from the slot into the lease's sequence
//   kStore  -                                            from the lease's sequence into the slot
//   kCopy   tokens of one slot into another              -
//
// Loads and stores are of whole blocks. Copies are of attention groups, in blocks of the group's own size; states are never
// copied. The two ends of a copy never overlap.
#pragma once

#include <cstdint>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/point.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/model/block_key.hpp"

namespace kvstem::inline v0 {

enum class StepKind : std::uint8_t { kLoad, kStore, kCopy };

struct StepEntry {
  StepKind kind = StepKind::kLoad;
  GroupId group = 0;
  std::uint32_t lease = 0;       // Lease::index() of the lease concerned
  std::uint32_t generation = 0;  // of that lease, so that a late result of an earlier one is told apart
  std::uint32_t block =
      0;  // which block of the lease, of the group's size: tokens [block * block_tokens, (block + 1) * block_tokens)
  SlotId slot = kNoSlot;
  BlockKey key{};      // the block's identity, for tiers that store it beside the payload; not of copies
  Point not_before{};  // the slot may be written only after this point (all that write a slot)
  // Copies: `tokens` of them, from `from_slot`'s `from_offset` on to `slot`'s `offset`. What is read there is computed once
  // `source_ready` is reached.
  SlotId from_slot = kNoSlot;
  std::uint32_t from_offset = 0, offset = 0, tokens = 0;
  Point source_ready{};
};

/// How an entry went. What failed takes its block and all behind it from the lease; `Lease::committed_tokens` then says
/// from where to compute. With groups besides one of full attention the lease ends: `Lease::live` is false.
struct StepResult {
  StepEntry entry;
  Status status;
};

}  // namespace kvstem::inline v0
