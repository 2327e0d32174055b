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
  kvstem::OpaqueRequestId cached;  // the request's name in the cache, if there is one
  bool reported = false;           // the cache knows all that was computed
  Request request;
  std::uint32_t length = 0;  // tokens whose state is in the sequence
  TokenId next = -1;         // chosen, not computed yet
  Report report;
  std::unique_ptr<llama_sampler, FreeSampler> sampler;
  std::vector<llama_token_data> candidates;
};

void Engine::FreeSampler::operator()(llama_sampler* sampler) const noexcept { llama_sampler_free(sampler); }

Engine::Engine(LlamaEngine& llama, std::uint32_t slots, Cache* cache)
    : llama_(llama), cache_(cache), slots_(std::clamp(slots, 1u, llama.capacity().sequences)) {
  for (std::size_t i = 0; i < slots_.size(); ++i) slots_[i].sequence = static_cast<SequenceId>(i);
}

Engine::~Engine() {
  for (Slot& slot : slots_)
    if (slot.state != Slot::State::kFree) finish(slot, Finish::kCancelled);
}

std::uint64_t Engine::cells_of(const Request& request) const noexcept {
  return std::uint64_t{request.tokens.size()} + request.max_new_tokens;
}

Result<RequestNumber> Engine::submit(Request request) {
  if (request.tokens.empty()) return Status{StatusCode::kInvalidArgument, "the prompt is empty"};
  const auto known = [&](TokenId t) { return t >= 0 && static_cast<std::uint32_t>(t) < llama_.vocab_size(); };
  if (!std::all_of(request.tokens.begin(), request.tokens.end(), known) ||
      !std::all_of(request.forced.begin(), request.forced.end(), known))
    return Status{StatusCode::kOutOfRange, "a token lies outside the model's vocabulary"};
  if (cells_of(request) > llama_.capacity().sequence_tokens)
    return Status{StatusCode::kOutOfRange,
                  "prompt and new tokens are more than a sequence of this engine can hold"};
  if (request.in_place != kvstem::kNoSequence &&
      (cache_ != nullptr || request.in_place < static_cast<SequenceId>(slots_.size()) ||
       request.in_place_tokens >= request.tokens.size()))
    return Status{
        StatusCode::kInvalidArgument,
        "in_place needs an engine without a cache, a sequence above its slots, and a token to compute"};
  const Sampling& s = request.sampling;
  if (!std::isfinite(s.temperature) || s.temperature < 0 || !(s.top_p > 0 && s.top_p <= 1))
    return Status{StatusCode::kInvalidArgument, "temperature must be 0 or more, top_p above 0 and at most 1"};
  waiting_.push_back({++last_number_, std::move(request)});
  return last_number_;
}

Status Engine::cancel(RequestNumber number) {
  const auto line =
      std::find_if(waiting_.begin(), waiting_.end(), [&](const Waiting& w) { return w.number == number; });
  if (line != waiting_.end()) {
    Report report;
    report.prompt_tokens = static_cast<std::uint32_t>(line->request.tokens.size());
    events_.push_back(
        {.request = number, .kind = Event::Kind::kFinished, .finish = Finish::kCancelled, .report = report});
    waiting_.erase(line);
    return {};
  }
  for (Slot& slot : slots_) {
    if (slot.state == Slot::State::kFree || slot.number != number) continue;
    finish(slot, Finish::kCancelled);
    return {};
  }
  return {StatusCode::kStale, "no such request waits or runs"};
}

bool Engine::busy() const noexcept {
  return !waiting_.empty() || !events_.empty() || (cache_ != nullptr && cache_->unstored_blocks() > 0) ||
         std::any_of(slots_.begin(), slots_.end(),
                     [](const Slot& s) { return s.state != Slot::State::kFree; });
}

std::span<const Event> Engine::step() {
  admit();
  decode();
  prefill();
  if (cache_ != nullptr) cache_->work();
  told_.clear();
  std::swap(events_, told_);
  return told_;
}

/// First come, first served; a request takes all the cells that it can ever need, so that none runs dry half way.
void Engine::admit() {
  for (Slot& slot : slots_) {
    if (slot.state != Slot::State::kFree) continue;
    if (waiting_.empty()) return;
    const std::uint64_t taken = cells_taken_ + cells_of(waiting_.front().request),
                        cells = llama_.capacity().cells;
    if (taken > cells) return;
    if (cache_ != nullptr)
      while (taken + cache_->resident_tokens() > cells && cache_->drop_resident()) {
      }
    slot.number = waiting_.front().number;
    slot.request = std::move(waiting_.front().request);
    slot.length = 0;
    slot.next = -1;
    slot.report = {};
    slot.report.prompt_tokens = static_cast<std::uint32_t>(slot.request.tokens.size());
    const Status status = start(slot);
    if (status.code() == StatusCode::kExhausted && cache_ != nullptr &&
        (cells_taken_ > 0 || cache_->unstored_blocks() > 0)) {
      waiting_.front().request =
          std::move(slot.request);  // what runs, or waits for its export, will make room
      return;
    }
    waiting_.pop_front();
    cells_taken_ += cells_of(slot.request);
    slot.state = Slot::State::kPrefill;
    if (!status.ok()) finish(slot, Finish::kFailed, status);
  }
}

/// Brings what is already there of the prompt into the slot's sequence.
Status Engine::start(Slot& slot) {
  const Request& request = slot.request;
  slot.reported = false;
  slot.sampler.reset();
  if (request.sampling.temperature > 0) {
    slot.sampler.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    llama_sampler_chain_add(slot.sampler.get(), llama_sampler_init_top_p(request.sampling.top_p, 1));
    llama_sampler_chain_add(slot.sampler.get(), llama_sampler_init_temp(request.sampling.temperature));
    llama_sampler_chain_add(slot.sampler.get(), llama_sampler_init_dist(request.sampling.seed));
  }
  if (cache_ != nullptr) {
    const auto admission = cache_->begin({.prompt = {.scope = request.scope, .tokens = request.tokens},
                                          .session = request.session,
                                          .grid_tokens = request.exact ? kGrid : 0,
                                          .reuse = request.reuse,
                                          .publish = request.reuse});
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

/// One chunk of the request that waits longest, in a call of its own (see the top of engine.hpp).
void Engine::prefill() {
  Slot* oldest = nullptr;
  for (Slot& slot : slots_)
    if (slot.state == Slot::State::kPrefill && (oldest == nullptr || slot.number < oldest->number))
      oldest = &slot;
  if (oldest == nullptr) return;
  Slot& slot = *oldest;
  const auto prompt = static_cast<std::uint32_t>(slot.request.tokens.size());
  const std::uint32_t end = std::min(prompt, slot.length + kGrid);
  const bool on_grid = slot.length % kGrid == 0 && end - slot.length == kGrid;
  feeds_.clear();
  for (std::uint32_t at = slot.length; at < end; ++at)
    feeds_.push_back({.sequence = slot.sequence,
                      .position = at,
                      .token = slot.request.tokens[at],
                      .logits = at + 1 == prompt && slot.request.max_new_tokens > 0});
  if (const Status status = compute(); !status.ok()) return finish(slot, Finish::kFailed, status);
  if (slot.reported) slot.reported = cache_->computed(slot.cached, end - slot.length, on_grid).ok();
  slot.report.computed_tokens += end - slot.length;
  slot.length = end;
  if (end < prompt) return;
  if (slot.request.max_new_tokens == 0) return finish(slot, Finish::kLength);
  slot.state = Slot::State::kDecode;
  take_logits(slot, llama_.logits(feeds_.size() - 1));
}

/// Chooses the next token and tells it; ends the request where it must end.
void Engine::take_logits(Slot& slot, std::span<const float> logits) {
  if (logits.empty())
    return finish(slot, Finish::kFailed, {StatusCode::kUnavailable, "llama.cpp gave no logits"});
  const std::uint32_t i = slot.report.new_tokens;
  if (slot.request.on_logits) slot.request.on_logits(i, logits);
  slot.next = i < slot.request.forced.size() ? slot.request.forced[i] : choose(slot, logits);
  if (slot.request.stop_at_end && llama_.is_end(slot.next)) return finish(slot, Finish::kEnd);
  ++slot.report.new_tokens;
  events_.push_back({.request = slot.number,
                     .kind = i == 0 ? Event::Kind::kFirstToken : Event::Kind::kToken,
                     .token = slot.next});
  if (slot.report.new_tokens == slot.request.max_new_tokens) finish(slot, Finish::kLength);
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
  const Request& request = slot.request;
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

void Engine::finish(Slot& slot, Finish how, Status status) {
  leave(slot, how != Finish::kFailed);
  cells_taken_ -= cells_of(slot.request);
  events_.push_back({.request = slot.number,
                     .kind = Event::Kind::kFinished,
                     .finish = how,
                     .status = status,
                     .report = slot.report});
  slot.state = Slot::State::kFree;
  slot.request = {};
}

}  // namespace kvstem_llama
