"""The line that each process of a run holds to the first one, from its start to its end.

A line that breaks tells at once that a process has died, for which a collective operation may wait in vain.
And processes that do not yet exchange tensors can meet over it, and wait as long as each needs.
"""

import json
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

from gemma_ft.errors import TrainingError, first_line

CONNECT_SECONDS = 600.0
"""How long the machines of a run may start apart from each other."""
_POLL_SECONDS = 0.2
_GREETING_SECONDS, _GOODBYE_SECONDS = 30.0, 2.0
_KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""A machine that is gone is noticed after 35 s, and no firewall takes the line for an idle one."""
Message = dict[str, Any]


class LeftError(TrainingError):
    """Say that a process has left which was waited for; why is for itself to tell."""


class Lifeline:
    """One process's end of the line; the first process holds that of every other."""

    def __init__(self, rank: int, size: int, heard: Callable[[Message], None]) -> None:
        """Keep what is needed to connect.

        Args:
            rank: This process.
            size: All processes.
            heard: Called, from another thread, with what became of another process: its `rank`, its `end`
                (died, or what it said as it left) and its `text`.
        """
        self.rank = rank
        self.size = size
        self._heard = heard
        self._lines: dict[int, socket.socket] = {}
        self._listening: socket.socket | None = None
        self._store: Any = None
        self._token = ""
        self._changed = threading.Condition()
        self._said: dict[int, dict[int, Any]] = {}
        self._told: dict[int, list[Any]] = {}
        self._met = 0
        self._left: set[int] = set()
        self._closed = False
        self._sending = threading.Lock()
        self._threads: list[threading.Thread] = []
        _open_lines.add(self)

    def connect(self, name: str) -> None:
        """Take up the line.

        Args:
            name: Tells this run apart from others that the same processes have.

        Raises:
            TrainingError: The first process cannot be reached, or another one does not show up.
        """
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]
        from torch.distributed.rendezvous import rendezvous

        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        try:
            limit = timedelta(seconds=CONNECT_SECONDS)
            found = next(rendezvous("env://", self.rank, self.size, timeout=limit))
            self._store = PrefixStore(f"gemma_ft {name}", found[0])
            self._serve() if self.rank == 0 else self._call()
        except (OSError, RuntimeError, ValueError) as error:
            raise TrainingError(
                f"process {self.rank} of {self.size} cannot reach the first one at {place} "
                f"({first_line(error)}). "
                "Look at MASTER_ADDR, MASTER_PORT and the firewall between the machines."
            ) from error

    def meet(self, said: Any = None, *, limit: float | None = None) -> list[Any]:
        """Wait until every process has come here, and return what each has said, by rank.

        Args:
            said: Something that JSON holds.
            limit: Seconds to wait at most; None waits for as long as all processes live.

        Raises:
            TrainingError: A process has left or died meanwhile, or not all have come in time.
        """
        number, end = self._met, None if limit is None else time.monotonic() + limit
        self._met += 1
        self._take(self.rank, {"meet": number, "said": said})
        with self._changed:
            while number not in self._told:
                if self._left:
                    raise LeftError(f"process {min(self._left)} has left. Give the same line again.")
                if end is not None and time.monotonic() > end:
                    raise TrainingError(self._missing(number))
                self._changed.wait(_POLL_SECONDS)
            return self._told.pop(number)

    def leave(self, end: str, text: str = "") -> None:
        """Let go of the line, with a word about why, so that nobody takes it for a death."""
        with self._changed:
            self._closed = True
        self._send_all({"rank": self.rank, "end": end, "text": text})
        for line in self._lines.values():
            with suppress(OSError):
                line.shutdown(socket.SHUT_WR)
        for thread in self._threads:  # who closes with words unread would take back its own
            thread.join(_GOODBYE_SECONDS)
        self.drop()

    def drop(self) -> None:
        """Close what this process has open."""
        for line in [*self._lines.values(), *([self._listening] if self._listening else [])]:
            with suppress(OSError):
                line.close()

    def _serve(self) -> None:
        """Wait for the others, each of which is listened to in a thread of its own."""
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._listening = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
        self._token = secrets.token_hex(16)
        self._store.set("line", f"{self._listening.getsockname()[1]} {self._token}")
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True, name="lines").start()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):  # closed as the run ends
            while True:
                line, _ = listening.accept()
                threading.Thread(target=self._greet, args=(line,), daemon=True, name="greeting").start()

    def _greet(self, line: socket.socket) -> None:
        """Take a process in that knows the token; whoever else calls here is sent away."""
        with suppress(OSError, ValueError, TypeError, KeyError, StopIteration):
            line.settimeout(_GREETING_SECONDS)
            said = _messages(line)
            hello = next(said)
            if hello["token"] == self._token and 0 < hello["rank"] < self.size:
                line.settimeout(None)
                self._hold(hello["rank"], line, said)
                return
        line.close()

    def _call(self) -> None:
        """Connect to the first process, as soon as it says where it listens."""
        end = time.monotonic() + CONNECT_SECONDS
        while not self._store.check(["line"]):
            if time.monotonic() > end:
                raise OSError(f"it has not shown up within {CONNECT_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
        port, token = self._store.get("line").decode().split()
        line = socket.create_connection((os.environ["MASTER_ADDR"], int(port)), timeout=60)
        line.settimeout(None)
        line.sendall(json.dumps({"rank": self.rank, "token": token}).encode() + b"\n")
        self._hold(0, line, _messages(line))

    def _hold(self, rank: int, line: socket.socket, said: Iterator[Message]) -> None:
        """Listen to a process for as long as its line holds."""
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._lines[rank] = line
        listener = threading.Thread(target=self._listen, args=(rank, line, said), daemon=True, name="line")
        self._threads.append(listener)
        listener.start()

    def _listen(self, rank: int, line: socket.socket, said: Iterator[Message]) -> None:
        with suppress(OSError, ValueError):
            for message in said:
                self._take(rank, message)
        with self._changed:
            expected = self._closed or rank in self._left
        if not expected:
            self._take(rank, {"rank": rank, "end": "died", "text": ""})
        with suppress(OSError):
            line.close()

    def _take(self, sender: int, message: Message) -> None:
        """Note what a process says; the first one gathers it and passes it on."""
        if self._closed or message.get("rank") == self.rank:
            return
        if "end" not in message:
            message = self._gather(sender, message) if "told" in message or self.rank == 0 else message
        if message and (self.rank == 0 or sender == self.rank):
            self._send_all(message)
        if "end" in message:  # last, since who hears of it may leave
            with self._changed:
                self._left.add(message["rank"])
                self._changed.notify_all()
            self._heard(message)

    def _gather(self, sender: int, message: Message) -> Message:
        """Return what all have said at a meeting, once they have; nothing before."""
        number = message["meet"]
        with self._changed:
            if "said" in message:
                said = self._said.setdefault(number, {})
                said[sender] = message["said"]
                if len(said) < self.size:
                    return {}
                message = {"meet": number, "told": [said[rank] for rank in range(self.size)]}
            self._told[number] = message["told"]
            self._changed.notify_all()
        return message

    def _send_all(self, message: Message) -> None:
        text = json.dumps(message).encode() + b"\n"
        with self._sending:
            for line in list(self._lines.values()):
                with suppress(OSError):  # one that is gone is noticed by who listens
                    line.sendall(text)

    def _missing(self, number: int) -> str:
        come = self._said.get(number, {})
        missing = [str(rank) for rank in range(self.size) if rank not in come]
        who = f"process(es) {', '.join(missing)}" if self.rank == 0 else "another process"
        return f"{who} of {self.size} did not come in time. Start the same line on every machine."


def _messages(line: socket.socket) -> Iterator[Message]:
    """Read what comes over a line, a JSON text a line, until it ends."""
    rest = b""
    while piece := line.recv(1 << 16):
        *texts, rest = (rest + piece).split(b"\n")
        yield from map(json.loads, texts)


_open_lines: "weakref.WeakSet[Lifeline]" = weakref.WeakSet()


def _let_go() -> None:
    """Close what a fork has copied: a child would hold the line of a parent that has died."""
    for lifeline in list(_open_lines):
        lifeline.drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
