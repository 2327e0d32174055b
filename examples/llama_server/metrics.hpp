// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What was counted, by tenant, and how the engine stands; and both as Prometheus text.
//
// A tenant's text has its own counters and nothing else, so that nobody sees by them what others do. In every text
// hit tokens of all tiers and missed tokens add up to queried tokens.
//
// Threads: any; each call holds a lock for as long as it takes to copy or write some numbers.
//
//   Metrics metrics({"alice", "bob"});
//   metrics.first_token(0, 0.3);
//   metrics.finished(0, Outcome::kStop, report, 1.2);
//   exchange->send(200, kPrometheus, metrics.text());      // or text(0): alice's
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine.hpp"

namespace kvstem_llama::server {

inline constexpr std::string_view kPrometheus = "text/plain; version=0.0.4; charset=utf-8";

/// How a choice ended. kRefused: a request with a mistake in it, or one too many, which never reached the engine.
enum class Outcome : std::uint8_t { kStop, kLength, kCancelled, kFailed, kRefused };
inline constexpr std::array<std::string_view, 5> kOutcomes{"stop", "length", "cancelled", "failed",
                                                           "refused"};

/// Seconds, counted in buckets.
class Histogram {
 public:
  static constexpr std::array<double, 12> kBounds{0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60};

  void add(double seconds);
  [[nodiscard]] std::uint64_t count() const { return buckets_.back(); }
  /// The lines of one metric with these labels ("" or `a="b"`).
  void write(std::string& out, std::string_view name, const std::string& labels) const;

 private:
  std::array<std::uint64_t, kBounds.size() + 1>
      buckets_{};  // each counts what is at most its bound; the last all
  double sum_ = 0;
};

struct TenantCounters {
  std::array<std::uint64_t, kOutcomes.size()> outcomes{};
  std::uint64_t queried_tokens = 0;   // of prompts that started to run
  std::uint64_t device_tokens = 0;    // found in the engine: of residents and of requests that run
  std::uint64_t host_tokens = 0;      // found in host memory, in whole blocks
  std::uint64_t frontier_tokens = 0;  // found in host memory, behind a turn's last whole block
  std::uint64_t generated_tokens = 0;
  std::uint64_t overtaken = 0;
  Histogram first_token, whole;
};

struct EngineState {
  std::uint32_t slots = 0, running = 0, waiting = 0;
  std::uint64_t steps = 0;
  std::uint32_t cells = 0;  // tokens that the engine can hold
  std::uint32_t resident_tokens = 0;
  std::uint32_t host_blocks = 0, host_blocks_used = 0;
  std::uint64_t block_bytes = 0;
  std::uint64_t exported_bytes = 0, imported_bytes = 0;
  std::uint64_t forks = 0, evicted_blocks = 0;
};

class Metrics {
 public:
  explicit Metrics(std::vector<std::string> tenants);

  /// A choice's first token, so long after the request came.
  void first_token(std::uint32_t tenant, double seconds);
  /// A choice ended, so long after the request came.
  void finished(std::uint32_t tenant, Outcome outcome, const Report& report, double seconds);
  /// A request ended that never reached the engine.
  void unstarted(std::uint32_t tenant, Outcome outcome);
  void set(const EngineState& state);

  [[nodiscard]] EngineState state() const;
  /// Choices and requests that ended, of all tenants.
  [[nodiscard]] std::uint64_t ended() const;
  [[nodiscard]] TenantCounters counters(std::uint32_t tenant) const;
  /// Of all, with a label for each tenant (none if there is but one, without a name); or of one.
  [[nodiscard]] std::string text(std::optional<std::uint32_t> tenant = {}) const;

 private:
  std::vector<std::string> names_;
  mutable std::mutex mutex_;
  std::vector<TenantCounters> tenants_;
  EngineState state_;
};

}  // namespace kvstem_llama::server
