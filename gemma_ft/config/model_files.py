"""Look at `model.path` without loading or downloading anything."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from gemma_ft.config.schema import ModelConfig
from gemma_ft.errors import ModelError
from gemma_ft.families import FAMILIES, Family, family_of, family_of_hub_id

BUNDLED_TINY = "bundled:tiny"
"""The model that is built on this machine."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What can be told of a model before its files are read."""

    family: Family | None = None
    """None: not known before config.json is here."""
    context_length: int | None = None
    """Positions; None: not known yet."""
    problem: str | None = None
    """Why it cannot be used."""


def find_model_problems(model: ModelConfig) -> list[str]:
    """List why `model.path` cannot be used."""
    problem = look_at_model(model.path).problem
    return [problem] if problem is not None else []


def look_at_model(path: str) -> ModelFacts:
    """Tell what a path or hub id says by itself; of a local folder config.json is read."""
    if not path.strip():
        return ModelFacts()  # the section says so itself
    if path == BUNDLED_TINY:
        return ModelFacts(family=FAMILIES[0], context_length=FAMILIES[0].context_length)
    if Path(path).expanduser().is_dir():
        return _look_at_folder(path, Path(path).expanduser())
    if not _HUB_ID.fullmatch(path) or path.startswith((".", "~")):
        return ModelFacts(problem=f"model.path={path} is no folder here, and no hub id. {_meant(path)}")
    family = family_of_hub_id(path)
    return ModelFacts(family=family, context_length=family.context_length if family else None)


def _meant(path: str) -> str:
    from gemma_ft.config.catalog import load_options

    if path in load_options()["model"]:
        return f"Type model={path}."
    if Path(path).expanduser().is_file():
        return "It is a file: give the folder of a whole checkpoint, with config.json and safetensors."
    if path.startswith("bundled:"):
        return f"The only bundled model is model.path={BUNDLED_TINY}."
    if family_of_hub_id(f"google/{path}"):
        return f"Type model.path=google/{path}."
    return "Check the path, or give owner/name of a hub repository."


def _look_at_folder(path: str, folder: Path) -> ModelFacts:
    file = folder / "config.json"
    if not file.is_file():
        return ModelFacts(problem=f"model.path={path} has no config.json. {_instead(folder)}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        family = family_of(content, path)
    except ModelError as error:
        return ModelFacts(problem=str(error))
    except (ValueError, AttributeError):
        return ModelFacts(
            problem=f"model.path={path} has a config.json that is not JSON. Fetch the checkpoint again."
        )
    length = content.get("max_position_embeddings", family.context_length)
    return ModelFacts(
        family=family, context_length=length if isinstance(length, int) else family.context_length
    )


def _instead(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return f"It is an adapter: give its base as model.path, and adapter.path={folder}."
    if (folder / "merged" / "config.json").is_file():
        return f"It is a run: give model.path={folder / 'merged'}."
    if not any(folder.iterdir()):
        return "It is empty. Give the folder of a whole checkpoint."
    return "Give the folder of a whole checkpoint."
