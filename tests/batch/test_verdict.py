"""`lmdynamics compare` from the command line: accept, compare, and tell other systems."""

import pytest

from tests.batch.made import write_item


@pytest.fixture
def out(tmp_path):
    for seed in (0, 1):
        write_item(tmp_path / "out", f"one--seed={seed}", seed)
    return tmp_path / "out"
