"""The sides: each a command line of its own, and where its steps and losses stand."""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts.processes import Line, Run, run_command
from parts.results import versions_of
from peers import find_peer

from step_parts.cases import LEARNING_RATE, RANK, SEED, Case

OURS, TRL, LLAMAFACTORY, LITGPT = "gemma_ft", "trl sft", "llamafactory-cli train", "litgpt finetune"
PEERS = {TRL: "trl", LLAMAFACTORY: "llamafactory", LITGPT: "litgpt"}
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "llamafactory", "litgpt")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DISABLE_VERSION_CHECK": "1",  # LLaMA-Factory's, of versions it has not been tried with
    "OMP_NUM_THREADS": str(os.cpu_count()),  # else `trl sft`, through accelerate, takes one thread
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a side is to run."""

    case: Case
    model: Path
    rows: Path
    """A folder with train.jsonl."""
    folder: Path
    """An empty folder for what it writes."""
    steps: int
    adapter: Path | None = None
    """The adapter to begin with, where the side takes one."""
    learning_rate: float = LEARNING_RATE


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """A program that trains."""

    command: Callable[[Job, Path], list[str]]
    step_line: re.Pattern[str]
    """Found in the line that each step ends with."""
    read_losses: Callable[[Job, Run], list[float]]
    read_tokens: Callable[[Job, Run], list[int] | None]
    """Tokens of each step as the program counts them; None: it does not."""
    takes: Callable[[Case], bool]
    """Whether it can run a case."""


def steps_of(side: Side, run: Run) -> list[Line]:
    """Return the lines that steps ended with."""
    return [line for line in run.lines if side.step_line.search(line.text)]


def program(name: str, peers: Path | None) -> Path | None:
    """Return what runs a side: this Python for ours, else a peer's command line if it was made."""
    return Path(sys.executable) if name == OURS else find_peer(peers, PEERS[name])


def versions_of_side(name: str, peers: Path | None) -> dict[str, str]:
    """Return the versions that a side runs with."""
    command = program(name, peers)
    assert command is not None
    return versions_of(command.with_name("python"), _PACKAGES)


def _ours(job: Job, python: Path) -> list[str]:
    case = job.case
    adapter = ["adapter=lora", f"adapter.rank={RANK}", f"adapter.alpha={RANK}"]
    if job.adapter:
        adapter = ["adapter=lora", f"adapter.path={job.adapter}"]
    words = {
        "output_dir": job.folder / "run",
        "model.path": job.model,
        "dataset.path": job.rows / "train.jsonl",
        "dataset.eval_fraction": 0,
        "trainer.max_steps": job.steps,
        "trainer.micro_batch_size": case.micro_batch,
        "trainer.global_batch_size": case.micro_batch * case.accumulation,
        "trainer.max_length": case.max_length,
        "trainer.packing": str(case.packing).lower(),
        "trainer.learning_rate": job.learning_rate,
        "trainer.lr_scheduler_type": "constant",
        "trainer.warmup_steps": 0,
        "trainer.logging_steps": 1,
        "trainer.save_steps": 100_000,
        "seed": SEED,
    }
    groups = ["name=step", "dataset=local", "quantization=none", "export=none", "parallel=single"]
    groups += ["adapter=none"] if case.full else adapter
    settings = (f"{key}={value}" for key, value in words.items())
    return [str(python), "-m", "gemma_ft", *groups, *settings, *case.our_words]


def _ours_logged(job: Job) -> list[dict[str, Any]]:
    text = (job.folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    return [record for record in map(json.loads, text.splitlines()) if "loss" in record]


def _trl(job: Job, trl: Path) -> list[str]:
    case = job.case
    words: dict[str, Any] = {
        "model_name_or_path": job.model,
        "dataset_name": job.rows,
        "output_dir": job.folder / "run",
        "max_steps": job.steps,
        "per_device_train_batch_size": case.micro_batch,
        "gradient_accumulation_steps": case.accumulation,
        "max_length": case.max_length,
        "packing": case.packing,
        "learning_rate": job.learning_rate,
        "seed": SEED,
        # what is the default on our side
        "assistant_only_loss": True,
        "lr_scheduler_type": "constant",
        "activation_checkpointing": True,  # its own default
        "logging_steps": 1,
        "save_steps": job.steps,  # trainer_state.json, where losses have all their digits
        "save_only_model": True,
        # on a CPU, in fp32
        "use_cpu": True,
        "bf16": False,
        "dtype": "float32",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if not case.full:
        words |= {"use_peft": True, "lora_r": RANK, "lora_alpha": RANK, "lora_dropout": 0}
        words |= {"lora_target_modules": "all-linear"}
    return [str(trl), "sft", *(str(word) for key, value in words.items() for word in (f"--{key}", value))]


def _trainer_logged(job: Job) -> list[dict[str, Any]]:
    state = job.folder / "run" / f"checkpoint-{job.steps}" / "trainer_state.json"
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return [record for record in history if "loss" in record]


def _tokens_a_step(totals: list[int]) -> list[int]:
    return [total - before for before, total in zip([0, *totals], totals, strict=False)]


def _llamafactory(job: Job, command: Path) -> list[str]:
    case = job.case
    columns = {"messages": "messages"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    rows = {
        "file_name": str(job.rows / "train.jsonl"),
        "formatting": "sharegpt",
        "columns": columns,
        "tags": tags,
    }
    (job.folder / "dataset_info.json").write_text(json.dumps({"chats": rows}), encoding="utf-8")
    words: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(job.model),
        "dataset_dir": str(job.folder),
        "dataset": "chats",
        "template": "gemma",
        "output_dir": str(job.folder / "run"),
        "max_steps": job.steps,
        "per_device_train_batch_size": case.micro_batch,
        "gradient_accumulation_steps": case.accumulation,
        "cutoff_len": case.max_length,
        "packing": case.packing,
        "neat_packing": case.packing,  # the one that keeps documents apart
        "learning_rate": job.learning_rate,
        "seed": SEED,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_steps": job.steps,
        "save_only_model": True,
        "use_cpu": True,
        "infer_dtype": "float32",
        # of packed rows it would sum a mask of four dimensions, which holds no ones
        "include_num_input_tokens_seen": "all" if case.packing else "non_padding",
        "report_to": "none",
        "disable_tqdm": True,
        "overwrite_cache": True,
        "finetuning_type": "full" if case.full else "lora",
    }
    if not case.full:
        words |= {"lora_rank": RANK, "lora_alpha": RANK, "lora_dropout": 0, "lora_target": "all"}
    settings = job.folder / "train.yaml"
    settings.write_text(json.dumps(words), encoding="utf-8")  # JSON is YAML
    return [str(command), "train", str(settings)]


def _litgpt(job: Job, command: Path) -> list[str]:
    case = job.case
    checkpoint = job.model.with_name(f"{job.model.name}-litgpt")
    if not (checkpoint / "model_config.yaml").exists():
        script = Path(__file__).with_name("to_litgpt.py")
        run_command([command.with_name("python"), script, job.model, checkpoint])
    rows = (job.rows / "train.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [[turn["content"] for turn in json.loads(row)["messages"]] for row in rows]
    pairs = [{"instruction": asked, "output": answered} for asked, answered in turns]
    (job.folder / "train.json").write_text(json.dumps(pairs), encoding="utf-8")
    (job.folder / "val.json").write_text(json.dumps(pairs[:2]), encoding="utf-8")
    parts = ("query", "key", "value", "projection", "mlp")
    words: dict[str, Any] = {
        "out_dir": job.folder / "run",
        "precision": "32-true",
        "devices": 1,
        "data": "JSON",
        "data.json_path": job.folder,
        "data.mask_prompt": True,
        "data.prompt_style": "gemma",
        "data.num_workers": 0,
        "train.max_steps": job.steps,
        "train.epochs": 1000,
        "train.micro_batch_size": case.micro_batch,
        "train.global_batch_size": case.micro_batch * case.accumulation,
        "train.max_seq_length": case.max_length,
        "train.save_interval": 100_000,
        "train.lr_warmup_steps": 1,
        "eval.interval": 100_000,
        "eval.final_validation": False,
        "lora_r": RANK,
        "lora_alpha": RANK,
        "lora_dropout": 0,
        "seed": SEED,
        **{f"lora_{part}": True for part in parts},
    }
    options = (str(word) for key, value in words.items() for word in (f"--{key}", value))
    return [str(command), "finetune_lora", str(checkpoint), *options]


_LITGPT_LINE = re.compile(r"iter \d+ step \d+ \| loss train: ([\d.]+),.*\(step\)")


def _litgpt_losses(job: Job, run: Run) -> list[float]:
    """Return losses of three digits, of its own rows: it shuffles in its own way."""
    found = (_LITGPT_LINE.search(line.text) for line in run.lines)
    return [float(match[1]) for match in found if match]


SIDES = {
    OURS: Side(
        command=_ours,
        step_line=re.compile(r"step \d+/\d+  loss"),
        read_losses=lambda job, run: [record["loss"] for record in _ours_logged(job)],
        read_tokens=lambda job, run: _tokens_a_step(
            [int(record["num_tokens"]) for record in _ours_logged(job)]
        ),
        takes=lambda case: True,
    ),
    TRL: Side(
        command=_trl,
        step_line=re.compile(r"^\{'loss'"),
        read_losses=lambda job, run: [record["loss"] for record in _trainer_logged(job)],
        read_tokens=lambda job, run: _tokens_a_step(
            [int(record["num_tokens"]) for record in _trainer_logged(job)]
        ),
        takes=lambda case: True,
    ),
    LLAMAFACTORY: Side(
        command=_llamafactory,
        step_line=re.compile(r"^\{'loss'"),
        read_losses=lambda job, run: [record["loss"] for record in _trainer_logged(job)],
        read_tokens=lambda job, run: _tokens_a_step(
            [int(record["num_input_tokens_seen"]) for record in _trainer_logged(job)]
        ),
        takes=lambda case: True,
    ),
    LITGPT: Side(
        command=_litgpt,
        step_line=_LITGPT_LINE,
        read_losses=_litgpt_losses,
        read_tokens=lambda job, run: None,
        # no packing of chats; its shapes are Gemma 1's here
        takes=lambda case: not case.packing and not case.full and case.shape.startswith("tiny"),
    ),
}
