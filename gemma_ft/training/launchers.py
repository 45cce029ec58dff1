"""What a launcher tells a process in its environment: its place among the others, and settings of its own.

One source of settings stands, ours: accelerate would take from the environment whatever its caller leaves
unsaid, so what a user's file asks for is understood or refused here, and then taken out of the environment.
"""

import logging
import os
from dataclasses import dataclass

from gemma_ft.config.schema import ParallelMethod, RunConfig
from gemma_ft.errors import ConfigError
from gemma_ft.modeling.drivers import is_on

logger = logging.getLogger("gemma_ft")

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_TORCHRUN = "torchrun --standalone --nproc-per-node N -m gemma_ft"
_CLUSTER = "python -m gemma_ft launch slurm writes a job that starts one torchrun a node"
_OTHER_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
_OTHER_SPLITS = {
    "PARALLELISM_CONFIG_TP_SIZE": "tensor parallelism",
    "PARALLELISM_CONFIG_CP_SIZE": "context parallelism",
    "PARALLELISM_CONFIG_SP_SIZE": "sequence parallelism",
}
_KEPT = ("ACCELERATE_USE_CPU", "ACCELERATE_CPU_AFFINITY", "ACCELERATE_LOG_LEVEL", "ACCELERATE_DEBUG_MODE")
"""What changes nothing in what is computed, or is heard of here."""
_PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_")
_SHARDING = {
    "FSDP_VERSION": ("2",),
    "FSDP_SHARDING_STRATEGY": ("full_shard", "1"),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "full_shard"),
    "FSDP_STATE_DICT_TYPE": ("sharded_state_dict",),
    "FSDP_AUTO_WRAP_POLICY": ("transformer_based_wrap",),
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": ("false",),
    "FSDP_IGNORED_MODULES": ("none",),
}
"""What our own sharding does, in the words of accelerate's file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The place of this process among those that its launcher started."""

    size: int
    rank: int
    local_rank: int
    """Its place among those of its machine, from 0."""
    nodes: int
    """Machines, as far as the launcher tells; else 1."""
    launched: bool
    """Whether a launcher has started it so that it can be connected, if only with itself."""


def read_world() -> World:
    """Read where this process stands.

    Raises:
        ConfigError: The variables contradict each other, or tell of a launcher that leaves processes alone.
    """
    check_alone()
    if "WORLD_SIZE" not in os.environ:
        return World(size=1, rank=0, local_rank=0, nodes=1, launched=False)
    size = _number("WORLD_SIZE", at_least=1)
    missing = [name for name in _NEEDED if not os.environ.get(name)]
    if missing and size > 1:
        raise ConfigError(
            f"WORLD_SIZE={size} needs {', '.join(missing)} too, which torchrun sets. "
            f"Start it with {_TORCHRUN}, or unset WORLD_SIZE for one process."
        )
    rank, local_rank = _number("RANK", default=0), _number("LOCAL_RANK", default=0)
    for name, value in {"RANK": rank, "LOCAL_RANK": local_rank}.items():
        if value >= size:
            _speak()
            raise ConfigError(
                f"{name}={value} must be below WORLD_SIZE={size}: ranks count from 0. "
                f"Start all of them with {_TORCHRUN}."
            )
    nodes = _number("GROUP_WORLD_SIZE", at_least=1, default=1)
    return World(size=size, rank=rank, local_rank=local_rank, nodes=nodes, launched=not missing)


def check_alone() -> None:
    """Check that nobody starts this line several times without telling how to connect.

    Raises:
        ConfigError: Somebody does: each process would train by itself, all in one folder.
    """
    if "WORLD_SIZE" in os.environ:
        return
    tasks = {name: _number(name, default=1) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")}
    if os.environ.get("SLURM_PROCID", "0") != "0":  # without srun a batch script is task 0 of many
        tasks["SLURM_NTASKS"] = _number("SLURM_NTASKS", default=1)
    tasks |= {name: _number(name, default=1) for name in ("PMI_SIZE", "MV2_COMM_WORLD_SIZE")}
    for name, number in tasks.items():
        if number > 1:
            raise ConfigError(
                f"{name}={number} starts {number} processes that do not know of each other, and would train "
                f"one by one in the same folder. Start one torchrun a machine: {_CLUSTER}."
            )
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        raise ConfigError(
            "accelerate launch was asked for several processes and has started one, as it does with --cpu "
            "and for distributed_type MULTI_CPU or NO. "
            f"On GPUs add --multi_gpu; on CPUs start them with {_TORCHRUN}."
        )


def settle_method(config: RunConfig, world: World) -> ParallelMethod:
    """Find the method that `parallel` and the launcher together ask for.

    Raises:
        ConfigError: They contradict each other, or the launcher asks for what does not exist here.
    """
    _refuse_other_engines()
    method = config.parallel.method
    shards = is_on("ACCELERATE_USE_FSDP") and world.launched
    if shards and method in (ParallelMethod.single, ParallelMethod.ddp):
        raise ConfigError(
            f"parallel={method} cannot use a launcher that asks for FSDP (ACCELERATE_USE_FSDP). "
            "Use parallel=fsdp, or launch plain multi-GPU training."
        )
    if method is ParallelMethod.auto:
        several = ParallelMethod.single if world.size == 1 else ParallelMethod.ddp
        method = ParallelMethod.fsdp if shards else several
    if shards:
        _take_sharding(config, world)
    return method


def forget_settings(accumulation: int) -> str | None:
    """Take accelerate's settings out of the environment, where it would find them wherever we say nothing.

    Args:
        accumulation: Micro-batches of an optimizer step, as derived.

    Returns:
        The number format that the launcher's file asks for, in accelerate's words; None where for none.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    if steps not in ("auto", "1", str(accumulation)):
        logger.warning(
            "the launcher's gradient_accumulation_steps=%s is passed over: %d follow from "
            "trainer.global_batch_size, trainer.micro_batch_size and the number of processes.",
            steps,
            accumulation,
        )
    clear_settings()
    return None if asked == "no" else asked


def clear_settings() -> None:
    """Leave accelerate no settings in the environment, its own of an earlier run included."""
    for name in [name for name in os.environ if name.startswith(_PREFIXES) and name not in _KEPT]:
        del os.environ[name]


def _refuse_other_engines() -> None:
    for variable, engine in _OTHER_ENGINES.items():
        if is_on(variable):
            raise ConfigError(
                f"{variable}=true asks for {engine}, which is none of parallel=single, ddp and fsdp. "
                "Launch plain multi-GPU training, and shard with parallel=fsdp."
            )
    for variable, split in _OTHER_SPLITS.items():
        if _number(variable, default=1) > 1:
            raise ConfigError(
                f"{variable}={os.environ[variable]} asks for {split}, which does not exist here. "
                "Take parallelism_config out of the launcher's file, and shard with parallel=fsdp."
            )
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower() == "fp8":
        raise ConfigError(
            "the launcher's mixed_precision=fp8 does not exist here. Give it mixed_precision no, and "
            "model.dtype=bf16 to the run."
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise ConfigError(
            f"the launcher's dynamo_backend={backend} is not taken from there. Give it dynamo_backend no, "
            f"and +trainer.extra.torch_compile_backend={backend} to the run."
        )


def _take_sharding(config: RunConfig, world: World) -> None:
    """Understand the FSDP settings of accelerate's file: what they contradict is refused, the rest is told.

    Raises:
        ConfigError: The file asks for offloading or shard groups that the run was not asked for.
    """
    parallel = config.parallel
    if is_on("FSDP_OFFLOAD_PARAMS") and not parallel.cpu_offload:
        raise ConfigError(
            "parallel.cpu_offload=false contradicts the launcher's fsdp_offload_params=true. "
            "Use parallel=fsdp_offload, or take it out of the launcher's file."
        )
    copies = _number("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", default=1)
    if copies > 1 and world.size != copies * (parallel.dp_shard_size or 0):
        raise ConfigError(
            f"the launcher's dp_replicate_size={copies} is not taken from there. Take parallelism_config out "
            f"of its file, and give parallel.dp_shard_size={max(world.size // copies, 2)} to the run."
        )
    passed_over = [
        f"{name.lower()}={os.environ[name]}"
        for name, ours in _SHARDING.items()
        if os.environ.get(name, ours[0]).lower() not in ours
    ]
    checkpoints = "true" if config.trainer.may_recompute else "false"
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() not in ("false", checkpoints):
        passed_over.append("fsdp_activation_checkpointing=true, since trainer.gradient_checkpointing=false")
    if world.rank == 0:
        more = f"; of its file these are passed over: {', '.join(passed_over)}" if passed_over else ""
        logger.info("the launcher asks for FSDP: parallel=fsdp, as parallel.* and trainer.* say%s", more)


def _speak() -> None:
    """Let this process tell its error, though it is not the first: what is wrong may be its rank."""
    os.environ.pop("RANK", None)


def _number(variable: str, *, at_least: int = 0, default: int = 0) -> int:
    text = os.environ.get(variable, "").strip()
    if not text and default >= at_least:
        return default
    if not text.isdecimal() or int(text) < at_least:
        _speak()
        raise ConfigError(
            f"{variable}={text} is no number from {at_least} up. Unset it, or start with a launcher that "
            "sets it."
        )
    return int(text)
