// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What one token of KV state costs for a model, from its file: a Hugging Face config.json or a GGUF file (version 2 or 3,
// little-endian), told apart by the first bytes. Of a GGUF file only what stands before the weights is read, so that its
// first megabytes do.
//
// A layer keeps K and V for each of its KV heads; with latent attention (kv_lora_rank) one vector for both. Layers without
// KV state (linear attention, state spaces) do not count where the file tells which they are. A sliding window is counted
// as full attention.
//
// The parameters of a config.json are an estimate from the shapes: embeddings, attention, MLP; of a mixture of experts
// only the experts that work on a token. Those of a GGUF file are counted, all experts included.
#pragma once

#include <cstdint>
#include <string>

#include "input.hpp"

namespace kvstem::cli {

struct ModelShape {
  std::string name;               // architecture
  std::uint32_t layers = 0;       // those that keep KV state
  double kv_bytes_per_token = 0;  // of all layers, K and V
  double parameters = 0;          // 0: not known
  double attention_width =
      0;               // query heads x their dimension, of one layer (the mean if they differ); 0: not known
  std::string caveat;  // one sentence if something is an upper bound or a guess, else empty

  /// The prompt's length at which attention costs as much as all else in prefill; 0 if not known. A token behind n others
  /// costs 2 operations for each parameter, and 4 n for each layer and unit of width; on average n is half the prompt.
  [[nodiscard]] double attention_equal_tokens() const;
};

/// `element_bytes`: of one element of K or V; 0: as the file says (torch_dtype or dtype of a config.json; 2 for GGUF).
/// Throws InputError for what is no such file, is cut off, or lacks what is needed.
[[nodiscard]] ModelShape read_model_shape(const std::string& path, double element_bytes);

}  // namespace kvstem::cli
