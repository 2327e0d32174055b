// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "text.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "support/catch.hpp"

using namespace kvstem_llama::server;

namespace {

const std::string kBad = "\xEF\xBF\xBD";  // U+FFFD

/// The run's seed: KVSTEM_SEED if set, else a new one. Printed, so that a failure can be repeated.
std::uint64_t seed(const char* test) {
  const char* given = std::getenv("KVSTEM_SEED");
  const std::uint64_t value = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cout << test << ": KVSTEM_SEED=" << value << "\n";
  return value;
}

std::uint64_t below(std::mt19937_64& rng, std::uint64_t n) { return rng() % n; }

/// All that is shown of a text in these pieces, the end included.
std::string shown(TextStream stream, const std::vector<std::string>& pieces) {
  std::string text;
  for (const std::string& piece : pieces) text += stream.add(piece);
  return text + stream.finish();
}

std::vector<std::string> bytes_of(std::string_view text) {
  std::vector<std::string> pieces;
  for (const char c : text) pieces.emplace_back(1, c);
  return pieces;
}

/// The rule, naively: ends in their order, of those the earliest begin.
struct Cut {
  std::string text;
  bool stopped = false;
};
Cut cut(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::size_t longest = 0;
    for (const std::string& stop : stops)
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0)
        longest = std::max(longest, stop.size());
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text};
}

/// Bytes at the text's end that may still become a stop string.
std::size_t undecided(const std::string& text, const std::vector<std::string>& stops) {
  std::size_t longest = 0;
  for (const std::string& stop : stops)
    for (std::size_t n = 1; n < stop.size() && n <= text.size(); ++n)
      if (text.compare(text.size() - n, n, stop, 0, n) == 0) longest = std::max(longest, n);
  return longest;
}

/// Another implementation of the replacement.
std::string valid_by_json(const std::string& bytes) {
  using Json = nlohmann::json;
  return Json::parse(Json(bytes).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
}

}  // namespace

TEST_CASE("valid text stays as it is") {
  for (const std::string& text :
       {std::string(), std::string("plain"), std::string("a\0b", 3), std::string("\xC2\x80\xDF\xBF"),
        std::string("\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80\xEF\xBF\xBF"),
        std::string("\xF0\x90\x80\x80\xF4\x8F\xBF\xBF")}) {
    std::string rest = "old";
    CHECK(valid_utf8(text) == text);
    CHECK(valid_utf8(text, &rest) == text);
    CHECK(rest.empty());
  }
}

TEST_CASE("each maximal ill-formed part becomes one U+FFFD") {
  // The Unicode standard's own examples: tables 3-8 to 3-11.
  CHECK(valid_utf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41") ==
        kBad + kBad + kBad + kBad + kBad + kBad + kBad + kBad + "A");
  CHECK(valid_utf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41") ==
        kBad + kBad + kBad + kBad + kBad + kBad + kBad + kBad + "A");
  CHECK(valid_utf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42") ==
        kBad + kBad + kBad + kBad + kBad + "A" + kBad + kBad + "B");
  CHECK(valid_utf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41") == kBad + kBad + kBad + kBad + "A");
}

TEST_CASE("the beginning of a character at the end is the rest, or replaced") {
  for (const std::string begin : {"\xC3", "\xE2", "\xE2\x82", "\xF0", "\xF0\x9F", "\xF0\x9F\x98"}) {
    std::string rest;
    CHECK(valid_utf8("a" + begin, &rest) == "a");
    CHECK(rest == begin);
    CHECK(valid_utf8("a" + begin) == "a" + kBad);
  }
  std::string rest;
  CHECK(valid_utf8("\xE0\x80", &rest) == kBad + kBad);  // begins nothing
  CHECK(rest.empty());
  rest = "\xE2\x82\xAC\xE2";
  CHECK(valid_utf8(rest, &rest) == "\xE2\x82\xAC");
  CHECK(rest == "\xE2");
}

TEST_CASE("any bytes become what another implementation makes of them") {
  std::mt19937_64 rng(seed("any bytes"));
  const std::string some =
      std::string("a\x7F\x80\x8F\x90\x9F\xA0\xBF\xC0\xC1\xC2\xDF\xE0\xE1\xEC\xED\xEE\xEF") +
      "\xF0\xF1\xF3\xF4\xF5\xFF";
  for (int i = 0; i < 50000; ++i) {
    std::string bytes(below(rng, 9), '\0');
    for (char& c : bytes) c = some[below(rng, some.size())];
    INFO(nlohmann::json::binary({bytes.begin(), bytes.end()}));
    REQUIRE(valid_utf8(bytes) == valid_by_json(bytes));
  }
}

TEST_CASE("text without stop strings is shown at once") {
  TextStream stream;
  CHECK(stream.add("Hel") == "Hel");
  CHECK(stream.add("").empty());
  CHECK(stream.add("lo") == "lo");
  CHECK(stream.finish().empty());
  CHECK_FALSE(stream.stopped());
}

TEST_CASE("a character is shown when it is whole") {
  TextStream stream;
  CHECK(stream.add("\xF0\x9F").empty());
  CHECK(stream.add("\x98").empty());
  CHECK(stream.add("\x80 \xE2\x82") == "\xF0\x9F\x98\x80 ");
  CHECK(stream.add("\xAC") == "\xE2\x82\xAC");
  CHECK(stream.add("\xE2\x82").empty());
  CHECK(stream.add("x") == kBad + "x");
  CHECK(stream.add("\xE2").empty());
  CHECK(stream.finish() == kBad);
  CHECK(stream.finish().empty());
}

TEST_CASE("a stop string in pieces is never shown, nor what follows") {
  TextStream stream({"</s>", "\n\n"});
  CHECK(stream.add("a<") == "a");
  CHECK(stream.add("b</") == "<b");
  CHECK(stream.add("s").empty());
  CHECK(stream.add("> and more").empty());
  CHECK(stream.stopped());
  CHECK(stream.add("more").empty());
  CHECK(stream.finish().empty());
}

TEST_CASE("what did not become a stop string is shown at the end") {
  TextStream stream({"END"});
  CHECK(stream.add("the EN") == "the ");
  CHECK(stream.finish() == "EN");
  CHECK_FALSE(stream.stopped());
}

TEST_CASE("a beginning inside a beginning is not lost") {
  TextStream stream({"aab"});
  CHECK(stream.add("aa").empty());
  CHECK(stream.add("a") == "a");
  CHECK(stream.add("a") == "a");
  CHECK(stream.add("b").empty());
  CHECK(stream.stopped());
}

TEST_CASE("of several stop strings the one that is complete first counts") {
  for (const auto& pieces : {std::vector<std::string>{"xabc"}, {"xab", "c"}, {"x", "a", "b", "c"}}) {
    TextStream stream({"abc", "b"});
    CHECK(shown(stream, pieces) == "xa");
  }
  // At the same byte: the longest, which began first.
  CHECK(shown(TextStream({"b", "ab"}), {"xab"}) == "x");
  CHECK(shown(TextStream({"ab", "b"}), {"xa", "b"}) == "x");
  // The same begin: the shorter one is complete first; both cut there.
  CHECK(shown(TextStream({"abc", "ab"}), {"xabc"}) == "x");
}

TEST_CASE("stop strings are found in the valid text") {
  CHECK(shown(TextStream({"\xC3\xA9"}), {"caf\xC3", "\xA9", "!"}) == "caf");
  CHECK(shown(TextStream({kBad}), {"a\xFF", "b"}) == "a");
  // Half a character is no match of the whole one.
  CHECK(shown(TextStream({"\xA9"}), {"caf\xC3\xA9"}) == "caf\xC3\xA9");
  TextStream stream({kBad});
  CHECK(stream.add("a\xE2\x82") == "a");
  CHECK(stream.finish().empty());
  CHECK(stream.stopped());
}

TEST_CASE("empty stop strings stop nothing") { CHECK(shown(TextStream({"", ""}), {"abc"}) == "abc"); }

TEST_CASE("random texts in random pieces are shown as the naive rule says, and no byte later") {
  std::mt19937_64 rng(seed("random pieces"));
  const std::vector<std::string> parts = {"a",  "a",    "b",    "b",    "c",    "\xC3\xA9", "\xE2\x82\xAC",
                                          kBad, "\xC3", "\x82", "\xE2", "\xFF", "\xF0\x9F"};
  std::map<std::string, int> histogram;
  for (int i = 0; i < 40000; ++i) {
    std::vector<std::string> stops(below(rng, 4));
    for (std::string& stop : stops)
      for (std::uint64_t n = 1 + below(rng, 5); n > 0; --n) stop += parts[below(rng, below(rng, 2) ? 4 : 8)];
    std::string bytes;
    const std::uint64_t kinds = below(rng, 3) == 0 ? parts.size() : 6;
    for (std::uint64_t n = below(rng, 40); n > 0; --n) bytes += parts[below(rng, kinds)];
    if (below(rng, 16) == 0) {  // a stop string that the text's end completes
      stops.push_back(parts[below(rng, 8)] + kBad);
      bytes += "b\xE2";
    }
    const Cut expected = cut(valid_utf8(bytes), stops);

    TextStream stream(stops);
    std::string text;
    bool late = false;
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t n = std::min<std::size_t>(bytes.size() - at, below(rng, 5));
      text += stream.add(std::string_view(bytes).substr(at, n));
      at += n;
      std::string rest;
      const std::string so_far = valid_utf8(std::string_view(bytes).substr(0, at), &rest);
      const Cut now = cut(so_far, stops);
      REQUIRE(stream.stopped() == now.stopped);
      const std::size_t held = now.stopped ? 0 : undecided(so_far, stops);
      late = late || held > 0;
      REQUIRE(text == now.text.substr(0, now.text.size() - held));
    }
    const bool before_end = stream.stopped();
    text += stream.finish();
    REQUIRE(text == expected.text);
    REQUIRE(stream.stopped() == expected.stopped);
    REQUIRE(shown(TextStream(stops), {bytes}) == text);
    REQUIRE(shown(TextStream(stops), bytes_of(bytes)) == text);

    ++histogram[before_end ? "stopped" : stream.stopped() ? "stopped at the end" : "not stopped"];
    if (late) ++histogram["held for a stop string"];
    if (valid_utf8(bytes) != bytes) ++histogram["ill-formed"];
    if (text.empty()) ++histogram["nothing shown"];
  }
  for (const auto& [what, n] : histogram) std::cout << "  " << what << ": " << n << "\n";
  for (const char* what :
       {"stopped", "stopped at the end", "not stopped", "held for a stop string", "ill-formed"})
    CHECK(histogram[what] > 0);
}

TEST_CASE("a long text that keeps beginning a stop string costs linear time") {
  // Quadratic: some 10^12 steps.
  const std::string stop = std::string(255, 'a') + "b";
  TextStream stream(std::vector<std::string>(16, stop));
  const std::string piece(1 << 20, 'a');
  std::size_t n = stream.add(piece).size();
  for (int i = 0; i < 1000; ++i) n += stream.add("a").size();
  CHECK(n == piece.size() + 1000 - 255);
  CHECK(stream.add("b").empty());
  CHECK(stream.stopped());
}
