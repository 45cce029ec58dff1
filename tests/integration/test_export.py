"""`export RUN` as a user starts it: the certificate, what it catches, and that nothing is lost on the way."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import start, tensors

QUICK = ("trainer.max_steps=8", "dataset.max_rows=400", "trainer.sample_prompt=null", "export=none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def trained(folder):
    """A short nf4 run that nothing has exported yet."""
    done = start("recipe=quickstart", "name=trained", *QUICK, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "trained"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it, elsewhere: a run folder is enough wherever it is."""
    return shutil.copytree(trained, tmp_path / "moved")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A copy that is exported with everything on."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("exported") / "run")
    done = start("export", str(run), cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / "merged")
    return run


def refused(run, *words):
    """Export, expect one line, and nothing under the final name."""
    done = start("export", str(run), *words, cwd=run.parent)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert not (run / "merged").exists()
    assert not (run / "certificate.json").exists()
    return done.stderr.strip().splitlines()[-1]


def alter(file, change):
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_certificate_stands_in_the_run_and_in_the_folder(exported):
    text = (exported / "certificate.json").read_text()
    assert (exported / "merged" / "certificate.json").read_text() == text


def test_certificate_names_every_other_file_with_its_hash(exported):
    stated = json.loads((exported / "certificate.json").read_text())["files"]
    there = {path.name: path for path in (exported / "merged").iterdir() if path.name != "certificate.json"}
    assert json.loads((exported / "certificate.json").read_text())["inputs_checked_against_trained_json"]
    assert stated == {
        name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in there.items()
    }


def merged_by_peft(run, tiny, *, quantised):
    """Return PEFT's own merge into the base as transformers dequantises it, or into the base as it is."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    settings = {"quantization_config": nf4} if quantised else {}
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32, **settings)
    if quantised:
        model = model.dequantize()
    return PeftModel.from_pretrained(model, run / "adapter").merge_and_unload().state_dict()


def differing(one, other):
    import torch

    return [name for name in one if not torch.equal(one[name], other[name].to(one[name].dtype))]


def test_trained_base_is_the_dequantised_one_bit_for_bit(exported, tiny):
    merged = tensors(exported / "merged")
    assert "lm_head.weight" not in merged
    assert differing(merged, merged_by_peft(exported, tiny, quantised=True)) == []
    assert len(differing(merged, tensors(tiny))) == 7 * 3


def test_original_base_is_the_full_precision_one_bit_for_bit(run, exported, tiny):
    done = start("export", str(run), "export.base=original", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    merged = tensors(run / "merged")
    assert differing(merged, merged_by_peft(run, tiny, quantised=False)) == []
    assert differing(merged, tensors(exported / "merged"))
    assert json.loads((run / "certificate.json").read_text())["base"] == "original"


def test_swapped_adapter_is_refused_and_exported_only_unproven(run):
    alter(
        run / "adapter" / "adapter_model.safetensors",
        lambda found: {name: tensor.flip(0) for name, tensor in found.items()},
    )
    line = refused(run)
    assert "adapter_model.safetensors" in line
    assert "export.certificate=none" in line
    done = start("export", str(run), "export.certificate=none", cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "not certified" in done.stderr
    assert "not certified" in (run / "merged" / "README.md").read_text().lower()
    assert not (run / "certificate.json").exists()
    assert not (run / "merged" / "certificate.json").exists()


def test_other_base_of_the_same_shape_is_refused_even_unproven(run, tiny, tmp_path):
    other = shutil.copytree(tiny, tmp_path / "other")
    alter(
        next(other.glob("*.safetensors")),
        lambda found: {name: tensor * 1.25 for name, tensor in found.items()},
    )
    for word in ("export.certificate=full", "export.certificate=none"):
        assert "base" in refused(run, f"model.path={other}", word)


def test_adapter_that_diverged_is_refused_by_the_tensor(run):
    alter(
        run / "adapter" / "adapter_model.safetensors",
        lambda found: {name: tensor * float("nan") for name, tensor in found.items()},
    )
    assert "NaN" in refused(run, "export.certificate=none")


def test_adapter_of_another_run_or_base_is_not_made_publishable(run, tmp_path, tiny):
    other = shutil.copytree(tiny, tmp_path / "other")
    weights = next(other.glob("*.safetensors"))
    alter(weights, lambda found: {name: tensor * 1.25 for name, tensor in found.items()})
    done = start("export", str(run), "export=adapter", f"model.path={other}", cwd=run.parent)
    assert done.returncode != 0
    assert "holds other weights than the base" in done.stderr
    alter(
        run / "adapter" / "adapter_model.safetensors",
        lambda found: {name: tensor.flip(0) for name, tensor in found.items()},
    )
    done = start("export", str(run), "export=adapter", cwd=run.parent)
    assert done.returncode != 0
    assert "has changed since the end of training" in done.stderr
    assert not (run / "adapter" / "NOTICE").exists()


@pytest.mark.parametrize("word", ["export=none", "export.method=none"])
def test_exporting_nothing_is_refused(run, word):
    assert f"{word} exports nothing" in refused(run, word)


def test_run_that_cannot_be_written_to_is_told_in_one_line(run, monkeypatch):
    (run / ".lock").unlink(missing_ok=True)
    (run / ".lock").mkdir()  # not even root can open it as a file
    assert "cannot be written to" in refused(run)


def test_rows_of_the_certificate_are_wanted(run):
    (run / "certificate_rows.json").unlink()
    assert "certificate_rows.json is missing" in refused(run)


def test_settings_changed_after_training_are_not_certified(run):
    config = run / "config.yaml"
    text = config.read_text()
    for said, other in (("double_quant: true", "double_quant: false"), ("method: nf4", "method: int8")):
        assert said in text
        config.write_text(text.replace(said, other))
        assert f"{config} says " in refused(run)


def test_rows_of_the_certificate_are_read_before_the_merge(run):
    (run / "certificate_rows.json").write_text('{"rows": []}')
    done = start("export", str(run), cwd=run.parent)
    assert done.returncode == 1
    assert "certificate_rows.json holds no rows" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_exporting_without_a_certificate_takes_an_earlier_one_away(run):
    assert start("export", str(run), cwd=run.parent).returncode == 0
    assert (run / "certificate.json").is_file()
    assert start("export", str(run), "export.certificate=none", cwd=run.parent).returncode == 0
    assert not (run / "certificate.json").exists()
    assert not (run / "merged" / "certificate.json").exists()


def test_adapter_is_made_ready_to_publish_where_it_is(run):
    before = sha256(run / "adapter" / "adapter_model.safetensors")
    done = start("export", str(run), "export=adapter", cwd=run.parent)  # of a run that says export=none
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(run / "adapter")
    assert sha256(run / "adapter" / "adapter_model.safetensors") == before
    for name in ("README.md", "NOTICE", "tokenizer.json"):
        assert (run / "adapter" / name).is_file(), name
    for file in run.glob("adapter/*"):
        assert str(Path.home()).encode() not in file.read_bytes(), file
        assert str(run).encode() not in file.read_bytes(), file
    assert start("export", str(run), cwd=run.parent).returncode == 0  # and is still the one that was trained


@pytest.mark.parametrize("name", ["gguf_q8_0", "nf4"])
def test_further_formats_stand_beside_the_merged_folder(run, name):
    words = ("export.certificate=none", f"export.formats=[{name}]")
    done = start("export", str(run), *words, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert (run / "merged").is_dir()
    wanted = "*.gguf" if name.startswith("gguf") else "*.safetensors"
    assert list((run / name).glob(wanted))
    assert (run / name / "NOTICE").is_file()


def test_upload_that_cannot_be_is_refused_before_the_merge(run):
    line = refused(run, "export.push_to_hub=somebody/model")
    assert "export.push_to_hub=somebody/model" in line


def test_export_killed_at_any_moment_leaves_nothing_and_goes_on(run):
    draw = random.Random(5)
    words = [sys.executable, "-m", "gemma_ft", "export", str(run), "export.certificate=none"]
    for _ in range(6):
        process = subprocess.Popen(
            words, cwd=run.parent, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        time.sleep(draw.uniform(0.5, 4.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (run / "merged").exists():
            assert_whole(run / "merged")
            shutil.rmtree(run / "merged")
    done = start(*words[3:], cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert_whole(run / "merged")
    assert not list(run.glob("merged.*"))


def assert_whole(merged):
    assert tensors(merged)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "README.md", "NOTICE"):
        assert (merged / name).stat().st_size, name
