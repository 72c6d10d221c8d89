"""What browser tests share: one JupyterLab for a module."""

from pathlib import Path

import pytest

from tests.browser.lab import jupyter_lab

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab with a home of its own, whose kernels can make the tests' explorers; gives its root and address."""
    root, scratch = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    environment = {"LMDYNAMICS_HOME": str(tmp_path_factory.mktemp("home")), "PYTHONPATH": str(ROOT)}
    with jupyter_lab(root, scratch, **environment) as address:
        yield root, address
