"""``bpftrace -f json``: an object a line, {"type": ..., "data": ...}. Shapes as bpftrace 0.17 writes them; see
src/output.cpp of bpftrace."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from bpfnb.imports.imported import Format, Imported
from bpfnb.imports.lines import Lines
from bpfnb.results.buckets import labels_of, writer

__all__ = ["FORMAT"]

_TEXTS = ("printf", "time", "join", "cat", "syscall", "value")
_KNOWN = {*_TEXTS, "map", "hist", "stats", "lost_events", "attached_probes"}


def _fits(lines: Lines) -> bool:
    for line in lines.text:
        if line.strip():
            return _entry(line) is not None
    return False


def _entry(line: str) -> tuple[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str) or "data" not in entry:
        return None
    return entry["type"], entry["data"]


def _read(lines: Lines) -> Imported:
    """Lines that were printed are the output "printf": ``type`` (category: printf, time, join ...) and ``msg`` (text).

    A map is a table of its keys and values, as they were printed each time: column ``print`` counts these, where there
    were several. ``key`` is the key as bpftrace writes it, an integer where all are; of stacks ``stack``, outermost
    first, and ``count``. Values: ``value``; of stats() count, average, total; of hist() and lhist() low, high, label,
    count.
    """
    kinds: list[str] = []
    texts: list[str] = []
    maps: dict[str, list[list[dict[str, Any]]]] = {}
    lost = 0
    for number, line in enumerate(lines.text):
        entry = _entry(line)
        if entry is None or not _take(entry, kinds, texts, maps):
            lines.pass_over(number)
            continue
        lines.taken += 1
        if entry[0] == "lost_events":
            lost += int(entry[1]["events"])
    outputs = {}
    if kinds:
        outputs["printf"] = pd.DataFrame({"type": pd.Categorical(kinds), "msg": pd.array(texts, dtype="str")})
    return Imported.made(lines, "bpftrace", outputs, {name: _table(prints) for name, prints in maps.items()}, lost)


def _take(
    entry: tuple[str, Any], kinds: list[str], texts: list[str], maps: dict[str, list[list[dict[str, Any]]]]
) -> bool:
    """Take an entry; return whether it is one that is known."""
    kind, data = entry
    if kind in _TEXTS:
        kinds.append(kind)
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
        texts.append(_valid(text.removesuffix("\n") if kind in ("printf", "time") else text))
        return True
    if kind in ("map", "hist", "stats"):
        if not isinstance(data, dict):
            return False
        made = {name: _rows(kind, value) for name, value in data.items()}
        if any(rows is None for rows in made.values()):
            return False
        for name, rows in made.items():
            maps.setdefault(_valid(name), []).append(rows or [])
        return True
    if kind == "lost_events":
        return isinstance(data, dict) and isinstance(data.get("events"), int)
    return kind == "attached_probes"


def _rows(kind: str, value: Any) -> list[dict[str, Any]] | None:
    """Return rows of a map; None for what none has."""
    if kind == "hist":
        groups = {None: value} if isinstance(value, list) else value
        if not isinstance(groups, dict):
            return None
        rows = []
        for key, found in groups.items():
            for bucket in found if isinstance(found, list) else [None]:
                if not isinstance(bucket, dict) or not isinstance(bucket.get("count"), int):
                    return None
                low, high = bucket.get("min", -np.inf), bucket.get("max", np.inf)
                if not _is_edge(low, -np.inf) or not _is_edge(high, np.inf):
                    return None
                rows.append(_keyed(key, {"low": float(low), "high": float(high) + 1, "count": bucket["count"]}))
        return rows

    def cells(one: Any) -> dict[str, Any]:
        return one if kind == "stats" and _is_stats(one) else {"value": one}

    keyed = value if isinstance(value, dict) and not (kind == "stats" and _is_stats(value)) else {None: value}
    return [_keyed(key, cells(one)) for key, one in keyed.items()]


def _is_stats(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"count", "average", "total"}


def _is_edge(value: Any, open_end: float) -> bool:
    return value == open_end or (isinstance(value, int) and abs(value) < 2**64)


def _keyed(key: str | None, rest: dict[str, Any]) -> dict[str, Any]:
    return rest if key is None else {"key": key, **rest}


def _table(prints: list[list[dict[str, Any]]]) -> pd.DataFrame:
    rows = [{"print": at, **row} if len(prints) > 1 else row for at, rows in enumerate(prints) for row in rows]
    if not rows:
        return pd.DataFrame({"key": pd.array([], dtype="str"), "value": np.empty(0, np.int64)})
    names = list(dict.fromkeys(name for row in rows for name in row))
    frame = pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in names})
    if "key" in frame and (stacks := _stacks(frame["key"])) is not None:
        frame["key"] = stacks
        frame = frame.rename(columns={"key": "stack", "value": "count"})
    if "low" in frame:
        low, high = frame["low"].tolist(), frame["high"].tolist()
        frame.insert(list(frame).index("count"), "label", labels_of(low, high, writer("log2", None), True))
    return frame


def _stacks(keys: pd.Series[Any]) -> list[str] | None:
    """Return stacks as bpfnb has them, of keys that are stacks; kstack and ustack have the innermost function first, a
    line each."""
    texts = keys.tolist()
    if not all(isinstance(text, str) and text.startswith("\n") for text in texts):
        return None
    return [
        ";".join(line.strip().replace(";", ":") for line in reversed(text.strip("\n").split("\n"))) for text in texts
    ]


def _column(values: list[Any]) -> Any:
    """Return integers as int64 or uint64, where all fit, and text as text; all else as it is."""
    whole = [number for number in map(_integer, values) if number is not None]
    if len(whole) == len(values):
        least, most = min(whole), max(whole)
        if least >= -(2**63) and most < 2**63:
            return np.array(whole, np.int64)
        return np.array(whole, np.uint64 if least >= 0 and most < 2**64 else object)
    if all(isinstance(value, str) for value in values):
        return pd.array([_valid(value) for value in values], dtype="str")
    if all(isinstance(value, float) for value in values):
        return np.array(values)
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    return pd.array([_valid(text) for text in texts], dtype="str")


def _integer(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    plain = isinstance(value, str) and len(value) < 40 and value.removeprefix("-").isdecimal() and value.isascii()
    return int(value) if plain and str(int(value)) == value else None


def _valid(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


FORMAT = Format("bpftrace -f json", _fits, _read)
