// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "hints.hpp"

#include <random>

namespace kvstem::cli {
namespace {

/// A request goes on with the earlier one whose whole prompt is on its path, the longest such prompt, of several the latest.
/// Of those that go on with one, the first is the same session, and the others are new ones.
std::vector<RequestHint> sessions_of(const Trace& trace, const TracePart& part) {
  constexpr std::uint32_t kNobody = ~std::uint32_t{0};
  std::vector<RequestHint> hints(part.end - part.begin);
  std::vector<std::uint32_t> ends_at(trace.distinct_blocks(),
                                     kNobody);  // by node: the latest that ends there
  std::uint64_t sessions = 0;
  for (std::uint32_t i = 0; i < hints.size(); ++i) {
    const auto path = trace.path(part.begin + i);
    std::uint32_t before = kNobody;
    for (std::size_t b = path.size(); b-- > 0 && before == kNobody;) before = ends_at[path[b]];
    hints[i] = {.session = 0, .over = true, .expect_reuse_ms = 0};
    if (before != kNobody && hints[before].over) hints[i].session = hints[before].session;
    if (hints[i].session == 0) hints[i].session = ++sessions;
    if (before != kNobody) hints[before].over = false;
    if (!path.empty()) ends_at[path.back()] = i;
  }
  return hints;
}

}  // namespace

std::vector<RequestHint> hints_of(const Trace& trace, const TracePart& part, HintKind kind,
                                  const HintNoise& noise) {
  if (kind == HintKind::kNone) return {};
  if (kind == HintKind::kSession) {
    std::vector<RequestHint> hints = sessions_of(trace, part);
    std::mt19937_64 rng(noise.seed);
    for (RequestHint& hint : hints) {
      const double dice = static_cast<double>(rng() >> 11) * 0x1p-53;
      hint.over = dice < (hint.over ? noise.recall : noise.false_ends);
    }
    return hints;
  }
  constexpr std::uint32_t kToolMs = 15'000;
  std::vector<RequestHint> hints(part.end - part.begin);
  for (std::size_t i = 0; i < hints.size(); ++i) {
    const TraceRequest& request = trace.requests[part.begin + i];
    hints[i].session = request.session;
    hints[i].over = request.subagent && request.stop == StopReason::kEndTurn;
    if (request.stop == StopReason::kToolUse) hints[i].expect_reuse_ms = kToolMs;
  }
  return hints;
}

HintKind hint_kind_named(const std::string& name) {
  if (name == "none") return HintKind::kNone;
  if (name == "engine") return HintKind::kEngine;
  if (name == "session") return HintKind::kSession;
  throw InputError("--hints " + name + ": is none that I know; there are none, engine, session");
}

}  // namespace kvstem::cli
