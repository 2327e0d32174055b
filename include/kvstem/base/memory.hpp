// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The one seam through which kvstem takes memory. Everything is taken when an object is created and given back when it
// is destroyed; nothing on the engine's thread allocates afterwards. (The objects that `create` returns, a few kilobytes
// each, come from operator new.) A host that wants huge pages, NUMA placement or a budget passes its own `Memory`.
//
//   Memory huge{.allocate = my_huge_pages, .release = my_release, .user = &my_state};
//   auto cache = Cache::create({.memory = huge, ...});
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>

namespace kvstem::inline v0 {

struct Memory {
  /// Returns `bytes` of ZEROED memory aligned to at least `alignment` (a power of two), or null. Must not throw.
  void* (*allocate)(void* user, std::size_t bytes, std::size_t alignment) = nullptr;
  /// Takes back what `allocate` returned, with the same `bytes`.
  void (*release)(void* user, void* memory, std::size_t bytes) = nullptr;
  void* user = nullptr;
};

/// The C heap. Large pieces cost nothing until they are touched (calloc maps them lazily).
[[nodiscard]] inline Memory heap_memory() noexcept {
  return {.allocate = [](void*, std::size_t bytes, std::size_t alignment) -> void* {
            void* raw = std::calloc(1, bytes + alignment + sizeof(void*));
            if (raw == nullptr) return nullptr;
            const auto first = reinterpret_cast<std::uintptr_t>(raw) + sizeof(void*);
            auto* aligned = reinterpret_cast<void**>((first + alignment - 1) & ~(alignment - 1));
            aligned[-1] = raw;
            return aligned;
          },
          .release = [](void*, void* memory, std::size_t) { std::free(static_cast<void**>(memory)[-1]); },
          .user = nullptr};
}

/// An array whose size is fixed when it is taken. Elements start as zero bytes, and nothing touches them before you do; those
/// that need their destructor are made by their default constructor.
template <class T>
class FixedArray {
  static constexpr bool kConstructed = !std::is_trivially_destructible_v<T>;

 public:
  FixedArray() noexcept = default;
  FixedArray(FixedArray&& other) noexcept
      : memory_(other.memory_),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  FixedArray& operator=(FixedArray&& other) noexcept {
    const FixedArray old(std::move(*this));
    memory_ = other.memory_;
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }
  ~FixedArray() {
    if (data_ == nullptr) return;
    if constexpr (kConstructed) std::destroy_n(data_, size_);
    memory_.release(memory_.user, data_, bytes());
  }

  /// False if the memory is not to be had; the array is then empty.
  [[nodiscard]] bool take(const Memory& memory, std::size_t size) noexcept {
    *this = FixedArray();
    if (size == 0) return true;
    if (size > std::numeric_limits<std::size_t>::max() / 2 / sizeof(T)) return false;
    constexpr std::size_t kAlignment = alignof(T) < 64 ? 64 : alignof(T);
    void* data = memory.allocate(memory.user, size * sizeof(T), kAlignment);
    if (data == nullptr) return false;
    memory_ = memory;
    data_ = static_cast<T*>(data);
    size_ = size;
    if constexpr (kConstructed) std::uninitialized_value_construct_n(data_, size_);
    return true;
  }

  [[nodiscard]] T& operator[](std::size_t i) noexcept { return data_[i]; }
  [[nodiscard]] const T& operator[](std::size_t i) const noexcept { return data_[i]; }
  [[nodiscard]] T* data() noexcept { return data_; }
  [[nodiscard]] const T* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return size_ * sizeof(T); }

 private:
  Memory memory_{};
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace kvstem::inline v0
