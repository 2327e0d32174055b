// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What LRU finds at every capacity, from one pass over a trace: stack distances (Mattson, Gecsei, Slutz, Traiger 1970) over
// the tree of prompts.
//
// A block is found by a cache of C blocks if fewer than C others were used since. A request uses its path from the end to
// the root, so what it leaves behind is one stretch of the stack, root on top, and later requests take from that stretch
// its beginning. So a path lies in few stretches, and each has one number: how many blocks lie above it.
//
// Cost: O(blocks of all prompts) in time; 12 bytes for each stretch of each path, about three.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "trace.hpp"

namespace kvstem::cli {

class LruCurve {
 public:
  struct Stretch {
    std::uint32_t blocks_above;  // more recent than the stretch's first block
    std::uint32_t blocks;
    [[nodiscard]] std::uint32_t found(std::uint64_t capacity) const {
      return capacity <= blocks_above
                 ? 0
                 : static_cast<std::uint32_t>(std::min<std::uint64_t>(blocks, capacity - blocks_above));
    }
  };

  LruCurve(const Trace& trace, const TracePart& part);

  /// Of a request of the part, counted from its begin: what of its path was used before, from the root on.
  [[nodiscard]] std::span<const Stretch> of(std::size_t request) const {
    return {stretches_.data() + first_[request], first_[request + 1] - first_[request]};
  }
  /// Blocks that the request finds in a cache of this capacity.
  [[nodiscard]] std::uint32_t found(std::size_t request, std::uint64_t capacity) const {
    std::uint32_t blocks = 0;
    for (const Stretch& stretch : of(request)) blocks += stretch.found(capacity);
    return blocks;
  }

 private:
  std::vector<std::size_t> first_;
  std::vector<Stretch> stretches_;
};

}  // namespace kvstem::cli
