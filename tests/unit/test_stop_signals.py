"""Being asked to stop, in programs of a few lines that are sent real signals."""

import os
import signal
import subprocess
import sys
import textwrap
import weakref
from contextlib import suppress

import pytest

from gemma_ft import stopping
from gemma_ft.errors import Interrupted

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

PROGRAM = """
import os, signal, sys, time
from gemma_ft import stopping
from gemma_ft.errors import Interrupted

def busy(seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)

def ready():
    print("ready", flush=True)

{before}
try:
    with stopping.listen():
{body}
except Interrupted as stop:
    print("stopped by", stop.reason, flush=True)
    sys.exit(stop.exit_code)
print("went on to the end", flush=True)
"""


def program(body: str, before: str = "") -> subprocess.Popen[str]:
    code = PROGRAM.format(before=before, body=textwrap.indent(textwrap.dedent(body), " " * 8))
    clean = {key: value for key, value in os.environ.items() if key not in stopping._LAUNCHED}
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def end(started: subprocess.Popen[str]) -> tuple[int, str]:
    with started:  # communicate() would leave out what readline() has read ahead
        out, err = started.stdout.read(), started.stderr.read()
    assert "Traceback" not in err, err
    return started.returncode, out


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_where_a_run_may_end_anywhere_a_signal_ends_it(number, code):
    started = program("ready()\nbusy()")
    started.send_signal(number)
    assert end(started) == (code, f"stopped by {number.name}\n")


def test_a_terminal_that_closes_is_not_heard_under_nohup():
    started = program("ready()\nbusy(0.5)", before="signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    started.send_signal(signal.SIGHUP)
    assert end(started) == (0, "went on to the end\n")


def test_ctrl_c_is_heard_in_the_background_of_a_shell_which_has_it_ignored():
    started = program("ready()\nbusy()", before="signal.signal(signal.SIGINT, signal.SIG_IGN)")
    started.send_signal(signal.SIGINT)
    assert end(started) == (130, "stopped by SIGINT\n")


def test_while_it_is_deferred_a_signal_is_noted_and_raised_where_asked():
    started = program(
        """
        with stopping.deferred():
            ready()
            while stopping.requested() is None:
                time.sleep(0.01)
            print("ended its step", flush=True)
        stopping.check()
        """
    )
    started.send_signal(signal.SIGTERM)
    assert end(started) == (143, "ended its step\nstopped by SIGTERM\n")


def test_a_signal_sent_twice_at_once_is_one():
    started = program(
        """
        try:
            ready()
            busy()
        finally:
            busy(0.2)
            print("left in order", flush=True)
        """
    )
    started.send_signal(signal.SIGTERM)
    started.send_signal(signal.SIGTERM)
    assert end(started) == (143, "left in order\nstopped by SIGTERM\n")


def test_a_second_signal_stops_at_once_and_the_record_is_written_first():
    started = program(
        """
        with stopping.stopped_at_once(lambda stop: print("recorded", stop.reason, flush=True)):
            with stopping.deferred():
                ready()
                while stopping.requested() is None:
                    time.sleep(0.01)
                time.sleep(2 * stopping._SAME_STOP_SECONDS)
                print("again", flush=True)
                busy()
        """
    )
    started.send_signal(signal.SIGINT)
    assert started.stdout is not None
    assert started.stdout.readline() == "again\n"
    started.send_signal(signal.SIGTERM)
    assert end(started) == (130, "recorded SIGINT\n")


def test_a_second_signal_reaches_a_program_that_computes_without_a_pause():
    started = program(
        """
        import hashlib
        with stopping.deferred():
            ready()
            while stopping.requested() is None:
                time.sleep(0.01)
            time.sleep(2 * stopping._SAME_STOP_SECONDS)
            print("again", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # one call of C for minutes
        """
    )
    started.send_signal(signal.SIGTERM)
    assert started.stdout is not None
    assert started.stdout.readline() == "again\n"
    started.send_signal(signal.SIGTERM)
    assert end(started)[0] == 143


def test_a_time_limit_stops_as_sigterm_does():
    started = program("ready()\nwith stopping.within(0.05, 'its time is up'):\n    busy()")
    assert end(started) == (143, "stopped by its time is up\n")


def test_a_run_that_ends_in_time_is_not_stopped_later():
    started = program("ready()\nwith stopping.within(0.3, 'its time is up'):\n    pass\nbusy(0.6)")
    assert end(started) == (0, "went on to the end\n")


def test_a_time_limit_beyond_what_a_clock_can_measure_is_none():
    started = program("ready()\nwith stopping.within(3.6e12, 'its time is up'):\n    busy(0.2)")
    assert end(started) == (0, "went on to the end\n")


DROPPED = {
    "a finalizer": """
        class Slow:
            def __del__(self):
                ready()
                busy(0.3)
        slow = Slow()
        del slow
        busy()
    """,
    "a weak reference's callback, twice": """
        import weakref
        def gone(reference, first=[]):
            if not first:
                first.append(reference)
                ready()
            busy(2)
        class Thing:
            pass
        for _ in range(2):
            thing = Thing()
            reference = weakref.ref(thing, gone)
            del thing
        busy()
    """,
}


@pytest.mark.parametrize("body", DROPPED.values(), ids=DROPPED)
def test_a_stop_that_comes_where_python_drops_exceptions_is_raised_after_it(body):
    started = program(body)
    started.send_signal(signal.SIGTERM)
    assert end(started) == (143, "stopped by SIGTERM\n")


def test_other_problems_that_python_drops_are_told_as_ever():
    started = program(
        """
        class Broken:
            def __del__(self):
                raise ValueError("what was wrong")
        ready()
        Broken()
        """
    )
    with started:
        assert "ValueError: what was wrong" in started.stderr.read()


def test_a_forked_child_does_not_speak_for_its_parent():
    started = program(
        """
        ready()
        child = os.fork()
        if child == 0:
            time.sleep(60)
        os.kill(child, signal.SIGTERM)
        print("child", os.waitpid(child, 0)[1], flush=True)
        busy(0.2)
        """
    )
    assert end(started) == (0, f"child {int(signal.SIGTERM)}\nwent on to the end\n")


def test_a_worker_whose_launcher_is_gone_stops():
    launcher = """
        import subprocess
        if "WORKER" not in os.environ:
            own = {**os.environ, "WORKER": "1"}
            worker = subprocess.Popen([sys.executable, "-c", os.environ["PROGRAM"]], env=own)
            time.sleep(60)
        ready()
        busy()
    """
    code = PROGRAM.format(before="", body=textwrap.indent(textwrap.dedent(launcher), " " * 8))
    code = code.replace(
        "ready()\n        busy()", "stopping._LAUNCHER_POLL_SECONDS = 0.05\n        ready()\n        busy()"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LOCAL_RANK": "0", "PROGRAM": code},
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    started.kill()
    assert started.stdout.readline() == "stopped by its launcher is gone\n"  # said by the worker
    started.wait()
    started.stdout.close()


def test_in_another_thread_nothing_is_installed_and_a_stop_is_still_noted():
    import threading

    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with stopping.listen():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_handlers_are_as_before_once_a_run_is_over():
    def handlers():
        return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.unraisablehook

    before = handlers()
    with stopping.listen():
        ours = handlers()
        assert all(now is not then for now, then in zip(ours, before, strict=True))
        with stopping.listen():  # train() within a command
            pass
        assert handlers() == ours
    assert handlers() == before


def test_a_stop_keeps_nothing_of_what_it_ended():
    """Else a thread frees it as the program ends, which torch answers by aborting."""

    class Thing:
        pass

    def work(stop):
        thing = Thing()
        kept.append(weakref.ref(thing))
        stop()

    kept = []
    with stopping.listen():
        with suppress(Interrupted):
            work(lambda: stopping.interrupt("its time is up"))  # by a signal
        with suppress(Interrupted):
            work(stopping.check)
        assert stopping.requested() is not None
        assert [reference() for reference in kept] == [None, None]


def test_what_was_asked_of_one_run_is_not_asked_of_the_next():
    with pytest.raises(Interrupted, match="its time is up"), stopping.listen():
        stopping.interrupt("its time is up")
    assert stopping.requested() is None  # as a run in another thread asks, which cannot listen
    with stopping.listen():
        assert stopping.requested() is None
        stopping.check()
