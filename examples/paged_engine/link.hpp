// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Two ranks of one engine, as two processes on one machine: jobs on one socket, the heads of each layer on another.
// Errors: a rank that is gone ends the other's calls with false.
#pragma once

#include <string>
#include <utility>

#include "device.hpp"
#include "model.hpp"

namespace paged {

class Link final : public Gather {
 public:
  /// Call it before fork(): `first` is for the parent, `second` for the child; each closes the other's. Both are unusable
  /// if there are no sockets to be had.
  static std::pair<Link, Link> pair();

  Link(Link&& other) noexcept;
  Link& operator=(Link&&) = delete;
  ~Link() override { close(); }
  void close();
  /// Ends all calls of both ranks, also those that wait.
  void stop();

  [[nodiscard]] unsigned rank() const { return rank_; }
  [[nodiscard]] bool usable() const { return jobs_ >= 0 && heads_ >= 0; }

  /// Rank 0 sends its job; rank 1 replaces its own by it. False, and why: they are not the same, or the other is gone.
  bool agree(Job& job, std::string& error);
  bool gather(std::span<float> all, std::uint32_t rows, std::uint32_t row_floats, std::uint32_t own_begin,
              std::uint32_t own_floats) override;

 private:
  Link(unsigned rank, int jobs, int heads) : rank_(rank), jobs_(jobs), heads_(heads) {}

  unsigned rank_;
  int jobs_, heads_;
  std::vector<float> mine_, theirs_;
};

/// A job as bytes, and back; false if the bytes are none.
std::vector<std::byte> encode(const Job& job);
bool decode(std::span<const std::byte> bytes, Job& job);

}  // namespace paged
