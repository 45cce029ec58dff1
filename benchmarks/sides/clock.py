"""The clock of a measured process: standard library only, so that a peer's Python can run it too."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path


class Clock:
    """Tells the process that watches when the measured part begins and ends."""

    def __init__(self) -> None:
        print("ready", flush=True)
        self._start, self._busy = time.perf_counter(), sum(os.times()[:4])

    def stop(self) -> Callable[..., None]:
        """Stop, and return what prints the times, with further figures that are counted afterwards."""
        seconds, busy = time.perf_counter() - self._start, sum(os.times()[:4]) - self._busy
        print("done", flush=True)
        times = {"seconds": round(seconds, 2), "cpu_seconds": round(busy, 2)}
        return lambda **figures: print(json.dumps(times | figures), flush=True)


def peak_mib() -> int:
    """Return the largest resident memory of this process so far, in MiB; of Linux only.

    Not `ru_maxrss`, which begins with the memory of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024
