// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What a cache with these blocks and tiers must find of each prompt, worked out the plain way: all sequences ever
// computed are kept as lists of tokens, and each question walks all of them. The programs here compare it with what
// kvstem found, request by request. It knows nothing of trees, keys, slots or bytes. It assumes that no block is
// evicted and that exports keep up, which the programs see to.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvstem/base/ids.hpp"

namespace kvstem_llama::demo {

using kvstem::TokenId;
using Tokens = std::vector<TokenId>;

/// Prompt tokens that are not computed, by where they come from.
struct Reuse {
  std::uint32_t resident = 0, host = 0, frontier = 0;
  [[nodiscard]] std::uint32_t total() const noexcept { return resident + host + frontier; }
  friend bool operator==(const Reuse&, const Reuse&) = default;
};

/// Requests whose counts were not as expected; how the first one differed.
struct Differences {
  std::uint64_t count = 0;
  std::string first{};

  void compare(std::size_t prompt_tokens, const Reuse& expected, const Reuse& found, std::uint32_t computed) {
    if (found == expected && computed + expected.total() == prompt_tokens) return;
    const auto text = [](const Reuse& r) {
      return std::to_string(r.resident) + " resident, " + std::to_string(r.host) + " host, " +
             std::to_string(r.frontier) + " frontier";
    };
    if (count++ == 0)
      first = std::to_string(prompt_tokens) + " tokens: expected " + text(expected) + "; found " +
              text(found) + ", computed " + std::to_string(computed);
  }
};

class NaiveCache {
 public:
  NaiveCache(std::uint32_t block_tokens, std::uint32_t resident_budget)
      : block_(block_tokens), budget_(resident_budget) {}

  /// `grid` as in OpaqueRequest::grid_tokens.
  Reuse begin(std::span<const TokenId> prompt, std::uint32_t grid = 0) {
    const Sequence* donor = nullptr;
    const Reuse reuse = find(prompt, grid, donor);
    if (donor != nullptr) const_cast<Sequence*>(donor)->used = ++clock_;
    return reuse;
  }
  /// What `begin` would find, and nothing changes.
  [[nodiscard]] Reuse find(std::span<const TokenId> prompt, std::uint32_t grid = 0) const {
    const Sequence* donor = nullptr;
    return find(prompt, grid, donor);
  }

  /// A request that runs: these tokens are in its sequence now, and others may share them. Until `end`.
  void running(std::uint64_t request, const Tokens& tokens) {
    for (Sequence& s : running_)
      if (s.request == request) return void(s.tokens = tokens);
    running_.push_back({.tokens = tokens, .used = ++clock_, .request = request});
  }
  void ended(std::uint64_t request) {
    std::erase_if(running_, [&](const Sequence& s) { return s.request == request; });
  }

 private:
  struct Sequence {
    Tokens tokens{};
    std::uint64_t session = 0;
    std::uint32_t grid = 0;
    std::uint64_t used = 0;
    std::uint64_t request = 0;
  };

  Reuse find(std::span<const TokenId> prompt, std::uint32_t grid, const Sequence*& donor) const {
    const auto most = static_cast<std::uint32_t>(prompt.size()) - 1;
    const auto same = [&](const Sequence& s) {
      const std::uint32_t n = std::min(common(s.tokens, prompt), most);
      return grid == 0 ? n : floor(std::min(n, s.grid), grid);
    };
    Reuse reuse;
    for (const auto* list : {&residents_, &running_})
      for (const Sequence& s : *list)
        if (same(s) > reuse.resident ||
            (donor != nullptr && same(s) == reuse.resident && s.used > donor->used))
          reuse.resident = same(s), donor = &s;
    std::uint32_t whole = 0;
    for (const Sequence& s : computed_) whole = std::max(whole, floor(same(s), block_));
    if (whole > reuse.resident) {  // blocks come whole: the resident's part of one gives way to it
      reuse.resident = floor(reuse.resident, block_);
      reuse.host = whole - reuse.resident;
    }
    const std::uint32_t have = reuse.total();
    for (const Sequence& s : frontiers_)
      if (grid == 0 && floor(size(s), block_) == have && same(s) > have)
        reuse.frontier = std::max(reuse.frontier, same(s) - have);
    return reuse;
  }

 public:
  /// The state of these tokens is there; their whole blocks are found by others. The first `grid` of them were computed
  /// on the grid.
  void computed(const Tokens& tokens, std::uint32_t grid = 0) {
    computed_.push_back({.tokens = tokens, .grid = grid});
  }

  /// A request ended; `reused`: it found something when it began.
  void end(const Tokens& tokens, std::uint64_t session, bool reused, std::uint32_t grid = 0) {
    computed(tokens, grid);
    Sequence now{.tokens = tokens, .session = session, .grid = grid};
    if (size(now) % block_ != 0) {
      now.used = ++clock_;
      std::erase_if(frontiers_, [&](const Sequence& s) {  // an older turn's
        return session != 0 && s.session == session &&
               common(s.tokens, tokens) == std::min(size(s), size(now));
      });
      frontiers_.push_back(now);
    }
    if (!reused || size(now) > budget_) return;
    now.used = ++clock_;
    std::erase_if(residents_, [&](const Sequence& s) { return common(s.tokens, tokens) == size(s); });
    residents_.push_back(now);
    const auto held = [&] {
      std::uint32_t sum = 0;
      for (const Sequence& s : residents_) sum += size(s);
      return sum;
    };
    while (held() > budget_)
      residents_.erase(std::min_element(residents_.begin(), residents_.end(),
                                        [](const auto& a, const auto& b) { return a.used < b.used; }));
  }

  /// Tokens of the prompt that some request has seen before, to the token: what an ideal cache would find.
  [[nodiscard]] std::uint32_t repeated(std::span<const TokenId> prompt) const {
    std::uint32_t most = 0;
    for (const Sequence& s : computed_) most = std::max(most, common(s.tokens, prompt));
    return std::min(most, static_cast<std::uint32_t>(prompt.size()) - 1);
  }

 private:
  static std::uint32_t size(const Sequence& s) { return static_cast<std::uint32_t>(s.tokens.size()); }
  static std::uint32_t floor(std::uint32_t n, std::uint32_t unit) { return n - n % unit; }
  static std::uint32_t common(std::span<const TokenId> a, std::span<const TokenId> b) {
    const auto n = std::min(a.size(), b.size());
    return static_cast<std::uint32_t>(
        std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(n), b.begin()).first - a.begin());
  }

  std::uint32_t block_, budget_;
  std::uint64_t clock_ = 0;
  std::vector<Sequence> computed_, residents_, frontiers_, running_;
};

}  // namespace kvstem_llama::demo
