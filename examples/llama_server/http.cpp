// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "http.hpp"

// Beast asserts that the last chunk of an empty body arrives in one piece, which the client decides.
#define BOOST_DISABLE_ASSERTS
#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cctype>
#include <ctime>
#include <exception>
#include <optional>
#include <sstream>
#include <unordered_set>

namespace kvstem_llama::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kForever = std::chrono::hours{24 * 365};
constexpr milliseconds kAcceptPause{100};  // after an error such as EMFILE
constexpr milliseconds kLinger{2000};      // for a client to read the last answer and leave
constexpr std::size_t kLingerBytes = std::size_t{256} << 20;  // that it may send meanwhile, unread
constexpr std::size_t kReadBytes = std::size_t{64} << 10;     // at once
constexpr std::size_t kWriteBytes = std::size_t{1} << 20;     // at once

class Connection;

milliseconds sane(milliseconds time) { return std::clamp(time, milliseconds{0}, kForever); }
bool not_yet(error_code e) { return e == asio::error::would_block || e == asio::error::interrupted; }

/// What the connections share, on the thread in `run`.
struct Hub : std::enable_shared_from_this<Hub> {
  Hub(HttpOptions o, HttpServer::Handler h, HttpServer::Observer w);

  [[nodiscard]] std::string listen();
  void accept();
  void left(const std::shared_ptr<Connection>& connection);
  void stop(Clock::time_point deadline);
  void end();
  [[nodiscard]] std::string error_body(int status, std::string_view message) const;

  HttpOptions options;
  HttpServer::Handler handler;
  HttpServer::Observer observer;
  asio::io_context io;  // without the hint "one thread": that would break the order of `post`
  asio::executor_work_guard<asio::io_context::executor_type> work{io.get_executor()};
  tcp::acceptor acceptor{io};
  asio::steady_timer accept_pause{io}, grace{io};
  std::unordered_set<std::shared_ptr<Connection>> connections;
  std::unordered_set<std::shared_ptr<asio::steady_timer>> alarms;  // of `after`
  std::atomic<std::uint32_t> connection_count{0};
  std::atomic<std::uint16_t> port{0};
  std::atomic<bool> ended{false};
  bool accepting = false, stopping = false;
  std::array<char, kReadBytes> scratch;  // all connections read into this one
};

/// One request and its answer. The connection keeps it until it is over, the handler's side as long as it likes.
class Answer final : public Exchange {
 public:
  [[nodiscard]] const HttpRequest& request() const override { return request_; }
  void send(int status, std::string_view content_type, std::string body, const Headers& headers) override;
  void start(int status, std::string_view content_type) override;
  void write(std::string piece) override;
  void finish() override;
  [[nodiscard]] bool gone() const override { return gone_; }

  /// The handler threw, or let go of the exchange without an answer.
  void fail(std::string_view why);
  void end(const HttpServer::Observer& observer, std::size_t unsent);

 private:
  friend class Connection;
  void begin(int status, std::string_view content_type, const Headers& headers, std::string_view framing);
  [[nodiscard]] bool running() const { return connection_ != nullptr && status_ != 0 && !finished_; }

  Connection* connection_ = nullptr;  // null: over
  HttpRequest request_;
  Clock::time_point since_ = Clock::now();
  std::uint64_t body_bytes_ = 0;
  int status_ = 0;  // 0: not begun
  bool http_1_0_ = false, head_ = false;
  bool bodiless_ = false, chunked_ = false, streamed_ = false, finished_ = false, gone_ = false;
};

/// Held by all the handler's references together, so that it is known when the last of them goes, on whatever thread.
struct Handle {
  ~Handle() {
    if (const auto alive = hub.lock(); alive && !alive->ended)
      asio::post(alive->io, [a = std::move(answer)] { a->fail("the handler gave no answer"); });
  }
  std::weak_ptr<Hub> hub;
  std::shared_ptr<Answer> answer;
};

/// Nothing here waits: the socket does not block, and one wait for reading and one for writing say when to try again.
/// Only the loop calls `close`, never a method of Exchange, so that no callback runs inside the caller's own call.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Hub& hub, tcp::socket socket) : hub_(hub), socket_(std::move(socket)), timer_(hub.io) {}
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection();

  void begin();
  void stop();   // no further requests
  void close();  // at once; an answer under way is cut off
  void queue(std::string_view bytes);
  void flush_soon();
  [[nodiscard]] bool keep_alive() const { return keep_alive_; }
  void end_after_answer() { keep_alive_ = false; }
  [[nodiscard]] Hub& hub() { return hub_; }

 private:
  enum class State : std::uint8_t { kIdle, kReceiving, kAnswering, kLingering, kClosed };

  void wait_readable();
  void on_readable();
  void look();
  void wait_writable();
  void flush();
  void arm(milliseconds time);
  void on_timer();
  void check_client();
  void idle();
  void receive();
  bool on_head();
  void serve();
  void refuse(int status, std::string_view message);
  std::shared_ptr<Answer> new_answer();
  void complete();
  void linger();
  [[nodiscard]] std::size_t unsent() const { return out_.size() - out_sent_; }

  Hub& hub_;
  tcp::socket socket_;
  asio::steady_timer timer_;  // the end of the state's time; while answering, the next look at the client
  State state_ = State::kIdle;
  bool wait_read_ = false, wait_write_ = false, flush_posted_ = false;

  std::string in_;  // read, not parsed yet
  std::optional<http::request_parser<http::string_body>> parser_;
  std::size_t head_bytes_ = 0;
  bool head_done_ = false, keep_alive_ = true;
  HttpRequest request_;
  std::string peer_;

  std::shared_ptr<Answer> answer_;
  std::string out_;
  std::size_t out_sent_ = 0;   // of `out_`
  std::uint64_t written_ = 0;  // to the kernel, ever
  std::uint64_t taken_ = 0;    // by the client, of these
  Clock::time_point taken_at_{};
  std::size_t discarded_ = 0;
};

// --- Answer

/// Nothing that a caller puts into a header can end the line.
void add_field(std::string& head, std::string_view name, std::string_view value) {
  const auto clean = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c; };
  std::transform(name.begin(), name.end(), std::back_inserter(head), clean);
  head += ": ";
  std::transform(value.begin(), value.end(), std::back_inserter(head), clean);
  head += "\r\n";
}

std::string date() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[40];
  return {text, std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &utc)};
}

void Answer::begin(int status, std::string_view content_type, const Headers& headers,
                   std::string_view framing) {
  status_ = status >= 200 && status <= 999 ? status : 500;
  bodiless_ = head_ || status_ == 204 || status_ == 304;
  const std::string_view reason = http::obsolete_reason(static_cast<http::status>(status_));
  std::string head = "HTTP/1.1 " + std::to_string(status_) + ' ' + std::string(reason) + "\r\n";
  add_field(head, "Date", date());
  if (!content_type.empty()) add_field(head, "Content-Type", content_type);
  for (const auto& [name, value] : headers) add_field(head, name, value);
  if (!connection_->keep_alive())
    add_field(head, "Connection", "close");
  else if (http_1_0_)
    add_field(head, "Connection", "keep-alive");
  if (status_ != 204) head += framing;
  connection_->queue(head + "\r\n");
}

void Answer::send(int status, std::string_view content_type, std::string body, const Headers& headers) {
  if (connection_ == nullptr || status_ != 0) return;
  begin(status, content_type, headers, "Content-Length: " + std::to_string(body.size()) + "\r\n");
  finished_ = true;
  if (bodiless_) return;
  body_bytes_ = body.size();
  connection_->queue(body);
}

void Answer::start(int status, std::string_view content_type) {
  if (connection_ == nullptr || status_ != 0) return;
  if (http_1_0_) connection_->end_after_answer();
  chunked_ = !http_1_0_;
  streamed_ = true;
  begin(status, content_type, {{"Cache-Control", "no-store"}, {"X-Accel-Buffering", "no"}},
        chunked_ ? "Transfer-Encoding: chunked\r\n" : "");
}

void Answer::write(std::string piece) {
  if (!running() || bodiless_ || piece.empty()) return;
  body_bytes_ += piece.size();
  if (!chunked_) return connection_->queue(piece);
  std::ostringstream size;
  size << std::hex << piece.size() << "\r\n";
  connection_->queue(size.str() + piece + "\r\n");
}

void Answer::finish() {
  if (!running()) return;
  finished_ = true;
  if (chunked_ && !bodiless_) connection_->queue("0\r\n\r\n");
  connection_->flush_soon();
}

void Answer::fail(std::string_view why) {
  if (connection_ == nullptr || finished_) return;
  if (note.empty()) note = why;
  if (status_ != 0) return connection_->close();  // all that is left to say that the answer is not whole
  send(500, "application/json", connection_->hub().error_body(500, "internal error"), {});
}

void Answer::end(const HttpServer::Observer& observer, std::size_t unsent) {
  connection_ = nullptr;
  gone_ = !finished_ || unsent > 0;
  const auto call = std::exchange(on_gone, nullptr);
  if (gone_ && call) call();
  if (!observer) return;
  const double seconds = std::chrono::duration<double>(Clock::now() - since_).count();
  observer({.request = request_,
            .status = status_,
            .sent_bytes = body_bytes_ - std::min<std::uint64_t>(body_bytes_, unsent),
            .seconds = seconds,
            .complete = !gone_,
            .note = note});
}

// --- Connection: its life

Connection::~Connection() {
  if (answer_ == nullptr) return;  // else the server was destroyed in mid flight
  answer_->connection_ = nullptr;
  answer_->on_gone = nullptr;
}

void Connection::begin() {
  error_code e;
  socket_.non_blocking(true, e);
  if (!e) socket_.set_option(tcp::no_delay(true), e);
  const auto peer = e ? tcp::endpoint{} : socket_.remote_endpoint(e);
  if (e) return close();
  std::ostringstream text;
  text << peer;
  peer_ = text.str();
  idle();
}

void Connection::stop() {
  if (state_ == State::kIdle || state_ == State::kReceiving) close();
  keep_alive_ = false;
}

void Connection::close() {
  if (state_ == State::kClosed) return;
  const auto self = shared_from_this();
  const auto answer = std::exchange(answer_, nullptr);
  error_code e;
  // A reset: what the kernel still holds for a client that was cut off is not kept for it.
  if (answer != nullptr) socket_.set_option(asio::socket_base::linger(true, 0), e);
  state_ = State::kClosed;
  timer_.cancel();
  socket_.close(e);
  hub_.left(self);
  if (answer != nullptr) answer->end(hub_.observer, unsent());
}

void Connection::arm(milliseconds time) {
  timer_.expires_after(time);
  timer_.async_wait([self = shared_from_this()](error_code e) {
    // The time may have been set anew while this call was already on its way.
    if (!e && self->timer_.expiry() <= Clock::now()) self->on_timer();
  });
}

void Connection::on_timer() {
  switch (state_) {
    case State::kIdle:
    case State::kLingering: return close();
    case State::kReceiving: return refuse(408, "the request did not arrive in time");
    case State::kAnswering: return check_client();
    case State::kClosed: return;
  }
}

/// Now and then while an answer is under way: is the client still there, and does it take what it is sent?
void Connection::check_client() {
  pollfd p{.fd = socket_.native_handle(), .events = POLLRDHUP, .revents = 0};
  if (::poll(&p, 1, 0) > 0) return close();
  int in_kernel = 0;
  if (::ioctl(p.fd, SIOCOUTQ, &in_kernel) != 0) in_kernel = 0;
  const std::uint64_t taken =
      written_ - std::min<std::uint64_t>(written_, static_cast<std::uint64_t>(in_kernel));
  const auto now = Clock::now();
  // The kernel calls a socket writable only when a third of its buffer is free: a slow reader is seen here first.
  if (unsent() == 0 || taken != taken_) taken_at_ = now;
  taken_ = taken;
  if (now - taken_at_ >= hub_.options.send_timeout) return close();
  arm(std::clamp(hub_.options.send_timeout / 4, milliseconds{10}, milliseconds{1000}));
}

// --- Connection: reading

void Connection::wait_readable() {
  if (wait_read_ || state_ == State::kClosed) return;
  wait_read_ = true;
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](error_code) {
    self->wait_read_ = false;
    self->on_readable();
  });
}

void Connection::on_readable() {
  if (state_ == State::kClosed) return;
  if (state_ == State::kAnswering) return look();
  error_code e;
  const std::size_t n = socket_.read_some(asio::buffer(hub_.scratch), e);
  if (not_yet(e)) return wait_readable();
  if (e) return close();
  if (state_ == State::kLingering) return (discarded_ += n) > kLingerBytes ? close() : wait_readable();
  in_.append(hub_.scratch.data(), n);
  receive();
}

/// Has the client left, or is this its next request? That one stays with the kernel, and because the socket remains
/// readable from then on, only `check_client` sees the client go.
void Connection::look() {
  char byte = 0;
  error_code e;
  socket_.receive(asio::buffer(&byte, 1), tcp::socket::message_peek, e);
  if (not_yet(e)) return wait_readable();
  if (e) close();
}

void Connection::idle() {
  state_ = State::kIdle;
  if (in_.empty()) in_ = {};  // with its memory
  arm(hub_.options.idle_timeout);
  receive();
}

/// Parses what has been read. A request that is whole is served.
void Connection::receive() {
  if (state_ == State::kIdle) {
    in_.erase(0, in_.find_first_not_of("\r\n"));  // blank lines before a request are allowed
    if (in_.empty()) return wait_readable();
    state_ = State::kReceiving;
    parser_.emplace();
    parser_->header_limit(static_cast<std::uint32_t>(
        std::min<std::size_t>(hub_.options.max_header_bytes, std::uint32_t{1} << 30)));
    parser_->body_limit(hub_.options.max_body_bytes);
    parser_->eager(false);  // stop behind the head
    head_bytes_ = 0;
    head_done_ = false;
    request_ = {};
    arm(hub_.options.receive_timeout);
  }
  error_code e;
  while (!in_.empty() && !parser_->is_done()) {
    const std::size_t n = parser_->put(asio::buffer(in_), e);
    in_.erase(0, n);
    if (!head_done_) head_bytes_ += n;
    if (e == http::error::need_more) break;
    if (e == http::error::body_limit)
      return refuse(413, "the body is larger than " + std::to_string(hub_.options.max_body_bytes) + " bytes");
    if (e == http::error::header_limit || (!head_done_ && head_bytes_ > hub_.options.max_header_bytes))
      return refuse(431, "the request's headers are too large");
    if (e) return refuse(400, "not a valid HTTP request: " + e.message());
    if (!head_done_ && parser_->is_header_done() && !on_head()) return;
  }
  if (parser_->is_done()) return serve();
  // What is left is one line or more without its end, of the head, a chunk's head or the trailer.
  if (in_.size() + (head_done_ ? 0 : head_bytes_) > hub_.options.max_header_bytes)
    return refuse(431, "the request's headers are too large");
  wait_readable();
}

void split_target(std::string_view target, HttpRequest& request) {
  if (!target.starts_with('/'))  // "http://host/path"
    if (const auto scheme = target.find("://"); scheme != target.npos) {
      const auto path = target.find_first_of("/?", scheme + 3);
      target = path == target.npos ? "/" : target.substr(path);
    }
  const auto mark = target.find('?');
  request.path = target.substr(0, mark);
  if (mark != target.npos) request.query = target.substr(mark + 1);
  if (request.path.empty() && mark != target.npos) request.path = "/";
}

/// Takes what is needed of the head, now, because Beast adds the trailer's fields to it. False: refused.
bool Connection::on_head() {
  head_done_ = true;
  const auto& head = parser_->get();
  request_.method = std::string_view(head.method_string());
  std::transform(request_.method.begin(), request_.method.end(), request_.method.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  split_target(head.target(), request_);
  request_.authorization = std::string_view(head[http::field::authorization]);
  keep_alive_ = parser_->keep_alive() && !hub_.stopping;
  // Any other coding would leave it open where the body ends.
  if (const auto codings = head.count(http::field::transfer_encoding); codings > 0)
    if (codings > 1 || head.version() != 11 ||
        !boost::beast::iequals(head[http::field::transfer_encoding], "chunked")) {
      refuse(400, "Transfer-Encoding can only be chunked");
      return false;
    }
  if (!parser_->is_done() && in_.empty() && head.version() == 11 &&
      boost::beast::iequals(head[http::field::expect], "100-continue"))
    queue("HTTP/1.1 100 Continue\r\n\r\n");
  return true;
}

// --- Connection: answering

std::shared_ptr<Answer> Connection::new_answer() {
  answer_ = std::make_shared<Answer>();
  answer_->connection_ = this;
  answer_->http_1_0_ = head_done_ && parser_->get().version() == 10;
  answer_->head_ = request_.method == "HEAD";
  request_.peer = peer_;
  answer_->request_ = std::move(request_);
  parser_.reset();
  state_ = State::kAnswering;
  taken_at_ = Clock::now();
  arm(std::clamp(hub_.options.send_timeout / 4, milliseconds{10}, milliseconds{1000}));
  return answer_;
}

void Connection::serve() {
  request_.body = std::move(parser_->get().body());
  const auto answer = new_answer();
  try {
    auto handle = std::make_shared<Handle>();
    handle->hub = hub_.weak_from_this();
    handle->answer = answer;
    hub_.handler(std::shared_ptr<Exchange>(std::move(handle), answer.get()));
  } catch (const std::exception& e) {
    answer->fail(e.what());
  } catch (...) {
    answer->fail("the handler threw");
  }
  wait_readable();
}

void Connection::refuse(int status, std::string_view message) {
  if (!head_done_) {  // what is known of it
    const auto& head = parser_->get();
    request_.method = std::string_view(head.method_string());
    split_target(head.target(), request_);
  }
  const auto answer = new_answer();
  keep_alive_ = false;
  answer->note = message;
  answer->send(status, "application/json", hub_.error_body(status, message), {});
}

void Connection::queue(std::string_view bytes) {
  if (unsent() == 0) taken_at_ = Clock::now();
  out_ += bytes;
  flush_soon();
}

void Connection::flush_soon() {
  if (std::exchange(flush_posted_, true)) return;
  asio::post(hub_.io, [self = shared_from_this()] {
    self->flush_posted_ = false;
    self->flush();
  });
}

/// One write. If more is to be done, others have their turn first.
void Connection::flush() {
  if (state_ == State::kClosed) return;
  if (unsent() > 0) {
    error_code e;
    const auto rest = asio::buffer(out_) + out_sent_;
    const std::size_t n = socket_.write_some(asio::buffer(rest, kWriteBytes), e);
    if (e && !not_yet(e)) return close();
    written_ += n;
    out_sent_ += n;
    if (out_sent_ == out_.size()) {
      out_.clear();
      out_sent_ = 0;
    } else if (out_sent_ > out_.size() / 2) {
      out_.erase(0, std::exchange(out_sent_, 0));
    }
    // Who gave the whole answer at once let nothing pile up.
    if (answer_ != nullptr && answer_->streamed_ && unsent() > hub_.options.max_unsent_bytes) return close();
    if (unsent() > 0) return wait_writable();
  }
  if (answer_ != nullptr && answer_->finished_) complete();
}

void Connection::wait_writable() {
  if (std::exchange(wait_write_, true)) return;
  socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](error_code) {
    self->wait_write_ = false;
    self->flush();
  });
}

void Connection::complete() {
  const auto answer = std::exchange(answer_, nullptr);
  out_ = {};
  answer->end(hub_.observer, 0);
  return keep_alive_ ? idle() : linger();
}

/// Closing at once would reset the connection if the client still sends, and take the answer from it.
void Connection::linger() {
  state_ = State::kLingering;
  error_code e;
  socket_.shutdown(tcp::socket::shutdown_send, e);
  in_ = {};
  arm(kLinger);
  wait_readable();
}

// --- Hub

Hub::Hub(HttpOptions o, HttpServer::Handler h, HttpServer::Observer w)
    : options(std::move(o)), handler(std::move(h)), observer(std::move(w)) {
  for (milliseconds* time : {&options.receive_timeout, &options.idle_timeout, &options.send_timeout})
    *time = sane(*time);
}

std::string Hub::error_body(int status, std::string_view message) const {
  if (options.error_body) return options.error_body(status, message);
  std::string text;
  for (const char c : message)
    text += static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\' ? ' ' : c;
  return R"({"error":{"message":")" + text + R"("}})";
}

std::string Hub::listen() {
  error_code e;
  tcp::resolver resolver(io);
  const auto found = resolver.resolve(options.host, std::to_string(options.port),
                                      tcp::resolver::passive | tcp::resolver::numeric_service, e);
  for (const auto& entry : found) {
    const tcp::endpoint endpoint = entry.endpoint();
    e = {};
    const auto step = [&](auto&& call) {
      if (!e) call();
    };
    acceptor.open(endpoint.protocol(), e);
    step([&] { acceptor.set_option(tcp::acceptor::reuse_address(true), e); });
    step([&] { acceptor.bind(endpoint, e); });
    step([&] { acceptor.listen(asio::socket_base::max_listen_connections, e); });
    step([&] { port = acceptor.local_endpoint(e).port(); });
    if (!e) return {};
    error_code ignored;
    acceptor.close(ignored);
  }
  return "cannot listen on " + options.host + ":" + std::to_string(options.port) + ": " + e.message();
}

void Hub::accept() {
  const std::size_t most = std::max(options.max_connections, 1u);
  if (accepting || stopping || !acceptor.is_open() || connections.size() >= most) return;
  accepting = true;
  acceptor.async_accept([this](error_code e, tcp::socket socket) {
    if (stopping) return;
    if (e) {
      accept_pause.expires_after(kAcceptPause);
      accept_pause.async_wait([this](error_code) {
        accepting = false;
        accept();
      });
      return;
    }
    accepting = false;
    const auto connection = std::make_shared<Connection>(*this, std::move(socket));
    connections.insert(connection);
    connection_count = static_cast<std::uint32_t>(connections.size());
    connection->begin();
    accept();
  });
}

void Hub::left(const std::shared_ptr<Connection>& connection) {
  connections.erase(connection);
  connection_count = static_cast<std::uint32_t>(connections.size());
  accept();
  if (stopping && connections.empty()) asio::post(io, [this] { end(); });
}

void Hub::stop(Clock::time_point deadline) {
  if (ended || (stopping && deadline >= grace.expiry())) return;
  grace.expires_at(deadline);
  grace.async_wait([this](error_code e) {
    if (e) return;
    const auto all = connections;
    for (const auto& connection : all) connection->close();
  });
  if (std::exchange(stopping, true)) return;
  error_code ignored;
  acceptor.close(ignored);
  accept_pause.cancel();
  if (connections.empty()) return end();
  const auto all = connections;
  for (const auto& connection : all) connection->stop();
}

/// With nothing left to wait for, `run` returns, after what was posted up to here.
void Hub::end() {
  if (ended.exchange(true)) return;
  grace.cancel();
  for (const auto& alarm : alarms) alarm->cancel();
  work.reset();
}

}  // namespace

// --- HttpServer

struct HttpServer::Impl final : Hub {
  using Hub::Hub;
};

HttpServer::HttpServer(HttpOptions options, Handler handler, Observer observer)
    : impl_(std::make_shared<Impl>(std::move(options), std::move(handler), std::move(observer))) {}

HttpServer::~HttpServer() = default;

std::string HttpServer::listen() { return impl_->listen(); }

std::uint16_t HttpServer::port() const { return impl_->port; }

std::uint32_t HttpServer::connections() const { return impl_->connection_count; }

void HttpServer::run() {
  impl_->accept();
  impl_->io.run();
}

void HttpServer::post(std::function<void()> fn) {
  if (!impl_->ended) asio::post(impl_->io, std::move(fn));
}

void HttpServer::after(milliseconds delay, std::function<void()> fn) {
  if (impl_->ended) return;
  const auto alarm = std::make_shared<asio::steady_timer>(impl_->io, sane(delay));
  impl_->alarms.insert(alarm);
  alarm->async_wait([hub = impl_.get(), alarm, fn = std::move(fn)](error_code) {
    hub->alarms.erase(alarm);
    if (!hub->ended) fn();
  });
}

void HttpServer::stop(milliseconds grace) {
  const auto deadline = Clock::now() + sane(grace);
  asio::post(impl_->io, [hub = impl_.get(), deadline] { hub->stop(deadline); });
}

}  // namespace kvstem_llama::server
