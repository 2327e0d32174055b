// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Checks against bars, as a table and as JSON.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

namespace bench {

/// A median with its quartiles.
struct Spread {
  double middle, low, high;
};

class Report {
 public:
  /// `measured` is false where noise leaves the question open: then the bar is neither met nor missed.
  void at_most(std::string name, Spread value, const char* unit, double bar, bool measured) {
    checks_.push_back({std::move(name), value, unit, "<=", bar, measured, value.middle <= bar});
  }
  void at_least(std::string name, Spread value, const char* unit, double bar, bool measured) {
    checks_.push_back({std::move(name), value, unit, ">=", bar, measured, value.middle >= bar});
  }

  /// A figure that is held to nothing.
  void figure(std::string name, Spread value, const char* unit) {
    figures_.push_back({std::move(name), value, unit, "", 0, false, true});
  }

  void print() const {
    std::printf("\n%-50s %8s %17s  %-12s %-8s\n", "check", "value", "quartiles", "unit", "bar");
    for (const Check& c : checks_)
      std::printf("%-50s %8.3f %8.3f-%8.3f  %-12s %s %-5g %s\n", c.name.c_str(), c.value.middle, c.value.low,
                  c.value.high, c.unit, c.sense, c.bar,
                  !c.measured ? "not measured" : (c.met ? "met" : "NOT MET"));
    for (const Check& c : figures_)
      std::printf("%-50s %8.3f %8.3f-%8.3f  %s\n", c.name.c_str(), c.value.middle, c.value.low, c.value.high,
                  c.unit);
  }

  [[nodiscard]] bool write(const char* path) const {
    std::FILE* file = std::fopen(path, "w");
    if (file == nullptr) {
      std::perror(path);
      return false;
    }
    std::fputs("{\"checks\": [\n", file);
    for (std::size_t i = 0; i < checks_.size(); ++i) {
      const Check& c = checks_[i];
      std::fprintf(file,
                   " {\"name\": \"%s\", \"value\": %.4f, \"unit\": \"%s\", \"bar\": \"%s %g\", \"ok\": %s, "
                   "\"quartiles\": [%.4f, %.4f]}%s\n",
                   c.name.c_str(), c.value.middle, c.unit, c.sense, c.bar,
                   !c.measured ? "null" : (c.met ? "true" : "false"), c.value.low, c.value.high,
                   i + 1 < checks_.size() ? "," : "");
    }
    std::fputs("]", file);
    for (const Check& c : figures_)
      std::fprintf(file, ",\n \"%s\": {\"value\": %.4f, \"unit\": \"%s\", \"quartiles\": [%.4f, %.4f]}",
                   c.name.c_str(), c.value.middle, c.unit, c.value.low, c.value.high);
    std::fputs("}\n", file);
    return std::fclose(file) == 0;
  }

 private:
  struct Check {
    std::string name;
    Spread value;
    const char* unit;
    const char* sense;
    double bar;
    bool measured, met;
  };
  std::vector<Check> checks_, figures_;
};

}  // namespace bench
