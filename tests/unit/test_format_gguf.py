"""GGUF files of a merged checkpoint: read by transformers and by llama.cpp, they are the same model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gguf_models import TRICKY, TYPES, build_model

from gemma_ft.errors import ExportError
from gemma_ft.exporting.formats import gguf_file, gguf_tensors
from gemma_ft.exporting.formats.gguf_file import write_gguf
from gemma_ft.exporting.formats.gguf_tensors import Kind
from gemma_ft.families import load_chat_template

gguf = pytest.importorskip("gguf", reason="run pip install gguf")

LLAMA = os.environ.get("GEMMA_FT_LLAMA_PYTHON", "")
with_llama = pytest.mark.skipif(
    not LLAMA, reason="GEMMA_FT_LLAMA_PYTHON names no Python that has llama-cpp-python"
)


@pytest.fixture(scope="module", params=TYPES)
def checkpoint(request, tmp_path_factory):
    """Seven layers: with Gemma 3, sliding ones and one that attends to everything."""
    folder = tmp_path_factory.mktemp(request.param)
    return build_model(folder, request.param, num_hidden_layers=7)


def write(folder, kind, to=None):
    path = (to or folder) / f"model-{kind.value}.gguf"
    write_gguf(folder, path, kind, name="run", license="gemma")
    return path


def read_values(path):
    """Return the tensors of a file in fp32, under GGUF's names."""
    return {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in gguf.GGUFReader(path).tensors
    }


def read_fields(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def logits_of(folder, ids, **settings):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **settings
    )
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def sample_ids(folder):
    import transformers

    return [2, *transformers.AutoTokenizer.from_pretrained(folder)(TRICKY[0] + TRICKY[2]).input_ids]


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("checkpoint", TYPES[1:], indirect=True)  # it reads no GGUF of Gemma 1
def test_transformers_reads_the_same_model_out_of_a_gguf_file(checkpoint, kind):
    path = write(checkpoint, kind)
    ids = sample_ids(checkpoint)
    expected = logits_of(checkpoint, ids)
    difference = (logits_of(checkpoint, ids, gguf_file=path.name) - expected).abs()
    if kind is Kind.q8_0:  # a wrong norm, scale or base of the rotation differs by more than 1 on average
        assert 0 < difference.mean() < 0.15
    else:
        assert difference.max() < {Kind.bf16: 1e-6, Kind.f16: 1e-4}[kind]


@pytest.mark.parametrize("kind", Kind)
def test_every_tensor_is_the_checkpoints(checkpoint, kind, tmp_path):
    from export_models import read_weights

    theirs = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "post_attention_layernorm": "ffn_norm" if "gemma0" in checkpoint.name else "post_attention_norm",
    }
    found = read_values(write(checkpoint, kind, tmp_path))
    weights = read_weights(checkpoint)
    assert len(found) == len(weights)
    for name, weight in weights.items():
        stem = name.removesuffix(".weight").replace("model.layers.", "blk.")
        for ours, called in theirs.items():
            stem = stem.removesuffix(ours) + called if stem.endswith(ours) else stem
        value, wanted = found[f"{stem}.weight"], weight.float()
        if name.endswith("norm.weight"):
            assert torch.equal(value, wanted + 1), name
        elif kind is Kind.q8_0:
            blocks = wanted.view(-1, 32)
            assert ((value.view(-1, 32) - blocks).abs() <= blocks.abs().amax(1, keepdim=True) / 225).all()
            assert not torch.equal(value, wanted)
        else:
            assert torch.equal(value, wanted.half().float() if kind is Kind.f16 else wanted), name


def test_metadata_are_what_the_loaders_ask_for(checkpoint, tmp_path):
    fields = read_fields(write(checkpoint, Kind.q8_0, tmp_path))
    config = json.loads((checkpoint / "config.json").read_text())
    arch = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}[config["model_type"]]
    assert fields["general.architecture"] == arch
    assert (fields["general.name"], fields["general.license"]) == ("run", "gemma")
    assert fields["general.file_type"] == 7
    expected = {
        "block_count": 7,
        "embedding_length": 64,
        "feed_forward_length": 128,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 256,
        "attention.value_length": 256,
        "context_length": 128,
        "vocab_size": config["vocab_size"],
        "rope.freq_base": 1e6 if arch == "gemma3" else 1e4,
    }
    if arch != "gemma":
        expected["attention.sliding_window"] = 8
    if arch == "gemma2":
        expected |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    if arch == "gemma3":
        expected["rope.freq_base_swa"] = 1e4
    assert {key: fields[f"{arch}.{key}"] for key in expected} == expected
    assert fields[f"{arch}.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_vocabulary_is_told_as_gemma_has_it(checkpoint, tmp_path):
    fields = read_fields(write(checkpoint, Kind.q8_0, tmp_path))
    expected = {
        "model": "llama",
        "bos_token_id": 2,
        "eos_token_id": 1,
        "padding_token_id": 0,
        "unknown_token_id": 3,
        "eot_token_id": 107,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_space_prefix": False,
    }
    assert {key: fields[f"tokenizer.ggml.{key}"] for key in expected} == expected
    assert (
        len(fields["tokenizer.ggml.tokens"])
        == json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    )


@pytest.mark.parametrize(
    "place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", None]
)
def test_chat_template_goes_along_from_wherever_it_stands(place, tmp_path):
    folder = build_model(tmp_path)
    (folder / "chat_template.jinja").unlink()
    if place == "chat_template.jinja":
        (folder / place).write_text("its own")
    elif place is not None:
        content = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": "its own"}
        (folder / place).write_text(json.dumps(content))
    found = read_fields(write(folder, Kind.f16))["tokenizer.chat_template"]
    assert found == ("its own" if place else load_chat_template())


def test_stretched_rotation_of_gemma_3_is_told(tmp_path):
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    fields = read_fields(write(build_model(tmp_path, "gemma3_text", rope_parameters=rope), Kind.f16))
    assert fields["gemma3.rope.scaling.type"] == "linear"
    assert fields["gemma3.rope.scaling.factor"] == 8.0


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("gemma2", {"query_pre_attn_scalar": 144}, "query_pre_attn_scalar=144, which has to be 256"),
        ("gemma", {"hidden_activation": "gelu", "hidden_act": "gelu"}, "hidden_activation=gelu"),
        ("gemma", {"attention_bias": True}, "attention_bias=true"),
        ("gemma3_text", {"tie_word_embeddings": False}, "a head of its own"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping=None"),
        ("gemma2", {"final_logit_softcapping": None}, "final_logit_softcapping=null"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=true"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, "other layer_types than full_attention in"),
        (
            "gemma",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type=dynamic in full_attention",
        ),
    ],
)
def test_model_that_llama_cpp_would_compute_otherwise_is_refused(model_type, settings, reason, tmp_path):
    import transformers

    folder = build_model(tmp_path, model_type)
    config = transformers.AutoConfig.from_pretrained(folder)
    for key, value in settings.items():
        setattr(config, key, value)
    config.save_pretrained(folder)
    with pytest.raises(
        ExportError, match=f"llama.cpp knows no Gemma with {reason}.*Leave the gguf formats out"
    ):
        write(folder, Kind.f16)
    assert not list(folder.glob("*.gguf"))


def spoil(folder, value, name="model.layers.0.mlp.down_proj.weight"):
    from export_models import edit_tensors, read_weights

    for file in folder.glob("*.safetensors"):
        edit_tensors(
            file, lambda tensors: {k: spoilt(t, value) if k == name else t for k, t in tensors.items()}
        )
    return read_weights(folder)[name]


def spoilt(tensor, value):
    tensor = tensor.clone()
    tensor[3, 5] = value
    return tensor


def test_value_beyond_fp16_is_refused_and_bf16_named(tmp_path):
    folder = build_model(tmp_path)
    assert spoil(folder, 70_000)[3, 5] > 65_504
    message = r"export.formats=\[gguf_f16\] cannot hold .*down_proj.weight, which reaches 7.*Use gguf_bf16"
    with pytest.raises(ExportError, match=message):
        write(folder, Kind.f16)
    write(folder, Kind.bf16)


def test_value_whose_q8_0_scale_is_beyond_fp16_is_refused(tmp_path):
    folder = build_model(tmp_path)
    spoil(folder, 9e6)
    with pytest.raises(ExportError, match=r"export.formats=\[gguf_q8_0\] cannot hold .*Use gguf_bf16"):
        write(folder, Kind.q8_0)


def test_rows_that_are_no_multiple_of_32_are_refused_for_q8_0(tmp_path):
    folder = build_model(tmp_path, intermediate_size=72)
    with pytest.raises(ExportError, match=r"rows of a multiple of 32 weights, and .*down_proj.weight has 72"):
        write(folder, Kind.q8_0)
    write(folder, Kind.f16)


def test_tensor_without_a_place_is_refused(tmp_path):
    from export_models import edit_tensors

    folder = build_model(tmp_path)
    file = sorted(folder.glob("*.safetensors"))[0]
    edit_tensors(file, lambda tensors: {**tensors, "model.layers.0.router.weight": torch.ones(2, 2)})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.layers.0.router.weight"] = file.name
    index.write_text(json.dumps(content))
    with pytest.raises(ExportError, match=r"router.weight \(F32\) has no place in a GGUF file of its family"):
        write(folder, Kind.f16)


@pytest.mark.parametrize("kind", Kind)
def test_one_altered_weight_is_found(kind, tmp_path, monkeypatch):
    def alter(planned):
        for number, block in enumerate(whole(planned)):
            if planned.name == "blk.1.ffn_up.weight" and not number:
                block = block.copy()
                block.reshape(-1).view("uint8")[35] ^= 0x40
            yield block

    folder = build_model(tmp_path)
    whole = gguf_tensors.convert_tensor
    monkeypatch.setattr(gguf_file, "convert_tensor", alter)
    with pytest.raises(ExportError, match=r"blk.1.ffn_up.weight reads back differently. Export again"):
        write(folder, kind)


def test_lost_tensor_and_changed_vocabulary_are_found(tmp_path):
    folder = build_model(tmp_path)
    path = write(folder, Kind.f16)
    from gemma_ft.exporting.formats.gguf_vocabulary import build_vocabulary
    from gemma_ft.exporting.merging.tensor_files import read_checkpoint

    planned = gguf_tensors.plan_tensors(read_checkpoint(folder), "gemma", 2, Kind.f16)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    vocabulary = build_vocabulary(folder, rows)
    gguf_file.check_gguf(path, planned, vocabulary)
    with pytest.raises(ExportError, match="holds other tensors than planned"):
        gguf_file.check_gguf(path, planned[1:], vocabulary)
    for key, name in (("tokens", "tokens"), ("scores", "scores"), ("types", "token_type")):
        before = getattr(vocabulary, key)[300]
        getattr(vocabulary, key)[300] = "other" if key == "tokens" else 5
        with pytest.raises(ExportError, match=f"its {name} read back differently"):
            gguf_file.check_gguf(path, planned, vocabulary)
        getattr(vocabulary, key)[300] = before


def test_blocks_of_rows_give_the_bytes_of_the_whole_tensor(tmp_path, monkeypatch):
    folder = build_model(tmp_path)
    for kind in Kind:
        whole = write(folder, kind).read_bytes()
        monkeypatch.setattr(gguf_tensors, "_ELEMENTS", 5 * 64)
        assert write(folder, kind).read_bytes() == whole
        monkeypatch.undo()


def ask_llama(path, ids, texts):
    runner = Path(__file__).with_name("llama_runner.py")
    asked = json.dumps({"ids": ids, "texts": list(texts)})
    answer = subprocess.run([LLAMA, runner, path, asked], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return json.loads(answer.stdout.splitlines()[-1])


@with_llama
@pytest.mark.parametrize("kind", Kind)
def test_llama_cpp_computes_the_same_model(checkpoint, kind, tmp_path):
    ids = sample_ids(checkpoint)
    answer = ask_llama(write(checkpoint, kind, tmp_path), ids, ())
    difference = (torch.tensor(answer["logits"]) - logits_of(checkpoint, ids)).abs()
    # llama.cpp rounds activations to the number format of the weights
    assert difference.mean() < {Kind.f16: 0.01, Kind.bf16: 0.05, Kind.q8_0: 0.3}[kind]
    assert answer["stops"] == [1, 107]
    assert answer["eot"] == 107


@with_llama
@pytest.mark.parametrize("which", ["small", "bundled"])
def test_llama_cpp_makes_the_same_tokens(which, tiny, tmp_path):
    import transformers

    own = transformers.AutoTokenizer.from_pretrained(tiny) if which == "bundled" else None
    folder = build_model(tmp_path, tokenizer=own)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answer = ask_llama(write(folder, Kind.q8_0), [], TRICKY)
    for text, tokens, back, plain in zip(
        TRICKY, answer["tokens"], answer["texts"], answer["plain"], strict=True
    ):
        expected = tokenizer(text, add_special_tokens=False).input_ids
        assert tokens == [2, *expected], text
        assert back == tokenizer.decode([2, *expected]), text
        assert plain == tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids, text


@pytest.mark.parametrize("which", ["small", "bundled"])
def test_transformers_makes_the_same_tokens_out_of_a_gguf_file_alone(which, tiny, tmp_path):
    import transformers

    own = transformers.AutoTokenizer.from_pretrained(tiny) if which == "bundled" else None
    folder = build_model(tmp_path / "model", "gemma2", tokenizer=own)
    alone = tmp_path / "alone"
    alone.mkdir()
    path = write(folder, Kind.q8_0, alone)
    before = transformers.AutoTokenizer.from_pretrained(folder)
    read = transformers.AutoTokenizer.from_pretrained(alone, gguf_file=path.name)
    for text in TRICKY:
        expected = before(text, add_special_tokens=False).input_ids
        assert read(text, add_special_tokens=False).input_ids == expected, text
    assert read.chat_template == before.chat_template
    assert read("Hi").input_ids[0] == 2


def test_writing_never_holds_the_model(tmp_path):
    """Three matrices of 16 MB, 32 in fp32, pass in blocks: the peak grows by less than one of them."""
    folder = build_model(tmp_path, hidden_size=64, num_hidden_layers=1, intermediate_size=1 << 17)
    line = (
        "import sys, pathlib, torch, gguf, transformers\n"
        "from gemma_ft.exporting.formats.gguf_file import write_gguf\n"
        "from gemma_ft.exporting.formats.gguf_tensors import Kind\n"
        "transformers.AutoConfig\n"
        "def peak():\n"
        "    lines = pathlib.Path('/proc/self/status').read_text().splitlines()\n"
        "    return int(next(x for x in lines if x.startswith('VmHWM')).split()[1]) // 1024\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "from gemma_ft.exporting.formats.gguf_metadata import load_config\n"
        "load_config(folder)\n"
        "before = peak()\n"
        "write_gguf(folder, folder / 'x.gguf', Kind.q8_0, name='x', license=None)\n"
        "print(peak() - before)\n"
    )
    if sys.platform != "linux":
        pytest.skip("the peak is read from /proc")
    run = subprocess.run([sys.executable, "-c", line, folder], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout.split()[-1]) < 32
