"""docs/compatibility.md: how far every tool gets on every kernel, and what stops it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.compatibility.measure import Result
from benchmarks.compatibility.tools import NO_PROGRAM

__all__ = ["page", "stage"]

_INTRODUCTION = """\
# Compatibility with bcc's tools

Debian's `bpfcc-tools` 0.26 has 133 tools. Their C was written for the kernel's own headers. bpfnb compiles it without
them, against headers made from the running kernel's BTF. These tables say how far each tool's program gets.

Every tool runs unmodified, with a bcc that records what it is asked for instead of doing it: the C that the tool puts
together from its options and from what it finds in this kernel, clang's flags, and every attachment. The recorded
program then goes through `bpfnb.language.program.parse`, the rewriting for this kernel, the compiler and the verifier,
and is attached to its probes. Each tool runs with the fewest arguments it accepts, and many also with one or two of
their main options. Tools for Java, Ruby, MySQL and the like get a process that has those USDT probes and does nothing.
A tool that gives up because this kernel lacks something is told that the kernel has it, so that its program can be
tried.

`python -m benchmarks.compatibility` measures again and writes this file. `--kernel host` is this machine's kernel; 6.1
and 6.12 are Debian's, in QEMU.

- **attached**: compiled, loaded, and every probe attached. **2 of 3**: loaded, and 2 of its 3 probes attached.
- **loaded**: the verifier accepted it; this kernel has none of its probes. **compiled**: the verifier rejected it.
- **no**: it did not compile. **-**: the tool makes no program on this kernel.
"""

# What bpfnb says stopped a program, and the reason shown for it. The first that matches is taken.
_REASONS = (
    (r"this kernel has no kprobes", "no kprobes"),
    (r"no kernel function is called (\S+?);?(?: .*)?$", r"no function `\1`"),
    (r"kprobe:(\S+): the kernel does not let this function be traced.*", r"`\1` cannot be traced"),
    (r"this kernel has no syscall (\S+)", r"no syscall `\1`"),
    (r"no such hardware counter", "no hardware counters"),
    (r"no raw tracepoint (\S+)", r"no raw tracepoint `\1`"),
    (r"this kernel has no tracepoint (\S+)", r"no tracepoint `\1`"),
    (r"RAW_TRACEPOINT_PROBE\((\w+)\): Invalid argument", r"asks for more than the raw tracepoint `\1` has here"),
    (r"cannot use helper bpf_override_return", "built without CONFIG_BPF_KPROBE_OVERRIDE"),
    (r"incomplete definition of type '(?:struct )?(\w+)'", r"has no `struct \1`: what it belongs to is not built in"),
    (r"no kprobe:(\S+)", r"no function `\1`"),
    (r"CONFIG_KALLSYMS_ALL", "does not tell where its variables are (CONFIG_KALLSYMS_ALL)"),
    (r"CONFIG_PREEMPTIRQ", "built without CONFIG_PREEMPTIRQ_TRACEPOINTS"),
)


def stage(result: Result) -> str:
    """How far a run got, in a word or two."""
    if not result.program or not result.bpfnb:
        return "-"
    tried = result.bpfnb
    if not tried.loaded:
        return "compiled" if tried.compiled else "no"
    if not tried.attached:
        return "loaded"
    return "attached" if tried.attached == tried.probes else f"{tried.attached} of {tried.probes}"


def page(kernels: Mapping[str, Sequence[Result]]) -> str:
    """``kernels``: results by release, in the order of the columns."""
    return "\n".join((_INTRODUCTION, _figures(kernels), _refused(kernels), _table(kernels)))


def _figures(kernels: Mapping[str, Sequence[Result]]) -> str:
    lines = ["| kernel | programs | compiled | loaded | all probes attached |", "| --- | ---: | ---: | ---: | ---: |"]
    for release, results in kernels.items():
        programs = [r for r in results if r.program]
        counts = [
            sum(bool(r.bpfnb and r.bpfnb.compiled) for r in programs),
            sum(bool(r.bpfnb and r.bpfnb.loaded) for r in programs),
            sum(stage(r) == "attached" for r in programs),
        ]
        shares = " | ".join(f"{n} ({_share(n, len(programs))})" for n in counts)
        lines.append(f"| {release} | {len(programs)} | {shares} |")
    return "## In all\n\n" + "\n".join(lines) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _refused(kernels: Mapping[str, Sequence[Result]]) -> str:
    """Every program that was not loaded, and why."""
    lines = []
    for release, results in kernels.items():
        for result in results:
            if stage(result) in ("-", "no", "compiled"):
                why = _reason(result.bpfnb.why if result.bpfnb else result.gave_up)
                plain = ""
                if result.plain:
                    plain = "; bcc with real headers: " + ("loads it" if result.plain.loaded else "does not load it")
                lines.append(f"- {release}, `{result.name}`: {why}{plain}")
    return "## Not loaded\n\n" + ("\n".join(lines) or "None.") + "\n"


def _reason(why: str) -> str:
    for pattern, reason in _REASONS:
        if found := re.search(pattern, why):
            return found.expand(reason)
    return re.sub(r"^line \d+: ", "", why.splitlines()[0] if why else "")


def _table(kernels: Mapping[str, Sequence[Result]]) -> str:
    by_name = {release: {r.name: r for r in results} for release, results in kernels.items()}
    names = dict.fromkeys(name for results in by_name.values() for name in results)
    lines = [
        f"| tool | {' | '.join(kernels)} | why not further |",
        f"| --- | {' | '.join('---' for _ in kernels)} | --- |",
    ]
    for name in names:
        row = {release: results[name] for release, results in by_name.items() if name in results}
        cells = [stage(row[release]) if release in row else "" for release in kernels]
        shown = name.replace("|", "\\|")
        lines.append(f"| `{shown}` | {' | '.join(cells)} | {_whys(row)} |")
    lines += [f"| `{name}` | {' | '.join('-' for _ in kernels)} | {why} |" for name, why in NO_PROGRAM.items()]
    return "## Tool by tool\n\n" + "\n".join(lines) + "\n"


def _whys(row: Mapping[str, Result]) -> str:
    """What stopped a tool, the kernels with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for release, result in row.items():
        if stage(result) != "attached":
            reason = _reason((result.bpfnb.why if result.bpfnb else "") or result.gave_up)
            reasons.setdefault(reason, []).append(".".join(release.split(".")[:2]))
    return "; ".join(f"{_listed(where)}: {reason}" for reason, where in reasons.items()).replace("|", "\\|")


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
