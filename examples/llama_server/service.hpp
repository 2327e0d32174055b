// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The API: routes, keys, limits, and the way of a request from its body to the engine and back. Each call is parsed and
// tokenized on a third thread, so that a prompt of megabytes holds up neither streams nor the engine.
//
//   POST /v1/chat/completions, /v1/completions, /tokenize      GET /v1/models, /v1/models/NAME, /health, /metrics
//   GET / is the live page, GET /events what it is told, as server-sent events
//
// Keys: without any, everybody is one tenant. With some, each is a tenant of its own: what one sent is never found by
// another, in any tier, and each sees its own counters only. The admin key sees all counters, and is a tenant as well. A
// browser gives the page's key as `?key=`.
//
// Threads: `handle` on the HTTP server's thread; `shut_down` from any.
//
//   Service* api = nullptr;
//   HttpServer server(http, [&](auto exchange) { api->handle(std::move(exchange)); });
//   Service service(llama, worker, metrics, server, options);
//   api = &service;
//   service.start();
//   server.run();
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "api.hpp"
#include "http.hpp"
#include "metrics.hpp"
#include "page.hpp"
#include "task_thread.hpp"
#include "worker.hpp"

namespace kvstem_llama::server {

struct Tenant {
  std::string name{};  // in metrics and logs; empty: there is but one
  std::string key{};   // empty: no key is asked for
  bool admin = false;
};

struct ServiceOptions {
  std::string model{};                      // the name that it goes by
  std::vector<Tenant> tenants{};            // at least one; the worker's scopes are in the same order
  std::uint32_t default_max_tokens = 1024;  // of an answer whose request does not say
  std::uint32_t block_tokens = 0;           // 0: without kvstem
  std::size_t max_body_bytes = std::size_t{1} << 20;  // the largest text that comes
  std::uint32_t max_watchers = 64;                    // of the live page
  std::uint32_t max_waiting = 256;  // calls that wait or run; further ones are told to come later
  std::chrono::milliseconds request_timeout{600'000};
  // Seams for tests.
  std::function<std::int64_t()> unix_now{};
  std::function<std::uint32_t()> random{};  // for ids, and for seeds that are not given
};

class Service {
 public:
  /// All must outlive the service. `server` may be given before it exists: nothing is called until `handle`.
  Service(const LlamaEngine& llama, Worker& worker, Metrics& metrics, HttpServer& server,
          ServiceOptions options);
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;
  ~Service();

  /// Before the server runs: from now on the history is kept.
  void start();
  void handle(std::shared_ptr<Exchange> exchange);

  /// Any thread. New calls are refused; what runs may finish within `grace`, and is told then.
  void shut_down(std::chrono::milliseconds grace);

 private:
  struct Call;
  enum class Endpoint : std::uint8_t { kChat, kCompletions, kTokenize };

  struct Watcher {
    std::shared_ptr<Exchange> exchange;
    std::optional<std::uint32_t> tenant;  // none: sees all
    std::uint64_t sequence = 0;
  };

  [[nodiscard]] std::optional<std::uint32_t> tenant_of(const HttpRequest& request) const;
  [[nodiscard]] bool sees_all(std::uint32_t tenant) const;
  [[nodiscard]] ModelInfo model_info() const;
  void generate(std::shared_ptr<Exchange> exchange, Endpoint endpoint, std::uint32_t tenant);
  void tokenize(std::shared_ptr<Exchange> exchange, std::uint32_t tenant);
  void watch(std::shared_ptr<Exchange> exchange, std::uint32_t tenant);
  void tell_watchers();
  void refuse(Exchange& exchange, const ApiError& error, std::optional<std::uint32_t> tenant = {});
  void launch(const std::shared_ptr<Call>& call, Job job);
  void end_late_calls();
  [[nodiscard]] std::optional<ApiError> prepare(Call& call, Job& job) const;
  [[nodiscard]] bool too_many_special(std::string_view text) const;
  [[nodiscard]] Parsed<std::vector<TokenId>> tokens_of(std::string_view text, bool special, bool begin) const;
  [[nodiscard]] std::string new_id(bool chat);

  const LlamaEngine& llama_;
  Worker& worker_;
  Metrics& metrics_;
  HttpServer& server_;
  ServiceOptions options_;
  ParseOptions parse_;
  std::size_t longest_token_ = 1;  // bytes
  std::vector<std::string> special_tokens_;
  bool draining_ = false;
  std::size_t preparing_ = 0;
  std::unordered_set<std::shared_ptr<Call>> calls_;  // that the engine works on
  bool watching_time_ = false;
  History history_;
  std::vector<Watcher> watchers_;
  bool telling_ = false;  // the watchers' timer runs
  std::uint64_t told_change_ = 0, quiet_ = 0;
  TaskThread preparer_;
};

}  // namespace kvstem_llama::server
