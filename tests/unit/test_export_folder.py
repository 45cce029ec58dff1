"""The exported folder: it loads anywhere, and it is whole under its name or not there at all."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from export_models import (
    FAMILY_BY_TYPE,
    build_adapter,
    build_base,
    edit_json,
    edit_tensors,
    hash_folder,
    merge_by_peft,
    read_weights,
)

from gemma_ft.errors import ExportError
from gemma_ft.exporting.folder import checkpoint as folder_module
from gemma_ft.exporting.folder.card import Origin
from gemma_ft.exporting.folder.checkpoint import export_checkpoint
from gemma_ft.exporting.merging import row_changes
from gemma_ft.families import GEMMA_NOTICE, load_chat_template

ORIGIN = Origin(
    name="quotes",
    base_name="google/gemma-2b-it",
    base_revision="abc123",
    data={
        "source": "hub",
        "path": "Abirate/english_quotes",
        "split": "train",
        "rows_train": 90,
        "rows_held_out": 10,
    },
    quantization="nf4",
    adapter="lora",
    held_out_loss=(3.5, 2.25),
    day="2026-01-31",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = build_base(tmp_path_factory.mktemp("base"))
    return base, build_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def base(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "base")


@pytest.fixture
def adapter(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "adapter")


@pytest.fixture
def merged(tmp_path):
    return tmp_path / "merged"


def export(base, trained, destination, model_type="gemma", shard_bytes=60_000):
    report, _ = export_checkpoint(
        base=base,
        trained=trained,
        destination=destination,
        family=FAMILY_BY_TYPE[model_type],
        origin=ORIGIN,
        shard_bytes=shard_bytes,
    )
    return report


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_export_loads_in_plain_transformers_as_the_model_peft_merges(model_type, dtype, tmp_path):
    import peft
    import transformers

    base = build_base(tmp_path / "base", model_type, dtype)
    adapter = build_adapter(base, tmp_path / "adapter")
    export(base, adapter, tmp_path / "merged", model_type)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype="auto", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    assert model.dtype is getattr(torch, dtype)
    original = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    ids = torch.tensor([[2, 106, 7, 8, 9]])
    before = original(ids).logits
    expected = peft.PeftModel.from_pretrained(original, adapter).merge_and_unload()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)
        assert not torch.equal(model(ids).logits, before)
    for key in ("rope_parameters", "hidden_size", "tie_word_embeddings", "max_position_embeddings"):
        assert getattr(model.config, key) == getattr(original.config, key)
    assert model.generation_config.eos_token_id == [1, 107]


def test_tokenizer_is_the_bases_byte_for_byte(base, adapter, merged):
    (base / "tokenizer.model").write_bytes(b"\x00\x01\r\n")
    (base / "special_tokens_map.json").write_text('{"eos_token":  "<eos>"}\n')
    export(base, adapter, merged)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"):
        assert (merged / name).read_bytes() == (base / name).read_bytes()


def test_chat_template_is_added_where_the_tokenizer_has_none(base, adapter, merged):
    import transformers

    export(base, adapter, merged)
    assert (merged / "chat_template.jinja").read_text() == load_chat_template()
    assert "A chat template (chat_template.jinja) was added" in (merged / "NOTICE").read_text()
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    turns = tokenizer.apply_chat_template([{"role": "user", "content": "w5"}], tokenize=False)
    assert turns == "<bos><start_of_turn>user\nw5<end_of_turn>\n"


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_chat_template_of_the_base_is_left_alone(place, base, adapter, merged):
    if place == "chat_template.jinja":
        (base / place).write_text("its own")
    else:
        edit_json(base / place, chat_template="its own")
    export(base, adapter, merged)
    template = merged / "chat_template.jinja"
    assert template.read_text() == "its own" if place == template.name else not template.exists()
    assert "template" not in (merged / "NOTICE").read_text()


def test_folder_holds_what_is_expected_and_nothing_else(base, adapter, merged):
    report = export(base, adapter, merged, shard_bytes=10**9)
    assert {path.name for path in merged.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "NOTICE",
        "Modelfile",
    }
    assert report.shards == 1
    assert GEMMA_NOTICE in (merged / "NOTICE").read_text().splitlines()
    assert "google/gemma-2b-it (revision abc123)" in (merged / "NOTICE").read_text()
    assert not list(merged.parent.glob("merged.*"))


def test_base_and_adapter_are_only_read(base, adapter, merged):
    before = hash_folder(base), hash_folder(adapter)
    export(base, adapter, merged)
    assert (hash_folder(base), hash_folder(adapter)) == before


def test_two_exports_are_equal_in_every_byte(base, adapter, tmp_path):
    export(base, adapter, tmp_path / "one")
    export(base, adapter, tmp_path / "two")
    one, two = hash_folder(tmp_path / "one"), hash_folder(tmp_path / "two")
    assert {name: facts[0] for name, facts in one.items()} == {name: facts[0] for name, facts in two.items()}


def test_interrupted_export_leaves_nothing_and_the_next_one_finishes(base, adapter, merged, monkeypatch):
    calls = []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 9:
            assert list(merged.with_name("merged.partial").glob("*.safetensors"))
            raise KeyboardInterrupt
        return whole(*arguments)

    whole = row_changes.write_rows
    monkeypatch.setattr(row_changes, "write_rows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(base, adapter, merged)
    assert sorted(path.name for path in merged.parent.iterdir()) == ["adapter", "base"]
    monkeypatch.undo()
    export(base, adapter, merged)
    expected = merge_by_peft(base, adapter)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read_weights(merged).items())


def test_rest_of_a_killed_export_is_cleared_away(base, adapter, merged):
    stale = merged.with_name("merged.partial")
    stale.mkdir()
    (stale / "model.safetensors").write_bytes(b"half")
    export(base, adapter, merged)
    assert not stale.exists()
    assert (merged / "config.json").is_file()


def test_earlier_export_stands_until_the_new_one_is_whole(base, adapter, merged, monkeypatch):
    export(base, adapter, merged)
    before = hash_folder(merged)

    def fail(*_):
        assert hash_folder(merged) == before
        raise RuntimeError("planned")

    monkeypatch.setattr(folder_module, "check_loaders", fail)
    with pytest.raises(RuntimeError, match="planned"):
        export(base, adapter, merged)
    monkeypatch.undo()
    assert hash_folder(merged) == before
    edit_json(adapter / "adapter_config.json", lora_alpha=60)
    export(base, adapter, merged)
    assert hash_folder(merged).keys() == before.keys()
    assert hash_folder(merged) != before
    expected = merge_by_peft(base, adapter)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read_weights(merged).items())
    assert {path.name for path in merged.parent.iterdir()} == {"adapter", "base", "merged"}


def test_export_killed_between_its_last_two_steps_is_undone(base, adapter, merged, monkeypatch):
    export(base, adapter, merged)
    before = hash_folder(merged)
    merged.rename(merged.with_name("merged.replaced"))

    def fail(*_, **__):
        raise RuntimeError("planned")

    monkeypatch.setattr(folder_module, "write_merge", fail)
    with pytest.raises(RuntimeError, match="planned"):
        export(base, adapter, merged)
    assert hash_folder(merged) == before


def test_half_removed_earlier_export_never_comes_back(base, adapter, merged, monkeypatch):
    export(base, adapter, merged)
    removed = []

    def kill(path):
        removed.append(path.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", kill)
    with pytest.raises(KeyboardInterrupt):
        export(base, adapter, merged)
    assert removed == ["merged.partial"]
    assert not merged.with_name("merged.replaced").exists()


def test_disk_that_fills_up_in_the_middle_is_told_in_one_line(base, adapter, merged, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gemma_ft.exporting.merging.merge.copy_tensor", fill)
    with pytest.raises(ExportError, match=r"merged does not fit on its disk. Free some space"):
        export(base, adapter, merged)
    assert not list(merged.parent.glob("merged*"))


@pytest.mark.parametrize("place", ["base", "adapter", "base/merged", "."])
def test_destination_that_overlaps_its_sources_is_refused(place, base, adapter, tmp_path):
    before = hash_folder(tmp_path)
    with pytest.raises(ExportError, match=r"overlaps .*, which is only read. Export to another folder"):
        export(base, adapter, tmp_path / place)
    assert hash_folder(tmp_path) == before


def test_folder_of_another_kind_is_never_replaced(base, adapter, merged):
    merged.mkdir()
    (merged / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="merged exists and is no exported checkpoint"):
        export(base, adapter, merged)
    assert (merged / "thesis.txt").read_text() == "mine"


def test_altered_copy_is_found(base, adapter, merged, monkeypatch):
    def alter(source, target):
        target.write_bytes(source.read_bytes() + b" ")

    monkeypatch.setattr(folder_module, "copy_file", alter)
    with pytest.raises(ExportError, match=r"tokenizer.json was copied, but reads back differently"):
        export(base, adapter, merged)
    assert not merged.exists()


def test_lost_tensor_is_found(base, adapter, merged, monkeypatch):
    def forget(shard_folder, shards):
        edit_tensors(
            shard_folder / "model.safetensors", lambda tensors: (tensors.pop("model.norm.weight"), tensors)[1]
        )

    monkeypatch.setattr("gemma_ft.exporting.merging.merge.write_index", forget)
    with pytest.raises(ExportError, match=r"was written, but model.norm.weight is not where it should be"):
        export(base, adapter, merged, shard_bytes=10**9)
    assert not merged.exists()


def test_base_without_tokenizer_is_refused_before_anything_is_written(base, adapter, merged):
    (base / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"has neither tokenizer.json nor tokenizer.model"):
        export(base, adapter, merged)
    assert not list(merged.parent.glob("merged*"))


def test_model_that_would_never_stop_is_refused(base, adapter, merged):
    edit_json(base / "config.json", eos_token_id=None)
    edit_json(base / "generation_config.json", eos_token_id=None)
    tokens = json.loads((base / "tokenizer.json").read_text().replace("_of_turn>", "_of_talk>"))
    (base / "tokenizer.json").write_text(json.dumps(tokens | {"added_tokens": []}))
    with pytest.raises(ExportError, match=r"names no end token in its tokenizer or config.json"):
        export(base, adapter, merged)


def test_full_fine_tune_goes_through_the_same_door(base, merged, tmp_path):
    full = shutil.copytree(base, tmp_path / "full")
    edit_tensors(
        full / "model.safetensors",
        lambda tensors: {name: tensor.float() * 2 for name, tensor in tensors.items()},
    )
    export_checkpoint(
        base=base,
        trained=full,
        destination=merged,
        family=FAMILY_BY_TYPE["gemma"],
        origin=replace(ORIGIN, adapter="none"),
        shard_bytes=10**9,
    )
    before = read_weights(base)
    assert all(torch.equal(tensor, before[name] * 2) for name, tensor in read_weights(merged).items())
    assert "every weight (full fine-tuning)" in (merged / "NOTICE").read_text()


def test_every_file_is_on_the_disk_before_the_folder_gets_its_name(base, adapter, merged, monkeypatch):
    synced = {}

    def record(handle):
        assert not merged.exists() or handle_of_parent(handle)
        synced[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    def handle_of_parent(handle):
        return os.fstat(handle).st_ino == merged.parent.stat().st_ino

    monkeypatch.setattr(os, "fsync", record)
    export(base, adapter, merged)
    for path in (*merged.iterdir(), merged, merged.parent):
        assert path.stat().st_ino in synced, path
        assert path.is_dir() or synced[path.stat().st_ino] == path.stat().st_size
