"""What a tool says of itself: the docstring and the signature that Shift-Tab shows, and its help in a terminal."""

from __future__ import annotations

import inspect
from typing import Any

from bpfnb.session import Session
from bpfnb.tools.tool import SESSION_OPTIONS, Column, Option, Tool

__all__ = ["column_lines", "documentation", "signature"]

_INDENT = 4
_WIDTH = 18  # of a name in a list


def documentation(tool: Tool) -> str:
    """Return the docstring of the function that starts a tool: what it shows, its columns, its options."""
    first, _, rest = inspect.cleandoc(tool.doc).partition("\n")
    parts = [first, rest.strip(), "Columns of df:\n\n" + "\n".join(column_lines(tool))]
    if tool.options:
        parts.append("Options:\n\n" + "\n".join(_line(_value(option), _option(option)) for option in tool.options))
    parts.append(f"Every session's options: {', '.join(SESSION_OPTIONS)}; see bpfnb.trace.")
    parts.append(f"In a terminal: bpfnb run {tool.name}")
    return "\n\n".join(filter(None, parts))


def column_lines(tool: Tool) -> list[str]:
    """Return a line a column: its name, what it is, its unit."""
    return [_line(column.name, _column(column)) for column in tool.columns]


def signature(tool: Tool) -> inspect.Signature:
    """Return the parameters of the function that starts a tool: its own options, then every session's."""
    parameters = [_parameter(option.name, option.default, _annotation(option)) for option in tool.options]
    parameters += [_parameter(name, None) for name in SESSION_OPTIONS]
    return inspect.Signature(parameters, return_annotation=Session)


def _parameter(name: str, default: Any, annotation: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(option: Option) -> Any:
    kind = option.kind if isinstance(option.kind, type) else Any
    return kind if option.default is not None or kind is Any else kind | None


def _value(option: Option) -> str:
    return f"{option.name}={option.default!r}"


def _option(option: Option) -> str:
    return option.help + (f"; one of {', '.join(option.choices)}" if option.choices else "")


def _column(column: Column) -> str:
    return column.doc + (f" ({column.unit})" if column.unit else "")


def _line(name: str, text: str) -> str:
    return " " * _INDENT + f"{name:<{_WIDTH}} {text}"
