"""``bpfnb run NAME``: a tool's rows as they come, until Ctrl-C.

Ctrl-C interrupts nothing here: its handler has the session stop on another thread, the rows that are left come out, and
the loop ends as it does when a session ends by itself. A second Ctrl-C ends the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pandas as pd

from bpfnb.errors import BpfnbError, ProgramError, printable
from bpfnb.hosts import Host, host_of
from bpfnb.interrupts import start_new_thread, undoing
from bpfnb.options import parse_duration, seconds_of
from bpfnb.session import Session
from bpfnb.terminal.text import histogram_lines, json_lines, stack_lines, table_writer
from bpfnb.tools.command import Parser, parser_of, values_of
from bpfnb.tools.tool import Tool, clock
from bpfnb.tools.toolbox import find, names

__all__ = ["main", "run_tool"]

_PROG = "bpfnb run"
_BATCHES = "50ms"  # of rows
_Lines = Callable[[pd.DataFrame], Iterable[str]]


def main(words: Sequence[str]) -> int:
    """Run the command; return its exit status: 0 also after Ctrl-C, 1 where the tool cannot run or was ended, 2 for
    wrong arguments; with ``--command`` that of the command, once it has ended."""
    if not words or words[0] in ("--help", "-h"):
        return _write([_list()])
    try:
        tool = find(words[0])
    except AttributeError as error:
        return _complain(words[0], error, 2)
    return run_tool(tool, words[1:])


def run_tool(tool: Tool, words: Sequence[str]) -> int:
    """Run a tool with the options of a command's line; return the exit status."""
    try:
        parsed = _parser(tool).parse(words)
        options, seconds = values_of(tool, parsed), seconds_of(parsed)
        every = parse_duration(parsed.every) if getattr(parsed, "every", None) else tool.interval
        return _run(tool, host_of(parsed.host), options, seconds, partial(_shown, tool, every, parsed.json))
    except BpfnbError as error:
        return _complain(tool.name, error, 2 if isinstance(error, ProgramError) else 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _list() -> list[str]:
    tools = {name: find(name) for name in names()}
    width = max(map(len, tools))
    return [
        f"usage: {_PROG} NAME [options]",
        "",
        *(f"  {name:<{width}}  {tool.summary}" for name, tool in tools.items()),
        "",
        f"{_PROG} NAME --help has the tool's options, its columns, and what it cannot see.",
    ]


def _parser(tool: Tool) -> Parser:
    parser = parser_of(tool, f"{_PROG} {tool.name}")
    parser.add_argument("--json", action="store_true", help="a JSON object a row: the columns of the DataFrame")
    if tool.view != "rows":
        usual = f"without it {tool.interval:g} s" if tool.interval else "without it one, at the end"
        parser.add_argument("--every", metavar="DURATION", help=f"show what was counted each 10s, 500ms, 1m; {usual}")
    return parser


def _run(
    tool: Tool,
    host: Host,
    options: dict[str, Any],
    seconds: float | None,
    shown: Callable[[Session], Iterator[Any]],
) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of what is lost: it is said at the end
        with tool.start(host, **options) as session, _ending(session, seconds):
            status = _write(shown(session))
        return _report(tool, session) or status


# --- ending it ----------------------------------------------------------------------------------------------------


@contextmanager
def _ending(session: Session, seconds: float | None) -> Iterator[None]:
    """Stop the session at Ctrl-C, at SIGTERM, and after so many seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before[signal.Signals(number)])
        start_new_thread(undoing, (session.stop,))

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    timer = threading.Timer(seconds, session.stop) if seconds is not None else None
    try:
        if timer:
            timer.start()
        yield
    finally:
        if timer:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(tool: Tool, session: Session) -> int:
    """Say on stderr what is missing and why it ended, where nobody stopped it; return the exit status."""
    said = [f"lost {session.lost:,} events"] if session.lost else []
    if dropped := session.snapshot().dropped:
        said.append(f"{dropped:,} events were dropped by keep")
    said += [f"{map_.lost:,} updates of {name} were refused" for name, map_ in session.maps.items() if map_.lost]
    said += [str(session.recording)] if session.recording else []
    ended = session.reason if session.reason != "stopped" and session.returncode != 0 else ""
    for line in [*said, ended]:
        if line:
            print(f"{tool.name}: {printable(line)}", file=sys.stderr)
    if session.returncode is not None:  # a signal's as a shell has it
        return session.returncode if session.returncode >= 0 else 128 - session.returncode
    return 1 if ended else 0


def _complain(name: str, error: Exception, status: int) -> int:
    hint = error.hint if isinstance(error, BpfnbError) else None
    text = "; ".join(filter(None, [str(error), hint]))
    where = "" if text.startswith(_PROG) else f"{_PROG}: " if isinstance(error, AttributeError) else f"{_PROG} {name}: "
    print(where + printable(text.removeprefix(f"{name}: ")), file=sys.stderr)
    return status


# --- what is shown ------------------------------------------------------------------------------------------------


def _shown(tool: Tool, every: float | None, as_json: bool, session: Session) -> Iterator[Iterable[str]]:
    """Yield lines as they come."""
    if tool.view == "rows":
        heading, write = table_writer(tool.columns, session.df)
        if not as_json:
            yield [heading]
        yield from map(json_lines if as_json else write, session.stream(every=_BATCHES))
    else:
        yield from _tables(tool, session, every, json_lines if as_json else None)


def _tables(tool: Tool, session: Session, every: float | None, as_json: _Lines | None) -> Iterator[Iterable[str]]:
    if every is None:
        session.wait()
        yield from _table(tool, session.df, as_json, heading=True)
        return
    first, ended = True, False
    while not ended:
        ended = session.wait(every)
        frame = session.drain()
        if ended and frame.empty and not first:  # the one before had all
            return
        now = pd.Timestamp.now("UTC")
        if as_json:
            frame.insert(0, "until", now)
        else:
            yield [f"[{clock(now)}]"]
        yield from _table(tool, frame, as_json, heading=first)
        first = False


def _table(tool: Tool, frame: pd.DataFrame, as_json: _Lines | None, *, heading: bool) -> Iterator[Iterable[str]]:
    if as_json:
        yield as_json(frame)
    elif tool.view == "histogram":
        yield histogram_lines(tool.columns, frame)
    elif tool.view == "stacks":
        yield stack_lines(tool.columns, frame)
    else:
        line, write = table_writer(tool.columns, frame)
        yield [line] if heading else []
        yield write(frame)


def _write(chunks: Iterable[Iterable[str]]) -> int:
    """Print lines, each chunk at once; where nobody reads any more, such as head, that is the end."""
    try:
        for chunk in chunks:
            text = "".join(f"{line}\n" for line in chunk)
            if text:
                sys.stdout.write(text)
                sys.stdout.flush()
    except BrokenPipeError:  # Python would flush again at its exit
        with Path(os.devnull).open("wb") as devnull:
            os.dup2(devnull.fileno(), sys.stdout.fileno())
    return 0
