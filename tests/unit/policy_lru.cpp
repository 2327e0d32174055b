// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <set>
#include <vector>

#include "kvstem/policy/lru.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {

struct Order {
  Lru lru;
  std::set<std::uint32_t> in_use;
  Order() { REQUIRE(lru.take(heap_memory(), {.max_runs = 8, .capacity_blocks = 64})); }
  void request() { lru.on_request_begin({}); }
  std::uint32_t victim() {
    const Victim victim = lru.victim(Evictable(
        [](const void* self, std::uint32_t run) noexcept {
          return static_cast<const Order*>(self)->in_use.count(run) == 0;
        },
        this));
    return victim.run;
  }
  /// All runs in the order in which they go.
  std::vector<std::uint32_t> drain() {
    std::vector<std::uint32_t> order;
    for (std::uint32_t run = victim(); run != kNoVictim; run = victim()) {
      order.push_back(run);
      lru.on_erase(run);
    }
    return order;
  }
};
using Runs = std::vector<std::uint32_t>;

}  // namespace

TEST_CASE("runs go in the order of their last use, descendants before what they rest on") {
  Order o;
  o.request();
  o.lru.on_insert(0, kNoVictim, 3);
  o.lru.on_insert(1, 0, 2);
  o.lru.on_insert(2, 1, 2);
  o.request();
  o.lru.on_insert(3, kNoVictim, 1);
  CHECK(o.drain() == Runs{2, 1, 0, 3});
}

TEST_CASE("a use of the path makes it young as a whole") {
  Order o;
  o.request();
  o.lru.on_insert(0, kNoVictim, 3);
  o.lru.on_insert(1, 0, 2);
  o.lru.on_insert(2, 0, 2);
  o.request();
  o.lru.on_insert(3, kNoVictim, 1);
  o.request();
  o.lru.on_hit(1, 2);
  o.lru.on_hit(0, 3);
  CHECK(o.drain() == Runs{2, 3, 1, 0});
}

TEST_CASE("the head of a split is as old as its tail, and goes after it") {
  Order o;
  o.request();
  o.lru.on_insert(0, kNoVictim, 3);
  o.request();
  o.lru.on_insert(1, kNoVictim, 3);
  o.lru.on_split(2, 0, 1);
  CHECK(o.lru.mergeable(2, 0));
  CHECK_FALSE(o.lru.mergeable(2, 1));
  CHECK(o.drain() == Runs{0, 2, 1});
}

TEST_CASE("what the host gave up goes first, until it is used again") {
  Order o;
  for (std::uint32_t run = 0; run < 3; ++run) {
    o.request();
    o.lru.on_insert(run, kNoVictim, 1);
  }
  o.lru.demote(2);
  CHECK(o.victim() == 2);
  o.request();
  o.lru.on_hit(2, 1);
  CHECK(o.drain() == Runs{0, 1, 2});
}

TEST_CASE("what is in use is passed over, and no victim is an answer") {
  Order o;
  CHECK(o.victim() == kNoVictim);
  for (std::uint32_t run = 0; run < 3; ++run) {
    o.request();
    o.lru.on_insert(run, kNoVictim, 1);
  }
  o.in_use = {0, 1};
  CHECK(o.victim() == 2);
  o.in_use = {0, 1, 2};
  CHECK(o.victim() == kNoVictim);
  o.in_use = {};
  CHECK(o.drain().size() == 3);
}
