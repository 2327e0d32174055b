// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "kvstem/model/block_key.hpp"
#include "kvstem/model/kv_layout.hpp"
#include "kvstem/model/prompt.hpp"
#include "kvstem/model/scope.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {
const Scope kScope{
    .model = "m", .positions = "p", .adapter = "a", .adapter_scale = 2, .salt = "s", .vocab_size = 100};

std::string key_of(const Scope& scope) {
  const auto root = KeyHasher().root(scope);
  REQUIRE(root.ok());
  return to_hex(*root).data();
}

std::uint64_t hashed_bytes = 0;
KeyFunction counting() {
  return {HashAlgorithm::kTest, [](std::span<const std::byte> in, const KeySecret& secret) noexcept {
            hashed_bytes += in.size();
            return xxh3_key_function().hash(in, secret);
          }};
}
}  // namespace

TEST_CASE("scopes that differ in any one field have different roots") {
  Scope changed = kScope;
  // A field that is added to Scope breaks this line, and must be changed below.
  auto& [model, positions, adapter, adapter_scale, salt, vocab_size] = changed;
  std::set<std::string> roots{key_of(kScope)};
  const auto differs = [&](auto& field, const auto& value) {
    const auto before = field;
    field = value;
    CHECK(roots.insert(key_of(changed)).second);
    CHECK_FALSE(changed == kScope);
    field = before;
  };
  differs(model, "n");
  differs(positions, "");
  differs(adapter, "b");
  differs(adapter_scale, 2.0000000001);
  differs(salt, "t");
  differs(vocab_size, 101u);
  CHECK(changed == kScope);
  CHECK_FALSE(roots.insert(key_of(changed)).second);
}

TEST_CASE("a character that moves from one field to the next changes the root") {
  Scope a = kScope, b = kScope;
  a.model = "mp";
  a.positions = "";
  b.model = "m";
  b.positions = "p";
  CHECK(key_of(a) != key_of(b));
}

TEST_CASE("a scope that cannot be told apart or holds no token is refused") {
  Scope scope = kScope;
  scope.model = "";
  CHECK(validate(scope).code() == StatusCode::kInvalidArgument);
  scope = kScope;
  scope.vocab_size = 0;
  CHECK(validate(scope).code() == StatusCode::kInvalidArgument);
  scope = kScope;
  scope.adapter_scale = std::numeric_limits<double>::quiet_NaN();
  CHECK(validate(scope).code() == StatusCode::kInvalidArgument);
  CHECK(KeyHasher().root(scope).status().code() == StatusCode::kInvalidArgument);
}

TEST_CASE("equal scopes have equal roots, also with a negative zero") {
  Scope a = kScope, b = kScope;
  a.adapter_scale = 0.0;
  b.adapter_scale = -0.0;
  CHECK(a == b);
  CHECK(key_of(a) == key_of(b));
}

TEST_CASE("deployments with different secrets share no key") {
  const KeyHasher one(xxh3_key_function(), "one"), two(xxh3_key_function(), "two");
  CHECK_FALSE(*one.root(kScope) == *two.root(kScope));
  const std::vector<TokenId> tokens(16, 1);
  CHECK_FALSE(one.next({}, tokens) == two.next({}, tokens));
}

TEST_CASE("a key depends on its parent, its tokens, their number and its marks") {
  const KeyHasher hasher;
  const std::vector<TokenId> tokens{1, 2, 3, 4};
  const BlockKey parent{1, 2};
  KeyMark mark{.kind = KeyMark::Kind::kMedia, .offset = 1};
  std::set<std::string> keys;
  const auto add = [&](BlockKey p, std::span<const TokenId> t, std::span<const KeyMark> m) {
    CHECK(keys.insert(to_hex(hasher.next(p, t, m)).data()).second);
  };
  add(parent, tokens, {});
  add({1, 3}, tokens, {});
  add({2, 2}, tokens, {});
  add(parent, std::span(tokens).first(3), {});
  add(parent, std::vector<TokenId>{1, 2, 3, 5}, {});
  add(parent, tokens, {&mark, 1});
  mark.offset = 2;
  add(parent, tokens, {&mark, 1});
  mark.value[31] = std::byte{1};
  add(parent, tokens, {&mark, 1});
  mark.kind = KeyMark::Kind::kScope;
  add(parent, tokens, {&mark, 1});
}

TEST_CASE("a chain's keys do not depend on how its tokens arrive, and each token is hashed once") {
  const KeyHasher hasher(counting());
  std::vector<TokenId> tokens(1000);
  std::iota(tokens.begin(), tokens.end(), 0);
  std::vector<KeyMark> marks{{.kind = KeyMark::Kind::kMedia, .offset = 37, .value = {}},
                             {.kind = KeyMark::Kind::kMedia, .offset = 500, .value = {}}};
  KeyChain whole(hasher, {5, 6}, 16);
  hashed_bytes = 0;
  whole.append(tokens, marks);
  const std::uint64_t once = hashed_bytes;
  REQUIRE(whole.keys().size() == 62);

  KeyChain pieces(hasher, {5, 6}, 16);
  hashed_bytes = 0;
  for (std::size_t at = 0; at < tokens.size();) {
    const std::size_t n = std::min<std::size_t>(1 + at % 23, tokens.size() - at);
    std::vector<KeyMark> own;
    for (KeyMark m : marks)
      if (m.offset >= at && m.offset < at + n) {
        m.offset -= static_cast<std::uint32_t>(at);
        own.push_back(m);
      }
    pieces.append(std::span(tokens).subspan(at, n), own);
    at += n;
  }
  CHECK(hashed_bytes == once);
  CHECK(std::equal(whole.keys().begin(), whole.keys().end(), pieces.keys().begin(), pieces.keys().end()));
  // A further turn pays for its own blocks only.
  hashed_bytes = 0;
  whole.append(std::span(tokens).first(32));
  CHECK(hashed_bytes <= 3 * (40 + 16 * 4));
}

TEST_CASE("prompts with marks out of order, out of range or too many in a block are refused") {
  const std::vector<TokenId> tokens(64, 1);
  std::vector<Extra> extras{{.position = 5}, {.position = 4}};
  CHECK(validate({.tokens = tokens, .extras = extras}, 16).code() == StatusCode::kInvalidArgument);
  extras = {{.position = 64}};
  CHECK(validate({.tokens = tokens, .extras = extras}, 16).code() == StatusCode::kOutOfRange);
  extras.assign(17, {.position = 3});
  CHECK(validate({.tokens = tokens, .extras = extras}, 16).code() == StatusCode::kOutOfRange);
  extras.assign(16, {.position = 3});
  CHECK(validate({.tokens = tokens, .extras = extras}, 16).ok());
  const std::vector<ScopeChange> twice{{.position = 8}, {.position = 8}};
  CHECK(validate({.tokens = tokens, .changes = twice}, 16).code() == StatusCode::kInvalidArgument);
  CHECK(validate({}, 16).ok());
}

TEST_CASE("representations that differ in any one field have different fingerprints") {
  const Representation base{
      .dtype = "d", .layout = "l", .head_split = "h", .block_tokens = 16, .engine = "e"};
  Representation changed = base;
  auto& [dtype, layout, head_split, block_tokens, engine] = changed;
  std::set<std::string> seen{to_hex(fingerprint(base)).data()};
  const auto differs = [&](auto& field, const auto& value) {
    const auto before = field;
    field = value;
    CHECK(seen.insert(to_hex(fingerprint(changed)).data()).second);
    field = before;
  };
  differs(dtype, "x");
  differs(layout, "");
  differs(head_split, "hh");
  differs(block_tokens, 32u);
  differs(engine, "f");
}
