// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "api.hpp"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>

namespace kvstem_llama::server {
namespace {

using Json = nlohmann::json;
using Ordered = nlohmann::ordered_json;  // answers: the fields in the order in which OpenAI writes them

constexpr std::size_t kMaxDepth = 64;
constexpr std::uint32_t kMaxInt = std::numeric_limits<std::int32_t>::max();

/// What the client wrote, for a message: in quotes, at most 100 bytes of it.
std::string quote(std::string_view text) {
  constexpr std::size_t kMost = 100;
  if (text.size() <= kMost) return "'" + std::string(text) + "'";
  std::size_t n = kMost;
  while (n > 0 && (static_cast<unsigned char>(text[n]) & 0xC0) == 0x80) --n;  // not inside a character
  return "'" + std::string(text.substr(0, n)) + "...'";
}

// Bodies in.

/// Builds the value, and refuses what nlohmann's own builder takes: any depth, and fields that are there twice.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(std::int64_t value) override { return put(value); }
  bool number_unsigned(std::uint64_t value) override { return put(value); }
  bool number_float(double value, const std::string& /*written*/) override { return put(value); }
  bool string(std::string& value) override { return put(std::move(value)); }
  bool binary(Json::binary_t& /*value*/) override { return false; }  // there is none in JSON
  bool start_object(std::size_t /*unknown*/) override { return open(Json::object()); }
  bool start_array(std::size_t /*unknown*/) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    const auto [field, fresh] = open_.back()->get_ref<Json::object_t&>().try_emplace(name);
    field_ = &field->second;
    if (!fresh) why_ = "the body has the field " + quote(name) + " twice in one object";
    return fresh;
  }
  bool parse_error(std::size_t at, const std::string& /*token*/,
                   const nlohmann::json::exception& e) override {
    std::string_view reason =
        e.what();  // "[...] parse error at line 1, column 2: syntax error ...; last read: '...'"
    constexpr std::string_view kBefore = ": syntax error ";
    if (const auto n = reason.find(kBefore); n != std::string_view::npos)
      reason.remove_prefix(n + kBefore.size());
    reason = reason.substr(0, reason.find("; last read"));
    if (e.id == 406) reason = "a number is too large";
    why_ = "the body is not valid JSON: " + std::string(reason) + " at byte " + std::to_string(at);
    return false;
  }

  [[nodiscard]] const Json& root() const { return root_; }
  [[nodiscard]] const std::string& why() const { return why_; }

 private:
  bool put(Json value) {
    (void)place(std::move(value));
    return true;
  }
  Json* place(Json value) {
    if (open_.empty()) return &(root_ = std::move(value));
    if (open_.back()->is_object()) return &(*field_ = std::move(value));
    return &open_.back()->emplace_back(std::move(value));
  }
  bool open(Json value) {
    if (open_.size() == kMaxDepth) {
      why_ = "the body is nested deeper than " + std::to_string(kMaxDepth) + " arrays and objects";
      return false;
    }
    open_.push_back(place(std::move(value)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  Json root_;
  std::vector<Json*>
      open_;  // from the root to where the next value goes: the last element of each stays where it is
  Json* field_ = nullptr;  // of the innermost object
  std::string why_;
};

/// The fields of a body. The first error stays; what is read behind it does not count.
class Fields {
 public:
  explicit Fields(std::string_view body) {
    // nlohmann takes a NUL byte for the end of the text.
    if (const auto nul = body.find('\0'); nul != std::string_view::npos) {
      fail({}, "the body is not valid JSON: a NUL byte at byte " + std::to_string(nul + 1));
    } else if (!Json::sax_parse(body.begin(), body.end(), &builder_)) {
      fail({}, builder_.why());
    } else if (!builder_.root().is_object()) {
      fail({}, "the body must be a JSON object");
    }
  }

  void fail(std::string param, std::string message, std::string code = {}, int status = 400) {
    if (failed_) return;
    failed_ = true;
    error_ = {
        .status = status, .message = std::move(message), .param = std::move(param), .code = std::move(code)};
  }
  [[nodiscard]] bool failed() const { return failed_; }
  [[nodiscard]] const ApiError& error() const { return error_; }

  /// null counts as absent: nullptr.
  [[nodiscard]] const Json* find(std::string_view name) {
    if (failed()) return nullptr;
    const auto at = builder_.root().find(name);
    return at == builder_.root().end() || at->is_null() ? nullptr : &*at;
  }

  [[nodiscard]] bool flag(std::string_view name, bool absent = false) {
    const Json* value = find(name);
    if (value == nullptr) return absent;
    if (!value->is_boolean()) fail(std::string(name), std::string(name) + " must be true or false");
    return value->is_boolean() ? value->get<bool>() : absent;
  }
  /// An integer from 1 on.
  [[nodiscard]] std::optional<std::uint32_t> count(std::string_view name) {
    const Json* value = find(name);
    if (value == nullptr) return {};
    const std::string field(name);
    if (!value->is_number_integer()) {
      fail(field, field + " must be an integer");
    } else if (value->is_number_unsigned() && value->get<std::uint64_t>() > kMaxInt) {
      fail(field, field + " must be at most " + std::to_string(kMaxInt));
    } else if (value->get<std::int64_t>() < 1) {
      fail(field, field + " must be at least 1");
    } else {
      return value->get<std::uint32_t>();
    }
    return {};
  }
  [[nodiscard]] std::optional<double> number(std::string_view name, int least, int most) {
    const Json* value = find(name);
    if (value == nullptr) return {};
    if (value->is_number() && value->get<double>() >= least && value->get<double>() <= most)
      return value->get<double>();
    fail(std::string(name), std::string(name) + " must be a number from " + std::to_string(least) + " to " +
                                std::to_string(most));
    return {};
  }

 private:
  Builder builder_;
  bool failed_ = false;
  ApiError error_;
};

bool is_text(const Json& value, std::initializer_list<std::string_view> texts) {
  return value.is_string() &&
         std::find(texts.begin(), texts.end(), value.get_ref<const std::string&>()) != texts.end();
}
bool is_number(const Json& value, std::initializer_list<double> numbers) {
  return value.is_number() && std::find(numbers.begin(), numbers.end(), value.get<double>()) != numbers.end();
}
bool is_false(const Json& value) { return value.is_boolean() && !value.get<bool>(); }
bool is_empty(const Json& value) { return value.is_structured() && value.empty(); }

/// A field that would change the answer, unless its value asks for what happens anyway.
struct Unsupported {
  std::string_view name;
  bool (*harmless)(const Json& value, std::uint32_t n);
  std::string_view instead;  // what to write; empty: nothing but leaving it out
};
using N = std::uint32_t;
constexpr Unsupported kUnsupported[] = {
    // OpenAI's
    {"tools", [](const Json& v, N) { return is_empty(v); }, "an empty array"},
    {"tool_choice", [](const Json& v, N) { return is_text(v, {"none", "auto"}); }, "\"none\""},
    {"functions", [](const Json& v, N) { return is_empty(v); }, "an empty array"},
    {"function_call", [](const Json& v, N) { return is_text(v, {"none", "auto"}); }, "\"none\""},
    {"response_format",
     [](const Json& v, N) { return v.is_object() && is_text(v.value("type", Json()), {"text"}); },
     "{\"type\": \"text\"}"},
    {"logprobs", [](const Json& v, N) { return is_false(v); }, "false"},
    {"top_logprobs", [](const Json& v, N) { return is_number(v, {0}); }, "0"},
    {"logit_bias", [](const Json& v, N) { return is_empty(v); }, "an empty object"},
    {"presence_penalty", [](const Json& v, N) { return is_number(v, {0}); }, "0"},
    {"frequency_penalty", [](const Json& v, N) { return is_number(v, {0}); }, "0"},
    {"best_of", [](const Json& v, N n) { return v.is_number_integer() && v <= n; }, "n"},
    {"echo", [](const Json& v, N) { return is_false(v); }, "false"},
    {"suffix", [](const Json& v, N) { return is_text(v, {""}); }, "an empty string"},
    {"modalities", [](const Json& v, N) { return v.is_array() && v.size() == 1 && is_text(v[0], {"text"}); },
     "[\"text\"]"},
    {"audio", [](const Json&, N) { return false; }, ""},
    {"prediction", [](const Json&, N) { return false; }, ""},
    {"web_search_options", [](const Json&, N) { return false; }, ""},
    // llama-server's and vLLM's
    {"top_k", [](const Json& v, N) { return is_number(v, {0, -1}); }, "0"},
    {"min_p", [](const Json& v, N) { return is_number(v, {0}); }, "0"},
    {"typical_p", [](const Json& v, N) { return is_number(v, {1}); }, "1"},
    {"repetition_penalty", [](const Json& v, N) { return is_number(v, {1}); }, "1"},
    {"repeat_penalty", [](const Json& v, N) { return is_number(v, {1}); }, "1"},
    {"mirostat", [](const Json& v, N) { return is_number(v, {0}); }, "0"},
    {"grammar", [](const Json& v, N) { return is_text(v, {""}); }, "an empty string"},
    {"json_schema", [](const Json&, N) { return false; }, ""},
    {"guided_json", [](const Json&, N) { return false; }, ""},
    {"n_probs", [](const Json& v, N) { return is_number(v, {0}); }, "0"},
    {"n_predict", [](const Json&, N) { return false; }, ""},
    {"min_tokens", [](const Json& v, N) { return is_number(v, {0}); }, "0"},
    {"bad_words", [](const Json& v, N) { return is_empty(v); }, "an empty array"},
    {"samplers", [](const Json&, N) { return false; }, ""},
    {"dry_multiplier", [](const Json& v, N) { return is_number(v, {0}); }, "0"},
    {"lora", [](const Json& v, N) { return is_empty(v); }, "an empty array"},
    {"reasoning_effort", [](const Json& v, N) { return is_text(v, {"none"}); }, "\"none\""},
    {"chat_template_kwargs", [](const Json& v, N) { return is_empty(v); }, "an empty object"},
};

void refuse_unsupported(Fields& in, std::uint32_t n) {
  for (const Unsupported& u : kUnsupported) {
    const Json* value = in.find(u.name);
    if (value == nullptr || u.harmless(*value, n)) continue;
    std::string message = std::string(u.name) + " is not supported here: leave it out";
    if (u.name == "n_predict") message = "n_predict is called max_tokens here";
    if (!u.instead.empty()) message.append(", or set it to ").append(u.instead);
    in.fail(std::string(u.name), std::move(message));
  }
}

void check_model(Fields& in, const ParseOptions& options) {
  const Json* value = in.find("model");
  if (value == nullptr) return;
  if (!value->is_string()) return in.fail("model", "model must be a string");
  const auto& name = value->get_ref<const std::string&>();
  if (options.models.empty() ||
      std::find(options.models.begin(), options.models.end(), name) != options.models.end())
    return;
  std::string message = "the model " + quote(name) + " does not exist here: use one of: ";
  for (const std::string& known : options.models)
    message.append(&known == options.models.data() ? "" : ", ").append(known);
  in.fail("model", std::move(message), "model_not_found", 404);
}

std::vector<std::string> stops_of(Fields& in, const ParseOptions& options) {
  const Json* value = in.find("stop");
  if (value == nullptr) return {};
  if (value->is_array() && (value->empty() || value->size() > options.max_stops)) {
    in.fail("stop", "stop must have 1 to " + std::to_string(options.max_stops) + " strings, or be left out");
    return {};
  }
  std::vector<std::string> stops;
  const auto take = [&](const Json& stop) {
    if (!stop.is_string()) return in.fail("stop", "stop must be a string or an array of strings");
    const auto& text = stop.get_ref<const std::string&>();
    if (text.empty()) return in.fail("stop", "a stop string must not be empty");
    if (text.size() > options.max_stop_bytes)
      return in.fail("stop", "a stop string must have at most " + std::to_string(options.max_stop_bytes) +
                                 " bytes, this one has " + std::to_string(text.size()) + ": " + quote(text));
    stops.push_back(text);
  };
  if (value->is_array()) {
    for (const Json& stop : *value) take(stop);
  } else {
    take(*value);
  }
  return stops;
}

/// What both endpoints have in common.
void read_generate(Fields& in, const ParseOptions& options, std::size_t prompts, Generate& out) {
  out.n = in.count("n").value_or(1);
  if (const std::size_t most = options.max_choices / prompts; out.n > most)
    in.fail("n", "n must be at most " + std::to_string(most) +
                     (prompts > 1 ? " with " + std::to_string(prompts) + " prompts" : std::string()));
  out.max_tokens = in.count("max_tokens");
  if (const auto t = in.number("temperature", 0, 2)) out.temperature = static_cast<float>(*t);
  if (const auto p = in.number("top_p", 0, 1)) out.top_p = static_cast<float>(*p);
  if (out.top_p <= 0) {  // the likeliest token only
    out.temperature = 0;
    out.top_p = 1;
  }
  if (const Json* seed = in.find("seed"); seed != nullptr) {
    if (seed->is_number_integer()) {
      out.seed = static_cast<std::uint32_t>(seed->get<std::uint64_t>());
    } else {
      in.fail("seed", "seed must be an integer of at most 64 bits");
    }
  }
  out.stop = stops_of(in, options);
  out.stream = in.flag("stream");
  if (const Json* more = in.find("stream_options"); more != nullptr) {
    const Json usage = more->is_object() ? more->value("include_usage", Json(false)) : Json();
    if (!more->is_object()) {
      in.fail("stream_options", "stream_options must be an object");
    } else if (!out.stream) {
      in.fail("stream_options", "stream_options is only allowed when stream is true");
    } else if (!usage.is_boolean() && !usage.is_null()) {
      in.fail("stream_options.include_usage", "stream_options.include_usage must be true or false");
    } else {
      out.include_usage = usage.is_boolean() && usage.get<bool>();
    }
  }
  out.ignore_eos = in.flag("ignore_eos");
  out.cache_prompt = in.flag("cache_prompt", true);
  out.return_token_ids = in.flag("return_token_ids");
  refuse_unsupported(in, out.n);
}

bool is_given(const Json& object, std::string_view name) {
  const auto at = object.find(name);
  return at != object.end() && !at->is_null();
}

std::string content_of(Fields& in, const Json& message, const std::string& role, const std::string& at) {
  const auto field = message.find("content");
  if (field == message.end() || field->is_null()) {
    if (role != "assistant") in.fail(at, at + " is missing: write a string");
    return {};
  }
  // llama.cpp's chat formats end a text at its first NUL.
  const auto whole = [&](std::string text) {
    if (text.find('\0') != std::string::npos) in.fail(at, at + " must not have NUL characters (\\u0000)");
    return text;
  };
  if (field->is_string()) return whole(field->get<std::string>());
  std::string content;
  if (!field->is_array())
    in.fail(at, at + " must be a string or an array of parts {\"type\": \"text\", \"text\": ...}");
  for (std::size_t i = 0; field->is_array() && i < field->size() && !in.failed(); ++i) {
    const Json& part = (*field)[i];
    const std::string part_at = at + "[" + std::to_string(i) + "]";
    if (!part.is_object() || !part.contains("type") || !part["type"].is_string()) {
      in.fail(part_at, part_at + " must be an object {\"type\": \"text\", \"text\": ...}");
    } else if (part["type"] != "text") {
      in.fail(part_at, part_at + " is of type " + quote(part["type"].get_ref<const std::string&>()) +
                           ": only text is supported here");
    } else if (!part.contains("text") || !part["text"].is_string()) {
      in.fail(part_at, part_at + " must have its text as a string \"text\"");
    } else {
      content += part["text"].get_ref<const std::string&>();
    }
  }
  return whole(std::move(content));
}

std::vector<ChatMessage> messages_of(Fields& in) {
  constexpr std::string_view kAsText =
      "send tool calls and their results as plain text in user and assistant messages";
  const Json* value = in.find("messages");
  if (value == nullptr || !value->is_array() || value->empty()) {
    in.fail("messages", "messages must be an array of at least one message");
    return {};
  }
  std::vector<ChatMessage> messages;
  for (const Json& message : *value) {
    const std::string at = "messages[" + std::to_string(messages.size()) + "]";
    if (!message.is_object()) {
      in.fail(at, at + " must be an object with a role and a content");
    } else if (!message.contains("role") || !message["role"].is_string()) {
      in.fail(at + ".role", at + ".role must be system, developer, user or assistant");
    } else if (is_text(message["role"], {"tool", "function"})) {
      in.fail(at + ".role", at + ".role " + quote(message["role"].get_ref<const std::string&>()) +
                                " is not supported here: " + std::string(kAsText));
    } else if (!is_text(message["role"], {"system", "developer", "user", "assistant"})) {
      in.fail(at + ".role", at + ".role is " + quote(message["role"].get_ref<const std::string&>()) +
                                ": it must be system, developer, user or assistant");
    } else if (is_given(message, "tool_calls") && !is_empty(message["tool_calls"])) {
      in.fail(at + ".tool_calls", at + ".tool_calls is not supported here: " + std::string(kAsText));
    } else if (is_given(message, "function_call")) {
      in.fail(at + ".function_call", at + ".function_call is not supported here: " + std::string(kAsText));
    } else {
      auto role = message["role"].get<std::string>();
      std::string content = content_of(in, message, role, at + ".content");
      messages.push_back({role == "developer" ? "system" : std::move(role), std::move(content)});
    }
    if (in.failed()) break;
  }
  return messages;
}

std::vector<CompletionRequest::Prompt> prompts_of(Fields& in, const ParseOptions& options) {
  constexpr std::string_view kForms =
      "a string, an array of strings, an array of token ids, or an array of arrays of token ids";
  using Prompt = CompletionRequest::Prompt;
  const auto fail = [&](std::string message) {
    in.fail("prompt", std::move(message));
    return std::vector<Prompt>();
  };
  const auto name = [](std::size_t i) { return "prompt[" + std::to_string(i) + "]"; };
  /// Reads token ids; false if one of them is none.
  const auto read_ids = [&](const Json& array, const std::string& at, std::vector<TokenId>& ids) {
    ids.reserve(array.size());
    for (const Json& id : array) {
      if (!id.is_number_unsigned() || id.get<std::uint64_t>() > kMaxInt) {
        in.fail("prompt", at + "[" + std::to_string(ids.size()) +
                              "] must be a token id, an integer from 0 to " + std::to_string(kMaxInt) +
                              ", as the others are");
        return false;
      }
      ids.push_back(id.get<TokenId>());
    }
    return true;
  };

  const Json* value = in.find("prompt");
  if (value == nullptr) return fail("prompt is missing: write " + std::string(kForms));
  if (value->is_string()) {
    if (value->get_ref<const std::string&>().empty())
      return fail("prompt is an empty string: there must be something to go on from");
    return {value->get<std::string>()};
  }
  if (!value->is_array()) return fail("prompt must be " + std::string(kForms));
  if (value->empty()) return fail("prompt is an empty array: there must be something to go on from");
  const Json& first = value->front();
  if (first.is_number()) {
    std::vector<TokenId> ids;
    if (!read_ids(*value, "prompt", ids)) return {};
    std::vector<Prompt> one;
    one.emplace_back(std::move(ids));
    return one;
  }
  if (!first.is_string() && !first.is_array()) return fail("prompt must be " + std::string(kForms));
  if (value->size() > options.max_choices)
    return fail("prompt has " + std::to_string(value->size()) + " prompts: one request may have at most " +
                std::to_string(options.max_choices));
  std::vector<Prompt> prompts;
  for (const Json& item : *value) {
    const std::string at = name(prompts.size());
    if (item.type() != first.type())
      return fail(at + " is not of the kind that the others are: prompt must be " + std::string(kForms));
    if (item.is_string()) {
      if (item.get_ref<const std::string&>().empty())
        return fail(at + " is an empty string: there must be something to go on from");
      prompts.emplace_back(item.get<std::string>());
      continue;
    }
    if (item.empty()) return fail(at + " is an empty array: there must be something to go on from");
    std::vector<TokenId> ids;
    if (!read_ids(item, at, ids)) return {};
    prompts.emplace_back(std::move(ids));
  }
  return prompts;
}

// Answers out.

std::string dump(const Ordered& value) {
  return value.dump(-1, ' ', false, Ordered::error_handler_t::replace);  // never throws on ill-formed text
}
std::string event(const Ordered& value) { return "data: " + dump(value) + "\n\n"; }

Ordered error_of(const ApiError& error) {
  const char* type = error.status == 401   ? "authentication_error"
                     : error.status == 429 ? "rate_limit_error"
                     : error.status >= 500 ? "server_error"
                                           : "invalid_request_error";
  const auto or_null = [](const std::string& text) { return text.empty() ? Ordered() : Ordered(text); };
  return {{"error",
           {{"message", error.message},
            {"type", type},
            {"param", or_null(error.param)},
            {"code", or_null(error.code)}}}};
}

Ordered head(const Identity& identity, std::string_view object) {
  return {{"id", identity.id}, {"object", object}, {"created", identity.created}, {"model", identity.model}};
}

Ordered usage_of(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", std::uint64_t{usage.prompt_tokens} + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

Ordered chunk_head(const Identity& identity) {
  return head(identity, identity.chat ? "chat.completion.chunk" : "text_completion");
}

/// `delta` is for chat, `text` for completions.
std::string chunk(const Identity& identity, std::uint32_t index, Ordered delta, std::string_view text,
                  const Ordered& finish_reason, bool include_usage, std::span<const TokenId> token_ids = {}) {
  Ordered choice{{"index", index}};
  if (identity.chat) {
    choice["delta"] = std::move(delta);
  } else {
    choice["text"] = text;
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = finish_reason;
  if (!token_ids.empty()) choice["token_ids"] = token_ids;
  Ordered all = chunk_head(identity);
  all["choices"] = Ordered::array({std::move(choice)});
  if (include_usage) all["usage"] = nullptr;
  return event(all);
}

Ordered model_of(const ModelInfo& model) {
  return {{"id", model.name},
          {"object", "model"},
          {"created", model.created},
          {"owned_by", "kvstem"},
          {"max_model_len", model.max_model_len}};
}

}  // namespace

std::string error_body(const ApiError& error) { return dump(error_of(error)); }

Parsed<ChatRequest> parse_chat(std::string_view body, const ParseOptions& options) {
  Fields in(body);
  check_model(in, options);
  ChatRequest out;
  out.messages = messages_of(in);
  read_generate(in, options, 1, out);
  if (const auto most = in.count("max_completion_tokens")) out.max_tokens = most;
  if (in.failed()) return in.error();
  return out;
}

Parsed<CompletionRequest> parse_completion(std::string_view body, const ParseOptions& options) {
  Fields in(body);
  check_model(in, options);
  CompletionRequest out;
  out.prompts = prompts_of(in, options);
  read_generate(in, options, std::max<std::size_t>(out.prompts.size(), 1), out);
  if (in.failed()) return in.error();
  return out;
}

Parsed<TokenizeRequest> parse_tokenize(std::string_view body) {
  Fields in(body);
  TokenizeRequest out;
  const char* name = in.find("content") == nullptr && in.find("prompt") != nullptr ? "prompt" : "content";
  if (const Json* content = in.find(name); content == nullptr) {
    in.fail("content", "content is missing: write a string");
  } else if (!content->is_string()) {
    in.fail(name, std::string(name) + " must be a string");
  } else {
    out.content = content->get<std::string>();
  }
  out.add_special = in.flag("add_special", out.add_special);
  out.parse_special = in.flag("parse_special", out.parse_special);
  if (in.failed()) return in.error();
  return out;
}

std::string answer(const Identity& identity, std::span<const Choice> choices, const Usage& usage) {
  Ordered all = head(identity, identity.chat ? "chat.completion" : "text_completion");
  Ordered& list = all["choices"] = Ordered::array();
  for (const Choice& c : choices) {
    Ordered choice{{"index", list.size()}};
    if (identity.chat) {
      choice["message"] = {{"role", "assistant"}, {"content", c.text}};
    } else {
      choice["text"] = c.text;
    }
    choice["logprobs"] = nullptr;
    choice["finish_reason"] = c.finish_reason;
    if (!c.token_ids.empty()) choice["token_ids"] = c.token_ids;
    list.push_back(std::move(choice));
  }
  all["usage"] = usage_of(usage);
  return dump(all);
}

std::string first_chunk(const Identity& identity, std::uint32_t index, bool include_usage) {
  if (!identity.chat) return {};
  return chunk(identity, index, {{"role", "assistant"}, {"content", ""}}, {}, nullptr, include_usage);
}

std::string text_chunk(const Identity& identity, std::uint32_t index, std::string_view text,
                       bool include_usage, std::span<const TokenId> token_ids) {
  return chunk(identity, index, {{"content", text}}, text, nullptr, include_usage, token_ids);
}

std::string finish_chunk(const Identity& identity, std::uint32_t index, std::string_view finish_reason,
                         bool include_usage) {
  return chunk(identity, index, Ordered::object(), {}, finish_reason, include_usage);
}

std::string usage_chunk(const Identity& identity, const Usage& usage) {
  Ordered all = chunk_head(identity);
  all["choices"] = Ordered::array();
  all["usage"] = usage_of(usage);
  return event(all);
}

std::string error_chunk(const ApiError& error) { return event(error_of(error)); }

std::string models_answer(const ModelInfo& model) {
  return dump({{"object", "list"}, {"data", Ordered::array({model_of(model)})}});
}

std::string model_answer(const ModelInfo& model) { return dump(model_of(model)); }

std::string tokenize_answer(std::span<const TokenId> tokens) {
  Ordered list = Ordered::array();
  for (const TokenId token : tokens) list.push_back(token);
  return dump({{"tokens", std::move(list)}});
}

}  // namespace kvstem_llama::server
