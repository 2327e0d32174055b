// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What the best possible cache of a given size would find, knowing the future: Belady's MIN (1966) with the right not to
// keep a block at all. For prefixes it is exact: a parent is used whenever its child is, so its next use is never later,
// the block that is used last is always a leaf, and MIN never breaks the tree.
//
// Why it is fast. The cached blocks whose next use is request j all lie on j's path, and those nearer to the root were put
// there later; so they are one stretch, of which the deepest goes first, and its length is all that must be kept. What
// request j finds is the length of its stretch when it comes.
#pragma once

#include <cstdint>
#include <vector>

#include "trace.hpp"

namespace kvstem::cli {

/// For each request of a part, its path from the root, by when the blocks are used next. O(blocks); serves all capacities.
class NextUses {
 public:
  static constexpr std::uint32_t kNever = ~std::uint32_t{0};
  struct Stretch {
    std::uint32_t next;  // request (from the part's begin), or kNever
    std::uint32_t blocks;
  };

  NextUses(const Trace& trace, const TracePart& part);

  [[nodiscard]] std::uint32_t requests() const { return static_cast<std::uint32_t>(first_.size() - 1); }
  [[nodiscard]] std::span<const Stretch> of(std::uint32_t request) const {
    return {stretches_.data() + first_[request], first_[request + 1] - first_[request]};
  }

 private:
  std::vector<std::size_t> first_;
  std::vector<Stretch> stretches_;
};

/// Blocks that each request finds under MIN with bypass.
[[nodiscard]] std::vector<std::uint32_t> optimum(const NextUses& uses, std::uint64_t capacity);

/// The same rule where a request's whole path must be cached when it is done, as in the tier that it is computed in. A
/// greedy reference: not proven to be the best under that rule.
[[nodiscard]] std::vector<std::uint32_t> optimum_whole_paths(const NextUses& uses, std::uint64_t capacity);

}  // namespace kvstem::cli
