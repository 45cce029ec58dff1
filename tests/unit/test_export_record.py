"""What training wrote down decides what is merged onto; settings that say otherwise are refused."""

import json

import pytest

from gemma_ft.config.schema import (
    AdapterConfig,
    AdapterMethod,
    QuantizationConfig,
    QuantizationMethod,
    RunConfig,
)
from gemma_ft.errors import ExportError
from gemma_ft.exporting.record import read_record
from gemma_ft.runs import RunFolder

RECORD = {
    "base_fingerprint": "0" * 64,
    "files": {"adapter_model.safetensors": "1" * 64},
    "quantization": "nf4",
    "double_quant": True,
    "dtype": "bfloat16",
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "trained.json").write_text(json.dumps(RECORD))
    return RunFolder(tmp_path)


def settings(method="nf4", adapter="lora", double_quant=True):
    config = RunConfig()
    config.quantization = QuantizationConfig(method=QuantizationMethod(method), double_quant=double_quant)
    config.adapter = AdapterConfig(method=AdapterMethod(adapter))
    return config


def test_record_of_the_training_is_read(run):
    assert read_record(run, settings()) == RECORD


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"method": "int8"}, "quantization=int8, but it was nf4"),
        ({"method": "none"}, "quantization=none, but it was nf4"),
        ({"double_quant": False}, "double_quant=False, but it was True"),
        ({"adapter": "none"}, "adapter=none, but .*adapter was trained"),
    ],
)
def test_settings_other_than_those_of_the_training_are_refused(run, changed, said):
    with pytest.raises(ExportError, match=rf"config.yaml says {said}.* Put the config.yaml of the training"):
        read_record(run, settings(**changed))


def test_settings_of_double_quantisation_mean_nothing_to_int8(run):
    run.trained_record.write_text(json.dumps(RECORD | {"quantization": "int8"}))
    assert read_record(run, settings("int8", double_quant=False)) is not None


@pytest.mark.parametrize(
    ("key", "value"), [*((key, 7) for key in RECORD), ("files", []), ("dtype", "float99"), ("dtype", None)]
)
def test_record_of_another_form_is_refused_by_its_key(run, key, value):
    run.trained_record.write_text(json.dumps(RECORD | {key: value}))
    with pytest.raises(ExportError, match=f"trained.json is no record of a training: {key} is .*Restore it"):
        read_record(run, settings())


def test_run_without_a_record_is_exported_with_a_warning(run, caplog):
    run.trained_record.unlink()
    assert read_record(run, settings()) is None
    assert "nothing tells whether base and trained weights are those of the training" in caplog.text
