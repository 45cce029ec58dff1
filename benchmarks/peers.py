"""Make the environments of the programs that we are measured against: `python benchmarks/peers.py FOLDER`.

Each peer gets a virtual environment of its own, FOLDER/trl and so on, with the torch of this one, and is
driven by its own command line. Every benchmark takes `--peers FOLDER`, and says which peer it leaves out.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
COMMANDS = {"trl": "trl", "llamafactory": "llamafactory-cli", "litgpt": "litgpt"}
"""Peers, and what their command lines are called."""
_LLAMAFACTORY, _LITGPT = "llamafactory==0.9.5", "litgpt==0.5.13"


def find_peer(folder: Path | None, name: str) -> Path | None:
    """Return the command line of a peer, or None where it was not made."""
    command = folder and folder.resolve() / name / "bin" / COMMANDS[name]
    return command if command and command.exists() else None


def say_missing(folder: Path | None, names: Sequence[str]) -> list[str]:
    """Return a line for each peer that is left out."""
    where = f"in {folder}" if folder else "without --peers FOLDER"
    return [
        f"left out: {name}, not found {where}. Make it with: python benchmarks/peers.py FOLDER --only {name}"
        for name in names
        if find_peer(folder, name) is None
    ]


def requirements_of(listed: Sequence[str], without: Sequence[str]) -> list[str]:
    """Return what a package asks for by itself: no extras, and none of those that are named."""
    names = {line: re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in listed}
    return [line for line in listed if "extra ==" not in line and names[line] not in without]


def make_trl(python: Path) -> None:
    """Install TRL with every version as this project pins it."""
    _pip(python, "-c", str(CONSTRAINTS), "torch", "trl", "peft")


def make_llamafactory(python: Path) -> None:
    """Install LLaMA-Factory around the CPU's torch, without torchvision and torchaudio.

    Both would bring another torch. It runs without the one; of the other it asks only the version.
    """
    _pip(python, "--no-deps", _LLAMAFACTORY)
    ask = "import importlib.metadata as m, json; print(json.dumps(m.requires('llamafactory')))"
    said = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout
    _pip(python, _torch(), *requirements_of(json.loads(said), ("torch", "torchvision", "torchaudio")))
    (_site_packages(python) / "torchaudio.py").write_text('"""Stands in."""\n__version__ = "2.4.0"\n')


def make_litgpt(python: Path) -> None:
    """Install litgpt, and requests, which its command line imports without asking for it."""
    _pip(python, _torch(), _LITGPT, "requests")


MAKERS: dict[str, Callable[[Path], None]] = {
    "trl": make_trl,
    "llamafactory": make_llamafactory,
    "litgpt": make_litgpt,
}


def make(folder: Path, name: str) -> None:
    """Make the environment of a peer beside its place, so that none stands there half made."""
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    try:
        venv.create(target, with_pip=True)
        MAKERS[name](target / "bin" / "python")
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _pip(python: Path, *words: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "--quiet", *words], check=True)


def _torch() -> str:
    return f"torch=={version('torch').partition('+')[0]}"


def _site_packages(python: Path) -> Path:
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(
        subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()
    )


def main() -> None:
    """Make the environments that are asked for and not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where environments go; about 1.5 GB each")
    parser.add_argument("--only", nargs="+", choices=MAKERS, default=list(MAKERS))
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in asked.only:
        if find_peer(folder, name) is None:
            try:
                make(folder, name)
            except subprocess.CalledProcessError as error:
                sys.exit(f"{name} could not be installed: pip ended with {error.returncode}.")
        print(f"{name}: {find_peer(folder, name)}", flush=True)


if __name__ == "__main__":
    main()
