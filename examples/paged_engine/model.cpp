// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
#include "model.hpp"

#include <fcntl.h>
#include <ggml-cpp.h>
#include <ggml-cpu.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace paged {
namespace {

struct Layer {
  ggml_tensor *attn_norm, *q, *k, *v, *attn_output, *ffn_norm, *gate, *up, *down;
};

/// A file in memory, read-only.
class Mapping {
 public:
  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (data_ != nullptr) munmap(data_, size_);
  }
  bool open(const std::string& file) {
    const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    struct stat about{};
    void* data = MAP_FAILED;
    if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && about.st_size > 0)
      data = mmap(nullptr, static_cast<std::size_t>(about.st_size), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (data == MAP_FAILED) return false;
    data_ = data;
    size_ = static_cast<std::size_t>(about.st_size);
    return true;
  }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

struct FreePool {
  void operator()(ggml_threadpool* pool) const { ggml_threadpool_free(pool); }
};

/// Takes a model's description and weights from a GGUF file. The first thing that is missing or wrong stays in `error`.
class Reader {
 public:
  Reader(const gguf_context* file, const ggml_context* tensors, std::string& error)
      : file_(file), tensors_(tensors), error_(error) {}

  void fail(const std::string& why) {
    if (error_.empty()) error_ = why;
  }
  [[nodiscard]] bool has(const char* key) const { return gguf_find_key(file_, key) >= 0; }
  std::uint32_t number(const char* key) {
    const std::int64_t id = gguf_find_key(file_, key);
    if (id >= 0 && gguf_get_kv_type(file_, id) == GGUF_TYPE_UINT32) return gguf_get_val_u32(file_, id);
    fail(std::string("the file has no number ") + key);
    return 0;
  }
  std::uint32_t number(const char* key, std::uint32_t fallback) { return has(key) ? number(key) : fallback; }
  float real(const char* key) {
    const std::int64_t id = gguf_find_key(file_, key);
    if (id >= 0 && gguf_get_kv_type(file_, id) == GGUF_TYPE_FLOAT32) return gguf_get_val_f32(file_, id);
    fail(std::string("the file has no number ") + key);
    return 0;
  }
  float real(const char* key, float fallback) { return has(key) ? real(key) : fallback; }
  std::string text(const char* key) {
    const std::int64_t id = gguf_find_key(file_, key);
    return id >= 0 && gguf_get_kv_type(file_, id) == GGUF_TYPE_STRING ? gguf_get_val_str(file_, id) : "";
  }
  /// A matrix that turns `in` numbers into `out`, or with out = 1 a vector of factors.
  ggml_tensor* tensor(const std::string& name, std::int64_t in, std::int64_t out = 1) {
    ggml_tensor* t = ggml_get_tensor(const_cast<ggml_context*>(tensors_), name.c_str());
    if (t == nullptr) return fail("the file has no tensor " + name), nullptr;
    ++used_;
    if (t->ne[0] != in || t->ne[1] != out || t->ne[2] != 1 || t->ne[3] != 1)
      fail("tensor " + name + " has another shape than the model");
    if (out == 1 ? t->type != GGML_TYPE_F32 : ggml_get_type_traits_cpu(t->type)->vec_dot == nullptr)
      fail("tensor " + name + " has a type that is not supported: " + ggml_type_name(t->type));
    return t;
  }
  /// Biases, experts, factors of the rotation: what is there and was not asked for would be missing in the result.
  void check_all_used() {
    if (gguf_get_n_tensors(file_) != used_) fail("the file has tensors that this model code does not know");
  }

 private:
  const gguf_context* file_;
  const ggml_context* tensors_;
  std::string& error_;
  std::int64_t used_ = 0;
};

Shape read_shape(Reader& reader) {
  Shape s;
  s.layers = reader.number("llama.block_count");
  s.embd = reader.number("llama.embedding_length");
  s.ff = reader.number("llama.feed_forward_length");
  s.context = reader.number("llama.context_length");
  s.heads = reader.number("llama.attention.head_count");
  s.kv_heads = reader.number("llama.attention.head_count_kv", s.heads);
  s.eps = reader.real("llama.attention.layer_norm_rms_epsilon");
  s.rope_base = reader.real("llama.rope.freq_base", 10000.0f);
  s.head_dim = reader.number("llama.attention.key_length", s.embd / std::max(s.heads, 1u));
  constexpr std::uint32_t kMost = 1u << 24;
  for (const std::uint32_t n : {s.layers, s.embd, s.ff, s.context, s.heads, s.kv_heads, s.head_dim})
    if (n == 0 || n > kMost) reader.fail("the model's sizes make no sense");
  if (s.kv_heads == 0 || s.heads % s.kv_heads != 0) reader.fail("the kv heads do not divide the heads");
  if (reader.number("llama.attention.value_length", s.head_dim) != s.head_dim)
    reader.fail("keys and values of different lengths are not supported");
  if (reader.number("llama.rope.dimension_count", s.head_dim) != s.head_dim)
    reader.fail("rotating a part of each head is not supported");
  const std::string scaling = reader.text("llama.rope.scaling.type");
  if (!(scaling.empty() || scaling == "none") || reader.has("llama.rope.scale_linear") ||
      reader.real("llama.rope.scaling.factor", 1.0f) != 1.0f)
    reader.fail("rope scaling is not supported");
  return s;
}

}  // namespace

struct Model::State {
  std::string error;
  Shape shape;
  HeadRange heads;
  Gather* gather = nullptr;  // null if this rank has all heads
  std::unique_ptr<CpuAttention> attention;

  Mapping file;
  ggml_context_ptr weights;
  std::vector<Layer> layers;
  ggml_tensor *embedding = nullptr, *norm = nullptr, *output = nullptr;

  std::unique_ptr<ggml_threadpool, FreePool> pool;  // outlives the backend
  ggml_backend_ptr backend;
  ggml_gallocr_ptr allocator;
  std::vector<char> graph_memory;
  struct Step {
    State* state;
    std::uint32_t layer;
  };
  std::vector<Step> steps;  // one for each layer: what the operations below are called with

  // Of the call that runs.
  Batch batch;
  bool gather_failed = false;
  std::vector<std::uint32_t> lengths;  // of each table

  bool load(const Options& options);
  [[nodiscard]] std::string check(const Batch& given);
  std::span<const float> forward();
  ggml_tensor* attend(ggml_context* c, ggml_cgraph* graph, std::uint32_t layer, ggml_tensor* x,
                      ggml_tensor* positions, bool result);

  // Operations in the graph. ggml calls each from all threads, `part` of `parts`, and lets them wait for each other after
  // it.
  static void op_store(ggml_tensor* out, int part, int parts, void* step) {
    const auto [self, layer] = *static_cast<Step*>(step);
    const auto* k = static_cast<const float*>(out->src[0]->data);
    const auto* v = static_cast<const float*>(out->src[1]->data);
    self->attention->store(layer, self->batch, k, v, static_cast<unsigned>(part),
                           static_cast<unsigned>(parts));
  }
  static void op_attend(ggml_tensor* out, int part, int parts, void* step) {
    const auto [self, layer] = *static_cast<Step*>(step);
    const auto* q = static_cast<const float*>(out->src[0]->data);
    self->attention->attend(layer, self->batch, q, static_cast<float*>(out->data),
                            static_cast<unsigned>(part), static_cast<unsigned>(parts));
  }
  static void op_gather(ggml_tensor* out, int part, int, void* step) {
    if (part != 0) return;
    State& self = *static_cast<Step*>(step)->state;
    const auto rows = static_cast<std::uint32_t>(out->ne[1]), width = static_cast<std::uint32_t>(out->ne[0]);
    const std::uint32_t floats = self.shape.heads / self.shape.kv_heads * self.shape.head_dim;
    const std::uint32_t begin = self.heads.begin * floats, own = self.heads.end * floats - begin;
    const auto* from = static_cast<const float*>(out->src[0]->data);
    auto* all = static_cast<float*>(out->data);
    for (std::size_t i = 0; i < rows; ++i) std::copy_n(from + i * own, own, all + i * width + begin);
    self.gather_failed = !self.gather->gather({all, std::size_t{rows} * width}, rows, width, begin, own);
  }
};

namespace {

constexpr std::size_t kNodesPerLayer = 64, kNodesBesides = 32;

/// w x. Rows are put into the third dimension, where ggml multiplies them one by one; of the second it chooses kernels by
/// how many there are, and those round differently.
ggml_tensor* multiply(ggml_context* c, ggml_tensor* w, ggml_tensor* x) {
  const std::int64_t rows = x->ne[1];
  return ggml_reshape_2d(c, ggml_mul_mat(c, w, ggml_reshape_3d(c, x, x->ne[0], 1, rows)), w->ne[1], rows);
}

ggml_tensor* normalise(ggml_context* c, ggml_tensor* x, ggml_tensor* factors, float eps) {
  return ggml_mul(c, ggml_rms_norm(c, x, eps), factors);
}

ggml_tensor* input(ggml_context* c, std::size_t n) {
  ggml_tensor* t = ggml_new_tensor_1d(c, GGML_TYPE_I32, static_cast<std::int64_t>(n));
  ggml_set_input(t);
  return t;
}

}  // namespace

/// Stores the batch's keys and values, and adds to x what the rows attend to; with `result` false it only stores.
ggml_tensor* Model::State::attend(ggml_context* c, ggml_cgraph* graph, std::uint32_t layer, ggml_tensor* x,
                                  ggml_tensor* positions, bool result) {
  const Layer& l = layers[layer];
  const std::int64_t rows = x->ne[1], dim = shape.head_dim, group = shape.heads / shape.kv_heads;
  // The product with the rows of a weight that belong to our heads, [dim][heads][rows].
  const auto project = [&](ggml_tensor* w, std::int64_t per_kv_head) {
    const std::int64_t n = (heads.end - heads.begin) * per_kv_head;
    const auto skip = static_cast<std::size_t>(heads.begin * per_kv_head * dim);
    return ggml_reshape_3d(
        c, multiply(c, ggml_view_2d(c, w, w->ne[0], n * dim, w->nb[1], skip * w->nb[1]), x), dim, n, rows);
  };
  const auto rotate = [&](ggml_tensor* t) {
    constexpr int kAdjacentPairs = 0;
    return ggml_rope_ext(c, t, positions, nullptr, static_cast<int>(dim), kAdjacentPairs,
                         static_cast<int>(shape.context), shape.rope_base, 1, 0, 1, 32, 1);
  };
  ggml_tensor* kv[] = {rotate(project(l.k, 1)), project(l.v, 1)};
  ggml_tensor* stored =
      ggml_custom_4d(c, GGML_TYPE_F32, 1, 1, 1, 1, kv, 2, op_store, GGML_N_TASKS_MAX, &steps[layer]);
  ggml_build_forward_expand(graph, stored);
  if (!result) return nullptr;
  ggml_tensor* args[] = {rotate(project(l.q, group)), stored};
  const std::int64_t own = (heads.end - heads.begin) * group * dim;
  ggml_tensor* out =
      ggml_custom_4d(c, GGML_TYPE_F32, own, rows, 1, 1, args, 2, op_attend, GGML_N_TASKS_MAX, &steps[layer]);
  if (gather != nullptr)
    out =
        ggml_custom_4d(c, GGML_TYPE_F32, shape.heads * dim, rows, 1, 1, &out, 1, op_gather, 1, &steps[layer]);
  return out;
}

std::span<const float> Model::State::forward() {
  const std::size_t n = batch.rows.size();
  const auto wanted = static_cast<std::size_t>(std::ranges::count_if(batch.rows, &Row::logits));
  const std::size_t nodes = shape.layers * kNodesPerLayer + kNodesBesides;
  const ggml_context_ptr context(
      ggml_init({.mem_size = graph_memory.size(), .mem_buffer = graph_memory.data(), .no_alloc = true}));
  ggml_context* c = context.get();
  ggml_cgraph* graph = ggml_new_graph_custom(c, nodes, false);

  ggml_tensor *tokens = input(c, n), *positions = input(c, n);
  ggml_tensor* chosen = wanted == 0 || wanted == n ? nullptr : input(c, wanted);
  ggml_tensor* x = ggml_get_rows(c, embedding, tokens);
  for (std::uint32_t i = 0; i < shape.layers; ++i) {
    const Layer& l = layers[i];
    const bool last = i + 1 == shape.layers;
    ggml_tensor* attended =
        attend(c, graph, i, normalise(c, x, l.attn_norm, shape.eps), positions, !last || wanted > 0);
    if (attended == nullptr) break;
    if (last && chosen != nullptr) {  // of the others only the state is wanted
      attended = ggml_get_rows(c, attended, chosen);
      x = ggml_get_rows(c, x, chosen);
    }
    x = ggml_add(c, x, multiply(c, l.attn_output, attended));
    ggml_tensor* h = normalise(c, x, l.ffn_norm, shape.eps);
    ggml_tensor* gated = ggml_swiglu_split(c, multiply(c, l.gate, h), multiply(c, l.up, h));
    x = ggml_add(c, x, multiply(c, l.down, gated));
  }
  ggml_tensor* logits = nullptr;
  if (wanted > 0) {
    logits = multiply(c, output, normalise(c, x, norm, shape.eps));
    ggml_set_output(logits);
    ggml_build_forward_expand(graph, logits);
  }
  if (!ggml_gallocr_alloc_graph(allocator.get(), graph)) {
    error = "no memory for a batch of " + std::to_string(n) + " rows";
    return {};
  }

  std::size_t place = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const Row& row = batch.rows[i];
    static_cast<std::int32_t*>(tokens->data)[i] = row.token;
    static_cast<std::int32_t*>(positions->data)[i] = static_cast<std::int32_t>(row.position);
    if (chosen != nullptr && row.logits)
      static_cast<std::int32_t*>(chosen->data)[place++] = static_cast<std::int32_t>(i);
  }
  gather_failed = false;
  if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS || gather_failed) {
    error = gather_failed ? "another rank is missing" : "ggml could not compute the batch";
    return {};
  }
  if (logits == nullptr) return {};
  return {static_cast<const float*>(logits->data), wanted * shape.vocab};
}

/// What is wrong with a batch; empty: nothing.
std::string Model::State::check(const Batch& given) {
  const auto block_tokens = attention->options().block_tokens, slots = attention->options().slots;
  lengths.assign(given.tables.size(), 0);
  for (const Row& row : given.rows) {
    if (row.token < 0 || static_cast<std::uint32_t>(row.token) >= shape.vocab)
      return "no such token: " + std::to_string(row.token);
    if (row.table >= given.tables.size()) return "no such table: " + std::to_string(row.table);
    if (row.position >= attention->options().tokens)
      return "position " + std::to_string(row.position) + " is behind what the model or the pool can hold";
    std::uint32_t& length = lengths[row.table];
    if (row.position < length) return "the positions of a sequence do not ascend";
    const auto table = given.tables[row.table];
    if (row.position / block_tokens >= table.size())
      return "position " + std::to_string(row.position) + " is behind its table";
    for (std::uint32_t i = (length + block_tokens - 1) / block_tokens; i <= row.position / block_tokens; ++i)
      if (table[i] < 0 || static_cast<std::uint32_t>(table[i]) >= slots)
        return "no such slot: " + std::to_string(table[i]);
    length = row.position + 1;
  }
  return {};
}

bool Model::State::load(const Options& options) {
  if (options.threads == 0 || options.threads > GGML_MAX_N_THREADS)
    return error = "the number of threads is wrong", false;
  if (!file.open(options.file)) return error = "cannot read " + options.file, false;
  ggml_context* tensors = nullptr;
  const gguf_context_ptr gguf(gguf_init_from_file(options.file.c_str(), {.no_alloc = true, .ctx = &tensors}));
  weights.reset(tensors);
  if (gguf == nullptr) return error = options.file + " is not a GGUF file", false;
  Reader reader(gguf.get(), tensors, error);
  const std::string kind = reader.text("general.architecture");
  if (kind != "llama") return error = "the model's architecture is '" + kind + "', not 'llama'", false;
  shape = read_shape(reader);
  if (!error.empty()) return false;

  for (ggml_tensor* t = ggml_get_first_tensor(tensors); t != nullptr; t = ggml_get_next_tensor(tensors, t)) {
    const std::int64_t id = gguf_find_tensor(gguf.get(), t->name);
    const std::size_t offset = gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), id);
    if (offset > file.size() || ggml_nbytes(t) > file.size() - offset)
      return error = options.file + " ends too early", false;
    t->data = file.data() + offset;
  }
  const std::int64_t embd = shape.embd, ff = shape.ff, dim = shape.head_dim;
  const std::int64_t q = shape.heads * dim, kv = shape.kv_heads * dim;
  const ggml_tensor* words = ggml_get_tensor(tensors, "token_embd.weight");
  const std::int64_t vocab = words == nullptr ? 0 : words->ne[1];
  shape.vocab = static_cast<std::uint32_t>(vocab);
  embedding = reader.tensor("token_embd.weight", embd, vocab);
  norm = reader.tensor("output_norm.weight", embd);
  const bool tied = gguf_find_tensor(gguf.get(), "output.weight") < 0;
  output = tied ? embedding : reader.tensor("output.weight", embd, vocab);
  for (std::uint32_t i = 0; i < shape.layers && error.empty(); ++i) {
    const auto name = [&](const char* what) { return "blk." + std::to_string(i) + "." + what + ".weight"; };
    layers.push_back({.attn_norm = reader.tensor(name("attn_norm"), embd),
                      .q = reader.tensor(name("attn_q"), embd, q),
                      .k = reader.tensor(name("attn_k"), embd, kv),
                      .v = reader.tensor(name("attn_v"), embd, kv),
                      .attn_output = reader.tensor(name("attn_output"), q, embd),
                      .ffn_norm = reader.tensor(name("ffn_norm"), embd),
                      .gate = reader.tensor(name("ffn_gate"), embd, ff),
                      .up = reader.tensor(name("ffn_up"), embd, ff),
                      .down = reader.tensor(name("ffn_down"), ff, embd)});
    steps.push_back({this, i});
  }
  reader.check_all_used();
  if (!error.empty()) return false;

  heads = options.heads.begin == 0 && options.heads.end == 0 ? HeadRange{0, shape.kv_heads} : options.heads;
  if (heads.begin >= heads.end || heads.end > shape.kv_heads)
    return error = "kv heads [" + std::to_string(heads.begin) + ", " + std::to_string(heads.end) + ") of " +
                   std::to_string(shape.kv_heads),
           false;
  const bool all = heads.end - heads.begin == shape.kv_heads;
  if (!all && options.gather == nullptr) return error = "some of the kv heads, but nothing to gather", false;
  gather = all ? nullptr : options.gather;
  const std::uint64_t pool_tokens =
      std::min<std::uint64_t>(shape.context, std::uint64_t{options.slots} * options.block_tokens);
  attention = CpuAttention::create({.layers = shape.layers,
                                    .kv_heads = heads.end - heads.begin,
                                    .group = shape.heads / shape.kv_heads,
                                    .head_dim = shape.head_dim,
                                    .block_tokens = options.block_tokens,
                                    .slots = options.slots,
                                    .tokens = static_cast<std::uint32_t>(pool_tokens),
                                    .parts = options.threads},
                                   error);
  if (attention == nullptr) return false;

  ggml_threadpool_params params = ggml_threadpool_params_default(static_cast<int>(options.threads));
  pool.reset(ggml_threadpool_new(&params));
  backend.reset(ggml_backend_cpu_init());
  ggml_backend_cpu_set_n_threads(backend.get(), static_cast<int>(options.threads));
  ggml_backend_cpu_set_threadpool(backend.get(), pool.get());
  ggml_backend_cpu_set_abort_callback(
      backend.get(), [](void* self) { return static_cast<State*>(self)->gather_failed; }, this);
  allocator.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend.get())));
  const std::size_t nodes = shape.layers * kNodesPerLayer + kNodesBesides;
  graph_memory.resize(nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(nodes, false));
  return true;
}

Model::Model(std::unique_ptr<State> state) : state_(std::move(state)) {}
Model::~Model() = default;

std::unique_ptr<Model> Model::load(const Options& options, std::string& error) {
  auto state = std::make_unique<State>();
  const bool loaded = state->load(options);
  error = state->error;
  return loaded ? std::unique_ptr<Model>(new Model(std::move(state))) : nullptr;
}

const Shape& Model::shape() const { return state_->shape; }
const std::string& Model::error() const { return state_->error; }
CpuAttention& Model::attention() { return *state_->attention; }

std::span<const float> Model::forward(const Batch& batch) {
  state_->error = state_->check(batch);
  if (!state_->error.empty() || batch.rows.empty()) return {};
  state_->batch = batch;
  return state_->forward();
}

bool Model::copy(std::uint32_t from_slot, std::uint32_t from_offset, std::uint32_t to_slot,
                 std::uint32_t to_offset, std::uint32_t tokens) {
  return state_->attention->copy(from_slot, from_offset, to_slot, to_offset, tokens);
}

}  // namespace paged
