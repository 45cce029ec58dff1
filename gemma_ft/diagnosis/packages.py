"""Packages: which are needed, which are there, and whether their versions serve."""

import platform
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from gemma_ft.diagnosis.finding import Finding, Level

_OPTIONAL = {
    "rensa": "dataset.near_duplicates",
    "gguf": "export.formats=[gguf_q8_0] and its like",
    "tensorboard": "tracking=tensorboard",
    "trackio": "tracking=trackio",
}
_FLASH = "pip install flash-attn --no-build-isolation"


def find_python() -> Iterator[Finding]:
    """Name the interpreter and the system."""
    told = f"Python {platform.python_version()} ({sys.executable}) on {platform.platform()}"
    yield Finding(topic="python", says=told, facts={"python": platform.python_version()})


def find_packages() -> Iterator[Finding]:
    """Compare every package that is needed with its bounds."""
    needed = _requirements()
    if not needed:
        yield Finding(
            topic="packages",
            level=Level.warning,
            says="gemma_ft itself is not installed, so what it needs is not known",
            cure="pip install -e . (in its folder)",
        )
    for line in needed:
        if "extra ==" not in line:
            yield _compare(line)


def asked_for(name: str) -> str:
    """Write a package with its bounds, as pip takes it."""
    return f'"{name}{dict(_split(line) for line in _requirements()).get(name, "")}"'


def _requirements() -> list[str]:
    """List what our own metadata asks for, and what a checkout asks for since it was installed, if ever."""
    try:
        installed = metadata.requires("gemma_ft") or []
    except metadata.PackageNotFoundError:
        installed = []
    known = {_split(line)[0] for line in installed}
    return installed + [line for line in _requirements_of_checkout() if _split(line)[0] not in known]


def _requirements_of_checkout() -> list[str]:
    try:
        text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return []
    project = tomllib.loads(text).get("project", {})
    if project.get("name") != "gemma_ft":
        return []
    extras = project.get("optional-dependencies", {}).items()
    more = [f'{line}; extra == "{name}"' for name, lines in extras for line in lines]
    return [*project.get("dependencies", []), *more]


def _compare(line: str) -> Finding:
    name, bounds = _split(line)
    asked = f"{name}{bounds}"
    found = installed_version(name)
    if found is None:
        return _package(name, Level.error, f"{name} is missing ({bounds or 'any'})", asked, found)
    verdict = _verdict(bounds, found)
    if verdict:
        return _package(name, Level.error, f"{name} {found} is {verdict} ({bounds})", asked, found)
    return _package(name, Level.ok, f"{name} {found} ({bounds or 'any'})", "", found)


def _package(name: str, level: Level, says: str, asked: str, found: str | None) -> Finding:
    return Finding(
        topic="packages",
        level=level,
        says=says,
        cure=f'pip install "{asked}"' if asked else "",
        facts={"package": name, "version": found},
    )


def find_optional() -> Iterator[Finding]:
    """Say what more could be installed, and for what."""
    bounds = dict(_split(line) for line in _requirements() if "extra ==" in line)
    for name, purpose in _OPTIONAL.items():
        found = installed_version(name)
        bound = bounds.get(name, "")
        verdict = "not installed" if found is None else _verdict(bound, found)
        yield Finding(
            topic="optional",
            level=Level.note if verdict else Level.ok,
            says=f"{name} {f'{found} is ' if found and verdict else ''}{verdict or found}, for {purpose}",
            cure=f'pip install "{name}{bound}"' if verdict else "",
            facts={"package": name, "version": found},
        )
    found = installed_version("flash-attn")
    yield Finding(
        topic="optional",
        level=Level.ok if found else Level.note,
        says=f"flash-attn {found or 'not installed'}, for model.attention=flash_attention_2",
        cure="" if found else f"{_FLASH} (NVIDIA GPUs of compute capability 8.0 and newer)",
        facts={"package": "flash-attn", "version": found},
    )


def _split(line: str) -> tuple[str, str]:
    """Part a requirement into its name and its bounds: `trl>=1.16; extra == "x"`."""
    found = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)", line)
    if found is None:
        return line, ""
    return re.sub(r"[-_.]+", "-", found[1]).lower(), found[2].strip().replace(" ", "")


def installed_version(name: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _verdict(bounds: str, found: str) -> str:
    """Say how a version misses its bounds; empty where it does not, or nothing here can compare."""
    try:
        from packaging.specifiers import SpecifierSet
        from packaging.version import InvalidVersion, Version
    except ImportError:
        return ""
    try:
        Version(found)
    except InvalidVersion:
        return "not comparable"
    if SpecifierSet(bounds).contains(found, prereleases=True):
        return ""
    least = [Version(item.version) for item in SpecifierSet(bounds) if item.operator in (">=", ">", "==")]
    return "too old" if any(Version(found) < bound for bound in least) else "too new"
