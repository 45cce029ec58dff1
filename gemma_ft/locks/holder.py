"""What a lock file says: which process holds it, and how long ago that showed life."""

import json
import os
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

STALE_SECONDS = 60.0
"""The age of a heartbeat from which its process counts as dead: six were missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """The process that a lock file names."""

    host: str
    pid: int
    since: float
    """When it took the lock, in seconds since 1970 by its own clock."""
    place: str
    """What tells apart two machines of one name, and two containers of one machine."""

    @property
    def is_near(self) -> bool:
        """Whether it runs among this process's neighbours, where the system's own word can be taken."""
        return self.place == find_place()

    @property
    def is_gone(self) -> bool:
        """Whether it ran near and does not any more."""
        import psutil  # type: ignore[import-untyped]

        if not self.is_near:
            return False
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def __str__(self) -> str:
        """Name it in a message."""
        return f"process {self.pid} on {self.host}"


def read_holder(path: Path) -> Holder | None:
    """Return the process that holds a lock file and shows life, or None."""
    try:
        text, beat = look(path)
    except OSError:
        return None
    holder = parse_holder(text)
    if holder is None or holder.is_gone or now_on(path) - beat >= STALE_SECONDS:
        return None
    return holder


def describe_self() -> str:
    """Write what a lock file says of this process."""
    me = Holder(host=socket.gethostname(), pid=os.getpid(), since=time.time(), place=find_place())
    return json.dumps(asdict(me))


def parse_holder(text: str) -> Holder | None:
    """Read what a lock file says; None where it says nothing that can be understood."""
    try:
        holder = Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None
    words = isinstance(holder.host, str) and isinstance(holder.place, str)
    return holder if words and isinstance(holder.pid, int) and holder.pid > 0 else None


def look(path: Path) -> tuple[str, float]:
    """Read a lock file, and when it was last touched by the clock of its file system."""
    with path.open("rb") as file:  # a network file system looks anew when a file is opened
        text = file.read().decode(errors="replace")
        return text, os.fstat(file.fileno()).st_mtime


def now_on(path: Path) -> float:
    """Return the time by the clock of a run folder's file system, which may be another machine's.

    It is asked beside the run folder, where a process that is refused must not leave a trace.
    """
    try:
        with tempfile.TemporaryFile(dir=path.parent.parent) as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # not ours to write to
        return time.time()


@cache
def find_place() -> str:
    """Name the running system and the space of its process numbers; the host where neither can be read."""
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts) or socket.gethostname()
