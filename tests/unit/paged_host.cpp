// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// PagedHost under an engine that computes late and checks every byte: who goes first, preemption, samples, drafts, steps
// that are scheduled ahead, and a random walk of all of it over several kinds of groups.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <map>
#include <random>
#include <string>

#include "kvstem/host/paged_host.hpp"
#include "kvstem/testing/oracle_engine.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {

using Tokens = std::vector<TokenId>;
constexpr TokenId kVocabulary = 50;

/// What the model chooses behind a text; `flavour` is that of a sample.
TokenId choice(const Tokens& text, std::size_t length, std::uint64_t flavour) {
  std::uint64_t state = flavour;
  for (std::size_t i = 0; i < length; ++i) state = OracleText::next(state, text[i]);
  return static_cast<TokenId>(state % kVocabulary);
}
Tokens answered(Tokens prompt, std::uint32_t n, std::uint64_t flavour) {
  while (n-- > 0) prompt.push_back(choice(prompt, prompt.size(), flavour));
  return prompt;
}
Tokens prompt_of(std::uint32_t n, TokenId start) {
  Tokens t(n);
  for (std::uint32_t i = 0; i < n; ++i) t[i] = (start + static_cast<TokenId>(i * 7)) % kVocabulary;
  return t;
}

struct Line {
  PagedSequence id{};
  Tokens text{};  // prompt, and all that the model chooses behind it
  std::uint32_t prompt = 0, limit = 0;
  std::uint64_t flavour = 0, scope = 0;
  std::uint32_t samples = 0;  // to be forked when its prompt is computed
  bool drafts = false, over = false;
  std::uint64_t started_in = 0;  // the step with its first work
};

/// An engine on top of a PagedHost, whose device is the oracle.
struct Engine {
  explicit Engine(PagedHostOptions options, std::uint64_t seed = 1, std::uint32_t copies_fail = 0) {
    options.cache.block_tokens = 4;
    auto made = PagedHost::create(options);
    REQUIRE(made.ok());
    host = std::move(*made);
    for (std::uint32_t s = 0; s < 2; ++s) {
      const auto opened = host->open_scope({.model = s == 0 ? "a" : "b", .vocab_size = kVocabulary});
      REQUIRE(opened.ok());
      scopes.push_back(*opened);
    }
    device = std::make_unique<OracleEngine>(
        OracleOptions{.slots = options.cache.slots,
                      .block_tokens = 4,
                      .groups = {options.cache.groups.begin(), options.cache.groups.end()},
                      .null_slot = options.cache.null_slot,
                      .seed = seed,
                      .copies_fail = copies_fail});
    groups = std::max<std::size_t>(1, options.cache.groups.size());
  }

  Line& add(Tokens prompt, std::uint32_t n, Line as = {}, AcquireOptions how = {}) {
    const auto id = host->add({.prompt = {.scope = scopes[as.scope], .tokens = prompt},
                               .max_new_tokens = n,
                               .how = how,
                               .ahead = !as.drafts});
    REQUIRE(id.ok());
    as.id = *id;
    as.prompt = static_cast<std::uint32_t>(prompt.size());
    as.limit = as.prompt + n;
    as.text = answered(std::move(prompt), n, as.flavour);
    return lines.emplace_back(std::move(as));
  }

  /// Schedules one step and launches it.
  void launch() {
    flights.push_back({});
    PagedStep& step = flights.back();
    REQUIRE(host->schedule({0, ++now}, step).ok());
    for (const PagedFailure& f : step.failed) FAIL(f.status.message());
    for (const StepEntry& e : step.copies) device->submit(e);
    OracleStep work{.done = step.done, .work = {}};
    std::uint32_t tokens = 0;
    for (std::size_t i = 0; i < step.work.size(); ++i) {
      const PagedWork& w = step.work[i];
      Line& line = of(w.sequence);
      if (line.started_in == 0) line.started_in = now;
      OracleWork o{.tables = {}, .states = {}, .begin = w.begin, .end = w.end};
      OracleText text(line.scope);
      Tokens seen;
      for (std::uint32_t p = 0; p < w.end; ++p) {
        TokenId token = line.text[p];
        if (p >= w.begin) {
          const TokenId told = step.tokens[w.first_token + p - w.begin];
          if (p < w.end - w.drafts) REQUIRE(told == (w.ahead ? PagedStep::kNoToken : token));
          if (p >= w.end - w.drafts) token = told;
        }
        text.append(token);
      }
      o.states = text.states();
      for (GroupId g = 0; g < groups; ++g) {
        const PagedTables& t = step.groups[g];
        const auto row = t.block_tables.begin() + static_cast<std::ptrdiff_t>(i * t.width);
        o.tables.push_back({row, row + t.width});
        o.of_group.push_back({t.begin[i], w.end});
        if (!t.slot_mapping.empty() && t.begin[i] == w.begin && g == 0) {
          const std::int64_t at = t.slot_mapping[w.first_token];
          if (o.tables[0].size() > w.begin / 4)
            REQUIRE(at == o.tables[0][w.begin / 4] * 4 + static_cast<int>(w.begin % 4));
        }
      }
      tokens += w.end - w.begin;
      work.work.push_back(std::move(o));
    }
    REQUIRE(tokens == step.tokens.size());
    REQUIRE(tokens <= step_tokens);
    idle += step.work.empty();
    device->launch(std::move(work));
    check();
  }

  /// Waits for the oldest step, and tells the host what the model has chosen.
  void collect() {
    const PagedStep step = std::move(flights.front());
    flights.pop_front();
    while (device->done().value < step.done.value) device->tick();
    StepResult results[8];
    for (auto told = device->poll(results); !told.empty(); told = device->poll(results))
      for (const StepResult& r : told) early.push_back(r);
    std::erase_if(early, [&](const StepResult& r) {
      if (!r.status.ok()) failed += host->failed(r.entry, r.status).ok();
      return true;
    });
    REQUIRE(host->finished(step.done).ok());
    for (const PagedWork& w : step.work) {
      if (!w.samples) continue;
      Line* line = find(w.sequence);
      if (line == nullptr) {  // it hung up
        const TokenId any = 0;
        REQUIRE(host->accept(w.sequence, {&any, 1}).code() == StatusCode::kStale);
        continue;
      }
      while (line->samples > 0 && w.end == line->prompt) fork(*line), line = find(w.sequence);
      const std::uint32_t first = w.end - w.drafts;
      std::uint32_t right = 0;
      while (right < w.drafts &&
             step.tokens[w.first_token + first + right - w.begin] == line->text[first + right])
        ++right;
      const std::uint32_t n = std::min(right + 1, line->limit - first);
      accepted_drafts += right;
      const Status taken = host->accept(w.sequence, std::span(line->text).subspan(first, n));
      dropped += taken.code() == StatusCode::kUnavailable;
      if (taken.code() == StatusCode::kUnavailable) continue;  // it rests on a copy that failed
      INFO(taken.message());
      REQUIRE(taken.ok());
      const auto known = host->tokens(w.sequence);
      REQUIRE(std::equal(known.begin(), known.end(), line->text.begin()));
      if (known.size() < line->limit) continue;
      REQUIRE(host->end(w.sequence).ok());
      REQUIRE(host->end(w.sequence).code() == StatusCode::kStale);
      line->over = true;
      ++finished;
    }
    check();
  }
  void fork(Line& line) {
    Line sample = line;
    sample.flavour = line.flavour * 31 + --line.samples + 1;
    sample.samples = 0;
    sample.text.resize(sample.prompt);
    sample.text = answered(sample.text, sample.limit - sample.prompt, sample.flavour);
    const auto id =
        host->fork(line.id, std::span(sample.text).subspan(sample.prompt, 1), sample.limit - sample.prompt);
    if (!id.ok()) {
      REQUIRE(id.status().code() == StatusCode::kExhausted);  // max_sequences
      return;
    }
    sample.id = *id;
    ++forked;
    forked_at_once += host->progress(*id).running;
    if (sample.limit == sample.prompt + 1) {
      REQUIRE(host->end(*id).ok());
      return;
    }
    lines.push_back(std::move(sample));
  }
  /// Until nobody is left. `depth`: steps that are under way at once.
  void run(std::size_t depth = 1) {
    for (std::uint32_t rounds = 0; host->busy(); ++rounds) {
      REQUIRE(rounds < 5000);  // else somebody waits for ever
      launch();
      while (flights.size() > depth) collect();
      for (Line& line : lines)
        if (line.drafts && !line.over) (void)host->propose(line.id, {});
    }
    while (!flights.empty()) collect();
  }
  /// Slots that anybody holds when all is over, and one idle step after it.
  std::uint32_t held_after_all() {
    while (!flights.empty()) collect();
    launch();
    collect();
    return host->cache().pool().held_slots();
  }
  void check() const {
    INFO(device->first_error);
    REQUIRE(device->wrong_reads == 0);
    REQUIRE(device->mistakes == 0);
    REQUIRE(host->cache().audit().balanced());
  }

  Line* find(PagedSequence id) {
    const auto at = std::ranges::find_if(lines, [&](const Line& l) { return l.id == id && !l.over; });
    return at == lines.end() ? nullptr : &*at;
  }
  Line& of(PagedSequence id) {
    Line* line = find(id);
    REQUIRE(line != nullptr);
    return *line;
  }

  std::unique_ptr<PagedHost> host;
  std::unique_ptr<OracleEngine> device;
  std::vector<ScopeId> scopes;
  std::deque<Line> lines;
  std::deque<PagedStep> flights;
  std::vector<StepResult> early;
  std::size_t groups = 1;
  std::uint64_t now = 0;
  std::uint32_t step_tokens = 16, finished = 0, forked = 0, forked_at_once = 0, idle = 0, failed = 0,
                dropped = 0;
  std::uint64_t accepted_drafts = 0;
};

PagedHostOptions options(std::uint32_t slots, std::span<const KvGroup> groups = {}) {
  return {.cache = {.slots = slots, .max_leases = 8, .max_lease_tokens = 96, .groups = groups},
          .step_tokens = 16,
          .max_sequences = 24};
}

constexpr KvGroup kFull{.bytes_per_token = 1};

}  // namespace

TEST_CASE("requests of one prompt compute it once, in chunks, and answer as if alone") {
  Engine engine(options(64));
  const Tokens shared = prompt_of(30, 3);
  for (int i = 0; i < 4; ++i) engine.add(shared, 6, {.flavour = static_cast<std::uint64_t>(i)});
  engine.run();
  CHECK(engine.finished == 4);
  // 30 once, then for each of the other three what is behind the last whole block, and five positions each of the answers.
  CHECK(engine.host->stats().computed_tokens == 30 + 3 * (30 - 28) + 4 * 5);
  CHECK(engine.host->stats().preempted == 0);
}

TEST_CASE(
    "at full use of the pool all requests finish, the oldest first, and none is overtaken in the line") {
  for (const std::size_t depth : {0, 1}) {
    Engine engine(options(14));
    for (int i = 0; i < 10; ++i) engine.add(prompt_of(17, static_cast<TokenId>(5 * i + 1)), 30);
    engine.run(depth);
    CHECK(engine.finished == 10);
    CHECK(engine.host->stats().preempted > 0);
    for (std::size_t i = 1; i < 10; ++i) CHECK(engine.lines[i - 1].started_in <= engine.lines[i].started_in);
    CHECK(engine.held_after_all() == 0);
  }
}

TEST_CASE("samples share their prompt by reference, and wait in line where no slot is left") {
  Engine engine(options(64)), tight(options(7));
  for (Engine* e : {&engine, &tight}) {
    e->add(prompt_of(18, 2), 5, {.samples = 3});
    e->run();
    CHECK(e->finished == 4);
    CHECK(e->forked == 3);
  }
  CHECK(engine.forked_at_once == 3);
  CHECK(engine.host->stats().computed_tokens == 18 + 4 * 4);  // the copies bring the rest
  CHECK(tight.forked_at_once < 3);
}

TEST_CASE("drafts are verified in one step, and wrong ones leave nothing behind") {
  Engine engine(options(64));
  Line& line = engine.add(prompt_of(9, 4), 20, {.drafts = true});
  engine.launch();
  engine.collect();
  std::uint32_t steps = 0;
  for (; engine.host->busy(); ++steps) {
    const auto known = engine.host->progress(line.id).known_tokens;
    Tokens drafts(line.text.begin() + known, line.text.begin() + std::min(known + 3, line.limit));
    if (steps % 2 == 1 && drafts.size() > 1) drafts[1] = (drafts[1] + 1) % kVocabulary;
    REQUIRE(engine.host->propose(line.id, drafts).ok());
    engine.launch();
    engine.collect();
  }
  CHECK(engine.finished == 1);
  CHECK(steps < 10);
  CHECK(engine.host->stats().accepted_drafts == engine.accepted_drafts);
  CHECK(engine.accepted_drafts > 8);
}

TEST_CASE("what cannot be served is refused, and bad calls change nothing") {
  auto wrong = options(8);
  wrong.step_tokens = 0;
  CHECK(PagedHost::create(wrong).status().code() == StatusCode::kInvalidArgument);
  wrong = options(8);
  wrong.cache.fill = SlotFill::kByStep;
  CHECK(PagedHost::create(wrong).status().code() == StatusCode::kInvalidArgument);
  wrong = options(0);
  CHECK(PagedHost::create(wrong).status().code() == StatusCode::kInvalidArgument);

  Engine engine(options(8));
  PagedHost& host = *engine.host;
  const Tokens prompt = prompt_of(9, 0), token{7}, two{7, 7}, foreign{kVocabulary};
  const Prompt good{.scope = engine.scopes[0], .tokens = prompt};
  CHECK(host.add({.prompt = {.scope = engine.scopes[0]}}).status().code() == StatusCode::kInvalidArgument);
  CHECK(host.add({.prompt = good, .max_new_tokens = 100}).status().code() == StatusCode::kOutOfRange);
  CHECK(host.add({.prompt = good, .max_new_tokens = 25}).status().code() ==
        StatusCode::kOutOfRange);  // 9 blocks
  CHECK_FALSE(host.busy());
  CHECK(host.accept({}, token).code() == StatusCode::kStale);
  CHECK(host.end({77, 1}).code() == StatusCode::kStale);

  const auto id = host.add({.prompt = good, .max_new_tokens = 4, .ahead = false});
  REQUIRE(id.ok());
  CHECK(host.accept(*id, token).code() == StatusCode::kWrongState);
  CHECK(host.fork(*id, token, 1).status().code() == StatusCode::kWrongState);
  PagedStep step;
  REQUIRE(host.schedule({0, 1}, step).ok());
  REQUIRE(step.work.size() == 1);
  CHECK(host.schedule({0, 1}, step).code() == StatusCode::kInvalidArgument);
  CHECK(host.schedule({99, 2}, step).code() == StatusCode::kOutOfRange);
  CHECK(host.propose(*id, token).code() == StatusCode::kWrongState);
  CHECK(host.accept(*id, {}).code() == StatusCode::kOutOfRange);
  CHECK(host.accept(*id, two).code() == StatusCode::kOutOfRange);
  CHECK(host.accept(*id, foreign).code() == StatusCode::kOutOfRange);
  CHECK(host.fork(*id, {}, 1).status().code() == StatusCode::kInvalidArgument);
  CHECK(host.fork(*id, foreign, 1).status().code() == StatusCode::kOutOfRange);
  CHECK(host.fork(*id, token, 100).status().code() == StatusCode::kOutOfRange);
  CHECK(host.tokens(*id).size() == 9);
  REQUIRE(host.accept(*id, token).ok());
  CHECK(host.tokens(*id).size() == 10);
  REQUIRE(host.abort(*id).ok());
  CHECK(host.tokens(*id).empty());
  CHECK_FALSE(host.busy());
  const auto bad = host.add({.prompt = {.scope = engine.scopes[0], .tokens = foreign}});
  REQUIRE(bad.ok());
  REQUIRE(host.schedule({0, 5}, step).ok());
  REQUIRE(step.failed.size() == 1);
  CHECK(step.failed[0].sequence == *bad);
  CHECK(step.failed[0].status.code() == StatusCode::kOutOfRange);
  CHECK_FALSE(host.busy());
  CHECK(host.cache().audit().balanced());
}

TEST_CASE("two hosts that hear the same calls say the same steps") {
  Engine one(options(14)), two(options(14));
  for (Engine* e : {&one, &two})
    for (int i = 0; i < 6; ++i) e->add(prompt_of(15, static_cast<TokenId>(3 * i)), 12, {.samples = 1});
  while (one.host->busy()) {
    one.launch();
    two.launch();
    REQUIRE(one.flights.back().decisions == two.flights.back().decisions);
    REQUIRE(one.flights.back().tokens == two.flights.back().tokens);
    one.collect();
    two.collect();
  }
  CHECK(one.finished == 12);
}

TEST_CASE("a prompt computed by nobody's cache is private, and max_hit keeps its logits to come") {
  Engine engine(options(64));
  const Tokens prompt = prompt_of(24, 1);
  engine.add(prompt, 2);
  engine.run();
  engine.add(prompt, 2, {}, {.max_hit_tokens = 0});
  engine.add(prompt, 2, {}, {.reuse = false});
  engine.run();
  CHECK(engine.host->stats().computed_tokens == 3 * 25);
  engine.add(prompt, 2);
  engine.run();
  CHECK(engine.host->stats().computed_tokens == 3 * 25 + 5);
}

TEST_CASE("what a request found and cannot use never keeps it from its slots") {
  // A shorter prefix of what is cached, larger than what is left of the pool.
  const std::vector<KvGroup> hybrid = {
      kFull, {.kind = GroupKind::kStateCheckpoint, .bytes_per_token = 4, .slots = 16}};
  for (const bool states : {true, false})
    for (std::uint32_t slots = 3; slots < 10; ++slots)
      for (std::uint32_t n = 1; n <= slots; ++n) {
        Engine engine(options(slots, states ? std::span(hybrid) : std::span<const KvGroup>{}));
        const Tokens whole = prompt_of(4 * slots, 1);
        engine.add(whole, 1);
        engine.run();
        engine.add({whole.begin(), whole.begin() + 4 * n - 1}, 1, {},
                   {.max_hit_tokens = states ? 1000u : 8u});
        engine.run();
        CHECK(engine.finished == 2);
      }
}

TEST_CASE("a request that can never have its slots ends with an error, and those behind it go on") {
  const std::vector<std::vector<KvGroup>> kinds = {
      {kFull, {.kind = GroupKind::kSlidingWindow, .window_tokens = 8, .bytes_per_token = 1, .slots = 1}},
      {kFull, {.kind = GroupKind::kStateCheckpoint, .bytes_per_token = 4, .slots = 1}}};
  for (const std::vector<KvGroup>& groups : kinds) {
    auto o = options(32, groups);
    o.cache.block_tokens = 4;
    auto made = PagedHost::create(o);
    REQUIRE(made.ok());
    PagedHost& host = **made;
    const auto scope = host.open_scope({.model = "m", .vocab_size = kVocabulary});
    REQUIRE(scope.ok());
    const Tokens large = prompt_of(40, 1), small = prompt_of(2, 30);
    REQUIRE(host.add({.prompt = {.scope = *scope, .tokens = large}, .max_new_tokens = 4}).ok());
    REQUIRE(host.add({.prompt = {.scope = *scope, .tokens = small}, .max_new_tokens = 0}).ok());
    std::uint32_t failed = 0, served = 0;
    PagedStep step;
    for (std::uint64_t n = 1; n < 60 && failed + served < 2; ++n) {
      REQUIRE(host.schedule({0, n}, step).ok());
      REQUIRE(host.finished(step.done).ok());
      for (const PagedFailure& f : step.failed) {
        CHECK(f.status.code() == StatusCode::kOutOfRange);
        ++failed;
      }
      for (const PagedWork& w : step.work)
        if (w.end == 2) served += host.end(w.sequence).ok();
    }
    CHECK(failed >= 1);
    CHECK(failed + served == 2);
    CHECK_FALSE(host.busy());
    CHECK(host.cache().audit().balanced());
  }
  // Where a chunk is too large for the window's pool, a smaller one is not.
  const KvGroup window[] = {
      kFull, {.kind = GroupKind::kSlidingWindow, .window_tokens = 8, .bytes_per_token = 1, .slots = 5}};
  Engine engine(options(32, window));
  engine.add(prompt_of(80, 1), 4);
  engine.run();
  CHECK(engine.finished == 1);
  const KvGroup full[] = {kFull, {.bytes_per_token = 1, .slots = 3}};
  Engine small(options(32, full));
  const Tokens prompt = prompt_of(13, 1);
  CHECK(small.host->add({.prompt = {.scope = small.scopes[0], .tokens = prompt}}).status().code() ==
        StatusCode::kOutOfRange);
}

TEST_CASE("the result of one that was preempted on top of a copy that failed is dropped") {
  auto o = options(3);
  o.cache.block_tokens = 4;
  auto made = PagedHost::create(o);
  REQUIRE(made.ok());
  PagedHost& host = **made;
  const auto scope = host.open_scope({.model = "m", .vocab_size = kVocabulary});
  REQUIRE(scope.ok());
  const Tokens prompt = prompt_of(6, 1);
  const TokenId token = 7, foreign = kVocabulary;
  PagedStep step[5];
  const auto parent = host.add({.prompt = {.scope = *scope, .tokens = prompt}, .max_new_tokens = 5});
  REQUIRE(parent.ok());
  REQUIRE(host.schedule({0, 1}, step[1]).ok());
  REQUIRE(host.schedule({0, 2}, step[2]).ok());
  REQUIRE(host.finished({0, 1}).ok());
  const auto child = host.fork(*parent, {&token, 1}, 5);
  REQUIRE(child.ok());
  REQUIRE(host.accept(*parent, {&token, 1}).ok());
  REQUIRE(host.schedule({0, 3}, step[3]).ok());
  REQUIRE(step[3].copies.size() == 1);
  REQUIRE(host.finished({0, 2}).ok());
  REQUIRE(host.accept(*parent, {&token, 1}).ok());
  REQUIRE(host.schedule({0, 4}, step[4]).ok());
  REQUIRE_FALSE(host.progress(*child).running);
  CHECK(host.accept(*child, {&foreign, 1}).code() == StatusCode::kOutOfRange);
  CHECK(host.fork(*child, {&foreign, 1}, 1).status().code() == StatusCode::kOutOfRange);
  REQUIRE(host.failed(step[3].copies[0], {StatusCode::kUnavailable, ""}).ok());
  CHECK(host.failed(step[3].copies[0], {StatusCode::kUnavailable, ""}).code() == StatusCode::kStale);
  REQUIRE(host.finished({0, 3}).ok());
  CHECK(host.accept(*child, {&token, 1}).code() == StatusCode::kUnavailable);
  CHECK(host.tokens(*child).size() == 7);
  CHECK(host.accept(*child, {&token, 1}).code() == StatusCode::kWrongState);
  CHECK(host.fork(*child, {&token, 1}, 1).ok());  // its prompt was computed once
}

TEST_CASE("drafts are compared with what is accepted, and cost nobody their slots") {
  Engine engine(options(4));
  PagedHost& host = *engine.host;
  const Tokens one = prompt_of(7, 1), two = prompt_of(7, 20), drafts{3, 4, 5, 6}, wrong{3, 9, 1},
               right{3, 4, 1};
  const TokenId token = 7, foreign = kVocabulary;
  const auto a =
      host.add({.prompt = {.scope = engine.scopes[0], .tokens = one}, .max_new_tokens = 8, .ahead = false});
  const auto b =
      host.add({.prompt = {.scope = engine.scopes[0], .tokens = two}, .max_new_tokens = 8, .ahead = false});
  REQUIRE(a.ok());
  REQUIRE(b.ok());
  PagedStep step;
  REQUIRE(host.schedule({0, 1}, step).ok());
  REQUIRE(step.work.size() == 2);
  REQUIRE(host.finished({0, 1}).ok());
  REQUIRE(host.accept(*a, {&token, 1}).ok());
  REQUIRE(host.accept(*b, {&token, 1}).ok());
  CHECK(host.propose(*b, {&foreign, 1}).code() == StatusCode::kOutOfRange);
  REQUIRE(host.propose(*b, drafts).ok());
  REQUIRE(host.schedule({0, 2}, step).ok());
  CHECK(host.stats().preempted == 0);  // the pool is full: there is no room for drafts
  CHECK(host.stats().drafts == 0);
  REQUIRE(step.work.size() == 2);
  REQUIRE(host.abort(*a).ok());
  REQUIRE(host.finished({0, 2}).ok());
  REQUIRE(host.accept(*b, {&token, 1}).ok());
  REQUIRE(host.schedule({0, 3}, step).ok());  // the other one's slots come back with it
  REQUIRE(host.finished({0, 3}).ok());
  REQUIRE(host.propose(*b, drafts).ok());
  REQUIRE(host.schedule({0, 4}, step).ok());
  REQUIRE(step.work.size() == 1);
  REQUIRE(step.work[0].drafts >= 2);
  REQUIRE(host.finished({0, 4}).ok());
  CHECK(host.accept(*b, wrong).code() == StatusCode::kInvalidArgument);
  CHECK(host.accept(*b, right).ok());
}

namespace {
/// Counts matches: each begins a request.
struct CountingLru : Lru {
  static inline std::uint32_t begun = 0;
  void on_request_begin(const RequestFacts& facts) noexcept {
    ++begun;
    Lru::on_request_begin(facts);
  }
};
}  // namespace

TEST_CASE("a request that does not fit is not matched in each step, but as soon as there is room") {
  PagedHostOptions o = options(12);
  o.cache.block_tokens = 4;
  auto made = BasicPagedHost<CountingLru>::create(o);
  REQUIRE(made.ok());
  auto& host = **made;
  const auto scope = host.open_scope({.model = "m", .vocab_size = kVocabulary});
  REQUIRE(scope.ok());
  CountingLru::begun = 0;
  const Tokens first = prompt_of(16, 1), second = prompt_of(44, 20);
  const auto runs = host.add({.prompt = {.scope = *scope, .tokens = first}, .max_new_tokens = 30});
  const auto waits = host.add({.prompt = {.scope = *scope, .tokens = second}, .max_new_tokens = 2});
  REQUIRE(runs.ok());
  REQUIRE(waits.ok());
  PagedStep step;
  const TokenId token = 7;
  std::uint64_t now = 0;
  const auto round = [&] {
    REQUIRE(host.schedule({0, ++now}, step).ok());
    REQUIRE(host.finished(step.done).ok());
    for (const PagedWork& w : step.work)
      if (w.samples) REQUIRE(host.accept(w.sequence, {&token, 1}).ok());
  };
  while (host.tokens(*runs).size() < 46) round();
  CHECK(now > 25);
  CHECK(CountingLru::begun < 8);
  REQUIRE(host.end(*runs).ok());
  for (int i = 0; i < 3; ++i) round();
  CHECK(host.progress(*waits).running);
}

TEST_CASE("points that no step has are refused") {
  Engine engine(options(8));
  PagedHost& host = *engine.host;
  PagedStep step;
  CHECK(host.schedule({0, 0}, step).code() == StatusCode::kInvalidArgument);
  CHECK(host.finished({0, 1}).code() == StatusCode::kInvalidArgument);
  REQUIRE(host.schedule({0, 1}, step).ok());
  CHECK(host.finished({0, 1000}).code() == StatusCode::kInvalidArgument);
  CHECK(host.finished({1, 1}).code() == StatusCode::kInvalidArgument);
  CHECK(host.finished({0, 1}).ok());
}

TEST_CASE("random walk: requests, samples, drafts, hang-ups, failed copies, over all kinds of groups") {
  const std::uint64_t seed = 20261126;
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  const std::vector<std::vector<KvGroup>> kinds = {
      {kFull},
      {kFull, {.kind = GroupKind::kSlidingWindow, .window_tokens = 6, .bytes_per_token = 1, .slots = 40}},
      {kFull,
       {.kind = GroupKind::kStateCheckpoint, .bytes_per_token = 4, .slots = 40, .checkpoint_blocks = 2}},
      {kFull, {.bytes_per_token = 1, .lag_tokens = 2, .slots = 40}},
      {kFull, {.kind = GroupKind::kSideData, .bytes_per_token = 1}},
      {kFull, {.bytes_per_token = 1, .block_tokens = 8, .slots = 24}},
      {{.kind = GroupKind::kSlidingWindow, .window_tokens = 9, .bytes_per_token = 1}},
  };
  std::map<std::string, std::uint64_t> saw;
  for (std::uint64_t episode = 0; episode < 84; ++episode) {
    std::mt19937_64 random(seed + episode);
    const auto below = [&](std::uint64_t n) { return static_cast<std::uint32_t>(random() % n); };
    const std::vector<KvGroup>& groups = kinds[episode % kinds.size()];
    const bool states = groups.back().kind == GroupKind::kStateCheckpoint;
    auto o = options(24 + below(16), groups);
    o.cache.null_slot = below(2) == 0;
    INFO("episode " << episode << ", seed " << seed + episode);
    Engine engine(o, random(), below(3) == 0 ? 200 : 0);
    const std::size_t depth = below(2);
    for (std::uint32_t round = 0; round < 150 || engine.host->busy(); ++round) {
      REQUIRE(round < 4000);
      if (round < 150 && engine.host->running() + engine.host->waiting() < 16 && below(3) == 0) {
        const std::uint32_t n = 1 + below(40);
        engine.add(prompt_of(n, static_cast<TokenId>(below(4))), below(20) + 1,
                   {.flavour = below(3),
                    .scope = below(2),
                    .samples = below(4) == 0 ? 1 + below(3) : 0,
                    .drafts = !states && below(3) == 0},
                   {.reuse = below(8) != 0});
        ++saw["added"];
      }
      if (below(40) == 0 && !engine.lines.empty()) {
        Line& line = engine.lines[below(engine.lines.size())];
        if (!line.over) {
          REQUIRE((below(2) == 0 ? engine.host->end(line.id) : engine.host->abort(line.id)).ok());
          line.over = true;
          ++saw["hung up"];
        }
      }
      for (Line& line : engine.lines) {
        const auto at = engine.host->progress(line.id);
        if (!line.drafts || line.over || !at.running) continue;
        Tokens drafts;
        for (std::uint32_t i = at.known_tokens; i < line.limit && drafts.size() < below(5); ++i)
          drafts.push_back(below(4) == 0 ? static_cast<TokenId>(below(kVocabulary)) : line.text[i]);
        saw["proposed"] += engine.host->propose(line.id, drafts).ok() && !drafts.empty();
      }
      engine.launch();
      while (engine.flights.size() > depth) engine.collect();
    }
    CHECK(engine.held_after_all() == 0);
    const PagedHostStats& s = engine.host->stats();
    saw["finished"] += engine.finished;
    saw["forked"] += engine.forked;
    saw["forked at once"] += engine.forked_at_once;
    saw["preempted"] += s.preempted;
    saw["stalled"] += s.stalled;
    saw["followed"] += s.followed;
    saw["copies"] += s.copies;
    saw["copies failed"] += engine.failed;
    saw["results dropped"] += engine.dropped;
    saw["drafts right"] += s.accepted_drafts;
    saw["drafts"] += s.drafts;
    saw["tokens matched"] += s.matched_tokens;
    saw["tokens computed"] += s.computed_tokens;
  }
  for (const auto& [what, n] : saw) {
    std::printf("  %-16s %llu\n", what.c_str(), static_cast<unsigned long long>(n));
    CHECK(n > 20);
  }
}
