"""The command behind scripts/bench."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import counting, delivery, detach, frames, guard, latency, maps, oneliners, parts, printk, streams
from benchmarks.common import CPUS, Group, build_producer, interleave, table

GROUPS: dict[str, Group] = {
    "ring": delivery.RING,
    "perf": delivery.PERF,
    "first": delivery.FIRST,
    "parts": parts.PARTS,
    "added": delivery.ADDED,
    "bpftrace": delivery.BPFTRACE,
    "sustained": delivery.SUSTAINED,
    "gil": delivery.GIL,
    "df": frames.FRAMES,
    "stream": streams.STREAM,
    "maps": maps.MAPS,
    "counting": counting.COUNTING,
    "printk": printk.PRINTK,
    "latency": latency.LATENCY,
    "detach": detach.DETACH,
    "many": detach.MANY,
    "guard": guard.GUARD,
    "oneliners": oneliners.ONELINERS,
    "attached": oneliners.ATTACHED,
}


def main() -> int:
    lines = "\n".join(f"  {name:11}{group.title}" for name, group in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="bpfnb beside bcc's own Python readers, bcc's maps and bpftrace, on the same programs, in one run.",
        epilog=f"the groups, all by default:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="groups to run")
    parser.add_argument("--quick", action="store_true", help="3 shorter runs instead of 5")
    parser.add_argument("--runs", type=int, help="runs a contender")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every run there")
    # scripts/bench itself has done this before we run.
    parser.add_argument("--install", action="store_true", help="first get with apt: a C compiler and bpftrace")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in GROUPS]:
        parser.error(f"no group {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    chosen = {name: GROUPS[name] for name in args.names or GROUPS}
    runs = args.runs or (3 if args.quick else 5)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that what was started ends with us
    with tempfile.TemporaryDirectory(prefix="bpfnb-bench-") as folder:
        report: dict[str, Any] = {"machine": {**_machine(), "producer": build_producer(Path(folder))}, "runs": runs}
        rows, failures = [], []
        for name, group in chosen.items():
            print(f"bench: {name}: {group.title}", file=sys.stderr, flush=True)
            results = interleave(group.contenders(args.quick), runs)
            made = [row for row in group.rows(results) if row.known]
            rows += made
            failures += [f"{name}, {contender}: {why}" for contender, why in results.failures.items()]
            report[name] = {"figures": results.figures, "failures": results.failures, "rows": [*map(asdict, made)]}
            if args.json:
                args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    print(f"medians of {runs} runs{', quick' if args.quick else ''}; ratio: bpfnb / peer\n")
    print("\n".join([*table(rows), *(f"\nfailed: {failure}" for failure in failures)]))
    return 0


def _machine() -> dict[str, str]:
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "Linux": platform.release(),
        "CPUs": f"{len(CPUS)} of {os.cpu_count()}",
        "Python": platform.python_version(),
        "pandas": pd.__version__,
        "numpy": np.__version__,
        "load": f"{os.getloadavg()[0]:.1f} at the beginning",
    }


if __name__ == "__main__":
    sys.exit(main())
