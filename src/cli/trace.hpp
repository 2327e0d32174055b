// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A trace of requests in Mooncake's JSON-lines format, one object a line:
//
//   timestamp      when the request came, in milliseconds; never earlier than the line before
//   input_length   tokens of the prompt
//   output_length  tokens of the answer
//   hash_ids       an id for each block of the prompt; equal ids behind equal ids are equal blocks
//   session_id, stop_reason, subagent   optional
//
// Other fields are ignored. The tokens of a block are given, or found: the power of two that fits the lengths and the
// numbers of ids of all lines (512 if it does). The last id may stand for part of a block; it is dropped, as engines keep
// whole blocks.
//
// In memory a block is its node in the tree of all prompts (4 bytes for each block of each prompt); the text is never held.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "input.hpp"

namespace kvstem::cli {

enum class StopReason : std::uint8_t { kUnknown, kToolUse, kEndTurn, kOther };

struct TraceRequest {
  double timestamp_ms = 0;
  std::uint32_t input_tokens = 0, output_tokens = 0;
  std::uint32_t first_block = 0;  // of Trace::nodes
  std::uint32_t blocks = 0;       // whole ones
  std::uint32_t session = 0;      // 0: the trace does not say
  StopReason stop = StopReason::kUnknown;
  bool subagent = false;
};

struct Trace {
  std::string name;
  std::uint32_t block_tokens = 0;
  std::vector<TraceRequest> requests;
  std::vector<std::uint32_t> nodes;    // of all requests' blocks
  std::vector<std::uint32_t> parents;  // by node; a first block's parent is kNoNode
  static constexpr std::uint32_t kNoNode = ~std::uint32_t{0};

  [[nodiscard]] std::span<const std::uint32_t> path(std::size_t request) const {
    return {nodes.data() + requests[request].first_block, requests[request].blocks};
  }
  /// Distinct whole blocks.
  [[nodiscard]] std::uint32_t distinct_blocks() const { return static_cast<std::uint32_t>(parents.size()); }
};

/// Reads a whole trace; `path` may be "-". Throws InputError with the line's number for what is no such trace.
[[nodiscard]] Trace read_trace(const std::string& path, std::optional<std::uint32_t> block_tokens);

/// A part of a trace, for replays: requests [begin, end); those before `counted` only warm the cache.
struct TracePart {
  std::size_t begin = 0, counted = 0, end = 0;
};

/// Distinct whole blocks of the part.
[[nodiscard]] std::uint32_t distinct_blocks(const Trace& trace, const TracePart& part);

}  // namespace kvstem::cli
