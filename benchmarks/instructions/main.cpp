// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What do the calls of an engine cost in instructions, and what does a path cost in cache misses? Counted by callgrind,
// so that the answer is the same each time and does not depend on what else the machine does.
//
//   scripts/callgrind.sh     builds this, runs it, compares the counts with those kept in baseline.json
//
// A piece of work is set up without being counted; then it alone is counted, from empty (simulated) caches, and its
// counts are written under its name. The program prints what callgrind cannot know:
//
//   toolchain TEXT            what compiled it and the libraries whose instructions are counted too
//   piece NAME TIMES RUNS     the work was done TIMES times; RUNS runs lie on its path, 0 where that is not asked
//
// Without valgrind it does the same, counts nothing, and so checks only that each piece does what its name says.
#include <gnu/libc-version.h>

#include "count.hpp"
#include "workload.hpp"

namespace bench {
namespace {

// ---- the index -----------------------------------------------------------------------------------------------------

constexpr std::uint32_t kMost = 8192;  // blocks of a sequence

void count_index() {
  Tree tree({.block_tokens = kBlockTokens, .capacity_blocks = 1u << 16});
  auto reader = need(tree.index->register_reader());
  const Sequence sequence(0, kMost);
  Place end = tree.at_root();
  for (std::uint32_t blocks = kTurn; blocks <= kMost; blocks += kTurn)
    end = tree.go_on(end, sequence.first(blocks));

  count("index/match/writer", 1, 1, [&] { return tree.match(sequence.first(kMost)).ready == kMost; });
  count("index/match/reader", 1, 1, [&] { return tree.match(reader, sequence.first(kMost)).ready == kMost; });

  Sequence wrong(0, kMost);
  wrong[5000 * kBlockTokens + 7] ^= 1;
  count("index/match/wrong_token", 1, [&] { return tree.match(wrong.first(kMost)).ready == 5000; });

  std::vector<Sequence> strangers;
  for (std::uint32_t s = 0; s < 64; ++s) strangers.emplace_back(1 + s, 64);
  count("index/miss", 64, [&] {
    std::uint32_t found = 0;
    for (const Sequence& stranger : strangers) found += tree.match(stranger.first(64)).place.blocks;
    return found == 0;
  });

  const Sequence other(100, 2048);
  Place inserted;
  count("index/insert", 2048, [&] {
    inserted = tree.extend(tree.at_root(), other.first(2048));
    return inserted.blocks == 2048;
  });
  count("index/erase", 2048, [&] { return tree.index->trim(inserted.run, 0).ok(); });

  // A branch in the middle of a run.
  count("index/branch", 1,
        [&] { return tree.extend(tree.match(wrong.first(5032)).place, wrong.first(5032)).blocks == 5032; });
}

/// A turn after `before` blocks; `turns` of them, counted together.
void count_index_turns(std::uint32_t before, std::uint32_t turns) {
  Tree tree({.block_tokens = kBlockTokens, .capacity_blocks = 1u << 16});
  const Sequence sequence(0, before + turns * kTurn);
  Place end = tree.at_root();
  std::uint32_t blocks = 0;
  while (blocks < before) end = tree.go_on(end, sequence.first(blocks += kTurn));
  count("index/turn/after_" + std::to_string(before), turns, [&] {
    for (std::uint32_t turn = 0; turn < turns; ++turn) end = tree.go_on(end, sequence.first(blocks += kTurn));
    return end.blocks == before + turns * kTurn;
  });
}

void count_paths() {
  const Forest forest;
  for (std::uint32_t k = 0; k < Forest::kKinds.size(); ++k) {
    const Forest::Kind& kind = Forest::kKinds[k];
    const Sequence path = Forest::path(k);
    const auto tokens = path.first(kind.blocks());
    const std::uint32_t runs = forest.tree.runs(tokens);
    check(runs == kind.blocks() / kind.run_blocks, "a path has another number of runs");
    count(std::string("index/path/") + kind.name, 1, runs,
          [&] { return forest.tree.match(tokens).ready == kind.blocks(); });
  }
}

// ---- the cache -----------------------------------------------------------------------------------------------------

CacheOptions paged() {
  return {.block_tokens = kBlockTokens, .slots = 1u << 14, .max_leases = 8, .max_lease_tokens = 1u << 16};
}

/// A turn of a lease that goes on, after `before` blocks; `turns` of them. The tokens become known `at_once` by so many.
void count_turns(const char* name, const CacheOptions& options, std::uint32_t at_once, std::uint32_t before,
                 std::uint32_t turns) {
  Host host(options);
  const Sequence sequence(0, before + turns * kTurn);
  Lease lease = host.acquire(sequence.first(kTurn));
  host.compute(lease);
  std::uint32_t blocks = kTurn;
  const auto turn = [&] {
    const auto tokens = sequence.part(blocks, kTurn);
    for (std::uint32_t t = 0; t < tokens.size(); t += at_once) {
      check(lease.append(tokens.subspan(t, at_once)));
      host.compute(lease);
    }
    blocks += kTurn;
  };
  while (blocks < before) turn();
  count(std::string(name) + "/after_" + std::to_string(before), turns, [&] {
    for (std::uint32_t i = 0; i < turns; ++i) turn();
    return lease.committed_tokens() == (before + turns * kTurn) * kBlockTokens;
  });
  check(host.cache->audit().balanced(), "the books are not balanced");
  check(host.cache->stats().unpublished_blocks == 0, "a turn was not published");
}

/// The same turn as a request of its own: acquired, computed, released.
void count_request(std::uint32_t before) {
  Host host(paged());
  const Sequence sequence(0, before + kTurn);
  for (std::uint32_t blocks = kTurn; blocks <= before; blocks += kTurn) {
    Lease lease = host.acquire(sequence.first(blocks));
    host.compute(lease);
    host.release(lease);
  }
  const std::string after = "/after_" + std::to_string(before);
  Lease lease;
  count("cache/request/acquire" + after, 1, [&] {
    lease = host.acquire(sequence.first(before + kTurn));
    return lease.matched_tokens() == before * kBlockTokens;
  });
  count("cache/request/compute" + after, 1, [&] {
    host.compute(lease);
    return lease.committed_tokens() == (before + kTurn) * kBlockTokens;
  });
  count("cache/request/release" + after, 1, [&] {
    host.release(lease);
    return !lease.live();
  });
}

/// Slots for 32 blocks, when each has to be taken from the oldest request.
void count_eviction() {
  CacheOptions options = paged();
  options.slots = 4096;
  Host host(options);
  for (std::uint32_t s = 0; s < options.slots / 128; ++s) {
    Lease lease = host.acquire(Sequence(s, 128).first(128));
    host.compute(lease);
    host.release(lease);
  }
  const Sequence sequence(1000, kTurn);
  Lease lease = host.acquire(sequence.first(kTurn));
  check(host.cache->pool().free_slots() == 0, "the pool is not full");
  count("cache/evict", kTurn, [&] { return lease.reserve(kTurn * kBlockTokens).ok(); });
  check(host.cache->stats().evicted_blocks == kTurn, "something else was evicted");
}

/// What the cache does in a step for 256 sequences that decode a token each, scheduled one step ahead: with nothing to
/// publish, and where each completes a block.
void count_decoding() {
  constexpr std::uint32_t kRunning = 256;
  CacheOptions options = paged();
  options.max_leases = kRunning;
  options.max_lease_tokens = 1024;
  Host host(options);
  std::vector<Sequence> sequences;
  std::vector<Lease> leases;
  for (std::uint32_t s = 0; s < kRunning; ++s) {
    sequences.emplace_back(s, kTurn + 2);
    leases.push_back(host.acquire(sequences[s].first(kTurn)));
    host.compute(leases[s]);
  }
  std::uint64_t at = 0;
  std::uint32_t token = kTurn * kBlockTokens;
  const auto step = [&] {
    const Point point{0, ++at};
    for (std::uint32_t s = 0; s < kRunning; ++s) {
      check(leases[s].reserve(1));
      check(leases[s].append({&sequences[s][token], 1}));
      check(leases[s].commit(1, point));
    }
    ++token;
    check(host.cache->end_step(point));
    check(host.cache->reach({0, at - 1}));
  };
  for (int warm_up = 0; warm_up < 4; ++warm_up) step();
  const std::uint64_t before = host.cache->stats().inserted_blocks;
  count("cache/step/decode_256", 1, [&] {
    step();
    return host.cache->stats().inserted_blocks == before;
  });
  while (token % kBlockTokens != 0) step();
  count("cache/step/publish_256", 1, [&] {
    step();  // it reaches the point of the one before, which completed the blocks
    return host.cache->stats().inserted_blocks == before + kRunning;
  });
}

/// A fork of a sequence, and the first write of each of the two.
void count_fork(std::uint32_t blocks) {
  Host host(paged());
  const Sequence sequence(0, blocks + 1);
  Lease parent = host.acquire(sequence.first(blocks));
  check(parent.append(sequence.part(blocks, 1).first(kBlockTokens / 2)));
  host.compute(parent);
  const std::string after = "/after_" + std::to_string(blocks);
  Lease child;
  count("cache/fork" + after, 1, [&] {
    child = need(parent.fork());
    return child.committed_tokens() == parent.committed_tokens();
  });
  count("cache/copy_on_write" + after, 1, [&] {
    std::array<StepEntry, 4> room;
    check(child.reserve(1));
    check(parent.reserve(1));
    const auto entries = host.cache->take_step(room);
    for (const StepEntry& entry : entries) check(host.cache->complete({entry, {}}));
    return entries.size() == 1;
  });
}

// ---- policies ------------------------------------------------------------------------------------------------------

/// By itself, with 4,096 runs of 16 blocks: 1,024 requests that use one run each, and 1,024 victims.
template <class Policy>
void count_policy(const std::string& name) {
  constexpr std::uint32_t kRuns = 4096, kRunBlocks = 16, kTimes = 1024;
  Policy policy;
  check(policy.take(heap_memory(), {kRuns, kRuns * kRunBlocks, kRunBlocks}), "no memory for the policy");
  std::array<BlockKey, kRunBlocks> keys;
  const auto path = [&](std::uint32_t run) {
    for (std::uint32_t b = 0; b < kRunBlocks; ++b) keys[b] = {mix(run * kRunBlocks + b + 1), run};
    return std::span<const BlockKey>(keys);
  };
  const auto end = [&](std::uint32_t run) {
    policy.on_request_end({});
    policy.on_release(run, kRunBlocks);
  };
  for (std::uint32_t run = 0; run < kRuns; ++run) {
    policy.on_request_begin({});
    if (Policy::kKeys != PolicyKeys::kNone) policy.on_path(path(run), 0);
    policy.on_insert(run, kNoVictim, kRunBlocks);
    end(run);
  }
  count("policy/" + name + "/touch", kTimes, [&] {
    for (std::uint32_t i = 0; i < kTimes; ++i) {
      const auto run = static_cast<std::uint32_t>(mix(i + 1) % kRuns);
      policy.on_request_begin({});
      policy.on_hit(run, kRunBlocks);
      if (Policy::kKeys == PolicyKeys::kPath) policy.on_path(path(run), kRunBlocks);
      end(run);
    }
    return true;
  });
  const Evictable all([](const void*, std::uint32_t) noexcept { return true; }, nullptr);
  count("policy/" + name + "/evict", kTimes, [&] {
    std::uint32_t evicted = 0;
    for (std::uint32_t i = 0; i < kTimes; ++i) {
      const Victim victim = policy.victim(all);
      if (victim.run == kNoVictim) break;
      if (Policy::kKeys != PolicyKeys::kNone)
        for (const BlockKey key : path(victim.run)) policy.on_evicted(key);
      policy.on_erase(victim.run);
      ++evicted;
    }
    return evicted == kTimes;
  });
}

}  // namespace

void count_paged_host(bool window);  // paged_host.cpp

namespace {

int run() {
  std::printf("toolchain g++ %s, glibc %s, xxHash %d.%d.%d\n", __VERSION__, gnu_get_libc_version(),
              XXH_VERSION_MAJOR, XXH_VERSION_MINOR, XXH_VERSION_RELEASE);
  count_index();
  count_paths();

  CacheOptions with_changes = paged(), by_step = paged();
  with_changes.max_changes = 1u << 14;
  by_step.fill = SlotFill::kByStep;
  // After 2,048 blocks eight turns are counted, which fill one segment: it must not matter where in it a turn begins.
  for (const auto& [before, turns] : {std::pair{32u, 1u}, std::pair{2048u, 8u}}) {
    count_index_turns(before, turns);
    count_turns("cache/turn", paged(), kTurn * kBlockTokens, before, turns);
    count_turns("cache/turn_by_token", paged(), 1, before, turns);
    count_turns("cache/turn_by_token_with_changes", with_changes, 1, before, turns);
    count_turns("cache/turn_by_step", by_step, kTurn * kBlockTokens, before, turns);
    count_request(before);
    count_fork(before);
  }
  count_decoding();
  count_paged_host(false);
  count_paged_host(true);
  count_eviction();
  count_policy<Lru>("lru");
  count_policy<Lru2>("lru2");
  count_policy<Arc>("arc");
  count_policy<Adaptive>("adaptive");
  count_policy<Hinted<Lru>>("hinted_lru");
  return 0;
}

}  // namespace
}  // namespace bench

int main() { return bench::run(); }
