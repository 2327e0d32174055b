// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "words.hpp"
#include "workloads.hpp"

namespace kvstem_llama::demo {

void run_overhead(const Setting& setting, const OverheadSizes& sizes, Report& report, Progress& progress) {
  const std::uint32_t held = sizes.resident_tokens / sizes.resident_length;
  const std::uint32_t request_tokens = sizes.prompt_tokens + sizes.new_tokens;
  const LlamaEngineOptions llama{.model = setting.model,
                                 .cells = sizes.resident_tokens + sizes.resident_length + request_tokens,
                                 .sequences = held + 2,
                                 .batch = kGrid,
                                 .threads = setting.threads};
  progress.show("overhead: loading the model for four arms");
  Arm plain({.name = "llama.cpp alone", .llama = llama}), foreign({.name = "foreign cells", .llama = llama});
  const std::uint64_t stored = std::uint64_t{held} * (sizes.resident_length + kBlock) +
                               std::uint64_t{sizes.pairs} * (request_tokens + kBlock);
  const auto cached = [&](const char* name, std::uint32_t residents) {
    return Arm::Options{.name = name,
                        .llama = llama,
                        .cached = true,
                        .host = host_options(plain.llama(), stored, 1, residents)};
  };
  Arm empty(cached("no residents", 0)), full(cached("residents full", sizes.resident_tokens));
  NaiveCache naive_empty(kBlock, 0), naive_full(kBlock, sizes.resident_tokens);
  for (Arm* arm : {&empty, &full})
    if (setting.after_each)
      arm->after_each = [&setting, arm] {
        setting.after_each(arm->host()->cache(), arm->host()->stats().largest_step_bytes);
      };

  Differences wrong;
  std::uint64_t reused = 0;
  for (std::uint32_t j = 0; j < held; ++j) {
    progress.show(text("overhead: filling the budget of residents, %u of %u", j + 1, held));
    Tokens tokens = system_prompt(plain.llama(), sizes.resident_length + 16 * j);
    if (tokens.empty()) die("overhead", "llama.cpp could not tokenize our words");
    tokens.erase(tokens.begin(), tokens.begin() + 16 * j);
    Arm::Job job{.prompt = tokens};
    (void)full.serve_checked(job, naive_full, wrong);
    // The same cells in the other arm, with the same state.
    job.before_end = [&](SequenceId sequence) {
      for (std::uint32_t at = 0; at < sizes.resident_length; at += kGrid) {
        const TokenRange range{at, std::min(at + kGrid, sizes.resident_length)};
        std::vector<std::byte> bytes(full.llama().range_bytes(0, range));
        must(full.llama().export_range(sequence, 0, range, bytes), "export");
        must(foreign.llama().import_range(static_cast<SequenceId>(j + 1), 0, range, bytes), "import");
      }
    };
    (void)full.serve_checked(job, naive_full, wrong);
  }

  enum { kPlain, kPlainAgain, kEmpty, kForeign, kForeignAgain, kFull, kArms };
  Arm* const arms[] = {&plain, &plain, &empty, &foreign, &foreign, &full};
  empty.reset_clocks();
  full.reset_clocks();
  Ratio slower_empty, slower_full, equal_plain, equal_foreign;
  std::vector<double> total[kArms];
  for (std::uint32_t i = 0; i < sizes.pairs; ++i) {
    const Tokens prompt = passage(plain.llama(), sizes.prompt_tokens, setting.seed * 1000 + i);
    double seen[kArms];
    for (std::uint32_t k = 0; k < kArms; ++k) {
      const std::uint32_t a = (k + i) % kArms;
      progress.show(text("overhead: request %u of %u, arm %u of %u", i + 1, sizes.pairs, k + 1,
                         static_cast<unsigned>(kArms)));
      const Arm::Job job{.prompt = prompt, .new_tokens = sizes.new_tokens};
      const auto s = a == kEmpty  ? empty.serve_checked(job, naive_empty, wrong)
                     : a == kFull ? full.serve_checked(job, naive_full, wrong)
                                  : arms[a]->serve(job);
      reused += s.reuse.total();
      seen[a] = s.total;
      total[a].push_back(s.total);
    }
    slower_empty.values.push_back(seen[kEmpty] / seen[kPlain]);
    slower_full.values.push_back(seen[kFull] / seen[kForeign]);
    equal_plain.values.push_back(seen[kPlainAgain] / seen[kPlain]);
    equal_foreign.values.push_back(seen[kForeignAgain] / seen[kForeign]);
  }
  const std::uint32_t in_residents = full.host()->resident_tokens();

  report.section("overhead", text("nothing to reuse: %u pairs of %u tokens, %u out; residents hold %u tokens",
                                  sizes.pairs, sizes.prompt_tokens, sizes.new_tokens, in_residents));
  report.row({"", "llama.cpp", "kvstem", "", "kvstem slower by"});
  report.row({"a request, no residents", seconds(median(total[kPlain])), seconds(median(total[kEmpty])), "",
              text("%+.2f %%", (slower_empty.middle() - 1) * 100)});
  report.row({"a request, beside as many cells", seconds(median(total[kForeign])),
              seconds(median(total[kFull])), "", text("%+.2f %%", (slower_full.middle() - 1) * 100)});
  check_counts("overhead", wrong, report);
  report.gate("overhead: tokens reused", reused, 0, "tokens");
  report.gate("overhead: tokens in residents", in_residents, std::uint64_t{held} * sizes.resident_length,
              "tokens");
  const auto show = [&](Arm& arm, const Ratio& r, const Ratio& equal) {
    check_host(*arm.host(), "overhead, " + arm.name(), report);
    report.bar({.name = "overhead: slower, " + arm.name(),
                .value = (r.middle() - 1) * 100,
                .unit = text("%% (%+.2f to %+.2f)", (r.low() - 1) * 100, (r.high() - 1) * 100),
                .bar = "<= 1",
                .outcome = judged(r.middle() <= 1.01, equal.middle())});
    report.bar({.name = "overhead: two equal arms beside " + arm.name(),
                .value = (equal.middle() - 1) * 100,
                .unit = text("%% (%+.2f to %+.2f)", (equal.low() - 1) * 100, (equal.high() - 1) * 100),
                .bar = "0 +- 2",
                .outcome = judged(true, equal.middle())});
    report.bar({.name = "overhead: kvstem's own time, " + arm.name(),
                .value = arm.own_share() * 100,
                .unit = "% of the wall time",
                .bar = "<= 1",
                .outcome = arm.own_share() <= 0.01 ? Outcome::kMet : Outcome::kNotMet});
  };
  show(empty, slower_empty, equal_plain);
  show(full, slower_full, equal_foreign);
  report.json()
      .number("plain_s", median(total[kPlain]))
      .number("no_residents_s", median(total[kEmpty]))
      .number("foreign_cells_s", median(total[kForeign]))
      .number("residents_full_s", median(total[kFull]))
      .number("slower_no_residents", slower_empty.middle() - 1)
      .number("slower_residents_full", slower_full.middle() - 1);
}

}  // namespace kvstem_llama::demo
