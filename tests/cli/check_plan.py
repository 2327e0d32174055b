#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_plan.py KVSTEM: `plan` and `why` say what `replay` finds, and the gain is what the law says.

On synthetic traffic, and on the traces in KVSTEM_TRACE_DIR if that is set.
"""
import json
import math
import os
import subprocess
import sys
import tempfile

kvstem = sys.argv[1]
wrong = []
GIB = 2**30


def check(what, ok, *values):
    print(f"{what:70} {' '.join(str(v) for v in values)}{'' if ok else '  WRONG'}")
    if not ok:
        wrong.append(what)


def close(a, b, by=1e-9):
    return math.isclose(a, b, rel_tol=by, abs_tol=by)


def results(command, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report")
        subprocess.run([kvstem, command, *arguments, "--json", report], check=True, stdout=subprocess.DEVNULL)
        with open(report) as file:
            return json.load(file)["results"]


def compare(name, trace, capacities):
    bytes_per_token = 1000
    plan = results("plan", trace, "--bytes-per-token", str(bytes_per_token))[0]
    check(f"{name}: points of the curve", len(plan["curve"]) == 12, len(plan["curve"]))
    block_bytes = plan["block_tokens"] * bytes_per_token
    blocks = [point["blocks"] for point in plan["curve"] if point["blocks"] > plan["distinct_blocks"] // 200]
    replayed = {r["capacity_blocks"]: r for r in results("replay", trace, "--capacity", ",".join(map(str, blocks)))}
    for point in plan["curve"]:
        if point["blocks"] in replayed:
            rate = replayed[point["blocks"]]["hit_rate"]
            check(f"{name}: {point['blocks']} blocks", close(point["hit_rate"], rate), point["hit_rate"], rate)
    # Tiers: each finds what a cache of the largest size so far does, and what comes next is a larger cache.
    device, host = (c * plan["distinct_blocks"] // 100 * block_bytes for c in capacities)
    tiers = results("plan", trace, "--bytes-per-token", str(bytes_per_token), "--device-memory", f"{device}B",
                    "--host-memory", f"{host}B")[0]["tiers"]
    sizes = [b // block_bytes for b in (device, host, device + 16 * GIB, host + 16 * GIB)]
    rate = {r["capacity_blocks"]: r["hit_rate"]
            for r in results("replay", trace, "--capacity", ",".join(str(s) for s in sorted(set(sizes))))}
    check(f"{name}: accelerator", close(tiers[0]["found_so_far"], rate[sizes[0]]), tiers[0]["found_so_far"])
    check(f"{name}: host", close(tiers[1]["found_here"], rate[sizes[1]] - rate[sizes[0]]), tiers[1]["found_here"])
    for tier, more, now in ((tiers[0], sizes[2], sizes[0]), (tiers[1], sizes[3], sizes[1])):
        points = 100 * (rate[more] - rate[now])
        check(f"{name}: the next 16 GiB of {tier['tier']}", close(tier["next_16_gib_points"], points), points)

    for capacity in ("100%", f"{capacities[0]}%"):
        why = results("why", trace, "--capacity", capacity)[0]
        replay = results("replay", trace, "--capacity", capacity)[0]
        check(f"{name}: why, found at {capacity}", why["found_tokens"] == replay["hit_tokens"], why["found_tokens"])
        parts = sum(why[k + "_tokens"] for k in ("found", "evicted", "went_on", "diverged", "tail"))
        check(f"{name}: why, all parts at {capacity}", parts == why["input_tokens"], parts)
        check(f"{name}: nothing evicted exactly at 100%", (why["evicted_tokens"] == 0) == (capacity == "100%"))


with tempfile.TemporaryDirectory() as folder:
    for kind in ("agents", "chat", "shared"):
        trace = os.path.join(folder, kind)
        subprocess.run([kvstem, "trace", kind, "--requests", "1500", "--out", trace], check=True)
        compare(kind, trace, (5, 20))

    # The law, by hand: two prompts of 8 blocks, the second finds all but its tail; 100 bytes a token.
    trace = os.path.join(folder, "two")
    with open(trace, "w") as file:
        for time in (0, 1000):
            file.write(json.dumps({"timestamp": time, "input_length": 130, "output_length": 13,
                                   "hash_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9 + time]}) + "\n")
    arguments = [trace, "--trace-block-tokens", "16", "--bytes-per-token", "100", "--host-memory", "1MB", "--host-link",
                 "10kB", "--prefill-speed", "65", "--decode-speed", "13"]
    gain = results("plan", *arguments)[0]["gain"]
    share = (260 / 65) / (260 / 65 + 26 / 13)
    saved = 128 / 260
    exposed = (128 * 100 / 10_000) / (saved * 260 / 65)
    check("prefill's share", close(gain["prefill_share"], share), share)
    check("saved work", close(gain["saved_work"], saved), saved)
    check("exposed loads", close(gain["loads_of_saved_time"], exposed), exposed)
    check("gain, loads hidden", close(gain["times_if_loads_hide"], 1 / (1 - saved * share)))
    check("gain, loads exposed", close(gain["times_if_loads_do_not"], 1 / (1 - saved * share * (1 - exposed))))
    check("ceiling", close(gain["ceiling"], 1 / (1 - share)))
    # With attention: a model in which it costs as much as all else at 64 tokens.
    model = os.path.join(folder, "config.json")
    with open(model, "w") as file:
        json.dump({"model_type": "tiny", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1,
                   "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100, "torch_dtype": "bfloat16"}, file)
    gain = results("plan", *arguments, "--model", model)[0]["gain"]
    equal = gain["attention_equal_tokens"]
    saved = (128 + 128**2 / equal) / (2 * (130 + 130**2 / equal))
    check("saved work with attention", equal > 0 and close(gain["saved_work"], saved), saved, equal)

    # A system prompt with a date behind its second block: the report points at it.
    trace = os.path.join(folder, "date")
    with open(trace, "w") as file:
        for n in range(40):
            ids = [1, 2, 100 + n // 10] + [1000 * (n // 10) + 10 + b for b in range(20)] + [100_000 + n]
            file.write(json.dumps({"timestamp": n, "input_length": 16 * len(ids), "output_length": 1,
                                   "hash_ids": ids}) + "\n")
    worst = results("why", trace)[0]["worst"][0]
    check("the date is found", (worst["position_tokens"], worst["prompts"], worst["first_request"]) == (32, 3, 0), worst)
    check("what it costs", worst["shareable_tokens"] == 3 * 22 * 16, worst["shareable_tokens"])

traces = os.environ.get("KVSTEM_TRACE_DIR")
if traces:
    for name in ("conversation", "claude-code"):
        compare(name, os.path.join(traces, name + ".jsonl.zst"), (2, 10))
for what in wrong:
    print("wrong:", what)
sys.exit(bool(wrong))
