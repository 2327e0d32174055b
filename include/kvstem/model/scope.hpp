// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A scope says for which content cached state is valid, tokens apart: which weights, which positional parameters, which
// adapter, which tenant. Two scopes that differ in any one field share nothing, in any tier.
//
// What belongs here: everything that changes the VALUES of the state. What does not: how the same values are stored
// (dtype, layout, block size, engine build); that is the `Representation` in kv_layout.hpp.
//
//   Scope scope{.model = "sha256:9f2c...", .positions = "rope base 100000", .salt = "tenant 7", .vocab_size = 49152};
//   Result<ScopeId> id = cache.open_scope(scope);
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvstem/base/status.hpp"

namespace kvstem::inline v0 {

struct Scope {
  std::string model{};  // the weights: a digest of the file, or a name that is never reused for other weights
  std::string
      positions{};        // positional parameters that the engine may change at run time (RoPE base, scaling)
  std::string adapter{};  // digest of the adapter (LoRA), empty for none
  double adapter_scale = 1.0;  // how strongly the adapter is applied
  std::string
      salt{};  // the tenant: prompts of different salts never share, and cannot tell that others exist
  std::uint32_t vocab_size =
      0;  // token ids are 0 <= id < vocab_size; others are refused where they would be stored

  friend bool operator==(const Scope&, const Scope&) = default;
};

/// Refuses scopes that cannot be told apart or hold no token.
[[nodiscard]] inline Status validate(const Scope& scope) noexcept {
  if (scope.model.empty())
    return {StatusCode::kInvalidArgument,
            "Scope::model is empty: give a digest of the weights, else models share state"};
  if (scope.vocab_size == 0 || scope.vocab_size > 0x7fffffffu)
    return {StatusCode::kInvalidArgument,
            "Scope::vocab_size must be 1 to 2^31-1: give the model's vocabulary size"};
  if (!std::isfinite(scope.adapter_scale))
    return {StatusCode::kInvalidArgument, "Scope::adapter_scale must be a finite number"};
  return {};
}

/// The canonical bytes of a scope: for each field its type u32, its length in bytes u32, its bytes; all little-endian.
/// 1 model, 2 positions, 3 adapter, 4 adapter_scale (IEEE 754 binary64), 5 salt, 6 vocab_size (u32). Two scopes have the
/// same bytes exactly if they are equal. This format is part of every key: changing it needs a new domain string in block_key.hpp.
inline void encode(const Scope& scope, std::vector<std::byte>& out) {
  const auto put_u32 = [&out](std::uint32_t v) {
    for (int i = 0; i < 4; ++i) out.push_back(static_cast<std::byte>(v >> (8 * i)));
  };
  const auto put_text = [&](std::uint32_t type, std::string_view text) {
    put_u32(type);
    put_u32(static_cast<std::uint32_t>(text.size()));
    for (char c : text) out.push_back(static_cast<std::byte>(c));
  };
  put_text(1, scope.model);
  put_text(2, scope.positions);
  put_text(3, scope.adapter);
  put_u32(4);
  put_u32(8);
  // -0.0 and 0.0 are equal, so they get the same bytes.
  const auto bits = std::bit_cast<std::uint64_t>(scope.adapter_scale == 0.0 ? 0.0 : scope.adapter_scale);
  put_u32(static_cast<std::uint32_t>(bits));
  put_u32(static_cast<std::uint32_t>(bits >> 32));
  put_text(5, scope.salt);
  put_u32(6);
  put_u32(4);
  put_u32(scope.vocab_size);
}

}  // namespace kvstem::inline v0
