"""What cannot work although every word is right; and what the room costs to import."""

import json
import subprocess
import sys

import pytest

from gemma_ft.config.checks import check_config, find_problems
from gemma_ft.config.compose import compose
from gemma_ft.config.docs import key_docs
from gemma_ft.config.keys import key_types
from gemma_ft.config.schema import AdapterMethod, Attention, RunConfig
from gemma_ft.errors import ConfigError


@pytest.fixture
def config():
    return compose("recipe=quickstart")


def write_checkpoint(folder, **content):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_a_good_config_has_no_problem(config):
    check_config(config)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("name", "a/b", r"name=a/b is no plain folder name"),
        ("output_dir", " ", r"output_dir= is empty\. Give it a value"),
        ("seed", -1, r"seed=-1 must be at least 0"),
        ("model.path", "", r"model\.path= is empty\. Give a hub id"),
        ("model.revision", "", r"model\.revision= is empty\."),
        ("model.path", "bundled:big", r"no hub id\. The only bundled model is model\.path=bundled:tiny\."),
        ("model.path", "gemma-2b-it", r"no hub id\. Type model\.path=google/gemma-2b-it\."),
        ("model.path", "gemma_2b_it", r"no hub id\. Type model=gemma_2b_it\."),
        (
            "model.path",
            "/nowhere/gemma",
            r"model\.path=/nowhere/gemma is no folder here, and no hub id\. Check the path",
        ),
        ("dataset.path", "", r"dataset\.path= is empty\. Name your file"),
        ("dataset.split", "", r"dataset\.split= is empty\."),
        ("dataset.eval_split", "train", r"dataset\.eval_split=train is the training split itself"),
        ("dataset.eval_fraction", 1.0, r"dataset\.eval_fraction=1\.0 must be at least 0 and below 1"),
        ("dataset.max_rows", 0, r"dataset\.max_rows=0 must be at least 1"),
        ("adapter.rank", 0, r"adapter\.rank=0 must be at least 1"),
        ("adapter.alpha", 0.0, r"adapter\.alpha=0\.0 must be above 0"),
        ("adapter.dropout", 1.0, r"adapter\.dropout=1\.0 must be at least 0 and below 1"),
        ("adapter.targets", (), r"adapter\.targets=\[\] names no layer"),
        ("adapter.path", "nowhere", r"adapter\.path=nowhere has no adapter_config\.json\. Give the folder"),
        ("trainer.learning_rate", float("nan"), r"trainer\.learning_rate=nan must not be negative\."),
        ("trainer.save_steps", 0, r"trainer\.save_steps=0 must be above 0\."),
        (
            "adapter.targets",
            ("lm_head",),
            r"adapter\.targets=\[lm_head\] is no linear layer of a Gemma block",
        ),
        ("trainer.warmup_steps", -1.0, r"trainer\.warmup_steps=-1\.0 must not be negative\."),
        ("trainer.warmup_steps", 2.5, r"trainer\.warmup_steps=2\.5 is neither a share nor a number of steps"),
        ("trainer.max_steps", 0, r"trainer\.max_steps=0 trains nothing"),
        (
            "trainer.micro_batch_size",
            3,
            r"trainer\.global_batch_size=4 is not divisible by trainer\.micro_batch_size=3",
        ),
        (
            "trainer.optim",
            "adamw_torhc",
            r"trainer\.optim=adamw_torhc is no name .* Did you mean adamw_torch\?",
        ),
        (
            "trainer.lr_scheduler_type",
            "cosin",
            r"lr_scheduler_type=cosin is no name .* Did you mean cosine\?",
        ),
        ("trainer.lr_scheduler_type", "zzz", r"lr_scheduler_type=zzz is no name .* Use one of constant, "),
        (
            "trainer.load_best_model_at_end",
            True,
            r"trainer\.eval_steps=null leaves the best checkpoint unknown",
        ),
        (
            "trainer.early_stopping_patience",
            2,
            r"would end with a model that is not the best one\. Add trainer\.load_best_model_at_end=true",
        ),
        ("tracking.project", "", r"tracking\.project= is empty"),
        ("export.max_shard_size", "5 apples", r"export\.max_shard_size=5 apples is no size"),
        ("export.max_shard_size", "infGB", r"export\.max_shard_size=infGB is no size\. Write it like 5GB"),
        ("export.max_shard_size", "nanMB", r"export\.max_shard_size=nanMB is no size"),
        ("export.max_shard_size", "1e400GB", r"export\.max_shard_size=1e400GB is no size"),
        (
            "export.formats",
            ("q8_0",),
            r"formats=\[q8_0\] is none of .*, nf4, int8\. Did you mean gguf_q8_0\?",
        ),
        ("export.formats", ("GGUF_F16",), r"formats=\[GGUF_F16\] is none of .* Did you mean gguf_f16\?"),
        ("export.formats", ("awq",), r"formats=\[awq\] is none of gguf_f16, gguf_bf16, .*, int8\.$"),
        (
            "export.formats",
            ("nf4", "int8", "nf4"),
            r"export\.formats=\[nf4,int8,nf4\] names nf4 twice\. Keep one\.",
        ),
        (
            "trainer.extra",
            {"learning_rate": 1},
            r"extra\.learning_rate=1 is set by a key of its own\. Use trainer\.learning_rate",
        ),
        ("trainer.extra", {"per_device_train_batch_size": 1}, r"Use trainer\.micro_batch_size\."),
        ("trainer.extra", {"gradient_accumulation_steps": 1}, r"Use trainer\.global_batch_size\."),
        ("trainer.extra", {"bf16": True}, r"Use model\.dtype\."),
        ("trainer.extra", {"report_to": "all"}, r"Use tracking\."),
        ("trainer.extra", {"output_dir": "x"}, r"Use output_dir\."),
        ("trainer.extra", {"trust_remote_code": True}, r"would run code from a checkpoint\. Take it out\."),
        ("trainer.extra", {"hub_token": "x"}, r"would put a secret into config\.yaml"),
        ("trainer.extra", {"push_to_hub": True}, r"would publish checkpoints"),
        ("trainer.extra", {"hub_model_id": "a/b"}, r"would publish checkpoints"),
        ("trainer.extra", {"model_init_kwargs": {}}, r"has no effect here; the model section"),
    ],
)
def test_a_value_that_cannot_work_is_told(config, key, value, line):
    section = config
    *path, name = key.split(".")
    for part in path:
        section = getattr(section, part)
    setattr(section, name, value)

    with pytest.raises(ConfigError, match=line) as caught:
        check_config(config)
    assert len(caught.value.problems) == 1


def test_several_problems_come_at_once(config):
    config.adapter.rank, config.trainer.max_steps, config.model.path = 0, 0, ""

    assert [problem.split("=")[0] for problem in find_problems(config)] == [
        "model.path",
        "adapter.rank",
        "trainer.max_steps",
    ]


@pytest.mark.parametrize(
    ("model", "bound"),
    [("tiny", 8192), ("gemma_7b_it", 8192), ("gemma2_2b_it", 8192), ("gemma3_1b_it", 32768)],
)
def test_a_length_above_the_models_is_refused_with_the_bound(model, bound):
    compose(f"model={model}", f"trainer.max_length={bound}")
    with pytest.raises(
        ConfigError,
        match=rf"trainer\.max_length={bound + 1} is above the {bound} positions .* at most {bound}\.",
    ):
        compose(f"model={model}", f"trainer.max_length={bound + 1}")


def test_a_local_models_own_bound_counts(config, tmp_path):
    folder = write_checkpoint(tmp_path / "m", model_type="gemma", max_position_embeddings=64)
    config.model.path = str(folder)

    with pytest.raises(ConfigError, match="is above the 64 positions"):
        check_config(config)


def test_a_local_model_that_is_no_text_gemma_is_refused_by_name(config, tmp_path):
    config.model.path = str(
        write_checkpoint(tmp_path / "m", model_type="llama", architectures=["LlamaForCausalLM"])
    )

    with pytest.raises(
        ConfigError, match=r"is a model of type 'llama'\. Use a causal-LM text model of Gemma 1"
    ):
        check_config(config)


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ((), r"It is empty\."),
        (("adapter_config.json",), r"It is an adapter: give its base as model\.path, and adapter\.path="),
        (("merged/config.json",), r"It is a run: give model\.path=.*merged\."),
        (("model.safetensors",), r"Give the folder of a whole checkpoint\."),
    ],
)
def test_a_folder_without_a_config_is_refused(config, tmp_path, files, hint):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    config.model.path = str(tmp_path)

    with pytest.raises(ConfigError, match=r"has no config\.json\. " + hint):
        check_config(config)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_config_json_is_refused(config, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    config.model.path = str(tmp_path)

    with pytest.raises(ConfigError, match=r"has a config\.json that is not JSON"):
        check_config(config)


def test_quantised_weights_cannot_be_trained(config):
    config.adapter.method = AdapterMethod.none

    with pytest.raises(
        ConfigError, match="quantization=nf4 freezes the weights that adapter=none would train"
    ):
        check_config(config)


def test_sdpa_is_refused_for_gemma_2_only(config):
    config.model.attention = Attention.sdpa
    check_config(config)
    config.model.path = "google/gemma-2-2b-it"

    with pytest.raises(
        ConfigError, match=r"model\.attention=sdpa does not compute Gemma 2's attention exactly"
    ):
        check_config(config)


@pytest.mark.parametrize("key", ["load_best_model_at_end", "early_stopping_patience", "eval_steps"])
def test_what_needs_held_out_rows_is_refused_without_any(config, key):
    config.trainer.save_steps = config.trainer.eval_steps = 10
    config.trainer.load_best_model_at_end = key == "early_stopping_patience"
    setattr(config.trainer, key, True if key == "load_best_model_at_end" else 10)
    check_config(config)
    config.dataset.eval_fraction = 0.0

    with pytest.raises(ConfigError, match=rf"trainer\.{key}=\w+ needs held-out rows"):
        check_config(config)


def test_a_missing_file_is_refused_with_the_nearest_name(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(
        ConfigError, match=r"dataset\.path=row\.jsonl does not exist\. Did you mean rows\.jsonl\?"
    ):
        compose("model=tiny", "dataset=local", "dataset.path=row.jsonl")
    with pytest.raises(
        ConfigError, match=r"dataset\.path=a/b does not exist\. For a hub id add dataset\.source=hub\."
    ):
        compose("model=tiny", "dataset=local", "dataset.path=a/b")


def test_an_adapter_to_go_on_from_needs_adapters(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").touch()

    assert compose("recipe=quickstart", f"adapter.path={tmp_path}").adapter.path == str(tmp_path)
    with pytest.raises(ConfigError, match=r"adapter\.path=.* needs adapters, but adapter=none"):
        compose("recipe=quickstart", "adapter=none", "quantization=none", f"adapter.path={tmp_path}")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_of_a_base_are_refused(config, tmp_path, name):
    folder = write_checkpoint(tmp_path / "m", model_type="gemma")
    config.model.path = str(folder)
    check_config(config)  # without any weights it is a folder for inspecting data
    (folder / name).touch()

    with pytest.raises(
        ConfigError,
        match=r"model\.path=.* has pickled weights only, which can run code\. .* its save_pretrained\.",
    ):
        check_config(config)
    (folder / "model.safetensors").touch()
    check_config(config)


@pytest.mark.parametrize(
    ("name", "why"), [("adapter_model.bin", "pickled weights"), ("x", r"no adapter_model\.safetensors")]
)
def test_an_adapter_without_safetensors_is_refused(config, tmp_path, name, why):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / name).touch()
    config.adapter.path = str(tmp_path)

    with pytest.raises(ConfigError, match=rf"adapter\.path=.* has {why}.* PEFT's save_pretrained wrote\."):
        check_config(config)


def test_a_file_is_no_checkpoint(config, tmp_path):
    (tmp_path / "model.pt").touch()
    config.model.path = str(tmp_path / "model.pt")

    with pytest.raises(ConfigError, match=r"no hub id\. It is a file: give the folder of a whole checkpoint"):
        check_config(config)


def test_every_key_is_documented():
    docs = key_docs()

    assert [entry.key for entry in docs] == list(key_types())
    assert [entry.key for entry in docs if not entry.doc.endswith((".", ")"))] == []
    assert {entry.key: entry.default for entry in docs}["adapter.targets"] == "[all-linear]"


def test_a_config_can_be_built_without_hydra_yaml_or_torch():
    code = (
        "import sys, pkgutil, importlib, gemma_ft.config as room\n"
        "for m in pkgutil.iter_modules(room.__path__):\n"
        "    if m.name != 'compose': importlib.import_module('gemma_ft.config.' + m.name)\n"
        "from gemma_ft.config.checks import check_config\n"
        "from gemma_ft.config.schema import RunConfig, DatasetConfig\n"
        "from gemma_ft.config.rows import DataSource\n"
        "rows = DatasetConfig(source=DataSource.package, path='chatterbot_corpus')\n"
        "assert RunConfig(name='x').output_dir == 'outputs/x'\n"
        "check_config(RunConfig(name='x', dataset=rows))\n"
        "heavy = {'hydra', 'omegaconf', 'yaml', 'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_config_built_in_python_is_checked_alike():
    with pytest.raises(ConfigError, match=r"dataset\.path= is empty"):
        check_config(RunConfig(name="x"))
