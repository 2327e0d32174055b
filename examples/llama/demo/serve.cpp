// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "serve.hpp"

#include <cstdio>
#include <cstdlib>

namespace kvstem_llama::demo {

void die(const std::string& what, const std::string& why) {
  const std::string more = LlamaEngine::last_error();
  std::fprintf(stderr, "\n%s: %s%s%s\n", what.c_str(), why.c_str(), more.empty() ? "" : "\n", more.c_str());
  std::exit(1);
}

Arm::Arm(const Options& options)
    : name_(options.name),
      llama_(must(LlamaEngine::open(options.llama), options.llama.model)),
      timed_(*llama_) {
  if (!options.cached) return;
  host_ = must(TimedHost::create(timed_, options.host), "kvstem");
  scope_ = must(host_->open_scope(llama_->scope()), "kvstem");
}

Arm::Served Arm::serve(const Job& job) {
  Served served;
  served.prompt_tokens = static_cast<std::uint32_t>(job.prompt.size());
  served.state.assign(job.prompt.begin(), job.prompt.end());
  const double start = now();

  SequenceId sequence = 0;
  kvstem::OpaqueRequestId request;
  std::uint32_t at = job.in_place;
  if (host_ != nullptr) {
    const auto admission = must(in_host([&] {
                                  return host_->begin({.prompt = {.scope = scope_, .tokens = job.prompt},
                                                       .session = job.session,
                                                       .grid_tokens = job.exact ? kGrid : 0});
                                }),
                                "begin");
    request = admission.request;
    sequence = admission.sequence;
    at = admission.reused_tokens;
    served.reuse = {admission.from_resident, admission.from_host, admission.from_frontier};
    served.begin = now() - start;
  }
  const bool all_on_grid = at % kGrid == 0;

  std::vector<LlamaEngine::Feed> feeds;
  while (at < served.prompt_tokens) {
    const std::uint32_t end = std::min(served.prompt_tokens, at / kGrid * kGrid + kGrid);
    feeds.clear();
    for (std::uint32_t i = at; i < end; ++i)
      feeds.push_back({.sequence = sequence,
                       .position = i,
                       .token = job.prompt[i],
                       .logits = i + 1 == served.prompt_tokens && job.new_tokens > 0});
    must(llama_->decode(feeds), "llama.cpp");
    if (host_ != nullptr) {
      must(in_host([&] { return host_->computed(request, end - at, end - at == kGrid); }), "computed");
      (void)in_host([&] { return host_->work(); });
    }
    served.computed_tokens += end - at;
    at = end;
  }
  if (all_on_grid) served.grid_tokens = at / kGrid * kGrid;

  while (served.chosen.size() < job.new_tokens) {
    const std::span<const float> logits = llama_->logits(feeds.size() - 1);
    served.chosen.push_back(
        static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    if (served.chosen.size() == 1) served.first_token = now() - start;
    if (served.chosen.size() == job.new_tokens) break;  // nobody asks what follows the last one
    feeds.assign(1, {.sequence = sequence, .position = at++, .token = served.chosen.back(), .logits = true});
    must(llama_->decode(feeds), "llama.cpp");
    served.state.push_back(served.chosen.back());
    if (host_ != nullptr) {
      must(in_host([&] { return host_->append(request, {&served.chosen.back(), 1}); }), "append");
      (void)in_host([&] { return host_->work(); });
    }
  }
  if (job.before_end) job.before_end(sequence);
  if (host_ != nullptr) {
    must(in_host([&] { return host_->end(request); }), "end");
    while (in_host([&] { return host_->work(); }) > 0) {
    }
  } else {
    must(llama_->drop_range(0, {0, kvstem::kToEnd}), "llama.cpp");
  }
  served.total = now() - start;
  wall_ += served.total;
  return served;
}

Arm::Served Arm::serve_checked(const Job& job, NaiveCache& naive, Differences& wrong) {
  const Reuse expected = naive.begin(job.prompt, job.exact ? kGrid : 0);
  Served served = serve(job);
  wrong.compare(job.prompt.size(), expected, served.reuse, served.computed_tokens);
  naive.end(served.state, job.session, expected.total() > 0, served.grid_tokens);
  return served;
}

}  // namespace kvstem_llama::demo
