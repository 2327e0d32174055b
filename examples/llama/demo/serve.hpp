// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// One request after another, with a clock at every place where kvstem meets llama.cpp. It computes just as `Engine`
// does with one slot (chunks on the grid, exports between decodes), so that the time kvstem itself takes can be told
// from the time that llama.cpp takes for kvstem's sake.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "engine.hpp"
#include "naive_cache.hpp"

namespace kvstem_llama::demo {

/// Seconds on a clock that never goes back.
inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// A LlamaEngine whose four functions for the cache are timed.
class TimedLlama {
 public:
  explicit TimedLlama(LlamaEngine& llama) : llama_(&llama) {}

  [[nodiscard]] double seconds() const noexcept { return seconds_; }

  [[nodiscard]] std::size_t range_bytes(GroupId group, TokenRange range) const noexcept {
    return llama_->range_bytes(group, range);
  }
  Status export_range(SequenceId s, GroupId group, TokenRange range, std::span<std::byte> out) noexcept {
    return timed([&] { return llama_->export_range(s, group, range, out); });
  }
  Status import_range(SequenceId s, GroupId group, TokenRange range, std::span<const std::byte> in) noexcept {
    return timed([&] { return llama_->import_range(s, group, range, in); });
  }
  Status share_range(SequenceId from, SequenceId to, TokenRange range) noexcept {
    return timed([&] { return llama_->share_range(from, to, range); });
  }
  Status drop_range(SequenceId s, TokenRange range) noexcept {
    return timed([&] { return llama_->drop_range(s, range); });
  }
  [[nodiscard]] std::string describe() const { return llama_->describe(); }
  [[nodiscard]] kvstem::EngineCapacity capacity() const noexcept { return llama_->capacity(); }

 private:
  template <class Fn>
  Status timed(Fn&& fn) noexcept {
    const double before = now();
    const Status status = fn();
    seconds_ += now() - before;
    return status;
  }

  LlamaEngine* llama_;
  double seconds_ = 0;
};

using TimedHost = kvstem::OpaqueHost<TimedLlama>;

/// A context of llama.cpp, with or without kvstem, and what both did so far.
class Arm {
 public:
  struct Options {
    std::string name{};
    LlamaEngineOptions llama{};
    bool cached = false;
    kvstem::OpaqueHostOptions host{};
  };
  /// Ends the program with a message if the model cannot be opened.
  explicit Arm(const Options& options);

  struct Served {
    double first_token = 0;  // seconds from the request to its first token
    double total = 0;        // to the point where nothing of it is left to do, exports included
    double begin = 0;        // of these, in finding and loading what was there
    Reuse reuse;
    std::uint32_t prompt_tokens = 0, computed_tokens = 0;
    Tokens state;                   // the tokens whose state was there at the end
    Tokens chosen;                  // what the model answered
    std::uint32_t grid_tokens = 0;  // leading tokens of `state` that lie in whole chunks of the grid
  };
  struct Job {
    std::span<const TokenId> prompt{};
    std::uint32_t new_tokens = 0;
    std::uint64_t session = 0;
    bool exact = false;
    std::uint32_t in_place = 0;  // without kvstem: this many tokens are in sequence 0 already
    std::function<void(SequenceId)> before_end{};  // while the sequence still has its state
  };
  /// Greedy, and past the model's end tokens. Without kvstem the request lies in sequence 0, emptied afterwards.
  Served serve(const Job& job);
  /// Serves it through kvstem, and asks a naive cache what must be found. Differences go to `wrong`.
  Served serve_checked(const Job& job, NaiveCache& naive, Differences& wrong);

  [[nodiscard]] LlamaEngine& llama() { return *llama_; }
  [[nodiscard]] TimedHost* host() { return host_.get(); }
  [[nodiscard]] const std::string& name() const { return name_; }
  /// Of the wall time in `serve`, the part inside kvstem, and there, not in llama.cpp.
  [[nodiscard]] double own_share() const {
    return wall_ > 0 ? (host_seconds_ - timed_.seconds()) / wall_ : 0;
  }
  void reset_clocks() { wall_ = host_seconds_ = 0, timed_ = TimedLlama(*llama_); }

  /// Called after every operation of the cache. For tests.
  std::function<void()> after_each{};

 private:
  template <class Fn>
  auto in_host(Fn&& fn) {
    const double before = now();
    auto result = fn();
    host_seconds_ += now() - before;
    if (after_each) after_each();
    return result;
  }

  std::string name_;
  std::unique_ptr<LlamaEngine> llama_;
  TimedLlama timed_;
  std::unique_ptr<TimedHost> host_;
  kvstem::ScopeId scope_{};
  double wall_ = 0, host_seconds_ = 0;
};

/// Prints why, and ends the program.
[[noreturn]] void die(const std::string& what, const std::string& why);
template <class T>
T must(Result<T> result, const std::string& what) {
  if (!result.ok()) die(what, result.status().message());
  return std::move(*result);
}
inline void must(Status status, const std::string& what) {
  if (!status.ok()) die(what, status.message());
}

}  // namespace kvstem_llama::demo
