"""Failures that are no fault of the program, in one line each, by the words that libraries have for them."""

import errno
import json
import re
from types import SimpleNamespace

import pytest
import torch

from gemma_ft.config.schema import AdapterMethod, ParallelMethod, QuantizationMethod, RunConfig
from gemma_ft.errors import DataError, ModelError
from gemma_ft.runs import RunFolder, Stage, State
from gemma_ft.training.ending import recorded
from gemma_ft.training.failures import NotFiniteError, explain_failure
from gemma_ft.training.memory import find_savings

CUDA = (
    "CUDA out of memory. Tried to allocate 2.26 GiB. GPU 0 has a total capacity of 14.74 GiB of which 640.12 "
    "MiB is free. Including non-PyTorch memory, this process has 14.11 GiB memory in use. Of the allocated "
    "memory 13.90 GiB is allocated by PyTorch, and 98.87 MiB is reserved by PyTorch but unallocated. If "
    "reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True "
    "to avoid fragmentation.  See documentation for Memory Management  "
    "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)


@pytest.fixture
def config():
    config = RunConfig(name="mine", output_dir="outputs/mine")
    config.model.path = "bundled:tiny"
    config.adapter.method, config.quantization.method = AdapterMethod.lora, QuantizationMethod.none
    config.trainer.micro_batch_size, config.trainer.gradient_checkpointing = 4, False
    return config


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "mine")
    run.path.mkdir()
    run.write_status(State.running, Stage.training)
    return run


def explain(error, config, run):
    explained = explain_failure(error, config, run)
    if explained is not None:
        assert "\n" not in str(explained)
    return explained and str(explained)


def test_a_full_gpu_is_told_with_its_numbers_and_what_saves_most(config, run):
    line = explain(torch.OutOfMemoryError(CUDA), config, run)
    assert line.startswith(
        "GPU memory ran out in the stage training: 2.26 GiB asked for, 0.63 GiB of 14.74 GiB free. "
        "What saves most here: "
    )
    for setting in ("trainer.micro_batch_size=1", "trainer.gradient_checkpointing=true", "quantization=nf4"):
        assert setting in line
    assert "trainer.max_length=1024" in line
    assert "PYTORCH_ALLOC_CONF" not in line
    assert "name=mine-2" not in line
    run.step_folder(100).mkdir(parents=True)
    assert explain(torch.OutOfMemoryError(CUDA), config, run).endswith(
        "It makes another run: add name=mine-2."
    )


def test_memory_in_pieces_is_told(config, run):
    text = CUDA.replace("98.87 MiB is reserved", "9.35 GiB is reserved")
    assert "Try PYTORCH_ALLOC_CONF=expandable_segments:True first" in explain(RuntimeError(text), config, run)


def refused_by_the_cpu():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    return caught.value


def refused_by_numpy():
    import numpy

    with pytest.raises(MemoryError) as caught:
        numpy.ones(2**50, dtype="uint8")
    return caught.value


@pytest.mark.parametrize(
    ("error", "start"),
    [
        (
            refused_by_the_cpu,
            r"memory ran out in the stage training: 1048576\.00 GiB asked for, [\d.]+ GiB of [\d.]+ GiB free",
        ),
        (refused_by_numpy, r"memory ran out in the stage training: 1048576\.00 GiB asked for, "),
        (
            MemoryError,
            r"memory ran out in the stage training: how much was asked for is not known, [\d.]+ [MG]iB of ",
        ),
        (
            lambda: MemoryError("malloc of size 20971520 failed"),
            r"memory ran out in the stage training: 20\.0 MiB asked for, ",
        ),
        (
            lambda: RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            r"GPU memory ran out in the stage training: how much was asked for is not known\. What",
        ),
        (
            lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
            "GPU memory ran out",
        ),
        (
            lambda: RuntimeError("NCCL error: unhandled cuda error. Cuda failure 2 'out of memory'"),
            "GPU memory ran out",
        ),
        (lambda: torch.OutOfMemoryError("Allocation on device"), "GPU memory ran out"),
        (
            lambda: torch.OutOfMemoryError("XPU out of memory. Tried to allocate 2.00 GiB"),
            "GPU memory ran out",
        ),
        (lambda: OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out"),
    ],
)
def test_every_library_has_its_words_for_it(config, run, error, start):
    assert re.match(start, explain(error(), config, run))


def test_what_is_short_while_exporting_needs_no_other_settings(config, run):
    run.write_status(State.running, Stage.exporting)
    line = explain(MemoryError(), config, run)
    assert line.endswith("Free some, then start the same line again: what is trained stays.")
    run.write_status(State.running, Stage.data)
    assert explain(MemoryError(), config, run).endswith(
        "Free some, or use a smaller model or a larger machine."
    )


def test_only_what_applies_is_proposed(config):
    trainer = config.trainer
    trainer.micro_batch_size, trainer.gradient_checkpointing, trainer.max_length = 1, True, 256
    config.quantization.method = QuantizationMethod.nf4
    assert find_savings(config, on_gpu=True) == []
    config.quantization.method = QuantizationMethod.int8
    assert find_savings(config, on_gpu=True) == ["quantization=nf4"]
    config.adapter.method, config.quantization.method = AdapterMethod.none, QuantizationMethod.none
    assert find_savings(config, on_gpu=True) == ["adapter=lora", "trainer.optim=paged_adamw_8bit"]
    assert find_savings(config, on_gpu=False) == ["adapter=lora", "trainer.optim=adamw_8bit"]
    trainer.optim = "adafactor"
    assert find_savings(config, on_gpu=True) == ["adapter=lora"]


def test_the_order_follows_the_run(config, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "gemma",
                "hidden_size": 3072,
                "intermediate_size": 24576,
                "num_attention_heads": 16,
                "head_dim": 256,
                "num_hidden_layers": 28,
                "vocab_size": 256000,
            }
        )
    )
    config.model.path = str(tmp_path)
    config.trainer.max_length, config.trainer.micro_batch_size = 8192, 1
    assert find_savings(config, on_gpu=True)[0] == "trainer.gradient_checkpointing=true"
    config.trainer.max_length, config.trainer.gradient_checkpointing = 512, True
    assert find_savings(config, on_gpu=True)[0] == "quantization=nf4"
    config.adapter.method = AdapterMethod.none
    assert find_savings(config, on_gpu=True)[0] == "adapter=lora"


def test_shards_are_named_where_several_processes_hold_copies(config, monkeypatch):
    config.quantization.method = QuantizationMethod.none
    assert not any("fsdp" in said for said in find_savings(config, on_gpu=True))
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "parallel=fsdp" in find_savings(config, on_gpu=True)
    assert not any("fsdp" in said for said in find_savings(config, on_gpu=False))
    config.parallel.method = ParallelMethod.fsdp
    assert "parallel=fsdp_offload" in find_savings(config, on_gpu=True)
    config.adapter.method = AdapterMethod.none
    assert not any("8bit" in said for said in find_savings(config, on_gpu=True))  # it cannot step on shards
    config.parallel.cpu_offload = True
    assert not any("fsdp" in said for said in find_savings(config, on_gpu=True))


def test_other_failures_stay_as_they_are(config, run):
    for error in (
        ZeroDivisionError("division by zero"),
        DataError("my.jsonl:1: out of memory"),
        ModelError("x"),
    ):
        assert explain_failure(error, config, run) is None


def not_finite(**named):
    return NotFiniteError("the loss is nan", **{"step": 7, "rows": ("a.jsonl:3",), **named})


def test_what_helps_against_a_loss_that_is_no_number_follows_the_run(config, run):
    start = "the loss is nan at step 7, in the batch of a.jsonl:3. What usually helps: "
    assert explain(not_finite(), config, run) == start + "trainer.learning_rate below 0.0002."
    run.environment.write_text(json.dumps({"dtype": "fp16"}))
    assert explain(not_finite(), config, run) == (
        start + "model.dtype=bf16, since fp16 overflows early; or trainer.learning_rate below 0.0002."
    )
    run.step_folder(6).mkdir(parents=True)
    assert explain(not_finite(), config, run).endswith(
        "That makes another run: add name=mine-2; checkpoints up to step 6 stay."
    )


def test_before_the_first_step_neither_rate_nor_schedule_is_to_blame(config, run):
    line = explain(not_finite(step=1), config, run)
    assert line.endswith("to mend or leave out what is in it, since no step has been taken yet.")
    line = explain(NotFiniteError("the held-out loss is nan", step=0), config, run)
    assert line.endswith(
        "to mend or leave out what is in the held-out rows, since no step has been taken yet."
    )
    config.adapter.path = "old"
    assert explain(not_finite(step=1, weights=True), config, run) == (
        "model.path=bundled:tiny or adapter.path=old holds weights that are not finite: the loss is nan at "
        "step 1, in the batch of a.jsonl:3. Fetch or convert it again."
    )


def test_the_reason_of_a_refusal_is_its_line(config, run):
    run.lock()
    refusal = pytest.raises(ModelError, match="no folder")
    with refusal, recorded(run, config, SimpleNamespace(writes=True, world_size=1)):
        raise ModelError("model.path=x is no folder. Check it.")
    assert run.read_status().reason == "model.path=x is no folder. Check it."


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("[enforce fail at inline_container.cc:668] . unexpected pos 64 vs 0"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_is_told_with_what_stays(config, run, error):
    line = explain(error, config, run)
    assert line == f"{run.path} does not fit on its disk. Free some space; the same line then goes on."
    run.step_folder(4).mkdir(parents=True)
    assert explain(error, config, run).endswith("goes on, from the checkpoint of step 4, which is whole.")


def test_the_place_that_is_full_is_named(config, run, monkeypatch, tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", "/var/cache/rows.arrow")
    assert explain(error, config, run).startswith("/var/cache/rows.arrow does not fit on its disk.")
    cache = tmp_path / "gemma_ft"
    cache.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    free = {str(cache): 0}
    monkeypatch.setattr(
        "shutil.disk_usage", lambda place: SimpleNamespace(free=free.get(str(place), 1 << 40))
    )
    named = f"{cache} (XDG_CACHE_HOME names another) does not fit on its disk."
    assert explain(FULL[0], config, run).startswith(named)
    free[str(cache)] = 1 << 30  # what was half-written there is gone again
    assert explain(FULL[0], config, run).startswith(f"{run.path} does not fit on its disk.")
    run.write_status(State.running, Stage.data)
    assert explain(FULL[0], config, run).startswith(named)


@pytest.mark.parametrize(
    "words",
    [
        "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:8104: Connection reset by peer.",
        "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:29500",
        "NCCL error in: ProcessGroupNCCL.cpp:3290, remote process exited or there was a network error",
    ],
    ids=["reset", "closed", "nccl"],
)
def test_a_process_that_has_gone_is_said_to_the_others(config, run, words):
    assert explain(RuntimeError(words), config, run) == (
        "another process of this run has gone; what it said last tells why. "
        "The same line goes on from the last checkpoint."
    )


def test_a_run_folder_that_was_moved_away_is_told_as_that(config, run):
    lost = FileNotFoundError(errno.ENOENT, "No such file or directory", str(run.checkpoints / "x.json"))
    assert explain(lost, config, run) is None
    run.lock()
    run.path.rename(run.path.with_name("moved"))
    line = explain(lost, config, run)
    assert line.startswith(f"{run.path} was moved or deleted while the run worked in it. Move it back, or")
    run.unlock()


def test_a_file_of_the_run_folder_that_cannot_be_used_is_told_with_what_helps(config, run):
    run.metrics.mkdir()
    with pytest.raises(IsADirectoryError) as refused:
        run.forget_metrics_after(0)
    line = (
        f"{run.metrics} cannot be used (Is a directory). Move aside what stands there, or see who may write"
    )
    assert explain(refused.value, config, run) == f"{line} there; the same line then goes on."
    broken = OSError(errno.EROFS, "Read-only file system", str(run.metrics))
    line = f"{run.metrics} cannot be used (Read-only file system). See to its disk, or copy {run.path} to"
    assert explain(broken, config, run) == f"{line} another one; the same line then goes on."
    for elsewhere in (str(run.path.parent / "other"), None):
        assert explain(OSError(errno.EIO, "Input/output error", elsewhere), config, run) is None
