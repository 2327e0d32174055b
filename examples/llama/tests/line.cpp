// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Who goes next, by itself and in the engine.
#include "line.hpp"

#include <map>
#include <optional>

#include "support.hpp"

using namespace kvstem_llama;
using namespace kvstem_llama::test;

namespace {

constexpr std::uint32_t kChunk = 128;  // the batch of the tiny model

using Numbers = std::vector<std::uint64_t>;

/// Lets all go that wait, by their scores, and says in which order.
Numbers order(Line<int>& line) {
  Numbers numbers;
  while (!line.empty())
    numbers.push_back(
        line.take(line.choose([](int score) { return static_cast<std::uint64_t>(score); })).number);
  return numbers;
}

}  // namespace

TEST_CASE("who has most there goes first, of equals who came first, and nobody is overtaken for ever") {
  Line<int> line;
  CHECK(line.choose([](int) { return 1u; }) == line.end());
  for (const std::uint64_t n : {3, 1, 2}) line.add(n, 7);
  CHECK(order(line) == Numbers{1, 2, 3});
  line.add(1, 0), line.add(2, 5), line.add(3, 9), line.add(4, 5);
  CHECK(order(line) == Numbers{3, 2, 4, 1});

  line.add(1, 0);
  for (std::uint64_t n = 2; n < 20; ++n) line.add(n, 5);
  const Numbers numbers = order(line);
  CHECK(std::find(numbers.begin(), numbers.end(), 1) - numbers.begin() == kMostOvertaken);
}

TEST_CASE("further parts of a request keep its place and overtake nobody") {
  Line<int> line;
  line.add(5, 9);
  line.add(4, 0);
  auto first = line.take(line.choose([](int s) { return static_cast<std::uint64_t>(s); }));
  CHECK(first.number == 5);
  CHECK(line.begin()->overtaken == 1);
  line.add(5, 9, first.overtaken);
  line.add(6, 9);
  first = line.take(line.choose([](int s) { return static_cast<std::uint64_t>(s); }), false);
  CHECK(first.number == 5);
  CHECK(line.begin()->overtaken == 1);
  CHECK(line.remove(line.begin()).number == 4);
  CHECK(line.size() == 1);
}

TEST_CASE("in any line, over any time, nobody is overtaken by more than the bound") {
  std::mt19937_64 rng(seed("line"));
  Line<int> line;
  std::uint64_t last = 0;
  std::map<std::uint32_t, int> histogram;
  std::map<std::uint64_t, std::uint32_t> passed;  // by number, of those that wait: counted from outside
  for (int op = 0; op < 100'000; ++op) {
    if (rng() % 2 == 0 && line.size() < 200) {
      line.add(++last, static_cast<int>(rng() % 4 * 100));
      passed[last] = 0;
    } else if (!line.empty()) {
      const auto it = line.choose([](int score) { return static_cast<std::uint64_t>(score); });
      REQUIRE(it != line.end());
      const std::uint64_t number = it->number;
      for (auto& [other, n] : passed) n += other < number;
      const auto entry = line.take(it);
      REQUIRE(entry.overtaken == passed[number]);
      REQUIRE(entry.overtaken <= kMostOvertaken);
      ++histogram[entry.overtaken];
      passed.erase(number);
    }
  }
  std::cout << "overtaken:";
  for (const auto& [n, times] : histogram) std::cout << " " << n << " x " << times;
  std::cout << "\n";
  CHECK(histogram[0] > 1000);
  CHECK(histogram[kMostOvertaken] > 1000);
}

TEST_CASE("two requests that wait for the same prefix compute it once, whatever waits between them") {
  for (const std::uint32_t slots : {1u, 2u, 4u}) {
    House house(slots, {.block_tokens = kHouseBlock});
    std::mt19937_64 rng(seed("same prefix"));
    const auto prefix = house.random(rng, 500);
    std::uint32_t computed = 0;
    std::vector<RequestNumber> pair;
    std::vector<RequestNumber> started;
    for (int i = 0; i < 4; ++i) {
      auto tokens = i % 2 == 0 ? prefix : house.random(rng, 100);
      const auto own = house.random(rng, 20);
      tokens.insert(tokens.end(), own.begin(), own.end());
      const auto id = house.engine->submit(
          {.tokens = tokens, .max_new_tokens = 3, .scope = house.scope, .stop_at_end = false});
      REQUIRE(id.ok());
      if (i % 2 == 0) pair.push_back(*id);
    }
    while (house.engine->busy())
      for (const Event& e : house.engine->step()) {
        if (e.kind == Event::Kind::kFirstToken) started.push_back(e.request);
        if (e.kind != Event::Kind::kFinished) continue;
        REQUIRE(e.finish == Finish::kLength);
        if (e.request == pair[0] || e.request == pair[1]) computed += e.report.computed_tokens;
        CHECK(e.report.overtaken == (e.request == 2 ? 1 : 0));
        // It never stood still while it ran.
        CHECK(e.report.ran_steps ==
              (e.report.computed_tokens + kChunk - 1) / kChunk + e.report.new_tokens - 1);
      }
    // Shared to the token from one that runs; by whole blocks from one that ended.
    CHECK(computed <= 500 + 20 + 20 + (slots == 1 ? kHouseBlock - 1 : 0));
    CHECK(started == std::vector<RequestNumber>{1, 3, 2, 4});  // while it is warm
  }
}

TEST_CASE("what a waiting request will need is not evicted before its turn") {
  // 20 blocks of host memory, and no residents: the strangers in between would push everything out.
  const std::size_t block_bytes = open_tiny()->range_bytes(0, {0, kHouseBlock});
  House house(
      1, {.block_tokens = kHouseBlock, .host_bytes = 20 * block_bytes, .resident_tokens = 0, .frontiers = 0});
  std::mt19937_64 rng(seed("protected"));
  const auto known = house.random(rng, 10 * kHouseBlock + 1);
  const auto run = [&](std::vector<std::vector<TokenId>> prompts) {
    std::vector<std::uint32_t> reused(prompts.size());
    const RequestNumber first = [&] {
      RequestNumber n = 0;
      for (auto& p : prompts) {
        const auto id = house.engine->submit({.tokens = p, .max_new_tokens = 1, .scope = house.scope});
        REQUIRE(id.ok());
        if (n == 0) n = *id;
      }
      return n;
    }();
    while (house.engine->busy())
      for (const Event& e : house.engine->step())
        if (e.kind == Event::Kind::kFinished) reused[e.request - first] = e.report.reused_tokens;
    return reused;
  };
  (void)run({known});
  // One that runs already and leaves 20 blocks of its own behind; then the line: nine more strangers, and the old friend.
  const auto busy = house.random(rng, 20 * kHouseBlock + 1);
  const auto long_one = house.engine->submit({.tokens = busy, .max_new_tokens = 1, .scope = house.scope});
  REQUIRE(long_one.ok());
  (void)house.engine->step();
  const auto friend_again =
      house.engine->submit({.tokens = known, .max_new_tokens = 1, .scope = house.scope});
  REQUIRE(friend_again.ok());
  std::optional<std::uint32_t> reused;
  while (house.engine->busy())
    for (const Event& e : house.engine->step())
      if (e.kind == Event::Kind::kFinished && e.request == *friend_again) reused = e.report.reused_tokens;
  CHECK(reused == 10 * kHouseBlock);
  // Without a wait it would have been gone: the same again, but the friend comes when the stranger is through.
  (void)run({house.random(rng, 20 * kHouseBlock + 1)});
  CHECK(run({known}) == std::vector<std::uint32_t>{0});
}
