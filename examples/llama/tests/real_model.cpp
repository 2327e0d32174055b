// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Exactness on SmolLM2-135M, with the flags that everybody runs: f16 state, flash attention, the machine's threads.
#include <cmath>

#include "support.hpp"

using namespace kvstem_llama;
using namespace kvstem_llama::test;

namespace {

constexpr std::uint32_t kBlock = 32;
constexpr int kGreedy = 64;

std::string random_text(std::mt19937_64& rng, std::size_t words) {
  static const char* const kWords[] = {
      "the",    "agent", "reads", "a",     "file",  "and",    "writes", "its",  "answer",
      "into",   "table", "of",    "tools", "while", "prefix", "stays",  "same", "for",
      "every",  "turn",  "with",  "new",   "words", "at",     "end",    "2026", "42",
      "error:", "none",  "city",  "Paris", "is",    "not",    "open",   "now",  "but"};
  std::string text;
  for (std::size_t i = 0; i < words; ++i) {
    text += kWords[rng() % std::size(kWords)];
    text += rng() % 9 == 0 ? ".\n" : " ";
  }
  return text;
}

/// A distribution of absolute differences, in bins of 2 %.
class Differences {
 public:
  void add(const std::vector<float>& a, std::span<const float> b) {
    REQUIRE(a.size() == b.size());
    for (std::size_t i = 0; i < a.size(); ++i) {
      const float d = std::abs(a[i] - b[i]);
      ++bins_[d < 1e-6f ? 0
                        : std::min(bins_.size() - 1,
                                   1 + static_cast<std::size_t>(std::log(d / 1e-6f) / std::log(1.02f)))];
    }
    total_ += a.size();
  }
  [[nodiscard]] double percentile(double share) const {
    std::uint64_t below = 0;
    std::size_t bin = 0;
    while (bin < bins_.size() &&
           static_cast<double>(below += bins_[bin]) < share * static_cast<double>(total_))
      ++bin;
    return bin == 0 ? 0 : 1e-6 * std::pow(1.02, static_cast<double>(bin));
  }

 private:
  std::vector<std::uint64_t> bins_ = std::vector<std::uint64_t>(1000);
  std::uint64_t total_ = 0;
};

struct Case {
  std::vector<TokenId> prompt;
  Greedy cold;
};

/// Logits of a request that is fed the cold run's tokens, against the cold run's.
struct Comparison {
  Differences differences;
  std::vector<int> agreed;  // by case: positions at which the same token was the likeliest
  explicit Comparison(std::size_t cases) : agreed(cases) {}

  Request request(const Case& c, std::size_t index) {
    return {.tokens = c.prompt,
            .max_new_tokens = static_cast<std::uint32_t>(c.cold.tokens.size()),
            .stop_at_end = false,
            .forced = c.cold.tokens,
            .on_logits = [this, &c, index](std::uint32_t i, std::span<const float> row) {
              differences.add(c.cold.logits[i], row);
              agreed[index] += std::max_element(row.begin(), row.end()) - row.begin() == c.cold.tokens[i];
            }};
  }
  [[nodiscard]] std::ptrdiff_t identical(const std::vector<Case>& cases) const {
    std::ptrdiff_t n = 0;
    for (std::size_t i = 0; i < cases.size(); ++i)
      n += agreed[i] == static_cast<int>(cases[i].cold.tokens.size());
    return n;
  }
};

/// Foreign state in two sequences that grew by turns, of which one went: 600 cells with holes of 1 to 48 between them.
void scatter(LlamaEngine& engine, std::mt19937_64& rng, SequenceId source, SequenceId stays,
             SequenceId goes) {
  REQUIRE(engine.drop_range(stays, {0, kvstem::kToEnd}).ok());
  for (std::uint32_t at[2] = {0, 0}; at[0] < 600 || at[1] < 600;) {
    const std::size_t which = at[0] == 600 ? 1 : at[1] == 600 ? 0 : rng() % 2;
    const TokenRange range{at[which], std::min<std::uint32_t>(600, at[which] + 1 + rng() % 48)};
    REQUIRE(engine.import_range(which == 0 ? stays : goes, 0, range, take(engine, source, range)).ok());
    at[which] = range.end;
  }
  REQUIRE(engine.drop_range(goes, {0, kvstem::kToEnd}).ok());
}

}  // namespace

TEST_CASE(
    "on the real model reuse by import and by share is bitwise equal to a cold run in the same layout") {
  auto engine = open({.model = kSmolLM2, .cells = 2048, .sequences = 3, .batch = 512});
  std::mt19937_64 rng(seed("real model"));
  int prompts = 0;
  std::size_t blocks = 0, shortest = SIZE_MAX, longest = 0;
  for (; prompts < 20; ++prompts) {
    const std::string text = random_text(rng, 60 + rng() % 200);
    auto tokens = *engine->tokenize(text, false);
    const auto length = static_cast<std::uint32_t>(tokens.size());
    REQUIRE(length > kGrid);
    const std::uint32_t hit = (length - 1) / kGrid * kGrid;
    const std::size_t last = (length - 1) % kGrid;
    shortest = std::min(shortest, tokens.size());
    longest = std::max(longest, tokens.size());
    INFO("prompt " << prompts << " of " << length << " tokens, " << hit << " reused");

    drop_all(*engine);
    REQUIRE(prefill(*engine, 0, tokens, 0, length).ok());
    const Greedy cold = greedy(*engine, 0, last, kGreedy);
    std::vector<std::vector<std::byte>> first;
    for (std::uint32_t at = 0; at < hit; at += kBlock) first.push_back(take(*engine, 0, {at, at + kBlock}));

    // Share: what the cold run computed after the hit goes, the rest stays where it is.
    REQUIRE(engine->drop_range(0, {hit, kvstem::kToEnd}).ok());
    REQUIRE(engine->share_range(0, 1, {0, hit}).ok());
    REQUIRE(prefill(*engine, 1, tokens, hit, length).ok());
    CHECK(same_bits(cold, greedy(*engine, 1, last, kGreedy)));

    // Import, into an empty cache.
    drop_all(*engine);
    for (std::uint32_t at = 0; at < hit; at += kBlock)
      REQUIRE(engine->import_range(2, 0, {at, at + kBlock}, first[at / kBlock]).ok());
    REQUIRE(prefill(*engine, 2, tokens, hit, length).ok());
    CHECK(same_bits(cold, greedy(*engine, 2, last, kGreedy)));
    for (std::uint32_t at = 0; at < hit; at += kBlock, ++blocks)
      CHECK(take(*engine, 2, {at, at + kBlock}) == first[at / kBlock]);
  }
  std::cout << "real model: " << prompts << " prompts of " << shortest << " to " << longest << " tokens, "
            << blocks << " blocks exported again\n";
  CHECK(blocks > 20);
}

TEST_CASE("in the busy engine reuse changes logits no more than another layout of the cells does") {
  const std::uint64_t run = seed("busy engine");
  std::mt19937_64 rng(run);
  std::vector<Case> cases(20);
  {
    auto engine = open({.model = kSmolLM2, .cells = 1024, .sequences = 1, .batch = 512});
    std::vector<std::string> systems;
    for (int i = 0; i < 3; ++i) systems.push_back(random_text(rng, 60 + rng() % 100));
    for (Case& c : cases) {
      c.prompt = *engine->tokenize(systems[rng() % 3] + random_text(rng, 10 + rng() % 60), false);
      drop_all(*engine);
      const auto length = static_cast<std::uint32_t>(c.prompt.size());
      REQUIRE(prefill(*engine, 0, c.prompt, 0, length).ok());
      c.cold = greedy(*engine, 0, (length - 1) % kGrid, 32);
    }
  }

  Comparison layouts(cases.size());
  {
    auto engine = open({.model = kSmolLM2, .cells = 4096, .sequences = 4, .batch = 512});
    const auto foreign = random_tokens(rng, 600, engine->vocab_size());
    REQUIRE(prefill(*engine, 3, foreign, 0, 600).ok());
    for (std::size_t i = 0; i < cases.size(); ++i) {
      scatter(*engine, rng, 3, 1, 2);
      Engine alone(*engine, 1);
      REQUIRE(alone.submit(layouts.request(cases[i], i)).ok());
      while (alone.busy()) (void)alone.step();
    }
  }

  Comparison busy(cases.size());
  {
    auto engine = open({.model = kSmolLM2, .cells = 4096, .sequences = 10, .batch = 512});
    auto cache = std::move(
        *Engine::Cache::create(*engine, {.block_tokens = kBlock, .requests = 3, .resident_tokens = 1500}));
    const auto scope = *cache->open_scope(engine->scope());
    Engine server(*engine, 3, cache.get());
    std::mt19937_64 schedule(run + 1);
    std::uint64_t reused = 0, prompts = 0;
    std::size_t next = 0, finished = 0;
    for (int step = 0; finished < cases.size(); ++step) {
      REQUIRE(step < 100000);
      if (next < cases.size() && schedule() % 8 == 0) {
        Request request = busy.request(cases[next], next);
        request.scope = scope;
        REQUIRE(server.submit(std::move(request)).ok());
        ++next;
      }
      for (const Event& e : server.step()) {
        if (e.kind != Event::Kind::kFinished) continue;
        REQUIRE(e.finish == Finish::kLength);
        ++finished;
        reused += e.report.reused_tokens;
        prompts += e.report.prompt_tokens;
      }
    }
    std::cout << "busy engine: " << reused << " of " << prompts << " prompt tokens reused\n";
    CHECK(reused > 0);
  }
  for (const auto& [name, c] :
       {std::pair<const char*, const Comparison&>{"another layout", layouts}, {"busy, reuse", busy}})
    std::cout << "busy engine: " << name << ": median " << c.differences.percentile(0.5)
              << ", 99th percentile " << c.differences.percentile(0.99) << ", identical outputs "
              << c.identical(cases) << " of " << cases.size() << "\n";
  CHECK(busy.differences.percentile(0.99) <= 1.25 * layouts.differences.percentile(0.99));
}
