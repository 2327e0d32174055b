// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A model with two groups of layers, full attention and a sliding window, as the author of its host writes it against the
// types: paged and opaque, with memory of its own for each group. In place a cache keeps both; by step one so far, and that
// the rest can come without changing a signature is held here by what compiles.
#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvstem/host/opaque_host.hpp"
#include "kvstem/kvstem.hpp"
#include "kvstem/tier/host_tier.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {

constexpr std::uint32_t kBlock = 4, kSlots = 16;
constexpr GroupId kFull = 0, kWindow = 1;

KvLayout hybrid() {
  KvLayout layout{
      .representation = {.dtype = "u8", .layout = "by token", .block_tokens = kBlock, .engine = "1"}};
  layout.groups.push_back({.kind = GroupKind::kFullAttention, .bytes_per_token = 6});
  layout.groups.push_back({.kind = GroupKind::kSlidingWindow, .window_tokens = 8, .bytes_per_token = 2});
  return layout;
}

CacheOptions options(std::span<const KvGroup> groups, SlotFill fill = SlotFill::kInPlace) {
  return {.block_tokens = kBlock, .slots = kSlots, .fill = fill, .max_changes = 64, .groups = groups};
}

/// What a paged engine launches the kernels of one group with.
struct Launch {
  std::byte* pool;
  std::uint64_t slot_bytes;
  std::span<const std::int32_t> table;
};

/// A pool for each group; a block has a slot in each, and a table row for each says which.
class PagedPools {
 public:
  explicit PagedPools(const KvLayout& layout) : layout_(layout) {
    for (std::size_t g = 0; g < layout.groups.size(); ++g)
      pools_.emplace_back(static_cast<std::size_t>(kSlots * block_bytes(layout, g)));
  }
  [[nodiscard]] Launch launch(const Lease& lease, GroupId group) {
    return {pools_[group].data(), block_bytes(layout_, group), lease.table(group)};
  }

 private:
  KvLayout layout_;
  std::vector<std::vector<std::byte>> pools_;
};

/// An engine that moves its own state, group by group. A byte of state says token and group.
class HybridEngine {
 public:
  explicit HybridEngine(KvLayout layout) : layout_(std::move(layout)) {
    for (auto& sequence : sequences_) sequence.resize(layout_.groups.size());
  }

  void compute(SequenceId sequence, std::span<const TokenId> tokens) {
    for (GroupId g = 0; g < groups(); ++g)
      for (const TokenId token : tokens) {
        auto& state = at(sequence, g);
        state.resize(state.size() + bytes_per_token(g), static_cast<std::byte>(token * 31 + g));
      }
  }
  [[nodiscard]] bool equal(SequenceId a, SequenceId b, GroupId group) const {
    return sequences_[static_cast<std::size_t>(a)][group] == sequences_[static_cast<std::size_t>(b)][group];
  }

  [[nodiscard]] std::size_t range_bytes(GroupId group, TokenRange range) const {
    return range.size() * bytes_per_token(group);
  }
  Status export_range(SequenceId sequence, GroupId group, TokenRange range, std::span<std::byte> out) {
    const auto& state = at(sequence, group);
    const std::size_t first = range.begin * bytes_per_token(group);
    if (first + out.size() > state.size()) return {StatusCode::kOutOfRange, "not in the sequence"};
    std::memcpy(out.data(), state.data() + first, out.size());
    return {};
  }
  Status import_range(SequenceId sequence, GroupId group, TokenRange range, std::span<const std::byte> in) {
    auto& state = at(sequence, group);
    if (state.size() != range.begin * bytes_per_token(group)) return {StatusCode::kOutOfRange, "a gap"};
    state.insert(state.end(), in.begin(), in.end());
    return {};
  }
  /// Sharing and dropping are about positions, so they are for all groups at once.
  Status share_range(SequenceId from, SequenceId to, TokenRange range) {
    for (GroupId g = 0; g < groups(); ++g) {
      std::vector<std::byte> bytes(range_bytes(g, range));
      if (const Status status = export_range(from, g, range, bytes); !status.ok()) return status;
      if (const Status status = import_range(to, g, range, bytes); !status.ok()) return status;
    }
    return {};
  }
  Status drop_range(SequenceId sequence, TokenRange range) {
    for (GroupId g = 0; g < groups(); ++g)
      if (auto& state = at(sequence, g); range.begin * bytes_per_token(g) < state.size())
        state.resize(range.begin * bytes_per_token(g));
    return {};
  }
  [[nodiscard]] std::string describe() const { return to_hex(fingerprint(layout_.representation)).data(); }
  [[nodiscard]] EngineCapacity capacity() const {
    return {.cells = 256, .sequences = 4, .sequence_tokens = 64, .groups = groups()};
  }

 private:
  [[nodiscard]] GroupId groups() const { return static_cast<GroupId>(layout_.groups.size()); }
  [[nodiscard]] std::size_t bytes_per_token(GroupId group) const {
    return static_cast<std::size_t>(layout_.groups[group].bytes_per_token);
  }
  [[nodiscard]] std::vector<std::byte>& at(SequenceId sequence, GroupId group) {
    return sequences_[static_cast<std::size_t>(sequence)][group];
  }
  KvLayout layout_;
  std::vector<std::vector<std::byte>> sequences_[4];
};

/// The same engine, if it did not know of groups.
struct UngroupedEngine : HybridEngine {
  [[nodiscard]] std::size_t range_bytes(TokenRange range) const { return range.size(); }
};

static_assert(OpaqueEngine<HybridEngine> && !OpaqueEngine<UngroupedEngine>);
static_assert(std::is_same_v<decltype(&Lease::table),
                             std::span<const std::int32_t> (Lease::*)(GroupId) const noexcept>);
static_assert(std::is_same_v<decltype(StepEntry::group), GroupId>);
static_assert(std::is_same_v<decltype(Change::group), GroupId>);
static_assert(std::is_same_v<decltype(CacheOptions::groups), std::span<const KvGroup>>);
static_assert(std::is_same_v<decltype(KvLayout::groups), std::vector<KvGroup>>);

/// Carries steps out between the engine and a tier for each group. A lease computes in the sequence of its number.
class Executor {
 public:
  Executor(HybridEngine& engine, const KvLayout& layout) : engine_(engine), tiers_(layout.groups.size()) {
    for (std::size_t g = 0; g < tiers_.size(); ++g)
      REQUIRE(tiers_[g]
                  .take(heap_memory(), kSlots, block_bytes(layout, g), fingerprint(layout.representation))
                  .ok());
  }
  /// Returns what was moved, by group.
  std::vector<int> carry_out(Cache& cache) {
    std::vector<int> moved(tiers_.size());
    StepEntry room[4];
    for (auto entries = cache.take_step(room); !entries.empty(); entries = cache.take_step(room))
      for (const StepEntry& e : entries) {
        const Status status = e.kind == StepKind::kLoad ? load(e) : store(e);
        REQUIRE(status.ok());
        REQUIRE(cache.complete({e, status}).ok());
        ++moved[e.group];
      }
    return moved;
  }

 private:
  static TokenRange range(const StepEntry& e) { return {e.block * kBlock, (e.block + 1) * kBlock}; }
  Status load(const StepEntry& e) {
    const auto bytes = tiers_[e.group].read(e.slot, e.key);
    if (!bytes.ok()) return bytes.status();
    return engine_.import_range(static_cast<SequenceId>(e.lease), e.group, range(e), *bytes);
  }
  Status store(const StepEntry& e) {
    const auto room = tiers_[e.group].stage(e.slot);
    if (!room.ok()) return room.status();
    const std::size_t bytes = engine_.range_bytes(e.group, range(e));
    const auto sequence = static_cast<SequenceId>(e.lease);
    if (const Status s = engine_.export_range(sequence, e.group, range(e), room->first(bytes)); !s.ok())
      return s;
    return tiers_[e.group].seal(e.slot, e.key, bytes);
  }
  HybridEngine& engine_;
  std::vector<HostTier> tiers_;
};

std::vector<TokenId> tokens(std::uint32_t n) {
  std::vector<TokenId> t(n);
  std::iota(t.begin(), t.end(), 0);
  return t;
}

}  // namespace

// A whole host of this engine compiles.
template class kvstem::OpaqueHost<HybridEngine>;

TEST_CASE("each group has bytes of its own") {
  const KvLayout layout = hybrid();
  CHECK(block_bytes(layout, kFull) == 24);
  CHECK(block_bytes(layout, kWindow) == 8);
  const HybridEngine engine(layout);
  CHECK(engine.range_bytes(kFull, {0, kBlock}) == block_bytes(layout, kFull));
  CHECK(engine.range_bytes(kWindow, {0, kBlock}) == block_bytes(layout, kWindow));
  KvLayout recurrent = layout;
  recurrent.groups[kWindow] = {.kind = GroupKind::kStateCheckpoint, .bytes_per_token = 1000};
  CHECK(block_bytes(recurrent, kWindow) == 1000);  // one state, however long the block
}

TEST_CASE("an opaque host refuses an engine with a group that it would lose") {
  HybridEngine engine(hybrid());
  const auto host = OpaqueHost<HybridEngine>::create(engine, {.block_tokens = kBlock, .requests = 1});
  CHECK(host.status().code() == StatusCode::kUnsupported);
}

TEST_CASE("by step a cache that cannot keep a group says so when it is created") {
  const KvLayout layout = hybrid();
  const std::span<const KvGroup> groups(layout.groups);
  const KvGroup checkpoint{.kind = GroupKind::kStateCheckpoint, .bytes_per_token = 64};
  const KvGroup trails{.bytes_per_token = 64, .lag_tokens = 1};
  for (const auto some : {groups, groups.subspan(1), std::span<const KvGroup>(&checkpoint, 1),
                          std::span<const KvGroup>(&trails, 1)}) {
    const auto cache = Cache::create(options(some, SlotFill::kByStep));
    REQUIRE_FALSE(cache.ok());
    CHECK(cache.status().code() == StatusCode::kUnsupported);
    CHECK(std::string_view(cache.status().message()).find("one group of full attention") !=
          std::string_view::npos);
    CHECK(Cache::create(options(some)).ok());  // in place it keeps them
  }
  CHECK(Cache::create(options(groups.first(1), SlotFill::kByStep)).ok());
  CHECK(Cache::create(options({})).ok());
}

TEST_CASE("a lease has a table for each group, and an empty one for others") {
  const KvLayout layout = hybrid();
  const auto cache = Cache::create(options(layout.groups));
  REQUIRE(cache.ok());
  const auto scope = (*cache)->open_scope({.model = "m", .vocab_size = 100});
  REQUIRE(scope.ok());
  const auto prompt = tokens(10);
  auto lease = (*cache)->acquire({.scope = *scope, .tokens = prompt});
  REQUIRE(lease.ok());
  REQUIRE(lease->reserve(10).ok());

  PagedPools pools(layout);
  const Launch full = pools.launch(*lease, kFull), window = pools.launch(*lease, kWindow);
  for (const Launch& launch : {full, window}) {
    CHECK(launch.table.size() == 3);
    for (const std::int32_t slot : launch.table) CHECK(static_cast<std::uint32_t>(slot) < kSlots);
  }
  CHECK(lease->table(2).empty());
  CHECK(window.slot_bytes < full.slot_bytes);
}

TEST_CASE("what is to be moved and what has changed names its group") {
  const KvLayout layout = hybrid();
  const auto cache = Cache::create(options(std::span(layout.groups).first(1), SlotFill::kByStep));
  REQUIRE(cache.ok());
  const auto scope = (*cache)->open_scope({.model = "m", .vocab_size = 100});
  REQUIRE(scope.ok());
  HybridEngine engine(layout);
  Executor executor(engine, layout);
  const auto prompt = tokens(13);

  auto first = (*cache)->acquire({.scope = *scope, .tokens = prompt});
  REQUIRE(first.ok());
  engine.compute(static_cast<SequenceId>(first->index()), prompt);
  REQUIRE(first->commit(13).ok());
  CHECK(executor.carry_out(**cache) == std::vector<int>{3, 0});  // stored

  auto second = (*cache)->acquire({.scope = *scope, .tokens = prompt});
  REQUIRE(second.ok());
  CHECK(executor.carry_out(**cache) == std::vector<int>{3, 0});  // loaded
  const auto a = static_cast<SequenceId>(first->index()), b = static_cast<SequenceId>(second->index());
  REQUIRE(engine.drop_range(a, {second->matched_tokens(), kToEnd}).ok());
  CHECK(engine.equal(a, b, kFull));
  CHECK_FALSE(engine.equal(a, b, kWindow));  // nobody keeps it

  Change changes[8];
  int stored[2] = {};
  for (const Change& c : (*cache)->take_changes(changes)) stored[c.group] += c.kind == ChangeKind::kStored;
  CHECK(stored[kFull] == 3);
  CHECK(stored[kWindow] == 0);
}
