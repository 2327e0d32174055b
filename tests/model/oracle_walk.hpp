// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A random walk of an engine with a paged pool and a scheduler: everything that Lease can do in place, in any order, on a
// device that carries out steps, copies and loads late (kvstem/testing/oracle_engine.hpp).
//
// The device compares every position that it reads with what must be there. Beside it stands a model of what each lease
// was told, and of which blocks may be found: those whose tokens somebody committed, with their points reached and their
// loads and copies done. After every operation the cursors, the tables, the change records and the books are compared.
//
// An episode has one group of full attention, or several of all kinds. What a match may be is told exactly as long as
// nothing was evicted and no copy has failed, else as a bound; what it names is read at once.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cache_episode.hpp"
#include "kvstem/kvstem.hpp"
#include "kvstem/testing/oracle_engine.hpp"
#include "support/catch.hpp"
#include "support/ghost_policy.hpp"

namespace kvstem::test {

struct OracleConfig : Config {
  std::vector<KvGroup> groups;  // empty: one of full attention
  bool null_slot = false;
  std::size_t kind = 0;  // of kGroupSetNames
};
inline constexpr const char* kGroupSetNames[] = {
    "full",   "full+window", "full+window, one pool", "full+state", "full+window+state", "full+lagging",
    "window", "state",       "full+side data"};
inline constexpr std::size_t kGroupSets = std::size(kGroupSetNames);

enum class Act {
  kAcquire,
  kRefresh,
  kReserve,
  kPrefill,
  kAhead,
  kLearn,
  kDraft,
  kTree,
  kVerify,
  kOnboard,
  kFork,
  kTruncate,
  kRefused,
  kLaunch,
  kDevice,
  kReach,
  kComplete,
  kOffer,
  kRelease,
  kReleaseCold,
  kAbort,
  kPreempt,
  kStale,
  kCount
};
inline constexpr std::size_t kActs = static_cast<std::size_t>(Act::kCount);
inline constexpr const char* kActNames[kActs] = {
    "acquire",     "refresh",      "reserve", "prefill", "decode ahead", "append late",
    "draft chain", "draft tree",   "verify",  "onboard", "fork",         "truncate",
    "refused",     "launch",       "device",  "reach",   "complete",     "offer",
    "release",     "release cold", "abort",   "preempt", "stale"};

/// What happened in all episodes.
struct OracleTally {
  std::array<std::uint64_t, kActs> effective{};
  std::uint64_t operations = 0;
  std::uint64_t steps = 0, loads = 0, copies = 0, loads_failed = 0, copies_failed = 0;
  std::uint64_t hit_blocks = 0, evictions = 0, exhausted = 0, followed = 0, waited = 0;
  std::uint64_t copied_on_write = 0, copied_at_fork = 0, duplicates = 0, made_canonical = 0;
  std::uint64_t failed_under_work = 0, aborted_under_loads = 0, ended_before_loads = 0, released_waiting = 0;
  std::uint64_t truncated_published = 0, truncated_launched = 0, forks_waiting = 0, forks_refused = 0;
  std::uint64_t accepted_moved = 0, drafts_rejected = 0, gave_up = 0, preempted = 0, promises_checked = 0;
  std::uint64_t replayed_bytes = 0;
  std::array<std::uint64_t, kGroupSets> matches{}, exact_matches{};
  std::uint64_t states_published = 0, states_matched = 0, states_missed = 0, window_slots_back = 0;
  std::uint64_t others_copied = 0, shares_evicted = 0, ended_by_copy = 0, lag_recomputed = 0, boundaries = 0;
  std::uint64_t quoted = 0, quoted_later = 0, cuts_refused = 0;
};

/// Catch2's own macros are too slow for this many checks.
#define MUST(...)                                                                                            \
  do {                                                                                                       \
    if (!(__VA_ARGS__))                                                                                      \
      FAIL(kGroupSetNames[config_.kind] << ", seed " << config_.seed << ", operation " << operation_ << " (" \
                                        << kActNames[act_] << ", line " << __LINE__                          \
                                        << "): " #__VA_ARGS__ "; device: " << engine_->first_error);         \
  } while (false)

template <class Policy>
class OracleWalk {
  using C = BasicCache<Policy>;

  struct Pending {
    std::uint32_t to;
    std::uint64_t step;
  };
  struct Draft {
    std::uint32_t positions = 0;          // 0: none
    std::vector<std::uint32_t> accepted;  // ascending: where the tokens that the model confirms lie
    bool tree = false;
    std::uint64_t step = 0;
  };
  struct Request {
    BasicLease<Policy> lease;
    Text text;  // also the tokens that the model will choose
    OracleText states{0};
    bool live = false;  // has a lease, or is released and waits
    bool releasing = false;
    bool shared = false, started = false, forked = false;
    bool cut = false;  // the cache keeps no more of it
    bool waits = false;
    BlockKey waits_for{};
    bool inside_published = false;  // truncated to there
    bool kept_work = false;         // somebody else rests on its work in the open step
    std::uint32_t use = 0, prompt_tokens = 0, prompt_end = 0, matched = 0, known = 0, committed = 0,
                  reserved = 0, valid = 0;
    std::vector<Pending> pending;
    std::uint64_t last_step = 0;  // of its work
    std::uint32_t reads = 0;      // tokens that this work reads, and that were not given back since
    bool ahead = false;           // the position behind the known ones is computed in last_step
    std::uint64_t chosen_in = 0;  // the step that chooses that position's token
    Draft draft;
    std::set<std::pair<GroupId, std::uint32_t>> untaken;  // blocks that wait for entries of the next step
    std::map<std::uint32_t, std::pair<BlockKey, std::uint64_t>>
        loads;                                    // of those: key, state of the last position
    std::vector<std::vector<std::int32_t>> rows;  // of each group, as `delta` tells
    std::vector<std::uint32_t> computed;          // tokens that are computed in each group; it may lag
    std::uint32_t shown = 0;                      // the position whose state is named: at the last `reserve`
    bool armed = false;                           // has reserved since its last commit
    std::vector<std::uint32_t> waiting_states;    // at these positions, for their points
    std::uint32_t last_state = 0;                 // at the last block's end
  };
  struct Flying {
    StepEntry entry;
    std::uint64_t ticket;
    std::uint32_t request, use;
    bool orphan;  // the lease has let go of the block since
  };
  struct Present {
    BlockKey parent;
    std::uint32_t children = 0;
  };

 public:
  OracleWalk(const OracleConfig& config, OracleTally& tally)
      : config_(config), tally_(tally), random_(config.seed), texts_(config_, texts_tally_, random_) {}

  void run() {
    CacheOptions options;
    options.block_tokens = config_.block_tokens;
    options.slots = config_.slots;
    options.max_leases = config_.leases;
    options.max_lease_tokens = config_.row_blocks * config_.block_tokens;
    options.max_scopes = 3;
    options.groups = config_.groups;
    options.null_slot = config_.null_slot;
    options.max_runs = config_.max_runs;
    options.max_changes = 4096;
    options.secret = "model";
    options.flight_log = {[](void* user, std::span<const std::byte> bytes) {
                            auto& log = *static_cast<std::vector<std::byte>*>(user);
                            log.insert(log.end(), bytes.begin(), bytes.end());
                          },
                          &log_};
    groups_ = config_.groups;
    if (groups_.empty()) groups_.resize(1);
    for (const KvGroup& g : groups_) {
      primary_ = primary_ || plain(g);
      states_ = states_ || g.kind == GroupKind::kStateCheckpoint;
      grain_ = std::max(grain_, g.block_tokens / bt());
      several_ = several_ || (!plain(g) && g.kind != GroupKind::kSideData);
    }
    OracleOptions device;
    device.groups = config_.groups;
    device.null_slot = config_.null_slot;
    device.slots = config_.slots;
    device.block_tokens = config_.block_tokens;
    device.layers = 1 + below(2);
    device.tier_blocks = 4 * config_.slots;
    device.seed = config_.seed;
    device.loads_fail = below(3) * 150;
    copies_at_once_ = below(2) == 0;
    device.copies_fail = copies_at_once_ ? 0 : below(3) * 100;
    engine_ = std::make_unique<OracleEngine>(device);
    GhostPolicy::seen = {};
    auto created = C::create(options);
    MUST(created.ok());
    cache_ = std::move(*created);
    for (const char* salt : {"", "a", "b"}) {
      const Scope scope{.model = "m", .positions = {}, .adapter = {}, .salt = salt, .vocab_size = 1000};
      MUST(static_cast<std::uint32_t>(*cache_->open_scope(scope)) == root_keys_.size());
      root_keys_.push_back(*cache_->hasher().root(scope));
    }
    texts_.open(cache_->hasher(), root_keys_);
    requests_.resize(config_.leases);

    for (operation_ = 0; operation_ < config_.operations; ++operation_) {
      act_ = pick();
      const bool effective = act(static_cast<Act>(act_));
      settle();
      if (!effective) continue;
      check();
      ++tally_.effective[act_];
      ++tally_.operations;
    }
    // Everything ends: nothing may be left but what is published.
    for (Request& r : requests_)
      if (r.live && !r.releasing) end(r, Keep::kNormal, below(2) == 0), settle(), check();
    for (int i = 0; i < 3; ++i) {
      launch();
      settle();
      engine_->drain();
      reach(engine_->done().value);
      settle();
      while (complete()) settle();
      check();
    }
    MUST(flying_.empty() && cache_->audit().lease_pins == 0 && cache_->pool().held_slots() == 0);
    if (groups_.back().with == kNoGroup || !several_)
      MUST(cache_->pool().used_slots() == present_.size() + (primary_ && config_.null_slot));
    std::uint32_t pending = 0;
    for (std::uint32_t s = 0; s < root_keys_.size(); ++s)
      cache_->enumerate(ScopeId{s}, [&](RunId, const RunInfo& info) { pending += info.length - info.ready; });
    MUST(pending == 0);
    finish_tally();
    replay_log(options);
  }

 private:
  static constexpr std::uint32_t kQueue = 0;

  std::uint32_t below(std::uint32_t n) { return texts_.below(n); }
  std::uint32_t bt() const { return config_.block_tokens; }
  std::uint32_t blocks_for(std::uint32_t tokens) const { return (tokens + bt() - 1) / bt(); }
  static bool plain(const KvGroup& g) {
    return g.kind == GroupKind::kFullAttention && g.with == kNoGroup && g.block_tokens == 0;
  }
  bool state(GroupId g) const { return groups_[g].kind == GroupKind::kStateCheckpoint; }
  bool side(GroupId g) const { return groups_[g].kind == GroupKind::kSideData; }
  std::uint32_t bt(GroupId g) const { return groups_[g].block_tokens != 0 ? groups_[g].block_tokens : bt(); }
  std::uint32_t blocks_for(GroupId g, std::uint32_t tokens) const { return (tokens + bt(g) - 1) / bt(g); }
  bool null(std::int32_t entry) const { return entry == (config_.null_slot ? 0 : -1); }
  /// Calls `fn(group)` for each whose rows name places by position, but for side data.
  template <class Fn>
  void for_each_row(Fn&& fn) const {
    for (GroupId g = 0; g < groups_.size(); ++g)
      if (!state(g) && !side(g)) fn(g);
  }
  std::uint32_t most_tokens() const { return config_.row_blocks * bt(); }

  std::size_t pick() {
    static constexpr std::uint32_t kWeights[kActs] = {10, 6,  3,  18, 20, 28, 14, 16, 60, 200, 6, 10,
                                                      2,  10, 26, 9,  24, 8,  3,  2,  2,  2,   2};
    std::uint32_t all = 0;
    for (const std::uint32_t w : kWeights) all += w;
    std::uint32_t at = below(all);
    std::size_t act = 0;
    while (at >= kWeights[act]) at -= kWeights[act++];
    return act;
  }

  bool act(Act act) {
    switch (act) {
      case Act::kAcquire: return acquire();
      case Act::kLaunch: return launch(), true;
      case Act::kDevice: return device();
      case Act::kReach: return reach_one();
      case Act::kComplete: return complete();
      case Act::kPreempt: return preempt();
      case Act::kStale: return stale();
      default: break;
    }
    const std::uint32_t first = below(config_.leases);
    for (std::uint32_t i = 0; i < config_.leases; ++i) {
      Request& r = requests_[(first + i) % config_.leases];
      if (r.live && !r.releasing && act_on(act, r)) return true;
    }
    return false;
  }
  bool act_on(Act act, Request& r) {
    switch (act) {
      case Act::kRefresh: return refresh(r);
      case Act::kReserve: return reserve_ahead(r);
      case Act::kPrefill: return prefill(r);
      case Act::kAhead: return decode_ahead(r);
      case Act::kLearn: return learn(r);
      case Act::kDraft: return draft(r, false);
      case Act::kTree: return draft(r, true);
      case Act::kVerify: return verify(r);
      case Act::kOnboard: return onboard(r);
      case Act::kFork: return fork(r);
      case Act::kTruncate: return truncate(r);
      case Act::kRefused: return refused(r);
      case Act::kOffer: return offer(r);
      case Act::kRelease: return worn(r) && end(r, Keep::kNormal, false);
      case Act::kReleaseCold: return worn(r) && end(r, Keep::kCold, false);
      case Act::kAbort: return worn(r) && end(r, Keep::kNormal, true);
      default: return false;
    }
  }
  /// Most requests do something before they end.
  bool worn(const Request& r) { return r.committed > r.matched * bt() || below(8) == 0; }

  // ---- the model ---------------------------------------------------------------------------------------------------

  std::uint32_t present_blocks(const Text& text, std::uint32_t blocks) const {
    std::uint32_t b = 0;
    while (b < blocks && present_.count(text.keys[b]) != 0) ++b;
    return b;
  }
  std::uint32_t present_blocks(const Text& text) const {
    return present_blocks(text, static_cast<std::uint32_t>(text.keys.size()));
  }
  std::uint32_t clip(std::uint32_t blocks, std::uint32_t tokens) const {
    return std::min(blocks, tokens == 0 ? 0 : (tokens - 1) / bt());
  }
  std::uint32_t index(const Request& r) const { return static_cast<std::uint32_t>(&r - requests_.data()); }

  void extend_states(Request& r) {
    for (auto i = static_cast<std::uint32_t>(r.states.states().size()); i < r.text.tokens.size(); ++i) {
      std::uint64_t mark = 0;
      for (const Extra& e : r.text.extras)
        if (e.position == i) mark = mix(mark, 5000 + static_cast<std::uint64_t>(e.digest[0]));
      for (const ScopeChange& c : r.text.changes)
        if (c.position == i) mark = mix(mark, 7000 + static_cast<std::uint64_t>(c.scope));
      r.states.append(r.text.tokens[i], mark);
    }
  }
  /// Only the first n tokens are decided.
  void forget_future(Request& r, std::uint32_t n) {
    r.text.tokens.resize(n);
    r.text.digests.resize(n / bt());
    r.text.keys.resize(n / bt());
    r.states.truncate(n);
  }
  /// The model will choose these.
  void decide(Request& r, std::uint32_t until) {
    const auto have = static_cast<std::uint32_t>(r.text.tokens.size());
    if (have < until) texts_.add_tokens(r.text, until - have);
    extend_states(r);
  }

  bool flies(const Request& r) const {
    return std::ranges::any_of(
        flying_, [&](const Flying& f) { return f.request == index(r) && f.use == r.use && !f.orphan; });
  }
  /// Whole blocks whose tokens are committed and reached, and that no entry has still to fill.
  std::uint32_t solid_blocks(const Request& r) const {
    std::uint32_t blocks = r.valid / bt();
    const auto but = [&](GroupId g, std::uint32_t b) { blocks = std::min(blocks, b * bt(g) / bt()); };
    for (const auto& [g, b] : r.untaken) but(g, b);
    for (const Flying& f : flying_)
      if (f.request == index(r) && f.use == r.use && !f.orphan) but(f.entry.group, f.entry.block);
    return blocks;
  }

  /// Blocks of the first `blocks` that a match may cover: valid in all groups, as long as nothing has gone.
  std::uint32_t valid_blocks(const Text& text, std::uint32_t blocks, bool with_states) const {
    const auto valid = [&](std::uint32_t b) {
      if (b % grain_ != 0 || (with_states && states_ && states_there_.count(text.keys[b - 1]) == 0))
        return false;
      for (const KvGroup& g : groups_)
        for (std::uint32_t e = g.block_tokens; g.lag_tokens != 0 && e + g.lag_tokens <= b * bt();
             e += g.block_tokens)
          if (caught_up_.count(text.keys[e / bt() - 1]) == 0) return false;
      return true;
    };
    while (blocks > 0 && !valid(blocks)) --blocks;
    return blocks;
  }
  /// Nothing that was published has gone, and nothing is kept back by what is under way.
  bool exact() const {
    const CacheStats& s = cache_->stats();
    bool none = flying_.empty() && config_.max_runs == 0;
    for (const Request& r : requests_) none = none && r.untaken.empty();
    return none && s.evicted_blocks == 0 && s.evicted_shares == 0 && engine_->copies_failed == 0 &&
           !copies_flew_;
  }
  void publish_state(const Request& r, std::uint32_t tokens) {
    if (tokens == 0 || !r.shared || tokens > solid_blocks(r) * bt()) return;
    tally_.states_published += states_there_.insert(r.text.keys[tokens / bt() - 1]).second;
  }
  /// Shares of other groups that are everybody's now.
  void publish_shares(Request& r) {
    std::erase_if(r.waiting_states, [&](std::uint32_t tokens) {
      if (tokens > r.valid) return false;
      publish_state(r, tokens);
      return true;
    });
    const std::uint32_t solid = solid_blocks(r) * bt();
    for (const KvGroup& g : groups_)
      for (std::uint32_t e = g.block_tokens;
           g.lag_tokens != 0 && r.shared && e <= solid && e + g.lag_tokens <= r.valid; e += g.block_tokens)
        caught_up_.insert(r.text.keys[e / bt() - 1]);
  }
  void committed(Request& r, std::uint32_t n, std::uint64_t step) {
    r.committed += n;
    r.started = true;
    r.armed = r.armed && n == 0;
    if (states_ && n > 0 && r.shared && r.committed % bt() == 0) {
      if (r.lease.next_boundary(r.committed - 1) == r.committed && r.waiting_states.size() < 8)
        r.waiting_states.push_back(r.committed);
      else
        r.last_state = r.committed;
    }
    if (r.pending.empty() && step <= reached_)
      r.valid = r.committed;
    else if (!r.pending.empty() && r.pending.back().step >= step)
      r.pending.back().to = r.committed;
    else
      r.pending.push_back({r.committed, step});
  }
  void pass(Request& r) {
    while (!r.pending.empty() && r.pending.front().step <= reached_) {
      r.valid = std::max(r.valid, r.pending.front().to);
      r.pending.erase(r.pending.begin());
    }
  }
  /// What is committed behind n goes.
  void shorten(Request& r, std::uint32_t n) {
    r.committed = std::min(r.committed, n);
    r.reserved = std::min(r.reserved, n);
    r.valid = std::min(r.valid, n);
    std::uint32_t before = r.valid;
    std::erase_if(r.pending, [&](Pending& p) {
      p.to = std::min(p.to, n);
      return p.to == std::exchange(before, p.to);
    });
    r.reads = std::min(r.reads, n);
    r.ahead = false;
    r.draft = {};
    for (std::uint32_t& computed : r.computed) computed = std::min(computed, n);
    std::erase_if(r.untaken, [&](const auto& at) { return at.second >= blocks_for(at.first, n); });
    for (Flying& f : flying_)
      if (f.request == index(r) && f.use == r.use && f.entry.block >= blocks_for(f.entry.group, n))
        f.orphan = true;
  }
  void gone(Request& r) {
    if (!r.forked && (!given_up_)) ++ended_;
    publish_shares(r);
    publish_state(r, r.last_state);
    r.live = r.releasing = false;
  }

  /// After the cache was told: what was published, who is over.
  void settle() {
    take_changes();
    for (Request& r : requests_)
      if (r.live && r.releasing && r.pending.empty() && r.untaken.empty() && !flies(r)) gone(r);
    update_rows();
    for (Request& r : requests_)
      if (r.live && several_) publish_shares(r);
  }

  void take_changes() {
    Change records[64];
    for (;;) {
      const auto taken = cache_->take_changes(records);
      for (const Change& c : taken) {
        MUST(c.number == next_change_++);
        c.kind == ChangeKind::kStored ? on_stored(c) : on_removed(c);
      }
      if (taken.size() < 64) break;
    }
  }
  void on_stored(const Change& c) {
    MUST(present_.count(c.key) == 0);
    bool computed = false;  // by somebody who committed exactly these tokens, and whose points are reached
    for (const Request& r : requests_) {
      if (!r.live || !r.shared || computed) continue;
      const std::uint32_t solid = solid_blocks(r);
      for (std::uint32_t b = 0; b < solid && !computed; ++b)
        computed =
            r.text.keys[b] == c.key && c.parent == (b == 0 ? root_keys_[r.text.scope] : r.text.keys[b - 1]);
    }
    MUST(computed);
    const auto parent = present_.find(c.parent);
    MUST(parent != present_.end() ||
         std::find(root_keys_.begin(), root_keys_.end(), c.parent) != root_keys_.end());
    if (parent != present_.end()) ++parent->second.children;
    present_[c.key] = {c.parent};
  }
  void on_removed(const Change& c) {
    const auto at = present_.find(c.key);
    MUST(at != present_.end() && at->second.parent == c.parent);
    MUST(at->second.children == 0);  // leaf first
    present_.erase(at);
    const auto parent = present_.find(c.parent);
    if (parent != present_.end()) --parent->second.children;
  }

  /// A copy of each row, kept with `delta` alone.
  void update_rows() {
    for (Request& r : requests_) {
      if (!r.live || r.releasing) continue;
      r.rows.resize(groups_.size());
      for (GroupId g = 0; g < groups_.size(); ++g) {
        if (side(g)) continue;
        std::vector<std::int32_t>& row = r.rows[g];
        const auto table = r.lease.table(g);
        const BlockRange changed = r.lease.delta(g);
        MUST(changed.empty() || changed.end <= table.size());
        row.resize(table.size(), config_.null_slot ? 0 : -1);
        for (std::uint32_t b = changed.begin; b < changed.end; ++b) {
          tally_.made_canonical += (act_ == static_cast<std::size_t>(Act::kReach) ||
                                    act_ == static_cast<std::size_t>(Act::kComplete)) &&
                                   !null(row[b]) && !null(table[b]) && row[b] != table[b] &&
                                   b < r.committed / bt(g);
          tally_.window_slots_back += !state(g) && !null(row[b]) && null(table[b]);
          row[b] = table[b];
        }
        MUST(std::equal(table.begin(), table.end(), row.begin()));
      }
      for (GroupId g = 0; g < groups_.size(); ++g)
        if (side(g)) {
          const auto table = r.lease.table(g);
          MUST(std::equal(table.begin(), table.end(), r.rows[0].begin(), r.rows[0].end()));
        }
      // What is computed may rest on a copy that is under way, so no window passes it before it is told how that went.
      for (const Flying& f : flying_)
        if (f.request == index(r) && f.use == r.use && !f.orphan)
          MUST(f.entry.block < r.rows[f.entry.group].size() &&
               r.rows[f.entry.group][f.entry.block] == static_cast<std::int32_t>(f.entry.slot));
    }
  }

  // ---- requests ----------------------------------------------------------------------------------------------------

  bool acquire() {
    Text text = texts_.make();
    AcquireOptions how;
    how.session = below(3);
    how.now_ms = operation_;
    if (below(16) == 0) how.reuse = false;
    if (below(16) == 0) how.publish = false;
    const bool room = std::ranges::any_of(requests_, [](const Request& r) { return !r.live; });
    auto lease = cache_->acquire(text.prompt(), how);
    if (!room) {
      MUST(!lease.ok() && lease.status().code() == StatusCode::kExhausted);
      return false;
    }
    MUST(lease.ok());
    const auto tokens = static_cast<std::uint32_t>(text.tokens.size());
    const std::uint32_t before = how.reuse ? clip(present_blocks(text), tokens) : 0;
    Request& r = begin(std::move(*lease));
    r.shared = how.publish && how.reuse;
    r.text = std::move(text);
    r.states = OracleText(mix(1, r.text.scope));
    extend_states(r);
    r.prompt_tokens = r.prompt_end = r.known = tokens;
    const std::uint32_t now = r.lease.matched_tokens() / bt(), missed = r.lease.missed_tokens();
    MUST(now * bt() == r.lease.matched_tokens() && now <= before && now % grain_ == 0);
    MUST(missed >= now * bt() && missed <= before * bt());
    if (!several_) MUST(now == before);
    if (exact()) {
      MUST(now == valid_blocks(r.text, before, true));
      MUST(missed == valid_blocks(r.text, before, false) * bt());
      tally_.exact_matches[config_.kind] += now > 0;
    }
    tally_.matches[config_.kind] += now > 0;
    tally_.states_matched += states_ && now > 0;
    tally_.states_missed += missed > now * bt();
    matched(r, now);
    tally_.hit_blocks += now;
    read(r);
    texts_.recent.push_back(std::make_shared<Text>(r.text));
    if (texts_.recent.size() > 24) texts_.recent.erase(texts_.recent.begin() + below(24));
    return true;
  }
  Request& begin(BasicLease<Policy> lease) {
    MUST(lease.index() < requests_.size() && !requests_[lease.index()].live);
    Request& r = requests_[lease.index()];
    const std::uint32_t use = r.use + 1;
    if (!r.lease.live() && use > 1) ended_leases_.push_back(std::move(r.lease));
    if (ended_leases_.size() > 8) ended_leases_.erase(ended_leases_.begin());
    r = {};
    r.lease = std::move(lease);
    r.use = use;
    r.live = true;
    return r;
  }
  void matched(Request& r, std::uint32_t blocks) {
    r.matched = blocks;
    r.committed = r.reserved = r.valid = r.shown = blocks * bt();
    r.computed.assign(groups_.size(), r.committed);
    for_each_row([&](GroupId g) {
      if (groups_[g].lag_tokens == 0) return;
      r.computed[g] = std::min(r.committed, static_cast<std::uint32_t>(r.lease.table(g).size()) * bt(g));
      MUST(r.computed[g] + groups_[g].lag_tokens + bt(g) > r.committed);
      tally_.lag_recomputed += r.computed[g] < r.committed;
    });
  }
  /// What the lease was matched to lies where its tables say.
  void read(const Request& r) {
    if (engine_->done().value <= copied_in_) return;
    OracleWork work;
    for (GroupId g = 0; g < groups_.size(); ++g) {
      work.tables.push_back({r.lease.table(g).begin(), r.lease.table(g).end()});
      work.of_group.push_back({r.computed[g], r.computed[g]});
    }
    work.begin = work.end = r.committed;
    work.states.assign(r.states.states().begin(), r.states.states().begin() + r.committed);
    engine_->read(work);
  }

  bool refresh(Request& r) {
    if (r.started) return false;
    const Progress progress = r.lease.refresh();
    const std::uint32_t now = r.lease.matched_tokens() / bt();
    const std::uint32_t best = std::max(r.matched, clip(present_blocks(r.text), r.prompt_tokens));
    MUST(now >= r.matched && now <= best);
    if (r.shared && !r.cut && config_.max_runs == 0 && !several_) MUST(now == best);
    if (r.shared && exact() && several_) MUST(now == std::max(r.matched, valid_blocks(r.text, best, true)));
    MUST(r.lease.missed_tokens() >= r.lease.matched_tokens());
    MUST(progress.ready_tokens == now * bt());
    if (now > r.matched) ++tally_.followed;
    matched(r, now);
    read(r);
    r.waits = !progress.must_compute;
    tally_.waited += r.waits;
    // Somebody else is at what is waited for, or has not been told to wait for it.
    const std::uint32_t ready = present_blocks(r.text);
    if (r.waits) {
      r.waits_for = r.text.keys[ready];
      MUST(std::ranges::any_of(requests_, [&](const Request& other) {
        return &other != &r && other.live && other.shared && other.text.keys.size() > ready &&
               other.text.keys[ready] == r.waits_for &&
               (other.started || !other.waits || other.waits_for != r.waits_for);
      }));
    }
    return true;
  }

  /// Nothing is scheduled for a lease twice in a step, nor on top of what the open step computes.
  bool can_compute(const Request& r) const {
    return r.last_step < open_step_ && r.draft.positions == 0 && !r.ahead && r.pending.size() < 7;
  }

  bool reserve(Request& r, std::uint32_t n) {
    struct Inside {
      bool inside = false, held_by_others = false, used_by_others = false;
    };
    std::vector<Inside> was(groups_.size());
    for_each_row([&](GroupId g) {
      const std::uint32_t block = r.reserved / bt(g);
      if (r.reserved % bt(g) == 0 || block >= r.rows[g].size() || n == 0) return;
      was[g].inside = true;
      was[g].held_by_others =
          !plain(groups_[g]) || cache_->pool().holders(static_cast<SlotId>(r.rows[g][block])) > 1;
      was[g].used_by_others = std::ranges::any_of(requests_, [&](const Request& other) {
        return &other != &r && other.live && !other.releasing && other.rows[g].size() > block &&
               other.rows[g][block] == r.rows[g][block];
      });
    });
    const std::uint32_t own = present_blocks(r.text, r.known / bt());
    const std::size_t were = present_.size();
    const std::uint64_t shares = cache_->stats().evicted_shares;
    const bool copying = !flying_.empty() ||
                         std::ranges::any_of(requests_, [](const Request& o) { return !o.untaken.empty(); });
    const ReserveQuote quote = r.lease.quote(n);
    const Status status = r.lease.reserve(n);
    take_changes();
    using Verdict = ReserveQuote::Verdict;
    ++tally_.quoted;
    tally_.quoted_later += quote.verdict == Verdict::kLater;
    if (quote.verdict == Verdict::kNever)
      MUST(status.code() == StatusCode::kOutOfRange || (copying && !status.ok()));
    else if (quote.verdict ==
             Verdict::kLater)  // but that a block which only the tree shares may be taken back
      MUST(status.code() == StatusCode::kExhausted ||
           (status.ok() &&
            std::ranges::any_of(was, [](const auto& w) { return w.inside && w.held_by_others; })));
    else
      MUST(status.ok() || ((copying || config_.max_runs != 0) && status.code() == StatusCode::kExhausted));
    if (!status.ok()) {
      const bool never = blocks_for(r.reserved + n) > config_.slots - (config_.null_slot && primary_);
      MUST(status.code() == StatusCode::kExhausted || status.code() == StatusCode::kOutOfRange);
      if (!several_) MUST(status.code() == (never ? StatusCode::kOutOfRange : StatusCode::kExhausted));
      MUST(present_.size() == were && cache_->stats().evicted_shares == shares);
      ++tally_.exhausted;
      return false;
    }
    // With several groups what goes need not be what the lease gave up.
    if (present_blocks(r.text, r.known / bt()) < own || (several_ && quote.verdict == Verdict::kEvicts)) {
      tally_.gave_up += !r.cut;
      r.cut = true;
    }
    for_each_row([&](GroupId g) {
      if (!was[g].inside) return;
      const std::uint32_t block = r.reserved / bt(g);
      const bool copied = r.lease.table(g)[block] != r.rows[g][block];
      MUST(copied ? was[g].held_by_others : !was[g].used_by_others);
      if (!copied) return;
      r.untaken.insert({g, block});
      r.inside_published = false;
      ++(plain(groups_[g]) ? tally_.copied_on_write : tally_.others_copied);
    });
    r.reserved += n;
    r.started = r.armed = true;
    r.shown = r.committed;
    update_rows();
    return true;
  }
  bool reserve_to(Request& r, std::uint32_t end) {
    if (end > most_tokens()) return false;
    return (end <= r.reserved && !states_) || reserve(r, std::max(end, r.reserved) - r.reserved);
  }
  bool reserve_ahead(Request& r) {
    if (r.waits && !r.started && below(4) != 0) return false;
    return r.reserved < most_tokens() &&
           reserve(r, 1 + below(std::min(most_tokens() - r.reserved, 2 * bt())));
  }

  /// Positions [begin, begin + states.size()) in the open step.
  void compute(Request& r, std::uint32_t begin, std::span<const std::uint64_t> states, bool draft = false) {
    OracleWork work;
    for (GroupId g = 0; g < groups_.size(); ++g)
      work.tables.push_back({r.lease.table(g).begin(), r.lease.table(g).end()});
    work.begin = begin;
    work.end = begin + static_cast<std::uint32_t>(states.size());
    MUST(work.end <= r.reserved);
    for (GroupId g = 0; g < groups_.size(); ++g) {
      const bool lags = groups_[g].lag_tokens != 0;
      const std::uint32_t lag = draft ? 0 : groups_[g].lag_tokens, from = lags ? r.computed[g] : begin;
      const std::uint32_t to = work.end - (lags ? std::min(work.end, below(lag + 1)) : 0);
      work.of_group.push_back({from, std::max(from, to)});
      r.computed[g] = std::max(from, to);
    }
    work.states.assign(r.states.states().begin(), r.states.states().begin() + begin);
    work.states.insert(work.states.end(), states.begin(), states.end());
    work.not_before = r.lease.not_before();
    step_.work.push_back(std::move(work));
    owners_.push_back({index(r), r.use});
    r.last_step = open_step_;
    r.reads = begin;
  }
  void compute(Request& r, std::uint32_t begin, std::uint32_t end) {
    compute(r, begin, std::span(r.states.states()).subspan(begin, end - begin));
  }

  bool prefill(Request& r) {
    if (!can_compute(r) || r.committed == r.known) return false;
    if ((r.waits && !r.started && below(4) != 0) || (can_onboard(r) > 0 && below(12) != 0)) return false;
    const std::uint32_t left = r.known - r.committed, boundary = r.lease.next_boundary(r.committed);
    std::uint32_t n = below(2) == 0 ? left : 1 + below(left);
    if (boundary > r.committed && boundary <= r.known && below(4) != 0) {
      n = boundary - r.committed;
      ++tally_.boundaries;
    }
    if (!reserve_to(r, r.committed + n)) return false;
    compute(r, r.committed, r.committed + n);
    MUST(r.lease.commit(n, {kQueue, open_step_}).ok());
    committed(r, n, open_step_);
    return true;
  }

  /// One position more, whose token is not known here yet.
  bool decode_ahead(Request& r) {
    if (!can_compute(r) || r.committed < r.known || r.known == 0 || r.known == most_tokens()) return false;
    if (!reserve_to(r, r.known + 1)) return false;
    decide(r, r.known + 1);
    r.chosen_in = r.last_step;
    compute(r, r.known, r.known + 1);
    r.ahead = true;
    return true;
  }
  bool learn(Request& r) {
    if (!r.ahead || engine_->done().value < r.chosen_in) return false;
    append(r, 1);
    MUST(r.lease.commit(1, {kQueue, r.last_step}).ok());
    committed(r, 1, r.last_step);
    r.ahead = false;
    return true;
  }
  void append(Request& r, std::uint32_t n) {
    MUST(r.lease.append(std::span<const TokenId>(r.text.tokens).subspan(r.known, n)).ok());
    r.known += n;
    if (below(4) == 0) {
      auto seen = std::make_shared<Text>(r.text);
      seen->tokens.resize(r.known);
      seen->digests.resize(r.known / bt());
      seen->keys.resize(r.known / bt());
      texts_.recent.push_back(std::move(seen));
    }
  }

  /// Guesses for the next positions, of which the model will confirm some: the first ones of a chain, or a path of a tree.
  bool draft(Request& r, bool tree) {
    if (!can_compute(r) || r.committed < r.known || r.known == 0) return false;
    const std::uint32_t n = std::min(most_tokens() - r.known, 1 + below(bt() + 6));
    if (n == 0 || !reserve_to(r, r.known + n)) return false;
    decide(r, r.known + n);
    Draft d{.positions = n, .accepted = {}, .tree = tree, .step = open_step_};
    std::vector<std::uint64_t> states;
    const std::uint64_t trunk = r.states.states()[r.known - 1];
    const std::uint32_t right = below(n + 1);
    for (std::uint32_t i = 0; i < n; ++i) {
      if (tree ? below(2) == 0 : i < right) {
        states.push_back(r.states.states()[r.known + d.accepted.size()]);
        d.accepted.push_back(i);
      } else {
        const std::uint64_t parent = i == 0 || (tree && below(3) == 0) ? trunk : states[i - 1];
        states.push_back(OracleText::next(parent, static_cast<TokenId>(2000 + below(100))));
      }
    }
    compute(r, r.known, states, true);
    r.draft = std::move(d);
    return true;
  }
  bool verify(Request& r) {
    if (r.draft.positions == 0 || engine_->done().value < r.draft.step) return false;
    const Draft d = std::exchange(r.draft, {});
    auto n = static_cast<std::uint32_t>(d.accepted.size());
    if (n > 0 && below(4) == 0) n = below(n + 1);  // a stop condition
    // A state stands behind all of the draft.
    const bool all = n == d.positions;
    if (states_ && !all && n > 0 && d.tree) {
      append(r, n);
      const std::span offsets(d.accepted.data(), n);
      if (offsets.back() + 1 != n)
        MUST(r.lease.commit_accepted(offsets, {kQueue, d.step}).code() == StatusCode::kUnsupported);
      MUST(r.lease.truncate(r.committed).ok());
      r.known = r.committed;
      shorten(r, r.known);
    }
    if (states_ && !all) n = 0;
    tally_.drafts_rejected += n < d.positions;
    for (std::uint32_t& computed : r.computed) computed = std::min(computed, r.committed + n);
    if (n == 0) return true;
    append(r, n);
    const std::span offsets(d.accepted.data(), n);
    const Point done{kQueue, d.step};
    MUST((d.tree ? r.lease.commit_accepted(offsets, done) : r.lease.commit(n, done)).ok());
    for (std::uint32_t i = 0; i < n; ++i)
      if (offsets[i] != i) {
        for_each_row([&](GroupId g) { r.untaken.insert({g, (r.committed + i) / bt(g)}); });
        ++tally_.accepted_moved;
      }
    committed(r, n, d.step);
    return true;
  }

  /// Blocks that come next and that the host tier has.
  std::uint32_t can_onboard(const Request& r) const {
    if (several_ || r.ahead || r.draft.positions != 0 || r.reserved != r.committed ||
        r.committed % bt() != 0 || r.pending.size() >= 7)
      return 0;
    const std::uint32_t first = r.committed / bt();
    std::uint32_t b = first;
    while ((b + 1) * bt() < r.known && engine_->has(r.text.keys[b], r.states.states()[(b + 1) * bt() - 1]))
      ++b;
    return b - first;
  }
  bool onboard(Request& r) {
    const std::uint32_t can = can_onboard(r);
    if (can == 0) return false;
    const std::uint32_t first = r.committed / bt(), b = first + 1 + below(can);
    const std::uint32_t own = present_blocks(r.text, r.known / bt());
    const std::size_t were = present_.size();
    const Status status = r.lease.onboard((b - first) * bt());
    take_changes();
    if (!status.ok()) {
      MUST(present_.size() == were);
      if (status.code() == StatusCode::kWrongState)
        MUST(!r.shared || r.cut || config_.max_runs != 0);
      else
        MUST(status.code() == (b > config_.slots ? StatusCode::kOutOfRange : StatusCode::kExhausted));
      tally_.exhausted += status.code() == StatusCode::kExhausted;
      return false;
    }
    if (present_blocks(r.text, r.known / bt()) < own) {
      tally_.gave_up += !r.cut;
      r.cut = true;
    }
    for (std::uint32_t i = first; i < b; ++i) {
      r.untaken.insert({GroupId{0}, i});
      r.loads[i] = {r.text.keys[i], r.states.states()[(i + 1) * bt() - 1]};
    }
    r.reserved = b * bt();
    r.computed.assign(groups_.size(), r.reserved);
    committed(r, (b - first) * bt(), 0);
    return true;
  }
  bool offer(Request& r) {
    const std::uint32_t solid = solid_blocks(r);
    if (several_ || solid == 0 || engine_->done().value <= copied_in_) return false;
    for (std::uint32_t b = 0; b < solid; ++b) {
      const std::vector<std::int32_t> slots(groups_.size(), r.lease.table(0)[b]);
      engine_->offer(r.text.keys[b], slots, std::span(r.states.states()).subspan(b * bt(), bt()));
    }
    return true;
  }

  bool fork(Request& r) {
    const bool room = std::ranges::any_of(requests_, [](const Request& other) { return !other.live; });
    const bool flying = flies(r) || !r.untaken.empty(), prompt = r.committed >= r.prompt_end;
    const bool ahead = r.reserved > r.committed;
    // A group that trails is brought up before, in a step that was committed: else both would write it, or copy too early.
    const bool lag_settled =
        reached_ >= r.last_step || (!r.pending.empty() && r.pending.back().step >= r.last_step);
    for (GroupId g = 0; g < groups_.size(); ++g)
      if (groups_[g].lag_tokens != 0 && (r.computed[g] < r.committed || !lag_settled)) return false;
    auto forked = r.lease.fork();
    if (!forked.ok()) {
      const StatusCode code = forked.status().code();
      if (flying || !prompt)
        MUST(code == StatusCode::kWrongState || (!room && code == StatusCode::kExhausted));
      else
        MUST(code == StatusCode::kExhausted && (!room || ahead));
      tally_.forks_refused += flying;
      return false;
    }
    MUST(room && !flying && prompt);
    Request& child = begin(std::move(*forked));
    child.text = r.text;
    child.states = r.states;
    child.forked = true;
    child.shared = r.shared;
    child.cut = r.cut;
    child.started = true;
    child.prompt_tokens = child.prompt_end = child.known = child.committed = child.reserved = r.committed;
    child.valid = r.valid;
    child.pending = r.pending;
    child.last_step = r.last_step;
    child.matched = child.lease.matched_tokens() / bt();
    if (r.last_step == open_step_ && !r.ahead && r.draft.positions == 0) r.kept_work = true;
    child.shown = r.committed;
    child.computed.assign(groups_.size(), r.committed);
    bool copies = false;
    for_each_row([&](GroupId g) {
      if (!ahead || r.committed % bt(g) == 0) return;
      child.untaken.insert({g, r.committed / bt(g)});
      copies = true;
      tally_.others_copied += !plain(groups_[g]);
    });
    if (below(2) == 0) forget_future(child, child.known);
    tally_.copied_at_fork += copies;
    tally_.forks_waiting += !r.pending.empty();
    return true;
  }

  /// Whether a load of the block waits or is under way.
  bool loading(const Request& r, std::uint32_t b) const {
    return (r.untaken.count({GroupId{0}, b}) != 0 && r.loads.count(b) != 0) ||
           std::ranges::any_of(flying_, [&](const Flying& f) {
             return f.entry.kind == StepKind::kLoad && f.entry.block == b && !f.orphan &&
                    f.request == index(r) && f.use == r.use;
           });
  }

  bool truncate(Request& r) {
    if (r.known <= r.prompt_end || (r.last_step == open_step_ && below(2) == 0)) return false;
    const std::uint32_t n = r.prompt_end + below(r.known - r.prompt_end + 1);
    const bool inside = n % bt() != 0 && n / bt() < present_blocks(r.text, r.known / bt());
    const bool mine = inside && solid_blocks(r) > n / bt();
    bool gone = states_ && n < r.committed;
    for_each_row([&](GroupId g) {
      const std::uint32_t window = groups_[g].window_tokens,
                          first = window == 0 || n < window ? 0 : n - window;
      const std::vector<std::int32_t>& row = r.rows[g];
      const auto nulls = std::ranges::find_if(row, [&](std::int32_t e) { return !null(e); }) - row.begin();
      gone = gone || static_cast<std::ptrdiff_t>(first / bt(g)) < nulls;
    });
    if (gone) {
      MUST(r.lease.truncate(n).code() == StatusCode::kWrongState);
      ++tally_.cuts_refused;
      return false;
    }
    if (n % bt() != 0 && n < r.reserved && loading(r, n / bt())) {
      MUST(r.lease.truncate(n).code() == StatusCode::kWrongState);
      return false;
    }
    tally_.truncated_published += mine;
    tally_.truncated_launched += n < r.committed && r.last_step > engine_->done().value;
    MUST(r.lease.truncate(n).ok());
    r.known = n;
    shorten(r, n);
    // What trailed may have been computed by a step that is no commit of this lease any more: once more.
    for (GroupId g = 0; g < groups_.size(); ++g)
      if (const std::uint32_t lag = groups_[g].lag_tokens; lag != 0)
        r.computed[g] = std::min(r.computed[g], std::max(n - std::min(n, lag), n - n % bt(g)));
    if (!r.kept_work) drop_work({index(r), r.use}, n);
    r.inside_published = r.inside_published || mine;
    if (below(2) == 0) forget_future(r, n);
    return true;
  }

  /// Calls that must be refused, and change nothing.
  bool refused(Request& r) {
    const Audit before = cache_->audit();
    const auto is = [](const Status& s, StatusCode code) { return s.code() == code; };
    const std::uint32_t reserved = r.reserved - r.committed, known = r.known - r.committed;
    if (r.prompt_end > 0) MUST(is(r.lease.truncate(below(r.prompt_end)), StatusCode::kOutOfRange));
    MUST(is(r.lease.truncate(r.known + 1 + below(3)), StatusCode::kOutOfRange));
    MUST(is(r.lease.reserve(most_tokens() - r.reserved + 1), StatusCode::kOutOfRange));
    MUST(is(r.lease.commit(std::min(known, reserved) + 1), StatusCode::kOutOfRange));
    const std::uint32_t behind[] = {reserved}, twice[] = {0, 0};
    MUST(is(r.lease.commit_accepted(behind), StatusCode::kOutOfRange));
    if (known >= 2 && reserved >= 2) MUST(is(r.lease.commit_accepted(twice), StatusCode::kInvalidArgument));
    if (several_) MUST(is(r.lease.onboard(bt()), StatusCode::kUnsupported));
    if (states_ && known > 0 && reserved > 0 && !r.armed)
      MUST(is(r.lease.commit(1), StatusCode::kWrongState));
    if (bt() > 1) MUST(!r.lease.onboard(1).ok());
    if (!several_ && r.reserved > r.committed) MUST(is(r.lease.onboard(bt()), StatusCode::kWrongState));
    if (!several_ && r.reserved == r.committed && r.committed % bt() == 0 && known > 0)
      MUST(is(r.lease.onboard(blocks_for(known) * bt()), StatusCode::kOutOfRange));
    const TokenId bad[] = {1000};
    MUST(is(r.lease.append(bad), StatusCode::kOutOfRange));
    const Audit after = cache_->audit();
    MUST(before.free == after.free && before.held == after.held && before.lease_slots == after.lease_slots &&
         before.step_slots == after.step_slots && before.lease_pins == after.lease_pins);
    return true;
  }

  bool end(Request& r, Keep keep, bool abort) {
    take_rows(r);
    const bool flying = flies(r);
    const bool waits = !r.pending.empty() || flying || !r.untaken.empty();
    // What nobody waits for is not launched: who shared the slots may write into them now.
    const bool idle = r.ahead || r.draft.positions != 0;
    if ((abort || idle) && !r.kept_work) drop_work({index(r), r.use});
    if (abort) {
      tally_.aborted_under_loads += flying;
      tally_.ended_before_loads += !r.untaken.empty();
    } else {
      tally_.released_waiting += waits;
    }
    given_up_ = abort && !r.started;
    if (abort && below(2) == 0)
      r.lease = BasicLease<Policy>();  // a lease that goes out of scope
    else if (abort)
      MUST(r.lease.abort().ok());
    else
      MUST(r.lease.release({.keep = keep}).ok());
    MUST(!r.lease.live() && r.lease.release().code() == StatusCode::kStale && r.lease.table(0).empty());
    if (abort || !waits) {
      take_changes();
      r.untaken.clear();
      gone(r);
    } else {
      r.releasing = true;
    }
    given_up_ = false;
    return true;
  }
  /// Of the step that was not launched yet, what rests on positions from n on.
  void drop_work(std::pair<std::uint32_t, std::uint32_t> owner, std::uint32_t n = 0) {
    for (std::size_t i = owners_.size(); i-- > 0;) {
      if (owners_[i] != owner || step_.work[i].begin < n) continue;
      // A group that trails would have gone over positions before n.
      if (Request& r = requests_[owner.first]; r.use == owner.second)
        for (GroupId g = 0; g < groups_.size(); ++g)
          r.computed[g] = std::min(r.computed[g], step_.work[i].of_group[g].first);
      owners_.erase(owners_.begin() + static_cast<std::ptrdiff_t>(i));
      step_.work.erase(step_.work.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }

  /// Slots that leases hold, or the tree for them: what nobody else can have.
  std::uint32_t out_of_reach() const {
    const Audit audit = cache_->audit();
    std::set<std::pair<std::uint64_t, std::uint64_t>> pinned;
    for (const Request& r : requests_)
      for (std::uint32_t b = 0, n = r.live ? present_blocks(r.text, r.known / bt()) : 0; b < n; ++b)
        pinned.insert({r.text.keys[b].lo, r.text.keys[b].hi});
    return audit.used - audit.tree_slots + static_cast<std::uint32_t>(pinned.size());
  }
  /// Whoever holds most must go.
  bool preempt() {
    Request* victim = nullptr;
    std::uint32_t most = 0;
    for (Request& r : requests_)
      if (r.live && !r.releasing && r.lease.exclusive_slots() > most)
        victim = &r, most = r.lease.exclusive_slots();
    if (victim == nullptr || (cache_->pool().free_slots() > 2 && below(4) != 0)) return false;
    ++tally_.preempted;
    bool exact =
        !several_ && cache_->audit().step_slots == 0 && victim->pending.empty() && config_.max_runs == 0;
    for (const Request& r : requests_)
      if (r.live) exact = exact && r.shared && !r.cut && !r.inside_published;
    const std::uint32_t before = out_of_reach();
    end(*victim, Keep::kNormal, false);
    settle();
    launch();
    settle();
    if (exact) {
      ++tally_.promises_checked;
      MUST(before - out_of_reach() == most);
    }
    return true;
  }

  /// What the lease's work in the open step reads may lie elsewhere since it was scheduled: in the slots of whoever published
  /// it first.
  void take_rows(const Request& r) {
    for (std::size_t i = 0; i < owners_.size() && r.lease.live(); ++i) {
      if (owners_[i] != std::pair{index(r), r.use}) continue;
      OracleWork& work = step_.work[i];
      for (GroupId g = 0; g < groups_.size(); ++g)
        for (std::uint32_t b = 0; !state(g) && b < std::min(r.reads, work.of_group[g].first) / bt(g); ++b)
          if (const std::int32_t now = r.lease.table(g)[b]; !null(now)) work.tables[g][b] = now;
    }
  }

  // ---- steps -------------------------------------------------------------------------------------------------------

  void launch() {
    StepEntry room[16];
    for (;;) {
      const auto taken = cache_->take_step({room, 1 + below(16)});
      if (taken.empty()) break;
      for (const StepEntry& e : taken) {
        MUST(e.lease < config_.leases && e.group < groups_.size() && e.kind != StepKind::kStore);
        const Request& r = requests_[e.lease];
        MUST(r.live);
        const bool load = e.kind == StepKind::kLoad;
        if (load) MUST(r.loads.count(e.block) != 0 && e.key == r.loads.at(e.block).first);
        const std::uint64_t ticket = engine_->submit(e, load ? r.loads.at(e.block).second : 0);
        flying_.push_back({e, ticket, e.lease, r.use, r.untaken.count({e.group, e.block}) == 0});
        copies_flew_ = copies_flew_ || !load;
      }
    }
    for (Request& r : requests_) r.untaken.clear(), r.loads.clear(), r.kept_work = false;
    for (std::size_t i = 0; i < owners_.size(); ++i) {
      const auto [request, use] = owners_[i];
      for (const Flying& f : flying_)
        if (f.entry.kind == StepKind::kLoad && owners_[i] == std::pair{f.request, f.use})
          step_.work[i].loads.push_back(f.ticket);
      if (requests_[request].use == use) take_rows(requests_[request]);
    }
    step_.done = {kQueue, open_step_};
    engine_->launch(std::exchange(step_, {}));
    owners_.clear();
    if (copies_at_once_)
      for (const Flying& f : std::vector(flying_))
        if (f.entry.kind == StepKind::kCopy) told({f.entry, Status()}), copied_in_ = open_step_;
    MUST(cache_->end_step({kQueue, open_step_}).ok());
    ++open_step_;
  }
  bool device() {
    if (engine_->idle()) return false;
    for (std::uint32_t i = 1 + below(4); i > 0; --i) engine_->tick();
    return true;
  }
  void reach(std::uint64_t step) {
    reached_ = step;
    for (Request& r : requests_)
      if (r.live) pass(r);
    MUST(cache_->reach({kQueue, step}).ok());
  }
  bool reach_one() {
    const std::uint64_t done = engine_->done().value;
    if (done == reached_ || ended_in_step()) return false;
    reach(reached_ + 1 + below(static_cast<std::uint32_t>(done - reached_)));
    return true;
  }
  /// The open step has work of a lease that was released: its row may change now, and it cannot be asked for it.
  bool ended_in_step() const {
    return std::ranges::any_of(owners_, [&](const auto& owner) {
      return !requests_[owner.first].lease.live() || requests_[owner.first].use != owner.second;
    });
  }
  bool complete() {
    if (ended_in_step()) return false;
    StepResult results[4];
    const auto polled = engine_->poll({results, 1 + below(4)});
    bool any = false;
    for (const StepResult& result : polled) {
      if (result.entry.kind == StepKind::kCopy && copies_at_once_) continue;
      told(result);
      any = true;
    }
    return any || !polled.empty();
  }
  void told(const StepResult& result) {
    const StepEntry& e = result.entry;
    const auto at = std::ranges::find_if(flying_, [&](const Flying& f) { return same(f.entry, e); });
    MUST(at != flying_.end());
    const Flying f = *at;
    flying_.erase(at);
    Request& r = requests_[f.request];
    if (r.live && r.use == f.use && !f.orphan && !result.status.ok()) {
      const std::uint32_t begin = e.block * bt(e.group);
      tally_.failed_under_work += r.committed > begin + bt() || r.last_step >= engine_->done().value;
      if (several_) {  // there may be nothing to go on from
        r.pending.clear();
        gone(r);
        ++tally_.ended_by_copy;
      } else {
        shorten(r, begin);
      }
    }
    if (!result.status.ok() && !f.orphan) drop_work({f.request, f.use});
    MUST(cache_->complete(result).ok());
    if (several_ && !r.live && r.use == f.use) {
      MUST(!r.lease.live());
      r.untaken.clear();
    }
    settle();
    completed_.push_back(e);
    if (completed_.size() > 16) completed_.erase(completed_.begin());
  }
  static bool same(const StepEntry& a, const StepEntry& b) {
    return a.kind == b.kind && a.group == b.group && a.lease == b.lease && a.generation == b.generation &&
           a.block == b.block && a.slot == b.slot && a.from_slot == b.from_slot && a.offset == b.offset &&
           a.from_offset == b.from_offset && a.tokens == b.tokens;
  }

  /// What is over is told again, and used again.
  bool stale() {
    if (completed_.empty() || ended_leases_.empty()) return false;
    const StepEntry e = completed_[below(static_cast<std::uint32_t>(completed_.size()))];
    if (!std::ranges::any_of(flying_, [&](const Flying& f) {
          return f.entry.slot == e.slot && f.entry.lease == e.lease && f.entry.generation == e.generation;
        }))
      MUST(
          cache_->complete({e, below(2) == 0 ? Status() : Status(StatusCode::kUnavailable, "late")}).code() ==
          StatusCode::kStale);
    BasicLease<Policy>& lease = ended_leases_[below(static_cast<std::uint32_t>(ended_leases_.size()))];
    const std::uint32_t offset[] = {0};
    const TokenId token[] = {1};
    for (const Status& status : {lease.fork().status(), lease.truncate(0), lease.commit(0), lease.reserve(1),
                                 lease.commit_accepted(offset), lease.onboard(bt()), lease.append(token),
                                 lease.release(), lease.abort()})
      MUST(status.code() == StatusCode::kStale);
    MUST(lease.delta().empty() && lease.exclusive_slots() == 0 && lease.table(0).empty());
    return true;
  }

  // ---- checks ------------------------------------------------------------------------------------------------------

  void check() {
    MUST(engine_->wrong_reads == 0);
    MUST(engine_->mistakes == 0);
    const Audit audit = cache_->audit();
    MUST(audit.balanced());
    MUST(audit.ready_blocks == present_.size() && cache_->stats().lost_changes == 0);
    std::uint32_t live = 0;
    for (const Request& r : requests_) live += r.live;
    MUST(audit.lease_pins == live);
    MUST(cache_->stats().requests == ended_);
    for (const Request& r : requests_) {
      if (!r.live || r.releasing) continue;
      MUST(r.lease.live());
      MUST(r.lease.known_tokens() == r.known);
      MUST(r.lease.committed_tokens() == r.committed);
      MUST(r.lease.reserved_tokens() == r.reserved);
      for_each_row([&](GroupId g) {
        if (groups_[g].lag_tokens == 0 || r.started) MUST(r.rows[g].size() == blocks_for(g, r.reserved));
      });
      MUST(r.lease.missed_tokens() >= r.lease.matched_tokens());
    }
    if (operation_ % 4 != 0) return;
    // A slot is named for one prefix only.
    struct Use {
      const Request* request = nullptr;
      GroupId group = 0;
      std::uint32_t block = 0, tokens = 0;
    };
    std::map<std::pair<GroupId, std::int32_t>, Use> uses;
    for (const Request& r : requests_) {
      if (!r.live || r.releasing) continue;
      for (GroupId g = 0; g < groups_.size(); ++g) {
        if (side(g)) continue;
        const GroupId pool = groups_[g].with != kNoGroup ? groups_[g].with : g;
        const std::uint32_t slots = groups_[pool].slots != 0 ? groups_[pool].slots : config_.slots;
        const std::uint32_t end =
            state(g) ? r.shown > 0 && r.shown == r.committed : blocks_for(g, r.committed);
        for (std::uint32_t b = 0; b < std::min<std::size_t>(end, r.rows[g].size()); ++b) {
          const std::int32_t slot = r.rows[g][b];
          if (null(slot)) {
            MUST(groups_[g].window_tokens != 0 && (b + 1) * bt(g) + groups_[g].window_tokens <= r.committed);
            continue;
          }
          MUST(slot >= 0 && static_cast<std::uint32_t>(slot) < slots);
          if (plain(groups_[pool])) MUST(cache_->pool().holders(static_cast<SlotId>(slot)) > 0);
          Use& use = uses[{pool, slot}];
          const std::uint32_t begin = state(g) ? 0 : b * bt(g);
          const std::uint32_t tokens = state(g) ? r.shown : std::min(r.committed - begin, bt(g));
          if (use.request != nullptr) {
            MUST(use.block == b && use.group == g && (!state(g) || tokens == use.tokens));
            const std::uint32_t both = begin + std::min(tokens, use.tokens) - 1;
            MUST(use.request->states.states()[both] == r.states.states()[both]);
          }
          if (tokens > use.tokens) use = {&r, g, b, tokens};
        }
      }
      // What is whole and reached is found, unless the cache had no room for it.
      // (With several groups it may have let go of blocks that it could not use, which nobody sees.)
      if (r.shared && !r.cut && config_.max_runs == 0 && !several_)
        MUST(present_blocks(r.text, solid_blocks(r)) == solid_blocks(r));
    }
    if constexpr (std::is_same_v<Policy, GhostPolicy>) MUST(GhostPolicy::seen.contradictions == 0);
  }

  void finish_tally() {
    const CacheStats& s = cache_->stats();
    tally_.duplicates += s.duplicate_blocks;
    tally_.evictions += s.evicted_blocks;
    tally_.shares_evicted += s.evicted_shares;
    tally_.steps += engine_->steps_run;
    tally_.loads += engine_->loads_done;
    tally_.copies += engine_->copies_done;
    tally_.loads_failed += engine_->loads_failed;
    tally_.copies_failed += engine_->copies_failed;
  }

  void replay_log(CacheOptions options) {
    std::vector<std::byte> again;
    options.replayed = options.mode;
    options.mode = IndexMode::kNothing;
    options.max_changes = 0;
    options.flight_log.user = &again;
    GhostPolicy::seen = {};
    auto cache = C::create(options);
    MUST(cache.ok());
    const Status status = replay(log_, **cache);
    INFO("seed " << config_.seed << ": " << status.message() << ", " << again.size() << " of " << log_.size()
                 << " bytes");
    if (!status.ok() || again != log_) FAIL("the flight log does not replay");
    MUST((*cache)->audit().balanced());
    MUST((*cache)->stats().evicted_blocks == cache_->stats().evicted_blocks);
    MUST((*cache)->decisions() == cache_->decisions());
    tally_.replayed_bytes += log_.size();
  }

  OracleConfig config_;
  std::vector<KvGroup> groups_;
  bool primary_ = false;  // one of full attention is what the tree is built on
  bool several_ = false;  // others beside it, or none like it
  bool states_ = false;   // of which the last
  std::uint32_t grain_ = 1;
  OracleTally& tally_;
  Tally texts_tally_;
  std::mt19937_64 random_;
  Texts texts_;
  std::uint32_t operation_ = 0;
  std::size_t act_ = 0;
  std::vector<std::byte> log_;
  std::unique_ptr<OracleEngine> engine_;
  std::unique_ptr<C> cache_;
  std::vector<BlockKey> root_keys_;
  std::vector<BasicLease<Policy>> ended_leases_;
  std::vector<Request> requests_;  // by the index of their lease
  std::unordered_map<BlockKey, Present, KeyHash> present_;
  std::unordered_set<BlockKey, KeyHash> states_there_, caught_up_;  // by the last block's key
  bool copies_flew_ = false;  // what they fill is published later than the rest, if at all
  std::vector<Flying> flying_;
  std::vector<StepEntry> completed_;
  OracleStep step_;                                              // not launched yet
  std::vector<std::pair<std::uint32_t, std::uint32_t>> owners_;  // of its work: request and use
  std::uint64_t open_step_ = 1, reached_ = 0, next_change_ = 0, ended_ = 0;
  bool copies_at_once_ = false;  // told when they are handed out; the queue carries them out in order
  std::uint64_t copied_in_ = 0;  // the last step with such copies
  bool given_up_ = false;
};

#undef MUST

}  // namespace kvstem::test
