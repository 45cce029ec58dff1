"""One process a GPU: the program's own launcher, NCCL, DDP and FSDP2, against a single process."""

import json

import pytest
from on_gpu import METHODS, run_all, start, words_for
from program import losses, status, tensors

SHARDED = ("full", "lora", "nf4")
CLOSE = 0.05
"""How far a loss of about 8 may lie from the single process's, in bf16."""
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


@pytest.fixture(scope="module")
def single(place):
    """Train each method in one process on one GPU."""
    chats = place / "chats.jsonl"
    run_all([words_for(f"single-{m}", chats, *METHODS[m]) for m in SHARDED], place)
    return {method: losses(place / "outputs" / f"single-{method}") for method in SHARDED}


def check(run, method, expected, processes):
    assert status(run)["state"] == "finished"
    assert json.loads((run / "environment.json").read_text())["world_size"] == processes
    assert losses(run) == pytest.approx(expected, abs=CLOSE)
    assert tensors(run / ("model" if method == "full" else "adapter"))


def test_one_process_with_shards_in_the_machines_memory_learns_alike(place, single):
    words = words_for("offload", place / "chats.jsonl", *METHODS["lora"], "parallel=fsdp_offload")
    done = start(*LAUNCHER, "1", "-m", "gemma_ft", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    check(place / "outputs" / "offload", "lora", single["lora"], 1)


@pytest.mark.usefixtures("two_gpus")
def test_a_single_process_leaves_the_other_gpus_alone(place, single):
    words = words_for("alone", place / "chats.jsonl", *METHODS["lora"], "parallel=single")
    done = start("-m", "gemma_ft", *words, cwd=place)
    assert done.returncode == 0, done.stderr
    check(place / "outputs" / "alone", "lora", single["lora"], 1)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("method", SHARDED)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_the_program_starts_a_process_a_gpu_and_they_learn_alike(parallel, method, place, single):
    name = f"{parallel}-{method}"
    words = words_for(name, place / "chats.jsonl", *METHODS[method], f"parallel={parallel}")
    done = start("-m", "gemma_ft", *words, cwd=place, CUDA_VISIBLE_DEVICES="0,1")
    assert done.returncode == 0, done.stderr
    check(place / "outputs" / name, method, single[method], 2)
