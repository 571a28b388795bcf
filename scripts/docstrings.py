"""Docstrings as Markdown, for the docs site: a list of names and what they are becomes a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

# ``name``, or several, then two spaces or more (or a colon), and what it is.
_ITEM = re.compile(r"^( *)((?:``[^`]+``(?:, )?)+)(?:  +|: )(\S.*)$")


class Lists(griffe.Extension):
    """Rewrites docstrings when they are loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Return a docstring whose aligned lists are Markdown's."""
    lines: list[str] = []
    column: int | None = None  # where the explanations of the list begin
    for line in text.splitlines():
        item = _ITEM.match(line)
        if item:
            if column is None:
                lines.append("")
            column = item.start(3)
            lines.append(f"- {item[2]}: {item[3]}")
        elif column is not None and line.startswith("  ") and line.strip():
            lines[-1] += " " + line.strip()
        else:
            if column is not None and line.strip():
                lines.append("")
            column = None
            lines.append(line)
    return "\n".join(lines)
