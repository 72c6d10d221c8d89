"""The built-in language: English words, gold dependency trees; predicting a word often needs syntax.

Nouns and verbs inflect for number and agree. Words prefer others of certain latent semantic classes along dependency
arcs. Recursion and attractors separate subject and verb; auxiliaries remove agreement. Every word has a gold head and
a Universal Dependencies relation.
"""

from array import array
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from random import Random
from typing import Literal

import numpy as np
import polars as pl

from lmdynamics.corpora.lexicon import AUXILIARIES, DETERMINERS, SIZES, SPECIAL_TOKENS, Words, load_words
from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.corpora.tokens import SPECIAL, TokenRows
from lmdynamics.corpora.treebanks import Sentence, Treebank
from lmdynamics.errors import UserError
from lmdynamics.jobs import available_cores, map_in_processes

RELATIONS = ("root", "nsubj", "obj", "det", "amod", "case", "nmod", "acl", "mark", "advmod", "aux", "punct")
_ROOT, _NSUBJ, _OBJ, _DET, _AMOD, _CASE, _NMOD, _ACL, _MARK, _ADVMOD, _AUX, _PUNCT = range(len(RELATIONS))
CLS, SEP = 2, 3

_MAX_WORDS = 30  # per sentence
VERSION = 2  # raise when the sentences drawn would change: runs and stored corpora belong to one version
PART = 2**18  # sentences per stream of random numbers: several processes draw parts at the same time


class _PartOfSpeech:
    """One part of speech: lemmas of each semantic class, drawn by a Zipf law over their ranks."""

    def __init__(self, lemmas: list[int], classes: list[int], n_classes: int, preference: float):
        self.preference = preference
        self.any_class = self._zipf(lemmas)
        self.by_class = [
            self._zipf([x for x, c in zip(lemmas, classes, strict=True) if c == k]) for k in range(n_classes)
        ]

    @staticmethod
    def _zipf(lemmas: list[int]) -> tuple[list[int], list[float], float]:
        cumulative = list(accumulate(1 / rank for rank in range(1, len(lemmas) + 1)))
        return lemmas, cumulative, cumulative[-1]

    def draw(self, semantic_class: int, random) -> int:
        """A lemma of `semantic_class` with probability `preference`, of any class otherwise."""
        lemmas, cumulative, total = self.by_class[semantic_class] if random() < self.preference else self.any_class
        return lemmas[bisect(cumulative, random() * total)]


@dataclass(frozen=True)
class Grammar:
    """The built-in language. `small`: about 580 word forms, 8 classes; `large`: a long tail, 40 classes.

    The lexicon (`corpora.lexicon`) depends on `size` only; the sentences depend on the seeds passed to the methods.
    """

    size: Literal["small", "large"] = "small"
    preference: float = 0.85

    def __post_init__(self):
        if self.size not in SIZES:
            raise UserError(f"there is no grammar of size {self.size!r}; choose one of {', '.join(SIZES)}")

    @property
    def name(self) -> str:
        """Its name in file names and titles: `grammar-small`."""
        return f"grammar-{self.size}"

    @cached_property
    def _lexicon(self) -> "_Lexicon":
        return _Lexicon(load_words(self.size), self.preference)

    @property
    def forms(self) -> list[str]:
        """Every word form; a form's token id is its index."""
        return self._lexicon.forms

    def trees(self, n: int, seed: int) -> Iterator[tuple[list[int], list[int], list[int]]]:
        """`n` sentences as (form ids, heads, relation ids), words in order; the root's head is -1."""
        for part in _parts(n):
            yield from self._draw(seed, *part)

    def _draw(self, seed: int, part: int, n: int) -> Iterator[tuple[list[int], list[int], list[int]]]:
        random = Random(f"{self.size} trees {seed}" + f" {part}" * (part > 0)).random
        for _ in range(n):
            yield self._lexicon.sentence(random)

    def treebank(self, n: int, seed: int) -> Treebank:
        """`n` sentences with their gold trees."""
        forms = self.forms
        sentences = (
            Sentence(tuple(forms[w] for w in words), tuple(heads), tuple(RELATIONS[r] for r in relations))
            for words, heads, relations in self.trees(n, seed)
        )
        return Treebank(self.name, tuple(sentences))

    def blocks(self, n: int, seed: int) -> TokenRows:
        """`n` sentences as token ids, one row each: [CLS] words [SEP]."""
        return self.blocks_with_heads(n, seed)[0]

    def blocks_with_heads(self, n: int, seed: int) -> tuple[TokenRows, TokenRows]:
        """The same rows, and for each token the index of its head word in its sentence; -1 where it has none."""
        parts = _parts(n)
        drawn = map_in_processes(partial(_rows, self, seed), parts, min(available_cores(), len(parts)))
        ids, gold, lengths = (np.concatenate(arrays) for arrays in zip(*drawn, strict=True))
        ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return TokenRows(ids, ends), TokenRows(gold, ends)

    def pairs(self, n: int, seed: int) -> MinimalPairs:
        """`n` agreement pairs per paradigm: the verb agrees with its subject in `good`, not in `bad`.

        `no_attractor`: subject and verb are adjacent. `pp_attractor`, `rc_attractor`: a prepositional phrase or an
        object relative clause separates them, and its noun has the other number. Determiners never reveal the number.
        """
        random = Random(f"{self.size} pairs {seed}").random
        rows = []
        for paradigm in ("no_attractor", "pp_attractor", "rc_attractor"):
            for _ in range(n):
                good, verb, other = self._lexicon.agreement(paradigm, random)
                bad = [*good[:verb], other, *good[verb + 1 :]]
                rows.append(
                    (f"agreement_{paradigm}", len(rows), *(" ".join(self.forms[w] for w in s) for s in (good, bad)))
                )
        frame = pl.DataFrame(rows, schema=["paradigm", "pair", "good", "bad"], orient="row")
        return MinimalPairs(self.name, frame, split_into_words=True)

    def tokenizer(self):
        """A word-level Hugging Face fast tokenizer: one token a form, [CLS] and [SEP] around a sentence."""
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        inner = Tokenizer(models.WordLevel({form: i for i, form in enumerate(self.forms)}, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
        return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=_MAX_WORDS + 2, **SPECIAL)


def _parts(n: int) -> list[tuple[int, int]]:
    """`n` sentences as (number of the part, sentences in it), each part with random numbers of its own."""
    return [(start // PART, min(PART, n - start)) for start in range(0, n, PART)] or [(0, 0)]


def _rows(grammar: Grammar, seed: int, part: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids and heads of a part, concatenated, and the length of each sentence."""
    ids, gold, lengths = array("i"), array("i"), array("i")
    for words, heads, _ in grammar._draw(seed, *part):
        ids.extend((CLS, *words, SEP))
        gold.extend((-1, *heads, -1))
        lengths.append(len(words) + 2)
    return tuple(np.array(values, np.int32) for values in (ids, gold, lengths))


class _Lexicon:
    """Word forms, their preferences, and the productions of sentences."""

    def __init__(self, words: Words, preference: float):
        self.forms = [*SPECIAL_TOKENS, ".", "that", *AUXILIARIES, *(d for kind in DETERMINERS for d in kind)]
        self.stop, self.that = self.forms.index("."), self.forms.index("that")
        self.auxiliaries = [self.forms.index(word) for word in AUXILIARIES]
        self.neutral, *by_number = ([self.forms.index(d) for d in kind] for kind in DETERMINERS)
        self.determiners = [self.neutral + kind for kind in by_number]  # [singular, plural]
        self.n_classes = n_classes = max(words.noun_classes) + 1

        def ids(lemmas: list[tuple[str, ...]]) -> list[int]:
            """A lemma is the id of its first form; the others follow it."""
            first = list(accumulate(map(len, lemmas), initial=len(self.forms)))[:-1]
            self.forms += [form for forms in lemmas for form in forms]
            return first

        nouns, verbs, adjectives, adverbs, prepositions = map(
            ids, (words.nouns, words.verbs, words.adjectives, words.adverbs, words.prepositions)
        )
        self.noun_class = dict(zip(nouns, words.noun_classes, strict=True))
        self.verb_class = dict(zip(verbs, words.verb_classes, strict=True))
        self.nouns = _PartOfSpeech(nouns, words.noun_classes, n_classes, preference)
        self.verbs = _PartOfSpeech(verbs, words.verb_classes, n_classes, preference)  # by the subject they prefer
        self.adjectives = _PartOfSpeech(adjectives, words.adjective_classes, n_classes, preference)
        self.adverbs = _PartOfSpeech(adverbs, words.adverb_classes, n_classes, preference)
        self.prepositions = _PartOfSpeech._zipf(prepositions)
        self.object_class = dict(zip(verbs, words.object_classes, strict=True))
        self.complement_class = dict(zip(prepositions, words.complement_classes, strict=True))
        self.transitive = dict(zip(verbs, words.transitive, strict=True))
        with_object = [verb for verb in verbs if self.transitive[verb]]
        classes = [self.object_class[verb] for verb in with_object]
        self.by_object = _PartOfSpeech(with_object, classes, n_classes, preference)

    def sentence(self, random) -> tuple[list[int], list[int], list[int]]:
        """One sentence of 4 to 30 words: form ids, heads, relation ids."""
        while True:
            words: list[int] = []
            heads: list[int] = []
            relations: list[int] = []
            plural = random() < 0.5
            noun = self.nouns.draw(int(random() * self.n_classes), random)
            subject = self._noun_phrase(noun, plural, words, heads, relations, random, 0)
            verb = self._verb_phrase(noun, plural, subject, words, heads, relations, random, 0)
            heads[verb], relations[verb] = -1, _ROOT
            words.append(self.stop)
            heads.append(verb)
            relations.append(_PUNCT)
            if 4 <= len(words) <= _MAX_WORDS:
                return words, heads, relations

    def _noun_phrase(self, noun, plural, words, heads, relations, random, depth) -> int:
        """Determiner, adjectives, noun and its modifiers; returns the noun's index."""
        semantic_class = self.noun_class[noun]
        start = len(words)
        choices = self.determiners[plural]
        words.append(choices[int(random() * len(choices))])
        relations.append(_DET)
        while random() < 0.35:
            adjective = self.adjectives.draw(semantic_class, random)
            if adjective not in words[start:]:
                words.append(adjective)
                relations.append(_AMOD)
        noun_index = len(words)
        heads += [noun_index] * (noun_index - start)
        words.append(noun + plural)
        heads.append(-1)
        relations.append(_NMOD)
        if depth < 3:
            choice = random() * (1 + 0.6 * depth)  # the deeper, the rarer
            if choice < 0.25:
                self._prepositional_phrase(noun_index, words, heads, relations, random, depth + 1)
            elif choice < 0.42:
                self._relative_clause(noun_index, noun, plural, words, heads, relations, random, depth + 1)
        return noun_index

    def _prepositional_phrase(self, head, words, heads, relations, random, depth) -> None:
        lemmas, cumulative, total = self.prepositions
        preposition = lemmas[bisect(cumulative, random() * total)]
        case = len(words)
        words.append(preposition)
        heads.append(-1)
        relations.append(_CASE)
        noun = self.nouns.draw(self.complement_class[preposition], random)
        inner = self._noun_phrase(noun, random() < 0.5, words, heads, relations, random, depth)
        heads[case] = inner
        heads[inner], relations[inner] = head, _NMOD

    def _relative_clause(self, head, noun, plural, words, heads, relations, random, depth) -> None:
        mark = len(words)
        words.append(self.that)
        heads.append(-1)
        relations.append(_MARK)
        if random() < 0.5:  # subject relative clause
            verb = self._verb_phrase(noun, plural, None, words, heads, relations, random, depth)
        else:  # object relative clause
            chosen, other = self._verb_and_subject(noun, random)
            other_plural = random() < 0.5
            subject = self._noun_phrase(other, other_plural, words, heads, relations, random, depth)
            verb = self._verb_phrase(other, other_plural, subject, words, heads, relations, random, depth, verb=chosen)
        heads[mark] = verb
        heads[verb], relations[verb] = head, _ACL

    def _verb_and_subject(self, noun, random) -> tuple[int, int]:
        """The verb and the subject of a clause whose object is `noun`."""
        verb = self.by_object.draw(self.noun_class[noun], random)
        return verb, self.nouns.draw(self.verb_class[verb], random)

    def _verb_phrase(self, noun, plural, subject, words, heads, relations, random, depth, verb=None) -> int:
        """Auxiliary, adverb, verb, object; returns the verb's index. A given `verb` has its object before it."""
        given = verb is not None
        if not given:
            verb = self.verbs.draw(self.noun_class[noun], random)
        start = len(words)
        auxiliary = random() < 0.25
        if auxiliary:
            words.append(self.auxiliaries[int(random() * len(self.auxiliaries))])
            relations.append(_AUX)
        if random() < 0.2:
            words.append(self.adverbs.draw(self.verb_class[verb], random))
            relations.append(_ADVMOD)
        verb_index = len(words)
        heads += [verb_index] * (verb_index - start)
        words.append(verb + (1 if auxiliary else plural))  # after an auxiliary: always the plural form
        heads.append(-1)
        relations.append(_ROOT)
        if subject is not None:
            heads[subject], relations[subject] = verb_index, _NSUBJ
        if not given and self.transitive[verb]:
            noun = self.nouns.draw(self.object_class[verb], random)
            inner = self._noun_phrase(noun, random() < 0.5, words, heads, relations, random, depth + 1)
            heads[inner], relations[inner] = verb_index, _OBJ
        return verb_index

    def agreement(self, paradigm: str, random) -> tuple[list[int], int, int]:
        """A sentence, the index of its main verb, and the verb form that does not agree."""
        plural = int(random() * 2)
        noun = self.nouns.draw(int(random() * self.n_classes), random)

        def phrase(noun: int, plural: int) -> list[int]:
            return [self.neutral[int(random() * len(self.neutral))], noun + plural]

        words = phrase(noun, plural)
        if paradigm == "pp_attractor":
            lemmas, cumulative, total = self.prepositions
            preposition = lemmas[bisect(cumulative, random() * total)]
            complement = self.nouns.draw(self.complement_class[preposition], random)
            words += [preposition, *phrase(complement, 1 - plural)]
        elif paradigm == "rc_attractor":
            inner, other = self._verb_and_subject(noun, random)
            words += [self.that, *phrase(other, 1 - plural), inner + 1 - plural]
        verb = self.verbs.draw(self.noun_class[noun], random)
        verb_index = len(words)
        words.append(verb + plural)
        if self.transitive[verb]:
            words += phrase(self.nouns.draw(self.object_class[verb], random), int(random() * 2))
        return [*words, self.stop], verb_index, verb + 1 - plural
