// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A random walk over Cache and Lease beside a model that is too simple to be wrong: the set of prefixes that are present.
//
// A prefix is known by its digest, a hash of its scope, its tokens and its marks that owes nothing to the cache's keys.
// The host's memory holds, for each slot, the digest of the prefix whose state lies there, or poison: from the moment
// a slot is given out until the point of the commit is reached, and while a load or a store is under way. So a block that
// is served for another prefix, too early, or from a slot that somebody else writes, is seen at once.
//
// After every operation: the books balance, the counters are the model's, the change records alone rebuild the tree. At
// the end of an episode its flight log is replayed and must give the same bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cache_episode.hpp"
#include "kvstem/kvstem.hpp"
#include "support/catch.hpp"
#include "support/ghost_policy.hpp"

namespace kvstem::test {

/// Catch2's own macros are too slow for this many checks.
#define MUST(...)                                                                                           \
  do {                                                                                                      \
    if (!(__VA_ARGS__)) FAIL("seed " << config_.seed << ", operation " << operation_ << ": " #__VA_ARGS__); \
  } while (false)

template <class Policy>
class Walk {
  using C = BasicCache<Policy>;

  struct Request {
    BasicLease<Policy> lease;
    Text text;
    bool live = false;  // has a lease, or is released and waits for a point
    bool releasing = false;
    bool shared = false, started = false;
    bool cut = false;      // something of it was not kept
    bool gave_up = false;  // in place: took the room of blocks that it found and could not use
    Digest told = 0;       // what `refresh` said it must compute
    std::uint32_t index = 0, prompt_tokens = 0, matched = 0, committed = 0, reserved = 0, grid = 0,
                  grid_tokens = 0;
    std::uint32_t settled = 0;                // blocks
    std::vector<Computed> computed;           // what `committed` consists of, behind the match
    std::vector<std::int32_t> table;          // in place
    std::vector<Digest> state;                // by step: what the engine's sequence holds
    std::uint32_t loaded = 0, loads_out = 0;  // by step: loads handed out so far, and not yet reported
    bool slow_loads = false;                  // commits before its loads are done
  };

 public:
  Walk(const Config& config, Tally& tally)
      : config_(config), tally_(tally), random_(config.seed), texts_(config_, tally, random_) {}

  void run() {
    CacheOptions options;
    options.block_tokens = config_.block_tokens;
    options.slots = config_.slots;
    options.fill = config_.fill;
    options.max_leases = config_.leases;
    options.max_lease_tokens = config_.row_blocks * config_.block_tokens;
    options.max_scopes = 3;
    options.max_runs = config_.max_runs;
    options.max_changes = 4096;
    options.secret = "model";
    if (config_.small_keys) options.key_function = {HashAlgorithm::kTest, eight_bits};
    options.flight_log = {[](void* user, std::span<const std::byte> bytes) {
                            auto& log = *static_cast<std::vector<std::byte>*>(user);
                            log.insert(log.end(), bytes.begin(), bytes.end());
                          },
                          &log_};
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
    auto reader = cache_->register_reader();
    MUST(reader.ok());
    reader_ = std::make_unique<typename C::Reader>(std::move(*reader));
    requests_.resize(config_.leases);
    slots_.assign(config_.slots, {});

    for (operation_ = 0; operation_ < config_.operations; ++operation_) {
      failed_digest_ = 0;
      const Kind kind = pick();
      const bool effective = act(kind);
      settle_model();
      if (!effective) continue;
      ++tally_.effective[kind];
      ++tally_.operations;
      check();
    }
    // Everything ends: nothing may be left but what is present.
    for (Request& r : requests_)
      while (r.live && !r.releasing && !end(r, Keep::kNormal, below(2) == 0)) {
      }
    for (std::uint32_t t = 0; t < kTimelines; ++t) reach({t, launched_[t]}), settle_model();
    while (!in_flight_.empty()) complete(0, false), settle_model();
    end_step();
    check();
    MUST(cache_->audit().lease_pins == 0 && cache_->pool().held_slots() == 0);
    MUST(cache_->pool().used_slots() == present_.size());
    std::uint32_t pending = 0;
    for (std::uint32_t s = 0; s < root_keys_.size(); ++s)
      cache_->enumerate(ScopeId{s}, [&](RunId, const RunInfo& info) { pending += info.length - info.ready; });
    MUST(pending == 0);
    reader_.reset();
    finish_tally();
    replay_log(options);
  }

 private:
  static constexpr std::uint32_t kTimelines = 3, kStepTimeline = 9;

  std::uint32_t below(std::uint32_t n) { return texts_.below(n); }
  bool in_place() const { return config_.fill == SlotFill::kInPlace; }
  std::uint32_t bt() const { return config_.block_tokens; }

  Kind pick() {
    static constexpr std::uint32_t kInPlaceWeights[kKinds] = {10, 8, 16, 6, 20, 10, 7, 4, 2, 2, 4};
    static constexpr std::uint32_t kByStepWeights[kKinds] = {12, 3, 2,  2,  14, 7,  1,  6, 3,
                                                             3,  1, 12, 18, 28, 24, 14, 5, 8};
    const auto& weights = in_place() ? kInPlaceWeights : kByStepWeights;
    std::uint32_t all = 0;
    for (const std::uint32_t w : weights) all += w;
    std::uint32_t at = below(all);
    int kind = 0;
    while (at >= weights[kind]) at -= weights[kind++];
    return static_cast<Kind>(kind);
  }

  bool act(Kind kind) {
    switch (kind) {
      case kAcquire: return acquire();
      case kEndStep: return end_step(), true;
      case kReach: return reach_one();
      case kProbe: return probe();
      case kTakeStep: return take_step();
      case kLoaded: return complete_one(StepKind::kLoad, true, false);
      case kStored: return complete_one(StepKind::kStore, true, false);
      case kLoadFailed: return complete_one(StepKind::kLoad, false, false);
      case kStoreFailed: return complete_one(StepKind::kStore, false, false);
      case kLateResult: return complete_one(StepKind::kLoad, true, true);
      default: break;
    }
    Request* r = any_lease(kind);
    if (r == nullptr) return false;
    switch (kind) {
      case kRefresh: return refresh(*r);
      case kReserve: return reserve(*r);
      case kAppend: return append(*r);
      case kCommit: return commit(*r);
      case kRelease: return end(*r, Keep::kNormal, false);
      case kReleaseCold: return end(*r, Keep::kCold, false);
      case kAbort: return end(*r, Keep::kNormal, true);
      case kTakeLoads: return take_loads(*r);
      default: return false;
    }
  }

  /// A lease, one that the operation is for if there is any.
  Request* any_lease(Kind kind) {
    const std::uint32_t first = below(config_.leases);
    Request* any = nullptr;
    for (std::uint32_t i = 0; i < config_.leases; ++i) {
      Request& r = requests_[(first + i) % config_.leases];
      if (!r.live || r.releasing) continue;
      any = &r;
      if (kind == kTakeLoads ? r.loaded < r.matched : kind != kRefresh || !r.started) return any;
    }
    return any;
  }

  // ---- the model ---------------------------------------------------------------------------------------------------

  std::uint32_t present_blocks(const Text& text, bool on_grid) const {
    std::uint32_t b = 0;
    for (; b < text.digests.size(); ++b) {
      const auto node = present_.find(text.digests[b]);
      if (node == present_.end() || (on_grid && !node->second.on_grid)) break;
    }
    return b;
  }
  std::uint32_t clip(std::uint32_t blocks, std::uint32_t tokens, std::uint32_t grid) const {
    blocks = std::min(blocks, tokens == 0 ? 0 : (tokens - 1) / bt());
    while (grid > 0 && blocks * bt() % grid != 0) --blocks;
    return blocks;
  }
  std::uint32_t usable(const Request& r) const {
    return clip(present_blocks(r.text, r.grid > 0), r.prompt_tokens, r.grid);
  }

  /// The lease's match is `blocks` long now.
  void set_match(Request& r, std::uint32_t blocks) {
    const std::uint32_t known_good = r.matched;
    r.matched = r.settled = blocks;
    r.committed = r.reserved = blocks * bt();
    r.grid_tokens = present_blocks(r.text, true) >= blocks ? r.committed : 0;
    if (!in_place()) {
      r.state.resize(blocks, kPoison);
      return;
    }
    const auto table = r.lease.table(0);
    MUST(table.size() == blocks);
    for (std::uint32_t b = known_good; b < blocks; ++b) r.table.push_back(table[b]);
  }

  /// Tokens whose commits have been reached, in order: what the cache may publish.
  std::uint32_t reached_tokens(const Request& r) const {
    std::uint32_t tokens = r.matched * bt();
    for (const Computed& c : r.computed) {
      if (c.after.value > reached_[c.after.timeline]) break;
      tokens = c.to;
    }
    return tokens;
  }

  /// The device writes what its timelines have passed.
  void device_writes() {
    for (Request& r : requests_) {
      if (!r.live) continue;
      for (Computed& c : r.computed) c.done = c.done || c.after.value <= reached_[c.after.timeline];
      std::uint32_t solid = r.matched * bt();  // all written so far
      for (const Computed& c : r.computed) {
        if (!c.done) break;
        solid = c.to;
      }
      for (std::uint32_t b = r.settled; b < solid / bt(); ++b) {
        if (in_place())
          slots_[r.table[b]].state = r.text.digests[b];
        else if (r.state.size() <= b)
          r.state.resize(b + 1, kPoison), r.state[b] = r.text.digests[b];
        else
          r.state[b] = r.text.digests[b];
      }
    }
  }

  /// After the cache was told: what has to be there by now, what ended.
  void settle_model() {
    take_changes();
    for (Request& r : requests_) {
      if (!r.live) continue;
      const std::uint32_t until = reached_tokens(r) / bt();
      for (std::uint32_t b = r.settled; in_place() && b < until; ++b) use_published(r, b);
      r.settled = std::max(r.settled, until);
      if (r.releasing && reached_tokens(r) == r.committed) gone(r);
    }
    const CacheStats& s = cache_->stats();
    const bool unpublished = s.unpublished_blocks > unpublished_;
    unpublished_ = s.unpublished_blocks;
    bool gave_up = false;
    for (const Request& r : requests_) gave_up = gave_up || r.gave_up;
    if (in_place() && config_.max_runs == 0) MUST(!unpublished || gave_up);
    // By step one of those that have nothing more to store gave up; which one is the cache's affair.
    for (Request& r : requests_)
      if (unpublished && !in_place() && r.live && !r.releasing && r.lease.unstored_blocks() == 0)
        r.cut = true;
    if (in_place())
      for (Request& r : requests_) {
        if (!r.live || !r.shared) continue;
        for (std::uint32_t b = r.matched; b < r.settled && !r.cut; ++b)
          if (present_.count(r.text.digests[b]) == 0) {
            MUST(config_.max_runs != 0);
            r.cut = true;
          }
      }
  }

  /// Where another request has published the block first, this one goes on with that slot.
  void use_published(Request& r, std::uint32_t b) {
    const auto node = present_.find(r.text.digests[b]);
    const bool published = node != present_.end() && node->second.slot != r.table[b];
    const bool certain = r.shared && !r.cut && !r.gave_up && config_.max_runs == 0;
    std::int32_t now = r.table[b];
    if (!r.releasing)
      now = r.lease.table(0)[b];
    else if (published && certain)
      now = node->second.slot;
    else if (published && r.shared)
      now = -1;  // nobody can say
    MUST(now == r.table[b] || now == -1 || (published && now == node->second.slot));
    MUST(!published || !certain || now == node->second.slot);
    if (now == r.table[b]) return;
    if (now != -1) {
      slots_[r.table[b]].state = kPoison;
      ++tally_.canonical;
    }
    slots_[r.table[b]].last_read = step_;
    r.table[b] = now;
  }

  void gone(Request& r, bool given_up = false) {
    if (!given_up) {
      ++ended_;
      queried_ += r.prompt_tokens;
      hits_ += r.matched * bt();
    }
    for (const std::int32_t slot : r.table)
      if (slot >= 0) slots_[slot].last_read = step_;
    r.live = r.releasing = false;
  }

  // ---- change records ----------------------------------------------------------------------------------------------

  void take_changes() {
    Change records[64];
    for (;;) {
      const auto taken = cache_->take_changes(records);
      for (const Change& c : taken) {
        MUST(c.number == next_change_++);
        MUST(c.medium == Medium::kDevice && c.group == 0);
        c.kind == ChangeKind::kStored ? on_stored(c) : on_removed(c);
      }
      if (taken.size() < 64) break;
    }
    if (config_.small_keys) resolve_removed();
  }

  /// The request that has this block computed, in the order in which the cache looks at them.
  bool find_computed(const Change& c, Digest& digest, Node& node) {
    for (Request& r : requests_) {
      if (!r.live) continue;
      const std::uint32_t until =
          in_place() ? reached_tokens(r) / bt() : static_cast<std::uint32_t>(r.state.size());
      for (std::uint32_t b = r.matched; b < until; ++b) {
        const Digest d = r.text.digests[b];
        if (r.text.keys[b] != c.key || present_.count(d) != 0) continue;
        const Digest parent = b == 0 ? 0 : r.text.digests[b - 1];
        if (b > 0 && present_.count(parent) == 0) continue;
        if (!r.shared || r.gave_up || c.parent != (b == 0 ? root_keys_[r.text.scope] : r.text.keys[b - 1]))
          continue;
        if (!in_place() && (stored_by_ != &r || stored_block_ != b)) continue;
        digest = d;
        node = {parent,
                0,
                (b + 1) * bt() <= r.grid_tokens,
                c.key,
                b == 0 ? root_keys_[r.text.scope] : r.text.keys[b - 1],
                nullptr,
                b + 1,
                in_place() ? r.table[b] : -1};
        if (config_.small_keys) node.text = std::make_shared<Text>(r.text);
        return true;
      }
    }
    return false;
  }

  void on_stored(const Change& c) {
    Digest d = 0;
    Node node{};
    MUST(find_computed(c, d, node));  // nothing is published that nobody computed, nor before its point
    if (node.parent != 0) ++present_[node.parent].children;
    present_.emplace(d, node);
    ++rebuilt_[{c.parent.lo, c.parent.hi, c.key.lo, c.key.hi}];
  }

  void on_removed(const Change& c) {
    const auto at = rebuilt_.find({c.parent.lo, c.parent.hi, c.key.lo, c.key.hi});
    MUST(at != rebuilt_.end());
    if (--at->second == 0) rebuilt_.erase(at);
    if (config_.small_keys) {
      ++removed_unresolved_;
      return;
    }
    remove(texts_.of(c.key));
  }

  /// Keys that collide do not say which block went; a look does.
  void resolve_removed() {
    if (removed_unresolved_ == 0) return;
    std::vector<std::pair<std::uint32_t, Digest>> missing;
    for (const auto& [digest, node] : present_) {
      Prompt prompt = node.text->prompt();
      ProbeRange ranges[3];
      const auto found = cache_->probe(*reader_, prompt, ranges);
      MUST(found.ok() && (found->empty() || found->front().tokens.begin == 0));
      const bool ready = !found->empty() && found->front().presence == Presence::kReady;
      if (!ready || found->front().tokens.end < node.blocks * bt()) missing.push_back({node.blocks, digest});
    }
    std::sort(missing.rbegin(), missing.rend());
    INFO("missing " << missing.size() << " removed " << removed_unresolved_);
    MUST(missing.size() == removed_unresolved_);
    for (const auto& [blocks, digest] : missing) remove(digest);
    removed_unresolved_ = 0;
  }

  void remove(Digest d) {
    const auto at = present_.find(d);
    MUST(at != present_.end());
    MUST(at->second.children == 0);  // leaf first
    const bool invalid = descends(d, failed_digest_);
    bool pins = false;
    for (const Request& r : requests_) {
      if (!r.live) continue;
      const std::uint32_t held = r.settled;
      pins = pins || held > 0;
      if (!invalid)
        for (std::uint32_t b = 0; b < held; ++b)
          MUST(r.text.digests[b] != d || (b >= r.matched && (!r.shared || config_.max_runs != 0)) || r.cut ||
               lost_.count(&r) != 0);
    }
    if (invalid) {
      ++tally_.invalidated;
      for (Request& r : requests_)
        if (r.told == d) r.told = 0;  // somebody had it first, and lost it: it is anybody's again
      for (Request& r : requests_)
        for (std::uint32_t b = 0; r.live && b < r.settled; ++b)
          if (r.text.digests[b] == d) lost_.insert(&r);
    } else {
      ++tally_.evictions;
      tally_.evictions_under_pins += pins;
    }
    if (at->second.parent != 0) --present_[at->second.parent].children;
    present_.erase(at);
  }
  bool descends(Digest d, Digest ancestor) const {
    if (ancestor == 0) return false;
    while (d != 0 && d != ancestor) {
      const auto node = present_.find(d);
      if (node == present_.end()) return false;
      d = node->second.parent;
    }
    return d == ancestor;
  }

  // ---- operations --------------------------------------------------------------------------------------------------

  bool acquire() {
    Request* free = nullptr;
    for (Request& r : requests_)
      if (!r.live && free == nullptr) free = &r;
    Text text = texts_.make();
    AcquireOptions how;
    how.session = below(3);
    how.now_ms = operation_;
    // Which of two leases gave a block first is only certain where there is room for both.
    if (config_.max_runs == 0 && below(8) == 0) how.grid_tokens = bt() * (1 + below(3));
    if (below(12) == 0) how.reuse = false;
    if (below(12) == 0) how.publish = false;
    if (!in_place() && below(3) == 0) how.have_tokens = below(4 * bt());
    auto lease = cache_->acquire(text.prompt(), how);
    if (free == nullptr) {
      MUST(!lease.ok() && lease.status().code() == StatusCode::kExhausted);
      return false;
    }
    MUST(lease.ok());
    // Before the match, what the call evicted must be known: it may only be what was not matched.
    const std::uint32_t index = lease->index();
    MUST(index < config_.leases && !requests_[index].live);
    Request& r = requests_[index];
    const std::uint32_t before = how.reuse
                                     ? clip(present_blocks(text, how.grid_tokens > 0),
                                            static_cast<std::uint32_t>(text.tokens.size()), how.grid_tokens)
                                     : 0;
    r = {};
    r.lease = std::move(*lease);
    r.text = std::move(text);
    r.live = true;
    r.index = index;
    r.shared = how.publish && how.reuse;
    r.grid = how.grid_tokens;
    r.prompt_tokens = static_cast<std::uint32_t>(r.text.tokens.size());
    r.slow_loads = below(4) == 0;
    ++tickets_[index];
    INFO("scope " << r.text.scope << " tokens " << r.prompt_tokens << " grid " << how.grid_tokens << " reuse "
                  << how.reuse << ": matched " << r.lease.matched_tokens() << ", present " << before * bt());
    MUST(r.lease.matched_tokens() == before * bt());
    MUST(r.lease.known_tokens() == r.prompt_tokens && r.lease.committed_tokens() == r.lease.matched_tokens());
    set_match(r, before);
    if (!how.reuse) r.grid_tokens = 0;
    tally_.hit_blocks += before;
    if (!in_place()) {
      r.loaded = std::min(how.have_tokens / bt(), before);
      for (std::uint32_t b = 0; b < r.loaded; ++b) r.state[b] = r.text.digests[b];
    }
    lost_.erase(&r);
    texts_.recent.push_back(std::make_shared<Text>(r.text));
    if (texts_.recent.size() > 24) texts_.recent.erase(texts_.recent.begin() + below(24));
    return true;
  }

  bool refresh(Request& r) {
    if (r.started) return false;
    const Progress progress = r.lease.refresh();
    const std::uint32_t best = std::max(r.matched, usable(r));
    const std::uint32_t now = r.lease.matched_tokens() / bt();
    if (r.shared && config_.max_runs == 0 && lost_.count(&r) == 0)
      MUST(now == best);
    else
      MUST(now >= r.matched && now <= best);
    MUST(progress.ready_tokens == r.lease.matched_tokens());
    if (now > r.matched) {
      ++tally_.followed;
      tally_.hit_blocks += now - r.matched;
      set_match(r, now);
    }
    const std::uint32_t ready = present_blocks(r.text, false);
    if (lost_.count(&r) != 0 || ready >= r.text.digests.size()) return true;
    const Digest next = r.text.digests[ready];
    if (progress.must_compute) {
      if (progress.pending_tokens == 0 || !r.shared) return true;
      for (const Request& other : requests_)  // two never compute the same
        MUST(&other == &r || !other.live || other.releasing || other.told != next || !other.shared ||
             other.cut || lost_.count(&other) != 0);
      if (r.told != next && waiting_.count(&r) != 0) ++tally_.took_over;
      r.told = next;
    } else {
      ++tally_.waited;
      waiting_.insert(&r);
      bool somebody = false;  // what is waited for will come, or somebody's end will be noticed
      for (const Request& other : requests_)
        somebody = somebody || (&other != &r && other.live && other.shared &&
                                other.text.digests.size() > ready && other.text.digests[ready] == next);
      MUST(somebody);
    }
    return true;
  }

  bool reserve(Request& r) {
    if (!in_place() && below(3) != 0) return false;
    // Somebody who was told to wait does, mostly.
    if (waiting_.count(&r) != 0 && !r.started && below(4) != 0) return false;
    const std::uint32_t room = config_.row_blocks * bt() - r.reserved;
    if (room == 0) {
      MUST(r.lease.reserve(1).code() == StatusCode::kOutOfRange);
      return false;
    }
    const auto known = static_cast<std::uint32_t>(r.text.tokens.size());
    const std::uint32_t n =
        1 + below(std::min(room, std::max(known > r.reserved ? known - r.reserved : 1, 2 * bt())));
    const std::size_t was_present = present_.size();
    const Status status = r.lease.reserve(n);
    if (!status.ok()) {
      const bool never = (r.reserved + n + bt() - 1) / bt() > config_.slots;
      MUST(status.code() == (never ? StatusCode::kOutOfRange : StatusCode::kExhausted) && in_place());
      ++tally_.exhausted;
      take_changes();
      MUST(present_.size() == was_present);  // nobody loses anything by it
      return false;
    }
    r.started = true;
    r.reserved += n;
    MUST(r.lease.reserved_tokens() == r.reserved);
    if (!in_place()) return true;
    const auto table = r.lease.table(0);
    MUST(table.size() == (r.reserved + bt() - 1) / bt());
    // What was evicted for it is known to be gone; it may be what it found itself and could not use.
    const std::uint32_t present = present_blocks(r.text, false);
    const bool cut = r.cut, gave_up = r.gave_up;
    if (present > r.matched) r.cut = r.gave_up = true;
    take_changes();
    if (present_blocks(r.text, false) == present) r.cut = cut, r.gave_up = gave_up;
    tally_.gave_up += r.gave_up && !gave_up;
    for (auto b = static_cast<std::uint32_t>(r.table.size()); b < table.size(); ++b) {
      const std::int32_t slot = table[b];
      MUST(slot >= 0 && static_cast<std::uint32_t>(slot) < config_.slots);
      for (const Request& other : requests_)
        for (const std::int32_t used : other.table) MUST(!other.live || used != slot);
      const Slot& s = slots_[slot];
      MUST(s.last_read < step_);                        // not in the step that may still read it
      MUST(r.lease.not_before().value >= s.last_read);  // and not before that step has ended
      MUST(s.last_read == 0 || r.lease.not_before().timeline == kStepTimeline);
      slots_[slot].state = kPoison;
      r.table.push_back(slot);
    }
    return true;
  }

  bool append(Request& r) {
    const std::uint32_t room = config_.row_blocks * bt() - static_cast<std::uint32_t>(r.text.tokens.size());
    if (room == 0) return false;
    const std::size_t had = r.text.tokens.size();
    texts_.add_tokens(r.text, 1 + below(std::min(room, 2 * bt())));
    MUST(r.lease.append(std::span<const TokenId>(r.text.tokens).subspan(had)).ok());
    MUST(r.lease.known_tokens() == r.text.tokens.size());
    if (below(4) == 0) texts_.recent.push_back(std::make_shared<Text>(r.text));
    return true;
  }

  bool commit(Request& r) {
    if (waiting_.count(&r) != 0 && !r.started && below(4) != 0) return false;
    const auto known = static_cast<std::uint32_t>(r.text.tokens.size());
    const std::uint32_t most = (in_place() ? std::min(known, r.reserved) : known) - r.committed;
    if (most == 0) {
      MUST(r.lease.commit(1).code() == StatusCode::kOutOfRange);
      return false;
    }
    if (!in_place() && !r.slow_loads && (r.loaded < r.matched || r.loads_out > 0)) return false;
    std::uint32_t waiting = 0;
    for (const Computed& c : r.computed) waiting += waiting > 0 || c.after.value > reached_[c.after.timeline];
    if (waiting >= 7) return false;
    const std::uint32_t n = below(2) == 0 ? most : 1 + below(most);
    Point after = kNow;
    if (below(3) != 0) {
      after.timeline = below(kTimelines);
      after.value = launched_[after.timeline] += below(2);
    }
    const bool on_grid = below(3) != 0;
    if (after.value <= reached_[after.timeline]) after.value = reached_[after.timeline];
    r.computed.push_back({r.committed, r.committed + n, after, false});
    if (on_grid && r.grid_tokens == r.committed) r.grid_tokens += n;
    r.committed += n;
    r.reserved = std::max(r.reserved, r.committed);
    r.started = true;
    device_writes();  // a point that is reached already: it was written before the call
    MUST(r.lease.commit(n, after, on_grid).ok());
    MUST(r.lease.committed_tokens() == r.committed);
    return true;
  }

  void reach(Point point) {
    reached_[point.timeline] = std::max(reached_[point.timeline], point.value);
    device_writes();
    MUST(cache_->reach(point).ok());
  }
  bool reach_one() {
    const std::uint32_t t = below(kTimelines);
    if (reached_[t] == launched_[t]) return false;
    reach({t, reached_[t] + 1 + below(static_cast<std::uint32_t>(launched_[t] - reached_[t]))});
    return true;
  }

  void end_step() {
    MUST(cache_->end_step({kStepTimeline, step_}).ok());
    ++step_;
  }

  bool end(Request& r, Keep keep, bool abort) {
    if (r.settled == r.matched && below(4) != 0) return false;  // most have computed something
    if (r.lease.unstored_blocks() > 0 && below(4) != 0) return false;
    // What is served must have stayed right to the end.
    verify(r);
    const bool waits = !abort && reached_tokens(r) < r.committed;
    if (abort && below(2) == 0)
      r.lease = BasicLease<Policy>();  // a lease that goes out of scope
    else
      MUST((abort ? r.lease.abort() : r.lease.release(retention(keep))).ok());
    MUST(!r.lease.live() && r.lease.release().code() == StatusCode::kStale && r.lease.table(0).empty());
    lost_.erase(&r);
    waiting_.erase(&r);
    if (waits) {
      r.releasing = true;
      return true;
    }
    for (std::uint32_t b = r.settled; b < r.table.size(); ++b) slots_[r.table[b]].state = kPoison;
    gone(r, abort && !r.started);
    return true;
  }

  /// With what a policy that listens to hints may hear besides.
  Retention retention(Keep keep) {
    Retention r{.keep = keep};
    if (keep == Keep::kNormal && below(4) == 0)
      r = {.keep = Keep::kHigh, .until_ms = operation_ + below(400)};
    if (below(4) == 0) r.expect_reuse_at_ms = operation_ + below(200);
    return r;
  }

  bool probe() {
    const Text text = texts_.make();
    ProbeRange ranges[3];
    const auto found = cache_->probe(*reader_, text.prompt(), ranges);
    MUST(found.ok());
    std::uint32_t at = 0, ready = 0;
    for (const ProbeRange& range : *found) {
      MUST(range.tokens.begin == at && range.tokens.end > at);
      at = range.tokens.end;
      if (range.presence == Presence::kReady) ready = range.tokens.end;
    }
    MUST(at == text.tokens.size() && ready == present_blocks(text, false) * bt());
    return true;
  }

  // ---- steps -------------------------------------------------------------------------------------------------------

  bool take(std::span<const StepEntry> entries) {
    take_changes();
    for (const StepEntry& e : entries) {
      MUST(e.lease < config_.leases && requests_[e.lease].live && e.slot < config_.slots);
      Request& r = requests_[e.lease];
      if (!config_.small_keys) MUST(e.key == r.text.keys[e.block]);
      if (e.kind == StepKind::kLoad) {
        MUST(e.block == r.loaded && e.block < r.matched);
        ++r.loaded;
        ++r.loads_out;
      } else {
        MUST(e.block >= r.matched && e.block < r.settled && r.shared && r.loads_out == 0 &&
             r.loaded == r.matched);
        for (const InFlight& f : in_flight_) MUST(f.entry.slot != e.slot);  // nobody reads or writes it
        slots_[e.slot].state = kPoison;
        slots_[e.slot].damaged = false;
      }
      in_flight_.push_back({e, e.lease, tickets_[e.lease]});
    }
    // A lease whose blocks somebody else found damaged is shortened when it comes to load them.
    for (Request& r : requests_)
      if (r.live && !r.releasing && r.lease.matched_tokens() < r.matched * bt()) {
        MUST(lost_.count(&r) != 0);
        shortened(r);
      }
    return !entries.empty();
  }
  bool take_step() {
    StepEntry room[12];
    return take(cache_->take_step({room, 1 + below(12)}));
  }
  bool take_loads(Request& r) {
    StepEntry room[12];
    const auto taken = cache_->take_loads(r.lease, {room, 1 + below(12)});
    for (const StepEntry& e : taken) MUST(e.kind == StepKind::kLoad && e.lease == r.index);
    return take(taken);
  }

  void shortened(Request& r) {
    r.matched = r.settled = r.lease.matched_tokens() / bt();
    r.committed = r.reserved = r.matched * bt();
    r.grid_tokens = std::min(r.grid_tokens, r.committed);
    r.loaded = std::min(r.loaded, r.matched);
    r.computed.clear();
    r.state.resize(r.matched);
    r.told = 0;
    MUST(r.lease.committed_tokens() == r.committed && r.lease.reserved_tokens() == r.reserved);
  }

  bool complete_one(StepKind kind, bool ok, bool late) {
    std::set<std::uint64_t> seen;  // a lease's entries are reported in their order
    for (std::size_t i = 0; i < in_flight_.size(); ++i) {
      const InFlight& f = in_flight_[i];
      if (!seen.insert(f.request * 1000000000ull + f.ticket).second) continue;
      const bool dead = !requests_[f.request].live || tickets_[f.request] != f.ticket;
      if (dead != late || (!late && f.entry.kind != kind)) continue;
      complete(i, ok);
      return true;
    }
    return false;
  }

  void complete(std::size_t i, bool ok) {
    const InFlight f = in_flight_[i];
    in_flight_.erase(in_flight_.begin() + static_cast<std::ptrdiff_t>(i));
    const StepEntry& e = f.entry;
    Request& r = requests_[f.request];
    const bool mine = r.live && tickets_[f.request] == f.ticket;
    Slot& slot = slots_[e.slot];
    stored_by_ = nullptr;
    const Status failure(StatusCode::kUnavailable, "injected");
    if (e.kind == StepKind::kStore) {
      const bool of_use = mine && e.block < r.settled;
      slot.state = ok && of_use ? r.state[e.block] : kPoison;
      MUST(!ok || !of_use || slot.state == r.text.digests[e.block]);
      if (mine && ok) stored_by_ = &r, stored_block_ = e.block;
      MUST(cache_->complete({e, ok ? Status() : failure}).ok());
      if (mine && !ok) r.cut = true;
      take_changes();
      stored_by_ = nullptr;
      return;
    }
    if (mine) --r.loads_out;
    if (mine && e.block < r.matched) {
      if (slot.damaged) ok = false;
      if (!ok) {
        slot.damaged = true;
        slot.state = kPoison;
        failed_digest_ = r.text.digests[e.block];
      } else {
        MUST(slot.state == r.text.digests[e.block]);
        r.state[e.block] = slot.state;
      }
    }
    const std::uint32_t matched = r.matched;
    const bool releasing = r.releasing;
    MUST(cache_->complete({e, ok ? Status() : failure}).ok());
    take_changes();
    if (mine && !ok && e.block < matched) {
      if (releasing) {
        r.matched = r.settled = clip(e.block, r.prompt_tokens, r.grid);
        gone(r);
        return;
      }
      MUST(r.lease.matched_tokens() / bt() == clip(e.block, r.prompt_tokens, r.grid));
      shortened(r);
    }
  }

  // ---- checks ------------------------------------------------------------------------------------------------------

  void verify(const Request& r) {
    if (!in_place()) return;
    const auto table = r.lease.table(0);
    for (std::uint32_t b = 0; b < r.settled; ++b) {
      if (!r.releasing) MUST(table[b] == r.table[b]);
      if (r.table[b] < 0) continue;
      MUST(slots_[r.table[b]].state == r.text.digests[b]);
    }
  }

  void check() {
    const Audit audit = cache_->audit();
    MUST(audit.balanced());
    const CacheStats& s = cache_->stats();
    MUST(s.requests == ended_ && s.queried_tokens == queried_ && s.hit_tokens == hits_);
    MUST(s.hit_tokens + s.missed_tokens == s.queried_tokens);
    MUST(audit.ready_blocks == present_.size() && s.lost_changes == 0);
    std::uint32_t live = 0;
    for (const Request& r : requests_) live += r.live;
    MUST(audit.lease_pins == live);
    if (operation_ % 4 == 0)
      for (const Request& r : requests_)
        if (r.live) verify(r);
    if (operation_ % 8 == 0) rebuild();
    if constexpr (std::is_same_v<Policy, GhostPolicy>) {
      MUST(GhostPolicy::seen.contradictions == 0);
      std::uint64_t blocks = 0;
      for (std::uint32_t scope = 0; scope < root_keys_.size(); ++scope)
        cache_->enumerate(ScopeId{scope}, [&](RunId, const RunInfo& info) { blocks += info.length; });
      MUST(GhostPolicy::seen.blocks == blocks);
    }
  }

  /// The tree that the records tell is the tree that is there.
  void rebuild() {
    ++tally_.rebuilt;
    std::uint32_t told = 0;
    for (const auto& [edge, count] : rebuilt_) told += count;
    MUST(told == present_.size());
    if (config_.small_keys) return;  // edges that look alike
    std::map<std::pair<std::uint64_t, std::uint64_t>, std::vector<BlockKey>> children;
    for (const auto& [edge, count] : rebuilt_) {
      MUST(count == 1);
      children[{edge[0], edge[1]}].push_back({edge[2], edge[3]});
    }
    const auto children_of = [&](BlockKey key) -> const std::vector<BlockKey>& {
      return children[{key.lo, key.hi}];
    };
    std::uint32_t walked = 0;
    for (std::uint32_t scope = 0; scope < root_keys_.size(); ++scope) {
      std::map<RunId, BlockKey> ends;
      std::vector<std::pair<RunId, RunInfo>> runs;
      cache_->enumerate(ScopeId{scope},
                        [&](RunId run, const RunInfo& info) { runs.emplace_back(run, info); });
      for (const auto& [run, info] : runs) {
        MUST(info.length > 0 && info.ready <= info.length);
        const auto above = ends.find(info.parent);
        const BlockKey parent = above == ends.end() ? root_keys_[scope] : above->second;
        if (info.ready == 0) continue;
        MUST(above != ends.end() || info.depth == 0);
        const auto& siblings = children_of(parent);
        MUST(std::find(siblings.begin(), siblings.end(), info.first_key) != siblings.end());
        BlockKey at = info.first_key;
        for (std::uint32_t b = 1; b < info.ready; ++b) {
          MUST(children_of(at).size() == 1);
          at = children_of(at).front();
        }
        walked += info.ready;
        if (info.ready == info.length) ends[run] = at;
      }
    }
    MUST(walked == told);
  }

  void finish_tally() {
    const CacheStats& s = cache_->stats();
    tally_.duplicates += s.duplicate_blocks;
    tally_.unpublished += s.unpublished_blocks;
    if constexpr (std::is_same_v<Policy, GhostPolicy>) {
      tally_.splits += GhostPolicy::seen.splits;
      tally_.merges += GhostPolicy::seen.merges;
      tally_.ghost_hits += GhostPolicy::seen.ghost_hits;
    }
  }

  void replay_log(CacheOptions options) {
    std::vector<std::byte> again;
    options.replayed = options.mode;
    options.mode = IndexMode::kNothing;
    options.max_changes = 0;
    options.flight_log.user = &again;
    const auto first_time = GhostPolicy::seen;
    GhostPolicy::seen = {};
    auto cache = C::create(options);
    MUST(cache.ok());
    const Status status = replay(log_, **cache);
    INFO("seed " << config_.seed << ": " << status.message() << ", " << again.size() << " of " << log_.size()
                 << " bytes");
    if (!status.ok() || again != log_) FAIL("the flight log does not replay");
    if (std::is_same_v<Policy, GhostPolicy>) MUST(GhostPolicy::seen.ghost_hits == first_time.ghost_hits);
    MUST((*cache)->audit().balanced());
    MUST((*cache)->stats().evicted_blocks == cache_->stats().evicted_blocks);
    tally_.replayed_bytes += log_.size();
  }

  struct Edge {
    std::uint64_t at[4];
    std::uint64_t operator[](int i) const { return at[i]; }
    bool operator<(const Edge& o) const { return std::lexicographical_compare(at, at + 4, o.at, o.at + 4); }
  };

  Config config_;
  Tally& tally_;
  std::mt19937_64 random_;
  Texts texts_;
  std::uint32_t operation_ = 0;
  std::vector<std::byte> log_;
  std::unique_ptr<C> cache_;
  std::unique_ptr<typename C::Reader> reader_;
  std::vector<BlockKey> root_keys_;
  std::vector<Request> requests_;
  std::map<std::uint32_t, std::uint64_t> tickets_;
  std::vector<Slot> slots_;
  std::vector<InFlight> in_flight_;
  std::unordered_map<Digest, Node> present_;
  std::map<Edge, std::uint32_t> rebuilt_;
  std::set<const Request*> lost_, waiting_;  // lost: had blocks that somebody found damaged
  Digest failed_digest_ = 0;
  const Request* stored_by_ = nullptr;
  std::uint32_t stored_block_ = 0, removed_unresolved_ = 0;
  std::uint64_t launched_[kTimelines] = {}, reached_[kTimelines] = {};
  std::uint64_t step_ = 1, next_change_ = 0, ended_ = 0, queried_ = 0, hits_ = 0, unpublished_ = 0;
};

#undef MUST

}  // namespace kvstem::test
