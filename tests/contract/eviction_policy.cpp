// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "kvstem/policy/adaptive.hpp"
#include "kvstem/policy/arc.hpp"
#include "kvstem/policy/hinted.hpp"
#include "kvstem/policy/lru.hpp"
#include "kvstem/policy/lru2.hpp"
#include "kvstem/testing/eviction_policy_contract.hpp"
#include "support/catch.hpp"
#include "support/ghost_policy.hpp"

using namespace kvstem;
using test::GhostPolicy;

namespace {
/// Answers with any run, in use or not.
class Careless : public Lru {
 public:
  [[nodiscard]] Victim victim(Evictable) noexcept {
    return Lru::victim(Evictable([](const void*, std::uint32_t) noexcept { return true; }, nullptr));
  }
};
}  // namespace

TEMPLATE_TEST_CASE("a policy keeps the contract of policies", "", Lru, Lru2, Arc, Adaptive, Hinted<Lru>,
                   Hinted<Adaptive>, GhostPolicy) {
  GhostPolicy::seen = {};
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    const EvictionPolicyWalk walk =
        run_eviction_policy_contract<TestType>(seed, [&](bool ok, const char* what) {
          INFO("seed " << seed << ": " << what);
          CHECK(ok);
        });
    if (seed == 1)
      std::printf(
          "policy walk, seeds from 1: %d requests, %d inserts, %d grows, %d splits, %d merges, %d trims, %d "
          "erases, "
          "%d demotions, %d victims, %d refusals\n",
          static_cast<int>(walk.requests), static_cast<int>(walk.inserts), static_cast<int>(walk.grows),
          static_cast<int>(walk.splits), static_cast<int>(walk.merges), static_cast<int>(walk.trims),
          static_cast<int>(walk.erases), static_cast<int>(walk.demotions), static_cast<int>(walk.victims),
          static_cast<int>(walk.refusals));
    for (const std::uint64_t times :
         {walk.requests, walk.overlaps, walk.inserts, walk.grows, walk.splits, walk.merges, walk.trims,
          walk.erases, walk.demotions, walk.victims, walk.refusals})
      CHECK(times > 50);
  }
  CHECK(GhostPolicy::seen.contradictions == 0);
}

TEST_CASE("the contract finds a policy that does not ask") {
  int broken = 0;
  (void)run_eviction_policy_contract<Careless>(1, [&](bool ok, const char*) { broken += !ok; });
  CHECK(broken > 0);
}
