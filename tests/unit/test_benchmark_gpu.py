"""The parts of `benchmarks/gpu.py` on a CPU, in tiny: where no GPU is at hand, the script still runs."""

import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu  # noqa: E402
from gpu_parts import account, bases, kernels, meter, quantising, rates, results, suite, training  # noqa: E402
from gpu_parts.table import PARTS, Part  # noqa: E402

ABOUT = {"device": "NVIDIA L4", "gpus": 1, "date": "2026-01-01", "git_revision": "abc"}
PLAIN = Part(says="", seconds=50, measure=lambda place, name: {}, largest="7b")


@pytest.fixture
def place(tmp_path):
    return training.Place(folder=tmp_path, shape="tiny", device="cpu")


# the arithmetic of a step


def test_operations_are_those_of_a_hand_count():
    config = SimpleNamespace(
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=3,
        hidden_size=4,
        intermediate_size=8,
        num_hidden_layers=1,
        vocab_size=10,
    )
    sizes = rates.Sizes.of(config)
    assert (sizes.block_weights, sizes.head_weights, sizes.attention) == (24 + 12 + 12 + 24 + 96, 40, 6)
    rows = rates.Rows(learned=0.5, seen=2.0)
    full = rates.operations(sizes, rows, adapter_weights=None, recomputed=False)
    blocks, head = 2 * 168 + 4 * 6 * 2, 2 * 40 * 0.5
    assert full == ((blocks + head) + (2 * 168 + 2 * 48 + head) + (2 * 168 + head),) * 2
    lora = rates.operations(sizes, rows, adapter_weights=20, recomputed=True)
    blocks = 2 * 188 + 48
    assert lora == (model := (blocks + head) + (2 * 188 + 2 * 48 + head) + 2 * 20, model + blocks)


@pytest.mark.parametrize("rank", [None, 4])
def test_operations_are_those_that_torch_counts(rank):
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import GemmaForCausalLM

    from gemma_ft.modeling.tiny import build_config

    config = build_config()
    config._attn_implementation = "eager"  # which computes the whole square
    model = GemmaForCausalLM(config)
    sizes, tokens = rates.Sizes.of(config), 32
    if rank:
        model.enable_input_require_grads()
        model = get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
    ids_BL = torch.arange(200, 200 + tokens)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids_BL, labels=ids_BL).loss.backward()
    adapters = account.adapter_weights(model)
    assert (adapters is None) == (rank is None)
    expected, _ = rates.operations(
        sizes, rates.Rows(learned=1.0, seen=tokens), adapter_weights=adapters, recomputed=False
    )
    assert counter.get_total_flops() == pytest.approx(tokens * expected, rel=1e-6)


def test_rows_are_averaged_over_their_tokens():
    packed = [{"input_ids": [1] * 6, "labels": [-100, 1, 1, -100, 1, -100], "seq_lengths": [4, 2]}]
    assert account.rows_of(packed) == rates.Rows(learned=0.5, seen=(10 + 3) / 6)
    assert account.rows_of([{"input_ids": [1] * 3, "labels": [1, 1, 1]}]) == rates.Rows(learned=1, seen=2)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("Tesla T4", 65e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 836e12),
        ("AMD Instinct MI300X", 1307e12),
    ],
)
def test_a_known_device_has_the_rate_of_its_data_sheet(name, rate):
    assert rates.peak_rate(name)[0] == rate


@pytest.mark.parametrize("name", ["CPU", "NVIDIA L40S", "Tesla T40", "NVIDIA B200", ""])
def test_an_unknown_device_has_no_rate(name):
    assert rates.peak_rate(name) is None


# the bases


def test_the_bases_have_the_true_sizes():
    assert bases.base_bytes("7b") == 2 * 8_537_680_896  # as Google's model card counts them
    assert bases.base_bytes("2b") == 2 * 2_506_172_416
    assert bases.gemma_sizes("7b") == {
        "vocab_size": 256_000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
    }


def test_a_base_is_a_checkpoint_that_loads(tmp_path, monkeypatch, tiny):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    small = {"layers": 2, "hidden": 64, "inner": 128, "queries": 256, "keys": 256}
    monkeypatch.setitem(bases.checkpoints.SHAPES, "2b", small)
    monkeypatch.setattr(bases.checkpoints, "WORDS", 4096)
    base = bases.build_base("2b", tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.vocab_size == 4096
    assert 0.019 < float(model.model.layers[0].mlp.up_proj.weight.detach().float().std()) < 0.021
    loss = model(input_ids=torch.arange(2, 34)[None], labels=torch.arange(2, 34)[None]).loss
    assert math.isfinite(loss.item())
    assert len(AutoTokenizer.from_pretrained(base)) == 2048
    assert bases.build_base("2b", tmp_path) == base  # the second time it is there


def test_a_base_that_the_disk_cannot_hold_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(bases.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**30))
    with pytest.raises(OSError, match=r"15\.9 GiB asked for, 1\.0 GiB free in ") as caught:
        bases.build_base("7b", tmp_path)
    assert gpu._kind_of(caught.value) == "does not fit"


# the parts


@pytest.fixture
def figures(place, tiny):
    short = ("trainer.max_length=64", "trainer.global_batch_size=2", "trainer.gradient_checkpointing=true")
    return training.measure(
        training.Training(recipe="ultrachat_qlora", words=short), place, "qlora", warm_up=1, steps=2
    )


def test_a_training_part_runs_a_recipe_and_says_what_it_took(figures, place):
    assert figures["words"][0] == "recipe=ultrachat_qlora"
    assert str(place.folder) not in " ".join(figures["words"])
    assert (figures["steps"], len(figures["losses"]), figures["processes"]) == (2, 3, 1)
    assert all(math.isfinite(loss) for loss in figures["losses"])
    assert figures["tokens"] > 2 * 64
    assert 0 < figures["model_tflops_per_second"] < figures["hardware_tflops_per_second"]
    assert figures["memory_bytes"] is figures["share_of_peak_model"] is figures["loss_scale"] is None
    assert figures["trained_in"] == ["torch.float32"]
    metrics = (place.folder / "runs" / "qlora" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in metrics] == figures["losses"]


def test_a_run_can_be_told_that_its_device_is_a_t4(place, tiny):
    words = ("trainer.max_length=64", "trainer.global_batch_size=1")
    run = training.Training(recipe="english_quotes_colab", rows="quotes", words=words, as_on_a_t4=True)
    training.measure(run, place, "fp16", warm_up=0, steps=1)
    environment = json.loads((place.folder / "runs" / "fp16" / "environment.json").read_text())
    assert environment["compute_capability"] == "7.5"


@pytest.mark.slow
def test_a_run_that_is_cut_and_resumed_is_compared_with_one_that_is_not(place, tiny, monkeypatch):
    monkeypatch.setattr(training, "RESUMED", {"nf4 in fp16": training.RESUMED["lora"]})
    found = training.resume(place, "resume")["nf4 in fp16"]
    assert found["repeated"]["differ"] == found["resumed"]["differ"] == 0
    assert found["resumed"]["values"] > 1000
    status = json.loads((place.folder / "runs" / "resume-nf4-in-fp16-cut" / "status.json").read_text())
    assert status["state"] == "finished"
    adapter = place.folder / "runs" / "resume-nf4-in-fp16-once" / "adapter"
    other = shutil.copytree(adapter, place.folder / "other")
    weights = load_file(other / "adapter_model.safetensors")
    save_file({name: value + 1e-6 for name, value in weights.items()}, other / "adapter_model.safetensors")
    assert training._differ(adapter, other)["differ"] > 1000


def test_quantised_bytes_of_one_device_are_the_same_twice(place):
    found = quantising.quantising(place, "quantising")
    assert found["differing_in_all"] == {"nf4": 0, "int8": 0}
    titles = list(found["nf4"])
    assert "normal 64x256 bfloat16, double quantised" in titles
    assert "edges float16" in titles
    doubled = found["nf4"]["edges bfloat16, double quantised"]
    assert {"packed", "scales", "scales_of_scales", "mean", "dequantised", "exported"} <= doubled.keys()


def test_bytes_that_differ_are_counted():
    one = torch.tensor([0.0, 1.0, math.nan, 2.0])
    assert quantising.differing(one, one) == {"of": 4, "differ": 0}
    other = torch.tensor([-0.0, 1.5, math.nan, 2.0])
    assert quantising.differing(one, other) == {"of": 4, "differ": 2, "largest": 0.5}
    found = {"a": {"packed": {"of": 1, "differ": 3}}, "b": {"scales": {"of": 1, "differ": 4}}}
    assert sum(quantising._differing(found)) == 7


@pytest.mark.parametrize("name", ["loss_head", "attention", "ceilings"])
def test_a_part_that_measures_one_thing_alone_runs(name, place):
    found = PARTS[name].measure(place, name)
    if name == "loss_head":
        for side in kernels.HEADS:
            assert found[side]["seconds"] > 0
            if side != "torch":  # torch 2.13 sums it in bf16
                assert abs(found[side]["error_of_loss"]) < 0.01
    elif name == "attention":
        assert found["gemma sdpa"]["seconds"] > 0
        assert found["gemma2 eager"]["seconds"] > 0
        assert found["gemma2 flash_attention_2"] == {"left_out": "flash-attn is not installed"}
    else:
        assert found["bfloat16"]["tflops_per_second"] > 0


def test_what_does_not_fit_says_what_was_asked_for():
    def run():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.\nmore")

    assert kernels.timed(run, "cpu") == {
        "does_not_fit": "CUDA out of memory. Tried to allocate 9.00 GiB.",
    }


def test_the_tests_of_gpus_are_counted(place, monkeypatch):
    cases = '<testcase name="a"/><testcase name="b"><failure message="no"/></testcase>'
    cases += '<testcase name="c"><skipped message="two GPUs"/></testcase>'

    def run(command, **_):
        report = next(word for word in command if word.startswith("--junitxml=")).partition("=")[2]
        Path(report).write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
        return SimpleNamespace(returncode=1, stdout="", stderr="")

    monkeypatch.setattr(suite.subprocess, "run", run)
    found = suite.tests(place, "tests")
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["tests"] == {"a": "passed", "b": "failed: no", "c": "skipped: two GPUs"}


# the memory of a step


class ScriptedAllocator(meter.Allocator):
    """An account of memory whose numbers a test writes."""

    def __init__(self):
        self.counts, self.now, self.peak, self.reserved = True, 0, 0, 2222

    def allocated(self):
        return self.now

    def take_peak(self):
        peak, self.peak = max(self.peak, self.now), self.now
        return peak

    def wait(self):
        pass


def test_the_memory_of_a_step_is_told_apart(monkeypatch):
    allocator = ScriptedAllocator()
    watch = meter.Meter(allocator, warm_up=0, steps=1, seconds=None)
    norm, model = torch.nn.Identity(), torch.nn.Module()
    model.model = torch.nn.Module()
    model.model.norm = norm
    state = {"exp_avg": torch.zeros(10, device="meta"), "step": torch.zeros(1), "paged": torch.zeros(5)}
    state["paged"].is_paged = True
    watch.trainer = SimpleNamespace(
        accelerator=SimpleNamespace(scaler=None), optimizer=SimpleNamespace(state={0: state})
    )
    watch.held |= {"model": 1000, "adapters": 1100}
    allocator.now = 1150
    watch.on_train_begin(model=model)
    for _ in range(2):  # micro-batches
        watch.on_step_begin() if not watch.peaks else watch.on_substep_end()
        start = allocator.now
        allocator.now, allocator.peak = start + 300, start + 350
        hidden = norm(torch.ones(1, requires_grad=True))
        allocator.peak = allocator.now + 700
        loss = hidden.sum()
        loss.backward()
        allocator.now, allocator.peak = 1170, start + 900
    watch.on_pre_optimizer_step()
    allocator.now, allocator.peak = 1190, 1400
    watch.on_step_end()
    with pytest.raises(meter.EnoughMeasuredError):
        watch.on_log(logs={"loss": 2.0, "num_tokens": 64})

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10, 5000))
    found = account.memory(watch)
    peaks = found.pop("peaks")
    assert peaks == {
        "forward": 1170 + 350,
        "loss": 1170 + 300 + 700,
        "backward": 1170 + 900,
        "optimizer": 1400,
    }
    assert found == {
        "weights": 1000,
        "adapters": 100,
        "model": 1150,
        "optimizer": 40,
        "optimizer_paged": 20,
        "optimizer_on_cpu": 4,
        "gradients": 20,
        "activations": 300,
        "loss": 700,
        "backward": 1170 + 900 - 1190,
        "peak": 2170,
        "reserved": 2222,
        "device_used": 4990,
    }


# what is begun, left out, written


def test_a_part_is_begun_only_if_the_time_and_the_gpus_suffice():
    assert gpu.begin_or_leave(PLAIN, ABOUT, 96, 45) is None
    assert gpu.begin_or_leave(PLAIN, ABOUT, 94, 45) == {
        "status": "left out",
        "reason": "94 s left, about 95 s needed",
    }
    two = PARTS["fsdp_lora"]
    assert gpu.begin_or_leave(two, ABOUT, 999, 0)["reason"] == "needs 2 GPUs, and 1 are in sight"
    assert gpu.begin_or_leave(two, {**ABOUT, "gpus": 2}, 999, 0) is None


def test_the_most_worthy_parts_fit_into_the_default_time():
    bases_too = gpu.BASE_SECONDS["7b"] + gpu.BASE_SECONDS["2b"]
    first = ["quantising", "qlora", "lora", "full", "int8", "fp16", "loss_head", "attention", "resume"]
    assert list(PARTS)[: len(first)] == first
    assert sum(PARTS[name].seconds for name in first) + bases_too < 9 * 60


def test_a_shape_is_lowered_to_the_largest_a_part_is_meant_for():
    full, qlora, bytes_alone = PARTS["full"], PARTS["qlora"], PARTS["quantising"]
    assert [gpu.shape_of(full, shape) for shape in bases.SHAPES] == ["tiny", "2b", "2b"]
    assert [gpu.shape_of(qlora, shape) for shape in bases.SHAPES] == ["tiny", "2b", "7b"]
    assert gpu.shape_of(bytes_alone, "7b") == "7b"


def test_results_are_kept_by_device_and_what_was_measured_is_not_lost(tmp_path):
    file = tmp_path / "gpu.json"
    measured = {"status": "measured", "figures": {"a": 1}}
    results.record(file, ABOUT, "qlora 7b", measured)
    results.record(
        file, {**ABOUT, "device": "Tesla T4"}, "qlora 7b", {"status": "does not fit", "reason": ""}
    )
    results.record(file, ABOUT, "qlora 7b", {"status": "left out", "reason": "3 s left"})
    results.record(file, ABOUT, "int8 7b", {"status": "left out", "reason": "3 s left"})
    found = json.loads(file.read_text())
    assert found["NVIDIA L4"]["parts"]["qlora 7b"] == measured | {"date": "2026-01-01", "git_revision": "abc"}
    assert found["NVIDIA L4"]["parts"]["int8 7b"]["status"] == "left out"
    assert found["Tesla T4"]["parts"]["qlora 7b"]["status"] == "does not fit"
    results.record(file, ABOUT, "qlora 7b", {"status": "failed", "reason": "broken since"})
    assert json.loads(file.read_text())["NVIDIA L4"]["parts"]["qlora 7b"]["status"] == "failed"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."), "does not fit"),
        (MemoryError(), "does not fit"),
        (RuntimeError("broken"), "failed"),
    ],
)
def test_a_part_that_raises_leaves_an_outcome(error, status, place, monkeypatch):
    def measure(place, name):
        raise error

    monkeypatch.setitem(gpu.PARTS, "qlora", Part(says="", seconds=1, measure=measure))
    codes = []
    monkeypatch.setattr(gpu.os, "_exit", codes.append)
    out = place.folder / "qlora.json"
    gpu.child("qlora", place, out)
    outcome = json.loads(out.read_text())
    assert (outcome["status"], codes) == (status, [status == "failed"])
    assert type(error).__name__ in outcome["reason"]


def test_our_own_line_for_memory_that_ran_out_counts_as_not_fitting(tmp_path):
    from gemma_ft.config.compose import compose
    from gemma_ft.runs import RunFolder
    from gemma_ft.training.memory import explain_out_of_memory

    ran_out = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
    line = explain_out_of_memory(ran_out, compose("model=tiny"), RunFolder(tmp_path / "run"))
    assert gpu._kind_of(line) == "does not fit"


@pytest.mark.parametrize(
    ("code", "seconds", "reason"),
    [
        ("import os; print('last words'); os.abort()", 60, "the process ended with -6"),
        ("import time; print('last words', flush=True); time.sleep(60)", 2, "stopped when the time was up"),
    ],
)
def test_a_process_that_dies_or_takes_too_long_is_a_failed_part(code, seconds, reason, place, monkeypatch):
    monkeypatch.setattr(gpu, "child_command", lambda *_: [sys.executable, "-c", code])
    start = time.monotonic()
    outcome = gpu.run_child("qlora", place, seconds)
    assert (outcome["status"], outcome["reason"]) == ("failed", reason)
    assert "last words" in outcome["tail"]
    assert time.monotonic() - start < 50


def test_a_launched_part_goes_through_torchrun_and_sees_all_gpus(place, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    words = gpu.child_command("fsdp_lora", place, Path("out"), 2)
    assert words[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    on_gpu = training.Place(folder=place.folder, shape="7b", device="cuda")
    assert gpu.child_environment(on_gpu, one_gpu=True)["CUDA_VISIBLE_DEVICES"] == "2"
    assert gpu.child_environment(on_gpu, one_gpu=False)["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert gpu.child_environment(place, one_gpu=True)["CUDA_VISIBLE_DEVICES"] == ""


def test_the_readme_names_every_part_and_no_figure_that_was_not_measured():
    page = (BENCHMARKS / "README.md").read_text().partition("## `gpu.py`")[2].partition("\n## ")[0]
    assert all(f"`{name}`" in page for name in PARTS)
    measured = gpu.RESULTS.exists()
    assert ("**Not measured**" in page) != measured


def start(*words, cwd):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def test_the_command_writes_each_outcome(tmp_path):
    file = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--shape", "tiny", "--folder", str(tmp_path), "--results", str(file)]
    done = start(*words, "--parts", "qlora", "ddp_lora", "--minutes", "0.2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(file.read_text()).values()
    assert entry["device"] == "CPU"
    assert entry["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"\d+ s left, about 55 s needed", entry["parts"]["qlora tiny"]["reason"])
    assert entry["parts"]["ddp_lora tiny"]["reason"] == "needs 2 GPUs, and 0 are in sight"
    assert list(tmp_path.iterdir()) == [file]


def test_figures_of_a_cpu_do_not_go_to_those_of_gpus(tmp_path):
    done = start("--device", "cpu", cwd=tmp_path)
    assert done.returncode == 2
    assert "--device cpu measures no GPU: name another file with --results" in done.stderr


def test_only_the_tests_see_all_gpus_in_one_process(tmp_path, monkeypatch):
    seen = {}

    def run_child(name, place, seconds, *, processes=None, one_gpu=True):
        seen[name] = (processes, one_gpu)
        return {"status": "measured", "figures": {}, "seconds": 1}

    monkeypatch.setattr(gpu, "run_child", run_child)
    (tmp_path / "base-7b.json").touch()
    asked = training.Place(folder=tmp_path, shape="7b", device="cuda")
    for name in ("tests", "lora", "fsdp_lora"):
        gpu.measure(name, asked, {**ABOUT, "gpus": 4}, time.monotonic() + 9999)
    assert seen == {"tests": (None, False), "lora": (None, True), "fsdp_lora": (4, True)}


def test_without_a_gpu_nothing_is_written(tmp_path):
    done = start("--folder", str(tmp_path), "--results", str(tmp_path / "gpu.json"), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "no GPU can be measured here: torch sees none; --device cpu --shape tiny tries the script"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_part_runs_in_tiny(tmp_path):
    file = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--shape", "tiny", "--results", str(file), "--minutes", "30", "--parts"]
    parts = [name for name, part in PARTS.items() if not part.launched and name != "tests"]
    done = start(*words, *parts, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(file.read_text()).values()
    assert {name: outcome["status"] for name, outcome in entry["parts"].items()} == {
        name if PARTS[name].largest is None else f"{name} tiny": "measured" for name in parts
    }
