#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""vllm_lengths.py FOLDER TRACE: the lengths that vLLM's KVCacheManager matches, one a line.

FOLDER holds vLLM's own files, unpacked by setup.sh. The calls are those of its scheduler:
`get_computed_blocks`, `allocate_slots` for each chunk and each decoded token, `free`. It publishes a chunk as
soon as it has slots; here a chunk gets them when it is computed. The pool has a block for every token
position of the trace, so that nothing is evicted.

vLLM itself never matches a prompt's last token. A probe is looked up with one more token, which is in no
vocabulary.
"""
import logging
import sys

import stubs
from calls import follow, read_calls

BLOCK = 16
LONGEST = 1 << 20


class NoStructuredOutput:
    @staticmethod
    def from_sampling_params(_):
        return None


class NoPlatform:
    @staticmethod
    def register_custom_kv_cache_specs(_):
        pass


stubs.install(
    sys.argv[1],
    ("vllm", "torch", "msgspec", "zmq", "cbor2"),
    {
        "vllm.config": {"get_current_vllm_config_or_none": lambda: None},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.platforms": {"current_platform": NoPlatform},
        "vllm.utils": {"length_from_prompt_token_ids_or_embeds": lambda tokens, _: len(tokens)},
        "vllm.utils.torch_utils": {"get_dtype_size": lambda _: 2},
        "vllm.v1.metrics.stats": {"PrefillStats": type("PrefillStats", (), {})},
        "vllm.v1.structured_output.request": {"StructuredOutputRequest": NoStructuredOutput},
        "vllm.v1.utils": {"ConstantList": lambda values: values},
    },
)
import torch  # noqa: E402
from vllm.utils.hashing import sha256  # noqa: E402
from vllm.v1.core.kv_cache_manager import KVCacheManager  # noqa: E402
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec  # noqa: E402
from vllm.v1.request import Request, RequestStatus  # noqa: E402

stubs.imported()


class SamplingParams:
    """What a Request reads of it."""

    max_tokens = LONGEST
    extra_args = None
    skip_reading_prefix_cache = None


class Peer:
    def __init__(self, blocks):
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(BLOCK, sha256)
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float16)
        group = KVCacheGroupSpec(["layer"], spec)
        self.manager = KVCacheManager(
            KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[group]),
            max_model_len=LONGEST,
            scheduler_block_size=BLOCK,
            hash_block_size=BLOCK,
        )
        self.live = {}

    def request(self, name, salt, tokens):
        return Request(
            request_id=name,
            prompt_token_ids=tokens,
            sampling_params=SamplingParams(),
            pooling_params=None,
            cache_salt=salt,
            block_hasher=self.hasher,
        )

    def slots(self, request, *args):
        if self.manager.allocate_slots(request, *args) is None:
            sys.exit("vLLM's pool is not endless")

    def start(self, name, salt, tokens):
        request = self.request(name, salt, tokens)
        blocks, matched, _ = self.manager.get_computed_blocks(request)
        self.live[name] = (request, matched, blocks)
        return matched

    def compute(self, name, end):
        request, matched, blocks = self.live[name]
        if blocks is not None and end > matched:  # the first chunk takes what was found
            self.slots(request, end - matched, matched, blocks)
            request.num_computed_tokens = end
            self.live[name] = (request, matched, None)
        elif blocks is None and end > request.num_computed_tokens:
            self.slots(request, end - request.num_computed_tokens)
            request.num_computed_tokens = end

    def append(self, name, tokens):
        request = self.live[name][0]
        for token in tokens:
            request.append_output_token_ids(token)
            self.slots(request, 1)
            request.num_computed_tokens += 1

    def finish(self, name):
        request = self.live.pop(name)[0]
        request.status = RequestStatus.FINISHED_STOPPED
        self.manager.free(request)

    def probe(self, salt, tokens):
        return self.manager.get_computed_blocks(self.request("probe", salt, tokens + [-1]))[1]


calls = read_calls(sys.argv[2])
follow(calls, Peer(blocks=1 + sum(len(words) for words in calls)))
