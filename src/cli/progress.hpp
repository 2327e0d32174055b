// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// One line on standard error that says how far the work is; nothing where that is no terminal.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <utility>

namespace kvstem::cli {

class Progress {
 public:
  explicit Progress(std::string what) : what_(std::move(what)) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }

  /// `fraction` is 0 to 1. Cheap enough for each request: it looks at the clock once in 64 calls.
  void at(double fraction) {
    static const bool kTerminal = isatty(STDERR_FILENO) != 0;
    if (!kTerminal || (++calls_ & 63) != 0) return;
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    shown_ = true;
    constexpr int kWidth = 30;
    const int filled = static_cast<int>(fraction * kWidth);
    std::fprintf(stderr, "\r%-40.40s [%.*s%.*s] %3.0f%%\033[K", what_.c_str(), filled,
                 "##############################", kWidth - filled, "                              ",
                 fraction * 100);
  }

 private:
  std::string what_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  unsigned calls_ = 0;
  bool shown_ = false;
};

}  // namespace kvstem::cli
