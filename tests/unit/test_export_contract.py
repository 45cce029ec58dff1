"""The exported tokenizer, loaded as everybody loads it, is the one that was trained with."""

import json
import shutil
from dataclasses import replace

import pytest
import transformers
from data_tokenizer import build_tokenizer, find_tokenizers, load_folder

from gemma_ft.data.tokens.contract import find_fault, sample_sha256
from gemma_ft.errors import ExportError
from gemma_ft.exporting.folder.contract import check_contract
from gemma_ft.exporting.folder.tokenizer_files import special_token_ids
from gemma_ft.exporting.folder.turn_tokens import register_turn_tokens
from gemma_ft.families import FAMILIES

GEMMA1 = FAMILIES[0]
STOPS = {"eos_token_id": [1, 107]}


@pytest.fixture
def folder(tmp_path):
    """Save what an export leaves, as far as the tokenizer and the generation go."""
    build_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(STOPS))
    return tmp_path


@pytest.fixture
def trained():
    return sample_sha256(build_tokenizer())


def unregister(folder, listed):
    """Take the turn tokens out of the special ones, as Gemma 1's bases; listed: in the settings too."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    kept = [token for token in content["added_tokens"] if "turn" not in token["content"]]
    file.write_text(json.dumps(content | {"added_tokens": kept}, indent=2, ensure_ascii=False))
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    if listed:
        decoder = {str(token["id"]): {**token} for token in kept}
        for token in decoder.values():
            del token["id"]
        settings |= {"added_tokens_decoder": decoder, "tokenizer_class": "GemmaTokenizer"}
        settings |= {"add_bos_token": True}
    file.write_text(json.dumps(settings))


def load_plainly(folder):
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_a_folder_with_the_tokenizer_of_the_training_passes(folder, trained):
    check_contract(folder, folder / "merged", GEMMA1, trained)


def test_a_folder_whose_tokenizer_adds_no_bos_to_plain_text_passes_with_a_warning(folder, trained, caplog):
    check_contract(folder, folder / "merged", GEMMA1, trained)
    assert "merged: its tokenizer puts no <bos> before plain text, as its base's." in caplog.text


@pytest.mark.parametrize("listed", [False, True])
def test_turn_tokens_of_a_base_are_registered_without_another_change(folder, trained, listed):
    unregister(folder, listed)
    before = (folder / "tokenizer.json").read_text()
    assert find_fault(load_plainly(folder), GEMMA1) == "a tokenizer without <start_of_turn> as one token"
    texts = register_turn_tokens(folder)
    assert texts.keys() == ({"tokenizer.json", "tokenizer_config.json"} if listed else {"tokenizer.json"})
    for name, text in texts.items():
        (folder / name).write_text(text)
    check_contract(folder, folder / "merged", GEMMA1, trained)
    after = texts["tokenizer.json"]
    assert after.partition('"normalizer"')[2] == before.partition('"normalizer"')[2]
    old, new = json.loads(before), json.loads(after)
    added = [token for token in new["added_tokens"] if token not in old["added_tokens"]]
    assert [(token["id"], token["content"], token["special"]) for token in added] == [
        (106, "<start_of_turn>", True),
        (107, "<end_of_turn>", True),
    ]
    assert new | {"added_tokens": old["added_tokens"]} == old
    assert register_turn_tokens(folder) == {}


@pytest.mark.parametrize("listed", [False, True])
def test_the_id_of_the_end_of_a_turn_is_found_in_a_vocabulary(folder, listed):
    unregister(folder, listed)
    assert special_token_ids(folder)["end_of_turn"] == 107


def test_files_with_their_turn_tokens_are_left_alone(folder):
    assert register_turn_tokens(folder) == {}
    (folder / "tokenizer.json").unlink()
    assert register_turn_tokens(folder) == {}


def test_a_tokenizer_that_a_run_made_whole_is_whole_when_it_is_saved_and_loaded(folder, trained, tmp_path):
    unregister(folder, listed=True)
    loaded, _ = load_folder(folder)
    loaded.save_pretrained(tmp_path / "saved")
    assert sample_sha256(load_plainly(tmp_path / "saved")) == trained


def _unreadable(folder):
    (folder / "tokenizer.json").write_text("{}")


def _other_template(folder):
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("'model'", "'assistant'"))


def _no_stop(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [1]}')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_unreadable, r"would have no readable tokenizer \(.*\)\. Mend the tokenizer's files"),
        (
            lambda folder: unregister(folder, False),
            r"would have a tokenizer without <start_of_turn> as one token\. ",
        ),
        (_other_template, r"would have a chat template that does not render Gemma's turns\. Mend"),
        (_no_stop, r"would not stop at token 107\. Mend the tokenizer's files in the base's folder"),
    ],
)
def test_a_folder_that_breaks_the_contract_is_no_export(folder, trained, spoil, message):
    spoil(folder)
    with pytest.raises(ExportError, match=rf"^{folder}/merged {message}") as error:
        check_contract(folder, folder / "merged", GEMMA1, trained)
    assert "\n" not in str(error.value)


def test_a_folder_with_another_tokenizer_than_the_trainings_is_no_export(folder):
    other = sample_sha256(build_tokenizer(merges=[("s", "o")]))
    with pytest.raises(ExportError, match=r"into other tokens than were trained\. Export with the base that"):
        check_contract(folder, folder / "merged", GEMMA1, other)


def test_ids_of_another_generation_are_no_export(folder, trained):
    with pytest.raises(ExportError, match=r"<end_of_turn> at id 107, where Gemma 9 has 5\. Mend"):
        check_contract(folder, folder / "merged", replace(GEMMA1, name="Gemma 9", end_of_turn_id=5), trained)


@pytest.mark.parametrize(
    "path",
    find_tokenizers()
    or [
        pytest.param(
            "", marks=pytest.mark.skip(reason="GEMMA_TOKENIZERS names no folders of real tokenizers")
        )
    ],
)
def test_real_tokenizers_keep_the_contract_in_the_exported_folder(path, tmp_path):
    tokenizer, family = load_folder(path)
    exported = shutil.copytree(path, tmp_path / "exported")
    for name, text in register_turn_tokens(exported).items():
        (exported / name).write_text(text)
    if not (exported / "chat_template.jinja").is_file() and not load_plainly(exported).chat_template:
        (exported / "chat_template.jinja").write_text(tokenizer.chat_template)
    stops = {"eos_token_id": [1, family.end_of_turn_id]}
    (exported / "generation_config.json").write_text(json.dumps(stops))
    (exported / "config.json").write_text(json.dumps({"model_type": family.model_type}))
    check_contract(exported, exported, family, sample_sha256(tokenizer))
