"""A recording that is played: a session whose clock runs again, at some speed, and that has what had come by then."""

from __future__ import annotations

import math
import threading
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfnb.errors import MapError, ProgramError
from bpfnb.interrupts import Flag, new_lock, uninterrupted
from bpfnb.protocol.messages import MapInfo
from bpfnb.recordings.output import RecordedOutput, RecordedTable
from bpfnb.recordings.reader import MapSnapshot
from bpfnb.results.maps.entries import Snapshot, rows_of
from bpfnb.results.output import Output, Position
from bpfnb.results.table import Table
from bpfnb.session.map_access import maps_of
from bpfnb.session.session import Session

if TYPE_CHECKING:
    from bpfnb.session.recorded import Recorded

__all__ = ["Replay"]

_LOOK = 0.2  # seconds between two looks whether anybody still has it

Ints = npt.NDArray[np.int64]


class Replay(Session):
    """A recording that is played. ``Recorded.replay`` makes these; each is played once.

    It is "running" until its clock has come to the recording's end, or ``stop``. ``pause`` and ``resume`` hold the
    clock; the Pause of its panel does so too.
    """

    def __init__(self, recorded: Recorded, speed: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: ours, by which the recording's runs."""
        super().__init__(
            recorded.name, recorded.program, recorded._keep.bytes, recorded._connect, presentation=recorded.presentation
        )
        self._of = recorded
        self.recording = recorded.recording
        self._clock = _Clock(recorded._started, recorded._present(), speed, clock)
        self._started = recorded._started
        self.probes, self.warnings = recorded.probes, recorded.warnings
        self._words = recorded._words
        for name, output in recorded._outputs.items():
            assert isinstance(output, RecordedOutput)
            self._outputs[name] = PlayedOutput(output, self, self._clock)
        self._maps = maps_of(self, recorded.manifest.maps)
        self._detached.set()
        self.state = "running"
        self._stop_asked = Flag()
        play = threading.Thread(
            target=_play, args=(weakref.ref(self), self._clock, self._stop_asked), name="bpfnb-replay", daemon=True
        )
        play.start()

    def pause(self) -> None:
        """Hold the clock."""
        self._clock.hold(True)

    def resume(self) -> None:
        """Have the clock run again."""
        self._clock.hold(False)

    def now(self) -> float:
        return self._present() + self._of.manifest.epoch_ns / 1e9

    def _present(self) -> float:
        return self._clock.now()

    def _stop(self, timeout: float, reason: str = "stopped") -> None:
        self._clock.hold(True)
        self._stop_asked.set()
        self._end("stopped", reason)

    # --- what the tracer would be asked ---

    @property
    def _in_kernel(self) -> bool:
        return False

    def _resolve(self, pid: int, addresses: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self._of._resolve(pid, addresses)

    def _refused(self, info: MapInfo) -> dict[int, int]:
        if self._clock.over:
            return self._of._refused(info)
        taken = self._taken(info.name)
        return {0: taken[-1].lost} if taken else {}  # why is not known before the end

    def _snapshots(self, name: str) -> Sequence[Snapshot] | None:
        info = self._maps[name].info
        return [Snapshot(taken.time, *rows_of(info, taken.count, taken.entries)) for taken in self._taken(name)]

    def _last_entries(self, name: str) -> tuple[int, bytes] | MapError | None:
        taken = self._taken(name)
        return (taken[-1].count, taken[-1].entries) if taken else (0, b"")

    def _taken(self, name: str) -> Sequence[MapSnapshot]:
        """Return the snapshots of a map that had been taken by now: at the end, all."""
        taken, now = self._of.taken(name), self.now() * 1e9
        return taken if self._clock.over else taken[: bisect_right(taken, now, key=lambda snapshot: snapshot.time)]

    def _recorded(self) -> str:
        return f"played, {self._clock.speed:g} times as fast as it was; {self._of._recorded()}"


class _Clock:
    """Seconds of CLOCK_MONOTONIC from ``begin`` to ``end``, at some speed. For any thread."""

    def __init__(self, begin: float, end: float, speed: float, ours: Callable[[], float]) -> None:
        if isinstance(speed, bool) or not isinstance(speed, Real) or not 0 < speed < math.inf:
            raise ProgramError(f"a speed is a number above 0: 1.0 is as fast as it was, 10 ten times; not {speed!r}")
        self.speed: float = float(speed)
        self._end: float = end
        self._lock: threading.Lock = new_lock()
        self._ours: Callable[[], float] = ours
        self._at: float = begin
        self._since: float = ours()
        self._held: bool = False

    def now(self) -> float:
        passed = 0.0 if self._held else (self._ours() - self._since) * self.speed
        return min(self._at + passed, self._end)

    @property
    def over(self) -> bool:
        return self.now() >= self._end

    def left(self) -> float:
        """Return how many seconds of ours it takes until it is over."""
        return math.inf if self._held else (self._end - self.now()) / self.speed

    @uninterrupted
    def hold(self, held: bool) -> None:
        with self._lock:
            self._at, self._since = self.now(), self._ours()
            self._held = held


def _play(of: weakref.ref[Replay], clock: _Clock, stopped: Flag) -> None:
    """Wait for the clock's end, and end the session then. One that nobody has any more is not waited for."""
    while not stopped.wait(min(clock.left(), _LOOK)):
        session = of()
        if session is None:
            return
        if clock.over:
            session._end("stopped", "it was played to its end")
            return
        del session


class PlayedTable(Table):
    """The rows of a recording up to some time: ``end`` moves."""

    def __init__(self, whole: RecordedTable) -> None:
        self._whole = whole
        self.names = whole.names
        self.begin = self.end = whole.begin

    @property
    def nbytes(self) -> int:
        return 0

    def frame(self) -> pd.DataFrame:
        return self._whole.part(self.begin, self.end)

    def part(self, begin: int, end: int) -> pd.DataFrame:
        return self._whole.part(begin, end)

    def raw(self, name: str) -> pd.Series[Any]:
        return self._whole.raw(name)

    def since(self, row: int, by: str | None) -> tuple[Ints, pd.Categorical[Any] | None]:
        times, groups = self._whole.since(row, by)
        count = self.end - min(max(row, self.begin), self.end)
        return times[:count], None if groups is None else groups[:count]

    def edition(self, by: str | None) -> object:
        return self._whole.edition(by)

    def now(self, clock_ns: int = 0) -> int:
        return self._whole.now(clock_ns)

    def shrink(self, keep: int) -> None:
        """Drop nothing."""


class PlayedOutput(Output):
    """An output of a recording that is played: it has the rows that had come by now."""

    def __init__(self, recorded: RecordedOutput, replay: Replay, clock: _Clock) -> None:
        info = recorded.recorded.info
        super().__init__(info.name, info.schema, info.epoch_ns, replay._keep, recorded.kind)
        self._recorded = recorded
        self._clock = clock
        self._whole = recorded.table_of_rows
        self._table = PlayedTable(self._whole)
        self.owner = weakref.ref(replay)

    @property
    def rows(self) -> int:
        with self._lock:
            self._decode()
            return self._table.end

    @property
    def lost(self) -> int:
        if self._clock.over:
            return self._recorded.lost
        flushes, now = self._recorded.recorded.flushes, self._present_ns()
        return max((flush.lost for flush in flushes if flush.time <= now), default=0)

    def has_more(self, position: Position) -> bool:
        return self._came() > position.row

    def _decode(self, most: int | None = None) -> None:
        self._table.end = max(self._came(), self._table.end)

    def _came(self) -> int:
        """Return the number after the last row that has come by now."""
        if self._clock.over:
            return self._whole.end
        return self._whole.begin + int(np.searchsorted(self._arrivals, self._present_ns(), side="right"))

    def _present_ns(self) -> int:
        return int(self._clock.now() * 1e9) + self._recorded.recorded.info.epoch_ns

    @cached_property
    def _arrivals(self) -> Ints:
        return self._whole.arrivals()
