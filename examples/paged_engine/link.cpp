// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "link.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <type_traits>

#include "kvstem/cache/step_codec.hpp"

namespace paged {
namespace {

constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 30;

bool write_all(int socket, const void* data, std::size_t bytes) {
  for (const auto* at = static_cast<const char*>(data); bytes > 0;) {
    const ssize_t n = send(socket, at, bytes, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    bytes -= static_cast<std::size_t>(n);
  }
  return true;
}
bool read_all(int socket, void* data, std::size_t bytes) {
  for (auto* at = static_cast<char*>(data); bytes > 0;) {
    const ssize_t n = recv(socket, at, bytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    bytes -= static_cast<std::size_t>(n);
  }
  return true;
}

/// The ranks run on one machine, so numbers go as they lie in memory.
class Writer {
 public:
  template <class T>
  void put(const T& value) {
    static_assert(std::is_arithmetic_v<T>);
    const auto* const at = reinterpret_cast<const std::byte*>(&value);
    bytes.insert(bytes.end(), at, at + sizeof value);
  }
  template <class T>
  void put_all(const std::vector<T>& values) {
    put(values.size());
    for (const T& value : values) put(value);
  }
  std::vector<std::byte> bytes;
};
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left(bytes) {}
  template <class T>
  void get(T& value) {
    static_assert(std::is_arithmetic_v<T>);
    if (left.size() < sizeof value) return (void)(good = false);
    std::memcpy(&value, left.data(), sizeof value);
    left = left.subspan(sizeof value);
  }
  /// How many follow, of at least `bytes` each.
  std::size_t count(std::size_t bytes) {
    std::size_t n = 0;
    get(n);
    if (n > left.size() / bytes) good = false;
    return good ? n : 0;
  }
  template <class T>
  void get_all(std::vector<T>& values) {
    values.resize(count(sizeof(T)));
    for (T& value : values) get(value);
  }
  std::span<const std::byte> left;
  bool good = true;
};

template <class Stream, class Work, class Fn>
void each_field(Stream& stream, Work& w, Fn&& fn) {
  fn(stream, w.request);
  fn(stream, w.sample);
  fn(stream, w.sequence);
  fn(stream, w.begin);
  fn(stream, w.first);
  fn(stream, w.rows);
  fn(stream, w.drafts);
  fn(stream, w.ahead);
}

}  // namespace

std::vector<std::byte> encode(const Job& job) {
  Writer out;
  out.put(job.done.timeline);
  out.put(job.done.value);
  std::vector<std::byte> step(kvstem::encoded_bytes(job.copies.size()));
  (void)kvstem::encode_step(job.copies, job.decisions, step);
  out.put(step.size());
  out.bytes.insert(out.bytes.end(), step.begin(), step.end());
  out.put(job.work.size());
  for (const JobWork& w : job.work) {
    each_field(out, w, [](Writer& to, const auto& field) { to.put(field); });
    out.put(w.choose.size());
    for (const Sampling& s : w.choose) out.put(s.temperature), out.put(s.seed);
  }
  out.put_all(job.tokens);
  out.put(job.width);
  out.put_all(job.tables);
  return std::move(out.bytes);
}

bool decode(std::span<const std::byte> bytes, Job& job) {
  Reader in(bytes);
  in.get(job.done.timeline);
  in.get(job.done.value);
  const std::size_t size = in.count(1);
  job.copies.resize(size / 16 + 1);
  const auto step = kvstem::decode_step(in.left.first(size), job.copies);
  if (!in.good || !step.ok()) return false;
  job.decisions = step->decisions;
  job.copies.resize(step->entries.size());
  in.left = in.left.subspan(size);
  job.work.resize(in.count(sizeof(std::uint64_t)));
  for (JobWork& w : job.work) {
    each_field(in, w, [](Reader& from, auto& field) { from.get(field); });
    w.choose.resize(in.count(sizeof(std::uint64_t)));
    for (Sampling& s : w.choose) in.get(s.temperature), in.get(s.seed);
  }
  in.get_all(job.tokens);
  in.get(job.width);
  in.get_all(job.tables);
  if (!in.good || !in.left.empty()) return false;
  if (job.tables.size() != job.work.size() * job.width) return false;
  return std::ranges::all_of(job.work, [&](const JobWork& w) {
    return w.rows > w.drafts && w.first <= job.tokens.size() && w.rows <= job.tokens.size() - w.first;
  });
}

std::pair<Link, Link> Link::pair() {
  int jobs[2] = {-1, -1}, heads[2] = {-1, -1};
  constexpr int kKind = SOCK_STREAM | SOCK_CLOEXEC;
  (void)(socketpair(AF_UNIX, kKind, 0, jobs) == 0 && socketpair(AF_UNIX, kKind, 0, heads) == 0);
  return {Link(0, jobs[0], heads[0]), Link(1, jobs[1], heads[1])};
}

Link::Link(Link&& other) noexcept
    : rank_(other.rank_), jobs_(std::exchange(other.jobs_, -1)), heads_(std::exchange(other.heads_, -1)) {}

void Link::close() {
  for (int* socket : {&jobs_, &heads_})
    if (*socket >= 0) ::close(std::exchange(*socket, -1));
}

void Link::stop() {
  for (const int socket : {jobs_, heads_})
    if (socket >= 0) (void)shutdown(socket, SHUT_RDWR);
}

bool Link::agree(Job& job, std::string& error) {
  const std::vector<std::byte> mine = encode(job);
  std::uint64_t bytes = mine.size();
  error = "the other rank is gone";
  if (rank_ == 0) return write_all(jobs_, &bytes, sizeof bytes) && write_all(jobs_, mine.data(), bytes);
  if (!read_all(jobs_, &bytes, sizeof bytes)) return false;
  error = "the ranks do not agree: they were not given the same requests and steps";
  if (bytes > kMostBytes) return false;
  std::vector<std::byte> theirs(bytes);
  if (!read_all(jobs_, theirs.data(), bytes)) return error = "the other rank is gone", false;
  return theirs == mine && decode(theirs, job);
}

bool Link::gather(std::span<float> all, std::uint32_t rows, std::uint32_t row_floats, std::uint32_t own_begin,
                  std::uint32_t own_floats) {
  // The other rank has what is before or behind this rank's part.
  const std::uint32_t other_begin = own_begin == 0 ? own_floats : 0;
  const std::uint32_t other_floats = row_floats - own_floats;
  mine_.resize(std::size_t{rows} * own_floats);
  theirs_.resize(std::size_t{rows} * other_floats);
  for (std::size_t r = 0; r < rows; ++r)
    std::copy_n(all.data() + r * row_floats + own_begin, own_floats, mine_.data() + r * own_floats);
  const auto give = [&] { return write_all(heads_, mine_.data(), mine_.size() * sizeof(float)); };
  const auto take = [&] { return read_all(heads_, theirs_.data(), theirs_.size() * sizeof(float)); };
  // One gives while the other takes: a socket does not hold all of a large batch.
  if (!(rank_ == 0 ? give() && take() : take() && give())) return false;
  for (std::size_t r = 0; r < rows; ++r)
    std::copy_n(theirs_.data() + r * other_floats, other_floats, all.data() + r * row_floats + other_begin);
  return true;
}

}  // namespace paged
