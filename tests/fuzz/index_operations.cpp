// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The input's bytes are operations on an index whose keys collide all the time, beside a set of prefixes that says what
// must be there.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <set>
#include <vector>

#include "kvstem/index/prefix_index.hpp"

using namespace kvstem;

namespace {
void require(bool ok) {
  if (!ok) std::abort();
}
KeyFunction six_bits() {
  return {HashAlgorithm::kTest, [](std::span<const std::byte> in, const KeySecret&) noexcept {
            return BlockKey{XXH3_64bits(in.data(), in.size()) & 0x3f, 0};
          }};
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::uint32_t kBlock = 2;
  const KeyHasher hasher(six_bits());
  auto made = PrefixIndex::create(
      {.block_tokens = kBlock, .capacity_blocks = 4000, .max_runs = 500, .max_readers = 1});
  require(made.ok());
  PrefixIndex& index = **made;
  const BlockKey root_key{1, 2};
  const RootId root = *index.add_root(root_key);
  const RootKeys roots(&root_key, 1);
  auto reader = index.register_reader();
  bool pinned = false;

  using Tokens = std::vector<TokenId>;
  std::set<Tokens> present;  // every present prefix of whole blocks
  std::size_t at = 0;
  const auto byte = [&] { return at < size ? data[at++] : std::uint8_t{0}; };
  Tokens tokens;
  while (at < size) {
    const std::uint8_t op = byte();
    // The prompt changes a little from one operation to the next.
    tokens.resize(tokens.size() - std::min<std::size_t>(tokens.size(), byte() % 16));
    for (int n = byte() % 24; n > 0 && tokens.size() < 120; --n) tokens.push_back(byte() % 3);
    const Prompt prompt{.tokens = tokens};
    const TokenSource source(hasher, kBlock, prompt, roots);
    const Match match = index.match(root, source);
    std::uint32_t expected = 0;
    while (expected < source.blocks() &&
           present.count(Tokens(tokens.begin(), tokens.begin() + (expected + 1) * kBlock)) != 0)
      ++expected;
    require(match.place.blocks == expected && match.ready == expected);
    switch (op % 6) {
      case 0:
      case 1:
      case 2: {
        const Extended e = index.extend(match.place, source, source.blocks());
        index.set_ready_through(e.place);
        for (std::uint32_t b = 1; b <= e.place.blocks; ++b)
          present.insert(Tokens(tokens.begin(), tokens.begin() + b * kBlock));
        break;
      }
      case 3: {
        const RunId run = index.locate(match.place);
        const RunInfo info = index.info(run);
        const bool whole = match.place.blocks == info.depth + info.length;
        if (info.parent == kNoRun || info.children != 0 || !whole) break;
        const std::uint32_t keep = byte() % info.length;
        if (!index.trim(run, keep).ok()) break;
        for (std::uint32_t b = info.depth + keep + 1; b <= match.place.blocks; ++b)
          present.erase(Tokens(tokens.begin(), tokens.begin() + b * kBlock));
        break;
      }
      case 4: {
        const auto head = index.split(match.place, source);
        if (head.ok() && byte() % 2 == 0) (void)index.merge_with_child(*head);
        break;
      }
      default: pinned ? reader->unpin() : reader->pin(); pinned = !pinned;
    }
    require(index.usage().blocks == present.size());
  }
  if (pinned) reader->unpin();
  index.reclaim();
  require(index.usage().retired == 0);
  return 0;
}
