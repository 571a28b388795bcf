"""A map over time: its entries, taken every so often by a thread, until the session ends.

moving = session.maps["latencies"].every("1s", drain=True)
moving.df                            every entry of every snapshot, with its time
moving.hist()                        a histogram for each snapshot
moving.stop()
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd

from bpfnb.errors import BpfnbError
from bpfnb.interrupts import Flag, forget_after_fork, uninterrupted
from bpfnb.protocol.schema import Rows
from bpfnb.results.buckets import HistKind
from bpfnb.results.maps.entries import Snapshot
from bpfnb.results.maps.frames import EntryFrames, Reduction
from bpfnb.results.maps.histograms import bucket_column, histogram
from bpfnb.results.output import Keep

__all__ = ["MapSnapshots"]

_POLL = 0.05  # seconds between two looks whether the session has ended
_END_TIMEOUT = 5.0  # seconds between an error of the last reads and the session's end that explains it
_LAST_TIMEOUT = 15.0  # seconds for the last snapshot once the session has ended


class MapSnapshots:
    """Snapshots of a map, the first at once and then one every so often. ``Map.every`` makes these.

    ``snapshots``   how many there are
    ``dropped``     how many were dropped, the oldest first: they count towards the session's ``keep``
    ``skipped``     how many were left out, because reading the map took longer than the interval
    ``reason``      why it ended, in one line; "" while it runs

    It ends with the session, with a last snapshot of the map as it was then; by ``stop``, or as a ``with`` block is
    left, with one of that moment; or when the map cannot be read any more. What was taken stays. For any thread.
    """

    def __init__(
        self,
        name: str,
        every: float,
        take: Callable[[], tuple[Rows, Rows]],
        frames: EntryFrames,
        mark: Callable[[pd.DataFrame], pd.DataFrame],
        keep: Keep,
        ended: Flag,
    ) -> None:
        """``take`` reads the map, ``mark`` adds its attributes to a frame. ``ended``: set when the session has."""
        self.dropped = self.skipped = 0
        self.reason = ""
        self._name = name
        self._every = every
        self._take = take
        self._frames = frames
        self._mark = mark
        self._keep = keep
        self._session_ended = ended
        self._snapshots: deque[Snapshot] = deque()
        self._nbytes = 0
        self._drops_said = self._skips_said = False
        self._stop = Flag()
        self._done = Flag()
        self._epoch = time.time_ns() - time.monotonic_ns()  # steps of the wall clock do not move the times
        keep.add_snapshots(self)
        forget_after_fork(self)

    # --- what was taken ---

    @property
    def snapshots(self) -> int:
        return len(self._snapshots)

    @property
    def df(self) -> pd.DataFrame:
        """The entries of all snapshots, oldest first: ``time`` (datetime64[ns, UTC]), then the columns of the map's
        ``df`` (one called "time" is "time_"). Of a drained one, those that have changed since the snapshot before.

        ``df.attrs``: those of the map's ``df``, "snapshots", "dropped" and "skipped".
        """
        return self._shown(lambda keys, values: self._frames.frame(keys, values))

    def reduced(self, how: Reduction = "sum") -> pd.DataFrame:
        """Reduce a per-CPU map's values over all CPUs, as ``Map.reduced``: a row a key and snapshot."""
        return self._shown(lambda keys, values: self._frames.reduced(keys, values, how))

    def hist(self, kind: HistKind = "log2", bucket: str = "", by: str | Sequence[str] | None = None) -> pd.DataFrame:
        """Make a histogram of each snapshot, as ``Map.hist`` does, in long form: every bucket up to the last that has
        a count in any, for every snapshot.

        Columns: ``time``, those of ``by``, ``bucket`` (int64), ``low``, ``high`` (float64), ``label``, ``count``
        (int64). Pivoted by ``time`` and ``bucket`` it is a heat map.
        """
        snapshots = self._kept()
        frame = self._joined(snapshots, lambda keys, values: self._frames.reduced(keys, values, "sum"))
        keys, counts = self._frames.names()
        at = bucket_column(self._name, keys, bucket)
        groups = [key for key in keys if key != at] if by is None else [by] if isinstance(by, str) else list(by)
        buckets = histogram(self._name, frame, keys, counts, kind=kind, bucket=at, by=groups)[["low", "high", "label"]]
        owner = np.repeat(np.arange(len(snapshots)), [len(snapshot.keys) for snapshot in snapshots])
        counted = (frame[counts[0]] != 0).to_numpy()
        frame, owner = frame[counted], owner[counted]
        known = frame[groups].drop_duplicates().reset_index(drop=True) if groups else pd.DataFrame(index=[0])
        group = np.zeros(len(frame), np.intp)
        if groups:
            group = frame[groups].merge(known.reset_index(names="group_"), how="left")["group_"].to_numpy()
        cube = np.zeros((len(snapshots), len(known), len(buckets)), np.int64)
        places = buckets.index.get_indexer(pd.Index(frame[at]))
        np.add.at(cube, (owner, group, places), frame[counts[0]].to_numpy().astype(np.int64))
        rows = np.indices(cube.shape).reshape(3, -1)
        long = pd.concat(
            [
                pd.DataFrame({"time": self._times(snapshots)[rows[0]]}),
                known.iloc[rows[1]].reset_index(drop=True),
                buckets.reset_index().iloc[rows[2]].reset_index(drop=True),
                pd.DataFrame({"count": cube.reshape(-1)}),
            ],
            axis=1,
        )
        return self._marked(long)

    # --- its end ---

    @uninterrupted
    def stop(self) -> None:
        """Take a last snapshot and end. Idempotent. The session goes on."""
        self._stop.set()
        self._done.wait()

    def __enter__(self) -> MapSnapshots:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        ended = f", ended: {self.reason}" if self.reason else ""
        return f"<MapSnapshots of {self._name}: {self.snapshots:,}, one every {self._every:g} s{ended}>"

    # --- inside ---

    @uninterrupted
    def start(self) -> None:
        """Start the thread. Not for users: ``Map.every`` has done it."""
        threading.Thread(target=self._run, name="bpfnb-snapshots", daemon=True).start()

    def fill(self, snapshots: Iterable[Snapshot]) -> None:
        """Have the snapshots of a recording, and end. Not for users."""
        self._snapshots.extend(snapshots)
        self.reason = "that is all of the recording"
        self._done.set()

    def forget(self) -> None:
        """Be ended, in a forked child: the thread is the parent's."""
        self.reason = self.reason or "this process was forked"
        self._stop = Flag()
        self._done = Flag()
        self._done.set()

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def shrink(self, size: int) -> bool:
        """Drop the oldest snapshots so that at most ``size`` bytes remain, and one snapshot at least."""
        before = self.dropped
        while self._nbytes > size and len(self._snapshots) > 1:
            self._nbytes -= _size(self._snapshots.popleft())
            self.dropped += 1
        return self.dropped > before

    def _run(self) -> None:
        try:
            self.reason = self._take_all()
        finally:
            self._done.set()

    def _take_all(self) -> str:
        """Take snapshots until there is a reason to end. Return it."""
        due = time.monotonic()
        while True:
            reason = self._wait_until(due)
            try:
                self._add()
            except BpfnbError as error:
                if reason or not self._session_ended.wait(_END_TIMEOUT):
                    return str(error)
                continue  # it was read as the session ended: now it is as it was at the end
            if reason:
                return reason
            late = int((time.monotonic() - due) / self._every)
            self.skipped += late
            due += (1 + late) * self._every

    def _wait_until(self, due: float) -> str:
        """Wait for the next snapshot's time. Return why it is the last one, else ""."""
        while True:
            if self._session_ended.is_set():
                return "the session ended"
            left = due - time.monotonic()
            if self._stop.wait(min(left, _POLL)):
                return "stopped"
            if left <= _POLL:
                return ""

    def _add(self) -> None:
        began = time.monotonic_ns()
        keys, values = (_own(rows) for rows in self._take())
        with self._keep.lock:
            snapshot = Snapshot(self._epoch + began, keys, values)
            self._snapshots.append(snapshot)
            self._nbytes += _size(snapshot)
            self._keep.enforce()

    @uninterrupted
    def _kept(self) -> list[Snapshot]:
        if self._session_ended.is_set():
            self._done.wait(_LAST_TIMEOUT)
        with self._keep.lock:
            return list(self._snapshots)

    def _shown(self, decode: Callable[[Rows, Rows], pd.DataFrame]) -> pd.DataFrame:
        snapshots = self._kept()
        frame = self._joined(snapshots, decode)
        entries = [len(snapshot.values) for snapshot in snapshots]
        each = len(frame) // max(sum(entries), 1)  # rows an entry: a per-CPU map has one a CPU
        if "time" in frame:
            frame = frame.rename(columns={"time": "time_"})
        times = self._times(snapshots)
        frame.insert(0, "time", times[np.repeat(np.arange(len(snapshots)), np.array(entries, np.int64) * each)])
        return self._marked(frame)

    def _joined(self, snapshots: Sequence[Snapshot], decode: Callable[[Rows, Rows], pd.DataFrame]) -> pd.DataFrame:
        if not snapshots:
            return decode(*self._frames.nothing())
        return decode(*(np.concatenate([snapshot[side] for snapshot in snapshots]) for side in (1, 2)))

    def _times(self, snapshots: Sequence[Snapshot]) -> pd.DatetimeIndex:
        times = np.array([snapshot.time for snapshot in snapshots], "M8[ns]")
        return pd.DatetimeIndex(times, tz="UTC")

    def _marked(self, frame: pd.DataFrame) -> pd.DataFrame:
        frame = self._mark(frame)
        frame.attrs.update(snapshots=self.snapshots, dropped=self.dropped, skipped=self.skipped)
        if self.dropped and not self._drops_said:
            self._drops_said = True
            limit = f"keep is {self._keep.bytes:,} bytes"
            _warn(f"the oldest {self.dropped:,} snapshots of {self._name} were dropped: {limit}")
        if self.skipped and not self._skips_said:
            self._skips_said = True
            why = f"reading it took longer than {self._every:g} s"
            _warn(f"{self.skipped:,} snapshots of {self._name} were left out: {why}")
        return frame


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=5)


def _own(rows: Rows) -> Rows:
    """Return rows that keep no more memory than their own."""
    base: Any = rows
    while getattr(base, "base", None) is not None:
        base = base.base
    whole = len(base) if isinstance(base, bytes) else getattr(base, "nbytes", 0)
    return rows.copy() if whole > rows.nbytes + (rows.nbytes >> 3) else rows


def _size(snapshot: Snapshot) -> int:
    return snapshot.keys.nbytes + snapshot.values.nbytes
