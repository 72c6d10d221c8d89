"""A notebook's page opened from disk, with the network off: its slider moves every view, by keyboard."""

import os
import time
from pathlib import Path

import nbformat
import polars as pl
import pytest
from playwright.sync_api import expect, sync_playwright

from lmdynamics.batch.page import write_page
from lmdynamics.charts.moving import Moving
from lmdynamics.explorers.trajectories import TrajectoryExplorer
from tests.browser.lab import _FLAGS, CHROMIUM
from tests.browser.legible import unreadable
from tests.browser.moves import PANELS, random_moves
from tests.explorers.made import MAKE

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
OUT = Path(__file__).parent / "out"
MAX_BYTES = 4_000_000  # bytes of a page
NOTE_PLACES = """() => {
  const output = [...document.querySelectorAll('.lmd-moving label:has(input[name=at]) output')].at(-1);
  window.places = [];
  new MutationObserver(() => window.places.push(output.value)).observe(output, {childList: true, subtree: true});
}"""
WIDE, HIGH = 960, 600  # pixels of an explorer; its controls and words come on top
LAST = ".lmd-moving >> nth=-1"  # of a page's explorers
VIEW = f"{LAST} >> .lmd-chart svg"
SLIDER = f"{LAST} >> input[name=at]"
PLACE = f"{LAST} >> label:has(input[name=at]) >> output"
TITLE = ".role-title-text >> nth=0"

pytestmark = [
    pytest.mark.browser,
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
    """Open a file with the network off; gives the page and the list of its messages, errors and requests."""
    contexts = []

    def open_file(path: Path, **options):
        context = browser.new_context(offline=True, viewport={"width": 1280, "height": 1000}, **options)
        contexts.append(context)
        page, events = context.new_page(), []
        page.on("console", lambda message: events.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: events.append(str(error)))
        page.on("request", lambda request: events.append(request.url))
        page.goto(path.as_uri())
        return page, events

    yield open_file
    for context in contexts:
        context.close()


def elsewhere(events: list[str], folder: Path) -> list[str]:
    """Messages, errors, and requests for anything but files of the folder."""
    return [event for event in events if not event.startswith((folder.as_uri(), "data:"))]


def chart_marks(page) -> list[str]:
    return page.locator(LAST).evaluate(PANELS)


def press(page, key: str, times: int = 1) -> None:
    slider = page.locator(SLIDER)
    slider.focus()
    for _ in range(times):
        page.keyboard.press(key)
    page.wait_for_timeout(600)


def click(page, locator, dy: float = 0) -> None:
    """The mouse clicks on the middle of something, or `dy` pixels below it."""
    locator.scroll_into_view_if_needed()
    box = locator.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 + dy)


def unmoved(page, before: list[str], patience: float = 20) -> list[int]:
    """The panels that stay as they were, once a busy machine has had some seconds."""
    until = time.monotonic() + patience
    while True:
        unchanged = [i for i, (old, new) in enumerate(zip(before, chart_marks(page), strict=True)) if old == new]
        if not unchanged or time.monotonic() > until:
            return unchanged
        page.wait_for_timeout(200)


@pytest.mark.slow
def test_syntax_emerges_without_a_kernel(emergence, opened):
    path = emergence
    assert path.stat().st_size < MAX_BYTES
    page, events = opened(path)
    page.locator(VIEW).wait_for(timeout=60_000)
    page.locator(LAST).scroll_into_view_if_needed()
    page.wait_for_timeout(600)
    at_first = {"views": chart_marks(page), "status": page.locator(f"{LAST} >> [role=status]").inner_text()}
    assert page.locator(PLACE).inner_text() == "64"  # the last checkpoint of a smoke run
    press(page, "ArrowLeft", 2)
    moved = chart_marks(page)
    assert [old != new for old, new in zip(at_first["views"], moved, strict=True)] == [True] * 5
    assert page.locator(PLACE).inner_text() == "16"
    assert page.locator(f"{LAST} >> [role=status]").inner_text().startswith("Step 16: ")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=OUT / f"static-{scheme}.png")
    press(page, "ArrowRight", 2)
    assert chart_marks(page) == at_first["views"]
    assert page.locator(f"{LAST} >> [role=status]").inner_text() == at_first["status"]
    assert elsewhere(events, path.parents[1]) == []


def page_of(moving: Moving, path: Path) -> Path:
    """The page of a notebook with these views."""
    output = nbformat.v4.new_output("display_data", data=moving._repr_mimebundle_())
    cell = nbformat.v4.new_code_cell("explorer.show(interactive=False)", outputs=[output])
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path.with_suffix(".ipynb"))
    return write_page(path.with_suffix(".ipynb"))


@pytest.mark.parametrize("name", MAKE)
def test_every_explorers_views_follow_their_slider(opened, tmp_path, name):
    moving = MAKE[name]().moving()
    page, events = opened(page_of(moving, tmp_path / "item" / "some.html"))
    page.locator(VIEW).wait_for(timeout=60_000)
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert unreadable(page) == [], scheme
    box = page.locator(VIEW).bounding_box()
    assert (box["width"] <= WIDE, box["height"] <= HIGH) == (True, True), box
    press(page, "End")
    at_end = chart_marks(page)
    press(page, "ArrowLeft", 3)
    place = moving.places[-4]
    assert unmoved(page, at_end) == []
    assert page.locator(PLACE).inner_text() == place.name
    assert page.locator(f"{LAST} >> [role=status]").inner_text() == place.text
    assert bool(page.locator(".lmd-under").inner_text()) is bool(place.details)
    first = page.locator(f"{VIEW} >> path[opacity='0']").first  # the strip of the first place
    first.scroll_into_view_if_needed()
    box = first.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator(PLACE)).to_have_text(moving.places[0].name)
    page.keyboard.press("ArrowRight")  # a click gives the keyboard to the slider
    expect(page.locator(PLACE)).to_have_text(moving.places[1].name)
    assert random_moves(page.locator(LAST)) == ""
    assert elsewhere(events, tmp_path) == []


def test_below_a_picture_that_fills_the_screen_no_row_is_cut(opened, tmp_path):
    steps = [0, 1, 4, 16, 64]
    rows = [
        {"run": f"run {run}", "measure": measure, "step": step, "value": float(run + step)}
        for run in range(8)
        for measure in ("loss", "UAS", "agreement")
        for step in steps
    ]
    page, _ = opened(page_of(TrajectoryExplorer(pl.DataFrame(rows)).moving(), tmp_path / "item" / "eight.html"))
    page.locator(VIEW).wait_for(timeout=60_000)
    under, last = (page.locator(".lmd-under").bounding_box(), page.locator(".lmd-under tr").last.bounding_box())
    assert "run 7" in page.locator(".lmd-under tr").last.inner_text()
    assert last["y"] + last["height"] <= under["y"] + under["height"] + 1


def test_a_click_on_a_word_hides_it_without_a_kernel(opened, tmp_path):
    page, events = opened(page_of(MAKE["guesses"]().moving(), tmp_path / "item" / "guesses.html"))
    view = page.locator(VIEW)
    view.wait_for(timeout=60_000)

    def texts(gap: int, *guesses: str) -> None:
        """The sentence has its gap at a word, and these are the guesses, the best first."""
        line = view.locator("g.mark-text.role-mark").first.locator("text")
        expect(line.nth(gap)).to_have_text("▁▁▁")
        assert line.filter(has_text="▁▁▁").count() == 1
        for guess in guesses:
            expect(view.get_by_text(guess, exact=True)).to_be_visible()

    texts(5, "sleep", "sleep-2", "sleep-5")
    expect(view.locator(TITLE)).to_contain_text(
        "At step 16, the best guess is “sleep” (60%); “sleep”, the hidden word,"
    )
    click(page, view.get_by_text("house", exact=True))
    texts(4, "house-1", "house-5")
    before = chart_marks(page)
    for beside in (view.get_by_text("Best guesses"), view.get_by_text("the", exact=True).first):
        click(page, beside, dy=-30 if beside == view.get_by_text("Best guesses") else 0)
    page.wait_for_timeout(300)
    assert chart_marks(page) == before  # a click beside a word, or on one that nothing precedes
    press(page, "ArrowLeft", 4)
    texts(4, "house-1", "house-5")
    expect(view.locator(TITLE)).to_contain_text("At step 1, the best guess is “house-1” (12%)")
    page.locator(f"{LAST} >> select[name=sentence]").select_option("no cat sees dogs")
    texts(2, "sees-1", "sees-5")
    click(page, view.get_by_text("dogs", exact=True))
    press(page, "End")
    texts(3, "dogs", "dogs-2")
    assert elsewhere(events, tmp_path) == []


def test_a_and_b_are_picked_without_a_kernel(opened, tmp_path):
    page, events = opened(page_of(MAKE["checkpoint_pair"]().moving(), tmp_path / "item" / "pair.html"))
    view, title = page.locator(VIEW), page.locator(f"{VIEW} >> {TITLE}")
    view.wait_for(timeout=60_000)
    expect(title).to_contain_text("From step 8 to 16: 33% of the tokens improve, mean change +0.07 nats [")
    before = chart_marks(page)
    a = page.locator(f"{LAST} >> input[name=origin]")
    a.focus()
    for _ in range(2):
        page.keyboard.press("ArrowLeft")
    expect(title).to_contain_text("From step 2 to 16: ")
    expect(page.locator(f"{LAST} >> label:has(input[name=origin]) >> output")).to_have_text("2")
    assert unmoved(page, before) == []
    expect(view.get_by_text("2 of 4 heads changed relation")).to_be_visible()
    expect(view.get_by_text("[CLS] the ‹big› dogs near").first).to_be_visible()
    expect(view.get_by_text("2.80 → 1.00")).to_be_visible()  # the token that gained most
    strips = view.locator("path[opacity='0']")  # those of the curve, for B, and those of the strip below, for A
    click(page, strips.nth(3))
    expect(title).to_contain_text("From step 2 to 4: ")
    expect(page.locator(PLACE)).to_have_text("4")
    click(page, strips.nth(6))
    expect(title).to_contain_text("From step 0 to 4: ")
    page.keyboard.press("ArrowRight")  # the slider that was moved last
    expect(title).to_contain_text("From step 1 to 4: ")
    before = chart_marks(page)
    click(page, view.get_by_text("Tokens that changed most"))
    page.wait_for_timeout(300)
    assert chart_marks(page) == before
    assert elsewhere(events, tmp_path) == []


def test_a_click_on_a_time_shows_its_tokens_without_a_kernel(opened, tmp_path):
    moving = MAKE["learning_times"]().moving()
    page, events = opened(page_of(moving, tmp_path / "item" / "times.html"))
    view, under = page.locator(VIEW), page.locator(f"{LAST} >> .lmd-under")
    view.wait_for(timeout=60_000)
    strips = view.locator("path[opacity='0']")
    names = [place.name for place in moving.places]
    for name, token in (("45 → 64", "the ‹<b>dog</b>› runs"), ("128 → 181", "‹runs› near &amp; house")):
        click(page, strips.nth(names.index(name)))
        expect(page.locator(PLACE)).to_have_text(name)
        expect(page.locator(f"{LAST} >> [role=status]")).to_contain_text(f"Steps {name}: fall of the mean loss")
        expect(under).to_contain_text(token)  # as text
    assert under.locator("b").count() == 0
    click(page, strips.nth(0))
    expect(under).to_contain_text("No token is learnt between these checkpoints")
    assert elsewhere(events, tmp_path) == []


@pytest.mark.slow
def test_moves_hovers_and_clicks_leave_every_view_of_the_series(smoke_series, opened):
    explorers = 0
    for path in sorted(smoke_series[1].glob("*/*.html")):
        page, events = opened(path)
        for section in page.locator(".lmd-section").all():
            section.locator(".lmd-chart svg").wait_for(timeout=60_000)
            assert random_moves(section, moves=10) == "", path.stem
            explorers += 1
        assert elsewhere(events, path.parents[1]) == []
    assert explorers == 11


@pytest.mark.slow
def test_play_runs_to_the_last_checkpoint_and_stops(emergence, opened):
    page, events = opened(emergence)
    page.locator(VIEW).wait_for(timeout=60_000)
    press(page, "Home")
    assert page.locator(PLACE).inner_text() == "0"
    page.evaluate(NOTE_PLACES)
    play = page.locator(LAST).get_by_role("checkbox", name="play")
    for _ in range(2):  # from the last place it begins anew
        play.click()
        expect(play).not_to_be_checked(timeout=20_000)
    steps = ["1", "2", "4", "8", "16", "32", "64"]
    assert page.evaluate("window.places") == [*steps, "0", *steps]
    play.click()
    press(page, "ArrowLeft")  # who moves it by hand wants it to stay there
    expect(play).not_to_be_checked()
    assert elsewhere(events, emergence.parents[1]) == []


@pytest.mark.slow
def test_views_and_slider_have_accessible_names_and_values(emergence, opened):
    page, _ = opened(emergence)
    page.locator(VIEW).wait_for(timeout=60_000)
    labels = page.locator(".lmd-chart").evaluate_all("found => found.map(view => view.getAttribute('aria-label'))")
    assert [bool(each) for each in labels] == [True] * 2
    slider = page.locator(LAST).get_by_role("slider", name="checkpoint")
    assert slider.get_attribute("aria-valuetext") == "64"


@pytest.mark.slow
def test_relation_and_head_are_picked_without_a_kernel(emergence, opened):
    page, events = opened(emergence)
    page.locator(VIEW).wait_for(timeout=60_000)
    relation, layer, head, direction = (
        page.locator(f"{LAST} >> select[name={name}]") for name in ("relation", "layer", "head", "direction")
    )
    options = relation.locator("option").all_inner_texts()
    before, best = chart_marks(page), (layer.input_value(), head.input_value(), direction.input_value())
    relation.select_option(options[1])
    page.wait_for_timeout(600)
    after = chart_marks(page)
    assert [old != new for old, new in zip(before, after, strict=True)][2:] == [True] * 3
    assert f"Which heads follow {options[1]}" in page.locator(VIEW).text_content()
    relation.select_option(options[0])  # brings its best head along
    page.wait_for_timeout(600)
    assert (layer.input_value(), head.input_value(), direction.input_value()) == best
    tiles = page.locator(f"{VIEW} >> g.mark-rect path[aria-label^='head: ']")
    labels = [tile.get_attribute("aria-label") for tile in tiles.all()]
    new = next(i for i, label in enumerate(labels) if f"head: {best[1]}; layer: {best[0]};" not in label)
    tiles.nth(new).click(force=True)
    page.wait_for_timeout(600)
    assert f"head: {head.input_value()}; layer: {layer.input_value()};" in labels[new]
    assert f"Layer {layer.input_value()}, head {head.input_value()}" in page.locator(VIEW).text_content()
    relation.select_option(options[2])
    relation.select_option(options[0])  # brings its best head again, though another one was picked
    page.wait_for_timeout(600)
    assert (layer.input_value(), head.input_value(), direction.input_value()) == best
    assert elsewhere(events, emergence.parents[1]) == []


@pytest.mark.slow
def test_without_scripts_the_pictures_are_there(emergence, opened):
    page, _ = opened(emergence, java_script_enabled=False)
    assert page.locator("noscript img[alt]").count() == 2
    assert page.locator(".vega-bindings:visible").count() == 0
