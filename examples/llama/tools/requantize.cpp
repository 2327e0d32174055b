// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// requantize IN.gguf OUT.gguf f32|f16|bf16|q8_0: the same model with other weight types. Types that are quick to
// multiply make prefill two to three times as fast, which shows what reuse is worth when computing is cheap.
#include <llama.h>

#include <cstdio>
#include <cstring>
#include <utility>

int main(int argc, char** argv) {
  constexpr std::pair<const char*, llama_ftype> kTypes[] = {{"f32", LLAMA_FTYPE_ALL_F32},
                                                            {"f16", LLAMA_FTYPE_MOSTLY_F16},
                                                            {"bf16", LLAMA_FTYPE_MOSTLY_BF16},
                                                            {"q8_0", LLAMA_FTYPE_MOSTLY_Q8_0}};
  for (const auto& [name, type] : kTypes) {
    if (argc != 4 || std::strcmp(argv[3], name) != 0) continue;
    llama_backend_init();
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = type;
    params.allow_requantize = true;
    return llama_model_quantize(argv[1], argv[2], &params) == 0 ? 0 : 1;
  }
  std::fprintf(stderr, "usage: %s IN.gguf OUT.gguf f32|f16|bf16|q8_0\n", argv[0]);
  return 2;
}
