"""Accounts: whether a token or a key is set. No server is asked and no token is shown."""

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

from gemma_ft.diagnosis.finding import Finding, Level
from gemma_ft.training.trackers.weights_and_biases import has_key

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_NO = ("", "0", "false", "off", "no", "n", "f")


def find_hub() -> Iterator[Finding]:
    """Say whether the hub's token is set, and whether the hub may be asked at all."""
    from huggingface_hub import get_token

    named = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
    logged_in = get_token() is not None
    yield Finding(
        topic="hub",
        level=Level.ok if logged_in else Level.note,
        says=f"a token is set ({named or 'by hf auth login'}); whether it is accepted is not asked"
        if logged_in
        else "no token: Gemma's weights need an account that has accepted the licence",
        cure="" if logged_in else "hf auth login",
        facts={"logged_in": logged_in},
    )
    for name in _OFFLINE:
        if os.environ.get(name, "").lower() not in _NO:
            yield Finding(
                topic="hub",
                level=Level.note,
                says=f"{name}={os.environ[name]}: only what is in the cache is used",
                cure=f"unset {name}",
                facts={"offline": name},
            )


def find_wandb() -> Iterator[Finding]:
    """Say whether tracking=wandb would reach its server."""
    mode = os.environ.get("WANDB_MODE", "")
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    keyed = bool(os.environ.get("WANDB_API_KEY")) or has_key(host)
    online = keyed and mode not in ("offline", "dryrun")
    why = f"WANDB_MODE={mode}" if keyed else "no key is set"
    yield Finding(
        topic="wandb",
        level=Level.ok if online else Level.note,
        says=f"a key for {host} is set" if online else f"tracking=wandb stays offline: {why}",
        cure="" if keyed else "wandb login",
        facts={"key": keyed, "online": online},
    )
