// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "state_blob.hpp"

#include <cstring>

namespace kvstem_llama {
namespace {

constexpr std::uint32_t kMagic = 0xaf143cd8;
constexpr std::size_t kHeader = 16, kCell = 12, kLayersHeader = 8, kSectionHeader = 12;

template <class T>
T get(std::span<const std::byte> blob, std::size_t at) noexcept {
  T value;
  std::memcpy(&value, blob.data() + at, sizeof value);
  return value;
}

template <class T>
void put(std::span<std::byte> blob, std::size_t at, T value) noexcept {
  std::memcpy(blob.data() + at, &value, sizeof value);
}

}  // namespace

bool StateForm::learn(std::span<const std::byte> blob, std::uint32_t cells) {
  *this = StateForm();
  if (read(blob, cells)) return true;
  *this = StateForm();
  return false;
}

bool StateForm::read(std::span<const std::byte> blob, std::uint32_t cells) {
  std::size_t at = kHeader + cells * kCell;
  if (cells == 0 || blob.size() < at + kLayersHeader) return false;
  for (std::uint32_t i = 0; i < cells; ++i)
    if (get<std::uint32_t>(blob, kHeader + i * kCell + 4) != 1) return false;
  layers_ = get<std::uint32_t>(blob, at + 4);
  at += kLayersHeader;
  while (at < blob.size()) {
    if (blob.size() - at < kSectionHeader) return false;
    const Section section{get<std::int32_t>(blob, at), get<std::uint64_t>(blob, at + 4)};
    at += kSectionHeader;
    if (section.row == 0 || section.row > (blob.size() - at) / cells) return false;
    at += section.row * cells;
    row_bytes_ += section.row;
    sections_.push_back(section);
  }
  // K for every layer; V may be part of K in some.
  return layers_ > 0 && sections_.size() >= layers_ && sections_.size() <= 2 * layers_ &&
         frame_fits(blob, cells);
}

std::size_t StateForm::bytes(std::uint32_t cells) const noexcept {
  if (cells == 0) return 0;
  return kHeader + kLayersHeader + sections_.size() * kSectionHeader +
         std::size_t{cells} * (kCell + row_bytes_);
}

bool StateForm::frame_fits(std::span<const std::byte> blob, std::uint32_t cells) const noexcept {
  if (cells == 0 || layers_ == 0 || blob.size() != bytes(cells)) return false;
  if (get<std::uint32_t>(blob, 0) != kMagic || get<std::uint32_t>(blob, 8) != 1 ||
      get<std::uint32_t>(blob, 12) != cells)
    return false;
  std::size_t at = kHeader + cells * kCell;
  if (get<std::uint32_t>(blob, at) != 0 || get<std::uint32_t>(blob, at + 4) != layers_) return false;
  at += kLayersHeader;
  for (const Section& section : sections_) {
    if (get<std::int32_t>(blob, at) != section.type || get<std::uint64_t>(blob, at + 4) != section.row)
      return false;
    at += kSectionHeader + section.row * cells;
  }
  return true;
}

bool StateForm::holds(std::span<const std::byte> blob, kvstem::TokenRange range) const noexcept {
  if (!frame_fits(blob, range.size()) || get<std::int32_t>(blob, 4) != 0) return false;
  for (std::uint32_t i = 0; i < range.size(); ++i) {
    const std::size_t cell = kHeader + i * kCell;
    if (get<std::uint32_t>(blob, cell) != range.begin + i || get<std::uint32_t>(blob, cell + 4) != 1 ||
        get<std::int32_t>(blob, cell + 8) != 0)
      return false;
  }
  return true;
}

bool StateForm::canonicalise(std::span<std::byte> blob, kvstem::TokenRange range) const {
  const std::uint32_t n = range.size();
  if (!frame_fits(blob, n)) return false;
  put<std::int32_t>(blob, 4, 0);
  bool in_order = true;
  for (std::uint32_t i = 0; i < n; ++i) {
    const std::size_t cell = kHeader + i * kCell;
    if (get<std::uint32_t>(blob, cell + 4) != 1) return false;
    put<std::int32_t>(blob, cell + 8, 0);
    in_order = in_order && get<std::uint32_t>(blob, cell) == range.begin + i;
  }
  if (in_order) return true;

  constexpr std::uint32_t kNone = kvstem::kToEnd;
  std::vector<std::uint32_t> source(n, kNone);  // by position: which cell holds it
  for (std::uint32_t i = 0; i < n; ++i) {
    const std::uint32_t offset = get<std::uint32_t>(blob, kHeader + i * kCell) - range.begin;
    if (offset >= n || source[offset] != kNone) return false;
    source[offset] = i;
  }
  std::vector<std::byte> rows;
  std::size_t at = kHeader + n * kCell + kLayersHeader;
  for (const Section& section : sections_) {
    at += kSectionHeader;
    rows.assign(blob.data() + at, blob.data() + at + section.row * n);
    for (std::uint32_t i = 0; i < n; ++i)
      std::memcpy(blob.data() + at + i * section.row, rows.data() + source[i] * section.row, section.row);
    at += section.row * n;
  }
  for (std::uint32_t i = 0; i < n; ++i) put<std::uint32_t>(blob, kHeader + i * kCell, range.begin + i);
  return true;
}

}  // namespace kvstem_llama
