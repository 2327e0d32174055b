// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "model_shape.hpp"

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"

namespace {

using namespace kvstem::cli;
using nlohmann::json;

/// A folder that goes with the test.
class Folder {
 public:
  Folder() {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("kvstem_model_shape_" + std::to_string(::getpid()) + "_" + std::to_string(count++));
    std::filesystem::create_directory(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  [[nodiscard]] std::string path() const { return path_.string(); }
  [[nodiscard]] std::string file(const std::string& content) const {
    const auto path = (path_ / "file").string();
    std::ofstream(path, std::ios::binary | std::ios::trunc) << content;
    return path;
  }

 private:
  std::filesystem::path path_;
};

ModelShape shape_of(const std::string& content, double element_bytes = 0) {
  const Folder folder;
  return read_model_shape(folder.file(content), element_bytes);
}
ModelShape shape_of(const json& config, double element_bytes = 0) {
  return shape_of(config.dump(), element_bytes);
}

/// What the file is refused with, without its path; empty if it is not.
std::string refusal(const std::string& content) {
  const Folder folder;
  const std::string path = folder.file(content);
  try {
    (void)read_model_shape(path, 0);
  } catch (const InputError& e) {
    const std::string what = e.what();
    REQUIRE(what.starts_with(path + ": "));
    REQUIRE(what.find('\n') == std::string::npos);
    return what.substr(path.size() + 2);
  }
  return "";
}
bool refused(const json& config, const std::string& why) { return refusal(config.dump()).starts_with(why); }

bool has(const ModelShape& shape, const std::string& caveat) {
  return shape.caveat.find(caveat) != std::string::npos;
}
bool near(double value, double wanted, double part) { return std::abs(value - wanted) <= part * wanted; }

json llama() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"hidden_size", 4096},
          {"intermediate_size", 14336},
          {"model_type", "llama"},
          {"num_attention_heads", 32},
          {"num_hidden_layers", 32},
          {"num_key_value_heads", 8},
          {"sliding_window", nullptr},
          {"tie_word_embeddings", false},
          {"torch_dtype", "bfloat16"},
          {"vocab_size", 128256}};
}

json deepseek() {
  return {{"model_type", "deepseek_v3"},  {"hidden_size", 7168},
          {"num_hidden_layers", 61},      {"num_attention_heads", 128},
          {"num_key_value_heads", 128},   {"kv_lora_rank", 512},
          {"q_lora_rank", 1536},          {"qk_nope_head_dim", 128},
          {"qk_rope_head_dim", 64},       {"v_head_dim", 128},
          {"intermediate_size", 18432},   {"moe_intermediate_size", 2048},
          {"first_k_dense_replace", 3},   {"moe_layer_freq", 1},
          {"n_routed_experts", 256},      {"n_shared_experts", 1},
          {"num_experts_per_tok", 8},     {"vocab_size", 129280},
          {"tie_word_embeddings", false}, {"torch_dtype", "bfloat16"}};
}

template <class T>
std::string raw(T value) {
  std::string bytes;
  auto bits = static_cast<std::uint64_t>(value);
  for (std::size_t i = 0; i < sizeof(T); ++i, bits >>= 8) bytes += static_cast<char>(bits & 255);
  return bytes;
}
std::string text(const std::string& s) { return raw(std::uint64_t{s.size()}) + s; }

enum Type : std::uint32_t {
  kUint8 = 0,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kString = 8,
  kArray = 9,
  kUint64 = 10
};

/// Writes a GGUF file up to its weights.
class GgufFile {
 public:
  explicit GgufFile(const std::string& name = "llama") : name_(name) {
    if (!name.empty()) add("general.architecture", kString, text(name));
  }
  GgufFile& add(const std::string& key, std::uint32_t type, const std::string& value) {
    pairs_.push_back(text(key) + raw(type) + value);
    return *this;
  }
  GgufFile& number(const std::string& key, std::uint32_t value) {
    return add(name_ + "." + key, kUint32, raw(value));
  }
  GgufFile& numbers(const std::string& key, const std::vector<std::int32_t>& values) {
    std::string list = raw(std::uint32_t{kInt32}) + raw(std::uint64_t{values.size()});
    for (const auto value : values) list += raw(value);
    return add(name_ + "." + key, kArray, list);
  }
  GgufFile& tensor(const std::vector<std::uint64_t>& dimensions) {
    std::string tensor = text("weight") + raw(static_cast<std::uint32_t>(dimensions.size()));
    for (const auto d : dimensions) tensor += raw(d);
    tensors_.push_back(tensor + raw(std::uint32_t{0}) + raw(std::uint64_t{0}));
    return *this;
  }
  [[nodiscard]] std::string content(std::uint32_t version = 3) const {
    std::string all =
        "GGUF" + raw(version) + raw(std::uint64_t{tensors_.size()}) + raw(std::uint64_t{pairs_.size()});
    for (const auto& pair : pairs_) all += pair;
    for (const auto& tensor : tensors_) all += tensor;
    return all;
  }

 private:
  std::string name_;
  std::vector<std::string> pairs_, tensors_;
};

GgufFile small_gguf() {
  return GgufFile()
      .number("block_count", 30)
      .number("embedding_length", 576)
      .number("attention.head_count", 9)
      .number("attention.head_count_kv", 3);
}

/// Has every kind of value.
GgufFile full_gguf() {
  GgufFile file;
  for (std::uint32_t type = 0; type <= 12; ++type) {
    static constexpr std::size_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (kSizes[type] == 0) continue;
    file.add("scalar", type, std::string(kSizes[type], '\1'));
    file.add("list", kArray, raw(type) + raw(std::uint64_t{3}) + std::string(3 * kSizes[type], '\1'));
  }
  file.add("text", kString, text("value"));
  file.add("texts", kArray, raw(std::uint32_t{kString}) + raw(std::uint64_t{2}) + text("one") + text(""));
  const std::string inner = raw(std::uint32_t{kUint8}) + raw(std::uint64_t{2}) + "ab";
  file.add("lists", kArray, raw(std::uint32_t{kArray}) + raw(std::uint64_t{2}) + inner + inner);
  file.number("block_count", 4).number("attention.head_count", 16);
  file.numbers("attention.head_count_kv", {2, 0, 4, 2});
  file.number("attention.key_length", 96).number("attention.value_length", 64);
  return file.tensor({1000, 20}).tensor({7}).tensor({2, 3, 4, 5});
}

}  // namespace

TEST_CASE("a config.json of a dense model") {
  const ModelShape shape = shape_of(llama());
  CHECK(shape.name == "llama");
  CHECK(shape.layers == 32);
  CHECK(shape.kv_bytes_per_token == 131072);
  CHECK(shape.attention_width == 4096);
  CHECK(near(shape.parameters, 8.03e9, 0.03));
  CHECK(shape.caveat.empty());
  CHECK(near(shape.attention_equal_tokens(), 8.03e9 / (32 * 4096), 0.03));
  CHECK(ModelShape{}.attention_equal_tokens() == 0);
}

TEST_CASE("bytes of an element: given, or as the file says") {
  CHECK(shape_of(llama(), 1).kv_bytes_per_token == 65536);
  CHECK(shape_of(llama(), 0.5).kv_bytes_per_token == 32768);
  json config = llama();
  config.erase("torch_dtype");
  CHECK(shape_of(config).kv_bytes_per_token == 131072);
  CHECK(has(shape_of(config), "guess"));
  CHECK(shape_of(config, 2).caveat.empty());
  config["dtype"] = "float32";
  CHECK(shape_of(config).kv_bytes_per_token == 262144);
  config["dtype"] = "strange";
  CHECK(has(shape_of(config), "guess"));
  for (const double wrong : {-1.0, 17.0, std::numeric_limits<double>::quiet_NaN()})
    CHECK_THROWS_AS(shape_of(llama(), wrong), InputError);
}

TEST_CASE("the dimension of a head need not follow from the width") {
  const json config = {{"model_type", "qwen3"},       {"head_dim", 128},
                       {"hidden_size", 1024},         {"num_hidden_layers", 28},
                       {"num_attention_heads", 16},   {"num_key_value_heads", 8},
                       {"intermediate_size", 3072},   {"vocab_size", 151936},
                       {"tie_word_embeddings", true}, {"sliding_window", nullptr},
                       {"use_sliding_window", false}, {"torch_dtype", "bfloat16"}};
  const ModelShape shape = shape_of(config);
  CHECK(shape.kv_bytes_per_token == 114688);
  CHECK(shape.attention_width == 2048);
  CHECK(near(shape.parameters, 0.596e9, 0.03));
  CHECK(shape.caveat.empty());
}

TEST_CASE("latent attention keeps one vector for K and V, and only working experts count") {
  const ModelShape shape = shape_of(deepseek());
  CHECK(shape.layers == 61);
  CHECK(shape.kv_bytes_per_token == 70272);
  CHECK(shape.attention_width == 128 * 192);
  CHECK(near(shape.parameters, 37.5e9, 0.03));
  CHECK(has(shape, "experts"));
}

TEST_CASE("a mixture of experts that names no width of its experts") {
  json config = llama();
  config["vocab_size"] = 32000;
  config["num_local_experts"] = 8;
  config["num_experts_per_tok"] = 2;
  CHECK(near(shape_of(config).parameters, 12.9e9, 0.03));
  CHECK(has(shape_of(config), "experts"));
  config["num_experts_per_tok"] = 0;
  CHECK(shape_of(config).caveat.empty());
}

TEST_CASE("a language model inside a multimodal one") {
  json inner = llama();
  inner.erase("torch_dtype");
  inner.erase("tie_word_embeddings");
  const json config = {{"model_type", "manners"},
                       {"text_config", inner},
                       {"torch_dtype", "float16"},
                       {"tie_word_embeddings", false},
                       {"vision_config", {{"num_hidden_layers", 3}}}};
  const ModelShape shape = shape_of(config);
  CHECK(shape.name == "manners");
  CHECK(shape.kv_bytes_per_token == 131072);
  CHECK(near(shape.parameters, 8.03e9, 0.03));
  CHECK(shape.caveat.empty());
  CHECK(shape_of(json{{"thinker_config", {{"text_config", inner}}}}, 2).kv_bytes_per_token == 131072);
}

TEST_CASE("names as of GPT-2") {
  const json config = {
      {"model_type", "gpt2"}, {"n_layer", 12}, {"n_head", 12}, {"n_embd", 768}, {"vocab_size", 50257}};
  const ModelShape shape = shape_of(config, 2);
  CHECK(shape.kv_bytes_per_token == 36864);
  CHECK(near(shape.parameters, 0.124e9, 0.03));
}

TEST_CASE("without vocabulary the parameters are not known") {
  json config = llama();
  config.erase("vocab_size");
  CHECK(shape_of(config).parameters == 0);
  CHECK(shape_of(config).attention_equal_tokens() == 0);
  CHECK(shape_of(config).kv_bytes_per_token == 131072);
}

TEST_CASE("sliding windows count as full attention, with a word about it") {
  json config = llama();
  config["sliding_window"] = 4096;
  CHECK(has(shape_of(config), "upper bound"));
  CHECK(shape_of(config).kv_bytes_per_token == 131072);
  config["use_sliding_window"] = false;
  CHECK(shape_of(config).caveat.empty());
  config["layer_types"] = json::array();
  for (int i = 0; i < 32; ++i) config["layer_types"].push_back("full_attention");
  CHECK(shape_of(config).caveat.empty());
  config["layer_types"][7] = "sliding_attention";
  CHECK(has(shape_of(config), "upper bound"));
  CHECK(shape_of(config).kv_bytes_per_token == 131072);
}

TEST_CASE("layers without KV state do not count") {
  json config = llama();
  SECTION("named by layer") {
    config["layer_types"] = json::array();
    for (int i = 0; i < 32; ++i)
      config["layer_types"].push_back(i % 4 == 3   ? "full_attention"
                                      : i % 2 == 0 ? "linear_attention"
                                                   : "mamba");
  }
  SECTION("by an interval") { config["full_attention_interval"] = 4; }
  SECTION("by a period") {
    config["attn_layer_period"] = 4;
    config["attn_layer_offset"] = 1;
  }
  const ModelShape shape = shape_of(config);
  CHECK(shape.layers == 8);
  CHECK(shape.kv_bytes_per_token == 32768);
  CHECK(has(shape, "not counted"));
}

TEST_CASE("where layers without KV state are not named, all count") {
  json config = llama();
  config["mamba_d_state"] = 128;
  CHECK(shape_of(config).layers == 32);
  CHECK(has(shape_of(config), "upper bound"));
}

TEST_CASE("a config.json that lacks what is needed is refused") {
  for (const char* name : {"num_hidden_layers", "num_attention_heads", "hidden_size"}) {
    json config = llama();
    config.erase(name);
    CHECK(refused(config, std::string(name) + " is missing"));
    config[name] = nullptr;
    CHECK(refused(config, std::string(name) + " is missing"));
  }
  for (const char* name : {"num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size",
                           "head_dim", "vocab_size", "kv_lora_rank"}) {
    json config = llama();
    for (const auto& [value, how] :
         std::vector<std::pair<json, std::string>>{{0, "0"},
                                                   {-1, "negative"},
                                                   {2147483649u, "more than 2^31"},
                                                   {~std::uint64_t{0}, "more than 2^31"},
                                                   {1.5, "no whole number"},
                                                   {"32", "no whole number"},
                                                   {json::array({32}), "no whole number"}}) {
      config[name] = value;
      INFO(name << " " << value);
      CHECK(refused(config, std::string(name) + " is " + how));
    }
  }
  json config = llama();
  SECTION("more KV heads than heads") { config["num_key_value_heads"] = 64; }
  SECTION("heads of no dimension") { config["hidden_size"] = 31; }
  SECTION("layer_types too short") { config["layer_types"] = {"full_attention"}; }
  SECTION("layer_types of numbers") { config["layer_types"] = std::vector<int>(32, 1); }
  SECTION("no layer with KV state") { config["layer_types"] = std::vector<std::string>(32, "mamba"); }
  SECTION("latent without its other half") { config["kv_lora_rank"] = 512; }
  CHECK_FALSE(refusal(config.dump()).empty());
}

TEST_CASE("what is no file, or none of these formats, is refused") {
  const Folder folder;
  const auto why = [](const std::string& path) -> std::string {
    try {
      (void)read_model_shape(path, 0);
    } catch (const InputError& e) {
      return e.what();
    }
    return "";
  };
  CHECK(why(folder.path() + "/none").find("no such file") != std::string::npos);
  CHECK(why("").find("no such file") != std::string::npos);
  CHECK(why(folder.path()).find("is a folder") != std::string::npos);
  CHECK(why("/dev/null").find("no regular file") != std::string::npos);
  CHECK(refusal("").starts_with("is empty"));
  for (const std::string& content :
       {std::string("hello"), std::string("{\"num_hidden_layers\": 3"), std::string("GGU"),
        std::string(4, '\0'), std::string(100'000, '['), std::string("{\"model_type\": \"\xff\"}")})
    CHECK(refusal(content).starts_with("is neither a GGUF file nor JSON"));
  for (const char* content : {"[]", "3", "null", "\"GGUF\""})
    CHECK(refusal(content).starts_with("is JSON, but no object"));
  CHECK(refusal(std::string(5u << 20, ' ')).starts_with("is no GGUF file, and too large"));
}

TEST_CASE("a config.json cut at any byte is refused") {
  const std::string content = deepseek().dump();
  for (std::size_t bytes = 0; bytes < content.size(); ++bytes)
    CHECK_FALSE(refusal(content.substr(0, bytes)).empty());
}

TEST_CASE("a GGUF file") {
  for (const std::uint32_t version : {2u, 3u}) {
    const ModelShape shape = shape_of(small_gguf().tensor({576, 49152}).content(version) + "weights");
    CHECK(shape.name == "llama");
    CHECK(shape.layers == 30);
    CHECK(shape.kv_bytes_per_token == 23040);
    CHECK(shape.attention_width == 576);
    CHECK(shape.parameters == 576 * 49152);
    CHECK(shape.caveat.empty());
  }
  CHECK(shape_of(small_gguf().content(), 1).kv_bytes_per_token == 11520);
}

TEST_CASE("a GGUF file with values of all kinds") {
  const ModelShape shape = shape_of(full_gguf().content());
  CHECK(shape.layers == 3);
  CHECK(shape.kv_bytes_per_token == (2 + 4 + 2) * (96 + 64) * 2);
  CHECK(shape.attention_width == 16 * 96);
  CHECK(shape.parameters == 20000 + 7 + 120);
  CHECK(has(shape, "not counted"));
}

TEST_CASE("a GGUF file cut at any byte is refused") {
  const std::string content = full_gguf().content();
  for (std::size_t bytes = 0; bytes < content.size(); ++bytes) {
    INFO(bytes);
    CHECK_FALSE(refusal(content.substr(0, bytes)).empty());
  }
}

TEST_CASE("a GGUF file with any byte changed is read or refused") {
  const std::string content = full_gguf().content();
  for (std::size_t i = 4; i < content.size(); ++i)
    for (const char other : {'\0', '\1', '\11', '\177', '\377'}) {
      std::string changed = content;
      changed[i] = other;
      (void)refusal(changed);
    }
}

TEST_CASE("what is special about a GGUF file becomes a caveat") {
  SECTION("a window") {
    CHECK(has(shape_of(small_gguf().number("attention.sliding_window", 512).content()), "upper"));
  }
  SECTION("no window") {
    CHECK(shape_of(small_gguf().number("attention.sliding_window", 0).content()).caveat.empty());
  }
  SECTION("experts") {
    CHECK(has(shape_of(small_gguf().number("expert_count", 8).content()), "all experts"));
  }
  SECTION("state spaces") {
    CHECK(has(shape_of(small_gguf().number("ssm.state_size", 8).content()), "upper bound"));
  }
  SECTION("one of several files") {
    const std::string three = raw(std::uint32_t{3}), zero = raw(std::uint32_t{0});
    const ModelShape part = shape_of(small_gguf().add("split.count", kUint32, three).tensor({5}).content());
    CHECK(has(part, "several"));
    CHECK(part.parameters == 0);
    CHECK(shape_of(small_gguf().add("split.count", kUint32, zero).tensor({5}).content()).parameters == 5);
  }
  SECTION("linear layers") {
    const ModelShape shape = shape_of(small_gguf().number("full_attention_interval", 4).content());
    CHECK(shape.layers == 7);
    CHECK(has(shape, "not counted"));
  }
  SECTION("layers that only guess further tokens") {
    CHECK(shape_of(small_gguf().number("nextn_predict_layers", 1).content()).layers == 29);
  }
}

TEST_CASE("latent attention in a GGUF file") {
  GgufFile file("deepseek2");
  file.number("block_count", 61).number("attention.head_count", 128).number("attention.head_count_kv", 1);
  file.number("attention.key_length", 576).number("attention.value_length", 512);
  file.number("attention.kv_lora_rank", 512).number("rope.dimension_count", 64);
  file.number("attention.key_length_mla", 192).number("attention.value_length_mla", 128);
  const ModelShape shape = shape_of(file.content());
  CHECK(shape.kv_bytes_per_token == 70272);
  CHECK(shape.attention_width == 128 * 192);
}

TEST_CASE("a GGUF file that lacks what is needed is refused") {
  const auto why = [](const GgufFile& file) { return refusal(file.content()); };
  CHECK(why(GgufFile("").add("x", kUint32, raw(1u))).starts_with("general.architecture is missing"));
  CHECK(why(GgufFile("a\nb")).starts_with("general.architecture is no name"));
  CHECK(why(GgufFile()).starts_with("llama.block_count is missing"));
  CHECK(why(GgufFile().number("block_count", 3)).starts_with("llama.attention.head_count is missing"));
  CHECK(why(GgufFile().number("block_count", 3).number("attention.head_count", 3))
            .starts_with("llama.embedding_length is missing"));
  CHECK(
      why(GgufFile().number("block_count", 3).number("attention.head_count", 3).number("embedding_length", 2))
          .starts_with("llama.embedding_length is less"));
  CHECK(why(GgufFile().number("block_count", 0)).starts_with("llama.block_count is 0"));
  CHECK(why(GgufFile().number("block_count", ~0u)).starts_with("llama.block_count is more than 2^31"));
  CHECK(
      why(GgufFile().add("llama.block_count", kInt32, raw(-1))).starts_with("llama.block_count is negative"));
  CHECK(why(GgufFile().add("llama.block_count", kUint64, raw(~std::uint64_t{0})))
            .starts_with("llama.block_count is more than 2^31"));
  CHECK(why(GgufFile().add("llama.block_count", kFloat32, raw(1u)))
            .starts_with("llama.block_count is no whole number"));
  CHECK(why(GgufFile().numbers("block_count", {3})).starts_with("llama.block_count is a list"));
  for (const auto& [heads, how] : std::vector<std::pair<std::vector<std::int32_t>, std::string>>{
           {{1, 2}, "llama.attention.head_count_kv does not name every layer"},
           {{}, "llama.attention.head_count_kv is an empty list"},
           {{1, -1, 1}, "llama.attention.head_count_kv is negative"},
           {{0, 0, 0}, "no layer keeps KV state"}})
    CHECK(why(GgufFile()
                  .number("block_count", 3)
                  .number("embedding_length", 64)
                  .number("attention.head_count", 4)
                  .numbers("attention.head_count_kv", heads))
              .starts_with(how));
  CHECK(why(small_gguf().number("nextn_predict_layers", 30)).find("leaves no layer") != std::string::npos);
}

TEST_CASE("a damaged GGUF file is refused without being believed") {
  for (const std::uint32_t version : {0u, 1u, 4u, 3u << 24})
    CHECK(refusal(small_gguf().content(version)).starts_with("is a GGUF file of version"));
  const std::string head = "GGUF" + raw(3u);
  const auto none = raw(std::uint64_t{0}), one = raw(std::uint64_t{1}), huge = raw(~std::uint64_t{0});
  CHECK(refusal(head + huge + none).find("tensors") != std::string::npos);
  CHECK(refusal(head + none + huge).find("metadata") != std::string::npos);
  CHECK(refusal(head + none + one + huge).starts_with("is cut off"));
  CHECK(refusal(head + none + one + text("x") + raw(13u)).find("unknown type 13") != std::string::npos);
  CHECK(refusal(head + none + one + text("x") + raw(8u) + huge).starts_with("is cut off"));
  for (const std::uint32_t type : {0u, 5u, 8u, 9u, 12u}) {
    CHECK(refusal(head + none + one + text("x") + raw(9u) + raw(type) + huge).starts_with("is cut off"));
    CHECK_FALSE(refusal(head + none + one + text("x.head_count") + raw(9u) + raw(type) + huge).empty());
  }
  CHECK(refusal(head + none + one + raw(std::uint64_t{2} << 20) + std::string(3u << 20, 'x')).find("1 MiB") !=
        std::string::npos);
  std::string nested;
  for (int i = 0; i < 20; ++i) nested += raw(9u) + one;
  CHECK(refusal(head + none + one + text("x") + raw(9u) + nested).find("too deep") != std::string::npos);
  CHECK(refusal(small_gguf().tensor({1, 1, 1, 1, 1, 1, 1, 1, 1}).content()).find("9 dimensions") !=
        std::string::npos);
  CHECK(refusal(small_gguf().tensor({3, 0}).content()).find("no possible size") != std::string::npos);
  CHECK(refusal(small_gguf().tensor({1u << 30, 1u << 30}).content()).find("no possible size") !=
        std::string::npos);
}

TEST_CASE("large values of a GGUF file are passed over") {
  const std::string large = text(std::string(3u << 20, 'x'));
  CHECK(shape_of(small_gguf().add("large", kString, large).number("x", 1).tensor({5}).content()).parameters ==
        5);
}
