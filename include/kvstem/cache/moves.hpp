// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The part of BasicCache that says what must be moved, and hears how it went: `take_step`, `take_loads`, `complete`.
// Include cache.hpp.
//
// Every entry holds the slots that it names, from the moment that it is decided until it is reported. So a slot is given
// to nobody else while something may still read or write it, whatever becomes of the lease.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kvstem/cache/cache.hpp"

namespace kvstem::inline v0 {

template <EvictionPolicy Policy>
std::span<const StepEntry> BasicCache<Policy>::take_loads(const Lease& lease,
                                                          std::span<StepEntry> out) noexcept {
  std::size_t n = 0;
  if (!lease.live()) return out.first(0);
  out = out.first(std::min(out.size(), most_entries()));
  op(FlightOp::kTakeStep);
  put(static_cast<std::uint64_t>(out.size()), lease.index_);
  in_place() ? take_onboarded(lease.index_, out, n) : take_loads_of(lease.index_, out, n);
  put_entries(out.first(n));
  return out.first(n);
}

template <EvictionPolicy Policy>
std::span<const StepEntry> BasicCache<Policy>::take_entries(std::span<StepEntry> out) noexcept {
  std::size_t n = 0;
  out = out.first(std::min(out.size(), most_entries()));
  op(FlightOp::kTakeStep);
  put(static_cast<std::uint64_t>(out.size()), ~std::uint32_t{0});
  for (std::uint32_t i = 0; i < options_.max_leases; ++i) {
    if (!leases_[i].active) continue;
    if (in_place())
      take_onboarded(i, out, n);
    else if (!leases_[i].releasing)
      take_loads_of(i, out, n);
  }
  if (in_place()) take_copies(out, n);
  // In turn, so that one long prompt does not keep the others waiting.
  for (std::uint32_t i = 0; !in_place() && i < options_.max_leases && n < out.size(); ++i) {
    const std::uint32_t lease = (store_turn_ + i) % options_.max_leases;
    if (leases_[lease].active) take_stores_of(lease, out, n);
    if (n == out.size()) store_turn_ = (lease + 1) % options_.max_leases;
  }
  put_entries(out.first(n));
  return out.first(n);
}

template <EvictionPolicy Policy>
void BasicCache<Policy>::put_entries(std::span<const StepEntry> entries) noexcept {
  for (const StepEntry& e : entries) {
    put(e.lease, e.block, e.slot);
    decided(std::uint64_t{e.lease} << 32 | e.slot);
  }
  end_op();
}

// ---- in place: loads and copies --------------------------------------------------------------------------------------

template <EvictionPolicy Policy>
void BasicCache<Policy>::take_onboarded(std::uint32_t lease, std::span<StepEntry> out,
                                        std::size_t& n) noexcept {
  LeaseRecord& r = leases_[lease];
  for (; n < out.size() && r.loaded < r.load_end; ++r.loaded) {
    std::uint8_t& own = own_[row(lease) + r.loaded];
    if (own != kOwnToLoad) continue;  // computed
    own = kOwn;
    const SlotId slot = table_slot(lease, r.loaded);
    ++slots_.loads_out(slot);
    out[n++] = entry(StepKind::kLoad, lease, r.loaded, slot);
  }
}

template <EvictionPolicy Policy>
void BasicCache<Policy>::take_copies(std::span<StepEntry> out, std::size_t& n) noexcept {
  for (; n < out.size() && copy_count_ > 0; --copy_count_) {
    const StepEntry& e = copies_[copy_first_];
    copy_first_ = copy_first_ + 1 == copies_.size() ? 0 : copy_first_ + 1;
    ++books(e.group).copies_out(e.slot);
    out[n++] = e;
  }
}

/// Copies that nobody has taken, for leases that have ended or were cut, are not wanted any more.
template <EvictionPolicy Policy>
void BasicCache<Policy>::drop_copies() noexcept {
  const auto at = [this](std::uint32_t i) -> StepEntry& {
    const std::size_t p = std::size_t{copy_first_} + i;
    return copies_[p < copies_.size() ? p : p - copies_.size()];
  };
  std::uint32_t kept = 0;
  for (std::uint32_t i = 0; i < copy_count_; ++i) {
    if (of_use(at(i)))
      at(kept++) = at(i);
    else
      end_move(at(i));
  }
  copy_count_ = kept;
}

/// A copy into a block of a lease that waits to be taken. The source's first `fixed` tokens must stay as they are until then.
template <EvictionPolicy Policy>
void BasicCache<Policy>::add_move(const StepEntry& e, std::uint32_t fixed) noexcept {
  books(e.group).begin_write(e.slot, {e.lease, e.generation, e.block});
  books(e.group).begin_read(e.from_slot, fixed);
  ++leases_[e.lease].open;
  copies_[(copy_first_ + copy_count_) % copies_.size()] = e;
  ++copy_count_;
}

/// The entry holds nothing any more.
template <EvictionPolicy Policy>
void BasicCache<Policy>::end_move(const StepEntry& e) noexcept {
  books(e.group).end_write(e.slot);
  if (e.kind == StepKind::kCopy) books(e.group).end_read(e.from_slot);
}

/// Whether what the entry brings is still a block of the lease that wanted it.
template <EvictionPolicy Policy>
bool BasicCache<Policy>::of_use(const StepEntry& e) const noexcept {
  if (e.lease >= options_.max_leases) return false;
  const LeaseRecord& r = leases_[e.lease];
  if (!r.active || r.generation != e.generation) return false;
  if (e.group != primary_) return groups_.of_use(e.group, e.lease, e.block, e.slot);
  return e.block < blocks_for(r.scheduled) && own_[row(e.lease) + e.block] != 0 &&
         table_slot(e.lease, e.block) == e.slot;
}

/// False if no such entry is under way.
template <EvictionPolicy Policy>
bool BasicCache<Policy>::complete_move(const StepEntry& e, bool ok) noexcept {
  if (e.kind == StepKind::kStore || (e.group != primary_ && groups_.books(e.group) == nullptr)) return false;
  SlotBooks& moved = books(e.group);
  if (e.slot >= moved.pool().capacity()) return false;
  const bool copy = e.kind == StepKind::kCopy;
  std::uint32_t& out = copy ? moved.copies_out(e.slot) : moved.loads_out(e.slot);
  if (out == 0 || !moved.writes_for(e.slot, {e.lease, e.generation, e.block}) ||
      (copy && (e.from_slot >= moved.pool().capacity() || moved.reads(e.from_slot) == 0)))
    return false;
  --out;
  const bool useful = of_use(e);
  end_move(e);
  if (!useful) return true;
  LeaseRecord& r = leases_[e.lease];
  --r.open;
  if (ok) {
    stats_.onboarded_blocks += !copy;
    settle(e.lease);
  } else if (++stats_.failed_loads; groups_.any()) {
    // What a window or a state was at an earlier position is gone, so there is nothing to go on from.
    const std::uint32_t tokens = e.group == primary_ ? options_.block_tokens : groups_.block_tokens(e.group);
    r.valid = std::min(r.valid, e.block * tokens);
    r.pending_count = 0;
    finish(e.lease);
    return true;
  } else {
    cut(e.lease, e.block * options_.block_tokens);
  }
  if (over(r)) finish(e.lease);
  return true;
}

// ---- by step: loads and stores ---------------------------------------------------------------------------------------

template <EvictionPolicy Policy>
StepEntry BasicCache<Policy>::entry(StepKind kind, std::uint32_t lease, std::uint32_t b,
                                    SlotId slot) noexcept {
  LeaseRecord& r = leases_[lease];
  StepEntry e{.kind = kind,
              .group = primary_,
              .lease = lease,
              .generation = r.generation,
              .block = b,
              .slot = slot,
              .key = {},
              .not_before = in_place() || kind == StepKind::kStore ? pool().fence(slot) : kNow};
  if (options_.mode != IndexMode::kNothing) {
    const RunId run = run_of(r.place, b);
    tell_keys(lease, r.moved, run, b - index_->info(run).depth, 1,
              [&](BlockKey key, BlockKey) { e.key = key; });
  }
  return e;
}

template <EvictionPolicy Policy>
void BasicCache<Policy>::take_loads_of(std::uint32_t lease, std::span<StepEntry> out,
                                       std::size_t& n) noexcept {
  LeaseRecord& r = leases_[lease];
  for (; n < out.size() && r.loaded < r.matched; ++r.loaded) {
    const BlockPos pos = pos_[row(lease) + r.loaded];
    if (slot_of_[pos] == 0) {  // another lease found it damaged
      shorten(r, r.loaded);
      return;
    }
    const SlotId slot = slot_at(pos);
    slots_.begin_read(slot, options_.block_tokens);
    ++r.loading;
    out[n++] = entry(StepKind::kLoad, lease, r.loaded, slot);
  }
}

template <EvictionPolicy Policy>
void BasicCache<Policy>::take_stores_of(std::uint32_t lease, std::span<StepEntry> out,
                                        std::size_t& n) noexcept {
  LeaseRecord& r = leases_[lease];
  // A load that fails takes from the lease what was computed on top of it.
  if (r.loading > 0 || r.loaded < r.matched) return;
  while (n < out.size() && r.stored < r.settled) {
    const std::uint32_t b = r.stored;
    const bool in_tree = r.storing && b < r.place.blocks;
    const BlockPos pos = pos_[row(lease) + b];
    const bool inherited = r.forked && b < r.prompt_tokens / options_.block_tokens;
    if (in_tree && slot_of_[pos] != 0) {
      stats_.duplicate_blocks += !inherited;
      ++r.stored;
      continue;
    }
    // Of two branches that have a block one stores it.
    if (in_tree && inherited && owner_[pos] != 0 && owner_[pos] != lease + 1) return;
    const SlotId slot = in_tree ? allocate_slot(1) : kNoSlot;
    if (slot == kNoSlot) {
      stop_storing(lease);
      return;
    }
    slots_.begin_write_held(slot,
                            {lease, r.generation, b});  // the entry is the slot's holder until the tree is
    ++r.storing_now;
    ++r.stored;
    out[n++] = entry(StepKind::kStore, lease, b, slot);
  }
}

/// What comes behind a block that is not kept could never be reached, so it is not kept either.
template <EvictionPolicy Policy>
void BasicCache<Policy>::stop_storing(std::uint32_t lease) noexcept {
  LeaseRecord& r = leases_[lease];
  stats_.unpublished_blocks += r.settled - r.stored;
  r.stored = r.settled;
  r.publishing = r.storing = false;
  disclaim(lease);
}

template <EvictionPolicy Policy>
void BasicCache<Policy>::shorten(LeaseRecord& r, std::uint32_t blocks) noexcept {
  if (blocks >= r.matched) return;
  blocks = clip(r, blocks);
  r.matched = r.settled = r.stored = blocks;
  r.loaded = std::min(r.loaded, blocks);
  r.committed = r.scheduled = r.valid = blocks * options_.block_tokens;
  r.grid_tokens = std::min(r.grid_tokens, r.committed);
  r.pending_count = 0;  // what was computed on top is worth nothing
}

/// False if no such entry is under way.
template <EvictionPolicy Policy>
bool BasicCache<Policy>::complete_entry(const StepEntry& e, bool ok) noexcept {
  if (e.slot >= pool().capacity() || e.kind == StepKind::kCopy) return false;
  LeaseRecord* r =
      e.lease < options_.max_leases && leases_[e.lease].active && leases_[e.lease].generation == e.generation
          ? &leases_[e.lease]
          : nullptr;
  if (e.kind == StepKind::kLoad) {
    if (slots_.reads(e.slot) == 0 || (r != nullptr && r->loading == 0)) return false;
    slots_.end_read(e.slot);
    if (r == nullptr) return true;
    --r->loading;
    if (ok || e.block >= r->matched) return true;
    ++stats_.failed_loads;
    const bool same = slot_of_[pos_[row(e.lease) + e.block]] == e.slot + 1;  // nobody has replaced it since
    shorten(*r, e.block);
    if (same) invalidate(*r, e.lease, e.block);
    if (r->releasing) finish(e.lease);
    return true;
  }
  if (!slots_.writes_for(e.slot, {e.lease, e.generation, e.block})) return false;
  slots_.end_write_held(e.slot);
  if (r != nullptr) --r->storing_now;
  if (!ok) ++stats_.failed_stores;
  if (r != nullptr && ok && e.block < r->place.blocks) {
    const RunId run = run_of(r->place, e.block);
    const RunInfo info = index_->info(run);
    const std::uint32_t from = e.block - info.depth;
    const RunInfo above = index_->info(info.parent);
    if (info.ready == from && (from > 0 || above.ready == above.length)) {
      give(e.lease, e.block, e.slot);
      make_ready(e.lease, run, from, 1);
      return true;
    }
    if (info.ready > from)
      ++stats_.duplicate_blocks;
    else
      ++stats_.unpublished_blocks;
  }
  slots_.let_go(e.slot);
  if (r != nullptr && !ok) stop_storing(e.lease);
  return true;
}

/// The lease's block b cannot be used: it and all that rests on it are no longer ready.
template <EvictionPolicy Policy>
void BasicCache<Policy>::invalidate(LeaseRecord& r, std::uint32_t lease, std::uint32_t b) noexcept {
  const RunId run = run_of(r.place, b);
  const auto ready_below = [&](RunId top) {
    RunId deepest = kNoRun;
    index_->enumerate(top, [&](RunId id, const RunInfo& info) {
      if (info.ready > 0) deepest = id;  // parents come first, so the last has none below it in its branch
    });
    return deepest;
  };
  for (RunId id = ready_below(run); id != kNoRun; id = ready_below(run)) clear_ready(id, 0);
  clear_ready(run, b - index_->info(run).depth);
  for (;;) {
    RunId idle = kNoRun;
    index_->enumerate(run, [&](RunId id, const RunInfo& info) {
      if (info.children == 0 && info.references == 0) idle = id;
    });
    if (idle == kNoRun || prune(idle) == idle) break;
  }
  if (r.shared) claim(lease, b);
}

template <EvictionPolicy Policy>
void BasicCache<Policy>::clear_ready(RunId run, std::uint32_t keep) noexcept {
  const RunInfo info = index_->info(run);
  if (info.ready <= keep) return;
  record_removed(run, keep, info.ready - keep);
  index_->for_each_range(run, keep, info.ready - keep, [&](BlockPos first, std::uint32_t n) {
    for (BlockPos pos = first; pos < first + n; ++pos)
      if (slot_of_[pos] != 0) withdraw(pos, true);
  });
  index_->set_ready(run, keep);
}

}  // namespace kvstem::inline v0
