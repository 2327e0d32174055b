// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// How a call says that it could not do what was asked.
//
// A miss is never an error: a lookup that finds nothing returns an empty match. `Status` is for bad input, for
// something that ran out, and for damage. It holds a code to branch on and a fixed text that says what to do; it
// never allocates and never throws, so it may be returned on the engine's thread.
//
//   Result<Lease> lease = cache.acquire(prompt, {});
//   if (!lease.ok()) {
//     if (lease.status().code() == StatusCode::kExhausted) return wait_for_the_next_step();
//     return report(lease.status().message());
//   }
//   use(*lease);
#pragma once

#include <cassert>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

namespace kvstem::inline v0 {

enum class StatusCode : std::uint8_t {
  kOk = 0,
  kInvalidArgument,  // the call can never succeed as it stands: correct it
  kOutOfRange,       // a position, length or token id lies outside what was declared
  kExhausted,        // slots, leases or index memory ran out: retry after something was released
  kStale,            // the handle belongs to something that is gone: look it up again
  kWrongState,       // the call does not fit what was called before
  kCorrupt,          // stored bytes are not what was stored: it was dropped, treat it as a miss
  kUnavailable,      // the engine or the tier behind the call refused or failed
  kUnsupported,      // this build or this engine cannot do it
};

/// The code's name, as metrics and logs print it.
[[nodiscard]] constexpr const char* to_string(StatusCode code) noexcept {
  switch (code) {
    case StatusCode::kOk: return "ok";
    case StatusCode::kInvalidArgument: return "invalid_argument";
    case StatusCode::kOutOfRange: return "out_of_range";
    case StatusCode::kExhausted: return "exhausted";
    case StatusCode::kStale: return "stale";
    case StatusCode::kWrongState: return "wrong_state";
    case StatusCode::kCorrupt: return "corrupt";
    case StatusCode::kUnavailable: return "unavailable";
    case StatusCode::kUnsupported: return "unsupported";
  }
  return "unknown";
}

class [[nodiscard]] Status {
 public:
  /// Success.
  constexpr Status() noexcept = default;
  /// A failure. `message` must be a string literal (it is kept, not copied) and say what to do.
  constexpr Status(StatusCode code, const char* message) noexcept : message_(message), code_(code) {}

  [[nodiscard]] constexpr bool ok() const noexcept { return code_ == StatusCode::kOk; }
  [[nodiscard]] constexpr StatusCode code() const noexcept { return code_; }
  /// Never null; empty on success.
  [[nodiscard]] constexpr const char* message() const noexcept { return message_; }

 private:
  const char* message_ = "";
  StatusCode code_ = StatusCode::kOk;
};

/// A value, or the reason why there is none. `*result` and `result->` need `ok()`; debug builds assert it.
template <class T>
class [[nodiscard]] Result {
  static_assert(!std::is_reference_v<T> && !std::is_same_v<std::remove_cv_t<T>, Status>);

 public:
  Result(T value) noexcept(std::is_nothrow_move_constructible_v<T>) : value_(std::move(value)) {}
  Result(Status failure) noexcept : status_(failure) {
    assert(!failure.ok() && "a Result without a value needs a failure");
  }
  Result(Result&& other) noexcept(std::is_nothrow_move_constructible_v<T>) : status_(other.status_) {
    if (status_.ok()) ::new (static_cast<void*>(&value_)) T(std::move(other.value_));
  }
  Result(const Result&) = delete;
  Result& operator=(const Result&) = delete;
  Result& operator=(Result&&) = delete;
  ~Result() {
    if (status_.ok()) value_.~T();
  }

  [[nodiscard]] bool ok() const noexcept { return status_.ok(); }
  [[nodiscard]] Status status() const noexcept { return status_; }

  [[nodiscard]] T& operator*() & noexcept { return assert(ok()), value_; }
  [[nodiscard]] const T& operator*() const& noexcept { return assert(ok()), value_; }
  [[nodiscard]] T&& operator*() && noexcept { return assert(ok()), std::move(value_); }
  [[nodiscard]] T* operator->() noexcept { return assert(ok()), &value_; }
  [[nodiscard]] const T* operator->() const noexcept { return assert(ok()), &value_; }

 private:
  Status status_;
  union {
    T value_;
  };
};

}  // namespace kvstem::inline v0
