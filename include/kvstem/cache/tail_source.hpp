// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The block that a lease has just completed, as a source for the index: block `block` of a sequence whose earlier blocks
// are in the tree already. For the cache only.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

#include "kvstem/index/block_source.hpp"

namespace kvstem::inline v0 {

class TailSource {
 public:
  /// `prompt` holds exactly the block's tokens, with marks relative to the block.
  TailSource(const KeyHasher& hasher, std::uint32_t block_tokens, const Prompt& prompt, RootKeys roots,
             std::uint32_t block) noexcept
      : inner_(hasher, block_tokens, prompt, roots), block_(block) {}

  [[nodiscard]] std::uint32_t blocks() const noexcept { return block_ + 1; }
  [[nodiscard]] BlockKey key(BlockKey parent, std::uint32_t) const noexcept { return inner_.key(parent, 0); }
  [[nodiscard]] BlockKey stored_key(BlockKey parent, const std::byte* stored) const noexcept {
    return inner_.stored_key(parent, stored);
  }
  [[nodiscard]] std::uint32_t equal(const std::byte* stored, std::uint32_t, std::uint32_t n) const noexcept {
    return inner_.equal(stored, 0, n);
  }
  std::uint32_t marks(std::uint32_t, StoredMark* out) const noexcept { return inner_.marks(0, out); }
  [[nodiscard]] bool equal_marks(const std::byte* stored, std::uint32_t count, std::uint32_t) const noexcept {
    return inner_.equal_marks(stored, count, 0);
  }
  [[nodiscard]] std::uint32_t next_marked(std::uint32_t i) const noexcept {
    return i <= block_ ? block_ + inner_.next_marked(0) : blocks();
  }
  void copy(std::uint32_t, std::uint32_t n, std::byte* out) const noexcept { inner_.copy(0, n, out); }

 private:
  TokenSource inner_;
  std::uint32_t block_;
};

static_assert(BlockSource<TailSource>);

}  // namespace kvstem::inline v0
