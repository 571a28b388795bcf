"""Turn the logs of clang, bcc, LLVM and the verifier into errors with the cell's own lines."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence

from bpfnb.errors import CompileError, Diagnostic, PrivilegeError, ProgramError, SetupError, VerifierError
from bpfnb.language.cell import Cell
from bpfnb.tracer.diagnose import hints, verifier
from bpfnb.tracer.diagnose.clang import diagnostics
from bpfnb.tracer.diagnose.lineinfo import Lines
from bpfnb.tracer.diagnose.verifier import Rejection
from bpfnb.tracer.source_map import Rewritten

__all__ = ["address_error", "compile_error", "crash_error", "diagnostics", "load_error"]

# bcc's message when the kernel will not make a map (bpf_module.cc).
_NO_MAP = re.compile(r"could not open bpf map: (\w+), error: (.*)")
_OF_NETWORKS = re.compile(r"BPF_(DEVMAP|XSKMAP|SOCKMAP|SOCKHASH|CPUMAP|XDP_REDIRECT_MAP)")


# --- the compiler -------------------------------------------------------------------------------------------------


def compile_error(source: Rewritten, log: str, reason: str) -> CompileError | ProgramError | SetupError:
    """Return why a cell was not compiled. ``reason``: what bcc raised."""
    refused = _NO_MAP.search(log)
    if refused:
        return _map_error(source, refused[1], refused[2])
    cell = source.cell
    found = diagnostics(source, log)
    misspelt = hints.misspelt_macro(cell, found)
    if misspelt:
        return _compile_error(source, misspelt, [misspelt], log)
    main = next((d for d in found if _is_main(d)), None)
    if main and (helper := hints.taken_for_a_program(cell, main)):
        return _compile_error(source, helper, [helper], log, "declare it static inline")
    if main:
        return _compile_error(source, main, found, log, hints.hint(cell, main))
    match = re.search(r"(?:fatal )?error: (.*)", log)
    return _flags_error(source, match[1] if match else (log.strip().splitlines() or [reason])[-1], log)


def _is_main(d: Diagnostic) -> bool:
    # A literal without an end is but a warning, and all that follows from it an error; so is a letter nobody sees.
    return d.severity == "error" or d.message.startswith(("missing terminating", "identifier contains Unicode"))


def _compile_error(
    source: Rewritten, main: Diagnostic, found: Sequence[Diagnostic], log: str, hint: str | None = None
) -> CompileError:
    return CompileError(
        main.message,
        diagnostics=found,
        log=log,
        line=main.line or None,
        column=main.column or None,
        source=source.cell.source,
        hint=hint,
    )


def _flags_error(source: Rewritten, message: str, log: str) -> CompileError:
    """Return the error for a message of clang's without a place: it is about the flags."""
    if message.startswith("unable to handle compilation, expected exactly one compiler job"):
        main = Diagnostic(0, 0, "error", "the flags ask clang for something else than to compile the cell")
        return _compile_error(source, main, [main], log, "flags are such as -DX=1 or -Wall, and no files")
    return CompileError(f"clang: {message}", log=log, source=source.cell.source)


_IN_A_MAP = "keep it in a map, BPF_ARRAY(counter, u64, 1);, or make it const if nothing changes it"


def address_error(source: Rewritten, function: str, line: int, name: str, compiling: str) -> CompileError:
    """A program works with an address that is none, and the kernel cannot tell. ``line`` 0, ``name`` "": not known."""
    what = f"the variable {name}" if name else "a variable that is outside of functions"
    message = f"{function} wants the address of {what}, and bcc gives it none"
    read = source.cell
    columns = [column for t in read.tokens if t.text == name for at, column in [read.place(t.start)] if at == line]
    main = Diagnostic(line, columns[0] if columns else 0, "error", message)
    return _compile_error(source, main, [main, *diagnostics(source, compiling)], compiling, _IN_A_MAP)


# --- LLVM ---------------------------------------------------------------------------------------------------------

# LLVM's message before it ends the process: "error: FILE:LINE:COLUMN: in function NAME TYPE: REASON".
_BACKEND = re.compile(
    r"error: (?:/proc/self/fd/\d+:(\d+):(\d+): )?(?:in function (\w+) [^:]*: )?(?:<inline asm>:\d+:\d+: )?(.*)", re.I
)
_PLACE = re.compile(r"/proc/self/fd/\d+:(\d+):(\d+)")
_ASSEMBLY = re.compile(r"<inline asm>:\d+:\d+: .*\n[ \t]*(.*\S)")
# A message, what it means, and what to do.
_LARGE = "keep large data in a map: BPF_PERCPU_ARRAY(scratch, struct data_t, 1);"
_REASONS = [
    (r"stack limit", "the variables need more than the stack limit of 512 bytes", _LARGE),
    (
        r"built-in function '__\w*[sdt]f\d?(?:[sdt]i\d?)?' is not supported",
        "floating-point numbers are not supported in BPF programs",
        "count in integers, such as nanoseconds, and divide in Python",
    ),
    (
        r"built-in function '(mem\w+)' is not supported",
        r"\1 of this size is not supported: of more than 1024 bytes, or of a number that is no constant",
        None,
    ),
    (
        r"Unsupport signed division|Cannot select: .*s(div|rem)",
        "signed division is not supported in BPF programs",
        "divide unsigned numbers: (u64)a / b",
    ),
    (
        r"Unsupported dynamic stack",
        "dynamic stack allocation is not supported: an array's size must be a constant",
        None,
    ),
]


def crash_error(
    source: Rewritten, status: int | None, log: str, timeout: float
) -> CompileError | ProgramError | SetupError:
    """Read why LLVM ended the process, and sometimes where. ``status`` None: it took longer than ``timeout`` s."""
    if status is None:
        return CompileError(f"compiling took more than {timeout:g} s and was ended", log=log, source=source.cell.source)
    found = diagnostics(source, log)
    if any(d.severity == "error" for d in found):  # what clang refuses bcc goes on with, and may fall over it
        return compile_error(source, log, "")
    match = _BACKEND.search(log)
    if not match:
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return CompileError(f"the compiler crashed ({how})", log=log, source=source.cell.source)
    message, hint = _reason(match[4])
    line, column = _crash_place(source, log, match, found)
    main = Diagnostic(line, column, "error", f"{match[3]}: {message}" if match[3] else message)
    return _compile_error(source, main, [main, *found], log, hint)


def _reason(text: str) -> tuple[str, str | None]:
    for pattern, message, hint in _REASONS:
        found = re.search(pattern, text)
        if found:
            return found.expand(message), hint
    return text, None


def _crash_place(source: Rewritten, log: str, match: re.Match[str], found: Sequence[Diagnostic]) -> tuple[int, int]:
    """Where in the cell; (0, 0) where that is not known, and a column 0 where only the line is."""
    place = (match[1] and match.groups()[:2]) or ((at := _PLACE.search(match[4])) and at.groups())
    if place and int(place[0]):
        return source.to_cell(int(place[0]), int(place[1]))
    assembly = _ASSEMBLY.search(log)
    if assembly and source.cell.source.count(assembly[1]) == 1:
        return source.cell.place(source.cell.source.index(assembly[1]))
    array = next((d for d in found if "variable length array" in d.message), None)
    return (array.line, array.column) if array else (_line_of(source.cell, match[3]) or 0, 0)


def _line_of(cell: Cell, function: str | None) -> int | None:
    """Where a function begins; None where the cell has none of that name."""
    return next((cell.place(f.name_at)[0] for f in cell.functions if f.name == function), None)


# --- maps ---------------------------------------------------------------------------------------------------------


def _map_error(source: Rewritten, name: str, reason: str) -> ProgramError:
    read = source.cell
    declared = {m.name: m.line for m in read.maps} | {output.name: output.line for output in read.outputs}
    places = [read.place(t.start) for t in read.tokens if t.text == name]
    column = next((column for line, column in places if line == declared.get(name)), None)
    ring = any(output.name == name and output.kind == "ringbuf" for output in read.outputs)
    why = {
        os.strerror(errno.E2BIG): "it is too large",
        os.strerror(errno.ENOMEM): "it is larger than the memory there is",
    }.get(reason, reason)
    macro = next((m.macro for m in read.maps if m.name == name), "")
    if reason == os.strerror(errno.EPERM) and _OF_NETWORKS.match(macro):  # it takes CAP_NET_ADMIN
        why = f"{macro} is for programs on network devices and sockets, which bpfnb does not attach"
    if ring and reason == os.strerror(errno.EINVAL):
        why = "a ring buffer's size must be a power of two of pages, and less than 4 GiB"
    message = f"the kernel will not make {name}: {why}"
    return ProgramError(message, line=declared.get(name), column=column, source=source.cell.source)


# --- the verifier -------------------------------------------------------------------------------------------------

_AT = re.compile(r" @ \d+:(?=\d)")  # the cell's file has a number for a name
_NO_QUOTE = re.compile(r"^; +@ .*\n", re.M)
_LIBRARY = re.compile(r"(__builtin_)?(mem(cmp|cpy|set|move)|str(?!uct$)\w+)")


# LLVM makes a table of distances of a table of pointers to texts, and a distance may be any number.
_BEYOND = re.compile(r"makes map_value pointer be out of bounds|math between map_value pointer and register")
_POINTERS = re.compile(r"\bchar\s*\*\s*(?:const\s*)?\w+\s*\[[^\]]*\]\s*=\s*\{")


def load_error(
    source: Rewritten, function: str, number: int, log: str, lines: Lines, compiling: str = ""
) -> VerifierError | PrivilegeError:
    """Return why the kernel rejected a program. ``lines``: which line each instruction comes from. ``compiling``: what
    clang had reported."""
    found = _known_of_bcc(verifier.read(log, number, source.cell.source, lines), log, source.cell)
    if number == errno.EPERM and not found.kind:
        return PrivilegeError(
            f"the kernel refused to load {function}: {os.strerror(number)}", source=source.cell.source
        )
    return VerifierError(
        f"the verifier refused {function}: {found.summary}",
        kind=found.kind,
        summary=found.summary,
        log=_AT.sub(" @ line ", _NO_QUOTE.sub("", log)),
        explanation=found.explanation,
        diagnostics=diagnostics(source, compiling),
        line=found.line,
        hint=found.hint,
        source=source.cell.source,
    )


# Helpers that call a function of the program, with what to do instead, and those that take a text in memory that
# is read-only to programs (ARG_PTR_TO_CONST_STR).
_CALLING_BACK = {
    "bpf_loop": "write a loop whose rounds the compiler can count: for (int i = 0; i < 16; i++)",
    "bpf_for_each_map_elem": "read the map in Python, session.maps[NAME].df",
    "bpf_find_vma": None,
    "bpf_user_ringbuf_drain": None,
}
_READ_ONLY = {
    "bpf_strncmp": 'write bpf_strncmp(comm, sizeof(comm), "bash"): a text, its size, and a string literal',
    "bpf_snprintf": 'write the format as a string literal: bpf_snprintf(to, sizeof(to), "%d", values, sizeof(values))',
}


def _known_of_bcc(found: Rejection, log: str, cell: Cell) -> Rejection:
    """What the verifier cannot know: bcc leaves what a linker would fill in empty."""
    register = re.match(r"R(\d+) ", found.summary)
    helper = re.findall(r": \(85\) call (\w+)#", log)[-1:]
    if register and helper and helper[0] in _READ_ONLY and " type=" in found.summary:
        why = f"{helper[0]} takes a text that nothing can change, such as a string literal."
        return found._replace(kind="read-only memory", explanation=why, hint=_READ_ONLY[helper[0]])
    if register and re.search(rf"\(18\) r{register[1]} = 0x0\b", log):
        return _without_address(found, cell, helper[0] if helper else "")
    if _BEYOND.search(found.summary) and _POINTERS.search(cell.masked):
        return found._replace(
            explanation="Which text it is shows only when the program runs, and the verifier cannot follow that.",
            hint='give each text the same room: static const char names[][16] = {"a", "b"};',
        )
    calls_itself = "call stack of" in found.summary or found.kind == "call of a function"
    if calls_itself and any(t.text.strip("_") == "noinline" for t in cell.tokens):
        why = "bcc puts functions into those that call them, and cannot call one that is declared noinline."
        return found._replace(kind="call of a function", explanation=why, hint="remove noinline")
    if found.kind == "call of a function":
        calls = [t for t in cell.tokens if _LIBRARY.fullmatch(t.text)]
        places = {cell.place(t.start)[0] for t in calls}
        compares = calls and all(t.text.endswith("cmp") for t in calls)
        found = found._replace(hint=f"compare byte by byte: {hints.BYTE_BY_BYTE}" if compares else found.hint)
        if not found.line:
            return found._replace(line=places.pop() if len(places) == 1 else None)
    return found


def _without_address(found: Rejection, cell: Cell, helper: str) -> Rejection:
    """The compiler left an address to the linker, and bcc has none: of a map, a function, a variable."""
    if method := hints.method_instead(cell, found.line):
        why = "This is the address of one of bcc's maps or outputs, which are not used by helpers but by their methods."
        return found._replace(kind="map without its method", explanation=why, hint=f"write {method}")
    if helper in _CALLING_BACK:
        why = f"{helper} calls a function of the program, and bcc gives functions no address: they are put into others."
        return found._replace(kind="callback", explanation=why, hint=_CALLING_BACK[helper])
    return found._replace(
        kind="global variable",
        explanation="This is the address of a variable that is outside of functions, and bcc gives it none.",
        hint="keep it in a map, BPF_ARRAY(counter, u64, 1);, or make it const if nothing changes it",
    )
