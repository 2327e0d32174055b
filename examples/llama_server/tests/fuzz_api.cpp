// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The first byte chooses chat, completions or tokenize (its remainder by 3) and how text is cut into pieces, the rest is
// a body. Whatever is taken keeps the header's promises; what is refused says so in a short valid answer; and the body
// as a model's text is shown the same in pieces and at once.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "api.hpp"
#include "text.hpp"

using namespace kvstem_llama::server;
using kvstem_llama::TokenId;

namespace {

void require(bool ok) {
  if (!ok) std::abort();
}

bool is_valid(const std::string& text) { return valid_utf8(text) == text; }

const ParseOptions& options() {
  static const ParseOptions kAll = {
      .models = {"smol", "m"}, .max_choices = 6, .max_stops = 3, .max_stop_bytes = 12};
  return kAll;
}

void check(const ApiError& error) {
  require(error.status == 400 || (error.status == 404 && error.code == "model_not_found"));
  require(!error.message.empty() && error.message.size() < 500 && is_valid(error.message) &&
          is_valid(error.param));
  const std::string chunk = error_chunk(error);
  require(chunk == "data: " + error_body(error) + "\n\n" && nlohmann::json::accept(error_body(error)));
}

void check(const Generate& g, std::size_t prompts) {
  require(g.n >= 1 && prompts >= 1 && prompts * g.n <= options().max_choices);
  require(!g.max_tokens.has_value() ||
          (*g.max_tokens >= 1 && *g.max_tokens <= std::uint32_t{std::numeric_limits<std::int32_t>::max()}));
  require(g.temperature >= 0 && g.temperature <= 2 && g.top_p > 0 && g.top_p <= 1);
  require(g.stop.size() <= options().max_stops);
  for (const std::string& stop : g.stop)
    require(!stop.empty() && stop.size() <= options().max_stop_bytes && is_valid(stop));
  require(g.stream || !g.include_usage);
}

void check_chat(std::string_view body) {
  auto parsed = parse_chat(body, options());
  if (!parsed.ok()) return check(parsed.error());
  check(*parsed, 1);
  require(!parsed->messages.empty());
  for (const auto& message : parsed->messages) {
    require(message.role == "system" || message.role == "user" || message.role == "assistant");
    require(is_valid(message.content));
  }
}

void check_completion(std::string_view body) {
  auto parsed = parse_completion(body, options());
  if (!parsed.ok()) return check(parsed.error());
  check(*parsed, parsed->prompts.size());
  for (const auto& prompt : parsed->prompts) {
    if (const auto* text = std::get_if<std::string>(&prompt)) {
      require(!text->empty() && is_valid(*text));
    } else {
      const auto& ids = std::get<std::vector<TokenId>>(prompt);
      require(!ids.empty() && std::all_of(ids.begin(), ids.end(), [](TokenId id) { return id >= 0; }));
    }
  }
}

void check_tokenize(std::string_view body) {
  auto parsed = parse_tokenize(body);
  if (!parsed.ok()) return check(parsed.error());
  require(is_valid(parsed->content));
}

struct Shown {
  std::string text;
  bool stopped = false;
  friend bool operator==(const Shown&, const Shown&) = default;
};
Shown shown(const std::vector<std::string>& stops, std::string_view text, std::size_t piece) {
  TextStream stream(stops);
  Shown all;
  while (!text.empty()) {
    all.text += stream.add(text.substr(0, piece));
    require(is_valid(all.text));
    text.remove_prefix(std::min(piece, text.size()));
  }
  all.text += stream.finish();
  all.stopped = stream.stopped();
  require(is_valid(all.text));
  return all;
}

/// The first bytes of the text make the stop strings.
void check_text(std::string_view text, std::size_t piece) {
  const auto take = [&](std::size_t n) {
    const std::string_view taken = text.substr(0, n);
    text.remove_prefix(taken.size());
    return std::string(taken);
  };
  const std::vector<std::string> stops = {take(1), take(2), take(3)};
  const Shown whole = shown(stops, text, text.size());
  require(shown(stops, text, 1) == whole);
  require(shown(stops, text, piece) == whole);
  require(whole.stopped || whole.text == valid_utf8(text));
  require(valid_utf8(text).starts_with(whole.text));
  const Identity identity{.chat = piece % 2 == 0, .id = "x", .model = "m"};
  const std::string chunk = text_chunk(identity, 0, text, true);  // as it is, valid or not
  require(nlohmann::json::accept(chunk.substr(6)));
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming)
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 3) {
    case 0: check_chat(body); break;
    case 1: check_completion(body); break;
    default: check_tokenize(body); break;
  }
  check_text(body, 2 + data[0] / 3 % 8);
  return 0;
}
