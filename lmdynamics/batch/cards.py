"""What an executed notebook asks and answers, for a card that leads to its page.

A notebook may tag code cells: what a cell tagged `answer` prints is its answer, and the figure of a cell tagged
`figure` is shown. Without tags these are the notebook's first paragraph and its first figure.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from lmdynamics.batch.page import SVG, alternative_text, picture_source

PNG = "image/png"


@dataclass(frozen=True)
class Card:
    """`title`, `answer`: HTML, in which everything from data is escaped; `figure`: address and alternative text."""

    title: str
    answer: str = ""
    figure: tuple[str, str] | None = None


def read_card(executed: Path) -> Card | None:
    """The card of an executed notebook; None if there is no complete notebook. Addresses are relative to its folder."""
    try:
        cells = nbformat.read(executed, as_version=4).cells
    except (OSError, ValueError, AttributeError, KeyError):
        return None
    code = [cell for cell in cells if cell.cell_type == "code"]
    answers, figures = ([cell for cell in code if tag in cell.metadata.get("tags", ())] for tag in ("answer", "figure"))
    markdown = (cell.source for cell in cells if cell.cell_type == "markdown")
    title, claim = opening(next((text for text in markdown if re.match("# ", text)), ""))
    answer = "".join(text for cell in answers for output in cell.outputs for text in _texts(output))
    pictures = (p for cell in (*figures, *answers, *code) for o in cell.outputs for p in _pictures(o, executed.parent))
    return Card(title or words(executed.stem), answer or claim, next(pictures, None))


def opening(markdown: str) -> tuple[str, str]:
    """The title of a Markdown text and its first paragraph, as HTML without links and pictures."""
    heading = re.search(r"^# (.+)$", markdown, flags=re.MULTILINE)
    paragraphs = re.sub(r"^#+ .*$", "", markdown, flags=re.MULTILINE).strip()
    title = _html(heading[1]).removeprefix("<p>").removesuffix("</p>") if heading else ""
    return title, _html(re.split(r"\n\s*\n", paragraphs)[0])


def words(name: str) -> str:
    """A file's or record's name as words."""
    return name.replace("_", " ")


def _html(markdown: str) -> str:
    """Markdown as HTML; HTML in it is shown as text, and nothing is loaded or linked."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    renderer = IPythonRenderer(escape=True, exclude_anchor_links=True)
    return re.sub(r"</?(a|img)\b[^>]*>", "", MarkdownWithMath(renderer).render(markdown)).strip()


def _texts(output: NotebookNode) -> Iterator[str]:
    """The printed or Markdown text of an output, as HTML."""
    if output.get("name") == "stdout" or "text/markdown" in output.get("data", {}):
        yield _html("".join(output.get("text") or output.data["text/markdown"]))


def _pictures(output: NotebookNode, folder: Path) -> Iterator[tuple[str, str]]:
    kind = next((kind for kind in (SVG, PNG) if kind in output.get("data", {})), None)
    if kind:
        yield picture_source(output, kind, folder), alternative_text(output, kind)
