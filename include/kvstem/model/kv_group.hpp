// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A group is a set of layers whose state follows one rule of how long it is needed. Most models have one group, of full
// attention; hybrids have several, and a prefix is reusable only where all of them are valid. Plain data.
//
//   KvGroup groups[] = {
//       {.kind = GroupKind::kFullAttention, .bytes_per_token = 24 * 2048},
//       {.kind = GroupKind::kSlidingWindow, .window_tokens = 1024, .bytes_per_token = 24 * 2048, .with = 0},  // one budget
//       {.kind = GroupKind::kStateCheckpoint, .bytes_per_token = 6 << 20, .slots = 64, .checkpoint_blocks = 32},
//   };
//
// A running lease holds two slots of a state group besides what is kept: at least 2 * max_leases of them. Where states are to
// be found again, chunks end where they are kept:
//
//   for (std::uint32_t at = lease.matched_tokens(); at < n;) {
//     const std::uint32_t end = std::min({at + kChunk, lease.next_boundary(at), n});
//     if (!lease.reserve(end - lease.reserved_tokens()).ok()) return wait();
//     launch(prompt, at, end, lease.table(0), lease.table(1), lease.table(2));      // of states {read, write}
//     if (!lease.commit(end - at, point).ok()) return mistake();
//     at = end;
//   }
//
//   kind              what of it a prefix of p tokens needs            what an eviction may take
//   kFullAttention    the state of all p tokens                        the last block of a prefix, with all groups' shares
//   kSlidingWindow    of the last `window_tokens` before p             any block's share
//   kStateCheckpoint  one state, taken at exactly p                    any state
//   kSideData         lies beside each block of another group          with that block
#pragma once

#include <cstdint>

#include "kvstem/base/ids.hpp"

namespace kvstem::inline v0 {

enum class GroupKind : std::uint8_t {
  kFullAttention,  // the state of every token is needed
  kSlidingWindow,  // only the last `window_tokens` before the next token (W - 1 if a model's W counts the token itself)
  kStateCheckpoint,  // one state at exactly the end (SSM, linear attention)
  kSideData,         // travels with a block of another group (a sparse indexer, a compressed tail)
};

/// As KvGroup::with: none.
inline constexpr GroupId kNoGroup = 255;

struct KvGroup {
  GroupKind kind = GroupKind::kFullAttention;
  std::uint32_t window_tokens = 0;  // kSlidingWindow: how many before the next token; otherwise 0
  std::uint64_t bytes_per_token =
      0;                         // all layers and heads of the group; kStateCheckpoint: bytes of one state
  std::uint32_t lag_tokens = 0;  // how far this group's state may trail the others (a draft model)
  std::uint32_t block_tokens =
      0;                    // of its blocks: a multiple of the cache's; 0: as the cache. Not of checkpoints
  std::uint32_t slots = 0;  // of its own pool; 0: as many as CacheOptions::slots
  /// An earlier group: whose pool this one shares (both must have equal bytes per block), or, of kSideData, whose blocks it
  /// lies beside (there kNoGroup means group 0).
  GroupId with = kNoGroup;
  std::uint32_t checkpoint_blocks =
      0;  // kStateCheckpoint: also after every so many blocks of a prompt; 0: not
  friend constexpr bool operator==(const KvGroup&, const KvGroup&) noexcept = default;
};

}  // namespace kvstem::inline v0
