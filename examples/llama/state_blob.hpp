// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The bytes that llama.cpp writes for a range of a sequence, brought to one canonical form.
//
// As llama_state_seq_get_data writes them, they depend on more than the range: they hold the id of the sequence, and
// the cells in the order in which they happen to lie in the cache. In the canonical form the id is 0 and positions
// ascend, so equal state gives equal bytes, wherever it lay. And since llama.cpp takes positions from such bytes
// unseen, `holds` checks all that is not tensor data before they go back in. Tensor data cannot be checked here: the
// cache keeps a checksum of it.
//
// The form (llama.cpp 0c1e57098, one stream, V not transposed; native byte order):
//   u32 magic, i32 sequence, u32 streams = 1, u32 cells
//   cells times {i32 position, u32 sequences = 1, i32 sequence}
//   u32 v_transposed = 0, u32 layers
//   for K of each layer, then V of each layer: i32 type, u64 bytes in a row, one row for each cell
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvstem/base/ids.hpp"

namespace kvstem_llama {

/// What is the same in all blobs of one model and context: learnt from the first.
class StateForm {
 public:
  /// Reads the form from a blob that llama.cpp wrote for `cells` cells. False if it is not written as stated above; no blob
  /// fits then.
  [[nodiscard]] bool learn(std::span<const std::byte> blob, std::uint32_t cells);

  /// Bytes of a blob of `cells` cells (0 for none).
  [[nodiscard]] std::size_t bytes(std::uint32_t cells) const noexcept;

  /// True if `blob` is in canonical form and says of itself that it holds exactly the positions of `range`.
  [[nodiscard]] bool holds(std::span<const std::byte> blob, kvstem::TokenRange range) const noexcept;

  /// Brings a blob, fresh from llama.cpp, to its canonical form. False if it does not hold exactly the positions of
  /// `range`; its content is then undefined. Allocates only if the cells are out of order.
  [[nodiscard]] bool canonicalise(std::span<std::byte> blob, kvstem::TokenRange range) const;

 private:
  struct Section {  // K or V of a layer
    std::int32_t type;
    std::uint64_t row;
  };
  [[nodiscard]] bool read(std::span<const std::byte> blob, std::uint32_t cells);
  [[nodiscard]] bool frame_fits(std::span<const std::byte> blob, std::uint32_t cells) const noexcept;

  std::vector<Section> sections_;
  std::uint32_t layers_ = 0;
  std::size_t row_bytes_ = 0;  // of all sections together
};

}  // namespace kvstem_llama
