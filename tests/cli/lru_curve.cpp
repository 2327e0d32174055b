// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "lru_curve.hpp"

#include <cstdio>
#include <list>

#include "divergence.hpp"
#include "random_trace.hpp"
#include "replay.hpp"
#include "support/catch.hpp"

using namespace kvstem::cli;

TEST_CASE("one pass finds for every capacity what a replay of lru finds, request by request") {
  std::mt19937 random(3);
  std::uint64_t compared = 0, found = 0;
  for (int round = 0; round < 30; ++round) {
    const auto nodes = static_cast<std::uint32_t>(2 + random() % 200);
    const Trace trace = random_trace(random, nodes, 100);
    const TracePart part{random() % 20, 0, trace.requests.size() - random() % 20};
    const LruCurve curve(trace, part);
    for (const std::uint32_t capacity : {1u, 2u, 3u, 5u, 10u, 20u, nodes / 2 + 1, nodes}) {
      Progress progress("");
      ReplaySetup setup{.capacity_blocks = capacity};
      setup.on_request = [&](std::size_t i, std::uint32_t matched) {
        INFO("round " << round << ", capacity " << capacity << ", request " << i);
        REQUIRE(curve.found(i - part.begin, capacity) == matched);
        ++compared;
        found += matched;
      };
      (void)replay_policies().front().replay(trace, part, setup, progress);
    }
  }
  std::printf("compared %d requests, which found %d blocks\n", static_cast<int>(compared),
              static_cast<int>(found));
  CHECK(compared > 10'000);
  CHECK(found > compared);
}

namespace {

/// Prompts by their nodes; a node's parent is the one before it.
Trace trace_of(const std::vector<std::vector<std::uint32_t>>& prompts) {
  Trace trace;
  trace.name = "by hand";
  trace.block_tokens = 10;
  for (const auto& path : prompts) {
    trace.requests.push_back({.timestamp_ms = 0,
                              .input_tokens = 10 * static_cast<std::uint32_t>(path.size()) + 3,
                              .first_block = static_cast<std::uint32_t>(trace.nodes.size()),
                              .blocks = static_cast<std::uint32_t>(path.size())});
    for (std::size_t b = 0; b < path.size(); ++b) {
      if (path[b] >= trace.parents.size()) trace.parents.resize(path[b] + 1, Trace::kNoNode);
      trace.parents[path[b]] = b == 0 ? Trace::kNoNode : path[b - 1];
      trace.nodes.push_back(path[b]);
    }
  }
  return trace;
}

}  // namespace

TEST_CASE("what is computed is told apart by why it was not found") {
  const Trace trace = trace_of({{0, 1, 2, 3},       // the first
                                {0, 1, 2, 3, 4},    // goes on
                                {0, 1, 5, 6, 7},    // leaves behind 1, where 3 blocks lie
                                {0, 1, 8},          // leaves there as well
                                {9, 10},            // shares nothing
                                {0, 1, 5, 6, 7}});  // again
  const Divergence d = find_divergence(trace, all_of(trace), 100);
  CHECK(d.input_tokens == 10 * 24 + 6 * 3);
  CHECK(d.found_tokens == 10 * (4 + 2 + 2 + 5));
  CHECK(d.evicted_tokens == 0);
  CHECK(d.went_on_tokens == 10 * (4 + 1));
  CHECK(d.diverged_tokens == 10 * (3 + 1 + 2));
  CHECK(d.tail_tokens == 6 * 3);
  REQUIRE(d.forks.size() == 2);
  CHECK(d.forks[0].parent == 1);
  CHECK(d.forks[0].depth == 2);
  CHECK(d.forks[0].prompts == 2);
  CHECK(d.forks[0].first_request == 0);
  CHECK(d.forks[0].last_request == 3);
  CHECK(d.forks[0].computed_blocks == 4);
  CHECK(d.forks[0].shareable_blocks == 4);
  CHECK(d.forks[1].parent == Trace::kNoNode);
  CHECK(d.forks[1].computed_blocks == 2);
  CHECK(d.forks[1].shareable_blocks == 2);

  const Divergence small = find_divergence(trace, all_of(trace), 4);
  CHECK(small.found_tokens == 10 * (4 + 2 + 2 + 2));  // 9, 10, 0 and 1 are left for the last
  CHECK(small.evicted_tokens == 10 * 3);
  CHECK(small.diverged_tokens == d.diverged_tokens);
}

TEST_CASE("at most as much could be shared as others hold behind the fork") {
  const Trace trace = trace_of({{0, 1}, {0, 2, 3, 4}, {5, 6, 7, 8, 9, 10}});
  const Divergence d = find_divergence(trace, all_of(trace), 100);
  REQUIRE(d.forks.size() == 2);
  CHECK(d.forks[0].shareable_blocks == 4);  // of the last one's six
  CHECK(d.forks[1].shareable_blocks == 1);  // of the second one's three
}

TEST_CASE("what only warms the cache is in no count") {
  const Trace trace = trace_of({{0, 1}, {0, 2}, {0, 1}});
  const Divergence d = find_divergence(trace, {0, 2, 3}, 100);
  CHECK(d.input_tokens == 23);
  CHECK(d.found_tokens == 20);
  CHECK(d.forks.empty());
}
