// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// Synthetic traffic with stated properties, as a trace (trace.hpp says what its lines hold). It is no model of a particular
// service; it has what decides how well a prefix cache does: who shares what, who comes back, and when.
//
// Always: requests are in order of time. Sessions begin at random (exponential gaps), so many that the stated rate comes
// out on average; as many as are under way on average begin at the start, so that the rate holds from there on. Nothing was
// before: what a prompt extends or shares is in the trace, and sessions are young at first. Fewer requests with the same
// options are the beginning of more. A seed gives the same bytes on every machine.
//
// An id stands for the prompt up to the end of its block. Equal ids are equal blocks, and only what was really shared or
// extended has equal ids. The last id may stand for part of a block; it occurs once only, since that block holds more when
// the prompt is extended. A prompt of n tokens has ceil(n / block_tokens) ids. Every request has a session_id.
//
// Numbers below are means where nothing else is said; three in brackets are the quantiles 5%, 50% and 95%. "Found" is what
// an infinite cache finds of the tokens, for blocks of 512 tokens, one request per second and 2000 requests or more.
//
// agents: coding agents. Found: 0.93 to 0.98.
//   opening     tools and system prompt, of four kinds: 9000 (50 of 100 sessions), 12,000 (25), 6500 (15), 4200 (10)
//   turns       40 a session, geometric; each prompt is the one before, the answer to it, and what is new
//   new         seven turns of eight a tool result of 1500 tokens (46 / 500 / 6300, at most 40,000); else a user's message
//               of 290 (17 / 80 / 1700, at most 3000)
//   answers     300 tokens (30 / 120 / 1240, at most 1900); stop_reason is tool_use, or end_turn before a user's message
//               and at the session's end
//   gaps        between requests: 16 s for a tool (5.6 / 12 / 46 s, from 5 to 60 s), 300 s for a user (45 / 180 / 1000 s,
//               from 30 s to 20 min)
//   sub-agents  one tool call of 70 is a sub-agent with a session_id of its own: the opening and a task of 200 to 1500
//               tokens, 5 to 10 turns with tools, the last one end_turn. Its parent waits for it
//   context     where a prompt would have more than 180,000 tokens it begins anew with the opening and a summary of 1000
//               to 4000; the session goes on
//   extended    0.96 of the requests' prompts are extended by a later one, less those of sessions that the trace cuts off
//
// chat: conversations with people. Found: 0.42 to 0.5.
//   opening     800 tokens, the same for all
//   turns       1 to 8 a session; a first turn is followed by a second one with probability 0.35, that one by a third
//               with 0.375, and so on to 0.5; 1.57 turns
//   questions   600 tokens (18 / 170 / 2850, at most 10,000)
//   answers     350 tokens (20 / 225 / 900, at most 2500); stop_reason is end_turn
//   gaps        265 s (20 / 120 / 1200 s, from 10 s to 30 min)
//   extended    0.36, less those of sessions that the trace cuts off
//
// shared: questions about a few long documents. Found: 0.90 to 0.97.
//   documents   20, of 4000 to 30,000 tokens in equal steps; the n-th most popular has a share proportional to 1/n
//   questions   100 to 800 tokens behind the document, all equally likely; nothing of it is shared
//   answers     350 tokens, as for chat
//   extended    none; every request is a session of its own
#pragma once

#include <cstdint>
#include <ostream>

#include "progress.hpp"

namespace kvstem::cli {

enum class SyntheticKind : std::uint8_t { kAgents, kChat, kShared };

struct SyntheticOptions {
  SyntheticKind kind = SyntheticKind::kAgents;
  std::uint32_t requests = 2000;
  std::uint64_t seed = 1;
  std::uint32_t block_tokens = 512;  // 1 or more
  double requests_per_second = 1;    // 0.001 to 1000
};

/// Writes that many lines; stops early if the stream fails. Memory is needed for the sessions under way, not for what was
/// written.
void write_synthetic(const SyntheticOptions& options, std::ostream& out, Progress& progress);

}  // namespace kvstem::cli
