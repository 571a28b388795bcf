"""Events as a trace for Perfetto (ui.perfetto.dev, trace_processor).

Field numbers are those of Perfetto's protos/perfetto/trace/trace_packet.proto and what it imports. One packet sequence
has all, with names interned; once there are too many of these the sequence begins anew.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from bpfnb.exports.files import written
from bpfnb.exports.protobuf import data, double, number, text
from bpfnb.exports.timeline import Event, Track
from bpfnb.results.flame.kinds import shown

__all__ = ["Clocks", "write_perfetto"]

_REALTIME, _MONOTONIC, _BOOTTIME = 1, 3, 6  # perfetto/common/builtin_clock.proto
_BEGIN, _END, _INSTANT, _COUNTER = 1, 2, 3, 4  # TrackEvent.Type
_CLEARED, _NEEDS = 1, 2  # TracePacket.SequenceFlags
_CATEGORIES, _NAMES, _ARGS, _STRINGS = 1, 2, 3, 29  # InternedData
_FUNCTIONS, _FRAMES, _STACKS, _PATHS, _MAPPINGS = 5, 6, 7, 17, 19
_MAX_INTERNED = 1 << 18
_FLUSH = 1 << 20  # bytes


class Clocks(NamedTuple):
    """The machine's clocks at one moment, in nanoseconds. ``realtime`` minus ``monotonic`` is what made the rows'
    times."""

    realtime: int
    monotonic: int
    boottime: int | None


def write_perfetto(
    path: str | os.PathLike[str],
    events: Iterable[Event],
    title: str,
    clocks: Clocks | None = None,
    overwrite: bool = False,
    most_names: int = _MAX_INTERNED,
) -> int:
    """Write events; return how many. ``title``: their category. ``clocks``: without them, times are wall-clock times,
    which no other trace's are compared with. ``most_names``: that are remembered, so that each is written once."""
    count = 0
    with written(path, overwrite) as file:
        writer = _Writer(file.write, title, clocks, most_names)
        for event in events:
            writer.add(event)
            count += not event.counts
        writer.flush()
    return count


class _Writer:
    def __init__(self, write: Callable[[bytes], Any], title: str, clocks: Clocks | None, most_names: int) -> None:
        self._write = write
        self._title = title
        self._most_names = most_names
        self._offset = clocks.realtime - clocks.monotonic if clocks else 0
        self._clock = _MONOTONIC if clocks else _REALTIME
        self._uuid = secrets.randbits(62)  # of the first track: files that are joined have tracks of their own
        self._tracks: dict[Track | tuple[Track, str], int] = {}
        self._thread_names: dict[Track, str] = {}
        self._parts: list[bytes] = []
        self._size = 0
        self._clocks = clocks
        self._said_clocks = False
        self._begin()

    def add(self, event: Event) -> None:
        if not self._said_clocks:
            self._snapshot(event.begin)
        if self._interned > self._most_names:
            self._begin()
        if event.counts:
            for name, value in event.counts:
                self._count(event, name, value)
            return
        track = self._track(event)
        fields = [number(11, track), number(3, self._intern(_CATEGORIES, self._title))]
        fields.append(number(10, self._intern(_NAMES, event.name)))
        fields += [self._annotation(name, value) for name, value in event.args]
        self._packet(event.begin, data(11, number(9, _INSTANT if event.instant else _BEGIN), *fields))
        if not event.instant:
            self._packet(event.end, data(11, number(9, _END), number(11, track)))
        if event.stack and event.track.pid is not None:
            tid = event.track.tid if event.track.tid is not None else event.track.pid
            sample = [number(2, event.track.pid), number(3, tid), number(4, self._callstack(event.stack))]
            self._packet(event.end, data(66, *sample))

    def flush(self) -> None:
        self._write(b"".join(self._parts))
        self._parts, self._size = [], 0

    # --- packets ---

    def _begin(self) -> None:
        """Begin the sequence, and again: names that were given are forgotten."""
        self._numbers: dict[tuple[int, Any], int] = {}
        self._new: list[bytes] = []
        self._interned = 0
        self._append(number(13, _CLEARED), data(59, number(58, self._clock)))

    def _packet(self, time: int, *fields: bytes) -> None:
        new = [data(12, *self._new)] if self._new else []
        self._new = []
        self._append(number(8, time - self._offset), number(13, _NEEDS), *new, *fields)

    def _append(self, *fields: bytes) -> None:
        packet = data(1, number(10, 1), *fields)
        self._parts.append(packet)
        self._size += len(packet)
        if self._size > _FLUSH:
            self.flush()

    def _snapshot(self, first: int) -> None:
        """Say how the clocks stand to each other. Of rows from anywhere the wall clock is the only one."""
        self._said_clocks = True
        known = self._clocks
        if known is None:
            pairs, primary = [(_REALTIME, first)], _REALTIME
        else:
            pairs, primary = [(_REALTIME, known.realtime), (_MONOTONIC, known.monotonic)], _MONOTONIC
            if known.boottime is not None:
                pairs.append((_BOOTTIME, known.boottime))
                primary = _BOOTTIME
        clocks = [data(1, number(1, clock), number(2, time)) for clock, time in pairs]
        self._append(data(6, *clocks, number(2, primary)))

    # --- tracks ---

    def _track(self, event: Event) -> int:
        """Return the number of an event's track. It is described with its first event."""
        track = event.track
        whole = track._replace(lane=0)
        if whole not in self._tracks:
            self._describe(whole, event)
        elif event.comm and track.tid is not None and self._thread_names[whole] != event.comm:
            self._describe(whole, event)  # it has a new name
        if track.lane and track not in self._tracks:
            self._tracks[track] = self._next()
            self._packet(
                event.begin,
                data(60, number(1, self._tracks[track]), number(5, self._tracks[whole]), text(2, self._title)),
            )
        return self._tracks[track]

    def _describe(self, track: Track, event: Event) -> None:
        uuid = self._tracks.setdefault(track, self._next())
        if track.pid is None:
            name = f"{event.comm} ({track.other})" if event.comm and track.other.startswith("thread ") else track.other
            self._packet(event.begin, data(60, number(1, uuid), text(2, name or self._title)))
            return
        process = track._replace(tid=None)
        if track.tid is None:
            named = [text(6, event.comm)] if event.comm else []
            self._packet(event.begin, data(60, number(1, uuid), data(3, number(1, track.pid), *named)))
            return
        first = event.comm if track.tid == track.pid else ""  # the first thread's name is the process's
        if process not in self._tracks or first:
            self._describe(process, event._replace(comm=first))
        thread = [number(1, track.pid), number(2, track.tid), *([text(5, event.comm)] if event.comm else [])]
        self._packet(event.begin, data(60, number(1, uuid), number(5, self._tracks[process]), data(4, *thread)))
        self._thread_names[track] = event.comm

    def _count(self, event: Event, name: str, value: float | int) -> None:
        process = event.track._replace(tid=None, lane=0)
        key = (process, name)
        if key not in self._tracks:
            parent = []
            if process.pid is not None:
                if process not in self._tracks:
                    self._describe(process, event._replace(comm=""))
                parent = [number(5, self._tracks[process])]
            shown_name = f"{process.other} {name}" if process.other and process.other != self._title else name
            self._tracks[key] = self._next()
            self._packet(event.begin, data(60, number(1, self._tracks[key]), *parent, text(2, shown_name), data(8)))
        whole = isinstance(value, int) and -(2**63) <= value < 2**63
        counted = number(30, int(value)) if whole else double(44, float(value))
        self._packet(event.begin, data(11, number(9, _COUNTER), number(11, self._tracks[key]), counted))

    def _next(self) -> int:
        self._uuid += 1
        return self._uuid

    # --- names ---

    def _intern(self, kind: int, value: str) -> int:
        """Return the number of a name; the next packet brings it along, where it is new."""
        known = self._numbers.get((kind, value))
        return known or self._new_number(kind, value, text(2, value))

    def _new_number(self, kind: int, value: Any, *fields: bytes) -> int:
        self._interned += 1
        self._numbers[kind, value] = self._interned
        self._new.append(data(kind, number(1, self._interned), *fields))
        return self._interned

    def _annotation(self, name: str, value: Any) -> bytes:
        field = number(1, self._intern(_ARGS, name))
        if isinstance(value, bool):
            return data(4, field, number(2, value))
        if isinstance(value, int):
            return data(4, field, number(4 if value < 2**63 else 3, value))
        if isinstance(value, float):
            return data(4, field, double(5, value))
        return data(4, field, number(17, self._intern(_STRINGS, str(value))))

    def _callstack(self, stack: str) -> int:
        known = self._numbers.get((_STACKS, stack))
        if known:
            return known
        frames = [self._frame(name) for name in stack.split(";")]
        return self._new_number(_STACKS, stack, *(number(2, frame) for frame in frames))

    def _frame(self, name: str) -> int:
        known = self._numbers.get((_FRAMES, name))
        if known:
            return known
        function = self._intern(_FUNCTIONS, shown(name))
        where = "kernel" if name.endswith("_[k]") else "user"
        mapping = self._numbers.get((_MAPPINGS, where))
        if not mapping:
            mapping = self._new_number(_MAPPINGS, where, number(7, self._intern(_PATHS, where)))
        return self._new_number(_FRAMES, name, number(2, function), number(3, mapping))
