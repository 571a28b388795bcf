"""Updates of maps: increments that count exactly, refusals that are counted, room where the cell states no size.

bcc's ``counts.increment(key)`` reads, adds and writes, so two CPUs lose counts, and makes missing keys in plain hashes
only. Its ``update`` and its like fail in silence where the map is full. So each call of a map's method becomes a
statement expression of the same value:

    increment, atomic_increment     lookup; if absent, insert n; else one atomic addition
    update, insert, push, lookup_or_try_init, lookup_or_init, get_stackid
                                    the call as it is; when it fails, one is added to the map's counter of that errno

The counters are an array of ours, ``bpfnb_refused``, with ``COUNTERS`` words a map. bcc refuses methods in the bodies
and arguments of macros, and gives helpers no way to a map by its name, so calls in functions are all there are. Not
counted: ``lookup`` of an array's index past its end, which changes nothing, -EFAULT of ``get_stackid`` (there was no
stack), and -EEXIST of ``insert``.

Macros that state no size are declared anew with room for a million entries, where the kernel does not allocate them
before they are needed (features.late_allocation). bcc's own numbers are 10,240 entries, and 64 for histograms. Per-CPU
hashes keep those, allocated at once, where a program may run with interrupts off: there the kernel has memory at hand
for a new key or two a run. In sched_switch, on 6.18, it refused half of the keys of programs that made two a run, and
none of a hash's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bpfnb.errors import Diagnostic
from bpfnb.language.cell import Cell, MapDecl
from bpfnb.language.tokens import Token, arguments, closing
from bpfnb.language.vocabulary import METHODS, TABLES
from bpfnb.protocol.messages import COUNTERS
from bpfnb.tracer.source_map import Edit

__all__ = ["REFUSED_MAP", "Updates", "narrow_notes", "shown_entries", "updates"]

REFUSED_MAP = "bpfnb_refused"
_ENTRIES = 1 << 20
_HISTOGRAM = 4_096  # an array, allocated at once, and read in about a millisecond
_BCC_HISTOGRAM = 64

# 1024: BPF_F_MMAPABLE, so that reading the counters costs no system call. An errno is its counter's index.
_COUNTING = f"""\
BPF_F_TABLE("array", int, u64, {REFUSED_MAP}, BPFNB_COUNTERS, 1024);
static inline __attribute__((always_inline)) void bpfnb_refuse(int first, int result) {{
    int counter = first + (-result & {COUNTERS - 1});
    u64 *refused = {REFUSED_MAP}.lookup(&counter);
    if (refused) __sync_fetch_and_add(refused, 1);
}}
#define BPFNB_ADD(to, n) do {{ \\
    if (sizeof(*(to)) == 8) __sync_fetch_and_add((u64 *)(to), (u64)(n)); \\
    else if (sizeof(*(to)) == 4) __sync_fetch_and_add((u32 *)(to), (u32)(n)); \\
    else *(to) += (n); }} while (0)
"""

_ROOMY_TYPES = ("hash", "percpu_hash", "lpm_trie", "histogram")  # those whose macros the prelude replaces
_LATE = 1  # BPF_F_NO_PREALLOC
_ROOMY_HISTOGRAM = f"""\
#undef BPF_HIST1
#define BPF_HIST1(_name) BPF_TABLE("histogram", int, u64, _name, {_HISTOGRAM})
"""
_ROOMY_PER_CPU = f"""\
#undef BPF_PERCPU_HASH1
#undef BPF_PERCPU_HASH2
#undef BPF_PERCPU_HASH3
#define BPF_PERCPU_HASH1(_name) BPF_PERCPU_HASH3(_name, u64, u64)
#define BPF_PERCPU_HASH2(_name, _key) BPF_PERCPU_HASH3(_name, _key, u64)
#define BPF_PERCPU_HASH3(_name, _key, _leaf) BPF_F_TABLE("percpu_hash", _key, _leaf, _name, {_ENTRIES}, {_LATE})
"""
# bcc makes an array of a histogram whose key is an int, whatever that is called.
_ROOMY = f"""\
#undef BPF_HASH1
#undef BPF_HASH2
#undef BPF_HASH3
#undef BPF_LPM_TRIE1
#undef BPF_LPM_TRIE2
#undef BPF_LPM_TRIE3
#undef BPF_HIST2
#define BPF_HASH1(_name) BPF_HASH3(_name, u64, u64)
#define BPF_HASH2(_name, _key) BPF_HASH3(_name, _key, u64)
#define BPF_HASH3(_name, _key, _leaf) BPF_F_TABLE("hash", _key, _leaf, _name, {_ENTRIES}, {_LATE})
#define BPF_LPM_TRIE1(_name) BPF_LPM_TRIE3(_name, u64, u64)
#define BPF_LPM_TRIE2(_name, _key) BPF_LPM_TRIE3(_name, _key, u64)
#define BPF_LPM_TRIE3(_name, _key, _leaf) BPF_F_TABLE("lpm_trie", _key, _leaf, _name, {_ENTRIES}, {_LATE})
#define BPF_HIST2(_name, _key) BPF_F_TABLE("histogram", _key, u64, _name, \\
    __builtin_types_compatible_p(_key, int) ? {_HISTOGRAM} : {_ENTRIES}, \\
    __builtin_types_compatible_p(_key, int) ? 0 : {_LATE})
"""

_LOOKUPS = tuple(name for name, method in METHODS.items() if method.returns == "VALUE *")
_ARRAYS = ('"array"', '"percpu_array"')


class Updates(NamedTuple):
    """What to change in the cell, what has to stand before it, the maps that have counters, in the order of these,
    notes on additions that are not exact, and the first increment of each map."""

    edits: list[Edit]
    prelude: str
    counted: tuple[str, ...]
    notes: tuple[Diagnostic, ...]
    increments: dict[str, tuple[int, int]]


def updates(cell: Cell, *, late: bool, in_tasks: bool, counting: bool = True) -> Updates:
    """Return the cell's calls of its maps' methods.

    ``late``: whether hashes may allocate their entries as they come; ``in_tasks``: whether all of the cell's programs
    run where interrupts are enabled. ``counting``: whether this kernel has arrays that can be mapped.
    """
    declared = {m.name: m for m in cell.maps}
    calls = list(_calls(cell, declared))
    counted = tuple(name for name in declared if any(call.map == name for call in calls)) if counting else ()
    edits: list[Edit] = []
    for call in calls if counting else []:
        edits += _edits(cell, call, counted.index(call.map) * COUNTERS, _is_array(cell, call.map))
    prelude = ""
    if any(TABLES[m.macro].type in _ROOMY_TYPES for m in cell.maps):
        prelude = _ROOMY_HISTOGRAM + _ROOMY * late + _ROOMY_PER_CPU * (late and in_tasks)
    if counted:
        prelude += f"#define BPFNB_COUNTERS {len(counted) * COUNTERS}\n{_COUNTING}"
    increments = {call.map: cell.place(call.tokens[0].start) for call in reversed(calls) if call.method == "increment"}
    return Updates(edits, prelude, counted, tuple(_notes(cell, declared)), increments)


def narrow_notes(increments: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> Iterator[Diagnostic]:
    """Notes on increments of values too small for an atomic addition. ``sizes``: of the maps' values, in bytes."""
    for name, place in increments.items():
        if sizes.get(name, 8) not in (4, 8):
            yield Diagnostic(
                *place,
                "note",
                f"two CPUs can add to a value of {name} at the same time, and one addition is lost; "
                "exact: values of 4 or 8 bytes",
            )


def shown_entries(cell: Cell, name: str) -> int:
    """Of an array that is made larger than bcc makes it, the entries bcc has; 0 for other maps."""
    declared = _declarations(cell, name)
    roomy = [TABLES[macro].type == "histogram" and _histogram_is_array(args) for macro, args in declared]
    return _BCC_HISTOGRAM if roomy and all(roomy) else 0


# --- declarations ---------------------------------------------------------------------------------------------------


def _declarations(cell: Cell, name: str) -> list[tuple[str, list[list[Token]]]]:
    """Return the macros that declare a map, and their arguments; [] where another macro has written these.

    There are several where the preprocessor chooses among them.
    """
    found: list[tuple[str, list[list[Token]]]] = []
    for macro in dict.fromkeys(m.macro for m in cell.maps if m.name == name):
        at = [i for i, token in enumerate(cell.tokens[:-1]) if token.text == macro and cell.tokens[i + 1].text == "("]
        args = [arguments(cell.tokens, i + 1) for i in at]
        found += [(macro, a) for a in args if any([t.text for t in arg] == [name] for arg in a)] or [(macro, [])]
    return found


def _is_array(cell: Cell, name: str) -> bool:
    """Return whether the map is surely an array: a key it does not have is past its end."""
    return all(_declares_array(macro, args) for macro, args in _declarations(cell, name))


def _declares_array(macro: str, args: Sequence[Sequence[Token]]) -> bool:
    if TABLES[macro].type in ("array", "percpu_array"):
        return True
    if TABLES[macro].type == "histogram":
        return bool(args) and _histogram_is_array(args)
    return bool(args) and [t.text for t in args[0]] in ([kind] for kind in _ARRAYS)


def _histogram_is_array(args: Sequence[Sequence[Token]]) -> bool:
    return len(args) == 1 or (len(args) == 2 and [t.text for t in args[1]] == ["int"])


# --- calls ----------------------------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """``map.method(args)``: its tokens from the map's name to the closing bracket."""

    map: str
    method: str
    tokens: Sequence[Token]
    args: list[list[Token]]


_COUNTED = {
    name: METHODS[name]
    for name in (
        *("increment", "atomic_increment", "update", "insert", "push"),
        *("lookup_or_try_init", "lookup_or_init", "get_stackid"),
    )
}


def _calls(cell: Cell, declared: dict[str, MapDecl]) -> Iterator[_Call]:
    """Yield the calls that may be refused. One with another number of arguments is left to clang, which says so."""
    tokens = cell.tokens
    for i in range(len(tokens) - 3):
        name, dot, method, bracket = (t.text for t in tokens[i : i + 4])
        if name in declared and dot == "." and bracket == "(" and method in _COUNTED:
            end = closing(tokens, i + 3)
            args = arguments(tokens, i + 3)
            if i and tokens[i - 1].text in (".", "->"):
                continue
            fits = _COUNTED[method].takes(len(args)) and all(args) and not _hides_commas(cell, args)
            if end < len(tokens) and fits:
                yield _Call(name, method, tokens[i : end + 1], args)


def _hides_commas(cell: Cell, args: list[list[Token]]) -> bool:
    """Return whether an argument is a macro that may be several."""
    words = [t.text for arg in args for t in arg if t.text in cell.macros]
    return any(m.parameters is None and any(t.text == "," for t in m.tokens) for w in words for m in cell.macros[w])


def _edits(cell: Cell, call: _Call, first: int, array: bool) -> Iterator[Edit]:
    if call.method in ("increment", "atomic_increment"):
        yield from _increment(call, first, array)
        return
    before, after = _around(call, first, array)
    start, end = call.tokens[0].start, call.tokens[-1].end
    yield Edit(start, start, before)
    if call.method == "lookup_or_init":
        method = call.tokens[2]
        yield Edit(method.start, method.end, "lookup_or_try_init")
    yield Edit(end, end, after)


def _increment(call: _Call, first: int, array: bool) -> Iterator[Edit]:
    """Key and number stay where they are, so that what clang says of them keeps its place."""
    name, key = call.map, call.args[0]
    yield Edit(call.tokens[0].start, key[0].start)
    yield Edit(key[0].start, key[0].start, f"({{ __typeof__({name}.key) bpfnb_key = ")
    by = "1"
    end = call.tokens[-1]
    if len(call.args) == 2:
        number = call.args[1]
        by = "bpfnb_by"
        yield Edit(key[-1].end, number[0].start)
        yield Edit(number[0].start, number[0].start, f"; __typeof__({name}.leaf) bpfnb_by = ")
    absent = f"else bpfnb_refuse({first}, -{errno.E2BIG}); " if array else ""
    make = "" if array else (
        f"if (!bpfnb_leaf) {{ __typeof__({name}.leaf) bpfnb_new = {by}; "
        f"int bpfnb_result = {name}.insert(&bpfnb_key, &bpfnb_new); "
        f"if (bpfnb_result) {{ bpfnb_leaf = {name}.lookup(&bpfnb_key); "
        f"if (!bpfnb_leaf) bpfnb_refuse({first}, bpfnb_result); }} }} "
    )  # fmt: skip
    how = "__sync_fetch_and_add" if call.method == "atomic_increment" else "BPFNB_ADD"
    yield Edit(
        end.start,
        end.end,
        f"; __typeof__({name}.leaf) *bpfnb_leaf = {name}.lookup(&bpfnb_key); {make}"
        f"if (bpfnb_leaf) {how}(bpfnb_leaf, {by}); {absent}(void)0; }})",
    )


def _around(call: _Call, first: int, array: bool) -> tuple[str, str]:
    """Return what stands before and after a call that stays as it is."""
    if call.method in ("lookup_or_try_init", "lookup_or_init"):
        leaf = f"__typeof__({call.map}.leaf) *bpfnb_leaf"
        give_up = " if (!bpfnb_leaf) return 0;" if call.method == "lookup_or_init" else ""
        return f"({{ {leaf} = ", f"; if (!bpfnb_leaf) {{ {_why(call, first, array)} }}{give_up} bpfnb_leaf; }})"
    fails = {
        "insert": f"bpfnb_result && bpfnb_result != -{errno.EEXIST}",
        "get_stackid": f"bpfnb_result == -{errno.EEXIST} || bpfnb_result == -{errno.ENOMEM}",
    }.get(call.method, "bpfnb_result")
    count = f"if ({fails}) bpfnb_refuse({first}, bpfnb_result);"
    return "({ int bpfnb_result = ", f"; {count} bpfnb_result; }})"


def _why(call: _Call, first: int, array: bool) -> str:
    """Count a lookup that could not make its entry. bcc's method does not say why: a second insert does."""
    if array:
        return f"bpfnb_refuse({first}, -{errno.E2BIG});"
    if not all(_is_plain(arg) for arg in call.args):
        return f"bpfnb_refuse({first}, 0);"
    key, value = (" ".join(t.text for t in arg) for arg in call.args)
    return (
        f"int bpfnb_result = {call.map}.insert({key}, {value}); bpfnb_leaf = {call.map}.lookup({key}); "
        f"if (!bpfnb_leaf) bpfnb_refuse({first}, bpfnb_result);"
    )


def _is_plain(arg: Sequence[Token]) -> bool:
    """Return whether an argument may be evaluated once more: names and members, no calls and no assignments."""
    return all(t.kind in ("word", "number") or t.text in ("&", "*", ".", "->", "[", "]") for t in arg)


# --- notes ----------------------------------------------------------------------------------------------------------


def _notes(cell: Cell, declared: dict[str, MapDecl]) -> Iterator[Diagnostic]:
    """Additions to a value looked up that two CPUs can make at the same time."""
    shared = {name for name in declared if not _is_per_cpu(cell, name)}
    for f in cell.functions:
        values: dict[str, str] = {}  # variables that point to a value, and its map
        lines: set[int] = set()
        tokens = f.tokens
        for i, token in enumerate(tokens):
            if _looks_up(tokens, i, shared):
                values[token.text] = tokens[i + 2].text
            elif token.text in values and (found := _addition(tokens, i)):
                line, column = cell.place(found.at)
                if line not in lines:
                    lines.add(line)
                    yield Diagnostic(line, column, "note", _exactly(found, values[token.text]))


def _is_per_cpu(cell: Cell, name: str) -> bool:
    return any(
        "percpu" in text.lower()
        for macro, args in _declarations(cell, name)
        for text in (macro, *(token.text for token in (args[0] if args else [])))
    )


def _looks_up(tokens: Sequence[Token], i: int, shared: set[str]) -> bool:
    """``value = map.lookup(``"""
    texts = [t.text for t in tokens[i + 1 : i + 6]]
    return len(texts) == 5 and texts[0] == "=" and texts[1] in shared and texts[2] == "." and texts[3] in _LOOKUPS


class _Addition(NamedTuple):
    """``what``: the pointer to what is added to. ``member``: whether it is one of a struct."""

    at: int
    what: str
    number: str
    member: bool


def _addition(tokens: Sequence[Token], i: int) -> _Addition | None:
    """Return an addition to what the variable at ``i`` points to, or to a member of it."""
    texts = [t.text for t in tokens]
    begin, end, value = i, i + 1, texts[i]
    if texts[end : end + 1] == ["->"]:
        end += 2
        while end < len(texts) and texts[end] in (".", "["):
            end = closing(tokens, end) + 1 if texts[end] == "[" else end + 2
        what, member = "&" + "".join(texts[i:end]), True
    elif texts[i - 1] == "*" and i:
        begin, what, member = i - 1, value, False
        if begin and texts[begin - 1] == "(" and texts[end : end + 1] == [")"]:
            begin, end = begin - 1, end + 1
    else:
        return None
    after, at = texts[end : end + 2], tokens[begin].start
    before = texts[max(begin - 2, 0) : begin]
    if after in (["+", "+"], ["-", "-"]):
        return _Addition(at, what, f"{after[0].strip('+')}1", member)
    if before in (["+", "+"], ["-", "-"]):
        return _Addition(at, what, f"{before[0].strip('+')}1", member)
    statement = not before or before[-1] in (";", "{", "}", ")", "else")
    if after in (["+", "="], ["-", "="]) and statement:
        number = _until(texts, end + 2)
        simple = number.replace("_", "").isalnum()
        sign = after[0].strip("+")
        return _Addition(at, what, number if simple and not sign else f"{sign}({number})", member)
    same = texts[begin:end]
    if after[:1] == ["="] and texts[end + 1 : end + 1 + len(same)] == same and statement:
        rest = end + 1 + len(same)
        if texts[rest : rest + 1] == ["+"]:
            return _Addition(at, what, _until(texts, rest + 1), member)
    return None


def _until(texts: Sequence[str], i: int) -> str:
    """Return what stands before the end of the statement."""
    end = next((j for j in range(i, len(texts)) if texts[j] == ";"), len(texts))
    return " ".join(texts[i:end])


def _exactly(found: _Addition, name: str) -> str:
    exact = f"__sync_fetch_and_add({found.what}, {found.number})"
    if found.member:
        exact += ", of a member of 4 or 8 bytes"
    return f"two CPUs can add to this value of {name} at the same time, and one addition is lost; exact: {exact}"
