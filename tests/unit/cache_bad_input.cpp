// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Bad input gets a status or does nothing, and nothing is lost by it.
#include "cache_support.hpp"

using namespace kvstem;
using namespace kvstem::test;

namespace {
StatusCode refused(const CacheOptions& options) { return Cache::create(options).status().code(); }
}  // namespace

TEST_CASE("sizes that cannot work are refused at creation") {
  CacheOptions o = small();
  o.block_tokens = 0;
  CHECK(refused(o) == StatusCode::kInvalidArgument);
  o = small();
  o.block_tokens = kMaxBlockTokens + 1;
  CHECK(refused(o) == StatusCode::kInvalidArgument);
  o = small(0);
  CHECK(refused(o) == StatusCode::kInvalidArgument);
  o = small();
  o.max_leases = 0;
  CHECK(refused(o) == StatusCode::kInvalidArgument);
  o = small();
  o.max_scopes = 0;
  CHECK(refused(o) == StatusCode::kInvalidArgument);
  o = small();
  o.max_lease_tokens = o.block_tokens - 1;
  CHECK(refused(o) == StatusCode::kInvalidArgument);
  o = small();
  std::int32_t too_few[4];
  o.tables = too_few;
  CHECK(refused(o) == StatusCode::kInvalidArgument);
  o = small();
  o.mode = IndexMode::kNothing;  // has no keys to put into change records
  CHECK(refused(o) == StatusCode::kInvalidArgument);
  o.flight_log.write = [](void*, std::span<const std::byte>) {};
  CHECK(refused(o) == StatusCode::kInvalidArgument);
  CHECK(refused(small()) == StatusCode::kOk);
}

TEST_CASE("one slot, one lease and blocks of one token are enough") {
  CacheOptions o = small(1);
  o.block_tokens = 1;
  o.max_leases = 1;
  o.max_lease_tokens = 1;
  Host<> host(o);
  CHECK(host.serve({7}) == 0);
  CHECK(host.serve({7}) == 0);  // its only token is the last
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("an empty prompt and a prompt of one token are leases that match nothing") {
  Host<> host;
  auto empty = host.acquire({});
  CHECK(empty.matched_tokens() == 0);
  CHECK(empty.known_tokens() == 0);
  CHECK(empty.table(0).empty());
  CHECK(empty.refresh().must_compute);
  CHECK(empty.append(tokens(5)).ok());
  host.compute(empty);
  CHECK(empty.release().ok());
  auto one = host.acquire({0});
  CHECK(one.matched_tokens() == 0);
  host.compute(one);
  CHECK(one.release().ok());
  CHECK(host.found(tokens(5)) == 4);  // what was appended to nothing is found
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("a token outside the vocabulary is refused where it would enter the tree") {
  Host<> host;
  host.scope = host.open("small vocabulary", 100);
  for (const TokenId bad : {-1, 100, std::numeric_limits<TokenId>::min()}) {
    for (const std::uint32_t at : {0u, 3u, 4u, 9u}) {
      Tokens prompt = tokens(10);
      prompt[at] = bad;
      const auto lease = host.cache->acquire({.scope = host.scope, .tokens = prompt});
      CHECK(lease.status().code() == StatusCode::kOutOfRange);
    }
    auto lease = host.acquire(tokens(6));
    CHECK(lease.append(Tokens{5, bad}).code() == StatusCode::kOutOfRange);
    CHECK(lease.known_tokens() == 6);  // none of them
    CHECK(lease.append(Tokens{5, 99}).ok());
  }
  CHECK(host.cache->stats().refused_requests == 12);
  CHECK(host.cache->audit().lease_pins == 0);
}

TEST_CASE("behind a change of scope the other scope's vocabulary counts") {
  Host<> host;
  const ScopeId base = host.open("base", 100), wide = host.open("wide", 200);
  const ScopeChange to_wide[] = {{6, wide}}, to_base[] = {{6, base}};
  Tokens prompt = tokens(10);
  prompt[7] = 150;
  auto lease = host.cache->acquire({.scope = base, .tokens = prompt, .changes = to_wide});
  REQUIRE(lease.ok());
  CHECK(lease->append(Tokens{199}).ok());
  CHECK(lease->append(Tokens{200}).code() == StatusCode::kOutOfRange);
  CHECK(host.cache->acquire({.scope = wide, .tokens = prompt, .changes = to_base}).status().code() ==
        StatusCode::kOutOfRange);
  prompt[7] = 7;
  prompt[5] = 150;
  CHECK(host.cache->acquire({.scope = base, .tokens = prompt, .changes = to_wide}).status().code() ==
        StatusCode::kOutOfRange);
}

TEST_CASE("prompts that make no sense are refused") {
  Host<> host;
  const Tokens prompt = tokens(12);
  const auto code = [&](const Prompt& p) {
    auto reader = host.cache->register_reader();
    ProbeRange ranges[3];
    const StatusCode acquired = host.cache->acquire(p).status().code();
    CHECK(host.cache->probe(*reader, p, ranges).status().code() == acquired);
    return acquired;
  };
  CHECK(code({.scope = ScopeId{1}, .tokens = prompt}) == StatusCode::kInvalidArgument);
  const ScopeChange unknown[] = {{4, ScopeId{9}}};
  CHECK(code({.scope = host.scope, .tokens = prompt, .changes = unknown}) == StatusCode::kInvalidArgument);
  const Extra unsorted[] = {{5, {}}, {4, {}}};
  CHECK(code({.scope = host.scope, .tokens = prompt, .extras = unsorted}) == StatusCode::kInvalidArgument);
  const Extra behind[] = {{12, {}}};
  CHECK(code({.scope = host.scope, .tokens = prompt, .extras = behind}) == StatusCode::kOutOfRange);
  const ScopeChange twice[] = {{4, host.scope}, {4, host.scope}};
  CHECK(code({.scope = host.scope, .tokens = prompt, .changes = twice}) == StatusCode::kInvalidArgument);
  const std::vector<Extra> crowd(kMaxMarksPerBlock + 1);
  CHECK(code({.scope = host.scope, .tokens = prompt, .extras = crowd}) == StatusCode::kOutOfRange);
  const BlockKey keys[] = {{1, 2}};
  CHECK(code({.scope = host.scope, .keys = keys}) == StatusCode::kInvalidArgument);
  CHECK(host.cache->stats().refused_requests == 7);
  auto reader = host.cache->register_reader();
  ProbeRange two[2];
  CHECK(host.cache->probe(*reader, {.scope = host.scope, .tokens = prompt}, two).status().code() ==
        StatusCode::kInvalidArgument);
  CHECK(host.cache->open_scope({}).status().code() == StatusCode::kInvalidArgument);
}

TEST_CASE("a prompt of a million tokens is served if it was declared, and refused otherwise") {
  constexpr std::uint32_t kMillion = 1'000'000;
  const Tokens prompt = tokens(kMillion);
  Host<> small_host;
  CHECK(small_host.cache->acquire({.scope = small_host.scope, .tokens = prompt}).status().code() ==
        StatusCode::kOutOfRange);
  CacheOptions o;
  o.slots = kMillion / 16 + 1;
  o.max_leases = 2;
  o.max_lease_tokens = kMillion;
  Host<> host(o);
  host.scope = host.open("large vocabulary", kMillion);
  CHECK(host.serve(prompt) == 0);
  CHECK(host.serve(prompt) == kMillion - 16);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE(
    "tokens are neither committed before they are known and reserved nor reserved beyond the longest "
    "sequence") {
  Host<> host;
  auto lease = host.acquire(tokens(6));
  CHECK(lease.commit(1).code() == StatusCode::kOutOfRange);  // not reserved
  CHECK(lease.reserve(10).ok());
  CHECK(lease.commit(7).code() == StatusCode::kOutOfRange);  // not known
  CHECK(lease.commit(~0u).code() == StatusCode::kOutOfRange);
  CHECK(lease.committed_tokens() == 0);
  CHECK(lease.commit(6).ok());
  CHECK(lease.reserve(64).code() == StatusCode::kOutOfRange);
  CHECK(lease.reserve(~0u).code() == StatusCode::kOutOfRange);
  CHECK(lease.append(tokens(59)).code() == StatusCode::kOutOfRange);
  CHECK(lease.reserved_tokens() == 10);
  CHECK(lease.reserve(54).ok());
  CHECK(lease.append(tokens(58)).ok());
  CHECK(lease.commit(58).ok());
  CHECK(lease.release().ok());
  host.end_step();
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("timelines that do not exist are refused") {
  Host<> host;
  auto lease = host.acquire(tokens(4));
  REQUIRE(lease.reserve(4).ok());
  CHECK(lease.commit(4, {Cache::kMaxTimelines, 1}).code() == StatusCode::kOutOfRange);
  CHECK(host.cache->reach({Cache::kMaxTimelines, 1}).code() == StatusCode::kOutOfRange);
  CHECK(lease.commit(4).ok());
}

TEST_CASE("a lease that ended is stale and does nothing") {
  Host<> host;
  Lease lease = host.acquire(tokens(9));
  host.compute(lease);
  CHECK(lease.release().ok());
  CHECK_FALSE(lease.live());
  CHECK(lease.release().code() == StatusCode::kStale);  // the second time
  CHECK(lease.abort().code() == StatusCode::kStale);
  CHECK(lease.reserve(1).code() == StatusCode::kStale);
  CHECK(lease.append(tokens(1)).code() == StatusCode::kStale);
  CHECK(lease.commit(0).code() == StatusCode::kStale);
  CHECK(lease.matched_tokens() == 0);
  CHECK(lease.known_tokens() == 0);
  CHECK(lease.table(0).empty());
  CHECK(lease.refresh().ready_tokens == 0);
  // Its place is another's now; the old handle does not reach it.
  Lease next = host.acquire(tokens(9));
  CHECK(next.index() == lease.index());
  CHECK(lease.release().code() == StatusCode::kStale);
  CHECK(next.live());
  Lease moved = std::move(next);
  CHECK(next.commit(0).code() == StatusCode::kStale);
  CHECK(moved.live());
  CHECK(Lease().release().code() == StatusCode::kStale);
  CHECK(moved.table(1).empty());  // there is no second group
}

TEST_CASE("a result that is reported twice, or for nothing, changes nothing") {
  CacheOptions o = small();
  o.fill = SlotFill::kByStep;
  Host<> host(o);
  auto lease = host.acquire(tokens(9));
  host.compute(lease);
  StepEntry room[8];
  const auto stores = host.cache->take_step(room);
  REQUIRE(stores.size() == 2);
  for (int twice = 0; twice < 2; ++twice)
    for (const StepEntry& e : stores)
      CHECK(host.cache->complete({e, {}}).code() == (twice == 0 ? StatusCode::kOk : StatusCode::kStale));
  CHECK(host.cache->stats().inserted_blocks == 2);
  StepEntry nonsense = stores[0];
  nonsense.slot = 1'000'000;
  CHECK(host.cache->complete({nonsense, {}}).code() == StatusCode::kStale);
  nonsense = {};
  nonsense.kind = StepKind::kStore;
  CHECK(host.cache->complete({nonsense, {}}).code() == StatusCode::kStale);
  nonsense.kind = StepKind::kLoad;
  nonsense.slot = stores[0].slot;
  CHECK(host.cache->complete({nonsense, Status(StatusCode::kCorrupt, "")}).code() == StatusCode::kStale);
  CHECK(host.cache->audit().balanced());
  CHECK(lease.release().ok());
  CHECK(host.found(tokens(9)) == 8);
}

TEST_CASE("scopes and readers run out with a status") {
  CacheOptions o = small();
  o.max_scopes = 2;
  o.max_readers = 1;
  Host<> host(o);
  const Scope again{.model = "m", .positions = {}, .adapter = {}, .salt = "", .vocab_size = 100'000};
  CHECK(*host.cache->open_scope(again) == host.scope);  // equal scopes have one id
  host.open("two");
  CHECK(host.cache->open_scope({.model = "three", .vocab_size = 9}).status().code() ==
        StatusCode::kExhausted);
  {
    const auto reader = host.cache->register_reader();
    CHECK(reader.ok());
    CHECK(host.cache->register_reader().status().code() == StatusCode::kExhausted);
  }
  CHECK(host.cache->register_reader().ok());
}

TEST_CASE("a keyed cache takes keys and nothing else") {
  CacheOptions o = small();
  o.mode = IndexMode::kKeys;
  Host<> host(o);
  const Tokens prompt = tokens(8);
  CHECK(host.cache->acquire({.scope = host.scope, .tokens = prompt}).status().code() ==
        StatusCode::kInvalidArgument);
  const BlockKey keys[] = {{1, 1}, {2, 2}, {3, 3}};
  auto first = host.cache->acquire({.scope = host.scope, .keys = keys});
  REQUIRE(first.ok());
  CHECK(first->append(prompt).code() == StatusCode::kUnsupported);
  host.compute(*first);
  CHECK(first->release().ok());
  auto second = host.cache->acquire({.scope = host.scope, .keys = keys});
  REQUIRE(second.ok());
  CHECK(second->matched_tokens() == 8);
  CHECK(second->known_tokens() == 12);
  // What lies behind the keys is the part that is always computed, so all of them can be found.
  auto third = host.cache->acquire({.scope = host.scope, .keys = keys, .tail_tokens = 3});
  REQUIRE(third.ok());
  CHECK(third->matched_tokens() == 12);
  CHECK(third->known_tokens() == 15);
  CHECK(third->abort().ok());
  CHECK(host.cache->acquire({.scope = host.scope, .keys = keys, .tail_tokens = 5}).status().code() ==
        StatusCode::kInvalidArgument);
  Host<> by_tokens(small());
  CHECK(by_tokens.cache->acquire({.scope = by_tokens.scope, .tokens = prompt, .tail_tokens = 1})
            .status()
            .code() == StatusCode::kInvalidArgument);
}

TEST_CASE("a step that ends on no timeline, on another, or before the one before is refused") {
  Host<> host(small(2));
  CHECK(host.cache->end_step({Cache::kMaxTimelines, 1}).code() == StatusCode::kOutOfRange);
  CHECK(host.cache->end_step({2, 7}).ok());
  CHECK(host.cache->end_step({2, 7}).ok());
  auto lease = host.acquire(tokens(4));
  REQUIRE(lease.reserve(4).ok());
  REQUIRE(lease.abort().ok());
  CHECK(host.cache->end_step({3, 8}).code() == StatusCode::kInvalidArgument);
  CHECK(host.cache->end_step({2, 6}).code() == StatusCode::kInvalidArgument);
  CHECK(host.cache->pool().held_slots() == 1);
  CHECK(host.cache->end_step({2, 8}).ok());
  CHECK(host.cache->pool().held_slots() == 0);
}
