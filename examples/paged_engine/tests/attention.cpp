// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "support.hpp"

using namespace paged;
using namespace paged::test;

namespace {

std::unique_ptr<CpuAttention> make(const CpuAttention::Options& options) {
  std::string error;
  auto attention = CpuAttention::create(options, error);
  INFO(error);
  REQUIRE(attention != nullptr);
  return attention;
}

std::vector<float> random_floats(std::mt19937_64& rng, std::size_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> floats(n);
  for (float& x : floats) x = normal(rng);
  return floats;
}

/// A sequence's state and questions, and what it attends to by the definition, in doubles.
struct Case {
  std::vector<float> k, v, q;  // [tokens][heads][head_dim]
  std::vector<std::int32_t> slots{};
  std::uint32_t tokens;

  Case(std::mt19937_64& rng, const CpuAttention::Options& o, std::uint32_t n)
      : k(random_floats(rng, std::size_t{n} * o.kv_heads * o.head_dim)),
        v(random_floats(rng, k.size())),
        q(random_floats(rng, k.size() * o.group)),
        tokens(n) {}

  std::vector<double> expected(const CpuAttention::Options& o, std::uint32_t row, std::uint32_t head) const {
    const std::size_t dim = o.head_dim, kv = head / o.group;
    std::vector<double> weights(row + 1), out(dim);
    for (std::uint32_t t = 0; t <= row; ++t) {
      double dot = 0;
      for (std::size_t d = 0; d < dim; ++d)
        dot += double{q[(row * o.kv_heads * o.group + head) * dim + d]} *
               double{k[(t * o.kv_heads + kv) * dim + d]};
      weights[t] = std::exp(dot / std::sqrt(static_cast<double>(dim)));
    }
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (std::uint32_t t = 0; t <= row; ++t)
      for (std::size_t d = 0; d < dim; ++d)
        out[d] += weights[t] / sum * double{v[(t * o.kv_heads + kv) * dim + d]};
    return out;
  }
};

/// Computes rows [begin, end) of some cases in one batch; returns what they attend to, one after the other.
std::vector<float> compute(CpuAttention& attention, const std::vector<const Case*>& cases,
                           const std::vector<std::pair<std::uint32_t, std::uint32_t>>& ranges,
                           unsigned parts) {
  const CpuAttention::Options& o = attention.options();
  const std::size_t width = std::size_t{o.kv_heads} * o.head_dim;
  std::vector<Row> rows;
  std::vector<std::span<const std::int32_t>> tables;
  std::vector<float> k, v, q;
  for (std::size_t s = 0; s < cases.size(); ++s) {
    const Case& c = *cases[s];
    const auto [begin, end] = ranges[s];
    tables.emplace_back(c.slots);
    for (std::uint32_t at = begin; at < end; ++at)
      rows.push_back({.token = 0, .position = at, .table = static_cast<std::uint32_t>(s)});
    const auto append = [&](std::vector<float>& to, const std::vector<float>& from, std::size_t floats) {
      to.insert(to.end(), from.data() + begin * floats, from.data() + end * floats);
    };
    append(k, c.k, width);
    append(v, c.v, width);
    append(q, c.q, width * o.group);
  }
  std::vector<float> out(q.size(), std::numeric_limits<float>::quiet_NaN());
  const Batch batch{.rows = rows, .tables = tables};
  const std::uint32_t layer = o.layers - 1;
  for (unsigned part = 0; part < parts; ++part)
    attention.store(layer, batch, k.data(), v.data(), part, parts);
  for (unsigned part = 0; part < parts; ++part)
    attention.attend(layer, batch, q.data(), out.data(), part, parts);
  return out;
}

}  // namespace

TEST_CASE("rows attend to what the definition says, and to the same bits in any company") {
  std::mt19937_64 rng(seed("attention"));
  double largest = 0;
  for (int round = 0; round < 60; ++round) {
    constexpr std::uint32_t kDims[] = {16, 32, 48, 64, 80, 128};
    CpuAttention::Options o{.layers = 2,
                            .kv_heads = static_cast<std::uint32_t>(1 + rng() % 3),
                            .group = static_cast<std::uint32_t>(1 + rng() % 14),
                            .head_dim = kDims[rng() % std::size(kDims)],
                            .block_tokens = static_cast<std::uint32_t>(16 * (1 + rng() % 3)),
                            .slots = 64,
                            .tokens = 200,
                            .parts = 3};
    auto attention = make(o);
    for (std::uint32_t s = 0; s < o.slots; ++s)  // nothing of what was never written may be seen
      std::ranges::fill(attention->block(s), std::byte{0xff});
    std::vector<std::int32_t> slots(o.slots);
    std::iota(slots.begin(), slots.end(), 0);
    std::ranges::shuffle(slots, rng);
    std::vector<Case> cases;
    for (int i = 0; i < 3; ++i) {
      Case& c = cases.emplace_back(rng, o, 1 + static_cast<std::uint32_t>(rng() % 200));
      for (std::uint32_t b = 0; b * o.block_tokens < c.tokens; ++b) {
        c.slots.push_back(slots.back());
        slots.pop_back();
      }
    }
    const std::size_t width = std::size_t{o.kv_heads} * o.group * o.head_dim;
    const auto all = compute(*attention, {&cases[0], &cases[1], &cases[2]},
                             {{0, cases[0].tokens}, {0, cases[1].tokens}, {0, cases[2].tokens}},
                             1 + static_cast<unsigned>(rng() % 3));
    std::size_t before = 0;
    for (const Case& c : cases) {
      const std::span<const float> together(all.data() + before * width, c.tokens * width);
      before += c.tokens;
      for (const std::uint32_t row : {0u, c.tokens / 2, c.tokens - 1})
        for (std::uint32_t h = 0; h < o.kv_heads * o.group; ++h) {
          const auto expected = c.expected(o, row, h);
          for (std::size_t d = 0; d < o.head_dim; ++d) {
            const double is = together[row * width + h * o.head_dim + d];
            if (!(std::abs(is - expected[d]) <= largest)) largest = std::abs(is - expected[d]);
          }
        }
      // Again in pieces; the first pass left state behind each row, which must not matter.
      std::vector<float> pieces;
      for (std::uint32_t at = 0; at < c.tokens;) {
        const std::uint32_t end = std::min(c.tokens, at + 1 + static_cast<std::uint32_t>(rng() % 9));
        const auto piece = compute(*attention, {&c}, {{at, end}}, 1 + static_cast<unsigned>(rng() % 3));
        pieces.insert(pieces.end(), piece.begin(), piece.end());
        at = end;
      }
      CHECK(std::memcmp(pieces.data(), together.data(), pieces.size() * sizeof(float)) == 0);
    }
  }
  std::cout << "attention: largest difference to the definition " << largest << "\n";
  CHECK(largest < 2e-6);
}

TEST_CASE("scores of any size are weighed rightly") {
  const CpuAttention::Options o{.layers = 1,
                                .kv_heads = 1,
                                .group = 1,
                                .head_dim = 16,
                                .block_tokens = 16,
                                .slots = 4,
                                .tokens = 40,
                                .parts = 1};
  auto attention = make(o);
  std::mt19937_64 rng(1);
  for (const float size : {0.0f, 1e-3f, 10.0f, 1000.0f}) {
    Case c(rng, o, 40);
    c.slots = {2, 0, 3};
    for (float& x : c.q) x *= size;
    const auto out = compute(*attention, {&c}, {{0, 40}}, 1);
    for (const std::uint32_t row : {0u, 15u, 16u, 39u}) {
      if (size > 100) {  // one weight is 1
        std::vector<double> dots(row + 1);
        for (std::uint32_t t = 0; t <= row; ++t)
          dots[t] = std::inner_product(&c.q[row * 16], &c.q[row * 16] + 16, &c.k[t * 16], 0.0);
        std::vector<double> sorted = dots;
        std::ranges::sort(sorted);
        if (row > 0 && sorted[row] - sorted[row - 1] < 200) continue;
        const auto best = static_cast<std::size_t>(std::ranges::max_element(dots) - dots.begin());
        for (std::size_t d = 0; d < 16; ++d) CHECK(out[row * 16 + d] == c.v[best * 16 + d]);
        continue;
      }
      const auto expected = c.expected(o, row, 0);
      for (std::size_t d = 0; d < 16; ++d) CHECK(std::abs(double{out[row * 16 + d]} - expected[d]) < 2e-6);
    }
  }
}

TEST_CASE("a copy of some positions is what was computed there, and nothing else changes") {
  const CpuAttention::Options o{.layers = 2,
                                .kv_heads = 2,
                                .group = 1,
                                .head_dim = 32,
                                .block_tokens = 32,
                                .slots = 4,
                                .tokens = 64,
                                .parts = 1};
  auto attention = make(o);
  std::mt19937_64 rng(2);
  for (std::uint32_t s = 0; s < o.slots; ++s)
    for (std::byte& b : attention->block(s)) b = static_cast<std::byte>(rng() % 100);
  const auto floats = [&](std::uint32_t slot) {
    const auto bytes = attention->block(slot);
    std::vector<float> copy(bytes.size() / sizeof(float));
    std::memcpy(copy.data(), bytes.data(), bytes.size());
    return copy;
  };
  /// Where a number of a position lies, written down a second time.
  const auto index = [&](std::uint32_t list, std::uint32_t position, std::uint32_t d, bool value) {
    const std::size_t chunk = (std::size_t{list} * 2 + position / 16) * 2 * 16 * 32;
    return chunk + (value ? 16 * 32 + position % 16 * 32 + d : d * 16 + position % 16);
  };
  const auto from = floats(1), before = floats(3);
  REQUIRE(attention->copy(1, 10, 3, 3, 13));
  auto expected = before;
  for (std::uint32_t list = 0; list < 4; ++list)
    for (std::uint32_t t = 0; t < 13; ++t)
      for (std::uint32_t d = 0; d < 32; ++d)
        for (const bool value : {false, true})
          expected[index(list, 3 + t, d, value)] = from[index(list, 10 + t, d, value)];
  CHECK(floats(3) == expected);
  CHECK(floats(1) == from);

  REQUIRE(attention->copy(1, 0, 1, 16, 16));
  CHECK(attention->copy(0, 32, 3, 32, 0));
  CHECK_FALSE(attention->copy(1, 0, 1, 15, 16));
  CHECK_FALSE(attention->copy(1, 5, 1, 5, 1));
  CHECK_FALSE(attention->copy(4, 0, 0, 0, 1));
  CHECK_FALSE(attention->copy(0, 0, 4, 0, 1));
  CHECK_FALSE(attention->copy(0, 1, 1, 0, 32));
  CHECK_FALSE(attention->copy(0, 0, 1, 33, 0));
  CHECK_FALSE(attention->copy(0, 0, 1, 1, 0xffffffff));
  CHECK(floats(3) == expected);
}

TEST_CASE("wrong options of a pool are refused with a reason") {
  const auto refusal = [](auto&& change) {
    CpuAttention::Options o{.layers = 1,
                            .kv_heads = 1,
                            .group = 1,
                            .head_dim = 16,
                            .block_tokens = 16,
                            .slots = 4,
                            .tokens = 40,
                            .parts = 1};
    change(o);
    std::string error;
    CHECK(CpuAttention::create(o, error) == nullptr);
    return error;
  };
  using O = CpuAttention::Options;
  for (const std::uint32_t n : {0u, 1u, 15u, 24u}) {
    CHECK(refusal([&](O& o) { o.block_tokens = n; }) == "block_tokens must be a multiple of 16");
    CHECK(refusal([&](O& o) { o.head_dim = n; }) == "head_dim must be a multiple of 16");
  }
  CHECK_FALSE(refusal([](O& o) { o.slots = 0; }).empty());
  CHECK_FALSE(refusal([](O& o) { o.parts = 0; }).empty());
  CHECK(refusal([](O& o) { o.slots = 0xffffffff, o.layers = 100; }).find("memory") != std::string::npos);
  CHECK(refusal([](O& o) { o.slots = o.layers = o.kv_heads = 0xffffffff; }).find("memory") !=
        std::string::npos);
}
