"""Launch files for cluster engines: what is in them, and what is refused before one is written."""

import ast
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from gemma_ft.commands import launch
from gemma_ft.config.compose import compose
from gemma_ft.config.schema import ParallelConfig, ParallelMethod, RunConfig
from gemma_ft.config.trainer import TrainerConfig
from gemma_ft.errors import ConfigError
from gemma_ft.launching.job import build_job
from gemma_ft.launching.text import bash_word
from gemma_ft.training.layout import resolve_layout

FLAGS = {
    "slurm": ["--partition", "gpu", "--time", "1-12"],
    "skypilot": ["--gpu-type", "H100", "--image", "example/gemma-ft:1", "--volume", "shared"],
    "kubernetes": ["--image", "example/gemma-ft:1", "--claim", "shared"],
    "ray": ["--shared-dir", "/mnt/shared"],
}
SIZE = ["--nodes", "2", "--gpus", "8"]
RECIPE = ["recipe=ultrachat_full", "parallel=fsdp"]
HARD_WORDS = [
    'trainer.sample_prompt=it\'s $HOME `id` $(id) $$ "quoted" \\ é',
    "trainer.sample_prompt=two\nlines\tand \u2028 more\nNODE\nEOF",
    "dataset.split=train[:5%]",
    "adapter.targets=[q_proj,v_proj]",
    "trainer.sample_prompt=%%{words} %j @{x} {y} !!",
    "trainer.sample_prompt=--not-a-flag # no comment",
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a1" * 17)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return compose(*RECIPE, "tracking=wandb")


@pytest.fixture
def render(config, monkeypatch):
    """Write a file through the command, but for the time that composing takes."""
    monkeypatch.setattr("gemma_ft.config.compose.compose", lambda *words, config_dir: config)

    def write(engine: str, *words: str, flags: list[str] | None = None) -> str:
        flags = FLAGS[engine] if flags is None else flags
        assert launch.run([engine, *SIZE, *flags, *words, "--output", "file", "--overwrite"]) == 0
        return Path("file").read_text(encoding="utf-8")

    return write


def script_of(engine: str, text: str) -> str:
    """Return what bash is given by the engine."""
    if engine == "slurm":
        return text
    first, *_ = [document for document in yaml.safe_load_all(text) if document]
    script: str = first["run"] if engine == "skypilot" else first["data"]["train.sh"]
    return script


def words_of(engine: str, text: str) -> list[str]:
    """Read the overrides back as the engine's own language does."""
    if engine == "ray":
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "WORDS":
                read: list[str] = ast.literal_eval(node.value)
                return read
    script = script_of(engine, text)
    begin = script.index("words=(")
    array = script[begin : script.index("\n)", begin) + 2]
    told = subprocess.run(
        ["bash", "-c", array + "\nprintf '%s\\0' \"${words[@]}\""], capture_output=True, check=True
    )
    return told.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("engine", FLAGS)
@pytest.mark.parametrize("word", HARD_WORDS, ids=range(len(HARD_WORDS)))
def test_every_word_reaches_the_program_as_it_was_typed(render, engine, word):
    assert words_of(engine, render(engine, RECIPE[0], word)) == [RECIPE[0], word]


@pytest.mark.parametrize("engine", ["slurm", "skypilot", "kubernetes"])
def test_the_scripts_are_bash(render, engine):
    script = script_of(engine, render(engine, *HARD_WORDS))
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_line_says_what_was_written_and_how_it_is_submitted(capsys):
    assert launch.run(["kubernetes", *SIZE, *FLAGS["kubernetes"], *RECIPE]) == 0
    said = capsys.readouterr().out
    assert said == "ultrachat-full.jobset.yaml: 16 processes on 2 nodes. " + (
        "Submit it: kubectl apply -f ultrachat-full.jobset.yaml\n"
    )
    assert [path.name for path in Path.cwd().iterdir()] == ["ultrachat-full.jobset.yaml"]


@pytest.mark.parametrize("engine", FLAGS)
def test_a_file_tells_its_operator_what_was_checked_and_holds_no_secret(render, engine):
    text = render(engine, "tracking=wandb")
    assert "16 processes (fsdp)" in text
    assert "Checked:" in text
    assert "Submit it:" in text
    assert "HF_TOKEN" in text
    assert "WANDB_API_KEY" in text
    assert "hf_a1" not in text
    assert "%%{" not in text


def test_no_token_is_asked_for_where_nothing_is_fetched():
    Path("my.jsonl").write_text('{"text": "hello"}\n')
    words = ["model=tiny", "dataset=local", "dataset.path=my.jsonl", "trainer.global_batch_size=16"]
    assert launch.run(["kubernetes", *SIZE, *FLAGS["kubernetes"], *words, "name=local"]) == 0
    text = Path("local.jobset.yaml").read_text()
    assert "HF_TOKEN" not in text
    assert "# - dataset.path=my.jsonl must be in the shared folder." in text


def test_slurm_stops_early_enough_and_starts_again(render):
    text = render("slurm", flags=["--time", "12:00:00", "--stop-seconds", "300"])
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --signal=TERM@390" in lines  # without B: the steps are told, not the script
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --time=12:00:00"} <= set(lines)
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --gpus-per-node=8"} <= set(lines)
    assert {"#SBATCH --exclusive", "#SBATCH --mem=0"} <= set(lines)
    assert "stop_seconds=300" in text
    assert 'TORCH_ELASTIC_SHUTDOWN_TIMEOUT="$stop_seconds"' in text
    assert f"python={shlex.quote(sys.executable)}\n" in text


def test_shared_nodes_take_what_is_asked_for(render):
    text = render("slurm", flags=["--cpus", "32", "--memory", "400", "--account", "lab-1"])
    assert "--exclusive\n" not in text
    for line in ("--cpus-per-task=32", "--mem=400G", "--account=lab-1"):
        assert f"#SBATCH {line}\n" in text


def test_the_jobset_starts_again_by_exit_code_and_grants_time_to_stop(render):
    text = render("kubernetes", flags=[*FLAGS["kubernetes"], "--cpus", "32", "--memory", "400"])
    config_map, jobset = [document for document in yaml.safe_load_all(text) if document]
    assert config_map["metadata"]["name"] == jobset["metadata"]["name"] == "ultrachat-full"
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 0
    assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (2, 2, 0)
    assert job["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] == [137, 143]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] > 600
    container = pod["containers"][0]
    assert container["resources"] == {
        "limits": {"nvidia.com/gpu": 8},
        "requests": {"cpu": "32", "memory": "400Gi"},
    }
    token = next(entry for entry in container["env"] if entry["name"] == "HF_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": "gemma-ft", "key": "HF_TOKEN"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/shared", "/launch", "/dev/shm"}


def test_the_skypilot_task_recovers_what_was_interrupted_only(render):
    task = yaml.safe_load(render("skypilot", flags=[*FLAGS["skypilot"], "--spot"]))
    resources = task["resources"]
    assert task["num_nodes"] == 2
    assert resources["accelerators"] == "H100:8"
    assert resources["use_spot"] is True
    assert resources["job_recovery"] == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [143]}
    assert task["volumes"] == {"/shared": "shared"}
    assert task["secrets"] == {"HF_TOKEN": None, "WANDB_API_KEY": None}


def test_the_ray_program_parses_and_takes_a_worker_a_gpu(render):
    text = render("ray", flags=[*FLAGS["ray"], "--cpus", "32"])
    compile(text, "ultrachat-full.ray.py", "exec")
    assert "PROCESSES = 16 " in text
    assert "use_gpu=True" in text
    assert "{'CPU': 4, 'GPU': 1}" in text


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["parallel=single"], "parallel=single cannot use the launcher's 16 processes"),
        (["trainer.max_step=1"], "trainer.max_step=1 is no key of a run"),
    ],
)
def test_a_run_that_cannot_work_there_is_refused_before_a_file_is_written(words, problem, tmp_path):
    others = [word for word in RECIPE if not words[0].startswith(word.partition("=")[0] + "=")]
    with pytest.raises(ConfigError, match=problem):
        launch.run(["slurm", *SIZE, *others, *words])
    assert list(tmp_path.iterdir()) == []


def test_all_problems_come_out_at_once():
    with pytest.raises(ConfigError) as told:
        launch.run(["slurm", *SIZE, RECIPE[0], "parallel=single", "trainer.global_batch_size=24"])
    assert len(told.value.problems) == 2


def test_one_process_needs_no_method_for_many(config):
    def build(method: str, gpus: int) -> str:
        parallel = ParallelConfig(method=ParallelMethod(method))
        return build_job(replace(config, parallel=parallel), [], nodes=1, gpus=gpus).method

    with pytest.raises(ConfigError, match="parallel=ddp needs two processes or more, but --nodes=1 --gpus=1"):
        build("ddp", 1)
    assert [build("auto", 1), build("auto", 2), build("fsdp", 2)] == ["single", "ddp", "fsdp"]


@pytest.mark.parametrize(
    "changed",
    [
        {"trainer": TrainerConfig(global_batch_size=24)},
        {"parallel": ParallelConfig(method=ParallelMethod.single)},
        {"parallel": ParallelConfig(method=ParallelMethod.fsdp, dp_shard_size=6)},
    ],
    ids=["batch", "single", "shards"],
)
def test_what_training_would_refuse_is_refused_in_its_words(config, changed, monkeypatch):
    launched = {"WORLD_SIZE": "16", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "host", "MASTER_PORT": "9"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as training:
        resolve_layout(replace(config, **changed))
    with pytest.raises(ConfigError) as launching:
        build_job(replace(config, **changed), [], nodes=2, gpus=8)
    assert str(launching.value) == str(training.value)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["pbs"], "pbs is no engine. Name one of slurm, skypilot, kubernetes, ray first"),
        (["slurm", *RECIPE], "launch slurm needs --nodes and --gpus too, as in python -m gemma_ft launch"),
        (["kubernetes", *SIZE, *RECIPE], "launch kubernetes needs --claim and --image too"),
        (["ray", *SIZE, *RECIPE, "--shared-dir", " "], "--shared-dir= is empty"),
        (["slurm", "--nodes", "0", "--gpus", "8", *RECIPE], "--nodes=0 must be at least 1"),
        (["slurm", *SIZE, *RECIPE, "--claim", "x"], "--claim is no flag of this command"),
        (["slurm", *SIZE, *RECIPE, "--time", "soon"], "--time=soon is no time of Slurm"),
        (["slurm", *SIZE, *RECIPE, "--time", "00:20:00"], "--time=00:20:00 leaves no time to train"),
        (["slurm", *SIZE, *RECIPE, "--partition", "a\nb"], "is no name of Slurm"),
        (
            ["skypilot", *SIZE, *RECIPE, *FLAGS["skypilot"], "--gpu-type", "H100:8"],
            "--gpu-type=H100:8 is no accelerator",
        ),
        (["slurm", *SIZE, *RECIPE, "--output", "no/x"], "is in a folder that does not exist. Make no first"),
        (["slurm", *SIZE, *RECIPE, "--output", "."], "is a folder. Name a file in it"),
        (["slurm", *SIZE, *RECIPE, "--output", "/proc/x"], r"--output=/proc/x cannot be written \(No such"),
        (["ray", *SIZE, *RECIPE, "--shared-dir", "runs"], "--shared-dir=runs must begin with /"),
    ],
    ids=range(14),
)
def test_flags_are_checked_in_one_line(config, words, problem, tmp_path, monkeypatch):
    monkeypatch.setattr("gemma_ft.config.compose.compose", lambda *words, config_dir: config)
    with pytest.raises(ConfigError, match=problem):
        launch.run(words)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_on_request():
    file = Path("ultrachat-full.sbatch")
    file.write_text("mine")
    with pytest.raises(ConfigError, match=r"ultrachat-full.sbatch exists already. Add --overwrite"):
        launch.run(["slurm", *SIZE, *RECIPE])
    assert file.read_text() == "mine"
    assert launch.run(["slurm", *SIZE, *RECIPE, "--overwrite"]) == 0
    assert file.read_text().startswith("#!/bin/bash\n")


@pytest.mark.parametrize(
    ("name", "label"),
    [("Ultra_Chat.v2+x", "ultra-chat-v2-x"), ("7b", "run-7b"), ("é", "run"), ("a" * 60, "a" * 40)],
)
def test_names_fit_the_engines(config, name, label):
    assert build_job(replace(config, name=name), [], nodes=1, gpus=2).plain_name == label


def test_what_the_nodes_must_have_is_named(tmp_path, capsys):
    Path("mine.yaml").write_text("trainer: {global_batch_size: 16}\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "hello"}\n')
    words = [
        "recipe=./mine.yaml",
        "model=tiny",
        "dataset=local",
        f"dataset.path={rows}",
        "output_dir=/data/run",
    ]
    assert launch.run(["slurm", *SIZE, *words]) == 0
    assert f"The nodes need recipe=./mine.yaml, dataset.path={rows} too." in capsys.readouterr().out
    text = Path("mine.sbatch").read_text()
    assert "# - recipe=./mine.yaml must be in the shared folder." in text
    assert f"# - dataset.path={rows} must be at this place on every node." in text
    assert "# - /data/run, the run folder, must be on storage that every node writes to." in text


def test_the_folder_of_ones_own_recipes_is_named_too(tmp_path, capsys):
    (tmp_path / "mine" / "recipes").mkdir(parents=True)
    assert launch.run(["slurm", *SIZE, *RECIPE, "--config-dir", "mine"]) == 0
    assert "The nodes need --config-dir=mine too." in capsys.readouterr().out
    assert "# - --config-dir=mine must be in the shared folder." in Path("ultrachat-full.sbatch").read_text()


def test_no_time_limit_leaves_all_the_time_to_train():
    assert launch.run(["slurm", *SIZE, *RECIPE, "--time", "0"]) == 0
    assert "#SBATCH --time=0\n" in Path("ultrachat-full.sbatch").read_text()


def test_help_names_every_engine_and_flag(capsys):
    assert launch.run([]) == launch.run(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"launch {engine} --nodes 2 --gpus 8" in page for engine in FLAGS)
    with pytest.raises(SystemExit):
        launch.run(["ray", "--help"])
    page = capsys.readouterr().out
    assert "--shared-dir" in page
    assert "--partition" not in page


def test_the_command_loads_no_torch():
    program = "import sys; from gemma_ft.commands import launch; launch.run(sys.argv[1:]); " + (
        "sys.exit('torch' in sys.modules)"
    )
    words = ["slurm", *SIZE, *RECIPE]
    assert subprocess.run([sys.executable, "-c", program, *words], check=False).returncode == 0


def test_a_word_of_bytes_that_are_no_text_survives():
    word = b"a\xffb".decode("utf-8", "surrogateescape")
    told = subprocess.run(["bash", "-c", f"printf %s {bash_word(word)}"], capture_output=True, check=True)
    assert told.stdout == b"a\xffb"
    assert bash_word(word).isascii()
