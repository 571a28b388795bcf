"""Tab and Shift-Tab in a %%bpf cell and on a %bpf line."""

from __future__ import annotations

from IPython.core.interactiveshell import InteractiveShell

from . import inspection, matching

__all__ = ["install", "remove"]


def install(shell: InteractiveShell) -> None:
    """Have a shell complete and explain cells of C. Idempotent."""
    matching.install(shell)
    inspection.install(shell)


def remove(shell: InteractiveShell) -> None:
    """Leave the shell as it was."""
    matching.remove(shell)
    inspection.remove(shell)
