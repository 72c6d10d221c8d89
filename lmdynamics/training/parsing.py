"""Trees for plain text from a parser that is already installed: spaCy or Stanza.

Written `spacy:en_core_web_sm` or `stanza:en`. Nothing is downloaded here; a parser's mistakes become the trees'.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from lmdynamics.corpora.passages import Passages, text_files
from lmdynamics.corpora.treebank import Sentence, Treebank
from lmdynamics.errors import UserError

PASSAGES = 2_000  # from the start of the text
PARSERS = ("spacy", "stanza")


def parse_text(source: str | Path, parser: str, passages: int = PASSAGES) -> Treebank:
    """The first `passages` paragraphs of a text as a treebank of the parser's making.

    Raises
    ------
    UserError
        If the parser or its model is not installed, or it gives no sentence.
    """
    library, _, model = parser.partition(":")
    if library not in PARSERS or not model:
        raise UserError(f"{parser!r} is no parser; write spacy:MODEL or stanza:LANGUAGE, for example stanza:en")
    texts = list(islice(Passages(text_files(source)[1]), passages))
    sentences = (_spacy if library == "spacy" else _stanza)(texts, model)
    trees = tuple(tree for tree in sentences if len(tree) > 1)
    if not trees:
        raise UserError(f"{parser} found no sentence of two words or more in {source}; use another parser or text")
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]
    return Treebank(f"{Path(source).name} ({digest}) parsed by {parser}", trees)


def _spacy(texts: Iterable[str], model: str) -> Iterator[Sentence]:
    try:
        import spacy

        pipeline = spacy.load(model)
    except ImportError:
        raise UserError(f"spaCy is not installed; `pip install spacy`, `python -m spacy download {model}`") from None
    except OSError:
        raise UserError(f"spaCy has no model {model!r} here; `python -m spacy download {model}`") from None
    for document in pipeline.pipe(texts):
        for found in document.sents:
            words = [token for token in found if not token.is_space]
            place = {token.i: i for i, token in enumerate(words)}
            yield Sentence(
                tuple(token.text for token in words),
                tuple(-1 if token.head.i == token.i else place.get(token.head.i, -1) for token in words),
                tuple(token.dep_.lower() for token in words),
            )


def _stanza(texts: Iterable[str], language: str) -> Iterator[Sentence]:
    fetch = f"`pip install stanza`, then in Python `stanza.download({language!r})`"
    try:
        import stanza

        pipeline = stanza.Pipeline(
            language, processors="tokenize,pos,lemma,depparse", download_method=None, verbose=False
        )
    except ImportError:
        raise UserError(f"Stanza is not installed; {fetch}") from None
    except Exception as error:  # its own class for missing models, which cannot be named without importing it
        raise UserError(f"Stanza has no pipeline for {language!r} here ({error}); {fetch}") from None
    for text in texts:
        for found in pipeline(text).sentences:
            yield Sentence(
                tuple(word.text for word in found.words),
                tuple(word.head - 1 for word in found.words),
                tuple(word.deprel for word in found.words),
            )
