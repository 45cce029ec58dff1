"""Each rule of the loaders finds the folder that breaks it, and lets a good one pass."""

import json
import shutil

import pytest
from export_models import FAMILY_BY_TYPE, build_base, edit_json, edit_tensors

from gemma_ft.errors import ExportError
from gemma_ft.exporting.folder import weight_rules
from gemma_ft.exporting.folder.loaders import check_loaders
from gemma_ft.exporting.folder.model_config import export_config, export_generation_config
from gemma_ft.exporting.folder.tokenizer_files import special_token_ids
from gemma_ft.exporting.folder.turn_tokens import rewritten_files
from gemma_ft.families import load_chat_template

FAMILIES = ("gemma", "gemma2", "gemma3_text")
NO_MODEL = (
    "llama.cpp's converter and Ollama need tokenizer.model, which the base does not have: "
    "use export.formats=[gguf_bf16] for them."
)
OWN_TEMPLATE = "its chat template is in chat_template.jinja, which transformers before 4.50 does not read."


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    made = {name: build_base(folder / name, name) for name in FAMILIES}
    return made | {"sharded": build_base(folder / "sharded", shard_size="60KB")}


def export_by_hand(base, folder, model_type="gemma"):
    """Write what an export writes, with the base's own weights."""
    shutil.copytree(base, folder)
    config = json.loads((base / "config.json").read_text())
    generation = json.loads((base / "generation_config.json").read_text())
    texts = rewritten_files(base) | {
        "config.json": json.dumps(export_config(config, FAMILY_BY_TYPE[model_type], "bfloat16")),
        "generation_config.json": json.dumps(
            export_generation_config(generation, config, special_token_ids(base))
        ),
        "chat_template.jinja": load_chat_template(),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_good_folder_passes_with_what_its_base_lacks(model_type, bases, tmp_path):
    folder = export_by_hand(bases[model_type], tmp_path / "merged", model_type)
    notes = check_loaders(folder, bases[model_type], FAMILY_BY_TYPE[model_type])
    assert notes == [OWN_TEMPLATE, NO_MODEL]


def test_nothing_is_said_where_nothing_is_lacking(bases, tmp_path):
    base = shutil.copytree(bases["gemma"], tmp_path / "base")
    (base / "tokenizer.model").write_bytes(b"pieces")
    edit_json(base / "tokenizer_config.json", chat_template=load_chat_template())
    folder = export_by_hand(base, tmp_path / "merged")
    (folder / "chat_template.jinja").unlink()
    assert check_loaders(folder, base, FAMILY_BY_TYPE["gemma"]) == []


def test_a_sharded_folder_passes(bases, tmp_path):
    folder = export_by_hand(bases["sharded"], tmp_path / "merged")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert check_loaders(folder, bases["sharded"], FAMILY_BY_TYPE["gemma"]) == [OWN_TEMPLATE, NO_MODEL]


def weights(change):
    return lambda folder: edit_tensors(folder / "model.safetensors", change)


def drop(name):
    return weights(lambda tensors: {key: value for key, value in tensors.items() if key != name})


def copy_as(name):
    return weights(lambda tensors: tensors | {name: tensors["model.embed_tokens.weight"].clone()})


def config(**values):
    return lambda folder: edit_json(folder / "config.json", **values)


def without(file, key):
    def change(folder):
        content = json.loads((folder / file).read_text())
        del content[key]
        (folder / file).write_text(json.dumps(content))

    return change


def anonymous(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(load_file(path), path)


def largest_vocabulary_id(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["w999"] = 999
    path.write_text(json.dumps(content))


CASES = {
    "a tensor is missing": (
        "gemma",
        drop("model.norm.weight"),
        r"by transformers and vLLM: the base's tensor model\.norm\.weight is not in it",
    ),
    "a tensor is foreign": (
        "gemma",
        copy_as("model.extra.weight"),
        r"by vLLM and llama.cpp's converter: its tensor model\.extra\.weight is none of the base's",
    ),
    "a tied head is stored": (
        "gemma",
        copy_as("lm_head.weight"),
        r"by Ollama: it holds lm_head\.weight, though head and embedding are tied",
    ),
    "the vocabulary has another size": (
        "gemma",
        config(vocab_size=127),
        r"by transformers and vLLM: model\.embed_tokens\.weight has 128 rows, but vocab_size is 127",
    ),
    "the metadata are empty": (
        "gemma",
        anonymous,
        r"by transformers: model\.safetensors does not say format=pt in its metadata",
    ),
    "another file stands beside": (
        "gemma",
        lambda folder: shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors"),
        r"by vLLM: adapter_model\.safetensors stands beside model\.safetensors without an index",
    ),
    "the class is another": (
        "gemma",
        config(architectures=["GemmaModel"]),
        r"by vLLM and Ollama: config\.json says \['GemmaModel'\] of type gemma, not GemmaForCausalLM",
    ),
    "it calls itself quantised": (
        "gemma",
        config(quantization_config={"load_in_4bit": True}),
        r"by transformers and vLLM: config\.json has quantization_config, which is not true of it",
    ),
    "it asks for code": ("gemma", config(auto_map={"AutoModel": "x.Y"}), r"config\.json has auto_map"),
    "it does not cache": (
        "gemma",
        config(use_cache=False),
        r"by transformers: config\.json has no use_cache: true",
    ),
    "nothing is said of the head": (
        "gemma",
        without("config.json", "tie_word_embeddings"),
        r"by vLLM: config\.json has no tie_word_embeddings",
    ),
    "the number format is named once": (
        "gemma",
        without("config.json", "torch_dtype"),
        r"config\.json has dtype bfloat16 and torch_dtype None, the weights are bfloat16",
    ),
    "the number format is another": (
        "gemma",
        config(dtype="float16", torch_dtype="float16"),
        r"config\.json has dtype float16 and torch_dtype float16, the weights are bfloat16",
    ),
    "the activation is named once": (
        "gemma2",
        without("config.json", "hidden_act"),
        r"by vLLM: config\.json has hidden_activation gelu_pytorch_tanh and hidden_act None",
    ),
    "the rotation is named once": (
        "gemma",
        without("config.json", "rope_theta"),
        r"by transformers and vLLM: config\.json has rope_theta None and rope_parameters .*, which differ",
    ),
    "the local rotation is another": (
        "gemma3_text",
        config(rope_local_base_freq=5.0),
        r"config\.json has rope_local_base_freq 5\.0 and rope_parameters .*, which differ",
    ),
    "the scaling is named once": (
        "gemma2",
        config(rope_scaling={"rope_type": "linear", "factor": 2.0}),
        r"config\.json has rope_scaling .* and rope_parameters .*, which differ",
    ),
    "the layers and their period disagree": (
        "gemma3_text",
        config(layer_types=["full_attention"] * 2),
        r"by transformers before 5: layer_types is not sliding_window_pattern 6",
    ),
    "it stops at one token": (
        "gemma",
        lambda folder: edit_json(folder / "generation_config.json", eos_token_id=1),
        r"by transformers and Ollama: generation_config\.json has eos_token_id 1, not a list with 107",
    ),
    "it never stops at the end of a turn": (
        "gemma",
        lambda folder: edit_json(folder / "generation_config.json", eos_token_id=[1]),
        r"eos_token_id \[1\], not a list with 107, so it would talk on",
    ),
    "the stops are built anew": (
        "gemma",
        lambda folder: edit_json(folder / "generation_config.json", _from_model_config=True),
        r"by transformers: generation_config\.json has _from_model_config",
    ),
    "a file of the tokenizer is missing": (
        "gemma",
        lambda folder: (folder / "tokenizer_config.json").unlink(),
        r"by every loader: the base's tokenizer_config\.json is not in it\. Export again\.",
    ),
    "a file of the tokenizer is another": (
        "gemma",
        lambda folder: edit_json(folder / "tokenizer_config.json", add_bos_token=False),
        r"by users of the base's tokenizer: tokenizer_config\.json differs from the base's\. Export again\.",
    ),
    "there is no template": (
        "gemma",
        lambda folder: (folder / "chat_template.jinja").unlink(),
        r"by transformers and vLLM: it has no chat template\. Export again\.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_refused_by_name(case, bases, tmp_path):
    model_type, spoil, message = CASES[case]
    folder = export_by_hand(bases[model_type], tmp_path / "merged.partial", model_type)
    spoil(folder)
    with pytest.raises(ExportError, match=rf"^{tmp_path}/merged would be refused .*{message}") as error:
        check_loaders(folder, bases[model_type], FAMILY_BY_TYPE[model_type])
    assert "\n" not in str(error.value)


INDEX_CASES = {
    "a file is called otherwise": (
        lambda index: None,
        r"by Ollama: weights\.safetensors does not begin with model, so it is not read",
    ),
    "the size is wrong": (
        lambda index: index["metadata"].update(total_size=5),
        r"by transformers: .*index\.json says total_size 5, but it is \d+",
    ),
    "a file is not named": (
        lambda index: None,
        r"by llama.cpp's converter: .*index\.json and model-extra\.safetensors disagree",
    ),
}


@pytest.mark.parametrize("case", INDEX_CASES)
def test_each_fault_of_an_index_is_refused_by_name(case, bases, tmp_path):
    spoil, message = INDEX_CASES[case]
    folder = export_by_hand(bases["sharded"], tmp_path / "merged")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    spoil(index)
    path.write_text(json.dumps(index))
    extra = {
        "a file is not named": "model-extra.safetensors",
        "a file is called otherwise": "weights.safetensors",
    }
    if case in extra:
        shutil.copy(min(folder.glob("*.safetensors")), folder / extra[case])
    with pytest.raises(ExportError, match=message):
        check_loaders(folder, bases["sharded"], FAMILY_BY_TYPE["gemma"])


def test_a_vocabulary_beyond_the_embedding_is_refused(bases, tmp_path):
    base = shutil.copytree(bases["gemma"], tmp_path / "base")
    largest_vocabulary_id(base)
    folder = export_by_hand(base, tmp_path / "merged")
    with pytest.raises(
        ExportError, match=r"its vocabulary goes up to id 999, but config\.json has vocab_size"
    ):
        check_loaders(folder, base, FAMILY_BY_TYPE["gemma"])


def test_an_added_token_beyond_the_embedding_is_told_as_with_gemma_3s_images(bases, tmp_path):
    base = shutil.copytree(bases["gemma"], tmp_path / "base")
    path = base / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 128, "content": "<image_soft_token>"})
    path.write_text(json.dumps(content))
    notes = check_loaders(export_by_hand(base, tmp_path / "merged"), base, FAMILY_BY_TYPE["gemma"])
    assert (
        "<image_soft_token> has id 128, beyond vocab_size 128, as in the base: no text may hold it." in notes
    )


@pytest.mark.parametrize(
    ("model_type", "values", "said"),
    [
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "its layer_types follow no period"),
        (
            "gemma3_text",
            {"layer_types": ["full_attention", "sliding_attention"], "sliding_window_pattern": None},
            "its layer_types follow no period",
        ),
        (
            "gemma",
            {"hidden_act": "silu", "hidden_activation": "silu"},
            "its activation is silu: vLLM refuses it",
        ),
        ("gemma", {"tie_word_embeddings": False}, "its head is not tied to the embedding: vLLM refuses that"),
    ],
)
def test_what_a_loader_cannot_do_with_the_base_either_is_told(model_type, values, said, bases, tmp_path):
    folder = export_by_hand(bases[model_type], tmp_path / "merged", model_type)
    edit_json(folder / "config.json", **values)
    notes = check_loaders(folder, bases[model_type], FAMILY_BY_TYPE[model_type])
    assert any(note.startswith(said) for note in notes)


def test_what_config_json_leaves_to_defaults_is_told(bases, tmp_path):
    folder = export_by_hand(bases["gemma2"], tmp_path / "merged", "gemma2")
    without("config.json", "sliding_window")(folder)
    notes = check_loaders(folder, bases["gemma2"], FAMILY_BY_TYPE["gemma2"])
    assert notes[0].startswith("config.json names no sliding_window, as the base's: Ollama takes it for 0")


def test_a_shard_above_the_usual_size_is_told(bases, tmp_path, monkeypatch):
    folder = export_by_hand(bases["gemma"], tmp_path / "merged")
    monkeypatch.setattr(weight_rules, "_USUAL_SHARD_BYTES", 1000)
    notes = check_loaders(folder, bases["gemma"], FAMILY_BY_TYPE["gemma"])
    assert notes[0] == "model.safetensors has 0.0 GB; export.max_shard_size=5GB suits every loader."


def test_a_tokenizer_that_only_transformers_5_reads_is_spelled_for_all(bases, tmp_path):
    from transformers import AutoTokenizer

    base = shutil.copytree(bases["gemma"], tmp_path / "base")
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    turns = ["<start_of_turn>", "<end_of_turn>"]
    settings = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": turns, **names}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    folder = export_by_hand(base, tmp_path / "merged")
    written = json.loads((folder / "tokenizer_config.json").read_text())
    assert written == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": turns,
        **names,
    }
    check_loaders(folder, base, FAMILY_BY_TYPE["gemma"])
    before, after = (AutoTokenizer.from_pretrained(path, local_files_only=True) for path in (base, folder))
    assert after.extra_special_tokens == before.extra_special_tokens == turns
    assert after("w5<end_of_turn>w7").input_ids == before("w5<end_of_turn>w7").input_ids


@pytest.mark.parametrize("key", ["extra_special_tokens", "tokenizer_class"])
def test_a_spelling_of_transformers_5_alone_is_refused(key, bases, tmp_path, monkeypatch):
    base = shutil.copytree(bases["gemma"], tmp_path / "base")
    odd = {"extra_special_tokens": ["<unused>"], "tokenizer_class": "TokenizersBackend"}[key]
    edit_json(base / "tokenizer_config.json", **{key: odd})
    monkeypatch.setattr("gemma_ft.exporting.folder.tokenizer_rules.rewritten_files", lambda _: {})
    folder = export_by_hand(base, tmp_path / "merged")
    shutil.copy(base / "tokenizer_config.json", folder)
    with pytest.raises(ExportError, match=rf"by transformers before 5: tokenizer_config\.json has .*{key}"):
        check_loaders(folder, base, FAMILY_BY_TYPE["gemma"])
