"""The lines of a file that somebody else's tool has written."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from bpfnb.errors import ProgramError

__all__ = ["MAX_BYTES", "Lines", "read_lines"]

MAX_BYTES = 1 << 30
_NOISE = ("^C", "Tracing", "Detaching", "[...]", "Possibly lost", "WARNING:")


@dataclass
class Lines:
    """``text``: without line ends. ``torn``: the last line, where it has no end and so may lack something; it is not in
    ``text``. ``taken``: how many were of use. ``odd``: numbers and texts of those that were not."""

    path: Path
    text: list[str]
    torn: str = ""
    taken: int = 0
    odd: list[tuple[int, str]] = field(default_factory=list)

    def pass_over(self, number: int) -> None:
        """Note that a line, counted from 0, does not fit; but for what tools say on the way."""
        line = self.text[number]
        if line.strip() and not line.lstrip().startswith(_NOISE):
            self.odd.append((number + 1, line))


def read_lines(path: str | os.PathLike[str]) -> Lines:
    """Read a file's lines. Bytes that are no UTF-8 become escapes. ProgramError for what is no file, or too large."""
    where = Path(path)
    try:
        if not where.is_file():
            raise ProgramError(f"{where}: {'it is no file' if where.exists() else 'there is no such file'}")
        with where.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProgramError(f"{where}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ProgramError(f"{where} has more than {MAX_BYTES >> 30} GiB: split it")
    lines = data.decode("utf-8", "backslashreplace").split("\n")
    torn = lines.pop()
    return Lines(where, [line.removesuffix("\r") for line in lines], torn)
