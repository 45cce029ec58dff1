"""The errors a user can meet, each one line with what to do, and the exit code each ends in."""


class GemmaFTError(Exception):
    """Tell the user, in one line, what cannot work and what to do."""

    exit_code = 1
    alike = False
    """Whether all processes of a launch meet it alike, so that one of them tells it."""


class ConfigError(GemmaFTError):
    """Carry every problem of one configuration, so that one run of the program shows them all."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Interrupted(KeyboardInterrupt):
    """End a run that was asked to stop; what it had done is on disk, and the same line goes on."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.exit_code = exit_code

    def anew(self) -> "Interrupted":
        """Return one to raise: what is raised keeps the tensors of its frames, and a thread may keep this."""
        return Interrupted(self.reason, self.exit_code)


class ModelError(GemmaFTError):
    """Say why a checkpoint or tokenizer cannot be used."""

    exit_code = 2


class HubError(GemmaFTError):
    """Say what stands between this machine and a hub repository."""

    exit_code = 2


class DataError(GemmaFTError):
    """Name the file or data set, the row and the cause."""

    exit_code = 2


class RunError(GemmaFTError):
    """Say why a run folder cannot be used for what was asked."""

    exit_code = 2


class TrainingError(GemmaFTError):
    """Say why a run that had started could not go on."""


class ExportError(GemmaFTError):
    """Say why a checkpoint was not written; nothing stands under its final name."""


def first_line(error: BaseException) -> str:
    """Return the first line of what a library's error says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
