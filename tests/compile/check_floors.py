# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_floors.py INCLUDE_KVSTEM | --self-test: a room includes only rooms below it, and of others' headers only those listed.

A room is a folder of include/kvstem. The rooms and their floors are described in docs/architecture.md.
"""
import pathlib
import re
import sys
import tempfile

# Room: the rooms it may include besides itself.
BELOW = {"base": set()}
BELOW["model"] = {"base"}
BELOW["observe"] = {"base", "model"}  # plain data that any room above may fill in
BELOW["index"] = {"base", "model", "observe"}
BELOW["device"] = {"base", "model", "observe"}
BELOW["policy"] = BELOW["index"] | {"index", "device"}
BELOW["cache"] = BELOW["policy"] | {"policy"}
BELOW["transfer"] = BELOW["device"] | {"device"}
BELOW["tier"] = BELOW["transfer"] | {"transfer"}
BELOW["session"] = BELOW["cache"] | {"cache"}
BELOW["host"] = BELOW["cache"] | BELOW["tier"] | {"cache", "tier"}  # the one place where cache and tier meet
LIBRARY_ROOMS = set(BELOW)
BELOW["testing"] = LIBRARY_ROOMS  # what users' tests include; no room of the library does
FREE_ROOMS = {"testing"}

# Standard headers for the library's rooms: nothing that prints, reads a clock, starts a thread or opens a file.
STANDARD = set(
    "algorithm array atomic bit cassert climits cmath compare concepts cstddef cstdint cstring functional "
    "initializer_list iterator limits map memory mutex new numeric optional set span string string_view tuple "
    "type_traits unordered_map unordered_set utility variant vector version".split()
)
# Headers of other libraries, each only where it is the business of that room or file.
OTHERS = {
    "cstdlib": {"base/memory.hpp"},
    "xxhash.h": {"model/", "tier/"},
    "openssl/sha.h": {"model/sha256.hpp"},
}
# Headers of a component that must be asked for: the library itself never includes them.
COMPONENT_HEADERS = {"kvstem/model/sha256.hpp"}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def complaints(root: pathlib.Path) -> list[str]:
    """One line for each include that is not allowed below `root`, the folder include/kvstem."""
    found = []
    headers = sorted(p for p in root.rglob("*") if p.suffix in (".hpp", ".h"))
    if not headers:
        found.append(f"{root}: no header found")
    for header in headers:
        path = header.relative_to(root).as_posix()
        room = path.split("/")[0] if "/" in path else None  # None: kvstem.hpp and its like may include any room
        if room is not None and room not in BELOW:
            found.append(f"{path}: room '{room}' is unknown; give it a floor here")
            continue
        for quote, name in INCLUDE.findall(header.read_text(encoding="utf-8")):
            if name.startswith("kvstem/"):
                target = name.split("/")[1] if name.count("/") > 1 else None
                if target is None and room is not None:
                    found.append(f"{path}: includes <{name}>, which includes everything")
                elif (room is None and target in FREE_ROOMS) or (room not in FREE_ROOMS and name in COMPONENT_HEADERS):
                    found.append(f"{path}: includes <{name}>, which is a component of its own")
                elif room is not None and target != room and target not in BELOW[room]:
                    found.append(f"{path}: '{room}' may not include '{target}' (<{name}>)")
                elif not (root.parent / name).is_file():
                    found.append(f"{path}: includes <{name}>, which does not exist")
            elif quote == '"':
                found.append(f'{path}: write <kvstem/...> instead of "{name}"')
            elif room in FREE_ROOMS or name in STANDARD:
                continue
            elif not any(path == at or (at.endswith("/") and path.startswith(at)) for at in OTHERS.get(name, ())):
                found.append(f"{path}: <{name}> is not on the list of headers that '{room}' may use")
    return found


def self_test() -> int:
    """Each bad include is found, each good one passes."""
    cases = [
        ("index/a.hpp", "#include <kvstem/base/b.hpp>", None),
        ("host/a.hpp", "#include <kvstem/cache/b.hpp>\n#include <kvstem/tier/b.hpp>", None),
        ("model/sha256.hpp", "#include <openssl/sha.h>", None),
        ("testing/a.hpp", "#include <iostream>\n#include <kvstem/host/b.hpp>", None),
        ("index/a.hpp", "#include <kvstem/cache/b.hpp>", "may not include 'cache'"),
        ("cache/a.hpp", "#  include  <kvstem/tier/b.hpp>", "may not include 'tier'"),
        ("tier/a.hpp", "#include <kvstem/cache/b.hpp>", "may not include 'cache'"),
        ("observe/a.hpp", "#include <kvstem/index/b.hpp>", "may not include 'index'"),
        ("base/a.hpp", "#include <kvstem/model/b.hpp>", "may not include 'model'"),
        ("session/a.hpp", "#include <kvstem/tier/b.hpp>", "may not include 'tier'"),
        ("host/a.hpp", "#include <kvstem/testing/b.hpp>", "may not include 'testing'"),
        ("base/a.hpp", "#include <kvstem/kvstem.hpp>", "includes everything"),
        ("base/a.hpp", "#include <kvstem/base/gone.hpp>", "does not exist"),
        ("cache/a.hpp", "#include <iostream>", "<iostream> is not on the list"),
        ("index/a.hpp", "#include <chrono>", "<chrono> is not on the list"),
        ("model/a.hpp", "#include <openssl/sha.h>", "<openssl/sha.h> is not on the list"),
        ("index/a.hpp", "#include <xxhash.h>", "<xxhash.h> is not on the list"),
        ("model/a.hpp", '#include "b.hpp"', "write <kvstem/...>"),
        ("attic/a.hpp", "", "is unknown"),
        ("all.hpp", "#include <kvstem/testing/b.hpp>", "component of its own"),
        ("all.hpp", "#include <kvstem/model/sha256.hpp>", "component of its own"),
    ]
    failed = 0
    for path, text, expected in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder) / "kvstem"
            for room in BELOW:
                (root / room).mkdir(parents=True)
                (root / room / "b.hpp").write_text("#pragma once\n")
            (root / "kvstem.hpp").write_text("#include <kvstem/base/b.hpp>\n")
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_text(text + "\n")
            got = complaints(root)
        good = not got if expected is None else len(got) == 1 and expected in got[0]
        if not good:
            print(f"{path} with {text!r}: expected {expected!r}, got {got}")
            failed += 1
    print(f"{len(cases) - failed} of {len(cases)} cases as expected")
    return 1 if failed else 0


def main() -> int:
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    found = complaints(pathlib.Path(sys.argv[1]))
    print("\n".join(found) if found else "every include goes downwards")
    return 1 if found else 0


sys.exit(main())
