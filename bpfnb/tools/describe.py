"""What a tool says of itself: the docstring and the signature that Shift-Tab shows, and its help in a terminal."""

from __future__ import annotations

import inspect

from bpfnb.tools.tool import SESSION_OPTIONS, Column, Option, Starter, Tool

__all__ = ["column_lines", "documentation", "explanation", "signature"]

_INDENT = 4
_WIDTH = 18  # of a name in a list


def documentation(tool: Tool) -> str:
    """Return the docstring of the function that starts a tool: what it shows, its columns, its options."""
    parts = [explanation(tool), "Columns of df:\n\n" + "\n".join(column_lines(tool))]
    if tool.options:
        parts.append("Options:\n\n" + "\n".join(_line(_value(option), _option(option)) for option in tool.options))
    parts.append("Options of every session, see bpfnb.trace:\n\n" + " " * _INDENT + ", ".join(SESSION_OPTIONS))
    parts.append(f"In a terminal: bpfnb run {tool.name}")
    return "\n\n".join(filter(None, parts))


def explanation(tool: Tool) -> str:
    """Return what it shows, and what it cannot see."""
    return inspect.cleandoc(tool.doc)


def column_lines(tool: Tool) -> list[str]:
    """Return a line a column: its name, what it is, its unit."""
    return [_line(column.name, _column(column)) for column in tool.columns]


def signature(tool: Tool, host: Starter) -> inspect.Signature:
    """Return the parameters of the function that starts a tool: its own options, then every session's, as the host's
    ``trace`` has them."""
    every = inspect.signature(host.trace).parameters
    own = [_parameter(option) for option in tool.options]
    return inspect.Signature([*own, *(every[name] for name in SESSION_OPTIONS)], return_annotation="Session")


def _parameter(option: Option) -> inspect.Parameter:
    kind = option.kind.__name__ if isinstance(option.kind, type) else "str"
    annotation = kind if option.default is not None else f"{kind} | None"
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=annotation)


def _value(option: Option) -> str:
    return f"{option.name}={option.default!r}"


def _option(option: Option) -> str:
    return option.help + (f"; one of {', '.join(option.choices)}" if option.choices else "")


def _column(column: Column) -> str:
    return column.doc + (f" ({column.unit})" if column.unit else "")


def _line(name: str, text: str) -> str:
    return " " * _INDENT + f"{name:<{_WIDTH}} {text}"
