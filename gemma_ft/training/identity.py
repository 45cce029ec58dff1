"""What makes two configurations the same run."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemma_ft.config.optimizers import BY_HELD_OUT_LOSS
from gemma_ft.config.schema import RunConfig

NOT_IDENTITY = (
    "name",
    "output_dir",
    "export",
    "tracking",
    "parallel.cpu_offload",
    "parallel.dp_shard_size",
    "trainer.logging_steps",
    "trainer.max_hours",
    "trainer.save_steps",
    "trainer.save_total_limit",
    "trainer.sample_prompt",
    "trainer.sample_tokens",
    "trainer.extra.dataloader_multiprocessing_context",
    "trainer.extra.dataloader_num_workers",
    "trainer.extra.dataloader_persistent_workers",
    "trainer.extra.dataloader_prefetch_factor",
    "trainer.extra.ddp_timeout",
    "trainer.extra.include_num_input_tokens_seen",
    "trainer.extra.torch_empty_cache_steps",
)
"""Keys that do not change the trained weights, and so may change while a run goes on: what comes after
training, what is told of it, how often it is saved, how fast rows are read, and how a sharded model lies on
the machines, of which there may be more or fewer.

The keys of `_EVALUATION` are among them where no evaluation decides anything. `trainer.micro_batch_size`,
`parallel` and `model.attention` are not: the same sums in another order round otherwise, and dropout draws
other masks. `trainer.gradient_checkpointing` gives the same bits on a CPU, but no other device promises it.
"""

STEPS = ("trainer.max_steps", "trainer.num_train_epochs")
"""Keys that say how long a run trains: more of it may be asked for."""

_EVALUATION = ("trainer.eval_steps", "trainer.extra.eval_delay")


def identity(config: RunConfig) -> dict[str, Any]:
    """Return every key that changes the trained weights, with its value."""
    free = set(NOT_IDENTITY)
    trainer = config.trainer
    if not trainer.load_best_model_at_end and trainer.lr_scheduler_type not in BY_HELD_OUT_LOSS:
        free.update(_EVALUATION)
    flat = _flatten(asdict(config))
    return {
        key: value
        for key, value in flat.items()
        if key not in free and key.partition(".")[0] not in free and value != {}
    }


def differing_keys(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the keys that make two configurations two runs, with the old and the new value.

    Two ways to write the path of one folder are no difference.
    """
    before, after = identity(old), identity(new)
    values = {key: (before.get(key), after.get(key)) for key in sorted(before.keys() | after.keys())}
    return {key: (was, now) for key, (was, now) in values.items() if _plain(key, was) != _plain(key, now)}


def _plain(key: str, value: object) -> object:
    if key.endswith(".path") and isinstance(value, str) and value:
        path = Path(value).expanduser()
        return str(path.resolve()) if path.exists() else value
    return value


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
