"""The run folder: the only place that knows its file names."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from gemma_ft import stopping
from gemma_ft.config.schema import ModelConfig
from gemma_ft.errors import RunError
from gemma_ft.locks.folder_lock import FolderLock
from gemma_ft.locks.holder import Holder, read_holder
from gemma_ft.runs.files import json_text, read_json, write_in_place, write_text

_FULL = (errno.ENOSPC, errno.EDQUOT)


class State(StrEnum):
    """How a run stands."""

    running = "running"
    interrupted = "interrupted"
    failed = "failed"
    finished = "finished"


class Stage(StrEnum):
    """How far a run has come."""

    data = "data"
    training = "training"
    trained = "trained"
    exporting = "exporting"
    finished = "finished"


@dataclass(frozen=True, slots=True)
class Status:
    """The content of status.json."""

    state: State
    stage: Stage
    reason: str | None = None


class RunFolder:
    """One run on disk: paths, and the small files that say how it stands."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Point to a run folder, which need not exist yet."""
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.loss_head = self.path / "loss_head.json"
        self.cpu_matmul = self.path / "cpu_matmul.json"
        self.data = self.path / "data.json"
        self.dropped = self.path / "dropped.jsonl"
        self.metrics = self.path / "metrics.jsonl"
        self.status = self.path / "status.json"
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.model = self.path / "model"
        self.trained_record = self.path / "trained.json"
        self.merged = self.path / "merged"
        self.certificate_rows = self.path / "certificate_rows.json"
        self.certificate = self.path / "certificate.json"
        self._lock = FolderLock(self.path / ".lock", stopping.interrupt)

    @property
    def trained(self) -> Path:
        """The folder of what was trained: the adapter, or the model of a full fine-tune."""
        return self.adapter if self.adapter.is_dir() else self.model

    @property
    def locked(self) -> bool:
        """Whether this process has the folder for itself."""
        return self._lock.held

    def lock(self) -> None:
        """Keep other processes from writing here; the lock goes with this one, however it ends.

        Should it be lost, since this process gave no sign of life for long, the process is asked to stop.

        Raises:
            RunError: Another process is writing here, or nobody can.
        """
        if not self.locked:
            self._lock.acquire()

    def unlock(self) -> None:
        """Let other processes write here again."""
        self._lock.release()

    def check_lock(self) -> None:
        """Check that no other process has taken the folder over.

        Raises:
            RunError: One has.
        """
        self._lock.check()

    def holder(self) -> Holder | None:
        """Return the living process that works in the folder, so that a status `running` can be believed."""
        return read_holder(self._lock.path)

    def read_status(self) -> Status | None:
        """Read how the run stands, or None where no run has begun."""
        if not self.status.is_file():
            return None
        content = read_json(self.status)
        try:
            return Status(State(content["state"]), Stage(content["stage"]), content.get("reason"))
        except (KeyError, ValueError) as error:
            raise RunError(
                f"{self.status} says {content}, which is no status. Start anew with --overwrite."
            ) from error

    def write_status(self, state: State, stage: Stage, reason: str | None = None) -> None:
        """Record how the run stands, on a full disk too.

        Raises:
            RunError: Another process has taken the folder over: it is not ours to say.
        """
        self.check_lock()
        text = json_text(asdict(Status(state, stage, reason)))
        try:
            write_text(self.status, text)
        except OSError as error:
            if error.errno not in _FULL or not write_in_place(self.status, text):
                raise

    def step_folder(self, step: int) -> Path:
        """Name the checkpoint of an optimizer step."""
        return self.checkpoints / f"step-{step:06d}"

    def steps(self) -> list[int]:
        """List the optimizer steps that have a whole checkpoint, oldest first."""
        return sorted(
            int(path.name[5:]) for path in self.checkpoints.glob("step-*") if path.name[5:].isdigit()
        )

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl, whole or not at all; it never joins a torn one.

        Raises:
            RunError: Another process has taken the folder over.
            OSError: The disk is full, or refuses.
        """
        self.check_lock()
        with self.metrics.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            line = (b"" if file.read(1) in (b"", b"\n") else b"\n") + json.dumps(record).encode() + b"\n"
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise

    def flush_metrics(self) -> None:
        """Have the disk keep what is logged so far, which a checkpoint counts on."""
        if self.metrics.is_file():
            with self.metrics.open("rb+") as file:
                os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl; a line torn by a crash is left out."""
        return list(self._metric_lines())

    def _metric_lines(self) -> Iterator[dict[str, Any]]:
        if not self.metrics.is_file():
            return
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(json.JSONDecodeError):
                if isinstance(record := json.loads(line), dict):
                    yield record

    def held_out_losses(self) -> list[float]:
        """List the losses on the held-out rows, from before training to its end."""
        losses = (record.get("eval_loss") for record in self.read_metrics())
        return [loss for loss in losses if isinstance(loss, int | float)]  # the file may have been edited

    def forget_metrics_after(self, logged: int) -> int:
        """Drop the lines beyond the checkpoint that a run goes on from.

        Args:
            logged: How many lines had been logged when it was saved; samples are not counted. 0 drops all.

        Returns:
            How many of them are not there.
        """
        kept, seen = [], 0
        for record in self._metric_lines() if logged else ():
            if "sample" not in record:
                seen += 1
            if seen <= logged and record.get("sample") != "after":
                kept.append(record)
        write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))
        return max(logged - seen, 0)

    def pin(self, model: ModelConfig) -> ModelConfig:
        """Name the commit of the base that this run began with, where only a branch or nothing is named."""
        base = read_json(self.data).get("model") if self.data.is_file() else None
        if not isinstance(base, dict) or base.get("path") != model.path:
            return model
        if not isinstance(base.get("revision"), str):
            return model
        return replace(model, revision=base["revision"])

    def set_aside(self) -> Path:
        """Rename the folder to <name>.old-N and return where it is now."""
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.path.rename(old)
        return old


def open_run(path: str | os.PathLike[str]) -> RunFolder:
    """Open an existing run folder.

    Raises:
        RunError: There is no run at this path.
    """
    run = RunFolder(path)
    if not run.config.is_file():
        raise RunError(
            f"{path} is no run folder: it has no config.yaml. Give the folder of a run, like outputs/x."
        )
    return run
