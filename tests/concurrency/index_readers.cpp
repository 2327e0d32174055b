// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Readers beside a writer that inserts, splits, merges, trims and erases. Meant for ThreadSanitizer, and checked on its own:
// a prompt's blocks are a function of its family, so a reader knows how far a match may reach, and some stems are never
// touched by the writer, so a reader knows how far it must.
#include <atomic>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "kvstem/index/prefix_index.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {

constexpr std::uint32_t kBlock = 4;

/// Family f, branching off another tail after `stem` tokens.
std::vector<TokenId> prompt(std::uint32_t family, std::uint32_t stem, std::uint32_t tail,
                            std::uint32_t length) {
  std::vector<TokenId> t(length);
  for (std::uint32_t i = 0; i < length; ++i)
    t[i] = static_cast<TokenId>(family * 1000 + (i < stem ? 0 : 1 + tail) * 97 + i);
  return t;
}

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
  std::atomic<std::uint64_t> matches{0}, pins{0}, short_matches{0}, wrong{0};
  const auto read = [&](std::uint32_t seed) {
    auto reader = index.register_reader();
    std::minstd_rand random(seed);
    while (!stop.load(std::memory_order_relaxed)) {
      const std::uint32_t f = random() % kFamilies;
      const auto tokens = prompt(f, kStem, random() % 6, kStem + 4 * (random() % 40));
      const Prompt p{.tokens = tokens};
      const TokenSource source(hasher, kBlock, p, roots);
      const Match match = index.match(*reader, root, source);
      matches.fetch_add(1, std::memory_order_relaxed);
      // Never more than was asked; never less than what always stays.
      if (match.place.blocks > source.blocks() || match.ready > match.place.blocks) wrong.fetch_add(1);
      if (match.place.blocks < kStem / kBlock) short_matches.fetch_add(1);
      if (match.place.blocks > 0 && index.try_pin(match.place.run, match.place.generation)) {
        // Pinned: it is there, though a single look may miss what is being rearranged.
        int looks = 100;
        while (looks > 0 && index.match(*reader, root, source).place.blocks < match.place.blocks) --looks;
        if (looks == 0) wrong.fetch_add(1);
        index.unpin(match.place.run);
        pins.fetch_add(1, std::memory_order_relaxed);
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
  std::printf(
      "writer: %llu blocks inserted, %llu trims, %llu splits, %llu merges; readers: %llu matches, %llu "
      "pins\n",
      static_cast<unsigned long long>(inserted), static_cast<unsigned long long>(trimmed),
      static_cast<unsigned long long>(split), static_cast<unsigned long long>(merged),
      static_cast<unsigned long long>(matches.load()), static_cast<unsigned long long>(pins.load()));
  CHECK(wrong == 0);
  CHECK(short_matches == 0);
  CHECK(inserted > 1000);
  CHECK(trimmed > 1000);
  CHECK(split > 100);
  CHECK(merged > 10);
  CHECK(matches > 100);
  CHECK(pins > 100);
}
