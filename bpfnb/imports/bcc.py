"""The tables of bcc's tools, recognised by their headings.

Columns get the names, types and units that bpfnb's tool of that name has. Text has no types, and names of processes may
hold blanks, so a row is matched as a whole: numbers where numbers stand, and the name between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bpfnb.imports.imported import Format, Imported
from bpfnb.imports.lines import Lines
from bpfnb.results.decode import with_decoded
from bpfnb.tools import toolbox

__all__ = ["FORMAT"]

_HEAD = 400  # lines in which a heading is looked for

# A name has 15 bytes, four times as many characters where these are escapes: no line takes long to match.
_INT, _FLOAT, _WORD, _NAME, _REST = r"-?\d{1,20}", r"-?\d{1,20}(?:\.\d{1,20})?", r"\S+", r".{0,64}?", r".*"


class Field(NamedTuple):
    """A column: bpfnb's name, what its text looks like, and a function of the texts that makes its values."""

    name: str
    pattern: str
    make: Callable[[list[str]], Any]


def _whole(dtype: str) -> Callable[[list[str]], Any]:
    return lambda texts: np.array([int(text) for text in texts], dtype)


def _duration(ns: int) -> Callable[[list[str]], Any]:
    """Return a function for durations in units of so many nanoseconds."""
    return lambda texts: pd.to_timedelta(np.array([int(Decimal(text) * ns) for text in texts], np.int64), unit="ns")


def _bytes(texts: list[str]) -> Any:
    return np.array([int(Decimal(text) * 1024) for text in texts], np.uint64)


def _of_day(texts: list[str]) -> Any:
    """Return times since midnight: of which day, and where, no tool says."""
    return pd.to_timedelta(pd.array(texts, dtype="str"))


def _exit_code(texts: list[str]) -> Any:
    """Return statuses as wait(2) has them: "0", "code 65", "signal 9 (KILL), core dumped"."""
    codes = []
    for text in texts:
        number = int(found[0]) if (found := re.search(r"\d{1,9}", text)) else 0
        codes.append((number | (0x80 if "core dump" in text else 0)) if "signal" in text else number << 8)
    return np.array(codes, np.int32)


def _endpoints(texts: list[str]) -> Any:
    """Return addresses with their ports, as they are. ValueError for a port that cannot be."""
    if any(int(text.rpartition(":")[2]) > 65535 for text in texts):
        raise ValueError("no port")
    return pd.array(texts, dtype="str")


_category = pd.Categorical
_text = lambda texts: pd.array(texts, dtype="str")  # noqa: E731

_PID = Field("pid", _INT, _whole("uint32"))
_COMM = Field("comm", _NAME, _category)
_PORT = _whole("uint16")
_FIELDS: dict[str, Field] = {
    "TIME": Field("time_of_day", r"\d\d:\d\d:\d\d(?:\.\d+)?", _of_day),
    "TIME-UTC": Field("time_of_day", r"\d\d:\d\d:\d\d(?:\.\d+)?", _of_day),
    "TIME(s)": Field("since", _FLOAT, _duration(1_000_000_000)),
    "PID": _PID,
    "C-PID": _PID,
    "TID": Field("tid", _INT, _whole("uint32")),
    "PPID": Field("ppid", _INT, _whole("uint32")),
    "TPID": Field("tpid", _INT, _whole("int32")),
    "UID": Field("uid", _INT, _whole("uint32")),
    "COMM": _COMM,
    "C-COMM": _COMM,
    "PCOMM": Field("pcomm", _NAME, _category),
    "FD": Field("fd", _INT, _whole("int32")),
    "ERR": Field("err", _INT, _whole("int32")),
    "RET": Field("ret", _INT, _whole("int32")),
    "RESULT": Field("result", _INT, _whole("int32")),
    "SIG": Field("sig", _INT, _whole("int32")),
    "FLAGS": Field("flags", r"[0-7]{1,20}", lambda texts: np.array([int(text, 8) for text in texts], np.uint64)),
    "MODE": Field("mode", r"[0-7]{1,20}", lambda texts: np.array([int(text, 8) for text in texts], np.uint32)),
    "PATH": Field("path", _REST, _text),
    "ARGS": Field("args", _REST, _text),
    "HOST": Field("host", _REST, _text),
    "FILENAME": Field("filename", _REST, _text),
    "AGE(s)": Field("age", _FLOAT, _duration(1_000_000_000)),
    "EXIT_CODE": Field("exit_code", _REST, _exit_code),
    "LABEL": Field("label", _WORD, _category),
    "CAP": Field("cap", _INT, _whole("int32")),
    "NAME": Field("name", _WORD, _category),
    "AUDIT": Field("audit", _INT, lambda texts: np.array([int(text) != 0 for text in texts])),
    "INSETID": Field("insetid", _INT, _whole("int32")),
    "DISK": Field("disk", _WORD, _category),
    "T": Field("t", _WORD, _category),
    "D": Field("d", _WORD, _category),
    "SECTOR": Field("sector", _INT, _whole("uint64")),
    "BYTES": Field("bytes", _INT, _whole("uint64")),
    "OFF_KB": Field("off", _INT, _bytes),
    "QUE(ms)": Field("que", _FLOAT, _duration(1_000_000)),
    "LAT(ms)": Field("lat", _FLOAT, _duration(1_000_000)),
    "LAT(us)": Field("lat", _FLOAT, _duration(1_000)),
    "LATms": Field("lat", _FLOAT, _duration(1_000_000)),
    "MAJ": Field("maj", _INT, _whole("uint32")),
    "MIN": Field("min", _INT, _whole("uint32")),
    "I/O": Field("io", _INT, _whole("uint64")),
    "Kbytes": Field("bytes", _FLOAT, _bytes),
    "AVGms": Field("avg", _FLOAT, _duration(1_000_000)),
    "IP": Field("ip", _INT, _whole("uint8")),
    "SADDR": Field("saddr", _WORD, _category),
    "DADDR": Field("daddr", _WORD, _category),
    "LADDR": Field("laddr", _WORD, _category),
    "RADDR": Field("raddr", _WORD, _category),
    "DPORT": Field("dport", _INT, _PORT),
    "LPORT": Field("lport", _INT, _PORT),
    "RPORT": Field("rport", _INT, _PORT),
    "QUERY": Field("query", _REST, _text),
    "TX_KB": Field("tx", _INT, _bytes),
    "RX_KB": Field("rx", _INT, _bytes),
    "MS": Field("duration", _FLOAT, _duration(1_000_000)),
    "SKADDR": Field("skaddr", r"[0-9a-f]{1,16}", lambda texts: np.array([int(text, 16) for text in texts], np.uint64)),
    "OLDSTATE": Field("oldstate", _WORD, _category),
    "->": Field("", "->", _text),
    "NEWSTATE": Field("newstate", _WORD, _category),
    "LADDR:LPORT": Field("laddr:lport", r"\S+:\d{1,5}", _endpoints),
    "T>": Field("type", r"\w>", lambda texts: pd.Categorical([text[:-1] for text in texts])),
    "RADDR:RPORT": Field("raddr:rport", r"\S+:\d{1,5}", _endpoints),
    "STATE": Field("state", _WORD, _category),
    "SEQ": Field("seq", _INT, _whole("uint32")),
    "SYSCALL": Field("syscall", _NAME, _category),
    "COUNT": Field("count", _INT, _whole("int64")),
    "TIME_(us)": Field("time", _FLOAT, _duration(1_000)),
    "TIME_(ms)": Field("time", _FLOAT, _duration(1_000_000)),
    "HARDIRQ": Field("hardirq", _NAME, _category),
    "SOFTIRQ": Field("softirq", _NAME, _category),
    "TOTAL_usecs": Field("total", _INT, _duration(1_000)),
    "TOTAL_nsecs": Field("total", _INT, _duration(1)),
    "HITS": Field("hits", _INT, _whole("int64")),
    "MISSES": Field("misses", _INT, _whole("int64")),
    "DIRTIES": Field("dirties", _INT, _whole("int64")),
    "HITRATIO": Field(
        "hitratio", r"-?\d{1,9}(?:\.\d{1,9})?%", lambda texts: np.array([float(t[:-1]) / 100 for t in texts])
    ),
    "BUFFERS_MB": Field("buffers_mb", _INT, _whole("int64")),
    "CACHED_MB": Field("cached_mb", _INT, _whole("int64")),
    "PREV_COMM": Field("prev_comm", _NAME, _category),
    "PREV_TID": Field("prev_tid", _INT, _whole("uint32")),
}

# Headings that a tool always has; those with more come first. opensnoop and statsnoop have the same: the file's name
# says which, else it is opensnoop.
_TOOLS: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (name, frozenset(words.split()))
    for name, words in (
        ("tcpstates", "SKADDR C-PID C-COMM LADDR LPORT RADDR RPORT OLDSTATE -> NEWSTATE MS"),
        ("tcplife", "PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS"),
        ("tcpaccept", "PID COMM IP RADDR RPORT LADDR LPORT"),
        ("tcpconnect", "PID COMM IP SADDR DADDR DPORT"),
        ("tcpretrans", "TIME PID IP LADDR:LPORT T> RADDR:RPORT STATE"),
        ("biosnoop", "TIME(s) COMM PID DISK T SECTOR BYTES LAT(ms)"),
        ("biotop", "PID COMM D MAJ MIN DISK I/O Kbytes AVGms"),
        ("fsslower", "TIME COMM PID T BYTES OFF_KB LAT(ms) FILENAME"),
        ("gethostlatency", "TIME PID COMM LATms HOST"),
        ("runqslower", "TIME COMM LAT(us)"),
        ("exitsnoop", "PCOMM PID PPID TID AGE(s) EXIT_CODE"),
        ("execsnoop", "PID RET ARGS"),
        ("killsnoop", "TIME PID COMM SIG TPID RESULT"),
        ("capable", "TIME UID PID COMM CAP NAME AUDIT"),
        ("opensnoop", "PID COMM FD ERR PATH"),
        ("statsnoop", "PID COMM FD ERR PATH"),
        ("cachestat", "HITS MISSES DIRTIES HITRATIO"),
        ("syscount", "SYSCALL COUNT"),
        ("syscount", "PID COMM COUNT"),
        ("hardirqs", "HARDIRQ TOTAL_usecs"),
        ("softirqs", "SOFTIRQ TOTAL_usecs"),
        ("hardirqs", "HARDIRQ TOTAL_nsecs"),
        ("softirqs", "SOFTIRQ TOTAL_nsecs"),
    )
)
_DECODED = {
    "err": "error",
    "flags": "open",
    "mode": "mode",
    "sig": "signal",
    "result": "errno",
    "ret": "errno",
    "exit_code": "wait",
}
_STAMP = re.compile(r"\[?\d\d:\d\d:\d\d\]?(?: loadavg: .*)?")  # before each table of tools that print several
_TWO_WORDS = {"PREV COMM": "PREV_COMM", "PREV TID": "PREV_TID", "TIME (us)": "TIME_(us)", "TIME (ms)": "TIME_(ms)"}


def _heading(line: str) -> list[str]:
    """Return a heading's words; none where a word is not known."""
    for two, one in _TWO_WORDS.items():
        line = line.replace(two, one)
    words = line.split() if "," not in line else line.split(",")  # some tools write CSV with -s
    return words if words and all(word in _FIELDS for word in words) and len(set(words)) == len(words) else []


def _tool(words: list[str], stem: str) -> str:
    """Return the tool that has such a heading, or ""."""
    fitting = [name for name, needed in _TOOLS if needed <= set(words)]
    return next((name for name in fitting if name in stem.lower()), fitting[0] if fitting else "")


def _found(lines: Lines) -> Iterator[tuple[int, list[str], str]]:
    """Return the first heading: its place, its words, and whose it is."""
    for number, line in enumerate(lines.text[:_HEAD]):
        words = _heading(line)
        if words and (tool := _tool(words, lines.path.stem)):
            yield number, words, tool
            return


def _fits(lines: Lines) -> bool:
    return any(True for _ in _found(lines))


def _read(lines: Lines) -> Imported:
    start, words, tool = next(_found(lines))
    between = "," if "," in lines.text[start] else r"\s{1,99}"
    row = _pattern(words, between)
    fields = [_FIELDS[word] for word in words]
    values: list[tuple[str, ...]] = []
    places: list[int] = []
    prints = [0]  # of each row: in which table it is
    for number, line in enumerate(lines.text[start + 1 :], start + 1):
        if found := row.fullmatch(line.removeprefix("^C")):
            values.append(tuple(text.strip() for text in found.groups("")))
            places.append(number)
            prints.append(prints[-1])
        elif _heading(line) == words:
            prints[-1] += 1
        elif not _STAMP.fullmatch(line.strip()):
            lines.pass_over(number)
    bad = _impossible(fields, values)
    for row_number in sorted(bad):
        lines.pass_over(places[row_number])
    good = [at for at in range(len(values)) if at not in bad]
    lines.taken = len(good)
    tables = np.array([prints[at] for at in good], np.int64)
    made: dict[str, Any] = {"print": tables} if tables.any() else {}
    for column, field in enumerate(fields):
        if field.name:
            made[_renamed(tool, field.name)] = field.make([values[at][column] for at in good])
    lines.odd.sort()
    return Imported.made(lines, tool, {tool: _finished(tool, pd.DataFrame(made))}, {})


_ERRORS = (ValueError, OverflowError, ArithmeticError)


def _impossible(fields: list[Field], values: list[tuple[str, ...]]) -> set[int]:
    """Return the rows that have a number which is none of its column's, such as a process number of 20 digits."""
    bad: set[int] = set()
    for column, field in enumerate(fields):
        try:
            field.make([row[column] for row in values])
        except _ERRORS:
            for at, row in enumerate(values):
                try:
                    field.make([row[column]])
                except _ERRORS:
                    bad.add(at)
    return bad


def _pattern(words: list[str], between: str) -> re.Pattern[str]:
    """Return what a row looks like. Text at its end may be empty, and then so may be what is before it."""
    *most, last = (_FIELDS[word].pattern for word in words)
    end = f"(?:{between}({last}))?" if last == _REST else f"{between}({last})"
    return re.compile(r"\s{0,9}" + between.join(f"({pattern})" for pattern in most) + end + r"\s{0,99}")


def _renamed(tool: str, name: str) -> str:
    """Return the name that bpfnb's tool has for a column."""
    return {("execsnoop", "comm"): "pcomm", ("runqslower", "pid"): "tid"}.get((tool, name), name)


def _finished(tool: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Part addresses from ports, and add the columns that say what numbers mean; in the order of bpfnb's tool."""
    for both in [name for name in frame.columns if ":" in name]:
        ends = [text.rpartition(":") for text in frame[both]]
        address, port = both.split(":")
        frame[address] = pd.Categorical([end[0] for end in ends])
        frame[port] = np.array([int(end[2]) for end in ends], np.uint16)
        frame = frame.drop(columns=both)
    known = [column.name for column in toolbox.find(tool).columns]
    decoded = {name: kind for name, kind in _DECODED.items() if name in frame and f"{name}_{kind}" in known}
    frame = with_decoded(frame, decoded) if decoded else frame
    first = [name for name in ("print", "time_of_day", "since") if name in frame]
    ours = [name for name in known if name in frame and name not in first]
    return frame[[*first, *ours, *(name for name in frame.columns if name not in {*first, *ours})]]


FORMAT = Format("a table of bcc's", _fits, _read)
