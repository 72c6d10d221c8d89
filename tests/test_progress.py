"""Where a progress bar is shown: to a person at a terminal or in a notebook, not into a program's output."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("imported", ["sys", "ipykernel, IPython"])
def test_a_bar_stays_out_of_files_even_where_a_kernel_is_imported(imported):
    code = f"import {imported}\nfrom lmdynamics.progress import bar\nwith bar(2, 'x') as shown:\n    shown.update(2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
