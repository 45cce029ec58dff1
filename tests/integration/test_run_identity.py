"""What a run goes on with: the base, template, tokenizer and settings that it began with, and one process."""

import json
import shutil
from pathlib import Path

import pytest
from program import status

import gemma_ft.training.run as module
from gemma_ft.cli import main

WORDS = [
    "dataset=local",
    "dataset.path=chats.jsonl",
    "quantization=none",
    "trainer.max_length=64",
    "trainer.max_steps=4",
    "trainer.save_steps=2",
    "trainer.global_batch_size=2",
    "trainer.logging_steps=1",
    "trainer.learning_rate=1e-2",
    "export=none",
]


@pytest.fixture
def base(tmp_path, tiny):
    """The bundled model as a folder of one's own."""
    return Path(shutil.copytree(tiny, tmp_path / "base"))


@pytest.fixture
def cut(train, chats, base, capsys):
    """A run that was cut before its end, and a function that goes on with it and returns what it says."""
    words = [*WORDS, "name=cut", f"model.path={base}"]
    run = train(*words)
    as_if_cut(run)

    def go_on(*more, code=2):
        capsys.readouterr()
        before = (run / "data.json").read_bytes()
        train(*words, *more, code=code)
        assert (run / "data.json").read_bytes() == before
        return capsys.readouterr().err

    return run, go_on


def as_if_cut(run):
    shutil.rmtree(run / "adapter")
    (run / "trained.json").unlink()
    (run / "status.json").write_text('{"state": "interrupted", "stage": "training", "reason": null}')


def edit_weights(base, name="model.norm.weight"):
    from safetensors.torch import load_file, save_file

    (file,) = base.glob("*.safetensors")
    held = load_file(file)
    held[name][-1] += 1
    save_file(held, file, metadata={"format": "pt"})


def edit_json(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_a_run_does_not_go_on_with_another_base(cut, base):
    run, go_on = cut
    edit_json(base / "config.json", rope_theta=9999.0)
    edit_weights(base)
    said = go_on()
    assert f"changed since it began: config.json, weights of model.path={base}. Restore it, or start" in said
    assert "Traceback" not in said
    assert not (run / "adapter").exists()
    assert "loading" not in said


def test_a_run_does_not_go_on_with_another_template_or_tokenizer(cut, base):
    _, go_on = cut
    template = base / "chat_template.jinja"
    kept = template.read_text()
    template.write_text("{# mine #}" + kept)
    assert "holds a run whose chat template changed since it began. Restore them" in go_on()
    template.write_text(kept)
    edit_json(base / "tokenizer.json", post_processor=None)
    assert "holds a run whose tokenizer changed since it began" in go_on()


ODD = [None, "", "[]", {}, {"data_sha256": [1]}, {"model": 7}, {"start": 7}, {"start": {"fingerprint": []}}]


def test_a_data_json_that_says_nothing_ends_in_one_line(cut, train, base, capsys):
    run, _ = cut
    facts = json.loads((run / "data.json").read_text())
    for content in ODD:
        if content is None:
            (run / "data.json").unlink()
        elif isinstance(content, str):
            (run / "data.json").write_text(content)
        else:
            (run / "data.json").write_text(json.dumps(facts | content if content else content))
        capsys.readouterr()
        train(*WORDS, "name=cut", f"model.path={base}", code=2)
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, content
        assert "start anew with --overwrite" in errors[0]


def test_a_base_that_changes_while_it_is_trained_on_ends_the_run(train, chats, base, capsys, monkeypatch):
    def save(*words):
        kept(*words)
        edit_weights(base)

    kept = module._save
    monkeypatch.setattr(module, "_save", save)
    run = train(*WORDS, "name=swapped", f"model.path={base}", code=2)
    assert "holds other weights than" in capsys.readouterr().err
    assert status(run)["state"] == "failed"
    assert status(run)["stage"] == "training"
    assert not (run / "trained.json").exists()
    assert main(["export", str(run)]) == 2
    assert (
        "has not been trained to its end yet: status.json says failed at stage training"
        in capsys.readouterr().err
    )


def test_a_starting_adapter_that_changes_is_refused(train, chats, base, capsys):
    first = train(*WORDS, "name=first", f"model.path={base}")
    words = [*WORDS, "name=second", f"model.path={base}", f"adapter.path={first / 'adapter'}"]
    second = train(*words)
    as_if_cut(second)
    edit_json(first / "adapter" / "adapter_config.json", lora_alpha=99)
    train(*words, code=2)
    assert "whose base changed since it began: starting adapter of" in capsys.readouterr().err
