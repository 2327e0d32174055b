# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""merge_results.py OUT --commit C --load-before X [NAME=FILE...]: one report of the JSON reports of several programs.

The report has the shape of each of them, {"checks": [{"name", "value", "unit", "bar", "ok"}, ...]}, with the machine and the
commit beside it, and each program's own fields under its name. A program that left no file, or no checks, is a failed
check of its own. Prints the checks as a table.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess


def first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0]


def machine(load_before: float) -> dict:
    cpu = next((line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        "cpu": cpu or platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "compiler": first_line(os.environ.get("CXX", "c++"), "--version"),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
    }


def merged(reports: list[str]) -> dict:
    """The checks of all reports, each name led by its program's, and the programs' own fields."""
    result = {"checks": [], "programs": {}}
    for name, _, file in (report.partition("=") for report in reports):
        try:
            report = json.loads(pathlib.Path(file).read_text())
            checks = report.pop("checks")
        except (OSError, ValueError, KeyError) as error:
            checks, report = [{"name": "report", "value": None, "unit": str(error), "bar": None, "ok": False}], {}
        result["checks"] += [{**check, "name": f"{name}: {check['name']}"} for check in checks]
        result["programs"][name] = report
    return result


def text(value) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--load-before", type=float, required=True)
    parser.add_argument("reports", nargs="*", metavar="NAME=FILE")
    args = parser.parse_intermixed_args()
    result = {
        "date": datetime.date.today().isoformat(),
        "commit": args.commit,
        "machine": machine(args.load_before),
        **merged(args.reports),
    }
    pathlib.Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(args.out).write_text(json.dumps(result, indent=1) + "\n")

    rows = [("check", "value", "unit", "bar", "")]
    rows += [
        (c["name"], text(c["value"]), text(c["unit"]), text(c["bar"]), {True: "met", False: "NOT MET"}.get(c["ok"], "not measured"))
        for c in result["checks"]
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


main()
