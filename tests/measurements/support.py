"""Every measurement on every model family: measured, compared with a slow way to the same numbers, and reported.

`data/ARCHITECTURES.md` is what was found. To renew it: python -m tests.measurements.support
"""

import inspect
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from itertools import combinations
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lmdynamics import measurements
from lmdynamics.corpora.labelled import LabelledSentences
from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.corpora.treebanks import Treebank
from lmdynamics.errors import UserError
from lmdynamics.hub.suites import open_run
from lmdynamics.measurements import probes
from lmdynamics.measurements.complexity import FisherTrace, IntrinsicDimension, WeightNorm, sentence_states, two_nn
from lmdynamics.measurements.dissent import Dissent
from lmdynamics.measurements.gradients import GroupOpposition, Opposition
from lmdynamics.measurements.guesses import Guesses
from lmdynamics.measurements.inputs import score_half
from lmdynamics.measurements.losses import MASKING_RATE, HeldOutLoss, PairAccuracy, TokenLosses, prediction_batches
from lmdynamics.measurements.optimizer_step import Coefficients, OneStep
from lmdynamics.measurements.precursors import AttentionDistance, Repetition, StateCosine, row_groups
from lmdynamics.measurements.probes import FineTuning
from lmdynamics.measurements.syntax import UAS, HeadOffsets, HeadScores, WordAttention
from lmdynamics.measurements.trace import Measurement
from lmdynamics.runs.run import Checkpoint
from tests.conftest import trained
from tests.measurements import families
from tests.measurements.published import FAMILIES, STEPS, Family, treebank, words_by_spelling

TABLE = Path(__file__).parents[2] / "data" / "ARCHITECTURES.md"
LEFT_ONLY = "a head attends to the left only: column `reachable` says how many arcs it could find"
NO_FIRST = "without the first token, as the tokenizer puts nothing before a text"
NO_SECOND_HEAD = "without the head for next sentences, which is not loaded"


def every_measurement() -> set[type[Measurement]]:
    """All measurements there are in the package."""
    names = [module.name for module in iter_modules(measurements.__path__)]
    modules = [import_module(f"{measurements.__name__}.{name}") for name in names]
    classes = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    return {kind for kind in classes if issubclass(kind, Measurement) and kind is not Measurement}


def as_text(tokenizer, words: tuple[str, ...]) -> tuple[list[int], list[int | None]]:
    """A sentence as running text, and the word of each token by its spelling."""
    ids = tokenizer(" ".join(words))["input_ids"]
    return ids, words_by_spelling(tokenizer, ids, words)


def rows(checkpoint: Checkpoint) -> TokenRows:
    """Rows of unequal length: held out by a run of ours, otherwise three sentences each."""
    if checkpoint.recipe is not None:
        return open_run(checkpoint.folder.parent.parent).held_out()
    words = [sentence.words for sentence in treebank(24)]
    texts = [" ".join(sum(words[i : i + 3], ())) for i in range(0, len(words), 3)]
    return TokenRows.from_rows(checkpoint.tokenizer(texts)["input_ids"])


def head_scores(checkpoint: Checkpoint) -> str:
    bank = treebank()
    frame = HeadScores(bank, min_count=4)(checkpoint)
    relations = set(frame["relation"])
    expected = families.head_scores(checkpoint.model("eager"), checkpoint.tokenizer, bank, relations, as_text)
    scores = frame.filter(split="all")
    assert len(scores) == len(expected) == len(relations) * 2 * 4 * 2
    for row in scores.iter_rows(named=True):
        count, right, weight = expected[row["relation"], row["layer"], row["head"], row["direction"]]
        assert row["count"] == count
        assert abs(row["accuracy"] * count - right) < 1e-9
        assert abs(row["weight"] - weight / count) < 1e-5
        reachable = within_sight(bank, row["relation"], row["direction"]) if checkpoint.objective == "clm" else count
        assert abs(row["reachable"] * count - reachable) < 1e-9
    assert (frame["accuracy"] <= frame["reachable"]).all()
    return LEFT_ONLY if (scores["reachable"] < 1).any() else ""


def within_sight(bank: Treebank, relation: str, direction: str) -> int:
    """How many arcs of a relation run from the later word to the earlier, in a direction."""
    count = 0
    for sentence in bank:
        for word, (head, name) in enumerate(zip(sentence.heads, sentence.relations, strict=True)):
            attending, attended = (word, head) if direction == "dependent→head" else (head, word)
            count += name == relation and head >= 0 and attended < attending
    return count


def uas(checkpoint: Checkpoint) -> str:
    bank = treebank()
    frame = UAS(bank, min_count=4)(checkpoint)
    assert (frame["correct"] <= frame["reachable"]).all()
    assert (frame["reachable"] <= frame["arcs"]).all()
    scores = HeadScores(bank, min_count=4)(checkpoint).filter(pl.col("split") == "all", pl.col("relation") != "punct")
    best = scores.group_by("relation").agg((pl.col("accuracy") * pl.col("count")).max())["accuracy"].sum()
    same = frame.filter(source="per_relation_same")
    assert abs(same["correct"].sum() - best) < 1e-6
    scored, right = score_half(len(bank), 0), {}
    for key, words in distances(checkpoint).items():
        hits = [sum(predicted is not None and predicted == gold for predicted, gold in each) for each in words]
        right[key] = [sum(hit for hit, mine in zip(hits, scored, strict=True) if mine == side) for side in (0, 1)]
    chosen = max(right, key=lambda key: right[key][0])  # of equals the first
    single = frame.filter(source="single_head")
    assert single["correct"].sum() == right[chosen][1]
    assert single["arcs"].sum() == sum(len(s) for s, mine in zip(bank, scored, strict=True) if mine), "every word"
    return LEFT_ONLY if (frame["reachable"] < frame["arcs"]).any() else ""


def distances(checkpoint: Checkpoint) -> dict[tuple, list[list[tuple]]]:
    """For each layer, head and direction, by sentence: the predicted and the gold distance of each word, word by word.

    None: no prediction, or no gold head.
    """
    model, found = checkpoint.model("eager"), {}
    for sentence in treebank():
        for layer, of_layer in enumerate(families.word_matrices(model, checkpoint.tokenizer, sentence.words, as_text)):
            for head, matrix in enumerate(of_layer):
                for direction, rows in (("dependent→head", matrix), ("head→dependent", matrix.T)):
                    words = [
                        (int(row.argmax()) - i if row.max() > 0 else None, gold - i if gold >= 0 else None)
                        for i, (row, gold) in enumerate(zip(rows, sentence.heads, strict=True))
                    ]
                    found.setdefault((layer, head, direction), []).append(words)
    return found


def head_offsets(checkpoint: Checkpoint) -> str:
    frame, expected = HeadOffsets(treebank())(checkpoint), distances(checkpoint)
    assert len(frame) == len(expected)
    for row in frame.iter_rows(named=True):
        words = [pair for sentence in expected[row["layer"], row["head"], row["direction"]] for pair in sentence]
        predicted = [distance for distance, _ in words if distance is not None]
        assert (row["words"], predicted.count(row["offset"])) == (len(words), max(map(predicted.count, predicted)))
        assert abs(row["same"] * len(predicted) - predicted.count(row["offset"])) < 1e-9
        hits = [mine is not None and mine == gold for mine, gold in words]
        assert abs(row["accuracy"] * len(words) - sum(hits)) < 1e-9
        elsewhere = [hit for hit, (_, gold) in zip(hits, words, strict=True) if gold not in (None, row["offset"])]
        assert row["elsewhere"] == len(elsewhere)
        assert abs(row["beyond"] * len(elsewhere) - sum(elsewhere)) < 1e-9
    return ""


def word_attention(checkpoint: Checkpoint) -> str:
    words = ("the", "unbelievable", "dog", "—", "don't", "walking", ".")
    frame = WordAttention(words)(checkpoint)
    expected = families.word_matrices(checkpoint.model("eager"), checkpoint.tokenizer, words, as_text)
    np.testing.assert_allclose(frame["weight"].to_numpy().reshape(expected.shape), expected, atol=1e-5)
    indices = frame.select("layer", "head", "query", "key").to_numpy()
    np.testing.assert_array_equal(indices, np.argwhere(np.ones(expected.shape)))
    follows = frame.filter(pl.col("key") > pl.col("query"))["weight"]
    return "a word sees those before it only" if follows.max() == 0 else ""


def pair_accuracy(checkpoint: Checkpoint) -> str:
    good = ("the dog sees a cat .", "unbelievable man walking", "naïve dogs — and U.S. plays")
    bad = ("the dog see a cat .", "man unbelievable walking", "dogs naïve — and plays U.S.")
    frame = pl.DataFrame({"paradigm": "x", "pair": range(len(good)), "good": good, "bad": bad})
    for split in (True, False):
        scores = PairAccuracy(MinimalPairs("three", frame, split))(checkpoint)
        for name, texts in (("good", good), ("bad", bad)):
            expected = [sentence_score(checkpoint, text) for text in texts]
            np.testing.assert_allclose(scores[name], expected, rtol=1e-4, atol=1e-4)
    starts_bare = as_text(checkpoint.tokenizer, ("the",))[1][0] is not None
    return NO_FIRST if checkpoint.objective == "clm" and starts_bare else ""


@torch.no_grad()
def guesses(checkpoint: Checkpoint) -> str:
    """One forward pass for each hidden word; the probabilities sorted in full."""
    sentences = (("the", "unbelievable", "dog", "don't", "walk", "."), ("naïve", "dogs", "bark"))
    frame, model, tokenizer = Guesses(sentences)(checkpoint), checkpoint.model("eager"), checkpoint.tokenizer
    expected, split = [], False
    for sentence, words in enumerate(sentences):
        ids, of_word = as_text(tokenizer, words)
        for word in range(len(words)):
            first, pieces = of_word.index(word), of_word.count(word)
            split |= pieces > 1
            if checkpoint.objective == "mlm":
                given = [tokenizer.mask_token_id if each == word else i for i, each in zip(ids, of_word, strict=True)]
            elif first:
                given = ids[:first]
            else:
                continue
            logits = model(input_ids=torch.tensor([given])).logits[0, first if checkpoint.objective == "mlm" else -1]
            probability = logits.softmax(-1).tolist()
            order = sorted(range(len(probability)), key=lambda token: -probability[token])
            own = order.index(ids[first]) + 1, probability[ids[first]]
            for rank, token in enumerate(order[:5], start=1):
                guess = tokenizer.convert_ids_to_tokens(token) or ""
                right = token == ids[first]
                expected.append((sentence, word, pieces, rank, guess, probability[token], right, *own))
    assert split
    exact = [name for name in frame.columns if "probability" not in name]
    table = pl.DataFrame(expected, schema=frame.schema, orient="row")
    assert frame.select(exact).equals(table.select(exact))
    for name in ("probability", "right_probability"):
        np.testing.assert_allclose(frame[name], table[name], rtol=1e-3, atol=1e-6)
    starts_bare = as_text(tokenizer, ("the",))[1][0] is not None
    return "no guess for a first word" if checkpoint.objective == "clm" and starts_bare else ""


@torch.no_grad()
def sentence_score(checkpoint: Checkpoint, text: str) -> float:
    """The sum of a sentence's log-probabilities, one forward pass a token for a masked model."""
    ids, of_word = as_text(checkpoint.tokenizer, tuple(text.split(" ")))
    model, ids = checkpoint.model("eager"), torch.tensor([ids])
    ordinary, total = [t for t, word in enumerate(of_word) if word is not None], 0.0
    for t in ordinary:
        if checkpoint.objective == "mlm":
            masked = ids.clone()
            masked[0, t] = checkpoint.tokenizer.mask_token_id
            total += float(model(input_ids=masked).logits[0, t].log_softmax(-1)[ids[0, t]])
        elif t:
            total += float(model(input_ids=ids[:, :t]).logits[0, -1].log_softmax(-1)[ids[0, t]])
    return total


def losses_row_by_row(
    checkpoint: Checkpoint, blocks: TokenRows, rate: float
) -> list[tuple[torch.nn.Module, torch.Tensor]]:
    """The model, and the losses of each row's predicted tokens: the row alone and unpadded, open to differentiation."""
    model, losses = checkpoint.model("eager"), []
    (batch,) = prediction_batches(checkpoint, blocks, rate, 0, len(blocks))
    first = 0
    for row, length in enumerate(blocks.lengths):
        selected = batch.selected[row, :length]
        logits = model(input_ids=batch.ids[row : row + 1, :length]).logits[0, selected]
        gold = batch.gold[first : first + int(selected.sum())]
        first += len(gold)
        losses.append((model, F.cross_entropy(logits, gold, reduction="none")))
    return losses


def token_losses(checkpoint: Checkpoint) -> str:
    blocks = rows(checkpoint)
    frame = TokenLosses(blocks)(checkpoint)
    expected = torch.cat([losses for _, losses in losses_row_by_row(checkpoint, blocks, MASKING_RATE)])
    np.testing.assert_allclose(frame["loss"], expected.detach(), rtol=1e-4, atol=1e-4)
    tokens = [int(blocks[row][position]) for row, position in frame.select("row", "position").iter_rows()]
    assert frame["token"].to_list() == tokens
    return ""


def held_out_loss(checkpoint: Checkpoint) -> str:
    blocks = rows(checkpoint)
    row, losses = HeldOutLoss(blocks)(checkpoint).row(0, named=True), TokenLosses(blocks)(checkpoint)["loss"]
    assert abs(row["loss"] - losses.mean()) < 1e-4
    assert row["tokens"] == len(losses)
    assert row["stderr"] > 0
    return ""


def dissent(checkpoint: Checkpoint) -> str:
    blocks = rows(checkpoint)
    frame, losses = Dissent(blocks)(checkpoint), TokenLosses(blocks)(checkpoint)["loss"]
    np.testing.assert_allclose(frame["probability"].log(), -losses, rtol=1e-3, atol=1e-3)
    for name in ("dissent", "cos_hidden_attractive", "cos_hidden_repulsive", "dissent_control"):
        assert frame[name].is_between(-1, 1).all()
    return ""


def by_row(checkpoint: Checkpoint, blocks: TokenRows, output: str) -> list[tuple]:
    """For each row, alone and unpadded: its predicted positions, their true tokens, and the model's whole output."""
    model, found, first = checkpoint.model("eager"), [], 0
    (batch,) = prediction_batches(checkpoint, blocks, MASKING_RATE, 0, len(blocks))
    for row, length in enumerate(blocks.lengths):
        positions = batch.selected[row, :length].nonzero()[:, 0].tolist()
        gold = batch.gold[first : first + len(positions)].tolist()
        first += len(positions)
        with torch.no_grad():
            found.append((positions, gold, model(input_ids=batch.ids[row : row + 1, :length], **{output: True})))
    return found


def pairs_by_group(values: list[list], same: Callable) -> list[tuple]:
    """By group: pairs of values within a row, the mean of `same` over them, and over pairs of different rows."""
    groups, result = row_groups(len(values)).tolist(), []
    for group in dict.fromkeys(groups):
        rows = [row for row, mine in zip(values, groups, strict=True) if mine == group]
        within = [same(a, b) for row in rows for a, b in combinations(row, 2)]
        between = [same(a, b) for one, other in combinations(rows, 2) for a in one for b in other]
        result.append((len(within), *(sum(pairs) / len(pairs) if pairs else None for pairs in (within, between))))
    return result


def close(column: pl.Series, expected: list, tolerance: float = 1e-5) -> bool:
    """Whether numbers are as expected, and null where None is."""
    return len(column) == len(expected) and all(
        (mine is None) == (right is None) and (right is None or abs(mine - right) < tolerance)
        for mine, right in zip(column, expected, strict=True)
    )


def repetition(checkpoint: Checkpoint) -> str:
    blocks = rows(checkpoint)
    frame, found = Repetition(blocks)(checkpoint), by_row(checkpoint, blocks, "return_dict")
    top = [[int(output.logits[0, position].argmax()) for position in positions] for positions, _, output in found]
    pairs, repeated, between = zip(*pairs_by_group(top, lambda a, b: a == b), strict=True)
    assert frame["pairs"].to_list() == list(pairs)
    assert sum(pairs) > 0
    assert close(frame["repeated"], repeated)
    assert close(frame["other_rows"], between)
    text = pairs_by_group([gold for _, gold, _ in found], lambda a, b: a == b)
    assert close(frame["in_text"], [share for _, share, _ in text])
    mean = (frame["loss"] * frame["tokens"]).sum() / frame["tokens"].sum()
    assert abs(mean - HeldOutLoss(blocks)(checkpoint)["loss"].item()) < 1e-5
    return ""


def state_cosine(checkpoint: Checkpoint) -> str:
    blocks = rows(checkpoint)
    frame, found = StateCosine(blocks)(checkpoint), by_row(checkpoint, blocks, "output_hidden_states")
    for layer in (0, 1):
        states = [[output.hidden_states[layer + 1][0, t] for t in positions] for positions, _, output in found]
        expected = pairs_by_group(states, lambda a, b: float(F.cosine_similarity(a, b, dim=0)))
        pairs, cosine, between = zip(*expected, strict=True)
        measured = frame.filter(layer=layer)
        assert measured["pairs"].to_list() == list(pairs)
        assert close(measured["cosine"], cosine)
        assert close(measured["other_rows"], between)
    assert len(frame) == 2 * len(measured)
    return ""


def attention_distance(checkpoint: Checkpoint) -> str:
    """One row, one head and one query at a time."""
    blocks, final = rows(checkpoint), open_run(checkpoint.folder.parent)[STEPS[0]]
    frame, groups = AttentionDistance(blocks, final)(checkpoint), row_groups(len(blocks))
    models = [each.model("eager") for each in (checkpoint, final)]
    apart = {}
    for row, group in zip(blocks, groups.tolist(), strict=True):
        ids = torch.tensor(np.array(row), dtype=torch.long)[None]
        with torch.no_grad():
            own, other = (model(input_ids=ids, output_attentions=True).attentions for model in models)
        for layer, head, query in np.ndindex(2, 4, len(row)):
            for name, compared in (("distance", head), ("other_heads", (head - 1) % 4)):
                difference = own[layer][0, head, query] - other[layer][0, compared, query]
                apart.setdefault((name, group, layer), []).append(float(difference.abs().sum()) / 2)
    for name in ("distance", "other_heads"):
        assert close(frame[name], [np.mean(apart[name, row["group"], row["layer"]]) for row in frame.to_dicts()])
    return ""


def intrinsic_dimension(checkpoint: Checkpoint) -> str:
    bank, body = treebank(), checkpoint.model().base_model
    states = sentence_states(checkpoint.model(), checkpoint, bank)
    states_by_layer = {}
    for sentence in bank:
        ids, _ = as_text(checkpoint.tokenizer, sentence.words)
        with torch.no_grad():
            state = body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1 if checkpoint.objective == "clm" else 0]
        assert (states - state).norm(dim=1).min() < 1e-3 * state.norm()
        states_by_layer[sentence.words] = state
    expected, points = two_nn(torch.stack([*states_by_layer.values()]).double().numpy())
    row = IntrinsicDimension(bank)(checkpoint).row(0, named=True)
    assert abs(row["dimension"] / expected - 1) < 0.05
    assert abs(row["points"] - points) <= 2
    assert IntrinsicDimension(rows(checkpoint))(checkpoint)["points"].item() > 2
    return ""


def weight_norm(checkpoint: Checkpoint) -> str:
    tensors = load_file(checkpoint.folder / "model.safetensors")
    unread = {name for name in tensors if "pooler" in name or "seq_relationship" in name}
    expected = sum(float(x.double().square().sum()) for name, x in tensors.items() if name not in unread)
    assert abs(WeightNorm()(checkpoint)["norm2"][0] / expected - 1) < 1e-9
    return NO_SECOND_HEAD if unread else ""


def fisher_trace(checkpoint: Checkpoint) -> str:
    blocks = rows(checkpoint)
    row = FisherTrace(blocks, examples=len(blocks), masking_rate=0.4)(checkpoint).row(0, named=True)
    traces = []
    for number in range(len(blocks)):  # masks are drawn row by row
        one = list(prediction_batches(checkpoint, blocks, 0.4, 0, 1))[number]
        model = checkpoint.model("eager")
        logits = model(input_ids=one.ids).logits[one.selected]
        F.cross_entropy(logits, one.gold).backward()
        traces.append(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
    assert abs(row["trace"] / np.mean(traces) - 1) < 1e-3
    assert abs(row["stderr"] / (np.std(traces, ddof=1) / len(traces) ** 0.5) - 1) < 1e-3
    assert row["examples"] == len(blocks)
    return ""


def whole_gradient(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten().double() for g in gradients])


def opposition(checkpoint: Checkpoint) -> str:
    blocks = rows(checkpoint)
    frame = Opposition(blocks, examples=len(blocks))(checkpoint).filter(part="all")
    flat = [
        # a row without a predicted token has no gradient
        whole_gradient(model, losses.mean() if len(losses) else losses.sum())
        for model, losses in losses_row_by_row(checkpoint, blocks, MASKING_RATE)
    ]
    flat = torch.stack(flat)
    expected = (flat @ flat.T).numpy()[np.triu_indices(len(flat))]
    np.testing.assert_allclose(frame["dot"], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    return ""


def group_opposition(checkpoint: Checkpoint) -> str:
    blocks = rows(checkpoint)
    groups = tuple("odd" if token % 2 else "even" for token in range(len(checkpoint.tokenizer)))
    frame = GroupOpposition(blocks, groups)(checkpoint).filter(part="all")
    predicted = TokenLosses(blocks)(checkpoint)["token"]
    same_group = frame.filter(pl.col("a") == pl.col("b"))
    np.testing.assert_allclose(same_group["cosine"], 1, atol=1e-6)
    assert same_group["tokens_a"].sum() == len(predicted)
    losses = losses_row_by_row(checkpoint, blocks, MASKING_RATE)
    model = losses[0][0]
    each, odd = torch.cat([of_row for _, of_row in losses]), torch.from_numpy(predicted.to_numpy() % 2 == 1)
    sides = [whole_gradient(model, each[side].mean()) for side in (~odd, odd)]
    pair = frame.filter(pl.col("a") != pl.col("b")).row(0, named=True)
    assert abs(pair["cosine"] - float(F.cosine_similarity(*sides, dim=0))) < 1e-3
    counts = {"odd": int(odd.sum()), "even": int((~odd).sum())}
    assert (pair["tokens_a"], pair["tokens_b"]) == (counts[pair["a"]], counts[pair["b"]])
    return ""


def fine_tuning(checkpoint: Checkpoint) -> str:
    texts = [" ".join(sentence.words) for sentence in treebank(60)]
    frame = pl.DataFrame({"text": texts, "label": [i % 2 for i in range(60)], "group": range(60)})
    for split in (True, False):
        data = LabelledSentences("halves", frame, split_into_words=split)
        train, _, _ = probes.encode_splits(checkpoint.tokenizer, 64, data, (60, 60, 60), 0)
        body = checkpoint.model().base_model
        with torch.inference_mode():
            means = probes.all_means(body, train)
            for text, mean in zip(data.splits(0).train.frame["text"], means, strict=True):
                ids, of_word = as_text(checkpoint.tokenizer, tuple(text.split(" ")))
                ordinary = torch.tensor([word is not None for word in of_word])
                expected_state = body(input_ids=torch.tensor([ids])).last_hidden_state[0, ordinary].mean(0)
                assert torch.allclose(mean, expected_state, atol=1e-3)
    for frozen in (True, False):
        scores = FineTuning(data, trials=1, learning_rates=(1e-3,), steps=2, frozen=frozen)(checkpoint)
        assert scores["accuracy"].is_between(0, 1).all()
        assert scores["truncated"].sum() == 0
    return ""


def one_step(checkpoint: Checkpoint) -> str:
    frame = OneStep(rows(checkpoint), batches=1, batch_size=4, held_out=4)(checkpoint)
    assert frame["first_order"].is_finite().all()
    moved = frame.filter(split="held out", direction="update")
    # one small step: what the gradients foretell, but for what is of second order
    assert np.corrcoef(moved["change"], moved["first_order"])[0, 1] > 0.99
    return ""


def coefficients(checkpoint: Checkpoint) -> str:
    frame = Coefficients(rows(checkpoint), batches=1, batch_size=4, rows=2)(checkpoint)
    assert frame.filter(level="all")["identity_error"].max() < 1e-6
    for name in ("C_g", "C_ug", "C_uG", "interference"):
        assert frame[name].is_between(0, 1 + 1e-6).all()
    return ""


CHECKS: dict[type[Measurement], Callable[[Checkpoint], str]] = {
    HeadOffsets: head_offsets,
    HeadScores: head_scores,
    UAS: uas,
    WordAttention: word_attention,
    PairAccuracy: pair_accuracy,
    Guesses: guesses,
    HeldOutLoss: held_out_loss,
    TokenLosses: token_losses,
    Dissent: dissent,
    IntrinsicDimension: intrinsic_dimension,
    WeightNorm: weight_norm,
    FisherTrace: fisher_trace,
    Opposition: opposition,
    GroupOpposition: group_opposition,
    Repetition: repetition,
    StateCosine: state_cosine,
    AttentionDistance: attention_distance,
    FineTuning: fine_tuning,
    OneStep: one_step,
    Coefficients: coefficients,
}
OF_OUR_OWN = (OneStep, Coefficients)  # need a recipe and an optimizer's state, so they are also tried on a run of ours


@cache
def cell(family: Family, measurement: type[Measurement], ours: bool) -> str:
    """What a measurement makes of a family: "yes", "yes: with a remark", or "no: the reason it gives"."""
    checkpoint = our_own(family) if ours else published(family)
    try:
        remark = CHECKS[measurement](checkpoint)
    except UserError as refused:
        return f"no: {str(refused).replace(checkpoint.run_name, 'the run')}"
    return f"yes: {remark}" if remark else "yes"


@cache
def folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="architectures-")


@cache
def published(family: Family) -> Checkpoint:
    """The later checkpoint of a plain folder, as if downloaded."""
    return open_run(family.save(Path(folder().name) / f"published-{FAMILIES.index(family)}"))[STEPS[-1]]


@cache
def our_own(family: Family) -> Checkpoint:
    """A checkpoint of two steps' training here, with its optimizer."""
    return trained(family.recipe(), Path(folder().name) / f"ours-{FAMILIES.index(family)}")[1]


def table() -> str:
    """The whole table as Markdown: a row per measurement, a column per family, remarks below."""
    named = [(kind.__name__, kind, False) for kind in CHECKS]
    named += [(f"{kind.__name__}, on a run trained here", kind, True) for kind in OF_OUR_OWN]
    remarks: dict[str, int] = {}
    lines = [f"| measurement | {' | '.join(family.name for family in FAMILIES)} |", "|---" * (len(FAMILIES) + 1) + "|"]
    for name, kind, ours in named:
        cells = []
        for family in FAMILIES:
            answer, _, remark = cell(family, kind, ours).partition(": ")
            cells.append(f"{answer} [{remarks.setdefault(remark, len(remarks) + 1)}]" if remark else answer)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    notes = [f"{number}. {remark[0].upper()}{remark[1:]}." for remark, number in remarks.items()]
    return "\n".join([HEAD, *lines, "", *notes]) + "\n"


HEAD = """# Which measurement works on which architecture

Made by a test, which measures every cell on a tiny random model of the family with a tokenizer of the family's kind
and holds the numbers against a slow way to the same (`tests/measurements/test_architectures.py`). To renew this file:
`python -m tests.measurements.support`. Weights are measured in float32, whatever they were saved in.
"""

if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
