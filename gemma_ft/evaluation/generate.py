"""Answers from the base, the adapter or the merged model of a run."""

import logging
import math
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.config.schema import ModelConfig, QuantizationConfig
from gemma_ft.errors import ConfigError, RunError, first_line
from gemma_ft.runs import RunFolder, Stage, open_run, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


logger = logging.getLogger("gemma_ft")


class Which(StrEnum):
    """The model of a run that answers."""

    auto = "auto"
    base = "base"
    adapter = "adapter"
    merged = "merged"


def generate(
    run: RunFolder | str | os.PathLike[str],
    prompt: str,
    *,
    which: Which | str = Which.auto,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    raw: bool | None = None,
) -> str:
    """Answer a prompt.

    Args:
        run: A run folder, or a model: hub id, local folder or bundled:tiny.
        prompt: What the user says; with `raw`, text to go on with.
        which: Of a run: base, adapter or merged; auto takes the merged model where there is one.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 takes the likeliest token each time; above it, tokens are drawn.
        raw: Put the prompt into no turn; None decides as the run was trained, on conversations or plain text.

    Raises:
        GemmaFTError: There is no such run or model, or the run has no such part.
    """
    _check_request(prompt, max_new_tokens, temperature)
    model, tokenizer = load_for_answers(run, Which(which))
    if raw is None:
        raw = learned_plain_text(run if isinstance(run, RunFolder) else RunFolder(run))
    return answer(model, tokenizer, prompt, max_new_tokens=max_new_tokens, temperature=temperature, raw=raw)


def _check_request(prompt: str, max_new_tokens: int, temperature: float) -> None:
    problems = []
    if not prompt.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        problems.append("prompt= is no readable text. Type it in UTF-8.")
    if max_new_tokens < 1:
        problems.append(f"--max-new-tokens={max_new_tokens} answers nothing. Give at least 1.")
    if not 0 <= temperature < math.inf:
        problems.append(f"--temperature={temperature} must be 0 or above. 0 takes the likeliest token.")
    if problems:
        raise ConfigError(*problems)


def learned_plain_text(run: RunFolder) -> bool:
    """Tell whether a run was trained on plain text only, so that a prompt is text to go on with."""
    return run.data.is_file() and bool(read_json(run.data).get("plain_text"))


def load_for_answers(
    run: RunFolder | str | os.PathLike[str], which: Which
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """Load a model that answers, with its tokenizer.

    Raises:
        GemmaFTError: There is no such run or model, or the run has no such part.
    """
    from gemma_ft.config.compose import load_config

    path = str(run.path if isinstance(run, RunFolder) else run)
    if not (Path(path) / "config.yaml").is_file():
        _check_meant_as_model(path)
        if which not in (Which.auto, Which.base):
            raise RunError(
                f"{path} is no run folder, so it has no {which} model. Give a run, or leave the choice out."
            )
        return _load(ModelConfig(path=path), QuantizationConfig())
    folder = open_run(path)
    config = load_config(folder.config)
    part = _choose(folder, which)
    status = folder.read_status()
    if part is not None and status is not None and status.stage in (Stage.data, Stage.training):
        logger.warning("%s is of before its run was trained further, which is not done yet.", part)
    if part in (folder.merged, folder.model):
        return _load(ModelConfig(path=str(part)), QuantizationConfig())
    # Without the run's dtype and attention: precision goes by this machine.
    base = ModelConfig(path=config.model.path, revision=config.model.revision)
    model, tokenizer = _load(folder.pin(base), config.quantization)
    if part == folder.adapter:
        from peft import PeftModel
        from safetensors import SafetensorError

        try:
            model = PeftModel.from_pretrained(model, part, local_files_only=True)
        except (ValueError, OSError, RuntimeError, SafetensorError) as error:
            raise RunError(
                f"{part} is no whole adapter ({first_line(error)}). Train again with --overwrite."
            ) from error
    return model, tokenizer


def _check_meant_as_model(path: str) -> None:
    """Tell a mistyped folder from a hub id: the folder that it would stand in exists here."""
    parent = Path(path).expanduser().parent
    if not Path(path).expanduser().exists() and parent != Path() and parent.is_dir():
        raise RunError(f"{path} is no run folder and no model. Look what is there: ls {parent}")


def _choose(run: RunFolder, which: Which) -> Path | None:
    """Return the folder of the part of a run that answers; None stands for its base."""
    if which is Which.base:
        return None
    parts = {Which.merged: (run.merged,), Which.adapter: (run.adapter,)}
    for folder in parts.get(which, (run.merged, run.adapter, run.model)):
        if folder.is_dir():
            return folder
    if which is Which.merged:
        raise RunError(f"{run.path} has no merged model. Make it with: python -m gemma_ft export {run.path}")
    if run.model.is_dir():
        raise RunError(f"{run.path} has no adapter: every weight was trained. Leave --model out.")
    missing = "adapter" if which is Which.adapter else "trained model yet"
    raise RunError(f"{run.path} has no {missing}. Train it to the end first: the same line goes on.")


def _load(
    model: ModelConfig, quantization: QuantizationConfig
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    from gemma_ft.modeling.checkpoint import find_checkpoint, load_tokenizer
    from gemma_ft.modeling.libraries import quiet_libraries
    from gemma_ft.modeling.loading import load_model
    from gemma_ft.modeling.precision import read_device, resolve_precision

    quiet_libraries()
    checkpoint = find_checkpoint(model)
    precision = resolve_precision(model, checkpoint.family, read_device())
    loaded = load_model(checkpoint, precision, quantization, dtype=precision.torch_dtype)
    return loaded, load_tokenizer(checkpoint)


def answer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    raw: bool = False,
) -> str:
    """Let a loaded model answer, and leave it in the mode it was in."""
    import torch

    from gemma_ft.data.tokens.encoding import prompt_ids, text_ids
    from gemma_ft.data.tokens.turns import stop_ids

    ids = text_ids(tokenizer, prompt) if raw else prompt_ids(tokenizer, [{"role": "user", "content": prompt}])
    prompt_BL = torch.tensor([ids], device=model.device)
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature}
    was_training = model.training
    model.eval()
    with torch.no_grad():
        answer_BL = model.generate(
            input_ids=prompt_BL,
            attention_mask=torch.ones_like(prompt_BL),
            max_new_tokens=max_new_tokens,
            eos_token_id=stop_ids(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            **sampling,
        )
    model.train(was_training)
    text: str = tokenizer.decode(answer_BL[0, len(ids) :], skip_special_tokens=True)
    return text.strip()
