// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "optimum.hpp"

#include <algorithm>
#include <queue>

namespace kvstem::cli {
namespace {

/// How many cached blocks each future request will find, and which of those requests comes last.
class Stretches {
 public:
  explicit Stretches(std::uint32_t requests) : blocks_(requests) {}

  std::uint32_t take(std::uint32_t request) {
    const std::uint32_t blocks = blocks_[request];
    blocks_[request] = 0;
    total_ -= blocks;
    return blocks;
  }
  void add(std::uint32_t request, std::uint32_t blocks) {
    if (blocks_[request] == 0) latest_.push(request);
    blocks_[request] += blocks;
    total_ += blocks;
  }
  /// Evicts what is used last until at most `most` blocks are left.
  void limit(std::uint64_t most) {
    while (total_ > most) {
      const std::uint32_t request = latest_.top();
      const auto gone = static_cast<std::uint32_t>(std::min<std::uint64_t>(blocks_[request], total_ - most));
      blocks_[request] -= gone;
      total_ -= gone;
      if (blocks_[request] == 0) latest_.pop();
    }
  }
  [[nodiscard]] std::uint64_t total() const { return total_; }

 private:
  std::vector<std::uint32_t> blocks_;
  std::priority_queue<std::uint32_t> latest_;  // may hold requests that have nothing any more
  std::uint64_t total_ = 0;
};

}  // namespace

NextUses::NextUses(const Trace& trace, const TracePart& part) {
  const auto count = static_cast<std::uint32_t>(part.end - part.begin);
  std::vector<std::uint32_t> next(trace.distinct_blocks(), kNever);
  first_.assign(count + 1, 0);
  // Backwards; turned round at the end.
  for (std::uint32_t i = count; i-- > 0;) {
    const auto path = trace.path(part.begin + i);
    for (std::size_t b = path.size(); b-- > 0;) {
      std::uint32_t& use = next[path[b]];
      if (stretches_.size() > first_[i + 1] && stretches_.back().next == use)
        ++stretches_.back().blocks;
      else
        stretches_.push_back({use, 1});
      use = i;
    }
    first_[i] = stretches_.size();
  }
  std::reverse(stretches_.begin(), stretches_.end());
  for (std::size_t& at : first_) at = stretches_.size() - at;
}

std::vector<std::uint32_t> optimum(const NextUses& uses, std::uint64_t capacity) {
  std::vector<std::uint32_t> found(uses.requests());
  Stretches cached(uses.requests());
  for (std::uint32_t i = 0; i < uses.requests(); ++i) {
    found[i] = cached.take(i);
    for (const auto& [next, blocks] : uses.of(i))
      if (next != NextUses::kNever) cached.add(next, blocks);
    cached.limit(capacity);
  }
  return found;
}

std::vector<std::uint32_t> optimum_whole_paths(const NextUses& uses, std::uint64_t capacity) {
  std::vector<std::uint32_t> found(uses.requests());
  Stretches cached(uses.requests());
  std::uint64_t useless = 0;  // cached, and never used again: the first to go
  for (std::uint32_t i = 0; i < uses.requests(); ++i) {
    found[i] = cached.take(i);
    std::uint64_t path = 0;
    for (const auto& stretch : uses.of(i)) path += stretch.blocks;
    path = std::min(path, capacity);
    useless = std::min(useless, capacity - path - std::min(cached.total(), capacity - path));
    cached.limit(capacity - path - useless);
    for (const auto& [next, blocks] : uses.of(i)) {
      const auto kept = static_cast<std::uint32_t>(std::min<std::uint64_t>(blocks, path));
      path -= kept;
      if (next == NextUses::kNever)
        useless += kept;
      else if (kept > 0)
        cached.add(next, kept);
    }
  }
  return found;
}

}  // namespace kvstem::cli
