// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What is in the index while it is measured: sessions of 8,192 blocks of 16 tokens, a million blocks in all, grown round
// robin by turns of 32 blocks, as engines do. Beside it the same content in each baseline.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "baselines.hpp"
#include "kvstem/index/prefix_index.hpp"

namespace bench {

using namespace kvstem;

inline std::uint64_t mix(std::uint64_t x) {  // SplitMix64's finalizer (Steele, Lea, Flood 2014)
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "kvstem_bench_index_match: %s\n", what.c_str());
  std::exit(1);
}

inline constexpr std::uint32_t kVocabulary = 151'936;

/// Bytes of this process that are in memory now.
inline std::size_t resident_bytes() {
  std::size_t total = 0, resident = 0;
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr || std::fscanf(file, "%zu %zu", &total, &resident) != 2)
    fail("cannot read /proc/self/statm");
  std::fclose(file);
  return resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

enum class Openings { kDistinct, kShared };

class World {
 public:
  static constexpr std::uint32_t kSessions = 125, kBlocks = 8192, kTurn = 32;

  explicit World(Openings openings) : openings_(openings) {
    if (!tokens_.take(heap_memory(), std::size_t{kSessions} * kBlocks * kBlockTokens))
      fail("no memory for the tokens");
    root_key_ = *hasher.root({.model = "benchmark", .vocab_size = kVocabulary});
    for (std::uint32_t s = 0; s < kSessions; ++s) write_prompt(s, session(s, kBlocks));

    const std::size_t resident_before = resident_bytes();
    auto created =
        PrefixIndex::create({.block_tokens = kBlockTokens,
                             .capacity_blocks = 17u << 16});  // some for what fragmentation leaves unused
    if (!created.ok()) fail(created.status().message());
    index = std::move(*created);
    root = *index->add_root(root_key_);
    std::vector<Place> places(kSessions, index->place_at_end(root));
    for (std::uint32_t turn = kTurn; turn <= kBlocks; turn += kTurn)
      for (std::uint32_t s = 0; s < kSessions; ++s) {
        const Prompt prompt{.tokens = session(s, turn)};
        const TokenSource source(hasher, kBlockTokens, prompt, {});
        const Place from = index->match_from(root, places[s], source).place;
        places[s] = index->extend(from, source, source.blocks()).place;
        if (places[s].blocks != turn) fail("the index is full before all sessions are in it");
        index->set_ready_through(places[s]);
      }
    resident = resident_bytes() - resident_before;
    leaves.assign(kSessions, kNoRun);
    for (std::uint32_t s = 0; s < kSessions; ++s) leaves[s] = places[s].run;

    keys_.resize(std::size_t{kSessions} * kBlocks);
    for (std::uint32_t s = 0; s < kSessions; ++s)
      hash(session(s, kBlocks), keys_.data() + std::size_t{s} * kBlocks);
    for (std::uint32_t turn = 0; turn < kBlocks; turn += kTurn)
      for (std::uint32_t s = 0; s < kSessions; ++s) {
        for (std::uint32_t b = turn; b < turn + kTurn; ++b) table.insert(keys(s)[b], block(s, b));
        pages.insert(session(s, turn + kTurn));
      }
  }

  /// The session's first blocks, where memcmp finds them; the other structures have copies of their own.
  [[nodiscard]] std::span<TokenId> session(std::uint32_t s, std::uint32_t blocks) {
    return {tokens_.data() + std::size_t{s} * kBlocks * kBlockTokens, std::size_t{blocks} * kBlockTokens};
  }
  [[nodiscard]] std::span<const BlockKey> keys(std::uint32_t s) const {
    return {keys_.data() + std::size_t{s} * kBlocks, kBlocks};
  }

  /// Computes a session's tokens anew, so that none of the copies gets into the cache.
  void write_prompt(std::uint32_t s, std::span<TokenId> out) const {
    for (std::uint32_t b = 0; b < out.size() / kBlockTokens; ++b) {
      // Shared: 5 system prompts of 1,024 tokens, each with 5 tool prompts of as many.
      std::uint64_t owner = s;
      if (openings_ == Openings::kShared && b < 128) owner = b < 64 ? 1000 + s % 5 : 2000 + s % 25;
      for (std::uint32_t t = 0; t < kBlockTokens; ++t)
        out[b * kBlockTokens + t] = static_cast<TokenId>(
            ((mix((owner + 1) << 32 | (b * kBlockTokens + t)) >> 32) * kVocabulary) >> 32);
    }
  }

  void hash(std::span<const TokenId> tokens, BlockKey* out) const {
    BlockKey key = root_key_;
    for (std::size_t b = 0; b < tokens.size() / kBlockTokens; ++b)
      out[b] = key = hasher.next(key, tokens.subspan(b * kBlockTokens, kBlockTokens));
  }

  KeyHasher hasher{xxh3_key_function(), "benchmark"};
  std::unique_ptr<PrefixIndex> index;
  RootId root = kNoRun;
  std::vector<RunId> leaves;  // by session
  std::size_t resident = 0;   // bytes that building the index took
  FlatTable table{std::size_t{kSessions} * kBlocks};
  PageTree pages{std::size_t{kSessions} * kBlocks};

 private:
  [[nodiscard]] std::span<const TokenId> block(std::uint32_t s, std::uint32_t b) {
    return session(s, b + 1).subspan(std::size_t{b} * kBlockTokens);
  }

  Openings openings_;
  BlockKey root_key_;
  FixedArray<TokenId> tokens_;
  std::vector<BlockKey> keys_;
};

/// A million runs below one root, and as many bytes as their heads take in a ring of dependent loads.
class Heads {
 public:
  static constexpr std::uint32_t kRuns = 1'000'000;

  Heads() {
    auto created = PrefixIndex::create(
        {.block_tokens = kBlockTokens, .capacity_blocks = 2 * kRuns + 1024, .max_runs = kRuns + 1});
    if (!created.ok()) fail(created.status().message());
    index = std::move(*created);
    root = *index->add_root(*hasher.root({.model = "benchmark", .vocab_size = kVocabulary}));
    const Place at_root = index->place_at_end(root);
    for (std::uint32_t s = 0; s < kRuns; ++s) {
      TokenId tokens[2 * kBlockTokens];
      for (std::uint32_t t = 0; t < 2 * kBlockTokens; ++t)
        tokens[t] = static_cast<TokenId>(mix(std::uint64_t{s} << 32 | t) % kVocabulary);
      const Prompt prompt{.tokens = tokens};
      if (index->extend(at_root, TokenSource(hasher, kBlockTokens, prompt, {}), 2).added != 2)
        fail("no room for all heads");
    }
    HeadTable table;  // for its size only
    if (!table.take(heap_memory(), index->max_runs())) fail("no memory for a head table");
    ring_.resize(table.bytes() / sizeof(Line));
    // One cycle through all lines (Sattolo 1986).
    std::vector<std::uint32_t> order(ring_.size());
    for (std::uint32_t i = 0; i < order.size(); ++i) order[i] = i;
    for (std::size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[mix(i) % i]);
    for (std::size_t i = 0; i < order.size(); ++i) ring_[i].next = order[i];
  }

  /// `count` loads, each of which needs the one before.
  [[nodiscard]] std::uint32_t loads(std::uint32_t from, std::uint32_t count) const {
    for (; count > 0; --count) from = ring_[from].next;
    return from;
  }
  [[nodiscard]] std::uint32_t lines() const { return static_cast<std::uint32_t>(ring_.size()); }

  KeyHasher hasher{xxh3_key_function(), "benchmark"};
  std::unique_ptr<PrefixIndex> index;
  RootId root = kNoRun;

 private:
  struct alignas(64) Line {
    std::uint32_t next = 0;
  };
  std::vector<Line> ring_;
};

/// Empties the caches: reads twice the last level's size, at least 64 MiB, line by line. What was read before is then in
/// memory only, address translations included.
class CacheEvictor {
 public:
  CacheEvictor() {
    const long l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
    words_.resize(std::max<std::size_t>(64u << 20, l3 > 0 ? 2 * static_cast<std::size_t>(l3) : 0) /
                      sizeof(std::uint64_t),
                  1);
  }
  void operator()() {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < words_.size(); i += 8) sum += words_[i];
    words_[0] = sum | 1;
  }
  [[nodiscard]] std::size_t bytes() const { return words_.size() * sizeof(std::uint64_t); }

 private:
  std::vector<std::uint64_t> words_;
};

}  // namespace bench
