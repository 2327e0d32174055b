// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A small serving engine with a paged KV pool of its own, on kvstem's PagedHost: continuous batching, prompts in chunks,
// samples that share their prompt, drafts looked up in the text so far, and steps that are scheduled while the one before
// them runs. What is the engine's own is a page of code: everything about slots, tables and preemption is the host's.
//
// Two processes may be ranks of one engine: each holds some of the kv heads, both are given the same requests and steps.
// Rank 0 decides and sends its jobs; rank 1 carries out what it got, after it has compared it with what it decided itself.
//
// Guarantees: the tokens of a request, and the logits that they were chosen from, bit for bit, do not depend on what else
// the engine does, on reuse, preemption, drafts, chunks or ranks.
// Threads: one, besides the device's. `step` waits for a step of the device.
//
//   std::string error;
//   auto engine = Engine::create({.model = {.file = "model.gguf", .threads = 2, .slots = 512}}, error);
//   auto id = engine->submit({.tokens = prompt, .max_new_tokens = 32, .samples = 2});
//   while (engine->busy())
//     for (const Event& e : engine->step())
//       if (e.kind == Event::Kind::kToken) print(e.request, e.sample, e.token);
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device.hpp"
#include "kvstem/host/paged_host.hpp"
#include "link.hpp"
#include "model.hpp"

namespace paged {

using kvstem::TokenId;
using RequestNumber = std::uint64_t;

struct Request {
  std::vector<TokenId> tokens{};
  std::uint32_t max_new_tokens = 16;
  std::uint32_t samples = 1;  // answers to one prompt; they differ with a temperature: sample i has seed + i
  std::uint32_t drafts = 0;   // most tokens looked up and verified in one step
  TokenId end_token = -1;     // stop behind this one
  Sampling sampling{};
  bool reuse = true;  // false: as if there were no cache, in both directions
};

struct Event {
  enum class Kind : std::uint8_t {
    kToken,
    kFinished,  // this sample has all its tokens
    kFailed,    // the request cannot be served, or the device failed: `Engine::error`
  };
  Kind kind = Kind::kToken;
  RequestNumber request = 0;
  std::uint32_t sample = 0;
  TokenId token = 0;                // kToken
  kvstem::Status why{};             // kFailed
  std::uint32_t reused_tokens = 0;  // kFinished: of its prompt, when it was first admitted
};

/// Hears all that the host is told and says. For tests.
class Recorder {
 public:
  virtual ~Recorder() = default;
  virtual void created(const kvstem::PagedHostOptions& options) = 0;
  virtual void added(kvstem::PagedSequence sequence, const kvstem::PagedRequest& request) = 0;
  virtual void forked(kvstem::PagedSequence of, kvstem::PagedSequence sequence,
                      std::span<const TokenId> tokens, std::uint32_t max_new_tokens) = 0;
  virtual void proposed(kvstem::PagedSequence sequence, std::span<const TokenId> drafts) = 0;
  virtual void scheduled(kvstem::PagedHost& host, const kvstem::PagedStep& step) = 0;
  virtual void finished(kvstem::Point done) = 0;
  virtual void accepted(kvstem::PagedSequence sequence, std::span<const TokenId> tokens) = 0;
  virtual void ended(kvstem::PagedSequence sequence) = 0;
};

struct EngineOptions {
  Model::Options model{};
  std::uint32_t step_tokens = 512;  // most rows of one forward pass
  std::uint32_t sequences = 16;     // at once
  std::uint32_t max_tokens = 4096;  // the longest sequence
  bool ahead = true;                // whether a step is scheduled while one runs
  Link* link = nullptr;  // to the other rank; outlives the engine, whose end ends it if work is under way
  Device::Watch watch{};
  Recorder* recorder = nullptr;  // outlives the engine
};

class Engine {
 public:
  /// Null, and why.
  static std::unique_ptr<Engine> create(const EngineOptions& options, std::string& error);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();

  /// Its number. Errors as PagedHost::add; kUnavailable once the engine has failed.
  kvstem::Result<RequestNumber> submit(const Request& request);
  /// It needs no answer any more; what it computed stays in the cache. No events of it follow.
  void cancel(RequestNumber request);
  /// One round: schedules a step, launches it, and takes the results of the one before. What is returned is valid until
  /// the next call.
  std::span<const Event> step();
  /// Whether any request has not finished.
  [[nodiscard]] bool busy() const { return !failed_ && (host_->busy() || !flights_.empty()); }
  /// Why the engine failed. It serves no more then.
  [[nodiscard]] const std::string& error() const { return error_; }

  [[nodiscard]] kvstem::PagedHost& host() { return *host_; }
  [[nodiscard]] const Shape& shape() const { return device_->model().shape(); }

 private:
  struct Live {
    kvstem::PagedSequence sequence{};
    RequestNumber request = 0;
    std::uint32_t sample = 0;
    std::uint32_t to_fork = 0;  // samples that begin when its prompt is computed
    std::uint32_t prompt = 0, limit = 0, drafts = 0, reused = 0;
    bool admitted = false;
    TokenId end_token = -1;
    Sampling sampling{};
  };
  Engine(const EngineOptions& options, std::unique_ptr<kvstem::PagedHost> host,
         std::unique_ptr<Device> device, kvstem::ScopeId scope);

  /// Calls `fn(recorder)` if there is one.
  template <class Fn>
  void record(Fn&& fn) {
    if (options_.recorder != nullptr) fn(*options_.recorder);
  }
  void launch();
  void collect();
  bool end_sequence(kvstem::PagedSequence sequence);
  void fail(const std::string& why);
  void fork(const Live& from, std::span<const TokenId> chosen);
  void take(Live& live, std::span<const TokenId> tokens);
  [[nodiscard]] Live* find(kvstem::PagedSequence sequence);

  EngineOptions options_;
  std::unique_ptr<kvstem::PagedHost> host_;
  std::unique_ptr<Device> device_;
  kvstem::ScopeId scope_;
  std::vector<Live> live_;  // by sequence index; a stale one has another generation
  std::deque<kvstem::PagedStep> flights_;
  std::vector<kvstem::PagedStep> spare_;
  std::vector<Event> events_;
  std::uint64_t steps_ = 0;
  RequestNumber requests_ = 0;
  bool failed_ = false;
  std::string error_;
};

/// Tokens that followed the last time when the text read as it does at its end, at most n: prompt look-up decoding
/// (Saxena, 2023).
std::vector<TokenId> look_up(std::span<const TokenId> text, std::uint32_t n);

}  // namespace paged
