// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A ready-made way to live in an engine that owns a pool of KV blocks (paged attention): the line of requests, their
// leases and what each step computes, joined. It says what the next step is, as plain data; the engine carries it out and
// reports the tokens that it chose. Continuous batching, prompts in chunks, samples that share their prompt, drafts that
// are verified, and steps that are scheduled while the one before runs.
//
// Not for an engine whose state only its own calls can move (opaque_host.hpp). One with a scheduler of its own, or with
// lower tiers to load from, takes the Cache and its leases: this is what they look like in use.
//
// Order of calls, in each round: `schedule` fills a PagedStep, to be launched at once: first `copies`, then `work`, and
// `done` is reached when both are. When a step is over: `finished(done)`, then `accept` for each work that samples.
// `schedule` may be called once more before that: a sequence whose token is not known yet goes on with what the engine
// holds on the device (PagedWork::ahead), by one such token at most. Steps are carried out in the order of `schedule`,
// on one timeline. When nobody is `busy` any more, finish the steps under way without scheduling others.
//
// Who goes first: the oldest request that runs always can go on. When slots run out the youngest is preempted: it gives
// up its slots, waits in line at its old place, and finds what nobody took meanwhile. Who waits holds nothing, so no two
// can lock each other out, at full use of the pool neither. Nobody who waits is overtaken, but by samples of who runs. A
// prompt that somebody computes already is waited for. A step preempts at most what the first who lacks slots lacks; those
// slots are there one step later. Who could not go on even alone ends with an error (PagedStep::failed).
//
// Two hosts that are created alike and hear the same calls say the same steps (PagedStep::decisions), so each rank may
// have its own; or one decides, and the others get its steps.
// Threads: one, the engine's. Nothing waits. Allocates in `add` and `fork` (tokens), and until steps have reached their
// size; not after that. Cost of `schedule`: O(sequences that run, and the blocks of the tables it writes), and a match of
// each that it admits; with one group who does not fit is matched again only when slots have come back.
//
//   auto host = *PagedHost::create({.cache = {.block_tokens = 16, .slots = 4096}, .step_tokens = 512});
//   const ScopeId scope = *host->open_scope({.model = "m", .vocab_size = 49152});
//   const PagedSequence s = *host->add({.prompt = {.scope = scope, .tokens = tokens}, .max_new_tokens = 32});
//   for (PagedStep step; host->busy();) {
//     check(host->schedule({0, ++n}, step));
//     engine.run(step);                                        // copies, then one forward pass of all rows
//     check(host->finished(step.done));
//     for (const PagedWork& w : step.work)
//       if (w.samples) check(host->accept(w.sequence, engine.chosen(w)));
//     if (host->tokens(s).size() == tokens.size() + 32) check(host->end(s));
//   }
#pragma once

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/point.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/cache/cache.hpp"
#include "kvstem/model/prompt.hpp"
#include "kvstem/model/retention.hpp"

namespace kvstem::inline v0 {

struct PagedHostOptions {
  /// In place and by tokens. max_leases is how many run at once; others wait. A window's pool should hold its window and a
  /// step's tokens of each that runs, a pool of states two for each and one more; with less, fewer run.
  CacheOptions cache{};
  std::uint32_t step_tokens = 512;    // most tokens that a step computes, drafts included
  std::uint32_t max_sequences = 256;  // that run or wait; more are refused
};

/// A sequence between `add` (or `fork`) and `end`.
struct PagedSequence {
  std::uint32_t index = 0, generation = 0;
  friend bool operator==(const PagedSequence&, const PagedSequence&) = default;
};

struct PagedRequest {
  Prompt prompt{};  // copied
  /// 0: only computes the prompt; no work of it samples, and it is done when the step with PagedWork::end == its length is.
  std::uint32_t max_new_tokens = 1;
  AcquireOptions how{};
  /// false: its next step waits for the result of the one before. For drafts, which need that.
  bool ahead = true;
};

/// One sequence's part of a step: the state of positions [begin, end) is computed.
struct PagedWork {
  PagedSequence sequence{};
  std::uint32_t begin = 0, end = 0;
  std::uint32_t drafts = 0;       // the last of these positions hold drafts
  std::uint32_t first_token = 0;  // where its tokens begin in PagedStep::tokens
  bool samples = false;  // a token is to be chosen behind its last position; with drafts behind each of them
  bool ahead =
      false;  // the token of `begin` is the one that its last work chose, in a step that is under way
};

/// A group's tables in a step, one row for each work.
struct PagedTables {
  std::uint32_t width = 0;  // of a row
  /// work.size() x width: as Lease::table, filled up with null. Of states {read, write}: the state before `begin` (null at
  /// the begin of a text), and where the one behind `end` goes.
  std::vector<std::int32_t> block_tables{};
  /// Where the state of each token goes, as Lease::slot_mapping: of each work those of [begin, PagedWork::end), one work
  /// after the other. Empty for states.
  std::vector<std::int64_t> slot_mapping{};
  /// Where each work's part of this group begins: PagedWork::begin, or earlier for a group that lags.
  std::vector<std::uint32_t> begin{};
};

/// A sequence that cannot be served (a token outside the vocabulary; a group's pool that is too small). It has ended.
struct PagedFailure {
  PagedSequence sequence{};
  Status status{};
};

/// What `schedule` says. Passed in again when its step is over, it does not allocate.
struct PagedStep {
  Point done{};
  std::vector<StepEntry> copies{};  // to be carried out in this order, before `work`
  std::vector<PagedWork> work{};
  std::vector<TokenId> tokens{};  // of all works, one after the other; kNoToken where it is not known yet
  std::vector<PagedTables> groups{};
  std::vector<PagedFailure> failed{};
  std::uint64_t decisions = 0;  // Cache::decisions after it

  static constexpr TokenId kNoToken = -1;
};

struct PagedHostStats {
  std::uint64_t steps = 0, computed_tokens = 0;  // positions launched; drafts included
  std::uint64_t admitted = 0, matched_tokens = 0;
  std::uint64_t preempted = 0;  // gave up its slots; is admitted once more
  std::uint64_t stalled = 0;    // sequences that sat out a step for want of slots
  std::uint64_t followed = 0;   // rounds in which a sequence waited for what another computes
  std::uint64_t copies = 0;
  std::uint64_t drafts = 0, accepted_drafts = 0;
};

struct PagedProgress {
  std::uint32_t known_tokens = 0;     // prompt, and accepted since
  std::uint32_t launched_tokens = 0;  // whose state is computed or in a step
  std::uint32_t matched_tokens = 0;   // found when it was admitted, the last time
  bool running = false;               // else it waits in line
};

/// `Policy` says which blocks go first; see policy/eviction_policy.hpp for which there are.
template <EvictionPolicy Policy = Lru>
class BasicPagedHost {
 public:
  using Cache = BasicCache<Policy>;

  /// kInvalidArgument names the option that is wrong; kExhausted: no memory. Else as Cache::create.
  [[nodiscard]] static Result<std::unique_ptr<BasicPagedHost>> create(const PagedHostOptions& options) {
    if (options.cache.fill != SlotFill::kInPlace || options.cache.mode != IndexMode::kTokens)
      return Status(StatusCode::kInvalidArgument,
                    "PagedHostOptions::cache must be filled in place and indexed by tokens");
    if (options.step_tokens == 0 || options.max_sequences == 0)
      return Status(StatusCode::kInvalidArgument,
                    "PagedHostOptions: step_tokens and max_sequences must not be 0");
    for (const KvGroup& g : options.cache.groups)
      if (g.kind == GroupKind::kStateCheckpoint && options.step_tokens < options.cache.block_tokens)
        return Status(StatusCode::kInvalidArgument,
                      "PagedHostOptions::step_tokens must hold a block where states are kept");
    auto cache = Cache::create(options.cache);
    if (!cache.ok()) return cache.status();
    std::unique_ptr<BasicPagedHost> host(new (std::nothrow) BasicPagedHost(options, std::move(*cache)));
    if (host == nullptr) return Status(StatusCode::kExhausted, "no memory for the host");
    return host;
  }

  BasicPagedHost(const BasicPagedHost&) = delete;
  BasicPagedHost& operator=(const BasicPagedHost&) = delete;

  /// As Cache::open_scope.
  [[nodiscard]] Result<ScopeId> open_scope(const Scope& scope) { return cache_->open_scope(scope); }

  /// A request joins the line. kOutOfRange if it could never be served: longer than a lease or than all slots of a group;
  /// kInvalidArgument for an empty prompt or one that `validate` refuses; kExhausted beyond max_sequences. Scopes and token
  /// ids are checked when it is admitted: see PagedStep::failed.
  [[nodiscard]] Result<PagedSequence> add(const PagedRequest& request) {
    const auto prompt = static_cast<std::uint32_t>(request.prompt.tokens.size());
    if (prompt == 0)
      return Status(StatusCode::kInvalidArgument, "an empty prompt: there must be a token to compute");
    if (const Status status = validate(request.prompt, block_tokens()); !status.ok()) return status;
    const std::uint64_t limit = std::uint64_t{prompt} + request.max_new_tokens;
    if (const Status status = check_length(prompt, limit); !status.ok()) return status;
    Sequence* s = take_free();
    if (s == nullptr) return full();
    s->tokens.reserve(limit);
    s->tokens.assign(request.prompt.tokens.begin(), request.prompt.tokens.end());
    s->extras.assign(request.prompt.extras.begin(), request.prompt.extras.end());
    s->changes.assign(request.prompt.changes.begin(), request.prompt.changes.end());
    s->scope = request.prompt.scope;
    s->how = request.how;
    s->prompt = prompt;
    s->limit = static_cast<std::uint32_t>(limit);
    s->may_be_ahead = request.ahead;
    insert(waiting_, *s);
    return id(*s);
  }

  /// A second sequence that shares all that the first has committed, by reference, and goes on with tokens of its own (at
  /// least one): samples, beams, sub-agents. For samples of one prompt, fork when the step with its last position is over,
  /// before the first one's own token is accepted. Where there is no lease or slot for it now, it waits in line as one that
  /// was preempted. `max_new_tokens` counts `tokens` and begins where what is shared ends; a fork that is at its limit
  /// computes nothing, and is there until `end`. kStale; kWrongState before its prompt is launched whole; kOutOfRange as
  /// `add`, or outside the vocabulary; kExhausted beyond max_sequences: so count samples when you `add`.
  [[nodiscard]] Result<PagedSequence> fork(PagedSequence of, std::span<const TokenId> tokens,
                                           std::uint32_t max_new_tokens) {
    Sequence* const from = find(of);
    if (from == nullptr) return stale();
    if (from->running ? from->lease.committed_tokens() < from->prompt : !from->prompt_launched)
      return Status(StatusCode::kWrongState,
                    "fork when the step that computes the end of the prompt is scheduled");
    if (tokens.empty())
      return Status(StatusCode::kInvalidArgument, "a fork needs at least one token of its own");
    if (!in_vocabulary(*from, tokens)) return foreign();
    // One that was preempted meanwhile had committed what was known.
    const std::uint32_t shared =
        from->running ? from->lease.committed_tokens() : static_cast<std::uint32_t>(from->tokens.size());
    const std::uint64_t limit =
        std::uint64_t{shared} + std::max<std::uint64_t>(max_new_tokens, tokens.size());
    if (const Status status = check_length(shared, limit); !status.ok()) return status;
    Sequence* const s = take_free();
    if (s == nullptr) return full();
    s->tokens.reserve(limit);
    s->tokens.assign(from->tokens.begin(), from->tokens.begin() + shared);
    s->tokens.insert(s->tokens.end(), tokens.begin(), tokens.end());
    s->extras = from->extras;
    s->changes = from->changes;
    s->scope = from->scope;
    s->how = from->how;
    s->prompt = from->prompt;
    s->prompt_launched = true;
    s->limit = static_cast<std::uint32_t>(limit);
    s->may_be_ahead = from->may_be_ahead;
    if (!from->running) {
      insert(waiting_, *s);
      return id(*s);
    }
    auto lease = from->lease.fork();
    if (lease.ok()) {
      if (const Status status = lease->append(tokens); !status.ok()) {
        let_go(*s);
        return status;
      }
      s->lease = std::move(*lease);
      s->launched = s->matched = shared;
      start(*s);
    } else if (lease.status().code() == StatusCode::kExhausted ||
               lease.status().code() == StatusCode::kWrongState) {  // a copy of it is under way
      insert(waiting_, *s);
    } else {
      let_go(*s);
      return lease.status();
    }
    return id(*s);
  }

  /// Tokens that may follow the known ones, to be verified in the next step: they are computed with it as far as there is
  /// room in the step and in the pool, see PagedWork::drafts. kInvalidArgument for a sequence that may be ahead,
  /// kUnsupported with groups of states, kWrongState while its last result is due, kOutOfRange outside the vocabulary. What a
  /// step did not take is forgotten.
  Status propose(PagedSequence sequence, std::span<const TokenId> drafts) {
    Sequence* const s = find(sequence);
    if (s == nullptr) return stale();
    if (s->may_be_ahead) return {StatusCode::kInvalidArgument, "drafts need PagedRequest::ahead = false"};
    if (has_states_) return {StatusCode::kUnsupported, "a state cannot go back to before a wrong draft"};
    if (s->due != 0) return {StatusCode::kWrongState, "accept the result of its last step first"};
    if (!in_vocabulary(*s, drafts)) return foreign();
    s->drafts.assign(drafts.begin(), drafts.end());
    return {};
  }

  /// The next step, which ends at `done`. It is empty when there is nothing to do but to wait for results, or for slots
  /// that come back when a step has ended: finish it all the same. kInvalidArgument, and nothing happens, if `done` is not
  /// later than that of the step before (values begin at 1), or on another timeline; kOutOfRange for one that the cache
  /// does not have.
  Status schedule(Point done, PagedStep& step) {
    if (done.timeline >= Cache::kMaxTimelines)
      return {StatusCode::kOutOfRange, "Point::timeline must be below kMaxTimelines"};
    if (done.value <= scheduled_.value || (stats_.steps > 0 && done.timeline != scheduled_.timeline))
      return {StatusCode::kInvalidArgument, "steps must end on one timeline, one after the other"};
    scheduled_ = done;
    step.done = done;
    step.copies.clear();
    step.work.clear();
    step.tokens.clear();
    step.failed.clear();
    step.groups.resize(groups());
    for (PagedTables& t : step.groups) {
      t.block_tables.clear();
      t.slot_mapping.clear();
      t.begin.clear();
      t.width = 0;
    }
    left_ = options_.step_tokens;
    stalled_ = false;
    if (ended_ || finished_ < room_at_)
      settling_ = kSettling;
    else if (settling_ > 0)
      --settling_;
    for (std::size_t i = 0; i < running_.size(); ++i) {
      Sequence& s = sequences_[running_[i]];
      if (plan(s, step) != Outcome::kNoSlots) continue;
      ++stats_.stalled;
      if (!std::exchange(stalled_, true) && !ended_ && finished_ >= room_at_) make_room(i);
    }
    if (!stalled_) admit(step);
    give_up_on_the_last(step);
    fill_tables(step);
    take_copies(step);
    step.decisions = cache_->decisions();
    ++stats_.steps;
    ended_ = false;
    if (!step.work.empty()) worked_at_ = done.value;
    return cache_->end_step(done);
  }

  /// The step that ends at this point is over, and those before it: what they computed is found by others from now on.
  /// kInvalidArgument, and nothing happens, for a point that no step has.
  Status finished(Point done) {
    if (done.timeline != scheduled_.timeline || done.value > scheduled_.value)
      return {StatusCode::kInvalidArgument, "no step was scheduled that ends at this point"};
    std::size_t kept = 0;
    for (const Moving& m : moving_) {
      if (m.step <= done.value)
        (void)cache_->complete({m.entry, {}});
      else
        moving_[kept++] = m;
    }
    moving_.erase(moving_.begin() + static_cast<std::ptrdiff_t>(kept), moving_.end());
    finished_ = std::max(finished_, done.value);
    return cache_->reach(done);
  }

  /// Before `finished`: a copy of a step went wrong. Whoever relies on it computes again; go on with `finished` and `accept`
  /// as usual: results that rest on it are dropped. kStale for one that is not under way.
  Status failed(const StepEntry& entry, Status why) {
    const Status status = cache_->complete({entry, why});
    if (!status.ok()) return status;
    settling_ = kSettling;
    std::erase_if(moving_, [&](const Moving& m) {
      const StepEntry& e = m.entry;
      if (e.lease != entry.lease || e.generation != entry.generation || e.slot != entry.slot ||
          e.group != entry.group)
        return false;
      Sequence* const owner = find(m.owner);
      if (owner != nullptr && !owner->running) owner->dropped = owner->due;  // it was preempted since
      return true;
    });
    for (std::size_t i = 0; i < running_.size(); ++i) {
      Sequence& s = sequences_[running_[i]];
      if (s.lease.live() && s.lease.committed_tokens() >= s.launched - s.unverified) continue;
      s.dropped = s.due;
      if (s.lease.live()) {
        s.launched = s.lease.committed_tokens();
        s.unverified = 0;
      } else {
        preempt(s), --i;
      }
    }
    return {};
  }

  /// What a work that samples has chosen: one token; or as many of its drafts as were right, from the first on, and the
  /// token behind them. In the order of steps. It lasts until `end`, also when it has all its tokens. Nothing is accepted,
  /// and the result is still due: kOutOfRange for none, for more tokens than the work has, beyond the sequence's limit or
  /// outside the vocabulary; kInvalidArgument if they are not its drafts. Drop the tokens, do not send them to anybody:
  /// kUnavailable when a copy failed that they rest on (they will be computed again), kStale after its end.
  /// kWrongState if no result is due.
  Status accept(PagedSequence sequence, std::span<const TokenId> tokens) {
    Sequence* const s = find(sequence);
    if (s == nullptr) return stale();
    if (s->due == 0) return {StatusCode::kWrongState, "no result of this sequence is due"};
    if (s->dropped > 0) {
      --s->dropped;
      --s->due;
      return {StatusCode::kUnavailable,
              "what this token rests on was lost with a copy: it is computed again"};
    }
    const std::uint32_t drafts = s->drafts_launched;
    if (tokens.empty() || tokens.size() > drafts + 1 || s->tokens.size() + tokens.size() > s->limit)
      return {StatusCode::kOutOfRange, "accept one token, and one more for each draft that was right"};
    if (!in_vocabulary(*s, tokens)) return foreign();
    if (!std::equal(tokens.begin(), tokens.end() - 1, s->verifying.begin()))
      return {StatusCode::kInvalidArgument, "all tokens but the last must be the drafts of this work"};
    if (s->running)
      if (const Status status = s->lease.append(tokens); !status.ok()) return status;
    --s->due;
    s->tokens.insert(s->tokens.end(), tokens.begin(), tokens.end());
    const auto right = static_cast<std::uint32_t>(tokens.size()) - 1;
    stats_.accepted_drafts += right;
    s->drafts_launched = 0;
    if (!s->running) return {};  // preempted meanwhile
    s->launched -= drafts - right;
    s->unverified = 0;
    return commit(*s, s->last_step);
  }

  /// It has all its tokens, or nobody wants them any more. What it computed stays as the policy sees fit; a row of it that
  /// is under way is wasted, and its result is refused. kStale the second time.
  Status end(PagedSequence sequence, Retention retention = {}) {
    return stop(sequence, [&](auto& lease) { return lease.release(retention); });
  }
  /// Its computation went wrong: nothing of it that is still under way is published.
  Status abort(PagedSequence sequence) {
    return stop(sequence, [](auto& lease) { return lease.abort(); });
  }

  /// All tokens that are known of it; until the next call that is given it. Empty when stale.
  [[nodiscard]] std::span<const TokenId> tokens(PagedSequence sequence) const noexcept {
    const Sequence* const s = find(sequence);
    return s == nullptr ? std::span<const TokenId>{} : std::span<const TokenId>(s->tokens);
  }
  [[nodiscard]] PagedProgress progress(PagedSequence sequence) const noexcept {
    const Sequence* const s = find(sequence);
    if (s == nullptr) return {};
    return {static_cast<std::uint32_t>(s->tokens.size()), s->launched, s->matched, s->running};
  }
  /// Whether any sequence has not ended.
  [[nodiscard]] bool busy() const noexcept { return !running_.empty() || !waiting_.empty(); }
  [[nodiscard]] std::uint32_t running() const noexcept { return static_cast<std::uint32_t>(running_.size()); }
  [[nodiscard]] std::uint32_t waiting() const noexcept { return static_cast<std::uint32_t>(waiting_.size()); }
  [[nodiscard]] const PagedHostStats& stats() const noexcept { return stats_; }
  /// For `probe`, `audit`, `take_changes`, `pool` and the like.
  [[nodiscard]] Cache& cache() noexcept { return *cache_; }

 private:
  struct Sequence {
    std::uint32_t index = 0, generation = 0;
    bool used = false, running = false, follows = false, may_be_ahead = true, prompt_launched = false;
    std::uint64_t arrival = 0;
    std::uint32_t prompt = 0, limit = 0;  // tokens
    std::uint32_t matched = 0, launched = 0;
    std::uint32_t unverified = 0;  // positions at the end of what is launched whose tokens are not known
    std::uint32_t drafts_launched = 0;
    std::uint32_t due = 0, dropped = 0;  // results to come; of which worthless
    std::uint32_t wanted = 0;            // tokens that it had no slots for
    Point last_step{};
    ScopeId scope = kNoScope;
    AcquireOptions how{};
    std::vector<TokenId> tokens{}, drafts{}, verifying{};  // known; proposed; in the step under way
    std::vector<Extra> extras{};
    std::vector<ScopeChange> changes{};
    BasicLease<Policy> lease{};
  };
  struct Moving {
    std::uint64_t step;
    StepEntry entry;
    PagedSequence owner;
  };
  enum class Outcome : std::uint8_t { kPlanned, kNothing, kNoSlots };

  BasicPagedHost(const PagedHostOptions& options, std::unique_ptr<Cache> cache)
      : options_(options), cache_(std::move(cache)), sequences_(options.max_sequences) {
    for (const KvGroup& g : options.cache.groups) {
      kinds_.push_back(g);
      has_states_ = has_states_ || g.kind == GroupKind::kStateCheckpoint;
      has_windows_ = has_windows_ || g.kind == GroupKind::kSlidingWindow;
    }
    if (kinds_.empty()) kinds_.emplace_back();
    options_.cache.groups = {};  // the caller's, which may be gone
    for (std::uint32_t i = 0; i < options.max_sequences; ++i) sequences_[i].index = i;
    running_.reserve(options.max_sequences);
    waiting_.reserve(options.max_sequences);
    computed_.resize(kinds_.size());
  }

  static Status stale() noexcept { return {StatusCode::kStale, "this sequence has ended"}; }
  static Status foreign() noexcept {
    return {StatusCode::kOutOfRange, "a token id is outside the scope's vocabulary"};
  }
  [[nodiscard]] bool in_vocabulary(const Sequence& s, std::span<const TokenId> tokens) const noexcept {
    return cache_->in_vocabulary(tokens, s.changes.empty() ? s.scope : s.changes.back().scope);
  }
  static Status full() noexcept {
    return {StatusCode::kExhausted,
            "all sequences run or wait: end one, or raise PagedHostOptions::max_sequences"};
  }
  /// Of tokens the last has no state, unless it is the prompt's.
  [[nodiscard]] Status check_length(std::uint64_t prompt, std::uint64_t limit) const noexcept {
    const CacheOptions& o = cache_->options();
    if (limit > o.max_lease_tokens)
      return {StatusCode::kOutOfRange, "prompt and answer are longer than CacheOptions::max_lease_tokens"};
    const std::uint64_t states = std::max(prompt, limit - 1);
    if ((states + o.block_tokens - 1) / o.block_tokens > o.slots - (o.null_slot ? 1 : 0))
      return {StatusCode::kOutOfRange, "prompt and answer need more blocks than CacheOptions::slots"};
    for (GroupId g = 0; g < groups(); ++g)
      if (kinds_[g].kind == GroupKind::kFullAttention && kinds_[g].slots != 0 &&
          states > std::uint64_t{cache_->block_tokens(g)} * (kinds_[g].slots - (o.null_slot ? 1 : 0)))
        return {StatusCode::kOutOfRange, "prompt and answer need more blocks than KvGroup::slots of a group"};
    return {};
  }
  [[nodiscard]] std::uint32_t block_tokens() const noexcept { return cache_->options().block_tokens; }
  [[nodiscard]] GroupId groups() const noexcept { return static_cast<GroupId>(kinds_.size()); }
  static PagedSequence id(const Sequence& s) noexcept { return {s.index, s.generation}; }

  [[nodiscard]] const Sequence* find(PagedSequence sequence) const noexcept {
    if (sequence.index >= sequences_.size()) return nullptr;
    const Sequence& s = sequences_[sequence.index];
    return s.used && s.generation == sequence.generation ? &s : nullptr;
  }
  [[nodiscard]] Sequence* find(PagedSequence sequence) noexcept {
    return const_cast<Sequence*>(std::as_const(*this).find(sequence));
  }

  [[nodiscard]] Sequence* take_free() noexcept {
    for (Sequence& s : sequences_) {
      if (s.used) continue;
      s.used = true;
      ++s.generation;
      s.arrival = ++arrivals_;
      s.running = s.follows = s.prompt_launched = false;
      s.matched = s.launched = s.unverified = s.drafts_launched = s.due = s.dropped = 0;
      s.last_step = {};
      s.drafts.clear();
      return &s;
    }
    return nullptr;
  }
  void let_go(Sequence& s) noexcept {
    s.used = false;
    s.lease = {};
  }

  /// Both lines are kept by arrival.
  void insert(std::vector<std::uint32_t>& line, const Sequence& s) {
    const auto later = [this](std::uint64_t arrival, std::uint32_t i) {
      return arrival < sequences_[i].arrival;
    };
    line.insert(std::upper_bound(line.begin(), line.end(), s.arrival, later), s.index);
  }
  void start(Sequence& s) {
    s.running = true;
    insert(running_, s);
    ++stats_.admitted;
    stats_.matched_tokens += s.matched;
  }

  /// Commits what is launched and known.
  Status commit(Sequence& s, Point after) noexcept {
    const std::uint32_t until =
        std::min(s.launched - s.unverified, static_cast<std::uint32_t>(s.tokens.size()));
    const std::uint32_t n = until - std::min(until, s.lease.committed_tokens());
    return n == 0 ? Status() : s.lease.commit(n, after);
  }

  /// What the sequence computes in this step, and its slots.
  Outcome plan(Sequence& s, PagedStep& step) {
    if (s.follows) {
      const Progress progress = s.lease.refresh();
      s.matched = s.launched = s.lease.matched_tokens();
      s.follows = !progress.must_compute;
      stats_.followed += s.follows;
      if (s.follows) return Outcome::kNothing;
    }
    const auto known = static_cast<std::uint32_t>(s.tokens.size());
    const std::uint32_t begin = s.launched;
    const std::uint32_t last = std::max(s.prompt, s.limit - 1);  // nobody needs the state of the last token
    PagedWork w{.sequence = id(s), .begin = begin, .end = begin, .drafts = 0, .first_token = 0};
    if (begin < std::min(known, last)) {
      w.end = std::min({known, last, begin + std::min(left_, last), s.lease.next_boundary(begin)});
      if (w.end == known && w.end < last && w.end > begin) {
        w.drafts =
            std::min({static_cast<std::uint32_t>(s.drafts.size()), left_ - (w.end - begin), last - w.end});
        w.end += w.drafts;
      }
      w.samples = w.end >= known && s.limit > known;
    } else if (begin == known && begin < last && s.due > 0 && s.dropped == 0 && s.may_be_ahead && left_ > 0) {
      w.end = begin + 1;
      w.samples = w.ahead = true;
    }
    if (w.end == begin) return Outcome::kNothing;

    const std::uint32_t reserved = s.lease.reserved_tokens();
    for (GroupId g = 0; g < groups(); ++g)  // before the lease has slots for what a group that lags lacks
      computed_[g] =
          kinds_[g].lag_tokens != 0 && reserved == begin
              ? std::min<std::uint32_t>(
                    begin, static_cast<std::uint32_t>(s.lease.table(g).size()) * cache_->block_tokens(g))
              : begin;
    // All of the prompt at once, so that nobody stops in the middle of one; but a window would hold more than it needs.
    const auto take_slots = [&] {
      const std::uint32_t until = has_windows_ ? w.end : std::max(w.end, std::min(known, last));
      s.wanted = until - std::min(until, reserved);
      // Who is younger takes nothing that those who lack slots could have.
      if (stalled_ && s.lease.quote(s.wanted).slots > 0) return false;
      return (s.wanted == 0 && !has_states_) || s.lease.reserve(s.wanted).ok();
    };
    bool slots = take_slots();
    if (!slots && w.drafts > 0) {  // they are worth nobody's slots
      w.end -= std::exchange(w.drafts, 0);
      slots = take_slots();
    }
    while (!slots && has_windows_ &&
           w.end - begin > 1) {  // what a window leaves behind makes room for the rest
      w.end = begin + (w.end - begin) / 2;
      w.samples = false;
      slots = take_slots();
    }
    if (!slots) return Outcome::kNoSlots;
    s.launched = w.end;
    s.prompt_launched = s.prompt_launched || w.end >= s.prompt;
    s.unverified = w.ahead ? 1 : w.drafts;
    s.drafts_launched = w.drafts;
    s.last_step = step.done;
    s.due += w.samples;
    [[maybe_unused]] const Status committed = commit(s, step.done);
    assert(committed.ok());
    w.first_token = static_cast<std::uint32_t>(step.tokens.size());
    for (std::uint32_t p = begin; p < w.end; ++p)
      step.tokens.push_back(p < known ? s.tokens[p] : (w.ahead ? PagedStep::kNoToken : s.drafts[p - known]));
    s.verifying.assign(s.drafts.begin(), s.drafts.begin() + w.drafts);
    s.drafts.clear();
    for (GroupId g = 0; g < groups(); ++g) step.groups[g].begin.push_back(computed_[g]);
    step.work.push_back(w);
    left_ -= w.end - begin;
    stats_.computed_tokens += w.end - begin;
    stats_.drafts += w.drafts;
    return Outcome::kPlanned;
  }

  /// In the order of their arrival, and nobody passes one that does not fit.
  void admit(PagedStep& step) {
    while (!waiting_.empty() && left_ > 0) {
      Sequence& s = sequences_[waiting_.front()];
      if (s.due > s.dropped) return;  // preempted while its result is on the way
      // A match costs its tokens, and a policy counts each; so who did not fit is tried again when there is reason to.
      if (id(s) == tried_ && settling_ == 0 && !running_.empty() && groups() == 1 && !has_windows_ &&
          !has_states_ && cache_->pool().free_slots() <= tried_free_)
        return;
      auto lease = cache_->acquire(
          {.scope = s.scope, .tokens = s.tokens, .extras = s.extras, .changes = s.changes}, s.how);
      if (!lease.ok()) {
        if (lease.status().code() == StatusCode::kExhausted) return;
        refuse(s, lease.status(), step);
        continue;
      }
      s.lease = std::move(*lease);
      s.follows = true;  // until `plan` has looked
      s.launched = s.matched = s.lease.matched_tokens();
      s.unverified = s.drafts_launched = 0;
      if (const Outcome outcome = plan(s, step); outcome == Outcome::kNoSlots) {
        const bool never = s.lease.quote(s.wanted).verdict == ReserveQuote::Verdict::kNever;
        (void)s.lease.abort();
        s.launched = 0;
        tried_ = id(s);
        tried_free_ = cache_->pool().free_slots();
        if (!never) return;
        refuse(s, {StatusCode::kOutOfRange, "it needs more slots than a group has"}, step);
        continue;
      }
      waiting_.erase(waiting_.begin());
      start(s);
    }
  }
  void refuse(Sequence& s, Status status, PagedStep& step) {
    step.failed.push_back({id(s), status});
    waiting_.erase(waiting_.begin());
    let_go(s);
  }

  /// One that cannot go on although nobody else holds anything, and nothing is on its way back, never will.
  void give_up_on_the_last(PagedStep& step) {
    const bool alone = running_.size() == (stalled_ ? 1 : 0) && (stalled_ || !waiting_.empty());
    const bool idle = step.work.empty() && !ended_ && finished_ >= std::max(room_at_, worked_at_);
    hopeless_ = alone && idle ? hopeless_ + 1 : 0;
    if (hopeless_ <= kPatience) return;
    Sequence& s = sequences_[stalled_ ? running_[0] : waiting_.front()];
    step.failed.push_back(
        {id(s), {StatusCode::kOutOfRange, "it needs more slots than there are in a group"}});
    std::erase(s.running ? running_ : waiting_, s.index);
    let_go(s);
    hopeless_ = 0;
  }
  /// The youngest go, until the slots that only they hold are enough for the i-th that runs; if it is the youngest, it goes
  /// itself. The slots come back when the steps that they are used in are over.
  void make_room(std::size_t i) {
    Sequence& s = sequences_[running_[i]];
    const std::uint32_t slots = std::max(s.lease.quote(s.wanted).slots, 1u);
    if (i > 0 && i + 1 == running_.size()) preempt(s);
    for (std::uint32_t freed = 0; freed < slots && i + 1 < running_.size();) {
      Sequence& last = sequences_[running_.back()];
      freed += last.lease.exclusive_slots();
      preempt(last);
    }
  }
  /// Back into the line. What it committed stays in the cache until somebody needs the slots.
  void preempt(Sequence& s) {
    room_at_ = std::max(room_at_, s.last_step.value);
    settling_ = kSettling;
    const bool began = s.lease.reserved_tokens() > s.matched;
    (void)(began ? s.lease.release() : s.lease.abort());
    s.lease = {};
    s.running = s.follows = false;
    s.launched = s.unverified = 0;
    s.drafts.clear();
    std::erase(running_, s.index);
    insert(waiting_, s);
    ++stats_.preempted;
  }

  void fill_tables(PagedStep& step) {
    for (GroupId g = 0; g < groups(); ++g) {
      PagedTables& t = step.groups[g];
      const bool states = kinds_[g].kind == GroupKind::kStateCheckpoint;
      for (const PagedWork& w : step.work)
        t.width = std::max(t.width, static_cast<std::uint32_t>(lease_of(w).table(g).size()));
      t.block_tables.assign(step.work.size() * t.width, cache_->options().null_slot ? 0 : -1);
      for (std::size_t i = 0; i < step.work.size(); ++i) {
        const PagedWork& w = step.work[i];
        const auto row = lease_of(w).table(g);
        std::copy(row.begin(), row.end(), t.block_tables.begin() + static_cast<std::ptrdiff_t>(i * t.width));
        if (states) continue;
        const std::size_t at = t.slot_mapping.size();
        t.slot_mapping.resize(at + (w.end - t.begin[i]));
        [[maybe_unused]] const Status mapped =
            lease_of(w).slot_mapping(g, t.begin[i], w.end, std::span(t.slot_mapping).subspan(at));
        assert(mapped.ok());
      }
    }
  }
  [[nodiscard]] BasicLease<Policy>& lease_of(const PagedWork& w) noexcept {
    return sequences_[w.sequence.index].lease;
  }

  void take_copies(PagedStep& step) {
    StepEntry entries[32];
    for (;;) {
      const auto taken = cache_->take_step(entries);
      if (taken.empty()) break;
      for (const StepEntry& e : taken) {
        step.copies.push_back(e);
        PagedSequence owner{};
        for (const std::uint32_t i : running_)
          if (sequences_[i].lease.index() == e.lease) owner = id(sequences_[i]);
        moving_.push_back({step.done.value, e, owner});
        ++stats_.copies;
      }
    }
  }

  template <class Fn>
  Status stop(PagedSequence sequence, Fn&& fn) {
    Sequence* const s = find(sequence);
    if (s == nullptr) return stale();
    if (s->running) (void)fn(s->lease);
    ended_ = true;
    room_at_ = std::max(room_at_, s->last_step.value);
    std::erase(s->running ? running_ : waiting_, s->index);
    let_go(*s);
    return {};
  }

  PagedHostOptions options_;
  std::unique_ptr<Cache> cache_;
  std::vector<Sequence> sequences_;
  std::vector<std::uint32_t> running_, waiting_;  // indices, by arrival
  std::vector<KvGroup> kinds_;
  std::vector<std::uint32_t> computed_;  // of the work that is planned, by group
  std::vector<Moving> moving_;           // copies under way
  bool has_states_ = false, has_windows_ = false;
  // Of the step that is planned: tokens that it still takes; whether somebody lacks slots.
  std::uint32_t left_ = 0;
  bool stalled_ = false;
  // Slots that were let go of come back with the next step, and when the steps that use them are over. Before, nobody is
  // preempted for want of them.
  bool ended_ = false;
  Point scheduled_{};
  std::uint64_t finished_ = 0, room_at_ = 0, worked_at_ = 0;
  // What was let go of comes back within so many steps after that.
  static constexpr std::uint32_t kSettling = 3;
  std::uint32_t settling_ = 0;
  PagedSequence tried_{};         // the first in line, who did not fit
  std::uint32_t tried_free_ = 0;  // slots then
  static constexpr std::uint32_t kPatience =
      3;  // what a window leaves behind takes a step or two to come back
  std::uint32_t hopeless_ = 0;
  std::uint64_t arrivals_ = 0;
  PagedHostStats stats_;
};

using PagedHost = BasicPagedHost<Lru>;

}  // namespace kvstem::inline v0
