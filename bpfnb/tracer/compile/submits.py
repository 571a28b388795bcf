"""What a cell hands to its outputs: found in its C, shown to the compiler's type information, counted where it fails.

bcc knows what ``events.perf_submit(ctx, &data, sizeof(data))`` carries as strings it cannot always read, and nothing
counts what a full buffer refuses. So each such call becomes a statement expression of the same value:

    ({ int bpfnb_failed = events.perf_submit(ctx, &data, sizeof(data)); if (bpfnb_failed) bpfnb_count(0);
       <a variable whose type holds the type of *(&data)>; bpfnb_failed; })

The variable is never read. Its struct, ``____bpfnb_carries_N``, ends in the program's BTF, as exact as the compiler is:
its member ``value`` is of the type handed over, or ``struct ____bpfnb_unknown`` where that is void. Where the size
given is a constant, ``size`` points to an array of so many chars. ``ringbuf_reserve`` has a size alone.

Two things that the kernel does not do are added, where the text shows that they can be.

A ring buffer's events are stamped: room is made for the time (and the CPU, if it is asked for) behind the event, and
the time written there at once. All calls that make room have to be known for that (``Submits.stamped``). Behind, since
what the cell gets has to stay the pointer that the helper gave: of the sum of it and a number the verifier does not
know whether it is NULL.

perf pads events, with bytes of older ones, and does not say how much. Where the size is no constant, the event goes
through one of eight maps, according to its padding: all lead to the same buffer (``Submits.padded``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from bpfnb.language.cell import Cell
from bpfnb.language.tokens import Token, arguments, closing
from bpfnb.language.vocabulary import METHODS, TABLES
from bpfnb.tracer.source_map import WHOLE_POINTER, Edit, Submit

__all__ = ["LOST_MAP", "NO_STAMP", "PAYLOAD_TYPE", "UNKNOWN", "Submits", "padded_maps", "submits"]

PAYLOAD_TYPE = "____bpfnb_carries_"
UNKNOWN = "____bpfnb_unknown"
LOST_MAP = "bpfnb_lost"  # one counter an output, in the order they are declared


NO_STAMP = "that takes calls that bpfnb sees in the cell, with sizes known when it is compiled"

_MIN_RING_BYTES = 16 << 20  # a ring smaller than this loses events at no gain; the user's number of pages is a least

# 1024: BPF_F_MMAPABLE, so that counting costs the reader no system call.
# BPFNB_TARGET: of an array handed over by its name, all of it; of a pointer, what it points to, if that is known.
# The type has a name of its own since clang takes a compound literal within a struct for one outside of functions.
# bcc gives the maps' types to BTF in sections such as .maps.bpfnb, and leaves those it does not know alone.
# Macros and functions, since LLVM has ten bits for a column: what stands behind more text gets wrong lines.
_PRELUDE = f"""\
struct {UNKNOWN} {{ char unknown; }};
BPF_F_TABLE("array", int, u64, {LOST_MAP}, BPFNB_OUTPUTS, 1024);
static inline __attribute__((always_inline)) void bpfnb_count(int output) {{
    u64 *lost = {LOST_MAP}.lookup(&output);
    if (lost) __sync_fetch_and_add(lost, 1);
}}
#define BPFNB_IS_POINTER(e) __builtin_types_compatible_p(__typeof__(e), __typeof__(*(e)) *)
#define BPFNB_TARGET(e) __typeof__(*__builtin_choose_expr( \\
    __builtin_types_compatible_p(__typeof__(*(e)), void), (struct {UNKNOWN} *)0, \\
    __builtin_choose_expr(BPFNB_IS_POINTER(e), e, (__typeof__(e) *)0)))
#define BPFNB_CARRIES(number, e, size) \\
    typedef BPFNB_TARGET(e) bpfnb_type_##number; \\
    struct {PAYLOAD_TYPE}##number {{ bpfnb_type_##number value; size }}; \\
    static struct {PAYLOAD_TYPE}##number {PAYLOAD_TYPE}##number \\
    __attribute__((section(".maps.bpfnb"), used)) = {{}};
#define BPFNB_PAGES(n) ((n) <= 0 || (n) & ((n) - 1) || (n) * PAGE_SIZE > {_MIN_RING_BYTES} ? \\
                        (n) : {_MIN_RING_BYTES} / PAGE_SIZE)
"""

# The stamp lies on a multiple of 8, and so that the size can be told: the bytes before it that are none of the event's
# are as many as the length is more than a multiple of 8 (records.py reads it).
# __asm__ makes what is copied lie in memory, as it does for the helper that would have read it, and reads its last
# byte: the verifier then refuses what it would have refused the helper, a pointer that may be NULL or a size beyond the
# object. bpf_probe_read_kernel would give zeros there, or whatever the kernel has. A copy byte by byte could be too
# many instructions.
_STAMP = """\
#define BPFNB_ROOM(size) ((size) + 2 * (-(size) & 7) + BPFNB_STAMP)
static inline __attribute__((always_inline)) void bpfnb_stamp(void *room, u64 size) {
    if (size >> 28) return; /* no ring holds it, and the verifier adds no such number to a pointer */
    room += (size + 7) & ~7ULL;
    *(u64 *)room = bpf_ktime_get_ns();%s
}
#define BPFNB_COPY(to, from, size) ({ \\
    u64 bpfnb_last; \\
    __asm__ volatile("%%0 = *(u8 *)(%%1 + 0)" : "=r"(bpfnb_last) : "r"((void *)(from) + (size) - 1) : "memory"); \\
    if ((size) <= 64 * __alignof__(*(from))) __builtin_memcpy(to, from, size); \\
    else bpf_probe_read_kernel(to, size, from); })
"""
_STAMP_CPU = "\n    *(u16 *)(room + 8) = bpf_get_smp_processor_id();"


# The methods of outputs that are given an event or its size.
_METHODS = {
    name: METHODS[name]
    for macro in TABLES.values()
    for name in macro.methods
    if macro.output and max(METHODS[name].index("data"), METHODS[name].index("size")) >= 0
}


class Submits(NamedTuple):
    """What to change in the cell, what has to stand before it, and the calls, in the order of their numbers.

    ``stamped``: the ring buffers whose events begin with a stamp. ``padded``: the perf outputs with ``padded_maps``.
    """

    edits: list[Edit]
    prelude: str
    calls: tuple[Submit, ...]
    stamped: frozenset[str] = frozenset()
    padded: frozenset[str] = frozenset()


def padded_maps(output: str) -> list[str]:
    """Return the maps for events that perf pads with one byte, two, up to seven."""
    return [f"bpfnb_{output}_{padding}" for padding in range(1, 8)]


def submits(cell: Cell, *, cpu: bool = False) -> Submits:
    """Return the cell's calls of its outputs' methods. ``cpu``: a stamp has the CPU's number, too."""
    if not cell.outputs:
        return Submits([], "", ())
    numbers = {output.name: number for number, output in enumerate(cell.outputs)}
    found = list(_calls(cell, numbers))
    stamped, padded = _stamped(cell, found), _padded(cell, found)
    edits = list(_rings(cell))
    calls: list[Submit] = []
    for call in found:
        holder = ""
        if call.hands_over:
            holder = _holder(cell, call, len(calls))
            words = [token.text for token in call.size]
            longer = "sizeof" in words and "+" in words and not _is_constant(cell, call.size)
            calls.append(Submit(call.output, *cell.place(call.payload[0].start), longer))
        elif call.method == "ringbuf_reserve" and _is_constant(cell, call.size):
            holder = f"BPFNB_CARRIES({len(calls)}, (void *)0, {_size(call)}) "
            calls.append(Submit(call.output, *cell.place(call.size[0].start), reserves=True))
        edits += _edits(call, numbers[call.output], holder, call.output in stamped, call.output in padded)
    prelude = f"#define BPFNB_OUTPUTS {len(cell.outputs)}\n{_PRELUDE}"
    if stamped:
        prelude += f"#define BPFNB_STAMP {16 if cpu else 8}\n" + _STAMP % (_STAMP_CPU if cpu else "")
    prelude += "".join(map(_padded_submit, sorted(padded)))
    return Submits(edits, prelude, tuple(calls), stamped, padded)


class _Call(NamedTuple):
    """``output.method(args)``; ``first`` is the output's token, ``last`` the closing bracket."""

    output: str
    method: str
    args: list[list[Token]]
    first: Token
    opening: Token
    last: Token

    @property
    def payload(self) -> list[Token]:
        return self._argument(_METHODS[self.method].index("data"))

    @property
    def size(self) -> list[Token]:
        return self._argument(_METHODS[self.method].index("size"))

    @property
    def hands_over(self) -> bool:
        return bool(self.payload) and self.method != "ringbuf_discard"

    def _argument(self, index: int) -> list[Token]:
        return self.args[index] if 0 <= index < len(self.args) else []


def _calls(cell: Cell, names: Iterable[str]) -> Iterator[_Call]:
    tokens, outputs = cell.tokens, set(names)
    for i in range(len(tokens) - 3):
        if tokens[i].text in outputs and tokens[i + 1].text == "." and tokens[i + 3].text == "(":
            end = closing(tokens, i + 3)
            if tokens[i + 2].text in _METHODS and end < len(tokens):
                name, method, args = tokens[i].text, tokens[i + 2].text, arguments(tokens, i + 3)
                yield _Call(name, method, args, tokens[i], tokens[i + 3], tokens[end])


# --- what can be added -----------------------------------------------------------------------------------------------


def _stamped(cell: Cell, calls: Sequence[_Call]) -> frozenset[str]:
    """Return the ring buffers of which every use is one of ``calls``, with a size the compiler knows."""
    elsewhere = any('"' in token.text for token in cell.directives if "include" in token.text)
    if elsewhere or "BPF_LICENSE" in cell.macros:
        return frozenset()
    rings = {output.name for output in cell.outputs if output.kind == "ringbuf"}
    uses = [token for token in cell.tokens if token.text in rings]
    uses += [t for macros in cell.macros.values() for macro in macros for t in macro.tokens if t.text in rings]
    known = {call.first for call in calls} | set(_declared(cell))
    unknown = {token.text for token in uses if token not in known}
    for call in calls:
        makes_room = call.method in ("ringbuf_reserve", "ringbuf_output")
        if makes_room and not (_METHODS[call.method].takes(len(call.args)) and all(call.args)):
            unknown.add(call.output)
        if call.method == "ringbuf_output" and not _is_constant(cell, call.size):
            unknown.add(call.output)
    return frozenset(rings - unknown)


def _declared(cell: Cell) -> Iterator[Token]:
    """Yield the names in ``BPF_RINGBUF_OUTPUT(name, pages)``."""
    for i, token in enumerate(cell.tokens[:-2]):
        if token.text == "BPF_RINGBUF_OUTPUT" and cell.tokens[i + 1].text == "(":
            yield cell.tokens[i + 2]


def _padded(cell: Cell, calls: Sequence[_Call]) -> frozenset[str]:
    """Return the perf outputs whose events' lengths follow from no constant."""
    sizes: dict[str, set[str]] = {}
    changing = set()
    for call in calls:
        if call.method == "perf_submit" and len(call.args) == 3 and all(call.args):
            whole = _is_of_whole(call.size, call.payload)
            sizes.setdefault(call.output, set()).add("" if whole else " ".join(token.text for token in call.size))
            if not _is_constant(cell, call.size):
                changing.add(call.output)
    # Of one type all are: so all that are the size of what is handed over are one. Others may be padded to one length.
    several = {output for output, texts in sizes.items() if len(texts) > 1}
    return frozenset(changing | several)


_TYPES = frozenset(
    (
        "int",
        "unsigned",
        "signed",
        "long",
        "short",
        "char",
        "size_t",
        "u8",
        "u16",
        "u32",
        "u64",
        "s8",
        "s16",
        "s32",
        "s64",
    )
)
_CONSTANTS = frozenset(("TASK_COMM_LEN",))
_OPERATORS = frozenset("+-*/%()<>|&~^")


def _is_constant(cell: Cell, tokens: Sequence[Token], depth: int = 8) -> bool:
    """Return whether the compiler knows the value, as far as the text shows it."""
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if token.text in ("sizeof", "offsetof", "__builtin_offsetof"):
            i += 1
            while token.text == "sizeof" and i < len(tokens) and tokens[i].text in "*&":
                i += 1
            i = closing(tokens, i) if i < len(tokens) and tokens[i].text == "(" else i
        elif token.kind == "word" and token.text not in _TYPES | _CONSTANTS:
            macros = cell.macros.get(token.text, [])
            if not macros or not depth or any(m.parameters is not None for m in macros):
                return False
            if not all(m.tokens and _is_constant(cell, m.tokens, depth - 1) for m in macros):
                return False
        elif token.kind not in ("word", "number") and token.text not in _OPERATORS:
            return False
        i += 1
    return bool(tokens)


# --- the text --------------------------------------------------------------------------------------------------------


def _edits(call: _Call, output: int, holder: str, stamped: bool, padded: bool) -> Iterator[Edit]:
    if stamped and call.method in ("ringbuf_output", "ringbuf_reserve"):
        yield from _stamping(call, output, holder)
    elif padded and call.method == "perf_submit" and len(call.args) == 3:
        yield from _choosing(call, output, holder)
    elif call.method != "ringbuf_discard":
        before, after = _around(call, output, holder)
        yield from (_insert(call.first.start, before), _insert(call.last.end, after))
        if call.hands_over and call.payload[0].text != "&" and call.method.startswith("ringbuf"):
            # bcc ends the process over an array's bare name here (an assertion of clang's); a sum is a pointer.
            yield from (_insert(call.payload[0].start, "("), _insert(call.payload[-1].end, ") + 0"))


def _insert(at: int, text: str) -> Edit:
    return Edit(at, at, text)


def _around(call: _Call, output: int, holder: str) -> tuple[str, str]:
    match _METHODS[call.method].returns:
        case "int":
            return "({ int bpfnb_failed = ", f"; if (bpfnb_failed) bpfnb_count({output}); {holder}bpfnb_failed; }})"
        case "void *":
            return "({ void *bpfnb_room = ", f"; if (!bpfnb_room) bpfnb_count({output}); {holder}bpfnb_room; }})"
    return "({ ", f"; {holder}(void)0; }})"


def _stamping(call: _Call, output: int, holder: str) -> Iterator[Edit]:
    room = f"void *bpfnb_room = {call.output}.ringbuf_reserve(BPFNB_ROOM((u64)bpfnb_size)); "
    stamp = f"if (bpfnb_room) {{ bpfnb_stamp(bpfnb_room, bpfnb_size); %s}} else bpfnb_count({output}); "
    if call.method == "ringbuf_output":
        submit = f"{call.output}.ringbuf_submit(bpfnb_room, bpfnb_flags); "
        done = (
            stamp % f"BPFNB_COPY(bpfnb_room, bpfnb_data, bpfnb_size); {submit}" + f"{holder}bpfnb_room ? 0 : -11; }})"
        )
        yield from _arguments(call, ("__auto_type bpfnb_data = (", "enum { bpfnb_size = (", "u64 bpfnb_flags = ("))
    else:
        done = stamp % "" + f"{holder}bpfnb_room; }})"
        yield from _arguments(call, ("u64 bpfnb_size = (",))
    yield Edit(call.last.start, call.last.end, f"); {room}{done}")


def _choosing(call: _Call, output: int, holder: str) -> Iterator[Edit]:
    """Through the map for the padding, which is such that it, 4 and the size make a multiple of 8."""
    yield from _arguments(call, ("__auto_type bpfnb_ctx = (", "__auto_type bpfnb_data = (", "u32 bpfnb_size = ("))
    given = "(bpfnb_ctx, (void *)bpfnb_data, bpfnb_size)"
    choice = f"(bpfnb_size + 4) & 7 ? bpfnb_submit_{call.output}{given} : {call.output}.perf_submit{given}; "
    after = f"if (bpfnb_failed) bpfnb_count({output}); {holder}bpfnb_failed; }})"
    yield Edit(call.last.start, call.last.end, f"); int bpfnb_failed = {choice}{after}")


def _padded_submit(output: str) -> str:
    """Return the maps for each padding, and the function that chooses among them.

    Different code after every call, or LLVM would make one of them, which is in no line at all.
    """
    maps = padded_maps(output)
    declared = "".join(f"BPF_PERF_OUTPUT({name});\n" for name in maps)
    cases = ""
    for padding, name in enumerate(maps, 1):
        apart = f'__asm__ volatile("" : : "i"({padding})); break;'
        cases += f"    case {padding}: failed = {name}.perf_submit(ctx, data, size); {apart}\n"
    function = f"static inline __attribute__((always_inline)) int bpfnb_submit_{output}"
    body = f"{{\n    int failed = 0;\n    switch ((4 - size) & 7) {{\n{cases}    }}\n    return failed;\n}}\n"
    return f"{declared}{function}(void *ctx, void *data, u32 size) {body}"


def _arguments(call: _Call, names: Sequence[str]) -> Iterator[Edit]:
    """Declare a variable for each argument, where it stands: what the compiler says of it is then in its place."""
    at, before = call.first.start, "({ "
    for name, argument in zip(names, call.args, strict=True):
        yield Edit(at, argument[0].start, before + name)
        at, before = argument[-1].end, ") }; " if name.startswith("enum") else "); "


def _holder(cell: Cell, call: _Call, number: int) -> str:
    """Return a variable nobody reads, whose type says what the expression points to."""
    payload = _uncast(call.payload)
    e = f"({_text(payload)})"
    checked = size = ""
    if _words(call.size) == ["sizeof", *_words(payload)]:
        checked = f'_Static_assert(!BPFNB_IS_POINTER({e}) || sizeof({e}) == sizeof(*{e}), "{WHOLE_POINTER}"); '
    if call.size and call.method != "perf_submit_skb" and _is_constant(cell, call.size):
        size = _size(call)
    return f"{checked}BPFNB_CARRIES({number}, {e}, {size}) "


def _size(call: _Call) -> str:
    """Return a member whose type says how large the event is."""
    return f"char (*size)[{_text(call.size)}];"


def _text(tokens: Sequence[Token]) -> str:
    """Tokens as they stand in the cell, on one line: ``1 << 4`` has two that must not come apart."""
    gaps = [False, *(after.start > before.end for before, after in itertools.pairwise(tokens))]
    return "".join(" " * gap + token.text for gap, token in zip(gaps, tokens, strict=True))


def _is_of_whole(size: Sequence[Token], payload: list[Token]) -> bool:
    """Whether a size is written as that of what an argument points to: ``&e, sizeof(e)`` or ``p, sizeof(*p)``."""
    pointer = _uncast(payload)
    whole = _words(pointer[1:] if pointer[0].text == "&" else pointer)
    return _words(size) in (["sizeof", *whole], ["sizeof", "*", *_words(pointer)])


def _words(tokens: Sequence[Token]) -> list[str]:
    return [token.text for token in tokens if token.text not in "()"]


_BYTES = frozenset(
    ("void", "char", "signed", "unsigned", "const", "volatile", "u8", "s8", "__u8", "__s8", "uint8_t", "int8_t")
)


def _uncast(tokens: list[Token]) -> list[Token]:
    """Return the expression without casts to bytes or to void, which say less of it than its own type, and brackets."""
    while len(tokens) > 2 and tokens[0].text == "(" and (end := closing(tokens, 0)) < len(tokens):
        inside, rest = tokens[1:end], tokens[end + 1 :]
        if not rest:
            tokens = inside
        elif (
            inside
            and inside[-1].text == "*"
            and all(t.text in _BYTES or t.text == "*" for t in inside)
            and _is_one(rest)
        ):
            tokens = rest
        else:
            break
    return tokens


def _is_one(tokens: list[Token]) -> bool:
    """Return whether a cast before these tokens is one of them all, no operator having two values among them."""
    while tokens and tokens[0].text in "&*":
        tokens = tokens[1:]
    i = 0
    while i < len(tokens):
        if tokens[i].text in "([":
            end = closing(tokens, i)
            if i == 0 and tokens[end - 1].text == "*":  # another cast
                return _is_one(tokens[end + 1 :])
            i = end
        elif tokens[i].kind != "word" and tokens[i].text not in (".", "->"):
            return False
        i += 1
    return bool(tokens)


def _rings(cell: Cell) -> Iterator[Edit]:
    """Ring buffers are made at least as large as is good for them."""
    for i, token in enumerate(cell.tokens[:-1]):
        if token.text == "BPF_RINGBUF_OUTPUT" and cell.tokens[i + 1].text == "(":
            args = arguments(cell.tokens, i + 1)
            if len(args) == 2 and args[1]:
                start, end = args[1][0].start, args[1][-1].end
                yield from (Edit(start, start, "BPFNB_PAGES("), Edit(end, end, ")"))
