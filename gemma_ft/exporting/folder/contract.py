"""Gemma's token contract on an exported folder, read as everybody else will read it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft.data.tokens.contract import find_fault, sample_sha256
from gemma_ft.data.tokens.turns import control_ids, stop_ids
from gemma_ft.errors import ExportError, first_line
from gemma_ft.exporting.merging.tensor_files import read_json
from gemma_ft.families import BOS, Family

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("gemma_ft")

_MEND = "Mend the tokenizer's files in the base's folder, then export again."


def check_contract(folder: Path, destination: Path, family: Family, trained_sha256: str) -> None:
    """Load the tokenizer of a written folder plainly and check that it is the one that was trained with.

    Args:
        folder: The folder, whole but not yet under its name.
        destination: The name it will have, for messages.
        family: The base's family.
        trained_sha256: What `sample_sha256` gave for the tokenizer of the training.

    Raises:
        ExportError: The tokenizer does not load, breaks the contract, renders other tokens than were trained,
            or generation would not stop.
    """
    tokenizer = load_checked_tokenizer(folder, destination, family)
    if sample_sha256(tokenizer) != trained_sha256:
        raise ExportError(
            f"{destination} would turn a conversation into other tokens than were trained. "
            "Export with the base that was trained on."
        )
    stops = read_json(folder / "generation_config.json").get("eos_token_id")
    if missing := [token for token in stop_ids(tokenizer) if token not in (stops or [])]:
        raise ExportError(f"{destination} would not stop at token {missing[0]}. {_MEND}")
    if tokenizer("a").input_ids[:1] != [control_ids(tokenizer)[BOS]]:
        logger.warning(
            "%s: its tokenizer puts no %s before plain text, as its base's. Put it there yourself.",
            destination,
            BOS,
        )


def load_checked_tokenizer(folder: Path, destination: Path, family: Family) -> "PreTrainedTokenizerBase":
    """Load a folder's tokenizer from this folder alone, as its users will, and check it against the family.

    Args:
        folder: The folder.
        destination: The name it will have, for messages.
        family: The base's family.

    Raises:
        ExportError: It does not load, or breaks the contract.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise whatever a file brings them to
        raise ExportError(
            f"{destination} would have no readable tokenizer ({first_line(error)}). {_MEND}"
        ) from error
    if fault := find_fault(tokenizer, family):
        raise ExportError(f"{destination} would have {fault}. {_MEND}")
    return tokenizer
