"""Logits at chosen positions against the full logits, values and gradients, for each architecture in use."""

import pytest
import torch
import transformers as hf

from lmdynamics.errors import UserError
from lmdynamics.training.objective import logits_at

SMALL = {
    "vocab_size": 37,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "bert": (hf.BertForMaskedLM, hf.BertConfig(**SMALL)),
    "roberta": (hf.RobertaForMaskedLM, hf.RobertaConfig(**SMALL)),
    "distilbert": (
        hf.DistilBertForMaskedLM,
        hf.DistilBertConfig(vocab_size=37, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    ),
    "modernbert": (hf.ModernBertForMaskedLM, hf.ModernBertConfig(**SMALL, cls_token_id=1, sep_token_id=2)),
    "gpt2": (
        hf.GPT2LMHeadModel,
        hf.GPT2Config(vocab_size=37, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2),
    ),
    "gpt_neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**SMALL)),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**SMALL)),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    kind, config = MODELS[request.param]
    return kind(config).eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    input_ids = torch.randint(5, 37, (3, 9))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 6:] = 0
    selected = (torch.rand(3, 9) < 0.4) & attention_mask.bool()
    return input_ids, attention_mask, selected


def test_equals_the_full_logits_and_their_gradients(model, batch):
    input_ids, attention_mask, selected = batch
    full = model(input_ids=input_ids, attention_mask=attention_mask).logits[selected]
    full.square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    thin = logits_at(model, input_ids, attention_mask, selected)
    thin.square().sum().backward()
    assert thin.shape == (int(selected.sum()), 37)
    torch.testing.assert_close(thin, full)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_no_mask_no_position_and_no_hook_left_behind(model, batch):
    input_ids, _, selected = batch
    before = model(input_ids=input_ids).logits
    assert logits_at(model, input_ids, None, torch.zeros_like(selected)).shape == (0, 37)
    torch.testing.assert_close(logits_at(model, input_ids, None, selected), before[selected])
    torch.testing.assert_close(model(input_ids=input_ids).logits, before)


def test_sees_through_a_wrapper(batch):
    class Wrapper(torch.nn.Module):  # as DistributedDataParallel does: the model is in `.module`
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **arguments):
            return self.module(**arguments)

    input_ids, attention_mask, selected = batch
    kind, config = MODELS["bert"]
    bare = kind(config).eval()
    torch.testing.assert_close(
        logits_at(Wrapper(bare), input_ids, attention_mask, selected),
        logits_at(bare, input_ids, attention_mask, selected),
    )


def test_a_body_without_a_head_is_refused(batch):
    input_ids, attention_mask, selected = batch
    with pytest.raises(UserError, match="BertModel has no language-model head.*AutoModelForMaskedLM"):
        logits_at(hf.BertModel(MODELS["bert"][1]), input_ids, attention_mask, selected)


def test_a_head_that_mixes_positions_is_refused(batch):
    input_ids, attention_mask, selected = batch
    with pytest.raises(UserError, match=r"BertForSequenceClassification gave logits of shape \[3, 2\]"):
        logits_at(hf.BertForSequenceClassification(MODELS["bert"][1]), input_ids, attention_mask, selected)
