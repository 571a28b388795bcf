"""Buckets that numbers are put into as they come. A bucket has a number, its slot; slots rise with what is in them.

slots, factor = scale.slots(numbers)     factor: what all slots given before are to be divided by, mostly 1
low, high = scale.bounds(slots)          a bucket holds low <= number < high
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bpfnb.errors import ProgramError

__all__ = ["Given", "Linear", "Log2", "Scale", "Slots", "filled", "scale_of"]

Array: TypeAlias = npt.NDArray[Any]
Ints: TypeAlias = npt.NDArray[np.int64]

LAST_LOG2 = 64  # the greatest bucket that bpf_log2l() gives
_NEGATIVE, _ZERO = -2000, -1999  # slots of Log2 below all powers
_LEAST_POWER = -60  # of a float's bucket; what is smaller is counted with 0
_POWERS = np.left_shift(np.uint64(1), np.arange(64, dtype=np.uint64))

_FINE, _COARSE = 40, 100  # linear buckets: about so many at the first numbers, at most so many ever
_LARGEST_SLOT = 1 << 53
_MAX_FILLED = 4096


class Scale(Protocol):
    kind: Literal["log2", "linear"]

    def slots(self, numbers: Array) -> tuple[Ints, int]: ...

    def bounds(self, slots: Ints) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...


def scale_of(kind: str) -> Scale:
    """Return a new scale of a kind, "log2" or "linear"."""
    return Linear() if kind == "linear" else Log2()


class Log2:
    """Powers of two, as ``df.bpf.hist`` has them: all negative numbers, 0, 1, [2, 4), [4, 8) and on; of floats also
    [0.5, 1), [0.25, 0.5) and on."""

    kind: Literal["log2", "linear"] = "log2"

    def __init__(self) -> None:
        self._floats = False

    def slots(self, numbers: Array) -> tuple[Ints, int]:
        if numbers.dtype.kind == "f":
            self._floats = True
            powers = np.frexp(numbers)[1].astype(np.int64) - 1
            slots = np.where((numbers <= 0) | (powers < _LEAST_POWER), _ZERO, powers)
        else:  # not by floats: they cannot tell 2**63 - 1 from 2**63
            unsigned = np.maximum(numbers, 0).astype(np.uint64)
            slots = np.searchsorted(_POWERS, unsigned, side="right") - 1
            slots[slots < 0] = _ZERO
        return np.where(numbers < 0, _NEGATIVE, slots).astype(np.int64), 1

    def bounds(self, slots: Ints) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        powers = np.clip(slots, _LEAST_POWER, 1023)
        zero = 2.0**_LEAST_POWER if self._floats else 1.0
        low = np.where(slots == _NEGATIVE, -math.inf, np.where(slots == _ZERO, 0.0, np.ldexp(1.0, powers)))
        with np.errstate(over="ignore"):
            above = np.ldexp(1.0, powers + 1)
        return low, np.where(slots == _NEGATIVE, 0.0, np.where(slots == _ZERO, zero, above))


class Linear:
    """Buckets of one round width, which is 1 or 2 times a power of ten. It is chosen by the first numbers; where later
    ones would make too many buckets, neighbours are merged, which is exact."""

    kind: Literal["log2", "linear"] = "linear"

    def __init__(self) -> None:
        self._power: int | None = None  # of ten
        self._twice = False
        self._least: float = math.inf
        self._most: float = -math.inf

    def slots(self, numbers: Array) -> tuple[Ints, int]:
        if not len(numbers):
            return np.zeros(0, np.int64), 1
        self._least = min(self._least, numbers.min().item())
        self._most = max(self._most, numbers.max().item())
        if self._power is None:
            self._choose(whole=numbers.dtype.kind != "f")
        factor = 1
        while not self._fits():
            factor *= self._widen()
        return self._divided(numbers), factor

    def bounds(self, slots: Ints) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        width = self._width if self._power is not None else 1
        edges = np.concatenate([slots, slots + 1]).astype(np.float64)
        low, high = (_times(edges, width)).reshape(2, -1)
        return low, high

    @property
    def _width(self) -> float:
        power = self._power or 0
        unit: float = 10**power if power >= 0 else 10.0**power
        return 2 * unit if self._twice else unit

    def _choose(self, whole: bool) -> None:
        span = self._most - self._least or abs(self._least) or 1
        self._power = math.floor(math.log10(span / _FINE)) if span > 0 else 0
        self._power = max(self._power, 0 if whole else -300)

    def _widen(self) -> int:
        self._twice = not self._twice
        if self._twice:
            return 2
        self._power = (self._power or 0) + 1
        return 5

    def _fits(self) -> bool:
        first, last = (math.floor(edge / self._width) for edge in (self._least, self._most))
        return last - first < _COARSE and max(abs(first), abs(last)) < _LARGEST_SLOT

    def _divided(self, numbers: Array) -> Ints:
        width = self._width
        if numbers.dtype.kind != "f" and isinstance(width, int):
            if width > np.iinfo(np.int64).max:
                return np.floor(numbers / width).astype(np.int64)
            whole: Ints = (numbers // numbers.dtype.type(width)).astype(np.int64)
            return whole
        slots = np.floor(numbers / width)
        slots -= _times(slots, width) > numbers  # a quotient may be rounded past the edge
        slots += _times(slots + 1, width) <= numbers
        divided: Ints = slots.astype(np.int64)
        return divided


class Slots:
    """Buckets as bcc's bpf_log2l() numbers them: the numbers are buckets already. See Map.hist."""

    kind: Literal["log2", "linear"] = "log2"

    def __init__(self, name: str) -> None:
        self._name = name  # of the map

    def slots(self, numbers: Array) -> tuple[Ints, int]:
        slots = numbers.astype(np.int64)
        stray = slots[(slots < 0) | (slots > LAST_LOG2)]
        if len(stray):
            raise ProgramError(
                f"{self._name} has a bucket {int(stray[0]):,}, and powers of two have those from 0 to {LAST_LOG2}"
            )
        return slots, 1

    def bounds(self, slots: Ints) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return np.where(slots > 1, np.ldexp(1.0, slots - 1), 0.0), np.ldexp(1.0, slots)


class Given:
    """Buckets that somebody else has made: they are told apart by where they begin. ``kind``: what they look like."""

    def __init__(self) -> None:
        self.kind: Literal["log2", "linear"] = "log2"
        self._high_of: dict[float, float] = {}

    def learn(self, low: Array, high: Array) -> None:
        """Note buckets, before numbers are put into them: the lower bounds are the numbers."""
        self._high_of.update(zip(low.tolist(), high.tolist(), strict=True))
        edges = np.array(list(self._high_of.items()), np.float64).reshape(-1, 2)
        self.kind = _kind(edges[:, 0], edges[:, 1])

    def slots(self, numbers: Array) -> tuple[Ints, int]:
        bits = (np.asarray(numbers, np.float64) + 0.0).view(np.int64)  # 0.0: there is one zero
        return np.where(bits < 0, np.int64(-(2**63)) - bits, bits), 1

    def bounds(self, slots: Ints) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        low = np.where(slots < 0, np.int64(-(2**63)) - slots, slots).view(np.float64)
        return low, np.array([self._high_of[edge] for edge in low.tolist()], np.float64)


def _kind(low: Array, high: Array) -> Literal["log2", "linear"]:
    """Return what buckets are: of powers of two, each is as wide as all below it."""
    finite = np.isfinite(low) & np.isfinite(high)
    widths, lows = (high - low)[finite], low[finite]
    return "log2" if ((lows <= 1) | (widths == lows)).all() else "linear"


def filled(low: Array, high: Array, kind: str) -> tuple[Array, Array, Ints]:
    """Add the buckets that are missing between others. Return the bounds of all, and where each was, -1 for new ones.

    Powers of two double; below zero, as one-liners have them, they are 1 - 2**n. A gap above a bucket of numbers near
    zero is none: no number has been in it.
    """
    widths = [width for width in (high - low).tolist() if math.isfinite(width)]
    between = partial(_steps, min(widths, default=1)) if kind == "linear" else _powers
    bounds: list[tuple[float, float, int]] = []
    for place, (begin, end) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        if bounds and 0 < bounds[-1][1] < min(begin, 1) and bounds[-1][0] <= 0 and kind == "log2":
            bounds[-1] = (bounds[-1][0], begin, bounds[-1][2])
        edges = [*between(bounds[-1][1], begin), begin] if bounds and bounds[-1][1] < begin else []
        bounds += [(first, last, -1) for first, last in pairwise(edges)][:_MAX_FILLED]
        bounds.append((begin, end, place))
    table = np.array(bounds, np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2].astype(np.int64)


def _steps(width: float, begin: float, end: float) -> list[float]:
    """Return the edges from ``begin`` to before ``end``, one every ``width``."""
    steps = max(round((end - begin) / width), 1)
    return [begin + (end - begin) * step / steps for step in range(min(steps, _MAX_FILLED))]


def _powers(begin: float, end: float) -> list[float]:
    edges = []
    while begin < end and math.isfinite(begin):
        edges.append(begin)
        begin = 1 - (1 - begin) / 2 if begin < 0 else 2 * begin or 1
    return edges


def _times(slots: Array, width: float) -> Array:
    """Multiply by a width. Decimal fractions are divided by their whole inverse: 3 * 0.1 is not 0.3, 3 / 10 is."""
    if width < 1 and (inverse := round(1 / width)) < _LARGEST_SLOT:
        return slots / inverse
    return slots * width
