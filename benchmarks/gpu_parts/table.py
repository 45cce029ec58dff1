"""The parts, in the order of their worth."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gpu_parts.training import Place, Training, resume


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One thing to measure, in a process of its own."""

    says: str
    seconds: int
    """What it takes with a 7B on an H200, guessed; below so much time left it is not begun."""
    measure: Callable[[Place, str], dict[str, Any]]
    largest: str | None = None
    """Largest base it is meant for: a larger --shape is lowered to it. None: it needs no base."""
    gpus: int = 1
    """GPUs that it needs."""
    launched: bool = False
    """Whether torchrun starts it, one process a GPU."""
    one_gpu: bool = True
    """Whether its process, where there is one, sees one GPU of those in sight."""


def _from(module: str, function: str) -> Callable[[Place, str], dict[str, Any]]:
    """Name a function of a module that imports torch, which the table does without."""

    def call(place: Place, name: str) -> dict[str, Any]:
        found: dict[str, Any] = getattr(import_module(f"gpu_parts.{module}"), function)(place, name)
        return found

    return call


_FEW = ("trainer.global_batch_size=4",)
_LORA = Training(recipe="ultrachat_lora", words=_FEW)
_FULL = Training(recipe="ultrachat_full", words=_FEW)
_QLORA = Training(recipe="ultrachat_qlora")
_PAGED = (*_FEW, "trainer.optim=paged_adamw_8bit")


def _on(training: Training, parallel: str) -> Training:
    """Train on all GPUs of a machine, up to eight."""
    return Training(recipe=training.recipe, words=("trainer.global_batch_size=8", f"parallel={parallel}"))


PARTS = {
    "quantising": Part(
        says="nf4 and int8 of a CPU against the device's, bit for bit",
        seconds=45,
        measure=_from("quantising", "quantising"),
    ),
    "qlora": Part(says="recipe ultrachat_qlora", seconds=50, measure=_QLORA, largest="7b"),
    "lora": Part(says="recipe ultrachat_lora", seconds=50, measure=_LORA, largest="7b"),
    "full": Part(says="recipe ultrachat_full on a 2B", seconds=45, measure=_FULL, largest="2b"),
    "int8": Part(
        says="recipe quotes_int8_lora",
        seconds=50,
        measure=Training(recipe="quotes_int8_lora", rows="quotes"),
        largest="7b",
    ),
    "fp16": Part(
        says="recipe english_quotes_colab, its device said to be a T4",
        seconds=50,
        measure=Training(recipe="english_quotes_colab", rows="quotes", as_on_a_t4=True),
        largest="7b",
    ),
    "loss_head": Part(
        says="head and loss: ours, transformers', TRL's, torch's",
        seconds=25,
        measure=_from("kernels", "loss_head"),
    ),
    "attention": Part(
        says="attention: sdpa, eager, FlashAttention 2", seconds=25, measure=_from("kernels", "attention")
    ),
    "resume": Part(says="runs that are cut and resumed, the bundled model", seconds=60, measure=resume),
    "ceilings": Part(says="a matrix product and a copy", seconds=15, measure=_from("kernels", "ceilings")),
    "tests": Part(says="pytest tests/gpu", seconds=180, measure=_from("suite", "tests"), one_gpu=False),
    "offload": Part(
        says="recipe ultrachat_lora, parallel=fsdp_offload",
        seconds=90,
        measure=_on(_LORA, "fsdp_offload"),
        largest="7b",
        launched=True,
    ),
    "full_paged": Part(
        says="recipe ultrachat_full with paged 8-bit Adam",
        seconds=80,
        measure=Training(recipe="ultrachat_full", words=_PAGED),
        largest="7b",
    ),
    "ddp_lora": Part(
        says="recipe ultrachat_lora, parallel=ddp",
        seconds=60,
        measure=_on(_LORA, "ddp"),
        largest="7b",
        gpus=2,
        launched=True,
    ),
    **{
        f"fsdp_{kind}": Part(
            says=f"recipe {training.recipe}, parallel=fsdp",
            seconds=90,
            measure=_on(training, "fsdp"),
            largest="7b",
            gpus=2,
            launched=True,
        )
        for kind, training in (("lora", _LORA), ("qlora", _QLORA), ("full", _FULL))
    },
}
