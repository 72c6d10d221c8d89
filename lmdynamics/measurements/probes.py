"""How useful a checkpoint is for other tasks: a new linear head on it, fine-tuned on labelled sentences."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from lmdynamics.corpora.labelled import LabelledSentences
from lmdynamics.corpora.tokens import takes_words
from lmdynamics.errors import UserError
from lmdynamics.measurements.inputs import check_ids, longest_input
from lmdynamics.measurements.trace import Measurement
from lmdynamics.training.batches import mix, pad


def accuracy(gold: Int64[np.ndarray, " n"], predicted: Int64[np.ndarray, " n"]) -> float:
    """Share of examples that are right."""
    return float((gold == predicted).mean())


def f1(gold: Int64[np.ndarray, " n"], predicted: Int64[np.ndarray, " n"]) -> float:
    """Harmonic mean of precision and recall of label 1; 0 if none is predicted or there is none."""
    correct = int(((gold == 1) & (predicted == 1)).sum())
    return 2 * correct / max(1, int((gold == 1).sum() + (predicted == 1).sum()))


def matthews(gold: Int64[np.ndarray, " n"], predicted: Int64[np.ndarray, " n"]) -> float:
    """Correlation of two binary labellings (Matthews 1975); 0 if either is constant."""
    return pearson((gold == 1).astype(float), (predicted == 1).astype(float))


def pearson(gold: Float64[np.ndarray, " n"], predicted: Float64[np.ndarray, " n"]) -> float:
    """Linear correlation; 0 if either side is constant."""
    from scipy.stats import pearsonr

    return float(pearsonr(gold, predicted).statistic) if np.ptp(gold) and np.ptp(predicted) else 0.0


def spearman(gold: Float64[np.ndarray, " n"], predicted: Float64[np.ndarray, " n"]) -> float:
    """Correlation of ranks; 0 if either side is constant."""
    from scipy.stats import spearmanr

    return float(spearmanr(gold, predicted).statistic) if np.ptp(gold) and np.ptp(predicted) else 0.0


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    score.__name__: score for score in (accuracy, f1, matthews, pearson, spearman)
}


MAX_TOKENS = 4096  # per batch without gradients
WARMUP = 0.1  # of all steps; then the rate falls linearly to zero
SCHEMA = {
    "task": pl.String,
    "source": pl.String,
    "trial": pl.Int64,
    "lr": pl.Float64,
    "split": pl.String,
    "accuracy": pl.Float64,
    "score": pl.Float64,
    "examples": pl.Int64,
    "truncated": pl.Int64,
}


@dataclass(frozen=True, eq=False)
class Examples:
    """Some sentences, or pairs of them, as tokens; `content` is true at tokens that are not special."""

    ids: tuple[np.ndarray, ...]  # each of shape [time]
    content: tuple[np.ndarray, ...]
    second: tuple[np.ndarray, ...]  # 1 at the tokens of the second sentence of a pair
    labels: np.ndarray
    truncated: int
    pad_id: int


@dataclass(frozen=True)
class FineTuning(Measurement):
    """Scores of the checkpoint's body, fine-tuned with a new linear head on the mean of its last hidden states.

    The mean is over all tokens except special ones, for every architecture: training in this package never makes one
    token represent its sentence. AdamW for `steps` steps, with a linear warm-up and decay, in float32. `frozen` trains
    the head only, on standardised states; a step is then very cheap, so use more of them, such as 600 at rates from
    1e-3 to 1e-2. Examples longer than the model allows are truncated, and counted in `truncated`.

    Rows: `task`, `source`, `trial`, `lr`, `split`, `accuracy`, `score`, `examples`, `truncated`. On `test`, one row
    per trial: the result, at the learning rate with the best mean over trials on `dev`. On `dev`, a row for every
    learning rate and trial. A trial draws the head's weights, the order of the examples and the dropout; splits and
    the examples used depend on `seed` only. `score` is the task's main metric. Grades are fitted by least squares, and
    their accuracy is null.

    The row with source "majority" is the control: the most frequent label of training (or the mean grade), for every
    sentence. The other control, the same architecture with random weights, is this measurement at step 0.
    """

    data: LabelledSentences
    trials: int = 3
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    steps: int = 40
    batch_size: int = 16
    train_examples: int = 2_000
    dev_examples: int = 300
    test_examples: int = 1_000
    frozen: bool = False
    seed: int = 0

    version = 1
    higher_is_better = True

    def __call__(self, checkpoint, device: str = "cpu") -> pl.DataFrame:
        counts = (self.trials, self.steps, self.batch_size, self.train_examples, self.dev_examples, self.test_examples)
        if not self.learning_rates or min(counts) < 1:
            raise UserError("fine-tuning needs a learning rate, and at least one trial, step and example of each kind")
        loaded = checkpoint.model(device=device)
        limit = longest_input(loaded)
        train, dev, test = encode_splits(checkpoint.tokenizer, limit, self.data, counts[3:], self.seed)
        check_ids(
            loaded, max(int(row.max(initial=0)) for part in (train, dev, test) for row in part.ids), self.data.name
        )
        body = getattr(loaded, "base_model", loaded)
        inputs = standardised_states(body, train, dev, test) if self.frozen else []
        rows, best = [], []
        for lr in self.learning_rates:
            models = [self._train(body, train, trial, lr, *inputs[:1]) for trial in range(self.trials)]
            dev_rows = [
                self._row(dev, self._predict(model, dev, *inputs[1:2]), "dev", trial, lr)
                for trial, model in enumerate(models)
            ]
            rows += dev_rows
            if not best or _mean_score(dev_rows) > _mean_score(best):
                best, predicted = dev_rows, [self._predict(model, test, *inputs[2:]) for model in models]
        rows += [self._row(test, p, "test", row["trial"], row["lr"]) for p, row in zip(predicted, best, strict=True)]
        grades = self.data.classes is None
        constant = train.labels.mean() if grades else np.bincount(train.labels).argmax()
        rows.append(self._row(test, np.full_like(test.labels, constant), "test", source="majority"))
        return pl.DataFrame(rows, schema=SCHEMA)

    def _row(self, examples: Examples, predicted: np.ndarray, split: str, trial=None, lr=None, source="fine-tuned"):
        share_correct = None if self.data.classes is None else accuracy(examples.labels, predicted)
        score = SCORES[self.data.metrics[0]](examples.labels, predicted)
        source = "frozen" if self.frozen and source == "fine-tuned" else source
        values = (self.data.name, source, trial, lr, split, share_correct, score, len(predicted), examples.truncated)
        return dict(zip(SCHEMA, values, strict=True))

    def _train(
        self, body: nn.Module, train: Examples, trial: int, lr: float, states=None
    ) -> tuple[nn.Module, nn.Module]:
        """One training from the checkpoint; returns the body and the head."""
        device = next(body.parameters()).device
        grades = self.data.classes is None
        labels = torch.from_numpy((train.labels - train.labels.mean()) / train.labels.std() if grades else train.labels)
        labels = (labels.float() if grades else labels).to(device)
        devices = [] if device.type == "cpu" else [device]
        with torch.random.fork_rng(devices, device_type=device.type), torch.enable_grad():
            torch.manual_seed(mix(self.seed, trial))
            head = nn.Linear(_width(body), self.data.classes or 1).to(device)
            body = body if self.frozen else deepcopy(body).float().train().requires_grad_()
            parameters = [*head.parameters(), *([] if self.frozen else body.parameters())]
            optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
            order = _batches(train, self.batch_size, self.steps, mix(self.seed, trial, 1))
            for step, chosen in enumerate(order):
                for group in optimizer.param_groups:
                    group["lr"] = lr * _share_of_rate(step, self.steps)
                logits = head(states[chosen] if self.frozen else sentence_means(body, train, chosen))
                gold = labels[torch.from_numpy(chosen).to(device)]
                loss = F.mse_loss(logits[:, 0], gold) if grades else F.cross_entropy(logits, gold)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
        return body.eval(), head

    @torch.inference_mode()
    def _predict(self, model: tuple[nn.Module, nn.Module], examples: Examples, states=None) -> np.ndarray:
        body, head = model
        outputs = head(all_means(body, examples) if states is None else states).cpu()
        if not outputs.isfinite().all():  # the training diverged: all predictions are wrong
            return np.full_like(examples.labels, -1)
        return outputs[:, 0].double().numpy() if self.data.classes is None else outputs.argmax(1).numpy()


def _mean_score(rows: list[dict]) -> float:
    return float(np.mean([row["score"] for row in rows]))


@lru_cache(maxsize=4)
def encode_splits(
    tokenizer, limit: int | None, data: LabelledSentences, sizes: tuple[int, int, int], seed: int
) -> tuple[Examples, Examples, Examples]:
    """Train, dev and test, each a random sample of at most this many examples, as tokens."""
    return tuple(_encode(tokenizer, limit, part, n, seed) for part, n in zip(data.splits(seed), sizes, strict=True))


def _encode(tokenizer, limit: int | None, data: LabelledSentences, max_examples: int, seed: int) -> Examples:
    frame = data.frame[np.sort(np.random.default_rng(seed).permutation(len(data))[:max_examples])]
    texts = [frame[name].to_list() for name in ("text", "second") if name in frame.columns]
    words = data.split_into_words and takes_words(tokenizer)  # other tokenizers would join them
    if words:
        texts = [[text.split(" ") for text in column] for column in texts]
    options = {"is_split_into_words": words, "return_token_type_ids": True, "verbose": False}
    truncation = {"truncation": True, "max_length": limit} if limit else {}
    encoded = tokenizer(*texts, return_special_tokens_mask=True, **options, **truncation)
    content = tuple(~np.array(mask, dtype=bool) for mask in encoded["special_tokens_mask"])
    if empty := [i for i, mask in enumerate(content) if not mask.any()]:
        raise UserError(f"{data.name}: the tokenizer gives no token for {frame['text'][empty[0]]!r}; leave it out")
    lengths = tokenizer(*texts, return_length=True, **options)["length"] if limit else map(len, content)
    return Examples(
        tuple(np.array(ids) for ids in encoded["input_ids"]),
        content,
        tuple(np.array(kind) for kind in encoded["token_type_ids"]),
        frame["label"].to_numpy().copy(),
        sum(n > len(mask) for n, mask in zip(lengths, content, strict=True)),
        tokenizer.pad_token_id or 0,
    )


def sentence_means(body: nn.Module, examples: Examples, chosen: np.ndarray) -> Float[Tensor, "batch width"]:
    """The mean of the last hidden states over the tokens that are not special, of the `chosen` examples."""
    device = next(body.parameters()).device

    def as_tensor(rows: tuple[np.ndarray, ...], padding: int) -> Tensor:
        return pad([rows[i] for i in chosen], padding)[0].to(device)

    ids, padded = pad([examples.ids[i] for i in chosen], examples.pad_id)
    inputs = {} if padded is None else {"attention_mask": (~padded).long().to(device)}
    if getattr(body.config, "type_vocab_size", 1) > 1:
        inputs["token_type_ids"] = as_tensor(examples.second, 0)
    states = body(input_ids=ids.to(device), return_dict=True, **inputs).last_hidden_state
    content = as_tensor(examples.content, 0).to(states.dtype)[:, :, None]
    return (states * content).sum(1) / content.sum(1)


def all_means(body: nn.Module, examples: Examples) -> Float[Tensor, "examples width"]:
    """`sentence_means` of all examples, batched by length."""
    lengths = np.array([len(ids) for ids in examples.ids])
    order = np.argsort(lengths, kind="stable")
    means = torch.empty(len(order), _width(body), device=next(body.parameters()).device)
    start = 0
    while start < len(order):
        rows = max(1, MAX_TOKENS // int(lengths[order[start]]))
        rows = max(1, MAX_TOKENS // int(lengths[order[min(start + rows, len(order)) - 1]]))
        chosen = order[start : start + rows]
        means[chosen] = sentence_means(body, examples, chosen).float()
        start += rows
    return means


@torch.inference_mode()
def standardised_states(
    body: nn.Module, train: Examples, *other_parts: Examples
) -> list[Float[Tensor, "examples width"]]:
    """Sentence means of each part, minus the mean and divided by the standard deviation over `train`."""
    means = [all_means(body.eval(), part) for part in (train, *other_parts)]
    spread = means[0].std(0, correction=0).clamp(min=1e-6)
    return [(part - means[0].mean(0)) / spread for part in means]


def _batches(examples: Examples, size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Example numbers of `steps` batches; all examples are used once before any is repeated.

    Sorted by length within groups of 16 batches, then the batches are shuffled: less padding.
    """
    random = np.random.default_rng(seed)
    lengths = np.array([len(ids) for ids in examples.ids])
    epochs = -(-steps * size // len(lengths))
    order = np.concatenate([random.permutation(len(lengths)) for _ in range(epochs)])[: steps * size]
    for start in range(0, len(order), 16 * size):
        group = order[start : start + 16 * size]
        group = group[np.argsort(lengths[group], kind="stable")].reshape(-1, size)
        yield from random.permutation(group)


def _share_of_rate(step: int, steps: int) -> float:
    warmup = max(1, round(WARMUP * steps))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def _width(body: nn.Module) -> int:
    return body.config.hidden_size
