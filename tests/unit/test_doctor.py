"""The report on a machine: what it can run, what is missing, and the command that mends it."""

import json
import os
import subprocess
import sys
import warnings
from importlib import import_module, metadata
from types import SimpleNamespace

import pytest
import torch
from fake_gpus import GIB, install_driver, pretend, pretend_apple, pretend_intel

from gemma_ft.commands import doctor
from gemma_ft.diagnosis import accelerators, accounts, choices, examine, machine, packages
from gemma_ft.diagnosis.finding import Finding, Level
from gemma_ft.errors import ConfigError

TOPICS = (
    "python packages optional torch devices precision quantization parallel processor memory disk hub wandb"
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    for name in ("LOCAL_WORLD_SIZE", "ACCELERATE_USE_CPU", "HF_TOKEN", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("PATH", "/nowhere")


def lines(found):
    return [f"{finding.level}: {finding.says} -> {finding.cure}" for finding in found]


def only(probe, level=None):
    found = [finding for finding in probe() if level is None or finding.level is level]
    assert len(found) == 1, lines(found)
    return found[0]


def report(monkeypatch, capsys, *findings, words=()):
    monkeypatch.setattr(doctor, "examine", lambda: list(findings))
    code = doctor.run(list(words))
    return code, capsys.readouterr().out


# ---- the command


def test_the_report_of_this_machine_has_a_line_for_everything(capsys):
    assert import_module("gemma_ft.commands.doctor").run([]) == 0
    printed = capsys.readouterr().out
    assert list(dict.fromkeys(line.split()[0] for line in printed.splitlines()[:-2])) == TOPICS.split()
    assert printed.isascii()
    assert printed.endswith("\nThis machine can train.\n")
    assert f"torch {torch.__version__}" in printed


def test_the_report_is_json_for_programs(monkeypatch, capsys):
    finding = Finding(topic="devices", says="GPU 0", facts={"memory_bytes": 5})
    code, printed = report(monkeypatch, capsys, finding, words=["--json"])
    expected = {"topic": "devices", "level": "ok", "says": "GPU 0", "cure": "", "facts": {"memory_bytes": 5}}
    assert (code, json.loads(printed)) == (0, {"can_train": True, "findings": [expected]})


def test_what_is_missing_ends_with_1_and_one_line_to_install_it(monkeypatch, capsys):
    missing = [
        Finding(
            topic="packages", level=Level.error, says=f"{name} is missing", cure=f'pip install "{name}>=1"'
        )
        for name in ("trl", "peft", "trl")
    ]
    old = Finding(topic="torch", level=Level.error, says="the driver is old", cure="update the driver")
    noted = Finding(topic="hub", level=Level.note, says="no token", cure="hf auth login")
    code, printed = report(monkeypatch, capsys, *missing, old, noted)
    assert code == 1
    assert 'packages     error    trl is missing -> pip install "trl>=1"' in printed
    told = printed.partition("Mend first:\n")[2]
    assert told == '  pip install "trl>=1" "peft>=1"\n  update the driver\n'


def test_neither_a_note_nor_a_warning_keeps_a_machine_from_training(monkeypatch, capsys):
    found = [Finding(topic="x", level=level, says="y") for level in (Level.note, Level.warning)]
    assert report(monkeypatch, capsys, *found)[0] == 0


def test_a_flag_that_it_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"--jso is no flag of this command. Did you mean --json\?"):
        doctor.run(["--jso"])


def test_a_token_is_in_no_report(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "aB3" * 12)
    _, printed = report(monkeypatch, capsys, Finding(topic="x", says=os.environ["HF_TOKEN"]))
    assert "aB3" not in printed


def test_a_question_that_fails_hides_no_other(monkeypatch):
    def fail():
        raise RuntimeError("no such thing\nand more")
        yield

    monkeypatch.setattr(examine, "_FIRST", (("memory", fail), *examine._FIRST))
    found = examine.examine()
    assert lines(found)[0] == "warning: cannot be told on this machine: RuntimeError: no such thing -> "
    assert set(TOPICS.split()) <= {finding.topic for finding in found}


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            "raise OSError('libcudart.so.13: cannot open shared object file')",
            r"OSError: libcudart.so.13: cannot",
        ),
        ("raise ImportError()", r"\(ImportError\)"),
    ],
)
def test_a_torch_that_does_not_load_is_reported_and_the_rest_too(tmp_path, code, told):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", "from gemma_ft.commands.doctor import run; raise SystemExit(run([]))"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("torch ")]
    assert told.replace("\\", "") in line
    assert "so devices, precision, quantization, parallel are not known -> pip install --force" in line
    assert '  pip install --force-reinstall "torch>=2.6"' in done.stdout
    assert "\nmemory       ok" in done.stdout
    assert "\nhub " in done.stdout


# ---- packages


@pytest.fixture
def versions(monkeypatch):
    known, real = {}, metadata.version

    def answer(name):
        if known.get(name, "") is None:
            raise metadata.PackageNotFoundError(name)
        return known.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", answer)
    return known


@pytest.mark.parametrize(
    ("name", "version", "told"),
    [
        ("peft", None, 'error: peft is missing (>=0.21) -> pip install "peft>=0.21"'),
        ("trl", "1.9.0", 'error: trl 1.9.0 is too old (>=1.16) -> pip install "trl>=1.16"'),
        ("torch", "2.13.0+cu130", "ok: torch 2.13.0+cu130 (>=2.6) -> "),
        ("transformers", "5.24.0.dev0", "ok: transformers 5.24.0.dev0 (>=5.23) -> "),
    ],
)
def test_a_package_is_compared_with_its_lower_bound(versions, name, version, told):
    versions[name] = version
    assert told in lines(packages.find_packages())


def test_a_version_that_nothing_can_compare_hides_no_other_package(versions):
    versions |= {"trl": "main-branch", "peft": "0.1"}
    found = lines(packages.find_packages())
    assert any(line.startswith("error: trl main-branch is not comparable (>=1.16)") for line in found)
    assert any(line.startswith("error: peft 0.1 is too old") for line in found)


def test_a_package_above_its_upper_bound_is_too_new(versions):
    versions["hydra-core"] = "1.4.0"
    assert "hydra-core 1.4.0 is too new" in only(packages.find_packages, Level.error).says


def test_every_package_that_is_needed_has_a_line():
    found = {finding.facts["package"] for finding in packages.find_packages()}
    assert found >= {"torch", "transformers", "trl", "peft", "bitsandbytes", "psutil", "hydra-core", "pyyaml"}
    assert not found & {"pytest", "rensa"}


def test_optional_packages_are_noted_with_what_they_are_for(versions):
    versions |= {"rensa": None, "trackio": "0.1", "flash-attn": "2.8.3"}
    found = lines(packages.find_optional())
    assert 'note: rensa not installed, for dataset.near_duplicates -> pip install "rensa>=0.5"' in found
    assert any(line.startswith("note: trackio 0.1 is too old, for tracking=trackio") for line in found)
    assert "ok: flash-attn 2.8.3, for model.attention=flash_attention_2 -> " in found
    versions["flash-attn"] = None
    assert "pip install flash-attn --no-build-isolation" in lines(packages.find_optional())[-1]


def test_without_the_package_that_compares_versions_they_are_shown(monkeypatch, versions):
    versions["trl"] = "0.1"
    monkeypatch.setitem(sys.modules, "packaging.specifiers", None)
    assert "ok: trl 0.1 (>=1.16) -> " in lines(packages.find_packages())


def test_a_checkout_that_is_not_installed_tells_what_it_needs_itself(monkeypatch):
    def refuse(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", refuse)
    assert any(line.startswith("ok: torch 2.") for line in lines(packages.find_packages()))
    monkeypatch.setattr(packages, "_requirements_of_checkout", list)
    assert "gemma_ft itself is not installed" in only(packages.find_packages).says


# ---- torch and GPUs


def test_a_gpu_with_a_torch_for_cpus_is_an_error_with_the_command(monkeypatch, tmp_path):
    install_driver(monkeypatch, tmp_path, "Tesla T4")
    monkeypatch.setattr(torch.version, "cuda", None)
    found = only(accelerators.find_torch, Level.error)
    assert found.says == f"Tesla T4 is in this machine, but torch {torch.__version__} is built without CUDA"
    public = torch.__version__.partition("+")[0]
    assert found.cure.startswith(f"pip install --force-reinstall torch=={public} ")


def test_a_driver_that_is_too_old_is_told_in_torchs_own_words(monkeypatch, tmp_path):
    def too_old():
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). "
            "Please update your GPU driver",
            stacklevel=1,
        )
        return False

    install_driver(monkeypatch, tmp_path, "NVIDIA L4")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    found = only(accelerators.find_torch, Level.error)
    assert "cannot use it with the driver" in found.says
    assert (
        "(CUDA initialization: The NVIDIA driver on your system is too old (found version 11040))"
        in found.says
    )
    assert found.cure == "update NVIDIA's driver, or install a torch for a CUDA older than 13.0"


def test_a_gpu_that_is_hidden_is_a_warning_with_the_variable(monkeypatch, tmp_path):
    install_driver(monkeypatch, tmp_path, "NVIDIA L4")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    found = only(accelerators.find_torch, Level.warning)
    assert "NVIDIA L4 is in this machine, but CUDA_VISIBLE_DEVICES=-1 hides it" in found.says
    assert found.cure == "unset CUDA_VISIBLE_DEVICES"


def test_a_driver_without_a_gpu_is_a_warning(monkeypatch, tmp_path):
    install_driver(monkeypatch, tmp_path, says=9)
    assert only(accelerators.find_torch, Level.warning).says == "nvidia-smi is installed, but names no GPU"


def test_an_amd_gpu_with_another_torch_is_noted(monkeypatch, tmp_path):
    monkeypatch.setattr("gemma_ft.modeling.drivers._AMD_COMPUTE", tmp_path)
    found = only(accelerators.find_torch, Level.note)
    assert "AMD's driver offers a GPU, but torch" in found.says
    assert "choose ROCm" in found.cure


def test_torch_says_what_it_is_built_for(monkeypatch):
    assert "built for CPUs only" in only(accelerators.find_torch).says
    pretend(monkeypatch, "MI300X")
    assert "built for ROCm 7.1.0" in only(accelerators.find_torch).says
    pretend(monkeypatch, "L4")
    assert "built for CUDA 12.8" in only(accelerators.find_torch).says
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "xpu", "20260000")
    assert "built for XPU 20260000" in only(accelerators.find_torch).says


def test_every_gpu_has_a_line_with_what_it_can(monkeypatch):
    pretend(monkeypatch, "T4", "H100")
    t4, h100 = accelerators.find_devices()
    assert t4.says.startswith("GPU 0: Tesla T4, 15.0 GiB (7.5 GiB free), sm_75 CUDA 12.8")
    assert "no bf16; no FlashAttention 2: it needs compute capability 8.0, and Tesla T4 has 7.5" in t4.says
    assert h100.says.startswith("GPU 1: NVIDIA H100 80GB HBM3, 80.0 GiB (40.0 GiB free), sm_90")
    assert "; bf16; no FlashAttention 2: the flash-attn package is not installed" in h100.says
    assert h100.facts["free_bytes"] == 40 * GIB
    assert h100.facts["bf16"] is True


def test_a_gpu_that_cannot_be_asked_hides_no_other(monkeypatch):
    pretend(monkeypatch, "L4", "L4")
    real = accelerators.read_gpu

    def fail(kind, index):
        if index == 0:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return real(kind, index)

    monkeypatch.setattr(accelerators, "read_gpu", fail)
    broken, other = accelerators.find_devices()
    assert (broken.level, broken.says[:23]) == (Level.error, "GPU 0 cannot be asked (")
    assert other.level is Level.ok


@pytest.mark.parametrize(
    ("gpu", "built", "runs"),
    [
        ("P100", ["sm_75", "sm_80"], False),
        ("RTX 3090", ["sm_75", "sm_80"], True),
        ("A100", ["sm_75", "sm_86"], False),
        ("H100", ["sm_80"], False),
        ("H100", ["sm_80", "compute_80"], True),
        ("B200", ["sm_90a", "sm_100"], True),
        ("RTX 5090", ["sm_90", "sm_120a"], True),
        ("P100", [], True),
    ],
)
def test_a_torch_without_code_for_a_gpu_is_an_error(monkeypatch, gpu, built, runs):
    pretend(monkeypatch, gpu)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    errors = [finding for finding in accelerators.find_devices() if finding.level is Level.error]
    assert bool(errors) != runs
    if errors:
        assert "has no code for sm_" in errors[0].says
        assert " ".join(built) in errors[0].cure


def test_machines_without_gpu_and_other_makes_have_their_line(monkeypatch):
    assert "no GPU: a CPU trains tiny models" in only(accelerators.find_devices).says
    pretend_apple(monkeypatch)
    assert only(accelerators.find_devices).says.startswith("Apple M4, 12.0 GiB, MPS, macOS")
    pretend_intel(monkeypatch)
    assert only(accelerators.find_devices).says.startswith("GPU 0: Intel Arc B580, 16.0 GiB, XPU")
    pretend(monkeypatch, "MI300X")
    assert only(accelerators.find_devices).says.startswith("GPU 0: AMD Instinct MI300X, 192.0 GiB")


# ---- what a run would take


def test_the_policy_is_told_for_every_family_with_its_reasons(monkeypatch):
    pretend(monkeypatch, "T4")
    *families, untested = choices.find_precision()
    told = {found.facts["family"]: (found.facts["dtype"], found.facts["attention"]) for found in families}
    assert told == {"Gemma 1": ("fp16", "sdpa"), "Gemma 2": ("fp16", "eager"), "Gemma 3": ("fp32", "sdpa")}
    assert families[2].says.startswith("Gemma 3: dtype fp32: Tesla T4 has no bf16, and Gemma 3 leaves fp16's")
    assert (untested.level, untested.says[:26]) == (Level.note, "not tested on NVIDIA GPUs:")


def test_quantizations_are_told_with_what_keeps_them_away(monkeypatch):
    found = list(choices.find_quantization())
    assert lines(found) == [
        "ok: quantization=nf4 works on CPU -> ",
        "ok: quantization=int8 works on CPU -> ",
        "ok: bitsandbytes has loaded its native library -> ",
    ]
    pretend_apple(monkeypatch, macos=13)
    assert (
        "note: quantization=nf4 does not work: bitsandbytes needs macOS 14 on Apple M4 -> quantization=none"
        in (lines(choices.find_quantization()))
    )


def test_a_bitsandbytes_that_does_not_load_is_a_warning_that_says_why(monkeypatch):
    from bitsandbytes import cextension

    monkeypatch.setattr(cextension, "lib", SimpleNamespace(error_msg="libcusparse.so.12: cannot\nopen"))
    found = only(choices.find_quantization, Level.warning)
    assert found.says == "bitsandbytes has not loaded its native library (libcusparse.so.12: cannot open)"
    assert "python -m bitsandbytes" in found.cure
    assert not any(line.startswith("ok:") for line in lines(choices.find_quantization()))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert (
        "bitsandbytes does not load (ModuleNotFoundError"
        in only(choices.find_quantization, Level.warning).says
    )


def test_the_layouts_follow_from_the_number_of_gpus(monkeypatch):
    assert "torchrun starts several (ddp); fsdp takes GPUs" in only(choices.find_parallel).says
    pretend(monkeypatch, "L4")
    assert only(choices.find_parallel).facts == {"gpus": 1, "auto": "single", "possible": ["single"]}
    pretend(monkeypatch, "L4", "L4", "L4", "L4")
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: name == "nccl")
    found = only(choices.find_parallel)
    assert found.facts["possible"] == ["single", "ddp", "fsdp"]
    assert "4 GPUs: parallel=auto trains on one of them" in found.says
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: name == "gloo")
    assert "built without NCCL" in only(choices.find_parallel, Level.warning).says


def test_several_gpus_of_intel_share_and_an_apple_gpu_has_no_other(monkeypatch):
    pretend_apple(monkeypatch)
    assert only(choices.find_parallel).facts["possible"] == ["single"]
    assert "ddp and fsdp do not work on it" in only(choices.find_parallel).says
    pretend_intel(monkeypatch)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda name: name == "xccl")
    assert only(choices.find_parallel).facts["possible"] == ["single", "ddp", "fsdp"]


# ---- the machine


@pytest.mark.parametrize(
    ("mine", "files", "limit"),
    [
        ("0::/job/task\n", {"job/memory.max": "9000", "job/task/memory.max": "max"}, 9000),
        ("0::/job/task\n", {"memory.max": "7000", "job/memory.max": "9000"}, 7000),
        ("4:cpu,memory:/job\n", {"memory/job/memory.limit_in_bytes": "5000"}, 5000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("", {}, None),
    ],
)
def test_the_least_limit_of_the_control_groups_counts(monkeypatch, tmp_path, mine, files, limit):
    (tmp_path / "mine").write_text(mine)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text + "\n")
    monkeypatch.setattr(machine, "_MINE", tmp_path / "mine")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    assert machine.memory_limit() == limit


def test_memory_is_told_with_its_limit(monkeypatch):
    monkeypatch.setattr(machine, "memory_limit", lambda: 4 * GIB)
    found = only(machine.find_memory)
    assert found.says.endswith("; at most 4.0 GiB for this control group")
    assert found.facts["limit_bytes"] == 4 * GIB


def test_threads_are_told_with_what_limits_them(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS=3" in only(machine.find_processors).says


def test_a_disk_that_is_nearly_full_or_cannot_be_written_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert {finding.level for finding in machine.find_disks()} == {Level.ok}
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=GIB))
    found = lines(machine.find_disks())
    assert found[0].startswith(
        f"warning: run folders: 1.0 GiB free in {tmp_path / 'outputs'}: a 2B takes about"
    )
    assert found[1].endswith("-> export HF_HOME=FOLDER")
    monkeypatch.setattr("os.access", lambda place, mode: False)
    assert "which cannot be written -> output_dir=FOLDER" in lines(machine.find_disks())[0]


def test_the_hubs_cache_is_found_without_its_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", None)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert machine.hub_cache() == tmp_path / "hub"


# ---- accounts


def test_a_login_to_the_hub_is_told_without_the_token(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    found = only(accounts.find_hub)
    assert (found.level, found.cure, found.facts["logged_in"]) == (Level.note, "hf auth login", False)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "aB3" * 12)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: os.environ["HF_TOKEN"])
    found = only(accounts.find_hub)
    assert found.says.startswith("a token is set (HF_TOKEN)")
    assert "aB3" not in str(found)


def test_offline_switches_are_told(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    told = lines(accounts.find_hub())[1:]
    assert told == [
        "note: TRANSFORMERS_OFFLINE=1: only what is in the cache is used -> unset TRANSFORMERS_OFFLINE"
    ]


def test_a_key_of_weights_and_biases_is_told_of_without_a_network(monkeypatch, tmp_path):
    assert only(accounts.find_wandb).cure == "wandb login"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret-of-mine\n")
    (tmp_path / "netrc").chmod(0o600)
    assert only(accounts.find_wandb).says == "a key for api.wandb.ai is set"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert only(accounts.find_wandb).says == "tracking=wandb stays offline: WANDB_MODE=offline"
