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
        "optimum": [.1802, .2412, .3232, .3463, .3463, .3463],
        "whole paths": [.1678, .2330, .3218, .3463, .3463, .3463],
    },
    "claude-code.jsonl.zst": {
        "capacities": ["0.5%", "1%", "2%", "5%", "10%"],
        "distinct": 206086,
        "infinite": .9593,
        "lru": [.3682, .6434, .8756, .9469, .9572],
        "optimum": [.6297, .8108, .9222, .9581, .9593],
        "whole paths": [.5462, .7869, .9207, .9581, .9593],
    },
}
EXACT = 0.002  # both sides are the same rule; what differs is rounding of capacities

folder = os.environ.get("KVSTEM_TRACE_DIR")
if not folder:
    print("KVSTEM_TRACE_DIR is not set: nothing compared")
    sys.exit(77)
wrong = 0


def check(what, value, expected):
    global wrong
    ok = abs(value - expected) <= EXACT
    wrong += not ok
    print(f"{what:60} {value:8.4f} {expected:8.4f} {'' if ok else '  WRONG'}")


for name, table in TABLE.items():
    with tempfile.TemporaryDirectory() as scratch:
        report = os.path.join(scratch, "report")
        subprocess.run([kvstem, "replay", os.path.join(folder, name), "--policy", "lru", "--capacity",
                        ",".join(table["capacities"]), "--json", report], check=True, stdout=subprocess.DEVNULL)
        with open(report) as file:
            results = json.load(file)["results"]
    for i, (capacity, result) in enumerate(zip(table["capacities"], results, strict=True)):
        check(f"{name} lru {capacity}", result["hit_rate"], table["lru"][i])
        check(f"{name} optimum {capacity}", result["optimum_hit_rate"], table["optimum"][i])
        check(f"{name} whole paths {capacity}", result["optimum_whole_paths_hit_rate"], table["whole paths"][i])
        check(f"{name} infinite", result["infinite_cache_hit_rate"], table["infinite"])
        if result["capacity_blocks"] != int(float(capacity[:-1]) / 100 * table["distinct"]):
            print(f"{name} {capacity}: {result['capacity_blocks']} blocks")
            wrong += 1
sys.exit(bool(wrong))
