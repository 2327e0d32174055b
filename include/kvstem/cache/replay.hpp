// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Runs a flight log again. The cache that it runs in was created with the same sizes and IndexMode::kNothing: it has no
// tokens, and every question about them is answered from the log. With a flight log of its own it writes the same bytes
// again, up to the first record that its code would decide differently; that is the test.
//
//   CacheOptions options = as_recorded;
//   options.replayed = options.mode;
//   options.mode = IndexMode::kNothing;
//   options.flight_log = into(again);
//   auto cache = *Cache::create(options);
//   if (!replay(log, *cache).ok() || again != log) return another_decision();
//
// Not for measuring speed (comparisons cost nothing here), nor for a log of another version.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kvstem/cache/cache.hpp"
#include "kvstem/observe/flight_log.hpp"

namespace kvstem::inline v0 {

template <EvictionPolicy Policy>
Status BasicCache<Policy>::replay_next(FlightReader& log) noexcept {
  constexpr Status kNonsense{StatusCode::kCorrupt,
                             "the flight log does not fit this cache: create it as it was recorded"};
  if (options_.mode != IndexMode::kNothing)
    return {StatusCode::kWrongState, "replay needs a cache of IndexMode::kNothing"};
  const auto code = log.get<std::uint8_t>();
  const auto u32 = [&log] { return log.get<std::uint32_t>(); };
  const auto point = [&log] {
    Point p;
    p.timeline = log.get<std::uint32_t>();
    p.value = log.get<std::uint64_t>();
    return p;
  };
  // Calls on a lease begin with its number and generation.
  const auto lease_call = [&](auto&& fn) {
    const std::uint32_t index = u32(), generation = u32();
    Lease lease(this, index, generation);
    const Status status = lease.live() ? fn(lease, index) : kNonsense;
    lease.cache_ = nullptr;  // whoever held it in the recorded run still does
    return status;
  };
  replaying_ = &log;
  Status status;
  switch (static_cast<FlightOp>(code)) {
    case FlightOp::kScope: {
      status = add_scope(log.get<BlockKey>(), 0).status();
      break;
    }
    case FlightOp::kAcquire: {
      AcquireShape shape{};
      shape.scope = u32();
      shape.tokens = u32();
      shape.how.session = log.get<std::uint64_t>();
      shape.how.now_ms = log.get<std::uint64_t>();
      shape.how.grid_tokens = u32();
      shape.how.have_tokens = u32();
      shape.how.max_hit_tokens = u32();
      shape.how.reuse = u32() != 0;
      const std::uint32_t flags = u32();
      shape.how.publish = (flags & 1) != 0;
      shape.how.announce = (flags & 2) != 0;
      const std::uint32_t lease = free_lease();
      if (lease == options_.max_leases || shape.scope >= scope_count_.load(std::memory_order_relaxed) ||
          shape.tokens > options_.max_lease_tokens) {
        status = kNonsense;
        break;
      }
      log_acquire(shape);
      const auto admit = [&](std::uint32_t) {
        const std::uint32_t admitted = u32();
        put(admitted);
        return admitted != 0;
      };
      if (!acquire_with(lease, shape, ReplaySource(log, log_, shape.tokens / options_.block_tokens), admit)) {
        ++stats_.refused_requests;
        end_op();
        break;
      }
      for (const std::uint32_t decided : {lease, leases_[lease].matched, leases_[lease].place.blocks}) {
        if (u32() != decided) status = kNonsense;
        put(decided);
      }
      end_op();
      break;
    }
    case FlightOp::kRefresh:
      status = lease_call([&](Lease& lease, std::uint32_t) {
        const Progress progress = lease.refresh();
        return u32() == progress.ready_tokens && u32() == progress.pending_tokens ? Status() : kNonsense;
      });
      break;
    case FlightOp::kReserve:
    case FlightOp::kAppend:
    case FlightOp::kRelease:
    case FlightOp::kAbort:
    case FlightOp::kTruncate:
    case FlightOp::kOnboard:
      status = lease_call([&](Lease& lease, std::uint32_t index) {
        const std::uint32_t a = u32(), b = u32();
        Status done;
        switch (static_cast<FlightOp>(code)) {
          case FlightOp::kReserve: done = lease.reserve(a); break;
          case FlightOp::kAppend:
            done = lease.logged(FlightOp::kAppend, a, 0, [&] { return append(index, nullptr, a); });
            break;
          case FlightOp::kRelease: {
            const auto until_ms = log.get<std::uint64_t>(), expect_reuse_at_ms = log.get<std::uint64_t>();
            done = lease.release({static_cast<Keep>(b), until_ms, expect_reuse_at_ms});
            break;
          }
          case FlightOp::kTruncate: done = lease.truncate(a); break;
          case FlightOp::kOnboard: done = lease.onboard(a); break;
          default: done = lease.abort();
        }
        return u32() == static_cast<std::uint32_t>(done.code()) ? Status() : kNonsense;
      });
      break;
    case FlightOp::kCommit:
      status = lease_call([&](Lease& lease, std::uint32_t) {
        const std::uint32_t n = u32();
        const bool on_grid = u32() != 0;
        // What the recorded run answered follows from the same state, so it is not looked at.
        (void)lease.commit(n, point(), on_grid);
        return Status();
      });
      break;
    case FlightOp::kCommitAccepted:
      status = lease_call([&](Lease&, std::uint32_t index) {
        const std::uint32_t n = u32();
        const Point after = point();
        FixedArray<std::uint32_t> offsets;
        if (n > options_.max_lease_tokens) return kNonsense;
        if (!offsets.take(options_.memory, n)) return no_memory();
        for (std::uint32_t i = 0; i < n; ++i) offsets[i] = u32();
        (void)commit_accepted_logged(index, {offsets.data(), n}, after);
        return Status();
      });
      break;
    case FlightOp::kFork:
      status = lease_call([&](Lease& lease, std::uint32_t) {
        auto forked = lease.fork();
        const bool same = u32() == static_cast<std::uint32_t>(forked.status().code());
        if (forked.ok()) forked->cache_ = nullptr;
        return same ? Status() : kNonsense;
      });
      break;
    case FlightOp::kReach: status = reach(point()); break;
    case FlightOp::kEndStep: status = end_step(point()); break;
    case FlightOp::kTakeStep: {
      const auto room = log.get<std::uint64_t>();
      const std::uint32_t lease = u32();
      FixedArray<StepEntry> memory;
      if (room > most_entries()) {
        status = kNonsense;
        break;
      }
      if (!memory.take(options_.memory, room)) {
        status = no_memory();
        break;
      }
      const std::span<StepEntry> entries(memory.data(), memory.size());
      std::span<const StepEntry> taken;
      if (lease == ~std::uint32_t{0}) {
        taken = take_step(entries);
      } else if (lease < options_.max_leases) {
        Lease view(this, lease, leases_[lease].generation);
        taken = take_loads(view, entries);
        view.cache_ = nullptr;
      }
      for (const StepEntry& e : taken)
        for (const std::uint32_t decided : {e.lease, e.block, e.slot})
          if (u32() != decided) status = kNonsense;
      break;
    }
    case FlightOp::kComplete: {
      StepEntry e;
      e.kind = static_cast<StepKind>(u32());
      e.group = static_cast<GroupId>(u32());
      e.lease = u32();
      e.generation = u32();
      e.block = u32();
      e.slot = u32();
      e.from_slot = u32();
      const bool ok = u32() != 0;
      (void)complete({e, ok ? Status() : Status(StatusCode::kUnavailable, "as recorded")});
      break;
    }
    default: status = kNonsense;
  }
  replaying_ = nullptr;
  return log.failed() ? kNonsense : status;
}

/// Runs the whole log. kCorrupt at the first record that this cache decides otherwise.
template <EvictionPolicy Policy>
Status replay(std::span<const std::byte> log, BasicCache<Policy>& cache) noexcept {
  FlightReader reader(log);
  while (!reader.done())
    if (const Status status = cache.replay_next(reader); !status.ok()) return status;
  return {};
}

}  // namespace kvstem::inline v0
