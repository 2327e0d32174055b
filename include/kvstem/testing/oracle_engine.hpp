// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A paged engine without a model: a pool of slots whose "KV" is a digest of the prefix that it was computed for, a queue
// that carries steps out later, and an executor whose loads come late, in any order, in part, or not at all. Whoever hands
// a step the wrong slot, or the right one too early or too late, is found out when the step reads it.
//
// For testing a scheduler on top of kvstem (or of a cache of your own) before it runs on a device. Not for an engine that
// keeps its state itself (digest_engine.hpp), nor for measuring speed.
//
// Guarantees
//   A step reads every position before the ones that it computes, and compares with what must be there. What it writes is
//   poison from its begin to its end; so are copies and loads under way. Nothing of a step is read by the same step.
//   Steps are carried out in the order of their launch; copies in their order as well, as soon as their points allow, and
//   before the first step behind `source_ready`. Loads come when the seed says so, but before a step that waits for them,
//   and not before an earlier entry that writes what they read or write. Each is carried out, whatever happened to its lease.
//   Work on top of a load or copy that failed is worthless, and no mistake if it was launched before `poll` told so.
//   Of each group it reads what that group's attention needs: all before, the last window_tokens, or the one state in
//   table[0]; what it writes is in its own place of the pool, which groups may share (KvGroup::with).
//   The same seed and the same calls give the same course.
// Errors never throw: they are counted, and the first one is kept as text. Nothing is sampled: the caller says what the
// model chooses, also where a real one would tell it only later.
// Threads: one. Cost: O(positions before) for each position range computed; allocates.
//
//   OracleEngine engine({.slots = 64, .block_tokens = 16, .seed = 7});
//   OracleText text(scope);                                   // any number for each scope
//   for (TokenId t : prompt) text.append(t);
//   for (const StepEntry& e : cache.take_step(entries)) engine.submit(e);
//   engine.launch({.done = {kQueue, 1}, .work = {{{table}, text.states(), 0, 16}}});
//   while (engine.done().value < 1) engine.tick();            // or drain()
//   for (const StepResult& r : engine.poll(results)) (void)cache.complete(r);
//   assert(engine.wrong_reads == 0 && engine.mistakes == 0);  // else: engine.first_error
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/point.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/cache/step.hpp"
#include "kvstem/model/block_key.hpp"
#include "kvstem/model/kv_group.hpp"

namespace kvstem::inline v0 {

/// A sequence as the engine sees it: for each position a digest of the scope and of all that stands up to there.
class OracleText {
 public:
  explicit OracleText(std::uint64_t scope) noexcept : scope_(scope) {}

  /// `mark`: what else there is at this position (media, another scope from here on); 0 is nothing.
  void append(TokenId token, std::uint64_t mark = 0) {
    states_.push_back(next(states_.empty() ? scope_ : states_.back(), token, mark));
  }
  void truncate(std::size_t tokens) { states_.resize(std::min(tokens, states_.size())); }
  [[nodiscard]] const std::vector<std::uint64_t>& states() const noexcept { return states_; }

  /// The state behind `state`; for trees of drafts.
  [[nodiscard]] static std::uint64_t next(std::uint64_t state, TokenId token,
                                          std::uint64_t mark = 0) noexcept {
    state += 0x9e3779b97f4a7c15u * (std::uint64_t{static_cast<std::uint32_t>(token)} + 1) + mark;
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
    return state ^ (state >> 31);
  }

 private:
  std::uint64_t scope_;
  std::vector<std::uint64_t> states_;
};

struct OracleOptions {
  std::uint32_t slots = 0;
  std::uint32_t block_tokens = 16;
  std::uint32_t layers = 2;
  std::vector<KvGroup> groups{};  // as CacheOptions::groups
  bool null_slot = false;
  std::uint32_t tier_blocks = 64;  // blocks that the host tier keeps; the oldest go
  std::uint64_t seed = 1;
  // Of 1000 entries. Half of those that fail have written half of their cells.
  std::uint32_t loads_fail = 0;
  std::uint32_t copies_fail = 0;
};

/// One sequence's part of a step: positions [begin, end).
struct OracleWork {
  std::vector<std::vector<std::int32_t>> tables;  // for each group, as they were when the work was scheduled
  std::vector<std::uint64_t>
      states;  // of all positions up to `end`; in a tree of drafts each behind its parent
  std::uint32_t begin = 0, end = 0;
  std::vector<std::pair<std::uint32_t, std::uint32_t>>
      of_group{};  // the same for each group, where one lags behind the others; empty: none does
  std::vector<std::uint64_t> loads{};  // tickets of entries that must have been carried out before
  Point not_before{};                  // Lease::not_before()
};
struct OracleStep {
  Point done{};  // all steps on one timeline, ascending
  std::vector<OracleWork> work{};
};

class OracleEngine {
 public:
  /// Reads that saw something else than the state of the prefix.
  std::uint64_t wrong_reads = 0;
  /// Points that were not honoured, tables that are too short, slots that are not there.
  std::uint64_t mistakes = 0;
  std::string first_error;  // of both
  std::uint64_t steps_run = 0, loads_done = 0, loads_failed = 0, copies_done = 0, copies_failed = 0;

  explicit OracleEngine(const OracleOptions& options) : options_(options), random_(options.seed) {
    if (options_.groups.empty()) options_.groups.resize(1);
    for (GroupId g = 0; g < static_cast<GroupId>(options_.groups.size()); ++g) {
      const KvGroup& facts = options_.groups[g];
      const GroupId with = facts.with != kNoGroup ? facts.with : GroupId{0};
      Group group{facts, g, g, options.slots, options.block_tokens, {}};
      if (facts.kind == GroupKind::kSideData) {  // cells of its own, at the places of another group
        group = groups_[with];
        group.base = with;
        group.pool = g;
      } else {
        if (facts.slots != 0) group.slots = facts.slots;
        if (facts.block_tokens != 0) group.block_tokens = facts.block_tokens;
        if (facts.kind == GroupKind::kStateCheckpoint) group.block_tokens = 1;
        if (facts.with != kNoGroup) group.slots = groups_[with].slots, group.pool = groups_[with].pool;
      }
      groups_.push_back(group);
    }
    for (const Group& group : groups_) stride_ = std::max(stride_, group.block_tokens);
    for (const Group& group : groups_) {
      std::vector<std::uint64_t>& cells = groups_[group.pool].cells;
      cells.resize(std::max(cells.size(), std::size_t{group.slots} * stride_ * options.layers), kPoison);
    }
  }

  /// Gives an entry to the executor; its ticket. Entries in the order in which the cache handed them out. `state`: of a
  /// load, that of the block's last position, which confirms what the tier has under the key.
  std::uint64_t submit(const StepEntry& entry, std::uint64_t state = 0) {
    const bool copy = entry.kind == StepKind::kCopy;
    if (entry.group >= groups_.size() || !there(entry.group, entry.slot) || entry.kind == StepKind::kStore ||
        (copy &&
         (!there(entry.group, entry.from_slot) || entry.tokens == 0 ||
          std::max(entry.from_offset, entry.offset) + entry.tokens > groups_[entry.group].block_tokens)))
      mistake("an entry names what is not there, slot " + std::to_string(entry.slot));
    else
      moves_.push_back({entry, next_ticket_, state, {}, 0, false});
    return next_ticket_++;
  }
  void launch(OracleStep step) {
    if (step.done.value <= launched_) mistake("steps must be launched with ascending points");
    launched_ = step.done.value;
    queue_.push_back({std::move(step), next_ticket_, ++launches_});
  }
  /// Something happens, if there is anything that can.
  void tick() {
    const auto at = static_cast<std::size_t>(random_() % (moves_.size() + 1));
    if (at < moves_.size()) {
      Move& m = moves_[at];
      if (m.started)
        finish(at);
      else if (reached(m.entry.not_before) && reached(m.entry.source_ready) && first_of_its_slots(at))
        start(m);
    } else if (running_) {
      finish_step();
    } else if (!queue_.empty()) {
      begin_step();
    }
  }
  /// Until all is carried out.
  void drain() {
    while (!queue_.empty()) tick();
    while (!moves_.empty()) carry_out(0);
  }
  /// The last step that is over.
  [[nodiscard]] Point done() const noexcept { return done_; }
  [[nodiscard]] bool idle() const noexcept { return queue_.empty() && moves_.empty(); }

  /// What was carried out since the last call, or some of it, in any order.
  [[nodiscard]] std::span<const StepResult> poll(std::span<StepResult> out) {
    std::size_t n = 0;
    for (; n < out.size() && !results_.empty(); ++n) {
      std::swap(results_[random_() % results_.size()], results_.back());
      out[n] = results_.back().first;
      if (results_.back().second != 0) told_[results_.back().second] = launches_;
      results_.pop_back();
    }
    return out.first(n);
  }

  /// What a step with this work would read if it were carried out now.
  void read(const OracleWork& work) {
    for_each_read(work,
                  [&](const std::uint64_t& c, std::uint64_t expected, std::uint32_t p, SlotId s, GroupId g) {
                    if (c != expected) wrong("matched", g, p, s, expected, c);
                  });
  }

  /// The host tier takes a block whose positions all are computed; `states` are those of its tokens.
  void offer(BlockKey key, std::span<const std::int32_t> slot_of_group,
             std::span<const std::uint64_t> states) {
    Block block{states.back(), {}};
    for (GroupId g = 0; g < group_count(); ++g)
      for (std::uint32_t i = 0; i < options_.block_tokens; ++i)
        for (std::uint32_t l = 0; l < options_.layers; ++l) {
          const std::uint64_t saw = cell(g, static_cast<SlotId>(slot_of_group[g]), i, l);
          if (saw != layered(states[i], g, l))
            wrong("offered", g, i, static_cast<SlotId>(slot_of_group[g]), layered(states[i], g, l), saw);
          block.cells.push_back(saw);
        }
    if (tier_.insert_or_assign({key.lo, key.hi}, std::move(block)).second)
      oldest_.push_back({key.lo, key.hi});
    if (oldest_.size() <= options_.tier_blocks) return;
    tier_.erase(oldest_.front());
    oldest_.pop_front();
  }
  [[nodiscard]] bool has(BlockKey key, std::uint64_t state) const {
    const auto at = tier_.find({key.lo, key.hi});
    return at != tier_.end() && at->second.state == state;
  }

 private:
  static constexpr std::uint64_t kPoison = 0xdeaddeaddeaddeadu;
  static constexpr std::uint64_t kVoid =
      0x766f696400000000u;  // plus the number of the failure that it rests on
  static constexpr std::uint64_t kUntold = std::numeric_limits<std::uint64_t>::max();
  using Key = std::pair<std::uint64_t, std::uint64_t>;

  struct Block {
    std::uint64_t state;
    std::vector<std::uint64_t> cells;
  };
  struct Move {
    StepEntry entry;
    std::uint64_t ticket;
    std::uint64_t state;
    std::vector<std::uint64_t> cells;  // what it will write
    std::uint32_t failure;             // 0: none
    bool started;
  };
  struct Group {
    KvGroup facts;       // of side data, of the group that it lies beside
    GroupId base, pool;  // whose table it has, and whose cells
    std::uint32_t slots, block_tokens;
    std::vector<std::uint64_t> cells;  // of a pool
  };
  struct Launched {
    OracleStep step;
    std::uint64_t tickets;  // those below were handed out before
    std::uint64_t number;
  };

  [[nodiscard]] std::uint64_t& cell(GroupId group, SlotId slot, std::uint32_t offset, std::uint32_t layer) {
    return groups_[groups_[group].pool]
        .cells[(std::size_t{slot} * stride_ + offset) * options_.layers + layer];
  }
  [[nodiscard]] bool there(GroupId group, SlotId slot) const noexcept {
    return slot < groups_[group].slots && (slot != 0 || !options_.null_slot);
  }
  [[nodiscard]] std::uint64_t layered(std::uint64_t state, GroupId group,
                                      std::uint32_t layer) const noexcept {
    return (state ^ (std::uint64_t{group} * options_.layers + layer)) * 0x9e3779b97f4a7c15u;
  }
  [[nodiscard]] bool reached(Point p) const noexcept {
    return p.value == 0 || (p.timeline == done_.timeline && p.value <= done_.value);
  }

  // ---- copies and loads --------------------------------------------------------------------------------------------

  /// One writes what the other reads or writes.
  [[nodiscard]] bool collide(const StepEntry& a, const StepEntry& b) const noexcept {
    return groups_[a.group].pool == groups_[b.group].pool &&
           (a.slot == b.slot || a.slot == b.from_slot || a.from_slot == b.slot);
  }
  [[nodiscard]] bool first_of_its_slots(std::size_t at) const noexcept {
    for (std::size_t i = 0; i < at; ++i)
      if (collide(moves_[i].entry, moves_[at].entry)) return false;
    return true;
  }
  void start(Move& m) {
    const StepEntry& e = m.entry;
    const bool copy = e.kind == StepKind::kCopy;
    bool fails = random_() % 1000 < (copy ? options_.copies_fail : options_.loads_fail);
    const std::uint32_t first = copy ? e.offset : 0, tokens = copy ? e.tokens : options_.block_tokens;
    if (!copy) {
      const auto at = tier_.find({e.key.lo, e.key.hi});
      if (at == tier_.end() || at->second.state != m.state)
        fails = true;
      else
        m.cells = at->second.cells;  // only where all groups have the same blocks
    } else {
      for_each_moved(e, e.from_slot, e.from_offset, tokens, [&](std::uint64_t& c, std::uint32_t offset) {
        m.cells.push_back(c);
        // Of a group that lags, what is copied may be computed later, and is then computed again.
        if (c == kPoison && groups_[e.group].facts.lag_tokens == 0)
          wrong("copied", e.group, offset, e.from_slot, 0, kPoison);
      });
    }
    if (fails) {
      m.failure = static_cast<std::uint32_t>(told_.size());
      told_.push_back(kUntold);
      m.cells.resize(m.cells.size() / 2 * (random_() % 2));
    }
    std::size_t all = 0;
    for_each_moved(e, e.slot, first, tokens, [&](std::uint64_t& c, std::uint32_t) { c = kPoison, ++all; });
    m.cells.resize(all, kVoid + m.failure);
    m.started = true;
  }
  void finish(std::size_t at) {
    const Move& m = moves_[at];
    const StepEntry& e = m.entry;
    const bool copy = e.kind == StepKind::kCopy, ok = m.failure == 0;
    std::size_t i = 0;
    for_each_moved(e, e.slot, copy ? e.offset : 0, copy ? e.tokens : options_.block_tokens,
                   [&](std::uint64_t& c, std::uint32_t) { c = m.cells[i++]; });
    ++(copy ? ok ? copies_done : copies_failed : ok ? loads_done : loads_failed);
    results_.push_back({{e, ok ? Status() : Status(StatusCode::kUnavailable, "told to fail")}, m.failure});
    moves_.erase(moves_.begin() + static_cast<std::ptrdiff_t>(at));
  }
  /// The cells of tokens from `offset` on of a slot: the entry's group's, and what lies beside it.
  template <class Fn>
  void for_each_moved(const StepEntry& e, SlotId slot, std::uint32_t offset, std::uint32_t tokens, Fn&& fn) {
    for (GroupId g = 0; g < group_count(); ++g)
      for (std::uint32_t i = 0; groups_[g].base == e.group && i < tokens; ++i)
        for (std::uint32_t l = 0; l < options_.layers; ++l) fn(cell(g, slot, offset + i, l), offset + i);
  }
  void carry_out(std::size_t at) {
    for (std::size_t i = 0; i < at;)
      if (collide(moves_[i].entry, moves_[at].entry))
        carry_out(i), --at;
      else
        ++i;
    Move& m = moves_[at];
    if (!m.started) {
      if (!reached(m.entry.not_before) || !reached(m.entry.source_ready))
        mistake("an entry has to be carried out before its point, slot " + std::to_string(m.entry.slot));
      start(m);
    }
    finish(at);
  }

  // ---- steps -------------------------------------------------------------------------------------------------------

  void begin_step() {
    const Launched& l = queue_.front();
    for (std::size_t i = 0; i < moves_.size();) {
      const Move& m = moves_[i];
      // What is read may be computed by this very step.
      const bool behind = m.entry.source_ready.value >= l.step.done.value;
      bool now = m.entry.kind == StepKind::kCopy && m.ticket < l.tickets && !behind;
      for (const OracleWork& w : l.step.work) now = now || std::ranges::count(w.loads, m.ticket) != 0;
      if (now) {
        carry_out(i);
        i = 0;  // others may have gone with it
      } else {
        ++i;
      }
    }
    for (const OracleWork& w : l.step.work) {
      if (!reached(w.not_before)) mistake("a step writes before its point");
      // To the end of the last block: whatever was there belongs to nobody any more.
      for_each_written(w, true, [](std::uint64_t& c, std::uint64_t) { c = kPoison; });
    }
    running_ = true;
  }
  void finish_step() {
    const Launched& l = queue_.front();
    std::vector<std::uint32_t> rests_on(l.step.work.size(), 0);
    for (std::size_t i = 0; i < l.step.work.size(); ++i) {
      const OracleWork& w = l.step.work[i];
      for_each_read(
          w, [&](const std::uint64_t& c, std::uint64_t expected, std::uint32_t p, SlotId s, GroupId g) {
            if (c == expected) return;
            const std::uint64_t failure = c - kVoid;
            if (failure > 0 && failure < told_.size() && l.number <= told_[failure])
              rests_on[i] = static_cast<std::uint32_t>(failure);
            else
              wrong("read", g, p, s, expected, c);
          });
    }
    for (std::size_t i = 0; i < l.step.work.size(); ++i) {
      const OracleWork& w = l.step.work[i];
      for_each_written(w, false, [&](std::uint64_t& c, std::uint64_t state) {
        c = rests_on[i] == 0 ? state : kVoid + rests_on[i];
      });
    }
    done_ = l.step.done;
    ++steps_run;
    queue_.pop_front();
    running_ = false;
  }
  [[nodiscard]] static std::pair<std::uint32_t, std::uint32_t> computed(const OracleWork& w, GroupId g) {
    return w.of_group.empty() ? std::pair{w.begin, w.end} : w.of_group[g];
  }
  template <class Fn>
  void for_each_read(const OracleWork& w, Fn&& fn) {
    for (GroupId g = 0; g < group_count(); ++g) {
      const KvGroup& facts = groups_[g].facts;
      const std::uint32_t end = computed(w, g).first, window = facts.window_tokens;
      if (facts.kind == GroupKind::kStateCheckpoint) {
        if (end > 0)
          for_each_layer(w, g, 0, 0, end - 1, fn);
        else if (w.tables[g].empty() || there(g, static_cast<SlotId>(w.tables[g][0])))
          mistake("a state before the first token");
        continue;
      }
      for (std::uint32_t p = window != 0 && end > window ? end - window : 0; p < end; ++p)
        for_each_layer(w, g, p / groups_[g].block_tokens, p % groups_[g].block_tokens, p, fn);
    }
  }
  template <class Fn>
  void for_each_written(const OracleWork& w, bool whole_blocks, Fn&& fn) {
    const auto write = [&](std::uint64_t& c, std::uint64_t state, std::uint32_t, SlotId, GroupId) {
      fn(c, state);
    };
    for (GroupId g = 0; g < group_count(); ++g) {
      const std::uint32_t block = groups_[g].block_tokens;
      const auto [begin, end] = computed(w, g);
      if (groups_[g].facts.kind == GroupKind::kStateCheckpoint) {
        for_each_layer(w, g, 1, 0, w.end - 1, write);
        continue;
      }
      const std::uint32_t until = whole_blocks && begin < end ? (end + block - 1) / block * block : end;
      for (std::uint32_t p = begin; p < until; ++p) for_each_layer(w, g, p / block, p % block, p, write);
    }
  }
  template <class Fn>
  void for_each_layer(const OracleWork& w, GroupId g, std::size_t entry, std::uint32_t offset,
                      std::uint32_t p, Fn&& fn) {
    const auto slot = entry < w.tables[g].size() ? static_cast<SlotId>(w.tables[g][entry]) : kNoSlot;
    if (!there(g, slot))
      return mistake("no slot of group " + std::to_string(g) + " for position " + std::to_string(p));
    for (std::uint32_t l = 0; l < options_.layers; ++l)
      fn(cell(g, slot, offset, l), p < w.states.size() ? layered(w.states[p], g, l) : 0, p, slot, g);
  }

  void wrong(const char* what, GroupId group, std::uint32_t position, SlotId slot, std::uint64_t expected,
             std::uint64_t saw) {
    const char* kind = saw == kPoison               ? "poison"
                       : saw - kVoid < told_.size() ? "a failed load's or copy's"
                                                    : "other";
    note(wrong_reads, "step " + std::to_string(done_.value + 1) + ": " + what + " in group " +
                          std::to_string(group) + " position " + std::to_string(position) + " in slot " +
                          std::to_string(slot) + ": " + kind + " (" + std::to_string(saw) + ") instead of " +
                          std::to_string(expected));
  }
  [[nodiscard]] GroupId group_count() const noexcept { return static_cast<GroupId>(groups_.size()); }
  void mistake(const std::string& text) { note(mistakes, text); }
  void note(std::uint64_t& count, const std::string& text) {
    ++count;
    if (first_error.empty()) first_error = text;
  }

  OracleOptions options_;
  std::mt19937_64 random_;
  std::vector<Group> groups_;
  std::uint32_t stride_ = 1;  // positions that a slot has room for, whatever group has it
  std::vector<Move> moves_;   // that are not over, in the order of their hand-out
  std::deque<Launched> queue_;
  bool running_ = false;  // the front of the queue
  Point done_{};
  std::uint64_t launched_ = 0, launches_ = 0, next_ticket_ = 1;
  std::vector<std::uint64_t> told_{0};  // by failure: launches before `poll` told it
  std::vector<std::pair<StepResult, std::uint32_t>> results_;
  std::map<Key, Block> tier_;
  std::deque<Key> oldest_;
};

}  // namespace kvstem::inline v0
