// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The two sources behind the flight log: one writes down every answer that another source gives, the other gives the
// answers that were written down. For the cache only.
#pragma once

#include <cstdint>

#include "kvstem/index/block_source.hpp"
#include "kvstem/observe/flight_log.hpp"

namespace kvstem::inline v0 {

template <BlockSource S>
class RecordingSource {
 public:
  RecordingSource(const S& source, FlightWriter& log) noexcept : source_(&source), log_(&log) {}

  [[nodiscard]] std::uint32_t blocks() const noexcept { return source_->blocks(); }
  [[nodiscard]] BlockKey key(BlockKey parent, std::uint32_t i) const noexcept {
    return put(source_->key(parent, i));
  }
  [[nodiscard]] BlockKey stored_key(BlockKey parent, const std::byte* stored) const noexcept {
    return put(source_->stored_key(parent, stored));
  }
  [[nodiscard]] std::uint32_t equal(const std::byte* stored, std::uint32_t i,
                                    std::uint32_t n) const noexcept {
    return put(source_->equal(stored, i, n));
  }
  std::uint32_t marks(std::uint32_t i, StoredMark* out) const noexcept { return put(source_->marks(i, out)); }
  [[nodiscard]] bool equal_marks(const std::byte* stored, std::uint32_t count,
                                 std::uint32_t i) const noexcept {
    return put(static_cast<std::uint32_t>(source_->equal_marks(stored, count, i))) != 0;
  }
  [[nodiscard]] std::uint32_t next_marked(std::uint32_t i) const noexcept {
    return put(source_->next_marked(i));
  }
  void copy(std::uint32_t i, std::uint32_t n, std::byte* out) const noexcept { source_->copy(i, n, out); }

 private:
  template <class T>
  T put(T answer) const noexcept {
    log_->put(answer);
    return answer;
  }
  const S* source_;
  FlightWriter* log_;
};

class ReplaySource {
 public:
  ReplaySource(FlightReader& log, FlightWriter& again, std::uint32_t blocks) noexcept
      : log_(&log), again_(&again), blocks_(blocks) {}

  [[nodiscard]] std::uint32_t blocks() const noexcept { return blocks_; }
  [[nodiscard]] BlockKey key(BlockKey, std::uint32_t) const noexcept { return get<BlockKey>(); }
  [[nodiscard]] BlockKey stored_key(BlockKey, const std::byte*) const noexcept { return get<BlockKey>(); }
  [[nodiscard]] std::uint32_t equal(const std::byte*, std::uint32_t, std::uint32_t n) const noexcept {
    return at_most(n);
  }
  std::uint32_t marks(std::uint32_t, StoredMark*) const noexcept { return at_most(kMaxMarksPerBlock); }
  [[nodiscard]] bool equal_marks(const std::byte*, std::uint32_t, std::uint32_t) const noexcept {
    return get<std::uint32_t>() != 0;
  }
  [[nodiscard]] std::uint32_t next_marked(std::uint32_t i) const noexcept {
    const std::uint32_t next = at_most(blocks_);
    return next < i ? blocks_ : next;
  }
  void copy(std::uint32_t, std::uint32_t, std::byte*) const noexcept {}

 private:
  template <class T>
  T get() const noexcept {
    const T answer = log_->get<T>();
    again_->put(answer);
    return answer;
  }
  // A damaged log must not lead outside of what was asked.
  std::uint32_t at_most(std::uint32_t n) const noexcept {
    const auto answer = get<std::uint32_t>();
    return answer < n ? answer : n;
  }
  FlightReader* log_;
  FlightWriter* again_;
  std::uint32_t blocks_;
};

}  // namespace kvstem::inline v0
