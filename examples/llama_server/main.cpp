// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// kvstem_llama_server: llama.cpp and kvstem behind an API that OpenAI's clients speak. `--help` is its manual.
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>
#include <thread>

#include "kvstem/base/version.hpp"
#include "service.hpp"

namespace {

using namespace kvstem_llama;
using namespace kvstem_llama::server;
using std::chrono::milliseconds;

constexpr milliseconds kGrace{9'000};

struct Options {
  std::string model, alias, host = "127.0.0.1", key_file;
  std::vector<std::string> keys;
  std::string admin_key;
  std::uint16_t port = 8080;
  std::uint32_t slots = 4, ctx = 8192, resident = 0, block_tokens = 16, threads = 0, max_tokens = 1024,
                queue = 256;
  std::uint64_t host_bytes = 0, body_bytes = 0;
  double timeout = 600;
  bool no_kvstem = false, quiet = false;
};

[[noreturn]] void die(const std::string& why) {
  std::cerr << "kvstem_llama_server: " << why << "\n";
  std::exit(2);
}

Options read_options(int argc, char** argv) {
  Options o;
  CLI::App app(
      "Serves a GGUF model over HTTP, in the API of OpenAI's clients, and computes no prefix twice.\n"
      "  /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /health, /metrics (Prometheus);\n"
      "  / is a page that shows what is repeated and what is new\n");
  app.option_defaults()->always_capture_default();
  app.add_option("--model,-m", o.model, "GGUF file; all its layers must have full attention")->required();
  app.add_option("--alias", o.alias, "Name that clients call the model by; the file's name if not given");
  app.add_option("--host", o.host, "Address to listen on; 0.0.0.0 for all, and then with --api-key");
  app.add_option("--port,-p", o.port, "Port; 0 for any that is free");
  app.add_option("--slots,-n", o.slots, "Answers that are worked on at once")->check(CLI::Range(1, 64));
  app.add_option("--ctx,-c", o.ctx,
                 "Tokens that the engine holds, of all slots and residents together; a request (prompt and "
                 "answer) may "
                 "use all, up to what the model was made for")
      ->check(CLI::Range(256, 0x7fffff00));
  app.add_option("--kv-resident", o.resident,
                 "Tokens of --ctx that idle conversations may keep in the engine. On a CPU they slow every "
                 "step, and bringing them back from host memory takes milliseconds");
  app.add_option("--kv-host", o.host_bytes, "Host memory for what was computed")
      ->transform(CLI::AsSizeValue(false))
      ->default_val("512MiB");
  app.add_option("--block-tokens", o.block_tokens, "Tokens of a block in host memory")
      ->check(CLI::Range(1, 1024));
  app.add_flag("--no-kvstem", o.no_kvstem, "Compute every prompt anew");
  app.add_option(
      "--threads,-t", o.threads,
      "Of llama.cpp, which spin while they wait for one another: fewer than the cores where others "
      "work as well, or all get very slow; 0: as many as the machine has cores");
  app.add_option(
         "--api-key", o.keys,
         "NAME=KEY: clients must send a key (at least 4 characters); each is a tenant of its own, with a "
         "cache of its own")
      ->type_name("NAME=KEY")
      ->default_str("");
  app.add_option("--api-key-file", o.key_file,
                 "The same from a file, a line each, # for comments: other users cannot see it in ps");
  app.add_option("--admin-key", o.admin_key, "Key that sees the counters of all tenants");
  app.add_option("--max-tokens", o.max_tokens, "Longest answer to a request that does not say")
      ->check(CLI::Range(1, 1 << 30));
  app.add_option("--queue", o.queue, "Requests that may wait or run; further ones are told to come later")
      ->check(CLI::Range(1, 100000));
  app.add_option("--timeout", o.timeout, "Seconds for one request, waiting included");
  app.add_option("--max-body", o.body_bytes, "Largest request, as in 4MiB; 0: by the context")
      ->transform(CLI::AsSizeValue(false));
  app.add_flag("--quiet,-q", o.quiet, "No access log on stderr");
  app.set_version_flag("--version", "kvstem " + std::to_string(KVSTEM_VERSION_MAJOR) + "." +
                                        std::to_string(KVSTEM_VERSION_MINOR) + "." +
                                        std::to_string(KVSTEM_VERSION_PATCH));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    std::exit(app.exit(e) == 0 ? 0 : 2);
  }
  if (!(o.timeout >= 0.1 && o.timeout <= 86400)) die("--timeout must be 0.1 to 86400 seconds");
  if (o.host.empty()) die("--host must not be empty: 0.0.0.0 is all addresses");
  if (o.block_tokens > o.ctx && !o.no_kvstem)
    die("--block-tokens must be at most --ctx: no block would ever be full");
  if (o.alias.empty()) o.alias = std::filesystem::path(o.model).stem().string();
  return o;
}

std::vector<Tenant> tenants_of(const Options& o) {
  std::vector<Tenant> tenants;
  constexpr std::size_t kShortest = 4;
  const auto add = [&](std::string text, const std::string& where) {
    const auto space = [](char c) { return c == ' ' || c == '\t' || c == '\r'; };
    while (!text.empty() && space(text.back())) text.pop_back();
    text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), space));
    const std::size_t at = text.find('=');
    const std::string name = text.substr(0, at == std::string::npos ? 0 : at);
    const bool plain = std::all_of(name.begin(), name.end(), [](unsigned char c) {
      return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
    });
    // The text is not shown: it may be a key.
    if (name.empty() || !plain || text.size() - at - 1 < kShortest)
      die(where + " wants NAME=KEY, a name of letters, digits, '-', '_' and '.', and a key of at least " +
          std::to_string(kShortest) + " characters");
    if (name == "admin") die(where + ": the name admin is that of --admin-key");
    tenants.push_back({.name = name, .key = text.substr(at + 1)});
  };
  for (const std::string& key : o.keys) add(key, "--api-key");
  if (!o.key_file.empty()) {
    std::ifstream file(o.key_file);
    if (!file) die("--api-key-file: cannot read " + o.key_file);
    std::size_t number = 0;
    for (std::string line; std::getline(file, line);) {
      ++number;
      if (line.find_first_not_of(" \t\r") != std::string::npos && line[0] != '#')
        add(line, o.key_file + ", line " + std::to_string(number) + ":");
    }
    if (tenants.empty()) die("--api-key-file: there is no key in " + o.key_file);
  }
  if (!o.admin_key.empty()) {
    if (tenants.empty()) die("--admin-key goes with --api-key or --api-key-file");
    if (o.admin_key.size() < kShortest)
      die("--admin-key wants at least " + std::to_string(kShortest) + " characters");
    tenants.push_back({.name = "admin", .key = o.admin_key, .admin = true});
  }
  for (std::size_t i = 0; i < tenants.size(); ++i)
    for (std::size_t k = 0; k < i; ++k)
      if (tenants[i].key == tenants[k].key || tenants[i].name == tenants[k].name)
        die("two API keys have the same key or name: " + tenants[i].name);
  if (tenants.empty()) tenants.push_back({});
  return tenants;
}

/// One line for each request. What a client sent is shown harmless.
void log_access(const HttpRecord& r) {
  const auto plain = [](std::string_view text) {
    std::string out(text.substr(0, 200));
    for (char& c : out)
      if (c <= ' ' || c > '~') c = '?';
    return out;
  };
  char when[32];
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &utc);
  std::fprintf(stderr, "%s %s %s %s %d %llu %.3fs%s %s\n", when, r.request.peer.c_str(),
               plain(r.request.method).c_str(), plain(r.request.path).c_str(), r.status,
               static_cast<unsigned long long>(r.sent_bytes), r.seconds, r.complete ? "" : " gone",
               std::string(r.note).c_str());
}

/// A thousand clients are a thousand files.
void raise_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = read_options(argc, argv);
  const std::vector<Tenant> tenants = tenants_of(o);
  raise_file_limit();
  signal(SIGPIPE, SIG_IGN);

  std::error_code error;
  if (!std::filesystem::is_regular_file(o.model, error)) die("--model: there is no file " + o.model);
  std::fprintf(stderr, "loading %s\n", o.model.c_str());
  // Sequences beyond the slots: idle conversations, and those whose blocks are still on their way out.
  auto opened = LlamaEngine::open({.model = o.model,
                                   .cells = o.ctx,
                                   .sequences = std::min(254u, o.slots * 4 + 8),
                                   .batch = std::min(o.ctx, LlamaEngineOptions{}.batch),
                                   .threads = o.threads});
  if (!opened.ok())
    die("--model " + o.model + ": " + opened.status().message() + "\n" + LlamaEngine::last_error());
  LlamaEngine& llama = **opened;
  if (const auto text = llama.chat({}); !text.ok())
    die("this model's chat format is not among those that llama.cpp knows: " +
        std::string(text.status().message()));

  // All threads inherit this: signals come to the one that waits for them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  std::unique_ptr<Engine::Cache> cache;
  Worker::Options worker_options{
      .tenants = tenants.size(), .now = [] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
      }};
  if (!o.no_kvstem) {
    auto made = Engine::Cache::create(llama, {.block_tokens = o.block_tokens,
                                              .host_bytes = o.host_bytes,
                                              .requests = o.slots,
                                              .resident_tokens = o.resident,
                                              .announcements = std::max(16u, o.slots * 2),
                                              .max_scopes = static_cast<std::uint32_t>(tenants.size())});
    if (!made.ok()) die(std::string("--kv-host, --block-tokens: ") + made.status().message());
    cache = std::move(*made);
    for (const Tenant& tenant : tenants) {
      const auto scope = cache->open_scope(llama.scope(tenant.key));
      if (!scope.ok()) die(scope.status().message());
      worker_options.scopes.push_back(*scope);
    }
  }
  std::vector<std::string> names;
  for (const Tenant& tenant : tenants) names.push_back(tenant.name);
  Metrics metrics(std::move(names));
  Engine engine(llama, o.slots, cache.get());
  auto worker = std::make_unique<Worker>(engine, llama, cache.get(), metrics, std::move(worker_options));

  Service* service = nullptr;
  const std::size_t by_context =
      std::max<std::size_t>(1 << 20, std::size_t{32} * llama.capacity().sequence_tokens);
  HttpServer server(
      {.host = o.host,
       .port = o.port,
       .max_body_bytes = o.body_bytes > 0 ? o.body_bytes : by_context,
       .error_body =
           [](int status, std::string_view message) {
             return error_body({.status = status, .message = std::string(message)});
           }},
      [&](std::shared_ptr<Exchange> exchange) { service->handle(std::move(exchange)); },
      o.quiet ? HttpServer::Observer() : log_access);
  std::mt19937 random(std::random_device{}());
  Service api(llama, *worker, metrics, server,
              {.model = o.alias,
               .tenants = tenants,
               .default_max_tokens = o.max_tokens,
               .block_tokens = o.no_kvstem ? 0 : o.block_tokens,
               .max_body_bytes = o.body_bytes > 0 ? o.body_bytes : by_context,
               .max_waiting = o.queue,
               .request_timeout = milliseconds(static_cast<std::int64_t>(o.timeout * 1000)),
               .unix_now = [] { return static_cast<std::int64_t>(std::time(nullptr)); },
               .random = [&] { return static_cast<std::uint32_t>(random()); }});
  service = &api;
  if (const std::string error = server.listen(); !error.empty()) die(error);
  const kvstem::EngineCapacity capacity = llama.capacity();
  std::fprintf(stderr, "serving %s on http://%s:%u with %u slots, %u tokens in all, up to %u a request%s\n",
               o.alias.c_str(), o.host.c_str(), server.port(), o.slots, capacity.cells,
               capacity.sequence_tokens, o.no_kvstem ? ", without kvstem" : "");
  if (!tenants[0].key.empty()) {
    std::fprintf(stderr, "tenants:");
    for (const Tenant& tenant : tenants) std::fprintf(stderr, " %s", tenant.name.c_str());
    std::fprintf(stderr, "\n");
  } else if (o.host != "127.0.0.1" && o.host != "localhost" && o.host != "::1") {
    std::fprintf(stderr, "whoever reaches this address may use it: --api-key asks for keys\n");
  }

  // The first signal lets what runs come to its end, the second does not.
  std::atomic<bool> over{false};
  std::thread on_signal([&] {
    const timespec moment{.tv_sec = 0, .tv_nsec = 100'000'000};
    for (milliseconds grace = kGrace; !over;) {
      if (sigtimedwait(&signals, nullptr, &moment) < 0) continue;
      std::fprintf(stderr, "shutting down: what runs has %.0f s\n",
                   std::chrono::duration<double>(grace).count());
      api.shut_down(std::exchange(grace, milliseconds(0)));
    }
  });
  api.start();
  server.run();
  over = true;
  on_signal.join();
  worker.reset();  // its thread calls into the service and the server, so it ends before them
  std::fprintf(stderr, "stopped\n");
  return 0;
}
