// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Counts one piece of work; main.cpp says how.
#pragma once

#include <valgrind/callgrind.h>

#include <cstdint>
#include <cstdio>
#include <string>

#include "workload.hpp"

namespace bench {

template <class Work>
void count(const std::string& name, std::uint32_t times, std::uint32_t runs, Work&& work) {
  CALLGRIND_START_INSTRUMENTATION;  // empties the simulated caches
  CALLGRIND_ZERO_STATS;
  const bool right = work();
  CALLGRIND_DUMP_STATS_AT(name.c_str());
  CALLGRIND_STOP_INSTRUMENTATION;
  if (!right) fail(name + " did something else");
  std::printf("piece %s %u %u\n", name.c_str(), times, runs);
}
template <class Work>
void count(const std::string& name, std::uint32_t times, Work&& work) {
  count(name, times, 0, work);
}

}  // namespace bench
