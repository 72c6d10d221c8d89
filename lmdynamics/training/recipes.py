"""Recipes: corpus, model, optimisation, checkpoints and seed, which together determine a run.

Recipes are TOML files in `data/recipes`, each with profiles `smoke`, `default` and `full` that change some settings.
"""

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lmdynamics.corpora.grammar import VERSION
from lmdynamics.errors import UserError, did_you_mean
from lmdynamics.files import find_table, read_toml, shipped_tables
from lmdynamics.training.masking import Schedule, parse_schedule, tabulate
from lmdynamics.training.objective import ARC_DIRECTIONS, FORMS

PROFILES = ("smoke", "default", "full")

# settings of each kind of corpus, with defaults
CORPORA: dict[str, dict[str, Any]] = {
    "grammar": {
        "size": "small",
        "version": VERSION,  # of the language; it cannot be set
        "sentences": 160_000,
        "held_out": 2_000,
        "block_size": 0,  # 0: one sentence per row; otherwise packed, in rows of this many tokens
    },
    "text": {
        "source": "",  # a name in data/sources.toml, a file or a folder; several: books+novels
        "tokenizer": "wordpiece",
        "vocab_size": 4096,
        "lowercase": True,
        "block_size": 64,
        "held_out": 0.01,
    },
}


@dataclass(frozen=True)
class Optimization:
    """AdamW over `steps` batches; the learning rate warms up linearly, then decays to zero at `decay_steps`."""

    steps: int = 2_500
    batch_size: int = 64
    lr: float = 1e-3
    warmup_steps: int = 100
    decay: str = "linear"  # linear, cosine or none
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float = 1.0  # largest gradient norm; 0 switches clipping off
    masking: str = "constant-0.15"  # a schedule of the masking rate, such as linear-0.30-0.15 (training.masking)
    precision: str = "fp32"  # or bf16: autocast, weights stay in fp32
    compile: bool = False

    def lr_at(self, step: int) -> float:
        """Learning rate of the update that leads from `step` to `step + 1`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.decay == "none":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.lr * (1 - progress if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class Regularizer:
    """The syntactic-attention penalty (training.objective); `stages` are (from step, λ), and without them it is off."""

    stages: list[list[float]] = field(default_factory=list)  # [[0, 1.0], [300, 0.0]]: SAS− for 300 steps
    form: str = "max"  # or uniform
    arcs: str = "both"  # both directions; head: attention to the head only; children: to the children only
    trees: str = "corpus"  # of the training rows: gold, or shuffled (a control); or a treebank, by name or file
    sentences: int = 16  # of the treebank, at each step

    @property
    def of_corpus(self) -> bool:
        """Whether the trees are those of the training rows, and not of a treebank."""
        return self.trees in ("corpus", "shuffled")

    def strength_at(self, step: int) -> float:
        """λ of the update that leads from `step` to `step + 1`."""
        return next((strength for since, strength in reversed(self.stages) if step >= since), 0.0)


@dataclass(frozen=True)
class CheckpointPolicy:
    """Which steps are saved as checkpoints, and which of these with optimizer state."""

    per_doubling: int = 4  # checkpoints between t and 2t, after step 64
    optimizer_state: str = "all"  # all, none, or doublings (0, 1, 2, 4, ... and the last)
    save_seconds: float = 60.0  # seconds between resume points: the most that a killed run loses


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run. `name` and `profile` state its origin."""

    name: str
    profile: str = "default"
    seed: int = 0
    objective: str = "mlm"  # clm, or rts (random-token substitution: predict which tokens were replaced)
    corpus: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)  # a Hugging Face config: `model_type` and its fields
    training: Optimization = field(default_factory=Optimization)
    regularizer: Regularizer = field(default_factory=Regularizer)
    checkpoints: CheckpointPolicy = field(default_factory=CheckpointPolicy)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def schedule(self) -> Schedule:
        """The masking rate over training."""
        return parse_schedule(self.training.masking)

    def check_language(self, name: str = "", folder: Any = "its folder") -> None:
        """Raise a UserError if this stored recipe is of another version of the built-in language.

        `name` and `folder`: of its run, for the message.
        """
        version = self.corpus.get("version", VERSION)  # a text has none
        if version != VERSION:
            raise UserError(
                f"{name or self.name} was trained on version {version} of the built-in language, this is version "
                f"{VERSION}; delete {folder} and train it again"
            )

    def config(self, **special):
        """The Hugging Face configuration of the model; `special` holds vocabulary size and special token ids."""
        return _config({**self.model, **special})


def model_class(objective: str):
    """The Hugging Face class for an objective: masked, causal, or a discriminator that marks replaced tokens."""
    import transformers

    heads = {"mlm": "MaskedLM", "clm": "CausalLM", "rts": "TokenClassification"}
    return getattr(transformers, f"AutoModelFor{heads[objective]}")


def checkpoint_steps(total: int, per_doubling: int = 4) -> list[int]:
    """0, 1, 2, 4, ..., from 64 on with `per_doubling` steps per doubling, and `total`.

    With four per doubling, gaps from 64 on are below a factor of 1.25. Every power of two is a checkpoint: analyses
    from t to 2t need them.
    """
    doublings = [2**k for k in range(total.bit_length())]
    between = (round(d * 2 ** (i / per_doubling)) for d in doublings if d >= 64 for i in range(1, per_doubling))
    return sorted({0, total, *(d for d in (*doublings, *between) if d <= total)})


def recipe_names() -> list[str]:
    return shipped_tables("recipes")


def load_recipe(
    name: str, profile: str = "default", seed: int = 0, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> Recipe:
    """Read a recipe by name or from a TOML file, apply a profile, a seed, then `overrides`.

    `overrides` is a mapping or `key=value` strings; a key is dotted (`training.lr`), or bare if only one section
    has it (`lr`). Raises UserError for anything unknown or of the wrong type.
    """
    path = find_table("recipes", name, "recipe")
    table = read_toml(path, "a recipe")
    profiles = _section(table, "profiles")
    if profile not in {*PROFILES, *profiles}:
        raise UserError(
            f"recipe {path.stem!r} has no profile {profile!r}{did_you_mean(profile, {*PROFILES, *profiles})}"
        )
    table = _merge({key: table[key] for key in table if key != "profiles"}, _section(profiles, profile))
    recipe = _build({"name": path.stem, "profile": profile, **table, "seed": seed}, parse_overrides(overrides))
    if (version := recipe.corpus.get("version", VERSION)) != VERSION:
        raise UserError(
            f"corpus.version is {version}; this lmdynamics has version {VERSION} of the built-in language and no other"
        )
    return recipe


def recipe_from_dict(table: Mapping[str, Any], overrides: Mapping[str, Any] | Iterable[str] = ()) -> Recipe:
    """The recipe that `Recipe.to_dict` described, with `overrides` as in `load_recipe`.

    It may be of an earlier version of the built-in language; see `Recipe.check_language`.
    """
    corpus = dict(_section(table, "corpus"))
    if corpus.get("kind", "grammar") == "grammar" and ("version" not in corpus or "words" in corpus):
        corpus.pop("words", None)  # version 1 was stored without its number, later with a choice of words
        corpus["version"] = 1
    return _build({**table, "corpus": corpus}, parse_overrides(overrides))


def parse_overrides(overrides: Mapping[str, Any] | Iterable[str]) -> dict[str, Any]:
    """`key=value` strings, with TOML values, as a mapping; a mapping is returned as a dict."""
    return dict(overrides) if isinstance(overrides, Mapping) else dict(_parse(item) for item in overrides)


def _merge(base: Mapping, changes: Mapping) -> dict:
    shared = [key for key in changes if isinstance(base.get(key), Mapping) and isinstance(changes[key], Mapping)]
    return {**base, **changes, **{key: _merge(base[key], changes[key]) for key in shared}}


def _parse(item: str) -> tuple[str, Any]:
    key, equals, value = item.partition("=")
    if not (equals and key.strip()):
        raise UserError(f"{item!r} is not an override; write key=value, for example lr=0.002")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _build(table: dict[str, Any], overrides: Mapping[str, Any]) -> Recipe:
    table = {**table, "corpus": _corpus(_section(table, "corpus"))}
    table["model"] = {"model_type": "bert", **_section(table, "model")}
    sections = {"training": Optimization, "regularizer": Regularizer, "checkpoints": CheckpointPolicy}
    for name, section in sections.items():
        table[name] = _with_defaults(asdict(section()), _section(table, name), name, name)
    table = {"seed": 0, "objective": "mlm", **table}
    _check_keys(table, [f.name for f in fields(Recipe)], "a recipe")
    for key, value in overrides.items():
        section, leaf = _find_setting(key, table)
        section[leaf] = _checked_value(key, section[leaf], value)
    table["training"]["masking"] = _masking(table["training"]["masking"], table["training"]["steps"])
    table["regularizer"]["stages"] = _stages(table["regularizer"]["stages"])
    recipe = Recipe(**{**table, **{name: section(**table[name]) for name, section in sections.items()}})
    _check_values(recipe)
    return recipe


def _section(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = table.get(name, {})
    if not isinstance(section, Mapping):
        raise UserError(f"{name} is {section!r} in a recipe; expected a table of settings")
    return section


def _with_defaults(defaults: Mapping[str, Any], settings: Mapping[str, Any], name: str, section: str) -> dict[str, Any]:
    """The defaults of a section, updated with `settings`: known settings, each of its default's type."""
    known = _check_keys(settings, list(defaults), section)
    return {**defaults, **{key: _checked_value(f"{name}.{key}", defaults[key], value) for key, value in known.items()}}


def _corpus(settings: Mapping[str, Any]) -> dict[str, Any]:
    kind = _checked_value("corpus.kind", "grammar", settings.get("kind", "grammar"))
    if kind not in CORPORA:
        raise UserError(f"there is no corpus of kind {kind!r}{did_you_mean(kind, CORPORA)}")
    return _with_defaults({"kind": kind, **CORPORA[kind]}, settings, "corpus", f"a {kind} corpus")


def _masking(value: Any, steps: int) -> str:
    """A schedule as text: from text, from one rate, from a Schedule, or from any function of x = t/T."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(Schedule("constant", (float(value),)))
    if isinstance(value, Schedule):
        return str(value)
    if not (isinstance(value, str) or callable(value)):
        raise UserError(f"training.masking is {value!r}; give a rate, or a schedule such as linear-0.3-0.15")
    return str(parse_schedule(value) if isinstance(value, str) else tabulate(value, steps))


def _stages(value: Any) -> list[list[float]]:
    """Stages [[from step, λ], …]; one number is λ from step 0."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [[0, value]] if value else []
    try:
        stages = [[int(since), float(strength)] for since, strength in value]
    except (TypeError, ValueError):
        raise UserError(
            f"regularizer.stages is {value!r}; give λ, or a list of [from step, λ] such as [[0, 1.0], [300, 0.0]]"
        ) from None
    since = [stage[0] for stage in stages]
    if since != sorted(set(since)) or (since and since[0] < 0) or not all(math.isfinite(s[1]) for s in stages):
        raise UserError(
            f"regularizer.stages is {value!r}; steps must increase and be 0 or more, and every λ must be a number"
        )
    return stages


def _config(model: Mapping[str, Any]):
    from transformers import AutoConfig
    from transformers.models.auto import CONFIG_MAPPING

    if (kind := model["model_type"]) not in CONFIG_MAPPING:
        raise UserError(f"transformers has no model_type {kind!r}; it has bert, modernbert, llama and others")
    return AutoConfig.for_model(**model)


def _check_keys(settings: Mapping[str, Any], known: list[str], section: str) -> Mapping[str, Any]:
    for key in settings:
        if key not in known:
            raise UserError(f"{section} has no setting {key!r}{did_you_mean(key, known)}")
    return settings


def _find_setting(key: str, table: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The section that holds a dotted or bare key, and the key inside it."""
    sections = {name: value for name, value in table.items() if isinstance(value, dict)}
    section, _, leaf = key.rpartition(".")
    if section and section not in sections:
        raise UserError(f"there is no section {section!r} in a recipe{did_you_mean(section, sections)}")
    candidates = [sections[section]] if section else [table, *sections.values()]
    holders = [holder for holder in candidates if leaf in holder and not isinstance(holder[leaf], dict)]
    if not holders and section in ("model", ""):
        # any field of the model's configuration can be set, also one that the recipe does not name
        config = _config({"model_type": table["model"]["model_type"]}).to_dict()
        if leaf in config:
            table["model"].setdefault(leaf, config[leaf])
            return table["model"], leaf
    if len(holders) != 1 or leaf in ("name", "profile"):
        known = [f"{name}.{inner}" for name, value in sections.items() for inner in value]
        options = " or ".join(f"{name}.{leaf}" for name, value in sections.items() if leaf in value)
        message = f"{key!r} is in several sections; write {options}" if len(holders) > 1 else ""
        raise UserError(message or f"no setting {key!r} to override{did_you_mean(key, [*known, 'seed', 'objective'])}")
    return holders[0], leaf


def _checked_value(key: str, default: Any, value: Any) -> Any:
    if key.rpartition(".")[2] in ("masking", "stages"):  # several types are valid, see `_masking` and `_stages`
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if default is not None and type(value) is not type(default):
        raise UserError(f"{key} is {type(default).__name__}, like {default!r}; got {value!r}")
    return value


def _check_values(recipe: Recipe) -> None:
    """Refuse invalid values."""
    t, r = recipe.training, recipe.regularizer
    rules = (
        (recipe.objective in ("mlm", "clm", "rts"), f"objective is {recipe.objective!r}; choose mlm, clm or rts"),
        (recipe.seed >= 0, f"seed is {recipe.seed}; it must be 0 or more"),  # seeds below 0 draw held-out data
        (t.steps >= 1, f"training.steps is {t.steps}; at least 1 is needed"),
        (t.batch_size >= 1, f"training.batch_size is {t.batch_size}; at least 1 is needed"),
        (t.lr > 0, f"training.lr is {t.lr}; it must be positive"),
        (
            recipe.objective == "mlm" or not t.masking.startswith("subset"),
            f"training.masking is {t.masking}, a schedule for mlm; the objective is {recipe.objective}",
        ),
        (r.form in FORMS, f"regularizer.form is {r.form!r}; choose {' or '.join(FORMS)}"),
        (r.arcs in ARC_DIRECTIONS, f"regularizer.arcs is {r.arcs!r}; choose {', '.join(ARC_DIRECTIONS)}"),
        (r.sentences >= 1, f"regularizer.sentences is {r.sentences}; at least 1 is needed"),
        (
            recipe.corpus["block_size"] == 0 or recipe.corpus["block_size"] >= 3,
            f"corpus.block_size is {recipe.corpus['block_size']}; at least 3 are needed, or 0 for one sentence per row",
        ),
        (
            recipe.corpus["kind"] == "text" or not (recipe.corpus["block_size"] and r.stages and r.of_corpus),
            "trees need unpacked sentences; set corpus.block_size=0, or regularizer.trees to a treebank",
        ),
        (
            not r.stages or not r.of_corpus or recipe.corpus["kind"] == "grammar",
            "this corpus has no trees of its own; set regularizer.trees to a treebank (a name or a CoNLL-U file)",
        ),
        (t.decay in ("linear", "cosine", "none"), f"training.decay is {t.decay!r}; choose linear, cosine or none"),
        (t.precision in ("fp32", "bf16"), f"training.precision is {t.precision!r}; choose fp32 or bf16"),
        (recipe.checkpoints.per_doubling >= 1, "checkpoints.per_doubling must be at least 1"),
        (
            recipe.checkpoints.optimizer_state in ("all", "none", "doublings"),
            f"checkpoints.optimizer_state is {recipe.checkpoints.optimizer_state!r}; choose all, none or doublings",
        ),
    )
    for valid, message in rules:
        if not valid:
            raise UserError(message)
