"""What fits on a %%bpf or %bpf line: options and their values, subcommands, sessions, probes, functions, files."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable
from typing import NamedTuple

from bpfnb.hosts import host_names, hosts
from bpfnb.language.editing.scope import functions
from bpfnb.language.oneliner.names import AT_RETURN, TASK
from bpfnb.language.probes import KINDS
from bpfnb.tools.command import parser_of
from bpfnb.tools.toolbox import find, names

from .. import questions
from ..bpf import COMMANDS, option_names
from .asking import asker

__all__ = ["Item", "for_cell", "for_line", "probes"]

_MAX_PROBES = 500
_MAX_FILES = 500
_ATTACH = ("-a", "--attach")
_SHORT = ("-a", "-t", "-D", "-h")
_EXPRESSION = re.compile(r"[A-Za-z_]\w*\Z")
_CGROUPS = "/sys/fs/cgroup"
_ALIASES = {alias: kind.name for kind in KINDS.values() for alias in kind.aliases}


class Item(NamedTuple):
    """What a word may become. ``type``: what is shown beside it."""

    text: str
    type: str


Found = tuple[str, list[Item]]


def for_cell(before: str, code: str, until: float) -> Found:
    """Return the part of a word at the end of %%bpf's first line, and what it may become. ``code``: the C below."""
    words = before.split(" ")
    word, option = words[-1], words[-2] if len(words) > 1 else ""
    if option in _ATTACH:
        return _attach(word, code, until)
    if found := _value(option, word):
        return found
    if word.startswith("-"):
        return word, _options(word, [*option_names(), *_SHORT])
    return word, []


def for_line(before: str, until: float) -> Found:
    """Return the part of a word at the end of a %bpf line, and what it may become."""
    words = before.split(" ")
    word, command = words[-1], words[0]
    if len(words) == 1:
        return word, _starting(word, sorted(COMMANDS), "command")
    if found := _value(words[-2], word):
        return found
    if word.startswith("-") and command in COMMANDS and COMMANDS[command].host:
        return word, _options(word, ["--host", *(["--all"] if command == "stop" else [])])
    if command in ("stop", "show"):
        running = dict.fromkeys(name for host in hosts() for name in host.sessions())
        return word, _starting(word, [*running, *(["--all"] if command == "stop" else [])], "session")
    if command == "host":
        known = [host.name for host in hosts()[1:]] if words[1] == "stop" else []
        return word, _starting(word, ["list", "stop"] if len(words) == 2 else known, "host")
    if command in questions.VERBS:
        return _question(words, until)
    if command == "run":
        return word, _starting(word, names(), "tool") if len(words) == 2 else _of_tool(words)
    if command == "probes" and len(words) == 2:
        return word, probes(word, until)
    return word, []


def _question(words: list[str], until: float) -> Found:
    word, option = words[-1], words[-2]
    if len(words) == 2:
        return word, probes(word, until)
    if word.startswith("-"):
        return word, _options(word, questions.parser_of(words[0]).option_names())  # type: ignore[arg-type]
    if option == "--kind":
        return word, _starting(word, ("log2", "linear"), "value")
    if option in ("--by", "--where") or len(words) == 3 or not option.startswith("-"):
        found = _EXPRESSION.search(word.lstrip("\"'"))
        part = found[0] if found else ""
        return part, _starting(part, _values_of(words[1], until), "value")
    return word, []


def _values_of(probe: str, until: float) -> list[str]:
    """Return the names that expressions about a probe may use."""
    known = asker.ask(("describe", probe), lambda tracer: tracer.describe([probe], [], 1), until)
    arguments = [argument.name for signature in known or () for argument in signature.arguments]
    return list(dict.fromkeys([*arguments, *AT_RETURN, *TASK, "comm", "probe"]))


def _of_tool(words: list[str]) -> list[Item]:
    word, option = words[-1], words[-2].removeprefix("--").replace("-", "_")
    if words[1] not in names():
        return []
    tool = find(words[1])
    choices = next((known.choices for known in tool.options if known.name == option), ())
    if choices and not word.startswith("-"):
        return _starting(word, choices, "value")
    return _options(word, parser_of(tool, tool.name, live=True).option_names()) if word.startswith("-") else []


def _options(word: str, options: Iterable[str]) -> list[Item]:
    return _starting(word, options, "option")


def _starting(word: str, texts: Iterable[str], type_: str) -> list[Item]:
    return [Item(text, type_) for text in texts if text.startswith(word)]


# --- values of options --------------------------------------------------------------------------------------------


def _value(option: str, word: str) -> Found | None:
    if option == "--host":
        return word, _starting(word, host_names(), "host")
    if option == "--missing":
        return word, _starting(word, ("error", "warn", "ignore"), "value")
    if option == "--headers":
        return word, [*_starting(word, ("auto", "btf"), "value"), *_files(word, folders=True)]
    if option == "--cgroup":
        found = _files(word if word.startswith("/") else f"{_CGROUPS}/{word}", folders=True)
        cut = 0 if word.startswith("/") else len(_CGROUPS) + 1
        return word, [Item(item.text[cut:], "cgroup") for item in found]
    if option == "--uid":
        return word, _starting(word, sorted(user.pw_name for user in pwd.getpwall()), "user")
    if option == "--command":
        start = word.lstrip("\"'")
        return start, _files(start) if "/" in start else []
    return None


def _files(start: str, *, folders: bool = False, end: str = "") -> list[Item]:
    """Return the files whose paths begin so. ``end``: what goes behind one that is no folder."""
    folder, name = os.path.split(os.path.expanduser(start))  # noqa: PTH111 (a Path has no slash at its end)
    kept = start[: len(start) - len(name)]
    found = []
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                if not entry.name.startswith(name) or (entry.name.startswith(".") and not name) or " " in entry.name:
                    continue
                if entry.is_dir():
                    found.append(Item(f"{kept}{entry.name}/", "folder"))
                elif not folders and entry.is_file():
                    found.append(Item(f"{kept}{entry.name}{end}", "file"))
                if len(found) == _MAX_FILES:
                    break
    except (OSError, ValueError):
        return []
    return sorted(found)


# --- probes -------------------------------------------------------------------------------------------------------


def _attach(word: str, code: str, until: float) -> Found:
    probe, equals, function = word.rpartition("=")
    if equals and ":" in probe:
        return function, _starting(function, functions(code), "function")
    return word, probes(word, until)


def probes(word: str, until: float) -> list[Item]:
    """Return what may follow the beginning of a probe: kinds, files, the kernel's or a file's probes."""
    kind, colon, rest = word.partition(":")
    full = _ALIASES.get(kind, kind)
    if not colon:
        kinds = _starting(word, (f"{name}:" for name in KINDS), "kind of probe")
        return kinds + (_known(word, until) if word else [])
    row = KINDS.get(full)
    if row and row.events:
        return _starting(word, (f"{kind}:{event}" for event in row.events), "event")
    if row and row.in_file and ":" not in rest:
        found = [Item(f"{kind}:{item.text}", item.type) for item in _files(rest, end=":")]
        return found if rest.startswith((".", "/", "~")) or found else []
    start = f"{full}:{rest}"
    return [Item(f"{kind}{item.text[len(full) :]}", item.type) for item in _known(start, until)]


def _known(start: str, until: float) -> list[Item]:
    found = asker.ask(("probes", start), lambda tracer: tracer.find_probes(f"{start}*", _MAX_PROBES), until)
    return [Item(name, "probe") for name in (found or ((), 0))[0] if name.startswith(start)]
