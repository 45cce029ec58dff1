"""Say in one word how a run stands: `python -m gemma_ft.launching.standing RUN`.

Launch files ask this when the processes have ended, since the exit code of torchrun is 1 whatever happened.
"""

import json
import sys
from pathlib import Path

DIED = "has died. The same line again goes on from"
"""In the reason of a run that has lost a process or a machine: nothing is wrong with the run itself."""


def read_standing(run: str | Path) -> str:
    """Return a run's state: running, interrupted, killed, failed or finished; none where it has not begun.

    `running` and `killed` are of a run that was ended from outside, with or without somebody left to say so.
    """
    try:
        status = json.loads(Path(run, "status.json").read_text(encoding="utf-8"))
        state, reason = str(status["state"]), str(status.get("reason"))
    except (OSError, ValueError, KeyError, TypeError):
        return "none"
    return "killed" if state == "failed" and DIED in reason else state


if __name__ == "__main__":
    print(read_standing(sys.argv[1]))
