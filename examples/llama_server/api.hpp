// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The API's words: bodies of requests in, bodies of answers out. The shapes are those of OpenAI's chat and completions
// endpoints, and llama-server's /tokenize. Plain functions; no model, no network.
//
// What would change the answer and is not supported (tools, logprobs, penalties, ...) is refused, never ignored. What
// is unknown is ignored, as other servers do.
//
// Guarantees: `parse_*` accept any bytes, and nothing throws but for want of memory; every refusal says which field is
// wrong and what would be right, and quotes at most 100 bytes. Refused as well: fields that are there twice, numbers
// that no double holds, text that is no UTF-8, more than 64 arrays and objects in each other. Answers are valid JSON
// whatever the texts in them. Threads: any.
// Cost: time and memory about linear in the body; at worst (many empty objects) some 40 bytes of memory for each byte.
//
//   auto parsed = parse_chat(body, {.models = {"smol"}});
//   if (!parsed.ok()) return exchange->send(parsed.error().status, kJson, error_body(parsed.error()));
//   ... parsed->messages ...
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "llama_engine.hpp"

namespace kvstem_llama::server {

inline constexpr std::string_view kJson = "application/json";

struct ApiError {
  int status = 400;
  std::string message{};
  std::string param{};  // the field at fault; empty: null in the answer
  std::string code{};   // as OpenAI's: model_not_found, context_length_exceeded, ...; empty: null
};
/// {"error": {"message", "type", "param", "code"}}; the type follows from the status.
[[nodiscard]] std::string error_body(const ApiError& error);

/// A value, or why there is none.
template <class T>
class Parsed {
 public:
  Parsed(T value) : v_(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  Parsed(ApiError error) : v_(std::move(error)) {}  // NOLINT(google-explicit-constructor)
  [[nodiscard]] bool ok() const { return v_.index() == 0; }
  [[nodiscard]] const ApiError& error() const { return std::get<1>(v_); }
  [[nodiscard]] T& operator*() { return std::get<0>(v_); }
  [[nodiscard]] T* operator->() { return &std::get<0>(v_); }

 private:
  std::variant<T, ApiError> v_;
};

struct ParseOptions {
  std::vector<std::string>
      models{};  // names that mean this server's model; a request without one means it as well
  std::uint32_t max_choices = 64;  // prompts times n
  std::uint32_t max_stops = 16;
  std::size_t max_stop_bytes = 256;  // of one stop string
};

/// What both endpoints have in common.
struct Generate {
  std::uint32_t n = 1;
  std::optional<std::uint32_t> max_tokens{};  // at least 1
  float temperature = 1, top_p = 1;
  std::optional<std::uint32_t> seed{};  // of any integer its low 32 bits
  std::vector<std::string> stop{};
  bool stream = false, include_usage = false;
  bool return_token_ids = false;  // an extension, as in vLLM: the answer's tokens beside its text
  bool cache_prompt = true;  // an extension, as in llama-server; false: computed as if there were no cache
  bool ignore_eos = false;   // an extension, as in llama-server and vLLM: go on behind the model's end tokens
};
struct ChatRequest : Generate {
  std::vector<ChatMessage>
      messages{};  // at least one; roles system, user, assistant ("developer" is read as system)
};
struct CompletionRequest : Generate {
  using Prompt = std::variant<std::string, std::vector<TokenId>>;
  std::vector<Prompt> prompts{};  // at least one
};
struct TokenizeRequest {
  std::string content{};
  bool add_special = false, parse_special = true;
};

[[nodiscard]] Parsed<ChatRequest> parse_chat(std::string_view body, const ParseOptions& options);
[[nodiscard]] Parsed<CompletionRequest> parse_completion(std::string_view body, const ParseOptions& options);
[[nodiscard]] Parsed<TokenizeRequest> parse_tokenize(std::string_view body);

struct Usage {
  std::uint32_t prompt_tokens = 0, completion_tokens = 0;
  std::uint32_t cached_tokens = 0;  // of the prompt
};
/// What is the same in every piece of an answer.
struct Identity {
  bool chat = false;
  std::string id{};          // "chatcmpl-..." or "cmpl-..."
  std::int64_t created = 0;  // Unix time in seconds
  std::string model{};
};
struct Choice {
  std::string text{};                // valid UTF-8
  std::string finish_reason{};       // "stop", "length"
  std::vector<TokenId> token_ids{};  // left out if empty
};

/// The whole answer; choices in the order of their index.
[[nodiscard]] std::string answer(const Identity& identity, std::span<const Choice> choices,
                                 const Usage& usage);
/// Events of a stream, each "data: ...\n\n". `first_chunk` opens a choice (chat only; empty for completions).
[[nodiscard]] std::string first_chunk(const Identity& identity, std::uint32_t index, bool include_usage);
[[nodiscard]] std::string text_chunk(const Identity& identity, std::uint32_t index, std::string_view text,
                                     bool include_usage, std::span<const TokenId> token_ids = {});
[[nodiscard]] std::string finish_chunk(const Identity& identity, std::uint32_t index,
                                       std::string_view finish_reason, bool include_usage);
/// The last one before `kDone`, if the client asked for it.
[[nodiscard]] std::string usage_chunk(const Identity& identity, const Usage& usage);
/// A stream that cannot go on.
[[nodiscard]] std::string error_chunk(const ApiError& error);
inline constexpr std::string_view kDone = "data: [DONE]\n\n";

struct ModelInfo {
  std::string name{};
  std::int64_t created = 0;         // Unix time in seconds
  std::uint32_t max_model_len = 0;  // tokens, of a prompt and its answer together
};
/// The list of the only model there is.
[[nodiscard]] std::string models_answer(const ModelInfo& model);
[[nodiscard]] std::string model_answer(const ModelInfo& model);
[[nodiscard]] std::string tokenize_answer(std::span<const TokenId> tokens);

}  // namespace kvstem_llama::server
