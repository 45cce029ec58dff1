"""Full, LoRA and 4-bit fine-tunes on two processes, as copies and as shards, against one process.

The wide matrix is in test_fsdp_matrix.py, marked slow.
"""

import pytest
from fsdp_runs import METHODS, Bench, assert_bit_identical
from program import losses, write_chats

PACKED = ["trainer.packing=true"]
LINES = {method: [*words, *(PACKED if method == "lora" else [])] for method, words in METHODS.items()}

ENDS = {
    "end": ["trainer.max_steps=10"],
    "end-by-two": ["trainer.max_steps=10", "trainer.micro_batch_size=2"],
    "end-packed": ["trainer.max_steps=10", "trainer.micro_batch_size=2", *PACKED],
}
"""Runs over the end of an epoch: 33 rows, or the sequences that they are packed into, do not share out."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory, tiny):
    """All runs of this file, in three launches."""
    folder = tmp_path_factory.mktemp("slice")
    bench = Bench(folder, write_chats(folder / "chats.jsonl"))
    two, one = [], []
    for method, words in LINES.items():
        sharded = [*words, "parallel=fsdp"]
        two.append(bench.words(f"{method}-ddp", *words, "parallel=ddp"))
        two.append(bench.words(f"{method}-fsdp", *sharded))
        for count, lines in ((2, two), (1, one)):
            cut = f"{method}-resumed-{count}"
            lines.append(["cut", f"outputs/{method}-fsdp", f"outputs/{cut}", "2"])
            lines.append(bench.words(cut, *sharded))
    ends = {name: [*METHODS["lora"], *words] for name, words in ENDS.items()}
    for name, words in ends.items():
        two.append(bench.words(f"{name}-ddp", *words, "parallel=ddp"))
        two.append(["cut", f"outputs/{name}-ddp", f"outputs/{name}-ddp-resumed", "2"])
        two.append(bench.words(f"{name}-ddp-resumed", *words, "parallel=ddp"))
    two.append(bench.words("end-ddp", *ends["end"], "parallel=ddp", "--overwrite"))
    bench.launch(2, *two)
    bench.launch(1, *one)
    alone = LINES | ends
    bench.launch(0, *(bench.words(method, *words) for method, words in alone.items()))
    return bench


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns(bench, method, parallel):
    bench.assert_equal(method, f"{method}-{parallel}")


@pytest.mark.parametrize("name", ENDS)
def test_rows_that_fill_the_last_batch_of_an_epoch_are_not_learned_twice(bench, name):
    bench.assert_equal(name, f"{name}-ddp")
    assert losses(bench.run(name), "epoch")[-1] > 1


@pytest.mark.parametrize("name", ENDS)
def test_nor_are_they_where_a_run_has_gone_on_in_that_epoch(bench, name):
    assert_bit_identical(bench, f"{name}-ddp", f"{name}-ddp-resumed")


def test_several_processes_start_anew_beside_the_old_folder(bench):
    assert_bit_identical(bench, "end-ddp.old-1", "end-ddp")


@pytest.mark.parametrize("method", METHODS)
def test_shards_go_on_bit_by_bit_on_as_many_processes(bench, method):
    assert_bit_identical(bench, f"{method}-fsdp", f"{method}-resumed-2")


@pytest.mark.parametrize("method", METHODS)
def test_shards_of_two_processes_go_on_in_one(bench, method):
    bench.assert_equal(method, f"{method}-resumed-1")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_every_process_holds_the_weights_that_are_saved(bench, method, parallel):
    import hashlib

    first, second = bench.facts(f"{method}-{parallel}", 2)
    assert first["trained"] == second["trained"]
    assert first["steps"] == second["steps"] == [0, 1, 2, 2, 3, 4, 4, 4]  # the last one sums up
    saved = bench.trained(f"{method}-{parallel}").items()
    hashes = [hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest() for _, value in saved]
    assert sorted(hashes) == sorted(first["trained"].values())


@pytest.mark.parametrize("method", METHODS)
def test_weights_and_optimizer_lie_in_equal_shards(bench, method):
    facts = bench.facts(f"{method}-fsdp", 2)
    whole = facts[0]["whole"]
    kinds = ["all", "embedding", "optimizer", *(["4-bit"] if method == "nf4" else [])]
    for kind in kinds:
        assert whole[kind] > 0
        assert sum(fact["local"][kind] for fact in facts) == whole[kind], kind
        assert facts[0]["local"][kind] == pytest.approx(whole[kind] / 2, rel=0.02), kind
    copied = bench.facts(f"{method}-ddp", 2)[1]
    assert copied["local"] == copied["whole"]  # so that the facts can differ


@pytest.mark.parametrize("method", METHODS)
def test_one_process_writes_the_run_and_each_its_own_shards(bench, method):
    first, second = bench.facts(f"{method}-fsdp", 2)
    ours = {place.rpartition("/")[2] for place in second["written"] if "outputs/" in place}
    assert ours <= {"rng_state_1.pth", "shard-00002-model-00001-of-00001.safetensors"}
    assert any(place.endswith("shard-00002-model-00001-of-00001.safetensors") for place in second["written"])
    assert any(place.endswith("metrics.jsonl") for place in first["written"])


def test_a_full_save_has_tied_weights_once_and_opens_in_plain_transformers(bench):
    from transformers import AutoModelForCausalLM

    folder = bench.run("full-fsdp") / "model"
    assert "lm_head.weight" not in bench.trained("full-fsdp")
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
