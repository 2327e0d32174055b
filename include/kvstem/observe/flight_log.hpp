// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A record of everything that a cache was told and of every answer that its decisions rest on: keys, lengths, results of
// comparisons. Never token ids. Replaying it through a cache (cache/replay.hpp) gives the same decisions and, with a
// log of its own, the same bytes; so a bug, a benchmark or a "what if" travels as a file without anybody's text.
//
// Off unless a sink is set. The sink is called on the cache's thread, once or more for each call of the cache; it
// must not throw and should only copy. A record may arrive in several pieces.
//
//   std::vector<std::byte> log;
//   options.flight_log = {[](void* user, std::span<const std::byte> bytes) noexcept {
//     auto& out = *static_cast<std::vector<std::byte>*>(user);
//     out.insert(out.end(), bytes.begin(), bytes.end());
//   }, &log};
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

namespace kvstem::inline v0 {

struct FlightSink {
  void (*write)(void* user, std::span<const std::byte> bytes) = nullptr;
  void* user = nullptr;
};

/// What a record is about. Numbers are part of the format.
enum class FlightOp : std::uint8_t {
  kScope = 1,
  kAcquire,
  kRefresh,
  kReserve,
  kAppend,
  kCommit,
  kRelease,
  kAbort,
  kReach,
  kEndStep,
  kTakeStep,
  kComplete,
  kFork,
  kTruncate,
  kCommitAccepted,
  kOnboard,
};

/// Writes fields in the machine's byte order (little-endian, see block_key.hpp) through a small buffer.
class FlightWriter {
 public:
  FlightWriter() noexcept = default;
  explicit FlightWriter(FlightSink sink) noexcept : sink_(sink) {}

  [[nodiscard]] bool on() const noexcept { return sink_.write != nullptr; }

  template <class T>
  void put(const T& value) noexcept {
    static_assert(std::has_unique_object_representations_v<T> && sizeof(T) <= 64, "no padding in a format");
    if (on()) write(&value, sizeof(T));
  }
  void flush() noexcept {
    if (used_ > 0) sink_.write(sink_.user, {buffer_, used_});
    used_ = 0;
  }

 private:
  // Apart, so that a log that is off costs its callers a comparison each and no code.
  [[gnu::noinline]] void write(const void* value, std::size_t bytes) noexcept {
    if (used_ + bytes > sizeof buffer_) flush();
    std::memcpy(buffer_ + used_, value, bytes);
    used_ += bytes;
  }

  FlightSink sink_{};
  std::size_t used_ = 0;
  std::byte buffer_[4096];
};

/// Reads what a FlightWriter wrote. After the end or a short field, `failed()` is true and every value is zero.
class FlightReader {
 public:
  explicit FlightReader(std::span<const std::byte> log) noexcept : log_(log) {}

  template <class T>
  [[nodiscard]] T get() noexcept {
    T value{};
    if (log_.size() - at_ < sizeof(T)) {
      failed_ = true;
      at_ = log_.size();
      return value;
    }
    std::memcpy(&value, log_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  [[nodiscard]] bool done() const noexcept { return at_ == log_.size(); }
  [[nodiscard]] bool failed() const noexcept { return failed_; }
  [[nodiscard]] std::size_t position() const noexcept { return at_; }

 private:
  std::span<const std::byte> log_;
  std::size_t at_ = 0;
  bool failed_ = false;
};

}  // namespace kvstem::inline v0
