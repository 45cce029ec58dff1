"""Trackers, as far as they go without an account."""

from program import start, status


def test_wandb_without_a_key_stays_offline_in_the_run_folder(chats, tiny, tmp_path):
    words = ["name=x", "model=tiny", "dataset=local", f"dataset.path={chats}", "trainer=debug"]
    alone = {"WANDB_API_KEY": "", "NETRC": str(tmp_path / "none"), "HOME": str(tmp_path)}
    done = start(*words, "tracking=wandb", cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stderr
    assert "no key is set, so it stays offline; later: wandb sync outputs/x/wandb/offline-*" in done.stderr
    run = tmp_path / "outputs" / "x"
    assert status(run)["state"] == "finished"
    assert len(list((run / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert not (tmp_path / "wandb").exists()
