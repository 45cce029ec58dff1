"""Check and measure on a GPU: `python benchmarks/gpu.py`.

Gemmas of full size with made-up weights are written to a disk (17 GB for a 7B) and removed in the end;
nothing is downloaded. Each part is a process of its own and its outcome is written at once, so that what runs
out of memory, crashes or meets the end of the time takes no other with it. What does not fit into the time is
left out and says so; a later call with `--parts` adds it to the same results.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from gpu_parts.bases import SHAPES, build_base, write_rows  # noqa: E402
from gpu_parts.results import describe, record  # noqa: E402
from gpu_parts.table import PARTS, Part  # noqa: E402
from gpu_parts.training import Place  # noqa: E402

RESULTS = HERE.parent / "results" / "gpu.json"
BASE_SECONDS = {"tiny": 5, "2b": 20, "7b": 45}
"""What writing a base takes on an H200's machine, guessed."""
DESCRIBE, BASE = "describe", "base"
Outcome = dict[str, Any]


def shape_of(part: Part, shape: str) -> str:
    """Return the shape that a part uses: the one asked for, or the largest that it is meant for."""
    if part.largest is None:
        return shape
    return min(shape, part.largest, key=SHAPES.index)


def begin_or_leave(
    part: Part, about: dict[str, Any], seconds_left: float, base_seconds: float
) -> Outcome | None:
    """Return why a part is left out; None where it can begin."""
    if part.gpus > 1 and about["gpus"] < part.gpus:
        return {"status": "left out", "reason": f"needs {part.gpus} GPUs, and {about['gpus']} are in sight"}
    needed = part.seconds + base_seconds
    if seconds_left < needed:
        return {"status": "left out", "reason": f"{seconds_left:.0f} s left, about {needed:.0f} s needed"}
    return None


def child_command(name: str, place: Place, out: Path, processes: int | None) -> list[str]:
    """Return the command of a part's process, or of the launcher of its processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [
        sys.executable,
        *(launcher if processes else []),
        *(str(HERE), "--child", name, "--out", str(out)),
        *("--folder", str(place.folder), "--shape", place.shape, "--device", place.device),
    ]


def child_environment(place: Place, *, one_gpu: bool) -> dict[str, str]:
    """Return the environment of a part's process: no network, a cache in the folder, one GPU or all."""
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    env["XDG_CACHE_HOME"] = str(place.folder / "cache")
    env["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), env.get("PYTHONPATH", "")]).strip(os.pathsep)
    if one_gpu and place.device == "cuda":
        env["CUDA_VISIBLE_DEVICES"] = env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if place.device == "cpu":
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env


def run_child(
    name: str, place: Place, seconds: float, *, processes: int | None = None, one_gpu: bool = True
) -> Outcome:
    """Run a part's process to its end, or to the end of the time, and return its outcome."""
    out = place.folder / f"{name}.json"
    out.unlink(missing_ok=True)
    log = place.folder / f"{name}.log"
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            child_command(name, place, out, processes),
            env=child_environment(place, one_gpu=one_gpu and not processes),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=max(seconds, 1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
    if out.exists():
        outcome: Outcome = json.loads(out.read_text(encoding="utf-8"))
    elif code is None:
        outcome = {"status": "failed", "reason": "stopped when the time was up"}
    else:
        outcome = {"status": "failed", "reason": f"the process ended with {code}"}
    if outcome["status"] == "failed":
        outcome["tail"] = tail
    return outcome | {"seconds": round(time.monotonic() - start, 1)}


def child(name: str, place: Place, out: Path) -> None:
    """Measure one part in this process, and write its outcome."""
    try:
        outcome: Outcome = {"status": "measured", "figures": _figures(name, place)}
    except Exception as error:
        outcome = {"status": _kind_of(error), "reason": f"{type(error).__name__}: {error}"}
        traceback.print_exc()
    first = os.environ.get("RANK", "0") == "0"
    if first or not (outcome["status"] == "measured" or out.exists()):
        beside = out.with_name(f".{out.name}.{os.getpid()}")
        beside.write_text(json.dumps(outcome), encoding="utf-8")
        beside.replace(out)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(outcome["status"] == "failed")  # a process of several would wait for the others


def _figures(name: str, place: Place) -> dict[str, Any]:
    from gemma_ft.modeling.libraries import quiet_bitsandbytes

    quiet_bitsandbytes()  # before anything imports it
    if name == DESCRIBE:
        return describe(place.device)
    if name == BASE:
        return {"base": str(build_base(place.shape, place.folder)), **_said(write_rows(place.folder))}
    return PARTS[name].measure(place, name)


def _said(paths: dict[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in paths.items()}


def _kind_of(error: Exception) -> str:
    """Tell memory or a disk that does not suffice, in torch's words or in ours, from what is broken."""
    text = str(error)
    short = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "does not fit" if short or "memory ran out" in text or " asked for, " in text else "failed"


def measure(name: str, asked: Place, about: dict[str, Any], deadline: float) -> tuple[str, Outcome]:
    """Measure a part if there is time, its base first; return its name in the results and its outcome."""
    part = PARTS[name]
    place = Place(folder=asked.folder, shape=shape_of(part, asked.shape), device=asked.device)
    title = f"{name} {place.shape}" if part.largest else name
    missing = part.largest is not None and not (place.folder / f"base-{place.shape}.json").exists()
    left = deadline - time.monotonic()
    if reason := begin_or_leave(part, about, left, BASE_SECONDS[place.shape] if missing else 0):
        return title, reason
    if missing:
        built = run_child(BASE, place, left)
        if built["status"] != "measured":
            return title, built
        (place.folder / f"{BASE}.json").rename(place.folder / f"base-{place.shape}.json")
    processes = max(about["gpus"], 1) if part.launched else None
    left = deadline - time.monotonic()
    outcome = run_child(name, place, left, processes=processes, one_gpu=part.one_gpu)
    return title, {"says": part.says, "shape": place.shape, **outcome}


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.epilog = "parts:\n" + "\n".join(f"  {name:12} {part.says}" for name, part in PARTS.items())
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--shape", choices=SHAPES, default="7b", help="of the bases")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the script")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="parts that do not fit into them are left out"
    )
    parser.add_argument("--folder", type=Path, help="where the bases go, on a disk with room")
    parser.add_argument("--results", type=Path, help=f"default: {RESULTS}")
    for hidden in ("--child", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, Place(folder=args.folder, shape=args.shape, device=args.device), Path(args.out))
    if args.device == "cpu" and args.results is None:
        parser.error("--device cpu measures no GPU: name another file with --results")
    deadline = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="gemma_ft-") as name:
        place = Place(folder=Path(name), shape=args.shape, device=args.device)
        measure_all(args.parts, place, args.results or RESULTS, deadline)


def measure_all(parts: list[str], place: Place, results: Path, deadline: float) -> None:
    """Measure parts one after the other, and write each outcome when it is known."""
    machine = run_child(DESCRIBE, place, deadline - time.monotonic(), one_gpu=False)
    about = machine.get("figures")
    if about is None or (place.device == "cuda" and not about["gpus"]):
        reason = machine.get("reason", "torch sees none; --device cpu --shape tiny tries the script")
        raise SystemExit(f"no GPU can be measured here: {reason}")
    print(f"{about['device']} x {about['gpus']}, torch {about['versions']['torch']}", flush=True)
    for name in parts:
        title, outcome = measure(name, place, about, deadline)
        record(results, about, title, outcome)
        print(f"{title:16} {summary(outcome)}", flush=True)
    print(f"written: {results}")


def summary(outcome: Outcome) -> str:
    """Say an outcome in one line."""
    if outcome["status"] != "measured":
        return f"{outcome['status']}: {outcome['reason']}"
    figures = outcome["figures"]
    words = [f"{outcome['seconds']:.0f} s"]
    if "tokens_per_second" in figures:
        words.append(f"{figures['tokens_per_second']:,.0f} tokens/s")
    if figures.get("memory_bytes"):
        words.append(f"{figures['memory_bytes']['peak'] / 2**30:.2f} GiB")
    if figures.get("share_of_peak_model") is not None:
        words.append(f"{figures['share_of_peak_model']:.1%} of the peak rate")
    if "differing_in_all" in figures:
        words.append(f"differing: {figures['differing_in_all']}")
    return ", ".join(words)


if __name__ == "__main__":
    main()
