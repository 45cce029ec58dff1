"""`export=adapter` leaves a folder that anybody can load, made in place and whole at every moment."""

import json
import os
import re
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from data_tokenizer import build_tokenizer
from export_models import build_adapter, build_base, edit_json, edit_tensors, hash_folder, write_tokenizer
from test_export_texts import ORIGIN

from gemma_ft.errors import ExportError
from gemma_ft.exporting.folder import adapter_folder
from gemma_ft.exporting.folder.adapter_folder import export_adapter
from gemma_ft.exporting.merging import adapter_tensors
from gemma_ft.families import FAMILIES, GEMMA_NOTICE

GEMMA1 = FAMILIES[0]
WRITTEN = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
    "NOTICE",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = build_base(tmp_path_factory.mktemp("made") / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    build_tokenizer().save_pretrained(base)
    return base, build_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def base(made):
    return made[0]


@pytest.fixture
def adapter(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "adapter")


def export(adapter, base, origin=ORIGIN):
    return export_adapter(adapter, base=base, family=GEMMA1, origin=origin)


def settings_of(adapter):
    return json.loads((adapter / "adapter_config.json").read_text())


def test_the_base_is_named_by_its_hub_id_and_nothing_else_is_changed(adapter, base):
    before, weights = settings_of(adapter), hash_folder(adapter)
    assert before["base_model_name_or_path"] == str(base)
    assert export(adapter, base) == adapter
    named = {"base_model_name_or_path": "google/gemma-2b-it", "revision": "abc123"}
    assert settings_of(adapter) == before | named
    assert {path.name for path in adapter.iterdir()} == WRITTEN
    name = next(name for name in weights if name.name == "adapter_model.safetensors")
    assert hash_folder(adapter)[name] == weights[name]


def test_it_loads_alone_as_the_adapter_that_was_trained(adapter, base, made):
    import peft
    import transformers

    export(adapter, base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter, local_files_only=True)
    chat = [{"role": "user", "content": "so"}]
    assert (
        tokenizer.apply_chat_template(chat, tokenize=False) == "<bos><start_of_turn>user\nso<end_of_turn>\n"
    )
    ids = torch.tensor([[2, 106, 7, 8, 9]])

    def logits(folder):
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        return peft.PeftModel.from_pretrained(model, folder)(ids).logits

    assert torch.equal(logits(adapter), logits(made[1]))


def test_whoever_may_read_the_card_may_read_the_weights(adapter, base):
    (adapter / "adapter_model.safetensors").chmod(0o600)
    export(adapter, base)
    assert (adapter / "adapter_model.safetensors").stat().st_mode == (adapter / "README.md").stat().st_mode


def test_card_and_notice_are_those_of_an_adapter(adapter, base):
    export(adapter, base)
    card = (adapter / "README.md").read_text()
    assert yaml.safe_load(card.split("\n---\n")[0]) == {
        "license": "gemma",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": "google/gemma-2b-it",
        "base_model_relation": "adapter",
        "datasets": ["Abirate/english_quotes"],
        "tags": ["gemma_ft", "sft", "lora"],
    }
    assert 'from_pretrained("google/gemma-2b-it", revision="abc123", dtype="auto")' in card
    assert "It was trained on the base quantised to nf4 by bitsandbytes." in card
    assert "Held-out loss: 3.5000 before" in card
    compile(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], "card", "exec")
    assert (adapter / "NOTICE").read_text().startswith(GEMMA_NOTICE)


def test_tokenizer_files_are_the_bases_byte_for_byte(adapter, base, tmp_path):
    other = shutil.copytree(base, tmp_path / "base")
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens", [])
    (other / "tokenizer_config.json").write_text(json.dumps(settings, indent=7))
    (other / "tokenizer.model").write_bytes(b"\x00\r\n")
    export(adapter, other)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja"):
        assert (adapter / name).read_bytes() == (other / name).read_bytes()


def test_a_second_time_changes_nothing(adapter, base):
    export(adapter, base)
    before = hash_folder(adapter)
    export(adapter, base)
    assert hash_folder(adapter) == before


def test_no_local_path_is_left(adapter, base, tmp_path, caplog):
    data = {"source": "local", "path": str(tmp_path / "rows.jsonl"), "rows_train": 3}
    export(adapter, base, replace(ORIGIN, base_name=str(base), base_revision="abc", data=data))
    assert (settings_of(adapter)["base_model_name_or_path"], settings_of(adapter)["revision"]) == (None, None)
    assert "adapter_config.json: the base has no hub id, so nothing names it. Fill in" in caplog.text
    for path in adapter.iterdir():
        assert str(tmp_path.parent).encode() not in path.read_bytes(), path
        assert str(base).encode() not in path.read_bytes(), path
    assert 'from_pretrained("<the base>", dtype="auto")' in (adapter / "README.md").read_text()


@pytest.mark.parametrize("name", ["google/gemma-2b-it", "bundled:tiny"])
def test_a_base_that_everybody_can_have_needs_no_warning(name, adapter, base, caplog):
    export(adapter, base, replace(ORIGIN, base_name=name))
    assert not caplog.records


def test_a_local_path_that_is_not_ours_to_take_out_is_refused(adapter, base):
    edit_json(adapter / "adapter_config.json", eva_config={"cache": ["/home/me/eva"]})
    with pytest.raises(
        ExportError, match=r"adapter_config.json names the local path /home/me/eva\. Take it out"
    ):
        export(adapter, base)


def test_it_is_a_whole_adapter_at_every_moment(adapter, base, monkeypatch):
    import peft

    moments = []

    def watch(handle):
        settings = peft.LoraConfig.from_pretrained(str(adapter))
        moments.append(settings.base_model_name_or_path)
        assert (adapter / "adapter_model.safetensors").is_file()

    monkeypatch.setattr(os, "fsync", watch)
    export(adapter, base)
    assert len(moments) == len(WRITTEN) - 1
    assert set(moments) == {str(base)}


def test_an_interrupted_export_is_finished_by_the_next(adapter, base, monkeypatch):
    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(adapter, base)
    monkeypatch.undo()
    export(adapter, base)
    assert {path.name for path in adapter.iterdir()} == WRITTEN


def test_a_full_disk_is_told_in_one_line(adapter, base, monkeypatch):
    def fill(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(
        ExportError, match=r"cannot be written \(No space left on device\)\. Free or unlock its"
    ):
        export(adapter, base)
    assert not list(adapter.glob(".*"))


def test_a_file_that_reads_back_differently_is_found(adapter, base, monkeypatch):
    monkeypatch.setattr(adapter_folder, "_put", lambda path, content: path.write_bytes(content + b" "))
    with pytest.raises(ExportError, match=r"was written, but reads back differently\. Export again"):
        export(adapter, base)


def empty(tensors):
    return {}


def poison(tensors):
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name][-1, -1] = float("nan")
    return tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (empty, r"adapter_model.safetensors holds no tensors\. Train again\."),
        (poison, r"adapter_model.safetensors: .*lora_B.* holds NaN or infinity"),
    ],
)
def test_weights_that_are_none_are_refused_before_anything_is_written(change, message, adapter, base):
    edit_tensors(adapter / "adapter_model.safetensors", change)
    before = hash_folder(adapter)
    with pytest.raises(ExportError, match=message):
        export(adapter, base)
    assert hash_folder(adapter) == before


def test_a_nan_beyond_the_first_piece_is_found(adapter, base, monkeypatch):
    monkeypatch.setattr(adapter_tensors, "_CHUNK_ELEMENTS", 16)
    edit_tensors(adapter / "adapter_model.safetensors", poison)
    with pytest.raises(ExportError, match="holds NaN or infinity"):
        export(adapter, base)


def test_settings_that_peft_does_not_read_are_refused(adapter, base):
    edit_json(adapter / "adapter_config.json", peft_type="NO_SUCH_METHOD")
    with pytest.raises(
        ExportError, match=r"adapter_config.json is none that PEFT reads \(.*\)\. Train again"
    ):
        export(adapter, base)


def test_a_tokenizer_that_breaks_the_contract_is_refused(adapter, made, tmp_path):
    other = shutil.copytree(made[0], tmp_path / "base")
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with pytest.raises(ExportError, match=r"adapter would have a chat template that does not render Gemma's"):
        export(adapter, other)
    for path in other.glob("tokenizer*"):
        path.unlink()
    write_tokenizer(other)
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(ExportError, match=r"adapter would have no readable tokenizer \(.*\)\. Mend the"):
        export(adapter, other)
