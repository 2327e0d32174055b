// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Which traces, and which part of each: the options that all commands share.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "trace.hpp"

namespace kvstem::cli {

/// A trace that was read, and what all commands ask of it first.
struct LoadedTrace {
  Trace trace;
  TracePart part;
  std::uint32_t distinct_blocks = 0;
  std::uint64_t input_tokens = 0;  // of the counted requests

  [[nodiscard]] std::size_t requests() const { return part.end - part.counted; }
};

struct TraceOptions {
  std::vector<std::string> paths;
  std::uint32_t block_tokens = 0;  // 0: found from the lengths
  double from = 0, to = 1, warm_up = 0;

  void add_to(CLI::App& app);
  /// Throws InputError for fractions that are none.
  void check() const;
  /// Throws InputError for a file that is no trace, and for one in which nothing can be cached.
  [[nodiscard]] LoadedTrace load(const std::string& path) const;
};

}  // namespace kvstem::cli
