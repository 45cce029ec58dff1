"""A step whose loss or gradients are not finite is never taken."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gemma_ft.data.finding import find_rows
from gemma_ft.data.prepare import PreparedData
from gemma_ft.training.connections import among_others, any_process
from gemma_ft.training.failures import NotFiniteError
from gemma_ft.training.sharding import whole

_SMALLEST_SCALE = 1.0
"""The loss scale below which fp16 no longer gains anything from being scaled down further."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """One micro-batch of the step, with its loss; nothing of it is copied from the device."""

    inputs: dict[str, torch.Tensor]
    loss: torch.Tensor


class StepGuard:
    """Look at every optimizer step before it is taken."""

    def __init__(self, data: PreparedData) -> None:
        """Guard a run over these rows."""
        self._rows = data.rows
        self._seen: list[_Seen] = []

    def saw(self, inputs: Mapping[str, Any], loss: torch.Tensor) -> None:
        """Note a micro-batch and its loss; waits for no device."""
        kept = {
            name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs
        }
        self._seen.append(_Seen(kept, loss.detach()))

    def check(
        self,
        grad_norm: torch.Tensor | float | None,
        parameters: Iterable[torch.Tensor],
        step: int,
        scaler: "torch.amp.GradScaler | None",
    ) -> None:
        """Refuse the step that the micro-batches seen since the last call add up to.

        fp16's loss scale overflows now and then by design: such a step is skipped and the scale is halved.
        There, gradients count only once the scale has fallen so low that it cannot be the cause.

        Args:
            grad_norm: Norm of all gradients; None has it computed.
            parameters: The model's, as `weights_of` yields them; read where there is no norm, and on failure.
            step: The optimizer step that is about to be taken, from 1.
            scaler: fp16's loss scaler.

        Raises:
            NotFiniteError: In all processes alike, with the rows of the batch.
        """
        seen, self._seen = self._seen, []
        if grad_norm is None:
            parameters = list(parameters)
            grad_norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
        norm = torch.as_tensor(grad_norm, dtype=torch.float32, device=seen[0].loss.device)
        losses = torch.stack([batch.loss.float() for batch in seen])
        # the one wait for the device in a step
        finite, norm_finite = torch.stack([losses.isfinite().all(), norm.isfinite()]).tolist()
        bad = not finite or (not norm_finite and not _still_scaling(scaler))
        if any_process(bad):
            raise self._explain(seen, float(norm), parameters, step)

    def _explain(
        self, seen: list[_Seen], norm: float, parameters: Iterable[torch.Tensor], step: int
    ) -> NotFiniteError:
        suspects = [batch for batch in seen if not batch.loss.isfinite()]
        bad_loss = float(suspects[0].loss) if suspects else None
        told = _tell_all((bad_loss, find_rows(self._rows, _rows_of(suspects)), norm))
        losses = [loss for loss, _, _ in told if loss is not None]
        if losses:
            what, rows = f"the loss is {losses[0]:g}", [names for _, names, _ in told]
        else:
            worst = next(norm for _, _, norm in told if not math.isfinite(norm))
            what = f"the norm of the gradients is {worst:g}"
            rows = [names for (names,) in _tell_all((find_rows(self._rows, _rows_of(seen)),))]
        return NotFiniteError(
            what,
            step=step,
            rows=tuple(dict.fromkeys(name for names in rows for name in names)),
            weights=not all_finite(parameters),
        )


def _still_scaling(scaler: "torch.amp.GradScaler | None") -> bool:
    return scaler is not None and scaler.is_enabled() and scaler.get_scale() >= _SMALLEST_SCALE


def weights_of(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yield a model's parameters, and the scales that int8 layers keep apart once they have computed.

    Shards of 4-bit weights are left out: what they hold are codes, in the guise of floating-point numbers.
    """
    for module in model.modules():
        for value in module.parameters(recurse=False):
            if not (hasattr(module, "quant_state") and hasattr(value, "full_tensor")):
                yield value
        scales = getattr(getattr(module, "state", None), "SCB", None)
        if isinstance(scales, torch.Tensor):
            yield scales


def all_finite(parameters: Iterable[torch.Tensor]) -> bool:
    """Tell whether all weights are finite numbers, those of a quantised model included."""
    return all(bool(whole(_values(value).isfinite().all())) for value in parameters)


def _values(weight: torch.Tensor) -> torch.Tensor:
    if (packed := getattr(weight, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit

        values: torch.Tensor = dequantize_4bit(weight, packed)
        return values
    scales: torch.Tensor | None = getattr(weight, "SCB", None)
    return weight if scales is None else scales


def _tell_all(mine: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Exchange what each process knows; all must call it at the same point."""
    if not among_others():
        return [mine]
    told: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, mine)
    return told


def _rows_of(batches: list[_Seen]) -> list[list[int]]:
    """Cut batches into their rows, as they were before they were padded or packed."""
    rows = []
    for batch in batches:
        ids_BL = batch.inputs["input_ids"]
        if "position_ids" in batch.inputs:  # packed: every row begins at position 0
            starts = (batch.inputs["position_ids"].flatten() == 0).nonzero().flatten()[1:].cpu()
            rows += [row.tolist() for row in ids_BL.flatten().tensor_split(starts)]
        else:
            lengths = batch.inputs["attention_mask"].sum(dim=1).tolist()
            rows += [row[:length].tolist() for row, length in zip(ids_BL, lengths, strict=True)]
    return rows
