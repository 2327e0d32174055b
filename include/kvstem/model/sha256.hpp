// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Keys by SHA-256, cut to 128 bits, for keys that leave the trust domain or for tenants that may attack each other's
// cache. Uses libcrypto: link kvstem::sha256. Everybody else wants `xxh3_key_function()`.
//
// Cost: about 83 ns for a block of 16 tokens, 15 times XXH3. Threads: any.
//
//   KeyHasher hasher(sha256_key_function(), "this deployment's secret");
#pragma once

#include <openssl/sha.h>

#include <cstring>
#include <span>

#include "kvstem/model/block_key.hpp"

namespace kvstem::inline v0 {

/// FIPS 180-4; the key is the digest's first 16 bytes, read as little-endian {lo, hi}.
[[nodiscard]] inline KeyFunction sha256_key_function() noexcept {
  return {HashAlgorithm::kSha256, [](std::span<const std::byte> input, const KeySecret&) noexcept {
            unsigned char digest[SHA256_DIGEST_LENGTH];
            SHA256(reinterpret_cast<const unsigned char*>(input.data()), input.size(), digest);
            BlockKey key;
            std::memcpy(&key, digest, sizeof key);
            return key;
          }};
}

}  // namespace kvstem::inline v0
