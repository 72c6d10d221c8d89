"""Functions in separate processes: one that receives messages and can be stopped (`Process`), or a pool (`Pool`).

The parent tells a process something through one pipe, and the process reports through another. When the parent closes
the first pipe, ends or is killed, the process sees the pipe's end, interrupts what it does and ends; when the process
ends or is killed, the parent sees the end of the second. Nothing else is needed for either to notice the end of the
other. Ctrl-C reaches the parent only.
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
GRACE = 10  # seconds that a process gets to end by itself
PATIENCE = 600  # seconds that one gets to save what it does when nobody is left to tell it to end
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read as torch and numpy are imported
_BEGIN = """\
import sys
from multiprocessing.connection import Connection
told = Connection(int(sys.argv[2]), writable=False)
try:
    sys.path[:] = told.recv()
except EOFError:  # the parent is gone before it said anything
    sys.exit(1)
from lmdynamics.jobs import begin
begin(told, Connection(int(sys.argv[3]), readable=False))
"""

_running: WeakSet["Process"] = WeakSet()


def _forget_all() -> None:
    """In a plain fork of this process, as a DataLoader makes: its copies of the pipes would hide this one's end."""
    for process in list(_running):
        process._told.close()
        process._reports.close()
    _running.clear()


os.register_at_fork(after_in_child=_forget_all)


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
        while (low := os.open(os.devnull, os.O_RDWR)) < 3:  # where a daemon has closed 0, 1 or 2, no pipe may be one
            pass
        os.close(low)
        theirs, self._told = Pipe(duplex=False)
        self._reports, reports = Pipe(duplex=False)
        pipes = [theirs.fileno(), reports.fileno()]
        name = f"{work.__module__}.{work.__qualname__}"  # for whoever lists processes
        try:
            with theirs, reports:
                self._popen = subprocess.Popen(
                    [sys.executable, "-P", "-c", _BEGIN, name, *map(str, pipes)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=None if output is None else subprocess.STDOUT,
                    pass_fds=pipes,
                    env={**os.environ, **own},
                    start_new_session=True,
                )
            self.pid = self._popen.pid
            _running.add(self)
            self.send(sys.path)
            self.send((work, arguments))
        except BaseException:  # Ctrl-C, say: nobody will know of it
            self.close()
            raise

    @property
    def status(self) -> int | None:
        """What it has ended with: 0 if all went well, -9 if signal 9 ended it; None before its end."""
        return self._popen.poll()

    def send(self, message: Any) -> None:
        """Tell it something; it is not told if it has ended, and `receive` says so."""
        packed = pickle.dumps(message)  # what cannot be sent is the caller's error, not the end of the process
        with suppress(OSError):
            self._told.send_bytes(packed)

    def poll(self, seconds: float = 0) -> bool:
        """Whether it has reported something or has ended, within some seconds."""
        try:
            return self._reports.poll(seconds) or self.status is not None
        except OSError:  # closed: it is being stopped
            return True

    def receive(self) -> Any:
        """Its next report, waited for; None when it has ended."""
        try:
            while not self._reports.poll(1):
                if self.status is not None and not self._reports.poll():  # though what it has started may hold its pipe
                    raise EOFError
            report = self._reports.recv_bytes()
        except (EOFError, OSError):  # between two reports, or within one
            self.wait()
            return None
        return ForkingPickler.loads(report)

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
        self._reports.close()  # nobody reads any more, and one that waits for a reader would not end
        for signalled in (self._popen.terminate, self._popen.kill):
            if self.wait(grace):
                return
            signalled()
        self.wait()


@atexit.register
def _end_all() -> None:
    """At the end of this process: those that still run save what they do and end."""
    for process in list(_running):
        process.close()
    for process in list(_running):
        while process.receive() is not None:  # one that waits for a reader would not end
            pass


class Parent:
    """In a process: what its parent tells it, and what it reports. SIGTERM counts as the parent's end."""

    def __init__(self, told: connection.Connection, reports: connection.Connection):
        self._told, self._reports = told, reports
        self._unread: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._inside = self._raised = False
        signal.signal(signal.SIGINT, self._interrupt)  # not ignored, which would be inherited by what is started here
        signal.signal(signal.SIGTERM, lambda *_: self._hear(None))
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, report: Any) -> None:
        """Report something; where nobody listens any more, nothing happens."""
        packed = pickle.dumps(report)
        with suppress(OSError):
            self._reports.send_bytes(packed)

    def receive(self) -> Any:
        """What the parent says next, waited for; None when nothing will come, as it has let go or has ended."""
        message = self._unread.get()
        if message is None:
            self._unread.put(None)  # for the next to ask
            return None
        return ForkingPickler.loads(message)  # here and not in the thread that listens: it may import much, or fail

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, KeyboardInterrupt is raised when the parent says something, has said it already, or has ended."""
        self._inside, self._raised = True, False
        try:
            self._interrupt()
            yield
        finally:
            self._inside = False

    def _interrupt(self, *_) -> None:
        if self._inside and not self._raised and not self._unread.empty():
            self._raised = True  # once: what cleans up is left alone
            raise KeyboardInterrupt

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._hear(self._told.recv_bytes())
        self._hear(None)
        time.sleep(PATIENCE)
        os._exit(1)  # it is held up by something that no interrupt reaches

    def _hear(self, message: bytes | None) -> None:
        self._unread.put(message)
        if self._inside:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # even while it waits for something else


def begin(told: connection.Connection, reports: connection.Connection) -> None:
    """In a new process: do what the parent says first."""
    for pipe in (told, reports):
        os.set_inheritable(pipe.fileno(), False)  # what is started here must not hold the parent's end open
    try:
        work, arguments = told.recv()
    except EOFError:  # the parent is gone
        sys.exit(1)
    sys.exit(work(Parent(told, reports), *arguments))


# several --------------------------------------------------------------------------------------------------------------


class Pool(ThreadPoolExecutor):
    """Processes that call functions of modules for this one; each takes many calls, as importing torch takes seconds.

    `threads`: how many each computes with on a CPU. `gpus`: each sees one of these. `nice`: 19 is the lowest priority.
    A process that is killed fails its call alone. When the pool is shut down, what is not done is interrupted.
    """

    def __init__(self, workers: int, *, threads: int = 1, gpus: Sequence[str] = (), nice: int = 0):
        super().__init__(workers)  # a thread waits for each process
        self._options = [{"threads": threads, "gpu": gpus[i % len(gpus)] if gpus else ""} for i in range(workers)]
        self._nice = nice
        self._free: queue.LifoQueue[int] = queue.LifoQueue()  # the one that was used last has imported torch
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
                if process is None or process.status is not None:  # not begun, or killed
                    process = Process(_answer, self._nice, **self._options[worker])
                    self._processes[worker] = process
            process.send((work, arguments))
            answer = process.receive()
        finally:
            self._free.put(worker)
        if answer is None and self._ended:
            raise CancelledError
        if answer is None and process.status >= 0:
            raise UserError(f"its process ended with status {process.status}; what it printed says why")
        if answer is None:
            raise UserError("its process was killed, perhaps for want of memory; fewer workers need less")
        result, error = answer
        if error is not None:
            raise error
        return result


def _answer(parent: Parent, nice: int) -> None:
    """In a process of a pool: do what the parent sends, and report the result and None, or None and the error."""
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
        except KeyboardInterrupt:  # nobody wants the result any more
            return
        except Exception as error:
            parent.send((None, _sendable(error)))


def _sendable(error: Exception) -> Exception:
    """The error with its traceback as a note; one that no pipe can carry as what it says."""
    try:
        ForkingPickler.loads(pickle.dumps(error))
    except Exception:
        note, error = traceback.format_exc(), RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(note)
    else:
        error.add_note("".join(traceback.format_exception(error)))
    return error


def map_in_processes(work: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """`work(job)` of each job, in order: by some processes with a thread each, or here where one worker is enough."""
    if workers == 1:
        yield from map(work, jobs)
        return
    with Pool(workers) as pool:
        yield from pool.map(work, jobs)


def aside() -> Pool:
    """A pool of one process of low priority, for measuring while a run is trained on the same machine.

    A thread of low priority would not do: while it waits for its turn it may hold the interpreter's lock.
    """
    return Pool(1, nice=19)
