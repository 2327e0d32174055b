// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What does a match cost beside what else could answer it, and how much memory does a block take?
//
//   kvstem_bench_index_match [--json FILE]                       all checks, about two minutes, 1.5 GB
//   kvstem_bench_index_match --benchmark_filter=match/distinct   single figures, by Google Benchmark
//
// Each arm's answers are checked first: whole prompts, and prompts that differ in one token. Then Google Benchmark runs
// the arms of a group one after the other, fifteen rounds; a ratio is taken inside each round, and its median counts. One
// figure is the median of several matches. Before each match all caches are emptied, then the prompt is written (an
// engine has just made it); so what is stored comes from memory. One arm of each group stands there twice: where the
// two differ by more than 2 %, the group's ratios say nothing, and are reported as not measured.
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "../support/report.hpp"
#include "workload.hpp"

namespace bench {
namespace {

constexpr int kRounds = 15;
constexpr std::uint32_t kPromptBlocks[] = {512, 2048, 8192};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

/// Nanoseconds that `work` took, by the wall clock.
template <class Work>
double wall_ns(Work&& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count();
}

double thread_cpu_ns() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e9 * static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec);
}

// ---- the arms of a match -------------------------------------------------------------------------------------------

/// What a match hands back to an engine: where the blocks are.
struct Answer {
  std::uint32_t blocks = 0, visited = 0;
  std::vector<std::uint32_t> places =
      std::vector<std::uint32_t>(World::kBlocks);  // by block, or of each stretch

  void operator()(RunId, BlockPos first, std::uint32_t count, std::uint32_t) {
    places[visited % World::kBlocks] = first;
    visited += count;
  }
  void reset() { visited = 0; }
};

struct Question {
  World* world;
  std::uint32_t session;
  std::span<const TokenId> tokens;
  std::span<const BlockKey> keys;
};

using Arm = std::function<void(const Question&, Answer&)>;

class Arms {
 public:
  explicit Arms(World& world) : reader_(*world.index->register_reader()) {
    const auto index = [this](const Question& q, Answer& answer) {
      const Prompt prompt{.tokens = q.tokens};
      const TokenSource source(q.world->hasher, kBlockTokens, prompt, {});
      answer.blocks = q.world->index->match(reader_, q.world->root, source, answer).ready;
    };
    arms_ = {
        {"index", index},
        {"index_writer",
         [](const Question& q, Answer& answer) {
           const Prompt prompt{.tokens = q.tokens};
           const TokenSource source(q.world->hasher, kBlockTokens, prompt, {});
           answer.blocks = q.world->index->match(q.world->root, source, answer).ready;
         }},
        {"memcmp",
         [](const Question& q, Answer& answer) {
           const auto blocks = static_cast<std::uint32_t>(q.tokens.size() / kBlockTokens);
           const auto stored = q.world->session(q.session, blocks);
           const bool equal = std::memcmp(stored.data(), q.tokens.data(), stored.size_bytes()) == 0;
           answer.blocks = equal ? blocks : 0;
         }},
        {"flat_table",
         [](const Question& q, Answer& answer) {
           answer.blocks = q.world->table.match(q.tokens, q.keys, answer.places.data());
         }},
        {"flat_table_and_hashing",
         [this](const Question& q, Answer& answer) {
           q.world->hash(q.tokens, keys_.data());
           answer.blocks =
               q.world->table.match(q.tokens, {keys_.data(), q.keys.size()}, answer.places.data());
         }},
        {"page_tree",
         [](const Question& q, Answer& answer) {
           answer.blocks = q.world->pages.match(q.tokens, answer.places.data());
         }},
        {"index_again", index},
    };
  }

  [[nodiscard]] const std::vector<std::pair<std::string, Arm>>& all() const { return arms_; }

 private:
  PrefixIndex::Reader reader_;
  std::vector<BlockKey> keys_ = std::vector<BlockKey>(World::kBlocks);
  std::vector<std::pair<std::string, Arm>> arms_;
};

class Matches {
 public:
  explicit Matches(Openings openings, CacheEvictor& evict)
      : name_(openings == Openings::kDistinct ? "match/distinct/" : "match/shared/"),
        world(openings),
        evict_(evict) {
    if (!prompt_.take(heap_memory(), std::size_t{World::kBlocks} * kBlockTokens))
      fail("no memory for a prompt");
    check_answers();
    for (const std::uint32_t blocks : kPromptBlocks)
      for (const auto& [name, arm] : arms_.all())
        benchmark::RegisterBenchmark((group(blocks) + name).c_str(),
                                     [this, blocks, &arm = arm](benchmark::State& state) {
                                       for (auto _ : state)
                                         state.SetIterationTime(cold_match_ns(blocks, arm) * 1e-9);
                                     })
            ->Iterations(1)
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond);
  }

  [[nodiscard]] std::string group(std::uint32_t blocks) const {
    return name_ + std::to_string(blocks / 64) + "k/";
  }

 private:
  Question question(std::uint32_t blocks) {
    random_ = mix(random_ + 0x9e3779b97f4a7c15ull);
    const auto session = static_cast<std::uint32_t>(random_ % World::kSessions);
    const std::span<TokenId> tokens(prompt_.data(), std::size_t{blocks} * kBlockTokens);
    world.write_prompt(session, tokens);
    const auto keys = world.keys(session).first(blocks);
    keys_.assign(keys.begin(), keys.end());
    return {&world, session, tokens, keys_};
  }

  /// Every arm must find whole prompts, and exactly what lies before a wrong token.
  void check_answers() {
    Answer answer;
    for (const auto& [name, arm] : arms_.all())
      for (int i = 0; i < 300; ++i) {
        const std::uint32_t blocks = kPromptBlocks[i % 3];
        const Question q = question(blocks);
        const auto wrong = static_cast<std::uint32_t>(random_ >> 32) % (2 * blocks * kBlockTokens);
        const bool whole = wrong >= q.tokens.size();
        if (!whole) prompt_[wrong] ^= 1;
        // From there on the keys are others too.
        if (!whole) world.hash(q.tokens, keys_.data());
        const std::uint32_t expected = whole ? blocks : (name == "memcmp" ? 0 : wrong / kBlockTokens);
        answer.visited = 0;
        arm(q, answer);
        if (answer.blocks != expected || (name.starts_with("index") && answer.visited != expected))
          fail(name + " found " + std::to_string(answer.blocks) + " blocks instead of " +
               std::to_string(expected));
      }
  }

  double cold_match_ns(std::uint32_t blocks, const Arm& arm) {
    std::vector<double> samples;
    Answer answer;
    for (int i = 0; i < 5; ++i) {
      evict_();
      const Question q = question(blocks);
      samples.push_back(wall_ns([&] { arm(q, answer); }));
      if (answer.blocks != blocks) fail("an arm's answer is wrong");
    }
    return median(samples);
  }

  std::string name_;

 public:
  World world;

 private:
  CacheEvictor& evict_;
  Arms arms_{world};
  FixedArray<TokenId> prompt_;
  std::vector<BlockKey> keys_;
  std::uint64_t random_ = 1;
};

// ---- a miss on the first block -------------------------------------------------------------------------------------

class Misses {
 public:
  explicit Misses(CacheEvictor& evict) : evict_(evict), reader_(*heads_.index->register_reader()) {
    const auto add = [this](const char* name, auto one) {
      benchmark::RegisterBenchmark(name,
                                   [this, one](benchmark::State& state) {
                                     for (auto _ : state) {
                                       evict_();
                                       one(64);  // the code and the root come back into the cache
                                       state.SetIterationTime(wall_ns([&] { one(kCount); }) / kCount * 1e-9);
                                     }
                                   })
          ->Iterations(1)
          ->UseManualTime()
          ->Unit(benchmark::kNanosecond);
    };
    const auto load = [this](std::uint32_t count) { at_ = heads_.loads(at_, count); };
    add("miss/index", [this](std::uint32_t count) {
      misses(count,
             [this](const TokenSource& source) { return heads_.index->match(reader_, heads_.root, source); });
    });
    add("miss/index_writer", [this](std::uint32_t count) {
      misses(count, [this](const TokenSource& source) { return heads_.index->match(heads_.root, source); });
    });
    add("miss/load", load);
    add("miss/load_again", load);
  }

 private:
  static constexpr std::uint32_t kCount = 2000;  // touches less than 1 % of the heads

  template <class One>
  void misses(std::uint32_t count, One&& one) {
    for (; count > 0; --count) {
      // No stored block begins like this. Each prompt waits for the answer before.
      prompt_[0] = static_cast<TokenId>(kVocabulary + (mix(++at_) >> 36));
      const Prompt prompt{.tokens = prompt_};
      const Match match = one(TokenSource(heads_.hasher, kBlockTokens, prompt, {}));
      if (match.place.blocks != 0) fail("found what is not there");
      at_ += match.place.generation + match.ready;
    }
    at_ %= heads_.lines();
  }

  CacheEvictor& evict_;
  Heads heads_;
  PrefixIndex::Reader reader_;
  TokenId prompt_[kBlockTokens] = {};
  std::uint32_t at_ = 0;
};

// ---- a reader beside a writer --------------------------------------------------------------------------------------

/// Trims and grows sessions, and inserts and erases new ones, as fast as it can.
class Writer {
 public:
  explicit Writer(World& world) : world_(world), thread_([this] { run(); }) {}
  ~Writer() {
    stop_ = true;
    thread_.join();
  }

 private:
  void run() {
    std::uint64_t random = 7;
    std::vector<TokenId> fresh(World::kTurn * kBlockTokens);
    while (!stop_) {
      random = mix(random + 0x9e3779b97f4a7c15ull);
      const auto s = static_cast<std::uint32_t>(random % World::kSessions);
      trim(world_.leaves[s], World::kTurn);
      grow(world_.session(s, World::kBlocks), world_.leaves[s]);
      for (auto& token : fresh) token = static_cast<TokenId>((random = mix(random + 1)) % kVocabulary);
      RunId run = world_.root;
      grow(fresh, run);
      trim(run, World::kTurn);
    }
  }

  void grow(std::span<const TokenId> tokens, RunId& run) {
    const Prompt prompt{.tokens = tokens};
    const TokenSource source(world_.hasher, kBlockTokens, prompt, {});
    const Place end = world_.index->extend(world_.index->place_at_end(run), source, source.blocks()).place;
    if (end.blocks != source.blocks()) fail("the writer found no room");
    world_.index->set_ready_through(end);
    run = end.run;
  }
  /// Drops the last blocks; `run` is then what ends before them.
  void trim(RunId& run, std::uint32_t blocks) {
    const RunInfo info = world_.index->info(run);
    while (world_.index->trim(run, info.length - blocks).code() == StatusCode::kExhausted) {
    }
    if (info.length == blocks) run = info.parent;
  }

  World& world_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

class Company {
 public:
  Company(World& read, World& other) : read_(read), reader_(*read.index->register_reader()) {
    const auto add = [this](const char* name, World* written) {
      benchmark::RegisterBenchmark(name,
                                   [this, written](benchmark::State& state) {
                                     for (auto _ : state) {
                                       std::optional<Writer> writer;
                                       if (written != nullptr) writer.emplace(*written);
                                       state.SetIterationTime(read_ns() * 1e-9);
                                     }
                                   })
          ->Iterations(1)
          ->UseManualTime()
          ->Unit(benchmark::kMicrosecond);
    };
    add("reader/alone", nullptr);
    add("reader/beside_writer", &read);
    add("reader/beside_writer_of_another_index", &other);
    add("reader/alone_again", nullptr);
  }

 private:
  /// The processor time of one match of 2,048 blocks, on average; not what the machine takes away for others.
  double read_ns() {
    constexpr int kMatches = 400;
    constexpr std::uint32_t kBlocks = 2048;
    double total = 0;
    int missed = 0;
    Answer answer;
    prompt_.resize(kBlocks * kBlockTokens);
    for (int i = 0; i < kMatches; ++i) {
      random_ = mix(random_ + 0x9e3779b97f4a7c15ull);
      read_.write_prompt(static_cast<std::uint32_t>(random_ % World::kSessions), prompt_);
      const Prompt prompt{.tokens = prompt_};
      const TokenSource source(read_.hasher, kBlockTokens, prompt, {});
      const double begin = thread_cpu_ns();
      answer.blocks = read_.index->match(reader_, read_.root, source, answer).ready;
      const double ns = thread_cpu_ns() - begin;
      // A writer that loses its processor in the middle of a change hides what it was changing.
      if (answer.blocks == kBlocks)
        total += ns;
      else
        ++missed;
    }
    if (missed * 100 > kMatches) fail("a reader beside a writer lost what was there");
    if (missed > 0)
      std::printf("  %d of %d matches were hidden by the writer and left out\n", missed, kMatches);
    return total / (kMatches - missed);
  }

  World& read_;
  PrefixIndex::Reader reader_;
  std::vector<TokenId> prompt_;
  std::uint64_t random_ = 3;
};

// ---- groups and checks ---------------------------------------------------------------------------------------------

/// Keeps what Google Benchmark measured, by arm.
class Collector : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs)
      samples[run.run_name.function_name].push_back(run.real_accumulated_time * 1e9 /
                                                    static_cast<double>(run.iterations));
  }
  std::map<std::string, std::vector<double>> samples;  // nanoseconds
};

/// All arms of one group, measured in turn.
class Group {
 public:
  Group(std::string prefix, const char* arm, const char* same_arm) : prefix_(std::move(prefix)) {
    for (int round = 0; round < kRounds; ++round)
      benchmark::RunSpecifiedBenchmarks(&collector_, "^" + prefix_);
    const double off = ratio(arm, same_arm).middle - 1;
    steady_ = std::abs(off) <= 0.02;
    std::printf("%s  (the same arm twice: %+.1f %%)\n", prefix_.c_str(), 100 * off);
    for (const auto& [name, values] : collector_.samples)
      std::printf("  %-58s %12.0f ns\n", name.c_str(), median(values));
  }

  /// The ratio of two arms, round by round.
  [[nodiscard]] Spread ratio(const std::string& arm, const std::string& reference) const {
    const auto& a = collector_.samples.at(prefix_ + arm);
    const auto& b = collector_.samples.at(prefix_ + reference);
    std::vector<double> ratios(a.size());
    for (std::size_t i = 0; i < a.size(); ++i) ratios[i] = a[i] / b[i];
    std::sort(ratios.begin(), ratios.end());
    return {median(ratios), ratios[ratios.size() / 4], ratios[ratios.size() - 1 - ratios.size() / 4]};
  }

  void at_most(Report& report, const char* arm, const char* reference, double bar) const {
    report.at_most(prefix_ + arm + " / " + reference, ratio(arm, reference), "x", bar, steady_);
  }
  void at_least(Report& report, const char* arm, const char* reference, double bar) const {
    report.at_least(prefix_ + arm + " / " + reference, ratio(arm, reference), "x", bar, steady_);
  }

 private:
  std::string prefix_;
  Collector collector_;
  bool steady_ = false;
};

int run(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const char* json = nullptr;
  if (argc == 3 && std::string_view(argv[1]) == "--json")
    json = argv[2];
  else if (argc != 1)
    fail("usage: kvstem_bench_index_match [--json FILE] [Google Benchmark's options]");

  CacheEvictor evict;
  Matches distinct(Openings::kDistinct, evict), shared(Openings::kShared, evict);
  Misses misses(evict);
  Company company(distinct.world, shared.world);
  if (!benchmark::GetBenchmarkFilter().empty()) {
    benchmark::RunSpecifiedBenchmarks();
    return 0;
  }

  std::printf("caches emptied by reading %zu MiB; %d rounds\n\n", evict.bytes() >> 20, kRounds);
  Report report;
  for (Matches* matches : {&distinct, &shared})
    for (const std::uint32_t blocks : kPromptBlocks) {
      const Group group(matches->group(blocks), "index", "index_again");
      for (const char* arm : {"index", "index_writer"}) {
        group.at_most(report, arm, "flat_table", 0.35);
        group.at_most(report, arm, "memcmp", 1.5);
      }
    }
  const Group miss("miss/", "load", "load_again");
  miss.at_most(report, "index", "load", 1.5);
  miss.at_most(report, "index_writer", "load", 1.5);
  const Group reader("reader/", "alone", "alone_again");
  reader.at_least(report, "alone", "beside_writer", 0.9);
  for (Matches* matches : {&distinct, &shared}) {
    const IndexUsage usage = matches->world.index->usage();
    const char* name = matches == &distinct ? "bytes/distinct/" : "bytes/shared/";
    const auto per_block = [&](std::size_t bytes) {
      const double value = static_cast<double>(bytes) / usage.blocks;
      return Spread{value, value, value};
    };
    report.at_most(std::string(name) + "taken", per_block(usage.bytes_taken), "bytes/block", 96, true);
    report.at_most(std::string(name) + "resident", per_block(matches->world.resident), "bytes/block", 96,
                   true);
  }
  report.print();
  return json == nullptr || report.write(json) ? 0 : 1;
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) { return bench::run(argc, argv); }
