// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What every eviction policy must do, as a suite that any test framework can run: it reports each check to a function of
// yours. A random walk over a tree of runs tells the policy what a cache would tell it, and asks it for victims.
//
//   TEST_CASE("my policy keeps the contract of a policy") {
//     run_eviction_policy_contract<MyPolicy>(7, [](bool ok, const char* what) { INFO(what); CHECK(ok); });
//   }
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvstem/policy/eviction_policy.hpp"

namespace kvstem::inline v0 {

/// How often each thing happened, for a test that wants to know that it saw everything.
struct EvictionPolicyWalk {
  std::uint64_t requests = 0, overlaps = 0, inserts = 0, grows = 0, splits = 0, merges = 0, trims = 0,
                erases = 0, demotions = 0;
  std::uint64_t victims = 0, refusals = 0;  // asked and answered; nothing was evictable
};

/// `check(bool, const char*)` takes each result; a check is reported once if it holds throughout, else at each failure.
template <EvictionPolicy P, class Check>
EvictionPolicyWalk run_eviction_policy_contract(std::uint64_t seed, Check&& check,
                                                std::uint32_t steps = 20'000) {
  constexpr std::uint32_t kRuns = 24, kBlocks = 96;
  struct Run {
    bool live = false, pinned = false;
    std::uint32_t parent = kNoVictim, children = 0, blocks = 0;
    std::uint32_t held = 0;  // by requests that are open
    [[nodiscard]] bool in_use() const { return pinned || held > 0; }
  };
  struct Request {
    RequestFacts facts;
    std::uint32_t end;  // of its path; kNoVictim if it has none
  };
  struct State {
    std::vector<Run> runs;
    mutable bool asked_for_nonsense = false;
    mutable std::uint64_t asked = 0;
    [[nodiscard]] bool evictable(std::uint32_t run) const noexcept {
      ++asked;
      if (run >= runs.size() || !runs[run].live) {
        asked_for_nonsense = true;
        return false;
      }
      return !runs[run].in_use() && runs[run].children == 0;
    }
  };
  const auto next = [&seed] {  // splitmix64
    seed += 0x9e3779b97f4a7c15ull;
    std::uint64_t z = seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  };
  const auto below = [&](std::uint32_t n) { return static_cast<std::uint32_t>(next() % n); };

  struct Taken {
    std::uint64_t calls = 0, out = 0, fail_at = 0;
    Memory memory() {
      return {.allocate = [](void* user, std::size_t bytes, std::size_t alignment) -> void* {
                auto& self = *static_cast<Taken*>(user);
                if (++self.calls == self.fail_at) return nullptr;
                ++self.out;
                return heap_memory().allocate(nullptr, bytes, alignment);
              },
              .release =
                  [](void* user, void* memory, std::size_t bytes) {
                    --static_cast<Taken*>(user)->out;
                    heap_memory().release(nullptr, memory, bytes);
                  },
              .user = this};
    }
  };
  // Without memory it says so, wherever that happens, and keeps nothing.
  bool refuses = true, gives_back = true;
  for (std::uint64_t n = 1;; ++n) {
    Taken taken;
    taken.fail_at = n;
    bool done = false;
    {
      P policy;
      const bool ok = policy.take(taken.memory(),
                                  {.max_runs = kRuns, .capacity_blocks = kBlocks, .path_blocks = kBlocks});
      done = ok && taken.calls < n;
      refuses = refuses && (done || !ok);
    }
    gives_back = gives_back && taken.out == 0;
    if (done || !refuses) break;
  }
  check(refuses, "take() is false if memory is not to be had");
  check(gives_back, "all memory is given back");

  // Two of them are told the same, and must answer the same.
  Taken taken;
  P policy, twin;
  const PolicyLimits limits{.max_runs = kRuns, .capacity_blocks = kBlocks, .path_blocks = kBlocks};
  check(policy.take(taken.memory(), limits) && twin.take(heap_memory(), limits),
        "take() is true if memory is to be had");
  const std::uint64_t calls = taken.calls;
  const auto tell = [&](auto&& fn) {
    fn(policy);
    fn(twin);
  };

  EvictionPolicyWalk walk;
  State state;
  state.runs.resize(kRuns);
  std::uint32_t blocks = 0;
  bool answers_live = true, answers_blocks = true, whole = true, answers_evictable = true,
       answers_if_any = true, same = true, patient = true;
  const auto any = [&](auto&& wanted) {
    const std::uint32_t first = below(kRuns);
    for (std::uint32_t i = 0; i < kRuns; ++i)
      if (wanted(state.runs[(first + i) % kRuns])) return (first + i) % kRuns;
    return kNoVictim;
  };
  const auto is_free = [](const Run& r) { return !r.live; };
  const auto is_live = [](const Run& r) { return r.live; };
  const auto key_of = [](std::uint32_t run, std::uint32_t block) { return BlockKey{run + 1, block + 1}; };
  const auto lose = [&](std::uint32_t run, std::uint32_t n, bool evicted) {
    Run& r = state.runs[run];
    if constexpr (P::kKeys != PolicyKeys::kNone)
      for (std::uint32_t b = r.blocks - n; evicted && b < r.blocks; ++b)
        tell([&](P& p) { p.on_evicted(key_of(run, b)); });
    r.blocks -= n;
    blocks -= n;
    if (r.blocks > 0) {
      ++walk.trims;
      tell([&](P& p) { p.on_trim(run, n); });
      return;
    }
    ++walk.erases;
    tell([&](P& p) { p.on_erase(run); });
    const std::uint32_t parent = r.parent;
    r = {};
    if (parent != kNoVictim && --state.runs[parent].children == 0) tell([&](P& p) { p.on_leaf(parent); });
  };
  const auto evict = [&] {
    bool exists = false;
    for (const Run& r : state.runs) exists = exists || (r.live && !r.in_use() && r.children == 0);
    const Evictable evictable(
        [](const void* s, std::uint32_t run) noexcept {
          return static_cast<const State*>(s)->evictable(run);
        },
        &state);
    state.asked = 0;
    const auto [run, most] = policy.victim(evictable);
    patient = patient && state.asked <= 4 * kRuns;
    const Victim other = twin.victim(evictable);
    same = same && other.run == run && other.blocks == most;
    answers_if_any = answers_if_any && (run != kNoVictim) == exists;
    ++(run == kNoVictim ? walk.refusals : walk.victims);
    if (run == kNoVictim) return false;
    answers_live = answers_live && run < kRuns && state.runs[run].live;
    if (!answers_live) return false;
    answers_evictable = answers_evictable && !state.runs[run].in_use() && state.runs[run].children == 0;
    answers_blocks = answers_blocks && most > 0;
    if (!answers_blocks) return false;
    lose(run, 1 + below(std::min(most, state.runs[run].blocks)), true);
    return true;
  };

  const auto for_path = [&](std::uint32_t from, auto&& fn) {
    for (std::uint32_t run = from; run != kNoVictim; run = state.runs[run].parent)
      tell([&](P& p) { fn(p, run, state.runs[run].blocks); });
  };
  std::vector<Request> open;
  const auto end_one = [&] {
    const std::uint32_t which = below(static_cast<std::uint32_t>(open.size()));
    Request request = open[which];
    open.erase(open.begin() + which);
    walk.overlaps += !open.empty();
    request.facts.retention = {.keep = static_cast<Keep>(below(3)),
                               .until_ms = request.facts.now_ms + below(2000),
                               .expect_reuse_at_ms = below(2) * (request.facts.now_ms + below(500))};
    tell([&](P& p) { p.on_request_end(request.facts); });
    for_path(request.end, [](P& p, std::uint32_t run, std::uint32_t n) { p.on_release(run, n); });
    if (request.end != kNoVictim) --state.runs[request.end].held;
  };

  for (std::uint32_t step = 0; step < steps && answers_live && answers_blocks; ++step) {
    switch (below(8)) {
      case 0: {  // a request uses a path and adds to it
        const std::uint32_t end = below(4) == 0 ? kNoVictim : any(is_live);
        const RequestFacts facts{
            .session = below(3), .now_ms = 10ull * step, .prompt_blocks = 4, .matched_blocks = 2};
        ++walk.requests;
        tell([&](P& p) { p.on_request_begin(facts); });
        for_path(end, [](P& p, std::uint32_t run, std::uint32_t n) { p.on_hit(run, n); });
        const std::uint32_t n = 1 + below(4);
        if constexpr (P::kKeys != PolicyKeys::kNone) {
          std::vector<BlockKey> path;
          if constexpr (P::kKeys == PolicyKeys::kPath)
            for (std::uint32_t run = end; run != kNoVictim; run = state.runs[run].parent)
              for (std::uint32_t b = state.runs[run].blocks; b-- > 0;)
                path.insert(path.begin(), key_of(run, b));
          const auto cached = static_cast<std::uint32_t>(path.size());
          for (std::uint32_t b = 0; b < n; ++b) path.push_back(key_of(below(kRuns), b));
          tell([&](P& p) { p.on_path(path, cached); });
        }
        if (end != kNoVictim) ++state.runs[end].held;
        bool room = true;
        while (room && (blocks + n > kBlocks || any(is_free) == kNoVictim)) room = evict();
        std::uint32_t last = end;
        if (room) {
          blocks += n;
          if (end != kNoVictim && state.runs[end].children == 0 && below(2) == 0) {
            ++walk.grows;
            state.runs[end].blocks += n;
            tell([&](P& p) { p.on_grow(end, n); });
          } else {
            last = any(is_free);
            ++walk.inserts;
            state.runs[last] = {.live = true, .pinned = false, .parent = end, .children = 0, .blocks = n};
            if (end != kNoVictim) ++state.runs[end].children;
            tell([&](P& p) { p.on_insert(last, end, n); });
          }
        }
        if (end != kNoVictim) --state.runs[end].held;
        if (last != kNoVictim) ++state.runs[last].held;
        open.push_back({facts, last});
        if (open.size() > below(4)) end_one();
        break;
      }
      case 1:
      case 2: {  // pins come and go
        const std::uint32_t run = any(is_live);
        if (run != kNoVictim) state.runs[run].pinned = below(3) == 0;
        break;
      }
      case 3: {
        const std::uint32_t tail = any([](const Run& r) { return r.live && r.blocks > 1; }),
                            head = any(is_free);
        if (tail == kNoVictim || head == kNoVictim) break;
        const std::uint32_t n = 1 + below(state.runs[tail].blocks - 1);
        ++walk.splits;
        state.runs[head] = {
            .live = true, .pinned = false, .parent = state.runs[tail].parent, .children = 1, .blocks = n};
        state.runs[tail].blocks -= n;
        state.runs[tail].parent = head;
        tell([&](P& p) { p.on_split(head, tail, n); });
        whole = whole && policy.mergeable(head, tail) && twin.mergeable(head, tail);
        break;
      }
      case 4: {
        const std::uint32_t tail = any([&](const Run& r) {
          return r.live && r.parent != kNoVictim && state.runs[r.parent].children == 1 &&
                 !state.runs[r.parent].in_use();
        });
        if (tail == kNoVictim) break;
        const std::uint32_t head = state.runs[tail].parent;
        same = same && policy.mergeable(head, tail) == twin.mergeable(head, tail);
        if (!policy.mergeable(head, tail)) break;
        ++walk.merges;
        state.runs[tail].blocks += state.runs[head].blocks;
        state.runs[tail].parent = state.runs[head].parent;
        state.runs[head] = {};
        tell([&](P& p) { p.on_merge(head, tail); });
        break;
      }
      case 5: {  // given up without eviction
        const std::uint32_t run = any([](const Run& r) { return r.live && !r.in_use() && r.children == 0; });
        if (run != kNoVictim) lose(run, 1 + below(state.runs[run].blocks), false);
        break;
      }
      case 6: {
        const std::uint32_t run = any([](const Run& r) { return r.live && !r.in_use() && r.children == 0; });
        if (run == kNoVictim || below(4) != 0) break;
        ++walk.demotions;
        tell([&](P& p) { p.demote(run); });
        break;
      }
      default: (void)evict();
    }
  }
  check(answers_live, "a victim is a run that is there");
  check(answers_evictable, "a victim is evictable");
  check(answers_blocks, "a victim has blocks");
  check(answers_if_any, "there is a victim exactly if some run is evictable");
  check(!state.asked_for_nonsense, "evictable() is asked only about runs that are there");
  check(patient, "a victim is found within a few rounds over the runs");
  check(whole, "head and tail of a split are mergeable");
  check(same, "the same calls lead to the same answers");
  check(taken.calls == calls, "nothing is allocated after take()");
  return walk;
}

}  // namespace kvstem::inline v0
