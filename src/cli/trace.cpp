// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "trace.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "kvstem/model/block_key.hpp"
#include "progress.hpp"

namespace kvstem::cli {
namespace {

constexpr std::uint64_t kMostTokens = 1u << 30;

/// Takes the fields of one line without building a document.
class LineFields : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit LineFields(std::vector<std::uint64_t>& ids) : ids_(ids) {}

  double timestamp = 0;
  std::uint64_t input = 0, output = 0;
  std::string session, stop;
  bool subagent = false;
  bool has_timestamp = false, has_input = false, has_output = false, has_ids = false;
  std::string wrong;  // the first thing that is not as it should be

  bool null() override { return depth_ == 1 ? optional_field() : other("null"); }
  bool boolean(bool value) override {
    if (depth_ != 1 || field_ != Field::kSubagent) return other("a truth value");
    subagent = value;
    return true;
  }
  bool number_integer(number_integer_t value) override {
    if (depth_ == 1 && field_ == Field::kTimestamp) return time(static_cast<double>(value));
    if (relevant()) return fail(name_ + " is negative");
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (depth_ == 2 && field_ == Field::kIds) {
      ids_.push_back(value);
      return true;
    }
    if (depth_ != 1) return depth_ == 0 ? other("a number") : true;
    switch (field_) {
      case Field::kTimestamp: return time(static_cast<double>(value));
      case Field::kInput:
        has_input = true;
        input = value;
        break;
      case Field::kOutput:
        has_output = true;
        output = value;
        break;
      case Field::kSession: session = std::to_string(value); break;
      case Field::kSubagent: subagent = value != 0; break;
      default: return other("a number");
    }
    return value <= kMostTokens || field_ == Field::kSession ? true : fail(name_ + " is more than 2^30");
  }
  bool number_float(number_float_t value, const string_t&) override {
    if (depth_ == 1 && field_ == Field::kTimestamp) return time(value);
    return other("a number with a fraction");
  }
  bool string(string_t& value) override {
    if (depth_ == 1 && field_ == Field::kSession) {
      session = std::move(value);
      return true;
    }
    if (depth_ == 1 && field_ == Field::kStop) {
      stop = std::move(value);
      return true;
    }
    return other("a string");
  }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override {
    if (++depth_ > 1) return relevant() ? fail(name_ + " is an object") : true;
    return true;
  }
  bool key(string_t& name) override {
    if (depth_ != 1) return true;
    name_ = std::move(name);
    field_ = Field::kOther;
    for (std::size_t i = 0; i < std::size(kNames); ++i)
      if (name_ == kNames[i]) field_ = static_cast<Field>(i);
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool start_array(std::size_t) override {
    if (depth_ == 0) return fail("is an array, not an object");
    if (++depth_ == 2 && field_ == Field::kIds) {
      if (has_ids) return fail("hash_ids stands there twice");
      has_ids = true;
      return true;
    }
    return relevant() ? fail(name_ + " holds an array") : true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    return fail("is no JSON object, from column " + std::to_string(position) + " on (cut off?)");
  }

 private:
  enum class Field : std::uint8_t { kTimestamp, kInput, kOutput, kIds, kSession, kStop, kSubagent, kOther };
  static constexpr const char* kNames[] = {"timestamp",  "input_length", "output_length", "hash_ids",
                                           "session_id", "stop_reason",  "subagent"};

  [[nodiscard]] bool relevant() const {
    return field_ == Field::kIds ? depth_ >= 1 : field_ != Field::kOther && depth_ == 1;
  }
  bool optional_field() {
    if (field_ < Field::kSession) return fail(name_ + " is null");
    return true;
  }
  bool other(const char* kind) {
    if (depth_ == 0) return fail(std::string("is ") + kind + ", not an object");
    return relevant() ? fail(name_ + (depth_ == 2 ? " holds " : " is ") + kind) : true;
  }
  bool time(double value) {
    if (!std::isfinite(value)) return fail("timestamp is not finite");
    has_timestamp = true;
    timestamp = value;
    return true;
  }
  bool fail(std::string what) {
    if (wrong.empty()) wrong = std::move(what);
    return false;
  }

  std::vector<std::uint64_t>& ids_;
  std::string name_;
  Field field_ = Field::kOther;
  int depth_ = 0;
};

StopReason stop_reason(const std::string& text) {
  if (text.empty()) return StopReason::kUnknown;
  if (text == "tool_use" || text == "tool_calls") return StopReason::kToolUse;
  if (text == "end_turn" || text == "stop") return StopReason::kEndTurn;
  return StopReason::kOther;
}

/// The block sizes that the lines so far allow.
class BlockSize {
 public:
  explicit BlockSize(std::optional<std::uint32_t> given) : given_(given) {}

  /// False if no size fits this line too.
  bool narrow(std::uint64_t tokens, std::uint64_t ids) {
    if (ids == 0) return true;
    if (given_) return ids >= tokens / *given_ && ids <= (tokens + *given_ - 1) / *given_;
    least_ = std::max(least_, tokens / (ids + 1) + 1);  // the last, part of a block, may have no id
    if (ids > 1) most_ = std::min(most_, (tokens - 1) / (ids - 1));
    return std::bit_ceil(least_) <= most_;
  }
  [[nodiscard]] std::uint32_t value() const {
    if (given_) return *given_;
    const std::uint64_t usual = 512;
    if (least_ <= usual && usual <= most_) return usual;
    return static_cast<std::uint32_t>(std::bit_ceil(least_));
  }
  [[nodiscard]] std::string complaint(std::uint64_t tokens, std::uint64_t ids) const {
    const std::string text = std::to_string(ids) + " hash_ids for " + std::to_string(tokens) + " tokens are ";
    if (given_) return text + "more, or fewer, than blocks of " + std::to_string(*given_) + " tokens allow";
    return text +
           "more than the length allows, or fewer, by any block size that is a power of two and fits the "
           "lines before; name the size with --trace-block-tokens";
  }

 private:
  std::optional<std::uint32_t> given_;
  std::uint64_t least_ = 1, most_ = kMaxBlockTokens;
};

/// The tree of all prompts. A child is mostly the one that was met last below its parent.
class Nodes {
 public:
  explicit Nodes(std::vector<std::uint32_t>& parents) : parents_(parents) {}

  std::uint32_t child(std::uint32_t parent, std::uint64_t id) {
    if (parent != Trace::kNoNode && last_child_[parent] != Trace::kNoNode && ids_[last_child_[parent]] == id)
      return last_child_[parent];
    const auto [found, is_new] =
        children_.try_emplace({parent, id}, static_cast<std::uint32_t>(parents_.size()));
    if (is_new) {
      parents_.push_back(parent);
      ids_.push_back(id);
      last_child_.push_back(Trace::kNoNode);
    }
    if (parent != Trace::kNoNode) last_child_[parent] = found->second;
    return found->second;
  }

 private:
  struct Edge {
    std::uint32_t parent;
    std::uint64_t id;
    bool operator==(const Edge&) const = default;
  };
  struct Hash {
    std::size_t operator()(const Edge& e) const {
      std::uint64_t x = (e.id + (std::uint64_t{e.parent} << 32)) * 0x9e3779b97f4a7c15ull;
      return x ^ (x >> 32);
    }
  };
  std::vector<std::uint32_t>& parents_;
  std::vector<std::uint64_t> ids_;
  std::vector<std::uint32_t> last_child_;
  std::unordered_map<Edge, std::uint32_t, Hash> children_;
};

}  // namespace

Trace read_trace(const std::string& path, std::optional<std::uint32_t> block_tokens) {
  LineReader lines(path);
  Progress progress("reading " + lines.name());
  Trace trace;
  trace.name = path;
  std::vector<std::uint64_t> ids;
  BlockSize size(block_tokens);
  std::unordered_map<std::string, std::uint32_t> sessions;
  std::string_view line;
  while (lines.next(line)) {
    progress.at(lines.fraction());
    if (line.find_first_not_of(" \t") == std::string_view::npos) continue;
    const std::size_t first = ids.size();
    LineFields fields(ids);
    const bool whole = nlohmann::json::sax_parse(line.begin(), line.end(), &fields);
    if (!whole) throw lines.error(fields.wrong);
    for (const auto& [there, name] : {std::pair{fields.has_timestamp, "timestamp"},
                                      {fields.has_input, "input_length"},
                                      {fields.has_output, "output_length"},
                                      {fields.has_ids, "hash_ids"}})
      if (!there) throw lines.error(std::string(name) + " is missing");
    const std::size_t count = ids.size() - first;
    if (!trace.requests.empty() && fields.timestamp < trace.requests.back().timestamp_ms)
      throw lines.error("time runs backwards: timestamp is smaller than the line before has");
    if (count > 0 && fields.input == 0) throw lines.error("hash_ids without tokens: input_length is 0");
    if (!size.narrow(fields.input, count)) throw lines.error(size.complaint(fields.input, count));
    if (ids.size() > std::numeric_limits<std::uint32_t>::max())
      throw lines.error("more than 2^32 blocks in all: replay the trace in parts");
    std::uint32_t session = 0;
    if (!fields.session.empty())
      session =
          sessions.try_emplace(fields.session, static_cast<std::uint32_t>(sessions.size() + 1)).first->second;
    trace.requests.push_back({.timestamp_ms = fields.timestamp,
                              .input_tokens = static_cast<std::uint32_t>(fields.input),
                              .output_tokens = static_cast<std::uint32_t>(fields.output),
                              .first_block = static_cast<std::uint32_t>(first),
                              .blocks = static_cast<std::uint32_t>(count),
                              .session = session,
                              .stop = stop_reason(fields.stop),
                              .subagent = fields.subagent});
  }
  if (trace.requests.empty()) throw InputError(lines.name() + ": holds no request");

  trace.block_tokens = size.value();
  Nodes nodes(trace.parents);
  trace.nodes.reserve(ids.size());
  for (TraceRequest& request : trace.requests) {
    const std::size_t first = request.first_block;
    request.first_block = static_cast<std::uint32_t>(trace.nodes.size());
    request.blocks = std::min(request.blocks, request.input_tokens / trace.block_tokens);
    std::uint32_t node = Trace::kNoNode;
    for (std::uint32_t b = 0; b < request.blocks; ++b)
      trace.nodes.push_back(node = nodes.child(node, ids[first + b]));
  }
  return trace;
}

std::uint32_t distinct_blocks(const Trace& trace, const TracePart& part) {
  std::vector<bool> seen(trace.distinct_blocks());
  std::uint32_t distinct = 0;
  for (std::size_t i = part.begin; i < part.end; ++i)
    for (const std::uint32_t node : trace.path(i)) {
      distinct += !seen[node];
      seen[node] = true;
    }
  return distinct;
}

}  // namespace kvstem::cli
