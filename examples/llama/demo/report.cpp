// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "report.hpp"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>

#include "serve.hpp"

namespace kvstem_llama::demo {

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const std::size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}

std::string text(const char* format, ...) {
  char line[512];
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  return line;
}

std::string grouped(std::uint64_t n) {
  const std::string digits = std::to_string(n);
  std::string out;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

std::string seconds(double s) { return s < 1 ? text("%.0f ms", s * 1e3) : text("%.2f s", s); }

namespace {

std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (const char c : s) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + "\"";
}

std::string number_text(double value) { return std::isfinite(value) ? text("%.10g", value) : "null"; }

const char* word(const Check& check) {
  switch (check.outcome) {
    case Outcome::kMet: return "met";
    case Outcome::kNotMet: return check.gate ? "WRONG" : "not met";
    case Outcome::kNotMeasured: return "not measured";
  }
  return "";
}

/// Each row's cells in columns as wide as they need to be; a row of one or two cells does not widen them.
void print_table(const std::vector<std::vector<std::string>>& rows, std::size_t wide) {
  std::vector<std::size_t> widths;
  for (const auto& row : rows) {
    if (row.size() < wide) continue;
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size())
        line += std::string(2 + (widths[i] > row[i].size() ? widths[i] - row[i].size() : 0), ' ');
    }
    std::printf("%s\n", line.c_str());
  }
}

}  // namespace

Json& Json::raw(const std::string& name, const std::string& value) {
  if (!fields_.empty()) fields_ += ", ";
  fields_ += quoted(name) + ": " + value;
  return *this;
}
Json& Json::number(const std::string& name, double value) { return raw(name, number_text(value)); }
Json& Json::string(const std::string& name, const std::string& value) { return raw(name, quoted(value)); }
Json& Json::object(const std::string& name, const Json& value) { return raw(name, value.write()); }

void Report::section(const std::string& name, const std::string& about) {
  if (!rows_.empty()) rows_.push_back({""});
  rows_.push_back({name + ": " + about});
  sections_.emplace_back(name, Json());
}

void Report::row(std::vector<std::string> cells) {
  cells.resize(kColumns);
  rows_.push_back(std::move(cells));
}

void Report::gate(const std::string& name, std::uint64_t value, std::uint64_t expected,
                  const std::string& unit) {
  checks_.push_back({.name = name,
                     .value = static_cast<double>(value),
                     .unit = unit,
                     .bar = "= " + grouped(expected),
                     .outcome = value == expected ? Outcome::kMet : Outcome::kNotMet,
                     .gate = true});
}

void Report::print() const {
  std::printf("\n");
  print_table(rows_, kColumns);
  std::vector<std::vector<std::string>> lines{{"check", "value", "bar", ""}};
  for (const Check& c : checks_)
    lines.push_back({c.name,
                     c.gate ? grouped(static_cast<std::uint64_t>(c.value)) + " " + c.unit
                            : text("%.3g ", c.value) + c.unit,
                     c.bar, word(c)});
  std::printf("\n");
  print_table(lines, 4);
  for (const std::string& note : notes_) std::printf("%s\n", note.c_str());
  std::printf("%s\n", good() ? "exactness and counts hold" : "EXACTNESS OR COUNTS DO NOT HOLD");
}

bool Report::good() const {
  return std::none_of(checks_.begin(), checks_.end(),
                      [](const Check& c) { return c.gate && c.outcome != Outcome::kMet; });
}

bool Report::write(const std::string& file, const std::string& model, std::uint64_t seed) const {
  std::FILE* out = std::fopen(file.c_str(), "w");
  if (out == nullptr) return false;
  std::string checks;
  for (const Check& c : checks_) {
    checks += checks.empty() ? "\n  {" : ",\n  {";
    checks += "\"name\": " + quoted(c.name) + ", \"value\": " + number_text(c.value) +
              ", \"unit\": " + quoted(c.unit) + ", \"bar\": " + quoted(c.bar) + ", \"ok\": " +
              (c.outcome == Outcome::kNotMeasured ? "null"
               : c.outcome == Outcome::kMet       ? "true"
                                                  : "false") +
              "}";
  }
  std::fprintf(out, "{\"checks\": [%s\n ],\n \"model\": %s,\n \"seed\": %llu", checks.c_str(),
               quoted(model).c_str(), static_cast<unsigned long long>(seed));
  for (const auto& [name, json] : sections_)
    std::fprintf(out, ",\n %s: %s", quoted(name).c_str(), json.write().c_str());
  std::fprintf(out, "\n}\n");
  return std::fclose(out) == 0;
}

Progress::Progress(bool quiet) : quiet_(quiet), terminal_(isatty(STDOUT_FILENO) != 0), start_(now()) {}

double Progress::elapsed() const { return now() - start_; }

void Progress::show(const std::string& what) {
  if (quiet_) return;
  const double at = elapsed();
  if (terminal_) {
    std::printf("\r\033[K%4.0f s  %s", at, what.c_str());
  } else if (last_ == 0 || at - last_ >= 20) {
    std::printf("%4.0f s  %s\n", at, what.c_str());
    last_ = at;
  }
  std::fflush(stdout);
}

void Progress::clear() {
  if (!quiet_ && terminal_) std::printf("\r\033[K");
}

}  // namespace kvstem_llama::demo
