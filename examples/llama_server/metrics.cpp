// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "metrics.hpp"

#include <cstdio>
#include <utility>

namespace kvstem_llama::server {
namespace {

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

/// A label's value, as Prometheus wants it.
std::string escaped(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out;
}

std::string joined(const std::string& a, const std::string& b) {
  return a.empty() ? b : b.empty() ? a : a + "," + b;
}

void head(std::string& out, std::string_view name, std::string_view type, std::string_view help) {
  out.append("# HELP ").append(name).append(" ").append(help).append("\n# TYPE ").append(name);
  out.append(" ").append(type).append("\n");
}

void line(std::string& out, std::string_view name, const std::string& labels, const std::string& value) {
  out += name;
  if (!labels.empty()) out.append("{").append(labels).append("}");
  out.append(" ").append(value).append("\n");
}

}  // namespace

void Histogram::add(double seconds) {
  for (std::size_t i = 0; i < kBounds.size(); ++i) buckets_[i] += seconds <= kBounds[i];
  ++buckets_.back();
  sum_ += seconds;
}

void Histogram::write(std::string& out, std::string_view name, const std::string& labels) const {
  const std::string bucket = std::string(name) + "_bucket";
  for (std::size_t i = 0; i <= kBounds.size(); ++i)
    line(out, bucket,
         joined(labels, "le=\"" + (i < kBounds.size() ? number(kBounds[i]) : std::string("+Inf")) + "\""),
         std::to_string(buckets_[i]));
  line(out, std::string(name) + "_sum", labels, number(sum_));
  line(out, std::string(name) + "_count", labels, std::to_string(count()));
}

Metrics::Metrics(std::vector<std::string> tenants) : names_(std::move(tenants)), tenants_(names_.size()) {}

void Metrics::first_token(std::uint32_t tenant, double seconds) {
  const std::lock_guard lock(mutex_);
  tenants_[tenant].first_token.add(seconds);
}

void Metrics::finished(std::uint32_t tenant, Outcome outcome, const Report& report, double seconds) {
  const std::lock_guard lock(mutex_);
  TenantCounters& t = tenants_[tenant];
  ++t.outcomes[static_cast<std::size_t>(outcome)];
  t.whole.add(seconds);
  t.generated_tokens += report.new_tokens;
  if (report.forked) return;  // its prompt is another choice's
  t.queried_tokens += report.reused_tokens + report.computed_tokens;
  t.device_tokens += report.from_resident;
  t.host_tokens += report.from_host;
  t.frontier_tokens += report.from_frontier;
  t.overtaken += report.overtaken;
}

void Metrics::unstarted(std::uint32_t tenant, Outcome outcome) {
  const std::lock_guard lock(mutex_);
  ++tenants_[tenant].outcomes[static_cast<std::size_t>(outcome)];
}

void Metrics::set(const EngineState& state) {
  const std::lock_guard lock(mutex_);
  state_ = state;
}

EngineState Metrics::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

std::uint64_t Metrics::ended() const {
  const std::lock_guard lock(mutex_);
  std::uint64_t sum = 0;
  for (const TenantCounters& t : tenants_)
    for (const std::uint64_t n : t.outcomes) sum += n;
  return sum;
}

TenantCounters Metrics::counters(std::uint32_t tenant) const {
  const std::lock_guard lock(mutex_);
  return tenants_[tenant];
}

std::string Metrics::text(std::optional<std::uint32_t> tenant) const {
  std::vector<std::pair<std::string, TenantCounters>> shown;  // labels, counters
  EngineState engine;
  {
    const std::lock_guard lock(mutex_);
    for (std::uint32_t i = 0; i < tenants_.size(); ++i)
      if (!tenant || *tenant == i)
        shown.emplace_back(names_[i].empty() ? "" : "tenant=\"" + escaped(names_[i]) + "\"", tenants_[i]);
    engine = state_;
  }
  std::string out;
  const auto counter = [&](std::string_view name, std::string_view help, auto&& of) {
    head(out, name, "counter", help);
    for (const auto& [labels, t] : shown)
      of(labels, t, [&](const std::string& more, std::uint64_t value) {
        line(out, name, joined(labels, more), std::to_string(value));
      });
  };
  counter("kvstem_choices_total", "Choices that ended, by how.", [](const auto&, const auto& t, auto&& put) {
    for (std::size_t i = 0; i < kOutcomes.size(); ++i)
      put("outcome=\"" + std::string(kOutcomes[i]) + "\"", t.outcomes[i]);
  });
  counter("kvstem_cache_queried_tokens_total", "Prompt tokens of requests that ran.",
          [](const auto&, const auto& t, auto&& put) { put("", t.queried_tokens); });
  counter("kvstem_cache_hit_tokens_total",
          "Prompt tokens that were found, by tier: device (residents and running requests), host (blocks), "
          "frontier (the end of a turn, in host memory).",
          [](const auto&, const auto& t, auto&& put) {
            put("tier=\"device\"", t.device_tokens);
            put("tier=\"host\"", t.host_tokens);
            put("tier=\"frontier\"", t.frontier_tokens);
          });
  counter("kvstem_cache_missed_tokens_total", "Prompt tokens that were computed.",
          [](const auto&, const auto& t, auto&& put) {
            put("", t.queried_tokens - t.device_tokens - t.host_tokens - t.frontier_tokens);
          });
  counter("kvstem_generated_tokens_total", "Tokens of answers.",
          [](const auto&, const auto& t, auto&& put) { put("", t.generated_tokens); });
  counter("kvstem_overtaken_total", "How often a later request started before a waiting one.",
          [](const auto&, const auto& t, auto&& put) { put("", t.overtaken); });
  head(out, "kvstem_time_to_first_token_seconds", "histogram", "From a request to its first token.");
  for (const auto& [labels, t] : shown)
    t.first_token.write(out, "kvstem_time_to_first_token_seconds", labels);
  head(out, "kvstem_request_seconds", "histogram", "From a request to its end.");
  for (const auto& [labels, t] : shown) t.whole.write(out, "kvstem_request_seconds", labels);
  if (tenant) return out;

  const auto gauge = [&](std::string_view name, std::string_view help, std::uint64_t value) {
    head(out, name, name.substr(name.size() - 6) == "_total" ? "counter" : "gauge", help);
    line(out, name, "", std::to_string(value));
  };
  gauge("kvstem_slots", "Choices that can run at once.", engine.slots);
  gauge("kvstem_running", "Choices that run.", engine.running);
  gauge("kvstem_waiting", "Requests in line.", engine.waiting);
  gauge("kvstem_engine_steps_total", "Rounds of the engine.", engine.steps);
  gauge("kvstem_engine_cells", "Tokens that the engine can hold.", engine.cells);
  gauge("kvstem_resident_tokens", "Tokens of idle sequences that are kept in the engine.",
        engine.resident_tokens);
  gauge("kvstem_host_blocks", "Blocks that fit into host memory.", engine.host_blocks);
  gauge("kvstem_host_blocks_used", "Blocks in host memory.", engine.host_blocks_used);
  gauge("kvstem_block_bytes", "Bytes of a block.", engine.block_bytes);
  gauge("kvstem_exported_bytes_total", "From the engine to host memory.", engine.exported_bytes);
  gauge("kvstem_imported_bytes_total", "From host memory to the engine.", engine.imported_bytes);
  gauge("kvstem_forks_total", "Choices that began with another's state.", engine.forks);
  gauge("kvstem_evicted_blocks_total", "Blocks that left host memory for others.", engine.evicted_blocks);
  return out;
}

}  // namespace kvstem_llama::server
