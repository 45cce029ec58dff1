"""Folders of the further formats: whole or not there, with card and terms, checked against the source."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from export_models import FAMILY_BY_TYPE, edit_tensors, hash_folder, read_weights
from gguf_models import TYPES, build_model

from gemma_ft.config.export import FORMATS
from gemma_ft.errors import ExportError
from gemma_ft.exporting.formats import quantised
from gemma_ft.exporting.formats import write as write_module
from gemma_ft.exporting.formats.write import check_formats, write_format
from gemma_ft.exporting.merging import shards

CARD = """---
license: gemma
library_name: transformers
base_model: google/gemma-2b
base_model_relation: finetune
tags:
- sft
---

# quotes

Gemma 1 fine-tuned from google/gemma-2b.

## Training

- Trained: low-rank adapters

## Certificate

- Equal to what was trained.

## Use

from transformers import pipeline

## License

The terms.
"""
GGUF = [name for name in FORMATS if name.startswith("gguf")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = build_model(tmp_path_factory.mktemp("run") / "merged")
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def merged(made, tmp_path):
    return shutil.copytree(made, tmp_path / "quotes" / "merged")


def write(name, merged, model_type="gemma"):
    return write_format(name, merged, merged.parent / name, family=FAMILY_BY_TYPE[model_type])


def front_of(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


@pytest.mark.parametrize("name", GGUF)
def test_gguf_folder_holds_one_file_named_after_the_run_and_the_words_beside_it(name, merged):
    pytest.importorskip("gguf")
    folder = write(name, merged)
    kind = name.removeprefix("gguf_").upper()
    file = f"quotes-{kind}.gguf"
    assert {path.name for path in folder.iterdir()} == {file, "README.md", "NOTICE", "Modelfile"}
    modelfile = (folder / "Modelfile").read_text()
    assert f"FROM ./{file}\n" in modelfile
    assert re.findall(r'PARAMETER stop "(.*)"', modelfile) == ["<eos>", "<end_of_turn>"]
    assert front_of(folder) == {
        "license": "gemma",
        "library_name": "gguf",
        "base_model": "google/gemma-2b",
        "base_model_relation": "finetune",
        "tags": ["sft", "gguf"],
    }
    card = (folder / "README.md").read_text()
    assert f"This is {kind} in one GGUF file" in card
    assert f"llama-cli -m {file}" in card
    assert "from transformers" not in card
    assert "## Certificate of the merged checkpoint\n\n- Equal to what was trained." in card
    assert "## Training" in card
    assert (folder / "NOTICE").read_text() == (
        f"the terms\nThe weights were then written as a GGUF file, their matrices as {kind}.\n"
    )


def test_a_checkpoint_without_terms_makes_a_file_without_a_licence(merged):
    gguf = pytest.importorskip("gguf")
    (merged / "README.md").write_text("# tiny\n\nMade here.\n")
    folder = write("gguf_q8_0", merged)
    assert "general.license" not in gguf.GGUFReader(folder / "quotes-Q8_0.gguf").fields
    assert front_of(folder) == {"library_name": "gguf", "tags": ["gguf"]}


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_quantised_folder_loads_back_near_the_model_it_was_made_from(name, model_type, tmp_path):
    import transformers

    merged = build_model(tmp_path / "merged", model_type)
    folder = write(name, merged, model_type)
    ids = torch.tensor([[2, 106, 370, 371, 372]])
    logits = {}
    for where in (merged, folder):
        model = transformers.AutoModelForCausalLM.from_pretrained(where, attn_implementation="eager")
        with torch.no_grad():
            logits[where] = model(ids).logits.float()
    difference = (logits[merged] - logits[folder]).abs().mean()
    assert 0 < difference < {"nf4": 0.5, "int8": 0.15}[name]
    assert model.is_quantized


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_quantised_folder_has_all_that_the_merged_one_has(name, merged):
    folder = write(name, merged)
    names = {path.name for path in merged.iterdir() if not path.name.startswith("model")}
    assert {path.name for path in folder.iterdir()} == {*names, "model.safetensors"}
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode
    for kept in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / kept).read_bytes() == (merged / kept).read_bytes()
    config = json.loads((folder / "config.json").read_text())
    settings = config.pop("quantization_config")
    assert config == json.loads((merged / "config.json").read_text())
    assert settings["load_in_4bit"] is (name == "nf4")
    assert settings["load_in_8bit"] is (name == "int8")
    if name == "nf4":
        assert (settings["bnb_4bit_quant_type"], settings["bnb_4bit_use_double_quant"]) == ("nf4", True)
    assert "lm_head.weight" not in read_weights(folder)
    assert front_of(folder)["tags"] == ["sft", "bitsandbytes", {"nf4": "4-bit", "int8": "8-bit"}[name]]
    assert front_of(folder)["base_model_relation"] == "finetune"
    assert f"quantised to {name} with bitsandbytes" in (folder / "README.md").read_text()
    assert "from transformers import pipeline" in (folder / "README.md").read_text()
    assert f"The weights were then quantised to {name}" in (folder / "NOTICE").read_text()


def spoil_save(monkeypatch, change):
    """Alter the tensors between writing and checking."""
    whole = quantised._write_companions

    def spoilt(method, merged, folder):
        whole(method, merged, folder)
        edit_tensors(folder / "model.safetensors", change)

    monkeypatch.setattr(quantised, "_write_companions", spoilt)


def with_one(name, value):
    def change(tensors):
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[0] = value
        return tensors

    return change


LINEAR = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_one(f"{LINEAR}.absmax", 255), f"{LINEAR} is not its source quantised"),
        (with_one(LINEAR, 77), f"{LINEAR} is not its source quantised"),
        (with_one("model.norm.weight", 3.0), "model.norm.weight differs from its source"),
        (with_one("model.norm.weight", float("nan")), "model.norm.weight is not finite"),
        (lambda t: {n: v for n, v in t.items() if n != "model.norm.weight"}, "other tensors than its source"),
        (lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()}, "other tensors than its"),
        (lambda t: {n: v for n, v in t.items() if n != LINEAR}, "other tensors than its source"),
        (
            lambda t: t | {"model.extra.weight": torch.ones(2)},
            "does not load as .*model.extra.weight is amiss",
        ),
    ],
)
def test_fault_in_a_quantised_folder_is_found_and_nothing_stands(change, message, merged, monkeypatch):
    spoil_save(monkeypatch, change)
    with pytest.raises(ExportError, match=message):
        write("nf4", merged)
    assert [path.name for path in merged.parent.iterdir()] == ["merged"]


def test_lost_quantisation_settings_are_found(merged, monkeypatch):
    real = quantised.read_json
    monkeypatch.setattr(
        quantised,
        "read_json",
        lambda path: (
            {k: v for k, v in real(path).items() if k != "quantization_config"}
            | ({"quantization_config": None} if "partial" in str(path) else {})
        ),
    )
    with pytest.raises(ExportError, match=r"was written without its quantization_config. Export again"):
        write("int8", merged)


def test_altered_text_is_found(merged, monkeypatch):
    pytest.importorskip("gguf")

    def alter(path, text):
        path.write_text(text + " ")

    monkeypatch.setattr(shards, "write_text", alter)
    with pytest.raises(ExportError, match="Modelfile was written, but reads back differently"):
        write("gguf_q8_0", merged)
    assert [path.name for path in merged.parent.iterdir()] == ["merged"]


def test_merged_checkpoint_is_only_read_and_an_earlier_folder_replaced(merged):
    pytest.importorskip("gguf")
    before = hash_folder(merged)
    folder = write("gguf_q8_0", merged)
    once = {name: facts[0] for name, facts in hash_folder(folder).items()}
    assert write("gguf_q8_0", merged) == folder
    assert {name: facts[0] for name, facts in hash_folder(folder).items()} == once
    assert hash_folder(merged) == before
    assert {path.name for path in merged.parent.iterdir()} == {"merged", "gguf_q8_0"}


def test_a_folder_is_named_as_it_was_asked_for(merged, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.chdir(merged.parent)
    made = write_format("gguf_f16", Path("merged"), Path("gguf_f16"), family=FAMILY_BY_TYPE["gemma"])
    assert made == Path("gguf_f16")
    assert (made / "quotes-F16.gguf").is_file()


def test_interrupted_writing_leaves_nothing(merged, monkeypatch):
    pytest.importorskip("gguf")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gemma_ft.exporting.formats.gguf_file.check_gguf", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write("gguf_q8_0", merged)
    assert [path.name for path in merged.parent.iterdir()] == ["merged"]


def test_folder_with_other_files_is_never_replaced(merged):
    folder = merged.parent / "int8"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(
        ExportError, match=r"int8 exists and holds other files too. Move it, or what is yours"
    ):
        write("int8", merged)
    assert (folder / "thesis.txt").read_text() == "mine"


def test_a_file_that_was_made_of_ours_is_never_lost(merged):
    pytest.importorskip("gguf")
    folder = write("gguf_f16", merged)
    (folder / "quotes-Q4_K_M.gguf").write_text("quantised further by llama.cpp")
    with pytest.raises(ExportError, match=r"gguf_f16 exists and holds other files too\. Move it"):
        write("gguf_f16", merged)
    assert (folder / "quotes-Q4_K_M.gguf").is_file()


@pytest.mark.parametrize("name", GGUF)
def test_missing_gguf_package_is_told_before_anything_is_merged(name, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        write_module, "find_spec", lambda package: None if package == "gguf" else real(package)
    )
    message = rf"export.formats=\[{name}\] needs the gguf package. Run: pip install gguf$"
    with pytest.raises(ExportError, match=message):
        check_formats(["int8", name], FAMILY_BY_TYPE["gemma"])
    check_formats(["int8", "nf4"], FAMILY_BY_TYPE["gemma"])


def test_family_that_gguf_does_not_know_is_told():
    from dataclasses import replace

    pytest.importorskip("gguf")
    later = replace(FAMILY_BY_TYPE["gemma"], name="Gemma 9", model_type="gemma9")
    with pytest.raises(ExportError, match=r"export.formats=\[gguf_f16\] knows no Gemma 9. Leave it out"):
        check_formats(["gguf_f16"], later)
    for family in FAMILY_BY_TYPE.values():
        check_formats(FORMATS, family)
