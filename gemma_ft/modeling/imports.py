"""What a run imports, and how: nothing that only other runs use, and with the garbage collector at rest."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gemma_ft.config.schema import QuantizationMethod, RunConfig

_TRACKERS = ("wandb", "comet_ml")
"""Imported by transformers 5.23 wherever they are installed, for a TRL that may report to them."""
_NATIVE_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
"""Optimizers that are certain not to be bitsandbytes'."""
_OBJECTS = 50_000
"""New objects after which garbage is looked for while libraries load, in the place of 700."""


@contextmanager
def unused_left_out(config: RunConfig) -> Iterator[None]:
    """Have libraries find the packages missing that this run does not use, as if they were not installed.

    transformers imports trackers and PEFT 0.21 imports bitsandbytes wherever they are; neither has a switch.
    Only for a process that makes one run: libraries remember what they have not found. Needless once both
    import what they have been asked for.
    """
    absent = [name for name in unused_packages(config) if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]


def unused_packages(config: RunConfig) -> list[str]:
    """Name what libraries would import in this run although nothing in it is theirs."""
    names = [name for name in _TRACKERS if config.tracking.method.value != name]
    if not _uses_bitsandbytes(config):
        names.append("bitsandbytes")
    return names


def _uses_bitsandbytes(config: RunConfig) -> bool:
    quantised = {method.value for method in QuantizationMethod if method is not QuantizationMethod.none}
    return (
        config.quantization.method is not QuantizationMethod.none
        or config.trainer.optim not in _NATIVE_OPTIMIZERS
        or not quantised.isdisjoint(config.export.formats)
    )


def bring_back(package: str) -> None:
    """Have a package found after all: what was fetched asks for it, whatever the configuration says."""
    if sys.modules.get(package, package) is None:
        del sys.modules[package]


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Look for garbage less often while libraries load, which leave next to none and a million objects.

    Python looks through all objects again and again as their number grows: a fifth of the start.
    """
    before = gc.get_threshold()
    gc.set_threshold(max(_OBJECTS, before[0]) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@seldom_collected()
def load_training_libraries() -> None:
    """Import what a trainer is built from.

    bitsandbytes 0.50 hands functions to torch.compile as it is imported, which loads a compiler. On CPUs and
    CUDA it has kernels of its own in their place, so there they stay as they are. Needless once it compiles
    what is called.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator()
    compiles = accelerator is not None and accelerator.type != "cuda"
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    if not compiles:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        with suppress(ImportError):
            import bitsandbytes  # noqa: F401
    finally:
        os.environ.pop("TORCHDYNAMO_DISABLE", None)
        if before is not None:
            os.environ["TORCHDYNAMO_DISABLE"] = before
    import peft  # noqa: F401
    from trl import SFTTrainer  # noqa: F401
