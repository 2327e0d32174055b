// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// llama.cpp aborts, crashes or silently miscomputes on most of these arguments. Here each gets a Status, and the engine
// goes on as if nothing had been asked.
#include "support.hpp"

using namespace kvstem_llama;
using namespace kvstem_llama::test;

namespace {

constexpr SequenceId kBadSequences[] = {-1, -2, 6, 7, 8, 255, 256, 1 << 20, INT32_MAX, INT32_MIN};

/// An engine whose sequence 0 holds 100 tokens, and a check that it still computes what it did.
struct Fixture {
  std::unique_ptr<LlamaEngine> engine = open_tiny(512, 6, 64);
  std::vector<TokenId> tokens;
  std::vector<std::byte> state;
  Fixture() {
    std::mt19937_64 rng(7);
    tokens = random_tokens(rng, 400, engine->vocab_size());
    REQUIRE(prefill(*engine, 0, tokens, 0, 100).ok());
    state = take(*engine, 0, {0, 100});
  }
  ~Fixture() {
    CHECK(engine->pos_max(0) == 99);
    CHECK(take(*engine, 0, {0, 100}) == state);
    for (SequenceId s = 1; s < 6; ++s) CHECK(engine->pos_max(s) == -1);
    // Nothing is left behind that takes cells: all the rest can be used.
    CHECK(prefill(*engine, 1, tokens, 0, 400).ok());
  }
};

}  // namespace

TEST_CASE("decode refuses what llama.cpp dies of") {
  Fixture f;
  const auto code = [&](std::vector<LlamaEngine::Feed> feeds) { return f.engine->decode(feeds).code(); };
  using Feed = LlamaEngine::Feed;
  CHECK(code({}) == StatusCode::kInvalidArgument);
  std::vector<Feed> many;
  for (std::uint32_t i = 0; i < 65; ++i) many.push_back({.sequence = 1, .position = i, .token = 5});
  CHECK(code(many) == StatusCode::kInvalidArgument);
  for (const TokenId token : {-1, 266, INT32_MAX, INT32_MIN})
    CHECK(code({Feed{.sequence = 0, .position = 100, .token = token}}) == StatusCode::kOutOfRange);
  for (const SequenceId s : kBadSequences)
    CHECK(code({Feed{.sequence = s, .token = 5}}) == StatusCode::kOutOfRange);
  for (const std::uint32_t position : {0u, 50u, 99u, 101u})
    CHECK(code({Feed{.sequence = 0, .position = position, .token = 5}}) == StatusCode::kWrongState);
  for (const std::uint32_t position : {512u, 1u << 30, 0x7fffffffu, 0xffffffffu})
    CHECK(code({Feed{.sequence = 0, .position = position, .token = 5}}) == StatusCode::kOutOfRange);
  CHECK(code({Feed{.sequence = 1, .position = 10, .token = 5}}) == StatusCode::kWrongState);
  CHECK(code({Feed{.sequence = 1, .position = 0, .token = 5},
              Feed{.sequence = 1, .position = 0, .token = 5}}) == StatusCode::kWrongState);
  CHECK(code({Feed{.sequence = 1, .position = 1, .token = 5},
              Feed{.sequence = 1, .position = 0, .token = 5}}) == StatusCode::kWrongState);
}

TEST_CASE("a full cache is exhausted and loses nothing") {
  Fixture f;
  REQUIRE(prefill(*f.engine, 1, f.tokens, 0, 384).ok());  // 28 cells are left
  std::vector<LlamaEngine::Feed> feeds;
  for (std::uint32_t i = 0; i < 64; ++i)
    feeds.push_back({.sequence = 2, .position = i, .token = 5, .logits = true});
  REQUIRE(f.engine->decode(std::span(feeds).first(1)).ok());
  REQUIRE_FALSE(f.engine->logits(0).empty());
  feeds.erase(feeds.begin());
  CHECK(f.engine->decode(feeds).code() == StatusCode::kExhausted);
  CHECK(f.engine->logits(0).empty());
  CHECK(f.engine->pos_max(2) == 0);
  CHECK(f.engine->import_range(3, 0, {0, 100}, f.state).code() == StatusCode::kExhausted);
  CHECK(f.engine->pos_max(3) == -1);
  CHECK(f.engine->decode(std::span(feeds).first(27)).ok());
  REQUIRE(f.engine->drop_range(1, {0, kvstem::kToEnd}).ok());
  REQUIRE(f.engine->drop_range(2, {0, kvstem::kToEnd}).ok());
}

TEST_CASE("a short chunk far from the beginning gets the bits of a long one, and leaves nothing behind") {
  constexpr std::uint32_t kCells = 1280, kBefore = 1024;
  auto engine = open_tiny(kCells, 2, kGrid);
  std::mt19937_64 rng(seed("short chunks"));
  const auto tokens = random_tokens(rng, kCells, engine->vocab_size());
  REQUIRE(prefill(*engine, 0, tokens, 0, kBefore).ok());
  const auto row_of = [&](std::uint32_t n, std::uint32_t i) {
    std::vector<LlamaEngine::Feed> feeds;
    for (std::uint32_t at = kBefore; at < kBefore + n; ++at)
      feeds.push_back({.sequence = 0, .position = at, .token = tokens[at], .logits = true});
    REQUIRE(engine->decode(feeds).ok());
    CHECK(engine->logits(n).empty());
    const std::vector<float> row(engine->logits(i).begin(), engine->logits(i).end());
    REQUIRE(row.size() == engine->vocab_size());
    REQUIRE(engine->drop_range(0, {kBefore, kvstem::kToEnd}).ok());
    return row;
  };
  const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  };
  const auto eighth = row_of(64, 7), last = row_of(64, 31);
  CHECK(same(row_of(32, 31), last));
  CHECK_FALSE(same(row_of(8, 7), eighth));  // so few are sooner computed alone, and rounded otherwise

  // The other sequence takes all cells but 32: there is room for the tokens, though not for company.
  REQUIRE(prefill(*engine, 1, tokens, 0, kCells - kBefore - 32).ok());
  CHECK_FALSE(same(row_of(32, 31), last));
  REQUIRE(engine->drop_range(1, {0, kvstem::kToEnd}).ok());
  CHECK(prefill(*engine, 1, tokens, 0, kCells - kBefore).ok());
}

TEST_CASE("logits are there exactly for tokens that asked for them") {
  Fixture f;
  CHECK(f.engine->logits(99).empty());
  const LlamaEngine::Feed feeds[] = {{.sequence = 1, .position = 0, .token = 5},
                                     {.sequence = 2, .position = 0, .token = 6, .logits = true}};
  REQUIRE(f.engine->decode(feeds).ok());
  CHECK(f.engine->logits(0).empty());
  CHECK(f.engine->logits(1).size() == 266);
  CHECK(f.engine->logits(2).empty());
  CHECK(f.engine->logits(SIZE_MAX).empty());
  CHECK_FALSE(f.engine->decode({}).ok());
  CHECK(f.engine->logits(1).empty());
  REQUIRE(f.engine->drop_range(1, {0, 1}).ok());
  REQUIRE(f.engine->drop_range(2, {0, 1}).ok());
}

TEST_CASE("ranges and sequences that do not exist are refused") {
  Fixture f;
  LlamaEngine& e = *f.engine;
  std::vector<std::byte> out(e.range_bytes(0, {0, 10}));
  for (const SequenceId s : kBadSequences) {
    CHECK(e.pos_max(s) == -1);
    CHECK(e.export_range(s, 0, {0, 10}, out).code() == StatusCode::kOutOfRange);
    CHECK(e.import_range(s, 0, {0, 100}, f.state).code() == StatusCode::kOutOfRange);
    CHECK(e.share_range(s, 1, {0, 10}).code() == StatusCode::kOutOfRange);
    CHECK(e.share_range(0, s, {0, 10}).code() == StatusCode::kOutOfRange);
    CHECK(e.drop_range(s, {0, kvstem::kToEnd}).code() == StatusCode::kOutOfRange);
  }
  CHECK(e.range_bytes(0, {5, 5}) == 0);
  CHECK(e.range_bytes(0, {7, 5}) == 0);
  CHECK(e.range_bytes(1, {0, 10}) == 0);
  CHECK(e.export_range(0, 0, {5, 5}, {}).code() == StatusCode::kInvalidArgument);
  CHECK(e.export_range(0, 0, {7, 5}, out).code() == StatusCode::kInvalidArgument);
  CHECK(e.export_range(0, 1, {0, 10}, out).code() == StatusCode::kInvalidArgument);
  CHECK(e.export_range(0, 0, {0, 10}, std::span(out).first(out.size() - 1)).code() ==
        StatusCode::kInvalidArgument);
  CHECK(e.export_range(0, 0, {91, 101}, out).code() == StatusCode::kOutOfRange);
  CHECK(e.export_range(1, 0, {0, 10}, out).code() == StatusCode::kOutOfRange);
  CHECK(e.share_range(0, 0, {0, 10}).code() == StatusCode::kInvalidArgument);
  CHECK(e.share_range(0, 1, {0, 101}).code() == StatusCode::kOutOfRange);
  CHECK(e.share_range(0, 1, {10, 20}).code() == StatusCode::kWrongState);
  CHECK(e.share_range(0, 1, {10, 10}).code() == StatusCode::kInvalidArgument);
  CHECK(e.import_range(1, 1, {0, 100}, f.state).code() == StatusCode::kOutOfRange);
  CHECK(e.import_range(0, 0, {0, 100}, f.state).code() == StatusCode::kWrongState);
  CHECK(e.import_range(1, 0, {10, 110}, f.state).code() == StatusCode::kWrongState);
  CHECK(e.import_range(1, 0, {0, 0x80000000u}, f.state).code() == StatusCode::kOutOfRange);
  CHECK(e.drop_range(0, {10, 20}).code() == StatusCode::kInvalidArgument);
  CHECK(e.drop_range(0, {100, kvstem::kToEnd}).ok());
  CHECK(e.drop_range(3, {0, kvstem::kToEnd}).ok());
  CHECK(e.detokenize(std::vector<TokenId>{-1}, true).status().code() == StatusCode::kOutOfRange);
  CHECK(e.detokenize(std::vector<TokenId>{266}, true).status().code() == StatusCode::kOutOfRange);
}

TEST_CASE("damaged state is refused wherever it can be seen, and no byte of it can hurt") {
  Fixture f;
  std::mt19937_64 rng(seed("damaged state"));
  const std::size_t frame = 16 + 100 * 12 + 8;  // header, cells, count of layers
  int refused = 0, taken = 0;
  const auto try_import = [&](const std::vector<std::byte>& bytes) {
    const Status status = f.engine->import_range(1, 0, {0, 100}, bytes);
    CHECK((status.ok() || status.code() == StatusCode::kCorrupt));
    CHECK(f.engine->pos_max(1) == (status.ok() ? 99 : -1));
    if (status.ok()) REQUIRE(f.engine->drop_range(1, {0, kvstem::kToEnd}).ok());
    ++(status.ok() ? taken : refused);
    return status.ok();
  };
  for (std::size_t at = 0; at < frame; ++at) {  // every byte that is no tensor data
    std::vector<std::byte> bytes = f.state;
    bytes[at] ^= static_cast<std::byte>(1 + rng() % 255);
    INFO("byte " << at);
    CHECK_FALSE(try_import(bytes));
  }
  for (int i = 0; i < 300; ++i) {  // anywhere: tensor data cannot be told from tensor data
    std::vector<std::byte> bytes = f.state;
    for (std::uint64_t n = 1 + rng() % 8; n > 0; --n)
      bytes[rng() % bytes.size()] ^= static_cast<std::byte>(rng());
    try_import(bytes);
  }
  for (int i = 0; i < 100; ++i) {
    std::vector<std::byte> bytes = f.state;
    bytes.resize(rng() % bytes.size());
    CHECK_FALSE(try_import(bytes));
  }
  std::vector<std::byte> longer = f.state;
  longer.resize(longer.size() + 12);
  CHECK_FALSE(try_import(longer));
  std::cout << "damaged state: " << refused << " refused, " << taken << " with other tensor data\n";
  CHECK(taken > 0);
}
