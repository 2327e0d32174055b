#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""Writes a tiny model with random weights that llama.cpp loads and runs in milliseconds.

The text it produces means nothing, but its mechanics are real: attention, tokenizer, chat template. The same
arguments give the same bytes. Four architectures stand for the four kinds of memory that an engine meets:

  llama   full attention                                   mamba   a recurrent state
  gemma2  every second layer sees a sliding window only    jamba   recurrent and attention layers in turn
"""

import argparse

import gguf
import numpy as np

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ a", "i n", "e r", "o n", "Ġ the"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SSM_CONV, SSM_STATE, SSM_TIME_STEP_RANK = 4, 16, 4


def byte_characters():
    """GPT-2's map from bytes to printable characters, in the order of the byte's value."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    characters = {b: chr(b) for b in printable}
    characters.update({b: chr(256 + i) for i, b in enumerate(rest)})
    return [characters[b] for b in range(256)]


class TinyModel:
    def __init__(self, args):
        self.args = args
        self.rng = np.random.default_rng(args.seed)
        self.writer = gguf.GGUFWriter(args.out, args.arch)
        self.head_size = args.embd // args.heads
        # jamba's even layers are recurrent: they have no heads.
        self.kv_heads = [args.kv] * args.layers
        if args.arch == "mamba":
            self.kv_heads = [0] * args.layers
        elif args.arch == "jamba":
            self.kv_heads = [0 if i % 2 == 0 else args.kv for i in range(args.layers)]
        self.tokens = SPECIAL_TOKENS + byte_characters() + [m.replace(" ", "") for m in MERGES]

    def matrix(self, name, rows, columns, scale=1.0):
        x = self.rng.standard_normal((rows, columns)) * (scale / np.sqrt(columns))
        self.writer.add_tensor(name, x.astype(np.float32))

    def vector(self, name, values):
        self.writer.add_tensor(name, np.asarray(values, dtype=np.float32))

    def norm(self, name):
        self.vector(name, 1 + 0.1 * self.rng.standard_normal(self.args.embd))

    def write_parameters(self):
        a, w = self.args, self.writer
        w.add_name(f"tiny-{a.arch}-{a.seed}")
        w.add_context_length(a.ctx)
        w.add_embedding_length(a.embd)
        w.add_block_count(a.layers)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_feed_forward_length(0 if a.arch == "mamba" else a.ff)
        w.add_head_count(0 if a.arch == "mamba" else a.heads)
        if a.arch == "jamba":
            w.add_head_count_kv(self.kv_heads)
        elif a.arch != "mamba":
            w.add_head_count_kv(a.kv)
        if a.arch == "llama":
            w.add_rope_dimension_count(self.head_size)
            w.add_rope_freq_base(10000.0)
        if a.arch == "gemma2":
            w.add_key_length(self.head_size)
            w.add_value_length(self.head_size)
            w.add_sliding_window(a.swa)
            w.add_attn_logit_softcapping(50.0)
            w.add_final_logit_softcapping(30.0)
        if a.arch in ("mamba", "jamba"):
            w.add_ssm_conv_kernel(SSM_CONV)
            w.add_ssm_inner_size(2 * a.embd)
            w.add_ssm_state_size(SSM_STATE)
            w.add_ssm_time_step_rank(SSM_TIME_STEP_RANK)

    def write_tokenizer(self):
        w = self.writer
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("smollm")
        w.add_token_list(self.tokens)
        control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
        w.add_token_types([control if t in SPECIAL_TOKENS else normal for t in self.tokens])
        w.add_token_merges(MERGES)
        w.add_bos_token_id(1)
        w.add_eos_token_id(2)
        w.add_unk_token_id(0)
        w.add_pad_token_id(2)
        w.add_add_bos_token(False)
        w.add_add_space_prefix(False)
        w.add_chat_template(CHAT_TEMPLATE)

    def write_recurrent_layer(self, prefix):
        a, inner = self.args, 2 * self.args.embd
        self.matrix(prefix + "ssm_in.weight", 2 * inner, a.embd)
        self.writer.add_tensor(
            prefix + "ssm_conv1d.weight", self.rng.standard_normal((inner, SSM_CONV)).astype(np.float32) * 0.5
        )
        self.vector(prefix + "ssm_conv1d.bias", 0.1 * self.rng.standard_normal(inner))
        self.matrix(prefix + "ssm_x.weight", SSM_TIME_STEP_RANK + 2 * SSM_STATE, inner)
        self.matrix(prefix + "ssm_dt.weight", inner, SSM_TIME_STEP_RANK)
        self.vector(prefix + "ssm_dt.bias", self.rng.standard_normal(inner) - 3)
        self.writer.add_tensor(
            prefix + "ssm_a", -np.tile(np.arange(1, SSM_STATE + 1, dtype=np.float32), (inner, 1))
        )
        self.vector(prefix + "ssm_d", np.ones(inner))
        self.matrix(prefix + "ssm_out.weight", a.embd, inner)
        if a.arch == "jamba":
            self.vector(prefix + "ssm_dt_norm.weight", np.ones(SSM_TIME_STEP_RANK))
            self.vector(prefix + "ssm_b_norm.weight", np.ones(SSM_STATE))
            self.vector(prefix + "ssm_c_norm.weight", np.ones(SSM_STATE))

    def write_attention_layer(self, prefix, kv_heads):
        a = self.args
        # Queries and keys of twice the usual size make attention peaked, so that every position matters.
        self.matrix(prefix + "attn_q.weight", a.heads * self.head_size, a.embd, 2.0)
        self.matrix(prefix + "attn_k.weight", kv_heads * self.head_size, a.embd, 2.0)
        self.matrix(prefix + "attn_v.weight", kv_heads * self.head_size, a.embd)
        self.matrix(prefix + "attn_output.weight", a.embd, a.heads * self.head_size)

    def write_tensors(self):
        a = self.args
        # gemma2 multiplies its embeddings by sqrt(embd) and ties its output to them; unless they are small, the last
        # token's own embedding drowns everything else and greedy text is one token for ever.
        self.matrix("token_embd.weight", len(self.tokens), a.embd, np.sqrt(a.embd) * (0.05 if a.arch == "gemma2" else 1))
        for i in range(a.layers):
            prefix = f"blk.{i}."
            self.norm(prefix + "attn_norm.weight")
            if self.kv_heads[i] == 0:
                self.write_recurrent_layer(prefix)
            else:
                self.write_attention_layer(prefix, self.kv_heads[i])
            if a.arch == "gemma2":
                self.norm(prefix + "post_attention_norm.weight")
                self.norm(prefix + "post_ffw_norm.weight")
            if a.arch != "mamba":
                self.norm(prefix + "ffn_norm.weight")
                self.matrix(prefix + "ffn_gate.weight", a.ff, a.embd)
                self.matrix(prefix + "ffn_up.weight", a.ff, a.embd)
                self.matrix(prefix + "ffn_down.weight", a.embd, a.ff)
        self.norm("output_norm.weight")
        if a.arch != "gemma2":
            self.matrix("output.weight", len(self.tokens), a.embd, 3.0)

    def write(self):
        self.write_parameters()
        self.write_tokenizer()
        self.write_tensors()
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the GGUF file to write")
    parser.add_argument("--arch", choices=["llama", "gemma2", "mamba", "jamba"], default="llama")
    parser.add_argument("--seed", type=int, default=1, help="of the weights")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--embd", type=int, default=64, help="width of the embedding")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--kv", type=int, default=1, help="heads of keys and values")
    parser.add_argument("--ff", type=int, default=128, help="width of the feed-forward layers")
    parser.add_argument("--ctx", type=int, default=4096, help="context length that the model claims")
    parser.add_argument("--swa", type=int, default=32, help="sliding window of gemma2, in tokens")
    TinyModel(parser.parse_args()).write()


if __name__ == "__main__":
    main()
