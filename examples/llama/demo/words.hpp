// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// What agents read and write in the demo: our own words, put together by a seed, cut to a number of tokens of any model.
#pragma once

#include <cstdint>
#include <random>
#include <string>

#include "llama_engine.hpp"
#include "naive_cache.hpp"

namespace kvstem_llama::demo {

/// A system prompt with tools, of exactly n tokens.
Tokens system_prompt(const LlamaEngine& llama, std::size_t n);

/// n tokens of report and request, unlike any other seed's.
Tokens passage(const LlamaEngine& llama, std::size_t n, std::uint64_t seed);

}  // namespace kvstem_llama::demo
