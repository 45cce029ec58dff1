"""What a failure that is no fault of the program means to the user, in one line."""

import errno

from gemma_ft.config.schema import RunConfig
from gemma_ft.errors import TrainingError
from gemma_ft.runs import RunFolder


def explain_failure(error: BaseException, config: RunConfig, run: RunFolder) -> TrainingError | None:
    """Word a failure that the user can do something about; None leaves it as it is."""
    if _disk_is_full(error):
        return TrainingError(
            f"{run.path} does not fit on its disk. Free some space; the same line then goes on."
        )
    return None


def _disk_is_full(error: BaseException) -> bool:
    """Recognise a full disk, which torch's writer reports in words of its own."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error)
