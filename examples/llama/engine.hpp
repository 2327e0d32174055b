// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A small serving engine on llama.cpp: requests wait in line, take a slot, are prefilled chunk by chunk while others
// decode, and yield tokens. It never blocks: every `step` does one round of work and says what came of it.
//
// The order of the line is that of line.hpp: by what is there of the prompt, with ageing. One request is prefilled at a
// time, and the next is chosen when it is done; so of two that wait for the same prefix the second finds it, and it is
// computed once. What is there for those that wait is announced to the cache, so that it does not go meanwhile. The samples
// of a request share one prefill: the others fork from the first, as far as there are slots; those that come later share
// the prompt as any other request would.
//
// Prefill is cut into chunks of the LlamaEngine's batch, each a call of its own: that is how long those who decode wait for
// their next token meanwhile. llama.cpp rounds differently for calls of fewer than 64 tokens, of more, and of one; so a
// request that asks for exact reuse starts at a multiple of kGrid and has chunks of kGrid tokens. It goes through exactly
// the calls that a cold run makes there, and gets the same bits.
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
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "line.hpp"
#include "llama_engine.hpp"

struct llama_sampler;

namespace kvstem_llama {

/// Where the prefill of exact requests is cut, in tokens.
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
  std::uint32_t samples = 1;  // answers to the prompt; the i-th has the seed sampling.seed + i
  /// Without a cache: a sequence of the caller's own, at or above the slots, whose first `in_place_tokens` are the
  /// prompt's. The request starts from them, and when it ends the sequence goes on as the request did. This is the most
  /// that any cache can save.
  SequenceId in_place = kvstem::kNoSequence;
  std::uint32_t in_place_tokens = 0;
  /// For tests and replays, of the first sample: the i-th token is forced[i], whatever the model says; further ones are sampled.
  std::vector<TokenId> forced{};
  /// Gets the logits from which the i-th token of the first sample is chosen. Must not call the engine.
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
  std::uint32_t chunks = 0;           // in so many calls
  std::uint32_t new_tokens = 0;
  bool forked = false;  // the prompt is another sample's, which reports it
  /// Later requests that started before it, kMostOvertaken at most. Each sample that did not fork tells what was added since
  /// the one before it.
  std::uint32_t overtaken = 0;
  std::uint64_t waited_steps = 0;  // in line; then
  std::uint64_t ran_steps =
      0;  // from the first chunk on: one for each chunk, and one for each token but the first
};

enum class Finish : std::uint8_t { kEnd, kLength, kCancelled, kFailed };

struct Event {
  enum class Kind : std::uint8_t { kFirstToken, kToken, kFinished };
  RequestNumber request = 0;
  std::uint32_t sample = 0;  // of the request; each has its own kFinished
  Kind kind = Kind::kToken;
  TokenId token = -1;            // of kFirstToken and kToken; an end token is not among them
  Finish finish = Finish::kEnd;  // of kFinished, as is the rest
  Status status{};               // the reason, if finish is kFailed
  Report report{};
};

/// How a sample stands, for those who watch.
struct Standing {
  enum class State : std::uint8_t { kWaiting, kPrefill, kDecode };
  RequestNumber request = 0;
  std::uint32_t sample = 0;
  State state = State::kWaiting;
  std::uint32_t most_new_tokens = 0;
  std::uint32_t there = 0;  // kWaiting: how much of the prompt would be found, when it was last looked at
  Report report{};          // so far
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
  /// Ends all samples that are left of it, or one; a kFinished for each comes with the next step. kStale: there is no such
  /// request or sample (any more).
  Status cancel(RequestNumber number);
  Status cancel(RequestNumber number, std::uint32_t sample);
  /// One round: takes requests in, computes one token for every slot that decodes and one chunk of the request that
  /// is prefilled, and lets the cache export some of what is new. The events are valid until the next call.
  std::span<const Event> step();
  /// True while there is something to compute, to export or to tell.
  [[nodiscard]] bool busy() const noexcept;

  /// Requests and samples that wait, and that run.
  [[nodiscard]] std::size_t waiting() const noexcept { return line_.size(); }
  [[nodiscard]] std::size_t running() const noexcept;
  [[nodiscard]] std::uint32_t slots() const noexcept;
  /// All of them: what runs, then what waits, in the order of the line.
  [[nodiscard]] std::vector<Standing> standings() const;
  /// Steps so far in which there was something to do.
  [[nodiscard]] std::uint64_t steps() const noexcept { return step_; }
  /// Samples so far that began with another's state.
  [[nodiscard]] std::uint64_t forks() const noexcept { return forks_; }

 private:
  struct FreeSampler {
    void operator()(llama_sampler* sampler) const noexcept;
  };
  struct Slot;
  /// What waits: a request, or samples of one that found no slot to fork into.
  struct Waiting {
    std::shared_ptr<const Request> request;
    std::vector<std::uint32_t> samples;
    bool further = false;     // others of its samples started before
    std::uint32_t told = 0;   // overtakings that they have reported
    std::uint64_t since = 0;  // step
    std::uint32_t there = 0;  // tokens of the prompt, when it was last looked at
    kvstem::AnnouncementId announcement{};
    std::uint32_t announced_tokens = 0;  // 0: nothing is
  };

  /// Why a request is refused; kOk if it is not.
  [[nodiscard]] Status check(const Request& request) const;
  void admit();
  void decode();
  void prefill();
  Status start(Slot& slot);
  bool fork(Slot& from, Slot& to);
  void fork_samples(Slot& slot, std::span<const float> logits);
  Status compute();
  void take_logits(Slot& slot, std::span<const float> logits);
  TokenId choose(Slot& slot, std::span<const float> logits);
  void leave(Slot& slot, bool good);
  void finish(Slot& slot, Finish how, Status status = {});
  void finish_unforked(const Slot& slot, std::uint32_t sample, Finish how, Status status = {});
  void give_up(RequestNumber number, Line<Waiting>::Entry& entry, std::uint32_t sample);
  std::uint32_t look(Waiting& waiting);
  void withdraw(Waiting& waiting);
  void set_sampler(Slot& slot);
  [[nodiscard]] kvstem::OpaqueRequest to_cache(const Request& request) const noexcept;
  [[nodiscard]] std::shared_ptr<void> take_cells(std::uint64_t cells);

  LlamaEngine& llama_;
  Cache* cache_;
  std::uint64_t cells_taken_ = 0;  // by what runs
  std::vector<Slot> slots_;
  Line<Waiting> line_;
  std::vector<Event> events_, told_;
  std::vector<LlamaEngine::Feed> feeds_;
  std::vector<Slot*> fed_;
  RequestNumber last_number_ = 0;
  std::uint64_t step_ = 0, forks_ = 0;
  bool stuck_ = false;  // who is next found no room, and nothing has changed since
};

}  // namespace kvstem_llama
