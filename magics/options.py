"""The words of a line of %%bpf and %bpf. Options that every session takes: bpfnb/options.py."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from numbers import Number

import numpy as np

from bpfnb.errors import ProgramError, did_you_mean

__all__ = ["insert", "parse_define", "split"]

_DEFINE = re.compile(r"[A-Za-z_]\w*(\(|=|$)", re.ASCII)
# A value alone, or a macro's: -D LIMIT={limit}. Elsewhere braces may be another language's, as in --command's awk.
_ALONE = re.compile(r"(?:[A-Za-z_]\w*=)?\{([A-Za-z_]\w*)\}", re.ASCII)
_NAME = re.compile(r"\{([A-Za-z_]\w*)\}|\$([A-Za-z_]\w*)", re.ASCII)


def parse_define(text: str) -> str:
    """Return clang's flag for a macro: "LIMIT=10" or "NAME". ProgramError where that is no name of a macro."""
    if not _DEFINE.match(text):
        raise ProgramError(f"not a macro: {text!r}", hint="write -D NAME or -D NAME=VALUE")
    return f"-D{text}"


def split(line: str) -> list[str]:
    """Split a magic's line into words, quoted ones unquoted. ProgramError for an unbalanced quote."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ProgramError(f"cannot read the line {line!r}: {error}") from None


def insert(word: str, values: Mapping[str, object]) -> str:
    """Replace ``{name}`` and ``$name`` in a word by the value of that name; other names stay as they are written.

    ProgramError for a value that is neither text, a path nor a number, and for a word that is nothing but the name of
    no variable: it would be taken for the value.
    """
    if (alone := _ALONE.fullmatch(word)) and (name := alone[1]) not in values:
        near = did_you_mean(name, [known for known in values if not known.startswith("_")])
        raise ProgramError(f"{word}: no variable is called {name}", hint=near or None)

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        return _as_text(name, values[name]) if name in values else found[0]

    return _NAME.sub(value, word)


def _as_text(name: str, value: object) -> str:
    if isinstance(value, (bool, np.bool_)):  # C has no True
        return str(int(value))
    if isinstance(value, (str, Number)):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    raise ProgramError(f"{name} is a {type(value).__name__}: only text, paths and numbers can stand in the line")
