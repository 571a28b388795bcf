"""Files that are written as a whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bpfnb.errors import ProgramError

__all__ = ["write_text", "written"]


@contextmanager
def written(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[BinaryIO]:
    """Give a file to write to, which gets its name once the block is left without an error.

    Until then it stands beside, as ``.NAME.RANDOM.part``, and an error or Ctrl-C removes it: there is never half a file
    of that name, and an older one remains. ProgramError, in one line, where there is a file already (unless
    ``overwrite``), where the path leads to what is no file, and where the file cannot be written.
    """
    target = Path(path)
    _require_free(target, overwrite)
    if target.is_symlink():
        target = target.resolve()  # the file that it leads to is replaced, not the link
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file
        _rename(part, target, overwrite)
    except FileExistsError:
        raise _there(target) from None
    except OSError as error:
        raise ProgramError(f"{os.fspath(path)}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part.unlink()


def write_text(path: str | os.PathLike[str], text: str, overwrite: bool = False) -> None:
    """Write a file of text. ProgramError, in one line, where there is one already, or it cannot be made."""
    with written(path, overwrite) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def _require_free(path: Path, overwrite: bool) -> None:
    try:
        there = path.exists() or path.is_symlink()
        if there and not overwrite:
            raise _there(path)
        if path.exists() and not path.is_file():  # /dev/null is not to be replaced by a file
            raise ProgramError(f"{path} is there already, and is no file")
    except OSError as error:
        raise ProgramError(f"{path}: {error.strerror}") from None


def _rename(part: Path, target: Path, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(part, target)  # fails where somebody has made one meanwhile
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            _require_free(target, overwrite)
    part.replace(target)


def _there(path: Path) -> ProgramError:
    return ProgramError(f"{path} is there already: overwrite=True replaces it")
