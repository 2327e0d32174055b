# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""compare.py FOLDER BASELINE [--update] [--json FILE]: judges the counts that scripts/callgrind.sh has taken.

FOLDER holds `pieces`, what kvstem_instructions printed, and callgrind's dumps, `counts.*`. Three kinds of checks:

  growth   instructions of each piece of work, against BASELINE: at most 10 % more. The baseline has one set of counts for
           each toolchain (compiler, and the libraries that are counted too); without a set for this one, growth is not
           measured, and says so. --update puts this run's counts into BASELINE instead.
  turn     a further turn of 32 blocks after 2,048 blocks, against one after 32: at most 1.3 times the instructions
  misses   last-level misses for each run (node) that a match passes, besides the tokens themselves: at most 2. Two paths
           with the same tokens differ by their runs alone, so it is the difference in misses by the difference in runs.

The status is 1 if a check fails. `compare.py --self-test` feeds it made-up counts, good and bad.
"""
import argparse
import json
import pathlib
import sys
from dataclasses import dataclass

MOST_GROWTH = 10.0  # percent
MOST_TURN = 1.3
MOST_MISSES = 2.0

# Name, and whether the bar holds for it. A lease, or a place in the index, that goes on costs its new tokens; a request
# of its own compares its whole prompt, once.
TURNS = [
    ("index/turn", True),
    ("cache/turn", True),
    ("cache/turn_by_token", True),
    ("cache/turn_by_token_with_changes", True),
    ("cache/turn_by_step", True),
    ("cache/request/acquire", False),
    ("cache/request/compute", True),
    ("cache/request/release", True),
]
# Paths with many runs and with few, and whether the bar holds for them. Those of 31 and 62 blocks are no powers of two,
# and still lie in one piece each.
PATHS = [
    ("index/path/grown_4", "index/path/grown_32", True),
    ("index/path/split_4", "index/path/split_32", True),
    ("index/path/grown_31", "index/path/grown_62", True),
]


@dataclass
class Piece:
    instructions: int
    misses: int  # of data, in the last level
    times: int = 1
    runs: int = 0

    @property
    def each(self) -> float:
        return self.instructions / self.times


@dataclass
class Check:
    name: str
    value: "float | None"
    unit: str
    bar: "float | None" = None  # at most; None: for information
    ok: "bool | None" = None  # None: not measured, or for information

    def as_json(self) -> dict:
        return {**vars(self), "bar": None if self.bar is None else f"<= {self.bar:g}"}


def at_most(bar: "float | None", name: str, value: float, unit: str) -> Check:
    return Check(name, value, unit, bar, None if bar is None else value <= bar)


def read(folder: pathlib.Path) -> "tuple[str, dict[str, Piece]]":
    """The toolchain, and the pieces by name."""
    counts = {}
    for file in folder.glob("counts.*"):
        name, events, totals = None, [], []
        for line in file.read_text().splitlines():
            if line.startswith("desc: Trigger: Client Request: "):
                name = line.removeprefix("desc: Trigger: Client Request: ")
            elif line.startswith("events: "):
                events = line.split()[1:]
            elif line.startswith("totals: "):
                totals = [int(number) for number in line.split()[1:]]
        if name is not None:
            counts[name] = dict(zip(events, totals))
    toolchain, pieces = "", {}
    for line in (folder / "pieces").read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "toolchain":
            toolchain = rest
        elif kind == "piece":
            name, times, runs = rest.split()
            c = counts[name]
            pieces[name] = Piece(c["Ir"], c["DLmr"] + c["DLmw"], int(times), int(runs))
    return toolchain, pieces


def growth_checks(pieces: "dict[str, Piece]", before: "dict[str, int] | None") -> "list[Check]":
    """A piece that only one side knows has no growth, and fails: its count would not be watched."""
    if before is None:
        return [Check(f"growth: {name}", None, "%", MOST_GROWTH) for name in pieces]
    checks = []
    for name in {**pieces, **before}:
        if name in pieces and name in before:
            growth = 100 * (pieces[name].instructions / before[name] - 1)
            checks.append(at_most(MOST_GROWTH, f"growth: {name}", growth, "%"))
        else:
            where = "baseline" if name in pieces else "run"
            checks.append(Check(f"growth: {name}, which the {where} lacks", None, "%", MOST_GROWTH, False))
    return checks


def turn_checks(pieces: "dict[str, Piece]") -> "list[Check]":
    return [
        at_most(
            MOST_TURN if held else None,
            f"turn: {name}, after 2048 / after 32",
            pieces[f"{name}/after_2048"].each / pieces[f"{name}/after_32"].each,
            "x",
        )
        for name, held in TURNS
    ]


def miss_checks(pieces: "dict[str, Piece]") -> "list[Check]":
    checks = []
    for many, few, held in PATHS:
        a, b = pieces[many], pieces[few]
        misses = (a.misses - b.misses) / (a.runs - b.runs)
        checks.append(at_most(MOST_MISSES if held else None, f"misses: {many} - {few}", misses, "per run"))
    return checks


def table(head: "tuple[str, ...]", rows: "list[tuple[str, ...]]"):
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    print()
    for row in [head, *rows]:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip())


def print_tables(pieces: "dict[str, Piece]", before: "dict[str, int] | None", checks: "list[Check]"):
    rows = []
    for name, piece in pieces.items():
        was = (before or {}).get(name)
        growth = f"{100 * (piece.instructions / was - 1):+.1f} %" if was else ""
        each = f"{piece.each:,.0f}" if piece.times > 1 else ""
        rows.append((name, f"{piece.instructions:,}", each, f"{was:,}" if was else "", growth, f"{piece.misses:,}"))
    table(("piece of work", "instructions", "each", "baseline", "growth", "LL misses"), rows)
    rows = []
    for c in checks:
        if c.name.startswith("growth: ") and c.ok is not False:
            continue  # they stand in the table above
        value = "" if c.value is None else f"{c.value:.3f} {c.unit}"
        verdict = "for information" if c.bar is None else ("met" if c.ok else "NOT MET")
        rows.append((c.name, value, "" if c.bar is None else f"<= {c.bar:g}", verdict))
    table(("check", "value", "bar", ""), rows)


def self_test():
    good = {
        "index/match": Piece(1000, 0),
        **{f"{name}/after_32": Piece(1000, 0) for name, _ in TURNS},
        **{f"{name}/after_2048": Piece(8 * 1290, 0, times=8) for name, _ in TURNS},
        **{many: Piece(1000, 900 + 512 * 2, runs=512) for many, _, _ in PATHS},
        **{few: Piece(1000, 900 + 64 * 2, runs=64) for _, few, _ in PATHS},
    }
    baseline = {name: piece.instructions for name, piece in good.items()}

    def failed(pieces=None, before=baseline):
        pieces = {**good, **(pieces or {})}
        checks = growth_checks(pieces, before) + turn_checks(pieces) + miss_checks(pieces)
        return [c.name for c in checks if c.ok is False]

    bad_turn = {"cache/turn/after_2048": Piece(8 * 1310, 0, times=8)}
    cases = [
        ("as before", failed(), []),
        ("9 % more", failed({"index/match": Piece(1090, 0)}), []),
        ("11 % more", failed({"index/match": Piece(1110, 0)}), ["growth: index/match"]),
        ("half as many", failed({"index/match": Piece(500, 0)}), []),
        ("no baseline for the toolchain", failed({"index/match": Piece(9999, 0)}, None), []),
        ("a piece without baseline", failed({"new": Piece(1, 0)}), ["growth: new, which the baseline lacks"]),
        ("a baseline without its piece", failed(None, {**baseline, "old": 1}), ["growth: old, which the run lacks"]),
        ("a turn of 1.31", failed(bad_turn), ["turn: cache/turn, after 2048 / after 32"]),
        ("the same, without baseline", failed(bad_turn, None), ["turn: cache/turn, after 2048 / after 32"]),
        (
            "a dear turn that is for information",
            failed({"cache/request/acquire/after_2048": Piece(99999, 0)}, None),
            [],
        ),
        (
            "2.1 misses for each run",
            failed({"index/path/split_4": Piece(1000, 900 + 64 * 2 + 941, runs=512)}),
            ["misses: index/path/split_4 - index/path/split_32"],
        ),
    ]
    wrong = [f"self-test: {name}: failed {got}, expected {expected}" for name, got, expected in cases if got != expected]
    print("\n".join(wrong) if wrong else f"self-test: {len(cases)} cases are judged rightly")
    return not wrong


def main() -> bool:
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("baseline", type=pathlib.Path)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    args = parser.parse_args()

    toolchain, pieces = read(args.folder)
    baselines = json.loads(args.baseline.read_text()) if args.baseline.exists() else {}
    if args.update:
        baselines[toolchain] = {name: piece.instructions for name, piece in pieces.items()}
        args.baseline.write_text(json.dumps(baselines, indent=1, sort_keys=True) + "\n")
        print(f"{args.baseline} has the counts of this run for {toolchain}")
    before = baselines.get(toolchain)
    checks = turn_checks(pieces) + miss_checks(pieces) + growth_checks(pieces, before)
    print_tables(pieces, before, checks)
    if args.json:
        report = {"checks": [c.as_json() for c in checks], "toolchain": toolchain}
        report["pieces"] = {name: vars(piece) for name, piece in pieces.items()}
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    print()
    if before is None:
        print(f"No baseline for {toolchain}: growth was not measured. Baselines are there for:")
        print("\n".join(f"  {name}" for name in baselines) or "  none")
        print("`scripts/callgrind.sh --update` adds one.")
    failed = [c.name for c in checks if c.ok is False]
    for name in failed:
        print(f"not met: {name}")
    print(f"{sum(c.ok is True for c in checks)} checks met, {len(failed)} not met ({toolchain})")
    return not failed


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
