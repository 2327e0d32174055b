// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A model of the llama architecture with its KV in blocks of ours: weights from a GGUF file, products by ggml, attention
// over block tables by attention.hpp. A batch holds rows of any sequences, prompts and answers mixed.
//
// Several ranks may compute one model together: each holds some of the kv heads, and after attention a `Gather` puts the
// heads of all ranks side by side. The rest is computed by every rank in full, so all get the same logits.
//
// Guarantees: the logits and the state of a row depend on its own sequence alone, bit for bit, whatever the type of the
// weights: not on the other rows of the batch, the slots, the threads, or how many ranks there are. (On one machine;
// another CPU or build of ggml may round otherwise.) No call aborts, whatever its arguments. A call that is refused
// changes nothing; one whose gather failed leaves the KV of its rows undefined.
// Threads: one call at a time; `threads` of them work, the caller's among them.
// Cost: the file is mapped, so ranks on one machine share its memory. Nothing grows but with the largest batch so far.
// Rows that do not depend on each other cost nothing for 4-bit weights; for f32, f16, bf16 and q8_0, up to half of
// prefill's speed, because ggml's tiled products are out.
//
//   std::string error;
//   auto model = paged::Model::load({.file = "model.gguf", .threads = 2, .slots = 64}, error);
//   const std::int32_t slots[] = {7, 3};
//   const std::span<const std::int32_t> tables[] = {slots};
//   const paged::Row row{.token = 42, .position = 0, .table = 0, .logits = true};
//   std::span<const float> logits = model->forward({.rows = {&row, 1}, .tables = tables});
//   if (logits.empty()) die(model->error());
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "attention.hpp"

namespace paged {

struct Shape {
  std::uint32_t layers = 0;
  std::uint32_t embd = 0;
  std::uint32_t ff = 0;
  std::uint32_t heads = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t head_dim = 0;
  std::uint32_t vocab = 0;
  std::uint32_t context = 0;  // tokens that a sequence may have
  float rope_base = 0;
  float eps = 0;
};

/// kv heads [begin, end) of the model; {0, 0}: all.
struct HeadRange {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
};

/// Where ranks exchange what their heads computed.
class Gather {
 public:
  virtual ~Gather() = default;
  /// `all` is [rows][row_floats], with this rank's [own_begin, own_begin + own_floats) of each row filled in. Fills in
  /// what the other ranks have. All ranks call it in the same order, with the same rows. False: a rank is missing, and
  /// `forward` fails.
  virtual bool gather(std::span<float> all, std::uint32_t rows, std::uint32_t row_floats,
                      std::uint32_t own_begin, std::uint32_t own_floats) = 0;
};

class Model {
 public:
  struct Options {
    std::string file{};  // mapped: it must not change while the model lives
    unsigned threads = 1;
    std::uint32_t slots = 0;  // blocks of the KV pool
    std::uint32_t block_tokens = 16;
    HeadRange heads{};
    Gather* gather = nullptr;  // outlives the model; needed if `heads` are not all
  };
  /// Null, and why, if the file is no model of this kind, an option is wrong, or there is not enough memory.
  static std::unique_ptr<Model> load(const Options& options, std::string& error);

  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  ~Model();

  [[nodiscard]] const Shape& shape() const;
  /// Computes a batch. Returns the logits of the rows that ask for them, [n][vocab], valid until the next call: empty
  /// if none did, or if it failed, and then `error` says why.
  std::span<const float> forward(const Batch& batch);
  /// Why the last `forward` failed; empty if it did not.
  [[nodiscard]] const std::string& error() const;
  /// As Attention::copy.
  bool copy(std::uint32_t from_slot, std::uint32_t from_offset, std::uint32_t to_slot,
            std::uint32_t to_offset, std::uint32_t tokens);
  /// The KV pool, of this rank's heads.
  [[nodiscard]] CpuAttention& attention();

 private:
  struct State;
  explicit Model(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace paged
