// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What a lease can do in a model with several groups: tables, quotes, branches; and a random walk of all of it.
#include <algorithm>
#include <array>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <random>
#include <set>

#include "cache_support.hpp"
#include "kvstem/cache/replay.hpp"

using namespace kvstem;
using namespace kvstem::test;

namespace {

using Row = std::vector<std::int32_t>;
using Groups = std::vector<KvGroup>;
using Verdict = ReserveQuote::Verdict;

constexpr KvGroup kFull{.bytes_per_token = 1};
constexpr KvGroup window(std::uint32_t tokens, std::uint32_t slots = 0) {
  return {.kind = GroupKind::kSlidingWindow, .window_tokens = tokens, .bytes_per_token = 1, .slots = slots};
}
constexpr KvGroup state(std::uint32_t slots = 0) {
  return {.kind = GroupKind::kStateCheckpoint, .bytes_per_token = 4, .slots = slots};
}

Row row(const Lease& lease, GroupId group) { return {lease.table(group).begin(), lease.table(group).end()}; }
Row padded(const Lease& lease, GroupId group) {
  return {lease.padded_table(group).begin(), lease.padded_table(group).end()};
}

Row first(Row row, std::size_t blocks) {
  row.resize(blocks);
  return row;
}

/// A host of several groups; the books are right after every call.
struct Grouped : Host<> {
  explicit Grouped(const Groups& groups, std::uint32_t slots = 32, bool null_slot = false)
      : Host<>(options(groups, slots, null_slot)) {}
  static CacheOptions options(const Groups& groups, std::uint32_t slots, bool null_slot) {
    CacheOptions o = small(slots);
    o.groups = groups;
    o.null_slot = null_slot;
    return o;
  }
  void balanced() { REQUIRE(cache->audit().balanced()); }
  Lease begin(const Tokens& prompt, const AcquireOptions& how = {}) {
    Lease lease = acquire(prompt, how);
    balanced();
    return lease;
  }
  Status reserve(Lease& lease, std::uint32_t n) {
    const Status status = lease.reserve(n);
    balanced();
    return status;
  }
  /// One step that computes up to `to`.
  void go(Lease& lease, std::uint32_t to, Point after = kNow) {
    REQUIRE(reserve(lease, std::max(to, lease.reserved_tokens()) - lease.reserved_tokens()).ok());
    move_all();
    REQUIRE(lease.commit(to - lease.committed_tokens(), after).ok());
    balanced();
    end_step();
  }
  void append(Lease& lease, std::uint32_t n, TokenId token) { REQUIRE(lease.append(Tokens(n, token)).ok()); }
  Lease fork(Lease& lease) {
    auto child = lease.fork();
    REQUIRE(child.ok());
    balanced();
    return std::move(*child);
  }
  void end(Lease& lease) {
    REQUIRE(lease.release().ok());
    balanced();
    end_step();
    balanced();
  }
  /// The group, block and tokens of each copy that waits, by group. They are done then.
  std::vector<std::array<std::uint32_t, 3>> copies() {
    StepEntry room[16];
    std::vector<std::array<std::uint32_t, 3>> seen;
    for (const StepEntry& e : cache->take_step(room)) {
      REQUIRE(e.kind == StepKind::kCopy);
      seen.push_back({e.group, e.block, e.tokens});
      REQUIRE(cache->complete({e, {}}).ok());
      balanced();
    }
    std::sort(seen.begin(), seen.end());
    return seen;
  }
};
using Copies = std::vector<std::array<std::uint32_t, 3>>;

}  // namespace

// ---- tables ----------------------------------------------------------------------------------------------------------

TEST_CASE("with a null slot, slot 0 is never given out and stands where there is none") {
  Grouped host({kFull, window(4, 5), state(4)}, 16, true);
  Lease lease = host.begin(tokens(17));
  CHECK(row(lease, 2) == Row{0, 0});
  for (const std::uint32_t to : {8u, 16u, 17u}) host.go(lease, to);
  const Row row0 = row(lease, 0), row1 = row(lease, 1);
  CHECK(std::count(row0.begin(), row0.end(), 0) == 0);
  CHECK(Row(row1.begin(), row1.begin() + 3) == Row(3, 0));
  CHECK(std::count(row1.begin() + 3, row1.end(), 0) == 0);
  CHECK(row(lease, 2)[0] > 0);
  CHECK(lease.quote(40).verdict == Verdict::kNever);  // four blocks are left of the window's pool, not five
  Lease other = host.begin(tokens(20, 1000));
  CHECK(other.quote(20).verdict == Verdict::kNever);
}

TEST_CASE("a padded row is null behind what is reserved") {
  const bool null_slot = GENERATE(false, true);
  Grouped host({kFull, window(4), {.bytes_per_token = 1, .block_tokens = 8}}, 32, null_slot);
  const std::int32_t null = null_slot ? 0 : -1;
  const auto right = [&](const Lease& lease) {
    for (GroupId g = 0; g < 3; ++g) {
      const Row all = padded(lease, g), now = row(lease, g);
      REQUIRE(all.size() == (g == 2 ? 8 : 16));
      CHECK(lease.padded_table(g).data() == lease.table(g).data());
      CHECK(std::count(all.begin() + static_cast<std::ptrdiff_t>(now.size()), all.end(), null) ==
            static_cast<std::ptrdiff_t>(all.size() - now.size()));
    }
  };
  Lease lease = host.begin(tokens(3));
  SECTION("of a lease that has nothing") { right(lease); }
  SECTION("of a lease that has reserved") {
    REQUIRE(host.reserve(lease, 20).ok());
    right(lease);
  }
  SECTION("of a lease that was cut") {
    host.go(lease, 3);
    REQUIRE(host.reserve(lease, 20).ok());
    REQUIRE(lease.truncate(3).ok());
    right(lease);
  }
  SECTION("of a lease that comes after a longer one") {
    REQUIRE(host.reserve(lease, 20).ok());
    REQUIRE(lease.abort().ok());
    const Lease next = host.begin(tokens(3));
    REQUIRE(next.index() == 0);
    right(next);
  }
}

TEST_CASE("one group with a null slot pads its rows too") {
  Grouped host({}, 16, true);
  Lease lease = host.begin(tokens(20));
  CHECK(padded(lease, 0) == Row(16, 0));
  REQUIRE(host.reserve(lease, 20).ok());
  CHECK(padded(lease, 0).size() == 16);
  CHECK(padded(lease, 0)[4] > 0);
  CHECK(padded(lease, 0)[5] == 0);
  REQUIRE(lease.abort().ok());
  const Lease next = host.begin(tokens(20));
  CHECK(padded(next, 0) == Row(16, 0));
}

TEST_CASE("each group says which entries of its row have changed") {
  Grouped host({kFull, window(4), state()});
  Lease lease = host.begin(tokens(9));
  CHECK(lease.delta(0).empty());
  CHECK(lease.delta(1).empty());
  REQUIRE(host.reserve(lease, 9).ok());
  CHECK(lease.delta(0) == BlockRange{0, 3});
  CHECK(lease.delta(1) == BlockRange{0, 3});
  CHECK(lease.delta(1).empty());
  CHECK(lease.delta(2) == BlockRange{0, 2});
  REQUIRE(lease.commit(9).ok());
  CHECK(lease.delta(0).empty());
  CHECK(lease.delta(1) == BlockRange{0, 1});  // behind the window
  host.append(lease, 4, 7);
  host.go(lease, 13);
  CHECK(lease.delta(0) == BlockRange{3, 4});
  CHECK(lease.delta(1) == BlockRange{1, 4});
}

TEST_CASE("what another has published first takes the place of one's own in every group") {
  Grouped host({kFull, window(8)});
  Lease a = host.begin(tokens(9)), b = host.begin(tokens(9));
  host.go(a, 9);
  REQUIRE(host.reserve(b, 9).ok());
  for (GroupId g = 0; g < 2; ++g) (void)b.delta(g);
  const Row before = row(b, 1);
  host.go(b, 9);
  for (GroupId g = 0; g < 2; ++g) {
    CHECK(first(row(b, g), 2) == first(row(a, g), 2));
    CHECK(row(b, g)[2] != row(a, g)[2]);
    CHECK(b.delta(g) == BlockRange{0, 2});
  }
  CHECK(row(b, 1) != before);
}

// ---- quotes and refusals ---------------------------------------------------------------------------------------------

TEST_CASE("a quote says what a reserve would do, and takes nothing") {
  Grouped host({kFull, window(8, 4), state(3)});
  const auto asked = [&](Lease& lease, std::uint32_t n) {
    const Audit before = host.cache->audit();
    const Row rows[] = {row(lease, 0), row(lease, 1), row(lease, 2)};
    const ReserveQuote q = lease.quote(n);
    const Audit after = host.cache->audit();
    CHECK(before.free == after.free);
    CHECK(before.holders == after.holders);
    for (GroupId g = 0; g < 3; ++g) CHECK(row(lease, g) == rows[g]);
    CHECK(lease.quote(n).verdict == q.verdict);
    host.balanced();
    return q;
  };
  SECTION("slots are free") {
    Lease lease = host.begin(tokens(20));
    const ReserveQuote q = asked(lease, 8);
    CHECK(q.verdict == Verdict::kFits);
    CHECK(q.slots == 5);
    CHECK(q.evicted == 0);
    CHECK(host.reserve(lease, 8).ok());
    CHECK(asked(lease, 0).slots == 0);
  }
  SECTION("they are to be had by evicting") {
    Lease first = host.begin(tokens(12));
    host.go(first, 12);
    host.end(first);
    Lease lease = host.begin(tokens(20, 1000));
    const ReserveQuote q = asked(lease, 12);
    CHECK(q.verdict == Verdict::kEvicts);
    CHECK(q.slots == 7);
    CHECK(q.evicted == 2);
    CHECK(host.cache->stats().evicted_shares == 0);
    CHECK(host.reserve(lease, 12).ok());
    CHECK(host.cache->stats().evicted_shares == 2);
    CHECK(host.cache->stats().evicted_blocks == 0);
  }
  SECTION("leases hold them") {
    Lease first = host.begin(tokens(12));
    REQUIRE(host.reserve(first, 12).ok());
    Lease lease = host.begin(tokens(20, 1000));
    CHECK(asked(lease, 8).verdict == Verdict::kLater);
    CHECK(host.reserve(lease, 8).code() == StatusCode::kExhausted);
    CHECK(asked(lease, 4).verdict == Verdict::kFits);
    REQUIRE(first.abort().ok());
    host.end_step();
    CHECK(asked(lease, 8).verdict == Verdict::kFits);
    CHECK(host.reserve(lease, 8).ok());
  }
  SECTION("there are not so many") {
    Lease lease = host.begin(tokens(20));
    CHECK(asked(lease, 17).verdict == Verdict::kNever);  // five blocks of a window that has four
    CHECK(host.reserve(lease, 17).code() == StatusCode::kOutOfRange);
    CHECK(asked(lease, 65).verdict == Verdict::kNever);  // CacheOptions::max_lease_tokens
    CHECK(host.reserve(lease, 65).code() == StatusCode::kOutOfRange);
    CHECK(host.reserve(lease, 16).ok());
  }
}

TEST_CASE("a reserve that is refused changes nothing in any pool") {
  Grouped host({kFull, window(8, 4), state(2)}, 5);
  Lease old = host.begin(tokens(12, 2000));
  host.go(old, 12);
  REQUIRE(old.release().ok());
  host.end_step();
  Lease holder = host.begin(tokens(3));
  host.go(holder, 3);
  host.append(holder, 1, 9);
  REQUIRE(host.reserve(holder, 1).ok());  // both slots for states
  Lease lease = host.begin(tokens(20, 1000));
  const Audit before = host.cache->audit();
  const std::uint64_t evicted = host.cache->stats().evicted_shares;  // by the holder
  CHECK(lease.quote(12).verdict == Verdict::kLater);
  CHECK(host.reserve(lease, 12).code() == StatusCode::kExhausted);
  const Audit after = host.cache->audit();
  CHECK(before.free == after.free);
  CHECK(before.tree_slots == after.tree_slots);
  CHECK(before.holders == after.holders);
  CHECK(host.cache->stats().evicted_blocks == 0);
  CHECK(host.cache->stats().evicted_shares == evicted);
  CHECK(lease.reserved_tokens() == 0);
  for (GroupId g = 0; g < 2; ++g) CHECK(row(lease, g).empty());
  CHECK(row(lease, 2) == Row{-1, -1});
  REQUIRE(holder.abort().ok());
  host.end_step();
  CHECK(host.reserve(lease, 12).ok());
}

TEST_CASE("a lease whose reserve was refused goes on with what it was told of, and publishes") {
  const bool with_full = GENERATE(false, true), tight = GENERATE(false, true);
  Grouped host(with_full ? Groups{kFull, state(2)} : Groups{state(2)}, tight ? 5 : 32);
  Lease old = host.begin(tokens(12));
  host.go(old, 12);
  host.end(old);
  Lease holder = host.begin(tokens(1, 1000));
  host.go(holder, 1);
  host.append(holder, 1, 9);
  REQUIRE(host.reserve(holder, 1).ok());  // both slots for states
  Lease lease = host.begin(tokens(12));
  CHECK(lease.matched_tokens() == 0);
  CHECK(lease.missed_tokens() == 8);  // the blocks are there, without a state
  REQUIRE(lease.refresh().must_compute);
  // To give up those blocks would make room in their own pool, but not where it is wanted.
  CHECK(lease.quote(8).verdict == Verdict::kLater);
  CHECK(host.reserve(lease, 8).code() == StatusCode::kExhausted);
  REQUIRE(holder.abort().ok());
  host.end_step();
  host.go(lease, 8);
  host.go(lease, 12);
  host.end(lease);
  CHECK(host.begin(tokens(12)).matched_tokens() == 8);
}

TEST_CASE("what a lease cannot use makes room for it in every pool, and its quote says so") {
  Grouped host({kFull, {.bytes_per_token = 1, .slots = 3}, state(4)});
  Lease old = host.begin(tokens(12));
  host.go(old, 12);
  host.end(old);
  Lease lease = host.begin(tokens(12));
  CHECK(lease.matched_tokens() == 0);
  CHECK(lease.missed_tokens() == 8);
  const ReserveQuote q = lease.quote(12);
  CHECK(q.verdict == Verdict::kEvicts);
  CHECK(q.evicted == 3);
  CHECK(host.reserve(lease, 12).ok());
  CHECK(host.cache->stats().evicted_blocks == 3);
}

TEST_CASE("what a lease cannot use makes room also where something that nobody holds goes on from it") {
  Grouped host({kFull, state(8)}, 4);
  Lease old = host.begin(tokens(16));
  host.go(old, 16);
  host.end(old);
  Lease lease = host.begin(
      tokens(12));  // its blocks are there, but no state at their end; and a fourth one behind them
  REQUIRE(lease.matched_tokens() < 12);
  REQUIRE(lease.refresh().must_compute);
  const std::uint32_t rest = 12 - lease.matched_tokens();
  CHECK(lease.quote(rest).verdict == Verdict::kEvicts);
  CHECK(host.reserve(lease, rest).ok());
}

TEST_CASE("what a lease let go of in the open step counts for no quote") {
  SECTION("a state that was read and is published") {
    Grouped host({kFull, state(3)});
    Lease a = host.begin(tokens(9));
    host.go(a, 8);
    REQUIRE(host.reserve(a, 1).ok());
    REQUIRE(a.commit(1).ok());  // reads another state from now on
    Lease b = host.begin(tokens(3, 1000)), c = host.begin(tokens(3, 2000));
    REQUIRE(host.reserve(b, 3).ok());
    CHECK(c.quote(3).verdict == Verdict::kLater);
    CHECK(host.reserve(c, 3).code() == StatusCode::kExhausted);
    CHECK(host.cache->stats().evicted_shares == 0);
    host.end_step();
    CHECK(host.reserve(c, 3).ok());
  }
  SECTION("a published block that was copied") {
    Grouped host({}, 4);
    Lease a = host.begin(tokens(2));
    host.go(a, 2);
    host.append(a, 3, 50);
    host.go(a, 5);
    REQUIRE(a.truncate(3).ok());
    host.end_step();
    REQUIRE(host.reserve(a, 1).ok());
    host.move_all();
    Lease c = host.begin(tokens(12, 1000));
    CHECK(c.quote(12).verdict == Verdict::kLater);
    CHECK(host.reserve(c, 12).code() == StatusCode::kExhausted);
    CHECK(host.cache->stats().evicted_blocks == 0);
    host.end_step();
    CHECK(host.reserve(c, 12).ok());
  }
}

TEST_CASE("what the end of a lease would free is counted in all groups") {
  Grouped host({kFull, window(100), state()});
  Lease lease = host.begin(tokens(10), {.publish = false});
  CHECK(lease.exclusive_slots() == 0);
  REQUIRE(host.reserve(lease, 10).ok());
  CHECK(lease.exclusive_slots() == 7);
  REQUIRE(lease.commit(10).ok());
  CHECK(lease.exclusive_slots() == 7);
  Lease child = host.fork(lease);
  CHECK(lease.exclusive_slots() == 0);
  REQUIRE(child.abort().ok());
  CHECK(lease.exclusive_slots() == 7);
}

// ---- branches --------------------------------------------------------------------------------------------------------

TEST_CASE("after a fork the last block of each group is copied by whoever writes it first") {
  Grouped host({kFull, window(6), {.bytes_per_token = 1, .block_tokens = 8}});
  Lease parent = host.begin(tokens(10));
  host.go(parent, 10);
  Lease child = host.fork(parent);
  for (GroupId g = 0; g < 3; ++g) CHECK(row(parent, g) == row(child, g));
  CHECK(host.copies().empty());
  host.append(child, 1, 50);
  REQUIRE(host.reserve(child, 1).ok());
  CHECK(host.copies() == Copies{{0, 2, 2}, {1, 2, 2}, {2, 1, 2}});
  for (GroupId g = 0; g < 3; ++g) {
    CHECK(row(parent, g).back() != row(child, g).back());
    CHECK(row(parent, g)[0] == row(child, g)[0]);
  }
  // Nobody shares the parent's with it any more.
  host.append(parent, 1, 60);
  REQUIRE(host.reserve(parent, 1).ok());
  CHECK(host.copies().empty());
}

TEST_CASE("only groups whose last block is partly filled copy it") {
  Grouped host({kFull, {.bytes_per_token = 1, .block_tokens = 8}});
  Lease parent = host.begin(tokens(4));
  host.go(parent, 4);
  Lease child = host.fork(parent);
  host.append(child, 1, 50);
  REQUIRE(host.reserve(child, 1).ok());
  CHECK(host.copies() == Copies{{1, 0, 4}});
}

TEST_CASE("copies of a lease that has ended are not handed out") {
  const std::uint32_t n = GENERATE(4u, 6u);  // the first: in the larger blocks only
  Grouped host({kFull, {.bytes_per_token = 1, .block_tokens = 8}});
  Lease parent = host.begin(tokens(n));
  host.go(parent, n);
  Lease child = host.fork(parent);
  host.append(child, 1, 50);
  REQUIRE(host.reserve(child, 1).ok());
  REQUIRE(child.abort().ok());
  host.balanced();
  CHECK(host.copies().empty());
}

TEST_CASE("a fork of a lease that has reserved ahead is given its copies at once") {
  Grouped host({kFull, window(6)});
  Lease parent = host.begin(tokens(10));
  REQUIRE(host.reserve(parent, 14).ok());
  host.go(parent, 10);
  const Row before[] = {row(parent, 0), row(parent, 1)};
  Lease child = host.fork(parent);
  for (GroupId g = 0; g < 2; ++g) {
    CHECK(row(parent, g) == before[g]);
    CHECK(row(child, g).size() == 3);
    CHECK(row(child, g)[2] != before[g][2]);
  }
  CHECK(host.copies() == Copies{{0, 2, 2}, {1, 2, 2}});
}

TEST_CASE("a fork without room for all its copies takes none") {
  Grouped host({kFull, window(6, 4)});
  Lease parent = host.begin(tokens(10));
  REQUIRE(host.reserve(parent, 16).ok());
  REQUIRE(parent.commit(10).ok());
  const Audit before = host.cache->audit();
  CHECK(parent.fork().status().code() == StatusCode::kExhausted);
  host.balanced();
  CHECK(host.cache->audit().holders == before.holders);
  CHECK(host.copies().empty());
}

TEST_CASE("a fork keeps its window when its parent goes on") {
  Grouped host({kFull, window(4)});
  Lease parent = host.begin(tokens(9));
  host.go(parent, 9);
  Lease child = host.fork(parent);
  const Row before = row(child, 1);
  host.append(parent, 20, 7);
  for (std::uint32_t to = 10; to <= 29; ++to) host.go(parent, to);
  CHECK(row(child, 1) == before);
  host.end(parent);
  CHECK(row(child, 1) == before);
  host.append(child, 1, 8);
  host.go(child, 10);
}

TEST_CASE("a lease is cut as far back as its windows reach") {
  Grouped host({kFull, window(6)});
  Lease lease = host.begin(tokens(8));
  host.go(lease, 8);
  host.append(lease, 12, 7);
  for (std::uint32_t to = 9; to <= 20; ++to) host.go(lease, to);
  REQUIRE(row(lease, 1)[3] >= 0);
  REQUIRE(row(lease, 1)[2] == -1);
  const Row before = row(lease, 1);
  CHECK(lease.truncate(17).code() == StatusCode::kWrongState);
  CHECK(row(lease, 1) == before);
  CHECK(lease.committed_tokens() == 20);
  host.balanced();
  CHECK(lease.truncate(18).ok());
  host.balanced();
  CHECK(lease.committed_tokens() == 18);
  CHECK(row(lease, 0).size() == 5);
  CHECK(row(lease, 1).size() == 5);
  // Block 4 is published in both groups, so it is copied before it is written.
  host.append(lease, 1, 8);
  REQUIRE(host.reserve(lease, 1).ok());
  CHECK(host.copies() == Copies{{0, 4, 2}, {1, 4, 2}});
}

TEST_CASE("with states a lease gives back only what was not committed") {
  Grouped host({kFull, state()});
  Lease lease = host.begin(tokens(6));
  host.go(lease, 6);
  host.append(lease, 6, 7);
  REQUIRE(host.reserve(lease, 6).ok());
  REQUIRE(lease.commit(2).ok());
  const Row before = row(lease, 1);
  CHECK(lease.truncate(7).code() == StatusCode::kWrongState);
  CHECK(lease.truncate(9).ok());
  host.balanced();
  CHECK(lease.known_tokens() == 9);
  CHECK(lease.truncate(8).ok());
  host.balanced();
  CHECK(row(lease, 1)[0] == before[0]);
}

TEST_CASE("accepted drafts are moved in every group that lies by position") {
  Grouped host({kFull, window(6), {.bytes_per_token = 1, .block_tokens = 8}});
  Lease lease = host.begin(tokens(6));
  host.go(lease, 6);
  REQUIRE(host.reserve(lease, 6).ok());
  host.append(lease, 2, 7);
  const std::array<std::uint32_t, 2> offsets{1, 4};
  REQUIRE(lease.commit_accepted(offsets).ok());
  host.balanced();
  // Position 7 moves to 6, and 10 to 7: in blocks of four the latter comes from the next block.
  CHECK(host.copies() == Copies{{0, 1, 1}, {0, 1, 1}, {1, 1, 1}, {1, 1, 1}, {2, 0, 1}, {2, 0, 1}});
  CHECK(lease.committed_tokens() == 8);
  host.append(lease, 1, 8);
  host.go(lease, 9);
  const Tokens all = tokens(6) + Tokens{7, 7};
  host.end(lease);
  Lease next = host.begin(all + Tokens{1});
  CHECK(next.matched_tokens() == 8);
}

TEST_CASE("a copy that fails ends a lease of several groups, and no other") {
  Grouped host({kFull, window(6)});
  Lease parent = host.begin(tokens(10));
  host.go(parent, 10);
  Lease child = host.fork(parent);
  host.append(child, 1, 50);
  REQUIRE(host.reserve(child, 1).ok());
  StepEntry room[4];
  const auto taken = host.cache->take_step(room);
  REQUIRE(taken.size() == 2);
  CHECK(host.cache->complete({taken[1], {StatusCode::kUnavailable, "injected"}}).ok());
  host.balanced();
  CHECK_FALSE(child.live());
  CHECK(host.cache->complete({taken[0], {}}).ok());
  host.balanced();
  CHECK(parent.live());
  host.append(parent, 1, 60);
  host.go(parent, 11);
  host.end(parent);
  CHECK(host.cache->audit().free + host.cache->audit().tree_slots == 32);
}

// ---- memory and the flight log ---------------------------------------------------------------------------------------

namespace {

/// Counts, and fails at a call of one's choice.
struct Counting {
  std::map<void*, std::size_t> out;
  std::uint64_t calls = 0, fail_at = 0;
  Memory memory() {
    return {.allocate = [](void* user, std::size_t bytes, std::size_t alignment) -> void* {
              auto& self = *static_cast<Counting*>(user);
              if (++self.calls == self.fail_at) return nullptr;
              void* p = heap_memory().allocate(nullptr, bytes, alignment);
              self.out[p] = bytes;
              return p;
            },
            .release =
                [](void* user, void* p, std::size_t bytes) {
                  auto& self = *static_cast<Counting*>(user);
                  self.out.erase(p);
                  heap_memory().release(nullptr, p, bytes);
                },
            .user = this};
  }
};

}  // namespace

TEST_CASE("groups take their memory at creation, or none") {
  const Groups groups{kFull, window(6, 12), state(8), {.bytes_per_token = 1, .block_tokens = 8}};
  for (std::uint64_t n = 0;; ++n) {
    Counting counting;
    counting.fail_at = n;
    CacheOptions o = Grouped::options(groups, 16, false);
    o.memory = counting.memory();
    if (n > 0) {
      const auto made = Cache::create(o);
      if (!made.ok()) {
        REQUIRE(made.status().code() == StatusCode::kExhausted);
        REQUIRE(counting.out.empty());
        continue;
      }
    }
    counting.fail_at = 0;
    {
      Host<> host(o);
      const std::uint64_t calls = counting.calls;
      for (TokenId round = 0; round < 40; ++round) {
        Lease lease = host.acquire(tokens(5 + static_cast<std::uint32_t>(round % 9), round % 4 * 100));
        (void)lease.quote(10);
        host.compute(lease);
        auto child = lease.fork();
        REQUIRE(child.ok());
        REQUIRE(child->append(tokens(1)).ok());
        (void)child->reserve(1);
        host.move_all();
        REQUIRE(child->abort().ok());
        REQUIRE(lease.release().ok());
        host.end_step();
      }
      CHECK(counting.calls == calls);
      CHECK(host.cache->stats().evicted_blocks + host.cache->stats().evicted_shares > 0);
    }
    CHECK(counting.out.empty());
    if (n > 0) {
      CHECK(n > 30);
      break;
    }
  }
}

TEST_CASE("a flight log tells the groups of entries") {
  std::vector<std::byte> logs[2];
  const auto into = [](std::vector<std::byte>& log) {
    return FlightSink{[](void* user, std::span<const std::byte> bytes) {
                        auto& out = *static_cast<std::vector<std::byte>*>(user);
                        out.insert(out.end(), bytes.begin(), bytes.end());
                      },
                      &log};
  };
  const Groups groups{kFull, window(6)};
  CacheOptions o = Grouped::options(groups, 16, false);
  o.max_changes = 0;
  o.flight_log = into(logs[0]);
  Host<> host(o);
  Lease parent = host.acquire(tokens(6));
  host.compute(parent);
  auto child = parent.fork();
  REQUIRE(child.ok());
  REQUIRE(child->append(tokens(1)).ok());
  REQUIRE(child->reserve(1).ok());
  host.move_all();
  CHECK(child->fork().ok());  // nothing is under way
  o.mode = IndexMode::kNothing;
  o.flight_log = into(logs[1]);
  auto again = Cache::create(o);
  REQUIRE(again.ok());
  CHECK(replay(logs[0], **again).ok());
  const bool same = logs[0] == logs[1];
  CHECK(same);
}

// ---- a random walk -----------------------------------------------------------------------------------------------------
//
// A device that carries out what was launched at the end of the step. A position's state is a digest of the group and of
// all tokens up to it, so whoever reads a wrong slot, or one too early or too late, is found out. A slot is poisoned when
// it is handed out. `later` is what the pools will hold when all that was launched is done.

namespace {

constexpr std::uint32_t kWalkBlock = 4, kWalkTokens = 56, kWalkLeases = 6;
constexpr std::uint64_t kPoison = ~std::uint64_t{0};
constexpr std::uint64_t kFirstSeed = 1, kSeeds = 4;
constexpr std::uint32_t kOperations = 5000;  // of each seed

enum Act : std::uint8_t {
  kAcquire,
  kRefresh,
  kReserve,
  kPrefill,
  kDecode,
  kAccept,
  kFork,
  kTruncate,
  kTake,
  kReach,
  kRelease,
  kAbort,
  kEndStep,
  kActs
};
constexpr const char* kActNames[kActs] = {"acquire", "refresh", "reserve",  "prefill", "decode",
                                          "accept",  "fork",    "truncate", "take",    "reach",
                                          "release", "abort",   "end step"};

struct Happened {
  std::array<std::uint64_t, kActs> acts{};
  std::uint64_t matched = 0, missed_state = 0, refused = 0, blocks_evicted = 0, shares_evicted = 0;
  std::uint64_t copies = 0, copies_failed = 0, lengthened = 0, reads = 0, duplicates = 0,
                waiting_at_release = 0;
};

constexpr std::pair<const char*, std::uint64_t Happened::*> kCounts[] = {
    {"matched", &Happened::matched},
    {"states missed", &Happened::missed_state},
    {"refused", &Happened::refused},
    {"blocks evicted", &Happened::blocks_evicted},
    {"shares evicted", &Happened::shares_evicted},
    {"copies", &Happened::copies},
    {"copies failed", &Happened::copies_failed},
    {"matches lengthened", &Happened::lengthened},
    {"duplicates", &Happened::duplicates},
    {"released before their points", &Happened::waiting_at_release},
    {"reads", &Happened::reads}};

struct WalkCase {
  const char* name;
  std::vector<KvGroup> groups;
  std::uint32_t slots;
  bool null_slot = false;
  [[nodiscard]] bool has(GroupKind kind) const {
    for (const KvGroup& g : groups)
      if (g.kind == kind) return true;
    return false;
  }
  [[nodiscard]] bool trails() const {
    for (const KvGroup& g : groups)
      if (g.lag_tokens > 0) return true;
    return false;
  }
};

#define MUST(...)                                                                                      \
  do {                                                                                                 \
    if (!(__VA_ARGS__))                                                                                \
      FAIL(case_.name << ", seed " << seed_ << ", operation " << operation_ << " (" << kActNames[act_] \
                      << ", line " << __LINE__ << "): " #__VA_ARGS__);                                 \
  } while (false)

class GroupWalk {
 public:
  GroupWalk(const WalkCase& of, std::uint64_t seed, Happened& happened)
      : case_(of), seed_(seed), random_(seed), happened_(happened) {
    CacheOptions o{.block_tokens = kWalkBlock,
                   .slots = of.slots,
                   .max_leases = kWalkLeases,
                   .max_lease_tokens = kWalkTokens,
                   .groups = of.groups,
                   .null_slot = of.null_slot};
    o.flight_log = into(log_);
    options_ = o;
    auto made = Cache::create(o);
    MUST(made.ok());
    cache_ = std::move(*made);
    scope_ = *cache_->open_scope({.model = "m", .vocab_size = 1000});
    null_ = of.null_slot ? 0 : -1;
    now_.resize(of.groups.size());
    later_.resize(of.groups.size());
  }

  void run(std::uint32_t operations) {
    constexpr std::uint32_t kWeights[kActs] = {14, 4, 5, 20, 20, 6, 6, 5, 6, 8, 8, 3, 14};
    std::uint32_t sum = 0;
    for (const std::uint32_t w : kWeights) sum += w;
    for (operation_ = 0; operation_ < operations; ++operation_) {
      std::uint32_t pick = below(sum), act = 0;
      while (pick >= kWeights[act]) pick -= kWeights[act++];
      act_ = static_cast<Act>(act);
      happened_.acts[act] += apply(act_);
      check();
    }
    for (Request& r : requests_)
      if (r.live) end(r, false);
    reach(launched_);
    take(1000);
    complete_all();
    end_step();
    act_ = kEndStep;
    MUST(cache_->audit().balanced() && cache_->audit().lease_pins == 0 && cache_->audit().held == 0);
    MUST(cache_->audit().used == cache_->audit().tree_slots + cache_->audit().group_slots);
    std::vector<std::byte> again;
    options_.replayed = options_.mode;
    options_.mode = IndexMode::kNothing;
    options_.flight_log = into(again);
    auto replayed = Cache::create(options_);
    MUST(replayed.ok());
    MUST(replay(log_, **replayed).ok() && again == log_ && (*replayed)->audit().balanced());
    happened_.blocks_evicted += cache_->stats().evicted_blocks;
    happened_.shares_evicted += cache_->stats().evicted_shares;
    happened_.duplicates += cache_->stats().duplicate_blocks;
  }

 private:
  using Digest = std::uint64_t;
  struct Request {
    Lease lease;
    bool live = false, shared = true, started = false, copying = false;
    bool committed_since = false;  // it reserved: its rows of states are those of that step
    Tokens tokens;
    std::vector<Digest> digests;  // of the first n tokens
    std::uint32_t prompt = 0, valid = 0, committed = 0, reserved = 0;
    std::map<GroupId, std::vector<std::int32_t>> copied_rows;  // kept by `delta`
    std::vector<std::uint32_t> done;  // by group: positions whose state is there, or launched
    std::vector<std::pair<std::uint32_t, std::uint64_t>> waits;  // committed up to, once that is reached
  };
  /// Of the device's queue: a check, a write or a copy of one cell.
  struct Work {
    enum : std::uint8_t { kRead, kWrite, kCopy } kind;
    GroupId pool;
    std::uint32_t slot, cell;
    std::uint64_t value;  // of a copy: from where
  };
  using Cells = std::map<std::uint64_t, Digest>;

  static FlightSink into(std::vector<std::byte>& log) {
    return {[](void* user, std::span<const std::byte> bytes) {
              auto& out = *static_cast<std::vector<std::byte>*>(user);
              out.insert(out.end(), bytes.begin(), bytes.end());
            },
            &log};
  }
  std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }
  [[nodiscard]] GroupId pool(GroupId g) const {
    while (case_.groups[g].with != kNoGroup) g = case_.groups[g].with;
    return g;
  }
  [[nodiscard]] bool state(GroupId g) const { return case_.groups[g].kind == GroupKind::kStateCheckpoint; }
  [[nodiscard]] std::uint32_t block(GroupId g) const {
    return case_.groups[g].block_tokens == 0 ? kWalkBlock : case_.groups[g].block_tokens;
  }
  [[nodiscard]] std::uint32_t first_seen(GroupId g, std::uint32_t at) const {
    const std::uint32_t window = case_.groups[g].window_tokens;
    return window != 0 && at > window ? at - window : 0;
  }
  static std::uint64_t cell(std::uint32_t slot, std::uint32_t i) { return std::uint64_t{slot} * 64 + i; }
  static Digest of_group(GroupId g, Digest d) { return d * 31 + g; }
  void digest(Request& r) {
    r.digests.resize(1, 1);
    for (std::uint32_t i = 0; i < r.tokens.size(); ++i)
      r.digests.push_back((r.digests[i] ^ static_cast<Digest>(r.tokens[i] + 7)) * 0x9e3779b97f4a7c15ull +
                          0x1234567);
  }
  Request* any(bool (*fits)(const Request&)) {
    std::vector<Request*> fit;
    for (Request& r : requests_)
      if (r.live && fits(r)) fit.push_back(&r);
    return fit.empty() ? nullptr : fit[below(static_cast<std::uint32_t>(fit.size()))];
  }
  static bool all(const Request&) { return true; }

  bool apply(Act act) {
    switch (act) {
      case kAcquire: return acquire();
      case kRefresh: {
        Request* r = any([](const Request& q) { return !q.started; });
        return r != nullptr && refresh(*r);
      }
      case kReserve: {
        Request* r = any(all);
        return r != nullptr && reserve(*r, below(9));
      }
      case kPrefill: {
        Request* r = any([](const Request& q) { return q.committed < q.tokens.size(); });
        return r != nullptr && compute(*r);
      }
      case kDecode: {
        Request* r = any(
            [](const Request& q) { return q.committed == q.tokens.size() && q.tokens.size() < kWalkTokens; });
        if (r == nullptr) return false;
        append(*r, 1 + (below(4) == 0 ? below(4) : 0));
        return compute(*r);
      }
      case kAccept: return accept();
      case kFork: {
        Request* r = any([](const Request& q) { return q.committed >= q.prompt; });
        return r != nullptr && fork(*r);
      }
      case kTruncate: {
        Request* r = any([](const Request& q) { return q.tokens.size() > q.prompt; });
        return r != nullptr && truncate(*r);
      }
      case kTake: return below(3) == 0 ? complete_all() : take(1 + below(6));
      case kReach:
        return reached_ < launched_ &&
               reach(reached_ + 1 + below(static_cast<std::uint32_t>(launched_ - reached_)));
      case kRelease: {
        Request* r = any([](const Request& q) { return q.committed >= q.prompt; });
        return r != nullptr && end(*r, false);
      }
      case kAbort: {
        Request* r = any(all);
        return r != nullptr && end(*r, true);
      }
      case kEndStep: return end_step();
      case kActs: break;
    }
    return false;
  }

  bool acquire() {
    Request* free = nullptr;
    for (Request& r : requests_)
      if (!r.live) free = &r;
    if (free == nullptr) return false;
    Tokens prompt;
    if (!texts_.empty() && below(6) != 0) {
      prompt = texts_[below(static_cast<std::uint32_t>(texts_.size()))];
      if (below(3) != 0) prompt.resize(1 + below(static_cast<std::uint32_t>(prompt.size())));
    }
    for (std::uint32_t n = prompt.empty() ? 20 : below(8); n > 0 && prompt.size() < kWalkTokens - 6; --n)
      prompt.push_back(static_cast<TokenId>(below(3)));
    if (prompt.empty()) prompt.push_back(1);
    const AcquireOptions how{.reuse = below(30) != 0, .publish = below(20) != 0};
    auto lease = cache_->acquire({.scope = scope_, .tokens = prompt}, how);
    if (!lease.ok()) {
      MUST(lease.status().code() == StatusCode::kExhausted);
      return false;
    }
    Request& r = *free;
    r = {};
    r.lease = std::move(*lease);
    r.live = true;
    r.shared = how.reuse && how.publish;
    r.tokens = prompt;
    r.prompt = static_cast<std::uint32_t>(prompt.size());
    digest(r);
    matched(r);
    return true;
  }
  void matched(Request& r) {
    const std::uint32_t m = r.lease.matched_tokens();
    MUST(m % kWalkBlock == 0 && m < r.prompt && r.lease.missed_tokens() >= m);
    MUST(m == 0 || valid_.count(r.digests[m]) != 0);
    r.valid = r.committed = r.reserved = m;
    r.done.assign(case_.groups.size(), m);
    for (GroupId g = 0; g < case_.groups.size(); ++g) {
      const std::uint32_t lag = case_.groups[g].lag_tokens;
      if (lag > 0) r.done[g] = (m > lag ? m - lag : 0) / block(g) * block(g);
    }
    happened_.matched += m > 0;
    happened_.missed_state += r.lease.missed_tokens() > m;
  }
  bool refresh(Request& r) {
    const std::uint32_t before = r.committed;
    const Progress p = r.lease.refresh();
    MUST(p.ready_tokens >= before && p.ready_tokens == r.lease.committed_tokens());
    matched(r);
    happened_.lengthened += r.committed > before;
    return true;
  }

  void append(Request& r, std::uint32_t n) {
    for (; n > 0 && r.tokens.size() < kWalkTokens; --n) {
      const auto token = static_cast<TokenId>(below(2));
      MUST(r.lease.append({&token, 1}).ok());
      r.tokens.push_back(token);
    }
    digest(r);
  }

  std::vector<std::vector<std::int32_t>> rows(const Request& r) const {
    std::vector<std::vector<std::int32_t>> rows;
    for (GroupId g = 0; g < case_.groups.size(); ++g) {
      const auto row = r.lease.table(g);
      rows.emplace_back(row.begin(), row.end());
    }
    return rows;
  }
  void poison(GroupId g, std::int32_t slot) {
    MUST(slot > null_ && static_cast<std::uint32_t>(slot) < case_.slots);
    for (std::uint32_t i = 0; i < 16; ++i)
      now_[pool(g)][cell(static_cast<std::uint32_t>(slot), i)] =
          later_[pool(g)][cell(static_cast<std::uint32_t>(slot), i)] = kPoison;
  }
  /// What was handed out since the rows were `before`.
  void handed_out(Request& r, const std::vector<std::vector<std::int32_t>>& before) {
    for (GroupId g = 0; g < case_.groups.size(); ++g) {
      const auto row = r.lease.table(g);
      if (state(g)) {
        MUST(before[g].empty() || r.committed_since || row[0] == before[g][0]);
        const bool swapped = r.committed_since && row[1] == before[g][0];  // its own, and read by no other
        if (row[1] != null_ && (before[g].empty() || row[1] != before[g][1]) && !swapped) poison(g, row[1]);
        continue;
      }
      for (std::uint32_t b = 0; b < row.size(); ++b) {
        if (b < before[g].size() && row[b] == before[g][b]) continue;
        MUST(b >= before[g].size() || b == r.reserved / block(g));  // only the last one is copied
        r.copying = r.copying || b < before[g].size();
        poison(g, row[b]);
      }
    }
  }
  bool reserve(Request& r, std::uint32_t n) {
    const auto before = rows(r);
    const CacheStats s = cache_->stats();
    const Audit a = cache_->audit();
    const ReserveQuote q = r.lease.quote(n);
    const Status status = r.lease.reserve(n);
    const CacheStats& after = cache_->stats();
    const bool evicted = after.evicted_blocks != s.evicted_blocks || after.evicted_shares != s.evicted_shares;
    using V = ReserveQuote::Verdict;
    if (!status.ok()) {
      ++happened_.refused;
      MUST(q.verdict == (status.code() == StatusCode::kOutOfRange ? V::kNever : V::kLater));
      MUST(!evicted && rows(r) == before && r.lease.quote(n).verdict == q.verdict);
      const Audit b = cache_->audit();
      MUST(a.free == b.free && a.held == b.held && a.tree_slots == b.tree_slots && a.holders == b.holders);
      return false;
    }
    MUST(q.verdict == V::kFits || q.verdict == V::kEvicts);
    MUST(evicted == (q.verdict == V::kEvicts));
    r.started = true;
    handed_out(r, before);
    r.committed_since = false;
    r.reserved += n;
    return true;
  }

  /// Slots up to `to`, and for the state there. What is to be copied is on its way.
  bool ready(Request& r, std::uint32_t to) {
    bool more = to > r.reserved;
    for (GroupId g = 0; g < case_.groups.size(); ++g)
      more = more || (state(g) && (r.committed_since || r.lease.table(g)[1] == null_));
    if (more && !reserve(r, to > r.reserved ? to - r.reserved : 0)) return false;
    while (take(4)) {
    }
    return r.live;
  }
  void launch(GroupId g, std::int32_t slot, std::uint32_t i, Digest value, bool write) {
    MUST(slot > null_);
    const auto s = static_cast<std::uint32_t>(slot);
    queue_.push_back({write ? Work::kWrite : Work::kRead, pool(g), s, i, value});
    if (write) later_[pool(g)][cell(s, i)] = value;
  }
  void commit_waits(Request& r, std::uint32_t to, std::uint64_t point) {
    r.committed = to;
    r.committed_since = true;
    r.reserved = std::max(r.reserved, to);
    r.started = true;
    r.waits.push_back({to, point});
    settle(r);
  }
  void settle(Request& r) {
    std::size_t n = 0;
    for (; n < r.waits.size() && r.waits[n].second <= reached_; r.valid = r.waits[n++].first)
      for (std::uint32_t p = 0; r.shared && p <= r.waits[n].first; p += kWalkBlock)
        valid_.insert(r.digests[p]);
    r.waits.erase(r.waits.begin(), r.waits.begin() + static_cast<std::ptrdiff_t>(n));
  }
  std::uint64_t point() {
    return below(3) == 0 ? 0 : below(3) == 0 && launched_ > 0 ? launched_ : ++launched_;
  }

  bool compute(Request& r) {
    const auto known = static_cast<std::uint32_t>(r.tokens.size());
    if (known == r.committed) return false;
    std::uint32_t to = r.committed + 1 + below(known - r.committed);
    if (const std::uint32_t cut = r.lease.next_boundary(r.committed); below(4) != 0 && cut > r.committed)
      to = std::min(to, cut);
    if (!ready(r, to)) return false;
    for (GroupId g = 0; g < case_.groups.size(); ++g) {
      const auto row = r.lease.table(g);
      if (state(g)) {
        if (r.committed > 0) launch(g, row[0], 0, of_group(g, r.digests[r.committed]), false);
        launch(g, row[1], 0, of_group(g, r.digests[to]), true);
        r.done[g] = to;
        continue;
      }
      const std::uint32_t lag = case_.groups[g].lag_tokens, end = to > lag ? to - lag : 0;
      const auto at = [&](std::uint32_t p) { return row[p / block(g)]; };
      for (std::uint32_t p = first_seen(g, r.done[g]); p < r.done[g]; ++p)
        launch(g, at(p), p % block(g), of_group(g, r.digests[p + 1]), false);
      for (std::uint32_t p = r.done[g]; p < end; ++p)
        launch(g, at(p), p % block(g), of_group(g, r.digests[p + 1]), true);
      r.done[g] = std::max(r.done[g], end);
    }
    const std::uint64_t after = point();
    MUST(r.lease.commit(to - r.committed, {1, after}).ok());
    commit_waits(r, to, after);
    return true;
  }

  /// A tree of drafts, of which a path was accepted.
  bool accept() {
    if (case_.has(GroupKind::kStateCheckpoint) || case_.trails()) return false;
    Request* found = any(
        [](const Request& q) { return q.committed == q.tokens.size() && q.tokens.size() + 9 < kWalkTokens; });
    if (found == nullptr) return false;
    Request& r = *found;
    std::vector<std::uint32_t> offsets;
    for (std::uint32_t o = 0; o < 8; ++o)
      if (below(2) == 0) offsets.push_back(o);
    if (offsets.empty() || !ready(r, r.committed + 8)) return false;
    append(r, static_cast<std::uint32_t>(offsets.size()));
    for (GroupId g = 0; g < case_.groups.size(); ++g) {
      const auto row = r.lease.table(g);
      for (std::uint32_t p = first_seen(g, r.committed); p < r.committed; ++p)
        launch(g, row[p / block(g)], p % block(g), of_group(g, r.digests[p + 1]), false);
      for (std::uint32_t i = 0; i < offsets.size(); ++i) {
        const std::uint32_t p = r.committed + offsets[i];
        launch(g, row[p / block(g)], p % block(g), of_group(g, r.digests[r.committed + i + 1]), true);
      }
    }
    const std::uint64_t after = point();
    MUST(r.lease.commit_accepted(offsets, {1, after}).ok());
    const auto n = static_cast<std::uint32_t>(offsets.size());
    for (std::uint32_t& done : r.done) done = r.committed + n;
    r.copying = true;
    commit_waits(r, r.committed + n, after);
    return true;
  }

  bool fork(Request& r) {
    Request* free = nullptr;
    for (Request& f : requests_)
      if (!f.live) free = &f;
    if (free == nullptr) return false;
    auto child = r.lease.fork();
    if (!child.ok()) {
      MUST(child.status().code() == StatusCode::kExhausted || r.copying || open(r) > 0);
      return false;
    }
    Request& c = *free;
    c = {};
    c.lease = std::move(*child);
    c.live = c.started = true;
    c.shared = r.shared;
    c.tokens = Tokens(r.tokens.begin(), r.tokens.begin() + r.committed);
    digest(c);
    c.prompt = c.committed = c.reserved = r.committed;
    c.done = r.done;
    c.valid = r.valid;
    c.waits = r.waits;
    for (GroupId g = 0; g < case_.groups.size(); ++g) {
      const auto mine = r.lease.table(g), its = c.lease.table(g);
      if (state(g)) {
        MUST((r.committed_since || mine[0] == its[0]) && its[1] == null_);
        continue;
      }
      for (std::uint32_t b = 0; b < its.size(); ++b) {
        if (its[b] == mine[b]) continue;
        MUST(b == c.committed / block(g));
        c.copying = true;
        poison(g, its[b]);
      }
    }
    return true;
  }

  bool truncate(Request& r) {
    const auto known = static_cast<std::uint32_t>(r.tokens.size());
    const std::uint32_t n = r.prompt + below(known - r.prompt + 1);
    const auto before = rows(r);
    const Status status = r.lease.truncate(n);
    if (!status.ok()) {
      MUST(status.code() == StatusCode::kWrongState && n < r.committed && rows(r) == before);
      MUST(case_.has(GroupKind::kStateCheckpoint) || case_.has(GroupKind::kSlidingWindow));
      return false;
    }
    r.tokens.resize(n);
    r.digests.resize(n + 1);
    r.committed = std::min(r.committed, n);
    r.reserved = std::min(r.reserved, n);
    for (std::uint32_t& done : r.done) done = std::min(done, n);
    r.valid = std::min(r.valid, n);
    while (!r.waits.empty() &&
           (r.waits.size() == 1 ? r.valid : r.waits[r.waits.size() - 2].first) >= r.committed)
      r.waits.pop_back();
    if (!r.waits.empty()) r.waits.back().first = std::min(r.waits.back().first, n);
    return true;
  }

  // ---- entries and steps -------------------------------------------------------------------------------------------------

  std::uint32_t open(const Request& r) const {
    std::uint32_t n = 0;
    for (const StepEntry& e : in_flight_) n += e.lease == r.lease.index() && r.live;
    return n;
  }
  Request* holder(const StepEntry& e) {
    for (Request& r : requests_)
      if (r.live && r.lease.index() == e.lease) return &r;
    return nullptr;
  }
  bool take(std::uint32_t most) {
    std::vector<StepEntry> room(most);
    const auto taken = cache_->take_step(room);
    for (const StepEntry& e : taken) MUST(holder(e) != nullptr || releasing_.count(e.lease) != 0);
    for (const StepEntry& e : taken) {
      MUST(e.kind == StepKind::kCopy && e.group < case_.groups.size() && !state(e.group));
      const GroupId p = pool(e.group);
      Request* const of = holder(e);
      ++happened_.copies;
      for (std::uint32_t i = 0; i < e.tokens; ++i) {
        queue_.push_back({Work::kCopy, p, e.slot, e.offset + i, cell(e.from_slot, e.from_offset + i)});
        later_[p][cell(e.slot, e.offset + i)] = later_[p][cell(e.from_slot, e.from_offset + i)];
      }
      if (below(40) == 0 && of != nullptr) {
        ++happened_.copies_failed;
        MUST(cache_->complete({e, {StatusCode::kUnavailable, "injected"}}).ok());
        if (of->lease.live()) {  // it has no use for it any more
          const auto row = of->lease.table(e.group);
          MUST(e.block >= row.size() || row[e.block] != static_cast<std::int32_t>(e.slot));
        }
        of->live = of->lease.live();
      } else if (below(4) == 0) {
        in_flight_.push_back(e);
      } else {
        MUST(cache_->complete({e, {}}).ok());
      }
    }
    if (taken.size() < most) {
      for (Request& r : requests_) r.copying = false;
      for (auto& [index, r] : releasing_) r.copying = false;
      forget_ended();
    }
    return !taken.empty();
  }
  bool complete_all() {
    const bool some = !in_flight_.empty();
    while (!in_flight_.empty()) {
      const std::size_t i = below(static_cast<std::uint32_t>(in_flight_.size()));
      MUST(cache_->complete({in_flight_[i], {}}).ok());
      in_flight_.erase(in_flight_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return some;
  }
  bool reach(std::uint64_t value) {
    reached_ = value;
    for (Request& r : requests_)
      if (r.live) settle(r);
    for (auto& [index, r] : releasing_) settle(r);
    MUST(cache_->reach({1, value}).ok());
    forget_ended();
    return true;
  }
  void forget_ended() {
    for (auto r = releasing_.begin(); r != releasing_.end();)
      r = r->second.waits.empty() && !r->second.copying ? releasing_.erase(r) : std::next(r);
  }
  bool end(Request& r, bool abort) {
    if (texts_.size() < 12)
      texts_.push_back(r.tokens);
    else
      texts_[below(12)] = r.tokens;
    const std::uint32_t index = r.lease.index();
    MUST((abort ? r.lease.abort() : r.lease.release()).ok());
    MUST(!r.lease.live() && r.lease.table(0).empty());
    r.live = false;
    if (!abort && (!r.waits.empty() || r.copying)) {
      ++happened_.waiting_at_release;
      releasing_[index] = {};
      releasing_[index].shared = r.shared;
      releasing_[index].digests = r.digests;
      releasing_[index].waits = r.waits;
      releasing_[index].copying = r.copying;
    }
    return true;
  }
  bool end_step() {
    while (take(8)) {
    }
    for (const Work& w : queue_) {
      auto& cells = now_[w.pool];
      if (w.kind == Work::kWrite) {
        cells[cell(w.slot, w.cell)] = w.value;
      } else if (w.kind == Work::kCopy) {
        cells[cell(w.slot, w.cell)] = cells[w.value];
      } else {
        ++happened_.reads;
        MUST(cells[cell(w.slot, w.cell)] == w.value);
      }
    }
    queue_.clear();
    MUST(cache_->end_step({0, ++step_}).ok());
    return true;
  }

  // ---- checks ------------------------------------------------------------------------------------------------------------

  void check() {
    MUST(cache_->audit().balanced());
    std::map<std::pair<GroupId, std::int32_t>, const Request*> writers;
    for (Request& r : requests_) {
      if (!r.live) continue;
      MUST(r.lease.live());
      MUST(r.lease.known_tokens() == r.tokens.size() && r.lease.committed_tokens() == r.committed &&
           r.lease.reserved_tokens() == r.reserved);
      for (GroupId g = 0; g < case_.groups.size(); ++g) {
        const auto row = r.lease.table(g);
        const std::uint32_t bt = block(g);
        if (state(g) && r.committed_since) continue;
        if (state(g)) {
          MUST(row.size() == 2 && (row[0] == null_) == (r.committed == 0));
          if (r.committed > 0) MUST(holds(g, row[0], 0, r.digests[r.committed]));
          if (row[1] != null_) MUST(writers.insert({{pool(g), row[1]}, &r}).second);
          continue;
        }
        const auto padded = r.lease.padded_table(g);
        MUST(padded.data() == row.data() && padded.size() == (kWalkTokens + bt - 1) / bt);
        for (std::size_t b = row.size(); b < padded.size(); ++b) MUST(padded[b] == null_);
        if (operation_ % 3 == 0) {
          auto& copy = r.copied_rows[g];
          copy.resize(padded.size(), null_);
          const BlockRange d = r.lease.delta(g);
          for (std::uint32_t b = d.begin; b < d.end; ++b) copy[b] = row[b];
          MUST(d.end <= row.size() && std::equal(row.begin(), row.end(), copy.begin()));
        }
        // What trails gets its slots with the first reserve.
        MUST(row.size() == (r.reserved + bt - 1) / bt || (!r.started && case_.groups[g].lag_tokens > 0));
        for (std::uint32_t p = first_seen(g, r.done[g]); p < r.done[g] && !r.copying; ++p)
          MUST(holds(g, row[p / bt], p % bt, r.digests[p + 1]));
        for (std::uint32_t b = r.committed / bt; b < row.size() && r.committed < r.reserved; ++b)
          MUST(writers.insert({{pool(g), row[b]}, &r}).second);
      }
    }
    // Nobody reads what another writes, and nobody writes what is nobody's.
    for (const Request& r : requests_)
      for (GroupId g = 0; r.live && g < case_.groups.size(); ++g) {
        const auto row = r.lease.table(g);
        if (state(g)) {
          if (row[0] != null_ && !r.committed_since) MUST(writers.count({pool(g), row[0]}) == 0);
          continue;
        }
        for (std::uint32_t b = 0; b < r.committed / block(g); ++b)
          if (row[b] != null_) {
            MUST(writers.count({pool(g), row[b]}) == 0);
          }
      }
  }
  bool holds(GroupId g, std::int32_t slot, std::uint32_t i, Digest d) {
    if (slot <= null_) return false;
    return later_[pool(g)][cell(static_cast<std::uint32_t>(slot), i)] == of_group(g, d);
  }

  const WalkCase& case_;
  std::uint64_t seed_;
  std::mt19937_64 random_;
  Happened& happened_;
  Act act_ = kAcquire;
  std::uint32_t operation_ = 0;
  CacheOptions options_;
  std::vector<std::byte> log_;
  std::unique_ptr<Cache> cache_;
  ScopeId scope_{};
  std::int32_t null_ = -1;
  Request requests_[kWalkLeases];
  std::map<std::uint32_t, Request> releasing_;  // by the lease's number
  std::vector<Tokens> texts_;
  std::set<Digest> valid_;  // of prefixes whose points are reached
  std::vector<Cells> now_, later_;
  std::vector<Work> queue_;
  std::vector<StepEntry> in_flight_;
  std::uint64_t launched_ = 0, reached_ = 0, step_ = 0;
};

#undef MUST

}  // namespace

TEST_CASE("whatever leases do in several groups, every slot that one reads holds the state of its prefix") {
  const KvGroup full{.bytes_per_token = 6};
  const KvGroup window{.kind = GroupKind::kSlidingWindow, .window_tokens = 10, .bytes_per_token = 6};
  const KvGroup state{.kind = GroupKind::kStateCheckpoint, .bytes_per_token = 24, .checkpoint_blocks = 3};
  const auto with = [](KvGroup g, GroupId pool) {
    g.with = pool;
    return g;
  };
  const WalkCase cases[] = {
      {"full, window and state", {full, window, state}, 30},
      {"one pool", {full, with(window, 0), with(state, 0)}, 60},
      {"one pool, with a null slot", {full, with(window, 0), with(state, 0)}, 48, true},
      {"full and window in one pool", {full, with(window, 0)}, 44},
      {"window only", {window}, 24},
      {"states only", {state}, 24},
      {"a draft model and larger blocks",
       {full,
        {.bytes_per_token = 6, .lag_tokens = 5},
        {.bytes_per_token = 6, .block_tokens = 8},
        {.kind = GroupKind::kSlidingWindow, .window_tokens = 13, .bytes_per_token = 6, .block_tokens = 8}},
       36},
  };
  Happened all;
  for (const WalkCase& of : cases) {
    Happened happened;
    for (std::uint64_t seed = kFirstSeed; seed < kFirstSeed + kSeeds; ++seed)
      GroupWalk(of, seed, happened).run(kOperations);
    std::printf("%s, seeds %llu to %llu:\n ", of.name, static_cast<unsigned long long>(kFirstSeed),
                static_cast<unsigned long long>(kFirstSeed + kSeeds - 1));
    for (std::size_t a = 0; a < kActs; ++a) {
      std::printf(" %s %llu%s", kActNames[a], static_cast<unsigned long long>(happened.acts[a]),
                  a + 1 < kActs ? "," : "\n ");
      all.acts[a] += happened.acts[a];
    }
    for (const auto& [name, count] : kCounts) {
      std::printf(" %s %llu%s", name, static_cast<unsigned long long>(happened.*count),
                  count != &Happened::reads ? "," : "\n");
      all.*count += happened.*count;
    }
  }
  for (std::size_t a = 0; a < kActs; ++a) {
    INFO(kActNames[a]);
    CHECK(all.acts[a] > 0);
  }
  for (const auto& [name, count] : kCounts) {
    INFO(name);
    CHECK(all.*count > 0);
  }
}
