"""The exported folder: weights and all that goes with them, whole under its name or not there at all."""

import filecmp
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gemma_ft.errors import ExportError
from gemma_ft.exporting.certificate.certify import Certificate
from gemma_ft.exporting.folder.card import Origin, build_card
from gemma_ft.exporting.folder.loaders import check_loaders
from gemma_ft.exporting.folder.model_config import export_config, export_generation_config
from gemma_ft.exporting.folder.modelfile import build_modelfile
from gemma_ft.exporting.folder.notice import build_notice
from gemma_ft.exporting.folder.tokenizer_files import (
    TEMPLATE_FILE,
    TOKENIZER_FILES,
    has_chat_template,
    special_token_ids,
    tokenizer_files,
)
from gemma_ft.exporting.folder.turn_tokens import rewritten_files
from gemma_ft.exporting.folder.whole import whole_folder
from gemma_ft.exporting.merging.fingerprint import file_sha256
from gemma_ft.exporting.merging.merge import MergePlan, MergeReport, plan_merge, write_merge
from gemma_ft.exporting.merging.shards import copy_file, write_texts
from gemma_ft.exporting.merging.storage import TrainedStorage
from gemma_ft.exporting.merging.tensor_files import FLOAT_NAMES, read_json
from gemma_ft.families import END_OF_TURN, START_OF_TURN, Family, load_chat_template

logger = logging.getLogger("gemma_ft")

CERTIFICATE_FILE = "certificate.json"
_TEXTS = ("config.json", "generation_config.json", "README.md", "NOTICE", "Modelfile", CERTIFICATE_FILE)


def export_checkpoint(
    *,
    base: Path,
    trained: Path,
    destination: Path,
    family: Family,
    origin: Origin,
    shard_bytes: int,
    storage: TrainedStorage | None = None,
    check_tokens: Callable[[Path], None] | None = None,
    prove: Callable[[MergePlan, Path], Certificate] | None = None,
    outdated: Path | None = None,
) -> tuple[MergeReport, str | None]:
    """Merge what was trained into its base and write a checkpoint folder that loads anywhere.

    Args:
        base: Folder of the full-precision base; it is only read.
        trained: Folder of the adapter, or of a full fine-tune.
        destination: The folder, which gets its name once it is whole and read back; a checkpoint that stands
            there is replaced then.
        family: The base's family.
        origin: What the model card and NOTICE say of its making.
        shard_bytes: Largest weight file, unless a single tensor is larger.
        storage: How training held the base, to merge onto that; None merges onto the base as it is.
        check_tokens: Called with the folder once the tokenizer is in it; what it raises ends the export.
        prove: Called with the folder once the weights are in it too; what it raises keeps the name away.
        outdated: A file that speaks of the folder which is replaced; it goes with it.

    Returns:
        What the merge wrote, and the text of certificate.json where there is one.

    Raises:
        ExportError: It cannot be done; nothing new stands under the destination's name.
    """
    destination = destination.resolve()
    _check_destination(destination, base.resolve(), trained.resolve())
    plan = plan_merge(base, trained, storage)
    texts = _companions(base, plan, family, origin)
    with whole_folder(destination, outdated) as partial:
        write_texts(partial, texts)
        _copy(base, partial, [name for name in tokenizer_files(base) if name not in texts])
        if check_tokens is not None:
            check_tokens(partial)
        report = write_merge(plan, partial, shard_bytes=shard_bytes)
        certificate = None if prove is None else prove(plan, partial)
        proven = replace(origin, certificate=tuple(certificate.summary) if certificate else ())
        write_texts(partial, {"README.md": build_card(family, proven)})
        for note in check_loaders(partial, base, family):
            logger.info("  %s: %s", destination.name, note)
        return report, None if certificate is None else _write_certificate(certificate, partial)


def _write_certificate(certificate: Certificate, folder: Path) -> str:
    """Write what was measured, with size and hash of each file that stands in the folder by now."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    }
    text = json.dumps({**certificate.content, "files": files}, indent=2) + "\n"
    write_texts(folder, {CERTIFICATE_FILE: text})
    return text


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
    own = {*TOKENIZER_FILES, *_TEXTS}
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
    rewritten, template_added = rewritten_files(base), not has_chat_template(base)
    texts = {
        "config.json": _json(export_config(config, family, _main_dtype(plan))),
        "generation_config.json": _json(stops),
        "Modelfile": build_modelfile(".", family, (END_OF_TURN, START_OF_TURN)),
        "NOTICE": build_notice(
            family, origin, template_added=template_added, tokenizer_rewritten=bool(rewritten)
        ),
    }
    if template_added:
        texts[TEMPLATE_FILE] = load_chat_template()
    return texts | rewritten


def _json(content: dict[str, object]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _main_dtype(plan: MergePlan) -> str:
    """Return the number format that most of the bytes are in, in torch's words."""
    sizes = dict.fromkeys(FLOAT_NAMES, 0)
    for tensor in plan.tensors.values():
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.nbytes
    return FLOAT_NAMES[max(sizes, key=lambda dtype: sizes[dtype])]


def _copy(base: Path, folder: Path, names: list[str]) -> None:
    """Copy files byte for byte and read them back."""
    for name in names:
        copy_file(base / name, folder / name)
        if not filecmp.cmp(base / name, folder / name, shallow=False):
            raise ExportError(f"{folder / name} was copied, but reads back differently. Export again.")
