"""`recipe=quickstart`, as the README tells a newcomer to type it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from program import losses, start, status

GOLDEN = Path(__file__).parents[1] / "golden" / "quickstart.json"
LOADS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
assert "gemma_ft" not in sys.modules
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(info.values()), info
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": "What is AI?"}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**ids, max_new_tokens=40, do_sample=False)
print(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True).strip())
print(model.generation_config.eos_token_id)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    return tmp_path_factory.mktemp("newcomer")


@pytest.fixture(scope="module")
def finished(folder: Path) -> subprocess.CompletedProcess[str]:
    return start("recipe=quickstart", cwd=folder)


@pytest.fixture(scope="module")
def run(folder: Path, finished: subprocess.CompletedProcess[str]) -> Path:
    assert finished.returncode == 0, finished.stderr
    return folder / "outputs" / "quickstart"


def learned(run: Path) -> bool:
    """The claim of the README: the held-out loss ends at least 15 % below its start."""
    held_out = losses(run, "eval_loss")
    return held_out[-1] <= 0.85 * held_out[0]


def test_it_learns(run):
    assert learned(run)


def test_without_a_learning_rate_it_does_not(train):
    still = train("recipe=quickstart", "name=still", "trainer.learning_rate=0", "trainer.max_steps=3")
    assert not learned(still)


def test_its_losses_follow_the_recorded_trajectory(run):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert losses(run) == pytest.approx(golden["loss"], rel=golden["tolerance"])
    assert losses(run, "eval_loss") == pytest.approx(golden["eval_loss"], rel=golden["tolerance"])


def test_nothing_is_said_that_a_user_can_do_nothing_about(finished):
    assert finished.stdout == ""
    known = (
        "run ",
        "device ",
        "batch ",
        "data ",
        "  ",  # what is notable of the data
        "model ",
        "before ",
        "after ",
        "step ",
        "trained",
        "certificate: ",
        "exported",
        "finished",
    )
    strange = [line for line in finished.stderr.splitlines() if not line.startswith(known)]
    assert strange == []


def test_the_run_folder_holds_what_later_steps_need(run):
    names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert names == {
        "adapter",
        "certificate.json",
        "certificate_rows.json",
        "checkpoints",
        "config.yaml",
        "data.json",
        "environment.json",
        "loss_head.json",
        "merged",
        "metrics.jsonl",
        "status.json",
        "trained.json",
    }
    assert status(run) == {"state": "finished", "stage": "finished", "reason": None}
    environment = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["trl"]
    assert environment["dtype"] == "fp32"
    samples = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if '"sample"' in line
    ]
    assert [sample["sample"] for sample in samples] == ["before", "after"]
    assert samples[0]["answer"] != samples[1]["answer"]


def test_held_out_rows_are_none_of_the_trained_ones(run):
    facts = json.loads((run / "data.json").read_text())
    assert facts["rows_held_out"] >= 50
    assert facts["rows_train"] + facts["rows_held_out"] == facts["rows_read"]


def test_the_merged_checkpoint_loads_without_us_and_answers_alike(run, folder):
    plain = subprocess.run(
        [sys.executable, "-c", LOADS, str(run / "merged")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert plain.returncode == 0, plain.stderr
    answer, _, stop_ids = plain.stdout.strip().rpartition("\n")
    assert json.loads(stop_ids) == [1, 107]
    ours = start("generate", "outputs/quickstart", "What is AI?", "--max-new-tokens", "40", cwd=folder)
    assert ours.stdout.strip() == answer.strip()


@pytest.mark.parametrize("which", ["base", "adapter", "merged"])
def test_each_model_of_the_run_answers(run, folder, which):
    done = start("generate", str(run), "a = b?", "--model", which, "--max-new-tokens", "4", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_same_line_again_does_not_train_again(run, folder):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    again = start("recipe=quickstart", cwd=folder)
    assert again.returncode == 0
    assert "outputs/quickstart is finished" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_another_setting_under_the_same_name_is_refused(run, folder):
    refused = start("recipe=quickstart", "trainer.learning_rate=0.001", cwd=folder)
    assert refused.returncode == 2
    assert "trainer.learning_rate=0.001 (there: 0.005)" in refused.stderr
    assert "name=quickstart-2" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_moved_run_is_exported_again_from_its_folder_alone(run, folder):
    moved = folder / "moved"
    run.rename(moved)
    try:
        done = start("export", str(moved), "export.max_shard_size=2MB", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(moved / "merged")
        assert len(list((moved / "merged").glob("model-*.safetensors"))) >= 4
    finally:
        moved.rename(run)
