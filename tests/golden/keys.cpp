// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Keys are a format: stores and other processes hold them. keys.txt must not change but with a new domain string in
// block_key.hpp. It is written by make_keys.py (`python3 make_keys.py > keys.txt`), which knows nothing but the format's
// description in block_key.hpp and scope.hpp, and the specifications of XXH3 and SHA-256.
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "kvstem/model/block_key.hpp"
#ifdef KVSTEM_TEST_SHA256
#include "kvstem/model/sha256.hpp"
#endif
#include "support/catch.hpp"

using namespace kvstem;

namespace {

std::vector<TokenId> tokens(std::size_t n, std::uint32_t step) {
  std::vector<TokenId> t(n);
  for (std::size_t i = 0; i < n; ++i) t[i] = static_cast<TokenId>((i * step + 7) % 50'000);
  return t;
}

KeyMark media(std::uint32_t offset, std::uint8_t fill) {
  KeyMark mark{.kind = KeyMark::Kind::kMedia, .offset = offset};
  mark.value.fill(static_cast<std::byte>(fill));
  return mark;
}
KeyMark scope_change(std::uint32_t offset, BlockKey root) {
  KeyMark mark{.kind = KeyMark::Kind::kScope, .offset = offset};
  std::memcpy(mark.value.data(), &root, sizeof root);
  return mark;
}

void add(std::ostream& out, const std::string& function, const KeyHasher& hasher) {
  const auto line = [&](const std::string& name, BlockKey key) {
    out << function << " " << name << " " << to_hex(key).data() << "\n";
  };
  const Scope plain{.model = "model", .vocab_size = 50'000};
  const Scope full{.model = "model",
                   .positions = "rope 10000",
                   .adapter = "adapter",
                   .adapter_scale = 0.5,
                   .salt = "tenant",
                   .vocab_size = 50'000};
  const auto plain_root = hasher.root(plain), full_root = hasher.root(full);
  REQUIRE(plain_root.ok());
  REQUIRE(full_root.ok());
  line("root plain", *plain_root);
  line("root full", *full_root);
  for (const std::uint32_t block : {1u, 16u, 64u, 1024u}) {
    const auto t = tokens(block * 2, 31);
    const BlockKey first = hasher.next(*plain_root, std::span(t).first(block));
    line("block of " + std::to_string(block) + " first", first);
    line("block of " + std::to_string(block) + " second", hasher.next(first, std::span(t).subspan(block)));
  }
  const auto t = tokens(16, 31);
  const std::vector<KeyMark> one{media(3, 0xab)};
  const std::vector<KeyMark> three{media(0, 1), media(5, 2), scope_change(5, *full_root)};
  line("media", hasher.next(*plain_root, t, one));
  line("media and scope", hasher.next(*plain_root, t, three));
  line("empty block", hasher.next(*plain_root, {}));
}

}  // namespace

TEST_CASE("keys are what they always were") {
  std::ostringstream now;
  add(now, "xxh3", KeyHasher(xxh3_key_function()));
  add(now, "xxh3-secret", KeyHasher(xxh3_key_function(), "a deployment's secret"));
#ifdef KVSTEM_TEST_SHA256
  add(now, "sha256", KeyHasher(sha256_key_function()));
  add(now, "sha256-secret", KeyHasher(sha256_key_function(), "a deployment's secret"));
#endif
  const std::string path = std::string(KVSTEM_TEST_DATA) + "/golden/keys.txt";
  std::ifstream file(path);
  REQUIRE(file.good());
  std::ostringstream golden;
  golden << file.rdbuf();
  // Without libcrypto only the first half can be compared.
  REQUIRE(!now.str().empty());
  CHECK(golden.str().substr(0, now.str().size()) == now.str());
#ifdef KVSTEM_TEST_SHA256
  CHECK(golden.str().size() == now.str().size());
#endif
}
