"""Demangle C++ and Rust names, in a child process without rights (demangle_child.py).

A name that the child did not answer stays mangled.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Demangler"]

_CHILD = Path(__file__).with_name("demangle_child.py")
_TIMEOUT = 1.5  # seconds
_MAX_KNOWN = 100_000  # names
_RUST = re.compile(rb"17h[0-9a-f]{16}E$")
_RUST_ESCAPE = re.compile(r"\$(?:u([0-9a-f]{2})|(LT|GT|RF|BP|LP|RP|SP|C))\$")
_RUST_CHARACTERS = {"LT": "<", "GT": ">", "RF": "&", "BP": "*", "LP": "(", "RP": ")", "SP": "@", "C": ","}


class Demangler:
    """Demangles names as C++ and Rust write them, and keeps the results. Rust's v0 scheme ("_R...") stays mangled."""

    def __init__(self) -> None:
        self._known: dict[bytes, str] = {}

    def names(self, mangled: Sequence[bytes]) -> list[str]:
        """Return each name as people write it, in the same order. Blocks for at most 1.5 seconds."""
        unknown = [name for name in dict.fromkeys(mangled) if name.startswith(b"_Z") and name not in self._known]
        if unknown:
            if len(self._known) + len(unknown) > _MAX_KNOWN:
                self._known.clear()
            self._known.update(_demangled(unknown))
        return [self._known.get(name) or _text(name) for name in mangled]


def _demangled(names: list[bytes]) -> dict[bytes, str]:
    lines = [name.replace(b"\n", b"?") for name in names]
    try:
        with subprocess.Popen(
            [sys.executable, "-I", "-S", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                answer, _ = process.communicate(b"\n".join(lines) + b"\n", timeout=_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                answer, _ = process.communicate()
    except OSError:
        answer = b""
    complete = answer.split(b"\n")[:-1]
    texts = map(_text, complete + lines[len(complete) :])
    return {name: _rust(text) if _RUST.search(name) else text for name, text in zip(names, texts, strict=True)}


def _rust(text: str) -> str:
    """Return a name as Rust writes it: without the hash, "<impl ...>" for "_$LT$impl$u20$...$GT$"."""
    text = re.sub(r"::h[0-9a-f]{16}$", "", text)
    text = re.sub(r"(^|::)_\$", r"\1$", text).replace("..", "::")
    return _RUST_ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else _RUST_CHARACTERS[m[2]], text)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
