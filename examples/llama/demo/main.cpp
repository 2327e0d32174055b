// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Shows on a real model what an engine saves when it finds prefixes through kvstem. scripts/demo.sh builds and runs it.
// The status is 0 only if exactness and counts hold: speeds are shown beside their bars, and judged by nobody.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

#include "workloads.hpp"

using namespace kvstem_llama::demo;

namespace {

constexpr const char* kUsage =
    "usage: kvstem_demo --model FILE [--workload agents|judge|turn|overhead]... [--json FILE] [--quick] "
    "[--pairs N]\n"
    "                   [--seed N]\n"
    "\n"
    "  --workload  may be given several times; without it: agents and judge\n"
    "  --quick     smaller workloads, for a machine of two cores in about a minute\n"
    "  --pairs     requests of judge, pairs of overhead, each in all arms side by side\n";

[[noreturn]] void usage() {
  std::fputs(kUsage, stderr);
  std::exit(2);
}

std::uint64_t number(const char* text) {
  char* end = nullptr;
  const std::uint64_t n = std::strtoull(text, &end, 10);
  if (*text < '0' || *text > '9' || *end != 0 || n == 0 || n > 1000000) usage();
  return n;
}

}  // namespace

int main(int argc, char** argv) {
  Setting setting;
  std::string json;
  std::set<std::string> workloads;
  bool quick = false;
  std::uint32_t pairs = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--quick") {
      quick = true;
      continue;
    }
    if (++i == argc) usage();
    if (option == "--model") {
      setting.model = argv[i];
    } else if (option == "--json") {
      json = argv[i];
    } else if (option == "--workload") {
      if (std::set<std::string>{"agents", "judge", "turn", "overhead"}.count(argv[i]) == 0) usage();
      workloads.insert(argv[i]);
    } else if (option == "--pairs") {
      pairs = static_cast<std::uint32_t>(number(argv[i]));
    } else if (option == "--seed") {
      setting.seed = number(argv[i]);
    } else {
      usage();
    }
  }
  if (setting.model.empty()) usage();

  // The demo that everybody runs ends within six minutes; who asks for workloads by name waits for them.
  const bool timed = workloads.empty();
  if (timed) workloads = {"agents", "judge"};
  const std::string file = setting.model.substr(setting.model.find_last_of('/') + 1);
  Report report(file == "SmolLM2-135M-Instruct.Q4_1.gguf");
  Progress progress;
  std::printf("model %s, seed %llu\n", file.c_str(), static_cast<unsigned long long>(setting.seed));
  if (workloads.count("agents") != 0) {
    AgentsSizes sizes;
    if (quick) sizes.agents = 2, sizes.turns = 2, sizes.sub_agents = false;
    if (timed) setting.budget = quick ? 70 : 210;
    run_agents(setting, sizes, report, progress);
  }
  if (workloads.count("judge") != 0) {
    JudgeSizes sizes;
    if (quick) sizes.requests = 1;
    if (pairs != 0) sizes.requests = pairs;
    if (timed) setting.budget = (quick ? 85 : 340) - progress.elapsed();
    run_judge(setting, sizes, report, progress);
  }
  if (workloads.count("turn") != 0) {
    TurnSizes sizes;
    if (quick) sizes.residues = 4;
    run_turn(setting, sizes, report, progress);
  }
  if (workloads.count("overhead") != 0) {
    OverheadSizes sizes;
    if (quick) sizes.pairs = 3;
    if (pairs != 0) sizes.pairs = pairs;
    run_overhead(setting, sizes, report, progress);
  }
  progress.clear();
  if (quick)
    report.note(
        "--quick: 2 agents instead of 6, 2 turns instead of 3, no sub-agents; 1 request of judge instead of "
        "8");
  report.print();
  std::printf("%.0f s\n", progress.elapsed());
  if (!json.empty() && !report.write(json, file, setting.seed)) {
    std::fprintf(stderr, "cannot write %s\n", json.c_str());
    return 1;
  }
  return report.good() ? 0 : 1;
}
