// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "input.hpp"
#include "kvstem/base/version.hpp"

namespace {

/// One line, whatever the text holds.
int refuse(std::string text) {
  for (char& c : text)
    if (c == '\n') c = ' ';
  while (text.ends_with(' ')) text.pop_back();
  std::fprintf(stderr, "kvstem: %s\n", text.c_str());
  return 2;
}

/// The exit status.
int run(std::vector<std::string> arguments) {
  using namespace kvstem::cli;
  CLI::App app{"What a prefix-aware KV cache would give your traffic.", "kvstem"};
  app.require_subcommand(1);
  app.set_version_flag("--version", std::to_string(kvstem::kVersion.major) + "." +
                                        std::to_string(kvstem::kVersion.minor) + "." +
                                        std::to_string(kvstem::kVersion.patch));
  app.get_formatter()->column_width(44);
  std::vector<std::pair<CLI::App*, Command>> commands;
  const auto add = [&](const char* name, const char* what, Command (*add_options)(CLI::App&)) {
    CLI::App* command = app.add_subcommand(name, what);
    commands.emplace_back(command, add_options(*command));
  };
  add("replay",
      "Replay traces through the real cache, for policies and capacities, with the optimum beside them",
      &add_replay);
  add("plan", "How much memory to buy: what LRU finds at every size, by tier, and what that gains",
      &add_plan);
  add("trace", "Write a trace of synthetic traffic with stated properties", &add_trace);
  add("why", "Why prompts miss: where they leave the tree of earlier prompts, and what that costs", &add_why);
  try {
    std::ranges::reverse(arguments);  // as this parser takes them
    app.parse(std::move(arguments));
    for (const auto& [command, work] : commands)
      if (command->parsed()) {
        const int status = work();
        if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
          throw InputError("standard output could not be written");
        return status;
      }
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // help and version
    return refuse(std::string(e.what()) + "; see --help");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + std::min(argc, 1), argv + argc});
  } catch (const kvstem::cli::InputError& e) {
    return refuse(e.what());
  } catch (const std::bad_alloc&) {
    return refuse("not enough memory for this");
  } catch (const std::exception& e) {
    return refuse(std::string("a bug, please report it: ") + e.what());
  }
}
