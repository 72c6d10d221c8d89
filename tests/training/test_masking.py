"""Masks and the schedules of their rate, against formulas written out; the batch of a step depends on seed and step."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmdynamics.corpora.grammar import Grammar
from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.errors import UserError
from lmdynamics.measurements.losses import HeldOutLoss, PairAccuracy
from lmdynamics.measurements.syntax import UAS
from lmdynamics.runs.trained import train
from lmdynamics.training.batches import Batches, mix, open_corpus, pad
from lmdynamics.training.masking import SHAPES, Masker, Schedule, parse_schedule, tabulate
from lmdynamics.training.recipes import load_recipe
from tests.conftest import TINY, refuses

MASKER = Masker(mask_id=4, vocab_size=1_000, special_ids=(0, 1, 2, 3, 4))


def test_special_tokens_are_never_selected():
    ids = torch.arange(5).repeat(100, 50)
    assert not MASKER(ids, 0.99, torch.Generator().manual_seed(0))[1].any()


def ragged(rows: int, seed: int = 0) -> list[np.ndarray]:
    """Rows of ordinary tokens between [CLS] and [SEP], of different lengths, with an [UNK] here and there."""
    random = np.random.default_rng(seed)
    ids = [np.array([2, *random.integers(5, 1_000, random.integers(10, 120)), 3]) for _ in range(rows)]
    for row in ids[::7]:
        row[len(row) // 2] = 1
    return ids


ROWS = TokenRows.from_rows(ragged(500))


def batches(**changes) -> Batches:
    return Batches(**{"rows": ROWS, "batch_size": 8, "seed": 0, "pad_id": 0, "masker": MASKER, **changes})


def test_any_step_can_be_asked_for_in_any_order():
    one, other = batches(), batches()
    forwards = [one[step] for step in range(130)]
    for step in (129, 3, 62, 61):
        again = other[step]
        assert torch.equal(again.ids, forwards[step].ids)
        assert torch.equal(again.selected, forwards[step].selected)
    assert not torch.equal(batches(seed=1)[0].targets, one[0].targets)


def test_an_epoch_shows_every_row_once():
    rows_seen = [tuple(row[row != 0].tolist()) for step in range(500 // 8) for row in batches()[step].targets]
    assert len(set(rows_seen)) == len(rows_seen) == 496
    assert set(rows_seen) <= {tuple(row.tolist()) for row in ROWS}


def test_sorting_saves_padding():
    padded = sum(batches()[step].ids.numel() for step in range(62))
    real = sum(batches()[step].tokens for step in range(62))
    assert real / padded > 0.95


def test_causal_targets_are_the_next_tokens():
    batch = batches(masker=None)[0]
    for ids, targets, selected in zip(batch.ids, batch.targets, batch.selected, strict=True):
        length = int((ids != 0).sum())
        assert selected.tolist() == [True] * (length - 1) + [False] * (len(ids) - length + 1)
        assert torch.equal(targets[: length - 1], ids[1:length])


def test_shares_of_several_processes_are_the_whole():
    batch = batches()[0]
    shares = [batch.share(process, 3) for process in range(3)]
    assert sorted(map(tuple, torch.cat([s.ids for s in shares]).tolist())) == sorted(map(tuple, batch.ids.tolist()))
    assert sum(int(s.selected.sum()) for s in shares) == int(batch.selected.sum())


def test_padding_is_only_where_needed():
    ids, padded = pad([np.array([2, 7, 3]), np.array([2, 3])], 0)
    assert ids.tolist() == [[2, 7, 3], [2, 3, 0]]
    assert padded.tolist() == [[False, False, False], [False, False, True]]
    assert pad([np.array([2, 3]), np.array([4, 5])], 0)[1] is None


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (-1, 0), (0,)])
def test_mixed_seeds_differ(numbers):
    mixed = {mix(a, b) for a in range(50) for b in range(50)} - {mix(*numbers)}
    assert mix(*numbers) == mix(*numbers)
    assert len(mixed) >= 2_499


def within(count, n, share, sigmas: float = 5) -> bool:
    """Whether a count of n draws is what a binomial of that share gives."""
    return abs(int(count) / n - share) < sigmas * math.sqrt(share * (1 - share) / n)


# the formulas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),  # at x = 0, 1/4, 1/2, 3/4, 1
    [
        ("constant-0.15", (0.15, 0.15, 0.15, 0.15, 0.15)),
        ("linear-0.3-0.15", (0.3, 0.2625, 0.225, 0.1875, 0.15)),
        ("linear-0.15-0.3", (0.15, 0.1875, 0.225, 0.2625, 0.3)),
        # cos(3π/4) = -√½, cos(π/4) = √½: .3 - .075 (1 - √½), .3 - .075 (1 + √½)
        ("cosine-0.3-0.15", (0.3, 0.278033008588991, 0.225, 0.171966991411009, 0.15)),
        ("cosine-0.15-0.3", (0.15, 0.171966991411009, 0.225, 0.278033008588991, 0.3)),
        ("step-0.3-0.15", (0.3, 0.3, 0.15, 0.15, 0.15)),
        ("step-0.15-0.3", (0.15, 0.15, 0.3, 0.3, 0.3)),
        ("subset-linear-0.3-0.15", (0.3, 0.2625, 0.225, 0.1875, 0.15)),
        ("points-0.1-0.3-0.2", (0.1, 0.2, 0.3, 0.25, 0.2)),
    ],
)
def test_rates_at_five_points(text, values):
    schedule = parse_schedule(text)
    assert [schedule(x / 4) for x in range(5)] == pytest.approx(values, abs=1e-14)
    assert str(schedule) == text


def test_trailing_zeros_do_not_change_the_schedule():
    assert parse_schedule(" linear-0.30-0.150 ") == Schedule("linear", (0.3, 0.15))


@st.composite
def schedules(draw) -> Schedule:
    shape = draw(st.sampled_from([*SHAPES, "points"]))
    rate = st.floats(0.15 if shape.startswith("subset") else 1e-9, 1, exclude_max=True)
    max_rates = {"constant": 1, "points": 9}.get(shape, 2)
    rates = draw(st.lists(rate, min_size=min(2, max_rates), max_size=max_rates, unique=True))
    return Schedule(shape, tuple(rates))


@given(schedules(), st.floats(0, 1))
def test_rates_stay_between_the_given_ones(schedule, x):
    assert min(schedule.rates) - 1e-12 <= schedule(x) <= max(schedule.rates) + 1e-12
    assert 0 < schedule.loss_share(x) <= 1 + 1e-12


@given(schedules())
def test_written_and_read_again_is_the_same(schedule):
    assert parse_schedule(str(schedule)) == schedule


@given(schedules().filter(lambda s: s.shape != "points"))
def test_each_shape_but_a_constant_is_monotone(schedule):
    values = [schedule(step / 50) for step in range(51)]
    falls = schedule.rates[0] > schedule.rates[-1]
    assert all((a >= b - 1e-12) if falls else (a <= b + 1e-12) for a, b in pairwise(values))
    assert (values[0], values[-1]) == pytest.approx((schedule.rates[0], schedule.rates[-1]), abs=1e-12)


@given(
    st.sampled_from([lambda x: 0.5 + 0.4 * math.sin(37 * x), lambda x: 0.15 + (x > 0.3) / 3]),
    st.integers(1, 2_000),
)
def test_a_tabulated_function_is_reproduced_exactly(rate, steps):
    """Through the text that a recipe holds, too."""
    schedule = parse_schedule(str(tabulate(rate, steps)))
    assert all(schedule(step / steps) == rate(step / steps) for step in range(steps + 1))


@pytest.mark.parametrize(
    ("masking", "message"),
    [
        (0, "a rate must lie between 0 and 1, 0 does not$"),
        (1, "a rate must lie between 0 and 1, 1 does not; 1 per cent is 0.01"),
        (15, "15 does not; 15 per cent is 0.15"),
        (-0.15, "-0.15 does not$"),
        (float("nan"), "nan does not"),
        ("constant-15", "15 per cent is 0.15"),
        ("linear-30-15", "30 per cent is 0.3"),
        ("constant-0.3-0.15", "a constant schedule has one rate; write linear, cosine or step"),
        ("linear-0.3", "write linear-FIRST-LAST, for example linear-0.30-0.15"),
        ("cosine-0.3-0.2-0.1", "write cosine-FIRST-LAST"),
        ("step-0.3-0.3", "it starts and ends at 0.3, which is constant-0.3"),
        ("subset-linear-0.3-0.1", "computes the loss at 15% of the positions, so neither rate can be lower"),
        ("points-0.3", "give at least two points"),
        ("linaer-0.3-0.15", "no schedule 'linaer'; did you mean 'linear'?"),
        ("quadratic-0.3-0.15", "no schedule 'quadratic'.*constant, cosine, linear"),
        ("thirty per cent", "'thirty per cent' is not a schedule; write SHAPE-FIRST-LAST"),
        ("linear-0.3-0.1.5", "is not a schedule"),
        ("constant-15%", "is not a schedule"),
        ("", "'' is not a schedule"),
        (True, "training.masking is True; give a rate, or a schedule"),
        ([0.3, 0.15], r"training.masking is \[0.3, 0.15\]; give a rate, or a schedule"),
        (lambda x: None, "the function must return a rate at every x from 0 to 1; got None"),
        (lambda x: 0.3 - x, "masking points-0.3.*….*: a rate must lie between 0 and 1"),
    ],
)
def test_refused_in_one_line(masking, message):
    message = refuses(message, load_recipe, "grammar-mlm", overrides={"masking": masking})
    assert len(message) < 250


def test_a_recipe_takes_a_rate_a_text_a_schedule_or_a_function():
    forms = (0.3, "constant-0.3", Schedule("constant", (0.3,)))
    assert {load_recipe("grammar-mlm", overrides={"masking": m}).training.masking for m in forms} == {"constant-0.3"}
    assert load_recipe("grammar-mlm", overrides=["masking=0.3"]).schedule == Schedule("constant", (0.3,))
    assert load_recipe("grammar-mlm", overrides=["masking=linear-0.30-0.15"]).schedule(0.5) == pytest.approx(0.225)
    recipe = load_recipe("grammar-mlm", overrides={"masking": lambda x: 0.3 - x**2 / 5, "steps": 7})
    assert [recipe.schedule(step / 7) for step in range(8)] == [0.3 - (step / 7) ** 2 / 5 for step in range(8)]


def test_a_subset_is_no_schedule_for_other_objectives():
    with pytest.raises(UserError, match="a schedule for mlm; the objective is rts"):
        load_recipe("grammar-mlm", overrides={"masking": "subset-linear-0.3-0.15", "objective": "rts"})


# in training --------------------------------------------------------------------------------------------------------


def test_a_function_as_schedule_needs_a_name_and_then_trains():
    changes = {**TINY, "masking": lambda x: 0.4 - 0.2 * x}
    with pytest.raises(UserError, match="a run with a function as masking needs a name of its own"):
        train("grammar-mlm", overrides=changes, progress=False)
    run = train("grammar-mlm", overrides=changes, name="mine", progress=False)
    assert run.log["masking_rate"].to_list() == [0.4 - 0.2 * (step / 12) for step in range(12)]
    words = "mine was trained with training.masking='points-.*…"
    assert len(refuses(words, train, "grammar-mlm", overrides=TINY, name="mine", progress=False)) < 500


def test_a_subset_takes_its_loss_on_15_per_cent_and_corrupts_more():
    recipe = load_recipe(
        "grammar-mlm", overrides={**TINY, "masking": "subset-linear-0.45-0.15", "corpus.sentences": 2_000}
    )
    corpus = open_corpus(recipe)
    masker, steps = Masker.for_tokenizer(corpus.tokenizer), 240
    batches = Batches(corpus.train, 8, 0, 0, masker, recipe.schedule, steps)
    for part, rate in ((range(80), 0.4), (range(80, 160), 0.3), (range(160, 240), 0.2)):
        chunk = [batches[step] for step in part]
        ordinary = sum(int(masker.ordinary(batch.targets).sum()) for batch in chunk)
        hidden = sum(int((batch.ids == masker.mask_id).sum()) for batch in chunk)
        assert within(sum(batch.selected.sum() for batch in chunk), ordinary, 0.15)
        assert within(hidden, ordinary, 0.8 * rate, 6)  # the rate moves a little within the part


# masks --------------------------------------------------------------------------------------------------------------


def shares_are_right(ids, corrupted, selected, rate: float, padded, loss_share: float = 1.0) -> None:
    """Selection, loss, and 80/10/10; of one vocabulary's thousandth, a random token is the token itself."""
    ordinary = MASKER.ordinary(ids) & ~padded
    n, k = int(ordinary.sum()), int(selected.sum())
    assert n > 1e6
    assert not selected[~ordinary].any()
    assert torch.equal(corrupted[~ordinary], ids[~ordinary])
    assert within(k, n, rate * loss_share)
    changed = corrupted != ids
    assert within(changed.sum(), n, rate * (0.9 - 0.1 / 1_000))
    if loss_share == 1:
        assert not changed[~selected].any()
    for share, result in (
        (0.8, (corrupted == 4) & selected),
        (0.1 + 0.1 / 1_000, ~changed & selected),
        (0.1 - 0.1 / 1_000, changed & (corrupted != 4) & selected),
    ):
        assert within(result.sum(), k, share)


@pytest.mark.parametrize("pad_id", [0, 7])  # padding by a special token, and by one that is also an ordinary one
@pytest.mark.parametrize(("rate", "loss_share"), [(0.15, 1.0), (0.4, 1.0), (0.3, 0.5), (0.9, 1.0)])
def test_masks_have_the_shares_asked_for(rate, loss_share, pad_id):
    ids, padded = pad(ragged(18_000), pad_id)
    corrupted, selected = MASKER(ids, rate, torch.Generator().manual_seed(1), loss_share, padded)
    shares_are_right(ids, corrupted, selected, rate, padded, loss_share)


def test_substitution_replaces_by_other_tokens():
    ids = torch.randint(0, 1_000, (2_100, 500), generator=torch.Generator().manual_seed(0))
    result, replaced = MASKER.substitute(ids, 0.3, torch.Generator().manual_seed(1))
    ordinary = MASKER.ordinary(ids)
    assert torch.equal(replaced, result != ids)
    assert not replaced[~ordinary].any()
    assert within(replaced.sum(), int(ordinary.sum()), 0.3 * (1 - 1 / 1_000))
    small = Masker(mask_id=0, vocab_size=4, special_ids=())  # where the replacement often is the token itself
    _, replaced = small.substitute(ids % 4, 0.3, torch.Generator().manual_seed(2))
    assert within(replaced.sum(), ids.numel(), 0.3 * (1 - 1 / 4))


def test_a_tokenizer_without_a_mask_is_refused():
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Grammar().tokenizer()._tokenizer, pad_token="[PAD]")
    refuses("the tokenizer has no mask token", Masker.for_tokenizer, bare)


# other objectives ---------------------------------------------------------------------------------------------------


def test_a_discriminator_learns_and_is_measured():
    changes = {**TINY, "objective": "rts", "steps": 150, "lr": 0.01, "corpus.sentences": 1_200, "masking": 0.3}
    run = train("grammar-mlm", overrides=changes, name="rts", progress=False)
    checkpoint = run[150]
    assert run.objective == "rts"
    assert run.log["loss"][-20:].mean() < 0.9 * run.log["loss"][:3].mean()
    model = checkpoint.model()
    assert (type(model).__name__, model.config.num_labels) == ("BertForTokenClassification", 2)
    loss, last = (HeldOutLoss(run.held_out())(run[step]) for step in (0, 150))
    ordinary = Masker.for_tokenizer(checkpoint.tokenizer).ordinary(torch.from_numpy(run.held_out().ids.copy())[None])
    assert last["tokens"].item() == int(ordinary.sum())
    assert math.isfinite(last["stderr"].item())
    assert last["loss"].item() < min(loss["loss"].item(), math.log(2))
    refuses("has no probability of a sentence", lambda: PairAccuracy(run.pairs("grammar", 5))(checkpoint))
    scores = UAS(run.treebank("grammar", 60), min_count=20)(checkpoint)
    assert scores["arcs"].sum() > 100
    assert (scores["correct"] <= scores["arcs"]).all()


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_causal_model_does_not_see_what_comes(kind):
    changes = {**TINY, "objective": "clm", "model_type": kind}
    changes |= {"num_key_value_heads": 2} if kind == "llama" else {}
    checkpoint = train("grammar-mlm", overrides=changes, name=kind, progress=False)[12]
    ids = torch.randint(5, 100, (3, 10), generator=torch.Generator().manual_seed(0))
    for step in (3, 9):
        changed = ids.clone()
        changed[:, step] = (ids[:, step] + 1) % 100
        for attention in ("sdpa", "eager"):
            with torch.inference_mode():
                model = checkpoint.model(attention)
                before, after = model(ids).logits, model(changed).logits
            torch.testing.assert_close(after[:, :step], before[:, :step], rtol=1e-5, atol=1e-6)
            assert (after[:, step:] - before[:, step:]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "clm", "model_type": "modernbert"}, "no clm model of type 'modernbert'; use another"),
        ({"model_type": "brt"}, "transformers has no model_type 'brt'"),
        ({"model_type": "brt", "layer_norm_eps": 1e-3}, "transformers has no model_type 'brt'"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
    ],
)
def test_what_no_model_can_be_made_of_is_one_line(changes, message):
    refuses(message, train, "grammar-mlm", overrides={**TINY, **changes}, name="none", progress=False)
