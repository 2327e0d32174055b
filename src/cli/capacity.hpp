// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A capacity as a user writes it: 4096 (blocks), 5% (of the distinct whole blocks), 16GiB (needs the bytes of a token).
#pragma once

#include <cstdint>
#include <string>

namespace kvstem::cli {

struct Capacity {
  enum class Unit : std::uint8_t { kBlocks, kPercent, kBytes };
  std::string text;
  double value = 0;
  Unit unit = Unit::kBlocks;

  /// Throws InputError for what is none, and for 0.
  static Capacity parse(const std::string& text);
  /// A percentage is a block at least. Throws InputError where bytes are less than one, or lack `bytes_per_token`.
  [[nodiscard]] std::uint64_t blocks(std::uint32_t distinct_blocks, std::uint32_t block_tokens,
                                     double bytes_per_token) const;
};

/// "16GiB" in bytes. Throws InputError, in which `option` is named, for what is none, and for 0.
[[nodiscard]] double parse_bytes(const std::string& option, const std::string& text);

}  // namespace kvstem::cli
