"""The bundled model: Gemma 1 in miniature, made on this machine from a seed, the same bytes every time.

It has everything that a real checkpoint has (architecture, tied embeddings, the special tokens at Gemma's
ids, the chat template, a byte-fallback tokenizer) except knowledge, so every recipe can be tried offline.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ft.cache import cache_folder
from gemma_ft.errors import ModelError
from gemma_ft.families import END_OF_TURN, START_OF_TURN, load_chat_template

if TYPE_CHECKING:
    import torch
    from transformers import GemmaConfig, GemmaTokenizer

TINY = "bundled:tiny"
_FORMAT = "1"
"""Raised when anything below changes the bytes, so that an old cache folder is not taken for a new one."""

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
_START_OF_TURN_ID = 106
_FIRST_CHARACTER_ID = 108
_FIRST_BYTE_ID = 217
_VOCABULARY = 2048
_SEED = 20240221


def load_tiny() -> Path:
    """Return the folder of the bundled checkpoint, building it on first use.

    Raises:
        ModelError: The package whose text the tokenizer is learned from is not installed, or nothing can be
            written where it is kept.
    """
    corpus = _read_corpus()
    digest = hashlib.sha256(corpus.encode()).hexdigest()[:12]
    folder = cache_folder() / f"tiny-{_FORMAT}-{digest}"
    if not folder.exists():
        beside = _make_beside(folder)
        try:
            _save_tiny(beside, corpus)
            beside.chmod(0o755)
            os.rename(beside, folder)
        except OSError:
            if not folder.exists():  # else another process was faster, with the same bytes
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def _make_beside(folder: Path) -> Path:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ModelError(
            f"model.path=bundled:tiny is kept in {folder.parent}, which cannot be written "
            f"({error.strerror}). Name another place with XDG_CACHE_HOME."
        ) from error


def _read_corpus() -> str:
    spec = find_spec("chatterbot_corpus")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = sorted((Path(folders[0]) / "data" / "english").glob("*.yml")) if folders else []
    if not files:
        raise ModelError(
            "model.path=bundled:tiny needs the chatterbot-corpus package. Run: pip install chatterbot-corpus"
        )
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def _save_tiny(folder: Path, corpus: str) -> None:
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    tokenizer = build_tokenizer(corpus)
    config = build_config()
    tokenizer.save_pretrained(folder)
    _use_the_old_spelling(folder / "tokenizer_config.json")
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=2, eos_token_id=[1, _START_OF_TURN_ID + 1], pad_token_id=0, do_sample=False
    ).save_pretrained(folder)
    save_file(build_weights(config), folder / "model.safetensors", metadata={"format": "pt"})


def _use_the_old_spelling(path: Path) -> None:
    """Name the turn markers as every release of transformers understands them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["additional_special_tokens"] = content.pop("extra_special_tokens")
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def build_config() -> "GemmaConfig":
    """Build the configuration of the bundled model: 3.4 million parameters, Gemma 1's proportions."""
    from transformers import GemmaConfig

    config = GemmaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=8192,
        hidden_activation="gelu_pytorch_tanh",
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        tie_word_embeddings=True,
        attention_dropout=0.0,
    )
    config.architectures = ["GemmaForCausalLM"]
    config.dtype = "bfloat16"
    return config


def build_weights(config: "GemmaConfig") -> "dict[str, torch.Tensor]":
    """Draw the weights: uniform with variance 1 / fan-in, norms at their neutral value.

    Drawn as integers, which are the same on every processor, unlike a normal distribution's logarithms.
    """
    import torch
    from transformers import GemmaForCausalLM

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in GemmaForCausalLM(config).state_dict().items()}
    generator = torch.Generator().manual_seed(_SEED)
    weights = {}
    for name in sorted(shapes):
        if name == "lm_head.weight":
            continue
        if name.endswith("norm.weight"):
            weights[name] = torch.zeros(shapes[name], dtype=torch.bfloat16)
            continue
        steps = torch.randint(-(2**15), 2**15, shapes[name], generator=generator, dtype=torch.int32)
        bound = (3 / shapes[name][-1]) ** 0.5
        weights[name] = (steps.float() * (bound / 2**15)).to(torch.bfloat16)
    return weights


def build_tokenizer(corpus: str) -> "GemmaTokenizer":
    """Learn byte pairs from the corpus and lay the vocabulary out as Gemma's."""
    from transformers import GemmaTokenizer

    tokens = [*_SPECIAL, *(f"<unused{i}>" for i in range(_START_OF_TURN_ID - len(_SPECIAL)))]
    tokens += [START_OF_TURN, END_OF_TURN, "\n", "\u2581", *(chr(code) for code in range(33, 127))]
    tokens += [f"<unused{i}>" for i in range(len(tokens), _FIRST_BYTE_ID)]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    merges = _learn_merges(corpus, _VOCABULARY - len(tokens), alphabet=tokens[_FIRST_CHARACTER_ID:204])
    tokens += [left + right for left, right in merges]
    tokenizer = GemmaTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        add_bos_token=True,
        extra_special_tokens=[START_OF_TURN, END_OF_TURN],
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = load_chat_template()
    return tokenizer


def _learn_merges(corpus: str, count: int, alphabet: list[str]) -> list[tuple[str, str]]:
    """Run byte-pair training; ties go by symbol order, so the result is the same every time."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "\u2581")
    learner.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + count + 64,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
        special_tokens=[],
    )
    learner.train_from_iterator(corpus.splitlines(), trainer)
    merges, seen = [], set(alphabet)
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        if left in seen and right in seen and left + right not in seen:
            seen.add(left + right)
            merges.append((left, right))
    return merges[:count]
