// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "http.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <random>
#include <stdexcept>
#include <thread>

#include "support/catch.hpp"

using namespace kvstem_llama::server;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

namespace {

constexpr auto kSoon = 20s;  // never waited for unless something is broken

template <typename Condition>
bool eventually(Condition condition, milliseconds within = kSoon) {
  for (const auto end = Clock::now() + within; !condition(); std::this_thread::sleep_for(1ms))
    if (Clock::now() > end) return false;
  return true;
}

/// A plain blocking socket; all waits have a deadline.
class Client {
 public:
  explicit Client(std::uint16_t port, int receive_buffer = 0) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    REQUIRE(fd_ >= 0);
    if (receive_buffer > 0) ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    const int on = 1;
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(::connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0);
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;
  ~Client() { close(); }

  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  void reset() {
    const linger hard{.l_onoff = 1, .l_linger = 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close();
  }
  void half_close() { ::shutdown(fd_, SHUT_WR); }

  bool send(std::string_view text) {
    while (!text.empty()) {
      const auto n = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      text.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }
  /// Reads once; false: the end, an error, or nothing came in time.
  bool read(milliseconds within = kSoon, std::size_t most = 65536) {
    pollfd p{.fd = fd_, .events = POLLIN, .revents = 0};
    if (::poll(&p, 1, static_cast<int>(within.count())) <= 0) return false;
    std::string part(most, '\0');
    const auto n = ::recv(fd_, part.data(), part.size(), 0);
    if (n <= 0) {
      ended = true;
      return false;
    }
    got.append(part, 0, static_cast<std::size_t>(n));
    return true;
  }
  bool read_until(std::string_view text) {
    while (got.find(text) == got.npos)
      if (!read()) return false;
    return true;
  }
  bool read_to_end() {
    while (read()) {
    }
    return ended;
  }
  /// Takes one answer with a Content-Length: its status, and its body.
  std::pair<int, std::string> answer() {
    const std::string_view mark = "Content-Length: ";
    if (!read_until("\r\n\r\n")) return {0, got};
    const auto head_end = got.find("\r\n\r\n") + 4;
    head = got.substr(0, head_end);
    const auto at = head.find(mark);
    const std::size_t length = at == head.npos ? 0 : std::stoul(head.substr(at + mark.size()));
    while (got.size() < head_end + length)
      if (!read()) return {0, got};
    std::pair<int, std::string> r{std::stoi(head.substr(9, 3)), got.substr(head_end, length)};
    got.erase(0, head_end + length);
    return r;
  }
  std::pair<int, std::string> ask(std::string_view text) {
    send(text);
    return answer();
  }

  std::string got, head;
  bool ended = false;

 private:
  int fd_;
};

struct Record {
  std::string method, path, peer, note;
  int status = 0;
  std::uint64_t sent_bytes = 0;
  bool complete = false;
};

/// A server that runs in a thread, and ends with its scope. `held` keeps the exchanges of "/hold".
class Served {
 public:
  explicit Served(HttpOptions options = {}, HttpServer::Handler handler = {})
      : own_(std::move(handler)),
        server(
            [&] {
              options.port = 0;
              return options;
            }(),
            [this](std::shared_ptr<Exchange> e) { handle(std::move(e)); },
            [this](const HttpRecord& r) { note(r); }) {
    const auto error = server.listen();
    INFO(error);
    REQUIRE(error.empty());
    thread_ = std::thread([this] { server.run(); });
  }
  ~Served() { join(0ms); }

  void join(milliseconds grace) {
    server.stop(grace);
    wait();
  }
  void wait() {
    if (thread_.joinable()) thread_.join();
  }
  std::uint16_t port() const { return server.port(); }
  /// Runs on the server's thread, and is waited for.
  template <typename Fn>
  void on_server(Fn fn) {
    std::atomic<bool> done{false};
    server.post([&] {
      fn();
      done = true;
    });
    REQUIRE(eventually([&] { return done.load(); }));
  }
  std::vector<Record> records() {
    const std::lock_guard lock(mutex_);
    return records_;
  }
  bool recorded(std::size_t n) {
    return eventually([&] { return records().size() >= n; });
  }

 private:
  HttpServer::Handler own_;
  std::mutex mutex_;
  std::vector<Record> records_;
  std::thread thread_;

 public:
  HttpServer server;
  std::atomic<int> handled{0}, gone{0};
  std::shared_ptr<Exchange> held;  // the server's thread only
  std::weak_ptr<int> captured;     // by the last `on_gone` of "/hold"

 private:
  void handle(std::shared_ptr<Exchange> e) {
    ++handled;
    const std::string path = e->request().path;
    if (path == "/hold" || path == "/stream") {
      auto token = std::make_shared<int>(0);
      captured = token;
      // It holds the exchange: a cycle, until the exchange is over.
      e->on_gone = [this, e, token = std::move(token)] {
        if (e->gone()) ++gone;
      };
      if (path == "/stream") e->start(200, "text/event-stream");
      held = std::move(e);
      return;
    }
    if (own_) return own_(std::move(e));
    const auto& r = e->request();
    e->send(200, "text/plain",
            r.method + " " + r.path + " " + r.query + " " + r.authorization + " " + r.body);
  }
  void note(const HttpRecord& r) {
    const std::lock_guard lock(mutex_);
    records_.push_back({r.request.method, r.request.path, r.request.peer, std::string(r.note), r.status,
                        r.sent_bytes, r.complete});
  }
};

std::string get(std::string_view path, std::string_view more = "") {
  return "GET " + std::string(path) + " HTTP/1.1\r\nHost: h\r\n" + std::string(more) + "\r\n";
}

std::string error_body(int status, std::string_view message) {
  return "E" + std::to_string(status) + " " + std::string(message);
}

std::size_t count(std::string_view text, std::string_view what) {
  std::size_t n = 0;
  for (auto at = text.find(what); at != text.npos; at = text.find(what, at + what.size())) ++n;
  return n;
}

}  // namespace

TEST_CASE("a request reaches the handler, its answer the client, and both the observer") {
  Served s;
  Client c(s.port());
  const auto [status, body] = c.ask(
      "POST /a/b?x=1&y=%20 HTTP/1.1\r\nHost: h\r\naUTHORIZATION: Bearer k\r\nContent-Length: 5\r\n\r\nhello");
  CHECK(status == 200);
  CHECK(body == "POST /a/b x=1&y=%20 Bearer k hello");
  CHECK(count(c.head, "Content-Type: text/plain\r\n") == 1);
  CHECK(count(c.head, "Connection: close") == 0);
  REQUIRE(s.recorded(1));
  const auto r = s.records()[0];
  CHECK(r.method == "POST");
  CHECK(r.path == "/a/b");
  CHECK(r.status == 200);
  CHECK(r.sent_bytes == body.size());
  CHECK(r.complete);
  CHECK(r.peer.starts_with("127.0.0.1:"));
}

TEST_CASE("a request's target and body may come in other forms") {
  Served s;
  Client c(s.port());
  CHECK(c.ask("GET http://host:80/p?q HTTP/1.1\r\n\r\n").second == "GET /p q  ");
  CHECK(c.ask("GET http://host HTTP/1.1\r\n\r\n").second == "GET /   ");
  CHECK(c.ask("OPTIONS * HTTP/1.1\r\n\r\n").second == "OPTIONS *   ");
  CHECK(c.ask("\r\n\r\nGET / HTTP/1.1\r\n\r\n").second == "GET /   ");
  CHECK(c.ask("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n"
              "Authorization: late\r\n\r\n")
            .second == "POST /   abcde");
  // The end of an empty body byte by byte.
  c.send("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n");
  for (int i = 0; i < 2; ++i) {
    const int before = s.handled;
    s.on_server([] {});
    std::this_thread::sleep_for(20ms);
    CHECK(s.handled == before);
    c.send(i == 0 ? "\r" : "\n");
  }
  CHECK(c.answer().second == "POST /   ");
}

TEST_CASE("a connection serves one request after another, and ends when the client's HTTP says so") {
  Served s;
  Client c(s.port());
  for (int i = 0; i < 3; ++i) CHECK(c.ask(get("/" + std::to_string(i))).first == 200);
  CHECK(s.server.connections() == 1);
  CHECK(c.ask(get("/", "Connection: close\r\n")).first == 200);
  CHECK(count(c.head, "Connection: close\r\n") == 1);
  CHECK(c.read_to_end());

  Client old(s.port());
  CHECK(old.ask("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").first == 200);
  CHECK(count(old.head, "Connection: keep-alive\r\n") == 1);
  CHECK(old.ask("GET / HTTP/1.0\r\n\r\n").first == 200);
  CHECK(old.read_to_end());
}

TEST_CASE("requests sent without waiting are answered in their order") {
  Served s;
  Client c(s.port());
  std::string all = get("/1") + get("/hold") + "POST /3 HTTP/1.1\r\nContent-Length: 2\r\n\r\nxy" + get("/4");
  REQUIRE(c.send(all));
  CHECK(c.answer().second == "GET /1   ");
  REQUIRE(eventually([&] { return s.handled == 2; }));
  REQUIRE(c.send(get("/5")));  // seen while an answer is under way
  std::this_thread::sleep_for(20ms);
  CHECK(s.handled == 2);
  s.on_server([&] { s.held->send(200, "text/plain", "late"); });
  CHECK(c.answer().second == "late");
  CHECK(c.answer().second == "POST /3   xy");
  CHECK(c.answer().second == "GET /4   ");
  CHECK(c.answer().second == "GET /5   ");
  CHECK(s.gone == 0);
}

TEST_CASE("each piece of a stream leaves at once") {
  Served s;
  Client c(s.port());
  REQUIRE(c.send(get("/stream")));
  REQUIRE(c.read_until("\r\n\r\n"));
  CHECK(count(c.got, "Transfer-Encoding: chunked\r\n") == 1);
  CHECK(count(c.got, "Cache-Control: no-store\r\n") == 1);
  CHECK(count(c.got, "X-Accel-Buffering: no\r\n") == 1);
  for (int i = 0; i < 5; ++i) {
    c.got.clear();
    s.on_server([&] { s.held->write("piece " + std::to_string(i)); });
    s.on_server([&] { s.held->write(""); });  // would end the body if it were sent
    const std::string piece = "7\r\npiece " + std::to_string(i) + "\r\n";
    REQUIRE(c.read_until(piece));
    CHECK(c.got == piece);
  }
  c.got.clear();
  s.on_server([&] {
    s.held->write("a");
    s.held->write("bb");
    s.held->finish();
    s.held->write("after the end");
    s.held->finish();
    s.held->send(500, "text/plain", "after the end");
  });
  REQUIRE(c.read_until("0\r\n\r\n"));
  CHECK(c.got == "1\r\na\r\n2\r\nbb\r\n0\r\n\r\n");
  c.got.clear();
  CHECK(c.ask(get("/next")).second == "GET /next   ");
  CHECK(s.records()[0].sent_bytes == 5 * 7 + 3);
  CHECK(s.gone == 0);
  s.on_server([&] { CHECK(s.captured.expired()); });

  Client old(s.port());
  REQUIRE(old.send("GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
  REQUIRE(old.read_until("\r\n\r\n"));
  CHECK(count(old.got, "chunked") == 0);
  CHECK(count(old.got, "Connection: close\r\n") == 1);
  s.on_server([&] {
    s.held->write("as ");
    s.held->write("it is");
    s.held->finish();
  });
  CHECK(old.read_to_end());
  CHECK(old.got.ends_with("\r\n\r\nas it is"));
}

TEST_CASE("HEAD, 204 and 304 have no body") {
  Served s({}, [](std::shared_ptr<Exchange> e) {
    const auto& path = e->request().path;
    if (path == "/204") return e->send(204, "", "no");
    if (path == "/304") return e->send(304, "", "no");
    if (path != "/pieces") return e->send(200, "text/plain", "four");
    e->start(200, "text/plain");
    e->write("four");
    e->finish();
  });
  Client c(s.port());
  REQUIRE(c.send("HEAD / HTTP/1.1\r\n\r\nHEAD /pieces HTTP/1.1\r\n\r\n" + get("/204") + get("/304") +
                 get("/", "Connection: close\r\n")));
  REQUIRE(c.read_to_end());
  CHECK(count(c.got, "four") == 1);
  CHECK(count(c.got, "\r\n\r\nHTTP/1.1 ") == 4);
  CHECK(c.got.ends_with("\r\n\r\nfour"));
  CHECK(count(c.got, "Content-Length: 4\r\n") == 2);
}

TEST_CASE("a caller's header cannot add another") {
  Served s({}, [](std::shared_ptr<Exchange> e) {
    e->send(200, "text/plain\r\nEvil: 1", "x", {{"Name", "v\r\nEvil: 2"}, {"Retry-After", "3"}});
  });
  Client c(s.port());
  CHECK(c.ask(get("/")).second == "x");
  CHECK(count(c.head, "\nEvil") == 0);
  CHECK(count(c.head, "\r\nRetry-After: 3\r\n") == 1);
}

TEST_CASE("a body that is too large is refused without being read") {
  Served s({.max_body_bytes = 1000, .error_body = error_body});
  SECTION("by its Content-Length, at once") {
    Client c(s.port());
    const auto [status, body] = c.ask("POST /p HTTP/1.1\r\nContent-Length: 1001\r\n\r\n");
    CHECK(status == 413);
    CHECK(body.starts_with("E413 "));
    CHECK(count(c.head, "Connection: close\r\n") == 1);
    CHECK(c.read_to_end());
    const auto r = s.records().at(0);
    CHECK(r.status == 413);
    CHECK(r.path == "/p");
  }
  SECTION("when a chunk passes the limit") {
    Client c(s.port());
    REQUIRE(c.send("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n258\r\n" + std::string(600, 'x') +
                   "\r\n"));
    CHECK(c.ask("258\r\n").first == 413);
    CHECK(c.read_to_end());
  }
  SECTION("and a client that sends it all the same reads the answer") {
    Client c(s.port());
    REQUIRE(c.send("POST / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n"));
    const std::string part(1'000'000, 'x');
    for (int i = 0; i < 100; ++i) REQUIRE(c.send(part));
    CHECK(c.answer().first == 413);
    CHECK(c.read_to_end());
  }
  SECTION("the limit itself is allowed") {
    Client c(s.port());
    CHECK(c.ask("POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + std::string(1000, 'x')).first == 200);
  }
  CHECK(eventually([&] { return s.records().size() == 1; }));
}

TEST_CASE("headers that are too large are refused") {
  Served s({.max_header_bytes = 2000, .error_body = error_body});
  const auto refused = [&](std::string_view text) {
    Client c(s.port());
    const auto [status, body] = c.ask(text);
    CHECK(status == 431);
    CHECK(body.starts_with("E431 "));
    CHECK(c.read_to_end());
  };
  refused("GET / HTTP/1.1\r\nA: " + std::string(3000, 'x'));
  refused("GET /" + std::string(3000, 'x'));
  std::string many = "GET / HTTP/1.1\r\n";
  while (many.size() < 2000) many += "A: b\r\n";
  refused(many);
  refused(many + "\r\n");
  refused("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + std::string(3000, 'x'));
  refused("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + std::string(3000, 'x'));
  CHECK(s.handled == 0);
  Client c(s.port());
  CHECK(c.ask("POST / HTTP/1.1\r\nContent-Length: 9000\r\n\r\n" + std::string(9000, 'x')).first == 200);
}

TEST_CASE("what is not valid HTTP is refused") {
  Served s({.error_body = error_body});
  for (const std::string text : {
           "\x16\x03\x01\x02\x01\x01",  // TLS
           "garbage\n",
           "GET / HTTP/2.0\r\n\r\n",
           "GET /\r\n\r\n",
           "GET / HTTP/1.1\n\n",
           "GET / HTTP/1.1\r\nno colon\r\n\r\n",
           "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
           "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
           "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
           "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
           "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
           "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
           "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
           "POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\nContent-Length: 1\r\n\r\n",
           "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
           "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
           "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
       }) {
    INFO(text);
    Client c(s.port());
    const auto [status, body] = c.ask(text);
    CHECK(status == 400);
    CHECK(body.starts_with("E400 "));
    CHECK(c.read_to_end());
  }
  CHECK(s.handled == 0);
}

TEST_CASE("a refusal has a body of its own if no other is given") {
  Served s;
  Client c(s.port());
  CHECK(c.ask("\"\n").second.starts_with(R"({"error":{"message":"not a valid HTTP request)"));
}

TEST_CASE("a request that trickles in is refused when its time is over") {
  Served s({.receive_timeout = 300ms, .error_body = error_body});
  Client c(s.port());
  REQUIRE(c.ask(get("/")).first == 200);
  std::this_thread::sleep_for(400ms);  // between requests there is more time
  const auto begin = Clock::now();
  const std::string head = "POST /p HTTP/1.1\r\nContent-Length: 1000\r\n\r\n";
  for (std::size_t i = 0; !c.read(i < head.size() ? 1ms : 20ms); ++i) {
    REQUIRE(Clock::now() - begin < kSoon);
    c.send(i < head.size() ? head.substr(i, 1) : "x");
  }
  CHECK(Clock::now() - begin >= 299ms);
  CHECK(c.answer().first == 408);
  CHECK(c.read_to_end());
  CHECK(s.handled == 1);
  REQUIRE(s.recorded(2));
  CHECK(s.records()[1].status == 408);
}

TEST_CASE("a connection without a request is closed when its time is over") {
  Served s({.idle_timeout = 100ms});
  Client quiet(s.port()), blank(s.port()), used(s.port());
  CHECK(used.ask(get("/")).first == 200);
  CHECK(quiet.read_to_end());
  while (blank.send("\r\n") && !blank.read(10ms) && !blank.ended) {
  }
  CHECK(used.read_to_end());
  CHECK(used.got.empty());
  CHECK(eventually([&] { return s.server.connections() == 0; }));
  CHECK(s.records().size() == 1);
}

TEST_CASE("a client that asks whether to send its body is told to, or why not") {
  Served s({.max_body_bytes = 1000});
  Client c(s.port());
  REQUIRE(c.send("POST / HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-Continue\r\n\r\n"));
  REQUIRE(c.read_until("\r\n\r\n"));
  CHECK(c.got == "HTTP/1.1 100 Continue\r\n\r\n");
  c.got.clear();
  CHECK(c.ask("body").second == "POST /   body");
  // One that does not wait is not told.
  CHECK(c.ask("POST / HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody").first == 200);
  CHECK(c.ask("POST / HTTP/1.1\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n").first == 413);
  CHECK(c.read_to_end());
}

TEST_CASE("a client that leaves before its answer is whole is noticed, once") {
  Served s;
  const std::string path = GENERATE("/hold", "/stream");
  const std::string way = GENERATE("close", "reset", "half close", "after a further request");
  INFO(path << " " << way);
  Client c(s.port());
  REQUIRE(c.send(get(path)));
  REQUIRE(eventually([&] { return s.handled == 1; }));
  if (path == "/stream") {
    s.on_server([&] { s.held->write("piece"); });
    REQUIRE(c.read_until("piece"));
  }
  if (way == "after a further request") {
    REQUIRE(c.send(get("/never")));
    std::this_thread::sleep_for(20ms);
  }
  CHECK(s.gone == 0);
  // The server's own clock tells how long it takes: however busy the machine is, what comes first runs first.
  std::atomic<int> gone_in_time{-1};
  s.on_server([&] {
    if (way == "reset") c.reset();
    if (way == "half close")
      c.half_close();
    else
      c.close();
    s.server.after(way == "after a further request" ? 2500ms : 300ms, [&] { gone_in_time = s.gone.load(); });
  });
  REQUIRE(eventually([&] { return gone_in_time >= 0; }));
  CHECK(gone_in_time == 1);
  s.on_server([&] {
    CHECK(s.held->gone());
    CHECK(s.captured.expired());
    CHECK(s.held.use_count() == 1);
    s.held->write("into the void");
    s.held->finish();
    s.held->send(200, "", "");
    s.held.reset();
  });
  REQUIRE(s.recorded(1));
  const auto r = s.records()[0];
  CHECK_FALSE(r.complete);
  CHECK(r.status == (path == "/hold" ? 0 : 200));
  CHECK(r.sent_bytes == (path == "/hold" ? 0 : 5));
  CHECK(eventually([&] { return s.server.connections() == 0; }));
  CHECK(s.gone == 1);
  CHECK(s.handled == 1);
  CHECK(s.records().size() == 1);
}

TEST_CASE("slow readers and half requests do not delay another client") {
  Served s({}, [](std::shared_ptr<Exchange> e) {
    e->send(200, "text/plain", e->request().path == "/large" ? std::string(8 << 20, 'x') : "small");
  });
  std::vector<std::unique_ptr<Client>> slow;
  for (int i = 0; i < 100; ++i) {
    slow.push_back(std::make_unique<Client>(s.port(), 4096));
    slow.back()->send(i % 10 == 0 ? get("/large") : "POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf");
  }
  Client c(s.port());
  for (int i = 0; i < 100; ++i) CHECK(c.ask(get("/")).second == "small");
  CHECK(s.server.connections() == 101);
  CHECK(slow[0]->answer().second == std::string(8 << 20, 'x'));  // which is not cut off for its size
}

TEST_CASE("a client that lets too much of a stream pile up is cut off") {
  Served s({.max_unsent_bytes = 1 << 20});
  Client c(s.port(), 4096);
  REQUIRE(c.send(get("/stream")));
  REQUIRE(eventually([&] { return s.handled == 1; }));
  const std::string piece(64 << 10, 'x');
  int pieces = 0;
  for (; s.gone == 0 && pieces < 10000; ++pieces) s.on_server([&] { s.held->write(piece); });
  CHECK(s.gone == 1);
  CHECK(pieces > 16);
  CHECK(pieces < 1000);
  CHECK(c.read_to_end());
  CHECK(s.server.connections() == 0);
  CHECK(s.records().at(0).sent_bytes < static_cast<std::uint64_t>(pieces) * piece.size());
}

TEST_CASE("a client that takes nothing is cut off, one that takes little is not") {
  Served s({.send_timeout = 2000ms});
  Client c(s.port(), 4096);
  REQUIRE(c.send(get("/stream")));
  REQUIRE(eventually([&] { return s.handled == 1; }));
  s.on_server([&] { s.held->write(std::string(12 << 20, 'x')); });
  for (const auto begin = Clock::now(); Clock::now() - begin < 5000ms;) {
    REQUIRE(c.read(kSoon, 1024));
    std::this_thread::sleep_for(5ms);
  }
  CHECK(c.got.size() < 4 << 20);
  CHECK(s.gone == 0);
  REQUIRE(eventually([&] { return s.gone == 1; }));
  CHECK(c.read_to_end());
}

TEST_CASE("a handler that throws or forgets the exchange costs one answer, not the server") {
  Served s({.error_body = error_body}, [](std::shared_ptr<Exchange> e) {
    const std::string path = e->request().path;
    if (path == "/throw") throw std::runtime_error("secret");
    if (path == "/throw/int") throw 1;
    if (path == "/forget") return;
    if (path == "/fine") {
      e->send(200, "text/plain", "fine");
      throw std::runtime_error("too late");
    }
    e->start(200, "text/plain");
    e->write("begun");
    if (path == "/stream/throw") throw std::runtime_error("x");
  });
  Client c(s.port());
  CHECK(c.ask(get("/throw")) == std::pair<int, std::string>{500, "E500 internal error"});
  CHECK(c.ask(get("/throw/int")).first == 500);
  CHECK(c.ask(get("/forget")).first == 500);
  CHECK(c.ask(get("/fine")).second == "fine");
  REQUIRE(s.recorded(4));
  CHECK(s.records()[0].note == "secret");
  CHECK(s.records()[2].note == "the handler gave no answer");
  for (const std::string path : {"/stream/throw", "/stream/forget"}) {
    Client d(s.port());
    d.send(get(path));
    CHECK(d.read_to_end());
    CHECK(count(d.got, "0\r\n\r\n") == 0);
  }
  CHECK(c.ask(get("/fine")).first == 200);
}

TEST_CASE("an exchange whose last owner is another thread is answered all the same") {
  std::thread owner;
  Served s({}, [&](std::shared_ptr<Exchange> e) {
    owner = std::thread([e = std::move(e)]() mutable { e.reset(); });
  });
  Client c(s.port());
  CHECK(c.ask(get("/")).first == 500);
  owner.join();
}

TEST_CASE("what is posted runs in the order of the calls") {
  Served s;
  std::map<int, std::vector<int>> seen;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 1000; ++i) s.server.post([&seen, t, i] { seen[t].push_back(i); });
    });
  for (auto& t : threads) t.join();
  s.on_server([&] {
    CHECK(seen.size() == 4);
    for (const auto& [t, order] : seen) {
      CHECK(order.size() == 1000);
      CHECK(std::is_sorted(order.begin(), order.end()));
    }
  });
  // Also when one call is made on the server's thread and another, caused by it, elsewhere.
  std::vector<int> order;
  std::atomic<bool> first{false}, second{false};
  s.server.post([&] {
    s.server.post([&] { order.push_back(1); });
    first = true;
    eventually([&] { return second.load(); });
  });
  REQUIRE(eventually([&] { return first.load(); }));
  s.server.post([&] { order.push_back(2); });
  second = true;
  s.on_server([&] { CHECK(order == std::vector<int>{1, 2}); });
}

TEST_CASE("a function runs after its delay") {
  Served s;
  std::atomic<int> ran{0};
  const auto begin = Clock::now();
  s.on_server([&] {
    s.server.after(50ms, [&] { ++ran; });
    s.server.after(std::chrono::hours(1), [&] { ran += 100; });
  });
  REQUIRE(eventually([&] { return ran == 1; }));
  CHECK(Clock::now() - begin >= 50ms);
  s.join(0ms);
  CHECK(ran == 1);
}

TEST_CASE("a stop lets answers finish in their grace") {
  Served s;
  Client idle(s.port()), half(s.port()), pending(s.port()), stream(s.port());
  CHECK(idle.ask(get("/")).first == 200);
  REQUIRE(half.send("GET / HT"));
  REQUIRE(stream.send(get("/stream")));
  REQUIRE(stream.read_until("\r\n\r\n"));
  std::shared_ptr<Exchange> streaming;
  s.on_server([&] { streaming = std::move(s.held); });
  REQUIRE(pending.send(get("/hold") + get("/never")));
  REQUIRE(eventually([&] { return s.handled == 3; }));
  s.server.stop(60s);
  CHECK(idle.read_to_end());
  CHECK(half.read_to_end());
  s.on_server([&] {
    s.held->send(200, "text/plain", "late");
    streaming->write("last");
    streaming->finish();
  });
  CHECK(pending.answer().second == "late");
  CHECK(count(pending.head, "Connection: close\r\n") == 1);
  CHECK(stream.read_to_end());
  CHECK(stream.got.ends_with("4\r\nlast\r\n0\r\n\r\n"));
  pending.close();
  stream.close();
  s.wait();
  CHECK(s.server.connections() == 0);
  CHECK(s.gone == 0);
  CHECK(s.handled == 3);
  s.server.post([] { FAIL("after the end"); });
  s.server.after(1ms, [] { FAIL("after the end"); });
  s.server.stop(1ms);
}

TEST_CASE("answers that do not finish in the grace of a stop are cut off") {
  Served s;
  Client c(s.port());
  REQUIRE(c.send(get("/stream")));
  REQUIRE(c.read_until("\r\n\r\n"));
  const auto begin = Clock::now();
  SECTION("a short one") { s.join(100ms); }
  SECTION("a long one that is shortened, and not made longer again") {
    s.server.stop(std::chrono::hours(1));
    s.server.stop(100ms);
    s.join(std::chrono::hours(1));
  }
  SECTION("forever that is shortened") {
    s.server.stop(milliseconds::max());
    s.join(100ms);
  }
  CHECK(Clock::now() - begin >= 100ms);
  CHECK(Clock::now() - begin < kSoon);
  CHECK(s.gone == 1);
  CHECK(s.records().size() == 1);
  CHECK(c.read_to_end());
  CHECK(s.captured.expired());
}

TEST_CASE("a stop before the run ends it at once") {
  HttpServer server({.port = 0}, [](const std::shared_ptr<Exchange>&) {});
  REQUIRE(server.listen().empty());
  bool posted = false;
  server.post([&] { posted = true; });
  server.stop(60s);
  server.run();
  CHECK(posted);
}

TEST_CASE("more clients than allowed wait for their turn") {
  Served s({.max_connections = 2});
  Client a(s.port()), b(s.port()), c(s.port());
  CHECK(a.ask(get("/")).first == 200);
  CHECK(b.ask(get("/")).first == 200);
  REQUIRE(c.send(get("/")));
  CHECK_FALSE(c.read(50ms));
  CHECK(s.server.connections() == 2);
  a.close();
  CHECK(c.answer().first == 200);
}

TEST_CASE("a process without free descriptors serves again when there are some") {
  Served s;
  Client a(s.port());
  CHECK(a.ask(get("/")).first == 200);
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  std::vector<int> filler;
  rlimit tight = before;
  tight.rlim_cur = 256;
  ::setrlimit(RLIMIT_NOFILE, &tight);
  for (int fd = ::dup(0); fd >= 0; fd = ::dup(0)) filler.push_back(fd);
  REQUIRE_FALSE(filler.empty());
  ::close(filler.back());
  filler.pop_back();
  Client d(s.port());  // takes the last one
  REQUIRE(d.send(get("/")));
  CHECK_FALSE(d.read(250ms));
  CHECK(a.ask(get("/")).first == 200);  // the others are served meanwhile
  for (const int fd : filler) ::close(fd);
  ::setrlimit(RLIMIT_NOFILE, &before);
  CHECK(d.answer().first == 200);
}

TEST_CASE("clients that vanish at random points leave nothing behind") {
  Served s({}, [&](std::shared_ptr<Exchange> e) {
    if (e->request().path == "/large") return e->send(200, "text/plain", std::string(1 << 20, 'x'));
    e->start(200, "text/plain");
    for (int i = 0; i < 100; ++i) e->write(std::string(1000, 'x'));
    e->finish();
  });
  std::mt19937 rng(7);
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(rng() % n); };
  for (int i = 0; i < 200; ++i) {
    Client c(s.port());
    const std::string text =
        get("/large") + "POST /pieces HTTP/1.1\r\nContent-Length: 9\r\n\r\n123456789" + get("/hold");
    c.send(text.substr(0, below(text.size() + 1)));
    for (std::size_t reads = below(4); reads > 0; --reads) c.read(5ms, 1 + below(4000));
    if (below(2) == 0) c.reset();
    if (below(4) == 0) c.half_close();
  }
  CHECK(eventually([&] { return s.server.connections() == 0; }));
  Client c(s.port());
  CHECK(c.ask(get("/large")).first == 200);
}

TEST_CASE("what keeps it from listening is said") {
  const auto handler = [](const std::shared_ptr<Exchange>&) {};
  HttpServer first({.port = 0}, handler);
  REQUIRE(first.listen().empty());
  HttpServer second({.port = first.port()}, handler);
  CHECK(second.listen() ==
        "cannot listen on 127.0.0.1:" + std::to_string(first.port()) + ": Address already in use");
  HttpServer nowhere({.host = "192.0.2.1", .port = 1}, handler);
  CHECK(nowhere.listen() == "cannot listen on 192.0.2.1:1: Cannot assign requested address");
  HttpServer nobody({.host = "no such host", .port = 1}, handler);
  CHECK(nobody.listen().starts_with("cannot listen on no such host:1: "));
}
