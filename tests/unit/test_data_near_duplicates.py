import os
import subprocess
import sys

import numpy as np
import pytest
from data_tokenizer import END, START, build_tokenizer

from gemma_ft.config.dataset import NearCopies
from gemma_ft.data import near_duplicates
from gemma_ft.data.near_duplicates import check_library, find_near_duplicates
from gemma_ft.errors import DataError

BOS, EOS = 2, 1
FIRST_WORD, LAST_WORD = 1000, 200_000  # far from every id of the template


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def chat(tokenizer):
    """Build a row of a conversation from the words of each turn, as numbers."""
    headers = [
        tokenizer.backend_tokenizer.encode(header, add_special_tokens=False).ids
        for header in ("user\n", "model\n")
    ]
    newline = tokenizer.backend_tokenizer.token_to_id("\n")

    def build(*turns):
        ids = [BOS]
        for number, words in enumerate(turns):
            ids += [START, *headers[number % 2], *words, END, newline]
        return np.array(ids, np.int32)

    return build


@pytest.fixture
def find(tokenizer):
    def run(rows, threshold=0.8):
        return find_near_duplicates(rows, tokenizer, threshold=threshold)

    return run


def words(count, seed):
    return np.random.default_rng(seed).integers(FIRST_WORD, LAST_WORD, count).tolist()


def changed(some, places):
    copy = list(some)
    for place in places:
        copy[place] += 1
    return copy


def text(some):
    return np.array([BOS, *some, EOS], np.int32)


def grams(some):
    width = min(5, len(some))
    return {tuple(some[place : place + width]) for place in range(len(some) - width + 1)}


def jaccard(one, other):
    return len(grams(one) & grams(other)) / len(grams(one) | grams(other))


def test_a_row_with_a_few_other_words_is_found_with_its_original_and_how_alike_they_are(find):
    first = words(300, seed=1)
    rows = [words(300, seed=2), first, words(300, seed=3), changed(first, [100, 200])]
    found = find([text(row) for row in rows])
    assert found.found.tolist() == [False, False, False, True]
    [(row, original, similarity)] = found.pairs()
    assert (row, original) == (3, 1)
    assert similarity == pytest.approx(jaccard(rows[1], rows[3]))


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_what_is_found_is_what_comparing_all_pairs_exactly_finds(find, threshold):
    rng = np.random.default_rng(7)
    rows = []
    for number in range(60):
        original = words(int(rng.integers(40, 300)), seed=number)
        edits = rng.integers(0, len(original), int(rng.integers(1, 2 + len(original) // 20)))
        rows += [original, changed(original, edits)]
    kept, expected = [], {}
    for number, row in enumerate(rows):
        alike = [(jaccard(row, rows[earlier]), earlier) for earlier in kept]
        if alike and max(alike)[0] >= threshold:
            expected[number] = max(alike)[1]
        else:
            kept.append(number)
    assert 5 <= len(expected) <= 60
    found = {row: original for row, original, _ in find([text(row) for row in rows], threshold).pairs()}
    assert found == expected


def test_the_template_alone_makes_no_short_rows_alike(find, chat):
    rows = [chat([word], [word + 1]) for word in range(FIRST_WORD, FIRST_WORD + 50, 5)]
    assert len(set(rows[0][:3]) & set(rows[1][:3])) == 3
    assert not find(rows, threshold=0.1).found.any()


def test_one_question_with_different_short_answers_is_not_one_row(find, chat):
    question = words(200, seed=1)
    rows = [chat(question, [answer]) for answer in range(FIRST_WORD, FIRST_WORD + 5)]
    assert jaccard(rows[0].tolist(), rows[1].tolist()) > 0.8
    assert not find(rows).found.any()


def test_another_wording_of_the_question_to_the_same_long_answer_is_almost_the_same_row(find, chat):
    answer = words(300, seed=1)
    rows = [chat(words(8, seed=2), answer), chat(words(8, seed=3), answer)]
    assert find(rows).found.tolist() == [False, True]


def test_another_question_with_the_same_short_answer_is_another_row(find, chat):
    answer = words(6, seed=1)
    rows = [chat(words(50, seed=2), answer), chat(words(50, seed=3), answer)]
    assert not find(rows).found.any()


def test_of_several_originals_the_nearest_is_named(find):
    first = words(100, seed=1)
    rows = [first, changed(first, [10, 30, 50]), changed(first, [10, 30])]
    assert jaccard(rows[0], rows[1]) < 0.8 < jaccard(rows[0], rows[2]) < jaccard(rows[1], rows[2])
    assert find([text(row) for row in rows]).original.tolist() == [-1, -1, 1]


def test_all_turns_of_a_conversation_count(find, chat):
    turns = [words(60, seed=seed) for seed in range(6)]
    other = [*turns[:5], words(60, seed=9)]
    assert find([chat(*turns), chat(*turns)]).found.tolist() == [False, True]
    assert find([chat(*turns), chat(*other)]).found.tolist() == [False, False]


def test_a_system_message_that_many_rows_share_makes_them_not_alike(find, chat):
    systems = [words(300, seed) for seed in (1, 2)]
    rows = [chat(systems[seed % 2] + words(20, seed), [FIRST_WORD + seed % 4]) for seed in range(10, 410)]
    assert jaccard(rows[0].tolist(), rows[4].tolist()) > 0.8
    copy = chat(systems[0] + words(20, 50), [FIRST_WORD + 2])
    assert find([*rows, copy]).found.tolist() == [False] * 400 + [True]


def test_what_very_many_rows_almost_repeat_is_found_all_the_same(find, chat):
    answer, question = words(100, seed=1), words(5, seed=2)
    texts = [text(changed(answer, [number % 99])) for number in range(150)]
    chats = [chat(words(5, number), changed(answer, [number % 99])) for number in range(150)]
    same = [chat(question, changed(answer, [number % 99])) for number in range(150)]
    for rows in (texts, chats, same):
        assert find(rows).found.tolist() == [False] + [True] * 149


@pytest.mark.parametrize("length", [1, 2, 4, 5])
def test_rows_that_are_shorter_than_an_n_gram_are_compared_whole(find, length):
    short = list(range(FIRST_WORD, FIRST_WORD + length))
    longer, other = [*short, FIRST_WORD + 50], changed(short, [-1])
    found = find([text(short), text(longer), text(other), text(short)], threshold=1)
    assert [(row, original) for row, original, _ in found.pairs()] == [(3, 0)]


def test_a_row_without_words_is_like_no_other(find, chat):
    assert not find([chat([], []), chat([], []), text([]), np.zeros(0, np.int32)]).found.any()
    assert not len(find([]).found)


def test_a_row_that_is_cut_inside_its_last_turn_is_compared_as_far_as_it_goes(find, chat):
    whole = chat(words(30, seed=1), words(300, seed=2))
    assert find([whole, whole[:-10]]).found.tolist() == [False, True]
    assert not find([whole, whole[: len(whole) // 2]]).found.any()


def test_of_many_copies_the_first_stays_and_the_others_name_it(find):
    first = words(100, seed=1)
    found = find([text(changed(first, [place]) if place else first) for place in range(40)])
    assert found.original.tolist() == [-1] + [0] * 39


def test_a_row_is_not_lost_because_it_is_like_one_that_is_dropped(find):
    first = words(100, seed=1)
    second = changed(first, [10])
    third = changed(second, [50, 90])
    assert jaccard(second, third) >= 0.8 > jaccard(first, third)
    assert find([text(first), text(second), text(third)]).original.tolist() == [-1, 0, -1]


def test_pairs_below_the_threshold_are_left_alone_whatever_the_signatures_say(find, monkeypatch):
    monkeypatch.setattr(near_duplicates, "_MARGIN", 1)
    rows = [words(100, seed) for seed in range(30)]
    rows += [changed(row, [10, 30, 50]) for row in rows]
    assert 0.5 < jaccard(rows[0], rows[30]) < 0.8
    assert not find([text(row) for row in rows], 0.8).found.any()
    assert find([text(row) for row in rows], 0.5).found.tolist() == [False] * 30 + [True] * 30


def test_any_process_finds_the_same(tokenizer, tmp_path):
    rows = [words(60, seed) for seed in range(20)]
    rows += [changed(row, range(seed)) for seed, row in enumerate(rows)]
    script = tmp_path / "find.py"
    script.write_text(
        "import numpy as np\n"
        "from data_tokenizer import build_tokenizer\n"
        "from gemma_ft.data.near_duplicates import find_near_duplicates\n"
        f"rows = [np.array(row) for row in {rows}]\n"
        "print(list(find_near_duplicates(rows, build_tokenizer(), threshold=0.7).pairs()))\n"
    )
    printed = [
        subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.path.dirname(__file__)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    here = find_near_duplicates([np.array(row) for row in rows], tokenizer, threshold=0.7)
    assert printed == [f"{list(here.pairs())}\n"] * 2
    assert here.found.sum() > 5


def test_the_hash_of_an_n_gram_is_the_same_on_every_machine():
    assert near_duplicates._ngrams(np.array([1, 2, 3, 4, 5])).tolist() == [10998091411331379486]
    assert near_duplicates._ngrams(np.array([5, 4, 3, 2, 1, 5, 4, 3, 2, 1])).size == 5


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1])
def test_few_pairs_at_the_threshold_can_be_missed(threshold):
    bands, height = near_duplicates._bands(threshold)
    assert bands * height <= 128
    assert 1 - (1 - threshold**height) ** bands >= 0.99


def test_the_missing_library_is_named_before_anything_is_read(monkeypatch):
    check_library(NearCopies.drop)
    monkeypatch.setattr(near_duplicates, "find_spec", lambda name: None)
    check_library(NearCopies.ignore)
    with pytest.raises(
        DataError,
        match=r"^dataset\.near_duplicates=report needs the rensa package\. Run: pip install rensa$",
    ):
        check_library(NearCopies.report)
