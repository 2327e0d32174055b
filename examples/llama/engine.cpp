// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "engine.hpp"

#include <llama.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace kvstem_llama {

struct Engine::Slot {
  enum class State : std::uint8_t { kFree, kPrefill, kDecode };
  State state = State::kFree;
  SequenceId sequence = kvstem::kNoSequence;
  RequestNumber number = 0;
  std::uint32_t sample = 0;
  std::vector<std::uint32_t> rest;  // samples that fork from this one once it is prefilled
  kvstem::OpaqueRequestId cached;   // the request's name in the cache, if there is one
  bool reported = false;            // the cache knows all that was computed
  std::shared_ptr<const Request> request;
  std::uint32_t length = 0;  // tokens whose state is in the sequence
  TokenId next = -1;         // chosen, not computed yet
  Report report;
  std::uint64_t started = 0;    // step
  std::uint32_t overtaken = 0;  // of the request, in all
  /// What is taken of the engine's cells, given back with the last copy: samples share their prompt.
  std::shared_ptr<void> prompt_cells, own_cells;
  std::unique_ptr<llama_sampler, FreeSampler> sampler;
  std::vector<llama_token_data> candidates;
};

namespace {

/// Below it the likeliest token is taken: logits divided by less may overflow.
constexpr float kLeastTemperature = 1e-6f;

std::uint64_t cells_of(const Request& request) noexcept {
  return std::uint64_t{request.tokens.size()} + request.max_new_tokens;
}

}  // namespace

void Engine::FreeSampler::operator()(llama_sampler* sampler) const noexcept { llama_sampler_free(sampler); }

Engine::Engine(LlamaEngine& llama, std::uint32_t slots, Cache* cache)
    : llama_(llama), cache_(cache), slots_(std::clamp(slots, 1u, llama.capacity().sequences)) {
  for (std::size_t i = 0; i < slots_.size(); ++i) slots_[i].sequence = static_cast<SequenceId>(i);
}

Engine::~Engine() {
  for (Slot& slot : slots_)
    if (slot.state != Slot::State::kFree) finish(slot, Finish::kCancelled);
  for (auto& entry : line_) withdraw(entry.job);
}

std::shared_ptr<void> Engine::take_cells(std::uint64_t cells) {
  cells_taken_ += cells;
  return {nullptr, [this, cells](void*) { cells_taken_ -= cells; }};
}

kvstem::OpaqueRequest Engine::to_cache(const Request& request) const noexcept {
  return {.prompt = {.scope = request.scope, .tokens = request.tokens},
          .session = request.session,
          .grid_tokens = request.exact ? kGrid : 0,
          .reuse = request.reuse,
          .publish = request.reuse};
}

Status Engine::check(const Request& request) const {
  if (request.tokens.empty()) return {StatusCode::kInvalidArgument, "the prompt is empty"};
  const auto known = [&](TokenId t) { return t >= 0 && static_cast<std::uint32_t>(t) < llama_.vocab_size(); };
  if (!std::all_of(request.tokens.begin(), request.tokens.end(), known) ||
      !std::all_of(request.forced.begin(), request.forced.end(), known))
    return {StatusCode::kOutOfRange, "a token lies outside the model's vocabulary"};
  if (cells_of(request) > llama_.capacity().sequence_tokens)
    return {StatusCode::kOutOfRange,
            "prompt and new tokens are more than a sequence of this engine can hold"};
  if (request.samples == 0) return {StatusCode::kInvalidArgument, "a request has at least one sample"};
  if (request.in_place != kvstem::kNoSequence &&
      (cache_ != nullptr || request.in_place < static_cast<SequenceId>(slots_.size()) ||
       request.in_place_tokens >= request.tokens.size() || request.samples != 1))
    return {
        StatusCode::kInvalidArgument,
        "in_place needs an engine without a cache, a sequence above its slots, one sample, and a token to "
        "compute"};
  const Sampling& s = request.sampling;
  if (!std::isfinite(s.temperature) || s.temperature < 0 || !(s.top_p > 0 && s.top_p <= 1))
    return {StatusCode::kInvalidArgument, "temperature must be 0 or more, top_p above 0 and at most 1"};
  return {};
}

Result<RequestNumber> Engine::submit(Request request) {
  if (const Status status = check(request); !status.ok()) return status;
  Waiting waiting{.request = std::make_shared<Request>(std::move(request)), .samples = {}, .since = step_};
  for (std::uint32_t i = 0; i < waiting.request->samples; ++i) waiting.samples.push_back(i);
  (void)look(waiting);  // what is there for it must not go while it waits
  line_.add(++last_number_, std::move(waiting));
  stuck_ = false;
  return last_number_;
}

/// Tells that a sample that did not start will not.
void Engine::give_up(RequestNumber number, Line<Waiting>::Entry& entry, std::uint32_t sample) {
  Report report;
  report.prompt_tokens = static_cast<std::uint32_t>(entry.job.request->tokens.size());
  report.overtaken = entry.overtaken - std::exchange(entry.job.told, entry.overtaken);
  report.waited_steps = step_ - entry.job.since;
  events_.push_back({.request = number,
                     .sample = sample,
                     .kind = Event::Kind::kFinished,
                     .finish = Finish::kCancelled,
                     .report = report});
}

Status Engine::cancel(RequestNumber number) {
  bool found = false;
  for (auto it = line_.begin(); it != line_.end();) {
    if (it->number != number) {
      ++it;
      continue;
    }
    for (const std::uint32_t sample : it->job.samples) give_up(number, *it, sample);
    withdraw(it->job);
    const auto next = it - line_.begin();
    line_.remove(it);
    it = line_.begin() + next;
    found = true;
  }
  for (Slot& slot : slots_) {
    if (slot.state == Slot::State::kFree || slot.number != number) continue;
    finish(slot, Finish::kCancelled);
    found = true;
  }
  stuck_ = false;
  return found ? Status{} : Status{StatusCode::kStale, "no such request waits or runs"};
}

Status Engine::cancel(RequestNumber number, std::uint32_t sample) {
  for (auto it = line_.begin(); it != line_.end(); ++it) {
    if (it->number != number || std::erase(it->job.samples, sample) == 0) continue;
    give_up(number, *it, sample);
    if (it->job.samples.empty()) {
      withdraw(it->job);
      line_.remove(it);
    }
    stuck_ = false;
    return {};
  }
  for (Slot& slot : slots_) {
    if (slot.state == Slot::State::kFree || slot.number != number) continue;
    if (slot.sample == sample && slot.rest.empty()) {
      finish(slot, Finish::kCancelled);
      return {};
    }
    if (slot.sample == sample) {  // the prompt is still wanted
      std::swap(slot.sample, slot.rest.front());
      set_sampler(slot);
    }
    if (std::erase(slot.rest, sample) == 0) continue;
    finish_unforked(slot, sample, Finish::kCancelled);
    return {};
  }
  return {StatusCode::kStale, "no such sample waits or runs"};
}

/// Ends a sample that would have forked from this slot.
void Engine::finish_unforked(const Slot& slot, std::uint32_t sample, Finish how, Status status) {
  Report report = slot.report;
  report.forked = true;
  report.ran_steps = step_ - slot.started + 1;
  events_.push_back({.request = slot.number,
                     .sample = sample,
                     .kind = Event::Kind::kFinished,
                     .finish = how,
                     .status = status,
                     .report = report});
}

std::vector<Standing> Engine::standings() const {
  std::vector<Standing> all;
  for (const Slot& slot : slots_) {
    if (slot.state == Slot::State::kFree) continue;
    Standing s{
        .request = slot.number,
        .sample = slot.sample,
        .state = slot.state == Slot::State::kPrefill ? Standing::State::kPrefill : Standing::State::kDecode,
        .most_new_tokens = slot.request->max_new_tokens,
        .report = slot.report};
    s.report.ran_steps = step_ - slot.started + 1;
    all.push_back(std::move(s));
  }
  for (const auto& entry : line_)
    for (const std::uint32_t sample : entry.job.samples) {
      Standing s{.request = entry.number,
                 .sample = sample,
                 .most_new_tokens = entry.job.request->max_new_tokens,
                 .there = entry.job.there};
      s.report.prompt_tokens = static_cast<std::uint32_t>(entry.job.request->tokens.size());
      s.report.overtaken = entry.overtaken;
      s.report.waited_steps = step_ - entry.job.since;
      all.push_back(std::move(s));
    }
  return all;
}

std::uint32_t Engine::slots() const noexcept { return static_cast<std::uint32_t>(slots_.size()); }

std::size_t Engine::running() const noexcept {
  return static_cast<std::size_t>(std::count_if(slots_.begin(), slots_.end(),
                                                [](const Slot& s) { return s.state != Slot::State::kFree; }));
}

bool Engine::busy() const noexcept {
  return !line_.empty() || !events_.empty() || (cache_ != nullptr && cache_->unstored_blocks() > 0) ||
         running() > 0;
}

std::span<const Event> Engine::step() {
  step_ += busy();
  if (running() == 0) stuck_ = false;
  admit();
  decode();
  prefill();
  if (cache_ != nullptr && cache_->work() > 0) stuck_ = false;
  told_.clear();
  std::swap(events_, told_);
  return told_;
}

/// How much of a waiting prompt is there. What is there is protected.
std::uint32_t Engine::look(Waiting& waiting) {
  if (cache_ == nullptr || !waiting.request->reuse) return 0;
  const kvstem::OpaqueRequest request = to_cache(*waiting.request);
  const std::uint32_t there = waiting.there = cache_->probe(request);
  if (there > waiting.announced_tokens) {
    withdraw(waiting);
    if (const auto id = cache_->announce(request); id.ok()) {
      waiting.announcement = *id;
      waiting.announced_tokens = there;
    }
  }
  return there;
}

void Engine::withdraw(Waiting& waiting) {
  if (waiting.announced_tokens > 0) (void)cache_->withdraw(waiting.announcement);
  waiting.announced_tokens = 0;
}

/// Takes in whoever is next, if nobody is being prefilled. A request takes all the cells that it can ever need, so that
/// none runs dry half way.
void Engine::admit() {
  if (line_.empty() || stuck_) return;
  Slot* free = nullptr;
  for (Slot& slot : slots_) {
    if (slot.state == Slot::State::kPrefill) return;
    if (slot.state == Slot::State::kFree && free == nullptr) free = &slot;
  }
  if (free == nullptr) return;
  const auto next = line_.choose([this](Waiting& waiting) { return look(waiting); });
  const Request& request = *next->job.request;
  const std::uint64_t taken = cells_taken_ + cells_of(request), cells = llama_.capacity().cells;
  if (taken > cells) {
    stuck_ = true;
    return;
  }
  if (cache_ != nullptr)
    while (taken + cache_->resident_tokens() > cells && cache_->drop_resident()) {
    }
  Slot& slot = *free;
  slot.number = next->number;
  slot.request = next->job.request;
  slot.sample = next->job.samples.front();
  slot.length = 0;
  slot.next = -1;
  slot.started = step_;
  slot.report = {};
  slot.report.prompt_tokens = static_cast<std::uint32_t>(request.tokens.size());
  const Status status = start(slot);
  if (status.code() == StatusCode::kExhausted && cache_ != nullptr &&
      (cells_taken_ > 0 || cache_->unstored_blocks() > 0)) {
    stuck_ = true;  // what runs, or waits for its export, will make room
    slot.request.reset();
    return;
  }
  auto entry = line_.take(next, !next->job.further);
  withdraw(entry.job);
  slot.rest.assign(entry.job.samples.begin() + 1, entry.job.samples.end());
  slot.overtaken = entry.overtaken;
  slot.report.overtaken = entry.overtaken - entry.job.told;
  slot.report.waited_steps = step_ - entry.job.since;
  slot.prompt_cells = take_cells(request.tokens.size());
  slot.own_cells = take_cells(request.max_new_tokens);
  slot.state = Slot::State::kPrefill;
  if (!status.ok()) {
    finish(slot, Finish::kFailed, status);
  }
}

void Engine::set_sampler(Slot& slot) {
  const Sampling& s = slot.request->sampling;
  slot.sampler.reset();
  if (s.temperature < kLeastTemperature) return;
  slot.sampler.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
  llama_sampler_chain_add(slot.sampler.get(), llama_sampler_init_top_p(s.top_p, 1));
  llama_sampler_chain_add(slot.sampler.get(), llama_sampler_init_temp(s.temperature));
  // llama.cpp takes one seed for "a random one".
  const std::uint32_t seed = s.seed + slot.sample;
  llama_sampler_chain_add(slot.sampler.get(),
                          llama_sampler_init_dist(seed == LLAMA_DEFAULT_SEED ? 0x9e3779b9u : seed));
}

/// Brings what is already there of the prompt into the slot's sequence.
Status Engine::start(Slot& slot) {
  const Request& request = *slot.request;
  slot.reported = false;
  set_sampler(slot);
  if (cache_ != nullptr) {
    const auto admission = cache_->begin(to_cache(request));
    if (!admission.ok()) return admission.status();
    slot.cached = admission->request;
    slot.reported = true;
    slot.sequence = admission->sequence;
    slot.length = admission->reused_tokens;
    slot.report.from_resident = admission->from_resident;
    slot.report.from_host = admission->from_host;
    slot.report.from_frontier = admission->from_frontier;
  } else if (request.in_place != kvstem::kNoSequence && request.in_place_tokens > 0) {
    if (Status s = llama_.share_range(request.in_place, slot.sequence, {0, request.in_place_tokens}); !s.ok())
      return s;
    slot.length = request.in_place_tokens;
  }
  slot.report.reused_tokens = slot.length;
  return {};
}

/// Decodes what is in feeds_. Residents are worth less than running requests: they go if cells run out.
Status Engine::compute() {
  Status status = llama_.decode(feeds_);
  while (status.code() == StatusCode::kExhausted && cache_ != nullptr &&
         (cache_->drop_resident() || cache_->work() > 0))
    status = llama_.decode(feeds_);
  return status;
}

/// One token for every slot that decodes, all in one call.
void Engine::decode() {
  feeds_.clear();
  fed_.clear();
  for (Slot& slot : slots_) {
    if (slot.state != Slot::State::kDecode) continue;
    feeds_.push_back(
        {.sequence = slot.sequence, .position = slot.length, .token = slot.next, .logits = true});
    fed_.push_back(&slot);
  }
  if (feeds_.empty()) return;
  const Status status = compute();
  for (std::size_t i = 0; i < fed_.size(); ++i) {
    Slot& slot = *fed_[i];
    if (!status.ok()) {
      finish(slot, Finish::kFailed, status);
      continue;
    }
    ++slot.length;
    if (slot.reported) slot.reported = cache_->append(slot.cached, {&slot.next, 1}).ok();
    take_logits(slot, llama_.logits(i));
  }
}

/// One chunk of the request that is being prefilled, in a call of its own (see the top of engine.hpp).
void Engine::prefill() {
  const auto found = std::find_if(slots_.begin(), slots_.end(),
                                  [](const Slot& s) { return s.state == Slot::State::kPrefill; });
  if (found == slots_.end()) return;
  Slot& slot = *found;
  const Request& request = *slot.request;
  const auto prompt = static_cast<std::uint32_t>(request.tokens.size());
  const std::uint32_t end = std::min(prompt, slot.length + (request.exact ? kGrid : llama_.batch()));
  const std::uint32_t n = end - slot.length;
  const bool on_grid = slot.length % kGrid == 0 && n == kGrid;
  feeds_.clear();
  for (std::uint32_t at = slot.length; at < end; ++at)
    feeds_.push_back({.sequence = slot.sequence,
                      .position = at,
                      .token = request.tokens[at],
                      .logits = at + 1 == prompt && request.max_new_tokens > 0});
  if (const Status status = compute(); !status.ok()) return finish(slot, Finish::kFailed, status);
  if (slot.reported) slot.reported = cache_->computed(slot.cached, n, on_grid).ok();
  slot.report.computed_tokens += n;
  ++slot.report.chunks;
  slot.length = end;
  if (end < prompt) return;
  if (request.max_new_tokens == 0) return finish(slot, Finish::kLength);
  slot.state = Slot::State::kDecode;
  const std::span<const float> logits = llama_.logits(feeds_.size() - 1);
  fork_samples(slot, logits);
  take_logits(slot, logits);
}

/// The other samples go on from the same state and logits, as far as there are slots; the rest goes back to the line.
void Engine::fork_samples(Slot& slot, std::span<const float> logits) {
  while (!slot.rest.empty()) {
    const auto to = std::find_if(slots_.begin(), slots_.end(),
                                 [](const Slot& s) { return s.state == Slot::State::kFree; });
    if (to == slots_.end() || cells_taken_ + slot.request->max_new_tokens > llama_.capacity().cells ||
        !fork(slot, *to))
      break;
    slot.rest.erase(slot.rest.begin());
    take_logits(*to, logits);
  }
  if (slot.rest.empty()) return;
  Waiting waiting{.request = slot.request,
                  .samples = std::exchange(slot.rest, {}),
                  .further = true,
                  .told = slot.overtaken,
                  .since = step_};
  line_.add(slot.number, std::move(waiting), slot.overtaken);
  stuck_ = false;
}

/// The first of `from.rest` starts in `to`.
bool Engine::fork(Slot& from, Slot& to) {
  if (cache_ != nullptr) {
    if (!from.reported) return false;
    const auto admission = cache_->fork(from.cached);
    if (!admission.ok()) return false;
    to.cached = admission->request;
    to.sequence = admission->sequence;
  } else if (!llama_.share_range(from.sequence, to.sequence, {0, from.length}).ok()) {
    return false;
  }
  ++forks_;
  to.state = Slot::State::kDecode;
  to.number = from.number;
  to.sample = from.rest.front();
  to.reported = from.reported;
  to.request = from.request;
  to.length = from.length;
  to.next = -1;
  to.started = step_;
  to.report = {.prompt_tokens = from.report.prompt_tokens,
               .reused_tokens = from.report.prompt_tokens,
               .from_resident = from.report.prompt_tokens,
               .forked = true,
               .overtaken = from.report.overtaken,
               .waited_steps = from.report.waited_steps};
  to.prompt_cells = from.prompt_cells;
  to.own_cells = take_cells(from.request->max_new_tokens);
  set_sampler(to);
  return true;
}

/// Chooses the next token and tells it; ends the request where it must end.
void Engine::take_logits(Slot& slot, std::span<const float> logits) {
  if (logits.empty())
    return finish(slot, Finish::kFailed, {StatusCode::kUnavailable, "llama.cpp gave no logits"});
  const std::uint32_t i = slot.report.new_tokens;
  if (slot.sample == 0 && slot.request->on_logits) slot.request->on_logits(i, logits);
  slot.next =
      slot.sample == 0 && i < slot.request->forced.size() ? slot.request->forced[i] : choose(slot, logits);
  if (slot.request->stop_at_end && llama_.is_end(slot.next)) return finish(slot, Finish::kEnd);
  ++slot.report.new_tokens;
  events_.push_back({.request = slot.number,
                     .sample = slot.sample,
                     .kind = i == 0 ? Event::Kind::kFirstToken : Event::Kind::kToken,
                     .token = slot.next});
  if (slot.report.new_tokens == slot.request->max_new_tokens) finish(slot, Finish::kLength);
}

TokenId Engine::choose(Slot& slot, std::span<const float> logits) {
  if (slot.sampler == nullptr)
    return static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  slot.candidates.resize(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i)
    slot.candidates[i] = {.id = static_cast<llama_token>(i), .logit = logits[i], .p = 0};
  llama_token_data_array all{slot.candidates.data(), slot.candidates.size(), -1, false};
  llama_sampler_apply(slot.sampler.get(), &all);
  const TokenId token = all.data[all.selected < 0 ? 0 : all.selected].id;
  llama_sampler_accept(slot.sampler.get(), token);
  return token;
}

/// Hands the sequence back. What was computed stays true, so a cancelled request leaves it to the cache as well.
void Engine::leave(Slot& slot, bool good) {
  const Request& request = *slot.request;
  if (cache_ != nullptr) {
    (void)(good && slot.reported ? cache_->end(slot.cached) : cache_->abort(slot.cached));
    return;
  }
  if (good && request.in_place != kvstem::kNoSequence) {
    (void)llama_.drop_range(request.in_place, {request.in_place_tokens, kvstem::kToEnd});
    (void)llama_.share_range(slot.sequence, request.in_place, {request.in_place_tokens, slot.length});
  }
  (void)llama_.drop_range(slot.sequence, {0, kvstem::kToEnd});
}

/// The sample in the slot ends, and those that would have forked from it.
void Engine::finish(Slot& slot, Finish how, Status status) {
  for (const std::uint32_t sample : std::exchange(slot.rest, {})) finish_unforked(slot, sample, how, status);
  leave(slot, how != Finish::kFailed);
  slot.report.ran_steps = step_ - slot.started + 1;
  events_.push_back({.request = slot.number,
                     .sample = slot.sample,
                     .kind = Event::Kind::kFinished,
                     .finish = how,
                     .status = status,
                     .report = slot.report});
  slot.state = Slot::State::kFree;
  slot.request.reset();
  slot.prompt_cells.reset();
  slot.own_cells.reset();
  stuck_ = false;
}

}  // namespace kvstem_llama
