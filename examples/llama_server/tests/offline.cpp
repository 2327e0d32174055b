// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// offline MODEL SLOTS CELLS: the engine without a server, for tests of the server. Reads one request a line (JSON: prompt
// as text or tokens, or chat messages; max_tokens, temperature, top_p, seed, n) and writes its answers, one after another,
// as the server's engine gives them with the same sizes. With "given", an answer's tokens: how much less likely than the
// likeliest one they were at most, as a difference of logits.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "engine.hpp"

using namespace kvstem_llama;
using nlohmann::json;

namespace {

template <class T>
T must(kvstem::Result<T> result) {
  if (!result.ok()) {
    std::cerr << "offline: " << result.status().message() << "\n";
    std::exit(1);
  }
  return std::move(*result);
}

std::vector<TokenId> prompt_of(const LlamaEngine& llama, const json& request) {
  if (request.contains("messages")) {
    std::vector<ChatMessage> messages;
    for (const json& m : request["messages"]) messages.push_back({m["role"], m["content"]});
    return must(llama.tokenize(must(llama.chat(messages)), true));
  }
  if (request["prompt"].is_string()) return must(llama.tokenize(request["prompt"].get<std::string>(), true));
  return request["prompt"].get<std::vector<TokenId>>();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "offline MODEL SLOTS CELLS\n";
    return 2;
  }
  const auto slots = static_cast<std::uint32_t>(std::stoul(argv[2]));
  const auto cells = static_cast<std::uint32_t>(std::stoul(argv[3]));
  const auto llama = must(LlamaEngine::open({.model = argv[1],
                                             .cells = cells,
                                             .sequences = std::min(254u, slots * 4 + 8),
                                             .batch = std::min(cells, LlamaEngineOptions{}.batch),
                                             .threads = 1}));
  const auto cache =
      must(Engine::Cache::create(*llama, {.block_tokens = 16, .requests = slots, .resident_tokens = 0}));
  const auto scope = must(cache->open_scope(llama->scope()));
  Engine engine(*llama, slots, cache.get());
  for (std::string line; std::getline(std::cin, line);) {
    const json request = json::parse(line);
    const auto n = request.value("n", 1u);
    const float temperature = request.value("temperature", 1.0f), top_p = request.value("top_p", 1.0f);
    const auto given = request.value("given", std::vector<TokenId>());
    float worst = 0;
    must(engine.submit(
        {.tokens = prompt_of(*llama, request),
         .max_new_tokens = request["max_tokens"].get<std::uint32_t>(),
         .scope = scope,
         .stop_at_end = given.empty(),
         .sampling = {.temperature = temperature, .top_p = top_p, .seed = request.value("seed", 0u)},
         .samples = n,
         .forced = given,
         .on_logits = [&](std::uint32_t i, std::span<const float> logits) {
           if (i < given.size())
             worst = std::max(worst, *std::max_element(logits.begin(), logits.end()) -
                                         logits[static_cast<std::size_t>(given[i])]);
         }}));
    std::vector<std::vector<TokenId>> tokens(n);
    std::uint32_t cached = 0;
    while (engine.busy())
      for (const Event& e : engine.step())
        if (e.kind != Event::Kind::kFinished)
          tokens[e.sample].push_back(e.token);
        else if (e.sample == 0)
          cached = e.report.reused_tokens;
    json answer{{"cached", cached}, {"tokens", tokens}, {"texts", json::array()}, {"worst", worst}};
    for (const auto& t : tokens) answer["texts"].push_back(must(llama->detokenize(t, false)));
    std::cout << answer.dump(-1, ' ', false, json::error_handler_t::replace) << std::endl;
  }
}
