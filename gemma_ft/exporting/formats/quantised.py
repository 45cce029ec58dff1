"""A merged checkpoint with its linear layers quantised again by bitsandbytes, written through transformers.

Needs the memory of the quantised model (2B: 2.1 GB as nf4, 3.0 GB as int8). Loading maps the merged weights
too, so the resident peak is the sum of both (6.9 and 7.2 GB measured); the system can drop what is mapped.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft.config.schema import QuantizationConfig, QuantizationMethod
from gemma_ft.errors import ExportError
from gemma_ft.exporting.folder.tokenizer_files import tokenizer_files
from gemma_ft.exporting.formats.texts import derive_card, derive_notice
from gemma_ft.exporting.merging.shards import copy_file, write_texts
from gemma_ft.exporting.merging.storage import TrainedStorage, is_quantised, load_as_trained
from gemma_ft.exporting.merging.tensor_files import (
    FLOAT_NAMES,
    StoredTensor,
    load_tensor,
    read_checkpoint,
    read_json,
    same_bytes,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_SHARD = "5GB"
_HEAD = "lm_head.weight"
_TAGS = {QuantizationMethod.nf4: "4-bit", QuantizationMethod.int8: "8-bit"}


def write_quantised(name: str, merged: Path, folder: Path) -> None:
    """Write a checkpoint quantised, with all that goes with it, and compare it with what it was made from.

    Args:
        name: nf4 or int8.
        merged: The merged checkpoint's folder.
        folder: An empty folder.

    Raises:
        ExportError: It reads back differently.
    """
    from gemma_ft.modeling.loading import build_quantization

    method = QuantizationMethod(name)
    dtype = str(read_json(merged / "config.json")["dtype"])
    storage = TrainedStorage(method=method, double_quant=QuantizationConfig().double_quant, dtype=dtype)
    settings = QuantizationConfig(method=method, double_quant=storage.double_quant)
    model = _load(merged, dtype, quantization_config=build_quantization(settings, _torch_dtype(dtype)))
    model.save_pretrained(folder, max_shard_size=_SHARD)
    del model  # before it is loaded again
    _write_companions(method, merged, folder)
    _check_files(merged, folder, storage)
    _check_model(merged, folder, storage)


def _load(folder: Path, dtype: str, **settings: object) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    from gemma_ft.modeling.libraries import keep_4bit_weights_as_they_are, quiet_libraries

    quiet_libraries()
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=_torch_dtype(dtype),
        device_map={"": "cpu"},
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **settings,
    )
    if wrong := [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]:
        raise ExportError(f"{folder} does not load as it was written: {wrong[0]} is amiss. Export again.")
    keep_4bit_weights_as_they_are(model)
    loaded: PreTrainedModel = model
    return loaded


def _torch_dtype(name: str) -> "torch.dtype":
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def _write_companions(method: QuantizationMethod, merged: Path, folder: Path) -> None:
    """Write what stands beside the weights: the merged checkpoint's own, and the words about the format."""
    saved = read_json(folder / "config.json").get("quantization_config")
    config = read_json(merged / "config.json") | {"quantization_config": saved}
    card = (merged / "README.md").read_text(encoding="utf-8")
    what = f"Here the linear layers of its blocks are quantised to {method.value} with bitsandbytes."
    texts = {
        "config.json": json.dumps(config, indent=2, sort_keys=True) + "\n",
        "generation_config.json": (merged / "generation_config.json").read_text(encoding="utf-8"),
        "README.md": derive_card(
            card, what, None, library="transformers", tags=["bitsandbytes", _TAGS[method]]
        ),
        "NOTICE": derive_notice(
            (merged / "NOTICE").read_text(encoding="utf-8"),
            f"The weights were then quantised to {method.value} with bitsandbytes.",
        ),
    }
    write_texts(folder, texts)
    for name in tokenizer_files(merged):
        copy_file(merged / name, folder / name)
    for path in folder.glob("*.safetensors"):  # safetensors leaves them to their owner alone
        shutil.copymode(folder / "config.json", path)


def _check_files(merged: Path, folder: Path, storage: TrainedStorage) -> None:
    """Check the safetensors: no head, everything finite, and what is not quantised byte for byte the same."""
    if not read_json(folder / "config.json")["quantization_config"]:
        raise ExportError(f"{folder} was written without its quantization_config. Export again.")
    before, after = read_checkpoint(merged), read_checkpoint(folder)
    for name, tensor in after.items():
        if tensor.dtype in FLOAT_NAMES and not load_tensor(tensor).isfinite().all():
            raise ExportError(f"{folder} was written, but {name} is not finite. Export again.")
    if (_HEAD in after) is not (_HEAD in before) or not before.keys() <= after.keys():
        raise ExportError(f"{folder} was written with other tensors than its source. Export again.")
    for name in before:
        if not is_quantised(name, storage) and not same_bytes(before[name], after[name]):
            raise ExportError(f"{folder} was written, but {name} differs from its source. Export again.")


def _check_model(merged: Path, folder: Path, storage: TrainedStorage) -> None:
    """Load it back, and compare the first, middle and last block with the source quantised by ourselves."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    tensors = read_checkpoint(merged)
    model = _load(folder, storage.dtype)
    count = model.config.num_hidden_layers
    blocks = tuple(f"model.layers.{i}." for i in sorted({0, count // 2, count - 1}))
    for name, module in model.named_modules():
        weight = f"{name}.weight"
        if not name.startswith(blocks) or not is_quantised(weight, storage):
            continue
        read = dequantize_bnb_weight(module.weight, state=getattr(module, "state", None))
        if not _is_that_of(tensors[weight], read, storage):
            raise ExportError(
                f"{folder} was written, but {weight} is not its source quantised. Export again."
            )


def _is_that_of(source: StoredTensor, read: "torch.Tensor", storage: TrainedStorage) -> bool:
    import torch

    wanted = torch.empty(source.shape, dtype=_torch_dtype(storage.dtype))
    load_as_trained(source, storage, wanted)
    return torch.equal(wanted, read.to(wanted.dtype))
