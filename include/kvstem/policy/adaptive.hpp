// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The recommended policy: victims are those of LRU or of LRU-2, whichever would have found more lately. Two shadow caches, of
// keys alone, run beside the real one under these two. On the traces that we have it was never more than a point under the
// better of the two, where either alone is up to five points under the other. Choose it unless you know your traffic well, or
// cannot spare a hash for each block of every prompt (a keyed cache has them already).
//
// A shadow's score is the blocks it found, halved every 500 requests; the lead changes hands when the other has one per
// cent more, so that noise does not change it.
//
// Cost: those of lru2, and 0.01 to 0.5 us for each block of a prompt, when it is asked for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kvstem/policy/eviction_policy.hpp"
#include "kvstem/policy/lru.hpp"
#include "kvstem/policy/lru2.hpp"
#include "kvstem/policy/shadow_cache.hpp"

namespace kvstem::inline v0 {

class Adaptive {
 public:
  static constexpr PolicyKeys kKeys = PolicyKeys::kPath;

  [[nodiscard]] bool take(const Memory& memory, PolicyLimits limits) noexcept {
    sample_ = ShadowSample::of(limits);
    return lru_.take(memory, limits) && lru2_.take(memory, limits) && lru_shadow_.take(memory, sample_) &&
           lru2_shadow_.take(memory, sample_) && sampled_.take(memory, limits.path_blocks);
  }

  void on_request_begin(const RequestFacts& facts) noexcept {
    each([&](auto& policy) { policy.on_request_begin(facts); });
    asks_ = true;
  }
  void on_request_end(const RequestFacts& facts) noexcept {
    each([&](auto& policy) { policy.on_request_end(facts); });
  }
  void on_hit(std::uint32_t run, std::uint32_t blocks) noexcept {
    each([&](auto& policy) { policy.on_hit(run, blocks); });
  }
  void on_release(std::uint32_t run, std::uint32_t blocks) noexcept {
    each([&](auto& policy) { policy.on_release(run, blocks); });
  }
  void on_path(std::span<const BlockKey> keys, std::uint32_t cached) noexcept {
    lru2_.on_path(keys.subspan(cached), 0);
    // What a request asks for when it begins is a question to the shadows; a block that it decodes is not.
    if (!asks_) return;
    asks_ = false;
    std::uint32_t n = 0;
    for (const BlockKey key : keys)
      if (sample_.holds(key)) sampled_[n++] = key;
    const std::span<const BlockKey> sampled(sampled_.data(), n);
    score(kLru, lru_shadow_.use(sampled));
    score(kLru2, lru2_shadow_.use(sampled));
    const Leader other = leader_ == kLru ? kLru2 : kLru;
    if (scores_[other] > scores_[leader_] + scores_[leader_] / 100) leader_ = other;
  }
  void on_insert(std::uint32_t run, std::uint32_t parent, std::uint32_t blocks) noexcept {
    each([&](auto& policy) { policy.on_insert(run, parent, blocks); });
  }
  void on_grow(std::uint32_t run, std::uint32_t blocks) noexcept {
    each([&](auto& policy) { policy.on_grow(run, blocks); });
  }
  void on_split(std::uint32_t head, std::uint32_t tail, std::uint32_t blocks) noexcept {
    each([&](auto& policy) { policy.on_split(head, tail, blocks); });
  }
  void on_merge(std::uint32_t head, std::uint32_t tail) noexcept {
    each([&](auto& policy) { policy.on_merge(head, tail); });
  }
  void on_trim(std::uint32_t run, std::uint32_t blocks) noexcept {
    each([&](auto& policy) { policy.on_trim(run, blocks); });
  }
  void on_erase(std::uint32_t run) noexcept {
    each([&](auto& policy) { policy.on_erase(run); });
  }
  void on_leaf(std::uint32_t run) noexcept {
    each([&](auto& policy) { policy.on_leaf(run); });
  }
  void on_evicted(BlockKey key) noexcept { lru2_.on_evicted(key); }
  void demote(std::uint32_t run) noexcept {
    each([&](auto& policy) { policy.demote(run); });
  }
  [[nodiscard]] bool mergeable(std::uint32_t head, std::uint32_t tail) const noexcept {
    return lru_.mergeable(head, tail) && lru2_.mergeable(head, tail);
  }
  [[nodiscard]] Victim victim(Evictable evictable) noexcept {
    if (leader_ == kLru2) return lru2_.victim(evictable);
    const Victim victim = lru_.victim(evictable);
    if (victim.run == kNoVictim) return victim;
    return {victim.run, lru2_.take_from(victim.run)};
  }

 private:
  enum Leader : std::uint8_t { kLru, kLru2 };
  static constexpr std::uint64_t kPoint = 1u << 20;  // of a score, so that it can be halved slowly

  template <class Fn>
  void each(Fn&& fn) noexcept {
    fn(lru_);
    fn(lru2_);
  }
  void score(Leader of, std::uint32_t found) noexcept {
    // (1 - 1/721)^500 = 1/2
    scores_[of] = scores_[of] - scores_[of] / 721 + found * kPoint;
  }

  Lru lru_;
  Lru2 lru2_;
  ShadowCache<Lru> lru_shadow_;
  ShadowCache<Lru2> lru2_shadow_;
  ShadowSample sample_;
  FixedArray<BlockKey> sampled_;  // of the request's blocks
  std::uint64_t scores_[2]{};
  Leader leader_ = kLru;
  bool asks_ = false;
};

static_assert(EvictionPolicy<Adaptive>);

}  // namespace kvstem::inline v0
