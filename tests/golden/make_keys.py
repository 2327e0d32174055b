#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""Computes keys.txt from the description of the format in model/block_key.hpp, without any of the library's code.

    python3 make_keys.py > keys.txt

XXH3-128 is written out here from its specification, since no Python package takes a secret of one's own. With the package
`xxhash` installed, `python3 make_keys.py --check` compares it with that one, for seeds.
"""
import hashlib
import struct
import sys

MASK = 2**64 - 1
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
# XXH3's own secret, for hashes without one.
DEFAULT_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248e"
    "e03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d"
    "8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc"
    "8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")


def read(data, at):
    return int.from_bytes(data[at:at + 8], "little")


def fold(a, b):
    product = (a & MASK) * (b & MASK)
    return (product & MASK) ^ (product >> 64)


def avalanche(h):
    h &= MASK
    h = ((h ^ (h >> 37)) * 0x165667919E3779F9) & MASK
    return h ^ (h >> 32)


def avalanche_xxh64(h):
    h = ((h ^ (h >> 33)) * P64_2) & MASK
    h = ((h ^ (h >> 29)) * P64_3) & MASK
    return h ^ (h >> 32)


def mix16(data, at, secret, s, seed):
    return fold(read(data, at) ^ (read(secret, s) + seed), read(data, at + 8) ^ (read(secret, s + 8) - seed))


def mix32(low, high, data, one, two, secret, s, seed):
    low = ((low + mix16(data, one, secret, s, seed)) & MASK) ^ ((read(data, two) + read(data, two + 8)) & MASK)
    high = ((high + mix16(data, two, secret, s + 16, seed)) & MASK) ^ ((read(data, one) + read(data, one + 8)) & MASK)
    return low, high


def xxh3_long(data, secret):
    n = len(data)
    acc = [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1]

    def stripe(at, s):
        for i in range(8):
            value = read(data, at + 8 * i)
            key = value ^ read(secret, s + 8 * i)
            acc[i ^ 1] = (acc[i ^ 1] + value) & MASK
            acc[i] = (acc[i] + (key & 0xFFFFFFFF) * (key >> 32)) & MASK

    stripes = (len(secret) - 64) // 8
    block = 64 * stripes
    whole = (n - 1) // block
    for b in range(whole):
        for i in range(stripes):
            stripe(b * block + 64 * i, 8 * i)
        for i in range(8):
            acc[i] = ((acc[i] ^ (acc[i] >> 47) ^ read(secret, len(secret) - 64 + 8 * i)) * P32_1) & MASK
    for i in range((n - 1 - block * whole) // 64):
        stripe(whole * block + 64 * i, 8 * i)
    stripe(n - 64, len(secret) - 64 - 7)

    def merge(s, start):
        return avalanche(start + sum(fold(acc[2 * i] ^ read(secret, s + 16 * i), acc[2 * i + 1] ^ read(secret, s + 16 * i + 8))
                                     for i in range(4)))

    return merge(11, n * P64_1 & MASK), merge(len(secret) - 64 - 11, ~(n * P64_2) & MASK)


def xxh3(data, secret=DEFAULT_SECRET, seed=0):
    """XXH3-128: {low, high}. Of 1 to 16 bytes nothing here is; nor longer than 240 with a seed."""
    n = len(data)
    if n == 0:
        return (avalanche_xxh64(seed ^ read(secret, 64) ^ read(secret, 72)),
                avalanche_xxh64(seed ^ read(secret, 80) ^ read(secret, 88)))
    assert n > 16 and (n <= 240 or seed == 0)
    if n > 240:
        return xxh3_long(data, secret)
    low, high = n * P64_1 & MASK, 0
    if n <= 128:
        for i in reversed(range((n - 1) // 32 + 1)):
            low, high = mix32(low, high, data, 16 * i, n - 16 * (i + 1), secret, 32 * i, seed)
    else:
        for at in range(0, 128, 32):
            low, high = mix32(low, high, data, at, at + 16, secret, at, seed)
        low, high = avalanche(low), avalanche(high)
        for at in range(128, n - 31, 32):
            low, high = mix32(low, high, data, at, at + 16, secret, 3 + at - 128, seed)
        low, high = mix32(low, high, data, n - 16, n - 32, secret, 136 - 17 - 16, -seed)
    return avalanche(low + high), -avalanche(low * P64_1 + high * P64_4 + (n - seed) * P64_2) & MASK


def expanded(secret):
    return b"".join(struct.pack("<QQ", *xxh3(secret, seed=0x6B767374656D0000 + i)) for i in range(12))


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


def check():
    import xxhash
    for n in (0, *range(17, 241)):
        data = bytes((7 * i + n) % 256 for i in range(n))
        for seed in (0, 1, 0x6B767374656D0005):
            low, high = xxh3(data, seed=seed)
            assert xxhash.xxh3_128_intdigest(data, seed=seed) == high << 64 | low, (n, seed)
    for n in (241, 255, 256, 1024, 1025, 4136, 9000):
        data = bytes((11 * i + n) % 256 for i in range(n))
        low, high = xxh3(data)
        assert xxhash.xxh3_128_intdigest(data) == high << 64 | low, n


if sys.argv[1:] == ["--check"]:
    check()
else:
    for with_secret, secret in (("", b""), ("-secret", b"a deployment's secret")):
        cases("xxh3" + with_secret, 1, secret, lambda data, expand=expanded(secret): xxh3(data, expand))
    for with_secret, secret in (("", b""), ("-secret", b"a deployment's secret")):
        cases("sha256" + with_secret, 2, secret, sha256)
