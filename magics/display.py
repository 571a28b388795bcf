"""The display of DataFrames and Series in a notebook. Names and messages in them come from other people.

pandas escapes what HTML has a meaning for. Control characters and marks of direction it leaves to the terminal and the
browser, which obey them; here they are shown as escapes. The values stay as they are.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from IPython.core.interactiveshell import InteractiveShell

from bpfnb.errors import printable

__all__ = ["install", "remove"]

_KINDS = (pd.DataFrame, pd.Series)


def install(shell: InteractiveShell) -> None:
    formatters = _formatters(shell)
    formatters["text/html"].for_type(pd.DataFrame, _html)
    for kind in _KINDS:
        formatters["text/plain"].for_type(kind, _plain)


def remove(shell: InteractiveShell) -> None:
    formatters = _formatters(shell)
    formatters["text/html"].pop(pd.DataFrame, None)
    for kind in _KINDS:
        formatters["text/plain"].pop(kind, None)


def _formatters(shell: InteractiveShell) -> Any:
    assert shell.display_formatter
    return shell.display_formatter.formatters


def _html(frame: Any) -> str | None:
    text = frame._repr_html_()
    return text if text is None else printable(text, keep="\n\t")


def _plain(shown: Any, printer: Any, cycle: bool) -> None:
    printer.text(printable(repr(shown), keep="\n\t"))
