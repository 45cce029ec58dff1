"""TRL's trainer on a model whose weights lie in shards on several processes.

What saves the shards needs a newer torch than all else, and is imported where there are shards.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from gemma_ft.modeling.precision import Precision
from gemma_ft.training.evaluating import EvaluatingTrainer
from gemma_ft.training.layout import Layout, check_connected
from gemma_ft.training.sharding import check_sharded, keep_sums_exact

_SCHEDULE = "schedule.json"


class ShardedTrainer(EvaluatingTrainer):
    """Save and load shards where the layout has them; otherwise TRL's trainer as it is."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, *, layout: Layout, precision: Precision, **arguments: Any) -> None:
        """Build TRL's trainer.

        Args:
            layout: How the processes stand.
            precision: What computes.
            arguments: SFTTrainer's own.

        Raises:
            TrainingError: accelerate has connected the processes otherwise.
        """
        self.layout = layout
        super().__init__(**arguments)
        check_connected(self.accelerator, layout)
        if layout.sharded:
            keep_sums_exact(self.accelerator, precision)

    def shard(self) -> None:
        """Shard the model without training it."""
        model, self.optimizer = self.accelerator.prepare(self.model, self.create_optimizer())
        self.model = self.model_wrapped = model
        register_fsdp_forward_method(model, "generate")
        check_sharded(self.model)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute as in training, where full fine-tunes have fp32 weights; shards are shards again after."""
        with self.accelerator.autocast():
            yield
        if self.layout.sharded:
            for module in self.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def trained_weights(self) -> dict[str, torch.Tensor] | None:
        """Return what was trained, whole, where it lies in shards; every process must call it."""
        if not self.layout.sharded:
            return None
        from gemma_ft.training.sharded_state import gather_weights

        return gather_weights(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as transformers does; the weights of a sharded checkpoint are saved with its optimizer."""
        if not self.layout.sharded:
            super().save_model(output_dir, _internal_call=_internal_call)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.layout.sharded:
            check_sharded(self.model)
        return prepared

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.layout.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from gemma_ft.training.sharded_state import save_shards

        save_shards(self.model, self.optimizer, Path(output_dir), writes=self.args.should_save)
        if self.args.should_save:
            (Path(output_dir) / _SCHEDULE).write_text(json.dumps(self.lr_scheduler.state_dict()) + "\n")

    def _load_from_checkpoint(self, checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self.layout.sharded:
            self._load_weights(checkpoint)
        else:
            super()._load_from_checkpoint(checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.layout.sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        from gemma_ft.training.sharded_state import load_optimizer

        load_optimizer(self.model, self.optimizer, Path(checkpoint))
        self.lr_scheduler.load_state_dict(json.loads((Path(checkpoint) / _SCHEDULE).read_text()))

    def _load_best_model(self) -> None:
        if self.layout.sharded:
            self._load_weights(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _load_weights(self, checkpoint: str) -> None:
        from gemma_ft.training.sharded_state import load_weights

        load_weights(self.model, Path(checkpoint))
