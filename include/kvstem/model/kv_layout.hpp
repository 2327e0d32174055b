// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// How state lies in memory: the groups of a model, and the representation of their bytes. Content (scope.hpp) decides
// what is found; representation decides whether the bytes found can be used as they are. Tiers and peers compare both:
// other content is never found, another representation is transformed or refused.
//
//   KvLayout layout{.representation = {.dtype = "f16", .layout = "llama.cpp seq state", .engine = "llama.cpp 0c1e57098"}};
//   layout.groups.push_back({.bytes_per_token = 23040});
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvstem/base/ids.hpp"
#include "kvstem/model/block_key.hpp"
#include "kvstem/model/kv_group.hpp"

namespace kvstem::inline v0 {

/// What must be equal for one engine to take another's bytes as they are. Free text, compared as a whole.
struct Representation {
  std::string dtype{};             // of keys and values
  std::string layout{};            // order of layers, heads, tokens
  std::string head_split{};        // which heads this rank holds ("0-2/3"); empty when all
  std::uint32_t block_tokens = 0;  // tokens in a block
  std::string engine{};            // name, version and build of whoever wrote the bytes
  friend bool operator==(const Representation&, const Representation&) = default;
};

/// A fingerprint of a representation, to be stored beside payloads. Equal exactly for equal representations, up to a
/// collision of XXH3-128.
[[nodiscard]] inline BlockKey fingerprint(const Representation& r) {
  std::vector<std::byte> bytes;
  const auto put = [&bytes](std::string_view text) {
    const auto n = static_cast<std::uint32_t>(text.size());
    for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<std::byte>(n >> (8 * i)));
    for (const char c : text) bytes.push_back(static_cast<std::byte>(c));
  };
  put("kvstem.representation.v1");
  put(r.dtype);
  put(r.layout);
  put(r.head_split);
  for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<std::byte>(r.block_tokens >> (8 * i)));
  put(r.engine);
  const XXH128_hash_t h = XXH3_128bits(bytes.data(), bytes.size());
  return {h.low64, h.high64};
}

struct KvLayout {
  Representation representation{};
  std::vector<KvGroup> groups{};  // GroupId is the index here
};

/// Bytes of one block of one group; of a state checkpoint, the one state that it consists of.
[[nodiscard]] inline std::uint64_t block_bytes(const KvGroup& group, std::uint32_t block_tokens) noexcept {
  if (group.kind == GroupKind::kStateCheckpoint) return group.bytes_per_token;
  return group.bytes_per_token * (group.block_tokens != 0 ? group.block_tokens : block_tokens);
}
[[nodiscard]] inline std::uint64_t block_bytes(const KvLayout& layout, GroupId group) noexcept {
  return block_bytes(layout.groups[group], layout.representation.block_tokens);
}

}  // namespace kvstem::inline v0
