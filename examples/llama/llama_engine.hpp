// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// llama.cpp as an opaque host of kvstem: a model and a context, and the four functions that the cache needs (export,
// import, share and drop a range of a sequence), through llama.h alone.
//
// Use it with `kvstem::OpaqueHost<LlamaEngine>`. Models whose layers all have full attention are accepted; sliding
// windows, recurrent and hybrid models are refused, because a range of their sequences is not all of their state.
//
// Guarantees: no call throws, aborts or prints, whatever its arguments, although llama.cpp itself ends the process on
// some of them. A call that fails changes nothing. Exported bytes depend on the model, the context's types and the
// state alone, not on the sequence or the cells it lay in: what was imported is exported again byte for byte.
// Threads: one at a time; calls do not overlap. But `tokenize`, `detokenize`, `chat`, `is_end` and what the engine is like
// (`capacity`, `vocab_size`, `scope`) may be asked from any, at any time. Nothing runs behind the caller's back.
// Cost: export and import about 2 us a token for a small model, share and drop some ten us (they walk all cells).
//
// llama.cpp's log is taken over by the first `open`; errors are kept for `last_error`, the rest is dropped.
//
//   auto engine = LlamaEngine::open({.model = "model.gguf", .cells = 4096, .sequences = 4});
//   if (!engine.ok()) die(engine.status().message(), LlamaEngine::last_error());
//   LlamaEngine::Feed hello{.sequence = 0, .position = 0, .token = 42, .logits = true};
//   if (Status s = (*engine)->decode({&hello, 1}); s.ok()) use((*engine)->logits(0));
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/host/opaque_host.hpp"
#include "kvstem/model/scope.hpp"
#include "state_blob.hpp"

struct llama_context;
struct llama_model;
struct llama_vocab;

namespace kvstem_llama {

using kvstem::GroupId;
using kvstem::Result;
using kvstem::SequenceId;
using kvstem::Status;
using kvstem::StatusCode;
using kvstem::TokenId;
using kvstem::TokenRange;

struct LlamaEngineOptions {
  std::string model{};          // a GGUF file; of a split model the first part
  std::uint32_t cells = 4096;   // tokens of all sequences together; rounded up to a multiple of 256
  std::uint32_t sequences = 8;  // 1 to 254: those that decode and those that stay resident
  std::uint32_t batch = 512;    // most tokens in one `decode`
  std::uint32_t threads = 0;    // 0: as many as the machine has
};

/// The system message that a chat template (a model's Jinja text of the ChatML family) puts before a conversation that begins
/// without one; empty if it has none. llama.cpp knows formats by sight, and does not run the text.
[[nodiscard]] std::string default_system_message(std::string_view chat_template);

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

class LlamaEngine {
 public:
  /// One token to compute. Its position must follow the last one of its sequence.
  struct Feed {
    SequenceId sequence = 0;
    std::uint32_t position = 0;
    TokenId token = 0;
    bool logits = false;  // wanted after this token
  };

  /// Loads a model. kInvalidArgument: options or the file are at fault; kUnsupported: the model has state that is not
  /// full attention; kUnavailable: llama.cpp refused, see `last_error`.
  static Result<std::unique_ptr<LlamaEngine>> open(const LlamaEngineOptions& options) noexcept;
  /// What llama.cpp said about the last failure of a call on this thread; may be empty.
  static std::string last_error();

  LlamaEngine(const LlamaEngine&) = delete;
  LlamaEngine& operator=(const LlamaEngine&) = delete;
  ~LlamaEngine();

  // What the cache needs. `group` is 0; sequences are 0 <= id < capacity().sequences.

  /// Bytes of an export of `range`; 0 for an empty one.
  [[nodiscard]] std::size_t range_bytes(GroupId group, TokenRange range) const noexcept;
  /// Copies the state of `range` to `out`, whose size must be range_bytes(group, range). The sequence must hold it.
  Status export_range(SequenceId sequence, GroupId group, TokenRange range,
                      std::span<std::byte> out) noexcept;
  /// Appends exported state to a sequence that ends where `range` begins. kCorrupt: the bytes are no export of this
  /// range by this representation; kExhausted: not enough free cells.
  Status import_range(SequenceId sequence, GroupId group, TokenRange range,
                      std::span<const std::byte> in) noexcept;
  /// Appends a range of `from` to `to`, which ends where it begins. No state is copied; both hold the same cells.
  Status share_range(SequenceId from, SequenceId to, TokenRange range) noexcept;
  /// Removes the tail of a sequence from range.begin; range.end must be kToEnd or lie at or behind its end.
  Status drop_range(SequenceId sequence, TokenRange range) noexcept;
  /// The representation: whatever must be equal for exported bytes to be understood and to mean the same.
  [[nodiscard]] std::string describe() const;
  /// cells and sequences of this engine, and the most tokens that one sequence may have (what the model was made for).
  [[nodiscard]] kvstem::EngineCapacity capacity() const noexcept;

  // What a scheduler needs.

  /// Computes tokens. kExhausted: not enough free cells, nothing was computed. Some ten tokens of one sequence far from
  /// its beginning may take as long as 64; they are faster, and rounded as 64 are, while 64 cells are free.
  Status decode(std::span<const Feed> feeds) noexcept;
  /// vocab_size() logits of the i-th token of the last `decode`; empty if they were not asked for. Valid until the next.
  [[nodiscard]] std::span<const float> logits(std::size_t i) noexcept;
  /// The last position of a sequence; -1 if it is empty or no sequence at all.
  [[nodiscard]] std::int32_t pos_max(SequenceId sequence) const noexcept;
  [[nodiscard]] std::uint32_t batch() const noexcept { return batch_; }

  // Text.

  /// The content that this model's state is valid for, in the namespace of a tenant.
  [[nodiscard]] kvstem::Scope scope(std::string salt = {}) const;
  [[nodiscard]] std::uint32_t vocab_size() const noexcept { return vocab_size_; }
  /// True for tokens after which nothing follows (end of text, end of turn).
  [[nodiscard]] bool is_end(TokenId token) const noexcept;
  /// With `special`, text like "<|im_start|>" becomes the token of this name. With `begin`, the text starts a prompt,
  /// and gets the token that this model wants there (many want none).
  [[nodiscard]] Result<std::vector<TokenId>> tokenize(std::string_view text, bool special,
                                                      bool begin = true) const noexcept;
  [[nodiscard]] Result<std::string> detokenize(std::span<const TokenId> tokens, bool special) const noexcept;
  /// The model's own chat format, with the beginning of the assistant's answer. A conversation that does not begin with a
  /// system message gets the model's default one, if it has one. Formats that llama.cpp does not know are kUnsupported.
  [[nodiscard]] Result<std::string> chat(std::span<const ChatMessage> messages) const noexcept;

 private:
  struct FreeModel {
    void operator()(llama_model* model) const noexcept;
  };
  struct FreeContext {
    void operator()(llama_context* context) const noexcept;
  };
  struct Batch;

  LlamaEngine() noexcept;
  Status load(const LlamaEngineOptions& options);
  Status learn_form();
  Status compute(std::size_t n) noexcept;
  [[nodiscard]] Status check_range(SequenceId sequence, TokenRange range) const noexcept;
  [[nodiscard]] bool covers(SequenceId sequence, TokenRange range) const noexcept;
  void clear(SequenceId sequence) noexcept;

  std::unique_ptr<llama_model, FreeModel> model_;
  std::unique_ptr<llama_context, FreeContext> context_;
  std::unique_ptr<Batch> batch_arrays_;
  const llama_vocab* vocab_ = nullptr;
  StateForm form_;
  std::string model_digest_;
  std::string default_system_;
  std::uint32_t vocab_size_ = 0;
  std::uint32_t sequences_ = 0;  // the two ids above are ours: see the source
  std::uint32_t sequence_tokens_ = 0;
  std::uint32_t batch_ = 0;
  std::size_t decoded_ = 0;  // tokens of the last decode that succeeded
};

}  // namespace kvstem_llama
