"""The typed configuration of a run: every key with its type, its default and what it means."""

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from gemma_ft.config.dataset import DatasetConfig
from gemma_ft.config.export import ExportConfig
from gemma_ft.config.trainer import TrainerConfig
from gemma_ft.families import LINEAR_LAYERS


class Dtype(StrEnum):
    """Number format of the weights that compute."""

    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Attention(StrEnum):
    """Attention implementation, in transformers' names."""

    auto = "auto"
    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"


class QuantizationMethod(StrEnum):
    """How the frozen base weights are stored."""

    none = "none"
    int8 = "int8"
    nf4 = "nf4"


class AdapterMethod(StrEnum):
    """What is trained: adapters, or every weight (none)."""

    none = "none"
    lora = "lora"


class ParallelMethod(StrEnum):
    """How several devices share the work."""

    auto = "auto"
    single = "single"
    ddp = "ddp"
    fsdp = "fsdp"


class TrackingMethod(StrEnum):
    """Where metrics go beside the run folder."""

    none = "none"
    wandb = "wandb"
    tensorboard = "tensorboard"
    trackio = "trackio"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The checkpoint to start from."""

    path: str = "google/gemma-7b-it"
    """Hub id, or a local folder with config.json, tokenizer and safetensors."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository; none means its main branch."""
    dtype: Dtype = Dtype.auto
    """Number format that computes; auto: bf16 or fp16 by GPU, fp32 on a CPU."""
    attention: Attention = Attention.auto
    """Attention implementation; auto: the best one that this device and model allow."""

    def problems(self) -> list[str]:
        """List what cannot work in this section."""
        if not self.path.strip():
            return [
                "model.path= is empty. Give a hub id or a local folder, e.g. model.path=google/gemma-2b-it."
            ]
        return []


@dataclass(kw_only=True, slots=True)
class QuantizationConfig:
    """Storage of the frozen base weights (bitsandbytes)."""

    method: QuantizationMethod = QuantizationMethod.none
    """none, int8 (LLM.int8) or nf4 (4-bit NormalFloat, QLoRA)."""
    double_quant: bool = True
    """Quantise nf4's scales too, which saves 0.37 bit a weight."""

    def problems(self) -> list[str]:
        """List what cannot work in this section."""
        return []


@dataclass(kw_only=True, slots=True)
class AdapterConfig:
    """Low-rank adapters (PEFT), or none for a full fine-tune."""

    method: AdapterMethod = AdapterMethod.none
    """none (train every weight) or lora."""
    rank: int = 16
    """Inner dimension of the adapter matrices."""
    alpha: float = 16.0
    """Scaling numerator: the update is alpha / rank * B @ A (alpha / sqrt(rank) with rslora)."""
    dropout: float = 0.0
    """Share of the adapter's inputs dropped while training."""
    targets: tuple[str, ...] = ("all-linear",)
    """Layer names that get an adapter; all-linear means the seven linears of each block."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (rank-stabilised LoRA)."""
    dora: bool = False
    """Train the magnitude of each weight column apart from its direction (DoRA)."""
    path: str | None = None
    """Folder of an existing adapter to go on from; its own rank and targets are used."""

    def problems(self) -> list[str]:
        """List what cannot work in this section."""
        found = []
        if self.rank < 1:
            found.append(f"adapter.rank={self.rank} must be at least 1. Use 8 to 64.")
        if not 0 < self.alpha < math.inf:
            found.append(
                f"adapter.alpha={self.alpha} must be above 0 and finite. Use the rank, or twice the rank."
            )
        if not 0 <= self.dropout < 1:
            found.append(f"adapter.dropout={self.dropout} must be at least 0 and below 1. Use 0.05.")
        found += [
            f"adapter.targets=[{name}] is no linear layer of a Gemma block. "
            f"Choose among {', '.join(LINEAR_LAYERS)}, or use adapter.targets=[all-linear]."
            for name in self.targets
            if name != "all-linear" and name.rpartition(".")[2] not in LINEAR_LAYERS
        ]
        if not self.targets:
            found.append("adapter.targets=[] names no layer. Use adapter.targets=[all-linear].")
        if self.path is not None and self.method is AdapterMethod.none:
            found.append(f"adapter.path={self.path} needs adapters, but adapter=none. Add adapter=lora.")
        if self.path and not (Path(self.path).expanduser() / "adapter_config.json").is_file():
            found.append(
                f"adapter.path={self.path} has no adapter_config.json. "
                "Give the folder of an adapter, e.g. adapter.path=outputs/NAME/adapter."
            )
        return found


@dataclass(kw_only=True, slots=True)
class ParallelConfig:
    """Layout over devices."""

    method: ParallelMethod = ParallelMethod.auto
    """auto (ddp under a launcher, else single), single, ddp (a copy on each GPU) or fsdp (shards of one); the
    last two start one process a GPU by themselves where no launcher has."""
    cpu_offload: bool = False
    """Hold the shards, their gradients and the optimizer in the machine's memory (fsdp only)."""
    dp_shard_size: int | None = None
    """Processes that share one copy of the model (HSDP), which divides their number; none: all of them."""

    def problems(self) -> list[str]:
        """List what cannot work in this section."""
        found = []
        sharded = self.method is ParallelMethod.fsdp
        if self.cpu_offload and not sharded:
            found.append(
                f"parallel.cpu_offload=true needs shards, but parallel={self.method} has none. "
                "Use parallel=fsdp_offload."
            )
        if self.dp_shard_size is not None and not sharded:
            found.append(
                f"parallel.dp_shard_size={self.dp_shard_size} needs shards, but parallel={self.method} has "
                "none. Add parallel=fsdp, or leave it out."
            )
        if self.dp_shard_size is not None and self.dp_shard_size < 2:
            found.append(
                f"parallel.dp_shard_size={self.dp_shard_size} must be at least 2. "
                "Give the number of GPUs of a node, or leave it out to share over all."
            )
        return found


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Experiment tracking beside metrics.jsonl."""

    method: TrackingMethod = TrackingMethod.none
    """none, wandb (offline where no key is set or no server answers), tensorboard or trackio."""
    project: str = "gemma_ft"
    """Project that wandb or trackio files the run under."""

    def problems(self) -> list[str]:
        """List what cannot work in this section."""
        found = []
        if self.method is not TrackingMethod.none and not _is_installed(self.method.value):
            found.append(
                f"tracking={self.method} needs the {self.method} package. Run: pip install {self.method}"
            )
        if self.method is TrackingMethod.wandb and not re.fullmatch(r"[^/\\#?%:]{1,128}", self.project):
            found.append(
                f"tracking.project={self.project} is no project of Weights & Biases. "
                "Use at most 128 characters, without / \\ # ? % :"
            )
        return found


def _is_installed(package: str) -> bool:
    """Look for a package without importing it; a folder of this name that is lying about is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """A whole run."""

    name: str = ""
    """Name of the run; empty: the recipe's, or <model>-<dataset>-<method>."""
    output_dir: str = "outputs/${name}"
    """The run folder."""
    seed: int = 42
    """Seed of the held-out split, the row order, the adapter's start and dropout."""
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        """Write the name into the run folder, as composing does, for a config that is built in Python."""
        if self.name:
            self.output_dir = self.output_dir.replace("${name}", self.name)

    def problems(self) -> list[str]:
        """List what cannot work in this section."""
        if not 0 <= self.seed < 2**32:
            return [f"seed={self.seed} must be at least 0 and below 2**32. Use 42."]
        if self.name and (
            self.name.startswith(".") or not all(c.isalnum() or c in "._-+" for c in self.name)
        ):
            return [f"name={self.name} is no plain folder name. Use letters, digits and . _ - + only."]
        return []
