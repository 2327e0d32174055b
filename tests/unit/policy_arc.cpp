// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "kvstem/policy/arc.hpp"
#include "support/policy_order.hpp"

using namespace kvstem;
using test::Order;
using test::Runs;

TEST_CASE("arc: at first all room is for what was used more often") {
  Order<Arc> o;
  for (std::uint32_t run = 0; run < 3; ++run) {
    o.request();
    o.policy.on_insert(run, kNoVictim, 1);
  }
  o.use({0});
  CHECK(o.drain() == Runs{1, 2, 0});
}

TEST_CASE("arc: what comes back after it was used once makes room for its like") {
  Order<Arc> o(8);
  for (std::uint32_t run = 0; run < 4; ++run) {
    o.request({run});
    o.policy.on_insert(run, kNoVictim, 1);
  }
  o.use({1});
  o.evict(0, {0});
  o.request({0});
  o.policy.on_insert(0, kNoVictim, 1);  // counts as used more often, and one block used once may stay
  CHECK(o.victim().run == 2);
  CHECK(o.victim().blocks == 1);
  o.policy.on_erase(2);
  CHECK(o.victim().run == 3);  // within its share, but the oldest of all
}

TEST_CASE("arc: no more of a run goes than its share is exceeded by, and never another kind with it") {
  Order<Arc> o(8);
  o.request({1});
  o.policy.on_insert(0, kNoVictim, 1);
  o.evict(0, {1});
  o.request({1});
  o.policy.on_insert(0, kNoVictim, 1);  // the share is one block now
  o.use({0});
  o.request();
  o.policy.on_grow(0, 3);
  CHECK(o.victim().run == 0);
  CHECK(o.victim().blocks == 2);
  o.policy.on_trim(0, 3);
  CHECK(o.victim().blocks == 1);
}

TEST_CASE("arc: a split and a merge keep what is known of each block") {
  Order<Arc> o;
  o.request();
  o.policy.on_insert(0, kNoVictim, 4);
  o.use({0});
  o.request();
  o.policy.on_grow(0, 2);
  o.policy.on_split(1, 0, 5);
  CHECK(o.victim().blocks == 1);
  CHECK(o.policy.mergeable(1, 0));
  o.policy.on_merge(1, 0);
  CHECK(o.victim().blocks == 2);
}

TEST_CASE("arc: what was demoted goes first, until it is used again") {
  Order<Arc> o;
  for (std::uint32_t run = 0; run < 3; ++run) {
    o.request();
    o.policy.on_insert(run, kNoVictim, 1);
  }
  o.use({2});
  o.policy.demote(2);
  CHECK(o.victim().run == 2);
  o.use({2});
  CHECK(o.drain() == Runs{0, 1, 2});
}
