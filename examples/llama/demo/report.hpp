// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What the demo shows: one table, checks with their bars, a JSON file of the same, and a line that moves while it works.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace kvstem_llama::demo {

/// Of unsorted values; 0 <= q <= 1. 0 for none.
double quantile(std::vector<double> values, double q);
inline double median(const std::vector<double>& values) { return quantile(values, 0.5); }

/// printf into a string.
[[gnu::format(printf, 1, 2)]] std::string text(const char* format, ...);
/// 12345678 as "12,345,678".
std::string grouped(std::uint64_t n);
std::string seconds(double s);

/// Two arms measured side by side: for each pair, how many times the one takes what the other takes.
struct Ratio {
  std::vector<double> values{};
  [[nodiscard]] double middle() const { return median(values); }
  [[nodiscard]] double low() const { return quantile(values, 0.25); }
  [[nodiscard]] double high() const { return quantile(values, 0.75); }
};

enum class Outcome : std::uint8_t { kMet, kNotMet, kNotMeasured };

/// The longest part of a run of a workload that two equal arms may differ by: beyond it nothing is "met".
inline constexpr double kNoise = 0.02;

/// kMet or kNotMet; kNotMeasured where two equal arms differed by more than kNoise.
inline Outcome judged(bool met, double equal_arms) {
  if (equal_arms > 1 + kNoise || equal_arms < 1 / (1 + kNoise)) return Outcome::kNotMeasured;
  return met ? Outcome::kMet : Outcome::kNotMet;
}

struct Check {
  std::string name{};
  double value = 0;
  std::string unit{};
  std::string bar{};
  Outcome outcome = Outcome::kMet;
  bool gate = false;  // exactness or a count: the program fails if it is not met
};

/// A flat JSON object, built field by field.
class Json {
 public:
  Json& number(const std::string& name, double value);
  Json& string(const std::string& name, const std::string& value);
  Json& object(const std::string& name, const Json& value);
  [[nodiscard]] std::string write() const { return "{" + fields_ + "}"; }

 private:
  Json& raw(const std::string& name, const std::string& value);
  std::string fields_;
};

class Report {
 public:
  static constexpr std::size_t kColumns = 5;  // what, then no reuse, kvstem, ceiling, and the comparison

  /// `bars`: whether speeds are held to bars. They were set for one model; others are only shown.
  explicit Report(bool bars) : bars_(bars) {}

  /// A heading inside the table, and the name under which figures go to JSON from here on.
  void section(const std::string& name, const std::string& about);
  void row(std::vector<std::string> cells);
  /// A field of the section's JSON.
  Json& json() { return sections_.back().second; }

  /// A count that must be as it is, or the program fails.
  void gate(const std::string& name, std::uint64_t value, std::uint64_t expected, const std::string& unit);
  /// A speed that is shown beside its bar.
  void bar(const Check& check) {
    if (bars_) checks_.push_back(check);
  }
  void note(const std::string& line) { notes_.push_back(line); }

  void print() const;
  /// False if the file cannot be written.
  [[nodiscard]] bool write(const std::string& file, const std::string& model, std::uint64_t seed) const;
  [[nodiscard]] bool good() const;

 private:
  bool bars_;
  std::vector<std::vector<std::string>> rows_;
  std::vector<Check> checks_;
  std::vector<std::string> notes_;
  std::vector<std::pair<std::string, Json>> sections_;
};

/// On a terminal a line that is written over; elsewhere a line every 20 seconds.
class Progress {
 public:
  explicit Progress(bool quiet = false);
  void show(const std::string& what);
  void clear();
  [[nodiscard]] double elapsed() const;

 private:
  bool quiet_, terminal_;
  double start_, last_ = 0;
};

}  // namespace kvstem_llama::demo
