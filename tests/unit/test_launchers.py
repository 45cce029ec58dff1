"""What launchers leave in the environment: understood, or refused, and then taken out."""

import os

import pytest

from gemma_ft.config.schema import ParallelConfig, ParallelMethod, RunConfig
from gemma_ft.config.trainer import TrainerConfig
from gemma_ft.errors import ConfigError
from gemma_ft.training.launchers import check_alone, read_world
from gemma_ft.training.layout import resolve_layout

FSDP_FILE = {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "no",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}
"""What accelerate launch passes on from a file with distributed_type FSDP."""


def config(method: str = "auto", **parallel) -> RunConfig:
    return RunConfig(
        parallel=ParallelConfig(method=ParallelMethod(method), **parallel),
        trainer=TrainerConfig(global_batch_size=8, micro_batch_size=1),
    )


@pytest.mark.parametrize("method", ["auto", "fsdp"])
def test_a_file_that_asks_for_fsdp_is_understood_and_ours_is_the_one_that_stays(launcher, caplog, method):
    launcher(2, **FSDP_FILE)
    with caplog.at_level("INFO", "gemma_ft"):
        layout = resolve_layout(config(method))
    assert layout.sharded
    assert layout.launcher_precision == "bf16"
    assert caplog.messages == ["the launcher asks for FSDP: parallel=fsdp, as parallel.* and trainer.* say"]
    assert [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))] == []


def test_what_is_passed_over_of_a_file_is_named(launcher, caplog):
    others = {
        "FSDP_VERSION": "1",
        "FSDP_RESHARD_AFTER_FORWARD": "SHARD_GRAD_OP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    }
    launcher(2, **{**FSDP_FILE, **others, "FSDP_ACTIVATION_CHECKPOINTING": "true"})
    asked = config()
    asked.trainer.gradient_checkpointing = False
    with caplog.at_level("INFO", "gemma_ft"):
        resolve_layout(asked)
    assert caplog.messages == [
        "the launcher asks for FSDP: parallel=fsdp, as parallel.* and trainer.* say; of its file these are "
        "passed over: fsdp_version=1, fsdp_reshard_after_forward=SHARD_GRAD_OP, "
        "fsdp_state_dict_type=FULL_STATE_DICT, "
        "fsdp_activation_checkpointing=true, since trainer.gradient_checkpointing=false"
    ]


def test_a_file_that_contradicts_the_run_is_refused(launcher):
    launcher(2, **FSDP_FILE)
    for method in ("single", "ddp"):
        with pytest.raises(ConfigError, match=rf"parallel={method} cannot use a launcher that asks for FSDP"):
            resolve_layout(config(method))
    launcher(2, **{**FSDP_FILE, "FSDP_OFFLOAD_PARAMS": "true"})
    with pytest.raises(ConfigError, match=r"parallel.cpu_offload=false contradicts .* parallel=fsdp_offload"):
        resolve_layout(config("fsdp"))
    assert resolve_layout(config("fsdp", cpu_offload=True)).sharded


def test_shard_groups_of_a_file_must_be_those_of_the_run(launcher):
    groups = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"}
    launcher(4, **FSDP_FILE, **groups)
    with pytest.raises(ConfigError, match=r"dp_replicate_size=2 is not .* parallel.dp_shard_size=2"):
        resolve_layout(config("fsdp"))
    assert resolve_layout(config("fsdp", dp_shard_size=2)).sharded
    assert "ACCELERATE_USE_PARALLELISM_CONFIG" not in os.environ


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", r"asks for DeepSpeed, .* shard with parallel=fsdp"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "asks for Megatron-LM"),
        ("ACCELERATE_USE_SAGEMAKER", "true", "asks for SageMaker"),
        ("PARALLELISM_CONFIG_TP_SIZE", "2", "TP_SIZE=2 asks for tensor parallelism"),
        ("PARALLELISM_CONFIG_CP_SIZE", "2", "asks for context parallelism"),
        ("PARALLELISM_CONFIG_SP_SIZE", "2", "asks for sequence parallelism"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "mixed_precision=fp8 does not exist here"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", r"trainer.extra.torch_compile_backend=inductor to the run"),
    ],
)
def test_engines_and_settings_that_do_not_exist_here_are_refused(launcher, variable, value, words):
    launcher(2, **{variable: value})
    with pytest.raises(ConfigError, match=words):
        resolve_layout(config())
    launcher(1, **{variable: value})
    with pytest.raises(ConfigError, match=words):
        resolve_layout(config())


def test_accumulation_is_derived_whatever_the_launcher_says(launcher, caplog):
    launcher(2, ACCELERATE_GRADIENT_ACCUMULATION_STEPS="16")
    assert resolve_layout(config()).accumulation == 4
    assert "gradient_accumulation_steps=16 is passed over: 4 follow" in caplog.text
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in os.environ


def test_what_somebody_has_exported_without_a_launcher_asks_for_nothing(launcher, monkeypatch):
    for name, value in FSDP_FILE.items():
        monkeypatch.setenv(name, value)
    assert not resolve_layout(config()).sharded
    assert "FSDP_VERSION" not in os.environ


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE=2 needs RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT too"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 is no number from 1 up"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two is no number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE= is no number from 1 up"),
        ({"RANK": "-1"}, "RANK=-1 is no number from 0 up"),
        ({"RANK": "4"}, r"RANK=4 must be below WORLD_SIZE=4: ranks count from 0"),
        ({"LOCAL_RANK": "7"}, "LOCAL_RANK=7 must be below WORLD_SIZE=4"),
    ],
)
def test_variables_that_cannot_be_are_refused(launcher, monkeypatch, variables, words):
    if set(variables) == {"WORLD_SIZE"}:
        monkeypatch.setenv("WORLD_SIZE", variables["WORLD_SIZE"])
    else:
        launcher(4, **variables)
    with pytest.raises(ConfigError, match=words):
        read_world()
    assert os.environ.get("RANK", "0") == "0"  # so that it is printed


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "1"},
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"PMI_SIZE": "4"},
    ],
)
def test_processes_that_do_not_know_of_each_other_are_refused_in_one_line(launcher, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match=r"=4 starts 4 processes that do not know .* launch slurm"
    ) as refusal:
        check_alone()
    assert "\n" not in str(refusal.value)
    monkeypatch.setenv("WORLD_SIZE", "4")  # a torchrun inside, which connects them
    check_alone()


def test_a_batch_script_of_slurm_may_start_one_process_of_many_tasks(launcher, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert read_world().size == 1


def test_one_process_where_accelerate_was_asked_for_several_is_refused(launcher, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert read_world().size == 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ConfigError, match=r"accelerate launch was asked for several .* with torchrun"):
        read_world()
