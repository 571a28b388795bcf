"""The recorder's process: ``python -m bpfnb.terminal.recorder TRACER NOTEBOOK BEGIN``, three descriptors.

Started by a session that is recorded (recordings/running.py), as the notebook's user, in a session of its own: Ctrl-C
in a terminal is not for it. It ends by itself, once its session has ended and the file is whole.
"""

from __future__ import annotations

import gc
import signal
import socket
import sys
from collections.abc import Sequence

from bpfnb.opening import presented
from bpfnb.recordings import talk
from bpfnb.recordings.recorder import Recorder

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    tracer, notebook, begin = map(int, arguments)
    for number in (signal.SIGINT, signal.SIGHUP):  # the session's end is told by the tracer
        signal.signal(number, signal.SIG_IGN)
    begun = talk.read(begin)
    presentation, _ = presented(begun.manifest)
    gc.freeze()  # what was imported stays: the recorder collects often
    Recorder(begun, socket.socket(fileno=tracer), socket.socket(fileno=notebook), presentation).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
