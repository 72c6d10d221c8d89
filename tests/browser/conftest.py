"""What browser tests share: one JupyterLab, or one where the series' runs and traces lie already."""

from pathlib import Path

import pytest

from tests.browser.lab import jupyter_lab

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A JupyterLab with a home of its own, whose kernels can make the tests' explorers; gives its root and address."""
    root, scratch = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    environment = {"LMDYNAMICS_HOME": str(tmp_path_factory.mktemp("home")), "PYTHONPATH": str(ROOT)}
    with jupyter_lab(root, scratch, **environment) as address:
        yield root, address


@pytest.fixture(scope="session")
def furnished_lab(tmp_path_factory, smoke_series):
    """A JupyterLab that finds all runs of the series at profile smoke; gives its root and address."""
    root, scratch = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    with jupyter_lab(root, scratch, LMDYNAMICS_HOME=str(smoke_series[2])) as address:
        yield root, address
