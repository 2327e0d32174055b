// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "kvstem/host/opaque_host.hpp"
#include "kvstem/policy/adaptive.hpp"
#include "kvstem/policy/hinted.hpp"

#include <numeric>
#include <vector>

#include "kvstem/testing/digest_engine.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {

constexpr std::uint32_t kBlock = 8;
constexpr std::size_t kBlockBytes = kBlock * 8;

struct Fixture {
  DigestEngine engine{{.cells = 4096, .sequences = 6, .sequence_tokens = 256}};
  std::unique_ptr<OpaqueHost<DigestEngine>> host;
  ScopeId scope{};

  explicit Fixture(OpaqueHostOptions options = {}) {
    options.block_tokens = kBlock;
    if (options.host_bytes > 1 << 20) options.host_bytes = 64 * kBlockBytes;
    if (options.requests == 4) options.requests = 2;
    auto made = OpaqueHost<DigestEngine>::create(engine, options);
    REQUIRE(made.ok());
    host = std::move(*made);
    const auto opened = host->open_scope({.model = "m", .vocab_size = 1000});
    REQUIRE(opened.ok());
    scope = *opened;
  }

  [[nodiscard]] Admission begin(std::span<const TokenId> tokens, std::uint32_t grid = 0) {
    const auto a =
        host->begin({.prompt = {.scope = scope, .tokens = tokens}, .session = 1, .grid_tokens = grid});
    REQUIRE(a.ok());
    REQUIRE(engine.holds(a->sequence, tokens.first(a->reused_tokens)));
    return *a;
  }
  void prefill(const Admission& a, std::span<const TokenId> tokens) {
    for (std::size_t i = a.reused_tokens; i < tokens.size(); ++i) engine.compute(a.sequence, tokens[i]);
    REQUIRE(
        host->computed(a.request, static_cast<std::uint32_t>(tokens.size()) - a.reused_tokens, false).ok());
  }
  /// One whole turn: the prompt, then `decoded`.
  Admission turn(std::span<const TokenId> tokens, std::span<const TokenId> decoded = {}) {
    const Admission a = begin(tokens);
    prefill(a, tokens);
    for (const TokenId t : decoded) engine.compute(a.sequence, t);
    REQUIRE(host->append(a.request, decoded).ok());
    REQUIRE(host->end(a.request).ok());
    drain();
    return a;
  }
  void drain() {
    while (host->work() > 0) {
    }
  }
};

std::vector<TokenId> count(std::size_t n, TokenId from = 0) {
  std::vector<TokenId> tokens(n);
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

}  // namespace

TEST_CASE("a turn computes its new tokens only, decoded ones of the last turn included") {
  // Whatever the length is modulo a block, with and without residents.
  for (const std::uint32_t residents : {0u, 4096u}) {
    for (std::size_t length = 16; length < 16 + 2 * kBlock; ++length) {
      Fixture f({.resident_tokens = residents});
      auto tokens = count(length);
      const auto answer = count(5, 500);
      (void)f.turn(tokens, answer);
      tokens.insert(tokens.end(), answer.begin(), answer.end());
      const std::size_t known = tokens.size();
      for (const TokenId t : {901, 902, 903}) tokens.push_back(t);
      const Admission second = f.turn(tokens, answer);
      CHECK(second.reused_tokens == known);
      tokens.insert(tokens.end(), answer.begin(), answer.end());
      const std::size_t known_now = tokens.size();
      tokens.push_back(904);
      const Admission third = f.turn(tokens);
      CHECK(third.reused_tokens == known_now);
      if (residents > 0) CHECK(third.from_resident == known_now);
      CHECK(f.engine.mistakes == 0);
    }
  }
}

TEST_CASE(
    "a prompt that is all known leaves its last block to compute, or one token if a resident holds it") {
  Fixture f;
  const auto tokens = count(32);
  (void)f.turn(tokens);
  CHECK(f.turn(tokens).reused_tokens == 24);
  CHECK(f.turn(tokens).reused_tokens == 31);
}

TEST_CASE("a sequence becomes a resident on its second use, within the budget") {
  Fixture f({.resident_tokens = 64});
  const auto tokens = count(40);
  (void)f.turn(tokens);
  CHECK(f.host->resident_tokens() == 0);
  (void)f.turn(count(41));
  CHECK(f.host->resident_tokens() == 41);
  (void)f.turn(count(60));
  CHECK(f.host->resident_tokens() == 60);  // the shorter one is a part of it
  (void)f.turn(count(50, 100));
  (void)f.turn(count(51, 100));
  CHECK(f.host->resident_tokens() == 51);  // both do not fit
  (void)f.turn(count(70));
  CHECK(f.host->resident_tokens() == 51);  // more than the budget: not admitted
  CHECK(f.host->drop_resident());
  CHECK(f.host->resident_tokens() == 0);
  CHECK_FALSE(f.host->drop_resident());
}

TEST_CASE("a block that was damaged in host memory is a miss from there on, and is computed anew") {
  Fixture f({.resident_tokens = 0, .frontiers = 0});
  const auto tokens = count(41);
  (void)f.turn(tokens);
  // Blocks 0 to 4 lie in five slots; the third was overwritten by somebody.
  const Admission whole = f.begin(tokens);
  CHECK(whole.reused_tokens == 40);
  REQUIRE(f.host->abort(whole.request).ok());
  int damaged = -1;
  for (SlotId slot = 0; slot < 64 && damaged < 0; ++slot) {
    // Staging forgets what was sealed: as good as damage.
    const auto before = f.host->stats().failed_imports;
    (void)f.host->tier().stage(slot);
    const Admission a = f.begin(tokens);
    if (f.host->stats().failed_imports > before) {
      damaged = static_cast<int>(a.reused_tokens);
      CHECK(a.reused_tokens % kBlock == 0);
      CHECK(a.reused_tokens < 40);
      f.prefill(a, tokens);
      REQUIRE(f.host->end(a.request).ok());
      f.drain();
    } else {
      REQUIRE(f.host->abort(a.request).ok());
    }
  }
  REQUIRE(damaged >= 0);
  CHECK(f.host->cache().audit().balanced());
  CHECK(f.begin(tokens).reused_tokens == 40);
}

TEST_CASE("every committed block is out after a bounded number of steps, also while others go on") {
  Fixture f({.resident_tokens = 0, .frontiers = 0, .step_bytes = 2 * kBlockBytes});
  auto a = f.begin(count(200));
  f.prefill(a, count(200));
  auto b = f.begin(count(100, 300));
  f.prefill(b, count(100, 300));
  // 25 and 12 blocks, two a step.
  CHECK(f.host->unstored_blocks() == 37);
  int steps = 0;
  while (f.host->unstored_blocks() > 0 && steps < 19) {
    CHECK(f.host->work() <= 2 * kBlockBytes);
    ++steps;
  }
  CHECK(steps == 19);
  CHECK(f.host->unstored_blocks() == 0);
  CHECK(f.host->stats().largest_step_bytes == 2 * kBlockBytes);
}

TEST_CASE("a request that ends before its blocks are out loses none") {
  Fixture f({.resident_tokens = 0, .frontiers = 0, .step_bytes = kBlockBytes});
  const auto tokens = count(81);
  const Admission a = f.begin(tokens);
  f.prefill(a, tokens);
  REQUIRE(f.host->end(a.request).ok());
  CHECK(f.host->unstored_blocks() == 10);
  f.drain();
  CHECK(f.begin(tokens).reused_tokens == 80);
}

TEST_CASE("tenants and media share nothing") {
  Fixture f;
  const auto other = f.host->open_scope({.model = "m", .salt = "another tenant", .vocab_size = 1000});
  REQUIRE(other.ok());
  const auto tokens = count(64);
  (void)f.turn(tokens);
  (void)f.turn(count(65));
  const auto foreign = f.host->begin({.prompt = {.scope = *other, .tokens = tokens}});
  REQUIRE(foreign.ok());
  CHECK(foreign->reused_tokens == 0);
  REQUIRE(f.host->abort(foreign->request).ok());

  const Extra picture{.position = 20, .digest = {std::byte{1}}};
  const auto seen = f.host->begin({.prompt = {.scope = f.scope, .tokens = tokens, .extras = {&picture, 1}}});
  REQUIRE(seen.ok());
  CHECK(seen->reused_tokens == 20);  // a resident is shared up to the picture
}

TEST_CASE("on the grid, reuse ends at its multiples and takes only what was computed on it") {
  Fixture f({.resident_tokens = 0});
  const auto tokens = count(50);
  const Admission a = f.begin(tokens);
  for (std::size_t i = 0; i < 50; ++i) f.engine.compute(a.sequence, tokens[i]);
  REQUIRE(f.host->computed(a.request, 32, true).ok());
  REQUIRE(f.host->computed(a.request, 18, false).ok());
  REQUIRE(f.host->end(a.request).ok());
  f.drain();
  const Admission on_grid = f.begin(tokens, 16);
  CHECK(on_grid.reused_tokens == 32);
  REQUIRE(f.host->abort(on_grid.request).ok());
  CHECK(f.begin(tokens).reused_tokens == 49);
}

TEST_CASE("bad calls are refused and change nothing") {
  Fixture f;
  const auto tokens = count(20);
  const Admission a = f.begin(tokens);
  CHECK(f.host->computed(a.request, 21, false).code() == StatusCode::kOutOfRange);
  const TokenId token = 1;
  CHECK(f.host->append(a.request, {&token, 1}).code() == StatusCode::kWrongState);
  f.prefill(a, tokens);
  const TokenId outside = 1000;
  CHECK(f.host->append(a.request, {&outside, 1}).code() == StatusCode::kOutOfRange);
  const auto too_long = count(257);
  CHECK(f.host->begin({.prompt = {.scope = f.scope, .tokens = too_long}}).status().code() ==
        StatusCode::kOutOfRange);
  const auto many = count(237);
  CHECK(f.host->append(a.request, many).code() == StatusCode::kOutOfRange);
  const auto second = f.begin(count(20, 300));
  CHECK(f.host->begin({.prompt = {.scope = f.scope, .tokens = tokens}}).status().code() ==
        StatusCode::kExhausted);
  REQUIRE(f.host->end(a.request).ok());
  CHECK(f.host->end(a.request).code() == StatusCode::kStale);
  CHECK(f.host->abort(a.request).code() == StatusCode::kStale);
  CHECK(f.host->computed(a.request, 1, false).code() == StatusCode::kStale);
  REQUIRE(f.host->abort(second.request).ok());
  CHECK(f.host->begin({.prompt = {.scope = ScopeId{9}, .tokens = tokens}}).status().code() ==
        StatusCode::kInvalidArgument);
  const auto empty = f.host->begin({.prompt = {.scope = f.scope}});
  REQUIRE(empty.ok());
  CHECK(empty->reused_tokens == 0);
  CHECK(f.host->cache().audit().balanced());
  CHECK(f.engine.mistakes == 0);
}

TEST_CASE("options that cannot work are refused with their name") {
  DigestEngine engine({.cells = 64, .sequences = 2, .sequence_tokens = 64});
  const auto code = [&](OpaqueHostOptions options) {
    return OpaqueHost<DigestEngine>::create(engine, options).status().code();
  };
  CHECK(code({.block_tokens = 0}) == StatusCode::kInvalidArgument);
  CHECK(code({.block_tokens = 8, .host_bytes = 63}) == StatusCode::kInvalidArgument);
  CHECK(code({.block_tokens = 8, .requests = 0}) == StatusCode::kInvalidArgument);
  CHECK(code({.block_tokens = 8, .requests = 3}) == StatusCode::kInvalidArgument);
  CHECK(code({.block_tokens = 8, .requests = 1, .step_bytes = 63}) == StatusCode::kInvalidArgument);
}

TEST_CASE(
    "an engine whose sequences are all residents goes on: another makes way, or the donor is taken over") {
  for (const std::uint32_t sequences : {1u, 2u}) {
    DigestEngine engine({.cells = 512, .sequences = sequences, .sequence_tokens = 128});
    auto made = OpaqueHost<DigestEngine>::create(
        engine,
        {.block_tokens = kBlock, .host_bytes = 64 * kBlockBytes, .requests = 1, .resident_tokens = 512});
    REQUIRE(made.ok());
    auto& host = **made;
    const auto scope = host.open_scope({.model = "m", .vocab_size = 1000});
    REQUIRE(scope.ok());
    const auto serve = [&](const std::vector<TokenId>& tokens) {
      const auto a = host.begin({.prompt = {.scope = *scope, .tokens = tokens}});
      INFO(a.status().message());
      REQUIRE(a.ok());
      REQUIRE(engine.holds(a->sequence, std::span(tokens).first(a->reused_tokens)));
      for (std::size_t i = a->reused_tokens; i < tokens.size(); ++i) engine.compute(a->sequence, tokens[i]);
      REQUIRE(host.computed(a->request, static_cast<std::uint32_t>(tokens.size()) - a->reused_tokens, false)
                  .ok());
      REQUIRE(host.end(a->request).ok());
      while (host.work() > 0) {
      }
      return a->reused_tokens;
    };
    for (std::uint32_t s = 0; s < sequences; ++s) {
      const auto own = count(30, static_cast<TokenId>(100 * s));
      CHECK(serve(own) == 0);
      CHECK(serve(own) == 29);  // its second use makes it a resident
    }
    CHECK(host.resident_tokens() == 30 * sequences);
    CHECK(serve(count(40, 500)) == 0);  // shares with nobody
    CHECK(serve(count(41, 500)) == 40);
    CHECK(serve(count(36, 500)) == 35);  // goes on in the middle of a resident
    CHECK(serve(count(60, 500)) == 41);  // what was longer is in host memory and a frontier still
    CHECK(host.cache().audit().balanced());
    CHECK(engine.mistakes == 0);
  }
}

TEST_CASE("a frontier that was imported and would not be cut is given up, and the request starts over") {
  Fixture f({.resident_tokens = 0});
  const auto said = count(21);
  f.turn(said);
  auto other = said;
  other[18] = 999;  // parts inside the frontier
  int drops = 0;
  f.engine.fail = [&](DigestEngine::Call call) { return call == DigestEngine::Call::kDrop && ++drops <= 2; };
  const Admission a = f.begin(other);
  CHECK(drops >= 2);
  CHECK(a.reused_tokens == 16);
  CHECK(f.engine.length(a.sequence) == 16);
  f.prefill(a, other);
  CHECK(f.host->stats().failed_imports == 1);
  CHECK(f.engine.mistakes == 0);
}

TEST_CASE("another policy, which hears hints, keeps every promise of the host") {
  DigestEngine engine{{.cells = 4096, .sequences = 6, .sequence_tokens = 256}};
  using Host = OpaqueHost<DigestEngine, Hinted<Adaptive>>;
  auto made = Host::create(engine, {.block_tokens = kBlock, .host_bytes = 24 * kBlockBytes, .requests = 2});
  REQUIRE(made.ok());
  Host& host = **made;
  const ScopeId scope = *host.open_scope({.model = "m", .vocab_size = 1000});
  std::uint64_t reused = 0;
  for (std::uint32_t turn = 0; turn < 300; ++turn) {
    const std::uint32_t session = 1 + turn * 7 % 5;
    std::vector<TokenId> tokens(20 + 2 * (turn % 30));
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<TokenId>((i < 16 ? 0 : 100 * session) + i % 100);
    const auto a =
        host.begin({.prompt = {.scope = scope, .tokens = tokens}, .session = session, .now_ms = turn});
    REQUIRE(a.ok());
    REQUIRE(engine.holds(a->sequence, std::span(tokens).first(a->reused_tokens)));
    for (std::size_t i = a->reused_tokens; i < tokens.size(); ++i) engine.compute(a->sequence, tokens[i]);
    REQUIRE(
        host.computed(a->request, static_cast<std::uint32_t>(tokens.size()) - a->reused_tokens, false).ok());
    const Keep keep = turn % 7 == 0 ? Keep::kCold : turn % 7 == 1 ? Keep::kHigh : Keep::kNormal;
    REQUIRE(host.end(a->request, {.keep = keep, .until_ms = turn + 20, .expect_reuse_at_ms = turn + 5}).ok());
    while (host.work() > 0) {
    }
    reused += a->reused_tokens;
    REQUIRE(host.cache().audit().balanced());
  }
  CHECK(reused > 300 * 16);
  CHECK(host.cache().stats().evicted_blocks > 0);
}
