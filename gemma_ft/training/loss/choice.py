"""Which loss head a run takes, and how many tokens at once: decided once, by measurement, and kept."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from gemma_ft.config.trainer import LossHeadMethod, TrainerConfig
from gemma_ft.errors import ConfigError, first_line
from gemma_ft.training.loss.heads import LossHead
from gemma_ft.training.loss.measuring import Bench

logger = logging.getLogger("gemma_ft")

_SMALL_BYTES = 32 * 2**20
"""Logits of a micro-batch that are not worth cutting."""
_FEWEST_TOKENS = 32
_CHUNK_BYTES = {"cpu": 128 * 2**20}
_CHUNK_BYTES_ON_GPU = 2**31
"""Logits that may exist at one time."""
_WORTH = 1.1
"""More tokens at once, which is more memory, have to be faster by this."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A head, and why it is the one."""

    head: LossHead
    reason: str
    measured: tuple[dict[str, Any], ...] = field(default=())
    """Microseconds a token by head and chunk size, or what is wrong with a head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What the head has to do in a run."""

    words: int
    """Size of the vocabulary."""
    tokens: int
    """Most tokens of a micro-batch."""
    dtype: torch.dtype
    """Number format that computes."""
    device: torch.device
    soft_cap: float | None = None


def choose_head(trainer: TrainerConfig, load: Load, lay_out: Callable[[], Bench]) -> Choice:
    """Choose a head and its chunk size as configured, and by measurement where that leaves it open.

    Args:
        trainer: Its `loss_head` and `loss_chunk_size`.
        load: The run's.
        lay_out: Makes the head for measuring; called only where something is measured.

    Raises:
        ConfigError: What was asked for cannot compute this model's loss.
    """
    match trainer.loss_head:
        case LossHeadMethod.auto:
            return _choose_method(trainer, load, lay_out)
        case LossHeadMethod.trl:
            return Choice(LossHead(LossHeadMethod.trl), "as asked")
        case LossHeadMethod.torch:
            return _take_torch(load, lay_out)
        case _:
            return _choose_chunk(trainer, load, lay_out)


def _take_torch(load: Load, lay_out: Callable[[], Bench]) -> Choice:
    if load.soft_cap is not None:
        raise ConfigError(
            f"trainer.loss_head=torch does not know the soft cap of {load.soft_cap:g} that this model puts "
            "on its logits. Use trainer.loss_head=auto."
        )
    head = LossHead(LossHeadMethod.torch)
    if fault := _fault_of(lay_out(), head):
        raise ConfigError(f"trainer.loss_head=torch is wrong here: {fault}. Use trainer.loss_head=auto.")
    return Choice(head, "as asked")


def _choose_method(trainer: TrainerConfig, load: Load, lay_out: Callable[[], Bench]) -> Choice:
    """Compare the heads where there are several that could be the fastest: on a CPU ours alone is.

    There TRL's and torch's take several times as long: `benchmarks/gpu.py --device cpu --parts loss_head`.
    """
    own = _choose_chunk(trainer, load, lay_out)
    if load.device.type != "cuda" or _is_small(load):
        return own
    bench = lay_out()
    rivals = [own.head, LossHead(LossHeadMethod.trl)]
    if load.soft_cap is None:
        rivals.append(LossHead(LossHeadMethod.torch))
    return compare_heads(bench, rivals, min(load.tokens, _longest(load)), own.measured)


def compare_heads(
    bench: Bench, heads: Iterable[LossHead], tokens: int, measured: tuple[dict[str, Any], ...] = ()
) -> Choice:
    """Choose the fastest of the heads whose loss and gradient are true here.

    Raises:
        ConfigError: None is.
    """
    found, times = list(measured), {}
    for head in heads:
        entry: dict[str, Any] = {"head": head.method.value}
        if fault := _fault_of(bench, head):
            found.append({**entry, "fault": fault})
            continue
        times[head] = bench.time(head, tokens)
        found.append({**entry, "tokens": tokens, "microseconds_per_token": _micro(times[head])})
    if not times:
        raise ConfigError(
            "trainer.loss_head=auto finds no head whose loss is right here: "
            + "; ".join(f"{entry['head']}: {entry['fault']}" for entry in found if "fault" in entry)
            + ". Name one with trainer.loss_head=chunked if its error is small enough for you."
        )
    best = min(times, key=lambda head: times[head])
    reason = f"the fastest of {len(times)} whose loss and gradient are true here"
    wrong = [f"{entry['head']} is not: {entry['fault']}" for entry in found if "fault" in entry]
    return Choice(best, "; ".join([reason, *wrong]), tuple(found))


def _fault_of(bench: Bench, head: LossHead) -> str:
    try:
        return bench.find_fault(head)
    except Exception as error:  # a kernel may fail in any way where it was never run
        return f"it does not run: {type(error).__name__}: {first_line(error)}"


def _choose_chunk(trainer: TrainerConfig, load: Load, lay_out: Callable[[], Bench]) -> Choice:
    """Choose the fewest tokens at once that are nearly as fast as any."""
    chunked = LossHeadMethod.chunked
    if trainer.loss_chunk_size is not None:
        return Choice(LossHead(chunked, trainer.loss_chunk_size), "chunk size as asked")
    if _is_small(load):
        return Choice(LossHead(chunked, load.tokens), "the vocabulary is small: all tokens at once")
    bench, times, size = lay_out(), {}, _FEWEST_TOKENS
    while size <= max(_longest(load), _FEWEST_TOKENS):
        times[size] = bench.time(LossHead(chunked, size), size)
        size *= 2
    fastest = min(times.values())
    best = next(size for size, seconds in times.items() if seconds <= _WORTH * fastest)
    measured = tuple(
        {"head": chunked.value, "chunk_size": size, "microseconds_per_token": _micro(seconds)}
        for size, seconds in times.items()
    )
    return Choice(LossHead(chunked, best), f"{best} tokens at once: more are hardly faster", measured)


def _is_small(load: Load) -> bool:
    return load.words * load.tokens * load.dtype.itemsize <= _SMALL_BYTES


def _longest(load: Load) -> int:
    """Return the most tokens whose logits may exist at one time."""
    room = _CHUNK_BYTES.get(load.device.type, _CHUNK_BYTES_ON_GPU)
    if load.device.type == "cuda":
        room = min(room, torch.cuda.get_device_properties(load.device).total_memory // 16)
    return min(load.tokens, room // (load.words * load.dtype.itemsize))


def _micro(seconds: float) -> float:
    return round(seconds * 1e6, 2)
