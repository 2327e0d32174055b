#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""What a prefix cache with LRU eviction does, as plainly as it can be said. The library is tested against this.

  prefix_cache.py TRACE --capacity BLOCKS[,...] [--per-request FILE] [--to REQUESTS]

A block is named by the hash ids from the prompt's beginning up to its own: equal names, equal prefixes. Whole blocks only.
"""
import argparse
import collections
import json
import subprocess
import sys


class PrefixCache:
    """Blocks in a tree. A block can go only if nothing in the cache continues it."""

    def __init__(self, capacity, parent):
        self.capacity = capacity
        self.parent = parent  # name -> name of the block before, or None
        self.blocks = collections.OrderedDict()  # name -> how many cached blocks continue it; least recently used first
        self.evicted = 0

    def request(self, path):
        """`path` names the prompt's blocks, from the first on. Returns how many of them were there."""
        found = 0
        while found < len(path) and path[found] in self.blocks:
            found += 1
        # The path counts as used from its end to its root, so that a block is never older than what continues it.
        for name in reversed(path[:found]):
            self.blocks.move_to_end(name)
        kept = path[: self.capacity]
        for i in range(found, len(kept)):
            if len(self.blocks) == self.capacity:
                self.evict()
            self.blocks[kept[i]] = 0
            if i > 0:
                self.blocks[kept[i - 1]] += 1
        for name in reversed(kept):
            self.blocks.move_to_end(name)
        return found

    def evict(self):
        """The least recently used block goes: a leaf, for what continues a block is never used later than the block. It is
        none of the request's own, which were used just now."""
        victim, children = self.blocks.popitem(last=False)
        assert children == 0, "not a leaf"
        self.evicted += 1
        if self.parent[victim] is not None:
            self.blocks[self.parent[victim]] -= 1


def read_trace(path, block_tokens, most=None):
    """A list of (input tokens, path of block names) by request, and the parent of each block."""
    command = {"zst": ["zstd", "-dcq", path], "gz": ["gzip", "-dc", path]}.get(path.rsplit(".", 1)[-1], ["cat", path])
    names, parent, requests = {}, {}, []  # names: (name of the block before, id) -> name
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for number, line in enumerate(process.stdout):
            if most is not None and number >= most:
                process.kill()
                break
            request = json.loads(line)
            path, before = [], None
            for block in request["hash_ids"][: request["input_length"] // block_tokens]:
                name = names.setdefault((before, block), len(names))
                parent[name] = before
                path.append(name)
                before = name
            requests.append((request["input_length"], path))
    return requests, parent


def replay(requests, parent, capacity, block_tokens, on_request=lambda tokens, matched: None):
    """The share of all input tokens that was found."""
    cache, tokens, hits = PrefixCache(capacity, parent), 0, 0
    for input_tokens, path in requests:
        matched = cache.request(path) * block_tokens
        on_request(input_tokens, matched)
        tokens += input_tokens
        hits += matched
    return hits / tokens


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("trace")
    arguments.add_argument("--capacity", required=True, help="blocks, or percent of the distinct blocks (5%%)")
    arguments.add_argument("--block-tokens", type=int, default=512)
    arguments.add_argument("--to", type=int, help="only the first requests")
    arguments.add_argument("--per-request", help="input and matched tokens, as JSON lines, of the last capacity")
    options = arguments.parse_args()
    requests, parent = read_trace(options.trace, options.block_tokens, options.to)
    distinct = len({name for _, path in requests for name in path})
    for text in options.capacity.split(","):
        capacity = int(float(text[:-1]) / 100 * distinct) if text.endswith("%") else int(text)
        lines = []
        rate = replay(requests, parent, capacity, options.block_tokens,
                      lambda tokens, matched: lines.append({"input_tokens": tokens, "matched_tokens": matched}))
        print(f"{capacity} {rate:.6f}", flush=True)
    if options.per_request:
        with open(options.per_request, "w") as out:
            out.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
