"""Commands run in processes of their own, and what they take: seconds, processor, memory. Linux."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A line that a command wrote, and where the command stood when it came."""

    text: str
    seconds: float
    """Since the start."""
    cpu_seconds: float
    """Of the command and all that it started."""
    resident_mib: float
    """Of the largest process."""
    peak_mib: float
    """The most so far of the largest process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A command that has ended."""

    code: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    """Most resident memory of the largest process, the system's own high-water mark (VmHWM)."""
    lines: list[Line] = field(default_factory=list)

    def tail(self, count: int = 12) -> str:
        """Return its last lines."""
        return "\n".join(line.text for line in self.lines[-count:])


class CommandError(Exception):
    """A measured command failed; the message ends with its last lines."""


def run_command(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    seconds: float | None = None,
) -> Run:
    """Run a command to its end and measure it.

    Args:
        command: Program and words.
        environment: Variables beside those of this process.
        folder: Where it runs.
        seconds: After so many it is ended.

    Raises:
        CommandError: It failed, or took too long.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
    )
    assert process.stdout is not None
    watch = Watch(process.pid, start, seconds)
    watch.start()
    with process.stdout as output:
        lines = [watch.stamp(line.rstrip("\n")) for line in output]
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    taken = time.perf_counter() - start
    watch.end()
    run = Run(
        code=process.returncode,
        seconds=taken,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_mib=watch.peak_mib,
        lines=lines,
    )
    if run.code:
        why = f"was ended after {seconds:.0f} s" if watch.expired else f"ended with {run.code}"
        raise CommandError(f"{' '.join(map(str, command))} {why}:\n{run.tail()}")
    return run


class Watch(threading.Thread):
    """Follows the memory of a process and its descendants."""

    def __init__(self, pid: int, start: float, limit: float | None) -> None:
        """Follow a process that began at `start`, and end it after `limit` seconds."""
        super().__init__(daemon=True)
        self.peak_mib = 0.0
        self.expired = False
        self._pid, self._began, self._limit = pid, start, limit
        self._ended = threading.Event()

    def run(self) -> None:
        """Keep the highest mark seen: each is the highest of its process so far."""
        while not self._ended.wait(_POLL_SECONDS):
            self._look(tree(self._pid))
            if self._limit is not None and time.perf_counter() - self._began > self._limit:
                self.expired = True
                for pid in reversed(tree(self._pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)
                return

    def stamp(self, text: str) -> Line:
        """Note where the process stands."""
        pids = tree(self._pid)
        self._look(pids)
        return Line(
            text=text,
            seconds=time.perf_counter() - self._began,
            cpu_seconds=sum(map(_cpu_seconds, pids)),
            resident_mib=max((status_mib(pid, "VmRSS") for pid in pids), default=0.0),
            peak_mib=self.peak_mib,
        )

    def _look(self, pids: list[int]) -> None:
        self.peak_mib = max([self.peak_mib, *(status_mib(pid, "VmHWM") for pid in pids)])

    def end(self) -> None:
        """Stop following."""
        self._ended.set()
        self.join()


def tree(pid: int) -> list[int]:
    """Return a process and its descendants that live."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    pids = [pid]
    for task in tasks:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii")
            pids += [one for child in children.split() for one in tree(int(child))]
    return pids


def status_mib(pid: int, name: str) -> float:
    """Return a size of a process, VmHWM or VmRSS; 0 where the process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and of its children that have ended."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return sum(map(int, stat.rpartition(")")[2].split()[11:15])) / _TICK
    return 0.0
