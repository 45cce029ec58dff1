"""Measure the merge against `cp` of the same bytes: `python benchmarks/merge.py FOLDER`.

A synthetic Gemma of full size and a rank 16 adapter on every linear layer are written into FOLDER, and
removed in the end. Each measurement is a process of its own, and the sides take turns. Where the base fits
into memory, each side finds it there.
"""

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

SHAPES = {
    "2b": {"layers": 18, "hidden": 2048, "inner": 16384, "queries": 2048, "keys": 256},
    "7b": {"layers": 28, "hidden": 3072, "inner": 24576, "queries": 4096, "keys": 4096},
}
WORDS, RANK, SHARD_BYTES = 256_000, 16, 5 * 10**9
SIDES = ("cp", "cp and sync", "original", "int8", "nf4")
RESULTS = Path(__file__).parent / "results" / "merge.json"


def linears(shape: str) -> dict[str, tuple[int, int]]:
    """List the linear layers of a decoder block with their shapes (outputs, inputs)."""
    size = SHAPES[shape]
    hidden, inner, queries, keys = size["hidden"], size["inner"], size["queries"], size["keys"]
    return {
        "mlp.down_proj": (hidden, inner),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.v_proj": (keys, hidden),
    }


def base_shapes(shape: str) -> dict[str, tuple[int, ...]]:
    """List every tensor of the base, in the order of a checkpoint."""
    hidden = SHAPES[shape]["hidden"]
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, hidden)}
    for layer in range(SHAPES[shape]["layers"]):
        block = f"model.layers.{layer}"
        tensors |= {f"{block}.{name}.weight": size for name, size in linears(shape).items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{block}.{norm}.weight"] = (hidden,)
    return tensors | {"model.norm.weight": (hidden,)}


def adapter_shapes(shape: str) -> dict[str, tuple[int, ...]]:
    """List the matrices of an adapter on every linear layer."""
    tensors: dict[str, tuple[int, ...]] = {}
    for layer in range(SHAPES[shape]["layers"]):
        for name, (outputs, inputs) in linears(shape).items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = (RANK, inputs)
            tensors[f"{module}.lora_B.weight"] = (outputs, RANK)
    return tensors


def write_normal(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    """Write a safetensors file of normal numbers, each tensor from another place of one pool of them."""
    import torch

    item = {"BF16": 2, "F32": 4}[dtype]
    pool = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)) * 0.02
    pool = pool.bfloat16() if dtype == "BF16" else pool
    raw = pool.view(torch.uint8).numpy().tobytes()
    header, end = {}, 0
    for name, shape in shapes.items():
        size = item * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    places = random.Random(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in header.values():
            first, last = entry["data_offsets"]
            while first < last:
                start = places.randrange(len(raw) // item) * item
                first += file.write(raw[start : start + last - first])


def make(shape: str, folder: Path) -> tuple[Path, Path]:
    """Write a base and an adapter."""
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    files: list[dict[str, tuple[int, ...]]] = [{}]
    used = 0
    for name, size in base_shapes(shape).items():
        count = 2 * math.prod(size)
        if used + count > SHARD_BYTES:
            files.append({})
            used = 0
        files[-1][name] = size
        used += count
    places = {}
    for i, part in enumerate(files, 1):
        file = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        write_normal(base / file, part, "BF16")
        places |= dict.fromkeys(part, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (base / "config.json").write_text('{"model_type": "gemma"}')
    write_normal(adapter / "adapter_model.safetensors", adapter_shapes(shape), "F32")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": "all-linear"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    return base, adapter


def merge(base: Path, adapter: Path, copy: Path, side: str) -> None:
    """Merge in this process, and print its seconds without imports, and its largest resident memory."""
    import torch  # noqa: F401

    from gemma_ft.config.schema import QuantizationMethod
    from gemma_ft.exporting.merging.merge import plan_merge, write_merge
    from gemma_ft.exporting.merging.storage import TrainedStorage

    storage = None
    if side != "original":
        storage = TrainedStorage(method=QuantizationMethod(side), double_quant=True, dtype="bfloat16")
    start = time.perf_counter()
    write_merge(plan_merge(base, adapter, storage), copy, shard_bytes=SHARD_BYTES)
    seconds = time.perf_counter() - start
    # not ru_maxrss, which begins with the memory of the process that started this one
    peak = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    print(json.dumps({"seconds_after_imports": round(seconds, 2), "peak_mib": int(peak.split()[1]) // 1024}))


def command_of(side: str, folder: Path) -> list[str]:
    """Return the command that copies or merges the base in a folder."""
    if side == "cp":
        return ["cp", "-r", f"{folder}/base", f"{folder}/copy"]
    if side == "cp and sync":
        return ["sh", "-c", f"cp -r '{folder}/base' '{folder}/copy' && sync '{folder}'/copy/*"]
    return [sys.executable, __file__, str(folder), "--side", side]


def measure(side: str, folder: Path) -> dict[str, float | str]:
    """Run one side and return its seconds and processor seconds, and what a merge prints of itself."""
    for file in (folder / "base").iterdir():
        with file.open("rb") as opened:
            while opened.read(1 << 24):
                pass
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command_of(side, folder), stdout=subprocess.PIPE, text=True)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    shutil.rmtree(folder / "copy")
    if process.returncode:
        raise SystemExit(f"{side} failed")
    result: dict[str, float | str] = {
        "side": side,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
    }
    with process.stdout as output:
        if text := output.read():
            result |= json.loads(text)
    return result


def main() -> None:
    """Run the benchmark, or one merge of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="2b")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.side:
        merge(folder / "base", folder / "adapter", folder / "copy", args.side)
        return
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty. Give an empty folder on the disk to measure.")
    try:
        make(args.shape, folder)
        runs = []
        for repeat in range(args.repeats):
            for side in args.sides:
                runs.append({"repeat": repeat, **measure(side, folder)})
                print(runs[-1], flush=True)
    finally:
        for name in ("base", "adapter", "copy"):
            shutil.rmtree(folder / name, ignore_errors=True)
    write_results(args.shape, runs)


def write_results(shape: str, runs: list[dict]) -> None:
    """Put the runs of a shape into the results, and the ratios of sides of the same repeat."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    copies = {run["repeat"]: run["seconds"] for run in runs if run["side"] == "cp"}
    times_cp = {
        side: [round(run["seconds"] / copies[run["repeat"]], 2) for run in runs if run["side"] == side]
        for side in dict.fromkeys(run["side"] for run in runs)
        if copies and side != "cp"
    }
    results |= {
        "date": date.today().isoformat(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "versions": {name: version(name) for name in ("gemma_ft", "torch", "bitsandbytes")},
        shape: {"times_cp_by_repeat": times_cp, "runs": runs},
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
