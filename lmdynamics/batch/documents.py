"""Markdown documents as web pages, and the search of a site, which works from a disk without a server."""

import re
import shutil
from collections.abc import Mapping
from html import escape, unescape
from pathlib import Path

from lmdynamics.errors import UserError
from lmdynamics.html import json_in_script

HERE = Path(__file__).parent
_HEADING = re.compile(r'<h[1-6][^>]*\bid="([^"]*)"[^>]*>(.*?)</h[1-6]>', re.DOTALL)
_UNSEEN = re.compile(  # also code of a notebook and the numbers of its cells
    r'<(script|style|svg|noscript|head|nav)\b.*?</\1>|<div class="jp-(?:In|Out)putPrompt.*?</div>'
    r'|<div class="highlight hl-ipython3">.*?</pre>',
    re.DOTALL,
)
_LINK = re.compile(r'\b(href|src)="([^":#]+)(#[^"]*)?"')  # of a file, not of another site or a place on the same page


def documents(first: Path) -> dict[Path, str]:
    """The addresses in a site of a Markdown file and of all files that it links to, directly or not.

    Raises UserError if there is no such file, or a link leads nowhere.
    """
    if not first.is_file():
        raise UserError(f"no document {first}; name a Markdown file, such as README.md")
    addresses, waiting = {first: "docs/index.html"}, [first]
    while waiting:
        source = waiting.pop(0)
        for _, link, _ in _LINK.findall(_rendered(source)) if source.suffix == ".md" else ():
            target = (source.parent / unescape(link)).resolve()
            if not target.is_file():
                raise UserError(f"{source} links to {link}, which is not a file; correct the link")
            if target not in addresses:
                addresses[target] = f"docs/{target.stem + '.html' if target.suffix == '.md' else target.name}"
                waiting.append(target)
    return addresses


def write_documents(first: Path, site: Path, notebooks: Mapping[str, str]) -> dict[str, str]:
    """Copy what is not Markdown to the site, and return the HTML of each page by its address.

    `notebooks`: the address of each page of a notebook by its name, to which its name in a document links.
    """
    addresses, pages = documents(first.resolve()), {}
    for source, address in addresses.items():
        if source.suffix != ".md":
            (site / address).parent.mkdir(exist_ok=True)
            shutil.copyfile(source, site / address)
            continue

        def moved(match: re.Match, source: Path = source) -> str:
            target = addresses[(source.parent / unescape(match[2])).resolve()]
            return f'{match[1]}="../{escape(target)}{match[3] or ""}"'

        html = _LINK.sub(moved, _rendered(source)).replace("<table>", '<div class="wide"><table>')
        html = html.replace("</table>", "</table></div>")
        for name, page in notebooks.items():
            html = html.replace(f"<code>{name}</code>", f'<a href="../{escape(page)}"><code>{escape(name)}</code></a>')
        pages[address] = html
    return pages


def search_script(pages: Mapping[str, str]) -> str:
    """The script of the search box, with the text of all pages (HTML by address) in it: a disk answers no requests."""
    index = [[address, *section] for address, html in pages.items() for section in _sections(html)]
    return f"const SECTIONS = {json_in_script(index)};\n{(HERE / 'search.js').read_text('utf-8')}"


def _rendered(source: Path) -> str:
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    return markdown2html_mistune(source.read_text("utf-8"))


def title_of(html: str) -> str:
    """The first heading of a page, as plain text."""
    heading = _HEADING.search(html)
    return _text(heading[2]) if heading else ""


def _sections(html: str) -> list[tuple[str, str, str, str]]:
    """Each heading of a page with the text under it: title of the page, anchor, heading, text."""
    before, *parts = _HEADING.split(_UNSEEN.sub(" ", html))  # an anchor, a heading and a text each
    headings = [_text(heading) for heading in parts[1::3]]
    texts = [_text(text) for text in parts[2::3]]
    if texts:
        texts[0] = f"{_text(before)} {texts[0]}".strip()
    rows = zip(map(unescape, parts[::3]), headings, texts, strict=True)
    return [(headings[0], anchor, heading, text) for anchor, heading, text in rows]


def _text(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split()).replace(" ¶", "")
