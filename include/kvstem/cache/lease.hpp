// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A request's hold on the cache: what was matched stays where it is, what is computed gets slots and goes into the tree.
// Include cache.hpp, which includes this.
//
// Positions run along three cursors: known (token ids: the prompt and what was appended) >= committed (their state is
// computed, or will be at a point), and reserved (>= committed) up to which slots were given out, which may be ahead of
// what is known.
//
// A lease that is destroyed is aborted: what waits for its point is lost. Release it. One that is stale (released, moved
// from, its cache's slot given to another) does nothing and says kStale. Threads: the cache's.
//
//   Result<Lease> lease = cache->acquire({.scope = scope, .tokens = prompt});
//   if (!lease->refresh().must_compute) return later();    // somebody computes it: keep the lease, ask again after `reach`
//   const std::uint32_t start = lease->matched_tokens();
//   if (!lease->reserve(prompt.size() - start).ok()) return wait();      // slots for the rest of the prompt
//   compute(prompt, start, lease->table(0));
//   if (!lease->commit(prompt.size() - start, after_step).ok()) return mistake();
//   (void)lease->release();
//
// Decoding, a token a step: `reserve(1)` (first, so that a refusal changes nothing; or all of the answer ahead), `append`
// the token, compute, `commit(1, point)`. Results that are known a step late: while step n runs, append the token that
// step n - 1 chose and commit it with the point of step n, of which its state is a part.
// A request that must wait for slots should hold no lease, or two that wait could lock each other out: abort it and
// acquire again later. In the middle of an answer release it, and acquire with the tokens so far: what was computed is
// found again. examples/own_scheduler shows all of this.
//
// Branching (samples, beams, sub-agents, drafts that were wrong):
//
//   Result<Lease> sample = lease->fork();                 // shares all that is committed, by reference
//   ... take_step, launch: a block that two share is copied when one of them writes into it, as an entry of the step
//   (void)lease->commit_accepted(accepted, after_step);   // of a tree of drafts: where the verified tokens' state lies
//   (void)lease->truncate(end_of_what_was_right);         // tokens that turned out to be wrong
//
// State that somebody else has (a lower tier, a peer):
//
//   (void)lease->onboard(512);                            // slots for it, and a load of each block in the next step
//   ... computed on top, and committed at once; a load that fails takes back what rests on it
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/point.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/cache/cache_options.hpp"
#include "kvstem/model/retention.hpp"
#include "kvstem/observe/flight_log.hpp"
#include "kvstem/policy/lru.hpp"

namespace kvstem::inline v0 {

template <EvictionPolicy Policy>
class BasicCache;

template <EvictionPolicy Policy>
class BasicLease {
 public:
  BasicLease() noexcept = default;
  BasicLease(BasicLease&& other) noexcept
      : cache_(std::exchange(other.cache_, nullptr)), index_(other.index_), generation_(other.generation_) {}
  BasicLease& operator=(BasicLease&& other) noexcept {
    const BasicLease old(std::move(*this));
    cache_ = std::exchange(other.cache_, nullptr);
    index_ = other.index_;
    generation_ = other.generation_;
    return *this;
  }
  ~BasicLease() {
    if (live()) (void)abort();
  }

  [[nodiscard]] bool live() const noexcept {
    return cache_ != nullptr && cache_->find(index_, generation_) != nullptr;
  }

  /// Its number in steps; 0 <= index < max_leases. Given to others after it ends.
  [[nodiscard]] std::uint32_t index() const noexcept { return index_; }

  // Cursors, in tokens; 0 when stale.
  /// Usable from the cache when the lease was acquired (or refreshed, or shortened by a failed load): whole blocks, and never
  /// the prompt's last token.
  [[nodiscard]] std::uint32_t matched_tokens() const noexcept {
    return field([this](const auto& r) { return r.matched * cache_->options_.block_tokens; });
  }
  [[nodiscard]] std::uint32_t known_tokens() const noexcept {
    return field([](const auto& r) { return r.known; });
  }
  [[nodiscard]] std::uint32_t reserved_tokens() const noexcept {
    return field([](const auto& r) { return r.scheduled; });
  }
  [[nodiscard]] std::uint32_t committed_tokens() const noexcept {
    return field([](const auto& r) { return r.committed; });
  }
  /// kByStep: committed whole blocks that no step has taken for storing yet.
  [[nodiscard]] std::uint32_t unstored_blocks() const noexcept {
    return field([](const auto& r) { return r.settled - r.stored; });
  }

  /// Where the lease's blocks are: one slot number for each block up to the reserved cursor. The row stays where it is
  /// until the lease ends. Entries change by calls on this lease, and by `reach` and `complete`: a block that another lease
  /// published first is used from its slot from then on, and this lease's own goes back to the pool. A step that was
  /// launched before may go on with the row as it was: the slot is not written before that step has ended. What is launched
  /// afterwards takes the row as it is then.
  /// Of a window, blocks that no later token sees are null: slot 0 or -1, see CacheOptions::null_slot. A state group has two
  /// entries, {read, write}: the slot of the state at the committed cursor (null at the begin), and the slot for the state
  /// behind the tokens that the next commit names. They are those of the last `reserve` and stay, over the commit, until the
  /// next; each commit needs one before it (0 is enough). So what is written there must be the state of exactly what is
  /// committed: with drafts that may be rejected, write it when they are verified. A group that trails has no slot for what is
  /// still to be computed of it before the first `reserve`. Side data has the row of the group that it lies beside. Empty for a
  /// group that does not exist.
  [[nodiscard]] std::span<const std::int32_t> table(GroupId group) const noexcept {
    return live() ? cache_->table(index_, group, false) : std::span<const std::int32_t>{};
  }
  /// The whole row, null behind what is reserved (with CacheOptions::null_slot or several groups): for kernels that take
  /// tables of one width.
  [[nodiscard]] std::span<const std::int32_t> padded_table(GroupId group) const noexcept {
    return live() ? cache_->table(index_, group, true) : std::span<const std::int32_t>{};
  }
  /// Where the state of positions [from, to) lies in a group, for kernels that scatter new tokens: slot * the group's block
  /// size + offset in the block. kOutOfRange, and nothing is written, if a position has no slot or `out` is too small;
  /// kUnsupported for a group of states.
  Status slot_mapping(GroupId group, std::uint32_t from, std::uint32_t to,
                      std::span<std::int64_t> out) const noexcept {
    if (!live()) return stale();
    const std::uint32_t block_tokens = cache_->block_tokens(group);
    if (block_tokens == 0)
      return {StatusCode::kUnsupported, "no such group, or one of states, which has no positions"};
    const auto row = table(group);
    if (from > to || to > std::uint64_t{row.size()} * block_tokens || out.size() < to - from)
      return {StatusCode::kOutOfRange, "slot_mapping beyond what is reserved, or with too little room"};
    for (std::uint32_t i = from; i < to; ++i) {
      const std::int32_t slot = row[i / block_tokens];
      if (slot == cache_->no_slot())
        return {StatusCode::kOutOfRange, "the window has left this position behind"};
      out[i - from] = std::int64_t{slot} * block_tokens + i % block_tokens;
    }
    return {};
  }
  /// Whether `reserve(n)` would succeed now, and at which cost; takes nothing. kLater: while leases hold the slots, or until the
  /// step ends in which they let go of them (`end_step`, also of an engine that is idle).
  [[nodiscard]] ReserveQuote quote(std::uint32_t n) noexcept {
    return live() ? cache_->quote(index_, n) : ReserveQuote{};
  }
  /// Where a chunk that is computed from `position` on should end at the latest, so that a state can be kept there that others
  /// will want: the end of the prompt's whole blocks, a position where a state was missed (`missed_tokens`), every
  /// KvGroup::checkpoint_blocks. kToEnd if anywhere will do: end = min(position + chunk, next_boundary(position), known).
  [[nodiscard]] std::uint32_t next_boundary(std::uint32_t position) const noexcept {
    return live() ? cache_->next_boundary(index_, position) : kToEnd;
  }
  /// What would have matched if a state had been kept wherever one was needed; `matched_tokens` if none was missed.
  [[nodiscard]] std::uint32_t missed_tokens() const noexcept {
    return field(
        [this](const auto& r) { return std::max(r.helped, r.matched * cache_->options_.block_tokens); });
  }
  /// The blocks whose table entries may have changed since the last call (or since the lease began): for hosts that keep a
  /// copy of the row on a device. One range that covers all changes, cut to the table; empty if there are none.
  [[nodiscard]] BlockRange delta(GroupId group = 0) noexcept {
    return live() ? cache_->take_delta(index_, group) : BlockRange{};
  }
  /// Slots that the end of this lease would leave to others: those that only it holds. What it published among them stays
  /// in the cache until it is evicted, and is found again. For choosing whom to preempt. 0 by step. O(runs on the paths of
  /// all leases, and its own blocks).
  [[nodiscard]] std::uint32_t exclusive_slots() noexcept {
    return live() ? cache_->exclusive_slots(index_) : 0;
  }
  /// The reserved slots must not be written before this point (the host's own next step on the timeline that it gives to
  /// `end_step` comes after it anyway).
  [[nodiscard]] Point not_before() const noexcept {
    return live() ? cache_->leases_[index_].not_before : kNow;
  }

  /// Before anything was reserved or committed: what others have computed meanwhile is taken into the match, and
  /// `must_compute` says whether to go on waiting is worthwhile. If whoever computes gives up, the first to ask takes over.
  [[nodiscard]] Progress refresh() noexcept {
    if (!live()) return {};
    cache_->op(FlightOp::kRefresh);
    cache_->put(index_, generation_);
    const Progress progress = cache_->refresh(index_);
    cache_->put(progress.ready_tokens, progress.pending_tokens);
    cache_->end_op();
    return progress;
  }

  /// Slots for n tokens more than are reserved; after `acquire` that cursor stands at matched_tokens. They may be reserved
  /// ahead of the known tokens. All or none: kExhausted if they are not to be had now (nothing is evicted for a request
  /// that is refused, and what was reserved before stays), kOutOfRange beyond max_lease_tokens or all slots of the cache.
  /// With SlotFill::kByStep it only moves the cursor.
  /// Where the only room is what was found but cannot be used (the block of the last token), the lease takes that, and
  /// what it computes stays private to it.
  Status reserve(std::uint32_t n) noexcept {
    return logged(FlightOp::kReserve, n, 0, [&] { return cache_->reserve(index_, n); });
  }

  /// Tokens that follow what is known: decoded and verified. kOutOfRange for an id outside the vocabulary (nothing is
  /// appended) or beyond max_lease_tokens.
  Status append(std::span<const TokenId> tokens) noexcept {
    if (!live()) return stale();
    if (cache_->options_.mode != IndexMode::kTokens)
      return {StatusCode::kUnsupported, "a keyed cache cannot append tokens"};
    if (!cache_->in_vocabulary(tokens, ScopeId{cache_->leases_[index_].last_scope}))
      return {StatusCode::kOutOfRange, "a token id is outside the scope's vocabulary"};
    const auto n = static_cast<std::uint32_t>(tokens.size());
    return logged(FlightOp::kAppend, n, 0, [&] { return cache_->append(index_, tokens.data(), n); });
  }

  /// The state of the next n tokens is computed once `after` is reached; whole blocks are found by others from then on.
  /// `on_grid`: computed by prefill on a fixed grid of chunks, so that a host that keeps to the grid gets the same bits.
  /// Commits become valid in order. At most 8 wait apart: one more joins the last if that is on the same timeline, and
  /// becomes valid with it; else it is kExhausted. kOutOfRange beyond the known tokens, or the reserved ones if the cache
  /// fills slots in place, and for a timeline of kMaxTimelines or more.
  Status commit(std::uint32_t n, Point after = kNow, bool on_grid = false) noexcept {
    if (!live()) return stale();
    cache_->op(FlightOp::kCommit);
    cache_->put(index_, generation_, n, static_cast<std::uint32_t>(on_grid), after.timeline, after.value);
    const Status status = cache_->commit(index_, n, after, on_grid);
    cache_->end_op();
    return status;
  }

  /// As `commit`, of tokens that lie anywhere among the reserved positions: a path through a tree of drafts. Position
  /// `offsets[i]` behind the committed cursor holds the state of the i-th of the next known tokens; strictly ascending.
  /// What does not lie where it belongs is moved there by copies in the next step, and is found by others once these are
  /// done too. kInvalidArgument if not ascending, kOutOfRange beyond what is reserved or known, kExhausted if too many
  /// copies wait to be taken: nothing is changed. kUnsupported by step, where the engine moves its own cells, and with
  /// states if anything has to move. Called when the step that computed them is verified, with its point; `take_step` before
  /// the next is launched or ended.
  Status commit_accepted(std::span<const std::uint32_t> offsets, Point after = kNow) noexcept {
    if (!live()) return stale();
    return cache_->commit_accepted_logged(index_, offsets, after);
  }

  /// The state of the next n known tokens lies in a lower tier or at a peer: they get slots, and each block becomes a load
  /// in the next step. They count as committed at once, and are found by others when their loads are done; more may be
  /// computed on top meanwhile. A load that fails takes its block and all behind it from the lease: compute (or onboard)
  /// again from `committed_tokens`. Whole blocks, from a block's begin, nothing reserved ahead, not the last known token:
  /// else kInvalidArgument, kWrongState or kOutOfRange; kWrongState also if the lease does not publish. kExhausted as `reserve`. kUnsupported by step.
  Status onboard(std::uint32_t n) noexcept {
    return logged(FlightOp::kOnboard, n, 0, [&] { return cache_->onboard(index_, n); });
  }

  /// Another lease with the same committed tokens and the same state, shared by reference; also where commits wait for
  /// their point. What is known or reserved beyond them it does not have. A block that is partly filled is copied when one
  /// of the two writes into it; at once if this lease has reserved ahead. kWrongState before the prompt is committed, and
  /// while entries of this lease wait or are under way (complete them first: an executor whose queue keeps the order may do
  /// so when it has enqueued a copy; by step also loads that were not taken). kExhausted if no lease is left, or no slot for
  /// the copy. It counts as no request of its own. By step the engine shares its
  /// sequence itself. O(blocks of the sequence), a few bytes each.
  [[nodiscard]] Result<BasicLease> fork() noexcept {
    if (!live()) return stale();
    return cache_->fork_logged(index_);
  }

  /// The sequence is its first n tokens again: what is known, committed and reserved behind them goes, with the slots of
  /// whole blocks. What was published of it stays in the cache, for whoever has the same tokens. kOutOfRange beyond the
  /// known tokens, below the end of the prompt, or below where the lease was forked: that part is shared. kWrongState with
  /// windows whose blocks back there are gone, and with states below the committed cursor: so drafts are not committed before
  /// they are verified, and truncated only away from what is known or reserved. kWrongState
  /// while a load of the block that n lies in waits or is under way; by step, while stores behind n are.
  Status truncate(std::uint32_t n) noexcept {
    return logged(FlightOp::kTruncate, n, 0, [&] { return cache_->truncate(index_, n); });
  }

  /// The request is over. What was committed stays in the cache as the policy sees fit; what waits for its point is kept
  /// until then. kByStep: what no step has stored yet is given up. kStale the second time.
  Status release(Retention retention = {}) noexcept {
    return logged(FlightOp::kRelease, 0, static_cast<std::uint32_t>(retention.keep), [&] {
      cache_->put(retention.until_ms, retention.expect_reuse_at_ms);
      cache_->release(index_, retention);
      return Status();
    });
  }

  /// The request failed: what waits for its point is given up; what was valid before stays. Before anything was reserved
  /// or committed it is an attempt that was given up, which no counter counts as a request.
  Status abort() noexcept {
    return logged(FlightOp::kAbort, 0, 0, [&] {
      cache_->abort(index_);
      return Status();
    });
  }

 private:
  friend class BasicCache<Policy>;
  BasicLease(BasicCache<Policy>* cache, std::uint32_t index, std::uint32_t generation) noexcept
      : cache_(cache), index_(index), generation_(generation) {}

  static Status stale() noexcept {
    return {StatusCode::kStale, "this lease was released or moved from: acquire a new one"};
  }
  template <class Fn>
  [[nodiscard]] std::uint32_t field(Fn&& fn) const noexcept {
    return live() ? fn(cache_->leases_[index_]) : 0;
  }
  template <class Fn>
  Status logged(FlightOp code, std::uint32_t a, std::uint32_t b, Fn&& fn) noexcept {
    if (!live()) return stale();
    cache_->op(code);
    cache_->put(index_, generation_, a, b);
    const Status status = fn();
    cache_->put(static_cast<std::uint32_t>(status.code()));
    cache_->end_op();
    return status;
  }

  BasicCache<Policy>* cache_ = nullptr;
  std::uint32_t index_ = 0;
  std::uint32_t generation_ = 0;
};

/// Of a cache with another policy: BasicCache<Policy>::Lease.
using Lease = BasicLease<Lru>;

}  // namespace kvstem::inline v0
