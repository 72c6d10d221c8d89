"""From a recipe to the batch of any step: a pure function of seed and step, so resuming needs no saved position."""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lmdynamics.corpora.fetch import locate
from lmdynamics.corpora.grammar import PART, VERSION, Grammar
from lmdynamics.corpora.text import COMPLETE, build_text_corpus, load_or_build
from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.corpora.treebanks import open_treebank
from lmdynamics.errors import UserError
from lmdynamics.paths import cache_dir
from lmdynamics.training.masking import Masker, Schedule
from lmdynamics.training.objective import Links, Movable, Trees, encode_trees
from lmdynamics.training.recipes import Recipe, Regularizer

Made = TypeVar("Made")
# held-out sentences are the same for every seed, so that runs can be compared
HELD_OUT_SEED, TREEBANK_SEED, PAIRS_SEED = -1, -2, -3


@dataclass(frozen=True)
class Corpus:
    """A recipe's tokenizer, its training rows, and its held-out rows."""

    tokenizer: object
    train: TokenRows
    held_out: TokenRows
    trees: Trees | None = None  # of the rows in `train`; only if a penalty needs them


def open_corpus(recipe: Recipe) -> Corpus:
    """Generate or tokenise the corpus of a recipe (texts and large generated corpora are stored on disk).

    Raises UserError if the recipe is of another version of the built-in language.
    """
    recipe.check_language()
    options = dict(recipe.corpus)
    if options.pop("kind") == "grammar":
        grammar = Grammar(options["size"])
        train, heads = _sentences(grammar, options["sentences"], recipe.seed)
        penalty = recipe.regularizer
        trees = Trees.from_words(train, heads) if penalty.stages and penalty.of_corpus else None
        if trees and penalty.trees == "shuffled":
            trees = trees.shuffled(recipe.seed)
        held_out = grammar.blocks(options["held_out"], HELD_OUT_SEED)
        if options["block_size"]:
            train, held_out = train.packed(options["block_size"]), held_out.packed(options["block_size"])
        corpus = Corpus(grammar.tokenizer(), train, held_out, trees)
    else:
        if not options["source"]:
            raise UserError("this recipe needs a text: --set source=FOLDER, a file, or a name for `lmdynamics fetch`")
        source = options["source"]
        names = [source] if Path(source).exists() else source.split("+")
        texts = [Path(name) if Path(name).exists() else locate(name) for name in names]
        corpus = Corpus(
            *build_text_corpus(
                texts,
                cache_dir() / "corpora",
                kind=options["tokenizer"],
                vocab_size=options["vocab_size"],
                lowercase=options["lowercase"],
                block_size=options["block_size"],
                held_out=options["held_out"],
            )
        )
    if not len(corpus.held_out):
        raise UserError("the corpus has no held-out row; hold out more of it: --set held_out=N")
    if len(corpus.train) < recipe.training.batch_size:
        raise UserError(
            f"the corpus has {len(corpus.train):,} rows, fewer than one batch of {recipe.training.batch_size}; "
            "use more text or --set batch_size=N"
        )
    return corpus


def _sentences(grammar: Grammar, n: int, seed: int) -> tuple[TokenRows, TokenRows]:
    """`blocks_with_heads` of a grammar; large corpora are stored on disk, for all runs of a seed."""
    if n <= PART:
        return grammar.blocks_with_heads(n, seed)

    def load(folder: Path) -> tuple[TokenRows, TokenRows]:
        return TokenRows.load(folder / "rows"), TokenRows.load(folder / "heads")

    def build(folder: Path) -> None:
        rows, heads = grammar.blocks_with_heads(n, seed)
        rows.save(folder / "rows")
        heads.save(folder / "heads")
        description = {"grammar": grammar.name, "version": VERSION, "sentences": n, "seed": seed}
        (folder / COMPLETE).write_text(json.dumps(description) + "\n", encoding="utf-8")

    return load_or_build(cache_dir() / "corpora" / f"{grammar.name}-{VERSION}-{n}-{seed}", load, build)


def open_trees(recipe: Recipe, corpus: Corpus, longest: int) -> Trees | None:
    """The sentences that the penalty is computed on, if these are not the training rows.

    Raises UserError if the treebank does not exist, or none of its sentences fits the model.
    """
    r = recipe.regularizer
    if not r.stages or r.of_corpus:
        return None
    return encode_trees(open_treebank(r.trees), corpus.tokenizer, longest)


@dataclass(frozen=True)
class Batch(Movable):
    """The model's input, the predicted positions, and the targets there."""

    ids: Int[Tensor, "batch time"]
    attention_mask: Bool[Tensor, "batch time"] | None  # None where nothing is padded
    selected: Bool[Tensor, "batch time"]
    targets: Int[Tensor, "batch time"]  # meaningful where selected
    tokens: int  # without padding
    masking_rate: float | None = None
    links: Links | None = None  # syntactic arcs, if the penalty needs them

    def share(self, process: int, processes: int) -> "Batch":
        """The rows of one of several processes."""
        rows = {name: getattr(self, name) for name in ("ids", "attention_mask", "selected", "targets")}
        shares = {name: None if tensor is None else tensor[process::processes] for name, tensor in rows.items()}
        return replace(self, **shares, links=self.links and self.links.share(process, processes))


@dataclass
class Batches:
    """`batches[step]` is the batch of that step.

    Rows are shuffled in each epoch. Rows of unequal length are sorted within groups of 64 batches and the batches
    shuffled again, which reduces padding. With `trees`, a batch has its syntactic arcs at the steps where the
    regulariser's λ is not zero.
    """

    rows: TokenRows
    batch_size: int
    seed: int
    pad_id: int
    masker: Masker | None  # None: a causal model, which predicts every next token
    schedule: Schedule = Schedule("constant", (0.15,))  # noqa: RUF009 - frozen
    steps: int = 1  # of the whole training, over which the schedule runs
    substitute: bool = False  # random-token substitution: the targets are whether a token was replaced
    trees: Trees | None = None
    regularizer: Regularizer = Regularizer()  # noqa: RUF009 - frozen
    _epochs: dict[int, np.ndarray] = field(default_factory=dict, repr=False)  # the current one only

    def __getitem__(self, step: int) -> Batch:
        epoch, index = divmod(step, len(self.rows) // self.batch_size)
        if epoch not in self._epochs:
            self._epochs = {epoch: self._order(epoch)}
        chosen = self._epochs[epoch][index]
        rows = [self.rows[i] for i in chosen]
        ids, padded = pad(rows, self.pad_id)
        mask = None if padded is None else ~padded
        links = None
        if self.trees is not None and self.regularizer.strength_at(step):
            links = self.trees.links(chosen, self.regularizer.arcs)
        counts = {"tokens": sum(len(row) for row in rows), "links": links}
        generator, progress = torch.Generator().manual_seed(mix(self.seed, step)), step / self.steps
        rate = None if self.masker is None else self.schedule(progress)
        share = self.schedule.loss_share(progress)
        inputs, selected, targets = select_targets(ids, padded, self.masker, rate, generator, share, self.substitute)
        return Batch(inputs, mask, selected, targets, masking_rate=rate, **counts)

    def _order(self, epoch: int) -> np.ndarray:
        """Row numbers of every batch of an epoch, shape [batches, batch_size]."""
        random = np.random.default_rng([self.seed, epoch])
        n = len(self.rows) // self.batch_size
        order = random.permutation(len(self.rows))[: n * self.batch_size]
        lengths = self.rows.lengths
        if len(np.unique(lengths)) > 1:
            group = 64 * self.batch_size
            parts = [order[i : i + group] for i in range(0, len(order), group)]
            order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
            batches = order.reshape(n, self.batch_size)
            return np.concatenate([random.permutation(batches[i : i + 64]) for i in range(0, n, 64)])
        return order.reshape(n, self.batch_size)


@dataclass(frozen=True)
class TreeBatches:
    """`batches[step]`: some sentences of a treebank, drawn for each step, for the penalty only."""

    trees: Trees
    regularizer: Regularizer
    seed: int
    pad_id: int

    def __getitem__(self, step: int) -> Batch | None:
        if not self.regularizer.strength_at(step):
            return None
        random, n = np.random.default_rng([self.seed, step, 1]), len(self.trees.rows)
        chosen = random.choice(n, min(n, self.regularizer.sentences), replace=False)
        ids, padded = pad([self.trees.rows[i] for i in chosen], self.pad_id)
        selected = torch.zeros_like(ids, dtype=torch.bool)
        links = self.trees.links(chosen, self.regularizer.arcs)
        return Batch(ids, None if padded is None else ~padded, selected, ids, tokens=0, links=links)


def made_ahead(make: Callable[[int], Made], steps: Iterable[int]) -> Iterator[Made]:
    """`make(step)` of each step, in order; a thread makes the next one while the last one is used."""
    with ThreadPoolExecutor(1, "batches") as thread:
        waiting = None
        for step in steps:
            following = thread.submit(make, step)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def select_targets(
    ids: Int[Tensor, "batch time"],
    padded: Bool[Tensor, "batch time"] | None,
    masker: Masker | None,
    rate: float | None,
    generator: torch.Generator,
    loss_share: float = 1.0,
    substitute: bool = False,
) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"], Int[Tensor, "batch time"]]:
    """A model's input, the mask of predicted positions, and the targets.

    Without a masker, every next token is predicted; with one, the tokens that it selects at `rate`, or a `loss_share`
    of them; with `substitute`, for every ordinary token, whether it was replaced.
    """
    if masker is None:
        selected = torch.ones_like(ids, dtype=torch.bool) if padded is None else ~padded.roll(-1, dims=1)
        selected[:, -1] = False  # nothing follows the last token
        return ids, selected, ids.roll(-1, dims=1)
    if substitute:
        corrupted, replaced = masker.substitute(ids, rate, generator, padded)
        return corrupted, masker.ordinary(ids, padded), replaced.long()
    return *masker(ids, rate, generator, loss_share, padded), ids


def pad(rows: list[np.ndarray], pad_id: int) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"] | None]:
    """Rows as one tensor, padded on the right, and the mask of the padding (None if there is none)."""
    lengths = np.array([len(row) for row in rows])
    longest = int(lengths.max())
    if (lengths == longest).all():
        return torch.from_numpy(np.stack(rows).astype(np.int64)), None
    filled = np.arange(longest) < lengths[:, None]
    ids = np.full((len(rows), longest), pad_id, np.int64)
    ids[filled] = np.concatenate(rows)
    return torch.from_numpy(ids), torch.from_numpy(~filled)


def padded_batches(
    blocks: TokenRows, rows: int, pad_id: int
) -> Iterator[tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"] | None]]:
    """All of `blocks` in order, `rows` at a time, as `pad` returns them."""
    for start in range(0, len(blocks), rows):
        yield pad([blocks[i] for i in range(start, min(start + rows, len(blocks)))], pad_id)


def mix(*numbers: int) -> int:
    """One 63-bit seed from several small numbers, well mixed."""
    return int(np.random.SeedSequence([n & 0xFFFFFFFF for n in numbers]).generate_state(1, np.uint64)[0] >> 1)
