"""The loaders' rules about safetensors: names, files, index.

A rule yields what a loader cannot do with the model, and raises what would be refused.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from gemma_ft.exporting.folder.written import Written
from gemma_ft.exporting.merging.tensor_files import INDEX_FILE, SINGLE_FILE, read_json

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_USUAL_SHARD_BYTES = 5 * 10**9


def names_are_the_bases(written: Written) -> Iterator[str]:
    """Transformers makes up what is missing; vLLM and llama.cpp's converter stop at an unknown name."""
    expected = set(written.base_tensors) - ({_HEAD} if written.tied else set())
    if missing := sorted(expected - set(written.tensors)):
        raise written.refusal("transformers and vLLM", f"the base's tensor {missing[0]} is not in it")
    if extra := sorted(set(written.tensors) - expected - {_HEAD}):
        raise written.refusal(
            "vLLM and llama.cpp's converter", f"its tensor {extra[0]} is none of the base's"
        )
    yield from ()


def a_tied_head_is_not_stored(written: Written) -> Iterator[str]:
    """A head of its own is dropped in llama.cpp's converter, and vLLM's Gemmas assert that there is none."""
    if written.tied and _HEAD in written.tensors:
        raise written.refusal("Ollama", f"it holds {_HEAD}, though head and embedding are tied")
    if not written.tied:
        yield "its head is not tied to the embedding: vLLM refuses that, llama.cpp's converter drops it."


def embedding_has_a_row_for_each_token(written: Written) -> Iterator[str]:
    """Transformers refuses a shape that config.json does not give, and so does vLLM."""
    rows, size = written.tensors[_EMBEDDING].shape[0], written.config.get("vocab_size")
    if rows != size:
        raise written.refusal(
            "transformers and vLLM", f"{_EMBEDDING} has {rows} rows, but vocab_size is {size}"
        )
    yield from ()


def files_say_that_they_are_torchs(written: Written) -> Iterator[str]:
    """Transformers before 5 refuses a file without format=pt in its metadata."""
    for path in _weight_files(written.folder):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        if (header.get("__metadata__") or {}).get("format") != "pt":
            raise written.refusal("transformers", f"{path.name} does not say format=pt in its metadata")
    yield from ()


def index_and_files_agree(written: Written) -> Iterator[str]:
    """VLLM reads every safetensors file where no index chooses; llama.cpp's converter compares the two."""
    files = {path.name for path in _weight_files(written.folder)}
    index_path = written.folder / INDEX_FILE
    if not index_path.is_file():
        if files != {SINGLE_FILE}:
            odd = min(files - {SINGLE_FILE})
            raise written.refusal("vLLM", f"{odd} stands beside {SINGLE_FILE} without an index")
        return
    if unknown := sorted(name for name in files if not name.startswith("model")):
        raise written.refusal("Ollama", f"{unknown[0]} does not begin with model, so it is not read")
    index = read_json(index_path)
    if odd_files := sorted(files ^ set(index["weight_map"].values())):
        raise written.refusal("llama.cpp's converter", f"{INDEX_FILE} and {odd_files[0]} disagree")
    size = sum(tensor.nbytes for tensor in written.tensors.values())
    told = (index.get("metadata") or {}).get("total_size")
    if told != size:
        raise written.refusal("transformers", f"{INDEX_FILE} says total_size {told}, but it is {size}")
    yield from ()


def shards_are_of_the_usual_size(written: Written) -> Iterator[str]:
    """A loader that reads file by file needs the memory of the largest."""
    tensors: defaultdict[Path, int] = defaultdict(int)
    for tensor in written.tensors.values():
        tensors[tensor.path] += 1
    for path, count in tensors.items():
        if count > 1 and path.stat().st_size > _USUAL_SHARD_BYTES:
            gigabytes = path.stat().st_size / 10**9
            yield f"{path.name} has {gigabytes:.1f} GB; export.max_shard_size=5GB suits every loader."


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


WEIGHT_RULES = (
    names_are_the_bases,
    a_tied_head_is_not_stored,
    embedding_has_a_row_for_each_token,
    files_say_that_they_are_torchs,
    index_and_files_agree,
    shards_are_of_the_usual_size,
)
