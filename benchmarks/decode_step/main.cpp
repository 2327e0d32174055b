// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What does a step cost in which 256 sequences decode a token each, on the engine's thread, if the engine has touched
// 64 MiB since the last one? All of a step's calls: `decode`, `end_step` and `reach`.
//
//   kvstem_bench_decode_step [--json FILE]     half a minute
//
// Steps with nothing to publish (no block becomes full), cold and warm; and those in which all publish a block. Both
// kinds come in turn, in one run.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../support/report.hpp"
#include "kvstem/kvstem.hpp"

namespace {

using namespace kvstem;

constexpr std::uint32_t kRunning = 256, kBlock = 16, kPrompt = 1024, kSteps = 960;
constexpr std::size_t kTouched = std::size_t{64} << 20;

[[noreturn]] void fail(const char* why) {
  std::fprintf(stderr, "%s\n", why);
  std::exit(1);
}

bench::Spread spread(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return {v[v.size() / 2], v[v.size() / 4], v[v.size() * 3 / 4]};
}

struct Times {
  std::vector<double> nothing, publish;  // microseconds
};

/// Steps of all sequences; before each, `touch()`.
template <class Touch>
Times run(Touch&& touch) {
  const std::uint32_t tokens = kPrompt + kSteps + kBlock;
  auto made = Cache::create({.block_tokens = kBlock,
                             .slots = kRunning * (tokens / kBlock + 1),
                             .max_leases = kRunning,
                             .max_lease_tokens = tokens + kBlock});
  if (!made.ok()) fail(made.status().message());
  Cache& cache = **made;
  const auto scope = cache.open_scope({.model = "m", .vocab_size = 100'000});
  if (!scope.ok()) fail(scope.status().message());
  std::vector<Lease> leases;
  std::vector<DecodeItem<Lease>> items;
  for (std::uint32_t s = 0; s < kRunning; ++s) {
    std::vector<TokenId> prompt(kPrompt);
    for (std::uint32_t i = 0; i < kPrompt; ++i)
      prompt[i] = static_cast<TokenId>((s * 7919 + i * 31) % 100'000);
    auto lease = cache.acquire({.scope = *scope, .tokens = prompt});
    if (!lease.ok() || !lease->reserve(kPrompt).ok() || !lease->commit(kPrompt).ok()) fail("no prompt");
    leases.push_back(std::move(*lease));
  }
  for (Lease& lease : leases) items.push_back({.lease = &lease});
  Times times;
  std::uint64_t at = 0;
  for (std::uint32_t step = 0; step < kSteps; ++step) {
    for (std::uint32_t s = 0; s < kRunning; ++s)
      items[s].token = static_cast<TokenId>((step * 13 + s) % 100'000);
    touch();
    const std::uint64_t published = cache.stats().inserted_blocks;
    const auto begin = std::chrono::steady_clock::now();
    const Point point{0, ++at};
    const std::uint32_t took_part = cache.decode(items, point);
    const bool ok = cache.end_step(point).ok() && cache.reach({0, at - 1}).ok();
    const double us =
        std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
    if (took_part != kRunning || !ok) fail("a step did not do what it should");
    const bool publishes = cache.stats().inserted_blocks > published;
    const std::uint32_t in_block = (kPrompt + step + 1) % kBlock;
    // A step that begins or completes a block takes slots or adds to the tree as well.
    if (publishes)
      times.publish.push_back(us);
    else if (in_block > 1)
      times.nothing.push_back(us);
  }
  if (!cache.audit().balanced()) fail("the books are not in balance");
  return times;
}

}  // namespace

int main(int argc, char** argv) {
  const char* json = nullptr;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--json") != 0 || ++i == argc)
      fail("usage: kvstem_bench_decode_step [--json FILE]");
    json = argv[i];
  }
  std::vector<char> memory(kTouched);
  unsigned char seen = 0;
  const auto touch_all = [&] {
    for (std::size_t i = 0; i < memory.size(); i += 64) seen = static_cast<unsigned char>(seen + ++memory[i]);
  };
  const Times cold = run(touch_all), warm = run([] {});
  std::printf("(%d)\n", seen);  // so that nobody leaves the touching out
  bench::Report report;
  report.at_most("decode step of 256, 64 MiB touched, nothing to publish", spread(cold.nothing), "us", 20,
                 true);
  report.figure("decode step of 256, 64 MiB touched, all publish", spread(cold.publish), "us");
  report.figure("decode step of 256, warm, nothing to publish", spread(warm.nothing), "us");
  report.print();
  return json != nullptr && !report.write(json) ? 1 : 0;
}
