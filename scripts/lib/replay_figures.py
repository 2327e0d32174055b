# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""replay_figures.py KVSTEM [--json FILE]: how long replays and plans take, and that a replay finds what the specification
says on all of both traces in KVSTEM_TRACE_DIR. Without the traces nothing is measured.

Times are of whole programs, reading the trace included, and of the replay alone, as the program says; arms interleaved,
medians with quartiles.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 7
CAPACITY = "5%"


def timed(*command):
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report")
        begin = time.monotonic()
        subprocess.run([*command, "--json", report], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - begin
        with open(report) as file:
            return seconds, json.load(file)["results"][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kvstem")
    parser.add_argument("--json")
    args = parser.parse_args()
    traces = os.environ.get("KVSTEM_TRACE_DIR")
    checks, fields = [], {}

    def check(name, value, unit, bar, ok):
        checks.append({"name": name, "value": value, "unit": unit, "bar": bar, "ok": ok})
        print(f"{name:64} {'' if value is None else round(value, 4):>10} {unit:30} {bar:10} "
              f"{'' if ok is None else 'met' if ok else 'NOT MET'}", flush=True)

    if not traces:
        check("replay: both traces", None, "KVSTEM_TRACE_DIR is not set", "", None)
    else:
        trace = os.path.join(traces, "claude-code.jsonl.zst")
        arms = {policy: [args.kvstem, "replay", trace, "--capacity", CAPACITY, "--policy", policy]
                for policy in ("lru", "lru2", "arc", "adaptive")}
        arms["plan"] = [args.kvstem, "plan", trace, "--bytes-per-token", "1000"]
        whole, alone = {name: [] for name in arms}, {name: [] for name in arms}
        for _ in range(ROUNDS):
            for name, command in arms.items():
                seconds, result = timed(*command)
                whole[name].append(seconds)
                alone[name].append(result.get("seconds", seconds))
                fields[name] = {"hit_rate": result.get("hit_rate"), "touched_blocks": result.get("touched_blocks")}
        for name in arms:
            low, middle, high = statistics.quantiles(whole[name], n=4)
            fields[name] |= {"seconds": whole[name], "replay_seconds": alone[name]}
            unit = f"s ({low:.2f} to {high:.2f}), alone {statistics.median(alone[name]):.2f}"
            bar = {"lru": 1.5, "adaptive": 8}.get(name)
            # The replay of another policy runs that of lru as well, to compare with.
            check(f"replay: claude-code, {name}", middle, unit, "" if bar is None else f"< {bar} s",
                  None if bar is None else middle < bar)
        ratio = statistics.median(p / r for p, r in zip(whole["plan"], whole["lru"], strict=True))
        check("replay: a plan of 12 capacities", ratio, "replays of lru", "<= 2", ratio <= 2)
        root = pathlib.Path(__file__).resolve().parents[2]
        specified = subprocess.run([sys.executable, root / "tests/cli/check_specification.py", args.kvstem,
                                    root / "tests/reference", "--all-of-traces"], check=False)
        check("replay: requests that find what the specification says", None, "all of both traces", "",
              specified.returncode == 0)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"checks": checks, **fields}, indent=1))
    return 0 if all(c["ok"] is not False or "<" in c["bar"] for c in checks) else 1


sys.exit(main())
