// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What a cache decides, so that branching_cache.py can be asked whether it is right.
//
//   kvstem_decisions SEED OPERATIONS
//
// One small cache after another, of random sizes, and random calls of it. Each call is a line of JSON: its
// arguments, the answer, and how things stand then. Nothing is judged here. A text is a scope and its tokens;
// blocks are printed as the text that ends with them.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "kvstem/kvstem.hpp"

using namespace kvstem;

namespace {

using Tokens = std::vector<TokenId>;

constexpr std::uint32_t kScopes = 2, kTimelines = 2, kSteps = 3;  // kSteps: the timeline that steps end on
constexpr std::uint32_t kCalls = 250;                             // of one cache

struct Text {
  std::uint32_t scope = 0;
  Tokens tokens{};
};

/// One line. Fields are numbers, words and lists of numbers.
class Line {
 public:
  explicit Line(const char* call) { std::printf("{\"call\":\"%s\"", call); }
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;
  ~Line() { std::printf("}\n"); }

  void name(const char* key) { std::printf(",\"%s\":", key); }
  void number(const char* key, std::uint64_t value) {
    name(key);
    std::printf("%llu", static_cast<unsigned long long>(value));
  }
  void word(const char* key, const char* value) {
    name(key);
    std::printf("\"%s\"", value);
  }
  template <class Range>
  void list(const char* key, const Range& values) {
    name(key);
    list(values);
  }
  template <class Range>
  void list(const Range& values) {
    const char* before = "[";
    for (const auto value : values) {
      std::printf("%s%lld", before, static_cast<long long>(value));
      before = ",";
    }
    std::printf("%s]", *before == '[' ? "[" : "");
  }
  void numbers(const char* key, std::initializer_list<std::uint64_t> values) { list(key, values); }
  void point(const char* key, Point p) { numbers(key, {p.timeline, p.value}); }
};

class Walk {
  struct Request {
    Lease lease{};
    Text text{};
    std::uint32_t begin = 0;  // it cannot be truncated below
    bool moving = false;      // loads or copies of accepted tokens may be under way
    bool started = false;
  };

 public:
  Walk(std::uint32_t seed, std::uint32_t calls) : random_(seed), calls_(calls) {
    const auto block = 1 + below(5), slots = 8 + below(1 + below(41)), leases = 3 + below(6),
               row = 5 + below(10);
    most_ = block * row;
    CacheOptions options;
    options.block_tokens = block;
    options.slots = slots;
    options.max_leases = leases;
    options.max_lease_tokens = most_;
    options.max_scopes = kScopes;
    options.max_changes = 4096;
    auto made = Cache::create(options);
    must(made.ok());
    cache_ = std::move(*made);
    for (const char* salt : {"", "a"}) {
      const Scope scope{.model = "m", .positions = {}, .adapter = {}, .salt = salt, .vocab_size = 8};
      must(cache_->open_scope(scope).ok());
      roots_.push_back(*cache_->hasher().root(scope));
    }
    requests_.resize(leases);
    Line line("create");
    line.number("block_tokens", block);
    line.number("slots", slots);
    line.number("leases", leases);
    line.number("row", row);
  }

  void run() {
    // A call is tried until one is found that there is something for.
    struct Choice {
      bool (Walk::*call)();
      std::uint32_t weight;
    };
    constexpr Choice kChoices[] = {{&Walk::acquire, 12},      {&Walk::refresh, 8},   {&Walk::reserve, 14},
                                   {&Walk::append, 9},        {&Walk::commit, 16},   {&Walk::accept, 8},
                                   {&Walk::onboard, 8},       {&Walk::fork, 6},      {&Walk::truncate, 8},
                                   {&Walk::release, 6},       {&Walk::cold, 3},      {&Walk::abort, 4},
                                   {&Walk::reach, 7},         {&Walk::end_step, 10}, {&Walk::take_step, 9},
                                   {&Walk::complete_one, 12}, {&Walk::delta, 3},     {&Walk::exclusive, 3}};
    std::uint32_t all = 0;
    for (const Choice& c : kChoices) all += c.weight;
    while (calls_ > 0) {
      std::uint32_t at = below(all);
      const Choice* choice = kChoices;
      for (; at >= choice->weight; ++choice) at -= choice->weight;
      calls_ -= (this->*choice->call)();
    }
  }

 private:
  static void must(bool condition) {
    if (condition) return;
    std::printf("\"the cache could not be made\"\n");
    std::exit(1);
  }
  std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }
  [[nodiscard]] std::uint32_t block() const { return cache_->options().block_tokens; }

  // ---- texts -------------------------------------------------------------------------------------------------------

  /// Three words only, so that texts meet again by chance; half of the time what another text goes on with.
  void go_on(Text& text, std::uint32_t n) {
    if (!texts_.empty() && below(2) == 0) {
      const Text& other = texts_[below(static_cast<std::uint32_t>(texts_.size()))];
      const std::size_t has = text.tokens.size();
      if (other.scope == text.scope && other.tokens.size() > has &&
          std::equal(text.tokens.begin(), text.tokens.end(), other.tokens.begin()))
        for (; n > 0 && text.tokens.size() < other.tokens.size(); --n)
          text.tokens.push_back(other.tokens[text.tokens.size()]);
    }
    for (; n > 0; --n) text.tokens.push_back(static_cast<TokenId>(below(3)));
    learn(text);
  }
  Text make_text() {
    Text text{.scope = below(8) == 0 ? 1u : 0u};
    std::uint32_t more = 1 + below(most_ * 2 / 3);
    if (!texts_.empty() && below(5) != 0) {
      text = texts_[below(static_cast<std::uint32_t>(texts_.size()))];
      if (below(3) != 0) text.tokens.resize(1 + below(static_cast<std::uint32_t>(text.tokens.size())));
      more = below(3) == 0 ? 0 : below(3 * block());
    }
    go_on(text, std::min(more, most_ - static_cast<std::uint32_t>(text.tokens.size())));
    texts_.push_back(text);
    if (texts_.size() > 10) texts_.erase(texts_.begin() + below(10));
    return text;
  }
  /// Remembers what the keys of its blocks stand for.
  void learn(const Text& text) {
    KeyChain chain(cache_->hasher(), roots_[text.scope], block());
    chain.append(text.tokens);
    for (std::size_t b = 0; b < chain.keys().size(); ++b) {
      const BlockKey& key = chain.keys()[b];
      const auto end = text.tokens.begin() + static_cast<std::ptrdiff_t>((b + 1) * block());
      names_[{key.lo, key.hi}] = {text.scope, {text.tokens.begin(), end}};
    }
  }
  void print_name(Line& line, BlockKey key, Tokens before = {}) {
    const Text& text = names_[{key.lo, key.hi}];
    before.push_back(static_cast<TokenId>(text.scope));
    before.insert(before.end(), text.tokens.begin(), text.tokens.end());
    line.list(before);
  }

  // ---- what stands in every line -----------------------------------------------------------------------------------

  void print_state(Line& line) {
    line.name("changes");  // 1 and the block: stored; 0: removed
    Change changes[512];
    const char* before = "[";
    for (const Change& c : cache_->take_changes(changes)) {
      std::printf("%s", before);
      print_name(line, c.key, {c.kind == ChangeKind::kStored ? 1 : 0});
      before = ",";
    }
    std::printf("%s]", *before == '[' ? "[" : "");
    const BlockPool& pool = cache_->pool();
    line.numbers("pool", {pool.free_slots(), pool.held_slots(), pool.used_slots()});
    const CacheStats& s = cache_->stats();
    line.numbers("stats", {s.requests, s.hit_tokens, s.missed_tokens, s.inserted_blocks, s.evicted_blocks,
                           s.failed_loads, s.duplicate_blocks, s.unpublished_blocks, s.refused_requests,
                           s.forks, s.copied_blocks, s.onboarded_blocks});
    line.number("balanced", cache_->audit().balanced());
    line.name("leases");
    before = "{";
    for (const Request& r : requests_) {
      if (!r.lease.live()) continue;
      std::printf("%s\"%u\":[%u,%u,%u,%u,", before, r.lease.index(), r.lease.matched_tokens(),
                  r.lease.known_tokens(), r.lease.committed_tokens(), r.lease.reserved_tokens());
      line.list(r.lease.table(0));
      std::printf("]");
      before = ",";
    }
    std::printf("%s}", *before == '{' ? "{" : "");
  }
  bool done(Line& line, const Status& status) {
    line.word("status", to_string(status.code()));
    print_state(line);
    return true;
  }

  // ---- leases ------------------------------------------------------------------------------------------------------

  /// A live lease, one that `fits` if there is any.
  template <class Fits>
  Request* any(Fits&& fits) {
    Request* found = nullptr;
    const auto n = static_cast<std::uint32_t>(requests_.size()), first = below(n);
    for (std::uint32_t i = 0; i < n; ++i) {
      Request& r = requests_[(first + i) % n];
      if (!r.lease.live()) continue;
      found = &r;
      if (fits(r)) break;
    }
    return found;
  }
  Request* any() {
    return any([](const Request&) { return true; });
  }

  bool acquire() {
    const bool full = std::ranges::all_of(requests_, [](const Request& r) { return r.lease.live(); });
    if (full && below(8) != 0) return false;
    const Text text = make_text();
    Line line("acquire");
    line.number("scope", text.scope);
    line.list("tokens", text.tokens);
    auto lease = cache_->acquire({.scope = ScopeId{text.scope}, .tokens = text.tokens});
    if (!lease.ok()) return done(line, lease.status());
    line.number("lease", lease->index());
    Request& r = requests_[lease->index()];
    r = {.lease = std::move(*lease), .text = text, .begin = static_cast<std::uint32_t>(text.tokens.size())};
    return done(line, {});
  }
  bool refresh() {
    Request* r = any([](const Request& q) { return !q.started; });
    if (r == nullptr) return false;
    (void)must_compute(*r);
    return true;
  }
  bool must_compute(Request& r) {
    Line line("refresh");
    line.number("lease", r.lease.index());
    const Progress p = r.lease.refresh();
    line.numbers("progress", {p.ready_tokens, p.pending_tokens, p.must_compute});
    (void)done(line, {});
    return p.must_compute;
  }
  bool reserve() {
    Request* r = any([](const Request& q) { return q.lease.reserved_tokens() < q.lease.known_tokens(); });
    if (r == nullptr) return false;
    // Who waits for another mostly does so.
    if (!r->started && below(3) != 0 && !must_compute(*r)) return true;
    const std::uint32_t known = r->lease.known_tokens(), reserved = r->lease.reserved_tokens();
    const std::uint32_t n = known > reserved && below(2) == 0 ? known - reserved : 1 + below(3 * block());
    Line line("reserve");
    line.number("lease", r->lease.index());
    line.number("n", n);
    const Status status = r->lease.reserve(n);
    r->started = r->started || status.ok();
    line.point("not_before", r->lease.not_before());
    return done(line, status);
  }
  bool append() {
    Request* r = any([](const Request& q) { return q.lease.known_tokens() == q.lease.committed_tokens(); });
    if (r == nullptr) return false;
    const auto had = static_cast<std::uint32_t>(r->text.tokens.size());
    if (had == most_) return false;
    go_on(r->text, std::min(most_ - had, 1 + below(2 * block())));
    const auto tokens = std::span<const TokenId>(r->text.tokens).subspan(had);
    Line line("append");
    line.number("lease", r->lease.index());
    line.list("tokens", tokens);
    if (below(3) == 0) texts_.back() = r->text;
    return done(line, r->lease.append(tokens));
  }
  Point some_point() {
    if (below(3) == 0) return kNow;
    const std::uint32_t t = below(kTimelines);
    return {t, launched_[t] += below(3) != 0};
  }
  static std::uint32_t committable(const Request& r) {
    return std::min(r.lease.known_tokens(), r.lease.reserved_tokens()) - r.lease.committed_tokens();
  }
  bool commit() {
    Request* r = any([](const Request& q) { return committable(q) > 0; });
    if (r == nullptr) return false;
    const std::uint32_t most = committable(*r);
    if (most == 0 && below(8) != 0) return false;
    const std::uint32_t n = most == 0 || below(20) == 0 ? most + 1 : below(2) == 0 ? most : 1 + below(most);
    const Point after = some_point();
    Line line("commit");
    line.number("lease", r->lease.index());
    line.number("n", n);
    line.point("after", after);
    const Status status = r->lease.commit(n, after);
    r->started = r->started || status.ok();
    return done(line, status);
  }
  bool accept() {
    Request* r = any([](const Request& q) {
      return committable(q) > 0 && q.lease.reserved_tokens() > q.lease.known_tokens();
    });
    if (r == nullptr || committable(*r) == 0) return false;
    const std::uint32_t room = r->lease.reserved_tokens() - r->lease.committed_tokens();
    std::vector<std::uint32_t> offsets;
    const std::uint32_t most = 1 + below(committable(*r));
    for (std::uint32_t i = 0; i < room && offsets.size() < most; ++i)
      if (below(room) < 2 * most) offsets.push_back(i);
    if (below(20) == 0) offsets.push_back(below(room + 1));
    const Point after = some_point();
    Line line("commit_accepted");
    line.number("lease", r->lease.index());
    line.list("offsets", offsets);
    line.point("after", after);
    const Status status = r->lease.commit_accepted(offsets, after);
    r->started = r->started || status.ok();
    r->moving = r->moving || status.ok();
    return done(line, status);
  }
  bool onboard() {
    Request* r = any([&](const Request& q) {
      const Lease& l = q.lease;
      return l.committed_tokens() % block() == 0 && l.reserved_tokens() == l.committed_tokens() &&
             l.known_tokens() > l.committed_tokens() + block();
    });
    if (r == nullptr) return false;
    const std::uint32_t rest = r->lease.known_tokens() - r->lease.committed_tokens();
    const std::uint32_t most = rest > block() ? (rest - 1) / block() : 0;
    if (most == 0 && below(8) != 0) return false;
    const std::uint32_t n =
        most == 0 || below(20) == 0 ? 1 + below(rest + block()) : (1 + below(most)) * block();
    if (r->moving && below(2) == 0) take_all();
    Line line("onboard");
    line.number("lease", r->lease.index());
    line.number("n", n);
    const Status status = r->lease.onboard(n);
    r->started = r->started || status.ok();
    r->moving = r->moving || status.ok();
    return done(line, status);
  }
  bool fork() {
    Request* r = any([](const Request& q) { return q.lease.committed_tokens() >= q.begin; });
    if (r == nullptr) return false;
    const std::uint32_t committed = r->lease.committed_tokens();
    if (committed < r->begin && below(8) != 0) return false;
    Line line("fork");
    line.number("lease", r->lease.index());
    auto lease = r->lease.fork();
    if (!lease.ok()) return done(line, lease.status());
    line.number("child", lease->index());
    const Text text{r->text.scope, {r->text.tokens.begin(), r->text.tokens.begin() + committed}};
    requests_[lease->index()] = {
        .lease = std::move(*lease), .text = text, .begin = committed, .started = true};
    return done(line, {});
  }
  bool truncate() {
    Request* r = any([](const Request& q) { return q.lease.known_tokens() > q.begin; });
    if (r == nullptr) return false;
    const std::uint32_t most = r->lease.known_tokens() - r->begin;
    if (most == 0 && below(8) != 0) return false;
    const std::uint32_t n = below(20) == 0 ? below(most_) : r->begin + below(most + 1);
    if (r->moving && below(2) == 0) take_all();
    Line line("truncate");
    line.number("lease", r->lease.index());
    line.number("n", n);
    const Status status = r->lease.truncate(n);
    if (status.ok()) r->text.tokens.resize(n);
    return done(line, status);
  }
  bool end(const char* call, const Retention* retention) {
    Request* r = any([](const Request& q) { return q.lease.committed_tokens() >= q.begin; });
    if (r == nullptr || (r->lease.committed_tokens() < r->begin && below(3) != 0)) return false;
    if (below(2) == 0) texts_.back() = r->text;
    Line line(call);
    line.number("lease", r->lease.index());
    return done(line, retention != nullptr ? r->lease.release(*retention) : r->lease.abort());
  }
  bool release() {
    const Retention retention{};
    return end("release", &retention);
  }
  bool cold() {
    const Retention retention{.keep = Keep::kCold};
    return end("release_cold", &retention);
  }
  bool abort() { return end("abort", nullptr); }
  bool delta() {
    Request* r = any();
    if (r == nullptr) return false;
    Line line("delta");
    line.number("lease", r->lease.index());
    BlockRange range = r->lease.delta();
    if (range.empty()) range = {};
    line.numbers("range", {range.begin, range.end});
    return done(line, {});
  }
  bool exclusive() {
    Request* r = any();
    if (r == nullptr) return false;
    Line line("exclusive_slots");
    line.number("lease", r->lease.index());
    line.number("slots", r->lease.exclusive_slots());
    return done(line, {});
  }

  // ---- the whole cache ---------------------------------------------------------------------------------------------

  bool reach() {
    const std::uint32_t t = below(kTimelines);
    if (reached_[t] == launched_[t]) return false;
    reached_[t] += 1 + below(static_cast<std::uint32_t>(launched_[t] - reached_[t]));
    Line line("reach");
    line.point("point", {t, reached_[t]});
    return done(line, cache_->reach({t, reached_[t]}));
  }
  bool end_step() {
    if (below(8) != 0) take_all();
    const Point point{kSteps, step_ + 1};
    Line line("end_step");
    line.point("point", point);
    const Status status = cache_->end_step(point);
    step_ += status.ok();
    return done(line, status);
  }
  bool take_step() {
    StepEntry room[16];
    const std::uint32_t most = 1 + below(16);
    Line line("take_step");
    line.number("most", most);
    line.name("entries");
    const char* before = "[";
    for (const StepEntry& e : cache_->take_step({room, most})) {
      std::printf("%s[\"%s\",%u,%u,%u,[%u,%llu]", before, e.kind == StepKind::kLoad ? "load" : "copy",
                  e.lease, e.block, e.slot, e.not_before.timeline,
                  static_cast<unsigned long long>(e.not_before.value));
      if (e.kind == StepKind::kLoad) {
        std::printf(",");
        print_name(line, e.key);
      } else {
        std::printf(",%u,%u,%u,%u,[%u,%llu]", e.from_slot, e.from_offset, e.offset, e.tokens,
                    e.source_ready.timeline, static_cast<unsigned long long>(e.source_ready.value));
      }
      std::printf("]");
      before = ",";
      taken_.push_back(e);
    }
    std::printf("%s]", *before == '[' ? "[" : "");
    return done(line, {});
  }
  /// Entries are numbered in the order in which they were handed out; now and then one is reported twice.
  bool complete_one() {
    const auto n = static_cast<std::uint32_t>(taken_.size());
    std::vector<std::uint32_t> open;
    for (std::uint32_t i = 0; i < n; ++i)
      if (completed_.count(i) == 0) open.push_back(i);
    if (n == 0 || (open.empty() && below(8) != 0)) return false;
    const bool twice = open.empty() || below(20) == 0;
    const std::uint32_t entry = twice ? below(n) : open[below(static_cast<std::uint32_t>(open.size()))];
    // Entries into one slot are not told apart.
    for (const std::uint32_t i : open)
      if (twice && taken_[i].slot == taken_[entry].slot) return false;
    return complete(entry, below(4) != 0);
  }
  void take_all() {
    for (std::size_t had = taken_.size() + 1; had != taken_.size();) {
      had = taken_.size();
      (void)take_step();
    }
  }
  void finish_moves() {
    take_all();
    for (std::uint32_t i = 0; i < taken_.size(); ++i)
      if (completed_.count(i) == 0) (void)complete(i, true);
    for (Request& r : requests_) r.moving = false;
  }
  bool complete(std::uint32_t entry, bool ok) {
    completed_[entry] = true;
    Line line("complete");
    line.number("entry", entry);
    line.number("ok", ok);
    const Status moved = ok ? Status() : Status(StatusCode::kUnavailable, "could not be moved");
    return done(line, cache_->complete({taken_[entry], moved}));
  }

  std::mt19937 random_;
  std::uint32_t calls_;
  std::uint32_t most_;
  std::unique_ptr<Cache> cache_;
  std::vector<BlockKey> roots_;
  std::map<std::pair<std::uint64_t, std::uint64_t>, Text> names_;
  std::vector<Request> requests_;
  std::vector<Text> texts_;
  std::vector<StepEntry> taken_;
  std::map<std::uint32_t, bool> completed_;
  std::uint64_t launched_[kTimelines] = {}, reached_[kTimelines] = {}, step_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::printf("kvstem_decisions SEED OPERATIONS\n"), 2;
  const auto seed = static_cast<std::uint32_t>(std::strtoul(argv[1], nullptr, 10));
  auto calls = static_cast<std::uint32_t>(std::strtoul(argv[2], nullptr, 10));
  for (std::uint32_t number = 0; calls > 0; ++number) {
    const std::uint32_t n = std::min(calls, kCalls);
    Walk(seed * 1000 + number, n).run();
    calls -= n;
  }
  return 0;
}
