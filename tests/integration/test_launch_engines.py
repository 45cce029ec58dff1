"""Launch files read by the engines themselves, where those are at hand; each skip names its variable."""

import os
import subprocess
from pathlib import Path

import pytest

from gemma_ft.commands import launch

SIZE = ["--nodes", "2", "--gpus", "1"]
FLAGS = {
    "skypilot": ["--gpu-type", "H100", "--image", "example/gemma-ft:1", "--volume", "shared", "--spot"],
    "kubernetes": ["--image", "example/gemma-ft:1", "--claim", "shared"],
}
WORDS = [
    "recipe=ultrachat_lora",
    "tracking=wandb",
    "dataset.split=train[:5%]",
    'trainer.sample_prompt=it\'s $HOME $$ $(id) `id` "é" # no comment: at all',
]

SKYPILOT = """
import sys, yaml
from sky import Task
from sky.utils import common_utils, schemas
config = yaml.safe_load(open(sys.argv[1]))
common_utils.validate_schema(config, schemas.get_task_schema(), "task: ")
common_utils.validate_schema(config["resources"], schemas.get_resources_schema(), "resources: ")
task = Task.from_yaml_config(config, secrets_overrides=[(name, "x") for name in config["secrets"]])
assert task.num_nodes == 2
recovery = [each.job_recovery for each in task.resources][0]
assert recovery["recover_on_exit_codes"] == [143], recovery
"""
KUBERNETES = """
import sys, yaml
import kubernetes_validate
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
config_map, jobset = [document for document in yaml.safe_load_all(open(sys.argv[1])) if document]
read = JobsetV1alpha2JobSet.from_dict(jobset).to_dict()
assert read == jobset, read  # what a model does not know, it leaves out
version = kubernetes_validate.latest_version()
kubernetes_validate.validate(config_map, version, strict=True)
template = jobset["spec"]["replicatedJobs"][0]["template"]
job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **template}
kubernetes_validate.validate(job, version, strict=True)
"""


def tool(variable: str, what: str) -> str:
    """Return a program that a variable names, or skip."""
    if variable not in os.environ:
        pytest.skip(f"{variable} names no {what}")
    return os.environ[variable]


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("engine", "variable", "what", "program"),
    [
        ("skypilot", "GEMMA_FT_SKYPILOT_PYTHON", "python with skypilot", SKYPILOT),
        (
            "kubernetes",
            "GEMMA_FT_KUBERNETES_PYTHON",
            "python with kubeflow-trainer-api and kubernetes-validate",
            KUBERNETES,
        ),
    ],
)
def test_the_engines_own_schema_takes_the_file(engine, variable, what, program, tmp_path):
    python = tool(variable, what)
    file = str(tmp_path / "file.yaml")
    assert (
        launch.run([engine, *SIZE, *FLAGS[engine], *WORDS, "--cpus", "8", "--memory", "64", "--output", file])
        == 0
    )
    done = run(python, "-c", program, file, cwd=tmp_path, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_slurm_would_take_the_script(tmp_path):
    sbatch = tool("GEMMA_FT_SBATCH", "sbatch of a cluster with two nodes that have a GPU")
    file = str(tmp_path / "file.sbatch")
    assert launch.run(["slurm", *SIZE, *WORDS, "--time", "12:00:00", "--output", file]) == 0
    done = run(sbatch, "--test-only", file, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_shellcheck_finds_nothing(tmp_path):
    shellcheck = tool("GEMMA_FT_SHELLCHECK", "shellcheck")
    file = str(tmp_path / "file.sbatch")
    assert launch.run(["slurm", *SIZE, *WORDS[:2], "--output", file]) == 0
    done = run(shellcheck, file, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_ray_trains_with_two_workers(chats, tiny, tmp_path):
    python = tool("GEMMA_FT_RAY_PYTHON", "python with ray[train] and what gemma_ft needs")
    words = ["model=tiny", "dataset=local", f"dataset.path={chats}", "name=two", "trainer.max_length=64"]
    words += ["trainer.max_steps=2", "trainer.global_batch_size=4", "quantization=none", "export=none"]
    file = tmp_path / "two.ray.py"
    assert launch.run(["ray", *SIZE, "--shared-dir", str(tmp_path), *words, "--output", str(file)]) == 0
    file.write_text(file.read_text().replace("use_gpu=True", "use_gpu=False"))
    package = str(Path(launch.__file__).parents[2])
    done = run(python, str(file), cwd=tmp_path, PYTHONPATH=package, RAY_USAGE_STATS_ENABLED="0")
    assert done.returncode == 0, done.stderr
    assert '"finished"' in (tmp_path / "outputs" / "two" / "status.json").read_text()
