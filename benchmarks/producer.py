"""producer.c where there is no C compiler: the same arguments, the same calls, more slowly."""

import os
import sys
import time

BATCH = 64


def main() -> None:
    cpu, count, rate, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    os.sched_setaffinity(0, {cpu})
    if not os.read(0, 1):
        sys.exit(1)
    getppid, clock = os.getppid, time.monotonic
    made, began = 0, clock()
    while made < count:
        passed = clock() - began
        while rate and passed * rate < made:
            passed = clock() - began
        if passed > seconds:
            break
        batch = min(BATCH, count - made)
        for _ in range(batch):
            getppid()
        made += batch
    print(made, round((clock() - began) * 1e9))


if __name__ == "__main__":
    main()
