// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Bytes that are given back to an engine are what was taken out of it, or they are refused. The first byte chooses:
//
// THE FORM of llama.cpp's state (examples/llama/state_blob.hpp; llama.cpp itself is not needed). StateForm learns from
// a small blob that is written here. Then that blob is edited, cut and lengthened as the input says, and at last the
// input's own bytes are taken for a blob. StateForm must say of each what the plain reader below says, put cells into
// order with the rows that belong to them, and touch nothing outside (that is for the address sanitizer to see).
//
// THE WAY through host memory. The input is a sequence of operations on an opaque host: requests begin, compute,
// append, end or fail; bytes in the slots of blocks and frontiers are changed behind the host's back; the engine
// refuses some of its calls. Whatever happens, an engine is given only bytes that are as they were exported, for the
// prompt that they belong to; what a request is told that it reuses is the state of exactly that prefix; blocks that
// nothing happened to are still found, and the books are balanced.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../../examples/llama/state_blob.hpp"
#include "kvstem/host/opaque_host.hpp"
#include "kvstem/testing/digest_engine.hpp"
#include "support/index_walk.hpp"

using namespace kvstem;
using kvstem_llama::StateForm;

namespace {

using Blob = std::vector<std::byte>;

void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "not true: %s\n", what);
  std::abort();
}

struct Bytes {
  const std::uint8_t* data;
  std::size_t left;
  std::uint8_t byte() {
    if (left == 0) return 0;
    --left;
    return *data++;
  }
  /// A number below n; one byte of input, two if n needs them.
  std::uint32_t pick(std::size_t n) {
    if (n <= 1) return 0;
    std::size_t value = byte();
    if (n > 256) value |= std::size_t{byte()} << 8;
    return static_cast<std::uint32_t>(value % n);
  }
};

// ---- the form ------------------------------------------------------------------------------------------------------

struct Cell {
  std::uint32_t position, sequences;
  std::int32_t sequence;
};
struct Section {
  std::int32_t type;
  std::uint64_t row;
  std::vector<Blob> rows;  // by cell
};
/// All that a blob says.
struct State {
  std::int32_t sequence = 0;
  std::uint32_t layers = 0;
  std::vector<Cell> cells;
  std::vector<Section> sections;
};

template <class T>
void append(Blob& blob, T value) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&value);
  blob.insert(blob.end(), bytes, bytes + sizeof value);
}

constexpr std::uint32_t kMagic = 0xaf143cd8;

Blob written(const State& state) {
  Blob blob;
  append(blob, kMagic);
  append(blob, state.sequence);
  append(blob, std::uint32_t{1});
  append(blob, static_cast<std::uint32_t>(state.cells.size()));
  for (const Cell& cell : state.cells) {
    append(blob, cell.position);
    append(blob, cell.sequences);
    append(blob, cell.sequence);
  }
  append(blob, std::uint32_t{0});
  append(blob, state.layers);
  for (const Section& section : state.sections) {
    append(blob, section.type);
    append(blob, section.row);
    for (const Blob& row : section.rows) blob.insert(blob.end(), row.begin(), row.end());
  }
  return {blob.begin(), blob.end()};  // no spare room, where an overrun would stay unseen
}

/// The blob read from its first byte to its last; nothing if it is not a frame around `cells` cells.
std::optional<State> read(std::span<const std::byte> blob, std::uint32_t cells) {
  const auto has = [&](std::size_t n) { return blob.size() >= n; };
  const auto take = [&](auto& value) {
    std::memcpy(&value, blob.data(), sizeof value);
    blob = blob.subspan(sizeof value);
  };
  State state;
  std::uint32_t magic = 0, streams = 0, count = 0, transposed = 0;
  if (!has(16)) return {};
  take(magic), take(state.sequence), take(streams), take(count);
  if (magic != kMagic || streams != 1 || count != cells || cells == 0) return {};
  for (std::uint32_t i = 0; i < cells; ++i) {
    if (!has(12)) return {};
    Cell cell{};
    take(cell.position), take(cell.sequences), take(cell.sequence);
    state.cells.push_back(cell);
  }
  if (!has(8)) return {};
  take(transposed), take(state.layers);
  if (transposed != 0) return {};
  while (!blob.empty()) {
    if (!has(12)) return {};
    Section section{};
    take(section.type), take(section.row);
    if (section.row == 0) return {};
    for (std::uint32_t i = 0; i < cells; ++i) {
      if (!has(section.row)) return {};
      section.rows.emplace_back(blob.begin(), blob.begin() + static_cast<std::ptrdiff_t>(section.row));
      blob = blob.subspan(section.row);
    }
    state.sections.push_back(std::move(section));
  }
  return state;
}

bool of_one_model(const State& a, const State& b) {
  return a.layers == b.layers &&
         std::equal(a.sections.begin(), a.sections.end(), b.sections.begin(), b.sections.end(),
                    [](const Section& x, const Section& y) { return x.type == y.type && x.row == y.row; });
}

/// The state with sequence 0 and positions ascending; nothing if they are not those of `range`, each once.
std::optional<State> canonical(const State& state, TokenRange range) {
  State sorted{.sequence = 0, .layers = state.layers, .cells = {}, .sections = state.sections};
  for (Section& section : sorted.sections) section.rows.clear();
  for (std::uint32_t i = 0; i < range.size(); ++i) {
    std::size_t found = 0, at = 0;
    for (std::size_t c = 0; c < state.cells.size(); ++c)
      if (state.cells[c].position == range.begin + i && state.cells[c].sequences == 1) ++found, at = c;
    if (found != 1) return {};
    sorted.cells.push_back({range.begin + i, 1, 0});
    for (std::size_t s = 0; s < state.sections.size(); ++s)
      sorted.sections[s].rows.push_back(state.sections[s].rows[at]);
  }
  return sorted;
}

/// What a form that was learnt from `model` must say of a blob.
void look_at(const StateForm& form, const State& model, const Blob& blob, TokenRange range) {
  const std::optional<State> state = read(blob, range.size());
  std::optional<State> expected;
  if (state && of_one_model(*state, model)) expected = canonical(*state, range);
  require(!expected || form.bytes(range.size()) == blob.size(), "a blob that fits has the size of its form");
  require(form.holds(blob, range) == (expected && written(*expected) == blob),
          "holds: canonical blobs of this form and range, and only those");

  Blob own = blob;
  require(form.canonicalise(own, range) == expected.has_value(),
          "canonicalise: blobs of this form that have each position of the range, and only those");
  if (!expected) return;
  require(own == written(*expected), "canonicalise: cells in order, each with its rows");
  require(form.holds(own, range), "what was canonicalised holds its range");
  const Blob once = own;
  require(form.canonicalise(own, range) && own == once, "canonicalise: the second time nothing changes");
}

/// Learns from a blob that may be anything.
void learn_from(const Blob& blob, std::uint32_t cells, std::uint32_t begin) {
  StateForm form;
  const bool learnt = form.learn(blob, cells);
  const std::optional<State> state = read(blob, cells);
  const bool frame = state && state->layers > 0 && state->sections.size() >= state->layers &&
                     state->sections.size() <= std::uint64_t{2} * state->layers;
  const bool cells_fit = state && std::all_of(state->cells.begin(), state->cells.end(),
                                              [](const Cell& cell) { return cell.sequences == 1; });
  require(!learnt || (frame && cells_fit), "learn: from whole frames that are written as stated only");
  require(learnt || !frame || !cells_fit, "learn: from every blob that is written as stated");
  if (!learnt) return;
  require(form.bytes(cells) == blob.size(), "a form knows the size of what it was learnt from");
  look_at(form, *state, blob, {begin, begin + cells});
}

void fuzz_form(Bytes in) {
  static constexpr std::uint32_t kFirst[] = {0, 1000, 0x7ffffffc, 0xfffffffc};
  const std::uint32_t begin = kFirst[in.pick(4)] + in.pick(8), n = 1 + in.pick(6);
  State model{.sequence = 0, .layers = 2, .cells = {}, .sections = {}};
  for (std::uint32_t i = 0; i < n; ++i) model.cells.push_back({begin + i, 1, 0});
  for (std::uint32_t s = 0, sections = 2 + in.pick(3); s < sections; ++s) {  // V may be a part of K
    model.sections.push_back({static_cast<std::int32_t>(in.pick(3)), 8u + in.pick(9), {}});
    for (std::uint32_t i = 0; i < n; ++i)
      model.sections[s].rows.emplace_back(model.sections[s].row, static_cast<std::byte>(16 * s + i + 1));
  }
  const TokenRange range{begin, begin + n};
  const Blob ordered = written(model);
  StateForm form;
  require(form.learn(ordered, n), "learn: from a blob as llama.cpp writes it");
  require(form.holds(ordered, range), "holds: the blob that the form was learnt from");
  look_at(form, model, ordered, range);

  State shuffled = model;
  shuffled.sequence = static_cast<std::int32_t>(in.pick(256)) - 1;
  for (std::uint32_t i = 0; i < n; ++i) {
    const std::uint32_t other = i + in.pick(n - i);
    std::swap(shuffled.cells[i], shuffled.cells[other]);
    for (Section& section : shuffled.sections) std::swap(section.rows[i], section.rows[other]);
    shuffled.cells[i].sequence = shuffled.sequence;
  }
  const Blob foreign = written(shuffled);
  Blob own = foreign;
  require(form.canonicalise(own, range) && own == ordered, "canonicalise: one form for every order of cells");

  Blob blob = foreign;
  TokenRange asked = range;
  for (int edits = in.pick(32); edits > 0 && in.left > 0; --edits) {
    switch (in.pick(8)) {
      case 0:
        if (!blob.empty()) {
          std::byte& at = blob[in.pick(blob.size())];
          at ^= static_cast<std::byte>(in.byte());
        }
        break;
      case 1: {  // numbers that mean something, where numbers are
        const std::uint32_t numbers[] = {
            0, 1, n, n + 1, begin, begin + in.pick(n), 0x80000001, ~std::uint32_t{0}};
        const std::uint32_t value = numbers[in.pick(std::size(numbers))];
        if (blob.size() >= 4) std::memcpy(blob.data() + 4 * in.pick(blob.size() / 4), &value, sizeof value);
        break;
      }
      case 2: {
        const std::size_t size = in.pick(blob.size() + 1);
        blob = Blob(blob.begin(), blob.begin() + static_cast<std::ptrdiff_t>(size));
        break;
      }
      case 3: {
        Blob longer = blob;
        for (std::uint32_t i = in.pick(40) + 1; i > 0; --i)
          longer.push_back(static_cast<std::byte>(in.byte()));
        blob = Blob(longer.begin(), longer.end());
        break;
      }
      case 4: {  // two cells change places, their rows stay
        const std::size_t a = 16 + 12 * in.pick(n), b = 16 + 12 * in.pick(n);
        if (blob.size() >= 16 + 12 * n && a != b)
          std::swap_ranges(blob.data() + a, blob.data() + a + 12, blob.data() + b);
        break;
      }
      case 5: asked.begin += in.pick(3) - 1; break;
      case 6: asked.end += in.pick(3) - 1; break;
      case 7:
        blob = in.pick(2) == 0 ? ordered : foreign;
        asked = range;
        break;
    }
    look_at(form, model, blob, asked);
    learn_from(blob, in.pick(2) == 0 ? n : asked.size(), begin);
  }

  const std::uint32_t cells = in.pick(8) == 7 ? ~std::uint32_t{0} - in.pick(8) : in.pick(8);
  const auto* rest = reinterpret_cast<const std::byte*>(in.data);
  blob = Blob(rest, rest + in.left);
  look_at(form, model, blob, range);
  look_at(form, model, blob, {begin, begin + cells});
  learn_from(blob, cells, begin);
  // Whatever was refused before, a form can be learnt again.
  (void)form.learn(blob, cells);
  require(form.learn(ordered, n), "learn: again");
  look_at(form, model, foreign, range);
}

// ---- the way through host memory -----------------------------------------------------------------------------------

constexpr std::uint32_t kBlock = 4, kSequences = 5, kSequenceTokens = 48, kRequests = 3, kScopes = 2;
constexpr std::size_t kBlockBytes = kBlock * 8, kStepBytes = 3 * kBlockBytes;

struct Text {
  std::uint32_t scope = 0;
  std::vector<TokenId> tokens;
};

[[nodiscard]] std::uint32_t common(const Text& a, const Text& b) {
  if (a.scope != b.scope) return 0;
  const std::size_t most = std::min(a.tokens.size(), b.tokens.size());
  const auto end = a.tokens.begin() + static_cast<std::ptrdiff_t>(most);
  return static_cast<std::uint32_t>(std::mismatch(a.tokens.begin(), end, b.tokens.begin()).first -
                                    a.tokens.begin());
}

/// A digest engine that knows where its exports went, and refuses what it was told to.
class Engine : public DigestEngine {
 public:
  /// Where the host keeps an export.
  struct Place {
    std::byte* at;
    Text text;  // up to the end of what was exported
    std::uint32_t begin;
    Blob bytes;  // as they were exported; empty if nothing is there
    [[nodiscard]] bool damaged() const { return std::memcmp(at, bytes.data(), bytes.size()) != 0; }
  };
  std::vector<Place> places;     // by first use, so that the input's choice means the same in each run
  Text sequences[kSequences];    // kept by the driver
  Text incoming;                 // the prompt of the request that begins
  std::uint32_t refuse[4] = {};  // by Call: so many of the next calls
  std::uint64_t refused = 0, blocks_exported = 0;

  Engine() : DigestEngine({.cells = 1024, .sequences = kSequences, .sequence_tokens = kSequenceTokens}) {
    fail = [this](Call call) {
      std::uint32_t& left = refuse[static_cast<std::size_t>(call)];
      if (left == 0) return false;
      --left;
      ++refused;
      return true;
    };
  }

  Status export_range(SequenceId sequence, GroupId group, TokenRange range, std::span<std::byte> out) {
    auto place =
        std::find_if(places.begin(), places.end(), [&](const Place& p) { return p.at == out.data(); });
    if (place == places.end()) place = places.insert(places.end(), {out.data(), {}, 0, {}});
    place->bytes.clear();
    const Status status = DigestEngine::export_range(sequence, group, range, out);
    if (!status.ok()) return status;
    const Text& text = sequences[sequence];
    require(range.end <= text.tokens.size(), "no more is exported than was put into the sequence");
    place->text = {text.scope, {text.tokens.begin(), text.tokens.begin() + range.end}};
    place->begin = range.begin;
    place->bytes.assign(out.begin(), out.end());
    blocks_exported += range.size() == kBlock;
    return status;
  }

  Status import_range(SequenceId sequence, GroupId group, TokenRange range, std::span<const std::byte> in) {
    const auto place =
        std::find_if(places.begin(), places.end(), [&](const Place& p) { return p.at == in.data(); });
    require(place != places.end() && place->bytes.size() == in.size() && !place->damaged(),
            "what is imported is what was exported");
    require(place->begin == range.begin && place->text.tokens.size() == range.end,
            "it is imported as the range that it was");
    const std::uint32_t same = common(place->text, incoming);
    require(range.size() == kBlock ? same == range.end : same > range.begin, "it belongs to the prompt");
    return DigestEngine::import_range(sequence, group, range, in);
  }

  /// Whether the block that ends the first `tokens` tokens of the text was exported, and nothing happened to its bytes.
  /// Of several places one may be given up already; which one is the host's business, so all must be good.
  [[nodiscard]] bool kept(const Text& text, std::uint32_t tokens) const {
    bool any = false;
    for (const Place& p : places) {
      if (p.bytes.size() != kBlockBytes || p.text.tokens.size() != tokens || common(p.text, text) != tokens)
        continue;
      if (p.damaged()) return false;
      any = true;
    }
    require(any, "what is said to be ready was exported");
    return any;
  }
};
static_assert(OpaqueEngine<Engine>);

class Way {
 public:
  explicit Way(Bytes in) : in_(in) {
    const std::uint32_t kind = in_.pick(16);
    roomy_ = (kind & 1) == 0;
    auto made = OpaqueHost<Engine>::create(
        engine_, {.block_tokens = kBlock,
                  .host_bytes = slots() * kBlockBytes,
                  .requests = kRequests,
                  .resident_tokens = (kind & 2) == 0 ? 60u : 0u,
                  .frontiers = (kind & 4) == 0 ? 3u : 0u,
                  .step_bytes = kStepBytes,
                  .max_scopes = kScopes,
                  .key_function = (kind & 8) == 0 ? xxh3_key_function() : kvstem_test::eight_bit_keys()});
    require(made.ok(), "create");
    host_ = std::move(*made);
    for (std::uint32_t s = 0; s < kScopes; ++s) {
      const auto scope = host_->open_scope({.model = "m", .salt = std::to_string(s), .vocab_size = 8});
      require(scope.ok() && static_cast<std::uint32_t>(*scope) == s, "open_scope");
    }
    auto reader = host_->cache().register_reader();
    require(reader.ok(), "register_reader");
    reader_.emplace(std::move(*reader));
  }

  void run() {
    for (int i = 0; i < 300 && in_.left > 0; ++i) {
      switch (in_.pick(12)) {
        case 0:
        case 1:
        case 2: begin(); break;
        case 3:
        case 4: compute(); break;
        case 5:
        case 6: append(); break;
        case 7: end(); break;
        case 8: abort(); break;
        case 9: work(); break;
        case 10: damage(); break;
        case 11: refuse(); break;
      }
      look();
    }
    finish();
  }

 private:
  static constexpr std::uint32_t kTexts = 4;

  struct Running {
    OpaqueRequestId id;
    SequenceId sequence;
    std::uint32_t text;
    std::uint32_t have;
  };
  using Ready = std::vector<std::uint32_t>;

  [[nodiscard]] std::uint32_t slots() const { return roomy_ ? 128 : 5; }
  /// So many slots that no block has to make way.
  [[nodiscard]] bool keeps_all() const { return engine_.blocks_exported <= slots() && roomy_; }

  /// Leading tokens of each text that the cache says it has.
  Ready ready() {
    Ready tokens;
    for (const Text& text : texts_) {
      ProbeRange ranges[3];
      const auto found =
          host_->cache().probe(*reader_, {.scope = ScopeId{text.scope}, .tokens = text.tokens}, ranges);
      require(found.ok(), "probe");
      const bool any = !found->empty() && (*found)[0].presence == Presence::kReady;
      tokens.push_back(any ? (*found)[0].tokens.end : 0);
    }
    return tokens;
  }

  /// What was found `before` still is. If a load failed, `lost` tells which block of the prompt and all behind it went.
  void compare(const Ready& before, const Text* prompt = nullptr, std::uint32_t lost = 0) {
    if (!keeps_all()) return;
    const Ready after = ready();
    for (std::uint32_t t = 0; t < kTexts; ++t) {
      const bool behind = prompt != nullptr && common(texts_[t], *prompt) >= lost + kBlock;
      require(after[t] >= (behind ? std::min(before[t], lost) : before[t]), "what was good is still found");
    }
  }

  void begin() {
    const std::uint32_t t = in_.pick(kTexts);
    Text& text = texts_[t];
    const std::uint32_t how = in_.pick(32);
    if (how < 4 || text.tokens.size() > 36) {  // begins like another one
      const Text& other = texts_[in_.pick(kTexts)];
      Text fresh{in_.pick(kScopes), {}};
      const std::size_t kept = in_.pick(other.tokens.size() + 1);
      fresh.tokens.assign(other.tokens.begin(), other.tokens.begin() + static_cast<std::ptrdiff_t>(kept));
      text = fresh;
    }
    for (std::uint32_t k = 1 + in_.pick(10); k > 0 && text.tokens.size() < 40; --k)
      text.tokens.push_back(static_cast<TokenId>(in_.pick(2)));
    admit(t, {.session = t + 1u,
              .grid_tokens = how % 8 == 5 ? 2 * kBlock : 0,
              .reuse = how % 8 != 6,
              .publish = how % 16 != 7});
  }

  void admit(std::uint32_t t, OpaqueRequest request) {
    const Text text = texts_[t];
    const auto length = static_cast<std::uint32_t>(text.tokens.size());
    request.prompt = {.scope = ScopeId{text.scope}, .tokens = text.tokens};
    engine_.incoming = text;
    const Ready before = ready();
    const std::uint64_t refused = engine_.refused, failed = host_->cache().stats().failed_loads;
    std::uint32_t good = std::min(before[t], (length - 1) / kBlock * kBlock);
    for (std::uint32_t at = 0; at < good; at += kBlock)
      if (!engine_.kept(text, at + kBlock)) good = at;

    const auto a = host_->begin(request);
    const bool calm = engine_.refused == refused;
    const bool lost = host_->cache().stats().failed_loads != failed;
    if (!a.ok()) {
      const bool busy = a.status().code() == StatusCode::kExhausted;
      require(busy || (a.status().code() == StatusCode::kUnavailable && !calm), "begin fails for a reason");
      require(running_.size() < kRequests || busy, "no more requests than there may be");
      compare(before, lost ? &text : nullptr);
      return;
    }
    const std::uint32_t reused = a->reused_tokens;
    require(reused < length, "one token is left to compute");
    require(engine_.holds(a->sequence, std::span(text.tokens).first(reused)),
            "what is reused is the state of exactly this prefix");
    require(a->from_resident + a->from_host + a->from_frontier == reused,
            "all that is reused comes from somewhere");
    require(request.reuse || reused == 0, "nothing is reused against the request's will");
    require(request.grid_tokens == 0 || reused % request.grid_tokens == 0, "reuse ends on the grid");
    if (request.reuse && request.grid_tokens == 0) {
      const std::uint32_t blocks = a->from_resident + a->from_host;
      require(!calm || blocks >= good, "blocks that nothing happened to are reused");
      compare(before, lost ? &text : nullptr, blocks);
    } else {
      compare(before, lost ? &text : nullptr);
    }
    ++requests_;
    reused_ += reused;
    engine_.sequences[a->sequence] = text;
    running_.push_back({a->request, a->sequence, t, reused});
  }

  [[nodiscard]] Running* some_running() {
    return running_.empty() ? nullptr : &running_[in_.pick(running_.size())];
  }
  Text& text_of(const Running& r) { return engine_.sequences[r.sequence]; }

  void compute() {
    Running* r = some_running();
    if (r == nullptr) return;
    const auto left = static_cast<std::uint32_t>(text_of(*r).tokens.size()) - r->have;
    const std::uint32_t n = in_.pick(4) != 0 ? left : in_.pick(left + 1);
    if (left == 0) return;
    const Ready before = ready();
    for (std::uint32_t k = 0; k < n; ++k) engine_.compute(r->sequence, text_of(*r).tokens[r->have + k]);
    const bool on_grid = r->have % (2 * kBlock) == 0 && n == left && n <= 2 * kBlock;
    require(host_->computed(r->id, n, on_grid).ok(), "computed");
    r->have += n;
    compare(before);
  }

  void append() {
    Running* r = some_running();
    if (r == nullptr) return;
    Text& text = text_of(*r);
    const Ready before = ready();
    for (std::uint32_t k = 1 + in_.pick(6); k > 0; --k) {
      const auto token = static_cast<TokenId>(in_.pick(2));
      if (r->have < text.tokens.size() || r->have == kSequenceTokens) {
        require(!host_->append(r->id, {&token, 1}).ok(), "append needs the whole prompt, and room");
        break;
      }
      engine_.compute(r->sequence, token);
      text.tokens.push_back(token);
      ++r->have;
      require(host_->append(r->id, {&token, 1}).ok(), "append");
    }
    compare(before);
  }

  void end() {
    const Running* r = some_running();
    if (r == nullptr) return;
    const Running ended = *r;
    running_.erase(running_.begin() + (r - running_.data()));
    const Ready before = ready();
    const Retention retention{.keep = in_.pick(8) == 0 ? Keep::kCold : Keep::kNormal};
    require(host_->end(ended.id, retention).ok(), "end");
    require(host_->end(ended.id).code() == StatusCode::kStale, "a request ends once");
    compare(before);
    // The conversation goes on from here, if nobody else said something meanwhile.
    const Text& said = engine_.sequences[ended.sequence];
    if (common(said, texts_[ended.text]) == texts_[ended.text].tokens.size()) texts_[ended.text] = said;
  }

  void abort() {
    const Running* r = some_running();
    if (r == nullptr) return;
    const OpaqueRequestId id = r->id;
    running_.erase(running_.begin() + (r - running_.data()));
    const Ready before = ready();
    require(host_->abort(id).ok(), "abort");
    require(host_->abort(id).code() == StatusCode::kStale, "a request is aborted once");
    compare(before);
  }

  void work() {
    const Ready before = ready();
    require(host_->work() <= kStepBytes, "work keeps to its budget");
    compare(before);
  }

  /// Changes bytes of a slot; those behind what was exported to it do not matter to anybody.
  void damage() {
    if (engine_.places.empty()) return;
    Engine::Place& place = engine_.places[in_.pick(engine_.places.size())];
    switch (in_.pick(4)) {
      case 0: std::memset(place.at, 0, kBlockBytes); break;
      case 1: {
        const Engine::Place& other = engine_.places[in_.pick(engine_.places.size())];
        std::memmove(place.at, other.at, kBlockBytes);
        break;
      }
      default: {
        std::byte& at = place.at[in_.pick(kBlockBytes)];
        at ^= static_cast<std::byte>(1 << in_.pick(8));
      }
    }
  }

  void refuse() {
    const std::uint32_t call = in_.pick(4);
    engine_.refuse[call] = 1 + in_.pick(3);
  }

  void look() {
    require(engine_.mistakes == 0, "the host asks nothing impossible of the engine");
    require(host_->resident_tokens() <= 60, "residents keep to their budget");
    require(host_->cache().audit().balanced(), "the books are balanced");
  }

  void finish() {
    std::fill(std::begin(engine_.refuse), std::end(engine_.refuse), 0u);
    for (const Running& r : running_) require(host_->end(r.id).ok(), "end");
    running_.clear();
    // Frontiers are due first, so a step may have no room for a block.
    for (int i = 0; i < 100 && host_->unstored_blocks() > 0; ++i) work();
    require(host_->unstored_blocks() == 0, "every committed block is out after some steps");
    work();
    look();
    for (std::uint32_t t = 0; t < kTexts; ++t) {
      if (texts_[t].tokens.empty()) continue;
      admit(t, {.session = t + 1u});
      require(running_.size() == 1, "an idle host has room");
      require(host_->abort(running_[0].id).ok(), "abort");
      running_.clear();
      look();
    }
    const OpaqueHostStats& stats = host_->stats();
    require(stats.requests == requests_, "requests are counted");
    require(stats.resident_tokens + stats.host_tokens + stats.frontier_tokens == reused_, "reuse is counted");
    require(stats.exported_bytes == engine_.exported * 8, "exports are counted");
    require(stats.largest_step_bytes <= kStepBytes, "exports keep to their budget");
  }

  Bytes in_;
  bool roomy_ = false;
  Engine engine_;
  std::unique_ptr<OpaqueHost<Engine>> host_;
  std::optional<Cache::Reader> reader_;  // declared behind the host, so given back before it goes
  Text texts_[kTexts];
  std::vector<Running> running_;
  std::uint64_t requests_ = 0, reused_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes in{data, size};
  if (in.pick(2) == 0)
    fuzz_form(in);
  else
    Way(in).run();
  return 0;
}
