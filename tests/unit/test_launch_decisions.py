"""What the scripts of launch files decide when a run ends, under bash with stand-ins for the engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gemma_ft.config.schema import RunConfig
from gemma_ft.launching import kubernetes, skypilot, slurm, standing
from gemma_ft.launching.job import Job, build_job

SRUN = """#!/bin/bash
[ -z "$CHECKPOINT" ] || mkdir -p "outputs/x/checkpoints/$CHECKPOINT"
[ -z "$STATE" ] || { mkdir -p outputs/x; echo "$STATUS" > outputs/x/status.json; }
exit "$CODE"
"""
PYTHON = """#!/bin/bash
# The launcher's stand-in, which ends like the real one; status.json is read by a real interpreter.
case "$*" in
  *torch.distributed.run*)
    mkdir -p outputs/x
    if [ -n "$ASKS" ]; then
      trap 'echo told to stop' TERM
      for _ in 1 2; do kill -TERM "$PPID"; for ((i = 0; i < 99999; i++)); do :; done; done
    fi
    [ -z "$STATE" ] || echo "$STATUS" > outputs/x/status.json
    echo "$@"
    exit "$CODE" ;;
  *interface*) echo looked for an interface >&2; echo eth7 ;;
  *) exec PROGRAM "$@" ;;
esac
""".replace("PROGRAM", sys.executable)


def job(nodes: int = 2) -> Job:
    config = RunConfig(name="x")
    return build_job(config, ["model=tiny", "name=x"], nodes=nodes, gpus=1, stop_seconds=7)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put stand-ins for the engine's commands first on the PATH, and work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "bin"
    folder.mkdir()
    scontrol = '#!/bin/bash\n[ "$1" = show ] && printf "n1\\nn2\\n" || echo "$@" >> requeued\n'
    tools = {"srun": SRUN, "scontrol": scontrol, "fakepython": PYTHON, "sleep": "#!/bin/bash\nexit 0\n"}
    for name, text in tools.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def run_bash(script: str, tools: Path, **environment: object) -> subprocess.CompletedProcess[str]:
    given = {"CHECKPOINT": "", "STATE": "", "CODE": "1", "ASKS": "", **environment}
    died = "process 1 of 2 has died. The same line again goes on from the last checkpoint."
    known = given["STATE"] != "killed"
    status = {"state": given["STATE"], "reason": "no room"} if known else {"state": "failed", "reason": died}
    given["STATUS"] = json.dumps(status)
    return subprocess.run(
        ["bash", "-c", script],
        env={
            **{name: value for name, value in os.environ.items() if not name.endswith("_IFNAME")},
            **{name: str(value) for name, value in given.items()},
            "PATH": f"{tools}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_slurm(tools: Path, **environment: object) -> subprocess.CompletedProcess[str]:
    script = slurm.render(job(), file="x", python=sys.executable, partition=None, account=None, time=None)
    place = {"SLURM_JOB_ID": 77, "SLURM_JOB_NODELIST": "n[1-2]"}
    return run_bash(script, tools, **{**place, **environment})


def requeued() -> list[str]:
    return Path("requeued").read_text().splitlines() if Path("requeued").is_file() else []


@pytest.mark.parametrize(
    ("state", "code", "ends_with", "again"),
    [
        ("finished", 0, 0, False),
        ("interrupted", 1, 0, True),
        ("running", 1, 0, True),  # nobody was left to say more
        ("killed", 1, 0, True),
        ("failed", 1, 1, False),
        ("finished", 1, 1, False),  # of an earlier run, which this one is refused beside
        ("", 2, 2, False),  # refused before it began
    ],
)
def test_slurm_starts_again_by_the_status_of_the_run(tools, state, code, ends_with, again):
    done = run_slurm(tools, STATE=state, CODE=code)
    assert done.returncode == ends_with, done.stderr
    assert requeued() == (["requeue 77"] if again else [])


def test_three_starts_without_a_newer_checkpoint_are_the_last(tools):
    for _ in range(3):
        assert run_slurm(tools, STATE="running").returncode == 0
    done = run_slurm(tools, STATE="running")
    assert done.returncode == 1
    assert "three starts have left no newer checkpoint in outputs/x: giving up." in done.stderr
    assert len(requeued()) == 3


def test_starts_that_leave_newer_checkpoints_go_on_without_end(tools):
    for step in range(1, 6):
        assert run_slurm(tools, STATE="interrupted", CHECKPOINT=f"step-{step:06d}").returncode == 0
    assert len(requeued()) == 5


def test_a_job_that_was_submitted_anew_counts_anew(tools):
    for number in range(4):
        done = run_slurm(tools, STATE="running", SLURM_JOB_ID=number)
        assert done.returncode == 0, done.stderr


def script_of(engine: str, nodes: int = 2) -> str:
    """Return the script of a pod or of a SkyPilot node, working in this folder instead of /shared."""
    if engine == "kubernetes":
        text = kubernetes.render(job(nodes), file="x", image="i", claim="c", python="fakepython")
        return waiting_less(next(yaml.safe_load_all(text))["data"]["train.sh"])
    text = skypilot.render(
        job(nodes), file="x", gpu_type="H100", image="i", volume="v", python="fakepython", spot=False
    )
    return waiting_less(yaml.safe_load(text)["run"]).replace("cd /shared", "cd .")


def waiting_less(script: str) -> str:
    """Look at a status that stays `running` twice instead of for a minute."""
    assert script.count("{1..30}") == 1
    return script.replace("{1..30}", "{1..2}")


NODE = {
    "kubernetes": {"JOB_COMPLETION_INDEX": 0, "RESTART": 1, "HOSTNAME": "x-node-0-0"},
    "skypilot": {
        "SKYPILOT_NODE_RANK": 0,
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_TASK_ID": "sky-1",
    },
}
HEAD = {"kubernetes": "x-node-0-0.x", "skypilot": "10.0.0.1"}


@pytest.mark.parametrize("engine", NODE)
@pytest.mark.parametrize(
    ("state", "code", "ends_with"),
    [
        ("finished", 0, 0),
        ("interrupted", 1, 143),
        ("killed", 1, 143),
        ("running", 1, 143),
        ("failed", 1, 1),
        ("", 1, 1),
    ],
)
def test_a_node_says_by_its_exit_code_whether_to_start_again(tools, engine, state, code, ends_with):
    done = run_bash(script_of(engine), tools, STATE=state, CODE=code, **NODE[engine])
    assert done.returncode == ends_with, done.stderr


@pytest.mark.parametrize("engine", NODE)
def test_a_node_starts_torchrun_with_its_place_and_its_interfaces(tools, engine):
    shown = script_of(engine).replace('exec "$python"', 'env; exec "$python"')
    done = run_bash(shown, tools, STATE="finished", CODE=0, **NODE[engine])
    line = next(line for line in done.stdout.splitlines() if "torch.distributed.run" in line)
    assert line == (
        "-m torch.distributed.run --nnodes=2 --nproc-per-node=1 --node-rank=0 "
        f"--master-addr={HEAD[engine]} --master-port=29500 --rdzv-conf=timeout=1800 --max-restarts=0 "
        "-m gemma_ft model=tiny name=x"
    )
    told = {"NCCL_SOCKET_IFNAME==eth7", "GLOO_SOCKET_IFNAME=eth7", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=7"}
    assert told <= set(done.stdout.splitlines())


@pytest.mark.parametrize("engine", NODE)
def test_what_an_operator_has_set_stands(tools, engine):
    shown = script_of(engine).replace('exec "$python"', 'env; exec "$python"')
    given = {"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "ib1", "OMP_NUM_THREADS": "8"}
    done = run_bash(shown, tools, CODE=0, **NODE[engine], **given)
    assert {f"{name}={value}" for name, value in given.items()} <= set(done.stdout.splitlines())
    assert "looked for an interface" not in done.stderr


@pytest.mark.parametrize("engine", NODE)
def test_a_request_to_stop_is_passed_on_once_and_waited_for(tools, engine):
    done = run_bash(script_of(engine), tools, STATE="interrupted", ASKS="yes", **NODE[engine])
    assert done.stdout.count("told to stop") == 1
    assert done.returncode == 143, done.stderr


@pytest.mark.parametrize("engine", NODE)
def test_a_node_gives_up_after_three_starts_without_a_checkpoint(tools, engine):
    codes = [run_bash(script_of(engine), tools, STATE="running", **NODE[engine]).returncode for _ in range(4)]
    assert codes == [143, 143, 143, 1]


def test_a_jobset_that_is_applied_anew_counts_anew(tools):
    first = {**NODE["kubernetes"], "RESTART": 0}
    codes = [run_bash(script_of("kubernetes"), tools, STATE="running", **first).returncode for _ in range(4)]
    assert codes == [143] * 4


def test_one_node_needs_no_interface(tools):
    done = run_bash(script_of("kubernetes", nodes=1), tools, CODE=0, **NODE["kubernetes"])
    assert "--nnodes=1" in done.stdout
    assert done.returncode == 0


def test_a_run_that_lost_a_process_says_so_in_the_words_that_are_looked_for():
    training = Path(standing.__file__).parents[1] / "training"
    assert standing.DIED in (training / "together.py").read_text()


@pytest.mark.parametrize("text", ["", "[]", "{}", "{torn"])
def test_a_status_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    assert standing.read_standing(tmp_path) == "none"
    assert standing.read_standing(tmp_path / "absent") == "none"
