"""Measure what the bounds of the certificate rest on, and what a certificate costs.

`python benchmarks/certificate.py bounds` compares right exports and planted faults of small seeded models.
`python benchmarks/certificate.py bounds --run RUN` does so for a finished run that trained an adapter, and
`... bounds --wide` for a seeded model of Gemma 3 270M's shape.
`python benchmarks/certificate.py cost FOLDER --shape 7b` measures seconds and peak memory of certifying a
synthetic Gemma of full size; base, adapter and export are written into FOLDER and removed in the end.

Each prints JSON, one line a measurement.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from gemma_ft.exporting.certificate.rows import CertificateRow
    from gemma_ft.exporting.merging.merge import MergePlan
    from gemma_ft.exporting.merging.storage import TrainedStorage

HERE = Path(__file__).resolve()
FORMATS = ("bfloat16", "float16", "float32")
HELD = ("none", "int8", "nf4")
SEED = 5


def storage_of(method: str) -> "TrainedStorage | None":
    """Describe how training holds the base."""
    from gemma_ft.config.schema import QuantizationMethod
    from gemma_ft.exporting.merging.storage import TrainedStorage

    if method == "none":
        return None
    return TrainedStorage(method=QuantizationMethod(method), double_quant=True, dtype="bfloat16")


def small_rows(words: int) -> "list[CertificateRow]":
    """Draw eight rows of turns."""
    import torch

    from gemma_ft.exporting.certificate.rows import CertificateRow

    generator = torch.Generator().manual_seed(SEED)
    rows = []
    for length in (60, 90, 40, 100, 80, 70, 120, 30):
        ids = [2, *torch.randint(110, words, (length,), generator=generator).tolist(), 107]
        labels = [-100] * (length // 2) + ids[length // 2 :]
        rows.append(CertificateRow(tuple(ids), tuple(labels)))
    return rows


def export(base: Path, adapter: Path, storage: "TrainedStorage | None", out: Path) -> "MergePlan":
    """Merge, and put the model's settings beside the weights."""
    from gemma_ft.exporting.merging.merge import plan_merge, write_merge

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name in ("config.json", "generation_config.json"):
        shutil.copy(base / name, out / name)
    plan = plan_merge(base, adapter, storage)
    write_merge(plan, out, shard_bytes=5 * 10**9)
    return plan


def edit_tensors(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite a safetensors file."""
    from safetensors.torch import load_file, save_file

    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def leave_out(adapter: Path) -> None:
    """Take the adapter's effect away."""
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: {name: value * ("lora_B" not in name) for name, value in tensors.items()},
    )


def scale(factor: float) -> Callable[[Path], None]:
    """Change the adapter's scale."""

    def change(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        settings = json.loads(file.read_text())
        file.write_text(json.dumps(settings | {"lora_alpha": settings["lora_alpha"] * factor}))

    return change


def swap(adapter: Path) -> None:
    """Put another adapter of the same shape and size of numbers in its place."""
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: {name: shuffled(value) for name, value in tensors.items()},
    )


def shuffled(value: "torch.Tensor") -> "torch.Tensor":
    """Shuffle the rows of a tensor."""
    import torch

    return value[torch.randperm(len(value), generator=torch.Generator().manual_seed(SEED))].contiguous()


FAULTS: dict[str, Callable[[Path], None]] = {
    "adapter left out": leave_out,
    "scale 1.05": scale(1.05),
    "scale 1.01": scale(1.01),
    "another adapter": swap,
}


def study(
    name: str, base: Path, adapter: Path, rows: "Sequence[CertificateRow]", held: str, work: Path
) -> Iterator[dict[str, Any]]:
    """Measure the right exports of one adapter, and its planted faults."""
    trained, right = storage_of(held), work / "right"
    plan = export(base, adapter, trained, right)
    measured = {"model": name, "held": held}
    yield measured | {"case": "right, base=trained"} | figures(plan, right, rows, trained)
    if trained is not None:
        bare = export(base, adapter, None, work / "bare")
        yield measured | {"case": "right, base=original"} | figures(bare, work / "bare", rows, trained)
        yield measured | {"case": "original for trained"} | figures(plan, work / "bare", rows, trained)
    for fault, change in FAULTS.items():
        bad = work / "bad_adapter"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(adapter, bad)
        change(bad)
        export(base, bad, trained, work / "bad")
        yield measured | {"case": fault} | figures(plan, work / "bad", rows, trained)
    linear = "model.layers.1.self_attn.v_proj.weight"
    edit_tensors(right / "model.safetensors", lambda tensors: tensors | {linear: shuffled(tensors[linear])})
    yield measured | {"case": "rows of a v_proj shuffled"} | figures(plan, right, rows, trained)


def figures(
    plan: "MergePlan", folder: Path, rows: "Sequence[CertificateRow]", trained: "TrainedStorage | None"
) -> dict[str, Any]:
    """Compare a folder with the trained model."""
    import torch

    from gemma_ft.exporting.certificate.certify import quiet_libraries
    from gemma_ft.exporting.certificate.comparison import compare, window

    with quiet_libraries(), torch.no_grad():
        found = compare(plan, folder, window(rows), trained, [107, 1])
    return {
        "kl_over_noise": found.difference.kl_mean / found.noise.kl_mean,
        "difference": asdict(found.difference),
        "noise": asdict(found.noise),
        "as_trained": found.as_trained and asdict(found.as_trained),
        "greedy": asdict(found.greedy),
    }


def study_small(work: Path) -> Iterator[dict[str, Any]]:
    """Measure small seeded models with strong adapters, as the tests build them."""
    sys.path.insert(0, str(HERE.parents[1] / "tests" / "unit"))
    from export_models import VOCABULARY, build_adapter, build_base

    kinds: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"use_dora": True}}
    for model_type in ("gemma", "gemma2", "gemma3_text"):
        for dtype in FORMATS:
            base = build_base(work / f"{model_type}-{dtype}", model_type, dtype)
            for kind in kinds if dtype == "bfloat16" else ["lora"]:
                adapter = build_adapter(base, work / f"{model_type}-{dtype}-{kind}", **kinds[kind])
                for held in HELD if (dtype, kind) == ("bfloat16", "lora") else ["none"]:
                    name = f"{model_type} {dtype} {kind}"
                    yield from study(name, base, adapter, small_rows(VOCABULARY), held, work)


def study_wide(work: Path) -> Iterator[dict[str, Any]]:
    """Measure the shape of Gemma 3 270M: 18 layers, 262,144 words; weights of variance 1 / fan-in."""
    import torch
    import transformers

    sys.path.insert(0, str(HERE.parents[1] / "tests" / "unit"))
    from export_models import build_adapter

    config = transformers.Gemma3TextConfig(
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        max_position_embeddings=32768,
    )
    torch.manual_seed(SEED)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.1 if parameter.dim() == 1 else parameter.shape[1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape) * spread)
    model.save_pretrained(work / "wide")
    adapter = build_adapter(work / "wide", work / "wide-adapter", r=16, lora_alpha=1)
    for held in HELD:
        yield from study("gemma3_text 270m", work / "wide", adapter, small_rows(262144), held, work)


def study_run(run: Path, work: Path) -> Iterator[dict[str, Any]]:
    """Measure a finished run on the rows that it recorded."""
    from gemma_ft.config.compose import load_config
    from gemma_ft.exporting.certificate.rows import read_rows
    from gemma_ft.modeling.checkpoint import fetch_weights, find_checkpoint
    from gemma_ft.runs import open_run

    folder = open_run(run)
    config = load_config(folder.config)
    base = fetch_weights(find_checkpoint(folder.pin(config.model)))
    rows = read_rows(folder.certificate_rows).rows
    yield from study(str(run), base, folder.adapter, rows, config.quantization.method.value, work)


def make_large(folder: Path, shape: str, layers: int | None) -> tuple[Path, Path]:
    """Write a base of full size and an adapter on every linear layer."""
    sys.path.insert(0, str(HERE.parent))
    import checkpoints

    size = checkpoints.SHAPES[shape]
    size["layers"] = layers or size["layers"]
    return checkpoints.make(shape, folder)


def cost(folder: Path, shape: str, layers: int | None, method: str, export_base: str) -> None:
    """Write the models, and certify them in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        base, adapter = make_large(work, shape, layers)
        export(base, adapter, storage_of(method) if export_base == "trained" else None, work / "out")
        options = ["--held", method, "--export-base", export_base]
        command = [sys.executable, str(HERE), "certify", name, *options]
        start = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit("the certificate failed")
    figures = {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
    }
    print(json.dumps({"shape": shape, "layers": layers, "held": method, "base": export_base} | figures))


def certify(work: Path, method: str, export_base: str) -> None:
    """Certify an export and print its figures."""
    import logging

    from gemma_ft.exporting.certificate.certify import certify as prove
    from gemma_ft.exporting.certificate.rows import CertificateRow, CertificateRows
    from gemma_ft.exporting.merging.merge import plan_merge

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    trained = storage_of(method)
    plan = plan_merge(work / "base", work / "adapter", trained if export_base == "trained" else None)
    ids = [(2, *range(1000 * i + 200, 1000 * i + 600)) for i in range(16)]
    rows = [CertificateRow(row, (*[-100] * 40, *row[40:])) for row in ids]
    found = prove(plan, work / "out", CertificateRows("held_out", tuple(rows)), trained_storage=trained)
    print(json.dumps({"difference": found.content["difference"], "rows": found.content["rows"]}))


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("bounds", "cost", "certify"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--shape", choices=("2b", "7b"), default="7b")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--held", choices=HELD, default="none")
    parser.add_argument("--export-base", choices=("trained", "original"), default="trained")
    chosen = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if chosen.what == "cost":
        cost(chosen.folder, chosen.shape, chosen.layers, chosen.held, chosen.export_base)
    elif chosen.what == "certify":
        certify(chosen.folder, chosen.held, chosen.export_base)
    else:
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            lines = study_run(chosen.run, work) if chosen.run else None
            lines = lines or (study_wide(work) if chosen.wide else study_small(work))
            for line in lines:
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
