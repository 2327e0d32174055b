// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "trace_options.hpp"

#include <cmath>
#include <optional>

namespace kvstem::cli {

void TraceOptions::add_to(CLI::App& app) {
  app.add_option("TRACE", paths, "Mooncake JSON lines, plain, gzip or zstd; - is standard input")
      ->required()
      ->option_text("TRACE...");
  app.add_option("--trace-block-tokens", block_tokens,
                 "Tokens for each hash id, 1 to 1024; else found from the lengths")
      ->check(CLI::Range(1, 1024));
  app.add_option("--from", from, "Where it begins, as a fraction of the requests")->capture_default_str();
  app.add_option("--to", to, "Where it ends, as a fraction of the requests")->capture_default_str();
  app.add_option("--warm-up", warm_up, "Fraction of these requests that only fill the cache")
      ->capture_default_str();
}

void TraceOptions::check() const {
  if (!(from >= 0 && from < to && to <= 1))
    throw InputError("--from and --to are fractions, 0 <= from < to <= 1");
  if (!(warm_up >= 0 && warm_up < 1)) throw InputError("--warm-up is a fraction, 0 or more and less than 1");
}

LoadedTrace TraceOptions::load(const std::string& path) const {
  LoadedTrace loaded;
  loaded.trace = read_trace(path, block_tokens == 0 ? std::nullopt : std::optional(block_tokens));
  const Trace& trace = loaded.trace;
  const auto at = [&](double fraction) {
    return static_cast<std::size_t>(std::llround(fraction * static_cast<double>(trace.requests.size())));
  };
  TracePart& part = loaded.part;
  part = {at(from), 0, at(to)};
  part.counted = part.begin +
                 static_cast<std::size_t>(std::llround(warm_up * static_cast<double>(part.end - part.begin)));
  if (part.counted >= part.end)
    throw InputError(trace.name + ": --from, --to and --warm-up leave no request to count");
  loaded.distinct_blocks = distinct_blocks(trace, part);
  if (loaded.distinct_blocks == 0)
    throw InputError(path + ": no prompt has a whole block of " + std::to_string(trace.block_tokens) +
                     " tokens, so nothing can be cached");
  for (std::size_t i = part.counted; i < part.end; ++i) loaded.input_tokens += trace.requests[i].input_tokens;
  return loaded;
}

}  // namespace kvstem::cli
