"""The program under `fsdp_on_cpus`, in which one process gets a signal where a function is called.

STOP_AT is MODULE:FUNCTION:CALL, RANK_STOPPED the process, SIGNAL the signal's name; KILLED_AT is a file that
tells when.
"""

import os
import signal
import sys
from importlib import import_module
from operator import attrgetter
from pathlib import Path

from fsdp_on_cpus import main


def stop_at(place: str, number: signal.Signals) -> None:
    """Have a function send its process a signal when it is called for the n-th time."""
    module, name, call = place.split(":")
    owner, _, method = name.rpartition(".")
    holder = attrgetter(owner)(import_module(module)) if owner else import_module(module)
    function, calls = getattr(holder, method), []

    def called(*args: object, **kwargs: object) -> object:
        calls.append(None)
        if len(calls) == int(call):
            Path(os.environ["KILLED_AT"]).touch()
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    setattr(holder, method, called)


if __name__ == "__main__":
    if os.environ["RANK"] == os.environ.get("RANK_STOPPED"):
        stop_at(os.environ["STOP_AT"], signal.Signals[os.environ["SIGNAL"]])
    sys.exit(main())
