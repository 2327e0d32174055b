// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What the index is compared with. Each proves every block by its tokens, as the index does.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <unordered_map>
#include <vector>

#include "kvstem/model/block_key.hpp"

namespace bench {

using namespace kvstem;

inline constexpr std::uint32_t kBlockTokens = 16;
inline constexpr std::size_t kBlockBytes = kBlockTokens * sizeof(TokenId);

inline bool equal_block(const TokenId* a, const TokenId* b) { return std::memcmp(a, b, kBlockBytes) == 0; }

/// Open addressing with linear probing, at most half full; 16 bytes a slot, with 64 bits of the chained key. Tokens lie in
/// the order in which blocks came. The caller has the keys.
class FlatTable {
 public:
  explicit FlatTable(std::size_t max_blocks) : slots_(std::bit_ceil(2 * max_blocks)) {
    tokens_.reserve(max_blocks * kBlockTokens);
  }

  void insert(BlockKey key, std::span<const TokenId> block) {
    std::size_t i = home(key);
    for (; slots_[i].entry != 0; i = next(i))
      if (slots_[i].tag == key.hi) return;
    slots_[i] = {key.hi, tokens_.size() / kBlockTokens + 1};
    tokens_.insert(tokens_.end(), block.begin(), block.end());
  }

  /// Writes the blocks' places to `out`; returns how many match. Slots are fetched 32 blocks ahead, tokens 16.
  std::uint32_t match(std::span<const TokenId> prompt, std::span<const BlockKey> keys,
                      std::uint32_t* out) const {
    constexpr std::uint32_t kAhead = 16;
    const auto n = static_cast<std::uint32_t>(keys.size());
    for (std::uint32_t i = 0; i < n && i < 2 * kAhead; ++i) __builtin_prefetch(&slots_[home(keys[i])]);
    for (std::uint32_t i = 0; i < n && i < kAhead; ++i) prefetch_tokens(keys[i]);
    for (std::uint32_t i = 0; i < n; ++i) {
      if (i + 2 * kAhead < n) __builtin_prefetch(&slots_[home(keys[i + 2 * kAhead])]);
      if (i + kAhead < n) prefetch_tokens(keys[i + kAhead]);
      std::size_t at = home(keys[i]);
      while (slots_[at].entry != 0 && slots_[at].tag != keys[i].hi) at = next(at);
      const std::uint64_t entry = slots_[at].entry;
      if (entry == 0 ||
          !equal_block(tokens_.data() + (entry - 1) * kBlockTokens, prompt.data() + i * kBlockTokens))
        return i;
      out[i] = static_cast<std::uint32_t>(entry - 1);
    }
    return n;
  }

 private:
  struct Slot {
    std::uint64_t tag = 0, entry = 0;  // entry: block + 1; 0 is empty
  };
  [[nodiscard]] std::size_t home(BlockKey key) const { return key.lo & (slots_.size() - 1); }
  [[nodiscard]] std::size_t next(std::size_t i) const { return (i + 1) & (slots_.size() - 1); }
  void prefetch_tokens(BlockKey key) const {
    const Slot& slot = slots_[home(key)];  // the first look is right four times in five
    if (slot.entry != 0) __builtin_prefetch(tokens_.data() + (slot.entry - 1) * kBlockTokens);
  }

  std::vector<Slot> slots_;
  std::vector<TokenId> tokens_;
};

/// A radix tree with one node for each block. Its first child is linked, further ones are found by a hash of the page.
class PageTree {
 public:
  explicit PageTree(std::size_t max_blocks) {
    nodes_.reserve(max_blocks + 1);
    nodes_.emplace_back();
  }

  void insert(std::span<const TokenId> prompt) {
    std::uint32_t at = 0;
    for (std::size_t b = 0; b < prompt.size() / kBlockTokens; ++b) {
      const TokenId* page = prompt.data() + b * kBlockTokens;
      std::uint32_t child = find(at, page);
      if (child == 0) {
        child = static_cast<std::uint32_t>(nodes_.size());
        nodes_.emplace_back();
        std::memcpy(nodes_[child].tokens, page, kBlockBytes);
        if (nodes_[at].first_child == 0)
          nodes_[at].first_child = child;
        else
          more_.emplace(more_key(at, page), child);
      }
      at = child;
    }
  }

  /// Writes the nodes to `out`; returns how many match.
  std::uint32_t match(std::span<const TokenId> prompt, std::uint32_t* out) const {
    std::uint32_t at = 0, i = 0;
    for (; i < prompt.size() / kBlockTokens; ++i) {
      at = find(at, prompt.data() + i * kBlockTokens);
      if (at == 0) break;
      out[i] = at;
    }
    return i;
  }

 private:
  struct Node {
    TokenId tokens[kBlockTokens] = {};
    std::uint32_t first_child = 0;
  };
  [[nodiscard]] static std::uint64_t more_key(std::uint32_t parent, const TokenId* page) {
    return XXH3_64bits_withSeed(page, kBlockBytes, parent);
  }
  [[nodiscard]] std::uint32_t find(std::uint32_t parent, const TokenId* page) const {
    const std::uint32_t first = nodes_[parent].first_child;
    if (first == 0 || equal_block(nodes_[first].tokens, page)) return first;
    const auto found = more_.find(more_key(parent, page));
    return found != more_.end() && equal_block(nodes_[found->second].tokens, page) ? found->second : 0;
  }

  std::vector<Node> nodes_;
  std::unordered_map<std::uint64_t, std::uint32_t> more_;
};

}  // namespace bench
