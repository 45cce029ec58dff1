"""`doctor`: what this machine can run, what is missing and the command that mends it."""

import json
from dataclasses import asdict

from gemma_ft.commands.arguments import CommandParser
from gemma_ft.diagnosis.examine import examine
from gemma_ft.diagnosis.finding import Finding, Level
from gemma_ft.secrets import redact

_PIP = "pip install "


def run(argv: list[str]) -> int:
    """Print what was found; 0 where this machine can train, 1 where something that is needed is missing."""
    arguments = build_parser().parse_args(argv)
    findings = examine()
    errors = [finding for finding in findings if finding.level is Level.error]
    if arguments.json:
        report = {"can_train": not errors, "findings": [asdict(finding) for finding in findings]}
        print(redact(json.dumps(report, indent=2)))
    else:
        print(_ascii(redact("\n".join([*map(_line, findings), "", _verdict(errors)]))))
    return int(bool(errors))


def _line(finding: Finding) -> str:
    cure = f" -> {finding.cure}" if finding.cure else ""
    return f"{finding.topic:13}{finding.level.value:8} {finding.says}{cure}"


def _verdict(errors: list[Finding]) -> str:
    if not errors:
        return "This machine can train."
    cures = dict.fromkeys(error.cure or error.says for error in errors)
    packages = [cure.removeprefix(_PIP) for cure in cures if cure.startswith(f'{_PIP}"')]
    others = [cure for cure in cures if not cure.startswith(f'{_PIP}"')]
    steps = [*([_PIP + " ".join(packages)] if packages else []), *others]
    return "\n".join(["This machine cannot train as it is. Mend first:", *(f"  {step}" for step in steps)])


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode("ascii")


def build_parser() -> CommandParser:
    """Build the command's arguments."""
    parser = CommandParser(
        prog="doctor",
        description="Say what this machine can run, what is missing and the command that mends it. "
        "Loads no model and asks no server. Ends with 1 where something that is needed is missing.",
    )
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    return parser
