"""Stacks as files that other tools read: folded, for flamegraph.pl and inferno; speedscope's own format."""

from __future__ import annotations

import json
import re

from bpfnb.release import version
from bpfnb.results.flame.fold import Folded, clean
from bpfnb.results.flame.kinds import shown

__all__ = ["folded_text", "speedscope_text"]

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"
_UNITS = {"count": "none", "ns": "nanoseconds", "bytes": "bytes"}
_PYTHON = re.compile(r"py::(?P<name>.+):(?P<file>[^:]+)")


def folded_text(folded: Folded) -> str:
    """Write a line for each stack, "main;read 42", those with most first."""
    rows = sorted(zip(folded.stacks, folded.values.tolist(), strict=True), key=lambda row: (-row[1], row[0]))
    return "".join(f"{_line(stack)} {value}\n" for stack, value in rows)


def speedscope_text(folded: Folded, name: str) -> str:
    """Write JSON as speedscope's src/lib/file-format-spec.ts has it: one profile of the type "sampled".

    Stacks are in the order of their names, so that its view "Time Order" is a flame graph as well.
    """
    rows = sorted(zip(folded.stacks, folded.values.tolist(), strict=True))
    numbers: dict[str, int] = {}
    samples = [[numbers.setdefault(frame, len(numbers)) for frame in stack.split(";")] for stack, _ in rows]
    weights = [value for _, value in rows]
    profile = {
        "type": "sampled",
        "name": name,
        "unit": _UNITS[folded.unit],
        "startValue": 0,
        "endValue": sum(weights),
        "samples": samples,
        "weights": weights,
    }
    whole = {
        "$schema": _SCHEMA,
        "shared": {"frames": [_frame(frame) for frame in numbers]},
        "profiles": [profile],
        "name": name,
        "activeProfileIndex": 0,
        "exporter": f"bpfnb@{version()}",
    }
    return json.dumps(whole, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _line(stack: str) -> str:
    return ";".join(map(clean, stack.split(";")))


def _frame(name: str) -> dict[str, str]:
    if found := _PYTHON.fullmatch(name):
        return {"name": found["name"], "file": found["file"]}
    kernel = name.endswith("_[k]")
    return {"name": shown(name), "file": "[kernel]"} if kernel else {"name": name}
