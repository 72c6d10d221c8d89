"""Work in processes of its own: one process that is told, followed and stopped, or a pool that computes for this one.

`Process` starts the first kind. Its parent tells it something through one pipe, and it reports through another. When
the parent closes the first pipe, ends or is killed, the process sees the pipe's end, interrupts what it does and ends;
when the process ends or is killed, the parent sees the end of the second. Nothing else is needed for either to notice
the end of the other. Ctrl-C reaches the parent only.
"""

import atexit
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import Pipe, connection, get_context, parent_process, resource_tracker
from typing import IO, Any
from weakref import WeakSet

CORES = "LMDYNAMICS_CORES"
GPUS = "CUDA_VISIBLE_DEVICES"
GRACE = 10  # seconds that a process gets to end by itself
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read as torch and numpy are imported
_BEGIN = """\
import sys
from multiprocessing.connection import Connection
told = Connection(int(sys.argv[2]), writable=False)
sys.path[:] = told.recv()
from lmdynamics.jobs import begin
begin(told, Connection(int(sys.argv[3]), readable=False))
"""

_running: WeakSet["Process"] = WeakSet()


def cores_here() -> int:
    """How many cores this process may use: all, unless its parent has divided them among several."""
    return int(os.environ.get(CORES) or os.cpu_count() or 1)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them: by number, or by an identity."""
    named = os.environ.get(GPUS)
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:  # quicker to know than by importing torch
        return []
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


# one process ----------------------------------------------------------------------------------------------------------


class Process:
    """A process that runs `work(parent, *arguments)`, a function of a module; `parent` is a `Parent`.

    It has a session of its own: Ctrl-C, or a signal to the group of a kernel that is shut down, does not reach it.
    `threads`: how many it computes with on a CPU. `gpu`: the only one it sees. `environment`: variables besides.
    `output`: where it prints to, a file or `subprocess.DEVNULL`; by default where this process does.
    """

    def __init__(
        self,
        work: Callable[..., int | None],
        *arguments: Any,
        threads: int | None = None,
        gpu: str = "",
        environment: Mapping[str, str] | None = None,
        output: int | IO | None = None,
    ):
        own = dict.fromkeys(_THREADS, str(threads)) if threads else {}
        own |= ({GPUS: gpu} if gpu else {}) | dict(environment or {})
        theirs, self._told = Pipe(duplex=False)
        self._reports, reports = Pipe(duplex=False)
        pipes = [theirs.fileno(), reports.fileno()]
        name = f"{work.__module__}.{work.__qualname__}"  # for whoever lists processes
        try:
            with theirs, reports, without_interrupts():
                self._popen = subprocess.Popen(
                    [sys.executable, "-c", _BEGIN, name, *map(str, pipes)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=None if output is None else subprocess.STDOUT,
                    pass_fds=pipes,
                    env={**os.environ, **own},
                    start_new_session=True,
                )
                _running.add(self)
                self.send(sys.path)
                self.send((work, arguments))
        except BaseException:  # Ctrl-C, say: nobody will know of it
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def status(self) -> int | None:
        """What it has ended with: 0 if all went well, -9 if signal 9 ended it; None before its end."""
        return self._popen.poll()

    def send(self, message: Any) -> None:
        """Tell it something; it is not told if it has ended, and `receive` says so."""
        with suppress(OSError):
            self._told.send(message)

    def poll(self, seconds: float = 0) -> bool:
        """Whether it has reported something or has ended, within some seconds."""
        return self._reports.poll(seconds)

    def receive(self) -> Any:
        """Its next report, waited for; None when it has ended."""
        try:
            return self._reports.recv()
        except (EOFError, OSError):  # between two reports, or within one
            self.wait()
            return None

    def close(self) -> None:
        """Let it end: what it does is interrupted, as when this process ends. What it still reports can be received."""
        self._told.close()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for its end; whether it has ended within some seconds."""
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        _running.discard(self)
        return True

    def stop(self, grace: float = GRACE) -> None:
        """End it: let it end, then SIGTERM, then SIGKILL, with `grace` seconds after each."""
        self.close()
        for signalled in (self._popen.terminate, self._popen.kill):
            if self.wait(grace):
                return
            signalled()
        self.wait()


def ready(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Those that have reported something or have ended; waits for the first one, at most some seconds."""
    reporting = {process._reports: process for process in processes}
    return [reporting[pipe] for pipe in connection.wait(list(reporting), seconds)]


@atexit.register
def _end_all() -> None:
    """At the end of this process: those that still run save what they do and end."""
    for process in list(_running):
        process.close()
    for process in list(_running):
        process.wait()


class Parent:
    """In a process: what its parent tells it, and what it reports. SIGTERM counts as the parent's end."""

    def __init__(self, told: connection.Connection, reports: connection.Connection):
        self._told, self._reports = told, reports
        self._unread: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._interrupts = False
        signal.signal(signal.SIGINT, self._interrupt)  # not ignored, which would be inherited by what is started here
        signal.signal(signal.SIGTERM, self._end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, report: Any) -> None:
        """Report something; where nobody listens any more, nothing happens."""
        with suppress(OSError):
            self._reports.send(report)

    def receive(self) -> Any:
        """What the parent says next, waited for; None when nothing will come, as it has let go or has ended."""
        message = self._unread.get()
        if message is None:
            self._unread.put(None)  # for the next to ask
        return message

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, KeyboardInterrupt is raised when the parent says something, has said it already, or has ended."""
        self._interrupts = True
        try:
            self._interrupt()
            yield
        finally:
            self._interrupts = False

    def _interrupt(self, *_) -> None:
        if self._interrupts and not self._unread.empty():
            self._interrupts = False  # once: what cleans up is left alone
            raise KeyboardInterrupt

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._unread.put(self._told.recv())
                self._wake()
        self._end()

    def _end(self, *_) -> None:
        self._unread.put(None)
        self._wake()

    @staticmethod
    def _wake() -> None:
        """Interrupt the main thread, even while it waits for something else."""
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def begin(told: connection.Connection, reports: connection.Connection) -> None:
    """In a new process: do what the parent says first."""
    for pipe in (told, reports):
        os.set_inheritable(pipe.fileno(), False)  # what is started here must not hold the parent's end open
    work, arguments = told.recv()
    sys.exit(work(Parent(told, reports), *arguments))


# pools ----------------------------------------------------------------------------------------------------------------


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C waits, and never reaches the processes started here: they are told by a pipe, whatever they are at."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def map_in_processes(work: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """`work(job)` of each job, in order: by some processes with a thread each, or here where one worker is enough.

    The processes ignore Ctrl-C and end when their parent ends, even if it is killed.
    """
    if workers == 1:
        yield from map(work, jobs)
        return
    executor = _pool(workers, _end_with_parent)
    try:
        with without_interrupts(), _one_thread_each():
            pending = [executor.submit(work, job) for job in jobs]
        for each in pending:
            yield each.result()
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def aside() -> Iterator[ProcessPoolExecutor]:
    """An executor of one process of low priority, which ends when its parent ends, even if that is killed.

    For measuring while a run is trained on the same machine. A thread of low priority would not do: while it waits for
    its turn it may hold the interpreter's lock. Ctrl-C keeps away from the process, and from the calling thread.
    """
    executor = _pool(1, _begin_aside)
    with without_interrupts(), executor:
        yield executor


def _pool(workers: int, begin: Callable[[], None]) -> ProcessPoolExecutor:
    resource_tracker.ensure_running()  # the first spawn starts it, which lets SIGINT through again
    return ProcessPoolExecutor(workers, get_context("spawn"), begin)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """What is started here computes with one thread."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _begin_aside() -> None:
    os.nice(19)
    import torch

    torch.set_num_threads(1)
    _end_with_parent()


def _end_with_parent() -> None:
    """Watch the parent process: nothing else would end it, for it holds both ends of the pipe it waits at."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
