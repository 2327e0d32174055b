// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A pool of slots, and the books of who holds them: leases, the tree (what is published), and entries of steps that read or
// write them. A slot goes back to the pool when the last holder lets go, whoever that is; so nothing that is under way ever
// meets a slot that was given away.
//
// For the cache only. Threads: one. Cost: O(1) each.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstdint>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/memory.hpp"
#include "kvstem/base/point.hpp"
#include "kvstem/cache/block_pool.hpp"

namespace kvstem::inline v0 {

class SlotBooks {
 public:
  /// The block of a lease that an entry writes; all that write a slot at a time do it for one.
  struct Writer {
    std::uint32_t lease, generation, block;
    friend constexpr bool operator==(const Writer&, const Writer&) noexcept = default;
  };

  /// `in_place`: what a lease or an entry lets go of may be touched by the open step. `null_slot`: slot 0 is never given out.
  [[nodiscard]] bool take(const Memory& memory, std::uint32_t slots, bool in_place, bool null_slot) noexcept {
    in_place_ = in_place;
    if (!pool_.take(memory, slots) || !facts_.take(memory, slots)) return false;
    if (null_slot) [[maybe_unused]]
      const SlotId null = pool_.allocate();
    null_slots_ = null_slot ? 1 : 0;
    return true;
  }

  [[nodiscard]] const BlockPool& pool() const noexcept { return pool_; }
  /// Slots that can be given out.
  [[nodiscard]] std::uint32_t capacity() const noexcept { return pool_.capacity() - null_slots_; }
  [[nodiscard]] std::uint32_t null_slots() const noexcept { return null_slots_; }
  void end_step(Point point) noexcept {
    last_step_ = point;
    touched_tree_ = false;
    pool_.end_step(point);
  }

  /// The caller is its first holder. kNoSlot if none is free.
  [[nodiscard]] SlotId allocate() noexcept { return pool_.allocate(); }
  /// Gives back what was allocated and not used.
  void give_back(SlotId slot) noexcept { (void)pool_.free_at_once(slot, pool_.fence(slot)); }

  void hold(SlotId slot) noexcept {
    shared_tree_ += facts_[slot].published && pool_.holders(slot) == 1;
    pool_.share(slot);
  }
  void let_go(SlotId slot) noexcept {
    shared_tree_ -= facts_[slot].published && pool_.holders(slot) == 2;
    touched_tree_ = touched_tree_ || facts_[slot].published;
    free(slot, !in_place_);
  }
  /// The tree becomes a holder, in place of the lease or the entry that was one.
  void publish(SlotId slot) noexcept {
    facts_[slot].published = true;
    ++tree_;
    shared_tree_ += pool_.holders(slot) > 1;
  }
  /// The tree is a holder no longer. What was evicted was last touched in a step that has ended.
  void withdraw(SlotId slot, bool evicted) noexcept {
    facts_[slot].published = false;
    --tree_;
    shared_tree_ -= pool_.holders(slot) > 1;
    free(slot, evicted || !in_place_);
  }

  // Entries: each holds the slots that it reads and writes until it is reported.
  /// `tokens`: how many of its leading tokens must not be overwritten meanwhile.
  void begin_read(SlotId slot, std::uint32_t tokens) noexcept {
    hold(slot);
    ++moving_;
    ++facts_[slot].reads;
    facts_[slot].read_tokens = std::max(facts_[slot].read_tokens, tokens);
  }
  void end_read(SlotId slot) noexcept {
    if (--facts_[slot].reads == 0) facts_[slot].read_tokens = 0;
    --moving_;
    let_go(slot);
  }
  void begin_write(SlotId slot, Writer writer) noexcept {
    hold(slot);
    begin_write_held(slot, writer);
  }
  /// The entry takes over what its maker held.
  void begin_write_held(SlotId slot, Writer writer) noexcept {
    ++moving_;
    ++facts_[slot].writes;
    facts_[slot].writer = writer;
  }
  /// For whom the slot is being written.
  [[nodiscard]] bool writes_for(SlotId slot, Writer writer) const noexcept {
    return facts_[slot].writes > 0 && facts_[slot].writer == writer;
  }
  void end_write(SlotId slot) noexcept {
    end_write_held(slot);
    let_go(slot);
  }
  void end_write_held(SlotId slot) noexcept {
    --facts_[slot].writes;
    --moving_;
  }
  [[nodiscard]] std::uint32_t reads(SlotId slot) const noexcept { return facts_[slot].reads; }
  [[nodiscard]] std::uint32_t writes(SlotId slot) const noexcept { return facts_[slot].writes; }
  /// How many of the slot's leading tokens must not be overwritten now.
  [[nodiscard]] std::uint32_t read_tokens(SlotId slot) const noexcept { return facts_[slot].read_tokens; }
  /// Entries that write the slot and were handed out.
  [[nodiscard]] std::uint32_t& loads_out(SlotId slot) noexcept { return facts_[slot].loads_out; }
  [[nodiscard]] std::uint32_t& copies_out(SlotId slot) noexcept { return facts_[slot].copies_out; }

  /// Holders that may write into the slot, or go on reading what is in it: all but the entries.
  [[nodiscard]] std::uint32_t users(SlotId slot) const noexcept {
    return pool_.holders(slot) - facts_[slot].reads - facts_[slot].writes;
  }
  [[nodiscard]] bool published(SlotId slot) const noexcept { return facts_[slot].published; }

  // Counts.
  [[nodiscard]] std::uint32_t moving() const noexcept { return moving_; }    // holds of entries
  [[nodiscard]] std::uint32_t tree_slots() const noexcept { return tree_; }  // that the tree holds
  /// Whether there may be slots of the tree that evicting their blocks would not free now: somebody else holds them, or did
  /// in the open step.
  [[nodiscard]] bool some_busy() const noexcept { return shared_tree_ > 0 || touched_tree_; }
  [[nodiscard]] bool busy(SlotId slot) const noexcept {
    return facts_[slot].published && (pool_.holders(slot) > 1 || pool_.touched(slot));
  }

 private:
  struct Facts {
    std::uint32_t reads, writes;  // entries
    Writer writer;
    std::uint32_t loads_out, copies_out;
    std::uint32_t read_tokens;
    bool published;
  };
  void free(SlotId slot, bool at_once) noexcept {
    [[maybe_unused]] const bool freed = at_once ? pool_.free_at_once(slot, last_step_) : pool_.free(slot);
    assert(freed);
  }

  BlockPool pool_;
  FixedArray<Facts> facts_;
  Point last_step_{};
  std::uint32_t moving_ = 0, tree_ = 0, shared_tree_ = 0, null_slots_ = 0;
  bool in_place_ = true, touched_tree_ = false;
};

}  // namespace kvstem::inline v0
