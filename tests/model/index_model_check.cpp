// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Random operations over PrefixIndex against a naive map (support/index_walk.hpp). Small alphabets and blocks, so that
// prompts part, meet and collide all the time. KVSTEM_INDEX_OPERATIONS sets the number of operations, KVSTEM_SEED repeats a
// walk.
#include <cstdio>
#include <cstdlib>
#include <random>

#include "support/catch.hpp"
#include "support/index_walk.hpp"

using namespace kvstem;
using namespace kvstem_test;

namespace {

struct RandomChooser {
  std::mt19937_64 random;
  std::uint32_t pick(std::uint32_t n) { return n <= 1 ? 0 : static_cast<std::uint32_t>(random() % n); }
};

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

}  // namespace

TEST_CASE("the index does what a map from prefixes to blocks does") {
  using Walk = IndexWalk<RandomChooser>;
  const std::uint64_t seed = from_environment("KVSTEM_SEED", std::random_device{}());
  const std::uint64_t wanted = from_environment("KVSTEM_INDEX_OPERATIONS", 300'000);
  std::printf("index model check: seed %llu\n", static_cast<unsigned long long>(seed));

  struct Kind {
    const char* name;
    IndexMode mode;
    KeyFunction keys;
  };
  const Kind kinds[] = {{"tokens, full keys", IndexMode::kTokens, xxh3_key_function()},
                        {"tokens, 8-bit keys", IndexMode::kTokens, eight_bit_keys()},
                        {"keys only", IndexMode::kKeys, xxh3_key_function()}};
  RandomChooser choose{std::mt19937_64(seed)};
  Walk::Tally total;
  std::uint64_t effective = 0, collisions = 0;
  std::uint32_t walks = 0;
  while (effective < wanted) {
    const Kind& kind = kinds[walks++ % std::size(kinds)];
    WalkOptions options{.mode = kind.mode, .keys = kind.keys};
    options.block_tokens = 1 + choose.pick(4);
    options.alphabet = 2 + choose.pick(2);
    options.max_runs = 16 + choose.pick(48);
    options.capacity_blocks = 1 + choose.pick(600);
    options.most_blocks = 6 + choose.pick(40);
    Walk walk(options, choose);
    for (int i = 0; i < 2000 && walk.wrong() == nullptr; ++i) {
      const Op op = walk.step();
      if (walk.wrong() != nullptr)
        std::printf("seed %llu, walk %u (%s), operation %d (%s)\n", static_cast<unsigned long long>(seed),
                    walks, kind.name, i, kOpNames[static_cast<std::size_t>(op)]);
    }
    walk.finish();
    INFO("seed " << seed << ", walk " << walks << ": " << (walk.wrong() == nullptr ? "" : walk.wrong()));
    REQUIRE(walk.wrong() == nullptr);
    const Walk::Tally& t = walk.tally();
    for (std::size_t op = 0; op < t.tried.size(); ++op) {
      total.tried[op] += t.tried[op];
      total.effective[op] += t.effective[op];
      effective += t.effective[op];
    }
    if (kind.keys.algorithm == HashAlgorithm::kTest) collisions += t.collisions;
    total.refused_pinned += t.refused_pinned;
    total.refused_inner += t.refused_inner;
    total.stale += t.stale;
    total.exhausted += t.exhausted;
    total.pending += t.pending;
    total.marked_runs += t.marked_runs;
    total.trims_beside_readers += t.trims_beside_readers;
  }

  std::printf("%llu effective operations in %u walks\n", static_cast<unsigned long long>(effective), walks);
  for (std::size_t op = 0; op < total.tried.size(); ++op) {
    const double share = 100.0 * static_cast<double>(total.effective[op]) / static_cast<double>(effective);
    std::printf("  %-13s tried %9llu  effective %9llu  %5.2f %%\n", kOpNames[op],
                static_cast<unsigned long long>(total.tried[op]),
                static_cast<unsigned long long>(total.effective[op]), share);
    INFO(kOpNames[op]);
    CHECK(share >= 1.0);
  }
  const std::pair<const char*, std::uint64_t> events[] = {
      {"colliding keys", collisions},
      {"trims refused, pinned", total.refused_pinned},
      {"trims refused, inner", total.refused_inner},
      {"stale places", total.stale},
      {"memory ran out", total.exhausted},
      {"matches that end pending", total.pending},
      {"runs with marks", total.marked_runs},
      {"trims beside a held epoch", total.trims_beside_readers}};
  for (const auto& [name, n] : events) {
    std::printf("  %-26s %9llu\n", name, static_cast<unsigned long long>(n));
    INFO(name);
    CHECK(n >= 100);
  }
}
