// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "capacity.hpp"
#include "commands.hpp"
#include "hints.hpp"
#include "optimum.hpp"
#include "output.hpp"
#include "replay.hpp"
#include "trace_options.hpp"

namespace kvstem::cli {
namespace {

struct Options {
  TraceOptions traces;
  std::vector<std::string> policies{"lru"};
  std::vector<std::string> capacities{"1%", "2%", "5%", "10%", "20%", "50%"};
  std::vector<double> pin_seconds;
  std::string hints = "none";
  HintNoise noise;
  double bytes_per_token = 0;
  std::string json, per_request;
};

/// What one trace gives.
struct Row {
  const ReplayPolicy* policy;
  Capacity capacity;
  std::uint64_t capacity_blocks;
  ReplayResult result;
  double optimum, optimum_whole_paths, gap_closed, ns_over_lru;
};

const ReplayPolicy& policy_named(const std::string& name) {
  std::string known;
  for (const ReplayPolicy& policy : replay_policies()) {
    if (policy.name == name) return policy;
    known += (known.empty() ? "" : ", ") + std::string(policy.name);
  }
  throw InputError("--policy " + name + ": is none that I know; there are " + known);
}

/// Tokens found by the counted requests.
std::uint64_t hit_tokens(const Trace& trace, const TracePart& part, const std::vector<std::uint32_t>& found) {
  std::uint64_t tokens = 0;
  for (std::size_t i = part.counted; i < part.end; ++i)
    tokens += std::uint64_t{found[i - part.begin]} * trace.block_tokens;
  return tokens;
}

/// Nobody must find more than the optimum; that would be a mistake in one of them.
bool plausible(const Row& row) { return row.result.hit_rate() <= row.optimum + 1e-12; }

std::string percent_of_gap(const Row& row) {
  char text[32] = "-";
  if (std::isfinite(row.gap_closed)) std::snprintf(text, sizeof text, "%.0f %%", 100 * row.gap_closed);
  return text;
}

void print(const Row& row) {
  std::string capacity = std::to_string(row.capacity_blocks);
  if (row.capacity.text != capacity) capacity += " (" + row.capacity.text + ")";
  std::printf("%-9s %20s  %8.4f  %7.4f  %10.4f  %10s  %10llu  %+8.1f\n",
              std::string(row.policy->name).c_str(), capacity.c_str(), row.result.hit_rate(), row.optimum,
              row.optimum_whole_paths, percent_of_gap(row).c_str(),
              static_cast<unsigned long long>(row.result.evicted_blocks), row.ns_over_lru);
}

nlohmann::ordered_json to_json(const Row& row, const Trace& trace, const Options& options, double infinite) {
  const auto number = [](double value) {
    return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json();
  };
  return {{"trace", trace.name},
          {"policy", row.policy->name},
          {"capacity", row.capacity.text},
          {"capacity_blocks", row.capacity_blocks},
          {"block_tokens", trace.block_tokens},
          {"hints", options.hints},
          {"hint_recall", options.noise.recall},
          {"hint_false_ends", options.noise.false_ends},
          {"seed", options.noise.seed},
          {"requests", row.result.requests},
          {"short_requests", row.result.short_requests},
          {"input_tokens", row.result.input_tokens},
          {"hit_tokens", row.result.hit_tokens},
          {"hit_rate", row.result.hit_rate()},
          {"optimum_hit_rate", row.optimum},
          {"optimum_whole_paths_hit_rate", row.optimum_whole_paths},
          {"infinite_cache_hit_rate", infinite},
          {"gap_closed", number(row.gap_closed)},
          {"touched_blocks", row.result.touched_blocks},
          {"evicted_blocks", row.result.evicted_blocks},
          {"seconds", row.result.seconds},
          {"ns_per_block", row.result.ns_per_block()},
          {"ns_per_block_over_lru", row.ns_over_lru}};
}

int run(const Options& options) {
  std::vector<const ReplayPolicy*> policies(options.policies.size());
  std::ranges::transform(options.policies, policies.begin(),
                         [](const std::string& name) { return &policy_named(name); });
  std::vector<Capacity> capacities(options.capacities.size());
  std::ranges::transform(options.capacities, capacities.begin(), &Capacity::parse);
  options.traces.check();
  const HintKind hint_kind = hint_kind_named(options.hints);
  for (const double share : {options.noise.recall, options.noise.false_ends})
    if (!(share >= 0 && share <= 1))
      throw InputError("--hint-recall and --hint-false-ends are fractions, 0 to 1");
  if (hint_kind != HintKind::kSession && (options.noise.recall != 1 || options.noise.false_ends != 0))
    throw InputError("--hint-recall and --hint-false-ends need --hints session");
  ReplaySetup setup;
  if (!options.pin_seconds.empty()) {
    if (options.pin_seconds.size() != 2 || !(options.pin_seconds[0] >= 0) || !(options.pin_seconds[1] >= 0))
      throw InputError("--pin-seconds takes BASE,PER_TOKEN, neither of them negative");
    setup.pin_seconds = options.pin_seconds[0];
    setup.pin_seconds_per_output_token = options.pin_seconds[1];
  }
  if (!options.per_request.empty() && policies.size() * capacities.size() * options.traces.paths.size() != 1)
    throw InputError("--per-request takes one trace, one --policy and one --capacity");
  keep_apart(options.traces.paths, {options.per_request, options.json});
  std::optional<OutputFile> per_request, json;
  if (!options.per_request.empty()) per_request.emplace(options.per_request);
  if (!options.json.empty()) json.emplace(options.json);

  nlohmann::ordered_json report{{"checks", nlohmann::ordered_json::array()},
                                {"results", nlohmann::ordered_json::array()}};
  bool all_plausible = true;
  for (const std::string& path : options.traces.paths) {
    const LoadedTrace loaded = options.traces.load(path);
    const Trace& trace = loaded.trace;
    const TracePart& part = loaded.part;
    const std::uint32_t distinct = loaded.distinct_blocks;
    const std::uint64_t input_tokens = loaded.input_tokens;
    const NextUses uses(trace, part);
    const std::vector<RequestHint> hints = hints_of(trace, part, hint_kind, options.noise);
    const auto rate = [&](const std::vector<std::uint32_t>& found) {
      return input_tokens == 0
                 ? 0
                 : static_cast<double>(hit_tokens(trace, part, found)) / static_cast<double>(input_tokens);
    };
    const double infinite = rate(optimum(uses, distinct));
    std::printf(
        "%s%s: %zu requests, %llu input tokens, %u distinct blocks of %u tokens; an infinite cache finds "
        "%.4f of the tokens\n\n%-9s %20s  %8s  %7s  %10s  %10s  %10s  %8s\n",
        &path == options.traces.paths.data() ? "" : "\n", path.c_str(), part.end - part.counted,
        static_cast<unsigned long long>(input_tokens), distinct, trace.block_tokens, infinite, "policy",
        "capacity in blocks", "hit rate", "optimum", "whole path", "gap closed", "evicted", "ns/block");
    for (const Capacity& capacity : capacities) {
      const std::uint64_t blocks = capacity.blocks(distinct, trace.block_tokens, options.bytes_per_token);
      setup.capacity_blocks = blocks;
      const double best = rate(optimum(uses, blocks)), best_whole = rate(optimum_whole_paths(uses, blocks));
      const auto replay = [&](const ReplayPolicy& policy, std::span<const RequestHint> told) {
        setup.on_request = {};
        setup.hints = told;
        if (per_request && &policy == policies[0] && told.size() == hints.size())
          setup.on_request = [&](std::size_t i, std::uint32_t matched) {
            per_request->stream() << "{\"request\": " << i
                                  << ", \"input_tokens\": " << trace.requests[i].input_tokens
                                  << ", \"matched_tokens\": " << std::uint64_t{matched} * trace.block_tokens
                                  << "}\n";
          };
        const ReplayPolicy::Replay run = told.empty() ? policy.replay : policy.replay_with_hints;
        Progress progress(std::string(policy.name) + ", " + capacity.text);
        return run(trace, part, setup, progress);
      };
      const ReplayPolicy& reference = replay_policies().front();
      const ReplayResult lru = replay(reference, {});
      for (const ReplayPolicy* policy : policies) {
        const ReplayResult result = policy == &reference && hints.empty() ? lru : replay(*policy, hints);
        const double gap = best - lru.hit_rate();
        const Row row{policy,
                      capacity,
                      blocks,
                      result,
                      best,
                      best_whole,
                      gap > 0 ? (result.hit_rate() - lru.hit_rate()) / gap : std::nan(""),
                      result.ns_per_block() - lru.ns_per_block()};
        print(row);
        report["results"].push_back(to_json(row, trace, options, infinite));
        report["checks"].push_back({{"name", std::string(policy->name) + " at " + std::to_string(blocks) +
                                                 " blocks finds no more than the optimum"},
                                    {"value", result.hit_rate()},
                                    {"unit", "hit rate"},
                                    {"bar", "<= " + std::to_string(best)},
                                    {"ok", plausible(row)}});
        all_plausible = all_plausible && plausible(row);
      }
    }
  }
  std::printf(
      "\nOptimum: no cache of that size finds more; it may refuse blocks. Whole path: the same where a "
      "request's\n"
      "blocks must all be cached, a greedy reference. Gap closed: of the way from lru to the optimum. "
      "ns/block:\n"
      "time for each block touched, beyond lru. The replay is open: a loaded system finds less.\n");
  if (hint_kind == HintKind::kSession)
    std::printf("The hints are an oracle's, which knows the future: they say what such hints are worth.\n");
  if (per_request) per_request->commit();
  if (json) {
    json->stream() << report.dump(1) << '\n';
    json->commit();
  }
  if (!all_plausible)
    std::fprintf(stderr, "kvstem: a policy found more than the optimum: a bug, please report it\n");
  return all_plausible ? 0 : 1;
}

}  // namespace

Command add_replay(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  Options& o = *options;
  o.traces.add_to(app);
  app.add_option("--policy", o.policies, "Eviction policies, separated by commas: lru, lru2, arc, adaptive")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  app.add_option("--capacity", o.capacities,
                 "Cache sizes, separated by commas: blocks (4096), percent of the distinct whole blocks "
                 "(5%), or bytes "
                 "(16GiB)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
  app.add_option("--bytes-per-token", o.bytes_per_token,
                 "State of one token, in bytes; for capacities in bytes")
      ->check(CLI::PositiveNumber);
  app.add_option(
         "--pin-seconds", o.pin_seconds,
         "BASE,PER_TOKEN: a request holds its blocks for BASE seconds and PER_TOKEN for each output token; "
         "else it is over at once")
      ->delimiter(',')
      ->allow_extra_args(false);
  app.add_option(
         "--hints", o.hints,
         "What the cache is told about sessions: none; engine (what the trace says that an engine sees: "
         "sessions, tools that run, sub-agents that ended); session (an oracle that knows each session's "
         "last request)")
      ->capture_default_str();
  app.add_option("--hint-recall", o.noise.recall,
                 "With --hints session: the fraction of the ends that are told")
      ->capture_default_str();
  app.add_option("--hint-false-ends", o.noise.false_ends,
                 "With --hints session: the fraction of the other requests that are told to be the last")
      ->capture_default_str();
  app.add_option("--seed", o.noise.seed, "For what is random: which ends are told, 0 to 2^63 - 1")
      ->check(CLI::Range(std::int64_t{0}, std::numeric_limits<std::int64_t>::max()))
      ->capture_default_str();
  app.add_option("--per-request", o.per_request,
                 "Write input and matched tokens of each request to this file, as JSON lines; for one trace, "
                 "one policy and one "
                 "capacity");
  app.add_option("--json", o.json, "Write the results to this file, as JSON");
  return [options] { return run(*options); };
}

}  // namespace kvstem::cli
