"""The process that executes one notebook with papermill, and ends when its parent ends.

`batch.execute` starts it and receives its progress. If the parent ends or is killed, the process and its kernel end.
"""

import logging
import os
import resource
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmdynamics import jobs
from lmdynamics.batch.parameters import KERNEL
from lmdynamics.batch.plan import Job
from lmdynamics.environment import peak_mb
from lmdynamics.errors import UserError, shortened

MAX_SOCKET_PATH = 95  # characters; systems allow about a hundred
MAX_MESSAGE = 2_000  # characters of an error's message
MAX_OUTPUT = 2_000_000  # characters that one cell may print into its notebook and its log


def execute(parent: jobs.Parent, job: Job) -> int:
    """Execute the notebook: one event for each cell that it starts, and a last one with the result."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the signal is reported in the outcome
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel named python3 is this interpreter's, not the user's
    os.environ["LMDYNAMICS_BATCH"] = "1"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("papermill").setLevel(logging.INFO)

    from papermill import PapermillExecutionError, execute_notebook
    from papermill.engines import papermill_engines
    from papermill.iorw import load_notebook_node
    from papermill.utils import find_first_tagged_cell_index

    notebook = load_notebook_node(str(job.notebook))
    parameters_cell = max(find_first_tagged_cell_index(notebook, "parameters"), 0)

    def original(index: int) -> int:
        """The index of an executed cell in the original notebook, which lacks the cell that papermill injects."""
        return index - bool(job.parameters and index > parameters_cell)

    def send(**event: Any) -> None:
        # of the largest process that has ended, mostly the kernel
        parent.send({**event, **({"peak_mb": peak_mb(resource.RUSAGE_CHILDREN)} if "status" in event else {})})

    def cell_starts(cell: Any, cell_index: int) -> None:
        index = original(cell_index)
        send(cell=index + 1, cells=len(notebook.cells), source=first_line(cell.source))

    sockets = tempfile.TemporaryDirectory(prefix="lmd-")
    papermill_engines.register("lmdynamics", _engine(Path(sockets.name)))
    try:
        done = execute_notebook(
            _escaped(job.notebook),
            _escaped(job.executed),
            parameters=job.parameters,
            engine_name="lmdynamics",
            kernel_name=KERNEL,
            language="python",
            progress_bar=False,
            log_output=True,
            on_cell_start=cell_starts,
        )
    except PapermillExecutionError as error:
        _write_page(job)
        index, source = original(error.cell_index), first_line(error.source)
        send(status="failed", cell=index + 1, source=source, error=_error_line(error))
        return 1
    except OSError as error:  # for example a full disk
        send(status="failed", error=f"{error.strerror or error}: {error.filename or job.folder}")
        return 1
    finally:
        sockets.cleanup()
    _write_page(job)
    # for papermill sys.exit(0) is a success; here it is a failure, because the notebook did not run to its end
    cells = [(i, cell) for i, cell in enumerate(done.cells) if cell.cell_type == "code" and cell.source.strip()]
    exits = [(i, cell) for i, cell in cells if any(o.get("ename") == "SystemExit" for o in cell.outputs)]
    skipped = [(i, cell) for i, cell in cells if cell.execution_count is None]
    if exits or skipped:
        index, cell = (exits or skipped)[0]
        message = f"SystemExit: the notebook ended itself, {len(skipped)} cells before its end"
        message = message if exits else "it never ran"
        send(status="failed", cell=original(index) + 1, source=first_line(cell.source), error=message)
        return 1
    send(status="finished")
    return 0


def _engine(sockets: Path) -> type:
    """papermill's own engine, with a limit on the output of one cell, and a kernel that listens on Unix sockets.

    Over TCP, two kernels that start at the same time may choose the same port, and one of them dies.
    """
    from nbformat.v4 import new_output
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine
    from traitlets.config import Config

    path = str(sockets / "kernel")
    connection = {"transport": "ipc", "ip": path} if len(path) < MAX_SOCKET_PATH else {}

    class Client(PapermillNotebookClient):
        printed = 0
        last_cell = -1

        def process_message(self, msg: dict, cell: Any, cell_index: int) -> Any:
            if msg["msg_type"] == "stream":
                self.printed, self.last_cell = (self.printed if cell_index == self.last_cell else 0), cell_index
                room, self.printed = MAX_OUTPUT - self.printed, self.printed + len(msg["content"]["text"])
                if room <= 0:
                    return None
                msg["content"]["text"] = msg["content"]["text"][:room]
            output = super().process_message(msg, cell, cell_index)
            if msg["msg_type"] == "stream" and self.printed > MAX_OUTPUT:
                notice = f"\n[cut: this cell printed more than {MAX_OUTPUT:,} characters]\n"
                cell.outputs.append(new_output("stream", name="stderr", text=notice))
            return output

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, log_output, start_timeout, on_cell_start, **_) -> Any:
            options = {"startup_timeout": start_timeout, "timeout": None, "on_cell_start": on_cell_start}
            options |= {"log": logging.getLogger("papermill"), "config": Config(ConnectionFileMixin=connection)}
            return Client(nb_man, kernel_name=kernel_name, log_output=log_output, **options).execute()

    return Engine


def _write_page(job: Job) -> None:
    """Write the executed notebook as an HTML page in the same folder."""
    from lmdynamics.batch.page import write_page

    with suppress(UserError, OSError, ValueError, AttributeError, KeyError):
        write_page(job.executed)


def _end_with(parent: jobs.Parent) -> None:
    """Wait for the parent's end, then kill the kernel, which by itself would notice it only later."""
    import psutil

    parent.receive()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()
    os._exit(1)


def _escaped(path: Path) -> str:
    """A path with braces doubled, because papermill reads braces as format fields."""
    return str(path).replace("{", "{{").replace("}", "}}")


def first_line(source: str) -> str:
    """The first line of code, or else the first line."""
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("#")), lines[0] if lines else "")


def _error_line(error: Any) -> str:
    message = shortened(" ".join(error.evalue.split()), MAX_MESSAGE)
    return f"{error.ename}: {message}" if message else error.ename
