// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "replay.hpp"

#include <algorithm>
#include <chrono>
#include <queue>
#include <string>

#include "kvstem/cache/cache.hpp"
#include "kvstem/policy/adaptive.hpp"
#include "kvstem/policy/arc.hpp"
#include "kvstem/policy/hinted.hpp"
#include "kvstem/policy/lru.hpp"
#include "kvstem/policy/lru2.hpp"

namespace kvstem::cli {
namespace {

/// Any two nodes differ in 64 bits that look random, as the keys of two prefixes do.
BlockKey key_of(std::uint32_t node) {
  const auto mix = [](std::uint64_t x) {  // SplitMix64 (Steele, Lea, Flood 2014)
    x *= 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  };
  return {mix(2ull * node + 1), mix(2ull * node + 2)};
}

double ends_at(const TraceRequest& request, const ReplaySetup& setup) {
  return request.timestamp_ms +
         1000 * (setup.pin_seconds + setup.pin_seconds_per_output_token * request.output_tokens);
}

/// The most requests that are there at once.
std::uint32_t most_at_once(const Trace& trace, const TracePart& part, const ReplaySetup& setup) {
  std::priority_queue<double, std::vector<double>, std::greater<>> ends;
  std::size_t most = 1;
  for (std::size_t i = part.begin; i < part.end; ++i) {
    while (!ends.empty() && ends.top() <= trace.requests[i].timestamp_ms) ends.pop();
    ends.push(ends_at(trace.requests[i], setup));
    most = std::max(most, ends.size());
  }
  return static_cast<std::uint32_t>(most);
}

template <class T>
T must(Result<T> result, const char* what) {
  if (!result.ok()) throw InputError(std::string(what) + ": " + result.status().message());
  return std::move(*result);
}
void must(const Status& status, const char* what) {
  if (!status.ok()) throw InputError(std::string(what) + ": " + status.message());
}

template <EvictionPolicy Policy>
ReplayResult replay_with(const Trace& trace, const TracePart& part, const ReplaySetup& setup,
                         Progress& progress) {
  using Cache = BasicCache<Policy>;
  using Lease = BasicLease<Policy>;
  const bool pins = setup.pin_seconds > 0 || setup.pin_seconds_per_output_token > 0;
  const std::uint32_t block_tokens = trace.block_tokens;
  std::uint32_t longest = 1;
  for (std::size_t i = part.begin; i < part.end; ++i) longest = std::max(longest, trace.requests[i].blocks);
  // More than there are distinct blocks is never used.
  const auto capacity = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(setup.capacity_blocks, std::max(1u, trace.distinct_blocks())));
  const std::uint32_t leases = pins ? most_at_once(trace, part, setup) : 1;
  auto cache = must(Cache::create({.block_tokens = block_tokens,
                                   .slots = capacity,
                                   .mode = IndexMode::kKeys,
                                   .max_leases = leases,
                                   .max_lease_tokens = (longest + 1) * block_tokens,
                                   .max_scopes = 1,
                                   .max_runs = capacity + longest + 1024,
                                   .max_readers = 1}),
                    "replay");
  const ScopeId scope = must(cache->open_scope({.model = "trace", .vocab_size = 1}), "replay");

  struct Held {
    double until;
    Lease lease;
    Retention retention;
    bool operator<(const Held& other) const { return until > other.until; }
  };
  std::vector<Held> held;  // a heap, the first to end on top
  std::vector<BlockKey> keys;
  std::uint64_t step = 0;
  ReplayResult result;
  const auto begin = std::chrono::steady_clock::now();
  for (std::size_t i = part.begin; i < part.end; ++i) {
    progress.at(static_cast<double>(i - part.begin) / static_cast<double>(part.end - part.begin));
    const TraceRequest& request = trace.requests[i];
    if (!held.empty() && held.front().until <= request.timestamp_ms) {
      while (!held.empty() && held.front().until <= request.timestamp_ms) {
        std::pop_heap(held.begin(), held.end());
        must(held.back().lease.release(held.back().retention), "replay");
        held.pop_back();
      }
      must(cache->end_step({0, ++step}), "replay");
    }
    keys.clear();
    for (const std::uint32_t node : trace.path(i)) keys.push_back(key_of(node));
    // What lies behind the last whole block is always computed; of an exact prompt, the answer's first token.
    const std::uint32_t tail =
        std::max(1u, std::min(request.input_tokens - request.blocks * block_tokens, block_tokens));
    const RequestHint hint = setup.hints.empty() ? RequestHint{} : setup.hints[i - part.begin];
    Lease lease = must(
        cache->acquire({.scope = scope, .keys = keys, .tail_tokens = tail},
                       {.session = hint.session, .now_ms = static_cast<std::uint64_t>(request.timestamp_ms)}),
        "replay");
    const std::uint32_t matched = lease.matched_tokens() / block_tokens;
    const std::uint32_t wanted = std::min(request.blocks, capacity) - matched;
    std::uint32_t room = wanted;
    if (!lease.reserve(wanted * block_tokens).ok())
      for (room = 0; room < wanted && lease.reserve(block_tokens).ok();) ++room;
    must(lease.commit(room * block_tokens), "replay");
    if (matched + room < request.blocks) ++result.short_requests;

    result.touched_blocks += request.blocks;
    if (i >= part.counted) {
      ++result.requests;
      result.input_tokens += request.input_tokens;
      result.hit_tokens += std::uint64_t{matched} * block_tokens;
    }
    if (setup.on_request) setup.on_request(i, matched);
    Retention retention{.keep = hint.over ? Keep::kCold : Keep::kNormal};
    if (hint.expect_reuse_ms > 0)
      retention.expect_reuse_at_ms = static_cast<std::uint64_t>(
          (pins ? ends_at(request, setup) : request.timestamp_ms) + hint.expect_reuse_ms);
    if (pins) {
      held.push_back({ends_at(request, setup), std::move(lease), retention});
      std::push_heap(held.begin(), held.end());
    } else {
      must(lease.release(retention), "replay");
      must(cache->end_step({0, ++step}), "replay");
    }
  }
  held.clear();
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  result.evicted_blocks = cache->stats().evicted_blocks;
  return result;
}

template <EvictionPolicy Policy>
constexpr ReplayPolicy policy(std::string_view name) {
  return {name, &replay_with<Policy>, &replay_with<Hinted<Policy>>};
}
constexpr ReplayPolicy kPolicies[] = {policy<Lru>("lru"), policy<Lru2>("lru2"), policy<Arc>("arc"),
                                      policy<Adaptive>("adaptive")};

}  // namespace

std::span<const ReplayPolicy> replay_policies() { return kPolicies; }

}  // namespace kvstem::cli
