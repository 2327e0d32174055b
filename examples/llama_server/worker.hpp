// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The engine's thread. Jobs come in from any thread, text goes out as it is made; nobody else touches the engine, its
// context or the cache. Nothing in here waits for a client.
//
// A job is one call of the API: some prompts, and a number of choices for each. Stop strings are looked for here, so that
// a choice that is over costs no further step.
//
// Threads: all calls from any; `Job::deliver` is called on the engine's thread and must
// return at once. Cost of a call: a lock that the engine's thread holds for as long as it takes to move some pointers.
//
//   Worker worker(engine, llama, &cache, metrics, {.scopes = {scope}, .now = clock});
//   const JobNumber job = worker.submit({.prompts = {tokens}, .max_new_tokens = 32,
//                                        .deliver = [&](std::vector<Piece> pieces) { ... }});
//   worker.cancel(job);
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine.hpp"
#include "metrics.hpp"
#include "page.hpp"
#include "text.hpp"

namespace kvstem_llama::server {

using JobNumber = std::uint64_t;

/// How a choice went on. The last piece of a choice has `finished`.
struct Piece {
  enum class End : std::uint8_t { kStop, kLength, kCancelled, kFailed };
  std::uint32_t choice = 0;  // prompt * samples + sample
  std::string text{};        // valid UTF-8
  std::vector<TokenId>
      tokens{};  // that the engine chose since the last piece, whether or not their text is shown yet
  bool finished = false;
  End end = End::kStop;  // of the last piece, as is the rest
  const char* why = "";  // kFailed
  Report report{};
};

struct Job {
  std::uint32_t tenant = 0;  // index into the worker's scopes
  std::vector<std::vector<TokenId>> prompts{};
  std::uint32_t samples = 1;
  std::uint32_t max_new_tokens = 16;
  bool stop_at_end = true;
  bool reuse = true;  // false: computed as if there were no cache, and nothing is left behind
  Sampling sampling{};
  std::vector<std::string> stops{};
  double since = 0;  // when the request came, by Worker::now
  /// The pieces of one step; each call has some.
  std::function<void(std::vector<Piece>)> deliver{};
};

class Worker {
 public:
  struct Options {
    std::size_t tenants = 1;
    std::vector<kvstem::ScopeId> scopes{};  // of the tenants; empty without kvstem
    std::function<double()> now{};          // seconds, by a clock that never goes back
  };
  /// Starts the thread. All must outlive the worker; `cache` is null without kvstem.
  Worker(Engine& engine, LlamaEngine& llama, Engine::Cache* cache, Metrics& metrics, Options options);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  /// Cancels what is left, and waits for the thread.
  ~Worker();

  /// The number is known before the first piece is delivered. What the engine refuses comes as a failed piece of each choice.
  JobNumber submit(Job job);
  /// Everything of it ends with the engine's next step; no further piece is delivered. Unknown numbers are ignored. Counts as
  /// cancelled, or as failed.
  void cancel(JobNumber number, bool failed = false);
  /// Whoever still waits in line or runs is failed with this reason.
  void fail_all(const char* why);
  /// Calls `to` on the engine's thread, between two steps, with how things stand.
  void look(std::function<void(View)> to);
  /// Seconds, by the clock that it was given.
  [[nodiscard]] double now() const { return options_.now(); }
  /// Jobs that are not over.
  [[nodiscard]] std::size_t jobs() const noexcept { return jobs_in_.load(std::memory_order_relaxed); }

 private:
  struct Choice;
  struct Running;
  /// Where the choices of one of the engine's requests lie.
  struct Place {
    JobNumber job = 0;
    std::uint32_t first_choice = 0;
    std::uint64_t shown = 0;  // its number among its tenant's requests: another's is nobody's business
  };

  void loop();
  void post(std::function<void()> fn);
  void take(JobNumber number, Job job);
  void cancel_requests(const Running& job);
  void pass_on(const Event& event);
  void end(JobNumber number, Running& job, std::uint32_t choice, Piece piece);
  void deliver();
  [[nodiscard]] View view() const;
  void tell_state();

  Engine& engine_;
  LlamaEngine& llama_;
  Engine::Cache* cache_;
  Metrics& metrics_;
  Options options_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::function<void()>> inbox_;
  bool stop_ = false;
  JobNumber last_ = 0;
  std::atomic<std::size_t> jobs_in_{0};

  // The engine's thread only.
  std::map<JobNumber, std::unique_ptr<Running>> jobs_;
  std::map<RequestNumber, Place> requests_;
  std::map<JobNumber, std::vector<Piece>> outbox_;
  std::vector<std::deque<View::Line>> done_;  // by tenant, the last ones first
  std::vector<std::uint64_t> taken_;          // requests, by tenant
  std::thread thread_;
};

}  // namespace kvstem_llama::server
