// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// An eviction policy for tests that uses all of the seam: it remembers keys that it evicted (ghosts), and what comes back
// after it was evicted is kept longer than what is new. Beside that it checks what it is told against what it was told
// before, and counts every contradiction.
#pragma once

#include <cstdint>

#include "kvstem/policy/eviction_policy.hpp"
#include "kvstem/policy/lru.hpp"

namespace kvstem::test {

/// What the policy saw, by call. One for the thread, since a cache keeps its policy to itself.
struct GhostSeen {
  std::uint64_t begins = 0, ends = 0, hits = 0, releases = 0, inserts = 0, grows = 0, splits = 0, merges = 0,
                trims = 0, erases = 0;
  std::uint64_t leaves = 0, missed = 0, evicted = 0, demotions = 0, victims = 0, ghost_hits = 0;
  std::uint64_t contradictions = 0;
  std::uint64_t blocks = 0;  // in all runs, by the calls alone
  RequestFacts last{};       // of the request that ended last
};

class GhostPolicy {
 public:
  static constexpr PolicyKeys kKeys = PolicyKeys::kMissed;
  static inline thread_local GhostSeen seen{};

  [[nodiscard]] bool take(const Memory& memory, PolicyLimits limits) noexcept {
    return cold_.take(memory, limits) && runs_.take(memory, limits.max_runs) &&
           ghosts_.take(memory, limits.capacity_blocks);
  }

  void on_request_begin(const RequestFacts& facts) noexcept {
    ++seen.begins;
    cold_.on_request_begin(facts);
    comes_back_ = false;
  }
  void on_request_end(const RequestFacts& facts) noexcept {
    ++seen.ends;
    seen.last = facts;
    cold_.on_request_end(facts);
  }
  void on_hit(std::uint32_t run, std::uint32_t blocks) noexcept {
    ++seen.hits;
    must(live(run) && blocks <= runs_[run].blocks);
    cold_.on_hit(run, blocks);
  }
  void on_release(std::uint32_t run, std::uint32_t blocks) noexcept {
    ++seen.releases;
    must(live(run) && blocks <= runs_[run].blocks);
    cold_.on_release(run, blocks);
  }
  void on_insert(std::uint32_t run, std::uint32_t parent, std::uint32_t blocks) noexcept {
    ++seen.inserts;
    must(run < runs_.size() && !live(run) && (parent == kNoVictim || live(parent)) && blocks > 0);
    runs_[run] = {blocks, comes_back_};
    seen.blocks += blocks;
    cold_.on_insert(run, parent, blocks);
  }
  void on_grow(std::uint32_t run, std::uint32_t blocks) noexcept {
    ++seen.grows;
    must(live(run) && blocks > 0);
    runs_[run].blocks += blocks;
    seen.blocks += blocks;
    cold_.on_grow(run, blocks);
  }
  void on_split(std::uint32_t head, std::uint32_t tail, std::uint32_t blocks) noexcept {
    ++seen.splits;
    must(!live(head) && live(tail) && blocks > 0 && blocks < runs_[tail].blocks);
    runs_[head] = {blocks, runs_[tail].precious};
    runs_[tail].blocks -= blocks;
    cold_.on_split(head, tail, blocks);
  }
  void on_merge(std::uint32_t head, std::uint32_t tail) noexcept {
    ++seen.merges;
    must(live(head) && live(tail) && runs_[head].precious == runs_[tail].precious);
    runs_[tail].blocks += runs_[head].blocks;
    runs_[head].blocks = 0;
    cold_.on_merge(head, tail);
  }
  void on_trim(std::uint32_t run, std::uint32_t blocks) noexcept {
    ++seen.trims;
    must(live(run) && blocks < runs_[run].blocks);
    runs_[run].blocks -= blocks;
    seen.blocks -= blocks;
    cold_.on_trim(run, blocks);
  }
  void on_erase(std::uint32_t run) noexcept {
    ++seen.erases;
    must(live(run));
    seen.blocks -= runs_[run].blocks;
    runs_[run].blocks = 0;
    cold_.on_erase(run);
  }
  void on_leaf(std::uint32_t run) noexcept {
    ++seen.leaves;
    must(live(run));
    cold_.on_leaf(run);
  }
  void on_path(std::span<const BlockKey> keys, std::uint32_t cached) noexcept {
    must(cached == 0);
    seen.missed += keys.size();
    for (const BlockKey key : keys) {
      for (std::size_t i = 0; i < ghosts_.size(); ++i) {
        if (ghosts_[i] != key) continue;
        ++seen.ghost_hits;
        ghosts_[i] = {};
        comes_back_ = true;
      }
    }
  }
  void on_evicted(BlockKey key) noexcept {
    ++seen.evicted;
    ghosts_[next_ghost_] = key;
    next_ghost_ = (next_ghost_ + 1) % static_cast<std::uint32_t>(ghosts_.size());
  }
  void demote(std::uint32_t run) noexcept {
    ++seen.demotions;
    must(live(run));
    runs_[run].precious = false;
    cold_.demote(run);
  }
  [[nodiscard]] bool mergeable(std::uint32_t head, std::uint32_t tail) const noexcept {
    return runs_[head].precious == runs_[tail].precious && cold_.mergeable(head, tail);
  }
  [[nodiscard]] Victim victim(Evictable evictable) noexcept {
    ++seen.victims;
    // First what was never missed before; then the rest.
    struct Context {
      const GhostPolicy* policy;
      const Evictable* evictable;
    };
    const Context context{this, &evictable};
    const Evictable ordinary(
        [](const void* c, std::uint32_t run) noexcept {
          const auto& [policy, inner] = *static_cast<const Context*>(c);
          return !policy->runs_[run].precious && (*inner)(run);
        },
        &context);
    const Victim victim = cold_.victim(ordinary);
    return victim.run != kNoVictim ? victim : cold_.victim(evictable);
  }

 private:
  struct Known {
    std::uint32_t blocks;
    bool precious;
  };
  static void must(bool fact) noexcept { seen.contradictions += !fact; }
  [[nodiscard]] bool live(std::uint32_t run) const noexcept {
    return run < runs_.size() && runs_[run].blocks > 0;
  }

  Lru cold_;
  FixedArray<Known> runs_;
  FixedArray<BlockKey> ghosts_;
  std::uint32_t next_ghost_ = 0;
  bool comes_back_ = false;
};

}  // namespace kvstem::test
