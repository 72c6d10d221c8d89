"""Coloured tokens in a real browser: text from data stays text, on a page of its own and in JupyterLab."""

import json
import os

import polars as pl
import pytest

from lmdynamics.charts import ColouredTokens
from tests.batch.notebooks import write_notebook
from tests.browser.lab import CHROMIUM, jupyter_lab, notebook_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not os.path.exists(CHROMIUM), reason="Chromium is not installed (apt install chromium)"),
]

HOSTILE = [
    "<s>",
    "<script>window.pwned=1</script>",
    "</style><b>",
    "</span></div><iframe src=//192.0.2.1>",
    '" onmouseover="window.pwned=1',
    "' onmouseover='window.pwned=1",
    "<img src=x onerror=window.pwned=1>",
    "<img src=http://192.0.2.1/x.png>",
    "\u202edrow",
    "a\x00b",
    "&lt;b&gt;",
    "{{window.pwned=1}}",
    "$\\href{javascript:window.pwned=1}{pwned}$",  # JupyterLab typesets mathematics wherever it finds it
    "\\(x^2\\)",
]
SHOWN = {**{token: token for token in HOSTILE}, "\u202edrow": "\\u202edrow", "a\x00b": "a\\x00b"}

FRAMES = """\
import json
import polars as pl
from lmdynamics.charts import ColouredTokens
tokens = json.loads({tokens!r})
n = len(tokens) - 1
change = [(-1) ** i * 0.1 * (i + 1) for i in range(n)]
changes = pl.DataFrame({{"row": 0, "position": range(1, n + 1), "change": change}})
"""

TOKENS = """\
ColouredTokens({0: tokens}, changes, title="<b>title</b>")
"""

EXPLORER = """\
from lmdynamics.explorers.zero_sum import ZeroSumExplorer
steps = [2**i for i in range(8)]
changes = pl.concat([
    pl.DataFrame({"step": step, "batch": batch, "split": "held out", "direction": "update", "row": row,
                  "position": range(1, n + 1), "token": range(n), "loss": 3.0,
                  "change": [0.1 * (j - 4) / step for j in range(n)], "first_order": [0.1 * (j - 4) for j in range(n)]})
    for step in steps for batch in range(2) for row in range(2)
])
groups = pl.DataFrame({"token": range(n), "group": tokens[1:]})
ZeroSumExplorer(changes, lambda split, batch, row: tokens, groups).show()
"""

LOOK = """() => {
  const tokens = [...document.querySelectorAll('span[title]')].filter(
    node => node.title.includes('nats') || node.title === 'not predicted');
  const root = tokens[0].parentElement.parentElement;
  return {
    shown: tokens.map(node => node.textContent),
    titles: tokens.map(node => node.title),
    backgrounds: tokens.map(node => getComputedStyle(node).backgroundColor),
    underlines: tokens.map(node => getComputedStyle(node).borderBottomStyle),
    elements: [...new Set([...root.querySelectorAll('*')].map(node => node.tagName))].sort(),
    attributes: [...new Set([...root.querySelectorAll('*')].flatMap(node => node.getAttributeNames()))].sort(),
    pwned: window.pwned === undefined ? null : window.pwned,
  };
}"""


def view():
    n = len(HOSTILE) - 1
    changes = pl.DataFrame(
        {"row": 0, "position": range(1, n + 1), "change": [(-1) ** i * 0.1 * (i + 1) for i in range(n)]}
    )
    return ColouredTokens({0: HOSTILE}, changes, title="<b>title</b>")


def check(notebook):
    """Hover over every token, then look: literal text, nothing made or run that we did not make."""
    page = notebook.page
    spans = page.locator("span[title]").filter(has_text="pwned")
    spans.first.wait_for(timeout=30_000)
    for i in range(spans.count()):
        spans.nth(i).hover()
        spans.nth(i).click()
    look = page.evaluate(LOOK)
    assert look["shown"] == list(SHOWN.values())
    assert all(text in title for text, title in list(zip(look["shown"], look["titles"], strict=True))[1:])
    assert look["elements"] == ["B", "DIV", "SPAN", "WBR"]
    assert look["attributes"] == ["style", "title"]
    assert look["pwned"] is None
    assert set(look["underlines"][1:]) == {"solid", "dotted"}
    assert len(set(look["backgrounds"][1:])) > 2
    assert notebook.console == []
    assert notebook.outside == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_of_its_own(tmp_path, scheme):
    view().save(tmp_path / "tokens.html")
    with notebook_page() as notebook:
        notebook.page.emulate_media(color_scheme=scheme)
        notebook.page.goto((tmp_path / "tokens.html").as_uri())
        check(notebook)
        ink = notebook.page.evaluate("getComputedStyle(document.querySelector('span[title]')).color")
        assert ink == ("rgb(0, 0, 0)" if scheme == "light" else "rgb(255, 255, 255)")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    root, scratch = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    with jupyter_lab(root, scratch) as address:
        yield root, address


def test_in_jupyterlab_run_there_or_elsewhere(lab):
    root, address = lab
    write_notebook(root / "tokens.ipynb", FRAMES.format(tokens=json.dumps(HOSTILE)) + TOKENS, parameters=None)
    executed = write_notebook(root / "came.ipynb", "view", parameters=None)
    content = json.loads(executed.read_text())  # as out of a batch run: outputs that JupyterLab does not trust
    content["cells"][1]["outputs"] = [
        {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": view()._repr_mimebundle_()}
    ]
    executed.write_text(json.dumps(content))
    with notebook_page() as notebook:
        notebook.open(address, "tokens.ipynb")
        notebook.run_all()
        assert notebook.errors() == []
        check(notebook)
        notebook.open(address, "came.ipynb")
        check(notebook)


def test_in_the_explorer_while_keys_move_its_checkpoint(lab):
    root, address = lab
    write_notebook(root / "explorer.ipynb", FRAMES.format(tokens=json.dumps(HOSTILE)) + EXPLORER, parameters=None)
    with notebook_page() as notebook:
        notebook.open(address, "explorer.ipynb")
        notebook.run_all()
        assert notebook.errors() == []
        page = notebook.page
        page.locator(".lmd-moving svg").wait_for(timeout=30_000)
        text = page.locator(".lmd-moving [role=status], .lmd-under")
        text.filter(has_text="Step 128, held-out text").wait_for(timeout=10_000)
        check(notebook)
        page.locator(".lmd-moving input[type=range]").focus()
        for _ in range(3):
            page.keyboard.press("ArrowLeft")
        text.filter(has_text="Step 16, held-out text").wait_for(timeout=10_000)
        text.filter(has_text="Step 16, row 0").wait_for(timeout=10_000)
        check(notebook)
