// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The cache decides: which part of a prompt is there already, which slot a new block gets, what goes when room is needed.
// It is a deterministic state machine: no I/O, no clock, no thread. Its inputs are the host's calls and what is reported
// to it; its outputs are leases and steps. Whoever carries steps out is an executor: the opaque host
// (host/opaque_host.hpp), or your engine.
//
// A request holds a Lease from its first token to its last. The lease pins what was matched, names the slots, and takes
// what was computed into the tree as it is committed; it can fork, and give tokens back:
//
//   acquire -> (append) -> reserve -> [take_step, compute] -> commit -> ... -> release
//
// Guarantees
//   Exact: what a lease was matched to was computed for exactly that prefix, in that scope; tokens are compared.
//   What a lease holds is neither evicted nor moved. All of the match or a shorter one, never a hole.
//   Committed blocks are found by others once the point given to `commit` is reached, never before.
//   Two requests that wait for the same prefix can share one computation: see `Lease::refresh`.
//   A slot that is freed is not given out again before the step in which it was freed has ended (`end_step`), and what a
//   lease let go of is not evicted before; so a host that never ends a step runs out of slots.
//   A lease that was released keeps its place among `max_leases` until what it committed has been reached.
//
// A model with several groups of layers (model/kv_group.hpp) has a pool and a table for each, and a match ends where all of
// them are valid; SlotFill::kInPlace only.
//
// Threads: one engine thread for everything, except `probe` (any thread with a Reader). A Lease belongs to the engine's
// thread. The cache must outlive its leases and readers.
// Cost: acquire is a match (see prefix_index.hpp) plus hashing of what is new; all else O(what is named), but a `reserve` of
// several blocks that must evict looks at the paths of all leases first. Nothing allocates, locks, blocks or throws after `create`, except `open_scope`, which allocates.
//
//   auto cache = *Cache::create({.block_tokens = 16, .slots = 4096});
//   ScopeId scope = *cache->open_scope({.model = "sha256:...", .vocab_size = 49152});
//   auto lease = cache->acquire({.scope = scope, .tokens = prompt});
//   const std::uint32_t start = lease->matched_tokens(), n = prompt.size() - start;
//   if (!lease->reserve(n).ok()) return later();
//   for (const StepEntry& e : cache->take_step(room)) move(e);      // if leases fork or onboard
//   launch_prefill(prompt, start, lease->table(0));
//   (void)lease->commit(n, after_step);
//   (void)cache->end_step(after_step);                // after every step that was launched
//   ...
//   (void)cache->reach(after_step);                   // the step is done: what was committed for it is found from now on
//   (void)lease->release();
#pragma once

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/memory.hpp"
#include "kvstem/base/point.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/cache/cache_options.hpp"
#include "kvstem/cache/flight_source.hpp"
#include "kvstem/cache/group_set.hpp"
#include "kvstem/cache/lease.hpp"
#include "kvstem/cache/slot_books.hpp"
#include "kvstem/cache/step.hpp"
#include "kvstem/cache/tail_source.hpp"
#include "kvstem/index/prefix_index.hpp"
#include "kvstem/model/kv_group.hpp"
#include "kvstem/model/kv_layout.hpp"
#include "kvstem/model/prompt.hpp"
#include "kvstem/model/retention.hpp"
#include "kvstem/model/scope.hpp"
#include "kvstem/observe/change.hpp"
#include "kvstem/observe/stats.hpp"
#include "kvstem/policy/lru.hpp"

namespace kvstem::inline v0 {

/// `Policy` says which blocks go first; see policy/eviction_policy.hpp for which there are.
template <EvictionPolicy Policy = Lru>
class BasicCache {
 public:
  using Lease = BasicLease<Policy>;
  using Reader = PrefixIndex::Reader;

  /// Timelines that points may name: 0 to this minus one.
  static constexpr std::uint32_t kMaxTimelines = 16;

  /// Takes all memory. kInvalidArgument says which option is wrong; kExhausted: the memory is not to be had;
  /// kUnsupported: by step, groups other than one of full attention.
  [[nodiscard]] static Result<std::unique_ptr<BasicCache>> create(const CacheOptions& options) {
    if (options.block_tokens == 0 || options.block_tokens > kMaxBlockTokens)
      return Status(StatusCode::kInvalidArgument, "CacheOptions::block_tokens must be 1 to 1024");
    if (options.slots == 0 || options.slots > (1u << 29))
      return Status(StatusCode::kInvalidArgument, "CacheOptions::slots must be 1 to 2^29");
    if (options.max_leases == 0 || options.max_scopes == 0 ||
        options.max_lease_tokens < options.block_tokens || options.max_lease_tokens > (1u << 30))
      return Status(
          StatusCode::kInvalidArgument,
          "CacheOptions: max_leases and max_scopes must not be 0, max_lease_tokens one block to 2^30");
    if (const Status status = check_groups(options); !status.ok()) return status;
    if (options.mode == IndexMode::kNothing && options.max_changes != 0)
      return Status(StatusCode::kInvalidArgument, "a replaying cache has no keys for change records");
    std::unique_ptr<BasicCache> cache(new (std::nothrow) BasicCache(options));
    if (cache == nullptr) return no_memory();
    if (const Status status = cache->take(); !status.ok()) return status;
    return cache;
  }

  BasicCache(const BasicCache&) = delete;
  BasicCache& operator=(const BasicCache&) = delete;

  [[nodiscard]] const CacheOptions& options() const noexcept { return options_; }
  [[nodiscard]] const CacheStats& stats() const noexcept { return stats_; }
  [[nodiscard]] const BlockPool& pool() const noexcept { return slots_.pool(); }
  /// The pool of a group; null for one that does not exist.
  [[nodiscard]] const BlockPool* pool(GroupId group) const noexcept {
    if (group >= kMaxGroups) return nullptr;
    group = side_of_[group];
    if (group == primary_) return &slots_.pool();
    return groups_.books(group) == nullptr ? nullptr : &groups_.books(group)->pool();
  }
  /// Tokens of a group's blocks; 0 if its state does not lie by position.
  [[nodiscard]] std::uint32_t block_tokens(GroupId group) const noexcept {
    if (group >= kMaxGroups || !in_place()) return 0;
    group = side_of_[group];
    return group == primary_ ? options_.block_tokens : groups_.position_tokens(group);
  }
  [[nodiscard]] IndexUsage index_usage() const noexcept { return index_->usage(); }
  [[nodiscard]] const KeyHasher& hasher() const noexcept { return hasher_; }

  /// The id of a scope in this cache; equal scopes have one id. Allocates. kInvalidArgument as `validate(Scope)`,
  /// kExhausted beyond max_scopes.
  [[nodiscard]] Result<ScopeId> open_scope(const Scope& scope) {
    if (const Status status = validate(scope); !status.ok()) return status;
    for (std::size_t i = 0; i < scopes_.size(); ++i)
      if (scopes_[i] == scope) return ScopeId{static_cast<std::uint32_t>(i)};
    const auto key = hasher_.root(scope);
    if (!key.ok()) return key.status();
    const auto id = add_scope(*key, scope.vocab_size);
    if (id.ok()) scopes_.push_back(scope);
    return id.ok() ? Result<ScopeId>(*id) : Result<ScopeId>(id.status());
  }

  /// Whether these are token ids of the scope. False for a scope that was not opened here.
  [[nodiscard]] bool in_vocabulary(std::span<const TokenId> tokens, ScopeId scope) const noexcept {
    std::uint32_t largest = 0;  // a negative id is a large number
    for (const TokenId t : tokens) largest = std::max(largest, static_cast<std::uint32_t>(t));
    const auto id = static_cast<std::uint32_t>(scope);
    return id < scope_count_.load(std::memory_order_acquire) && (tokens.empty() || largest < vocab_[id]);
  }

  /// Any thread. For `probe`; give it back before the cache goes.
  [[nodiscard]] Result<Reader> register_reader() noexcept { return index_->register_reader(); }

  /// Any thread; changes nothing, and may be called as often as you like. Writes where the prompt's tokens are, in order
  /// and covering all of them, to `out` (three ranges are always enough). A hint: it may be outdated on return, and where a
  /// model has several groups a match may end before it.
  [[nodiscard]] Result<std::span<ProbeRange>> probe(Reader& reader, const Prompt& prompt,
                                                    std::span<ProbeRange> out) const noexcept {
    if (const Status status = check(prompt); !status.ok()) return status;
    if (out.size() < 3) return Status(StatusCode::kInvalidArgument, "probe needs room for three ranges");
    if (options_.mode == IndexMode::kNothing)
      return Status(StatusCode::kWrongState, "this cache only replays a flight log");
    const RootId root = root_run_[static_cast<std::uint32_t>(prompt.scope)];
    Match match;
    if (options_.mode == IndexMode::kKeys)
      match = index_->match(reader, root, KeySource(prompt.keys));
    else
      match = index_->match(reader, root, TokenSource(hasher_, options_.block_tokens, prompt, roots()));
    const std::uint32_t end = token_count(prompt);
    const std::uint32_t ready = match.ready * options_.block_tokens;
    const std::uint32_t present = match.place.blocks * options_.block_tokens;
    std::size_t n = 0;
    if (ready > 0) out[n++] = {{0, ready}, Presence::kReady, options_.medium};
    if (present > ready) out[n++] = {{ready, present}, Presence::kPending, options_.medium};
    if (end > present) out[n++] = {{present, end}, Presence::kUnknown, options_.medium};
    return out.first(n);
  }

  /// Matches the prompt and pins what was found, in one step. The match never covers the last token, so that there is
  /// one to compute. Errors: kInvalidArgument, kOutOfRange (bad prompt, a token outside the vocabulary, too long),
  /// kExhausted (no lease left). A prompt that matches nothing is no error.
  [[nodiscard]] Result<Lease> acquire(const Prompt& prompt, const AcquireOptions& how = {}) noexcept;

  /// A step in which many sequences go on by one token each: for every item what `reserve(1)` (if nothing is reserved ahead),
  /// `append` of the token and `commit(1, after)` do, in one call. An item whose lease cannot have a slot keeps its lease as
  /// it was, and says so in its status. Then release somebody (`exclusive_slots` says what that would free), end the step,
  /// and try those again before anything new is admitted: who was preempted and comes back at once takes the slots again.
  /// `after` is the point of the step that is being built: tables are read afterwards. Returns how many take part.
  std::uint32_t decode(std::span<DecodeItem<Lease>> items, Point after) noexcept {
    std::uint32_t done = 0;
    for (DecodeItem<Lease>& item : items) {
      item.status = item.lease == nullptr ? Status(StatusCode::kInvalidArgument, "DecodeItem::lease is null")
                                          : decode_one(*item.lease, item.token, after);
      done += item.status.ok();
    }
    return done;
  }

  /// What must be moved now, before the next step is launched: loads first, then copies or stores; at most `out.size()`
  /// entries, so ask again until there are none. Report each with `complete`, now or later; by step a lease's entries in
  /// their order. In place there are none but for leases that fork, truncate, accept drafts or onboard.
  [[nodiscard]] std::span<const StepEntry> take_step(std::span<StepEntry> out) noexcept {
    return take_entries(out);
  }
  /// Only what `lease` waits for: its loads.
  [[nodiscard]] std::span<const StepEntry> take_loads(const Lease& lease, std::span<StepEntry> out) noexcept;

  /// How an entry went. A failed load or copy shortens the lease; one with windows, states or drafts ends, for there may be
  /// nothing left to go on from (it is aborted: acquire again). By step the damaged block and all behind it leave the
  /// cache. A failed store ends the publishing of its lease. Entries of leases that are gone are settled too. kStale, and
  /// nothing happens, for an entry that is not under way: never taken, or reported before. (Of several copies into one block
  /// only their number is known.)
  Status complete(const StepResult& result) noexcept {
    op(FlightOp::kComplete);
    const StepEntry& e = result.entry;
    put(static_cast<std::uint32_t>(e.kind), static_cast<std::uint32_t>(e.group), e.lease, e.generation,
        e.block, e.slot, e.from_slot, static_cast<std::uint32_t>(result.status.ok()));
    const bool under_way =
        in_place() ? complete_move(e, result.status.ok()) : complete_entry(e, result.status.ok());
    end_op();
    if (!under_way)
      return {StatusCode::kStale, "no such entry is under way: report what take_step gave out, once"};
    return {};
  }

  /// Points up to this one are reached on its timeline: what was committed for them becomes valid. An earlier point than
  /// before does nothing.
  Status reach(Point point) noexcept {
    if (point.timeline >= kMaxTimelines)
      return {StatusCode::kOutOfRange, "Point::timeline must be below kMaxTimelines"};
    op(FlightOp::kReach);
    put(point.timeline, point.value);
    reached_[point.timeline] = std::max(reached_[point.timeline], point.value);
    for (std::uint32_t i = 0; i < options_.max_leases; ++i)
      if (leases_[i].active) settle_reached(i);
    end_op();
    return {};
  }

  /// The step that the host has just launched ends at `point`: every slot that was freed since the last call may be given
  /// out again, to be written after that point, and what leases let go of since then may be evicted. All steps of a cache
  /// end on one timeline, none before the one before it; else kOutOfRange or kInvalidArgument, and nothing happens.
  /// kWrongState, and nothing happens, if copies wait that nobody has taken: the step that was launched may have read what
  /// they bring.
  Status end_step(Point point) noexcept {
    if (point.timeline >= kMaxTimelines)
      return {StatusCode::kOutOfRange, "Point::timeline must be below kMaxTimelines"};
    if (step_ > 1 && (point.timeline != last_step_.timeline || point.value < last_step_.value))
      return {StatusCode::kInvalidArgument, "steps must end on one timeline, one after the other"};
    if (copy_count_ > 0)
      return {StatusCode::kWrongState,
              "copies wait to be carried out (of a fork, accepted drafts or a truncation): take_step and "
              "complete first"};
    op(FlightOp::kEndStep);
    put(point.timeline, point.value);
    slots_.end_step(point);
    last_step_ = point;
    ++step_;
    groups_.end_step(point, step_);
    ended_count_ = 0;
    end_op();
    return {};
  }

  /// A digest of all that was decided so far: matches, slots given out, evictions, steps. Two caches that were created alike
  /// and heard the same calls have the same; so ranks compare it after each of their own `take_step` (with equal room;
  /// `encode_step` carries it). What one was told differently shows when it changes a decision: another length at once, another
  /// token when it is matched. Not a hash that withstands an adversary.
  [[nodiscard]] std::uint64_t decisions() const noexcept { return decisions_; }

  /// Change records since the last call, oldest first; a jump in their numbers means that some were lost.
  [[nodiscard]] std::span<const Change> take_changes(std::span<Change> out) noexcept {
    std::size_t n = 0;
    for (; n < out.size() && changes_taken_ < changes_made_; ++n, ++changes_taken_)
      out[n] = changes_[changes_taken_ % changes_.size()];
    return out.first(n);
  }

  /// The books, counted from both ends.
  [[nodiscard]] Audit audit() const noexcept {
    Audit a{.slots = pool().capacity(),
            .free = pool().free_slots(),
            .held = pool().held_slots(),
            .used = pool().used_slots(),
            .tree_slots = 0,
            .lease_slots = 0,
            .step_slots = slots_.moving(),
            .holders = 0,
            .pinned_runs = 0,
            .lease_pins = 0,
            .ready_blocks = 0,
            .group_slots = 0,
            .groups_balanced = true};
    for (std::uint32_t s = 0; s < scope_count_.load(std::memory_order_relaxed); ++s) {
      a.pinned_runs += index_->info(root_run_[s]).references;
      index_->enumerate(root_run_[s], [&](RunId run, const RunInfo& info) {
        a.pinned_runs += info.references;
        a.ready_blocks += info.ready;
        index_->for_each_range(run, 0, info.length, [&](BlockPos first, std::uint32_t n) {
          for (BlockPos pos = first; pos < first + n; ++pos) a.tree_slots += slot_of_[pos] != 0;
        });
      });
    }
    for (SlotId slot = 0; slot < pool().capacity(); ++slot) a.holders += pool().holders(slot);
    for (std::uint32_t i = 0; i < options_.max_leases; ++i) {
      const LeaseRecord& r = leases_[i];
      a.lease_pins += r.active;
      if (r.active)
        for (std::uint32_t b = 0; b < row_blocks_; ++b) a.lease_slots += own_[row(i) + b] != 0;
    }
    a.group_slots = slots_.null_slots();
    if (groups_.any()) {
      a.group_slots = a.holders - a.tree_slots - a.lease_slots - a.step_slots;
      const auto for_each_block = [&](auto&& fn) {
        for (std::uint32_t s = 0; s < scope_count_.load(std::memory_order_relaxed); ++s)
          index_->enumerate(root_run_[s], [&](RunId run, const RunInfo& info) {
            index_->for_each_range(run, 0, info.length, fn);
          });
      };
      a.groups_balanced = groups_.balanced(slots_, a.tree_slots + a.lease_slots, for_each_block);
      for (GroupId g = 0; g < kMaxGroups; ++g)
        if (const SlotBooks* books = groups_.books(g); books != nullptr && books != &slots_)
          a.groups_balanced = a.groups_balanced && groups_.balanced(*books, 0, for_each_block);
    }
    return a;
  }

  /// The tree below a scope that was opened here, parents before children: `fn(RunId, const RunInfo&)`. O(runs).
  template <class Fn>
  void enumerate(ScopeId scope, Fn&& fn) const noexcept {
    index_->enumerate(root_run_[static_cast<std::uint32_t>(scope)], fn);
  }

  /// Does what the next record of a flight log says, in a cache of IndexMode::kNothing created with the same sizes.
  /// kCorrupt when the log makes no sense here. See cache/replay.hpp.
  Status replay_next(FlightReader& log) noexcept;  // defined in cache/replay.hpp

 private:
  friend class BasicLease<Policy>;

  static constexpr std::uint32_t kMaxPendingCommits = 8;
  static constexpr std::uint32_t kOrphan = ~std::uint32_t{0};  // in owner_, while an heir is looked for
  static constexpr std::uint8_t kOwn = 1,
                                kOwnToLoad = 2;  // values of own_; the second: nobody has taken its load
  static constexpr std::uint32_t kCopiesPerLease = 16;  // that wait to be taken, on average

  struct PendingCommit {
    std::uint32_t tokens;
    Point after;
  };

  /// How far the keys of a lease's blocks were told, so that telling the next costs one hash.
  struct KeyCursor {
    BlockKey last;         // of the block before, or the scope's root key
    std::uint32_t blocks;  // told so far
  };

  struct LeaseRecord {
    bool active;
    bool shared;           // what is computed is for others too
    bool publishing;       // shared, and new blocks still find room in the tree
    bool storing;          // shared, and no store failed
    bool releasing;        // released, but a commit waits for its point
    bool started;          // something was reserved or committed: the match is final
    bool given_up;         // aborted before it started: an attempt, and no request
    bool forked;           // no request of its own
    bool announced;        // of a request that waits: it only pins
    std::uint32_t helped;  // tokens that would have matched if states had been kept everywhere
    std::uint32_t generation;
    std::uint32_t scope;
    std::uint32_t last_scope;  // the one that holds at the prompt's end, and for what is appended
    std::uint32_t grid;        // AcquireOptions::grid_tokens
    std::uint32_t max_hit;     // AcquireOptions::max_hit_tokens
    Place place;               // end of what of this lease is in the tree
    RunId pinned;
    std::uint32_t prompt_tokens;
    std::uint32_t known;        // tokens whose ids are known: prompt and appended
    std::uint32_t scheduled;    // tokens that slots were reserved for
    std::uint32_t committed;    // tokens whose state is computed, or will be at a point
    std::uint32_t grid_tokens;  // of which the leading ones were computed on the grid
    std::uint32_t matched;      // blocks that are usable from the cache
    std::uint32_t valid;        // tokens whose commits have been reached
    std::uint32_t settled;      // blocks that are ready, or private for good
    std::uint32_t loaded;       // next block to load; ends at `matched`, in place at `load_end`
    std::uint32_t load_end;     // in place: behind the last block that is onboarded
    std::uint32_t open;         // in place: loads and copies into its blocks that wait or are under way
    std::uint32_t loading;      // kByStep: loads that were handed out and not reported
    std::uint32_t storing_now;  // kByStep: stores that were handed out and not reported
    std::uint32_t stored;       // kByStep: next block to hand out for storing
    std::uint32_t tail_marks;
    std::uint32_t marked_block;  // the one that the tail marks belong to
    BlockRange changed;          // table entries, since `delta` was asked
    KeyCursor moved;             // in step entries
    KeyCursor published;         // in change records
    RequestFacts facts;
    Point not_before;
    Retention retention;
    std::uint32_t pending_count;
    PendingCommit pending[kMaxPendingCommits];
  };

  explicit BasicCache(const CacheOptions& options)
      : options_(options), hasher_(options.key_function, options.secret), log_(options.flight_log) {
    options_.secret = {};
  }

  static Status no_memory() noexcept {
    return {StatusCode::kExhausted, "no memory for the cache: lower slots, max_leases or max_lease_tokens"};
  }

  [[nodiscard]] static Status check_groups(const CacheOptions& options) noexcept {
    const auto wrong = [](const char* message) { return Status(StatusCode::kInvalidArgument, message); };
    if (options.groups.size() > kMaxGroups) return wrong("CacheOptions::groups: at most 8");
    const bool plain = options.groups.empty() || (options.groups.size() == 1 && primary_of(options) == 0);
    if (options.fill == SlotFill::kByStep && !plain)
      return {StatusCode::kUnsupported, "by step a cache keeps one group of full attention"};
    if (options.fill == SlotFill::kByStep && options.null_slot) return wrong("by step there is no null slot");
    if (options.null_slot && options.slots < 2) return wrong("CacheOptions::slots: one is the null slot");
    const auto tokens = [&](const KvGroup& g) {
      return g.block_tokens == 0 ? options.block_tokens : g.block_tokens;
    };
    for (std::size_t i = 0; i < options.groups.size(); ++i) {
      const KvGroup& g = options.groups[i];
      const bool state = g.kind == GroupKind::kStateCheckpoint, window = g.kind == GroupKind::kSlidingWindow;
      if (window != (g.window_tokens != 0))
        return wrong("KvGroup::window_tokens is for sliding windows, which need it");
      if (state && (g.block_tokens != 0 || g.lag_tokens != 0))
        return wrong("a state checkpoint has neither KvGroup::block_tokens nor lag_tokens");
      if (!state && g.checkpoint_blocks != 0)
        return wrong("KvGroup::checkpoint_blocks is for state checkpoints");
      if (tokens(g) % options.block_tokens != 0 || tokens(g) > kMaxBlockTokens)
        return wrong("KvGroup::block_tokens must be a multiple of CacheOptions::block_tokens, at most 1024");
      for (std::size_t j = 0; j < i; ++j)
        if (tokens(g) % tokens(options.groups[j]) != 0 && tokens(options.groups[j]) % tokens(g) != 0)
          return wrong("the block sizes of groups must be multiples of one another");
      if (g.kind == GroupKind::kSideData) {
        const std::size_t with = g.with == kNoGroup ? 0 : g.with;
        if (with >= options.groups.size() || with == i || options.groups[with].kind == GroupKind::kSideData ||
            options.groups[with].kind == GroupKind::kStateCheckpoint)
          return wrong("side data lies beside the blocks of an attention group: name it in KvGroup::with");
        continue;
      }
      if (g.slots == 1 && options.null_slot) return wrong("KvGroup::slots: one is the null slot");
      if (g.with == kNoGroup) continue;
      if (g.with >= i || options.groups[g.with].kind == GroupKind::kSideData || g.slots != 0)
        return wrong(
            "KvGroup::with names an earlier group whose pool is shared; then it has no slots of its own");
      if (block_bytes(g, options.block_tokens) != block_bytes(options.groups[g.with], options.block_tokens))
        return wrong("groups that share a pool must have equal bytes per block");
    }
    return {};
  }
  /// The group that the tree is built on: the first of full attention that needs nothing special.
  [[nodiscard]] static GroupId primary_of(const CacheOptions& options) noexcept {
    if (options.groups.empty()) return 0;
    for (std::size_t g = 0; g < options.groups.size(); ++g) {
      const KvGroup& group = options.groups[g];
      if (group.kind == GroupKind::kFullAttention && group.lag_tokens == 0 && group.with == kNoGroup &&
          (group.block_tokens == 0 || group.block_tokens == options.block_tokens))
        return static_cast<GroupId>(g);
    }
    return kNoGroup;
  }

  [[nodiscard]] Status take() noexcept {
    const Memory& memory = options_.memory;
    primary_ = primary_of(options_);
    const std::span<const KvGroup> groups = options_.groups;
    const std::uint32_t slots = options_.slots;
    for (GroupId g = 0; g < kMaxGroups; ++g) {
      const bool side = g < groups.size() && groups[g].kind == GroupKind::kSideData;
      side_of_[g] = side ? (groups[g].with == kNoGroup ? GroupId{0} : groups[g].with) : g;
    }
    for (const KvGroup& g : groups) undeclared_ = undeclared_ || g.bytes_per_token == 0;
    if (primary_ < groups.size() && groups[primary_].slots != 0) options_.slots = groups[primary_].slots;
    options_.groups = {};
    row_blocks_ = (options_.max_lease_tokens + options_.block_tokens - 1) / options_.block_tokens;
    const std::size_t rows = std::size_t{options_.max_leases} * row_blocks_;
    // Besides what has a slot the tree holds what is being computed, and what fragmentation leaves unused.
    const std::uint64_t blocks =
        std::min<std::uint64_t>(std::uint64_t{options_.slots} + options_.slots / 4 + rows + 1024, 1u << 30);
    auto index =
        PrefixIndex::create({.mode = options_.mode,
                             .replayed = options_.replayed,
                             .block_tokens = options_.block_tokens,
                             .capacity_blocks = static_cast<std::uint32_t>(blocks),
                             .max_runs = options_.max_runs == 0 ? 0 : options_.max_runs + options_.max_scopes,
                             .max_readers = options_.max_readers,
                             .memory = memory});
    if (!index.ok()) return index.status();
    index_ = std::move(*index);
    if (!options_.tables.empty() && options_.tables.size() < rows)
      return {StatusCode::kInvalidArgument,
              "CacheOptions::tables needs max_leases rows of max_lease_tokens / block_tokens"};
    if (!slots_.take(memory, options_.slots, in_place(), options_.null_slot && primary_ != kNoGroup) ||
        !policy_.take(memory, {index_->max_runs(), options_.slots, row_blocks_}) ||
        !slot_of_.take(memory, index_->positions()) || !on_grid_.take(memory, index_->positions()) ||
        !owner_.take(memory, index_->positions()) || !released_.take(memory, index_->max_runs()) ||
        !marks_.take(memory, index_->max_runs()) ||
        !ended_.take(memory, std::size_t{2} * options_.max_leases) ||
        !keys_.take(memory, Policy::kKeys == PolicyKeys::kNone ? 0 : row_blocks_) ||
        !leases_.take(memory, options_.max_leases) || !pos_.take(memory, rows) || !own_.take(memory, rows) ||
        !tail_.take(memory, std::size_t{options_.max_leases} * options_.block_tokens) ||
        !tail_marks_.take(memory, std::size_t{options_.max_leases} * kMaxMarksPerBlock) ||
        !root_keys_.take(memory, options_.max_scopes) || !root_run_.take(memory, options_.max_scopes) ||
        !vocab_.take(memory, options_.max_scopes) ||
        !copies_.take(memory, in_place() ? std::size_t{kCopiesPerLease} * options_.max_leases : 0) ||
        !changes_.take(memory, options_.max_changes) ||
        !own_tables_.take(memory, options_.tables.empty() ? rows : 0))
      return no_memory();
    table_ = options_.tables.empty() ? own_tables_.data() : options_.tables.data();
    padded_ = options_.null_slot || groups.size() > 1;
    set_null(0, 0, static_cast<std::uint32_t>(rows));
    return groups_.take(memory, groups, primary_, slots_, slots,
                        {.leases = options_.max_leases,
                         .row_blocks = row_blocks_,
                         .positions = index_->positions(),
                         .block_tokens = options_.block_tokens,
                         .null_slot = options_.null_slot});
  }

  // ---- small things ------------------------------------------------------------------------------------------------

  [[nodiscard]] std::size_t row(std::uint32_t lease) const noexcept {
    return std::size_t{lease} * row_blocks_;
  }
  [[nodiscard]] RootKeys roots() const noexcept { return {root_keys_.data(), root_keys_.size()}; }
  [[nodiscard]] bool in_place() const noexcept { return options_.fill == SlotFill::kInPlace; }
  [[nodiscard]] std::uint32_t token_count(const Prompt& prompt) const noexcept {
    return static_cast<std::uint32_t>(options_.mode == IndexMode::kKeys
                                          ? prompt.keys.size() * options_.block_tokens + prompt.tail_tokens
                                          : prompt.tokens.size());
  }
  [[nodiscard]] bool reached(Point p) const noexcept { return p.value <= reached_[p.timeline]; }
  [[nodiscard]] auto stored_key() const noexcept {
    return [this](BlockKey parent, const std::byte* unit) noexcept {
      if (options_.mode == IndexMode::kKeys) {
        BlockKey key;
        std::memcpy(&key, unit, sizeof key);
        return key;
      }
      return hasher_.next(parent, {reinterpret_cast<const TokenId*>(unit), options_.block_tokens});
    };
  }

  // Slots are stored plus one, so that zeroed memory means none.
  [[nodiscard]] SlotId slot_at(BlockPos pos) const noexcept { return slot_of_[pos] - 1; }

  void op(FlightOp code) noexcept {
    if (log_.on()) log_.put(static_cast<std::uint8_t>(code));
  }
  template <class... T>
  void put(const T&... values) noexcept {
    if (log_.on()) (log_.put(values), ...);
  }
  void end_op() noexcept {
    if (log_.on()) log_.flush();
  }

  [[nodiscard]] Status decode_one(Lease& lease, TokenId token, Point after) noexcept {
    if (!lease.live()) return Lease::stale();
    const LeaseRecord& r = leases_[lease.index()];
    if (r.known != r.committed)
      return {StatusCode::kWrongState, "tokens of this lease are known and not committed: commit them first"};
    if (!in_vocabulary({&token, 1}, ScopeId{r.last_scope}))
      return {StatusCode::kOutOfRange, "a token id is outside the scope's vocabulary"};
    if (const Status status = may_wait(r, after); !status.ok()) return status;
    if (in_place() && (r.scheduled == r.committed || groups_.has_states()))
      if (const Status status = lease.reserve(r.scheduled == r.committed ? 1 : 0); !status.ok())
        return status;
    if (const Status status = lease.append({&token, 1}); !status.ok()) return status;
    return lease.commit(1, after);
  }

  [[nodiscard]] std::int32_t no_slot() const noexcept { return options_.null_slot ? 0 : -1; }

  void decided(std::uint64_t what) noexcept {
    decisions_ = (decisions_ ^ what) * 0x9e3779b97f4a7c15u;
    decisions_ ^= decisions_ >> 32;
  }

  [[nodiscard]] Status check(const Prompt& prompt) const noexcept {
    const std::uint32_t scopes = scope_count_.load(std::memory_order_acquire);
    if (static_cast<std::uint32_t>(prompt.scope) >= scopes)
      return {StatusCode::kInvalidArgument, "Prompt::scope was not opened in this cache: call open_scope"};
    for (const ScopeChange& change : prompt.changes)
      if (static_cast<std::uint32_t>(change.scope) >= scopes)
        return {StatusCode::kInvalidArgument,
                "a scope change names a scope that was not opened in this cache"};
    if (options_.mode == IndexMode::kKeys) {
      if (!prompt.tokens.empty() || !prompt.extras.empty() || !prompt.changes.empty())
        return {StatusCode::kInvalidArgument, "a keyed cache takes Prompt::keys and nothing else"};
      if (prompt.tail_tokens > options_.block_tokens)
        return {StatusCode::kInvalidArgument, "Prompt::tail_tokens must be at most a block"};
      if (prompt.keys.size() >= 0x7fffffffu / options_.block_tokens)
        return {StatusCode::kOutOfRange, "a prompt has at most 2^31-1 tokens"};
      return {};
    }
    if (!prompt.keys.empty() || prompt.tail_tokens != 0)
      return {StatusCode::kInvalidArgument, "this cache compares tokens: give Prompt::tokens, not keys"};
    return validate(prompt, options_.block_tokens);
  }

  /// Whether the prompt's tokens from `from` on are in the vocabularies of the scopes that hold where they stand.
  [[nodiscard]] bool in_vocabulary(const Prompt& prompt, std::size_t from) const noexcept {
    ScopeId scope = prompt.scope;
    for (const ScopeChange& change : prompt.changes) {
      if (change.position > from) {
        if (!in_vocabulary(prompt.tokens.subspan(from, change.position - from), scope)) return false;
        from = change.position;
      }
      scope = change.scope;
    }
    return in_vocabulary(prompt.tokens.subspan(from), scope);
  }

  [[nodiscard]] Result<ScopeId> add_scope(BlockKey root_key, std::uint32_t vocab) noexcept {
    const std::uint32_t id = scope_count_.load(std::memory_order_relaxed);
    if (id == options_.max_scopes)
      return Status(StatusCode::kExhausted, "no scope left: raise CacheOptions::max_scopes");
    op(FlightOp::kScope);
    put(root_key);
    const auto root = index_->add_root(root_key);
    end_op();
    if (!root.ok()) return root.status();
    root_run_[id] = *root;
    root_keys_[id] = root_key;
    vocab_[id] = vocab;
    scope_count_.store(id + 1, std::memory_order_release);
    return ScopeId{id};
  }

  // ---- the tree and the policy -------------------------------------------------------------------------------------

  /// Calls `fn(source)` with a source for the prompt that also writes the flight log.
  template <BlockSource S, class Fn>
  decltype(auto) recorded(const S& source, Fn&& fn) noexcept {
    if (!log_.on()) return fn(source);
    const RecordingSource<S> recording(source, log_);
    return fn(recording);
  }

  /// Fills a lease's row with what a match passes.
  struct RowVisit {
    BasicCache* cache;
    std::size_t row;
    std::uint32_t blocks;
    std::uint32_t grid_blocks;  // leading ones that were computed on the grid
    void operator()(RunId, BlockPos first, std::uint32_t n, std::uint32_t) noexcept {
      for (std::uint32_t i = 0; i < n; ++i, ++blocks) {
        cache->pos_[row + blocks] = first + i;
        if (grid_blocks == blocks && cache->on_grid_[first + i] != 0) ++grid_blocks;
      }
    }
    void reset() const noexcept {}
  };

  /// The lease keeps what its place names, and no longer what it named before.
  void repin(LeaseRecord& r) noexcept {
    const RunId run = index_->locate(r.place);
    r.place.run = run;
    r.place.generation = index_->info(run).generation;
    if (run == r.pinned) return;
    [[maybe_unused]] const bool pinned = index_->try_pin(run, r.place.generation);
    assert(pinned);
    const RunId before = std::exchange(r.pinned, run);
    if (before == kNoRun) return;
    index_->unpin(before);
    (void)prune(before);  // it may lie behind the place since a split, with what others have left
  }

  /// Calls `fn(run, blocks)` for the runs of the path up to the place, with the blocks of it that they hold: its end first.
  template <class Fn>
  void for_each_run(Place place, Fn&& fn) noexcept {
    RunId run = index_->locate(place);
    for (RunInfo info = index_->info(run); info.parent != kNoRun; run = info.parent, info = index_->info(run))
      fn(run, std::min(info.length, place.blocks - info.depth));
  }

  /// Makes the place the end of a run; without effect if no run is left.
  template <StoredKeySource S>
  void split(Place& place, const S& source) noexcept {
    const RunId before = index_->locate(place);
    const auto head = index_->split(place, source);
    if (!head.ok() || *head == before) return;
    policy_.on_split(*head, before, index_->info(*head).length);
    released_[*head] = released_[before];
    place = {*head, index_->info(*head).generation, place.blocks};
  }

  /// The keys of what is stored, where no prompt is at hand.
  struct StoredKeys {
    BasicCache* cache;
    [[nodiscard]] BlockKey stored_key(BlockKey parent, const std::byte* unit) const noexcept {
      const BlockKey key = cache->replaying_ != nullptr ? cache->replaying_->template get<BlockKey>()
                                                        : cache->stored_key()(parent, unit);
      cache->put(key);
      return key;
    }
  };

  /// Adds the source's blocks up to `until` behind the lease's place, as pending. False if memory ran out before.
  template <BlockSource S>
  [[nodiscard]] bool extend(std::uint32_t lease, const S& source, std::uint32_t until) noexcept {
    LeaseRecord& r = leases_[lease];
    for (;;) {
      split(r.place, source);
      RunId parent = index_->locate(r.place);
      std::uint32_t block = r.place.blocks;
      const Extended extended = index_->extend(
          r.place, source, until, [&](RunId run, BlockPos first, std::uint32_t n, bool is_new) {
            for (std::uint32_t i = 0; i < n; ++i) {
              pos_[row(lease) + block + i] = first + i;
              slot_of_[first + i] = 0;
              on_grid_[first + i] = 0;
              owner_[first + i] = lease + 1;
              if (groups_.any()) groups_.clear(first + i);
            }
            block += n;
            if (is_new) {
              policy_.on_insert(run, index_->info(parent).parent == kNoRun ? kNoVictim : parent, n);
              released_[run] = 0;
              parent = run;
            } else {
              policy_.on_grow(run, n);
            }
          });
      r.place = extended.place;
      repin(r);
      if (r.place.blocks >= until) return true;
      // The index is full of what nobody uses: what would be evicted next goes now.
      if (!evict_one(options_.slots)) return false;
    }
  }

  /// Leading blocks up to the place whose state is computed.
  [[nodiscard]] std::uint32_t ready_blocks(Place place) const noexcept {
    std::uint32_t ready = place.blocks;
    RunId run = index_->locate(place);
    for (RunInfo info = index_->info(run); info.parent != kNoRun; run = info.parent, info = index_->info(run))
      if (info.ready < info.length && info.depth + info.ready < ready) ready = info.depth + info.ready;
    return ready;
  }

  /// The run of the path to `place` that holds block b.
  [[nodiscard]] RunId run_of(Place place, std::uint32_t b) const noexcept {
    return index_->locate({place.run, place.generation, b + 1});
  }

  /// Keys that a decision may rest on go through the flight log.
  template <class Fn>
  void for_each_logged_key(RunId run, std::uint32_t from, std::uint32_t n, Fn&& fn) noexcept {
    const auto tell = [&](BlockKey key) {
      put(key);
      fn(key);
    };
    if (replaying_ != nullptr)
      for (std::uint32_t i = 0; i < n; ++i) tell(replaying_->get<BlockKey>());
    else
      index_->for_each_key(run, from, n, stored_key(), [&](BlockPos, BlockKey key, BlockKey) { tell(key); });
  }
  /// Tells the policy the keys that it wants to know of the source's blocks, which are there up to the place.
  template <BlockSource S>
  void report_path(Place place, std::uint32_t scope, const S& source) noexcept {
    BlockKey key = root_keys_[scope];
    const std::uint32_t from = Policy::kKeys == PolicyKeys::kPath ? 0 : place.blocks;
    if (from > 0 && options_.mode != IndexMode::kNothing) key = last_key(place);
    for (std::uint32_t b = from; b < source.blocks(); ++b) keys_[b - from] = key = source.key(key, b);
    policy_.on_path({keys_.data(), source.blocks() - from}, place.blocks - from);
  }
  /// Tells the policy the key of the one block that the source holds behind the place.
  template <BlockSource S>
  void report_new(Place place, std::uint32_t scope, const S& source) noexcept {
    const bool first = place.blocks == 0 || options_.mode == IndexMode::kNothing;
    const BlockKey key = source.key(first ? root_keys_[scope] : last_key(place), place.blocks);
    policy_.on_path({&key, 1}, 0);
  }
  /// The key of the last block before the place.
  [[nodiscard]] BlockKey last_key(Place place) noexcept {
    BlockKey key{};
    const RunId run = run_of(place, place.blocks - 1);
    index_->for_each_key(run, place.blocks - 1 - index_->info(run).depth, 1, stored_key(),
                         [&](BlockPos, BlockKey last, BlockKey) { key = last; });
    return key;
  }

  /// Calls `fn(key, parent)` for the lease's blocks that are the run's [from, from + n). Goes on at the cursor if it can.
  template <class Fn>
  void tell_keys(std::uint32_t lease, KeyCursor& cursor, RunId run, std::uint32_t from, std::uint32_t n,
                 Fn&& fn) noexcept {
    const RunInfo info = index_->info(run);
    if (cursor.blocks != info.depth + from)
      index_->for_each_key(run, from, 1, stored_key(), [&](BlockPos, BlockKey, BlockKey parent) {
        cursor = {parent, info.depth + from};
      });
    for (; n > 0; --n, ++from) {
      const std::byte* unit = index_->unit(pos_[row(lease) + cursor.blocks]);
      const BlockKey key = from == 0 ? info.first_key : stored_key()(cursor.last, unit);
      fn(key, cursor.last);
      cursor = {key, cursor.blocks + 1};
    }
  }

  void record_stored(std::uint32_t lease, RunId run, std::uint32_t from, std::uint32_t n) noexcept {
    record(ChangeKind::kStored, n,
           [&](auto&& fn) { tell_keys(lease, leases_[lease].published, run, from, n, fn); });
  }
  void record_removed(RunId run, std::uint32_t from, std::uint32_t n) noexcept {
    record(ChangeKind::kRemoved, n, [&](auto&& fn) {
      index_->for_each_key(run, from, n, stored_key(),
                           [&](BlockPos, BlockKey key, BlockKey parent) { fn(key, parent); });
    });
  }
  /// `for_each_key(fn)` calls `fn(key, parent)` for each of n blocks.
  template <class ForEachKey>
  void record(ChangeKind kind, std::uint32_t n, ForEachKey&& for_each_key) noexcept {
    if (changes_.size() == 0 || n == 0) return;
    std::uint64_t number = changes_made_ + (kind == ChangeKind::kStored ? 0 : n - 1);
    const std::uint64_t end = changes_made_ + n;
    for_each_key([&](BlockKey key, BlockKey parent) {
      if (end - number <= changes_.size())
        changes_[number % changes_.size()] = {number, key, parent, kind, options_.medium, 0};
      // Removals are told from the leaf up.
      kind == ChangeKind::kStored ? ++number : --number;
    });
    changes_made_ += n;
    if (changes_made_ - changes_taken_ > changes_.size()) {
      stats_.lost_changes += changes_made_ - changes_.size() - changes_taken_;
      changes_taken_ = changes_made_ - changes_.size();
    }
  }

  /// The last n blocks of a run leave: their slots are free, the policy and the records know.
  [[nodiscard]] bool remove_tail(RunId run, std::uint32_t n, bool evicted) noexcept {
    const RunInfo info = index_->info(run);
    const std::uint32_t keep = info.length - n;
    const std::uint32_t ready = info.ready > keep ? info.ready - keep : 0;
    const Status status = index_->trim(run, keep, [&] {
      record_removed(run, keep, ready);
      if constexpr (Policy::kKeys != PolicyKeys::kNone)
        if (evicted) for_each_logged_key(run, keep, ready, [&](BlockKey key) { policy_.on_evicted(key); });
      index_->for_each_range(run, keep, n, [&](BlockPos first, std::uint32_t count) {
        for (BlockPos pos = first; pos < first + count; ++pos)
          if (slot_of_[pos] != 0) withdraw(pos, evicted);
        for (BlockPos pos = first; groups_.any() && pos < first + count; ++pos) groups_.drop(pos, evicted);
      });
    });
    if (!status.ok()) return false;
    decided(std::uint64_t{run} << 32 | n);
    if (evicted) stats_.evicted_blocks += ready;
    if (keep > 0) {
      policy_.on_trim(run, n);
      return true;
    }
    released_[run] = 0;
    policy_.on_erase(run);
    const RunInfo parent = index_->info(info.parent);
    if (parent.children == 0 && parent.parent != kNoRun) policy_.on_leaf(info.parent);
    return true;
  }

  /// The block's slot is not the tree's any more.
  void withdraw(BlockPos pos, bool evicted) noexcept {
    slots_.withdraw(slot_at(pos), evicted);
    slot_of_[pos] = 0;
  }

  /// A slot for the first of `wanted` blocks that need one.
  [[nodiscard]] SlotId allocate_slot(std::uint32_t wanted) noexcept { return allocate_slot(slots_, wanted); }
  [[nodiscard]] SlotId allocate_slot(SlotBooks& books, std::uint32_t wanted) noexcept {
    if (books.pool().free_slots() == 0 && !make_room(books, wanted)) return kNoSlot;
    const SlotId slot = books.allocate();
    decided(slot);
    return slot;
  }

  /// Pending blocks at the end of a path that nobody holds are given up, from the leaf upwards. Returns the run that is
  /// the end then.
  RunId prune(RunId run) noexcept {
    for (;;) {
      const RunInfo info = index_->info(run);
      if (info.parent == kNoRun || info.children != 0 || info.references != 0 || info.ready == info.length)
        return run;
      if (!remove_tail(run, info.length - info.ready, false) || info.ready > 0) return run;
      run = info.parent;
    }
  }

  /// What nobody else uses of the path that ends with the run goes first from now on.
  void demote_unshared(RunId run) noexcept {
    std::uint32_t children = 0;
    for (RunInfo info = index_->info(run);
         info.parent != kNoRun && info.children == children && info.references == 0;
         run = info.parent, info = index_->info(run), children = 1)
      policy_.demote(run);
  }

  /// Joins runs of the path that were used together and have no branch between them.
  void merge_path(RunId run) noexcept {
    for (RunInfo info = index_->info(run); info.parent != kNoRun; info = index_->info(run)) {
      const RunInfo above = index_->info(info.parent);
      if (above.parent == kNoRun) return;
      if (above.children == 1 && above.ready == above.length && policy_.mergeable(info.parent, run) &&
          index_->merge_with_child(info.parent)) {
        policy_.on_merge(info.parent, run);
        released_[run] = std::max(released_[run], std::exchange(released_[info.parent], 0));
        continue;
      }
      run = info.parent;
    }
  }

  // ---- leases ------------------------------------------------------------------------------------------------------

  [[nodiscard]] LeaseRecord* find(std::uint32_t lease, std::uint32_t generation) noexcept {
    if (lease >= options_.max_leases) return nullptr;
    LeaseRecord& r = leases_[lease];
    return r.active && !r.releasing && r.generation == generation ? &r : nullptr;
  }

  [[nodiscard]] std::uint32_t free_lease() const noexcept {
    std::uint32_t lease = 0;
    while (lease < options_.max_leases && leases_[lease].active) ++lease;
    return lease;
  }

  struct AcquireShape {
    std::uint32_t scope, tokens;
    AcquireOptions how;
  };

  void log_acquire(const AcquireShape& shape) noexcept {
    op(FlightOp::kAcquire);
    put(shape.scope, shape.tokens, shape.how.session, shape.how.now_ms, shape.how.grid_tokens,
        shape.how.have_tokens, shape.how.max_hit_tokens, static_cast<std::uint32_t>(shape.how.reuse),
        static_cast<std::uint32_t>(shape.how.publish) | static_cast<std::uint32_t>(shape.how.announce) << 1);
  }

  /// Keeps the marks of the prompt's last, unfinished block for when it is finished.
  [[nodiscard]] std::uint32_t tail_marks_of(const Prompt& prompt, std::uint32_t begin,
                                            std::uint32_t lease) noexcept {
    StoredMark* out = tail_marks_.data() + std::size_t{lease} * kMaxMarksPerBlock;
    std::uint32_t n = 0;
    for (const Extra& extra : prompt.extras)
      if (extra.position >= begin) out[n++] = {KeyMark::Kind::kMedia, extra.position - begin, extra.digest};
    for (const ScopeChange& change : prompt.changes) {
      if (change.position < begin) continue;
      out[n] = {KeyMark::Kind::kScope, change.position - begin, {}};
      std::memcpy(out[n++].value.data(), &change.scope, sizeof change.scope);
    }
    return n;
  }

  /// `admit(n)` says whether what lies behind the n blocks that are there may go in; if not, nothing was changed.
  template <BlockSource S, class Admit>
  [[nodiscard]] bool acquire_with(std::uint32_t lease, const AcquireShape& shape, const S& source,
                                  Admit&& admit) noexcept {
    const RootId root = root_run_[shape.scope];
    RowVisit visit{this, row(lease), 0, 0};
    Match match{.place = index_->place_at_end(root), .ready = 0};
    if (shape.how.reuse) match = index_->match(root, source, visit);
    if (!admit(match.place.blocks)) return false;

    LeaseRecord& r = leases_[lease];
    const std::uint32_t generation = r.generation + 1;
    r = {};
    r.active = true;
    r.generation = generation;
    r.scope = shape.scope;
    r.pinned = kNoRun;
    r.prompt_tokens = r.known = shape.tokens;
    r.last_scope = shape.scope;
    r.grid = shape.how.grid_tokens;
    r.announced = shape.how.announce;
    r.shared = r.publishing = r.storing = shape.how.publish && shape.how.reuse && !r.announced;

    r.moved = r.published = {root_keys_[shape.scope], 0};
    r.place = match.place;
    r.max_hit = shape.how.max_hit_tokens;
    std::uint32_t usable = match.ready;
    if (shape.how.grid_tokens > 0) usable = std::min(usable, visit.grid_blocks);
    usable = usable_blocks(lease, usable);
    r.matched = r.settled = r.stored = usable;
    r.loaded = std::min(shape.how.have_tokens / options_.block_tokens, usable);
    r.committed = r.scheduled = r.valid = usable * options_.block_tokens;
    r.grid_tokens = usable <= visit.grid_blocks ? r.committed : 0;

    r.facts = {.session = shape.how.session,
               .now_ms = shape.how.now_ms,
               .prompt_blocks = source.blocks(),
               .matched_blocks = match.ready,
               .computed_blocks = 0,
               .retention = {}};
    if (!r.announced) policy_.on_request_begin(r.facts);
    split(r.place, source);
    repin(r);
    if (!r.announced)
      for_each_run(r.place, [&](RunId run, std::uint32_t blocks) { policy_.on_hit(run, blocks); });
    if (groups_.any()) groups_.attach(view(lease), usable);
    decided(std::uint64_t{lease} << 32 | usable);
    if constexpr (Policy::kKeys != PolicyKeys::kNone)
      if (!r.announced) shape.how.reuse ? report_path(r.place, shape.scope, source) : policy_.on_path({}, 0);
    if (r.publishing && r.place.blocks < source.blocks())
      r.publishing = extend(lease, source, source.blocks());
    if (in_place()) fill_table(lease, 0, usable);
    return true;
  }

  /// How many of the lease's first `blocks` blocks it can use: never the last token, on its grid, and valid in all groups.
  [[nodiscard]] std::uint32_t usable_blocks(std::uint32_t lease, std::uint32_t blocks) noexcept {
    LeaseRecord& r = leases_[lease];
    blocks = clip(r, blocks);
    if (!groups_.any()) return blocks;
    r.helped = 0;
    for (std::uint32_t before = blocks + 1; before != blocks;) {
      before = blocks;
      const GroupSet::Usable usable = groups_.usable(pos_.data() + row(lease), blocks);
      r.helped = std::max(r.helped, usable.without_states * options_.block_tokens);
      blocks = clip(r, usable.blocks);
    }
    return blocks;
  }
  /// The first token of a block, of any group, into which something is still being brought. What is computed behind it rests
  /// on it, in all groups.
  [[nodiscard]] std::uint32_t open_from(std::uint32_t lease) const noexcept {
    std::uint32_t tokens = groups_.open_from(lease);
    const std::uint32_t blocks = blocks_for(leases_[lease].scheduled);
    for (std::uint32_t b = leases_[lease].settled; b < blocks && b * options_.block_tokens < tokens; ++b)
      if (own_[row(lease) + b] != 0 && slots_.writes(table_slot(lease, b)) > 0)
        tokens = b * options_.block_tokens;
    return tokens;
  }
  [[nodiscard]] GroupSet::View view(std::uint32_t lease) const noexcept {
    const LeaseRecord& r = leases_[lease];
    return {.lease = lease,
            .pos = pos_.data() + row(lease),
            .in_tree = r.place.blocks,
            .settled = r.settled,
            .valid = r.open > 0 ? std::min(r.valid, open_from(lease)) : r.valid,
            .shared = r.shared};
  }

  /// How much of a match the lease may take: never the prompt's last token, and only to its grid.
  [[nodiscard]] std::uint32_t clip(const LeaseRecord& r, std::uint32_t blocks) const noexcept {
    const std::uint32_t most = std::min(r.prompt_tokens == 0 ? 0 : r.prompt_tokens - 1, r.max_hit);
    blocks = std::min(blocks, most / options_.block_tokens);
    while (r.grid > 0 && blocks > 0 && std::uint64_t{blocks} * options_.block_tokens % r.grid != 0) --blocks;
    return blocks;
  }

  void fill_table(std::uint32_t lease, std::uint32_t from, std::uint32_t to) noexcept {
    const std::size_t at = row(lease);
    for (std::uint32_t b = from; b < to; ++b)
      table_[at + b] = static_cast<std::int32_t>(slot_at(pos_[at + b]));
    if (from < to) changed(leases_[lease], from, to);
  }
  void changed(LeaseRecord& r, std::uint32_t from, std::uint32_t to) noexcept {
    r.changed = r.changed.empty() ? BlockRange{from, to}
                                  : BlockRange{std::min(r.changed.begin, from), std::max(r.changed.end, to)};
  }
  [[nodiscard]] BlockRange take_delta(std::uint32_t lease, GroupId group) noexcept {
    if (!in_place() || group >= kMaxGroups) return {};
    group = side_of_[group];
    if (group != primary_) return groups_.take_delta(group, lease);
    LeaseRecord& r = leases_[lease];
    const std::uint32_t end = std::min(r.changed.end, blocks_for(r.scheduled));
    const BlockRange range{std::min(r.changed.begin, end), end};
    r.changed = {};
    return range;
  }
  [[nodiscard]] std::span<const std::int32_t> table(std::uint32_t lease, GroupId group,
                                                    bool padded) noexcept {
    if (group >= kMaxGroups) return {};
    group = side_of_[group];
    if (group != primary_) return groups_.table(group, lease, padded);
    return {table_ + row(lease), padded ? row_blocks_ : blocks_for(leases_[lease].scheduled)};
  }
  /// Entries [from, to) of the lease's row name no slot.
  void set_null(std::uint32_t lease, std::uint32_t from, std::uint32_t to) noexcept {
    if (padded_ && from < to) std::fill_n(table_ + row(lease) + from, to - from, options_.null_slot ? 0 : -1);
  }
  [[nodiscard]] SlotId table_slot(std::uint32_t lease, std::uint32_t b) const noexcept {
    return static_cast<SlotId>(table_[row(lease) + b]);
  }

  /// `keep_found`: the lease does not let go of blocks that are there for it.
  Status reserve(std::uint32_t lease, std::uint32_t n, bool keep_found = false) noexcept {
    LeaseRecord& r = leases_[lease];
    if (n > options_.max_lease_tokens - r.scheduled) {
      ++stats_.refused_requests;
      return {StatusCode::kOutOfRange, "longer than CacheOptions::max_lease_tokens"};
    }
    if (in_place()) {
      const std::uint32_t have = blocks_for(r.scheduled), need = blocks_for(r.scheduled + n);
      // The block that the reserved cursor stands in may not be this lease's alone.
      const bool copy = n > 0 && pool().shared_slots() > 0 && shared_frontier(lease);
      if (need > have || copy || groups_.any()) {
        if (const Status status = reserve_slots(lease, n, have, need, copy, keep_found); !status.ok()) {
          ++stats_.refused_requests;
          return status;
        }
      }
    }
    r.scheduled += n;
    r.started = true;
    return {};
  }
  /// What the lease writes may be written in this slot.
  static void not_before(LeaseRecord& r, const SlotBooks& books, SlotId slot) noexcept {
    if (books.pool().fence(slot).value > r.not_before.value) r.not_before = books.pool().fence(slot);
  }

  [[nodiscard]] std::uint32_t blocks_for(std::uint32_t tokens) const noexcept {
    return (tokens + options_.block_tokens - 1) / options_.block_tokens;
  }

  /// `tokens` may be null when replaying; then only their number counts.
  Status append(std::uint32_t lease, const TokenId* tokens, std::uint32_t n) noexcept {
    LeaseRecord& r = leases_[lease];
    if (n > options_.max_lease_tokens - r.known)
      return {StatusCode::kOutOfRange, "longer than CacheOptions::max_lease_tokens"};
    for (std::uint32_t i = 0; i < n; ++i) {
      if (tokens != nullptr) tail(lease)[r.known % options_.block_tokens] = tokens[i];
      ++r.known;
      if (r.known % options_.block_tokens == 0 && r.publishing) add_tail_block(lease);
    }
    return {};
  }

  [[nodiscard]] TokenId* tail(std::uint32_t lease) noexcept {
    return tail_.data() + std::size_t{lease} * options_.block_tokens;
  }

  void add_tail_block(std::uint32_t lease) noexcept {
    const LeaseRecord& r = leases_[lease];
    const std::uint32_t block = r.known / options_.block_tokens - 1;
    if (replaying_ != nullptr) {
      add_block(lease, block, ReplaySource(*replaying_, log_, block + 1));
      return;
    }
    Extra extras[kMaxMarksPerBlock];
    ScopeChange changes[kMaxMarksPerBlock];
    std::size_t e = 0, c = 0;
    for (std::uint32_t m = 0; block == r.marked_block && m < r.tail_marks; ++m) {
      const StoredMark& mark = tail_marks_[std::size_t{lease} * kMaxMarksPerBlock + m];
      if (mark.kind == KeyMark::Kind::kMedia) {
        extras[e++] = {mark.offset, mark.value};
      } else {
        changes[c].position = mark.offset;
        std::memcpy(&changes[c++].scope, mark.value.data(), sizeof(ScopeId));
      }
    }
    const Prompt prompt{.scope = ScopeId{r.scope},
                        .tokens = {tail(lease), options_.block_tokens},
                        .extras = {extras, e},
                        .changes = {changes, c}};
    recorded(TailSource(hasher_, options_.block_tokens, prompt, roots(), block),
             [&](const auto& source) { add_block(lease, block, source); });
  }

  template <BlockSource S>
  void add_block(std::uint32_t lease, std::uint32_t block, const S& source) noexcept {
    LeaseRecord& r = leases_[lease];
    // Somebody else may have computed the same continuation.
    RowVisit visit{this, row(lease), block, 0};
    r.place = index_->match_from(root_run_[r.scope], r.place, source, visit).place;
    split(r.place, source);
    repin(r);
    if constexpr (Policy::kKeys != PolicyKeys::kNone)
      if (r.place.blocks <= block) report_new(r.place, r.scope, source);
    if (r.place.blocks <= block && !extend(lease, source, block + 1)) {
      r.publishing = false;
      ++stats_.unpublished_blocks;
    }
  }

  /// Whether one more commit can wait for a point.
  [[nodiscard]] Status may_wait(const LeaseRecord& r, Point after) const noexcept {
    if (after.timeline >= kMaxTimelines)
      return {StatusCode::kOutOfRange, "Point::timeline must be below kMaxTimelines"};
    if (r.pending_count == kMaxPendingCommits &&
        r.pending[r.pending_count - 1].after.timeline != after.timeline)
      return {StatusCode::kExhausted, "too many commits on different timelines wait for their points"};
    return {};
  }
  [[nodiscard]] Status may_commit(std::uint32_t lease, std::uint32_t n, Point after) const noexcept {
    const LeaseRecord& r = leases_[lease];
    if (const Status status = may_wait(r, after); !status.ok()) return status;
    if (n > r.known - r.committed)
      return {StatusCode::kOutOfRange, "commit beyond the tokens that are known: append them first"};
    if (in_place() && n > r.scheduled - r.committed)
      return {StatusCode::kOutOfRange, "commit beyond what was reserved: reserve first"};
    if (n > 0 && !groups_.may_advance(lease))
      return {StatusCode::kWrongState,
              "with states every commit needs a reserve before it (0 is enough), which says where the state "
              "goes"};
    return {};
  }
  Status commit(std::uint32_t lease, std::uint32_t n, Point after, bool on_grid) noexcept {
    LeaseRecord& r = leases_[lease];
    if (const Status status = may_commit(lease, n, after); !status.ok()) return status;
    const bool behind_last =
        r.pending_count > 0 && r.pending[r.pending_count - 1].after.timeline == after.timeline;
    r.started = true;
    if (on_grid && r.grid_tokens == r.committed) r.grid_tokens += n;
    r.committed += n;
    r.scheduled = std::max(r.scheduled, r.committed);
    if (groups_.any())
      groups_.advance(view(lease), r.committed - n, r.committed,
                      n > 0 && next_boundary(lease, r.committed - 1) == r.committed);
    if (r.pending_count == 0 && reached(after)) {
      settle(lease, r.committed);
      return {};
    }
    if (behind_last && (r.pending_count == kMaxPendingCommits ||
                        r.pending[r.pending_count - 1].after.value >= after.value)) {
      // A later point on the same timeline covers both.
      PendingCommit& last = r.pending[r.pending_count - 1];
      last = {r.committed, {after.timeline, std::max(after.value, last.after.value)}};
      return {};
    }
    r.pending[r.pending_count++] = {r.committed, after};
    return {};
  }

  void settle_reached(std::uint32_t lease) noexcept {
    LeaseRecord& r = leases_[lease];
    std::uint32_t done = 0;
    for (; done < r.pending_count && reached(r.pending[done].after); ++done)
      settle(lease, r.pending[done].tokens);
    for (std::uint32_t i = done; i < r.pending_count; ++i) r.pending[i - done] = r.pending[i];
    r.pending_count -= done;
    if (over(r)) finish(lease);
  }
  /// Released, and nothing is waited for any more.
  [[nodiscard]] bool over(const LeaseRecord& r) const noexcept {
    return r.releasing && r.pending_count == 0 && r.open == 0;
  }

  /// The state of the lease's first `tokens` tokens is there, but for what entries still bring.
  void settle(std::uint32_t lease, std::uint32_t tokens) noexcept {
    leases_[lease].valid = tokens;
    settle(lease);
  }
  [[nodiscard]] std::uint32_t next_boundary(std::uint32_t lease, std::uint32_t position) const noexcept {
    return groups_.next_boundary(position, leases_[lease].prompt_tokens, leases_[lease].helped);
  }
  void settle(std::uint32_t lease) noexcept {
    settle_blocks(lease);
    if (groups_.any()) {
      groups_.settle(view(lease));
      leases_[lease].open -= groups_.take_dropped_open();
    }
  }
  /// In place, whole blocks become ready for everybody.
  void settle_blocks(std::uint32_t lease) noexcept {
    LeaseRecord& r = leases_[lease];
    std::uint32_t until = r.valid / options_.block_tokens;
    if (until <= r.settled) return;
    if (r.open > 0) until = std::min(until, open_from(lease) / options_.block_tokens);
    while (in_place() && r.shared && r.settled < until) {
      if (r.settled >= r.place.blocks) {
        stats_.unpublished_blocks += until - r.settled;
        break;
      }
      const RunId run = run_of(r.place, r.settled);
      const RunInfo info = index_->info(run);
      const std::uint32_t from = r.settled - info.depth;
      const std::uint32_t n = std::min({until, info.depth + info.length, r.place.blocks}) - r.settled;
      const std::uint32_t duplicates = info.ready > from ? std::min(info.ready - from, n) : 0;
      for (std::uint32_t b = r.settled; b < r.settled + duplicates; ++b) use_published(lease, b);
      for (std::uint32_t b = r.settled + duplicates; b < r.settled + n; ++b) {
        own_[row(lease) + b] = 0;
        give(lease, b, table_slot(lease, b));
      }
      if (n > duplicates) make_ready(lease, run, from + duplicates, n - duplicates);
      r.settled += n;
    }
    r.settled = std::max(r.settled, until);
    if (!r.shared) r.stored = r.settled;
  }

  /// Somebody else was first with the lease's block b: the lease goes on with the slot that all others use.
  void use_published(std::uint32_t lease, std::uint32_t b) noexcept {
    const std::size_t at = row(lease) + b;
    const SlotId slot = slot_at(pos_[at]);
    if (std::exchange(own_[at], std::uint8_t{0}) != 0) slots_.let_go(table_slot(lease, b));
    if (table_slot(lease, b) == slot) return;  // a fork's, of which there was only one
    ++stats_.duplicate_blocks;
    table_[at] = static_cast<std::int32_t>(slot);
    changed(leases_[lease], b, b + 1);
  }

  /// Block b's state lies in `slot` from now on.
  void give(std::uint32_t lease, std::uint32_t b, SlotId slot) noexcept {
    const BlockPos pos = pos_[row(lease) + b];
    slot_of_[pos] = slot + 1;
    slots_.publish(slot);
    owner_[pos] = 0;
    on_grid_[pos] = (b + 1) * options_.block_tokens <= leases_[lease].grid_tokens;
  }
  void make_ready(std::uint32_t lease, RunId run, std::uint32_t from, std::uint32_t n) noexcept {
    index_->set_ready(run, from + n);
    record_stored(lease, run, from, n);
    stats_.inserted_blocks += n;
    leases_[lease].facts.computed_blocks += n;
  }

  [[nodiscard]] Progress refresh(std::uint32_t lease) noexcept {
    const LeaseRecord& r = leases_[lease];
    Progress progress{r.committed, 0, true};
    if (r.started) return progress;
    const std::uint32_t ready = ready_blocks(r.place);
    if (clip(r, ready) > r.matched) lengthen(lease, ready);
    progress.ready_tokens = r.committed;
    // What the match could never cover is not worth waiting for.
    const std::uint32_t awaited = clip(r, r.place.blocks);
    if (ready < awaited) {
      progress.pending_tokens = awaited * options_.block_tokens - progress.ready_tokens;
      if (r.shared && owner_[pos_[row(lease) + ready]] == 0) claim(lease, ready);
      const std::uint32_t owner = owner_[pos_[row(lease) + ready]];
      progress.must_compute = owner == 0 || owner == lease + 1;
    }
    return progress;
  }

  /// Takes what has become ready into the match.
  void lengthen(std::uint32_t lease, std::uint32_t ready) noexcept {
    LeaseRecord& r = leases_[lease];
    std::uint32_t on_grid = r.grid_tokens / options_.block_tokens;
    while (on_grid < ready && on_grid_[pos_[row(lease) + on_grid]] != 0) ++on_grid;
    const std::uint32_t usable = usable_blocks(lease, r.grid > 0 ? std::min(ready, on_grid) : ready);
    if (usable <= r.matched) return;
    if (groups_.any()) groups_.attach(view(lease), usable);
    if (in_place()) fill_table(lease, r.matched, usable);
    r.matched = r.settled = r.stored = usable;
    r.committed = r.scheduled = r.valid = usable * options_.block_tokens;
    r.grid_tokens = usable <= on_grid ? r.committed : 0;
    r.facts.matched_blocks = ready;
  }

  /// The lease will compute the pending blocks from `from` on that nobody else does.
  void claim(std::uint32_t lease, std::uint32_t from) noexcept {
    for (std::uint32_t b = from; b < leases_[lease].place.blocks; ++b) {
      std::uint32_t& owner = owner_[pos_[row(lease) + b]];
      if (owner == 0) owner = lease + 1;
    }
  }
  /// It will not, from block `from` on: who waits for them may.
  void disclaim(std::uint32_t lease, std::uint32_t from = 0) noexcept {
    const Place place = leases_[lease].place;
    const std::uint32_t ready = ready_blocks(place);
    for (std::uint32_t b = std::max(from, ready); b < place.blocks; ++b) {
      std::uint32_t& owner = owner_[pos_[row(lease) + b]];
      if (owner == lease + 1) owner = kOrphan;
    }
    // Another that has them computed as well will publish them.
    for (std::uint32_t i = 0; i < options_.max_leases; ++i) {
      const LeaseRecord& r = leases_[i];
      if (i == lease || !r.active || !r.publishing) continue;
      const std::uint32_t until =
          std::min({place.blocks, r.place.blocks, r.committed / options_.block_tokens});
      for (std::uint32_t b = std::max(from, ready); b < until && pos_[row(i) + b] == pos_[row(lease) + b];
           ++b)
        if (std::uint32_t& owner = owner_[pos_[row(i) + b]]; owner == kOrphan) owner = i + 1;
    }
    for (std::uint32_t b = std::max(from, ready); b < place.blocks; ++b)
      if (std::uint32_t& owner = owner_[pos_[row(lease) + b]]; owner == kOrphan) owner = 0;
  }

  void account(const LeaseRecord& r) noexcept {
    if (r.given_up || r.forked || r.announced) return;
    const std::uint32_t hit = r.matched * options_.block_tokens;
    ++stats_.requests;
    stats_.queried_tokens += r.prompt_tokens;
    stats_.hit_tokens += hit;
    stats_.missed_tokens += r.prompt_tokens - hit;
  }

  void abort(std::uint32_t lease) noexcept {
    leases_[lease].pending_count = 0;
    leases_[lease].given_up = !leases_[lease].started;
    finish(lease);
  }
  void release(std::uint32_t lease, Retention retention) noexcept {
    leases_[lease].retention = retention;
    leases_[lease].releasing = true;
    if (over(leases_[lease])) finish(lease);
  }

  void finish(std::uint32_t lease) noexcept {
    LeaseRecord& r = leases_[lease];
    account(r);
    r.facts.retention = r.retention;
    if (!r.announced) {
      policy_.on_request_end(r.facts);
      for_each_run(r.place, [&](RunId used, std::uint32_t blocks) { policy_.on_release(used, blocks); });
    }
    if (groups_.any()) {
      groups_.finish(view(lease));
      r.open -= groups_.take_dropped_open();
    }
    if (in_place()) drop_slots(lease, r.matched);
    if (copy_count_ > 0) drop_copies();
    set_null(lease, 0, blocks_for(r.scheduled));
    const RunId run = index_->locate(r.place);
    for (RunId up = run; index_->info(up).parent != kNoRun; up = index_->info(up).parent)
      released_[up] = step_;
    disclaim(lease);
    index_->unpin(r.pinned);
    r.active = false;
    if (r.retention.keep == Keep::kCold) demote_unshared(run);
    // The run that was pinned may have grown or been split since: what others left behind it goes as well.
    const RunId left = prune(r.pinned);
    merge_path(left);
    // The place may lie inside what was pinned, if there was no run left to split it.
    let_go_of(released_[left] == step_ ? left : run);
  }
  /// A path that ends with this run was let go of in the open step.
  void let_go_of(RunId run) noexcept {
    if (ended_count_ < ended_.size()) ended_[ended_count_] = run;
    ++ended_count_;
  }

  // ---- room: cache/room.hpp -------------------------------------------------------------------------------------------

  /// Takes up to n blocks from the policy's victim. False if nothing can go, or if it was used in step `older_than` or later.
  [[nodiscard]] bool evict_one(std::uint32_t n, std::uint32_t older_than = ~std::uint32_t{0}) noexcept;
  [[nodiscard]] bool make_room(SlotBooks& books, std::uint32_t wanted) noexcept;
  /// Whether some pool has a slot with several holders, so that writing may need a copy.
  [[nodiscard]] bool pool_shares() const noexcept;
  /// Calls `fn(books, slots)` for each pool of which n tokens more need some.
  template <class Fn>
  void for_each_want(std::uint32_t lease, std::uint32_t n, std::uint32_t primary, Fn&& fn) noexcept;
  [[nodiscard]] ReserveQuote quote(std::uint32_t lease, std::uint32_t n) noexcept;
  /// Slots for n tokens more: in the primary group for the blocks [have, need), and one more for a copy of the block before
  /// them.
  Status reserve_slots(std::uint32_t lease, std::uint32_t n, std::uint32_t have, std::uint32_t need,
                       bool copy, bool keep_found) noexcept;
  void give_back(std::uint32_t lease, std::uint32_t from, std::uint32_t to, SlotId copied) noexcept;
  /// In place, slots that are free or whose blocks nobody holds: no lease, nor one that ended in the open step. O(runs on
  /// their paths).
  [[nodiscard]] std::uint32_t obtainable_slots(const SlotBooks& books) noexcept;
  /// Marks the paths that leases hold, or held in the open step; all but this lease's. How many ready blocks they have.
  std::uint32_t mark_held(std::uint32_t but = ~std::uint32_t{0}) noexcept;
  /// Marks the path to the run; the ready blocks of it that were not marked before.
  std::uint32_t mark_path(RunId run) noexcept;
  /// Blocks that are there but of no use to the lease (its match ends before the last token, and on the grid; or it has
  /// computed them as well) may be the very room that it needs. It lets go of them, and then keeps to itself what it
  /// computes: so only if they are enough. False, and nothing happens, if no run is left.
  [[nodiscard]] bool give_up_unusable(std::uint32_t lease) noexcept;
  /// How many slots of the pool that would free at least.
  [[nodiscard]] std::uint32_t unusable_slots(std::uint32_t lease, const SlotBooks& books) noexcept;
  /// The first block of its path that the lease has no use for.
  [[nodiscard]] std::uint32_t first_unused(std::uint32_t lease) const noexcept;
  /// The slots that n tokens more need in the other groups. False, and nothing taken, if they are not to be had.
  [[nodiscard]] bool reserve_groups(std::uint32_t lease, std::uint32_t n) noexcept;

  // ---- branches: cache/branches.hpp -----------------------------------------------------------------------------------

  [[nodiscard]] bool shared_frontier(std::uint32_t lease) const noexcept;
  [[nodiscard]] bool take_back_frontier(std::uint32_t lease) noexcept;
  void copy_frontier(std::uint32_t lease, SlotId slot) noexcept;
  [[nodiscard]] std::uint32_t copies_for(const LeaseRecord& r, std::uint32_t end) const noexcept;
  void copy_block(std::uint32_t lease, GroupId group, SlotBooks& books, std::uint32_t block_tokens,
                  SlotId from, SlotId to, std::uint32_t end) noexcept;
  [[nodiscard]] SlotBooks& books(GroupId group) noexcept {
    return group == primary_ || group >= kMaxGroups || groups_.books(group) == nullptr
               ? slots_
               : *groups_.books(group);
  }
  [[nodiscard]] Result<BasicLease<Policy>> fork_logged(std::uint32_t lease) noexcept;
  [[nodiscard]] Result<std::uint32_t> fork(std::uint32_t lease) noexcept;
  Status truncate(std::uint32_t lease, std::uint32_t n) noexcept;
  void cut(std::uint32_t lease, std::uint32_t tokens) noexcept;
  void drop_slots(std::uint32_t lease, std::uint32_t from) noexcept;
  Status commit_accepted_logged(std::uint32_t lease, std::span<const std::uint32_t> offsets,
                                Point after) noexcept;
  Status commit_accepted(std::uint32_t lease, std::span<const std::uint32_t> offsets, Point after) noexcept;
  Status onboard(std::uint32_t lease, std::uint32_t n) noexcept;
  [[nodiscard]] std::uint32_t exclusive_slots(std::uint32_t lease) noexcept;
  static Status too_many_copies() noexcept {
    return {StatusCode::kExhausted, "too many copies wait to be taken: call take_step"};
  }

  // ---- steps: cache/moves.hpp -----------------------------------------------------------------------------------------

  [[nodiscard]] StepEntry entry(StepKind kind, std::uint32_t lease, std::uint32_t b, SlotId slot) noexcept;
  void take_loads_of(std::uint32_t lease, std::span<StepEntry> out, std::size_t& n) noexcept;
  void take_onboarded(std::uint32_t lease, std::span<StepEntry> out, std::size_t& n) noexcept;
  void take_stores_of(std::uint32_t lease, std::span<StepEntry> out, std::size_t& n) noexcept;
  void take_copies(std::span<StepEntry> out, std::size_t& n) noexcept;
  void stop_storing(std::uint32_t lease) noexcept;
  [[nodiscard]] std::span<const StepEntry> take_entries(std::span<StepEntry> out) noexcept;
  /// More than one step can hold.
  [[nodiscard]] std::size_t most_entries() const noexcept {
    return 2 * row(options_.max_leases) + copies_.size();
  }
  void put_entries(std::span<const StepEntry> entries) noexcept;
  void shorten(LeaseRecord& r, std::uint32_t blocks) noexcept;
  void add_move(const StepEntry& e, std::uint32_t fixed) noexcept;
  void drop_copies() noexcept;
  void end_move(const StepEntry& e) noexcept;
  [[nodiscard]] bool of_use(const StepEntry& e) const noexcept;
  [[nodiscard]] bool complete_move(const StepEntry& e, bool ok) noexcept;
  [[nodiscard]] bool complete_entry(const StepEntry& e, bool ok) noexcept;
  void invalidate(LeaseRecord& r, std::uint32_t lease, std::uint32_t b) noexcept;
  void clear_ready(RunId run, std::uint32_t keep) noexcept;

  CacheOptions options_;
  KeyHasher hasher_;
  FlightWriter log_;
  FlightReader* replaying_ = nullptr;
  std::unique_ptr<PrefixIndex> index_;
  Policy policy_;
  FixedArray<BlockKey> keys_;  // of a path, for a policy that wants them
  SlotBooks slots_;            // of the primary group
  GroupSet groups_;            // all others
  GroupId primary_ = 0;
  GroupId side_of_[kMaxGroups] = {};  // itself, or the group that side data lies beside
  bool padded_ = false;               // what names no slot in a row is null
  bool undeclared_ = false;           // some group does not say what its blocks consist of
  CacheStats stats_;
  std::uint32_t row_blocks_ = 0;
  std::uint64_t decisions_ = 0;
  std::uint32_t step_ = 1;
  std::uint32_t store_turn_ = 0;
  std::uint64_t mark_ = 0;
  FixedArray<RunId> ended_;  // what leases held that ended in the open step; the first of them
  std::uint32_t ended_count_ = 0;
  Point last_step_{};
  std::uint64_t reached_[kMaxTimelines] = {};
  std::atomic<std::uint32_t> scope_count_{0};
  std::vector<Scope> scopes_;
  FixedArray<BlockKey> root_keys_;
  FixedArray<RunId> root_run_;
  FixedArray<std::uint32_t> vocab_;
  // By BlockPos.
  FixedArray<std::uint32_t> slot_of_;  // plus one
  FixedArray<std::uint8_t> on_grid_;
  FixedArray<std::uint32_t> owner_;  // of a pending block: lease plus one that computes it
  // By RunId.
  FixedArray<std::uint32_t> released_;  // step in which a lease last let go of it
  FixedArray<std::uint64_t> marks_;     // by the last count that has looked at it
  FixedArray<StepEntry> copies_;        // a ring of those that nobody has taken yet
  std::uint32_t copy_first_ = 0, copy_count_ = 0;
  // By lease, rows of row_blocks_.
  FixedArray<LeaseRecord> leases_;
  FixedArray<BlockPos> pos_;
  FixedArray<std::uint8_t> own_;  // whether the lease is one of the slot's holders
  FixedArray<std::int32_t> own_tables_;
  std::int32_t* table_ = nullptr;
  FixedArray<TokenId> tail_;
  FixedArray<StoredMark> tail_marks_;
  FixedArray<Change> changes_;
  std::uint64_t changes_made_ = 0, changes_taken_ = 0;
};

template <EvictionPolicy Policy>
Result<BasicLease<Policy>> BasicCache<Policy>::acquire(const Prompt& prompt,
                                                       const AcquireOptions& how) noexcept {
  const auto refuse = [this](StatusCode code, const char* message) {
    ++stats_.refused_requests;
    return Status(code, message);
  };
  if (options_.mode == IndexMode::kNothing)
    return refuse(StatusCode::kWrongState, "this cache only replays a flight log");
  if (const Status status = check(prompt); !status.ok()) return refuse(status.code(), status.message());
  const std::uint32_t tokens = token_count(prompt);
  if (tokens > options_.max_lease_tokens)
    return refuse(StatusCode::kOutOfRange, "the prompt is longer than CacheOptions::max_lease_tokens");
  const std::uint32_t lease = free_lease();
  if (lease == options_.max_leases)
    return refuse(
        StatusCode::kExhausted,
        "no lease left: release one, reach the points that released ones wait for, or raise max_leases");

  const AcquireShape shape{static_cast<std::uint32_t>(prompt.scope), tokens, how};
  const bool keyed = options_.mode == IndexMode::kKeys;
  // What is in the tree was checked when it went in; only what could go in now needs a look.
  const auto admit = [&](std::uint32_t present) {
    const bool known = keyed || in_vocabulary(prompt, std::size_t{present} * options_.block_tokens);
    put(static_cast<std::uint32_t>(known));
    return known;
  };
  const auto go = [&](const auto& source) { return acquire_with(lease, shape, source, admit); };
  log_acquire(shape);
  const bool admitted = keyed ? recorded(KeySource(prompt.keys), go)
                              : recorded(TokenSource(hasher_, options_.block_tokens, prompt, roots()), go);
  if (!admitted) {
    end_op();
    return refuse(StatusCode::kOutOfRange, "a token id is outside the scope's vocabulary");
  }
  if (!keyed) {
    const std::uint32_t rest = tokens % options_.block_tokens;
    std::copy_n(prompt.tokens.data() + (tokens - rest), rest, tail(lease));
    if (rest > 0) leases_[lease].tail_marks = tail_marks_of(prompt, tokens - rest, lease);
    leases_[lease].marked_block = tokens / options_.block_tokens;
    if (!prompt.changes.empty())
      leases_[lease].last_scope = static_cast<std::uint32_t>(prompt.changes.back().scope);
  }
  put(lease, leases_[lease].matched, leases_[lease].place.blocks);
  end_op();
  return BasicLease<Policy>(this, lease, leases_[lease].generation);
}

using Cache = BasicCache<>;

}  // namespace kvstem::inline v0

// The rest of BasicCache.
#include "kvstem/cache/branches.hpp"  // IWYU pragma: export
#include "kvstem/cache/moves.hpp"     // IWYU pragma: export
#include "kvstem/cache/room.hpp"      // IWYU pragma: export
