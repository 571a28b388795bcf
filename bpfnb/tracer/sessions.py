"""One running session on the tracer's side: its module, its links, its sources, and the order they close in."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache, partial

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from bpfnb.cell import scan
from bpfnb.errors import BpfnbError, ProgramError
from bpfnb.program import MapDecl, Probe, Program
from bpfnb.protocol import (
    COUNTERS,
    Connection,
    CountersAdded,
    Loaded,
    MapInfo,
    MapRead,
    ProbeInfo,
    SegmentAdded,
    ToTracer,
)
from bpfnb.schema import PRINTK, Layout, Schema
from bpfnb.tracer import attach, features, mapdump, pins, privileges, syscalls, usdt
from bpfnb.tracer.attach import Surroundings
from bpfnb.tracer.comms import CommHistory
from bpfnb.tracer.compiler import CELL_PATH, Compiler, Module
from bpfnb.tracer.drainer import Drainer
from bpfnb.tracer.edits import Rewritten
from bpfnb.tracer.engine import Engine
from bpfnb.tracer.link import Link, silence
from bpfnb.tracer.outputs import carried, without_types
from bpfnb.tracer.printk import PrintkSource, new_tag
from bpfnb.tracer.rewrite import rewrite
from bpfnb.tracer.rings import PerfSource, RingSource
from bpfnb.tracer.segments import SegmentWriter
from bpfnb.tracer.submits import LOST_MAP
from bpfnb.tracer.updates import REFUSED_MAP, shown_entries

__all__ = ["Sessions"]


class _Running:
    """A session: its module, and ``stack``, which undoes all that was done with it, the last first."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.stack = ExitStack()
        self.maps: tuple[MapInfo, ...] = ()

    def close(self) -> None:
        try:
            self.stack.close()
        finally:
            self.module.close()


class Sessions:
    """The running sessions, by number, and what they share."""

    def __init__(self, engine: Engine, compiler: Compiler, connection: Connection[ToTracer]) -> None:
        self._engine = engine
        self._compiler = compiler
        self._connection = connection
        self._drainer = Drainer()
        self._running: dict[int, _Running] = {}
        self._comms: CommHistory | None = None
        self._printing: set[int] = set()

    def start(self, number: int, program: Program, folder: str = "") -> Loaded:
        """Compile, load and attach. On any error nothing stays attached. ``folder``: see Load."""
        try:
            return self._start(number, program, folder)
        except BpfnbError as error:
            error.source = error.source or program.source
            raise

    def stop(self, number: int) -> None:
        """Detach, deliver the rest, and the maps as they are then, free. A session unknown or stopped is no error."""
        running = self._running.pop(number, None)
        if not running:
            return
        try:
            running.stack.close()
            for info in running.maps:
                if info.value:
                    # A queue shows its head alone, but nobody needs it any more. A pinned one others may.
                    take = info.kind in ("queue", "stack") and "PINNED" not in info.macro
                    with suppress(BpfnbError):  # too large for the memory there is: the session says that it is gone
                        self._send_map(0, number, info.name, mapdump.take if take else mapdump.dump, running)
        finally:
            running.close()

    def stop_all(self) -> None:
        """End every session; nobody is there any more to read what they leave."""
        while self._running:
            self._running.popitem()[1].close()

    # --- maps ---

    def read_map(self, request: int, number: int, name: str) -> None:
        """Send a map's entries, as MapRead has them."""
        self._send_map(request, number, name, mapdump.dump, self._of(number))

    def take_map(self, request: int, number: int, name: str, most: int) -> None:
        """Send entries, taken out of the map."""
        self._send_map(request, number, name, partial(mapdump.take, most=most), self._of(number), taken=True)

    def look_up(self, number: int, name: str, key: bytes) -> bytes | None:
        return mapdump.look_up(self._of(number).module.tables[name].fd, key)

    def write_map(self, number: int, name: str, key: bytes, value: bytes | None) -> bool:
        running = self._of(number)
        tables = running.module.tables
        kind = next(info.kind for info in running.maps if info.name == name)
        if value is not None and kind.endswith("_of_maps"):  # it is the inner map's name
            inner = value.decode(errors="replace")
            if inner not in tables:
                raise ProgramError(f"there is no map {inner!r} to put into {name}")
            value = struct.pack("=I", tables[inner].fd)
        return mapdump.write(tables[name].fd, key, value)

    def clear_map(self, number: int, name: str) -> None:
        mapdump.clear(self._of(number).module.tables[name].fd)

    def _of(self, number: int) -> _Running:
        if number not in self._running:
            raise ProgramError("the session has ended")
        return self._running[number]

    def _send_map(
        self,
        request: int,
        number: int,
        name: str,
        read: Callable[[int], tuple[int, int]],
        running: _Running,
        taken: bool = False,
    ) -> None:
        count, fd = read(running.module.tables[name].fd)
        try:
            self._connection.send(MapRead(request, number, name, count, taken), [fd])
        finally:
            os.close(fd)

    # --- starting ---

    def _start(self, number: int, program: Program, folder: str) -> Loaded:
        """What is begun first ends last: links, then the last drains, then what they read from, then the programs."""
        tag = new_tag() if program.prints else ""
        around = Surroundings(folder, usdt.find_all(program, folder))
        source = rewrite(
            program,
            tag=tag,
            syscall_mode=attach.syscall_mode(),
            path=CELL_PATH,
            readers=usdt.readers(program, around.usdt),
            late=_can(features.late_allocation),
            counting=_can(features.mapped_array),
        )
        running = _Running(self._build(program, source, around))
        try:
            if program.prints:
                self._read_printk(number, tag, running.stack)
            self._read_outputs(number, program, source, running)
            running.maps = _described(program, source, running.module)
            probes = self._attach(program, running, around)
            self._send_counters(number, source, running.module)
        except BaseException:
            running.close()
            raise
        self._running[number] = running
        return Loaded(number, probes, running.module.warnings, running.maps, source.notes)

    def _build(self, program: Program, source: Rewritten, around: Surroundings) -> Module:
        unsure = _conditional(program)
        for probe in program.probes:
            if probe.function not in unsure and probe not in around.usdt:
                attach.require(probe, around.folder)
        pins.prepare(program.maps)
        loads = dict.fromkeys(attach.wish(self._engine, probe) for probe in program.probes)
        tables = [output.name for output in program.outputs] + [m.name for m in program.maps]
        tables += [LOST_MAP] if program.outputs else []
        tables += [REFUSED_MAP] if source.counted else []
        return self._compiler.build(
            source,
            program.cflags,
            list(loads),
            list(dict.fromkeys(tables)),
            program.headers,
            [m for m in program.maps if "PINNED" in m.macro],
        )

    def _attach(self, program: Program, running: _Running, around: Surroundings) -> tuple[ProbeInfo, ...]:
        links: list[Link] = []
        unsure = _conditional(program)
        for probe in self._compiled(program, running.module):
            if probe.function in unsure:  # now it is sure; the others were asked for before they were compiled
                attach.require(probe, around.folder)
            with privileges.attaching():
                link = attach.attach(self._engine, running.module, probe, around)
            running.stack.callback(link.close)
            links.append(link)
        if not links:
            raise _nothing_compiled(program)
        # First of all at the end, so that no probe sees events when another, its counterpart, sees none any more.
        running.stack.callback(silence, links)
        return tuple(link.info for link in links)

    def _compiled(self, program: Program, module: Module) -> list[Probe]:
        """The probes whose function was compiled: one under an ``#if`` that came out false asks for nothing."""
        conditional = _conditional(program)
        probes = []
        for probe in program.probes:
            if attach.wish(self._engine, probe) in module.programs:
                probes.append(probe)
            elif probe.function not in conditional:
                raise ProgramError(f"there is no function {probe.function} in the compiled program")
        return probes

    def _send_counters(self, number: int, source: Rewritten, module: Module) -> None:
        """Hand the notebook the memory in which the programs count what their maps refuse."""
        if source.counted:
            fd = module.tables[REFUSED_MAP].fd
            syscalls.freeze(fd)
            self._connection.send(CountersAdded(number, COUNTERS * len(source.counted)), [fd])

    # --- reading ---

    def _read_outputs(self, number: int, program: Program, source: Rewritten, running: _Running) -> None:
        """Begin to read every output that something is submitted to."""
        if not program.outputs:
            return
        module, stack = running.module, running.stack
        if module.carried is None:
            raise without_types(program)
        schemas = carried(program, source.submits, module.carried)
        lost = _lost_counters(module)
        for index, output in enumerate(program.outputs):
            if output.name not in schemas or output.name not in module.tables:
                continue
            make = RingSource if output.kind == "ringbuf" else PerfSource
            with privileges.attaching():
                reader = make(
                    module.tables[output.name].fd,
                    schemas[output.name],
                    partial(self._writer, number, output.name, stack),
                    partial(_at, lost, index),
                )
            stack.callback(reader.close)
            self._drainer.add(reader.fds, reader.drain, tick=reader.tick)
            stack.callback(self._drainer.remove, reader.fds, last=partial(reader.drain, last=True))

    def _read_printk(self, number: int, tag: str, stack: ExitStack) -> None:
        comms = self._share_comms(number, stack)
        source = PrintkSource(tag, comms, self._writer(number, "printk", stack, PRINTK))
        stack.callback(source.close)
        self._drainer.add(source.fds, source.drain)
        stack.callback(self._drainer.remove, source.fds, last=partial(source.drain, last=True))

    def _writer(self, number: int, output: str, stack: ExitStack, schema: Schema) -> SegmentWriter:
        epoch = time.time_ns() - time.monotonic_ns()

        def publish(layout: Layout, fd: int) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # the notebook is gone: nobody will read it
                self._connection.send(SegmentAdded(number, output, schema, layout, epoch), [fd])

        writer = SegmentWriter(schema, publish)
        stack.callback(writer.close)
        return writer

    def _share_comms(self, number: int, stack: ExitStack) -> CommHistory:
        """The history of names, there while any session prints."""
        if self._comms is None:
            self._comms = CommHistory()
            self._drainer.add(self._comms.fds, self._comms.drain)
        self._printing.add(number)
        stack.callback(self._release_comms, number)
        return self._comms

    def _release_comms(self, number: int) -> None:
        self._printing.discard(number)
        if self._comms and not self._printing:
            self._drainer.remove(self._comms.fds)
            self._comms.close()
            self._comms = None


def _conditional(program: Program) -> set[str]:
    """The functions that may turn out not to be compiled."""
    return {f.name for f in program.functions if f.conditional}


def _nothing_compiled(program: Program) -> ProgramError:
    if not program.probes:
        return ProgramError("nothing in this cell is attached to a probe", hint="name one: -a syscall:clone=hello")
    first = program.probes[0]
    why = f"nothing would run: {first.function} stands under an #if that came out false"
    return ProgramError(why, line=first.line or None)


def _described(program: Program, source: Rewritten, module: Module) -> tuple[MapInfo, ...]:
    """The maps that are in the compiled text, each once."""
    cell = scan(program.source, program.cflags)
    declared = {m.name: m for m in program.maps if m.name in module.tables}
    return tuple(_describe(m, source, module, shown_entries(cell, m.name)) for m in declared.values())


def _describe(declared: MapDecl, source: Rewritten, module: Module, shown: int) -> MapInfo:
    name, table = declared.name, module.tables[declared.name]
    described = mapdump.describe(
        table.fd, name, declared.macro, table.key, table.value, declared.line, pinned=declared.pinned
    )
    counters = source.counted.index(name) * COUNTERS if name in source.counted else -1
    return replace(described, counters=counters, shown=shown if described.kind == "array" else 0)


@cache
def _can(feature: Callable[[], None]) -> bool:
    """Whether this kernel does something (features.py)."""
    try:
        feature()
    except OSError:
        return False
    return True


def _lost_counters(module: Module) -> npt.NDArray[np.uint64]:
    """The counters the programs keep of what could not be submitted, one an output: the kernel's own memory."""
    memory = mmap.mmap(module.tables[LOST_MAP].fd, mmap.PAGESIZE, prot=mmap.PROT_READ)
    return np.frombuffer(memory, np.uint64)


def _at(counters: npt.NDArray[np.uint64], index: int) -> int:
    return int(counters[index])
