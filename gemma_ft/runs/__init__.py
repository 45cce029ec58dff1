"""The run folder: the only place that knows its file names."""

from gemma_ft.runs.files import read_json, write_json, write_text
from gemma_ft.runs.folder import RunFolder, Stage, State, Status, open_run

__all__ = [
    "RunFolder",
    "Stage",
    "State",
    "Status",
    "open_run",
    "read_json",
    "write_json",
    "write_text",
]
