"""What a sharded run saves to go on: each process its own shards, read back by any number of processes.

`weights/` and `optimizer/` hold safetensors that torch.distributed.checkpoint writes and shares out anew;
optimizer.json holds what is no tensor. Frozen weights are the base's and are not saved.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.fsdp_utils import fsdp2_canonicalize_names
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from gemma_ft.training.checkpoints import SHARDED_OPTIMIZER, SHARDED_WEIGHTS

_NUMBERS = "optimizer.json"
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
_STATE = StateDictOptions(ignore_frozen_params=True)


def save_shards(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path, *, writes: bool
) -> None:
    """Write the trained weights and the optimizer; every process must call it.

    Args:
        model: A sharded one.
        optimizer: Its optimizer.
        folder: Of the checkpoint.
        writes: Whether this process writes what is the same in all of them.
    """
    _write(_trained_weights(model), folder / SHARDED_WEIGHTS)
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_STATE)
    tensors, numbers = _split(state["state"])
    _write(tensors, folder / SHARDED_OPTIMIZER)
    if writes:
        rest = {"state": numbers, "param_groups": state["param_groups"]}
        (folder / _NUMBERS).write_text(json.dumps(rest, default=_plain) + "\n", encoding="utf-8")


def load_weights(model: torch.nn.Module, folder: Path) -> None:
    """Give a sharded model the trained weights of a checkpoint; every process must call it."""
    weights = _trained_weights(model)
    _read(weights, folder / SHARDED_WEIGHTS)
    set_model_state_dict(model, weights, options=_TRAINED)


def load_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Give an optimizer of a sharded model the state of a checkpoint; every process must call it."""
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_STATE)
    saved = json.loads((folder / _NUMBERS).read_text(encoding="utf-8"))
    tensors, numbers = _split(state["state"])
    _read(tensors, folder / SHARDED_OPTIMIZER)  # into the tensors of the state itself
    for name, values in numbers.items():
        for key, value in values.items():
            found = saved["state"][name][key]
            state["state"][name][key] = value.fill_(found) if isinstance(value, torch.Tensor) else found
    state["param_groups"] = saved["param_groups"]
    set_optimizer_state_dict(model, optimizer, state, options=_STATE)


def gather_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the trained weights whole, in the memory of the first process; every process must call it.

    Returns:
        Names as in an unsharded model; nothing in the other processes.
    """
    options = StateDictOptions(ignore_frozen_params=True, full_state_dict=True, cpu_offload=True)
    return _only_trained(get_model_state_dict(model, options=options), model)


def _trained_weights(model: torch.nn.Module) -> dict[str, Any]:
    """Return the trained weights as they lie on this process."""
    return _only_trained(get_model_state_dict(model, options=_TRAINED), model)


def _only_trained(weights: dict[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    """Leave out the second name of a tied weight, under which torch returns it even where it is frozen."""
    trained = fsdp2_canonicalize_names(
        {name: value for name, value in model.named_parameters() if value.requires_grad}
    )
    return {name: value for name, value in weights.items() if name in trained}


def _split(state: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Part an optimizer's state into tensors, by parameter and name, and numbers, of which each has few."""
    tensors: dict[str, Any] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for name, values in state.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and value.ndim:
                tensors[f"{name}.{key}"] = value
            else:
                numbers.setdefault(name, {})[key] = value
    return tensors, numbers


def _plain(value: Any) -> Any:
    return value.item()


def _write(tensors: dict[str, Any], folder: Path) -> None:
    if tensors:  # plain SGD has none
        with _in_its_own_words():
            save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _read(tensors: dict[str, Any], folder: Path) -> None:
    if tensors:
        with _in_its_own_words():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))


@contextmanager
def _in_its_own_words() -> Iterator[None]:
    """Raise what has failed in a process, which torch wraps into something that is no Exception."""
    try:
        yield
    except CheckpointException as error:
        failure, _ = error.failures[min(error.failures)]
        raise failure from None
