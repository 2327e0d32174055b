// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The pool of KV blocks, and attention over block tables.
//
// `Attention` is all that the model asks of them, so that a GPU can take over; `CpuAttention` is the CPU's.
//
// Guarantees: what a row of a batch attends to depends on its own sequence alone, bit for bit: not on the other rows,
// their number, the slots of its blocks, or the number of threads. Of the pool it reads positions 0 to its own;
// what else is there has no effect.
// Cost: 2 * layers * kv heads * head_dim floats of memory for a token; zeroed memory that nobody wrote costs nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvstem/base/ids.hpp"

namespace paged {

/// One token to compute.
struct Row {
  kvstem::TokenId token = 0;
  std::uint32_t position = 0;
  std::uint32_t table = 0;  // index in Batch::tables: its sequence
  bool logits = false;      // wanted after this token
};

/// Tokens of any sequences; those of one in ascending order, and fastest if they follow each other. A table lists the
/// slots of a sequence's blocks, up to the last row's at least.
struct Batch {
  std::span<const Row> rows{};
  std::span<const std::span<const std::int32_t>> tables{};
};

/// Calls of `store` and `attend` are one for each thread that takes part: `part` of `parts`. Between a layer's last
/// `store` and its first `attend` the threads wait for each other.
class Attention {
 public:
  virtual ~Attention() = default;
  /// Writes keys and values [rows][kv heads][head_dim] of the batch to the blocks.
  virtual void store(std::uint32_t layer, const Batch& batch, const float* k, const float* v, unsigned part,
                     unsigned parts) = 0;
  /// out = softmax(q k / sqrt(head_dim)) v, over the positions 0 to its own for each row; q and out are
  /// [rows][kv heads * group][head_dim].
  virtual void attend(std::uint32_t layer, const Batch& batch, const float* q, float* out, unsigned part,
                      unsigned parts) = 0;
  /// Copies positions of one block to another, for all layers and heads. False, and nothing was copied: no such
  /// positions, or the ranges overlap.
  virtual bool copy(std::uint32_t from_slot, std::uint32_t from_offset, std::uint32_t to_slot,
                    std::uint32_t to_offset, std::uint32_t tokens) = 0;
  [[nodiscard]] virtual std::size_t bytes_per_block() const = 0;
};

class CpuAttention final : public Attention {
 public:
  struct Options {
    std::uint32_t layers = 0;
    std::uint32_t kv_heads = 0;      // held here; a rank may hold some of the model's
    std::uint32_t group = 1;         // query heads of each
    std::uint32_t head_dim = 0;      // a multiple of 16
    std::uint32_t block_tokens = 0;  // a multiple of 16
    std::uint32_t slots = 0;
    std::uint32_t tokens = 0;  // most that a sequence may have
    unsigned parts = 1;        // most threads
  };
  /// Null, and why, if the options are wrong or there is not enough memory.
  static std::unique_ptr<CpuAttention> create(const Options& options, std::string& error);

  void store(std::uint32_t layer, const Batch& batch, const float* k, const float* v, unsigned part,
             unsigned parts) override;
  void attend(std::uint32_t layer, const Batch& batch, const float* q, float* out, unsigned part,
              unsigned parts) override;
  bool copy(std::uint32_t from_slot, std::uint32_t from_offset, std::uint32_t to_slot,
            std::uint32_t to_offset, std::uint32_t tokens) override;
  [[nodiscard]] std::size_t bytes_per_block() const override;
  [[nodiscard]] const Options& options() const { return o_; }
  /// All bytes of one block, zero at first.
  [[nodiscard]] std::span<std::byte> block(std::uint32_t slot) const;

 private:
  struct Unmap {
    std::size_t bytes;
    void operator()(float* pool) const;
  };

  explicit CpuAttention(const Options& options);
  [[nodiscard]] float* chunk(std::uint32_t slot, std::uint32_t layer, std::uint32_t head,
                             std::uint32_t offset) const;

  Options o_;
  // A block is [layers][kv heads][block_tokens / 16] chunks of 16 tokens, each keys [head_dim][16], then values
  // [16][head_dim]: either way 16 floats in a row are what one instruction takes.
  std::unique_ptr<float, Unmap> pool_;
  std::vector<float> scores_;  // of each part
};

}  // namespace paged
