// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The calls of an engine with a paged pool and a scheduler of its own, in the order of its loop: admission, block tables,
// prefill in chunks, decoding whose results are known a step late, requests that share a computation, one that fails.
// The device is a toy without a model (toy_device.hpp); its answers are compared with those of an engine without a cache.
#include <kvstem/kvstem.hpp>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <deque>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "toy_device.hpp"

using namespace kvstem;
using toy::Device, toy::Request, toy::Step, toy::Work;

namespace {

constexpr std::uint32_t kChunk = 16;  // most tokens of one request in one step
constexpr std::uint32_t kQueue = 0;   // the timeline of the device's queue: step n is done at {kQueue, n}

class Engine {
 public:
  Engine(Cache& cache, ScopeId scope) : cache_(cache), scope_(scope) {}

  void serve(std::vector<Request>& requests) {
    while (!std::ranges::all_of(requests, &Request::over)) {
      Step step{.done = {kQueue, ++steps_}};
      for (Request& r : requests) {
        if (r.hangs_up_in == steps_) fail(r, "hangs up, tokens launched:");
        if (!r.over && (r.launched > 0 || admit(r))) schedule(r, step);
      }
      launched_.push_back(std::move(step));
      check(cache_.end_step(
          {kQueue, steps_}));  // slots freed since the last call are for the steps after this one
      if (launched_.size() > 1) collect();  // the step before, while this one runs
    }
    while (!launched_.empty()) collect();
  }
  [[nodiscard]] bool ok() const { return ok_; }

 private:
  bool admit(Request& r) {
    if (!r.lease.live()) {
      auto lease = cache_.acquire({.scope = scope_, .tokens = r.tokens});  // matches and pins, at once
      if (!lease.ok()) return wait(r, lease.status());
      r.lease = std::move(*lease);
    }
    // What another request computes already is waited for. If that one fails, the first to ask takes over.
    const Progress progress = r.lease.refresh();
    if (!progress.must_compute) return say(r, "waits, tokens in the making:", progress.pending_tokens);
    // Room for the whole request, so that it never stops half-way. An engine that takes its chance reserves as it goes,
    // and releases a lease when slots run out: what was committed stays, and is matched when the request comes back.
    if (const Status s = r.lease.reserve(r.end - r.lease.reserved_tokens()); !s.ok()) return wait(r, s);
    r.launched = r.lease.matched_tokens();
    return !say(r, "starts, tokens there already:", r.launched);
  }

  // Blocks that no lease holds are evicted when slots are needed. So slots run out only while leases hold them, and come
  // back when a lease has ended, and then the step. Who waits for them holds none, or two could lock each other out.
  bool wait(Request& r, const Status& status) {
    if (status.code() != StatusCode::kExhausted) return fail(r, status.message());
    (void)r.lease.abort();
    return say(r, "waits, slots free:", cache_.pool().free_slots());
  }

  void schedule(Request& r, Step& step) {
    if (r.launched == r.end) return;  // its last token is on the way
    const std::uint32_t n = r.launched < r.prompt ? std::min(kChunk, r.prompt - r.launched) : 1;
    const auto table = r.lease.table(0);  // the slot of each block
    step.work.push_back({&r, r.launched, r.launched + n, {table.begin(), table.end()}});
    // Others find it once the step is done. A decoded token is not known here yet: collect() commits it.
    if (r.launched < r.prompt) check(r.lease.commit(n, step.done));
    r.launched += n;
  }

  void collect() {
    const Step step = std::move(launched_.front());
    launched_.pop_front();
    device_.run(step);               // (a real one has done so meanwhile)
    check(cache_.reach(step.done));  // what was committed for it is valid
    for (const Work& w : step.work) {
      Request& r = *w.request;
      if (r.over || w.end < r.prompt) continue;
      r.tokens.push_back(r.sampled);
      if (w.end < r.end) {
        check(r.lease.append({&r.sampled, 1}));
        check(r.lease.commit(1, {kQueue, steps_}));  // its state is part of the step that runs now
      } else {
        check(r.lease.release(r.retention));  // what it computed stays for as long as there is room
        r.over = true;
        say(r, "is done, tokens:", w.end + 1);
      }
    }
  }

  bool fail(Request& r, const char* why) {
    (void)r.lease.abort();  // what was valid stays; the rest is for those who wait for it
    r.over = true;
    return say(r, why, r.launched);
  }
  bool say(const Request& r, const char* what, std::uint32_t n) const {
    std::printf("step %2u  %-6s  %s %u\n", steps_, r.name, what, n);
    return false;
  }
  void check(const Status& status) {  // of calls that only a mistake of this engine makes fail
    if (!status.ok()) std::printf("%s\n", status.message());
    ok_ = ok_ && status.ok();
  }

  Cache& cache_;
  ScopeId scope_;
  Device device_;
  std::deque<Step> launched_;
  unsigned steps_ = 0;
  bool ok_ = true;
};

}  // namespace

int main() {
  const auto made = Cache::create({.block_tokens = toy::kBlock, .slots = toy::kSlots});
  if (!made.ok()) return std::printf("%s\n", made.status().message()), 1;
  Cache& cache = **made;
  const auto scope = cache.open_scope({.model = "demo", .vocab_size = 256});
  auto reader = cache.register_reader();
  if (!scope.ok() || !reader.ok()) return std::printf("no scope or no reader\n"), 1;

  const std::string system = "You are a helpful assistant. ";
  std::vector<Request> turns, next;
  turns.emplace_back("essay", system + "Write ten long pages about waterfowl.").hangs_up_in = 3;
  turns.emplace_back("goose", system + "What is a goose?");
  turns.emplace_back("gander", system + "What is a gander?");
  turns.emplace_back("haiku", "A haiku on patience.", Keep::kCold);

  // Another thread may look at any time, as often as it likes: a router, or whoever sorts the queue.
  std::atomic<bool> served = false;
  std::uint32_t seen = 0;
  std::thread router([&, prompt = turns[1].tokens] {
    for (bool last = false; !last; std::this_thread::yield()) {
      last = served;
      ProbeRange ranges[3];
      const auto found = cache.probe(*reader, {.scope = *scope, .tokens = prompt}, ranges);
      seen = found.ok() ? ready_tokens(*found) : 0;
    }
  });

  Engine engine(cache, *scope);
  engine.serve(turns);
  // The next turn of a conversation finds the prompt and the answer of the one before.
  next.emplace_back("goose", std::string(turns[1].tokens.begin(), turns[1].tokens.end()) + " And ducks?");
  engine.serve(next);
  served = true;
  router.join();

  const CacheStats& stats = cache.stats();
  std::printf("tokens found %d, missed %d; blocks evicted %d; the router sees %u\n",
              static_cast<int>(stats.hit_tokens), static_cast<int>(stats.missed_tokens),
              static_cast<int>(stats.evicted_blocks), seen);
  bool right = engine.ok() && cache.audit().balanced() && seen == 44;
  for (const auto* requests : {&turns, &next})
    for (const Request& r : *requests) right = right && (r.hangs_up_in > 0 || toy::right(r));
  std::printf("%s\n", right ? "every answer is the one without a cache" : "WRONG");
  return right ? 0 : 1;
}
