// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <numeric>

#include "words.hpp"
#include "workloads.hpp"

namespace kvstem_llama::demo {
namespace {

struct Seen {
  std::vector<double> first, total;
  [[nodiscard]] double per_second() const {
    double sum = 0;
    for (const double t : total) sum += t;
    return sum > 0 ? static_cast<double>(total.size()) / sum : 0;
  }
};

Json as_json(const Seen& s) {
  return Json()
      .number("ttft_p50_s", median(s.first))
      .number("ttft_p95_s", quantile(s.first, 0.95))
      .number("requests_per_s", s.per_second());
}

}  // namespace

void run_judge(const Setting& setting, const JudgeSizes& sizes, Report& report, Progress& progress) {
  const double deadline = progress.elapsed() + setting.budget;
  const LlamaEngineOptions llama{.model = setting.model,
                                 .cells = sizes.prompt_tokens + sizes.new_tokens,
                                 .sequences = 2,
                                 .batch = kGrid,
                                 .threads = setting.threads};
  progress.show("judge: loading the model for three arms");
  Arm cold({.name = "no reuse", .llama = llama}), ceiling({.name = "ceiling", .llama = llama});
  // Every prefix comes back once, so residents would only be in the way; without them all arms lie in the same cells,
  // and outputs must be equal to the bit.
  Arm kvstem({.name = "kvstem",
              .llama = llama,
              .cached = true,
              .host = host_options(
                  ceiling.llama(),
                  std::uint64_t{sizes.requests} * (sizes.prompt_tokens + sizes.new_tokens + kBlock), 1, 0)});
  if (setting.after_each)
    kvstem.after_each = [&] {
      setting.after_each(kvstem.host()->cache(), kvstem.host()->stats().largest_step_bytes);
    };
  NaiveCache naive(kBlock, 0);

  std::vector<Tokens> prompts;
  std::vector<std::vector<std::vector<std::byte>>> prefixes;  // as llama.cpp holds them, to put them in place
  std::vector<double> prefix_seconds;
  Differences wrong;
  std::uint32_t requests = sizes.requests;
  for (std::uint32_t i = 0; i < requests; ++i) {
    progress.show(text("judge: computing prefix %u of %u, not timed", i + 1, requests));
    prompts.push_back(passage(kvstem.llama(), sizes.prompt_tokens, setting.seed * 1000 + i));
    if (prompts.back().empty()) die("judge", "llama.cpp could not tokenize our words");
    const double start = now();
    prefixes.emplace_back();
    const auto keep = [&](SequenceId sequence) {
      for (std::uint32_t at = 0; at < sizes.prefix_tokens; at += kGrid) {
        const TokenRange range{at, std::min(at + kGrid, sizes.prefix_tokens)};
        prefixes.back().emplace_back(kvstem.llama().range_bytes(0, range));
        must(kvstem.llama().export_range(sequence, 0, range, prefixes.back().back()), "export");
      }
    };
    const auto s = kvstem.serve_checked(
        {.prompt = std::span(prompts.back()).first(sizes.prefix_tokens), .exact = true, .before_end = keep},
        naive, wrong);
    prefix_seconds.push_back(s.total);
    // A request costs about three times its prefix in all its arms together.
    const double affordable = (deadline - progress.elapsed()) / ((now() - start) * 4) + (i + 1) * 0.25;
    requests = std::clamp(static_cast<std::uint32_t>(std::clamp(affordable, 2.0, 1e6)), i + 1, requests);
  }
  if (requests < sizes.requests)
    report.note(text("judge: cut to %u of %u requests, for time", requests, sizes.requests));

  enum { kCold, kKvstem, kCeiling, kCeilingAgain, kArms };
  Seen seen[kArms];
  Ratio gain, sooner, of_ceiling, equal_arms;
  std::uint64_t same_kvstem = 0, same_ceiling = 0, reused = 0, computed[kArms] = {};
  Reuse tiers;
  double begin_seconds = 0;
  kvstem.reset_clocks();
  for (std::uint32_t i = 0; i < requests; ++i) {
    Arm::Served served[kArms];
    for (std::uint32_t k = 0; k < kArms; ++k) {
      const std::uint32_t arm = (k + i) % kArms;
      progress.show(text("judge: request %u of %u, arm %u of %u", i + 1, requests, k + 1,
                         static_cast<unsigned>(kArms)));
      Arm::Job job{.prompt = prompts[i], .new_tokens = sizes.new_tokens, .exact = true};
      if (arm == kKvstem) {
        served[arm] = kvstem.serve_checked(job, naive, wrong);
      } else if (arm == kCold) {
        served[arm] = cold.serve(job);
      } else {
        for (std::uint32_t at = 0; at < sizes.prefix_tokens; at += kGrid)
          must(ceiling.llama().import_range(0, 0, {at, std::min(at + kGrid, sizes.prefix_tokens)},
                                            prefixes[i][at / kGrid]),
               "import");
        job.in_place = sizes.prefix_tokens;
        served[arm] = ceiling.serve(job);
      }
      seen[arm].first.push_back(served[arm].first_token);
      seen[arm].total.push_back(served[arm].total);
      computed[arm] += served[arm].computed_tokens;
    }
    gain.values.push_back(served[kCold].total / served[kKvstem].total);
    sooner.values.push_back(served[kCold].first_token / served[kKvstem].first_token);
    of_ceiling.values.push_back(served[kCeiling].total / served[kKvstem].total);
    equal_arms.values.push_back(served[kCeiling].total / served[kCeilingAgain].total);
    same_kvstem += served[kKvstem].chosen == served[kCold].chosen;
    same_ceiling += served[kCeiling].chosen == served[kCold].chosen;
    reused += served[kKvstem].reuse.total();
    tiers.resident += served[kKvstem].reuse.resident;
    tiers.host += served[kKvstem].reuse.host;
    tiers.frontier += served[kKvstem].reuse.frontier;
    begin_seconds += served[kKvstem].begin;
  }

  // The law: of a request's time the part p is prefill, h of whose tokens are there already, for c of their price.
  const auto sum = [](const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0); };
  const std::uint64_t all = std::uint64_t{requests} * sizes.prompt_tokens;
  const double p = sum(seen[kCold].first) / sum(seen[kCold].total);
  const double h = static_cast<double>(reused) / static_cast<double>(all);
  const double c = begin_seconds / sum({prefix_seconds.begin(), prefix_seconds.begin() + requests});
  const double law = 1 / (1 - h * p * (1 - c));
  const double measured = seen[kKvstem].per_second() / seen[kCold].per_second();
  const kvstem::OpaqueHostStats& stats = kvstem.host()->stats();

  report.section("judge", text("%u requests of %u tokens that repeat their own first %u, %u tokens out",
                               requests, sizes.prompt_tokens, sizes.prefix_tokens, sizes.new_tokens));
  report.row({"", "no reuse", "kvstem", "ceiling", "kvstem to no reuse"});
  const auto three = [&](const char* name, auto&& figure, std::string last = {}) {
    report.row({name, figure(kCold), figure(kKvstem), figure(kCeiling), std::move(last)});
  };
  three(
      "time to first token, p50", [&](int a) { return seconds(median(seen[a].first)); },
      text("%.2fx sooner", sooner.middle()));
  three("time to first token, p95", [&](int a) { return seconds(quantile(seen[a].first, 0.95)); });
  three(
      "requests a second", [&](int a) { return text("%.3f", seen[a].per_second()); },
      text("%.2fx", measured));
  const std::uint64_t fresh = all - std::uint64_t{requests} * sizes.prefix_tokens;
  three("NEW tokens computed", [&](int) { return grouped(fresh); });
  three("REPEATED tokens computed", [&](int a) { return grouped(computed[a] - fresh); });
  report.row({"hits: resident, host, frontier", "-",
              grouped(tiers.resident) + ", " + grouped(tiers.host) + ", " + grouped(tiers.frontier), "-"});
  report.row({"bytes stored", "-", text("%.1f MB", static_cast<double>(stats.exported_bytes) / 1e6), "-"});
  report.row({"outputs equal to no reuse", "-",
              text("%u of %u", static_cast<unsigned>(same_kvstem), requests),
              text("%u of %u", static_cast<unsigned>(same_ceiling), requests)});
  report.row({"law 1/(1 - h p (1 - c))", text("p %.3f", p), text("h %.3f, c %.4f", h, c), "",
              text("%.2fx predicted, %.2fx measured", law, measured)});

  check_counts("judge", wrong, report);
  report.gate("judge: outputs equal to those of no reuse", same_kvstem, requests, "requests");
  report.gate("judge: outputs of the ceiling equal to those of no reuse", same_ceiling, requests, "requests");
  check_host(*kvstem.host(), "judge", report);
  const auto bar = [&](const char* name, const Ratio& r, double least) {
    report.bar({.name = std::string("judge: ") + name,
                .value = r.middle(),
                .unit = text("(%.2f to %.2f)", r.low(), r.high()),
                .bar = text(">= %.2f", least),
                .outcome = judged(r.middle() >= least, equal_arms.middle())});
  };
  bar("requests a second, times no reuse's", gain, 2.85);
  bar("time to first token, times sooner than no reuse", sooner, 3.5);
  bar("requests a second, of the ceiling's", of_ceiling, 0.95);
  report.bar({.name = "judge: two equal arms",
              .value = equal_arms.middle(),
              .unit = text("(%.2f to %.2f)", equal_arms.low(), equal_arms.high()),
              .bar = "1 +- 0.02",
              .outcome = judged(true, equal_arms.middle())});
  report.bar({.name = "judge: kvstem's own time",
              .value = kvstem.own_share() * 100,
              .unit = "% of the wall time",
              .bar = "<= 1",
              .outcome = kvstem.own_share() <= 0.01 ? Outcome::kMet : Outcome::kNotMet});
  report.json()
      .object("no reuse", as_json(seen[kCold]))
      .object("kvstem", as_json(seen[kKvstem]))
      .object("ceiling", as_json(seen[kCeiling]))
      .number("requests", requests)
      .number("new_tokens", static_cast<double>(fresh))
      .number("repeated_tokens", static_cast<double>(all - fresh))
      .number("resident_tokens", tiers.resident)
      .number("host_tokens", tiers.host)
      .number("frontier_tokens", tiers.frontier)
      .number("stored_bytes", static_cast<double>(stats.exported_bytes))
      .number("prefill_share", p)
      .number("hit_share", h)
      .number("load_cost", c)
      .number("law", law)
      .number("measured", measured);
}

}  // namespace kvstem_llama::demo
