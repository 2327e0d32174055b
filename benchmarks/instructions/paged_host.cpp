// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The paged host's pieces. They are a unit of their own, so that what else is counted is compiled as if they were not there.
#include "kvstem/host/paged_host.hpp"

#include "count.hpp"

namespace bench {

/// What a paged host does in such a step, tables included: of full attention, and with a sliding window besides.
void count_paged_host(bool window) {
  constexpr std::uint32_t kRunning = 256;
  const KvGroup groups[] = {{.bytes_per_token = 1},
                            {.kind = GroupKind::kSlidingWindow,
                             .window_tokens = 128,
                             .bytes_per_token = 1,
                             .slots = kRunning * 40}};
  CacheOptions options{
      .block_tokens = kBlockTokens, .slots = kRunning * 40, .max_leases = kRunning, .max_lease_tokens = 1024};
  if (window) options.groups = groups;
  auto made = PagedHost::create({.cache = options, .step_tokens = 4096, .max_sequences = kRunning});
  check(made.status());
  PagedHost& host = **made;
  const ScopeId scope = need(host.open_scope({.model = "m", .vocab_size = 1u << 30}));
  for (std::uint32_t s = 0; s < kRunning; ++s)
    (void)need(host.add(
        {.prompt = {.scope = scope, .tokens = Sequence(s, kTurn).first(kTurn)}, .max_new_tokens = 64}));
  PagedStep step;
  std::uint64_t at = 0;
  const auto round = [&] {
    check(host.schedule({0, ++at}, step));
    check(host.finished(step.done));
    const TokenId token = 1;
    for (const PagedWork& w : step.work)
      if (w.samples) check(host.accept(w.sequence, {&token, 1}));
    return step.work.size();
  };
  while (round() != kRunning || step.tokens.size() != kRunning) {
  }
  while (host.progress({0, 1}).known_tokens % kBlockTokens != 3) round();
  count(window ? "host/paged_step/window" : "host/paged_step/full", 1, [&] { return round() == kRunning; });
}

}  // namespace bench
