// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What the cache asks an executor to move: plain data, so that it can be carried out on another thread, in another
// process or on every rank, and reported later.
//
//   StepEntry entries[64];
//   for (const StepEntry& e : cache.take_step(entries)) {
//     const Status moved = e.kind == StepKind::kLoad ? load(e) : store(e);
//     cache.complete({e, moved});
//   }
#pragma once

#include <cstdint>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/point.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/model/block_key.hpp"

namespace kvstem::inline v0 {

enum class StepKind : std::uint8_t {
  kLoad,   // from the slot into the lease's sequence
  kStore,  // from the lease's sequence into the slot
};

struct StepEntry {
  StepKind kind = StepKind::kLoad;
  GroupId group = 0;
  std::uint32_t lease = 0;       // Lease::index() of the lease concerned
  std::uint32_t generation = 0;  // of that lease, so that a late result of an earlier one is told apart
  std::uint32_t block =
      0;  // which block of the lease: tokens [block * block_tokens, (block + 1) * block_tokens)
  SlotId slot = kNoSlot;
  BlockKey key{};      // the block's identity, for tiers that store it beside the payload
  Point not_before{};  // the slot may be written only after this point (stores)
};

/// How an entry went. A load that failed takes its block and all behind it from the lease.
struct StepResult {
  StepEntry entry;
  Status status;
};

}  // namespace kvstem::inline v0
