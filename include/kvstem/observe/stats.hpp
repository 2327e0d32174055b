// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What happened, as plain numbers that only grow, always with both sides: queried tokens are hit tokens plus missed
// tokens, and a test says so. Read them on the cache's thread and copy them wherever they are shown.
#pragma once

#include <cstdint>

namespace kvstem::inline v0 {

struct CacheStats {
  std::uint64_t requests = 0;        // leases that ended, but those aborted before they reserved or committed
  std::uint64_t queried_tokens = 0;  // tokens of their prompts
  std::uint64_t hit_tokens = 0;      // found ready when the lease was acquired (or refreshed)
  std::uint64_t missed_tokens = 0;   // the rest
  std::uint64_t inserted_blocks = 0;     // became ready
  std::uint64_t evicted_blocks = 0;      // left to make room
  std::uint64_t forks = 0;               // leases that were forked from others
  std::uint64_t copied_blocks = 0;       // copied because two leases shared them and one wrote
  std::uint64_t onboarded_blocks = 0;    // brought up from elsewhere, as far as it succeeded
  std::uint64_t evicted_shares = 0;      // of windows and states, that left without their block
  std::uint64_t failed_loads = 0;        // blocks dropped because their bytes could not be loaded or copied
  std::uint64_t failed_stores = 0;       // blocks that could not be stored
  std::uint64_t duplicate_blocks = 0;    // computed although somebody else had stored them first
  std::uint64_t unpublished_blocks = 0;  // not kept: no slot or no index memory, everything is in use
  std::uint64_t refused_requests = 0;    // acquire, reserve or fork that failed
  std::uint64_t lost_changes = 0;        // change records that nobody took in time
};

}  // namespace kvstem::inline v0
