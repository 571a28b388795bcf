"""The stacks that bcc's profile and offcputime print: functions, the innermost first, then the thread and a number."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from bpfnb.imports.imported import Format, Imported
from bpfnb.imports.lines import Lines

__all__ = ["FORMAT"]

_TOOLS = (("Sampling at ", "profile"), ("Tracing off-CPU time (us)", "offcputime"))
_FRAME = re.compile(r"    (?P<name>\S.*)")
_THREAD = re.compile(r"    -  +(?P<comm>.*) \((?P<pid>\d{1,9})(?: - [^)]*)?\)")
_NUMBER = re.compile(r"        (?P<number>\d{1,15})")
_BETWEEN = "--"  # the kernel's functions and the process's, with -d
_HEAD = 400


def _tool(line: str) -> str:
    return next((name for begins, name in _TOOLS if line.startswith(begins)), "")


def _fits(lines: Lines) -> bool:
    head = lines.text[:_HEAD]
    return any(map(_tool, head)) and any(map(_THREAD.fullmatch, head))


def _read(lines: Lines) -> Imported:
    """Columns: pid (uint32: as the tool shows it), comm (category), stack (text, the outermost function first), count
    (int64), or of offcputime total (timedelta64)."""
    tool = next(filter(None, map(_tool, lines.text)))
    rows: list[tuple[int, str, str, int]] = []
    frames: list[str] = []
    thread: re.Match[str] | None = None
    for number, line in enumerate(lines.text):
        if thread and (found := _NUMBER.fullmatch(line)):
            rows.append((int(thread["pid"]), thread["comm"], ";".join(reversed(frames)), int(found["number"])))
            lines.taken += len(frames) + 2
            frames, thread = [], None
        elif found := _THREAD.fullmatch(line):
            thread = found
        elif found := _FRAME.fullmatch(line):
            if found["name"] != _BETWEEN:
                frames.append(found["name"].replace(";", ":"))
        elif line.strip() and not _tool(line):
            lines.pass_over(number)
            frames, thread = [], None
    pids, comms, stacks, numbers = zip(*rows, strict=True) if rows else ((), (), (), ())
    made = {"pid": np.array(pids, np.uint32), "comm": pd.Categorical(comms), "stack": pd.array(stacks, dtype="str")}
    values = np.array(numbers, np.int64)
    last = {"total": pd.to_timedelta(values * 1000, unit="ns")} if tool == "offcputime" else {"count": values}
    return Imported.made(lines, tool, {tool: pd.DataFrame({**made, **last})}, {})


FORMAT = Format("stacks of bcc's", _fits, _read)
