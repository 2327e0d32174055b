// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The engine as a whole: whatever it reuses, preempts, drafts, forks or splits over two ranks, each answer and the logits
// that it was chosen from are bit for bit those of a request that is alone in an engine without a cache.
#include "conversations.hpp"

using namespace paged;
using namespace paged::test;

TEST_CASE("tiny: reuse, forks, drafts and preemption change no bit, with steps ahead and without") {
  const Sizes sizes;
  const std::string file = kTiny;
  const Outcome expected = run(options(file, 256), sizes, true);
  CHECK(expected.host.matched_tokens == 0);
  for (const std::uint32_t ahead : {0, 1}) {
    EngineOptions roomy = options(file, 2 * blocks(sizes));
    roomy.ahead = ahead;
    const Outcome plenty = run(roomy, sizes, false);
    check_same(plenty, expected);
    CHECK(plenty.host.preempted == 0);
    CHECK(plenty.host.copies > 0);
    EngineOptions half = options(file, blocks(sizes) / 4);
    half.ahead = ahead;
    Lines lines;
    half.recorder = &lines;
    const Outcome tight = run(half, sizes, false);
    print("tiny, tight", tight);
    check_same(tight, expected);
    CHECK(tight.host.preempted > 0);
    CHECK(tight.cache.evicted_blocks > 0);
    CHECK(tight.host.accepted_drafts > 0);
  }
}

TEST_CASE("tiny: two ranks decide alike at each step and give the same bits") {
  const Sizes sizes;
  const std::string file = model("tiny/two_kv_heads.gguf");
  const Outcome one = run(options(file, blocks(sizes) / 4), sizes, false);
  const Outcome two = run_ranks(options(file, blocks(sizes) / 4), sizes, 1, 2);
  check_same(two, one);
  CHECK(two.host.preempted == one.host.preempted);
}

TEST_CASE("a rank that is gone, or that decides otherwise, ends the other with an error") {
  for (const bool gone : {true, false}) {
    auto [first, second] = Link::pair();
    REQUIRE(first.usable());
    const pid_t child = fork();
    REQUIRE(child >= 0);
    const auto serve = [&](Link& link, HeadRange heads, std::size_t prompt) {
      EngineOptions o = options(model("tiny/two_kv_heads.gguf"), 16);
      o.model.threads = 1;
      o.model.heads = heads;
      o.model.gather = o.link = &link;
      std::string error;
      const auto engine = Engine::create(o, error);
      REQUIRE(engine != nullptr);
      REQUIRE(engine->submit({.tokens = Tokens(prompt, 5)}).ok());
      std::uint32_t failed = 0;
      for (int i = 0; i < 100 && engine->busy(); ++i)
        for (const Event& e : engine->step()) failed += e.kind == Event::Kind::kFailed;
      CHECK(failed == 1);
      CHECK_FALSE(engine->busy());
      CHECK(engine->step().empty());
      return engine->error();
    };
    if (child == 0) {
      first.close();
      if (!gone) (void)serve(second, {1, 2}, 20);
      _exit(0);
    }
    second.close();
    const std::string error = serve(first, {0, 1}, 21);
    CHECK_FALSE(error.empty());
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
  }
}

TEST_CASE("a job is the same after its way through a link, and cut bytes are refused") {
  const Job job{
      .done = {0, 7},
      .decisions = 99,
      .copies = {{.kind = kvstem::StepKind::kCopy, .block = 1, .slot = 3, .from_slot = 2, .tokens = 5}},
      .work = {{.request = 1,
                .sequence = 4,
                .begin = 3,
                .first = 0,
                .rows = 2,
                .drafts = 1,
                .choose = {{0.5F, 9}}}},
      .tokens = {11, 12},
      .width = 2,
      .tables = {3, -1}};
  const auto bytes = encode(job);
  Job back;
  REQUIRE(decode(bytes, back));
  CHECK(encode(back) == bytes);
  CHECK(back.work == job.work);
  for (std::size_t n = 0; n < bytes.size(); ++n) CHECK_FALSE(decode(std::span(bytes).first(n), back));
}

TEST_CASE("look-up finds what followed the last time, and nothing where nothing repeats") {
  const Tokens text{1, 2, 3, 4, 5, 6, 1, 2, 3};
  CHECK(look_up(text, 2) == Tokens{4, 5});
  CHECK(look_up(text, 9) == Tokens{4, 5, 6, 1, 2, 3});
  CHECK(look_up(Tokens{1, 2, 3, 4}, 4).empty());
  CHECK(look_up({}, 4).empty());
  CHECK(look_up(Tokens{7, 7, 7}, 4) == Tokens{7});
}

TEST_CASE("the engine refuses what it cannot serve, and goes on after a request is cancelled") {
  std::string error;
  CHECK(Engine::create({.model = {.file = "no such file", .slots = 8}}, error) == nullptr);
  CHECK_FALSE(error.empty());
  const auto engine = Engine::create(options(kTiny, 16), error);
  REQUIRE(engine != nullptr);
  CHECK_FALSE(engine->submit({}).ok());
  CHECK_FALSE(engine->submit({.tokens = Tokens(8, 1), .max_new_tokens = 100'000}).ok());
  CHECK_FALSE(engine->submit({.tokens = Tokens(8, 1), .samples = 0}).ok());
  const auto foreign = engine->submit({.tokens = Tokens(8, 1'000'000)});
  REQUIRE(foreign.ok());
  const auto gone = engine->submit({.tokens = Tokens(40, 1), .max_new_tokens = 30, .samples = 3});
  const auto stays = engine->submit({.tokens = Tokens(40, 2), .max_new_tokens = 0});
  const auto none = engine->submit({.tokens = Tokens(40, 4), .max_new_tokens = 0, .samples = 4});
  REQUIRE(none.ok());
  const auto stops = engine->submit({.tokens = Tokens(40, 3), .max_new_tokens = 20, .drafts = 3});
  REQUIRE(gone.ok());
  REQUIRE(stays.ok());
  REQUIRE(stops.ok());
  std::map<RequestNumber, std::pair<int, int>> seen;  // tokens; ends
  for (int i = 0; i < 200 && engine->busy(); ++i) {
    if (i == 4) engine->cancel(*gone);
    for (const Event& e : engine->step()) {
      seen[e.request].first += e.kind == Event::Kind::kToken;
      seen[e.request].second +=
          e.kind == Event::Kind::kFinished ? 1 : (e.kind == Event::Kind::kFailed ? 100 : 0);
      if (i > 4) CHECK(e.request != *gone);
    }
  }
  CHECK_FALSE(engine->busy());
  CHECK(seen[*foreign] == std::pair{0, 100});
  CHECK(seen[*stays] == std::pair{0, 1});
  CHECK(seen[*none] == std::pair{0, 1});
  CHECK(seen[*stops] == std::pair{20, 1});
  CHECK(engine->host().cache().audit().balanced());
}
