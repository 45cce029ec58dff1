"""Names that transformers accepts, read from its source, so that checking one imports nothing heavy."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def optimizer_names() -> tuple[str, ...]:
    """Return the values of `optim`; empty where they cannot be told."""
    return _values_of("training_args.py", "OptimizerNames")


def scheduler_names() -> tuple[str, ...]:
    """Return the values of `lr_scheduler_type`; empty where they cannot be told."""
    return _values_of("trainer_utils.py", "SchedulerType")


@cache
def _values_of(file: str, enum: str) -> tuple[str, ...]:
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        return ()
    try:
        source = (Path(spec.origin).parent / file).read_text(encoding="utf-8")
    except OSError:
        return ()
    body = re.search(rf"^class {enum}\(.*?\):\n(.*?)(?=^\S)", source, re.DOTALL | re.MULTILINE)
    return tuple(re.findall(r'^    [A-Z0-9_]+ = "([^"]+)"', body.group(1), re.MULTILINE)) if body else ()
