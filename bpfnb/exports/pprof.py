"""Stacks as a profile for pprof, compressed by gzip. Perfetto, Pyroscope, speedscope and others read it as well.

Numbers of fields: https://github.com/google/pprof/blob/main/proto/profile.proto
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence

import numpy as np

from bpfnb.exports.files import written
from bpfnb.exports.protobuf import data, number, packed, text
from bpfnb.results.flame.fold import Folded
from bpfnb.results.flame.kinds import shown

__all__ = ["profile", "write_pprof"]

_TYPES = {"count": ("samples", "count"), "ns": ("time", "nanoseconds"), "bytes": ("space", "bytes")}


def write_pprof(path: str | os.PathLike[str], folded: Folded, name: str, overwrite: bool = False) -> None:
    """Write stacks with what was counted there."""
    with written(path, overwrite) as file:
        file.write(gzip.compress(profile(folded, name), mtime=0))


def profile(folded: Folded, name: str) -> bytes:
    """Return the message Profile. What stacks are put under, such as ``comm``, are the samples' labels. Values that are
    no whole numbers are rounded."""
    strings, functions = _Numbers([""]), _Numbers([])
    kinds = _TYPES[folded.unit]
    parts = [data(1, number(1, strings.of(kinds[0])), number(2, strings.of(kinds[1])))]
    for stack, value in zip(folded.stacks, np.rint(folded.values).astype(np.int64).tolist(), strict=True):
        labels, frames = _split(stack.split(";"), folded.by)
        locations = [functions.of(frame) + 1 for frame in reversed(frames)]  # the innermost first
        fields = [data(3, number(1, strings.of(key)), number(2, strings.of(label))) for key, label in labels]
        parts.append(data(2, packed(1, locations), packed(2, [value]), *fields))
    for at, where in enumerate(("[user]", "[kernel]"), 1):
        parts.append(data(3, number(1, at), number(5, strings.of(where)), number(7, 1)))
    for at, frame in enumerate(functions.values, 1):
        kernel = frame.endswith("_[k]")
        line = data(4, number(1, at))
        parts.append(data(4, number(1, at), number(2, 2 if kernel else 1), line))
        called = strings.of(shown(frame))
        parts.append(data(5, number(1, at), number(2, called), number(3, strings.of(frame))))
    parts.append(number(13, strings.of(f"bpfnb: {name}")))
    return b"".join([*parts, *(text(6, value) for value in strings.values)])


class _Numbers:
    """Different values, each with its number."""

    def __init__(self, values: list[str]) -> None:
        self._numbers = {value: at for at, value in enumerate(values)}

    @property
    def values(self) -> list[str]:
        return list(self._numbers)

    def of(self, value: str) -> int:
        return self._numbers.setdefault(value, len(self._numbers))


def _split(names: list[str], by: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    labels = [(key, name.removeprefix(f"{key}=")) for key, name in zip(by, names, strict=False)]
    return labels, names[len(by) :]
