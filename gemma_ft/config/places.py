"""Whether the place that rows come from can hold rows at all, seen before anything is read."""

import re
from difflib import get_close_matches
from pathlib import Path

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
"""Extensions of the files that rows are read from."""

_PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz")

SPLIT_PART = re.compile(r"(?P<name>[\w.-]*\w)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
"""A split or a slice of one; several are joined with +."""


def find_split_problems(split: str, key: str) -> list[str]:
    """List what is wrong with a split expression: `train`, `train[:5%]`, `train[100:200]`, or several with +.

    Args:
        split: The expression.
        key: The key that holds it.
    """
    if not split.strip() or all(SPLIT_PART.fullmatch(part.strip()) for part in split.split("+")):
        return []
    return [f'{key}={split} is no split. Write it like "train", "train[:5%]" or "train[100:200]".']


def find_place_problems(source: str, path: str, prefix: str) -> list[str]:
    """List why a local path cannot hold rows.

    Args:
        source: hub, local or package; only local places are looked at.
        path: The value of the path key.
        prefix: The keys' prefix, for the message.
    """
    if source != "local":
        return []
    try:
        return _local_problems(Path(path).expanduser(), path, f"{prefix}.path={path}", prefix)
    except RuntimeError as error:  # the home of nobody
        return [f"{prefix}.path={path[:200]} cannot be found ({str(error).rstrip('.')}). Check the path."]
    except OSError as error:
        return [f"{prefix}.path={path[:200]} cannot be looked at ({error.strerror}). Check the path."]


def _local_problems(place: Path, path: str, said: str, prefix: str) -> list[str]:
    if place.is_dir():
        if any(is_data_file(file) for file in place.iterdir()):
            return []
        return [f"{said} holds no data file. {_folder_hint(place)}"]
    if place.exists():
        if place.suffix.lower() in DATA_SUFFIXES:
            return []
        if place.suffix.lower() in _PACKED_SUFFIXES:
            return [f"{said} is compressed. Unpack it first."]
        return [f"{said} has an unknown extension. Use one of {', '.join(DATA_SUFFIXES)}."]
    if place.is_symlink():
        return [f"{said} is a link that leads nowhere. Check where it points."]
    near = get_close_matches(place.name, _names_in(place.parent), 1)
    if near:
        hint = f"Did you mean {Path(path).parent / near[0]}?"
    elif path.count("/") == 1 and not place.suffix:
        hint = f"For a hub id add {prefix}.source=hub."
    else:
        hint = f"Check the path; relative ones start at {Path.cwd()}."
    return [f"{said} does not exist. {hint}"]


def _folder_hint(folder: Path) -> str:
    for below in sorted(folder.iterdir()):
        if below.is_dir() and not below.name.startswith(".") and any(map(is_data_file, below.iterdir())):
            return f"Its folder {below.name} does: name that."
    return f"Put {', '.join(DATA_SUFFIXES)} files there."


def is_data_file(file: Path) -> bool:
    """Tell whether a folder's entry is read as data; hidden files are not."""
    return file.suffix.lower() in DATA_SUFFIXES and not file.name.startswith(".")


def _names_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
