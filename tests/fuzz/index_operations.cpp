// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The input's bytes are operations on an index, beside a naive model of it that is compared after each of them
// (support/index_walk.hpp). The first byte chooses full keys, keys of eight bits, or no tokens at all.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "support/index_walk.hpp"

using namespace kvstem;
using namespace kvstem_test;

namespace {
struct Bytes {
  const std::uint8_t* data;
  std::size_t left;
  std::uint32_t pick(std::uint32_t n) {
    if (n <= 1 || left == 0) return 0;
    --left;
    return *data++ % n;
  }
};
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes{data, size};
  const std::uint32_t kind = bytes.pick(3);
  WalkOptions options{.mode = kind == 2 ? IndexMode::kKeys : IndexMode::kTokens,
                      .keys = kind == 1 ? eight_bit_keys() : xxh3_key_function()};
  options.block_tokens = 1 + bytes.pick(4);
  options.max_runs = 4 + bytes.pick(40);
  IndexWalk<Bytes> walk(options, bytes);
  for (int i = 0; i < 500 && bytes.left > 0 && walk.wrong() == nullptr; ++i) walk.step();
  walk.finish();
  if (walk.wrong() != nullptr) {
    std::fprintf(stderr, "the index is wrong: %s\n", walk.wrong());
    std::abort();
  }
  return 0;
}
