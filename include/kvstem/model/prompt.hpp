// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A prompt is a view of what the engine is about to compute: a scope, tokens, and what tokens alone do not say (media
// behind placeholder tokens, changes of scope at a position). It owns nothing; everything that it points to must live
// as long as the call that it is given to, no longer.
//
//   std::vector<TokenId> tokens = tokenize(text);
//   Prompt prompt{.scope = tenant, .tokens = tokens};
//   prompt.extras = images;                              // sorted by position
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/model/block_key.hpp"

namespace kvstem::inline v0 {

/// Media (an image, a sound) whose placeholder tokens begin at `position`. Its digest enters the key of the block that
/// holds this position, and by the chain every later key.
struct Extra {
  std::uint32_t position = 0;
  std::array<std::byte, 32> digest{};
  friend bool operator==(const Extra&, const Extra&) = default;
};

/// From `position` on, another scope holds: a shared system prompt goes on as a tenant's private tail, or a base model's
/// prefix goes on with an adapter. The state before `position` stays shared under the scope before.
struct ScopeChange {
  std::uint32_t position = 0;
  ScopeId scope = kNoScope;
  friend bool operator==(const ScopeChange&, const ScopeChange&) = default;
};

struct Prompt {
  ScopeId scope = kNoScope;
  std::span<const TokenId> tokens{};
  std::span<const Extra> extras{};         // ascending positions, each inside `tokens`
  std::span<const ScopeChange> changes{};  // strictly ascending positions, each inside `tokens`
  /// Keyed caches only: the keys of the prompt's whole blocks, computed by the caller (`tokens` is then empty).
  std::span<const BlockKey> keys{};
  /// Keyed caches only: tokens behind the last of `keys`, at most a block. They count as missed, and are never kept.
  std::uint32_t tail_tokens = 0;
};

/// Checks positions and order. Token ids are checked where they are stored, so that a match does not pay for it.
[[nodiscard]] inline Status validate(const Prompt& prompt, std::uint32_t block_tokens) noexcept {
  if (prompt.tokens.size() > 0x7fffffffu)
    return {StatusCode::kOutOfRange, "a prompt has at most 2^31-1 tokens"};
  std::uint32_t block = 0, marks = 0;
  const auto count = [&](std::uint32_t position) {
    const std::uint32_t b = position / block_tokens;
    marks = b == block ? marks + 1 : 1;
    block = b;
    return marks <= kMaxMarksPerBlock;
  };
  std::size_t e = 0, c = 0;
  while (e < prompt.extras.size() || c < prompt.changes.size()) {
    const bool extra = c == prompt.changes.size() ||
                       (e < prompt.extras.size() && prompt.extras[e].position <= prompt.changes[c].position);
    const std::uint32_t position = extra ? prompt.extras[e].position : prompt.changes[c].position;
    if (position >= prompt.tokens.size())
      return {StatusCode::kOutOfRange, "an extra or scope change lies behind the prompt's last token"};
    if (extra && e > 0 && prompt.extras[e - 1].position > position)
      return {StatusCode::kInvalidArgument, "Prompt::extras must be sorted by position"};
    if (!extra && c > 0 && prompt.changes[c - 1].position >= position)
      return {StatusCode::kInvalidArgument, "Prompt::changes must be strictly ascending by position"};
    if (!count(position))
      return {StatusCode::kOutOfRange,
              "more than 16 extras and scope changes in one block: use larger blocks"};
    extra ? ++e : ++c;
  }
  return {};
}

}  // namespace kvstem::inline v0
