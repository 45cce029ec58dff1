"""Work on many tensors at once: while one is read or written, another is computed."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_MOST_WORKERS = 3  # with nf4 each holds a quarter of its tensor, and all of a 7B must fit into 0.6 GiB


def worker_count() -> int:
    """Return how many tensors are worked on at once: one for each core of this process, up to a handful."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, _MOST_WORKERS)


def map_in_threads(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Call a function on each item, several at a time, and return the results in the items' order.

    The first exception ends the work: nothing new is begun, and it is raised when nothing runs any more.

    Each worker computes on one thread of torch. More would divide a block of rows once again, down to the
    one or two rows that round differently.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(worker_count(), "merge", _use_one_thread) as pool:
            try:  # round the handing out as well: an interrupt comes at any moment
                futures = [pool.submit(function, item) for item in items]
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)  # a worker's setting is also that of all threads to come


def _use_one_thread() -> None:
    import torch

    torch.get_num_threads()  # a thread's first question sets its number from the process's, so ask it now
    torch.set_num_threads(1)
