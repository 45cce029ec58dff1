"""Weights & Biases: online where a key is set and the server answers, else offline."""

import logging
import netrc
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gemma_ft.errors import ConfigError
from gemma_ft.training.trackers.tracker import Tracker

logger = logging.getLogger("gemma_ft")

INIT_SECONDS = 4.0
"""How long the server may take to accept a run."""
FINISH_SECONDS = 4.0
"""How long the last metrics may take to be sent; both together stay below the 10 s that are promised."""

_STEP = "train/global_step"


class WeightsAndBiases(Tracker):
    """Log to a run of Weights & Biases; a run that goes on is the same run there."""

    name = "wandb"

    def __init__(self, shown: Path, run: Any) -> None:
        """Take a run that has been started.

        Args:
            shown: The run folder, as the user names it.
            run: What `wandb.init` returned.
        """
        super().__init__()
        self._shown = shown
        self._run = run
        run.define_metric(_STEP)
        run.define_metric("*", step_metric=_STEP)

    def send(self, step: int, metrics: dict[str, float]) -> None:
        """Hand the metrics of a step to wandb's own process, which waits for the network if anybody must."""
        self._run.log({**metrics, _STEP: step})

    def finish(self, exit_code: int) -> None:
        """Wait a little for what is not sent yet, and say how to send the rest."""
        import wandb

        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            logger.info(
                "tracking=wandb: not everything was sent; later: wandb sync --include-online %s/wandb/run-*",
                self._shown,
            )
        finally:
            wandb.teardown(exit_code)


def open_wandb(shown: Path, project: str, name: str, settings: dict[str, Any]) -> Tracker:
    """Start a run, or go on with the one that this folder has begun.

    Args:
        shown: The run folder, as the user names it.
        project: The project that the run is filed under.
        name: The run's name.
        settings: The run's configuration.

    Raises:
        ConfigError: The server refuses the key or the project.
    """
    import wandb

    folder = shown.resolve() / "wandb"
    folder.mkdir(exist_ok=True)
    os.environ |= {
        "WANDB_CACHE_DIR": str(folder / "cache"),  # its process logs there, else in the home folder
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DEBUG": "false",  # with it, that log holds the key
        "WANDB_CORE_DEBUG": "false",
    }
    wandb.teardown()  # what an earlier run of this process has set up holds for good otherwise
    try:
        return _open(shown, folder, _settings(folder, project, name), settings)
    except Exception:
        wandb.teardown()
        raise


def _open(shown: Path, folder: Path, fixed: dict[str, Any], settings: dict[str, Any]) -> Tracker:
    """Start online where that is possible, else offline."""
    import wandb

    known = wandb.setup(wandb.Settings(**fixed)).settings
    if known.mode == "disabled":
        wandb.teardown()
        return Tracker()
    reason = _why_offline(known)
    if reason is None:
        try:
            return WeightsAndBiases(shown, _start(folder, fixed, settings))
        except wandb.Error as error:
            reason = _told(error, urlsplit(known.base_url).netloc, fixed["project"])
    logger.info(
        "tracking=wandb: %s, so it stays offline; later: wandb sync %s/wandb/offline-*", reason, shown
    )
    return WeightsAndBiases(
        shown, wandb.init(settings=wandb.Settings(**fixed, mode="offline"), config=settings)
    )


def _settings(folder: Path, project: str, name: str) -> dict[str, Any]:
    """Say how wandb behaves: bounded, silent, and without what it would gather by itself."""
    return {
        "root_dir": str(folder.parent),
        "project": project,
        "run_name": name,
        "run_id": _run_id(folder),
        "resume": "allow",
        "reinit": "finish_previous",
        "init_timeout": INIT_SECONDS,
        "finish_timeout": FINISH_SECONDS,
        "finish_timeout_raises": True,
        "silent": True,
        "symlink": False,
        "console": "off",
        "program": "gemma_ft",
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "x_disable_meta": True,  # the command line, the host and the user
        "x_disable_machine_info": True,
        "x_disable_viewer": True,  # a question of its own, which waits for 10 s
        "x_save_requirements": False,
        "x_log_level": logging.INFO,
    }


def _run_id(folder: Path) -> str:
    """Take the id of the run that was begun here, which the names of its folders end with, or a new one."""
    begun = sorted(folder.glob("*run-*-*"))
    return begun[-1].name.rpartition("-")[2] if begun else uuid.uuid4().hex[:8]


def _why_offline(known: Any) -> str | None:
    """Say what keeps wandb from asking its server; None where nothing does.

    Raises:
        ConfigError: The user forbids to stay offline, but there is no key.
    """
    if known.mode in ("offline", "dryrun"):
        return f"WANDB_MODE={known.mode}"
    if known.api_key or known.identity_token_file or has_key(urlsplit(known.base_url).netloc):
        return None
    if os.environ.get("WANDB_MODE"):
        raise ConfigError(
            f"tracking=wandb has no key, but WANDB_MODE={os.environ['WANDB_MODE']} forbids to stay offline. "
            "Run `wandb login` or set WANDB_API_KEY, or unset WANDB_MODE."
        )
    return "no key is set"


def has_key(host: str) -> bool:
    """Tell whether netrc holds a key for a server."""
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _start(folder: Path, fixed: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Start a run on the server; where it does not come about, nothing of it stays."""
    import wandb

    before = set(folder.glob("run-*"))
    try:
        return wandb.init(settings=wandb.Settings(**fixed), config=settings)
    except wandb.Error:
        wandb.teardown()
        for begun in set(folder.glob("run-*")) - before:
            shutil.rmtree(begun, ignore_errors=True)
        raise


def _told(error: Exception, host: str, project: str) -> str:
    """Say why a server that could not be used is not; wandb's message is the only place that tells.

    Raises:
        ConfigError: It refuses the key or the project, which waiting would not mend.
    """
    import wandb

    message = " ".join(str(error).split())
    status = re.search(r"returned error (\d+)", message)
    if isinstance(error, wandb.errors.AuthenticationError) or (status and status[1] == "401"):
        raise ConfigError(
            f"tracking=wandb is refused: {host} does not accept the key in use. "
            "Renew it: run `wandb login` or set WANDB_API_KEY."
        ) from None
    if status and status[1] in ("403", "404"):
        raise ConfigError(
            f"tracking.project={project} is refused by {host} to this account. "
            "Name another one, or say whose it is with WANDB_ENTITY."
        ) from None
    return f"{host} does not answer"
