"""Stands in for `lmdynamics.batch.child` in tests of scheduling: the same messages, but no papermill and no kernel."""

import ast
import json
import os
import shutil
import sys
import threading
from pathlib import Path


def execute(notebook: Path, folder: Path, parameters: dict, pipe: int) -> int:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    names: dict = {}
    with os.fdopen(pipe, "w", buffering=1, encoding="utf-8") as events:
        for index, cell in enumerate(cells):
            source = "".join(cell["source"])
            at = {"cell": index + 1, "cells": len(cells), "source": source.partition("\n")[0]}
            events.write(json.dumps(at) + "\n")
            if cell["cell_type"] != "code":
                continue
            try:
                exec(compile(source, notebook.name, "exec"), names)
            except Exception as error:
                events.write(json.dumps({**at, "status": "failed", "error": f"{type(error).__name__}: {error}"}) + "\n")
                return 1
            if "parameters" in cell["metadata"].get("tags", []):
                names.update(parameters)
        shutil.copyfile(notebook, folder / notebook.name)
        events.write(json.dumps({"status": "finished"}) + "\n")
    return 0


def end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    notebook, folder, parameters, pipe = ast.literal_eval(sys.stdin.buffer.readline().decode())
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.exit(execute(Path(notebook), Path(folder), parameters, pipe))
