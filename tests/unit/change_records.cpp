// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "cache_support.hpp"

using namespace kvstem;
using namespace kvstem::test;

namespace {
std::vector<Change> take(Cache& cache) {
  std::vector<Change> all;
  Change room[3];
  for (auto got = cache.take_changes(room); !got.empty(); got = cache.take_changes(room))
    all.insert(all.end(), got.begin(), got.end());
  return all;
}
}  // namespace

TEST_CASE("stored blocks are told from the root, removed ones from the leaf, numbered without gaps") {
  CacheOptions o = small(4);
  o.medium = Medium::kHost;
  Host<> host(o);
  host.serve(tokens(16));
  auto records = take(*host.cache);
  REQUIRE(records.size() == 4);
  const BlockKey root = *host.cache->hasher().root(
      {.model = "m", .positions = {}, .adapter = {}, .salt = "", .vocab_size = 100'000});
  KeyChain chain(host.cache->hasher(), root, 4);
  chain.append(tokens(16));
  for (std::uint32_t i = 0; i < 4; ++i) {
    CHECK(records[i].number == i);
    CHECK(records[i].kind == ChangeKind::kStored);
    CHECK(records[i].medium == Medium::kHost);
    CHECK(records[i].key == chain.keys()[i]);
    CHECK(records[i].parent == (i == 0 ? root : chain.keys()[i - 1]));
  }
  CHECK(take(*host.cache).empty());
  host.serve(tokens(8, 100));
  records = take(*host.cache);
  REQUIRE(records.size() == 4);
  for (std::uint32_t i = 0; i < 2; ++i) {
    CHECK(records[i].number == 4 + i);
    CHECK(records[i].kind == ChangeKind::kRemoved);
    CHECK(records[i].key == chain.keys()[3 - i]);
    CHECK(records[i].parent == chain.keys()[2 - i]);
  }
}

TEST_CASE("records that nobody takes are lost oldest first, and their number is known") {
  CacheOptions o = small();
  o.fill = SlotFill::kByStep;
  o.max_changes = 3;
  Host<> host(o);
  host.serve(tokens(24));
  CHECK(host.cache->stats().lost_changes == 3);
  auto records = take(*host.cache);
  REQUIRE(records.size() == 3);
  CHECK(records[0].number == 3);
  // Six leave in one call, told from the leaf up: the last three are those next to the root.
  auto lease = host.acquire(tokens(25));
  StepEntry room[8];
  const auto loads = host.cache->take_loads(lease, room);
  REQUIRE(loads.size() == 6);
  REQUIRE(host.cache->complete({loads[0], Status(StatusCode::kCorrupt, "")}).ok());
  CHECK(host.cache->stats().lost_changes == 6);
  records = take(*host.cache);
  REQUIRE(records.size() == 3);
  for (std::uint32_t i = 0; i < 3; ++i) {
    CHECK(records[i].number == 9 + i);
    CHECK(records[i].kind == ChangeKind::kRemoved);
    CHECK(records[i].key == loads[2 - i].key);
  }
}

TEST_CASE("without a place for them there are no records and nothing is lost") {
  CacheOptions o = small();
  o.max_changes = 0;
  Host<> host(o);
  host.serve(tokens(24));
  CHECK(take(*host.cache).empty());
  CHECK(host.cache->stats().lost_changes == 0);
}
