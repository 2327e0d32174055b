// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "kvstem/tier/host_tier.hpp"

#include <memory>

#include "kvstem/model/kv_layout.hpp"
#include "kvstem/testing/tier_contract.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {
std::unique_ptr<HostTier> make(BlockKey representation = {}) {
  auto tier = std::make_unique<HostTier>();
  REQUIRE(tier->take(heap_memory(), 4, 256, representation).ok());
  return tier;
}
}  // namespace

TEST_CASE("host memory keeps the contract of a tier") {
  run_tier_contract([] { return make(); },
                    [](bool ok, const char* what) {
                      INFO(what);
                      CHECK(ok);
                    });
}

TEST_CASE("an earlier block of the same key in the same slot does not pass for the present one") {
  auto tier = make();
  const BlockKey key{5, 6};
  const auto room = tier->stage(0);
  REQUIRE(room.ok());
  std::memset(room->data(), 1, 256);
  REQUIRE(tier->seal(0, key, 256).ok());
  REQUIRE(tier->stage(0).ok());
  std::memset(room->data(), 2, 256);
  REQUIRE(tier->seal(0, key, 256).ok());
  std::memset(room->data(), 1, 256);
  CHECK(tier->read(0, key).status().code() == StatusCode::kCorrupt);
}

TEST_CASE("a host tier without room is refused with the reason") {
  HostTier tier;
  CHECK(tier.take(heap_memory(), 0, 256, {}).code() == StatusCode::kInvalidArgument);
  CHECK(tier.take(heap_memory(), 4, 0, {}).code() == StatusCode::kInvalidArgument);
  const Memory none{[](void*, std::size_t, std::size_t) -> void* { return nullptr; },
                    [](void*, void*, std::size_t) {}, nullptr};
  CHECK(tier.take(none, 4, 256, {}).code() == StatusCode::kExhausted);
}
