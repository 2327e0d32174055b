// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The part of BasicCache that lets sequences branch, give tokens back and take state from elsewhere: what the calls of
// cache/lease.hpp with these names do. Include cache.hpp.
//
// Blocks that are published are shared by their place in the tree. Those that are not are shared by their slots: each has
// several holders then, and is copied when one of them is about to write into it. Only the block that a lease's reserved
// cursor stands in can be written, so `reserve` is where that is found out.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "kvstem/cache/cache.hpp"

namespace kvstem::inline v0 {

/// Whether the block that the reserved cursor stands in is not this lease's alone, or still being read where it would be
/// written.
template <EvictionPolicy Policy>
bool BasicCache<Policy>::shared_frontier(std::uint32_t lease) const noexcept {
  const LeaseRecord& r = leases_[lease];
  const std::uint32_t filled = r.scheduled % options_.block_tokens;
  if (filled == 0) return false;
  const SlotId slot = table_slot(lease, r.scheduled / options_.block_tokens);
  return slots_.users(slot) > 1 || slots_.read_tokens(slot) > filled;
}

/// Where there is no slot for a copy: if only the tree shares the block that the reserved cursor stands in, and nobody needs
/// it there, it is evicted; so it is the lease's own.
template <EvictionPolicy Policy>
bool BasicCache<Policy>::take_back_frontier(std::uint32_t lease) noexcept {
  const LeaseRecord& r = leases_[lease];
  const SlotId slot = table_slot(lease, r.scheduled / options_.block_tokens);
  if (!slots_.published(slot) || slots_.users(slot) != 2 || slots_.reads(slot) > 0) return false;
  RunId holder = kNoRun;
  std::uint32_t behind = 0;  // its blocks from that one on
  const Place before{r.place.run, r.place.generation, r.scheduled / options_.block_tokens};
  index_->enumerate(index_->locate(before), [&](RunId run, const RunInfo& info) {
    std::uint32_t b = 0;
    index_->for_each_range(run, 0, info.ready, [&](BlockPos first, std::uint32_t n) {
      for (BlockPos pos = first; pos < first + n; ++pos, ++b)
        if (slot_at(pos) == slot) holder = run, behind = info.length - b;
    });
  });
  if (holder == kNoRun) return false;
  const RunInfo info = index_->info(holder);
  return info.children == 0 && info.references == 0 && released_[holder] != step_ &&
         remove_tail(holder, behind, true);
}

/// Calls `fn(from, to, point)` for the stretches of the lease's tokens [begin, end) that are there once a point is reached.
template <class Record, class Fn>
void for_each_source(const Record& r, std::uint32_t begin, std::uint32_t end, Fn&& fn) noexcept {
  Point ready = kNow;
  std::uint32_t from = begin, start = r.valid;
  for (std::uint32_t i = 0; i < r.pending_count && start < end; start = r.pending[i++].tokens) {
    if (r.pending[i].tokens <= begin) continue;
    const Point after = r.pending[i].after;
    if (ready.value == 0 || ready.timeline == after.timeline) {
      ready = {after.timeline, std::max(after.value, ready.value)};
    } else {
      fn(from, start, ready);
      from = start;
      ready = after;
    }
  }
  fn(from, end, ready);
}

/// Entries that copying the block with the lease's last token before `end` takes, up to that token.
template <EvictionPolicy Policy>
std::uint32_t BasicCache<Policy>::copies_for(const LeaseRecord& r, std::uint32_t end) const noexcept {
  std::uint32_t n = 0;
  for_each_source(r, end - end % options_.block_tokens, end,
                  [&](std::uint32_t, std::uint32_t, Point) { ++n; });
  return n;
}

template <EvictionPolicy Policy>
void BasicCache<Policy>::copy_block(std::uint32_t lease, GroupId group, SlotBooks& books,
                                    std::uint32_t block_tokens, SlotId from, SlotId to,
                                    std::uint32_t end) noexcept {
  if (group == kNoGroup) return;  // virtual slots hold nothing
  const LeaseRecord& r = leases_[lease];
  const std::uint32_t begin = end - end % block_tokens;
  for_each_source(r, begin, end, [&](std::uint32_t first, std::uint32_t last, Point ready) {
    add_move({.kind = StepKind::kCopy,
              .group = group,
              .lease = lease,
              .generation = r.generation,
              .block = begin / block_tokens,
              .slot = to,
              .key = {},
              .not_before = books.pool().fence(to),
              .from_slot = from,
              .from_offset = first - begin,
              .offset = first - begin,
              .tokens = last - first,
              .source_ready = ready},
             last - begin);
  });
  ++stats_.copied_blocks;
}

/// The lease goes on in `slot` with the block that its reserved cursor stands in.
template <EvictionPolicy Policy>
void BasicCache<Policy>::copy_frontier(std::uint32_t lease, SlotId slot) noexcept {
  LeaseRecord& r = leases_[lease];
  const std::uint32_t b = r.scheduled / options_.block_tokens;
  const SlotId from = table_slot(lease, b);
  copy_block(lease, primary_, slots_, options_.block_tokens, from, slot, r.scheduled);
  table_[row(lease) + b] = static_cast<std::int32_t>(slot);
  slots_.let_go(from);
  changed(r, b, b + 1);
}

template <EvictionPolicy Policy>
Result<BasicLease<Policy>> BasicCache<Policy>::fork_logged(std::uint32_t lease) noexcept {
  op(FlightOp::kFork);
  put(lease, leases_[lease].generation);
  const Result<std::uint32_t> forked = fork(lease);
  put(static_cast<std::uint32_t>(forked.status().code()));
  end_op();
  if (!forked.ok()) {
    ++stats_.refused_requests;
    return forked.status();
  }
  return BasicLease<Policy>(this, *forked, leases_[*forked].generation);
}

template <EvictionPolicy Policy>
Result<std::uint32_t> BasicCache<Policy>::fork(std::uint32_t lease) noexcept {
  const LeaseRecord& parent = leases_[lease];
  if (parent.committed < parent.prompt_tokens)
    return Status(StatusCode::kWrongState, "fork when the whole prompt is committed, not before");
  if (parent.open > 0 || parent.storing_now > 0 ||
      (!in_place() && (parent.loading > 0 || parent.loaded < parent.matched)))
    return Status(StatusCode::kWrongState,
                  "entries of this lease wait or are under way: take and complete them before forking");
  const std::uint32_t child = free_lease();
  if (child == options_.max_leases)
    return Status(StatusCode::kExhausted, "no lease left: release one, or raise max_leases");
  const std::uint32_t filled = parent.committed % options_.block_tokens;
  // What the parent has reserved it writes into without asking again, so what is filled of that block is copied now.
  const bool ahead = in_place() && parent.scheduled > parent.committed;
  const bool copy = ahead && filled > 0;
  SlotId copied = kNoSlot, group_copied[kMaxGroups];
  std::fill_n(group_copied, kMaxGroups, kNoSlot);
  bool all = true;
  if (ahead && std::size_t{groups_.count() + 1} * (kMaxPendingCommits + 1) > copies_.size() - copy_count_)
    return too_many_copies();
  if (copy && slots_.some_busy() && pool().free_slots() == 0) all = obtainable_slots(slots_) > 0;
  if (copy && all) all = (copied = allocate_slot(1)) != kNoSlot;
  for (std::uint32_t i = 0; all && ahead && i < groups_.count(); ++i)
    if (groups_.splits(i, parent.committed))
      all = (group_copied[i] = allocate_slot(groups_.books_at(i), 1)) != kNoSlot;
  if (!all) {
    if (copied != kNoSlot) slots_.give_back(copied);
    for (std::uint32_t i = 0; i < groups_.count(); ++i)
      if (group_copied[i] != kNoSlot) groups_.books_at(i).give_back(group_copied[i]);
    return Status(StatusCode::kExhausted, "no slot for a copy of the last block: release leases");
  }

  LeaseRecord& r = leases_[child];
  const std::uint32_t generation = r.generation + 1;
  r = parent;
  r.generation = generation;
  r.forked = r.started = true;
  r.announced = false;
  r.pinned = kNoRun;
  r.prompt_tokens = r.known = r.scheduled = r.committed;
  r.grid_tokens = std::min(r.grid_tokens, r.committed);
  r.place.blocks = std::min(r.place.blocks, r.committed / options_.block_tokens);
  r.changed = {};
  const std::size_t from = row(lease), to = row(child);
  std::copy_n(pos_.data() + from, r.place.blocks, pos_.data() + to);
  // The tokens of the unfinished block; the parent may know more of it, or all.
  const std::uint32_t block = r.committed / options_.block_tokens;
  if (options_.mode == IndexMode::kTokens) {
    if (parent.known / options_.block_tokens == block)
      std::copy_n(tail(lease), filled, tail(child));
    else if (parent.place.blocks > block)
      std::memcpy(tail(child), index_->unit(pos_[from + block]), filled * sizeof(TokenId));
  }
  std::copy_n(tail_marks_.data() + std::size_t{lease} * kMaxMarksPerBlock, kMaxMarksPerBlock,
              tail_marks_.data() + std::size_t{child} * kMaxMarksPerBlock);

  policy_.on_request_begin(r.facts);
  split(r.place, StoredKeys{this});
  repin(r);
  for_each_run(r.place, [&](RunId run, std::uint32_t blocks) { policy_.on_hit(run, blocks); });
  if constexpr (Policy::kKeys != PolicyKeys::kNone) policy_.on_path({}, 0);
  if (in_place()) {
    const std::uint32_t blocks = blocks_for(r.committed);
    std::copy_n(table_ + from, blocks, table_ + to);
    for (std::uint32_t b = 0; b < blocks; ++b) {
      own_[to + b] = own_[from + b];
      if (copy && b + 1 == blocks) {
        table_[to + b] = static_cast<std::int32_t>(copied);
        own_[to + b] = kOwn;
        copy_block(child, primary_, slots_, options_.block_tokens, table_slot(lease, b), copied, r.committed);
        not_before(r, slots_, copied);
      } else if (own_[to + b] != 0) {
        slots_.hold(table_slot(child, b));
      }
    }
    if (blocks > 0) changed(r, 0, blocks);
  }
  groups_.fork(view(lease), view(child), r.committed, [&](std::uint32_t index, SlotId shared) {
    const SlotId own = group_copied[index];
    if (own == kNoSlot) return own;
    const GroupId group = groups_.id_at(index);
    copy_block(child, group, groups_.books_at(index), groups_.block_tokens(group), shared, own, r.committed);
    not_before(r, groups_.books_at(index), own);
    return own;
  });
  ++stats_.forks;
  return child;
}

template <EvictionPolicy Policy>
Status BasicCache<Policy>::truncate(std::uint32_t lease, std::uint32_t n) noexcept {
  LeaseRecord& r = leases_[lease];
  if (n > r.known) return {StatusCode::kOutOfRange, "truncate beyond the tokens that are known"};
  if (n < r.prompt_tokens)
    return {StatusCode::kOutOfRange,
            "what a lease began with is shared and cannot be cut: release it and acquire with the tokens "
            "that are left"};
  if (const Status status = groups_.may_cut(lease, r.committed, n); !status.ok()) return status;
  const std::uint32_t keep = n / options_.block_tokens;
  const bool inside = in_place() && n % options_.block_tokens != 0 && n < r.scheduled;
  if (inside && (own_[row(lease) + keep] == kOwnToLoad ||
                 (own_[row(lease) + keep] == kOwn && slots_.loads_out(table_slot(lease, keep)) > 0)))
    return {StatusCode::kWrongState,
            "the block that this position lies in is being loaded: complete that first"};
  if (!in_place() && r.storing_now > 0 && r.stored > keep)
    return {StatusCode::kWrongState, "stores are under way behind this position: complete them first"};
  if (options_.mode == IndexMode::kTokens && r.known / options_.block_tokens != keep && r.place.blocks > keep)
    std::memcpy(tail(lease), index_->unit(pos_[row(lease) + keep]),
                n % options_.block_tokens * sizeof(TokenId));
  r.known = n;
  r.moved = r.published = {root_keys_[r.scope], 0};  // keys of other tokens, perhaps
  groups_.cut(view(lease), n);
  r.open -= groups_.take_dropped_open();
  if (r.place.blocks > keep) {
    disclaim(lease, keep);
    const RunId end = index_->locate(r.place);
    r.place.blocks = keep;
    split(r.place, StoredKeys{this});
    const RunId kept = index_->locate(r.place);
    for (RunId run = end; run != kept; run = index_->info(run).parent) {
      policy_.on_release(run, index_->info(run).length);
      released_[run] = step_;
      let_go_of(run);
    }
    repin(r);
  }
  cut(lease, n);
  // Others may use the block that the end lies in; this lease goes on reading it, and copies it before it writes.
  if (in_place() && n % options_.block_tokens != 0 && n <= r.scheduled && own_[row(lease) + keep] == 0) {
    own_[row(lease) + keep] = kOwn;
    slots_.hold(table_slot(lease, keep));
  }
  return {};
}

/// Only the state of the lease's first `tokens` tokens is left, at most.
template <EvictionPolicy Policy>
void BasicCache<Policy>::cut(std::uint32_t lease, std::uint32_t tokens) noexcept {
  LeaseRecord& r = leases_[lease];
  r.committed = std::min(r.committed, tokens);
  r.grid_tokens = std::min(r.grid_tokens, r.committed);
  r.valid = std::min(r.valid, r.committed);
  r.settled = std::min(r.settled, r.committed / options_.block_tokens);
  r.stored = std::min(r.stored, r.settled);
  while (r.pending_count > 0 &&
         (r.pending_count == 1 ? r.valid : r.pending[r.pending_count - 2].tokens) >= r.committed)
    --r.pending_count;
  if (r.pending_count > 0) {
    std::uint32_t& last = r.pending[r.pending_count - 1].tokens;
    last = std::min(last, r.committed);
  }
  if (in_place() && tokens < r.scheduled) {
    drop_slots(lease, blocks_for(tokens));
    set_null(lease, blocks_for(tokens), blocks_for(r.scheduled));
  }
  r.scheduled = std::min(r.scheduled, tokens);
  if (copy_count_ > 0) drop_copies();
}

/// In place, the lease holds no slots of its own from block `from` on.
template <EvictionPolicy Policy>
void BasicCache<Policy>::drop_slots(std::uint32_t lease, std::uint32_t from) noexcept {
  LeaseRecord& r = leases_[lease];
  const std::uint32_t end = blocks_for(r.scheduled);
  for (std::uint32_t b = from; b < end; ++b) {
    if (own_[row(lease) + b] == 0) continue;
    const SlotId slot = table_slot(lease, b);
    r.open -= slots_.writes(slot);
    if (std::exchange(own_[row(lease) + b], std::uint8_t{0}) == kOwnToLoad)
      end_move({.kind = StepKind::kLoad, .slot = slot});
    slots_.let_go(slot);
  }
  r.load_end = std::min(r.load_end, from);
  r.loaded = std::min(r.loaded, from);
}

template <EvictionPolicy Policy>
Status BasicCache<Policy>::commit_accepted_logged(std::uint32_t lease, std::span<const std::uint32_t> offsets,
                                                  Point after) noexcept {
  op(FlightOp::kCommitAccepted);
  put(lease, leases_[lease].generation, static_cast<std::uint32_t>(offsets.size()), after.timeline,
      after.value);
  if (log_.on())
    for (const std::uint32_t offset : offsets) log_.put(offset);
  const Status status = commit_accepted(lease, offsets, after);
  end_op();
  return status;
}

template <EvictionPolicy Policy>
Status BasicCache<Policy>::commit_accepted(std::uint32_t lease, std::span<const std::uint32_t> offsets,
                                           Point after) noexcept {
  LeaseRecord& r = leases_[lease];
  if (!in_place())
    return {StatusCode::kUnsupported, "by step the engine moves its own cells: rearrange them, then commit"};
  for (std::size_t i = 1; i < offsets.size(); ++i)
    if (offsets[i] <= offsets[i - 1])
      return {StatusCode::kInvalidArgument, "the accepted positions must be strictly ascending"};
  if (!offsets.empty() && offsets.back() >= r.scheduled - r.committed)
    return {StatusCode::kOutOfRange, "an accepted position lies beyond what was reserved"};
  if (offsets.size() > r.known - r.committed)
    return {StatusCode::kOutOfRange, "commit beyond the tokens that are known: append them first"};
  const auto n = static_cast<std::uint32_t>(offsets.size());
  // `fn(to, from, tokens)` for stretches that move together: both ends inside one block.
  const auto for_each_copy = [&](std::uint32_t block_tokens, auto&& fn) {
    for (std::uint32_t i = 0, end = 0; i < n; i = end) {
      const std::uint32_t to = r.committed + i, from = r.committed + offsets[i];
      std::uint32_t room = block_tokens - std::max(to % block_tokens, from % block_tokens);
      if (from - to < room && to != from && to / block_tokens == from / block_tokens)
        room = from - to;  // the two ends never overlap
      for (end = i + 1; end < n && end - i < room && offsets[end] - offsets[i] == end - i;) ++end;
      if (to != from) fn(to, from, end - i);
    }
  };
  // `fn(group, block tokens, slot of a block)` for each group whose state lies by position.
  const auto for_each_group = [&](auto&& fn) {
    if (primary_ != kNoGroup)
      fn(primary_, options_.block_tokens, [&](std::uint32_t b) { return table_slot(lease, b); });
    for (std::uint32_t i = 0; i < groups_.count(); ++i)
      if (groups_.by_position(i))
        fn(groups_.id_at(i), groups_.block_tokens(groups_.id_at(i)),
           [&, i](std::uint32_t b) { return groups_.slot_of(i, lease, b); });
  };
  std::uint32_t copies = 0;
  for_each_group([&](GroupId, std::uint32_t block_tokens, auto&&) {
    for_each_copy(block_tokens, [&](std::uint32_t, std::uint32_t, std::uint32_t) { ++copies; });
  });
  if (n > 0 && offsets.back() != n - 1 && groups_.has_states())
    return {StatusCode::kUnsupported,
            "a state follows one path: commit what the step has computed, in order"};
  if (const Status status = may_commit(lease, n, after); !status.ok()) return status;
  if (copies > copies_.size() - copy_count_) return too_many_copies();
  for_each_group([&](GroupId group, std::uint32_t block_tokens, auto&& slot) {
    for_each_copy(block_tokens, [&](std::uint32_t to, std::uint32_t from, std::uint32_t tokens) {
      add_move({.kind = StepKind::kCopy,
                .group = group,
                .lease = lease,
                .generation = r.generation,
                .block = to / block_tokens,
                .slot = slot(to / block_tokens),
                .key = {},
                .not_before = after,
                .from_slot = slot(from / block_tokens),
                .from_offset = from % block_tokens,
                .offset = to % block_tokens,
                .tokens = tokens,
                .source_ready = after},
               0);  // the lease's own: its next step comes after the copies
    });
  });
  return commit(lease, n, after, false);
}

template <EvictionPolicy Policy>
Status BasicCache<Policy>::onboard(std::uint32_t lease, std::uint32_t n) noexcept {
  LeaseRecord& r = leases_[lease];
  if (!in_place())
    return {StatusCode::kUnsupported, "by step state comes from the cache's own slots: see take_loads"};
  if (groups_.any())
    return {StatusCode::kUnsupported, "only caches of one group onboard so far: compute instead"};
  if (undeclared_)
    return {StatusCode::kUnsupported,
            "KvGroup::bytes_per_token is 0: declare what a block consists of, or it is lost"};
  if (n % options_.block_tokens != 0)
    return {StatusCode::kInvalidArgument,
            "whole blocks are onboarded: a multiple of CacheOptions::block_tokens"};
  if (n == 0) return {};
  if (r.committed % options_.block_tokens != 0 || r.scheduled != r.committed)
    return {StatusCode::kWrongState, "onboard at a block's begin, with nothing reserved ahead"};
  if (n >= r.known - r.committed)
    return {StatusCode::kOutOfRange, "onboard at most up to the last known token, which has to be computed"};
  const std::uint32_t first = r.committed / options_.block_tokens, end = first + n / options_.block_tokens;
  if (r.place.blocks < end)
    return {StatusCode::kWrongState,
            "this lease does not publish, so its blocks have no keys to be loaded by"};
  if (const Status status = reserve(lease, n, true); !status.ok()) return status;
  if (r.loaded >= r.load_end) r.loaded = first;
  r.load_end = end;
  for (std::uint32_t b = first; b < end; ++b) {
    slots_.begin_write(table_slot(lease, b), {lease, r.generation, b});
    own_[row(lease) + b] = kOwnToLoad;
    ++r.open;
  }
  r.committed += n;
  if (r.pending_count > 0)
    r.pending[r.pending_count - 1].tokens = r.committed;
  else
    r.valid = r.committed;
  return {};
}

template <EvictionPolicy Policy>
std::uint32_t BasicCache<Policy>::exclusive_slots(std::uint32_t lease) noexcept {
  if (!in_place()) return 0;
  ++mark_;
  for (std::uint32_t i = 0; i < options_.max_leases; ++i)
    if (i != lease && leases_[i].active) mark_path(leases_[i].pinned);
  const LeaseRecord& r = leases_[lease];
  std::uint32_t slots = mark_path(r.pinned);
  const std::uint32_t blocks = blocks_for(r.scheduled);
  for (std::uint32_t b = r.matched; b < blocks; ++b)
    if (own_[row(lease) + b] != 0) slots += slots_.users(table_slot(lease, b)) == 1;
  if (primary_ == kNoGroup) slots = 0;
  return slots + groups_.exclusive(lease, pos_.data() + row(lease));
}

}  // namespace kvstem::inline v0
