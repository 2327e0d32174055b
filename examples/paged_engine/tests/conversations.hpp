// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Conversations for the tests of the whole engine: with a shared opening, in two turns, with samples and drafts; what an
// engine answers, the logits that it was chosen from, and the same of two ranks.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "kvstem/model/block_key.hpp"
#include "reference/paged_lines.hpp"
#include "support.hpp"

namespace paged::test {

using Tokens = std::vector<TokenId>;

/// Conversations over one system prompt. Each has two turns; the second goes on from the first one's answer.
struct Talk {
  Tokens prompt{};
  std::uint32_t samples = 1, drafts = 0;
  Sampling sampling{};
};
struct Sizes {
  std::uint32_t talks = 8, system = 40, own = 25, turn = 12, answer = 24;
};

inline Tokens tokens(std::uint32_t n, std::uint32_t seed, std::uint32_t vocab) {
  Tokens t;
  std::uint64_t x = seed;
  while (t.size() < n) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    t.push_back(static_cast<TokenId>((x >> 33) % vocab));
  }
  return t;
}

/// With drafts, a passage that repeats itself, so that look-up finds something.
inline Tokens passage(std::uint32_t n, std::uint32_t seed, std::uint32_t vocab, bool repeats) {
  if (!repeats) return tokens(n, seed, vocab);
  const Tokens part = tokens(6, seed, vocab);
  Tokens t;
  while (t.size() < n) t.push_back(part[t.size() % part.size()]);
  return t;
}

using Place =
    std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t>;  // talk, turn, sample, position

struct Outcome {
  std::map<Place, std::uint64_t> logits{};  // a hash of them
  std::map<std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>, Tokens>
      answers{};  // by talk, turn, sample
  std::uint32_t failed = 0;
  std::string error;
  kvstem::PagedHostStats host{};
  kvstem::CacheStats cache{};
  std::uint32_t reused = 0;
  bool balanced = false;
};

/// `alone`: one request at a time, each sample a request of its own, nothing drafted or reused.
inline Outcome run(EngineOptions options, const Sizes& sizes, bool alone) {
  Outcome out;
  std::mutex mutex;
  std::vector<std::tuple<std::uint64_t, std::uint32_t, std::uint32_t, std::uint64_t>> seen;
  options.watch = [&](std::uint64_t request, std::uint32_t sample, std::uint32_t position,
                      std::span<const float> row) {
    const std::lock_guard lock(mutex);
    seen.emplace_back(request, sample, position, XXH3_64bits(row.data(), row.size_bytes()));
  };
  std::string error;
  const auto engine = Engine::create(options, error);
  INFO(error);
  REQUIRE(engine != nullptr);
  const std::uint32_t vocab = engine->shape().vocab;

  std::vector<Talk> talks(sizes.talks);
  const Tokens system = tokens(sizes.system, 1, vocab);
  for (std::uint32_t i = 0; i < sizes.talks; ++i) {
    Talk& t = talks[i];
    t.drafts = i % 4 == 1 ? 4 : 0;
    t.samples = i % 4 == 2 ? 3 : 1;
    if (i % 2 == 0) t.sampling = {.temperature = 0.8F, .seed = 100 + i};
    const Tokens own = passage(sizes.own + i, 10 + i / 2, vocab, t.drafts > 0);
    t.prompt = system;
    t.prompt.insert(t.prompt.end(), own.begin(), own.end());
  }

  struct Asked {
    std::uint32_t talk, turn, sample;
  };
  std::map<RequestNumber, Asked> asked;
  std::vector<Tokens> first_answers(sizes.talks);
  const auto ask = [&](std::uint32_t talk, std::uint32_t turn) {
    const Talk& t = talks[talk];
    for (std::uint32_t sample = 0; sample < (alone ? t.samples : 1); ++sample) {
      Request r{.tokens = t.prompt,
                .max_new_tokens = sizes.answer,
                .samples = alone ? 1 : t.samples,
                .drafts = alone ? 0 : t.drafts,
                .sampling = t.sampling,
                .reuse = !alone};
      r.sampling.seed += sample;
      const auto id = engine->submit(r);
      REQUIRE(id.ok());
      asked[*id] = {talk, turn, sample};
    }
  };
  std::vector<std::pair<std::uint32_t, std::uint32_t>> next;
  const auto then = [&](std::uint32_t talk, std::uint32_t turn) {
    if (alone)
      next.emplace_back(talk, turn);
    else
      ask(talk, turn);
  };
  for (std::uint32_t i = 0; i < sizes.talks; ++i) then(i, 0);
  const auto serve = [&] {
    for (std::uint32_t rounds = 0; engine->busy(); ++rounds) {
      REQUIRE(rounds < 20'000);
      for (const Event& e : engine->step()) {
        const Asked& a = asked.at(e.request);
        const std::uint32_t sample = a.sample + e.sample;
        if (e.kind == Event::Kind::kToken) {
          out.answers[{a.talk, a.turn, sample}].push_back(e.token);
        } else if (e.kind == Event::Kind::kFailed) {
          ++out.failed;
        } else if (out.reused += e.reused_tokens; a.turn == 0 && sample == 0) {
          Tokens& prompt = talks[a.talk].prompt;
          const Tokens& answer = out.answers[{a.talk, 0, 0}];
          prompt.insert(prompt.end(), answer.begin(), answer.end());
          const Tokens more = tokens(sizes.turn, 50 + a.talk, vocab);
          prompt.insert(prompt.end(), more.begin(), more.end());
          then(a.talk, 1);
        }
      }
    }
  };
  serve();
  for (std::size_t i = 0; i < next.size(); ++i) {
    ask(next[i].first, next[i].second);
    serve();
  }
  out.error = engine->error();
  out.host = engine->host().stats();
  out.cache = engine->host().cache().stats();
  out.balanced = engine->host().cache().audit().balanced();
  for (const auto& [request, sample, position, hash] : seen) {
    const Asked& a = asked.at(request);
    const auto [at, fresh] = out.logits.try_emplace({a.talk, a.turn, a.sample + sample, position}, hash);
    CHECK(at->second == hash);
  }
  return out;
}

inline void check_same(const Outcome& got, const Outcome& expected) {
  CHECK(got.error.empty());
  CHECK(got.failed == 0);
  CHECK(got.balanced);
  CHECK(got.answers == expected.answers);
  std::size_t differ = 0;
  for (const auto& [place, hash] : expected.logits) {
    const auto at = got.logits.find(place);
    differ += at == got.logits.end() || at->second != hash;
  }
  CHECK(differ == 0);
  CHECK(got.logits.size() == expected.logits.size());
}

inline EngineOptions options(const std::string& file, std::uint32_t slots) {
  return {.model = {.file = file, .threads = 2, .slots = slots},
          .step_tokens = 64,
          .sequences = 12,
          .max_tokens = 512};
}

/// Writes what the host is told and says to the file that KVSTEM_PAGED_LINES names, for the specification to judge; to
/// nowhere if it is not set.
class Lines final : public Recorder {
 public:
  Lines() : file_(std::fopen(path(), "w")), lines_(file_.get()) { REQUIRE(file_ != nullptr); }
  void created(const kvstem::PagedHostOptions& options) override { lines_.created(options); }
  void added(kvstem::PagedSequence s, const kvstem::PagedRequest& r) override { lines_.added(s, r); }
  void forked(kvstem::PagedSequence of, kvstem::PagedSequence s, std::span<const TokenId> t,
              std::uint32_t n) override {
    lines_.forked(of, s, t, n);
  }
  void proposed(kvstem::PagedSequence s, std::span<const TokenId> drafts) override {
    lines_.proposed(s, drafts);
  }
  void scheduled(kvstem::PagedHost& host, const kvstem::PagedStep& step) override {
    lines_.scheduled(host, step);
  }
  void finished(kvstem::Point done) override { lines_.finished(done); }
  void accepted(kvstem::PagedSequence s, std::span<const TokenId> t) override { lines_.accepted(s, t); }
  void ended(kvstem::PagedSequence s) override { lines_.ended(s); }

 private:
  static const char* path() {
    const char* const given = std::getenv("KVSTEM_PAGED_LINES");
    return given != nullptr ? given : "/dev/null";
  }
  struct Close {
    void operator()(std::FILE* f) const { (void)std::fclose(f); }
  };
  std::unique_ptr<std::FILE, Close> file_;
  kvstem::test::PagedLines lines_;
};

/// Blocks that `sizes` needs if nothing is shared.
inline std::uint32_t blocks(const Sizes& s) {
  std::uint32_t n = 0;
  for (std::uint32_t i = 0; i < s.talks; ++i) n += (s.system + s.own + i + 2 * s.answer + s.turn + 15) / 16;
  return n;
}

/// Two processes; the outcome of rank 0. Rank 1's own is compared there, and its answer is its exit status.
inline Outcome run_ranks(const EngineOptions& base, const Sizes& sizes, std::uint32_t split,
                         std::uint32_t kv_heads) {
  auto [first, second] = Link::pair();
  REQUIRE(first.usable());
  const pid_t child = fork();
  REQUIRE(child >= 0);
  EngineOptions mine = base;
  mine.model.threads = 1;
  if (child == 0) {
    first.close();
    mine.link = &second;
    mine.model.gather = &second;
    mine.model.heads = {split, kv_heads};
    const Outcome out = run(mine, sizes, false);
    _exit(out.error.empty() && out.failed == 0 && out.balanced && !out.answers.empty() ? 0 : 1);
  }
  second.close();
  mine.link = &first;
  mine.model.gather = &first;
  mine.model.heads = {0, split};
  Outcome out = run(mine, sizes, false);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  return out;
}

inline void print(const char* what, const Outcome& o) {
  std::printf(
      "%s: computed %llu, matched %llu tokens, copies %llu, evicted %llu blocks, preempted %llu, drafts %llu "
      "of %llu\n",
      what, static_cast<unsigned long long>(o.host.computed_tokens),
      static_cast<unsigned long long>(o.host.matched_tokens), static_cast<unsigned long long>(o.host.copies),
      static_cast<unsigned long long>(o.cache.evicted_blocks),
      static_cast<unsigned long long>(o.host.preempted),
      static_cast<unsigned long long>(o.host.accepted_drafts),
      static_cast<unsigned long long>(o.host.drafts));
}

}  // namespace paged::test
