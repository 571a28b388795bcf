"""What a frame of a stack is, by its name: the kernel's, native, Python's and so on. Colours follow from it."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["GROUP", "KINDS", "kinds_of", "shown"]

# The order is what the numbers mean that kinds_of returns, here and in frontend/widgets/src/flame/palette.js.
KINDS = ("group", "native", "kernel", "Python", "compiled at run time", "unknown")
GROUP, NATIVE, KERNEL, PYTHON, COMPILED, UNKNOWN = range(len(KINDS))

# "_[k]" and the like are flamegraph.pl's annotations. "py::name:/file.py" is what CPython writes with -X perf,
# "name (file.py:12)" what py-spy does; V8 writes "LazyCompile:~name file.js:3" and "JS:*name", perf-map-agent
# "Lpath/Class::name".
_RULES = (
    (re.compile(r"_\[k\]$"), KERNEL),
    (re.compile(r"^py::|\.py(?::\d+)?\)?$|\(<(?:module|string|stdin)>.*\)$"), PYTHON),
    (
        re.compile(r"_\[j\]$|^(?:Lazy|Eager)?Compile:|^(?:LazyCompile|Function|JS|Script|Eval):|^L[\w/$]+(?:::|:|\.)"),
        COMPILED,
    ),
    (re.compile(r"^\[(?:unknown|no stack)|^0x[0-9a-f]+$|^\?+$"), UNKNOWN),
)
_SAID = re.compile(r"^py::(?=.)|(?<=.)_\[[kijw]\]$")


def kinds_of(names: Iterable[str]) -> npt.NDArray[np.uint8]:
    """Return the number in KINDS of each name. GROUP is no name's: what groups stacks is no function, and its caller
    knows."""
    return np.array([_kind(name) for name in names], np.uint8)


def shown(name: str) -> str:
    """Return a name without the annotation that its kind says already."""
    return _SAID.sub("", name)


def _kind(name: str) -> int:
    return next((kind for rule, kind in _RULES if rule.search(name)), NATIVE)
