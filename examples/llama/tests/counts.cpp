// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The demo's workloads on a tiny model: what each request computed and reused is what the naive model of the traffic
// says, exports keep to their budget, and the books balance after every operation. The workloads write all of this as
// gates of their report; here the books are looked at in between as well.
#include <filesystem>

#include "demo/workloads.hpp"
#include "support.hpp"

using namespace kvstem_llama;
using namespace kvstem_llama::test;

namespace {

class Watched {
 public:
  explicit Watched(std::uint64_t seed) {
    setting.model = kTiny;
    setting.threads = 1;
    setting.seed = seed % 1000000;
    setting.after_each = [this](kvstem::Cache& cache, std::uint64_t largest_step) {
      ++operations;
      unbalanced += !cache.audit().balanced();
      largest = std::max(largest, largest_step);
    };
  }

  void check(const char* workload, std::uint64_t least_operations) const {
    std::cout << workload << ": books looked at " << operations << " times, most exported in a step "
              << largest << " bytes\n";
    if (!report.good()) report.print();
    CHECK(report.good());
    CHECK(operations >= least_operations);
    CHECK(unbalanced == 0);
    CHECK(largest > 0);
    CHECK(largest <= kvstem::OpaqueHostOptions{}.step_bytes);
  }

  demo::Setting setting;
  demo::Report report{false};
  demo::Progress progress{true};

 private:
  std::uint64_t operations = 0, unbalanced = 0, largest = 0;
};

}  // namespace

TEST_CASE("agents compute and reuse what the naive model of their traffic says, whatever the sizes") {
  std::mt19937_64 rng(seed("agents"));
  for (int i = 0; i < 6; ++i) {
    const demo::AgentsSizes sizes{
        .agents = static_cast<std::uint32_t>(2 + rng() % 5),
        .turns = static_cast<std::uint32_t>(2 + rng() % 2),
        .system_tokens = static_cast<std::uint32_t>(65 + rng() % 200),
        .turn_tokens = static_cast<std::uint32_t>(10 + rng() % 60),
        .new_tokens = static_cast<std::uint32_t>(2 + rng() % 20),
        .slots = static_cast<std::uint32_t>(1 + rng() % 4),
        .sub_agents = i % 2 == 0,
        .resident_tokens = static_cast<std::uint32_t>(i == 3 ? 0 : 200 + rng() % 800)};
    INFO(sizes.agents << " agents, " << sizes.turns << " turns, system " << sizes.system_tokens << ", turn "
                      << sizes.turn_tokens << ", out " << sizes.new_tokens << ", slots " << sizes.slots
                      << ", residents " << sizes.resident_tokens);
    Watched watched(rng());
    run_agents(watched.setting, sizes, watched.report, watched.progress);
    watched.check("agents", std::uint64_t{sizes.agents} * sizes.turns);  // every request at least once
  }
}

TEST_CASE("judges compute and reuse what the naive model says, and answer as without reuse") {
  std::mt19937_64 rng(seed("judge"));
  for (int i = 0; i < 4; ++i) {
    const auto prefix = static_cast<std::uint32_t>(64 * (1 + rng() % 6));
    const demo::JudgeSizes sizes{.prompt_tokens = static_cast<std::uint32_t>(prefix + 1 + rng() % 150),
                                 .prefix_tokens = prefix,
                                 .new_tokens = static_cast<std::uint32_t>(1 + rng() % 20),
                                 .requests = 4};
    INFO(sizes.prefix_tokens << " of " << sizes.prompt_tokens << " tokens, out " << sizes.new_tokens);
    Watched watched(rng());
    run_judge(watched.setting, sizes, watched.report, watched.progress);
    watched.check("judge", 20);
  }
}

TEST_CASE("a next turn computes its new tokens and no others, at every length of a block") {
  Watched watched(seed("turn"));
  run_turn(watched.setting, {.context_tokens = 200, .turn_tokens = 21, .residues = demo::kBlock},
           watched.report, watched.progress);
  watched.check("turn", 1000);
}

TEST_CASE("unlike prompts reuse nothing, beside residents as well") {
  Watched watched(seed("overhead"));
  run_overhead(
      watched.setting,
      {.prompt_tokens = 130, .new_tokens = 5, .pairs = 5, .resident_tokens = 500, .resident_length = 220},
      watched.report, watched.progress);
  watched.check("overhead", 100);
}

TEST_CASE("on SmolLM2 the counts of both workloads are the naive model's as well") {
  if (!std::filesystem::exists(kSmolLM2)) {
    std::cout << "counts: no SmolLM2, left out\n";
    return;
  }
  Watched watched(seed("SmolLM2"));
  watched.setting.model = kSmolLM2;
  watched.setting.threads = 0;
  run_agents(watched.setting,
             {.agents = 3, .turns = 2, .system_tokens = 150, .turn_tokens = 40, .new_tokens = 8, .slots = 2},
             watched.report, watched.progress);
  run_judge(watched.setting, {.prompt_tokens = 224, .prefix_tokens = 192, .new_tokens = 8, .requests = 2},
            watched.report, watched.progress);
  watched.check("SmolLM2", 100);
}
