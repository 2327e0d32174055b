// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "llama_engine.hpp"

#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>
#include <utility>

#include "kvstem/model/block_key.hpp"  // brings xxHash, inlined

namespace kvstem_llama {
namespace {

constexpr std::uint32_t kStagingSequences = 2;
constexpr Status kThrown{StatusCode::kUnavailable,
                         "llama.cpp ran out of memory or failed inside; see last_error()"};

/// From so many tokens on llama.cpp's attention on a CPU works in tiles, and is 8 times as fast.
constexpr std::size_t kTiledTokens = 64;

/// Whether n tokens from a position on are computed sooner in the company of others that nobody wants. Beside attention a
/// token costs about as much as attending to 256 (measured with SmolLM2-135M from position 0 to 3,072: the rule errs by
/// two or three tokens).
constexpr bool better_tiled(std::size_t n, std::uint32_t position) noexcept {
  return n < kTiledTokens &&
         n * (std::uint64_t{position} + 256) >= kTiledTokens * (std::uint64_t{position} / 8 + 256);
}

thread_local std::string t_error;

void keep_errors(ggml_log_level level, const char* text, void*) noexcept {
  if (level != GGML_LOG_LEVEL_ERROR || t_error.size() > 4000) return;
  try {
    t_error += text;
  } catch (...) {  // the log line is lost, nothing else
  }
}

void prepare_llama() {
  static std::once_flag once;
  std::call_once(once, [] {
    llama_log_set(keep_errors, nullptr);
    llama_backend_init();
  });
  t_error.clear();
}

/// Calls `body`; whatever it throws becomes `kThrown`. llama.h is C, but it allocates, and some of it throws.
template <class Body>
Status guarded(Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& e) {
    keep_errors(GGML_LOG_LEVEL_ERROR, e.what(), nullptr);
  } catch (...) {
  }
  return kThrown;
}

std::string meta(const llama_model* model, const char* key) {
  char value[256];
  const int n = llama_model_meta_val_str(model, key, value, sizeof value);
  return n < 0 ? std::string() : std::string(value);
}

/// The files that a model consists of: one, or the parts of a split one.
std::vector<std::string> model_files(const llama_model* model, const std::string& first) {
  const std::string count = meta(model, "split.count");
  const int parts = count.empty() ? 1 : std::atoi(count.c_str());
  char prefix[4096], path[4096];
  if (parts <= 1 || llama_split_prefix(prefix, sizeof prefix, first.c_str(), 0, parts) == 0) return {first};
  std::vector<std::string> files;
  for (int i = 0; i < parts; ++i) {
    llama_split_path(path, sizeof path, prefix, i, parts);
    files.emplace_back(path);
  }
  return files;
}

/// XXH3-128 of the files, as text; empty if one cannot be read.
std::string digest(const std::vector<std::string>& files) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state(XXH3_createState(),
                                                                              XXH3_freeState);
  XXH3_128bits_reset(state.get());
  std::vector<char> buffer(std::size_t{1} << 20);
  for (const std::string& name : files) {
    std::ifstream file(name, std::ios::binary);
    do {
      file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
      XXH3_128bits_update(state.get(), buffer.data(), static_cast<std::size_t>(file.gcount()));
    } while (file);
    if (!file.eof()) return {};
  }
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  char text[64];
  std::snprintf(text, sizeof text, "xxh3-128:%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                static_cast<unsigned long long>(hash.low64));
  return text;
}

/// Only state that is attention over all earlier positions can be cut into ranges.
Status refuse_other_memories(const llama_model* model) {
  const auto refuse = [](const char* message) { return Status{StatusCode::kUnsupported, message}; };
  if (llama_model_is_hybrid(model))
    return refuse(
        "this is a hybrid model (recurrent and attention layers): use one with full attention in all layers");
  if (llama_model_is_recurrent(model))
    return refuse(
        "this is a recurrent model: its state cannot be cut into blocks; use one with full attention");
  if (llama_model_n_swa(model) > 0)
    return refuse("this model has sliding-window layers: use one with full attention in all layers");
  if (llama_model_has_encoder(model) || !llama_model_has_decoder(model) || llama_model_is_diffusion(model))
    return refuse("this is no model that generates text from left to right: use a causal language model");
  switch (llama_model_rope_type(model)) {
    case LLAMA_ROPE_TYPE_MROPE:
    case LLAMA_ROPE_TYPE_IMROPE:
    case LLAMA_ROPE_TYPE_VISION:
      return refuse("this model's positions have several dimensions: use a text model");
    default: break;
  }
  if (llama_vocab_type(llama_model_get_vocab(model)) == LLAMA_VOCAB_TYPE_NONE)
    return refuse("this model file has no tokenizer: convert the model with its vocabulary");
  return {};
}

}  // namespace

/// The arrays of a llama_batch. Every token belongs to exactly one sequence.
struct LlamaEngine::Batch {
  std::vector<llama_token> tokens;
  std::vector<llama_pos> positions;
  std::vector<std::int32_t> counts;
  std::vector<llama_seq_id> sequences;
  std::vector<llama_seq_id*> sequence_lists;
  std::vector<std::int8_t> wanted;
  std::vector<llama_pos> ends;  // by sequence: its last position, as this batch goes on

  Batch(std::size_t size, std::size_t sequence_count)
      : tokens(size),
        positions(size),
        counts(size, 1),
        sequences(size),
        sequence_lists(size),
        wanted(size),
        ends(sequence_count) {
    for (std::size_t i = 0; i < size; ++i) sequence_lists[i] = &sequences[i];
  }
};

void LlamaEngine::FreeModel::operator()(llama_model* model) const noexcept { llama_model_free(model); }
void LlamaEngine::FreeContext::operator()(llama_context* context) const noexcept { llama_free(context); }

LlamaEngine::LlamaEngine() noexcept = default;
LlamaEngine::~LlamaEngine() = default;

std::string LlamaEngine::last_error() { return t_error; }

Result<std::unique_ptr<LlamaEngine>> LlamaEngine::open(const LlamaEngineOptions& options) noexcept {
  std::unique_ptr<LlamaEngine> engine;
  const Status status = guarded([&] {
    prepare_llama();
    engine.reset(new LlamaEngine());
    return engine->load(options);
  });
  if (!status.ok()) return status;
  return engine;
}

Status LlamaEngine::load(const LlamaEngineOptions& options) {
  if (options.sequences == 0 || options.sequences > llama_max_parallel_sequences() - kStagingSequences)
    return {StatusCode::kInvalidArgument, "LlamaEngineOptions::sequences must be 1 to 254"};
  if (options.cells == 0 || options.cells > 0x7fffff00u)
    return {StatusCode::kInvalidArgument, "LlamaEngineOptions::cells must be 1 to 2^31-256"};
  if (options.batch < 2 || options.batch > options.cells)
    return {StatusCode::kInvalidArgument, "LlamaEngineOptions::batch must be 2 to LlamaEngineOptions::cells"};
  std::error_code error;
  if (!std::filesystem::is_regular_file(options.model, error) ||
      !std::ifstream(options.model, std::ios::binary))
    return {StatusCode::kInvalidArgument, "LlamaEngineOptions::model names no file that can be read"};

  model_.reset(llama_model_load_from_file(options.model.c_str(), llama_model_default_params()));
  if (!model_)
    return {StatusCode::kInvalidArgument,
            "llama.cpp cannot load this model file (damaged, cut off, or no GGUF); see last_error()"};
  if (Status status = refuse_other_memories(model_.get()); !status.ok()) return status;
  vocab_ = llama_model_get_vocab(model_.get());
  vocab_size_ = static_cast<std::uint32_t>(llama_vocab_n_tokens(vocab_));

  llama_context_params params = llama_context_default_params();
  params.n_ctx = options.cells;
  params.n_batch = options.batch;
  params.n_ubatch = options.batch;  // a decode is one graph: it happens as a whole or not at all
  params.n_seq_max = options.sequences + kStagingSequences;
  params.n_outputs_max = std::max(params.n_batch, params.n_seq_max);  // fewer end the process
  params.n_threads = static_cast<std::int32_t>(
      options.threads ? options.threads : std::max(1u, std::thread::hardware_concurrency()));
  params.n_threads_batch = params.n_threads;
  params.kv_unified = true;  // sharing a part of a sequence needs one stream of cells for all
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.no_perf = true;
  context_.reset(llama_init_from_model(model_.get(), params));
  if (!context_ || llama_get_memory(context_.get()) == nullptr)
    return {StatusCode::kUnavailable, "llama.cpp made no context for this model (memory?); see last_error()"};

  sequences_ = options.sequences;
  batch_ = options.batch;
  const auto trained = static_cast<std::uint32_t>(std::max(1, llama_model_n_ctx_train(model_.get())));
  sequence_tokens_ = std::min(trained, llama_n_ctx(context_.get()));
  batch_arrays_ = std::make_unique<Batch>(batch_, sequences_);
  model_digest_ = digest(model_files(model_.get(), options.model));
  if (model_digest_.empty()) return {StatusCode::kUnavailable, "the model file could not be read to its end"};
  if (const char* format = llama_model_chat_template(model_.get(), nullptr); format != nullptr)
    default_system_ = default_system_message(format);
  return learn_form();
}

/// Computes two tokens, takes them out and puts them back: a build that writes state in another form, or a model whose
/// memory is of another kind than it says, is refused here and not when it matters.
Status LlamaEngine::learn_form() {
  constexpr Status kUnknown{
      StatusCode::kUnsupported,
      "this llama.cpp writes sequence state in an unknown form: build the pinned version"};
  const Feed feeds[] = {{.sequence = 0, .position = 0}, {.sequence = 0, .position = 1}};
  if (Status status = decode(feeds); !status.ok()) return status;
  std::vector<std::uint8_t> raw(llama_state_seq_get_size(context_.get(), 0));
  if (llama_state_seq_get_data(context_.get(), raw.data(), raw.size(), 0) != raw.size()) return kUnknown;
  if (!form_.learn(std::as_bytes(std::span(raw)), 2)) return kUnknown;

  std::vector<std::byte> first(range_bytes(0, {0, 1})), second(range_bytes(0, {1, 2})), again(second.size());
  const bool exported = export_range(0, 0, {0, 1}, first).ok() && export_range(0, 0, {1, 2}, second).ok();
  clear(0);
  const bool imported = exported && import_range(0, 0, {0, 1}, first).ok() &&
                        import_range(0, 0, {1, 2}, second).ok() && export_range(0, 0, {1, 2}, again).ok() &&
                        again == second;
  clear(0);
  return imported ? Status{} : kUnknown;
}

// ---- the four functions -----------------------------------------------------------------------------------------

// Sequence ids outside 0 <= id < n_seq_max end the process, so every id is checked before llama.cpp sees it. The ids
// `sequences_` (to export from, and for company) and `sequences_ + 1` (to import into) are ours; both are empty between
// calls.

Status LlamaEngine::check_range(SequenceId sequence, TokenRange range) const noexcept {
  if (sequence < 0 || static_cast<std::uint32_t>(sequence) >= sequences_)
    return {StatusCode::kOutOfRange, "the sequence id must be below capacity().sequences"};
  if (range.begin >= range.end) return {StatusCode::kInvalidArgument, "the range of tokens is empty"};
  return {};
}

bool LlamaEngine::covers(SequenceId sequence, TokenRange range) const noexcept {
  const llama_memory_t memory = llama_get_memory(context_.get());
  const llama_pos first = llama_memory_seq_pos_min(memory, sequence);
  const llama_pos last = llama_memory_seq_pos_max(memory, sequence);
  return first >= 0 && static_cast<std::uint32_t>(first) <= range.begin &&
         range.end <= static_cast<std::uint32_t>(last) + 1;
}

void LlamaEngine::clear(SequenceId sequence) noexcept {
  llama_memory_seq_rm(llama_get_memory(context_.get()), sequence, -1, -1);
}

std::size_t LlamaEngine::range_bytes(GroupId group, TokenRange range) const noexcept {
  return group != 0 || range.begin >= range.end ? 0 : form_.bytes(range.size());
}

Status LlamaEngine::export_range(SequenceId sequence, GroupId group, TokenRange range,
                                 std::span<std::byte> out) noexcept {
  if (Status status = check_range(sequence, range); !status.ok()) return status;
  if (!covers(sequence, range)) return {StatusCode::kOutOfRange, "the sequence does not hold this range"};
  if (out.empty() || out.size() != range_bytes(group, range))
    return {StatusCode::kInvalidArgument, "the buffer must have range_bytes() of this group and range"};
  return guarded([&]() -> Status {
    t_error.clear();
    const auto staging = static_cast<SequenceId>(sequences_);
    llama_memory_seq_cp(llama_get_memory(context_.get()), sequence, staging,
                        static_cast<llama_pos>(range.begin), static_cast<llama_pos>(range.end));
    const std::size_t written = llama_state_seq_get_data(
        context_.get(), reinterpret_cast<std::uint8_t*>(out.data()), out.size(), staging);
    clear(staging);
    if (written != out.size() || !form_.canonicalise(out, range))
      return {StatusCode::kUnavailable, "llama.cpp did not write this range as a whole"};
    return {};
  });
}

Status LlamaEngine::import_range(SequenceId sequence, GroupId group, TokenRange range,
                                 std::span<const std::byte> in) noexcept {
  if (Status status = check_range(sequence, range); !status.ok()) return status;
  if (group != 0 || range.end > sequence_tokens_)
    return {StatusCode::kOutOfRange, "the range lies outside what a sequence of this engine can hold"};
  if (static_cast<std::int64_t>(range.begin) != std::int64_t{pos_max(sequence)} + 1)
    return {StatusCode::kWrongState,
            "the range must begin where the sequence ends: import in ascending order"};
  if (!form_.holds(in, range))
    return {StatusCode::kCorrupt,
            "these bytes are no export of this range by this representation: drop them"};
  const auto staging = static_cast<SequenceId>(sequences_ + 1);
  const Status status = guarded([&]() -> Status {
    t_error.clear();
    const llama_memory_t memory = llama_get_memory(context_.get());
    // The bytes are well formed, so the one thing that llama.cpp can miss now is room.
    if (llama_state_seq_set_data(context_.get(), reinterpret_cast<const std::uint8_t*>(in.data()), in.size(),
                                 staging) != in.size())
      return {StatusCode::kExhausted, "no room for this range: drop sequences and try again"};
    if (llama_memory_seq_pos_min(memory, staging) != static_cast<llama_pos>(range.begin) ||
        llama_memory_seq_pos_max(memory, staging) != static_cast<llama_pos>(range.end) - 1)
      return {StatusCode::kUnavailable, "llama.cpp did not take this range as a whole"};
    llama_memory_seq_cp(memory, staging, sequence, static_cast<llama_pos>(range.begin),
                        static_cast<llama_pos>(range.end));
    return {};
  });
  clear(staging);
  return status;
}

Status LlamaEngine::share_range(SequenceId from, SequenceId to, TokenRange range) noexcept {
  if (Status status = check_range(from, range); !status.ok()) return status;
  if (Status status = check_range(to, range); !status.ok()) return status;
  if (from == to) return {StatusCode::kInvalidArgument, "a sequence cannot share with itself"};
  if (!covers(from, range)) return {StatusCode::kOutOfRange, "the sequence does not hold this range"};
  if (static_cast<std::int64_t>(range.begin) != std::int64_t{pos_max(to)} + 1)
    return {StatusCode::kWrongState, "the range must begin where the receiving sequence ends"};
  return guarded([&]() -> Status {
    llama_memory_seq_cp(llama_get_memory(context_.get()), from, to, static_cast<llama_pos>(range.begin),
                        static_cast<llama_pos>(range.end));
    return {};
  });
}

Status LlamaEngine::drop_range(SequenceId sequence, TokenRange range) noexcept {
  if (Status status = check_range(sequence, {range.begin, kvstem::kToEnd}); !status.ok()) return status;
  const std::int64_t length = std::int64_t{pos_max(sequence)} + 1;
  if (range.end < length)
    return {StatusCode::kInvalidArgument,
            "only the tail of a sequence can be dropped, or a hole would remain"};
  if (range.begin >= length) return {};
  return guarded([&]() -> Status {
    if (!llama_memory_seq_rm(llama_get_memory(context_.get()), sequence, static_cast<llama_pos>(range.begin),
                             -1))
      return {StatusCode::kUnavailable, "llama.cpp did not drop this range"};
    return {};
  });
}

std::string LlamaEngine::describe() const {
  std::string text = "llama.cpp " KVSTEM_LLAMA_COMMIT " (";
  text += llama_version();
  text += "), sequence state in canonical form 1, K and V f16, flash attention, rope as in the model file, ";
  text += std::to_string(llama_model_n_layer(model_.get())) + " layers, ";
  text += std::to_string(form_.bytes(2) - form_.bytes(1)) + " bytes a token, weights " + model_digest_ + ", ";
  text += llama_print_system_info();
  return text;
}

kvstem::EngineCapacity LlamaEngine::capacity() const noexcept {
  return {.cells = llama_n_ctx(context_.get()), .sequences = sequences_, .sequence_tokens = sequence_tokens_};
}

// ---- computing ---------------------------------------------------------------------------------------------------

std::int32_t LlamaEngine::pos_max(SequenceId sequence) const noexcept {
  if (sequence < 0 || static_cast<std::uint32_t>(sequence) >= sequences_) return -1;
  return llama_memory_seq_pos_max(llama_get_memory(context_.get()), sequence);
}

Status LlamaEngine::decode(std::span<const Feed> feeds) noexcept {
  decoded_ = 0;
  if (feeds.empty() || feeds.size() > batch_)
    return {StatusCode::kInvalidArgument, "decode takes 1 to batch() tokens"};
  Batch& b = *batch_arrays_;
  std::fill(b.ends.begin(), b.ends.end(), -2);  // not looked up yet
  for (std::size_t i = 0; i < feeds.size(); ++i) {
    const Feed& feed = feeds[i];
    if (feed.token < 0 || static_cast<std::uint32_t>(feed.token) >= vocab_size_)
      return {StatusCode::kOutOfRange, "the token lies outside the vocabulary"};
    if (feed.sequence < 0 || static_cast<std::uint32_t>(feed.sequence) >= sequences_)
      return {StatusCode::kOutOfRange, "the sequence id must be below capacity().sequences"};
    if (feed.position >= sequence_tokens_)
      return {StatusCode::kOutOfRange, "the sequence is full: see capacity().sequence_tokens"};
    llama_pos& end = b.ends[static_cast<std::size_t>(feed.sequence)];
    if (end == -2) end = pos_max(feed.sequence);
    if (std::int64_t{feed.position} != std::int64_t{end} + 1)
      return {StatusCode::kWrongState, "a token's position must follow the last one of its sequence"};
    ++end;
    b.tokens[i] = feed.token;
    b.positions[i] = static_cast<llama_pos>(feed.position);
    b.sequences[i] = feed.sequence;
    b.wanted[i] = feed.logits;
  }
  const bool one_sequence = b.ends[static_cast<std::size_t>(feeds[0].sequence)] ==
                            static_cast<llama_pos>(feeds[0].position + feeds.size() - 1);
  if (one_sequence && kTiledTokens <= batch_ && better_tiled(feeds.size(), feeds[0].position)) {
    const auto staging = static_cast<SequenceId>(sequences_);
    for (std::size_t i = feeds.size(); i < kTiledTokens; ++i) {
      b.tokens[i] = 0;
      b.positions[i] = static_cast<llama_pos>(i - feeds.size());
      b.sequences[i] = staging;
      b.wanted[i] = 0;
    }
    const Status status = compute(kTiledTokens);
    clear(staging);
    if (status.ok()) decoded_ = feeds.size();
    if (status.code() != StatusCode::kExhausted) return status;
  }
  const Status status = compute(feeds.size());
  if (status.ok()) decoded_ = feeds.size();
  return status;
}

/// Computes the first n tokens of batch_arrays_.
Status LlamaEngine::compute(std::size_t n) noexcept {
  Batch& b = *batch_arrays_;
  return guarded([&]() -> Status {
    t_error.clear();
    llama_batch batch{};
    batch.n_tokens = static_cast<std::int32_t>(n);
    batch.token = b.tokens.data();
    batch.pos = b.positions.data();
    batch.n_seq_id = b.counts.data();
    batch.seq_id = b.sequence_lists.data();
    batch.logits = b.wanted.data();
    const int code = llama_decode(context_.get(), batch);
    if (code == 1)
      return {StatusCode::kExhausted, "no free cells for these tokens: drop sequences and try again"};
    if (code != 0) return {StatusCode::kUnavailable, "llama_decode failed; see last_error()"};
    llama_synchronize(context_.get());
    return {};
  });
}

std::span<const float> LlamaEngine::logits(std::size_t i) noexcept {
  if (i >= decoded_ || batch_arrays_->wanted[i] == 0) return {};
  const float* row = llama_get_logits_ith(context_.get(), static_cast<std::int32_t>(i));
  return row == nullptr ? std::span<const float>() : std::span<const float>(row, vocab_size_);
}

// ---- text --------------------------------------------------------------------------------------------------------

kvstem::Scope LlamaEngine::scope(std::string salt) const {
  kvstem::Scope scope;
  scope.model = model_digest_;
  scope.positions = "as in the model file";
  scope.salt = std::move(salt);
  scope.vocab_size = vocab_size_;
  return scope;
}

bool LlamaEngine::is_end(TokenId token) const noexcept {
  return token >= 0 && static_cast<std::uint32_t>(token) < vocab_size_ && llama_vocab_is_eog(vocab_, token);
}

Result<std::vector<TokenId>> LlamaEngine::tokenize(std::string_view text, bool special,
                                                   bool begin) const noexcept {
  std::vector<TokenId> tokens;
  const Status status = guarded([&]() -> Status {
    if (text.size() > 0x7fffffffu)
      return {StatusCode::kOutOfRange, "the text is too long to tokenize at once"};
    const auto fill = [&] {
      return llama_tokenize(vocab_, text.data(), static_cast<std::int32_t>(text.size()), tokens.data(),
                            static_cast<std::int32_t>(tokens.size()), begin, special);
    };
    tokens.resize(text.size() / 2 + 16);
    std::int32_t n = fill();
    if (n < 0 && n != INT32_MIN) {  // what it needs, negative
      tokens.resize(static_cast<std::size_t>(-n));
      n = fill();
    }
    if (n < 0) return {StatusCode::kUnavailable, "llama.cpp could not tokenize this text"};
    tokens.resize(static_cast<std::size_t>(n));
    return {};
  });
  if (!status.ok()) return status;
  return tokens;
}

Result<std::string> LlamaEngine::detokenize(std::span<const TokenId> tokens, bool special) const noexcept {
  std::string text;
  const Status status = guarded([&]() -> Status {
    char piece[512];
    for (const TokenId token : tokens) {
      if (token < 0 || static_cast<std::uint32_t>(token) >= vocab_size_)
        return {StatusCode::kOutOfRange, "the token lies outside the vocabulary"};
      const std::int32_t n = llama_token_to_piece(vocab_, token, piece, sizeof piece, 0, special);
      if (n < 0) return {StatusCode::kUnavailable, "llama.cpp could not write this token as text"};
      text.append(piece, static_cast<std::size_t>(n));
    }
    return {};
  });
  if (!status.ok()) return status;
  return text;
}

std::string default_system_message(std::string_view chat_template) {
  constexpr std::string_view kBegin = "<|im_start|>system", kEnd = "<|im_end|>";
  for (std::size_t at = 0; (at = chat_template.find(kBegin, at)) != std::string_view::npos;) {
    std::string_view rest = chat_template.substr(at += kBegin.size());
    if (rest.starts_with("\\n"))  // as Jinja writes a new line in a string
      rest.remove_prefix(2);
    else if (rest.starts_with("\n"))
      rest.remove_prefix(1);
    else
      continue;
    const std::string_view text = rest.substr(0, rest.find(kEnd));
    // A quote or a brace: the string ends, and something that is computed follows.
    if (text.size() == rest.size() || text.empty() || text.find_first_of("'\"{}\\") != std::string_view::npos)
      continue;
    return std::string(text);
  }
  return {};
}

Result<std::string> LlamaEngine::chat(std::span<const ChatMessage> messages) const noexcept {
  std::string text;
  const Status status = guarded([&]() -> Status {
    std::vector<llama_chat_message> list;
    const auto add = [&](const char* role, const std::string& content) {
      list.push_back({role, content.c_str()});
      text.append(std::strlen(role) + content.size() + 64, ' ');
    };
    if (!messages.empty() && messages.front().role != "system" && !default_system_.empty())
      add("system", default_system_);
    for (const ChatMessage& message : messages) add(message.role.c_str(), message.content);
    text.append(64, ' ');
    const char* format = llama_model_chat_template(model_.get(), nullptr);
    const auto fill = [&] {
      return llama_chat_apply_template(format, list.data(), list.size(), true, text.data(),
                                       static_cast<std::int32_t>(text.size()));
    };
    std::int32_t n = fill();
    if (n > static_cast<std::int32_t>(text.size())) {  // what it needs
      text.resize(static_cast<std::size_t>(n));
      n = fill();
    }
    if (n < 0) return {StatusCode::kUnsupported, "llama.cpp does not know this model's chat format"};
    text.resize(static_cast<std::size_t>(n));
    return {};
  });
  if (!status.ok()) return status;
  return text;
}

}  // namespace kvstem_llama
