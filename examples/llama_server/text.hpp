// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What a model says, as text that may be shown: whole characters only, and nothing of a stop string.
//
// Tokens may end inside a character, and a stop string may begin in one piece and end in another; what may still become
// either is held back until more comes or the text ends, and nothing else. Bytes that are no UTF-8 become U+FFFD, one
// for each maximal ill-formed part, as browsers do. What is shown in all does not depend on how the text was cut into
// pieces.
// Cost: linear in the text times the number of stop strings; a piece costs at least what is held (less than the
// longest stop string). Threads: one.
//
//   TextStream text(stops);
//   show(text.add(piece));
//   if (text.stopped()) stop_the_request();
//   else if (last) show(text.finish());
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace kvstem_llama::server {

class TextStream {
 public:
  /// Empty stop strings are ignored; ill-formed bytes in one mean U+FFFD, as in the text.
  explicit TextStream(const std::vector<std::string>& stops = {});
  /// Returns what may be shown now: valid UTF-8, maybe empty. After the call that stopped, always.
  [[nodiscard]] std::string add(std::string_view piece);
  /// A stop string was found. It, and what followed, is never shown. Of several the one that is complete first counts,
  /// of those that end at the same byte the longest: with "abc" and "b", "ab" stops behind "a".
  [[nodiscard]] bool stopped() const noexcept { return stopped_; }
  /// No more comes: the rest. A last character that is not whole becomes U+FFFD, which may complete a stop string.
  [[nodiscard]] std::string finish();

 private:
  struct Stop {
    std::string text{};
    /// Of its first i + 1 bytes the longest end, not all of them, that is its beginning.
    std::vector<std::size_t> shorter{};
    std::size_t matched = 0;  // bytes of it that the text so far ends with
  };

  std::string show(std::string_view text);

  std::vector<Stop> stops_;
  std::string held_;  // valid, not shown yet: the longest end of the text that begins a stop string
  std::string rest_;  // what has come of a character
  bool stopped_ = false;
};

/// The text with every ill-formed sequence replaced by U+FFFD. What may be the beginning of a character at its end is
/// left in `rest` (if given; it may be where `bytes` lie), else replaced too.
[[nodiscard]] std::string valid_utf8(std::string_view bytes, std::string* rest = nullptr);

}  // namespace kvstem_llama::server
