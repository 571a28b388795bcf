"""Keep header trees on disk: written once, found again, healed when damaged, removed when long unused."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bpfnb.errors import SetupError
from bpfnb.language.vocabulary import HELPERS_FILE
from bpfnb.tracer.compile.headers.contents import HAND_WRITTEN, files
from bpfnb.tracer.kernel.btf import KERNEL_BTF

__all__ = ["generate", "whole", "write_tree"]

_libc = ctypes.CDLL(None, use_errno=True)
_CACHE = Path("/var/cache/bpfnb")
_TRACER = Path(__file__).parents[2]
_NEW = ".new-"
_DIGESTS = "digests"  # in a tree: what each of its other files has in it
_LOCK_TIMEOUT = 30.0  # seconds for another process to write its tree; it takes one or two
_UNUSED_DAYS = 30  # then a tree is removed
_ABANDONED_SECONDS = 3600  # then half a tree is
_verified: dict[Path, dict[str, tuple[int, int]]] = {}  # trees that were whole, and their files' sizes and dates then
_in_use: set[Path] = set()  # trees that this process uses


def generate(btf: Path = KERNEL_BTF, *, caches: Sequence[Path] = (), release: str | None = None) -> Path:
    """Return the header tree for the kernel described by ``btf``, from the cache, or made and put there.

    ``caches``: folders to keep trees in, of which the first that can be written is taken; by default /var/cache/bpfnb
    and bpfnb in the user's cache folder. ``release``: as ``uname -r`` says, by default this kernel's.
    """
    release = release or os.uname().release
    name = _tree_name(btf, release)
    failed = []
    for folder in caches or (_CACHE, _user_cache()):
        tree = folder / name
        if tree.is_dir() and whole(_trusted(tree)):
            return _used(_trusted(tree))
        try:
            if _prepare(folder):
                return _put(tree, lambda: files(btf.read_bytes(), release))
            failed.append(f"{folder} cannot be written")
        except OSError as error:
            failed.append(f"{folder}: {error.strerror}")
    raise SetupError(
        f"the kernel's types cannot be kept: {'; '.join(failed)}", hint="XDG_CACHE_HOME may name another folder"
    )


def whole(tree: Path) -> bool:
    """Whether a tree of ``generate`` is as it was written. All of it is read the first time, and when a file's date or
    size is another than then."""
    try:
        dates = _dates(tree)
        if _verified.get(tree) != dates:
            _verified.pop(tree, None)
            text = (tree / _DIGESTS).read_text()
            if text != _digests({name: (tree / name).read_bytes() for name in dates if name != _DIGESTS}):
                return False
            _verified[tree] = dates
    except (OSError, ValueError):
        return False
    return True


@functools.lru_cache(maxsize=8)
def _tree_name(btf: Path, release: str) -> str:
    """Return the name of a tree: changes with the kernel's build and with whatever else decides the tree's contents."""
    digest = hashlib.blake2b(digest_size=10)
    for path in (
        btf,
        *sorted(Path(__file__).parent.glob("*.py")),
        _TRACER / "kernel/btf.py",
        HELPERS_FILE,
        *sorted(p for p in HAND_WRITTEN.rglob("*") if p.is_file()),
    ):
        digest.update(path.read_bytes())
    return f"headers-{release}-{digest.hexdigest()}"


def _user_cache() -> Path:
    # An XDG_CACHE_HOME that is not absolute must be ignored, says the XDG Base Directory Specification.
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / "bpfnb"
    try:
        return Path.home() / ".cache" / "bpfnb"
    except RuntimeError:  # no HOME, and no entry in the password file either
        return Path("/nonexistent/bpfnb")


def _prepare(folder: Path) -> bool:
    """Make a cache folder when it is missing. False when it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError:
        return False
    return os.access(_trusted(folder), os.W_OK | os.X_OK, effective_ids=True)


def _trusted(folder: Path) -> Path:
    """Return the folder, symlinks resolved, if only root and we can change what is in it. SetupError if others can.

    Root compiles what is here into the kernel. Whoever can rename a folder on the way can replace the tree, so
    the whole way counts; a sticky folder such as /tmp protects what is in it from all but its owner.
    """
    folder = folder.resolve()
    for part in (folder, *folder.parents):
        status = part.stat()
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        sticky = status.st_mode & stat.S_ISVTX and part != folder
        if status.st_uid not in (0, os.geteuid()) or (shared and not sticky):
            raise SetupError(f"{folder} cannot be trusted with kernel headers: others can write to {part}")
    return folder


def _put(tree: Path, files: Callable[[], dict[str, str]]) -> Path:
    """Write a tree, in the place of one that is damaged. Of several processes one does, and the others wait."""
    with _locked(tree.parent):
        if tree.is_dir() and not whole(tree):
            _remove(tree)
        return _used(_trusted(tree) if tree.is_dir() else write_tree(tree, files()))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be alone among those who write trees there; not for ever, since who holds the lock may hang."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    deadline = time.monotonic() + _LOCK_TIMEOUT
    try:
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def write_tree(tree: Path, files: dict[str, str]) -> Path:
    """Write the files and give them their place in one step, so that nobody sees half a tree."""
    new = Path(tempfile.mkdtemp(prefix=_NEW, dir=tree.parent))
    try:
        for name, text in (files | {_DIGESTS: _digests({name: text.encode() for name, text in files.items()})}).items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for path in (new, *new.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)  # whatever the umask
        _sync(new)  # so that its contents reach the disk before its name does
        new.rename(tree)
    except OSError:
        # Renaming onto a folder that is not empty fails: another process was faster, with the same tree.
        if not tree.is_dir():
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return _trusted(tree)


def _sync(folder: Path) -> None:
    """Have the file system this is on, and no other, write what it has. OSError where it could not."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(fd):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)


def _remove(tree: Path) -> None:
    """Remove a tree, so that nobody sees half of it either."""
    gone = Path(tempfile.mkdtemp(prefix=_NEW, dir=tree.parent))
    with suppress(FileNotFoundError):
        tree.rename(gone / tree.name)
    shutil.rmtree(gone, ignore_errors=True)


def _used(tree: Path) -> Path:
    """Note that a tree is in use; remove those that have not been for long, and what those left who were killed while
    they wrote theirs. The first time."""
    if tree in _in_use:
        return tree
    _in_use.add(tree)
    now = time.time()
    with suppress(OSError):
        os.utime(tree)
        for other in tree.parent.iterdir():
            age = now - other.stat().st_mtime
            if other.name.startswith("headers-") and other != tree and age > _UNUSED_DAYS * 86400:
                _remove(other)
            elif other.name.startswith(_NEW) and age > _ABANDONED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    return tree


def _dates(tree: Path) -> dict[str, tuple[int, int]]:
    """Return the size and the time of the last change of each file, by its name in the tree."""
    found = {}
    for folder, _, names in os.walk(tree):
        for name in names:
            status = os.stat(f"{folder}/{name}")  # noqa: PTH116 (they are hundreds)
            found[f"{folder}/{name}"[len(str(tree)) + 1 :]] = status.st_size, status.st_mtime_ns
    return found


def _digests(files: dict[str, bytes]) -> str:
    return "".join(f"{hashlib.blake2b(files[name], digest_size=16).hexdigest()} {name}\n" for name in sorted(files))
