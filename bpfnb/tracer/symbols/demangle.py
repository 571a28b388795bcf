"""C++ and Rust names as people know them. Demangling hostile names is left to a process that may do nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["Demangler"]

# A mangled name of a few hundred characters can stand for more text than there is memory. So they are demangled by a
# process of no rights that may be killed; what it did not answer stays as it is.
_DEMANGLE = """
import ctypes, resource, sys
for limit, most in (resource.RLIMIT_AS, 1 << 30), (resource.RLIMIT_CPU, 1), (resource.RLIMIT_CORE, 0):
    resource.setrlimit(limit, (most, most))
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
demangle.restype = ctypes.c_void_p
for name in sys.stdin.buffer:
    name = name.rstrip(b"\\n")
    found = demangle(name, None, None, None)
    text = ctypes.string_at(found) if found else name
    sys.stdout.buffer.write(text[:4096].split(b"\\n")[0] + b"\\n")
    sys.stdout.buffer.flush()
"""
_RUST = re.compile(rb"17h[0-9a-f]{16}E$")
_RUST_ESCAPE = re.compile(r"\$(?:u([0-9a-f]{2})|(LT|GT|RF|BP|LP|RP|SP|C))\$")
_RUST_CHARACTERS = {"LT": "<", "GT": ">", "RF": "&", "BP": "*", "LP": "(", "RP": ")", "SP": "@", "C": ","}
_MOST_DEMANGLED = 100_000


class Demangler:
    """C++ names as C++ writes them, and Rust's older ones as Rust does (not the "_R..." of its v0 scheme)."""

    def __init__(self) -> None:
        self._known: dict[bytes, str] = {}

    def names(self, mangled: Sequence[bytes]) -> list[str]:
        strange = [name for name in dict.fromkeys(mangled) if name.startswith(b"_Z") and name not in self._known]
        if strange:
            if len(self._known) + len(strange) > _MOST_DEMANGLED:
                self._known.clear()
            self._known.update(_demangled(strange))
        return [self._known.get(name) or _text(name) for name in mangled]


def _demangled(names: list[bytes]) -> dict[bytes, str]:
    lines = [name.replace(b"\n", b"?") for name in names]
    try:
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _DEMANGLE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                answer, _ = process.communicate(b"\n".join(lines) + b"\n", timeout=1.5)
            except subprocess.TimeoutExpired:
                process.kill()
                answer, _ = process.communicate()
    except OSError:
        answer = b""
    complete = answer.split(b"\n")[:-1]
    texts = map(_text, complete + lines[len(complete) :])
    return {name: _rust(text) if _RUST.search(name) else text for name, text in zip(names, texts, strict=True)}


def _rust(text: str) -> str:
    """As Rust writes it: without the hash, "<impl ...>" for "_$LT$impl$u20$...$GT$"."""
    text = re.sub(r"::h[0-9a-f]{16}$", "", text)
    text = re.sub(r"(^|::)_\$", r"\1$", text).replace("..", "::")
    return _RUST_ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else _RUST_CHARACTERS[m[2]], text)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
