"""Tab completion on a %%bpf or %bpf line: options, subcommands, sessions, this kernel's probes."""

from __future__ import annotations

import re

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher
from IPython.core.interactiveshell import InteractiveShell

from bpfnb.errors import BpfnbError
from bpfnb.hosts import default_host
from bpfnb.tools.command import parser_of
from bpfnb.tools.toolbox import find, names

from . import questions
from .bpf import COMMANDS, option_names

__all__ = ["install", "remove"]

_MAX_PROBES = 200
_LINE = re.compile(r"\s*(%%?)bpf\s+(.*)")


@context_matcher()
def _bpf_matcher(context: CompletionContext) -> SimpleMatcherResult:
    before = context.full_text[: context.cursor_position]
    line = _LINE.fullmatch(before)  # "." stops at a newline: within the cell's C this does not match
    if not line:
        return {"completions": []}
    words = line[2].split(" ")
    names = _for_cell(words) if line[1] == "%%" else _for_line(words)
    word = words[-1]
    found = [SimpleCompletion(name, type="magic") for name in names if name.startswith(word)]
    return {"completions": found, "matched_fragment": word, "suppress": bool(found)}


def _for_cell(words: list[str]) -> list[str]:
    if words[-1].startswith("-"):
        return option_names()
    if len(words) > 1 and words[-2] in ("-a", "--attach") and words[-1]:
        return _probes(words[-1])
    return []


def _for_line(words: list[str]) -> list[str]:
    if len(words) == 1:
        return sorted(COMMANDS)
    if words[0] in ("stop", "show"):
        return list(default_host.sessions())
    if words[0] in questions.VERBS:
        options = questions.parser_of(words[0]).option_names()
        return options if words[-1].startswith("-") else _probes(words[-1]) if len(words) == 2 and words[-1] else []
    if words[0] == "run":
        return list(names()) if len(words) == 2 else _tool_options(words[1])
    return []


def _tool_options(name: str) -> list[str]:
    return parser_of(find(name), name, live=True).option_names() if name in names() else []


def _probes(start: str) -> list[str]:
    try:
        return list(default_host.connect().find_probes(f"{start}*", _MAX_PROBES)[0])
    except BpfnbError:
        return []  # no tracer, no names: a Tab is no place for an error


def install(shell: InteractiveShell) -> None:
    if _bpf_matcher not in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.append(_bpf_matcher)


def remove(shell: InteractiveShell) -> None:
    if _bpf_matcher in shell.Completer.custom_matchers:
        shell.Completer.custom_matchers.remove(_bpf_matcher)
