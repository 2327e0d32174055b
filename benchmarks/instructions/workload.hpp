// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What the counted work is done on: sequences of tokens, an index, a forest whose paths have known numbers of runs, and
// a host that calls a cache as an engine does. Nothing is random: every run of the program does the same.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvstem/base/memory.hpp"
#include "kvstem/cache/cache.hpp"
#include "kvstem/index/prefix_index.hpp"
#include "kvstem/policy/adaptive.hpp"
#include "kvstem/policy/arc.hpp"
#include "kvstem/policy/hinted.hpp"

namespace bench {

using namespace kvstem;

inline constexpr std::uint32_t kBlockTokens = 16;
inline constexpr std::uint32_t kTurn = 32;  // blocks
inline constexpr std::uint32_t kVocabulary = 151'936;

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "kvstem_instructions: %s\n", what.c_str());
  std::exit(1);
}
inline void check(bool right, const char* what) {
  if (!right) fail(what);
}
inline void check(const Status& status) {
  if (!status.ok()) fail(status.message());
}
template <class T>
T need(Result<T> result) {
  if (!result.ok()) fail(result.status().message());
  return std::move(*result);
}

inline std::uint64_t mix(std::uint64_t x) {  // SplitMix64's finalizer (Steele, Lea, Flood 2014)
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

/// A sequence's tokens, from the start of a cache line on, so that a block is one line. Sequences with different numbers
/// differ from their first block on.
class Sequence {
 public:
  Sequence(std::uint32_t number, std::uint32_t blocks) {
    check(tokens_.take(heap_memory(), std::size_t{blocks} * kBlockTokens), "no memory for the tokens");
    for (std::uint32_t i = 0; i < tokens_.size(); ++i)
      tokens_[i] = static_cast<TokenId>(mix(std::uint64_t{number + 1} << 32 | i) % kVocabulary);
  }
  [[nodiscard]] std::span<const TokenId> first(std::uint32_t blocks) const { return part(0, blocks); }
  [[nodiscard]] std::span<const TokenId> part(std::uint32_t block, std::uint32_t blocks) const {
    return {tokens_.data() + std::size_t{block} * kBlockTokens, std::size_t{blocks} * kBlockTokens};
  }
  [[nodiscard]] TokenId& operator[](std::size_t i) { return tokens_[i]; }

 private:
  FixedArray<TokenId> tokens_;
};

/// An index, and what its caller has beside it.
struct Tree {
  explicit Tree(const IndexOptions& options) : index(need(PrefixIndex::create(options))) {
    root = need(index->add_root(need(hasher.root({.model = "benchmark", .vocab_size = kVocabulary}))));
  }

  /// `fn(source)` with a source for the tokens.
  template <class Fn>
  decltype(auto) with(std::span<const TokenId> tokens, Fn&& fn) const {
    const Prompt prompt{.tokens = tokens};
    return fn(TokenSource(hasher, kBlockTokens, prompt, {}));
  }
  [[nodiscard]] Match match(std::span<const TokenId> tokens) const {
    return with(tokens, [&](const auto& source) { return index->match(root, source); });
  }
  [[nodiscard]] Match match(PrefixIndex::Reader& reader, std::span<const TokenId> tokens) const {
    return with(tokens, [&](const auto& source) { return index->match(reader, root, source); });
  }
  /// Adds what the tokens have behind `place`, as computed.
  Place extend(Place place, std::span<const TokenId> tokens) {
    const Place end =
        with(tokens, [&](const auto& source) { return index->extend(place, source, source.blocks()).place; });
    check(end.blocks * kBlockTokens == tokens.size(), "the index is full");
    index->set_ready_through(end);
    return end;
  }
  /// A turn of a caller who remembers its place.
  Place go_on(Place place, std::span<const TokenId> tokens) {
    const Match match =
        with(tokens, [&](const auto& source) { return index->match_from(root, place, source); });
    return extend(match.place, tokens);
  }
  [[nodiscard]] Place at_root() const { return index->place_at_end(root); }

  /// How many runs lie on the path of a stored sequence.
  [[nodiscard]] std::uint32_t runs(std::span<const TokenId> tokens) const {
    struct {
      std::uint32_t runs = 0;
      RunId last = kNoRun;
      void operator()(RunId run, BlockPos, std::uint32_t, std::uint32_t) {
        runs += run != last;
        last = run;
      }
      void reset() const {}
    } count;
    const auto ready =
        with(tokens, [&](const auto& source) { return index->match(root, source, count).ready; });
    check(ready * kBlockTokens == tokens.size(), "a stored sequence is not found");
    return count.runs;
  }

  KeyHasher hasher{xxh3_key_function(), "benchmark"};
  std::unique_ptr<PrefixIndex> index;
  RootId root = kNoRun;
};

/// Sequences of about 2,048 blocks with a branch of one block after every few: paths that are equally long and differ in
/// the number of their runs. Many times what the last-level cache holds. The sequences grow in turn, so that what belongs
/// to one path does not lie together, and the table of heads is as full as it may be.
class Forest {
 public:
  struct Kind {
    const char* name;
    std::uint32_t run_blocks;
    // The sequence came first, and the branches cut it; else each run began behind the branch before it.
    bool split;
    [[nodiscard]] std::uint32_t blocks() const { return 2048 / run_blocks * run_blocks; }
  };
  static constexpr std::array<Kind, 6> kKinds = {{{"grown_4", 4, false},
                                                  {"grown_32", 32, false},
                                                  {"split_4", 4, true},
                                                  {"split_32", 32, true},
                                                  {"grown_31", 31, false},
                                                  {"grown_62", 62, false}}};

  Forest() {
    std::vector<Sequence> sequences;
    for (std::uint32_t s = 0; s < kSequences; ++s) sequences.emplace_back(s, 2048);
    std::vector<Place> ends(kSequences, tree.at_root());
    const Sequence branch(kSequences, 2049);  // only the block of a branch is ever read of it
    const auto for_each_end = [&](auto&& fn) {
      for (std::uint32_t at = 1; at <= 2048; ++at)
        for (std::uint32_t s = 0; s < kSequences; ++s)
          if (const Kind& kind = kKinds[s % kKinds.size()]; at % kind.run_blocks == 0) fn(kind, s, at);
    };
    for_each_end([&](const Kind& kind, std::uint32_t s, std::uint32_t at) {
      ends[s] = tree.extend(ends[s], sequences[s].first(at));
      if (!kind.split && at < kind.blocks()) tree.extend(ends[s], branch.first(at + 1));
    });
    for_each_end([&](const Kind& kind, std::uint32_t s, std::uint32_t at) {
      if (kind.split && at < kind.blocks())
        tree.extend({ends[s].run, ends[s].generation, at}, branch.first(at + 1));
    });
    check(tree.index->usage().runs == kRuns, "the forest has another shape");
  }

  /// One from the middle of the forest.
  static Sequence path(std::uint32_t kind) { return {kSequences / 2 + kind, kKinds[kind].blocks()}; }

 private:
  static constexpr std::uint32_t kSequences = 384;  // a multiple of twice the kinds
  static constexpr std::uint32_t kRuns = 1 + kSequences / 6 * (2 * (512 + 64 + 512 + 64 + 66 + 33) - 6);
  static constexpr std::uint32_t kMaxRuns = 163'000;  // few more, and the table would be twice as large

 public:
  Tree tree{{.block_tokens = kBlockTokens, .capacity_blocks = 3u << 19, .max_runs = kMaxRuns}};
};

/// An engine's part in a request, without the engine.
class Host {
 public:
  explicit Host(const CacheOptions& options) : cache(need(Cache::create(options))) {
    scope_ = need(cache->open_scope({.model = "benchmark", .vocab_size = kVocabulary}));
  }

  Lease acquire(std::span<const TokenId> prompt) {
    return need(cache->acquire({.scope = scope_, .tokens = prompt}));
  }
  /// What is known and not computed: slots, the computation, the commit; steps, where state moves by steps.
  void compute(Lease& lease) {
    const std::uint32_t n = lease.known_tokens() - lease.committed_tokens();
    check(lease.reserve(n));
    check(lease.commit(n));
    if (cache->options().fill == SlotFill::kInPlace) return;
    std::array<StepEntry, kTurn> room;
    for (;;) {
      const auto entries = cache->take_step(room);
      if (entries.empty()) break;
      for (const StepEntry& entry : entries) (void)cache->complete({entry, {}});
    }
  }
  void release(Lease& lease) {
    check(lease.release());
    check(cache->end_step({0, ++step_}));
  }

  std::unique_ptr<Cache> cache;

 private:
  ScopeId scope_{};
  std::uint64_t step_ = 0;
};

}  // namespace bench
