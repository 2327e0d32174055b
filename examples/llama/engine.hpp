// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A small serving engine on llama.cpp: requests wait in line, take a slot, are prefilled chunk by chunk while others
// decode, and yield tokens. It never blocks: every `step` does one round of work and says what came of it.
//
// Prefill is cut into chunks of kGrid tokens, counted from where it starts, and each is a decode call of its own.
// llama.cpp rounds differently for calls of fewer than 64 tokens, of more, and of one; a request that asks for exact
// reuse starts at a multiple of kGrid, goes through exactly the calls that a cold run makes there, and gets the same bits.
//
// With a cache, a request computes only what is new; without one (null) nothing of kvstem runs.
// Threads: one. The LlamaEngine, and the cache if there is one, must outlive it.
//
//   Engine engine(llama, 4, &cache);
//   auto id = engine.submit({.tokens = prompt, .max_new_tokens = 32, .session = 7});
//   while (engine.busy())
//     for (const Event& e : engine.step())
//       if (e.kind != Event::Kind::kFinished) print(e.request, e.token);
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "llama_engine.hpp"

struct llama_sampler;

namespace kvstem_llama {

/// Where prefill is cut, in tokens.
inline constexpr std::uint32_t kGrid = 64;

using RequestNumber = std::uint64_t;

struct Sampling {
  float temperature = 0;  // 0: always the likeliest token
  float top_p = 1;        // choose among the likeliest tokens that together have this probability
  std::uint32_t seed = 0;
};

struct Request {
  std::vector<TokenId> tokens{};
  std::uint32_t max_new_tokens = 16;  // 0: only compute the prompt
  std::uint64_t session = 0;          // names the chain of turns that this one belongs to; 0 for none
  kvstem::ScopeId scope =
      kvstem::kNoScope;     // whose state may be reused: from cache.open_scope(llama.scope(tenant))
  bool reuse = true;        // false: as if there were no cache, in both directions
  bool exact = false;       // reuse only what gives bitwise the logits of a cold run in the same layout
  bool stop_at_end = true;  // stop at the model's end tokens
  Sampling sampling{};
  /// Without a cache: a sequence of the caller's own, at or above the slots, whose first `in_place_tokens` are the
  /// prompt's. The request starts from them, and when it ends the sequence goes on as the request did. This is the most
  /// that any cache can save.
  SequenceId in_place = kvstem::kNoSequence;
  std::uint32_t in_place_tokens = 0;
  /// For tests and replays: the i-th token is forced[i], whatever the model says; further ones are sampled.
  std::vector<TokenId> forced{};
  /// Gets the logits from which the i-th token is chosen. Must not call the engine.
  std::function<void(std::uint32_t i, std::span<const float> logits)> on_logits{};
};

/// What a request cost.
struct Report {
  std::uint32_t prompt_tokens = 0;
  std::uint32_t reused_tokens = 0;  // of the prompt; from these three places
  std::uint32_t from_resident = 0;
  std::uint32_t from_host = 0;
  std::uint32_t from_frontier = 0;
  std::uint32_t computed_tokens = 0;  // of the prompt; all the others, once it is prefilled
  std::uint32_t new_tokens = 0;
};

enum class Finish : std::uint8_t { kEnd, kLength, kCancelled, kFailed };

struct Event {
  enum class Kind : std::uint8_t { kFirstToken, kToken, kFinished };
  RequestNumber request = 0;
  Kind kind = Kind::kToken;
  TokenId token = -1;            // of kFirstToken and kToken; an end token is not among them
  Finish finish = Finish::kEnd;  // of kFinished, as is the rest
  Status status{};               // the reason, if finish is kFailed
  Report report{};
};

class Engine {
 public:
  using Cache = kvstem::OpaqueHost<LlamaEngine>;

  /// Runs up to `slots` requests at once. With a cache, which must be of this LlamaEngine and for as many requests, all
  /// sequences are the cache's to give; without one, the slots are sequences 0 <= id < slots and the others are free.
  Engine(LlamaEngine& llama, std::uint32_t slots, Cache* cache = nullptr);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  /// Gives up what still runs.
  ~Engine();

  /// Puts a request in line. Refused: an empty prompt, tokens outside the vocabulary, one that could never fit.
  Result<RequestNumber> submit(Request request);
  /// Its kFinished comes with the next step. kStale: there is no such request (any more).
  Status cancel(RequestNumber number);
  /// One round: takes requests in, computes one token for every slot that decodes and one chunk for the oldest that
  /// prefills, and lets the cache export some of what is new. The events are valid until the next call.
  std::span<const Event> step();
  /// True while there is something to compute, to export or to tell.
  [[nodiscard]] bool busy() const noexcept;

 private:
  struct FreeSampler {
    void operator()(llama_sampler* sampler) const noexcept;
  };
  struct Slot;
  struct Waiting {
    RequestNumber number;
    Request request;
  };

  void admit();
  void decode();
  void prefill();
  Status start(Slot& slot);
  Status compute();
  void take_logits(Slot& slot, std::span<const float> logits);
  TokenId choose(Slot& slot, std::span<const float> logits);
  void leave(Slot& slot, bool good);
  void finish(Slot& slot, Finish how, Status status = {});
  [[nodiscard]] std::uint64_t cells_of(const Request& request) const noexcept;

  LlamaEngine& llama_;
  Cache* cache_;
  std::vector<Slot> slots_;
  std::deque<Waiting> waiting_;
  std::vector<Event> events_, told_;
  std::vector<LlamaEngine::Feed> feeds_;
  std::vector<Slot*> fed_;
  std::uint64_t cells_taken_ = 0;  // by the requests that run
  RequestNumber last_number_ = 0;
};

}  // namespace kvstem_llama
