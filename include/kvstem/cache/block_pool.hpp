// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Which slots of a medium are free. A slot that was freed may still be read by a step that runs on the device, so it is
// held until the host says at which point the step ends, and then carries that point: it may be WRITTEN again only after
// it. The host's own next step on the same timeline is ordered after it anyway; copies must wait.
//
// A slot may have several holders (branches of a sequence, a copy that reads it); it is free when the last has let go.
//
// Used by Cache; useful alone as a fenced allocator. Threads: one. Cost: O(1); `end_step` O(slots freed in the step).
//
//   BlockPool pool;
//   if (!pool.take(heap_memory(), 1024)) return no_memory();
//   SlotId slot = pool.allocate();          // kNoSlot when none is free
//   pool.free(slot);                        // held
//   pool.end_step({kQueue, 7});             // free again, not to be written before {kQueue, 7}
//   Point fence = pool.fence(slot);
#pragma once

#include <cassert>
#include <cstdint>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/memory.hpp"
#include "kvstem/base/point.hpp"

namespace kvstem::inline v0 {

class BlockPool {
 public:
  [[nodiscard]] bool take(const Memory& memory, std::uint32_t slots) noexcept {
    if (!ring_.take(memory, slots) || !fence_.take(memory, slots) || !slots_.take(memory, slots))
      return false;
    for (std::uint32_t i = 0; i < slots; ++i) ring_[i] = i;
    free_ = slots;
    return true;
  }

  [[nodiscard]] std::uint32_t capacity() const noexcept { return static_cast<std::uint32_t>(ring_.size()); }
  [[nodiscard]] std::uint32_t free_slots() const noexcept { return free_; }
  /// Freed in the step that has not ended.
  [[nodiscard]] std::uint32_t held_slots() const noexcept { return held_; }
  [[nodiscard]] std::uint32_t used_slots() const noexcept { return capacity() - free_ - held_; }

  /// The slot that has been free for longest, or kNoSlot.
  [[nodiscard]] SlotId allocate() noexcept {
    if (free_ == 0) return kNoSlot;
    const SlotId slot = ring_[first_];
    first_ = next(first_);
    --free_;
    slots_[slot].holders = 1;
    return slot;
  }
  /// Holders of the slot; 0 if it is not in use.
  [[nodiscard]] std::uint32_t holders(SlotId slot) const noexcept { return slots_[slot].holders; }
  /// Whether a holder let go in the open step that may touch it.
  [[nodiscard]] bool touched(SlotId slot) const noexcept { return slots_[slot].touched == step_; }
  /// One more of a slot in use.
  void share(SlotId slot) noexcept { shared_ += slots_[slot].holders++ == 1; }
  /// Slots with more than one holder.
  [[nodiscard]] std::uint32_t shared_slots() const noexcept { return shared_; }
  /// Not to be written before this point.
  [[nodiscard]] Point fence(SlotId slot) const noexcept { return fence_[slot]; }

  /// One holder fewer; behind the last the slot is held until `end_step`. False (and nothing happens) if it is not in use.
  bool free(SlotId slot) noexcept {
    if (slot >= capacity() || slots_[slot].holders == 0) return false;
    slots_[slot].touched = step_;
    if (--slots_[slot].holders > 0) {
      shared_ -= slots_[slot].holders == 1;
      return true;
    }
    ring_[at(free_ + held_)] = slot;
    ++held_;
    return true;
  }
  /// As `free`, by a holder that does not touch it in the open step: behind the last the slot is free again now, not to be
  /// written before `fence`.
  bool free_at_once(SlotId slot, Point fence) noexcept {
    if (slot >= capacity() || slots_[slot].holders == 0) return false;
    if (slots_[slot].touched == step_) return free(slot);
    if (--slots_[slot].holders > 0) {
      shared_ -= slots_[slot].holders == 1;
      return true;
    }
    fence_[slot] = fence;
    ring_[at(free_ + held_)] = ring_[at(free_)];
    ring_[at(free_)] = slot;
    ++free_;
    return true;
  }
  /// The open step ends at `point`: what was freed in it is free again, fenced by it.
  void end_step(Point point) noexcept {
    for (; held_ > 0; --held_, ++free_) fence_[ring_[at(free_)]] = point;
    ++step_;
  }

 private:
  struct Slot {
    std::uint32_t holders;
    std::uint32_t touched;  // the last step in which a holder let go that may touch it
  };
  // ring_ from first_: free slots, then held ones, then nothing.
  [[nodiscard]] std::uint32_t at(std::uint32_t i) const noexcept {
    const std::uint64_t p = std::uint64_t{first_} + i;
    return static_cast<std::uint32_t>(p < capacity() ? p : p - capacity());
  }
  [[nodiscard]] std::uint32_t next(std::uint32_t i) const noexcept { return i + 1 == capacity() ? 0 : i + 1; }

  FixedArray<SlotId> ring_;
  FixedArray<Point> fence_;
  FixedArray<Slot> slots_;
  std::uint32_t step_ = 1;
  std::uint32_t first_ = 0, free_ = 0, held_ = 0, shared_ = 0;
};

}  // namespace kvstem::inline v0
