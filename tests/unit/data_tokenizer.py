"""A small tokenizer of Gemma's kind: byte-fallback BPE with Gemma's special tokens at Gemma's ids."""

import os
import string
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gemma_ft import families
from gemma_ft.modeling.checkpoint import Checkpoint, load_tokenizer

SPECIAL = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
START, END = 106, 107
MERGES = [
    ("m", "o"),
    ("mo", "d"),
    ("mod", "e"),
    ("mode", "l"),
    ("u", "s"),
    ("us", "e"),
    ("use", "r"),
    ("t", "h"),
    ("th", "e"),
    ("\u2581", "the"),
    ("\u2581", "\u2581"),
    ("\n", "\n"),
    ("H", "i"),
    ("o", "k"),
]


def find_tokenizers():
    """Name the folders of real tokenizers that the tests are asked to use as well."""
    return [folder for folder in os.environ.get("GEMMA_TOKENIZERS", "").split(":") if folder]


def load_folder(folder):
    """Load a tokenizer from a folder as a run does, with the family whose ids it has."""
    family = families.FAMILIES[0]
    checkpoint = Checkpoint(path=folder, folder=Path(folder), config={}, family=family, revision=None)
    tokenizer = load_tokenizer(checkpoint)
    start = tokenizer.convert_tokens_to_ids(families.START_OF_TURN)
    return tokenizer, next(family for family in families.FAMILIES if family.start_of_turn_id == start)


def build_tokenizer(merges=()):
    """Build it; further merges may cross the border between a turn's head and its text."""
    tokens = [*SPECIAL, *(f"<unused{i}>" for i in range(101)), families.START_OF_TURN, families.END_OF_TURN]
    tokens += ["\n", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    tokens += list(string.ascii_letters + string.digits + ".,:;!?<>_/'\"()[]{}-+=\u00e9")
    merges = [*MERGES, *merges]
    tokens += [a + b for a, b in merges]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    assert vocab[families.START_OF_TURN] == START
    assert vocab[families.END_OF_TURN] == END
    model = models.BPE(
        vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True, ignore_merges=False
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    control = [*SPECIAL, families.START_OF_TURN, families.END_OF_TURN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        mask_token="<mask>",
        chat_template=families.load_chat_template(),
    )
