"""Which files of a folder are data, and of which split each of them is."""

import re
from collections.abc import Sequence
from pathlib import Path

from gemma_ft.config.places import DATA_SUFFIXES, is_data_file
from gemma_ft.data.sources.rows import show
from gemma_ft.errors import DataError

_SHARD = re.compile(r"[-_.]?\d+([-_.]of[-_.]\d+)?$")
_HELD_OUT = (
    "test",
    "testing",
    "validation",
    "valid",
    "val",
    "dev",
    "eval",
    "evaluation",
    "holdout",
    "heldout",
)
_KNOWN = ("train", *_HELD_OUT)
_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What the datasets library writes beside data."""
_NAMED = 5


def find_data_files(folder: Path, key: str) -> list[Path]:
    """Find the data files of a folder, in the order of their names; hidden files and subfolders are none.

    Args:
        folder: The folder.
        key: The key that names it with its value, for messages.

    Raises:
        DataError: There are none, one is no file, or two are the same rows in two formats.
    """
    entries = _entries(folder)
    if any(entry.suffix == ".arrow" or entry.name == "dataset_dict.json" for entry in entries):
        raise DataError(f"{key} was written by save_to_disk. Write it with to_parquet or to_json instead.")
    files = [entry for entry in entries if is_data_file(entry) and entry.name not in _METADATA]
    if not files:
        below = next((entry for entry in entries if entry.is_dir() and _holds_data(entry)), None)
        hint = f"Its folder {below.name} does: name that." if below else f"Put {_suffixes()} files there."
        raise DataError(f"{key} holds no data file. {hint}")
    for file in files:
        if not file.is_file():
            raise DataError(f"{key} holds {show(file.name)}, which is no file. Take it away or rename it.")
    _check_names(files, key)
    return files


def _check_names(files: Sequence[Path], key: str) -> None:
    stems: dict[str, Path] = {}
    for file in files:
        other = stems.setdefault(file.stem, file)
        if other is not file:
            both = f"{show(other.name)} and {show(file.name)}"
            raise DataError(f"{key} holds {both}, the same name twice. Take one away, or name one file.")
        named = [word for word in _KNOWN if _names(file, word)]
        if len(named) > 1:
            said = f"{key} holds {show(file.name)}, which is named after {' and '.join(named)}"
            raise DataError(f"{said}. Rename it.")


def split_files(files: Sequence[Path], split: str) -> list[Path]:
    """Choose the files of a split: those that have its name as a whole word in theirs.

    Where none has `train`, every file that is not named after a split to hold out is `train`.
    """
    named = [file for file in files if _names(file, split)]
    if split == "train" and not named:
        return [file for file in files if not any(_names(file, word) for word in _HELD_OUT)]
    return named


def name_splits(files: Sequence[Path]) -> tuple[str, ...]:
    """Name the splits of a folder: `train` first, then the names of files without their numbers."""
    names = {_SHARD.sub("", file.stem) or file.stem for file in files}
    names |= {word for word in _HELD_OUT if split_files(files, word)}
    train = ["train"] if split_files(files, "train") else []
    return tuple(dict.fromkeys([*train, *sorted(names)]))


def describe_folder(folder: Path, files: Sequence[Path]) -> str:
    """Say which files are which split, and which are none; nothing if there is one file and no more."""
    rest = [entry for entry in _entries(folder) if entry not in files]
    if len(files) == 1 and not rest:
        return ""
    known = {split: split_files(files, split) for split in _KNOWN}
    said = [f"{split} is {_list(chosen)}" for split, chosen in known.items() if chosen]
    own = find_own_splits(files)
    said += [f"splits of their own names are {_list(own)}"] if own else []
    said += [f"not read: {_list(rest)}"] if rest else []
    return "; ".join(said)


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _names(file: Path, split: str) -> bool:
    return re.search(rf"(?<![a-z]){re.escape(split.lower())}(?![a-z])", file.stem.lower()) is not None


def find_own_splits(files: Sequence[Path]) -> list[Path]:
    """Find the files that are in no split of a usual name."""
    known = {file for split in _KNOWN for file in split_files(files, split)}
    return [file for file in files if file not in known]


def _list(files: Sequence[Path]) -> str:
    names = [show(file.name) + ("/" if file.is_dir() else "") for file in files[:_NAMED]]
    more = len(files) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _holds_data(folder: Path) -> bool:
    return any(is_data_file(entry) for entry in folder.iterdir())


def _suffixes() -> str:
    return ", ".join(DATA_SUFFIXES)
