// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What carries out steps: a model and its KV pool behind a queue, on a thread of its own, as a GPU's stream would. A job is
// plain data, so that it can be sent to another rank. Tokens are chosen here, and what a sequence's last work has chosen is
// kept here, so that its next work can be launched before the engine knows that token.
//
// Threads: `launch`, `wait` and `error` by one; the rest happens on the device's own.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "kvstem/base/point.hpp"
#include "kvstem/cache/step.hpp"
#include "model.hpp"

namespace paged {

struct Sampling {
  float temperature = 0;   // 0: always the likeliest token
  std::uint64_t seed = 0;  // of the choice at a position: whatever else the engine does, it is the same
  friend bool operator==(const Sampling&, const Sampling&) = default;
};

/// One sequence's part of a job: rows [first, first + rows) of it.
struct JobWork {
  std::uint64_t request = 0;  // for `Device::watch`
  std::uint32_t sample = 0;
  std::uint32_t sequence = 0;  // under which its last token is kept
  std::uint32_t begin = 0;     // position of its first row
  std::uint32_t first = 0, rows = 0;
  std::uint32_t drafts = 0;  // the last of the rows hold drafts
  std::uint32_t ahead = 0;   // 1: the first row's token is the one kept
  /// How to choose behind its last row, and with drafts behind each of them; none: nothing is to be chosen. With several,
  /// each chooses behind the last row: the samples of one prompt.
  std::vector<Sampling> choose{};
  friend bool operator==(const JobWork&, const JobWork&) = default;
};

struct Job {
  kvstem::Point done{};
  std::uint64_t decisions = 0;  // the cache's digest: ranks that decide alike have the same
  std::vector<kvstem::StepEntry> copies{};
  std::vector<JobWork> work{};
  std::vector<kvstem::TokenId> tokens{};  // of all rows
  std::uint32_t width = 0;                // of the block tables, one for each work
  std::vector<std::int32_t> tables{};
};

/// What a work has chosen: the drafts that were right and the token behind them, or one token for each sample.
struct Chosen {
  std::vector<kvstem::TokenId> tokens{};
};

class Device {
 public:
  /// Called on the device's thread for each token that is chosen, with the logits that it was chosen from: the
  /// request, the sample, the position whose logits they are.
  using Watch = std::function<void(std::uint64_t, std::uint32_t, std::uint32_t, std::span<const float>)>;

  Device(std::unique_ptr<Model> model, std::uint32_t sequences, Watch watch = {});
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device();

  /// Puts a job into the queue.
  void launch(Job job);
  /// Waits for the oldest job that nobody waited for, and says what each of its works chose. None if it failed: `error`
  /// says why, and all jobs behind it fail as well.
  std::optional<std::vector<Chosen>> wait();
  [[nodiscard]] const std::string& error() const { return error_; }
  [[nodiscard]] const Model& model() const { return *model_; }

 private:
  void run();
  std::optional<std::vector<Chosen>> carry_out(const Job& job);

  std::unique_ptr<Model> model_;
  Watch watch_;
  std::vector<kvstem::TokenId> last_;  // of each sequence
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> queue_;
  std::deque<std::optional<std::vector<Chosen>>> done_;
  std::string error_;  // written before the result that it belongs to is put into done_
  bool stop_ = false;
  std::thread thread_;
};

/// The token that `sampling` chooses behind `position`.
kvstem::TokenId choose(std::span<const float> logits, const Sampling& sampling, std::uint32_t position);

}  // namespace paged
