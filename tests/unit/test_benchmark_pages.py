"""The tables, ratios and files of the benchmarks of preparation, merge and start; nothing is timed here."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import checkpoints  # noqa: E402
import conversations  # noqa: E402
import data  # noqa: E402
import data_page  # noqa: E402
import merge  # noqa: E402
import merge_page  # noqa: E402
import start_page  # noqa: E402
from parts.kept import keep_part, read_parts  # noqa: E402

ABOUT = {
    "machine": {
        "date": "2026-01-02",
        "cpu": "a processor",
        "cores": 2,
        "threads": 2,
        "memory_gib": 24,
        "os": "Linux",
        "git_revision": "abc",
    },
    "versions": {"gemma_ft": {"torch": "2.13.0"}},
}


def prepared(seconds, private, tokens=1_000_000):
    return {
        "seconds": seconds,
        "cpu_seconds": 2 * seconds,
        "rows": 10,
        "tokens": tokens,
        "learned_tokens": 5,
        "sequences": 3,
        "tokens_per_second": round(tokens / seconds),
        "private_mib": private,
        "resident_mib": private + 100,
        "resident_mib_before": 50,
    }


PREPARED = ABOUT | {
    "tokenizer": {"name": "mine", "words": 2048},
    "max_length": 2048,
    "rows_in_file": 1000,
    "bytes": 5_000_000,
    "runs": {
        "gemma_ft": [prepared(1.0, 300), prepared(2.0, 300)],
        "TRL": [prepared(4.0, 600), prepared(6.0, 600)],
        "bare tokenizer": [prepared(0.5, 100), prepared(1.0, 100)],
    },
}


def merged(seconds, peak):
    return {
        "seconds": seconds,
        "cpu_seconds": seconds,
        "seconds_after_imports": seconds - 1,
        "peak_mib": peak,
    }


def copied(seconds):
    return {"seconds": seconds, "cpu_seconds": seconds}


MERGED = {
    "2b": ABOUT
    | {
        "bytes": 5_000_000_000,
        "runs": {"cp": [copied(2.0)], "gemma_ft": [merged(4.0, 250)], "PEFT": [merged(40.0, 5000)]},
        "left_out": {},
    },
    "270m": ABOUT | {"bytes": 500_000_000, "runs": {"cp": [copied(1.0)], "gemma_ft": [merged(2.0, 240)]}},
    "7b": ABOUT
    | {
        "bytes": 17_000_000_000,
        "runs": {"cp": [copied(9.0)], "gemma_ft": [merged(18.0, 260)]},
        "left_out": {"PEFT": "it does not fit"},
    },
}


def test_what_matters_most_of_preparation_is_taken_from_the_fastest_runs():
    rows = data_page.short_rows({"pair": PREPARED})

    assert rows[0] == ["preparing 1,000 chats, tokens a second, TRL", "1.00 M", "0.25 M", "4x as fast"]
    assert rows[2][1:] == ["1.00 M", "2.00 M", "0.5x as fast"]
    assert rows[-1][1:] == ["300 MiB", "600 MiB", "50% of it"]


def test_a_comparison_of_many_rows_comes_before_one_of_few():
    many = PREPARED | {"rows_in_file": 9000}

    assert data_page.short_rows({"pair": PREPARED, "long": many})[0][0].startswith("preparing 9,000 chats")


def test_ratios_are_of_the_same_repeat():
    assert data_page.faster(PREPARED["runs"], "TRL") == "3.5x (3 to 4)"


def test_growth_leaves_a_cell_empty_where_a_side_did_not_run():
    step = PREPARED | {"runs": {"gemma_ft": [prepared(1.0, 300)], "bare tokenizer": [prepared(0.5, 100)]}}
    text = data_page.page({"growth": ABOUT | PREPARED | {"steps": [PREPARED, step]}})

    assert "| 1,000 | 1,000,000 | 1 |  |  | 300 |  | 0.5 |" in text
    assert "Tokenizer: mine, 2,048 words" in text


def test_sides_that_prepared_other_rows_end_the_benchmark():
    odd = prepared(1.0, 300, tokens=999)

    data.check_same(PREPARED["runs"])
    with pytest.raises(SystemExit, match="the sides prepared different rows"):
        data.check_same({"gemma_ft": [prepared(1.0, 300)], "TRL": [odd]})


def test_what_matters_most_of_the_merge_is_the_largest_shape_that_each_other_side_took():
    assert merge_page.short_rows(MERGED) == [
        ["merging 2b (5.00 GB), PEFT", "4 s", "40 s", "10x as fast"],
        ["merging 2b (5.00 GB), memory at its peak, PEFT", "250 MiB", "5,000 MiB", "5.0% of it"],
        ["merging 7b (17.00 GB), cp", "18 s", "9 s", "0.5x as fast"],
    ]


def test_the_page_of_merges_begins_with_the_smallest_and_says_who_is_left_out():
    text = merge_page.page(MERGED)

    assert text.index("## 270m") < text.index("## 2b") < text.index("## 7b")
    assert "PEFT is left out: it does not fit." in text
    assert "| gemma_ft | 1 | 4 | 4 | 4 | 3 | 4 | 250 | 2x |" in text


def test_starts_are_compared_by_their_fastest_runs():
    found = {
        "gemma_ft --help": [{"seconds": 0.1}, {"seconds": 0.05}],
        "trl sft --help": [{"seconds": 5.0}, {"seconds": 4.0}],
    }
    rows = start_page.short_rows({"answers": {"runs": found}})

    assert rows == [["to the answer: gemma_ft --help, trl sft --help", "0.05 s", "4 s", "80x as fast"]]


def test_the_part_that_is_measured_again_takes_its_own_place_only(tmp_path):
    keep_part("some", "one", {"value": 1}, lambda parts: "first", tmp_path)
    keep_part("some", "two", {"value": 2}, lambda parts: "second", tmp_path)
    parts = keep_part("some", "one", {"value": 3}, lambda parts: json.dumps(parts), tmp_path)

    assert parts == read_parts("some", tmp_path) == {"one": {"value": 3}, "two": {"value": 2}}
    assert json.loads((tmp_path / "some.md").read_text()) == parts


@pytest.mark.parametrize(("shape", "gigabytes"), [("2b", 5.01), ("7b", 17.08)])
def test_synthetic_checkpoints_have_the_size_of_the_real_ones(shape, gigabytes):
    assert round(checkpoints.base_bytes(shape) / 1e9, 2) == gigabytes


def test_a_synthetic_checkpoint_is_what_transformers_builds(tmp_path, monkeypatch):
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"layers": 2, "hidden": 256, "inner": 64, "queries": 256, "keys": 256}
    monkeypatch.setitem(checkpoints.SHAPES, "small", small)
    monkeypatch.setattr(checkpoints, "WORDS", 200)
    base, adapter = checkpoints.make("small", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base)

    assert AutoConfig.from_pretrained(base).model_type == "gemma"
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert shapes == checkpoints.base_shapes("small")
    assert checkpoints.base_bytes("small") == 2 * sum(map(math.prod, shapes.values()))
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == checkpoints.RANK


def test_conversations_are_the_same_each_time_and_short_ones_are_shorter(tmp_path):
    for name, short in (("one", False), ("two", False), ("short", True)):
        conversations.write_conversations(tmp_path / name, 20, short=short)
    long, again, short = ((tmp_path / name).read_text() for name in ("one", "two", "short"))

    assert long == again
    assert len(short) < len(long) / 5
    assert {len(json.loads(row)["messages"]) for row in short.splitlines()} == {2}
    assert {len(json.loads(row)["messages"]) for row in long.splitlines()} == {6, 8}


def test_each_side_of_the_merge_has_a_command(tmp_path):
    commands = {side: merge.command_of(side, tmp_path, Path("peer-python")) for side in merge.CHOICES}

    assert commands["cp"][0] == "cp"
    assert commands["PEFT"][0] == Path("peer-python")
    assert commands["gemma_ft, nf4 base"][5] == "nf4"
    assert all(Path(command[1]).is_file() for side, command in commands.items() if "cp" not in side)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["data.py", "--pair-rows=20", "--rows=30", "--growth", "10", "20", "--repeats=1"],
        ["merge.py", "EMPTY", "--shapes=270m", "--repeats=1", "--sides", "cp", "gemma_ft"],
        ["start.py", "--parts", "answers", "--repeats=1"],
    ],
    ids=lambda words: words[0],
)
def test_a_benchmark_runs_without_its_peers_and_says_so(words, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / "empty") if word == "EMPTY" else word for word in words]
    command = [sys.executable, str(BENCHMARKS / words[0]), *words[1:], "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    name = words[0].removesuffix(".py")
    assert done.returncode == 0, done.stderr
    assert "left out: trl" in done.stderr
    assert {f"{name}.json", f"{name}.md", f"{name}.svg"} <= {file.name for file in tmp_path.iterdir()}
