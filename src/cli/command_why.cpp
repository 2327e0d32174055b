// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "capacity.hpp"
#include "commands.hpp"
#include "divergence.hpp"
#include "output.hpp"
#include "trace_options.hpp"

namespace kvstem::cli {
namespace {

struct Options {
  TraceOptions traces;
  std::string capacity = "100%", json;
  double bytes_per_token = 0;
  std::size_t top = 10;
};

double percent(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0 : 100 * static_cast<double>(part) / static_cast<double>(whole);
}

nlohmann::ordered_json to_json(const Fork& fork, const LoadedTrace& loaded, std::uint64_t diverged) {
  const std::uint64_t block = loaded.trace.block_tokens;
  return {{"position_tokens", fork.depth * block},
          {"first_request", fork.first_request},
          {"last_request", fork.last_request},
          {"prompts", fork.prompts},
          {"computed_tokens", fork.computed_blocks * block},
          {"shareable_tokens", fork.shareable_blocks * block},
          {"share_of_diverged", percent(fork.computed_blocks * block, diverged) / 100}};
}

nlohmann::ordered_json report(const LoadedTrace& loaded, const Options& options, std::uint64_t blocks) {
  const Divergence d = find_divergence(loaded.trace, loaded.part, blocks);
  const std::uint64_t block = loaded.trace.block_tokens;
  std::printf("%s: %zu requests, %llu input tokens; an LRU cache of %llu blocks of %u tokens (%s)\n\n",
              loaded.trace.name.c_str(), loaded.requests(), static_cast<unsigned long long>(d.input_tokens),
              static_cast<unsigned long long>(blocks), loaded.trace.block_tokens, options.capacity.c_str());
  const std::pair<const char*, std::uint64_t> parts[] = {
      {"found", d.found_tokens},
      {"evicted: were there before, and no longer", d.evicted_tokens},
      {"new, behind the end of an earlier prompt", d.went_on_tokens},
      {"new, where prompts leave what earlier ones share", d.diverged_tokens},
      {"behind the last whole block", d.tail_tokens}};
  std::printf("%8s %15s  %s\n", "share", "tokens", "input tokens");
  for (const auto& [what, tokens] : parts)
    std::printf("%6.2f %% %15llu  %s\n", percent(tokens, d.input_tokens),
                static_cast<unsigned long long>(tokens), what);

  nlohmann::ordered_json result{{"trace", loaded.trace.name},
                                {"capacity", options.capacity},
                                {"capacity_blocks", blocks},
                                {"block_tokens", block},
                                {"requests", loaded.requests()},
                                {"input_tokens", d.input_tokens},
                                {"found_tokens", d.found_tokens},
                                {"evicted_tokens", d.evicted_tokens},
                                {"went_on_tokens", d.went_on_tokens},
                                {"diverged_tokens", d.diverged_tokens},
                                {"tail_tokens", d.tail_tokens},
                                {"places", d.forks.size()},
                                {"worst", nlohmann::ordered_json::array()}};
  const std::size_t shown = std::min(options.top, d.forks.size());
  for (std::size_t i = 0; i < shown; ++i)
    result["worst"].push_back(to_json(d.forks[i], loaded, d.diverged_tokens));
  if (shown == 0) {
    std::printf("\nNo prompt leaves what earlier ones share.\n");
    return result;
  }
  std::printf("\nWhere they leave: the worst %zu of %zu places\n\n%-14s %8s %15s %20s %15s  %s\n", shown,
              d.forks.size(), "after tokens", "prompts", "computed there", "of all that leave",
              "at most saved", "requests, from 0: first that began so, last that left here");
  for (std::size_t i = 0; i < shown; ++i) {
    const Fork& fork = d.forks[i];
    std::printf("%-14llu %8u %15llu %18.1f %% %15llu  %zu, %zu\n",
                static_cast<unsigned long long>(fork.depth) * block, fork.prompts,
                static_cast<unsigned long long>(fork.computed_blocks) * block,
                percent(fork.computed_blocks * block, d.diverged_tokens),
                static_cast<unsigned long long>(fork.shareable_blocks) * block, fork.first_request,
                fork.last_request);
  }
  const Fork& worst = d.forks.front();
  if (worst.depth == 0)
    std::printf(
        "\n%.0f %% of these tokens belong to prompts that share nothing with others from their first block "
        "on.\n",
        percent(worst.computed_blocks * block, d.diverged_tokens));
  else
    std::printf(
        "\n%.0f %% of these tokens leave within the %llu tokens behind position %llu of one beginning.\n",
        percent(worst.computed_blocks * block, d.diverged_tokens), static_cast<unsigned long long>(block),
        static_cast<unsigned long long>(worst.depth) * block);
  return result;
}

int run(const Options& options) {
  options.traces.check();
  const Capacity capacity = Capacity::parse(options.capacity);
  keep_apart(options.traces.paths, {options.json});
  std::optional<OutputFile> json;
  if (!options.json.empty()) json.emplace(options.json);
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  for (const std::string& path : options.traces.paths) {
    if (&path != options.traces.paths.data()) std::printf("\n");
    const LoadedTrace loaded = options.traces.load(path);
    results.push_back(
        report(loaded, options,
               capacity.blocks(loaded.distinct_blocks, loaded.trace.block_tokens, options.bytes_per_token)));
  }
  std::printf(
      "\nAt most saved: if what differs there were equal, these prompts would have found no more than the "
      "longest\n"
      "that earlier ones hold behind it. Look at the text: a date, an id or a list in another order can be "
      "moved\n"
      "behind what all share; another question cannot.\n");
  if (json) {
    json->stream() << nlohmann::ordered_json{{"results", results}}.dump(1) << '\n';
    json->commit();
  }
  return 0;
}

}  // namespace

Command add_why(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  Options& o = *options;
  o.traces.add_to(app);
  app.add_option("--capacity", o.capacity,
                 "Size of the cache: blocks (4096), percent of the distinct whole blocks (5%), or bytes "
                 "(16GiB); with "
                 "100% nothing is evicted")
      ->capture_default_str();
  app.add_option("--bytes-per-token", o.bytes_per_token,
                 "State of one token, in bytes; for a capacity in bytes")
      ->check(CLI::PositiveNumber);
  app.add_option("--top", o.top, "Places that are shown")->check(CLI::Range(1, 10000))->capture_default_str();
  app.add_option("--json", o.json, "Write the results to this file, as JSON");
  return [options] { return run(*options); };
}

}  // namespace kvstem::cli
