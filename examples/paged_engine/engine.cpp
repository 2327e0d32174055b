// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "engine.hpp"

#include <algorithm>
#include <utility>

namespace paged {

using kvstem::PagedHost, kvstem::PagedSequence, kvstem::PagedStep, kvstem::PagedWork, kvstem::Status;

namespace {
constexpr std::uint32_t kQueue = 0;       // the timeline of the device's queue: step n is done at {kQueue, n}
constexpr std::uint32_t kWaiting = 1024;  // requests that may wait
constexpr std::uint32_t kMostSamples = 64;
}  // namespace

std::vector<TokenId> look_up(std::span<const TokenId> text, std::uint32_t n) {
  for (const std::size_t length : {3, 2}) {
    if (text.size() <= length) continue;
    const auto end = text.last(length);
    const auto before = text.first(text.size() - 1);
    const auto at = std::find_end(before.begin(), before.end(), end.begin(), end.end());
    if (at == before.end()) continue;
    const auto follows = text.subspan(static_cast<std::size_t>(at - before.begin()) + length);
    const auto drafts = follows.first(std::min<std::size_t>(n, follows.size()));
    return {drafts.begin(), drafts.end()};
  }
  return {};
}

std::unique_ptr<Engine> Engine::create(const EngineOptions& options, std::string& error) {
  if (options.link != nullptr && !options.link->usable())
    return error = "there are no sockets for two ranks", nullptr;
  auto model = Model::load(options.model, error);
  if (model == nullptr) return nullptr;
  const kvstem::PagedHostOptions sizes{
      .cache = {.block_tokens = options.model.block_tokens,
                .slots = options.model.slots,
                .max_leases = options.sequences,
                .max_lease_tokens = std::min(options.max_tokens, model->shape().context)},
      .step_tokens = options.step_tokens,
      .max_sequences = options.sequences + kWaiting};
  auto host = PagedHost::create(sizes);
  if (!host.ok()) return error = host.status().message(), nullptr;
  const auto scope = (*host)->open_scope({.model = options.model.file, .vocab_size = model->shape().vocab});
  if (!scope.ok()) return error = scope.status().message(), nullptr;
  if (options.recorder != nullptr) options.recorder->created(sizes);
  auto device = std::make_unique<Device>(std::move(model), options.sequences + kWaiting, options.watch);
  return std::unique_ptr<Engine>(new Engine(options, std::move(*host), std::move(device), *scope));
}

Engine::Engine(const EngineOptions& options, std::unique_ptr<PagedHost> host, std::unique_ptr<Device> device,
               kvstem::ScopeId scope)
    : options_(options),
      host_(std::move(host)),
      device_(std::move(device)),
      scope_(scope),
      live_(options.sequences + kWaiting) {}

Engine::~Engine() {
  // The device may wait for the other rank, which need not come.
  if (options_.link != nullptr && !flights_.empty()) options_.link->stop();
}

kvstem::Result<RequestNumber> Engine::submit(const Request& request) {
  if (failed_)
    return Status(kvstem::StatusCode::kUnavailable, "the engine has failed and serves no more: see error()");
  if (request.samples == 0 || request.samples > kMostSamples)
    return Status(kvstem::StatusCode::kInvalidArgument, "Request::samples must be 1 to 64");
  const kvstem::PagedRequest added{.prompt = {.scope = scope_, .tokens = request.tokens},
                                   .max_new_tokens = request.max_new_tokens,
                                   .how = {.reuse = request.reuse},
                                   .ahead = request.drafts == 0};
  const auto id = host_->add(added);
  if (!id.ok()) return id.status();
  record([&](Recorder& r) { r.added(*id, added); });
  const auto prompt = static_cast<std::uint32_t>(request.tokens.size());
  live_[id->index] = {.sequence = *id,
                      .request = ++requests_,
                      .sample = 0,
                      .to_fork = request.max_new_tokens == 0 ? 0 : request.samples - 1,
                      .prompt = prompt,
                      .limit = prompt + request.max_new_tokens,
                      .drafts = request.drafts,
                      .end_token = request.end_token,
                      .sampling = request.sampling};
  return requests_;
}

void Engine::cancel(RequestNumber request) {
  for (Live& live : live_)
    if (live.request == request && end_sequence(live.sequence)) live = {};
}

bool Engine::end_sequence(PagedSequence sequence) {
  if (!host_->end(sequence).ok()) return false;
  record([&](Recorder& r) { r.ended(sequence); });
  return true;
}

std::span<const Event> Engine::step() {
  events_.clear();
  if (!failed_ && host_->busy()) launch();
  while (!failed_ && flights_.size() > (host_->busy() && options_.ahead ? 1 : 0)) collect();
  return events_;
}

Engine::Live* Engine::find(PagedSequence sequence) {
  Live& live = live_[sequence.index];
  return live.sequence == sequence ? &live : nullptr;
}

void Engine::launch() {
  for (const Live& live : live_) {
    if (live.drafts == 0) continue;
    const kvstem::PagedProgress at = host_->progress(live.sequence);
    if (!at.running || at.launched_tokens < live.prompt || at.launched_tokens >= at.known_tokens) continue;
    const std::vector<TokenId> drafts = look_up(host_->tokens(live.sequence), live.drafts);
    if (host_->propose(live.sequence, drafts).ok())
      record([&](Recorder& r) { r.proposed(live.sequence, drafts); });
  }
  PagedStep step;
  if (!spare_.empty()) {
    step = std::move(spare_.back());
    spare_.pop_back();
  }
  if (const Status status = host_->schedule({kQueue, ++steps_}, step); !status.ok())
    return fail(status.message());
  record([&](Recorder& r) { r.scheduled(*host_, step); });
  for (const kvstem::PagedFailure& f : step.failed)
    if (Live* const live = find(f.sequence); live != nullptr) {
      events_.push_back(
          {.kind = Event::Kind::kFailed, .request = live->request, .sample = live->sample, .why = f.status});
      *live = {};
    }

  Job job{.done = step.done,
          .decisions = step.decisions,
          .copies = step.copies,
          .work = {},
          .tokens = step.tokens,
          .width = step.groups[0].width,
          .tables = step.groups[0].block_tables};
  for (const PagedWork& w : step.work) {
    Live& live = *find(w.sequence);
    if (!std::exchange(live.admitted, true)) live.reused = host_->progress(w.sequence).matched_tokens;
    JobWork work{.request = live.request,
                 .sample = live.sample,
                 .sequence = w.sequence.index,
                 .begin = w.begin,
                 .first = w.first_token,
                 .rows = w.end - w.begin,
                 .drafts = w.drafts,
                 .ahead = w.ahead ? 1u : 0u,
                 .choose = {}};
    const std::uint32_t samples = !w.samples ? 0 : (w.end == live.prompt ? 1 + live.to_fork : 1);
    for (std::uint32_t s = 0; s < samples; ++s)
      work.choose.push_back({live.sampling.temperature, live.sampling.seed + live.sample + s});
    job.work.push_back(std::move(work));
  }
  if (std::string why; options_.link != nullptr && !options_.link->agree(job, why)) return fail(why);
  device_->launch(std::move(job));
  flights_.push_back(std::move(step));
}

void Engine::collect() {
  PagedStep step = std::move(flights_.front());
  flights_.pop_front();
  const auto chosen = device_->wait();
  if (!chosen) return fail(device_->error());
  (void)host_->finished(step.done);
  record([&](Recorder& r) { r.finished(step.done); });
  for (std::size_t i = 0; i < step.work.size(); ++i) {
    const PagedWork& w = step.work[i];
    Live* const live = find(w.sequence);
    if (live == nullptr) continue;  // it has ended
    std::span<const TokenId> tokens = (*chosen)[i].tokens;
    if (live->to_fork > 0 && w.samples && w.end == live->prompt) {
      fork(*live, tokens.subspan(1));
      tokens = tokens.first(1);
      live->to_fork = 0;
    }
    if (w.samples || w.end == live->limit) take(*live, tokens);
  }
  spare_.push_back(std::move(step));
}

void Engine::fork(const Live& from, std::span<const TokenId> chosen) {
  for (std::uint32_t i = 0; i < chosen.size(); ++i) {
    const auto id = host_->fork(from.sequence, chosen.subspan(i, 1), from.limit - from.prompt);
    if (id.ok())
      record(
          [&](Recorder& r) { r.forked(from.sequence, *id, chosen.subspan(i, 1), from.limit - from.prompt); });
    Live sample = from;
    sample.sample = from.sample + 1 + i;
    sample.to_fork = 0;
    if (!id.ok()) {
      events_.push_back({.kind = Event::Kind::kFailed,
                         .request = from.request,
                         .sample = sample.sample,
                         .why = id.status()});
      continue;
    }
    sample.sequence = *id;
    live_[id->index] = sample;
    events_.push_back({.request = sample.request, .sample = sample.sample, .token = chosen[i]});
    if (sample.limit > sample.prompt + 1 && chosen[i] != sample.end_token) continue;
    end_sequence(*id);
    events_.push_back({.kind = Event::Kind::kFinished,
                       .request = sample.request,
                       .sample = sample.sample,
                       .reused_tokens = sample.reused});
    live_[id->index] = {};
  }
}

void Engine::take(Live& live, std::span<const TokenId> tokens) {
  auto known = static_cast<std::uint32_t>(host_->tokens(live.sequence).size());
  const auto end = std::find(tokens.begin(), tokens.end(), live.end_token);
  const bool stop = end != tokens.end();
  tokens = tokens.first(std::min<std::size_t>(static_cast<std::size_t>(end - tokens.begin()) + (stop ? 1 : 0),
                                              live.limit - known));
  if (!tokens.empty()) {
    const Status status = host_->accept(live.sequence, tokens);
    if (!status.ok()) return fail(status.message());
    record([&](Recorder& r) { r.accepted(live.sequence, tokens); });
  }
  for (const TokenId token : tokens)
    events_.push_back({.request = live.request, .sample = live.sample, .token = token});
  known += static_cast<std::uint32_t>(tokens.size());
  if (!stop && known < live.limit) return;
  end_sequence(live.sequence);
  events_.push_back({.kind = Event::Kind::kFinished,
                     .request = live.request,
                     .sample = live.sample,
                     .reused_tokens = live.reused});
  live = {};
}

void Engine::fail(const std::string& why) {
  failed_ = true;
  error_ = why;
  for (Live& live : live_)
    if (live.request != 0)
      events_.push_back({.kind = Event::Kind::kFailed,
                         .request = live.request,
                         .sample = live.sample,
                         .why = {kvstem::StatusCode::kUnavailable, "the engine has failed: see error()"}});
  if (options_.link != nullptr) options_.link->stop();
}

}  // namespace paged
