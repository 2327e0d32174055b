// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "model_shape.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <concepts>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace kvstem::cli {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMostOfAField = std::uint64_t{1} << 31;
constexpr std::uint64_t kMostConfigBytes = 4u << 20;
constexpr std::string_view kMagic = "GGUF";
constexpr const char* kWhatToName = "name the config.json of a language model, or its GGUF file";

constexpr const char* kWindowCaveat =
    "sliding windows are counted as full attention, so the bytes are an upper bound";
constexpr const char* kNoKvCaveat = "layers without KV state are not counted";
constexpr const char* kHybridCaveat =
    "which layers keep no KV state is not known, so all are counted and the bytes are an upper bound";
constexpr const char* kSharedCaveat =
    "layers that share KV state are counted as if they did not, so the bytes are an upper bound";

void add_caveat(ModelShape& shape, const std::string& text) {
  shape.caveat += (shape.caveat.empty() ? "" : "; ") + text;
}

/// Fit to be printed, and to be part of a key.
bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= 64 &&
         std::ranges::all_of(text, [](char c) { return c > ' ' && c <= '~'; });
}

/// How many of the layers 0, 1, ... are offset, offset + period, ...
std::uint64_t every(std::uint64_t layers, std::uint64_t period, std::uint64_t offset) {
  return offset < layers ? (layers - 1 - offset) / period + 1 : 0;
}

using Names = std::initializer_list<const char*>;

/// The part of a config.json that describes the language model; what is missing there is looked for at the top.
class Config {
 public:
  Config(std::string path, const Json& top) : path_(std::move(path)), top_(top), text_(&top) {
    for (const char* part : {"thinker_config", "text_config", "llm_config", "language_config"}) {
      if (find(kLayers) != nullptr) return;
      const auto found = text_->find(part);
      if (found != text_->end() && found->is_object()) text_ = &*found;
    }
  }

  static constexpr Names kLayers = {"num_hidden_layers", "n_layer", "n_layers", "num_layers"};

  [[nodiscard]] InputError error(const std::string& what) const { return InputError(path_ + ": " + what); }

  /// The first of these that is there and not null.
  [[nodiscard]] const Json* find(Names names) const { return find_in(*text_, names).second; }
  [[nodiscard]] const Json* find_anywhere(Names names) const {
    const Json* found = find(names);
    return found != nullptr ? found : find_in(top_, names).second;
  }

  [[nodiscard]] std::uint64_t required(Names names) const {
    if (const auto value = optional(names)) return *value;
    throw error(std::string(*names.begin()) + " is missing; " + kWhatToName);
  }
  [[nodiscard]] std::optional<std::uint64_t> optional(Names names) const {
    const auto value = count(names);
    if (value == 0u) throw absurd(find_in(*text_, names).first, "0");
    return value;
  }
  /// As optional(), but 0 is a number like others.
  [[nodiscard]] std::optional<std::uint64_t> count(Names names) const {
    const auto [name, value] = find_in(*text_, names);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number_integer()) throw absurd(name, "no whole number");
    if (!value->is_number_unsigned() && value->get<std::int64_t>() < 0) throw absurd(name, "negative");
    if (value->get<std::uint64_t>() > kMostOfAField) throw absurd(name, "more than 2^31");
    return value->get<std::uint64_t>();
  }
  [[nodiscard]] bool is_true(const char* name, bool otherwise) const {
    const Json* value = find_anywhere({name});
    return value != nullptr && value->is_boolean() ? value->get<bool>() : otherwise;
  }
  /// A number above 0, whatever else may stand there.
  [[nodiscard]] bool is_positive(const char* name) const {
    const Json* value = find({name});
    return value != nullptr && value->is_number() && value->get<double>() > 0;
  }
  [[nodiscard]] bool has_key_with(Names beginnings) const {
    for (const auto& item : text_->items())
      for (const char* beginning : beginnings)
        if (item.key().starts_with(beginning)) return true;
    return false;
  }
  [[nodiscard]] std::string name() const {
    const Json* found = find_in(top_, {"model_type"}).second;
    if (found == nullptr) found = find_in(top_, {"architectures"}).second;
    if (found != nullptr && found->is_array() && !found->empty()) found = &found->front();
    if (found == nullptr || !found->is_string()) return "model";
    const auto& text = found->get_ref<const std::string&>();
    return is_name(text) ? text : "model";
  }

 private:
  [[nodiscard]] InputError absurd(const std::string& name, const char* how) const {
    return error(name + " is " + how + "; " + kWhatToName);
  }
  static std::pair<const char*, const Json*> find_in(const Json& object, Names names) {
    for (const char* name : names) {
      const auto found = object.find(name);
      if (found != object.end() && !found->is_null()) return {name, &*found};
    }
    return {*names.begin(), nullptr};
  }

  std::string path_;
  const Json& top_;
  const Json* text_;
};

double config_element_bytes(const Config& config, ModelShape& shape) {
  const Json* dtype = config.find_anywhere({"torch_dtype", "dtype"});
  if (dtype != nullptr && dtype->is_string()) {
    std::string_view text = dtype->get_ref<const std::string&>();
    if (text.starts_with("torch.")) text.remove_prefix(6);
    if (text == "bfloat16" || text == "float16" || text == "half") return 2;
    if (text == "float32" || text == "float") return 4;
    if (text == "float64" || text == "double") return 8;
    if (text.starts_with("float8")) return 1;
  }
  add_caveat(shape, "the file does not say how large an element is, so 2 bytes are a guess");
  return 2;
}

/// How many of `layers` keep KV state.
std::uint64_t config_kv_layers(const Config& config, std::uint64_t layers, ModelShape& shape) {
  bool window = (config.is_positive("sliding_window") && config.is_true("use_sliding_window", true)) ||
                config.is_positive("attention_chunk_size");
  std::uint64_t kept = layers;
  if (const Json* types = config.find({"layer_types"})) {
    if (!types->is_array() || types->size() < layers)
      throw config.error("layer_types does not name every layer; " + std::string(kWhatToName));
    for (std::size_t i = 0; i < layers; ++i) {
      const Json& entry = (*types)[i];
      if (!entry.is_string())
        throw config.error("layer_types holds what is no name; " + std::string(kWhatToName));
      const std::string_view type = entry.get_ref<const std::string&>();
      if (type.find("linear") != type.npos || type.find("mamba") != type.npos)
        --kept;
      else
        window = window || (type != "full_attention" && type != "attention");
    }
  } else if (const auto interval = config.optional({"full_attention_interval"})) {
    kept = every(layers, *interval, *interval - 1);
  } else if (const auto period = config.optional({"attn_layer_period"})) {
    kept = every(layers, *period, config.count({"attn_layer_offset"}).value_or(0));
  } else if (config.has_key_with({"mamba", "ssm", "linear_", "hybrid"})) {
    add_caveat(shape, kHybridCaveat);
  }
  if (kept == 0)
    throw config.error("no layer keeps KV state, so there is nothing to store; name another model");
  if (window) add_caveat(shape, kWindowCaveat);
  if (kept < layers) add_caveat(shape, kNoKvCaveat);
  if (config.is_positive("num_kv_shared_layers")) add_caveat(shape, kSharedCaveat);
  return kept;
}

/// The parameters of all layers' MLPs that work on a token; 0 if not known.
double config_mlp_parameters(const Config& config, std::uint64_t layers, std::uint64_t hidden,
                             ModelShape& shape) {
  const Json* widths = config.find({"intermediate_size"});
  if (widths != nullptr && widths->is_array()) return 0;  // one for each layer, or for each of some parts
  const std::uint64_t inner =
      config.optional({"intermediate_size", "n_inner", "ffn_hidden_size"}).value_or(4 * hidden);
  const bool gated =
      config.find({"intermediate_size", "ffn_hidden_size", "moe_intermediate_size"}) != nullptr &&
      std::ranges::none_of(std::array{"gpt_neox", "phi", "starcoder2"},
                           [name = config.name()](const char* n) { return name == n; });
  const double matrices = gated ? 3 : 2;
  const auto mlp = [&](double width) { return matrices * static_cast<double>(hidden) * width; };

  const double used = static_cast<double>(
      config.count({"num_experts_per_tok", "num_experts_per_token", "experts_per_token"}).value_or(0));
  if (used == 0) return static_cast<double>(layers) * mlp(static_cast<double>(inner));

  add_caveat(shape,
             "of the experts only those that work on a token are among the parameters, by an estimate");
  const auto experts = config.count({"n_routed_experts", "num_experts", "num_local_experts"});
  const auto expert = config.optional({"moe_intermediate_size", "intermediate_size"});
  if (!expert) return 0;
  const auto width = static_cast<double>(*expert);
  double shared = static_cast<double>(config.count({"shared_expert_intermediate_size"}).value_or(0));
  if (shared == 0)
    shared =
        width * static_cast<double>(config.count({"n_shared_experts", "num_shared_experts"}).value_or(0));

  std::uint64_t sparse = layers - std::min(layers, config.count({"first_k_dense_replace"}).value_or(0));
  const Json* step = config.find({"decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step"});
  if (step != nullptr && step->is_number_unsigned() && step->get<std::uint64_t>() > 1)
    sparse /= step->get<std::uint64_t>();
  const Json* plain = config.find({"mlp_only_layers"});
  if (plain != nullptr && plain->is_array()) sparse -= std::min<std::uint64_t>(sparse, plain->size());
  const double router = static_cast<double>(hidden * experts.value_or(0));
  return static_cast<double>(layers - sparse) * mlp(static_cast<double>(inner)) +
         static_cast<double>(sparse) * (mlp(used * width + shared) + router);
}

ModelShape from_config(const std::string& path, const std::string& text, double element_bytes) {
  Json top;
  try {
    top = Json::parse(text);
  } catch (const Json::parse_error& e) {
    throw InputError(path + ": is neither a GGUF file nor JSON (wrong at byte " + std::to_string(e.byte) +
                     "; cut off?); " + kWhatToName);
  }
  if (!top.is_object()) throw InputError(path + ": is JSON, but no object; " + kWhatToName);
  const Config config(path, top);
  ModelShape shape;
  shape.name = config.name();

  const std::uint64_t layers = config.required(Config::kLayers);
  const std::uint64_t heads = config.required({"num_attention_heads", "n_head", "n_heads"});
  const auto hidden = config.optional({"hidden_size", "n_embd", "d_model"});
  const std::uint64_t kept = config_kv_layers(config, layers, shape);
  shape.layers = static_cast<std::uint32_t>(kept);
  if (element_bytes == 0) element_bytes = config_element_bytes(config, shape);

  std::optional<double> attention;  // parameters of one layer's attention
  std::uint64_t elements = 0;       // of one layer's KV state
  if (const auto latent = config.optional({"kv_lora_rank"})) {
    const std::uint64_t rope = config.required({"qk_rope_head_dim"});
    elements = *latent + rope;
    const auto nope = config.optional({"qk_nope_head_dim"});
    const auto value = config.optional({"v_head_dim"});
    if (nope) shape.attention_width = static_cast<double>(heads * (*nope + rope));
    if (nope && value && hidden) {
      const auto h = static_cast<double>(*hidden), q = shape.attention_width;
      const auto q_latent = static_cast<double>(config.count({"q_lora_rank"}).value_or(0));
      const double query = q_latent > 0 ? q_latent * (h + q) : h * q;
      attention = query + h * static_cast<double>(elements) +
                  static_cast<double>(*latent) * static_cast<double>(heads * (*nope + *value)) +
                  static_cast<double>(heads * *value) * h;
    }
  } else {
    std::uint64_t kv_heads = heads;
    if (const auto given = config.optional({"num_key_value_heads", "num_kv_heads", "n_head_kv"}))
      kv_heads = *given;
    else if (config.is_true("multi_query", false))
      kv_heads = 1;
    if (kv_heads > heads)
      throw config.error("num_key_value_heads is more than num_attention_heads; " + std::string(kWhatToName));
    auto key = config.optional({"head_dim"});
    if (!key) key = (hidden ? *hidden : config.required({"hidden_size"})) / heads;
    if (*key == 0)
      throw config.error("hidden_size is less than num_attention_heads; " + std::string(kWhatToName));
    const std::uint64_t value = config.optional({"v_head_dim"}).value_or(*key);
    shape.attention_width = static_cast<double>(heads * *key);
    elements = kv_heads * (*key + value);
    if (hidden)
      attention = static_cast<double>(*hidden) *
                  (static_cast<double>(elements) + static_cast<double>(heads * (*key + value)));
  }
  shape.kv_bytes_per_token = static_cast<double>(kept) * static_cast<double>(elements) * element_bytes;

  const auto vocabulary = config.optional({"vocab_size", "padded_vocab_size"});
  if (attention && hidden && vocabulary) {
    const double mlp = config_mlp_parameters(config, layers, *hidden, shape);
    const double embeddings = static_cast<double>(*hidden) * static_cast<double>(*vocabulary) *
                              (config.is_true("tie_word_embeddings", true) ? 1 : 2);
    if (mlp > 0) shape.parameters = embeddings + static_cast<double>(layers) * *attention + mlp;
  }
  return shape;
}

/// A GGUF file up to its weights. Reads nothing, and allocates nothing, beyond what the file can hold.
class Gguf {
 public:
  Gguf(std::string path, std::ifstream& file, std::uint64_t bytes)
      : path_(std::move(path)), file_(file), left_(bytes) {
    skip(kMagic.size());
    const auto version = read<std::uint32_t>();
    if (version != 2 && version != 3)
      throw error("is a GGUF file of version " + std::to_string(version) +
                  (version % 65536 == 0 ? " (big-endian?)" : "") +
                  "; convert the model to version 3, little-endian, or name its config.json");
    const auto tensors = read<std::uint64_t>();
    const auto pairs = read<std::uint64_t>();
    if (tensors > kMostEntries) throw damaged("counts " + std::to_string(tensors) + " tensors");
    if (pairs > kMostEntries) throw damaged("counts " + std::to_string(pairs) + " metadata entries");
    for (std::uint64_t i = 0; i < pairs; ++i) pair();
    for (std::uint64_t i = 0; i < tensors; ++i) parameters_ += tensor();
  }

  [[nodiscard]] const std::string& architecture() const { return architecture_; }
  [[nodiscard]] double parameters() const { return parameters_; }
  [[nodiscard]] InputError error(const std::string& what) const { return InputError(path_ + ": " + what); }

  /// By layer, or one for all; empty if the file has none. 0 may stand only in a list.
  [[nodiscard]] std::vector<std::uint64_t> numbers(const std::string& name) const {
    const auto found = numbers_.find(name);
    if (found == numbers_.end()) return {};
    const Number& number = found->second;
    if (!number.whole) throw absurd(name, "no whole number");
    std::vector<std::uint64_t> values;
    for (const std::int64_t value : number.values) {
      if (value < 0) throw absurd(name, "negative");
      if (value == 0 && !number.list) throw absurd(name, "0");
      if (static_cast<std::uint64_t>(value) > kMostOfAField) throw absurd(name, "more than 2^31");
      values.push_back(static_cast<std::uint64_t>(value));
    }
    if (values.empty()) throw absurd(name, "an empty list");
    return values;
  }
  [[nodiscard]] std::optional<std::uint64_t> optional(const std::string& name) const {
    const auto found = numbers_.find(name);
    if (found == numbers_.end()) return std::nullopt;
    if (found->second.list) throw absurd(name, "a list, not a number");
    return numbers(name)[0];
  }
  [[nodiscard]] std::uint64_t required(const std::string& name) const {
    if (const auto value = optional(name)) return *value;
    throw error(name + " is missing; " + kWhatToName);
  }
  /// A number above 0 or a list.
  [[nodiscard]] bool is_set(const std::string& name) const {
    const auto found = numbers_.find(name);
    return found != numbers_.end() && (found->second.list || found->second.values[0] > 0);
  }
  [[nodiscard]] bool has_key_with(const std::string& beginning) const {
    const auto found = numbers_.lower_bound(beginning);
    return found != numbers_.end() && found->first.starts_with(beginning);
  }

 private:
  enum Type : std::uint32_t {
    kUint8,
    kInt8,
    kUint16,
    kInt16,
    kUint32,
    kInt32,
    kFloat32,
    kBool,
    kString,
    kArray,
    kUint64,
    kInt64,
    kFloat64,
    kTypes
  };
  static constexpr std::array<std::uint64_t, kTypes> kSizes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  static constexpr std::uint64_t kMostEntries = 1'000'000, kMostStringBytes = 1u << 20, kMostDimensions = 8;
  static constexpr std::uint64_t kMostListed = 65'536, kMostKeyBytes = 256, kMostNested = 8;

  struct Number {
    bool whole = true, list = false;
    std::vector<std::int64_t> values;
  };

  [[nodiscard]] InputError cut_off() const {
    return error("is cut off inside the GGUF header; fetch the file again, or name the model's config.json");
  }
  [[nodiscard]] InputError damaged(const std::string& what) const {
    return error("is a damaged GGUF file: it " + what + "; fetch it again, or name the model's config.json");
  }
  [[nodiscard]] InputError absurd(const std::string& name, const char* how) const {
    return error(name + " is " + how + "; " + kWhatToName);
  }

  void take(std::uint64_t bytes) {
    if (bytes > left_) throw cut_off();
    left_ -= bytes;
  }
  void read(char* to, std::uint64_t bytes) {
    take(bytes);
    if (!file_.read(to, static_cast<std::streamsize>(bytes))) throw cut_off();
  }
  template <class T>
  T read() {
    std::array<char, sizeof(T)> raw{};
    read(raw.data(), raw.size());
    if constexpr (std::endian::native == std::endian::big) std::ranges::reverse(raw);
    return std::bit_cast<T>(raw);
  }
  void skip(std::uint64_t bytes) {
    take(bytes);
    // A seek throws the stream's buffer away, so it is for what is larger than that.
    if (bytes < kMostStringBytes)
      file_.ignore(static_cast<std::streamsize>(bytes));
    else
      file_.seekg(static_cast<std::streamoff>(bytes), std::ios::cur);
    if (!file_) throw cut_off();
  }
  std::string string() {
    const auto bytes = read<std::uint64_t>();
    if (bytes > left_) throw cut_off();
    if (bytes > kMostStringBytes) throw damaged("has a name of more than 1 MiB");
    std::string text(bytes, '\0');
    read(text.data(), bytes);
    return text;
  }
  template <class T>
  static std::int64_t clamped(T value) {
    if constexpr (std::same_as<T, std::uint64_t>)
      value = std::min<T>(value, std::numeric_limits<std::int64_t>::max());
    return static_cast<std::int64_t>(value);
  }
  std::int64_t whole(std::uint32_t type) {
    switch (type) {
      case kUint8:
      case kBool: return read<std::uint8_t>();
      case kInt8: return read<std::int8_t>();
      case kUint16: return read<std::uint16_t>();
      case kInt16: return read<std::int16_t>();
      case kUint32: return read<std::uint32_t>();
      case kInt32: return read<std::int32_t>();
      case kUint64: return clamped(read<std::uint64_t>());
      default: return read<std::int64_t>();
    }
  }
  std::uint32_t type() {
    const auto type = read<std::uint32_t>();
    if (type >= kTypes) throw damaged("has metadata of the unknown type " + std::to_string(type));
    return type;
  }
  void skip_array(std::uint64_t depth) {
    const std::uint32_t of = type();
    const auto count = read<std::uint64_t>();
    skip_elements(of, count, depth);
  }
  void skip_elements(std::uint32_t of, std::uint64_t count, std::uint64_t depth) {
    if (depth > kMostNested) throw damaged("has lists in lists, too deep");
    if (const std::uint64_t size = kSizes[of]; size > 0) {
      if (count > left_ / size) throw cut_off();
      skip(count * size);
      return;
    }
    for (std::uint64_t i = 0; i < count; ++i) {  // each takes some bytes, so that the file's end is the bound
      if (of == kString)
        skip(read<std::uint64_t>());
      else
        skip_array(depth + 1);
    }
  }
  void pair() {
    std::string key = string();
    const std::uint32_t of = type();
    if (of == kString) {
      if (key == "general.architecture")
        architecture_ = string();
      else
        skip(read<std::uint64_t>());
      return;
    }
    Number number;
    if (of == kArray) {
      const std::uint32_t elements = type();
      const auto count = read<std::uint64_t>();
      const bool wanted = key.ends_with(".head_count") || key.ends_with(".head_count_kv");
      if (!wanted || count > kMostListed || kSizes[elements] == 0 || is_float(elements)) {
        skip_elements(elements, count, 1);
        number.whole = !wanted;
      } else {
        if (count > left_ / kSizes[elements]) throw cut_off();
        for (std::uint64_t i = 0; i < count; ++i) number.values.push_back(whole(elements));
      }
      number.list = true;
    } else if (is_float(of)) {
      skip(kSizes[of]);
      number = {.whole = false, .list = false, .values = {1}};
    } else {
      number.values = {whole(of)};
    }
    if (key.size() <= kMostKeyBytes) numbers_.emplace(std::move(key), std::move(number));
  }
  static bool is_float(std::uint32_t type) { return type == kFloat32 || type == kFloat64; }

  /// The number of its elements.
  double tensor() {
    skip(read<std::uint64_t>());  // name
    const auto dimensions = read<std::uint32_t>();
    if (dimensions > kMostDimensions)
      throw damaged("has a tensor of " + std::to_string(dimensions) + " dimensions");
    double elements = 1;
    for (std::uint32_t d = 0; d < dimensions; ++d) elements *= static_cast<double>(read<std::uint64_t>());
    if (elements < 1 || elements > 0x1p50) throw damaged("has a tensor of no possible size");
    skip(sizeof(std::uint32_t) + sizeof(std::uint64_t));  // type, offset
    return elements;
  }

  std::string path_;
  std::ifstream& file_;
  std::uint64_t left_;
  std::string architecture_;
  std::map<std::string, Number> numbers_;
  double parameters_ = 0;
};

ModelShape from_gguf(const Gguf& file, double element_bytes) {
  const std::string& name = file.architecture();
  if (name.empty())
    throw file.error(
        "general.architecture is missing; name the model's first file if it has several, or its config.json");
  if (!is_name(name)) throw file.error("general.architecture is no name; " + std::string(kWhatToName));
  ModelShape shape;
  shape.name = name;
  if (element_bytes == 0) element_bytes = 2;

  const std::string attention = name + ".attention.";
  std::uint64_t layers = file.required(name + ".block_count");
  // Layers that only guess further tokens are among the blocks, but keep nothing that is reused.
  if (file.is_set(name + ".nextn_predict_layers")) {
    const std::uint64_t guessing = file.required(name + ".nextn_predict_layers");
    if (guessing >= layers) throw file.error(name + ".nextn_predict_layers leaves no layer; " + kWhatToName);
    layers -= guessing;
  }
  const auto by_layer = [&](const char* key) {
    auto values = file.numbers(attention + key);
    if (values.size() > 1 && values.size() < layers)
      throw file.error(attention + key + " does not name every layer; " + kWhatToName);
    if (values.size() > layers) values.resize(layers);
    return values;
  };
  const auto heads = by_layer("head_count");
  if (heads.empty()) throw file.error(attention + "head_count is missing; " + kWhatToName);
  auto kv_heads = by_layer("head_count_kv");
  if (kv_heads.empty()) kv_heads = heads;

  auto key = file.optional(attention + "key_length");
  auto value = file.optional(attention + "value_length");
  if (!key || !value) {
    const std::uint64_t most = std::ranges::max(heads);
    const std::uint64_t length = most > 0 ? file.required(name + ".embedding_length") / most : 0;
    if (length == 0)
      throw file.error(name + ".embedding_length is less than the number of heads; " + kWhatToName);
    key = key.value_or(length);
    value = value.value_or(length);
  }

  double kept = 0, kv_sum = 0, head_sum = 0;  // of the layers with KV state
  if (kv_heads.size() == 1 && heads.size() == 1) {
    std::optional<std::uint64_t> interval;
    if (file.is_set(name + ".full_attention_interval"))
      interval = file.required(name + ".full_attention_interval");
    kept = static_cast<double>(interval ? every(layers, *interval, *interval - 1) : layers);
    if (kv_heads[0] == 0) kept = 0;
    kv_sum = kept * static_cast<double>(kv_heads[0]);
    head_sum = kept * static_cast<double>(heads[0]);
    if (!interval && file.has_key_with(name + ".ssm.")) add_caveat(shape, kHybridCaveat);
  } else {
    for (std::size_t i = 0; i < layers; ++i) {
      const std::uint64_t kv = kv_heads.size() == 1 ? kv_heads[0] : kv_heads[i];
      if (kv == 0) continue;
      ++kept;
      kv_sum += static_cast<double>(kv);
      head_sum += static_cast<double>(heads.size() == 1 ? heads[0] : heads[i]);
    }
  }
  if (kept == 0)
    throw file.error("no layer keeps KV state, so there is nothing to store; name another model");
  if (kept < static_cast<double>(layers)) add_caveat(shape, kNoKvCaveat);
  shape.layers = static_cast<std::uint32_t>(kept);

  const auto latent = file.optional(attention + "kv_lora_rank");
  const auto latent_key = file.optional(attention + "key_length_mla");
  if (latent && latent_key) {
    const std::uint64_t rope = file.required(name + ".rope.dimension_count");
    shape.kv_bytes_per_token = kept * static_cast<double>(*latent + rope) * element_bytes;
    key = latent_key;
  } else {
    shape.kv_bytes_per_token = kv_sum * static_cast<double>(*key + *value) * element_bytes;
  }
  shape.attention_width = head_sum / kept * static_cast<double>(*key);

  if (file.is_set(attention + "sliding_window")) add_caveat(shape, kWindowCaveat);
  if (file.is_set(attention + "shared_kv_layers")) add_caveat(shape, kSharedCaveat);
  if (file.is_set("split.count") && file.required("split.count") > 1) {
    add_caveat(shape, "the parameters are not known, as the file is one of several");
  } else {
    shape.parameters = file.parameters();
    if (file.is_set(name + ".expert_count")) add_caveat(shape, "the parameters are those of all experts");
  }
  return shape;
}

}  // namespace

double ModelShape::attention_equal_tokens() const {
  const double width = attention_width * layers;
  return width > 0 ? parameters / width : 0;
}

ModelShape read_model_shape(const std::string& path, double element_bytes) {
  if (!(element_bytes >= 0 && element_bytes <= 16))
    throw InputError("the bytes of one element of K or V must be more than 0 and at most 16");
  std::error_code failure;
  const auto status = std::filesystem::status(path, failure);
  if (status.type() == std::filesystem::file_type::not_found)
    throw InputError(path + ": no such file; " + kWhatToName);
  if (std::filesystem::is_directory(status))
    throw InputError(path + ": is a folder; name the config.json or the GGUF file in it");
  if (!failure && !std::filesystem::is_regular_file(status))
    throw InputError(path + ": is no regular file; " + kWhatToName);
  std::ifstream file(path, std::ios::binary);
  const std::uint64_t bytes = failure ? 0 : std::filesystem::file_size(path, failure);
  if (!file || failure) throw InputError(path + ": cannot be read; check who may read it");
  if (bytes == 0) throw InputError(path + ": is empty; " + kWhatToName);

  std::string beginning(kMagic.size(), '\0');
  file.read(beginning.data(), static_cast<std::streamsize>(beginning.size()));
  const bool is_gguf = file.gcount() == static_cast<std::streamsize>(kMagic.size()) && beginning == kMagic;
  file.clear();
  file.seekg(0);
  if (is_gguf) return from_gguf(Gguf(path, file, bytes), element_bytes);

  if (bytes > kMostConfigBytes)
    throw InputError(path + ": is no GGUF file, and too large for a config.json; " + kWhatToName);
  std::string text(bytes, '\0');
  if (!file.read(text.data(), static_cast<std::streamsize>(bytes)))
    throw InputError(path + ": cannot be read to its end; try again");
  return from_config(path, text, element_bytes);
}

}  // namespace kvstem::cli
