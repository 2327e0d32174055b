# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_symbols.py LIBRARY | --self-test: what a shared object of every template needs and exports.

It may not print, end the process, throw or read a clock, and it exports only what is kvstem's, besides the standard
library's weak instantiations.
"""
import re
import subprocess
import sys

FORBIDDEN = re.compile(
    r"abort|_?_?exit|_Exit|quick_exit|raise|kill"
    r"|_*(v?[fsd]?n?printf|vfprintf)(_chk)?|puts|fputs|putc|fputc|putchar|fwrite|write|perror|_*v?syslog(_chk)?"
    r"|__assert\w*|_ZSt9terminatev|__cxa_(throw|rethrow|pure_virtual)|__gxx_personality_v0"
    r"|_ZSt[34]c(out|err|log)|_ZSt4clog|.*basic_ostream.*|.*__ostream_insert.*|_ZNSt8ios_base.*"
    r"|clock(_gettime)?|time|gettimeofday|_ZNSt6chrono.*|nanosleep|clock_nanosleep|pthread_create|_ZNSt6thread.*"
)
OURS = re.compile(r"_Z(T[VISTWHC]|GV|GR)?Z*(N[KV]*[RO]?)?6kvstem")
STANDARD_LIBRARY = re.compile(r"_Z(T[VIS]|GV|GR)?Z*(N[KV]*[RO]?)?(St|S[absiod]|9__gnu_cxx|10__cxxabiv1)")


def complaints(listing: str) -> list[str]:
    """One line for each symbol of `listing`, the output of nm -D, that should not be there."""
    found = []
    exported = 0
    for line in listing.splitlines():
        kind, name = line.split()[-2:]
        name = name.split("@")[0]
        if kind in "Uwv":
            if FORBIDDEN.fullmatch(name):
                found.append(f"needs {name}")
        elif OURS.match(name):
            exported += 1
        elif not (kind in "WVu" and STANDARD_LIBRARY.match(name)):
            found.append(f"exports {name}")
    if exported == 0:
        found.append("exports nothing of kvstem's: not the library that was meant")
    return found


def self_test() -> int:
    """Each bad symbol is found, each good one passes."""
    ours = "0000000000001000 W _ZN6kvstem2v06ResultIiE5valueEv"
    good = [
        "                 U _ZdlPvm@GLIBCXX_3.4",
        "                 U memcpy@GLIBC_2.14",
        "                 w __gmon_start__",
        "0000000000001000 V _ZTIN6kvstem2v03FooE",
        "0000000000001000 W _ZNSt6vectorIiSaIiEE17_M_realloc_insertIJiEEEvv",
        "0000000000001000 T _ZN6kvstem2v03runEv",
        "0000000000001000 W _ZNKR6kvstem2v06ResultIiEdeEv",
        "0000000000001000 W _ZZN6kvstem2v011heap_memoryEvENUlPvmmE_4_FUNES1_mm",
    ]
    bad = [
        "                 U abort@GLIBC_2.2.5",
        "                 U __printf_chk@GLIBC_2.3.4",
        "                 U puts@GLIBC_2.2.5",
        "                 U __assert_fail@GLIBC_2.2.5",
        "                 U _ZSt4cerr@GLIBCXX_3.4",
        "                 U _ZSt9terminatev@GLIBCXX_3.4",
        "                 U clock_gettime@GLIBC_2.17",
        "0000000000001000 T XXH3_128bits",
        "0000000000001000 W _Z6helperv",
        "0000000000001000 T _ZNSt6vectorIiSaIiEE4ownedEv",
    ]
    wrong = [line for line in good if complaints(f"{ours}\n{line}")]
    wrong += [line for line in bad if len(complaints(f"{ours}\n{line}")) != 1]
    if not complaints(good[0]):
        wrong.append("a library without our symbols passed")
    print("\n".join(wrong) if wrong else f"{len(good) + len(bad) + 1} cases as expected")
    return 1 if wrong else 0


def main() -> int:
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    listing = subprocess.run(["nm", "-D", sys.argv[1]], capture_output=True, text=True, check=True).stdout
    found = complaints(listing)
    print("\n".join(found) if found else f"{len(listing.splitlines())} symbols, all as they should be")
    return 1 if found else 0


sys.exit(main())
