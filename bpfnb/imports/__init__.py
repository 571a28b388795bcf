"""What other tools have written, as sessions that have ended: bpftrace's JSON, the text of bcc's tools.

``read`` is what ``bpfnb.open`` calls for a file that is no recording. A format is a row of ``FORMATS``.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from bpfnb.errors import ProgramError, printable
from bpfnb.imports import bcc, bpftrace, buckets, stacks
from bpfnb.imports.imported import Format, Imported
from bpfnb.imports.lines import Lines, read_lines

__all__ = ["FORMATS", "Imported", "read"]

FORMATS: tuple[Format, ...] = (bpftrace.FORMAT, bcc.FORMAT, buckets.FORMAT, stacks.FORMAT)


def read(path: str | os.PathLike[str]) -> Imported:
    """Read a file that bpftrace or one of bcc's tools has written. Which it is, its first lines say.

    Lines that do not fit are left out, with a RuntimeWarning that has their number and the first one's place; so is a
    last line that was cut off, with a note. ProgramError, in one line, for a file of another kind, one of which hardly
    a line fits, and one that cannot be read.
    """
    lines = read_lines(path)
    for kind in FORMATS:
        if kind.fits(lines):
            made = kind.read(lines)
            _say(lines, made)
            return made
    first = printable(lines.text[0][:60]) if lines.text else ""
    begins = f"it begins with {first!r}" if first else "it is empty"
    raise ProgramError(
        f"{Path(path)} is neither a recording nor the output of bpftrace -f json or a tool of bcc: {begins}"
    )


def _say(lines: Lines, made: Imported) -> None:
    if not lines.odd:
        return
    place = f"line {lines.odd[0][0]}: {printable(lines.odd[0][1][:60])!r}"
    if len(lines.odd) > lines.taken:
        raise ProgramError(f"{lines.path}, {place} is no line of {made.kind}")
    first = "" if len(lines.odd) == 1 else "the first is "
    many = "1 line is" if len(lines.odd) == 1 else f"{len(lines.odd):,} lines are"
    warnings.warn(f"{lines.path}: {many} left out, {first}{place}", RuntimeWarning, stacklevel=3)
