"""The exported folder: weights and all that goes with them, whole under its name or not there at all."""

import filecmp
import json
from collections.abc import Callable
from pathlib import Path

from gemma_ft.errors import ExportError
from gemma_ft.exporting.folder.card import Origin, build_card, build_notice
from gemma_ft.exporting.folder.model_config import export_config, export_generation_config
from gemma_ft.exporting.folder.tokenizer_files import (
    TEMPLATE_FILE,
    TOKENIZER_FILES,
    has_chat_template,
    special_token_ids,
    tokenizer_files,
)
from gemma_ft.exporting.folder.turn_tokens import register_turn_tokens
from gemma_ft.exporting.folder.whole import whole_folder
from gemma_ft.exporting.merging.merge import MergePlan, MergeReport, plan_merge, write_merge
from gemma_ft.exporting.merging.shards import copy_file, write_text
from gemma_ft.exporting.merging.tensor_files import FLOAT_NAMES, read_json
from gemma_ft.families import Family, load_chat_template


def export_checkpoint(
    *,
    base: Path,
    trained: Path,
    destination: Path,
    family: Family,
    origin: Origin,
    shard_bytes: int,
    check: Callable[[Path], None] | None = None,
) -> MergeReport:
    """Merge what was trained into its base and write a checkpoint folder that loads anywhere.

    All of it is written beside the destination, read back, and only then given its name; a checkpoint that
    stood there is replaced. The base is only read.

    Args:
        base: Folder of the full-precision base.
        trained: Folder of the adapter, or of a full fine-tune.
        destination: The folder to write.
        family: The base's family.
        origin: What the model card and NOTICE say of its making.
        shard_bytes: Largest weight file, unless a single tensor is larger.
        check: Called with the whole folder before it gets its name; what it raises keeps the name away.

    Raises:
        ExportError: It cannot be done; nothing new stands under the destination's name.
    """
    destination = destination.resolve()
    _check_destination(destination, base.resolve(), trained.resolve())
    plan = plan_merge(base, trained)
    texts = _companions(base, plan, family, origin)
    copied = [name for name in tokenizer_files(base) if name not in texts]
    with whole_folder(destination) as partial:
        report = write_merge(plan, partial, shard_bytes=shard_bytes)
        for name in copied:
            copy_file(base / name, partial / name)
        for name, text in texts.items():
            write_text(partial / name, text)
        _check_companions(base, partial, copied, texts)
        if check is not None:
            check(partial)
    return report


def _check_destination(destination: Path, base: Path, trained: Path) -> None:
    for source in (base, trained):
        if destination == source or destination in source.parents or source in destination.parents:
            raise ExportError(
                f"{destination} overlaps {source}, which is only read. Export to another folder."
            )
    if destination.exists() and not _replaceable(destination):
        raise ExportError(
            f"{destination} exists and is no exported checkpoint alone. Move it, or what is yours, away."
        )


def _replaceable(folder: Path) -> bool:
    """Say whether a folder holds nothing but what an export writes, and so may be lost."""
    if not folder.is_dir():
        return False
    own = {*TOKENIZER_FILES, "config.json", "generation_config.json", "README.md", "NOTICE"}
    names = [path.name for path in folder.iterdir()]
    return all(name in own or name.endswith((".safetensors", ".safetensors.index.json")) for name in names)


def _companions(base: Path, plan: MergePlan, family: Family, origin: Origin) -> dict[str, str]:
    """Build the text files that stand beside the weights, by name."""
    config = read_json(base / "config.json")
    generation = base / "generation_config.json"
    stops = export_generation_config(
        read_json(generation) if generation.is_file() else {}, config, special_token_ids(base)
    )
    if not stops["eos_token_id"]:
        raise ExportError(
            f"{base} names no end token in its tokenizer or config.json. Use a whole checkpoint."
        )
    registered = register_turn_tokens(base)
    texts = {
        "config.json": _json(export_config(config, family, _main_dtype(plan))),
        "generation_config.json": _json(stops),
        "README.md": build_card(family, origin),
        "NOTICE": build_notice(
            family, origin, template_added=not has_chat_template(base), turns_registered=bool(registered)
        ),
    }
    if not has_chat_template(base):
        texts[TEMPLATE_FILE] = load_chat_template()
    return texts | registered


def _json(content: dict[str, object]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _main_dtype(plan: MergePlan) -> str:
    """Return the number format that most of the bytes are in, in torch's words."""
    sizes = dict.fromkeys(FLOAT_NAMES, 0)
    for tensor in plan.tensors.values():
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.nbytes
    return FLOAT_NAMES[max(sizes, key=lambda dtype: sizes[dtype])]


def _check_companions(base: Path, folder: Path, copied: list[str], texts: dict[str, str]) -> None:
    """Read back what stands beside the weights."""
    same = {name: filecmp.cmp(base / name, folder / name, shallow=False) for name in copied}
    same |= {name: (folder / name).read_bytes() == text.encode() for name, text in texts.items()}
    for name, equal in same.items():
        if not equal:
            raise ExportError(f"{folder / name} was written, but reads back differently. Export again.")
