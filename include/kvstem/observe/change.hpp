// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What changed in a medium, block by block: enough to rebuild the tree elsewhere (a router, an event stream, a test).
// Records are numbered without gaps; when more happened than the cache keeps, the oldest are lost and the number jumps.
//
//   Change changes[256];
//   for (const Change& c : cache.take_changes(changes)) publish(c);
#pragma once

#include <cstdint>

#include "kvstem/base/ids.hpp"
#include "kvstem/model/block_key.hpp"

namespace kvstem::inline v0 {

enum class ChangeKind : std::uint8_t {
  kStored,   // the block is now present in the medium; its parent was reported before it
  kRemoved,  // no longer; its descendants were reported before it
};

struct Change {
  std::uint64_t number = 0;
  BlockKey key{};
  BlockKey parent{};  // the scope's root key for a first block
  ChangeKind kind = ChangeKind::kStored;
  Medium medium = Medium::kDevice;
  GroupId group = 0;
};

}  // namespace kvstem::inline v0
