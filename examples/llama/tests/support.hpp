// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What the tests of the llama.cpp host share: models, seeded prompts, a plain prefill and greedy decoding.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine.hpp"
#include "support/catch.hpp"

namespace kvstem_llama::test {

inline std::string model(const std::string& name) { return std::string(KVSTEM_LLAMA_MODELS) + "/" + name; }
inline const std::string kTiny = model("tiny/llama.gguf");
inline const std::string kSmolLM2 = model("SmolLM2-135M-Instruct.Q4_1.gguf");

inline std::unique_ptr<LlamaEngine> open(const LlamaEngineOptions& options) {
  auto engine = LlamaEngine::open(options);
  INFO(options.model << ": " << engine.status().message() << " " << LlamaEngine::last_error());
  REQUIRE(engine.ok());
  return std::move(*engine);
}

inline std::unique_ptr<LlamaEngine> open_tiny(std::uint32_t cells = 2048, std::uint32_t sequences = 6,
                                              std::uint32_t batch = 128) {
  return open({.model = kTiny, .cells = cells, .sequences = sequences, .batch = batch, .threads = 1});
}

/// The run's seed: KVSTEM_SEED if set, else a new one. Printed, so that a failure can be repeated.
inline std::uint64_t seed(const char* test) {
  const char* given = std::getenv("KVSTEM_SEED");
  const std::uint64_t value = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cout << test << ": KVSTEM_SEED=" << value << "\n";
  return value;
}

inline std::vector<TokenId> random_tokens(std::mt19937_64& rng, std::size_t n, std::uint32_t vocab) {
  std::vector<TokenId> tokens(n);
  for (TokenId& t : tokens) t = static_cast<TokenId>(3 + rng() % (vocab - 3));
  return tokens;
}

inline constexpr std::uint32_t kHouseBlock = 32;  // tokens of a block in the tests

/// The tiny model behind a cache and an engine.
struct House {
  std::unique_ptr<LlamaEngine> llama;
  std::unique_ptr<Engine::Cache> cache;
  std::unique_ptr<Engine> engine;
  kvstem::ScopeId scope{};

  House(std::uint32_t slots, const kvstem::OpaqueHostOptions& given, std::uint32_t cells = 4096,
        std::uint32_t sequences = 12)
      : llama(open_tiny(cells, sequences)) {
    kvstem::OpaqueHostOptions options = given;
    options.requests = slots;
    auto made = Engine::Cache::create(*llama, options);
    INFO(made.status().message());
    REQUIRE(made.ok());
    cache = std::move(*made);
    scope = *cache->open_scope(llama->scope());
    engine = std::make_unique<Engine>(*llama, slots, cache.get());
  }
  std::vector<TokenId> random(std::mt19937_64& rng, std::size_t n) const {
    return random_tokens(rng, n, llama->vocab_size());
  }
};

/// Computes tokens[begin, end) of a sequence, cut at multiples of `grid`; logits after the last one only.
inline Status prefill(LlamaEngine& engine, SequenceId sequence, const std::vector<TokenId>& tokens,
                      std::uint32_t begin, std::uint32_t end, std::uint32_t grid = kGrid) {
  std::vector<LlamaEngine::Feed> feeds;
  for (std::uint32_t at = begin; at < end;) {
    const std::uint32_t stop = std::min(end, at / grid * grid + grid);
    feeds.clear();
    for (; at < stop; ++at)
      feeds.push_back({.sequence = sequence, .position = at, .token = tokens[at], .logits = at + 1 == end});
    if (Status status = engine.decode(feeds); !status.ok()) return status;
  }
  return {};
}

struct Greedy {
  std::vector<TokenId> tokens;
  std::vector<std::vector<float>> logits;  // what each token was chosen from
};

/// Chooses and computes n tokens, one at a time. `last` is the index of the wanted logits in the last decode.
inline Greedy greedy(LlamaEngine& engine, SequenceId sequence, std::size_t last, int n) {
  Greedy result;
  for (int i = 0; i < n; ++i) {
    const std::span<const float> row = engine.logits(last);
    REQUIRE(row.size() == engine.vocab_size());
    result.logits.emplace_back(row.begin(), row.end());
    result.tokens.push_back(static_cast<TokenId>(std::max_element(row.begin(), row.end()) - row.begin()));
    const LlamaEngine::Feed feed{.sequence = sequence,
                                 .position = static_cast<std::uint32_t>(engine.pos_max(sequence) + 1),
                                 .token = result.tokens.back(),
                                 .logits = true};
    REQUIRE(engine.decode({&feed, 1}).ok());
    last = 0;
  }
  return result;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline bool same_bits(const Greedy& a, const Greedy& b) {
  return a.tokens == b.tokens &&
         std::equal(a.logits.begin(), a.logits.end(), b.logits.begin(), b.logits.end(),
                    [](const auto& x, const auto& y) { return same_bits(x, y); });
}

inline std::vector<std::byte> take(LlamaEngine& engine, SequenceId sequence, TokenRange range) {
  std::vector<std::byte> bytes(engine.range_bytes(0, range));
  const Status status = engine.export_range(sequence, 0, range, bytes);
  INFO(status.message());
  REQUIRE(status.ok());
  return bytes;
}

inline void drop_all(LlamaEngine& engine) {
  for (std::uint32_t s = 0; s < engine.capacity().sequences; ++s)
    REQUIRE(engine.drop_range(static_cast<SequenceId>(s), {0, kvstem::kToEnd}).ok());
}

}  // namespace kvstem_llama::test
