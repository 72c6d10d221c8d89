"""The pictures of the README are made from an executed series; here from the one at profile smoke."""

import re
from pathlib import Path

import pytest
from PIL import Image, ImageSequence

from tests.browser.pictures import ANSWERS, MAX_BYTES, pictures
from tests.browser.test_static_page import pytestmark  # noqa: F401
from tests.conftest import refuses


@pytest.mark.slow
def test_the_explorer_moves_and_each_figure_is_described(smoke_series, tmp_path):
    lines = pictures(smoke_series[1], tmp_path)
    shown = [re.fullmatch(r"!\[(\w.{20,})\]\((.*)\)", line).groups() for line in lines]
    assert [Path(path).stem for _, path in shown] == ["explorer", *ANSWERS]
    moving, *stills = [Path(path) for _, path in shown]
    with Image.open(moving) as picture:
        frames = [frame.convert("RGB").tobytes() for frame in ImageSequence.Iterator(picture)]
    assert len(frames) == len(set(frames)) == 8  # checkpoints of a smoke run
    assert moving.stat().st_size < MAX_BYTES
    for still in stills:
        with Image.open(still) as picture:
            assert picture.mode == "P"
            corners = [picture.convert("RGB").getpixel((x, y)) for x in (0, picture.width - 1) for y in (0, 1)]
            assert corners == [(255, 255, 255)] * 4
        assert still.stat().st_size < 300_000


def test_without_the_page_there_are_no_pictures(tmp_path):
    refuses("has no page 02_sas_emergence", pictures, tmp_path, tmp_path)
