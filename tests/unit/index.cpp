// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "kvstem/index/prefix_index.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {

struct Index {
  KeyHasher hasher;
  std::unique_ptr<PrefixIndex> index;
  std::vector<BlockKey> root_keys;
  std::vector<RootId> roots;
  std::uint32_t block;

  explicit Index(IndexOptions options = {}, KeyFunction keys = xxh3_key_function()) : hasher(keys) {
    if (options.capacity_blocks == 0) options.capacity_blocks = 4096;
    if (options.block_tokens == 16) options.block_tokens = 4;
    block = options.block_tokens;
    auto made = PrefixIndex::create(options);
    REQUIRE(made.ok());
    index = std::move(*made);
    for (int i = 0; i < 2; ++i) {
      root_keys.push_back(*hasher.root({.model = "m", .salt = std::to_string(i), .vocab_size = 1000}));
      roots.push_back(*index->add_root(root_keys.back()));
    }
  }
  [[nodiscard]] TokenSource source(const Prompt& prompt) const { return {hasher, block, prompt, root_keys}; }
  [[nodiscard]] Match match(const Prompt& prompt) const {
    return index->match(roots[prompt.scope == kNoScope ? 0 : static_cast<std::size_t>(prompt.scope)],
                        source(prompt));
  }
  /// Adds what is missing; returns the end.
  Place add(const Prompt& prompt, bool ready = true) {
    const auto s = source(prompt);
    const Extended e = index->extend(match(prompt).place, s, s.blocks());
    if (ready) index->set_ready_through(e.place);
    return e.place;
  }
  Place add(const std::vector<TokenId>& tokens, bool ready = true) {
    return add(Prompt{.tokens = tokens}, ready);
  }
  [[nodiscard]] std::uint32_t matched(const std::vector<TokenId>& tokens) const {
    return match(Prompt{.tokens = tokens}).place.blocks;
  }
  void erase_all() {
    for (bool again = true; again;) {
      again = false;
      for (const RootId root : roots) {
        RunId leaf = kNoRun;
        index->enumerate(root, [&](RunId run, const RunInfo& info) {
          if (info.children == 0) leaf = run;
        });
        if (leaf != kNoRun) {
          REQUIRE(index->trim(leaf, 0).ok());
          again = true;
        }
      }
    }
  }
};

std::vector<TokenId> count(std::size_t n, TokenId from = 0) {
  std::vector<TokenId> t(n);
  std::iota(t.begin(), t.end(), from);
  return t;
}
std::vector<TokenId> join(std::vector<TokenId> a, const std::vector<TokenId>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

KeyFunction eight_bits() {
  return {HashAlgorithm::kTest, [](std::span<const std::byte> in, const KeySecret&) noexcept {
            return BlockKey{XXH3_64bits(in.data(), in.size()) & 0xff, 0};
          }};
}

}  // namespace

TEST_CASE("a match covers the whole blocks that were inserted, and no more") {
  Index i;
  CHECK(i.matched(count(40)) == 0);
  i.add(count(39));
  CHECK(i.matched(count(40)) == 9);
  CHECK(i.matched(count(36)) == 9);
  CHECK(i.matched(count(35)) == 8);
  CHECK(i.matched(count(3)) == 0);
  CHECK(i.matched({}) == 0);
  CHECK(i.matched({5}) == 0);
  auto other = count(40);
  other[17] = 99;
  CHECK(i.matched(other) == 4);
  other[0] = 99;
  CHECK(i.matched(other) == 0);
}

TEST_CASE("prompts that part inside a run split it, and all of them are found") {
  Index i;
  const auto stem = count(20);
  i.add(join(stem, count(20, 100)));
  i.add(join(stem, count(20, 200)));
  i.add(join(count(8), count(20, 300)));
  CHECK(i.matched(join(stem, count(20, 100))) == 10);
  CHECK(i.matched(join(stem, count(20, 200))) == 10);
  CHECK(i.matched(join(count(8), count(20, 300))) == 7);
  CHECK(i.matched(join(stem, count(20, 400))) == 5);
  int runs = 0;
  i.index->enumerate(i.roots[0], [&](RunId, const RunInfo&) { ++runs; });
  CHECK(runs == 5);
  CHECK(i.index->usage().blocks == 10 + 5 + 5);
}

TEST_CASE("blocks keep their position through splits and merges") {
  Index i;
  const auto a = count(80);
  i.add(a);
  const auto positions = [&](const std::vector<TokenId>& tokens) {
    std::vector<BlockPos> all;
    struct Visit {
      std::vector<BlockPos>* all;
      void operator()(RunId, BlockPos first, std::uint32_t n, std::uint32_t) {
        for (std::uint32_t k = 0; k < n; ++k) all->push_back(first + k);
      }
      void reset() { all->clear(); }
    } visit{&all};
    const Prompt prompt{.tokens = tokens};
    (void)i.index->match(i.roots[0], i.source(prompt), visit);
    return all;
  };
  const auto before = positions(a);
  REQUIRE(before.size() == 20);
  const Place branch = i.add(join(count(24), count(16, 500)));
  CHECK(positions(a) == before);
  REQUIRE(i.index->trim(branch.run, 0).ok());
  RunId head = kNoRun;
  i.index->enumerate(i.roots[0], [&](RunId run, const RunInfo& info) {
    if (info.depth == 0) head = run;
  });
  CHECK(i.index->merge_with_child(head));
  CHECK(positions(a) == before);
  int runs = 0;
  i.index->enumerate(i.roots[0], [&](RunId, const RunInfo&) { ++runs; });
  CHECK(runs == 1);
}

TEST_CASE("a leaf grows in place, also after it was trimmed") {
  Index i;
  const Place first = i.add(count(40));
  const Place more = i.add(count(400));
  CHECK(more.run == first.run);
  REQUIRE(i.index->trim(more.run, 7).ok());
  CHECK_FALSE(i.index->valid(more));
  CHECK(i.matched(count(400)) == 7);
  i.add(join(count(28), count(100, 600)));
  CHECK(i.matched(join(count(28), count(100, 600))) == 32);
  CHECK(i.matched(count(400)) == 7);
}

TEST_CASE("only leaves go, and nothing that is pinned") {
  Index i;
  const Place a = i.add(count(40));
  const Place b = i.add(join(count(20), count(20, 100)));
  const RunId stem = i.index->info(a.run).parent;
  CHECK(i.index->trim(stem, 0).code() == StatusCode::kWrongState);
  CHECK(i.index->trim(i.roots[0], 0).code() == StatusCode::kWrongState);
  REQUIRE(i.index->try_pin(a.run, a.generation));
  CHECK(i.index->trim(a.run, 0).code() == StatusCode::kWrongState);
  CHECK(i.index->trim(a.run, 2).code() == StatusCode::kWrongState);
  i.index->unpin(a.run);
  REQUIRE(i.index->trim(a.run, 0).ok());
  CHECK_FALSE(i.index->try_pin(a.run, a.generation));
  CHECK(i.index->trim(b.run, 9).code() == StatusCode::kWrongState);
  CHECK(i.matched(join(count(20), count(20, 100))) == 10);
}

TEST_CASE("blocks are pending until they are said to be ready, in order") {
  Index i;
  const Place end = i.add(count(40), false);
  CHECK(i.match(Prompt{.tokens = count(40)}).ready == 0);
  i.index->set_ready(end.run, 4);
  CHECK(i.match(Prompt{.tokens = count(40)}).ready == 4);
  // A branch inside the pending part.
  const Place branch = i.add(join(count(24), count(8, 100)), false);
  CHECK(i.match(Prompt{.tokens = count(40)}).ready == 4);
  CHECK(i.match(Prompt{.tokens = join(count(24), count(8, 100))}).ready == 4);
  i.index->set_ready_through(branch);
  CHECK(i.match(Prompt{.tokens = join(count(24), count(8, 100))}).ready == 8);
  CHECK(i.match(Prompt{.tokens = count(40)}).ready == 6);
}

TEST_CASE("a session's next turn looks at its new blocks only") {
  Index i;
  auto tokens = count(8192);
  Place place = i.add(tokens);
  struct Counting : TokenSource {
    mutable std::uint64_t* compared;
    mutable std::uint64_t* hashed;
    Counting(const TokenSource& s, std::uint64_t* c, std::uint64_t* h)
        : TokenSource(s), compared(c), hashed(h) {}
    [[nodiscard]] std::uint32_t equal(const std::byte* stored, std::uint32_t at,
                                      std::uint32_t n) const noexcept {
      *compared += n;
      return TokenSource::equal(stored, at, n);
    }
    [[nodiscard]] BlockKey key(BlockKey parent, std::uint32_t at) const noexcept {
      ++*hashed;
      return TokenSource::key(parent, at);
    }
    [[nodiscard]] BlockKey stored_key(BlockKey parent, const std::byte* stored) const noexcept {
      ++*hashed;
      return TokenSource::stored_key(parent, stored);
    }
  };
  for (int turn = 0; turn < 5; ++turn) {
    tokens = join(tokens, count(32 * 4, 700));
    const Prompt prompt{.tokens = tokens};
    std::uint64_t compared = 0, hashed = 0;
    const Counting source(i.source(prompt), &compared, &hashed);
    const Match match = i.index->match_from(i.roots[0], place, source);
    CHECK(match.place.blocks == place.blocks);
    const Extended extended = i.index->extend(match.place, source, source.blocks());
    CHECK(extended.added == 32);
    i.index->set_ready_through(extended.place);
    place = extended.place;
    CHECK(compared == 0);
    CHECK(hashed <= 33);
  }
}

TEST_CASE("blocks with media or a change of scope match only what carries the same") {
  for (const bool colliding : {false, true}) {
    Index i({}, colliding ? eight_bits() : xxh3_key_function());
    const auto tokens = count(40);
    const auto matched = [&](std::vector<Extra> extras, std::vector<ScopeChange> changes) {
      return i.match({.tokens = tokens, .extras = extras, .changes = changes}).place.blocks;
    };
    const std::vector<Extra> picture{{.position = 13, .digest = {std::byte{1}}}};
    i.add({.tokens = tokens, .extras = picture});
    CHECK(matched(picture, {}) == 10);
    CHECK(matched({}, {}) == 3);
    CHECK(matched({{.position = 13, .digest = {std::byte{2}}}}, {}) == 3);
    CHECK(matched({{.position = 14, .digest = {std::byte{1}}}}, {}) == 3);
    CHECK(matched({{.position = 13, .digest = {std::byte{1}}}, {.position = 30}}, {}) == 7);
    const std::vector<ScopeChange> tail{{.position = 20, .scope = ScopeId{1}}};
    i.add({.tokens = tokens, .changes = tail});
    CHECK(matched({}, tail) == 10);
    CHECK(matched({}, {{.position = 20, .scope = ScopeId{0}}}) == 5);
    CHECK(matched({}, {}) == 5);
    // Another scope shares nothing, whatever the keys are.
    CHECK(i.match({.scope = ScopeId{1}, .tokens = tokens}).place.blocks == 0);
    i.erase_all();
    CHECK(i.index->usage().units_taken == 0);
  }
}

TEST_CASE("keys that collide lead to nobody else's blocks") {
  Index i({.capacity_blocks = 20'000}, eight_bits());
  std::vector<std::vector<TokenId>> prompts;
  for (TokenId k = 0; k < 600; ++k) prompts.push_back({k % 30, k / 30, k, 1, k, 2, 3, 4});
  for (const auto& p : prompts) i.add(p);
  for (const auto& p : prompts) CHECK(i.matched(p) == 2);
  CHECK(i.matched({29, 29, 999, 1}) == 0);
  i.erase_all();
  CHECK(i.index->usage().blocks == 0);
}

TEST_CASE("an index of keys needs no tokens") {
  Index i({.mode = IndexMode::kKeys});
  std::vector<BlockKey> keys;
  for (std::uint64_t k = 1; k <= 500; ++k) keys.push_back({k * 77, k});
  const KeySource source(keys);
  const auto e = i.index->extend(i.index->match(i.roots[0], source).place, source, source.blocks());
  CHECK(e.added == 500);
  CHECK(i.index->match(i.roots[0], KeySource(std::span(keys).first(333))).place.blocks == 333);
  keys[200].lo = 1;
  CHECK(i.index->match(i.roots[0], KeySource(keys)).place.blocks == 200);
}

TEST_CASE("what was erased can be used again, and none of it is lost") {
  Index i;
  for (int round = 0; round < 20; ++round) {
    for (TokenId k = 0; k < 30; ++k)
      i.add(join(count(static_cast<std::size_t>(k) * 3), count(60, 100 * (k % 7) + 100)));
    i.erase_all();
    CHECK(i.index->usage().runs == 2);
    CHECK(i.index->usage().blocks == 0);
    CHECK(i.index->usage().units_taken == 0);
    CHECK(i.index->usage().retired == 0);
  }
}

TEST_CASE("what a reader may be looking at is not used again before it is done") {
  Index i;
  const Place place = i.add(count(40));
  auto reader = i.index->register_reader();
  REQUIRE(reader.ok());
  reader->pin();
  REQUIRE(i.index->trim(place.run, 5).ok());
  REQUIRE(i.index->trim(i.index->info(place.run).length == 5 ? place.run : kNoRun, 0).ok());
  const auto taken = i.index->usage().units_taken;
  CHECK(taken > 0);
  CHECK(i.index->usage().retired == 2);
  i.add(count(40, 300));
  CHECK(i.index->usage().units_taken > taken);
  reader->unpin();
  i.index->reclaim();
  CHECK(i.index->usage().retired == 0);
  i.erase_all();
  CHECK(i.index->usage().units_taken == 0);
}

TEST_CASE("a leaf that was cut between two segments does not grow while a reader may see what was cut") {
  // Two segments of four blocks each: the cut falls exactly between them.
  Index i;
  const Place place = i.add(count(16));
  i.add(count(32));
  auto reader = i.index->register_reader();
  REQUIRE(reader.ok());
  reader->pin();
  REQUIRE(i.index->trim(place.run, 4).ok());
  const auto other = join(count(16), count(64, 500));
  i.add(other);
  reader->unpin();
  i.index->reclaim();
  CHECK(i.matched(other) == 20);
  CHECK(i.matched(count(32)) == 4);
  i.add(join(other, count(64, 800)));
  CHECK(i.matched(join(other, count(64, 800))) == 36);
  i.erase_all();
  CHECK(i.index->usage().units_taken == 0);
}

TEST_CASE("an index that is full says how far it came, and what it has stays") {
  Index i({.block_tokens = 4, .capacity_blocks = 200, .max_runs = 8});
  const auto big = count(40'000);
  const Place end = i.add(big);
  CHECK(end.blocks >= 200);
  CHECK(end.blocks < 10'000);
  CHECK(i.matched(big) == end.blocks);
  i.add(count(40, 500));
  CHECK(i.matched(big) == end.blocks);
  Index runs({.block_tokens = 4, .capacity_blocks = 2000, .max_runs = 8});
  for (TokenId k = 0; k < 20; ++k) runs.add(count(8, 40 * k));
  int found = 0;
  for (TokenId k = 0; k < 20; ++k) found += runs.matched(count(8, 40 * k)) == 2;
  CHECK(found == 6);
}

TEST_CASE("a prompt of a million tokens goes in and is found") {
  Index i({.block_tokens = 32, .capacity_blocks = 40'000});
  std::vector<TokenId> tokens(1'000'000);
  for (std::size_t k = 0; k < tokens.size(); ++k) tokens[k] = static_cast<TokenId>(k * 7 % 1000);
  const Place end = i.add(tokens);
  CHECK(end.blocks == 31'250);
  CHECK(i.matched(tokens) == 31'250);
  tokens[999'999] = 1;
  CHECK(i.matched(tokens) == 31'249);
}

TEST_CASE("sizes that cannot be are refused, and so is memory that is not to be had") {
  CHECK(PrefixIndex::create({.block_tokens = 0, .capacity_blocks = 1}).status().code() ==
        StatusCode::kInvalidArgument);
  CHECK(PrefixIndex::create({.block_tokens = 1025, .capacity_blocks = 1}).status().code() ==
        StatusCode::kInvalidArgument);
  CHECK(PrefixIndex::create({.block_tokens = 16}).status().code() == StatusCode::kInvalidArgument);
  // Each allocation in turn fails; what was taken before is given back.
  struct Budget {
    int left, open = 0;
  };
  int failures = 0;
  for (int n = 0; n < 20; ++n) {
    Budget budget{n};
    const Memory memory{[](void* user, std::size_t bytes, std::size_t alignment) -> void* {
                          auto& b = *static_cast<Budget*>(user);
                          if (b.left-- <= 0) return nullptr;
                          ++b.open;
                          return heap_memory().allocate(nullptr, bytes, alignment);
                        },
                        [](void* user, void* p, std::size_t bytes) {
                          --static_cast<Budget*>(user)->open;
                          heap_memory().release(nullptr, p, bytes);
                        },
                        &budget};
    {
      const auto made = PrefixIndex::create({.block_tokens = 16, .capacity_blocks = 100, .memory = memory});
      if (!made.ok()) {
        ++failures;
        CHECK(made.status().code() == StatusCode::kExhausted);
      }
    }
    CHECK(budget.open == 0);
  }
  CHECK(failures > 3);
  CHECK(failures < 20);
}
