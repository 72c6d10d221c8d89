"""Documents as pages of a site, and what its search finds in them."""

import json
import re

import pytest

from lmdynamics.batch.documents import search_script, write_documents
from tests.conftest import refuses


@pytest.fixture
def docs(tmp_path):
    """A README with a document, which links back, to a data file and to another site."""
    (tmp_path / "more").mkdir()
    (tmp_path / "README.md").write_text("# Read *me*\n\nSee [the other](more/other.md) and `some_page`.\n")
    links = "[back](../README.md#read-me), [a file](data.csv), [far](https://there.test/), [here](#other)"
    (tmp_path / "more" / "other.md").write_text(f"# Other\n\n{links}\n\n## Zebras\n\nA zebra & <b>a table</b>.\n")
    (tmp_path / "more" / "data.csv").write_text("a\n1\n")
    return tmp_path / "README.md"


def test_linked_documents_become_pages_and_files_are_copied(docs, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    pages = write_documents(docs, site, {"some_page": "some_page/some_page.html"})
    assert list(pages) == ["docs/index.html", "docs/other.html"]
    assert 'href="../docs/other.html"' in pages["docs/index.html"]
    assert '<a href="../some_page/some_page.html"><code>some_page</code></a>' in pages["docs/index.html"]
    for link in ("../docs/index.html#read-me", "../docs/data.csv", "https://there.test/", "#other"):
        assert f'href="{link}"' in pages["docs/other.html"]
    assert (site / "docs" / "data.csv").read_text() == "a\n1\n"


def test_a_link_to_nothing_is_refused(docs, tmp_path):
    docs.write_text("# Title\n\n[x](missing.md)\n")
    refuses("links to missing.md, which is not a file", write_documents, docs, tmp_path, {})
    refuses("no document", write_documents, tmp_path / "none.md", tmp_path, {})


def test_the_search_has_every_section_and_nothing_that_is_not_read(docs, tmp_path):
    pages = write_documents(docs, tmp_path, {})
    pages["p/p.html"] = (
        '<body><div class="jp-InputPrompt x">In [3]:</div><h1 id="T&quot;">T<a href="#">¶</a></h1>'
        '<script>secret</script><div class="highlight hl-ipython3"><pre>code</pre></div><p>&lt;/script&gt; seen</p>'
    )
    script = search_script(pages)
    assert "</script" not in script
    index = json.loads(re.match(r"const SECTIONS = (.*);\n", script)[1])
    assert ["docs/other.html", "Other", "Zebras", "Zebras", "A zebra & a table ."] in index
    assert index[-1] == ["p/p.html", "T", 'T"', "T", "</script> seen"]
