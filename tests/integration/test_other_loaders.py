"""An exported folder as others load it: an older transformers, and llama.cpp's converter.

GEMMA_FT_OLD_TRANSFORMERS names the Pythons with older versions, divided by colons, and GEMMA_FT_LLAMA_CPP a
checkout of llama.cpp, whose converter runs in the Python of the tests.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_models import build_adapter
from gguf_models import TRICKY, TYPES, build_model
from test_export_folder import export

from gemma_ft.exporting.formats.gguf_file import write_gguf
from gemma_ft.exporting.formats.gguf_tensors import Kind
from gemma_ft.exporting.formats.gguf_vocabulary import build_vocabulary

PYTHONS = [path for path in os.environ.get("GEMMA_FT_OLD_TRANSFORMERS", "").split(":") if path]
LLAMA_CPP = os.environ.get("GEMMA_FT_LLAMA_CPP", "")
SINCE = {"gemma": (4, 38), "gemma2": (4, 42), "gemma3_text": (4, 50)}
"""The transformers that first knew each family."""
TEMPLATE_FILE_SINCE = (4, 50)
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " ok "}] * 2
WITH_OLD = PYTHONS or [
    pytest.param("", marks=pytest.mark.skip(reason="GEMMA_FT_OLD_TRANSFORMERS names no Python"))
]


@pytest.fixture(scope="module", params=TYPES)
def exported(request, tiny, tmp_path_factory):
    """A base with the bundled tokenizer, its files in the words of every version, and an adapter merged."""
    import transformers

    folder = tmp_path_factory.mktemp("other")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    base = build_model(folder / "base", request.param, tokenizer=tokenizer, num_hidden_layers=7)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny / name, base / name)
    build_adapter(base, folder / "adapter")
    export(base, folder / "adapter", folder / "merged", request.param)
    return request.param, folder / "merged"


def version_of(python):
    line = "import transformers; print(transformers.__version__)"
    run = subprocess.run([python, "-c", line], capture_output=True, text=True, check=True)
    return tuple(int(part) for part in run.stdout.split(".")[:2])


def ask(python, folder, ids):
    asked = json.dumps({"ids": ids, "texts": TRICKY, "talk": TALK})
    runner = Path(__file__).with_name("old_runner.py")
    answer = subprocess.run([python, runner, folder, asked], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.parametrize("python", WITH_OLD)
def test_older_transformers_loads_the_same_model_tokens_and_turns(exported, python):
    import transformers

    model_type, folder = exported
    version = version_of(python)
    if version < SINCE[model_type]:
        pytest.skip(f"transformers {version} knows no {model_type}, which came with {SINCE[model_type]}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TRICKY[0] + TRICKY[2]).input_ids
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    answer = ask(python, folder, ids)
    assert answer["keys"] == []
    with torch.no_grad():
        difference = (model(torch.tensor([ids])).logits[0] - torch.tensor(answer["logits"])).abs()
    assert difference.max() < 1e-4
    assert answer["tokens"] == [tokenizer(text).input_ids for text in TRICKY]
    assert answer["special"] == [2, 1, 0]
    assert answer["stops"] == [1, 107]
    assert answer["cache"] is True
    turns = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert answer["turns"] == (turns if version >= TEMPLATE_FILE_SINCE else None)


def write_sentencepiece(folder):
    """Write the vocabulary as the tokenizer.model that Google's checkpoints have."""
    from transformers.convert_slow_tokenizer import import_protobuf

    kinds = {1: "NORMAL", 2: "UNKNOWN", 3: "CONTROL", 4: "USER_DEFINED", 5: "UNUSED", 6: "BYTE"}
    proto = import_protobuf()
    model = proto.ModelProto()
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    vocabulary = build_vocabulary(folder, rows)
    for token, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True):
        kind = proto.ModelProto.SentencePiece.Type.Value(kinds[kind])
        model.pieces.add(piece=token, score=score, type=kind)
    spec = model.trainer_spec
    spec.model_type, spec.byte_fallback = spec.BPE, True
    spec.pad_id, spec.eos_id, spec.bos_id, spec.unk_id = range(4)
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


@pytest.mark.skipif(not LLAMA_CPP, reason="GEMMA_FT_LLAMA_CPP names no checkout of llama.cpp")
def test_converter_of_llama_cpp_makes_the_same_file_as_we_do(exported, tmp_path):
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("sentencepiece", reason="the converter needs it")
    _, merged = exported
    folder = shutil.copytree(merged, tmp_path / "merged")
    write_sentencepiece(folder)
    theirs, ours = tmp_path / "theirs.gguf", tmp_path / "ours.gguf"
    converter = Path(LLAMA_CPP) / "convert_hf_to_gguf.py"
    run = subprocess.run(
        [sys.executable, converter, folder, "--outtype", "bf16", "--outfile", theirs],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    write_gguf(folder, ours, Kind.bf16, name="run", license="gemma")
    one, other = gguf.GGUFReader(theirs), gguf.GGUFReader(ours)
    mine = {tensor.name: tensor for tensor in other.tensors}
    assert {tensor.name for tensor in one.tensors} == set(mine)
    for tensor in one.tensors:
        assert tensor.tensor_type == mine[tensor.name].tensor_type
        assert (tensor.data == mine[tensor.name].data).all(), tensor.name
    fields = {name: field.contents() for name, field in other.fields.items()}
    unlike = {"general.name", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"}
    for name, field in one.fields.items():
        if name in fields and name not in unlike and not name.startswith("GGUF."):
            assert fields[name] == field.contents(), name
    architecture = {name for name in map(str, one.fields) if name.startswith(("gemma", "tokenizer"))}
    optional = {"tokenizer.ggml.add_sep_token"}  # what llama.cpp does without
    optional |= {"tokenizer.ggml.prefix_token_id", "tokenizer.ggml.suffix_token_id"}
    optional |= {
        "tokenizer.ggml.middle_token_id",
        "tokenizer.ggml.fsep_token_id",
        "tokenizer.ggml.mask_token_id",
    }
    assert architecture - fields.keys() <= optional
