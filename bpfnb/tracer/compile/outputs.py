"""The payload type of each output of a cell: that of every call that submits to it, or an error where one differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from bpfnb.errors import BpfnbError, ProgramError, SetupError, UnsupportedError
from bpfnb.language.cell import Cell
from bpfnb.language.program import Program
from bpfnb.language.syntax import floating
from bpfnb.protocol.schema import Column, Schema, Tail
from bpfnb.protocol.segments import MAX_EVENT
from bpfnb.tracer.source_map import Payload, Submit

__all__ = ["PayloadType", "payload_types", "without_types"]


class PayloadType(NamedTuple):
    """The struct an output's events begin with, and all sizes they are submitted with; none where these change."""

    schema: Schema
    sizes: frozenset[int]


def payload_types(
    program: Program, submits: Sequence[Submit], payloads: Mapping[int, Payload]
) -> dict[str, PayloadType]:
    """Return the payload type of each output that something is submitted to.

    ``payloads``: what each of ``submits`` submits, by its number; a call in text that was not compiled is not in it.
    ProgramError where two calls of one output disagree or the type is unknown, UnsupportedError where it cannot be
    described.
    """
    schemas: dict[str, Schema] = {}
    sizes: dict[str, list[int]] = {}
    first: dict[str, Submit] = {}
    reserved: dict[str, int] = {}  # the most that is reserved for an event, in bytes
    for number, what in sorted(payloads.items()):
        call = submits[number]
        if call.reserves:
            reserved[call.output] = max(reserved.get(call.output, 0), what.size)
            continue
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
        sizes.setdefault(call.output, []).append(what.size)
    longer = {submits[number].output for number in payloads if submits[number].longer}
    longer |= {name for name, size in reserved.items() if name in schemas and size > schemas[name].size}
    return {name: _payload_type(schema, sizes[name], name in longer) for name, schema in schemas.items()}


def without_types(cell: Cell) -> BpfnbError:
    """Return why no output of a cell can be read that bcc loaded without type information."""
    for name, kind, at in floating(cell):
        line, column = cell.place(at)
        return UnsupportedError(
            f"{name} is a {kind}: with a floating-point number in a struct bcc gives the kernel no type information, "
            "so the outputs of this cell cannot be read",
            line=line,
            column=column,
            hint="make it an integer: BPF programs cannot compute with other numbers",
            source=cell.source,
        )
    return SetupError("bcc gave the kernel no type information (BTF) of this cell, so its outputs cannot be read")


def _payload_type(schema: Schema, sizes: Iterable[int], longer: bool) -> PayloadType:
    known = frozenset(sizes)
    if (longer or max(known) > schema.size) and not any(isinstance(column, Tail) for column in schema.columns):
        schema = replace(schema, columns=(*schema.columns, _rest(schema)))
    return PayloadType(schema, frozenset() if min(known) < 0 else known)


def _rest(schema: Schema) -> Column:
    """Return what is submitted beyond the type of what the pointer points to: the size is believed, as bytes."""
    name = "rest"
    while any(column.name == name for column in schema.columns):
        name += "_"
    return Tail(name, schema.size, text=False)


def _described(program: Program, call: Submit, what: Payload) -> Schema:
    place: dict[str, Any] = {"line": call.line, "column": call.column, "source": program.source}
    if what.schema is None:
        raise ProgramError(
            f"{call.output} is given a void pointer, which does not say what it points to",
            hint="submit a pointer to a struct or a number",
            **place,
        )
    if isinstance(what.schema, str):
        raise UnsupportedError(f"{call.output} cannot be read: {what.schema}", **place)
    if what.schema.size > MAX_EVENT:
        size = f"{what.schema.size:,} bytes"
        raise UnsupportedError(f"{call.output} cannot be read: an event takes {size}; at most {MAX_EVENT:,}", **place)
    if what.is_bytes and what.size != 1:  # a buffer, by a pointer to its first byte
        (column,) = what.schema.columns
        return Schema((Tail(column.name, 0, text=column.dtype == "|i1"),), 0)
    return what.schema
