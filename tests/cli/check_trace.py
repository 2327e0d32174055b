#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_trace.py KVSTEM: `kvstem trace` writes the same bytes everywhere, with the properties that synthetic.hpp states."""
import collections
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile

kvstem = sys.argv[1]
wrong = []

# SHA-256 of 200 requests of seed 1, other options as they are by default.
GOLDEN = {
    "agents": "e003b4cd773eeea4250f187798610e8a76a2d1b468a24882e359d17fdd18955c",
    "chat": "54e9cfe50c986abb23a0b3f16225f8e3fc535f95cc57cb4294138fc23c69930b",
    "shared": "670afaec94b27ac36d24a7a4993e546327f1c7693ffd97a29e7ac1f0f325a0ce",
}
OPENINGS = {"agents": [9000, 12000, 6500, 4200], "chat": [800],
            "shared": [4000 + step * 26000 // 19 for step in range(20)]}
# Of 2000 requests: found by an infinite cache, extended by a later request, requests per second, mean prompt, mean answer.
STATED = {
    "agents": [(0.93, 0.98), (0.92, 0.97), (0.75, 1.25), (25_000, 60_000), (270, 330)],
    "chat": [(0.42, 0.5), (0.3, 0.4), (0.9, 1.1), (1600, 2200), (320, 375)],
    "shared": [(0.9, 0.97), (0, 0), (0.9, 1.1), (17_000, 19_000), (320, 375)],
}


def check(ok, text):
    if not ok:
        wrong.append(text)


def run(*arguments, **more):
    return subprocess.run([kvstem, *arguments], capture_output=True, timeout=120, **more)


def trace(*arguments):
    result = run("trace", *arguments)
    check(result.returncode == 0 and not result.stderr, f"trace {arguments}: status {result.returncode}, said {result.stderr!r}")
    return result.stdout


def digest(data):
    return hashlib.sha256(data).hexdigest()


def measure(what, kind, data, block_tokens):
    """Checks what must hold for every line, and returns what STATED holds ranges for."""
    requests = [json.loads(line) for line in data.splitlines()]
    shared_blocks = {opening // block_tokens for opening in OPENINGS[kind]}
    owner, parent, partial, openings = {}, {}, set(), {}
    last, turns = {}, collections.Counter()
    found = tokens = answers = extended = time = 0
    for number, request in enumerate(requests):
        here = f"{what}, line {number + 1}"
        check(request["timestamp"] >= time, f"{here}: time runs backwards")
        time = request["timestamp"]
        length, ids, session = request["input_length"], request["hash_ids"], request["session_id"]
        check(len(ids) == -(-length // block_tokens), f"{here}: {len(ids)} ids for {length} tokens")
        whole = ids[: length // block_tokens]
        for before, each in zip([0] + whole, whole):
            check(parent.setdefault(each, before) == before, f"{here}: block {each} behind two different ones")
        if len(ids) > len(whole):
            check(ids[-1] not in owner and ids[-1] not in partial, f"{here}: the id of part of a block is an old one")
            partial.add(ids[-1])
        check(not partial.intersection(whole), f"{here}: a whole block has the id of part of one")

        # Blocks of others stand at the beginning only, as many as an opening has.
        mine = next((i for i, each in enumerate(whole) if owner.get(each, session) == session), len(whole))
        check(all(owner.get(each, session) == session for each in whole[mine:]), f"{here}: shares more than a beginning")
        check(mine == 0 or session in last or mine in shared_blocks, f"{here}: shares {mine} blocks with others")
        old = sum(each in owner for each in whole)
        found += old * block_tokens
        for each in whole:
            owner.setdefault(each, session)

        if session in last:
            earlier = last[session]
            if length >= earlier["input_length"] + earlier["output_length"]:
                extended += 1
                blocks = earlier["hash_ids"][: earlier["input_length"] // block_tokens]
                check(whole[: len(blocks)] == blocks, f"{here}: does not begin as the prompt that it extends")
                check(old == len(blocks), f"{here}: {old} old blocks, the prompt before has {len(blocks)}")
            else:
                check(earlier["input_length"] > 120_000, f"{here}: a prompt became smaller")
            gap = (time - earlier["timestamp"]) / 1000
            least, most = (10, 1800) if kind == "chat" else (5, 60) if earlier["stop_reason"] == "tool_use" else (30, 1200)
            # A parent waits for its sub-agent.
            check(least - 0.002 <= gap and (gap <= most + 0.002 or kind == "agents"), f"{here}: comes after {gap} s")
        last[session] = request
        turns[session] += 1
        tokens += length
        answers += request["output_length"]

    n = len(requests)
    ends = sum(request["stop_reason"] == "end_turn" for request in requests)
    subagents = {request["session_id"] for request in requests if request["subagent"]}
    if kind == "agents":
        check(n < 2000 or 0.08 < ends / n < 0.18, f"{what}: {ends} of {n} end a turn")
        check(n < 2000 or 0.03 < sum(turns[each] for each in subagents) / n < 0.15, f"{what}: {len(subagents)} sub-agents")
        check(all(turns[each] <= 10 for each in subagents), f"{what}: a sub-agent of more than 10 turns")
        done = {each for each in subagents if last[each]["stop_reason"] == "end_turn"}
        check(all(turns[each] >= 5 for each in done), f"{what}: a sub-agent of less than 5 turns")
    else:
        check(ends == n and not subagents, f"{what}: tools or sub-agents")
        check(max(turns.values()) <= (8 if kind == "chat" else 1), f"{what}: {max(turns.values())} turns")
    return [found / tokens, extended / n, n / time * 1000, tokens / n, answers / n], turns


def histogram(what, counts):
    classes = collections.Counter(1 << (value - 1).bit_length() for value in counts)
    for upper in sorted(classes):
        print(f"    {what} up to {upper:4}: {classes[upper]:5} {'#' * -(-50 * classes[upper] // max(classes.values()))}")


for kind, golden in GOLDEN.items():
    small = trace(kind, "--requests", "200")
    check(digest(small) == golden, f"{kind}: the bytes changed, SHA-256 is {digest(small)}")
    check(trace(kind, "--requests", "200", "--seed", "1") == small, f"{kind}: not the same again")
    check(trace(kind, "--requests", "200", "--seed", "2") != small, f"{kind}: the same with another seed")
    data = trace(kind)
    check(data.startswith(small) and data.count(b"\n") == 2000, f"{kind}: fewer requests are no beginning of more")

    measured, turns = measure(kind, kind, data, 512)
    names = ["found by an infinite cache", "extended later", "requests per second", "tokens a prompt", "tokens an answer"]
    print(f"{kind}: 2000 requests, {len(turns)} sessions")
    for name, value, (least, most) in zip(names, measured, STATED[kind]):
        print(f"  {name}: {value:.4g}, stated {least} to {most}")
        check(least <= value <= most, f"{kind}: {name}: {value:.4g}, stated {least} to {most}")
    histogram("turns", turns.values())
    for block_tokens in (16, 100, 1024):
        other = trace(kind, "--requests", "300", "--seed", "3", "--block-tokens", str(block_tokens))
        measure(f"{kind}, blocks of {block_tokens}", kind, other, block_tokens)
    fast = trace(kind, "--requests", "10000", "--requests-per-second", "20").splitlines()
    rate = 10_000_000 / json.loads(fast[-1])["timestamp"]
    check(17 < rate < 23, f"{kind}: {rate:.4g} requests per second, not 20")

    # What was written can be replayed, from a file and through a pipe, and finds what was measured here.
    with tempfile.TemporaryDirectory() as folder:
        path, report = os.path.join(folder, "trace.jsonl"), os.path.join(folder, "report")
        check(trace(kind, "--out", path) == b"", f"{kind}: printed something beside --out")
        with open(path, "rb") as file:
            check(file.read() == data, f"{kind}: --out has other bytes than standard output")
        result = run("replay", path, "--capacity", "5%,50%", "--hints", "engine", "--json", report)
        check(result.returncode == 0, f"{kind}: replay said {result.stderr!r}")
        if result.returncode == 0:
            with open(report) as file:
                infinite = json.load(file)["results"][0]["infinite_cache_hit_rate"]
            check(abs(infinite - measured[0]) < 1e-9, f"{kind}: replay finds {infinite}, measured {measured[0]}")
        check(sorted(os.listdir(folder)) == ["report", "trace.jsonl"], f"{kind}: left {os.listdir(folder)}")
    with subprocess.Popen([kvstem, "trace", kind], stdout=subprocess.PIPE) as writer:
        result = run("replay", "-", "--capacity", "5%", stdin=writer.stdout)
    check(result.returncode == 0 and writer.returncode == 0, f"{kind}: through a pipe, replay said {result.stderr!r}")

    # Nobody reads on: by the signal, or where that is ignored with one line.
    for ignored in (False, True):
        with subprocess.Popen([kvstem, "trace", kind, "--requests", "50000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              restore_signals=not ignored) as writer:
            writer.stdout.readline()
            writer.stdout.close()
            said = writer.stderr.read()
        check(writer.returncode != 0 and said.count(b"\n") == int(ignored), f"{kind}: closed pipe, {writer.returncode}, {said!r}")


def refused(what, says, *arguments, **more):
    result = run("trace", *arguments, **more)
    message = result.stderr.decode()
    check(result.returncode == 2 and message.count("\n") == 1 and says in message and not result.stdout,
          f"{what}: status {result.returncode}, said {message!r}, expected {says!r}")


with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "trace.jsonl")
    refused("no kind", "KIND is required")
    refused("an unknown kind", "there are agents, chat, shared", "batch", "--out", path)
    for option, values in (("--requests", ["0", "-1", "1.5", "10000001", "many"]), ("--block-tokens", ["0", "1025", "x"]),
                           ("--seed", ["-1", "x", "18446744073709551616"]),
                           ("--requests-per-second", ["0", "-1", "nan", "inf", "1001", "x"])):
        for value in values:
            refused(f"{option} {value}", option, "chat", f"{option}={value}", "--out", path)
    refused("two kinds", "chat", "agents", "chat", "--out", path)
    refused("an unknown option", "--frobnicate", "chat", "--frobnicate", "--out", path)
    refused("an empty name", "--out", "chat", "--out=")
    refused("a folder that is none", "cannot be written", "chat", "--out", os.path.join(folder, "none", "trace.jsonl"))
    # As on a full disk; Python ignores the signal of it, and so does what it starts.
    refused("no room", "could not be written", "chat", "--out", path, restore_signals=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)))
    check(not os.listdir(folder), f"left {os.listdir(folder)}")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "wb") as full:
            result = subprocess.run([kvstem, "trace", "chat"], stdout=full, stderr=subprocess.PIPE, timeout=60)
        check(result.returncode == 2 and result.stderr.count(b"\n") == 1, f"a full device: {result.returncode}, {result.stderr!r}")

for text in wrong[:20]:
    print(text)
sys.exit(bool(wrong))
