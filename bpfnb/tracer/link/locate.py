"""The file that is meant by the PATH of a probe: a path, a library's short name, or a program's name."""

from __future__ import annotations

import itertools
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from bpfnb.errors import near_names
from bpfnb.language.probes import Probe
from bpfnb.tracer.kernel import capabilities
from bpfnb.tracer.kernel.files import UNREADABLE, opened
from bpfnb.tracer.link.errors import near, rejection
from bpfnb.tracer.symbols.elf import Elf

__all__ = ["find_file", "parse_cache"]

_CACHE = Path("/etc/ld.so.cache")
_MAX_CACHE = 16 << 20  # bytes
_MAX_NEIGHBOURS = 10_000  # files of a folder
_FOLDERS = ("/lib", "/usr/lib", "/usr/local/lib")  # where there is no cache


def find_file(probe: Probe, name: str, folder: str) -> str:
    """Return the whole path. AttachError when there is no such file, or when it may be one of several.

    ``folder``: the notebook's, which relative paths begin in; "" where that is not known.
    """
    if "/" in name:
        return _at_path(probe, name, folder)
    libraries, program = _libraries(name), shutil.which(name)
    if program and libraries and not _is_ours(program):
        program = None  # a script
    candidates = [*libraries, *([program] if program else [])]
    exact = [path for path in libraries if Path(path).name == name]
    if exact or len(candidates) == 1:
        return (exact or candidates)[0]
    if candidates:
        kind = "a library and a program" if program else "several libraries"
        rest = probe.target.removeprefix(name)
        hint = f"write {' or '.join(f'{probe.kind}:{path}{rest}' for path in candidates[:3])}"
        raise rejection(probe, f"{name} is {kind}: {', '.join(candidates)}", hint=hint)
    if folder and Path(folder, name).is_file():
        hint = f"a file of the notebook's folder is {probe.kind}:./{probe.target}"
    else:
        rest = probe.target.removeprefix(name)
        names = [f"{probe.kind}:{n}{rest}" for n in near_names(name, {*_short_names(), *_programs(name[:1])}, 0.75)]
        hint = f"did you mean {' or '.join(names)}?" if names else "write its whole path"
    raise rejection(probe, f"there is no library or program {name}", hint=hint)


def _at_path(probe: Probe, name: str, folder: str) -> str:
    if not folder and not name.startswith("/"):
        raise rejection(probe, f"there is no file {name}", hint="write its whole path")
    path = os.path.normpath(Path(folder, name)) if not name.startswith("/") else name
    with capabilities.with_sys_ptrace():  # through another process's /proc/PID/root
        file = Path(path)
        with suppress(OSError):
            if file.is_dir():
                raise rejection(probe, f"{name} is a directory")
            if file.is_file():
                return path
        raise rejection(probe, f"there is no file {name}", hint=_near_file(file, name))


def _near_file(file: Path, name: str) -> str | None:
    with suppress(OSError):
        others = itertools.islice(file.parent.iterdir(), _MAX_NEIGHBOURS)
        return near(file.name, [other.name for other in others], name.removesuffix(file.name))
    return None


# --- libraries ----------------------------------------------------------------------------------------------------


def _libraries(name: str) -> list[str]:
    """Return the libraries of this machine called ``name``, or lib``name``, of any version; each once."""
    prefixes = (f"{name}.so", *(() if name.startswith("lib") else (f"lib{name}.so",)))
    found: dict[tuple[int, int], str] = {}
    for soname, path in _known_libraries():
        fits = soname == name or any(soname == p or soname.startswith(f"{p}.") for p in prefixes)
        if fits and _is_ours(path):
            identity = Path(path).stat()
            found.setdefault((identity.st_dev, identity.st_ino), path)
    return list(found.values())


def _is_ours(path: str) -> bool:
    """Return whether this is a program or library of this machine, and of its word size."""
    with suppress(*UNREADABLE), opened(path.encode(), capabilities.with_sys_ptrace) as file:
        return Elf(file.read).machine == _machine()
    return False


@cache
def _machine() -> int:
    with opened(b"/proc/self/exe", capabilities.with_sys_ptrace) as file:
        return Elf(file.read).machine


def _short_names() -> set[str]:
    return {soname.partition(".so")[0].removeprefix("lib") for soname, _ in _known_libraries()}


def _programs(start: str) -> set[str]:
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return {path.name for folder in folders for path in Path(folder).glob(f"{start}*")}


def _known_libraries() -> list[tuple[str, str]]:
    """Return (name, path) of all libraries that the loader finds by name."""
    with suppress(OSError, ValueError, struct.error):
        return list(parse_cache(_CACHE.open("rb").read(_MAX_CACHE)))
    files = (path for folder in _FOLDERS for path in Path(folder).glob("lib*.so*"))
    return [(path.name, str(path)) for path in files]


def parse_cache(cache: bytes) -> Iterator[tuple[str, str]]:
    """Yield (name, path) of the loader's cache: glibc, sysdeps/generic/dl-cache.h, struct cache_file_new."""
    begin = cache.index(b"glibc-ld.so.cache1.1")
    (count,) = struct.unpack_from("I", cache, begin + 20)
    kind = np.dtype([("flags", "u4"), ("name", "u4"), ("path", "u4"), ("version", "u4"), ("hwcap", "u8")])
    entries = np.frombuffer(cache, kind, min(count, (len(cache) - begin - 48) // kind.itemsize), begin + 48)
    for name, path in zip(entries["name"].tolist(), entries["path"].tolist(), strict=True):
        yield _text(cache, begin + name), _text(cache, begin + path)


def _text(cache: bytes, at: int) -> str:
    return os.fsdecode(cache[at : max(cache.find(b"\0", at), at)])
