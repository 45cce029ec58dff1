"""The line between the processes of a run, here between threads of one."""

import os
import socket
import threading
import time

import pytest

from gemma_ft.errors import TrainingError
from gemma_ft.training import lifeline
from gemma_ft.training.lifeline import LeftError, Lifeline


@pytest.fixture
def lines(monkeypatch):
    """Connect some processes; returns their ends, and what each has heard."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    made = []

    def connect(size):
        heard = [[] for _ in range(size)]
        ends = [Lifeline(rank, size, heard[rank].append) for rank in range(size)]
        made.extend(ends)
        together(lambda end: end.connect("a run"), ends)
        together(lambda end: end.meet(), ends)
        return ends, heard

    yield connect
    for end in made:
        end.leave("done")


def together(do, ends):
    """Do something in all processes at the same time; returns what came out, or the error."""
    found = [None] * len(ends)

    def run(number):
        try:
            found[number] = do(ends[number])
        except TrainingError as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(ends))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_all_processes_hear_what_each_has_said_by_rank(lines):
    ends, heard = lines(3)
    for number in range(3):
        said = together(lambda end, number=number: end.meet({"rank": end.rank, "of": number}), ends)
        assert said == [[{"rank": rank, "of": number} for rank in range(3)]] * 3
    assert heard == [[], [], []]


def test_a_long_word_comes_whole(lines):
    ends, _ = lines(2)
    assert together(lambda end: end.meet("x" * 300_000), ends) == [["x" * 300_000] * 2] * 2


@pytest.mark.parametrize("dead", [0, 2])
def test_a_death_is_heard_of_by_all_that_live(lines, dead):
    ends, heard = lines(3)
    ends[dead]._closed = True  # it does nothing any more
    for line in ends[dead]._lines.values():
        line.shutdown(socket.SHUT_RDWR)  # as the system does for a process that is killed
    alive = [rank for rank in range(3) if rank != dead]
    wait_for(lambda: all(heard[rank] for rank in alive))
    assert [heard[rank][0] for rank in alive] == [{"rank": dead, "end": "died", "text": ""}] * 2


def test_who_leaves_with_a_word_has_not_died_and_is_not_waited_for(lines):
    ends, heard = lines(3)
    ends[1].leave("failed", "no such file")
    wait_for(lambda: heard[0] and heard[2])
    assert heard[0] == heard[2] == [{"rank": 1, "end": "failed", "text": "no such file"}]
    with pytest.raises(LeftError, match=r"process 1 has left. Give the same line again"):
        ends[0].meet()
    with pytest.raises(LeftError):
        ends[2].meet()


def test_who_does_not_come_in_time_is_named(lines):
    ends, _ = lines(2)
    with pytest.raises(
        TrainingError, match=r"process\(es\) 1 of 2 did not come in time. Start the same line"
    ):
        ends[0].meet(limit=0.1)


def test_strangers_are_sent_away(lines):
    ends, heard = lines(2)
    port = ends[0]._listening.getsockname()[1]
    for word in (b'{"rank": 1, "token": "guessed"}\n', b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b""):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(word)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) == b""
    assert together(lambda end: end.meet(end.rank), ends) == [[0, 1]] * 2
    assert heard == [[], []]


def test_a_first_process_that_cannot_be_reached_is_named_with_its_place(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(lifeline, "CONNECT_SECONDS", 1.0)
    with pytest.raises(
        TrainingError, match=rf"process 1 of 2 cannot reach the first one at 127.0.0.1:{port}"
    ):
        Lifeline(1, 2, lambda message: None).connect("a run")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_does_not_hold_the_line_of_its_parent(lines):
    ends, _ = lines(2)
    child = os.fork()
    if not child:
        os._exit(int(any(line.fileno() != -1 for end in ends for line in end._lines.values())))
    assert os.waitpid(child, 0)[1] == 0
    assert together(lambda end: end.meet(end.rank), ends) == [[0, 1]] * 2
