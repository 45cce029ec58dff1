"""Who counts as logged in to Weights & Biases."""

import pytest

from gemma_ft.config.schema import RunConfig, TrackingConfig, TrackingMethod
from gemma_ft.runs import RunFolder
from gemma_ft.training.tracking import has_wandb_key, prepare_tracking


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_a_key_is_found_in_the_environment_and_in_netrc(monkeypatch, tmp_path):
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert has_wandb_key()
    (tmp_path / "netrc").write_text("machine example.org login user password secret\n")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert has_wandb_key()


@pytest.mark.parametrize(("key", "mode"), [("", "offline"), ("secret", None)])
def test_without_a_key_it_goes_offline_and_files_stay_in_the_run(monkeypatch, tmp_path, key, mode):
    import os

    monkeypatch.setenv("WANDB_API_KEY", key)
    config = RunConfig(tracking=TrackingConfig(method=TrackingMethod.wandb, project="mine"))
    prepare_tracking(config, RunFolder(tmp_path))
    assert os.environ.get("WANDB_MODE") == mode
    assert (os.environ["WANDB_DIR"], os.environ["WANDB_PROJECT"]) == (str(tmp_path), "mine")


def test_no_tracker_is_touched_that_was_not_asked_for(tmp_path):
    import os

    prepare_tracking(RunConfig(), RunFolder(tmp_path))
    assert "WANDB_DIR" not in os.environ
