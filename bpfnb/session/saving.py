"""``Session.save``: what is kept of a session, as a recording."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec
import numpy as np

from bpfnb import release
from bpfnb.errors import BpfnbError, ProgramError
from bpfnb.interrupts import uninterrupted
from bpfnb.progress import Step, step
from bpfnb.recordings.format import VERSION, CostWords, Manifest, OutputInfo
from bpfnb.recordings.naming import Asked, Owners, ask_all
from bpfnb.recordings.reader import Recording
from bpfnb.recordings.writer import Writer
from bpfnb.results.maps.entries import Still
from bpfnb.results.maps.kinds import HOLDS
from bpfnb.results.maps.map import Map
from bpfnb.results.output import Output, Position
from bpfnb.results.presentation import Rows, Shown, Table
from bpfnb.session.map_access import MapAccess

if TYPE_CHECKING:
    from bpfnb.session.session import Session

__all__ = ["Machine", "Saving", "machine", "manifest_of"]

_BYTES = 8 << 20  # of rows in memory at a time
_ROWS = 1 << 16
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Saving:
    """The method of a session that keeps all of it in a file."""

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write a recording of what is kept now: a folder, or a zip where ``path`` ends in .zip. ``bpfnb.open(path)``
        is a session with the same results, also on a machine without BPF.

        All rows kept, the maps as they are, names of stacks, probes, losses, costs. Of a session that runs: as it is at
        this moment; it goes on. The copy of a recording that was cut short has what could be read of it, and says that
        it is cut short as well.

        ProgramError for a path that exists, unless ``overwrite``: then a recording there is replaced, once the new one
        is whole, and nothing else is. An OSError's reason, such as a full disk, is a ProgramError too.
        """
        session = cast("Session", self)
        recording = getattr(self, "recording", None)
        with step(f"saving {session.name}") as saving:
            manifest = recording.manifest if isinstance(recording, Recording) else manifest_of(session)
            writer = Writer(path, manifest, overwrite=overwrite)
            try:
                if isinstance(recording, Recording):
                    _copy(recording, writer, saving)
                    if not recording.ended:  # else it would seem to have gone on until now
                        manifest = msgspec.structs.replace(manifest, ended_ns=recording.newest)
                else:
                    manifest = _Kept(session, writer, manifest, saving).write()
            except BaseException:
                writer.abandon()
                raise
            _close(writer, manifest)


@uninterrupted
def _close(writer: Writer, manifest: Manifest) -> None:
    if writer.failed:
        writer.abandon()
    else:
        writer.close(manifest)
    if writer.failed:
        raise ProgramError(writer.failed)


class Machine(NamedTuple):
    machine: str = ""
    host: str = ""
    boot: str = ""


def machine(kernel: str) -> Machine:
    """Return what a manifest says of the machine: of this one, where ``kernel`` is its; of another nobody knows."""
    if kernel != platform.release():
        return Machine()
    return Machine(platform.machine(), platform.node(), _BOOT.read_text().strip() if _BOOT.exists() else "")


def manifest_of(session: Session) -> Manifest:
    """Return what there is to be said of a session before its rows are."""
    bcc, kernel = _versions(session)
    here = Machine(host=session.host) if session.host else machine(kernel)
    outputs = tuple(_output(session, output) for output in list(session._outputs.values()))
    epoch = outputs[0].epoch_ns if outputs else time.time_ns() - time.monotonic_ns()
    presentation = session.presentation
    return Manifest(
        version=VERSION,
        bpfnb=release.version(),
        bcc=bcc,
        kernel=kernel,
        machine=here.machine,
        host=here.host,
        boot=here.boot,
        name=session.name,
        program=session.program,
        began_ns=int(session._started * 1e9) + epoch,
        epoch_ns=epoch,
        outputs=outputs,
        maps=tuple(map_.info for map_ in session._maps.values()),
        shown=presentation.shown() if presentation else Shown(),
    )


def _versions(session: Session) -> tuple[str, str]:
    """Return the versions of bcc and of the kernel."""
    try:
        hello = (session._tracer or session._connect()).hello()
    except BpfnbError:  # the tracer is gone, and with it who knew
        return "", ""
    return hello.bcc, hello.kernel


def _output(session: Session, output: Output) -> OutputInfo:
    units = dict(session.presentation.units) if isinstance(session.presentation, Rows) else {}
    units = {name: unit for name, unit in units.items() if name in output.names}
    return OutputInfo(output.name, output.kind, output.schema, output.epoch_ns, units)


class _Kept:
    """What is kept of a session, on its way into a file."""

    def __init__(self, session: Session, writer: Writer, manifest: Manifest, saving: Step) -> None:
        self._session, self._writer, self._manifest, self._saving = session, writer, manifest, saving
        self._asked = Asked(MapAccess(session, "").symbols, writer.symbols)
        self._maps: dict[str, Map] = {}
        self._owners: list[Owners] = []
        self._notes: list[str] = []

    def write(self) -> Manifest:
        """Write it; return the manifest to end with."""
        session = self._session
        counters = {map_.name: session._refused(map_.info) for map_ in session._maps.values()}
        ends = [session._outputs[info.name].end() for info in self._manifest.outputs]
        self._saving.say("reading maps")  # behind the rows that name stacks in them
        for number, map_ in self._stacks_last():
            self._write_map(number, map_)
        outputs = tuple(map(self._write_rows, range(len(ends)), self._manifest.outputs, ends))
        self._saving.say("naming stacks")
        rows = [owners.frame() for owners in self._owners]
        ask_all(self._maps, rows, session.presentation, session.program.filters.pid)
        if self._asked.failed:
            self._notes.append(f"names of functions are missing: {self._asked.failed}")
        costs = session._costs
        ended = session._finished or time.monotonic()
        return msgspec.structs.replace(
            self._manifest,
            outputs=outputs,
            probes=session.probes,
            warnings=session.warnings,
            shown=session.presentation.shown() if session.presentation else Shown(),
            command=tuple(session._command.words) if session._command else (),
            returncode=session.returncode,
            state="failed" if session.state == "failed" else "stopped",
            reason=session.reason or "saved while it ran",
            ended_ns=int(ended * 1e9) + self._manifest.epoch_ns,
            counters={name: counts for name, counts in counters.items() if counts},
            costs=CostWords(costs.programs, costs.words()) if costs else None,
            note="; ".join(self._notes),
        )

    def _write_rows(self, number: int, info: OutputInfo, end: Position) -> OutputInfo:
        """Write the rows that an output had when it was at ``end``."""
        output, owners, position, first = self._session._outputs[info.name], Owners(), Position(), True
        self._owners.append(owners)
        kept = output.rows - output.dropped
        most = min(max(_BYTES * kept // max(output.nbytes, 1), 1), _ROWS)
        if not info.schema.time:
            self._writer.came(number, output.since(position, None).times)
        while first or position.row < end.row:
            frame, position = output.read(position, min(most, max(end.row - position.row, 0)))
            self._writer.rows(number, frame, whole=first)
            owners.add(frame)
            first = False
            self._saving.say(f"saving {info.name}", self._writer.written(number), kept)
            if self._writer.failed:
                break
        rows, lost, written = end.row + end.undecoded, output.lost, self._writer.written(number)
        self._writer.progress(number, rows, lost)
        return msgspec.structs.replace(info, rows=rows, written=written, lost=lost)

    def _stacks_last(self) -> list[tuple[int, Map]]:
        """Return the maps, those that keep stacks behind those that count them: no stack is missing then."""
        numbered = list(enumerate(self._session._maps.values()))
        return sorted(numbered, key=lambda pair: pair[1].kind == "stack_trace")

    def _write_map(self, number: int, map_: Map) -> None:
        info = map_.info
        if map_.kind in HOLDS:
            return
        try:
            count, data = MapAccess(self._session, info.name).read()
        except BpfnbError as error:
            self._notes.append(f"map {info.name} is not in it: {error.message}")
            return
        self._writer.snapshot(number, time.time_ns(), count, data, map_.lost)
        if isinstance(self._session.presentation, Table) or self._has_stacks:
            access = _Read(count, data, MapAccess(self._session, info.name), self._asked)
            self._maps[info.name] = Map(info, access).frozen()

    @property
    def _has_stacks(self) -> bool:
        return any(map_.kind == "stack_trace" for map_ in self._session._maps.values())


class _Read(Still):
    """A map's entries as they were read, of which stacks are named by ``asked``."""

    def __init__(self, count: int, data: bytes, access: MapAccess, asked: Asked) -> None:
        nothing = np.empty((0, 0), np.uint8)
        super().__init__(nothing, nothing, access)
        self._count, self._data = count, data
        self.symbols = asked

    def read(self) -> tuple[int, bytes]:
        return self._count, self._data


def _copy(recording: Recording, writer: Writer, saving: Step) -> None:
    """Write what another recording has."""
    for number, rows in enumerate(recording.outputs):
        saving.say(f"saving {rows.info.name}", 0, rows.expected)
        writer.flushed(number, rows.flushes)  # first: rows without times came when they were written there
        for batch in rows.batches():
            writer.rows(number, batch, whole=True)
            saving.tick(writer.written(number))
        writer.progress(number, *recording.progress(number))
    for number, map_ in enumerate(recording.maps):
        for taken in map_.snapshots():
            writer.snapshot(number, taken.time, taken.count, taken.entries, taken.lost)
    names = recording.symbols()
    for pid in dict.fromkeys(pid for pid, _ in names):
        addresses = [address for owner, address in names if owner == pid]
        found = [names[pid, address] for address in addresses]
        writer.symbols(pid, addresses, [name for name, _ in found], [module for _, module in found])
