// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The forward pass against llama.cpp's, and against itself in other company.
#include <ggml-cpp.h>
#include <llama.h>

#include <algorithm>
#include <barrier>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <thread>

#include "support.hpp"

using namespace paged;
using namespace paged::test;

namespace {

constexpr std::uint32_t kSlots = 256;

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& bytes = {})
      : path((std::filesystem::temp_directory_path() /
              ("kvstem-paged-" + std::to_string(std::random_device{}()) + ".gguf"))
                 .string()) {
    std::ofstream(path, std::ios::binary) << bytes;
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() { std::filesystem::remove(path); }

  const std::string path;
};

void silence() {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
}

/// SmolLM2 with weights of another type.
void requantize(const TemporaryFile& to, llama_ftype type) {
  silence();
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = type;
  params.allow_requantize = true;
  REQUIRE(llama_model_quantize(kSmolLM2.c_str(), to.path.c_str(), &params) == 0);
}

/// llama.cpp with attention in f32, as ours is.
class Llama {
 public:
  explicit Llama(const std::string& file) {
    silence();
    model_.reset(llama_model_load_from_file(file.c_str(), llama_model_default_params()));
    REQUIRE(model_ != nullptr);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 1024;
    params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = 1;  // several would spin while ours compute
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    context_.reset(llama_init_from_model(model_.get(), params));
    REQUIRE(context_ != nullptr);
  }
  std::vector<TokenId> tokenize(const std::string& text) const {
    std::vector<TokenId> tokens(text.size() + 8);
    const int n =
        llama_tokenize(llama_model_get_vocab(model_.get()), text.data(), static_cast<int>(text.size()),
                       tokens.data(), static_cast<int>(tokens.size()), false, true);
    REQUIRE(n > 0);
    tokens.resize(static_cast<std::size_t>(n));
    return tokens;
  }
  /// Logits after the last of some tokens that follow those before.
  std::span<const float> decode(std::vector<TokenId> tokens) {
    REQUIRE(llama_decode(context_.get(),
                         llama_batch_get_one(tokens.data(), static_cast<int>(tokens.size()))) == 0);
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
    return {llama_get_logits_ith(context_.get(), -1), static_cast<std::size_t>(vocab)};
  }
  void clear() { llama_memory_clear(llama_get_memory(context_.get()), true); }

 private:
  struct Free {
    void operator()(llama_model* model) const { llama_model_free(model); }
    void operator()(llama_context* context) const { llama_free(context); }
  };
  std::unique_ptr<llama_model, Free> model_;
  std::unique_ptr<llama_context, Free> context_;
};

/// Feeds both the greedy token of llama.cpp, checks that it is ours too, and returns the largest difference of a logit.
double compare(Llama& llama, Model& model, const std::vector<TokenId>& prompt, int steps) {
  llama.clear();
  std::vector<std::int32_t> slots(kSlots);
  for (std::size_t i = 0; i < kSlots; ++i) slots[i] = static_cast<std::int32_t>(i ^ 1);
  const std::span<const std::int32_t> table(slots);
  const auto best = [](std::span<const float> row) {
    return static_cast<TokenId>(std::ranges::max_element(row) - row.begin());
  };
  double largest = 0;
  std::uint32_t position = 0;
  std::vector<TokenId> feed = prompt;
  for (int i = 0; i <= steps; ++i) {
    std::vector<Row> rows;
    for (const TokenId token : feed) rows.push_back({.token = token, .position = position++});
    rows.back().logits = true;
    const auto ours = model.forward({.rows = rows, .tables = {&table, 1}});
    const auto theirs = llama.decode(feed);
    REQUIRE(ours.size() == theirs.size());
    for (std::size_t t = 0; t < ours.size(); ++t)
      if (!(std::abs(double{ours[t]} - double{theirs[t]}) <= largest))
        largest = std::abs(double{ours[t]} - double{theirs[t]});
    CHECK(best(ours) == best(theirs));
    feed = {best(theirs)};
  }
  return largest;
}

/// Sequences whose blocks lie anywhere, as slots that nobody has yet.
class Slots {
 public:
  Slots(std::mt19937_64& rng, const Model& model, std::uint32_t block_tokens)
      : rng_(rng), model_(model), block_tokens_(block_tokens), free_(kSlots) {
    std::iota(free_.begin(), free_.end(), 0);
    std::ranges::shuffle(free_, rng_);
  }
  Sequence sequence(std::vector<TokenId> tokens) {
    Sequence made{.tokens = std::move(tokens), .slots = {}};
    for (std::size_t at = 0; at < made.tokens.size(); at += block_tokens_) {
      REQUIRE_FALSE(free_.empty());
      made.slots.push_back(free_.back());
      free_.pop_back();
    }
    return made;
  }
  Sequence random(std::size_t tokens) { return sequence(random_tokens(rng_, tokens, model_)); }

 private:
  std::mt19937_64& rng_;
  const Model& model_;
  std::uint32_t block_tokens_;
  std::vector<std::int32_t> free_;
};

/// Computes a sequence one token at a time, and again in random company; says how many logits rows were compared.
std::size_t check_company(const std::string& file, std::size_t tokens, int rounds, std::mt19937_64& rng) {
  auto alone = load({.file = file, .threads = 1, .slots = kSlots});
  Sequence reference = Slots(rng, *alone, 16).random(tokens);
  REQUIRE(finish(*alone, reference, 1));
  std::size_t compared = 0;
  for (int round = 0; round < rounds; ++round) {
    const std::uint32_t block_tokens = round % 2 == 0 ? 16 : 48;
    auto model = load(
        {.file = file, .threads = round % 3 == 0 ? 1u : 2u, .slots = kSlots, .block_tokens = block_tokens});
    for (std::uint32_t s = 0; s < kSlots; ++s)  // not a number: what is never written is never seen
      std::ranges::fill(model->attention().block(s), std::byte{0xff});
    Slots slots(rng, *model, block_tokens);
    Sequence same = slots.sequence(reference.tokens);
    if (round < 2) {
      REQUIRE(finish(*model, same, tokens));
      CHECK(first_difference(same, reference) == -1);
      compared += tokens;
      continue;
    }
    std::vector<Sequence> others;
    for (int i = 0; i < 7; ++i) others.push_back(slots.random(1 + rng() % (2 * tokens)));
    while (same.left() > 0) {
      std::vector<Sequence*> batch = {&same};
      for (Sequence& other : others)
        if (rng() % 2 == 0 && other.left() > 0) batch.push_back(&other);
      std::ranges::shuffle(batch, rng);
      std::vector<std::size_t> n;
      for (const Sequence* s : batch)
        n.push_back(std::min(s->left(), std::size_t{1} + rng() % (rng() % 2 == 0 ? 1 : 30)));
      REQUIRE(step(*model, batch, n));
    }
    CHECK(first_difference(same, reference) == -1);
    compared += tokens;
  }
  return compared;
}

/// Ranks that are threads of this process.
class Ranks {
 public:
  explicit Ranks(std::size_t n) : in_(static_cast<std::ptrdiff_t>(n)), parts_(n) {}

  class Rank final : public Gather {
   public:
    Rank(Ranks& ranks, std::size_t self) : ranks_(ranks), self_(self) {}
    bool gather(std::span<float> all, std::uint32_t rows, std::uint32_t row_floats, std::uint32_t own_begin,
                std::uint32_t own_floats) override {
      ranks_.parts_[self_] = {all, own_begin, own_floats};
      ranks_.in_.arrive_and_wait();
      for (std::size_t r = 0; r < ranks_.parts_.size(); ++r) {
        const auto& [from, begin, floats] = ranks_.parts_[r];
        for (std::size_t i = 0; r != self_ && i < rows; ++i)
          std::copy_n(from.data() + i * row_floats + begin, floats, all.data() + i * row_floats + begin);
      }
      ranks_.in_.arrive_and_wait();
      return !fail;
    }
    bool fail = false;

   private:
    Ranks& ranks_;
    std::size_t self_;
  };

 private:
  struct Part {
    std::span<float> all;
    std::uint32_t begin, floats;
  };
  std::barrier<> in_;
  std::vector<Part> parts_;
};

}  // namespace

TEST_CASE("the forward pass is llama.cpp's, on SmolLM2 in f32") {
  const TemporaryFile f32;
  requantize(f32, LLAMA_FTYPE_ALL_F32);
  Llama llama(f32.path);
  auto model = load({.file = f32.path, .threads = 1, .slots = kSlots});
  const Shape& s = model->shape();
  CHECK((s.layers == 30 && s.embd == 576 && s.ff == 1536 && s.heads == 9 && s.kv_heads == 3));
  CHECK((s.head_dim == 64 && s.vocab == 49152 && s.context == 8192 && s.rope_base == 100000.0f));
  CHECK(model->attention().bytes_per_block() == 16 * 46080);
  double largest = 0;
  for (const char* text : {"<|im_start|>user\nWhat is the capital of France, and what is it known "
                           "for?<|im_end|>\n<|im_start|>assistant\n",
                           "The three laws of thermodynamics are often summed up in this way:",
                           "def fibonacci(n):\n    \"\"\"Returns the n-th number.\"\"\"\n    if n < 2:\n"})
    largest = std::max(largest, compare(llama, *model, llama.tokenize(text), 32));
  std::cout << "SmolLM2, f32: largest difference to llama.cpp " << largest << "\n";
  CHECK(largest < 1e-3);
}

TEST_CASE("the forward pass is llama.cpp's, on a tiny model whose output is a matrix of its own") {
  std::mt19937_64 rng(seed("tiny"));
  Llama llama(kTiny);
  auto model = load({.file = kTiny, .threads = 1, .slots = kSlots});
  double largest = 0;
  for (const std::size_t n : {1, 2, 17, 100, 500})
    largest = std::max(largest, compare(llama, *model, random_tokens(rng, n, *model), 32));
  std::cout << "tiny: largest difference to llama.cpp " << largest << "\n";
  CHECK(largest < 1e-4);
}

TEST_CASE("a row's logits are the same bits in any company, on the tiny model") {
  std::mt19937_64 rng(seed("company, tiny"));
  CHECK(check_company(kTiny, 150, 40, rng) == 6000);
}

TEST_CASE("a row's logits are the same bits in any company, on SmolLM2") {
  std::mt19937_64 rng(seed("company, SmolLM2"));
  CHECK(check_company(kSmolLM2, 70, 4, rng) == 280);
}

TEST_CASE("a row's logits are the same bits in any company, whatever the type of the weights") {
  std::mt19937_64 rng(seed("company, types"));
  for (const llama_ftype type : {LLAMA_FTYPE_ALL_F32, LLAMA_FTYPE_MOSTLY_F16, LLAMA_FTYPE_MOSTLY_BF16,
                                 LLAMA_FTYPE_MOSTLY_Q8_0, LLAMA_FTYPE_MOSTLY_Q4_0}) {
    INFO("type " << type);
    const TemporaryFile file;
    requantize(file, type);
    CHECK(check_company(file.path, 24, 3, rng) == 72);
  }
}

TEST_CASE("only the rows that ask get logits, in their order, and they are the same bits") {
  std::mt19937_64 rng(seed("some logits"));
  for (const std::string& file : {kTiny, kSmolLM2}) {
    auto model = load({.file = file, .threads = 1, .slots = kSlots});
    Slots slots(rng, *model, 16);
    Sequence all = slots.random(20), some = slots.sequence(all.tokens);
    REQUIRE(finish(*model, all, 20));
    const std::span<const std::int32_t> table(some.slots);
    std::vector<Row> rows;
    for (std::uint32_t i = 0; i < 20; ++i)
      rows.push_back({.token = all.tokens[i], .position = i, .logits = i >= 10 && i % 3 == 0});
    CHECK(model->forward({.rows = {rows.data(), 10}, .tables = {&table, 1}}).empty());
    CHECK(model->error().empty());
    const auto logits = model->forward({.rows = {rows.data() + 10, 10}, .tables = {&table, 1}});
    const std::size_t vocab = model->shape().vocab;
    REQUIRE(logits.size() == 3 * vocab);
    for (std::size_t i = 0; i < 3; ++i)
      CHECK(std::memcmp(&logits[i * vocab], all.logits[12 + 3 * i].data(), vocab * sizeof(float)) == 0);
    CHECK(model->forward({}).empty());
    CHECK(model->error().empty());
  }
}

TEST_CASE("ranks that share the heads compute the same bits as one") {
  std::mt19937_64 rng(seed("ranks"));
  auto one = load({.file = kSmolLM2, .threads = 1, .slots = kSlots});
  Slots slots(rng, *one, 16);
  Sequence reference = slots.random(40), other = slots.random(9);
  const auto compute = [](Model& model, Sequence& a, Sequence& b) {
    return step(model, {&a}, {30}) && step(model, {&b, &a}, {9, 1}) && finish(model, a, 1);
  };
  REQUIRE(compute(*one, reference, other));
  for (const std::vector<HeadRange>& split :
       {std::vector<HeadRange>{{0, 1}, {1, 3}}, {{0, 1}, {1, 2}, {2, 3}}}) {
    const std::size_t n = split.size();
    Ranks ranks(n);
    std::vector<std::unique_ptr<Ranks::Rank>> gathers;
    std::vector<std::unique_ptr<Model>> models;
    for (std::size_t r = 0; r < n; ++r) {
      gathers.push_back(std::make_unique<Ranks::Rank>(ranks, r));
      models.push_back(load(
          {.file = kSmolLM2, .threads = 1, .slots = kSlots, .heads = split[r], .gather = gathers[r].get()}));
      CHECK(models[r]->attention().bytes_per_block() ==
            one->attention().bytes_per_block() / 3 * (split[r].end - split[r].begin));
    }
    std::vector<Sequence> as, bs;
    for (std::size_t r = 0; r < n; ++r) {
      as.push_back({.tokens = reference.tokens, .slots = reference.slots});
      bs.push_back({.tokens = other.tokens, .slots = other.slots});
    }
    std::vector<std::thread> threads;
    for (std::size_t r = 0; r < n; ++r) threads.emplace_back([&, r] { compute(*models[r], as[r], bs[r]); });
    for (std::thread& t : threads) t.join();
    for (std::size_t r = 0; r < n; ++r) {
      CHECK(first_difference(as[r], reference) == -1);
      CHECK(first_difference(bs[r], other) == -1);
    }
  }
}

TEST_CASE("a rank whose gather fails says so, and goes on afterwards") {
  struct Alone final : Gather {
    bool works = false;
    int calls = 0;
    bool gather(std::span<float>, std::uint32_t, std::uint32_t, std::uint32_t, std::uint32_t) override {
      ++calls;
      return works;
    }
  } gather;
  auto model = load({.file = kSmolLM2, .threads = 2, .slots = 4, .heads = {1, 2}, .gather = &gather});
  const std::int32_t slots[] = {3};
  const std::span<const std::int32_t> table(slots);
  const Row row{.token = 5, .logits = true};
  CHECK(model->forward({.rows = {&row, 1}, .tables = {&table, 1}}).empty());
  CHECK(model->error() == "another rank is missing");
  CHECK(gather.calls == 1);
  gather.works = true;
  CHECK(model->forward({.rows = {&row, 1}, .tables = {&table, 1}}).size() == 49152);
  CHECK(model->error().empty());
  CHECK(gather.calls == 31);
}

TEST_CASE("a sequence goes on from a copy of some positions of another's block") {
  std::mt19937_64 rng(seed("copy"));
  for (const std::string& file : {kTiny, kSmolLM2}) {
    auto model = load({.file = file, .threads = 1, .slots = kSlots});
    Slots slots(rng, *model, 16);
    Sequence first = slots.random(45);
    REQUIRE(finish(*model, first, 45));
    // The same 37 tokens, then others: two blocks are shared, and of the third, 5 positions are copied.
    std::vector<TokenId> tokens(first.tokens.begin(), first.tokens.begin() + 37);
    for (const TokenId t : random_tokens(rng, 20, *model)) tokens.push_back(t);
    Sequence cold = slots.sequence(tokens), warm = slots.sequence(tokens);
    REQUIRE(finish(*model, cold, tokens.size()));
    warm.slots[0] = first.slots[0];
    warm.slots[1] = first.slots[1];
    std::ranges::fill(model->attention().block(static_cast<std::uint32_t>(warm.slots[2])), std::byte{0xff});
    REQUIRE(model->copy(static_cast<std::uint32_t>(first.slots[2]), 0,
                        static_cast<std::uint32_t>(warm.slots[2]), 0, 5));
    warm.logits.assign(cold.logits.begin(), cold.logits.begin() + 37);
    REQUIRE(finish(*model, warm, 7));
    CHECK(first_difference(warm, cold) == -1);
    // And the first goes on as if nothing had been.
    Sequence again{.tokens = first.tokens, .slots = first.slots, .logits = {}};
    again.logits.assign(first.logits.begin(), first.logits.begin() + 40);
    REQUIRE(finish(*model, again, 2));
    CHECK(first_difference(again, first) == -1);
    CHECK_FALSE(model->copy(0, 0, kSlots, 0, 1));
  }
}

TEST_CASE("a sequence that was cut goes on, whatever was computed behind the cut") {
  std::mt19937_64 rng(seed("cut"));
  auto model = load({.file = kTiny, .threads = 1, .slots = kSlots});
  Slots slots(rng, *model, 16);
  Sequence sequence = slots.random(60), fresh = slots.sequence(sequence.tokens);
  REQUIRE(finish(*model, sequence, 60));
  REQUIRE(finish(*model, fresh, 60));
  for (const std::size_t cut : {59u, 33u, 32u, 31u, 5u, 0u}) {
    for (std::size_t i = cut; i < 60; ++i) sequence.tokens[i] = random_tokens(rng, 1, *model)[0];
    sequence.logits.resize(cut);
    REQUIRE(finish(*model, sequence, 4));
    Sequence cold = {.tokens = sequence.tokens, .slots = fresh.slots, .logits = {}};
    REQUIRE(finish(*model, cold, 60));
    CHECK(first_difference(sequence, cold) == -1);
  }
}

TEST_CASE("bad batches are refused with a reason, and nothing is computed") {
  auto model = load({.file = kTiny, .threads = 1, .slots = 4});
  constexpr const char* kBehind = " is behind what the model or the pool can hold";
  const std::int32_t good[] = {2, 0}, bad[] = {2, 4, -1}, again[] = {1, 1, 1, 1, 1};
  const std::span<const std::int32_t> tables[] = {good, bad, again};
  const auto refusal = [&](std::vector<Row> rows) {
    CHECK(model->forward({.rows = rows, .tables = tables}).empty());
    return model->error();
  };
  for (const TokenId token : {-1, 266, INT32_MAX, INT32_MIN})
    CHECK(refusal({{.token = token}}) == "no such token: " + std::to_string(token));
  CHECK(refusal({{.table = 3}}) == "no such table: 3");
  CHECK(refusal({{.table = 0xffffffff}}) == "no such table: 4294967295");
  CHECK(refusal({{.position = 32}}) == "position 32 is behind its table");
  CHECK(refusal({{.position = 4096}}) == "position 4096" + std::string(kBehind));
  CHECK(refusal({{.position = 0xffffffff}}) == "position 4294967295" + std::string(kBehind));
  CHECK(refusal({{.position = 64, .table = 2}}) == "position 64" + std::string(kBehind));
  CHECK(refusal({{.position = 16, .table = 1}}) == "no such slot: 4");
  CHECK(refusal({{.position = 0, .table = 1}, {.position = 40, .table = 1}}) == "no such slot: 4");
  CHECK(refusal({{.position = 3}, {.position = 3}}) == "the positions of a sequence do not ascend");
  CHECK(refusal({{.position = 3}, {.table = 1}, {.position = 2}}) ==
        "the positions of a sequence do not ascend");
  for (std::uint32_t s = 0; s < 4; ++s)
    for (const std::byte b : model->attention().block(s)) REQUIRE(b == std::byte{0});
  CHECK(refusal({{.position = 0, .table = 1, .logits = false}}).empty());
}

TEST_CASE("files and options that are no good are refused with a reason") {
  silence();
  const auto refusal = [](const Model::Options& options) {
    std::string error;
    CHECK(Model::load(options, error) == nullptr);
    std::cout << "refused: " << error << "\n";
    return error;
  };
  const auto says = [](const std::string& error, const char* what) {
    return error.find(what) != std::string::npos;
  };
  CHECK(says(refusal({.file = "/nowhere/x.gguf", .slots = 4}), "cannot read /nowhere/x.gguf"));
  CHECK(says(refusal({.file = "/", .slots = 4}), "cannot read"));
  CHECK(says(refusal({.file = TemporaryFile().path, .slots = 4}), "cannot read"));
  const TemporaryFile text("This is not a model, but it is long enough to be read.");
  CHECK(says(refusal({.file = text.path, .slots = 4}), "is not a GGUF file"));
  CHECK(says(refusal({.file = model("tiny/gemma2.gguf"), .slots = 4}), "'gemma2', not 'llama'"));
  CHECK(says(refusal({.file = model("tiny/mamba.gguf"), .slots = 4}), "'mamba', not 'llama'"));

  std::ifstream stream(kTiny, std::ios::binary);
  const std::string tiny{std::istreambuf_iterator<char>(stream), {}};
  REQUIRE(tiny.size() > 400000);
  const TemporaryFile cut(tiny.substr(0, tiny.size() - 1000));
  CHECK(says(refusal({.file = cut.path, .slots = 4}), "ends too early"));
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string bytes = tiny;
    const std::size_t at = bytes.rfind(from);
    REQUIRE(at != std::string::npos);
    REQUIRE(from.size() == to.size());
    bytes.replace(at, from.size(), to);
    const TemporaryFile file(bytes);
    return refusal({.file = file.path, .slots = 4});
  };
  CHECK(says(changed("blk.1.attn_v.weight", "blk.1.attn_z.weight"), "no tensor blk.1.attn_v.weight"));
  CHECK(says(changed("output.weight", "extras.weight"), "does not know"));
  CHECK(says(changed("llama.attention.head_count_kv", "llama.attention.head_count_xx"), "another shape"));
  CHECK(says(changed("llama.block_count", "llama.block_cxxxx"), "no number llama.block_count"));
  const auto edited = [&](auto&& edit) {
    ggml_context* tensors = nullptr;
    const gguf_context_ptr from(gguf_init_from_file(kTiny.c_str(), {.no_alloc = false, .ctx = &tensors}));
    const ggml_context_ptr owner(tensors);
    const gguf_context_ptr to(gguf_init_empty());
    gguf_set_kv(to.get(), from.get());
    for (std::int64_t i = 0; i < gguf_get_n_tensors(from.get()); ++i)
      gguf_add_tensor(to.get(), ggml_get_tensor(tensors, gguf_get_tensor_name(from.get(), i)));
    edit(to.get());
    const TemporaryFile file;
    CHECK(gguf_write_to_file(to.get(), file.path.c_str(), false));
    return refusal({.file = file.path, .slots = 4});
  };
  CHECK(
      says(edited([](auto* f) { gguf_set_val_str(f, "llama.rope.scaling.type", "yarn"); }), "rope scaling"));
  CHECK(says(edited([](auto* f) { gguf_set_val_f32(f, "llama.rope.scaling.factor", 2); }), "rope scaling"));
  CHECK(says(edited([](auto* f) { gguf_set_val_f32(f, "llama.rope.scale_linear", 2); }), "rope scaling"));
  CHECK(says(edited([](auto* f) { gguf_set_val_u32(f, "llama.rope.dimension_count", 16); }),
             "rotating a part"));
  CHECK(says(edited([](auto* f) { gguf_set_val_u32(f, "llama.attention.head_count", 0); }), "make no sense"));
  CHECK(says(edited([](auto* f) { gguf_set_val_u32(f, "llama.attention.head_count_kv", 3); }),
             "do not divide"));
  CHECK(says(edited([](auto* f) { gguf_set_val_str(f, "llama.context_length", "x"); }),
             "llama.context_length"));

  CHECK(says(refusal({.file = kTiny, .slots = 0}), "slots"));
  CHECK(says(refusal({.file = kTiny, .threads = 0, .slots = 4}), "threads"));
  CHECK(says(refusal({.file = kTiny, .threads = 100000, .slots = 4}), "threads"));
  CHECK(says(refusal({.file = kTiny, .slots = 4, .block_tokens = 24}), "block_tokens"));
  CHECK(says(refusal({.file = kTiny, .slots = 0xffffffff, .block_tokens = 1 << 20}), "memory"));
  CHECK(says(refusal({.file = kSmolLM2, .slots = 4, .heads = {0, 4}}), "kv heads [0, 4) of 3"));
  CHECK(says(refusal({.file = kSmolLM2, .slots = 4, .heads = {2, 2}}), "kv heads [2, 2) of 3"));
  CHECK(says(refusal({.file = kSmolLM2, .slots = 4, .heads = {0, 2}}), "nothing to gather"));
}
