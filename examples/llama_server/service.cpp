// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "service.hpp"

#include <strings.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <utility>

namespace kvstem_llama::server {
namespace {

/// Takes the same time wherever the two differ.
bool same_key(std::string_view a, std::string_view b) {
  unsigned char differ = a.size() != b.size();
  for (std::size_t i = 0; i < a.size(); ++i)
    differ |= static_cast<unsigned char>(a[i] ^ (i < b.size() ? b[i] : 0));
  return differ == 0;
}

/// llama.cpp looks for the words of some models with std::regex, which goes one call deeper for each character of a word.
constexpr std::size_t kStackForByte = 512, kStackBytes = std::size_t{16} << 20;

std::string percent_decoded(std::string_view text, bool plus_is_space) {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
  };
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && digit(text[i + 1]) >= 0 && digit(text[i + 2]) >= 0) {
      out += static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
      i += 2;
    } else {
      out += plus_is_space && text[i] == '+' ? ' ' : text[i];
    }
  }
  return out;
}

const char* name(Piece::End end) { return end == Piece::End::kLength ? "length" : "stop"; }

}  // namespace

/// A call of /v1/chat/completions or /v1/completions. On the HTTP thread, but while it is being prepared.
struct Service::Call : std::enable_shared_from_this<Call> {
  explicit Call(Service& s) : service(s) {}

  Service& service;
  std::shared_ptr<Exchange> exchange;
  Endpoint endpoint = Endpoint::kChat;
  std::uint32_t tenant = 0;
  Generate wanted;
  Identity identity;
  JobNumber job = 0;
  std::vector<Choice> choices;
  std::vector<bool> opened;  // a stream has told of this choice
  std::size_t left = 0;
  std::uint32_t samples = 1;
  Usage usage;
  bool streaming = false, over = false;
  std::uint32_t chunks = 0, overtaken = 0;  // these of the choice that took longest
  std::uint64_t waited_steps = 0, ran_steps = 0;

  std::chrono::steady_clock::time_point deadline{};
  std::atomic<bool> unwanted{false};  // the client left while the call was being prepared

  void on(std::vector<Piece> pieces);
  enum class Over : std::uint8_t { kFinished, kGone, kFailed };
  void end(Over how);
  void open(std::uint32_t choice);
  void fail(const ApiError& error);
  void finish();
  void note(Over how);
};

Service::Service(const LlamaEngine& llama, Worker& worker, Metrics& metrics, HttpServer& server,
                 ServiceOptions options)
    : llama_(llama),
      worker_(worker),
      metrics_(metrics),
      server_(server),
      options_(std::move(options)),
      history_(options_.tenants.size()),
      preparer_(kStackBytes + options_.max_body_bytes * kStackForByte) {
  parse_.models = {options_.model};
  for (std::uint32_t id = 0; id < llama_.vocab_size(); ++id) {
    const auto token = static_cast<TokenId>(id);
    const auto text = llama_.detokenize({&token, 1}, true), plain = llama_.detokenize({&token, 1}, false);
    if (!text.ok()) continue;
    longest_token_ = std::max(longest_token_, text->size());
    if (plain.ok() && plain->empty() && !text->empty()) special_tokens_.push_back(*text);
  }
}

Service::~Service() = default;

// ---- routes ------------------------------------------------------------------------------------------------------

std::optional<std::uint32_t> Service::tenant_of(const HttpRequest& request) const {
  if (options_.tenants.size() == 1 && options_.tenants[0].key.empty()) return 0;
  constexpr std::string_view kBearer = "Bearer ", kQuery = "key=";
  std::string key;
  if (strncasecmp(request.authorization.c_str(), kBearer.data(), kBearer.size()) == 0)
    key = request.authorization.substr(kBearer.size());
  else if (request.path == "/events" && request.query.starts_with(kQuery))
    key = percent_decoded(std::string_view(request.query).substr(kQuery.size()), true);
  else
    return {};
  std::optional<std::uint32_t> found;
  for (std::uint32_t i = 0; i < options_.tenants.size(); ++i)
    if (same_key(options_.tenants[i].key, key)) found = i;
  return found;
}

void Service::refuse(Exchange& exchange, const ApiError& error, std::optional<std::uint32_t> tenant) {
  if (tenant) metrics_.unstarted(*tenant, Outcome::kRefused);
  Exchange::Headers headers;
  if (error.status == 401) headers.emplace_back("WWW-Authenticate", "Bearer");
  if (error.status == 429 || error.status == 503) headers.emplace_back("Retry-After", "1");
  exchange.send(error.status, kJson, error_body(error), headers);
}

void Service::handle(std::shared_ptr<Exchange> exchange) {
  const HttpRequest& request = exchange->request();
  struct Route {
    std::string_view path, method;
  };
  static constexpr Route kRoutes[] = {{"/", "GET"},
                                      {"/events", "GET"},
                                      {"/health", "GET"},
                                      {"/metrics", "GET"},
                                      {"/v1/models", "GET"},
                                      {"/tokenize", "POST"},
                                      {"/v1/completions", "POST"},
                                      {"/v1/chat/completions", "POST"}};
  constexpr std::string_view kModel = "/v1/models/";
  const bool one_model = request.path.starts_with(kModel);
  const auto route = std::find_if(std::begin(kRoutes), std::end(kRoutes), [&](const Route& r) {
    return r.path == (one_model ? "/v1/models" : request.path);
  });
  if (route == std::end(kRoutes))
    return refuse(*exchange, {.status = 404, .message = "there is nothing at this path"});
  if (request.method != route->method && !(request.method == "HEAD" && route->method == "GET")) {
    const ApiError error{.status = 405,
                         .message = "this path takes " + std::string(route->method) + " requests"};
    return exchange->send(405, kJson, error_body(error), {{"Allow", std::string(route->method)}});
  }
  if (request.path == "/health") {
    if (draining_) return refuse(*exchange, {.status = 503, .message = "the server is shutting down"});
    return exchange->send(200, kJson, R"({"status":"ok"})");
  }

  if (request.path == "/")  // it holds no data: what it shows comes from /events
    return exchange->send(
        200, "text/html; charset=utf-8", std::string(kPageHtml),
        {{"Content-Security-Policy",
          "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
          "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"},
         {"Referrer-Policy", "no-referrer"},
         {"Cache-Control", "no-cache"}});

  const auto tenant = tenant_of(request);
  if (!tenant)
    return refuse(
        *exchange,
        {.status = 401,
         .message = request.authorization.empty() && (request.path != "/events" || request.query.empty())
                        ? "this server asks for a key: send it as 'Authorization: Bearer KEY'"
                        : "this key is not known here",
         .code = "invalid_api_key"});
  exchange->note = options_.tenants[*tenant].name;
  if (request.path == "/metrics") {
    return exchange->send(200, kPrometheus, sees_all(*tenant) ? metrics_.text() : metrics_.text(*tenant));
  }
  if (request.path == "/events") return watch(std::move(exchange), *tenant);
  if (one_model) {
    if (percent_decoded(std::string_view(request.path).substr(kModel.size()), false) != options_.model)
      return refuse(*exchange, {.status = 404,
                                .message = "there is no such model here: use " + options_.model,
                                .param = "model",
                                .code = "model_not_found"});
    return exchange->send(200, kJson, model_answer(model_info()));
  }
  if (request.path == "/v1/models") return exchange->send(200, kJson, models_answer(model_info()));

  if (draining_) return refuse(*exchange, {.status = 503, .message = "the server is shutting down"}, tenant);
  if (worker_.jobs() + preparing_ >= options_.max_waiting)
    return refuse(*exchange, {.status = 429, .message = "too many requests wait already: try again later"},
                  tenant);
  if (request.path == "/tokenize") return tokenize(std::move(exchange), *tenant);
  generate(std::move(exchange), request.path == "/v1/completions" ? Endpoint::kCompletions : Endpoint::kChat,
           *tenant);
}

ModelInfo Service::model_info() const {
  return {.name = options_.model,
          .created = options_.unix_now(),
          .max_model_len = llama_.capacity().sequence_tokens};
}

// ---- the live page -------------------------------------------------------------------------------------------------

bool Service::sees_all(std::uint32_t tenant) const {
  return options_.tenants[tenant].admin || options_.tenants[tenant].key.empty();
}

void Service::watch(std::shared_ptr<Exchange> exchange, std::uint32_t tenant) {
  if (draining_) return refuse(*exchange, {.status = 503, .message = "the server is shutting down"});
  if (watchers_.size() >= options_.max_watchers)
    return refuse(*exchange, {.status = 503, .message = "too many pages are open already"});
  if (exchange->request().method == "HEAD") return exchange->send(200, "text/event-stream", {});
  exchange->start(200, "text/event-stream");
  exchange->on_gone = [this, watcher = exchange.get()] {
    std::erase_if(watchers_, [&](const Watcher& w) { return w.exchange.get() == watcher; });
  };
  watchers_.push_back({std::move(exchange), sees_all(tenant) ? std::nullopt : std::optional(tenant)});
  told_change_ = ~std::uint64_t{0};  // the new one is told with the next pause
  if (!std::exchange(telling_, true)) tell_watchers();
}

/// Twice a second; who sees all while something happens, and else now and then. A tenant is told whether or not anything
/// happens: it may be another's.
void Service::tell_watchers() {
  constexpr std::chrono::milliseconds kPause{500};
  constexpr std::uint64_t kQuiet = 10;  // pauses
  if (watchers_.empty() || draining_) {
    telling_ = false;
    return;
  }
  server_.after(kPause, [this] { tell_watchers(); });
  const EngineState state = metrics_.state();
  const std::uint64_t change = state.steps + metrics_.ended();
  const bool news = change != told_change_ || ++quiet_ >= kQuiet;
  if (news) told_change_ = change, quiet_ = 0;
  if (!news &&
      std::none_of(watchers_.begin(), watchers_.end(), [](const Watcher& w) { return w.tenant.has_value(); }))
    return;
  worker_.look([this, news](View view) {
    server_.post([this, news, view = std::move(view)] {
      PageOptions page{.model = options_.model,
                       .kvstem = options_.block_tokens > 0,
                       .sequence = 0,
                       .time = static_cast<double>(options_.unix_now()),
                       .block_tokens = options_.block_tokens};
      for (const Tenant& tenant : options_.tenants) page.tenants.push_back(tenant.name);
      for (Watcher& watcher : watchers_) {
        if (!news && !watcher.tenant) continue;
        page.tenant = watcher.tenant;
        page.sequence = ++watcher.sequence;
        watcher.exchange->write(page_event(view, metrics_, history_, page));
      }
    });
  });
}

void Service::start() {
  history_.sample(options_.unix_now(), metrics_);
  server_.after(std::chrono::seconds(History::kSeconds), [this] { start(); });
}

void Service::shut_down(std::chrono::milliseconds grace) {
  server_.post([this, grace] {
    draining_ = true;
    for (const Watcher& watcher : std::exchange(watchers_, {})) watcher.exchange->finish();
    // Who has not finished by then is told, and has a moment to hear it.
    server_.after(grace * 8 / 10, [this] { worker_.fail_all("the server is shutting down"); });
  });
  server_.stop(grace);
}

// ---- from text to tokens, on the preparer's thread ----------------------------------------------------------------

/// llama.cpp needs time with the square of their number: half a second for these, minutes for a body full of them.
bool Service::too_many_special(std::string_view text) const {
  const std::size_t most = std::min<std::size_t>(16384, 2 * llama_.capacity().sequence_tokens);
  std::size_t found = 0;
  for (const std::string& token : special_tokens_)
    for (std::size_t at = 0; (at = text.find(token, at)) != std::string_view::npos; at += token.size())
      if (++found > most) return true;
  return false;
}

/// Text that is certainly longer than a sequence is refused without looking at it closely.
Parsed<std::vector<TokenId>> Service::tokens_of(std::string_view text, bool special, bool begin) const {
  const std::uint32_t most = llama_.capacity().sequence_tokens;
  if (text.size() / longest_token_ >= most)
    return ApiError{.message = "the prompt is too long: this model's context is " + std::to_string(most) +
                               " tokens, and " + std::to_string(text.size()) + " bytes are more than that",
                    .code = "context_length_exceeded"};
  if (special && too_many_special(text))
    return ApiError{.message = "the prompt has too many special tokens for this model's context",
                    .code = "context_length_exceeded"};
  auto tokens = llama_.tokenize(text, special, begin);
  if (!tokens.ok()) return ApiError{.message = tokens.status().message()};
  return std::move(*tokens);
}

std::optional<ApiError> Service::prepare(Call& call, Job& job) const {
  const std::string& body = call.exchange->request().body;
  if (call.endpoint == Endpoint::kChat) {
    auto parsed = parse_chat(body, parse_);
    if (!parsed.ok()) return parsed.error();
    const auto text = llama_.chat(parsed->messages);
    if (!text.ok()) return ApiError{.message = text.status().message(), .param = "messages"};
    auto tokens = tokens_of(*text, true, true);
    if (!tokens.ok()) return tokens.error();
    job.prompts.push_back(std::move(*tokens));
    call.wanted = std::move(*parsed);
  } else {
    auto parsed = parse_completion(body, parse_);
    if (!parsed.ok()) return parsed.error();
    for (auto& prompt : parsed->prompts) {
      if (auto* given = std::get_if<std::vector<TokenId>>(&prompt)) {
        job.prompts.push_back(std::move(*given));
        continue;
      }
      auto tokens = tokens_of(std::get<std::string>(prompt), true, true);
      if (!tokens.ok()) return tokens.error();
      job.prompts.push_back(std::move(*tokens));
      if (job.prompts.back().size() > llama_.capacity().sequence_tokens) break;  // refused below
    }
    call.wanted = std::move(*parsed);
  }

  const std::uint32_t most = llama_.capacity().sequence_tokens;
  std::size_t longest = 0;
  for (const auto& prompt : job.prompts) {
    if (prompt.empty()) return ApiError{.message = "the prompt is empty", .param = "prompt"};
    for (const TokenId token : prompt)
      if (token < 0 || static_cast<std::uint32_t>(token) >= llama_.vocab_size())
        return ApiError{.message = "token " + std::to_string(token) +
                                   " is not in this model's vocabulary of " +
                                   std::to_string(llama_.vocab_size()),
                        .param = "prompt"};
    longest = std::max(longest, prompt.size());
  }
  const Generate& wanted = call.wanted;
  const std::size_t new_tokens = wanted.max_tokens.value_or(1);
  if (longest + new_tokens > most)
    return ApiError{.message = "this model's context is " + std::to_string(most) +
                               " tokens, but the prompt has " + std::to_string(longest) +
                               " and the answer may have " + std::to_string(new_tokens),
                    .code = "context_length_exceeded"};
  job.max_new_tokens = wanted.max_tokens.value_or(
      static_cast<std::uint32_t>(std::min<std::size_t>(options_.default_max_tokens, most - longest)));
  job.samples = wanted.n;
  job.stop_at_end = !wanted.ignore_eos;
  job.reuse = wanted.cache_prompt;
  job.stops = wanted.stop;
  job.sampling.temperature = wanted.temperature;
  job.sampling.top_p = wanted.top_p;
  job.tenant = call.tenant;
  return {};
}

void Service::generate(std::shared_ptr<Exchange> exchange, Endpoint endpoint, std::uint32_t tenant) {
  auto call = std::make_shared<Call>(*this);
  call->exchange = std::move(exchange);
  call->endpoint = endpoint;
  call->tenant = tenant;
  call->deadline = std::chrono::steady_clock::now() + options_.request_timeout;
  call->exchange->on_gone = [call] { call->unwanted = true; };
  ++preparing_;
  preparer_.post([this, call, since = worker_.now()] {
    auto job = std::make_shared<Job>();
    job->since = since;
    std::optional<ApiError> error;
    if (!call->unwanted) error = prepare(*call, *job);
    server_.post([this, call, job, error = std::move(error)] {
      --preparing_;
      if (error) return refuse(*call->exchange, *error, call->tenant);
      launch(call, std::move(*job));
    });
  });
}

void Service::tokenize(std::shared_ptr<Exchange> exchange, std::uint32_t tenant) {
  ++preparing_;
  preparer_.post([this, exchange, tenant] {
    std::string body;
    std::optional<ApiError> error;
    if (auto parsed = parse_tokenize(exchange->request().body); !parsed.ok()) {
      error = parsed.error();
    } else if (parsed->parse_special && too_many_special(parsed->content)) {
      error = ApiError{.message = "content has too many special tokens for this model's context",
                       .param = "content"};
    } else if (auto tokens = llama_.tokenize(parsed->content, parsed->parse_special, parsed->add_special);
               tokens.ok()) {
      body = tokenize_answer(*tokens);
    } else {
      error = ApiError{.message = tokens.status().message()};
    }
    server_.post([this, exchange, tenant, error = std::move(error), body = std::move(body)]() mutable {
      --preparing_;
      if (error) return refuse(*exchange, *error, tenant);
      exchange->send(200, kJson, std::move(body));
    });
  });
}

// ---- to the engine and back, on the HTTP thread -------------------------------------------------------------------

std::string Service::new_id(bool chat) {
  char text[64];
  std::snprintf(text, sizeof text, "%s-%08x%08x%08x", chat ? "chatcmpl" : "cmpl", options_.random(),
                options_.random(), options_.random());
  return text;
}

void Service::launch(const std::shared_ptr<Call>& call, Job job) {
  if (call->exchange->gone()) return metrics_.unstarted(call->tenant, Outcome::kCancelled);
  if (draining_)
    return refuse(*call->exchange, {.status = 503, .message = "the server is shutting down"}, call->tenant);
  job.sampling.seed = call->wanted.seed ? *call->wanted.seed : options_.random();
  const bool chat = call->endpoint == Endpoint::kChat;
  call->identity = {
      .chat = chat, .id = new_id(chat), .created = options_.unix_now(), .model = options_.model};
  call->samples = job.samples;
  call->choices.resize(job.prompts.size() * job.samples);
  call->opened.resize(call->choices.size());
  call->left = call->choices.size();
  for (const auto& prompt : job.prompts)
    call->usage.prompt_tokens += static_cast<std::uint32_t>(prompt.size());
  job.deliver = [&server = server_, call](std::vector<Piece> pieces) {
    server.post([call, pieces = std::move(pieces)]() mutable { call->on(std::move(pieces)); });
  };
  call->job = worker_.submit(std::move(job));
  call->exchange->on_gone = [call] {
    if (!call->over) call->end(Call::Over::kGone);
  };
  calls_.insert(call);
  if (!std::exchange(watching_time_, true)) end_late_calls();
}

void Service::end_late_calls() {
  constexpr std::chrono::milliseconds kPause{100};
  watching_time_ = !calls_.empty();
  if (!watching_time_) return;
  server_.after(kPause, [this] { end_late_calls(); });
  const auto now = std::chrono::steady_clock::now();
  for (const auto& call : std::vector(calls_.begin(), calls_.end()))
    if (call->deadline <= now)
      call->fail(
          {.status = 504, .message = "the request took longer than this server allows", .code = "timeout"});
}

void Service::Call::end(Over how) {
  over = true;
  note(how);
  if (how != Over::kFinished) service.worker_.cancel(job, how == Over::kFailed);
  service.calls_.erase(shared_from_this());
}

void Service::Call::on(std::vector<Piece> pieces) {
  const auto self = shared_from_this();
  for (Piece& piece : pieces) {
    if (over) return;
    usage.completion_tokens += static_cast<std::uint32_t>(piece.tokens.size());
    if (piece.finished) {
      const Report& r = piece.report;
      if (piece.choice % samples == 0) usage.cached_tokens += r.reused_tokens;
      chunks = std::max(chunks, r.chunks);
      overtaken = std::max(overtaken, r.overtaken);
      waited_steps = std::max(waited_steps, r.waited_steps);
      ran_steps = std::max(ran_steps, r.ran_steps);
      if (piece.end == Piece::End::kFailed || piece.end == Piece::End::kCancelled)
        return fail({.status = 503, .message = *piece.why != 0 ? piece.why : "the request was cancelled"});
    }
    if (!wanted.return_token_ids) piece.tokens.clear();
    if (wanted.stream) {
      open(piece.choice);
      if (!piece.text.empty() || !piece.tokens.empty())
        exchange->write(text_chunk(identity, piece.choice, piece.text, wanted.include_usage, piece.tokens));
      if (piece.finished)
        exchange->write(finish_chunk(identity, piece.choice, name(piece.end), wanted.include_usage));
    } else {
      Choice& choice = choices[piece.choice];
      choice.text += piece.text;
      choice.token_ids.insert(choice.token_ids.end(), piece.tokens.begin(), piece.tokens.end());
      if (piece.finished) choice.finish_reason = name(piece.end);
    }
    if (piece.finished && --left == 0) finish();
  }
}

void Service::Call::open(std::uint32_t choice) {
  if (!std::exchange(streaming, true)) exchange->start(200, "text/event-stream");
  if (opened[choice]) return;
  opened[choice] = true;
  if (std::string chunk = first_chunk(identity, choice, wanted.include_usage); !chunk.empty())
    exchange->write(std::move(chunk));
}

/// What it cost is known when it is finished. `waited` and `ran` are steps of the engine.
void Service::Call::note(Over how) {
  std::string& note = exchange->note;
  note +=
      " prompt=" + std::to_string(usage.prompt_tokens) + " new=" + std::to_string(usage.completion_tokens);
  if (how != Over::kFinished) return void(note += " unfinished");
  note += " cached=" + std::to_string(usage.cached_tokens) + " chunks=" + std::to_string(chunks) +
          " overtaken=" + std::to_string(overtaken) + " waited=" + std::to_string(waited_steps) +
          " ran=" + std::to_string(ran_steps);
}

void Service::Call::finish() {
  end(Over::kFinished);
  if (!wanted.stream) return exchange->send(200, kJson, answer(identity, choices, usage));
  if (wanted.include_usage) exchange->write(usage_chunk(identity, usage));
  exchange->write(std::string(kDone));
  exchange->finish();
}

void Service::Call::fail(const ApiError& error) {
  end(Over::kFailed);
  // OpenAI's clients would send what took too long once more.
  if (!streaming)
    return exchange->send(
        error.status, kJson, error_body(error),
        error.status == 504 ? Exchange::Headers{{"x-should-retry", "false"}} : Exchange::Headers{});
  exchange->write(error_chunk(error));
  exchange->finish();
}

}  // namespace kvstem_llama::server
