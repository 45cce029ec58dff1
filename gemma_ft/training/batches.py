"""The rows of a step: the same ones, each once, however many processes take them."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader

from gemma_ft.training.loss.installed import LossTrainer

_ROW_TOKENS = "row_tokens"
"""Tokens of each row of a micro-batch, which packing joins into one."""


class BatchTrainer(LossTrainer):
    """TRL's trainer, which learns from no row twice in an epoch.

    accelerate repeats rows at the end of an epoch, and of an evaluation, to give every process a whole last
    micro-batch.
    """

    data_collator: Callable[[list[Any]], dict[str, Any]]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Load micro-batches that know where their rows end."""
        collate = self.data_collator
        self.data_collator = _Counting(collate)
        try:
            loader: DataLoader[Any] = super().get_train_dataloader()
        finally:
            self.data_collator = collate
        return loader

    def mask_repeats(self, labels_BL: torch.Tensor, row_tokens: list[int]) -> None:
        """Leave rows out of the loss that a process has got only to fill its last micro-batch.

        Args:
            labels_BL: Of this process's micro-batch; packing joins its rows into one.
            row_tokens: Tokens of each of its rows.
        """
        batches, processes = self.accelerator.gradient_state, self.accelerator.num_processes
        if processes == 1 or not batches.end_of_dataloader or self.args.dataloader_drop_last:
            return
        loader = batches.active_dataloader
        if loader.remainder < 0:  # accelerate loses it where a resume skips batches
            loader.remainder = len(loader.dataset) % (processes * len(row_tokens))
        if not loader.remainder:
            return
        own = max(loader.remainder - self.accelerator.process_index * len(row_tokens), 0)
        if len(labels_BL) == len(row_tokens):
            labels_BL[own:] = -100
        else:
            labels_BL[:, sum(row_tokens[:own]) :] = -100

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """Count the learned tokens of a step, without those of rows that are repeated."""
        rows = [batch.pop(_ROW_TOKENS).tolist() for batch in batch_samples]
        if batch_samples:
            self.mask_repeats(batch_samples[-1]["labels"], rows[-1])
        return super()._get_num_items_in_batch(batch_samples, device)


class _Counting:
    """Collate rows, and note the number of tokens of each; a class, so that loading processes can get it."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self._collate(rows)
        batch[_ROW_TOKENS] = torch.tensor([len(row["input_ids"]) for row in rows])
        return batch
