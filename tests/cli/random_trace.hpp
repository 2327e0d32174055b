// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Traces for tests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "trace.hpp"

namespace kvstem::cli {

/// Random prompts over a small tree: `parents` as in a Trace.
inline Trace random_trace(std::mt19937& random, std::uint32_t nodes, std::uint32_t requests) {
  Trace trace;
  trace.name = "random";
  trace.block_tokens = 16;
  for (std::uint32_t n = 0; n < nodes; ++n)
    trace.parents.push_back(n == 0 || random() % 4 == 0 ? Trace::kNoNode
                                                        : static_cast<std::uint32_t>(random() % n));
  for (std::uint32_t i = 0; i < requests; ++i) {
    std::vector<std::uint32_t> path;
    for (auto n = static_cast<std::uint32_t>(random() % nodes); n != Trace::kNoNode; n = trace.parents[n])
      path.push_back(n);
    std::reverse(path.begin(), path.end());
    const auto blocks = static_cast<std::uint32_t>(path.size());
    trace.requests.push_back({.timestamp_ms = 1000.0 * i,
                              .input_tokens = 16 * blocks + static_cast<std::uint32_t>(random() % 16),
                              .first_block = static_cast<std::uint32_t>(trace.nodes.size()),
                              .blocks = blocks});
    trace.nodes.insert(trace.nodes.end(), path.begin(), path.end());
  }
  return trace;
}

inline TracePart all_of(const Trace& trace) { return {0, 0, trace.requests.size()}; }

}  // namespace kvstem::cli
