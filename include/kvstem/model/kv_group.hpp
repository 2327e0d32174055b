// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A group is a set of layers whose state follows one rule of how long it is needed. Most models have one group, of full
// attention; hybrids have several, and a prefix is reusable only where all of them are valid. Plain data.
//
//   KvGroup full{.kind = GroupKind::kFullAttention, .bytes_per_token = 2 * 30 * 3 * 64 * 2};
#pragma once

#include <cstdint>

namespace kvstem::inline v0 {

enum class GroupKind : std::uint8_t {
  kFullAttention,    // the state of every token is needed
  kSlidingWindow,    // only the last `window_tokens` before the next token
  kStateCheckpoint,  // one state at exactly the end (SSM, linear attention)
  kSideData,         // travels with a block of another group (a sparse indexer, a compressed tail)
};

struct KvGroup {
  GroupKind kind = GroupKind::kFullAttention;
  std::uint32_t window_tokens = 0;  // kSlidingWindow: tokens; otherwise 0
  std::uint64_t bytes_per_token =
      0;                         // all layers and heads of the group; kStateCheckpoint: bytes of one state
  std::uint32_t lag_tokens = 0;  // how far this group's state may trail the others (a draft model)
  friend constexpr bool operator==(const KvGroup&, const KvGroup&) noexcept = default;
};

}  // namespace kvstem::inline v0
