// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Every public template, instantiated whole, in one shared object; check_symbols.py looks at what it needs and exports.
// A new template gets its line below, one for each kind of argument that changes its code; a new function that is no
// template and that no template calls gets its line at the end.
//
// What this file brings along lies in kvstem::instantiated, so that its symbols count as ours. (In an unnamed namespace
// it would leave its templates out of the object, for nothing calls them.)
#include <kvstem/host/opaque_host.hpp>
#include <kvstem/host/paged_host.hpp>
#include <kvstem/kvstem.hpp>
#include <kvstem/tier/host_tier.hpp>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

// NOLINTBEGIN(misc-use-internal-linkage)
namespace kvstem::instantiated {

/// A policy that is told of keys, at the least cost.
class KeyedPolicy {
 public:
  static constexpr PolicyKeys kKeys = PolicyKeys::kPath;

  [[nodiscard]] bool take(const Memory& memory, PolicyLimits limits) noexcept {
    return lru_.take(memory, limits);
  }
  void on_request_begin(const RequestFacts& facts) noexcept { lru_.on_request_begin(facts); }
  void on_request_end(const RequestFacts& facts) noexcept { lru_.on_request_end(facts); }
  void on_hit(std::uint32_t run, std::uint32_t blocks) noexcept { lru_.on_hit(run, blocks); }
  void on_release(std::uint32_t run, std::uint32_t blocks) noexcept { lru_.on_release(run, blocks); }
  void on_path(std::span<const BlockKey> keys, std::uint32_t) noexcept {
    if (!keys.empty()) last_asked_ = keys.back();
  }
  void on_insert(std::uint32_t run, std::uint32_t parent, std::uint32_t blocks) noexcept {
    lru_.on_insert(run, parent, blocks);
  }
  void on_grow(std::uint32_t run, std::uint32_t blocks) noexcept { lru_.on_grow(run, blocks); }
  void on_split(std::uint32_t head, std::uint32_t tail, std::uint32_t blocks) noexcept {
    lru_.on_split(head, tail, blocks);
  }
  void on_merge(std::uint32_t head, std::uint32_t tail) noexcept { lru_.on_merge(head, tail); }
  void on_trim(std::uint32_t run, std::uint32_t blocks) noexcept { lru_.on_trim(run, blocks); }
  void on_erase(std::uint32_t run) noexcept { lru_.on_erase(run); }
  void on_leaf(std::uint32_t run) noexcept { lru_.on_leaf(run); }
  void on_evicted(BlockKey key) noexcept { last_evicted_ = key; }
  void demote(std::uint32_t run) noexcept { lru_.demote(run); }
  [[nodiscard]] bool mergeable(std::uint32_t head, std::uint32_t tail) const noexcept {
    return lru_.mergeable(head, tail);
  }
  [[nodiscard]] Victim victim(Evictable evictable) noexcept { return lru_.victim(evictable); }

 private:
  Lru lru_;
  BlockKey last_asked_{}, last_evicted_{};
};

/// An engine whose calls are somebody else's.
struct Engine {
  [[nodiscard]] std::size_t range_bytes(GroupId, TokenRange range) const noexcept { return range.size(); }
  Status (*move)(SequenceId, TokenRange) noexcept = nullptr;
  Status export_range(SequenceId s, GroupId, TokenRange range, std::span<std::byte>) noexcept {
    return move(s, range);
  }
  Status import_range(SequenceId s, GroupId, TokenRange range, std::span<const std::byte>) noexcept {
    return move(s, range);
  }
  Status share_range(SequenceId, SequenceId to, TokenRange range) noexcept { return move(to, range); }
  Status drop_range(SequenceId s, TokenRange range) noexcept { return move(s, range); }
  [[nodiscard]] std::string describe() const { return "none"; }
  [[nodiscard]] EngineCapacity capacity() const noexcept { return {64, 4, 16}; }
};

/// What the visits of index and cache are given.
struct Visitor {
  std::uint64_t seen = 0;
  void operator()() noexcept { ++seen; }
  void operator()(BlockPos, std::uint32_t) noexcept { ++seen; }
  void operator()(RunId, const RunInfo&) noexcept { ++seen; }
  void operator()(RunId, BlockPos, std::uint32_t, bool) noexcept { ++seen; }
  void operator()(RunId, BlockPos, std::uint32_t, std::uint32_t) noexcept { ++seen; }
  void operator()(BlockPos, BlockKey, BlockKey) noexcept { ++seen; }
  void reset() noexcept { seen = 0; }
};
struct StoredKey {
  BlockKey operator()(BlockKey parent, const std::byte*) const noexcept { return parent; }
  [[nodiscard]] BlockKey stored_key(BlockKey parent, const std::byte*) const noexcept { return parent; }
};
struct Accept {
  bool operator()(std::uint32_t run) const noexcept { return run == 0; }
};

/// A payload for Result and FixedArray with a destructor, and one without.
using Owned = std::unique_ptr<int>;
struct alignas(128) Wide {
  std::byte bytes[128];
};

}  // namespace kvstem::instantiated

namespace kvstem::inline v0 {

using namespace instantiated;

// base
template class FixedArray<std::byte>;
template class FixedArray<Wide>;
template class Result<int>;
template class Result<Owned>;
template class Result<std::span<const std::byte>>;
template class Result<BasicLease<Lru>>;

// observe
template void FlightWriter::put(const std::uint8_t&) noexcept;
template void FlightWriter::put(const std::uint64_t&) noexcept;
template void FlightWriter::put(const BlockKey&) noexcept;
template std::uint8_t FlightReader::get() noexcept;
template std::uint64_t FlightReader::get() noexcept;
template BlockKey FlightReader::get() noexcept;

// index
template bool HeadTable::find(BlockKey, Accept&&) const noexcept;

#define KVSTEM_INSTANTIATE_FOR(Source)                                                            \
  template Match PrefixIndex::match(Reader&, RootId, const Source&, NoVisit&&) const noexcept;    \
  template Match PrefixIndex::match(Reader&, RootId, const Source&, Visitor&) const noexcept;     \
  template Match PrefixIndex::match(RootId, const Source&, NoVisit&&) const noexcept;             \
  template Match PrefixIndex::match(RootId, const Source&, Visitor&) const noexcept;              \
  template Match PrefixIndex::match_from(RootId, Place, const Source&, NoVisit&&) const noexcept; \
  template Match PrefixIndex::match_from(RootId, Place, const Source&, Visitor&) const noexcept;  \
  template Result<RunId> PrefixIndex::split(Place, const Source&) noexcept;                       \
  template Extended PrefixIndex::extend(Place, const Source&, std::uint32_t) noexcept;            \
  template Extended PrefixIndex::extend(Place, const Source&, std::uint32_t, Visitor&) noexcept

KVSTEM_INSTANTIATE_FOR(TokenSource);
KVSTEM_INSTANTIATE_FOR(KeySource);
KVSTEM_INSTANTIATE_FOR(TailSource);
KVSTEM_INSTANTIATE_FOR(ReplaySource);
KVSTEM_INSTANTIATE_FOR(RecordingSource<TokenSource>);
KVSTEM_INSTANTIATE_FOR(RecordingSource<KeySource>);
KVSTEM_INSTANTIATE_FOR(RecordingSource<TailSource>);

template Result<RunId> PrefixIndex::split(Place, const StoredKey&) noexcept;
template Status PrefixIndex::trim(RunId, std::uint32_t, Visitor&) noexcept;
template void PrefixIndex::for_each_range(RunId, std::uint32_t, std::uint32_t, Visitor&) const noexcept;
template void PrefixIndex::for_each_key(RunId, std::uint32_t, std::uint32_t, StoredKey&&,
                                        Visitor&) const noexcept;
template void PrefixIndex::enumerate(RootId, Visitor&) const noexcept;

// cache
template class RecordingSource<TokenSource>;
template class RecordingSource<KeySource>;
template class RecordingSource<TailSource>;
template class BasicCache<Lru>;
template class BasicCache<KeyedPolicy>;
template class BasicLease<Lru>;
template class BasicLease<KeyedPolicy>;
template void BasicCache<Lru>::enumerate(ScopeId, Visitor&) const noexcept;
template Status replay(std::span<const std::byte>, BasicCache<Lru>&) noexcept;
template Status replay(std::span<const std::byte>, BasicCache<KeyedPolicy>&) noexcept;

// host
template class ShadowCache<KeyedPolicy>;
template class Hinted<Adaptive>;
template class Hinted<Arc>;
template class OpaqueHost<Engine>;
template class OpaqueHost<Engine, Hinted<Adaptive>>;
template class BasicPagedHost<Lru>;
template class BasicPagedHost<Hinted<Adaptive>>;

}  // namespace kvstem::inline v0

// No templates, and called by none of those above.
namespace kvstem::instantiated {

void the_rest(const Scope& scope, const KvLayout& layout, const Prompt& prompt, std::string& out) {
  const KeyHasher hasher;
  KeyChain chain(hasher, {}, 16);
  chain.append(prompt.tokens);
  for (const BlockKey key : chain.keys()) out += to_hex(key).data();
  out += to_hex(fingerprint(layout.representation)).data();
  if (block_bytes(layout, 0) > 0) out += to_string(Medium::kDevice);
  out += to_string(validate(scope).code());
  out += validate(prompt, 16).message();
  if (auto index = PrefixIndex::create({.capacity_blocks = 64}); index.ok()) {
    (*index)->set_ready_through((*index)->place_at_end(0));
    out += to_string((*index)->trim(0, 0).code());
  }
}

}  // namespace kvstem::instantiated
// NOLINTEND(misc-use-internal-linkage)
