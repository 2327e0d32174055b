// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The demo's workloads. Each runs all its arms side by side in this process, compares every request's counts with
// NaiveCache, and writes what it saw to a Report. The sizes are parameters, so that tests run the same code on a tiny
// model in a second.
//
// Arms: "no reuse" is llama.cpp alone; "kvstem" finds prefixes; "ceiling" is llama.cpp alone with the prefix in place in
// the sequence already, the most that any cache can save.
#pragma once

#include <algorithm>
#include <functional>
#include <string>

#include "report.hpp"
#include "serve.hpp"

namespace kvstem_llama::demo {

struct Setting {
  std::string model{};
  std::uint32_t threads = 0;  // 0: as many as the machine has
  std::uint64_t seed = 1;
  double budget = 1e9;  // seconds, after which no further round begins
  /// Called after every operation of a cache (of the busy engine: after every step), with the bytes that its host
  /// exported in its largest step so far. For tests.
  std::function<void(kvstem::Cache&, std::uint64_t)> after_each{};
};

/// Several agents over one system prompt, in turns; then a sub-agent of each goes on from its agent's history. Through
/// `Engine`, all agents of a round at once.
struct AgentsSizes {
  std::uint32_t agents = 6, turns = 3, system_tokens = 1500, turn_tokens = 100, new_tokens = 32, slots = 3;
  bool sub_agents = true;
  std::uint32_t resident_tokens = 4096;
};
void run_agents(const Setting& setting, const AgentsSizes& sizes, Report& report, Progress& progress);

/// Each request repeats its own first part, which was computed before, and goes on from there.
struct JudgeSizes {
  std::uint32_t prompt_tokens = 2048, prefix_tokens = 1600, new_tokens = 32;
  std::uint32_t requests = 8;
};
void run_judge(const Setting& setting, const JudgeSizes& sizes, Report& report, Progress& progress);

/// The next turn of a conversation, whatever the length of what came before: all residues of the block.
struct TurnSizes {
  std::uint32_t context_tokens = 2048, turn_tokens = 50, residues = 32;
};
void run_turn(const Setting& setting, const TurnSizes& sizes, Report& report, Progress& progress);

/// Nothing to reuse: what does kvstem cost?
struct OverheadSizes {
  std::uint32_t prompt_tokens = 512, new_tokens = 32, pairs = 12;
  std::uint32_t resident_tokens = 4096, resident_length = 2000;
};
void run_overhead(const Setting& setting, const OverheadSizes& sizes, Report& report, Progress& progress);

/// Everybody's block size.
inline constexpr std::uint32_t kBlock = 32;

/// Options of a host whose tier holds `tokens` tokens.
inline kvstem::OpaqueHostOptions host_options(const LlamaEngine& llama, std::uint64_t tokens,
                                              std::uint32_t requests, std::uint32_t resident_tokens) {
  const std::size_t block = llama.range_bytes(0, {0, kBlock});
  kvstem::OpaqueHostOptions options;
  options.block_tokens = kBlock;
  options.host_bytes = (tokens / kBlock + 1) * block;
  options.requests = requests;
  options.resident_tokens = resident_tokens;
  options.step_bytes = std::max(options.step_bytes, block);
  return options;
}

inline void check_counts(const std::string& workload, const Differences& wrong, Report& report) {
  report.gate(workload + ": requests whose counts differ from the naive model's", wrong.count, 0, "requests");
  if (wrong.count > 0) report.note(workload + ", a request of " + wrong.first);
}

/// The gates that hold for every cache after any workload.
template <class Host>
void check_host(Host& host, const std::string& workload, Report& report) {
  const kvstem::OpaqueHostStats& s = host.stats();
  const std::size_t budget = std::max(kvstem::OpaqueHostOptions{}.step_bytes, host.block_bytes());
  report.gate(workload + ": prompt tokens, as the sum of computed and reused",
              s.computed_tokens + s.resident_tokens + s.host_tokens + s.frontier_tokens, s.prompt_tokens,
              "tokens");
  report.gate(workload + ": failed imports, exports and shares",
              s.failed_imports + s.failed_exports + s.failed_shares, 0, "");
  report.gate(workload + ": bytes above the budget in the largest export of a step",
              s.largest_step_bytes - std::min<std::uint64_t>(s.largest_step_bytes, budget), 0, "bytes");
  report.gate(workload + ": blocks that were evicted, or could not be kept",
              host.cache().stats().evicted_blocks + host.cache().stats().unpublished_blocks, 0, "blocks");
  report.gate(workload + ": books in balance", host.cache().audit().balanced() ? 1 : 0, 1, "");
}

}  // namespace kvstem_llama::demo
