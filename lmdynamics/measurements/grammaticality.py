"""Does a model prefer the grammatical sentence of a minimal pair?

Pseudo-log-likelihood (Salazar et al. 2020) for masked models: each token in turn is masked and its log-probability
taken. Log-probability of the sentence for causal ones. A word of several tokens gives its own pieces away: beside it
stands the pseudo-log-likelihood that masks the later tokens of the same word, too (within-word left-to-right; Kauf and
Ivanova 2023, arXiv 2305.10588).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn

from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.corpora.words import takes_words
from lmdynamics.errors import UserError
from lmdynamics.measurements.measurement import Measurement
from lmdynamics.measurements.vocabulary import check_ids, unused_rows
from lmdynamics.measurements.word_batches import longest_input
from lmdynamics.training.logits import logits_at

TOKENS = 2048  # per batch
ROUNDING = 1e-6  # of a score: sums of float32 log-probabilities differ by that much in another order or batch


@dataclass(frozen=True)
class PairAccuracy(Measurement):
    """Scores of both sentences of each minimal pair. Rows: `paradigm`, `pair`, `good`, `bad`, `correct`, `tie`,
    `good_word_l2r`, `bad_word_l2r`, `flips`.

    `good` and `bad` are sums over the sentence's tokens, special ones left out, in nats: pseudo-log-likelihoods of a
    masked model, log-probabilities of a causal one. A pair is correct if the good sentence scores higher. Two scores
    that differ by rounding only are a `tie`, which counts as wrong: otherwise a constant scorer would be right about
    reordered words. A causal model whose tokenizer puts nothing in front cannot score a first token; the rest of the
    sentence then decides. `good_word_l2r` and `bad_word_l2r`: the same of a masked model, within-word left-to-right;
    `flips`: whether the pair is judged otherwise by these. Null for a causal model, which reads left to right anyway.
    """

    pairs: MinimalPairs

    version = 2  # 2: ties, and scores within words from left to right
    higher_is_better = True

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        if checkpoint.objective == "rts":
            raise UserError(
                f"{checkpoint.run_name} tells replaced tokens from others and gives no probability of a sentence; "
                "measure it by fine-tuning (measurements.probes)"
            )
        sentences = encode_pairs(checkpoint.tokenizer, self.pairs)
        model = checkpoint.model(device=device)
        _check_length(model, sentences)
        unused_rows(model, checkpoint)
        by_word = None
        if checkpoint.objective == "clm":
            scores = log_probabilities(model, sentences)
        elif checkpoint.tokenizer.mask_token_id is None:
            raise UserError(
                f"the tokenizer of {checkpoint.run_name} has no mask token, so no pseudo-log-likelihood can be taken; "
                "use the tokenizer the model was trained with"
            )
        else:
            scores, by_word = pseudo_log_likelihoods(model, sentences, checkpoint.tokenizer.mask_token_id)
        good, bad = scores[sentences.good], scores[sentences.bad]
        correct, tie = judge(good, bad)
        columns = {"good": good, "bad": bad, "correct": correct, "tie": tie}
        schema = {"good_word_l2r": pl.Float64, "bad_word_l2r": pl.Float64, "flips": pl.Boolean}
        if by_word is None:
            more = dict.fromkeys(schema, [None] * len(good))
        else:
            good, bad = by_word[sentences.good], by_word[sentences.bad]
            more = dict(zip(schema, (good, bad, judge(good, bad)[0] != correct), strict=True))
        return self.pairs.frame.select(
            "paradigm",
            "pair",
            *(pl.Series(name, values) for name, values in columns.items()),
            *(pl.Series(name, values, dtype=schema[name]) for name, values in more.items()),
        )


def judge(
    good: Float64[np.ndarray, " pairs"], bad: Float64[np.ndarray, " pairs"]
) -> tuple[Bool[np.ndarray, " pairs"], Bool[np.ndarray, " pairs"]]:
    """Which pairs are judged right, and which are ties: equal but for rounding, and so not right."""
    tie = np.abs(good - bad) <= ROUNDING * np.maximum(np.abs(good), np.abs(bad))
    return (good > bad) & ~tie, tie


@dataclass(frozen=True, eq=False)
class PairSentences:
    """The different sentences of some minimal pairs, as tokens; `good` and `bad` number them, one per pair."""

    name: str
    ids: tuple[np.ndarray, ...]  # each of shape [time]
    special: tuple[np.ndarray, ...]  # true at tokens that no one wrote: [CLS], [SEP]
    word: tuple[np.ndarray, ...]  # the number of the word that each token is a piece of; -1 where it is of none
    good: Int[np.ndarray, " pairs"]
    bad: Int[np.ndarray, " pairs"]


@lru_cache(maxsize=4)
def encode_pairs(tokenizer, pairs: MinimalPairs) -> PairSentences:
    """Tokenise each different sentence once: word by word if the pairs are split into words, otherwise as text.

    A tokenizer that would glue the words together gets the text in any case, which has a space between them.
    """
    texts = list(dict.fromkeys([*pairs.frame["good"], *pairs.frame["bad"]]))
    number = {text: i for i, text in enumerate(texts)}
    words = pairs.split_into_words and takes_words(tokenizer)
    encoded = tokenizer(
        [text.split(" ") for text in texts] if words else texts,
        is_split_into_words=words,
        return_special_tokens_mask=True,
        verbose=False,  # too long a sentence is refused below, with its name
    )
    return PairSentences(
        pairs.name,
        tuple(np.array(ids) for ids in encoded["input_ids"]),
        tuple(np.array(mask, dtype=bool) for mask in encoded["special_tokens_mask"]),
        tuple(_words(encoded, i, tokenizer.is_fast) for i in range(len(texts))),
        np.array([number[text] for text in pairs.frame["good"]]),
        np.array([number[text] for text in pairs.frame["bad"]]),
    )


def _words(encoded, i: int, fast: bool) -> Int[np.ndarray, " time"]:
    """The word of each token, as the tokenizer cuts words; one that does not say makes each token its own."""
    if not fast:
        return np.arange(len(encoded["input_ids"][i]))
    return np.array([-1 if word is None else word for word in encoded.word_ids(i)])


def pseudo_log_likelihoods(
    model: nn.Module, sentences: PairSentences, mask_id: int
) -> tuple[Float64[np.ndarray, " sentences"], Float64[np.ndarray, " sentences"]]:
    """Sum over a sentence's tokens of the log-probability of each when it alone is masked (nats); and when the later
    tokens of its word are masked with it. The two differ at tokens that more of their word follows."""
    own = [~special for special in sentences.special]
    followed = [np.append((word[1:] == word[:-1]) & (word[1:] >= 0), False) for word in sentences.word]
    last = [mine & ~more for mine, more in zip(own, followed, strict=True)]
    first = [mine & more for mine, more in zip(own, followed, strict=True)]
    shared = _masked_sums(model, sentences, mask_id, last)
    plain, by_word = (_masked_sums(model, sentences, mask_id, first, rest) for rest in (False, True))
    return shared + plain, shared + by_word


@torch.inference_mode()
def _masked_sums(
    model: nn.Module, sentences: PairSentences, mask_id: int, tokens: Sequence[np.ndarray], rest: bool = False
) -> Float64[np.ndarray, " sentences"]:
    """Sum of the log-probabilities of some `tokens`, each masked in turn, with the `rest` of its word or alone.

    Masked copies of all sentences of one length go together: no padding, and the head runs on masked positions only.
    """
    device = next(model.parameters()).device
    scores = np.zeros(len(sentences.ids))
    for chosen in _same_length(sentences.ids):
        ids = torch.from_numpy(np.stack([sentences.ids[i] for i in chosen]))
        word = torch.from_numpy(np.stack([sentences.word[i] for i in chosen]))
        row, position = torch.from_numpy(np.stack([tokens[i] for i in chosen])).nonzero(as_tuple=True)
        of_row = torch.zeros(len(chosen), dtype=torch.float64)
        if not len(row):
            continue
        for part in torch.arange(len(row)).split(max(1, TOKENS // ids.shape[1])):
            copies, at = ids[row[part]], torch.arange(len(part))
            selected = torch.zeros_like(copies, dtype=torch.bool)
            selected[at, position[part]] = True
            gold, hidden = copies[selected], selected
            if rest:
                hidden = (word[row[part]] == word[row[part], position[part]][:, None]) & (
                    torch.arange(ids.shape[1]) >= position[part][:, None]
                )
            logits = logits_at(model, copies.masked_fill(hidden, mask_id).to(device), None, selected.to(device))
            of_row.index_add_(0, row[part], log_probability(logits, gold.to(device)).cpu().double())
        scores[chosen] = of_row.numpy()
    return scores


@torch.inference_mode()
def log_probabilities(model: nn.Module, sentences: PairSentences) -> Float64[np.ndarray, " sentences"]:
    """Sum over a sentence's tokens of the log-probability of each given those before it (nats)."""
    device = next(model.parameters()).device
    scores = np.zeros(len(sentences.ids))
    for chosen in _same_length(sentences.ids):
        for part in np.array_split(chosen, -(-len(chosen) * len(sentences.ids[chosen[0]]) // TOKENS)):
            ids = torch.from_numpy(np.stack([sentences.ids[i] for i in part]))
            scored = torch.from_numpy(~np.stack([sentences.special[i] for i in part]))
            scored[:, 0] = False
            before = scored.roll(-1, dims=1)
            logits = logits_at(model, ids.to(device), None, before.to(device))
            of_token = log_probability(logits, ids[scored].to(device)).cpu().double()
            rows = scored.nonzero()[:, 0]
            scores[part] = torch.zeros(len(part), dtype=torch.float64).index_add_(0, rows, of_token).numpy()
    return scores


def log_probability(logits: Tensor, gold: Int[Tensor, " n"]) -> Tensor:
    """log softmax of `logits` [n vocab] at `gold`, in float32 (nats)."""
    logits = logits.float()
    return logits.gather(1, gold[:, None]).squeeze(1) - logits.logsumexp(1)


def _same_length(ids: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    lengths = np.array([len(row) for row in ids])
    return (np.flatnonzero(lengths == length) for length in np.unique(lengths))


def _check_length(model: nn.Module, sentences: PairSentences) -> None:
    limit = longest_input(model)
    longest = max((len(ids) for ids in sentences.ids), default=0)
    check_ids(model, max((int(ids.max(initial=0)) for ids in sentences.ids), default=0), sentences.name)
    if limit is not None and longest > limit:
        raise UserError(
            f"a sentence of {sentences.name} is {longest} tokens long, the model takes at most {limit}; "
            "leave out sentences that long"
        )
