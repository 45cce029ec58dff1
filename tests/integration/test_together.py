"""Processes that do not fit together are told apart before they train."""

import signal
import sys

import pytest
from launching import HERE, begin, end, free_port

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture
def company(tmp_path):
    """Start processes of one run, each with variables of its own, as two machines would."""

    def start(*variables, **every):
        size, port = len(variables), str(free_port())
        started = []
        for rank, own in enumerate(variables):
            place = {
                "WORLD_SIZE": str(size),
                "RANK": str(rank),
                "LOCAL_RANK": "0",
                "MASTER_ADDR": "127.0.0.1",
            }
            more = {"MASTER_PORT": port, "RUN": str(tmp_path / "run"), **every, **own}
            env = " ".join(f"{name}={value}" for name, value in {**place, **more}.items())
            line = ("env", *env.split(), sys.executable, str(HERE / "company.py"))
            started.append(begin(*line, cwd=tmp_path / own.get("CWD", ".")))
        return started

    return start


def said(processes):
    return [end(process).stdout.strip().splitlines() for process in processes]


def test_processes_that_fit_wait_for_the_slowest_one(company):
    assert said(company({"SLOW": "3"}, {}, {})) == [["here", "done"]] * 3


def test_other_settings_on_a_machine_are_named_with_both_values(company):
    for lines in said(company({}, {"LEARNING_RATE": "3e-4"})):
        assert len(lines) == 1
        assert "ConfigError" in lines[0]
        assert "process 1 of 2 on " in lines[0]
        assert "was started otherwise than process 0 of 2 on " in lines[0]
        assert "trainer.learning_rate=0.0003 (there: 0.0001). Give every machine the same line" in lines[0]


def test_a_folder_that_machines_do_not_share_is_refused(company, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    for lines in said(company({"CWD": "a"}, {"CWD": "b"}, RUN="run", SEEN="1")):
        assert "RunError" in lines[0]
        assert "output_dir=run of process 1 of 2 on " in lines[0]
        assert "is not the folder that process 0 of 2 on " in lines[0]
        assert "has claimed. Give a folder on a disk that all machines share." in lines[0]
    assert list((tmp_path / "b").iterdir()) == []


def test_one_folder_may_have_two_names(company, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert said(company({}, {"RUN": str(tmp_path / "link")})) == [["here", "done"]] * 2


def test_other_rows_on_a_machine_are_refused(company):
    for lines in said(company({}, {"ROWS": "def"})):
        assert "DataError" in lines[-1]
        assert "process 1 of 2 on " in lines[-1]
        assert "has prepared other rows than process 0 of 2" in lines[-1]
        assert "(data_sha256). Give all machines the same files" in lines[-1]


def test_who_dies_while_the_others_wait_is_told_of_by_one_of_them(company):
    waiting = company({}, {"SLOW": "600"}, {})
    assert waiting[1].stdout.readline() == "here\n"
    waiting[1].kill()
    first, _, third = said(waiting)
    assert first[-1].startswith("LossError False process 1 of 3 on ")
    assert first[-1].endswith("has died. The same line again goes on from the last checkpoint.")
    assert third[-1].startswith("LossError True process 1 of 3 on ")
    assert len(first) == 3  # and it was written down


def test_what_one_process_fails_of_is_told_by_the_first(company):
    first, second = said(company({}, {"FAILS": "yes"}))
    assert first[-1].startswith("LossError False process 1 of 2 on ")
    assert first[-1].endswith("failed: no such row")
    assert second == ["here"]  # it ends with its own traceback


def test_one_that_is_asked_to_stop_while_the_others_wait_stops_all(company):
    waiting = company({}, {"SLOW": "600"})
    assert waiting[1].stdout.readline() == "here\n"
    waiting[1].send_signal(signal.SIGTERM)
    first, second = said(waiting)
    assert first == ["here", "Interrupted None another process was asked to stop"]
    assert second == ["Interrupted None SIGTERM"]
