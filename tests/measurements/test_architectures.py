"""Every measurement on every family; tokens and their words against spelling; what a causal head can see."""

import pytest
import torch
from tokenizers import normalizers

from lmdynamics.corpora.tokens import annotated_rows, tokenize_words
from lmdynamics.corpora.treebanks import Sentence, Treebank
from lmdynamics.errors import UserError
from lmdynamics.measurements.inputs import encode_words
from tests.conftest import refuses
from tests.measurements.published import FAMILIES, gpt2, treebank
from tests.measurements.support import CHECKS, OF_OUR_OWN, TABLE, as_text, cell, every_measurement, published, table

EACH = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
NOTHING_AROUND = ("GPT-2", "Pythia (GPT-NeoX)", "OLMo-2", "OLMo-2 (grouped queries)")


@EACH
@pytest.mark.parametrize("measurement", CHECKS, ids=lambda kind: kind.__name__)
def test_a_measurement_is_right_or_refuses_in_one_line(family, measurement):
    result = cell(family, measurement, False)
    refuses = measurement in OF_OUR_OWN  # for want of an optimizer, whatever the family
    assert result.startswith("no: " if refuses else "yes")
    assert "\n" not in result


@EACH
@pytest.mark.parametrize("measurement", OF_OUR_OWN, ids=lambda kind: kind.__name__)
def test_what_needs_an_optimizer_works_on_runs_trained_here(family, measurement):
    assert cell(family, measurement, True) == "yes"


def test_the_table_is_what_was_measured():
    assert every_measurement() == set(CHECKS)
    assert table() == TABLE.read_text(encoding="utf-8"), "python -m tests.measurements.support"


@EACH
def test_tokens_belong_to_the_words_they_spell(family):
    tokenizer = published(family).tokenizer
    sentences = [sentence.words for sentence in treebank(40)]
    ids, word_ids = tokenize_words(tokenizer, sentences, "some")
    for words, result, words_of_tokens in zip(sentences, ids, word_ids, strict=True):
        expected, spelt = as_text(tokenizer, words)
        assert result == expected
        assert words_of_tokens == [-1 if word is None else word for word in spelt]
    assert max(map(len, ids)) > max(map(len, sentences))  # words are split


@EACH
def test_special_tokens_are_those_around_a_text(family):
    tokenizer = published(family).tokenizer
    _, frame = annotated_rows(treebank(), tokenizer)
    assert frame.filter(row=0)["position"].to_list()[0] == (family.name not in NOTHING_AROUND)


@EACH
def test_padding_is_seen_by_none(family):
    """Whatever stands where a sentence is filled up, the rest stays as it is."""
    checkpoint = published(family)
    model, tokenizer = checkpoint.model("eager"), checkpoint.tokenizer
    encoded = encode_words(tokenizer, [sentence.words for sentence in treebank()], "some")
    batch = next(batch for batch in encoded.batches if not batch.attention_mask.all())
    mask = batch.attention_mask.bool()
    other = batch.input_ids.where(mask, 7)
    with torch.no_grad():
        one, two = (model(input_ids=x, attention_mask=batch.attention_mask).logits for x in (batch.input_ids, other))
    assert torch.allclose(one[mask], two[mask], atol=1e-4)


@EACH
def test_half_precision_is_measured_in_full(family):
    assert {parameter.dtype for parameter in published(family).model().parameters()} == {torch.float32}


def test_a_token_of_two_words_is_refused():
    tokenizer = gpt2()
    tokenizer.add_tokens(["the dog"])
    with pytest.raises(UserError, match="one: the tokenizer makes one token of 'the dog' in 'can the dog', which is"):
        encode_words(tokenizer, [("can", "the", "dog")], "one")


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast = False

    refuses("does not report which word a token belongs to", tokenize_words, Slow(), [("the",)], "one")


def test_a_word_of_nothing_is_refused_by_name():
    tokenizer = gpt2()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    treebank = Treebank("lost", (Sentence(("\u200b", "dog"), (1, -1), ("dep", "root")),))
    refuses("lost: the tokenizer gives no token for", annotated_rows, treebank, tokenizer)
