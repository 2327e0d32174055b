// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "words.hpp"
#include "workloads.hpp"

namespace kvstem_llama::demo {

void run_turn(const Setting& setting, const TurnSizes& sizes, Report& report, Progress& progress) {
  constexpr std::uint32_t kDecoded = 8;  // tokens of the first turn's answer
  const std::uint32_t longest = sizes.context_tokens + sizes.residues + sizes.turn_tokens;
  const std::uint32_t resident_tokens = 2 * longest;
  const LlamaEngineOptions llama{.model = setting.model,
                                 .cells = resident_tokens + longest + kGrid,
                                 .sequences = 5,
                                 .batch = kGrid,
                                 .threads = setting.threads};
  progress.show("turn: loading the model for four arms");
  Arm cold({.name = "no reuse", .llama = llama});
  const std::uint64_t stored = sizes.context_tokens + std::uint64_t{sizes.residues} * 8 * kBlock;
  const auto cached = [&](const char* name, std::uint32_t residents) {
    return Arm::Options{.name = name,
                        .llama = llama,
                        .cached = true,
                        .host = host_options(cold.llama(), stored, 1, residents)};
  };
  Arm resident(cached("residents", resident_tokens)), again(cached("residents, once more", resident_tokens)),
      frontier(cached("blocks and frontier", 0));
  Arm* const arms[] = {&cold, &resident, &again, &frontier};
  constexpr std::uint32_t kArms = 4;
  NaiveCache naive[kArms] = {{kBlock, 0}, {kBlock, resident_tokens}, {kBlock, resident_tokens}, {kBlock, 0}};
  for (Arm* arm : arms)
    if (setting.after_each && arm->host() != nullptr)
      arm->after_each = [&setting, arm] {
        setting.after_each(arm->host()->cache(), arm->host()->stats().largest_step_bytes);
      };

  // All conversations begin alike, so that preparing them is quick.
  const std::uint32_t common = (sizes.context_tokens - kGrid) / kGrid * kGrid;
  const Tokens base = system_prompt(cold.llama(), common);
  std::vector<double> first[kArms];
  Ratio sooner_resident, sooner_frontier, equal_arms;
  Differences wrong;
  std::uint64_t not_new = 0;
  Reuse tiers[kArms];
  for (std::uint32_t r = 0; r < sizes.residues; ++r) {
    Tokens opening = base;
    const Tokens own =
        passage(cold.llama(), sizes.context_tokens + r + 1 - kDecoded - common, setting.seed * 1000 + r);
    const Tokens next = passage(cold.llama(), sizes.turn_tokens - 1, setting.seed * 1000 + 500 + r);
    if (base.empty() || own.empty() || next.empty()) die("turn", "llama.cpp could not tokenize our words");
    opening.insert(opening.end(), own.begin(), own.end());
    progress.show(text("turn: length %u of %u, preparing", r + 1, sizes.residues));
    Tokens prompts[kArms];
    for (std::uint32_t a = 1; a < kArms; ++a) {
      const auto s = arms[a]->serve_checked({.prompt = opening, .new_tokens = kDecoded, .session = r + 1u},
                                            naive[a], wrong);
      prompts[a] = opening;
      prompts[a].insert(prompts[a].end(), s.chosen.begin(), s.chosen.end());
      prompts[a].insert(prompts[a].end(), next.begin(), next.end());
    }
    prompts[0] = prompts[1];
    if (r == 0)
      for (Arm* arm : arms) arm->reset_clocks();
    double seen[kArms];
    for (std::uint32_t k = 0; k < kArms; ++k) {
      const std::uint32_t a = (k + r) % kArms;
      progress.show(text("turn: length %u of %u, arm %u of %u", r + 1, sizes.residues, k + 1, kArms));
      const Arm::Job job{.prompt = prompts[a], .new_tokens = 1, .session = r + 1u};
      const auto s = a == 0 ? cold.serve(job) : arms[a]->serve_checked(job, naive[a], wrong);
      if (a != 0 && s.computed_tokens != sizes.turn_tokens) ++not_new;
      seen[a] = s.first_token;
      first[a].push_back(s.first_token);
      tiers[a].resident += s.reuse.resident;
      tiers[a].host += s.reuse.host;
      tiers[a].frontier += s.reuse.frontier;
    }
    sooner_resident.values.push_back(seen[0] / seen[1]);
    sooner_frontier.values.push_back(seen[0] / seen[3]);
    equal_arms.values.push_back(seen[1] / seen[2]);
  }

  report.section(
      "turn", text("%u conversations of %u tokens and more, each of another length within a block; then %u "
                   "new tokens",
                   sizes.residues, sizes.context_tokens, sizes.turn_tokens));
  report.row({"", "no reuse", "residents", "host memory", ""});
  const auto three = [&](const char* name, auto&& figure) {
    report.row({name, figure(0), figure(1), figure(3), ""});
  };
  three("time to first token, p50", [&](int a) { return seconds(median(first[a])); });
  three("time to first token, p95", [&](int a) { return seconds(quantile(first[a], 0.95)); });
  report.row({"times sooner, median", "", text("%.1f", sooner_resident.middle()),
              text("%.1f", sooner_frontier.middle())});
  report.row({"times sooner, worst length", "", text("%.1f", quantile(sooner_resident.values, 0)),
              text("%.1f", quantile(sooner_frontier.values, 0))});
  three("hits: resident, host, frontier", [&](int a) {
    return grouped(tiers[a].resident) + ", " + grouped(tiers[a].host) + ", " + grouped(tiers[a].frontier);
  });
  check_counts("turn", wrong, report);
  report.gate("turn: turns that computed more or less than their new tokens", not_new, 0, "turns");
  for (const std::uint32_t a : {1u, 3u}) check_host(*arms[a]->host(), "turn, " + arms[a]->name(), report);
  for (const auto& [arm, ratio] :
       {std::pair(&resident, &sooner_resident), std::pair(&frontier, &sooner_frontier)}) {
    report.bar({.name = "turn: times sooner, " + arm->name(),
                .value = ratio->middle(),
                .unit = text("(%.1f to %.1f)", ratio->low(), ratio->high()),
                .bar = ">= 12",
                .outcome = judged(ratio->middle() >= 12, equal_arms.middle())});
    report.bar({.name = "turn: kvstem's own time, " + arm->name(),
                .value = arm->own_share() * 100,
                .unit = "% of the wall time",
                .bar = "<= 1",
                .outcome = arm->own_share() <= 0.01 ? Outcome::kMet : Outcome::kNotMet});
  }
  report.bar({.name = "turn: two equal arms",
              .value = equal_arms.middle(),
              .unit = text("(%.2f to %.2f)", equal_arms.low(), equal_arms.high()),
              .bar = "1 +- 0.02",
              .outcome = judged(true, equal_arms.middle())});
  report.json()
      .number("no_reuse_ttft_p50_s", median(first[0]))
      .number("residents_ttft_p50_s", median(first[1]))
      .number("host_memory_ttft_p50_s", median(first[3]))
      .number("sooner_residents", sooner_resident.middle())
      .number("sooner_host_memory", sooner_frontier.middle());
}

}  // namespace kvstem_llama::demo
