// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What the index asks of a prompt. It never sees tokens or scopes; it asks a source for the key of a block, for the bytes
// to store, and how many stored blocks are equal to the prompt's. Three sources answer:
//
//   TokenSource   tokens, with what they carry: spans are proved by comparing tokens, only first blocks are hashed
//   KeySource     keys that the caller computed: spans are proved by comparing keys
//   (the flight log's replay answers from a record; see observe/flight_log.hpp)
//
// Sources are cheap views made for one call. They point to the prompt.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "kvstem/base/ids.hpp"
#include "kvstem/model/block_key.hpp"
#include "kvstem/model/prompt.hpp"

namespace kvstem::inline v0 {

/// What a block carries besides tokens, in the form that is stored and compared. Unlike a KeyMark it names a scope by its
/// id in this process, so that it is exact even where keys collide.
struct StoredMark {
  KeyMark::Kind kind = KeyMark::Kind::kMedia;
  std::uint32_t offset = 0;
  std::array<std::byte, 32> value{};
};
static_assert(sizeof(StoredMark) == 40);

/// Knows the key of a stored block without marks, whose predecessor's key is `parent`.
template <class S>
concept StoredKeySource = requires(const S source, BlockKey parent, const std::byte* stored) {
  { source.stored_key(parent, stored) } noexcept -> std::same_as<BlockKey>;
};

template <class S>
concept BlockSource =
    StoredKeySource<S> && requires(S source, BlockKey parent, std::uint32_t i, const std::byte* stored,
                                   std::byte* out, StoredMark* marks) {
      /// Whole blocks that the prompt has.
      { source.blocks() } noexcept -> std::same_as<std::uint32_t>;
      /// The key of block i of the prompt, whose predecessor's key is `parent`.
      { source.key(parent, i) } noexcept -> std::same_as<BlockKey>;
      /// How many of the n stored units from `stored` equal the prompt's blocks i, i+1, ... (a prefix of them).
      { source.equal(stored, i, i) } noexcept -> std::same_as<std::uint32_t>;
      /// Writes block i's marks to `marks` (room for kMaxMarksPerBlock), in the order of a key, and returns how many.
      { source.marks(i, marks) } noexcept -> std::same_as<std::uint32_t>;
      /// The first block at or behind i that has marks; `blocks()` if none.
      { source.next_marked(i) } noexcept -> std::same_as<std::uint32_t>;
      /// Whether the given stored marks are block i's. `count` marks lie at `stored`.
      { source.equal_marks(stored, i, i) } noexcept -> std::same_as<bool>;
      /// Writes the units of the n blocks i, i+1, ... to `out`.
      source.copy(i, i, out);
    };

namespace detail {
/// Leading units that are equal: one compare when all are, as usual; else a search for the first that is not.
inline std::uint32_t equal_units(const std::byte* a, const std::byte* b, std::uint32_t n,
                                 std::size_t unit) noexcept {
  if (std::memcmp(a, b, n * unit) == 0) return n;
  std::uint32_t low = 0, high = n - 1;  // the first difference lies in unit [low, high]
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (std::memcmp(a + low * unit, b + low * unit, (middle - low + 1) * unit) == 0)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}
}  // namespace detail

/// Root keys by scope, for the changes of scope inside a prompt. `ScopeId` is the index.
using RootKeys = std::span<const BlockKey>;

class TokenSource {
 public:
  /// `prompt` must be valid (model/prompt.hpp) and its scopes must be inside `roots`.
  TokenSource(const KeyHasher& hasher, std::uint32_t block_tokens, const Prompt& prompt,
              RootKeys roots) noexcept
      : hasher_(&hasher),
        prompt_(&prompt),
        roots_(roots),
        block_tokens_(block_tokens),
        blocks_(static_cast<std::uint32_t>(prompt.tokens.size() / block_tokens)) {}

  [[nodiscard]] std::uint32_t blocks() const noexcept { return blocks_; }

  [[nodiscard]] BlockKey key(BlockKey parent, std::uint32_t i) const noexcept {
    StoredMark stored[kMaxMarksPerBlock];
    const std::uint32_t n = marks(i, stored);
    KeyMark marks[kMaxMarksPerBlock];
    for (std::uint32_t m = 0; m < n; ++m) {
      marks[m] = {stored[m].kind, stored[m].offset, stored[m].value};
      if (stored[m].kind == KeyMark::Kind::kMedia) continue;
      std::uint32_t scope;
      std::memcpy(&scope, stored[m].value.data(), sizeof scope);
      marks[m].value = {};
      std::memcpy(marks[m].value.data(), &roots_[scope], sizeof(BlockKey));
    }
    return hasher_->next(parent, tokens(i, 1), {marks, n});
  }

  [[nodiscard]] BlockKey stored_key(BlockKey parent, const std::byte* stored) const noexcept {
    return hasher_->next(parent, {reinterpret_cast<const TokenId*>(stored), block_tokens_});
  }

  [[nodiscard]] std::uint32_t equal(const std::byte* stored, std::uint32_t i,
                                    std::uint32_t n) const noexcept {
    return detail::equal_units(stored, reinterpret_cast<const std::byte*>(tokens(i, n).data()), n,
                               block_tokens_ * sizeof(TokenId));
  }

  std::uint32_t marks(std::uint32_t i, StoredMark* out) const noexcept {
    if (prompt_->extras.empty() && prompt_->changes.empty()) return 0;
    const std::uint32_t begin = i * block_tokens_, end = begin + block_tokens_;
    std::uint32_t n = 0;
    auto extra = std::ranges::lower_bound(prompt_->extras, begin, {}, &Extra::position);
    auto change = std::ranges::lower_bound(prompt_->changes, begin, {}, &ScopeChange::position);
    for (;; ++n) {
      const bool more_extras = extra != prompt_->extras.end() && extra->position < end;
      const bool more_changes = change != prompt_->changes.end() && change->position < end;
      if (!more_extras && !more_changes) return n;
      if (more_extras && (!more_changes || extra->position <= change->position)) {
        out[n] = {KeyMark::Kind::kMedia, extra->position - begin, extra->digest};
        ++extra;
      } else {
        out[n] = {KeyMark::Kind::kScope, change->position - begin, {}};
        std::memcpy(out[n].value.data(), &change->scope, sizeof change->scope);
        ++change;
      }
    }
  }

  [[nodiscard]] bool equal_marks(const std::byte* stored, std::uint32_t count,
                                 std::uint32_t i) const noexcept {
    StoredMark own[kMaxMarksPerBlock];
    return marks(i, own) == count &&
           (count == 0 || std::memcmp(own, stored, count * sizeof(StoredMark)) == 0);
  }

  [[nodiscard]] std::uint32_t next_marked(std::uint32_t i) const noexcept {
    if (prompt_->extras.empty() && prompt_->changes.empty()) return blocks_;
    const std::uint32_t begin = i * block_tokens_;
    std::uint32_t next = blocks_;
    const auto extra = std::ranges::lower_bound(prompt_->extras, begin, {}, &Extra::position);
    const auto change = std::ranges::lower_bound(prompt_->changes, begin, {}, &ScopeChange::position);
    if (extra != prompt_->extras.end()) next = std::min(next, extra->position / block_tokens_);
    if (change != prompt_->changes.end()) next = std::min(next, change->position / block_tokens_);
    return next;
  }

  void copy(std::uint32_t i, std::uint32_t n, std::byte* out) const noexcept {
    std::memcpy(out, tokens(i, n).data(), std::size_t{n} * block_tokens_ * sizeof(TokenId));
  }

 private:
  [[nodiscard]] std::span<const TokenId> tokens(std::uint32_t i, std::uint32_t n) const noexcept {
    return prompt_->tokens.subspan(std::size_t{i} * block_tokens_, std::size_t{n} * block_tokens_);
  }

  const KeyHasher* hasher_;
  const Prompt* prompt_;
  RootKeys roots_;
  std::uint32_t block_tokens_;
  std::uint32_t blocks_;
};

class KeySource {
 public:
  explicit KeySource(std::span<const BlockKey> keys) noexcept : keys_(keys) {}

  [[nodiscard]] std::uint32_t blocks() const noexcept { return static_cast<std::uint32_t>(keys_.size()); }
  [[nodiscard]] BlockKey key(BlockKey, std::uint32_t i) const noexcept { return keys_[i]; }
  [[nodiscard]] BlockKey stored_key(BlockKey, const std::byte* stored) const noexcept {
    BlockKey key;
    std::memcpy(&key, stored, sizeof key);
    return key;
  }
  [[nodiscard]] std::uint32_t equal(const std::byte* stored, std::uint32_t i,
                                    std::uint32_t n) const noexcept {
    return detail::equal_units(stored, reinterpret_cast<const std::byte*>(keys_.data() + i), n,
                               sizeof(BlockKey));
  }
  std::uint32_t marks(std::uint32_t, StoredMark*) const noexcept { return 0; }
  [[nodiscard]] bool equal_marks(const std::byte*, std::uint32_t count, std::uint32_t) const noexcept {
    return count == 0;
  }
  [[nodiscard]] std::uint32_t next_marked(std::uint32_t) const noexcept { return blocks(); }
  void copy(std::uint32_t i, std::uint32_t n, std::byte* out) const noexcept {
    std::memcpy(out, keys_.data() + i, n * sizeof(BlockKey));
  }

 private:
  std::span<const BlockKey> keys_;
};

static_assert(BlockSource<TokenSource> && BlockSource<KeySource>);

}  // namespace kvstem::inline v0
