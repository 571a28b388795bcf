"""How a session's results become its ``df``: of cells as they are, of one-liners and tools by what these say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from bpfnb.results.maps.map import Map

__all__ = ["Presentation", "Rows", "Table", "TableView"]

TableView = Literal["top", "hist", "flame"]


@dataclass(frozen=True)
class Rows:
    """An event a row. ``convert``: rows of the main output -> rows of ``df``, of all rows or of any run of them: what a
    row becomes depends on that row alone. ``title``: what the session's card says of it, one line. ``units``: of
    columns that are numbers, "bytes" or "ns"."""

    convert: Callable[[pd.DataFrame], pd.DataFrame]
    title: str = ""
    units: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table made of maps, as they are at the moment that it is asked for. ``title``: as above. ``as_is``: names of
    maps that a drain leaves as they are, such as stacks that counts name. ``view``: what shows it live: its largest
    rows, its buckets (``low``, ``high``, ``count``), or its stacks (``stack``, ``count``).
    ``units``: of columns that are numbers. ``grows``: False where it shows what there is, as memory that is held: two
    of them do not add up."""

    compute: Callable[[Mapping[str, Map]], pd.DataFrame]
    title: str = ""
    as_is: Sequence[str] = ()
    view: TableView = "top"
    units: Mapping[str, str] = field(default_factory=dict)
    grows: bool = True


Presentation = Rows | Table
