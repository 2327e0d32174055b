// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Which slots of a medium are free. A slot that was freed may still be read by a step that runs on the device, so it is
// held until the host says at which point the step ends, and then carries that point: it may be WRITTEN again only after
// it. The host's own next step on the same timeline is ordered after it anyway; copies must wait.
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
    if (!ring_.take(memory, slots) || !fence_.take(memory, slots) || !state_.take(memory, slots))
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
    state_[slot] = State::kUsed;
    return slot;
  }
  /// Not to be written before this point.
  [[nodiscard]] Point fence(SlotId slot) const noexcept { return fence_[slot]; }

  /// Held until `end_step`. False (and nothing happens) if the slot is not in use.
  bool free(SlotId slot) noexcept {
    if (slot >= capacity() || state_[slot] != State::kUsed) return false;
    state_[slot] = State::kHeld;
    ring_[at(free_ + held_)] = slot;
    ++held_;
    return true;
  }
  /// Free again now, not to be written before `fence`: for a slot that the open step does not touch.
  bool free_at_once(SlotId slot, Point fence) noexcept {
    if (slot >= capacity() || state_[slot] != State::kUsed) return false;
    state_[slot] = State::kFree;
    fence_[slot] = fence;
    ring_[at(free_ + held_)] = ring_[at(free_)];
    ring_[at(free_)] = slot;
    ++free_;
    return true;
  }
  /// The open step ends at `point`: what was freed in it is free again, fenced by it.
  void end_step(Point point) noexcept {
    for (; held_ > 0; --held_, ++free_) {
      const SlotId slot = ring_[at(free_)];
      fence_[slot] = point;
      state_[slot] = State::kFree;
    }
  }

 private:
  enum class State : std::uint8_t { kFree, kUsed, kHeld };
  // ring_ from first_: free slots, then held ones, then nothing.
  [[nodiscard]] std::uint32_t at(std::uint32_t i) const noexcept {
    const std::uint64_t p = std::uint64_t{first_} + i;
    return static_cast<std::uint32_t>(p < capacity() ? p : p - capacity());
  }
  [[nodiscard]] std::uint32_t next(std::uint32_t i) const noexcept { return i + 1 == capacity() ? 0 : i + 1; }

  FixedArray<SlotId> ring_;
  FixedArray<Point> fence_;
  FixedArray<State> state_;
  std::uint32_t first_ = 0, free_ = 0, held_ = 0;
};

}  // namespace kvstem::inline v0
