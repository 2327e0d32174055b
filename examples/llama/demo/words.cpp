// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "words.hpp"

#include <iterator>

namespace kvstem_llama::demo {
namespace {

template <std::size_t N>
const char* pick(const char* const (&words)[N], std::mt19937_64& rng) {
  return words[rng() % N];
}

const char* const kThings[] = {"file",  "table", "invoice", "branch", "order",   "ticket", "page",
                               "photo", "query", "letter",  "route",  "account", "log",    "patch"};
const char* const kPlaces[] = {"the archive", "the workshop",  "the harbour office", "the second shelf",
                               "the library", "the test farm", "the old depot",      "the main branch"};
const char* const kVerbs[] = {"read", "list", "compare", "copy", "check", "sort", "summarise", "rename"};
const char* const kFound[] = {"was complete",           "had two pages missing",   "did not match its label",
                              "came back unchanged",    "was older than the rest", "needed a second look",
                              "had been moved by hand", "agreed with the register"};

std::string tool(std::mt19937_64& rng, int number) {
  const std::string verb = pick(kVerbs, rng), thing = pick(kThings, rng);
  return "Tool " + std::to_string(number) + ": " + verb + "_" + thing + "(name, first, last). Use it to " +
         verb + " one " + thing + " in " + pick(kPlaces, rng) +
         ". It returns one line for each entry, or the word NONE. Never call it twice with the same name in "
         "one "
         "turn, and never guess a name: list the " +
         thing + "s first.\n";
}

std::string sentence(std::mt19937_64& rng) {
  const std::string number = std::to_string(1000 + rng() % 9000);
  switch (rng() % 3) {
    case 0:
      return std::string("The ") + pick(kThings, rng) + " " + number + " from " + pick(kPlaces, rng) + " " +
             pick(kFound, rng) + ". ";
    case 1:
      return std::string("Please ") + pick(kVerbs, rng) + " the " + pick(kThings, rng) + " " + number +
             " in " + pick(kPlaces, rng) + " next. ";
    default:
      return "I have " + number + " entries left, and each " + pick(kThings, rng) + " " + pick(kFound, rng) +
             ".\n";
  }
}

/// Tokens of as much text as is needed, cut to n. An engine that cannot tokenize ends here: an empty result.
template <class More>
Tokens exactly(const LlamaEngine& llama, std::size_t n, bool begin, std::string text, More&& more) {
  Tokens tokens;
  while (tokens.size() < n) {
    for (std::size_t size = text.size() + 4 * (n - tokens.size()) + 64; text.size() < size;) text += more();
    auto all = llama.tokenize(text, false, begin);
    if (!all.ok()) return {};
    tokens = std::move(*all);
  }
  tokens.resize(n);
  return tokens;
}

}  // namespace

Tokens system_prompt(const LlamaEngine& llama, std::size_t n) {
  std::mt19937_64 rng(7);
  int number = 0;
  return exactly(
      llama, n, true,
      "You are one of several agents who keep the records of a small museum in order. You work in turns. "
      "In each turn you read a report, call at most one tool, and answer in one or two short sentences. "
      "Say plainly when something is not known. Leave what you do not understand as it is.\n",
      [&] { return tool(rng, ++number); });
}

Tokens passage(const LlamaEngine& llama, std::size_t n, std::uint64_t seed) {
  std::mt19937_64 rng(seed);
  return exactly(llama, n, false, "\nReport " + std::to_string(seed) + ". ", [&] { return sentence(rng); });
}

}  // namespace kvstem_llama::demo
