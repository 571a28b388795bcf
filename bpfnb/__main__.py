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
from bpfnb.hosts import host_of
from bpfnb.terminal import run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 where all is well, 1 where it is not, 2 for wrong arguments."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # marks and names are not in every terminal's character set
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["run"]:
        return run.main(words[1:])
    options = _parser().parse_args(words)
    if options.command == "setup":
        return _setup(options)
    try:
        report = host_of(options.host).doctor()
    except bpfnb.BpfnbError as error:
        print(f"bpfnb doctor: {error}", *filter(None, [error.hint]), sep="; ", file=sys.stderr)
        return 2
    text = json.dumps({"ok": report.ok, "rows": report.records()}, indent=2) if options.json else str(report)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # such as into head, which has read enough. Python would flush again at its exit
        with Path(os.devnull).open("wb") as devnull:
            os.dup2(devnull.fileno(), sys.stdout.fileno())
    return 0 if report.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bpfnb", description="Trace a live Linux kernel from a Jupyter notebook. There: %load_ext bpfnb"
    )
    parser.add_argument("--version", action="version", version=f"bpfnb {bpfnb.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    doctor = commands.add_parser(
        "doctor",
        help="say whether this machine can trace, and what it lacks",
        description="Try out what tracing needs, and say what is missing and how to get it.",
        epilog="Exit status: 0 when tracing works, 1 when something required is missing.",
    )
    doctor.add_argument("--host", metavar="HOST", help="look at that machine, which ssh reaches, in place of this one")
    doctor.add_argument("--json", action="store_true", help="as JSON: ok, and rows")
    commands.add_parser("run", help="run a ready-made tool; without a name: list them", add_help=False)
    install = commands.add_parser(
        "setup",
        help="let the members of a group trace, without making them root",
        description=_SETUP,
        epilog="Exit status: 0 when all is done, 1 when something went wrong.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = install.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--group", metavar="NAME", help="who may trace: the members of this group, which is made if needed"
    )
    what.add_argument("--undo", action="store_true", help="remove all that was made, of every version")
    install.add_argument(
        "--by", choices=("systemd", "sudo"), default="", help="what starts tracers, instead of what runs"
    )
    install.add_argument("--wheels", metavar="DIR", type=Path, help="take the packages from this folder: no downloads")
    install.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    return parser


_SETUP = """\
Let the members of a group trace this machine from their notebooks, without sudo.

Makes /opt/bpfnb/VERSION: a copy of bpfnb's tracer that only root can change, for the distribution's own Python, with
packages whose hashes are known. systemd starts it for members of the group, through a socket, with only the rights that
tracing needs. Where systemd does not run, sudo starts it, by a rule for this one program. The notebook finds it by
itself. Nothing of the caller's environment and settings is used. But this command runs, and copies, the bpfnb that it
belongs to: run it from a copy that you trust. Running it again does what is missing.
"""


def _setup(options: argparse.Namespace) -> int:
    from bpfnb import setup

    try:
        wheels = options.wheels.absolute() if options.wheels else None
        steps = setup.undo() if options.undo else setup.install(options.group, by=options.by, wheels=wheels)
        setup.run(steps, lambda words: print(words, flush=True), dry=options.dry_run)
    except bpfnb.BpfnbError as error:
        print(f"bpfnb setup: {error}", *filter(None, [error.hint]), sep="; ", file=sys.stderr)
        return 1
    if not steps:
        print("nothing to do")
    if options.group and not options.dry_run:
        print(
            f"members of the group {options.group} can trace: usermod -aG {options.group} NAME; then NAME logs in again"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
