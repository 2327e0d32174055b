// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <map>

#include "support.hpp"

using namespace kvstem_llama;
using namespace kvstem_llama::test;

namespace {

struct Outcome {
  std::vector<TokenId> tokens;
  int first = 0, finished = 0;
  int first_step = -1, last_step = -1;
  Finish finish = Finish::kFailed;
  Report report;
};

using Outcomes = std::map<RequestNumber, Outcome>;

/// One step, noted down. Tokens come before the end, the first one is called first, and nothing follows the end.
void note(std::span<const Event> events, int step, Outcomes& outcomes) {
  for (const Event& e : events) {
    Outcome& o = outcomes[e.request];
    CHECK(o.finished == 0);
    o.last_step = step;
    if (e.kind == Event::Kind::kFinished) {
      ++o.finished;
      o.finish = e.finish;
      o.report = e.report;
      CHECK(o.report.new_tokens == o.tokens.size());
      continue;
    }
    CHECK((e.kind == Event::Kind::kFirstToken) == o.tokens.empty());
    if (o.tokens.empty()) o.first_step = step;
    o.tokens.push_back(e.token);
  }
}

Outcomes run(Engine& engine) {
  Outcomes outcomes;
  for (int step = 0; engine.busy(); ++step) {
    REQUIRE(step < 100000);
    note(engine.step(), step, outcomes);
  }
  return outcomes;
}

RequestNumber must(Result<RequestNumber> number) {
  INFO(number.status().message());
  REQUIRE(number.ok());
  return *number;
}

}  // namespace

TEST_CASE("a request yields what prefill on the grid and greedy decoding yield by hand") {
  auto llama = open_tiny();
  std::mt19937_64 rng(seed("by hand"));
  for (const std::size_t length : {1u, 2u, 63u, 64u, 65u, 127u, 128u, 129u, 300u}) {
    const auto tokens = random_tokens(rng, length, llama->vocab_size());
    drop_all(*llama);
    REQUIRE(prefill(*llama, 0, tokens, 0, static_cast<std::uint32_t>(length)).ok());
    const Greedy cold = greedy(*llama, 0, (length - 1) % kGrid, 20);
    drop_all(*llama);

    Engine engine(*llama, 1);
    std::vector<std::vector<float>> logits;
    const RequestNumber id =
        must(engine.submit({.tokens = tokens,
                            .max_new_tokens = 20,
                            .exact = true,
                            .stop_at_end = false,
                            .on_logits = [&](std::uint32_t i, std::span<const float> row) {
                              CHECK(i == logits.size());
                              logits.emplace_back(row.begin(), row.end());
                            }}));
    const Outcome o = run(engine)[id];
    CHECK(o.finish == Finish::kLength);
    CHECK(o.tokens == cold.tokens);
    CHECK(std::equal(logits.begin(), logits.end(), cold.logits.begin(), cold.logits.end(),
                     [](const auto& a, const auto& b) { return same_bits(a, b); }));
    CHECK(o.report.prompt_tokens == length);
    CHECK(o.report.computed_tokens == length);
    CHECK(o.report.reused_tokens == 0);
    CHECK(o.report.new_tokens == 20);
    CHECK(o.first_step == static_cast<int>((length - 1) / kGrid));  // one chunk a step
    CHECK(llama->pos_max(0) == -1);
  }
}

TEST_CASE("prefill goes on chunk by chunk while others decode, one token a step") {
  auto llama = open_tiny(4096);
  std::mt19937_64 rng(3);
  Engine engine(*llama, 2);
  const RequestNumber talker = must(engine.submit(
      {.tokens = random_tokens(rng, 10, llama->vocab_size()), .max_new_tokens = 60, .stop_at_end = false}));
  Outcomes outcomes;
  int step = 0;
  for (; step < 5; ++step) note(engine.step(), step, outcomes);
  const RequestNumber reader = must(engine.submit(
      {.tokens = random_tokens(rng, 640, llama->vocab_size()), .max_new_tokens = 4, .stop_at_end = false}));
  for (; engine.busy(); ++step) {
    const std::size_t before = outcomes[talker].tokens.size();
    note(engine.step(), step, outcomes);
    if (before < 60) CHECK(outcomes[talker].tokens.size() == before + 1);
  }
  CHECK(outcomes[reader].first_step == 5 + 640 / 128 - 1);
  CHECK(outcomes[reader].tokens.size() == 4);
  CHECK(outcomes[talker].tokens.size() == 60);
}

TEST_CASE("chunks are as long as the batch, or as the grid where bits are to be the same") {
  for (const std::uint32_t batch : {64u, 128u, 512u})
    for (const bool exact : {false, true})
      for (const std::uint32_t length : {1u, 64u, 65u, 128u, 129u, 600u}) {
        auto llama = open_tiny(2048, 6, batch);
        std::mt19937_64 rng(length);
        Engine engine(*llama, 1);
        const RequestNumber id =
            must(engine.submit({.tokens = random_tokens(rng, length, llama->vocab_size()),
                                .max_new_tokens = 1,
                                .exact = exact}));
        const Outcome o = run(engine)[id];
        const std::uint32_t chunk = exact ? kGrid : batch;
        CHECK(o.report.chunks == (length + chunk - 1) / chunk);
        CHECK(o.report.ran_steps == o.report.chunks);
        CHECK(o.report.computed_tokens == length);
      }
}

TEST_CASE("a chunk that finds no cells fails alone: those who decode go on") {
  auto llama = open_tiny(1024, 4, 512);
  std::mt19937_64 rng(13);
  Engine engine(*llama, 2);
  // Somebody else's cells, of which the engine does not know: 324 are left.
  REQUIRE(prefill(*llama, 3, random_tokens(rng, 700, llama->vocab_size()), 0, 700).ok());
  const RequestNumber talker = must(engine.submit(
      {.tokens = random_tokens(rng, 10, llama->vocab_size()), .max_new_tokens = 60, .stop_at_end = false}));
  Outcomes outcomes;
  note(engine.step(), 0, outcomes);
  const RequestNumber reader =
      must(engine.submit({.tokens = random_tokens(rng, 600, llama->vocab_size()), .max_new_tokens = 4}));
  int step = 1;
  for (; engine.busy(); ++step) note(engine.step(), step, outcomes);
  CHECK(outcomes[reader].finish == Finish::kFailed);
  CHECK(outcomes[reader].report.computed_tokens == 0);
  CHECK(outcomes[talker].finish == Finish::kLength);
  CHECK(outcomes[talker].tokens.size() == 60);
  CHECK(outcomes[talker].report.ran_steps == 60);
}

TEST_CASE("requests that run together each yield what they yield alone") {
  auto llama = open_tiny(4096, 4);
  std::mt19937_64 rng(seed("together"));
  std::vector<Request> requests;
  for (int i = 0; i < 12; ++i)
    requests.push_back({.tokens = random_tokens(rng, 1 + rng() % 400, llama->vocab_size()),
                        .max_new_tokens = static_cast<std::uint32_t>(1 + rng() % 30),
                        .stop_at_end = false});
  // Decoding together rounds differently than alone, so the tokens are forced and the logits compared.
  std::vector<std::vector<std::vector<float>>> alone(requests.size()), together(requests.size());
  double largest = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].forced = random_tokens(rng, requests[i].max_new_tokens, llama->vocab_size());
    Engine engine(*llama, 1);
    requests[i].on_logits = [&, i](std::uint32_t, std::span<const float> row) {
      alone[i].emplace_back(row.begin(), row.end());
    };
    const RequestNumber id = must(engine.submit(requests[i]));
    CHECK(run(engine)[id].tokens == requests[i].forced);
  }
  Engine engine(*llama, 4);
  std::vector<RequestNumber> ids;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].on_logits = [&, i](std::uint32_t, std::span<const float> row) {
      together[i].emplace_back(row.begin(), row.end());
    };
    ids.push_back(must(engine.submit(requests[i])));
  }
  Outcomes outcomes = run(engine);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CHECK(outcomes[ids[i]].tokens == requests[i].forced);
    REQUIRE(alone[i].size() == together[i].size());
    for (std::size_t k = 0; k < alone[i].size(); ++k)
      for (std::size_t v = 0; v < alone[i][k].size(); ++v)
        largest = std::max(largest, static_cast<double>(std::abs(alone[i][k][v] - together[i][k][v])));
  }
  std::cout << "together: largest difference of a logit " << largest << "\n";
  CHECK(largest < 0.05);
}

TEST_CASE("requests are served in the order in which they came, and wait for cells") {
  auto llama = open_tiny(512, 4, 64);
  std::mt19937_64 rng(4);
  Engine engine(*llama, 4);
  std::vector<RequestNumber> ids;
  for (int i = 0; i < 9; ++i)  // three fit at a time
    ids.push_back(must(engine.submit({.tokens = random_tokens(rng, 150, llama->vocab_size()),
                                      .max_new_tokens = 20,
                                      .stop_at_end = false})));
  Outcomes outcomes = run(engine);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    CHECK(outcomes[ids[i]].finish == Finish::kLength);
    if (i > 0) CHECK(outcomes[ids[i]].first_step > outcomes[ids[i - 1]].first_step);
  }
}

TEST_CASE("a cancelled request ends with the next step, wherever it was, and gives its place to the next") {
  auto llama = open_tiny(512, 2, 64);
  std::mt19937_64 rng(5);
  Engine engine(*llama, 1);
  const auto request = [&] {
    return Request{
        .tokens = random_tokens(rng, 200, llama->vocab_size()), .max_new_tokens = 50, .stop_at_end = false};
  };
  const RequestNumber prefilling = must(engine.submit(request())), decoding = must(engine.submit(request())),
                      waiting = must(engine.submit(request())), last = must(engine.submit(request()));
  Outcomes outcomes;
  int step = 0;
  for (; step < 2; ++step) note(engine.step(), step, outcomes);
  REQUIRE(engine.cancel(prefilling).ok());
  CHECK(engine.cancel(prefilling).code() == StatusCode::kStale);
  CHECK(llama->pos_max(0) == -1);
  REQUIRE(engine.cancel(waiting).ok());
  for (; outcomes[decoding].tokens.size() < 7; ++step) note(engine.step(), step, outcomes);
  CHECK(outcomes[prefilling].finish == Finish::kCancelled);
  CHECK(outcomes[prefilling].report.computed_tokens == 128);
  CHECK(outcomes[waiting].finish == Finish::kCancelled);
  CHECK(outcomes[waiting].report.computed_tokens == 0);
  REQUIRE(engine.cancel(decoding).ok());
  for (; engine.busy(); ++step) note(engine.step(), step, outcomes);
  CHECK(outcomes[decoding].finish == Finish::kCancelled);
  CHECK(outcomes[decoding].tokens.size() == 7);
  CHECK(outcomes[last].tokens.size() == 50);
  CHECK(engine.cancel(last).code() == StatusCode::kStale);
  CHECK(engine.cancel(12345).code() == StatusCode::kStale);
}

TEST_CASE("an end token stops a request and is not part of its text") {
  auto llama = open_tiny();
  std::mt19937_64 rng(6);
  const auto tokens = random_tokens(rng, 20, llama->vocab_size());
  Engine engine(*llama, 2);
  const RequestNumber stops =
      must(engine.submit({.tokens = tokens, .max_new_tokens = 10, .forced = {5, 6, 2, 7}}));
  const RequestNumber goes_on = must(
      engine.submit({.tokens = tokens, .max_new_tokens = 4, .stop_at_end = false, .forced = {5, 6, 2, 7}}));
  Outcomes outcomes = run(engine);
  CHECK(outcomes[stops].finish == Finish::kEnd);
  CHECK(outcomes[stops].tokens == std::vector<TokenId>{5, 6});
  CHECK(outcomes[goes_on].finish == Finish::kLength);
  CHECK(outcomes[goes_on].tokens == std::vector<TokenId>{5, 6, 2, 7});
}

TEST_CASE("a request for no tokens computes the prompt and ends") {
  auto llama = open_tiny();
  std::mt19937_64 rng(8);
  Engine engine(*llama, 1);
  const RequestNumber id = must(engine.submit({.tokens = random_tokens(rng, 100, 266), .max_new_tokens = 0}));
  const Outcome o = run(engine)[id];
  CHECK(o.finish == Finish::kLength);
  CHECK(o.tokens.empty());
  CHECK(o.report.computed_tokens == 100);
}

TEST_CASE("sampling follows its seed and stays inside top_p") {
  auto llama = open_tiny();
  std::mt19937_64 rng(9);
  const auto tokens = random_tokens(rng, 50, llama->vocab_size());
  const auto text = [&](Sampling sampling) {
    Engine engine(*llama, 1);
    const RequestNumber id = must(
        engine.submit({.tokens = tokens, .max_new_tokens = 24, .stop_at_end = false, .sampling = sampling}));
    return run(engine)[id].tokens;
  };
  const auto likeliest = text({});
  CHECK(text({.temperature = 2, .seed = 1}) == text({.temperature = 2, .seed = 1}));
  CHECK_FALSE(text({.temperature = 2, .seed = 1}) == text({.temperature = 2, .seed = 2}));
  CHECK_FALSE(text({.temperature = 2, .seed = 1}) == likeliest);
  CHECK(text({.temperature = 2, .top_p = 1e-6f, .seed = 1}) == likeliest);
  // Colder than a float can divide by; and the seed that llama.cpp takes for "a random one".
  CHECK(text({.temperature = 1e-30f, .seed = 1}) == likeliest);
  CHECK(text({.temperature = 2, .seed = 0xffffffffu}) == text({.temperature = 2, .seed = 0xffffffffu}));
}

TEST_CASE("requests that can never run are refused at once") {
  auto llama = open_tiny(512, 2, 64);
  Engine engine(*llama, 2);
  const auto code = [&](Request request) { return engine.submit(std::move(request)).status().code(); };
  CHECK(code({}) == StatusCode::kInvalidArgument);
  CHECK(code({.tokens = {1, 266}}) == StatusCode::kOutOfRange);
  CHECK(code({.tokens = {1, -1}}) == StatusCode::kOutOfRange);
  CHECK(code({.tokens = {1}, .forced = {266}}) == StatusCode::kOutOfRange);
  CHECK(code({.tokens = std::vector<TokenId>(513, 5)}) == StatusCode::kOutOfRange);
  CHECK(code({.tokens = std::vector<TokenId>(500, 5), .max_new_tokens = 13}) == StatusCode::kOutOfRange);
  CHECK(code({.tokens = std::vector<TokenId>(1000000, 5)}) == StatusCode::kOutOfRange);
  CHECK(code({.tokens = {1}, .max_new_tokens = 0xffffffffu}) == StatusCode::kOutOfRange);
  CHECK(code({.tokens = {1}, .sampling = {.temperature = -1}}) == StatusCode::kInvalidArgument);
  CHECK(code({.tokens = {1}, .sampling = {.temperature = NAN}}) == StatusCode::kInvalidArgument);
  CHECK(code({.tokens = {1}, .sampling = {.top_p = 0}}) == StatusCode::kInvalidArgument);
  CHECK_FALSE(engine.busy());
  CHECK(engine.step().empty());
  const RequestNumber all =
      must(engine.submit({.tokens = std::vector<TokenId>(500, 5), .max_new_tokens = 12}));
  CHECK(run(engine)[all].report.computed_tokens == 500);
}
