"""What a run does with its rows: drops, mixtures, a cache, rows that change behind its back."""

import json

import pytest
from program import losses, start, status

SMALL = (
    "model=tiny",
    "quantization=none",
    "export=none",
    "trainer.max_length=64",
    "trainer.max_steps=2",
    "trainer.global_batch_size=2",
    "trainer.logging_steps=1",
)


def facts_of(run):
    return json.loads((run / "data.json").read_text(encoding="utf-8"))


def test_a_bad_row_stops_a_run_by_its_line_before_a_model_is_loaded(chats, tiny, tmp_path):
    with chats.open("a") as rows:
        rows.write('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}\n')
    done = start("name=bad", "dataset=local", f"dataset.path={chats}", *SMALL, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: {chats}:41: two user turns in a row. Join them or remove one."
    )
    assert "Traceback" not in done.stderr
    assert "trainable parameters" not in done.stderr
    assert status(tmp_path / "outputs" / "bad")["state"] == "failed"


def test_dropped_rows_are_counted_in_the_log_and_listed_in_the_run_folder(train, chats, capsys):
    with chats.open("ab") as rows:
        rows.write(b'{"messages": []}\n{"mess\n\xff\n{"messages": []}\n')
    run = train("name=drop", "dataset=local", f"dataset.path={chats}", "dataset.on_bad_row=drop", *SMALL)
    dropped = [json.loads(line) for line in (run / "dropped.jsonl").read_text().splitlines()]
    assert [row["where"] for row in dropped] == [f"{chats}:{line}" for line in (41, 42, 43, 44)]
    counted = facts_of(run)["rows_dropped"]
    assert sum(counted.values()) == 4
    printed = capsys.readouterr().err
    for cause, number in counted.items():
        assert f"{number} rows left out: {cause}" in printed
    assert facts_of(run)["rows_read"] == 44


def test_a_mixture_trains_and_says_what_each_source_gave(train, chats, tmp_path, capsys):
    quotes = tmp_path / "quotes.csv"
    quotes.write_text("quote,author\n" + "".join(f"Saying {i} is doing,Someone\n" for i in range(30)))
    run = train(
        "name=mixed",
        "dataset=mixture",
        f"dataset.mixture.chats.path={chats}",
        f"dataset.mixture.quotes.path={quotes}",
        "dataset.mixture.quotes.weight=0.5",
        *SMALL,
    )
    shares = facts_of(run)["mixture"]
    assert shares["chats"]["tokens_share"] == pytest.approx(2 / 3, abs=0.03)
    assert facts_of(run)["plain_text"] is False
    assert "quotes: weight 33.3%" in capsys.readouterr().err
    assert "mixture" in (run / "config.yaml").read_text()
    assert train(f"recipe={run / 'config.yaml'}", "name=mixed") == run


def test_the_loss_begins_the_same_with_tokens_from_the_cache(train, chats):
    words = ("dataset=local", f"dataset.path={chats}", "trainer.packing=true", *SMALL)
    first, again = train("name=first", *words), train("name=again", *words)
    assert losses(first) == losses(again)
    assert losses(first, "eval_loss") == losses(again, "eval_loss")


def test_a_run_does_not_go_on_with_rows_that_have_changed(train, chats, capsys):
    words = ["dataset=local", f"dataset.path={chats}", *SMALL, "name=changed", "trainer.save_steps=1"]
    run = train(*words)
    (run / "adapter").rename(run / "gone")  # as if it had been cut before its end
    (run / "status.json").write_text('{"state": "interrupted", "stage": "training", "reason": null}')
    kept = (run / "data.json").read_text()
    chats.write_text(chats.read_text().replace("What is 7", "How much is 7"))
    train(*words, code=2)
    assert "holds a run whose rows" in capsys.readouterr().err
    assert (run / "data.json").read_text() == kept


def test_the_run_folder_states_the_token_contract(train, chats):
    contract = facts_of(train("name=stated", "dataset=local", f"dataset.path={chats}", *SMALL))["contract"]
    assert [contract[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [2, 1, 0]
    assert (contract["start_of_turn_id"], contract["end_of_turn_id"]) == (106, 107)
    assert "right before an answer's first word are kept" in contract["departure"]
    assert contract["rows_compared"] == 40


def test_a_large_micro_batch_of_packed_rows_is_warned_of(train, chats, capsys):
    words = ("dataset=local", f"dataset.path={chats}", *SMALL, "trainer.packing=true")
    train("name=one", *words)
    printed = capsys.readouterr().err
    assert "batch 2 = micro-batch 1 x accumulation 2 x 1 process(es)" in printed
    assert "grows with its square" not in printed
    train("name=two", *words, "trainer.micro_batch_size=2")
    assert "trainer.micro_batch_size=1 takes the same steps for less" in capsys.readouterr().err
