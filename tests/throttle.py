"""A slow link: pass standard input on at so many bytes a second. ``python throttle.py RATE``."""

from __future__ import annotations

import os
import sys
import time

_EACH = 4096  # bytes


def main(rate: float) -> None:
    due = time.monotonic()
    while data := os.read(0, _EACH):
        left = memoryview(data)
        while left:
            left = left[os.write(1, left) :]
        due = max(due, time.monotonic() - 0.1) + len(data) / rate
        time.sleep(max(due - time.monotonic(), 0))


if __name__ == "__main__":
    main(float(sys.argv[1]))
