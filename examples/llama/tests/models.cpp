// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <fstream>

#include "support.hpp"

using namespace kvstem_llama;
using namespace kvstem_llama::test;

namespace {

std::vector<char> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct TemporaryFile {
  std::string path = (std::filesystem::temp_directory_path() /
                      ("kvstem-llama-" + std::to_string(std::random_device{}()) + ".gguf"))
                         .string();
  explicit TemporaryFile(const std::vector<char>& bytes, std::size_t size) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(size));
  }
  ~TemporaryFile() { std::filesystem::remove(path); }
};

Status refusal(const std::string& path) {
  auto engine = LlamaEngine::open({.model = path, .cells = 512, .sequences = 2, .batch = 64, .threads = 1});
  return engine.status();
}

}  // namespace

TEST_CASE("a model with full attention is accepted and says what it is") {
  auto engine = open({.model = kTiny, .cells = 1000, .sequences = 5, .batch = 100, .threads = 1});
  CHECK(engine->capacity().cells == 1024);
  CHECK(engine->capacity().sequences == 5);
  CHECK(engine->capacity().sequence_tokens == 1024);
  CHECK(engine->vocab_size() == 266);
  CHECK(engine->pos_max(0) == -1);
  CHECK(kvstem::validate(engine->scope()).ok());
  CHECK(engine->scope("a").salt == "a");
  CHECK(engine->describe().find("0c1e57098") != std::string::npos);
}

TEST_CASE("a sequence is no longer than the model was made for") {
  auto engine = open({.model = kTiny, .cells = 8192, .sequences = 1, .batch = 64, .threads = 1});
  CHECK(engine->capacity().sequence_tokens == 4096);
}

TEST_CASE("engines of equal models describe themselves equally and others differ") {
  auto a = open_tiny(512, 2), b = open_tiny(1024, 7);
  CHECK(a->describe() == b->describe());
  CHECK(a->scope() == b->scope());
  std::vector<char> bytes = read(kTiny);
  bytes[bytes.size() - 1000] ^= 1;  // one weight
  TemporaryFile other(bytes, bytes.size());
  auto c = open({.model = other.path, .cells = 512, .sequences = 2, .batch = 64, .threads = 1});
  CHECK_FALSE(a->describe() == c->describe());
  CHECK_FALSE(a->scope() == c->scope());
}

TEST_CASE("models whose state cannot be cut into ranges are refused with the reason") {
  const Status windowed = refusal(model("tiny/gemma2.gguf"));
  CHECK(windowed.code() == StatusCode::kUnsupported);
  CHECK(std::string(windowed.message()).find("sliding-window") != std::string::npos);
  const Status recurrent = refusal(model("tiny/mamba.gguf"));
  CHECK(recurrent.code() == StatusCode::kUnsupported);
  CHECK(std::string(recurrent.message()).find("recurrent") != std::string::npos);
  const Status hybrid = refusal(model("tiny/jamba.gguf"));
  CHECK(hybrid.code() == StatusCode::kUnsupported);
  CHECK(std::string(hybrid.message()).find("hybrid") != std::string::npos);
}

TEST_CASE("a file that is missing, a folder, empty or no model is refused") {
  CHECK(refusal(model("tiny/none.gguf")).code() == StatusCode::kInvalidArgument);
  CHECK(refusal("").code() == StatusCode::kInvalidArgument);
  CHECK(refusal(model("tiny")).code() == StatusCode::kInvalidArgument);
  TemporaryFile empty({}, 0);
  CHECK(refusal(empty.path).code() == StatusCode::kInvalidArgument);
  CHECK_FALSE(LlamaEngine::last_error().empty());
  const std::vector<char> zeros(100000);
  TemporaryFile junk(zeros, zeros.size());
  CHECK(refusal(junk.path).code() == StatusCode::kInvalidArgument);
}

TEST_CASE("a model file that was cut off anywhere is refused") {
  const std::vector<char> bytes = read(kTiny);
  REQUIRE(bytes.size() > 400000);
  std::mt19937_64 rng(seed("truncated models"));
  std::vector<std::size_t> sizes = {
      1, 3, 4, 8, 16, 24, 25, 100, bytes.size() - 1, bytes.size() - 32, bytes.size() / 2};
  for (int i = 0; i < 30; ++i) sizes.push_back(rng() % bytes.size());
  for (const std::size_t size : sizes) {
    TemporaryFile cut(bytes, size);
    const Status status = refusal(cut.path);
    INFO("cut to " << size << " bytes: " << status.message());
    CHECK(status.code() == StatusCode::kInvalidArgument);
  }
}

TEST_CASE("options that llama.cpp would die of are refused") {
  const auto code = [](LlamaEngineOptions options) {
    options.model = kTiny;
    options.threads = 1;
    return LlamaEngine::open(options).status().code();
  };
  CHECK(code({.sequences = 0}) == StatusCode::kInvalidArgument);
  CHECK(code({.sequences = 255}) == StatusCode::kInvalidArgument);
  CHECK(code({.sequences = 254}) == StatusCode::kOk);
  CHECK(code({.sequences = 254, .batch = 8}) == StatusCode::kOk);
  CHECK(code({.cells = 0}) == StatusCode::kInvalidArgument);
  CHECK(code({.cells = 0xffffffffu}) == StatusCode::kInvalidArgument);
  CHECK(code({.batch = 0}) == StatusCode::kInvalidArgument);
  CHECK(code({.cells = 256, .batch = 257}) == StatusCode::kInvalidArgument);
}

TEST_CASE("text goes to tokens and back") {
  auto engine = open_tiny();
  const std::string text = "in the other town, Ärger\n";
  const auto tokens = engine->tokenize(text, false);
  REQUIRE(tokens.ok());
  CHECK(*engine->detokenize(*tokens, false) == text);
  const auto plain = engine->tokenize("<|im_start|>", false),
             special = engine->tokenize("<|im_start|>", true);
  CHECK(special->size() == 1);
  CHECK(plain->size() > 1);
  CHECK(engine->is_end(2));
  CHECK_FALSE(engine->is_end(5));
  CHECK_FALSE(engine->is_end(-1));
  CHECK_FALSE(engine->is_end(1 << 30));
  const ChatMessage messages[] = {{"system", "You are a helper."}, {"user", "Hello"}};
  CHECK(*engine->chat(messages) ==
        "<|im_start|>system\nYou are a "
        "helper.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
  CHECK(*engine->chat({}) == "<|im_start|>assistant\n");
  CHECK(engine->tokenize("", true)->empty());
  CHECK(engine->tokenize("a\xff\xfe\xc3(", true).ok());
}

TEST_CASE("a chat template's default system message is found, where it has one") {
  CHECK(default_system_message("{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}") == "Be kind");
  CHECK(default_system_message("{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
                               "{{- '<|im_start|>system\\nYou are Q.<|im_end|>\\n' }}") == "You are Q.");
  CHECK(default_system_message("{{ '<|im_start|>system\n' + m + '<|im_end|>' }}").empty());
  CHECK(default_system_message("<|im_start|>system\nno end").empty());
  CHECK(default_system_message("<|im_start|>system\n<|im_end|>").empty());
  CHECK(default_system_message("").empty());

  const auto engine = open({.model = kSmolLM2, .cells = 512, .threads = 1});
  const ChatMessage hello[] = {{"user", "Hello"}};
  CHECK(*engine->chat(hello) ==
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
  const ChatMessage own[] = {{"system", "Be kind."}, {"user", "Hello"}};
  CHECK(*engine->chat(own) ==
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
}
