"""A folder is proven to hold exactly the merge, and every planted fault is found."""

import shutil

import pytest
import torch
from export_models import build_adapter, build_base, edit_json, edit_tensors

from gemma_ft.config.schema import QuantizationMethod
from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.merge import plan_merge, write_merge
from gemma_ft.exporting.merging.storage import TrainedStorage
from gemma_ft.exporting.merging.verify import Exactness, verify_merge

UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"
NF4 = TrainedStorage(method=QuantizationMethod.nf4, double_quant=True, dtype="bfloat16")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    base = build_base(folder / "base")
    adapter = build_adapter(base, folder / "adapter", target_modules=["up_proj", "q_proj"], use_dora=True)
    for name, storage in (("original", None), ("trained", NF4)):
        write_merge(plan_merge(base, adapter, storage), folder / name, shard_bytes=10**9)
    return folder


@pytest.fixture
def merged(made, tmp_path):
    return shutil.copytree(made / "original", tmp_path / "merged")


def plan_of(made, storage=None):
    return plan_merge(made / "base", made / "adapter", storage)


def verify(made, merged):
    return verify_merge(plan_of(made), merged)


@pytest.mark.parametrize(("name", "storage", "changed"), [("original", None, 4), ("trained", NF4, 14)])
def test_merge_is_found_to_be_exact(name, storage, changed, made):
    plan = plan_of(made, storage)
    assert len(plan.touched) == changed
    assert verify_merge(plan, made / name) == Exactness(len(plan.tensors) - changed, changed, ())


def test_merge_in_several_files_is_found_to_be_exact(made, tmp_path):
    write_merge(plan_of(made), tmp_path / "merged", shard_bytes=30_000)
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 3
    assert verify(made, tmp_path / "merged").differing == ()


def test_folder_with_other_small_files_is_written_into(made, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write_merge(plan_of(made), tmp_path, shard_bytes=10**9)
    assert verify(made, tmp_path).differing == ()


def test_merge_onto_the_other_base_is_found(made):
    found = verify_merge(plan_of(made, NF4), made / "original")
    assert len(found.differing) == 14
    found = verify_merge(plan_of(made), made / "trained")
    assert len(found.differing) == 14


@pytest.mark.parametrize("name", [UP, NORM, "model.embed_tokens.weight"])
@pytest.mark.parametrize("bit", [0, 15])
def test_one_bit_of_one_element_is_found(name, bit, made, merged):
    def flip(tensors):
        tensors[name].view(torch.int16).view(-1)[-1] ^= -(1 << 15) if bit == 15 else 1
        return tensors

    edit_tensors(merged / "model.safetensors", flip)
    assert verify(made, merged).differing == (name,)


def test_two_tensors_that_have_changed_places_are_found(made, merged):
    one, other = UP, "model.layers.0.mlp.up_proj.weight"
    edit_tensors(
        merged / "model.safetensors", lambda tensors: tensors | {one: tensors[other], other: tensors[one]}
    )
    assert verify(made, merged).differing == (other, one)


def test_tensor_of_the_base_that_should_have_changed_is_found(made, merged):
    from safetensors.torch import load_file

    base = load_file(made / "base" / "model.safetensors")
    edit_tensors(merged / "model.safetensors", lambda tensors: tensors | {UP: base[UP]})
    assert verify(made, merged).differing == (UP,)


def test_missing_and_foreign_tensors_are_found(made, merged):
    def change(tensors):
        del tensors[NORM]
        return tensors | {"lm_head.weight": torch.ones(2)}

    edit_tensors(merged / "model.safetensors", change)
    found = verify(made, merged)
    assert found.differing == ("lm_head.weight", NORM)
    assert found.unchanged + found.changed == len(plan_of(made).tensors) - 1


@pytest.mark.parametrize("name", [UP, NORM])
def test_tensor_in_another_format_or_shape_is_found(name, made, merged):
    for change in (torch.Tensor.float, lambda tensor: tensor[:-1]):
        edited = shutil.copytree(merged, merged.parent / change.__name__)
        edit_tensors(
            edited / "model.safetensors",
            lambda tensors, change=change: tensors | {name: change(tensors[name])},
        )
        assert verify(made, edited).differing == (name,)


def test_swapped_adapter_is_found(made, merged, tmp_path):
    other = shutil.copytree(made / "adapter", tmp_path / "adapter")
    edit_json(other / "adapter_config.json", lora_alpha=7)
    found = verify_merge(plan_merge(made / "base", other), merged)
    assert len(found.differing) == 4


def test_untrained_adapter_is_counted_as_no_change(made, tmp_path):
    base = made / "base"
    adapter = build_adapter(base, tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", lora_alpha=0)
    plan = plan_merge(base, adapter)
    report = write_merge(plan, tmp_path / "merged", shard_bytes=10**9)
    assert verify_merge(plan, tmp_path / "merged") == Exactness(len(plan.tensors), 0, ())
    assert report.changed == 0


def test_full_fine_tune_is_found_to_be_exact(made, tmp_path):
    full = build_base(tmp_path / "full", dtype="float32")
    edit_tensors(
        full / "model.safetensors",
        lambda tensors: {name: tensor + tensor.abs().max() / 64 for name, tensor in tensors.items()},
    )
    plan = plan_merge(made / "base", full)
    write_merge(plan, tmp_path / "merged", shard_bytes=10**9)
    assert verify_merge(plan, tmp_path / "merged") == Exactness(0, len(plan.tensors), ())


def test_folder_without_weights_cannot_be_verified(made, tmp_path):
    with pytest.raises(ExportError, match=r"has neither model.safetensors nor"):
        verify(made, tmp_path)
