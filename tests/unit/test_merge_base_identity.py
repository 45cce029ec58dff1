"""Whether a base and an adapter are those of the training: by what they are called, and by what they hold."""

import hashlib
import shutil

import pytest
import torch
from export_models import build_adapter, build_base, edit_json, edit_tensors, hash_folder

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging import fingerprint
from gemma_ft.exporting.merging.fingerprint import base_fingerprint, check_trained, trained_files
from gemma_ft.exporting.merging.recorded_base import check_recorded_base

UP, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
GEMMA = "google/gemma-2b"
OLD, NEW = "0" * 40, "1" * 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = build_base(tmp_path_factory.mktemp("base"))
    return base, build_adapter(base, tmp_path_factory.mktemp("adapter"), target_modules=["q_proj"])


@pytest.fixture
def base(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "base")


@pytest.fixture
def adapter(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "adapter")


def edit(base, name, change):
    edit_tensors(base / "model.safetensors", lambda tensors: tensors | {name: change(tensors[name])})


def record(adapter, base):
    return {"base_fingerprint": base_fingerprint(base), "files": trained_files(adapter)}


def test_copy_of_a_base_has_its_fingerprint_and_reading_it_changes_nothing(made, base):
    before = hash_folder(base)
    assert base_fingerprint(base) == base_fingerprint(made[0])
    assert len(base_fingerprint(base)) == 64
    assert hash_folder(base) == before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (UP, lambda weight: weight + torch.randn(weight.shape).to(weight) * 0.01),
        (NORM, lambda weight: weight * 1.01),
        (UP, lambda weight: weight.half()),
        (UP, lambda weight: weight.view(64, 128)),
    ],
)
def test_base_with_one_other_tensor_has_another_fingerprint(name, change, made, base):
    edit(base, name, change)
    assert base_fingerprint(base) != base_fingerprint(made[0])


def test_base_with_two_tensors_exchanged_has_another_fingerprint(made, base):
    other = UP.replace("layers.1", "layers.0")
    edit_tensors(base / "model.safetensors", lambda t: t | {UP: t[other], other: t[UP]})
    assert base_fingerprint(base) != base_fingerprint(made[0])


def test_base_with_a_tensor_of_another_name_has_another_fingerprint(made, base):
    edit_tensors(
        base / "model.safetensors",
        lambda tensors: {name.replace(NORM, "model.norms.weight"): t for name, t in tensors.items()},
    )
    assert base_fingerprint(base) != base_fingerprint(made[0])


def test_base_divided_over_other_files_has_the_same_fingerprint(made, tmp_path):
    base = build_base(tmp_path / "divided", shard_size="60KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    assert base_fingerprint(base) == base_fingerprint(made[0])


def test_copied_head_of_a_tied_base_does_not_count(made, base):
    head = {"lm_head.weight": torch.ones(3)}
    edit_tensors(base / "model.safetensors", lambda tensors: tensors | head)
    assert base_fingerprint(base) == base_fingerprint(made[0])


def test_head_of_an_untied_base_counts(tmp_path):
    base = build_base(tmp_path / "base", tied=False)
    before = base_fingerprint(base)
    edit(base, "lm_head.weight", lambda weight: weight * 2)
    assert base_fingerprint(base) != before


def test_change_at_either_end_of_a_large_tensor_is_seen(base, monkeypatch):
    monkeypatch.setattr(fingerprint, "_SAMPLE_BYTES", 64)
    before = base_fingerprint(base)
    for index in (0, -1):
        shutil.copytree(base, other := base.parent / f"other{index}")
        edit(other, UP, lambda weight, i=index: weight.view(-1).index_fill(0, torch.tensor([i % 8192]), 9.0))
        edit(other, UP, lambda weight: weight.view(128, 64))
        assert base_fingerprint(other) != before


@pytest.mark.parametrize("nbytes", [0, 1, 65535, 65536, 65537, 70001, 10**9])
def test_samples_lie_within_the_tensor_and_reach_both_ends(nbytes):
    places = fingerprint._places(nbytes)
    assert places[0][0] == 0
    assert sum(places[-1]) == nbytes
    assert all(0 <= first <= first + size <= nbytes for first, size in places)
    assert sum(size for _, size in places) == min(nbytes, 65536)


def test_sample_of_a_large_base_is_small(tmp_path, monkeypatch):
    read = []
    one_by_one = fingerprint.read_into

    def counted(file, offset, view):
        read.append(len(view))
        one_by_one(file, offset, view)

    monkeypatch.setattr(fingerprint, "read_into", counted)
    base = build_base(tmp_path / "base", hidden=512, dtype="float32")
    base_fingerprint(base)
    assert sum(read) <= 65536 * 21 < (base / "model.safetensors").stat().st_size / 4


def test_base_without_safetensors_has_no_fingerprint(base):
    (base / "model.safetensors").unlink()
    with pytest.raises(ExportError, match=r"has neither model\.safetensors nor"):
        base_fingerprint(base)


def test_trained_files_are_weights_and_settings(adapter, base):
    (adapter / "README.md").touch()
    found = trained_files(adapter)
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    assert found.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert found["adapter_model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert trained_files(base).keys() == {"config.json", "model.safetensors"}


def test_training_s_own_base_and_adapter_are_accepted(adapter, base):
    check_trained(adapter, base, record(adapter, base))


def test_full_fine_tune_that_was_altered_is_refused(base, tmp_path):
    full = shutil.copytree(base, tmp_path / "full")
    recorded = record(full, base)
    edit(full, NORM, lambda weight: weight * 2)
    with pytest.raises(ExportError, match=r"full/model\.safetensors has changed since the end of training"):
        check_trained(full, base, recorded)


def test_another_base_of_the_same_shape_is_refused(adapter, base):
    recorded = record(adapter, base)
    edit(base, UP, lambda weight: weight + torch.randn(weight.shape).to(weight))
    with pytest.raises(
        ExportError,
        match=r"base holds other weights than the base that .*adapter was trained on\. .*model\.path=",
    ):
        check_trained(adapter, base, recorded)
    with pytest.raises(ExportError, match="holds other weights than the base"):
        check_trained(adapter, base, recorded | {"files": {}})


def swap(adapter):
    file = adapter / "adapter_model.safetensors"
    edit_tensors(file, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, r"adapter_model\.safetensors has changed since the end of training\. Put it back, or"),
        (
            lambda adapter: edit_json(adapter / "adapter_config.json", lora_alpha=7),
            r"adapter_config\.json has changed since the end of training\. Put it back, or export it",
        ),
        (
            lambda adapter: (adapter / "adapter_model.safetensors").unlink(),
            r"adapter_model\.safetensors is gone, unlike at the end of .* with export\.certificate=none",
        ),
    ],
)
def test_adapter_that_was_altered_is_refused(change, message, adapter, base):
    recorded = record(adapter, base)
    change(adapter)
    with pytest.raises(ExportError, match=message):
        check_trained(adapter, base, recorded)
    check_trained(adapter, base, recorded | {"files": {}})


def test_adapter_may_name_its_base_anew_and_gain_files(adapter, base):
    recorded = record(adapter, base)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=GEMMA, revision=NEW)
    (adapter / "README.md").touch()
    check_trained(adapter, base, recorded)


@pytest.mark.parametrize(
    ("recorded", "revision", "message"),
    [
        (
            "google/gemma-2b-it",
            None,
            f"was trained on google/gemma-2b-it, but the base here is {GEMMA}\\. "
            r"Export with model\.path=google/gemma-2b-it",
        ),
        (
            GEMMA,
            OLD,
            f"was trained on revision {OLD} of {GEMMA}, but the base here is revision {NEW}\\. "
            r"Download that revision",
        ),
    ],
)
def test_adapter_of_another_repository_or_commit_is_refused(recorded, revision, message, adapter):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=recorded, revision=revision)
    with pytest.raises(ExportError, match=message):
        check_recorded_base(adapter, hub_id=GEMMA, revision=NEW)


@pytest.mark.parametrize(
    ("recorded", "revision", "hub_id"),
    [
        (GEMMA, NEW, GEMMA),
        ("Google/Gemma-2B", NEW, GEMMA),
        (GEMMA, None, GEMMA),
        (GEMMA, "main", GEMMA),
        (None, None, GEMMA),
        ("", None, GEMMA),
        ("/models/gemma-2b-it", None, GEMMA),
        ("./gemma-2b-it", None, GEMMA),
        ("~/gemma-2b-it", None, GEMMA),
        ("tiny", None, GEMMA),
        ("google/gemma-2b-it", OLD, None),
    ],
)
def test_name_that_decides_nothing_is_accepted(recorded, revision, hub_id, adapter):
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=recorded, revision=revision)
    check_recorded_base(adapter, hub_id=hub_id, revision=NEW if hub_id else None)


def test_existing_folder_that_looks_like_a_repository_is_a_folder(adapter, tmp_path, monkeypatch):
    (tmp_path / "models" / "gemma").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="models/gemma")
    check_recorded_base(adapter, hub_id=GEMMA, revision=NEW)


def test_full_fine_tune_names_no_base(base):
    check_recorded_base(base, hub_id=GEMMA, revision=NEW)
