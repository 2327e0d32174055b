// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Cache and Lease in place, under an engine that computes late: the walk is in oracle_walk.hpp, here are its episodes and
// what they must have seen. KVSTEM_MODEL_OPS sets how many operations, KVSTEM_MODEL_SEED where they begin.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <utility>

#include "kvstem/kvstem.hpp"
#include "oracle_walk.hpp"
#include "support/catch.hpp"
#include "support/ghost_policy.hpp"

namespace {

using namespace kvstem;
using namespace kvstem::test;

std::uint64_t environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

/// One of kGroupSetNames, with sizes that do not fit the blocks.
template <class OneOf>
void choose_groups(OracleConfig& config, std::size_t kind, OneOf&& one_of) {
  const std::uint32_t bt = config.block_tokens;
  const KvGroup full{.bytes_per_token = 1};
  KvGroup window{.kind = GroupKind::kSlidingWindow,
                 .window_tokens = 1 + one_of({0, 1, 2, 3}) * bt + one_of({0, 1, bt / 2}),
                 .bytes_per_token = 1,
                 .slots = one_of({12, 24, 64})};
  const KvGroup state{.kind = GroupKind::kStateCheckpoint,
                      .bytes_per_token = 64,
                      .slots = config.leases * 2 + one_of({2, 8, 40}),
                      .checkpoint_blocks = one_of({0, 1, 2, 3})};
  const KvGroup lagging{.bytes_per_token = 1, .lag_tokens = 3, .block_tokens = 2 * bt};
  const KvGroup beside{.kind = GroupKind::kSideData, .bytes_per_token = 1};
  config.kind = kind;
  config.null_slot = one_of({0, 1}) != 0;
  switch (kind) {
    case 1: config.groups = {full, window}; break;
    case 2:
      window.slots = 0;
      window.with = 0;
      config.groups = {full, window};
      break;
    case 3: config.groups = {full, state}; break;
    case 4: config.groups = {full, window, state}; break;
    case 5: config.groups = {full, lagging}; break;
    case 6: config.groups = {window}; break;
    case 7: config.groups = {state}; break;
    case 8: config.groups = {full, beside}; break;
    default: break;
  }
  if (kind != 0) config.operations = 6'000;
  if (kind != 0 && one_of({0, 1}) == 0) {  // room for all
    config.slots = 400;
    for (KvGroup& g : config.groups)
      if (g.slots != 0) g.slots = 400;
    config.operations = 3'000;
  }
}

}  // namespace

TEST_CASE("a paged engine never reads another state than its own") {
  const std::uint64_t operations = environment("KVSTEM_MODEL_OPS", 1'000'000);
  const std::uint64_t seed = environment("KVSTEM_MODEL_SEED", 1);
  std::printf("oracle model check: KVSTEM_MODEL_SEED=%llu KVSTEM_MODEL_OPS=%llu\n",
              static_cast<unsigned long long>(seed), static_cast<unsigned long long>(operations));
  OracleTally tally;
  for (std::uint64_t episode = 0; tally.operations < operations; ++episode) {
    std::mt19937_64 random(seed * 1'000'003 + episode);
    const auto one_of = [&](std::initializer_list<std::uint32_t> values) {
      return values.begin()[random() % values.size()];
    };
    OracleConfig config;
    config.seed = seed * 1'000'003 + episode;
    config.operations = 12'000;
    config.block_tokens = one_of({1, 2, 3, 4, 8, 16});
    config.slots = one_of({10, 24, 48, 96});
    config.leases = one_of({3, 5, 8});
    config.row_blocks = one_of({5, 8, 12});
    config.patterns = one_of({2, 3, 5});
    config.max_runs = one_of({0, 0, 0, 24});
    choose_groups(config, random() % 4 < 3 ? 0 : 1 + random() % (kGroupSets - 1), one_of);
    switch (episode % 3) {
      case 0: OracleWalk<Lru>(config, tally).run(); break;
      case 1: OracleWalk<GhostPolicy>(config, tally).run(); break;
      default: OracleWalk<Hinted<Adaptive>>(config, tally).run();
    }
  }

  for (std::size_t a = 0; a < kActs; ++a)
    std::printf("  %-13s %8llu effective, %5.2f %%\n", kActNames[a],
                static_cast<unsigned long long>(tally.effective[a]),
                100.0 * static_cast<double>(tally.effective[a]) / static_cast<double>(tally.operations));
  const std::pair<const char*, std::uint64_t> rest[] = {{"operations", tally.operations},
                                                        {"steps", tally.steps},
                                                        {"loads", tally.loads},
                                                        {"copies", tally.copies},
                                                        {"loads failed", tally.loads_failed},
                                                        {"copies failed", tally.copies_failed},
                                                        {"under work", tally.failed_under_work},
                                                        {"blocks matched", tally.hit_blocks},
                                                        {"evictions", tally.evictions},
                                                        {"exhausted", tally.exhausted},
                                                        {"followed", tally.followed},
                                                        {"waited", tally.waited},
                                                        {"copied on write", tally.copied_on_write},
                                                        {"copied at fork", tally.copied_at_fork},
                                                        {"forks waiting", tally.forks_waiting},
                                                        {"forks refused", tally.forks_refused},
                                                        {"duplicates", tally.duplicates},
                                                        {"made canonical", tally.made_canonical},
                                                        {"into published", tally.truncated_published},
                                                        {"into launched", tally.truncated_launched},
                                                        {"drafts moved", tally.accepted_moved},
                                                        {"drafts rejected", tally.drafts_rejected},
                                                        {"abort loading", tally.aborted_under_loads},
                                                        {"abort untaken", tally.ended_before_loads},
                                                        {"release waiting", tally.released_waiting},
                                                        {"gave up", tally.gave_up},
                                                        {"preempted", tally.preempted},
                                                        {"promises kept", tally.promises_checked},
                                                        {"bytes replayed", tally.replayed_bytes},
                                                        {"states published", tally.states_published},
                                                        {"states matched", tally.states_matched},
                                                        {"states missed", tally.states_missed},
                                                        {"window slots back", tally.window_slots_back},
                                                        {"others copied", tally.others_copied},
                                                        {"shares evicted", tally.shares_evicted},
                                                        {"ended by a copy", tally.ended_by_copy},
                                                        {"lag recomputed", tally.lag_recomputed},
                                                        {"to a boundary", tally.boundaries},
                                                        {"quoted", tally.quoted},
                                                        {"quoted later", tally.quoted_later},
                                                        {"cuts refused", tally.cuts_refused}};
  for (const auto& [name, value] : rest)
    std::printf("  %-17s %llu\n", name, static_cast<unsigned long long>(value));
  for (std::size_t k = 0; k < kGroupSets; ++k)
    std::printf("  %-21s %8llu matches, %llu of them exact\n", kGroupSetNames[k],
                static_cast<unsigned long long>(tally.matches[k]),
                static_cast<unsigned long long>(tally.exact_matches[k]));

  for (std::size_t a = 0; a < kActs; ++a) {
    INFO(kActNames[a]);
    CHECK(tally.effective[a] * 100 >= tally.operations);
  }
  for (const auto& [name, value] : rest) {
    INFO(name);
    CHECK(value > 0);
  }
  for (std::size_t k = 0; k < kGroupSets; ++k) {
    INFO(kGroupSetNames[k]);
    CHECK(tally.matches[k] > 0);
    CHECK(tally.exact_matches[k] > 0);
  }
}
