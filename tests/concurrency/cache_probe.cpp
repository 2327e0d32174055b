// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Threads that probe a cache beside the engine's thread, which serves, evicts, fails and opens scopes. Meant for
// ThreadSanitizer, and checked on its own: what a probe reports covers the prompt without gaps, reaches no further than
// what anybody ever computed, and, of a prefix that a lease holds, no less than that.
#include <atomic>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kvstem/kvstem.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {

constexpr std::uint32_t kBlock = 4, kHeld = 40;
constexpr TokenId kNobodys = 999;

std::vector<TokenId> prompt(std::uint32_t family, std::uint32_t length) {
  std::vector<TokenId> tokens;
  for (std::uint32_t i = 0; i < length; ++i) tokens.push_back(static_cast<TokenId>(family * 50 + i % 50));
  return tokens;
}

}  // namespace

TEST_CASE("probes beside the engine's thread see what is there, and nothing that never was") {
  auto made = Cache::create({.block_tokens = kBlock, .slots = 64, .max_lease_tokens = 128, .max_readers = 4});
  REQUIRE(made.ok());
  Cache& cache = **made;
  const auto scope = cache.open_scope({.model = "m", .vocab_size = 1000});
  REQUIRE(scope.ok());
  const auto held_tokens = prompt(0, kHeld + 1);
  auto held = cache.acquire({.scope = *scope, .tokens = held_tokens});
  REQUIRE(held.ok());
  REQUIRE(held->reserve(kHeld).ok());
  REQUIRE(held->commit(kHeld).ok());

  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> probes{0}, wrong{0}, found{0}, missed{0};
  const auto look = [&](std::uint32_t seed) {
    auto reader = cache.register_reader();
    std::minstd_rand random(seed);
    while (!stop.load(std::memory_order_relaxed)) {
      const std::uint32_t family = random() % 8, known = kHeld + 4 * (random() % 16);
      auto tokens = prompt(family, known);
      tokens.insert(tokens.end(), 2 * kBlock, kNobodys);
      ProbeRange room[3];
      const auto ranges = cache.probe(*reader, {.scope = *scope, .tokens = tokens}, room);
      std::uint32_t at = 0;
      if (!ranges.ok()) {
        wrong.fetch_add(1);
        continue;
      }
      for (const ProbeRange& range : *ranges) {
        if (range.tokens.begin != at) wrong.fetch_add(1);
        if (range.presence != Presence::kUnknown && range.tokens.end > known) wrong.fetch_add(1);
        at = range.tokens.end;
      }
      if (at != tokens.size()) wrong.fetch_add(1);
      if (family == 0 && ready_tokens(*ranges) < kHeld) missed.fetch_add(1);
      found.fetch_add(ready_tokens(*ranges) > 0);
      probes.fetch_add(1);
    }
  };
  std::thread readers[] = {std::thread(look, 1u), std::thread(look, 2u)};

  std::minstd_rand random(3);
  std::uint64_t step = 0;
  bool all_ok = true;
  for (std::uint32_t round = 0; round < 4000 || probes < 2000; ++round) {
    const auto tokens = prompt(random() % 8, kHeld + 4 * (random() % 16) + random() % kBlock);
    auto lease = cache.acquire({.scope = *scope, .tokens = tokens});
    all_ok = all_ok && lease.ok();
    const auto n = static_cast<std::uint32_t>(tokens.size()) - lease->matched_tokens();
    if (lease->reserve(n).ok()) {
      all_ok = all_ok && lease->commit(n, {0, step + 1}).ok();
      all_ok = all_ok && (random() % 5 == 0 ? lease->abort() : lease->release()).ok();
    }
    if (round % 500 == 0)
      all_ok = all_ok &&
               cache.open_scope({.model = "m", .salt = std::to_string(round % 4000), .vocab_size = 9}).ok();
    all_ok = all_ok && cache.end_step({1, ++step}).ok() && cache.reach({0, step}).ok();
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  const auto number = [](std::uint64_t n) { return static_cast<unsigned long long>(n); };
  std::printf(
      "%llu steps, %llu blocks evicted; %llu probes, %llu found something, %llu missed what was being "
      "rearranged\n",
      number(step), number(cache.stats().evicted_blocks), number(probes), number(found), number(missed));
  CHECK(all_ok);
  CHECK(wrong == 0);
  CHECK(missed * 5 <
        probes);  // a hint: a writer that is interrupted in the middle of a split hides what lies behind
  CHECK(found > 0);
  CHECK(cache.stats().evicted_blocks > 1000);
  REQUIRE(held->release().ok());
  CHECK(cache.audit().balanced());
}
