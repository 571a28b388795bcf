"""What each output of a cell carries: agreed by every call that submits to it, or an error at the call that differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from bpfnb.cell import floating, scan
from bpfnb.errors import BpfnbError, ProgramError, SetupError, UnsupportedError
from bpfnb.program import Program
from bpfnb.schema import Schema
from bpfnb.tracer.edits import Submit

__all__ = ["carried", "without_types"]

_TIMES = ("ts", "ts_ns", "time", "time_ns", "timestamp")


def carried(program: Program, submits: Sequence[Submit], found: Mapping[int, Schema | str | None]) -> dict[str, Schema]:
    """The schema of each output that something is submitted to.

    ``found``: what each of ``submits`` hands over, by its number: None for a void pointer's target, a sentence where it
    cannot be described; a call in text that was not compiled is not in it. ProgramError where two calls of one output
    disagree or the type is unknown, UnsupportedError where it cannot be described.
    """
    schemas: dict[str, Schema] = {}
    first: dict[str, Submit] = {}
    for number, what in sorted(found.items()):
        call = submits[number]
        schema = _described(program, call, what)
        if schemas.setdefault(call.output, schema) != schema:
            raise ProgramError(
                f"{call.output} is given something else here than in line {first[call.output].line}; "
                "an output carries events of one type",
                line=call.line,
                column=call.column,
                hint="declare another output for it",
                source=program.source,
            )
        first.setdefault(call.output, call)
    return {name: _timed(program, schema) for name, schema in schemas.items()}


def without_types(program: Program) -> BpfnbError:
    """Why no output of a cell can be read that bcc loaded without type information."""
    cell = scan(program.source, program.cflags)
    for name, kind, at in floating(cell):
        line, column = cell.place(at)
        return UnsupportedError(
            f"{name} is a {kind}: with a floating-point number in a struct bcc gives the kernel no type information, "
            "so the outputs of this cell cannot be read",
            line=line,
            column=column,
            hint="make it an integer: BPF programs cannot compute with other numbers",
            source=program.source,
        )
    return SetupError("bcc gave the kernel no type information (BTF) of this cell, so its outputs cannot be read")


def _described(program: Program, call: Submit, what: Schema | str | None) -> Schema:
    place: dict[str, Any] = {"line": call.line, "column": call.column, "source": program.source}
    if what is None:
        raise ProgramError(
            f"{call.output} is given a void pointer, which does not say what it points to",
            hint="submit a pointer to a struct or a number",
            **place,
        )
    if isinstance(what, str):
        raise UnsupportedError(f"{call.output} cannot be read: {what}", **place)
    return what


def _timed(program: Program, schema: Schema) -> Schema:
    """The schema, with the column that holds nanoseconds of bpf_ktime_get_ns named as its time."""
    for column in schema.columns:
        if (
            program.clocks
            and column.name in _TIMES
            and (column.kind, column.dtype) in (("number", "<u8"), ("number", "<i8"))
        ):
            return replace(schema, time=column.name)
    return schema
