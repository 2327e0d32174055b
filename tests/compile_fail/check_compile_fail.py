# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_compile_fail.py SOURCE COMPILER FLAGS...: the source compiles, and with -DKVSTEM_COMPILE_FAIL fails as it says."""
import pathlib
import re
import subprocess
import sys


def main() -> int:
    source, *compiler = sys.argv[1:]
    expected = re.findall(r"^// expect: (.+)$", pathlib.Path(source).read_text(), re.MULTILINE)
    if len(expected) != 1:
        print(f"{source}: needs exactly one line '// expect: <regular expression>'")
        return 1

    def compiled(*extra: str) -> subprocess.CompletedProcess:
        return subprocess.run([*compiler, *extra, "-fsyntax-only", source], capture_output=True, text=True, check=False)

    good = compiled()
    if good.returncode != 0:
        print(f"{source} must compile without KVSTEM_COMPILE_FAIL:\n{good.stderr}")
        return 1
    bad = compiled("-DKVSTEM_COMPILE_FAIL")
    if bad.returncode == 0:
        print(f"{source} compiled, and must not with KVSTEM_COMPILE_FAIL")
        return 1
    if not re.search(expected[0], bad.stderr):
        print(f"{source} failed, but no message matches '{expected[0]}':\n{bad.stderr}")
        return 1
    return 0


sys.exit(main())
