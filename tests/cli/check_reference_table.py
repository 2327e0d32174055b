#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_reference_table.py KVSTEM: the hit rates that an independent simulator measured on two real traces.

The traces lie in KVSTEM_TRACE_DIR (status 77 if that is not set): docs/replay.md says what they are.
"""
import json
import os
import subprocess
import sys
import tempfile

kvstem = sys.argv[1]

# Whole file, cold start, blocks of 512 tokens, capacity in percent of the distinct whole blocks.
TABLE = {
    "conversation.jsonl.zst": {
        "capacities": ["1%", "2%", "5%", "10%", "20%", "50%"],
        "distinct": 89637,
        "infinite": .3463,
        "lru": [.0435, .0516, .1043, .1978, .2771, .3419],
        "lru2": [.0709, .0997, .1490, .2081, .2624, .3415],
        "arc": [.0512, .0644, .1098, .2030, .2695, .3415],
        "adaptive": [.0709, .0992, .1485, .2090, .2788, .3419],
        "lru, sessions end": [.0672, .1414, .2783, .3306, .3421, .3456],
        "optimum": [.1802, .2412, .3232, .3463, .3463, .3463],
        "whole paths": [.1678, .2330, .3218, .3463, .3463, .3463],
        "sessions end, at 5%": .27,
    },
    "claude-code.jsonl.zst": {
        "capacities": ["0.5%", "1%", "2%", "5%", "10%"],
        "distinct": 206086,
        "infinite": .9593,
        "lru": [.3682, .6434, .8756, .9469, .9572],
        "lru2": [.4223, .6567, .8420, .9229, .9394],
        "arc": [.3992, .6463, .8631, .9407, .9542],
        "adaptive": [.4221, .6568, .8756, .9469, .9572],
        "lru, sessions end": [.3791, .6614, .8908, .9561, .9586],
        "optimum": [.6297, .8108, .9222, .9581, .9593],
        "whole paths": [.5462, .7869, .9207, .9581, .9593],
        "sessions end, at 5%": .95,
    },
}
EXACT = 0.002  # both sides are the same rule; what differs is rounding of capacities
NEAR = 0.01  # the simulator remembers every block for ever; ours are bounded
BESIDE_LRU = 0.015  # what wrong hints may cost

folder = os.environ.get("KVSTEM_TRACE_DIR")
if not folder:
    print("KVSTEM_TRACE_DIR is not set: nothing compared")
    sys.exit(77)
wrong = 0


def check(what, value, bar, ok):
    global wrong
    wrong += not ok
    print(f"{what:66} {value:8.4f}  {bar:12} {'' if ok else '  WRONG'}")


def equal(what, value, expected):
    check(what, value, f"= {expected:.4f}", abs(value - expected) <= EXACT)


def at_least(what, value, least):
    check(what, value, f">= {least:.4f}", value >= least)


def replay(name, policies, capacities, *arguments):
    """(policy, capacity) -> what the replay says. It fails by itself if anything finds more than the optimum."""
    with tempfile.TemporaryDirectory() as scratch:
        report = os.path.join(scratch, "report")
        subprocess.run([kvstem, "replay", os.path.join(folder, name), "--policy", ",".join(policies), "--capacity",
                        ",".join(capacities), "--json", report, *arguments], check=True, stdout=subprocess.DEVNULL)
        with open(report) as file:
            return {(r["policy"], r["capacity"]): r for r in json.load(file)["results"]}


for name, table in TABLE.items():
    capacities = table["capacities"]
    plain = replay(name, ["lru", "lru2", "arc", "adaptive"], capacities)
    told = replay(name, ["lru", "adaptive"], capacities, "--hints", "session")
    mistold = replay(name, ["lru", "adaptive"], capacities, "--hints", "session", "--hint-recall", "0.8",
                     "--hint-false-ends", "0.05")
    for i, capacity in enumerate(capacities):
        at = f"{name} {capacity}: "
        result = plain["lru", capacity]
        blocks = int(float(capacity[:-1]) / 100 * table["distinct"])
        if result["capacity_blocks"] != blocks:
            print(f"{at}{result['capacity_blocks']} blocks, not {blocks}")
            wrong += 1
        equal(at + "lru", result["hit_rate"], table["lru"][i])
        equal(at + "optimum", result["optimum_hit_rate"], table["optimum"][i])
        equal(at + "whole paths", result["optimum_whole_paths_hit_rate"], table["whole paths"][i])
        equal(at + "infinite", result["infinite_cache_hit_rate"], table["infinite"])
        for policy in ("lru2", "arc", "adaptive"):
            at_least(at + policy, plain[policy, capacity]["hit_rate"], table[policy][i] - NEAR)
        better = max(plain[policy, capacity]["hit_rate"] for policy in ("lru", "lru2"))
        at_least(at + "adaptive, as the better of lru and lru2", plain["adaptive", capacity]["hit_rate"], better - NEAR)
        # What two sessions share is not given up with one of them; the simulator gives it up.
        at_least(at + "lru, sessions end", told["lru", capacity]["hit_rate"], table["lru, sessions end"][i] - NEAR)
        for policy in ("lru", "adaptive"):
            at_least(at + policy + ", a fifth of the ends not told, one false in twenty",
                     mistold[policy, capacity]["hit_rate"], result["hit_rate"] - BESIDE_LRU)
    for policy in ("lru", "adaptive"):
        at_least(f"{name} 5%: {policy}, sessions end", told[policy, "5%"]["hit_rate"], table["sessions end, at 5%"])
sys.exit(bool(wrong))
