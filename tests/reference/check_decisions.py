#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_decisions.py PROGRAM REFERENCE: every decision of a cache is the one that the specification says.

PROGRAM prints random calls and what the cache answered (decisions.cpp); REFERENCE is the folder of branching_cache.py.
"""
import collections
import json
import subprocess
import sys

program, reference = sys.argv[1], sys.argv[2]
sys.dont_write_bytecode = True
sys.path.insert(0, reference)
import branching_cache  # noqa: E402

SEEDS = range(1, 11)
CALLS = 20000  # of each seed
LEAST = 20  # each call and each interesting thing happens that often
STATS = ("requests", "hit", "missed", "inserted", "evicted", "failed", "duplicates", "unpublished", "refused", "forks",
         "copied", "onboarded")
THINGS = ("eviction", "copy on write", "accepted copy", "duplicate", "failed load", "failed copy",
          "fork with waiting commits", "truncate into a published block", "refused reserve", "follower took over")


def as_lists(value):
    if isinstance(value, dict):
        return {key: as_lists(v) for key, v in value.items()}
    return [as_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def printed(cache, e):
    where = [e.lease.index, e.block, e.slot, e.not_before]
    return ["copy", *where, *e.source, e.source_ready] if e.source else ["load", *where, cache.name(e.lease, e.block)]


def answer(cache, said):
    """What the specification answers to the call of this line."""
    lease = cache.leases[said["lease"]] if said["call"] != "acquire" and "lease" in said else None
    given = said["leases"][str(said["lease"])][-1] if said["call"] in ("reserve", "onboard") else None
    match said["call"]:
        case "acquire":
            status, lease = cache.acquire(said["scope"], said["tokens"])
            return {"status": status, "lease": lease and lease.index}
        case "refresh":
            return {"progress": cache.refresh(lease), "status": "ok"}
        case "reserve":
            return {"status": cache.reserve(lease, said["n"], given), "not_before": lease.not_before}
        case "append":
            return {"status": cache.append(lease, said["tokens"])}
        case "commit":
            return {"status": cache.commit(lease, said["n"], tuple(said["after"]))}
        case "commit_accepted":
            return {"status": cache.commit_accepted(lease, said["offsets"], tuple(said["after"]))}
        case "onboard":
            return {"status": cache.onboard(lease, said["n"], given)}
        case "fork":
            status, child = cache.fork(lease)
            return {"status": status, "child": child and child.index}
        case "truncate":
            return {"status": cache.truncate(lease, said["n"])}
        case "release" | "release_cold":
            return {"status": cache.release(lease, said["call"] == "release_cold")}
        case "abort":
            return {"status": cache.abort(lease)}
        case "delta":
            return {"range": cache.delta(lease)}
        case "exclusive_slots":
            return {"slots": cache.exclusive_slots(lease)}
        case "reach":
            return {"status": cache.reach(tuple(said["point"]))}
        case "end_step":
            return {"status": cache.end_step(tuple(said["point"]))}
        case "take_step":
            return {"entries": [printed(cache, e) for e in cache.take_step(said["most"])]}
        case "complete":
            return {"status": cache.complete(said["entry"], said["ok"])}
    raise ValueError(said["call"])


def state(cache):
    """What every line says besides."""
    changes, cache.changes = cache.changes, []
    live = {str(r.index): [r.matched * cache.block_tokens, len(r.tokens), r.committed, r.reserved, r.table]
            for r in cache.leases if r and not r.releasing}
    free, held = len(cache.pool.free), len(cache.pool.held)
    return {"changes": changes, "pool": [free, held, cache.slots - free - held], "balanced": 1,
            "stats": [cache.stats[name] for name in STATS], "leases": live}


def check(seed, happened):
    """Compares line by line. Returns how many caches were not followed to their end."""
    lines = subprocess.run([program, str(seed), str(CALLS)], check=True, stdout=subprocess.PIPE, text=True).stdout
    cache, unsaid = None, 0
    for number, text in enumerate(lines.splitlines()):
        said = json.loads(text)
        happened[said["call"]] += 1
        if said["call"] == "create":
            cache = branching_cache.BranchingCache(*(said[k] for k in ("block_tokens", "slots", "leases", "row")))
            cache.happened = happened
            continue
        if cache is None:
            continue
        try:
            want = as_lists({**answer(cache, said), **state(cache)})
        except branching_cache.Unsaid:
            unsaid, cache = unsaid + 1, None
            continue
        for key, value in want.items():
            if said.get(key) != value:
                sys.exit(f"seed {seed}, line {number + 1}: {text}\nthe cache says {key} {said.get(key)}\n"
                         f"the specification says {key} {value}")
    return unsaid


happened = collections.Counter({thing: 0 for thing in THINGS})
print("seeds", *SEEDS, flush=True)
unsaid = sum(check(seed, happened) for seed in SEEDS)
for thing, times in happened.items():
    print(f"{times:7} {thing}")
print(f"{unsaid:7} of the caches were not followed to their end: see branching_cache.Unsaid")
rare = [thing for thing, times in happened.items() if times < LEAST]
sys.exit(f"too rare: {', '.join(rare)}" if rare else 0)
