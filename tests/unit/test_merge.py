"""The streaming merge against PEFT's own, element for element."""

import _thread
import errno
import json
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from export_models import (
    build_adapter,
    build_base,
    differing,
    edit_json,
    edit_tensors,
    hash_folder,
    merge_by_peft,
    read_weights,
)
from safetensors import safe_open

from gemma_ft.errors import ExportError
from gemma_ft.exporting.merging import pool, row_blocks
from gemma_ft.exporting.merging.merge import merge_checkpoint

GB = 10**9


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def base(model_type="gemma", dtype="bfloat16"):
        if (model_type, dtype) not in made:
            made[model_type, dtype] = build_base(tmp_path_factory.mktemp("base"), model_type, dtype)
        return made[model_type, dtype]

    return base


def assert_merges_like_peft(base, adapter, merged, shard_bytes=GB):
    report = merge_checkpoint(base, adapter, merged, shard_bytes=shard_bytes)
    expected, found, before = merge_by_peft(base, adapter), read_weights(merged), read_weights(base)
    assert found.keys() == before.keys()
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    assert differing(found, expected) == {}
    assert report.changed == len(differing(found, before)) > 0
    return report


@contextmanager
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


KINDS = {
    "lora": {},
    "rank 1": {"r": 1},
    "rank 64": {"r": 64},
    "odd scale": {"r": 7, "lora_alpha": 5},
    "rslora": {"use_rslora": True, "r": 6},
    "dora": {"use_dora": True},
    "dora with rslora": {"use_dora": True, "use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\.up_proj": 3},
        "alpha_pattern": {"layers.0.mlp.up_proj": 5},
    },
    "some targets": {"target_modules": ["k_proj", "mlp.down_proj"]},
    "regular expression": {"target_modules": r".*\.1\.self_attn\.(q|v)_proj"},
    "one layer": {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1]},
    "one named layer": {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    "excluded": {
        "target_modules": ["q_proj", "v_proj"],
        "exclude_modules": ["model.layers.0.self_attn.q_proj"],
    },
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_merge_equals_peft_in_every_element(kind, dtype, bases, tmp_path):
    base = bases(dtype=dtype)
    adapter = build_adapter(base, tmp_path / "adapter", **KINDS[kind])
    assert_merges_like_peft(base, adapter, tmp_path / "merged")


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
@pytest.mark.parametrize("dora", [False, True])
def test_adapter_stored_in_half_precision_merges_like_peft(stored, dora, bases, tmp_path):
    adapter = build_adapter(bases(), tmp_path / "adapter", dtype=stored, use_dora=dora)
    assert_merges_like_peft(bases(), adapter, tmp_path / "merged")


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_later_generations_merge_like_peft(model_type, dora, bases, tmp_path):
    base = bases(model_type)
    adapter = build_adapter(base, tmp_path / "adapter", use_dora=dora)
    assert_merges_like_peft(base, adapter, tmp_path / "merged")


def test_fp16_base_merges_like_peft(bases, tmp_path):
    base = bases(dtype="float16")
    assert_merges_like_peft(base, build_adapter(base, tmp_path / "adapter"), tmp_path / "merged")


@pytest.mark.parametrize("dora", [False, True])
def test_matrices_of_many_blocks_merge_like_peft(dora, bases, tmp_path, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_ELEMENTS", 1024)
    monkeypatch.setattr(row_blocks, "_FEWEST_ROWS", 8)
    adapter = build_adapter(bases(), tmp_path / "adapter", use_dora=dora)
    assert_merges_like_peft(bases(), adapter, tmp_path / "merged")


@pytest.mark.parametrize("columns", [256, 2048, 24576])
def test_blocks_of_rows_equal_the_whole_product_at_every_rank(columns):
    rows = 4 * max(16, row_blocks.BLOCK_ELEMENTS // columns) - 5
    blocks = row_blocks.row_blocks(rows, columns)
    weight = torch.randn(rows, columns).bfloat16()
    for rank in (1, 2, 3, 4, 8, 16, 17, 32, 64):
        a, b = torch.randn(rank, columns), torch.randn(rows, rank)
        whole, out = b @ a, torch.empty(rows, columns)
        lengths = torch.linalg.norm(weight + whole, dim=1)
        with one_thread():
            for first, last in blocks:
                torch.mm(b[first:last], a, out=out[first:last])
            assert torch.equal(out, whole), rank
            for first, last in blocks:
                length = torch.linalg.norm(weight[first:last] + out[first:last], dim=1)
                assert torch.equal(length, lengths[first:last]), rank


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 64), (7, 1 << 20), (17, 24576), (4096, 3072), (5000000, 1)]
)
def test_blocks_cover_every_row_once_and_are_never_slivers(rows, columns):
    blocks = row_blocks.row_blocks(rows, columns)
    assert [row for first, last in blocks for row in (first, last)][1:-1:2] == [
        first for first, _ in blocks[1:]
    ]
    assert blocks[0][0] == 0
    assert blocks[-1][1] == rows
    assert len(blocks) == 1 or min(last - first for first, last in blocks) >= 8


def test_empty_matrices_have_no_blocks():
    assert row_blocks.row_blocks(0, 64) == row_blocks.row_blocks(64, 0) == []


def test_every_worker_computes_on_one_thread_and_gives_the_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert set(pool.map_in_threads(lambda _: torch.get_num_threads(), range(20))) == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items():
    assert pool.map_in_threads(lambda item: time.sleep(item % 3 / 1000) or item, range(30)) == list(range(30))


def test_there_is_a_worker_for_each_core_of_the_process_up_to_a_handful(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert pool.worker_count() == 2
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert pool.worker_count() == 3


@pytest.mark.parametrize(
    "problem",
    [ExportError("not finite"), OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()],
)
def test_first_problem_of_a_worker_is_raised_as_it_is_with_nothing_left_running(problem, monkeypatch):
    monkeypatch.setattr(pool, "worker_count", lambda: 2)
    begun, ended = [], []

    def work(item):
        begun.append(item)
        if item == 3:
            raise problem
        time.sleep(0.05)
        ended.append(item)

    with pytest.raises(type(problem)) as caught:
        pool.map_in_threads(work, range(1000))
    assert caught.value is problem
    assert len(begun) < 100
    assert sorted(ended) == sorted(set(begun) - {3})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("merge")]


def test_interrupt_of_the_program_ends_the_work(monkeypatch):
    monkeypatch.setattr(pool, "worker_count", lambda: 2)
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            _thread.interrupt_main()
        time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        pool.map_in_threads(work, range(1000))
    assert len(begun) < 100
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("merge")]


def test_interrupt_while_work_is_still_handed_out_ends_it_too(monkeypatch):
    monkeypatch.setattr(pool, "worker_count", lambda: 2)
    begun = []

    def items():
        yield from range(200)
        raise KeyboardInterrupt

    def work(item):
        begun.append(item)
        time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        pool.map_in_threads(work, items())
    assert len(begun) < 100


def test_number_of_workers_changes_no_byte(bases, tmp_path, monkeypatch):
    adapter = build_adapter(bases(), tmp_path / "adapter", use_dora=True)
    for workers in (1, 2, 4):
        monkeypatch.setattr(pool, "worker_count", lambda count=workers: count)
        merge_checkpoint(bases(), adapter, tmp_path / str(workers), shard_bytes=40_000)
    files = [{path.name: path.read_bytes() for path in (tmp_path / str(n)).iterdir()} for n in (1, 2, 4)]
    assert files[0] == files[1] == files[2]


def test_base_of_several_files_is_read_through_its_index(tmp_path):
    base = build_base(tmp_path / "base", shard_size="60KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    assert_merges_like_peft(base, build_adapter(base, tmp_path / "adapter"), tmp_path / "merged")


def test_shards_stay_within_the_limit_and_the_index_tells_the_truth(bases, tmp_path):
    adapter = build_adapter(bases(), tmp_path / "adapter")
    report = assert_merges_like_peft(bases(), adapter, tmp_path / "merged", shard_bytes=40_000)
    files = sorted((tmp_path / "merged").glob("*.safetensors"))
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    weights = read_weights(tmp_path / "merged")
    assert report.shards == len(files) > 2
    assert [file.name for file in files] == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert max(file.stat().st_size for file in files) <= 40_000
    assert index["metadata"]["total_size"] == report.total_bytes == sum(t.nbytes for t in weights.values())
    for file in files:
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            assert set(opened.keys()) == {name for name, at in index["weight_map"].items() if at == file.name}


def test_a_tensor_above_the_limit_gets_a_file_of_its_own(bases, tmp_path):
    adapter = build_adapter(bases(), tmp_path / "adapter")
    report = assert_merges_like_peft(bases(), adapter, tmp_path / "merged", shard_bytes=1000)
    assert report.shards > 14
    for file in (tmp_path / "merged").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert file.stat().st_size <= 1000 or len(list(opened.keys())) == 1


def test_one_file_needs_no_index(bases, tmp_path):
    adapter = build_adapter(bases(), tmp_path / "adapter")
    merge_checkpoint(bases(), adapter, tmp_path / "merged", shard_bytes=GB)
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["model.safetensors"]


def test_copied_head_of_a_tied_base_is_dropped(tmp_path):
    base = build_base(tmp_path / "base")
    edit_tensors(
        base / "model.safetensors",
        lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
    )
    merge_checkpoint(base, build_adapter(base, tmp_path / "adapter"), tmp_path / "merged", shard_bytes=GB)
    assert read_weights(tmp_path / "merged").keys() == read_weights(base).keys() - {"lm_head.weight"}


def test_untied_head_is_kept(tmp_path):
    base = build_base(tmp_path / "base", tied=False)
    assert_merges_like_peft(base, build_adapter(base, tmp_path / "adapter"), tmp_path / "merged")
    assert "lm_head.weight" in read_weights(tmp_path / "merged")


@pytest.mark.parametrize("trained_dtype", ["float32", "bfloat16"])
def test_full_fine_tune_is_cast_to_the_formats_of_its_base(trained_dtype, bases, tmp_path):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(bases(), dtype=getattr(torch, trained_dtype))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.01)
    model.save_pretrained(tmp_path / "full")
    report = merge_checkpoint(bases(), tmp_path / "full", tmp_path / "merged", shard_bytes=GB)
    found, before = read_weights(tmp_path / "merged"), read_weights(bases())
    expected = {name: tensor.bfloat16() for name, tensor in read_weights(tmp_path / "full").items()}
    assert differing(found, expected) == {}
    assert found.keys() == before.keys()
    assert report.changed == len(differing(found, before)) == sum("norm" not in name for name in before)


def test_base_is_left_as_it_was(bases, tmp_path):
    before = hash_folder(bases())
    adapter = build_adapter(bases(), tmp_path / "adapter")
    merge_checkpoint(bases(), adapter, tmp_path / "merged", shard_bytes=GB)
    assert hash_folder(bases()) == before


def test_untrained_adapter_changes_nothing_and_the_report_says_so(bases, tmp_path):
    adapter = build_adapter(bases(), tmp_path / "adapter", lora_alpha=1)
    edit_json(adapter / "adapter_config.json", lora_alpha=0)
    assert merge_checkpoint(bases(), adapter, tmp_path / "merged", shard_bytes=GB).changed == 0


def test_copying_works_where_the_kernel_cannot(bases, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.copy_file_range", refuse, raising=False)
    assert_merges_like_peft(bases(), build_adapter(bases(), tmp_path / "adapter"), tmp_path / "merged")


def test_each_tensor_keeps_the_format_it_has_in_a_base_of_mixed_formats(bases, tmp_path):
    mixed, full = build_base(tmp_path / "mixed"), build_base(tmp_path / "full", dtype="float32")
    edit_tensors(
        mixed / "model.safetensors",
        lambda tensors: {n: t.float() if "norm" in n or "k_proj" in n else t for n, t in tensors.items()},
    )
    adapter = build_adapter(bases(), tmp_path / "adapter")
    merge_checkpoint(mixed, adapter, tmp_path / "merged", shard_bytes=30_000)
    merge_checkpoint(mixed, full, tmp_path / "replaced", shard_bytes=GB)
    before = read_weights(mixed)
    for folder in ("merged", "replaced"):
        after = read_weights(tmp_path / folder)
        assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert differing(read_weights(tmp_path / "merged"), before).keys() == {n for n in before if "_proj" in n}
