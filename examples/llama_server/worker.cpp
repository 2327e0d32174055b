// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "worker.hpp"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace kvstem_llama::server {

struct Worker::Choice {
  TextStream text;
  bool stopped = false;  // at a stop string: the engine is told to end it
  bool over = false;
};

struct Worker::Running {
  Job job;
  std::vector<Choice> choices;
  std::vector<RequestNumber> requests;
  std::size_t left = 0;           // choices that are not over
  bool dropped = false;           // nobody listens any more
  const char* failing = nullptr;  // all that is left ends for this reason
};

Worker::Worker(Engine& engine, LlamaEngine& llama, Engine::Cache* cache, Metrics& metrics, Options options)
    : engine_(engine),
      llama_(llama),
      cache_(cache),
      metrics_(metrics),
      options_(std::move(options)),
      done_(options_.tenants),
      taken_(options_.tenants) {
  thread_ = std::thread([this] { loop(); });
}

Worker::~Worker() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Worker::post(std::function<void()> fn) {
  {
    const std::lock_guard lock(mutex_);
    inbox_.push_back(std::move(fn));
  }
  wake_.notify_one();
}

JobNumber Worker::submit(Job job) {
  jobs_in_.fetch_add(1, std::memory_order_relaxed);
  JobNumber number;
  {
    const std::lock_guard lock(mutex_);
    number = ++last_;
    inbox_.emplace_back([this, number, job = std::move(job)]() mutable { take(number, std::move(job)); });
  }
  wake_.notify_one();
  return number;
}

void Worker::cancel(JobNumber number, bool failed) {
  post([this, number, failed] {
    const auto it = jobs_.find(number);
    if (it == jobs_.end()) return;
    it->second->dropped = true;
    if (failed) it->second->failing = "";
    cancel_requests(*it->second);
  });
}

void Worker::look(std::function<void(View)> to) {
  post([this, to = std::move(to)] {
    tell_state();  // so that both tell of the same moment
    to(view());
  });
}

void Worker::fail_all(const char* why) {
  post([this, why] {
    for (auto& [number, job] : jobs_) {
      job->failing = why;
      cancel_requests(*job);
    }
  });
}

void Worker::cancel_requests(const Running& job) {
  for (const RequestNumber request : job.requests) (void)engine_.cancel(request);
}

void Worker::loop() {
  tell_state();
  for (bool stopping = false;;) {
    std::vector<std::function<void()>> inbox;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return stop_ || !inbox_.empty() || engine_.busy(); });
      inbox.swap(inbox_);
      stopping = stop_;
    }
    for (const auto& fn : inbox) fn();
    if (stopping) {
      for (auto& [number, job] : jobs_) {
        job->dropped = true;
        cancel_requests(*job);
      }
    }
    for (const Event& event : engine_.step()) pass_on(event);
    deliver();
    tell_state();
    if (stopping && jobs_.empty()) return;
  }
}

void Worker::take(JobNumber number, Job job) {
  auto running = std::make_unique<Running>();
  running->left = job.prompts.size() * job.samples;
  for (std::size_t i = 0; i < running->left; ++i) running->choices.push_back({.text = TextStream(job.stops)});
  running->job = std::move(job);
  Running& r = *jobs_.emplace(number, std::move(running)).first->second;
  for (std::uint32_t p = 0; p < r.job.prompts.size(); ++p) {
    const std::uint32_t first = p * r.job.samples;
    Request request{.tokens = std::move(r.job.prompts[p]),
                    .max_new_tokens = r.job.max_new_tokens,
                    .scope = options_.scopes.empty() ? kvstem::kNoScope : options_.scopes[r.job.tenant],
                    .reuse = r.job.reuse,
                    .stop_at_end = r.job.stop_at_end,
                    .sampling = r.job.sampling,
                    .samples = r.job.samples};
    request.sampling.seed += first;
    const auto id = engine_.submit(std::move(request));
    if (id.ok()) {
      r.requests.push_back(*id);
      requests_.emplace(*id, Place{number, first, ++taken_[r.job.tenant]});
      continue;
    }
    for (std::uint32_t i = 0; i < r.job.samples; ++i)
      end(number, r, first + i,
          {.choice = first + i, .finished = true, .end = Piece::End::kFailed, .why = id.status().message()});
  }
}

void Worker::pass_on(const Event& event) {
  const auto place = requests_.find(event.request);
  if (place == requests_.end()) return;
  const JobNumber number = place->second.job;
  Running& job = *jobs_.at(number);
  const std::uint32_t index = place->second.first_choice + event.sample;
  Choice& choice = job.choices[index];

  if (event.kind != Event::Kind::kFinished) {
    if (event.kind == Event::Kind::kFirstToken)
      metrics_.first_token(job.job.tenant, options_.now() - job.job.since);
    if (choice.stopped) return;
    const auto bytes = llama_.detokenize({&event.token, 1}, false);
    std::string text = choice.text.add(bytes.ok() ? *bytes : std::string());
    if (choice.text.stopped()) {
      choice.stopped = true;
      (void)engine_.cancel(event.request, event.sample);  // its end comes with the next step
    }
    if (!job.dropped)
      outbox_[number].push_back({.choice = index, .text = std::move(text), .tokens = {event.token}});
    return;
  }
  Piece piece{.choice = index, .finished = true, .report = event.report};
  if (!choice.stopped) piece.text = choice.text.finish();
  choice.stopped = choice.text.stopped();  // the rest may have completed a stop string
  switch (event.finish) {
    case Finish::kEnd: piece.end = Piece::End::kStop; break;
    case Finish::kLength: piece.end = choice.stopped ? Piece::End::kStop : Piece::End::kLength; break;
    case Finish::kCancelled:
      piece.end = choice.stopped           ? Piece::End::kStop
                  : job.failing != nullptr ? Piece::End::kFailed
                                           : Piece::End::kCancelled;
      if (piece.end == Piece::End::kFailed) piece.why = job.failing;
      break;
    case Finish::kFailed:
      piece.end = Piece::End::kFailed;
      piece.why = event.status.message();
      break;
  }
  constexpr std::size_t kDone = 12;
  auto& done = done_[job.job.tenant];
  done.push_front({.tenant = job.job.tenant,
                   .done = true,
                   .seconds = options_.now() - job.job.since,
                   .ended = options_.now(),
                   .standing = {.request = place->second.shown,
                                .sample = event.sample,
                                .most_new_tokens = job.job.max_new_tokens,
                                .report = event.report}});
  if (done.size() > kDone) done.pop_back();
  end(number, job, index, std::move(piece));
}

void Worker::end(JobNumber number, Running& job, std::uint32_t choice, Piece piece) {
  if (std::exchange(job.choices[choice].over, true)) return;
  static constexpr Outcome kOutcome[] = {Outcome::kStop, Outcome::kLength, Outcome::kCancelled,
                                         Outcome::kFailed};
  metrics_.finished(job.job.tenant, kOutcome[static_cast<std::size_t>(piece.end)], piece.report,
                    options_.now() - job.job.since);
  --job.left;
  outbox_[number].push_back(std::move(piece));
}

/// Hands out what this step brought. Jobs that are over are forgotten.
void Worker::deliver() {
  for (auto& [number, pieces] : std::exchange(outbox_, {})) {
    const auto it = jobs_.find(number);
    Running& job = *it->second;
    if (!job.dropped) job.job.deliver(std::move(pieces));
    if (job.left > 0) continue;
    for (const RequestNumber request : job.requests) requests_.erase(request);
    jobs_.erase(it);
    jobs_in_.fetch_sub(1, std::memory_order_relaxed);
  }
}

View Worker::view() const {
  View view;
  for (Standing& standing : engine_.standings()) {
    const auto place = requests_.find(standing.request);
    if (place == requests_.end()) continue;
    const Running& job = *jobs_.at(place->second.job);
    standing.request = place->second.shown;
    view.lines.push_back({.tenant = job.job.tenant,
                          .seconds = options_.now() - job.job.since,
                          .standing = std::move(standing)});
  }
  const auto running = static_cast<std::ptrdiff_t>(view.lines.size());
  for (const auto& done : done_) view.lines.insert(view.lines.end(), done.begin(), done.end());
  std::sort(view.lines.begin() + running, view.lines.end(),
            [](const View::Line& a, const View::Line& b) { return a.ended > b.ended; });
  if (cache_ == nullptr) return view;

  // A stem is what several prompts go on from; where there are few, the longest prompts are shown as well.
  constexpr std::size_t kStems = 10;
  const std::uint32_t block = cache_->block_tokens();
  for (const kvstem::ScopeId scope : options_.scopes)
    cache_->cache().enumerate(scope, [&](kvstem::RunId, const kvstem::RunInfo& run) {
      if (run.ready < run.length) return;  // being computed
      char key[17];
      std::snprintf(key, sizeof key, "%016llx", static_cast<unsigned long long>(run.first_key.hi));
      const std::uint32_t blocks = run.depth + run.length;
      view.stems.push_back(
          {.key = std::string(key, 8), .tokens = blocks * block, .blocks = blocks, .branches = run.children});
    });
  std::sort(view.stems.begin(), view.stems.end(), [](const View::Stem& a, const View::Stem& b) {
    return std::pair(a.branches > 1, a.tokens) > std::pair(b.branches > 1, b.tokens);
  });
  if (view.stems.size() > kStems) view.stems.resize(kStems);
  return view;
}

void Worker::tell_state() {
  EngineState state{.slots = engine_.slots(),
                    .running = static_cast<std::uint32_t>(engine_.running()),
                    .waiting = static_cast<std::uint32_t>(engine_.waiting()),
                    .steps = engine_.steps(),
                    .cells = llama_.capacity().cells,
                    .forks = engine_.forks()};
  if (cache_ != nullptr) {
    const kvstem::OpaqueHostStats& host = cache_->stats();
    const auto& pool = cache_->cache().pool();
    state.resident_tokens = cache_->resident_tokens();
    state.host_blocks = pool.capacity();
    state.host_blocks_used = pool.used_slots();
    state.block_bytes = cache_->block_bytes();
    state.exported_bytes = host.exported_bytes;
    state.imported_bytes = host.imported_bytes;
    state.evicted_blocks = cache_->cache().stats().evicted_blocks;
  }
  metrics_.set(state);
}

}  // namespace kvstem_llama::server
