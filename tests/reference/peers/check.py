#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check.py PROGRAM PEERS [--json FILE]: kvstem matches the lengths that vLLM and SGLang match.

PROGRAM prints kvstem's lengths (kvstem_lengths.cpp); PEERS is the folder that setup.sh filled. With a pool in
which nothing is evicted, the length of a match follows from what was computed before, and no policy has a say
in it: so it is equal on every lookup, or somebody is wrong. The traces are random walks, and the cases at the
edges in trace.py, whose lengths are known besides.

What these caches have in common is compared, and nothing is rounded or left out. So that they are asked the
same:

    block        16 tokens everywhere (SGLang's page); a match is of whole blocks
    last token   no prompt's last token is matched, so that there is one to compute. In kvstem and vLLM the
                 cache sees to it, in SGLang the scheduler, by the limit of its lookup. A probe may match its
                 last token: kvstem's is made for that, SGLang's gets no limit, vLLM's has a token more
    visible      what is computed is found by the next lookup, of a live request too. kvstem is told by commit
                 and reach, vLLM with the slots, SGLang by a checkpoint, which its engine makes less often:
                 see sglang_lengths.py
    tenant       a salt is a scope in kvstem and a cache_salt in the others

The status is 1 if any length differs (the first are shown), or if something of interest was too rare to have
been tried.
"""
import argparse
import collections
import json
import pathlib
import subprocess
import sys

sys.dont_write_bytecode = True
import trace  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
SEEDS = range(1, 9)
LEAST = 20  # each thing happens that often
SHOWN = 5  # differences
THINGS = (
    "nothing matched",
    "all whole blocks matched",
    "a part matched",
    "only the last token's block not matched",
    "last token of a probe matched",
    "prompt of one token",
    "prompt of a live request",
    "prompt of a live request that has not computed it",
    "more than the prompt of a live request",
)


def lengths(command, lookups):
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with status {run.returncode}")
    printed = [int(line) for line in run.stdout.split()]
    if len(printed) != lookups:
        sys.exit(f"{' '.join(map(str, command))} printed {len(printed)} lengths for {lookups} lookups")
    return printed


def lookups(lines):
    """(number, words) of each line that is one."""
    split = ((number, line.split()) for number, line in enumerate(lines, 1))
    return [(number, words) for number, words in split if words[0] in ("start", "probe")]


def count(lines, matched, happened):
    """What the lookups of a trace were about."""
    live = {}  # request: [its salt and prompt, where the computed prompt ends]
    matched = iter(matched)
    for call, *words in (line.split() for line in lines):
        if call == "compute":
            live[words[0]][1] = int(words[1])
        elif call == "finish":
            del live[words[0]]
        elif call in ("start", "probe"):
            name = words.pop(0) if call == "start" else None
            tokens, length = len(words) - 1, next(matched)
            blocks = tokens // trace.BLOCK * trace.BLOCK
            if length == blocks:
                happened["all whole blocks matched" if length > 0 else "nothing matched"] += 1
            else:
                happened["a part matched" if length > 0 else "nothing matched"] += 1
            happened["last token of a probe matched"] += name is None and length == tokens
            happened["only the last token's block not matched"] += (
                name is not None and blocks == tokens and 0 < length == tokens - trace.BLOCK
            )
            happened["prompt of one token"] += name is not None and tokens == 1
            twins = [computed for text, computed in live.values() if text == words]
            happened["prompt of a live request"] += name is not None and bool(twins)
            happened["prompt of a live request that has not computed it"] += (
                name is not None and bool(twins) and max(twins) < tokens
            )
            happened["more than the prompt of a live request"] += any(
                text == words[: len(text)] and length >= len(text) for text, _ in live.values()
            )
            if name is not None:
                live[name] = [words, 0]


class Comparison:
    def __init__(self, peer):
        self.peer = peer
        self.lookups = self.differ = 0

    def add(self, where, asked, matched, expected):
        for (number, words), ours, theirs in zip(asked, matched, expected, strict=True):
            self.lookups += 1
            if ours == theirs:
                continue
            self.differ += 1
            if self.differ <= SHOWN:
                start = words[0] == "start"
                what = f"start of request {words[1]}" if start else "probe"
                tokens = len(words) - (3 if start else 2)
                print(f"{where}, line {number}, {what}, {tokens} tokens: "
                      f"kvstem matches {ours}, {self.peer} {theirs}")

    def __str__(self):
        return f"{self.peer}: {self.lookups} lookups, {self.differ} differ"

    def report(self):
        return {
            "name": f"lengths that differ from {self.peer}",
            "value": self.differ,
            "unit": f"of {self.lookups} lookups",
            "bar": "<= 0",
            "ok": self.differ == 0 < self.lookups,
        }


def main():
    as_it_is = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_it_is)
    parser.add_argument("program")
    parser.add_argument("peers", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()

    known, vllm, sglang = (Comparison(peer) for peer in ("what is known", "vllm", "sglang"))
    happened = collections.Counter({thing: 0 for thing in THINGS})
    folder = args.peers / "traces"
    folder.mkdir(exist_ok=True)
    for name in ("edges", *(f"seed {seed}" for seed in SEEDS)):
        lines, expected = trace.edges() if name == "edges" else (trace.walk(int(name.split()[1])), None)
        asked = lookups(lines)
        file = folder / f"{name.replace(' ', '-')}.txt"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        ours = lengths([args.program, file], len(asked))
        if expected is not None:
            known.add(name, asked, ours, expected)
        for peer in (vllm, sglang):
            command = [sys.executable, HERE / f"{peer.peer}_lengths.py", args.peers / peer.peer, file]
            peer.add(name, asked, ours, lengths(command, len(asked)))
        count(lines, ours, happened)
        print(f"{name}: {len(asked)} lookups, {sum(ours)} tokens matched", flush=True)

    for thing, times in happened.items():
        print(f"{times:7} {thing}")
    rare = [thing for thing, times in happened.items() if times < LEAST]
    if rare:
        print(f"too rare: {', '.join(rare)}")
    print(known)
    print(f"{vllm}; {sglang}")
    comparisons = (known, vllm, sglang)
    if args.json:
        report = {
            "checks": [comparison.report() for comparison in comparisons],
            "versions": [(args.peers / peer.peer / "version").read_text().strip() for peer in (vllm, sglang)],
            "happened": happened,
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if rare or any(comparison.differ for comparison in comparisons) else 0


sys.exit(main())
