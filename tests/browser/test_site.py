"""A site opened from disk, with the network off: cards, navigation and search, on a wide and a narrow window."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

from lmdynamics.batch.site import write_site
from tests.batch.made import write_item
from tests.browser.test_lab import NOTEBOOKS, WORD_BREAKS
from tests.browser.test_static_page import browser, elsewhere, opened, pytestmark  # noqa: F401
from tests.test_docs import ROOT

QUOTED = """() => [...document.querySelectorAll('.jp-RenderedHTML td')].map(cell => cell.textContent.trim())
  .filter(text => text.startsWith('"') && text.endsWith('"'))"""
MAX_BYTES = 15_000_000  # of a site
# texts that extend over the edge of the window or of a box that hides them; what can be scrolled is not cut
CUT = """() => [...document.querySelectorAll('body *')].filter(node => {
  if (!node.checkVisibility() || node.closest('svg, math, .jp-Collapser')) return false;
  const box = node.getBoundingClientRect();
  if (!box.width || ![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) return false;
  const range = document.createRange();
  range.selectNodeContents(node);
  const right = range.getBoundingClientRect().right;
  let edge = innerWidth;
  for (let up = node; up; up = up.parentElement) {
    const {overflowX} = getComputedStyle(up);
    if (overflowX === 'auto' || overflowX === 'scroll') return false;
    if (overflowX === 'hidden') edge = Math.min(edge, up.getBoundingClientRect().right);
  }
  return right > edge + 1;
}).map(node => `${node.tagName}: ${node.textContent.slice(0, 60)}`)"""


@pytest.fixture(scope="module")
def site(smoke_series, tmp_path_factory) -> Path:
    """The site of the series at profile smoke, with a page that failed."""
    out = tmp_path_factory.mktemp("batch") / "series"
    shutil.copytree(smoke_series[1], out, ignore=shutil.ignore_patterns("home-*", ".*"))
    write_item(out, "06_broken", status="failed", cell=4, source="1 / 0", error="ZeroDivisionError: " + "long" * 80)
    return write_site([out], out.parent / "site", docs=ROOT / "README.md").parent


@pytest.mark.slow
def test_a_site_is_small(site):
    assert sum(path.stat().st_size for path in site.rglob("*")) < MAX_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("width", [1100, 400])
def test_nothing_is_cut_and_nothing_comes_from_elsewhere(site, opened, width):  # noqa: F811
    for path in sorted(set(site.rglob("*.html")) - set(site.rglob("explorer_*.html"))):  # these are single figures
        page, events = opened(path)
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate(CUT) == [], path
        assert page.locator("h1").count() == 1, path
        assert set(page.evaluate(WORD_BREAKS)) <= {"normal"}, f"{path}: a line breaks inside words and numbers"
        assert page.evaluate(QUOTED) == [], f"{path}: text in quotes in a table"
        assert page.locator("main img:not([alt])").count() == 0, path
        assert elsewhere(events, site) == []
        page.close()


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site, opened):  # noqa: F811
    links = "links => links.map(link => [link.protocol, decodeURIComponent(link.pathname), link.hash])"
    anchors: dict[Path, set[str]] = {}
    for path in sorted(site.rglob("*.html")):
        page, _ = opened(path)
        anchors[path] = set(page.locator("[id]").evaluate_all("nodes => nodes.map(node => node.id)"))
        for protocol, target, anchor in page.locator("a[href]").evaluate_all(links):
            assert protocol in ("file:", "https:"), (path, target)
            if protocol == "file:":
                assert Path(target).is_file(), (path, target)
            if protocol == "file:" and anchor and Path(target) in anchors:
                assert {anchor[1:], page.evaluate("decodeURIComponent", anchor[1:])} & anchors[Path(target)], anchor
        page.close()


@pytest.mark.slow
@pytest.mark.parametrize("start", ["index.html", "docs/index.html", "02_sas_emergence/02_sas_emergence.html"])
@pytest.mark.parametrize(
    ("words", "title"),
    [("newcombe", "Reading the results: Intervals"), ("twonn", "When does syntax appear, and where?")],
)
def test_a_reader_types_a_word_and_follows_a_result(site, opened, start, words, title):  # noqa: F811
    page, events = opened(site / start)
    box = page.get_by_role("searchbox")
    box.press_sequentially("qqqqq")
    expect(page.locator(".site-nav output")).to_have_text("no sections")
    box.press("Escape")
    expect(page.locator(".found")).to_be_hidden()
    box.press_sequentially(words)
    result = page.locator(".found a", has_text=title).first
    expect(page.locator(".found mark").first).to_have_text(words, ignore_case=True)
    result.click()
    page.wait_for_load_state()
    expect(page.locator(".found")).to_be_hidden()
    assert words in page.locator("main").inner_text().lower()
    assert page.url.startswith(site.as_uri())
    assert elsewhere(events, site) == []


@pytest.mark.slow
def test_a_click_on_its_heading_folds_an_answer_and_its_figure(site, opened):  # noqa: F811
    page, _ = opened(site / "02_sas_emergence/02_sas_emergence.html")
    heading, figure = page.get_by_role("heading", name="What we found"), page.locator("main img").first
    sentence = page.get_by_text("attention heads find more arcs than on shuffled trees")
    for shown in (True, False, True):
        expect(figure).to_be_visible(visible=shown)
        expect(sentence).to_be_visible(visible=shown)
        heading.click()
    expect(figure).to_be_hidden()


@pytest.mark.slow
def test_a_reader_goes_from_the_cards_to_a_page_to_the_documentation_and_back(site, opened):  # noqa: F811
    page, events = opened(site / "index.html")
    expect(page.locator("article.card")).to_have_count(len(NOTEBOOKS) + 1)
    expect(page.locator(".card", has_text="06_broken")).to_contain_text("This page failed in cell 4: ZeroDivisionError")
    page.get_by_role("link", name="When does syntax appear, and where?").first.click()
    page.locator(".lmd-moving svg").first.wait_for(timeout=60_000)
    page.get_by_role("link", name="Glossary").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Glossary")
    page.get_by_role("link", name="Documentation").click()
    page.get_by_role("link", name="02_sas_emergence").first.click()
    page.get_by_role("link", name="Records", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Records and times")
    page.get_by_role("link", name="Pages").click()
    expect(page.locator("article.card")).to_have_count(len(NOTEBOOKS) + 1)
    assert elsewhere(events, site) == []
