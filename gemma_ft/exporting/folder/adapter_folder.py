"""`export=adapter`: the run's own adapter, made ready to publish where it lies.

Each file is written beside its place and renamed, so the folder is a whole adapter at every moment. The
weights are not touched.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_ft.errors import ExportError
from gemma_ft.exporting.folder.adapter_card import build_adapter_card
from gemma_ft.exporting.folder.card import Origin
from gemma_ft.exporting.folder.contract import load_checked_tokenizer
from gemma_ft.exporting.folder.notice import build_adapter_notice
from gemma_ft.exporting.folder.tokenizer_files import TEMPLATE_FILE, has_chat_template, tokenizer_files
from gemma_ft.exporting.folder.turn_tokens import rewritten_files
from gemma_ft.exporting.merging.adapter_tensors import check_finite
from gemma_ft.exporting.merging.tensor_files import FLOAT_NAMES, read_header, read_json
from gemma_ft.families import Family, load_chat_template

logger = logging.getLogger("gemma_ft")

_WEIGHTS, _SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def export_adapter(adapter: Path, *, base: Path, family: Family, origin: Origin) -> Path:
    """Make a trained adapter's folder loadable and publishable by itself.

    Its settings name the base by its hub id and commit, and card, notice and the base's tokenizer join it. A
    second time changes nothing.

    Args:
        adapter: Folder that PEFT saved the adapter to.
        base: Folder of the base, of which the tokenizer's files are needed.
        family: The base's family.
        origin: What card and notice say of its making.

    Returns:
        The same folder.

    Raises:
        ExportError: It is no adapter, holds numbers that are none, or does not read back as it was written.
    """
    _check_weights(adapter)
    files = _files(adapter, base, family, origin)
    for name, content in files.items():
        _put(adapter / name, content)
    for name, content in files.items():
        if (adapter / name).read_bytes() != content:
            raise ExportError(f"{adapter / name} was written, but reads back differently. Export again.")
    shutil.copymode(adapter / "NOTICE", adapter / _WEIGHTS)  # safetensors left them to their owner alone
    _check_settings(adapter)
    load_checked_tokenizer(adapter, adapter, family)
    if origin.base_id is None and not origin.bundled:
        logger.warning(
            "%s: the base has no hub id, so nothing names it. Fill in base_model_name_or_path by hand "
            "before you publish it.",
            adapter / _SETTINGS,
        )
    return adapter


def _files(adapter: Path, base: Path, family: Family, origin: Origin) -> dict[str, bytes]:
    """Build what is written, by name; the settings come last, when all they speak of is there."""
    rewritten = rewritten_files(base)
    template_added = not has_chat_template(base)
    notice = build_adapter_notice(
        family, origin, template_added=template_added, tokenizer_rewritten=bool(rewritten)
    )
    texts = {**rewritten, "README.md": build_adapter_card(family, origin), "NOTICE": notice}
    if template_added:
        texts[TEMPLATE_FILE] = load_chat_template()
    copied = {name: (base / name).read_bytes() for name in tokenizer_files(base) if name not in rewritten}
    texts[_SETTINGS] = _settings(adapter, origin)
    return copied | {name: text.encode() for name, text in texts.items()}


def _settings(adapter: Path, origin: Origin) -> str:
    named = {
        "base_model_name_or_path": origin.base_id,
        "revision": origin.base_revision if origin.base_id else None,
    }
    made = read_json(adapter / _SETTINGS) | named
    if paths := list(_local_paths(made)):
        raise ExportError(f"{adapter / _SETTINGS} names the local path {paths[0]}. Take it out by hand.")
    return json.dumps(made, indent=2, sort_keys=True) + "\n"


def _local_paths(content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for item in content:
            yield from _local_paths(item)
    elif isinstance(content, str) and (Path(content).is_absolute() or content.startswith("~")):
        yield content


def _put(path: Path, content: bytes) -> None:
    """Bring a file to the disk, whole under its name or not at all; an equal one is left as it is."""
    beside = path.with_name(f".{path.name}.partial")
    beside.unlink(missing_ok=True)
    if path.is_file() and path.read_bytes() == content:
        return
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as problem:
        beside.unlink(missing_ok=True)
        raise ExportError(
            f"{path} cannot be written ({problem.strerror}). Free or unlock its disk."
        ) from problem


def _check_weights(adapter: Path) -> None:
    tensors = read_header(adapter / _WEIGHTS)
    if not tensors:
        raise ExportError(f"{adapter / _WEIGHTS} holds no tensors. Train again.")
    for tensor in tensors.values():
        if tensor.dtype in FLOAT_NAMES:
            check_finite(tensor)


def _check_settings(adapter: Path) -> None:
    """Read the settings as PEFT will."""
    from gemma_ft.modeling.libraries import quiet_bitsandbytes

    quiet_bitsandbytes()  # peft imports it
    from peft import LoraConfig

    try:
        LoraConfig.from_pretrained(str(adapter), local_files_only=True)
    except (KeyError, OSError, TypeError, ValueError) as problem:
        raise ExportError(
            f"{adapter / _SETTINGS} is none that PEFT reads ({problem}). Train again."
        ) from problem
