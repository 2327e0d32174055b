// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// All memory is taken at creation through one seam, and given back; nothing allocates afterwards.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <string>

#include "cache_support.hpp"
#include "support/ghost_policy.hpp"

namespace {
std::uint64_t news = 0;  // calls of operator new in this program
}  // namespace

// ThreadSanitizer brings its own.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define KVSTEM_OTHER_NEW
#endif
#endif
#ifndef KVSTEM_OTHER_NEW
// GCC takes the pair of malloc and delete for a mistake where it inlines both.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmismatched-new-delete"
#endif
void* operator new(std::size_t bytes) {
  ++news;
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) std::abort();
  return memory;
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  ++news;
  return std::malloc(bytes == 0 ? 1 : bytes);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
#endif

using namespace kvstem;
using namespace kvstem::test;

namespace {

/// Counts, checks that what comes back is what was given, and fails at a call of one's choice.
struct Counting {
  std::map<void*, std::size_t> out;
  std::uint64_t calls = 0, fail_at = 0;
  bool wrong = false;
  Memory memory() {
    return {.allocate = [](void* user, std::size_t bytes, std::size_t alignment) -> void* {
              auto& self = *static_cast<Counting*>(user);
              if (++self.calls == self.fail_at) return nullptr;
              void* p = heap_memory().allocate(nullptr, bytes, alignment);
              self.wrong = self.wrong || reinterpret_cast<std::uintptr_t>(p) % alignment != 0;
              self.out[p] = bytes;
              return p;
            },
            .release =
                [](void* user, void* p, std::size_t bytes) {
                  auto& self = *static_cast<Counting*>(user);
                  self.wrong = self.wrong || self.out[p] != bytes;
                  self.out.erase(p);
                  heap_memory().release(nullptr, p, bytes);
                },
            .user = this};
  }
};

template <class Policy>
void serve_without_allocating(SlotFill fill) {
  Counting counting;
  {
    CacheOptions o = small(12);
    o.fill = fill;
    o.memory = counting.memory();
    Host<Policy> host(o);
    const ScopeId other = host.open("other");
    std::vector<Tokens> prompts;
    for (TokenId i = 0; i < 24; ++i)
      prompts.push_back(tokens(static_cast<std::uint32_t>(i * 5 % 40), i % 4 * 100));
    const ScopeChange change[] = {{0, other}};
    auto reader = host.cache->register_reader();
    REQUIRE(reader.ok());
    ProbeRange ranges[3];
    Change records[16];
    StepEntry entries[16];
    const TokenId more[] = {1, 2, 3, 4, 5};
    const std::uint64_t calls = counting.calls, before = news;
    bool all_ok = true;
    for (int round = 0; round < 20; ++round)
      for (const Tokens& tokens : prompts) {
        const Prompt prompt{.scope = host.scope,
                            .tokens = tokens,
                            .changes = {change, tokens.size() % 3 == 1 ? std::size_t{1} : 0}};
        auto lease = host.cache->acquire(prompt);
        all_ok = all_ok && lease.ok() && host.cache->probe(*reader, prompt, ranges).ok();
        (void)lease->refresh();
        const auto move = [&](bool ok) {
          for (const StepEntry& e : host.cache->take_step(entries))
            REQUIRE(host.cache->complete({e, ok ? Status() : Status(StatusCode::kUnavailable, "")}).ok());
        };
        move(round % 7 != 3);
        all_ok = all_ok && lease->append(more).ok();
        (void)lease->reserve(lease->known_tokens() - lease->committed_tokens());
        (void)lease->commit(lease->known_tokens() - lease->committed_tokens(),
                            {1, static_cast<std::uint64_t>(round)});
        (void)host.cache->reach({1, static_cast<std::uint64_t>(round)});
        move(round % 5 != 3);
        all_ok = all_ok && (round % 3 == 0 ? lease->abort() : lease->release()).ok();
        host.end_step();
        (void)host.cache->take_changes(records);
      }
    const std::uint64_t after = news;
    CHECK(all_ok);
    CHECK(after == before);
    CHECK(counting.calls == calls);
    CHECK(host.cache->stats().hit_tokens > 0);
    CHECK(host.cache->stats().evicted_blocks > 0);
    CHECK(host.cache->audit().balanced());
  }
  CHECK(counting.out.empty());
  CHECK_FALSE(counting.wrong);
}

}  // namespace

TEST_CASE("nothing is allocated after creation") {
  const std::uint64_t before = news;
  ::operator delete(::operator new(1));
  const std::uint64_t after = news;
#ifndef KVSTEM_OTHER_NEW
  REQUIRE(after == before + 1);  // the count counts
#endif
  CHECK(after - before <= 1);
  for (const SlotFill fill : {SlotFill::kInPlace, SlotFill::kByStep}) {
    serve_without_allocating<Lru>(fill);
    serve_without_allocating<GhostPolicy>(fill);
  }
}

TEST_CASE("whichever piece of memory is not to be had, creation says so and gives back the rest") {
  for (const SlotFill fill : {SlotFill::kInPlace, SlotFill::kByStep}) {
    std::uint64_t pieces = 0;
    for (std::uint64_t n = 1;; ++n) {
      Counting counting;
      counting.fail_at = n;
      CacheOptions o = small();
      o.fill = fill;
      o.memory = counting.memory();
      {
        auto cache = Cache::create(o);
        if (cache.ok()) {
          pieces = n - 1;
          CHECK_FALSE(counting.out.empty());
        } else {
          REQUIRE(cache.status().code() == StatusCode::kExhausted);
        }
      }
      REQUIRE(counting.out.empty());
      if (pieces != 0) break;
    }
    CHECK(pieces > 15);
  }
}

namespace {

/// An opaque engine that allocates nothing: the state of a token is its id.
class FlatEngine {
 public:
  static constexpr std::uint32_t kSequences = 6, kTokens = 96;
  void compute(SequenceId s, TokenId token) { state_[at(s)][length_[at(s)]++] = token; }
  [[nodiscard]] bool holds(SequenceId s, std::span<const TokenId> tokens) const {
    return length_[at(s)] == tokens.size() && std::equal(tokens.begin(), tokens.end(), state_[at(s)]);
  }
  [[nodiscard]] std::size_t range_bytes(GroupId, TokenRange range) const {
    return range.size() * sizeof(TokenId);
  }
  Status export_range(SequenceId s, GroupId, TokenRange range, std::span<std::byte> out) {
    if (range.end > length_[at(s)]) return {StatusCode::kOutOfRange, "not in the sequence"};
    std::memcpy(out.data(), state_[at(s)] + range.begin, out.size());
    return {};
  }
  Status import_range(SequenceId s, GroupId, TokenRange range, std::span<const std::byte> in) {
    if (range.begin != length_[at(s)]) return {StatusCode::kOutOfRange, "a gap"};
    std::memcpy(state_[at(s)] + range.begin, in.data(), in.size());
    length_[at(s)] = range.end;
    return {};
  }
  Status share_range(SequenceId from, SequenceId to, TokenRange range) {
    std::copy_n(state_[at(from)] + range.begin, range.size(), state_[at(to)] + range.begin);
    length_[at(to)] = range.end;
    return {};
  }
  Status drop_range(SequenceId s, TokenRange range) {
    length_[at(s)] = std::min(length_[at(s)], range.begin);
    return {};
  }
  [[nodiscard]] std::string describe() const { return "flat"; }
  [[nodiscard]] EngineCapacity capacity() const {
    return {.cells = kSequences * kTokens, .sequences = kSequences, .sequence_tokens = kTokens};
  }

 private:
  static std::size_t at(SequenceId s) { return static_cast<std::size_t>(s); }
  TokenId state_[kSequences][kTokens] = {};
  std::uint32_t length_[kSequences] = {};
};

}  // namespace

TEST_CASE("branches, loads and groups allocate nothing after creation") {
  const KvGroup groups[] = {
      {.bytes_per_token = 1},
      {.kind = GroupKind::kSlidingWindow, .window_tokens = 6, .bytes_per_token = 1, .slots = 64},
      {.kind = GroupKind::kStateCheckpoint, .bytes_per_token = 4, .slots = 24}};
  for (const std::size_t kinds : {0, 2, 3}) {
    CacheOptions o = small(64);
    o.groups = std::span(groups).first(kinds);
    Host<> host(o);
    StepEntry entries[16];
    std::vector<Tokens> prompts;
    for (TokenId i = 0; i < 12; ++i)
      prompts.push_back(tokens(9 + static_cast<std::uint32_t>(i), 40 * (i % 3)));
    const TokenId more[] = {1, 2, 3, 4, 5, 6};
    const std::uint32_t accepted[] = {0, 2};
    std::uint64_t copies = 0, loads = 0, steps = 0;
    const char* wrong = "";
    const auto check = [&](const Status& status) {
      if (!status.ok() && *wrong == 0) wrong = status.message();
    };
    const std::uint64_t before = news;
    for (int round = 0; round < 20; ++round)
      for (const Tokens& prompt : prompts) {
        const auto n = static_cast<std::uint32_t>(prompt.size());
        const auto step = [&] {
          for (const StepEntry& e : host.cache->take_step(entries)) {
            copies += e.kind == StepKind::kCopy;
            loads += e.kind == StepKind::kLoad;
            check(host.cache->complete({e, Status()}));
          }
          const Point point{1, ++steps};
          check(host.cache->end_step(point));
          check(host.cache->reach(point));
        };
        auto lease = host.cache->acquire({.scope = host.scope, .tokens = prompt});
        REQUIRE(lease.ok());
        (void)lease->refresh();
        if (kinds == 0 && round % 2 == 0 && lease->matched_tokens() == 0) check(lease->onboard(4));
        step();
        check(lease->reserve(n - lease->reserved_tokens()));
        check(lease->commit(n - lease->committed_tokens(), {1, steps + 1}));
        step();
        auto child = lease->fork();
        REQUIRE(child.ok());
        for (Lease* l : {&*lease, &*child}) {
          check(l->append(std::span(more).first(2)));
          check(l->reserve(kinds == 3 ? 2 : 4));
          step();
          check(kinds == 3 ? l->commit(2) : l->commit_accepted(accepted));
          step();
        }
        if (kinds == 0) check(child->truncate(n));
        check(child->release());
        check(lease->release());
        step();
      }
    const std::uint64_t after = news;
    CHECK(std::string(wrong).empty());
    CHECK(after == before);
    CHECK(copies > 0);
    CHECK((loads > 0) == (kinds == 0));
    CHECK(host.cache->audit().balanced());
  }
}

TEST_CASE("a paged host allocates nothing in a step once steps have reached their size") {
  Counting counting;
  const KvGroup groups[] = {
      {.bytes_per_token = 1},
      {.kind = GroupKind::kSlidingWindow, .window_tokens = 6, .bytes_per_token = 1, .slots = 64}};
  {
    CacheOptions o = small(64);
    o.groups = groups;
    o.memory = counting.memory();
    auto made = PagedHost::create({.cache = o, .step_tokens = 32, .max_sequences = 8});
    REQUIRE(made.ok());
    PagedHost& host = **made;
    const auto scope = host.open_scope({.model = "m", .vocab_size = 1000});
    REQUIRE(scope.ok());
    PagedStep step;
    std::uint64_t now = 0, before = 0;
    bool all_ok = true;
    const auto round = [&] {
      all_ok = all_ok && host.schedule({0, ++now}, step).ok() && host.finished(step.done).ok();
      const TokenId token = 7;
      for (const PagedWork& w : step.work)
        if (w.samples) all_ok = all_ok && host.accept(w.sequence, {&token, 1}).ok();
    };
    for (int pass = 0; pass < 2; ++pass) {  // the first one warms up
      std::vector<PagedSequence> ids;
      for (TokenId i = 0; i < 6; ++i) {
        const auto id =
            host.add({.prompt = {.scope = *scope, .tokens = tokens(9, 100 * i)}, .max_new_tokens = 20});
        REQUIRE(id.ok());
        ids.push_back(*id);
      }
      before = news;
      while (host.progress(ids.back()).known_tokens < 29) round();
      const std::uint64_t after = news;
      if (pass == 1) CHECK(after == before);
      for (const PagedSequence id : ids) all_ok = all_ok && host.end(id).ok();
      round();
    }
    CHECK(all_ok);
    CHECK(host.cache().audit().balanced());
  }
  CHECK(counting.out.empty());
}

TEST_CASE("an opaque host takes its memory through the seam and allocates nothing afterwards") {
  FlatEngine engine;
  Counting counting;
  {
    auto made = OpaqueHost<FlatEngine>::create(engine, {.block_tokens = 4,
                                                        .host_bytes = 24 * 4 * sizeof(TokenId),
                                                        .requests = 2,
                                                        .resident_tokens = 150,
                                                        .frontiers = 3,
                                                        .step_bytes = 64,
                                                        .memory = counting.memory()});
    REQUIRE(made.ok());
    OpaqueHost<FlatEngine>& host = **made;
    const auto scope = host.open_scope({.model = "m", .vocab_size = 1000});
    REQUIRE(scope.ok());
    std::vector<Tokens> prompts;
    for (TokenId i = 0; i < 24; ++i)
      prompts.push_back(tokens(1 + static_cast<std::uint32_t>(i * 7 % 70), i % 4 * 100));
    const std::uint64_t calls = counting.calls, before = news;
    bool right = true;
    for (int round = 0; round < 20; ++round)
      for (const Tokens& prompt : prompts) {
        const auto a =
            host.begin({.prompt = {.scope = *scope, .tokens = prompt}, .session = 1 + prompt.size() % 3});
        right = right && a.ok() && engine.holds(a->sequence, std::span(prompt).first(a->reused_tokens));
        for (std::size_t i = a->reused_tokens; i < prompt.size(); ++i) engine.compute(a->sequence, prompt[i]);
        right = right &&
                host.computed(a->request, static_cast<std::uint32_t>(prompt.size()) - a->reused_tokens, false)
                    .ok();
        const TokenId decoded = 7;
        engine.compute(a->sequence, decoded);
        right = right && host.append(a->request, {&decoded, 1}).ok();
        (void)host.work();
        right = right && (round % 7 == 3 ? host.abort(a->request) : host.end(a->request)).ok();
        while (host.work() > 0) {
        }
      }
    const std::uint64_t after = news;
    CHECK(right);
    CHECK(after == before);
    CHECK(counting.calls == calls);
    const OpaqueHostStats& stats = host.stats();
    for (const std::uint64_t happened : {stats.resident_tokens, stats.host_tokens, stats.frontier_tokens,
                                         stats.residents_dropped, host.cache().stats().evicted_blocks})
      CHECK(happened > 0);
  }
  CHECK(counting.out.empty());
  CHECK_FALSE(counting.wrong);
}
