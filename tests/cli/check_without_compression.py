#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_without_compression.py SOURCE BUILD: the program builds without zlib and libzstd, reads plain traces, and says of
compressed ones what is missing."""
import gzip
import json
import os
import subprocess
import sys

source, build = sys.argv[1], sys.argv[2]
configured = subprocess.run(
    ["cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Debug", "-DKVSTEM_BUILD_CLI=ON",
     "-DKVSTEM_CLI_ZLIB=OFF", "-DKVSTEM_CLI_ZSTD=OFF", "-DKVSTEM_BUILD_TESTS=OFF", "-DKVSTEM_BUILD_EXAMPLES=OFF",
     "-DKVSTEM_BUILD_BENCHMARKS=OFF", "-DKVSTEM_WITH_OPENSSL=OFF"],
    capture_output=True, text=True)
built = subprocess.run(["cmake", "--build", build, "--target", "kvstem_cli", "-j", "2"], capture_output=True, text=True)
if configured.returncode or built.returncode:
    sys.exit(configured.stdout + configured.stderr + built.stdout + built.stderr)
kvstem = os.path.join(build, "kvstem")
needed = subprocess.run(["ldd", kvstem], capture_output=True, text=True, check=True).stdout
line = json.dumps({"timestamp": 0, "input_length": 1024, "output_length": 5, "hash_ids": [1, 2]}).encode() + b"\n"
wrong = [f"it needs {library}" for library in ("libz.so", "libzstd.so") if library in needed]
for what, content, status, says in (("plain", line * 9, 0, b"lru"), ("gzip", gzip.compress(line), 2, b"gzip is not built in"),
                                    ("zstd", b"\x28\xb5\x2f\xfd" + bytes(20), 2, b"zstd is not built in")):
    result = subprocess.run([kvstem, "replay", "-", "--capacity", "1"], input=content, capture_output=True)
    said = result.stdout + result.stderr
    if result.returncode != status or says not in said:
        wrong.append(f"{what}: status {result.returncode}, said {said!r}")
for text in wrong:
    print(text)
sys.exit(bool(wrong))
