// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Two requests that begin alike. The second computes only what is new. No model: the "engine" below has a pool of KV
// slots, and its attention state of a block is just a note of what was computed there.
#include <kvstem/kvstem.hpp>

#include <array>
#include <cstdio>
#include <string>
#include <vector>

using namespace kvstem;

namespace {

constexpr std::uint32_t kBlock = 4;
std::array<std::string, 16> pool;  // the engine's own KV memory, one entry for each slot

void serve(Cache& cache, ScopeId scope, const std::string& text) {
  const std::vector<TokenId> tokens(text.begin(), text.end());  // one token for each letter

  auto lease = cache.acquire({.scope = scope, .tokens = tokens});  // matches and pins, in one step
  if (!lease.ok()) return (void)std::printf("refused: %s\n", lease.status().message());

  const std::uint32_t start = lease->matched_tokens();
  const auto rest = static_cast<std::uint32_t>(tokens.size()) - start;
  if (const Status s = lease->reserve(rest); !s.ok())
    return (void)std::printf("must wait: %s\n", s.message());

  const auto table = lease->table(0);  // the block table: which slot holds which block
  for (std::uint32_t at = start; at < tokens.size(); at += kBlock)  // "prefill"
    pool[static_cast<std::size_t>(table[at / kBlock])] = text.substr(at, kBlock);

  std::printf("%2u tokens repeated, %2u new; the pool reads \"", start, rest);
  for (const std::int32_t slot : table) std::printf("%s", pool[static_cast<std::size_t>(slot)].c_str());
  std::printf("\"\n");

  (void)lease->commit(rest);  // computed: others may find it from now on
  (void)lease->release();     // the request is over; what it computed stays
}

}  // namespace

int main() {
  auto cache = Cache::create({.block_tokens = kBlock, .slots = static_cast<std::uint32_t>(pool.size())});
  if (!cache.ok()) return std::printf("%s\n", cache.status().message()), 1;
  const auto scope = (*cache)->open_scope({.model = "demo", .vocab_size = 256});
  if (!scope.ok()) return std::printf("%s\n", scope.status().message()), 1;

  serve(**cache, *scope, "You are a helpful assistant. Hi!");
  serve(**cache, *scope, "You are a helpful assistant. What is a goose?");
  (void)(*cache)->end_step(kNow);  // no step runs any more: what was released may make room
  serve(**cache, *scope, "You are a pirate.");
}
