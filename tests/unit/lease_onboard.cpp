// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// State that comes from elsewhere: loads are handed out, done in any order, fail, and come too late.
#include <algorithm>

#include "cache_support.hpp"

using namespace kvstem;
using namespace kvstem::test;

namespace {

const Status kFailed{StatusCode::kUnavailable, "told to fail"};

struct Onboarding : Host<> {
  using Host<>::Host;

  Lease begin(const Tokens& prompt, std::uint32_t n) {
    Lease lease = acquire(prompt);
    REQUIRE(lease.onboard(n).ok());
    return lease;
  }
  std::vector<StepEntry> take() {
    StepEntry room[32];
    const auto taken = cache->take_step(room);
    return {taken.begin(), taken.end()};
  }
  void done(const StepEntry& entry, Status status = {}) { REQUIRE(cache->complete({entry, status}).ok()); }
  std::uint32_t used() const { return cache->pool().used_slots(); }
  std::uint32_t holders(SlotId slot) const { return cache->pool().holders(slot); }
  bool balanced() const { return cache->audit().balanced(); }
  /// All leases are gone: only the tree holds slots.
  bool settled() {
    end_step();
    const Audit audit = cache->audit();
    return audit.balanced() && audit.lease_slots == 0 && audit.step_slots == 0 && audit.lease_pins == 0 &&
           audit.used == audit.ready_blocks;
  }
};

}  // namespace

TEST_CASE("what is onboarded gets slots, counts as committed, and is loaded block by block") {
  Onboarding host;
  REQUIRE(host.acquire(tokens(4)).reserve(64).ok());
  host.end_step();  // every slot was used, so that it has a fence
  Lease lease = host.begin(tokens(17), 12);
  CHECK(lease.matched_tokens() == 0);
  CHECK(lease.committed_tokens() == 12);
  CHECK(lease.reserved_tokens() == 12);
  CHECK(lease.known_tokens() == 17);
  CHECK(lease.delta() == BlockRange{0, 3});
  CHECK(host.used() == 3);
  CHECK(host.found(tokens(17)) == 0);
  const auto loads = host.take();
  REQUIRE(loads.size() == 3);
  for (std::uint32_t b = 0; b < 3; ++b) {
    CHECK(loads[b].kind == StepKind::kLoad);
    CHECK(loads[b].group == 0);
    CHECK(loads[b].lease == lease.index());
    CHECK(loads[b].generation == loads[0].generation);
    CHECK(loads[b].block == b);
    CHECK(loads[b].slot == static_cast<SlotId>(lease.table(0)[b]));
    CHECK(loads[b].not_before == Point{0, 1});
    host.done(loads[b]);
  }
  // The keys are those by which tiers and peers know the blocks.
  Change room[16];
  const auto changes = host.cache->take_changes(room);
  REQUIRE(changes.size() == 3);
  for (std::uint32_t b = 0; b < 3; ++b) CHECK(changes[b].key == loads[b].key);
  CHECK(host.found(tokens(17)) == 12);
  CHECK(host.balanced());
  REQUIRE(lease.release().ok());
  CHECK(host.settled());
  CHECK(host.cache->stats().hit_tokens == 0);  // found elsewhere, not here
  CHECK(host.cache->stats().onboarded_blocks == 3);
}

TEST_CASE("loads are handed out once each, however little room there is") {
  Onboarding host;
  Lease a = host.begin(tokens(9), 8), b = host.begin(tokens(13, 500), 12);
  std::vector<std::pair<std::uint32_t, std::uint32_t>> seen;
  StepEntry room[2];
  for (auto taken = host.cache->take_step(room); !taken.empty(); taken = host.cache->take_step(room))
    for (const StepEntry& e : taken) seen.emplace_back(e.lease, e.block);
  CHECK(seen.size() == 5);
  std::ranges::sort(seen);
  CHECK(std::ranges::adjacent_find(seen) == seen.end());
  CHECK(host.take().empty());
  CHECK(host.balanced());
}

TEST_CASE("the loads of one lease are what take_loads hands out") {
  Onboarding host;
  Lease a = host.begin(tokens(9), 8), b = host.begin(tokens(13, 500), 12);
  StepEntry room[8];
  const auto loads = host.cache->take_loads(b, room);
  CHECK(loads.size() == 3);
  for (const StepEntry& e : loads) CHECK(e.lease == b.index());
  CHECK(host.take().size() == 2);
  CHECK(a.live());
}

TEST_CASE("loads are done in any order, and a block is found when all before it are there") {
  std::vector<std::uint32_t> order{0, 1, 2};
  do {
    Onboarding host;
    Lease lease = host.begin(tokens(17), 12);
    const auto loads = host.take();
    REQUIRE(loads.size() == 3);
    bool there[4] = {};
    for (const std::uint32_t b : order) {
      host.done(loads[b]);
      there[b] = true;
      const auto blocks = static_cast<std::uint32_t>(std::ranges::find(there, false) - there);
      CHECK(host.found(tokens(17)) == 4 * blocks);
      CHECK(host.balanced());
    }
  } while (std::ranges::next_permutation(order).found);
}

TEST_CASE("what was matched comes first, and onboarding goes on behind it") {
  Onboarding host;
  host.serve(tokens(9));
  Lease lease = host.acquire(tokens(17));
  REQUIRE(lease.matched_tokens() == 8);
  REQUIRE(lease.onboard(8).ok());
  const auto loads = host.take();
  REQUIRE(loads.size() == 2);
  CHECK(loads[0].block == 2);
  CHECK(loads[1].block == 3);
  for (const StepEntry& e : loads) host.done(e);
  host.compute(lease);
  REQUIRE(lease.release().ok());
  CHECK(host.found(tokens(17)) == 16);
  CHECK(host.cache->stats().hit_tokens == 8);
  CHECK(host.settled());
}

TEST_CASE("onboarding in pieces hands out each piece") {
  Onboarding host;
  Lease lease = host.begin(tokens(17), 4);
  REQUIRE(lease.onboard(8).ok());
  auto loads = host.take();
  CHECK(loads.size() == 3);
  REQUIRE(lease.onboard(4).ok());
  for (const StepEntry& e : host.take()) loads.push_back(e);
  REQUIRE(loads.size() == 4);
  for (std::uint32_t b = 4; b-- > 0;) {
    CHECK(loads[b].block == b);
    host.done(loads[b]);
  }
  CHECK(host.found(tokens(17)) == 16);
  CHECK(host.balanced());
}

TEST_CASE("what is onboarded and what is computed alternate as they like") {
  Onboarding host;
  Lease lease = host.begin(tokens(21), 4);
  REQUIRE(lease.reserve(4).ok());
  REQUIRE(lease.commit(4).ok());
  REQUIRE(lease.onboard(8).ok());  // with a load that was not taken yet
  const auto loads = host.take();
  REQUIRE(loads.size() == 3);
  CHECK(loads[0].block == 0);
  CHECK(loads[1].block == 2);
  CHECK(loads[2].block == 3);
  for (const StepEntry& e : loads) host.done(e);
  CHECK(host.found(tokens(21)) == 16);
  CHECK(host.balanced());
}

TEST_CASE("what is computed on top of loads under way is found when they are done") {
  Onboarding host;
  Lease lease = host.begin(tokens(17), 8);
  const auto loads = host.take();
  REQUIRE(lease.reserve(9).ok());
  REQUIRE(lease.commit(9, {0, 1}).ok());
  CHECK(lease.committed_tokens() == 17);
  REQUIRE(host.cache->reach({0, 1}).ok());
  CHECK(host.found(tokens(17)) == 0);
  host.done(loads[0]);
  CHECK(host.found(tokens(17)) == 4);
  host.done(loads[1]);
  CHECK(host.found(tokens(17)) == 16);
  CHECK(host.balanced());
}

TEST_CASE("a load that fails takes its block and all behind it, with what waits for points") {
  Onboarding host;
  Lease lease = host.begin(tokens(21), 12);
  const auto loads = host.take();
  REQUIRE(loads.size() == 3);
  REQUIRE(lease.reserve(9).ok());
  REQUIRE(lease.commit(9, {0, 1}).ok());
  CHECK(host.used() == 6);
  host.done(loads[1], kFailed);  // the first and the third are under way
  CHECK(lease.committed_tokens() == 4);
  CHECK(lease.reserved_tokens() == 4);
  CHECK(lease.known_tokens() == 21);
  CHECK(lease.table(0).size() == 1);
  CHECK(host.cache->stats().failed_loads >= 1);
  CHECK(host.balanced());
  host.end_step();
  CHECK(host.used() == 2);  // the first block, and the third, which is written to
  CHECK(host.holders(loads[2].slot) == 1);
  REQUIRE(host.cache->reach({0, 1}).ok());
  CHECK(host.found(tokens(21)) == 0);
  host.done(loads[0]);
  CHECK(host.found(tokens(21)) == 4);
  host.done(loads[2]);
  host.end_step();
  CHECK(host.used() == 1);
  CHECK(host.found(tokens(21)) == 4);
  CHECK(host.balanced());

  REQUIRE(lease.reserve(17).ok());  // computes it itself
  REQUIRE(lease.commit(17).ok());
  CHECK(host.found(tokens(21)) == 20);
  REQUIRE(lease.release().ok());
  CHECK(host.settled());
}

TEST_CASE("after a load failed the rest can be onboarded again") {
  Onboarding host;
  Lease lease = host.begin(tokens(17), 16);
  for (const StepEntry& e : host.take()) host.done(e, e.block == 2 ? kFailed : Status());
  CHECK(lease.committed_tokens() == 8);
  CHECK(host.balanced());
  REQUIRE(lease.onboard(8).ok());
  const auto loads = host.take();
  REQUIRE(loads.size() == 2);
  CHECK(loads[0].block == 2);
  for (const StepEntry& e : loads) host.done(e);
  CHECK(host.found(tokens(17)) == 16);
  REQUIRE(lease.release().ok());
  CHECK(host.settled());
}

TEST_CASE("loads behind one that failed and that were not taken are never handed out") {
  Onboarding host;
  Lease lease = host.begin(tokens(17), 16);
  StepEntry room[2];
  REQUIRE(host.cache->take_step(room).size() == 2);
  host.done(room[0], kFailed);
  CHECK(lease.committed_tokens() == 0);
  CHECK(host.take().empty());
  host.end_step();
  CHECK(host.used() == 1);  // of the second, which is under way
  host.done(room[1], kFailed);
  host.end_step();
  CHECK(host.used() == 0);
  CHECK(host.balanced());
}

TEST_CASE("slots of loads under way are not given to others, also when their lease was aborted") {
  Onboarding host(small(4));
  std::vector<StepEntry> loads;
  {
    Lease lease = host.begin(tokens(13), 12);
    loads = host.take();
  }  // aborted
  CHECK(host.balanced());
  host.end_step();
  CHECK(host.cache->pool().free_slots() == 1);
  for (const StepEntry& e : loads) CHECK(host.holders(e.slot) == 1);
  Lease next = host.acquire(tokens(13, 500));
  CHECK(next.reserve(8).code() == StatusCode::kExhausted);
  REQUIRE(next.reserve(4).ok());
  for (const StepEntry& e : loads) CHECK(e.slot != static_cast<SlotId>(next.table(0)[0]));
  for (const StepEntry& e : loads) {
    host.done(e, e.block == 1 ? kFailed : Status());
    CHECK(host.balanced());
  }
  host.end_step();
  CHECK(host.cache->pool().free_slots() == 3);
  CHECK(host.found(tokens(13)) == 0);
  CHECK(next.reserve(9).ok());
  CHECK(next.committed_tokens() == 0);
  CHECK(host.balanced());
}

TEST_CASE("loads of an aborted lease that were not taken are never handed out") {
  Onboarding host;
  {
    Lease lease = host.begin(tokens(17), 12);
    StepEntry one[1];
    REQUIRE(host.cache->take_step(one).size() == 1);
    REQUIRE(lease.abort().ok());
    CHECK(host.take().empty());
    host.end_step();
    CHECK(host.used() == 1);
    host.done(one[0]);
  }
  CHECK(host.settled());
  CHECK(host.used() == 0);
}

TEST_CASE("a late result of a dead lease does nothing to the one that has its place") {
  for (const bool fails : {false, true}) {
    Onboarding host;
    std::vector<StepEntry> late;
    std::uint32_t place = 0;
    {
      Lease lease = host.begin(tokens(13), 12);
      place = lease.index();
      late = host.take();
    }
    Lease lease = host.begin(tokens(13), 8);
    REQUIRE(lease.index() == place);
    for (const StepEntry& e : late) host.done(e, fails ? kFailed : Status());
    for (const StepEntry& e : late) CHECK(host.cache->complete({e, {}}).code() == StatusCode::kStale);
    CHECK(lease.committed_tokens() == 8);
    CHECK(host.found(tokens(13)) == 0);
    for (const StepEntry& e : host.take()) {
      CHECK(e.generation != late[0].generation);
      host.done(e);
    }
    CHECK(host.found(tokens(13)) == 8);
    REQUIRE(lease.release().ok());
    CHECK(host.settled());
  }
}

TEST_CASE("what a released lease was loading is still published when it is there") {
  Onboarding host;
  Lease lease = host.begin(tokens(13), 12);
  const auto loads = host.take();
  REQUIRE(loads.size() == 3);
  REQUIRE(lease.release().ok());
  CHECK_FALSE(lease.live());
  CHECK(host.balanced());
  host.done(loads[2]);
  host.done(loads[0]);
  host.done(loads[1]);
  CHECK(host.found(tokens(13)) == 12);
  CHECK(host.settled());
}

TEST_CASE("of what a released lease was loading, all before a failure is published") {
  Onboarding host;
  Lease lease = host.begin(tokens(13), 12);
  const auto loads = host.take();
  REQUIRE(lease.release().ok());
  host.done(loads[1], kFailed);
  host.done(loads[2]);
  host.done(loads[0]);
  CHECK(host.found(tokens(13)) == 4);
  CHECK(host.settled());
}

TEST_CASE("who needs the same prefix waits for blocks that are being onboarded") {
  Onboarding host;
  Lease owner = host.begin(tokens(17), 16), follower = host.acquire(tokens(17));
  Progress progress = follower.refresh();
  CHECK_FALSE(progress.must_compute);
  CHECK(progress.ready_tokens == 0);
  CHECK(progress.pending_tokens == 16);
  const auto loads = host.take();
  host.done(loads[0]);
  progress = follower.refresh();
  CHECK_FALSE(progress.must_compute);
  CHECK(progress.ready_tokens == 4);
  for (std::uint32_t b = 1; b < 4; ++b) host.done(loads[b]);
  progress = follower.refresh();
  CHECK(progress.must_compute);
  CHECK(progress.ready_tokens == 16);
  CHECK(host.cache->stats().duplicate_blocks == 0);
}

TEST_CASE("if a load fails and its lease gives up, the first to ask takes over") {
  Onboarding host;
  Lease owner = host.begin(tokens(17), 16);
  Lease a = host.acquire(tokens(17)), b = host.acquire(tokens(17));
  const auto loads = host.take();
  host.done(loads[0]);
  host.done(loads[1], kFailed);
  CHECK_FALSE(a.refresh().must_compute);  // the owner will compute it, or load it again
  REQUIRE(owner.abort().ok());
  CHECK(b.refresh().must_compute);
  CHECK(b.matched_tokens() == 4);
  CHECK_FALSE(a.refresh().must_compute);
  host.done(loads[2]);
  host.done(loads[3]);  // too late
  CHECK(host.found(tokens(17)) == 4);
  host.compute(b);
  CHECK(a.refresh().must_compute);
  CHECK(a.matched_tokens() == 16);
  CHECK(host.cache->stats().duplicate_blocks == 0);
  CHECK(host.balanced());
  REQUIRE(a.abort().ok());
  REQUIRE(b.release().ok());
  CHECK(host.settled());
}

TEST_CASE("of two that onboard the same the second goes on with the first one's slots") {
  Onboarding host;
  Lease a = host.begin(tokens(13), 12), b = host.begin(tokens(13), 12);
  const auto loads = host.take();
  REQUIRE(loads.size() == 6);
  for (const StepEntry& e : loads) host.done(e);
  CHECK(std::ranges::equal(a.table(0), b.table(0)));
  CHECK(host.cache->stats().inserted_blocks == 3);
  CHECK(host.cache->stats().duplicate_blocks == 3);
  host.end_step();
  CHECK(host.used() == 3);
  CHECK(host.balanced());
}

TEST_CASE("a branch of a lease whose loads are done shares what they loaded") {
  Onboarding host;
  Lease parent = host.begin(tokens(13), 12);
  const auto loads = host.take();
  CHECK(parent.fork().status().code() == StatusCode::kWrongState);  // the prompt is not committed
  host.compute(parent);
  CHECK(parent.fork().status().code() == StatusCode::kWrongState);  // loads are under way
  for (const StepEntry& e : loads) host.done(e);
  auto child = parent.fork();
  REQUIRE(child.ok());
  CHECK(std::ranges::equal(parent.table(0), child->table(0)));
  CHECK(host.balanced());
}

TEST_CASE("a sequence that was onboarded and cut while loads are under way keeps none of their slots") {
  Onboarding host;
  Lease lease = host.acquire(tokens(5));
  host.compute(lease);
  REQUIRE(lease.append(tokens(12, 5)).ok());
  REQUIRE(lease.truncate(5).ok());
  REQUIRE(lease.reserve(3).ok());
  REQUIRE(lease.append(tokens(12, 5)).ok());
  REQUIRE(lease.commit(3).ok());  // to a block's end
  REQUIRE(lease.onboard(8).ok());
  const auto loads = host.take();
  REQUIRE(loads.size() == 2);
  CHECK(lease.truncate(9).code() == StatusCode::kWrongState);  // inside a block that is being loaded
  REQUIRE(lease.truncate(12).ok());
  CHECK(lease.committed_tokens() == 12);
  CHECK(host.balanced());
  host.end_step();
  CHECK(host.holders(loads[1].slot) == 1);
  for (const StepEntry& e : loads) host.done(e);
  host.end_step();
  CHECK(host.used() == 3);
  CHECK(host.holders(loads[1].slot) == 0);
  CHECK(host.balanced());
  REQUIRE(lease.reserve(4).ok());
  REQUIRE(lease.append(tokens(4, 50)).ok());
  REQUIRE(lease.commit(4).ok());
  CHECK(host.found(tokens(12) + tokens(5, 50)) == 16);
  REQUIRE(lease.release().ok());
  CHECK(host.settled());
}

TEST_CASE("onboarding is all or none") {
  Onboarding host(small(3));
  Lease lease = host.acquire(tokens(16));
  CHECK(lease.onboard(12).ok());
  REQUIRE(lease.abort().ok());
  host.end_step();
  Lease holds = host.acquire(tokens(4, 500));
  host.compute(holds);
  lease = host.acquire(tokens(16));
  CHECK(lease.onboard(12).code() == StatusCode::kExhausted);
  CHECK(lease.committed_tokens() == 0);
  CHECK(host.take().empty());
  CHECK(host.used() == 1);
  CHECK(lease.onboard(8).ok());
  CHECK(host.take().size() == 2);
  CHECK(host.balanced());
}
