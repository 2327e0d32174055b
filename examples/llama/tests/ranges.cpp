// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "support.hpp"

using namespace kvstem_llama;
using namespace kvstem_llama::test;

namespace {

struct Block {
  TokenRange range;
  std::vector<std::byte> bytes;
};

std::vector<Block> take_blocks(LlamaEngine& engine, SequenceId sequence, std::uint32_t length,
                               std::uint32_t size) {
  std::vector<Block> blocks;
  for (std::uint32_t at = 0; at < length; at += size) {
    const TokenRange range{at, std::min(length, at + size)};
    blocks.push_back({range, take(engine, sequence, range)});
  }
  return blocks;
}

void give_blocks(LlamaEngine& engine, SequenceId sequence, const std::vector<Block>& blocks) {
  for (const Block& block : blocks) REQUIRE(engine.import_range(sequence, 0, block.range, block.bytes).ok());
}

}  // namespace

TEST_CASE("blocks go out and come back byte for byte, from any sequence and any size") {
  auto engine = open_tiny();
  std::mt19937_64 rng(seed("byte for byte"));
  const auto tokens = random_tokens(rng, 500, engine->vocab_size());
  for (const std::uint32_t size : {1u, 7u, 16u, 32u, 64u, 128u, 500u}) {
    drop_all(*engine);
    REQUIRE(prefill(*engine, 2, tokens, 0, 500).ok());
    const auto first = take_blocks(*engine, 2, 500, size);
    drop_all(*engine);
    give_blocks(*engine, 5, first);
    const auto second = take_blocks(*engine, 5, 500, size);
    REQUIRE(first.size() == second.size());
    for (std::size_t i = 0; i < first.size(); ++i) CHECK(first[i].bytes == second[i].bytes);
  }
}

TEST_CASE("bytes do not depend on the cells in which the state lies") {
  auto engine = open_tiny(1024);
  std::mt19937_64 rng(seed("scattered cells"));
  const auto tokens = random_tokens(rng, 300, engine->vocab_size());
  const auto filler = random_tokens(rng, 700, engine->vocab_size());
  REQUIRE(prefill(*engine, 0, tokens, 0, 300).ok());
  const auto first = take_blocks(*engine, 0, 300, 32);

  // Two sequences grow by turns and one of them goes: the cache is full of holes, and the search for free cells stands
  // somewhere in the middle and has to wrap around.
  drop_all(*engine);
  for (std::uint32_t at = 0; at < 350; at += 7) {
    REQUIRE(prefill(*engine, 1, filler, at, at + 7).ok());
    REQUIRE(prefill(*engine, 2, filler, at, at + 7).ok());
  }
  REQUIRE(engine->drop_range(1, {100, kvstem::kToEnd}).ok());
  give_blocks(*engine, 3, first);
  const auto second = take_blocks(*engine, 3, 300, 32);
  for (std::size_t i = 0; i < first.size(); ++i) CHECK(first[i].bytes == second[i].bytes);

  // The holes in front are freed and the sequence goes on there: later positions now lie in earlier cells.
  REQUIRE(engine->drop_range(1, {0, kvstem::kToEnd}).ok());
  REQUIRE(engine->drop_range(3, {192, kvstem::kToEnd}).ok());
  give_blocks(*engine, 3, {first.begin() + 6, first.end()});
  const auto third = take_blocks(*engine, 3, 300, 32);
  for (std::size_t i = 0; i < first.size(); ++i) CHECK(first[i].bytes == third[i].bytes);
  const auto across = take(*engine, 3, {170, 210});
  drop_all(*engine);
  give_blocks(*engine, 0, first);
  CHECK(take(*engine, 0, {170, 210}) == across);
}

TEST_CASE("logits after import and after share are bitwise those of a cold run in the same layout") {
  auto engine = open_tiny();
  std::mt19937_64 rng(seed("import and share"));
  int compared = 0;
  for (int round = 0; round < 20; ++round) {
    const auto length = static_cast<std::uint32_t>(65 + rng() % 500);
    const std::uint32_t hit = (length - 1) / kGrid * kGrid;
    const auto tokens = random_tokens(rng, length, engine->vocab_size());
    const std::size_t last = (length - 1) % kGrid;
    drop_all(*engine);
    REQUIRE(prefill(*engine, 0, tokens, 0, length).ok());
    const Greedy cold = greedy(*engine, 0, last, 32);
    const auto blocks = take_blocks(*engine, 0, hit, kGrid);

    drop_all(*engine);
    give_blocks(*engine, 1, blocks);
    REQUIRE(prefill(*engine, 1, tokens, hit, length).ok());
    CHECK(same_bits(cold, greedy(*engine, 1, last, 32)));

    drop_all(*engine);
    REQUIRE(prefill(*engine, 3, tokens, 0, hit).ok());
    REQUIRE(engine->share_range(3, 4, {0, hit}).ok());
    REQUIRE(prefill(*engine, 4, tokens, hit, length).ok());
    CHECK(same_bits(cold, greedy(*engine, 4, last, 32)));
    ++compared;
  }
  CHECK(compared == 20);
}

TEST_CASE("sequences that share go on apart, and outlive each other") {
  auto engine = open_tiny();
  std::mt19937_64 rng(11);
  const auto tokens = random_tokens(rng, 200, engine->vocab_size());
  REQUIRE(prefill(*engine, 0, tokens, 0, 128).ok());
  const auto state = take(*engine, 0, {0, 128});
  REQUIRE(engine->share_range(0, 1, {0, 100}).ok());
  CHECK(engine->pos_max(1) == 99);
  REQUIRE(engine->share_range(0, 1, {100, 128}).ok());
  REQUIRE(prefill(*engine, 1, tokens, 128, 150).ok());
  CHECK(engine->pos_max(0) == 127);
  CHECK(engine->pos_max(1) == 149);
  REQUIRE(engine->drop_range(0, {0, kvstem::kToEnd}).ok());
  CHECK(take(*engine, 1, {0, 128}) == state);
  REQUIRE(engine->drop_range(1, {64, 150}).ok());
  CHECK(engine->pos_max(1) == 63);
}

TEST_CASE("sharing takes no cells") {
  auto engine = open_tiny(512, 6, 64);
  std::mt19937_64 rng(12);
  const auto tokens = random_tokens(rng, 512, engine->vocab_size());
  REQUIRE(prefill(*engine, 0, tokens, 0, 448).ok());
  for (SequenceId s = 1; s < 6; ++s) REQUIRE(engine->share_range(0, s, {0, 448}).ok());
  CHECK(prefill(*engine, 5, tokens, 448, 512).ok());
}
