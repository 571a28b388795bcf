"""``bpfnb.open``: recordings as sessions, with what made their ``df``."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

from bpfnb.errors import BpfnbError, ProgramError
from bpfnb.imports import Imported, read
from bpfnb.language.syscalls import of_machine
from bpfnb.oneliners import presentation_of
from bpfnb.recordings.format import Manifest
from bpfnb.recordings.reader import open_recording
from bpfnb.results.presentation import Presentation, Shown
from bpfnb.session.recorded import Recorded
from bpfnb.tools import toolbox

__all__ = ["open", "presented"]


def open(path: str | os.PathLike[str], *, keep: int | None = None) -> Recorded | Imported:
    """Open a recording, a folder or a zip: a session that has ended, on any machine. Nothing is traced, and nothing of
    the recording is run. ``live(speed=1)`` plays it.

    One-liners and tools are looked up by name; of one that this bpfnb does not have there are the rows and maps as they
    are, and a note. ``keep``: bytes of rows that ``df`` may have, of each output: the newest; by default as of a
    session that runs. ``sql``, ``between``, ``rate``, ``hist`` and ``top`` read all rows, from the files.

    A file may also be what bpftrace -f json or a tool of bcc has written: see bpfnb.imports.

    ProgramError for what is no recording, or one of a newer bpfnb.
    """
    if keep is not None and (not isinstance(keep, int) or keep <= 0):
        raise ProgramError(f"keep must be a positive whole number of bytes, not {keep!r}")
    if Path(path).is_file() and not zipfile.is_zipfile(path) and Path(path).suffix != ".zip":
        return read(path)
    recording = open_recording(path)
    presentation, note = presented(recording.manifest)
    return Recorded(recording, presentation, [note] if note else [], keep)


def presented(manifest: Manifest) -> tuple[Presentation | None, str]:
    """Return what makes ``df``, and why it is not what it was, or ""."""
    shown = manifest.shown
    try:
        with of_machine(manifest.machine):
            return _MAKERS[shown.kind](shown), ""
    except (BpfnbError, AttributeError) as error:
        why = error.message if isinstance(error, BpfnbError) else str(error)
        return None, f"its rows and maps are as they are, without what {shown.kind} {shown.name} makes of them: {why}"


_MAKERS: dict[str, Callable[[Shown], Presentation | None]] = {
    "cell": lambda shown: None,
    "question": presentation_of,
    "tool": lambda shown: toolbox.find(shown.name).presentation(shown.options),
}
