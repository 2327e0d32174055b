// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "kvstem/policy/hinted.hpp"
#include "kvstem/policy/lru.hpp"
#include "support/policy_order.hpp"

using namespace kvstem;
using test::Runs;

namespace {

struct Order : test::Order<Hinted<Lru>> {
  using test::Order<Hinted<Lru>>::Order;
  /// Runs 0 to n - 1, each of one block and of a session of its own.
  void fill(std::uint32_t n) {
    for (std::uint32_t run = 0; run < n; ++run) {
      request({}, run + 1);
      policy.on_insert(run, kNoVictim, 1);
      release({run}, run + 1);
    }
  }
};

}  // namespace

TEST_CASE("hints: without any, the wrapped policy decides") {
  Order o;
  o.fill(4);
  o.use({1}, 2);
  CHECK(o.drain() == Runs{0, 2, 3, 1});
}

TEST_CASE("hints: a session that is over goes first, and a use revives it") {
  Order o;
  o.fill(4);
  o.use({2}, 3, {.keep = Keep::kCold});
  o.use({3}, 4, {.keep = Keep::kCold});
  CHECK(o.victim().run == 2);
  o.use({2}, 3);
  CHECK(o.drain() == Runs{3, 0, 1, 2});
}

TEST_CASE(
    "hints: the word of those whose sessions come back is not believed any more, until it proves true") {
  Order o;
  o.fill(2);
  for (int i = 0; i < 40; ++i) o.use({1}, 2, {.keep = Keep::kCold});
  CHECK(o.victim().run == 0);
  for (std::uint64_t session = 100; session < 200; ++session) o.use({0}, session, {.keep = Keep::kCold});
  o.use({1}, 200, {.keep = Keep::kCold});
  o.use({0}, 201);
  CHECK(o.victim().run == 1);
}

TEST_CASE("hints: what two sessions have used is not given up by one of them") {
  Order o;
  o.fill(3);
  o.use({1}, 20);
  o.use({1}, 21, {.keep = Keep::kCold});
  CHECK(o.victim().run == 0);
  // A run that grew out of it is its own.
  o.request({}, 21);
  o.policy.on_insert(5, 1, 1);
  o.release({5, 1}, 21, {.keep = Keep::kCold});
  CHECK(o.victim().run == 5);
  o.policy.on_erase(5);
  CHECK(o.drain() == Runs{0, 2, 1});
}

TEST_CASE("hints: high priority goes last, until it expires") {
  Order o;
  o.fill(3);
  o.now_ms = 1000;
  o.use({0}, 1, {.keep = Keep::kHigh, .until_ms = 5000});
  o.use({1}, 2);
  o.use({2}, 3);
  CHECK(o.victim().run == 1);
  o.in_use = {1, 2};
  CHECK(o.victim().run == 0);  // last, not never
  o.in_use = {};
  o.now_ms = 6000;
  o.request();
  CHECK(o.drain().size() == 3);
}

TEST_CASE("hints: what expired is as old as its last use says") {
  Order o;
  o.fill(3);
  o.now_ms = 1000;
  o.use({0}, 1, {.keep = Keep::kHigh, .until_ms = 5000});
  o.use({1}, 2);
  o.use({2}, 3);
  o.now_ms = 6000;
  o.request();
  CHECK(o.drain() == Runs{0, 1, 2});
}

TEST_CASE("hints: what is expected back is kept until then, and as long again") {
  Order o;
  o.fill(3);
  o.now_ms = 1000;
  o.use({0}, 1, {.expect_reuse_at_ms = 3000});
  o.use({1}, 2);
  o.now_ms = 4900;
  o.use({2}, 3);
  CHECK(o.victim().run == 1);
  o.now_ms = 5000;
  o.request();
  o.in_use = {1, 2};
  CHECK(o.victim().run == 0);
  o.use({0}, 1, {.expect_reuse_at_ms = 4000});  // it is past: no hint
  o.in_use = {};
  CHECK(o.drain() == Runs{1, 2, 0});
}

TEST_CASE("hints: no more than half of the cache is protected") {
  Order o(6);
  o.fill(6);
  for (std::uint32_t run = 0; run < 6; ++run)
    o.use({run}, run + 1, {.keep = Keep::kHigh, .until_ms = 1'000'000});
  Runs order = o.drain();
  REQUIRE(order.size() == 6);
  CHECK(Runs(order.begin(), order.begin() + 3) == Runs{3, 4, 5});
}
