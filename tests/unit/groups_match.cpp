// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Models with several groups of layers: how long a prefix is usable in all of them, and what may go alone.
#include <algorithm>
#include <initializer_list>

#include "cache_support.hpp"

using namespace kvstem;
using namespace kvstem::test;

namespace {

using Row = std::vector<std::int32_t>;

constexpr KvGroup kFull{.bytes_per_token = 1};
constexpr KvGroup window(std::uint32_t tokens, std::uint32_t slots = 0) {
  return {.kind = GroupKind::kSlidingWindow, .window_tokens = tokens, .bytes_per_token = 1, .slots = slots};
}
constexpr KvGroup state(std::uint32_t slots = 0, std::uint32_t checkpoint_blocks = 0) {
  return {.kind = GroupKind::kStateCheckpoint,
          .bytes_per_token = 4,
          .slots = slots,
          .checkpoint_blocks = checkpoint_blocks};
}
constexpr KvGroup in_pool_of(GroupId with, KvGroup group) {
  group.with = with;
  return group;
}

Row row(const Lease& lease, GroupId group) { return {lease.table(group).begin(), lease.table(group).end()}; }
SlotId read(const Lease& lease, GroupId group) { return static_cast<SlotId>(lease.table(group)[0]); }
SlotId write(const Lease& lease, GroupId group) { return static_cast<SlotId>(lease.table(group)[1]); }
std::uint32_t nulls(const Row& row) {
  return static_cast<std::uint32_t>(std::count(row.begin(), row.end(), -1));
}

/// A host of several groups; the books are right after every call.
struct Grouped : Host<> {
  explicit Grouped(std::initializer_list<KvGroup> groups, std::uint32_t slots = 32)
      : Host<>(options(groups, slots)) {}
  static CacheOptions options(std::initializer_list<KvGroup> groups, std::uint32_t slots) {
    CacheOptions o = small(slots);
    o.groups = {groups.begin(), groups.size()};
    return o;
  }
  void balanced() { REQUIRE(cache->audit().balanced()); }

  Lease begin(const Tokens& prompt, const AcquireOptions& how = {}) {
    Lease lease = acquire(prompt, how);
    balanced();
    return lease;
  }
  Status reserve_to(Lease& lease, std::uint32_t to) {
    const Status status = lease.reserve(to - lease.reserved_tokens());
    balanced();
    move_all();
    balanced();
    return status;
  }
  /// One step that computes up to `to`.
  void go(Lease& lease, std::uint32_t to, Point after = kNow) {
    REQUIRE(reserve_to(lease, std::max(to, lease.reserved_tokens())).ok());
    REQUIRE(lease.commit(to - lease.committed_tokens(), after).ok());
    balanced();
    end_step();
    balanced();
  }
  void decode(Lease& lease, std::uint32_t to, TokenId token) {
    while (lease.known_tokens() < to) {
      REQUIRE(lease.append({&token, 1}).ok());
      go(lease, lease.known_tokens());
    }
  }
  /// Chunks that end where states are wanted.
  void prefill(Lease& lease) {
    while (lease.committed_tokens() < lease.known_tokens()) {
      const std::uint32_t at = lease.committed_tokens(), next = lease.next_boundary(at);
      go(lease, next > at ? std::min(next, lease.known_tokens()) : lease.known_tokens());
    }
  }
  void end(Lease& lease) {
    REQUIRE(lease.release().ok());
    balanced();
    end_step();
    balanced();
  }
  std::uint32_t request(const Tokens& prompt) {
    Lease lease = begin(prompt);
    const std::uint32_t matched = lease.matched_tokens();
    prefill(lease);
    end(lease);
    return matched;
  }
  /// A request token by token, so that it needs little room in windows.
  void request_slowly(const Tokens& prompt) {
    Lease lease = begin(prompt);
    while (lease.committed_tokens() < lease.known_tokens()) go(lease, lease.committed_tokens() + 1);
    end(lease);
  }
  /// What a request would be matched to.
  std::uint32_t matched(const Tokens& prompt) {
    Lease lease = begin(prompt);
    const std::uint32_t matched = lease.matched_tokens();
    REQUIRE(lease.abort().ok());
    balanced();
    end_step();
    return matched;
  }
};

}  // namespace

// ---- windows ---------------------------------------------------------------------------------------------------------

TEST_CASE("what lies behind a window goes back while the lease lives") {
  const bool publish = GENERATE(false, true);
  Grouped host({kFull, window(8, 4)});
  Lease lease = host.begin(tokens(41), {.publish = publish});
  while (lease.committed_tokens() < 41) host.go(lease, lease.committed_tokens() + 1);
  const Row row1 = row(lease, 1);
  REQUIRE(row1.size() == 11);
  CHECK(nulls(row1) == 8);
  CHECK(nulls({row1.begin(), row1.begin() + 8}) == 8);
  CHECK(nulls(row(lease, 0)) == 0);
}

TEST_CASE("a window is exact to the token, whatever the block size") {
  const std::uint32_t w = GENERATE(1u, 3u, 4u, 5u, 7u, 8u, 9u, 12u, 13u, 16u, 17u, 100u);
  Grouped host({kFull, window(w)});
  const auto first_seen = [w](std::uint32_t at) { return at > w ? (at - w) / 4 : 0; };
  Lease lease = host.begin(tokens(25));
  for (std::uint32_t at = 1; at <= 25; ++at) {
    host.go(lease, at);
    const Row now = row(lease, 1);
    REQUIRE(nulls(now) == first_seen(at));
    REQUIRE(nulls({now.begin(), now.begin() + first_seen(at)}) == first_seen(at));
  }
  host.end(lease);
  Lease again = host.begin(tokens(17));
  CHECK(again.matched_tokens() == 16);
  CHECK(nulls(row(again, 1)) == first_seen(16));
  CHECK(row(again, 1).back() >= 0);
}

TEST_CASE("a match needs the blocks of its window and none before") {
  Grouped host({kFull, window(8, 4)});
  host.request_slowly(tokens(41));
  // Of the window the blocks 7 to 9 are left; all blocks of full attention are.
  CHECK(host.cache->stats().evicted_blocks == 0);
  CHECK(host.cache->stats().evicted_shares == 7);
  CHECK(host.found(tokens(41)) == 40);
  CHECK(host.matched(tokens(41)) == 40);
  CHECK(host.matched(tokens(37)) == 36);
  CHECK(host.matched(tokens(33)) == 0);
}

TEST_CASE("a match is shortened to where the window is whole") {
  Grouped host({kFull, window(8, 4)});
  host.request_slowly(tokens(41));
  CHECK(host.matched(tokens(37)) == 36);  // uses blocks 7 and 8, so block 9 is the oldest
  host.request(tokens(5, 1000));
  CHECK(host.matched(tokens(41)) == 36);
}

TEST_CASE("shares of a window go oldest first, and leave their blocks") {
  Grouped host({kFull, window(8, 6)});
  for (const TokenId start : {1000, 2000, 3000}) host.request(tokens(9, start));
  // Two shares of each stay, and each needed a third slot on its way: the last one has evicted one.
  CHECK(host.cache->stats().evicted_shares == 1);
  CHECK(host.cache->stats().evicted_blocks == 0);
  CHECK(host.matched(tokens(9, 3000)) == 8);
  CHECK(host.matched(tokens(9, 2000)) == 8);
  CHECK(host.matched(tokens(9, 1000)) < 8);
}

TEST_CASE("a share whose prefix is used again is no longer the oldest") {
  Grouped host({kFull, window(8, 7)});
  for (const TokenId start : {1000, 2000}) host.request(tokens(9, start));
  CHECK(host.matched(tokens(9, 1000)) == 8);
  host.request(tokens(13, 3000));
  CHECK(host.matched(tokens(9, 1000)) == 8);
  CHECK(host.matched(tokens(9, 2000)) < 8);
}

TEST_CASE("a window that a lease needs is not evicted") {
  Grouped host({kFull, window(8, 4)});
  host.request(tokens(16));
  Lease lease = host.begin(tokens(17));
  REQUIRE(lease.matched_tokens() == 16);
  const Row before = row(lease, 1);
  Lease other = host.begin(tokens(12, 1000));
  CHECK(host.reserve_to(other, 12).code() == StatusCode::kExhausted);
  CHECK(host.cache->stats().evicted_shares == 0);
  CHECK(host.reserve_to(other, 8).ok());
  CHECK(host.cache->stats().evicted_shares == 2);
  CHECK(row(lease, 1) == before);
  CHECK(host.reserve_to(other, 9).code() == StatusCode::kExhausted);
}

TEST_CASE("what one group pins, another does not") {
  const bool longer_first = GENERATE(false, true);
  const KvGroup longer = window(12), shorter = window(4, 4);
  Grouped host({kFull, longer_first ? longer : shorter, longer_first ? shorter : longer});
  host.request(tokens(16));
  Lease lease = host.begin(tokens(17));
  CHECK(nulls(row(lease, 1)) == (longer_first ? 1 : 3));
  CHECK(nulls(row(lease, 2)) == (longer_first ? 3 : 1));
  Lease other = host.begin(tokens(16, 1000));
  CHECK(host.reserve_to(other, 16).code() == StatusCode::kExhausted);  // block 3 of the shorter window
  CHECK(host.reserve_to(other, 12).ok());
  CHECK(host.cache->stats().evicted_shares == 3);
}

TEST_CASE("what was let go of in the open step is not evicted before it ends") {
  Grouped host({kFull, window(8, 2)});
  host.request(tokens(8));
  Lease lease = host.begin(tokens(9));
  REQUIRE(lease.matched_tokens() == 8);
  REQUIRE(lease.abort().ok());
  Lease other = host.begin(tokens(8, 1000));
  CHECK(host.reserve_to(other, 8).code() == StatusCode::kExhausted);
  CHECK(host.cache->stats().evicted_shares == 0);
  host.end_step();
  CHECK(host.reserve_to(other, 8).ok());
}

// ---- states ----------------------------------------------------------------------------------------------------------

TEST_CASE("a lease reads one state and writes another, and a commit swaps them") {
  Grouped host({kFull, state()});
  Lease lease = host.begin(tokens(20));
  REQUIRE(host.reserve_to(lease, 3).ok());
  CHECK(lease.table(1)[0] == -1);
  const SlotId first = write(lease, 1);
  const Row of_the_step = row(lease, 1);
  REQUIRE(lease.commit(3).ok());
  CHECK(row(lease, 1) == of_the_step);  // for whoever launches it now
  REQUIRE(host.reserve_to(lease, 5).ok());
  const SlotId second = write(lease, 1);
  CHECK(second != first);
  CHECK(read(lease, 1) == first);
  REQUIRE(lease.commit(2).ok());
  REQUIRE(lease.reserve(0).ok());
  CHECK(row(lease, 1) == Row{static_cast<std::int32_t>(second), static_cast<std::int32_t>(first)});
}

TEST_CASE("of tokens reserved far ahead each commit needs a slot for its state: reserve(0) gets it") {
  Grouped host({kFull, state()});
  Lease lease = host.begin(tokens(20));
  REQUIRE(host.reserve_to(lease, 20).ok());
  for (std::uint32_t at = 1; at <= 20; ++at) {
    if (at > 1) CHECK(lease.commit(1).code() == StatusCode::kWrongState);
    REQUIRE(lease.reserve(0).ok());
    CHECK(lease.table(1)[1] >= 0);
    CHECK((lease.table(1)[0] >= 0) == (at > 1));
    REQUIRE(lease.commit(1).ok());
    host.balanced();
    host.end_step();
  }
}

TEST_CASE("the state at the end of a prompt's whole blocks is found after its point, and not before") {
  Grouped host({kFull, state()});
  Lease lease = host.begin(tokens(18));
  CHECK(lease.next_boundary(0) == 16);
  host.go(lease, 16, {1, 1});
  REQUIRE(lease.reserve(0).ok());
  const SlotId kept = read(lease, 1);
  host.go(lease, 18, {1, 2});
  CHECK(host.matched(tokens(18)) == 0);
  REQUIRE(host.cache->reach({1, 1}).ok());
  host.balanced();
  Lease other = host.begin(tokens(18));
  CHECK(other.matched_tokens() == 16);
  CHECK(read(other, 1) == kept);
  CHECK(other.table(1)[1] == -1);
}

TEST_CASE("a state waits for its own point, also where its blocks have long been there") {
  Grouped host({kFull, state()});
  Lease first = host.begin(tokens(18));
  host.go(first, 18);  // all at once: the blocks are there, and no state that is of use
  host.end(first);
  Lease second = host.begin(tokens(18));
  REQUIRE(second.matched_tokens() == 0);
  host.go(second, 8, {1, 1});
  host.go(second, 16, {1, 2});
  REQUIRE(host.cache->reach({1, 1}).ok());
  CHECK(host.matched(tokens(18)) == 0);
  REQUIRE(host.cache->reach({1, 2}).ok());
  CHECK(host.matched(tokens(18)) == 16);
}

TEST_CASE("the last token's block is not the end of the prompt's whole blocks") {
  Grouped host({kFull, state()});
  Lease lease = host.begin(tokens(16));
  CHECK(lease.next_boundary(0) == 12);
  CHECK(lease.next_boundary(12) == kToEnd);
  Lease tiny = host.begin(tokens(4, 1000));
  CHECK(tiny.next_boundary(0) == kToEnd);
}

TEST_CASE("a match ends where a state is, and says where one would have helped") {
  Grouped host({kFull, state()});
  host.request(tokens(17));
  CHECK(host.matched(tokens(16) + tokens(8, 1000)) == 16);
  Lease lease = host.begin(tokens(12) + tokens(10, 1000));
  CHECK(lease.matched_tokens() == 0);
  CHECK(lease.missed_tokens() == 12);
  CHECK(lease.next_boundary(0) == 12);
  CHECK(lease.next_boundary(11) == 12);
  CHECK(lease.next_boundary(12) == 20);
  CHECK(lease.next_boundary(20) == kToEnd);
  host.prefill(lease);
  host.end(lease);
  Lease next = host.begin(tokens(12) + tokens(10, 2000));
  CHECK(next.matched_tokens() == 12);
  CHECK(next.missed_tokens() == 12);
}

TEST_CASE("a step that does not end at a block leaves no state") {
  Grouped host({kFull, state()});
  Lease lease = host.begin(tokens(18));
  host.go(lease, 15);
  host.go(lease, 18);
  host.end(lease);
  CHECK(host.found(tokens(18)) == 16);
  CHECK(host.matched(tokens(18)) == 0);
}

TEST_CASE("the end of a lease publishes its last state at a block's end") {
  Grouped host({kFull, state()});
  Lease lease = host.begin(tokens(6));
  host.prefill(lease);
  host.decode(lease, 14, 7);
  const Tokens all = tokens(6) + Tokens(8, 7);
  CHECK(host.matched(all) == 4);
  host.end(lease);
  CHECK(host.matched(all) == 12);
}

TEST_CASE("states are also kept every so many blocks of a prompt") {
  Grouped host({kFull, state(0, 2)});
  Lease lease = host.begin(tokens(23));
  CHECK(lease.next_boundary(0) == 8);
  CHECK(lease.next_boundary(7) == 8);
  CHECK(lease.next_boundary(8) == 16);
  CHECK(lease.next_boundary(16) == 20);
  CHECK(lease.next_boundary(20) == kToEnd);
  host.prefill(lease);
  host.end(lease);
  CHECK(host.matched(tokens(9) + tokens(9, 1000)) == 8);
  CHECK(host.matched(tokens(18) + tokens(9, 1000)) == 16);
  CHECK(host.matched(tokens(23)) == 20);
}

TEST_CASE("a state that two have computed is kept once") {
  Grouped host({kFull, state(5)});
  for (TokenId round = 0; round < 10; ++round) {
    const Tokens prompt = tokens(10, 1000 * round);
    Lease a = host.begin(prompt), b = host.begin(prompt);
    host.go(a, 8);
    host.go(b, 8);
    host.go(a, 10);
    host.go(b, 10);
    host.end(a);
    host.end(b);
    REQUIRE(host.matched(prompt) == 8);
  }
}

TEST_CASE("states go oldest first, and not those that are read") {
  Grouped host({kFull, state(4)});
  for (const TokenId start : {1000, 2000}) host.request(tokens(9, start));
  Lease reader = host.begin(tokens(9, 1000));
  REQUIRE(reader.matched_tokens() == 8);
  const SlotId slot = read(reader, 1);
  host.request(tokens(9, 3000));
  host.request(tokens(9, 4000));
  CHECK(host.cache->stats().evicted_shares > 0);
  CHECK(read(reader, 1) == slot);
  CHECK(host.matched(tokens(9, 2000)) == 0);
  CHECK(host.matched(tokens(9, 1000)) == 8);
}

TEST_CASE("forks read one state and write their own") {
  Grouped host({kFull, state()});
  Lease parent = host.begin(tokens(6));
  host.prefill(parent);
  auto child = parent.fork();
  REQUIRE(child.ok());
  host.balanced();
  REQUIRE(parent.reserve(0).ok());
  const SlotId shared = read(parent, 1);
  CHECK(read(*child, 1) == shared);
  CHECK(child->table(1)[1] == -1);
  for (Lease* lease : {&parent, &*child}) {
    const TokenId token = lease == &parent ? 50 : 51;
    REQUIRE(lease->append({&token, 1}).ok());
    REQUIRE(host.reserve_to(*lease, 7).ok());
  }
  CHECK(write(parent, 1) != write(*child, 1));
  REQUIRE(parent.commit(1).ok());
  host.balanced();
  CHECK(read(*child, 1) == shared);
  CHECK(write(parent, 1) != shared);
  REQUIRE(child->commit(1).ok());
  for (Lease* lease : {&parent, &*child}) REQUIRE(lease->reserve(0).ok());
  host.balanced();
  CHECK(read(parent, 1) != read(*child, 1));
}

TEST_CASE("an abort publishes no state that was not reached") {
  const bool reached = GENERATE(false, true);
  Grouped host({kFull, state()});
  Lease lease = host.begin(tokens(18));
  host.go(lease, 16, {1, 1});
  if (reached) REQUIRE(host.cache->reach({1, 1}).ok());
  REQUIRE(lease.abort().ok());
  host.balanced();
  REQUIRE(host.cache->reach({1, 1}).ok());
  host.end_step();
  CHECK(host.matched(tokens(18)) == (reached ? 16 : 0));
}

TEST_CASE("a release that waits for its point publishes its states when it is reached") {
  Grouped host({kFull, state()});
  Lease lease = host.begin(tokens(18));
  host.go(lease, 16, {1, 1});
  host.go(lease, 18, {1, 2});
  host.end(lease);
  CHECK(host.matched(tokens(18)) == 0);
  REQUIRE(host.cache->reach({1, 2}).ok());
  host.balanced();
  CHECK(host.matched(tokens(18)) == 16);
}

// ---- groups that trail, and larger blocks ----------------------------------------------------------------------------

TEST_CASE("what a draft model trails by, a lease computes into slots of its own") {
  const std::uint32_t lag = GENERATE(1u, 4u, 6u, 16u);
  Grouped host({kFull, {.bytes_per_token = 1, .lag_tokens = lag}});
  host.request(tokens(16));  // its state is there up to 16 - lag
  Lease first = host.begin(tokens(17));
  CHECK(first.matched_tokens() == 16);
  REQUIRE(host.reserve_to(first, 17).ok());
  Lease second = host.begin(tokens(17));
  REQUIRE(host.reserve_to(second, 17).ok());
  const Row a = row(first, 1), b = row(second, 1);
  REQUIRE(a.size() == 5);
  for (std::uint32_t i = 0; i < 5; ++i) {
    CHECK((a[i] == b[i]) == (i < (16 - lag) / 4));
    CHECK(row(first, 0)[i] == (i < 4 ? row(second, 0)[i] : row(first, 0)[i]));
  }
}

TEST_CASE("the row of a group that trails has a slot for each block up to the reserved cursor") {
  Grouped host({kFull, {.bytes_per_token = 1, .lag_tokens = 2}});
  host.request(tokens(17));
  Lease lease = host.begin(tokens(17));
  REQUIRE(lease.matched_tokens() == 16);
  CHECK(lease.table(1).size() ==
        3);  // the fourth is to be computed, and gets its slot with the first to be reserved
  REQUIRE(lease.reserve(1).ok());
  CHECK(lease.table(0).size() == 5);
  CHECK(lease.table(1).size() == 5);
}

TEST_CASE("a match ends at a multiple of the largest block, and every group has a row of its own length") {
  Grouped host(
      {kFull,
       {.bytes_per_token = 1, .block_tokens = 8},
       {.kind = GroupKind::kSlidingWindow, .window_tokens = 5, .bytes_per_token = 1, .block_tokens = 16}});
  host.request(tokens(41));
  for (const auto& [asked, want] : std::initializer_list<std::pair<std::uint32_t, std::uint32_t>>{
           {16, 0}, {17, 16}, {32, 16}, {33, 32}, {41, 32}})
    CHECK(host.matched(tokens(asked)) == want);
  Lease lease = host.begin(tokens(41));
  REQUIRE(host.reserve_to(lease, 41).ok());
  CHECK(lease.table(0).size() == 11);
  CHECK(lease.table(1).size() == 6);
  CHECK(lease.table(2).size() == 3);
  CHECK(nulls(row(lease, 2)) == 1);
}

TEST_CASE("side data lies where its group's blocks are") {
  const KvGroup side{.kind = GroupKind::kSideData, .bytes_per_token = 1};
  Grouped host({kFull, window(4), side, in_pool_of(1, side)});
  Lease lease = host.begin(tokens(13));
  host.go(lease, 13);
  CHECK(row(lease, 2) == row(lease, 0));
  CHECK(row(lease, 3) == row(lease, 1));
  CHECK(nulls(row(lease, 3)) == 2);
  CHECK(lease.delta(3) == BlockRange{0, 4});
}

// ---- one pool --------------------------------------------------------------------------------------------------------

TEST_CASE("in a pool that groups share, what is older goes first") {
  const TokenId again = GENERATE(0, 1000, 2000);
  Grouped host({kFull, in_pool_of(0, window(100))}, 11);
  for (const TokenId start : {1000, 2000}) host.request(tokens(9, start));
  if (again != 0) CHECK(host.matched(tokens(9, again)) == 8);
  host.request(tokens(8, 3000));
  const TokenId older = again == 1000 ? 2000 : 1000;
  CHECK(host.matched(tokens(9, older)) < 8);
  CHECK(host.matched(tokens(9, 3000 - older)) == 8);
}

TEST_CASE("no slot of a shared pool is lost") {
  Grouped host({kFull, in_pool_of(0, window(6)), in_pool_of(0, state())}, 24);
  for (TokenId round = 0; round < 40; ++round) {
    host.request(tokens(5 + static_cast<std::uint32_t>(round * 7 % 13), round % 5 * 1000));
    const Audit a = host.cache->audit();
    REQUIRE(a.lease_slots == 0);
    REQUIRE(a.held == 0);
    REQUIRE(a.free + a.tree_slots + a.group_slots == 24);
  }
  CHECK(host.cache->stats().evicted_blocks > 0);
  CHECK(host.cache->stats().evicted_shares > 0);
  Lease all = host.begin(tokens(40, 9000));
  CHECK(host.reserve_to(all, 40).ok());  // 10, 10 and a state
}

// ---- models without full attention -----------------------------------------------------------------------------------

TEST_CASE("a model may have windows only") {
  Grouped host({window(8)});
  host.request(tokens(17));
  Lease lease = host.begin(tokens(17));
  CHECK(lease.matched_tokens() == 16);
  CHECK(nulls(row(lease, 0)) == 2);
  host.go(lease, 17);
  host.end(lease);
}

TEST_CASE("a model may have states only") {
  Grouped host({state()});
  host.request(tokens(17));
  Lease lease = host.begin(tokens(17));
  CHECK(lease.matched_tokens() == 16);
  CHECK(lease.table(0).size() == 2);
  CHECK(host.matched(tokens(13)) == 0);
}

TEST_CASE("without full attention a fork copies what is there, and nothing else") {
  const bool states = GENERATE(false, true);
  Grouped host({states ? state() : window(8)});
  Lease parent = host.begin(tokens(6));
  host.prefill(parent);
  auto child = parent.fork();
  REQUIRE(child.ok());
  const TokenId token = 50;
  REQUIRE(child->append({&token, 1}).ok());
  REQUIRE(child->reserve(1).ok());
  StepEntry room[4];
  const auto taken = host.cache->take_step(room);
  CHECK(taken.size() == (states ? 0 : 1));
  for (const StepEntry& e : taken) {
    CHECK(e.group == 0);
    CHECK(e.tokens == 2);
    CHECK(host.cache->complete({e, {}}).ok());
  }
  host.balanced();
}

TEST_CASE(
    "blocks that are there and of no use without their state make room for the lease that must compute them "
    "again") {
  Grouped host({kFull, state(4)}, 12);
  {
    Lease first = host.begin(tokens(40));
    REQUIRE(host.reserve_to(first, 40).ok());
    REQUIRE(first.commit(40).ok());
    REQUIRE(first.release().ok());  // its one state is behind the last token
  }
  Lease lease = host.begin(tokens(40));
  CHECK(lease.matched_tokens() == 0);
  CHECK(lease.missed_tokens() == 36);
  host.end_step();
  CHECK(host.reserve_to(lease, 40).ok());
  REQUIRE(lease.commit(40).ok());
  host.balanced();
  REQUIRE(lease.release().ok());
  host.end_step();
  host.balanced();
}

TEST_CASE(
    "a state follows one path, so accepted drafts that leave some out are refused, also where nothing has to "
    "be moved") {
  const bool with_full = GENERATE(false, true);
  Grouped host(with_full ? std::initializer_list<KvGroup>{kFull, state()}
                         : std::initializer_list<KvGroup>{state()});
  Lease lease = host.begin(tokens(5));
  host.go(lease, 5);
  REQUIRE(host.reserve_to(lease, 9).ok());
  REQUIRE(lease.append(tokens(2, 5)).ok());
  const std::uint32_t apart[] = {0, 2}, path[] = {0, 1};
  CHECK(lease.commit_accepted(apart).code() == StatusCode::kUnsupported);
  CHECK(lease.committed_tokens() == 5);
  CHECK(lease.commit_accepted(path).ok());
  host.balanced();
}
