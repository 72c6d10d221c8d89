"""Functions in separate processes: one that receives messages and can be stopped (`Process`), or a pool (`Pool`).

The parent sends messages through one pipe, and the process sends reports through another. When the parent closes the
first pipe, ends or is killed, the process reads the end of that pipe, interrupts its work and ends. When the process
ends or is killed, the parent reads the end of the second pipe. Ctrl-C reaches the parent only.
"""

import atexit
import os
import pickle
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import Pipe, connection
from multiprocessing.reduction import ForkingPickler
from typing import IO, Any
from weakref import WeakSet

from lmdynamics.errors import UserError

CORES = "LMDYNAMICS_CORES"
GPUS = "CUDA_VISIBLE_DEVICES"
GRACE = 10  # seconds for a process to end by itself
SAVE_TIMEOUT = 600  # seconds for a process to save its work after its parent has ended
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read as torch and numpy are imported
_BEGIN = """\
import sys
from multiprocessing.connection import Connection
messages = Connection(int(sys.argv[2]), writable=False)
try:
    sys.path[:] = messages.recv()
except EOFError:  # the parent ended before it sent anything
    sys.exit(1)
from lmdynamics.jobs import begin
begin(messages, Connection(int(sys.argv[3]), readable=False))
"""

_running: WeakSet["Process"] = WeakSet()


def _close_in_fork() -> None:
    """Runs in a plain fork, such as a DataLoader's worker: its copies of the pipes would hide this process's end."""
    for process in list(_running):
        process._messages.close()
        process._reports.close()
    _running.clear()


os.register_at_fork(after_in_child=_close_in_fork)


def available_cores() -> int:
    """Number of cores that this process may use: those of its affinity mask (taskset, containers, SLURM), unless its
    parent divided them among several processes."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return int(os.environ.get(CORES) or len(os.sched_getaffinity(0)))
    return int(os.environ.get(CORES) or os.cpu_count() or 1)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them: by number or by UUID."""
    listed_gpus = os.environ.get(GPUS)
    if listed_gpus is not None:
        return [name for name in listed_gpus.split(",") if name not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:  # faster than importing torch
        return []
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


# one process ----------------------------------------------------------------------------------------------------------


class Process:
    """A process that runs `work(parent, *arguments)`, a function of a module; `parent` is a `Parent`.

    It has its own session: Ctrl-C, or a signal to the process group of a kernel, does not reach it. `threads`: number
    of CPU threads. `gpu`: the only GPU that it can use. `environment`: additional variables. `output`: a file or
    `subprocess.DEVNULL` to print to; by default the output of this process.
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
        variables = dict.fromkeys(_THREADS, str(threads)) if threads else {}
        variables |= ({GPUS: gpu} if gpu else {}) | dict(environment or {})
        while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:  # no pipe may be 0, 1 or 2, which a daemon has closed
            pass
        os.close(descriptor)
        child_end, self._messages = Pipe(duplex=False)
        self._reports, reports = Pipe(duplex=False)
        pipes = [child_end.fileno(), reports.fileno()]
        name = f"{work.__module__}.{work.__qualname__}"  # shown in a list of processes
        try:
            with child_end, reports:
                self._popen = subprocess.Popen(
                    [sys.executable, "-P", "-c", _BEGIN, name, *map(str, pipes)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=None if output is None else subprocess.STDOUT,
                    pass_fds=pipes,
                    env={**os.environ, **variables},
                    start_new_session=True,
                )
            self.pid = self._popen.pid
            _running.add(self)
            self.send(sys.path)
            self.send((work, arguments))
        except BaseException:  # for example Ctrl-C: no caller would end the process
            self.close()
            raise

    @property
    def status(self) -> int | None:
        """Exit status: 0 for success, -9 if signal 9 ended it, None while it runs."""
        return self._popen.poll()

    def send(self, message: Any) -> None:
        """Send a message. If the process has ended, the message is lost and `receive` returns None."""
        packed = pickle.dumps(message)  # an object that cannot be pickled is the caller's error
        with suppress(OSError):
            self._messages.send_bytes(packed)

    def poll(self, seconds: float = 0) -> bool:
        """Whether it has reported something or has ended, within some seconds."""
        try:
            return self._reports.poll(seconds) or self.status is not None
        except OSError:  # closed: it is being stopped
            return True

    def receive(self) -> Any:
        """Wait for the next report; None when the process has ended."""
        try:
            while not self._reports.poll(1):
                if self.status is not None and not self._reports.poll():  # its own child processes may hold its pipe
                    raise EOFError
            report = self._reports.recv_bytes()
        except (EOFError, OSError):  # between two reports or within one
            self.wait()
            return None
        return ForkingPickler.loads(report)

    def close(self) -> None:
        """Ask it to end: its work is interrupted. Its last reports can still be received."""
        self._messages.close()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for its end. Returns whether it ended within `seconds`."""
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        _running.discard(self)
        return True

    def stop(self, grace: float = GRACE) -> None:
        """End it: ask it to end, then SIGTERM, then SIGKILL, with `grace` seconds after each."""
        self.close()
        self._reports.close()  # a process that waits for a reader would not end
        for send_signal in (self._popen.terminate, self._popen.kill):
            if self.wait(grace):
                return
            send_signal()
        self.wait()


@atexit.register
def _end_all() -> None:
    """At the end of this process, running processes save their work and end."""
    for process in list(_running):
        process.close()
    for process in list(_running):
        while process.receive() is not None:  # a process that waits for a reader would not end
            pass


class Parent:
    """The parent, as its process sees it: receives messages and sends reports. SIGTERM counts as the parent's end."""

    def __init__(self, messages: connection.Connection, reports: connection.Connection):
        self._messages, self._reports = messages, reports
        self._unread: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._is_interruptible = self._raised = False
        signal.signal(signal.SIGINT, self._interrupt)  # not SIG_IGN: child processes would inherit it
        signal.signal(signal.SIGTERM, lambda *_: self._enqueue(None))
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, report: Any) -> None:
        """Send a report. If the parent has ended, nothing happens."""
        packed = pickle.dumps(report)
        with suppress(OSError):
            self._reports.send_bytes(packed)

    def receive(self) -> Any:
        """Wait for the parent's next message; None when it has closed the pipe or has ended."""
        message = self._unread.get()
        if message is None:
            self._unread.put(None)  # for the next call
            return None
        return ForkingPickler.loads(message)  # not in the listening thread: it may import modules, or fail

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise KeyboardInterrupt inside if the parent has sent a message, sends one, or has ended."""
        self._is_interruptible, self._raised = True, False
        try:
            self._interrupt()
            yield
        finally:
            self._is_interruptible = False

    def _interrupt(self, *_) -> None:
        if self._is_interruptible and not self._raised and not self._unread.empty():
            self._raised = True  # once: the clean-up is not interrupted
            raise KeyboardInterrupt

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._enqueue(self._messages.recv_bytes())
        self._enqueue(None)
        time.sleep(SAVE_TIMEOUT)
        os._exit(1)  # blocked by a call that no interrupt reaches

    def _enqueue(self, message: bytes | None) -> None:
        self._unread.put(message)
        if self._is_interruptible:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # also while it waits for something else


def begin(messages: connection.Connection, reports: connection.Connection) -> None:
    """In a new process: run the function that the parent sends first."""
    for pipe in (messages, reports):
        os.set_inheritable(pipe.fileno(), False)  # child processes must not hold the parent's end open
    try:
        work, arguments = messages.recv()
    except EOFError:  # the parent has ended
        sys.exit(1)
    sys.exit(work(Parent(messages, reports), *arguments))


# several --------------------------------------------------------------------------------------------------------------


class Pool(ThreadPoolExecutor):
    """Processes that call module-level functions; each takes many calls, since importing torch takes seconds.

    `threads`: CPU threads of each process. `gpus`: each process uses one of these. `nice`: 19 is the lowest priority.
    If a process is killed, only its call fails. Shutting the pool down interrupts unfinished calls.
    """

    def __init__(self, workers: int, *, threads: int = 1, gpus: Sequence[str] = (), nice: int = 0):
        super().__init__(workers)  # a thread waits for each process
        self._options = [{"threads": threads, "gpu": gpus[i % len(gpus)] if gpus else ""} for i in range(workers)]
        self._nice = nice
        self._free: queue.LifoQueue[int] = queue.LifoQueue()  # last in, first out: the last one used has imported torch
        for worker in reversed(range(workers)):
            self._free.put(worker)
        self._processes: dict[int, Process] = {}
        self._lock = threading.Lock()
        self._ended = False

    def submit(self, work: Callable, /, *arguments: Any) -> Future:
        return super().submit(self._call, work, arguments)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        super().shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._ended = True
            for process in self._processes.values():
                process.close()
        if wait:
            for process in self._processes.values():
                process.wait()
        super().shutdown(wait)

    def _call(self, work: Callable, arguments: tuple) -> Any:
        worker = self._free.get()
        try:
            with self._lock:
                if self._ended:
                    raise CancelledError
                process = self._processes.get(worker)
                if process is None or process.status is not None:  # not started, or killed
                    process = Process(_serve, self._nice, **self._options[worker])
                    self._processes[worker] = process
            process.send((work, arguments))
            answer = process.receive()
        finally:
            self._free.put(worker)
        if answer is None and self._ended:
            raise CancelledError
        if answer is None and process.status >= 0:
            raise UserError(f"its process ended with status {process.status}; its output states the cause")
        if answer is None:
            raise UserError("its process was killed, perhaps because memory ran out; use fewer workers")
        result, error = answer
        if error is not None:
            raise error
        return result


def _serve(parent: Parent, nice: int) -> None:
    """In a process of a pool: run each call that the parent sends, and report (result, None) or (None, error)."""
    os.nice(nice)
    while True:
        try:
            call = parent.receive()
            if call is None:
                return
            work, arguments = call
            with parent.interruptible():
                result = work(*arguments)
            parent.send((result, None))
        except KeyboardInterrupt:  # the result is no longer needed
            return
        except Exception as error:
            parent.send((None, _sendable(error)))


def _sendable(error: Exception) -> Exception:
    """The error with its traceback as a note; a RuntimeError with its message if it cannot be pickled."""
    try:
        ForkingPickler.loads(pickle.dumps(error))
    except Exception:
        note, error = traceback.format_exc(), RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(note)
    else:
        error.add_note("".join(traceback.format_exception(error)))
    return error


def map_in_processes(work: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """`work(job)` of each job, in order: in single-threaded processes, or in this process for one worker."""
    if workers == 1:
        yield from map(work, jobs)
        return
    with Pool(workers) as pool:
        yield from pool.map(work, jobs)


def background_pool() -> Pool:
    """A pool of one process of low priority, for measuring while a run is trained on the same machine.

    A thread of low priority would not be enough: while it waits to run, it may hold the interpreter's lock.
    """
    return Pool(1, nice=19)
