// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "device.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace paged {
namespace {

/// A number in [0, 1) that only the seed and the position decide (splitmix64).
double uniform(std::uint64_t seed, std::uint32_t position) {
  std::uint64_t x = seed * 0x9e3779b97f4a7c15u + (std::uint64_t{position} + 1) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return static_cast<double>((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

}  // namespace

kvstem::TokenId choose(std::span<const float> logits, const Sampling& sampling, std::uint32_t position) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (sampling.temperature <= 0) return static_cast<kvstem::TokenId>(best - logits.begin());
  const auto weight = [&](float logit) {
    return std::exp(static_cast<double>((logit - *best) / sampling.temperature));
  };
  double sum = 0;
  for (const float logit : logits) sum += weight(logit);
  double left = uniform(sampling.seed, position) * sum;
  for (std::size_t i = 0; i < logits.size(); ++i)
    if ((left -= weight(logits[i])) < 0) return static_cast<kvstem::TokenId>(i);
  return static_cast<kvstem::TokenId>(best - logits.begin());
}

Device::Device(std::unique_ptr<Model> model, std::uint32_t sequences, Watch watch)
    : model_(std::move(model)), watch_(std::move(watch)), last_(sequences), thread_([this] { run(); }) {}

Device::~Device() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Device::launch(Job job) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(job));
  }
  changed_.notify_all();
}

std::optional<std::vector<Chosen>> Device::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !done_.empty(); });
  auto result = std::move(done_.front());
  done_.pop_front();
  return result;
}

void Device::run() {
  for (;;) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    const Job job = std::move(queue_.front());
    queue_.pop_front();
    const bool failed = !error_.empty();
    lock.unlock();
    auto result = failed ? std::nullopt : carry_out(job);
    lock.lock();
    done_.push_back(std::move(result));
    changed_.notify_all();
  }
}

std::optional<std::vector<Chosen>> Device::carry_out(const Job& job) {
  for (const kvstem::StepEntry& e : job.copies)
    if (!model_->copy(e.from_slot, e.from_offset, e.slot, e.offset, e.tokens)) {
      error_ = "a copy names positions that are not there";
      return std::nullopt;
    }
  std::vector<Row> rows;
  std::vector<std::span<const std::int32_t>> tables;
  for (std::size_t i = 0; i < job.work.size(); ++i) {
    const JobWork& w = job.work[i];
    tables.push_back(std::span(job.tables).subspan(i * job.width, job.width));
    for (std::uint32_t r = 0; r < w.rows; ++r)
      rows.push_back({.token = r == 0 && w.ahead != 0 ? last_[w.sequence] : job.tokens[w.first + r],
                      .position = w.begin + r,
                      .table = static_cast<std::uint32_t>(i),
                      .logits = !w.choose.empty() && r + 1 + w.drafts >= w.rows});
  }
  const std::span<const float> logits = model_->forward({.rows = rows, .tables = tables});
  if (!model_->error().empty()) {
    error_ = model_->error();
    return std::nullopt;
  }

  const std::size_t vocab = model_->shape().vocab;
  std::vector<Chosen> chosen(job.work.size());
  std::size_t at = 0;  // row of the logits
  for (std::size_t i = 0; i < job.work.size(); ++i) {
    const JobWork& w = job.work[i];
    std::vector<kvstem::TokenId>& out = chosen[i].tokens;
    const std::uint32_t first = w.rows - 1 - w.drafts;  // row of the last token that is no draft
    for (std::uint32_t d = 0; d <= w.drafts && !w.choose.empty(); ++d) {
      const std::span<const float> row = logits.subspan((at + d) * vocab, vocab);
      const std::uint32_t position = w.begin + first + d;
      for (std::uint32_t s = 0; s < w.choose.size(); ++s) {
        out.push_back(choose(row, w.choose[s], position));
        if (watch_) watch_(w.request, w.sample + s, position, row);
      }
      if (d < w.drafts && out.back() != job.tokens[w.first + first + d + 1]) break;
    }
    if (w.choose.empty()) continue;
    last_[w.sequence] = w.choose.size() > 1 ? out.front() : out.back();
    at += w.drafts + 1;
  }
  return chosen;
}

}  // namespace paged
