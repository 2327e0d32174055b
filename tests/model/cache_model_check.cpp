// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Cache and Lease beside a map of prefixes: the walk is in cache_walk.hpp, here are its episodes and what they must have
// seen. KVSTEM_MODEL_OPS sets how many operations, KVSTEM_MODEL_SEED where they begin.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <utility>

#include "cache_walk.hpp"
#include "kvstem/kvstem.hpp"
#include "support/catch.hpp"
#include "support/ghost_policy.hpp"

namespace {

using namespace kvstem;
using namespace kvstem::test;

std::uint64_t environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

}  // namespace

TEST_CASE("a cache does what a map of prefixes does") {
  const std::uint64_t operations = environment("KVSTEM_MODEL_OPS", 1'000'000);
  const std::uint64_t seed = environment("KVSTEM_MODEL_SEED", 1);
  std::printf("cache model check: KVSTEM_MODEL_SEED=%llu KVSTEM_MODEL_OPS=%llu\n",
              static_cast<unsigned long long>(seed), static_cast<unsigned long long>(operations));
  Tally tally;
  for (std::uint64_t episode = 0; tally.operations < operations; ++episode) {
    std::mt19937_64 random(seed * 1'000'003 + episode);
    const auto one_of = [&](std::initializer_list<std::uint32_t> values) {
      return values.begin()[random() % values.size()];
    };
    Config config;
    config.seed = seed * 1'000'003 + episode;
    config.operations = 12'000;
    config.fill = episode % 3 != 0 ? SlotFill::kByStep : SlotFill::kInPlace;
    config.small_keys = episode / 3 % 3 == 2;
    config.block_tokens = one_of({1, 2, 3, 4, 16, 17});
    config.slots = one_of({8, 24, 48, 96});
    config.leases = one_of({3, 5, 8});
    config.row_blocks = one_of({5, 10, 14});
    config.patterns = config.small_keys ? 40 : one_of({2, 3, 5});
    config.max_runs = config.small_keys ? 0 : one_of({0, 0, 10, 24});
    switch (episode / 9 % 4) {
      case 0: Walk<Lru>(config, tally).run(); break;
      case 1: Walk<GhostPolicy>(config, tally).run(); break;
      case 2: Walk<Hinted<Adaptive>>(config, tally).run(); break;
      default: Walk<Hinted<Arc>>(config, tally).run();
    }
  }

  for (int k = 0; k < kKinds; ++k)
    std::printf("  %-13s %8llu effective, %5.2f %%\n", kKindNames[k],
                static_cast<unsigned long long>(tally.effective[k]),
                100.0 * static_cast<double>(tally.effective[k]) / static_cast<double>(tally.operations));
  const std::pair<const char*, std::uint64_t> rest[] = {{"operations", tally.operations},
                                                        {"blocks matched", tally.hit_blocks},
                                                        {"key collisions", tally.collisions},
                                                        {"of siblings", tally.sibling_collisions},
                                                        {"evictions", tally.evictions},
                                                        {"under pins", tally.evictions_under_pins},
                                                        {"exhausted", tally.exhausted},
                                                        {"followed", tally.followed},
                                                        {"waited", tally.waited},
                                                        {"took over", tally.took_over},
                                                        {"invalidated", tally.invalidated},
                                                        {"duplicates", tally.duplicates},
                                                        {"made canonical", tally.canonical},
                                                        {"unpublished", tally.unpublished},
                                                        {"gave up", tally.gave_up},
                                                        {"splits", tally.splits},
                                                        {"merges", tally.merges},
                                                        {"ghost hits", tally.ghost_hits},
                                                        {"trees rebuilt", tally.rebuilt},
                                                        {"bytes replayed", tally.replayed_bytes}};
  for (const auto& [name, value] : rest)
    std::printf("  %-15s %llu\n", name, static_cast<unsigned long long>(value));

  for (int k = 0; k < kKinds; ++k) {
    INFO(kKindNames[k]);
    CHECK(tally.effective[k] * 100 >= tally.operations);
  }
  CHECK(tally.collisions >= 100);
  CHECK(tally.sibling_collisions >= 100);
  CHECK(tally.evictions_under_pins >= 100);
  for (const auto& [name, value] : rest) {
    INFO(name);
    CHECK(value > 0);
  }
}
