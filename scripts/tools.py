#!/usr/bin/env python3
"""Writes docs/tools.md: what each tool shows, its columns, its options, what it cannot see.

    .venv/bin/python scripts/tools.py        # after a change of a tool; tests/unit/test_toolbox.py says when

What stands there above "## The tools" is written by people, and stays.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from bpfnb.tools.tool import Column, Option, Tool
from bpfnb.tools.toolbox import find, names

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "tools.md"
BEGIN = "## The tools\n"


def text() -> str:
    """Return the document as it should be."""
    by_people = DOCUMENT.read_text().partition(BEGIN)[0]
    return by_people + BEGIN + "".join(_section(find(name)) for name in names())


def _section(tool: Tool) -> str:
    rest = inspect.cleandoc(tool.doc).partition("\n")[2].strip()
    options = _table("option", [(_flags(option), _help(option)) for option in tool.options])
    columns = _table("column", [(f"`{column.name}`", _about(column)) for column in tool.columns])
    parts = [f"### {tool.name}", f"Shows {tool.summary}.", rest, columns, options]
    return "".join(f"\n{part}\n" for part in parts if part)


def _table(head: str, rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    return "\n".join([f"| {head} | |", "| --- | --- |", *(f"| {name} | {what} |" for name, what in rows)])


def _about(column: Column) -> str:
    unit = f" ({column.unit})" if column.unit else ""
    heading = f"; in a terminal {column.heading}" if column.heading else ""
    return (column.doc + unit + heading).replace("|", r"\|")


def _flags(option: Option) -> str:
    short = f", `-{option.short}`" if option.short else ""
    return f"`--{option.name.replace('_', '-')}`{short}"


def _help(option: Option) -> str:
    default = f"; without it {option.default}" if option.default not in (None, False) else ""
    choices = f"; one of {', '.join(option.choices)}" if option.choices else ""
    return (option.help + choices + default).replace("|", r"\|")


if __name__ == "__main__":
    DOCUMENT.write_text(text())
