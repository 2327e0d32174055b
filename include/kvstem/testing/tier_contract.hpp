// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What every tier must do, as a suite that any test framework can run: it reports each check to a function of yours.
//
//   TEST_CASE("my tier keeps the contract of a tier") {
//     run_tier_contract([] { return make_my_tier(); },           // a fresh tier each time: at least 2 slots of 256 bytes
//                       [](bool ok, const char* what) { INFO(what); CHECK(ok); });
//   }
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "kvstem/tier/tier.hpp"

namespace kvstem::inline v0 {

/// `make()` returns a tier by value or a smart pointer to one; `check(bool, const char*)` takes each result.
template <class Make, class Check>
void run_tier_contract(Make&& make, Check&& check) {
  const BlockKey key{1, 2}, other{1, 3};
  const auto deref = [](auto& made) -> auto& {
    if constexpr (requires { *made; })
      return *made;
    else
      return made;
  };
  const auto put = [](auto& tier, SlotId slot, BlockKey k, unsigned char fill, std::size_t bytes) {
    auto room = tier.stage(slot);
    if (!room.ok()) return room.status();
    std::memset(room->data(), fill, bytes);
    return tier.seal(slot, k, bytes);
  };
  const auto holds = [](auto& tier, SlotId slot, BlockKey k, unsigned char fill, std::size_t bytes) {
    const auto got = tier.read(slot, k);
    if (!got.ok() || got->size() != bytes) return false;
    for (const std::byte b : *got)
      if (b != static_cast<std::byte>(fill)) return false;
    return true;
  };
  {
    auto made = make();
    auto& tier = deref(made);
    check(tier.slots() >= 2 && tier.slot_bytes() >= 256, "the suite needs two slots of 256 bytes");
    check(!tier.read(0, key).ok(), "a slot that was never sealed holds nothing");
    check(put(tier, 0, key, 0x11, 256).ok(), "a staged slot can be sealed");
    check(holds(tier, 0, key, 0x11, 256), "what was sealed is read back");
    check(holds(tier, 0, key, 0x11, 256), "and again: reading takes nothing away");
    check(put(tier, 1, other, 0x22, 100).ok() && holds(tier, 1, other, 0x22, 100),
          "a block may be shorter than its slot");
    check(holds(tier, 0, key, 0x11, 256), "slots do not disturb each other");
    check(put(tier, 0, other, 0x33, 0).ok() && holds(tier, 0, other, 0, 0), "a block may be empty");
  }
  {
    auto made = make();
    auto& tier = deref(made);
    check(put(tier, 0, key, 0x11, 64).ok(), "seal");
    const auto foreign = tier.read(0, other);
    check(foreign.status().code() == StatusCode::kCorrupt, "another block's key reads as corrupt");
    check(!tier.read(0, key).ok(), "a slot that was read as corrupt is dropped");
    check(put(tier, 0, key, 0x44, 64).ok() && holds(tier, 0, key, 0x44, 64), "and can be used again");
    tier.drop(0);
    check(!tier.read(0, key).ok(), "a dropped slot holds nothing");
    tier.drop(0);
    check(true, "dropping twice is harmless");
  }
  {
    auto made = make();
    auto& tier = deref(made);
    check(tier.seal(0, key, 16).code() == StatusCode::kWrongState, "sealing needs staging");
    check(put(tier, 0, key, 0x11, 16).ok(), "seal");
    check(tier.seal(0, key, 16).code() == StatusCode::kWrongState, "sealing twice needs staging again");
    check(tier.stage(0).ok() && !tier.read(0, key).ok(), "a staged slot holds nothing, whatever was in it");
    check(tier.stage(0).ok() && tier.seal(0, key, tier.slot_bytes() + 1).code() == StatusCode::kOutOfRange,
          "a block longer than the slot is refused");
    const SlotId none = tier.slots();
    check(tier.stage(none).status().code() == StatusCode::kOutOfRange, "no staging outside the tier");
    check(tier.read(none, key).status().code() == StatusCode::kOutOfRange, "no reading outside the tier");
    check(tier.seal(none, key, 1).code() == StatusCode::kOutOfRange, "no sealing outside the tier");
    tier.drop(none);
    check(true, "dropping outside the tier is harmless");
  }
  {
    // Bytes that change behind the tier's back: a pointer that somebody kept.
    auto made = make();
    auto& tier = deref(made);
    const auto room = tier.stage(0);
    check(room.ok(), "stage");
    if (!room.ok()) return;
    std::memset(room->data(), 0x55, 200);
    check(tier.seal(0, key, 200).ok(), "seal");
    for (const std::size_t at : {std::size_t{0}, std::size_t{99}, std::size_t{199}}) {
      for (const int bit : {0, 7}) {
        std::memset(room->data(), 0x55, 200);
        (*room)[at] ^= static_cast<std::byte>(1 << bit);
        check(tier.read(0, key).status().code() == StatusCode::kCorrupt, "a flipped bit reads as corrupt");
        std::memset(tier.stage(0)->data(), 0x55, 200);
        (void)tier.seal(0, key, 200);
      }
    }
    check(holds(tier, 0, key, 0x55, 200), "without a flipped bit it reads");
  }
}

}  // namespace kvstem::inline v0
