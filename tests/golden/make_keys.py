#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""Computes keys.txt from the description of the format in model/block_key.hpp, without any of the library's code.

    pip install xxhash && python3 make_keys.py | diff - <(grep ^sha256 keys.txt)
"""
import hashlib
import struct

import xxhash


def words(low_high):
    """A key from XXH3's number: its low and its high word."""
    return low_high & (2**64 - 1), low_high >> 64


def expanded(secret):
    out = b""
    for i in range(12):
        out += struct.pack("<QQ", *words(xxhash.xxh3_128_intdigest(secret, seed=0x6B767374656D0000 + i)))
    return out


def sha256(data):
    return struct.unpack("<QQ", hashlib.sha256(data).digest()[:16])


def text(kind, value):
    return struct.pack("<II", kind, len(value)) + value


def scope(model=b"", positions=b"", adapter=b"", scale=1.0, salt=b"", vocab=0):
    return (text(1, model) + text(2, positions) + text(3, adapter) + struct.pack("<IId", 4, 8, scale) + text(5, salt)
            + struct.pack("<III", 6, 4, vocab))


def tokens(n, step):
    return [(i * step + 7) % 50000 for i in range(n)]


def cases(function, algorithm, secret, digest):
    def root(s):
        return digest(b"kvstem.scope.v1\0" + struct.pack("<I", algorithm) + expanded(secret) + s)

    def block(parent, ids, marks=()):
        return digest(b"kvstem.block.v1\0" + struct.pack("<QQII", *parent, len(ids), len(marks))
                      + b"".join(struct.pack("<i", t) for t in ids)
                      + b"".join(struct.pack("<II", kind, at) + value for kind, at, value in marks))

    def line(name, key):
        print(f"{function} {name} {key[1]:016x}{key[0]:016x}")

    plain = root(scope(b"model", vocab=50000))
    full = root(scope(b"model", b"rope 10000", b"adapter", 0.5, b"tenant", 50000))
    line("root plain", plain)
    line("root full", full)
    for size in (1, 16, 64, 1024):
        ids = tokens(2 * size, 31)
        first = block(plain, ids[:size])
        line(f"block of {size} first", first)
        line(f"block of {size} second", block(first, ids[size:]))
    ids = tokens(16, 31)
    line("media", block(plain, ids, [(1, 3, b"\xab" * 32)]))
    line("media and scope", block(plain, ids, [(1, 0, b"\x01" * 32), (1, 5, b"\x02" * 32),
                                               (2, 5, struct.pack("<QQ", *full) + bytes(16))]))
    line("empty block", block(plain, []))


# XXH3 with a secret of one's own is not in PyPI's xxhash, so those lines come from the library alone.
cases("sha256", 2, b"", sha256)
cases("sha256-secret", 2, b"a deployment's secret", sha256)
