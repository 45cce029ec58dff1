"""What the benchmarks share, and the training step's: its command lines, its sums, its pages."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import peers  # noqa: E402
import step  # noqa: E402
from parts.processes import CommandError, run_command  # noqa: E402
from parts.results import markdown_table, versions_of, write_whole  # noqa: E402
from parts.turns import ratios, significant, spread, take_turns  # noqa: E402
from step_parts import growth, page  # noqa: E402
from step_parts.cases import CASES, SHAPES  # noqa: E402
from step_parts.making import Place, write_chats  # noqa: E402
from step_parts.measuring import compare  # noqa: E402
from step_parts.sides import LITGPT, LLAMAFACTORY, OURS, SIDES, TRL, Job, program  # noqa: E402


def python(code, **options):
    return run_command([sys.executable, "-c", code], **options)


def test_a_command_is_measured_by_its_own_memory_and_by_that_of_what_it_starts():
    hold = "x = bytearray(200 << 20); x[::4096] = b'1' * len(x[::4096]); import time; time.sleep(1)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    assert 200 < python(start).peak_mib < 300
    assert python("import time; time.sleep(1)").peak_mib < 100  # not that of the tests


def test_lines_say_when_they_came_and_what_the_command_held_and_had_taken_by_then():
    code = """
import time
print("one", flush=True)
time.sleep(1)  # so that each line is read while what it tells of is so
x = sum(range(10**7))
y = b"1" * (100 << 20)
print("two", flush=True)
time.sleep(1)
"""
    one, two = python(code).lines
    assert [one.text, two.text] == ["one", "two"]
    assert two.seconds > one.seconds
    assert two.cpu_seconds >= one.cpu_seconds + 0.05
    assert two.resident_mib > one.resident_mib + 90
    assert two.peak_mib > one.peak_mib + 90


def test_a_command_that_fails_is_told_with_its_last_lines():
    with pytest.raises(CommandError, match=r"(?s)ended with 3:.*what went wrong"):
        python("print('what went wrong'); raise SystemExit(3)")


def test_a_command_that_takes_too_long_is_ended():
    with pytest.raises(CommandError, match="was ended after 1 s"):
        python("import time; time.sleep(60)", seconds=0.5 + 0.1)


def test_sides_take_turns_in_an_order_that_turns_round():
    order = []
    sides = {name: lambda repeat, name=name: order.append(name) or repeat for name in "ab"}
    assert take_turns(sides, 3, say=lambda line: None) == {"a": [0, 1, 2], "b": [0, 1, 2]}
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_ratios_are_of_the_same_repeat():
    assert ratios([2, 30, 4], [1, 10, 1]) == {"median": 3, "low": 2, "high": 4}
    assert spread([1.23456, 9.0]) == {"median": 5.12, "low": 1.23, "high": 9.0}
    assert significant(123456.0) == 123000.0


def test_tables_are_markdown():
    assert markdown_table(["", "a"], [["x", None]]) == "|  | a |\n| --- | ---: |\n| x |  |\n"


def test_versions_are_those_of_the_environment_that_is_asked():
    assert list(versions_of(sys.executable, ["pytest", "no-such-package"])) == ["pytest"]


def test_results_are_whole_or_not_there(tmp_path):
    write_whole(tmp_path / "a.json", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_peer_that_was_not_made_is_told_with_the_line_that_makes_it(tmp_path):
    made = tmp_path / "trl" / "bin" / "trl"
    made.parent.mkdir(parents=True)
    made.touch()
    assert peers.find_peer(tmp_path, "trl") == made
    (line,) = peers.say_missing(tmp_path, ["trl", "litgpt"])
    assert line.startswith("left out: litgpt, not found in ")
    assert line.endswith("Make it with: python benchmarks/peers.py FOLDER --only litgpt")
    assert "without --peers FOLDER" in peers.say_missing(None, ["trl"])[0]


def test_a_peer_is_installed_without_its_extras_and_without_what_would_replace_torch():
    listed = ["torch>=2", "torchvision>=0.19", "Torchaudio>=2", "torchdata<1", 'x; extra == "dev"']
    asked = peers.requirements_of(listed, ("torch", "torchvision", "torchaudio"))
    assert asked == ["torchdata<1"]


@pytest.fixture
def job(tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    case = CASES["long"]
    write_chats(rows / "train.jsonl", replace(case.rows, count=4))
    model = tmp_path / "model"
    (tmp_path / "model-litgpt").mkdir()
    (tmp_path / "model-litgpt" / "model_config.yaml").touch()
    return Job(case=case, model=model, rows=rows, folder=tmp_path, steps=7)


def value_of(words, option):
    return words[words.index(option) + 1]


def test_all_sides_are_told_the_same_batches_steps_length_and_seed(job):
    ours = dict(word.split("=", 1) for word in SIDES[OURS].command(job, Path("python"))[3:])
    trl = SIDES[TRL].command(job, Path("trl"))
    SIDES[LLAMAFACTORY].command(job, Path("llamafactory-cli"))
    factory = json.loads((job.folder / "train.yaml").read_text())
    litgpt = SIDES[LITGPT].command(job, Path("litgpt"))
    told = {
        OURS: [ours[f"trainer.{n}"] for n in ("micro_batch_size", "max_length", "max_steps")],
        TRL: [value_of(trl, f"--{n}") for n in ("per_device_train_batch_size", "max_length", "max_steps")],
        LLAMAFACTORY: [factory[n] for n in ("per_device_train_batch_size", "cutoff_len", "max_steps")],
        LITGPT: [
            value_of(litgpt, f"--train.{n}") for n in ("micro_batch_size", "max_seq_length", "max_steps")
        ],
    }
    assert [[int(value) for value in values] for values in told.values()] == [[2, 640, 7]] * 4
    rows = [ours["trainer.global_batch_size"], value_of(litgpt, "--train.global_batch_size")]
    assert rows == ["4", "4"]
    assert [value_of(trl, "--gradient_accumulation_steps"), factory["gradient_accumulation_steps"]] == [
        "2",
        2,
    ]
    seeds = [ours["seed"], value_of(trl, "--seed"), str(factory["seed"]), value_of(litgpt, "--seed")]
    assert seeds == ["42"] * 4
    assert value_of(trl, "--learning_rate") == ours["trainer.learning_rate"]


def test_a_full_fine_tune_has_no_adapter_on_any_side(job):
    full = replace(job, case=CASES["full"])
    assert "adapter=none" in SIDES[OURS].command(full, Path("python"))
    assert "--use_peft" not in SIDES[TRL].command(full, Path("trl"))
    SIDES[LLAMAFACTORY].command(full, Path("llamafactory-cli"))
    assert json.loads((job.folder / "train.yaml").read_text())["finetuning_type"] == "full"
    assert not SIDES[LITGPT].takes(CASES["full"])
    assert not SIDES[LITGPT].takes(CASES["packed"])


@pytest.mark.parametrize(
    ("side", "line"),
    [
        (OURS, "step 3/8  loss 12.4432  817 tokens/s  0:02 left  1.13 GiB"),
        (TRL, "{'loss': '12.7', 'grad_norm': '0.3839', 'learning_rate': '0'}"),
        (LITGPT, "Epoch 1 | iter 2 step 1 | loss train: 12.432, val: n/a | iter time: 5969.56 ms (step)"),
    ],
)
def test_the_line_of_a_step_is_known_and_that_of_a_micro_batch_or_of_the_end_is_not(side, line):
    known = SIDES[side].step_line
    assert known.search(line)
    assert not known.search("Epoch 1 | iter 1 step 0 | loss train: 12.432, val: n/a | iter time: 5969.56 ms")
    assert not known.search("{'train_runtime': '0.4038', 'train_loss': '12.16'}")


def a_run(seconds, peak, *, tokens=(10, 20, 30), losses=(3.0, 2.0, 1.0)):
    speed = sum(tokens[1:]) / (2 * seconds) if tokens else None
    return {
        "seconds_a_step": seconds,
        "cpu_seconds_a_step": 2 * seconds,
        "tokens": tokens and list(tokens),
        "tokens_a_second": speed,
        "peak_mib": peak,
        "seconds_to_first_step": 5.0,
        "losses": list(losses),
    }


def runs_of_a_case():
    other = a_run(4.0, 900.0, losses=(3.0, 2.0, 1.001))
    silent = a_run(2.0, 800.0, tokens=None)
    return {OURS: [a_run(1.0, 600.0), a_run(2.0, 700.0)], TRL: [other, other], LITGPT: [silent, silent]}


def test_sides_are_compared_by_repeat_and_memory_counts_from_the_loaded_model():
    found = compare(runs_of_a_case(), {OURS: 500.0, TRL: 600.0, LITGPT: 500.0})
    against = found["against"][TRL]
    assert against["times_as_fast"] == {"median": 3, "low": 2, "high": 4}
    assert against["times_as_fast_by_cpu_seconds"]["median"] == 3
    assert against["memory_of_theirs"] == 0.5  # 150 of 300
    assert against["largest_gap_of_losses"] == 0.001
    assert found["sides"][LITGPT]["tokens_a_second"]["median"] == 12.5  # the rows are ours
    assert found["against"][LITGPT]["largest_gap_of_losses"] is None  # it learned others


def test_the_page_says_of_each_goal_whether_it_was_reached():
    found = compare(runs_of_a_case(), {OURS: 500.0, TRL: 600.0, LITGPT: 500.0})
    machine = {"date": "2026-01-01", "cpu": "a CPU", "cores": 2, "threads": 2, "memory_gib": 4, "os": "Linux"}
    part = {"says": "rows", **found, "machine": machine | {"git_revision": "abc"}, "versions": {}}
    text = page.page({"short": part, "packed": part})
    assert text.index("## packed") < text.index("## short")
    assert "at least 3x the tokens/s: reached (3.00x)" in text
    assert "at most 0.5x the memory: reached (0.50x)" in text
    assert "losses equal within 1e-4: **missed** (0.001)" in text
    assert "Measured 2026-01-01 on a CPU, 2 cores" in text


def test_rows_are_the_same_every_time_and_as_long_as_their_case_says(tmp_path):
    for name in "ab":
        write_chats(tmp_path / name, CASES["short"].rows)
    text = (tmp_path / "a").read_text()
    assert text == (tmp_path / "b").read_text()
    low, high = CASES["short"].rows.words
    words = [len(m["content"].split()) for row in text.splitlines() for m in json.loads(row)["messages"]]
    assert (min(words), max(words)) == (low, high)


def test_curves_count_the_parameters_that_the_models_have():
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = SHAPES["tiny, 2k words"]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes, tie_word_embeddings=True))
    assert growth.count_parameters(sizes) == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("curve", growth.CURVES)
def test_the_rows_of_every_point_fill_it_and_have_an_answer_left(curve):
    for case in growth.CURVES[curve].cases.values():
        question, answer = case.rows.words
        assert question < case.max_length - 9 < question + answer  # 9 tokens of two turns are no words


@pytest.mark.slow
def test_the_benchmark_runs_without_peers_and_says_which_are_left_out(tmp_path, monkeypatch, capsys):
    tiny = replace(CASES["small vocabulary, short"], steps=2)
    monkeypatch.setitem(step.CASES, "small vocabulary, short", tiny)
    words = ["--cases", "small vocabulary, short", "--repeats", "1", "--no-plots", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["step.py", *words])
    step.main()
    assert capsys.readouterr().err.count("left out: ") == 3
    found = json.loads((tmp_path / "step.json").read_text())["small vocabulary, short"]
    assert found["sides"][OURS]["tokens_a_second"]["median"] > 0
    assert found["against"] == {}
    assert "| gemma_ft |" in (tmp_path / "step.md").read_text()


def test_models_and_rows_are_made_once(tmp_path):
    place = Place(folder=tmp_path)
    made = place.rows(CASES["short"].rows)
    stamp = (made / "train.jsonl").stat().st_mtime_ns
    assert (place.rows(CASES["short"].rows) / "train.jsonl").stat().st_mtime_ns == stamp
    assert program(OURS, None) == Path(sys.executable)
