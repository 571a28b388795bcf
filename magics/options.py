"""The options of %%bpf and %bpf, and the values they take."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from numbers import Number

import numpy as np

from bpfnb.errors import ProgramError

__all__ = ["insert", "parse_define", "parse_duration", "parse_rate", "parse_share", "parse_size", "split"]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|min|h)?", re.ASCII)
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0}
_DEFINE = re.compile(r"[A-Za-z_]\w*(\(|=|$)", re.ASCII)
_NAME = re.compile(r"\{([A-Za-z_]\w*)\}|\$([A-Za-z_]\w*)", re.ASCII)
_SHARE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(%)?", re.ASCII)
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kM])?", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(?:i?b)?|b)?", re.ASCII | re.IGNORECASE)


def parse_duration(text: str) -> float:
    """Return seconds: "10s", "500ms", "2m", "1h", "10". ProgramError for anything else, and for zero."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ProgramError(f"not a duration: {text!r}", hint="write 10s, 500ms, 2m or 1h")
    seconds = float(match[1]) * _SECONDS[match[2] or ""]
    if seconds <= 0:
        raise ProgramError(f"a duration must be longer than nothing, not {text!r}")
    return seconds


def parse_size(text: str) -> int:
    """Return bytes: "512M", "2G", "100000". ProgramError for anything else, and for zero."""
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * 1024 ** " kmgt".index((match[2] or " ").lower())) if match else 0
    if size <= 0:
        raise ProgramError(f"not a size: {text!r}", hint="write 512M or 2G")
    return size


def parse_share(text: str) -> float:
    """Return a share of 1: "25%", "0.25". ProgramError for anything else, for zero, and for more than 1."""
    match = _SHARE.fullmatch(text)
    share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < share <= 1:
        hint = f"write {text}%" if match and not match[2] and 1 < share <= 100 else "write 25% or 0.25"
        raise ProgramError(f"not a share of all CPUs: {text!r}", hint=hint)
    return share


def parse_rate(text: str) -> float:
    """Return events a second: "5000", "20k", "1.5M". ProgramError for anything else, and for zero."""
    match = _RATE.fullmatch(text)
    rate = float(match[1]) * {"k": 1e3, "M": 1e6}.get(match[2], 1.0) if match else 0.0
    if not rate:
        raise ProgramError(f"not a number of events a second: {text!r}", hint="write 5000, 20k or 1M")
    return rate


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

    ProgramError for a value that is neither text, a path nor a number.
    """

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
