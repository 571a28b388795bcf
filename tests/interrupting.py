"""Ctrl-C at every point where it can come: Python looks for signals as a function begins, after a call of a C function,
and where a loop goes back."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

# What only computes is left out: parsing, decoding, painting.
_OURS = (
    "session/session",
    "session/listener",
    "session/map_access",
    "hosts",
    "registry",
    "interrupts",
    "host/client",
    "host/connector",
    "protocol/connection",
    "results/maps/map",
    "results/maps/snapshots",
    "results/output",
    "results/stream",
    "views/live/panel",
    "views/refresh",
    "magics/bpf",
)
_THEIRS = ("threading", "queue", "_base", "contextlib", "weakref", "subprocess")
_FILES = tuple(f"/{name}.py" for name in _OURS + _THEIRS)
_ROOT = Path(__file__).parents[1]
_MOVED = [name for name in _OURS if not any((_ROOT / folder / f"{name}.py").exists() for folder in ("bpfnb", "."))]
assert not _MOVED, f"no such modules any more, so no points in them: {_MOVED}"
_CALLS = ("CALL", "CALL_FUNCTION", "CALL_METHOD", "CALL_KW", "CALL_FUNCTION_KW", "CALL_FUNCTION_EX")


def every_point(act: Callable[[], object], step: int = 1, most: int = 5000) -> Iterator[bool]:
    """Do something again and again, each time with a KeyboardInterrupt at the next of the points it passes; of
    every ``step`` points at one.

    Yields True each time the interrupt came out of ``act``, and False where something caught it; ends with the first
    run that was not interrupted. One that Python itself drops, as in a weak reference's callback, is followed by
    another at the next point: whoever is told "Exception ignored in" presses Ctrl-C again.
    """
    for number in range(0, most, step):
        point = _Point(number)
        with point:
            try:
                act()
            except KeyboardInterrupt:
                came_out = True
            else:
                came_out = False
        if not point.reached:
            return
        yield came_out
    raise AssertionError(f"there are more than {most} points")


class _Point:
    """Raises KeyboardInterrupt at the point of this number. A tracing function: see sys.settrace."""

    def __init__(self, number: int) -> None:
        self.reached = False
        self._left = number
        self._last: dict[FrameType, int] = {}  # of a frame, the instruction it did last; -1 for one that Python did

    def __enter__(self) -> None:
        self._ignored, sys.unraisablehook = sys.unraisablehook, self._ignore
        sys.settrace(self._enter)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        sys.unraisablehook = self._ignored

    def _ignore(self, what: sys.UnraisableHookArgs) -> None:
        """Python drops an exception: see sys.unraisablehook."""
        if what.exc_type is not _Interrupt:
            self._ignored(what)
            return
        self.reached = False
        sys.settrace(self._enter)  # Python unset it when it raised

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        if event != "call" or not frame.f_code.co_filename.endswith(_FILES):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if frame.f_back in self._last:
            self._last[frame.f_back] = -1
        self._last[frame] = -1
        self._pass()
        return self._go_on

    def _go_on(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            before, self._last[frame] = self._last[frame], frame.f_lasti
            name = _instructions(frame.f_code).get(before, "")
            if name in _CALLS or name.startswith(("JUMP_BACKWARD", "JUMP_ABSOLUTE")):
                self._pass()
        elif event == "return":
            self._last.pop(frame, None)
        return self._go_on

    def _pass(self) -> None:
        self._left -= 1
        if self._left < 0 and not self.reached:
            self.reached = True
            raise _Interrupt


class _Interrupt(KeyboardInterrupt):
    pass


_known: dict[CodeType, dict[int, str]] = {}


def _instructions(code: CodeType) -> dict[int, str]:
    if code not in _known:
        _known[code] = {at.offset: at.opname for at in dis.get_instructions(code)}
    return _known[code]
