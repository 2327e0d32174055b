#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""sglang_lengths.py FOLDER TRACE: the lengths that SGLang's RadixCache matches, one a line.

FOLDER holds SGLang's own files, unpacked by setup.sh. The calls are those of its scheduler: `match_prefix`,
`lock`, `checkpoint` after each chunk of a prompt and when a request ends, `unlock`. Pages have 16 tokens; the
pool is a counter that only grows.

The rule about a prompt's last token is the scheduler's and not the tree's: it looks prompts up with a limit
of n - 1, and so does this program. A probe has no limit.

The scheduler hands decoded tokens to the tree when the request ends, and others find them from then on; in
vLLM and kvstem they do as soon as the block is full. What is compared here is which lengths the tree matches,
not when an engine tells it: so a checkpoint follows each `append`, as it follows each chunk.
"""
import enum
import sys
import types
from array import array

import stubs
from calls import follow, read_calls

BLOCK = 16


class Indices(list):
    """Of the pool's slots: what is used of a tensor of one dimension."""

    def __getitem__(self, at):
        return Indices(list.__getitem__(self, at)) if isinstance(at, slice) else list.__getitem__(self, at)

    def clone(self):
        return Indices(self)

    def to(self, dtype, copy):
        return Indices(self)


class NoEvents:
    def __init__(self, **_):
        pass

    def record_store(self, node):
        pass

    def record_all_cleared(self):
        pass


class Device:
    def __init__(self, _):
        pass


class ComponentType(enum.Enum):
    FULL = "full"
    SWA = "swa"
    MAMBA = "mamba"


stubs.install(
    sys.argv[1],
    ("sglang", "torch"),
    {
        "torch": {
            "device": Device,
            "empty": lambda *_, **__: Indices(),
            "cat": lambda parts: Indices(i for part in parts for i in part),
            "int64": "int64",
            "iinfo": lambda _: types.SimpleNamespace(max=2**63 - 1),
        },
        "sglang.srt.mem_cache.events": {"KVCacheEventRecorder": NoEvents, "KvEventLoraNames": object},
        "sglang.srt.mem_cache.unified_cache.component_type": {"ComponentType": ComponentType},
    },
)
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams  # noqa: E402
from sglang.srt.mem_cache.cache_init_params import CacheInitParams  # noqa: E402
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey  # noqa: E402

stubs.imported()


class Rows:
    """Which slots each request's tokens have."""

    def __init__(self):
        self.rows = {}

    @property
    def req_to_token(self):
        return self

    def __getitem__(self, at):
        row, tokens = at
        return self.rows[row][tokens]

    def write(self, at, indices):
        row, tokens = at
        assert len(self.rows[row][tokens]) == len(indices)
        self.rows[row][tokens] = indices


class Slots:
    """Endless, so nothing needs to be freed."""

    device = "cpu"

    def free_segment(self, indices, start_pos):
        assert start_pos % BLOCK == 0


class Req:
    """What the tree reads and writes of a request."""

    extra_key = None
    priority = None

    def __init__(self, name, salt, tokens):
        self.cache_salt = salt
        self.origin_input_ids = array("q", tokens)
        self.full_untruncated_fill_ids = array("q", tokens)
        self.kv = types.SimpleNamespace(
            req_pool_idx=name, swa_evict_floor=0, cache_protected_len=0, cache_inserted_len=0
        )
        self.computed = 0
        self.last_node = self.lock = None


class Peer:
    def __init__(self):
        self.rows = Rows()
        self.slots = 0
        self.tree = RadixCache(
            CacheInitParams(
                disable=False,
                req_to_token_pool=self.rows,
                token_to_kv_pool_allocator=Slots(),
                page_size=BLOCK,
            )
        )
        self.live = {}

    def match(self, salt, tokens, limit=None):
        key = RadixKey(array("q", tokens), cache_salt=salt, limit=limit)
        return self.tree.match_prefix(MatchPrefixParams(key=key))

    def start(self, name, salt, tokens):
        found = self.match(salt, tokens, limit=len(tokens) - 1)
        request = self.live[name] = Req(name, salt, tokens)
        request.last_node = found.last_device_node
        request.lock = self.tree.lock(request.last_node)
        request.computed = request.kv.cache_protected_len = found.device_prefix_len
        self.rows.rows[name] = Indices(self.tree.path_device_indices(request.last_node))
        return found.device_prefix_len

    def compute(self, name, end):
        request = self.live[name]
        if end > request.computed:
            self.rows.rows[name] += range(self.slots, self.slots + end - request.computed)
            self.slots += end - request.computed
            request.computed = end
            self.tree.checkpoint(request, up_to=end)

    def append(self, name, tokens):
        request = self.live[name]
        request.full_untruncated_fill_ids.extend(tokens)
        self.compute(name, len(request.full_untruncated_fill_ids))

    def finish(self, name):
        request = self.live.pop(name)
        self.tree.checkpoint(request, up_to=request.computed)
        self.tree.unlock(request.lock)

    def probe(self, salt, tokens):
        return self.match(salt, tokens).device_prefix_len


calls = read_calls(sys.argv[2])
follow(calls, Peer())
