"""What multiplies matrices is settled at a run's first start, recorded, and taken up again."""

import json

import pytest
import torch

from gemma_ft.config.schema import Attention, Dtype, ParallelMethod, RunConfig
from gemma_ft.config.trainer import CpuMatmul, TrainerConfig
from gemma_ft.errors import ConfigError
from gemma_ft.modeling.matmul import Weight
from gemma_ft.modeling.precision import Device, Precision
from gemma_ft.runs import RunFolder
from gemma_ft.training import matmul
from gemma_ft.training.layout import Layout
from gemma_ft.training.matmul import linear_weights, settle_matmul

ALONE = Layout(world_size=1, rank=0, accumulation=1, method=ParallelMethod.single)
LAST_OF_TWO = Layout(world_size=2, rank=1, accumulation=1, method=ParallelMethod.ddp)
CPU = Device(kind="cpu", name="CPU", bf16=True, flash_attention=False)
GPU = Device(kind="cuda", name="A100", bf16=True, flash_attention=False)
DEFAULT, ONEDNN = CpuMatmul.default, CpuMatmul.onednn


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def machine(monkeypatch):
    """A processor on which oneDNN is exact and twice as fast, until a test says otherwise."""
    here = {"fault": "", "gain": 2.0, "has": True}
    monkeypatch.setattr(matmul, "has_onednn", lambda: here["has"])
    monkeypatch.setattr(matmul, "find_fault", lambda weights: here["fault"])
    monkeypatch.setattr(
        matmul, "time_products", lambda weights, rows, *, onednn: 0.1 / (here["gain"] if onednn else 1)
    )
    return here


def settle(run, *, layout=ALONE, device=CPU, dtype=Dtype.fp32, width=3000, **trainer):
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Embedding(9, 9), torch.nn.Linear(width, width))
    config = RunConfig(name="a", trainer=TrainerConfig(**trainer))
    precision = Precision(device=device, dtype=dtype, attention=Attention.sdpa, reasons=())
    return settle_matmul(config, run, layout, precision, model)


def record(run):
    return json.loads(run.cpu_matmul.read_text())


def test_the_faster_one_is_taken_and_the_resume_takes_it_however_fast_it_is_now(run, machine):
    assert settle(run) is ONEDNN
    begun = record(run)
    assert begun["reason"] == "it is 2.00 times as fast as torch's own choice and as exact"
    assert begun["milliseconds"] == {"default": 100.0, "onednn": 50.0}
    machine["gain"] = 0.5
    assert settle(run) is ONEDNN
    assert record(run) == begun


def test_little_gain_is_not_worth_its_memory_and_a_resume_keeps_to_that(run, machine):
    machine["gain"] = 1.1
    assert settle(run) is DEFAULT
    assert record(run)["reason"] == "oneDNN is 1.10 times as fast, which is not worth its memory"
    machine["gain"] = 2.0
    assert settle(run) is DEFAULT


def test_products_that_are_not_exact_are_never_taken_however_the_run_began(run, machine):
    assert settle(run) is ONEDNN
    machine["fault"] = "its products are 0.002 off"
    assert settle(run) is DEFAULT
    assert record(run)["reason"] == "its products are 0.002 off"


@pytest.mark.parametrize("key", ["torch", "instructions", "most_tokens", "weights"])
def test_it_is_chosen_anew_where_the_circumstances_are_others(run, machine, key):
    settle(run)
    kept = record(run)
    kept["chosen_for"][key] = "another"
    run.cpu_matmul.write_text(json.dumps(kept))
    machine["gain"] = 1.0
    assert settle(run) is DEFAULT


@pytest.mark.parametrize(
    "words",
    [{"width": 200}, {"dtype": Dtype.bf16}, {"device": GPU}, {"cpu_matmul": DEFAULT}],
    ids=["a small model", "bf16", "a GPU", "as asked"],
)
def test_where_it_is_settled_without_measuring_nothing_is_written(run, machine, words):
    assert settle(run, **words) is DEFAULT
    assert not run.cpu_matmul.exists()


def test_a_torch_without_it_computes_as_before(run, machine):
    machine["has"] = False
    assert settle(run) is DEFAULT


def test_it_is_taken_as_asked_for_a_small_model_too(run, machine):
    machine["gain"] = 0.5
    assert settle(run, width=8, cpu_matmul=ONEDNN) is ONEDNN


def test_asking_for_what_cannot_be_is_answered(run, machine):
    with pytest.raises(ConfigError) as error:
        settle(run, device=GPU, dtype=Dtype.bf16, cpu_matmul=ONEDNN)
    assert str(error.value) == (
        "trainer.cpu_matmul=onednn is for fp32 on a CPU; this run computes in bf16 on A100. Leave it out."
    )
    machine["fault"] = "its products are 0.002 off"
    with pytest.raises(ConfigError) as error:
        settle(run, cpu_matmul=ONEDNN)
    assert str(error.value) == (
        "trainer.cpu_matmul=onednn is wrong here: its products are 0.002 off. Use trainer.cpu_matmul=auto."
    )
    machine["has"] = False
    with pytest.raises(
        ConfigError, match=r"^trainer\.cpu_matmul=onednn needs a torch that has it; .* has not"
    ):
        settle(run, cpu_matmul=ONEDNN)


@pytest.mark.parametrize(("told", "taken"), [(1, ONEDNN), (0, DEFAULT)])
def test_the_other_processes_measure_nothing_and_take_what_the_first_says(
    run, machine, monkeypatch, told, taken
):
    monkeypatch.setattr(matmul, "time_products", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(matmul, "told_by_writer", lambda number: told if number is None else number)
    assert settle(run, layout=LAST_OF_TWO) is taken
    assert not run.cpu_matmul.exists()


def test_linear_layers_of_every_kind_are_weights_and_embeddings_are_not():
    import bitsandbytes

    layers = [torch.nn.Linear(3, 5), torch.nn.Linear(3, 5), bitsandbytes.nn.Linear4bit(64, 32)]
    model = torch.nn.ModuleList([*layers, torch.nn.Embedding(7, 2)])
    assert linear_weights(model) == [Weight(5, 3, 2), Weight(32, 64, 1)]
