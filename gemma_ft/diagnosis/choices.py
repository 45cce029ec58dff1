"""What a run's `auto` would take on this machine, and which options work on it."""

import logging
from collections.abc import Iterator

from gemma_ft.config.schema import ModelConfig, QuantizationMethod
from gemma_ft.diagnosis.finding import Finding, Level, first_line
from gemma_ft.families import FAMILIES
from gemma_ft.modeling.precision import read_device, resolve_precision, why_not_quantized
from gemma_ft.training.layout import SHARDING_DEVICES


def find_precision() -> Iterator[Finding]:
    """Resolve model.dtype=auto and model.attention=auto for every family."""
    device = read_device()
    for family in FAMILIES:
        precision = resolve_precision(ModelConfig(), family, device)
        yield Finding(
            topic="precision",
            says=f"{family.name}: {'; '.join(precision.reasons)}",
            facts={
                "family": family.name,
                "dtype": precision.dtype.value,
                "attention": precision.attention.value,
                "reasons": list(precision.reasons),
                "untested": precision.untested or None,
            },
        )
    if precision.untested:
        yield Finding(topic="precision", level=Level.note, says=precision.untested)


def find_quantization() -> Iterator[Finding]:
    """Say which quantizations work here, and whether bitsandbytes has loaded its own code."""
    device, library = read_device(), _find_bitsandbytes()
    loads = library.level is Level.ok
    for method in (QuantizationMethod.nf4, QuantizationMethod.int8):
        why = why_not_quantized(method, device) or ("" if loads else "bitsandbytes has not loaded")
        yield Finding(
            topic="quantization",
            level=Level.note if why else Level.ok,
            says=f"quantization={method} {f'does not work: {why}' if why else 'works'} on {device.name}",
            cure="quantization=none" if why else "",
            facts={"method": method.value, "works": not why},
        )
    yield library


def _find_bitsandbytes() -> Finding:
    from gemma_ft.modeling.libraries import quiet_bitsandbytes

    quiet_bitsandbytes()
    logging.getLogger("bitsandbytes.cextension").setLevel(logging.CRITICAL)  # told here, in one line
    cure = 'pip install --force-reinstall --no-deps "bitsandbytes>=0.50"; `python -m bitsandbytes` tells more'
    try:
        from bitsandbytes import cextension
    except Exception as error:
        return Finding(
            topic="quantization",
            level=Level.warning,
            says=f"bitsandbytes does not load ({first_line(error)}): quantization=none only",
            cure=cure,
        )
    refusal = vars(cextension.lib).get("error_msg")  # its stand-in for a library answers to any other name
    if refusal is None:
        return Finding(topic="quantization", says="bitsandbytes has loaded its native library")
    return Finding(
        topic="quantization",
        level=Level.warning,
        says=f"bitsandbytes has not loaded its native library ({' '.join(str(refusal).split())})",
        cure=cure,
    )


def find_parallel() -> Iterator[Finding]:
    """Say over how many devices a run can be laid out, and how."""
    device = read_device()
    gpus = 0 if device.kind == "cpu" else device.count
    several = gpus > 1 and device.kind in SHARDING_DEVICES
    yield Finding(
        topic="parallel",
        says=_say_parallel(device.kind, gpus),
        facts={
            "gpus": gpus,
            "auto": "single",
            "possible": ["single", "ddp", "fsdp"] if several else ["single"],
        },
    )
    if several:
        yield from _find_exchange(device.kind)


def _say_parallel(kind: str, gpus: int) -> str:
    if kind == "cpu":
        return "no GPU: parallel=auto trains in one process; torchrun starts several (ddp); fsdp takes GPUs"
    if kind not in SHARDING_DEVICES:
        return "parallel=auto trains on the one device; ddp and fsdp do not work on it"
    if gpus == 1:
        return (
            "1 GPU: parallel=auto trains on it; ddp and fsdp take a second one, or `launch` and more machines"
        )
    return (
        f"{gpus} GPUs: parallel=auto trains on one of them; parallel=ddp (a copy each) and parallel=fsdp "
        f"(shards of one) start {gpus} processes"
    )


def _find_exchange(kind: str) -> Iterator[Finding]:
    """See whether torch has what GPUs exchange gradients with."""
    import torch

    name = {"cuda": "NCCL", "xpu": "XCCL"}[kind]
    available = torch.distributed.is_available() and torch.distributed.is_backend_available(name.lower())
    if not available:
        yield Finding(
            topic="parallel",
            level=Level.warning,
            says=f"this torch is built without {name}: parallel=ddp and fsdp cannot exchange gradients",
            cure="take a torch for Linux, or parallel=single",
        )
