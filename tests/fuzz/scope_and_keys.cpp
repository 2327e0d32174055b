// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Two scopes made of the input's bytes: their encodings are equal exactly if they are. And a chain of keys does not depend
// on how its tokens arrive.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "kvstem/model/block_key.hpp"

using namespace kvstem;

namespace {
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  std::uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }
  std::string text() {
    std::string s(byte() % 8, '\0');
    for (char& c : s) c = static_cast<char>(byte());
    return s;
  }
  Scope scope() {
    return {.model = "m" + text(),
            .positions = text(),
            .adapter = text(),
            .adapter_scale = static_cast<std::int8_t>(byte()) / 4.0,
            .salt = text(),
            .vocab_size = 1u + byte()};
  }
  [[nodiscard]] bool empty() const { return at_ == size_; }

 private:
  const std::uint8_t* data_;
  std::size_t size_, at_ = 0;
};

void require(bool ok) {
  if (!ok) std::abort();
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(data, size);
  const Scope a = in.scope(), b = in.scope();
  std::vector<std::byte> ea, eb;
  encode(a, ea);
  encode(b, eb);
  require((a == b) == (ea == eb));
  const KeyHasher hasher;
  require((a == b) == (*hasher.root(a) == *hasher.root(b)));

  const std::uint32_t block = 1 + in.byte() % 8;
  KeyChain whole(hasher, {1, 2}, block), pieces(hasher, {1, 2}, block);
  std::vector<TokenId> tokens;
  std::vector<KeyMark> marks;
  while (!in.empty()) {
    std::vector<TokenId> piece(in.byte() % 8);
    std::vector<KeyMark> own;
    for (std::size_t i = 0; i < piece.size(); ++i) {
      piece[i] = in.byte();
      if (piece[i] % 7 == 0) {
        own.push_back({.kind = KeyMark::Kind::kMedia, .offset = static_cast<std::uint32_t>(i)});
        own.back().value.fill(static_cast<std::byte>(in.byte()));
      }
    }
    for (KeyMark m : own) {
      m.offset += static_cast<std::uint32_t>(tokens.size());
      marks.push_back(m);
    }
    tokens.insert(tokens.end(), piece.begin(), piece.end());
    pieces.append(piece, own);
  }
  whole.append(tokens, marks);
  require(std::equal(whole.keys().begin(), whole.keys().end(), pieces.keys().begin(), pieces.keys().end()));
  require(whole.keys().size() == tokens.size() / block);
  return 0;
}
