"""The lock of a run folder: who is refused, who takes over, and what a refusal leaves untouched."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from gemma_ft.errors import RunError
from gemma_ft.locks import folder_lock
from gemma_ft.locks.folder_lock import FolderLock
from gemma_ft.locks.holder import describe_self, parse_holder, read_holder
from gemma_ft.runs import RunFolder, Stage, State

HELD = """
import sys, time
from gemma_ft.runs import RunFolder
run = RunFolder(sys.argv[1])
run.lock()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def hurried(monkeypatch):
    """Beat and look often, so that no test waits."""
    monkeypatch.setattr(folder_lock, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(folder_lock, "_LOOK_SECONDS", 0.05)


@pytest.fixture
def without_flock(monkeypatch):
    monkeypatch.setattr(folder_lock, "_lock", lambda handle: None)


@pytest.fixture
def other():
    """A process that holds a folder."""
    started = []

    def start(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HELD, str(folder)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def plant(folder, *, age, **changed):
    """Leave a lock file as another process would have."""
    path = folder / ".lock"
    path.write_text(json.dumps(json.loads(describe_self()) | changed))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


ELSEWHERE = {"host": "node7", "pid": 4711, "place": "another boot"}


def test_a_second_process_is_refused_by_name_and_touches_nothing(folder, other):
    process = other(folder)
    before = snapshot(folder)
    run = RunFolder(folder)
    words = (
        rf"is in use by another process \(process {process.pid} on \S+, last sign of life \d+ s ago\)\. "
        r"Wait for it or stop it, or give name="
    )
    with pytest.raises(RunError, match=words):
        run.lock()
    assert not run.locked
    assert run.holder().pid == process.pid
    assert snapshot(folder) == before


def snapshot(folder):
    paths = [folder, *sorted(folder.rglob("*"))]
    contents = [path.read_bytes() for path in paths if path.is_file()]
    return [(path.name, path.stat().st_mtime_ns) for path in paths], contents


def test_a_holder_that_is_killed_frees_the_folder_at_once(folder, other):
    process = other(folder)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = RunFolder(folder)
    assert run.holder() is None
    run.lock()
    assert run.holder().pid == os.getpid()


def test_a_killed_holder_is_gone_even_before_its_parent_has_noticed(folder, other):
    process = other(folder)
    process.send_signal(signal.SIGKILL)
    assert until(lambda: RunFolder(folder).holder() is None)
    assert process.returncode is None  # a zombie: nobody has waited for it


def test_a_released_folder_names_nobody_and_is_free(folder, other):
    run = RunFolder(folder)
    run.lock()
    run.lock()
    run.unlock()
    run.unlock()
    assert not run.locked
    assert run.holder() is None
    assert (folder / ".lock").read_text() == ""
    other(folder)


@pytest.mark.parametrize("flock", [True, False])
def test_a_heartbeat_from_another_host_is_believed(folder, hurried, monkeypatch, flock):
    if not flock:
        monkeypatch.setattr(folder_lock, "_lock", lambda handle: None)
    path = plant(folder, age=5, **ELSEWHERE)
    beats = iter(range(100))
    monkeypatch.setattr(
        folder_lock.time, "sleep", lambda seconds: os.utime(path, (1, time.time() - next(beats)))
    )
    with pytest.raises(RunError, match=r"in use by another process \(process 4711 on node7, last sign"):
        RunFolder(folder).lock()
    assert parse_holder(path.read_text()).host == "node7"
    assert RunFolder(folder).holder().host == "node7"


@pytest.mark.parametrize("changed", [ELSEWHERE, {"place": "another boot"}], ids=["host", "same name"])
def test_a_silent_holder_elsewhere_is_waited_for_and_taken_over(
    folder, hurried, monkeypatch, caplog, changed
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(folder_lock, "STALE_SECONDS", 20.2)
    plant(folder, age=20, **changed)
    run = RunFolder(folder)
    run.lock()
    assert run.locked
    said = " ".join(caplog.messages)
    assert re.search(r"was in use by process \d+ on \S+ 20 s ago; waiting for a sign of life", said)
    assert re.search(
        r"taking \S+ over from process \d+ on \S+, which has shown no sign of life for 20 s", said
    )


def test_a_stale_heartbeat_is_taken_over_at_once(folder, caplog):
    caplog.set_level(logging.INFO)
    plant(folder, age=75, **ELSEWHERE)
    assert RunFolder(folder).holder() is None
    run = RunFolder(folder)
    run.lock()
    (said,) = caplog.messages
    assert "over from process 4711 on node7, which has shown no sign of life for 75 s" in said


def test_a_dead_neighbour_is_not_waited_for(folder, hurried, without_flock):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    plant(folder, age=0, pid=dead.pid)
    RunFolder(folder).lock()


def test_a_living_neighbour_is_believed_where_files_cannot_be_locked(folder, hurried, without_flock):
    first, second = RunFolder(folder), RunFolder(folder)
    first.lock()
    with pytest.raises(RunError, match="is in use by another process"):
        second.lock()
    first.unlock()
    second.lock()
    second.unlock()


def test_of_two_that_sign_at_once_one_stays_where_files_cannot_be_locked(folder, without_flock, monkeypatch):
    path = folder / ".lock"
    run = RunFolder(folder)
    monkeypatch.setattr(folder_lock.time, "sleep", lambda seconds: plant(folder, age=0, **ELSEWHERE))
    with pytest.raises(RunError, match="process 4711 on node7"):
        run.lock()
    assert not run.locked
    assert parse_holder(path.read_text()).pid == 4711


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"host": 1, "pid": 2, "since": 3, "place": 4}'])
def test_a_lock_file_that_says_nothing_refuses_nobody_for_long(folder, hurried, monkeypatch, text):
    monkeypatch.setattr(folder_lock, "STALE_SECONDS", 0.1)
    (folder / ".lock").write_text(text)
    assert RunFolder(folder).holder() is None
    RunFolder(folder).lock()


@pytest.mark.parametrize("pid", [0, -1, "7", None])
def test_a_lock_file_that_names_no_process_has_no_holder(folder, pid):
    plant(folder, age=0, pid=pid)
    assert RunFolder(folder).holder() is None


def test_the_heart_beats_for_as_long_as_the_folder_is_held(folder, hurried):
    run, before = RunFolder(folder), threading.enumerate()
    run.lock()
    path = folder / ".lock"
    os.utime(path, (1, 1))
    assert until(lambda: path.stat().st_mtime > 1)
    (thread,) = set(threading.enumerate()) - set(before)
    assert thread.daemon
    run.unlock()
    thread.join(20)
    assert not thread.is_alive()


def test_the_heart_outlives_a_disk_that_stands_still(folder, hurried, monkeypatch):
    run = RunFolder(folder)
    run.lock()
    look, calls = folder_lock.look, []

    def fail(path):
        calls.append(path)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(folder_lock, "look", fail)
    assert until(lambda: len(calls) > 2)
    monkeypatch.setattr(folder_lock, "look", look)
    os.utime(folder / ".lock", (1, 1))
    assert until(lambda: (folder / ".lock").stat().st_mtime > 1)
    run.unlock()


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_whoever_is_taken_over_stops_and_says_nothing_more(folder, hurried):
    told = []
    lock = FolderLock(folder / ".lock", told.append)
    lock.acquire()
    plant(folder, age=0, **ELSEWHERE)
    assert until(lambda: told)
    assert told == [f"{folder} was taken over by process 4711 on node7"]
    assert not lock.held
    words = "taken over by process 4711 on node7 while this process showed no sign of life. Leave it to that"
    with pytest.raises(RunError, match=words):
        lock.check()
    lock.release()
    assert parse_holder((folder / ".lock").read_text()).pid == 4711


def test_a_run_that_is_taken_over_writes_no_status_and_no_metrics(folder, hurried):
    run = RunFolder(folder)
    run.lock()
    run.write_status(State.running, Stage.training)
    plant(folder, age=0, **ELSEWHERE)
    assert until(lambda: not run.locked)
    for write in (lambda: run.write_status(State.failed, Stage.training), lambda: run.append_metrics({})):
        with pytest.raises(RunError, match="was taken over by process 4711 on node7"):
            write()
    assert run.read_status().state is State.running
    assert not run.metrics.exists()


def test_a_fork_does_not_keep_the_folder_from_others(folder):
    run = RunFolder(folder)
    run.lock()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"locked" if run.locked else b"free")
        time.sleep(600)
        os._exit(0)
    assert os.read(reading, 10) == b"free"
    try:
        run.unlock()
        RunFolder(folder).lock()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("anew", [False, True])
def test_a_folder_that_moves_while_it_is_locked_is_said(folder, monkeypatch, anew):
    lock = folder_lock._lock

    def moved(handle):
        folder.rename(folder.with_name("run.old-1"))
        if anew:
            folder.mkdir()
            (folder / ".lock").write_text("")
        return lock(handle)

    monkeypatch.setattr(folder_lock, "_lock", moved)
    with pytest.raises(RunError, match=r"was moved by another process meanwhile\. Give the same line again"):
        RunFolder(folder).lock()


def test_a_folder_that_cannot_be_written_to_is_said(folder, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(folder_lock.os, "open", refuse)
    words = r"cannot be written to \(Read-only file system\)\. Copy the run folder to another disk"
    with pytest.raises(RunError, match=words):
        RunFolder(folder).lock()


def test_a_full_disk_gives_no_lock_and_says_why(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_lock.os, "write", full)
    run = RunFolder(folder)
    with pytest.raises(RunError, match=r"cannot be written to \(No space left on device\)"):
        run.lock()
    monkeypatch.undo()
    run.lock()


def test_nobody_holds_a_folder_without_a_lock_file(folder):
    assert read_holder(folder / ".lock") is None


def test_of_many_that_start_at_once_one_wins(folder):
    barrier, won, refused = threading.Barrier(8), [], []

    def start():
        run = RunFolder(folder)
        barrier.wait()
        try:
            run.lock()
            won.append(run)
        except RunError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)
    assert all("is in use by another process" in line and "\n" not in line for line in refused)
    assert won[0].locked
