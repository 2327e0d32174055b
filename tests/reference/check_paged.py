#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""Every step of a paged host is the one that the specification says.

    check_paged.py PROGRAM REFERENCE       random walks, which PROGRAM (paged_steps.cpp) prints
    check_paged.py --file FILE REFERENCE   what an engine's host was told and said (paged_lines.hpp)

REFERENCE is the folder of paged_host.py.
"""
import collections
import json
import subprocess
import sys

file = sys.argv[2] if sys.argv[1] == "--file" else None
reference = sys.argv[-1]
sys.dont_write_bytecode = True
sys.path.insert(0, reference)
import branching_cache  # noqa: E402
import paged_host  # noqa: E402

SEEDS = range(1, 11)
STEPS = 6000  # of each seed
LEAST = 20  # each call and each interesting thing happens that often
HOST = ("steps", "computed", "admitted", "matched", "preempted", "stalled", "followed", "copies", "drafts",
        "accepted drafts")
CACHE = ("requests", "hit", "missed", "inserted", "evicted", "failed", "duplicates", "unpublished", "refused",
         "forks", "copied")
THINGS = ("eviction", "copy on write", "duplicate", "failed copy", "fork with waiting commits",
          "refused reserve", "waits for what another computes", "follower took over", "fork at once",
          "fork that waits in line", "fork of one that was preempted", "wrong draft", "step ahead",
          "step with drafts", "drafts that found no slots", "prompt in chunks", "empty step", "request for no tokens",
          "request that reuses nothing", "request with a foreign token",
          "nobody admitted while one lacks slots", "younger one that takes nothing",
          "one goes on while others lack slots", "slots that were let go of are waited for",
          "the youngest gives way itself", "waits for its result before it is admitted",
          "waits for a lease", "waits for slots", "not tried again yet", "admitted again", "result of one that was preempted",
          "computes again, as a copy failed", "result that rests on a failed copy",
          "end of one that waits", "end of one that runs", "refused add", "refused fork", "refused propose",
          "refused accept", "refused end")


def begin(said, happened):
    cache = branching_cache.BranchingCache(said["block_tokens"], said["slots"], said["max_leases"],
                                           -(-said["max_lease_tokens"] // said["block_tokens"]))
    cache.happened = happened
    return paged_host.PagedHost(cache, said["max_lease_tokens"], said["step_tokens"], said["max_sequences"])


def step(host, said):
    """What the specification says of a step, in the words of the line."""
    width = said["width"]
    given = {tuple(w[:2]): said["rows"][i * width: (i + 1) * width] for i, w in enumerate(said["work"])}
    rows, copies = host.schedule(tuple(said["done"]), given, [tuple(name) for name in said["failed"]])
    size, want = host.cache.block_tokens, max(map(len, rows), default=0)
    free, held = len(host.cache.pool.free), len(host.cache.pool.held)
    return {
        "work": [[*s.name, b, end, drafts, first, int(samples), int(ahead)]
                 for s, b, end, drafts, first, samples, ahead in host.work],
        "tokens": host.tokens,
        "width": want,
        "rows": [slot for row in rows for slot in row + [-1] * (want - len(row))],
        "slots": [row[p // size] * size + p % size
                  for (_, b, end, *_), row in zip(host.work, rows) for p in range(b, end)],
        "begin": [b for _, b, *_ in host.work],
        "copies": [[1, 0, e.lease.index, e.block, e.slot, *e.not_before, *e.source, *e.source_ready]
                   for e in copies],
        "failed": [list(name) for name in host.failed_now],
        "host": [host.stats[name] for name in HOST],
        "cache": [host.cache.stats[name] for name in CACHE],
        "pool": [free, held, host.cache.slots - free - held],
        "lines": [len(host.running()), len(host.waiting())],
        "balanced": 1,
        "sequences": [[*s.name, len(s.tokens), s.launched, s.matched, int(s.lease is not None)]
                      for s in host.line],
    }


def answer(host, said):
    """What the specification says to this line, if there is anything to compare."""
    name = tuple(said.get("sequence", ()))
    match said["call"]:
        case "add":
            host.add(name, said["scope"], said["tokens"], said["max_new_tokens"], said["ahead"] == 1,
                     said["reuse"] == 1)
        case "fork":
            host.fork(tuple(said["of"]), name, said["tokens"], said["max_new_tokens"])
        case "propose":
            host.propose(name, said["tokens"])
        case "accept":
            host.accept(name, said["tokens"])
        case "end" | "abort":
            host.end(name, said["call"] == "abort")
        case "finished":
            host.finished(tuple(said["done"]))
        case "failed":
            host.failed(said["copy"])
        case "schedule":
            return step(host, said)
        case _:
            raise ValueError(said["call"])
    return {}


def check(lines, where, happened):
    """Compares line by line. Returns how many hosts were not followed to their end."""
    host, unsaid = None, 0
    for number, text in enumerate(lines):
        said = json.loads(text)
        happened[said["call"]] += 1
        if said["call"] == "create":
            host = begin(said, happened)
            continue
        if host is None:
            continue
        told = f"{where}, line {number + 1}: {text}\n"
        try:
            want = answer(host, said)
        except branching_cache.Unsaid:
            unsaid, host = unsaid + 1, None
            continue
        except paged_host.Refused as why:
            if "refused" not in said:
                sys.exit(f"{told}the specification refuses this call: {why}")
            happened["refused " + said["call"]] += 1
            continue
        if "refused" in said:
            sys.exit(f"{told}the specification takes this call")
        happened["step compared"] += bool(want)
        for key, value in want.items():
            if said.get(key) != value:
                sys.exit(f"{told}the host says {key} {said.get(key)}\nthe specification says {key} {value}")
    return unsaid


happened = collections.Counter({thing: 0 for thing in THINGS})
if file:
    with open(file, encoding="utf-8") as lines:
        unsaid = check(lines, file, happened)
else:
    print("seeds", *SEEDS, flush=True)
    unsaid = 0
    for seed in SEEDS:
        walk = [sys.argv[1], str(seed), str(STEPS)]
        lines = subprocess.run(walk, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        unsaid += check(lines, f"seed {seed}", happened)
for thing, times in happened.items():
    print(f"{times:7} {thing}")
print(f"{unsaid:7} of the hosts were not followed to their end: see branching_cache.Unsaid")
rare = [thing for thing, times in happened.items() if times < LEAST]
sys.exit(f"too rare: {', '.join(rare)}" if rare and not file else 0)
