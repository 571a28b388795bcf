"""Which bpfnb this is: its version, and the build of its tracer, which tells two checkouts of one version apart."""

from __future__ import annotations

import functools
import hashlib
from importlib import metadata
from pathlib import Path

__all__ = ["SHARED", "build", "tracer_files", "version"]

# Modules and packages that the tracer shares with the notebook. Of bpfnb it needs these and bpfnb.tracer, no others.
SHARED = ("errors", "language", "protocol", "release")


def version() -> str:
    return metadata.version("bpfnb")


@functools.cache
def build() -> str:
    """A digest of all files the tracer consists of, 16 hexadecimal digits; the same at both ends of a conversation."""
    package = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=8)
    for name in tracer_files():
        data = (package / name).read_bytes()
        digest.update(b"%s %d\n" % (str(name).encode(), len(data)) + data)
    return digest.hexdigest()


def tracer_files() -> list[Path]:
    """The files the tracer consists of, relative to the package ``bpfnb``."""
    package = Path(__file__).parent
    found = [package / f"{name}.py" for name in SHARED]
    found += [path for name in (*SHARED, "tracer") for path in (package / name).rglob("*")]
    return sorted(path.relative_to(package) for path in found if path.is_file() and _is_ours(path))


def _is_ours(path: Path) -> bool:
    """Neither what Python keeps there nor an editor's own files."""
    return path.suffix != ".pyc" and not path.name.startswith(".")
