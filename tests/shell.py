"""An IPython whose ``run`` raises what the cell raised and returns what the cell returned."""

from __future__ import annotations

from IPython.core.interactiveshell import InteractiveShell


class Shell:
    def __init__(self, inner: InteractiveShell) -> None:
        self.inner = inner

    def run(self, cell: str) -> object:
        result = self.inner.run_cell(cell)
        if error := result.error_before_exec or result.error_in_exec:
            raise error
        return result.result
