"""What cannot be merged is refused with its reason, before a byte is written."""

import json
import shutil

import pytest
import torch
from export_models import build_adapter, build_base, edit_json, edit_tensors

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging.adapter_config import OBEYED, REFUSED, WITHOUT_EFFECT, check_adapter_config
from gemma_ft.exporting.merging.merge import merge_checkpoint

UP = "base_model.model.model.layers.1.mlp.up_proj"


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


def assert_refused(base, trained, message):
    merged = trained.parent / "merged"
    with pytest.raises(ExportError, match=message):
        merge_checkpoint(base, trained, merged, shard_bytes=10**9)
    assert not merged.exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "IA3", "peft_type=IA3 is no LoRA"),
        ("task_type", "SEQ_CLS", "task_type=SEQ_CLS is no causal language model"),
        ("bias", "boft_only", "bias=boft_only is no choice that PEFT has"),
        ("layer_replication", [[0, 2], [0, 2]], "layer_replication=.* adds layers"),
        ("fan_in_fan_out", True, "fan_in_fan_out=True is for transposed weights"),
        ("use_qalora", True, "use_qalora=True pools the inputs"),
        ("use_bdlora", {"nblocks": 2}, "use_bdlora=.* stores block-diagonal"),
        ("target_parameters", ["experts.down"], "target_parameters=.* no linear layers"),
        ("alora_invocation_tokens", [1, 2], "alora_invocation_tokens=.* in the middle of a text"),
        ("arrow_config", {"top_k": 1}, "arrow_config=.* chooses between adapters"),
        ("kasa_config", {"beta": 1e-4}, "kasa_config=.* changes the base"),
        ("velora_config", {"num_groups": 4}, "velora_config=.* another kind"),
        ("monteclora_config", {"num_samples": 4}, "monteclora_config=.* samples"),
        ("megatron_config", {"a": 1}, "megatron_config=.* Megatron"),
        ("init_lora_weights", "loftq", "init_lora_weights=loftq changes the base weights"),
        ("init_lora_weights", "mica", "init_lora_weights=mica is rounded twice in PEFT's merge"),
        ("use_new_thing", True, "use_new_thing=True is unknown here and may change the weights"),
    ],
)
def test_kind_of_adapter_is_refused_by_name(key, value, message, base, adapter):
    edit_json(adapter / "adapter_config.json", **{key: value})
    assert_refused(base, adapter, f"adapter_config.json: {message}.* Merge this adapter with PEFT")


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "lora_ga"])
def test_start_that_changed_the_base_is_refused_with_the_way_out_of_it(start, base, adapter):
    edit_json(adapter / "adapter_config.json", init_lora_weights=start)
    assert_refused(
        base,
        adapter,
        f"init_lora_weights={start} changes the base weights before training, .* Save it as a plain LoRA, "
        "with PEFT's path_initial_model_for_weight_conversion",
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bias": "all"}, "bias=all trains the biases that lora_bias=True adds to"),
        ({"use_dora": True}, "lora_bias=True has no meaning beside use_dora=True"),
    ],
)
def test_biases_in_two_ways_are_refused(settings, message, base, adapter):
    edit_json(adapter / "adapter_config.json", lora_bias=True, **settings)
    assert_refused(base, adapter, message)


def test_every_setting_of_this_peft_is_obeyed_refused_or_known_to_be_harmless():
    import peft

    plain = json.loads(json.dumps(peft.LoraConfig(task_type="CAUSAL_LM").to_dict()))
    assert check_adapter_config(plain, "here").scale("q_proj") == 1
    unknown = plain.keys() - set(OBEYED) - set(WITHOUT_EFFECT) - REFUSED.keys()
    assert unknown == set()


def test_switched_off_settings_of_a_newer_peft_are_accepted():
    check_adapter_config({"peft_type": "LORA", "later_config": None, "use_later": False, "later": []}, "here")


def test_adapter_of_a_wider_base_is_refused(adapter, tmp_path):
    wider = build_base(tmp_path / "wider", hidden=80)
    assert_refused(wider, adapter, r"has shape \(4, \d+\), but model.* of the base needs .*it was trained on")


def test_adapter_of_a_deeper_base_is_refused(base, adapter):
    def rename(tensors):
        return {name.replace("layers.1.", "layers.7."): tensor for name, tensor in tensors.items()}

    edit_tensors(adapter / "adapter_model.safetensors", rename)
    assert_refused(base, adapter, r"changes model\.layers\.7\..*the base does not have \(7 such of 14\)")


def test_adapter_of_a_smaller_base_is_refused(base, adapter):
    def cut(tensors):
        return {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}

    edit_json(adapter / "adapter_config.json", target_modules="all-linear")
    edit_tensors(adapter / "adapter_model.safetensors", cut)
    assert_refused(base, adapter, r"names model\.layers\.1\..* which the adapter lacks \(7 such of 14\)")


def test_adapter_beyond_its_own_targets_is_refused(base, adapter):
    edit_json(adapter / "adapter_config.json", target_modules=["q_proj"])
    assert_refused(base, adapter, r"holds model\.\S+, which target_modules does not name \(12 such of 14\)")


def test_half_an_update_is_refused(base, adapter):
    def drop(tensors):
        del tensors[f"{UP}.lora_B.weight"]
        return tensors

    edit_tensors(adapter / "adapter_model.safetensors", drop)
    assert_refused(base, adapter, r"the adapter lacks model\.layers\.1\.mlp\.up_proj\.lora_B\.weight")


def test_dora_without_its_magnitudes_is_refused(base, adapter):
    edit_json(adapter / "adapter_config.json", use_dora=True)
    assert_refused(base, adapter, "the adapter lacks .*lora_magnitude_vector")


def test_magnitudes_without_dora_are_refused(base, tmp_path):
    adapter = build_adapter(base, tmp_path / "adapter", use_dora=True)
    edit_json(adapter / "adapter_config.json", use_dora=False)
    assert_refused(base, adapter, "the adapter has, without use_dora, .*lora_magnitude_vector")


def test_rank_that_contradicts_the_matrices_is_refused(base, adapter):
    edit_json(adapter / "adapter_config.json", r=8)
    assert_refused(base, adapter, r"says rank 8 for model\..*, but its lora_A has shape \(4, ")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "("},
        {"r": "four"},
        {"lora_alpha": "six"},
        {"lora_alpha": float("inf")},
        {"lora_alpha": float("nan")},
        {"r": 0, "rank_pattern": {}},
        {"modules_to_save": "embed_tokens"},
        {"trainable_token_indices": 5},
        {"trainable_token_indices": [1.5]},
        {"trainable_token_indices": [True]},
        {"rank_pattern": ["q_proj"]},
    ],
)
def test_unreadable_settings_are_refused(settings, base, adapter):
    edit_json(adapter / "adapter_config.json", **settings)
    assert_refused(base, adapter, "adapter_config.json (cannot be understood|says rank 0 for)")


def test_alphas_whose_order_is_lost_are_refused(base, adapter):
    patterns = {"up_proj": 5, "mlp.up_proj": 7}
    edit_json(adapter / "adapter_config.json", alpha_pattern=patterns)
    assert_refused(
        base, adapter, r"alpha_pattern gives model\..*up_proj both 5 and 7, and the order .* not saved"
    )


def test_quantised_base_is_refused(base, adapter):
    edit_json(base / "config.json", quantization_config={"load_in_4bit": True})
    assert_refused(base, adapter, "holds quantised weights. Merge into the full-precision checkpoint")


def test_base_with_integer_weights_is_refused(base, adapter):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_tensors(base / "model.safetensors", lambda tensors: tensors | {name: tensors[name].to(torch.int8)})
    assert_refused(base, adapter, f"{name} is stored as I8, which cannot be merged into")


def test_head_that_is_tied_and_yet_different_is_refused(base, adapter):
    def add_head(tensors):
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2}

    edit_tensors(base / "model.safetensors", add_head)
    assert_refused(base, adapter, "tied, but lm_head.weight differs from model.embed_tokens.weight")


def test_folder_without_trained_weights_is_refused(base, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(base, tmp_path / "empty", "holds neither an adapter nor a full model")


def test_folder_with_two_kinds_of_weights_is_refused(base, adapter):
    shutil.copy(base / "config.json", adapter)
    assert_refused(base, adapter, "holds both an adapter and a full model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "lacks model.norm.weight"),
        (lambda tensors: tensors.update(extra=torch.ones(2)), "has, unlike its base, extra"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}),
            r"shape \(65,\), but \(64,\)",
        ),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(64).int()}), "is stored as I32"),
    ],
)
def test_full_fine_tune_of_another_base_is_refused(change, message, base, tmp_path):
    full = shutil.copytree(base, tmp_path / "full")
    edit_tensors(full / "model.safetensors", lambda tensors: (change(tensors), tensors)[1])
    assert_refused(base, full, message)


def test_full_fine_tune_that_is_not_finite_ends_the_merge(base, tmp_path):
    full = shutil.copytree(base, tmp_path / "full")
    edit_tensors(
        full / "model.safetensors",
        lambda tensors: tensors | {"model.norm.weight": torch.full((64,), torch.nan)},
    )
    with pytest.raises(ExportError, match=r"model.norm.weight would hold NaN or infinity after the merge"):
        merge_checkpoint(base, full, tmp_path / "merged", shard_bytes=10**9)


def test_result_beyond_the_number_format_of_the_base_ends_the_merge(tmp_path):
    base = build_base(tmp_path / "base", dtype="float16")
    adapter = build_adapter(base, tmp_path / "adapter", lora_alpha=10**6)
    with pytest.raises(ExportError, match="does not fit the base's number format"):
        merge_checkpoint(base, adapter, tmp_path / "merged", shard_bytes=10**9)


def test_full_disk_is_refused_with_both_numbers(base, adapter, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=12_000_000))
    assert_refused(base, adapter, r"merged needs 0\.10 GB, but its disk has 0\.01 GB free\. Free some space")


def test_folder_with_weights_in_it_is_not_written_into(base, adapter, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "model.safetensors").touch()
    with pytest.raises(ExportError, match=r"merged holds weights already. Merge into a new folder"):
        merge_checkpoint(base, adapter, tmp_path / "merged", shard_bytes=10**9)
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["model.safetensors"]
    assert not (tmp_path / "merged" / "model.safetensors").stat().st_size


def test_base_cut_short_is_refused(base, adapter):
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert_refused(
        base, adapter, r"model.safetensors is no whole safetensors file \(it has \d+ bytes where .* \d+\)"
    )


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04" * 10, b"\x02" + bytes(7) + b"[]", b"\x09" + bytes(7) + b"not json!"]
)
def test_file_of_another_format_is_refused(content, base, adapter):
    (base / "model.safetensors").write_bytes(content)
    assert_refused(base, adapter, "model.safetensors is no whole safetensors file")


def test_base_with_pickled_weights_only_is_refused(base, adapter):
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    assert_refused(
        base, adapter, "has neither model.safetensors nor model.safetensors.index.json.*safetensors only"
    )


def test_index_that_names_a_missing_tensor_is_refused(base, adapter):
    index = {"weight_map": {"model.norm.weight": "part.safetensors", "gone": "part.safetensors"}}
    (base / "model.safetensors").rename(base / "part.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(base, adapter, "places gone in part.safetensors, which has no such tensor")
