// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "lru_curve.hpp"

namespace kvstem::cli {
namespace {

/// Blocks by the request that used them last (a Fenwick tree: Fenwick 1994).
class LastUses {
 public:
  explicit LastUses(std::uint32_t requests) : sums_(requests + 1) {}

  void add(std::uint32_t request, std::uint32_t blocks) { change(request, blocks); }
  void remove(std::uint32_t request, std::uint32_t blocks) { change(request, 0u - blocks); }
  /// Blocks whose last use was after this request.
  [[nodiscard]] std::uint32_t after(std::uint32_t request) const {
    std::uint32_t until = 0;
    for (std::uint32_t at = request + 1; at > 0; at -= at & (0u - at)) until += sums_[at];
    return total_ - until;
  }

 private:
  void change(std::uint32_t request, std::uint32_t by) {
    total_ += by;
    for (std::uint32_t at = request + 1; at < sums_.size(); at += at & (0u - at)) sums_[at] += by;
  }

  std::vector<std::uint32_t> sums_;
  std::uint32_t total_ = 0;
};

}  // namespace

LruCurve::LruCurve(const Trace& trace, const TracePart& part) {
  constexpr std::uint32_t kNever = ~std::uint32_t{0};
  const auto count = static_cast<std::uint32_t>(part.end - part.begin);
  std::vector<std::uint32_t> last(trace.distinct_blocks(), kNever);
  LastUses uses(count);
  first_.assign(1, 0);
  for (std::uint32_t i = 0; i < count; ++i) {
    const auto path = trace.path(part.begin + i);
    std::uint32_t b = 0;  // so many blocks of the path were taken, all of which lay above what comes
    while (b < path.size() && last[path[b]] != kNever) {
      const std::uint32_t before = last[path[b]];
      const std::uint32_t above = b + uses.after(before), first = b;
      for (; b < path.size() && last[path[b]] == before; ++b) last[path[b]] = i;
      stretches_.push_back({above, b - first});
      uses.remove(before, b - first);
    }
    first_.push_back(stretches_.size());
    for (std::size_t rest = b; rest < path.size(); ++rest) last[path[rest]] = i;
    uses.add(i, static_cast<std::uint32_t>(path.size()));
  }
}

}  // namespace kvstem::cli
