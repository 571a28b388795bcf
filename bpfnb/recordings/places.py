"""Where the files of a recording lie, and how a recording appears and goes as a whole."""

from __future__ import annotations

import os
import re
import shutil
import stat
import zipfile
from contextlib import suppress
from pathlib import Path

import msgspec

from bpfnb.errors import ProgramError

__all__ = [
    "MANIFEST", "MAX_MANIFEST", "PROGRESS_FILE", "SYMBOLS_FILE", "Head", "begin", "beside", "finish",
    "is_file_of_ours", "map_name", "part_name", "remove", "replace",
]  # fmt: skip

MANIFEST, SYMBOLS_FILE, PROGRESS_FILE = "manifest.json", "symbols.arrows", "progress.arrows"
MAX_MANIFEST = 64 << 20  # bytes

_OURS = re.compile(
    r"(manifest\.json|symbols\.arrows|progress\.arrows|maps/\d+\.arrows|outputs/\d+/\d{6}\.(arrows|parquet))(\.tmp)?"
)
_FOLDERS = re.compile(r"maps|outputs(/\d+)?")


class Head(msgspec.Struct):
    """What each manifest has, of whatever version."""

    version: int
    bpfnb: str


def is_file_of_ours(name: str) -> bool:
    """Return whether a name is one of a recording's files that are read."""
    return _OURS.fullmatch(name) is not None and not name.endswith(".tmp")


def part_name(output: int, part: int) -> str:
    return f"outputs/{output}/{part:06}.arrows"


def map_name(map_: int) -> str:
    return f"maps/{map_}.arrows"


def beside(path: Path) -> Path:
    """Return the folder that a recording is written in which cannot be written at its own path yet."""
    return path.with_name(f"{path.name}.recording")


def begin(path: Path, overwrite: bool) -> Path:
    """Make the folder that a recording for ``path`` is written in. ProgramError where that may not be."""
    there = os.path.lexists(path)
    if there and not overwrite:
        raise ProgramError(f"{path} is there already: overwrite=True replaces a recording")
    if there:
        _require_recording(path)
    folder = beside(path) if there or is_zip(path) else path
    try:
        folder.mkdir()
    except FileExistsError:
        raise ProgramError(
            f"{folder} is there already, of a recording that did not end: open it, or remove it"
        ) from None
    except OSError as error:
        raise ProgramError(f"{path} cannot be written: {error.strerror}") from None
    return folder


def is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def replace(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write a file as a whole, in place of the one there is. ``sync``: also if the machine stops."""
    new = path.with_name(f"{path.name}.tmp")
    with new.open("wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    new.replace(path)


def finish(folder: Path, path: Path) -> None:
    """Put a recording that has ended at its path."""
    if is_zip(path):
        new = path.with_name(f"{path.name}.tmp")
        try:
            _pack(folder, new)
            new.replace(path)
        except BaseException:
            with suppress(OSError):
                new.unlink()
            raise
        remove(folder)
    elif folder != path:
        old = path.with_name(f"{path.name}.{os.getpid()}.old")  # no other's that was left by a crash
        path.rename(old)
        folder.rename(path)
        remove(old)


def _pack(folder: Path, new: Path) -> None:
    """Write a zip of a folder. Its files are compressed already."""
    with new.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder).as_posix())
        file.flush()
        os.fsync(file.fileno())


def remove(folder: Path) -> None:
    """Remove a recording."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)


def _require_recording(path: Path) -> None:
    """Raise ProgramError for what is not a recording, and nothing else: it is about to be replaced."""
    try:
        if path.is_symlink() or not _all_ours(path):
            raise ProgramError(f"{path} is no recording of bpfnb, or has other files in it: it is not replaced")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, ProgramError):
            raise
        raise ProgramError(f"{path} is no recording of bpfnb: it is not replaced") from None


def _all_ours(path: Path) -> bool:
    if is_zip(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if not all(_OURS.fullmatch(name) for name in names if not name.endswith("/")):
                return False
            with archive.open(MANIFEST) as file:
                msgspec.json.decode(file.read(MAX_MANIFEST), type=Head)
        return True
    for folder, folders, files in os.walk(path):
        here = Path(folder)
        names = [(here / name).relative_to(path).as_posix() for name in files]
        inner = [(here / name).relative_to(path).as_posix() for name in folders]
        if not all(map(_OURS.fullmatch, names)) or not all(map(_FOLDERS.fullmatch, inner)):
            return False
    if not stat.S_ISREG((path / MANIFEST).lstat().st_mode):
        return False
    with (path / MANIFEST).open("rb") as file:
        msgspec.json.decode(file.read(MAX_MANIFEST), type=Head)
    return True
