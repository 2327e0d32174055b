// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Leases that branch: forks, sequences that are cut and go on, drafts that were verified, what is computed twice.
#include <algorithm>
#include <initializer_list>

#include "cache_support.hpp"

using namespace kvstem;
using namespace kvstem::test;

namespace {

using Row = std::vector<std::int32_t>;

Row row(const Lease& lease) { return {lease.table(0).begin(), lease.table(0).end()}; }
Row first(Row row, std::size_t blocks) {
  row.resize(blocks);
  return row;
}
SlotId slot(const Lease& lease, std::uint32_t block) { return static_cast<SlotId>(lease.table(0)[block]); }

CacheOptions by_step() {
  CacheOptions options = small();
  options.fill = SlotFill::kByStep;
  return options;
}

/// A host with a pool in which the state of a position is its token, so that a look through a table shows whose state
/// is there.
struct Paged : Host<> {
  using Host<>::Host;

  TokenId& cell(SlotId slot, std::uint32_t offset) { return cells[std::size_t{slot} * 4 + offset]; }
  Lease fork(Lease& lease) {
    auto child = lease.fork();
    REQUIRE(child.ok());
    return std::move(*child);
  }
  /// Hands out what waits.
  std::vector<StepEntry> take() {
    StepEntry room[32];
    const auto taken = cache->take_step(room);
    return {taken.begin(), taken.end()};
  }
  /// Carries entries out, in their order.
  void carry_out(const std::vector<StepEntry>& entries, Status status = {}) {
    for (const StepEntry& e : entries) {
      REQUIRE(e.kind == StepKind::kCopy);
      REQUIRE(e.tokens > 0);
      REQUIRE(std::max(e.offset, e.from_offset) + e.tokens <= 4);
      Tokens read;
      for (std::uint32_t i = 0; i < e.tokens; ++i) read.push_back(cell(e.from_slot, e.from_offset + i));
      for (std::uint32_t i = 0; i < e.tokens; ++i) cell(e.slot, e.offset + i) = read[i];
      REQUIRE(cache->complete({e, status}).ok());
    }
  }
  std::vector<StepEntry> move() {
    auto entries = take();
    carry_out(entries);
    return entries;
  }
  /// Computes what these positions of the lease would hold.
  void write(const Lease& lease, std::uint32_t position, const Tokens& states) {
    for (const TokenId state : states) {
      cell(slot(lease, position / 4), position % 4) = state;
      ++position;
    }
  }
  Tokens read(const Lease& lease) {
    Tokens states;
    for (std::uint32_t i = 0; i < lease.committed_tokens(); ++i)
      states.push_back(cell(slot(lease, i / 4), i % 4));
    return states;
  }
  Lease prefill(const Tokens& prompt, Point after = kNow) {
    Lease lease = acquire(prompt);
    const std::uint32_t start = lease.matched_tokens();
    compute(lease, after);
    write(lease, start, {prompt.begin() + start, prompt.end()});
    return lease;
  }
  /// Decodes these tokens in one step; returns what had to be moved for it.
  std::vector<StepEntry> decode(Lease& lease, const Tokens& more, Point after = kNow) {
    const auto n = static_cast<std::uint32_t>(more.size()), at = lease.committed_tokens();
    REQUIRE(lease.reserved_tokens() == at);
    REQUIRE(lease.reserve(n).ok());
    auto moved = move();
    REQUIRE(lease.append(more).ok());
    write(lease, at, more);
    REQUIRE(lease.commit(n, after).ok());
    return moved;
  }
  Status append_and_accept(Lease& lease, const Tokens& verified, std::initializer_list<std::uint32_t> offsets,
                           Point after = kNow) {
    REQUIRE(lease.append(verified).ok());
    return lease.commit_accepted({offsets.begin(), offsets.size()}, after);
  }
  std::uint32_t used() const { return cache->pool().used_slots(); }
  bool balanced() const { return cache->audit().balanced(); }
  /// All leases are gone: only the tree holds slots, and one for each ready block.
  bool settled() {
    end_step();
    const Audit audit = cache->audit();
    return audit.balanced() && audit.lease_slots == 0 && audit.step_slots == 0 && audit.lease_pins == 0 &&
           audit.used == audit.ready_blocks;
  }

  std::vector<TokenId> cells = std::vector<TokenId>(cache->pool().capacity() * std::size_t{4}, -1);
};

}  // namespace

// ---- fork ------------------------------------------------------------------------------------------------------------

TEST_CASE("a fork has the same committed tokens in the same slots, and takes none") {
  Paged host;
  Lease parent = host.prefill(tokens(10));
  REQUIRE(parent.append(tokens(1, 10)).ok());  // not computed: the fork does not know it
  Lease child = host.fork(parent);
  CHECK(host.used() == 3);
  CHECK(row(child) == row(parent));
  CHECK(child.index() != parent.index());
  CHECK(child.known_tokens() == 10);
  CHECK(child.committed_tokens() == 10);
  CHECK(child.reserved_tokens() == 10);
  CHECK(parent.known_tokens() == 11);
  CHECK(host.cache->pool().holders(slot(parent, 2)) == 2);
  CHECK(host.take().empty());
  CHECK(host.balanced());
  REQUIRE(parent.release().ok());
  CHECK(host.read(child) == tokens(10));
  CHECK(host.balanced());
  REQUIRE(child.release().ok());
  CHECK(host.settled());
  CHECK(host.used() == 2);
}

TEST_CASE("whoever writes first into a shared block copies it, and the other writes in place") {
  for (const bool child_first : {true, false}) {
    Paged host;
    REQUIRE(host.acquire(tokens(4)).reserve(64).ok());
    host.end_step();  // every slot was used, so that it has a fence
    Lease parent = host.prefill(tokens(10));
    Lease child = host.fork(parent);
    Lease &first = child_first ? child : parent, &second = child_first ? parent : child;
    const SlotId shared = slot(parent, 2);
    const std::uint32_t used = host.used();

    REQUIRE(first.reserve(1).ok());
    CHECK(host.used() == used + 1);
    CHECK(slot(first, 2) != shared);
    CHECK(slot(second, 2) == shared);
    const auto copies = host.take();
    REQUIRE(copies.size() == 1);
    const StepEntry& e = copies[0];
    CHECK(e.kind == StepKind::kCopy);
    CHECK(e.group == 0);
    CHECK(e.lease == first.index());
    CHECK(e.block == 2);
    CHECK(e.slot == slot(first, 2));
    CHECK(e.from_slot == shared);
    CHECK(e.from_offset == 0);
    CHECK(e.offset == 0);
    CHECK(e.tokens == 2);
    CHECK(e.source_ready == kNow);
    CHECK(e.not_before == host.cache->pool().fence(e.slot));
    CHECK(e.not_before == Point{0, host.step});
    host.carry_out(copies);

    REQUIRE(second.reserve(1).ok());
    CHECK(slot(second, 2) == shared);
    CHECK(host.used() == used + 1);
    CHECK(host.take().empty());
    REQUIRE(first.append({{50}}).ok());
    REQUIRE(second.append({{60}}).ok());
    host.write(first, 10, {50});
    host.write(second, 10, {60});
    REQUIRE(first.commit(1).ok());
    REQUIRE(second.commit(1).ok());
    CHECK(host.read(first) == tokens(10) + Tokens{50});
    CHECK(host.read(second) == tokens(10) + Tokens{60});
    CHECK(host.balanced());
    REQUIRE(first.release().ok());
    REQUIRE(second.release().ok());
    CHECK(host.settled());
  }
}

TEST_CASE("of samples that write in the same step one writes in place") {
  Paged host;
  Lease a = host.prefill(tokens(10));
  Lease b = host.fork(a), c = host.fork(a);
  for (Lease* sample : {&a, &b, &c}) REQUIRE(sample->reserve(1).ok());  // nothing was moved yet
  CHECK(host.used() == 2 + 3);
  const auto copies = host.take();
  CHECK(copies.size() == 2);
  host.carry_out(copies);
  TokenId token = 70;
  for (Lease* sample : {&a, &b, &c}) {
    REQUIRE(sample->append({&token, 1}).ok());
    host.write(*sample, 10, {token++});
    REQUIRE(sample->commit(1).ok());
  }
  CHECK(host.read(a) == tokens(10) + Tokens{70});
  CHECK(host.read(b) == tokens(10) + Tokens{71});
  CHECK(host.read(c) == tokens(10) + Tokens{72});
  CHECK(host.balanced());
}

TEST_CASE("a fork at the end of a block copies nothing") {
  Paged host;
  Lease parent = host.prefill(tokens(8));
  REQUIRE(parent.reserve(4).ok());  // ahead, but into a block of its own
  Lease child = host.fork(parent);
  CHECK(host.used() == 3);
  CHECK(child.table(0).size() == 2);
  REQUIRE(child.reserve(4).ok());
  CHECK(host.take().empty());
  CHECK(host.used() == 4);
  CHECK(slot(child, 2) != slot(parent, 2));
  CHECK(host.balanced());
}

TEST_CASE("a fork of a lease that has reserved ahead in its last block gets a copy at once") {
  for (const std::uint32_t ahead : {1u, 2u, 6u}) {
    Paged host;
    Lease parent = host.prefill(tokens(10));
    REQUIRE(parent.reserve(ahead).ok());
    const Row before = row(parent);
    const std::uint32_t used = host.used();
    Lease child = host.fork(parent);
    CHECK(row(parent) == before);  // its step may be being built
    CHECK(host.used() == used + 1);
    CHECK(child.reserved_tokens() == 10);
    REQUIRE(child.table(0).size() == 3);
    CHECK(slot(child, 2) != slot(parent, 2));
    CHECK(host.cache->pool().holders(slot(child, 2)) >= 1);
    const auto copies = host.move();
    REQUIRE(copies.size() == 1);
    CHECK(copies[0].lease == child.index());
    CHECK(copies[0].block == 2);
    CHECK(copies[0].from_slot == slot(parent, 2));
    CHECK(copies[0].slot == slot(child, 2));
    CHECK(copies[0].tokens == 2);
    CHECK(host.read(child) == tokens(10));
    CHECK(host.decode(child, {50}).empty());
    CHECK(host.read(child) == tokens(10) + Tokens{50});
    CHECK(host.read(parent) == tokens(10));
    CHECK(host.balanced());
  }
}

TEST_CASE("what waits for its point at a fork is published once, for both") {
  Paged host;
  Lease parent = host.prefill(tokens(10), {0, 1});
  Lease child = host.fork(parent);
  CHECK(host.used() == 3);
  CHECK(host.found(tokens(13)) == 0);
  REQUIRE(child.reserve(1).ok());
  const auto copies = host.take();
  REQUIRE(copies.size() == 1);
  CHECK(copies[0].source_ready == Point{0, 1});  // what is read is not computed yet
  host.carry_out(copies);
  REQUIRE(host.cache->reach({0, 1}).ok());
  CHECK(host.found(tokens(13)) == 8);
  CHECK(host.cache->stats().inserted_blocks == 2);
  CHECK(host.cache->stats().duplicate_blocks == 0);
  CHECK(slot(parent, 0) == slot(child, 0));
  CHECK(slot(parent, 1) == slot(child, 1));
  CHECK(host.used() == 4);
  CHECK(host.cache->pool().holders(slot(parent, 0)) == 1);  // the tree
  CHECK(host.balanced());
  REQUIRE(parent.release().ok());
  REQUIRE(child.release().ok());
  CHECK(host.settled());
}

TEST_CASE("when one of two branches ends, what it waited for is still the other's") {
  for (const bool parent_ends : {true, false})
    for (const bool aborts : {true, false}) {
      Paged host;
      Lease parent = host.prefill(tokens(10), {0, 1});
      Lease child = host.fork(parent);
      Lease &ends = parent_ends ? parent : child, &stays = parent_ends ? child : parent;
      REQUIRE((aborts ? ends.abort() : ends.release()).ok());
      CHECK(host.balanced());
      host.end_step();
      CHECK(host.used() == 3);
      CHECK(host.read(stays) == tokens(10));
      REQUIRE(host.cache->reach({0, 1}).ok());
      CHECK(host.found(tokens(13)) == 8);
      CHECK(host.cache->stats().inserted_blocks == 2);
      CHECK(host.cache->stats().duplicate_blocks == 0);
      CHECK(host.used() == 3);
      REQUIRE(stays.release().ok());
      CHECK(host.settled());
      CHECK(host.used() == 2);
    }
}

TEST_CASE("commits on several timelines wait in the fork as they do in its parent") {
  Paged host;
  Lease parent = host.acquire(tokens(10));
  REQUIRE(parent.reserve(10).ok());
  REQUIRE(parent.commit(4, {1, 1}).ok());
  REQUIRE(parent.commit(6, {2, 1}).ok());
  Lease child = host.fork(parent);
  REQUIRE(parent.abort().ok());
  REQUIRE(host.cache->reach({2, 1}).ok());
  CHECK(host.found(tokens(13)) == 0);
  REQUIRE(host.cache->reach({1, 1}).ok());
  CHECK(host.found(tokens(13)) == 8);
  CHECK(host.balanced());
}

TEST_CASE("a fork of a fork is one more branch") {
  Paged host;
  Lease a = host.prefill(tokens(10));
  Lease b = host.fork(a);
  Lease c = host.fork(b);
  CHECK(host.used() == 3);
  CHECK(host.cache->pool().holders(slot(a, 2)) == 3);
  host.decode(b, tokens(2, 50));  // completes the block
  Lease d = host.fork(b);
  CHECK(row(d) == row(b));
  host.decode(d, tokens(3, 60));
  host.decode(c, tokens(1, 70));
  CHECK(host.decode(a, tokens(1, 80)).empty());  // the last one in the shared block
  CHECK(host.read(a) == tokens(10) + tokens(1, 80));
  CHECK(host.read(b) == tokens(10) + tokens(2, 50));
  CHECK(host.read(c) == tokens(10) + tokens(1, 70));
  CHECK(host.read(d) == tokens(10) + tokens(2, 50) + tokens(3, 60));
  CHECK(host.used() == 2 + 3 + 1);
  CHECK(host.found(tokens(10) + tokens(3, 50)) == 12);
  CHECK(host.balanced());
  for (Lease* lease : {&b, &a, &d, &c}) REQUIRE(lease->release().ok());
  CHECK(host.settled());
  CHECK(host.used() == 3);
}

TEST_CASE("a lease whose own copy was not carried out yet cannot be forked; afterwards it can") {
  Paged host;
  Lease a = host.prefill(tokens(10));
  Lease b = host.fork(a);
  REQUIRE(b.reserve(1).ok());  // a copy waits
  CHECK(b.fork().status().code() == StatusCode::kWrongState);
  const auto copies = host.take();
  CHECK(b.fork().status().code() == StatusCode::kWrongState);
  host.carry_out(copies);
  Lease c = host.fork(b);  // b has reserved ahead, so c gets a copy of that copy
  host.move();
  CHECK(host.read(a) == tokens(10));
  CHECK(host.read(b) == tokens(10));
  CHECK(host.read(c) == tokens(10));
  CHECK(host.used() == 2 + 3);
  CHECK(host.balanced());
}

TEST_CASE("samples of one prefill take a slot each for the block that they part in") {
  Paged host(small(32));
  Lease first = host.prefill(tokens(14));
  std::vector<Lease> samples;
  samples.push_back(std::move(first));
  for (int i = 1; i < 6; ++i) samples.push_back(host.fork(samples[0]));
  CHECK(host.used() == 4);
  for (std::size_t i = 0; i < samples.size(); ++i)
    host.decode(samples[i], tokens(2, static_cast<TokenId>(100 * (i + 1))));
  CHECK(host.used() == 3 + 6);
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const Tokens all = tokens(14) + tokens(2, static_cast<TokenId>(100 * (i + 1)));
    CHECK(host.read(samples[i]) == all);
    CHECK(host.found(all + tokens(1)) == 16);
  }
  CHECK(host.cache->stats().inserted_blocks == 3 + 6);
  CHECK(host.balanced());
  for (Lease& sample : samples) REQUIRE(sample.release().ok());
  CHECK(host.settled());
  CHECK(host.used() == 3 + 6);
  CHECK(host.cache->stats().requests == 1);
  CHECK(host.cache->stats().forks == 5);
  CHECK(host.cache->stats().copied_blocks == 5);
}

TEST_CASE("a fork counts as no request, whoever of the two ends first") {
  for (const bool parent_first : {true, false}) {
    Paged host;
    host.serve(tokens(10));
    Lease parent = host.prefill(tokens(10));
    Lease child = host.fork(parent);
    host.decode(child, tokens(3, 50));
    REQUIRE((parent_first ? parent : child).release().ok());
    REQUIRE((parent_first ? child : parent).release().ok());
    const CacheStats& stats = host.cache->stats();
    CHECK(stats.requests == 2);
    CHECK(stats.queried_tokens == 20);
    CHECK(stats.hit_tokens == 8);
    CHECK(stats.missed_tokens == 12);
    CHECK(host.settled());
  }
}

TEST_CASE("a branch of a lease that does not publish does not publish either") {
  Paged host;
  Lease parent = host.acquire(tokens(10), {.publish = false});
  host.compute(parent);
  Lease child = host.fork(parent);
  CHECK(host.cache->pool().holders(slot(parent, 0)) == 2);
  host.decode(child, tokens(3, 10));
  CHECK(host.found(tokens(13)) == 0);
  REQUIRE(parent.release().ok());
  CHECK(host.balanced());
  REQUIRE(child.release().ok());
  CHECK(host.settled());
  CHECK(host.used() == 0);
}

TEST_CASE("without a slot for the copy a branch waits until another has ended") {
  Paged host(small(3));
  Lease parent = host.prefill(tokens(10));
  Lease child = host.fork(parent);
  const Row before = row(child);
  CHECK(child.reserve(1).code() == StatusCode::kExhausted);
  CHECK(row(child) == before);
  CHECK(child.reserved_tokens() == 10);
  CHECK(host.take().empty());
  CHECK(host.balanced());
  REQUIRE(parent.abort().ok());
  CHECK(host.decode(child, {50}).empty());  // alone now: in place
  CHECK(row(child) == before);
  CHECK(host.balanced());
}

TEST_CASE("the slot that a copy reads is not given away before the copy was carried out") {
  Paged host(small(4));
  Lease parent = host.prefill(tokens(10));
  Lease child = host.fork(parent);
  const SlotId source = slot(parent, 2);
  REQUIRE(child.reserve(1).ok());
  REQUIRE(parent.abort().ok());
  CHECK(host.cache->pool().holders(source) == 1);                         // the entry, which waits
  CHECK(host.cache->end_step({0, 1}).code() == StatusCode::kWrongState);  // the step needs what it brings
  CHECK(host.balanced());
  const auto copies = host.take();
  REQUIRE(copies.size() == 1);
  host.end_step();
  CHECK(host.cache->pool().holders(source) == 1);  // which is under way
  CHECK(host.balanced());
  host.carry_out(copies);
  host.end_step();
  CHECK(host.used() == 3);
  CHECK(host.read(child) == tokens(10));
  CHECK(host.balanced());
}

TEST_CASE("a copy that fails takes its block from the branch, which computes it again") {
  Paged host;
  Lease parent = host.prefill(tokens(10));
  Lease child = host.fork(parent);
  REQUIRE(child.reserve(3).ok());
  REQUIRE(child.append(tokens(3, 50)).ok());
  const auto copies = host.take();
  REQUIRE(child.commit(3, {0, 1}).ok());
  REQUIRE(copies.size() == 1);
  REQUIRE(host.cache->complete({copies[0], {StatusCode::kUnavailable, "told to fail"}}).ok());
  CHECK(child.committed_tokens() == 8);
  CHECK(child.reserved_tokens() == 8);
  CHECK(child.known_tokens() == 13);
  CHECK(child.table(0).size() == 2);
  CHECK(host.read(parent) == tokens(10));
  CHECK(host.balanced());
  REQUIRE(host.cache->reach({0, 1}).ok());
  CHECK(host.found(tokens(10) + tokens(4, 50)) == 8);
  REQUIRE(child.reserve(5).ok());
  host.write(child, 8, tokens(2, 8) + tokens(3, 50));
  REQUIRE(child.commit(5).ok());
  CHECK(host.found(tokens(10) + tokens(4, 50)) == 12);
  CHECK(host.read(child) == tokens(10) + tokens(3, 50));
  REQUIRE(parent.release().ok());
  REQUIRE(child.release().ok());
  CHECK(host.settled());
}

TEST_CASE("a copy that waits is dropped when its branch ends, and holds no slot any more") {
  for (const bool end_first : {true, false}) {
    Paged host(small(4));
    Lease parent = host.prefill(tokens(10));
    {
      Lease child = host.fork(parent);
      REQUIRE(child.reserve(1).ok());
    }  // aborted
    CHECK(host.balanced());
    if (!end_first) CHECK(host.take().empty());
    host.end_step();
    CHECK(host.used() == 3);
    CHECK(host.cache->pool().holders(slot(parent, 2)) == 1);
    CHECK(host.take().empty());
    CHECK(host.decode(parent, {50}).empty());  // in place
    CHECK(host.balanced());
  }
}

TEST_CASE("a copy under way keeps its slots when its branch ends, and its late result does nothing") {
  for (const bool fails : {false, true}) {
    Paged host;
    Lease parent = host.prefill(tokens(10));
    std::vector<StepEntry> copies;
    {
      Lease child = host.fork(parent);
      REQUIRE(child.reserve(1).ok());
      copies = host.take();
      REQUIRE(copies.size() == 1);
    }  // aborted
    CHECK(host.balanced());
    host.end_step();
    CHECK(host.cache->pool().holders(copies[0].slot) == 1);
    Lease next = host.fork(parent);  // has the place of the one that ended
    REQUIRE(next.index() == copies[0].lease);
    REQUIRE(host.cache->complete({copies[0], fails ? Status(StatusCode::kUnavailable, "") : Status()}).ok());
    CHECK(host.cache->complete({copies[0], {}}).code() == StatusCode::kStale);
    host.end_step();
    CHECK(host.cache->pool().holders(copies[0].slot) == 0);
    CHECK(next.committed_tokens() == 10);
    CHECK(host.decode(next, {50}).size() == 1);
    CHECK(host.read(next) == tokens(10) + Tokens{50});
    CHECK(host.balanced());
  }
}

TEST_CASE("a copy of tokens that wait on two timelines is one for each") {
  Paged host;
  Lease parent = host.acquire(tokens(11));
  REQUIRE(parent.reserve(11).ok());
  REQUIRE(parent.commit(9, {1, 1}).ok());
  REQUIRE(parent.commit(2, {2, 1}).ok());
  host.write(parent, 0, tokens(11));
  Lease child = host.fork(parent);
  REQUIRE(child.reserve(1).ok());
  const auto copies = host.take();
  REQUIRE(copies.size() == 2);
  for (const StepEntry& e : copies) {
    CHECK(e.slot == slot(child, 2));
    CHECK(e.from_slot == slot(parent, 2));
    CHECK(e.offset == e.from_offset);
  }
  CHECK(copies[0].offset == 0);
  CHECK(copies[0].tokens == 1);
  CHECK(copies[0].source_ready == Point{1, 1});
  CHECK(copies[1].offset == 1);
  CHECK(copies[1].tokens == 2);
  CHECK(copies[1].source_ready == Point{2, 1});
  host.carry_out(copies);
  CHECK(host.read(child) == tokens(11));
  CHECK(host.balanced());
}

TEST_CASE("who waits for blocks of a branch goes on waiting while another branch will publish them") {
  for (const bool parent_ends : {true, false}) {
    Paged host;
    Lease parent = host.prefill(tokens(10), {0, 1});
    Lease child = host.fork(parent);
    Lease follower = host.acquire(tokens(13));
    CHECK_FALSE(follower.refresh().must_compute);
    REQUIRE((parent_ends ? parent : child).abort().ok());
    CHECK_FALSE(follower.refresh().must_compute);  // nothing is lost
    REQUIRE(host.cache->reach({0, 1}).ok());
    CHECK(follower.refresh().ready_tokens == 8);
    CHECK(follower.refresh().must_compute);
    CHECK(host.balanced());
  }
}

TEST_CASE("media in the unfinished block of the prompt is part of that block in every branch") {
  Host<> host;
  const Tokens prompt = tokens(6);
  Extra image{5, {}};
  auto parent = host.cache->acquire({.scope = host.scope, .tokens = prompt, .extras = {&image, 1}});
  REQUIRE(parent.ok());
  host.compute(*parent);
  auto child = parent->fork();
  REQUIRE(child.ok());
  const auto continues = [&](Lease& lease, TokenId start) {
    REQUIRE(lease.append(tokens(7, start)).ok());
    host.move_all();
    host.compute(lease);
    host.move_all();
    const Tokens whole = prompt + tokens(7, start);
    CHECK(host.found(whole) == 4);  // without the image
    auto again = host.cache->acquire({.scope = host.scope, .tokens = whole, .extras = {&image, 1}});
    REQUIRE(again.ok());
    CHECK(again->matched_tokens() == 12);
  };
  continues(*parent, 50);
  continues(*child, 60);
  REQUIRE(parent->truncate(6).ok());
  continues(*parent, 70);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("a keyed cache forks as well") {
  CacheOptions o = small();
  o.mode = IndexMode::kKeys;
  auto made = Cache::create(o);
  REQUIRE(made.ok());
  Cache& cache = **made;
  const auto scope =
      cache.open_scope({.model = "m", .positions = {}, .adapter = {}, .salt = {}, .vocab_size = 9});
  REQUIRE(scope.ok());
  const BlockKey keys[] = {{1, 1}, {2, 2}};
  auto parent = cache.acquire({.scope = *scope, .keys = keys, .tail_tokens = 2});
  REQUIRE(parent.ok());
  REQUIRE(parent->reserve(10).ok());
  REQUIRE(parent->commit(10, {0, 1}).ok());
  auto child = parent->fork();
  REQUIRE(child.ok());
  CHECK(row(*child) == row(*parent));
  REQUIRE(parent->abort().ok());
  REQUIRE(cache.reach({0, 1}).ok());
  CHECK(cache.stats().inserted_blocks == 2);
  REQUIRE(child->release().ok());
  CHECK(cache.audit().balanced());
}

TEST_CASE("by step a lease forks when all its loads and stores are done, and needs no copies") {
  Paged host(by_step());
  host.serve(tokens(9));
  Lease parent = host.acquire(tokens(14));
  CHECK(parent.matched_tokens() == 8);
  CHECK(parent.fork().status().code() == StatusCode::kWrongState);  // the prompt is not committed
  REQUIRE(parent.commit(6).ok());
  CHECK(parent.fork().status().code() == StatusCode::kWrongState);  // loads that were not taken
  auto loads = host.take();
  REQUIRE(loads.size() == 2);
  CHECK(parent.fork().status().code() == StatusCode::kWrongState);
  for (const StepEntry& e : loads) REQUIRE(host.cache->complete({e, {}}).ok());
  auto stores = host.take();
  REQUIRE(stores.size() == 1);
  CHECK(parent.fork().status().code() == StatusCode::kWrongState);
  REQUIRE(host.cache->complete({stores[0], {}}).ok());

  Lease child = host.fork(parent);
  CHECK(child.known_tokens() == 14);
  CHECK(child.committed_tokens() == 14);
  CHECK(host.take().empty());
  for (Lease* lease : {&parent, &child}) {
    REQUIRE(lease->append(tokens(2, lease == &child ? 50 : 60)).ok());
    REQUIRE(lease->commit(2).ok());
    CHECK(lease->exclusive_slots() == 0);
  }
  stores = host.take();
  CHECK(stores.size() == 2);
  for (const StepEntry& e : stores) {
    CHECK(e.kind == StepKind::kStore);
    REQUIRE(host.cache->complete({e, {}}).ok());
  }
  CHECK(host.found(tokens(14) + tokens(3, 50)) == 16);
  CHECK(host.found(tokens(14) + tokens(3, 60)) == 16);
  CHECK(host.balanced());
  REQUIRE(parent.release().ok());
  REQUIRE(child.release().ok());
  CHECK(host.settled());
  CHECK(host.cache->stats().requests == 2);
}

TEST_CASE("by step what no step has stored yet at the fork is stored once") {
  Paged host(by_step());
  Lease parent = host.acquire(tokens(10));
  REQUIRE(parent.commit(10).ok());
  Lease child = host.fork(parent);
  const auto stores = host.take();
  CHECK(stores.size() == 2);
  for (const StepEntry& e : stores) REQUIRE(host.cache->complete({e, {}}).ok());
  CHECK(host.take().empty());
  CHECK(host.found(tokens(13)) == 8);
  CHECK(host.used() == 2);
  CHECK(host.cache->stats().inserted_blocks == 2);
  CHECK(host.balanced());
}

TEST_CASE("by step a fork is not held up by stores that were under way for its parent") {
  Paged host(by_step());
  Lease parent = host.acquire(tokens(6));
  REQUIRE(parent.commit(6).ok());
  const auto stores = host.take();
  REQUIRE(stores.size() == 1);
  auto forked = parent.fork();
  if (forked.ok()) {
    REQUIRE(host.cache->complete({stores[0], {}}).ok());
    Lease child = std::move(*forked);
    REQUIRE(child.append(tokens(6, 6)).ok());
    REQUIRE(child.commit(6).ok());
    for (const StepEntry& e : host.take()) REQUIRE(host.cache->complete({e, {}}).ok());
    CHECK(host.found(tokens(13)) == 12);
    CHECK(child.truncate(6).ok());  // nothing is under way
  } else {
    CHECK(forked.status().code() == StatusCode::kWrongState);
  }
}

// ---- truncate --------------------------------------------------------------------------------------------------------

TEST_CASE("drafts that were rejected go, with the slots of their whole blocks") {
  Paged host;
  Lease lease = host.prefill(tokens(10));
  REQUIRE(lease.reserve(7).ok());
  REQUIRE(lease.append(tokens(7, 50)).ok());
  REQUIRE(lease.truncate(12).ok());  // two were right
  CHECK(lease.known_tokens() == 12);
  CHECK(lease.reserved_tokens() == 12);
  CHECK(lease.committed_tokens() == 10);
  CHECK(lease.table(0).size() == 3);
  CHECK(host.cache->pool().held_slots() == 2);
  CHECK(host.balanced());
  host.write(lease, 10, tokens(2, 50));
  REQUIRE(lease.commit(2).ok());
  host.decode(lease, tokens(2, 60));
  CHECK(host.read(lease) == tokens(10) + tokens(2, 50) + tokens(2, 60));
  CHECK(host.found(tokens(10) + tokens(3, 50)) == 12);
  CHECK(host.balanced());
}

TEST_CASE("slots that a truncation frees are held until the step has ended") {
  Paged host;
  Lease lease = host.prefill(tokens(5));
  REQUIRE(lease.reserve(30).ok());
  const std::uint32_t free = host.cache->pool().free_slots();
  REQUIRE(lease.truncate(5).ok());
  CHECK(host.cache->pool().free_slots() == free);
  CHECK(host.cache->pool().held_slots() == 7);
  host.end_step();
  CHECK(host.cache->pool().free_slots() == free + 7);
  CHECK(host.balanced());
}

TEST_CASE("a truncation to what is known changes nothing else than giving back what was reserved ahead") {
  Paged host;
  Lease lease = host.prefill(tokens(10));
  const Row before = row(lease);
  REQUIRE(lease.truncate(10).ok());
  CHECK(row(lease) == before);
  CHECK(lease.committed_tokens() == 10);
  CHECK(host.cache->pool().held_slots() == 0);
  CHECK(host.decode(lease, {50}).empty());
  CHECK(host.balanced());
}

TEST_CASE("a sequence goes back to the end of its prompt through published blocks, which stay") {
  Paged host;
  Lease lease = host.prefill(tokens(8));
  host.decode(lease, tokens(9, 8));
  CHECK(host.found(tokens(20)) == 16);
  REQUIRE(lease.truncate(8).ok());
  CHECK(lease.known_tokens() == 8);
  CHECK(lease.committed_tokens() == 8);
  CHECK(lease.reserved_tokens() == 8);
  CHECK(lease.table(0).size() == 2);
  CHECK(host.found(tokens(20)) == 16);
  CHECK(host.cache->stats().evicted_blocks == 0);
  CHECK(host.balanced());
  CHECK(host.decode(lease, tokens(5, 50)).empty());  // no block is shared in the middle
  CHECK(host.found(tokens(20)) == 16);
  CHECK(host.found(tokens(8) + tokens(5, 50)) == 12);
  CHECK(host.read(lease) == tokens(8) + tokens(5, 50));
  CHECK(host.balanced());
  REQUIRE(lease.release().ok());
  CHECK(host.settled());
}

TEST_CASE("a published block that a sequence was cut in is unharmed when the sequence goes on") {
  Paged host;
  Lease lease = host.prefill(tokens(5));
  host.decode(lease, tokens(8, 5));
  REQUIRE(host.found(tokens(20)) == 12);
  const Row before = row(lease);
  REQUIRE(lease.truncate(6).ok());
  CHECK(lease.table(0).size() == 2);
  CHECK(slot(lease, 1) == static_cast<SlotId>(before[1]));
  CHECK(host.found(tokens(20)) == 12);
  CHECK(host.cache->pool().holders(slot(lease, 1)) == 2);  // the lease and the tree
  CHECK(host.balanced());

  const auto copies = host.decode(lease, tokens(3, 50));
  REQUIRE(copies.size() == 1);
  CHECK(copies[0].from_slot == static_cast<SlotId>(before[1]));
  CHECK(copies[0].slot == slot(lease, 1));
  CHECK(copies[0].block == 1);
  CHECK(copies[0].tokens == 2);
  CHECK(slot(lease, 1) != static_cast<SlotId>(before[1]));
  CHECK(host.found(tokens(20)) == 12);
  CHECK(host.found(tokens(6) + tokens(4, 50)) == 8);
  CHECK(host.read(lease) == tokens(6) + tokens(3, 50));
  Lease again = host.acquire(tokens(20));
  REQUIRE(again.matched_tokens() == 12);
  CHECK(first(before, 3) == row(again));
  CHECK(host.read(again) == tokens(12));
  CHECK(host.balanced());
  REQUIRE(again.abort().ok());
  REQUIRE(lease.release().ok());
  CHECK(host.settled());
}

TEST_CASE("a sequence that was cut and takes the same way again uses the published slots") {
  Paged host;
  Lease lease = host.prefill(tokens(5));
  host.decode(lease, tokens(8, 5));
  const Row before = row(lease);
  REQUIRE(lease.truncate(6).ok());
  host.decode(lease, tokens(7, 6));
  CHECK(first(before, 3) == first(row(lease), 3));
  CHECK(host.cache->stats().inserted_blocks == 3);
  CHECK(host.cache->stats().duplicate_blocks == 2);
  CHECK(host.read(lease) == tokens(13));
  host.end_step();
  CHECK(host.used() == 4);
  CHECK(host.balanced());
  REQUIRE(lease.release().ok());
  CHECK(host.settled());
}

TEST_CASE("a truncation cuts commits that wait for their points") {
  Paged host;
  Lease lease = host.prefill(tokens(4));
  host.decode(lease, tokens(4, 4), {0, 1});
  host.decode(lease, tokens(4, 8), {0, 2});
  REQUIRE(lease.truncate(6).ok());
  CHECK(lease.committed_tokens() == 6);
  CHECK(host.balanced());
  CHECK(host.decode(lease, tokens(3, 50)).empty());   // the block is nobody else's
  CHECK(host.found(tokens(6) + tokens(4, 50)) == 4);  // its first half waits still
  REQUIRE(host.cache->reach({0, 1}).ok());
  CHECK(host.found(tokens(6) + tokens(4, 50)) == 8);
  REQUIRE(host.cache->reach({0, 2}).ok());
  CHECK(host.found(tokens(20)) == 4);
  CHECK(host.found(tokens(6) + tokens(4, 50)) == 8);
  CHECK(host.read(lease) == tokens(6) + tokens(3, 50));
  REQUIRE(lease.release().ok());
  CHECK(host.settled());
  CHECK(host.used() == 2);
}

TEST_CASE("a truncated branch lets go of what it shares, and the other keeps it") {
  Paged host;
  Lease parent = host.prefill(tokens(5));
  Lease child = host.fork(parent);
  host.decode(child, tokens(6, 50));
  Lease grandchild = host.fork(child);
  REQUIRE(child.truncate(5).ok());
  CHECK(child.table(0).size() == 2);
  CHECK(host.balanced());
  host.end_step();
  CHECK(host.read(grandchild) == tokens(5) + tokens(6, 50));
  host.decode(child, tokens(4, 70));
  CHECK(host.read(grandchild) == tokens(5) + tokens(6, 50));
  CHECK(host.read(child) == tokens(5) + tokens(4, 70));
  CHECK(host.read(parent) == tokens(5));
  CHECK(host.balanced());
  for (Lease* lease : {&grandchild, &child, &parent}) REQUIRE(lease->release().ok());
  CHECK(host.settled());
}

TEST_CASE("a branch that is cut inside a block that another branch will publish copies it") {
  Paged host;
  Lease parent = host.prefill(tokens(5));
  host.decode(parent, tokens(7, 5), {0, 1});
  Lease child = host.fork(parent);
  REQUIRE(parent.truncate(6).ok());
  CHECK(host.balanced());
  const auto copies = host.decode(parent, tokens(3, 50), {0, 2});
  REQUIRE(copies.size() == 1);
  CHECK(copies[0].block == 1);
  CHECK(copies[0].tokens == 2);
  CHECK(copies[0].source_ready == Point{0, 1});
  CHECK(host.read(child) == tokens(12));
  CHECK(host.read(parent) == tokens(6) + tokens(3, 50));
  REQUIRE(host.cache->reach({0, 1}).ok());
  CHECK(host.found(tokens(13)) == 12);
  CHECK(host.found(tokens(6) + tokens(4, 50)) == 4);
  REQUIRE(host.cache->reach({0, 2}).ok());
  CHECK(host.found(tokens(6) + tokens(4, 50)) == 8);
  CHECK(host.read(child) == tokens(12));
  CHECK(host.balanced());
  REQUIRE(parent.release().ok());
  REQUIRE(child.release().ok());
  CHECK(host.settled());
}

TEST_CASE("a cut inside a block of a branch that does not publish copies it if it is shared") {
  for (const bool shared : {true, false}) {
    Paged host;
    Lease parent = host.acquire(tokens(5), {.publish = false});
    host.compute(parent);
    host.write(parent, 0, tokens(5));
    host.decode(parent, tokens(7, 5));
    Lease child = host.fork(parent);
    if (!shared) REQUIRE(child.abort().ok());
    REQUIRE(parent.truncate(6).ok());
    CHECK(host.decode(parent, tokens(3, 50)).size() == (shared ? 1 : 0));
    CHECK(host.read(parent) == tokens(6) + tokens(3, 50));
    if (shared) CHECK(host.read(child) == tokens(12));
    CHECK(host.balanced());
  }
}

TEST_CASE("a branch is cut while another reads more of the shared block, which is not written then") {
  Paged host;
  Lease parent = host.prefill(tokens(5));
  host.decode(parent, tokens(6, 5));
  Lease child = host.fork(parent);
  REQUIRE(child.reserve(1).ok());    // its copy of three tokens waits
  REQUIRE(parent.truncate(9).ok());  // one of them is left
  REQUIRE(parent.append({{50}}).ok());
  REQUIRE(parent.reserve(1).ok());
  host.move();
  host.write(parent, 9, {50});
  REQUIRE(parent.commit(1).ok());
  CHECK(host.read(child) == tokens(11));
  CHECK(host.read(parent) == tokens(9) + Tokens{50});
  CHECK(host.balanced());
}

TEST_CASE("who waits for blocks that a truncation gave up takes over") {
  Paged host;
  Lease owner = host.prefill(tokens(5));
  REQUIRE(owner.append(tokens(12, 5)).ok());
  REQUIRE(owner.reserve(12).ok());
  Lease follower = host.acquire(tokens(17));
  CHECK_FALSE(follower.refresh().must_compute);
  REQUIRE(owner.truncate(9).ok());
  CHECK_FALSE(
      follower.refresh().must_compute);  // of its second block more than the prompt is left: it may come yet
  REQUIRE(owner.truncate(5).ok());
  CHECK(follower.refresh().must_compute);
  CHECK(follower.matched_tokens() == 4);
  host.compute(follower);
  CHECK(host.found(tokens(17)) == 16);
  REQUIRE(owner.append(tokens(12, 5)).ok());  // the same again, after all
  host.compute(owner);
  CHECK(host.cache->stats().inserted_blocks == 4);
  CHECK(first(row(owner), 4) == first(row(follower), 4));
  CHECK(host.balanced());
  REQUIRE(owner.release().ok());
  REQUIRE(follower.release().ok());
  CHECK(host.settled());
}

TEST_CASE("a request that fills the pool and was truncated gets all slots in one call") {
  for (const std::uint32_t back_to : {4u, 6u, 8u}) {
    CAPTURE(back_to);
    Paged host(small(4));
    Lease lease = host.prefill(tokens(4));
    host.decode(lease, tokens(12, 4));
    REQUIRE(lease.truncate(back_to).ok());
    host.end_step();
    CHECK(lease.reserve(16 - back_to).ok());
    CHECK(host.balanced());
  }
}

TEST_CASE("a request that fills the pool can be truncated and go on") {
  for (const std::uint32_t back_to : {4u, 6u, 8u}) {
    Paged host(small(4));
    Lease lease = host.prefill(tokens(4));
    host.decode(lease, tokens(12, 4));
    CHECK(host.used() == 4);
    host.end_step();
    Tokens text = tokens(16);
    for (TokenId round = 1; round < 4; ++round) {
      REQUIRE(lease.truncate(back_to).ok());
      CHECK(host.balanced());
      host.end_step();  // what was let go of may be evicted from now on
      text.resize(back_to);
      while (text.size() < 16) {
        const TokenId token = static_cast<TokenId>(100 * round + 1) + static_cast<TokenId>(text.size());
        host.decode(lease, {token});
        host.end_step();
        text.push_back(token);
      }
      CHECK(host.read(lease) == text);
      CHECK(host.found(text + tokens(1)) == 16);
      CHECK(host.balanced());
    }
    REQUIRE(lease.release().ok());
    CHECK(host.settled());
  }
}

TEST_CASE("what a truncation let go of is not evicted in the open step") {
  Paged host(small(4));
  Lease lease = host.prefill(tokens(4));
  host.decode(lease, tokens(12, 4));
  host.end_step();
  REQUIRE(lease.truncate(4).ok());
  CHECK(lease.reserve(12).code() == StatusCode::kExhausted);  // a step may still read it
  CHECK(lease.reserve(1).code() == StatusCode::kExhausted);
  CHECK(host.found(tokens(20)) == 16);
  host.end_step();
  CHECK(lease.reserve(12).ok());
  CHECK(host.found(tokens(20)) == 4);
  CHECK(host.balanced());
}

TEST_CASE("by step a truncation behind stores under way must wait for them") {
  Paged host(by_step());
  Lease lease = host.acquire(tokens(5));
  REQUIRE(lease.commit(5).ok());
  REQUIRE(lease.append(tokens(8, 5)).ok());
  REQUIRE(lease.commit(8).ok());
  const auto stores = host.take();
  REQUIRE(stores.size() == 3);
  CHECK(lease.truncate(9).code() == StatusCode::kWrongState);
  CHECK(lease.known_tokens() == 13);
  CHECK(lease.truncate(12).ok());  // none lies behind it
  for (const StepEntry& e : stores) REQUIRE(host.cache->complete({e, {}}).ok());
  REQUIRE(lease.truncate(9).ok());
  CHECK(lease.known_tokens() == 9);
  CHECK(lease.committed_tokens() == 9);
  CHECK(host.found(tokens(20)) == 12);
  REQUIRE(lease.append(tokens(3, 50)).ok());
  REQUIRE(lease.commit(3).ok());
  for (const StepEntry& e : host.take()) REQUIRE(host.cache->complete({e, {}}).ok());
  CHECK(host.found(tokens(9) + tokens(4, 50)) == 12);
  CHECK(host.found(tokens(20)) == 12);
  CHECK(host.balanced());
  REQUIRE(lease.release().ok());
  CHECK(host.settled());
}

// ---- commit_accepted -------------------------------------------------------------------------------------------------

TEST_CASE("accepted tokens that lie where they belong are committed without copies") {
  Paged host;
  Lease lease = host.prefill(tokens(8));
  REQUIRE(lease.reserve(6).ok());
  REQUIRE(host.append_and_accept(lease, tokens(5, 8), {0, 1, 2, 3, 4}).ok());
  CHECK(lease.committed_tokens() == 13);
  CHECK(lease.reserved_tokens() == 14);
  CHECK(host.take().empty());
  CHECK(host.found(tokens(20)) == 12);
  REQUIRE(lease.commit_accepted({}).ok());  // none
  CHECK(lease.committed_tokens() == 13);
  CHECK(host.balanced());
}

TEST_CASE("a path through a tree of drafts is moved to where it belongs") {
  Paged host;
  Lease lease = host.prefill(tokens(8));
  REQUIRE(lease.reserve(8).ok());
  host.write(lease, 8, {50, -1, 51, -1, -1, 52, -1, -1});
  REQUIRE(host.append_and_accept(lease, tokens(3, 50), {0, 2, 5}, {0, 1}).ok());
  CHECK(lease.committed_tokens() == 11);
  CHECK(lease.known_tokens() == 11);
  CHECK(lease.reserved_tokens() == 16);
  const auto copies = host.take();
  REQUIRE(copies.size() == 2);
  CHECK(copies[0].kind == StepKind::kCopy);
  CHECK(copies[0].lease == lease.index());
  CHECK(copies[0].block == 2);
  CHECK(copies[0].from_slot == slot(lease, 2));
  CHECK(copies[0].from_offset == 2);
  CHECK(copies[0].slot == slot(lease, 2));
  CHECK(copies[0].offset == 1);
  CHECK(copies[0].tokens == 1);
  CHECK(copies[0].source_ready == Point{0, 1});
  CHECK(copies[1].block == 2);
  CHECK(copies[1].from_slot == slot(lease, 3));
  CHECK(copies[1].from_offset == 1);
  CHECK(copies[1].slot == slot(lease, 2));
  CHECK(copies[1].offset == 2);
  CHECK(copies[1].tokens == 1);
  CHECK(copies[1].source_ready == Point{0, 1});
  host.carry_out(copies);
  CHECK(host.read(lease) == tokens(8) + tokens(3, 50));
  CHECK(host.balanced());
}

TEST_CASE("copies of accepted tokens that follow each other are one, within a block at either end") {
  Paged host;
  Lease lease = host.prefill(tokens(8));
  REQUIRE(lease.reserve(12).ok());
  host.write(lease, 8, {50, 51, -1, -1, 52, 53, 54, 55, 56, -1, -1, -1});
  REQUIRE(host.append_and_accept(lease, tokens(7, 50), {0, 1, 4, 5, 6, 7, 8}).ok());
  const auto copies = host.take();
  REQUIRE(copies.size() == 3);
  CHECK(copies[0].from_slot == slot(lease, 3));  // 12, 13 to 10, 11
  CHECK(copies[0].from_offset == 0);
  CHECK(copies[0].slot == slot(lease, 2));
  CHECK(copies[0].offset == 2);
  CHECK(copies[0].tokens == 2);
  CHECK(copies[1].from_slot == slot(lease, 3));  // 14, 15 to 12, 13
  CHECK(copies[1].from_offset == 2);
  CHECK(copies[1].slot == slot(lease, 3));
  CHECK(copies[1].offset == 0);
  CHECK(copies[1].tokens == 2);
  CHECK(copies[2].from_slot == slot(lease, 4));  // 16 to 14
  CHECK(copies[2].from_offset == 0);
  CHECK(copies[2].slot == slot(lease, 3));
  CHECK(copies[2].offset == 2);
  CHECK(copies[2].tokens == 1);
  host.carry_out(copies);
  CHECK(host.read(lease) == tokens(8) + tokens(7, 50));
  CHECK(host.found(tokens(8) + tokens(7, 50)) == 12);
  CHECK(host.balanced());
}

TEST_CASE("accepted tokens are found when their point is reached and their copies are done") {
  for (const bool copies_first : {true, false}) {
    Paged host;
    Lease lease = host.prefill(tokens(4));
    REQUIRE(lease.reserve(12).ok());
    host.write(lease, 4, Tokens{-1} + tokens(4, 4));
    REQUIRE(host.append_and_accept(lease, tokens(4, 4), {1, 2, 3, 4}, {0, 1}).ok());
    const auto copies = host.take();
    if (copies_first) host.carry_out(copies);
    if (!copies_first) REQUIRE(host.cache->reach({0, 1}).ok());
    CHECK(host.found(tokens(9)) == 4);
    if (!copies_first) host.carry_out(copies);
    if (copies_first) REQUIRE(host.cache->reach({0, 1}).ok());
    CHECK(host.found(tokens(9)) == 8);
    CHECK(host.read(lease) == tokens(8));
    CHECK(host.balanced());
  }
}

TEST_CASE("what is committed on top of accepted tokens waits for their copies") {
  Paged host;
  Lease lease = host.prefill(tokens(4));
  REQUIRE(lease.reserve(8).ok());
  host.write(lease, 4, {-1, 4, 5});
  REQUIRE(host.append_and_accept(lease, tokens(2, 4), {1, 2}).ok());
  const auto copies = host.take();
  REQUIRE(lease.append(tokens(6, 6)).ok());
  REQUIRE(lease.commit(2).ok());
  REQUIRE(lease.reserve(4).ok());
  REQUIRE(lease.commit(4).ok());
  CHECK(host.found(tokens(20)) == 4);
  host.carry_out(copies);
  CHECK(host.found(tokens(20)) == 12);
  CHECK(host.balanced());
}

TEST_CASE("a copy of accepted tokens that fails takes its block and all behind it") {
  Paged host;
  Lease lease = host.prefill(tokens(8));
  REQUIRE(lease.reserve(12).ok());
  REQUIRE(host.append_and_accept(lease, tokens(8, 8), {0, 1, 2, 3, 5, 6, 7, 8}).ok());
  CHECK(host.found(tokens(20)) == 12);  // its first block needs no copy
  const auto copies = host.take();
  REQUIRE(copies.size() == 4);
  for (const StepEntry& e : copies)
    REQUIRE(host.cache->complete({e, {StatusCode::kUnavailable, "told to fail"}}).ok());
  CHECK(lease.committed_tokens() == 12);
  CHECK(lease.reserved_tokens() == 12);
  CHECK(lease.known_tokens() == 16);
  CHECK(host.balanced());
  REQUIRE(lease.reserve(4).ok());
  REQUIRE(lease.commit(4).ok());
  CHECK(host.found(tokens(20)) == 16);
  REQUIRE(lease.release().ok());
  CHECK(host.settled());
}

TEST_CASE("drafts that copies read from stay until these are done, also when the sequence is cut") {
  Paged host;
  Lease lease = host.prefill(tokens(8));
  REQUIRE(lease.reserve(8).ok());
  host.write(lease, 8, {-1, -1, -1, -1, -1, 8, 9, 10});
  REQUIRE(host.append_and_accept(lease, tokens(3, 8), {5, 6, 7}).ok());
  const SlotId drafts = slot(lease, 3);
  REQUIRE(lease.truncate(11).ok());
  CHECK(lease.table(0).size() == 3);
  const auto copies = host.take();
  host.end_step();
  CHECK(host.cache->pool().holders(drafts) == copies.size());
  CHECK(host.balanced());
  host.carry_out(copies);
  host.end_step();
  CHECK(host.cache->pool().holders(drafts) == 0);
  CHECK(host.read(lease) == tokens(11));
  CHECK(host.balanced());
}

TEST_CASE("a sequence goes on behind accepted tokens whose copies were not carried out yet") {
  for (const bool taken : {false, true})
    for (const bool cut : {false, true}) {
      CAPTURE(taken, cut);
      Paged host;
      Lease lease = host.prefill(tokens(8));
      REQUIRE(lease.reserve(4).ok());
      host.write(lease, 8, {-1, 8, -1, -1});
      REQUIRE(host.append_and_accept(lease, {8}, {1}).ok());
      auto copies = taken ? host.take() : std::vector<StepEntry>();
      if (cut) REQUIRE(lease.truncate(9).ok());  // no more drafts: the slots of the others are not needed
      if (cut) REQUIRE(lease.reserve(3).ok());
      host.carry_out(copies);
      host.move();
      REQUIRE(lease.append(tokens(3, 9)).ok());
      host.write(lease, 9, tokens(3, 9));
      REQUIRE(lease.commit(3).ok());
      CHECK(host.read(lease) == tokens(12));
      CHECK(host.found(tokens(13)) == 12);
      CHECK(lease.fork().ok());  // nothing is under way
      CHECK(host.balanced());
      REQUIRE(lease.release().ok());
      CHECK(host.settled());
    }
}

// ---- duplicates ------------------------------------------------------------------------------------------------------

TEST_CASE("the second of two leases that computed the same goes on with the first one's slots") {
  Paged host;
  Lease a = host.acquire(tokens(9)), b = host.acquire(tokens(9));
  host.compute(a);
  REQUIRE(b.reserve(9).ok());
  const Row own = row(b);
  REQUIRE(b.commit(9, {0, 1}).ok());
  CHECK(row(b) == own);
  CHECK(host.used() == 6);
  REQUIRE(host.cache->reach({0, 1}).ok());
  CHECK(slot(b, 0) == slot(a, 0));
  CHECK(slot(b, 1) == slot(a, 1));
  CHECK(slot(b, 2) == static_cast<SlotId>(own[2]));
  CHECK(host.cache->stats().duplicate_blocks == 2);
  CHECK(host.cache->stats().inserted_blocks == 2);
  CHECK(host.cache->pool().held_slots() == 2);  // a step that was launched may use them
  CHECK(host.balanced());
  host.end_step();
  CHECK(host.cache->pool().held_slots() == 0);
  CHECK(host.used() == 4);
  REQUIRE(a.release().ok());
  REQUIRE(b.release().ok());
  CHECK(host.settled());
  CHECK(host.used() == 2);
}

TEST_CASE("branches that share a block which another lease published first both go on with its slot") {
  Paged host;
  Lease other = host.acquire(tokens(9)), parent = host.acquire(tokens(9));
  host.compute(parent, {0, 1});
  Lease child = host.fork(parent);
  host.compute(other);
  REQUIRE(host.cache->reach({0, 1}).ok());
  for (const Lease* lease : {&parent, &child}) {
    CHECK(slot(*lease, 0) == slot(other, 0));
    CHECK(slot(*lease, 1) == slot(other, 1));
  }
  CHECK(host.balanced());
  host.end_step();
  CHECK(host.used() == 2 + 2);  // the last block of `other`, and that of the branches
  CHECK(host.balanced());
  for (Lease* lease : {&parent, &child, &other}) REQUIRE(lease->release().ok());
  CHECK(host.settled());
}

TEST_CASE("samples that decode the same end up in the same slots") {
  Paged host;
  Lease a = host.prefill(tokens(10));
  Lease b = host.fork(a);
  host.decode(a, tokens(6, 10));
  host.decode(b, tokens(6, 10));
  CHECK(row(a) == row(b));
  CHECK(host.cache->stats().duplicate_blocks == 2);
  host.end_step();
  CHECK(host.used() == 4);
  CHECK(host.read(b) == tokens(16));
  CHECK(host.balanced());
}

// ---- exclusive_slots -------------------------------------------------------------------------------------------------

TEST_CASE("a lease that is alone holds all its slots for itself, published or not") {
  Paged host;
  Lease lease = host.acquire(tokens(10));
  CHECK(lease.exclusive_slots() == 0);
  REQUIRE(lease.reserve(10).ok());
  CHECK(lease.exclusive_slots() == 3);
  REQUIRE(lease.commit(10).ok());
  CHECK(lease.exclusive_slots() == 3);
  REQUIRE(lease.reserve(10).ok());
  CHECK(lease.exclusive_slots() == 5);
  REQUIRE(lease.release().ok());
  CHECK(lease.exclusive_slots() == 0);
}

TEST_CASE("a prefix that two leases share is neither's alone") {
  Paged host;
  Lease a = host.prefill(tokens(10));
  {
    Lease b = host.prefill(tokens(8) + tokens(7, 50));
    REQUIRE(b.matched_tokens() == 8);
    CHECK(a.exclusive_slots() == 1);
    CHECK(b.exclusive_slots() == 2);
    CHECK(host.used() == 2 + 1 + 2);
  }
  CHECK(a.exclusive_slots() == 3);
}

TEST_CASE("what branches share is nobody's alone until they part") {
  Paged host;
  Lease a = host.prefill(tokens(10), {0, 1});
  Lease b = host.fork(a);
  CHECK(a.exclusive_slots() == 0);
  CHECK(b.exclusive_slots() == 0);
  REQUIRE(host.cache->reach({0, 1}).ok());
  CHECK(a.exclusive_slots() == 0);
  CHECK(b.exclusive_slots() == 0);
  host.decode(b, tokens(3, 50));
  CHECK(a.exclusive_slots() == 1);
  CHECK(b.exclusive_slots() == 2);
  REQUIRE(a.release().ok());
  CHECK(b.exclusive_slots() == 4);
}

TEST_CASE("a longer sequence that goes on where a shorter one ends holds its end for itself") {
  Paged host;
  Lease shorter = host.acquire(tokens(8)), longer = host.acquire(tokens(24));  // before either is computed
  host.compute(shorter);
  CHECK(longer.refresh().ready_tokens == 8);
  host.compute(longer);
  CHECK(shorter.exclusive_slots() == 0);
  CHECK(longer.exclusive_slots() == 4);
}

TEST_CASE("by step a lease holds no slots for itself") {
  Paged host(by_step());
  Lease lease = host.acquire(tokens(10));
  REQUIRE(lease.commit(10).ok());
  CHECK(host.take().size() == 2);
  CHECK(lease.exclusive_slots() == 0);
}

// ---- delta -----------------------------------------------------------------------------------------------------------

TEST_CASE("the first delta is all of the table, and one that follows at once is empty") {
  Paged host;
  host.serve(tokens(9));
  Lease nothing = host.acquire(tokens(9, 70));
  CHECK(nothing.delta().empty());
  Lease lease = host.acquire(tokens(14));
  CHECK(lease.delta() == BlockRange{0, 2});
  CHECK(lease.delta().empty());
  host.compute(lease);
  CHECK(lease.delta() == BlockRange{2, 4});
  Lease child = host.fork(lease);
  CHECK(child.delta() == BlockRange{0, 4});
  CHECK(child.delta().empty());
  CHECK(lease.delta().empty());  // nothing of its own changed
  REQUIRE(lease.release().ok());
  CHECK(lease.delta().empty());
}

TEST_CASE("delta tells what reserve, refresh and a copy on write change, and no more") {
  Paged host;
  Lease owner = host.acquire(tokens(14)), lease = host.acquire(tokens(14));
  host.compute(owner);
  CHECK(lease.delta().empty());
  CHECK(lease.refresh().ready_tokens == 12);
  CHECK(lease.delta() == BlockRange{0, 3});
  REQUIRE(lease.reserve(2).ok());
  CHECK(lease.delta() == BlockRange{3, 4});
  REQUIRE(lease.reserve(1).ok());
  CHECK(lease.delta().empty());  // in the same block
  REQUIRE(lease.commit(2).ok());
  REQUIRE(lease.truncate(14).ok());
  CHECK(lease.delta().empty());
  Lease child = host.fork(lease);
  REQUIRE(lease.reserve(5).ok());
  CHECK(lease.delta() == BlockRange{3, 5});  // a copy, and a new block
  CHECK(child.delta() == BlockRange{0, 4});
}

TEST_CASE("delta covers blocks that another lease published first") {
  Paged host;
  Lease a = host.acquire(tokens(13)), b = host.acquire(tokens(13));
  host.compute(b, {0, 1});
  CHECK(b.delta() == BlockRange{0, 4});
  REQUIRE(a.reserve(13).ok());
  REQUIRE(a.commit(9).ok());
  CHECK(b.delta().empty());
  REQUIRE(host.cache->reach({0, 1}).ok());
  CHECK(b.delta() == BlockRange{0, 2});
  CHECK(slot(b, 1) == slot(a, 1));
}

TEST_CASE("a delta that was not asked for is cut to the table by a truncation") {
  Paged host;
  Lease lease = host.prefill(tokens(5));
  CHECK(lease.delta() == BlockRange{0, 2});
  REQUIRE(lease.reserve(11).ok());
  REQUIRE(lease.truncate(5).ok());
  CHECK(lease.delta().empty());
  REQUIRE(lease.reserve(11).ok());
  REQUIRE(lease.append(tokens(5, 5)).ok());
  REQUIRE(lease.truncate(9).ok());
  CHECK(lease.delta() == BlockRange{2, 3});
}
