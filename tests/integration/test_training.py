"""Runs through the command line's entry: cut, resumed, evaluated, failed and repeated."""

import errno
import json
from pathlib import Path

import pytest
from program import assert_same_tensors, losses, status, tensors


def words_for(chats: Path, name: str, *more: str) -> list[str]:
    return [
        f"name={name}",
        "model=tiny",
        "dataset=local",
        f"dataset.path={chats}",
        "trainer.max_length=64",
        "trainer.max_steps=6",
        "trainer.save_steps=2",
        "trainer.global_batch_size=2",
        "trainer.logging_steps=1",
        "trainer.learning_rate=1e-2",
        "adapter.dropout=0.1",
        *more,
    ]


@pytest.mark.parametrize(
    "more", [["quantization=nf4"], ["quantization=int8"], ["quantization=none", "adapter=none"]], ids=" ".join
)
def test_a_run_that_is_cut_goes_on_as_if_it_had_not_been(train, chats, monkeypatch, more):
    whole = train(*words_for(chats, "whole", *more))
    with monkeypatch.context() as patch:
        cut_after(patch, step=3)
        cut = train(*words_for(chats, "cut", *more), code=130)
    assert status(cut) == {
        "state": "interrupted",
        "stage": "training",
        "reason": "interrupted from the keyboard",
    }
    assert not (cut / "merged").exists()
    train(*words_for(chats, "cut", *more))
    assert status(cut)["state"] == "finished"
    assert losses(cut) == losses(whole)
    folder = "model" if "adapter=none" in more else "adapter"
    assert_same_tensors(cut / folder, whole / folder)
    assert_same_tensors(cut / "merged", whole / "merged")


def cut_after(patch: pytest.MonkeyPatch, step: int) -> None:
    """Interrupt a run as Ctrl-C does, once it has logged a step."""
    from gemma_ft.training.progress import Progress

    log = Progress.on_log

    def on_log(self, args, state, control, logs=None, **rest):
        log(self, args, state, control, logs, **rest)
        if state.global_step >= step:
            raise KeyboardInterrupt

    patch.setattr(Progress, "on_log", on_log)


EARLY_STOP = [
    "quantization=none",
    "dataset.eval_fraction=0.2",
    "trainer.max_steps=20",
    "trainer.learning_rate=10",
    "trainer.eval_steps=2",
    "trainer.load_best_model_at_end=true",
    "trainer.early_stopping_patience=2",
]


@pytest.mark.parametrize("more", [[], EARLY_STOP], ids=["max_steps", "early stop"])
def test_a_run_that_is_cut_after_its_last_step_trains_no_step_more(train, chats, monkeypatch, more):
    whole = train(*words_for(chats, "whole", *more))
    with monkeypatch.context() as patch:
        patch.setattr("gemma_ft.training.run._save", interrupt)
        cut = train(*words_for(chats, "cut", *more), code=130)
    train(*words_for(chats, "cut", *more))
    assert losses(cut) == losses(whole)
    assert losses(cut, "eval_loss") == losses(whole, "eval_loss")
    assert_same_tensors(cut / "adapter", whole / "adapter")


def test_patience_goes_on_counting_where_it_was(train, chats, monkeypatch):
    whole = train(*words_for(chats, "whole", *EARLY_STOP))
    steps = len(losses(whole))
    assert steps < 20
    with monkeypatch.context() as patch:
        cut_after(patch, step=steps - 1)
        cut = train(*words_for(chats, "cut", *EARLY_STOP), code=130)
    train(*words_for(chats, "cut", *EARLY_STOP))
    assert losses(cut) == losses(whole)
    assert_same_tensors(cut / "adapter", whole / "adapter")


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_evaluating_in_between_changes_nothing_that_is_trained(train, chats, quantization):
    common = [f"quantization={quantization}", "trainer.neftune_noise_alpha=5", "dataset.eval_fraction=0.2"]
    plain = train(*words_for(chats, "plain", *common))
    often = train(*words_for(chats, "often", *common, "trainer.eval_steps=1"))
    assert len(losses(often, "eval_loss")) == 7
    assert losses(often) == losses(plain)
    assert_same_tensors(often / "adapter", plain / "adapter")


def test_4bit_gradients_are_those_of_the_dequantised_weights(tiny):
    """After an evaluation, too: bitsandbytes repacks weights there on some processors."""
    import torch

    from gemma_ft.config.schema import ModelConfig, QuantizationConfig, QuantizationMethod
    from gemma_ft.families import FAMILIES
    from gemma_ft.modeling.checkpoint import Checkpoint
    from gemma_ft.modeling.loading import load_model
    from gemma_ft.modeling.precision import read_device, resolve_precision

    config = json.loads((tiny / "config.json").read_text())
    checkpoint = Checkpoint(path=str(tiny), folder=tiny, config=config, family=FAMILIES[0], revision=None)
    precision = resolve_precision(ModelConfig(), checkpoint.family, read_device())
    nf4 = QuantizationConfig(method=QuantizationMethod.nf4)
    model = load_model(checkpoint, precision, nf4, dtype=torch.float32)
    ids_BL = torch.arange(300, 316)[None]
    model.eval()
    with torch.no_grad():
        model(ids_BL)
    gradients = []
    for dequantised in (False, True):
        if dequantised:
            model = model.dequantize()
        model.train()
        embedded_BLD = model.get_input_embeddings()(ids_BL).detach().requires_grad_()
        model(inputs_embeds=embedded_BLD, labels=ids_BL).loss.backward()
        gradients.append(embedded_BLD.grad)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


def test_the_best_checkpoint_wins_and_patience_ends_the_run(train, chats):
    run = train(
        *words_for(
            chats,
            "best",
            "quantization=none",
            "trainer.max_steps=40",
            "trainer.learning_rate=0.3",
            "trainer.eval_steps=2",
            "trainer.load_best_model_at_end=true",
            "trainer.early_stopping_patience=2",
            "trainer.save_total_limit=1",
            "dataset.eval_fraction=0.2",
        )
    )
    held_out = losses(run, "eval_loss")
    assert len(losses(run)) < 40
    assert held_out[-1] == pytest.approx(min(held_out[1:]), abs=1e-6)


def test_training_goes_on_from_an_existing_adapter(train, chats):
    first = train(*words_for(chats, "first", "quantization=nf4"))
    second = train(
        *words_for(
            chats, "second", "quantization=nf4", f"adapter.path={first / 'adapter'}", "trainer.max_steps=2"
        )
    )
    assert losses(second, "eval_loss")[0] == pytest.approx(losses(first, "eval_loss")[-1], rel=1e-4)
    before, after = tensors(first / "adapter"), tensors(second / "adapter")
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


def test_old_checkpoints_go_and_the_newest_stay(train, chats):
    run = train(*words_for(chats, "kept", "trainer.save_steps=1", "trainer.save_total_limit=2"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000005", "step-000006"]


def test_a_run_that_fails_says_so_and_can_be_repeated(train, chats, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("gemma_ft.exporting.merged.export_checkpoint", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(*words_for(chats, "broken"))
    run = Path("outputs/broken")
    assert status(run)["state"] == "failed"
    assert status(run)["stage"] == "exporting"
    assert "ZeroDivisionError" in status(run)["reason"]
    before = {path: path.stat().st_mtime_ns for path in (run / "adapter", run / "metrics.jsonl")}
    train(*words_for(chats, "broken"))
    assert {path: path.stat().st_mtime_ns for path in before} == before  # only the export was left to do
    assert status(run)["state"] == "finished"


def test_overwrite_keeps_the_old_run_under_another_name(train, chats):
    run = train(*words_for(chats, "again", "trainer.max_steps=1"))
    train(*words_for(chats, "again", "trainer.max_steps=2"), "--overwrite")
    assert len(losses(run)) == 2
    assert len(losses(run.with_name("again.old-1"))) == 1


def test_a_folder_that_holds_something_else_is_left_alone(train, chats, tmp_path, capsys):
    (tmp_path / "outputs" / "mine").mkdir(parents=True)
    (tmp_path / "outputs" / "mine" / "thesis.txt").write_text("precious")
    train(*words_for(chats, "mine"), code=2)
    assert "holds files of no run" in capsys.readouterr().err


def test_plain_text_is_learned_whole(train, tmp_path):
    rows = [{"quote": f"Number {n} is enough.", "author": "Nobody"} for n in range(20)]
    path = tmp_path / "quotes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train(*words_for(path, "quotes"))
    facts = json.loads((run / "data.json").read_text())
    rows_train = facts["rows_train"]
    assert facts["trained_tokens"] == facts["tokens"] - rows_train  # all but each row's <bos>


def test_extras_that_trl_does_not_know_are_refused_before_the_model_loads(train, chats, capsys):
    train(*words_for(chats, "extra", "+trainer.extra.adam_beta_2=0.9"), code=2)
    assert "Did you mean trainer.extra.adam_beta2?" in capsys.readouterr().err


def test_a_full_fine_tune_answers_before_and_after_its_export(train, chats):
    from gemma_ft import export, generate

    run = train(*words_for(chats, "full", "quantization=none", "adapter=none", "export=none"))
    assert not (run / "merged").exists()
    before = generate(run, "What is 3 plus 3?", max_new_tokens=6)
    assert export(run) == run / "merged"
    assert generate(run, "What is 3 plus 3?", max_new_tokens=6) == before
    assert (run / "merged" / "tokenizer.json").read_bytes() == (run / "model" / "tokenizer.json").read_bytes()


def test_a_run_without_the_part_that_should_answer_says_how_to_make_it(train, chats, capsys):
    from gemma_ft.cli import main

    run = train(*words_for(chats, "bare", "export=none", "trainer.max_steps=1"))
    assert main(["generate", str(run), "hi", "--model", "merged"]) == 2
    assert f"Make it with: python -m gemma_ft export {run}" in capsys.readouterr().err


def test_a_sweep_hands_each_held_out_loss_to_its_sweeper(chats, tiny, tmp_path, monkeypatch):
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    from gemma_ft.cli import main

    monkeypatch.chdir(tmp_path)
    returned = []
    launch = BasicLauncher.launch

    def noting(self, *arguments, **named):
        done = launch(self, *arguments, **named)
        returned.extend(job.return_value for job in done)
        return done

    monkeypatch.setattr(BasicLauncher, "launch", noting)
    words = words_for(chats, "swept", "trainer.max_steps=1", "export=none", "seed=1,2", "--multirun")
    assert main(words) == 0
    runs = [tmp_path / "outputs" / f"swept-seed_{seed}" for seed in (1, 2)]
    assert returned == [losses(run, "eval_loss")[-1] for run in runs]


def test_a_loss_that_is_no_number_ends_the_run(train, chats, capsys):
    words = [
        "trainer.learning_rate=1e30",
        "trainer.max_grad_norm=0",
        "trainer.max_steps=40",
        "trainer.save_steps=1000",
    ]
    run = train(*words_for(chats, "lost", *words), code=1)
    assert "loss is nan at step" in capsys.readouterr().err
    assert len(losses(run)) < 10
    assert (status(run)["state"], (run / "merged").exists()) == ("failed", False)


def test_counts_of_tokens_go_on_after_a_resume(train, chats, monkeypatch):
    whole = train(*words_for(chats, "whole"))
    with monkeypatch.context() as patch:
        cut_after(patch, step=3)
        cut = train(*words_for(chats, "cut"), code=130)
    train(*words_for(chats, "cut"))
    assert losses(cut, "num_tokens") == losses(whole, "num_tokens")


def test_a_launchers_precision_does_not_change_ours(train, chats, monkeypatch):
    plain = train(*words_for(chats, "plain"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    other = train(*words_for(chats, "other"))
    assert_same_tensors(other / "adapter", plain / "adapter")


def test_a_full_disk_is_said_in_one_line_and_the_run_goes_on_later(train, chats, monkeypatch, capsys):
    whole = train(*words_for(chats, "whole"))

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gemma_ft.training.checkpoints.check_weights", full)
        train(*words_for(chats, "cut"), code=1)
    assert "does not fit on its disk. Free some space" in capsys.readouterr().err
    cut = train(*words_for(chats, "cut"))
    assert_same_tensors(cut / "adapter", whole / "adapter")


def test_a_finished_run_and_its_folders_under_rough_hands(train, chats, tmp_path, capsys):
    from gemma_ft import export, generate
    from gemma_ft.cli import main
    from gemma_ft.errors import ConfigError, ExportError, RunError

    run = train(*words_for(chats, "rough", "trainer.max_steps=1"))
    assert main(["generate", str(run), "hi", "--max-new-tokens", "0"]) == 2
    assert "--max-new-tokens=0 answers nothing" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot change a run that is trained"):
        export(run, "trainer.max_steps=3")
    with pytest.raises(ConfigError, match="export=none exports nothing"):
        export(run, "export=none")
    (run / "merged" / "mine.txt").write_text("precious")
    with pytest.raises(ExportError, match="exists and is no exported checkpoint alone"):
        export(run)
    assert (run / "merged" / "mine.txt").read_text() == "precious"
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match="is no whole adapter"):
        generate(run, "hi", which="adapter")


def test_a_failed_new_start_leaves_the_old_run_its_name(train, chats, capsys):
    run = train(*words_for(chats, "kept", "trainer.max_steps=1"))
    train("name=kept", "model=gemma_2b", "dataset=local", f"dataset.path={chats}", "--overwrite", code=2)
    assert status(run)["state"] == "finished"
    assert not run.with_name("kept.old-1").exists()


def test_a_lost_adapter_is_made_again_from_the_last_checkpoint(train, chats, monkeypatch):
    import shutil

    run = train(*words_for(chats, "lost", "trainer.max_steps=2"))
    (run / "status.json").write_text('{"state": "failed", "stage": "exporting", "reason": null}')
    before = tensors(run / "adapter")
    shutil.rmtree(run / "adapter")
    train(*words_for(chats, "lost", "trainer.max_steps=2"))
    after = tensors(run / "adapter")
    assert all((before[name] == after[name]).all() for name in before)


def test_a_run_folder_that_cannot_be_made_is_said(train, chats, tmp_path, capsys):
    (tmp_path / "afile").write_text("x")
    train(*words_for(chats, "x"), "output_dir=afile/x", code=2)
    assert "output_dir=afile/x cannot be made" in capsys.readouterr().err


def test_typed_control_tokens_stay_text_in_a_raw_prompt(tiny):
    from transformers import AutoTokenizer

    from gemma_ft.data.tokens.encoding import text_ids

    ids = text_ids(AutoTokenizer.from_pretrained(tiny), "a<eos><start_of_turn>b")
    assert ids[0] == 2
    assert not {1, 106} & set(ids)


def test_two_processes_cannot_write_one_run(train, chats, capsys):
    from gemma_ft.runs import RunFolder

    run = train(*words_for(chats, "shared", "trainer.max_steps=1"))
    before = (run / "status.json").read_text()
    other = RunFolder(run)
    other.lock()
    for words in (["--overwrite"], ["trainer.learning_rate=1e-3", "--overwrite"]):
        train(*words_for(chats, "shared", "trainer.max_steps=1"), *words, code=2)
        assert "is in use by another process" in capsys.readouterr().err
    (run / "status.json").write_text('{"state": "running", "stage": "trained", "reason": null}')
    train(*words_for(chats, "shared", "trainer.max_steps=1"), code=2)
    assert "is in use by another process" in capsys.readouterr().err
    assert status(run)["state"] == "running"  # it is the other's to say
    other.unlock()
    train(*words_for(chats, "shared", "trainer.max_steps=1"))
    assert (run / "status.json").read_text() == before
