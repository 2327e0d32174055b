// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "capacity.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "input.hpp"

namespace kvstem::cli {

namespace {

struct Suffix {
  const char* name;
  double factor;
  Capacity::Unit unit;
};
using Unit = Capacity::Unit;
constexpr Suffix kSuffixes[] = {
    {"", 1, Unit::kBlocks},        {"%", 1, Unit::kPercent},      {"B", 1, Unit::kBytes},
    {"KiB", 0x1p10, Unit::kBytes}, {"MiB", 0x1p20, Unit::kBytes}, {"GiB", 0x1p30, Unit::kBytes},
    {"TiB", 0x1p40, Unit::kBytes}, {"kB", 1e3, Unit::kBytes},     {"MB", 1e6, Unit::kBytes},
    {"GB", 1e9, Unit::kBytes},     {"TB", 1e12, Unit::kBytes}};

/// A number and its unit. `bad(why)` makes the error.
template <class Bad>
std::pair<double, Unit> parse_number(const std::string& text, Bad&& bad) {
  const char* begin = text.c_str();
  char* end = nullptr;
  const double value = std::strtod(begin, &end);
  if (end == begin || !std::isfinite(value)) throw bad("is no number");
  if (value <= 0) throw bad("must be more than 0");
  for (const auto& [name, factor, unit] : kSuffixes) {
    if (std::string(end) != name) continue;
    if (unit == Unit::kBlocks && value != std::floor(value)) throw bad("blocks are whole numbers");
    return {value * factor, unit};
  }
  throw bad("is no unit that I know");
}

}  // namespace

Capacity Capacity::parse(const std::string& text) {
  const auto [value, unit] = parse_number(text, [&](const char* why) {
    return InputError("--capacity " + text + ": " + why +
                      "; write blocks (4096), percent of the distinct blocks (5%) or bytes (16GiB)");
  });
  return {text, value, unit};
}

double parse_bytes(const std::string& option, const std::string& text) {
  const auto bad = [&](const char* why) {
    return InputError(option + " " + text + ": " + why + "; write bytes with a unit (16GiB, 50GB)");
  };
  const auto [value, unit] = parse_number(text, bad);
  if (unit != Unit::kBytes) throw bad("has no unit of bytes");
  return value;
}

std::uint64_t Capacity::blocks(std::uint32_t distinct_blocks, std::uint32_t block_tokens,
                               double bytes_per_token) const {
  double blocks = value;
  if (unit == Unit::kPercent) blocks = std::max(1.0, value / 100 * distinct_blocks);
  if (unit == Unit::kBytes) {
    if (!(bytes_per_token > 0)) throw InputError("--capacity " + text + ": bytes need --bytes-per-token");
    blocks = value / bytes_per_token / block_tokens;
  }
  if (blocks < 1) throw InputError("--capacity " + text + ": is less than one block here; give more");
  return blocks < 0x1p62 ? static_cast<std::uint64_t>(blocks) : std::uint64_t{1} << 62;
}

}  // namespace kvstem::cli
