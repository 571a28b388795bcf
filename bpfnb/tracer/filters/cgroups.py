"""Cgroups (v2) by their paths."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

from bpfnb.errors import ProgramError, UnsupportedError, did_you_mean
from bpfnb.tracer.kernel.files import mounts

__all__ = ["open_cgroup"]

_MAX_KNOWN = 5_000  # cgroups to compare with one that is not there
_MAX_NAMES = 3  # in a hint


def open_cgroup(path: str) -> int:
    """Open a cgroup's directory: its descriptor. ``path``: from the root, or below where cgroups (v2) are mounted, as
    in /proc/PID/cgroup. ProgramError, with near names, where there is none; UnsupportedError where none are mounted."""
    roots = [Path(place) for place, kind in mounts() if kind == "cgroup2"]
    if not roots:
        raise UnsupportedError("cgroup cannot be had: no cgroups (v2) are mounted here")
    whole = [Path(path)] if any(Path(path).is_relative_to(root) for root in roots) else []
    inside = [p for p in (*whole, *(root / path.lstrip("/") for root in roots)) if ".." not in p.parts]
    for directory in inside:
        try:
            return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
    raise ProgramError(
        f"there is no cgroup {path!r} below {roots[-1]}", hint=(inside and _near(inside[0], roots)) or None
    )


def _near(wanted: Path, roots: list[Path]) -> str:
    """Return which cgroups may be meant: by the whole path, or by the last name in it."""
    root = next(root for root in roots if wanted.is_relative_to(root))
    below = [str(Path(folder).relative_to(root)) for folder, _, _ in islice(os.walk(root), 1, _MAX_KNOWN)]
    same = [path for path in below if Path(path).name == wanted.name][:_MAX_NAMES]
    return f"did you mean {' or '.join(same)}?" if same else did_you_mean(str(wanted.relative_to(root)), below)
