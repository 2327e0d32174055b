// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// engine.cpp's conversations on SmolLM2, in a pool for half of them: the same tokens and bitwise the same logits.
#include "conversations.hpp"

using namespace paged;
using namespace paged::test;

TEST_CASE("SmolLM2: eight conversations in half the pool they need, alone and on two ranks, bit for bit") {
  const Sizes sizes;
  const Outcome alone = run(options(kSmolLM2, blocks(sizes)), sizes, true);
  print("alone", alone);
  EngineOptions half = options(kSmolLM2, blocks(sizes) / 2);
  Lines lines;
  half.recorder = &lines;
  const Outcome one = run(half, sizes, false);
  half.recorder = nullptr;
  print("half the pool", one);
  check_same(one, alone);
  CHECK(one.host.preempted > 0);
  CHECK(one.host.accepted_drafts > 0);
  CHECK(one.host.copies > 0);
  const Outcome two = run_ranks(half, sizes, 2, 3);
  check_same(two, alone);
  CHECK(two.host.computed_tokens == one.host.computed_tokens);
  CHECK(two.cache.evicted_blocks == one.cache.evicted_blocks);
}
