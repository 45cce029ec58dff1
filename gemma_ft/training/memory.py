"""Out of memory: what was asked for, what was free, and what saves most in this run."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from gemma_ft.config.schema import AdapterMethod, ParallelMethod, QuantizationMethod, RunConfig
from gemma_ft.errors import GemmaFTError, TrainingError
from gemma_ft.runs import RunFolder, Stage
from gemma_ft.training.activations import Sizes

_GIB = 2**30
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": _GIB, "TiB": 2**40, "PiB": 2**50}
_SIZE = r"([\d.]+) (bytes|[KMGTP]iB)"

_RAN_OUT = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|_ALLOC_FAILED"
    r"|unable to allocate [\d.]+ .iB|malloc of size \d+ failed",
    re.IGNORECASE,
)
_ASKED = re.compile(rf"(?:tried to allocate|unable to allocate) {_SIZE}|malloc of size (\d+)", re.IGNORECASE)
_TORCHS_OWN = "OutOfMemoryError"
"""A GPU's, whatever its allocator says; by its name, since what fails without torch need not import it."""
_ON_GPU = re.compile(r"cuda|cublas|cudnn|cusolver|nccl|hip ", re.IGNORECASE)
_FREE = re.compile(rf"capacit?y of {_SIZE} of which {_SIZE} is free")
_UNUSED = re.compile(rf"{_SIZE} is reserved by PyTorch but unallocated")

_NF4_BYTES, _INT8_BYTES = 0.55, 1.0
"""Bytes a weight: 4 bits and a scale for each 64, or 8 bits."""
_SHORTEST = 256
"""Halving trainer.max_length below it saves next to nothing."""


def explain_out_of_memory(error: BaseException, config: RunConfig, run: RunFolder) -> TrainingError | None:
    """Say it in one line if an error means that memory has run out, on a GPU or beside it; else None."""
    text = str(error)
    on_gpu = bool(_ON_GPU.search(text)) or type(error).__name__ == _TORCHS_OWN
    ran_out = isinstance(error, MemoryError) or type(error).__name__ == _TORCHS_OWN or _RAN_OUT.search(text)
    if isinstance(error, GemmaFTError) or not ran_out:
        return None
    status = run.read_status()
    stage = Stage.training if status is None else status.stage
    place = "GPU memory" if on_gpu else "memory"
    line = f"{place} ran out in the stage {stage}: {_amounts(text, on_gpu=on_gpu)}."
    if stage not in (Stage.data, Stage.training):
        return TrainingError(f"{line} Free some, then start the same line again: what is trained stays.")
    if (unused := _size(_UNUSED.search(text))) and unused >= (_size(_ASKED.search(text)) or _GIB):
        line += " Try PYTORCH_ALLOC_CONF=expandable_segments:True first, since much lies in pieces."
    saving = [] if stage is Stage.data else find_savings(config, on_gpu=on_gpu)
    if not saving:
        return TrainingError(f"{line} Free some, or use a smaller model or a larger machine.")
    other = f" It makes another run: add name={config.name}-2." if run.steps() else ""
    return TrainingError(f"{line} What saves most here: {', '.join(saving)}.{other}")


def _amounts(text: str, *, on_gpu: bool) -> str:
    asked = _size(_ASKED.search(text))
    said = f"{_say(asked)} asked for" if asked else "how much was asked for is not known"
    if found := _FREE.search(text):
        total, free = float(found[1]) * _UNITS[found[2]], float(found[3]) * _UNITS[found[4]]
        return f"{said}, {_say(free)} of {_say(total)} free"
    free, total = _look(on_gpu=on_gpu)
    if not total:
        return said
    limited = ", which a limit of this process keeps from it" if asked and free > asked else ""
    return f"{said}, {_say(free)} of {_say(total)} free{limited}"


def _say(size: float) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"


def _size(found: re.Match[str] | None) -> float | None:
    if found is None:
        return None
    number, unit, *plain = found.groups()
    return float(number) * _UNITS[unit] if number else float(plain[0])


def _look(*, on_gpu: bool) -> tuple[float, float]:
    """Ask the device for its free and total bytes; zeros where it does not answer."""
    with suppress(Exception):  # a GPU that has failed may not answer, and this is a courtesy
        if on_gpu:
            import torch

            return torch.cuda.mem_get_info()
        import psutil  # type: ignore[import-untyped]

        memory = psutil.virtual_memory()
        return memory.available, memory.total
    return 0.0, 0.0


def find_savings(config: RunConfig, *, on_gpu: bool) -> list[str]:
    """List the settings that lower the memory of a run, what saves most first.

    The order is a rough estimate from the model's sizes; none is promised to be enough.

    Args:
        config: The run.
        on_gpu: Whether it is a GPU's memory that is short.
    """
    sizes = _read_sizes(config)
    savings = [*_savings(config, sizes, on_gpu=on_gpu), *(_shard_savings(config, sizes) if on_gpu else ())]
    savings.sort(reverse=True)
    return [words for saved, words in savings if saved > 0]


def _savings(config: RunConfig, sizes: Sizes, *, on_gpu: bool) -> Iterator[tuple[float, str]]:
    trainer, method = config.trainer, config.quantization.method
    batch, checkpointed = trainer.micro_batch_size, trainer.may_recompute
    held = sizes.activations(batch * trainer.max_length, checkpointed=checkpointed)
    yield held * (1 - 1 / batch), "trainer.micro_batch_size=1"
    if not checkpointed:
        tokens = batch * trainer.max_length
        yield held - sizes.activations(tokens, checkpointed=True), "trainer.gradient_checkpointing=true"
    if trainer.max_length >= 2 * _SHORTEST:
        yield held / 2, f"trainer.max_length={trainer.max_length // 2}"
    if config.adapter.method is AdapterMethod.none:
        # fp32 weights, gradients and two moments, against weights in 16 bits
        yield (16 - 2) * sizes.weights, "adapter=lora"
        cut = config.parallel.method is ParallelMethod.fsdp
        if "8bit" not in trainer.optim and "adam" in trainer.optim and not cut:
            yield 6 * sizes.weights, f"trainer.optim={'paged_adamw_8bit' if on_gpu else 'adamw_8bit'}"
    elif method is not QuantizationMethod.nf4:
        held_in = _INT8_BYTES if method is QuantizationMethod.int8 else 2.0
        yield (held_in - _NF4_BYTES) * sizes.linear, "quantization=nf4"


def _shard_savings(config: RunConfig, sizes: Sizes) -> Iterator[tuple[float, str]]:
    """Count what shards would save on each GPU, and what is saved where they lie in the machine's memory."""
    processes, parallel = int(os.environ.get("WORLD_SIZE", "1")), config.parallel
    frozen = _NF4_BYTES if config.quantization.method is QuantizationMethod.nf4 else 2.0
    held = sizes.weights * (16 if config.adapter.method is AdapterMethod.none else frozen)
    if parallel.method is ParallelMethod.fsdp:
        yield 0.0 if parallel.cpu_offload else held / processes, "parallel=fsdp_offload"
    elif config.quantization.method is not QuantizationMethod.int8:
        yield held * (1 - 1 / processes), "parallel=fsdp"


def _read_sizes(config: RunConfig) -> Sizes:
    """Read a model's sizes from its config.json; where it cannot be had, take those of a 2B."""
    found: dict[str, Any] = {}
    with suppress(GemmaFTError, OSError):
        from gemma_ft.modeling.checkpoint import find_checkpoint

        found = find_checkpoint(config.model).config
    return Sizes.read(found)
