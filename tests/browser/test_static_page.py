"""A notebook's page opened from disk, with the network off: its slider moves every view, by keyboard."""

import os
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect, sync_playwright

from lmdynamics.batch.page import static_page
from tests.browser.lab import _FLAGS, CHROMIUM
from tests.browser.legible import unreadable
from tests.browser.moves import wander
from tests.explorers.made import MAKE

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
OUT = Path(__file__).parent / "out"
MOST = 5_000_000  # bytes of a page
LAST = ".lmd-linked >> nth=-1"  # of a page's sliders with their views
VIEWS = f"{LAST} >> .lmd-view svg"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="Chromium is not installed (apt install chromium)"),
]


@pytest.fixture
def emergence(smoke_series):
    """The HTML file that a batch at profile smoke makes of a notebook."""
    return smoke_series[1] / "02_sas_emergence" / "02_sas_emergence.html"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Open a file with the network off; gives the page and the list of everything untoward that it does."""
    contexts = []

    def open_file(path: Path, scheme: str = "light", **options):
        context = browser.new_context(
            offline=True, color_scheme=scheme, viewport={"width": 1280, "height": 1000}, **options
        )
        contexts.append(context)
        page, seen = context.new_page(), []
        page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: seen.append(request.url))
        page.goto(path.as_uri())
        return page, seen

    yield open_file
    for context in contexts:
        context.close()


def drawn(page) -> list[str]:
    return page.locator(VIEWS).evaluate_all("found => found.map(view => view.outerHTML)")


def press(page, key: str, times: int = 1) -> None:
    slider = page.locator(f"{LAST} >> input[type=range]")
    slider.focus()
    for _ in range(times):
        page.keyboard.press(key)
    page.wait_for_timeout(600)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_syntax_emerges_without_a_kernel(emergence, opened, scheme):
    path = emergence
    assert path.stat().st_size < MOST
    page, seen = opened(path, scheme)
    page.locator(VIEWS).nth(2).wait_for(timeout=60_000)
    page.locator(LAST).scroll_into_view_if_needed()
    page.wait_for_timeout(600)
    at_first = {"views": drawn(page), "said": page.locator(f"{LAST} >> [role=status]").inner_text()}
    picture = page.screenshot(path=OUT / f"static-{scheme}-0.png")
    assert page.locator(f"{LAST} >> output").inner_text() == "64"  # the last checkpoint of a smoke run
    press(page, "ArrowLeft", 2)
    moved = drawn(page)
    assert [one != other for one, other in zip(at_first["views"], moved, strict=True)] == [True, True, True]
    assert page.locator(f"{LAST} >> output").inner_text() == "16"
    assert page.locator(f"{LAST} >> [role=status]").inner_text().startswith("Step 16: ")
    assert page.screenshot(path=OUT / f"static-{scheme}-1.png") != picture
    press(page, "ArrowRight", 2)
    assert drawn(page) == at_first["views"]
    assert page.locator(f"{LAST} >> [role=status]").inner_text() == at_first["said"]
    assert seen == [path.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", MAKE)
def test_every_explorers_views_follow_their_slider(opened, tmp_path, name, scheme):
    explorer = MAKE[name]()
    linked = explorer.linked()
    output = nbformat.v4.new_output("display_data", data=linked._repr_mimebundle_())
    cell = nbformat.v4.new_code_cell("explorer.show(interactive=False)", outputs=[output])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "some.ipynb")
    (tmp_path / "some.html").write_text(static_page(tmp_path / "some.ipynb"), "utf-8")
    page, seen = opened(tmp_path / "some.html", scheme)
    page.locator(VIEWS).nth(len(linked.views) - 1).wait_for(timeout=60_000)
    assert unreadable(page) == []
    press(page, "End")
    at_end = drawn(page)
    press(page, "ArrowLeft", 3)
    assert all(one != other for one, other in zip(at_end, drawn(page), strict=True))
    assert page.locator(f"{LAST} >> output").inner_text() == linked.places[-4].name
    assert page.locator(f"{LAST} >> [role=status]").inner_text() == linked.places[-4].said
    assert bool(page.locator(".lmd-under").inner_text()) is bool(linked.places[-4].under)
    panel = page.locator(".lmd-view g[class*='voronoi']").first
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    expect(page.locator(f"{LAST} >> output")).to_have_text(linked.places[0].name)
    if scheme == "light":
        assert wander(page.locator(LAST)) == ""
    assert seen == [(tmp_path / "some.html").as_uri()]


@pytest.mark.slow
def test_moves_hovers_and_clicks_leave_every_view_of_the_series(smoke_series, opened):
    explorers = 0
    for path in sorted(smoke_series[1].glob("*/*.html")):
        page, seen = opened(path)
        for section in page.locator(".lmd-linked").all():
            section.locator(".lmd-view svg").nth(section.locator(".lmd-view").count() - 1).wait_for(timeout=60_000)
            assert wander(section) == "", path.stem
            explorers += 1
        assert seen == [path.as_uri()]
    assert explorers == 8


@pytest.mark.slow
def test_play_runs_to_the_last_checkpoint_and_stops(emergence, opened):
    page, seen = opened(emergence)
    page.locator(VIEWS).nth(2).wait_for(timeout=60_000)
    press(page, "Home")
    assert page.locator(f"{LAST} >> output").inner_text() == "0"
    button = page.locator(f"{LAST} >> button")
    button.click()
    assert button.inner_text() == "pause"
    expect(page.locator(f"{LAST} >> output")).to_have_text("64", timeout=20_000)
    expect(button).to_have_text("play")
    assert len(seen) == 1


@pytest.mark.slow
def test_views_say_what_they_are_and_the_slider_where_it_stands(emergence, opened):
    page, _ = opened(emergence)
    page.locator(VIEWS).nth(2).wait_for(timeout=60_000)
    told = page.locator(".lmd-view").evaluate_all("found => found.map(view => view.getAttribute('aria-label'))")
    assert [bool(each) for each in told] == [True] * 5
    slider = page.locator(LAST).get_by_role("slider", name="checkpoint at step")
    assert slider.get_attribute("aria-valuetext") == "64"


@pytest.mark.slow
def test_without_scripts_the_pictures_are_there(emergence, opened):
    page, _ = opened(emergence, java_script_enabled=False)
    assert page.locator("noscript img[alt]").count() == 5
    assert page.locator(".lmd-controls:visible").count() == 0
