// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// When may memory that readers could still be looking at be used again? Readers announce the epoch in which they began;
// the writer waits until nobody is left who began before the memory was unlinked. (Epoch-based reclamation, Fraser 2004.)
//
// A reader pins once for each match and writes only its own cache line. The writer never waits: what is not yet safe
// stays in its list of retired things. Ordering: the reader stores its epoch, then loads the global one again, both
// sequentially consistent; so a writer that does not see the reader's pin is one whose unlinking the reader sees. No
// fences, since thread sanitizers do not model them.
//
// Threads: `Epochs::Reader` belongs to one thread at a time; `advance` and `oldest` to the writer.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <utility>

#include "kvstem/base/memory.hpp"
#include "kvstem/base/status.hpp"

namespace kvstem::inline v0 {

class Epochs {
  struct alignas(64) Slot {
    std::atomic<std::uint64_t> epoch;  // kIdle, or the epoch in which this reader began
    std::atomic<bool> taken;
  };
  static constexpr std::uint64_t kIdle = 0;

 public:
  /// A thread's right to read. Movable; must not outlive its `Epochs`.
  class Reader {
   public:
    Reader() noexcept = default;
    Reader(Reader&& other) noexcept
        : slot_(std::exchange(other.slot_, nullptr)), global_(std::exchange(other.global_, nullptr)) {}
    Reader& operator=(Reader&& other) noexcept {
      std::swap(slot_, other.slot_);
      std::swap(global_, other.global_);
      return *this;
    }
    ~Reader() {
      if (slot_ != nullptr) slot_->taken.store(false, std::memory_order_release);
    }

    void pin() noexcept {
      std::uint64_t epoch = global_->load(std::memory_order_seq_cst);
      for (;;) {
        slot_->epoch.store(epoch, std::memory_order_seq_cst);
        const std::uint64_t now = global_->load(std::memory_order_seq_cst);
        if (now == epoch) return;
        epoch = now;
      }
    }
    void unpin() noexcept { slot_->epoch.store(kIdle, std::memory_order_release); }

   private:
    friend class Epochs;
    Reader(Slot* slot, std::atomic<std::uint64_t>* global) noexcept : slot_(slot), global_(global) {}
    Slot* slot_ = nullptr;
    std::atomic<std::uint64_t>* global_ = nullptr;
  };

  [[nodiscard]] bool take(const Memory& memory, std::uint32_t max_readers) noexcept {
    if (!slots_.take(memory, max_readers) || !global_.take(memory, 1)) return false;
    for (std::size_t i = 0; i < slots_.size(); ++i) ::new (&slots_[i]) Slot{};
    ::new (&global_[0]) std::atomic<std::uint64_t>(1);
    return true;
  }

  /// Any thread. kExhausted when all readers are given out.
  [[nodiscard]] Result<Reader> register_reader() noexcept {
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      bool expected = false;
      if (slots_[i].taken.compare_exchange_strong(expected, true, std::memory_order_acq_rel))
        return Reader(&slots_[i], &global_[0]);
    }
    return Status(StatusCode::kExhausted, "all reader slots are taken: raise max_readers or give one back");
  }

  /// Writer: closes the epoch in which something was unlinked. What was unlinked before this call is safe once
  /// `oldest()` is at least the value returned.
  [[nodiscard]] std::uint64_t advance() noexcept {
    return global_[0].fetch_add(1, std::memory_order_seq_cst) + 1;
  }

  /// Writer: the oldest epoch that a reader is in; the largest number if nobody reads. O(max_readers).
  [[nodiscard]] std::uint64_t oldest() const noexcept {
    std::uint64_t oldest = std::numeric_limits<std::uint64_t>::max();
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      const std::uint64_t e = slots_[i].epoch.load(std::memory_order_seq_cst);
      if (e != kIdle && e < oldest) oldest = e;
    }
    return oldest;
  }

 private:
  FixedArray<Slot> slots_;
  FixedArray<std::atomic<std::uint64_t>> global_;
};

}  // namespace kvstem::inline v0
