"""%bpf count, stats, hist, latency, rows, stacks: their options, and the calls they stand for."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bpfnb.errors import ProgramError
from bpfnb.hosts import Host
from bpfnb.language.oneliner.question import VERBS, Verb
from bpfnb.language.probes import KINDS
from bpfnb.options import add_options, options_of
from bpfnb.session import Session
from bpfnb.tools.command import Parser

__all__ = ["VERBS", "Verb", "call_of", "parser_of"]

_VALUE = {"stats": "a number: count, retval, arg0 * 8", "hist": "a number: count, retval, arg0 * 8"}
_LANGUAGE = """\
expressions are Python's, over the probe's arguments by name, arg0 ... arg5, retval, errno, latency (ns), pid, tid,
ppid, comm, cpu, uid, gid, cgroup, probe:
  numbers   + - * // % & | ^ ~ << >>   == != < <= > >=   in (2, 13)   and or not   x if c else y   int32(arg0)
  strings   == != in ('a', 'b')   name.startswith('/etc')   len(name)   str(arg0): the string at an address
  members   sk.__sk_common.skc_dport, through pointers
"""


def parser_of(verb: Verb) -> Parser:
    """Return the parser of a command: PROBE [VALUE], its own options and every session's."""
    method = getattr(Host, verb)
    parser = Parser(
        prog=f"%bpf {verb}",
        description=inspect.cleandoc(method.__doc__ or ""),
        epilog=_LANGUAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("probe", metavar="PROBE", help="as -a takes it, with wildcards; several with commas between them")
    if verb in _VALUE:
        add("value", metavar="VALUE", help=_VALUE[verb])
    if verb == "rows":
        add("columns", metavar="COLUMNS", nargs="?", help="pid,filename or NAME:EXPRESSION,...; else all arguments")
    else:
        add("--by", metavar="COLUMNS", help="one result for each value: comm,errno or NAME:EXPRESSION,...")
    add("--where", metavar="EXPRESSION", help="only events that this is true of")
    if verb == "hist":
        add("--kind", metavar="log2|linear", help="powers of two; or --bins")
        add("--bins", metavar="LOW,HIGH,STEP", help="linear buckets")
    if verb == "stacks":
        add("--no-kernel", action="store_true", help="without the kernel's functions")
        add("--no-user", action="store_true", help="without the process's functions")
    add_options(parser.add_argument_group("options of every session"), live=True)
    return parser


def call_of(host: Host, verb: Verb, parsed: argparse.Namespace) -> Callable[[], Session]:
    """Return the call of the host's method that a line stands for. ProgramError for values that are none."""
    named: dict[str, Any] = {**options_of(parsed), "where": parsed.where}
    if verb == "rows":
        named["columns"] = _columns(parsed.columns)
    else:
        named["by"] = _columns(parsed.by)
    if verb in _VALUE:
        named["value"] = parsed.value
    if verb == "hist":
        named["bins"] = _bins(parsed.bins)
        named["kind"] = parsed.kind or ("linear" if parsed.bins else "log2")
    if verb == "stacks":
        named |= {"kernel": not parsed.no_kernel, "user": not parsed.no_user}
    return partial(getattr(host, verb), _probes(parsed.probe), **named)


def _probes(text: str) -> list[str]:
    """Split at commas that a kind of probe follows: names of C++ have commas of their own."""
    words = "|".join([*KINDS, *(alias for kind in KINDS.values() for alias in kind.aliases)])
    return [part.strip() for part in re.split(rf",\s*(?=(?:{words}):)", text)]


def _columns(text: str | None) -> dict[str, str] | None:
    """Return columns of a line: an expression, or NAME:EXPRESSION, with commas between them."""
    if text is None:
        return None
    columns = {}
    for part in _split(text, ","):
        name, *rest = _split(part, ":")
        columns[name.strip()] = ":".join(rest).strip() if rest else name.strip()
    return columns


def _split(text: str, at: str) -> list[str]:
    """Split at a character that is in no brackets and no string."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        else:
            depth += (character in "([") - (character in ")]")
        if character == at and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _bins(text: str | None) -> Sequence[int] | None:
    if text is None:
        return None
    try:
        return tuple(int(part, 0) for part in text.split(","))
    except ValueError:
        raise ProgramError(f"--bins are three whole numbers, not {text!r}", hint="write --bins 0,1000,10") from None
