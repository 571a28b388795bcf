"""The files of a recording that somebody else may have made: read by name, from a folder or a zip.

Names are those of places.py and no others: nothing that is written in a recording is ever taken for a path. Links and
what is no regular file are not followed, and nothing is unpacked to a disk.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from bpfnb.errors import ProgramError
from bpfnb.recordings import places

__all__ = ["Store", "open_store"]

MAX_FILES = 1_000_000
MAX_DEFLATED = 1 << 30  # bytes of a file that is compressed in a zip, which is read as a whole
# Not every system has all of them. A pipe, which only a forged recording has, is not waited for.
_FLAGS = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
    _FLAGS |= getattr(os, _flag, 0)


class Store(Protocol):
    """``names``: of its files. ``path``: where it is."""

    path: Path

    @property
    def names(self) -> tuple[str, ...]: ...

    def size(self, name: str) -> int:
        """Return how many bytes a file has."""

    def open(self, name: str) -> BinaryIO:
        """Open a file. The caller closes it. ProgramError where it cannot be."""

    def file(self, name: str) -> Path | None:
        """Return where a file lies by itself; None in a zip."""


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a folder or a zip. ProgramError for what is neither."""
    place = Path(path)
    try:
        if place.is_dir():
            return _Folder(place)
        if not place.exists():
            raise ProgramError(f"{place} is not there")
        if not stat.S_ISREG(place.stat().st_mode) or not zipfile.is_zipfile(place):
            raise ProgramError(f"{place} is no recording: neither a folder nor a zip")
        return _Zip(place)
    except OSError as error:
        raise ProgramError(f"{place} cannot be read: {error.strerror or error}") from None


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._sizes: dict[str, int] = {}
        for folder in ("", "maps", "outputs", *self._outputs()):
            self._add(folder)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._sizes)

    def size(self, name: str) -> int:
        with suppress(OSError):  # it grows while it is written
            return self.file(name).lstat().st_size
        return self._sizes[name]

    def file(self, name: str) -> Path:
        return self.path / name

    def open(self, name: str) -> BinaryIO:
        try:
            file = os.fdopen(os.open(self.file(name), _FLAGS), "rb")
        except OSError as error:
            raise ProgramError(f"{self.path}: {name} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise ProgramError(f"{self.path}: {name} is no file")
        return file

    def _outputs(self) -> list[str]:
        if not self._is_folder("outputs"):
            return []
        with os.scandir(self.path / "outputs") as entries:
            return [f"outputs/{entry.name}" for entry in entries if entry.name.isdecimal()]

    def _is_folder(self, name: str) -> bool:
        try:
            mode = (self.path / name).lstat().st_mode
        except FileNotFoundError:
            return False
        if stat.S_ISLNK(mode):
            raise ProgramError(f"{self.path}: {name} is a link: a recording has none")
        return stat.S_ISDIR(mode)

    def _add(self, folder: str) -> None:
        if folder and not self._is_folder(folder):
            return
        with os.scandir(self.path / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if places.is_file_of_ours(name):
                    self._add_file(name, entry)

    def _add_file(self, name: str, entry: os.DirEntry[str]) -> None:
        if entry.is_symlink():
            raise ProgramError(f"{self.path}: {name} is a link: a recording has none")
        self._sizes[name] = entry.stat(follow_symlinks=False).st_size
        if len(self._sizes) > MAX_FILES:
            raise ProgramError(f"{self.path} has more than {MAX_FILES:,} files: it is no recording")


class _Zip:
    """Files that are stored are read where they lie; those that are compressed, as a whole, into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, zipfile.ZipInfo] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        except Exception as error:  # zipfile raises what comes: IndexError for a file without a name
            raise ProgramError(f"{path} is damaged: {error}") from None
        top = _top([entry.filename for entry in entries])
        for entry in entries:
            if entry.orig_filename.startswith(("/", "\\")) or ".." in entry.orig_filename.replace("\\", "/").split("/"):
                raise ProgramError(f"{path} has a file named {entry.orig_filename!r}: it is no recording")
            name = entry.filename.removeprefix(top)
            if not places.is_file_of_ours(name):
                continue
            if name in self._entries:
                raise ProgramError(f"{path} has {name} twice: it is no recording")
            self._entries[name] = entry

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def size(self, name: str) -> int:
        return self._entries[name].file_size

    def file(self, name: str) -> Path | None:
        return None

    def open(self, name: str) -> BinaryIO:
        entry = self._entries[name]
        try:
            if entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1:
                return self._stored(name, entry)
            return self._deflated(name, entry)
        except Exception as error:  # also zlib.error and the like, which the zip's method decides
            raise ProgramError(f"{self.path}: {name} is damaged: {error}") from None

    def _stored(self, name: str, entry: zipfile.ZipInfo) -> BinaryIO:
        file = self.path.open("rb")
        try:
            file.seek(entry.header_offset)
            head = struct.unpack("<4s22xHH", file.read(30))
            begin = entry.header_offset + 30 + head[1] + head[2]
            end = file.seek(0, os.SEEK_END)
            if head[0] != b"PK\3\4" or entry.file_size != entry.compress_size or begin + entry.file_size > end:
                raise zipfile.BadZipFile("its sizes are wrong")
        except BaseException:
            file.close()
            raise
        return io.BufferedReader(_Section(file, begin, entry.file_size))

    def _deflated(self, name: str, entry: zipfile.ZipInfo) -> BinaryIO:
        if entry.file_size > MAX_DEFLATED:
            raise zipfile.BadZipFile(f"it has {entry.file_size:,} bytes, and is compressed: unpack the zip")
        with zipfile.ZipFile(self.path) as archive, archive.open(entry) as file:
            return io.BytesIO(file.read())


def _top(names: list[str]) -> str:
    """Return the folder that all files of a zip lie in, with its slash: that of one made by ``zip -r`` of a folder."""
    manifests = [name for name in names if name.rpartition("/")[2] == places.MANIFEST and name.count("/") == 1]
    return manifests[0].removesuffix(places.MANIFEST) if places.MANIFEST not in names and len(manifests) == 1 else ""


class _Section(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: BinaryIO, begin: int, size: int) -> None:
        self._file, self._begin, self._size = file, begin, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence], 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._begin + self._at)
        data = self._file.read(min(len(buffer), max(self._size - self._at, 0)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
