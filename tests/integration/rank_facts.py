"""What each process of a run holds and does, for tests to compare: `facts/RUN/rank-N.json`.

Facts are taken where training has ended and every process asks for the trained weights.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit

from gemma_ft.training.sharded_trainer import ShardedTrainer
from gemma_ft.training.sharding import whole

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_written: set[str] = set()
_gather = ShardedTrainer.trained_weights


def _note(event: str, values: tuple[Any, ...]) -> None:
    """Note the files that this process opens to write; checkpoints are written beside their final place."""
    if event == "open" and isinstance(values[0], str) and isinstance(values[2], int) and values[2] & _WRITING:
        _written.add(values[0])


def _local(value: Any) -> torch.Tensor:
    return value.to_local() if hasattr(value, "to_local") else value


def _bytes(values: list[Any]) -> int:
    return sum(value.numel() * value.element_size() for value in values)


def _hash(value: torch.Tensor) -> str:
    content = whole(value.detach()).contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()


def _facts(trainer: Any) -> dict[str, Any]:
    """Tell what lies on this process, and what the whole would be; every process must call it."""
    parameters = dict(trainer.model.named_parameters())
    in_4_bits = [module.weight for module in trainer.model.modules() if isinstance(module, Linear4bit)]
    states = [
        value
        for state in trainer.optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    ]
    kinds = {"all": list(parameters.values()), "4-bit": in_4_bits, "optimizer": states}
    kinds["embedding"] = [value for name, value in parameters.items() if name.endswith("embed_tokens.weight")]
    return {
        "steps": [log["step"] for log in trainer.state.log_history],
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "trained": {name: _hash(value) for name, value in parameters.items() if value.requires_grad},
        "local": {kind: _bytes([_local(value) for value in values]) for kind, values in kinds.items()},
        "whole": {kind: _bytes(values) for kind, values in kinds.items()},
        "written": sorted(_written),
    }


def _tell(trainer: Any) -> Any:
    folder = Path("facts") / trainer.run.path.name
    facts = _facts(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank-{trainer.layout.rank}.json").write_text(json.dumps(facts), encoding="utf-8")
    _written.clear()
    return _gather(trainer)


def take_facts() -> None:
    """Have every run from now on tell its facts."""
    sys.addaudithook(_note)
    ShardedTrainer.trained_weights = _tell
