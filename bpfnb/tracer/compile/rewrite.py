"""The C bcc gets to compile: the cell's, changed where this kernel, the printk tag or an output asks for it.

Six kinds of change. What is submitted to an output is shown to the compiler's type information (submits.py). What is
added to a map is added exactly, and counted where it is refused (updates.py). Every format of bpf_trace_printk starts
with the session's tag. A format that ends in ``\\\\n`` (C pasted out of a Python string) ends in a newline. An attached
function begins with a test of the session's filters (filters/text.py). And in functions on syscalls
``PT_REGS_PARMn(ctx)`` and extra parameters mean the syscall's n-th argument, ``PT_REGS_RC(ctx)`` its result, whether
the function runs as a kprobe on the syscall's entry function or on the syscall's tracepoint.

Positions. bcc compiles in three passes and adds lines in each: the struct of every TRACEPOINT_PROBE, an attribute
before every function, a line after every ``{`` of one. Diagnostics and the verifier's line info then carry the lines
of a text nobody wrote (tried with 0.26: line 4 was reported as 12). So the text says ``#line`` where it starts and
again after the ``{`` of every function: all passes then report the cell's own lines, and only columns need mapping.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from bpfnb.language.cell import Cell
from bpfnb.language.probes import KINDS
from bpfnb.language.program import Program
from bpfnb.language.scan import scan
from bpfnb.language.vocabulary import ATTACH
from bpfnb.tracer.compile.printk_calls import printk_edits
from bpfnb.tracer.compile.submits import submits
from bpfnb.tracer.compile.syscall_portability import SYSCALL_EVENTS, Mode, Portable
from bpfnb.tracer.compile.updates import updates
from bpfnb.tracer.filters import text as filters
from bpfnb.tracer.read.lines import PRELUDE as LINES_PRELUDE
from bpfnb.tracer.source_map import Edit, Rewritten, assemble

__all__ = ["Rewritten", "rewrite"]


def rewrite(
    program: Program,
    cell: Cell | None = None,
    *,
    tag: str,
    lines: bool = False,
    syscall_mode: Mode,
    path: str = "",
    readers: str = "",
    late: bool = True,
    counting: bool = True,
) -> Rewritten:
    """Return the text to compile for this kernel.

    ``cell``: the program's text, where it has been read before. ``tag``: put before every printk format; "" for none.
    ``lines``: what is printed goes through a ring buffer (lines.py). ``path``: a file that holds the cell, for as long
    as the compiler runs; LLVM then copies the cell's own lines into the program's line info, and diagnostics name this
    file. ``readers``: C to put before the cell (usdt.py). ``late``, ``counting``: see updates.
    Raises UnsupportedError or ProgramError where a function on a syscall does what cannot mean the same everywhere.
    """
    for text in (tag, path):
        if re.search(r'["\\%\n]', text):
            raise ValueError(f"quotes, backslashes, percent signs and newlines have no place in {text!r}")
    cell = cell or scan(program.source, program.cflags)
    edits = [*filters.edits(cell, program), *printk_edits(cell, tag, lines), *_line_directives(cell), *_resets(cell)]
    portable = Portable(cell, program, syscall_mode)
    edits += portable.edits()
    submitting = submits(cell, cpu=program.cpu)
    in_tasks = all(KINDS[p.kind].in_task or p.target.startswith(SYSCALL_EVENTS) for p in program.probes)
    made = updates(cell, late=late, in_tasks=in_tasks, counting=counting)
    prelude = _attaching(cell) + (LINES_PRELUDE if lines else "") + filters.prelude(cell, program.filters)
    prelude += portable.prelude() + made.prelude + submitting.prelude + readers
    # An increment begins where a submit does that gives its key: what is around it comes first.
    rewritten = assemble(cell, [*edits, *made.edits, *submitting.edits], prelude, path)
    return dataclasses.replace(
        rewritten,
        submits=submitting.calls,
        tag=tag,
        stamped=submitting.stamped,
        padded=submitting.padded,
        counted=made.counted,
        notes=made.notes,
        increments=made.increments,
    )


def _attaching(cell: Cell) -> str:
    """Return the definition that has the compiler see nothing of PROBE(...), which the cell's reader has read."""
    used = ATTACH not in cell.macros and any(token.text == ATTACH for token in cell.tokens)
    return f"#define {ATTACH}(probe)\n" if used else ""


def _resets(cell: Cell) -> Iterator[Edit]:
    for f in cell.functions:
        if f.open:
            yield Edit(f.open + 1, f.open + 1, reset=True)


def _line_directives(cell: Cell) -> Iterator[Edit]:
    """Yield edits that remove the cell's own #line directives: lines are the cell's."""
    for token in cell.directives:
        if re.match(r"#\s*(?:line\b|[0-9])", token.text):
            yield Edit(token.start, token.end)
