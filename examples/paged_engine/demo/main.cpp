// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The judge's workload of the other demo (examples/llama/demo) on the paged engine: requests that repeat their own first
// part, with kvstem and without, beside a ceiling that has the part in its blocks already, and llama.cpp's prefill of the
// same file. The status is 0 only if exactness and counts hold: speeds are shown beside their bars, and judged by nobody.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <thread>

#include "../engine.hpp"
#include "report.hpp"
#include "words.hpp"

using namespace kvstem_llama::demo;
using paged::RequestNumber, paged::Row;

namespace {

constexpr std::uint32_t kBlock = 16, kPrompt = 2048, kPrefix = 1600, kNew = 32, kChunk = 512;

constexpr const char* kUsage =
    "usage: kvstem_paged_demo --model FILE [--json FILE] [--quick] [--pairs N] [--seed N]\n"
    "\n"
    "  --quick  two requests instead of eight\n"
    "  --pairs  requests, each in all arms side by side\n";

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "\n%s\n", why.c_str());
  std::exit(1);
}
[[noreturn]] void usage() {
  std::fputs(kUsage, stderr);
  std::exit(2);
}
double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
unsigned threads() { return std::max(1u, std::thread::hardware_concurrency()); }

struct Served {
  double first_token = 0, total = 0;
  Tokens answer{};
};

std::unique_ptr<paged::Engine> open(const std::string& file, std::uint32_t slots, paged::Link* link = nullptr,
                                    std::uint32_t kv_heads = 0) {
  paged::EngineOptions o{
      .model = {.file = file, .threads = threads(), .slots = slots, .block_tokens = kBlock},
      .step_tokens = kChunk,
      .sequences = 4,
      .max_tokens = kPrompt + kNew};
  if (link != nullptr) {
    o.model.threads = std::max(1u, threads() / 2);
    const std::uint32_t split = (kv_heads + 1) / 2;
    o.model.heads = link->rank() == 0 ? paged::HeadRange{0, split} : paged::HeadRange{split, kv_heads};
    o.model.gather = o.link = link;
  }
  std::string error;
  auto engine = paged::Engine::create(o, error);
  if (engine == nullptr) die(error);
  return engine;
}

Served serve(paged::Engine& engine, std::span<const kvstem::TokenId> prompt, std::uint32_t new_tokens,
             bool reuse) {
  Served served;
  const double start = now();
  const auto id =
      engine.submit({.tokens = {prompt.begin(), prompt.end()}, .max_new_tokens = new_tokens, .reuse = reuse});
  if (!id.ok()) die(id.status().message());
  while (engine.busy())
    for (const paged::Event& e : engine.step()) {
      if (e.kind == paged::Event::Kind::kFailed) die(e.why.message() + std::string(" ") + engine.error());
      if (e.kind != paged::Event::Kind::kToken) continue;
      if (served.answer.empty()) served.first_token = now() - start;
      served.answer.push_back(e.token);
    }
  served.total = now() - start;
  if (!engine.error().empty()) die(engine.error());
  return served;
}

/// The model alone, with the first tokens in its blocks already: the most that any cache can save.
class Ceiling {
 public:
  explicit Ceiling(const std::string& file) {
    std::string error;
    model_ = paged::Model::load(
        {.file = file, .threads = threads(), .slots = (kPrompt + kNew) / kBlock + 1, .block_tokens = kBlock},
        error);
    if (model_ == nullptr) die(error);
    slots_.resize((kPrompt + kNew) / kBlock + 1);
    std::iota(slots_.begin(), slots_.end(), 0);
  }
  void put(std::span<const kvstem::TokenId> tokens) { compute(tokens, 0, tokens.size()); }
  Served serve(std::span<const kvstem::TokenId> prompt, std::size_t have) {
    Served served;
    const double start = now();
    std::span<const float> logits = compute(prompt, have, prompt.size());
    Tokens text(prompt.begin(), prompt.end());
    for (std::uint32_t i = 0; i < kNew; ++i) {
      text.push_back(paged::choose(logits, {}, 0));
      served.answer.push_back(text.back());
      if (i == 0) served.first_token = now() - start;
      if (i + 1 < kNew) logits = compute(text, text.size() - 1, text.size());
    }
    served.total = now() - start;
    return served;
  }

 private:
  std::span<const float> compute(std::span<const kvstem::TokenId> tokens, std::size_t from, std::size_t to) {
    std::span<const float> logits;
    const std::span<const std::int32_t> tables[] = {slots_};
    for (std::size_t at = from; at < to; at = std::min<std::size_t>(to, at + kChunk)) {
      std::vector<Row> rows;
      for (std::size_t p = at; p < std::min<std::size_t>(to, at + kChunk); ++p)
        rows.push_back(
            {.token = tokens[p], .position = static_cast<std::uint32_t>(p), .logits = p + 1 == to});
      logits = model_->forward({.rows = rows, .tables = tables});
      if (!model_->error().empty()) die(model_->error());
    }
    return logits;
  }
  std::unique_ptr<paged::Model> model_;
  std::vector<std::int32_t> slots_;
};

/// Seconds of llama.cpp's prefill.
double llama_prefill(kvstem_llama::LlamaEngine& llama, std::span<const kvstem::TokenId> prompt) {
  const double start = now();
  std::vector<kvstem_llama::LlamaEngine::Feed> feeds;
  for (std::size_t at = 0; at < prompt.size(); at += kChunk) {
    feeds.clear();
    for (std::size_t p = at; p < std::min(prompt.size(), at + kChunk); ++p)
      feeds.push_back({.sequence = 0,
                       .position = static_cast<std::uint32_t>(p),
                       .token = prompt[p],
                       .logits = p + 1 == prompt.size()});
    if (!llama.decode(feeds).ok()) die("llama.cpp would not decode");
  }
  if (llama.logits(feeds.size() - 1).empty()) die("llama.cpp gave no logits");
  const double seconds = now() - start;
  if (!llama.drop_range(0, {0, kvstem::kToEnd}).ok()) die("llama.cpp would not drop a sequence");
  return seconds;
}

std::uint32_t number(const char* text) {
  char* end = nullptr;
  const unsigned long n = std::strtoul(text, &end, 10);
  if (*text < '0' || *text > '9' || *end != 0 || n == 0 || n > 10000) usage();
  return static_cast<std::uint32_t>(n);
}

/// Rank 1's side, in a process of its own; it gets the prompt from its parent's memory.
[[noreturn]] void second_rank(const std::string& file, paged::Link& link, std::uint32_t kv_heads,
                              const Tokens& prompt) {
  const auto engine = open(file, kPrompt / kBlock + 4, &link, kv_heads);
  _exit(serve(*engine, prompt, kNew, true).answer.size() == kNew ? 0 : 1);
}

}  // namespace

int main(int argc, char** argv) {
  std::string file, json;
  std::uint32_t requests = 0, seed = 1;
  bool quick = false;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--quick") {
      quick = true;
      continue;
    }
    if (++i == argc) usage();
    if (option == "--model")
      file = argv[i];
    else if (option == "--json")
      json = argv[i];
    else if (option == "--pairs")
      requests = number(argv[i]);
    else if (option == "--seed")
      seed = number(argv[i]);
    else
      usage();
  }
  if (file.empty()) usage();
  if (requests == 0) requests = quick ? 2 : 8;
  const std::string name = file.substr(file.find_last_of('/') + 1);
  Report report(name == "SmolLM2-135M-Instruct.Q4_1.gguf");
  Progress progress;
  std::printf("model %s, seed %u\n", name.c_str(), seed);

  // Prompts first: a process that has no threads yet may fork.
  auto llama = kvstem_llama::LlamaEngine::open(
      {.model = file, .cells = kPrompt, .sequences = 1, .batch = kChunk, .threads = threads()});
  if (!llama.ok()) die(kvstem_llama::LlamaEngine::last_error());
  std::vector<Tokens> prompts;
  for (std::uint32_t i = 0; i < requests; ++i) {
    prompts.push_back(passage(**llama, kPrompt, seed * 1000 + i));
    if (prompts.back().empty()) die("llama.cpp could not tokenize our words");
  }
  std::uint32_t kv_heads = 0;
  {
    std::string error;
    const auto model =
        paged::Model::load({.file = file, .threads = 1, .slots = 1, .block_tokens = kBlock}, error);
    if (model == nullptr) die(error);
    kv_heads = model->shape().kv_heads;
  }
  if (kv_heads < 2) die("this model has one kv head: two ranks cannot share it");
  progress.show("two ranks: one request");
  auto [first, second] = paged::Link::pair();
  std::fflush(stdout);
  const pid_t child = fork();
  if (child < 0) die("there is no second process to be had");
  if (child == 0) {
    first.close();
    second_rank(file, second, kv_heads, prompts[0]);
  }
  second.close();
  Tokens of_two;
  {
    const auto engine = open(file, kPrompt / kBlock + 4, &first, kv_heads);
    of_two = serve(*engine, prompts[0], kNew, true).answer;
  }
  int status = 0;
  const bool both = waitpid(child, &status, 0) == child && status == 0;

  const auto engine = open(file, (requests + 2) * ((kPrompt + kNew) / kBlock + 1));
  Ceiling ceiling(file);
  enum { kCold, kKvstem, kCeiling, kCeilingAgain, kArms };
  std::vector<double> first_token[kArms], total[kArms], own_prefill, llama_seconds;
  Ratio gain, sooner, of_ceiling, equal_arms, prefill;
  std::uint64_t same = 0, same_ceiling = 0, computed[2] = {};
  for (std::uint32_t i = 0; i < requests; ++i) {
    progress.show(text("request %u of %u: its first part, not timed", i + 1, requests));
    (void)serve(*engine, std::span(prompts[i]).first(kPrefix), 0, true);
    Served served[kArms];
    double of_llama = 0;
    for (std::uint32_t k = 0; k < kArms + 1; ++k) {
      const std::uint32_t arm = (k + i) % (kArms + 1);
      progress.show(text("request %u of %u, arm %u of %u", i + 1, requests, k + 1, kArms + 1u));
      const std::uint64_t before = engine->host().stats().computed_tokens;
      if (arm == kArms) {
        of_llama = llama_prefill(**llama, prompts[i]);
        llama_seconds.push_back(of_llama);
        continue;
      }
      if (arm == kCold || arm == kKvstem) {
        served[arm] = serve(*engine, prompts[i], kNew, arm == kKvstem);
        computed[arm] += engine->host().stats().computed_tokens - before;
      } else {
        if (arm == kCeiling || i % (kArms + 1) == kCeilingAgain)  // the other one finds it there
          ceiling.put(std::span(prompts[i]).first(kPrefix));
        served[arm] = ceiling.serve(prompts[i], kPrefix);
      }
      first_token[arm].push_back(served[arm].first_token);
      total[arm].push_back(served[arm].total);
    }
    gain.values.push_back(served[kCold].total / served[kKvstem].total);
    sooner.values.push_back(served[kCold].first_token / served[kKvstem].first_token);
    of_ceiling.values.push_back(served[kCeiling].total / served[kKvstem].total);
    equal_arms.values.push_back(served[kCeiling].total / served[kCeilingAgain].total);
    prefill.values.push_back(of_llama / served[kCold].first_token);
    same += served[kKvstem].answer == served[kCold].answer;
    same_ceiling += served[kCeiling].answer == served[kCold].answer;
    if (i == 0)
      report.gate("two ranks: outputs equal to those of one", both && of_two == served[kCold].answer ? 1 : 0,
                  1, "requests");
  }

  const auto per_second = [](const std::vector<double>& v) {
    return static_cast<double>(v.size()) / std::accumulate(v.begin(), v.end(), 0.0);
  };
  const std::uint64_t fresh = std::uint64_t{requests} * (kPrompt - kPrefix);
  const std::uint64_t decoded = std::uint64_t{requests} * (kNew - 1);
  report.section("judge, paged",
                 text("%u requests of %u tokens that repeat their own first %u, %u tokens out", requests,
                      kPrompt, kPrefix, kNew));
  report.row({"", "no reuse", "kvstem", "ceiling", "kvstem to no reuse"});
  report.row({"time to first token, p50", seconds(median(first_token[kCold])),
              seconds(median(first_token[kKvstem])), seconds(median(first_token[kCeiling])),
              text("%.2fx sooner", sooner.middle())});
  report.row({"time to first token, p95", seconds(quantile(first_token[kCold], 0.95)),
              seconds(quantile(first_token[kKvstem], 0.95)), seconds(quantile(first_token[kCeiling], 0.95))});
  report.row({"requests a second", text("%.3f", per_second(total[kCold])),
              text("%.3f", per_second(total[kKvstem])), text("%.3f", per_second(total[kCeiling])),
              text("%.2fx", gain.middle())});
  report.row({"NEW tokens computed", grouped(fresh), grouped(fresh), grouped(fresh)});
  report.row({"REPEATED tokens computed", grouped(computed[kCold] - decoded - fresh),
              grouped(computed[kKvstem] - decoded - fresh), "0"});
  report.row({"outputs equal to no reuse", "-", text("%u of %u", static_cast<unsigned>(same), requests),
              text("%u of %u", static_cast<unsigned>(same_ceiling), requests)});
  report.row({"prefill, tokens a second", text("%.0f", kPrompt / median(first_token[kCold])), "", "",
              text("llama.cpp %.0f", kPrompt / median(llama_seconds))});

  report.gate("judge, paged: outputs equal to those of no reuse", same, requests, "requests");
  report.gate("judge, paged: outputs of the ceiling equal to those of no reuse", same_ceiling, requests,
              "requests");
  report.gate("judge, paged: tokens computed without reuse", computed[kCold], requests * kPrompt + decoded,
              "tokens");
  report.gate("judge, paged: tokens computed with kvstem", computed[kKvstem], fresh + decoded, "tokens");
  report.gate("judge, paged: books in balance", engine->host().cache().audit().balanced() ? 1 : 0, 1, "");
  const auto bar = [&](const char* what, const Ratio& r, double least) {
    report.bar({.name = std::string("judge, paged: ") + what,
                .value = r.middle(),
                .unit = text("(%.2f to %.2f)", r.low(), r.high()),
                .bar = text(">= %.2f", least),
                .outcome = judged(r.middle() >= least, equal_arms.middle())});
  };
  bar("requests a second, times no reuse's", gain, 2.85);
  bar("time to first token, times sooner than no reuse", sooner, 3);
  bar("requests a second, of the ceiling's", of_ceiling, 0.95);
  bar("prefill, of llama.cpp's speed on the same file", prefill, 0.9);
  report.bar({.name = "judge, paged: two equal arms",
              .value = equal_arms.middle(),
              .unit = text("(%.2f to %.2f)", equal_arms.low(), equal_arms.high()),
              .bar = "1 +- 0.02",
              .outcome = judged(true, equal_arms.middle())});
  report.json()
      .number("requests", requests)
      .number("no_reuse_ttft_p50_s", median(first_token[kCold]))
      .number("kvstem_ttft_p50_s", median(first_token[kKvstem]))
      .number("ceiling_ttft_p50_s", median(first_token[kCeiling]))
      .number("no_reuse_requests_per_s", per_second(total[kCold]))
      .number("kvstem_requests_per_s", per_second(total[kKvstem]))
      .number("ceiling_requests_per_s", per_second(total[kCeiling]))
      .number("prefill_tokens_per_s", kPrompt / median(first_token[kCold]))
      .number("llama_prefill_tokens_per_s", kPrompt / median(llama_seconds));
  progress.clear();
  if (quick) report.note(text("--quick: %u requests instead of 8", requests));
  report.print();
  std::printf("%.0f s\n", progress.elapsed());
  if (!json.empty() && !report.write(json, name, seed)) die("cannot write " + json);
  return report.good() ? 0 : 1;
}
