// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The live page: what it is told, as JSON. The page itself is page/index.html. It shows counts and short keys, never text;
// one tenant is told of itself only.
//
// Threads: any; History is for one at a time.
//
//   History history(tenants);
//   every_five_seconds([&] { history.sample(unix_time, metrics); });
//   exchange->write(page_event(view, metrics, history, {.model = "smol"}));
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine.hpp"
#include "metrics.hpp"

namespace kvstem_llama::server {

/// The page, embedded when the server is built.
extern const std::string_view kPageHtml;

/// What runs, waits, or just ended, and what is kept, at one moment.
struct View {
  struct Line {
    std::uint32_t tenant = 0;
    bool done = false;
    double seconds = 0;   // since the request came; of those that are done, until its end
    double ended = 0;     // by the worker's clock
    Standing standing{};  // the request's number is the tenant's own count
  };
  struct Stem {
    std::string key{};  // a part of it
    std::uint32_t tokens = 0, blocks = 0, branches = 0;
  };
  std::vector<Line> lines{};  // running, waiting, done; the last ones first
  std::vector<Stem> stems{};  // the longest first
};

/// How many prompt tokens were asked for and found, in intervals of five seconds.
class History {
 public:
  static constexpr std::size_t kIntervals = 120;
  static constexpr std::int64_t kSeconds = 5;
  struct Interval {
    std::int64_t time = 0;  // Unix time of its beginning
    std::uint64_t queried = 0, hit = 0;
  };
  explicit History(std::size_t tenants) : tenants_(tenants) {}
  void sample(std::int64_t time, const Metrics& metrics);
  /// Those with queries, oldest first; of one tenant, or of all together.
  [[nodiscard]] std::vector<Interval> intervals(std::optional<std::uint32_t> tenant) const;

 private:
  struct Tenant {
    std::uint64_t queried = 0, hit = 0;  // at the last sample
    std::deque<Interval> intervals;
  };
  std::vector<Tenant> tenants_;
};

struct PageOptions {
  std::string model{};
  bool kvstem = true;
  std::uint64_t sequence = 0;
  double time = 0;  // Unix time
  std::uint32_t block_tokens = 0;
  std::vector<std::string> tenants{};     // names
  std::optional<std::uint32_t> tenant{};  // whose event this is; none: of all
};

/// "data: {...}\n\n"; what it holds is said in page/index.html, where it is read.
[[nodiscard]] std::string page_event(const View& view, const Metrics& metrics, const History& history,
                                     const PageOptions& options);

}  // namespace kvstem_llama::server
