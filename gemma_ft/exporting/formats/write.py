"""The further forms of a merged checkpoint: one folder each, whole under its name or not there at all."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gemma_ft.errors import ExportError
from gemma_ft.exporting.folder.modelfile import build_modelfile
from gemma_ft.exporting.folder.tokenizer_files import TOKENIZER_FILES
from gemma_ft.exporting.folder.whole import whole_folder
from gemma_ft.exporting.formats.gguf_metadata import ARCHITECTURES
from gemma_ft.exporting.formats.gguf_tensors import Kind
from gemma_ft.exporting.formats.texts import derive_card, derive_notice, read_front_matter
from gemma_ft.exporting.merging.shards import write_texts
from gemma_ft.families import Family

_GGUF = {f"gguf_{kind.name}": kind for kind in Kind}
_TEXTS = ("README.md", "NOTICE", "Modelfile", "config.json", "generation_config.json")


def check_formats(names: Sequence[str], family: Family) -> None:
    """Check, before anything is merged, that what the formats need is there.

    Raises:
        ExportError: A package is missing, or a format does not know the family.
    """
    for name in names:
        if name not in _GGUF:
            continue
        if find_spec("gguf") is None:
            raise ExportError(f"export.formats=[{name}] needs the gguf package. Run: pip install gguf")
        if family.model_type not in ARCHITECTURES:
            raise ExportError(
                f"export.formats=[{name}] knows no {family.name}. Leave it out of export.formats."
            )


def write_format(name: str, merged: Path, destination: Path, *, family: Family) -> Path:
    """Write a merged checkpoint in another format and read it back.

    What an earlier export left under the destination's name is replaced.

    Args:
        name: One of `config.export.FORMATS`.
        merged: Folder of the merged checkpoint, which is only read.
        destination: The folder to write; a GGUF file is named after the folder that it lies in.
        family: The checkpoint's family.

    Returns:
        The destination.

    Raises:
        ExportError: It cannot be done, or reads back differently; nothing new stands under the name then.
    """
    from gemma_ft.exporting.formats.quantised import write_quantised

    check_formats([name], family)
    if destination.exists() and not _replaceable(destination, name):
        raise ExportError(f"{destination} exists and holds other files too. Move it, or what is yours, away.")
    with whole_folder(destination.resolve()) as partial:
        if name in _GGUF:
            _write_gguf_folder(_GGUF[name], merged, partial, destination.resolve().parent.name, family)
        else:
            write_quantised(name, merged, partial)
    return destination


def _replaceable(folder: Path, name: str) -> bool:
    """Say whether a folder holds nothing but what is written here, and so may be lost.

    A GGUF file of another kind is the user's own, such as one quantised further by llama.cpp.
    """
    own = {*TOKENIZER_FILES, *_TEXTS}
    weights = (".safetensors", ".safetensors.index.json")
    endings = (f"-{_GGUF[name].value}.gguf",) if name in _GGUF else weights
    return folder.is_dir() and all(
        path.name in own or path.name.endswith(endings) for path in folder.iterdir()
    )


def _write_gguf_folder(kind: Kind, merged: Path, folder: Path, stem: str, family: Family) -> None:
    from gemma_ft.exporting.formats.gguf_file import write_gguf

    file = f"{stem}-{kind.value}.gguf"
    card = (merged / "README.md").read_text(encoding="utf-8")
    stops = write_gguf(merged, folder / file, kind, name=stem, license=read_front_matter(card).get("license"))
    use = ["```sh", f"llama-cli -m {file}", "ollama create NAME -f Modelfile", "```"]
    what = f"This is {kind.value} in one GGUF file, for llama.cpp and what is built on it."
    texts = {
        "Modelfile": build_modelfile(f"./{file}", family, stops),
        "README.md": derive_card(card, what, use, library="gguf", tags=["gguf"]),
        "NOTICE": derive_notice(
            (merged / "NOTICE").read_text(encoding="utf-8"),
            f"The weights were then written as a GGUF file, their matrices as {kind.value}.",
        ),
    }
    write_texts(folder, texts)
