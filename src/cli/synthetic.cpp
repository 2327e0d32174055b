// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "synthetic.hpp"

#include <array>
#include <charconv>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <queue>
#include <random>
#include <string>
#include <tuple>
#include <vector>

namespace kvstem::cli {
namespace {

struct Quantile {
  std::uint32_t permille, value;
};

/// A distribution by its quantiles, from 0 to 1000 permille; straight lines between them.
struct Spread {
  std::array<Quantile, 8> quantiles;  // what stands behind 1000 permille does not count

  [[nodiscard]] constexpr std::uint32_t most() const {
    std::size_t i = 0;
    while (quantiles[i].permille < 1000) ++i;
    return quantiles[i].value;
  }
  [[nodiscard]] constexpr std::uint64_t mean() const {
    std::uint64_t sum = 0;
    for (std::size_t i = 1; quantiles[i - 1].permille < 1000; ++i)
      sum += std::uint64_t{quantiles[i].permille - quantiles[i - 1].permille} *
             (std::uint64_t{quantiles[i].value} + quantiles[i - 1].value);
    return sum / 2000;
  }
};

constexpr std::array<Quantile, 4> kAgents{
    {{50, 9000}, {25, 12000}, {15, 6500}, {10, 4200}}};  // share, opening
constexpr Spread kToolResult{
    {{{0, 20}, {250, 150}, {500, 500}, {750, 1400}, {900, 3300}, {970, 7500}, {995, 16000}, {1000, 40000}}}};
constexpr Spread kUserMessage{{{{0, 10}, {500, 80}, {900, 400}, {1000, 3000}}}};
constexpr Spread kAgentAnswer{{{{0, 20}, {500, 120}, {900, 580}, {1000, 1900}}}};
constexpr Spread kToolGapMs{
    {{{0, 5000}, {250, 8000}, {500, 12000}, {750, 19000}, {900, 32000}, {1000, 60000}}}};
constexpr Spread kUserGapMs{{{{0, 30000}, {500, 180'000}, {800, 420'000}, {1000, 1'200'000}}}};
constexpr std::uint32_t kTurnsForUserTurn = 8, kUserTurnsForEnd = 5, kToolTurnsForSubagent = 70;
constexpr std::uint32_t kSubagentLeastTurns = 5, kSubagentMostTurns = 10;
constexpr std::uint64_t kContextTokens = 180'000;

constexpr std::uint64_t kChatOpening = 800;
constexpr std::array<std::uint32_t, 7> kChatGoOnPermille{350, 375, 400, 425, 450, 475, 500};
constexpr Spread kChatQuestion{
    {{{0, 10}, {300, 60}, {600, 230}, {800, 700}, {920, 1700}, {980, 4000}, {1000, 10000}}}};
constexpr Spread kChatAnswer{{{{0, 5}, {300, 100}, {700, 350}, {950, 900}, {1000, 2500}}}};
constexpr Spread kChatGapMs{
    {{{0, 10000}, {250, 60000}, {500, 120'000}, {750, 270'000}, {900, 600'000}, {1000, 1'800'000}}}};

constexpr std::uint32_t kDocuments = 20, kDocumentLeast = 4000, kDocumentMost = 30000;

/// Integers only: neither the standard library's distributions nor log and exp give the same everywhere.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  /// 0 to n - 1; n is less than 2^32.
  std::uint64_t below(std::uint64_t n) { return (bits() * n) >> 32; }
  /// Both ends may come.
  std::uint64_t between(std::uint64_t least, std::uint64_t most) { return least + below(most - least + 1); }
  bool one_of(std::uint32_t n) { return below(n) == 0; }

  std::uint32_t draw(const Spread& spread) {
    const std::uint64_t at = bits() * 1000;  // permille, in units of 2^-32
    std::size_t i = 1;
    while (std::uint64_t{spread.quantiles[i].permille} << 32 <= at) ++i;
    const Quantile& low = spread.quantiles[i - 1];
    const Quantile& high = spread.quantiles[i];
    const std::uint64_t way = (at - (std::uint64_t{low.permille} << 32)) / (high.permille - low.permille);
    return low.value + static_cast<std::uint32_t>((way * (high.value - low.value)) >> 32);
  }

  /// What is left of a gap at a time at random; long gaps are met more often.
  std::uint64_t rest_of(const Spread& gap) {
    for (;;) {
      const std::uint32_t length = draw(gap);
      if (below(gap.most()) < length) return below(length);
    }
  }

  /// Exponential with that mean, less than 2^36, by von Neumann's comparison of uniform numbers.
  std::uint64_t exponential(std::uint64_t mean) {
    for (std::uint64_t whole = 0;; ++whole) {
      const std::uint64_t first = bits();
      bool odd = true;
      for (std::uint64_t last = first, next = bits(); next < last; last = next, next = bits()) odd = !odd;
      if (odd) return mean * whole + ((mean * (first >> 8)) >> 24);
    }
  }

 private:
  std::uint64_t bits() { return engine_() >> 32; }

  std::mt19937_64 engine_;
};

/// Numbers blocks.
class Ids {
 public:
  std::uint64_t next() { return ++last_; }

 private:
  std::uint64_t last_ = 0;
};

struct Prompt {
  std::uint64_t tokens = 0;
  std::vector<std::uint64_t> blocks;  // whole ones

  void append(std::uint64_t more, std::uint32_t block_tokens, Ids& ids) {
    tokens += more;
    while (blocks.size() < tokens / block_tokens) blocks.push_back(ids.next());
  }
};

struct Session {
  std::uint64_t id = 0, subagent_id = 0;
  Prompt prompt, subagent;
  std::uint32_t opening = 0, turns = 0;
  std::uint64_t subagent_turns_left = 0;
};

/// One line. The prompt is as it was sent; `extend` makes it what the next turn sends.
struct Request {
  std::uint64_t session = 0;
  std::uint64_t output_tokens = 0;
  bool tool_use = false, subagent = false;
};

struct World {
  explicit World(const SyntheticOptions& options)
      : random(options.seed), block_tokens(options.block_tokens) {}

  Random random;
  Ids ids;
  std::uint64_t sessions = 0;
  std::uint32_t block_tokens;
};

/// What the kinds have in common for the loop that runs them.
class Traffic {
 public:
  explicit Traffic(World& world) : world_(world) {}
  Traffic(const Traffic&) = delete;
  Traffic& operator=(const Traffic&) = delete;
  virtual ~Traffic() = default;

  /// Means of a session.
  [[nodiscard]] virtual std::uint64_t millirequests() const = 0;
  [[nodiscard]] virtual std::uint64_t duration_ms() const = 0;

  /// Until the next request of a session that is under way.
  virtual std::uint64_t rest_of_gap_ms() = 0;
  /// Makes the first prompt.
  virtual void begin(Session& session) = 0;
  /// What is sent now, of `prompt_of`.
  virtual Request request(Session& session) = 0;
  [[nodiscard]] virtual const Prompt& prompt_of(const Session& session) const { return session.prompt; }
  /// Makes the next prompt; says after how many milliseconds it is sent, or that the session is over.
  virtual std::optional<std::uint64_t> extend(Session& session, const Request& sent) = 0;

 protected:
  Random& random() { return world_.random; }
  void append(Prompt& prompt, std::uint64_t tokens) {
    prompt.append(tokens, world_.block_tokens, world_.ids);
  }
  Prompt opening(std::uint64_t tokens) {
    Prompt prompt;
    append(prompt, tokens);
    return prompt;
  }
  std::uint64_t new_session() { return ++world_.sessions; }

 private:
  World& world_;
};

class Agents final : public Traffic {
 public:
  explicit Agents(World& world) : Traffic(world) {
    for (const Quantile& agent : kAgents) openings_.push_back(opening(agent.value));
  }

  [[nodiscard]] std::uint64_t millirequests() const override {
    return 1000 * (kUserTurns + kToolTurns) + kSubagentMilliturns;
  }
  [[nodiscard]] std::uint64_t duration_ms() const override {
    return user_ms() + (1000 * kToolTurns + kSubagentMilliturns) * kToolGapMs.mean() / 1000;
  }
  std::uint64_t rest_of_gap_ms() override {
    const bool user = random().below(duration_ms()) < user_ms();
    return random().rest_of(user ? kUserGapMs : kToolGapMs);
  }

  void begin(Session& session) override {
    std::uint64_t at = random().below(100);
    session.opening = 0;
    while (at >= kAgents[session.opening].permille) at -= kAgents[session.opening++].permille;
    session.prompt = openings_[session.opening];
    append(session.prompt, random().draw(kUserMessage));
  }

  Request request(Session& session) override {
    Request request;
    request.subagent = session.subagent_turns_left > 0;
    request.session = request.subagent ? session.subagent_id : session.id;
    request.output_tokens = random().draw(kAgentAnswer);
    request.tool_use =
        request.subagent ? session.subagent_turns_left > 1 : !random().one_of(kTurnsForUserTurn);
    return request;
  }
  [[nodiscard]] const Prompt& prompt_of(const Session& session) const override {
    return session.subagent_turns_left > 0 ? session.subagent : session.prompt;
  }

  std::optional<std::uint64_t> extend(Session& session, const Request& sent) override {
    if (sent.subagent) {
      if (--session.subagent_turns_left > 0)
        append(session.subagent, sent.output_tokens + random().draw(kToolResult));
      else
        session.subagent = {};
      return random().draw(kToolGapMs);
    }
    if (!sent.tool_use && random().one_of(kUserTurnsForEnd)) return std::nullopt;
    const std::uint64_t more = sent.output_tokens + random().draw(sent.tool_use ? kToolResult : kUserMessage);
    if (session.prompt.tokens + more > kContextTokens) {
      session.prompt = openings_[session.opening];
      append(session.prompt, random().between(1000, 4000));
    } else {
      append(session.prompt, more);
    }
    if (sent.tool_use && random().one_of(kToolTurnsForSubagent)) {
      session.subagent_id = new_session();
      session.subagent_turns_left = random().between(kSubagentLeastTurns, kSubagentMostTurns);
      session.subagent = openings_[session.opening];
      append(session.subagent, random().between(200, 1500));
    }
    return random().draw(sent.tool_use ? kToolGapMs : kUserGapMs);
  }

 private:
  static constexpr std::uint64_t kUserTurns = kUserTurnsForEnd;
  static constexpr std::uint64_t kToolTurns = kUserTurns * (kTurnsForUserTurn - 1);
  static constexpr std::uint64_t kSubagentMilliturns =
      1000 * kToolTurns * (kSubagentLeastTurns + kSubagentMostTurns) / 2 / kToolTurnsForSubagent;

  static constexpr std::uint64_t user_ms() { return (kUserTurns - 1) * kUserGapMs.mean(); }

  std::vector<Prompt> openings_;
};

class Chat final : public Traffic {
 public:
  explicit Chat(World& world) : Traffic(world), opening_(opening(kChatOpening)) {}

  [[nodiscard]] std::uint64_t millirequests() const override {
    std::uint64_t sum = 1'000'000, reach = 1'000'000;
    for (const std::uint32_t permille : kChatGoOnPermille) sum += reach = reach * permille / 1000;
    return sum / 1000;
  }
  [[nodiscard]] std::uint64_t duration_ms() const override {
    return (millirequests() - 1000) * kChatGapMs.mean() / 1000;
  }
  std::uint64_t rest_of_gap_ms() override { return random().rest_of(kChatGapMs); }

  void begin(Session& session) override {
    session.prompt = opening_;
    append(session.prompt, random().draw(kChatQuestion));
  }
  Request request(Session& session) override {
    Request request;
    request.session = session.id;
    request.output_tokens = random().draw(kChatAnswer);
    return request;
  }
  std::optional<std::uint64_t> extend(Session& session, const Request& sent) override {
    if (session.turns >= kChatGoOnPermille.size() || random().below(1000) >= kChatGoOnPermille[session.turns])
      return std::nullopt;
    ++session.turns;
    append(session.prompt, sent.output_tokens + random().draw(kChatQuestion));
    return random().draw(kChatGapMs);
  }

 private:
  Prompt opening_;
};

class Shared final : public Traffic {
 public:
  explicit Shared(World& world) : Traffic(world) {
    for (std::uint32_t rank = 0; rank < kDocuments; ++rank) {
      // The lengths in an order that does not go with the popularity.
      const std::uint32_t step = (7 * rank + 9) % kDocuments;
      documents_.push_back(
          opening(kDocumentLeast + step * (kDocumentMost - kDocumentLeast) / (kDocuments - 1)));
      weights_ += kOne / (rank + 1);
    }
  }

  [[nodiscard]] std::uint64_t millirequests() const override { return 1000; }
  [[nodiscard]] std::uint64_t duration_ms() const override { return 0; }
  std::uint64_t rest_of_gap_ms() override { return 0; }

  void begin(Session& session) override {
    std::uint64_t at = random().below(weights_);
    std::uint32_t rank = 0;
    while (at >= kOne / (rank + 1)) at -= kOne / ++rank;
    session.prompt = documents_[rank];
    append(session.prompt, random().between(100, 800));
  }
  Request request(Session& session) override {
    Request request;
    request.session = session.id;
    request.output_tokens = random().draw(kChatAnswer);
    return request;
  }
  std::optional<std::uint64_t> extend(Session&, const Request&) override { return std::nullopt; }

 private:
  static constexpr std::uint64_t kOne = 232'792'560;  // divisible by 1 to 20

  std::vector<Prompt> documents_;
  std::uint64_t weights_ = 0;
};

std::unique_ptr<Traffic> traffic(SyntheticKind kind, World& world) {
  switch (kind) {
    case SyntheticKind::kAgents: return std::make_unique<Agents>(world);
    case SyntheticKind::kChat: return std::make_unique<Chat>(world);
    case SyntheticKind::kShared: break;
  }
  return std::make_unique<Shared>(world);
}

void append_number(std::string& line, std::uint64_t number) {
  char text[20];
  line.append(text, std::to_chars(text, text + sizeof text, number).ptr);
}

void write(std::string& line, std::uint64_t ms, const Request& request, const Prompt& prompt, World& world) {
  line = "{\"timestamp\": ";
  append_number(line, ms);
  line += ", \"input_length\": ";
  append_number(line, prompt.tokens);
  line += ", \"output_length\": ";
  append_number(line, request.output_tokens);
  line += ", \"hash_ids\": [";
  const char* between = "";
  for (const std::uint64_t id : prompt.blocks) {
    line += between;
    append_number(line, id);
    between = ", ";
  }
  if (prompt.tokens % world.block_tokens != 0) {
    line += between;
    append_number(line, world.ids.next());
  }
  line += "], \"session_id\": ";
  append_number(line, request.session);
  line += request.tool_use ? R"(, "stop_reason": "tool_use")" : R"(, "stop_reason": "end_turn")";
  line += request.subagent ? ", \"subagent\": true}\n" : ", \"subagent\": false}\n";
}

/// The next request of a session, or the beginning of one.
struct Event {
  std::uint64_t us, order;
  std::uint32_t session;

  bool operator>(const Event& other) const { return std::tie(us, order) > std::tie(other.us, other.order); }
};

}  // namespace

void write_synthetic(const SyntheticOptions& options, std::ostream& out, Progress& progress) {
  constexpr std::uint32_t kNewSession = ~std::uint32_t{0};
  World world(options);
  const std::unique_ptr<Traffic> kind = traffic(options.kind, world);
  // One division: the same on every machine.
  const auto between_sessions_us = static_cast<std::uint64_t>(
      std::llround(static_cast<double>(1000 * kind->millirequests()) / options.requests_per_second));

  std::vector<Session> sessions;
  std::vector<std::uint32_t> unused;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events;
  std::uint64_t order = 0;
  const auto begin = [&] {
    std::uint32_t slot = static_cast<std::uint32_t>(sessions.size());
    if (unused.empty()) {
      sessions.emplace_back();
    } else {
      slot = unused.back();
      unused.pop_back();
    }
    return slot;
  };
  const auto at = [&](std::uint64_t us, std::uint32_t session) { events.push({us, order++, session}); };

  for (std::uint64_t i = 0, under_way = 1000 * kind->duration_ms() / between_sessions_us; i < under_way; ++i)
    at(1000 * kind->rest_of_gap_ms(), begin());
  at(world.random.exponential(between_sessions_us), kNewSession);

  std::string line;
  for (std::uint32_t written = 0; written < options.requests && out;) {
    const Event event = events.top();
    events.pop();
    std::uint32_t slot = event.session;
    if (slot == kNewSession) {
      at(event.us + world.random.exponential(between_sessions_us), kNewSession);
      slot = begin();
    }
    Session& session = sessions[slot];
    if (session.id == 0) {
      session.id = ++world.sessions;
      kind->begin(session);
    }
    const Request request = kind->request(session);
    write(line, event.us / 1000, request, kind->prompt_of(session), world);
    out.write(line.data(), static_cast<std::streamsize>(line.size()));
    progress.at(static_cast<double>(++written) / options.requests);
    if (const std::optional<std::uint64_t> gap_ms = kind->extend(session, request)) {
      at(event.us + 1000 * *gap_ms, slot);
    } else {
      session = {};
      unused.push_back(slot);
    }
  }
}

}  // namespace kvstem::cli
