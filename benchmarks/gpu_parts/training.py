"""Parts that train: the recipes of this project through its own code, on bases of full size."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gpu_parts.bases import build_base, write_rows

WARM_UP, STEPS, SECONDS = 3, 8, 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a part runs."""

    folder: Path
    """Holds bases, rows and runs; the parts after this one find them there."""
    shape: str
    """Shape of the base: tiny, 2b or 7b."""
    device: str
    """cuda or cpu."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A run to measure."""

    recipe: str
    rows: str = "chats"
    words: tuple[str, ...] = ()
    """What differs from the recipe, on the command line."""
    as_on_a_t4: bool = False
    """Whether the policy is told that the device has no bf16 and no FlashAttention."""

    def __call__(self, place: Place, name: str) -> dict[str, Any]:
        """Run it, and return its figures."""
        return measure(self, place, name)


def command(training: Training, place: Place, name: str) -> list[str]:
    """Return the words of the run, as they stand after `python -m gemma_ft`."""
    short = ["trainer.max_length=128"] if place.shape == "tiny" else []
    return [
        f"recipe={training.recipe}",
        f"name={name}",
        f"output_dir={place.folder / 'runs' / name}",
        f"model.path={build_base(place.shape, place.folder)}",
        "dataset=local",
        f"dataset.path={write_rows(place.folder)[training.rows]}",
        "dataset.eval_fraction=0",
        "export=none",
        "trainer.max_steps=1000",
        "trainer.save_steps=100000",
        "trainer.logging_steps=1",
        "trainer.sample_prompt=null",
        *training.words,
        *short,
    ]


def measure(
    training: Training, place: Place, name: str, *, warm_up: int = WARM_UP, steps: int = STEPS
) -> dict[str, Any]:
    """Train until enough steps are measured, and return what they took.

    Raises:
        GemmaFTError: The run cannot work here.
    """
    import gemma_ft
    from gpu_parts import account
    from gpu_parts.meter import Allocator, EnoughMeasuredError, Meter, metered

    words = command(training, place, name)
    seconds = None if "WORLD_SIZE" in os.environ else SECONDS  # processes must stop at the same step
    meter = Meter(Allocator(place.device), warm_up=warm_up, steps=steps, seconds=seconds)
    device = as_on_a_t4() if training.as_on_a_t4 else contextlib.nullcontext()
    with device, metered(meter), contextlib.suppress(EnoughMeasuredError):
        gemma_ft.train(gemma_ft.compose(*words), overwrite=True)
    trainer = meter.trainer
    dtype = str(trainer.accelerator.mixed_precision)
    if training.as_on_a_t4 and place.device == "cuda" and dtype != "fp16":
        raise RuntimeError(f"the policy takes {dtype} on what it is told to be a T4")
    scales = [step.scale for step in meter.steps if step.scale is not None]
    return {
        "words": [word.replace(str(place.folder), "FOLDER") for word in words],
        **account.speed(meter, account.device_name(place.device)),
        "memory_bytes": account.memory(meter),
        "processes": trainer.accelerator.num_processes,
        "dtype": dtype,
        "attention": trainer.model.config._attn_implementation,
        "losses": [step.loss for step in meter.steps],
        "trained_in": sorted({str(v.dtype) for v in trainer.model.parameters() if v.requires_grad}),
        "loss_scale": {"last": scales[-1], "skipped": sum(s.skipped for s in meter.steps)}
        if scales
        else None,
    }


@contextlib.contextmanager
def as_on_a_t4() -> Iterator[None]:
    """Tell the precision policy that this device is a T4: a GPU without bf16 and without FlashAttention."""
    from gemma_ft.modeling import precision

    device = replace(precision.read_device(), bf16=False, flash_attention=False, capability=(7, 5))
    with patch.object(precision, "read_device", lambda: device):
        yield


RESUMED = {
    "full": Training(recipe="quickstart", words=("quantization=none", "adapter=none")),
    "lora": Training(recipe="quickstart", words=("quantization=none",)),
    "nf4": Training(recipe="quickstart"),
    "int8": Training(recipe="quickstart", words=("quantization=int8",)),
    "nf4 in fp16": Training(recipe="quickstart", as_on_a_t4=True),
}
"""What is cut and resumed, with the bundled model."""


def resume(place: Place, name: str) -> dict[str, Any]:
    """Compare a run that was cut and resumed, and one that was simply repeated, with the run itself.

    Where the repeated one differs as well, the device does not give the same sums twice, and the resume is
    not to blame.
    """
    tiny = replace(place, shape="tiny")
    return {kind: _resume_one(training, tiny, f"{name}-{kind}") for kind, training in RESUMED.items()}


def _resume_one(training: Training, place: Place, name: str) -> dict[str, Any]:
    from gpu_parts.meter import Allocator, EnoughMeasuredError, Meter, metered

    end = ("trainer.max_steps=6", "trainer.save_steps=2", "trainer.gradient_checkpointing=true")
    run = replace(training, words=(*training.words, *end))
    device = as_on_a_t4 if training.as_on_a_t4 else contextlib.nullcontext
    name = name.replace(" ", "-")
    with device():
        once, again = (_train(command(run, place, f"{name}-{n}")) for n in ("once", "again"))
        words = command(run, place, f"{name}-cut")
        cut = Meter(Allocator(place.device), warm_up=0, steps=3, seconds=None)
        with metered(cut), contextlib.suppress(EnoughMeasuredError):
            _train(words)
        resumed = _train(words, overwrite=False)
    return {"steps": 6, "cut_after": 3, "repeated": _differ(once, again), "resumed": _differ(once, resumed)}


def _train(words: list[str], *, overwrite: bool = True) -> Path:
    import gemma_ft

    folder: Path = gemma_ft.train(gemma_ft.compose(*words), overwrite=overwrite).trained
    return folder


def _differ(one: Path, other: Path) -> dict[str, Any]:
    """Count the values in which two trained folders differ, and the largest difference."""
    from safetensors.torch import load_file

    a, b = load_file(one / _weights(one)), load_file(other / _weights(other))
    gaps = [(a[name].float() - b[name].float()).abs() for name in a]
    return {
        "values": sum(gap.numel() for gap in gaps),
        "differ": sum(int(gap.count_nonzero()) for gap in gaps),
        "largest": max(float(gap.max()) for gap in gaps),
    }


def _weights(folder: Path) -> str:
    (file,) = folder.glob("*.safetensors")
    return file.name
