// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Steps as bytes are a format: ranks of one deployment may run builds of different days. steps.txt must not change but with
// a new kStepVersion. It is written by make_steps.py (`python3 make_steps.py > steps.txt`).
#include <cstdio>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kvstem/cache/step_codec.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {

const StepEntry kLoad{.kind = StepKind::kLoad,
                      .group = 0,
                      .lease = 7,
                      .generation = 3,
                      .block = 12,
                      .slot = 99,
                      .key = {0x0123456789abcdef, 0xfedcba9876543210},
                      .not_before = {2, 41},
                      .from_slot = kNoSlot,
                      .from_offset = 0,
                      .offset = 0,
                      .tokens = 0,
                      .source_ready = {}};
const StepEntry kCopy{.kind = StepKind::kCopy,
                      .group = 1,
                      .lease = 5,
                      .generation = 1,
                      .block = 4,
                      .slot = 17,
                      .key = {},
                      .not_before = {1, std::uint64_t{1} << 40},
                      .from_slot = 16,
                      .from_offset = 2,
                      .offset = 1,
                      .tokens = 6,
                      .source_ready = {3, 9}};

std::string hex(const std::vector<std::byte>& bytes) {
  std::string text;
  char two[3];
  for (const std::byte b : bytes)
    text += (std::snprintf(two, sizeof two, "%02x", static_cast<unsigned>(b)), two);
  return text;
}
std::vector<std::byte> step(const std::vector<StepEntry>& entries, std::uint64_t decisions) {
  std::vector<std::byte> out(encoded_bytes(entries.size()));
  REQUIRE(encode_step(entries, decisions, out).ok());
  return out;
}
bool same(const StepEntry& a, const StepEntry& b) {
  return a.kind == b.kind && a.group == b.group && a.lease == b.lease && a.generation == b.generation &&
         a.block == b.block && a.slot == b.slot && a.key == b.key && a.not_before == b.not_before &&
         a.from_slot == b.from_slot && a.from_offset == b.from_offset && a.offset == b.offset &&
         a.tokens == b.tokens && a.source_ready == b.source_ready;
}

}  // namespace

TEST_CASE("steps and results have the golden bytes, and come back as they were") {
  std::map<std::string, std::string> golden;
  std::ifstream file(KVSTEM_TEST_DATA "/golden/steps.txt");
  for (std::string line; std::getline(file, line);)
    golden[line.substr(0, line.find(':'))] = line.substr(line.find(':') + 2);
  REQUIRE(golden.size() == 3);
  CHECK(hex(step({}, 0)) == golden["empty step"]);
  const auto two = step({kLoad, kCopy}, 0xdeadbeef00112233);
  CHECK(hex(two) == golden["step"]);
  StepEntry room[2];
  const auto back = decode_step(two, room);
  REQUIRE(back.ok());
  REQUIRE(back->entries.size() == 2);
  CHECK((same(back->entries[0], kLoad) && same(back->entries[1], kCopy) &&
         back->decisions == 0xdeadbeef00112233));

  const StepResult results[] = {{kLoad, {}}, {kCopy, {StatusCode::kUnavailable, "told to fail"}}};
  std::vector<std::byte> out(encoded_bytes(2));
  REQUIRE(encode_results(results, 5, out).ok());
  CHECK(hex(out) == golden["results"]);
  StepResult results_room[2];
  const auto results_back = decode_results(out, results_room);
  REQUIRE(results_back.ok());
  CHECK((results_back->results[0].status.ok() && same(results_back->results[0].entry, kLoad)));
  CHECK((results_back->results[1].status.code() == StatusCode::kUnavailable && results_back->decisions == 5));
}

TEST_CASE("bytes that are no message of this version are refused whole") {
  StepEntry room[2];
  const auto good = step({kLoad, kCopy}, 1);
  for (std::size_t n = 0; n < good.size(); ++n)
    CHECK(decode_step(std::span(good).first(n), room).status().code() == StatusCode::kCorrupt);
  CHECK(decode_step(good, std::span(room).first(1)).status().code() == StatusCode::kOutOfRange);
  auto other = good;
  other[2] = std::byte{2};
  CHECK(decode_step(other, room).status().code() == StatusCode::kUnsupported);
  StepResult results[2];
  CHECK(decode_results(good, results).status().code() == StatusCode::kCorrupt);
  CHECK(encode_step(std::span(&kLoad, 1), 0, other).code() == StatusCode::kOutOfRange);
  // Whatever is changed, it is refused or read as other values, never out of bounds.
  std::mt19937 random(3);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    other = good;
    for (int changes = 0; changes < 3; ++changes)
      other[random() % other.size()] = static_cast<std::byte>(random());
    refused += !decode_step(other, room).ok();
  }
  std::printf("damaged steps, seed 3: %d of 2000 refused\n", refused);
  CHECK(refused > 200);
}
