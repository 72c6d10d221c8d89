"""Fine-tuning probes: tasks that can and cannot be learnt, the same rows twice."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch
import transformers as hf

from lmdynamics.corpora.labelled import LabelledSentences, acceptability
from lmdynamics.corpora.minimal_pairs import MinimalPairs
from lmdynamics.errors import UserError
from lmdynamics.measurements import probes
from lmdynamics.measurements.probes import SCORES, FineTuning
from lmdynamics.measurements.trace import trace
from tests.conftest import refuses
from tests.measurements.conftest import WHOLE, StandIn, tiny_model

QUICK = {"trials": 2, "learning_rates": (3e-3, 1e-2), "steps": 40, "batch_size": 16}


@dataclass(frozen=True)
class AnyBody(StandIn):
    """A stand-in of one more architecture, or with another head on it."""

    def model(self, attention: str = "sdpa", device: str = "cpu"):
        if self.kind in ("bert", "roberta", "llama"):
            return tiny_model(self.kind, attention, self.positions, self.seed).to(device)
        size = {"vocab_size": 24, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        size |= {"max_position_embeddings": self.positions, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
        torch.manual_seed(self.seed)
        if self.kind == "gpt2":
            return hf.AutoModelForCausalLM.from_config(hf.GPT2Config(**size)).to(device).eval()
        if self.kind == "modernbert":
            options = {"cls_token_id": 2, "sep_token_id": 3, "intermediate_size": 48}
            return hf.AutoModelForMaskedLM.from_config(hf.ModernBertConfig(**size, **options)).to(device).eval()
        discriminator = hf.BertConfig(**size, intermediate_size=64)
        return hf.AutoModelForTokenClassification.from_config(discriminator).to(device).eval()


KINDS = ["bert", "roberta", "modernbert", "gpt2", "llama", "discriminator"]


def sentences(n=200, label=lambda words: int("cat" in words), seed=0, **columns) -> LabelledSentences:
    """Random words, half of the sentences with a cat in them."""
    random = np.random.default_rng(seed)
    other_words = [word for word in WHOLE if word != "cat"]
    rows = []
    for i in range(n):
        words = [*random.choice(other_words, random.integers(3, 9)), *(["cat"] if i % 2 else [])]
        rows.append([str(word) for word in random.permutation(words)])
    frame = pl.DataFrame({"text": [" ".join(words) for words in rows], "label": [label(words) for words in rows]})
    frame = frame.with_columns(pl.int_range(n).alias("group"), *(value.alias(name) for name, value in columns.items()))
    return LabelledSentences("cats", frame)


def encoded(checkpoint, data, limit=None):
    return probes.encode_splits(checkpoint.tokenizer, limit, data, (1000, 1000, 1000), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_learns_whether_there_is_a_cat(kind):
    frame = FineTuning(sentences(400), **QUICK | {"steps": 80})(AnyBody(kind))
    test = frame.filter(split="test", source="fine-tuned")
    assert test["accuracy"].mean() > 0.85
    assert (test["score"] == test["accuracy"]).all()
    assert dict(frame.schema) == probes.SCHEMA


def test_what_cannot_be_learnt_is_not():
    random = iter(np.random.default_rng(5).integers(0, 2, 600).tolist())
    frame = FineTuning(sentences(600, lambda _: next(random)), **QUICK)(AnyBody("bert"))
    assert frame.filter(split="test", source="fine-tuned")["accuracy"].mean() == pytest.approx(0.5, abs=0.12)


def test_the_rate_is_chosen_on_dev_and_scored_on_test():
    frame = FineTuning(sentences(), **QUICK | {"learning_rates": (1e-6, 1e-2), "trials": 3})(AnyBody("bert"))
    dev = frame.filter(split="dev")
    assert dev.select("lr", "trial").rows() == [(lr, trial) for lr in (1e-6, 1e-2) for trial in range(3)]
    test = frame.filter(split="test", source="fine-tuned")
    assert test.select("lr", "trial").rows() == [(1e-2, 0), (1e-2, 1), (1e-2, 2)]
    assert dev.filter(lr=1e-2)["score"].mean() > dev.filter(lr=1e-6)["score"].mean()
    assert dev["examples"].to_list() == [30] * 6
    assert frame["task"].unique().to_list() == ["cats"]


def test_the_control_is_the_commonest_label_of_training():
    data = sentences(label=lambda words: int("cat" in words and "dog" in words))
    frame = FineTuning(data, **QUICK | {"steps": 1})(AnyBody("bert"))
    control = frame.filter(source="majority").row(0, named=True)
    assert control["accuracy"] == pytest.approx(1 - data.splits(0).test.frame["label"].mean())
    assert (control["trial"], control["lr"], control["split"], control["examples"]) == (None, None, "test", 30)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_same_rows_every_time_and_the_checkpoint_left_alone(frozen):
    checkpoint, probe = AnyBody("bert"), FineTuning(sentences(), **QUICK, frozen=frozen)
    model = checkpoint.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    class Kept(AnyBody):
        def model(self, attention="sdpa", device="cpu"):
            return model

    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = probe(Kept("bert"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert first.equals(probe(Kept("bert")))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    other_seed = FineTuning(sentences(), **QUICK, frozen=frozen, seed=1)
    assert not first.equals(other_seed(checkpoint))
    assert other_seed.key() != probe.key()


def test_a_frozen_probe_trains_the_head_alone_on_standardised_states():
    checkpoint = AnyBody("bert")
    body = checkpoint.model().base_model
    train, dev, _ = encoded(checkpoint, sentences())
    states, dev_states = probes.standardised_states(body, train, dev)
    assert states.mean(0) == pytest.approx(np.zeros(32), abs=1e-5)
    assert states.std(0, correction=0) == pytest.approx(np.ones(32), abs=1e-4)
    raw = [probes.all_means(body, part).detach() for part in (train, dev)]
    assert torch.allclose(dev_states, (raw[1] - raw[0].mean(0)) / raw[0].std(0, correction=0), atol=1e-4)


def test_a_frozen_probe_learns_what_is_linear_in_the_states():
    checkpoint, data = AnyBody("bert"), sentences(400)
    encoded = probes._encode(checkpoint.tokenizer, None, data, len(data), 0)
    along = probes.all_means(checkpoint.model().base_model, encoded).detach()[:, 0]
    linear = LabelledSentences(
        "linear", data.frame.with_columns(label=pl.Series((along > along.median()).long().numpy()))
    )
    frame = FineTuning(linear, **QUICK | {"steps": 200}, frozen=True)(checkpoint)
    assert frame["source"].unique(maintain_order=True).to_list() == ["frozen", "majority"]
    assert frame.filter(split="test", source="frozen")["accuracy"].min() > 0.85
    chance = FineTuning(data, **QUICK | {"steps": 200}, frozen=True)(checkpoint)
    assert chance.filter(split="test", source="frozen")["accuracy"].mean() < 0.8  # a cat is not linear in them


def test_sentences_longer_than_the_model_are_cut_and_counted():
    data = sentences()
    frame = FineTuning(data, **QUICK | {"steps": 1})(AnyBody("bert", positions=8))
    for name, part in zip(("dev", "test"), data.splits(0)[1:], strict=True):
        long = part.frame["text"].str.split(" ").list.len() + 2 > 8
        assert set(frame.filter(split=name)["truncated"]) == {long.sum()}
        assert long.sum() > 0
    assert FineTuning(data, **QUICK | {"steps": 1})(AnyBody("bert"))["truncated"].sum() == 0


def test_no_more_examples_are_used_than_asked_for():
    train, dev, test = probes.encode_splits(AnyBody("bert").tokenizer, None, sentences(), (20, 10, 5), 0)
    assert [len(part.ids) for part in (train, dev, test)] == [20, 10, 5]


def test_two_sentences_are_read_as_the_tokenizer_joins_them():
    second = pl.Series(["the old man"] * 200)
    train, _, _ = encoded(AnyBody("bert"), sentences(second=second))
    text = sentences().splits(0).train.frame["text"][0]
    tokens = AnyBody("bert").tokenizer.convert_ids_to_tokens(train.ids[0])
    assert [token for token in tokens if token not in ("[CLS]", "[SEP]")] == [*text.split(" "), "the", "old", "man"]
    assert train.second[0].sum() >= 3


def test_grades_are_fitted_by_least_squares():
    data = sentences(400, label=lambda words: 1.5 * ("cat" in words) + 2)
    data = LabelledSentences("grades", data.frame, metrics=("pearson", "spearman"))
    frame = FineTuning(data, **QUICK)(AnyBody("bert"))
    assert frame["accuracy"].null_count() == len(frame)
    assert frame.filter(split="test", source="fine-tuned")["score"].min() > 0.6
    assert frame.filter(source="majority")["score"].to_list() == [0.0]


def test_batches_hold_every_example_once_an_epoch():
    train, _, _ = encoded(AnyBody("bert"), sentences(100))
    batches = list(probes._batches(train, 7, 31, seed=1))
    assert [len(batch) for batch in batches] == [7] * 31
    counts = np.bincount(np.concatenate(batches), minlength=len(train.ids))
    assert set(counts) == {3, 4}  # 70 examples, 217 places


def test_the_rate_rises_then_falls_and_is_never_nothing():
    shares = [probes._share_of_rate(step, 60) for step in range(60)]
    assert shares.index(1.0) == 5
    assert np.diff(shares)[:5].min() > 0
    assert np.diff(shares)[6:].max() < 0
    assert shares[-1] > 0
    assert probes._share_of_rate(0, 1) == 1.0


def test_a_training_that_diverges_is_not_chosen():
    frame = FineTuning(sentences(), **QUICK | {"learning_rates": (1e-2, 1e30)})(AnyBody("bert"))
    assert frame.filter(split="test", source="fine-tuned")["lr"].unique().to_list() == [1e-2]


def test_bad_input_is_refused():
    refuses("needs a learning rate", lambda: FineTuning(sentences(), learning_rates=())(AnyBody("bert")))
    refuses("at least one trial, step", lambda: FineTuning(sentences(), steps=0)(AnyBody("bert")))
    with pytest.raises(UserError, match="cats train: the tokenizer gives no token for"):
        FineTuning(sentences(), **QUICK)(AnyBody("bert", positions=2))


def test_a_run_is_traced_and_its_pairs_are_read_word_by_word(tiny_run):
    pairs = tiny_run.pairs("grammar", 20)
    probe = FineTuning(acceptability(pairs), trials=1, learning_rates=(1e-3,), steps=2)
    frame = trace(tiny_run, probe, steps=[0, 12], progress=False)
    assert frame.select("step", "split", "source").rows() == [
        (step, *keys)
        for step in (0, 12)
        for keys in (("dev", "fine-tuned"), ("test", "fine-tuned"), ("test", "majority"))
    ]
    assert frame.equals(trace(tiny_run, probe, steps=[0, 12], progress=False))
    text = MinimalPairs(pairs.name, pairs.frame, split_into_words=False)
    assert probe.key() != FineTuning(acceptability(text), trials=1, learning_rates=(1e-3,), steps=2).key()


@pytest.mark.parametrize("name", SCORES)
def test_scores_by_their_definitions(name):
    gold, predicted = np.array([1, 1, 1, 0, 0, 0, 1, 0]), np.array([1, 0, 1, 0, 1, 0, 1, 0])
    right, positives, true_negative = 3, 4, 3
    expected = {
        "accuracy": 6 / 8,
        "f1": 2 * (right / positives) * (right / 4) / (right / positives + right / 4),
        "matthews": (right * true_negative - 1 * 1) / np.sqrt(4 * 4 * 4 * 4),
        "pearson": np.corrcoef(gold, predicted)[0, 1],
        "spearman": np.corrcoef(gold, predicted)[0, 1],
    }
    floats = name in ("pearson", "spearman")
    gold, predicted = (gold.astype(float), predicted.astype(float)) if floats else (gold, predicted)
    assert SCORES[name](gold, predicted) == pytest.approx(expected[name])
    constant = np.zeros_like(predicted)
    assert SCORES[name](gold, constant) == (0.5 if name == "accuracy" else 0.0)
    if floats:
        assert SCORES[name](gold, 3 * gold + 1) == pytest.approx(1)
