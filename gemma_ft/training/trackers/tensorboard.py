"""TensorBoard: event files in the run folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ft.training.trackers.tracker import Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard(Tracker):
    """Write event files; a run that goes on writes into the same folder."""

    name = "tensorboard"

    def __init__(self, folder: Path, settings: str) -> None:
        """Wait for the first metrics, which tell where the run goes on.

        Args:
            folder: Where event files are written.
            settings: The run's configuration, shown as text.
        """
        super().__init__()
        self.folder = folder
        self.settings = settings
        self._writer: SummaryWriter | None = None

    def send(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of a step to disk."""
        if self._writer is None:
            self._writer = self._start(step, trains="train/loss" in metrics)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, exit_code: int) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _start(self, step: int, *, trains: bool) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard then leaves out what an earlier start wrote beyond the checkpoint that the run goes on
        # from. An evaluation alone has the step of that checkpoint itself, whose loss is to stay.
        beyond = step if trains else step + 1
        resumes = any(self.folder.glob("events.*"))
        options: dict[str, Any] = {"purge_step": beyond} if resumes else {}
        writer = SummaryWriter(str(self.folder), **options)
        if not resumes:
            writer.add_text("config", f"```yaml\n{self.settings}```")
        return writer
