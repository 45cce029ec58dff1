"""Check a whole run: what each section says of itself, and what only several keys together show."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from gemma_ft.config.model_files import find_model_problems, look_at_model
from gemma_ft.config.optimizers import find_optimizer_problems
from gemma_ft.config.schema import AdapterMethod, Attention, QuantizationMethod, RunConfig
from gemma_ft.config.secret_values import find_secret_problems
from gemma_ft.config.sharding import find_sharding_problems
from gemma_ft.config.types import find_type_problems
from gemma_ft.errors import ConfigError
from gemma_ft.secrets import redact

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAY_BE_EMPTY = ("trainer.sample_prompt", "dataset.path")


def check_config(config: RunConfig) -> None:
    """Refuse a run that cannot work.

    Raises:
        ConfigError: With every problem, one line each.
    """
    problems = find_problems(config)
    if problems:
        raise ConfigError(*map(redact, problems))


def find_problems(config: RunConfig) -> list[str]:
    """List everything that cannot work, each as `key=value why` and what to do."""
    if mistyped := find_type_problems(config):
        return mistyped  # the other checks build on the types
    found = [problem for section in _sections(config) for problem in section.problems()]
    found += [
        f"{key}= is empty. Give it a value, or leave it out for the default."
        for key, value in _values(config, "")
        if isinstance(value, str) and not value.strip() and key not in _MAY_BE_EMPTY
        if not any(problem.startswith(f"{key}=") for problem in found)
    ]
    found += [
        problem
        for problem in find_secret_problems(config)
        if not any(said.startswith(problem.split()[0]) for said in found)
    ]
    found += (
        find_model_problems(config.model) + _pickle_problems(config) + find_optimizer_problems(config.trainer)
    )
    found += _length_problems(config) + _precision_problems(config) + find_sharding_problems(config)
    return found + _evaluation_problems(config)


def _sections(section: Any) -> Iterator[Any]:
    yield section
    for item in fields(section):
        if is_dataclass(getattr(section, item.name)):
            yield from _sections(getattr(section, item.name))


def _values(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            yield from _values(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def _pickle_problems(config: RunConfig) -> list[str]:
    """Refuse folders whose only weights are pickles, which can run code when they are loaded."""
    found = []
    model = Path(config.model.path).expanduser()
    if model.is_dir() and not any(model.glob("*.safetensors")) and any(_pickles(model)):
        found.append(
            f"model.path={config.model.path} has pickled weights only, which can run code. Where you trust "
            "their makers, load them with AutoModelForCausalLM and give the folder of its save_pretrained."
        )
    adapter = Path(config.adapter.path or "").expanduser()
    if (adapter / "adapter_config.json").is_file() and not (adapter / "adapter_model.safetensors").is_file():
        why = (
            "pickled weights, which can run code"
            if any(_pickles(adapter))
            else "no adapter_model.safetensors"
        )
        found.append(
            f"adapter.path={config.adapter.path} has {why}. Give a folder that PEFT's save_pretrained wrote."
        )
    return found


def _pickles(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix in _PICKLES)


def _length_problems(config: RunConfig) -> list[str]:
    model, length = look_at_model(config.model.path), config.trainer.max_length
    if model.context_length is None or length <= model.context_length:
        return []
    return [
        f"trainer.max_length={length} is above the {model.context_length} positions of "
        f"model.path={config.model.path}. Use at most {model.context_length}."
    ]


def _precision_problems(config: RunConfig) -> list[str]:
    found = []
    quantization, family = config.quantization.method, look_at_model(config.model.path).family
    if quantization is not QuantizationMethod.none and config.adapter.method is AdapterMethod.none:
        found.append(
            f"quantization={quantization} freezes the weights that adapter=none would train. "
            "Add quantization=none for a full fine-tune, or adapter=lora."
        )
    attention = config.model.attention
    if family is not None and attention is not Attention.auto and attention.value not in family.attention:
        found.append(
            f"model.attention={attention} does not compute {family.name}'s attention exactly. "
            f"Use model.attention=auto, or {' or '.join(family.attention)}."
        )
    return found


def _evaluation_problems(config: RunConfig) -> list[str]:
    dataset, trainer = config.dataset, config.trainer
    if dataset.eval_split is not None or dataset.eval_fraction != 0:
        return []
    wanting = {
        "trainer.load_best_model_at_end=true": trainer.load_best_model_at_end,
        f"trainer.early_stopping_patience={trainer.early_stopping_patience}": trainer.early_stopping_patience,
        f"trainer.eval_steps={trainer.eval_steps}": trainer.eval_steps,
    }
    return [
        f"{said} needs held-out rows, but dataset.eval_fraction=0 and there is no dataset.eval_split. "
        "Set one of the two, e.g. dataset.eval_fraction=0.05."
        for said, wanted in wanting.items()
        if wanted
    ]
