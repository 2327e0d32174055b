// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "capacity.hpp"
#include "commands.hpp"
#include "lru_curve.hpp"
#include "model_shape.hpp"
#include "output.hpp"
#include "trace_options.hpp"

namespace kvstem::cli {
namespace {

struct Options {
  TraceOptions traces;
  std::string model, device_memory, host_memory, disk, host_link, disk_link, json;
  double bytes_per_token = 0, element_bytes = 0, prefill_speed = 0, decode_speed = 0;
};

constexpr double kGiB = 0x1p30;
constexpr double kNext = 16 * kGiB;
constexpr int kPoints = 12;  // of the curve: all distinct blocks, half, a quarter, ...

/// Where state lies, the nearest first. Each holds copies of what those above it hold.
struct Tier {
  const char* name;
  double bytes;  // 0: there is none
  double link;   // bytes a second to the accelerator; 0: not known
};

/// What was asked for, understood.
struct Setup {
  double bytes_per_token = 0;
  double attention_equal_tokens = 0;  // 0: not known
  std::string model, caveat;
  std::vector<Tier> tiers;
};

Setup understand(const Options& options) {
  Setup setup;
  setup.bytes_per_token = options.bytes_per_token;
  if (!options.model.empty()) {
    const ModelShape shape = read_model_shape(options.model, options.element_bytes);
    if (setup.bytes_per_token == 0) setup.bytes_per_token = shape.kv_bytes_per_token;
    setup.attention_equal_tokens = shape.attention_equal_tokens();
    setup.model = shape.name;
    setup.caveat = shape.caveat;
  } else if (options.element_bytes > 0) {
    throw InputError("--kv-element-bytes needs --model");
  }
  if (!(setup.bytes_per_token > 0))
    throw InputError(
        "say what a token's state costs: --model (a config.json or GGUF file) or --bytes-per-token");
  const auto bytes = [](const char* option, const std::string& text) {
    return text.empty() ? 0 : parse_bytes(option, text);
  };
  setup.tiers = {
      {"accelerator", bytes("--device-memory", options.device_memory), 0},
      {"host", bytes("--host-memory", options.host_memory), bytes("--host-link", options.host_link)},
      {"disk", bytes("--disk", options.disk), bytes("--disk-link", options.disk_link)}};
  if ((options.prefill_speed > 0) != (options.decode_speed > 0))
    throw InputError("the gain needs both --prefill-speed and --decode-speed");
  return setup;
}

/// A trace under this setup.
class Plan {
 public:
  Plan(const LoadedTrace& loaded, const Setup& setup)
      : loaded_(loaded), setup_(setup), curve_(loaded.trace, loaded.part) {}

  [[nodiscard]] double block_bytes() const { return setup_.bytes_per_token * loaded_.trace.block_tokens; }
  [[nodiscard]] std::uint64_t blocks(double bytes) const {
    return static_cast<std::uint64_t>(std::min(bytes / block_bytes(), 0x1p62));
  }
  /// Of all input tokens, those that LRU finds in this many blocks.
  [[nodiscard]] double hit_rate(std::uint64_t blocks) const {
    return sum(blocks, [](double tokens) { return tokens; }) / static_cast<double>(loaded_.input_tokens);
  }
  /// Of all prefill work, what is saved by it: attention costs a token more the more lie before it.
  [[nodiscard]] double saved_work(std::uint64_t blocks) const {
    const double equal = setup_.attention_equal_tokens;
    const auto work = [equal](double tokens) { return tokens + (equal > 0 ? tokens * tokens / equal : 0); };
    double all = 0;
    for (std::size_t i = loaded_.part.counted; i < loaded_.part.end; ++i)
      all += work(loaded_.trace.requests[i].input_tokens);
    return sum(blocks, work) / all;
  }

 private:
  template <class Weight>
  [[nodiscard]] double sum(std::uint64_t blocks, Weight&& weight) const {
    double total = 0;
    for (std::size_t i = loaded_.part.counted; i < loaded_.part.end; ++i)
      total += weight(static_cast<double>(curve_.found(i - loaded_.part.begin, blocks)) *
                      loaded_.trace.block_tokens);
    return total;
  }

  const LoadedTrace& loaded_;
  const Setup& setup_;
  LruCurve curve_;
};

std::string size_of(double bytes) {
  char text[32];
  if (bytes >= 1024 * kGiB)
    std::snprintf(text, sizeof text, "%.2f TiB", bytes / 1024 / kGiB);
  else if (bytes >= kGiB)
    std::snprintf(text, sizeof text, "%.2f GiB", bytes / kGiB);
  else
    std::snprintf(text, sizeof text, "%.1f MiB", bytes / 0x1p20);
  return text;
}

/// By tier: found in it or above; a tier that is smaller than one above adds nothing.
std::vector<double> rates(const Plan& plan, const std::vector<Tier>& tiers) {
  std::vector<double> rates;
  double most = 0;
  for (const Tier& tier : tiers) {
    most = std::max(most, tier.bytes);
    rates.push_back(plan.hit_rate(plan.blocks(most)));
  }
  return rates;
}

struct Gain {
  double prefill_share, saved_work, exposed, hidden_loads, exposed_loads, ceiling;
};

Gain gain_of(const LoadedTrace& loaded, const Plan& plan, const Setup& setup, const Options& options) {
  double output = 0, most = 0;
  for (std::size_t i = loaded.part.counted; i < loaded.part.end; ++i)
    output += loaded.trace.requests[i].output_tokens;
  const auto input = static_cast<double>(loaded.input_tokens);
  const double prefill = input / options.prefill_speed, decode = output / options.decode_speed;
  const std::vector<double> found = rates(plan, setup.tiers);
  double load = 0;
  for (std::size_t t = 0; t < setup.tiers.size(); ++t) {
    most = std::max(most, setup.tiers[t].bytes);
    const double here = found[t] - (t == 0 ? 0 : found[t - 1]);
    if (setup.tiers[t].link > 0) load += here * input * setup.bytes_per_token / setup.tiers[t].link;
  }
  Gain gain{};
  gain.prefill_share = prefill / (prefill + decode);
  gain.saved_work = plan.saved_work(plan.blocks(most));
  const double saved = gain.saved_work * prefill;
  gain.exposed = saved > 0 ? load / saved : 0;
  gain.hidden_loads = 1 / (1 - gain.saved_work * gain.prefill_share);
  gain.exposed_loads = 1 / (1 - gain.saved_work * gain.prefill_share * (1 - gain.exposed));
  gain.ceiling = 1 / (1 - gain.prefill_share);
  return gain;
}

/// The smallest power-of-two part of all blocks that finds so much of what repeats.
double bytes_for(const Plan& plan, double all_bytes, double rate) {
  double bytes = all_bytes;
  while (bytes / 2 >= plan.block_bytes() && plan.hit_rate(plan.blocks(bytes / 2)) >= rate) bytes /= 2;
  return bytes;
}

std::string advice(const Plan& plan, const Setup& setup, double all_bytes, double infinite,
                   const std::optional<Gain>& gain) {
  double most = 0;
  for (const Tier& tier : setup.tiers) most = std::max(most, tier.bytes);
  const double found = plan.hit_rate(plan.blocks(most));
  const double enough = bytes_for(plan, all_bytes, 0.95 * infinite);
  if (infinite < 0.05)
    return "Little of this traffic repeats: look with `kvstem why` where prompts part, before you buy "
           "memory.";
  if (gain && gain->exposed > 1)
    return "Loading takes longer than computing again: a faster link comes first, or only the tiers above "
           "it.";
  if (gain && gain->ceiling < 1.25)
    return "Most of the time goes into decoding: no prefix cache can help much, whatever its size.";
  if (most == 0) return size_of(enough) + " find 95 % of what repeats: that is the size to begin with.";
  if (found >= 0.95 * infinite)
    return "What you have finds nearly all that repeats (95 % or more): more memory brings next to nothing.";
  return size_of(enough) + " in the largest tier would find 95 % of what repeats; you find " +
         std::to_string(static_cast<int>(std::floor(100 * found / infinite))) + " % of it.";
}

nlohmann::ordered_json report(const LoadedTrace& loaded, const Setup& setup, const Options& options) {
  const Plan plan(loaded, setup);
  for (const Tier& tier : setup.tiers)
    if (tier.bytes > 0 && plan.blocks(tier.bytes) == 0)
      throw InputError(std::string(tier.name) + " memory of " + size_of(tier.bytes) +
                       " is less than one block of " + size_of(plan.block_bytes()));
  const double all_bytes = loaded.distinct_blocks * plan.block_bytes();
  const double infinite = plan.hit_rate(loaded.distinct_blocks);
  std::printf(
      "%s: %zu requests, %llu input tokens, %u distinct blocks of %u tokens, %s of state at %.0f bytes a "
      "token%s%s\n",
      loaded.trace.name.c_str(), loaded.requests(), static_cast<unsigned long long>(loaded.input_tokens),
      loaded.distinct_blocks, loaded.trace.block_tokens, size_of(all_bytes).c_str(), setup.bytes_per_token,
      setup.model.empty() ? "" : ", ", setup.model.c_str());
  if (!setup.caveat.empty()) std::printf("Note: %s\n", setup.caveat.c_str());
  nlohmann::ordered_json result{{"trace", loaded.trace.name},
                                {"requests", loaded.requests()},
                                {"input_tokens", loaded.input_tokens},
                                {"distinct_blocks", loaded.distinct_blocks},
                                {"block_tokens", loaded.trace.block_tokens},
                                {"bytes_per_token", setup.bytes_per_token},
                                {"infinite_cache_hit_rate", infinite},
                                {"curve", nlohmann::ordered_json::array()},
                                {"tiers", nlohmann::ordered_json::array()}};

  std::printf("\n%12s %12s  %8s\n", "memory", "blocks", "hit rate");
  for (int point = kPoints; point-- > 0;) {
    const std::uint64_t blocks = loaded.distinct_blocks >> point;
    if (blocks == 0) continue;
    const double bytes = static_cast<double>(blocks) * plan.block_bytes(), rate = plan.hit_rate(blocks);
    std::printf("%12s %12llu  %8.4f  %.*s\n", size_of(bytes).c_str(), static_cast<unsigned long long>(blocks),
                rate, static_cast<int>(std::lround(40 * rate)), "########################################");
    result["curve"].push_back({{"bytes", bytes}, {"blocks", blocks}, {"hit_rate", rate}});
  }

  const std::vector<double> found = rates(plan, setup.tiers);
  const bool any = std::ranges::any_of(setup.tiers, [](const Tier& tier) { return tier.bytes > 0; });
  if (any)
    std::printf("\n%-12s %12s  %10s  %12s  %24s\n", "tier", "size", "found here", "found so far",
                "the next 16 GiB bring");
  for (std::size_t t = 0; any && t < setup.tiers.size(); ++t) {
    if (setup.tiers[t].bytes == 0) continue;
    std::vector<Tier> more = setup.tiers;
    more[t].bytes += kNext;
    const std::vector<double> then = rates(plan, more);
    const double here = found[t] - (t == 0 ? 0 : found[t - 1]);
    std::printf("%-12s %12s  %10.4f  %12.4f  %+9.2f points (%+.2f in all)\n", setup.tiers[t].name,
                size_of(setup.tiers[t].bytes).c_str(), here, found[t], 100 * (then[t] - found[t]),
                100 * (then.back() - found.back()));
    result["tiers"].push_back({{"tier", setup.tiers[t].name},
                               {"bytes", setup.tiers[t].bytes},
                               {"found_here", here},
                               {"found_so_far", found[t]},
                               {"next_16_gib_points", 100 * (then[t] - found[t])},
                               {"next_16_gib_points_in_all", 100 * (then.back() - found.back())}});
  }

  std::optional<Gain> gain;
  if (any && options.prefill_speed > 0) {
    gain = gain_of(loaded, plan, setup, options);
    std::printf(
        "\nPrefill is %.1f %% of the time without a cache; the cache saves %.1f %% of its work%s. By the law "
        "1 / (1 - saved x share):\n%.2f times the requests if loads hide behind computing",
        100 * gain->prefill_share, 100 * gain->saved_work,
        setup.attention_equal_tokens > 0 ? " (less than of its tokens: what is new attends to all before it)"
                                         : " (too much where attention counts: --model says how much)",
        gain->hidden_loads);
    if (gain->exposed > 0)
      std::printf(", %.2f times if nothing hides them (they take %.1f %% of what they save)",
                  gain->exposed_loads, 100 * gain->exposed);
    std::printf("; %.2f times is the most that any cache can bring.\n", gain->ceiling);
    result["gain"] = {{"prefill_share", gain->prefill_share},
                      {"saved_work", gain->saved_work},
                      {"attention_equal_tokens", setup.attention_equal_tokens},
                      {"loads_of_saved_time", gain->exposed},
                      {"times_if_loads_hide", gain->hidden_loads},
                      {"times_if_loads_do_not", gain->exposed_loads},
                      {"ceiling", gain->ceiling}};
  }
  if (!any && options.prefill_speed > 0)
    std::printf("\nFor the gain say how large the tiers are: --device-memory, --host-memory, --disk.\n");
  const std::string sentence = advice(plan, setup, all_bytes, infinite, gain);
  std::printf("\nAdvice: %s\n", sentence.c_str());
  result["advice"] = sentence;
  return result;
}

int run(const Options& options) {
  options.traces.check();
  const Setup setup = understand(options);
  std::vector<std::string> inputs = options.traces.paths;
  inputs.push_back(options.model);
  keep_apart(inputs, {options.json});
  std::optional<OutputFile> json;
  if (!options.json.empty()) json.emplace(options.json);
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  for (const std::string& path : options.traces.paths) {
    if (&path != options.traces.paths.data()) std::printf("\n");
    results.push_back(report(options.traces.load(path), setup, options));
  }
  std::printf(
      "\nRates are those of LRU; each tier holds copies of what is above it. The replay is open, requests "
      "come when the\n"
      "trace says: that flatters a loaded system, whose queue spreads the turns of a session apart.\n");
  if (json) {
    json->stream() << nlohmann::ordered_json{{"results", results}}.dump(1) << '\n';
    json->commit();
  }
  return 0;
}

}  // namespace

Command add_plan(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  Options& o = *options;
  o.traces.add_to(app);
  app.add_option("--model", o.model, "The model: a Hugging Face config.json or a GGUF file");
  app.add_option("--kv-element-bytes", o.element_bytes,
                 "Bytes of one element of K or V, with --model; else what the file says (2 for GGUF)")
      ->check(CLI::PositiveNumber);
  app.add_option("--bytes-per-token", o.bytes_per_token, "State of one token, in bytes; instead of --model's")
      ->check(CLI::PositiveNumber);
  app.add_option("--device-memory", o.device_memory,
                 "Accelerator memory that is left for KV, of all cards together (40GiB)");
  app.add_option("--host-memory", o.host_memory, "Host memory for KV (256GiB)");
  app.add_option("--disk", o.disk, "Disk for KV (2TiB)");
  app.add_option("--prefill-speed", o.prefill_speed,
                 "Prompt tokens a second that the engine computes at this trace's lengths; for the gain")
      ->check(CLI::PositiveNumber);
  app.add_option("--decode-speed", o.decode_speed,
                 "Output tokens a second of the whole engine, in its usual batch; for the gain")
      ->check(CLI::PositiveNumber);
  app.add_option("--host-link", o.host_link, "Bytes a second from host memory to the accelerator (50GB)");
  app.add_option("--disk-link", o.disk_link, "Bytes a second from disk to the accelerator (7GB)");
  app.add_option("--json", o.json, "Write the results to this file, as JSON");
  return [options] { return run(*options); };
}

}  // namespace kvstem::cli
