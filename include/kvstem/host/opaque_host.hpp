// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A ready-made way to live in an engine whose state only its own calls can move (llama.cpp through its public API):
// cache, host-memory tier and residents joined. The engine lends four functions that move state (export a range of a
// sequence as bytes, import such bytes, share a range with another sequence, drop a range) and three that describe it;
// testing/digest_engine.hpp is a whole one. For an engine with a paged pool of its own use
// the Cache directly.
//
// What is reused, in this order: a RESIDENT (a sequence kept inside the engine, or one that still runs; shared token by
// token, no copy), then whole BLOCKS from host memory, then a FRONTIER (the tokens of a sequence behind its last whole
// block, kept as bytes). All three are proved by comparing tokens. So the next turn of a conversation computes its new
// tokens only, and of two requests that come together the second shares what the first has computed so far.
//
// Residents cost every decode step, so they have a budget of tokens, and a sequence becomes one on its second use: when
// it reused something itself. Committed blocks are exported between decodes, by `work`, at most `step_bytes` at a time;
// a sequence whose request ended is kept until its blocks are out (and is shared meanwhile, as a resident is). So call
// `work` once in every step, and when idle until it returns 0: `begin` needs a sequence that is not waiting.
//
// A request that waits in line: `probe` says how much of it is there now, for an order of the line; `announce` keeps that
// from being evicted until its turn comes. Several answers to one prompt: `fork` when the prompt is computed.
//
// Guarantees: a damaged or refused import is a miss from that block on. Nothing runs but inside your calls, on your
// thread. Nothing allocates after `create` (but open_scope).
// Threads: one, the engine's. Cost: begin is a match, the imports, and a look at each resident and frontier.
//
//   auto host = *OpaqueHost<MyEngine>::create(engine, {.host_bytes = 512 << 20, .requests = 4});
//   ScopeId scope = *host->open_scope(engine.scope());
//   auto a = host->begin({.prompt = {.scope = scope, .tokens = tokens}});
//   if (!a.ok()) return later(a.status());
//   for (std::uint32_t at = a->reused_tokens, n; at < tokens.size(); at += n) {
//     n = engine.prefill(a->sequence, tokens, at);
//     (void)host->computed(a->request, n, false);
//     host->work();
//   }
//   while (const auto token = engine.decode(a->sequence)) {
//     (void)host->append(a->request, {&*token, 1});            // its state is now in the sequence
//     host->work();
//   }
//   (void)host->end(a->request);
//   while (idle() && host->work() > 0) {}
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/memory.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/cache/cache.hpp"
#include "kvstem/model/kv_layout.hpp"
#include "kvstem/model/prompt.hpp"
#include "kvstem/tier/host_tier.hpp"

namespace kvstem::inline v0 {

struct EngineCapacity {
  std::uint32_t cells = 0;            // tokens of all sequences together
  std::uint32_t sequences = 0;        // ids are 0 <= id < sequences
  std::uint32_t sequence_tokens = 0;  // the longest sequence
  std::uint32_t groups = 1;           // of layers, each with state of its own
};

/// What an opaque engine lends. Group 0 is the only one for now. Calls must not throw.
template <class E>
concept OpaqueEngine = requires(E engine, const E view, SequenceId sequence, GroupId group, TokenRange range,
                                std::span<std::byte> out, std::span<const std::byte> in) {
  /// Bytes of an export of `range`; the same for every range of that length. Ranges are blocks, and parts of one.
  { view.range_bytes(group, range) } -> std::same_as<std::size_t>;
  /// Copies the state of `range` to `out` (exactly range_bytes).
  { engine.export_range(sequence, group, range, out) } -> std::same_as<Status>;
  /// Appends exported state to a sequence that ends where `range` begins: all or nothing.
  { engine.import_range(sequence, group, range, in) } -> std::same_as<Status>;
  /// Appends a range of the first sequence to the second, which ends where it begins. No state is copied.
  { engine.share_range(sequence, sequence, range) } -> std::same_as<Status>;
  /// Removes the tail from range.begin on (range.end is kToEnd); nothing, if the sequence ends before it. From 0 on it must
  /// not fail.
  { engine.drop_range(sequence, range) } -> std::same_as<Status>;
  /// Fingerprint of the representation: whatever must be equal for exported bytes to mean the same, build included.
  { view.describe() } -> std::convertible_to<std::string>;
  { view.capacity() } -> std::same_as<EngineCapacity>;
};

struct OpaqueHostOptions {
  std::uint32_t block_tokens = 32;
  std::size_t host_bytes = std::size_t{256} << 20;  // host memory for blocks
  std::uint32_t requests = 4;            // at once; the engine's other sequences may become residents
  std::uint32_t resident_tokens = 4096;  // cells that residents may hold together; 0: no residents
  std::uint32_t frontiers = 64;          // unfinished blocks that are kept
  std::uint32_t announcements = 16;      // at once
  std::size_t step_bytes = std::size_t{8} << 20;  // most bytes exported by one `work`
  std::uint32_t max_scopes = 64;
  std::uint32_t max_changes = 0;  // see CacheOptions
  KeyFunction key_function = xxh3_key_function();
  std::string_view secret{};
  FlightSink flight_log{};
  Memory memory = heap_memory();
};

struct OpaqueRequest {
  Prompt prompt{};
  std::uint64_t session = 0;  // an agent's chain; a newer turn replaces what an older one left. 0: none
  std::uint64_t now_ms = 0;   // see AcquireOptions
  std::uint32_t grid_tokens =
      0;  // > 0: reuse ends on this grid and takes only state computed on it (bitwise equal logits)
  bool reuse = true;    // false: compute everything
  bool publish = true;  // false: leave nothing behind
};

/// A request between begin and end. It must be ended or aborted; nothing else gives its place back.
struct OpaqueRequestId {
  std::uint32_t index = 0, generation = 0;
};

/// A prompt whose state is protected, between announce and withdraw.
struct AnnouncementId {
  std::uint32_t index = 0, generation = 0;
};

struct Admission {
  OpaqueRequestId request;
  SequenceId sequence = kNoSequence;  // the engine computes in this one, from position reused_tokens on
  std::uint32_t reused_tokens =
      0;  // already in the sequence; less than the prompt, so that one is left to compute (of a fork all)
  std::uint32_t from_resident = 0, from_host = 0, from_frontier = 0;  // their sum is reused_tokens
};

struct OpaqueHostStats {
  std::uint64_t requests = 0, prompt_tokens = 0;
  std::uint64_t resident_tokens = 0, host_tokens = 0, frontier_tokens = 0;  // reused, by source
  std::uint64_t computed_tokens = 0;                                        // prompt tokens that were not
  std::uint64_t appended_tokens = 0;
  std::uint64_t exported_bytes = 0, imported_bytes = 0, largest_step_bytes = 0;
  std::uint64_t failed_imports = 0, failed_exports = 0, failed_shares = 0;
  std::uint64_t residents_admitted = 0, residents_dropped = 0;
  std::uint64_t forks = 0;  // not among the requests
};

/// `Policy` says which blocks of host memory go first; see policy/eviction_policy.hpp for which there are.
template <OpaqueEngine Engine, EvictionPolicy Policy = Lru>
class OpaqueHost {
  using Cache = BasicCache<Policy>;
  using Lease = BasicLease<Policy>;

 public:
  /// The engine must outlive the host. kInvalidArgument names the option that is wrong; kExhausted: no memory;
  /// kUnsupported: more than one group.
  [[nodiscard]] static Result<std::unique_ptr<OpaqueHost>> create(Engine& engine,
                                                                  const OpaqueHostOptions& options) {
    const EngineCapacity capacity = engine.capacity();
    if (capacity.groups != 1)
      return Status(StatusCode::kUnsupported,
                    "this version keeps one group of full attention: the engine's other state would be lost");
    if (options.block_tokens == 0 || options.block_tokens > kMaxBlockTokens)
      return Status(StatusCode::kInvalidArgument, "OpaqueHostOptions::block_tokens must be 1 to 1024");
    if (options.requests == 0 || options.requests > capacity.sequences)
      return Status(StatusCode::kInvalidArgument,
                    "OpaqueHostOptions::requests must be 1 to the engine's sequences");
    const std::size_t block_bytes = engine.range_bytes(0, {0, options.block_tokens});
    if (block_bytes == 0 || options.host_bytes / block_bytes == 0)
      return Status(StatusCode::kInvalidArgument, "OpaqueHostOptions::host_bytes is less than one block");
    if (options.step_bytes < block_bytes)
      return Status(StatusCode::kInvalidArgument, "OpaqueHostOptions::step_bytes is less than one block");
    std::unique_ptr<OpaqueHost> host(new (std::nothrow) OpaqueHost(engine, options, capacity, block_bytes));
    if (host == nullptr) return Status(StatusCode::kExhausted, "no memory for the host");
    if (const Status status = host->take(); !status.ok()) return status;
    return host;
  }

  OpaqueHost(const OpaqueHost&) = delete;
  OpaqueHost& operator=(const OpaqueHost&) = delete;

  /// As Cache::open_scope.
  [[nodiscard]] Result<ScopeId> open_scope(const Scope& scope) { return cache_->open_scope(scope); }

  /// Finds the longest part of the prompt whose state is kept, and brings it into a sequence of its own. Errors: those of
  /// Cache::acquire; kExhausted also when `requests` are running, or all sequences still wait for `work`.
  [[nodiscard]] Result<Admission> begin(const OpaqueRequest& request) noexcept {
    const std::uint32_t index = free_request();
    if (index == options_.requests)
      return Status(StatusCode::kExhausted,
                    "all requests are running: end one, or raise OpaqueHostOptions::requests");
    const auto tokens = static_cast<std::uint32_t>(request.prompt.tokens.size());
    const std::uint32_t most = tokens == 0 ? 0 : tokens - 1;

    if (request.prompt.tokens.size() > capacity_.sequence_tokens)
      return Status(StatusCode::kOutOfRange, "the prompt is longer than the engine's longest sequence");
    // The donor is found first, so that it is not the resident that makes way.
    const Found donor = request.reuse ? best_donor(request.prompt, request.grid_tokens, most) : Found{};
    SequenceId sequence = free_sequence(donor.tokens > 0 ? donor.index : capacity_.sequences);
    // Where the donor holds the only sequence there is, the request goes on in it.
    const bool takes_over =
        sequence == kNoSequence && donor.tokens > 0 && sequences_[donor.index].state == Known::kResident;
    if (takes_over) sequence = static_cast<SequenceId>(donor.index);
    if (sequence == kNoSequence)
      return Status(StatusCode::kExhausted,
                    "all sequences wait for their exports: call work() and try again");

    std::uint32_t shared = 0;
    if (takes_over) {
      ++stats_.residents_dropped;
      if (engine_->drop_range(sequence, {donor.tokens, kToEnd}).ok())
        shared = donor.tokens;
      else
        forget(donor.index);
    } else if (donor.tokens > 0) {
      if (engine_->share_range(static_cast<SequenceId>(donor.index), sequence, {0, donor.tokens}).ok()) {
        shared = donor.tokens;
        sequences_[donor.index].used = ++clock_;
      } else {
        ++stats_.failed_shares;
        (void)engine_->drop_range(sequence, {0, kToEnd});
      }
    }
    auto lease = cache_->acquire(request.prompt, {.session = request.session,
                                                  .now_ms = request.now_ms,
                                                  .grid_tokens = request.grid_tokens,
                                                  .have_tokens = shared,
                                                  .reuse = request.reuse,
                                                  .publish = request.publish});
    if (!lease.ok()) {
      forget(static_cast<std::uint32_t>(sequence));
      return lease.status();
    }

    Request& r = requests_[index];
    Known& known = sequences_[sequence];
    known = {};
    known.state = Known::kRunning;
    known.used = ++clock_;
    known.lease = std::move(*lease);
    remember(known, sequence_tokens_of(sequence), request);
    r = {.active = true, .publish = request.publish, .generation = r.generation + 1, .sequence = sequence};

    // Blocks are imported whole, so what was shared of a block that will be imported goes first.
    const std::uint32_t partial = shared < known.lease.matched_tokens() ? shared % options_.block_tokens : 0;
    if (partial > 0 && !engine_->drop_range(sequence, {shared - partial, kToEnd}).ok()) {
      (void)abort({index, r.generation});
      return Status(StatusCode::kUnavailable, "the engine would not drop the tail of a sequence");
    }
    Admission admission{.request = {index, r.generation},
                        .sequence = sequence,
                        .reused_tokens = 0,
                        .from_resident = shared - partial,
                        .from_host = 0,
                        .from_frontier = 0};
    std::uint32_t have = load_blocks(known, sequence, admission);
    if (request.grid_tokens > 0 && have % request.grid_tokens != 0) {
      // An import failed between two grid points. Its block is gone from the cache, so the next match is shorter.
      (void)abort({index, r.generation});
      return begin(request);
    }
    if (request.reuse && request.grid_tokens == 0)
      have = load_frontier(sequence, request, have, most, admission);
    if (have == kToEnd) {
      // More is in the sequence than is wanted, and would not go. The frontier that it came from is gone.
      (void)abort({index, r.generation});
      return begin(request);
    }
    known.grid_tokens = request.grid_tokens > 0 ? have : std::min(donor.grid_tokens, shared - partial);
    if (have > known.lease.committed_tokens())
      (void)known.lease.commit(have - known.lease.committed_tokens(), kNow, have <= known.grid_tokens);
    known.have = have;
    known.reused = have > 0;
    admission.reused_tokens = have;

    ++stats_.requests;
    stats_.prompt_tokens += tokens;
    stats_.resident_tokens += admission.from_resident;
    stats_.host_tokens += admission.from_host;
    stats_.frontier_tokens += admission.from_frontier;
    return admission;
  }

  /// A second answer to the same prompt: a request that starts with all that this one has computed and appended. Nothing is
  /// left to compute, so the engine chooses its next token from the logits that it has. It is of the same session.
  /// kWrongState before the prompt is computed; kExhausted as `begin`; kUnavailable if the engine would not share.
  [[nodiscard]] Result<Admission> fork(OpaqueRequestId id) noexcept {
    const Request* r = find(id);
    if (r == nullptr) return stale();
    if (sequences_[r->sequence].have < sequences_[r->sequence].prompt_tokens)
      return Status(StatusCode::kWrongState, "the prompt is not computed yet: fork when it is");
    const std::uint32_t index = free_request();
    if (index == options_.requests)
      return Status(StatusCode::kExhausted,
                    "all requests are running: end one, or raise OpaqueHostOptions::requests");
    const SequenceId sequence = free_sequence(capacity_.sequences);
    if (sequence == kNoSequence)
      return Status(StatusCode::kExhausted,
                    "all sequences wait for their exports: call work() and try again");
    const Known& from = sequences_[r->sequence];
    if (!engine_->share_range(r->sequence, sequence, {0, from.have}).ok()) {
      ++stats_.failed_shares;
      (void)engine_->drop_range(sequence, {0, kToEnd});
      return Status(StatusCode::kUnavailable, "the engine would not share the sequence");
    }
    auto lease = sequences_[r->sequence].lease.fork();
    if (!lease.ok()) {
      (void)engine_->drop_range(sequence, {0, kToEnd});
      return lease.status();
    }
    Known& known = sequences_[sequence];
    known = {};
    known.state = Known::kRunning;
    known.used = ++clock_;
    known.lease = std::move(*lease);
    known.reused = from.reused;
    known.have = from.have;
    known.grid_tokens = from.grid_tokens;
    copy_identity(from, sequence_tokens_of(r->sequence), known, sequence_tokens_of(sequence));
    requests_[index] = {.active = true,
                        .publish = r->publish,
                        .generation = requests_[index].generation + 1,
                        .sequence = sequence};
    ++stats_.forks;
    return Admission{.request = {index, requests_[index].generation},
                     .sequence = sequence,
                     .reused_tokens = known.have,
                     .from_resident = known.have,
                     .from_host = 0,
                     .from_frontier = 0};
  }

  /// How many leading tokens of the prompt `begin` would find now; with a grid at most that many. Changes nothing. 0 for a
  /// prompt that it would refuse.
  [[nodiscard]] std::uint32_t probe(const OpaqueRequest& request) const noexcept {
    const Prompt& prompt = request.prompt;
    if (!request.reuse || !reader_ || prompt.tokens.empty() ||
        prompt.tokens.size() > capacity_.sequence_tokens)
      return 0;
    const auto most = static_cast<std::uint32_t>(prompt.tokens.size()) - 1;
    ProbeRange ranges[3];
    const auto found = cache_->probe(*reader_, prompt, ranges);
    if (!found.ok()) return 0;
    const std::uint32_t unit = std::max(options_.block_tokens, request.grid_tokens);
    std::uint32_t tokens = std::min(ready_tokens(*found), most) / unit * unit;
    tokens = std::max(tokens, best_donor(prompt, request.grid_tokens, most).tokens);
    if (request.grid_tokens == 0)
      if (const std::uint32_t f = best_frontier(prompt, tokens, most); f < options_.frontiers)
        tokens = std::min(common(frontiers_[f], frontier_tokens_of(f), prompt), most);
    return tokens;
  }

  /// Keeps what is there for a prompt from being evicted until `withdraw`. For a request that waits: announce it when it
  /// comes, and withdraw right after its `begin`. What others compute meanwhile is not covered: withdraw and announce
  /// again. The request needs no announcement to find its state, so errors (those of `begin`; kExhausted beyond
  /// `announcements` at once) may be ignored.
  [[nodiscard]] Result<AnnouncementId> announce(const OpaqueRequest& request) noexcept {
    std::uint32_t index = 0;
    while (index < options_.announcements && announced_[index].lease.live()) ++index;
    if (index == options_.announcements)
      return Status(StatusCode::kExhausted,
                    "too many announcements: withdraw one, or raise OpaqueHostOptions::announcements");
    if (request.prompt.tokens.size() > capacity_.sequence_tokens)
      return Status(StatusCode::kOutOfRange, "the prompt is longer than the engine's longest sequence");
    auto lease = cache_->acquire(request.prompt, {.grid_tokens = request.grid_tokens,
                                                  .have_tokens = kToEnd,
                                                  .reuse = request.reuse,
                                                  .publish = false,
                                                  .announce = true});
    if (!lease.ok()) return lease.status();
    announced_[index].lease = std::move(*lease);
    if (request.reuse && !request.prompt.tokens.empty()) {
      const auto most = static_cast<std::uint32_t>(request.prompt.tokens.size()) - 1;
      const Found donor = best_donor(request.prompt, request.grid_tokens, most);
      if (donor.tokens > 0) sequences_[donor.index].used = ++clock_;
    }
    return AnnouncementId{index, ++announced_[index].generation};
  }
  /// kStale: there is no such announcement (any more).
  Status withdraw(AnnouncementId id) noexcept {
    if (id.index >= options_.announcements || announced_[id.index].generation != id.generation ||
        !announced_[id.index].lease.live())
      return {StatusCode::kStale, "this announcement was withdrawn already"};
    return announced_[id.index].lease.release();
  }

  /// The next n tokens of the prompt are now in the sequence. `on_grid`: computed in chunks that begin and end at multiples
  /// of the host's grid (the last may end with the prompt). kOutOfRange beyond the prompt, kStale after the end.
  Status computed(OpaqueRequestId id, std::uint32_t n, bool on_grid) noexcept {
    const Request* r = find(id);
    if (r == nullptr) return stale();
    Known& known = sequences_[r->sequence];
    if (n > known.prompt_tokens - std::min(known.have, known.prompt_tokens))
      return {StatusCode::kOutOfRange,
              "more tokens computed than the prompt has: decoded tokens go to append"};
    if (const Status status = known.lease.commit(n, kNow, on_grid); !status.ok()) return status;
    if (on_grid && known.grid_tokens == known.have) known.grid_tokens = known.have + n;
    known.have += n;
    stats_.computed_tokens += n;
    return {};
  }

  /// Decoded tokens whose state is now in the sequence, in order. kOutOfRange outside the vocabulary or beyond the
  /// engine's longest sequence (nothing is appended then); kWrongState while prompt tokens are left to compute.
  Status append(OpaqueRequestId id, std::span<const TokenId> tokens) noexcept {
    const Request* r = find(id);
    if (r == nullptr) return stale();
    Known& known = sequences_[r->sequence];
    if (known.have < known.prompt_tokens)
      return {StatusCode::kWrongState, "the prompt is not computed yet: report it with computed first"};
    if (const Status status = known.lease.append(tokens); !status.ok()) return status;
    const auto n = static_cast<std::uint32_t>(tokens.size());
    if (const Status status = known.lease.commit(n); !status.ok()) return status;
    std::copy(tokens.begin(), tokens.end(), sequence_tokens_of(r->sequence) + known.length);
    known.length += n;
    known.have += n;
    stats_.appended_tokens += n;
    return {};
  }

  /// Between decodes: exports committed blocks, at most step_bytes. Returns the bytes exported; 0 when nothing is left.
  std::size_t work() noexcept {
    std::size_t used = std::exchange(ended_bytes_, 0);
    const std::size_t before = used;
    for (std::uint32_t s = 0; s < capacity_.sequences; ++s)
      if (sequences_[s].state == Known::kDraining && sequences_[s].frontier_due) keep_frontier(s, used);
    StepEntry entries[kMaxStores];
    for (std::size_t left; (left = (options_.step_bytes - used) / block_bytes_) > 0;) {
      const auto taken = cache_->take_step({entries, std::min(left, kMaxStores)});
      if (taken.empty()) break;
      for (const StepEntry& e : taken) used += store(e);
    }
    stats_.largest_step_bytes = std::max<std::uint64_t>(stats_.largest_step_bytes, used);
    for (std::uint32_t s = 0; s < capacity_.sequences; ++s) settle(s);
    return used - before;
  }

  /// The turn is over. Its unfinished block is kept as a frontier; the sequence becomes a resident or goes, once its blocks
  /// are out. kStale the second time.
  Status end(OpaqueRequestId id, Retention retention = {}) noexcept {
    Request* r = find(id);
    if (r == nullptr) return stale();
    const SequenceId sequence = r->sequence;
    Known& known = sequences_[sequence];
    r->active = false;
    known.length = std::min(known.length, known.have);
    known.retention = retention;
    known.stays = r->publish && known.reused && retention.keep != Keep::kCold &&
                  known.length <= options_.resident_tokens;
    known.used = ++clock_;
    known.state = Known::kDraining;
    known.frontier_due = r->publish;
    if (r->publish) keep_frontier(static_cast<std::uint32_t>(sequence), ended_bytes_);
    settle(static_cast<std::uint32_t>(sequence));
    return {};
  }

  /// The request failed: its sequence is dropped, with what was not exported yet.
  Status abort(OpaqueRequestId id) noexcept {
    Request* r = find(id);
    if (r == nullptr) return stale();
    r->active = false;
    (void)sequences_[r->sequence].lease.abort();
    forget(static_cast<std::uint32_t>(r->sequence));
    return {};
  }

  /// Drops the resident that was not used for longest; false if there is none. For an engine that runs out of cells.
  bool drop_resident() noexcept {
    const std::uint32_t victim = oldest_resident(capacity_.sequences);
    if (victim == capacity_.sequences) return false;
    forget(victim);
    ++stats_.residents_dropped;
    return true;
  }

  [[nodiscard]] const OpaqueHostStats& stats() const noexcept { return stats_; }
  [[nodiscard]] Cache& cache() noexcept { return *cache_; }
  [[nodiscard]] HostTier& tier() noexcept { return tier_; }
  [[nodiscard]] std::size_t block_bytes() const noexcept { return block_bytes_; }
  [[nodiscard]] std::uint32_t block_tokens() const noexcept { return options_.block_tokens; }
  /// Tokens that residents hold now.
  [[nodiscard]] std::uint32_t resident_tokens() const noexcept {
    std::uint32_t tokens = 0;
    for (std::uint32_t s = 0; s < capacity_.sequences; ++s)
      if (sequences_[s].state == Known::kResident) tokens += sequences_[s].length;
    return tokens;
  }
  /// Committed blocks that are not exported yet.
  [[nodiscard]] std::uint32_t unstored_blocks() const noexcept {
    std::uint32_t blocks = 0;
    for (std::uint32_t s = 0; s < capacity_.sequences; ++s) blocks += sequences_[s].lease.unstored_blocks();
    return blocks;
  }

 private:
  static constexpr std::size_t kMaxStores = 64;
  static constexpr std::uint32_t kMaxMarks = 32;  // a sequence with more is not kept as resident or frontier

  /// What a sequence (or a frontier) holds, down to the token.
  struct Known {
    enum State : std::uint8_t { kFree, kRunning, kDraining, kResident };
    State state = kFree;
    bool stays = false;  // becomes a resident when drained
    bool reused = false;
    bool keepable = true;  // its marks are all remembered
    bool frontier_due = false;
    std::uint32_t scope = 0;
    std::uint32_t prompt_tokens = 0;
    std::uint32_t length = 0;       // tokens remembered
    std::uint32_t have = 0;         // tokens whose state is there
    std::uint32_t begin = 0;        // frontier: its first token
    std::uint32_t grid_tokens = 0;  // leading ones that were computed on the grid
    std::uint32_t extras = 0, changes = 0;
    std::uint64_t session = 0;
    std::uint64_t used = 0;
    Retention retention{};
    Extra extra[kMaxMarks];
    ScopeChange change[kMaxMarks];
    Lease lease;
  };

  struct Announced {
    Lease lease;
    std::uint32_t generation = 0;
  };

  struct Request {
    bool active = false;
    bool publish = true;
    std::uint32_t generation = 0;
    SequenceId sequence = kNoSequence;
  };

  struct Found {
    std::uint32_t index = 0;
    std::uint32_t tokens = 0;
    std::uint32_t grid_tokens = 0;
  };

  OpaqueHost(Engine& engine, const OpaqueHostOptions& options, EngineCapacity capacity,
             std::size_t block_bytes) noexcept
      : engine_(&engine), options_(options), capacity_(capacity), block_bytes_(block_bytes) {}

  [[nodiscard]] Status take() {
    const Representation representation{.dtype = {},
                                        .layout = {},
                                        .head_split = {},
                                        .block_tokens = options_.block_tokens,
                                        .engine = engine_->describe()};
    const BlockKey form = fingerprint(representation);
    const std::size_t blocks = std::min<std::size_t>(options_.host_bytes / block_bytes_, 1u << 29);
    auto cache =
        Cache::create({.block_tokens = options_.block_tokens,
                       .slots = static_cast<std::uint32_t>(blocks),
                       .medium = Medium::kHost,
                       .fill = SlotFill::kByStep,
                       .max_leases = capacity_.sequences + options_.announcements,
                       .max_lease_tokens = std::max(capacity_.sequence_tokens, options_.block_tokens),
                       .max_scopes = options_.max_scopes,
                       .max_changes = options_.max_changes,
                       .key_function = options_.key_function,
                       .secret = options_.secret,
                       .flight_log = options_.flight_log,
                       .memory = options_.memory});
    options_.secret = {};
    if (!cache.ok()) return cache.status();
    cache_ = std::move(*cache);
    auto reader = cache_->register_reader();
    if (!reader.ok()) return reader.status();
    reader_.emplace(std::move(*reader));
    if (const Status s = tier_.take(options_.memory, static_cast<std::uint32_t>(blocks), block_bytes_, form);
        !s.ok())
      return s;
    if (options_.frontiers > 0)
      if (const Status s = frontier_tier_.take(options_.memory, options_.frontiers, block_bytes_, form);
          !s.ok())
        return s;
    const std::size_t known = std::size_t{capacity_.sequences} + options_.frontiers;
    if (!sequences_.take(options_.memory, capacity_.sequences) ||
        !frontiers_.take(options_.memory, options_.frontiers) ||
        !requests_.take(options_.memory, options_.requests) ||
        !announced_.take(options_.memory, options_.announcements) ||
        !tokens_.take(options_.memory, known * capacity_.sequence_tokens))
      return {StatusCode::kExhausted, "no memory for the host: lower frontiers or the engine's sequences"};
    return {};
  }

  static Status stale() noexcept { return {StatusCode::kStale, "this request ended: begin a new one"}; }

  [[nodiscard]] Request* find(OpaqueRequestId id) noexcept {
    if (id.index >= options_.requests) return nullptr;
    Request& r = requests_[id.index];
    return r.active && r.generation == id.generation ? &r : nullptr;
  }
  [[nodiscard]] std::uint32_t free_request() const noexcept {
    std::uint32_t i = 0;
    while (i < options_.requests && requests_[i].active) ++i;
    return i;
  }

  [[nodiscard]] TokenId* sequence_tokens_of(SequenceId sequence) noexcept {
    return tokens_.data() + static_cast<std::size_t>(sequence) * capacity_.sequence_tokens;
  }
  [[nodiscard]] const TokenId* sequence_tokens_of(SequenceId sequence) const noexcept {
    return tokens_.data() + static_cast<std::size_t>(sequence) * capacity_.sequence_tokens;
  }
  [[nodiscard]] TokenId* frontier_tokens_of(std::uint32_t frontier) noexcept {
    return sequence_tokens_of(static_cast<SequenceId>(capacity_.sequences + frontier));
  }
  [[nodiscard]] const TokenId* frontier_tokens_of(std::uint32_t frontier) const noexcept {
    return sequence_tokens_of(static_cast<SequenceId>(capacity_.sequences + frontier));
  }

  /// What a sequence holds, of another that holds the same.
  static void copy_identity(const Known& from, const TokenId* from_tokens, Known& to,
                            TokenId* tokens) noexcept {
    to.scope = from.scope;
    to.session = from.session;
    to.prompt_tokens = from.prompt_tokens;
    to.length = from.have;
    to.keepable = from.keepable;
    to.extras = from.extras;
    to.changes = from.changes;
    std::copy_n(from.extra, from.extras, to.extra);
    std::copy_n(from.change, from.changes, to.change);
    std::copy_n(from_tokens, from.have, tokens);
  }

  void remember(Known& known, TokenId* tokens, const OpaqueRequest& request) noexcept {
    const Prompt& p = request.prompt;
    known.scope = static_cast<std::uint32_t>(p.scope);
    known.session = request.session;
    known.prompt_tokens = known.length = static_cast<std::uint32_t>(p.tokens.size());
    std::copy(p.tokens.begin(), p.tokens.end(), tokens);
    known.keepable = p.extras.size() <= kMaxMarks && p.changes.size() <= kMaxMarks;
    if (!known.keepable) return;
    known.extras = static_cast<std::uint32_t>(p.extras.size());
    known.changes = static_cast<std::uint32_t>(p.changes.size());
    std::copy(p.extras.begin(), p.extras.end(), known.extra);
    std::copy(p.changes.begin(), p.changes.end(), known.change);
  }

  /// Leading tokens that a known sequence and a prompt have in common, marks included.
  [[nodiscard]] static std::uint32_t common(const Known& known, const TokenId* tokens,
                                            const Prompt& prompt) noexcept {
    if (known.scope != static_cast<std::uint32_t>(prompt.scope) || !known.keepable) return 0;
    const auto most = std::min<std::size_t>(known.length, prompt.tokens.size());
    const auto end = std::mismatch(tokens, tokens + most, prompt.tokens.begin()).first;
    auto same = static_cast<std::uint32_t>(end - tokens);
    const auto cut = [&same](const auto* own, std::size_t own_count, const auto& theirs) {
      for (std::size_t i = 0; i < std::max(own_count, theirs.size()); ++i) {
        if (i < own_count && i < theirs.size() && own[i] == theirs[i]) continue;
        if (i < own_count) same = std::min(same, own[i].position);
        if (i < theirs.size()) same = std::min(same, theirs[i].position);
        return;
      }
    };
    cut(known.extra, known.extras, prompt.extras);
    cut(known.change, known.changes, prompt.changes);
    return same;
  }

  /// The sequence that shares most with the prompt, whether its request runs or ended; of equals the one used last, so that
  /// what all share keeps no idle resident alive.
  [[nodiscard]] Found best_donor(const Prompt& prompt, std::uint32_t grid_tokens,
                                 std::uint32_t most) const noexcept {
    Found best;
    for (std::uint32_t s = 0; s < capacity_.sequences; ++s) {
      const Known& known = sequences_[s];
      if (known.state == Known::kFree) continue;
      std::uint32_t same =
          std::min({common(known, sequence_tokens_of(static_cast<SequenceId>(s)), prompt), known.have, most});
      if (grid_tokens > 0) {
        same = std::min(same, known.grid_tokens);
        same -= same % grid_tokens;
      }
      if (same > best.tokens || (same > 0 && same == best.tokens && known.used > sequences_[best.index].used))
        best = {s, same, known.grid_tokens};
    }
    return best;
  }

  /// The frontier that continues `have` tokens and shares most with the prompt; `frontiers` if none shares more.
  [[nodiscard]] std::uint32_t best_frontier(const Prompt& prompt, std::uint32_t have,
                                            std::uint32_t most) const noexcept {
    std::uint32_t best = options_.frontiers, best_tokens = have;
    for (std::uint32_t f = 0; f < options_.frontiers; ++f) {
      const Known& known = frontiers_[f];
      if (known.state == Known::kFree || known.begin != have) continue;
      const std::uint32_t same = std::min(common(known, frontier_tokens_of(f), prompt), most);
      if (same > best_tokens) best = f, best_tokens = same;
    }
    return best;
  }

  [[nodiscard]] std::uint32_t oldest_resident(std::uint32_t except) const noexcept {
    std::uint32_t oldest = capacity_.sequences;
    for (std::uint32_t s = 0; s < capacity_.sequences; ++s)
      if (sequences_[s].state == Known::kResident && s != except &&
          (oldest == capacity_.sequences || sequences_[s].used < sequences_[oldest].used))
        oldest = s;
    return oldest;
  }

  /// An empty sequence; the resident that was not used for longest makes way if need be, but not the donor.
  [[nodiscard]] SequenceId free_sequence(std::uint32_t donor) noexcept {
    for (std::uint32_t s = 0; s < capacity_.sequences; ++s)
      if (sequences_[s].state == Known::kFree) return static_cast<SequenceId>(s);
    const std::uint32_t victim = oldest_resident(donor);
    if (victim == capacity_.sequences) return kNoSequence;
    forget(victim);
    ++stats_.residents_dropped;
    return static_cast<SequenceId>(victim);
  }

  /// Imports the matched blocks behind what was shared. Returns the tokens that are in the sequence then.
  [[nodiscard]] std::uint32_t load_blocks(Known& known, SequenceId sequence, Admission& admission) noexcept {
    const std::uint32_t block = options_.block_tokens;
    std::uint32_t have = admission.from_resident;
    if (known.lease.matched_tokens() <= have) return have;
    StepEntry entries[kMaxStores];
    for (Status status; status.ok();) {
      const auto loads = cache_->take_loads(known.lease, entries);
      if (loads.empty()) break;
      for (const StepEntry& e : loads) {
        // Behind a block that failed nothing is imported, but every load is reported.
        if (status.ok()) {
          const auto bytes = tier_.read(e.slot, e.key);
          status = bytes.status();
          if (bytes.ok())
            status = engine_->import_range(sequence, 0, {e.block * block, (e.block + 1) * block}, *bytes);
          if (status.ok()) {
            stats_.imported_bytes += bytes->size();
            have += block;
          } else {
            ++stats_.failed_imports;
          }
        }
        (void)cache_->complete({e, status});
      }
    }
    admission.from_host = have - admission.from_resident;
    return have;
  }

  /// Imports the frontier that continues what is in the sequence and shares most with the prompt. Returns the tokens that are
  /// in the sequence then; kToEnd if the engine left more in it.
  [[nodiscard]] std::uint32_t load_frontier(SequenceId sequence, const OpaqueRequest& request,
                                            std::uint32_t have, std::uint32_t most,
                                            Admission& admission) noexcept {
    const std::uint32_t best = best_frontier(request.prompt, have, most);
    if (best == options_.frontiers) return have;
    Known& known = frontiers_[best];
    const std::uint32_t best_tokens = std::min(common(known, frontier_tokens_of(best), request.prompt), most);
    const auto bytes = frontier_tier_.read(best, {known.used, best});
    const bool imported = bytes.ok() && engine_->import_range(sequence, 0, {have, known.length}, *bytes).ok();
    if (!imported ||
        (best_tokens < known.length && !engine_->drop_range(sequence, {best_tokens, kToEnd}).ok())) {
      ++stats_.failed_imports;
      known.state = Known::kFree;
      frontier_tier_.drop(best);
      // An import that failed left nothing; a tail that would not go is no reason to keep what came with it.
      return !imported || engine_->drop_range(sequence, {have, kToEnd}).ok() ? have : kToEnd;
    }
    stats_.imported_bytes += bytes->size();
    admission.from_frontier = best_tokens - have;
    return best_tokens;
  }

  /// Exports what lies behind the last whole block, in place of what an older turn of the session left. Still due if it
  /// does not fit into the step, of which `used` bytes are used.
  void keep_frontier(std::uint32_t s, std::size_t& used) noexcept {
    Known& from = sequences_[s];
    const std::uint32_t begin = from.have - from.have % options_.block_tokens;
    const std::size_t bytes = engine_->range_bytes(0, {begin, from.have});
    const bool wanted = options_.frontiers > 0 && begin < from.have && from.keepable &&
                        from.have == from.length && bytes <= block_bytes_;
    if (wanted && bytes > options_.step_bytes - used) return;
    from.frontier_due = false;
    if (!wanted) return;
    const auto sequence = static_cast<SequenceId>(s);
    std::uint32_t place = 0;
    const auto older = [](const Known& a, const Known& b) {
      return a.state == Known::kFree || (b.state != Known::kFree && a.used < b.used);
    };
    for (std::uint32_t f = 1; f < options_.frontiers; ++f)
      if (older(frontiers_[f], frontiers_[place])) place = f;
    for (std::uint32_t f = 0; f < options_.frontiers && from.session != 0; ++f)
      if (frontiers_[f].state != Known::kFree && frontiers_[f].session == from.session &&
          std::equal(frontier_tokens_of(f),
                     frontier_tokens_of(f) + std::min(frontiers_[f].length, from.length),
                     sequence_tokens_of(sequence)))
        place = f;

    Known& known = frontiers_[place];
    known.state = Known::kFree;
    const auto room = frontier_tier_.stage(place);
    if (!room.ok() || !engine_->export_range(sequence, 0, {begin, from.have}, room->first(bytes)).ok()) {
      ++stats_.failed_exports;
      return;
    }
    const std::uint64_t name = ++clock_;
    (void)frontier_tier_.seal(place, {name, place}, bytes);
    used += bytes;
    stats_.exported_bytes += bytes;
    known.state = Known::kResident;
    known.keepable = true;
    known.scope = from.scope;
    known.session = from.session;
    known.length = from.have;
    known.begin = begin;
    known.used = name;
    known.extras = from.extras;
    known.changes = from.changes;
    std::copy_n(from.extra, from.extras, known.extra);
    std::copy_n(from.change, from.changes, known.change);
    std::copy_n(sequence_tokens_of(sequence), from.have, frontier_tokens_of(place));
  }

  /// Carries out one store of a step. Returns the bytes exported.
  std::size_t store(const StepEntry& e) noexcept {
    std::uint32_t s = 0;
    while (s < capacity_.sequences && !(sequences_[s].lease.live() && sequences_[s].lease.index() == e.lease))
      ++s;
    Status status{StatusCode::kStale, "the sequence is gone"};
    if (s < capacity_.sequences) {
      const auto room = tier_.stage(e.slot);
      const std::uint32_t begin = e.block * options_.block_tokens;
      status = room.status();
      if (room.ok())
        status = engine_->export_range(static_cast<SequenceId>(s), 0, {begin, begin + options_.block_tokens},
                                       room->first(block_bytes_));
      if (status.ok()) status = tier_.seal(e.slot, e.key, block_bytes_);
    }
    (void)cache_->complete({e, status});
    if (!status.ok()) {
      ++stats_.failed_exports;
      return 0;
    }
    stats_.exported_bytes += block_bytes_;
    return block_bytes_;
  }

  /// Once all blocks of an ended request's sequence are out, it becomes a resident, or goes.
  void settle(std::uint32_t s) noexcept {
    Known& known = sequences_[s];
    if (known.state != Known::kDraining || known.frontier_due || known.lease.unstored_blocks() > 0) return;
    (void)known.lease.release(known.retention);
    if (!known.stays || options_.resident_tokens == 0) {
      forget(s);
      return;
    }
    // A resident that is a part of this one is of no more use.
    for (std::uint32_t other = 0; other < capacity_.sequences; ++other) {
      const Known& o = sequences_[other];
      if (other == s || o.state != Known::kResident || o.scope != known.scope || o.length > known.length)
        continue;
      const Prompt prompt{.scope = ScopeId{known.scope},
                          .tokens = {sequence_tokens_of(static_cast<SequenceId>(s)), known.length},
                          .extras = {known.extra, known.extras},
                          .changes = {known.change, known.changes}};
      if (common(o, sequence_tokens_of(static_cast<SequenceId>(other)), prompt) == o.length) forget(other);
    }
    known.state = Known::kResident;
    ++stats_.residents_admitted;
    while (resident_tokens() > options_.resident_tokens && drop_resident()) {
    }
  }

  /// The sequence is empty from now on. Its lease ends as aborted if it still runs.
  void forget(std::uint32_t s) noexcept {
    (void)engine_->drop_range(static_cast<SequenceId>(s), {0, kToEnd});
    sequences_[s] = Known{};
  }

  Engine* engine_;
  OpaqueHostOptions options_;
  EngineCapacity capacity_;
  std::size_t block_bytes_;
  std::unique_ptr<Cache> cache_;
  mutable std::optional<typename Cache::Reader> reader_;
  HostTier tier_;
  HostTier frontier_tier_;
  FixedArray<Known> sequences_;  // by sequence id; their leases must go before the cache
  FixedArray<Known> frontiers_;
  FixedArray<Request> requests_;
  FixedArray<Announced> announced_;
  FixedArray<TokenId> tokens_;
  OpaqueHostStats stats_;
  std::uint64_t clock_ = 0;      // counts uses
  std::size_t ended_bytes_ = 0;  // exported by `end` since the last work
};

}  // namespace kvstem::inline v0
