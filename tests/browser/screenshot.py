"""Look at a notebook: run it in JupyterLab and save a picture of each screenful.

    python -m tests.browser.screenshot notebooks/02_sas_emergence.ipynb --out DIR [-p NAME VALUE]... [--theme dark]

The notebook is run from a copy, so the file itself does not change. What is hard to read in its charts is also printed:
texts and lines with too little contrast, texts that are cut off or overlap.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.browser.copies import copy_with_parameters
from tests.browser.lab import THEMES, jupyter_lab, notebook_page
from tests.browser.legible import cut_off, inspect_charts, low_contrast, overlapping


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--out", type=Path, default=Path("tests/browser/out"))
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--theme", nargs="+", choices=list(THEMES), default=["light"], help="one picture in each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, scratch = Path(folder, "root"), Path(folder, "scratch")
        root.mkdir()
        scratch.mkdir()
        copy = copy_with_parameters(arguments.notebook, root, dict(arguments.p))
        with jupyter_lab(root, scratch) as address, notebook_page(arguments.width, arguments.height) as notebook:
            notebook.open(address, copy.name)
            notebook.run_all()
            for theme in arguments.theme:
                notebook.set_theme(theme)
                name = copy.stem if arguments.theme == ["light"] else f"{copy.stem}-{theme}"
                for picture in notebook.screenshots(arguments.out, name):
                    print(picture)
                items = inspect_charts(notebook.page)
                for problem, check in (
                    ("low contrast", low_contrast),
                    ("cut off", cut_off),
                    ("on each other", overlapping),
                ):
                    for line in check(items):
                        print(f"{problem}, {theme}: {line}")
            for kind, lines in (
                ("error", notebook.errors()),
                ("console", notebook.console),
                ("request", notebook.outside),
            ):
                for line in lines:
                    print(f"{kind}: {line}")
            return int(bool(notebook.errors() or notebook.console or notebook.outside))


if __name__ == "__main__":
    sys.exit(main())
