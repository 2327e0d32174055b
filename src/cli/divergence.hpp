// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Why prompts miss: where they leave the tree of all earlier prompts, and what had to be computed behind.
//
// A prompt that ends an earlier one's path goes on: what it adds is new. One that leaves the path at a block behind which
// earlier prompts went on in another way has diverged, and what it computes from there might have been shared: at most as much as
// the longest of those earlier ways holds. Whether it could be, somebody has to look: a date in the system prompt could, another
// user's question could not.
#pragma once

#include <cstdint>
#include <vector>

#include "trace.hpp"

namespace kvstem::cli {

/// Blocks behind which prompts diverge, as one place.
struct Fork {
  std::uint32_t parent = Trace::kNoNode;  // the last block that they share; kNoNode: they share none
  std::uint32_t depth = 0;                // blocks up to there
  std::size_t first_request = 0;          // of the trace, with this beginning
  std::size_t last_request = 0;           // that diverged here
  std::uint32_t prompts = 0;              // that diverged here
  std::uint64_t computed_blocks = 0;      // by them, from here on
  std::uint64_t shareable_blocks = 0;     // of which at most so many could have been found
};

/// All tokens of the counted requests, by what became of them.
struct Divergence {
  std::uint64_t input_tokens = 0;
  std::uint64_t found_tokens = 0;
  std::uint64_t evicted_tokens = 0;   // were there once, and no longer
  std::uint64_t went_on_tokens = 0;   // new, behind the end of an earlier prompt
  std::uint64_t diverged_tokens = 0;  // new, behind a fork
  std::uint64_t tail_tokens = 0;      // behind the last whole block
  std::vector<Fork> forks;            // the most shareable blocks first
};

/// With an LRU cache of so many blocks.
[[nodiscard]] Divergence find_divergence(const Trace& trace, const TracePart& part, std::uint64_t capacity);

}  // namespace kvstem::cli
