"""Fine-tune Gemma: a recipe becomes a merged checkpoint.

The same verbs as on the command line, imported when first used:

    import gemma_ft
    config = gemma_ft.compose("recipe=quickstart", "trainer.max_steps=20")
    run = gemma_ft.train(config)
    gemma_ft.generate(run, "What is AI?")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma_ft.config.compose import compose
    from gemma_ft.config.schema import RunConfig
    from gemma_ft.evaluation.generate import generate
    from gemma_ft.exporting.run import export
    from gemma_ft.inspection.survey import inspect
    from gemma_ft.training.run import train

__version__ = "0.1.0"
__all__ = ["RunConfig", "__version__", "compose", "export", "generate", "inspect", "train"]

_HOMES = {
    "RunConfig": "gemma_ft.config.schema",
    "compose": "gemma_ft.config.compose",
    "export": "gemma_ft.exporting.run",
    "generate": "gemma_ft.evaluation.generate",
    "inspect": "gemma_ft.inspection.survey",
    "train": "gemma_ft.training.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'gemma_ft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
