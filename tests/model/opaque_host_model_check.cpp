// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Random conversations through the opaque host, on an engine whose state is a digest of the prefix: every token that a
// request is given is looked at, and every count is kept twice.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "kvstem/host/opaque_host.hpp"
#include "kvstem/testing/digest_engine.hpp"
#include "support/catch.hpp"

using namespace kvstem;

namespace {

std::uint64_t last_input[256];
std::uint64_t collisions = 0;  // keys that were given to another input the last time

KeyFunction eight_bits() {
  return {HashAlgorithm::kTest, [](std::span<const std::byte> in, const KeySecret&) noexcept {
            const std::uint64_t input = XXH3_64bits(in.data(), in.size());
            auto& last = last_input[input & 0xff];
            collisions += last != 0 && last != input;
            last = input;
            return BlockKey{input & 0xff, 0};
          }};
}

struct Conversation {
  std::vector<TokenId> tokens;
  std::uint32_t scope = 0;
  std::vector<Extra> extras;
};

struct Walk {
  std::uint64_t seed;
  KeyFunction keys = xxh3_key_function();
  std::uint32_t resident_tokens = 600;
  std::uint32_t frontiers = 6;
  std::size_t host_blocks = 60;
  bool faults = false;
  std::uint64_t operations = 60'000;
};

void run(const Walk& walk) {
  std::mt19937_64 random(walk.seed);
  const auto below = [&](std::uint64_t n) { return static_cast<std::uint32_t>(random() % n); };
  std::map<std::string, std::uint64_t> happened;
  constexpr std::uint32_t kBlock = 8;

  DigestEngine engine({.cells = 1 << 20, .sequences = 9, .sequence_tokens = 256});
  auto made = OpaqueHost<DigestEngine>::create(engine, {.block_tokens = kBlock,
                                                        .host_bytes = walk.host_blocks * kBlock * 8,
                                                        .requests = 3,
                                                        .resident_tokens = walk.resident_tokens,
                                                        .frontiers = walk.frontiers,
                                                        .step_bytes = 4 * kBlock * 8,
                                                        .key_function = walk.keys});
  REQUIRE(made.ok());
  auto& host = **made;
  ScopeId scopes[2];
  for (int i = 0; i < 2; ++i) {
    const auto scope = host.open_scope({.model = "m", .salt = std::to_string(i), .vocab_size = 100});
    REQUIRE(scope.ok());
    scopes[i] = *scope;
  }
  if (walk.faults)
    engine.fail = [&](DigestEngine::Call call) {
      const bool fails = below(40) == 0;
      if (fails)
        ++happened[call == DigestEngine::Call::kExport   ? "export failed"
                   : call == DigestEngine::Call::kImport ? "import failed"
                   : call == DigestEngine::Call::kShare  ? "share failed"
                                                         : "drop failed"];
      return fails;
    };

  struct Waiting {
    AnnouncementId id;
    Conversation conversation;
    std::uint32_t protected_tokens;  // whole blocks in host memory when it was announced
  };
  std::vector<Waiting> waiting;
  const auto in_host_memory = [&](const Conversation& c) {
    // A probe of the cache alone: residents and frontiers may go at any time.
    auto reader = host.cache().register_reader();
    REQUIRE(reader.ok());
    ProbeRange ranges[3];
    const auto found = host.cache().probe(
        *reader, {.scope = scopes[c.scope], .tokens = c.tokens, .extras = c.extras}, ranges);
    REQUIRE(found.ok());
    return ready_tokens(*found);
  };
  struct Running {
    OpaqueRequestId id;
    SequenceId sequence;
    Conversation* conversation;
    std::vector<TokenId> tokens;
    std::uint32_t at;
  };
  std::vector<Running> running;
  std::vector<Conversation> conversations(6);
  std::uint64_t prompt_tokens = 0, reused = 0, computed = 0, appended = 0, requests = 0;

  for (std::uint64_t op = 0; op < walk.operations; ++op) {
    const std::uint32_t choice = below(10);
    if (choice < 3) {
      Conversation& c = conversations[below(conversations.size())];
      if (c.tokens.size() > 180 || below(30) == 0) {
        // A new conversation begins like others do.
        c = {};
        c.scope = below(2);
        c.tokens.assign(10 + below(30), static_cast<TokenId>(below(2)));
        if (below(4) == 0) c.extras.push_back({below(10), {static_cast<std::byte>(below(3))}});
      }
      for (std::uint32_t k = below(12) + 1; k-- > 0;) c.tokens.push_back(static_cast<TokenId>(below(3)));
      const std::uint32_t grid = below(5) == 0 ? 16 : 0;
      const bool reuse = below(20) != 0;
      const OpaqueRequest request{
          .prompt = {.scope = scopes[c.scope], .tokens = c.tokens, .extras = c.extras},
          .session = static_cast<std::uint64_t>(&c - conversations.data()) + 1,
          .grid_tokens = grid,
          .reuse = reuse};
      if (below(2) == 0 && waiting.size() < 4) {
        const auto id = host.announce(request);
        REQUIRE(id.ok());
        waiting.push_back({*id, c, reuse ? in_host_memory(c) : 0});
        ++happened["announce"];
      }
      const std::uint32_t probed = host.probe(request);
      const std::uint64_t failures = host.stats().failed_imports + host.stats().failed_shares;
      const auto a = host.begin(request);
      if (!a.ok()) {
        ++happened[a.status().code() == StatusCode::kExhausted ? "begin: all busy" : "begin: engine refused"];
        if (running.size() < 3) host.work();
      } else {
        ++happened[a->reused_tokens > 0 ? "begin: hit" : "begin: miss"];
        happened["from resident"] += a->from_resident > 0;
        happened["from host"] += a->from_host > 0;
        happened["from frontier"] += a->from_frontier > 0;
        // The engine's digests say whether this is the state of exactly these tokens. (Extras are part of the state in a
        // real engine; that they separate is tested on their own.)
        REQUIRE(a->reused_tokens < c.tokens.size());
        REQUIRE(engine.holds(a->sequence, std::span(c.tokens).first(a->reused_tokens)));
        REQUIRE(a->from_resident + a->from_host + a->from_frontier == a->reused_tokens);
        REQUIRE((grid == 0 || a->reused_tokens % grid == 0));
        REQUIRE((reuse || a->reused_tokens == 0));
        // What a probe promises is found. (By another grid, or if something fails or makes way, there may be less.)
        if (grid == 0 && host.stats().failed_imports + host.stats().failed_shares == failures) {
          REQUIRE(a->reused_tokens <= probed);
          happened["probe: exact"] += a->reused_tokens == probed;
          happened["probe: too much"] += a->reused_tokens < probed;
        }
        ++requests;
        prompt_tokens += c.tokens.size();
        reused += a->reused_tokens;
        running.push_back({a->request, a->sequence, &c, c.tokens, a->reused_tokens});
      }
    } else if (choice < 7 && !running.empty()) {
      Running& r = running[below(running.size())];
      if (r.at < r.tokens.size()) {
        std::uint32_t n =
            std::min<std::uint32_t>(16 - r.at % 16, static_cast<std::uint32_t>(r.tokens.size()) - r.at);
        if (below(3) == 0) n = 1 + below(n);
        for (std::uint32_t k = 0; k < n; ++k) engine.compute(r.sequence, r.tokens[r.at + k]);
        REQUIRE(host.computed(r.id, n, r.at % 16 == 0 && (n == 16 || r.at + n == r.tokens.size())).ok());
        r.at += n;
        computed += n;
        ++happened["prefill"];
      } else if (r.tokens.size() < 250) {
        const auto token = static_cast<TokenId>(below(3));
        engine.compute(r.sequence, token);
        REQUIRE(host.append(r.id, {&token, 1}).ok());
        r.tokens.push_back(token);
        ++r.at;
        ++appended;
        ++happened["decode"];
      }
    } else if (choice == 7 && !running.empty() && below(3) == 0) {
      const Running& r = running[below(running.size())];
      const auto a = host.fork(r.id);
      if (r.at < r.tokens.size()) {
        REQUIRE(a.status().code() == StatusCode::kWrongState);
        ++happened["fork: too early"];
      } else if (!a.ok()) {
        REQUIRE((a.status().code() == StatusCode::kExhausted || walk.faults));
        ++happened[a.status().code() == StatusCode::kExhausted ? "fork: all busy" : "fork: engine refused"];
      } else {
        REQUIRE(a->reused_tokens == r.tokens.size());
        REQUIRE(engine.holds(a->sequence, r.tokens));
        ++happened["fork"];
        const Running child{a->request, a->sequence, r.conversation, r.tokens, r.at};
        running.push_back(child);
      }
    } else if (choice == 7 && !waiting.empty() && below(4) == 0) {
      const std::size_t i = below(waiting.size());
      const Waiting w = waiting[i];
      waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(i));
      // It may have become more meanwhile. An import that failed takes its block from the cache, whoever needs it.
      if (!walk.faults) REQUIRE(in_host_memory(w.conversation) >= w.protected_tokens);
      happened["withdraw: was protected"] += w.protected_tokens > 0;
      REQUIRE(host.withdraw(w.id).ok());
      REQUIRE(host.withdraw(w.id).code() == StatusCode::kStale);
    } else if (choice == 7) {
      const std::size_t bytes = host.work();
      REQUIRE(bytes <= 4 * kBlock * 8);
      ++happened[bytes > 0 ? "work" : "work: nothing to do"];
    } else if (!running.empty()) {
      const std::size_t i = below(running.size());
      Running r = running[i];
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));
      if (below(6) == 0) {
        REQUIRE(host.abort(r.id).ok());
        ++happened["abort"];
      } else {
        // What was said goes on from here, if nobody else said something meanwhile.
        if (r.at == r.tokens.size() && r.tokens.size() >= r.conversation->tokens.size())
          *r.conversation = {r.tokens, r.conversation->scope, r.conversation->extras};
        REQUIRE(host.end(r.id).ok());
        ++happened["end"];
      }
      REQUIRE(host.end(r.id).code() == StatusCode::kStale);
    }
    REQUIRE(engine.mistakes == 0);
    REQUIRE(host.resident_tokens() <= walk.resident_tokens);
    if (op % 16 == 0) REQUIRE(host.cache().audit().balanced());
  }

  for (const Running& r : running) REQUIRE(host.abort(r.id).ok());
  for (const Waiting& w : waiting) REQUIRE(host.withdraw(w.id).ok());
  // With nothing running, everything that was committed is out after a bounded number of steps.
  int steps = 0;
  while (host.unstored_blocks() > 0 && steps < 100) host.work(), ++steps;
  CHECK(host.unstored_blocks() == 0);
  host.work();
  CHECK(host.cache().audit().balanced());

  const OpaqueHostStats& s = host.stats();
  CHECK(s.requests == requests);
  CHECK(s.prompt_tokens == prompt_tokens);
  CHECK(s.resident_tokens + s.host_tokens + s.frontier_tokens == reused);
  CHECK(s.computed_tokens == computed);
  CHECK(s.appended_tokens == appended);
  CHECK(s.exported_bytes == engine.exported * 8);
  CHECK(s.largest_step_bytes <= 4 * kBlock * 8);
  std::printf("seed %llu:", static_cast<unsigned long long>(walk.seed));
  for (const auto& [what, n] : happened)
    std::printf(" %s %llu;", what.c_str(), static_cast<unsigned long long>(n));
  std::printf("\n");
  for (const char* what : {"begin: hit", "prefill", "decode", "work", "end", "abort"})
    CHECK(happened[what] * 100 >= walk.operations / 4);
  if (walk.resident_tokens > 0) CHECK(happened["from resident"] > 100);
  if (walk.frontiers > 0) CHECK(happened["from frontier"] > 20);
  CHECK(happened["from host"] > 100);
  CHECK(happened["fork"] > 100);
  CHECK(happened["withdraw: was protected"] > 100);
  CHECK(happened["probe: exact"] > 20 * happened["probe: too much"]);
  if (walk.faults)
    for (const char* what : {"export failed", "import failed"}) CHECK(happened[what] > 20);
}

std::uint64_t seed() {
  const char* fixed = std::getenv("KVSTEM_SEED");
  return fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : std::random_device{}();
}

}  // namespace

TEST_CASE("every reused token of a random conversation has the state of its own prefix") {
  run({.seed = seed()});
}

TEST_CASE("without residents the same holds from host memory and frontiers") {
  run({.seed = seed(), .resident_tokens = 0});
}

TEST_CASE("without frontiers the same holds") { run({.seed = seed(), .frontiers = 0}); }

TEST_CASE("keys that collide all the time never hand out another prefix's state, through host or resident") {
  collisions = 0;
  run({.seed = seed(), .keys = eight_bits()});
  std::printf("%llu collisions of keys\n", static_cast<unsigned long long>(collisions));
  CHECK(collisions >= 100);
}

TEST_CASE("an engine that fails now and then costs reuse, never exactness") {
  run({.seed = seed(), .faults = true});
}
