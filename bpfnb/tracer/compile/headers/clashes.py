"""Names of the cell's own that the headers made from BTF have for something else.

These headers hold more than the cell includes: a cell that needs one struct of linux/sched.h gets every type that can
be reached from there. So a ``struct request`` or an ``enum { READ }`` of the cell's own, which compiles with the
kernel's real headers, is a redefinition here, and clang points at both. Then the kernel's is renamed, in the headers'
text and for this cell alone, and the cell is compiled again.

    find(log, source)            which names clash, by what clang said
    replacements(tree, clashes)  the files of the tree that change: name to text
    warnings(cell, clashes)      what the user has to know of it

A file of the tree is replaced by a macro that names another (contents.py, _replaceable), which lives in memory. Only
what clang complains of is renamed: a struct that the headers just declare and the cell completes (``struct
mnt_namespace``) stays one type.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from bpfnb.errors import Diagnostic
from bpfnb.language.cell import Cell
from bpfnb.language.scan import scan
from bpfnb.language.syntax import declared
from bpfnb.tracer.compile.headers.contents import GENERATED, body
from bpfnb.tracer.kernel.btf import KERNELS

__all__ = ["Clash", "find", "rename_names", "rename_tags", "replacements", "warnings"]

_MESSAGE = re.compile(
    r"^(?P<file>\S.*?):\d+:\d+: (?:fatal )?(?P<severity>error|warning|note): (?P<text>.*)\n"
    r"(?P<quote>.*)\n(?P<caret>[ ~]*)\^",
    re.M,
)
_OURS = re.compile(r"include/bpfnb/(\w+\.h)")
_THERE = re.compile(r"previous (?:definition|declaration|use) is here")
_MACRO = re.compile(
    r"expanded from macro '(\w+)'|macro '(\w+)' defined here|expanded from here\n#define (\w+)"  # the last: by a flag
)
_REDEFINED = re.compile(r"'(\w+)' macro redefined")
# Who declares fields to be found at load means the kernel's struct; clang's refusal of a second one is then right.
_MEANS_THE_KERNELS = "preserve_access_index"


class Clash(NamedTuple):
    """``name``: "request". ``kind``: in the headers it is a "tag" (of a struct, a union, an enumeration), a "macro", or
    another "name"; "word": the cell has a macro of this name, so it can stay nowhere. ``file``: of the tree.
    """

    name: str
    kind: str
    file: str


def find(log: str, source: str) -> set[Clash]:
    """Return the clashes that clang complained of in a cell."""
    noted = set(_noted(log))
    if not noted:
        return set()
    cell = scan(source)
    words = {token.text for token in [*cell.tokens, *(t for ms in cell.macros.values() for m in ms for t in m.tokens)]}
    if _MEANS_THE_KERNELS in words:
        return set()
    names = {"tag": words, "name": words, "macro": declared(cell)}
    return {clash for clash in noted if clash.kind == "word" or clash.name in names[clash.kind]}


def _noted(log: str) -> Iterator[Clash]:
    """Yield what is named in messages about the cell whose notes are about the tree, and the other way round."""
    head: re.Match[str] | None = None
    for said in _MESSAGE.finditer(log):
        if said["severity"] != "note":
            head = said
            if (file := _file(said)) and (again := _REDEFINED.match(said["text"])):
                yield Clash(again[1], "word", file)
        # A macro defined again: the later definition holds; in the cell it is the cell's, and clang warns its author.
        elif head and bool(_file(head)) != bool(_file(said)) and not _REDEFINED.match(head["text"]):
            file, in_tree = _file(head) or _file(said), head if _file(head) else said
            if macro := _MACRO.match(said["text"] + "\n" + said["quote"]):
                yield Clash(macro[macro.lastindex or 0], "word" if in_tree is head else "macro", file)
            elif _THERE.match(said["text"]) and (name := re.match(r"\w+", in_tree["quote"][len(in_tree["caret"]) :])):
                before = in_tree["quote"][: len(in_tree["caret"])]
                yield Clash(name[0], "tag" if re.search(r"\b(?:struct|union|enum) +$", before) else "name", file)


def _file(said: re.Match[str]) -> str:
    """Return the file of the tree that a message is about; "" for the cell and others."""
    found = _OURS.fullmatch(said["file"])
    return found[1] if found else ""


def replacements(tree: Path, clashes: Collection[Clash]) -> dict[str, str]:
    """Return the files of a tree in which one of the names stands: file name to text, without guard."""
    found = {}
    for path in sorted((tree / "include/bpfnb").glob("*.h")):
        before = after = body(path.read_text())
        for kinds, rename in _RENAMINGS:
            names = "|".join(sorted({clash.name for clash in clashes if clash.kind in kinds}))
            after = rename(after, names, path.name in GENERATED) if names else after
        if after != before:
            found[path.name] = after
    return found


def rename_tags(text: str, names: str, generated: bool) -> str:
    """Rename structs, unions and enumerations: ``names``, with "|" between them."""
    return re.sub(rf"\b(struct|union|enum) ({names})\b", rf"\1 {KERNELS}\2", text)


def rename_names(text: str, names: str, generated: bool) -> str:
    """Rename typedefs, enumerators, functions and macros, but no member of the same name."""
    name = rf"(?<!struct )(?<!union )(?<!enum )(?<![\w.>])({names})\b"
    if not generated:
        return re.sub(name, rf"{KERNELS}\1", text)
    # libbpf writes one declaration a line, indents members, and names no parameters.
    anywhere, no_member = re.compile(name), re.compile(rf"{name}(?!;|\[|: |\)\()")

    def renamed(line: re.Match[str]) -> str:
        return (no_member if line[0].startswith("\t") else anywhere).sub(rf"{KERNELS}\1", line[0])

    return re.sub(rf"^.*\b(?:{names})\b.*$", renamed, text, flags=re.M)


def _words(text: str, names: str, generated: bool) -> str:
    return re.sub(rf"\b({names})\b", rf"{KERNELS}\1", text)


_RENAMINGS = ((("tag",), rename_tags), (("name", "macro"), rename_names), (("word",), _words))


def warnings(cell: Cell, clashes: Collection[Clash]) -> list[Diagnostic]:
    """Return what the user has to know: a name of a header that the cell includes does not mean the kernel's.

    Nothing to say where the cell includes no header of the kernel's, or only one that does not have the name: there the
    kernel's is there for our sake alone.
    """
    if not clashes:
        return []
    included = any(_HEADER.match(token.text) for token in cell.directives)
    found = []
    for clash in sorted(clashes) if included else ():
        at = next((token.start for token in cell.tokens if token.text == clash.name), None)
        if at is not None and clash.file != "all.h" and clash.kind != "word":
            message = f"{clash.name} is the cell's own here, not what the kernel's headers call so"
            found.append(Diagnostic(*cell.place(at), "warning", message))
    return found


_HEADER = re.compile(r"#\s*include\s*<(?:linux|uapi|net|asm|scsi)\b")
