// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <numeric>
#include <vector>

#include "kvstem/host/opaque_host.hpp"
#include "kvstem/testing/digest_engine.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {

constexpr std::uint32_t kBlock = 8;

/// 16 tokens that all have in common, then 4 of its own.
std::vector<TokenId> prompt(TokenId own) {
  std::vector<TokenId> tokens(20, own);
  std::iota(tokens.begin(), tokens.begin() + 16, 1);
  return tokens;
}

/// Whole turns of one request, one after another; returns the tokens shared from a resident.
std::uint32_t turn(DigestEngine& engine, OpaqueHost<DigestEngine>& host, ScopeId scope,
                   const std::vector<TokenId>& tokens) {
  const auto a = host.begin({.prompt = {.scope = scope, .tokens = tokens}});
  REQUIRE(a.ok());
  for (std::size_t i = a->reused_tokens; i < tokens.size(); ++i) engine.compute(a->sequence, tokens[i]);
  REQUIRE(engine.holds(a->sequence, tokens));
  REQUIRE(
      host.computed(a->request, static_cast<std::uint32_t>(tokens.size()) - a->reused_tokens, false).ok());
  REQUIRE(host.end(a->request).ok());
  while (host.work() > 0) {
  }
  return a->from_resident;
}

}  // namespace

TEST_CASE("what all share keeps no idle resident alive: the one used last is shared") {
  for (const int last : {0, 1}) {
    DigestEngine engine({.cells = 1024, .sequences = 8, .sequence_tokens = 64});
    auto host = *OpaqueHost<DigestEngine>::create(engine, {.block_tokens = kBlock,
                                                           .host_bytes = 64 * kBlock * 8,
                                                           .requests = 1,
                                                           .resident_tokens = 50});  // two of them
    const ScopeId scope = *host->open_scope({.model = "m", .vocab_size = 1000});
    const std::vector<TokenId> agents[] = {prompt(100), prompt(200)};
    for (int twice = 0; twice < 2; ++twice)
      for (const auto& agent : agents) (void)turn(engine, *host, scope, agent);
    REQUIRE(host->resident_tokens() == 40);
    REQUIRE(turn(engine, *host, scope, agents[last]) == 19);

    // A third takes the place of whoever was idle.
    CHECK(turn(engine, *host, scope, prompt(300)) == 16);
    CHECK(host->resident_tokens() == 40);
    CHECK(turn(engine, *host, scope, agents[last]) == 19);
    CHECK(engine.mistakes == 0);
  }
}
