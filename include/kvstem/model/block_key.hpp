// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The identity of a block: a 128-bit key that commits to the scope, to every token before it, to its own tokens and to
// what they carry besides (media, changes of scope).
//
//   key(block) = H(domain, parent key, tokens, marks)      the first block's parent is the scope's root key
//
// The parent enters as INPUT, never as the hash's seed: with the seed, a full collision between two blocks of valid
// tokens takes half a second to make. A key that is not cryptographic is still not trusted alone: where tokens are
// kept, they are compared on a hit.
//
// The input, byte for byte; all numbers little-endian, u32 or u64:
//   block   "kvstem.block.v1\0" | parent key: lo u64, hi u64 | number of tokens u32 | number of marks u32
//           | each token, as i32 | each mark: kind u32 (1 media, 2 scope) | offset in the block u32 | 32 bytes of value
//           (media: the digest; scope: the new scope's root key, lo and hi, and 16 zero bytes).
//           Marks stand by ascending offset; at one offset media stand before the scope.
//   root    "kvstem.scope.v1\0" | hash algorithm u32 | expanded secret, 192 bytes | the scope (encode in scope.hpp)
//   expanded secret   for i = 0..11: XXH3-128 of the secret's text with seed 0x6b767374656d0000 + i, as lo u64, hi u64
// The key is XXH3-128 (with the expanded secret) or SHA-256 of that: {lo, hi} are XXH3's low and high word, or the first
// 16 bytes of SHA-256's digest read as two u64.
//
// Two functions: `xxh3_key_function()` with a deployment secret (about 5 ns for 16 tokens), and `sha256_key_function()`
// in sha256.hpp for keys that leave the trust domain (about 83 ns). Do not mix them in one store: the function's id is
// part of the root key, so nothing is found, but nothing is shared either.
//
// Threads: everything here is const or a value. Cost: appending n tokens hashes n tokens.
//
//   KeyHasher hasher(xxh3_key_function(), "this deployment's secret");
//   Result<BlockKey> root = hasher.root(scope);
//   BlockKey first = hasher.next(*root, std::span(tokens).first(16));
//   BlockKey second = hasher.next(first, std::span(tokens).subspan(16, 16));
#pragma once

#include <array>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#include <xxhash.h>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/model/scope.hpp"

namespace kvstem::inline v0 {

static_assert(std::endian::native == std::endian::little, "keys are defined over little-endian token arrays");

struct BlockKey {
  std::uint64_t lo = 0;
  std::uint64_t hi = 0;
  friend constexpr bool operator==(BlockKey, BlockKey) noexcept = default;
};

/// 32 lower-case hexadecimal digits, most significant first, and a terminating zero.
[[nodiscard]] constexpr std::array<char, 33> to_hex(BlockKey key) noexcept {
  std::array<char, 33> text{};
  for (int i = 0; i < 32; ++i) {
    const std::uint64_t word = i < 16 ? key.hi : key.lo;
    text[static_cast<std::size_t>(i)] = "0123456789abcdef"[(word >> (60 - 4 * (i % 16))) & 15];
  }
  return text;
}

/// Written into every store beside the keys. Numbers are never reused.
enum class HashAlgorithm : std::uint32_t { kXxh3 = 1, kSha256 = 2, kTest = 255 };

/// The secret in the form that XXH3 takes: at least 136 bytes without structure.
using KeySecret = std::array<std::byte, 192>;

/// How bytes become a key. Plain function, so that a host or a test may bring its own.
struct KeyFunction {
  HashAlgorithm algorithm = HashAlgorithm::kXxh3;
  BlockKey (*hash)(std::span<const std::byte> input, const KeySecret& secret) noexcept = nullptr;
};

/// XXH3-128 with a secret (https://xxhash.com). Not cryptographic: for one trust domain.
[[nodiscard]] inline KeyFunction xxh3_key_function() noexcept {
  return {HashAlgorithm::kXxh3, [](std::span<const std::byte> input, const KeySecret& secret) noexcept {
            const XXH128_hash_t h =
                XXH3_128bits_withSecret(input.data(), input.size(), secret.data(), secret.size());
            return BlockKey{h.low64, h.high64};
          }};
}

/// What a block carries besides its tokens, as it enters the key: media, or the root key of the scope that begins.
struct KeyMark {
  enum class Kind : std::uint32_t { kMedia = 1, kScope = 2 };
  Kind kind = Kind::kMedia;
  std::uint32_t offset = 0;  // token inside the block
  std::array<std::byte, 32> value{};
};
static_assert(sizeof(KeyMark) == 40);

/// Tokens that a block may have at most.
inline constexpr std::uint32_t kMaxBlockTokens = 1024;
/// Media and changes of scope that one block may hold together.
inline constexpr std::uint32_t kMaxMarksPerBlock = 16;

class KeyHasher {
 public:
  /// `secret` may have any length; processes that exchange keys must have the same one.
  explicit KeyHasher(KeyFunction function = xxh3_key_function(), std::string_view secret = {}) noexcept
      : function_(function) {
    // Expanded by counter, so that it does not depend on a generator that changed between xxHash versions.
    for (std::uint64_t i = 0; i < secret_.size() / 16; ++i) {
      const XXH128_hash_t h = XXH3_128bits_withSeed(secret.data(), secret.size(), 0x6b767374656d0000ull + i);
      std::memcpy(&secret_[16 * i], &h.low64, 8);
      std::memcpy(&secret_[16 * i + 8], &h.high64, 8);
    }
  }

  [[nodiscard]] HashAlgorithm algorithm() const noexcept { return function_.algorithm; }

  /// The parent of a scope's first blocks. Allocates; for when a scope is opened.
  [[nodiscard]] Result<BlockKey> root(const Scope& scope) const {
    if (const Status status = validate(scope); !status.ok()) return status;
    std::vector<std::byte> input;
    for (const char c : std::string_view("kvstem.scope.v1\0", 16)) input.push_back(static_cast<std::byte>(c));
    for (int i = 0; i < 4; ++i)
      input.push_back(static_cast<std::byte>(static_cast<std::uint32_t>(function_.algorithm) >> (8 * i)));
    // SHA-256 takes no secret of its own, so the root carries it for every function.
    input.insert(input.end(), secret_.begin(), secret_.end());
    encode(scope, input);
    return function_.hash(input, secret_);
  }

  /// The key of the block that follows `parent`. At most kMaxBlockTokens tokens and kMaxMarksPerBlock marks, in the
  /// order of the format; no allocation.
  [[nodiscard]] BlockKey next(BlockKey parent, std::span<const TokenId> tokens,
                              std::span<const KeyMark> marks = {}) const noexcept {
    assert(tokens.size() <= kMaxBlockTokens && marks.size() <= kMaxMarksPerBlock);
    struct Input {
      char domain[16];
      BlockKey parent;
      std::uint32_t token_count, mark_count;
      std::byte rest[std::size_t{4} * kMaxBlockTokens + kMaxMarksPerBlock * sizeof(KeyMark)];
    };
    Input input;
    std::memcpy(input.domain, "kvstem.block.v1", 16);
    input.parent = parent;
    input.token_count = static_cast<std::uint32_t>(tokens.size());
    input.mark_count = static_cast<std::uint32_t>(marks.size());
    const std::size_t token_bytes = tokens.size_bytes();
    if (!tokens.empty()) std::memcpy(input.rest, tokens.data(), token_bytes);
    if (!marks.empty()) std::memcpy(input.rest + token_bytes, marks.data(), marks.size_bytes());
    return function_.hash({reinterpret_cast<const std::byte*>(&input),
                           offsetof(Input, rest) + token_bytes + marks.size_bytes()},
                          secret_);
  }

 private:
  KeyFunction function_;
  KeySecret secret_{};
};

/// The keys of a growing sequence's whole blocks. Appending n tokens hashes n tokens, whatever came before.
class KeyChain {
 public:
  /// `block_tokens` must be 1 to kMaxBlockTokens.
  KeyChain(const KeyHasher& hasher, BlockKey root, std::uint32_t block_tokens)
      : hasher_(&hasher), last_(root), block_tokens_(block_tokens) {}

  /// `marks` belong to the appended tokens: their offsets count from the first of `tokens`, in ascending order.
  void append(std::span<const TokenId> tokens, std::span<const KeyMark> marks = {}) {
    std::size_t m = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      for (; m < marks.size() && marks[m].offset == i; ++m) {
        pending_marks_.push_back(marks[m]);
        pending_marks_.back().offset = static_cast<std::uint32_t>(pending_.size());
      }
      pending_.push_back(tokens[i]);
      if (pending_.size() < block_tokens_) continue;
      last_ = hasher_->next(last_, pending_, pending_marks_);
      keys_.push_back(last_);
      pending_.clear();
      pending_marks_.clear();
    }
  }

  /// One key for each whole block so far.
  [[nodiscard]] std::span<const BlockKey> keys() const noexcept { return keys_; }

 private:
  const KeyHasher* hasher_;
  BlockKey last_;
  std::uint32_t block_tokens_;
  std::vector<TokenId> pending_;
  std::vector<KeyMark> pending_marks_;
  std::vector<BlockKey> keys_;
};

}  // namespace kvstem::inline v0
