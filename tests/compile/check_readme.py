# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_readme.py README QUICKSTART.cpp PROGRAM: the README shows the quickstart as it is, and what it prints.

With --write it puts both into the README instead.
"""
import pathlib
import re
import subprocess
import sys

arguments = [a for a in sys.argv[1:] if a != "--write"]
readme, source, program = map(pathlib.Path, arguments)
text = readme.read_text()
code = re.sub(r"\A(//.*\n)+", "", source.read_text())
output = subprocess.run([program.resolve()], capture_output=True, text=True, check=True).stdout
wanted = f"```cpp\n{code}```\n\n```\n{output}```\n"
if "--write" in sys.argv:
    text, times = re.subn(r"```cpp\n.*?```\n\n```\n.*?```\n", lambda _: wanted, text, count=1, flags=re.DOTALL)
    assert times == 1, "the README has no place for it"
    readme.write_text(text)
elif wanted not in text:
    sys.exit(f"{readme} does not show {source.name} and its output as they are: run this again with --write")
