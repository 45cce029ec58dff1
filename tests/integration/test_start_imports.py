"""What quickstart's process imports, by module names: nothing that the run does not use."""

import importlib.util
import json
import subprocess
import sys

import pytest

RUNS = {
    "quickstart": [],
    "lora": ["quantization=none"],
    "full": ["quantization=none", "adapter=none", "trainer.learning_rate=1e-4"],
}
NEVER = (
    "gguf",
    "tensorboard",
    "torch.utils.tensorboard",
    "trackio",
    "wandb",
)
"""Trackers that are not asked for, formats that are not exported."""
WITHOUT_QUANTIZATION = (
    *NEVER,
    "bitsandbytes",
    # what torch.compile is made of, which bitsandbytes calls as it is imported
    "functorch",
    "networkx",
    "torch._functorch.aot_autograd",
    "torch._inductor.compile_fx",
)
UNUSED = {"quickstart": NEVER, "lora": WITHOUT_QUANTIZATION, "full": WITHOUT_QUANTIZATION}
USED = ("torch", "transformers", "trl.trainer.sft_trainer", "datasets", "gemma_ft.training.trainer")
PROGRAM = """
import json, runpy, sys
file, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module("gemma_ft", run_name="__main__")
finally:
    with open(file, "w") as out:
        json.dump([name for name, module in sys.modules.items() if module is not None], out)
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Return the names of all modules that a run has loaded when it ends; each run is made once."""
    folder, found = tmp_path_factory.mktemp("imports"), {}

    def load(run):
        if run not in found:
            file = folder / f"{run}.json"
            words = ["recipe=quickstart", f"name={run}", "trainer.max_steps=1", *RUNS[run]]
            program = [sys.executable, "-c", PROGRAM, str(file), *words]
            done = subprocess.run(
                program, cwd=folder, capture_output=True, text=True, timeout=600, check=False
            )
            assert done.returncode == 0, done.stderr
            found[run] = set(json.loads(file.read_text()))
        return found[run]

    return load


@pytest.mark.parametrize("run", RUNS)
def test_a_run_trains_with_the_libraries_that_it_uses(run, loaded):
    assert set(USED) <= loaded(run)
    assert ("bitsandbytes" in loaded(run)) == (run == "quickstart")
    assert "peft" in loaded(run)


@pytest.mark.parametrize(("run", "name"), [(run, name) for run, names in UNUSED.items() for name in names])
def test_a_run_imports_nothing_that_it_does_not_use(run, name, loaded):
    assert importlib.util.find_spec(name), "not installed, so it could not be found imported either"
    assert name not in loaded(run)
