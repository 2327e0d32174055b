// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A walk of operations over a PrefixIndex beside a naive model of it (a map from prefix to block), compared after every
// operation. What comes next is drawn from a chooser: random numbers in the model check, the input's bytes in the fuzz target.
//
// The model knows each block by what leads to it: the root, and the tokens and marks of all blocks up to it. It says what
// every match must find, where each block lies (a block's position is its name until it goes), what is ready, and what
// may be pinned, trimmed, merged. While a reader holds its epoch, no byte that it could see may change.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvstem/index/prefix_index.hpp"

namespace kvstem_test {

using namespace kvstem;

/// Eight bits of XXH3: every table line is full of keys that mean something else.
inline KeyFunction eight_bit_keys() {
  return {HashAlgorithm::kTest, [](std::span<const std::byte> in, const KeySecret&) noexcept {
            return BlockKey{XXH3_64bits(in.data(), in.size()) & 0xff, 0};
          }};
}

/// A prompt that owns what it points to.
struct OwnedPrompt {
  std::uint32_t root = 0;
  std::vector<TokenId> tokens;
  std::vector<Extra> extras;
  std::vector<ScopeChange> changes;

  [[nodiscard]] Prompt view() const {
    return {.scope = ScopeId{root}, .tokens = tokens, .extras = extras, .changes = changes};
  }
  void cut(std::size_t n) {
    if (n < tokens.size()) tokens.resize(n);
    while (!extras.empty() && extras.back().position >= tokens.size()) extras.pop_back();
    while (!changes.empty() && changes.back().position >= tokens.size()) changes.pop_back();
  }
};

struct WalkOptions {
  IndexMode mode = IndexMode::kTokens;
  KeyFunction keys = xxh3_key_function();
  std::uint32_t block_tokens = 2;
  std::uint32_t capacity_blocks = 256;
  std::uint32_t max_runs = 40;
  std::uint32_t alphabet = 2;
  std::uint32_t most_blocks = 14;  // of a prompt
};

enum class Op : std::uint8_t {
  kMatch,
  kReaderMatch,
  kExtend,
  kReady,
  kLoseReady,
  kSplit,
  kMerge,
  kTrim,
  kErase,
  kPin,
  kUnpin,
  kRemember,
  kResume,
  kHold,
  kLetGo,
  kKeys,
  kClear,
  kCount
};
inline constexpr const char* kOpNames[] = {
    "match", "reader match", "extend",   "ready",  "lose ready", "split",  "merge",    "trim", "erase",
    "pin",   "unpin",        "remember", "resume", "hold epoch", "let go", "get keys", "clear"};
static_assert(std::size(kOpNames) == static_cast<std::size_t>(Op::kCount));

/// `Chooser` has `std::uint32_t pick(std::uint32_t n)`: a number below n.
template <class Chooser>
class IndexWalk {
 public:
  struct Tally {
    std::array<std::uint64_t, static_cast<std::size_t>(Op::kCount)> tried{}, effective{};
    std::uint64_t collisions = 0, refused_pinned = 0, refused_inner = 0, stale = 0, exhausted = 0,
                  pending = 0, marked_runs = 0, trims_beside_readers = 0;
  };

  IndexWalk(const WalkOptions& options, Chooser& chooser)
      : options_(options), choose_(chooser), hasher_(options.keys) {
    auto made = PrefixIndex::create({.mode = options.mode,
                                     .block_tokens = options.block_tokens,
                                     .capacity_blocks = options.capacity_blocks,
                                     .max_runs = options.max_runs,
                                     .max_readers = kReaders});
    if (!expect(made.ok(), "create")) return;
    index_ = std::move(*made);
    for (std::uint32_t r = 0; r < kRoots; ++r) {
      const Scope scope{.model = "m", .salt = std::to_string(r), .vocab_size = 100};
      root_keys_.push_back(*hasher_.root(scope));
      roots_.push_back(*index_->add_root(root_keys_.back()));
    }
    for (std::uint32_t r = 0; r < kReaders; ++r)
      readers_.push_back({std::move(*index_->register_reader()), false, {}});
    at_.resize(index_->positions());
  }

  /// What the index did wrong first; null if nothing.
  [[nodiscard]] const char* wrong() const { return wrong_; }
  [[nodiscard]] const Tally& tally() const { return tally_; }

  /// One operation, compared with the model.
  Op step() {
    // Weights: what builds the tree must keep up with what takes it down.
    static constexpr Op kDeck[] = {
        Op::kMatch,  Op::kReaderMatch, Op::kReaderMatch, Op::kExtend,   Op::kExtend,    Op::kExtend,
        Op::kExtend, Op::kExtend,      Op::kReady,       Op::kReady,    Op::kLoseReady, Op::kLoseReady,
        Op::kSplit,  Op::kMerge,       Op::kMerge,       Op::kMerge,    Op::kMerge,     Op::kMerge,
        Op::kTrim,   Op::kTrim,        Op::kTrim,        Op::kErase,    Op::kErase,     Op::kPin,
        Op::kPin,    Op::kUnpin,       Op::kUnpin,       Op::kRemember, Op::kRemember,  Op::kResume,
        Op::kResume, Op::kHold,        Op::kLetGo,       Op::kLetGo,    Op::kKeys,      Op::kClear};
    Op op = kDeck[choose_.pick(std::size(kDeck))];
    if (op == Op::kClear && choose_.pick(4) != 0) op = Op::kExtend;
    const std::size_t i = static_cast<std::size_t>(op);
    ++tally_.tried[i];
    tally_.effective[i] += run(op);
    compare();
    return op;
  }

  /// Lets go of everything and erases everything: nothing may be left behind.
  void finish() {
    if (wrong_ == nullptr) clear();
  }

 private:
  static constexpr std::uint32_t kRoots = 2, kReaders = 3;

  struct Block {
    std::uint32_t root = 0;
    BlockPos pos = kNoPos, parent = kNoPos;
    bool ready = false, marked = false;
    std::uint32_t children = 0;
    BlockKey key{}, parent_key{};
    OwnedPrompt prompt;             // what leads to it
    std::vector<std::byte> stored;  // what its unit must hold
  };
  using Path = std::vector<std::int64_t>;

  struct Held {
    PrefixIndex::Reader reader;
    bool pinned = false;
    std::vector<std::pair<BlockPos, std::vector<std::byte>>> seen;
  };
  struct Pin {
    RunId run;
    std::vector<BlockPos> blocks;
  };
  struct Session {
    Place place;
    OwnedPrompt prompt;
  };

  bool expect(bool condition, const char* what) {
    if (!condition && wrong_ == nullptr) wrong_ = what;
    return condition;
  }

  // ---- prompts -----------------------------------------------------------------------------------------------------

  [[nodiscard]] std::uint32_t blocks_of(const OwnedPrompt& p) const {
    return static_cast<std::uint32_t>(p.tokens.size() / options_.block_tokens);
  }

  void append_random(OwnedPrompt& p, std::uint32_t n) {
    for (std::uint32_t i = 0; i < n; ++i) {
      const auto position = static_cast<std::uint32_t>(p.tokens.size());
      p.tokens.push_back(static_cast<TokenId>(choose_.pick(options_.alphabet)));
      const std::uint32_t mark = choose_.pick(24 * options_.block_tokens);
      if (mark == 0 || mark == 1) {
        Extra extra{.position = position};
        extra.digest[0] = static_cast<std::byte>(choose_.pick(2));
        p.extras.push_back(extra);
      }
      if (mark == 1 || mark == 2) p.changes.push_back({position, ScopeId{choose_.pick(kRoots)}});
    }
  }

  /// Half of the time a part of something that is there, then something random.
  OwnedPrompt some_prompt() {
    OwnedPrompt p;
    const Block* from = choose_.pick(4) != 0 ? some_block() : nullptr;
    if (from != nullptr) {
      p = from->prompt;
      if (choose_.pick(2) != 0) p.cut(choose_.pick(static_cast<std::uint32_t>(p.tokens.size()) + 1));
    } else {
      p.root = choose_.pick(kRoots);
    }
    const std::uint32_t most = options_.most_blocks * options_.block_tokens;
    const auto have = static_cast<std::uint32_t>(p.tokens.size());
    if (have < most && choose_.pick(3) != 0)
      append_random(p, 1 + choose_.pick(std::min(most - have, 6 * options_.block_tokens)));
    return p;
  }

  const Block* some_block() {
    if (present_.empty()) return nullptr;
    return &*at_[present_[choose_.pick(static_cast<std::uint32_t>(present_.size()))]];
  }

  /// The marks of a prompt's block in the order of a key, worked out plainly.
  [[nodiscard]] std::vector<KeyMark> marks_of(const OwnedPrompt& p, std::uint32_t block) const {
    std::vector<KeyMark> marks;
    for (std::uint32_t offset = 0; offset < options_.block_tokens; ++offset) {
      const std::uint32_t position = block * options_.block_tokens + offset;
      for (const Extra& e : p.extras)
        if (e.position == position) marks.push_back({KeyMark::Kind::kMedia, offset, e.digest});
      for (const ScopeChange& c : p.changes) {
        if (c.position != position) continue;
        marks.push_back({KeyMark::Kind::kScope, offset, {}});
        std::memcpy(marks.back().value.data(), &root_keys_[static_cast<std::uint32_t>(c.scope)],
                    sizeof(BlockKey));
      }
    }
    return marks;
  }

  /// Extends a path by one block.
  void walk_on(Path& path, const OwnedPrompt& p, std::uint32_t block) const {
    path.push_back(-1);
    const std::uint32_t begin = block * options_.block_tokens;
    for (std::uint32_t i = begin; i < begin + options_.block_tokens; ++i) {
      path.push_back(p.tokens[i]);
      for (const Extra& e : p.extras)
        if (e.position == i) path.push_back(1000 + std::to_integer<int>(e.digest[0]));
      for (const ScopeChange& c : p.changes)
        if (c.position == i) path.push_back(2000 + static_cast<std::int64_t>(c.scope));
    }
  }

  /// The blocks of the prompt that are there, in order.
  [[nodiscard]] std::vector<BlockPos> known(const OwnedPrompt& p) const {
    std::vector<BlockPos> found;
    Path path{p.root};
    for (std::uint32_t b = 0; b < blocks_of(p); ++b) {
      walk_on(path, p, b);
      const auto it = by_path_.find(path);
      if (it == by_path_.end()) break;
      found.push_back(it->second);
    }
    return found;
  }

  [[nodiscard]] std::vector<BlockKey> keys_of(const OwnedPrompt& p) const {
    std::vector<BlockKey> keys;
    BlockKey parent = root_keys_[p.root];
    for (std::uint32_t b = 0; b < blocks_of(p); ++b) {
      parent =
          hasher_.next(parent, std::span(p.tokens).subspan(b * options_.block_tokens, options_.block_tokens),
                       marks_of(p, b));
      keys.push_back(parent);
    }
    return keys;
  }

  /// Calls `fn(source)` with the kind of source that the index needs.
  template <class Fn>
  void with_source(const OwnedPrompt& p, Fn&& fn) {
    const Prompt view = p.view();
    if (options_.mode == IndexMode::kKeys) {
      const auto keys = keys_of(p);
      fn(KeySource(keys));
    } else {
      expect(validate(view, options_.block_tokens).ok(), "the walk makes valid prompts");
      fn(TokenSource(hasher_, options_.block_tokens, view, root_keys_));
    }
  }

  // ---- what a match must say ---------------------------------------------------------------------------------------

  struct Seen {
    std::vector<BlockPos> positions;
    std::vector<bool> ready;
  };
  struct Visit {
    Seen* seen;
    void operator()(RunId, BlockPos first, std::uint32_t n, std::uint32_t ready) const {
      for (std::uint32_t i = 0; i < n; ++i) {
        seen->positions.push_back(first + i);
        seen->ready.push_back(i < ready);
      }
    }
    void reset() const { *seen = {}; }
  };

  /// `from`: blocks that the match did not look at.
  void check_match(const OwnedPrompt& p, const Match& match, const Seen& seen, std::uint32_t from) {
    const auto expected = known(p);
    if (!expect(match.place.blocks == expected.size(), "a match finds exactly the blocks that are there"))
      return;
    if (!expect(seen.positions.size() + from == expected.size(), "a match visits what it finds")) return;
    std::uint32_t ready = 0;
    while (ready < expected.size() && at_[expected[ready]]->ready) ++ready;
    expect(match.ready == ready, "a match says how much is ready");
    tally_.pending += ready < expected.size();
    for (std::size_t i = from; i < expected.size(); ++i) {
      expect(seen.positions[i - from] == expected[i], "a block keeps its position");
      expect(seen.ready[i - from] == at_[expected[i]]->ready, "a visit says what is ready");
    }
    check_place(match.place, p, expected);
  }

  void check_place(Place place, const OwnedPrompt& p, const std::vector<BlockPos>& expected) {
    if (!expect(index_->valid(place), "a fresh place is valid")) return;
    const RunId run = index_->locate(place);
    const RunInfo info = index_->info(run);
    if (place.blocks == 0) {
      expect(run == roots_[p.root], "nothing found is a place at the root");
      return;
    }
    bool there = false;
    index_->for_each_range(run, place.blocks - 1 - info.depth, 1,
                           [&](BlockPos pos, std::uint32_t) { there = pos == expected[place.blocks - 1]; });
    expect(there, "a place leads to the run that holds its last block");
  }

  // ---- operations --------------------------------------------------------------------------------------------------

  bool run(Op op) {
    switch (op) {
      case Op::kMatch: return match();
      case Op::kReaderMatch: return reader_match();
      case Op::kExtend: return extend(some_prompt());
      case Op::kReady: return ready();
      case Op::kLoseReady: return lose_ready();
      case Op::kSplit: return split();
      case Op::kMerge: return merge();
      case Op::kTrim: return trim(false);
      case Op::kErase: return trim(true);
      case Op::kPin: return pin();
      case Op::kUnpin: return unpin();
      case Op::kRemember: return remember();
      case Op::kResume: return resume();
      case Op::kHold: return hold();
      case Op::kLetGo: return let_go();
      case Op::kKeys: return get_keys();
      case Op::kClear: return clear();
      case Op::kCount: break;
    }
    return false;
  }

  bool match() {
    const OwnedPrompt p = some_prompt();
    bool found = false;
    with_source(p, [&](const auto& source) {
      Seen seen;
      const Match m = index_->match(roots_[p.root], source, Visit{&seen});
      check_match(p, m, seen, 0);
      found = m.place.blocks > 0;
    });
    return found;
  }

  bool reader_match() {
    const OwnedPrompt p = some_prompt();
    bool found = false;
    with_source(p, [&](const auto& source) {
      Seen seen;
      // The last reader never holds an epoch: match() would end it.
      const Match m = index_->match(readers_.back().reader, roots_[p.root], source, Visit{&seen});
      check_match(p, m, seen, 0);
      found = m.place.blocks > 0;
    });
    return found;
  }

  bool extend(const OwnedPrompt& p) {
    bool effective = false;
    with_source(p, [&](const auto& source) {
      const Match m = index_->match(roots_[p.root], source);
      effective = extend_behind(m.place, p, source);
    });
    return effective;
  }

  template <class S>
  bool extend_behind(Place place, const OwnedPrompt& p, const S& source) {
    const std::uint32_t wanted = source.blocks();
    const std::uint32_t until =
        place.blocks + (wanted > place.blocks ? choose_.pick(wanted - place.blocks + 1) : 0);
    std::vector<BlockPos> path = known(p);
    if (!expect(path.size() == place.blocks, "extend begins where the match ended")) return false;
    const auto keys = keys_of(p);
    std::vector<BlockPos> added;
    std::vector<RunId> begun;
    const Extended e =
        index_->extend(place, source, until, [&](RunId run, BlockPos first, std::uint32_t n, bool is_new) {
          for (std::uint32_t i = 0; i < n; ++i) added.push_back(first + i);
          if (is_new) begun.push_back(run);
        });
    if (!expect(e.added == added.size() && e.place.blocks == place.blocks + e.added,
                "extend says what it added"))
      return false;
    expect(e.place.blocks <= until, "extend stops where it was told");
    tally_.exhausted += e.place.blocks < until;
    for (std::uint32_t i = 0; i < e.added; ++i) {
      const std::uint32_t b = place.blocks + i;
      const BlockPos pos = added[i];
      if (!expect(pos < at_.size() && !at_[pos].has_value(), "a new block lies where no other lies"))
        return false;
      for (const Held& held : readers_)
        for (const auto& [seen, bytes] : held.seen)
          expect(seen != pos, "what a reader may see is not used again");
      Block block;
      block.root = p.root;
      block.pos = pos;
      block.parent = path.empty() ? kNoPos : path.back();
      block.marked = options_.mode == IndexMode::kTokens && !marks_of(p, b).empty();
      block.key = keys[b];
      block.parent_key = b == 0 ? root_keys_[p.root] : keys[b - 1];
      block.prompt = p;
      block.prompt.cut((b + 1) * options_.block_tokens);
      if (options_.mode == IndexMode::kKeys) {
        block.stored.resize(sizeof(BlockKey));
        std::memcpy(block.stored.data(), &keys[b], sizeof(BlockKey));
      } else {
        block.stored.resize(options_.block_tokens * sizeof(TokenId));
        std::memcpy(block.stored.data(), &p.tokens[b * options_.block_tokens], block.stored.size());
      }
      if (block.parent != kNoPos) ++at_[block.parent]->children;
      at_[pos] = std::move(block);
      present_.push_back(pos);
      Path key{p.root};
      for (std::uint32_t k = 0; k <= b; ++k) walk_on(key, p, k);
      expect(by_path_.emplace(std::move(key), pos).second, "a prefix is in the tree once");
      path.push_back(pos);
    }
    if (e.added > 0) check_place(e.place, p, path);
    for (const RunId run : begun) {
      const RunInfo info = index_->info(run);
      tally_.marked_runs += info.marked;
      for (std::uint32_t r = 0; r < kRoots; ++r)
        index_->enumerate(roots_[r], [&](RunId other, const RunInfo& o) {
          tally_.collisions += other != run && o.first_key == info.first_key;
        });
    }
    return e.added > 0;
  }

  bool ready() {
    const Block* block = some_block();
    if (block == nullptr) return false;
    bool effective = false;
    with_source(block->prompt, [&](const auto& source) {
      index_->set_ready_through(index_->match(roots_[block->root], source).place);
    });
    for (BlockPos pos = block->pos; pos != kNoPos; pos = at_[pos]->parent) {
      effective = effective || !at_[pos]->ready;
      at_[pos]->ready = true;
    }
    return effective;
  }

  bool lose_ready() {
    const RunId run = some_run();
    if (run == kNoRun) return false;
    const RunInfo info = index_->info(run);
    if (info.children != 0 || info.ready == 0) return false;
    const std::uint32_t keep = choose_.pick(info.ready);
    index_->for_each_range(run, keep, info.length - keep, [&](BlockPos first, std::uint32_t n) {
      for (std::uint32_t i = 0; i < n; ++i) at_[first + i]->ready = false;
    });
    index_->set_ready(run, keep);
    return true;
  }

  bool split() {
    const Block* block = some_block();
    if (block == nullptr) return false;
    const std::uint32_t runs = index_->usage().runs;
    bool effective = false;
    with_source(block->prompt, [&](const auto& source) {
      const Place place = index_->match(roots_[block->root], source).place;
      const auto ended = index_->split(place, source);
      if (!ended.ok()) {
        expect(ended.status().code() == StatusCode::kExhausted, "a split fails only for want of runs");
        expect(runs == index_->max_runs(), "a split fails only when all runs are in use");
        return;
      }
      const RunInfo info = index_->info(*ended);
      expect(info.depth + info.length == place.blocks, "a split ends a run at the place");
      effective = index_->usage().runs > runs;
    });
    return effective;
  }

  bool merge() {
    const RunId run = some_run(true);
    if (run == kNoRun) return false;
    const RunInfo info = index_->info(run);
    RunId child = kNoRun;
    index_->enumerate(run, [&](RunId id, const RunInfo& below) {
      if (below.parent == run) child = id;
    });
    const RunInfo below = child == kNoRun ? RunInfo{} : index_->info(child);
    if (!index_->merge_with_child(run)) return false;
    expect(info.children == 1 && info.references == 0 && !below.marked,
           "only an unpinned run with one plain child merges");
    const RunInfo merged = index_->info(child);
    expect(merged.depth == info.depth && merged.length == info.length + below.length &&
               merged.generation == below.generation && merged.references == below.references &&
               merged.children == below.children && merged.first_key == info.first_key,
           "a merged run is both in one, under the child's handle");
    expect(!index_->try_pin(run, info.generation), "a merged head's handle is stale");
    expect(!index_->merge_with_child(run), "what is gone is not merged again");
    return true;
  }

  bool trim(bool whole) {
    const RunId run = some_run();
    if (run == kNoRun) return false;
    const RunInfo info = index_->info(run);
    const std::uint32_t keep = whole ? 0 : 1 + choose_.pick(info.length);
    std::vector<BlockPos> gone;
    if (keep < info.length)
      index_->for_each_range(run, keep, info.length - keep, [&](BlockPos first, std::uint32_t n) {
        for (std::uint32_t i = 0; i < n; ++i) gone.push_back(first + i);
      });
    bool told = false;
    const Status status = index_->trim(run, keep, [&] { told = true; });
    expect(told == status.ok(), "trim tells before it changes something, and only then");
    if (info.children != 0 || info.references != 0 || keep >= info.length) {
      tally_.refused_pinned += info.references != 0;
      tally_.refused_inner += info.children != 0;
      expect(status.code() == StatusCode::kWrongState, "only an unpinned leaf can be trimmed");
      return false;
    }
    if (!expect(status.ok(), "an unpinned leaf can be trimmed")) return false;
    expect(!index_->try_pin(run, info.generation), "a trimmed run's handle is stale");
    if (keep == 0 && held())
      expect(index_->trim(run, 0).code() == StatusCode::kStale, "what is gone is not erased again");
    tally_.trims_beside_readers += held();
    for (auto pos = gone.rbegin(); pos != gone.rend(); ++pos) remove(*pos);
    return true;
  }

  bool pin() {
    const Block* block = some_block();
    if (block == nullptr || pins_.size() >= 6) return false;
    bool effective = false;
    with_source(block->prompt, [&](const auto& source) {
      const Place place = index_->match(roots_[block->root], source).place;
      effective = expect(index_->try_pin(place.run, place.generation), "a fresh handle can be pinned");
      if (!effective) return;
      Pin pin{.run = place.run, .blocks = known(block->prompt)};
      pins_.push_back(std::move(pin));
    });
    return effective;
  }
  bool unpin() {
    if (pins_.empty()) return false;
    const std::uint32_t i = choose_.pick(static_cast<std::uint32_t>(pins_.size()));
    index_->unpin(pins_[i].run);
    pins_.erase(pins_.begin() + i);
    return true;
  }

  bool remember() {
    const OwnedPrompt p = some_prompt();
    if (sessions_.size() >= 8) sessions_.erase(sessions_.begin());
    with_source(p, [&](const auto& source) {
      sessions_.push_back({index_->match(roots_[p.root], source).place, p});
    });
    return sessions_.back().place.blocks > 0;
  }

  /// The next turn of a session: a longer prompt, matched from where the last one ended, and then added.
  bool resume() {
    if (sessions_.empty()) return false;
    Session& session = sessions_[choose_.pick(static_cast<std::uint32_t>(sessions_.size()))];
    const Place before = session.place;
    if (!index_->valid(before)) {
      ++tally_.stale;
      expect(!index_->try_pin(before.run, before.generation), "a place that is not valid cannot be pinned");
    } else {
      expect(known(session.prompt).size() >= before.blocks, "a valid place still means what it meant");
      if (index_->try_pin(before.run, before.generation))
        index_->unpin(before.run);
      else
        expect(false, "a valid place can be pinned");
    }
    if (session.prompt.tokens.size() < options_.most_blocks * options_.block_tokens)
      append_random(session.prompt, 1 + choose_.pick(2 * options_.block_tokens));
    bool effective = false;
    with_source(session.prompt, [&](const auto& source) {
      const std::uint32_t from = index_->valid(before) ? before.blocks : 0;
      Seen seen;
      const Match m = index_->match_from(roots_[session.prompt.root], before, source, Visit{&seen});
      check_match(session.prompt, m, seen, from);
      effective = index_->valid(before) && before.blocks > 0;
      session.place = m.place;
      if (wrong_ == nullptr && choose_.pick(2) == 0) extend_behind(m.place, session.prompt, source);
    });
    return effective;
  }

  /// A reader begins and does not end: all that is there now must stay as it is.
  bool hold() {
    Held& reader = readers_[choose_.pick(kReaders - 1)];
    if (reader.pinned) return false;
    reader.reader.pin();
    reader.pinned = true;
    for (const BlockPos pos : present_) reader.seen.emplace_back(pos, at_[pos]->stored);
    return true;
  }
  bool let_go() {
    Held& reader = readers_[choose_.pick(kReaders - 1)];
    if (!reader.pinned) return false;
    reader.reader.unpin();
    reader.pinned = false;
    reader.seen.clear();
    index_->reclaim();
    return true;
  }
  [[nodiscard]] bool held() const {
    for (const Held& reader : readers_)
      if (reader.pinned) return true;
    return false;
  }

  /// Every key of a run, hashed from what is stored, is the key that the whole chain gives.
  bool get_keys() {
    const RunId run = some_run();
    if (run == kNoRun) return false;
    const RunInfo info = index_->info(run);
    const std::uint32_t from = choose_.pick(info.length), n = 1 + choose_.pick(info.length - from);
    std::vector<BlockPos> positions;
    index_->for_each_range(run, from, n, [&](BlockPos first, std::uint32_t count) {
      for (std::uint32_t i = 0; i < count; ++i) positions.push_back(first + i);
    });
    std::size_t i = 0;
    index_->for_each_key(
        run, from, n,
        [&](BlockKey parent, const std::byte* stored) {
          BlockKey key;
          if (options_.mode == IndexMode::kKeys) {
            std::memcpy(&key, stored, sizeof key);
          } else {
            key = hasher_.next(parent, {reinterpret_cast<const TokenId*>(stored), options_.block_tokens});
          }
          return key;
        },
        [&](BlockPos pos, BlockKey key, BlockKey parent) {
          if (!expect(i < positions.size() && positions[i] == pos, "keys come in the order of blocks"))
            return;
          ++i;
          expect(key == at_[pos]->key, "a stored block has the key of its chain");
          expect(parent == at_[pos]->parent_key, "a stored block has the parent key of its chain");
        });
    expect(i == n, "as many keys as blocks");
    return true;
  }

  bool clear() {
    const bool any = !present_.empty();
    for (const Pin& pin : pins_) index_->unpin(pin.run);
    pins_.clear();
    for (Held& reader : readers_) {
      if (reader.pinned) reader.reader.unpin();
      reader.pinned = false;
      reader.seen.clear();
    }
    for (RunId leaf = some_leaf(); leaf != kNoRun; leaf = some_leaf())
      if (!expect(index_->trim(leaf, 0).ok(), "every leaf can be erased when nothing is pinned"))
        return false;
    for (const BlockPos pos : present_) at_[pos].reset();
    present_.clear();
    by_path_.clear();
    index_->reclaim();
    const IndexUsage usage = index_->usage();
    expect(usage.blocks == 0 && usage.runs == kRoots && usage.retired == 0, "nothing is left but the roots");
    expect(usage.units_taken == 0, "no unit is lost");
    return any;
  }

  RunId some_leaf() {
    RunId leaf = kNoRun;
    for (const RootId root : roots_)
      index_->enumerate(root, [&](RunId run, const RunInfo& info) {
        if (info.children == 0) leaf = run;
      });
    return leaf;
  }
  /// Leaves three times in four, since there is little to do with the others; or runs that could be merged.
  RunId some_run(bool inner = false) {
    std::vector<RunId> runs;
    const bool all = choose_.pick(4) == 0;
    for (const RootId root : roots_)
      index_->enumerate(root, [&](RunId run, const RunInfo& info) {
        if (all || (inner ? info.children == 1 : info.children == 0)) runs.push_back(run);
      });
    return runs.empty() ? kNoRun : runs[choose_.pick(static_cast<std::uint32_t>(runs.size()))];
  }

  void remove(BlockPos pos) {
    Block& block = *at_[pos];
    expect(block.children == 0, "no block goes before those behind it");
    if (block.parent != kNoPos) --at_[block.parent]->children;
    Path path{block.root};
    for (std::uint32_t b = 0; b < blocks_of(block.prompt); ++b) walk_on(path, block.prompt, b);
    by_path_.erase(path);
    at_[pos].reset();
    present_.erase(std::find(present_.begin(), present_.end(), pos));
  }

  // ---- the whole tree against the model ----------------------------------------------------------------------------

  void compare() {
    if (wrong_ != nullptr) return;
    std::uint32_t blocks = 0, runs = kRoots, references = 0;
    std::map<RunId, BlockPos> last;
    std::map<RunId, std::uint32_t> children;
    for (std::uint32_t r = 0; r < kRoots; ++r) {
      last[roots_[r]] = kNoPos;
      index_->enumerate(roots_[r], [&](RunId run, const RunInfo& info) {
        ++runs;
        ++children[info.parent];
        references += info.references;
        if (!expect(last.count(info.parent) == 1, "parents come before children")) return;
        const RunInfo above = index_->info(info.parent);
        expect(info.depth == above.depth + above.length, "a run begins where its parent ends");
        expect(info.length > 0 && info.ready <= info.length, "no run is empty");
        expect(info.ready == 0 || above.ready == above.length, "ready is closed under prefix");
        BlockPos before = last[info.parent];
        std::uint32_t i = 0;
        index_->for_each_range(run, 0, info.length, [&](BlockPos first, std::uint32_t n) {
          for (BlockPos pos = first; pos < first + n; ++pos, ++i) {
            if (!expect(pos < at_.size() && at_[pos].has_value(), "only what was added is there")) return;
            const Block& block = *at_[pos];
            expect(block.root == r && block.parent == before, "a block hangs below its prefix");
            expect(std::memcmp(index_->unit(pos), block.stored.data(), block.stored.size()) == 0,
                   "what is stored does not change");
            expect(block.ready == (i < info.ready), "a block is ready when it was said to be");
            expect(i == 0 ? block.marked == info.marked : !block.marked, "a block with marks begins a run");
            before = pos;
          }
        });
        expect(i == info.length, "a run has as many blocks as it says");
        last[run] = before;
        blocks += i;
      });
    }
    for (const auto& [run, n] : children)
      expect(index_->info(run).children == n, "a run knows how many children it has");
    const IndexUsage usage = index_->usage();
    expect(blocks == present_.size() && usage.blocks == present_.size(),
           "what was added and not removed is there");
    expect(usage.runs >= runs && usage.runs <= runs + usage.retired, "runs are in use, retired or free");
    expect(usage.units_taken >= blocks, "each block has a unit");
    expect(held() || usage.retired == 0, "nothing waits when no reader does");
    expect(references == pins_.size() - pins_at_roots(), "a pin is a reference");
    for (const Held& reader : readers_)
      for (const auto& [pos, bytes] : reader.seen)
        expect(std::memcmp(index_->unit(pos), bytes.data(), bytes.size()) == 0,
               "what a reader may see does not change");
    for (const Pin& pin : pins_)
      for (const BlockPos pos : pin.blocks) expect(at_[pos].has_value(), "nothing at or before a pin goes");
  }
  [[nodiscard]] std::size_t pins_at_roots() const {
    return static_cast<std::size_t>(std::count_if(pins_.begin(), pins_.end(), [&](const Pin& pin) {
      return std::find(roots_.begin(), roots_.end(), pin.run) != roots_.end();
    }));
  }

  WalkOptions options_;
  Chooser& choose_;
  KeyHasher hasher_;
  std::unique_ptr<PrefixIndex> index_;
  std::vector<BlockKey> root_keys_;
  std::vector<RootId> roots_;
  std::vector<Held> readers_;  // declared behind the index, so given back before it
  std::vector<std::optional<Block>> at_;
  std::vector<BlockPos> present_;
  std::map<Path, BlockPos> by_path_;
  std::vector<Pin> pins_;
  std::vector<Session> sessions_;
  Tally tally_;
  const char* wrong_ = nullptr;
};

}  // namespace kvstem_test
