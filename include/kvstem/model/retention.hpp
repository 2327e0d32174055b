// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// How long the state of a request should be kept after it ended. A wish, never a promise: memory decides. Plain data.
//
//   Status s = lease.release({.keep = Keep::kCold});            // this conversation will not come back
#pragma once

#include <cstdint>

namespace kvstem::inline v0 {

enum class Keep : std::uint8_t {
  kNormal,  // as the policy sees fit
  kCold,    // first to go, but not gone: a wrong "it is over" must be cheap
};

struct Retention {
  Keep keep = Keep::kNormal;
  friend constexpr bool operator==(Retention, Retention) noexcept = default;
};

}  // namespace kvstem::inline v0
