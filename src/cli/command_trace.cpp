// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <cstdint>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "commands.hpp"
#include "input.hpp"
#include "output.hpp"
#include "synthetic.hpp"

namespace kvstem::cli {
namespace {

struct Options {
  std::string kind, out = "-";
  SyntheticOptions synthetic;
};

SyntheticKind kind_named(const std::string& name) {
  for (const auto& [known, kind] : {std::pair{"agents", SyntheticKind::kAgents},
                                    {"chat", SyntheticKind::kChat},
                                    {"shared", SyntheticKind::kShared}})
    if (name == known) return kind;
  throw InputError("trace " + name + ": is no kind that I know; there are agents, chat, shared");
}

int run(const Options& options) {
  SyntheticOptions synthetic = options.synthetic;
  synthetic.kind = kind_named(options.kind);
  if (!(synthetic.requests_per_second >= 0.001 && synthetic.requests_per_second <= 1000))
    throw InputError("--requests-per-second: must be 0.001 to 1000");
  if (options.out.empty()) throw InputError("--out: is an empty name");
  std::optional<OutputFile> file;
  if (options.out != "-") file.emplace(options.out);
  {
    Progress progress("trace " + options.kind);
    write_synthetic(synthetic, file ? file->stream() : std::cout, progress);
  }
  if (file)
    file->commit();
  else if (!std::cout.flush())
    throw InputError("standard output: could not be written: " + std::generic_category().message(errno));
  return 0;
}

}  // namespace

Command add_trace(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  Options& o = *options;
  app.add_option("KIND", o.kind,
                 "agents (coding agents: long sessions, tools, sub-agents), chat (short conversations) or "
                 "shared (questions about a few long documents)")
      ->required()
      ->option_text("KIND");
  app.add_option("--requests", o.synthetic.requests, "How many requests, 1 to 10000000; one a line")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  app.add_option("--seed", o.synthetic.seed, "For what is random; the same seed gives the same trace")
      ->check(CLI::Range(std::uint64_t{0}, std::numeric_limits<std::uint64_t>::max() / 2))
      ->capture_default_str();
  app.add_option("--block-tokens", o.synthetic.block_tokens, "Tokens for each hash id, 1 to 1024")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--requests-per-second", o.synthetic.requests_per_second,
                 "Requests per second on average, 0.001 to 1000; more means more sessions at a time")
      ->capture_default_str();
  app.add_option("--out", o.out, "Write to this file, in Mooncake's JSON lines; - is standard output")
      ->capture_default_str();
  return [options] { return run(*options); };
}

}  // namespace kvstem::cli
