"""When each token of a text is learnt, and how far these times explain the loss curve.

If every token's loss falls as a sigmoid in log t at a time of its own (Wang et al. 2026, arXiv 2606.29858), the fall of
the mean loss per doubling of the steps is the density of these times, weighted by the falls, and smeared by the widths
of the sigmoids. Two controls have the noise of the same tokens: in `together` each token follows the mean curve, scaled
to its own fall; in `sudden` each token falls in one step at its own time.

Times are computed in log2(step), widths and spreads are in doublings of the steps, losses in nats.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import polars as pl
from jaxtyping import Float, Int
from scipy.special import expit

from lmdynamics.analysis.checkpoint_pairs import losses_by_token
from lmdynamics.analysis.intervals import Z95, as_columns, interval, need_columns, ratio, resample_counts, row_sums
from lmdynamics.errors import UserError

STEP_ZERO = 0.5  # place of step 0 on a logarithmic axis
MIN_STEPS = 4  # checkpoints
LAST = 3  # checkpoints whose mean is a token's loss at the end
NOISE = 2  # standard deviations that a token's loss must fall by
DRAWS, RESAMPLES = 4, 300
KINDS = ("learnt", "not learnt", "unlearnt again")
LOSS, TIMES, TOGETHER, SUDDEN, NO_CONTROL = "mean loss", "times of tokens", "together", "sudden", "none"
VERDICTS = {  # of a measure and its control: if the measure is above the control's, and if it is below
    ("spread", TOGETHER): ("tokens have times of their own", "times differ less than noise explains"),
    ("width", TOGETHER): ("a token falls more slowly than the mean", "a token falls faster than the mean"),
    ("width", SUDDEN): ("a token's fall is not sudden", "a token's fall is as sudden as a step"),
    ("overlap", TOGETHER): ("own times explain more than one time", "own times explain less than one time"),
    ("overlap, smeared", TOGETHER): ("own sigmoids explain more than one", "own sigmoids explain less than one"),
}
UNDECIDED = "undecided"


@dataclass(frozen=True)
class Learnt:
    """Time and width of each learnt token, as they are or as a control makes them."""

    time: Float[np.ndarray, " learnt"]
    width: Float[np.ndarray, " learnt"]
    fall: Float[np.ndarray, " learnt"]
    row: Int[np.ndarray, " learnt"]

    def by_bin(self, x: Float[np.ndarray, " steps"], rows: int, smeared: bool) -> Float[np.ndarray, "rows bins"]:
        """Sum of the falls of each row's tokens between every two steps: at their times or, smeared, as sigmoids."""
        scale = np.maximum(self.width, 1e-6)[:, None] / (2 * np.log(3))  # of a sigmoid with these quartiles
        past = expit((x[1:-1] - self.time[:, None]) / scale) if smeared else x[1:-1] > self.time[:, None]
        ends = np.zeros((len(past), 1)), np.ones((len(past), 1))
        table = np.zeros((rows, len(x) - 1))
        np.add.at(table, self.row, self.fall[:, None] * np.diff(np.concatenate([ends[0], past, ends[1]], 1), axis=1))
        return table

    def quantiles(self, values, counts, shares) -> Float[np.ndarray, "shares resamples"]:
        """Quantiles of values, weighted by the falls, with rows of text counted as in `counts`."""
        if not len(values):
            return np.full((len(shares), len(counts)), np.nan)
        order = np.argsort(values)
        weights = (counts[:, self.row[order]] * self.fall[order]).cumsum(1)
        places = [(weights < share * weights[:, -1:]).sum(1) for share in shares]
        return values[order][np.minimum(places, len(order) - 1)]


@dataclass(frozen=True)
class TokenPaths:
    """The loss of each token at each checkpoint of one run, and what follows from it; see `token_paths`."""

    steps: list[int]
    tokens: pl.DataFrame
    losses: Float[np.ndarray, "tokens steps"]
    seed: int = 0

    @cached_property
    def x(self) -> Float[np.ndarray, " steps"]:
        return np.log2(np.maximum(self.steps, STEP_ZERO))

    @cached_property
    def row(self) -> Int[np.ndarray, " tokens"]:
        return self.tokens["row"].rank("dense").to_numpy().astype(np.int64) - 1

    @cached_property
    def noise(self) -> Float[np.ndarray, "tokens steps"]:
        """Each loss less the line between its neighbours, scaled to the standard deviation of independent noise.

        A fall between two checkpoints counts as noise, too, so the noise is rather too large.
        At both ends it is that of the neighbour.
        """
        share = (self.x[2:] - self.x[1:-1]) / (self.x[2:] - self.x[:-2])
        between = share * self.losses[:, :-2] + (1 - share) * self.losses[:, 2:]
        inner = (self.losses[:, 1:-1] - between) / np.sqrt(1 + share**2 + (1 - share) ** 2)
        return np.concatenate([inner[:, :1], inner, inner[:, -1:]], 1)

    @cached_property
    def sd(self) -> Float[np.ndarray, " tokens"]:
        return np.sqrt((self.noise[:, 1:-1] ** 2).mean(1))

    @cached_property
    def end(self) -> Float[np.ndarray, " tokens"]:
        return self.losses[:, -_window(len(self.steps)) :].mean(1)

    @cached_property
    def fall(self) -> Float[np.ndarray, " tokens"]:
        return self.losses[:, 0] - self.end

    @cached_property
    def kind(self) -> Int[np.ndarray, " tokens"]:
        """Index in `KINDS`."""
        means = np.lib.stride_tricks.sliding_window_view(self.losses, _window(len(self.steps)), 1).mean(2)
        largest = self.losses[:, 0] - means.min(1)
        return np.where(largest <= NOISE * self.sd, 1, np.where(self.fall < largest / 2, 2, 0))

    @cached_property
    def counts(self) -> Float[np.ndarray, "resamples rows"]:
        """How often each row of text counts: once in the first line, then as resampled."""
        rows = int(self.row.max()) + 1
        return np.concatenate([np.ones((1, rows)), resample_counts(rows, RESAMPLES, self.seed)]).astype(np.float64)

    @cached_property
    def samples(self) -> dict[str, Learnt]:
        """The learnt tokens, and the two controls, `DRAWS` times each.

        Their noise is the tokens' own with a random sign at each checkpoint (wild bootstrap; Wu 1986).
        """
        chosen, rng = self.kind == 0, np.random.default_rng(self.seed)
        losses, end, fall, row = (values[chosen] for values in (self.losses, self.end, self.fall, self.row))
        time, width = crossings(losses, self.x)
        samples = {TIMES: Learnt(time, width, fall, row)}
        mean = losses.mean(0) if chosen.any() else np.linspace(1, 0, len(self.steps))
        last = mean[-_window(len(mean)) :].mean()
        shapes = {TOGETHER: (mean - last) / (mean[0] - last), SUDDEN: (self.x < time[:, None]).astype(float)}
        noise = np.tile(self.noise[chosen], (DRAWS, 1))
        for name, shape in shapes.items():
            made = np.tile(end[:, None] + fall[:, None] * shape, (DRAWS, 1))
            drawn = crossings(made + noise * rng.choice([-1, 1], noise.shape), self.x)
            samples[name] = Learnt(*drawn, np.tile(fall, DRAWS), np.tile(row, DRAWS))
        return samples

    def falls(self, smeared: bool = False) -> dict[str, Float[np.ndarray, "resamples bins"]]:
        """Fall of the mean loss between every two checkpoints, and what times explain, in nats per token."""
        sums = np.zeros((self.counts.shape[1], len(self.steps) - 1))
        np.add.at(sums, self.row, -np.diff(self.losses, axis=1))
        sums = {LOSS: sums}
        for name, sample in self.samples.items():
            made = sample.by_bin(self.x, self.counts.shape[1], smeared)
            sums[name] = made if name == TIMES else made / DRAWS
        tokens = self.counts @ np.bincount(self.row)
        return {name: self.counts @ by_row / tokens[:, None] for name, by_row in sums.items()}


def token_paths(losses: pl.DataFrame, seed: int = 0) -> TokenPaths:
    """Losses of tokens of one run, from `TokenLosses` (step, row, position, token, loss), as paths.

    Raises UserError if a column is missing, a loss is not finite, checkpoints were measured on other tokens, or there
    are fewer than four.
    """
    steps, tokens, by_step = losses_by_token(losses, "learning times")
    if len(steps) < MIN_STEPS:
        raise UserError(
            f"learning times need at least {MIN_STEPS} checkpoints, these losses have {len(steps)}; measure at more"
        )
    return TokenPaths(steps, tokens, by_step.T, seed)


def _window(steps: int) -> int:
    return max(1, min(LAST, steps // 4))


def falling(losses: Float[np.ndarray, "tokens steps"]) -> Float[np.ndarray, "tokens steps"]:
    """The curve that never rises and is closest to each token's losses (isotonic regression, by least squares)."""
    count = losses.shape[1]
    sums = np.concatenate([np.zeros((len(losses), 1)), losses.cumsum(1)], 1)
    fitted = np.full_like(losses, np.inf, dtype=np.float64)
    for first in range(count):  # min over starts up to k, of the max over ends from k on, of the mean between them
        means = (sums[:, first + 1 :] - sums[:, first : first + 1]) / np.arange(1, count - first + 1)
        largest = np.maximum.accumulate(means[:, ::-1], 1)[:, ::-1]
        fitted[:, first:] = np.minimum(fitted[:, first:], largest)
    return fitted


def crossings(
    losses: Float[np.ndarray, "tokens steps"], x: Float[np.ndarray, " steps"]
) -> tuple[Float[np.ndarray, " tokens"], Float[np.ndarray, " tokens"]]:
    """Where half of each token's fall is gone, and the width between a quarter and three quarters of it."""
    curves, index = falling(losses), np.arange(len(losses))
    start, end, places = losses[:, 0], losses[:, -_window(len(x)) :].mean(1), []
    for share in (0.25, 0.5, 0.75):
        level = start - share * (start - end)
        after = np.clip((curves > level[:, None]).sum(1), 1, len(x) - 1)
        above, below = curves[index, after - 1], curves[index, after]
        part = np.where(above > below, ratio(above - level, above - below), 0.5)
        places.append(x[after - 1] + np.clip(part, 0, 1) * (x[after] - x[after - 1]))
    return places[1], places[2] - places[0]


def learning_times(paths: TokenPaths) -> pl.DataFrame:
    """The step at which half of each token's fall of loss is gone.

    Rows: row, position, token, kind, start and end (loss at the first checkpoint, mean of the last three), fall, noise
    (standard deviation of a loss), step (null unless learnt), low, high, width (doublings between a quarter and three
    quarters of the fall).

    The time is that of the closest curve that never rises; no other shape is assumed. The interval (95 % or more) is of
    checkpoints: from the last one before the loss first comes within noise of the half level to the first one after it
    last was. `learnt`: the loss falls. `not learnt`: at no time by more than twice the noise. `unlearnt again`: more
    than half of the largest fall is lost at the end. A token that still falls at the end has too early a time.
    """
    (time, width), steps = crossings(paths.losses, paths.x), np.array(paths.steps)
    level, reach = (paths.losses[:, :1] + paths.end[:, None]) / 2, Z95 * paths.sd[:, None]
    first = np.argmax(paths.losses <= level + reach, 1)
    last = len(steps) - 1 - np.argmax((paths.losses >= level - reach)[:, ::-1], 1)
    of_time = {
        "step": 2**time,
        "low": steps[np.maximum(first - 1, 0)],
        "high": steps[np.minimum(last + 1, len(steps) - 1)],
    }
    of_time = {name: np.where(paths.kind == 0, values, np.nan) for name, values in (of_time | {"width": width}).items()}
    numbers = {"start": paths.losses[:, 0], "end": paths.end, "fall": paths.fall, "noise": paths.sd}
    table = paths.tokens.with_columns(pl.Series("kind", np.array(KINDS)[paths.kind]), *as_columns(numbers | of_time))
    return table.cast({"low": pl.Int64, "high": pl.Int64})


def kinds_of_tokens(paths: TokenPaths) -> pl.DataFrame:
    """Tokens that are learnt, not learnt, or unlearnt again: kind, tokens, share of the fall of the mean loss."""
    tokens = np.bincount(paths.kind, minlength=len(KINDS))
    falls = np.bincount(paths.kind, paths.fall, len(KINDS))
    share = as_columns({"share": ratio(falls, np.full(len(KINDS), falls.sum()))})
    return pl.DataFrame({"kind": KINDS, "tokens": tokens}).with_columns(share)


def fall_density(paths: TokenPaths) -> pl.DataFrame:
    """−dL/dlog2 t of the mean loss, and the density of the tokens' learning times, weighted by their falls.

    Both are in nats per token of the text and doubling of the steps, between every two checkpoints. Rows: step, until,
    account (mean loss, times of tokens, together: the control), fall, fall_low and fall_high (95 %, rows of text
    resampled).
    """
    parts, bins = [], np.diff(paths.x)
    for name, falls in paths.falls().items():
        if name != SUDDEN:
            drawn = falls / bins
            low, high = interval(drawn[1:], np.full(len(bins), float(paths.counts.shape[1])))
            keys = {"step": paths.steps[:-1], "until": paths.steps[1:], "account": [name] * len(bins)}
            columns = as_columns({"fall": drawn[0], "fall_low": low, "fall_high": high})
            parts.append(pl.DataFrame(keys).with_columns(columns))
    return pl.concat(parts)


def learning_tests(paths: TokenPaths) -> pl.DataFrame:
    """Do tokens have times of their own, how sharply do they fall, and how much of the loss curve do times explain?

    Rows: measure, control, and value, expected (of the control) and difference, each with _low and _high (95 %, rows of
    text resampled). Measures are weighted by the falls of learnt tokens:
    `time`: median step; no control. `spread`: doublings between the quartiles of the times. `width`: median of the
    tokens'. `overlap`: of the density of times with the fall of the mean loss (1: the same; it is 1 less half of the
    integrated absolute difference). `overlap, smeared`: with the times smeared as sigmoids of the tokens' widths; it
    decides little, because one broad sigmoid is close to the mean curve, too.
    """
    counts, measured = paths.counts, {}
    shares, smeared = (
        {name: _normalised(falls.clip(0)) for name, falls in paths.falls(smear).items()} for smear in (False, True)
    )
    for name, sample in paths.samples.items():
        first, middle, last = sample.quantiles(sample.time, counts, (0.25, 0.5, 0.75))
        measured["time", name], measured["spread", name] = 2**middle, last - first
        measured["width", name] = sample.quantiles(sample.width, counts, (0.5,))[0]
        measured["overlap", name] = np.minimum(shares[name], shares[LOSS]).sum(1)
        measured["overlap, smeared", name] = np.minimum(smeared[name], shares[LOSS]).sum(1)
    rows = []
    for measure, control in (("time", NO_CONTROL), *VERDICTS):
        value = measured[measure, TIMES]
        expected = measured.get((measure, control), np.nan * value)
        drawn = np.stack([value, expected, value - expected], 1)
        low, high = interval(drawn[1:], np.full(3, float(counts.shape[1])))
        rows.append((measure, control, *np.stack([drawn[0], low, high], 1).ravel()))
    numbers = [f"{name}{end}" for name in ("value", "expected", "difference") for end in ("", "_low", "_high")]
    schema = {"measure": pl.String, "control": pl.String, **dict.fromkeys(numbers, pl.Float64)}
    return pl.DataFrame(rows, schema, orient="row").with_columns(pl.col(numbers).fill_nan(None))


def _normalised(falls: Float[np.ndarray, "resamples bins"]) -> Float[np.ndarray, "resamples bins"]:
    return ratio(falls, np.broadcast_to(falls.sum(1, keepdims=True), falls.shape))


def with_verdicts(tests: pl.DataFrame) -> pl.DataFrame:
    """Rows of `learning_tests`, or means of these over seeds, with a verdict.

    It is "undecided" if the interval of the difference includes zero, or there is none.
    """
    bounds = tests.select("measure", "control", "difference_low", "difference_high").rows()
    verdicts = [
        "" if control == NO_CONTROL
        else UNDECIDED if low is None or low <= 0 <= high
        else VERDICTS[measure, control][high < 0]
        for measure, control, low, high in bounds
    ]  # fmt: skip
    return tests.with_columns(verdict=pl.Series(verdicts, dtype=pl.String))


def time_correlation(times: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Correlation of log times between runs, over tokens that both have learnt, and the same for other tokens.

    `times`: run, and the columns of `learning_times`. Rows: compared (`same token`; controls: `same word elsewhere`,
    `any token`), correlation (mean over pairs of runs), correlation_low and correlation_high (95 %, rows of text
    resampled), tokens (in all pairs), pairs. No rows if there is one run.
    """
    need_columns(times, ["run", "row", "position", "token", "step"], "correlation of learning times")
    learnt = times.drop_nulls("step").select("run", "row", "position", "token", time=pl.col("step").log(2))
    parts, another = [], pl.col("time_other").shift(1).fill_null(pl.col("time_other").last())
    for number, (one, other) in enumerate(combinations(learnt["run"].unique(maintain_order=True), 2)):
        keys = ["row", "position", "token"]
        pair = learnt.filter(run=one).join(learnt.filter(run=other), on=keys, suffix="_other", maintain_order="left")
        mixed = pair.sample(fraction=1, shuffle=True, seed=seed)
        word = mixed.filter(pl.len().over("token") > 1).with_columns(another.over("token"))
        compared = {"same token": pair, "same word elsewhere": word, "any token": mixed.with_columns(another)}
        parts += [rows.with_columns(pair=number, compared=pl.lit(name)) for name, rows in compared.items() if len(rows)]
    schema = {
        "compared": pl.String,
        **dict.fromkeys(("correlation", "correlation_low", "correlation_high"), pl.Float64),
    }
    schema |= {"tokens": pl.Int64, "pairs": pl.Int64}
    if not parts:
        return pl.DataFrame(schema=schema)
    a, b = pl.col("time"), pl.col("time_other")
    sums = {"n": pl.len(), "a": a.sum(), "b": b.sum(), "aa": (a * a).sum(), "bb": (b * b).sum(), "ab": (a * b).sum()}
    totals = row_sums(pl.concat(parts), ["compared"], sums, within=["pair"], resamples=RESAMPLES, seed=seed)
    own, drawn = (_correlation({name: of(name) for name in sums}) for of in (totals.total, totals.drawn))
    names, table = totals.keys["compared"].to_numpy(), []
    for name in totals.keys["compared"].unique(maintain_order=True):
        chosen = names == name
        bounds = interval(drawn[:, chosen].mean(1, keepdims=True), np.array([float(totals.sums["n"].shape[1])]))
        counts = int(totals.total("n")[chosen].sum()), int(chosen.sum())
        table.append((name, own[chosen].mean(), *(float(end[0]) for end in bounds), *counts))
    return pl.DataFrame(table, schema, orient="row").with_columns(pl.selectors.float().fill_nan(None))


def _correlation(sums: dict[str, Float[np.ndarray, "*shape"]]) -> Float[np.ndarray, "*shape"]:
    n, a, b = sums["n"], sums["a"], sums["b"]
    variances = (n * sums["aa"] - a * a) * (n * sums["bb"] - b * b)
    return ratio(n * sums["ab"] - a * b, np.sqrt(variances.clip(0)))
