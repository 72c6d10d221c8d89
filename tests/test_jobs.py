"""Processes that receive messages from their parent through a pipe, however either ends, and pools of processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module

import psutil
import pytest
import torch

from lmdynamics.errors import UserError
from lmdynamics.jobs import Parent, Pool, Process, background_pool, map_in_processes, visible_gpus

# one process ----------------------------------------------------------------------------------------------------------


def echo(parent: Parent, *arguments) -> int:
    """Reports its arguments, then every message it receives; its status is the number of messages."""
    parent.send(arguments)
    count = 0
    while (message := parent.receive()) is not None:
        parent.send(message)
        count += 1
    parent.send("end")
    return count


def test_a_process_receives_reports_and_ends_when_it_is_closed():
    process = Process(echo, 1, "two")
    assert process.receive() == (1, "two")
    assert os.getsid(process.pid) != os.getsid(0)  # Ctrl-C does not reach it
    assert not process.poll(0.01)
    for message in ("", 3, [4]):
        process.send(message)
        assert process.receive() == message
    assert process.status is None
    process.close()
    assert process.poll(60)
    assert [process.receive() for _ in range(3)] == ["end", None, None]
    assert process.status == 3
    process.send("too late")
    process.stop()


def test_a_killed_process_is_noticed():
    process = Process(echo)
    assert process.receive() == ()
    os.kill(process.pid, signal.SIGKILL)
    assert process.receive() is None
    assert process.status == -signal.SIGKILL


def report_settings(parent: Parent, *names: str) -> None:
    print("printed")
    print("wrong", file=sys.stderr)
    parent.send([os.environ.get(name) for name in names])


def test_threads_gpu_variables_and_output_are_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "A_NAME")
    with (tmp_path / "log.txt").open("w") as log:
        own = Process(report_settings, *names, threads=3, gpu="2", environment={"A_NAME": "a value"}, output=log)
        inherited = Process(report_settings, *names[::2], output=log)
    assert own.receive() == ["3", "3", "2", "a value"]
    assert inherited.receive() == ["7", "0,1,2"]
    for process in (own, inherited):
        assert process.wait(60)
        assert process.status == 0
    assert sorted((tmp_path / "log.txt").read_text().split()) == ["printed"] * 2 + ["wrong"] * 2
    assert os.environ["OMP_NUM_THREADS"] == "7"


def work_long(parent: Parent) -> None:
    """Reports each time that it is interrupted, and what with; cleaning up takes a moment, and is not interrupted."""
    while True:
        try:
            with parent.interruptible():
                parent.send("at work")
                time.sleep(600)
        except KeyboardInterrupt:
            time.sleep(1)
            message = parent.receive()
            parent.send(message or "saved")
            if message is None:
                return


def test_what_the_parent_says_interrupts_work_and_nothing_else():
    process = Process(work_long)
    assert process.receive() == "at work"
    process.send("pause")
    process.send("again")  # while it cleans up, or before it begins anew
    assert [process.receive() for _ in range(2)] == ["pause", "again"]
    assert process.receive() == "at work"
    os.kill(process.pid, signal.SIGINT)  # nobody has said anything
    assert not process.poll(0.2)
    process.close()
    assert [process.receive() for _ in range(2)] == ["saved", None]
    assert process.status == 0


def test_sigterm_is_like_the_parents_end():
    process = Process(work_long)
    assert process.receive() == "at work"
    os.kill(process.pid, signal.SIGTERM)
    assert [process.receive() for _ in range(2)] == ["saved", None]
    assert process.status == 0


def be_stubborn(parent: Parent) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent.send("here")
    while True:
        time.sleep(600)


def test_what_does_not_end_is_killed():
    process = Process(be_stubborn)
    assert process.receive() == "here"
    assert not process.wait(0.01)
    process.stop(grace=0.2)
    assert process.status == -signal.SIGKILL


def raise_error(parent: Parent) -> None:
    raise ZeroDivisionError


def test_an_error_is_a_status_and_a_traceback(tmp_path):
    with (tmp_path / "log.txt").open("w") as log:
        process = Process(raise_error, output=log)
    assert process.receive() is None
    assert process.status == 1
    assert (tmp_path / "log.txt").read_text().endswith("ZeroDivisionError\n")


def start_another(parent: Parent) -> None:
    code = "import signal, time; print(signal.getsignal(signal.SIGINT).__name__, flush=True); time.sleep(600)"
    second_process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, close_fds=False)
    parent.send((second_process.pid, second_process.stdout.readline().strip()))
    parent.receive()


def test_what_it_starts_obeys_ctrl_c_and_does_not_hold_its_pipes():
    process = Process(start_another)
    other, handler = process.receive()
    assert handler == "default_int_handler"
    process.close()
    assert process.receive() is None  # although the other lives on
    os.kill(other, signal.SIGKILL)


PARENT = """\
import os, sys, time
from lmdynamics.jobs import Pool, Process
from tests.test_jobs import work_long
process = Process(work_long)  # no `if __name__ == "__main__"`: nothing is imported twice
process.receive()
with Pool(1) as pool:
    pids = process.pid, pool.submit(os.getpid).result()
    pool.submit(time.sleep, 600)
    print(*pids, flush=True)
    {then}
"""


@pytest.mark.parametrize(
    ("ending", "number"),
    [
        ("time.sleep(600)", signal.SIGKILL),
        ("time.sleep(600)", signal.SIGTERM),
        ("time.sleep(600)", signal.SIGINT),
        ("sys.exit(3)", None),
    ],
)
def test_processes_end_with_their_parent(tmp_path, ending, number):
    """Whether that is killed with all of its group, interrupted or comes to its end."""
    (tmp_path / "parent.py").write_text(PARENT.format(then=ending))
    command = [sys.executable, tmp_path / "parent.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as parent:
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        if number:
            os.killpg(parent.pid, number)
        _, wrong = parent.communicate(timeout=60)
    assert parent.returncode == (-number if number else 3)
    assert wrong.strip().rpartition("\n")[2] == ("KeyboardInterrupt" if number == signal.SIGINT else "")
    assert not psutil.wait_procs(children, timeout=60)[1]


# pools ----------------------------------------------------------------------------------------------------------------


def threads_of(name: str) -> tuple[int, str]:
    return os.getpid(), os.environ[name]


def test_jobs_are_done_in_order_by_processes_with_a_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert list(map_in_processes(abs, range(-20, 0), 2)) == list(range(20, 0, -1))
    apart = list(map_in_processes(threads_of, ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"] * 4, 2))
    assert os.getpid() not in {process for process, _ in apart}
    assert len({process for process, _ in apart}) <= 2
    assert {threads for _, threads in apart} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_one_worker_is_this_process():
    assert list(map_in_processes(threads_of, ["HOME"], 1)) == [(os.getpid(), os.environ["HOME"])]


def divmod_by(n: int) -> tuple[int, int]:
    return divmod(1, n)


def test_the_error_of_a_job_is_raised_in_this_process():
    with pytest.raises(ZeroDivisionError) as raised:
        list(map_in_processes(divmod_by, [1, 0, 1], 2))
    assert "in divmod_by" in raised.value.__notes__[0]


def test_a_process_aside_is_of_low_priority_and_ctrl_c_does_not_reach_it():
    with background_pool() as executor:
        assert executor.submit(os.nice, 0).result() == 19
        assert executor.submit(os.getsid, 0).result() != os.getsid(0)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_fails_its_call_alone():
    with Pool(1) as pool:
        before, killed, after = pool.submit(os.getpid), pool.submit(die), pool.submit(os.getpid)
        with pytest.raises(
            UserError, match="its process was killed, perhaps because memory ran out; use fewer workers"
        ):
            killed.result()
        assert before.result() != after.result()


def test_what_cannot_be_sent_or_read_is_an_error_in_this_process():
    with Pool(1) as pool:
        with pytest.raises(Exception, match="local object"):
            pool.submit(lambda: None).result()
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            pool.submit(Unreadable()).result()
        assert pool.submit(abs, -1).result() == 1


class Unreadable:
    def __reduce__(self):
        return import_module, ("no_such_module",)


def test_work_that_nobody_waits_for_any_more_is_interrupted():
    began = time.monotonic()
    with Pool(1) as pool:
        running, waiting = pool.submit(time.sleep, 600), pool.submit(time.sleep, 600)
        while not running.running():
            time.sleep(0.01)
    assert time.monotonic() - began < 60
    assert running.done()
    assert waiting.cancelled()


@pytest.mark.parametrize(("variable", "gpus"), [("4,7", ["4", "7"]), ("GPU-1a2b", ["GPU-1a2b"]), ("", []), ("-1", [])])
def test_gpus_are_those_that_the_environment_names(monkeypatch, variable, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == gpus


# what cannot cross a pipe, and ends that come at odd moments --------------------------------------------------------


class Bad(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def same(value):
    return value


def fail(kind):
    if kind == "exit":
        sys.exit(3)
    error = Bad("this", "that")
    error.lock = threading.Lock() if kind == "lock" else None
    raise error


def test_tensors_cross():
    with Pool(1) as pool:
        assert torch.equal(pool.submit(same, torch.arange(3)).result(60), torch.arange(3))


@pytest.mark.parametrize("kind", ["lock", "two arguments"])
def test_an_error_that_no_pipe_can_carry_arrives_as_what_it_says(kind):
    with Pool(1) as pool, pytest.raises(RuntimeError, match="Bad: this and that") as error:
        pool.submit(fail, kind).result(60)
    assert any("in fail" in note for note in error.value.__notes__)


def test_a_process_that_ends_itself_is_not_reported_as_killed_and_the_next_call_has_another():
    with Pool(1) as pool:
        with pytest.raises(UserError, match="ended with status 3; its output states the cause"):
            pool.submit(fail, "exit").result(60)
        assert pool.submit(same, 1).result(60) == 1


def test_what_cannot_be_sent_is_the_callers_error_and_the_pool_continues():
    with Pool(1) as pool:
        with pytest.raises((AttributeError, TypeError)):
            pool.submit(same, threading.Lock()).result(60)
        assert pool.submit(same, 1).result(60) == 1


def wait(parent: Parent) -> None:
    with suppress(KeyboardInterrupt), parent.interruptible():
        parent.send("ready")
        time.sleep(60)


def test_orphans_end_whatever_copies_of_their_pipes_there_are(tmp_path):
    """A parent without stdin and stdout starts one, forks, and is killed; the fork lives on."""
    code = (
        "import os, signal, sys, time\n"
        "from lmdynamics.jobs import Process\n"
        "from tests.test_jobs import wait\n"
        "process = Process(wait)\n"
        "assert process.receive() == 'ready'\n"
        "fork = os.fork()\n"
        "if fork == 0: time.sleep(60)\n"
        "open(sys.argv[1], 'w').write(f'{process.pid} {fork}')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    pid_file = tmp_path / "pids"
    subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-c", code, str(pid_file)], check=False, timeout=60
    )
    child, fork = map(int, pid_file.read_text().split())
    try:
        until = time.monotonic() + 20
        while psutil.pid_exists(child) and time.monotonic() < until:
            time.sleep(0.05)
        assert not psutil.pid_exists(child)
    finally:
        os.kill(fork, signal.SIGKILL)


def chatter(parent: Parent) -> None:
    parent.send("x" * 1_000_000)


def test_one_that_waits_for_a_reader_ends_by_itself_when_it_is_stopped():
    process = Process(chatter)
    assert process.poll(60)  # it has begun to send more than a pipe holds
    process.stop(grace=20)
    assert process.status == 0  # by itself; a signal would give -15 or -9
