// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What an engine could have told the cache about the requests of a trace.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trace.hpp"

namespace kvstem::cli {

enum class HintKind : std::uint8_t {
  kNone,
  /// What the trace says that an engine sees: the session, that a tool runs (its answer is expected in 15 s, the median of
  /// agents' tools), that a sub-agent ended its turn (it is over).
  kEngine,
  /// An oracle: sessions are found from the prompts, and the last request of each says that it is.
  kSession,
};

/// How well an oracle sees.
struct HintNoise {
  double recall = 1;      // of the sessions' ends, those that are told
  double false_ends = 0;  // of the other requests, those that say that the session is over
  std::uint64_t seed = 1;
};

struct RequestHint {
  std::uint64_t session = 0;  // 0: none
  bool over = false;
  std::uint32_t expect_reuse_ms = 0;  // after its end; 0: nobody knows
};

/// One for each request of the part; none for kNone.
[[nodiscard]] std::vector<RequestHint> hints_of(const Trace& trace, const TracePart& part, HintKind kind,
                                                const HintNoise& noise);

/// Throws InputError for a name that is none.
[[nodiscard]] HintKind hint_kind_named(const std::string& name);

}  // namespace kvstem::cli
