// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A point is a value on a timeline: "once this timeline has reached that value". Timelines are 64-bit counters that
// only grow, as in Vulkan's timeline semaphores; a device queue has one, and so has a host thread that finishes work.
//
// Points travel as plain data: the cache compares them with what was reported to it and waits for nothing itself.
//
//   Point after_step{kMyQueue, ++steps};
//   Status s = lease.commit(64, after_step);  // valid only once the step is done
//   ...                                 // later, when the step is known to be done:
//   s = cache.reach(after_step);
#pragma once

#include <cstdint>

namespace kvstem::inline v0 {

struct Point {
  std::uint32_t timeline = 0;  // which counter; small numbers that the host gives out
  std::uint64_t value = 0;     // 0 is reached from the beginning, on every timeline
  friend constexpr bool operator==(Point, Point) noexcept = default;
};

/// The point that is always reached: for hosts whose calls return when the work is done.
inline constexpr Point kNow{};

}  // namespace kvstem::inline v0
