#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_specification.py KVSTEM REFERENCE [--traces | --all-of-traces]: each request of a replay finds what the
specification says.

Without an option on 20 random traces; with one on the traces in KVSTEM_TRACE_DIR (status 77 if that is not set): on one of them
and a tenth of the other, or on all of both, which takes minutes.
"""
import collections
import json
import os
import random
import subprocess
import sys
import tempfile

kvstem, reference = sys.argv[1], sys.argv[2]
sys.dont_write_bytecode = True
sys.path.insert(0, reference)
import prefix_cache  # noqa: E402

SEED = 20261126


def replay(trace, capacity, *arguments):
    """What the program says that each request found, in tokens, and how many blocks were evicted."""
    with tempfile.TemporaryDirectory() as folder:
        lines, report = os.path.join(folder, "lines"), os.path.join(folder, "report")
        subprocess.run([kvstem, "replay", trace, "--capacity", str(capacity), "--per-request", lines, "--json", report,
                        *arguments], check=True, stdout=subprocess.DEVNULL)
        with open(lines) as file:
            found = [json.loads(line)["matched_tokens"] for line in file]
        with open(report) as file:
            return found, json.load(file)["results"][0]["evicted_blocks"]


def specified(requests, parent, capacity, block_tokens):
    cache = prefix_cache.PrefixCache(capacity, parent)
    return [cache.request(path) * block_tokens for _, path in requests], cache.evicted


def compare(what, trace, capacity, block_tokens, most=None, arguments=()):
    requests, parent = prefix_cache.read_trace(trace, block_tokens, most)
    want, want_evicted = specified(requests, parent, capacity, block_tokens)
    got, evicted = replay(trace, capacity, *arguments)
    if len(got) != len(want):
        sys.exit(f"{what}: {len(got)} requests, the specification has {len(want)}")
    for i, (a, b) in enumerate(zip(got, want)):
        if a != b:
            sys.exit(f"{what}, capacity {capacity}: request {i} found {a} tokens, the specification says {b}")
    if evicted != want_evicted:
        sys.exit(f"{what}, capacity {capacity}: evicted {evicted} blocks, the specification says {want_evicted}")
    return sum(want), want_evicted


def random_trace(path, rng):
    """Conversations that share openings, fork, repeat and change; some prompts are whole blocks exactly."""
    block_tokens = rng.choice([16, 64, 512])
    conversations, next_id, lines, seen = [], 1, [], collections.Counter()
    for time in range(rng.randrange(100, 600)):
        kind = rng.choices(["new", "turn", "again", "fork"], [2, 5, 1, 2])[0] if conversations else "new"
        seen[kind] += 1
        if kind == "new":
            opening = rng.choice(conversations)[: rng.randrange(1, 5)] if conversations and rng.random() < 0.7 else []
            ids = list(opening)
        else:
            ids = list(rng.choice(conversations))
            if kind == "fork":
                ids = ids[: rng.randrange(1, len(ids) + 1)]
        if kind != "again":
            for _ in range(rng.choice([1, 1, 2, 3, 9])):
                ids.append(next_id)
                next_id += 1
            conversations.append(ids)
        conversations = conversations[-40:]
        short = rng.choice([0, 0, rng.randrange(1, block_tokens)])  # the last id stands for part of a block
        lines.append({"timestamp": 1000 * time, "input_length": len(ids) * block_tokens - short, "output_length": 3,
                      "hash_ids": ids})
    with open(path, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return block_tokens, next_id, seen


if "--traces" not in sys.argv and "--all-of-traces" not in sys.argv:
    print("seed", SEED)
    rng = random.Random(SEED)
    total = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.jsonl")
        for number in range(20):
            block_tokens, blocks, seen = random_trace(path, rng)
            total += seen
            for capacity in (1, 3, blocks // 20 + 1, blocks // 5 + 1, blocks):
                found, evicted = compare(f"random trace {number}", path, capacity, block_tokens, None,
                                         ["--trace-block-tokens", str(block_tokens)])
                total["found blocks"] += found // block_tokens
                total["evictions"] += evicted
    print(dict(total))
    sys.exit(0 if min(total.values()) > 100 else "too little happened")

folder = os.environ.get("KVSTEM_TRACE_DIR")
if not folder:
    print("KVSTEM_TRACE_DIR is not set: nothing compared")
    sys.exit(77)
slices = [("conversation.jsonl.zst", None, [], (896, 4481)), ("claude-code.jsonl.zst", 2339, ["--to", "0.1"], (400, 2000))]
if "--all-of-traces" in sys.argv:
    slices = [("conversation.jsonl.zst", None, [], (896, 4481)), ("claude-code.jsonl.zst", None, [], (2060, 10304))]
for name, most, part, capacities in slices:
    for capacity in capacities:
        found, evicted = compare(name, os.path.join(folder, name), capacity, 512, most, part)
        print(f"{name}, {capacity} blocks: {found} tokens found, {evicted} blocks evicted; as specified")
