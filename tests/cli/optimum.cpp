// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "optimum.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "random_trace.hpp"
#include "replay.hpp"
#include "support/catch.hpp"

namespace {

using namespace kvstem::cli;

std::uint32_t found_in(const std::set<std::uint32_t>& cache, std::span<const std::uint32_t> path) {
  std::uint32_t found = 0;
  while (found < path.size() && cache.contains(path[found])) ++found;
  return found;
}

std::uint64_t sum(const std::vector<std::uint32_t>& found) {
  return std::accumulate(found.begin(), found.end(), std::uint64_t{0});
}

/// The most that any way of keeping at most `capacity` blocks finds: tries all of them.
std::uint64_t best_of_all(const Trace& trace, std::uint32_t capacity) {
  std::map<std::uint32_t, std::uint64_t> reached{{0, 0}};  // set of cached nodes -> the most found so far
  for (std::size_t i = 0; i < trace.requests.size(); ++i) {
    std::map<std::uint32_t, std::uint64_t> next;
    std::uint32_t path = 0;
    for (const std::uint32_t n : trace.path(i)) path |= 1u << n;
    for (const auto& [cached, found] : reached) {
      std::uint32_t hits = 0;
      for (const std::uint32_t n : trace.path(i)) {
        if ((cached >> n & 1) == 0) break;
        ++hits;
      }
      const std::uint32_t all = cached | path;
      for (std::uint32_t kept = all;; kept = (kept - 1) & all) {  // every subset
        if (static_cast<std::uint32_t>(std::popcount(kept)) <= capacity) {
          auto& best = next[kept];
          best = std::max(best, found + hits);
        }
        if (kept == 0) break;
      }
    }
    reached = std::move(next);
  }
  std::uint64_t best = 0;
  for (const auto& [cached, found] : reached) best = std::max(best, found);
  return best;
}

/// The greedy rule for whole paths, block by block: what is used last goes first, the deepest of those.
std::vector<std::uint32_t> whole_paths_by_block(const Trace& trace, std::uint32_t capacity) {
  std::vector<std::uint32_t> found;
  std::set<std::uint32_t> cache;
  const auto next_use = [&](std::uint32_t node, std::size_t after) {
    for (std::size_t j = after; j < trace.requests.size(); ++j)
      if (std::ranges::find(trace.path(j), node) != trace.path(j).end()) return j;
    return trace.requests.size();
  };
  for (std::size_t i = 0; i < trace.requests.size(); ++i) {
    const auto path = trace.path(i);
    found.push_back(found_in(cache, path));
    const auto kept = path.first(std::min<std::size_t>(path.size(), capacity));
    for (const std::uint32_t node : kept) {
      if (!cache.insert(node).second || cache.size() <= capacity) continue;
      std::uint32_t victim = Trace::kNoNode;
      std::pair<std::size_t, std::size_t> latest{};
      for (const std::uint32_t n : cache) {
        if (std::ranges::find(kept, n) != kept.end()) continue;
        std::size_t depth = 0;
        for (std::uint32_t up = trace.parents[n]; up != Trace::kNoNode; up = trace.parents[up]) ++depth;
        const std::pair rank{next_use(n, i + 1), depth};
        if (victim == Trace::kNoNode || rank > latest) {
          latest = rank;
          victim = n;
        }
      }
      cache.erase(victim);
    }
  }
  return found;
}

}  // namespace

TEST_CASE("the optimum is what the best of all ways to keep blocks finds") {
  std::mt19937 random(1);
  std::uint64_t found = 0, less_than_infinite = 0;
  for (int round = 0; round < 150; ++round) {
    const Trace trace = random_trace(random, 3 + random() % 5, 3 + random() % 8);
    const NextUses uses(trace, all_of(trace));
    const std::uint64_t infinite = sum(optimum(uses, 100));
    for (std::uint32_t capacity = 1; capacity <= 6; ++capacity) {
      CAPTURE(round, capacity);
      const std::uint64_t best = best_of_all(trace, capacity);
      REQUIRE(sum(optimum(uses, capacity)) == best);
      found += best;
      less_than_infinite += best < infinite;
    }
  }
  CHECK(found > 1000);
  CHECK(less_than_infinite > 100);
}

TEST_CASE("the whole-path reference follows its rule block by block and finds no more than the optimum") {
  std::mt19937 random(2);
  std::uint64_t differ = 0;
  for (int round = 0; round < 200; ++round) {
    const Trace trace = random_trace(random, 4 + random() % 30, 5 + random() % 60);
    const NextUses uses(trace, all_of(trace));
    for (const std::uint32_t capacity : {1u, 2u, 5u, 9u, 20u}) {
      CAPTURE(round, capacity);
      const auto whole = optimum_whole_paths(uses, capacity);
      REQUIRE(whole == whole_paths_by_block(trace, capacity));
      REQUIRE(sum(whole) <= sum(optimum(uses, capacity)));
      differ += sum(whole) < sum(optimum(uses, capacity));
    }
  }
  CHECK(differ > 50);
}

TEST_CASE("a part of a trace knows nothing of what comes after it") {
  std::mt19937 random(3);
  const Trace trace = random_trace(random, 20, 60);
  Trace cut = trace;
  cut.requests.resize(40);
  CHECK(optimum(NextUses(trace, {10, 10, 40}), 5) == optimum(NextUses(cut, {10, 10, 40}), 5));
  CHECK(distinct_blocks(trace, {0, 0, 60}) <= 20);
  CHECK(distinct_blocks(trace, {10, 10, 11}) == trace.requests[10].blocks);
}

TEST_CASE("no policy finds more than the optimum, nor less than it does with room for everything") {
  std::mt19937 random(4);
  for (int round = 0; round < 40; ++round) {
    const Trace trace = random_trace(random, 10 + random() % 60, 200);
    const NextUses uses(trace, all_of(trace));
    for (const ReplayPolicy& policy : replay_policies())
      for (const std::uint64_t capacity : {1, 3, 10, 1000}) {
        CAPTURE(round, capacity, std::string(policy.name));
        Progress progress("test");
        const ReplayResult result =
            policy.replay(trace, all_of(trace), {.capacity_blocks = capacity}, progress);
        const std::uint64_t best = sum(optimum(uses, capacity)) * trace.block_tokens;
        REQUIRE(result.hit_tokens <= best);
        if (capacity == 1000) {
          REQUIRE(result.hit_tokens == best);
          REQUIRE(result.evicted_blocks == 0);
          REQUIRE(result.short_requests == 0);
        }
      }
  }
}
