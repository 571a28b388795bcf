"""What a cell hands to its outputs: found in its C, shown to the compiler's type information, counted where it fails.

bcc knows what ``events.perf_submit(ctx, &data, sizeof(data))`` carries as strings it cannot always read, and nothing
counts what a full buffer refuses. So each such call becomes a statement expression of the same value:

    ({ int bpfnb_failed = events.perf_submit(ctx, &data, sizeof(data)); if (bpfnb_failed) bpfnb_count(0);
       <a variable whose type holds the type of *(&data)>; bpfnb_failed; })

The variable is never read. Its struct, ``____bpfnb_carries_N``, ends in the program's BTF, as exact as the compiler is:
its member is of the type handed over, or ``struct ____bpfnb_unknown`` where that is void.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bpfnb.cell import Cell, Token, arguments, closing
from bpfnb.tracer.edits import Edit, Submit

__all__ = ["CARRIES", "LOST_MAP", "UNKNOWN", "WHOLE_POINTER", "Submits", "submits"]

CARRIES = "____bpfnb_carries_"
UNKNOWN = "____bpfnb_unknown"
LOST_MAP = "bpfnb_lost"  # one counter an output, in the order they are declared

WHOLE_POINTER = "is given the size of a pointer, not of what it points to"  # the compiler's error says so

_LEAST_RING_BYTES = 16 << 20  # a ring smaller than this loses events at no gain; the user's number of pages is a least

# 1024: BPF_F_MMAPABLE, so that counting costs the reader no system call.
_PRELUDE = f"""\
struct {UNKNOWN} {{ char unknown; }};
BPF_F_TABLE("array", int, u64, {LOST_MAP}, BPFNB_OUTPUTS, 1024);
static inline __attribute__((always_inline)) void bpfnb_count(int output) {{
    u64 *lost = {LOST_MAP}.lookup(&output);
    if (lost) __sync_fetch_and_add(lost, 1);
}}
#define BPFNB_PAGES(n) ((n) <= 0 || (n) & ((n) - 1) || (n) * PAGE_SIZE > {_LEAST_RING_BYTES} ? \\
                        (n) : {_LEAST_RING_BYTES} / PAGE_SIZE)
"""


class _Method(NamedTuple):
    """A method of an output: the argument that points to the event (-1: none), what it says when it fails, and the
    argument that is the event's size."""

    carried: int
    result: str  # "error": nonzero is failure; "pointer": NULL is; "none": it cannot fail
    size: int = -1


_METHODS = {
    "perf_submit": _Method(1, "error", 2),
    "perf_submit_skb": _Method(2, "error", 3),
    "ringbuf_output": _Method(0, "error", 1),
    "ringbuf_reserve": _Method(-1, "pointer"),
    "ringbuf_submit": _Method(0, "none"),
}


class Submits(NamedTuple):
    """What to change in the cell, what has to stand before it, and the calls, in the order of their numbers."""

    edits: list[Edit]
    prelude: str
    calls: tuple[Submit, ...]


def submits(cell: Cell) -> Submits:
    """The cell's calls of its outputs' methods."""
    if not cell.outputs:
        return Submits([], "", ())
    numbers = {output.name: number for number, output in enumerate(cell.outputs)}
    edits = list(_rings(cell))
    calls: list[Submit] = []
    tokens = cell.tokens
    for i in range(len(tokens) - 3):
        if tokens[i].text in numbers and tokens[i + 1].text == "." and tokens[i + 3].text == "(":
            method, end = _METHODS.get(tokens[i + 2].text), closing(tokens, i + 3)
            if not method or end == len(tokens):
                continue
            args = arguments(tokens, i + 3)
            carried = args[method.carried] if 0 <= method.carried < len(args) else []
            size = args[method.size] if 0 <= method.size < len(args) else []
            before, after = _around(method, numbers[tokens[i].text], _holder(carried, size, len(calls)))
            edits += [Edit(tokens[i].start, tokens[i].start, before), Edit(tokens[end].end, tokens[end].end, after)]
            if carried:
                calls.append(Submit(tokens[i].text, *cell.place(carried[0].start)))
            if carried and carried[0].text != "&" and tokens[i + 2].text.startswith("ringbuf"):
                # bcc ends the process over an array's bare name here (an assertion of clang's); a sum is a pointer.
                edits += [
                    Edit(carried[0].start, carried[0].start, "("),
                    Edit(carried[-1].end, carried[-1].end, ") + 0"),
                ]
    return Submits(edits, f"#define BPFNB_OUTPUTS {len(cell.outputs)}\n{_PRELUDE}", tuple(calls))


def _around(method: _Method, output: int, holder: str) -> tuple[str, str]:
    match method.result:
        case "error":
            return "({ int bpfnb_failed = ", f"; if (bpfnb_failed) bpfnb_count({output}); {holder}bpfnb_failed; }})"
        case "pointer":
            return "({ void *bpfnb_room = ", f"; if (!bpfnb_room) bpfnb_count({output}); bpfnb_room; }})"
    return "({ ", f"; {holder}(void)0; }})"


def _holder(carried: list[Token], size: list[Token], number: int) -> str:
    """A variable nobody reads, whose type says what the expression points to."""
    if not carried:
        return ""
    e = f"({' '.join(token.text for token in carried)})"
    # Of an array handed over by its name, all of it; of a pointer, what it points to, if that is known.
    is_pointer = f"__builtin_types_compatible_p(__typeof__({e}), __typeof__(*{e}) *)"
    is_void = f"__builtin_types_compatible_p(__typeof__(*{e}), void)"
    pointer = f"__builtin_choose_expr({is_pointer}, {e}, (__typeof__({e}) *)0)"
    target = f"__typeof__(*__builtin_choose_expr({is_void}, (struct {UNKNOWN} *)0, {pointer}))"
    name = f"{CARRIES}{number}"
    # bcc gives the maps' types to BTF in sections of this kind, and leaves those it does not know alone.
    kept = '__attribute__((section(".maps.bpfnb"), used))'
    checked = ""
    if [t.text for t in size if t.text not in "()"] == ["sizeof", *(t.text for t in carried if t.text not in "()")]:
        checked = f'_Static_assert(!{is_pointer} || sizeof({e}) == sizeof(*{e}), "{WHOLE_POINTER}"); '
    return f"{checked}struct {name} {{ {target} value; }}; static struct {name} {name} {kept} = {{}}; "


def _rings(cell: Cell) -> Iterator[Edit]:
    """Ring buffers are made at least as large as is good for them."""
    for i, token in enumerate(cell.tokens[:-1]):
        if token.text == "BPF_RINGBUF_OUTPUT" and cell.tokens[i + 1].text == "(":
            args = arguments(cell.tokens, i + 1)
            if len(args) == 2 and args[1]:
                start, end = args[1][0].start, args[1][-1].end
                yield from (Edit(start, start, "BPFNB_PAGES("), Edit(end, end, ")"))
