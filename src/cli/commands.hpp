// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The subcommands. Each adds itself to the command line; what it does runs when the line was understood, throws
// InputError for what the user can mend, and returns the exit status.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace kvstem::cli {

using Command = std::function<int()>;

[[nodiscard]] Command add_replay(CLI::App& app);
[[nodiscard]] Command add_plan(CLI::App& app);
[[nodiscard]] Command add_trace(CLI::App& app);
[[nodiscard]] Command add_why(CLI::App& app);

}  // namespace kvstem::cli
