// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Blocks in host memory: one arena of equal slots, taken once and used again and again (a fresh buffer costs five times
// the copy, for its page faults). Each block has a checksum over its bytes, seeded with its key, the slot's generation
// and the representation; so a torn, stale, foreign or flipped block is a miss.
//
// Cost: a checksum over the bytes (XXH3, about memory speed) at seal and at read; no allocation. Threads: one.
//
//   HostTier tier;
//   if (!tier.take(heap_memory(), 1024, block_bytes, fingerprint(representation)).ok()) return;
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvstem/base/memory.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/model/block_key.hpp"
#include "kvstem/tier/tier.hpp"

namespace kvstem::inline v0 {

class HostTier {
 public:
  /// Takes slots * slot_bytes (rounded up to 64) of memory. kInvalidArgument for a size of 0, kExhausted without memory.
  [[nodiscard]] Status take(const Memory& memory, std::uint32_t slots, std::size_t slot_bytes,
                            BlockKey representation) noexcept {
    if (slots == 0 || slot_bytes == 0)
      return {StatusCode::kInvalidArgument, "a host tier needs at least one slot of at least one byte"};
    slot_bytes_ = slot_bytes;
    stride_ = (slot_bytes + 63) / 64 * 64;
    representation_ = representation;
    if (!records_.take(memory, slots) || !arena_.take(memory, stride_ * slots))
      return {StatusCode::kExhausted, "no memory for the host tier: lower its size"};
    return {};
  }

  [[nodiscard]] Medium medium() const noexcept { return Medium::kHost; }
  [[nodiscard]] std::uint32_t slots() const noexcept { return static_cast<std::uint32_t>(records_.size()); }
  [[nodiscard]] std::size_t slot_bytes() const noexcept { return slot_bytes_; }

  [[nodiscard]] Result<std::span<std::byte>> stage(SlotId slot) noexcept {
    if (slot >= slots()) return Status(StatusCode::kOutOfRange, "this tier has no such slot");
    Record& r = records_[slot];
    r.state = State::kStaged;
    ++r.generation;
    return std::span<std::byte>(arena_.data() + slot * stride_, slot_bytes_);
  }

  Status seal(SlotId slot, BlockKey key, std::size_t bytes) noexcept {
    if (slot >= slots() || bytes > slot_bytes_)
      return {StatusCode::kOutOfRange, "this tier has no such slot, or not so much room in it"};
    Record& r = records_[slot];
    if (r.state != State::kStaged) return {StatusCode::kWrongState, "stage the slot before it is sealed"};
    r.key = key;
    r.bytes = bytes;
    r.checksum = checksum(slot);
    r.state = State::kSealed;
    return {};
  }

  [[nodiscard]] Result<std::span<const std::byte>> read(SlotId slot, BlockKey key) noexcept {
    if (slot >= slots()) return Status(StatusCode::kOutOfRange, "this tier has no such slot");
    const Record& r = records_[slot];
    if (r.state != State::kSealed || r.key != key || r.checksum != checksum(slot)) {
      drop(slot);
      return Status(StatusCode::kCorrupt, "the slot does not hold this block: treat it as a miss");
    }
    return std::span<const std::byte>(arena_.data() + slot * stride_, r.bytes);
  }

  void drop(SlotId slot) noexcept {
    if (slot < slots()) records_[slot].state = State::kEmpty;
  }

 private:
  enum class State : std::uint8_t { kEmpty, kStaged, kSealed };
  struct Record {
    BlockKey key;
    std::uint64_t bytes;
    std::uint64_t checksum;
    std::uint64_t generation;
    State state;
  };

  [[nodiscard]] std::uint64_t checksum(SlotId slot) const noexcept {
    const Record& r = records_[slot];
    const std::uint64_t identity[] = {r.key.lo, r.key.hi,           r.generation,
                                      r.bytes,  representation_.lo, representation_.hi};
    return XXH3_64bits_withSeed(arena_.data() + slot * stride_, r.bytes,
                                XXH3_64bits(identity, sizeof identity));
  }

  FixedArray<Record> records_;
  FixedArray<std::byte> arena_;
  std::size_t slot_bytes_ = 0, stride_ = 0;
  BlockKey representation_{};
};

static_assert(Tier<HostTier>);

}  // namespace kvstem::inline v0
