"""The tests of tests/gpu, run and counted."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_parts.training import Place

_ROOT = Path(__file__).resolve().parents[2]


def tests(place: Place, name: str) -> dict[str, Any]:
    """Run pytest on tests/gpu, and return what became of each test.

    Raises:
        RuntimeError: pytest ran no test.
    """
    report = place.folder / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", "tests/gpu"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    if not cases:
        raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
    found = {case.get("name", ""): _outcome(case) for case in cases}
    counts = {kind: sum(text.startswith(kind) for text in found.values()) for kind in ("passed", "failed")}
    return {**counts, "skipped": sum(text.startswith("skipped") for text in found.values()), "tests": found}


def _outcome(case: ElementTree.Element) -> str:
    for kind, said in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (entry := case.find(kind)) is not None:
            return f"{said}: {(entry.get('message') or '').strip()[:500]}"
    return "passed"
