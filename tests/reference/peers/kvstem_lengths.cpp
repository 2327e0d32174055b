// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// kvstem_lengths TRACE: the lengths that kvstem matches, a line for each lookup of the trace (trace.py says
// what is in one).
//
// A cache that is filled in place has a slot for every token position of the trace, so that nothing is
// evicted. Every line of the trace is a step that is over before the next. A salt is a scope; a probe is
// `Cache::probe`.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "kvstem/kvstem.hpp"

using namespace kvstem;

namespace {

constexpr std::uint32_t kBlock = 16;

struct Line {
  std::string call{};
  std::uint32_t request = 0;             // all but probe
  std::string salt{};                    // start, probe
  std::vector<std::uint32_t> numbers{};  // the tokens, or where the computed prompt ends
};

[[noreturn]] void fail(const std::string& why) {
  (void)std::fprintf(stderr, "%s\n", why.c_str());
  std::exit(1);
}

std::vector<Line> read(const char* path) {
  std::ifstream file(path);
  if (!file) fail(std::string(path) + " cannot be read");
  std::vector<Line> lines;
  for (std::string text; std::getline(file, text);) {
    std::istringstream words(text);
    Line line;
    words >> line.call;
    if (line.call != "probe") words >> line.request;
    if (line.call == "probe" || line.call == "start") words >> line.salt;
    for (std::uint32_t number = 0; words >> number;) line.numbers.push_back(number);
    if (!words.eof()) fail("line " + std::to_string(lines.size() + 1) + " is not of a trace");
    lines.push_back(std::move(line));
  }
  return lines;
}

class Walk {
 public:
  explicit Walk(const std::vector<Line>& lines) {
    CacheOptions options;
    options.block_tokens = kBlock;
    options.max_lease_tokens = kBlock;
    options.slots = 1;
    std::map<std::uint32_t, std::uint32_t> lengths;
    for (const Line& line : lines) {
      const auto n = static_cast<std::uint32_t>(line.numbers.size());
      options.slots += n;
      if (line.call == "start" || line.call == "append")
        options.max_lease_tokens = std::max(options.max_lease_tokens, lengths[line.request] += n);
    }
    auto cache = Cache::create(options);
    must(cache.status(), "create");
    cache_ = std::move(*cache);
    auto reader = cache_->register_reader();
    must(reader.status(), "register_reader");
    reader_ = std::move(*reader);
  }

  void follow(const Line& line) {
    if (line.call == "start")
      start(line);
    else if (line.call == "compute")
      compute(line);
    else if (line.call == "append")
      append(line);
    else if (line.call == "finish")
      must(leases_.extract(line.request).mapped().release(), "release");
    else if (line.call == "probe")
      probe(line);
    else
      fail(line.call + " is no call of a trace");
    must(cache_->end_step(now_), "end_step");
    must(cache_->reach(now_), "reach");
    ++now_.value;
  }

  /// What would make the comparison one of something else.
  void must_have_been_endless() const {
    const CacheStats& stats = cache_->stats();
    if (stats.evicted_blocks + stats.refused_requests + stats.unpublished_blocks > 0)
      fail(std::to_string(stats.evicted_blocks) + " blocks were evicted, " +
           std::to_string(stats.refused_requests) + " requests refused, " +
           std::to_string(stats.unpublished_blocks) + " blocks not published");
    if (!cache_->audit().balanced()) fail("the books are not balanced");
  }

 private:
  static void must(const Status& status, const char* what) {
    if (!status.ok()) fail(std::string(what) + ": " + status.message());
  }

  ScopeId scope(const std::string& salt) {
    const auto id =
        cache_->open_scope({.model = "m", .salt = salt == "-" ? "" : salt, .vocab_size = 1u << 20});
    must(id.status(), "open_scope");
    return *id;
  }
  /// The tokens live as long as the line.
  Prompt prompt(const Line& line) {
    tokens_.assign(line.numbers.begin(), line.numbers.end());
    return {.scope = scope(line.salt), .tokens = tokens_};
  }

  void start(const Line& line) {
    auto lease = cache_->acquire(prompt(line));
    must(lease.status(), "acquire");
    std::printf("%u\n", lease->matched_tokens());
    leases_.emplace(line.request, std::move(*lease));
  }
  void compute(const Line& line) {
    Lease& lease = leases_.at(line.request);
    const std::uint32_t done = lease.committed_tokens();
    if (line.numbers.at(0) <= done) return;
    must(lease.reserve(line.numbers[0] - done), "reserve");
    must(lease.commit(line.numbers[0] - done, now_), "commit");
  }
  void append(const Line& line) {
    Lease& lease = leases_.at(line.request);
    for (const std::uint32_t number : line.numbers) {
      const auto token = static_cast<TokenId>(number);
      must(lease.reserve(1), "reserve");
      must(lease.append({&token, 1}), "append");
      must(lease.commit(1, now_), "commit");
    }
  }
  void probe(const Line& line) {
    ProbeRange ranges[3];
    const auto found = cache_->probe(reader_, prompt(line), ranges);
    must(found.status(), "probe");
    std::printf("%u\n", ready_tokens(*found));
  }

  std::unique_ptr<Cache> cache_;
  Cache::Reader reader_{};
  std::map<std::uint32_t, Lease> leases_;
  std::vector<TokenId> tokens_;
  Point now_{.timeline = 0, .value = 1};
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) fail("kvstem_lengths TRACE");
  const std::vector<Line> lines = read(argv[1]);
  Walk walk(lines);
  for (const Line& line : lines) walk.follow(line);
  walk.must_have_been_endless();
  return 0;
}
