// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "text.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace kvstem_llama::server {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Sequence {
  enum class Kind : std::uint8_t { kWell, kIll, kCut };  // kCut: well-formed up to the end of the text
  Kind kind = Kind::kWell;
  std::size_t bytes = 1;
};

/// The character that a text begins with, or its maximal ill-formed part (Unicode 15, table 3-7 and section 3.9).
Sequence first_of(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {};
  if (lead < 0xC2 || lead > 0xF4) return {Sequence::Kind::kIll, 1};
  const std::size_t bytes = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // No overlong forms, no surrogates, nothing above U+10FFFF: the second byte tells.
  unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (std::size_t i = 1; i < bytes; ++i, low = 0x80, high = 0xBF) {
    if (i == text.size()) return {Sequence::Kind::kCut, i};
    const auto c = static_cast<unsigned char>(text[i]);
    if (c < low || c > high) return {Sequence::Kind::kIll, i};
  }
  return {Sequence::Kind::kWell, bytes};
}

}  // namespace

std::string valid_utf8(std::string_view bytes, std::string* rest) {
  std::string text, cut;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    const Sequence s = first_of(bytes);
    if (s.kind == Sequence::Kind::kWell) {
      text += bytes.substr(0, s.bytes);
    } else if (s.kind == Sequence::Kind::kCut && rest != nullptr) {
      cut = bytes.substr(0, s.bytes);
    } else {
      text += kReplacement;
    }
    bytes.remove_prefix(s.bytes);
  }
  if (rest != nullptr) *rest = std::move(cut);  // only now: `bytes` may lie in it
  return text;
}

TextStream::TextStream(const std::vector<std::string>& stops) {
  stops_.reserve(stops.size());
  for (const std::string& given : stops) {
    // Valid as the text is: then a match begins and ends between characters.
    Stop stop{.text = valid_utf8(given)};
    if (stop.text.empty()) continue;
    stop.shorter.resize(stop.text.size());
    for (std::size_t i = 1, n = 0; i < stop.text.size(); ++i) {
      while (n > 0 && stop.text[n] != stop.text[i]) n = stop.shorter[n - 1];
      if (stop.text[n] == stop.text[i]) ++n;
      stop.shorter[i] = n;
    }
    stops_.push_back(std::move(stop));
  }
}

std::string TextStream::add(std::string_view piece) {
  if (stopped_) return {};
  const std::string bytes = std::exchange(rest_, {}).append(piece);
  return show(valid_utf8(bytes, &rest_));
}

std::string TextStream::finish() {
  if (stopped_) return {};
  std::string shown = show(valid_utf8(std::exchange(rest_, {})));
  if (!stopped_) shown += std::exchange(held_, {});
  for (Stop& stop : stops_) stop.matched = 0;
  return shown;
}

std::string TextStream::show(std::string_view text) {
  std::string shown = std::exchange(held_, {});
  std::size_t matched = shown.size();  // of the stop string that may have begun first
  for (const char c : text) {
    shown += c;
    matched = 0;
    std::size_t found = 0;  // of those that end here the longest began first
    for (Stop& stop : stops_) {
      while (stop.matched > 0 && stop.text[stop.matched] != c) stop.matched = stop.shorter[stop.matched - 1];
      if (stop.text[stop.matched] == c) ++stop.matched;
      if (stop.matched == stop.text.size()) {
        found = std::max(found, stop.matched);
        stop.matched = 0;  // over anyway; keeps the index in its string
      }
      matched = std::max(matched, stop.matched);
    }
    if (found > 0) {
      shown.resize(shown.size() - found);
      stopped_ = true;
      return shown;
    }
  }
  held_ = shown.substr(shown.size() - matched);
  shown.resize(shown.size() - matched);
  return shown;
}

}  // namespace kvstem_llama::server
