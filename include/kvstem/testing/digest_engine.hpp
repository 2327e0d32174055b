// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// An opaque engine without a model: the "state" of a position is a digest of every token up to it. So whoever hands a
// sequence the wrong bytes is found out by the next look at it. For tests of the opaque host and of code on top of it;
// not fast.
//
// Each of the four functions can be told to fail, and exported bytes can be told to arrive damaged; what an engine may
// refuse (a gap, a range that is not there, a full pool) it refuses. `mistakes` counts calls that no host should make.
//
//   DigestEngine engine({.cells = 4096, .sequences = 8, .sequence_tokens = 512});
//   engine.compute(sequence, token);
//   assert(engine.holds(sequence, tokens));
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/host/opaque_host.hpp"

namespace kvstem::inline v0 {

class DigestEngine {
 public:
  /// Asked before each call; true makes it fail with kUnavailable.
  enum class Call : std::uint8_t { kExport, kImport, kShare, kDrop };
  std::function<bool(Call)> fail;
  /// Calls that break the contract of OpaqueEngine: gaps, ranges that are not there, wrong sizes.
  std::uint64_t mistakes = 0;
  std::uint64_t exported = 0, imported = 0, shared = 0;  // tokens

  explicit DigestEngine(EngineCapacity capacity) : capacity_(capacity), sequences_(capacity.sequences) {}

  /// Appends one token's state.
  void compute(SequenceId sequence, TokenId token) {
    auto& s = at(sequence);
    s.push_back(next(s.empty() ? kSeed : s.back(), token));
  }
  /// Whether the sequence holds the state of exactly these tokens.
  [[nodiscard]] bool holds(SequenceId sequence, std::span<const TokenId> tokens) const {
    const auto& s = at(sequence);
    if (s.size() != tokens.size()) return false;
    std::uint64_t digest = kSeed;
    for (std::size_t i = 0; i < tokens.size(); ++i)
      if ((digest = next(digest, tokens[i])) != s[i]) return false;
    return true;
  }
  [[nodiscard]] std::size_t length(SequenceId sequence) const { return at(sequence).size(); }

  [[nodiscard]] std::size_t range_bytes(GroupId, TokenRange range) const noexcept {
    return range.size() * sizeof(std::uint64_t);
  }
  Status export_range(SequenceId sequence, GroupId group, TokenRange range, std::span<std::byte> out) {
    auto& s = at(sequence);
    if (range.begin > range.end || range.end > s.size() || out.size() != range_bytes(group, range))
      return mistake();
    if (fail && fail(Call::kExport)) return failure();
    std::memcpy(out.data(), s.data() + range.begin, out.size());
    exported += range.size();
    return {};
  }
  Status import_range(SequenceId sequence, GroupId group, TokenRange range, std::span<const std::byte> in) {
    auto& s = at(sequence);
    if (range.begin != s.size() || range.end < range.begin || range.end > capacity_.sequence_tokens ||
        in.size() != range_bytes(group, range))
      return mistake();
    if (fail && fail(Call::kImport)) return failure();
    s.resize(range.end);
    std::memcpy(s.data() + range.begin, in.data(), in.size());
    imported += range.size();
    return {};
  }
  Status share_range(SequenceId from, SequenceId to, TokenRange range) {
    auto& f = at(from);
    auto& t = at(to);
    if (from == to || range.begin != t.size() || range.end < range.begin || range.end > f.size())
      return mistake();
    if (fail && fail(Call::kShare)) return failure();
    t.insert(t.end(), f.begin() + range.begin, f.begin() + range.end);
    shared += range.size();
    return {};
  }
  Status drop_range(SequenceId sequence, TokenRange range) {
    auto& s = at(sequence);
    if (range.end != kToEnd) return mistake();
    // Emptying a sequence never fails; no host could go on without it.
    if (range.begin > 0 && fail && fail(Call::kDrop)) return failure();
    if (range.begin < s.size()) s.resize(range.begin);
    return {};
  }
  [[nodiscard]] std::string describe() const { return "kvstem digest engine 1"; }
  [[nodiscard]] EngineCapacity capacity() const noexcept { return capacity_; }

 private:
  static constexpr std::uint64_t kSeed = 0x6b767374656dull;
  static std::uint64_t next(std::uint64_t digest, TokenId token) {
    const std::uint64_t input[] = {digest, static_cast<std::uint64_t>(token)};
    return XXH3_64bits(input, sizeof input);
  }
  Status mistake() noexcept {
    ++mistakes;
    return {StatusCode::kOutOfRange, "this call breaks the contract of an opaque engine"};
  }
  static Status failure() noexcept { return {StatusCode::kUnavailable, "told to fail"}; }
  [[nodiscard]] std::vector<std::uint64_t>& at(SequenceId s) {
    return sequences_.at(static_cast<std::size_t>(s));
  }
  [[nodiscard]] const std::vector<std::uint64_t>& at(SequenceId s) const {
    return sequences_.at(static_cast<std::size_t>(s));
  }

  EngineCapacity capacity_;
  std::vector<std::vector<std::uint64_t>> sequences_;
};

static_assert(OpaqueEngine<DigestEngine>);

}  // namespace kvstem::inline v0
