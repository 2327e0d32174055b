// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The scheduler with the cache behind it: what is computed, what is reused, and that it changes nothing.
#include <map>

#include "support.hpp"

using namespace kvstem_llama;
using namespace kvstem_llama::test;

namespace {

/// Runs one request to its end. Returns what it said; `report` what it cost.
std::vector<TokenId> ask(House& house, Request request, Report& report) {
  request.scope = house.scope;
  const auto number = house.engine->submit(std::move(request));
  INFO(number.status().message());
  REQUIRE(number.ok());
  std::vector<TokenId> tokens;
  bool finished = false;
  for (int step = 0; house.engine->busy(); ++step) {
    REQUIRE(step < 100000);
    for (const Event& e : house.engine->step()) {
      REQUIRE(e.request == *number);
      if (e.kind != Event::Kind::kFinished) {
        tokens.push_back(e.token);
        continue;
      }
      INFO(e.status.message());
      REQUIRE(e.finish != Finish::kFailed);
      report = e.report;
      finished = true;
    }
  }
  REQUIRE(finished);
  CHECK(report.reused_tokens == report.from_resident + report.from_host + report.from_frontier);
  CHECK(report.reused_tokens + report.computed_tokens == report.prompt_tokens);
  return tokens;
}

}  // namespace

TEST_CASE("a turn computes its new tokens only, at every length and with or without residents") {
  for (const std::uint32_t residents : {0u, 2048u}) {
    House house(2, {.block_tokens = kHouseBlock, .resident_tokens = residents});
    std::mt19937_64 rng(seed("turns"));
    std::vector<TokenId> history = house.random(rng, 40 + rng() % 100);
    std::uint64_t from_resident = 0, from_frontier = 0, from_host = 0;
    for (int turn = 0; turn < 40; ++turn) {
      Report report;
      const auto before = static_cast<std::uint32_t>(history.size());
      const auto question = house.random(rng, 1 + rng() % 40);
      history.insert(history.end(), question.begin(), question.end());
      const auto fresh = static_cast<std::uint32_t>(question.size());
      const auto answer = ask(house,
                              {.tokens = history,
                               .max_new_tokens = static_cast<std::uint32_t>(1 + rng() % 40),
                               .session = 7,
                               .stop_at_end = false},
                              report);
      // The last token of an answer is said but never computed: the next turn does it.
      CHECK(report.computed_tokens == (turn == 0 ? before + fresh : fresh + 1));
      history.insert(history.end(), answer.begin(), answer.end());
      from_resident += report.from_resident;
      from_host += report.from_host;
      from_frontier += report.from_frontier;
    }
    std::cout << "turns: " << from_resident << " tokens from residents, " << from_host
              << " from host memory, " << from_frontier << " from frontiers\n";
    CHECK((residents > 0) == (from_resident > 0));
    CHECK((residents > 0 || from_frontier > 0));
    CHECK(from_host > 0);
  }
}

TEST_CASE("a session keeps one frontier, so that a busy one does not push out the others") {
  House house(1, {.block_tokens = kHouseBlock, .resident_tokens = 0, .frontiers = 2});
  std::mt19937_64 rng(seed("two sessions"));
  std::vector<TokenId> quiet = house.random(rng, 50), busy = house.random(rng, 50);
  const auto turn = [&](std::vector<TokenId>& history, std::uint64_t session) {
    Report report;
    const auto answer = ask(
        house, {.tokens = history, .max_new_tokens = 3, .session = session, .stop_at_end = false}, report);
    history.insert(history.end(), answer.begin(), answer.end());
    return report.computed_tokens;
  };
  (void)turn(quiet, 1);
  for (int i = 0; i < 10; ++i) CHECK(turn(busy, 2) == (i == 0 ? 50 : 1));
  CHECK(turn(quiet, 1) == 1);
}

TEST_CASE("requests that share a beginning compute it once") {
  House house(2, {.block_tokens = kHouseBlock});
  std::mt19937_64 rng(seed("shared beginning"));
  const auto system = house.random(rng, 500);
  for (int agent = 0; agent < 6; ++agent) {
    auto tokens = system;
    auto own = house.random(rng, 50);
    own.front() = 10 + agent;  // where they part
    tokens.insert(tokens.end(), own.begin(), own.end());
    Report report;
    (void)ask(house,
              {.tokens = tokens, .max_new_tokens = 10, .session = static_cast<std::uint64_t>(agent + 1)},
              report);
    // Whole blocks from host memory; once a sequence with this beginning is resident, every token of it.
    CHECK(report.reused_tokens == (agent == 0 ? 0 : agent == 1 ? 500 / kHouseBlock * kHouseBlock : 500));
  }
}

TEST_CASE("with exact reuse logits are bitwise those of a cold run in the same layout") {
  // Without residents the cells of a request are the first ones, in order, as they are for a cold run.
  House warm(1, {.block_tokens = kHouseBlock, .resident_tokens = 0});
  auto llama = open_tiny(4096, 12);
  std::mt19937_64 rng(seed("exact reuse"));
  std::vector<TokenId> base;
  std::uint64_t reused = 0;
  for (int round = 0; round < 60; ++round) {
    // Each goes further along `base`, so all leave some of its blocks. One of six takes what it can get, and so leaves
    // blocks that were not computed on the grid.
    if (round % 6 == 0) base = warm.random(rng, 600);
    const std::size_t common = 70 + static_cast<std::size_t>(round % 6) * 90 + rng() % 64;
    std::vector<TokenId> tokens(base.begin(), base.begin() + static_cast<std::ptrdiff_t>(common));
    const auto own = warm.random(rng, 1 + rng() % 100);
    tokens.insert(tokens.end(), own.begin(), own.end());
    const bool exact = round % 6 != 2;
    std::vector<std::vector<float>> cold, cached;
    Request request{.tokens = tokens, .max_new_tokens = 16, .exact = exact, .stop_at_end = false};
    request.on_logits = [&](std::uint32_t, std::span<const float> row) {
      cold.emplace_back(row.begin(), row.end());
    };
    Engine engine(*llama, 1);
    REQUIRE(engine.submit(request).ok());
    while (engine.busy()) (void)engine.step();

    request.on_logits = [&](std::uint32_t, std::span<const float> row) {
      cached.emplace_back(row.begin(), row.end());
    };
    Report report;
    (void)ask(warm, request, report);
    if (!exact) continue;
    CHECK(report.reused_tokens % kGrid == 0);
    CHECK(std::equal(cold.begin(), cold.end(), cached.begin(), cached.end(),
                     [](const auto& a, const auto& b) { return same_bits(a, b); }));
    reused += report.reused_tokens;
  }
  // 40 rounds have one before them that was exact, and so a chunk to find at least. What the others left is of no use.
  CHECK(reused >= 40 * kGrid);
}

TEST_CASE("a busy engine with little room loses no request and reuses nothing wrong") {
  // Teacher forcing and a cold run's logits show any state that is not that of its prefix: it would be off by more than
  // rounding.
  House house(4, {.block_tokens = kHouseBlock, .host_bytes = 1 << 20, .resident_tokens = 600}, 1536, 9);
  auto llama = open_tiny(2048, 1);
  std::mt19937_64 rng(seed("little room"));
  std::vector<std::vector<TokenId>> systems;
  for (int i = 0; i < 3; ++i) systems.push_back(house.random(rng, 100 + rng() % 150));
  std::vector<std::vector<TokenId>> histories;
  for (int i = 0; i < 8; ++i) histories.push_back(systems[rng() % systems.size()]);

  struct Running {
    std::size_t history = 0;
    Request request;
    std::vector<std::vector<float>> warm;
  };
  std::map<RequestNumber, std::unique_ptr<Running>> running;
  std::vector<bool> asking(histories.size());
  int done = 0, cancelled = 0;
  double largest = 0;
  std::uint64_t reused = 0, prompts = 0;
  const auto compare = [&](const Running& r) {
    std::vector<std::vector<float>> cold;
    Request alone = r.request;
    alone.on_logits = [&](std::uint32_t, std::span<const float> row) {
      cold.emplace_back(row.begin(), row.end());
    };
    Engine engine(*llama, 1);
    REQUIRE(engine.submit(std::move(alone)).ok());
    while (engine.busy()) (void)engine.step();
    REQUIRE(cold.size() >= r.warm.size());
    for (std::size_t i = 0; i < r.warm.size(); ++i)
      for (std::size_t v = 0; v < r.warm[i].size(); ++v)
        largest = std::max(largest, static_cast<double>(std::abs(cold[i][v] - r.warm[i][v])));
  };
  for (int step = 0; done + cancelled < 200; ++step) {
    REQUIRE(step < 100000);
    const std::size_t h = rng() % histories.size();
    if (!asking[h] && running.size() < 6) {
      if (histories[h].size() > 500) histories[h] = systems[rng() % systems.size()];
      const auto question = house.random(rng, 1 + rng() % 60);
      histories[h].insert(histories[h].end(), question.begin(), question.end());
      auto r = std::make_unique<Running>();
      r->history = h;
      r->request = {.tokens = histories[h],
                    .max_new_tokens = static_cast<std::uint32_t>(1 + rng() % 30),
                    .session = h + 1,
                    .stop_at_end = false,
                    .forced = house.random(rng, 30)};
      Request request = r->request;
      request.scope = house.scope;
      request.on_logits = [&warm = r->warm](std::uint32_t, std::span<const float> row) {
        warm.emplace_back(row.begin(), row.end());
      };
      const auto number = house.engine->submit(std::move(request));
      REQUIRE(number.ok());
      running[*number] = std::move(r);
      asking[h] = true;
    }
    if (!running.empty() && rng() % 60 == 0) {
      auto victim = running.begin();
      std::advance(victim, static_cast<std::ptrdiff_t>(rng() % running.size()));
      REQUIRE(house.engine->cancel(victim->first).ok());
    }
    for (const Event& e : house.engine->step()) {
      if (e.kind != Event::Kind::kFinished) continue;
      const auto it = running.find(e.request);
      REQUIRE(it != running.end());
      Running& r = *it->second;
      INFO(e.status.message());
      REQUIRE(e.finish != Finish::kFailed);
      compare(r);
      ++(e.finish == Finish::kCancelled ? cancelled : done);
      reused += e.report.reused_tokens;
      prompts += e.report.prompt_tokens;
      auto& history = histories[r.history];
      history.insert(history.end(), r.request.forced.begin(), r.request.forced.begin() + e.report.new_tokens);
      asking[r.history] = false;
      running.erase(it);
    }
  }
  const auto& stats = house.cache->stats();
  std::cout << "little room: " << done << " done, " << cancelled << " cancelled, " << reused << " of "
            << prompts << " prompt tokens reused (" << stats.resident_tokens << " resident, "
            << stats.host_tokens << " host, " << stats.frontier_tokens << " frontier), "
            << stats.residents_dropped << " residents dropped, " << stats.failed_imports
            << " failed imports, largest difference of a logit " << largest << "\n";
  CHECK(largest < 0.1);
  CHECK(cancelled > 0);
  CHECK(stats.resident_tokens > 0);
  CHECK(stats.host_tokens > 0);
  CHECK(stats.frontier_tokens > 0);
  CHECK(stats.residents_dropped > 0);
  CHECK(stats.failed_imports == 0);  // room is made before
  CHECK(stats.largest_step_bytes <= 8u << 20);
}

TEST_CASE("what one tenant computed another never gets") {
  House house(1, {.block_tokens = kHouseBlock});
  std::mt19937_64 rng(21);
  const auto tokens = house.random(rng, 200);
  Report report;
  (void)ask(house, {.tokens = tokens}, report);
  (void)ask(house, {.tokens = tokens}, report);
  CHECK(report.reused_tokens == 199);
  house.scope = *house.cache->open_scope(house.llama->scope("another tenant"));
  (void)ask(house, {.tokens = tokens}, report);
  CHECK(report.reused_tokens == 0);
}

TEST_CASE("a request without reuse neither takes nor leaves anything") {
  House house(1, {.block_tokens = kHouseBlock});
  std::mt19937_64 rng(22);
  const auto tokens = house.random(rng, 200);
  Report report;
  (void)ask(house, {.tokens = tokens, .reuse = false}, report);
  (void)ask(house, {.tokens = tokens}, report);
  CHECK(report.reused_tokens == 0);
  (void)ask(house, {.tokens = tokens, .reuse = false}, report);
  CHECK(report.reused_tokens == 0);
  (void)ask(house, {.tokens = tokens}, report);
  CHECK(report.reused_tokens == 199);
}

TEST_CASE("with its prefix in place a request computes the rest, and leaves its own state there") {
  auto llama = open_tiny(2048, 3);
  std::mt19937_64 rng(23);
  const auto tokens = random_tokens(rng, 300, llama->vocab_size());
  const auto run = [&](SequenceId in_place, std::uint32_t in_place_tokens,
                       std::vector<std::vector<float>>& logits) {
    Engine engine(*llama, 1);
    REQUIRE(engine
                .submit({.tokens = tokens,
                         .max_new_tokens = 8,
                         .stop_at_end = false,
                         .in_place = in_place,
                         .in_place_tokens = in_place_tokens,
                         .on_logits =
                             [&](std::uint32_t, std::span<const float> row) {
                               logits.emplace_back(row.begin(), row.end());
                             }})
                .ok());
    Report report;
    while (engine.busy())
      for (const Event& e : engine.step())
        if (e.kind == Event::Kind::kFinished) report = e.report;
    return report;
  };
  std::vector<std::vector<float>> cold, warm, again;
  (void)run(kvstem::kNoSequence, 0, cold);
  REQUIRE(prefill(*llama, 2, tokens, 0, 256).ok());
  CHECK(run(2, 256, warm).computed_tokens == 44);
  CHECK(llama->pos_max(2) == 306);  // the eighth token was not computed
  CHECK(llama->pos_max(0) == -1);
  CHECK(run(2, 299, again).computed_tokens == 1);
  CHECK(std::equal(cold.begin(), cold.end(), warm.begin(), warm.end(),
                   [](const auto& a, const auto& b) { return same_bits(a, b); }));
  Engine engine(*llama, 2);
  CHECK(engine.submit({.tokens = tokens, .in_place = 1, .in_place_tokens = 5}).status().code() ==
        StatusCode::kInvalidArgument);
  CHECK(engine.submit({.tokens = tokens, .in_place = 2, .in_place_tokens = 300}).status().code() ==
        StatusCode::kInvalidArgument);
}
