"""What a run has added up since it last logged, so that a checkpoint between two logs loses none of it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

_FILE = "interval.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """The sums behind the next log line; JSON keeps their every bit."""

    losses: list[float]
    """Loss added up by each process."""
    last_logged: int
    """The step of the last log line."""
    metrics: dict[str, list[float]]
    """TRL's values, one a micro-batch, the same in all processes."""
    tokens: int
    """Tokens trained on since the run began."""

    @classmethod
    def gather(cls, trainer: Any) -> "Interval":
        """Take the sums from a trainer; every process must call it."""
        losses = trainer.accelerator.gather(trainer._tr_loss.reshape(1))
        return cls(
            losses=losses.tolist(),
            last_logged=trainer._globalstep_last_logged,
            metrics=dict(trainer._metrics["train"]),
            tokens=trainer._total_train_tokens,
        )

    @classmethod
    def read(cls, checkpoint: Path) -> "Interval":
        """Read what a checkpoint keeps."""
        return cls(**json.loads((checkpoint / _FILE).read_text(encoding="utf-8")))

    def write(self, checkpoint: Path) -> None:
        """Keep it in a checkpoint that is being written."""
        (checkpoint / _FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    def restore(self, trainer: Any) -> None:
        """Give the sums back to a trainer, whose processes may have become more or fewer."""
        own = sum(self.losses) / len(self.losses)  # the log averages over processes
        if len(self.losses) == trainer.accelerator.num_processes:
            own = self.losses[trainer.accelerator.process_index]
        trainer._tr_loss = torch.tensor(own, device=trainer.args.device)
        trainer._globalstep_last_logged = self.last_logged
        trainer._metrics["train"].clear()
        trainer._metrics["train"].update(self.metrics)
        trainer._total_train_tokens = self.tokens
