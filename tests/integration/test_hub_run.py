"""A run whose base comes from a hub: the commit is kept, and the cache is enough from then on."""

import json

from hub_stand_in import COMMIT, hub_with
from program import start, status

GONE = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": ""}


def test_a_base_from_the_hub_is_trained_merged_and_named(tiny, chats, tmp_path):
    files = {path.name: path.read_bytes() for path in tiny.iterdir()}
    words = ["model=gemma_2b_it", "dataset=local", f"dataset.path={chats}", "name=x"]
    words += ["trainer.max_steps=2", "trainer.max_length=64", "trainer.global_batch_size=2"]
    home = {"HF_HOME": str(tmp_path / "home")}
    with hub_with(files) as address:
        online = {**GONE, "HF_ENDPOINT": address, **home}
        done = start(*words, cwd=tmp_path, env=online)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "x"
    assert status(run)["state"] == "finished"
    model = json.loads((run / "data.json").read_text())["model"]
    assert model == {"path": "google/gemma-2b-it", "revision": COMMIT, "family": "Gemma 1"}
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("google/gemma-2b-it", COMMIT)
    card = (run / "merged" / "README.md").read_text()
    assert "base_model: google/gemma-2b-it" in card
    assert COMMIT in (run / "merged" / "NOTICE").read_text()

    export = start("export", str(run), cwd=tmp_path, env={**GONE, **home})
    assert export.returncode == 0, export.stderr
    answer = start("generate", str(run), "hi", "--model", "adapter", cwd=tmp_path, env={**GONE, **home})
    assert answer.returncode == 0, answer.stderr
