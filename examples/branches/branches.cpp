// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// One prompt, three answers. The prompt is computed once; the samples share its blocks and part where they write. One
// guesses ahead and verifies its guesses, one throws the end of its answer away and writes another.
// No model: the state of a position is a number made of its token and of all states before it, read through the block
// table. So one wrong slot changes every token behind it; the answers are compared with those without a cache.
#include <kvstem/kvstem.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

using namespace kvstem;

namespace {

using State = std::uint64_t;
using Text = std::vector<TokenId>;

constexpr std::uint32_t kBlock = 4, kSlots = 32, kQueue = 0;

State attend(TokenId token, std::size_t position, auto&& states) {
  auto sum = static_cast<State>(token);
  for (std::size_t i = 0; i < position; ++i) sum = (sum ^ states(i)) * 0x9e3779b97f4a7c15u;
  return sum;
}
TokenId choose(State state, unsigned seed) { return 'a' + static_cast<TokenId>(((state >> 32) + seed) % 26); }
/// The text and n tokens more, by an engine without a cache.
Text alone(Text text, unsigned seed, std::size_t n) {
  std::vector<State> states;
  for (const std::size_t end = text.size() + n; text.size() < end;) {
    const std::size_t at = states.size();
    states.push_back(attend(text[at], at, [&](std::size_t i) { return states[i]; }));
    if (at + 1 == text.size()) text.push_back(choose(states[at], seed));
  }
  return text;
}
void check(const Status& status) {
  if (status.ok()) return;
  std::printf("%s\n", status.message());
  std::quick_exit(1);
}

struct Sample {
  Lease lease;
  unsigned seed;
  Text text;          // the last token of the answer was chosen, and is computed in the next step
  Text guesses = {};  // of what comes behind it
};

class Engine {
 public:
  explicit Engine(Cache& cache) : cache_(cache) {}

  /// One step for all of them: what each has still to compute (at first its prompt), and its guesses.
  void step(std::span<Sample> samples) {
    const Point done{kQueue, ++steps_};
    for (Sample& s : samples) {  // an earlier step may have left slots: of guesses that were wrong
      const auto end = static_cast<std::uint32_t>(s.text.size() + s.guesses.size());
      if (end > s.lease.reserved_tokens()) check(s.lease.reserve(end - s.lease.reserved_tokens()));
    }
    // A block that two of them share and one is about to write into is copied: before the step, in this order.
    StepEntry room[8];
    for (auto entries = cache_.take_step(room); !entries.empty(); entries = cache_.take_step(room))
      for (const StepEntry& e : entries) {
        std::copy_n(&at(e.from_slot, e.from_offset), e.tokens, &at(e.slot, e.offset));
        check(cache_.complete({e, {}}));
      }
    for (Sample& s : samples) {
      Text all = s.text;
      all.insert(all.end(), s.guesses.begin(), s.guesses.end());
      for (std::size_t i = s.lease.committed_tokens(); i < all.size(); ++i)
        state(s, i) = attend(all[i], i, [&](std::size_t before) { return state(s, before); });
      while (s.text.size() < all.size() && all[s.text.size()] == next(s))
        s.text.push_back(next(s));  // verified
      check(s.lease.append(std::span(s.text).subspan(s.lease.known_tokens())));
      check(s.lease.commit(s.lease.known_tokens() - s.lease.committed_tokens(), done));
      s.text.push_back(next(s));
      s.guesses.clear();
    }
    check(cache_.end_step(done));
    check(cache_.reach(done));  // (a device is done later)
  }
  /// What is chosen behind the text, whose states are computed.
  TokenId next(const Sample& s) { return choose(state(s, s.text.size() - 1), s.seed); }

 private:
  State& at(SlotId slot, std::size_t offset) { return pool_[std::size_t{slot} * kBlock + offset]; }
  State& state(const Sample& s, std::size_t i) {
    return at(static_cast<SlotId>(s.lease.table(0)[i / kBlock]), i % kBlock);
  }

  Cache& cache_;
  std::vector<State> pool_ = std::vector<State>(std::size_t{kSlots} * kBlock);
  std::uint64_t steps_ = 0;
};

}  // namespace

int main() {
  const auto made = Cache::create({.block_tokens = kBlock, .slots = kSlots});
  check(made.status());
  Cache& cache = **made;
  const auto scope = cache.open_scope({.model = "demo", .vocab_size = 256});
  check(scope.status());
  const std::string question = "Write a short poem on a goose.";
  const Text prompt(question.begin(), question.end());

  Engine engine(cache);
  std::vector<Sample> samples;
  auto lease = cache.acquire({.scope = *scope, .tokens = prompt});
  check(lease.status());
  samples.push_back({std::move(*lease), 1, prompt});
  engine.step(samples);  // prefill
  for (const unsigned seed : {2u, 3u}) {
    auto fork = samples[0].lease.fork();  // takes no slot
    check(fork.status());
    samples.push_back({std::move(*fork), seed, prompt});
    samples.back().text.push_back(engine.next(samples.back()));
  }
  for (int i = 0; i < 6; ++i) engine.step(samples);

  Sample &drafts = samples[1], &again = samples[2];
  drafts.guesses = alone(drafts.text, drafts.seed, 5);
  drafts.guesses.erase(drafts.guesses.begin(), drafts.guesses.end() - 5);
  drafts.guesses[3] = '?';
  engine.step(samples);  // a token more for the others, four for this one

  again.text.resize(again.text.size() - 5);
  check(again.lease.truncate(static_cast<std::uint32_t>(again.text.size())));
  const Text kept = again.text;
  again.seed = 9;
  again.text.push_back(engine.next(again));
  for (int i = 0; i < 3; ++i) engine.step(samples);

  std::size_t blocks = 0;
  std::set<std::int32_t> slots;
  bool right = cache.audit().balanced() && drafts.text.size() == samples[0].text.size() + 3;
  for (Sample& s : samples) {
    blocks += s.lease.table(0).size();
    slots.insert(s.lease.table(0).begin(), s.lease.table(0).end());
    const Text& before = &s == &again ? kept : prompt;
    right = right && s.text == alone(before, s.seed, s.text.size() - before.size());
    std::printf("%s  (%u slots of its own)\n", std::string(s.text.begin(), s.text.end()).c_str(),
                s.lease.exclusive_slots());
  }
  std::printf("%d blocks in %d slots\n", static_cast<int>(blocks), static_cast<int>(slots.size()));
  std::printf("%s\n", right ? "every answer is the one without a cache" : "WRONG");
  for (Sample& s : samples) check(s.lease.release());
  return right ? 0 : 1;
}
