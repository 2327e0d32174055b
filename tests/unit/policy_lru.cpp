// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "kvstem/policy/lru.hpp"
#include "support/policy_order.hpp"

using namespace kvstem;
using test::Runs;

namespace {
using Order = test::Order<Lru>;
}  // namespace

TEST_CASE("runs go in the order of their last use, descendants before what they rest on") {
  Order o;
  o.request();
  o.policy.on_insert(0, kNoVictim, 3);
  o.policy.on_insert(1, 0, 2);
  o.policy.on_insert(2, 1, 2);
  o.request();
  o.policy.on_insert(3, kNoVictim, 1);
  CHECK(o.drain() == Runs{2, 1, 0, 3});
}

TEST_CASE("a use of the path makes it young as a whole") {
  Order o;
  o.request();
  o.policy.on_insert(0, kNoVictim, 3);
  o.policy.on_insert(1, 0, 2);
  o.policy.on_insert(2, 0, 2);
  o.request();
  o.policy.on_insert(3, kNoVictim, 1);
  o.request();
  o.policy.on_hit(1, 2);
  o.policy.on_hit(0, 3);
  CHECK(o.drain() == Runs{2, 3, 1, 0});
}

TEST_CASE("the head of a split is as old as its tail, and goes after it") {
  Order o;
  o.request();
  o.policy.on_insert(0, kNoVictim, 3);
  o.request();
  o.policy.on_insert(1, kNoVictim, 3);
  o.policy.on_split(2, 0, 1);
  CHECK(o.policy.mergeable(2, 0));
  CHECK_FALSE(o.policy.mergeable(2, 1));
  CHECK(o.drain() == Runs{0, 2, 1});
}

TEST_CASE("what the host gave up goes first, until it is used again") {
  Order o;
  for (std::uint32_t run = 0; run < 3; ++run) {
    o.request();
    o.policy.on_insert(run, kNoVictim, 1);
  }
  o.policy.demote(2);
  CHECK(o.victim().run == 2);
  o.request();
  o.policy.on_hit(2, 1);
  CHECK(o.drain() == Runs{0, 1, 2});
}

TEST_CASE("what is in use is passed over, and no victim is an answer") {
  Order o;
  CHECK(o.victim().run == kNoVictim);
  for (std::uint32_t run = 0; run < 3; ++run) {
    o.request();
    o.policy.on_insert(run, kNoVictim, 1);
  }
  o.in_use = {0, 1};
  CHECK(o.victim().run == 2);
  o.in_use = {0, 1, 2};
  CHECK(o.victim().run == kNoVictim);
  o.in_use = {};
  CHECK(o.drain().size() == 3);
}
