"""Gradient dissent against autograd, and what must hold at the logits."""

import numpy as np
import polars as pl
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lmdynamics.corpora.tokens import TokenRows
from lmdynamics.errors import UserError
from lmdynamics.measurements import dissent as module
from lmdynamics.measurements.dissent import Dissent, dissent
from lmdynamics.measurements.losses import TokenLosses, prediction_batches
from tests.conftest import refuses
from tests.measurements.conftest import wordpiece
from tests.measurements.families import MASKED, SIZE, tiny


class Small:
    """What measurements see of a checkpoint."""

    tokenizer, run_name = wordpiece(), "small"

    def __init__(self, kind: str, tied: bool = True, model: torch.nn.Module | None = None):
        self.objective = "mlm" if kind in MASKED else "rts" if kind == "classifier" else "clm"
        self._model = (model or tiny(kind, tied, torch.float32)).eval()

    def model(self, attention: str = "sdpa", device: str = "cpu"):
        return self._model.to(device)


@pytest.fixture(scope="module")
def blocks() -> TokenRows:
    random = np.random.default_rng(0)
    return TokenRows.from_rows([[2, *random.integers(5, 24, n), 3] for n in [20, 5, 26, 12] * 20])


def by_autograd(hidden, weight, gold, bias):
    """Attractive and repulsive gradients of each token's loss, from their logits alone, p held fixed."""
    h = hidden.clone().requires_grad_()
    logits = F.linear(h, weight, bias)
    p, right = logits.softmax(1).detach(), F.one_hot(gold, len(weight)).bool()
    attractive = ((p - 1) * logits)[right].sum()
    repulsive = (p * logits)[~right].sum()
    parts = [torch.autograd.grad(part, h, retain_graph=True)[0] for part in (attractive, repulsive)]
    return *parts, torch.autograd.grad(F.cross_entropy(logits, gold, reduction="sum"), h)[0]


def random_inputs(tokens=40, vocab=23, width=8, scale=1.0, seed=0):
    torch.manual_seed(seed)
    hidden, weight = torch.randn(tokens, width).double() * scale, torch.randn(vocab, width).double()
    return hidden, weight, torch.randint(vocab, (tokens,)), torch.randn(vocab).double()


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("biased", [False, True])
def test_both_parts_equal_autograd(scale, biased):
    hidden, weight, gold, bias = random_inputs(scale=scale)
    bias = bias if biased else None
    attractive, repulsive, total = by_autograd(hidden, weight, gold, bias)
    torch.testing.assert_close(attractive + repulsive, total)
    result = dissent(hidden, weight, gold, bias)
    torch.testing.assert_close(result.probability, F.linear(hidden, weight, bias).softmax(1)[range(40), gold])
    torch.testing.assert_close(result.norm_hidden, hidden.norm(dim=1))
    torch.testing.assert_close(result.norm_attractive, attractive.norm(dim=1))
    torch.testing.assert_close(result.norm_repulsive, repulsive.norm(dim=1))
    torch.testing.assert_close(result.dissent, F.cosine_similarity(attractive, repulsive, eps=0))
    torch.testing.assert_close(result.cos_hidden_attractive, F.cosine_similarity(hidden, attractive, eps=0))
    torch.testing.assert_close(result.cos_hidden_repulsive, F.cosine_similarity(hidden, repulsive, eps=0))


def test_chunks_do_not_matter(monkeypatch):
    hidden, weight, gold, bias = random_inputs()
    total = dissent(hidden, weight, gold, bias)
    monkeypatch.setattr(module, "MAX_LOGITS", 7 * len(weight))
    for expected, chunked in zip(total, dissent(hidden, weight, gold, bias), strict=True):
        torch.testing.assert_close(expected, chunked)


@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=12),
    st.integers(0, 11),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_at_the_logits_the_parts_do_not_meet(logits, gold, dtype):
    """With U the identity, the hidden state is the logits."""
    gold = gold % len(logits)
    h = torch.tensor([logits], dtype=dtype)
    result = dissent(h, torch.eye(len(logits), dtype=dtype), torch.tensor([gold]))
    other_exponentials = np.exp([x - max(logits) for i, x in enumerate(logits) if i != gold])
    total = sum(np.exp(x - max(logits)) for x in logits)
    assert float(result.norm_attractive) == pytest.approx(other_exponentials.sum() / total, rel=1e-4)
    assert float(result.norm_repulsive) == pytest.approx(np.linalg.norm(other_exponentials) / total, rel=1e-4)
    assert float(result.dissent) == 0


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 10))
def test_cosines_and_probabilities_stay_in_their_range(seed, vocab, width):
    result = dissent(*random_inputs(6, vocab, width, scale=3.0, seed=seed))
    assert ((result.probability >= 0) & (result.probability <= 1)).all()
    for cosine in result[4:]:
        assert (cosine.abs() <= 1).all()


@pytest.mark.parametrize("margin", [20.0, 60.0, 300.0])
def test_a_sure_model_keeps_its_digits(margin):
    """1 - p_1 is far below the rounding of p_1: the parts shrink, their directions stay."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.5, 0.2]])
    result = dissent(torch.tensor([[margin, 0.0]]), weight, torch.tensor([0]))
    assert result.probability.item() == 1
    assert result.norm_attractive.item() == pytest.approx(np.exp(-margin), rel=1e-4, abs=1e-44)
    assert result.dissent.item() == pytest.approx(0, abs=1e-4)  # token 1 is the only other that counts
    assert result.cos_hidden_attractive.item() == -1
    assert result.cos_hidden_repulsive.item() == pytest.approx(0, abs=1e-4)


def test_two_tokens_of_opposite_rows_dissent_not_at_all_and_of_equal_rows_wholly():
    h, gold = torch.randn(5, 3), torch.zeros(5, dtype=torch.long)
    row = torch.tensor([0.3, -1.0, 2.0])
    torch.testing.assert_close(dissent(h, torch.stack([row, -row]), gold).dissent, torch.ones(5))
    torch.testing.assert_close(dissent(h, torch.stack([row, row]), gold).dissent, -torch.ones(5))


def test_a_vector_of_zeros_has_no_direction():
    weight = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    result = dissent(torch.zeros(1, 2), weight, torch.tensor([0]))
    assert [float(x) for x in result[:4]] == pytest.approx([0.5, 0, 0, 0.5 * 2**0.5])
    assert all(cosine.isnan().all() for cosine in result[4:])


def test_no_tokens_give_no_rows():
    hidden, weight, gold, bias = random_inputs(tokens=0)
    assert [len(x) for x in dissent(hidden, weight, gold, bias)] == [0] * 8


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gpt2", "neox"])
def test_each_architecture_equals_autograd_row_by_row(kind, tied, blocks, monkeypatch):
    checkpoint = Small(kind, tied)
    frame = Dissent(blocks, seed=1)(checkpoint)
    losses = TokenLosses(blocks, seed=1)(checkpoint)
    assert frame.select("row", "position", "token").equals(losses.select("row", "position", "token"))
    np.testing.assert_allclose(-np.log(frame["probability"]), losses["loss"], rtol=1e-4, atol=1e-5)

    model, expected = checkpoint.model(), []
    head, calls = model.get_output_embeddings(), []

    def open_up(module, arguments):
        calls.append(arguments[0].detach().requires_grad_())
        return (calls[-1],)

    hook = head.register_forward_pre_hook(open_up)
    for batch in prediction_batches(checkpoint, blocks, 0.15, 1, 64):
        gold = iter(batch.gold)
        masks = batch.ids == batch.ids if batch.attention_mask is None else batch.attention_mask
        for row, mask, selected in zip(batch.ids, masks, batch.selected, strict=True):
            logits = model(input_ids=row[mask][None]).logits[0]
            for t in selected.nonzero()[:, 0]:
                right = next(gold)
                loss = F.cross_entropy(logits[t][None], right[None])
                total = torch.autograd.grad(loss, calls[-1], retain_graph=True)[0][0, t]
                attractive = (logits[t].softmax(0)[right] - 1).detach() * head.weight[right].detach()
                repulsive, h = total - attractive, calls[-1][0, t].detach()
                cosines = [
                    F.cosine_similarity(a, b, dim=0)
                    for a, b in ((attractive, repulsive), (h, attractive), (h, repulsive))
                ]
                expected.append([float(x) for x in (h.norm(), attractive.norm(), repulsive.norm(), *cosines)])
    hook.remove()
    result = frame.drop("row", "position", "token", "probability", "dissent_control").to_numpy()
    np.testing.assert_allclose(result, expected, rtol=2e-3, atol=2e-4)

    monkeypatch.setattr(module, "MAX_LOGITS", 1)  # one row, one token at a time
    recomputed = Dissent(blocks, seed=1)(checkpoint)
    np.testing.assert_allclose(recomputed.to_numpy(), frame.to_numpy(), rtol=1e-3, atol=1e-4)


def test_the_frame_names_the_predicted_token_and_has_null_for_no_direction(blocks):
    checkpoint = Small("llama", tied=False)
    with torch.no_grad():
        checkpoint.model().lm_head.weight[7] = 0
    frame = Dissent(blocks)(checkpoint)
    numbers = ["probability", "norm_hidden", "norm_attractive", "norm_repulsive", "dissent"]
    numbers += ["cos_hidden_attractive", "cos_hidden_repulsive", "dissent_control"]
    assert dict(frame.schema) == dict.fromkeys(["row", "position", "token"], pl.Int32) | dict.fromkeys(
        numbers, pl.Float32
    )
    assert frame["dissent"].is_null().equals(frame["token"] == 7)
    assert frame["cos_hidden_attractive"].is_null().equals(frame["token"] == 7)
    assert frame["cos_hidden_repulsive"].null_count() == 0
    assert not frame.select(pl.any_horizontal(pl.col(pl.Float32).is_nan())).to_series().any()


def test_what_is_no_linear_head_is_refused_by_name(blocks):
    granite = hf.GraniteForCausalLM(hf.GraniteConfig(**SIZE, logits_scaling=2.0))
    classifier = hf.BertForTokenClassification(hf.BertConfig(**SIZE))
    with pytest.raises(UserError, match="GraniteForCausalLM changes its logits after the output embedding"):
        Dissent(blocks)(Small("granite", model=granite))
    refuses(
        "BertForTokenClassification has no output embedding",
        lambda: Dissent(blocks)(Small("classifier", model=classifier)),
    )
    checkpoint = Small("llama", tied=False)
    checkpoint.model().lm_head = torch.nn.Sequential(torch.nn.Linear(16, 29))
    refuses("LlamaForCausalLM has a Sequential for its output embedding", lambda: Dissent(blocks)(checkpoint))
    refuses("1 held-out rows have no token to predict", lambda: Dissent(TokenRows.from_rows([[2, 3]]))(Small("bert")))


def test_the_control_pairs_an_attraction_with_the_repulsion_elsewhere():
    """Where competitors resemble the right token, dissent is deep in its own context only."""
    torch.manual_seed(0)
    topics = torch.eye(8).repeat_interleave(5, 0)  # 8 topics of 5 tokens: rows of U of one topic are alike
    weight = topics + 0.1 * torch.randn(40, 8)
    gold = torch.randint(40, (400,))
    result = dissent(4 * topics[gold], weight, gold, seed=1)  # the model knows the topic, not the token
    assert result.dissent.mean() < -0.9
    assert abs(result.dissent_control.mean()) < 0.3
    attractive, repulsive, _ = by_autograd(4 * topics[gold], weight, gold, None)
    permutation = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(result.dissent_control, F.cosine_similarity(attractive, repulsive[permutation], eps=0))
    assert torch.equal(result.dissent_control, dissent(4 * topics[gold], weight, gold, seed=1).dissent_control)


def test_what_all_rows_share_shows_in_the_control():
    torch.manual_seed(0)
    weight = torch.randn(40, 8) + 10
    result = dissent(torch.randn(200, 8), weight, torch.randint(40, (200,)))
    assert result.dissent_control.max() < -0.9
