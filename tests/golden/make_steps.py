#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""Writes steps.txt: messages of cache/step_codec.hpp as its page describes them. Knows nothing of the library."""
import struct


def entry(kind, group, status, lease, generation, block, slot, key, not_before, source_ready, copy):
    return struct.pack("<BBBB4IQQIQIQ4I3I", kind, group, status, 0, lease, generation, block, slot, *key, *not_before,
                       *source_ready, *copy, 0, 0, 0)


def message(kind, decisions, entries):
    return b"kv" + struct.pack("<BBIQ", 1, kind, len(entries), decisions) + b"".join(entries)


LOAD = (0, 0, 0, 7, 3, 12, 99, (0x0123456789ABCDEF, 0xFEDCBA9876543210), (2, 41), (0, 0), (0xFFFFFFFF, 0, 0, 0))
COPY = (2, 1, 0, 5, 1, 4, 17, (0, 0), (1, 1 << 40), (3, 9), (16, 2, 1, 6))
FAILED = (2, 1, 7, *COPY[3:])
for name, bytes_ in (("empty step", message(1, 0, [])), ("step", message(1, 0xDEADBEEF00112233, [entry(*LOAD), entry(*COPY)])),
                     ("results", message(2, 5, [entry(*LOAD), entry(*FAILED)]))):
    print(name + ":", bytes_.hex())
