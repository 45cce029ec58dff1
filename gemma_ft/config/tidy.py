"""Turn a composed config into the values that the program works with, and back into plain ones for a file."""

import os
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from gemma_ft.config.rows import RowsConfig
from gemma_ft.config.schema import AdapterConfig, ModelConfig, RunConfig


def to_tidy(config: RunConfig) -> RunConfig:
    """Give sequences their declared type and write paths out; changes the config and returns it."""
    _make_tuples(config)
    places: list[ModelConfig | RowsConfig | AdapterConfig] = [config.model, config.dataset, config.adapter]
    for section in (*places, *config.dataset.mixture.values()):
        if section.path is not None and section.path.startswith("~"):
            section.path = str(Path(section.path).expanduser())
    for section in (config.model, config.adapter):  # a run folder must find them from anywhere
        if section.path is not None and os.path.isdir(section.path):
            section.path = os.path.abspath(section.path)
    if config.output_dir.startswith("~"):
        config.output_dir = str(Path(config.output_dir).expanduser())
    return config


def to_plain(config: RunConfig) -> dict[str, Any]:
    """Return a config as mappings, lists, texts and numbers."""
    plain = _plain(asdict(config))
    assert isinstance(plain, dict)
    return plain


def _make_tuples(section: Any) -> None:
    types = get_type_hints(type(section))
    for item in fields(section):
        value = getattr(section, item.name)
        if is_dataclass(value):
            _make_tuples(value)
        elif get_origin(types[item.name]) is tuple:
            setattr(section, item.name, tuple(value))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value.replace("${", r"\${") if isinstance(value, str) else value
