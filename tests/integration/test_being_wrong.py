"""Runs that cannot be right, through the command line's entry: they stop, and say where and why."""

import json
import math
import re
import shutil
import subprocess
import sys

import pytest
from program import losses, status, tensors

NAN = math.nan


def words_for(chats, name, *more, quantization="none"):
    return [
        f"name={name}",
        "model=tiny",
        "dataset=local",
        f"dataset.path={chats}",
        f"quantization={quantization}",
        "export=none",
        "trainer.max_length=64",
        "trainer.max_steps=19",
        "trainer.save_steps=2",
        "trainer.save_total_limit=null",
        "trainer.global_batch_size=2",
        "trainer.logging_steps=1",
        "trainer.learning_rate=1e-3",
        *more,
    ]


@pytest.fixture
def spoil(monkeypatch):
    """Make the loss of every micro-batch that says something no number, or its gradients alone."""
    from trl import SFTTrainer

    compute = SFTTrainer.compute_loss

    def plant(text, spoilt=lambda loss: loss * NAN):
        def compute_loss(self, model, inputs, *args, **kwargs):
            loss = compute(self, model, inputs, *args, **kwargs)
            said = self.processing_class.decode(inputs["input_ids"].flatten())
            return spoilt(loss) if text in said and model.training else loss

        monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)

    return plant


def without_a_gradient(loss):
    return loss + (0 * loss).sqrt()


def stopped(run, capsys):
    """Look at what a run leaves that has stopped while training; return its one line and the step."""
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (line,) = [line.removeprefix("error: ") for line in printed.splitlines() if line.startswith("error: ")]
    said = status(run)
    assert (said["state"], said["stage"]) == ("failed", "training")
    assert said["reason"] == line
    step = int(re.search(r"at step (\d+)", line)[1])
    assert len(losses(run)) == step - 1
    saved = {path.name: path for path in (run / "checkpoints").iterdir() if path.name.startswith("step-")}
    assert sorted(saved) == [f"step-{number:06d}" for number in range(2, step, 2)]
    assert all(tensors(folder) for folder in saved.values())
    assert not [path.name for path in run.iterdir() if path.name in ("adapter", "model", "merged")]
    return line, step


@pytest.mark.parametrize("more", [[], ["trainer.micro_batch_size=2"], ["trainer.packing=true"]], ids=" ".join)
def test_a_loss_that_is_no_number_stops_with_its_step_and_its_rows(train, chats, spoil, capsys, more):
    spoil("What is 17 plus")
    line, step = stopped(train(*words_for(chats, "spoilt", *more), code=1), capsys)
    named = re.search(r"^the loss is nan at step \d+, in the batch of (.*)\. What usually helps: ", line)[1]
    rows = re.findall(r"chats\.jsonl:(\d+)", named)
    assert "18" in rows or " more" in named
    if not more:
        assert rows == ["18"]
    assert ("trainer.learning_rate below 0.001" in line) == (step > 1)
    spoil("nothing")
    again = train(*words_for(chats, "spoilt", *more))
    assert status(again)["state"] == "finished"


def test_gradients_that_are_no_numbers_stop_without_a_bad_loss(train, chats, spoil, capsys):
    spoil("What is 17 plus", without_a_gradient)
    line, _ = stopped(train(*words_for(chats, "spoilt", "trainer.max_grad_norm=0"), code=1), capsys)
    assert re.search(r"^the norm of the gradients is nan at step \d+, in the batch of ", line)
    rows = re.findall(r"chats\.jsonl:(\d+)", line)
    assert len(rows) == 2
    assert "18" in rows
    train(*words_for(chats, "spoilt", "trainer.max_grad_norm=0"), code=1)
    again = capsys.readouterr().err
    assert line in again
    assert "going on from" in again or "checkpoints" not in line


SPOILT = """
import sys
from trl import SFTTrainer
from gemma_ft.cli import main

compute = SFTTrainer.compute_loss

def compute_loss(self, model, inputs, *args, **kwargs):
    loss = compute(self, model, inputs, *args, **kwargs)
    said = self.processing_class.decode(inputs["input_ids"].flatten())
    return loss * float("nan") if "What is 17 plus" in said and model.training else loss

SFTTrainer.compute_loss = compute_loss
sys.exit(main(sys.argv[1:]))
"""


def test_all_processes_stop_at_the_row_of_one(chats, tiny, tmp_path):
    (tmp_path / "spoilt.py").write_text(SPOILT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "spoilt.py", *words_for(chats, "two")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("error: the loss is nan") == 1
    said = status(tmp_path / "outputs" / "two")
    assert said["state"] == "failed"
    assert re.search(
        r"the loss is nan at step \d+, in the batch of \S*chats\.jsonl:18\. What", said["reason"]
    )


@pytest.fixture
def torn_base(tiny, tmp_path):
    """A checkpoint with one infinite weight."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny, tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = math.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_base_that_is_not_finite_is_named_itself(train, chats, torn_base, capsys, quantization):
    more = [f"model.path={torn_base}", "dataset.eval_fraction=0"]
    words = words_for(chats, "base", *more, quantization=quantization)
    line, step = stopped(train(*words, code=1), capsys)
    assert line.startswith(f"model.path={torn_base} holds weights that are not finite: the ")
    assert line.endswith("Fetch or convert it again.")
    assert step == 1


def test_a_held_out_loss_that_is_no_number_ends_the_run_too(train, chats, torn_base, capsys):
    run = train(*words_for(chats, "base", f"model.path={torn_base}"), code=1)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        f"error: model.path={torn_base} holds weights that are not finite: the held-out loss "
    )
    assert (status(run)["state"], losses(run)) == ("failed", [])


@pytest.mark.parametrize("more", [[], ["adapter=none"]], ids=" ".join)
def test_a_rate_that_blows_weights_up_leaves_whole_checkpoints_only(train, chats, capsys, more):
    words = words_for(chats, "fast", "trainer.learning_rate=1e37", "trainer.warmup_steps=2", *more)
    line, step = stopped(train(*words, code=1), capsys)
    assert step > 1
    assert "trainer.learning_rate below 1e+37" in line


def test_a_spike_is_said_and_kept_with_its_step(train, chats, spoil, capsys):
    spoil("What is 17 plus", lambda loss: 12 * loss)
    run = train(*words_for(chats, "spiky"))
    (step,) = [
        record["step"] for record in map(json.loads, (run / "metrics.jsonl").open()) if "loss_spike" in record
    ]
    printed = capsys.readouterr().err
    assert re.search(rf"step {step}: the loss is \d+\.\d times the median of those before it\.", printed)
    spoil("nothing")
    run = train(*words_for(chats, "calm"))
    assert "loss_spike" not in (run / "metrics.jsonl").read_text()
    assert "times the median" not in capsys.readouterr().err


def test_memory_that_runs_out_is_told_with_what_saves_most(train, chats, spoil, capsys):
    def asking_for_too_much(loss):
        import torch

        return loss + torch.empty(2**50, dtype=torch.uint8).sum()

    spoil("What is 17 plus", asking_for_too_much)
    run = train(*words_for(chats, "large", "trainer.micro_batch_size=2"), code=1)
    printed = capsys.readouterr().err
    line = printed.splitlines()[-1].removeprefix("error: ")
    assert line.startswith("memory ran out in the stage training: 1048576.00 GiB asked for, ")
    assert "trainer.micro_batch_size=1" in line
    assert "Traceback" not in printed
    assert (status(run)["state"], status(run)["reason"]) == ("failed", line)


CODE = "from pathlib import Path\nPath({marker!r}).touch()\nclass Planted: pass\n"


@pytest.mark.parametrize(
    ("file", "entry", "name"),
    [
        ("config.json", {"AutoConfig": "planted.Planted", "AutoModelForCausalLM": "planted.Planted"}, {}),
        ("tokenizer_config.json", {"AutoTokenizer": ["planted.Planted", "planted.Planted"]}, {}),
        (
            "tokenizer_config.json",
            {"AutoTokenizer": ["planted.Planted", None]},
            {"tokenizer_class": "Planted"},
        ),
    ],
)
def test_code_that_comes_with_a_base_is_never_run_nor_asked_about(
    train, chats, tiny, tmp_path, capsys, monkeypatch, file, entry, name
):
    folder, marker = shutil.copytree(tiny, tmp_path / "base"), tmp_path / "ran"
    (folder / "planted.py").write_text(CODE.format(marker=str(marker)))
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | {"auto_map": entry} | name))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    monkeypatch.setenv("HF_HUB_TRUST_REMOTE_CODE", "1")
    words = words_for(chats, "planted", f"model.path={folder}", "trainer.max_steps=1")
    from gemma_ft.cli import main

    code = main(words)
    assert "Traceback" not in capsys.readouterr().err
    assert code in (0, 2)
    assert not marker.exists()
