// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What would a policy find in this traffic? A cache of keys alone, that a policy of its own rules, for those who must choose
// between policies while the traffic runs.
//
// It is small whatever the cache's size: beyond 8,192 blocks it looks at one block of 2, 4, 8, ..., chosen by their keys, and
// is smaller by as much (Waldspurger et al., "Cache Modeling and Optimization using Miniature Simulations", 2017). It
// needs no tree: whoever uses a block uses all before it, so policies that go by use keep those before it longer.
//
// Cost: 10 to 100 ns for each block looked at; with the policy's own memory 100 to 800 KiB.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>

#include "kvstem/policy/eviction_policy.hpp"

namespace kvstem::inline v0 {

/// Which blocks are looked at, by all shadows of one cache alike.
struct ShadowSample {
  static constexpr std::uint32_t kMostBlocks = 8192;
  std::uint64_t mask = 0;  // keys that have none of these bits, once mixed
  std::uint32_t capacity_blocks = 0;
  std::uint32_t path_blocks = 0;

  static ShadowSample of(PolicyLimits limits) noexcept {
    std::uint64_t one_of = 1;
    while (limits.capacity_blocks / one_of > kMostBlocks) one_of *= 2;
    return {one_of - 1, std::max(1u, static_cast<std::uint32_t>(limits.capacity_blocks / one_of)),
            limits.path_blocks};
  }
  [[nodiscard]] bool holds(BlockKey key) const noexcept {
    return ((key.lo * 0x9e3779b97f4a7c15ull) >> 40 & mask) == 0;
  }
};

template <EvictionPolicy P>
class ShadowCache {
 public:
  [[nodiscard]] bool take(const Memory& memory, const ShadowSample& sample) noexcept {
    const std::uint32_t capacity = sample.capacity_blocks;
    const PolicyLimits limits{capacity, capacity, 1};
    return policy_.take(memory, limits) && blocks_.take(memory, capacity) &&
           buckets_.take(memory, std::bit_ceil(std::size_t{2} * capacity)) &&
           path_.take(memory, sample.path_blocks);
  }

  /// A request for these blocks, in order from the root, all of the sample. Returns how many it found.
  std::uint32_t use(std::span<const BlockKey> keys) noexcept {
    ++request_;
    policy_.on_request_begin({});
    std::uint32_t found = 0;
    for (std::size_t i = keys.size(); i-- > 0;) {
      const std::uint32_t block = path_[i] = find(keys[i]);
      if (block == kNone) continue;
      ++found;
      blocks_[block].request = request_;
      policy_.on_hit(block, 1);
    }
    // Those nearer to the root come last, as they are used last; and if there is no room for all, they are who stay.
    for (std::size_t i = keys.size(); i-- > 0;)
      if (path_[i] == kNone) insert(keys[i]);
    policy_.on_request_end({});
    return found;
  }

 private:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  struct Block {
    BlockKey key;
    std::uint64_t request;  // that used it last
  };

  void insert(BlockKey key) noexcept {
    if constexpr (P::kKeys != PolicyKeys::kNone) policy_.on_path({&key, 1}, 0);
    std::uint32_t block = used_;
    if (used_ < blocks_.size()) {
      ++used_;
    } else {
      const Victim victim = policy_.victim(Evictable(
          [](const void* self, std::uint32_t run) noexcept {
            const auto& shadow = *static_cast<const ShadowCache*>(self);
            return shadow.blocks_[run].request != shadow.request_ || shadow.full_;
          },
          this));
      if (victim.run == kNoVictim) {  // one request fills all of it
        full_ = true;
        insert(key);
        full_ = false;
        return;
      }
      block = victim.run;
      if constexpr (P::kKeys != PolicyKeys::kNone) policy_.on_evicted(blocks_[block].key);
      policy_.on_erase(block);
      unlink(block);
    }
    blocks_[block] = {key, request_};
    buckets_[bucket_of(key)] = block + 1;
    policy_.on_insert(block, kNoVictim, 1);
  }

  // Open addressing, linear probing; what is taken out is filled from behind, so that no marks remain.
  [[nodiscard]] std::size_t home(BlockKey key) const noexcept {
    return static_cast<std::size_t>((key.lo ^ key.hi) * 0x9e3779b97f4a7c15ull >> 20) & (buckets_.size() - 1);
  }
  [[nodiscard]] std::size_t next(std::size_t bucket) const noexcept {
    return (bucket + 1) & (buckets_.size() - 1);
  }
  /// The bucket that holds the key, or the empty one where it belongs.
  [[nodiscard]] std::size_t bucket_of(BlockKey key) const noexcept {
    std::size_t bucket = home(key);
    while (buckets_[bucket] != 0 && blocks_[buckets_[bucket] - 1].key != key) bucket = next(bucket);
    return bucket;
  }
  [[nodiscard]] std::uint32_t find(BlockKey key) const noexcept { return buckets_[bucket_of(key)] - 1; }
  void unlink(std::uint32_t block) noexcept {
    std::size_t hole = bucket_of(blocks_[block].key);
    buckets_[hole] = 0;
    for (std::size_t at = next(hole); buckets_[at] != 0; at = next(at)) {
      const std::size_t wanted = home(blocks_[buckets_[at] - 1].key);
      // Not if its home lies between the hole and where it is.
      if (((at - wanted) & (buckets_.size() - 1)) < ((at - hole) & (buckets_.size() - 1))) continue;
      buckets_[hole] = buckets_[at];
      buckets_[at] = 0;
      hole = at;
    }
  }

  P policy_;
  FixedArray<Block> blocks_;
  FixedArray<std::uint32_t> buckets_;  // a block, counted from 1; 0 is empty
  FixedArray<std::uint32_t> path_;     // of the request: the block, or none
  std::uint32_t used_ = 0;
  std::uint64_t request_ = 0;
  bool full_ = false;
};

}  // namespace kvstem::inline v0
