// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What an opaque host offers to a line of requests: sharing with those that run, forks, probes, announcements.
#include <numeric>
#include <vector>

#include "kvstem/host/opaque_host.hpp"
#include "kvstem/policy/lru2.hpp"
#include "kvstem/testing/digest_engine.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {

constexpr std::uint32_t kBlock = 8;

std::vector<TokenId> count(std::size_t n, TokenId from = 0) {
  std::vector<TokenId> tokens(n);
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

template <class Policy = Lru>
struct Line {
  using Host = OpaqueHost<DigestEngine, Policy>;
  DigestEngine engine{{.cells = 4096, .sequences = 8, .sequence_tokens = 256}};
  std::unique_ptr<Host> host;
  ScopeId scope{};

  explicit Line(std::size_t blocks = 64, std::uint32_t announcements = 2) {
    host = *Host::create(engine, {.block_tokens = kBlock,
                                  .host_bytes = blocks * kBlock * 8,
                                  .requests = 4,
                                  .resident_tokens = 0,
                                  .frontiers = 0,
                                  .announcements = announcements});
    scope = *host->open_scope({.model = "m", .vocab_size = 1000});
  }
  [[nodiscard]] OpaqueRequest request(std::span<const TokenId> tokens) const {
    return {.prompt = {.scope = scope, .tokens = tokens}};
  }
  [[nodiscard]] Admission begin(std::span<const TokenId> tokens) {
    const auto a = host->begin(request(tokens));
    REQUIRE(a.ok());
    REQUIRE(engine.holds(a->sequence, tokens.first(a->reused_tokens)));
    return *a;
  }
  void prefill(const Admission& a, std::span<const TokenId> tokens, std::size_t from, std::size_t to) {
    for (std::size_t i = from; i < to; ++i) engine.compute(a.sequence, tokens[i]);
    REQUIRE(host->computed(a.request, static_cast<std::uint32_t>(to - from), false).ok());
  }
  void turn(std::span<const TokenId> tokens) {
    const Admission a = begin(tokens);
    prefill(a, tokens, a.reused_tokens, tokens.size());
    REQUIRE(host->end(a.request).ok());
    while (host->work() > 0) {
    }
  }
};

}  // namespace

TEST_CASE("a request shares what another that still runs has computed so far, to the token") {
  Line line;
  const auto tokens = count(50);
  const Admission first = line.begin(tokens);
  line.prefill(first, tokens, 0, 21);
  const Admission second = line.begin(tokens);
  CHECK(second.from_resident == 21);
  line.prefill(first, tokens, 21, 50);
  const Admission third = line.begin(tokens);
  CHECK(third.from_resident == 49);  // one is left to compute
  REQUIRE(line.host->abort(first.request).ok());
  CHECK(line.engine.holds(second.sequence, std::span(tokens).first(21)));
  CHECK(line.begin(tokens).from_resident == 49);  // of the third
  CHECK(line.engine.mistakes == 0);
}

TEST_CASE(
    "what was computed on the grid behind state that was not is no exact state, for those who share either") {
  for (const bool first_on_grid : {false, true}) {
    Line line;
    const auto tokens = count(40);
    const auto compute = [&](const Admission& a, std::size_t from, std::size_t to, bool on_grid) {
      for (std::size_t i = from; i < to; ++i) line.engine.compute(a.sequence, tokens[i]);
      REQUIRE(line.host->computed(a.request, static_cast<std::uint32_t>(to - from), on_grid).ok());
    };
    const std::span<const TokenId> all(tokens);
    const Admission first = line.begin(all.first(17));
    compute(first, 0, 8, first_on_grid);
    compute(first, 8, 16, first_on_grid);
    compute(first, 16, 17, false);
    REQUIRE(line.host->end(first.request).ok());
    while (line.host->work() > 0) {
    }
    const Admission second = line.begin(all.first(32));
    REQUIRE(second.from_host == 16);
    compute(second, 16, 24, true);
    compute(second, 24, 32, true);
    // It runs, so it is the donor of whoever comes now.
    const auto exact =
        line.host->begin({.prompt = {.scope = line.scope, .tokens = tokens}, .grid_tokens = kBlock});
    REQUIRE(exact.ok());
    CHECK(exact->reused_tokens == (first_on_grid ? 16 : 0));
    CHECK(line.engine.holds(exact->sequence, all.first(exact->reused_tokens)));
  }
}

TEST_CASE("a fork goes on from all that its request has, and each keeps its own") {
  Line line;
  const auto tokens = count(21);
  const Admission first = line.begin(tokens);
  CHECK(line.host->fork(first.request).status().code() == StatusCode::kWrongState);
  line.prefill(first, tokens, 0, 21);
  const auto second = line.host->fork(first.request);
  REQUIRE(second.ok());
  CHECK(second->reused_tokens == 21);
  CHECK(line.engine.holds(second->sequence, tokens));

  std::vector<TokenId> answers[] = {tokens, tokens};
  const Admission* both[] = {&first, &*second};
  for (TokenId i = 0; i < 20; ++i)
    for (std::size_t k = 0; k < 2; ++k) {
      const auto token = static_cast<TokenId>(100 + 100 * static_cast<TokenId>(k) + i);
      line.engine.compute(both[k]->sequence, token);
      REQUIRE(line.host->append(both[k]->request, {&token, 1}).ok());
      answers[k].push_back(token);
      line.host->work();
    }
  const auto third = line.host->fork(second->request);  // of what was decoded as well
  REQUIRE(third.ok());
  CHECK(line.engine.holds(third->sequence, answers[1]));
  const auto fourth = line.host->fork(first.request);
  REQUIRE(fourth.ok());
  CHECK(line.host->fork(first.request).status().code() == StatusCode::kExhausted);  // four run
  for (const Admission* a : {&first, &*second, &*third, &*fourth}) REQUIRE(line.host->end(a->request).ok());
  CHECK(line.host->fork(first.request).status().code() == StatusCode::kStale);
  while (line.host->work() > 0) {
  }
  // Both answers are in host memory, their common prompt once.
  for (auto& answer : answers) {
    answer.push_back(1);
    CHECK(line.host->probe(line.request(answer)) == 40);
  }
  CHECK(line.host->cache().pool().used_slots() == 2 + 3 + 3);
  CHECK(line.host->stats().requests == 1);
  CHECK(line.host->stats().forks == 3);
  CHECK(line.host->cache().stats().queried_tokens == 21);
  CHECK(line.host->cache().audit().balanced());
  CHECK(line.engine.mistakes == 0);
}

TEST_CASE("an engine that will not share makes no fork, and the request goes on") {
  Line line;
  const auto tokens = count(9);
  const Admission first = line.begin(tokens);
  line.prefill(first, tokens, 0, 9);
  line.engine.fail = [](DigestEngine::Call call) { return call == DigestEngine::Call::kShare; };
  CHECK(line.host->fork(first.request).status().code() == StatusCode::kUnavailable);
  line.engine.fail = {};
  CHECK(line.host->fork(first.request).ok());
  CHECK(line.engine.mistakes == 0);
}

TEST_CASE("what is announced is not evicted until it is withdrawn") {
  for (const bool announced : {false, true}) {
    Line line(8);  // blocks
    const auto wanted = count(33), other = count(33, 100), third = count(33, 200);
    line.turn(wanted);
    AnnouncementId id;
    if (announced) {
      const auto made = line.host->announce(line.request(wanted));
      REQUIRE(made.ok());
      id = *made;
    }
    line.turn(other);
    line.turn(third);
    CHECK(line.host->probe(line.request(wanted)) == (announced ? 32 : 0));
    if (!announced) continue;
    // A pool that is held by announcements refuses nobody; what finds no room is not kept.
    const auto second = line.host->announce(line.request(third));
    REQUIRE(second.ok());
    CHECK(line.host->announce(line.request(other)).status().code() == StatusCode::kExhausted);
    line.turn(other);
    CHECK(line.host->probe(line.request(other)) == 0);
    REQUIRE(line.host->withdraw(id).ok());
    CHECK(line.host->withdraw(id).code() == StatusCode::kStale);
    REQUIRE(line.host->withdraw(*second).ok());
    CHECK(line.host->withdraw({9, 1}).code() == StatusCode::kStale);
    line.turn(other);
    CHECK(line.host->probe(line.request(other)) == 32);
    CHECK(line.host->probe(line.request(wanted)) == 0);
    CHECK(line.host->cache().audit().balanced());
  }
}

TEST_CASE("announcing and probing count as no use, for the counters and for a policy that counts") {
  // Of two prompts used once each, LRU-2 drops the older one first, however often it was announced.
  Line<Lru2> line(8, 1);
  const auto older = count(33), newer = count(33, 100), third = count(33, 200);
  line.turn(older);
  line.turn(newer);
  const CacheStats before = line.host->cache().stats();
  for (int i = 0; i < 5; ++i) {
    CHECK(line.host->probe(line.request(older)) == 32);
    const auto id = line.host->announce(line.request(older));
    REQUIRE(id.ok());
    REQUIRE(line.host->withdraw(*id).ok());
  }
  CHECK(line.host->cache().stats().requests == before.requests);
  CHECK(line.host->cache().stats().queried_tokens == before.queried_tokens);
  CHECK(line.host->cache().stats().hit_tokens == before.hit_tokens);
  line.turn(third);
  CHECK(line.host->probe(line.request(older)) == 0);
  CHECK(line.host->probe(line.request(newer)) == 32);
}

TEST_CASE("a probe says what begin will find, and refuses nothing") {
  Line line;
  const auto tokens = count(50);
  CHECK(line.host->probe(line.request(tokens)) == 0);
  line.turn(tokens);
  CHECK(line.host->probe(line.request(tokens)) == 48);
  CHECK(line.host->probe(line.request(std::span(tokens).first(24))) == 16);  // one is left to compute
  CHECK(line.host->probe({.prompt = line.request(tokens).prompt, .grid_tokens = 0, .reuse = false}) == 0);
  CHECK(line.host->probe({}) == 0);
  CHECK(line.host->probe(line.request(count(300))) == 0);
  CHECK(line.host->probe({.prompt = {.scope = ScopeId{7}, .tokens = tokens}}) == 0);
}
