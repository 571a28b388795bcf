"""The command ``bpfnb``, also ``python -m bpfnb``."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import bpfnb

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Its exit status: 0 when tracing works, 1 when it does not, 2 when it was called wrongly."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the marks are not in every terminal's character set
    report = bpfnb.doctor()
    text = json.dumps({"ok": report.ok, "rows": report.records()}, indent=2) if options.json else str(report)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # such as into head, which has read enough; Python would flush once more at its exit
        with Path(os.devnull).open("wb") as devnull:
            os.dup2(devnull.fileno(), sys.stdout.fileno())
    return 0 if report.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bpfnb", description="Trace a live Linux kernel from a Jupyter notebook. There: %load_ext bpfnb"
    )
    parser.add_argument("--version", action="version", version=f"bpfnb {bpfnb.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    doctor = commands.add_parser(
        "doctor",
        help="say whether this machine can trace, and what it lacks",
        description="Try out what tracing needs, and say what is missing and how to get it.",
        epilog="Exit status: 0 when tracing works, 1 when something required is missing.",
    )
    doctor.add_argument("--json", action="store_true", help="as JSON: ok, and rows")
    return parser


if __name__ == "__main__":
    sys.exit(main())
