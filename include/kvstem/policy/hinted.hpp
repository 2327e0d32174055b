// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Any policy, and what the engine knows besides: that a session is over (Keep::kCold), that state should be kept longer
// (Keep::kHigh, until a time), that it will be used again at about a time. "This session is over" is worth more than any
// policy: on a trace of chats, in a cache of a twentieth of all blocks, it closes four fifths of LRU's gap to the optimum.
//
// Wrong hints cost little. What is cold goes first, but can be found until then. What two sessions have used is not one's to
// give up: it stays as it is when one of them is over. A session that was said to be over and comes back counts against all
// that say so; while more than half of them do (and more than eight), the word is not believed. Both need
// AcquireOptions::session; without it every word is believed. What is protected goes last, not never; it is at most half of
// the cache, first come, first served; and protection ends: of kHigh at its time, of an expected use as long after that as it
// was announced before. Times need AcquireOptions::now_ms.
//
// Use it where hints come; without any it does what the wrapped policy does, a little slower.
//
//   using Cache = BasicCache<Hinted<Adaptive>>;
//
// Cost: those of the wrapped policy; `victim` meets what is protected once in a while, as what is in use.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kvstem/policy/eviction_policy.hpp"
#include "kvstem/policy/ghost_table.hpp"

namespace kvstem::inline v0 {

template <EvictionPolicy P>
class Hinted {
 public:
  static constexpr PolicyKeys kKeys = P::kKeys;

  [[nodiscard]] bool take(const Memory& memory, PolicyLimits limits) noexcept {
    most_protected_ = limits.capacity_blocks / 2;
    return policy_.take(memory, limits) && runs_.take(memory, limits.max_runs) &&
           ended_.take(memory, kRemembered);
  }

  void on_request_begin(const RequestFacts& facts) noexcept {
    now_ms_ = std::max(now_ms_, facts.now_ms);
    if (facts.session != 0 && ended_.take_out(session_key(facts.session)) != 0) ++came_back_;
    policy_.on_request_begin(facts);
  }
  void on_request_end(const RequestFacts& facts) noexcept {
    session_ = facts.session;
    if (facts.retention.keep == Keep::kCold && facts.session != 0) {
      (void)ended_.put(session_key(facts.session), ++ends_);
      if (++judged_ >= kHalfLife) {
        judged_ /= 2;
        came_back_ /= 2;
      }
    }
    until_ms_ = 0;
    if (facts.retention.keep == Keep::kHigh) until_ms_ = facts.retention.until_ms;
    if (const std::uint64_t at = facts.retention.expect_reuse_at_ms; at > now_ms_)
      until_ms_ = std::max(until_ms_, at + (at - now_ms_));
    policy_.on_request_end(facts);
  }
  void on_hit(std::uint32_t run, std::uint32_t blocks) noexcept { policy_.on_hit(run, blocks); }
  void on_release(std::uint32_t run, std::uint32_t blocks) noexcept {
    if (until_ms_ > now_ms_ && blocks > 0) protect(run);
    Run& r = runs_[run];
    if (session_ != 0 && blocks > 0) {
      r.shared = r.shared || (r.session != 0 && r.session != session_);
      r.session = session_;
    }
    policy_.on_release(run, blocks);
  }
  void on_path(std::span<const BlockKey> keys, std::uint32_t cached) noexcept {
    policy_.on_path(keys, cached);
  }
  void on_insert(std::uint32_t run, std::uint32_t parent, std::uint32_t blocks) noexcept {
    runs_[run] = {.until_ms = 0, .session = 0, .blocks = blocks, .shared = false};
    policy_.on_insert(run, parent, blocks);
  }
  void on_grow(std::uint32_t run, std::uint32_t blocks) noexcept {
    runs_[run].blocks += blocks;
    if (runs_[run].until_ms != 0) protected_ += blocks;
    policy_.on_grow(run, blocks);
  }
  void on_split(std::uint32_t head, std::uint32_t tail, std::uint32_t blocks) noexcept {
    runs_[head] = runs_[tail];
    runs_[head].blocks = blocks;
    runs_[tail].blocks -= blocks;
    policy_.on_split(head, tail, blocks);
  }
  void on_merge(std::uint32_t head, std::uint32_t tail) noexcept {
    runs_[tail].blocks += runs_[head].blocks;
    policy_.on_merge(head, tail);
  }
  void on_trim(std::uint32_t run, std::uint32_t blocks) noexcept {
    lose(run, blocks);
    policy_.on_trim(run, blocks);
  }
  void on_erase(std::uint32_t run) noexcept {
    lose(run, runs_[run].blocks);
    policy_.on_erase(run);
  }
  void on_leaf(std::uint32_t run) noexcept { policy_.on_leaf(run); }
  void on_evicted(BlockKey key) noexcept { policy_.on_evicted(key); }
  void demote(std::uint32_t run) noexcept {
    if (runs_[run].shared || came_back_ > kDoubt + judged_ / 2) return;
    unprotect(run);
    policy_.demote(run);
  }
  [[nodiscard]] bool mergeable(std::uint32_t head, std::uint32_t tail) const noexcept {
    const Run &h = runs_[head], &t = runs_[tail];
    return h.until_ms == t.until_ms && h.shared == t.shared && policy_.mergeable(head, tail);
  }
  [[nodiscard]] Victim victim(Evictable evictable) noexcept {
    if (protected_ == 0) return policy_.victim(evictable);
    struct Context {
      Hinted* self;
      const Evictable* evictable;
    } context{this, &evictable};
    const Victim victim = policy_.victim(Evictable(
        [](const void* c, std::uint32_t run) noexcept {
          const auto& [self, inner] = *static_cast<const Context*>(c);
          return (*inner)(run) && !self->is_protected(run);
        },
        &context));
    return victim.run != kNoVictim ? victim : policy_.victim(evictable);
  }

 private:
  static constexpr std::uint32_t kRemembered = 8192;  // sessions that are said to be over
  static constexpr std::uint32_t kHalfLife = 1024;    // ends, after which those before count half
  static constexpr std::uint32_t kDoubt = 8;          // so many may come back before anybody wonders

  struct Run {
    std::uint64_t until_ms;  // 0: not protected
    std::uint64_t session;   // that used it last; 0: none that said its name
    std::uint32_t blocks;
    bool shared;  // another session has used it as well
  };

  [[nodiscard]] static BlockKey session_key(std::uint64_t session) noexcept { return {session, 0}; }
  void protect(std::uint32_t run) noexcept {
    Run& r = runs_[run];
    if (r.until_ms == 0) {
      if (protected_ + r.blocks > most_protected_) return;
      protected_ += r.blocks;
    }
    r.until_ms = std::max(r.until_ms, until_ms_);
  }
  void unprotect(std::uint32_t run) noexcept {
    if (runs_[run].until_ms != 0) protected_ -= runs_[run].blocks;
    runs_[run].until_ms = 0;
  }
  [[nodiscard]] bool is_protected(std::uint32_t run) noexcept {
    if (runs_[run].until_ms != 0 && runs_[run].until_ms <= now_ms_) unprotect(run);
    return runs_[run].until_ms != 0;
  }
  void lose(std::uint32_t run, std::uint32_t blocks) noexcept {
    if (runs_[run].until_ms != 0) protected_ -= blocks;
    runs_[run].blocks -= blocks;
    if (runs_[run].blocks == 0) runs_[run].until_ms = 0;
  }

  P policy_;
  FixedArray<Run> runs_;
  GhostTable ended_;
  std::uint64_t now_ms_ = 0;
  std::uint64_t until_ms_ = 0;                        // of the request that ended last
  std::uint64_t session_ = 0;                         // and its session
  std::uint64_t protected_ = 0, most_protected_ = 0;  // blocks
  std::uint64_t ends_ = 0;
  std::uint32_t judged_ = 0, came_back_ = 0;
};

}  // namespace kvstem::inline v0
