// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "attention.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

namespace paged {
namespace {

constexpr std::size_t kLanes = 16;
constexpr std::size_t kMost = 12;  // pairs of a row and a query head that share what they load

using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));
using IntLanes = std::int32_t __attribute__((vector_size(kLanes * sizeof(float))));

// By reference, since how such values are passed depends on the processor.
void load(Lanes& to, const float* from) { std::memcpy(&to, from, sizeof to); }
void store(float* to, const Lanes& from) { std::memcpy(to, &from, sizeof from); }

/// x = e^x for x <= 0, to within 1e-7. Own code, because a library's differs between vectors and what is left over.
void exponentiate(Lanes& x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: a small number added to it becomes an integer
  const Lanes shifted = x * 1.44269504f + kRound;
  const IntLanes exponent = reinterpret_cast<IntLanes>(shifted) << 23;
  const Lanes n = shifted - kRound;
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // x - n ln 2
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const Lanes fraction = p * (r * r) + r + 1.0f;
  const IntLanes bits = reinterpret_cast<IntLanes>(fraction) + exponent;  // times 2^n
  x = x < -86.0f ? Lanes{} : reinterpret_cast<Lanes>(bits);
}

/// Makes the first n scores e^(score - highest) and those up to the next multiple of 16 zero. Returns the sum.
[[gnu::noinline]] float softmax(float* scores, std::size_t n) {
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  const std::size_t end = (n + kLanes - 1) / kLanes * kLanes;
  std::fill(scores + n, scores + end, kLowest);
  Lanes top = Lanes{} + kLowest;
  for (std::size_t t = 0; t < end; t += kLanes) {
    Lanes x;
    load(x, scores + t);
    top = x > top ? x : top;
  }
  float highest = kLowest;
  for (std::size_t i = 0; i < kLanes; ++i) highest = std::max(highest, top[i]);
  Lanes sums{};
  for (std::size_t t = 0; t < end; t += kLanes) {
    Lanes x;
    load(x, scores + t);
    x -= highest;
    exponentiate(x);
    store(scores + t, x);
    sums += x;
  }
  float sum = 0;
  for (std::size_t i = 0; i < kLanes; ++i) sum += sums[i];
  return sum;
}

/// The chunks of one sequence, for one layer and head.
struct Chunks {
  const float* first;  // of slot 0
  std::span<const std::int32_t> table;
  std::size_t block_floats, chunk_floats;
  std::size_t per_block, head_dim;

  const float* keys(std::size_t chunk) const {
    return first + static_cast<std::size_t>(table[chunk / per_block]) * block_floats +
           chunk % per_block * chunk_floats;
  }
  const float* values(std::size_t chunk) const { return keys(chunk) + chunk_floats / 2; }
};

/// Rows of one sequence, each with one query head.
struct Pairs {
  std::array<const float*, kMost> q;
  std::array<float*, kMost> out;
  std::array<std::size_t, kMost> lengths;  // positions to attend to
  std::size_t n = 0;
};

/// How many vectors `kRows` rows may have of each kind: enough for the processor to be busy, few enough for its
/// registers. What a lane computes does not depend on it.
template <std::size_t kRows>
constexpr std::size_t kUnroll = std::clamp<std::size_t>(kMost / kRows, 1, 4);

template <std::size_t kRows, std::size_t kChunks>
void score(const Chunks& chunks, const Pairs& pairs, std::size_t at, float scale, float* scores,
           std::size_t stride) {
  const float* keys[kChunks];
  for (std::size_t c = 0; c < kChunks; ++c) keys[c] = chunks.keys(at + c);
  Lanes dots[kRows][kChunks] = {};
  for (std::size_t d = 0; d < chunks.head_dim; ++d)
    for (std::size_t c = 0; c < kChunks; ++c) {
      Lanes key;
      load(key, keys[c] + d * kLanes);
      for (std::size_t r = 0; r < kRows; ++r) dots[r][c] += key * pairs.q[r][d];
    }
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t c = 0; c < kChunks; ++c)
      store(scores + r * stride + (at + c) * kLanes, dots[r][c] * scale);
}

/// Sums over the first `n` values, which all rows have.
template <std::size_t kRows, std::size_t kVectors>
void weighted_sum(const Chunks& chunks, const Pairs& pairs, std::size_t d, std::size_t n, const float* scores,
                  std::size_t stride) {
  Lanes sums[kRows][kVectors] = {};
  for (std::size_t t = 0; t < n;) {
    const float* value = chunks.values(t / kLanes) + d;
    for (const std::size_t end = std::min(n, t + kLanes); t < end; ++t, value += chunks.head_dim)
      for (std::size_t c = 0; c < kVectors; ++c) {
        Lanes x;
        load(x, value + c * kLanes);
        for (std::size_t r = 0; r < kRows; ++r) sums[r][c] += x * scores[r * stride + t];
      }
  }
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t c = 0; c < kVectors; ++c) store(pairs.out[r] + d + c * kLanes, sums[r][c]);
}

/// The sums' remaining values, which only some rows have, and the division.
[[gnu::noinline]] void finish(const Chunks& chunks, float* out, std::size_t begin, std::size_t end,
                              const float* weights, float sum) {
  for (std::size_t t = begin; t < end; ++t) {
    const float* value = chunks.values(t / kLanes) + t % kLanes * chunks.head_dim;
    for (std::size_t d = 0; d < chunks.head_dim; d += kLanes) {
      Lanes x, y;
      load(x, out + d);
      load(y, value + d);
      x += y * weights[t];
      store(out + d, x);
    }
  }
  for (std::size_t d = 0; d < chunks.head_dim; d += kLanes) {
    Lanes x;
    load(x, out + d);
    x *= 1 / sum;
    store(out + d, x);
  }
}

template <std::size_t kRows>
void attend_pairs(const Chunks& chunks, const Pairs& pairs, float* scores, std::size_t stride) {
  constexpr std::size_t kMany = kUnroll<kRows>, kVectors = std::min<std::size_t>(2 * kMany, 4);
  const auto [least, most] = std::minmax_element(pairs.lengths.begin(), pairs.lengths.begin() + kRows);
  const float scale = 1 / std::sqrt(static_cast<float>(chunks.head_dim));
  const std::size_t n = (*most + kLanes - 1) / kLanes;
  std::size_t at = 0;
  for (; at + kMany <= n; at += kMany) score<kRows, kMany>(chunks, pairs, at, scale, scores, stride);
  for (; at < n; ++at) score<kRows, 1>(chunks, pairs, at, scale, scores, stride);
  float sums[kRows];
  for (std::size_t r = 0; r < kRows; ++r) sums[r] = softmax(scores + r * stride, pairs.lengths[r]);
  std::size_t d = 0;
  for (; d + kVectors * kLanes <= chunks.head_dim; d += kVectors * kLanes)
    weighted_sum<kRows, kVectors>(chunks, pairs, d, *least, scores, stride);
  for (; d < chunks.head_dim; d += kLanes) weighted_sum<kRows, 1>(chunks, pairs, d, *least, scores, stride);
  for (std::size_t r = 0; r < kRows; ++r)
    finish(chunks, pairs.out[r], *least, pairs.lengths[r], scores + r * stride, sums[r]);
}

using Kernel = void (*)(const Chunks&, const Pairs&, float*, std::size_t);
template <std::size_t... kRows>
constexpr std::array<Kernel, kMost> kernels(std::index_sequence<kRows...>) {
  return {attend_pairs<kRows + 1>...};
}
constexpr auto kKernels = kernels(std::make_index_sequence<kMost>{});

std::size_t chunk_floats(const CpuAttention::Options& o) { return std::size_t{2} * kLanes * o.head_dim; }
std::size_t scores_stride(const CpuAttention::Options& o) {
  return (std::size_t{o.tokens} + kLanes - 1) / kLanes * kLanes;
}

}  // namespace

void CpuAttention::Unmap::operator()(float* pool) const { munmap(pool, bytes); }

CpuAttention::CpuAttention(const Options& options)
    : o_(options), pool_(nullptr, Unmap{bytes_per_block() * options.slots}) {}

std::unique_ptr<CpuAttention> CpuAttention::create(const Options& options, std::string& error) {
  const auto refuse = [&](std::string why) {
    error = std::move(why);
    return nullptr;
  };
  const Options& o = options;
  if (o.block_tokens == 0 || o.block_tokens % kLanes != 0)
    return refuse("block_tokens must be a multiple of 16");
  if (o.head_dim == 0 || o.head_dim % kLanes != 0) return refuse("head_dim must be a multiple of 16");
  if (o.layers == 0 || o.kv_heads == 0 || o.group == 0 || o.slots == 0 || o.tokens == 0 || o.parts == 0)
    return refuse("layers, heads, slots, tokens and threads must be at least 1");
  const double bytes = 2.0 * sizeof(float) * o.layers * o.kv_heads * o.head_dim * o.block_tokens * o.slots;
  const double scratch = 1.0 * sizeof(float) * o.tokens * kMost * o.parts;
  constexpr double kMostBytes = 1e15;
  if (bytes > kMostBytes || scratch > kMostBytes) return refuse("the KV pool does not fit in memory");
  std::unique_ptr<CpuAttention> made(new CpuAttention(o));
  void* pool = mmap(nullptr, made->pool_.get_deleter().bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);  // zeroed, and taken page by page as it is written
  if (pool == MAP_FAILED)
    return refuse("no memory for a KV pool of " + std::to_string(made->pool_.get_deleter().bytes) + " bytes");
  made->pool_.reset(static_cast<float*>(pool));
  try {
    made->scores_.resize(scores_stride(o) * kMost * o.parts);
  } catch (const std::bad_alloc&) {
    return refuse("no memory for the scores of so long a sequence");
  }
  return made;
}

float* CpuAttention::chunk(std::uint32_t slot, std::uint32_t layer, std::uint32_t head,
                           std::uint32_t offset) const {
  const std::size_t lists = (std::size_t{slot} * o_.layers + layer) * o_.kv_heads + head;
  return pool_.get() + (lists * (o_.block_tokens / kLanes) + offset / kLanes) * chunk_floats(o_);
}

std::size_t CpuAttention::bytes_per_block() const {
  return sizeof(float) * o_.layers * o_.kv_heads * (o_.block_tokens / kLanes) * chunk_floats(o_);
}

std::span<std::byte> CpuAttention::block(std::uint32_t slot) const {
  return {reinterpret_cast<std::byte*>(chunk(slot, 0, 0, 0)), bytes_per_block()};
}

void CpuAttention::store(std::uint32_t layer, const Batch& batch, const float* k, const float* v,
                         unsigned part, unsigned parts) {
  const std::size_t n = batch.rows.size(), width = std::size_t{o_.kv_heads} * o_.head_dim;
  // Neighbours share cache lines, so each thread takes a range of them.
  for (std::size_t i = n * part / parts; i < n * (part + 1) / parts; ++i) {
    const auto [token, position, table, logits] = batch.rows[i];
    const auto slot = static_cast<std::uint32_t>(batch.tables[table][position / o_.block_tokens]);
    for (std::uint32_t h = 0; h < o_.kv_heads; ++h) {
      float* keys = chunk(slot, layer, h, position % o_.block_tokens);
      float* values = keys + chunk_floats(o_) / 2 + position % kLanes * o_.head_dim;
      const std::size_t from = i * width + std::size_t{h} * o_.head_dim;
      for (std::size_t d = 0; d < o_.head_dim; ++d) keys[d * kLanes + position % kLanes] = k[from + d];
      std::copy_n(v + from, o_.head_dim, values);
    }
  }
}

void CpuAttention::attend(std::uint32_t layer, const Batch& batch, const float* q, float* out, unsigned part,
                          unsigned parts) {
  const std::size_t stride = scores_stride(o_);
  // Query heads of one kv head are computed together, unless that leaves threads without work.
  const bool few = batch.rows.size() * o_.kv_heads < std::size_t{4} * parts;
  const std::size_t heads = few ? 1 : std::min<std::size_t>(o_.group, kMost), rows = kMost / heads;
  std::size_t item = 0;
  for (std::size_t i = 0, end = 0; i < batch.rows.size(); i = end) {
    const std::uint32_t table = batch.rows[i].table;
    for (end = i; end < batch.rows.size() && end < i + rows && batch.rows[end].table == table;) ++end;
    for (std::uint32_t h = 0; h < o_.kv_heads; ++h)
      for (std::size_t g = 0; g < o_.group; g += heads) {
        if (item++ % parts != part) continue;
        Pairs pairs;
        for (std::size_t row = i; row < end; ++row)
          for (std::size_t j = g; j < std::min<std::size_t>(g + heads, o_.group); ++j) {
            const std::size_t at = ((row * o_.kv_heads + h) * o_.group + j) * o_.head_dim;
            pairs.q[pairs.n] = q + at;
            pairs.out[pairs.n] = out + at;
            pairs.lengths[pairs.n++] = std::size_t{batch.rows[row].position} + 1;
          }
        const Chunks chunks{.first = chunk(0, layer, h, 0),
                            .table = batch.tables[table],
                            .block_floats = bytes_per_block() / sizeof(float),
                            .chunk_floats = chunk_floats(o_),
                            .per_block = o_.block_tokens / kLanes,
                            .head_dim = o_.head_dim};
        kKernels[pairs.n - 1](chunks, pairs, scores_.data() + part * kMost * stride, stride);
      }
  }
}

bool CpuAttention::copy(std::uint32_t from_slot, std::uint32_t from_offset, std::uint32_t to_slot,
                        std::uint32_t to_offset, std::uint32_t tokens) {
  const auto inside = [&](std::uint32_t slot, std::uint32_t offset) {
    return slot < o_.slots && offset <= o_.block_tokens && tokens <= o_.block_tokens - offset;
  };
  if (!inside(from_slot, from_offset) || !inside(to_slot, to_offset)) return false;
  const std::uint32_t apart = from_offset < to_offset ? to_offset - from_offset : from_offset - to_offset;
  if (from_slot == to_slot && apart < tokens) return false;
  for (std::uint32_t layer = 0; layer < o_.layers; ++layer)
    for (std::uint32_t h = 0; h < o_.kv_heads; ++h)
      for (std::uint32_t t = 0; t < tokens; ++t) {
        const std::uint32_t a = from_offset + t, b = to_offset + t;
        const float* from = chunk(from_slot, layer, h, a);
        float* to = chunk(to_slot, layer, h, b);
        for (std::size_t d = 0; d < o_.head_dim; ++d)
          to[d * kLanes + b % kLanes] = from[d * kLanes + a % kLanes];
        std::memcpy(to + chunk_floats(o_) / 2 + b % kLanes * o_.head_dim,
                    from + chunk_floats(o_) / 2 + a % kLanes * o_.head_dim, o_.head_dim * sizeof(float));
      }
  return true;
}

}  // namespace paged
