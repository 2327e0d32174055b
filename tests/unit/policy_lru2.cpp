// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "kvstem/policy/lru2.hpp"
#include "support/policy_order.hpp"

using namespace kvstem;
using test::Order;
using test::Runs;

TEST_CASE("lru2: what was used once goes before what was used twice, each by age") {
  Order<Lru2> o;
  for (std::uint32_t run = 0; run < 4; ++run) {
    o.request();
    o.policy.on_insert(run, kNoVictim, 1);
    o.release({run});
  }
  o.use({1});
  o.use({0});
  CHECK(o.drain() == Runs{2, 3, 0, 1});  // 0 and 1 by their last use but one
}

TEST_CASE("lru2: the end of a request is no second use") {
  Order<Lru2> o;
  o.request();
  o.policy.on_insert(0, kNoVictim, 1);
  o.request();
  o.policy.on_insert(1, kNoVictim, 1);
  o.release({0});
  CHECK(o.drain() == Runs{1, 0});  // both used once; 0 until later
}

TEST_CASE("lru2: a block that comes back after its eviction has been used twice") {
  Order<Lru2> o;
  for (std::uint32_t run = 0; run < 3; ++run) {
    o.request({run});
    o.policy.on_insert(run, kNoVictim, 1);
  }
  o.evict(0, {0});
  o.request({0, 100});
  o.policy.on_insert(0, kNoVictim, 2);  // the second block is new
  const Victim first = o.victim();
  CHECK(first.run == 1);
  o.policy.on_erase(1);
  o.policy.on_erase(2);
  CHECK(o.victim().run == 0);
  CHECK(o.victim().blocks == 1);  // the new one may go, and then somebody else is asked again
  o.policy.on_trim(0, 1);
  o.request({300});
  o.policy.on_insert(1, kNoVictim, 1);
  CHECK(o.drain() == Runs{1, 0});
}

TEST_CASE("lru2: blocks before one whose ghost is left were used as well") {
  Order<Lru2> o;
  o.request({1, 2, 3});
  o.policy.on_insert(0, kNoVictim, 3);
  o.evict(0, {3});  // the ghosts of the others are lost
  o.request({1, 2, 3, 4});
  o.policy.on_insert(0, kNoVictim, 4);
  CHECK(o.victim().blocks == 1);
}

TEST_CASE("lru2: only leaves are victims, and what becomes one is the next") {
  Order<Lru2> o;
  o.request();
  o.policy.on_insert(0, kNoVictim, 1);
  o.policy.on_insert(1, 0, 1);
  o.request();
  o.policy.on_insert(2, kNoVictim, 1);
  CHECK(o.victim().run == 1);
  o.policy.on_erase(1);
  CHECK(o.victim().run == 2);
  o.policy.on_leaf(0);
  CHECK(o.drain() == Runs{0, 2});
}

TEST_CASE("lru2: a split and a merge keep what is known of each block") {
  Order<Lru2> o;
  o.request();
  o.policy.on_insert(0, kNoVictim, 4);
  o.use({0});
  o.request();
  o.policy.on_grow(0, 2);  // four blocks used twice, two once
  CHECK(o.victim().blocks == 2);
  o.policy.on_split(1, 0, 5);
  CHECK(o.victim().run == 0);
  CHECK(o.victim().blocks == 1);
  CHECK(o.policy.mergeable(1, 0));
  o.policy.on_merge(1, 0);
  CHECK(o.victim().blocks == 2);
  o.use({0});
  CHECK(o.victim().blocks == 6);
}

TEST_CASE("lru2: what was demoted goes first, the longest so first, until it is used again") {
  Order<Lru2> o;
  for (std::uint32_t run = 0; run < 4; ++run) {
    o.request();
    o.policy.on_insert(run, kNoVictim, 1);
  }
  for (const std::uint32_t run : {3u, 2u, 1u}) {
    o.request();
    o.policy.demote(run);
  }
  o.use({3});
  CHECK(o.drain() == Runs{2, 1, 0, 3});
}

TEST_CASE("lru2: what is in use is passed over once, and is there again when it no longer is") {
  Order<Lru2> o;
  for (std::uint32_t run = 0; run < 3; ++run) {
    o.request();
    o.policy.on_insert(run, kNoVictim, 1);
  }
  o.in_use = {0, 1};
  CHECK(o.victim().run == 2);
  o.in_use = {0, 1, 2};
  CHECK(o.victim().run == kNoVictim);
  o.in_use = {1};
  o.request();
  CHECK(o.victim().run == 0);
}
