"""A model with more or fewer rows than its tokenizer has tokens."""

import math

import pytest
import torch
import transformers as hf

from lmdynamics import charts
from lmdynamics.corpora.grammar import Grammar
from lmdynamics.errors import UserError
from lmdynamics.hub.suites import open_run
from lmdynamics.measurements.dissent import Dissent
from lmdynamics.measurements.losses import HeldOutLoss, PairAccuracy, TokenLosses
from lmdynamics.measurements.syntax import HeadScores
from lmdynamics.measurements.trace import trace
from tests.conftest import refuses

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
GRAMMAR = Grammar()
TREES = GRAMMAR.treebank(20, 0)
TOKENS = len(GRAMMAR.tokenizer())
KINDS = {"mlm": hf.BertForMaskedLM, "clm": hf.LlamaForCausalLM}


def run_with(tmp_path, objective: str, rows: int):
    """A run of one checkpoint whose untrained model has `rows` rows; all its logits are equal."""
    kind = KINDS[objective]
    model = kind(kind.config_class(vocab_size=rows, **SIZE))
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    folder = tmp_path / f"{objective}-{rows}"
    model.save_pretrained(folder / "checkpoint-500")
    GRAMMAR.tokenizer().save_pretrained(folder / "checkpoint-500")
    return open_run(folder)


@pytest.mark.parametrize("objective", KINDS)
def test_unused_rows_are_counted_and_reported(tmp_path, capsys, objective):
    run = run_with(tmp_path, objective, TOKENS + 28)
    blocks = run.held_out(TREES)
    held_out = trace(run, HeldOutLoss(blocks), progress=False)
    assert held_out["unused_rows"].to_list() == [28]
    assert held_out["loss"][0] == pytest.approx(math.log(TOKENS + 28), abs=1e-4)  # and not log(TOKENS)
    for measurement in (TokenLosses(blocks), Dissent(blocks), PairAccuracy(GRAMMAR.pairs(2, 0))):
        measurement(run[500])
    messages = [line for line in capsys.readouterr().err.splitlines() if "output rows" in line]
    assert messages == [
        f"lmdynamics: {run.name}: the model has {TOKENS + 28} output rows, its tokenizer {TOKENS} tokens; the 28 "
        "unused rows take part in every probability, and so in loss, pair scores and dissent"
    ]
    caption = " ".join(charts.loss_over_training(run.log, held_out).title.subtitle)
    assert "28 of the model's output rows belong to no token of its tokenizer, but get probability too" in caption


def test_as_many_rows_as_tokens_need_no_word(tmp_path, capsys):
    run = run_with(tmp_path, "mlm", TOKENS)
    held_out = trace(run, HeldOutLoss(run.held_out(TREES)), progress=False)
    assert held_out["unused_rows"].to_list() == [0]
    assert "rows" not in capsys.readouterr().err
    assert not any("output rows" in line for line in charts.loss_over_training(run.log, held_out).title.subtitle)


@pytest.mark.parametrize("objective", KINDS)
@pytest.mark.parametrize("subject", ["loss", "dissent", "heads", "pairs"])
def test_a_token_without_a_row_is_refused_in_one_line(tmp_path, objective, subject):
    run = run_with(tmp_path, objective, 28)
    measurement = {
        "loss": lambda: HeldOutLoss(run.held_out(TREES)),
        "dissent": lambda: Dissent(run.held_out(TREES)),
        "heads": lambda: HeadScores(TREES, 1),
        "pairs": lambda: PairAccuracy(GRAMMAR.pairs(2, 0)),
    }[subject]()
    refuses(r"has the token id \d+, the model has embeddings for ids 0 to 27", measurement, run[500])


def test_a_masked_model_needs_a_row_for_every_token(tmp_path):
    run = run_with(tmp_path, "mlm", TOKENS - 1)
    blocks = run.held_out(TREES)
    blocks = blocks.take([i for i in range(len(blocks)) if blocks[i].max() < TOKENS - 1])
    with pytest.raises(UserError, match=f"its tokenizer has {TOKENS} tokens, the model embeddings for {TOKENS - 1}"):
        HeldOutLoss(blocks)(run[500])
    causal = run_with(tmp_path, "clm", TOKENS - 1)  # a token that does not occur needs none
    assert HeldOutLoss(blocks)(causal[500])["unused_rows"].item() == 0
