"""A cell and what is requested for it, as one frozen value.

``parse`` reads text only, never the kernel: the same cell gives the same ``Program`` on every machine, and both
processes hold one. What depends on the running kernel (is there such a probe, how is a system call attached) is decided
at load.

Where some of the text could not be read (scan.py), ``parse`` does not claim that a function is missing; clang then
reports what is wrong.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from bpfnb.errors import Diagnostic, ProgramError
from bpfnb.language import cflags as clang_flags
from bpfnb.language.cell import Asked, Body, Cell, Function, MapDecl, Output
from bpfnb.language.filters import Filters
from bpfnb.language.includes import LineMap, Piece, expand, reachable
from bpfnb.language.probes import KINDS, Probe, named_by_function, near, parse_probe, split_attach
from bpfnb.language.scan import scan
from bpfnb.language.vocabulary import NUMBER, TABLES

__all__ = [
    "RAW_STRING_HINT",
    "Function",
    "Kind",
    "MapDecl",
    "Missing",
    "Output",
    "Probe",
    "Program",
    "parse",
]


Kind = Literal["bcc"]  # what a program is written in: bcc's C
Missing = Literal["", "error", "warn", "ignore"]


class Program(msgspec.Struct, frozen=True):
    """A parsed cell. ``prints``: it calls bpf_trace_printk. ``cflags``: for clang, ``-DX=Y`` included. ``headers``:
    "auto", "btf", or a folder of kernel headers, from the root. ``warnings``: about the text, such as a function that
    nothing attaches. ``cpu``: events have the number of their CPU. ``filters``: the tasks that the session is about.
    ``missing``: what becomes of a probe that cannot be attached: "error", it is left out with a warning ("warn") or
    without ("ignore"); by default it is an error, but for what matches a pattern a warning. ``numbered``: it asks for
    the number of the probe that fires, bpfnb_probe(ctx).

    Where the cell includes the user's own headers, ``source`` contains them, ``cell`` is the text as it was written,
    and ``pieces`` say where the lines come from; ``line_map`` maps lines of ``source`` to the cell and the headers.
    """

    source: str
    functions: tuple[Function, ...]
    probes: tuple[Probe, ...]
    outputs: tuple[Output, ...]
    maps: tuple[MapDecl, ...]
    prints: bool
    cflags: tuple[str, ...] = ()
    headers: str = "auto"
    warnings: tuple[Diagnostic, ...] = ()
    cpu: bool = False
    cell: str = ""
    pieces: tuple[Piece, ...] = ()
    kind: Kind = "bcc"
    filters: Filters = Filters()
    missing: Missing = ""
    numbered: bool = False

    @property
    def tail_calls(self) -> tuple[str, ...]:
        """Return the functions that may be put into a program array: those without a probe, where there is an array."""
        attached = {probe.function for probe in self.probes}
        holds = any(declared.holds_programs for declared in self.maps)
        return tuple(f.name for f in self.functions if holds and not f.static and f.name not in attached)

    @property
    def line_map(self) -> LineMap:
        return LineMap(self.cell or self.source, self.pieces)


def parse(
    source: str,
    attach: Mapping[str, str | Sequence[str]] | Iterable[tuple[str, str]] = (),
    cflags: Sequence[str] = (),
    headers: str = "auto",
    cpu: bool = False,
) -> Program:
    """Parse a cell and what is requested for it.

    ``attach``: probe text to function name or names, or pairs of both. ``cflags``: for clang (cflags.py); the ``-D``
    options among them also decide ``#ifdef``. ``headers``: "auto", "btf", or a folder, from the root or with "~".
    ``cpu``: events get the number of their CPU. Headers that the cell includes from the current folder, or from one
    that -I names, are read (includes.py). Raises ProgramError, with the line where there is one.
    """
    source = _text(source)
    if isinstance(cflags, str):
        raise ProgramError(f"cflags is a list of flags, not {cflags!r}", hint=f"write cflags={shlex.split(cflags)}")
    clang_flags.check(cflags)
    try:
        text, pieces = expand(source, cflags)
    except ProgramError as error:
        error.source = source
        raise
    lines = LineMap(source, pieces)
    try:
        program = _parse(text, attach, cflags, headers, cpu)
    except ProgramError as error:
        raise lines.error(error) from None
    warnings = tuple(map(lines.diagnostic, program.warnings))
    return msgspec.structs.replace(program, cell=source if pieces else "", pieces=pieces, warnings=warnings)


def _parse(
    source: str,
    attach: Mapping[str, str | Sequence[str]] | Iterable[tuple[str, str]],
    cflags: Sequence[str],
    headers: str,
    cpu: bool,
) -> Program:
    cell = scan(source, cflags)
    if not cell.tokens and not cell.macros and not cell.directives:
        raise ProgramError("the cell is empty: there is no C to compile", source=source)
    functions = tuple(f.public(cell) for f in cell.functions)
    requests = [(parse_probe(text), text, name) for text, name in _pairs(attach)]
    probes = _probes(cell, requests)
    _check(cell, probes, requests)
    return Program(
        source=source,
        functions=functions,
        probes=tuple(probes),
        outputs=tuple(cell.outputs),
        maps=tuple(cell.maps),
        prints=cell.mentions(cell.tokens, "bpf_trace_printk"),
        cflags=reachable(cflags),
        headers=_headers(headers),
        warnings=(*_unattached(cell, probes), *_uncounted(cell)),
        cpu=cpu,
        numbered=cell.mentions(cell.tokens, NUMBER) and NUMBER not in cell.macros,
    )


_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")


# What to do where Python has replaced the C's backslashes.
RAW_STRING_HINT = (
    'in a Python program the C has to stand in a raw string, r"""...""": else \\n ends the line and \\0 is a NUL'
)


def _text(source: str) -> str:
    """Return the text with the line ends of C. ProgramError where it is not text."""
    if not isinstance(source, str):
        raise ProgramError(f"the C must be a str, not {type(source).__name__}")
    source = re.sub(r"\r\n?", "\n", source)
    if found := _NO_CHARACTER.search(source):
        what = "a NUL character" if found[0] == "\0" else f"half a character, {found[0]!r}"
        hint = RAW_STRING_HINT if found[0] == "\0" else None
        raise Cell(source).error(f"the cell contains {what}", found.start(), hint=hint)
    return source


def _headers(requested: str) -> str:
    if requested in ("auto", "btf"):
        return requested
    folder = os.path.expanduser(requested)  # noqa: PTH111 (Path.expanduser raises where there is no such user)
    if not folder.startswith("/"):
        raise ProgramError(
            f"not kernel headers: {requested!r}",
            hint="write auto, btf, or a folder from the root, such as /usr/src/linux-headers-6.1.0-50-amd64",
        )
    return folder


# --- probes ----------------------------------------------------------------------------------------------------------


def _pairs(attach: Mapping[str, str | Sequence[str]] | Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    if isinstance(attach, Mapping):
        for probe, functions in attach.items():
            for function in [functions] if isinstance(functions, str) else functions:
                yield probe, function
        return
    for pair in [attach] if isinstance(attach, str) else attach:
        if isinstance(pair, str):
            probe, function = split_attach(pair)
            raise ProgramError(f"not an attachment: {pair!r}", hint=f'write attach={{"{probe}": "{function}"}}')
        yield pair


_Request = tuple[tuple[str, str], str, str]  # (kind, target), as written, function


def _probes(cell: Cell, requests: Sequence[_Request]) -> list[Probe]:
    """Return the probes that functions' names and macros ask for, then those that are requested; each attachment
    once. ProgramError, with its line, for a PROBE(...) that is none."""
    lines = {f.name: cell.place(f.name_at)[0] for f in cell.functions}
    named = {function for _, _, function in requests}
    probes = []
    for f in cell.functions:
        for asked in f.asked:
            line = cell.place(asked.start)[0]
            probes.append(Probe(*_asked_probe(cell, asked), f.name, asked.text.strip(), lines[f.name], line))
        auto = None if f.static else f.probe or named_by_function(f.name)
        # syscall__x is a convention of bpfnb's: where the function is attached explicitly, its name asks for nothing.
        if auto and not ((f.asked or f.name in named) and f.name.startswith(KINDS["syscall"].function_prefix)):
            probes.append(Probe(*auto, f.name, f.requested, lines[f.name]))
    for (kind, target), text, function in requests:
        probes.append(Probe(kind, target, function, text.strip(), lines.get(function, 0)))
    unique = {(p.kind, p.target, p.function): p for p in reversed(probes)}
    return [p for p in probes if unique[p.kind, p.target, p.function] is p]


def _asked_probe(cell: Cell, asked: Asked) -> tuple[str, str]:
    try:
        return parse_probe(asked.text)
    except ProgramError as error:
        raise cell.error(error.message, asked.start, hint=error.hint) from None


def _check(cell: Cell, probes: Sequence[Probe], requests: Sequence[_Request]) -> None:
    """Raise ProgramError for what is certainly wrong; less is certain of a cell that could not be read in full."""
    functions = {f.name: f for f in cell.functions}
    for _, text, name in requests:
        if name not in functions and not cell.doubtful:
            raise _no_such_function(cell, text, name)
    wanted = {p.function for p in probes}
    for f in cell.functions:
        if f.static and (f.name in wanted or (named_by_function(f.name) and not _is_used(cell, f))):
            raise cell.error(
                f"function {f.name!r} is static, so nothing can be attached to it",
                f.name_at,
                hint=f"remove 'static' (and 'inline') from {f.name!r}",
            )
    if not probes and not cell.doubtful:
        raise _nothing_attached(cell)
    for probe in probes:
        if probe.function in functions:
            _check_parameters(cell, probe, functions[probe.function])


_NUMBER = re.compile(
    r"(?:(?:const|volatile|unsigned|signed|long|short) )*"
    r"(?:int|char|long|short|unsigned|bool|[us](?:8|16|32|64)|u?int(?:8|16|32|64)_t|[pug]id_t|s?size_t)\b[^*\[(]*"
)


def _check_parameters(cell: Cell, probe: Probe, f: Body) -> None:
    """Raise ProgramError for parameters that a probe cannot have: bcc reads all after the context from registers."""
    if f.probe or f.generated or f.conditional or not f.parameters:
        return
    kind = KINDS[probe.kind]
    first, *others = f.parameters
    if _NUMBER.fullmatch(first):
        declared = ", ".join(["struct pt_regs *ctx", *f.parameters])
        message, hint = f"the first parameter of {f.name} is its context", f"write int {f.name}({declared})"
    elif probe.is_pattern and (fields := re.search(r"\btracepoint__(\w+?)__(\w+)", first)):
        message = f"{f.name} reads the fields of {fields[1]}:{fields[2]}, and {probe.requested} are others"
        hint = f"write int {f.name}(void *ctx), and read what they share"
    elif others and kind.arguments == "none":
        message = f"{f.name} has parameters beside its context, and {probe.requested} has none to give"
        hint = "TRACEPOINT_PROBE(CATEGORY, EVENT) { ... } has the fields as args->NAME" if ":" in probe.target else ""
    elif kind.arguments == "registers" and kind.when == "return" and f.uses(re.findall(r"\w+", p)[-1] for p in others):
        message, hint = f"{f.name} runs when the function returns: its arguments are gone", ""
    elif others and kind.arguments == "registers" and kind.when == "entry" and "pt_regs" not in first:
        message = f"the parameters of {f.name} are read from its context, which is declared {first!r}"
        hint = f"write int {f.name}({', '.join(['struct pt_regs *ctx', *others])})"
    else:
        return
    raise cell.error(message, f.name_at, hint=hint or None)


# Programs with these contexts, which bpfnb does not attach, and where they run (Linux: include/linux/bpf_types.h).
_ELSEWHERE = {
    "xdp_md": "XDP programs run on network devices",
    "__sk_buff": "programs on packets run on network devices and sockets",
    "bpf_sock": "programs on sockets run in cgroups",
    "bpf_sock_addr": "programs on addresses run in cgroups",
    "bpf_sock_ops": "programs on TCP's states run in cgroups",
    "bpf_sockopt": "programs on socket options run in cgroups",
    "bpf_sysctl": "programs on sysctl run in cgroups",
    "bpf_cgroup_dev_ctx": "programs on devices run in cgroups",
    "sk_msg_md": "programs on messages run on sockets",
    "sk_reuseport_md": "programs that choose a socket run on sockets",
    "bpf_sk_lookup": "programs that look up a socket run in network namespaces",
}
_ELSEWHERE_BY_NAME = {
    "bpf_iter__": "iterators run when a file is read",
    "kmod_ret__": "KMOD_RET changes what is returned",
}
_NO_EXAMPLE = "PROBE"
_EXAMPLES = {word: kind.examples[0] for kind in KINDS.values() for word in kind.contexts}


def _unattached(cell: Cell, probes: Sequence[Probe]) -> Iterator[Diagnostic]:
    """Yield a warning for each function that can run only from a probe and has none.

    No warning for a function in doubtful text or inside an undecided ``#if``, for one that another function uses (clang
    reports what is wrong with that), and where the cell has a program array, whose entries are such functions.
    """
    wanted = {p.function for p in probes}
    if cell.doubtful or any(m.holds_programs for m in cell.maps):
        return
    for f in cell.functions:
        if not (f.static or f.conditional or f.name in wanted or _is_used(cell, f)):
            message = f"nothing attaches the function {f.name!r}, so it never runs: {_how_to_attach(cell, f)}"
            yield Diagnostic(*cell.place(f.name_at), "warning", message)


def _uncounted(cell: Cell) -> Iterator[Diagnostic]:
    """Yield a warning for each perf array that is read: the notebook fills it, after the first events."""
    tokens = [t.text for t in cell.tokens]
    reads = TABLES["BPF_PERF_ARRAY"].methods
    for declared in cell.maps:
        for at, (name, dot, method) in enumerate(zip(tokens, tokens[1:], tokens[2:], strict=False)):
            if declared.macro == "BPF_PERF_ARRAY" and name == declared.name and dot == "." and method in reads:
                message = (
                    f"{name} has no counter yet: {method} fails with -2 (ENOENT) until one is opened, "
                    f"by session.maps[{name!r}].open('software:cpu-clock') or another event's name"
                )
                yield Diagnostic(*cell.place(cell.tokens[at].start), "warning", message)
                break


def _is_used(cell: Cell, f: Body) -> bool:
    """Return whether another function mentions this one."""
    return any(cell.mentions(g.tokens, f.name) for g in cell.functions if g is not f)


def _how_to_attach(cell: Cell, f: Body) -> str:
    """Return what to do about a function without a probe, or that bpfnb cannot attach such a function."""
    elsewhere = _runs_elsewhere(f)
    if elsewhere:
        return f"{elsewhere}, and bpfnb attaches none"
    static = f"make {f.name} static inline if it is a helper"
    first = f.parameters[0] if f.parameters else "void"
    if _NUMBER.fullmatch(first):
        return static
    probe = _example(cell, f, first)
    return f'name a probe, -a {probe}={f.name} or attach={{"{probe}": "{f.name}"}}; or {static}'


def _runs_elsewhere(f: Body) -> str:
    by_name = next((what for prefix, what in _ELSEWHERE_BY_NAME.items() if f.name.startswith(prefix)), "")
    words = re.findall(r"\w+", f.parameters[0]) if f.parameters else []
    return by_name or next((_ELSEWHERE[word] for word in words if word in _ELSEWHERE), "")


def _example(cell: Cell, f: Body, first: str) -> str:
    """Return a probe that the function can certainly be attached to, by its context; PROBE where none is certain."""
    if found := re.search(r"\btracepoint__(\w+?)__(\w+)", first):
        return f"tracepoint:{found[1]}:{found[2]}"
    probe = next((_EXAMPLES[word] for word in re.findall(r"\w+", first) if word in _EXAMPLES), _NO_EXAMPLE)
    if probe == "syscall:clone" and (
        len(f.parameters) > 1
        or any(t.text.startswith("PT_REGS_") or t.text == "bpf_get_stackid" for t in cell.expanded(f.tokens))
    ):
        return _NO_EXAMPLE
    return probe


def _no_such_function(cell: Cell, text: str, name: str) -> ProgramError:
    names = [f.name for f in cell.functions if not f.static]
    similar = near(name, names, "the cell defines")
    return ProgramError(f"{text.strip()} asks for the function {name!r}, which the cell does not define{similar}")


def _nothing_attached(cell: Cell) -> ProgramError:
    if not cell.functions:
        return ProgramError("the cell defines no function, so there is nothing to attach", source=cell.source)
    first = next((f for f in cell.functions if not f.static), cell.functions[0])
    if first.static:
        hint = "a probe runs a function that is not static: int f(void *ctx) { ... }, with -a PROBE=f"
        return cell.error("nothing would run: every function is static", first.name_at, hint=hint)
    if elsewhere := _runs_elsewhere(first):
        return cell.error(f"nothing would run: {elsewhere}, and bpfnb attaches none", first.name_at)
    why = "nothing would run: no function is attached to a probe"
    return cell.error(why, first.name_at, hint=_how_to_attach(cell, first))
