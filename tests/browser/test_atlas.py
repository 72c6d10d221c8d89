"""The atlas of curves opened from disk, with the network off: what hands do with filters, rows, curves and keys."""

import polars as pl
import pytest
from playwright.sync_api import expect

from lmdynamics.analysis.fits import fit_curves, fits_table
from lmdynamics.analysis.loss_curves import prepared
from lmdynamics.analysis.null_fits import verdict_counts
from lmdynamics.charts.atlas import atlas_page
from tests.analysis.frames import noisy, spaced
from tests.browser.test_site import CUT
from tests.browser.test_static_page import browser, elsewhere, opened, pytestmark  # noqa: F401

STEPS = spaced(60)
EVIL = "<script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\">"
CURVES = {
    **{f"wide {k}": noisy(STEPS, 0.01, k, d=1_000.0 * (k + 1)) for k in range(3)},
    **{f"straight {k}": (3 + 2 * k) * noisy(STEPS, 0.01, k + 9, c1=0.0) for k in range(2)},
    EVIL: 12 * noisy(STEPS, 0.01, 20),
    "short": 30 * noisy(STEPS, 0.01, 30)[:6],
}
PLACE = """([name, share]) => {
  // the pixel of a point of a curve, from the axes that the page draws: logarithmic, with a margin of a factor of 1.03
  const { curves } = JSON.parse(document.getElementById("content").textContent);
  const ends = key => {
    const all = curves.flatMap(curve => curve[key] ?? []);
    return [Math.log(Math.min(...all) / 1.03), Math.log(Math.max(...all) * 1.03)];
  };
  const [[x0, x1], [y0, y1]] = [ends("x"), ends("y")];
  const { left, top, width, height } = document.getElementById("overlay").getBoundingClientRect();
  const curve = curves.find(each => each.name === name), i = Math.round(share * (curve.x.length - 1));
  const across = (Math.log(curve.x[i]) - x0) / (x1 - x0), up = (Math.log(curve.y[i]) - y0) / (y1 - y0);
  return [left + 58 + across * (width - 72), top + height - 42 - up * (height - 52)];
}"""
PIXELS = "canvas => canvas.toDataURL()"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    frame = pl.concat(
        pl.DataFrame({"curve": [name] * len(loss), "step": STEPS[: len(loss)].astype(int), "loss": loss})
        for name, loss in CURVES.items()
    )
    fits = fits_table(fit_curves(frame, resamples=40, workers=1, progress=False))
    options = {"smoothing": "none", "skip_steps": 100, "resamples": 40}
    path = tmp_path_factory.mktemp("atlas") / "atlas.html"
    notes, unread = [("some.csv", f"Columns: {EVIL}")], [("torn.csv", f"torn.csv is damaged {EVIL}")]
    page = atlas_page(
        prepared(frame), fits, verdict_counts(fits, fits), preparation=options, notes=notes, unread=unread
    )
    path.write_text(page, "utf-8")
    return path, fits


@pytest.fixture
def page(atlas, opened):  # noqa: F811
    page, events = opened(atlas[0])
    yield page
    assert elsewhere(events, atlas[0].parent) == []
    assert page.title() == "7 loss curves: where they break", "a name ran as a script"


def names(page):
    return page.locator("#curves tbody tr td:first-child").all_inner_texts()


def overlay(page):
    return page.locator("#overlay").evaluate(PIXELS)


def test_all_curves_are_listed_with_numbers_where_a_break_is_located(page, atlas):
    assert names(page) == list(CURVES)
    expect(page.locator("#shown")).to_have_text("7 of 7 curves")
    for row in atlas[1].iter_rows(named=True):
        cells = page.locator("#curves tbody tr").nth(list(CURVES).index(row["curve"])).locator("td").all_inner_texts()
        assert row["verdict"] in cells[1]
        if row["verdict"] == "decelerates":
            assert (
                cells[2]
                == f"{row['step_at_break']:,.0f} [{row['step_at_break_low']:,.0f}, {row['step_at_break_high']:,.0f}]"
            )
        else:
            assert cells[2:5] == ["–"] * 3
    expect(page.locator("#curves tbody tr").last).to_contain_text("6 points are left of 6")


def test_filters_narrow_the_list_and_the_overlay_and_are_taken_back(page, atlas):
    before, search = overlay(page), page.get_by_label("name contains")
    search.press_sequentially("WIDE 1")
    assert names(page) == ["wide 1"]
    assert overlay(page) != before
    page.get_by_role("button", name="Show all").first.click()
    assert (names(page), overlay(page)) == (list(CURVES), before)
    page.get_by_label("no break (2)").uncheck()
    page.get_by_label("not fitted (1)").uncheck()
    assert names(page) == ["wide 0", "wide 1", "wide 2", EVIL]
    steps = dict(atlas[1].select("curve", "step_at_break").iter_rows())
    page.get_by_label("t_d from").fill("1,500")
    assert names(page) == [name for name in ("wide 0", "wide 1", "wide 2", EVIL) if steps[name] >= 1_500]
    page.get_by_label("t_d to").fill("2500")
    assert names(page) == ["wide 1"]
    page.get_by_label("t_d to").fill("many")
    expect(page.get_by_label("t_d to")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("name contains").fill("no curve is called so")
    assert names(page) == []
    expect(page.locator("#shown")).to_have_text("0 of 7 curves")
    page.locator("#overlay").press("Enter")
    expect(page.locator("#one")).to_be_hidden()
    page.get_by_role("button", name="Show all").first.click()
    assert names(page) == list(CURVES)


def test_columns_sort_both_ways_with_missing_numbers_last(page, atlas):
    steps = {
        name: step
        for name, step, verdict in atlas[1].select("curve", "step_at_break", "verdict").iter_rows()
        if verdict == "decelerates"
    }
    missing = [name for name in CURVES if name not in steps]
    head = page.get_by_role("button", name="t_d: step")
    for reverse, direction in ((False, "ascending"), (True, "descending")):
        head.click()
        assert names(page) == [*sorted(steps, key=steps.get, reverse=reverse), *missing]
        expect(page.locator("th:has(button[data-by=step])")).to_have_attribute("aria-sort", direction)
    page.get_by_role("button", name="curve", exact=True).click()
    assert names(page)[-3:] == ["wide 0", "wide 1", "wide 2"]
    expect(page.locator("th[aria-sort]")).to_have_count(1)


def test_a_click_on_a_row_opens_its_curve_which_is_closed_in_three_ways(page):
    one, before = page.locator("#one"), None
    for close in ("button", "key", "ground"):
        page.get_by_role("cell", name="wide 1").click()
        expect(one.get_by_role("heading")).to_have_text("wide 1")
        expect(one).to_contain_text("Reason: at step ")
        expect(one).to_contain_text("band: 95 % interval of its step")
        pixels = one.locator("canvas").evaluate(PIXELS)
        assert before in (None, pixels)
        before = pixels
        if close == "button":
            one.get_by_role("button", name="close").click()
        elif close == "key":
            page.keyboard.press("Escape")
        else:
            page.mouse.click(5, 5)
        expect(one).to_be_hidden()
    page.get_by_role("cell", name="straight 0").click()
    expect(one).to_contain_text("line: fit with one power law")
    expect(one).to_contain_text("missing, as no break is located")
    assert one.locator("canvas").evaluate(PIXELS) != before
    one.get_by_role("button", name="next").click()
    expect(one.get_by_role("heading")).to_have_text("straight 1")
    page.keyboard.press("ArrowRight")
    expect(one.get_by_role("heading")).to_have_text(EVIL)
    page.keyboard.press("ArrowRight")
    expect(one).to_contain_text("6 points are left of 6")
    expect(one.get_by_role("heading")).to_have_text("short")
    page.keyboard.press("ArrowRight")  # the last one
    expect(one.get_by_role("heading")).to_have_text("short")
    one.get_by_role("button", name="previous").click()
    expect(one.get_by_role("heading")).to_have_text(EVIL)


@pytest.mark.parametrize("name", ["straight 0", EVIL, "short"])
def test_a_click_on_a_curve_opens_it_and_one_beside_it_does_nothing(page, name):
    page.locator("#overlay").scroll_into_view_if_needed()
    x, y = page.evaluate(PLACE, [name, 0.5])
    page.mouse.click(x, y - 20)
    page.wait_for_timeout(200)
    expect(page.locator("#one")).to_be_hidden()
    page.mouse.move(x, y + 2)
    expect(page.locator("#under")).to_contain_text(name)
    page.mouse.click(x, y + 2)
    expect(page.locator("#one").get_by_role("heading")).to_have_text(name)
    page.keyboard.press("Escape")
    expect(page.locator("#curves tr.current td").first).to_have_text(name)


def test_the_keyboard_alone_chooses_and_opens_curves(page):
    overlay_box, heading = page.locator("#overlay"), page.locator("#one").get_by_role("heading")
    before = overlay(page)
    overlay_box.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#under")).to_have_text("wide 1: decelerates")
    assert overlay(page) != before
    page.keyboard.press("Enter")
    expect(heading).to_have_text("wide 1")
    page.keyboard.press("Escape")
    expect(overlay_box).to_be_focused()
    for _ in range(7):  # over the heads of the columns to the one row that is in the order of Tab
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.firstChild.textContent") == "wide 1"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(heading).to_have_text("wide 2")
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.firstChild.textContent") == "short"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(heading).to_have_text("short")


def test_a_reload_shows_everything_again(page):
    before = overlay(page)
    page.get_by_label("name contains").fill("wide")
    page.get_by_role("button", name="r_d: rate after").click()
    page.get_by_role("cell", name="wide 1").click()
    page.reload()
    expect(page.locator("#one")).to_be_hidden()
    assert (names(page), overlay(page)) == (list(CURVES), before)


def test_of_many_curves_the_list_begins_with_some(opened, tmp_path, atlas):  # noqa: F811
    fit = atlas[1].filter(pl.col("curve") == "wide 0")
    curves = [f"curve {k}" for k in range(450)]
    fits = pl.concat(fit.with_columns(curve=pl.lit(name)) for name in curves)
    points = pl.concat(pl.DataFrame({"curve": [name] * 60, "step": STEPS, "loss": CURVES["wide 0"]}) for name in curves)
    options = {"smoothing": "none", "skip_steps": 100, "resamples": 40}
    path = tmp_path / "many.html"
    path.write_text(atlas_page(points, fits, verdict_counts(fits, fits), preparation=options), "utf-8")
    page, events = opened(path)
    assert len(names(page)) == 200
    page.locator("#overlay").press("End")  # a row that is not listed yet
    expect(page.locator("#curves tr.current td").first).to_have_text("curve 449")
    assert len(names(page)) == 450
    page.get_by_label("name contains").fill("curve 4")
    assert names(page) == [name for name in curves if "4" in name]  # each of the words is in the name
    page.get_by_label("name contains").fill("")
    assert len(names(page)) == 450  # the chosen row is the last
    page.reload()
    page.get_by_role("button", name="Show all 450 rows").click()
    assert len(names(page)) == 450
    expect(page.locator("#more")).to_be_hidden()
    assert elsewhere(events, tmp_path) == []


@pytest.mark.parametrize("width", [1100, 400])
def test_nothing_is_cut(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    for details in page.locator("details").all():
        details.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT) == []
    page.get_by_role("cell", name="wide 1").click()
    assert page.evaluate(CUT) == []
