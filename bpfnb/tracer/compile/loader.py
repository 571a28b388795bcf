"""The loader of bcc's C: rewrite a cell, compile it or take it from the cache, and load it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from msgspec.structs import replace

from bpfnb.errors import Diagnostic, UnsupportedError, few_descriptors
from bpfnb.language.program import MapDecl, Output, Program
from bpfnb.language.scan import scan
from bpfnb.protocol.messages import COUNTERS, MapInfo
from bpfnb.protocol.schema import PRINTK_LINES
from bpfnb.tracer.access.confine import Confinement
from bpfnb.tracer.cancel import Cancel
from bpfnb.tracer.compile.compiler import Compiler
from bpfnb.tracer.compile.jobs import CELL_PATH
from bpfnb.tracer.compile.outputs import PayloadType, payload_types, without_types
from bpfnb.tracer.compile.rewrite import rewrite
from bpfnb.tracer.compile.submits import LOST_MAP, NO_STAMP, padded_maps
from bpfnb.tracer.compile.updates import REFUSED_MAP, narrow_notes, shown_entries
from bpfnb.tracer.filters import text as filters
from bpfnb.tracer.kernel import bpf, features, pins, tracefs
from bpfnb.tracer.kernel import maps as kernel_maps
from bpfnb.tracer.kernel.uapi import MapType
from bpfnb.tracer.link import kinds, usdt
from bpfnb.tracer.link.kinds import Files
from bpfnb.tracer.link.many import numbers, raw_syscalls, ways
from bpfnb.tracer.loaded import Counters, Loaded, LoadedMap, LoadedOutput, ProgramSpec
from bpfnb.tracer.read import lines
from bpfnb.tracer.read.printk import new_tag
from bpfnb.tracer.source_map import Payloads, Rewritten

__all__ = ["BccLoader"]


class BccLoader:
    """Loads cells of bcc's C; for any thread."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler

    def load(self, program: Program, files: Files, confinement: Confinement, cancel: Cancel) -> Loaded:
        """Compile and load a program whose probes are there.

        ``files``: what probes in files depend on. Raises NotAllowed, CancelledError, and what Compiler.build raises.
        """
        into_ring = program.prints and _prints_into_ring(confinement)
        cell = scan(program.source, program.cflags)
        source = rewrite(
            program,
            cell,
            tag=new_tag() if program.prints and not into_ring else "",
            lines=into_ring,
            syscall_mode=ways.syscall_mode(program),
            path=CELL_PATH,
            readers=confinement.prelude + usdt.readers(cell, files.usdt) + numbers.prelude(program),
            late=_can(features.late_allocation),
            counting=_can(features.mapped_array),
        )
        loaded, payloads = self._build(program, source, confinement, cancel)
        try:
            loaded.tag = source.tag
            loaded.outputs = (*_lines(loaded, into_ring), *_outputs(program, source, loaded, payloads))
            loaded.map_infos = _map_infos(program, source, loaded)
            loaded.refused = _refused(source, loaded)
            loaded.notes = _notes(source, loaded.map_infos)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def _build(
        self, program: Program, source: Rewritten, confinement: Confinement, cancel: Cancel
    ) -> tuple[Loaded, Payloads]:
        pins.prepare(program.maps)
        specs = _specs(program)
        where = numbers.places(program)
        return self._compiler.build(
            source,
            program.cflags,
            specs,
            _map_names(program, source),
            program.headers,
            [m for m in program.maps if m.is_pinned],
            confinement,
            cancel,
            [where.get(spec) for spec in specs],
            raw_syscalls.task() if any(map(numbers.is_raw, where.values())) else None,
        )


def _specs(program: Program) -> list[ProgramSpec]:
    specs = dict.fromkeys(kinds.spec(probe) for probe in program.probes)
    specs |= dict.fromkeys(kinds.tail_call(name, caller) for name in program.tail_calls for caller in list(specs))
    return list(specs)


def _map_names(program: Program, source: Rewritten) -> list[str]:
    names = [output.name for output in program.outputs] + [m.name for m in program.maps]
    names += [LOST_MAP] if program.outputs else []
    names += [name for output in sorted(source.padded) for name in padded_maps(output)]
    names += [REFUSED_MAP] if source.counted else []
    names += filters.map_names(program.filters)
    names += numbers.wanted_maps(program)
    names += [lines.LINES_MAP, lines.LOST_MAP] if program.prints and not source.tag else []
    return list(dict.fromkeys(names))


def _prints_into_ring(confinement: Confinement) -> bool:
    """Return whether no tracefs instance can be made, or lines could show memory of the kernel that may not be read."""
    hidden = not confinement.kernel_memory
    return (hidden or not tracefs.is_writable()) and _can(features.snprintf)


@cache
def _can(feature: Callable[[], None]) -> bool:
    """Return whether this kernel does something (features.py)."""
    try:
        feature()
    except OSError as error:
        if few_descriptors(error):  # that says nothing of the kernel
            raise
        return False
    return True


# --- outputs ------------------------------------------------------------------------------------------------------


def _lines(loaded: Loaded, into_ring: bool) -> Iterator[LoadedOutput]:
    if into_ring:
        lost = Counters(loaded.maps[lines.LOST_MAP].fd)
        yield LoadedOutput("printk", "lines", loaded.maps[lines.LINES_MAP].fd, PRINTK_LINES, lost, stamped=True)


def _outputs(program: Program, source: Rewritten, loaded: Loaded, payloads: Payloads) -> Iterator[LoadedOutput]:
    """Yield every output that something is submitted to."""
    if not program.outputs:
        return
    if payloads is None:
        raise without_types(source.cell)
    what = payload_types(program, source.submits, payloads)
    # Of those of one name the preprocessor has chosen one. They have the last one's counter (submits.py).
    outputs = {output.name: (index, output) for index, output in enumerate(program.outputs)}
    for index, output in outputs.values():
        if output.name in what and output.name in loaded.maps:
            lost = Counters(loaded.maps[LOST_MAP].fd, index)
            yield _output(program, source, loaded.maps, output, what[output.name], lost)


def _output(
    program: Program,
    source: Rewritten,
    maps: dict[str, LoadedMap],
    output: Output,
    what: PayloadType,
    lost: Counters,
) -> LoadedOutput:
    name, fd = output.name, maps[output.name].fd
    if bpf.map_shape(fd).type == MapType.PERF_EVENT_ARRAY:
        padded = tuple(maps[more].fd for more in padded_maps(name)) if name in source.padded else ()
        return LoadedOutput(name, "perf", fd, what.schema, lost, what.sizes, padded, cpu=program.cpu)
    stamped = name in source.stamped
    if program.cpu and not stamped:
        message = f"the CPU of {name}'s events cannot be noted: {NO_STAMP}"
        raise UnsupportedError(message, line=output.line)
    return LoadedOutput(name, "ring", fd, what.schema, lost, stamped=stamped, cpu=program.cpu)


# --- maps ---------------------------------------------------------------------------------------------------------


def _map_infos(program: Program, source: Rewritten, loaded: Loaded) -> tuple[MapInfo, ...]:
    """Return the maps that are in the compiled text, each once."""
    declared = {m.name: m for m in program.maps if m.name in loaded.maps}
    return tuple(_map_info(m, source, loaded.maps[name]) for name, m in declared.items())


def _map_info(declared: MapDecl, source: Rewritten, loaded: LoadedMap) -> MapInfo:
    name = declared.name
    described = kernel_maps.describe(
        loaded.fd, name, declared.macro, loaded.key, loaded.value, declared.line, pinned=declared.pinned
    )
    counters = source.counted.index(name) * COUNTERS if name in source.counted else -1
    shown = shown_entries(source.cell, name) if described.kind == "array" else 0
    return replace(described, counters=counters, shown=shown)


def _refused(source: Rewritten, loaded: Loaded) -> Counters | None:
    if not source.counted:
        return None
    return Counters(loaded.maps[REFUSED_MAP].fd, count=COUNTERS * len(source.counted))


def _notes(source: Rewritten, maps: tuple[MapInfo, ...]) -> tuple[Diagnostic, ...]:
    """Return what the user should know of additions that are left as they are."""
    sizes = {info.name: info.value_size for info in maps if "percpu" not in info.kind}
    return (*source.notes, *narrow_notes(source.increments, sizes))
