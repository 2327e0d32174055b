// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "api.hpp"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "support/catch.hpp"

using namespace kvstem_llama::server;
using Json = nlohmann::json;
using kvstem_llama::TokenId;

namespace {

const ParseOptions kOptions = {
    .models = {"smol", "SmolLM2"}, .max_choices = 8, .max_stops = 3, .max_stop_bytes = 8};

std::string chat_with(const std::string& fields) {
  return R"({"messages": [{"role": "user", "content": "hi"}])" + (fields.empty() ? "" : ", " + fields) + "}";
}
std::string completion_with(const std::string& fields) {
  return R"({"prompt": "hi")" + (fields.empty() ? "" : ", " + fields) + "}";
}
std::string chat_of(const std::string& messages) { return R"({"messages": )" + messages + "}"; }
std::string prompt_of(const std::string& prompt) { return R"({"prompt": )" + prompt + "}"; }

template <class T>
T taken(Parsed<T> parsed, std::string_view body) {
  INFO(body);
  INFO((parsed.ok() ? std::string() : parsed.error().message));
  REQUIRE(parsed.ok());
  return std::move(*parsed);
}
template <class T>
ApiError refused(const Parsed<T>& parsed, std::string_view body) {
  INFO(body);
  REQUIRE_FALSE(parsed.ok());
  CHECK_FALSE(parsed.error().message.empty());
  CHECK(parsed.error().message.size() < 400);
  return parsed.error();
}

ChatRequest chat(const std::string& body) { return taken(parse_chat(body, kOptions), body); }
CompletionRequest completion(const std::string& body) {
  return taken(parse_completion(body, kOptions), body);
}
TokenizeRequest tokenize(const std::string& body) { return taken(parse_tokenize(body), body); }
ApiError no_chat(const std::string& body) { return refused(parse_chat(body, kOptions), body); }
ApiError no_completion(const std::string& body) { return refused(parse_completion(body, kOptions), body); }
ApiError no_tokenize(const std::string& body) { return refused(parse_tokenize(body), body); }

/// Refused by both endpoints for the same reason, which names this field.
std::string neither(const std::string& fields, const std::string& param) {
  const ApiError a = no_chat(chat_with(fields)), b = no_completion(completion_with(fields));
  INFO(fields);
  CHECK(a.status == 400);
  CHECK(a.param == param);
  CHECK(a.code.empty());
  CHECK(b.status == 400);
  CHECK(b.param == param);
  CHECK(a.message == b.message);
  return a.message;
}
Generate both(const std::string& fields) {
  (void)completion(completion_with(fields));
  return chat(chat_with(fields));
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

/// The one event that this text must be.
Json event(const std::string& text) {
  INFO(text);
  REQUIRE(text.size() > 8);
  REQUIRE(text.substr(0, 6) == "data: ");
  REQUIRE(text.find('\n') == text.size() - 2);
  REQUIRE(text.substr(text.size() - 2) == "\n\n");
  return Json::parse(text.substr(6, text.size() - 8));
}

const Identity kChat = {.chat = true, .id = "chatcmpl-1", .created = 1700000000, .model = "smol"};
const Identity kText = {.chat = false, .id = "cmpl-1", .created = 1700000000, .model = "smol"};

}  // namespace

TEST_CASE("a body that is no JSON is refused with the place") {
  CHECK(no_chat("").message ==
        "the body is not valid JSON: while parsing value - unexpected end of input; expected "
        "'[', '{', or a literal at byte 1");
  CHECK(contains(no_chat("{\"messages\": [}").message, "the body is not valid JSON: "));
  CHECK(contains(no_chat("{\"messages\": [}").message, " at byte 15"));
  for (const std::string body :
       {"nonsense", "{", "{}}", "{'a': 1}", "{\"a\": 01}", "{\"a\": NaN}", "{\"a\": 1,}", "// {}",
        "{\"a\": \"\x01\"}", "{\"a\": \"\\ud800\"}", "\xFF\xFE"}) {
    CHECK(contains(no_chat(body).message, "the body is not valid JSON: "));
    CHECK(contains(no_completion(body).message, "the body is not valid JSON: "));
    CHECK(contains(no_tokenize(body).message, "the body is not valid JSON: "));
    CHECK(no_chat(body).status == 400);
    CHECK(no_chat(body).param.empty());
  }
}

TEST_CASE("a refusal does not repeat a long body") {
  CHECK(no_chat("\"" + std::string(100000, 'x')).message.size() < 200);
  CHECK(no_chat("[" + std::string(100000, '7') + "]").message.size() < 200);
  CHECK(no_chat(chat_with("\"model\": \"" + std::string(100000, 'x') + "\"")).message.size() < 250);
  CHECK(no_chat("{\"" + std::string(1000, 'x') + "\": 1, \"" + std::string(1000, 'x') + "\": 1}")
            .message.size() < 250);
}

TEST_CASE("text that is no UTF-8 is refused") {
  for (const std::string bad : {"\xFF", "\xC3", "\xED\xA0\x80", "\xC0\x80"})
    CHECK(contains(no_completion(prompt_of("\"" + bad + "\"")).message, "ill-formed UTF-8"));
}

TEST_CASE("NUL is a character of strings, and nothing outside of them") {
  CHECK(std::get<std::string>(completion(R"({"prompt": "a\u0000b"})").prompts[0]) == std::string("a\0b", 3));
  // nlohmann would stop reading there.
  CHECK(contains(no_completion(completion_with("") + std::string("\0 and more", 10)).message,
                 "a NUL byte at byte 17"));
  CHECK(contains(no_completion(std::string("{\"prompt\": \"a\0b\"}", 17)).message, "a NUL byte at byte 14"));
}

TEST_CASE("a body that is no object is refused") {
  for (const std::string body : {"[]", "1", "\"prompt\"", "null", "true"})
    CHECK(no_completion(body).message == "the body must be a JSON object");
}

TEST_CASE("values nest 64 deep and no deeper") {
  const auto nested = [](std::size_t arrays) {
    return completion_with("\"unknown\": " + std::string(arrays, '[') + std::string(arrays, ']'));
  };
  (void)completion(nested(63));
  CHECK(contains(no_completion(nested(64)).message, "nested deeper than 64"));
  CHECK(contains(no_completion(std::string(4 << 20, '[')).message, "nested deeper than 64"));
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  CHECK(contains(no_completion(objects).message, "nested deeper than 64"));
  (void)completion(prompt_of("\"" + std::string(1000, '[') + "\""));  // in a string it is text
  (void)completion(completion_with("\"unknown\": [" + std::string("[],") + "[]]"));
}

TEST_CASE("a field that is there twice is refused") {
  CHECK(no_chat(chat_with("\"stream\": true, \"stream\": false")).message ==
        "the body has the field 'stream' twice in one object");
  CHECK(contains(no_chat(chat_with("\"unknown\": {\"b\": 1, \"a\": {}, \"b\": 1}")).message, "'b' twice"));
  (void)chat(chat_with(R"("unknown": [{"a": 1}, {"a": 1}])"));
}

TEST_CASE("null counts as absent, and unknown fields are ignored") {
  const Generate g = both(
      R"("model": null, "n": null, "max_tokens": null, "max_completion_tokens": null, "temperature": null,
         "top_p": null, "seed": null, "stop": null, "stream": null, "stream_options": null, "ignore_eos": null,
         "tools": null, "audio": null, "json_schema": null, "logprobs": null, "best_of": null,
         "user": "me", "metadata": {"a": [1, 2.5, {"b": null}]}, "store": true)");
  CHECK(g.n == 1);
  CHECK_FALSE(g.max_tokens.has_value());
  CHECK(g.temperature == 1);
  CHECK(g.top_p == 1);
  CHECK_FALSE(g.seed.has_value());
  CHECK(g.stop.empty());
  CHECK_FALSE(g.stream);
  CHECK_FALSE(g.include_usage);
  CHECK_FALSE(g.ignore_eos);
}

TEST_CASE("a model must be this server's") {
  (void)both(R"("model": "smol")");
  (void)both(R"("model": "SmolLM2")");
  const ApiError e = no_chat(chat_with(R"("model": "gpt-4")"));
  CHECK(e.status == 404);
  CHECK(e.code == "model_not_found");
  CHECK(e.param == "model");
  CHECK(e.message == "the model 'gpt-4' does not exist here: use one of: smol, SmolLM2");
  CHECK(no_completion(completion_with(R"("model": "")")).status == 404);
  CHECK(no_chat(R"({"model": "gpt-4"})").status == 404);  // told before what is wrong with the messages
  CHECK(neither(R"("model": 4)", "model") == "model must be a string");
  CHECK(parse_chat(chat_with(R"("model": "any")"), {}).ok());
}

TEST_CASE("what is quoted is cut between characters") {
  std::string name = std::string(99, 'x') + "\xE2\x82\xAC\xE2\x82\xAC";
  CHECK(contains(no_chat(chat_with("\"model\": \"" + name + "\"")).message,
                 "'" + std::string(99, 'x') + "...'"));
  name = std::string(97, 'x') + "\xE2\x82\xAC\xE2\x82\xAC";
  CHECK(contains(no_chat(chat_with("\"model\": \"" + name + "\"")).message,
                 "'" + std::string(97, 'x') + "\xE2\x82\xAC...'"));
}

TEST_CASE("messages are read") {
  const ChatRequest r = chat(chat_of(R"([{"role": "developer", "content": "be brief"},
      {"role": "system", "content": "", "name": "s"},
      {"role": "user", "content": [{"type": "text", "text": "a\n"}, {"type": "text", "text": "\u00e9"}]},
      {"role": "assistant", "content": null, "tool_calls": []}, {"role": "assistant", "tool_calls": null},
      {"role": "user", "content": []}])"));
  REQUIRE(r.messages.size() == 6);
  CHECK(r.messages[0].role == "system");
  CHECK(r.messages[0].content == "be brief");
  CHECK(r.messages[1].role == "system");
  CHECK(r.messages[2].role == "user");
  CHECK(r.messages[2].content == "a\n\xC3\xA9");
  CHECK(r.messages[3].role == "assistant");
  CHECK(r.messages[3].content.empty());
  CHECK(r.messages[4].content.empty());
  CHECK(r.messages[5].content.empty());
}

TEST_CASE("messages that cannot be answered are refused, and named") {
  const auto check = [](const std::string& messages, const std::string& param, std::string_view part) {
    const ApiError e = no_chat(chat_of(messages));
    INFO(messages << " " << e.message);
    CHECK(e.status == 400);
    CHECK(e.param == param);
    CHECK(contains(e.message, part));
  };
  CHECK(no_chat("{}").param == "messages");
  check("null", "messages", "at least one");
  check("[]", "messages", "at least one");
  check("\"hi\"", "messages", "array");
  check("[1]", "messages[0]", "object");
  const std::string ok = R"({"role": "user", "content": "hi"}, )";
  check("[" + ok + R"({"content": "hi"}])", "messages[1].role",
        "must be system, developer, user or assistant");
  check("[" + ok + R"({"role": 1, "content": "hi"}])", "messages[1].role", "must be");
  check("[" + ok + R"({"role": "robot", "content": "hi"}])", "messages[1].role", "'robot'");
  check("[" + ok + R"({"role": "tool", "content": "hi"}])", "messages[1].role",
        "plain text in user and assistant");
  check(R"([{"role": "function", "name": "f", "content": "hi"}])", "messages[0].role", "plain text");
  check(R"([{"role": "assistant", "tool_calls": [{"id": "1"}]}])", "messages[0].tool_calls", "plain text");
  check(R"([{"role": "assistant", "tool_calls": "f"}])", "messages[0].tool_calls", "plain text");
  check(R"([{"role": "assistant", "function_call": {"name": "f"}}])", "messages[0].function_call",
        "plain text");
  check(R"([{"role": "user"}])", "messages[0].content", "missing");
  check(R"([{"role": "system", "content": null}])", "messages[0].content", "missing");
  check(R"([{"role": "user", "content": 1}])", "messages[0].content", "must be a string or an array");
  check(R"([{"role": "user", "content": {"type": "text", "text": "a"}}])", "messages[0].content", "array");
  check(
      R"([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}])",
      "messages[0].content[1]", "'image_url': only text is supported");
  check(R"([{"role": "user", "content": [{"type": "input_audio"}]}])", "messages[0].content[0]", "only text");
  check(R"([{"role": "user", "content": ["a"]}])", "messages[0].content[0]", "object");
  check(R"([{"role": "user", "content": [{"text": "a"}]}])", "messages[0].content[0]", "object");
  check(R"([{"role": "user", "content": [{"type": "text"}]}])", "messages[0].content[0]", "string");
}

TEST_CASE("prompts are text or tokens, one or many") {
  using Ids = std::vector<TokenId>;
  auto prompts = completion(prompt_of(R"("once")")).prompts;
  REQUIRE(prompts.size() == 1);
  CHECK(std::get<std::string>(prompts[0]) == "once");
  prompts = completion(prompt_of(R"(["a", "b"])")).prompts;
  REQUIRE(prompts.size() == 2);
  CHECK(std::get<std::string>(prompts[1]) == "b");
  prompts = completion(prompt_of("[0, 17, 2147483647]")).prompts;
  REQUIRE(prompts.size() == 1);
  CHECK(std::get<Ids>(prompts[0]) == Ids{0, 17, 2147483647});
  prompts = completion(prompt_of("[[1, 2], [3]]")).prompts;
  REQUIRE(prompts.size() == 2);
  CHECK(std::get<Ids>(prompts[0]) == Ids{1, 2});
  CHECK(std::get<Ids>(prompts[1]) == Ids{3});
}

TEST_CASE("prompts that are empty, mixed or of another kind are refused") {
  const auto check = [](const std::string& prompt, std::string_view part) {
    const ApiError e = no_completion(prompt_of(prompt));
    INFO(prompt << " " << e.message);
    CHECK(e.status == 400);
    CHECK(e.param == "prompt");
    CHECK(contains(e.message, part));
  };
  CHECK(no_completion("{}").message ==
        "prompt is missing: write a string, an array of strings, an array of token ids, or an array of "
        "arrays of token ids");
  check("null", "missing");
  check("\"\"", "empty string");
  check("[]", "empty array");
  check("[[]]", "prompt[0] is an empty array");
  check("[[1], []]", "prompt[1] is an empty array");
  check(R"(["a", ""])", "prompt[1] is an empty string");
  check("1", "must be");
  check("{}", "must be");
  check("[null]", "must be");
  check("[{}]", "must be");
  check(R"(["a", [1]])", "prompt[1] is not of the kind");
  check(R"([[1], "a"])", "prompt[1] is not of the kind");
  check(R"(["a", 1])", "prompt[1] is not of the kind");
  check(R"([1, "a"])", "prompt[1] must be a token id");
  check("[1, [2]]", "prompt[1] must be a token id");
  check("[[1, [2]]]", "prompt[0][1] must be a token id");
  check("[-1]", "prompt[0] must be a token id, an integer from 0 to 2147483647");
  check("[1.0]", "token id");
  check("[2147483648]", "token id");
  check("[18446744073709551616]", "token id");
  check(R"(["1","2","3","4","5","6","7","8","9"])", "9 prompts: one request may have at most 8");
}

TEST_CASE("n is from 1 to what one request may have") {
  CHECK(both("\"n\": 8").n == 8);
  CHECK(neither("\"n\": 9", "n") == "n must be at most 8");
  CHECK(neither("\"n\": 0", "n") == "n must be at least 1");
  CHECK(neither("\"n\": -1", "n") == "n must be at least 1");
  CHECK(neither("\"n\": 1.5", "n") == "n must be an integer");
  CHECK(neither("\"n\": \"1\"", "n") == "n must be an integer");
  CHECK(neither("\"n\": 4294967297", "n") == "n must be at most 2147483647");
  CHECK(completion(R"({"prompt": ["a", "b"], "n": 4})").n == 4);
  const ApiError e = no_completion(R"({"prompt": ["a", "b", "c"], "n": 3})");
  CHECK(e.param == "n");
  CHECK(e.message == "n must be at most 2 with 3 prompts");
}

TEST_CASE("max_tokens is at least 1, and of two names the newer one wins") {
  CHECK(both("\"max_tokens\": 1").max_tokens == 1u);
  CHECK(both("\"max_tokens\": 2147483647").max_tokens == 2147483647u);
  CHECK(neither("\"max_tokens\": 0", "max_tokens") == "max_tokens must be at least 1");
  CHECK(neither("\"max_tokens\": -5", "max_tokens") == "max_tokens must be at least 1");
  CHECK(neither("\"max_tokens\": -0", "max_tokens") == "max_tokens must be at least 1");
  CHECK(neither("\"max_tokens\": 2147483648", "max_tokens") == "max_tokens must be at most 2147483647");
  CHECK(neither("\"max_tokens\": 18446744073709551615", "max_tokens") ==
        "max_tokens must be at most 2147483647");
  CHECK(neither("\"max_tokens\": 1e2", "max_tokens") == "max_tokens must be an integer");
  CHECK(neither("\"max_tokens\": true", "max_tokens") == "max_tokens must be an integer");
  CHECK(chat(chat_with("\"max_completion_tokens\": 7, \"max_tokens\": 9")).max_tokens == 7u);
  CHECK(chat(chat_with("\"max_completion_tokens\": null, \"max_tokens\": 9")).max_tokens == 9u);
  CHECK(no_chat(chat_with("\"max_completion_tokens\": 0")).param == "max_completion_tokens");
}

TEST_CASE("temperature and top_p lie in their ranges") {
  CHECK(both("\"temperature\": 0").temperature == 0);
  CHECK(both("\"temperature\": 2").temperature == 2);
  CHECK(both("\"temperature\": 0.5, \"top_p\": 0.25").top_p == 0.25f);
  for (const std::string value : {"-0.1", "2.1", "\"1\"", "1e308", "[]", "true"})
    CHECK(neither("\"temperature\": " + value, "temperature") == "temperature must be a number from 0 to 2");
  for (const std::string value : {"-0.1", "1.1", "\"1\"", "2"})
    CHECK(neither("\"top_p\": " + value, "top_p") == "top_p must be a number from 0 to 1");
  for (const std::string value : {"1e999", "-1e999", "1e99999999999999999999"})
    CHECK(contains(no_chat(chat_with("\"temperature\": " + value)).message,
                   "the body is not valid JSON: a number is too large at byte "));
}

TEST_CASE("top_p of nothing means the likeliest token only") {
  for (const std::string value : {"0", "0.0", "-0.0", "1e-60", "1e-400"}) {
    const Generate g = both("\"temperature\": 1.5, \"top_p\": " + value);
    CHECK(g.temperature == 0);
    CHECK(g.top_p == 1);
  }
}

TEST_CASE("a seed is the low 32 bits of any integer") {
  CHECK(both("\"seed\": 0").seed == 0u);
  CHECK(both("\"seed\": -1").seed == 0xFFFFFFFFu);
  CHECK(both("\"seed\": 4294967298").seed == 2u);
  CHECK(both("\"seed\": 18446744073709551615").seed == 0xFFFFFFFFu);
  CHECK(both("\"seed\": -9223372036854775808").seed == 0u);
  for (const std::string value : {"1.5", "\"1\"", "18446744073709551616", "true", "1e300"})
    CHECK(neither("\"seed\": " + value, "seed") == "seed must be an integer of at most 64 bits");
}

TEST_CASE("stop is a string or some") {
  CHECK(both(R"("stop": "\n\n")").stop == std::vector<std::string>{"\n\n"});
  CHECK(both(R"("stop": ["a", "12345678", "\u20ac"])").stop ==
        std::vector<std::string>{"a", "12345678", "\xE2\x82\xAC"});
  CHECK(contains(neither(R"("stop": [])", "stop"), "1 to 3 strings"));
  CHECK(contains(neither(R"("stop": ["a", "b", "c", "d"])", "stop"), "1 to 3 strings"));
  CHECK(neither(R"("stop": "")", "stop") == "a stop string must not be empty");
  CHECK(neither(R"("stop": ["a", ""])", "stop") == "a stop string must not be empty");
  CHECK(neither(R"("stop": "123456789")", "stop") ==
        "a stop string must have at most 8 bytes, this one has 9: '123456789'");
  CHECK(neither(R"("stop": 1)", "stop") == "stop must be a string or an array of strings");
  CHECK(neither(R"("stop": [1])", "stop") == "stop must be a string or an array of strings");
  CHECK(neither(R"("stop": ["a", null])", "stop") == "stop must be a string or an array of strings");
}

TEST_CASE("a stream, and its usage if asked for") {
  CHECK(both("\"stream\": true").stream);
  CHECK_FALSE(both("\"stream\": true").include_usage);
  CHECK(both(R"("stream": true, "stream_options": {"include_usage": true})").include_usage);
  for (const std::string more :
       {"{}", R"({"include_usage": false})", R"({"include_usage": null, "other": 1})", "null"})
    CHECK_FALSE(both("\"stream\": true, \"stream_options\": " + more).include_usage);
  CHECK(neither("\"stream\": 1", "stream") == "stream must be true or false");
  CHECK(neither("\"stream\": \"true\"", "stream") == "stream must be true or false");
  CHECK(neither("\"stream_options\": {}", "stream_options") ==
        "stream_options is only allowed when stream is true");
  CHECK(neither(R"("stream": false, "stream_options": {"include_usage": true})", "stream_options") ==
        "stream_options is only allowed when stream is true");
  CHECK(neither("\"stream\": true, \"stream_options\": true", "stream_options") ==
        "stream_options must be an object");
  CHECK(neither(R"("stream": true, "stream_options": {"include_usage": 1})",
                "stream_options.include_usage") == "stream_options.include_usage must be true or false");
  CHECK(both("\"ignore_eos\": true").ignore_eos);
  CHECK(both("\"return_token_ids\": true").return_token_ids);
  CHECK(neither("\"ignore_eos\": 1", "ignore_eos") == "ignore_eos must be true or false");
}

TEST_CASE("what would change the answer and is not supported is refused, what would not is taken") {
  struct Case {
    std::string name;
    std::vector<std::string> taken, refused;
  };
  const std::vector<Case> cases = {
      {"tools", {"[]"}, {R"([{"type": "function"}])", "1"}},
      {"tool_choice", {"\"none\"", "\"auto\""}, {"\"required\"", R"({"type": "function"})"}},
      {"functions", {"[]"}, {R"([{"name": "f"}])"}},
      {"function_call", {"\"none\"", "\"auto\""}, {R"({"name": "f"})"}},
      {"response_format",
       {R"({"type": "text"})"},
       {R"({"type": "json_object"})", R"({"type": "json_schema", "json_schema": {}})", "{}", "\"text\"",
        R"({"type": 1})"}},
      {"logprobs", {"false"}, {"true", "0", "5"}},
      {"top_logprobs", {"0"}, {"1", "\"0\""}},
      {"logit_bias", {"{}"}, {R"({"50256": -100})", "\"\""}},
      {"presence_penalty", {"0", "0.0", "-0.0"}, {"0.1", "-2", "\"0\""}},
      {"frequency_penalty", {"0", "0.0"}, {"0.1", "-2"}},
      {"best_of", {"1", "0"}, {"2", "1.0", "18446744073709551615", "\"1\""}},
      {"echo", {"false"}, {"true", "1"}},
      {"suffix", {"\"\""}, {"\"x\"", "1"}},
      {"modalities", {R"(["text"])"}, {R"(["text", "audio"])", "[]", "\"text\""}},
      {"audio", {}, {"{}", R"({"voice": "ash"})"}},
      {"prediction", {}, {"{}"}},
      {"web_search_options", {}, {"{}"}},
      {"top_k", {"0", "-1"}, {"1", "40", "-2"}},
      {"min_p", {"0", "0.0"}, {"0.05"}},
      {"typical_p", {"1", "1.0"}, {"0.9", "0"}},
      {"repetition_penalty", {"1", "1.0"}, {"1.1", "0"}},
      {"repeat_penalty", {"1", "1.0"}, {"1.1", "0"}},
      {"mirostat", {"0"}, {"1", "2"}},
      {"grammar", {"\"\""}, {"\"root ::= \\\"a\\\"\""}},
      {"json_schema", {}, {"{}"}},
      {"guided_json", {}, {"{}", "\"\""}},
      {"n_probs", {"0"}, {"1"}},
  };
  for (const Case& c : cases) {
    (void)both("\"" + c.name + "\": null");
    for (const std::string& value : c.taken) (void)both("\"" + c.name + "\": " + value);
    for (const std::string& value : c.refused)
      CHECK(contains(neither("\"" + c.name + "\": " + value, c.name),
                     c.name + " is not supported here: leave it out"));
  }
  CHECK(neither("\"top_k\": 40", "top_k") == "top_k is not supported here: leave it out, or set it to 0");
  (void)both("\"n\": 3, \"best_of\": 3");
  (void)neither("\"n\": 3, \"best_of\": 4", "best_of");
}

TEST_CASE("tokenize takes content, or prompt") {
  TokenizeRequest r = tokenize(R"({"content": "a b"})");
  CHECK(r.content == "a b");
  CHECK_FALSE(r.add_special);
  CHECK(r.parse_special);
  r = tokenize(R"({"model": "any", "prompt": "", "add_special": true, "parse_special": false})");
  CHECK(r.content.empty());
  CHECK(r.add_special);
  CHECK_FALSE(r.parse_special);
  CHECK(tokenize(R"({"content": "c", "prompt": "p"})").content == "c");
  CHECK(tokenize(R"({"content": null, "prompt": "p"})").content == "p");
  CHECK(no_tokenize("{}").param == "content");
  CHECK(no_tokenize(R"({"content": 1})").message == "content must be a string");
  CHECK(no_tokenize(R"({"prompt": [1]})").param == "prompt");
  CHECK(no_tokenize(R"({"content": "", "add_special": 1})").param == "add_special");
  CHECK(no_tokenize(R"({"content": "", "parse_special": "no"})").param == "parse_special");
}

TEST_CASE("errors have the type of their status") {
  CHECK(error_body({.status = 400, .message = "m"}) ==
        R"({"error":{"message":"m","type":"invalid_request_error","param":null,"code":null}})");
  CHECK(
      error_body({.status = 404, .message = "m", .param = "model", .code = "model_not_found"}) ==
      R"({"error":{"message":"m","type":"invalid_request_error","param":"model","code":"model_not_found"}})");
  const auto type = [](int status) { return Json::parse(error_body({.status = status}))["error"]["type"]; };
  CHECK(type(401) == "authentication_error");
  CHECK(type(413) == "invalid_request_error");
  CHECK(type(429) == "rate_limit_error");
  CHECK(type(500) == "server_error");
  CHECK(type(503) == "server_error");
  CHECK(event(error_chunk({.status = 500, .message = "line\nline"}))["error"]["message"] == "line\nline");
}

TEST_CASE("a whole chat answer") {
  const std::vector<Choice> choices = {{"Hi!", "stop"}, {"Hello\n", "length"}};
  CHECK(
      answer(kChat, choices, {.prompt_tokens = 10, .completion_tokens = 5, .cached_tokens = 8}) ==
      R"({"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"smol","choices":[)"
      R"({"index":0,"message":{"role":"assistant","content":"Hi!"},"logprobs":null,"finish_reason":"stop"},)"
      R"({"index":1,"message":{"role":"assistant","content":"Hello\n"},"logprobs":null,"finish_reason":"length"}],)"
      R"("usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,)"
      R"("prompt_tokens_details":{"cached_tokens":8}}})");
}

TEST_CASE("a whole completion") {
  const std::vector<Choice> choices = {{" upon", "length"}};
  CHECK(answer(kText, choices, {.prompt_tokens = 1, .completion_tokens = 1}) ==
        R"({"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"smol","choices":[)"
        R"({"index":0,"text":" upon","logprobs":null,"finish_reason":"length"}],)"
        R"("usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2,)"
        R"("prompt_tokens_details":{"cached_tokens":0}}})");
  CHECK(Json::parse(answer(kText, {},
                           {.prompt_tokens = 4294967295, .completion_tokens = 1}))["usage"]["total_tokens"] ==
        4294967296);
}

TEST_CASE("a chat stream opens a choice, goes on, and finishes it") {
  CHECK(
      first_chunk(kChat, 1, false) ==
      "data: "
      R"({"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"smol",)"
      R"("choices":[{"index":1,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]})"
      "\n\n");
  Json e = event(text_chunk(kChat, 2, "a\nb", false));
  CHECK(e["choices"] ==
        Json::parse(R"([{"index":2,"delta":{"content":"a\nb"},"logprobs":null,"finish_reason":null}])"));
  CHECK_FALSE(e.contains("usage"));
  e = event(finish_chunk(kChat, 2, "stop", false));
  CHECK(e["choices"] == Json::parse(R"([{"index":2,"delta":{},"logprobs":null,"finish_reason":"stop"}])"));
  CHECK_FALSE(e.contains("usage"));
}

TEST_CASE("a completion's stream has text and no opening") {
  CHECK(first_chunk(kText, 0, true).empty());
  CHECK(text_chunk(kText, 0, " upon", false) ==
        "data: "
        R"({"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"smol",)"
        R"("choices":[{"index":0,"text":" upon","logprobs":null,"finish_reason":null}]})"
        "\n\n");
  CHECK(event(finish_chunk(kText, 3, "length", false))["choices"] ==
        Json::parse(R"([{"index":3,"text":"","logprobs":null,"finish_reason":"length"}])"));
}

TEST_CASE("with usage wanted it is null in all chunks but the last") {
  for (const Identity& identity : {kChat, kText}) {
    for (const std::string& text :
         {text_chunk(identity, 0, "a", true), finish_chunk(identity, 0, "stop", true),
          identity.chat ? first_chunk(identity, 0, true) : text_chunk(identity, 0, "", true)}) {
      const Json e = event(text);
      REQUIRE(e.contains("usage"));
      CHECK(e["usage"].is_null());
    }
    const Json e =
        event(usage_chunk(identity, {.prompt_tokens = 3, .completion_tokens = 4, .cached_tokens = 2}));
    CHECK(e["object"] == (identity.chat ? "chat.completion.chunk" : "text_completion"));
    CHECK(e["choices"] == Json::array());
    CHECK(e["usage"]["total_tokens"] == 7);
    CHECK(e["usage"]["prompt_tokens_details"]["cached_tokens"] == 2);
  }
}

TEST_CASE("answers are valid JSON whatever the text") {
  const std::string bad = "a\xFF\"\\\0\xE2\x82\n";
  CHECK(event(text_chunk(kChat, 0, bad, false))["choices"][0]["delta"]["content"].is_string());
  CHECK(Json::parse(answer(kText, std::vector<Choice>{{bad, bad}}, {}))["choices"][0]["text"].is_string());
  CHECK(Json::parse(error_body({.message = bad, .param = bad}))["error"]["param"].is_string());
  CHECK(Json::parse(model_answer({.name = bad}))["id"].is_string());
}

TEST_CASE("models and tokens are listed") {
  const ModelInfo model{.name = "smol", .created = 17, .max_model_len = 8192};
  const std::string smol =
      R"({"id":"smol","object":"model","created":17,"owned_by":"kvstem","max_model_len":8192})";
  CHECK(model_answer(model) == smol);
  CHECK(models_answer(model) == R"({"object":"list","data":[)" + smol + "]}");
  const std::vector<TokenId> tokens = {1, 0, 49151};
  CHECK(tokenize_answer(tokens) == R"({"tokens":[1,0,49151]})");
  CHECK(tokenize_answer({}) == R"({"tokens":[]})");
}

TEST_CASE("large bodies of small values are read in linear time") {
  const auto repeated = [](std::string_view part, std::size_t bytes) {
    std::string text;
    while (text.size() < bytes) text += part;
    return text;
  };
  const std::size_t size = std::size_t{4} << 20;
  CHECK(std::get<1>(completion(prompt_of("[" + repeated("1,", size) + "1]")).prompts[0]).size() ==
        size / 2 + 1);
  (void)completion(completion_with("\"unknown\": [" + repeated("[],", size) + "1]"));
  (void)completion(completion_with("\"unknown\": [" + repeated("{},", size) + "1]"));
  CHECK(chat(chat_of("[" + repeated(R"({"role":"user","content":""},)", size) + R"({"role":"assistant"}])"))
            .messages.size() > 100000);
  (void)no_completion(prompt_of("[" + repeated("\"\\ud83d\\ude00\",", size) + "1]"));
  (void)no_completion(prompt_of("\"" + repeated("\\u0041", size)));
}
