"""Probability of text under a model: its loss on held-out text, and scores of the sentences of minimal pairs.

Sentences: pseudo-log-likelihood (Salazar et al. 2020) for masked models, the sum of each token's log-probability when
it is masked; the log-probability of the sentence for causal models. The pieces of a word predict each other, so there
is also the pseudo-log-likelihood that masks the later tokens of the same word (within-word left-to-right; Kauf and
Ivanova 2023, arXiv 2305.10588).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn

from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.corpora.tokens import TokenRows, takes_words
from lmdynamics.errors import UserError
from lmdynamics.measurements.inputs import check_ids, check_length, unused_rows
from lmdynamics.measurements.trace import Measurement
from lmdynamics.training.batches import padded_batches, select_targets
from lmdynamics.training.masking import Masker
from lmdynamics.training.objective import Movable, logits_at

MAX_TOKENS = 2048  # per batch
ROUNDING = 1e-6  # relative; sums of float32 log-probabilities depend this much on order and batch


@dataclass(frozen=True)
class PairAccuracy(Measurement):
    """Scores of both sentences of each minimal pair. Rows: `paradigm`, `pair`, `good`, `bad`, `correct`, `tie`,
    `good_word_l2r`, `bad_word_l2r`, `flips`.

    `good` and `bad` are sums over the sentence's tokens, special ones left out, in nats: pseudo-log-likelihoods of a
    masked model, log-probabilities of a causal one. A pair is correct if the good sentence scores higher. Two scores
    that differ by rounding only are a `tie`, which counts as wrong: otherwise a constant scorer would be right about
    reordered words. A causal model whose tokenizer adds no first special token does not score the first
    token of a sentence. `good_word_l2r` and `bad_word_l2r`: the scores of a masked model, within-word left-to-right;
    `flips`: whether they change the judgement of the pair. Null for a causal model.
    """

    pairs: MinimalPairs

    version = 2  # 2: ties, and scores within words from left to right
    higher_is_better = True

    def headline(self, rows: pl.DataFrame) -> float | None:
        return rows["correct"].mean()

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        if checkpoint.objective == "rts":
            raise UserError(
                f"{checkpoint.run_name} classifies tokens as replaced or not and has no probability of a sentence; "
                "measure it by fine-tuning (measurements.probes)"
            )
        sentences = encode_pairs(checkpoint.tokenizer, self.pairs)
        model = checkpoint.model(device=device)
        check_ids(model, max((int(ids.max(initial=0)) for ids in sentences.ids), default=0), sentences.name)
        check_length(model, max(map(len, sentences.ids), default=0), f"a sentence of {sentences.name}")
        unused_rows(model, checkpoint)
        word_l2r = None
        if checkpoint.objective == "clm":
            scores = log_probabilities(model, sentences)
        elif checkpoint.tokenizer.mask_token_id is None:
            raise UserError(
                f"the tokenizer of {checkpoint.run_name} has no mask token, so it has no pseudo-log-likelihood; "
                "use the tokenizer the model was trained with"
            )
        else:
            scores, word_l2r = pseudo_log_likelihoods(model, sentences, checkpoint.tokenizer.mask_token_id)
        good, bad = scores[sentences.good], scores[sentences.bad]
        correct, tie = judge(good, bad)
        frame = self.pairs.frame.select("paradigm", "pair").with_columns(good=good, bad=bad, correct=correct, tie=tie)
        if word_l2r is None:
            schema = {"good_word_l2r": pl.Float64, "bad_word_l2r": pl.Float64, "flips": pl.Boolean}
            return frame.with_columns(pl.lit(None, kind).alias(name) for name, kind in schema.items())
        good, bad = word_l2r[sentences.good], word_l2r[sentences.bad]
        flips = judge(good, bad)[0] != correct
        return frame.with_columns(good_word_l2r=good, bad_word_l2r=bad, flips=flips)


def judge(
    good: Float64[np.ndarray, " pairs"], bad: Float64[np.ndarray, " pairs"]
) -> tuple[Bool[np.ndarray, " pairs"], Bool[np.ndarray, " pairs"]]:
    """Masks of the correct pairs, and of ties: pairs that differ by rounding only, which are not correct."""
    tie = np.abs(good - bad) <= ROUNDING * np.maximum(np.abs(good), np.abs(bad))
    return (good > bad) & ~tie, tie


@dataclass(frozen=True, eq=False)
class PairSentences:
    """The distinct sentences of some minimal pairs, as tokens; `good` and `bad` are their indices, one per pair."""

    name: str
    ids: tuple[np.ndarray, ...]  # each of shape [time]
    special: tuple[np.ndarray, ...]  # true at special tokens: [CLS], [SEP]
    word: tuple[np.ndarray, ...]  # the index of each token's word; -1 for none
    good: Int[np.ndarray, " pairs"]
    bad: Int[np.ndarray, " pairs"]


@lru_cache(maxsize=4)
def encode_pairs(tokenizer, pairs: MinimalPairs) -> PairSentences:
    """Tokenise each distinct sentence once: word by word if the pairs are split into words, otherwise as text.

    A tokenizer that would join the words always gets the text (see `takes_words`).
    """
    texts = list(dict.fromkeys([*pairs.frame["good"], *pairs.frame["bad"]]))
    index = {text: i for i, text in enumerate(texts)}
    split = pairs.split_into_words and takes_words(tokenizer)
    encoded = tokenizer(
        [text.split(" ") for text in texts] if split else texts,
        is_split_into_words=split,
        return_special_tokens_mask=True,
        verbose=False,  # sentences that are too long raise an error later
    )
    return PairSentences(
        pairs.name,
        tuple(np.array(ids) for ids in encoded["input_ids"]),
        tuple(np.array(mask, dtype=bool) for mask in encoded["special_tokens_mask"]),
        tuple(_word_ids(encoded, i, tokenizer.is_fast) for i in range(len(texts))),
        np.array([index[text] for text in pairs.frame["good"]]),
        np.array([index[text] for text in pairs.frame["bad"]]),
    )


def _word_ids(encoded, i: int, fast: bool) -> Int[np.ndarray, " time"]:
    """The word of each token, if the tokenizer reports it; otherwise each token is a word."""
    if not fast:
        return np.arange(len(encoded["input_ids"][i]))
    return np.array([-1 if word is None else word for word in encoded.word_ids(i)])


def pseudo_log_likelihoods(
    model: nn.Module, sentences: PairSentences, mask_id: int
) -> tuple[Float64[np.ndarray, " sentences"], Float64[np.ndarray, " sentences"]]:
    """Sum over a sentence's tokens of the log-probability of each when only it is masked (nats); and when the later
    tokens of its word are also masked. The two are equal for the last token of a word."""
    ordinary = [~special for special in sentences.special]
    continued = [np.append((word[1:] == word[:-1]) & (word[1:] >= 0), False) for word in sentences.word]
    last = [token & ~within_word for token, within_word in zip(ordinary, continued, strict=True)]
    first = [token & within_word for token, within_word in zip(ordinary, continued, strict=True)]
    shared = _masked_sums(model, sentences, mask_id, last)
    alone, word_l2r = (_masked_sums(model, sentences, mask_id, first, mask_rest) for mask_rest in (False, True))
    return shared + alone, shared + word_l2r


@torch.inference_mode()
def _masked_sums(
    model: nn.Module, sentences: PairSentences, mask_id: int, tokens: Sequence[np.ndarray], mask_rest: bool = False
) -> Float64[np.ndarray, " sentences"]:
    """Sum of the log-probabilities of some `tokens`, each masked alone or with its word's later tokens (`mask_rest`).

    Masked copies of all sentences of one length share batches without padding; the head runs on masked positions only.
    """
    device = next(model.parameters()).device
    scores = np.zeros(len(sentences.ids))
    for chosen in _same_length(sentences.ids):
        ids = torch.from_numpy(np.stack([sentences.ids[i] for i in chosen]))
        word = torch.from_numpy(np.stack([sentences.word[i] for i in chosen]))
        row, position = torch.from_numpy(np.stack([tokens[i] for i in chosen])).nonzero(as_tuple=True)
        sums = torch.zeros(len(chosen), dtype=torch.float64)
        if not len(row):
            continue
        for part in torch.arange(len(row)).split(max(1, MAX_TOKENS // ids.shape[1])):
            copies, index = ids[row[part]], torch.arange(len(part))
            selected = torch.zeros_like(copies, dtype=torch.bool)
            selected[index, position[part]] = True
            gold, masked = copies[selected], selected
            if mask_rest:
                masked = (word[row[part]] == word[row[part], position[part]][:, None]) & (
                    torch.arange(ids.shape[1]) >= position[part][:, None]
                )
            logits = logits_at(model, copies.masked_fill(masked, mask_id).to(device), None, selected.to(device))
            sums.index_add_(0, row[part], log_probability(logits, gold.to(device)).cpu().double())
        scores[chosen] = sums.numpy()
    return scores


@torch.inference_mode()
def log_probabilities(model: nn.Module, sentences: PairSentences) -> Float64[np.ndarray, " sentences"]:
    """Sum over a sentence's tokens of the log-probability of each given the tokens before it (nats)."""
    device = next(model.parameters()).device
    scores = np.zeros(len(sentences.ids))
    for chosen in _same_length(sentences.ids):
        for part in np.array_split(chosen, -(-len(chosen) * len(sentences.ids[chosen[0]]) // MAX_TOKENS)):
            ids = torch.from_numpy(np.stack([sentences.ids[i] for i in part]))
            scored = torch.from_numpy(~np.stack([sentences.special[i] for i in part]))
            scored[:, 0] = False
            predicting = scored.roll(-1, dims=1)
            logits = logits_at(model, ids.to(device), None, predicting.to(device))
            token_scores = log_probability(logits, ids[scored].to(device)).cpu().double()
            rows = scored.nonzero()[:, 0]
            scores[part] = torch.zeros(len(part), dtype=torch.float64).index_add_(0, rows, token_scores).numpy()
    return scores


def log_probability(logits: Tensor, gold: Int[Tensor, " n"]) -> Tensor:
    """log softmax of `logits` [n vocab] at `gold`, in float32 (nats)."""
    logits = logits.float()
    return logits.gather(1, gold[:, None]).squeeze(1) - logits.logsumexp(1)


def _same_length(ids: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    lengths = np.array([len(row) for row in ids])
    return (np.flatnonzero(lengths == length) for length in np.unique(lengths))


BATCH_ROWS = 64  # the masks depend on it
MASKING_RATE = 0.15  # for every masked model, independent of its training rate (Ankner et al. 2023)


@dataclass(frozen=True)
class HeldOutLoss(Measurement):
    """Mean loss over the predicted tokens. One row: `loss` (nats per token), `tokens` (count), `stderr`,
    `unused_rows`.

    A masked model predicts the tokens that `seed` selects, the same at every checkpoint, at 15 % independent of
    the run's own rate (Ankner et al. 2023); a causal one, every next token; a discriminator (rts), for every token,
    whether it was replaced, at that rate. Losses of different objectives are not comparable. `stderr` treats rows of
    text as independent (ratio estimator), and is null if only one row has tokens to predict. `unused_rows`: the model's
    output rows without a token of its tokenizer (count); the softmax includes them, so an untrained model's loss is the
    logarithm of the number of all rows.
    """

    blocks: TokenRows
    masking_rate: float = MASKING_RATE
    seed: int = 0

    version = 3  # 3: `unused_rows`
    unit = "nats per token"
    higher_is_better = False

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        model = checkpoint.model(device=device)
        losses = losses_by_token(checkpoint, model, self.blocks, self.masking_rate, self.seed, device)
        row, rows = losses["row"].to_numpy(), len(self.blocks)
        total = np.bincount(row, losses["loss"].to_numpy(), minlength=rows)  # summed in float64
        tokens = np.bincount(row, minlength=rows)
        loss, stderr = total.sum() / tokens.sum(), None
        if (tokens > 0).sum() > 1:
            stderr = float(np.sqrt(((total - loss * tokens) ** 2).sum() * rows / (rows - 1)) / tokens.sum())
        numbers = {"loss": [loss], "tokens": [int(tokens.sum())], "stderr": [stderr]}
        numbers["unused_rows"] = [unused_rows(model, checkpoint)]
        return pl.DataFrame(numbers, schema_overrides={"stderr": pl.Float64})


@dataclass(frozen=True)
class TokenLosses(Measurement):
    """The loss of every predicted token. Rows: `row`, `position` (of the predicted token in its row), `token`, `loss`.

    `loss` is in nats; its mean is the loss of `HeldOutLoss`, which defines the predicted tokens. `token` is the id in
    the original text, also if a token is masked or replaced. A causal model predicts a token from the position before
    it. The same tokens in the same order at every checkpoint.
    """

    blocks: TokenRows
    masking_rate: float = MASKING_RATE
    seed: int = 0

    version = 1
    unit = "nats"
    higher_is_better = False

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        model = checkpoint.model(device=device)
        return losses_by_token(checkpoint, model, self.blocks, self.masking_rate, self.seed, device)


@dataclass(frozen=True)
class Predictions(Movable):
    """A batch with its targets: `gold` has the targets at the `selected` positions, in order."""

    ids: Int[Tensor, "batch time"]
    attention_mask: Bool[Tensor, "batch time"] | None
    selected: Bool[Tensor, "batch time"]
    gold: Int[Tensor, " selected"]


def losses_by_token(
    checkpoint, model: nn.Module, blocks: TokenRows, masking_rate: float, seed: int, device: str
) -> pl.DataFrame:
    """The rows of `TokenLosses`."""

    @torch.inference_mode()
    def losses(batch: Predictions, first_row: int) -> dict[str, np.ndarray]:
        batch = batch.to(device)
        logits = logits_at(model, batch.ids, batch.attention_mask, batch.selected)
        return {"loss": -log_probability(logits, batch.gold).cpu().numpy()}

    return token_table(checkpoint, model, blocks, masking_rate, seed, losses)


def token_table(
    checkpoint,
    model: nn.Module,
    blocks: TokenRows,
    masking_rate: float,
    seed: int,
    columns: Callable[[Predictions, int], Mapping[str, np.ndarray | pl.Series]],
) -> pl.DataFrame:
    """All predicted tokens, with the `columns` computed from each batch and the number of its first row.

    Raises UserError if no token is predicted, and where `check_rows` does.
    """
    check_rows(model, blocks)
    unused_rows(model, checkpoint)
    frames, first_row = [], 0
    for batch in prediction_batches(checkpoint, blocks, masking_rate, seed, BATCH_ROWS):
        tokens = predicted_tokens(batch, blocks, first_row, checkpoint.objective)
        frames.append(tokens.with_columns(**columns(batch, first_row)))
        first_row += len(batch.ids)
    if not sum(map(len, frames)):
        raise nothing_predicted(blocks)
    return pl.concat(frames)


def nothing_predicted(blocks: TokenRows) -> UserError:
    return UserError(f"{len(blocks)} held-out rows have no token to predict; give longer text or a higher masking rate")


def predicted_tokens(batch: Predictions, blocks: TokenRows, first_row: int, objective: str) -> pl.DataFrame:
    """The predicted tokens of a batch, in the order of `gold`: row, position, token (Int32).

    The batch is the rows of `blocks` from `first_row`.
    """
    row, position = batch.selected.nonzero().numpy().T
    row, position = row + first_row, position + (objective == "clm")
    names = {"row": row, "position": position, "token": blocks.ids[blocks.offsets[row] + position]}
    return pl.DataFrame(names, schema=dict.fromkeys(names, pl.Int32))


def prediction_batches(
    checkpoint, blocks: TokenRows, masking_rate: float, seed: int, rows: int, loss_share: float = 1.0
) -> Iterator[Predictions]:
    """`blocks` in order, `rows` at a time: with fixed masks for a masked model, next tokens for a causal one.

    `loss_share`: the share of the masked tokens that are predicted, as in training (`Schedule.loss_share`).
    """
    tokenizer, rts = checkpoint.tokenizer, checkpoint.objective == "rts"
    masker = None if checkpoint.objective == "clm" else Masker.for_tokenizer(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    for ids, padded in padded_batches(blocks, rows, tokenizer.pad_token_id or 0):
        inputs, selected, targets = select_targets(ids, padded, masker, masking_rate, generator, loss_share, rts)
        yield Predictions(inputs, None if padded is None else ~padded, selected, targets[selected])


def check_rows(model, blocks: TokenRows) -> None:
    """Raise a UserError if there are no rows, one is longer than the model allows, or a token has no embedding."""
    if not len(blocks):
        raise UserError("there are no held-out rows; give some text")
    check_length(model, int(blocks.lengths.max()), "a held-out row", "shorten the text")
    check_ids(model, int(blocks.ids.max()), "a held-out row")
