// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Readers beside a writer that inserts, splits, merges, trims and erases. Meant for ThreadSanitizer, and checked on its own.
// Some stems are never touched by the writer, so a reader knows how far a match must reach. Every prompt ends in tokens that
// nobody inserts, so it knows how far a match may reach. And once `try_pin` succeeded, the positions that the match visited
// must hold the prompt's tokens, for as long as the pin lasts: no other block under an old handle.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "kvstem/index/prefix_index.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {

constexpr std::uint32_t kBlock = 4;
constexpr TokenId kNobodys = 999'999;

/// Family f, branching off another tail after `stem` tokens.
std::vector<TokenId> prompt(std::uint32_t family, std::uint32_t stem, std::uint32_t tail,
                            std::uint32_t length) {
  std::vector<TokenId> t(length);
  for (std::uint32_t i = 0; i < length; ++i)
    t[i] = static_cast<TokenId>(family * 1000 + (i < stem ? 0 : 1 + tail) * 97 + i);
  return t;
}

struct Visit {
  std::vector<BlockPos>* positions;
  void operator()(RunId, BlockPos first, std::uint32_t n, std::uint32_t) const {
    for (std::uint32_t i = 0; i < n; ++i) positions->push_back(first + i);
  }
  void reset() const { positions->clear(); }
};

}  // namespace

TEST_CASE("readers see what stays, and only what was there, whatever the writer does") {
  const KeyHasher hasher;
  auto made = PrefixIndex::create({.block_tokens = kBlock, .capacity_blocks = 40'000, .max_runs = 4000});
  REQUIRE(made.ok());
  PrefixIndex& index = **made;
  const BlockKey root_key = *hasher.root({.model = "m", .vocab_size = 1'000'000});
  const RootId root = *index.add_root(root_key);
  const RootKeys roots(&root_key, 1);

  // The first 40 tokens of each family stay for ever: pinned by their run.
  constexpr std::uint32_t kFamilies = 8, kStem = 40;
  for (std::uint32_t f = 0; f < kFamilies; ++f) {
    const auto tokens = prompt(f, kStem, 0, kStem);
    const Prompt p{.tokens = tokens};
    const TokenSource source(hasher, kBlock, p, roots);
    const auto e = index.extend(index.match(root, source).place, source, source.blocks());
    index.set_ready_through(e.place);
    REQUIRE(index.try_pin(e.place.run, e.place.generation));
  }

  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> matches{0}, pins{0}, lost{0}, short_matches{0}, wrong{0};
  const auto read = [&](std::uint32_t seed) {
    auto reader = index.register_reader();
    std::minstd_rand random(seed);
    std::vector<BlockPos> positions;
    while (!stop.load(std::memory_order_relaxed)) {
      const std::uint32_t f = random() % kFamilies;
      auto tokens = prompt(f, kStem, random() % 6, kStem + 4 * (random() % 40));
      const auto known = static_cast<std::uint32_t>(tokens.size() / kBlock);
      tokens.insert(tokens.end(), 2 * kBlock, kNobodys);
      const Prompt p{.tokens = tokens};
      const TokenSource source(hasher, kBlock, p, roots);
      positions.clear();
      const Match match = index.match(*reader, root, source, Visit{&positions});
      matches.fetch_add(1, std::memory_order_relaxed);
      if (match.place.blocks > known || match.ready > match.place.blocks) wrong.fetch_add(1);
      if (positions.size() != match.place.blocks) wrong.fetch_add(1);
      if (match.place.blocks < kStem / kBlock) short_matches.fetch_add(1);
      if (match.place.blocks > 0 && index.try_pin(match.place.run, match.place.generation)) {
        for (std::size_t b = 0; b < positions.size(); ++b)
          if (std::memcmp(index.unit(positions[b]), &tokens[b * kBlock], kBlock * sizeof(TokenId)) != 0)
            wrong.fetch_add(1);
        // A second match reaches at least as far.
        if (index.match(*reader, root, source).place.blocks < match.place.blocks) short_matches.fetch_add(1);
        index.unpin(match.place.run);
        pins.fetch_add(1, std::memory_order_relaxed);
      } else {
        lost.fetch_add(1, std::memory_order_relaxed);
      }
    }
  };
  std::vector<std::thread> readers;
  for (std::uint32_t r = 0; r < 2; ++r) readers.emplace_back(read, r + 1);

  std::minstd_rand random(99);
  std::uint64_t inserted = 0, split = 0, trimmed = 0, merged = 0;
  for (int op = 0; op < 30'000; ++op) {
    const auto tokens = prompt(random() % kFamilies, kStem, random() % 6, kStem + 4 * (1 + random() % 40));
    const Prompt p{.tokens = tokens};
    const TokenSource source(hasher, kBlock, p, roots);
    const Match match = index.match(root, source);
    switch (random() % 4) {
      case 0:
      case 1: {
        const auto e = index.extend(match.place, source, source.blocks());
        index.set_ready_through(e.place);
        inserted += e.added;
        break;
      }
      case 2: {
        const RunId run = index.locate(match.place);
        const RunInfo info = index.info(run);
        if (info.parent != kNoRun && info.depth >= kStem / kBlock && info.children == 0 && info.length > 0)
          trimmed += index.trim(run, static_cast<std::uint32_t>(random() % info.length)).ok();
        break;
      }
      default: {
        const RunId run = index.locate(match.place);
        if (random() % 2 == 0 && match.place.blocks > kStem / kBlock) {
          split += index.split(match.place, source).ok();
        } else if (index.info(run).depth >= kStem / kBlock) {
          merged += index.merge_with_child(run);
        }
      }
    }
  }
  stop = true;
  for (std::thread& t : readers) t.join();
  const auto number = [](std::uint64_t n) { return static_cast<unsigned long long>(n); };
  std::printf("writer: %llu blocks inserted, %llu trims, %llu splits, %llu merges\n", number(inserted),
              number(trimmed), number(split), number(merged));
  std::printf("readers: %llu matches (%llu missed what was being rearranged), %llu pins, %llu refused\n",
              number(matches), number(short_matches), number(pins), number(lost));
  CHECK(wrong == 0);
  // A match may miss a run whose writer was interrupted in the middle of a split, but seldom does.
  CHECK(short_matches * 5 < matches);
  CHECK(inserted > 1000);
  CHECK(trimmed > 1000);
  CHECK(split > 100);
  CHECK(merged > 10);
  CHECK(matches > 100);
  CHECK(pins > 100);
}
