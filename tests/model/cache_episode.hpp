// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What an episode of the cache's model check consists of: its settings, what is counted, and its prompts.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "kvstem/kvstem.hpp"

namespace kvstem::test {

using Digest = std::uint64_t;
inline constexpr Digest kPoison = 0xdeaddeaddeaddeadull;

enum Kind {
  kAcquire,
  kRefresh,
  kReserve,
  kAppend,
  kCommit,
  kReach,
  kEndStep,
  kRelease,
  kReleaseCold,
  kAbort,
  kProbe,
  kTakeStep,
  kTakeLoads,
  kLoaded,
  kStored,
  kLoadFailed,
  kStoreFailed,
  kLateResult,
  kKinds
};
inline constexpr const char* kKindNames[kKinds] = {
    "acquire",    "refresh", "reserve",      "append",      "commit",       "reach",
    "end_step",   "release", "release cold", "abort",       "probe",        "take_step",
    "take_loads", "loaded",  "stored",       "load failed", "store failed", "late result"};

/// What happened in all episodes.
struct Tally {
  std::array<std::uint64_t, kKinds> effective{};
  std::uint64_t operations = 0;  // effective ones
  std::uint64_t hit_blocks = 0, collisions = 0, sibling_collisions = 0, evictions = 0,
                evictions_under_pins = 0;
  std::uint64_t exhausted = 0, followed = 0, waited = 0, took_over = 0, invalidated = 0, duplicates = 0,
                canonical = 0, unpublished = 0, gave_up = 0;
  std::uint64_t splits = 0, merges = 0, ghost_hits = 0, replayed_bytes = 0, rebuilt = 0;
};

struct Config {
  std::uint64_t seed = 0;
  std::uint32_t operations = 0;
  SlotFill fill = SlotFill::kInPlace;
  bool small_keys = false;
  std::uint32_t block_tokens = 4, slots = 16, leases = 6, row_blocks = 10, patterns = 3, max_runs = 0;
};

inline BlockKey eight_bits(std::span<const std::byte> input, const KeySecret& secret) noexcept {
  return {xxh3_key_function().hash(input, secret).lo & 0xff, 0};
}

inline Digest mix(Digest a, std::uint64_t b) {  // splitmix64
  a += 0x9e3779b97f4a7c15ull + b * 0xd1342543de82ef95ull;
  a = (a ^ (a >> 30)) * 0xbf58476d1ce4e5b9ull;
  a = (a ^ (a >> 27)) * 0x94d049bb133111ebull;
  return a ^ (a >> 31);
}

struct KeyHash {
  std::size_t operator()(BlockKey k) const noexcept { return k.lo ^ k.hi; }
};

/// A prompt or a growing sequence, with what the model and the cache call its blocks.
struct Text {
  std::uint32_t scope = 0;
  std::vector<TokenId> tokens;
  std::vector<Extra> extras;
  std::vector<ScopeChange> changes;
  std::vector<Digest> digests;  // of the whole blocks
  std::vector<BlockKey> keys;
  [[nodiscard]] Prompt prompt() const {
    return {.scope = ScopeId{scope}, .tokens = tokens, .extras = extras, .changes = changes};
  }
};

struct Computed {
  std::uint32_t from, to;
  Point after;
  bool done;  // the device has written it
};

struct Node {
  Digest parent;
  std::uint32_t children;
  bool on_grid;
  BlockKey key, parent_key;
  std::shared_ptr<const Text> text;  // a prompt that contains it, for probing
  std::uint32_t blocks;
  std::int32_t slot;  // in place
};

struct InFlight {
  StepEntry entry;
  std::uint32_t request;
  std::uint64_t ticket;  // which use of the request
};

struct Slot {
  Digest state = kPoison;
  std::uint64_t last_read = 0;  // the last step in which somebody may have read it
  bool damaged = false;
};

/// Makes prompts that share much, and gives their blocks digests and keys.
class Texts {
 public:
  Texts(const Config& config, Tally& tally, std::mt19937_64& random)
      : config_(config), tally_(tally), random_(random) {}

  void open(const KeyHasher& hasher, std::vector<BlockKey> root_keys) {
    hasher_ = hasher;
    root_keys_ = std::move(root_keys);
  }
  std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random_() % n); }
  /// The block that has the key, where keys do not collide.
  Digest of(BlockKey key) const { return digest_of_.at(key); }

  void add_tokens(Text& text, std::uint32_t n) {
    // Whole blocks repeat a pattern, so that prefixes are shared; which one comes next leans to the first.
    std::uint32_t pattern = 0;
    for (std::uint32_t i = 0; i < n; ++i) {
      const auto at = static_cast<std::uint32_t>(text.tokens.size());
      if (at % config_.block_tokens == 0 || i == 0)
        pattern = std::min(below(config_.patterns), below(config_.patterns));
      text.tokens.push_back(static_cast<TokenId>(pattern * 10 + at % config_.block_tokens % 10));
    }
    hash(text);
  }

  void hash(Text& text) {
    while ((text.digests.size() + 1) * config_.block_tokens <= text.tokens.size()) {
      const auto b = static_cast<std::uint32_t>(text.digests.size());
      const std::uint32_t begin = b * config_.block_tokens, end = begin + config_.block_tokens;
      Digest d = b == 0 ? mix(1, text.scope) : text.digests.back();
      BlockKey parent = b == 0 ? root_keys_[text.scope] : text.keys.back();
      for (std::uint32_t i = begin; i < end; ++i) d = mix(d, static_cast<std::uint64_t>(text.tokens[i]) + 1);
      // In a key media and changes of scope stand by position, media first.
      std::multimap<std::uint32_t, KeyMark> by_position;
      for (const Extra& e : text.extras) {
        if (e.position < begin || e.position >= end) continue;
        d = mix(mix(d, 5000 + e.position - begin), static_cast<std::uint64_t>(e.digest[0]));
        by_position.insert({e.position, {KeyMark::Kind::kMedia, e.position - begin, e.digest}});
      }
      for (const ScopeChange& c : text.changes) {
        if (c.position < begin || c.position >= end) continue;
        d = mix(mix(d, 7000 + c.position - begin), static_cast<std::uint64_t>(c.scope));
        KeyMark mark{KeyMark::Kind::kScope, c.position - begin, {}};
        std::memcpy(mark.value.data(), &root_keys_[static_cast<std::uint32_t>(c.scope)], sizeof(BlockKey));
        by_position.insert({c.position, mark});
      }
      std::vector<KeyMark> marks;
      for (const auto& [position, mark] : by_position) marks.push_back(mark);
      const BlockKey key =
          hasher_.next(parent, std::span(text.tokens).subspan(begin, config_.block_tokens), marks);
      text.digests.push_back(d);
      text.keys.push_back(key);
      if (config_.small_keys) {
        auto& same = digests_of_key_[key];
        if (same.insert(d).second && same.size() > 1) ++tally_.collisions;
        auto& siblings =
            digests_of_child_[{parent.lo, key.lo, b == 0 ? mix(1, text.scope) : text.digests[b - 1]}];
        if (siblings.insert(d).second && siblings.size() > 1) ++tally_.sibling_collisions;
      } else {
        digest_of_[key] = d;
      }
    }
  }

  /// Often a prompt that somebody has or had, cut or continued.
  Text make() {
    Text text;
    text.scope = below(8) == 0 ? 1 : 0;
    const std::uint32_t most = config_.row_blocks * config_.block_tokens;
    if (!recent.empty() && below(6) != 0) {
      const Text& old = *recent[below(static_cast<std::uint32_t>(recent.size()))];
      const std::uint32_t keep =
          std::min(most, below(3) == 0 ? static_cast<std::uint32_t>(old.tokens.size())
                                       : below(static_cast<std::uint32_t>(old.tokens.size()) + 1));
      text.scope = old.scope;
      text.tokens.assign(old.tokens.begin(), old.tokens.begin() + keep);
      for (const Extra& e : old.extras)
        if (e.position < keep) text.extras.push_back(e);
      for (const ScopeChange& c : old.changes)
        if (c.position < keep) text.changes.push_back(c);
    }
    const auto kept = static_cast<std::uint32_t>(text.tokens.size());
    const std::uint32_t more = std::min(most - kept, below(4 * config_.block_tokens + 1));
    const std::uint32_t end = kept + more;
    if (more > 0 && below(6) == 0) {
      Extra extra{kept + below(more), {}};
      extra.digest[0] = static_cast<std::byte>(below(2));
      text.extras.push_back(extra);
    }
    if (more > 0 && below(8) == 0) text.changes.push_back({kept + below(more), ScopeId{1 + below(2)}});
    add_tokens(text, end - kept);
    return text;
  }

  std::vector<std::shared_ptr<const Text>> recent;

 private:
  struct Child {
    std::uint64_t at[3];
    bool operator<(const Child& o) const { return std::lexicographical_compare(at, at + 3, o.at, o.at + 3); }
  };

  const Config& config_;
  Tally& tally_;
  std::mt19937_64& random_;
  KeyHasher hasher_;
  std::vector<BlockKey> root_keys_;
  std::unordered_map<BlockKey, Digest, KeyHash> digest_of_;
  std::unordered_map<BlockKey, std::unordered_set<Digest>, KeyHash> digests_of_key_;
  std::map<Child, std::unordered_set<Digest>> digests_of_child_;
};

}  // namespace kvstem::test
