"""Certificates of small exports: right ones pass, and each planted fault is caught."""

import functools
import json
import logging
import math
import shutil

import peft
import pytest
import torch
import transformers
from export_models import build_adapter, build_base, edit_json, edit_tensors

from gemma_ft.config.schema import QuantizationMethod
from gemma_ft.errors import ExportError
from gemma_ft.exporting.certificate import bounds
from gemma_ft.exporting.certificate.bounds import kl_bound
from gemma_ft.exporting.certificate.certify import certify, check_bound, stop_tokens
from gemma_ft.exporting.certificate.comparison import MOST_POSITIONS, NEW_TOKENS, compare, window
from gemma_ft.exporting.certificate.content import _finite
from gemma_ft.exporting.certificate.generation import generate_greedily, load_generation_config, prompts_of
from gemma_ft.exporting.certificate.passes import open_folder
from gemma_ft.exporting.certificate.rows import CertificateRow, CertificateRows
from gemma_ft.exporting.merging import verify
from gemma_ft.exporting.merging.merge import plan_merge, write_merge
from gemma_ft.exporting.merging.storage import TrainedStorage

HELD = {
    "none": None,
    "int8": TrainedStorage(method=QuantizationMethod.int8, double_quant=False, dtype="bfloat16"),
    "nf4": TrainedStorage(method=QuantizationMethod.nf4, double_quant=True, dtype="bfloat16"),
}


def draw_rows(source="held_out", lengths=(20, 33, 12, 40, 25)):
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in lengths:
        ids = [2, *torch.randint(3, 105, (length,), generator=generator).tolist(), 107]
        made.append(CertificateRow(tuple(ids), (*[-100] * 6, *ids[6:])))
    return CertificateRows(source, tuple(made))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and an adapter of each kind, made once."""

    @functools.cache
    def make(model_type="gemma", dtype="bfloat16", **settings):
        folder = tmp_path_factory.mktemp("models")
        base = build_base(folder / "base", model_type, dtype)
        stops = [1, 106 if model_type == "gemma3_text" else 107]
        edit_json(base / "generation_config.json", eos_token_id=stops, pad_token_id=0)
        return base, build_adapter(base, folder / "adapter", **settings)

    return make


def export(base, trained, storage, folder):
    folder.mkdir()
    for name in ("config.json", "generation_config.json"):
        shutil.copy(base / name, folder / name)
    plan = plan_merge(base, trained, storage)
    write_merge(plan, folder, shard_bytes=10**9)
    return plan


@pytest.fixture
def only_measured(monkeypatch):
    """Leave finding a fault to the measures, not to the comparison of every tensor."""
    monkeypatch.setattr(verify, "verify_merge", lambda plan, folder: verify.Exactness(0, 0, ()))


@pytest.mark.parametrize(
    ("held", "merged"),
    [("none", "none"), ("int8", "int8"), ("int8", "none"), ("nf4", "nf4"), ("nf4", "none")],
)
def test_right_exports_pass(held, merged, models, tmp_path):
    base, adapter = models()
    plan = export(base, adapter, HELD[merged], tmp_path / "out")
    made = certify(plan, tmp_path / "out", draw_rows(), trained_storage=HELD[held])
    content = json.loads(json.dumps(made.content))
    assert content["base"] == ("trained" if held == merged else "original")
    assert content["quantization"]["method"] == held
    assert content["rows"] == {
        "source": "held_out",
        "count": 5,
        "predicted_tokens": 135,
        "learned_tokens": 110,
    }
    assert 0 < content["difference"]["kl_over_bound"] < 0.5
    assert content["difference"]["kl_mean"] < content["noise_floor"]["kl_mean"]
    assert content["loss"]["exported"] == pytest.approx(content["loss"]["trained"], abs=0.05)
    assert content["tensors"] == {"changed": 14, "unchanged": 6, "differing": 0}
    assert content["stop"]["tokens"] == [107, 1]
    assert content["stop"]["likeliest_at_ends_of_answers"]["answers"] == 5
    assert ("as_trained" in content) == (held == "int8" or held != merged)
    assert 2 <= len(made.summary) <= 6


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_later_generations_pass(model_type, models, tmp_path):
    base, adapter = models(model_type)
    plan = export(base, adapter, None, tmp_path / "out")
    content = certify(plan, tmp_path / "out", draw_rows(), trained_storage=None).content
    assert 0 < content["difference"]["kl_over_bound"] < 0.5
    assert content["stop"]["tokens"] == [106 if model_type == "gemma3_text" else 107, 1]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_finer_formats_have_a_closer_bound_and_pass(dtype, models, tmp_path):
    base, adapter = models(dtype=dtype)
    plan = export(base, adapter, None, tmp_path / "out")
    found = certify(plan, tmp_path / "out", draw_rows(), trained_storage=None).content
    assert found["difference"]["kl_over_bound"] < 0.5
    assert found["difference"]["kl_bound"] < found["noise_floor"]["kl_mean"] / 10


def test_full_fine_tunes_pass(models, tmp_path):
    base, trained = models()[0], build_base(tmp_path / "trained", dtype="float32")
    edit_tensors(
        trained / "model.safetensors",
        lambda tensors: {name: value * 1.01 for name, value in tensors.items()},
    )
    plan = export(base, trained, None, tmp_path / "out")
    made = certify(plan, tmp_path / "out", draw_rows(), trained_storage=None)
    assert made.content["compared"].startswith("the trained model, against the exported folder")
    assert made.content["noise_floor"]["compared"].startswith("the trained model in float32")
    assert 0 < made.content["difference"]["kl_over_bound"] < 0.75


def test_full_fine_tune_whose_steps_rounding_takes_away_passes_with_a_warning(
    models, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("gemma_ft.exporting.certificate.certify._NOTABLE_LOSS", 0.0)
    base, trained = models()[0], build_base(tmp_path / "trained", dtype="float32")

    def move(tensors):
        stored = {name: value.bfloat16().float() for name, value in tensors.items()}
        signs = {name: torch.sign(torch.randn(value.shape)) for name, value in stored.items()}
        return {name: value + value.abs() * signs[name] * 0.0019 for name, value in stored.items()}

    torch.manual_seed(3)
    edit_tensors(trained / "model.safetensors", move)
    plan = export(base, trained, None, tmp_path / "out")
    found = certify(plan, tmp_path / "out", draw_rows(), trained_storage=None).content
    assert found["difference"]["kl_over_bound"] < 1
    assert found["tensors"]["differing"] == 0
    assert "rounds away" in caplog.text


@pytest.fixture
def any_distance_is_beyond_the_floor(monkeypatch):
    factors = dict.fromkeys(("BF16", "F16", "F32"), 1e-6)
    monkeypatch.setattr("gemma_ft.exporting.certificate.bounds._FACTORS", factors)


@pytest.mark.usefixtures("any_distance_is_beyond_the_floor")
@pytest.mark.parametrize(
    "settings",
    [{}, {"use_dora": True}, {"trainable_token_indices": [5, 9]}, {"modules_to_save": ["model.norm"]}],
    ids=str,
)
@pytest.mark.parametrize("held", ["none", "nf4"])
def test_what_rounding_costs_is_measured_where_it_is_more_than_the_floor(held, settings, models, tmp_path):
    base = models()[0]
    adapter = build_adapter(base, tmp_path / "adapter", **settings)
    plan = export(base, adapter, HELD[held], tmp_path / "out")
    found = certify(plan, tmp_path / "out", draw_rows(), trained_storage=HELD[held]).content
    assert found["rounding"]["kl_mean"] == pytest.approx(found["difference"]["kl_mean"], rel=1e-3)
    assert found["difference"]["kl_over_bound"] == pytest.approx(1 / 1.1, rel=1e-2)


@pytest.mark.usefixtures("any_distance_is_beyond_the_floor")
def test_what_rounding_a_whole_model_costs_is_measured_too(models, tmp_path):
    base, trained = models()[0], build_base(tmp_path / "trained", dtype="float32")
    edit_tensors(
        trained / "model.safetensors",
        lambda tensors: {name: value * 1.01 for name, value in tensors.items()},
    )
    plan = export(base, trained, None, tmp_path / "out")
    found = certify(plan, tmp_path / "out", draw_rows(), trained_storage=None).content
    assert found["rounding"]["kl_mean"] == pytest.approx(found["difference"]["kl_mean"], rel=1e-3)


@pytest.mark.usefixtures("any_distance_is_beyond_the_floor", "only_measured")
def test_a_fault_is_no_rounding(models, tmp_path):
    base, adapter = models()
    other = shutil.copytree(adapter, tmp_path / "other")
    edit_json(other / "adapter_config.json", lora_alpha=6.3)  # by 1.05
    export(base, other, None, tmp_path / "out")
    with pytest.raises(ExportError, match="finds KL"):
        certify(plan_merge(base, adapter), tmp_path / "out", draw_rows(), trained_storage=None)


def test_dropout_of_the_training_is_no_part_of_the_trained_model(models, tmp_path):
    base, adapter = models(lora_dropout=0.5)
    plan = export(base, adapter, None, tmp_path / "out")
    found = certify(plan, tmp_path / "out", draw_rows(), trained_storage=None).content
    assert found["difference"]["kl_over_bound"] < 0.5


def test_distance_to_the_model_as_trained_is_reported_without_a_gate(models, tmp_path):
    base, adapter = models()
    plan = export(base, adapter, None, tmp_path / "out")
    made = certify(plan, tmp_path / "out", draw_rows(), trained_storage=HELD["nf4"])
    assert made.content["as_trained"]["kl_mean"] > made.content["difference"]["kl_bound"]
    assert made.content["as_trained"]["kl_bound"] is None
    assert "nf4" in made.content["as_trained"]["compared"]
    assert "reported only: another base" in made.summary[-1]


def test_model_as_int8_training_computes_it_has_a_bound_of_its_own(models, tmp_path, monkeypatch):
    base, adapter = models()
    plan = export(base, adapter, HELD["int8"], tmp_path / "out")
    made = certify(plan, tmp_path / "out", draw_rows(), trained_storage=HELD["int8"])
    found = made.content["as_trained"]
    assert made.content["difference"]["kl_mean"] < found["kl_mean"] < found["kl_bound"] / 50
    assert "quantise activations too" in made.summary[-1]
    monkeypatch.setattr(bounds, "_INT8_FACTOR", 0.1)
    with pytest.raises(ExportError, match="finds KL"):
        certify(plan, tmp_path / "out", draw_rows(), trained_storage=HELD["int8"])


def test_distance_that_is_not_a_number_is_left_out_of_the_json():
    assert _finite({"kl_mean": math.nan, "kl_max": math.inf, "same": 1.0}) == {
        "kl_mean": None,
        "kl_max": None,
        "same": 1.0,
    }


@pytest.mark.parametrize("fault", [False, True])
def test_greedy_agreement_is_where_the_whole_trained_model_goes_another_way(fault, models, tmp_path):
    base, adapter = models("gemma3_text")
    merged = shutil.copytree(adapter, tmp_path / "merged")
    if fault:
        swap(merged)
    export(base, merged, None, tmp_path / "out")
    rows = draw_rows().rows
    with torch.no_grad():
        found = compare(plan_merge(base, adapter), tmp_path / "out", rows, None, [106, 1]).greedy
        whole = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        whole = peft.PeftModel.from_pretrained(whole, adapter).eval()
        settings, prompts = load_generation_config(base), prompts_of(rows, 4)
        theirs = generate_greedily(whole, settings, prompts, NEW_TOKENS)
        ours = generate_greedily(open_folder(tmp_path / "out").model, settings, prompts, NEW_TOKENS)
    same = [
        next(
            (i for i, pair in enumerate(zip(a.generated, b.generated, strict=False)) if len(set(pair)) > 1),
            None,
        )
        for a, b in zip(ours, theirs, strict=True)
    ]
    lengths = [len(answer.generated) for answer in ours]
    assert found.tokens == sum(lengths)
    assert found.equal == sum(n if at is None else at for at, n in zip(same, lengths, strict=True))
    differing = [at for at in same if at is not None]
    assert found.first_difference == min(differing, default=None)
    assert (found.equal < found.tokens) == fault == (found.logit_gap is not None and found.logit_gap > 0)


def leave_out(adapter):
    def change(tensors):
        return {name: value * ("lora_B" not in name) for name, value in tensors.items()}

    edit_tensors(adapter / "adapter_model.safetensors", change)


def scale(adapter):
    alpha = json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"]
    edit_json(adapter / "adapter_config.json", lora_alpha=1.05 * alpha)


def swap(adapter):
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: {name: value.flip(0).contiguous() for name, value in tensors.items()},
    )


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("fault", [leave_out, scale, swap])
@pytest.mark.usefixtures("only_measured")
def test_another_adapter_than_the_trained_one_is_caught_by_its_answers(fault, model_type, models, tmp_path):
    base, adapter = models(model_type)
    bad = shutil.copytree(adapter, tmp_path / "bad")
    fault(bad)
    export(base, bad, None, tmp_path / "out")
    with pytest.raises(ExportError, match=r"finds KL .* against a bound of .* times it\)\. Export again"):
        certify(plan_merge(base, adapter), tmp_path / "out", draw_rows(), trained_storage=None)


@pytest.mark.usefixtures("only_measured")
def test_shuffled_rows_of_one_linear_are_caught_by_its_answers(models, tmp_path):
    base, adapter = models()
    plan = export(base, adapter, None, tmp_path / "out")
    name = "model.layers.1.self_attn.v_proj.weight"
    edit_tensors(
        tmp_path / "out" / "model.safetensors",
        lambda tensors: tensors | {name: tensors[name].flip(0).contiguous()},
    )
    with pytest.raises(ExportError, match="finds KL"):
        certify(plan, tmp_path / "out", draw_rows(), trained_storage=None)


@pytest.mark.usefixtures("only_measured")
def test_merge_onto_the_original_base_called_trained_is_caught_for_nf4(models, tmp_path):
    base, adapter = models()
    export(base, adapter, None, tmp_path / "out")
    plan = plan_merge(base, adapter, HELD["nf4"])
    with pytest.raises(ExportError, match="finds KL"):
        certify(plan, tmp_path / "out", draw_rows(), trained_storage=HELD["nf4"])


def test_one_bit_of_one_tensor_is_caught(models, tmp_path):
    base, adapter = models()
    plan = export(base, adapter, None, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ExportError, match=r"finds \S+ on disk other than the merge computes it \(1 such\)\."):
        certify(plan, tmp_path / "out", draw_rows(), trained_storage=None)


def test_folder_that_does_not_stop_is_caught(models, tmp_path):
    base, adapter = models()
    plan = export(base, adapter, None, tmp_path / "out")
    edit_json(tmp_path / "out" / "generation_config.json", eos_token_id=[1])
    with pytest.raises(ExportError, match="made the export say token 107, and it did not stop there"):
        certify(plan, tmp_path / "out", draw_rows(), trained_storage=None)


def test_certificate_needs_rows(models, tmp_path):
    base, adapter = models()
    with pytest.raises(
        ExportError, match=r"has no rows to measure on\. Export with export\.certificate=none"
    ):
        certify(plan_merge(base, adapter), tmp_path, CertificateRows("held_out", ()), trained_storage=None)


@pytest.mark.parametrize("token", [-1, 128])
def test_rows_of_another_vocabulary_are_refused(token, models, tmp_path):
    base, adapter = models()
    plan = export(base, adapter, None, tmp_path / "out")
    rows = CertificateRows("held_out", (CertificateRow((2, token, 5), (-100, token, 5)),))
    with pytest.raises(ExportError, match=rf"rows with token {token}, beyond a vocabulary of 128"):
        certify(plan, tmp_path / "out", rows, trained_storage=None)


def test_export_that_is_not_a_number_is_beyond_every_bound():
    with pytest.raises(ExportError, match="finds answers that are no finite numbers"):
        check_bound(float("nan"), 1.0)
    with pytest.raises(ExportError, match=r"finds KL 0\.3 .* bound of 0\.1 \(3 times it\)"):
        check_bound(0.3, 0.1)
    check_bound(0.1, 0.1)


def test_bound_follows_the_coarsest_format_that_was_merged():
    assert kl_bound(1e-3, ["F32", "BF16"]) == kl_bound(1e-3, ["BF16"]) > kl_bound(1e-3, ["F16"])
    assert kl_bound(1e-3, ["F16"]) > kl_bound(1e-3, ["F32"]) == kl_bound(1e-3, [])


def test_certificates_of_training_rows_say_so(models, tmp_path):
    base, adapter = models()
    plan = export(base, adapter, None, tmp_path / "out")
    made = certify(plan, tmp_path / "out", draw_rows("training"), trained_storage=None)
    assert made.content["rows"]["source"] == made.content["rows"]["source"] == "training"
    assert "training data" in made.summary[0]
    assert "held" not in " ".join(made.summary)


def test_certificates_are_the_same_each_time_and_leave_nothing_behind(models, tmp_path, recwarn, caplog):
    base, adapter = models()
    plan = export(base, adapter, HELD["int8"], tmp_path / "out")
    level, threads = logging.getLogger("transformers").level, torch.get_num_threads()
    first = certify(plan, tmp_path / "out", draw_rows(), trained_storage=HELD["int8"])
    assert first == certify(plan, tmp_path / "out", draw_rows(), trained_storage=HELD["int8"])
    assert logging.getLogger("transformers").level == level
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert [str(warning.message) for warning in recwarn] == []
    assert {record.name for record in caplog.records} <= {"gemma_ft"}


def test_stop_tokens_are_the_familys_and_the_configs(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3_text", "eos_token_id": [1, 106]}))
    assert stop_tokens(tmp_path) == [106, 1]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma"}))
    assert stop_tokens(tmp_path) == [107]


def test_recorded_rows_are_cut_to_what_one_pass_takes():
    def lengths(*recorded):
        return [len(row.input_ids) for row in window(draw_rows(lengths=[n - 2 for n in recorded]).rows)]

    assert lengths(*[500] * 12) == [128] * 6
    assert lengths(500, 500) == [384, 384]
    assert lengths(*[40] * 16) == [40] * 16
    assert lengths(30, 40, 128, *[20] * 13) == [30, 40, 128, 20, 20, 20]
    assert lengths(900) == [MOST_POSITIONS] == [768]
