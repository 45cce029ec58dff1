"""A GGUF file written from a checkpoint's folder and read back.

The model is never built: tensors pass through in blocks of rows, whatever the size of the model.
"""

import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft.errors import ExportError
from gemma_ft.exporting.formats.gguf_metadata import (
    ARCHITECTURES,
    describe_model,
    describe_vocabulary,
    load_config,
)
from gemma_ft.exporting.formats.gguf_tensors import (
    Kind,
    PlannedTensor,
    convert_tensor,
    plan_tensors,
    read_rows,
)
from gemma_ft.exporting.formats.gguf_vocabulary import Vocabulary, build_vocabulary
from gemma_ft.exporting.merging.merge import check_space
from gemma_ft.exporting.merging.tensor_files import read_checkpoint, read_into, read_json

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader, GGUFWriter, ReaderTensor


def write_gguf(merged: Path, path: Path, kind: Kind, *, name: str, license: str | None) -> list[str]:
    """Write a checkpoint as one GGUF file and compare every weight in it with the checkpoint's.

    Most of the memory goes to reading the vocabulary back: about 1 GB in all for one of 256 thousand tokens.

    Args:
        merged: The checkpoint's folder.
        path: The file, whose folder exists.
        kind: Number format of the matrices.
        name: What the file calls the model.
        license: Identifier of its licence, where it has one.

    Returns:
        The texts that end an answer.

    Raises:
        ExportError: GGUF or llama.cpp cannot hold this model, or the file reads back differently.
    """
    import gguf

    config = load_config(merged)
    vocabulary = build_vocabulary(merged, config.vocab_size)
    architecture = ARCHITECTURES[config.model_type]
    planned = plan_tensors(read_checkpoint(merged), architecture, config.num_hidden_layers, kind)
    check_space(path.parent, sum(tensor.nbytes for tensor in planned))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    if license is not None:
        writer.add_license(license)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.value}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    describe_model(writer, config)
    describe_vocabulary(writer, vocabulary, merged)
    try:
        _write(writer, planned)
    finally:
        writer.close()
    check_gguf(path, planned, vocabulary)
    stops = read_json(merged / "generation_config.json")["eos_token_id"]
    return [vocabulary.tokens[stop] for stop in ([stops] if isinstance(stops, int) else stops)]


def _write(writer: "GGUFWriter", planned: Sequence[PlannedTensor]) -> None:
    import numpy as np

    for tensor in planned:
        writer.add_tensor_info(
            tensor.name, tensor.source.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None  # opened with the header
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    for tensor in planned:
        for block in convert_tensor(tensor):
            block.tofile(file)
        writer.write_padding(file, tensor.nbytes)
    file.flush()
    os.fsync(file.fileno())


def check_gguf(path: Path, planned: Sequence[PlannedTensor], vocabulary: Vocabulary) -> None:
    """Read a written file back: its vocabulary, its tensors' names and formats, and every weight.

    Raises:
        ExportError: Something differs.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)  # maps the file, of which only the header is touched here
    for key in ("tokens", "scores", "token_type"):
        _check_list(path, reader, key, vocabulary)
    found = {tensor.name: tensor for tensor in reader.tensors}
    if found.keys() != {tensor.name for tensor in planned} or len(found) != len(reader.tensors):
        raise ExportError(f"{path} was written, but holds other tensors than planned. Export again.")
    with FileIO(path) as file:
        for tensor in planned:
            stored = found[tensor.name]
            same = _has_form(stored, tensor) and _has_values(file, int(stored.data_offset), tensor)
            if not same:
                raise ExportError(
                    f"{path} was written, but {tensor.name} reads back differently. Export again."
                )


def _check_list(path: Path, reader: "GGUFReader", key: str, vocabulary: Vocabulary) -> None:
    import numpy as np

    expected = {"tokens": vocabulary.tokens, "scores": vocabulary.scores, "token_type": vocabulary.types}[key]
    field = reader.get_field(f"tokenizer.ggml.{key}")
    if key == "tokens":
        same = field is not None and field.contents() == expected
    else:
        same = field is not None and np.array_equal(np.array(field.contents()), np.array(expected))
    if not same:
        raise ExportError(f"{path} was written, but its {key} read back differently. Export again.")


def _has_form(stored: "ReaderTensor", planned: PlannedTensor) -> bool:
    shape = tuple(int(size) for size in reversed(stored.shape))
    return (shape, stored.tensor_type, int(stored.n_bytes)) == (
        planned.source.shape,
        planned.type,
        planned.nbytes,
    )


def _has_values(file: FileIO, offset: int, planned: PlannedTensor) -> bool:
    """Compare a tensor with its source, block by block: what rounding gives, or Q8_0 within its own bound."""
    import torch
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    plain = {GGMLQuantizationType.BF16: torch.bfloat16, GGMLQuantizationType.F16: torch.float16}
    per_block, block_bytes = GGML_QUANT_SIZES[planned.type]
    for values_RI in read_rows(planned):
        raw = bytearray(values_RI.numel() // per_block * block_bytes)
        read_into(file, offset, memoryview(raw))
        offset += len(raw)
        if planned.type == GGMLQuantizationType.Q8_0:
            same = _within_bound(raw, values_RI)
        else:
            dtype = plain.get(planned.type, torch.float32)
            same = torch.equal(torch.frombuffer(raw, dtype=dtype).view(values_RI.shape), values_RI.to(dtype))
        if not same:
            return False
    return True


def _within_bound(raw: bytearray, values_RI: "torch.Tensor") -> bool:
    """Say whether each weight is within half a step of its block, and the rounding of the step to fp16.

    A step is the block's largest value / 127 (ggml-quants.c, quantize_row_q8_0). In fp16 it is off by at most
    2**-11 of itself, or 2**-25 where it is subnormal, and a weight has at most 127 steps.
    """
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    read = dequantize(np.frombuffer(raw, np.uint8).reshape(len(values_RI), -1), GGMLQuantizationType.Q8_0)
    wanted_N32, read_N32 = values_RI.view(-1, 32), torch.from_numpy(read).view(-1, 32)
    step_N1 = wanted_N32.abs().amax(1, keepdim=True) / 127
    bound_N1 = step_N1 / 2 + 127 * torch.maximum(step_N1 * 2**-11, torch.tensor(2.0**-25))
    return bool(((wanted_N32 - read_N32).abs() <= bound_N1 * (1 + 1e-5)).all())
