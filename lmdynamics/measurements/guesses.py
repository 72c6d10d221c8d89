"""What a model guesses for a hidden word, each word of some sentences hidden in turn (cloze test, Taylor 1953)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.corpora.tokens import tokenize_words
from lmdynamics.corpora.treebanks import Treebank
from lmdynamics.errors import UserError
from lmdynamics.measurements.inputs import MAX_TOKENS, check_ids, check_length, unknown_words, unused_rows
from lmdynamics.measurements.trace import Measurement
from lmdynamics.training.objective import logits_at

SHORTEST, LONGEST = 5, 11  # words of an example
CANDIDATES = 300  # sentences of a treebank that may become examples


@dataclass(frozen=True)
class Guesses(Measurement):
    """The best guesses for each word of some sentences. Rows: `sentence`, `word` (0-based), `pieces`, `rank` (1: the
    best), `guess`, `probability`, `right`, `right_rank`, `right_probability`.

    A masked model reads the sentence with all tokens of the word masked. A causal model reads only what precedes the
    word; a word that nothing precedes has no rows. The first of the word's `pieces` (its tokens) is guessed: `right`
    marks it among the guesses, `right_rank` and `right_probability` are those of the piece itself. A `guess` is a token
    as the tokenizer writes it; probabilities are over all output rows of the model.
    """

    sentences: tuple[tuple[str, ...], ...]
    best: int = 5  # guesses for each hidden word

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        tokenizer, causal = checkpoint.tokenizer, checkpoint.objective == "clm"
        if checkpoint.objective == "rts":
            raise UserError(f"{checkpoint.run_name} classifies tokens as replaced or not; it guesses no words")
        if not causal and tokenizer.mask_token_id is None:
            raise UserError(
                f"the tokenizer of {checkpoint.run_name} has no mask token, so no word can be hidden; "
                "use the tokenizer the model was trained with"
            )
        if not self.sentences or not all(self.sentences):
            raise UserError("there is no sentence to hide words of; give one or more, each a tuple of words")
        token_ids, word_ids = tokenize_words(tokenizer, self.sentences, "the sentences")
        model = checkpoint.model(device=device)
        check_ids(model, max(map(max, token_ids)), "a sentence")
        check_length(model, max(map(len, token_ids)), "a sentence", "shorten it")
        unused_rows(model, checkpoint)
        frames = []
        for sentence, (ids, of_word) in enumerate(zip(token_ids, word_ids, strict=True)):
            starts = {word: of_word.index(word) for word in range(len(self.sentences[sentence]))}
            starts = {word: start for word, start in starts.items() if start > 0 or not causal}
            if not starts:
                continue
            row, word_of, first = torch.tensor(ids), torch.tensor(of_word), torch.tensor(list(starts.values()))
            masked = None if causal else word_of == torch.tensor(list(starts))[:, None]
            probability = hidden_word_probabilities(model, row, first, masked, tokenizer.mask_token_id, device)
            frame = best_guesses(tokenizer, probability, row[first], self.best)
            words = pl.DataFrame({"word": list(starts), "pieces": [of_word.count(word) for word in starts]})
            frame = pl.concat([words[frame["hidden"]], frame.drop("hidden")], how="horizontal")
            frames.append(frame.select(pl.lit(sentence, pl.Int64).alias("sentence"), pl.all()))
        if not frames:
            raise UserError(f"{checkpoint.run_name} guesses a word from those before it; give sentences of two words")
        return pl.concat(frames)


@torch.inference_mode()
def hidden_word_probabilities(
    model,
    ids: Int[Tensor, " time"],
    first: Int[Tensor, " words"],
    masked: Bool[Tensor, "words time"] | None,
    mask_id: int | None,
    device: str,
) -> Float[Tensor, "words vocab"]:
    """The model's distribution at the `first` token of each hidden word of one sentence.

    `masked`: the tokens of each hidden word; None for a causal model, which reads the sentence once.
    """
    if masked is None:
        selected = torch.zeros(1, len(ids), dtype=torch.bool)
        selected[0, first - 1] = True
        return logits_at(model, ids[None].to(device), None, selected.to(device)).float().softmax(-1).cpu()
    parts, position = [], torch.arange(len(ids))
    for part in torch.arange(len(first)).split(max(1, MAX_TOKENS // len(ids))):
        inputs = ids.expand(len(part), -1).masked_fill(masked[part], mask_id)
        logits = logits_at(model, inputs.to(device), None, (position == first[part, None]).to(device))
        parts.append(logits.float().softmax(-1).cpu())
    return torch.cat(parts)


def best_guesses(
    tokenizer, probability: Float[Tensor, "words vocab"], right: Int[Tensor, " words"], best: int
) -> pl.DataFrame:
    """The most probable tokens of each row, and the rank and probability of the `right` token.

    Rows: hidden (0-based row), rank, guess, probability, right, right_rank, right_probability.
    """
    top = probability.topk(min(best, probability.shape[1]))
    of_right = probability.gather(1, right[:, None])
    hidden, rank = (axis.ravel() for axis in torch.meshgrid(*map(torch.arange, top.indices.shape), indexing="ij"))
    names = tokenizer.convert_ids_to_tokens(top.indices.ravel().tolist())
    return pl.DataFrame(
        {
            "hidden": hidden.numpy(),
            "rank": rank.numpy() + 1,
            "guess": [name or "" for name in names],  # some models have more output rows than there are tokens
            "probability": top.values.ravel().double().numpy(),
            "right": (top.indices == right[:, None]).ravel().numpy(),
            "right_rank": 1 + (probability > of_right).sum(1)[hidden].numpy(),
            "right_probability": of_right[hidden, 0].double().numpy(),
        }
    )


EXAMPLE = ("the", "dogs", "that", "the", "farmer", "sees", "often", "sleep")  # if there is no other sentence


def example_sentences(
    treebank: Treebank | None,
    tokenizer,
    pairs: MinimalPairs | None = None,
    *,
    own: str = "",
    hide: int = -1,
    count: int = 12,
) -> dict[tuple[str, ...], int]:
    """Short sentences to hide words of, each with the word (0-based) to hide first: its main verb.

    With minimal `pairs`, half of them are the right sentences of pairs, from each paradigm in turn (the last first),
    with the word that is wrong in the other sentence; those without "no" come first, because they read more easily. The
    others are of the treebank: first those without names and with words that the tokenizer has whole. `own`: a sentence
    of the reader's own, to be the first, with its last word to hide. Without any of these: `EXAMPLE`. `hide`: another
    word of the first sentence.

    Raises UserError if the first sentence has no word `hide`, or there is no sentence.
    """
    examples = {}
    if words := tuple(own.split()):
        examples[words] = last_word(words)
    if pairs is not None:
        parts = pairs.frame.select("paradigm", "good", "bad").partition_by("paradigm")
        by_paradigm = []
        for part in parts:
            texts = [(good.split(), bad.split()) for _, good, bad in part.rows()]
            fitting = [(good, bad) for good, bad in texts if len(good) == len(bad) and _fits(len(good))]
            by_paradigm.append(sorted(fitting, key=lambda pair: pair[0].count("no")))
        in_turn = chain.from_iterable(zip(*reversed(by_paradigm), strict=False))
        for good, bad in islice(in_turn, count // 2):
            examples[tuple(good)] = next((i for i, word in enumerate(good) if word != bad[i]), 0)
    every = treebank or ()
    trees = [tree for tree in every if _fits(len(tree)) and -1 in tree.heads][:CANDIDATES] or list(every)[:count]
    for tree in sorted(trees, key=lambda tree: (not _is_whole(tokenizer, tree.words), not _without_names(tree.words))):
        if len(examples) < count:
            examples.setdefault(tree.words, tree.heads.index(-1) if -1 in tree.heads else 0)
    if treebank is None:
        examples = examples or {EXAMPLE: last_word(EXAMPLE)}
    if not examples:
        raise UserError(f"{treebank.name} has no sentence to hide words of; give a sentence of your own")
    first = next(iter(examples))
    if hide >= len(first):
        raise UserError(f"“{' '.join(first)}” has words 0 to {len(first) - 1}, so hide cannot be {hide}")
    return (
        examples if hide < 0 else {first: hide, **{words: each for words, each in examples.items() if words != first}}
    )


def last_word(words: Sequence[str]) -> int:
    """Index of the last word that is no punctuation; of a single word, 0."""
    return max((i for i, word in enumerate(words) if word[0].isalnum()), default=0)


def _fits(words: int) -> bool:
    return SHORTEST <= words <= LONGEST


def _without_names(words: Sequence[str]) -> bool:
    return " ".join(words[1:]).islower()


def _is_whole(tokenizer, words: Sequence[str]) -> bool:
    """Whether the tokenizer has each word as one known token."""
    try:
        _, (of_word,) = tokenize_words(tokenizer, [words], "the sentence")
    except UserError:  # a token of several words
        return False
    return len(of_word) - of_word.count(-1) == len(words) and not unknown_words(tokenizer, words)
