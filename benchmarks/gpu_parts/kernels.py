"""Parts that measure one thing alone: a device's ceilings, attention, and the head with its loss."""

import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from gpu_parts.bases import gemma_sizes
from gpu_parts.meter import Allocator
from gpu_parts.training import Place

_REPEATS = 5
_ROWS = (900, 700, 448)
"""Lengths of the rows that share a packed sequence of 2048 tokens."""


def timed(run: Callable[[], object], device: str) -> dict[str, Any]:
    """Return the median seconds of a function after two warm-up calls, and its peak memory above the start.

    Where it does not fit into the device's memory, returns what was asked for instead.
    """
    allocator = Allocator(device)
    seconds = []
    start = peak = 0
    try:
        for _ in range(_REPEATS + 2):
            allocator.wait()
            allocator.take_peak()
            start = allocator.allocated()
            begin = time.perf_counter()
            run()
            allocator.wait()
            seconds.append(time.perf_counter() - begin)
            peak = allocator.take_peak()
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return {"does_not_fit": str(error).splitlines()[0]}
    extra = {"peak_bytes_above_start": peak - start} if allocator.counts else {}
    return {"seconds": median(seconds[2:]), **extra}


def ceilings(place: Place, name: str) -> dict[str, Any]:
    """Measure what the device gives at best: a large matrix product on random numbers, and a large copy."""
    side, count = (8192, 1 << 30) if place.device == "cuda" else (256, 1 << 20)
    found: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float16):
        a = torch.randn(side, side, device=place.device, dtype=dtype)
        b = torch.randn_like(a)
        seconds = timed(lambda a=a, b=b: a @ b, place.device)["seconds"]
        found[str(dtype).removeprefix("torch.")] = {
            "side": side,
            "tflops_per_second": 2e-12 * side**3 / seconds,
        }
    source = torch.empty(count, device=place.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), place.device)["seconds"]
    return found | {"copy_bytes_per_second_read_and_written": 2 * count / seconds}


def attention(place: Place, name: str) -> dict[str, Any]:
    """Measure two blocks, forward and backward, on a packed sequence, by kind of attention.

    Gemma 1 computes with sdpa, eager and FlashAttention 2; Gemma 2, for its soft caps, not with sdpa.
    """
    import transformers

    sizes: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64}
    sizes |= {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 512}
    if place.shape != "tiny":
        sizes = gemma_sizes(place.shape)
    families = {
        "gemma": (transformers.GemmaConfig, ("sdpa", "eager", "flash_attention_2")),
        "gemma2": (transformers.Gemma2Config, ("eager", "flash_attention_2")),
    }
    found: dict[str, Any] = {"rows": _ROWS}
    for family, (config, kinds) in families.items():
        for kind in kinds:
            if kind == "flash_attention_2" and find_spec("flash_attn") is None:
                found[f"{family} {kind}"] = {"left_out": "flash-attn is not installed"}
                continue
            blocks = config(**{**sizes, "num_hidden_layers": 2, "vocab_size": 512}, attn_implementation=kind)
            found[f"{family} {kind}"] = _time_blocks(blocks, place)
    return found


def _time_blocks(config: Any, place: Place) -> dict[str, Any]:
    from transformers import AutoModel

    model = AutoModel.from_config(config, dtype=torch.bfloat16).to(place.device)
    rows = _ROWS if place.shape != "tiny" else (40, 24)
    positions_BL = torch.cat([torch.arange(length) for length in rows])[None].to(place.device)
    inputs_BLH = torch.randn(
        1, sum(rows), config.hidden_size, device=place.device, dtype=torch.bfloat16, requires_grad=True
    )

    def both_ways() -> None:
        hidden = model(inputs_embeds=inputs_BLH, position_ids=positions_BL, use_cache=False).last_hidden_state
        hidden.sum().backward()
        model.zero_grad()
        inputs_BLH.grad = None

    return timed(both_ways, place.device)


def loss_head(place: Place, name: str) -> dict[str, Any]:
    """Measure a frozen head and its loss, forward and backward, ours and as others compute them.

    Half the tokens are learned. The error is that of the loss against fp32, where all logits are at hand.
    """
    sizes = {"vocab_size": 2048, "hidden_size": 256} if place.shape == "tiny" else gemma_sizes(place.shape)
    tokens = 64 if place.shape == "tiny" else 2048
    torch.manual_seed(0)
    dtype = torch.bfloat16
    head = torch.nn.Linear(sizes["hidden_size"], sizes["vocab_size"], False, place.device, dtype)
    head.requires_grad_(False).weight.normal_(std=0.02)
    hidden_TH = torch.randn(
        tokens, sizes["hidden_size"], device=place.device, dtype=dtype, requires_grad=True
    )
    labels_T = torch.randint(0, sizes["vocab_size"], (tokens,), device=place.device)
    labels_T[::2] = -100
    exact = _exact_loss(hidden_TH.detach(), head.weight, labels_T)
    found: dict[str, Any] = {"tokens": tokens, "learned": int((labels_T >= 0).sum()), "loss_in_fp32": exact}
    for side, loss_of in HEADS.items():
        value: list[float] = []

        def both_ways(loss_of: Any = loss_of, value: list[float] = value) -> None:
            loss = loss_of(hidden_TH, head, labels_T)
            loss.backward()
            hidden_TH.grad = None
            value.append(float(loss))

        found[side] = timed(both_ways, place.device)
        found[side] |= {"error_of_loss": value[-1] - exact} if value else {}
    return found


def _exact_loss(hidden_TH: torch.Tensor, weight_VH: torch.Tensor, labels_T: torch.Tensor) -> float:
    total, known = 0.0, labels_T >= 0
    for rows_TH, targets_T in zip(hidden_TH[known].split(64), labels_T[known].split(64), strict=True):
        logits_TV = torch.cat([rows_TH.float() @ part.float().T for part in weight_VH.split(32768)], dim=1)
        total += float(functional.cross_entropy(logits_TV, targets_T, reduction="sum"))
    return total / int(known.sum())


def _transformers_loss(
    hidden_TH: torch.Tensor, head: torch.nn.Linear, labels_T: torch.Tensor
) -> torch.Tensor:
    from transformers.loss.loss_utils import ForCausalLMLoss

    return ForCausalLMLoss(head(hidden_TH)[None], None, head.out_features, shift_labels=labels_T[None])


def _by_head(
    method: str, chunk_size: int = 0
) -> Callable[[torch.Tensor, torch.nn.Linear, torch.Tensor], torch.Tensor]:
    """Compute the loss with one of the heads that training chooses from."""

    def loss_of(hidden_TH: torch.Tensor, head: torch.nn.Linear, labels_T: torch.Tensor) -> torch.Tensor:
        from gemma_ft.config.trainer import LossHeadMethod
        from gemma_ft.training.loss.heads import LossHead

        known = labels_T >= 0
        scores = LossHead(LossHeadMethod(method), chunk_size).score(
            hidden_TH[known], head.weight, labels_T[known]
        )
        return -scores.log_prob_sum / known.sum()

    return loss_of


HEADS: dict[str, Callable[[torch.Tensor, torch.nn.Linear, torch.Tensor], torch.Tensor]] = {
    "transformers": _transformers_loss,
    "trl": _by_head("trl"),
    "torch": _by_head("torch"),
    **{f"chunked {size}": _by_head("chunked", size) for size in (128, 512, 1024)},
}
"""Sides of the comparison."""
