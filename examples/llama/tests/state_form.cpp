// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <numeric>

#include "support.hpp"

using namespace kvstem_llama;
using namespace kvstem_llama::test;

namespace {

constexpr std::uint32_t kLayers = 3;

template <class T>
void append(std::vector<std::byte>& blob, T value) {
  blob.resize(blob.size() + sizeof value);
  std::memcpy(blob.data() + blob.size() - sizeof value, &value, sizeof value);
}

/// A blob as llama.cpp writes it for cells that hold `positions` in this order. K rows have 8 bytes and V rows 4; each
/// begins with its position.
std::vector<std::byte> blob_of(const std::vector<std::uint32_t>& positions, std::int32_t sequence) {
  std::vector<std::byte> blob;
  append(blob, std::uint32_t{0xaf143cd8});
  append(blob, sequence);
  append(blob, std::uint32_t{1});
  append(blob, static_cast<std::uint32_t>(positions.size()));
  for (const std::uint32_t p : positions) {
    append(blob, p);
    append(blob, std::uint32_t{1});
    append(blob, sequence);
  }
  append(blob, std::uint32_t{0});
  append(blob, kLayers);
  for (std::uint32_t section = 0; section < 2 * kLayers; ++section) {
    append(blob, std::int32_t{1});
    append(blob, std::uint64_t{section < kLayers ? 8u : 4u});
    for (const std::uint32_t p : positions) {
      append(blob, p);
      if (section < kLayers) append(blob, section);
    }
  }
  return blob;
}

StateForm learnt() {
  StateForm form;
  REQUIRE(form.learn(blob_of({0, 1}, 5), 2));
  return form;
}

}  // namespace

TEST_CASE("the canonical form is the same for every order of cells and every sequence") {
  const StateForm form = learnt();
  std::mt19937_64 rng(seed("orders of cells"));
  std::vector<std::uint32_t> positions(40);
  std::iota(positions.begin(), positions.end(), 100u);
  const std::vector<std::byte> canonical = blob_of(positions, 0);
  REQUIRE(form.bytes(40) == canonical.size());
  CHECK(form.holds(canonical, {100, 140}));
  CHECK_FALSE(form.holds(canonical, {99, 139}));
  CHECK_FALSE(form.holds(canonical, {100, 139}));
  for (std::int32_t i = 0; i < 50; ++i) {
    std::shuffle(positions.begin(), positions.end(), rng);
    std::vector<std::byte> blob = blob_of(positions, i);
    CHECK(form.canonicalise(blob, {100, 140}));
    CHECK(blob == canonical);
  }
}

TEST_CASE("positions that are missing, twice or foreign are not brought to a canonical form") {
  const StateForm form = learnt();
  for (const std::vector<std::uint32_t>& positions : {std::vector<std::uint32_t>{7, 7, 8},
                                                      {8, 7, 7},
                                                      {6, 8, 7},
                                                      {9, 8, 10},
                                                      {7, 8, 10},
                                                      {7, 8, 0xffffffffu}}) {
    std::vector<std::byte> blob = blob_of(positions, 1);
    CHECK_FALSE(form.canonicalise(blob, {7, 10}));
    CHECK_FALSE(form.holds(blob_of(positions, 0), {7, 10}));
  }
  std::vector<std::byte> blob = blob_of({7, 9, 8}, 1);
  CHECK_FALSE(form.canonicalise(blob, {7, 11}));
  CHECK(form.canonicalise(blob, {7, 10}));
}

TEST_CASE("every byte that is no tensor data is checked") {
  const StateForm form = learnt();
  const std::vector<std::byte> whole = blob_of({20, 21, 22, 23}, 0);
  std::vector<bool> is_frame(16 + 4 * 12 + 8, true);
  for (std::uint32_t section = 0; section < 2 * kLayers; ++section) {
    is_frame.insert(is_frame.end(), 12, true);
    is_frame.insert(is_frame.end(), 4 * (section < kLayers ? 8 : 4), false);
  }
  REQUIRE(is_frame.size() == whole.size());
  for (std::size_t at = 0; at < whole.size(); ++at)
    for (int bit = 0; bit < 8; ++bit) {
      std::vector<std::byte> other = whole;
      other[at] ^= static_cast<std::byte>(1 << bit);
      INFO("bit " << bit << " of byte " << at);
      CHECK(form.holds(other, {20, 24}) == !is_frame[at]);
    }
}

TEST_CASE("a form is learnt from whole blobs only") {
  const std::vector<std::byte> whole = blob_of({0, 1}, 5);
  StateForm form;
  CHECK_FALSE(form.learn({}, 0));
  CHECK_FALSE(form.learn({}, 2));
  CHECK_FALSE(form.learn(whole, 1));
  CHECK_FALSE(form.learn(whole, 3));
  std::uint32_t learnt_anyway = 0;
  for (std::size_t size = 0; size < whole.size(); ++size)
    learnt_anyway += form.learn(std::span(whole).first(size), 2);
  CHECK(learnt_anyway == kLayers);  // cut where V of a layer ends, it is a model with fewer V
  CHECK(form.learn(whole, 2));
  std::vector<std::byte> other = whole;
  other[16 + 2 * 12] = std::byte{1};  // V transposed
  CHECK_FALSE(form.learn(other, 2));
  for (const unsigned layers : {0u, kLayers - 1, 2 * kLayers + 1, 255u}) {
    other = whole;
    other[16 + 2 * 12 + 4] = static_cast<std::byte>(layers);
    CHECK_FALSE(form.learn(other, 2));
  }
}
