"""The process that executes one notebook with papermill, and ends when its parent ends.

`batch.execute` starts it and hears what it is at. When nobody waits any more, killed perhaps, kernel and process go.
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

from lmdynamics import files, jobs
from lmdynamics.batch.parameters import KERNEL
from lmdynamics.batch.plan import Job
from lmdynamics.environment import peak_mb
from lmdynamics.errors import shortened

LONGEST_SOCKET = 95  # characters of a path; a socket's may have some hundred
MOST_SAID = 2_000  # characters of an error's message
MOST = 2_000_000  # characters that one cell may print into its notebook and its log


def execute(parent: jobs.Parent, job: Job) -> int:
    """Execute the notebook: one event for each cell that it starts, and a last one with the result."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what ended it is part of the outcome
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

    def own(index: int) -> int:
        """The index of an executed cell in the reader's notebook, which lacks the cell that papermill injects."""
        return index - bool(job.parameters and index > parameters_cell)

    def tell(**event: Any) -> None:
        # the largest process that has ended is most often the kernel
        parent.send({**event, **({"peak_mb": peak_mb(resource.RUSAGE_CHILDREN)} if "status" in event else {})})

    def cell_starts(cell: Any, cell_index: int) -> None:
        index = own(cell_index)
        tell(cell=index + 1, cells=len(notebook.cells), source=first_line(cell.source))

    sockets = tempfile.TemporaryDirectory(prefix="lmd-")
    papermill_engines.register("lmdynamics", _engine(Path(sockets.name)))
    try:
        done = execute_notebook(
            _literally(job.notebook),
            _literally(job.executed),
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
        tell(status="failed", cell=own(error.cell_index) + 1, source=first_line(error.source), error=_error_line(error))
        return 1
    except OSError as error:  # a full disk, say: nothing more could be written down
        tell(status="failed", error=f"{error.strerror or error}: {error.filename or job.folder}")
        return 1
    finally:
        sockets.cleanup()
    _write_page(job)
    # papermill takes sys.exit(0) for success; here it is a notebook that did not come to its end
    cells = [(i, cell) for i, cell in enumerate(done.cells) if cell.cell_type == "code" and cell.source.strip()]
    ended = [(i, cell) for i, cell in cells if any(o.get("ename") == "SystemExit" for o in cell.outputs)]
    left = [(i, cell) for i, cell in cells if cell.execution_count is None]
    if ended or left:
        index, cell = (ended or left)[0]
        what = "SystemExit: the notebook ended itself" if ended else "it never ran"
        said = f"{what}, {len(left)} cells before its end" if ended else what
        tell(status="failed", cell=own(index) + 1, source=first_line(cell.source), error=said)
        return 1
    tell(status="finished")
    return 0


def _engine(sockets: Path) -> type:
    """papermill's own engine, with a bound on what one cell may print, and a kernel that is spoken to through files.

    Of several kernels that start at once two may choose the same free TCP port, and one of them dies.
    """
    from nbformat.v4 import new_output
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine
    from traitlets.config import Config

    place = str(sockets / "kernel")
    alone = {"transport": "ipc", "ip": place} if len(place) < LONGEST_SOCKET else {}

    class Client(PapermillNotebookClient):
        printed = 0
        of_cell = -1

        def process_message(self, msg: dict, cell: Any, cell_index: int) -> Any:
            if msg["msg_type"] == "stream":
                self.printed, self.of_cell = (self.printed if cell_index == self.of_cell else 0), cell_index
                room, self.printed = MOST - self.printed, self.printed + len(msg["content"]["text"])
                if room <= 0:
                    return None
                msg["content"]["text"] = msg["content"]["text"][:room]
            output = super().process_message(msg, cell, cell_index)
            if msg["msg_type"] == "stream" and self.printed > MOST:
                said = f"\n[cut: this cell printed more than {MOST:,} characters]\n"
                cell.outputs.append(new_output("stream", name="stderr", text=said))
            return output

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, log_output, start_timeout, on_cell_start, **_) -> Any:
            options = {"startup_timeout": start_timeout, "timeout": None, "on_cell_start": on_cell_start}
            options |= {"log": logging.getLogger("papermill"), "config": Config(ConnectionFileMixin=alone)}
            return Client(nb_man, kernel_name=kernel_name, log_output=log_output, **options).execute()

    return Engine


def _write_page(job: Job) -> None:
    """The executed notebook as a page beside it, while its time still counts as the item's."""
    from lmdynamics.batch.page import static_page

    with suppress(OSError, ValueError, AttributeError, KeyError):
        page = job.executed.with_suffix(".html")
        body = static_page(job.executed)
        with files.atomic_file(page) as temporary:
            temporary.write_text(body, "utf-8")


def _end_with(parent: jobs.Parent) -> None:
    """Wait for the parent's end, then take the kernel along: it looks for its parent only now and then."""
    import psutil

    parent.receive()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            process.kill()
    os._exit(1)


def _literally(path: Path) -> str:
    """A path that papermill takes as it stands: braces in it are format fields otherwise."""
    return str(path).replace("{", "{{").replace("}", "}}")


def first_line(source: str) -> str:
    """The first line that is code, or else the first line."""
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith("#")), lines[0] if lines else "")


def _error_line(error: Any) -> str:
    message = shortened(" ".join(error.evalue.split()), MOST_SAID)
    return f"{error.ename}: {message}" if message else error.ename
