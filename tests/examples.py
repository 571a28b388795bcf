"""The examples in the documents and the help: every code block, and every piece of code in a sentence that can be run.

``EXAMPLES`` has them by name, which is an example's first line without its comment. ``shown`` says which of them a test
runs, as they are written:

    @shown("clones.lost")
    def test_...() -> None:
        ... shell.run(EXAMPLES["clones.lost"].text)

tests/unit/test_docs.py compares the two: an example that no test shows fails there, and so does a name that a test
shows and no document has.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bpfnb.language.probes import KINDS
from magics.bpf import BpfMagics

__all__ = ["DOCUMENTS", "EXAMPLES", "ROOT", "SHOWN", "Example", "read", "shown"]

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
# What a program writes: from there on, the document is a table of what other people's programs are called.
_GENERATED = {"docs/compatibility.md": "## In all", "docs/tools.md": "## The tools"}

# A name of anything: a column, a file, a module, a dtype, a C type, an option of the kernel's.
_NAME = re.compile(r"(?:\w[\w/-]*(?:\.[a-z]+)?|/[\w./-]+|\*?\.\w+|\(\w+\))\*?")
# What can be run all the same: attributes of objects, commands, options, functions named like probes.
_OBJECT = re.compile(r"(?:bpfnb|session|clones|opens|reads|maps|outputs|df|error)\.\w")
_COMMAND = re.compile(r"(?:\./)?scripts/\w+$|\.venv/|\.ci/|%|-")
_FUNCTION = re.compile(r"(?:k(?:ret)?probe|k(?:ret)?func|(?:raw_)?tracepoint|syscall|lsm)__")

_SHELL = re.compile(r"(?:\./)?scripts/|\.venv/")
_NEW_CELL = re.compile(r"\n\s*\n(?=%)")
_COMMENT = re.compile(r"(?<=\S)\s+# .*")
_IN_COMMENT = re.compile(r"%bpf \w+|bpfnb\.\w+\([^)]*\)")


@dataclass(frozen=True)
class Example:
    """``text``: as it is written, less its indentation; ``place``: the document, and the line where it has one."""

    name: str
    text: str
    place: str
    block: bool

    def __str__(self) -> str:
        return self.name


# --- taking them out of the documents -----------------------------------------------------------------------------


def read(document: str, text: str) -> Iterator[Example]:
    """The examples in a text of Markdown, in its order, with their repetitions."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        start = at
        at += 1
        if lines[start].startswith("```"):
            while not lines[at].startswith("```"):
                at += 1
            yield from _of_block(document, start + 2, lines[start + 1 : at])
            at += 1
        elif lines[start].startswith("    ") and not (start and lines[start - 1].strip()):
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            yield from _of_block(document, start + 1, lines[start:at])
        elif lines[start].strip():
            while at < len(lines) and lines[at].strip() and not lines[at].startswith("```"):
                at += 1
            yield from _of_sentences(document, start + 1, "\n".join(lines[start:at]))


def _of_block(document: str, line: int, lines: list[str]) -> Iterator[Example]:
    """A block of commands is an example a line; one of cells, an example a cell; else it is one."""
    block = textwrap.dedent("\n".join(lines)).strip("\n")
    if _SHELL.match(block):
        parts = [_without_comment(command) for command in block.split("\n") if command]
    else:
        parts = _NEW_CELL.split(block)
    for part in parts:
        place = f"{document}:{line + block[: block.index(part)].count(chr(10))}"
        yield Example(_without_comment(part.split("\n")[0]), part.strip("\n"), place, True)
    for code in _IN_COMMENT.findall("".join(_COMMENT.findall(block))):
        yield Example(code, code, f"{document}:{line}", False)


def _without_comment(line: str) -> str:
    return _COMMENT.sub("", line).strip()


def _of_sentences(document: str, line: int, text: str) -> Iterator[Example]:
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
        code = " ".join(match[1].split())
        if _can_run(code):
            yield Example(code, code, f"{document}:{line + text[: match.start()].count(chr(10))}", False)


def _can_run(code: str) -> bool:
    if any(kind.match(code) for kind in (_OBJECT, _COMMAND, _FUNCTION)):
        return True
    return not _NAME.fullmatch(code) and not (ROOT / code).exists()


def _of_help() -> Iterator[Example]:
    """What %%bpf? shows: commands, attachments, durations, sizes; and the probes that error messages show."""
    said = f"{BpfMagics.bpf.parser.format_help()}\n{BpfMagics.bpf.__doc__}"
    commands = re.findall(r"%bpf [a-z]+(?: (?:[A-Z]+|--\w+))?", said)
    probes = re.findall(r"([a-z]+:[^\s,=]*[^\s,=A-Z])=\w+", said)
    quantities = re.findall(r"\b\d+(?:ms|[smhkMG])\b", said)
    for name in [*commands, *probes, *quantities]:
        yield Example(name, name, "%%bpf?", False)
    for name in (example for kind in KINDS.values() for example in kind.examples):
        yield Example(name, name, "an error's hint", False)


def _all() -> dict[str, Example]:
    found: dict[str, Example] = {}
    texts = {name: (ROOT / name).read_text().partition(_GENERATED.get(name, "\0"))[0] for name in DOCUMENTS}
    for example in [*(e for name, text in texts.items() for e in read(name, text)), *_of_help()]:
        twin = found.setdefault(example.name, example)
        if twin.text != example.text:
            raise ValueError(f"{twin.place} and {example.place} begin alike: give one another first line")
    return found


EXAMPLES = _all()


# --- putting them into tests --------------------------------------------------------------------------------------

SHOWN: set[str] = set()
Test = TypeVar("Test", bound=Callable[..., None])


def shown(*names: str) -> Callable[[Test], Test]:
    """Say that a test runs these examples. Its text is ``EXAMPLES[name].text``."""
    SHOWN.update(names)
    return lambda test: test
