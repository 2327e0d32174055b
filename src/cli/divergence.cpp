// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "divergence.hpp"

#include <algorithm>

#include "lru_curve.hpp"

namespace kvstem::cli {

Divergence find_divergence(const Trace& trace, const TracePart& part, std::uint64_t capacity) {
  const LruCurve curve(trace, part);
  // By node, and one more for the beginning of all prompts.
  struct Known {
    std::uint32_t longest = 0;  // blocks below it on the longest path so far
    bool seen = false;
    bool goes_on = false;  // has children
    std::uint32_t fork = ~std::uint32_t{0};
    std::uint32_t first_request = 0;
  };
  std::vector<Known> known(std::size_t{trace.distinct_blocks()} + 1);
  const std::size_t root = trace.distinct_blocks();
  known[root].seen = true;
  Divergence d;
  for (std::size_t i = part.begin; i < part.end; ++i) {
    const TraceRequest& request = trace.requests[i];
    const auto path = trace.path(i);
    std::uint32_t there = 0;
    while (there < path.size() && known[path[there]].seen) ++there;
    const std::uint32_t fresh = request.blocks - there;
    const std::size_t leaves_at = there == 0 ? root : path[there - 1];
    const bool diverged = fresh > 0 && known[leaves_at].goes_on;
    if (i >= part.counted) {
      const std::uint32_t found = curve.found(i - part.begin, capacity);
      d.input_tokens += request.input_tokens;
      d.found_tokens += std::uint64_t{found} * trace.block_tokens;
      d.evicted_tokens += std::uint64_t{there - found} * trace.block_tokens;
      (diverged ? d.diverged_tokens : d.went_on_tokens) += std::uint64_t{fresh} * trace.block_tokens;
      d.tail_tokens += request.input_tokens - std::uint64_t{request.blocks} * trace.block_tokens;
      if (diverged) {
        Known& parent = known[leaves_at];
        if (parent.fork == ~std::uint32_t{0}) {
          parent.fork = static_cast<std::uint32_t>(d.forks.size());
          d.forks.push_back({.parent = there == 0 ? Trace::kNoNode : path[there - 1],
                             .depth = there,
                             .first_request = there == 0 ? part.begin : parent.first_request});
        }
        Fork& fork = d.forks[parent.fork];
        ++fork.prompts;
        fork.last_request = i;
        fork.computed_blocks += fresh;
        fork.shareable_blocks += std::min(fresh, parent.longest);
      }
    }
    std::uint32_t below = request.blocks;
    std::size_t at = root;
    for (const std::uint32_t node : path) {
      known[at].longest = std::max(known[at].longest, below--);
      known[at].goes_on = true;
      if (!known[node].seen)
        known[node] = {.longest = 0, .seen = true, .first_request = static_cast<std::uint32_t>(i)};
      at = node;
    }
  }
  std::ranges::stable_sort(
      d.forks, [](const Fork& a, const Fork& b) { return a.shareable_blocks > b.shareable_blocks; });
  return d;
}

}  // namespace kvstem::cli
