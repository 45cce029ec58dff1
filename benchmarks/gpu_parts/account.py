"""What a run took, from what its meter saw."""

import statistics
from typing import Any

import torch

from gpu_parts.meter import Meter
from gpu_parts.rates import Rows, Sizes, operations, peak_rate


def device_name(device: str) -> str:
    """Return what torch calls a device."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def speed(meter: Meter, device: str) -> dict[str, Any]:
    """Return tokens a second, and the share of the device's peak rate, of a run's measured steps."""
    steps = meter.measured()
    seconds, tokens = sum(step.seconds for step in steps), sum(step.tokens for step in steps)
    rate = tokens / seconds
    model, hardware = operations(
        Sizes.of(meter.trainer.model.config),
        rows_of(meter.trainer.train_dataset),
        adapter_weights=adapter_weights(meter.trainer.model),
        recomputed=recomputes(meter.trainer),
    )
    peak = peak_rate(device)
    gpus = meter.trainer.accelerator.num_processes
    return {
        "steps": len(steps),
        "tokens": tokens,
        "step_seconds_median": round(statistics.median(step.seconds for step in steps), 4),
        "tokens_per_second": round(rate, 1),
        "model_tflops_per_second": round(rate * model / 1e12, 3),
        "hardware_tflops_per_second": round(rate * hardware / 1e12, 3),
        "peak_rate": None if peak is None else {"flops_per_second": peak[0], "source": peak[1]},
        "share_of_peak_model": None if peak is None else round(rate * model / (gpus * peak[0]), 4),
        "share_of_peak_hardware": None if peak is None else round(rate * hardware / (gpus * peak[0]), 4),
    }


def recomputes(trainer: Any) -> bool:
    """Tell whether the blocks run forward again in the backward pass."""
    sharding = trainer.args.fsdp_config or {}
    return bool(trainer.args.activation_checkpointing or sharding.get("activation_checkpointing"))


def adapter_weights(model: torch.nn.Module) -> int | None:
    """Count the weights of a model's adapters; None where every weight is trained."""
    if all(value.requires_grad for value in model.parameters()):
        return None
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def rows_of(dataset: Any) -> Rows:
    """Average over what a trainer reads: packed sequences, or rows."""
    learned = tokens = pairs = 0
    for row in dataset:
        tokens += len(row["input_ids"])
        learned += sum(label != -100 for label in row["labels"])
        lengths = row.get("seq_lengths") or [len(row["input_ids"])]
        pairs += sum(length * (length + 1) // 2 for length in lengths)
    return Rows(learned=learned / tokens, seen=pairs / tokens)


def memory(meter: Meter) -> dict[str, Any] | None:
    """Return the bytes of each part of a run; None without a GPU.

    weights, adapters: what building them allocated. model: both when training begins, of which a shard is
    here where FSDP shares them out. optimizer: its state tensors, of which paged ones stand outside
    torch's account and may lie in the machine's memory. gradients: what the backward pass left.
    activations: what the forward pass kept for it. loss: the most that head and loss held above that, both
    ways. backward: its peak above what the step began with: recomputed activations, gradients. peak: the
    highest of all phases. reserved: what torch has taken from the device. device_used: what the driver says
    that all processes hold, contexts and kernels included.
    """
    if not meter.allocator.counts:
        return None
    held = meter.held
    free, total = torch.cuda.mem_get_info()
    return {
        "weights": held["model"] - held["nothing"],
        "adapters": held.get("adapters", held["model"]) - held["model"],
        "model": held["trainer"] - held["nothing"],
        **optimizer_bytes(meter.trainer.optimizer),
        "gradients": meter.gradients,
        "activations": meter.kept,
        "loss": meter.loss_extra,
        "backward": meter.peaks["backward"] - held["first step"],
        "peaks": meter.peaks,
        "peak": max(meter.peaks.values()),
        "reserved": meter.allocator.reserved,
        "device_used": total - free,
    }


def optimizer_bytes(optimizer: Any) -> dict[str, int]:
    """Add up the tensors of an optimizer's state: on the GPU, paged, and in the machine's memory."""
    found = {"optimizer": 0, "optimizer_paged": 0, "optimizer_on_cpu": 0}
    for value in (value for state in optimizer.state.values() for value in state.values()):
        if isinstance(value, torch.Tensor):
            own = value.to_local() if hasattr(value, "to_local") else value  # a shard's own part
            paged, on_cpu = getattr(own, "is_paged", False), own.device.type == "cpu"
            place = "optimizer_paged" if paged else "optimizer_on_cpu" if on_cpu else "optimizer"
            found[place] += own.nbytes
    return found
