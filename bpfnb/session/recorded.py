"""A recording as a session: the same results, of another time, and maybe of another machine."""

from __future__ import annotations

import platform
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from bpfnb.errors import Diagnostic, MapError, ProgramError
from bpfnb.host.tracer import Tracer
from bpfnb.language.syscalls import of_machine
from bpfnb.protocol.messages import MapInfo
from bpfnb.recordings.format import Manifest
from bpfnb.recordings.output import RecordedOutput
from bpfnb.recordings.reader import MapSnapshot, Recording
from bpfnb.results.cost import Costs
from bpfnb.results.maps.entries import Snapshot, rows_of
from bpfnb.results.maps.map import Map
from bpfnb.results.output import default_keep
from bpfnb.results.presentation import Presentation, Rows
from bpfnb.results.stacks import UNKNOWN
from bpfnb.session.map_access import maps_of
from bpfnb.session.session import Session

if TYPE_CHECKING:
    from bpfnb.session.replay import Replay
    from bpfnb.views.live.panel import Panel

__all__ = ["Recorded"]


class Recorded(Session):
    """A session that was recorded: ``bpfnb.open`` makes these. All that reads a stopped session works.

    ``path``      where the recording is
    ``manifest``  what it says of itself: host, kernel, machine, versions, when it began
    ``missing``   rows that were delivered and are not in it, of each output that lacks some

    ``live(speed=1)`` plays it. ``maps[NAME].every("1s")`` has the snapshots that were taken meanwhile.
    """

    recording: Recording

    def __init__(
        self,
        recording: Recording,
        presentation: Presentation | None = None,
        notes: Sequence[str] = (),
        keep: int | None = None,
    ) -> None:
        """``presentation``: what makes ``df``. ``notes``: what is to be said of it, beside what the recording says."""
        manifest = recording.manifest
        shown = presentation and _of_machine(presentation, manifest.machine)
        super().__init__(manifest.name, manifest.program, keep or default_keep(), _no_tracer, presentation=shown)
        self.path: Path = recording.path
        self.manifest: Manifest = manifest
        self.recording = recording
        self.probes = manifest.probes
        self.warnings = (*manifest.warnings, *(Diagnostic(0, 0, "note", note) for note in self._remarks(notes)))
        self.returncode = manifest.returncode
        self._words = manifest.command
        self._began_at(manifest)
        for number, rows in enumerate(recording.outputs):
            self._outputs[rows.info.name] = RecordedOutput(rows, *recording.progress(number), self._keep)
            self._outputs[rows.info.name].owner = weakref.ref(self)
        self._maps = maps_of(self, manifest.maps)
        if costs := manifest.costs:
            self._costs = Costs.kept(costs.programs, costs.words)
        self._recorded_maps = {map_.info.name: map_ for map_ in recording.maps}
        self._taken: dict[str, tuple[MapSnapshot, ...]] = {}
        self.state = "stopped" if manifest.state == "stopped" else "failed"
        self.reason = manifest.reason if recording.ended else "its recording was cut short"
        self._ended.set()
        self._detached.set()

    def _began_at(self, manifest: Manifest) -> None:
        """Set when it began and ended, by CLOCK_MONOTONIC of the machine that it was recorded on."""
        ended = max(manifest.ended_ns or self.recording.newest, manifest.began_ns)
        self._started = (manifest.began_ns - manifest.epoch_ns) / 1e9
        self._finished = (ended - manifest.epoch_ns) / 1e9

    def _remarks(self, notes: Sequence[str]) -> list[str]:
        cut = "" if self.recording.ended else "the recording was cut short: what came after its last flush is not in it"
        return [note for note in (self.manifest.note, cut, *notes) if note]

    @property
    def df(self) -> pd.DataFrame:
        """Return the session's result: see Session.df. ``attrs["machine"]``: that of its numbers, where it is not of
        the kind that this one is."""
        frame = super().df
        if self.manifest.machine not in ("", platform.machine()):
            frame.attrs["machine"] = self.manifest.machine
        return frame

    @property
    def missing(self) -> Mapping[str, int]:
        outputs = [output for output in self._outputs.values() if isinstance(output, RecordedOutput)]
        return {output.name: output.unrecorded for output in outputs if output.unrecorded}

    def now(self) -> float:
        return self._present() + self.manifest.epoch_ns / 1e9

    def replay(self, speed: float = 1.0) -> Replay:
        """Begin to play it, as it came: a session whose rows, maps and losses are at first none, then more and more.

            play = opens.replay(speed=10)
            bpfnb.live(play, play.view("heatmap", "latency"))

        ``speed``: 2.0 is twice as fast as it was. It ends by itself, or by ``stop``; a panel's Pause holds it.
        ProgramError for what is no speed.
        """
        from bpfnb.session.replay import Replay

        return Replay(self, speed)

    def live(
        self, by: str | None = None, output: str | None = None, window: float = 60.0, speed: float | None = None
    ) -> Panel:
        """Show a panel: with ``speed`` it is played in it, as fast as it was (1.0), or faster or slower; else all of it
        is shown. See Session.live."""
        if speed is None:
            return super().live(by, output, window)
        play = self.replay(speed)
        try:
            return play.live(by, output, window)
        except BaseException:
            play.stop()
            raise

    # --- what the tracer would be asked ---

    @cached_property
    def _names(self) -> dict[tuple[int, int], tuple[str, str]]:
        return self.recording.symbols()

    def _resolve(self, pid: int, addresses: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        found = [self._names.get((pid, address), (UNKNOWN, "")) for address in addresses]
        return tuple(name for name, _ in found), tuple(module for _, module in found)

    def _refused(self, info: MapInfo) -> dict[int, int]:
        return self.manifest.counters.get(info.name, {})

    def _snapshots(self, name: str) -> Sequence[Snapshot] | None:
        info = self._maps[name].info
        return [Snapshot(taken.time, *rows_of(info, taken.count, taken.entries)) for taken in self.taken(name)]

    def taken(self, name: str) -> Sequence[MapSnapshot]:
        """Return the snapshots of a map, as they were written. For replays."""
        if name not in self._taken:
            self._taken[name] = tuple(self._recorded_maps[name].snapshots())
        return self._taken[name]

    def _last_entries(self, name: str) -> tuple[int, bytes] | MapError | None:
        if name not in self._final_maps:
            last = self._recorded_maps[name].last()
            lacking = MapError(f"the map {name} is not in the recording")
            self._final_maps[name] = (last.count, last.entries) if last else lacking
        return self._final_maps[name]

    def _count_entries(self) -> None:
        """Count nothing: it is known."""

    def _recorded(self) -> str:
        manifest = self.manifest
        began = datetime.fromtimestamp(manifest.began_ns // 1_000_000_000, timezone.utc)
        system = " ".join(filter(None, (f"Linux {manifest.kernel}", manifest.machine)))
        lacks = sum(self.missing.values())
        rows = f"{lacks:,} row is" if lacks == 1 else f"{lacks:,} rows are"
        missing = f"; {rows} not in it" if lacks else ""
        host = manifest.host or "a host without a name"
        return f"recorded on {host} ({system}) at {began:%Y-%m-%d %H:%M:%S} UTC, for {self.elapsed:.3g} s{missing}"


def _no_tracer() -> Tracer:
    raise ProgramError("this is a recording: nothing runs")


def _of_machine(presentation: Presentation, machine: str) -> Presentation:
    """Return a presentation whose numbers, such as those of system calls, are another machine's."""
    if isinstance(presentation, Rows):
        convert = presentation.convert

        def converted(rows: pd.DataFrame) -> pd.DataFrame:
            with of_machine(machine):
                return convert(rows)

        return replace(presentation, convert=converted)
    compute = presentation.compute

    def computed(maps: Mapping[str, Map]) -> pd.DataFrame:
        with of_machine(machine):
            return compute(maps)

    return replace(presentation, compute=computed)
