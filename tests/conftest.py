"""What every test stands on: no network, a cache of its own, one thread."""

import os
import signal
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as nohup does
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices: more threads mostly wait for each other
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the tests of GPUs set it themselves


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of this session's own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny(_cache: None) -> Path:
    """The bundled checkpoint, built once for this session."""
    from gemma_ft.modeling.tiny import load_tiny

    return load_tiny()


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """A small file of conversations, as a user would bring it."""
    from program import write_chats

    return write_chats(tmp_path / "chats.jsonl")
