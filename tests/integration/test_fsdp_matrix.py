"""Copies and shards on two and four processes against one process: models, methods, options.

It takes half an hour on two cores: `pytest -m slow tests/integration/test_fsdp_matrix.py`. A slice of it that
runs always is in test_fsdp_slice.py.
"""

import shutil

import pytest
from fsdp_runs import METHODS, Bench, assert_bit_identical
from program import losses, tensors, write_chats
from test_each_family import SIZES, write_checkpoint

pytestmark = pytest.mark.slow

LAYOUTS = {
    "ddp-2": (2, ["parallel=ddp"]),
    "fsdp-2": (2, ["parallel=fsdp"]),
    "offload-2": (2, ["parallel=fsdp_offload"]),
    "ddp-4": (4, ["parallel=ddp"]),
    "fsdp-4": (4, ["parallel=fsdp"]),
    "hybrid-4": (4, ["parallel=fsdp", "parallel.dp_shard_size=2"]),
    "offload-4": (4, ["parallel=fsdp_offload"]),
}
"""Processes, and how they share the work."""

SHAPES = {
    "tiny": ("Gemma 1", {}),
    "odd": (  # sizes that four processes, and some that two, cannot share out evenly
        "Gemma 1",
        {"hidden_size": 68, "intermediate_size": 134, "num_attention_heads": 3, "vocab_size": 2050},
    ),
    "small": (  # weights with fewer rows than there are processes
        "Gemma 1",
        {"hidden_size": 4, "intermediate_size": 6, "num_attention_heads": 1, "head_dim": 4},
    ),
    "untied": ("Gemma 1", {"tie_word_embeddings": False}),
    "gemma2": ("Gemma 2", {"hidden_size": 72, "num_attention_heads": 4, "num_key_value_heads": 2}),
    "gemma3": ("Gemma 3", {"hidden_size": 72, "num_hidden_layers": 7}),
}

PACKED = ["trainer.packing=true"]
KEPT = ["trainer.gradient_checkpointing=false"]
BEST = ["trainer.load_best_model_at_end=true"]
OPTIONS = {
    "full-kept": ("full", KEPT),
    "lora-kept": ("lora", KEPT),
    "nf4-kept-packed": ("nf4", [*KEPT, *PACKED]),
    "dora": ("lora", ["adapter=dora"]),
    "nf4-dora": ("nf4", ["adapter=dora"]),
    "rslora": ("lora", ["adapter=rslora"]),
    "targets": ("lora", ["adapter.targets=[q_proj,v_proj]"]),
    "plain-scales": ("nf4", ["quantization.double_quant=false"]),
    "full-unclipped": ("full", ["trainer.max_grad_norm=0"]),
    "lora-unclipped": ("lora", ["trainer.max_grad_norm=0"]),
    "pairs": ("lora", ["trainer.micro_batch_size=2"]),
    "epochs": (
        "lora",
        ["trainer.max_steps=-1", "trainer.num_train_epochs=2", "trainer.global_batch_size=16"],
    ),
    "full-best": ("full", BEST),
    "lora-best": ("lora", [*BEST, "trainer.early_stopping_patience=1", "trainer.learning_rate=3e-1"]),
    "nf4-best": ("nf4", BEST),
    "full-sample": ("full", ["trainer.sample_prompt=hi", "trainer.sample_tokens=4"]),
    "nf4-sample": ("nf4", ["trainer.sample_prompt=hi", "trainer.sample_tokens=4"]),
    "fused": ("full", ["trainer.optim=adamw_torch_fused"]),
    "sgd": ("lora", ["trainer.optim=sgd", "trainer.learning_rate=1e-1"]),
    "plateau": ("lora", ["trainer.lr_scheduler_type=reduce_lr_on_plateau"]),
    "linear": ("full", ["trainer.lr_scheduler_type=linear", "trainer.weight_decay=0.1"]),
    "merged": ("nf4", ["export=merged"]),
}
"""Options that are tried on two processes, with what is trained."""

BF16 = {"full": 4e-2, "lora": 1e-2, "nf4": 2e-2}
"""How far losses of 6 to 10 may be apart in bf16, which has three digits: shards keep the sum over the blocks
in bf16 too, where one process has autocast keep it in fp32."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory, tiny):
    """A folder with checkpoints of many shapes, and the runs of one process."""
    folder = tmp_path_factory.mktemp("matrix")
    bench = Bench(folder, write_chats(folder / "chats.jsonl"))
    usual = dict(SIZES)
    for name, (family, sizes) in SHAPES.items():
        if name != "tiny":
            SIZES.update(sizes)
            write_checkpoint(folder / name, family, tiny)
            SIZES.clear()
            SIZES.update(usual)
    bench.launch(0, *lines(bench, "one"), *options(bench, "one"), *options_bf16(bench, "one"))
    return bench


def model(shape):
    return "model=tiny" if shape == "tiny" else f"model.path={shape}"


def names():
    """Name each shape with each method, packed and not."""
    return [
        (f"{shape}-{method}{'-packed' * bool(packed)}", shape, [*METHODS[method], *packed])
        for shape in SHAPES
        for method in METHODS
        for packed in ([], PACKED)
    ]


def lines(bench, layout, *words):
    return [bench.words(f"{name}-{layout}", *own, *words, model=model(shape)) for name, shape, own in names()]


def options(bench, layout, *words):
    return [
        bench.words(f"{name}-{layout}", *METHODS[method], *own, *words)
        for name, (method, own) in OPTIONS.items()
    ]


def options_bf16(bench, layout, *words):
    return [bench.words(f"bf16-{m}-{layout}", *METHODS[m], "model.dtype=bf16", *words) for m in METHODS]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_shape_and_method_learns_what_one_process_learns(bench, layout):
    processes, words = LAYOUTS[layout]
    bench.launch(processes, *lines(bench, layout, *words))
    for name, _, _ in names():
        bench.assert_equal(f"{name}-one", f"{name}-{layout}")
    assert "lm_head.weight" in bench.trained(f"untied-full-{layout}")


@pytest.mark.parametrize("layout", ["ddp-2", "fsdp-2"])
def test_every_option_does_what_it_does_in_one_process(bench, layout):
    processes, words = LAYOUTS[layout]
    bench.launch(processes, *options(bench, layout, *words))
    for name in OPTIONS:
        bench.assert_equal(f"{name}-one", f"{name}-{layout}", weights=1e-4)
    assert tensors(bench.run(f"merged-{layout}") / "merged").keys()
    assert (bench.run(f"merged-{layout}") / "certificate.json").is_file()


def test_losses_in_bf16_keep_their_digits_and_are_near_those_of_one_process(bench):
    import torch

    bench.launch(2, *options_bf16(bench, "fsdp-2", "parallel=fsdp"))
    for method, apart in BF16.items():
        found = losses(bench.run(f"bf16-{method}-fsdp-2"))
        assert found == pytest.approx(losses(bench.run(f"bf16-{method}-one")), abs=apart, rel=0)
        assert any(float(torch.tensor(loss).bfloat16()) != loss for loss in found)


@pytest.mark.parametrize("method", METHODS)
def test_shards_go_on_in_any_number_of_processes(bench, method):
    words = [*METHODS[method], "parallel=fsdp", "trainer.lr_scheduler_type=linear"]
    origins, again = {1: [], 2: [], 4: []}, {1: [], 2: [], 4: []}
    for before in origins:
        origins[before].append(bench.words(f"{method}-of-{before}", *words))
        for after in again:
            name = f"{method}-of-{before}-on-{after}"
            again[after].append(["cut", f"outputs/{method}-of-{before}", f"outputs/{name}", "2"])
            again[after].append(bench.words(name, *words))
    for run in (origins, again):
        for processes, its_lines in run.items():
            bench.launch(processes, *its_lines)
    for before in origins:
        for after in again:
            name = f"{method}-of-{before}-on-{after}"
            bench.assert_equal(f"{method}-of-1", name)
            if before == after:
                assert_bit_identical(bench, f"{method}-of-{before}", name)


def test_a_run_with_noise_and_dropout_goes_on_bit_by_bit(bench):
    noise = ["trainer.neftune_noise_alpha=5", "parallel=fsdp"]
    for method in METHODS:
        dropout = [] if method == "full" else ["adapter.dropout=0.1"]
        words, name = [*METHODS[method], *noise, *dropout], f"noise-{method}"
        cut = ["cut", f"outputs/{name}", f"outputs/{name}-cut", "2"]
        bench.launch(2, bench.words(name, *words), cut, bench.words(f"{name}-cut", *words))
        assert_bit_identical(bench, name, f"{name}-cut")


def test_a_run_goes_on_from_another_ones_adapter(bench):
    for method in ("lora", "nf4"):
        words = [*METHODS[method], f"adapter.path=outputs/tiny-{method}-one/adapter"]
        bench.launch(0, bench.words(f"path-{method}", *words))
        bench.launch(2, bench.words(f"path-{method}-fsdp", *words, "parallel=fsdp"))
        bench.assert_equal(f"path-{method}", f"path-{method}-fsdp")
        assert losses(bench.run(f"path-{method}"))[0] < losses(bench.run(f"tiny-{method}-one"))[0]


def test_a_finished_run_is_extended_on_shards(bench):
    for method in METHODS:
        words = [*METHODS[method], "parallel=fsdp"]
        longer = bench.words(f"longer-{method}", *words, "trainer.max_steps=6", "--extend")
        bench.launch(2, bench.words(f"longer-{method}", *words), longer)
        assert losses(bench.run(f"longer-{method}"), "step")[-1] == 6
        shutil.rmtree(bench.folder / "facts")


def test_accelerates_own_launcher_starts_a_sharded_run(bench):
    from fsdp_runs import PROGRAM
    from launching import accelerate, begin, end

    words = bench.words("accelerated", *METHODS["nf4"], "parallel=fsdp")
    done = end(begin(*accelerate(2, str(PROGRAM.with_name("fsdp_on_cpus.py")), *words), cwd=bench.folder))
    assert done.returncode == 0, done.stderr
    bench.assert_equal("tiny-nf4-one", "accelerated")
