// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Groups that make no sense are refused when the cache is created, with a message; calls that several groups do not allow
// are refused and change nothing.
#include <array>
#include <string_view>

#include "cache_support.hpp"

using namespace kvstem;
using namespace kvstem::test;

namespace {

using Groups = std::vector<KvGroup>;

constexpr KvGroup kFull{.bytes_per_token = 1};
constexpr KvGroup kWindow{.kind = GroupKind::kSlidingWindow, .window_tokens = 8, .bytes_per_token = 1};
constexpr KvGroup kState{.kind = GroupKind::kStateCheckpoint, .bytes_per_token = 4};
constexpr KvGroup kSide{.kind = GroupKind::kSideData, .bytes_per_token = 1};

template <class Change>
KvGroup with(KvGroup group, Change&& change) {
  change(group);
  return group;
}

Status create(const Groups& groups, CacheOptions o = small()) {
  o.groups = groups;
  return Cache::create(o).status();
}
void refused(const Groups& groups, std::string_view says, const CacheOptions& o = small(),
             StatusCode code = StatusCode::kInvalidArgument) {
  const Status status = create(groups, o);
  INFO(says << ": " << status.message());
  CHECK(status.code() == code);
  CHECK(std::string_view(status.message()).find(says) != std::string_view::npos);
}

struct Grouped : Host<> {
  explicit Grouped(const Groups& groups) : Host<>(options(groups)) {}
  static CacheOptions options(const Groups& groups) {
    CacheOptions o = small();
    o.groups = groups;
    return o;
  }
};

}  // namespace

TEST_CASE("a cache has at most eight groups") {
  CHECK(create(Groups(8, kFull)).ok());
  refused(Groups(9, kFull), "at most 8");
}

TEST_CASE("a window has its tokens, and nothing else has") {
  refused({kFull, with(kWindow, [](KvGroup& g) { g.window_tokens = 0; })}, "window_tokens");
  refused({with(kFull, [](KvGroup& g) { g.window_tokens = 4; })}, "window_tokens");
  refused({kFull, with(kState, [](KvGroup& g) { g.window_tokens = 4; })}, "window_tokens");
  refused({kFull, with(kSide, [](KvGroup& g) { g.window_tokens = 4; })}, "window_tokens");
}

TEST_CASE("a state has neither blocks nor lag") {
  refused({kFull, with(kState, [](KvGroup& g) { g.block_tokens = 4; })}, "block_tokens");
  refused({kFull, with(kState, [](KvGroup& g) { g.lag_tokens = 4; })}, "lag_tokens");
}

TEST_CASE("only states have checkpoints") {
  for (const KvGroup& group : {kFull, kWindow, kSide})
    refused({kFull, with(group, [](KvGroup& g) { g.checkpoint_blocks = 2; })}, "checkpoint_blocks");
}

TEST_CASE("block sizes are multiples of the cache's, and of one another") {
  const auto blocks = [](std::uint32_t tokens) {
    return with(kFull, [&](KvGroup& g) { g.block_tokens = tokens; });
  };
  CHECK(create({kFull, blocks(4), blocks(8), blocks(16)}).ok());
  refused({kFull, blocks(2)}, "multiple");
  refused({kFull, blocks(6)}, "multiple");
  refused({kFull, blocks(2048)}, "at most 1024");
  refused({kFull, blocks(8), blocks(12)}, "multiples of one another");
}

TEST_CASE("side data names a group that has blocks") {
  const auto beside = [](GroupId id) { return with(kSide, [&](KvGroup& g) { g.with = id; }); };
  CHECK(create({kFull, kSide}).ok());
  CHECK(create({beside(1), kFull}).ok());
  refused({kSide, kFull}, "side data");  // it would lie beside itself
  refused({kFull, beside(1)}, "side data");
  refused({kFull, beside(2)}, "side data");
  refused({kFull, kSide, beside(1)}, "side data");
  refused({kFull, kState, beside(1)}, "side data");
}

TEST_CASE("a pool is shared with an earlier group of equal blocks that says how many there are") {
  const auto sharing = [](KvGroup group, GroupId id) {
    return with(group, [&](KvGroup& g) { g.with = id; });
  };
  CHECK(create({kFull, sharing(kWindow, 0), sharing(kState, 0)}).ok());
  CHECK(create({kFull, sharing(kWindow, 0), sharing(kState, 1)}).ok());  // by way of another
  refused({kFull, sharing(kWindow, 1)}, "earlier group");
  refused({kFull, sharing(kWindow, 2), kWindow}, "earlier group");
  refused({sharing(kFull, 0)}, "earlier group");
  refused({kFull, kSide, sharing(kWindow, 1)}, "earlier group");
  refused({kFull, with(sharing(kWindow, 0), [](KvGroup& g) { g.slots = 4; })}, "no slots of its own");
  refused({kFull, with(sharing(kWindow, 0), [](KvGroup& g) { g.bytes_per_token = 2; })}, "equal bytes");
  refused({kFull, with(sharing(kState, 0), [](KvGroup& g) { g.bytes_per_token = 1; })}, "equal bytes");
}

TEST_CASE("one slot is not enough where it is the null slot") {
  CacheOptions o = small(1);
  o.null_slot = true;
  refused({}, "null slot", o);
  o.slots = 2;
  CHECK(create({}, o).ok());
  refused({kFull, with(kWindow, [](KvGroup& g) { g.slots = 1; })}, "null slot", o);
}

TEST_CASE("by step a cache keeps one group of full attention") {
  CacheOptions o = small();
  o.fill = SlotFill::kByStep;
  CHECK(create({kFull}, o).ok());
  for (const Groups& groups : {Groups{kFull, kWindow}, Groups{kFull, kFull}, Groups{kWindow}, Groups{kState}})
    refused(groups, "one group", o, StatusCode::kUnsupported);
  o.null_slot = true;
  refused({kFull}, "null slot", o);
}

TEST_CASE("a group that does not exist has an empty table and no changes") {
  Grouped host({kFull, kWindow, kState});
  Lease lease = host.acquire(tokens(9));
  REQUIRE(lease.reserve(9).ok());
  for (const GroupId group : {GroupId{3}, GroupId{7}, GroupId{8}, GroupId{200}, kNoGroup}) {
    CHECK(lease.table(group).empty());
    CHECK(lease.padded_table(group).empty());
    CHECK(lease.delta(group).empty());
  }
  CHECK(lease.table(0).size() == 3);
  REQUIRE(lease.release().ok());
  for (GroupId group = 0; group < 3; ++group) CHECK(lease.table(group).empty());
  CHECK(lease.next_boundary(5) == kToEnd);
  CHECK(lease.missed_tokens() == 0);
  CHECK(lease.quote(5).slots == 0);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("without full attention no number but the groups' own names a table") {
  Grouped host({kWindow});
  Lease lease = host.acquire(tokens(9));
  REQUIRE(lease.reserve(9).ok());
  CHECK(lease.table(0).size() == 3);
  for (const GroupId group : {GroupId{1}, GroupId{8}, kNoGroup}) {
    CHECK(lease.table(group).empty());
    CHECK(lease.delta(group).empty());
  }
}

TEST_CASE("several groups do not onboard") {
  Grouped host({kFull, kWindow});
  Lease lease = host.acquire(tokens(9));
  CHECK(lease.onboard(4).code() == StatusCode::kUnsupported);
  CHECK(lease.reserved_tokens() == 0);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("a state follows one path of drafts") {
  Grouped host({kFull, kState});
  Lease lease = host.acquire(tokens(5));
  host.compute(lease);
  REQUIRE(lease.reserve(4).ok());
  REQUIRE(lease.append(tokens(2)).ok());
  const std::array<std::uint32_t, 2> moved{0, 2}, straight{0, 1};
  CHECK(lease.commit_accepted(moved).code() == StatusCode::kUnsupported);
  CHECK(lease.committed_tokens() == 5);
  CHECK(host.cache->audit().balanced());
  CHECK(lease.commit_accepted(straight).ok());
  CHECK(lease.committed_tokens() == 7);
  CHECK(host.cache->audit().balanced());
}

TEST_CASE("an entry of a group that does not exist was never handed out") {
  Grouped host({kFull, kWindow});
  for (const GroupId group : {GroupId{2}, GroupId{8}, kNoGroup})
    CHECK(host.cache->complete({{.kind = StepKind::kCopy, .group = group, .slot = 1, .from_slot = 0}, {}})
              .code() == StatusCode::kStale);
  CHECK(
      host.cache->complete({{.kind = StepKind::kCopy, .group = 1, .slot = 99, .from_slot = 0}, {}}).code() ==
      StatusCode::kStale);
  CHECK(host.cache->audit().balanced());
}
