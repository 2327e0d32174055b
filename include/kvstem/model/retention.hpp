// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// How long the state of a request should be kept after it ended. A wish, never a promise: memory decides. Plain data.
//
//   Status s = lease.release({.keep = Keep::kCold});                                // this conversation is over
//   Status s = lease.release({.expect_reuse_at_ms = now + 8'000});                  // a tool runs, back in about 8 s
//   Status s = lease.release({.keep = Keep::kHigh, .until_ms = now + 3'600'000});   // a paying guest, for an hour
//
// kCold is understood by every policy; the rest by those wrapped in `Hinted` (policy/hinted.hpp), which also stops to
// believe kCold of sessions that come back all the same. Times are those of AcquireOptions::now_ms: an engine that does not
// give it has no times, and nothing expires.
#pragma once

#include <cstdint>

namespace kvstem::inline v0 {

enum class Keep : std::uint8_t {
  kNormal,  // as the policy sees fit
  kCold,    // first to go, but not gone: a wrong "it is over" must be cheap
  kHigh,    // last to go, until `until_ms`, which must be given
};

struct Retention {
  Keep keep = Keep::kNormal;
  std::uint64_t until_ms = 0;            // when kHigh expires
  std::uint64_t expect_reuse_at_ms = 0;  // when it is likely used again; 0: nobody knows
  friend constexpr bool operator==(Retention, Retention) noexcept = default;
};

}  // namespace kvstem::inline v0
