"""What a session's programs cost, from memory that the tracer keeps up to date."""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.protocol.messages import COSTS_CLOCK, COSTS_EACH, COSTS_HEAD, CostsAdded
from bpfnb.results.columns.text import text_dtype

__all__ = ["Costs", "no_costs"]

_TRIES = 200
_MIN_SHARE = 0.001  # of a CPU that is worth mentioning


class Costs:
    """A session's costs, as they are now. ``keep`` freezes them and lets go of the memory."""

    def __init__(self, message: CostsAdded, fd: int) -> None:
        self.programs = message.programs
        size = 8 * (COSTS_HEAD + COSTS_EACH * len(self.programs))
        self._words: npt.NDArray[np.int64] = np.frombuffer(mmap.mmap(fd, size, prot=mmap.PROT_READ), np.int64)

    @classmethod
    def kept(cls, programs: tuple[str, ...], words: Sequence[int]) -> Costs:
        """Return the costs that ``words`` were. ValueError for words that are not those of as many programs."""
        costs = cls.__new__(cls)
        costs.programs, costs._words = programs, np.array(words, np.int64)
        if len(words) != COSTS_HEAD + COSTS_EACH * len(programs):
            raise ValueError(f"{len(words)} numbers are not the costs of {len(programs)} programs")
        costs._words[0] = 0
        return costs

    def words(self) -> tuple[int, ...]:
        """Return the numbers, as CostsAdded describes them, of one moment."""
        return tuple(self._read().tolist())

    def keep(self) -> None:
        self._words = self._read()
        self._words[0] = 0

    @property
    def clock_ns(self) -> int:
        """How far CLOCK_MONOTONIC of the session's host is ahead of this machine's, in nanoseconds."""
        return int(self._words[COSTS_CLOCK])

    def frame(self) -> pd.DataFrame:
        """See Session.cost."""
        return _frame(self.programs, self._read())

    def shares(self) -> tuple[float, float] | None:
        """Return which share of a CPU the programs take, and the tracer to read their events; None where nothing was
        timed yet."""
        words = self._read()
        measured, passed, reading = (int(word) for word in words[1:4])
        if not measured:
            return None
        nanoseconds = int(words[COSTS_HEAD:].reshape(-1, COSTS_EACH)[:, 1].sum())
        return nanoseconds / measured, reading / passed if passed else 0.0

    def line(self) -> str:
        """Sum up all programs for the card: "1.3 % of a CPU, 240 ns a run", and what else takes a share worth
        mentioning; "" where nothing was timed yet."""
        words = self._read()
        measured, passed, reading = (int(word) for word in words[1:4])
        each = words[COSTS_HEAD:].reshape(-1, COSTS_EACH)
        runs, nanoseconds, trapped = (int(n) for n in (each[:, 0].sum(), each[:, 1].sum(), each[:, 0] @ each[:, 3]))
        if not measured:
            return ""
        text = f"{_percent(nanoseconds / measured)} of a CPU"
        text += f", {nanoseconds / runs:,.0f} ns a run" if runs else ""
        more = ((trapped / measured, "the uprobes' traps"), (reading / passed, "reading the events"))
        return text + "".join(f"; {what} {_percent(share)}" for share, what in more if share >= _MIN_SHARE)

    def _read(self) -> npt.NDArray[np.int64]:
        """Return a copy that was not being written meanwhile."""
        for _ in range(_TRIES):
            before = int(self._words[0])
            words = self._words.copy()
            if before % 2 == 0 and before == int(self._words[0]):
                break
            time.sleep(0.0001)  # a few stores; a tracer that was killed between them has left them as they are
        return words


def no_costs() -> pd.DataFrame:
    """Return the frame of a session of which nothing is known."""
    return _frame((), np.zeros(COSTS_HEAD, np.int64))


def _frame(names: tuple[str, ...], words: npt.NDArray[np.int64]) -> pd.DataFrame:
    measured, passed, reading, memory = (int(word) for word in words[1:5])
    runs, nanoseconds, missed, trap = words[COSTS_HEAD:].reshape(-1, COSTS_EACH).T
    unmeasured = np.full(len(runs), not measured)
    unknown = np.full(len(runs), np.nan)
    frame = pd.DataFrame(
        {
            "program": pd.array(names, dtype=text_dtype()),
            "runs": pd.arrays.IntegerArray(runs.copy(), unmeasured),
            "ns_per_run": np.divide(nanoseconds, runs, out=unknown.copy(), where=runs > 0),
            "cpu_share": nanoseconds / measured if measured else unknown,
            "missed": pd.arrays.IntegerArray(np.maximum(missed, 0), missed < 0),
        }
    )
    frame.attrs = {
        "seconds": measured / 1e9,
        "tracer": reading / passed if passed else 0.0,
        "memory": memory,
        "trap_ns": {name: int(ns) for name, ns in zip(names, trap, strict=True) if ns},
    }
    return frame


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
