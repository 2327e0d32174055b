// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The part of BasicCache that finds slots: what a lease needs in each pool, whether it is to be had, and who goes for it.
// Include cache.hpp.
//
// A refusal takes nothing from anybody. So what there is to be had is counted before anything goes, but for a single slot
// where counting would cost more than looking for a victim.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kvstem/cache/cache.hpp"

namespace kvstem::inline v0 {

template <EvictionPolicy Policy>
bool BasicCache<Policy>::evict_one(std::uint32_t n, std::uint32_t older_than) noexcept {
  const Evictable evictable(
      [](const void* self, std::uint32_t run) noexcept {
        const auto& cache = *static_cast<const BasicCache*>(self);
        const RunInfo info = cache.index_->info(run);
        // What was released in the open step may still be read by it.
        return info.children == 0 && info.references == 0 &&
               (!cache.in_place() || cache.released_[run] != cache.step_);
      },
      this);
  for (int attempt = 0; attempt < 8; ++attempt) {
    const Victim victim = policy_.victim(evictable);
    if (victim.run == kNoVictim || released_[victim.run] >= older_than) return false;
    if (remove_tail(victim.run, std::min({n, victim.blocks, index_->info(victim.run).length}), true))
      return true;
    policy_.on_release(victim.run, 0);  // a reader pinned it between the question and the trim
  }
  return false;
}

template <EvictionPolicy Policy>
bool BasicCache<Policy>::make_room(SlotBooks& books, std::uint32_t wanted) noexcept {
  while (books.pool().free_slots() == 0) {
    if (!groups_.any()) {
      if (!evict_one(wanted)) return false;
      continue;
    }
    // What is older goes first: a share that may go alone, or a block with all its shares.
    const std::uint32_t share = groups_.oldest(books);
    const bool blocks = &books == &slots_ || groups_.has_dense(books);
    if (blocks && evict_one(&books == &slots_ ? wanted : 1, share)) continue;
    if (share == ~std::uint32_t{0} || !groups_.evict(books)) return false;
    ++stats_.evicted_shares;
  }
  return true;
}

template <EvictionPolicy Policy>
bool BasicCache<Policy>::pool_shares() const noexcept {
  for (GroupId g = 0; groups_.any() && g < kMaxGroups; ++g)
    if (const SlotBooks* books = groups_.books(g); books != nullptr && books->pool().shared_slots() > 0)
      return true;
  return false;
}

template <EvictionPolicy Policy>
template <class Fn>
void BasicCache<Policy>::for_each_want(std::uint32_t lease, std::uint32_t n, std::uint32_t primary,
                                       Fn&& fn) noexcept {
  const std::uint32_t at = leases_[lease].scheduled;
  SlotBooks* books[kMaxGroups + 1] = {&slots_};
  std::uint32_t slots[kMaxGroups + 1] = {primary}, pools = 1;
  groups_.for_each_need(lease, at, at + n, [&](std::uint32_t index, std::uint32_t wanted, std::uint32_t) {
    std::uint32_t p = 0;
    while (p < pools && books[p] != &groups_.books_at(index)) ++p;
    if (p == pools) books[pools] = &groups_.books_at(index), slots[pools++] = 0;
    slots[p] += wanted;
  });
  for (std::uint32_t p = 0; p < pools; ++p)
    if (slots[p] > 0) fn(*books[p], slots[p]);
}

template <EvictionPolicy Policy>
ReserveQuote BasicCache<Policy>::quote(std::uint32_t lease, std::uint32_t n) noexcept {
  const LeaseRecord& r = leases_[lease];
  ReserveQuote a;
  if (!in_place()) return a;
  const bool never = n > options_.max_lease_tokens - r.scheduled;
  const std::uint32_t have = blocks_for(r.scheduled), need = never ? have : blocks_for(r.scheduled + n);
  const bool copy = n > 0 && pool().shared_slots() > 0 && shared_frontier(lease);
  if (never || need > slots_.capacity()) a.verdict = ReserveQuote::Verdict::kNever;
  if (never) return a;
  for_each_want(lease, n, need - have + (copy ? 1 : 0), [&](SlotBooks& books, std::uint32_t slots) {
    a.slots += slots;
    const std::uint32_t free = books.pool().free_slots();
    auto verdict = ReserveQuote::Verdict::kFits;
    if (slots > books.capacity()) {
      verdict = ReserveQuote::Verdict::kNever;
    } else if (slots > free) {
      const bool now = slots <= obtainable_slots(books) + unusable_slots(lease, books);
      verdict = now ? ReserveQuote::Verdict::kEvicts : ReserveQuote::Verdict::kLater;
      a.evicted += slots - free;
    }
    a.verdict = std::max(a.verdict, verdict);
  });
  if (a.verdict != ReserveQuote::Verdict::kEvicts) a.evicted = 0;
  return a;
}

template <EvictionPolicy Policy>
Status BasicCache<Policy>::reserve_slots(std::uint32_t lease, std::uint32_t n, std::uint32_t have,
                                         std::uint32_t need, bool copy, bool keep_found) noexcept {
  LeaseRecord& r = leases_[lease];
  constexpr Status kInUse{StatusCode::kExhausted,
                          "all slots are in use: release leases, or end the step that freed some"};
  if (need > slots_.capacity())
    return {StatusCode::kOutOfRange, "longer than all of CacheOptions::slots (less the null slot)"};
  if ((copy && slots_.writes(table_slot(lease, have - 1)) > 0) || groups_.writes_frontier(lease, r.scheduled))
    return {StatusCode::kExhausted,
            "the last block is being written and read by copies: complete them, then reserve again"};
  if (copy && !groups_.any() && need - have + 1 > pool().free_slots()) {
    const std::uint32_t obtainable = obtainable_slots(slots_);
    if (need - have == obtainable) copy = !take_back_frontier(lease);
  }
  if ((copy || pool_shares()) &&
      std::size_t{groups_.count() + 1} * copies_for(r, r.scheduled) > copies_.size() - copy_count_)
    return too_many_copies();
  // A refusal takes nothing from anybody, so what there is to be had is counted before anything goes.
  const std::uint32_t copies = copy ? 1 : 0, wanted = need - have + copies;
  if (groups_.any()) {
    // Where a window or a state is missing, much may be there that cannot be used: is it enough, in every pool?
    bool enough = true;
    const auto room = [&] {
      Status status;
      for_each_want(lease, n, wanted, [&](SlotBooks& books, std::uint32_t slots) {
        if (slots > books.capacity()) status = {StatusCode::kOutOfRange, "more than all slots of a group"};
        if (!enough || slots <= books.pool().free_slots()) return;
        const std::uint32_t obtainable = obtainable_slots(books);
        if (slots <= obtainable) return;
        if (status.ok()) status = kInUse;
        enough = slots <= obtainable + unusable_slots(lease, books);
      });
      return status;
    };
    Status status = room();
    if (status.code() == StatusCode::kExhausted && !keep_found && enough && give_up_unusable(lease))
      status = room();
    if (!status.ok()) return status;
  } else if ((wanted > 1 || slots_.some_busy()) && wanted > pool().free_slots()) {
    const std::uint32_t obtainable = obtainable_slots(slots_);
    if (wanted > obtainable &&
        (keep_found || unusable_slots(lease, slots_) < wanted - obtainable || !give_up_unusable(lease)))
      return kInUse;
  }
  SlotId copied = kNoSlot;
  for (std::uint32_t i = 0; i < wanted; ++i) {
    SlotId slot = allocate_slot(wanted - i);
    if (slot == kNoSlot && !keep_found && !groups_.any() && unusable_slots(lease, slots_) >= wanted - i &&
        give_up_unusable(lease))
      slot = allocate_slot(wanted - i);
    if (slot == kNoSlot) {
      give_back(lease, have, i > copies ? have + i - copies : have, copied);
      return kInUse;
    }
    not_before(r, slots_, slot);
    if (i < copies) {
      copied = slot;
      continue;
    }
    const std::size_t at = row(lease) + have + i - copies;
    table_[at] = static_cast<std::int32_t>(slot);
    own_[at] = kOwn;
  }
  if (groups_.any() && !reserve_groups(lease, n)) {
    give_back(lease, have, need, copied);
    return kInUse;
  }
  if (copy) copy_frontier(lease, copied);
  if (have < need) changed(r, have, need);
  groups_.arm(lease);
  return {};
}

template <EvictionPolicy Policy>
void BasicCache<Policy>::give_back(std::uint32_t lease, std::uint32_t from, std::uint32_t to,
                                   SlotId copied) noexcept {
  for (std::uint32_t b = to; b-- > from;) {
    slots_.give_back(table_slot(lease, b));
    own_[row(lease) + b] = 0;
  }
  set_null(lease, from, to);
  if (copied != kNoSlot) slots_.give_back(copied);
}

template <EvictionPolicy Policy>
std::uint32_t BasicCache<Policy>::mark_held(std::uint32_t but) noexcept {
  ++mark_;
  std::uint32_t held = 0;
  const auto hold_ended = [&](RunId run) {
    if (released_[run] == step_) held += mark_path(run);
  };
  for (std::uint32_t i = 0; i < options_.max_leases; ++i)
    if (leases_[i].active && i != but) held += mark_path(leases_[i].pinned);
  if (ended_count_ <= ended_.size())
    for (std::uint32_t i = 0; i < ended_count_; ++i) hold_ended(ended_[i]);
  else  // too many to remember: a look at everything
    for (std::uint32_t s = 0; s < scope_count_.load(std::memory_order_relaxed); ++s)
      index_->enumerate(root_run_[s], [&](RunId run, const RunInfo&) { hold_ended(run); });
  return held;
}

template <EvictionPolicy Policy>
std::uint32_t BasicCache<Policy>::obtainable_slots(const SlotBooks& books) noexcept {
  const std::uint32_t held = mark_held();
  const auto for_each_run = [&](auto&& fn) {
    for (std::uint32_t s = 0; s < scope_count_.load(std::memory_order_relaxed); ++s)
      index_->enumerate(root_run_[s], fn);
  };
  const std::uint32_t free = books.pool().free_slots();
  if (books.some_busy()) {  // then each has to be looked at
    std::uint32_t slots = 0;
    for_each_run([&](RunId run, const RunInfo& info) {
      const bool on_path = marks_[run] == mark_;
      index_->for_each_range(run, 0, info.ready, [&](BlockPos first, std::uint32_t n) {
        for (BlockPos pos = first; pos < first + n; ++pos) {
          slots += &books == &slots_ && !on_path && !books.busy(slot_at(pos));
          slots += groups_.evictable(books, pos, on_path);
        }
      });
    });
    return free + slots;
  }
  std::uint32_t kept = &books == &slots_ ? held : 0;
  if (groups_.any())
    kept += groups_.kept(books, [&](auto&& fn) {
      for_each_run([&](RunId run, const RunInfo& info) {
        if (marks_[run] == mark_) index_->for_each_range(run, 0, info.ready, fn);
      });
    });
  return free + books.tree_slots() - kept;
}

template <EvictionPolicy Policy>
std::uint32_t BasicCache<Policy>::mark_path(RunId run) noexcept {
  std::uint32_t blocks = 0;
  for (RunInfo info = index_->info(run); info.parent != kNoRun && marks_[run] != mark_;
       run = info.parent, info = index_->info(run)) {
    marks_[run] = mark_;
    blocks += info.ready;
  }
  return blocks;
}

template <EvictionPolicy Policy>
std::uint32_t BasicCache<Policy>::first_unused(std::uint32_t lease) const noexcept {
  const LeaseRecord& r = leases_[lease];
  std::uint32_t used = std::max(r.matched, r.settled);
  while (used > r.matched && own_[row(lease) + used - 1] != 0) --used;
  // Loads that nobody has taken are told by the keys of their blocks.
  return std::max(used, r.loaded < r.load_end ? r.load_end : 0);
}

template <EvictionPolicy Policy>
std::uint32_t BasicCache<Policy>::unusable_slots(std::uint32_t lease, const SlotBooks& books) noexcept {
  const LeaseRecord& r = leases_[lease];
  const std::uint32_t from = first_unused(lease);
  (void)mark_held(lease);
  std::uint32_t slots = 0;
  RunId run = index_->locate(r.place);
  for (RunInfo info = index_->info(run);
       info.parent != kNoRun && info.depth + info.length > from && marks_[run] != mark_;
       run = info.parent, info = index_->info(run)) {
    std::uint32_t b = info.depth;
    index_->for_each_range(run, 0, info.ready, [&](BlockPos first, std::uint32_t n) {
      for (BlockPos pos = first; pos < first + n; ++pos, ++b) {
        if (b < from) continue;
        slots += &books == &slots_ && !slots_.busy(slot_at(pos));
        slots += groups_.bound(books, pos);
      }
    });
  }
  return slots;
}

template <EvictionPolicy Policy>
bool BasicCache<Policy>::give_up_unusable(std::uint32_t lease) noexcept {
  LeaseRecord& r = leases_[lease];
  // As far as nobody else is on the path.
  (void)mark_held(lease);
  std::uint32_t from = r.place.blocks;
  RunId run = index_->locate(r.place);
  for (RunInfo info = index_->info(run);
       info.parent != kNoRun && from > first_unused(lease) && marks_[run] != mark_;
       run = info.parent, info = index_->info(run))
    from = std::max(info.depth, first_unused(lease));
  Place kept{r.place.run, r.place.generation, from};
  split(kept, StoredKeys{this});
  const RunInfo end = index_->info(index_->locate(kept));
  if (end.depth + end.length != from) return false;
  disclaim(lease);
  r.publishing = false;
  r.place.blocks = from;
  repin(r);
  return true;
}

/// The slots that n tokens more need in the other groups. False, and nothing taken, if they are not to be had.
template <EvictionPolicy Policy>
bool BasicCache<Policy>::reserve_groups(std::uint32_t lease, std::uint32_t n) noexcept {
  LeaseRecord& r = leases_[lease];
  SlotId copied[kMaxGroups];
  std::uint32_t added[kMaxGroups] = {};
  bool all = true;
  groups_.for_each_need(lease, r.scheduled, r.scheduled + n,
                        [&](std::uint32_t index, std::uint32_t wanted, std::uint32_t copies) {
                          SlotBooks& from = groups_.books_at(index);
                          copied[index] = kNoSlot;
                          for (std::uint32_t i = 0; all && i < wanted; ++i) {
                            const SlotId slot = allocate_slot(from, wanted - i);
                            all = slot != kNoSlot;
                            if (!all) break;
                            not_before(r, from, slot);
                            if (i < copies) {
                              copied[index] = slot;
                            } else {
                              groups_.add_slot(index, lease, slot);
                              ++added[index];
                            }
                          }
                        });
  for (std::uint32_t index = 0; index < groups_.count(); ++index) {
    if (!all) {
      for (; added[index] > 0; --added[index]) groups_.take_slot(index, lease);
      if (copied[index] != kNoSlot) groups_.books_at(index).give_back(copied[index]);
    } else if (copied[index] != kNoSlot) {
      const GroupSet::Copied block = groups_.copy_frontier(index, lease, r.scheduled, copied[index]);
      copy_block(lease, block.group, groups_.books_at(index), groups_.block_tokens(block.group), block.from,
                 copied[index], r.scheduled);
      groups_.books_at(index).let_go(block.from);
    }
  }
  return all;
}

}  // namespace kvstem::inline v0
