// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What the example's engine has besides the cache: requests, and a device with a pool of KV blocks that runs steps one
// after the other. Nothing here calls kvstem.
//
// No model: the state of a position is a number made of its token and of all states before it, read through the block
// table. So one wrong slot changes every answer behind it.
#pragma once

#include <kvstem/kvstem.hpp>

#include <string>
#include <vector>

namespace toy {

using namespace kvstem;

constexpr std::uint32_t kBlock = 4;   // tokens of a block
constexpr std::uint32_t kSlots = 24;  // blocks of the pool
constexpr std::uint32_t kAnswer = 8;  // tokens that are decoded for a request

struct Request {
  Request(const char* its_name, const std::string& text, Keep keep = Keep::kNormal)
      : name(its_name), retention{keep}, tokens(text.begin(), text.end()) {}

  const char* name;
  Retention retention;          // how long its state is worth keeping
  std::vector<TokenId> tokens;  // one for each letter of the prompt, then of the answer as far as it is known
  std::uint32_t prompt = static_cast<std::uint32_t>(tokens.size());
  std::uint32_t end = prompt + kAnswer - 1;  // nobody needs the state of the last token
  std::uint32_t launched = 0;                // tokens that are computed or in a step; 0 while it waits
  TokenId sampled = 0;                       // on the device: the last token of the answer
  unsigned hangs_up_in = 0;                  // a step; 0 is never
  bool over = false;
  Lease lease{};
};

/// One request's part of a step: positions [begin, end).
struct Work {
  Request* request;
  std::uint32_t begin, end;
  std::vector<std::int32_t> table;  // a copy, for the lease may have ended when the step runs
};
struct Step {
  Point done{};
  std::vector<Work> work{};
};

using State = std::uint64_t;

State attend(TokenId token, std::uint32_t position, auto&& states) {
  auto sum = static_cast<State>(token);
  for (std::uint32_t i = 0; i < position; ++i) sum = (sum ^ states(i)) * 0x9e3779b97f4a7c15u;
  return sum;
}
inline TokenId sample(State state) { return 'a' + static_cast<TokenId>((state >> 32) % 26); }

class Device {
 public:
  void run(const Step& step) {
    for (const Work& w : step.work) {
      Request& r = *w.request;
      const auto states = [&](std::uint32_t i) -> State& {
        return pool_[static_cast<std::size_t>(w.table[i / kBlock]) * kBlock + i % kBlock];
      };
      for (std::uint32_t i = w.begin; i < w.end; ++i)
        r.sampled = sample(states(i) = attend(i < r.prompt ? r.tokens[i] : r.sampled, i, states));
    }
  }

 private:
  std::vector<State> pool_ = std::vector<State>(std::size_t{kSlots} * kBlock);
};

/// Whether the answer is the one that an engine without a cache gives.
inline bool right(const Request& r) {
  std::vector<State> states;
  for (std::uint32_t i = 0; i < r.end; ++i) {
    states.push_back(attend(r.tokens[i], i, [&](std::uint32_t before) { return states[before]; }));
    if (i + 1 >= r.prompt && sample(states[i]) != r.tokens[i + 1]) return false;
  }
  return true;
}

}  // namespace toy
