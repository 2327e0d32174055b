// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Several answers to one prompt.
#include <map>

#include "support.hpp"

using namespace kvstem_llama;
using namespace kvstem_llama::test;

namespace {

struct Sample {
  std::vector<TokenId> tokens;
  int finished = 0;
  Finish finish = Finish::kFailed;
  Report report;
};
using Samples = std::map<std::uint32_t, Sample>;

void note(std::span<const Event> events, Samples& samples) {
  for (const Event& e : events) {
    Sample& s = samples[e.sample];
    REQUIRE(s.finished == 0);
    if (e.kind != Event::Kind::kFinished) {
      s.tokens.push_back(e.token);
      continue;
    }
    ++s.finished;
    s.finish = e.finish;
    s.report = e.report;
  }
}

Samples ask(Engine& engine, Request request) {
  const auto number = engine.submit(std::move(request));
  REQUIRE(number.ok());
  Samples samples;
  while (engine.busy()) note(engine.step(), samples);
  return samples;
}

constexpr Sampling kWild{.temperature = 2, .top_p = 1, .seed = 40};

}  // namespace

TEST_CASE("samples fork from one prefill: the prompt is computed once") {
  for (const bool cached : {true, false}) {
    House house(4, {.block_tokens = kHouseBlock}, 4096, 12);
    Engine plain(*house.llama, 4);
    Engine& engine = cached ? *house.engine : plain;
    std::mt19937_64 rng(seed("samples"));
    const Request request{.tokens = house.random(rng, 300),
                          .max_new_tokens = 20,
                          .scope = house.scope,
                          .stop_at_end = false,
                          .sampling = kWild,
                          .samples = 4};
    Samples samples = ask(engine, request);
    REQUIRE(samples.size() == 4);
    std::uint32_t computed = 0, different = 0;
    for (auto& [i, s] : samples) {
      CHECK(s.finished == 1);
      CHECK(s.finish == Finish::kLength);
      CHECK(s.tokens.size() == 20);
      CHECK(s.report.forked == (i > 0));
      CHECK(s.report.prompt_tokens == 300);
      CHECK(s.report.reused_tokens + s.report.computed_tokens == 300);
      computed += s.report.computed_tokens;
      different += s.tokens != samples[0].tokens;
    }
    CHECK(computed == 300);
    CHECK(different == 3);
    CHECK(engine.forks() == 3);
    if (cached) CHECK(house.cache->stats().forks == 3);

    // Each begins as a request of its own with that seed does.
    for (std::uint32_t i = 0; i < 4; ++i) {
      House alone(4, {.block_tokens = kHouseBlock}, 4096, 12);
      Request one = request;
      one.samples = 1;
      one.sampling.seed += i;
      one.scope = alone.scope;
      CHECK(ask(*alone.engine, one)[0].tokens.front() == samples[i].tokens.front());
    }
  }
}

TEST_CASE("more samples than slots wait for their turn and share the prompt all the same") {
  House house(2, {.block_tokens = kHouseBlock}, 4096, 12);
  std::mt19937_64 rng(seed("many samples"));
  Samples samples = ask(*house.engine, {.tokens = house.random(rng, 300),
                                        .max_new_tokens = 5,
                                        .scope = house.scope,
                                        .stop_at_end = false,
                                        .sampling = kWild,
                                        .samples = 9});
  REQUIRE(samples.size() == 9);
  std::uint32_t computed = 0;
  for (auto& [i, s] : samples) {
    CHECK(s.finish == Finish::kLength);
    CHECK(s.tokens.size() == 5);
    computed += s.report.computed_tokens;
  }
  CHECK(computed <= 300 + 8);  // one token for each that could not fork
  CHECK(house.engine->waiting() == 0);
}

TEST_CASE("what overtook a request is told once, however many samples it has") {
  House house(1, {.block_tokens = kHouseBlock});
  std::mt19937_64 rng(5);
  const auto warm = house.random(rng, 300);
  (void)ask(*house.engine, {.tokens = warm, .max_new_tokens = 1, .scope = house.scope});
  const auto busy = house.engine->submit(
      {.tokens = house.random(rng, 200), .max_new_tokens = 5, .scope = house.scope, .stop_at_end = false});
  REQUIRE(busy.ok());
  (void)house.engine->step();
  const auto many = house.engine->submit({.tokens = house.random(rng, 100),
                                          .max_new_tokens = 3,
                                          .scope = house.scope,
                                          .stop_at_end = false,
                                          .sampling = kWild,
                                          .samples = 5});
  for (int i = 0; i < 3; ++i)
    REQUIRE(house.engine->submit({.tokens = warm, .max_new_tokens = 2, .scope = house.scope}).ok());
  std::uint32_t told = 0, samples = 0;
  while (house.engine->busy())
    for (const Event& e : house.engine->step())
      if (e.kind == Event::Kind::kFinished && e.request == *many)
        ++samples, told += e.report.forked ? 0 : e.report.overtaken;
  CHECK(samples == 5);
  CHECK(told == 3);
}

TEST_CASE("samples of no new tokens end with the prompt") {
  House house(2, {.block_tokens = kHouseBlock});
  std::mt19937_64 rng(2);
  const Samples samples =
      ask(*house.engine,
          {.tokens = house.random(rng, 70), .max_new_tokens = 0, .scope = house.scope, .samples = 3});
  CHECK(samples.size() == 3);
  for (const auto& [i, s] : samples) CHECK(s.finish == Finish::kLength);
}

TEST_CASE("one sample can be cancelled, wherever it is, and the others go on") {
  // At each point of time, each sample.
  for (int at = 0; at < 12; ++at)
    for (std::uint32_t victim = 0; victim < 4; ++victim) {
      House house(2, {.block_tokens = kHouseBlock});
      std::mt19937_64 rng(1);
      Samples samples;
      const auto number = house.engine->submit({.tokens = house.random(rng, 200),
                                                .max_new_tokens = 5,
                                                .scope = house.scope,
                                                .stop_at_end = false,
                                                .sampling = kWild,
                                                .samples = 4});
      REQUIRE(number.ok());
      for (int step = 0; step < at; ++step) note(house.engine->step(), samples);
      const bool over = samples[victim].finished == 1;
      CHECK(house.engine->cancel(*number, victim).code() == (over ? StatusCode::kStale : StatusCode::kOk));
      CHECK(house.engine->cancel(*number, victim).code() == StatusCode::kStale);
      while (house.engine->busy()) note(house.engine->step(), samples);
      for (std::uint32_t i = 0; i < 4; ++i) {
        INFO("sample " << i << " of victim " << victim << " at " << at);
        CHECK(samples[i].finished == 1);
        CHECK(samples[i].finish == (i == victim && !over ? Finish::kCancelled : Finish::kLength));
        if (i != victim) CHECK(samples[i].tokens.size() == 5);
      }
      CHECK(house.engine->cancel(*number).code() == StatusCode::kStale);
      CHECK(house.cache->cache().audit().balanced());
    }
}

TEST_CASE("a cancelled request ends all its samples, and gives everything back") {
  for (int at = 0; at < 12; ++at) {
    House house(2, {.block_tokens = kHouseBlock, .resident_tokens = 0});
    std::mt19937_64 rng(1);
    Samples samples;
    const auto number = house.engine->submit({.tokens = house.random(rng, 200),
                                              .max_new_tokens = 5,
                                              .scope = house.scope,
                                              .stop_at_end = false,
                                              .samples = 5});
    REQUIRE(number.ok());
    for (int step = 0; step < at; ++step) note(house.engine->step(), samples);
    CHECK(house.engine->cancel(*number).ok());
    while (house.engine->busy()) note(house.engine->step(), samples);
    CHECK(samples.size() == 5);
    for (const auto& [i, s] : samples) CHECK(s.finished == 1);
    CHECK(house.engine->running() == 0);
    for (std::uint32_t s = 0; s < house.llama->capacity().sequences; ++s)
      CHECK(house.llama->pos_max(static_cast<SequenceId>(s)) == -1);
    // All cells are free: the longest request that this engine takes runs.
    Report report = ask(*house.engine, {.tokens = house.random(rng, 4000),
                                        .max_new_tokens = 96,
                                        .scope = house.scope,
                                        .stop_at_end = false})[0]
                        .report;
    CHECK(report.new_tokens == 96);
  }
}

TEST_CASE("samples that are asked for badly are refused") {
  House house(2, {.block_tokens = kHouseBlock});
  CHECK(house.engine->submit({.tokens = {1}, .scope = house.scope, .samples = 0}).status().code() ==
        StatusCode::kInvalidArgument);
}
