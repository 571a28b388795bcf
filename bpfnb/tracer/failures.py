"""From what clang, bcc, LLVM and the verifier said to an error with the cell's own lines."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bpfnb.cell import scan
from bpfnb.errors import CompileError, Diagnostic, PrivilegeError, ProgramError, SetupError, VerifierError
from bpfnb.tracer import headers, tracefs, verifier
from bpfnb.tracer.btf import STRUCT, UNION, Types
from bpfnb.tracer.edits import Rewritten
from bpfnb.tracer.lineinfo import Lines

__all__ = ["compile_error", "crash_error", "diagnostics", "load_error"]

_HEAD = re.compile(r"/(?:virtual/main\.c|proc/self/fd/\d+):(\d+):(\d+): (?:fatal )?(error|warning|note): (.*)")
_CARETS = re.compile(r"[ \t]*[~^][~^ \t]*")
# What bcc says when the kernel will not make a map (bpf_module.cc).
_NO_MAP = re.compile(r"could not open bpf map: (\w+), error: (.*)")
# What LLVM says before it ends the process: "error: FILE:LINE:COLUMN: in function NAME TYPE: REASON".
_BACKEND = re.compile(
    r"error: (?:/proc/self/fd/\d+:(\d+):(\d+): )?(?:in function (\w+) [^:]*: )?(?:<inline asm>:\d+:\d+: )?(.*)", re.I
)
# The methods of bcc's tables (helpers.h), for who mistypes one.
_METHODS = {
    "call", "lookup", "lookup_or_init", "lookup_or_try_init", "update", "insert", "delete", "increment",
    "atomic_increment", "get_stackid", "perf_read", "perf_counter_value", "check_current_task", "push", "pop", "peek",
    "perf_submit", "perf_submit_skb", "ringbuf_output", "ringbuf_reserve", "ringbuf_submit", "ringbuf_discard",
    "ringbuf_query", "redirect_map", "sk_storage_get", "sk_storage_delete", "task_storage_get", "inode_storage_get",
}  # fmt: skip
_LONG = 12  # names listed, where none is near


# --- the compiler -------------------------------------------------------------------------------------------------


def diagnostics(source: Rewritten, log: str) -> tuple[Diagnostic, ...]:
    """clang's messages about the cell's lines, in its order: a note belongs to what stands before it."""
    found: list[Diagnostic] = []
    lines = log.splitlines()
    for at, text in enumerate(lines):
        head = _HEAD.match(text)
        if not head:
            continue
        place = source.to_cell(int(head[1]), int(head[2]))
        said = any((d.line, d.message) == (place[0], head[4]) for d in found)
        if not (said and source.is_inserted(int(head[1]), int(head[2]))):  # what is added repeats what is there
            found.append(Diagnostic(*place, head[3], head[4], _fix(lines[at + 1 : at + 4])))
    return tuple(found)


def _fix(lines: Sequence[str]) -> str:
    """What clang would put at a message's column: it stands below the carets, which stand below the source line."""
    if len(lines) < 3 or not _CARETS.fullmatch(lines[1]) or not lines[2].startswith(" ") or _HEAD.match(lines[2]):
        return ""
    return lines[2].strip()


def compile_error(source: Rewritten, log: str, reason: str) -> CompileError | ProgramError | SetupError:
    """Why a cell was not compiled. ``reason``: what bcc raised."""
    refused = _NO_MAP.search(log)
    if refused:
        return _map_error(source, refused[1], refused[2])
    found = diagnostics(source, log)
    first = next((d for d in found if d.severity == "error"), None)
    if first:
        return CompileError(
            first.message,
            diagnostics=found,
            log=log,
            line=first.line,
            column=first.column,
            source=source.cell,
            hint=_hint(first.message),
        )
    outside = re.search(r"(?:fatal )?error: (.*)", log)
    reason = outside[1] if outside else (log.strip().splitlines() or [reason])[-1]
    return CompileError(f"clang: {reason}", diagnostics=found, log=log, source=source.cell)


def crash_error(source: Rewritten, status: int | None, log: str, patience: float) -> CompileError:
    """LLVM ended the process: it said why, and sometimes where. ``status`` None: it took longer than ``patience``."""
    if status is None:
        return CompileError(f"compiling took more than {patience:g} s and was ended", log=log, source=source.cell)
    said = _BACKEND.search(log)
    if not said:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return CompileError(f"the compiler crashed ({how})", log=log, source=source.cell)
    line, column, function, reason = said.groups()
    place = source.to_cell(int(line), int(column)) if line and int(line) else (_line_of(source.cell, function), None)
    hint = "keep large data in a map: BPF_PERCPU_ARRAY(scratch, struct data_t, 1);" if "stack limit" in reason else None
    return CompileError(
        f"{function}: {reason}" if function else reason,
        log=log,
        line=place[0],
        column=place[1],
        source=source.cell,
        hint=hint,
    )


def _line_of(cell: str, function: str | None) -> int | None:
    """Where a function begins; None where the cell has none of that name."""
    read = scan(cell)
    return next((read.place(f.name_at)[0] for f in read.functions if f.name == function), None)


def _map_error(source: Rewritten, name: str, reason: str) -> ProgramError:
    read = scan(source.cell)
    declared = {m.name: m.line for m in read.maps} | {output.name: output.line for output in read.outputs}
    ring = any(output.name == name and output.kind == "ringbuf" for output in read.outputs)
    message = f"the kernel will not make {name}: {reason}"
    if ring and reason == os.strerror(errno.EINVAL):
        message = f"the kernel will not make {name}: a ring buffer's size must be a power of two of pages"
    return ProgramError(message, line=declared.get(name), source=source.cell)


# --- near names ---------------------------------------------------------------------------------------------------


def _hint(message: str) -> str | None:
    """The names there are, where clang knows none that is near."""
    if "did you mean" in message:
        return None
    if helper := re.search(r"implicit declaration of function '(\w+)'", message):
        return _near(helper[1], _helpers(), listed=False)
    member = re.search(r"no member named '(\w+)' in '(?:struct |union )?(\w+)'", message)
    if not member:
        return None
    name, owner = member.groups()
    if owner.endswith("_table_t"):
        return _near(name, _METHODS, listed=False)
    if owner.startswith("tracepoint__"):
        category, _, event = owner.removeprefix("tracepoint__").partition("__")
        return _near(name, _fields(f"{category}/{event}"))
    return _near(name, _members(owner))


def _helpers() -> list[str]:
    lines = Path(__file__).with_name("include").joinpath("bpf_helpers.txt").read_text().splitlines()
    return [f"bpf_{line}" for line in lines if not line.startswith("#")]


def _fields(event: str) -> list[str]:
    try:
        return [field for field in tracefs.fields_of(event)[1] if not field.startswith("common_")]
    except OSError:
        return []


def _members(struct: str) -> list[str]:
    """The members of one of the kernel's structs; none where it is the cell's own, which clang has shown."""
    try:
        types = Types(headers.KERNEL_BTF.read_bytes(), "the kernel's")
    except (OSError, SetupError):
        return []
    return [m.name for i in types.named([struct], STRUCT, UNION)[:1] for m in types.members(i) if m.name]


def _near(name: str, names: Iterable[str], *, listed: bool = True) -> str | None:
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if not listed or not known:
        return None
    more = f" and {len(known) - _LONG} more" if len(known) > _LONG else ""
    return f"there are {', '.join(known[:_LONG])}{more}"


# --- the verifier -------------------------------------------------------------------------------------------------


def load_error(source: Rewritten, function: str, number: int, log: str, lines: Lines) -> VerifierError | PrivilegeError:
    """Why the kernel did not take a program. ``lines``: which line each instruction comes from."""
    found = verifier.read(log, number, source.cell, lines)
    if number == errno.EPERM and not found.kind:
        return PrivilegeError(f"the kernel refused to load {function}: {os.strerror(number)}", source=source.cell)
    return VerifierError(
        f"the verifier refused {function}: {found.summary}",
        kind=found.kind,
        summary=found.summary,
        log=log,
        explanation=found.explanation,
        line=found.line,
        hint=found.hint,
        source=source.cell,
    )
