"""Every key of a run: its type, whether a value fits it, and the key that someone meant."""

import difflib
import types
from collections.abc import Iterable
from dataclasses import is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from gemma_ft.config.catalog import GROUPS, RECIPE
from gemma_ft.config.schema import RunConfig

EXTRA = "trainer.extra"
"""The one open key; whatever stands below it goes to SFTConfig."""

_RENAMED = {
    "lr": "trainer.learning_rate",
    "batch_size": "trainer.global_batch_size",
    "train_batch_size": "trainer.global_batch_size",
    "per_device_train_batch_size": "trainer.micro_batch_size",
    "per_device_batch_size": "trainer.micro_batch_size",
    "micro_batch": "trainer.micro_batch_size",
    "epochs": "trainer.num_train_epochs",
    "num_epochs": "trainer.num_train_epochs",
    "steps": "trainer.max_steps",
    "max_seq_length": "trainer.max_length",
    "max_seq_len": "trainer.max_length",
    "seq_length": "trainer.max_length",
    "seq_len": "trainer.max_length",
    "block_size": "trainer.max_length",
    "optimizer": "trainer.optim",
    "scheduler": "trainer.lr_scheduler_type",
    "lr_scheduler": "trainer.lr_scheduler_type",
    "warmup": "trainer.warmup_steps",
    "warmup_ratio": "trainer.warmup_steps",
    "grad_clip": "trainer.max_grad_norm",
    "wd": "trainer.weight_decay",
    "sample_packing": "trainer.packing",
    "r": "adapter.rank",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "target_modules": "adapter.targets",
    "lora_target_modules": "adapter.targets",
    "model_name_or_path": "model.path",
    "model_name": "model.path",
    "model_id": "model.path",
    "base_model": "model.path",
    "torch_dtype": "model.dtype",
    "precision": "model.dtype",
    "attn_implementation": "model.attention",
    "dataset_name": "dataset.path",
    "dataset_path": "dataset.path",
    "dataset_config_name": "dataset.config",
    "data": "dataset.path",
    "data_path": "dataset.path",
    "train_file": "dataset.path",
    "val_size": "dataset.eval_fraction",
    "max_train_samples": "dataset.max_rows",
    "max_samples": "dataset.max_rows",
    "run_name": "name",
    "output": "output_dir",
    "out": "output_dir",
    "out_dir": "output_dir",
}
"""Names of the same thing elsewhere; the value can stay as it is."""

_DERIVED = "It is derived: set trainer.global_batch_size and trainer.micro_batch_size."
_INSTEAD = {
    "load_in_4bit": "Type quantization=nf4.",
    "load_in_8bit": "Type quantization=int8.",
    "bits": "Type quantization=nf4 (4 bits), int8 or none.",
    "quant": "Type quantization=nf4, int8 or none.",
    "lora": "Type adapter=lora.",
    "peft": "Type adapter=lora.",
    "use_peft": "Type adapter=lora.",
    "use_lora": "Type adapter=lora.",
    "use_dora": "Type adapter=dora.",
    "use_rslora": "Type adapter=rslora.",
    "bf16": "Type model.dtype=bf16.",
    "fp16": "Type model.dtype=fp16.",
    "wandb": "Type tracking=wandb.",
    "report_to": "Type tracking=wandb, or tracking=none.",
    "logger": "Type tracking=wandb, or tracking=none.",
    "gradient_accumulation_steps": _DERIVED,
    "grad_accum": _DERIVED,
    "resume": "The same line again continues an unfinished run.",
    "resume_from_checkpoint": "The same line again continues an unfinished run.",
    "overwrite_output_dir": "Type --overwrite.",
    "trust_remote_code": "A checkpoint's own code is never run.",
}
"""What to do where nothing of that name can be set."""


_BOOLEANS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


@cache
def key_types() -> dict[str, Any]:
    """Return the type of each key that holds a value, by its full name."""
    return dict(_walk(RunConfig, ""))


def _walk(section: type, prefix: str) -> Iterable[tuple[str, Any]]:
    for name, annotation in get_type_hints(section).items():
        if is_dataclass(annotation):
            yield from _walk(annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, annotation


def is_optional(annotation: Any) -> bool:
    """Tell whether a key may be null."""
    return get_origin(annotation) in (Union, types.UnionType) and type(None) in get_args(annotation)


def plain_type(annotation: Any) -> Any:
    """Return the type of a key without its null."""
    return (
        next(a for a in get_args(annotation) if a is not type(None))
        if is_optional(annotation)
        else annotation
    )


def type_words(annotation: Any) -> str:
    """Say in words what a key takes."""
    kind = plain_type(annotation)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        words = "|".join(kind)
    elif get_origin(kind) is tuple:
        words = "list"
    elif get_origin(kind) is dict:
        words = "mapping"
    else:
        words = {str: "text", int: "integer", float: "number", bool: "true|false"}[kind]
    return f"{words} or null" if is_optional(annotation) else words


def fit(key: str, value: Any) -> Any:
    """Bring a value into the form its key takes.

    Raises:
        ValueError: It does not fit; the message goes on from `key=value`.
    """
    annotation = key_types()[key]
    kind = plain_type(annotation)
    if isinstance(value, str) and "${" in value:
        return value  # resolved later, together with the other keys
    if value is None or (is_optional(annotation) and str(value).lower() == "none"):
        if is_optional(annotation):
            return None
        raise ValueError(f"cannot be switched off. Give {_wanted(kind)}, or leave it out for the default.")
    try:
        return _converted(kind, value)
    except (KeyError, OverflowError, TypeError, ValueError):
        close = difflib.get_close_matches(str(value), list(kind), 1) if _is_choice(kind) else []
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"must be {_wanted(kind)}.{hint}") from None


def _is_choice(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, StrEnum)


def _wanted(kind: Any) -> str:
    if _is_choice(kind):
        return "one of " + ", ".join(kind)
    if get_origin(kind) is tuple:
        return "a list like [q_proj,v_proj]"
    if get_origin(kind) is dict:
        return "a mapping like {adam_beta2: 0.95}"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]


def _converted(kind: Any, value: Any) -> Any:
    if _is_choice(kind):
        return kind(value).value
    if get_origin(kind) is tuple:
        return [
            _converted(str, item) for item in ([value] if isinstance(value, str) else _of(value, list, tuple))
        ]
    if get_origin(kind) is dict:
        return _of(value, dict)
    if kind is bool:
        return _BOOLEANS[str(value).lower()]
    if kind is str:
        return value if isinstance(value, str) else str(_of(value, int, float))
    if isinstance(value, bool):
        raise TypeError(value)
    number = float(_of(value, int, float, str))
    if kind is float:
        return number
    if number != int(number):
        raise ValueError(value)
    return int(number)


def _of(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise TypeError(value)
    return value


def advice(key: str, value: str | None = None) -> str:
    """Say what to do about a key that does not exist.

    Args:
        key: The key as it was typed.
        value: What was typed after `=`; None where no line to type is wanted, as in a file.
    """
    leaf = key.rsplit(".", 1)[-1].rsplit("/", 1)[-1].lower().replace("-", "_").lstrip("-+~")
    if leaf in _INSTEAD and not _same_leaf(leaf):
        return _INSTEAD[leaf]
    found = _same_leaf(leaf) or ([_RENAMED[leaf]] if leaf in _RENAMED else _nearest(key, leaf))
    if not found:
        return "`python -m gemma_ft train --help` lists every key."
    typed = [name if value is None else f"{name}={value}" for name in found]
    verb = "Write" if value is None else "Type"
    return f"{verb} {' or '.join(typed)}."


def _same_leaf(leaf: str) -> list[str]:
    return [key for key in key_types() if key.rsplit(".", 1)[-1] == leaf]


def _nearest(key: str, leaf: str) -> list[str]:
    names = [*key_types(), *GROUPS, RECIPE] if "." not in key else list(key_types())
    close = difflib.get_close_matches(key, names, 1, cutoff=0.65)
    if close:
        return close
    leaves = {name.rsplit(".", 1)[-1]: name for name in names}
    near = difflib.get_close_matches(leaf, [*leaves, *_RENAMED], 1, cutoff=0.65)
    return [leaves.get(near[0]) or _RENAMED[near[0]]] if near else []
