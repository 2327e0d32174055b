# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""Carries the calls of a trace (trace.py) out on a peer, and prints the length that each lookup finds."""
import sys


def read_calls(trace):
    with open(trace, encoding="utf-8") as file:
        return [line.split() for line in file]


def follow(calls, peer):
    for call, *words in calls:
        match call:
            case "start":
                name, salt, *tokens = words
                print(peer.start(name, None if salt == "-" else salt, [int(t) for t in tokens]))
            case "compute":
                peer.compute(words[0], int(words[1]))
            case "append":
                peer.append(words[0], [int(t) for t in words[1:]])
            case "finish":
                peer.finish(words[0])
            case "probe":
                salt, *tokens = words
                print(peer.probe(None if salt == "-" else salt, [int(t) for t in tokens]))
            case _:
                sys.exit(f"{call} is no call of a trace")
