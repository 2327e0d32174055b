// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Bad input to the calls that branch, cut and onboard gets a status that says what is wrong, and nothing changes by it.
#include <array>
#include <bit>
#include <functional>
#include <initializer_list>

#include "cache_support.hpp"

using namespace kvstem;
using namespace kvstem::test;

namespace {

CacheOptions by_step() {
  CacheOptions options = small();
  options.fill = SlotFill::kByStep;
  return options;
}

/// All that can be seen of a cache and a lease without changing them.
struct Seen {
  Audit audit;
  std::array<std::uint64_t, sizeof(CacheStats) / 8> stats;
  std::vector<std::uint32_t> pool, cursors;
  std::vector<std::int32_t> table;
  friend bool operator==(const Seen&, const Seen&) = default;
};
Seen look(const Cache& cache, Lease& lease) {
  CacheStats stats = cache.stats();
  stats.refused_requests = 0;  // which is for that
  Seen seen{cache.audit(),
            std::bit_cast<decltype(Seen::stats)>(stats),
            {cache.pool().free_slots(), cache.pool().held_slots()},
            {lease.matched_tokens(), lease.known_tokens(), lease.reserved_tokens(), lease.committed_tokens(),
             lease.unstored_blocks(), lease.exclusive_slots(), lease.live()},
            {lease.table(0).begin(), lease.table(0).end()}};
  for (SlotId slot = 0; slot < cache.pool().capacity(); ++slot)
    seen.pool.push_back(cache.pool().holders(slot));
  return seen;
}

struct Strict : Host<> {
  using Host<>::Host;
  /// The call fails in this way, says why, and leaves everything as it was.
  void refuses(Lease& lease, StatusCode code, const std::function<Status()>& call) {
    const Seen before = look(*cache, lease);
    const Status status = call();
    CHECK(to_string(status.code()) == std::string(to_string(code)));
    CHECK(status.message() != std::string());
    CHECK((look(*cache, lease) == before));
    CHECK(cache->audit().balanced());
  }
  std::vector<StepEntry> take() {
    StepEntry room[32];
    const auto taken = cache->take_step(room);
    return {taken.begin(), taken.end()};
  }
};

Status accept(Lease& lease, std::initializer_list<std::uint32_t> offsets, Point after = kNow) {
  return lease.commit_accepted({offsets.begin(), offsets.size()}, after);
}

}  // namespace

TEST_CASE("a sequence is not truncated into its prompt or beyond what is known") {
  Strict host;
  Lease lease = host.acquire(tokens(10));
  host.compute(lease);
  REQUIRE(lease.append(tokens(5, 10)).ok());
  REQUIRE(lease.reserve(8).ok());
  for (const std::uint32_t n : {0u, 8u, 9u, 16u, 18u, 19u, ~0u})
    host.refuses(lease, StatusCode::kOutOfRange, [&] { return lease.truncate(n); });
  CHECK(host.take().empty());
  CHECK(lease.truncate(15).ok());
  CHECK(lease.truncate(10).ok());
}

TEST_CASE("a fork is not truncated below where it was forked, its parent may be") {
  Strict host;
  Lease parent = host.acquire(tokens(5));
  host.compute(parent);
  REQUIRE(parent.append(tokens(6, 5)).ok());
  host.compute(parent);
  auto child = parent.fork();
  REQUIRE(child.ok());
  REQUIRE(child->append(tokens(2, 50)).ok());
  for (const std::uint32_t n : {4u, 5u, 10u, 14u})
    host.refuses(*child, StatusCode::kOutOfRange, [&] { return child->truncate(n); });
  CHECK(child->truncate(12).ok());
  CHECK(child->truncate(11).ok());
  auto grandchild = child->fork();
  REQUIRE(grandchild.ok());
  host.refuses(*grandchild, StatusCode::kOutOfRange, [&] { return grandchild->truncate(10); });
  CHECK(parent.truncate(5).ok());
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("accepted tokens must be known, reserved and in ascending order") {
  Strict host;
  Lease lease = host.acquire(tokens(6));
  REQUIRE(lease.reserve(6).ok());
  REQUIRE(lease.commit(6).ok());
  REQUIRE(lease.reserve(6).ok());
  REQUIRE(lease.append(tokens(3, 6)).ok());
  using Code = StatusCode;
  host.refuses(lease, Code::kOutOfRange, [&] { return accept(lease, {0, 1, 2, 3}); });  // not known
  host.refuses(lease, Code::kOutOfRange, [&] { return accept(lease, {0, 6}); });        // not reserved
  host.refuses(lease, Code::kOutOfRange, [&] { return accept(lease, {~0u}); });
  host.refuses(lease, Code::kInvalidArgument, [&] { return accept(lease, {1, 0}); });
  host.refuses(lease, Code::kInvalidArgument, [&] { return accept(lease, {0, 0}); });
  host.refuses(lease, Code::kInvalidArgument, [&] { return accept(lease, {2, 4, 4}); });
  host.refuses(lease, Code::kOutOfRange, [&] { return accept(lease, {0}, {Cache::kMaxTimelines, 1}); });
  host.refuses(lease, Code::kOutOfRange, [&] { return lease.commit(7); });
  host.refuses(lease, Code::kOutOfRange, [&] { return lease.commit(4); });
  CHECK(host.take().empty());
  CHECK(accept(lease, {1, 3, 5}).ok());
}

TEST_CASE("a commit of accepted tokens beyond the timelines that can wait is refused as a commit is") {
  Strict host;
  Lease lease = host.acquire(tokens(30));
  REQUIRE(lease.reserve(30).ok());
  for (std::uint32_t i = 0; i < 8; ++i) REQUIRE(lease.commit(1, {i, 1}).ok());
  host.refuses(lease, StatusCode::kExhausted, [&] { return accept(lease, {1, 2}, {9, 1}); });
  CHECK(host.take().empty());
}

TEST_CASE("copies that nobody takes run out with a status, and there is room again when they are taken") {
  CacheOptions o = small(128);
  o.max_leases = 4;
  Strict host(o);
  std::vector<Lease> leases;
  bool full = false;
  for (TokenId i = 0; i < 4 && !full; ++i) {
    leases.push_back(host.acquire(tokens(4, 100 * i)));
    Lease& lease = leases.back();
    REQUIRE(lease.reserve(64).ok());
    REQUIRE(lease.commit(4).ok());
    REQUIRE(lease.append(tokens(59)).ok());
    while (!full && lease.committed_tokens() < 63) full = !accept(lease, {1}).ok();
  }
  REQUIRE(full);
  Lease& lease = leases.back();
  host.refuses(lease, StatusCode::kExhausted, [&] { return accept(lease, {1}); });
  CHECK(accept(lease, {0}).ok());  // which needs none
  const std::uint32_t copies = static_cast<std::uint32_t>(host.take().size());
  CHECK(copies > 0);
  CHECK(accept(lease, {1}).ok());
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("a lease that ended neither forks nor does anything else that is new") {
  Strict host;
  Lease ended = host.acquire(tokens(9));
  host.compute(ended);
  REQUIRE(ended.release().ok());
  Lease next = host.acquire(tokens(9));  // has its place
  host.compute(next);
  REQUIRE(next.index() == ended.index());
  using Code = StatusCode;
  for (Lease nobody; Lease* lease : {&ended, &nobody}) {
    host.refuses(next, Code::kStale, [&] { return lease->fork().status(); });
    host.refuses(next, Code::kStale, [&] { return lease->truncate(9); });
    host.refuses(next, Code::kStale, [&] { return accept(*lease, {0}); });
    host.refuses(next, Code::kStale, [&] { return lease->onboard(4); });
    CHECK(lease->exclusive_slots() == 0);
    CHECK(lease->delta().empty());
  }
}

TEST_CASE("a lease forks when its prompt is committed, not before") {
  Strict host;
  Lease lease = host.acquire(tokens(9));
  host.refuses(lease, StatusCode::kWrongState, [&] { return lease.fork().status(); });
  REQUIRE(lease.reserve(12).ok());
  host.refuses(lease, StatusCode::kWrongState, [&] { return lease.fork().status(); });
  REQUIRE(lease.commit(8).ok());
  host.refuses(lease, StatusCode::kWrongState, [&] { return lease.fork().status(); });
  REQUIRE(lease.commit(1, {0, 1}).ok());  // it need not be reached
  CHECK(lease.fork().ok());
}

TEST_CASE("a lease does not fork while its own entries are under way") {
  Strict host;
  Lease lease = host.acquire(tokens(9));
  host.compute(lease);
  auto first = lease.fork();
  REQUIRE(first.ok());
  REQUIRE(first->reserve(1).ok());
  const auto copies = host.take();
  REQUIRE(copies.size() == 1);
  host.refuses(*first, StatusCode::kWrongState, [&] { return first->fork().status(); });
  CHECK(lease.fork().ok());  // it is not its own
  REQUIRE(host.cache->complete({copies[0], {}}).ok());
  CHECK(first->fork().ok());
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("a fork without a lease or a slot left for it is refused and changes nothing") {
  CacheOptions o = small(5);
  o.max_leases = 2;
  Strict host(o);
  Lease lease = host.acquire(tokens(10));
  REQUIRE(lease.reserve(10).ok());
  REQUIRE(lease.commit(10).ok());
  {
    const Lease other = host.acquire(tokens(4, 500));
    host.refuses(lease, StatusCode::kExhausted, [&] { return lease.fork().status(); });
  }
  REQUIRE(lease.reserve(10).ok());  // all slots, ahead in its last block
  host.refuses(lease, StatusCode::kExhausted, [&] { return lease.fork().status(); });
  CHECK(host.take().empty());
  REQUIRE(lease.truncate(10).ok());
  CHECK(lease.fork().ok());  // needs no copy now
}

TEST_CASE("what is onboarded is whole blocks from a block's begin, with nothing reserved ahead") {
  Strict host;
  Lease lease = host.acquire(tokens(20));
  using Code = StatusCode;
  for (const std::uint32_t n : {1u, 3u, 6u, 19u})
    host.refuses(lease, Code::kInvalidArgument, [&] { return lease.onboard(n); });
  host.refuses(lease, Code::kOutOfRange, [&] { return lease.onboard(20); });  // with the last token
  host.refuses(lease, Code::kOutOfRange, [&] { return lease.onboard(24); });  // not known
  host.refuses(lease, Code::kOutOfRange, [&] { return lease.onboard(~0u - 3); });
  REQUIRE(lease.reserve(1).ok());
  host.refuses(lease, Code::kWrongState, [&] { return lease.onboard(4); });
  REQUIRE(lease.commit(1).ok());
  host.refuses(lease, Code::kWrongState, [&] { return lease.onboard(4); });  // inside a block
  REQUIRE(lease.reserve(3).ok());
  REQUIRE(lease.commit(3).ok());
  CHECK(lease.onboard(4).ok());
  CHECK(lease.committed_tokens() == 8);
  CHECK(host.take().size() == 1);
}

TEST_CASE("by step nothing is onboarded and no accepted tokens are moved") {
  Strict host(by_step());
  Lease lease = host.acquire(tokens(9));
  REQUIRE(lease.reserve(9).ok());
  host.refuses(lease, StatusCode::kUnsupported, [&] { return lease.onboard(4); });
  host.refuses(lease, StatusCode::kUnsupported, [&] { return accept(lease, {0, 1}); });
  CHECK(host.take().empty());
}

TEST_CASE("a result for an entry that is not under way is stale") {
  Strict host;
  Lease lease = host.acquire(tokens(17));
  REQUIRE(lease.onboard(12).ok());
  StepEntry one[1];
  REQUIRE(host.cache->take_step(one).size() == 1);
  const auto stale = [&](const char* what, const StepEntry& e) {
    INFO(what);
    for (const Status result : {Status(), Status(StatusCode::kCorrupt, "told to fail")})
      host.refuses(lease, StatusCode::kStale, [&] { return host.cache->complete({e, result}); });
  };
  stale("nothing", {});
  StepEntry wrong = one[0];
  wrong.block = 1;
  wrong.slot = static_cast<SlotId>(lease.table(0)[1]);
  stale("waits to be taken", wrong);
  for (const SlotId slot : {static_cast<SlotId>(lease.table(0)[1]), 15u, 16u, 1'000'000u, kNoSlot}) {
    wrong = one[0];
    wrong.slot = slot;
    stale("wrong slot", wrong);
  }
  for (const StepKind kind : {StepKind::kStore, StepKind::kCopy}) {
    wrong = one[0];
    wrong.kind = kind;
    stale("wrong kind", wrong);
  }
  REQUIRE(host.cache->complete({one[0], {}}).ok());
  stale("the second time", one[0]);
  CHECK(host.take().size() == 2);
}

TEST_CASE("a result that names another lease or block than its entry did is stale") {
  for (int mistake = 0; mistake < 5; ++mistake) {
    CAPTURE(mistake);
    Strict host;
    Lease lease = host.acquire(tokens(17)), other = host.acquire(tokens(17, 500));
    REQUIRE(lease.onboard(12).ok());
    REQUIRE(other.onboard(12).ok());
    const auto loads = host.take();
    REQUIRE(loads.size() == 6);
    StepEntry wrong = loads[0];
    switch (mistake) {
      case 0: wrong.block = 1; break;
      case 1: wrong.block = 1'000'000; break;
      case 2: ++wrong.generation; break;
      case 3: wrong.lease = loads[3].lease; break;
      case 4: wrong.lease = 1'000'000; break;
    }
    host.refuses(lease, StatusCode::kStale, [&] { return host.cache->complete({wrong, {}}); });
    for (const StepEntry& e : loads) CHECK(host.cache->complete({e, {}}).ok());
    CHECK(host.found(tokens(17)) == 12);
    CHECK(host.found(tokens(17, 500)) == 12);
  }
}

TEST_CASE("a result for a copy that is not under way is stale") {
  Strict host;
  Lease parent = host.acquire(tokens(10));
  host.compute(parent);
  auto child = parent.fork();
  REQUIRE(child.ok());
  REQUIRE(child->reserve(1).ok());
  StepEntry guess{.kind = StepKind::kCopy, .lease = child->index(), .generation = 1, .block = 2};
  guess.slot = static_cast<SlotId>(child->table(0)[2]);
  guess.from_slot = static_cast<SlotId>(parent.table(0)[2]);
  guess.tokens = 2;
  const auto refuses_all = [&](const StepEntry& e) {
    for (const Status result : {Status(), Status(StatusCode::kUnavailable, "told to fail")})
      host.refuses(*child, StatusCode::kStale, [&] { return host.cache->complete({e, result}); });
  };
  refuses_all(guess);  // never taken
  const auto copies = host.take();
  REQUIRE(copies.size() == 1);
  StepEntry wrong = copies[0];
  wrong.slot = wrong.from_slot;
  refuses_all(wrong);
  wrong = copies[0];
  wrong.from_slot = wrong.slot;
  refuses_all(wrong);
  wrong = copies[0];
  wrong.kind = StepKind::kLoad;
  refuses_all(wrong);
  REQUIRE(host.cache->complete({copies[0], {}}).ok());
  refuses_all(copies[0]);
}

TEST_CASE("by step a result for an entry that is not under way is stale") {
  Strict host(by_step());
  Lease lease = host.acquire(tokens(9));
  host.compute(lease);
  const auto stores = host.take();
  REQUIRE(stores.size() == 2);
  StepEntry wrong = stores[0];
  wrong.kind = StepKind::kLoad;
  host.refuses(lease, StatusCode::kStale, [&] { return host.cache->complete({wrong, {}}); });
  for (const StepEntry& e : stores) REQUIRE(host.cache->complete({e, {}}).ok());
  for (const StepEntry& e : stores)
    host.refuses(lease, StatusCode::kStale, [&] { return host.cache->complete({e, {}}); });
}

TEST_CASE("by step a result that names the slot of another entry is stale") {
  Strict host(by_step());
  Lease lease = host.acquire(tokens(9));
  host.compute(lease);
  const auto stores = host.take();
  REQUIRE(stores.size() == 2);
  StepEntry wrong = stores[0];
  wrong.slot = stores[1].slot;
  host.refuses(lease, StatusCode::kStale, [&] { return host.cache->complete({wrong, {}}); });
  for (const StepEntry& e : stores) CHECK(host.cache->complete({e, {}}).ok());
}

TEST_CASE("no room to take entries takes none") {
  Strict host;
  Lease lease = host.acquire(tokens(9));
  REQUIRE(lease.onboard(8).ok());
  CHECK(host.cache->take_step({}).empty());
  CHECK(host.take().size() == 2);
}

TEST_CASE("branches, cuts and loads take no memory after creation") {
  for (const SlotFill fill : {SlotFill::kInPlace, SlotFill::kByStep}) {
    std::uint64_t calls = 0;
    CacheOptions o = small(24);
    o.fill = fill;
    o.memory = {
        .allocate = [](void* user, std::size_t bytes, std::size_t alignment) -> void* {
          ++*static_cast<std::uint64_t*>(user);
          return heap_memory().allocate(nullptr, bytes, alignment);
        },
        .release = [](void*, void* p, std::size_t bytes) { heap_memory().release(nullptr, p, bytes); },
        .user = &calls};
    Strict host(o);
    const std::uint64_t before = calls;
    REQUIRE(before > 0);
    for (TokenId round = 0; round < 50; ++round) {
      Lease lease = host.acquire(tokens(9, 10 * (round % 7)));
      if (lease.matched_tokens() == 0 && fill == SlotFill::kInPlace) REQUIRE(lease.onboard(8).ok());
      const auto move = [&](bool ok) {
        for (const StepEntry& e : host.take())
          REQUIRE(host.cache->complete({e, ok ? Status() : Status(StatusCode::kUnavailable, "told to fail")})
                      .ok());
      };
      move(round % 5 != 1);
      host.compute(lease);
      move(true);
      auto child = lease.fork();
      REQUIRE(child.ok());
      for (Lease* branch : {&lease, &*child}) {
        REQUIRE(branch->reserve(6).ok());
        REQUIRE(branch->append(tokens(4, 20 * round)).ok());
        const Point after{0, host.step + 1};
        REQUIRE((fill == SlotFill::kInPlace ? accept(*branch, {0, 1, 3, 5}, after) : branch->commit(4, after))
                    .ok());
      }
      move(round % 5 != 2);
      REQUIRE(child->truncate(11).ok());
      host.end_step();
      REQUIRE(host.cache->reach({0, host.step}).ok());
      move(true);
      REQUIRE((round % 3 == 0 ? child->abort() : child->release()).ok());
      REQUIRE(lease.release().ok());
      host.end_step();
      REQUIRE(host.cache->audit().balanced());
    }
    CHECK(calls == before);
    CHECK(host.cache->stats().inserted_blocks > 0);
    CHECK(host.cache->stats().evicted_blocks > 0);
  }
}
