// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Slots that steps fill and read: what is asked for, in which order, and what a failure costs.
#include <algorithm>
#include <set>

#include "cache_support.hpp"

using namespace kvstem;
using namespace kvstem::test;

namespace {

CacheOptions by_step(std::uint32_t slots = 16) {
  CacheOptions o = small(slots);
  o.fill = SlotFill::kByStep;
  return o;
}
const Status kDamaged(StatusCode::kCorrupt, "damaged");

std::vector<StepEntry> take(Host<>& host, std::size_t most = 64) {
  std::vector<StepEntry> room(most);
  room.resize(host.cache->take_step(room).size());
  return room;
}

}  // namespace

TEST_CASE("committed blocks are stored once, and found when that is done") {
  Host<> host(by_step());
  auto lease = host.acquire(tokens(13));
  CHECK(take(host).empty());
  host.compute(lease, {1, 1});
  CHECK(take(host).empty());  // not computed yet
  REQUIRE(host.cache->reach({1, 1}).ok());
  CHECK(lease.unstored_blocks() == 3);
  const auto stores = take(host);
  REQUIRE(stores.size() == 3);
  CHECK(lease.unstored_blocks() == 0);
  CHECK(take(host).empty());
  KeyChain chain(host.cache->hasher(),
                 *host.cache->hasher().root(
                     {.model = "m", .positions = {}, .adapter = {}, .salt = "", .vocab_size = 100'000}),
                 4);
  chain.append(tokens(13));
  for (std::uint32_t b = 0; b < 3; ++b) {
    CHECK(stores[b].kind == StepKind::kStore);
    CHECK(stores[b].block == b);
    CHECK(stores[b].lease == lease.index());
    CHECK(stores[b].key == chain.keys()[b]);
    CHECK(host.found(tokens(13)) == 4 * b);
    REQUIRE(host.cache->complete({stores[b], {}}).ok());
  }
  CHECK(host.found(tokens(13)) == 12);
  auto next = host.acquire(tokens(13), {.have_tokens = 5});
  const auto loads = take(host);
  REQUIRE(loads.size() == 2);  // the engine has the first block
  CHECK(loads[0].kind == StepKind::kLoad);
  CHECK(loads[0].block == 1);
  CHECK(loads[0].slot == stores[1].slot);
  CHECK(loads[1].block == 2);
}

TEST_CASE("loads can be asked for one lease, and go before stores") {
  Host<> host(by_step());
  host.serve(tokens(9));
  auto computes = host.acquire(tokens(9, 100));
  host.compute(computes);
  auto a = host.acquire(tokens(9)), b = host.acquire(tokens(9));
  StepEntry room[8];
  const auto loads = host.cache->take_loads(b, room);
  REQUIRE(loads.size() == 2);
  CHECK(loads[0].lease == b.index());
  const auto rest = take(host);
  REQUIRE(rest.size() == 4);
  CHECK(rest[0].kind == StepKind::kLoad);
  CHECK(rest[0].lease == a.index());
  CHECK(rest[2].kind == StepKind::kStore);
}

TEST_CASE("a long prompt does not keep others from being stored") {
  Host<> host(by_step());
  auto longer = host.acquire(tokens(40)), shorter = host.acquire(tokens(8, 500));
  host.compute(longer);
  host.compute(shorter);
  std::set<std::uint32_t> leases;
  for (int step = 0; step < 2; ++step)
    for (const StepEntry& e : take(host, 2)) leases.insert(e.lease);
  CHECK(leases.size() == 2);
}

TEST_CASE("a failed load shortens the lease and takes what rests on the block out of the cache") {
  Host<> host(by_step());
  host.serve(tokens(8) + tokens(8, 100));
  host.serve(tokens(8) + tokens(8, 200));
  auto lease = host.acquire(tokens(8) + tokens(9, 100)), sibling = host.acquire(tokens(8) + tokens(9, 200));
  const auto loads = take(host);
  REQUIRE(loads.size() == 8);
  REQUIRE(host.cache->complete({loads[0], {}}).ok());
  REQUIRE(host.cache->complete({loads[1], kDamaged}).ok());  // block 1 of both prompts
  CHECK(lease.live());
  CHECK(lease.matched_tokens() == 4);
  CHECK(lease.committed_tokens() == 4);
  CHECK(host.found(tokens(8) + tokens(9, 100)) == 4);
  CHECK(host.found(tokens(8) + tokens(9, 200)) == 4);
  CHECK(host.cache->stats().failed_loads == 1);
  CHECK(host.cache->audit().balanced());
  // The sibling's loads are under way: their slots are nobody else's until they are reported.
  auto busy = host.acquire(tokens(60, 900));
  host.compute(busy);
  for (const StepEntry& store : take(host))
    for (std::size_t i = 2; i < loads.size(); ++i) CHECK(store.slot != loads[i].slot);
  for (std::size_t i = 2; i < loads.size(); ++i) REQUIRE(host.cache->complete({loads[i], {}}).ok());
  CHECK(sibling.matched_tokens() == 16);
  CHECK(host.cache->audit().balanced());
  // Whoever found it damaged computes it again.
  CHECK(lease.refresh().must_compute);
  host.compute(lease);
  host.move_all();
  CHECK(host.found(tokens(8) + tokens(9, 100)) == 16);
}

TEST_CASE("a lease that comes to load what another found damaged is shortened") {
  Host<> host(by_step());
  host.serve(tokens(17));
  auto first = host.acquire(tokens(17)), second = host.acquire(tokens(17));
  StepEntry room[8];
  const auto loads = host.cache->take_loads(first, room);
  REQUIRE(loads.size() == 4);
  REQUIRE(host.cache->complete({loads[0], {}}).ok());
  REQUIRE(host.cache->complete({loads[1], {}}).ok());
  REQUIRE(host.cache->complete({loads[2], kDamaged}).ok());
  REQUIRE(host.cache->complete({loads[3], {}}).ok());
  CHECK(first.matched_tokens() == 8);
  CHECK(second.matched_tokens() == 16);
  CHECK(host.cache->take_loads(second, room).size() == 2);
  CHECK(second.matched_tokens() == 8);
  CHECK_FALSE(second.refresh().must_compute);  // the first does
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("a failed load takes back what was committed on top of it") {
  for (const bool waits : {false, true}) {
    Host<> host(by_step());
    host.serve(tokens(9));
    auto lease = host.acquire(tokens(17));
    const auto loads = take(host);
    REQUIRE(loads.size() == 2);
    host.compute(lease, waits ? Point{1, 1} : kNow);
    CHECK(take(host).empty());  // nothing is stored that rests on an open load
    if (waits) REQUIRE(lease.release().ok());
    REQUIRE(host.cache->complete({loads[0], kDamaged}).ok());
    REQUIRE(host.cache->complete({loads[1], {}}).ok());
    REQUIRE(host.cache->reach({1, 1}).ok());
    CHECK(take(host).empty());
    CHECK(host.found(tokens(17)) == 0);
    if (!waits) {
      CHECK(lease.committed_tokens() == 0);
      CHECK(lease.unstored_blocks() == 0);
      host.compute(lease);
      host.move_all();
      CHECK(host.found(tokens(17)) == 16);
      REQUIRE(lease.release().ok());
    }
    CHECK(host.cache->audit().lease_pins == 0);
    CHECK(host.cache->audit().balanced());
  }
}

TEST_CASE("on a grid a failed load shortens to the grid") {
  Host<> host(by_step());
  host.serve(tokens(25), {}, {}, true);
  auto lease = host.acquire(tokens(33), {.grid_tokens = 8});
  CHECK(lease.matched_tokens() == 24);
  const auto loads = take(host);
  for (const StepEntry& e : loads)
    REQUIRE(host.cache->complete({e, e.block == 3 ? kDamaged : Status()}).ok());
  CHECK(lease.matched_tokens() == 8);
}

TEST_CASE("a failed store ends the publishing of its lease, and only that") {
  Host<> host(by_step());
  auto lease = host.acquire(tokens(17)), follower = host.acquire(tokens(17));
  host.compute(lease);
  const auto stores = take(host);
  REQUIRE(stores.size() == 4);
  REQUIRE(host.cache->complete({stores[0], {}}).ok());
  REQUIRE(host.cache->complete({stores[1], kDamaged}).ok());
  REQUIRE(host.cache->complete({stores[2], {}}).ok());  // cannot be reached without the one before
  REQUIRE(host.cache->complete({stores[3], {}}).ok());
  CHECK(host.cache->stats().failed_stores == 1);
  CHECK(host.found(tokens(17)) == 4);
  CHECK(lease.live());
  CHECK(follower.refresh().must_compute);
  CHECK(follower.matched_tokens() == 4);
  REQUIRE(lease.append(tokens(4, 17)).ok());
  host.compute(lease);
  CHECK(take(host).size() == 1);  // the follower's load
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("results of a lease that is gone are settled, and never published") {
  Host<> host(by_step());
  auto lease = host.acquire(tokens(9));
  host.compute(lease);
  const auto stores = take(host);
  REQUIRE(stores.size() == 2);
  REQUIRE(lease.abort().ok());
  auto next = host.acquire(tokens(9));  // the same number, another generation
  CHECK(next.index() == stores[0].lease);
  CHECK(host.cache->audit().step_slots == 2);
  REQUIRE(host.cache->complete({stores[0], {}}).ok());
  REQUIRE(host.cache->complete({stores[1], kDamaged}).ok());
  CHECK(host.found(tokens(9)) == 0);
  CHECK(host.cache->pool().used_slots() == 0);
  CHECK(host.cache->audit().balanced());
  CHECK(next.refresh().must_compute);
}
