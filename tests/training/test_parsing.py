"""Trees from a parser: what its pipeline says is what the treebank holds; without one, what to do is said."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lmdynamics.errors import UserError
from lmdynamics.training.parsing import parse_text


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("Cats sleep.\n\nDogs bark loudly.\n")
    return path


def fake_spacy(monkeypatch):
    """A stand-in with spaCy's interface whose every word hangs on the sentence's second."""

    def document(text):
        words = text.replace(".", " .").split()
        kinds = ["dep", "ROOT", *["dep"] * len(words)]
        tokens = [SimpleNamespace(i=i, text=w, is_space=False, dep_=kinds[i]) for i, w in enumerate(words)]
        for token in tokens:
            token.head = tokens[1]
        return SimpleNamespace(sents=[tokens])

    module = ModuleType("spacy")
    module.load = lambda name: SimpleNamespace(pipe=lambda texts: map(document, texts))
    monkeypatch.setitem(sys.modules, "spacy", module)


def test_spacy_trees(book, monkeypatch):
    fake_spacy(monkeypatch)
    trees = parse_text(book, "spacy:en_core_web_sm")
    assert [s.words for s in trees] == [("Cats", "sleep", "."), ("Dogs", "bark", "loudly", ".")]
    assert trees.sentences[1].heads == (1, -1, 1, 1)
    assert trees.sentences[1].relations == ("dep", "root", "dep", "dep")


def test_stanza_trees(book, monkeypatch):
    def pipeline(text):
        words = text.replace(".", " .").split()
        made = [SimpleNamespace(text=w, head=0 if i == 1 else 2, deprel="x") for i, w in enumerate(words)]
        return SimpleNamespace(sentences=[SimpleNamespace(words=made)])

    module = ModuleType("stanza")
    module.Pipeline = lambda *_, **__: pipeline
    monkeypatch.setitem(sys.modules, "stanza", module)
    assert parse_text(book, "stanza:en").sentences[0].heads == (1, -1, 1)


@pytest.mark.parametrize("name", ["spacy", "stanza"])
def test_a_parser_that_is_not_installed(book, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"is not installed; `pip install {name}`"):
        parse_text(book, f"{name}:en")


def test_a_model_that_is_not_there(book, monkeypatch):
    fake_spacy(monkeypatch)

    def absent(name):
        raise OSError("[E050] Can't find model")

    sys.modules["spacy"].load = absent
    with pytest.raises(UserError, match="has no model 'en_core_web_lg' here; `python -m spacy download"):
        parse_text(book, "spacy:en_core_web_lg")


@pytest.mark.parametrize("name", ["malt:en", "spacy:"])
def test_no_such_parser(book, name):
    with pytest.raises(UserError, match="is no parser; write spacy:MODEL or stanza:LANGUAGE"):
        parse_text(book, name)
