// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// An HTTP/1.1 server for answers that come slowly and piece by piece, on Boost.Beast. It knows nothing of what is served.
//
// One thread (the one in `run`) carries all connections: a client that reads or sends slowly costs its buffers and nobody
// else's time. A client that leaves is noticed at once, also while its answer is still being worked out; one that shuts
// down only its sending side counts as gone. No TLS: put a proxy in front.
//
// Guarantees: a request that is malformed, too large or too slow is refused with `HttpOptions::error_body`, and its
// connection closed; the handler never sees it. Nothing that a client sends makes a call throw or ends the process.
// A handler that throws, or lets go of the exchange before its answer is complete, costs that answer: 500, or the client
// is cut off if it has begun. What functions given to `post` and `after`, `on_gone` and the observer throw leaves `run`.
// Threads: everything happens on the thread in `run`, the handler and all of Exchange included; only `post` and `stop` may
// be called from others.
//
//   HttpServer* answers = nullptr;
//   HttpServer server({.port = 8080}, [&answers](std::shared_ptr<Exchange> e) {
//     if (e->request().path == "/health") return e->send(200, "text/plain", "ok\n");
//     e->start(200, "text/event-stream");
//     e->on_gone = [] { stop_working(); };
//     work_elsewhere([answers, e](std::string text) { answers->post([e, text] { e->write(text); }); });
//   });
//   answers = &server;
//   if (auto error = server.listen(); !error.empty()) die(error);
//   server.run();
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvstem_llama::server {

struct HttpOptions {
  std::string host = "127.0.0.1";  // an address, or a name that resolves to one
  std::uint16_t port = 8080;       // 0: any that is free; see HttpServer::port
  std::size_t max_header_bytes = std::size_t{16} << 10;
  std::size_t max_body_bytes = std::size_t{4} << 20;
  std::uint32_t max_connections = 1024;               // further ones wait in the kernel's line
  std::chrono::milliseconds receive_timeout{30'000};  // for a whole request, from its first byte
  std::chrono::milliseconds idle_timeout{
      60'000};  // between the requests of a connection, and before the first
  std::chrono::milliseconds send_timeout{30'000};  // in which the client takes not one byte
  std::size_t max_unsent_bytes = std::size_t{16}
                                 << 20;  // of pieces; a client that lets more pile up is cut off
  /// The body of an answer that the server gives by itself (400, 408, 413, 431, 500): JSON.
  std::function<std::string(int status, std::string_view message)> error_body{};
};

struct HttpRequest {
  std::string method;         // upper case
  std::string path;           // without the query
  std::string query;          // behind the '?', not decoded
  std::string authorization;  // the header's value; empty if there is none
  std::string body;
  std::string peer;  // the client's address and port
};

/// One request and its answer. Exactly one of `send` or `start` .. `finish` makes the answer; what comes after it, and
/// everything once the client is gone, does nothing.
class Exchange {
 public:
  using Headers = std::vector<std::pair<std::string, std::string>>;

  virtual ~Exchange() = default;
  [[nodiscard]] virtual const HttpRequest& request() const = 0;
  /// The whole answer.
  virtual void send(int status, std::string_view content_type, std::string body,
                    const Headers& headers = {}) = 0;
  /// An answer in pieces: `start`, then `write` for each, then `finish`. Each piece leaves at once (chunked encoding).
  virtual void start(int status, std::string_view content_type) = 0;
  virtual void write(std::string piece) = 0;
  virtual void finish() = 0;
  /// The client left before the answer was complete, or was cut off.
  [[nodiscard]] virtual bool gone() const = 0;
  /// Called once when that happens, and never after the answer is complete. Set it in the handler. It is released as soon
  /// as the exchange is over, so it may hold the exchange. Never called from inside a call of this class.
  std::function<void()> on_gone{};
  /// Added to this request's line in the access log.
  std::string note{};
};

/// What is told of an exchange when it is over.
struct HttpRecord {
  const HttpRequest& request;
  int status = 0;                // 0: the client left before there was one
  std::uint64_t sent_bytes = 0;  // of the body
  double seconds = 0;            // from the request's last byte to the end
  bool complete = false;         // false: the client left, or was cut off
  std::string_view note;
};

class HttpServer {
 public:
  using Handler = std::function<void(std::shared_ptr<Exchange>)>;
  using Observer = std::function<void(const HttpRecord&)>;

  HttpServer(HttpOptions options, Handler handler, Observer observer = {});
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;
  ~HttpServer();

  /// Binds and listens. Returns what went wrong; empty if nothing.
  [[nodiscard]] std::string listen();
  /// The port that it listens on.
  [[nodiscard]] std::uint16_t port() const;
  /// Serves until `stop`.
  void run();
  /// Any thread: `fn` runs on the server's thread soon, in the order of the calls. Nothing once the server has ended.
  void post(std::function<void()> fn);
  /// The server's thread: `fn` runs there after `delay`, unless the server stopped before.
  void after(std::chrono::milliseconds delay, std::function<void()> fn);
  /// Any thread. No new connections and no further requests on old ones; answers under way have `grace` to reach their
  /// clients, then `run` returns.
  void stop(std::chrono::milliseconds grace);
  [[nodiscard]] std::uint32_t connections() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvstem_llama::server
