#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""replay_table.py KVSTEM FILE [--write]: the table of hit rates in FILE (README.md) is what the program says today.

Compares, or with --write replaces, what stands between the marks `<!-- replay table -->` and `<!-- end -->`. Both traces must
lie in KVSTEM_TRACE_DIR (status 77 if that is not set); docs/replay.md says what they are.
"""
import json
import os
import subprocess
import sys
import tempfile

BEGIN, END = "<!-- replay table -->\n", "<!-- end -->"
TRACES = [("conversation", "chat", ["2%", "5%", "20%"]), ("claude-code", "coding agents", ["0.5%", "1%", "2%", "5%"])]
COLUMNS = [("lru", "none"), ("lru2", "none"), ("arc", "none"), ("adaptive", "none"), ("adaptive", "session")]


def replay(kvstem, trace, capacities, hints):
    policies = sorted({policy for policy, told in COLUMNS if told == hints})
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report")
        subprocess.run([kvstem, "replay", trace, "--policy", ",".join(policies), "--capacity", ",".join(capacities),
                        "--hints", hints, "--json", report], check=True, stdout=subprocess.DEVNULL)
        with open(report) as file:
            return json.load(file)["results"]


def table(kvstem, traces):
    lines = ["| traffic | cache, of all blocks | lru | lru2 | arc | adaptive | adaptive, told when sessions end | optimum |",
             "|---|---|---|---|---|---|---|---|"]
    for name, what, capacities in TRACES:
        trace = os.path.join(traces, name + ".jsonl.zst")
        rows = {}
        for hints in ("none", "session"):
            for r in replay(kvstem, trace, capacities, hints):
                rows[r["policy"], hints, r["capacity"]] = r["hit_rate"]
                rows["optimum", r["capacity"]] = r["optimum_hit_rate"]
        for capacity in capacities:
            rates = [rows[policy, hints, capacity] for policy, hints in COLUMNS] + [rows["optimum", capacity]]
            lines.append(f"| {what} | {capacity.replace('%', ' %')} | " + " | ".join(f"{100 * r:.1f} %" for r in rates) + " |")
    return "\n".join(lines) + "\n"


def main():
    kvstem, path = sys.argv[1], sys.argv[2]
    traces = os.environ.get("KVSTEM_TRACE_DIR")
    if not traces:
        print("KVSTEM_TRACE_DIR is not set: nothing compared")
        return 77
    with open(path) as file:
        text = file.read()
    before, mark, rest = text.partition(BEGIN)
    old, end, after = rest.partition(END)
    if not mark or not end:
        print(f"{path} has no marks")
        return 1
    new = table(kvstem, traces)
    if "--write" in sys.argv:
        with open(path, "w") as file:
            file.write(before + BEGIN + new + END + after)
    elif new != old:
        print(f"the table in {path} is not what the program says:\n{new}")
        return 1
    return 0


sys.exit(main())
