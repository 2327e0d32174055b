// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Steps and their results as bytes, for an executor in another process or for ranks that are told what one of them decided.
// A message says which version it is and carries the sender's digest of decisions (`Cache::decisions`), so that a rank that
// decides for itself can tell that it has decided the same. Every field has a fixed place, little-endian; what does not fit
// is refused whole. Golden bytes: tests/golden/steps.cpp.
//
//   std::vector<std::byte> message(encoded_bytes(entries.size()));
//   (void)encode_step(entries, cache.decisions(), message);
//   ... on the other side
//   StepEntry room[64];
//   const Result<DecodedStep> step = decode_step(message, room);      // step->entries, step->decisions
//
// For processes of one deployment that trust each other: nothing here is encrypted or signed. Threads: any. Cost: a copy.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include "kvstem/base/status.hpp"
#include "kvstem/cache/step.hpp"

namespace kvstem::inline v0 {

inline constexpr std::uint8_t kStepVersion = 1;

namespace detail {

enum class StepMessage : std::uint8_t { kStep = 1, kResults = 2 };
inline constexpr std::size_t kStepHeadBytes = 16, kStepEntryBytes = 88;

/// Fields in their order, to bytes and from them.
class StepWriter {
 public:
  explicit StepWriter(std::byte* at) noexcept : at_(at) {}
  template <class T>
  void put(T value) noexcept {
    static_assert(std::is_integral_v<T> || std::is_enum_v<T>);
    std::memcpy(at_, &value, sizeof value);
    at_ += sizeof value;
  }

 private:
  std::byte* at_;
};
class StepReader {
 public:
  explicit StepReader(const std::byte* at) noexcept : at_(at) {}
  template <class T>
  [[nodiscard]] T get() noexcept {
    T value;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return value;
  }

 private:
  const std::byte* at_;
};

inline void put_head(StepWriter& out, StepMessage kind, std::uint32_t count,
                     std::uint64_t decisions) noexcept {
  for (const char c : {'k', 'v'}) out.put(c);
  out.put(kStepVersion);
  out.put(kind);
  out.put(count);
  out.put(decisions);
}

inline void put_entry(StepWriter& out, const StepEntry& e, StatusCode status) noexcept {
  out.put(e.kind);
  out.put(e.group);
  out.put(status);
  out.put(std::uint8_t{0});
  for (const std::uint32_t field : {e.lease, e.generation, e.block, e.slot}) out.put(field);
  out.put(e.key.lo);
  out.put(e.key.hi);
  for (const Point point : {e.not_before, e.source_ready}) {
    out.put(point.timeline);
    out.put(point.value);
  }
  for (const std::uint32_t field : {e.from_slot, e.from_offset, e.offset, e.tokens}) out.put(field);
  for (int padding = 0; padding < 3; ++padding) out.put(std::uint32_t{0});
}

/// False for values that no version-1 sender writes.
[[nodiscard]] inline bool get_entry(StepReader& in, StepEntry& e, StatusCode& status) noexcept {
  e.kind = in.get<StepKind>();
  e.group = in.get<GroupId>();
  status = in.get<StatusCode>();
  bool right = in.get<std::uint8_t>() == 0 && e.kind <= StepKind::kCopy && status <= StatusCode::kUnsupported;
  for (std::uint32_t* field : {&e.lease, &e.generation, &e.block, &e.slot}) *field = in.get<std::uint32_t>();
  e.key.lo = in.get<std::uint64_t>();
  e.key.hi = in.get<std::uint64_t>();
  for (Point* point : {&e.not_before, &e.source_ready}) {
    point->timeline = in.get<std::uint32_t>();
    point->value = in.get<std::uint64_t>();
  }
  for (std::uint32_t* field : {&e.from_slot, &e.from_offset, &e.offset, &e.tokens})
    *field = in.get<std::uint32_t>();
  for (int padding = 0; padding < 3; ++padding) right = in.get<std::uint32_t>() == 0 && right;
  return right;
}

/// The head of a message whose entries find room in `room`.
[[nodiscard]] inline Result<std::uint32_t> check_head(std::span<const std::byte> bytes, StepMessage kind,
                                                      std::size_t room, std::uint64_t& decisions) noexcept {
  if (bytes.size() < kStepHeadBytes) return Status(StatusCode::kCorrupt, "a step message is cut short");
  StepReader in(bytes.data());
  const bool ours = in.get<char>() == 'k' && in.get<char>() == 'v';
  const auto version = in.get<std::uint8_t>();
  const bool right_kind = in.get<StepMessage>() == kind;
  const auto count = in.get<std::uint32_t>();
  decisions = in.get<std::uint64_t>();
  if (!ours) return Status(StatusCode::kCorrupt, "these bytes are no step message");
  if (version != kStepVersion)
    return Status(StatusCode::kUnsupported,
                  "a step message of another version: run one version of kvstem everywhere");
  if (!right_kind)
    return Status(StatusCode::kCorrupt, "a step where results were expected, or the other way round");
  if ((bytes.size() - kStepHeadBytes) / kStepEntryBytes != count ||
      (bytes.size() - kStepHeadBytes) % kStepEntryBytes != 0)
    return Status(StatusCode::kCorrupt, "a step message is cut short or too long");
  if (count > room)
    return Status(StatusCode::kOutOfRange, "more entries than there is room for: give decode more");
  return count;
}

}  // namespace detail

/// Bytes of a message with so many entries or results.
[[nodiscard]] constexpr std::size_t encoded_bytes(std::size_t entries) noexcept {
  return detail::kStepHeadBytes + entries * detail::kStepEntryBytes;
}

/// Writes a message to `out`, which must have encoded_bytes(entries.size()): else kOutOfRange, and nothing is written.
inline Status encode_step(std::span<const StepEntry> entries, std::uint64_t decisions,
                          std::span<std::byte> out) noexcept {
  if (out.size() != encoded_bytes(entries.size()))
    return {StatusCode::kOutOfRange, "encode_step needs encoded_bytes(entries) of room"};
  detail::StepWriter cursor(out.data());
  detail::put_head(cursor, detail::StepMessage::kStep, static_cast<std::uint32_t>(entries.size()), decisions);
  for (const StepEntry& e : entries) detail::put_entry(cursor, e, StatusCode::kOk);
  return {};
}

struct DecodedStep {
  std::span<const StepEntry> entries{};
  std::uint64_t decisions = 0;  // the sender's digest when it took the step
};
/// Reads a message into `room`. kCorrupt or kUnsupported for what is no message of this version, kOutOfRange if there is
/// too little room.
[[nodiscard]] inline Result<DecodedStep> decode_step(std::span<const std::byte> bytes,
                                                     std::span<StepEntry> room) noexcept {
  DecodedStep step;
  const auto count = detail::check_head(bytes, detail::StepMessage::kStep, room.size(), step.decisions);
  if (!count.ok()) return count.status();
  detail::StepReader cursor(bytes.data() + detail::kStepHeadBytes);
  StatusCode status{};
  for (StepEntry& e : room.first(*count))
    if (!detail::get_entry(cursor, e, status) || status != StatusCode::kOk)
      return Status(StatusCode::kCorrupt, "a step message holds values that no entry has");
  step.entries = room.first(*count);
  return step;
}

/// As `encode_step`, of results. Of a status only the code travels.
inline Status encode_results(std::span<const StepResult> results, std::uint64_t decisions,
                             std::span<std::byte> out) noexcept {
  if (out.size() != encoded_bytes(results.size()))
    return {StatusCode::kOutOfRange, "encode_results needs encoded_bytes(results) of room"};
  detail::StepWriter cursor(out.data());
  detail::put_head(cursor, detail::StepMessage::kResults, static_cast<std::uint32_t>(results.size()),
                   decisions);
  for (const StepResult& r : results) detail::put_entry(cursor, r.entry, r.status.code());
  return {};
}

struct DecodedResults {
  std::span<const StepResult> results{};
  std::uint64_t decisions = 0;
};
[[nodiscard]] inline Result<DecodedResults> decode_results(std::span<const std::byte> bytes,
                                                           std::span<StepResult> room) noexcept {
  DecodedResults decoded;
  const auto count = detail::check_head(bytes, detail::StepMessage::kResults, room.size(), decoded.decisions);
  if (!count.ok()) return count.status();
  detail::StepReader cursor(bytes.data() + detail::kStepHeadBytes);
  for (StepResult& r : room.first(*count)) {
    StatusCode status{};
    if (!detail::get_entry(cursor, r.entry, status))
      return Status(StatusCode::kCorrupt, "a step message holds values that no entry has");
    r.status = status == StatusCode::kOk ? Status() : Status(status, "reported by another process");
  }
  decoded.results = room.first(*count);
  return decoded;
}

}  // namespace kvstem::inline v0
