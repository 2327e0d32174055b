// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Prints what a PagedHost is told and what it says, a line of JSON for each call, so that paged_host.py can
// be asked whether it is right. Of a host with one group of full attention and no null slot. Tell it of all
// calls that succeeded, in their order.
//
//   PagedLines lines(file);
//   lines.created(options);
//   if (const auto s = host->add(request); s.ok()) lines.added(*s, request);
//   if (host->schedule(point, step).ok()) lines.scheduled(*host, step);   // before any other call
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <span>
#include <utility>
#include <vector>

#include "kvstem/host/paged_host.hpp"

namespace kvstem::test {

class PagedLines {
 public:
  explicit PagedLines(std::FILE* file) : file_(file) {}

  /// The next call was refused; what it returned does not matter.
  PagedLines& refused() {
    refused_ = true;
    return *this;
  }

  void created(const PagedHostOptions& o) {
    live_.clear();
    begin("create");
    number("block_tokens", o.cache.block_tokens);
    number("slots", o.cache.slots);
    number("max_leases", o.cache.max_leases);
    number("max_lease_tokens", o.cache.max_lease_tokens);
    number("step_tokens", o.step_tokens);
    number("max_sequences", o.max_sequences);
    end();
  }
  void added(PagedSequence s, const PagedRequest& request) {
    if (!refused_) live_.push_back(s);
    begin("add");
    sequence("sequence", s);
    number("scope", static_cast<std::uint32_t>(request.prompt.scope));
    list("tokens", request.prompt.tokens);
    number("max_new_tokens", request.max_new_tokens);
    number("ahead", request.ahead ? 1 : 0);
    number("reuse", request.how.reuse ? 1 : 0);
    end();
  }
  void forked(PagedSequence of, PagedSequence child, std::span<const TokenId> tokens,
              std::uint32_t max_new_tokens) {
    if (!refused_) live_.push_back(child);
    begin("fork");
    sequence("of", of);
    sequence("sequence", child);
    list("tokens", tokens);
    number("max_new_tokens", max_new_tokens);
    end();
  }
  void proposed(PagedSequence s, std::span<const TokenId> drafts) { call("propose", s, drafts); }
  void accepted(PagedSequence s, std::span<const TokenId> tokens) { call("accept", s, tokens); }
  void ended(PagedSequence s) { over("end", s); }
  void aborted(PagedSequence s) { over("abort", s); }
  void finished(Point done) {
    begin("finished");
    point("done", done);
    end();
  }
  /// A copy of a step went wrong: before it so many were handed out since the host was created.
  void failed(std::uint64_t copies_before) {
    begin("failed");
    number("copy", copies_before);
    end();
  }

  /// All of the step, and how things stand behind it.
  void scheduled(PagedHost& host, const PagedStep& step) {
    for (const PagedFailure& f : step.failed) std::erase(live_, f.sequence);
    begin("schedule");
    point("done", step.done);
    array("copies", step.copies, [&](const StepEntry& e) {
      numbers({e.kind == StepKind::kCopy, e.group, e.lease, e.block, e.slot, e.not_before.timeline,
               e.not_before.value, e.from_slot, e.from_offset, e.offset, e.tokens, e.source_ready.timeline,
               e.source_ready.value});
    });
    array("work", step.work, [&](const PagedWork& w) {
      numbers({w.sequence.index, w.sequence.generation, w.begin, w.end, w.drafts, w.first_token, w.samples,
               w.ahead});
    });
    list("tokens", step.tokens);
    number("width", step.groups[0].width);
    list("rows", step.groups[0].block_tables);
    list("slots", step.groups[0].slot_mapping);
    list("begin", step.groups[0].begin);
    array("failed", step.failed,
          [&](const PagedFailure& f) { numbers({f.sequence.index, f.sequence.generation}); });
    const PagedHostStats& h = host.stats();
    list("host", std::initializer_list<std::uint64_t>{h.steps, h.computed_tokens, h.admitted,
                                                      h.matched_tokens, h.preempted, h.stalled, h.followed,
                                                      h.copies, h.drafts, h.accepted_drafts});
    const CacheStats& c = host.cache().stats();
    list("cache", std::initializer_list<std::uint64_t>{c.requests, c.hit_tokens, c.missed_tokens,
                                                       c.inserted_blocks, c.evicted_blocks, c.failed_loads,
                                                       c.duplicate_blocks, c.unpublished_blocks,
                                                       c.refused_requests, c.forks, c.copied_blocks});
    const BlockPool& pool = host.cache().pool();
    list("pool", {pool.free_slots(), pool.held_slots(), pool.used_slots()});
    list("lines", {host.running(), host.waiting()});
    number("balanced", host.cache().audit().balanced() ? 1 : 0);
    array("sequences", live_, [&](PagedSequence s) {
      const PagedProgress p = host.progress(s);
      numbers({s.index, s.generation, p.known_tokens, p.launched_tokens, p.matched_tokens, p.running});
    });
    end();
  }

 private:
  void begin(const char* call) { (void)std::fprintf(file_, "{\"call\":\"%s\"", call); }
  void end() {
    if (std::exchange(refused_, false)) number("refused", 1);
    (void)std::fprintf(file_, "}\n");
  }
  void name(const char* key) { (void)std::fprintf(file_, ",\"%s\":", key); }
  void number(const char* key, std::uint64_t value) {
    name(key);
    (void)std::fprintf(file_, "%llu", static_cast<unsigned long long>(value));
  }
  void numbers(std::initializer_list<std::uint64_t> values) { list(values); }
  template <class Range>
  void list(const Range& values) {
    const char* before = "";
    (void)std::fprintf(file_, "[");
    for (const auto value : values) {
      (void)std::fprintf(file_, "%s%lld", before, static_cast<long long>(value));
      before = ",";
    }
    (void)std::fprintf(file_, "]");
  }
  template <class Range>
  void list(const char* key, const Range& values) {
    name(key);
    list(values);
  }
  void list(const char* key, std::initializer_list<std::uint32_t> values) {
    name(key);
    list(values);
  }
  template <class Range, class Fn>
  void array(const char* key, const Range& values, Fn&& print) {
    name(key);
    const char* before = "[";
    for (const auto& value : values) {
      (void)std::fprintf(file_, "%s", before);
      print(value);
      before = ",";
    }
    (void)std::fprintf(file_, "%s]", *before == '[' ? "[" : "");
  }
  void sequence(const char* key, PagedSequence s) { list(key, {s.index, s.generation}); }
  void point(const char* key, Point p) {
    list(key, std::initializer_list<std::uint64_t>{p.timeline, p.value});
  }
  void call(const char* what, PagedSequence s, std::span<const TokenId> tokens) {
    begin(what);
    sequence("sequence", s);
    list("tokens", tokens);
    end();
  }
  void over(const char* what, PagedSequence s) {
    if (!refused_) std::erase(live_, s);
    begin(what);
    sequence("sequence", s);
    end();
  }

  std::FILE* file_;
  std::vector<PagedSequence> live_;  // have not ended
  bool refused_ = false;
};

}  // namespace kvstem::test
