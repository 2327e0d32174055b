// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Where the index keeps what it compares: one array of fixed-size units (the tokens of a block, or its key), handed out
// in segments of 2^k quanta by a buddy allocator (Knowlton 1965). A span is a list of segments, so it grows in place
// and never moves: a unit's number (`BlockPos`) names its block for as long as the block is in the tree, whatever is
// split or merged around it.
//
// For the index only. Threads: one writer; readers follow `next` and `used`, and rely on the epochs for what they see
// not to be reused. All memory is taken by `take`.
#pragma once

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>

#include "kvstem/base/memory.hpp"
#include "kvstem/model/block_key.hpp"

namespace kvstem::inline v0 {

/// A block's place in the index's arena; side tables of the cache are indexed by it.
using BlockPos = std::uint32_t;
inline constexpr BlockPos kNoPos = std::numeric_limits<BlockPos>::max();

class SpanArena {
 public:
  /// A segment is named by its first quantum.
  using SegmentId = std::uint32_t;
  static constexpr SegmentId kNoSegment = std::numeric_limits<SegmentId>::max();
  static constexpr std::uint32_t kMaxOrder = 7;

  struct Segment {
    std::atomic<std::uint32_t> next;  // following segment of the span; free list link while free
    std::atomic<std::uint32_t> used;  // units in use from the segment's start; free list back link while free
    std::uint32_t references;         // runs that have blocks here
    std::uint8_t order;               // 2^order quanta
    bool free;
    std::uint16_t retiring;  // trims that cut behind this segment and whose blocks readers may still see
    BlockKey before;         // key of the block before the segment's first unit
  };
  static_assert(sizeof(Segment) == 32);

  /// Units that are handed out together. At least 128 bytes, so that 32 bytes of bookkeeping stay small beside them.
  [[nodiscard]] static constexpr std::uint32_t quantum_units(std::uint32_t unit_bytes) noexcept {
    return unit_bytes >= 64 ? 2 : std::bit_ceil(128 / unit_bytes);
  }

  /// Without `has_units` the same units are given out, with no bytes behind them (a replay).
  [[nodiscard]] bool take(const Memory& memory, std::uint32_t units, std::uint32_t unit_bytes,
                          bool has_units = true) noexcept {
    unit_bytes_ = has_units ? unit_bytes : 0;
    quantum_units_ = quantum_units(unit_bytes);
    const std::uint32_t big = quantum_units_ << kMaxOrder;
    quanta_ = (units + big - 1) / big << kMaxOrder;
    for (auto& head : free_) head = kNoSegment;
    return segments_.take(memory, quanta_) &&
           bytes_.take(memory, std::size_t{units_capacity()} * unit_bytes_);
  }

  [[nodiscard]] std::uint32_t units_capacity() const noexcept { return quanta_ * quantum_units_; }
  [[nodiscard]] std::uint32_t units_taken() const noexcept { return taken_ * quantum_units_; }
  [[nodiscard]] std::size_t bytes_reserved() const noexcept { return bytes_.bytes() + segments_.bytes(); }
  [[nodiscard]] std::size_t bytes_taken() const noexcept {
    return std::size_t{taken_} * (std::size_t{quantum_units_} * unit_bytes_ + sizeof(Segment));
  }

  [[nodiscard]] std::byte* unit(BlockPos pos) noexcept {
    return bytes_.data() + std::size_t{pos} * unit_bytes_;
  }
  [[nodiscard]] const std::byte* unit(BlockPos pos) const noexcept {
    return bytes_.data() + std::size_t{pos} * unit_bytes_;
  }
  [[nodiscard]] Segment& segment(SegmentId id) noexcept { return segments_[id]; }
  [[nodiscard]] const Segment& segment(SegmentId id) const noexcept { return segments_[id]; }
  [[nodiscard]] BlockPos begin(SegmentId id) const noexcept { return id * quantum_units_; }
  [[nodiscard]] std::uint32_t capacity(SegmentId id) const noexcept {
    return quantum_units_ << segments_[id].order;
  }

  /// A new segment for about `units` units: the largest that has no more than `spare` units too many, never less than a
  /// quantum, and smaller where memory is fragmented. kNoSegment when nothing is left.
  [[nodiscard]] SegmentId allocate(std::uint32_t units, std::uint32_t spare) noexcept {
    const std::uint32_t quanta = (units + spare) / quantum_units_;
    std::uint32_t order = quanta == 0 ? 0 : static_cast<std::uint32_t>(std::bit_width(quanta)) - 1;
    if (order > kMaxOrder) order = kMaxOrder;
    for (;; --order) {
      const SegmentId id = allocate_order(order);
      if (id != kNoSegment || order == 0) return id;
    }
  }

  /// For content that must lie in one piece: at least `units`, or kNoSegment.
  [[nodiscard]] SegmentId allocate_whole(std::uint32_t units) noexcept {
    const std::uint32_t quanta = (units + quantum_units_ - 1) / quantum_units_;
    const auto order = static_cast<std::uint32_t>(std::bit_width(quanta - 1));
    return order > kMaxOrder ? kNoSegment : allocate_order(order);
  }

  void free(SegmentId id) noexcept {
    std::uint32_t order = segments_[id].order;
    taken_ -= 1u << order;
    while (order < kMaxOrder) {
      const SegmentId buddy = id ^ (1u << order);
      if (!segments_[buddy].free || segments_[buddy].order != order) break;
      unlink(buddy);
      id &= ~(1u << order);
      ++order;
    }
    push(id, order);
  }

  /// Gives back the upper halves that lie wholly behind the first `units` units.
  void shrink(SegmentId id, std::uint32_t units) noexcept {
    while (segments_[id].order > 0 && units <= (quantum_units_ << (segments_[id].order - 1u))) {
      const auto order = static_cast<std::uint8_t>(segments_[id].order - 1);
      segments_[id].order = order;
      const SegmentId upper = id + (1u << order);
      segments_[upper].order = order;
      free(upper);
    }
  }

 private:
  SegmentId allocate_order(std::uint32_t order) noexcept {
    std::uint32_t from = order;
    while (from <= kMaxOrder && free_[from] == kNoSegment) ++from;
    SegmentId id;
    if (from <= kMaxOrder) {
      id = free_[from];
      unlink(id);
    } else if (fresh_ < quanta_) {
      // Untouched memory is carved from the front, so that pages nobody needs are never touched.
      id = fresh_;
      from = kMaxOrder;
      fresh_ += 1u << kMaxOrder;
    } else {
      return kNoSegment;
    }
    for (; from > order; --from) push(id + (1u << (from - 1)), from - 1);
    taken_ += 1u << order;
    ::new (&segments_[id]) Segment{.next = kNoSegment,
                                   .used = 0,
                                   .references = 0,
                                   .order = static_cast<std::uint8_t>(order),
                                   .free = false,
                                   .retiring = 0,
                                   .before = {}};
    return id;
  }

  void push(SegmentId id, std::uint32_t order) noexcept {
    Segment& s = segments_[id];
    s.order = static_cast<std::uint8_t>(order);
    s.free = true;
    s.next.store(free_[order], std::memory_order_relaxed);
    s.used.store(kNoSegment, std::memory_order_relaxed);
    if (free_[order] != kNoSegment) segments_[free_[order]].used.store(id, std::memory_order_relaxed);
    free_[order] = id;
  }

  void unlink(SegmentId id) noexcept {
    Segment& s = segments_[id];
    const SegmentId next = s.next.load(std::memory_order_relaxed);
    const SegmentId previous = s.used.load(std::memory_order_relaxed);
    if (next != kNoSegment) segments_[next].used.store(previous, std::memory_order_relaxed);
    if (previous != kNoSegment)
      segments_[previous].next.store(next, std::memory_order_relaxed);
    else
      free_[s.order] = next;
    s.free = false;
  }

  FixedArray<Segment> segments_;
  FixedArray<std::byte> bytes_;
  SegmentId free_[kMaxOrder + 1] = {};
  std::uint32_t unit_bytes_ = 0;
  std::uint32_t quantum_units_ = 1;
  std::uint32_t quanta_ = 0;
  std::uint32_t fresh_ = 0;
  std::uint32_t taken_ = 0;
};

}  // namespace kvstem::inline v0
