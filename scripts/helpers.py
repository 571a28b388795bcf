#!/usr/bin/env python3
"""Writes since which Linux there are the helpers into bpfnb/language/editing/helpers.txt.

    scripts/helpers.py PATH             # the file, as it would be written
    scripts/helpers.py PATH --write

PATH is docs/kernel-versions.md of iovisor/bcc. What a helper does is written by hand, in our own words: the kernel's
descriptions are in a header under another licence than ours. A helper that is not in bcc's list keeps its release.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "bpfnb" / "language" / "editing" / "helpers.txt"


def releases(text: str) -> dict[str, str]:
    """The releases that bcc's list has: {"bpf_ktime_get_ns": "4.1"}."""
    return {f"bpf_{name}": since for name, since in re.findall(r"`BPF_FUNC_(\w+)\(\)` \| ([\d.]+)", text)}


def with_releases(lines: list[str], since: dict[str, str]) -> list[str]:
    """The file's lines: name, release ("-" where it is not known), meaning."""
    made = []
    for line in lines:
        if line.startswith("#") or not line.strip():
            made.append(line)
            continue
        name, before, meaning = line.split(" ", 2)
        made.append(f"{name} {since.get(name, before)} {meaning}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--write", action="store_true", help="write the file, instead of printing it")
    given = parser.parse_args()
    text = "\n".join(with_releases(FILE.read_text().splitlines(), releases(given.path.read_text()))) + "\n"
    FILE.write_text(text) if given.write else print(text, end="")


if __name__ == "__main__":
    main()
