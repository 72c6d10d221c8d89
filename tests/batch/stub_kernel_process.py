"""A stub of `lmdynamics.batch.kernel_process` for tests of scheduling: the same events, without a kernel."""

import json
import os
import shutil
import threading

from lmdynamics.batch.plan import Job
from lmdynamics.jobs import Parent


def execute(parent: Parent, job: Job) -> int:
    threading.Thread(target=end_with, args=[parent], daemon=True).start()
    cells = json.loads(job.notebook.read_text("utf-8"))["cells"]
    names: dict = {}
    for index, cell in enumerate(cells):
        source = "".join(cell["source"])
        event = {"cell": index + 1, "cells": len(cells), "source": source.partition("\n")[0]}
        parent.send(event)
        if cell["cell_type"] != "code":
            continue
        try:
            exec(compile(source, job.notebook.name, "exec"), names)
        except Exception as error:
            parent.send({**event, "status": "failed", "error": f"{type(error).__name__}: {error}"})
            return 1
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(job.parameters)
    shutil.copyfile(job.notebook, job.executed)
    parent.send({"status": "finished"})
    return 0


def end_with(parent: Parent) -> None:
    parent.receive()
    os._exit(1)
