"""What tests of batches share."""

import pytest

from lmdynamics.batch.baselines import accept
from lmdynamics.batch.collect import gather
from tests.batch.made import ACCEPTED, write_item


@pytest.fixture
def accepted(tmp_path):
    """The baselines' folder, with one item accepted on its defaults."""
    write_item(tmp_path / "first", "02_sas", ACCEPTED)
    accept(gather(tmp_path / "first"), tmp_path / "baselines", "Ada")
    return tmp_path / "baselines"
