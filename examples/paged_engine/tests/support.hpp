// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What the tests of the paged engine share: models, seeds, and batches of several sequences.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "model.hpp"
#include "support/catch.hpp"

namespace paged::test {

using kvstem::TokenId;

inline std::string model(const std::string& name) { return std::string(KVSTEM_LLAMA_MODELS) + "/" + name; }
inline const std::string kTiny = model("tiny/llama.gguf");
inline const std::string kSmolLM2 = model("SmolLM2-135M-Instruct.Q4_1.gguf");

/// The run's seed: KVSTEM_SEED if set, else a new one. Printed, so that a failure can be repeated.
inline std::uint64_t seed(const char* test) {
  const char* given = std::getenv("KVSTEM_SEED");
  const std::uint64_t value = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cout << test << ": KVSTEM_SEED=" << value << "\n";
  return value;
}

inline std::unique_ptr<Model> load(const Model::Options& options) {
  std::string error;
  auto model = Model::load(options, error);
  INFO(options.file << ": " << error);
  REQUIRE(model != nullptr);
  CHECK(error.empty());
  return model;
}

inline std::vector<TokenId> random_tokens(std::mt19937_64& rng, std::size_t n, const Model& model) {
  std::vector<TokenId> tokens(n);
  for (TokenId& t : tokens) t = static_cast<TokenId>(rng() % model.shape().vocab);
  return tokens;
}

using Logits = std::vector<float>;  // of one row

inline bool same_bits(const Logits& a, const Logits& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// A sequence under test: its tokens, its slots, and the logits of those that were computed.
struct Sequence {
  std::vector<TokenId> tokens;
  std::vector<std::int32_t> slots;
  std::vector<Logits> logits{};
  [[nodiscard]] std::size_t left() const { return tokens.size() - logits.size(); }
};

/// Computes the next n[i] tokens of each sequence in one batch. Checks nothing, so that any thread may call it; false:
/// the model refused, and says why.
inline bool step(Model& model, const std::vector<Sequence*>& sequences, const std::vector<std::size_t>& n) {
  std::vector<Row> rows;
  std::vector<std::span<const std::int32_t>> tables;
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const Sequence& of = *sequences[s];
    tables.emplace_back(of.slots);
    for (std::size_t at = of.logits.size(); at < of.logits.size() + n[s]; ++at)
      rows.push_back({.token = of.tokens[at],
                      .position = static_cast<std::uint32_t>(at),
                      .table = static_cast<std::uint32_t>(s),
                      .logits = true});
  }
  const std::span<const float> all = model.forward({.rows = rows, .tables = tables});
  const std::size_t vocab = model.shape().vocab;
  if (all.size() != rows.size() * vocab) return false;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto row = all.subspan(i * vocab, vocab);
    sequences[rows[i].table]->logits.emplace_back(row.begin(), row.end());
  }
  return true;
}

/// Computes all that is left, `chunk` tokens at a time.
inline bool finish(Model& model, Sequence& sequence, std::size_t chunk) {
  while (sequence.left() > 0)
    if (!step(model, {&sequence}, {std::min(chunk, sequence.left())})) return false;
  return true;
}

/// The first row whose logits differ in a bit; -1: none.
inline int first_difference(const Sequence& a, const Sequence& b) {
  for (std::size_t i = 0; i < std::min(a.logits.size(), b.logits.size()); ++i)
    if (!same_bits(a.logits[i], b.logits[i])) return static_cast<int>(i);
  return a.logits.size() == b.logits.size() ? -1
                                            : static_cast<int>(std::min(a.logits.size(), b.logits.size()));
}

}  // namespace paged::test
