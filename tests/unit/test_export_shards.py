"""How tensors are divided over files."""

import json
from pathlib import Path

import pytest

from gemma_ft.exporting.merging.shards import (
    copy_tensor,
    create_shards,
    header_of,
    plan_shards,
    start_write_back,
    write_at,
)
from gemma_ft.exporting.merging.tensor_files import StoredTensor, read_header, same_bytes


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


BIG = 5 * (1 << 19) + 3  # bytes: two whole pieces and a part


def write_stored(folder, *contents):
    """Write tensors of bytes, each copied from a file of its own."""
    folder.mkdir()
    (shard,) = plan_shards([tensor(f"t{i}", len(content), "U8") for i, content in enumerate(contents)], 10**9)
    places = create_shards(folder, [shard])
    for content, place in zip(contents, places.values(), strict=True):
        with place.path.open("rb+", buffering=0) as file:
            write_at(file, place.offset, memoryview(content))
    return read_header(folder / shard.file)


@pytest.mark.parametrize("place", [0, (1 << 20) - 1, 1 << 20, BIG - 1])
def test_one_other_byte_is_seen_wherever_it_is(place, tmp_path):
    content = bytearray(range(251)) * (BIG // 251 + 1)
    found = write_stored(tmp_path / "one", content[:BIG], content[:BIG])
    assert same_bytes(found["t0"], found["t1"])
    content[place] ^= 1
    other = write_stored(tmp_path / "other", content[:BIG])
    assert not same_bytes(found["t0"], other["t0"])


@pytest.mark.parametrize("missing", [(), ("copy_file_range", "posix_fadvise")])
def test_tensors_are_copied_to_their_places_in_any_order(missing, tmp_path, monkeypatch):
    for name in missing:
        monkeypatch.delattr("os." + name, raising=False)
    content = bytes(range(256)) * (BIG // 256 + 1)
    source = write_stored(tmp_path / "source", content[:100], content[1 : BIG + 1], content[7:7])
    (tmp_path / "copy").mkdir()
    (shard,) = plan_shards(source.values(), 10**9)
    places = create_shards(tmp_path / "copy", [shard])
    for name in ("t1", "t2", "t0"):
        copy_tensor(source[name], places[name])
        start_write_back(places[name])
    copied = read_header(tmp_path / "copy" / shard.file)
    assert copied == places
    assert all(same_bytes(copied[name], source[name]) for name in source)
