// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What a cache is created with and what its calls take and return: plain data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/memory.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/index/prefix_index.hpp"
#include "kvstem/model/block_key.hpp"
#include "kvstem/model/kv_group.hpp"
#include "kvstem/observe/flight_log.hpp"

namespace kvstem::inline v0 {

/// How the state of a committed block comes into its slot.
enum class SlotFill : std::uint8_t {
  kInPlace,  // the engine computes into the slot (a paged pool): `reserve` gives slots out
  kByStep,  // the engine keeps its state itself (an opaque engine): steps store it into slots and load it from there
};

struct CacheOptions {
  std::uint32_t block_tokens = 16;  // 1 to 1024
  std::uint32_t slots = 0;          // blocks that can be kept
  Medium medium = Medium::kDevice;  // where those slots are
  SlotFill fill = SlotFill::kInPlace;
  IndexMode mode = IndexMode::kTokens;      // kKeys: prompts come as keys (routers); kNothing: only replays
  IndexMode replayed = IndexMode::kTokens;  // kNothing only: the mode that the log was recorded in
  std::uint32_t max_leases = 64;            // requests at once, with those released that wait for a point
  std::uint32_t max_lease_tokens = 8192;    // the longest sequence
  std::uint32_t max_scopes = 64;
  std::uint32_t max_runs = 0;  // 0: as IndexOptions; prompts that add fewer than four blocks each need more
  std::uint32_t max_readers = 16;  // threads that probe
  std::uint32_t max_changes = 0;   // change records kept until taken; 0 is off
  KeyFunction key_function = xxh3_key_function();
  std::string_view secret{};  // the deployment's; read during `create` only
  /// The model's groups; `GroupId` is the index; read during `create` only. Empty: one of full attention. Only SlotFill::kInPlace keeps several, or
  /// another kind. `slots` above is for groups that do not say how many they have; where no group is of full attention
  /// with the cache's block size, it is how many blocks are remembered at all.
  std::span<const KvGroup> groups{};
  bool null_slot =
      false;  // slot 0 of every pool is never given out: it stands in tables where there is none (else -1)
  /// Where `Lease::table` rows lie (of the first group of full attention): max_leases rows of ceil(max_lease_tokens /
  /// block_tokens) numbers. Empty: the cache's own.
  std::span<std::int32_t> tables{};
  FlightSink flight_log{};  // off unless set
  Memory memory = heap_memory();
};

struct AcquireOptions {
  std::uint64_t session = 0;  // names the chain that an agent works on; 0 is none. A hint for the policy only
  std::uint64_t now_ms = 0;   // by a clock of the engine's that never goes back; for retention that has times
  std::uint32_t grid_tokens =
      0;  // > 0: the hit ends at a multiple of this and holds only blocks computed on that grid
  std::uint32_t have_tokens =
      0;  // the engine holds this many leading tokens already (a resident): no loads for them
  std::uint32_t max_hit_tokens =
      ~std::uint32_t{0};  // the hit is no longer than this (who wants logits of the prompt: 0)
  bool reuse = true;      // false: match nothing and publish nothing (a measurement, a canary)
  bool publish = true;    // false: what is computed stays private to the lease
  /// For a request that waits in line: what is there for it is not evicted while the lease lives. Nothing is published,
  /// and neither the counters nor the policy hear of it (an LRU that has to pass it over meanwhile keeps it for longer).
  /// Release it when the request's own `acquire` has been called.
  bool announce = false;
};

/// Where a stretch of a prompt's tokens is.
enum class Presence : std::uint8_t { kReady, kPending, kUnknown };
struct ProbeRange {
  TokenRange tokens;
  Presence presence = Presence::kUnknown;
  Medium medium = Medium::kDevice;  // meaningful for kReady
};
/// Leading tokens that are ready, of what `probe` returned.
[[nodiscard]] constexpr std::uint32_t ready_tokens(std::span<const ProbeRange> ranges) noexcept {
  return ranges.empty() || ranges[0].presence != Presence::kReady ? 0 : ranges[0].tokens.end;
}

/// What `Lease::quote` found.
struct ReserveQuote {
  enum class Verdict : std::uint8_t {
    kFits,    // slots are free
    kEvicts,  // they are to be had by evicting
    kLater,   // not now: leases hold them, or did in the step that has not ended
    kNever,   // more than there are
  };
  Verdict verdict = Verdict::kFits;
  std::uint32_t slots = 0;    // wanted, in all pools
  std::uint32_t evicted = 0;  // kEvicts: of which by evicting as many blocks or shares
};

/// A sequence that goes on by one token in a step: see `Cache::decode`.
template <class Lease>
struct DecodeItem {
  Lease* lease = nullptr;
  TokenId token = 0;  // that was chosen, whose state the step computes
  Status status{};    // out: kOk, or why this sequence does not take part
};

/// What `Lease::refresh` found.
struct Progress {
  std::uint32_t ready_tokens = 0;    // usable now
  std::uint32_t pending_tokens = 0;  // behind them, being computed by somebody
  bool must_compute = true;          // nobody else computes what comes next: this lease has to
};

/// Both sides of the books, each counted from its own end. For tests and debugging: O(everything).
struct Audit {
  std::uint32_t slots, free, held, used;  // as the pool counts
  std::uint32_t tree_slots;               // found on blocks of the tree
  std::uint32_t lease_slots;              // held by leases, found in their tables
  std::uint32_t step_slots;               // held by loads, copies and stores that wait or are under way
  std::uint32_t holders;                  // of all slots, as the pool counts
  std::uint32_t pinned_runs, lease_pins;  // references in the tree, leases that hold one
  std::uint32_t ready_blocks;             // as the tree says
  std::uint32_t group_slots;              // of the first pool, held by groups that share it
  bool groups_balanced;                   // the same for the pools of all other groups
  [[nodiscard]] bool balanced() const noexcept {
    return free + held + used == slots && tree_slots + lease_slots + step_slots + group_slots == holders &&
           tree_slots == ready_blocks && pinned_runs == lease_pins && groups_balanced;
  }
  friend bool operator==(const Audit&, const Audit&) noexcept = default;
};

}  // namespace kvstem::inline v0
