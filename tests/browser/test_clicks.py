"""A click on a chart: to a checkpoint or a head in JupyterLab, and a sentence of one's own read meanwhile."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.batch.notebooks import write_notebook
from tests.browser.lab import CHROMIUM, notebook_page
from tests.browser.moves import drag, slider_areas

OUT = Path(__file__).parent / "out"
SYNTAX = """\
import lmdynamics as lmd
from lmdynamics.explorers.sas import SasExplorer
run = lmd.train("grammar-mlm", "smoke", progress=False)
explorer = SasExplorer(run, run.treebank("grammar", 80), min_count=20, progress=False)
explorer.show()
"""

expect.set_options(timeout=20_000)  # a busy machine is slow, not wrong
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="Chromium is not installed (apt install chromium)"),
]


def click(page: Page, index: int) -> None:
    """A click into the first panel over training, at one of its checkpoints."""
    box = page.locator(".lmd-chart path[opacity='0']").nth(index).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


@pytest.mark.slow
def test_in_jupyterlab_clicks_go_to_checkpoints_and_heads(lab):
    root, address = lab
    write_notebook(root / "syntax.ipynb", SYNTAX, parameters=None)
    with notebook_page() as notebook:
        notebook.open(address, "syntax.ipynb")
        notebook.run_all()
        page = notebook.page
        view, readout = page.locator(".lmd-chart svg"), page.locator(".lmd-moving output")
        view.wait_for(timeout=60_000)
        view.scroll_into_view_if_needed()
        expect(readout).to_have_text("64")
        click(page, 0)
        expect(readout).to_have_text("0")
        page.locator(".lmd-moving input[type=range]:focus").wait_for(state="attached")
        for _ in range(3):  # a click gives the keyboard to the slider
            page.keyboard.press("ArrowRight")
        expect(readout).to_have_text("4")
        click(page, 0)  # the same place again
        expect(readout).to_have_text("0")
        click(page, -1)  # the last panel's last checkpoint
        expect(readout).to_have_text("64")
        assert notebook.answers("explorer.now['step']", 64)
        layer, head = (page.locator(f".lmd-moving select[name={name}]") for name in ("layer", "head"))
        chosen = (layer.input_value(), head.input_value())
        for tile in view.locator("g.mark-rect path[aria-label^='head: ']").all()[:2]:  # one of them is another head
            tile.click(force=True)
            page.wait_for_timeout(700)
            if (layer.input_value(), head.input_value()) != chosen:
                break
        assert (layer.input_value(), head.input_value()) != chosen
        assert f"Layer {layer.input_value()}, head {head.input_value()}" in view.text_content()
        looked_at = "tuple(str(explorer.now[name]) for name in ('layer', 'head', 'direction'))"
        lists = [page.locator(f".lmd-moving select[name={name}]") for name in ("layer", "head", "direction")]
        assert notebook.answers(looked_at, tuple(control.input_value() for control in lists))
        for name, control in (("layer", layer), ("head", head)):
            assert f"{name}: {control.input_value()}" in tile.get_attribute("aria-label")
        relation = page.locator(".lmd-moving select[name=relation]")
        other = relation.locator("option").all_inner_texts()[1]
        relation.select_option(other)  # brings its best head
        page.wait_for_timeout(700)
        best = notebook.ask(f"tuple(map(str, explorer.measured.best_heads[{other!r}]))")
        assert tuple(control.input_value() for control in lists) == best
        assert notebook.answers(looked_at, best)
        notebook.ask("str(explorer.restore({'step': 1, 'layer': 1, 'head': 3}))[:0]")
        expect(readout).to_have_text("1")
        expect(layer).to_have_value("1")
        expect(head).to_have_value("3")
        box = page.get_by_placeholder("a sentence of your own")
        box.fill("the the the")
        box.press("Enter")
        page.get_by_role("option", name="the the the").wait_for(state="attached", timeout=30_000)
        page.screenshot(path=OUT / "clicks.png")
        assert (notebook.errors(), notebook.console, notebook.outside) == ([], [], [])


GUESSES = """\
import lmdynamics as lmd
from lmdynamics.explorers.checkpoint_pair import CheckpointPair, head_relations
from lmdynamics.explorers.guesses import GuessExplorer
from lmdynamics.measurements.guesses import Guesses, example_sentences
from lmdynamics.measurements.losses import TokenLosses
run = lmd.train("grammar-mlm", "smoke", progress=False)
trees, rows, tokenizer = run.treebank("grammar", 100), run.held_out().take(range(40)), run[0].tokenizer
examples = example_sentences(trees, tokenizer, run.pairs("grammar", 20))
explorer = GuessExplorer(lmd.trace(run, Guesses(tuple(examples)), progress=False), examples, run)
explorer.show()
"""
PAIR = """\
words = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in rows]
heads = head_relations(run, trees, run.steps, progress=False)
pair = CheckpointPair(lmd.trace(run, TokenLosses(rows), progress=False), words, heads)
pair.show()
"""


@pytest.mark.slow
def test_in_jupyterlab_words_are_hidden_sentences_read_and_two_checkpoints_compared(lab):
    root, address = lab
    write_notebook(root / "guesses.ipynb", GUESSES, PAIR, parameters=None)
    with notebook_page() as notebook:
        notebook.open(address, "guesses.ipynb")
        notebook.run_all()
        page = notebook.page
        guesses, pair = (page.locator(".lmd-moving").nth(i) for i in range(2))
        pair.locator(".lmd-chart svg").wait_for(timeout=60_000)
        words = guesses.locator("g.mark-text.role-mark").first.locator("text")
        first, hidden = notebook.ask("(explorer.texts[0].split(), explorer.now['word'])")
        expect(words.nth(hidden)).to_have_text("▁▁▁")
        other = 1 if hidden != 1 else 2
        words.nth(other).scroll_into_view_if_needed()
        words.nth(other).click(force=True)
        expect(words.nth(other)).to_have_text("▁▁▁")
        expect(words.nth(hidden)).to_have_text(first[hidden])
        assert notebook.answers("explorer.now['word']", other)
        page.mouse.move(0, 0)
        drag(page, slider_areas(page)[0], 0.0)
        expect(guesses.locator("output")).to_have_text("0")
        assert notebook.answers("explorer.now['step']", 0)
        box = page.get_by_placeholder("a sentence of your own")
        box.fill(" ".join(["xyzzy", *first]))
        box.press("Enter")
        page.get_by_text("each read as [UNK]: xyzzy").wait_for(timeout=60_000)
        assert notebook.answers("len(explorer.texts)", 13)
        expect(guesses.locator("g.mark-text.role-mark").first.locator("text").first).to_have_text("xyzzy")
        expect(guesses.locator("output")).to_have_text("0")  # the checkpoint stays
        page.screenshot(path=OUT / "guesses.png")
        a = pair.locator("input[name=origin]")
        a.focus()
        page.keyboard.press("Home")
        expect(pair.locator("svg .role-title-text").first).to_contain_text("From step 0 to 64")
        assert notebook.answers("pair.state()", {"a": 0, "b": 64})
        strip = pair.locator("path[opacity='0']").nth(2)
        strip.scroll_into_view_if_needed()
        strip.click(force=True)
        expect(pair.locator("svg .role-title-text").first).to_contain_text("From step 0 to 2")
        assert notebook.answers("pair.state()", {"a": 0, "b": 2})
        page.screenshot(path=OUT / "pair.png")
        assert (notebook.errors(), notebook.console, notebook.outside) == ([], [], [])
