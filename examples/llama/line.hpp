// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Who goes next: of those that wait, the one of whose prompt most is there already, so that what is there is used before
// it goes; of equals the one that came first. Nobody is overtaken by more than kMostOvertaken later requests, so nobody
// starves, whatever others ask for. (SGLang calls the order "longest prefix match"; the ageing is ours.)
//
// Cost: `choose` asks for the score of at most kLooksAt entries. Threads: one.
//
//   Line<Job> line;
//   line.add(number, job);
//   if (auto next = line.choose([&](const Job& j) { return tokens_there(j.prompt); }); next != line.end())
//     start(line.take(next));
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>

namespace kvstem_llama {

inline constexpr std::uint32_t kMostOvertaken = 8;

template <class Job>
class Line {
 public:
  struct Entry {
    std::uint64_t number;         // of the request: who came later has a higher one
    std::uint32_t overtaken = 0;  // later requests that started before it
    Job job;
  };
  using Iterator = typename std::deque<Entry>::iterator;

  /// How many entries are looked at, from the first on.
  static constexpr std::size_t kLooksAt = 64;

  /// In the place that its number has. Several entries may have one number: parts of a request.
  void add(std::uint64_t number, Job job, std::uint32_t overtaken = 0) {
    const auto at = std::upper_bound(entries_.begin(), entries_.end(), number,
                                     [](std::uint64_t n, const Entry& e) { return n < e.number; });
    entries_.insert(at, Entry{number, overtaken, std::move(job)});
  }
  /// `score(job)`: the higher, the sooner. end() if nobody waits.
  template <class Score>
  [[nodiscard]] Iterator choose(Score&& score) {
    Iterator best = entries_.end();
    std::uint64_t most = 0;
    std::size_t looked = 0;
    for (auto it = entries_.begin(); it != entries_.end() && looked < kLooksAt; ++it, ++looked) {
      const std::uint64_t s = score(it->job);
      if (best == entries_.end() || s > most) best = it, most = s;
      if (it->overtaken >= kMostOvertaken) break;  // nobody passes this one any more
    }
    return best;
  }
  /// It starts. `whole`: as a request, which overtakes the earlier ones; not as a further part of one.
  Entry take(Iterator it, bool whole = true) {
    if (whole)
      for (auto before = entries_.begin(); before != it; ++before)
        before->overtaken += before->number != it->number;
    return remove(it);
  }
  /// It will not start.
  Entry remove(Iterator it) {
    Entry entry = std::move(*it);
    entries_.erase(it);
    return entry;
  }

  [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
  [[nodiscard]] Iterator begin() noexcept { return entries_.begin(); }
  [[nodiscard]] Iterator end() noexcept { return entries_.end(); }
  [[nodiscard]] auto begin() const noexcept { return entries_.begin(); }
  [[nodiscard]] auto end() const noexcept { return entries_.end(); }

 private:
  std::deque<Entry> entries_;
};

}  // namespace kvstem_llama
