"""Where a checkpoint lies and what it is, known before its weights are touched."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft import hub
from gemma_ft.config.schema import ModelConfig
from gemma_ft.errors import ModelError, first_line
from gemma_ft.families import END_OF_TURN, START_OF_TURN, Family, family_of, load_chat_template
from gemma_ft.modeling.imports import bring_back, seldom_collected
from gemma_ft.modeling.tiny import TINY, load_tiny

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SMALL_FILES = ("*.json", "chat_template.jinja", "tokenizer.model")
_WEIGHTS = ("*.safetensors",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A causal-LM text Gemma on this machine or on the hub."""

    path: str
    """The value of `model.path`."""
    folder: Path
    """Local folder with config and tokenizer; the weights join it when fetched."""
    config: dict[str, Any]
    """Content of config.json."""
    family: Family
    revision: str | None
    """Commit of the hub repository; None for a local folder."""

    @property
    def hub_id(self) -> str | None:
        """The hub repository, where it comes from one."""
        return self.path if self.revision else None

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""
        return int(self.config.get("max_position_embeddings", self.family.context_length))


def find_checkpoint(model: ModelConfig) -> Checkpoint:
    """Locate a checkpoint and read what it is; of a hub repository only the small files are fetched.

    Raises:
        HubError: The repository cannot be read; the message says what is missing.
        ModelError: It is no causal-LM text Gemma.
    """
    if model.path == TINY:
        folder, revision = load_tiny(), None
    elif Path(model.path).expanduser().is_dir():
        folder, revision = Path(model.path).expanduser().resolve(), None
    else:
        hub.fetch_file(model.path, "config.json", key="model.path", revision=model.revision)
        folder = hub.fetch_snapshot(
            model.path, key="model.path", revision=model.revision, patterns=_SMALL_FILES
        )
        revision = folder.name
    config = _read_config(folder, model.path)
    if config.get("quantization_config"):  # stored as bitsandbytes does
        bring_back("bitsandbytes")
    return Checkpoint(
        path=model.path, folder=folder, config=config, family=family_of(config, model.path), revision=revision
    )


def _read_config(folder: Path, path: str) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"model.path={path} has no config.json. Give the folder of a whole checkpoint.")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"model.path={path} has a config.json that is not JSON ({error}). Fetch it again."
        ) from error
    return config


def fetch_weights(checkpoint: Checkpoint) -> Path:
    """Bring the weights to this machine and return the folder that holds them.

    Raises:
        HubError: They cannot be downloaded.
        ModelError: There are no safetensors.
    """
    folder = checkpoint.folder
    if checkpoint.hub_id:
        folder = hub.fetch_snapshot(
            checkpoint.hub_id,
            key="model.path",
            revision=checkpoint.revision,
            patterns=(*_SMALL_FILES, *_WEIGHTS),
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model.path={checkpoint.path} has no safetensors, and pickles can run code. Where you trust "
            "their makers, load them with AutoModelForCausalLM and give the folder of its save_pretrained."
        )
    return folder


@seldom_collected()
def load_tokenizer(checkpoint: Checkpoint) -> "PreTrainedTokenizerFast":
    """Load the tokenizer, made whole where the base's is not: with Gemma's chat template and turn tokens."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.path={checkpoint.path} has no readable tokenizer ({first_line(error)}). "
            "Give the folder of a whole checkpoint."
        ) from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = load_chat_template()
    _register_turns(tokenizer)
    return tokenizer


def _register_turns(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Make the turn tokens tokens of their own: Gemma 1's bases have them in the vocabulary only."""
    from tokenizers import AddedToken

    backend = tokenizer.backend_tokenizer
    added = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    missing = [
        AddedToken(token, special=True, normalized=False)
        for token in (START_OF_TURN, END_OF_TURN)
        if token not in added and backend.token_to_id(token) is not None
    ]
    if missing:  # by this name, since only so a saved tokenizer still has them when it is loaded
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
