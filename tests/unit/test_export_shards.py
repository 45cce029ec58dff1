"""How tensors are divided over files."""

import json
from pathlib import Path

from gemma_ft.exporting.merging.shards import header_of, plan_shards
from gemma_ft.exporting.merging.tensor_files import StoredTensor


def tensor(name, elements, dtype="BF16"):
    size = elements * {"F32": 4, "BF16": 2, "U8": 1}[dtype]
    return StoredTensor(name, dtype, (elements,), Path("base"), 0, size)


def file_size(shard):
    return len(header_of(shard)) + sum(tensor.nbytes for tensor in shard.tensors)


def test_files_stay_within_the_limit_header_included():
    tensors = [tensor(f"model.layers.{i}.norm.weight", 64) for i in range(40)]
    for limit in range(1000, 3000, 7):
        shards = plan_shards(tensors, limit)
        assert max(map(file_size, shards)) <= limit
        assert min(map(file_size, shards[:-1])) > 0.6 * limit


def test_every_tensor_has_one_place_in_the_order_of_the_base():
    tensors = [tensor(f"t{i}", 10 + i) for i in range(50)]
    shards = plan_shards(tensors, 1000)
    assert [tensor for shard in shards for tensor in shard.tensors] == tensors


def test_tensors_of_mixed_formats_are_aligned_to_their_elements():
    tensors = [tensor("bytes", 3, "U8"), tensor("half", 3), tensor("single", 3, "F32"), tensor("half2", 1)]
    (shard,) = plan_shards(tensors, 10**6)
    header = header_of(shard)
    assert len(header) % 8 == 0
    entries = json.loads(header[8:])
    assert int.from_bytes(header[:8], "little") == len(header) - 8
    for entry in tensors:
        assert entries[entry.name]["data_offsets"][0] % entry.item_bytes == 0


def test_five_gigabytes_hold_what_five_gigabytes_can():
    tensors = [tensor(f"layer{i}", 500_000_000) for i in range(12)]
    assert [len(shard.tensors) for shard in plan_shards(tensors, 5 * 10**9)] == [4, 4, 4]
