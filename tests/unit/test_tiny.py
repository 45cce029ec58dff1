"""The bundled model: Gemma's tokens at Gemma's ids, and the same bytes every time."""

import hashlib
from pathlib import Path

import pytest

from gemma_ft.errors import ModelError
from gemma_ft.modeling import tiny as tiny_module


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_building_again_gives_the_same_bytes(tiny, tmp_path):
    tiny_module._save_tiny(tmp_path, tiny_module._read_corpus())
    assert digest(tmp_path) == digest(tiny)


def test_weights_are_the_bytes_that_were_published(tiny):
    # Changed on purpose only, together with _FORMAT: a cache folder is found by its name.
    assert digest(tiny)["model.safetensors"] == (
        "98ddbcd8df6f34ae588dce0ed10df3cfd137b69591bd33c8654277cca561072c"
    )


def test_a_second_call_finds_what_the_first_one_built(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.iterdir()}
    assert tiny_module.load_tiny() == tiny
    assert {path: path.stat().st_mtime_ns for path in tiny.iterdir()} == before


def test_nothing_is_left_in_the_cache_when_building_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tiny_module, "build_weights", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny_module.load_tiny()
    assert list((tmp_path / "gemma_ft").iterdir()) == []


def test_special_tokens_stand_at_gemmas_ids(tiny):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3, 4, 106, 107]
    assert len(tokenizer) == tiny_module._VOCABULARY
    assert tokenizer("hello").input_ids[0] == 2
    assert tokenizer("hello").input_ids.count(2) == 1


@pytest.mark.parametrize("text", ["Hello  world", "caf\u00e9 \U0001f642", "a\n\n\tb", "<html> 1+1=2 ~"])
def test_any_text_comes_back_from_its_tokens(tiny, text):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert 3 not in ids  # nothing is unknown: bytes stand in
    assert tokenizer.decode(ids) == text


def test_plain_transformers_loads_it_as_a_tied_gemma(tiny):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert type(model).__name__ == "GemmaForCausalLM"
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.generation_config.eos_token_id == [1, 107]
    assert 2e6 < sum(parameter.numel() for parameter in model.parameters()) < 10e6


def test_a_missing_corpus_is_said_with_the_line_that_mends_it(monkeypatch):
    monkeypatch.setattr(tiny_module, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs the chatterbot-corpus package\. Run: pip install"):
        tiny_module.load_tiny()


def test_a_cache_that_cannot_be_written_is_told_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        ModelError, match=r"^model\.path=bundled:tiny is kept in \S+, which cannot be written"
    ):
        tiny_module.load_tiny()
