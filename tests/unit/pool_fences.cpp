// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <cstdio>
#include <map>
#include <random>
#include <set>

#include "kvstem/cache/block_pool.hpp"
#include "support/catch.hpp"

using namespace kvstem;

TEST_CASE("a freed slot is held until the step ends, and carries the point at which it did") {
  BlockPool pool;
  REQUIRE(pool.take(heap_memory(), 2));
  const SlotId a = pool.allocate(), b = pool.allocate();
  CHECK(a != b);
  CHECK(pool.allocate() == kNoSlot);
  CHECK(pool.fence(a) == kNow);
  CHECK(pool.free(a));
  CHECK_FALSE(pool.free(a));  // twice
  CHECK_FALSE(pool.free_at_once(a, kNow));
  CHECK_FALSE(pool.free(2));  // no such slot
  CHECK(pool.held_slots() == 1);
  CHECK(pool.allocate() == kNoSlot);
  pool.end_step({3, 7});
  CHECK(pool.allocate() == a);
  CHECK(pool.fence(a) == Point{3, 7});
}

TEST_CASE("a slot that the open step does not touch is free at once, between those that are held") {
  BlockPool pool;
  REQUIRE(pool.take(heap_memory(), 3));
  const SlotId a = pool.allocate(), b = pool.allocate(), c = pool.allocate();
  CHECK(pool.free(a));
  CHECK(pool.free_at_once(b, {1, 2}));
  CHECK(pool.free(c));
  CHECK(pool.allocate() == b);
  CHECK(pool.fence(b) == Point{1, 2});
  CHECK(pool.allocate() == kNoSlot);
}

TEST_CASE("a pool does what three sets do") {
  constexpr std::uint32_t kSlots = 9, kSeed = 11;
  std::mt19937 random(kSeed);
  BlockPool pool;
  REQUIRE(pool.take(heap_memory(), kSlots));
  std::set<SlotId> used, held;
  std::map<SlotId, Point> fences;
  std::map<const char*, int> done;
  for (std::uint64_t i = 1; i < 50'000; ++i) {
    const SlotId any = random() % kSlots;
    switch (random() % 4) {
      case 0: {
        const SlotId slot = pool.allocate();
        const bool full = used.size() + held.size() == kSlots;
        REQUIRE((slot == kNoSlot) == full);
        if (full) break;
        REQUIRE(used.count(slot) + held.count(slot) == 0);
        REQUIRE(pool.fence(slot) == fences[slot]);
        used.insert(slot);
        ++done["allocate"];
        break;
      }
      case 1:
        REQUIRE(pool.free(any) == (used.erase(any) == 1 && held.insert(any).second));
        ++done["free"];
        break;
      case 2:
        if (pool.free_at_once(any, {1, i})) {
          REQUIRE(used.erase(any) == 1);
          fences[any] = {1, i};
          ++done["free at once"];
        } else {
          REQUIRE(used.count(any) == 0);
        }
        break;
      default:
        if (random() % 3 != 0) break;
        pool.end_step({2, i});
        for (const SlotId slot : held) fences[slot] = {2, i};
        held.clear();
        ++done["end step"];
    }
    REQUIRE(pool.used_slots() == used.size());
    REQUIRE(pool.held_slots() == held.size());
    REQUIRE(pool.free_slots() + used.size() + held.size() == kSlots);
  }
  std::printf("pool walk, seed %u:", kSeed);
  for (const auto& [what, count] : done) {
    std::printf(" %s %d", what, count);
    CHECK(count > 1000);
  }
  std::printf("\n");
}
