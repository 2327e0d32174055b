// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <deque>
#include <map>
#include <memory>
#include <numeric>

#include "words.hpp"
#include "workloads.hpp"

namespace kvstem_llama::demo {
namespace {

using kvstem::kNoSequence;

/// One turn of one agent: the same prompt in all arms.
struct Turn {
  Tokens prompt;
  std::uint64_t session = 0;
  SequenceId in_place = kNoSequence;  // where the ceiling has the history
  Tokens reply;                       // chosen by the arm that serves it first, then given to the others
};

/// An engine for several requests at once, with or without kvstem.
class BusyArm {
 public:
  enum Kind { kCold, kKvstem, kCeiling };

  BusyArm(Kind kind, const LlamaEngineOptions& llama, std::uint32_t slots, std::uint64_t stored_tokens,
          std::uint32_t resident_tokens)
      : kind_(kind), slots_(slots), naive_(kBlock, resident_tokens) {
    llama_ = must(LlamaEngine::open(llama), llama.model);
    if (kind == kKvstem) {
      cache_ =
          must(Engine::Cache::create(*llama_, host_options(*llama_, stored_tokens, slots, resident_tokens)),
               "kvstem");
      scope_ = must(cache_->open_scope(llama_->scope()), "kvstem");
    }
    engine_ = std::make_unique<Engine>(*llama_, slots, cache_.get());
  }

  /// Serves the turns, all at once; with `first_alone` the others come when the first has its first token.
  void serve(std::vector<Turn>& turns, bool first_alone, const Setting& setting,
             const std::function<void(std::size_t)>& on_finished);

  [[nodiscard]] LlamaEngine& llama() { return *llama_; }
  [[nodiscard]] Engine::Cache* cache() { return cache_.get(); }
  /// Of the wall time, what was not spent on decoding; a decoded token costs what it costs where nothing else is done.
  [[nodiscard]] double prefill_share() const {
    return only_decoded_ == 0 ? 0
                              : 1 - static_cast<double>(decoded_) * only_decoding_ /
                                        static_cast<double>(only_decoded_) / wall;
  }

  std::vector<double> last_first_token;  // seconds to the first token of each turn of the last round
  double wall = 0;
  Differences wrong;
  std::uint64_t requests = 0;
  std::uint64_t compared = 0,
                equal = 0;  // requests that were given another arm's tokens; those that chose all the same
  std::uint64_t compared_tokens = 0, equal_tokens = 0;
  std::uint64_t prompt_tokens = 0, computed = 0, new_tokens = 0;  // new: no earlier request had them
  Reuse tiers;

 private:
  Kind kind_;
  std::uint32_t slots_;
  std::unique_ptr<LlamaEngine> llama_;
  std::unique_ptr<Engine::Cache> cache_;
  std::unique_ptr<Engine> engine_;
  kvstem::ScopeId scope_{};
  NaiveCache naive_;
  std::uint64_t decoded_ = 0, only_decoded_ = 0;
  double only_decoding_ = 0;
};

void BusyArm::serve(std::vector<Turn>& turns, bool first_alone, const Setting& setting,
                    const std::function<void(std::size_t)>& on_finished) {
  struct Running {
    std::size_t turn = 0;
    Reuse expected;
    std::uint32_t in_place = 0, tokens = 0, overtaken = 0;
    std::uint32_t same = 0;  // tokens chosen as in the arm that served it first
    bool forced = false;
  };
  std::map<RequestNumber, Running> running;
  std::deque<RequestNumber> line;
  std::vector<double> submitted(turns.size());
  last_first_token.assign(turns.size(), 0);
  std::size_t prefilling = 0, finished = 0, busy_slots = 0;

  const auto submit = [&](std::size_t i) {
    Turn& turn = turns[i];
    Request request{.tokens = turn.prompt,
                    .max_new_tokens = static_cast<std::uint32_t>(turn.reply.size()),
                    .session = turn.session,
                    .scope = scope_,
                    .stop_at_end = false};
    Running r;
    r.turn = i;
    r.forced = turn.reply[0] >= 0;
    if (kind_ == kCeiling) {
      request.in_place = turn.in_place;
      request.in_place_tokens = r.in_place = static_cast<std::uint32_t>(llama_->pos_max(turn.in_place) + 1);
    }
    const auto place = std::make_shared<Running*>(nullptr);
    if (r.forced) {
      request.forced = turn.reply;
      request.on_logits = [place, &turn](std::uint32_t at, std::span<const float> logits) {
        (*place)->same += std::max_element(logits.begin(), logits.end()) - logits.begin() == turn.reply[at];
      };
    }
    submitted[i] = now();
    const RequestNumber number = must(engine_->submit(std::move(request)), "submit");
    *place = &running.emplace(number, std::move(r)).first->second;
    line.push_back(number);
  };

  const double start = now();
  for (std::size_t i = 0; i < (first_alone ? 1 : turns.size()); ++i) submit(i);
  while (engine_->busy()) {
    // At the beginning of a step the engine takes one request, if a slot is free and none is being prefilled: the one of
    // which most is there, but nobody passes one that was overtaken too often.
    if (busy_slots < slots_ && prefilling == 0 && !line.empty()) {
      std::size_t next = 0, most = 0;
      for (std::size_t i = 0; i < line.size(); ++i) {
        const Running& r = running[line[i]];
        const std::size_t there = kind_ == kKvstem ? naive_.find(turns[r.turn].prompt).total() : 0;
        if (there > most) next = i, most = there;
        if (r.overtaken == kMostOvertaken) break;
      }
      const RequestNumber number = line[next];
      for (std::size_t i = 0; i < next; ++i) ++running[line[i]].overtaken;
      line.erase(line.begin() + static_cast<std::ptrdiff_t>(next));
      Running& r = running[number];
      const Tokens& prompt = turns[r.turn].prompt;
      new_tokens += prompt.size() - naive_.repeated(prompt);
      if (kind_ == kKvstem) r.expected = naive_.begin(prompt);
      ++busy_slots, ++prefilling;
    }
    const bool only_decodes = prefilling == 0;
    const double before = now();
    const std::span<const Event> events = engine_->step();
    const double after = now();
    std::uint64_t tokens = 0;
    bool more = false;
    for (const Event& e : events) {
      Running& r = running[e.request];
      Turn& turn = turns[r.turn];
      if (e.kind != Event::Kind::kFinished) {
        Tokens state = turn.prompt;  // the token chosen last is not computed yet
        state.insert(state.end(), turn.reply.begin(), turn.reply.begin() + r.tokens);
        naive_.running(e.request, state);
        turn.reply[r.tokens++] = e.token;
        if (e.kind == Event::Kind::kToken) {
          ++tokens;
          continue;
        }
        last_first_token[r.turn] = after - submitted[r.turn];
        naive_.computed(turn.prompt);
        --prefilling;
        more = first_alone && r.turn == 0;
        continue;
      }
      if (e.finish != Finish::kLength) die("the engine ended a request early", e.status.message());
      const kvstem_llama::Report& cost = e.report;
      const Reuse found{cost.from_resident, cost.from_host, cost.from_frontier};
      if (kind_ == kCeiling)
        wrong.compare(turn.prompt.size(), {r.in_place, 0, 0}, {cost.reused_tokens, 0, 0},
                      cost.computed_tokens);
      else
        wrong.compare(turn.prompt.size(), r.expected, found, cost.computed_tokens);
      Tokens state = turn.prompt;
      state.insert(state.end(), turn.reply.begin(), turn.reply.end() - 1);
      naive_.ended(e.request);
      naive_.end(state, turn.session, r.expected.total() > 0);
      ++requests;
      if (r.forced) {
        ++compared;
        equal += r.same == turn.reply.size();
        compared_tokens += turn.reply.size();
        equal_tokens += r.same;
      }
      prompt_tokens += cost.prompt_tokens;
      computed += cost.computed_tokens;
      tiers.resident += found.resident;
      tiers.host += found.host;
      tiers.frontier += found.frontier;
      --busy_slots;
      on_finished(++finished);
    }
    decoded_ += tokens;
    if (only_decodes) only_decoded_ += tokens, only_decoding_ += after - before;
    if (cache_ != nullptr && setting.after_each)
      setting.after_each(cache_->cache(), cache_->stats().largest_step_bytes);
    if (more)
      for (std::size_t i = 1; i < turns.size(); ++i) submit(i);
  }
  wall += now() - start;
}

/// What loading the state of a token costs, in parts of what computing it costs.
double load_cost(LlamaEngine& llama, std::uint64_t seed) {
  const Tokens tokens = passage(llama, 256, seed);
  std::vector<std::vector<std::byte>> blocks;
  const auto clear = [&] { must(llama.drop_range(0, {0, kvstem::kToEnd}), "llama.cpp"); };
  const double start = now();
  std::vector<LlamaEngine::Feed> feeds;
  for (std::uint32_t at = 0; at < tokens.size(); at += kGrid) {
    feeds.clear();
    for (std::uint32_t i = at; i < at + kGrid; ++i) feeds.push_back({.position = i, .token = tokens[i]});
    must(llama.decode(feeds), "llama.cpp");
  }
  const double compute = now() - start;
  for (std::uint32_t at = 0; at < tokens.size(); at += kBlock) {
    blocks.emplace_back(llama.range_bytes(0, {at, at + kBlock}));
    must(llama.export_range(0, 0, {at, at + kBlock}, blocks.back()), "export");
  }
  clear();
  const double before = now();
  for (std::uint32_t at = 0; at < tokens.size(); at += kBlock)
    must(llama.import_range(0, 0, {at, at + kBlock}, blocks[at / kBlock]), "import");
  const double load = now() - before;
  clear();
  return load / compute;
}

}  // namespace

void run_agents(const Setting& setting, const AgentsSizes& sizes, Report& report, Progress& progress) {
  const double deadline = progress.elapsed() + setting.budget;
  const std::uint32_t growth = sizes.turn_tokens + sizes.new_tokens;
  const std::uint32_t longest = sizes.system_tokens + (sizes.turns + 1) * growth;
  const std::uint32_t agents = sizes.agents;
  // Sequences of the ceiling: the slots, the system prompt, the agents, their sub-agents.
  const auto agent_sequence = [&](std::uint32_t a) { return static_cast<SequenceId>(sizes.slots + 1 + a); };
  const auto sub_sequence = [&](std::uint32_t a) {
    return static_cast<SequenceId>(sizes.slots + 1 + agents + a);
  };
  const LlamaEngineOptions llama{
      .model = setting.model,
      .cells = sizes.slots * longest + std::max(sizes.resident_tokens, agents * (sizes.turns + 1) * growth),
      .sequences = sizes.slots + 1 + 2 * agents,
      .batch = std::max(kGrid, sizes.slots),
      .threads = setting.threads};
  progress.show("agents: loading the model for three arms");
  const std::uint64_t stored =
      sizes.system_tokens + std::uint64_t{agents} * (sizes.turns + 1) * (growth + 2 * kBlock);
  BusyArm cold(BusyArm::kCold, llama, sizes.slots, 0, 0);
  BusyArm kvstem(BusyArm::kKvstem, llama, sizes.slots, stored, sizes.resident_tokens);
  BusyArm ceiling(BusyArm::kCeiling, llama, sizes.slots, 0, 0);
  BusyArm* const arms[] = {&cold, &kvstem, &ceiling};

  const Tokens system = system_prompt(cold.llama(), sizes.system_tokens);
  if (system.empty()) die("agents", "llama.cpp could not tokenize our words");
  const double c = load_cost(cold.llama(), setting.seed);
  progress.show("agents: the ceiling computes the system prompt, not timed");
  const auto base = static_cast<SequenceId>(sizes.slots);
  for (std::uint32_t at = 0; at < sizes.system_tokens; at += kGrid) {
    std::vector<LlamaEngine::Feed> feeds;
    for (std::uint32_t i = at; i < std::min(at + kGrid, sizes.system_tokens); ++i)
      feeds.push_back({.sequence = base, .position = i, .token = system[i]});
    must(ceiling.llama().decode(feeds), "llama.cpp");
  }
  for (std::uint32_t a = 0; a < agents; ++a)
    must(ceiling.llama().share_range(base, agent_sequence(a), {0, sizes.system_tokens}), "share");

  std::vector<Tokens> histories(agents, system);
  const std::uint32_t forks_after = std::max(1u, sizes.turns - 1);
  std::vector<std::string> labels;
  std::vector<std::vector<double>> first[3];
  double last_round = 0;
  std::uint32_t round = 0;
  bool cut = false;
  const auto run_round = [&](const std::string& label, bool forks) {
    if (cut || (round > 0 && progress.elapsed() + last_round > deadline)) {
      cut = true;
      report.note("agents: cut " + label + ", for time");
      return;
    }
    const double start = now();
    std::vector<Turn> turns(agents);
    for (std::uint32_t a = 0; a < agents; ++a) {
      Turn& t = turns[a];
      t.prompt = histories[a];
      const Tokens more = passage(cold.llama(), sizes.turn_tokens, setting.seed * 1000 + round * 100 + a);
      t.prompt.insert(t.prompt.end(), more.begin(), more.end());
      t.session = forks ? 100 + a : 1 + a;
      t.in_place = forks ? sub_sequence(a) : agent_sequence(a);
      t.reply.assign(sizes.new_tokens, -1);
      if (forks)
        must(ceiling.llama().share_range(
                 agent_sequence(a), sub_sequence(a),
                 {0, static_cast<std::uint32_t>(ceiling.llama().pos_max(agent_sequence(a)) + 1)}),
             "share");
    }
    labels.push_back(label);
    for (std::uint32_t k = 0; k < 3; ++k) {
      const std::uint32_t arm = (k + round) % 3;
      const auto on_finished = [&](std::size_t done) {
        progress.show(text("agents: %s, %s, %zu of %u", label.c_str(),
                           arm == 0   ? "no reuse"
                           : arm == 1 ? "kvstem"
                                      : "ceiling",
                           done, agents));
      };
      arms[arm]->serve(turns, round == 0, setting, on_finished);
      first[arm].push_back(arms[arm]->last_first_token);
    }
    if (!forks)
      for (std::uint32_t a = 0; a < agents; ++a) {
        histories[a] = turns[a].prompt;
        histories[a].insert(histories[a].end(), turns[a].reply.begin(), turns[a].reply.end());
      }
    ++round;
    last_round = now() - start;
  };
  for (std::uint32_t t = 1; t <= sizes.turns; ++t) {
    run_round(text("turn %u", t), false);
    if (t == forks_after && sizes.sub_agents) run_round("sub-agents", true);
  }

  const double h = 1 - static_cast<double>(kvstem.computed) / static_cast<double>(kvstem.prompt_tokens);
  const double p = cold.prefill_share();
  const double law = 1 / (1 - h * p * (1 - c));
  const double measured = cold.wall / kvstem.wall;
  const kvstem::OpaqueHostStats& stats = kvstem.cache()->stats();

  report.section(
      "agents", text("%u agents over %u common tokens, %u new tokens a turn, %u out, %u slots; %llu requests",
                     agents, sizes.system_tokens, sizes.turn_tokens, sizes.new_tokens, sizes.slots,
                     static_cast<unsigned long long>(cold.requests)));
  report.row({"", "no reuse", "kvstem", "ceiling", "kvstem to no reuse"});
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const auto cell = [&](int a) {
      return seconds(median(first[a][i])) + ", " + seconds(quantile(first[a][i], 0.95));
    };
    report.row({labels[i] + ": time to first token, p50, p95", cell(0), cell(1), cell(2),
                text("%.1fx sooner", median(first[0][i]) / median(first[1][i]))});
  }
  const auto three = [&](const char* name, auto&& figure, std::string last = {}) {
    report.row({name, figure(cold), figure(kvstem), figure(ceiling), std::move(last)});
  };
  three(
      "requests a second", [](BusyArm& a) { return text("%.3f", static_cast<double>(a.requests) / a.wall); },
      text("%.2fx", measured));
  // The ceiling did not compute the system prompt on the clock.
  const auto fresh = [](BusyArm& a) { return std::min(a.new_tokens, a.computed); };
  three("NEW tokens computed", [&](BusyArm& a) { return grouped(fresh(a)); });
  three("REPEATED tokens computed", [&](BusyArm& a) { return grouped(a.computed - fresh(a)); });
  report.row({"hits: resident, host, frontier", "-",
              grouped(kvstem.tiers.resident) + ", " + grouped(kvstem.tiers.host) + ", " +
                  grouped(kvstem.tiers.frontier),
              "-"});
  report.row({"bytes stored", "-", text("%.1f MB", static_cast<double>(stats.exported_bytes) / 1e6), "-"});
  three("outputs (tokens) equal to the first arm's", [](BusyArm& a) {
    const double share = static_cast<double>(a.equal_tokens) /
                         static_cast<double>(std::max<std::uint64_t>(a.compared_tokens, 1));
    return text("%llu of %llu (%.1f %%)", static_cast<unsigned long long>(a.equal),
                static_cast<unsigned long long>(a.compared), 100 * share);
  });
  report.row({"law 1/(1 - h p (1 - c))", text("p %.3f", p), text("h %.3f, c %.4f", h, c), "",
              text("%.2fx predicted, %.2fx measured", law, measured)});

  report.note(
      "agents: llama.cpp rounds by where its cells lie and by what is decoded together, so two tokens that "
      "are about "
      "equally likely may change places between any two arms, the ceiling among them; the tests hold how "
      "far");

  check_counts("agents, no reuse", cold.wrong, report);
  check_counts("agents, kvstem", kvstem.wrong, report);
  check_counts("agents, ceiling", ceiling.wrong, report);
  check_host(*kvstem.cache(), "agents", report);
  Json by_turn;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    Json one;
    const char* const names[] = {"no reuse", "kvstem", "ceiling"};
    for (int a = 0; a < 3; ++a)
      one.object(
          names[a],
          Json().number("ttft_p50_s", median(first[a][i])).number("ttft_p95_s", quantile(first[a][i], 0.95)));
    by_turn.object(labels[i], one);
  }
  report.json()
      .object("turns", by_turn)
      .number("requests", static_cast<double>(cold.requests))
      .number("no_reuse_requests_per_s", static_cast<double>(cold.requests) / cold.wall)
      .number("kvstem_requests_per_s", static_cast<double>(kvstem.requests) / kvstem.wall)
      .number("ceiling_requests_per_s", static_cast<double>(ceiling.requests) / ceiling.wall)
      .number("new_tokens", static_cast<double>(kvstem.new_tokens))
      .number("repeated_tokens", static_cast<double>(kvstem.prompt_tokens - kvstem.new_tokens))
      .number("computed_tokens", static_cast<double>(kvstem.computed))
      .number("resident_tokens", kvstem.tiers.resident)
      .number("host_tokens", kvstem.tiers.host)
      .number("frontier_tokens", kvstem.tiers.frontier)
      .number("stored_bytes", static_cast<double>(stats.exported_bytes))
      .number("prefill_share", p)
      .number("hit_share", h)
      .number("load_cost", c)
      .number("law", law)
      .number("measured", measured);
}

}  // namespace kvstem_llama::demo
