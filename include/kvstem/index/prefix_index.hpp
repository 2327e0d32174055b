// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Which prefixes are present: a radix tree whose edges are spans of blocks. A run is one edge with the node at its end:
// consecutive blocks without a branch. Only a run's first block is hashed, to find the run; the rest is proved by
// comparing what is stored (tokens, or keys) with the prompt. So a match costs about one memcmp of the prompt and two
// cache misses for each run on the path, however long the runs are.
//
// Most hosts want `Cache` (cache/cache.hpp), which owns one of these. Use the index alone to know what is where without
// moving anything: a router, a replay. It is not for single blocks without a prefix (use a hash table).
//
// Guarantees
//   Presence is prefix-closed: a block is present only if every block before it is. Published blocks never change in
//   place; a span grows by a release store; a split or a merge is a new head over the same blocks.
//   A block's `BlockPos` is its name until it is trimmed or erased, through every split and merge.
//   Blocks are added pending and become ready in order: a block is ready only if all before it are.
//   Runs may be pinned from any thread; a pinned run is neither trimmed nor erased, nor is what lies before it.
//   Handles carry generations. A stale one fails; it never leads somewhere else.
//
// Threads: one writer at a time (the calls marked W); any number of readers with a `Reader` (marked R), who never block
// and are never blocked. A reader's match is a hint: what it found may be gone when it returns; `try_pin` decides. Beside
// a writer it may miss what is being rearranged at that moment, but what it reports was there.
//
// Memory: all taken by `create`. Per block: the unit itself (4 bytes a token, or 16 for a key) and about 16; per run 128
// and 26 to 51 in the head table. Erased memory is used again once no reader that began before is still reading.
//
//   auto index = PrefixIndex::create({.block_tokens = 16, .capacity_blocks = 1 << 20});
//   BlockKey root_key = *hasher.root(scope);
//   RootId root = *(*index)->add_root(root_key);
//   TokenSource source(hasher, 16, prompt, RootKeys(&root_key, 1));
//   Match match = (*index)->match(root, source);               // how much of the prompt is present
//   Extended added = (*index)->extend(match.place, source, source.blocks());
//   (*index)->set_ready_through(added.place);                  // its state is computed
#pragma once

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>

#include "kvstem/base/memory.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/index/block_source.hpp"
#include "kvstem/index/epoch.hpp"
#include "kvstem/index/head_table.hpp"
#include "kvstem/index/span_arena.hpp"
#include "kvstem/model/block_key.hpp"

namespace kvstem::inline v0 {

using RunId = std::uint32_t;
inline constexpr RunId kNoRun = std::numeric_limits<RunId>::max();
/// The run of a scope's root: no blocks, never erased.
using RootId = RunId;

/// What a block's unit holds, and so what proves a match.
enum class IndexMode : std::uint8_t {
  kTokens,  // the block's tokens: exact even where keys collide
  kKeys,    // the block's key: for routers and replays, which have no tokens
  kNothing  // comparisons are answered by the source (the flight log's replay)
};

struct IndexOptions {
  IndexMode mode = IndexMode::kTokens;
  IndexMode replayed = IndexMode::kTokens;  // kNothing only: the mode that the log was recorded in
  std::uint32_t block_tokens = 16;          // 1 to kMaxBlockTokens
  std::uint32_t capacity_blocks = 0;        // blocks that can be present at once
  std::uint32_t max_runs = 0;               // chains without a branch; 0: one for each four blocks, and 1,024
  std::uint32_t max_readers = 16;
  Memory memory = heap_memory();
};

/// A position in the tree: `blocks` blocks from the root, the last of them in `run` (or the root itself for 0).
struct Place {
  RunId run = kNoRun;
  std::uint32_t generation = 0;
  std::uint32_t blocks = 0;
};

struct Match {
  Place place;  // where the present part of the prompt ends; may lie inside a run
  std::uint32_t ready =
      0;  // blocks from the root whose state is computed; the rest, up to place.blocks, is pending
};

struct Extended {
  Place place;              // the new end
  std::uint32_t added = 0;  // new blocks, all pending
};

/// What the writer may know of a run.
struct RunInfo {
  RunId parent;
  std::uint32_t generation, depth, length, ready, children, references;
  bool marked;  // its first block carries marks, so it is never merged into its parent
  BlockKey first_key;
};

struct IndexUsage {
  std::uint32_t runs, max_runs;          // roots included
  std::uint32_t blocks;                  // present
  std::uint32_t units_taken, max_units;  // with what fragmentation holds
  std::uint32_t retired;                 // things that wait for readers
  std::size_t bytes_taken, bytes_reserved;
};

/// Receives what a match passes. `reset` is called when a reader starts over because the writer interfered.
struct NoVisit {
  void operator()(RunId, BlockPos, std::uint32_t /*blocks*/, std::uint32_t /*ready of them*/) const noexcept {
  }
  void reset() const noexcept {}
};

class PrefixIndex {
  struct alignas(64) Run {
    // What readers look at: one cache line.
    std::atomic<std::uint64_t> state;   // generation << 33 | evicting << 32 | references
    std::atomic<std::uint32_t> layout;  // odd while the fields below it are being changed together
    std::atomic<std::uint32_t> parent;
    std::atomic<std::uint32_t> segment;  // where the run's first block lies
    std::atomic<std::uint32_t> start;    // that block
    std::atomic<std::uint32_t> depth;    // blocks before it
    std::atomic<std::uint32_t> length;
    std::atomic<std::uint32_t> first;  // of its blocks, those in its first segment
    std::atomic<std::uint32_t> ready;
    std::atomic<std::uint32_t> marks;           // stored in the units before `start`
    std::atomic<std::uint64_t> end_lo, end_hi;  // key of the last block
    // The writer's own.
    BlockKey first_key;
    std::uint32_t first_child, next_sibling, previous_sibling;
    std::uint32_t children;
    std::uint32_t last_segment;
    BlockPos end;    // behind the last block, in last_segment
    bool end_known;  // false after a trim, until somebody needs the key
  };
  static_assert(sizeof(Run) == 128);

  struct View {
    std::uint64_t state;
    std::uint32_t layout, parent, segment, start, depth, length, first, ready, marks;
  };

  struct Retired {
    enum class Kind : std::uint8_t { kRun, kId, kTail };
    std::uint64_t epoch;
    std::uint32_t id;       // run; for kTail the last kept segment
    std::uint32_t used;     // kTail: units of it that are kept
    std::uint32_t dropped;  // kTail: first segment behind it
    Kind kind;
  };

  static constexpr std::uint64_t kEvicting = 1ull << 32;
  static constexpr std::uint64_t kGeneration = 1ull << 33;
  static constexpr auto kNoSegment = SpanArena::kNoSegment;
  static std::uint32_t generation_of(std::uint64_t state) noexcept {
    return static_cast<std::uint32_t>(state >> 33);
  }
  static std::uint32_t references_of(std::uint64_t state) noexcept {
    return static_cast<std::uint32_t>(state);
  }

 public:
  using Reader = Epochs::Reader;

  /// Takes all memory. kInvalidArgument for sizes of 0 or out of range, kExhausted if the memory is not to be had.
  [[nodiscard]] static Result<std::unique_ptr<PrefixIndex>> create(const IndexOptions& options) noexcept {
    if (options.block_tokens == 0 || options.block_tokens > kMaxBlockTokens)
      return Status(StatusCode::kInvalidArgument, "IndexOptions::block_tokens must be 1 to 1024");
    if (options.capacity_blocks == 0 || options.capacity_blocks > (1u << 30))
      return Status(StatusCode::kInvalidArgument, "IndexOptions::capacity_blocks must be 1 to 2^30");
    std::unique_ptr<PrefixIndex> index(new (std::nothrow) PrefixIndex(options));
    if (index == nullptr || !index->take())
      return Status(StatusCode::kExhausted, "no memory for the index: lower capacity_blocks or max_runs");
    return index;
  }

  PrefixIndex(const PrefixIndex&) = delete;
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  [[nodiscard]] const IndexOptions& options() const noexcept { return options_; }

  // ---- readers -----------------------------------------------------------------------------------------------------

  /// Any thread. The reader must be given back (destroyed) before the index.
  [[nodiscard]] Result<Reader> register_reader() noexcept { return epochs_.register_reader(); }

  /// R. How much of the source is present under `root`. O(blocks compared + runs passed); no allocation, no lock.
  template <BlockSource S, class Visit = NoVisit>
  [[nodiscard]] Match match(Reader& reader, RootId root, const S& source, Visit&& visit = {}) const noexcept {
    reader.pin();
    const Match match = walk<false>(root, root, 0, source, visit);
    reader.unpin();
    return match;
  }

  /// Any thread. Keeps the run and all before it; false if the handle is stale. O(1). Undo with `unpin`.
  [[nodiscard]] bool try_pin(RunId run, std::uint32_t generation) noexcept {
    if (run >= runs_.size()) return false;
    auto& state = runs_[run].state;
    std::uint64_t now = state.load(std::memory_order_acquire);
    while (generation_of(now) == generation && (now & kEvicting) == 0)
      if (state.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel, std::memory_order_acquire))
        return true;
    return false;
  }
  /// Any thread.
  void unpin(RunId run) noexcept {
    [[maybe_unused]] const std::uint64_t before = runs_[run].state.fetch_sub(1, std::memory_order_acq_rel);
    assert((before & 0xffffffffu) != 0 && "unpin without a pin");
  }

  // ---- the writer --------------------------------------------------------------------------------------------------

  /// W. A scope's root. kExhausted when max_runs are in use.
  [[nodiscard]] Result<RootId> add_root(BlockKey root_key) noexcept {
    const RunId id = allocate_run();
    if (id == kNoRun) return Status(StatusCode::kExhausted, "the index has no run left: raise max_runs");
    Run& run = runs_[id];
    set_end_key(run, root_key);
    return id;
  }

  /// W. As the reader's match, without a Reader.
  template <BlockSource S, class Visit = NoVisit>
  [[nodiscard]] Match match(RootId root, const S& source, Visit&& visit = {}) const noexcept {
    return walk<true>(root, root, 0, source, visit);
  }

  /// W. Goes on where an earlier match of the same prompt (or a shorter one) ended: O(what is new). A stale place is
  /// looked up again from `root`, at the cost of a whole match.
  template <BlockSource S, class Visit = NoVisit>
  [[nodiscard]] Match match_from(RootId root, Place place, const S& source,
                                 Visit&& visit = {}) const noexcept {
    if (!valid(place) || place.blocks > source.blocks()) return walk<true>(root, root, 0, source, visit);
    return walk<true>(root, locate(place), place.blocks, source, visit);
  }

  /// W. True while the place still means what it meant.
  [[nodiscard]] bool valid(Place place) const noexcept {
    if (place.run >= fresh_runs_) return false;
    const std::uint64_t state = runs_[place.run].state.load(std::memory_order_acquire);
    return generation_of(state) == place.generation && (state & kEvicting) == 0;
  }

  /// W. The run that now holds the place's last block (splits move it towards the root). Needs a valid place.
  [[nodiscard]] RunId locate(Place place) const noexcept {
    RunId run = place.run;
    while (runs_[run].parent.load(std::memory_order_relaxed) != kNoRun &&
           place.blocks <= runs_[run].depth.load(std::memory_order_relaxed))
      run = runs_[run].parent.load(std::memory_order_relaxed);
    return run;
  }

  /// W. Makes the place the end of a run, so that what lies behind it is a run of its own. Hashes at most one segment.
  /// Returns the run that ends there. kExhausted when no run is left.
  template <StoredKeySource S>
  [[nodiscard]] Result<RunId> split(Place place, const S& source) noexcept {
    const RunId id = locate(place);
    const std::uint32_t keep = place.blocks - runs_[id].depth.load(std::memory_order_relaxed);
    if (keep == runs_[id].length.load(std::memory_order_relaxed)) return id;
    return split_run(id, keep, source);
  }

  /// W. Adds the source's blocks behind `place`, up to block `until`, as pending ones. `place` must be where the match of
  /// this source ended. Calls `on_piece(run, first, blocks, is_new_run)` for each piece. Short when memory ran out (the
  /// result says how far it came). Hashes the new blocks only.
  template <BlockSource S, class OnPiece>
  [[nodiscard]] Extended extend(Place place, const S& source, std::uint32_t until,
                                OnPiece&& on_piece) noexcept {
    reclaim();
    std::uint32_t at = place.blocks;
    const Extended nothing{place, 0};
    if (at >= until) return nothing;
    const auto ended = split(place, source);
    if (!ended.ok()) return nothing;
    RunId current = *ended;
    while (at < until) {
      StoredMark marks[kMaxMarksPerBlock];
      const std::uint32_t mark_count = source.marks(at, marks);
      const std::uint32_t n = std::min(until, source.next_marked(at + 1)) - at;
      ensure_end_key(current, source);
      const bool in_place = mark_count == 0 && growable(current);
      const RunId run = in_place ? current : begin_run(current, marks, mark_count);
      if (run == kNoRun) break;
      const std::uint32_t added = fill(run, source, at, n, end_key(runs_[current]), !in_place, on_piece);
      if (!in_place && added == 0) abandon_run(run);
      if (!in_place && added > 0) publish(run, current);
      if (added == 0) break;
      at += added;
      current = run;
      if (added < n) break;
    }
    return {place_at_end(current), at - place.blocks};
  }
  template <BlockSource S>
  [[nodiscard]] Extended extend(Place place, const S& source, std::uint32_t until) noexcept {
    return extend(place, source, until, [](RunId, BlockPos, std::uint32_t, bool) {});
  }

  /// W. The run's first `n` blocks are computed, and no others. What lies before the run must be ready if n > 0; what
  /// lies behind must not be if n is less than the length.
  void set_ready(RunId run, std::uint32_t n) noexcept {
    assert(n <= runs_[run].length.load(std::memory_order_relaxed));
    runs_[run].ready.store(n, std::memory_order_release);
  }
  /// W. Everything up to the place is computed. O(runs on the path that were not ready).
  void set_ready_through(Place place) noexcept {
    RunId run = locate(place);
    std::uint32_t blocks = place.blocks;
    while (run != kNoRun) {
      const Run& r = runs_[run];
      const std::uint32_t n = blocks - r.depth.load(std::memory_order_relaxed);
      if (r.ready.load(std::memory_order_relaxed) >= n && n > 0) return;
      set_ready(run, n);
      blocks = r.depth.load(std::memory_order_relaxed);
      run = r.parent.load(std::memory_order_relaxed);
    }
  }

  /// W. Drops a leaf's blocks behind the first `keep`; with `keep` 0 the run is erased. Leaf first is the only order there
  /// is: kWrongState for a run with children or a root, or if pinned; kStale for a run that is gone and whose id was not
  /// given out again; kExhausted if readers hold too much back.
  /// Calls `before()` once it is certain and before anything changes. Handles of the run become stale.
  template <class Before>
  Status trim(RunId id, std::uint32_t keep, Before&& before) noexcept {
    reclaim();
    if (id >= fresh_runs_ || dead(id)) return {StatusCode::kStale, "the run is gone: look it up again"};
    Run& run = runs_[id];
    const std::uint32_t length = run.length.load(std::memory_order_relaxed);
    if (run.children != 0 || run.parent.load(std::memory_order_relaxed) == kNoRun || keep >= length)
      return {StatusCode::kWrongState, "only a leaf's last blocks can be trimmed"};
    if (retired_count_ == retired_.size())
      return {StatusCode::kExhausted, "a reader holds its epoch for too long: unpin readers between matches"};
    std::uint64_t state = run.state.load(std::memory_order_acquire);
    if ((state & 0xffffffffu) != 0 ||
        !run.state.compare_exchange_strong(state, state | kEvicting, std::memory_order_acq_rel))
      return {StatusCode::kWrongState, "the run is pinned"};
    before();
    blocks_ -= length - keep;
    if (keep == 0) {
      erase(id, state);
      return {};
    }
    const auto [segment, end] = segment_of(run, keep - 1);
    SpanArena::Segment& last = arena_.segment(segment);
    const std::uint32_t dropped = last.next.load(std::memory_order_relaxed);
    run.layout.fetch_add(1, std::memory_order_acq_rel);
    run.length.store(keep, std::memory_order_release);
    run.first.store(std::min(keep, run.first.load(std::memory_order_relaxed)), std::memory_order_release);
    run.ready.store(std::min(keep, run.ready.load(std::memory_order_relaxed)), std::memory_order_release);
    run.layout.fetch_add(1, std::memory_order_release);
    last.next.store(kNoSegment, std::memory_order_release);
    run.last_segment = segment;
    run.end = end + 1;
    run.end_known = false;
    run.state.store((state & ~kEvicting) + kGeneration, std::memory_order_release);
    ++last.retiring;
    retire({0, segment, end + 1 - arena_.begin(segment), dropped, Retired::Kind::kTail});
    return {};
  }

  Status trim(RunId id, std::uint32_t keep) noexcept {
    return trim(id, keep, [] {});
  }

  /// W. Joins a run with its only child, which keeps its id; the run's own handles become stale. False when that is not
  /// possible (several children, pinned, marked child, a child that lies elsewhere). O(1).
  bool merge_with_child(RunId id) noexcept {
    reclaim();
    if (id >= fresh_runs_ || dead(id)) return false;
    Run& head = runs_[id];
    if (head.children != 1 || head.parent.load(std::memory_order_relaxed) == kNoRun ||
        retired_count_ == retired_.size())
      return false;
    const RunId child = head.first_child;
    Run& tail = runs_[child];
    if (tail.marks.load(std::memory_order_relaxed) != 0) return false;
    const std::uint32_t tail_segment = tail.segment.load(std::memory_order_relaxed);
    const std::uint32_t tail_start = tail.start.load(std::memory_order_relaxed);
    SpanArena::Segment& last = arena_.segment(head.last_segment);
    const std::uint32_t head_length = head.length.load(std::memory_order_relaxed);
    const bool shared = tail_segment == head.last_segment;
    if (!shared) {
      const std::uint32_t next = last.next.load(std::memory_order_relaxed);
      if (last.retiring != 0 || tail_start != arena_.begin(tail_segment) ||
          (next != kNoSegment && next != tail_segment) ||
          arena_.begin(head.last_segment) + last.used.load(std::memory_order_relaxed) != head.end)
        return false;
    }
    std::uint64_t state = head.state.load(std::memory_order_acquire);
    if ((state & 0xffffffffu) != 0 ||
        !head.state.compare_exchange_strong(state, (state | kEvicting) + kGeneration,
                                            std::memory_order_acq_rel))
      return false;
    if (shared)
      --arena_.segment(tail_segment).references;
    else
      last.next.store(tail_segment, std::memory_order_release);

    const BlockKey old_first = tail.first_key;
    const std::uint32_t head_first = head.first.load(std::memory_order_relaxed);
    const bool one_segment = shared && head_first == head_length;
    const std::uint32_t head_ready = head.ready.load(std::memory_order_relaxed);
    const std::uint32_t ready =
        head_ready < head_length ? head_ready : head_length + tail.ready.load(std::memory_order_relaxed);
    tail.layout.fetch_add(1, std::memory_order_acq_rel);
    tail.parent.store(head.parent.load(std::memory_order_relaxed), std::memory_order_release);
    tail.segment.store(head.segment.load(std::memory_order_relaxed), std::memory_order_release);
    tail.start.store(head.start.load(std::memory_order_relaxed), std::memory_order_release);
    tail.depth.store(head.depth.load(std::memory_order_relaxed), std::memory_order_release);
    tail.length.store(head_length + tail.length.load(std::memory_order_relaxed), std::memory_order_release);
    tail.first.store(one_segment ? head_first + tail.first.load(std::memory_order_relaxed) : head_first,
                     std::memory_order_release);
    tail.ready.store(ready, std::memory_order_release);
    tail.marks.store(head.marks.load(std::memory_order_relaxed), std::memory_order_release);
    tail.layout.fetch_add(1, std::memory_order_release);
    tail.first_key = head.first_key;
    table_.replace(head.first_key, id, child);
    table_.erase(old_first, child);
    substitute_child(id, child);
    retire({0, id, 0, kNoSegment, Retired::Kind::kId});
    return true;
  }

  /// W. What a run is. The id must be one that this index gave out and that was not erased.
  [[nodiscard]] RunInfo info(RunId id) const noexcept {
    const Run& r = runs_[id];
    const std::uint64_t state = r.state.load(std::memory_order_acquire);
    return {.parent = r.parent.load(std::memory_order_relaxed),
            .generation = generation_of(state),
            .depth = r.depth.load(std::memory_order_relaxed),
            .length = r.length.load(std::memory_order_relaxed),
            .ready = r.ready.load(std::memory_order_relaxed),
            .children = r.children,
            .references = references_of(state),
            .marked = r.marks.load(std::memory_order_relaxed) != 0,
            .first_key = r.first_key};
  }

  /// W. The place behind the run's last block.
  [[nodiscard]] Place place_at_end(RunId id) const noexcept {
    const Run& r = runs_[id];
    return {id, generation_of(r.state.load(std::memory_order_acquire)),
            r.depth.load(std::memory_order_relaxed) + r.length.load(std::memory_order_relaxed)};
  }

  /// W. Calls `fn(first, n)` for each stretch of consecutive BlockPos of the run's blocks [from, from + n).
  template <class Fn>
  void for_each_range(RunId id, std::uint32_t from, std::uint32_t n, Fn&& fn) const noexcept {
    const Run& r = runs_[id];
    stretches(r.segment.load(std::memory_order_relaxed), r.start.load(std::memory_order_relaxed), from, n,
              [&](BlockPos first, std::uint32_t count) {
                fn(first, count);
                return count;
              });
  }

  /// W. Calls `fn(pos, key, parent_key)` for the run's blocks [from, from + n). Hashes them, and what lies before them in
  /// their segment. `stored_key(parent, unit)` computes a stored block's key, as a source does.
  template <class StoredKey, class Fn>
  void for_each_key(RunId id, std::uint32_t from, std::uint32_t n, StoredKey&& stored_key,
                    Fn&& fn) const noexcept {
    if (n == 0) return;
    const Run& r = runs_[id];
    const auto [segment, pos] = segment_of(r, from);
    const bool in_first = segment == r.segment.load(std::memory_order_relaxed);
    std::uint32_t i = in_first ? 0 : from - (pos - arena_.begin(segment));
    BlockKey parent =
        in_first ? end_key(runs_[r.parent.load(std::memory_order_relaxed)]) : arena_.segment(segment).before;
    for_each_range(id, i, from + n - i, [&](BlockPos first, std::uint32_t count) {
      for (BlockPos at = first; at < first + count; ++at, ++i) {
        const BlockKey key = i == 0 ? r.first_key : stored_key(parent, arena_.unit(at));
        if (i >= from) fn(at, key, parent);
        parent = key;
      }
    });
  }

  /// W. Calls `fn(RunId, const RunInfo&)` for every run below `root`, parents before children.
  template <class Fn>
  void enumerate(RootId root, Fn&& fn) const noexcept {
    RunId run = runs_[root].first_child;
    while (run != kNoRun && run != root) {
      fn(run, info(run));
      if (runs_[run].first_child != kNoRun) {
        run = runs_[run].first_child;
        continue;
      }
      while (run != root && runs_[run].next_sibling == kNoRun)
        run = runs_[run].parent.load(std::memory_order_relaxed);
      if (run != root) run = runs_[run].next_sibling;
    }
  }

  /// W. The units that prove a block: its tokens or its key. For tests and for tiers that store tokens beside payloads.
  [[nodiscard]] const std::byte* unit(BlockPos pos) const noexcept { return arena_.unit(pos); }

  /// Largest BlockPos that can occur, plus one: the size of a side table.
  [[nodiscard]] std::uint32_t positions() const noexcept { return arena_.units_capacity(); }
  /// Largest RunId that can occur, plus one.
  [[nodiscard]] std::uint32_t max_runs() const noexcept { return static_cast<std::uint32_t>(runs_.size()); }

  /// W.
  [[nodiscard]] IndexUsage usage() const noexcept {
    return {.runs = used_runs_,
            .max_runs = max_runs(),
            .blocks = blocks_,
            .units_taken = arena_.units_taken(),
            .max_units = arena_.units_capacity(),
            .retired = retired_count_,
            .bytes_taken = arena_.bytes_taken() + std::size_t{used_runs_} * sizeof(Run) + table_.bytes(),
            .bytes_reserved = arena_.bytes_reserved() + runs_.bytes() + table_.bytes() + retired_.bytes()};
  }

  /// W. Takes back what readers no longer see. Called by every change; call it when idle to have memory back sooner.
  void reclaim() noexcept {
    if (retired_count_ == 0) return;
    const std::uint64_t oldest = epochs_.oldest();
    while (retired_count_ > 0 && retired_[retired_first_].epoch <= oldest) {
      release(retired_[retired_first_]);
      retired_first_ = (retired_first_ + 1) % static_cast<std::uint32_t>(retired_.size());
      --retired_count_;
    }
  }

 private:
  explicit PrefixIndex(const IndexOptions& options) noexcept : options_(options) {}

  [[nodiscard]] bool take() noexcept {
    const std::uint32_t max_runs =
        options_.max_runs != 0 ? options_.max_runs : options_.capacity_blocks / 4 + 1024;
    // However short the runs are, what is left over at their ends takes no block's place.
    const std::uint64_t spare = std::uint64_t{max_runs} * (SpanArena::quantum_units(unit_bytes()) - 1);
    const auto units =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(options_.capacity_blocks + spare, 1u << 31));
    return arena_.take(options_.memory, units, unit_bytes(), has_units()) &&
           runs_.take(options_.memory, max_runs) && table_.take(options_.memory, max_runs) &&
           retired_.take(options_.memory, max_runs / 4 + 1024) &&
           epochs_.take(options_.memory, options_.max_readers);
  }

  // ---- reading -----------------------------------------------------------------------------------------------------

  static BlockKey end_key(const Run& run) noexcept {
    return {run.end_lo.load(std::memory_order_acquire), run.end_hi.load(std::memory_order_acquire)};
  }

  /// A consistent copy; false if the run died, or if the writer is changing it all the time.
  [[nodiscard]] bool load(RunId id, View& v) const noexcept {
    const Run& r = runs_[id];
    for (int looks = 16; looks > 0; --looks) {
      v.layout = r.layout.load(std::memory_order_acquire);
      v.state = r.state.load(std::memory_order_acquire);
      v.parent = r.parent.load(std::memory_order_acquire);
      v.segment = r.segment.load(std::memory_order_acquire);
      v.start = r.start.load(std::memory_order_acquire);
      v.depth = r.depth.load(std::memory_order_acquire);
      v.length = r.length.load(std::memory_order_acquire);
      v.first = r.first.load(std::memory_order_acquire);
      v.ready = r.ready.load(std::memory_order_acquire);
      v.marks = r.marks.load(std::memory_order_acquire);
      if ((v.layout & 1) != 0 || !unchanged(id, v)) continue;
      // A dying run already has its next generation: a handle with it would fit whatever the id names later.
      if ((v.state & kEvicting) == 0) return true;
    }
    return false;
  }
  [[nodiscard]] bool unchanged(RunId id, const View& v) const noexcept {
    const Run& r = runs_[id];
    return r.layout.load(std::memory_order_acquire) == v.layout &&
           generation_of(r.state.load(std::memory_order_acquire)) == generation_of(v.state);
  }

  /// Visits stretches of a span's blocks [from, from + n); `fn(first, count)` returns how many it accepted and the visit
  /// ends when that is fewer. Returns the number accepted.
  template <class Fn>
  std::uint32_t stretches(std::uint32_t segment, BlockPos start, std::uint32_t from, std::uint32_t n,
                          Fn&& fn) const noexcept {
    std::uint32_t done = 0;
    while (done < n && segment != kNoSegment) {
      const SpanArena::Segment& s = arena_.segment(segment);
      const std::uint32_t available = arena_.begin(segment) + s.used.load(std::memory_order_acquire) - start;
      const std::uint32_t next = s.next.load(std::memory_order_acquire);
      if (from >= available) {
        from -= available;
      } else {
        const std::uint32_t count = std::min(available - from, n - done);
        if (next != kNoSegment && done + count < n && has_units()) {
          // What no hardware sees coming: the next piece's links, and its first lines.
          __builtin_prefetch(&arena_.segment(next));
          for (std::size_t line = 0; line < 8; ++line)
            __builtin_prefetch(arena_.unit(arena_.begin(next)) + 64 * line);
        }
        const std::uint32_t accepted = fn(start + from, count);
        done += accepted;
        if (accepted < count) break;
        from = 0;
      }
      segment = next;
      if (segment != kNoSegment) start = arena_.begin(segment);
    }
    return done;
  }

  /// How many blocks of the run, from its block `offset`, equal the source's from `at`; at most n. Reports them.
  template <BlockSource S, class Visit>
  std::uint32_t compare(RunId id, const View& v, std::uint32_t offset, std::uint32_t n, std::uint32_t at,
                        const S& source, Visit& visit) const noexcept {
    std::uint32_t done = 0;
    const auto stretch = [&](BlockPos first, std::uint32_t count) {
      const std::uint32_t equal = source.equal(arena_.unit(first), at + done, count);
      if (equal > 0) {
        const std::uint32_t before = offset + done;
        visit(id, first, equal, v.ready <= before ? 0 : std::min(v.ready - before, equal));
      }
      done += equal;
      return equal;
    };
    // The segment's own record is another cache miss, so it is left alone where it can be.
    if (offset + n <= v.first) return stretch(v.start + offset, n);
    return stretches(v.segment, v.start, offset, n, stretch);
  }

  /// `kAlone`: the caller is the writer, so nothing changes under its feet.
  template <bool kAlone, BlockSource S, class Visit>
  [[nodiscard]] Match walk(RootId root, RunId current, std::uint32_t at, const S& source,
                           Visit& visit) const noexcept {
    const std::uint32_t limit = source.blocks();
    // A writer at work can make a reader doubt what it saw. It starts over; after many times it reports nothing, for a
    // match is a hint and a reader must never be held up.
    for (int attempt = 0; attempt < 64; ++attempt) {
      Match match{};
      if (try_walk<kAlone>(current, at, limit, source, visit, match)) return match;
      visit.reset();
      current = root;
      at = 0;
    }
    return {.place = {root, generation_of(runs_[root].state.load(std::memory_order_acquire)), 0}, .ready = 0};
  }

  /// False if the writer interfered.
  template <bool kAlone, BlockSource S, class Visit>
  [[nodiscard]] bool try_walk(RunId current, std::uint32_t at, std::uint32_t limit, const S& source,
                              Visit& visit, Match& match) const noexcept {
    View v;
    match.ready = kAlone ? ready_before(current, at) : 0;  // readers start at the root
    bool all_ready = match.ready == at;
    const auto arrive = [&](std::uint32_t offset, std::uint32_t blocks) {
      const std::uint32_t ready = v.ready <= offset ? 0 : std::min(v.ready - offset, blocks);
      if (all_ready) match.ready += ready;
      all_ready = all_ready && ready == blocks;
      at += blocks;
    };
    if (!load(current, v)) return false;
    for (;;) {
      match.place = {current, generation_of(v.state), at};
      if (at >= limit) return true;
      if (at < v.depth + v.length) {
        // Behind a run's first block nothing is marked, so a marked block of the prompt ends the comparison.
        const std::uint32_t n = std::min({v.depth + v.length, limit, source.next_marked(at)}) - at;
        const std::uint32_t offset = at - v.depth;
        const std::uint32_t equal = n == 0 ? 0 : compare(current, v, offset, n, at, source, visit);
        if (!still_there(current, v, offset + equal)) return false;
        arrive(offset, equal);
        if (equal == n && n > 0) continue;  // at its end, unless it grew meanwhile
        match.place = {current, generation_of(v.state), at};
        return true;
      }

      const BlockKey key = source.key(end_key(runs_[current]), at);
      View child{};
      RunId found = kNoRun;
      std::uint32_t compared = 0, equal = 0;
      // A candidate that does not fit is another key with the same tag, or a run that is being rearranged. The latter
      // settles within a few looks; then a miss is a miss.
      bool doubt = true;
      for (int looks = kAlone ? 1 : 8; looks > 0 && doubt && found == kNoRun; --looks) {
        doubt = false;
        table_.find(key, [&](RunId candidate) {
          if (!load(candidate, child) || child.parent != current || child.depth != at) {
            doubt = true;
            return false;
          }
          const std::byte* marks =
              !has_units() ? nullptr : arena_.unit(child.start) - child.marks * sizeof(StoredMark);
          if (!source.equal_marks(marks, child.marks, at)) return false;
          compared = std::min({child.length, limit - at, source.next_marked(at + 1) - at});
          equal = compare(candidate, child, 0, compared, at, source, visit);
          if (equal == 0) return false;
          found = candidate;
          return true;
        });
      }
      if (!still_there(current, v, at - v.depth)) return false;
      if (found == kNoRun) {
        if (v.length == at - v.depth) return true;
        continue;  // the run grew meanwhile: go on inside it
      }
      if (!still_there(found, child, equal)) return false;
      current = found;
      v = child;
      arrive(0, equal);
      if (equal == compared) continue;
      match.place = {current, generation_of(v.state), at};
      return true;
    }
  }

  /// Whether what was compared is still the run's: its first `blocks` blocks, where they were. The view is then the present
  /// one. Blocks that are there were there all along: while a reader holds its epoch, what was trimmed does not grow again.
  [[nodiscard]] bool still_there(RunId id, View& v, std::uint32_t blocks) const noexcept {
    View now;
    if (!load(id, now) || now.parent != v.parent || now.depth != v.depth || now.start != v.start ||
        now.length < blocks)
      return false;
    v = now;
    return true;
  }

  /// How many of the first `blocks` blocks on the path to `run` are ready. O(pending runs at its end).
  [[nodiscard]] std::uint32_t ready_before(RunId run, std::uint32_t blocks) const noexcept {
    for (;; run = runs_[run].parent.load(std::memory_order_relaxed)) {
      const Run& r = runs_[run];
      const std::uint32_t ready = r.ready.load(std::memory_order_relaxed);
      if (ready != 0 || r.parent.load(std::memory_order_relaxed) == kNoRun)
        return std::min(blocks, r.depth.load(std::memory_order_relaxed) + ready);
    }
  }

  // ---- writing -----------------------------------------------------------------------------------------------------

  static void set_end_key(Run& run, BlockKey key) noexcept {
    run.end_lo.store(key.lo, std::memory_order_release);
    run.end_hi.store(key.hi, std::memory_order_release);
    run.end_known = true;
  }

  struct SegmentEnd {
    std::uint32_t segment;
    BlockPos end;
  };
  /// The segment in which the run's block lies, and that block's position.
  [[nodiscard]] SegmentEnd segment_of(const Run& run, std::uint32_t block) const noexcept {
    std::uint32_t segment = run.segment.load(std::memory_order_relaxed);
    BlockPos start = run.start.load(std::memory_order_relaxed);
    for (;;) {
      const SpanArena::Segment& s = arena_.segment(segment);
      const std::uint32_t available = arena_.begin(segment) + s.used.load(std::memory_order_relaxed) - start;
      if (block < available) return {segment, start + block};
      block -= available;
      segment = s.next.load(std::memory_order_relaxed);
      start = arena_.begin(segment);
    }
  }

  /// The key of the run's block, hashed from the start of the segment that holds it.
  template <StoredKeySource S>
  [[nodiscard]] BlockKey key_of(const Run& run, std::uint32_t block, const S& source) const noexcept {
    const auto [segment, pos] = segment_of(run, block);
    const bool first_segment = segment == run.segment.load(std::memory_order_relaxed);
    BlockPos from = first_segment ? run.start.load(std::memory_order_relaxed) : arena_.begin(segment);
    BlockKey key = first_segment ? run.first_key : arena_.segment(segment).before;
    if (first_segment) ++from;  // first_key is the first block's own
    for (; from <= pos; ++from) key = source.stored_key(key, arena_.unit(from));
    return key;
  }

  template <StoredKeySource S>
  void ensure_end_key(RunId id, const S& source) noexcept {
    Run& run = runs_[id];
    if (!run.end_known) set_end_key(run, key_of(run, run.length.load(std::memory_order_relaxed) - 1, source));
  }

  template <StoredKeySource S>
  [[nodiscard]] Result<RunId> split_run(RunId id, std::uint32_t keep, const S& source) noexcept {
    const RunId head_id = allocate_run();
    if (head_id == kNoRun) return Status(StatusCode::kExhausted, "the index has no run left: raise max_runs");
    Run& tail = runs_[id];
    Run& head = runs_[head_id];
    const std::uint32_t length = tail.length.load(std::memory_order_relaxed);
    const std::uint32_t ready = tail.ready.load(std::memory_order_relaxed);
    const std::uint32_t first = tail.first.load(std::memory_order_relaxed);
    const auto [last_segment, last_pos] = segment_of(tail, keep - 1);
    const auto [next_segment, next_pos] = segment_of(tail, keep);
    const BlockKey head_end = key_of(tail, keep - 1, source);
    const BlockKey old_first = tail.first_key;

    head.parent.store(tail.parent.load(std::memory_order_relaxed), std::memory_order_release);
    head.segment.store(tail.segment.load(std::memory_order_relaxed), std::memory_order_release);
    head.start.store(tail.start.load(std::memory_order_relaxed), std::memory_order_release);
    head.depth.store(tail.depth.load(std::memory_order_relaxed), std::memory_order_release);
    head.length.store(keep, std::memory_order_release);
    head.first.store(std::min(keep, first), std::memory_order_release);
    head.ready.store(std::min(keep, ready), std::memory_order_release);
    head.marks.store(tail.marks.load(std::memory_order_relaxed), std::memory_order_release);
    head.first_key = old_first;
    head.last_segment = last_segment;
    head.end = last_pos + 1;
    set_end_key(head, head_end);
    if (next_segment == last_segment) ++arena_.segment(last_segment).references;

    // Readers that still see the old tail under its new key find a parent that does not fit, and start over.
    const BlockKey new_first = source.stored_key(head_end, arena_.unit(next_pos));
    table_.insert(new_first, id);
    table_.replace(old_first, id, head_id);
    substitute_child(id, head_id);
    tail.layout.fetch_add(1, std::memory_order_acq_rel);
    tail.parent.store(head_id, std::memory_order_release);
    tail.segment.store(next_segment, std::memory_order_release);
    tail.start.store(next_pos, std::memory_order_release);
    tail.depth.store(tail.depth.load(std::memory_order_relaxed) + keep, std::memory_order_release);
    tail.length.store(length - keep, std::memory_order_release);
    tail.first.store(
        std::min(length - keep, arena_.begin(next_segment) +
                                    arena_.segment(next_segment).used.load(std::memory_order_relaxed) -
                                    next_pos),
        std::memory_order_release);
    tail.ready.store(ready > keep ? ready - keep : 0, std::memory_order_release);
    tail.marks.store(0, std::memory_order_release);
    tail.layout.fetch_add(1, std::memory_order_release);
    tail.first_key = new_first;
    add_child(head_id, id);
    return head_id;
  }

  /// A leaf whose last segment ends with it can grow; not while readers may see what a trim left behind it, nor while two
  /// hold it: whoever did not ask for what is added would keep it all the same.
  [[nodiscard]] bool growable(RunId id) const noexcept {
    const Run& run = runs_[id];
    if (run.children != 0 || run.last_segment == kNoSegment ||
        references_of(run.state.load(std::memory_order_acquire)) > 1)
      return false;
    const SpanArena::Segment& last = arena_.segment(run.last_segment);
    return last.retiring == 0 && last.next.load(std::memory_order_relaxed) == kNoSegment &&
           arena_.begin(run.last_segment) + last.used.load(std::memory_order_relaxed) == run.end;
  }

  /// A run that nobody sees yet, with its marks stored. kNoRun when memory ran out.
  [[nodiscard]] RunId begin_run(RunId parent, const StoredMark* marks, std::uint32_t count) noexcept {
    const RunId id = allocate_run();
    if (id == kNoRun) return kNoRun;
    Run& run = runs_[id];
    const Run& above = runs_[parent];
    run.parent.store(parent, std::memory_order_release);
    run.depth.store(
        above.depth.load(std::memory_order_relaxed) + above.length.load(std::memory_order_relaxed),
        std::memory_order_release);
    if (count == 0) return id;
    const std::size_t unit = unit_bytes();
    const auto units = static_cast<std::uint32_t>((count * sizeof(StoredMark) + unit - 1) / unit);
    const std::uint32_t segment = arena_.allocate_whole(units + 1);
    if (segment == kNoSegment) {
      abandon_run(id);
      return kNoRun;
    }
    arena_.segment(segment).references = 1;
    arena_.segment(segment).used.store(units, std::memory_order_release);
    run.segment.store(segment, std::memory_order_release);
    run.last_segment = segment;
    run.start.store(arena_.begin(segment) + units, std::memory_order_release);
    run.marks.store(count, std::memory_order_release);
    if (has_units())
      std::memcpy(arena_.unit(arena_.begin(segment) + units) - count * sizeof(StoredMark), marks,
                  count * sizeof(StoredMark));
    return id;
  }

  /// Appends up to n blocks and publishes the new length. Returns how many found room.
  template <BlockSource S, class OnPiece>
  std::uint32_t fill(RunId id, const S& source, std::uint32_t at, std::uint32_t n, BlockKey key, bool is_new,
                     OnPiece& on_piece) noexcept {
    Run& run = runs_[id];
    const std::uint32_t length = run.length.load(std::memory_order_relaxed);
    std::uint32_t done = 0;
    while (done < n) {
      std::uint32_t segment = run.last_segment;
      std::uint32_t room =
          segment == kNoSegment
              ? 0
              : arena_.capacity(segment) - arena_.segment(segment).used.load(std::memory_order_relaxed);
      if (room == 0) {
        // Segments grow with the span, so that one that grows in small steps does not become a list of small pieces.
        segment = arena_.allocate(std::max(n - done, (length + done) / 2), (length + n) / 8);
        if (segment == kNoSegment) break;
        SpanArena::Segment& s = arena_.segment(segment);
        s.references = 1;
        s.before = key;
        room = arena_.capacity(segment);
        if (run.last_segment == kNoSegment) {
          run.segment.store(segment, std::memory_order_release);
          run.start.store(arena_.begin(segment), std::memory_order_release);
        } else {
          arena_.segment(run.last_segment).next.store(segment, std::memory_order_release);
        }
        run.last_segment = segment;
      }
      SpanArena::Segment& s = arena_.segment(segment);
      const std::uint32_t used = s.used.load(std::memory_order_relaxed);
      const std::uint32_t count = std::min(room, n - done);
      const BlockPos first = arena_.begin(segment) + used;
      if (has_units()) source.copy(at + done, count, arena_.unit(first));
      for (std::uint32_t i = 0; i < count; ++i) {
        key = source.key(key, at + done + i);
        if (length + done + i == 0) run.first_key = key;
      }
      s.used.store(used + count, std::memory_order_release);
      if (segment == run.segment.load(std::memory_order_relaxed))
        run.first.store(run.first.load(std::memory_order_relaxed) + count, std::memory_order_release);
      run.end = first + count;
      on_piece(id, first, count, is_new && done == 0);
      done += count;
    }
    if (done > 0) {
      set_end_key(run, key);
      run.length.store(length + done, std::memory_order_release);
      blocks_ += done;
    }
    return done;
  }

  void publish(RunId id, RunId parent) noexcept {
    add_child(parent, id);
    table_.insert(runs_[id].first_key, id);
  }

  void erase(RunId id, std::uint64_t state) noexcept {
    Run& run = runs_[id];
    const RunId parent = run.parent.load(std::memory_order_relaxed);
    table_.erase(run.first_key, id);
    remove_child(parent, id);
    const Run& above = runs_[parent];
    const std::uint32_t segment = run.segment.load(std::memory_order_relaxed);
    if (above.last_segment != kNoSegment && above.last_segment != segment &&
        arena_.segment(above.last_segment).next.load(std::memory_order_relaxed) == segment)
      arena_.segment(above.last_segment).next.store(kNoSegment, std::memory_order_release);
    run.state.store((state | kEvicting) + kGeneration, std::memory_order_release);
    retire({0, id, 0, kNoSegment, Retired::Kind::kRun});
  }

  void retire(Retired thing) noexcept {
    thing.epoch = epochs_.advance();
    retired_[(retired_first_ + retired_count_) % retired_.size()] = thing;
    ++retired_count_;
    reclaim();
  }

  void release(const Retired& thing) noexcept {
    if (thing.kind == Retired::Kind::kTail) {
      --arena_.segment(thing.id).retiring;
      arena_.segment(thing.id).used.store(thing.used, std::memory_order_release);
      arena_.shrink(thing.id, thing.used);
      for (std::uint32_t s = thing.dropped; s != kNoSegment;) {
        const std::uint32_t next = arena_.segment(s).next.load(std::memory_order_relaxed);
        arena_.free(s);
        s = next;
      }
      return;
    }
    if (thing.kind == Retired::Kind::kRun) release_segments(runs_[thing.id]);
    free_run(thing.id);
  }

  void release_segments(const Run& run) noexcept {
    const std::uint32_t first = run.segment.load(std::memory_order_relaxed);
    for (std::uint32_t s = first; s != kNoSegment;) {
      SpanArena::Segment& segment = arena_.segment(s);
      const std::uint32_t next = segment.next.load(std::memory_order_relaxed);
      if (--segment.references == 0) {
        arena_.free(s);
      } else {
        // A parent's blocks lie in front of ours.
        const std::uint32_t kept = run.start.load(std::memory_order_relaxed) - arena_.begin(s);
        segment.next.store(kNoSegment, std::memory_order_release);
        segment.used.store(kept, std::memory_order_release);
        arena_.shrink(s, kept);
      }
      s = next;
    }
  }

  [[nodiscard]] bool dead(RunId id) const noexcept {
    return (runs_[id].state.load(std::memory_order_relaxed) & kEvicting) != 0;
  }

  /// Of a block's unit. A replay lays out the same units as the recorded run, without their bytes.
  [[nodiscard]] std::uint32_t unit_bytes() const noexcept {
    const IndexMode mode = has_units() ? options_.mode : options_.replayed;
    return mode == IndexMode::kKeys ? static_cast<std::uint32_t>(sizeof(BlockKey))
                                    : options_.block_tokens * static_cast<std::uint32_t>(sizeof(TokenId));
  }
  [[nodiscard]] bool has_units() const noexcept { return options_.mode != IndexMode::kNothing; }

  // ---- runs and their links ----------------------------------------------------------------------------------------

  [[nodiscard]] RunId allocate_run() noexcept {
    RunId id = free_runs_;
    std::uint64_t state = 0;
    if (id != kNoRun) {
      free_runs_ = runs_[id].next_sibling;
      state = runs_[id].state.load(std::memory_order_relaxed) & ~kEvicting;
    } else if (fresh_runs_ < runs_.size()) {
      id = fresh_runs_++;
      ::new (&runs_[id]) Run{};
    } else {
      return kNoRun;
    }
    Run& r = runs_[id];
    r.parent.store(kNoRun, std::memory_order_release);
    r.segment.store(kNoSegment, std::memory_order_release);
    for (auto* field : {&r.start, &r.depth, &r.length, &r.first, &r.ready, &r.marks})
      field->store(0, std::memory_order_release);
    r.first_key = {};
    r.first_child = r.next_sibling = r.previous_sibling = kNoRun;
    r.children = 0;
    r.last_segment = kNoSegment;
    r.end = kNoPos;
    r.end_known = false;
    r.state.store(state, std::memory_order_release);
    ++used_runs_;
    return id;
  }
  void free_run(RunId id) noexcept {
    runs_[id].next_sibling = free_runs_;
    free_runs_ = id;
    --used_runs_;
  }
  /// A run that was begun but never published.
  void abandon_run(RunId id) noexcept {
    if (runs_[id].last_segment != kNoSegment) arena_.free(runs_[id].last_segment);
    free_run(id);
  }

  void add_child(RunId parent, RunId child) noexcept {
    Run& p = runs_[parent];
    Run& c = runs_[child];
    c.next_sibling = p.first_child;
    c.previous_sibling = kNoRun;
    if (p.first_child != kNoRun) runs_[p.first_child].previous_sibling = child;
    p.first_child = child;
    ++p.children;
  }
  void remove_child(RunId parent, RunId child) noexcept {
    const Run& c = runs_[child];
    if (c.previous_sibling != kNoRun)
      runs_[c.previous_sibling].next_sibling = c.next_sibling;
    else
      runs_[parent].first_child = c.next_sibling;
    if (c.next_sibling != kNoRun) runs_[c.next_sibling].previous_sibling = c.previous_sibling;
    --runs_[parent].children;
  }
  /// `now` takes `before`'s place among its siblings.
  void substitute_child(RunId before, RunId now) noexcept {
    const Run& b = runs_[before];
    Run& n = runs_[now];
    n.next_sibling = b.next_sibling;
    n.previous_sibling = b.previous_sibling;
    if (b.previous_sibling != kNoRun)
      runs_[b.previous_sibling].next_sibling = now;
    else
      runs_[b.parent.load(std::memory_order_relaxed)].first_child = now;
    if (b.next_sibling != kNoRun) runs_[b.next_sibling].previous_sibling = now;
  }

  IndexOptions options_;
  SpanArena arena_;
  HeadTable table_;
  Epochs epochs_;
  FixedArray<Run> runs_;
  FixedArray<Retired> retired_;
  std::uint32_t retired_first_ = 0, retired_count_ = 0;
  RunId free_runs_ = kNoRun;
  std::uint32_t fresh_runs_ = 0, used_runs_ = 0;
  std::uint32_t blocks_ = 0;
};

}  // namespace kvstem::inline v0
