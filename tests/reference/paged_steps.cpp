// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The steps of a paged host, so that paged_host.py can be asked whether they are right.
//
//   kvstem_paged_steps SEED STEPS
//
// One small host after another, of random sizes, under an engine that is a random walk: requests with common
// beginnings, samples, drafts, hang-ups, copies that fail, steps that are scheduled ahead or not. Each call
// is a line of JSON (paged_lines.hpp). Nothing is judged here; some calls should be refused.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "kvstem/host/paged_host.hpp"
#include "paged_lines.hpp"

using namespace kvstem;

namespace {

using Tokens = std::vector<TokenId>;
constexpr std::uint32_t kWords = 3;                    // so that texts meet again by chance
constexpr std::uint32_t kSteps = 80, kBusySteps = 60;  // of one host; requests come in the first of them

/// What the model chooses behind a text; `flavour` is that of a sample.
TokenId choice(std::span<const TokenId> text, std::uint32_t flavour) {
  std::uint64_t state = flavour % 2;  // so that samples are alike now and then
  for (const TokenId t : text) state = (state ^ static_cast<std::uint64_t>(t + 1)) * 0x9e3779b97f4a7c15u;
  return static_cast<TokenId>((state >> 40) % kWords);
}

class Walk {
  struct Line {
    PagedSequence id{};
    std::uint32_t prompt = 0, limit = 0, flavour = 0;
    std::uint32_t samples = 0;  // to be forked when its prompt is computed
    bool ahead = true, over = false;
  };

 public:
  explicit Walk(std::uint32_t seed) : random_(seed), lines_(stdout) {
    const std::uint32_t block = 1 + below(4);
    PagedHostOptions o;
    o.cache.block_tokens = block;
    o.cache.slots = 6 + below(18);
    o.cache.max_leases = 3 + below(7);
    o.cache.max_lease_tokens = most_ = block * (5 + below(8)) - below(block);
    o.cache.max_scopes = 2;
    o.step_tokens = 2 + below(1 + below(14));
    o.max_sequences = 6 + below(12);
    auto made = PagedHost::create(o);
    must(made.ok());
    host_ = std::move(*made);
    for (const char* salt : {"", "a"}) {
      const auto scope = host_->open_scope(
          {.model = "m", .positions = {}, .adapter = {}, .salt = salt, .vocab_size = kWords});
      must(scope.ok());
      scopes_.push_back(*scope);
    }
    depth_ = below(3);
    drafts_ = below(4);  // of four sequences
    fails_ = below(3) == 0;
    lines_.created(o);
  }

  void run(std::uint32_t steps) {
    while (steps_ < steps) {
      if (steps_ < kBusySteps)
        for (std::uint32_t n = below(3) == 0 ? 1 + below(3) : 0; n > 0; --n) add();
      if (below(8) == 0) hang_up();
      if (below(8) == 0) fork_any();
      propose();
      launch();
      while (flights_.size() > depth_) collect();
    }
    while (!flights_.empty()) collect();
  }

 private:
  static void must(bool condition) {
    if (condition) return;
    std::printf("\"the host could not be made\"\n");
    std::exit(1);
  }
  std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }
  static std::uint32_t size(std::span<const TokenId> t) { return static_cast<std::uint32_t>(t.size()); }

  // ---- requests ------------------------------------------------------------------------------------------

  Tokens make_text() {
    Tokens text;
    std::uint32_t more = 1 + below(most_ * 2 / 3);
    if (!texts_.empty() && below(4) == 0) return texts_.back();
    if (!texts_.empty() && below(4) != 0) {
      text = texts_[below(static_cast<std::uint32_t>(texts_.size()))];
      if (below(2) != 0) text.resize(1 + below(size(text)));
      more = below(3) == 0 ? 0 : below(8);
    }
    for (; more > 0 && text.size() < most_; --more) text.push_back(static_cast<TokenId>(below(kWords)));
    texts_.push_back(text);
    if (texts_.size() > 6) texts_.erase(texts_.begin() + below(6));
    return text;
  }
  void add() {
    Tokens text = make_text();
    if (below(40) == 0) text.back() = kWords;  // the cache does not take it
    Line line{.prompt = size(text), .flavour = below(8)};
    const std::uint32_t room = most_ - line.prompt;
    std::uint32_t more = below(6) == 0 ? 0 : below(below(3) == 0 ? 24 : 9);
    if (below(10) != 0) more = std::min(more, room);  // else it is refused, if need be
    line.limit = line.prompt + more;
    line.ahead = below(4) >= drafts_;
    line.samples = below(4) == 0 ? 1 + below(3) : 0;
    const PagedRequest request{.prompt = {.scope = scopes_[below(6) == 0 ? 1 : 0], .tokens = text},
                               .max_new_tokens = more,
                               .how = {.reuse = below(10) != 0},
                               .ahead = line.ahead};
    const auto id = host_->add(request);
    if (!id.ok()) return lines_.refused().added({}, request);
    line.id = *id;
    all_.push_back(line);
    lines_.added(*id, request);
  }
  /// Mostly in the middle of a prompt, which others may wait for.
  void hang_up() {
    Line* line = any();
    for (Line& other : all_) {
      const PagedProgress at = host_->progress(other.id);
      if (below(2) == 0 && at.running && at.launched_tokens > 0 && at.launched_tokens < other.prompt)
        line = &other;
    }
    if (line != nullptr) end(*line, below(3) == 0);
  }
  void end(Line& line, bool aborted) {
    const Tokens text(host_->tokens(line.id).begin(), host_->tokens(line.id).end());
    if (!(aborted ? host_->abort(line.id) : host_->end(line.id)).ok()) return;
    aborted ? lines_.aborted(line.id) : lines_.ended(line.id);
    line.over = true;
    if (below(20) == 0 && !host_->end(line.id).ok()) lines_.refused().ended(line.id);
    if (below(3) == 0) texts_.push_back(text);  // the next message of a conversation begins with it
  }
  /// Not only at the end of a prompt.
  void fork_any() {
    const Line* line = any();
    if (line == nullptr) return;
    fork_with_any(*line);
  }
  void fork_with_any(const Line& line) {
    Tokens own(1 + below(3));
    for (TokenId& t : own) t = static_cast<TokenId>(below(kWords));
    fork(line, own, below(10));
  }
  void fork(Line from, std::span<const TokenId> own, std::uint32_t more) {
    const auto id = host_->fork(from.id, own, more);
    if (!id.ok()) return lines_.refused().forked(from.id, {}, own, more);
    lines_.forked(from.id, *id, own, more);
    const std::uint32_t known = size(host_->tokens(*id));
    from.id = *id;
    from.limit = known + std::max(more, size(own)) - size(own);
    from.flavour += 1 + below(3);
    from.samples = 0;
    all_.push_back(from);
    if (known >= from.limit) end(all_.back(), false);
  }
  void propose() {
    for (const Line& line : all_) {
      if (line.over || line.ahead || below(6) == 0) continue;
      Tokens text(host_->tokens(line.id).begin(), host_->tokens(line.id).end()), drafts;
      for (std::uint32_t n = below(6); n > 0; --n) {
        drafts.push_back(below(4) == 0 ? static_cast<TokenId>(below(kWords)) : choice(text, line.flavour));
        text.push_back(drafts.back());
      }
      const bool taken = host_->propose(line.id, drafts).ok();
      (taken ? lines_ : lines_.refused()).proposed(line.id, drafts);
    }
  }
  Line* any() {
    std::erase_if(all_, [](const Line& l) { return l.over; });
    return all_.empty() ? nullptr : &all_[below(static_cast<std::uint32_t>(all_.size()))];
  }
  Line* find(PagedSequence id) {
    const auto at = std::ranges::find_if(all_, [&](const Line& l) { return l.id == id && !l.over; });
    return at == all_.end() ? nullptr : &*at;
  }

  // ---- steps ---------------------------------------------------------------------------------------------

  void launch() {
    flights_.push_back({});
    PagedStep& step = flights_.back();
    steps_ += 1;
    now_ += 1 + below(2);
    if (!host_->schedule({0, now_}, step).ok()) {
      std::printf("\"a step could not be scheduled\"\n");
      std::exit(1);
    }
    lines_.scheduled(*host_, step);
    for (const StepEntry& e : step.copies) copies_.push_back({now_, handed_out_++, e});
  }

  void collect() {
    const PagedStep step = std::move(flights_.front());
    flights_.pop_front();
    for (const auto& [done, number, entry] : copies_) {
      if (done > step.done.value || !fails_ || below(3) != 0) continue;
      if (host_->failed(entry, {StatusCode::kUnavailable, "could not be moved"}).ok()) lines_.failed(number);
    }
    std::erase_if(copies_, [&](const Copy& c) { return c.done <= step.done.value; });
    if (host_->finished(step.done).ok()) lines_.finished(step.done);
    for (const PagedWork& w : step.work) {
      Line* line = find(w.sequence);
      if (line == nullptr) continue;  // it hung up
      while (line->samples > 0 && w.end == line->prompt && w.samples) {
        --line->samples;
        const TokenId own = choice(host_->tokens(line->id), line->flavour + line->samples);
        fork(*line, {&own, 1}, line->limit - line->prompt);
        line = find(w.sequence);
      }
      if (w.samples && below(12) == 0) fork_with_any(*line);
      line = find(w.sequence);
      if (w.samples) {
        accept(*line, step, w);
      } else if (w.end == line->limit) {  // it asked for no tokens
        end(*line, false);
      }
    }
  }
  void accept(Line& line, const PagedStep& step, const PagedWork& w) {
    Tokens text(host_->tokens(line.id).begin(), host_->tokens(line.id).end()), tokens;
    const std::uint32_t extra = below(50) == 0 ? 1 : 0;  // is refused
    const auto drafts =
        std::span(step.tokens).subspan(w.first_token + (w.end - w.begin) - w.drafts, w.drafts);
    for (std::uint32_t i = 0; i <= w.drafts + extra; ++i) {
      tokens.push_back(choice(text, line.flavour));
      text.push_back(tokens.back());
      if (i < w.drafts && drafts[i] != tokens.back()) break;
    }
    bool taken = host_->accept(line.id, tokens).ok();
    (taken ? lines_ : lines_.refused()).accepted(line.id, tokens);
    if (!taken && extra > 0 && tokens.size() == w.drafts + 2) {
      tokens.pop_back();
      taken = host_->accept(line.id, tokens).ok();
      (taken ? lines_ : lines_.refused()).accepted(line.id, tokens);
    }
    const std::uint32_t known = size(host_->tokens(line.id));
    if (known >= line.limit || (tokens.back() == 0 && below(16) == 0)) end(line, false);
  }

  struct Copy {
    std::uint64_t done, number;
    StepEntry entry;
  };

  std::mt19937 random_;
  test::PagedLines lines_;
  std::unique_ptr<PagedHost> host_;
  std::vector<ScopeId> scopes_;
  std::deque<Line> all_;
  std::deque<PagedStep> flights_;
  std::vector<Tokens> texts_;
  std::vector<Copy> copies_;
  std::uint64_t now_ = 0, handed_out_ = 0;
  std::uint32_t most_ = 0, steps_ = 0, drafts_ = 0;
  std::size_t depth_ = 0;
  bool fails_ = false;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::printf("kvstem_paged_steps SEED STEPS\n"), 2;
  const auto seed = static_cast<std::uint32_t>(std::strtoul(argv[1], nullptr, 10));
  auto steps = static_cast<std::uint32_t>(std::strtoul(argv[2], nullptr, 10));
  for (std::uint32_t number = 0; steps > 0; ++number) {
    const std::uint32_t n = std::min(steps, kSteps);
    Walk(seed * 1000 + number).run(n);
    steps -= n;
  }
  return 0;
}
