"""Text keeps to its place: no picture cuts a label, and no title is wider than its chart, whatever the font."""

import os
import re

import altair as alt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import sync_playwright

from lmdynamics import charts
from lmdynamics.analysis.fits import predict_early, split_gains
from lmdynamics.analysis.syntax import DIRECTIONS, predicted_heads
from lmdynamics.charts.arcs import moving_arcs
from lmdynamics.charts.axes import Cursor
from lmdynamics.charts.heads import moving_head_map
from lmdynamics.charts.small_multiples import small_multiples
from lmdynamics.charts.text import MIN_WIDTH, Value, text_width, title_lines, width_of, with_room, wrapped
from lmdynamics.charts.theme import WIDTH, figure
from tests.analysis.frames import STEPS
from tests.browser.lab import _FLAGS, CHROMIUM
from tests.charts import (
    test_deceleration,
    test_dissent,
    test_gradient_cosines,
    test_interventions,
    test_learning_times,
    test_pair_race,
    test_scaling,
    test_seeds,
    test_small_multiples,
    test_trajectories,
    test_trend,
    test_zero_sum,
)
from tests.charts.frames import HEADS, RELATIONS, WORDS, attention, best_heads, head_scores
from tests.charts.losses import points
from tests.charts.specs import at_step
from tests.explorers.made import MAKE

NARROW = "Nimbus Sans, Liberation Sans, Arial"
FONTS = ["sans-serif", "DejaVu Sans", NARROW]  # the reader's own, the widest, a narrow one
MEASURE = """font => {
  const style = document.createElement('style');
  style.textContent = `text { font-family: ${font} !important }`;
  document.head.append(style);
  const measured = [...document.querySelectorAll('div > svg')].map(svg => {
    const page = svg.getScreenCTM().inverse(), {x, y, width, height} = svg.viewBox.baseVal;
    const box = element => {
      const {x, y, width, height} = element.getBBox(), matrix = page.multiply(element.getScreenCTM());
      const corners = [[x, y], [x + width, y], [x, y + height], [x + width, y + height]]
        .map(([x, y]) => new DOMPoint(x, y).matrixTransform(matrix));
      const [xs, ys] = [corners.map(point => point.x), corners.map(point => point.y)];
      return {left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys)};
    };
    const heads = [...svg.querySelectorAll('.role-title')].filter(head => head.querySelector('[font-size="15px"]'));
    const marks = [...svg.querySelectorAll('text, line, path:not(.background):not(.foreground)')]
      .filter(mark => mark.textContent || mark.tagName !== 'text').filter(mark => mark.getAttribute('opacity') !== '0');
    const beyond = mark => {
      const {left, right, top, bottom} = box(mark);
      return Math.max(x - left, right - x - width, y - top, bottom - y - height) > 0.5;
    };
    const [own, rest] = [true, false].map(inside => marks.filter(mark => heads.some(h => h.contains(mark)) === inside));
    return {
      cut: marks.filter(mark => mark.tagName === 'text' && beyond(mark)).map(mark => mark.textContent),
      title: Math.max(...own.map(mark => box(mark).right)),
      chart: [Math.min(...rest.map(mark => box(mark).left)), Math.max(...rest.map(mark => box(mark).right))],
    };
  });
  style.remove();
  return measured;
}"""


def every_figure():
    modules = (
        test_dissent,
        test_interventions,
        test_gradient_cosines,
        test_pair_race,
        test_seeds,
        test_zero_sum,
        test_learning_times,
    )
    for module in modules:
        yield from ((f"{module.__name__.split('_', 1)[1]}: {name}", make()) for name, make in module.EVERY.items())
    for module in (test_deceleration, test_trajectories):
        yield from module.every_chart().items()
    for name, make in MAKE.items():
        yield f"explorer: {name}", make().moving().still()
    sizes = test_scaling.sizes()
    two = sizes.filter(pl.col("parameters") <= sizes["parameters"].unique().sort()[1])
    yield "sizes", charts.size_trends(sizes, test_scaling.laws(), sizes)
    yield "two sizes", charts.size_trends(two, test_scaling.laws(pl.concat([two, two])))
    yield "gain parts", charts.gain_parts(split_gains(sizes))
    yield "early", charts.early_prediction(predict_early(points(), [0.2, 0.5]))
    yield "multiples", small_multiples(test_small_multiples.curves())
    yield "trend", charts.record_trend(test_trend.accepted(0.61, 0.2, 0.62))
    yield "head map", charts.layer_head_map(head_scores(), "nsubj", offset=0.4)
    yield "relations", charts.heads_by_relation(best_heads())
    arcs = predicted_heads(attention())
    yield "arcs", charts.sentence_arcs(WORDS, arcs.filter(step=arcs["step"].max()), HEADS, RELATIONS, "nsubj")
    cursor, signals = Cursor(STEPS), {"relation": "nsubj", "layer": 1, "head": 2, "direction": DIRECTIONS[0]}
    every_head = predicted_heads(attention(steps=STEPS)).with_columns(direction=pl.lit(DIRECTIONS[0]))
    moving = {
        "map": moving_head_map(head_scores(), cursor, {"nsubj": 0.25}),
        "arcs": moving_arcs(WORDS, every_head, HEADS, RELATIONS, cursor),
    }
    yield from ((f"moving {name}", at_step(chart, cursor, 64, **signals)) for name, chart in moving.items())


@pytest.fixture(scope="module")
def pictures():
    return {name: charts.to_svg(chart) for name, chart in every_figure()}


@pytest.fixture(scope="module")
def page(pictures):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        page = browser.new_page()
        page.set_content("".join(f"<div>{svg}</div>" for svg in pictures.values()))
        yield page
        browser.close()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="Chromium is not installed (apt install chromium)")
@pytest.mark.parametrize("font", FONTS)
def test_no_text_is_cut_and_no_title_is_wider_than_its_chart(font, page, pictures):
    measured = dict(zip(pictures, page.evaluate(MEASURE, font), strict=True))
    assert {name: extent["cut"] for name, extent in measured.items() if extent["cut"]} == {}
    ends = {name: max(extent["chart"][1], extent["chart"][0] + MIN_WIDTH) for name, extent in measured.items()}
    assert [name for name, extent in measured.items() if extent["title"] > ends[name] + 1] == []


@given(st.text("abc WM%→λ.,  ", max_size=200), st.floats(30, 600), st.booleans())
def test_lines_hold_the_whole_text_and_are_no_wider_than_asked(text, width, bold):
    lines = wrapped(text, width, 12, bold)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(text_width(line, 12, bold) <= width or len(line) == 1 for line in lines)


def test_a_number_stays_with_its_word_and_lines_are_about_evenly_long():
    assert wrapped("masked at linear 30 → 15 % and then", 130) == ["masked at", "linear 30 → 15 %", "and then"]
    text = "Held-out loss at the end: 0.41 (base) to 0.71 (released)"
    first, last = wrapped(text, text_width(text) - 1)
    assert 0.7 < text_width(first) / text_width(last) < 1.4


def test_a_title_that_follows_parameters_has_lines_for_its_longest_text():
    title = ["It's at step ", Value("format(at, ',d')"), ", far from the end"]
    assert title_lines(title, 400, 15).expr == r"['It\'s at step ' + format(at, ',d') + ', far from the end']"
    assert title_lines(title, 200, 15).expr == r"['It\'s at step ' + format(at, ',d') + ',', 'far from the end']"


def test_a_chart_is_as_wide_as_its_panels_side_by_side():
    panel = alt.Chart(alt.Data(values=[])).mark_point()
    wide, narrow = panel.properties(width=300), panel.properties(width=100)
    rows = wide.encode(y=alt.Y("a:N", sort=["a", "the longest name"]))
    assert 300 < width_of(wide.encode(y="a:Q")) < 330
    assert 360 < width_of(rows) == width_of(wide + rows) < 400
    assert width_of(wide + wide) == 300
    assert width_of(wide & narrow) == 300
    assert width_of(alt.hconcat(wide, narrow, wide, spacing=10)) == 720
    assert width_of(alt.concat(wide, narrow, narrow, columns=2, spacing=10)) == 410
    assert width_of(narrow.facet("a:N", columns=3)) == 340


def test_a_caption_of_several_texts_begins_a_line_with_each():
    bars = alt.Chart(alt.Data(values=[{"a": 1}])).mark_bar().encode(x="a:Q").properties(width=WIDTH)
    title = figure(bars, "Bars", ["one", "", "two " * 60], "Bars.").to_dict()["title"]
    assert title["subtitle"][0] == "one"
    assert len(title["subtitle"]) > 2
    assert all(text_width(line) <= WIDTH for line in title["subtitle"])


def test_a_picture_grows_to_where_its_texts_may_reach():
    text = '<text transform="translate(90,20) rotate(-90)" text-anchor="middle" font-size="10px">{}</text>'
    picture = '<svg xmlns="http://www.w3.org/2000/svg" width="100" height="40" viewBox="0 0 100 40"><g>{}</g></svg>'
    small, large = (with_room(picture.format(text.format("m" * n))) for n in (2, 20))
    assert small == picture.format(text.format("mm"))
    assert re.findall(r'viewBox="([^"]*)"', large) == ["0 -80 100 200"]
