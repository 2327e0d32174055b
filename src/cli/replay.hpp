// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A trace through the real cache, keyed: each request is acquired, its missing blocks are reserved and committed at once,
// and it is released. So what is counted is what the library decides, not what a model of it would.
//
// Open replay: requests come when the trace says, however slow an engine would be. That flatters a loaded system, whose
// queue spreads a session's turns apart.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "hints.hpp"
#include "progress.hpp"
#include "trace.hpp"

namespace kvstem::cli {

struct ReplaySetup {
  std::uint64_t capacity_blocks = 0;
  /// A request holds its path for so long after it came; both 0: it is over before the next one comes.
  double pin_seconds = 0, pin_seconds_per_output_token = 0;
  /// For each request of the part, or none at all.
  std::span<const RequestHint> hints{};
  /// Called for each request, in order, with the blocks that it found.
  std::function<void(std::size_t request, std::uint32_t matched_blocks)> on_request{};
};

struct ReplayResult {
  std::uint64_t requests = 0, input_tokens = 0, hit_tokens = 0;  // counted ones only
  std::uint64_t touched_blocks = 0, evicted_blocks = 0;          // of all requests
  /// That found no room for all their blocks: others held it, or they are longer than the cache.
  std::uint64_t short_requests = 0;
  double seconds = 0;  // for all requests; reading the trace is not in it
  [[nodiscard]] double hit_rate() const {
    return input_tokens == 0 ? 0 : static_cast<double>(hit_tokens) / static_cast<double>(input_tokens);
  }
  [[nodiscard]] double ns_per_block() const {
    return touched_blocks == 0 ? 0 : seconds * 1e9 / static_cast<double>(touched_blocks);
  }
};

struct ReplayPolicy {
  std::string_view name;
  using Replay = ReplayResult (*)(const Trace&, const TracePart&, const ReplaySetup&, Progress&);
  Replay replay, replay_with_hints;
};

/// All policies by name; the first is the one that others are compared with.
[[nodiscard]] std::span<const ReplayPolicy> replay_policies();

}  // namespace kvstem::cli
