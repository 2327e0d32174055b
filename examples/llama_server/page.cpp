// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "page.hpp"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

namespace kvstem_llama::server {
namespace {

using Json = nlohmann::ordered_json;

std::uint64_t hit_tokens(const TenantCounters& t) {
  return t.device_tokens + t.host_tokens + t.frontier_tokens;
}

Json totals_of(const Metrics& metrics, const PageOptions& options) {
  TenantCounters sum;
  for (std::uint32_t i = 0; i < options.tenants.size(); ++i) {
    if (options.tenant && *options.tenant != i) continue;
    const TenantCounters t = metrics.counters(i);
    sum.queried_tokens += t.queried_tokens;
    sum.device_tokens += t.device_tokens;
    sum.host_tokens += t.host_tokens;
    sum.frontier_tokens += t.frontier_tokens;
    sum.generated_tokens += t.generated_tokens;
    sum.overtaken += t.overtaken;
    for (std::size_t k = 0; k < kOutcomes.size(); ++k) sum.outcomes[k] += t.outcomes[k];
  }
  Json outcomes = Json::object();
  for (std::size_t k = 0; k < kOutcomes.size(); ++k) outcomes[std::string(kOutcomes[k])] = sum.outcomes[k];
  return {{"queried", sum.queried_tokens},
          {"device", sum.device_tokens},
          {"host", sum.host_tokens},
          {"frontier", sum.frontier_tokens},
          {"missed", sum.queried_tokens - hit_tokens(sum)},
          {"generated", sum.generated_tokens},
          {"overtaken", sum.overtaken},
          {"outcomes", std::move(outcomes)}};
}

Json engine_of(const View& view, const EngineState& e, const PageOptions& options) {
  std::uint64_t running = 0;
  for (const View::Line& line : view.lines) {
    const Report& r = line.standing.report;
    if (!line.done && line.standing.state != Standing::State::kWaiting)
      running += (r.forked ? 0 : r.reused_tokens + r.computed_tokens) + r.new_tokens;
  }
  return {{"slots", e.slots},
          {"running", e.running},
          {"waiting", e.waiting},
          {"steps", e.steps},
          {"cells", e.cells},
          {"running_tokens", running},
          {"resident_tokens", e.resident_tokens},
          {"host_blocks", e.host_blocks},
          {"host_blocks_used", e.host_blocks_used},
          {"block_bytes", e.block_bytes},
          {"block_tokens", options.block_tokens}};
}

Json line_of(const View::Line& line, const PageOptions& options) {
  static constexpr const char* kStates[] = {"waiting", "prefill", "decode"};
  const Standing& s = line.standing;
  const Report& r = s.report;
  Json json{{"number", s.request},
            {"sample", s.sample},
            {"state", line.done ? "done" : kStates[static_cast<std::size_t>(s.state)]},
            {"prompt", r.prompt_tokens},
            {"device", r.from_resident},
            {"host", r.from_host},
            {"frontier", r.from_frontier},
            {"computed", r.computed_tokens},
            {"generated", r.new_tokens},
            {"most_generated", s.most_new_tokens},
            {"there", s.there},
            {"overtaken", r.overtaken},
            {"forked", r.forked},
            {"seconds", line.seconds}};
  if (options.tenants.size() > 1) json["tenant"] = options.tenants[line.tenant];
  return json;
}

}  // namespace

void History::sample(std::int64_t time, const Metrics& metrics) {
  for (std::uint32_t i = 0; i < tenants_.size(); ++i) {
    Tenant& t = tenants_[i];
    const TenantCounters now = metrics.counters(i);
    if (now.queried_tokens == t.queried) continue;
    t.intervals.push_back({time - kSeconds, now.queried_tokens - t.queried, hit_tokens(now) - t.hit});
    t.queried = now.queried_tokens;
    t.hit = hit_tokens(now);
    if (t.intervals.size() > kIntervals) t.intervals.pop_front();
  }
}

std::vector<History::Interval> History::intervals(std::optional<std::uint32_t> tenant) const {
  std::map<std::int64_t, Interval> sum;
  for (std::uint32_t i = 0; i < tenants_.size(); ++i) {
    if (tenant && *tenant != i) continue;
    for (const Interval& interval : tenants_[i].intervals) {
      Interval& s = sum[interval.time];
      s = {interval.time, s.queried + interval.queried, s.hit + interval.hit};
    }
  }
  std::vector<Interval> all;
  for (const auto& [time, interval] : sum) all.push_back(interval);
  if (all.size() > kIntervals) all.erase(all.begin(), all.end() - static_cast<std::ptrdiff_t>(kIntervals));
  return all;
}

std::string page_event(const View& view, const Metrics& metrics, const History& history,
                       const PageOptions& options) {
  constexpr std::size_t kDone = 12, kWaiting = 20;  // as many lines as anybody reads
  Json json{{"sequence", options.sequence},
            {"time", options.time},
            {"model", options.model},
            {"kvstem", options.kvstem}};
  json["tenant"] = options.tenant ? Json(options.tenants[*options.tenant]) : Json(nullptr);
  json["totals"] = totals_of(metrics, options);
  json["engine"] = options.tenant ? Json(nullptr) : engine_of(view, metrics.state(), options);
  Json& requests = json["requests"] = Json::array();
  std::size_t done = 0, waiting = 0;
  for (const View::Line& line : view.lines) {
    if (options.tenant && *options.tenant != line.tenant) continue;
    std::size_t& shown = line.done ? done : waiting;
    const bool runs = !line.done && line.standing.state != Standing::State::kWaiting;
    if (runs || ++shown <= (line.done ? kDone : kWaiting)) requests.push_back(line_of(line, options));
  }
  json["waiting"] = waiting;
  Json& intervals = json["history"] = Json::array();
  for (const History::Interval& i : history.intervals(options.tenant))
    intervals.push_back(Json::array({i.time, i.queried, i.hit}));
  json["stems"] = nullptr;
  if (!options.tenant) {
    json["stems"] = Json::array();
    for (const View::Stem& s : view.stems)
      json["stems"].push_back(
          {{"key", s.key}, {"tokens", s.tokens}, {"blocks", s.blocks}, {"branches", s.branches}});
  }
  return "data: " + json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n\n";
}

}  // namespace kvstem_llama::server
