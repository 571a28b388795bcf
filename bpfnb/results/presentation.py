"""How a session's results become its ``df``: of cells as they are, of one-liners and tools by what these say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from msgspec import Struct

from bpfnb.results.maps.map import Map

__all__ = ["Presentation", "Rows", "Shown", "Table", "TableView"]

TableView = Literal["top", "hist", "flame"]


class Shown(Struct, frozen=True):
    """What makes ``df`` of the outputs and maps, as a recording has it: nothing ("cell"), a question ("question") or a
    tool ("tool").

    ``name``: the question's verb, or the tool's name. ``options``: what they were asked with, plain values: see
    oneliners.py and tools/tool.py. They are looked up in the bpfnb that reads the recording: nothing of a recording is
    ever run.
    """

    kind: Literal["cell", "question", "tool"] = "cell"
    name: str = ""
    options: dict[str, Any] = {}


@dataclass(frozen=True)
class Rows:
    """An event a row. ``convert``: rows of the main output -> rows of ``df``, of all rows or of any run of them: what a
    row becomes depends on that row alone. ``title``: what the session's card says of it, one line. ``units``: of
    columns that are numbers, "bytes" or "ns". ``shown``: what it is made again by, from a
    recording."""

    convert: Callable[[pd.DataFrame], pd.DataFrame]
    title: str = ""
    units: Mapping[str, str] = field(default_factory=dict)
    shown: Callable[[], Shown] = Shown


@dataclass(frozen=True)
class Table:
    """A table made of maps, as they are at the moment that it is asked for. ``title``: as above. ``as_is``: names of
    maps that a drain leaves as they are, such as stacks that counts name. ``view``: what shows it live: its largest
    rows, its buckets (``low``, ``high``, ``count``), or its stacks (``stack``, ``count``).
    ``units``: of columns that are numbers. ``grows``: False where it shows what there is, as memory that is held: two
    of them do not add up. ``shown``: as above."""

    compute: Callable[[Mapping[str, Map]], pd.DataFrame]
    title: str = ""
    as_is: Sequence[str] = ()
    view: TableView = "top"
    units: Mapping[str, str] = field(default_factory=dict)
    grows: bool = True
    shown: Callable[[], Shown] = Shown


Presentation = Rows | Table
