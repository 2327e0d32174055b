// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A model whose layers do not all keep their state alike: some have full attention, some a sliding window, some are
// recurrent and have one state for all that they have read. Three groups, three pools, one PagedHost; the tables of each
// come with every step. The device is the oracle engine, which checks every byte that a step reads.
#include <kvstem/kvstem.hpp>
#include <kvstem/testing/oracle_engine.hpp>

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

using namespace kvstem;

namespace {

constexpr std::uint32_t kBlock = 4;
const KvGroup kGroups[] = {
    {.bytes_per_token = 1024},  // full attention: every block, for as long as the sequence lives
    {.kind = GroupKind::kSlidingWindow, .window_tokens = 8, .bytes_per_token = 1024, .slots = 48},
    {.kind = GroupKind::kStateCheckpoint,
     .bytes_per_token = 65536,  // of one state
     .slots = 16,
     .checkpoint_blocks = 4},  // kept every 16 tokens, and at the end of a prompt's whole blocks
};

class Engine {
 public:
  explicit Engine(PagedHost& host)
      : host_(host),
        device_({.slots = 64, .block_tokens = kBlock, .groups = {std::begin(kGroups), std::end(kGroups)}}) {}

  /// Answers with the letters a, b, c ...; the answer with its prompt.
  std::string ask(ScopeId scope, std::string text, std::uint32_t letters) {
    const std::vector<TokenId> tokens(text.begin(), text.end());
    const auto id = host_.add({.prompt = {.scope = scope, .tokens = tokens}, .max_new_tokens = letters});
    if (!id.ok()) return id.status().message();
    bool first = true;
    for (PagedStep step; host_.busy();) {
      if (!host_.schedule({0, ++now_}, step).ok()) return "a mistake of this engine";
      if (std::exchange(first, false)) {
        const PagedProgress at = host_.progress(*id);
        std::printf("%2u of %2zu tokens found; ", at.matched_tokens, text.size());
        print(step);
      }
      run(step, text);
      (void)host_.finished(step.done);
      for (const PagedWork& w : step.work) {
        if (!w.samples) continue;
        text += static_cast<char>('a' + (text.size() - tokens.size()));
        const TokenId token = static_cast<unsigned char>(text.back());
        (void)host_.accept(w.sequence, {&token, 1});
        if (text.size() == tokens.size() + letters) (void)host_.end(w.sequence);
      }
    }
    return text;
  }
  [[nodiscard]] bool right() const {
    if (device_.wrong_reads + device_.mistakes > 0) std::printf("%s\n", device_.first_error.c_str());
    return device_.wrong_reads + device_.mistakes == 0;
  }

 private:
  /// The first row of each group's table: slots of blocks, null (-1) where a window has left them behind; of the states the
  /// one to read and the one to write.
  static void print(const PagedStep& step) {
    for (std::size_t g = 0; g < step.groups.size(); ++g) {
      std::printf("%s", g == 0 ? "full" : g == 1 ? ", window" : ", state");
      for (std::uint32_t b = 0; b < step.groups[g].width; ++b)
        std::printf("%s%d", b == 0 ? " " : ",", static_cast<int>(step.groups[g].block_tables[b]));
    }
    std::printf("\n");
  }
  void run(const PagedStep& step, const std::string& text) {
    OracleStep work{.done = step.done, .work = {}};
    for (std::size_t i = 0; i < step.work.size(); ++i) {
      const PagedWork& w = step.work[i];
      OracleText states(0);
      for (std::uint32_t p = 0; p < w.end; ++p) states.append(text[p]);
      OracleWork& o = work.work.emplace_back();
      for (const PagedTables& t : step.groups) {
        const auto row = t.block_tables.begin() + static_cast<std::ptrdiff_t>(i * t.width);
        o.tables.push_back({row, row + t.width});
      }
      o.states = states.states();
      o.begin = w.begin;
      o.end = w.end;
    }
    device_.launch(std::move(work));
    device_.drain();
  }

  PagedHost& host_;
  OracleEngine device_;
  std::uint64_t now_ = 0;
};

}  // namespace

int main() {
  auto host = PagedHost::create(
      {.cache =
           {.block_tokens = kBlock, .slots = 64, .max_leases = 4, .max_lease_tokens = 256, .groups = kGroups},
       .step_tokens = 16});
  if (!host.ok()) return std::printf("%s\n", host.status().message()), 1;
  const auto scope = (*host)->open_scope({.model = "hybrid", .vocab_size = 256});
  if (!scope.ok()) return std::printf("%s\n", scope.status().message()), 1;

  Engine engine(**host);
  const std::string system = "You are a helpful assistant. ";  // 29 tokens
  const std::string first = engine.ask(*scope, system + "What is a goose?", 9);
  (void)engine.ask(*scope, first + " And a duck?", 9);        // the next turn
  (void)engine.ask(*scope, system + "What is a gander?", 9);  // another one, who branches off in the middle
  const bool good = engine.right() && (*host)->cache().audit().balanced();
  std::printf("%s\n", good ? "every step read the state of its own prefix" : "WRONG");
  return good ? 0 : 1;
}
