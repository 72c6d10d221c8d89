"""Logits at chosen positions against the full logits, and the syntactic-attention penalty against a loop over arcs."""

import pytest
import torch
import transformers as hf
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, BertConfig, ModernBertConfig

from lmdynamics.corpora.grammar import Grammar
from lmdynamics.corpora.tokens import train_tokenizer
from lmdynamics.corpora.treebanks import Sentence, Treebank
from lmdynamics.errors import UserError
from lmdynamics.runs.trained import train
from lmdynamics.training.batches import TreeBatches, open_corpus, pad
from lmdynamics.training.objective import Trees, encode_trees, logits_at, penalty_sum
from lmdynamics.training.recipes import Regularizer, load_recipe
from tests.conftest import TINY, refuses
from tests.measurements.families import SIZE, VOCAB, tiny

BERT = hf.BertConfig(**SIZE)


@pytest.fixture(params=["bert", "roberta", "distilbert", "modernbert", "gpt2", "neox", "llama"])
def model(request):
    if request.param != "distilbert":
        return tiny(request.param, dtype=torch.float32)
    config = hf.DistilBertConfig(vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    return hf.DistilBertForMaskedLM(config).eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    input_ids = torch.randint(5, VOCAB, (3, 9))
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
    assert thin.shape == (int(selected.sum()), VOCAB)
    torch.testing.assert_close(thin, full)
    value = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert value.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(value[name], gradient, msg=name)


def test_no_mask_no_position_and_no_hook_left_behind(model, batch):
    input_ids, _, selected = batch
    before = model(input_ids=input_ids).logits
    assert logits_at(model, input_ids, None, torch.zeros_like(selected)).shape == (0, VOCAB)
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
    bare = tiny("bert", dtype=torch.float32)
    torch.testing.assert_close(
        logits_at(Wrapper(bare), input_ids, attention_mask, selected),
        logits_at(bare, input_ids, attention_mask, selected),
    )


def test_a_body_without_a_head_is_refused(batch):
    input_ids, attention_mask, selected = batch
    with pytest.raises(UserError, match="BertModel has no language-model head.*AutoModelForMaskedLM"):
        logits_at(hf.BertModel(BERT), input_ids, attention_mask, selected)


def test_a_head_that_mixes_positions_is_refused(batch):
    input_ids, attention_mask, selected = batch
    with pytest.raises(UserError, match=r"BertForSequenceClassification returned logits of shape \[3, 2\]"):
        logits_at(hf.BertForSequenceClassification(BERT), input_ids, attention_mask, selected)


WORDS = ("the", "unbelievable", "cats", "that", "she", "photographed", "slept", ".")
HEADS = (2, 2, 6, 5, 5, 2, -1, 6)
SENTENCES = (
    Sentence(WORDS, HEADS, ("x",) * 8),
    Sentence(WORDS[:3] + WORDS[6:], (2, 2, 3, -1, 3), ("x",) * 5),
    Sentence(("cats", "slept"), (1, -1), ("x",) * 2),
)


@pytest.fixture(scope="module")
def tokenizer():
    """Pieces of a few letters, so that words are split."""
    return train_tokenizer([" ".join(WORDS)], kind="wordpiece", vocab_size=36, lowercase=True, max_length=64)


def eager_model(tokenizer, kind="bert"):
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": tokenizer.pad_token_id}
    config = BertConfig(**size) if kind == "bert" else ModernBertConfig(**size, global_attn_every_n_layers=1)
    return AutoModelForMaskedLM.from_config(config, attn_implementation="eager").eval()


def naive(attentions, tokenizer, sentences, form, way):
    """Word by word, head by head: sum over the pieces attended to, mean over those attending; then γ, arc by arc."""
    values = []
    for row, sentence in enumerate(sentences):
        pieces = tokenizer(list(sentence.words), is_split_into_words=True).word_ids()
        of_word = [[t for t, word in enumerate(pieces) if word == i] for i in range(len(sentence))]
        for i, head in enumerate(sentence.heads):
            if head < 0:
                continue
            for a, b in {"head": [(i, head)], "children": [(head, i)], "both": [(i, head), (head, i)]}[way]:
                along = [
                    sum(layer[row, h, q, k] for k in of_word[b] for q in of_word[a]) / len(of_word[a])
                    for layer in attentions
                    for h in range(layer.shape[1])
                ]
                values.append(max(along) if form == "max" else sum(along))
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@pytest.mark.parametrize("form", ["max", "uniform"])
@pytest.mark.parametrize("way", ["both", "head", "children"])
def test_penalty_and_gradient_equal_a_naive_loop(tokenizer, kind, form, way):
    trees = encode_trees(Treebank("three", SENTENCES), tokenizer, 64)
    assert max(len(row) for row in trees.rows) > 10  # words are split
    ids, padded = pad(list(trees.rows), tokenizer.pad_token_id)
    links = trees.links(range(3), way)
    results = []
    for by_loop in (True, False):
        net = eager_model(tokenizer, kind)
        attentions = net.base_model(ids, attention_mask=~padded, output_attentions=True).attentions
        value = (
            naive(attentions, tokenizer, SENTENCES, form, way)
            if by_loop
            else penalty_sum(attentions, links, form) / links.arcs
        )
        value.backward()
        results.append((value, {n: p.grad for n, p in net.named_parameters() if p.grad is not None}))
    (expected, gradient), (result, gradients) = results
    torch.testing.assert_close(result, expected)
    assert gradient.keys() == gradients.keys()
    assert any(g.abs().max() > 1e-6 for g in gradient.values())
    for name in gradient:
        torch.testing.assert_close(gradients[name], gradient[name], rtol=1e-4, atol=1e-7)


def test_the_grammars_rows_and_its_treebank_have_the_same_links():
    grammar = Grammar()
    rows, heads = grammar.blocks_with_heads(50, 3)
    direct = Trees.from_words(rows, heads)
    by_words = encode_trees(grammar.treebank(50, 3), grammar.tokenizer(), 64)
    assert all((a == b).all() for a, b in zip(direct.rows, by_words.rows, strict=True))
    for name in ("row", "query", "key", "arc", "weight"):
        assert torch.equal(getattr(direct.links(range(50)), name), getattr(by_words.links(range(50)), name))


def test_a_step_draws_each_sentence_once(tokenizer):
    regularizer = Regularizer(stages=[[0, 1.0], [5, 0.0]], sentences=3)
    batches = TreeBatches(encode_trees(Treebank("three", SENTENCES), tokenizer, 64), regularizer, 0, 0)
    every = sorted(tuple(row.tolist()) for row in batches.trees.rows)
    for step in range(5):
        batch = batches[step]
        ids = [row[mask].tolist() for row, mask in zip(batch.ids, batch.attention_mask, strict=True)]
        assert sorted(map(tuple, ids)) == every
    assert batches[5] is None


def test_shares_of_several_processes_add_up(tokenizer):
    trees = encode_trees(Treebank("three", SENTENCES), tokenizer, 64)
    ids, padded = pad(list(trees.rows), tokenizer.pad_token_id)
    links, net = trees.links(range(3)), eager_model(tokenizer)
    attentions = net.base_model(ids, attention_mask=~padded, output_attentions=True).attentions
    total = penalty_sum(attentions, links, "max")
    parts = [penalty_sum([layer[p::2] for layer in attentions], links.share(p, 2), "max") for p in (0, 1)]
    torch.testing.assert_close(sum(parts), total)


@pytest.mark.parametrize("changes", [{"stages": 1.0}, {"stages": [[0, -1.0], [6, 0.5]], "form": "uniform"}])
def test_training_adds_the_penalty_to_the_loss(changes):
    """Twelve steps against a plain loop that takes full logits and the penalty word by word."""
    recipe = load_recipe("grammar-mlm", overrides={**TINY, **changes})
    run = train("grammar-mlm", overrides={**TINY, **changes}, name="penalised", progress=False)
    from lmdynamics.training.batches import Batches
    from lmdynamics.training.loop import build_model, build_optimizer
    from lmdynamics.training.masking import Masker

    corpus = open_corpus(recipe)
    torch.manual_seed(0)
    net = build_model(recipe, corpus).train()
    net.set_attn_implementation("eager")
    optimizer = build_optimizer(recipe, net)
    masker, penalty = Masker.for_tokenizer(corpus.tokenizer), recipe.regularizer
    batches = Batches(corpus.train, 8, 0, 0, masker, trees=corpus.trees, regularizer=penalty)
    penalties = []
    for step in range(12):
        batch = batches[step]
        output = net(input_ids=batch.ids, attention_mask=batch.attention_mask, output_attentions=True)
        labels = batch.targets.masked_fill(~batch.selected, -100)
        along = torch.stack(
            [
                torch.stack([layer[r, :, q, k] for layer in output.attentions]).flatten()
                for r, q, k in zip(batch.links.row, batch.links.query, batch.links.key, strict=True)
            ]
        )
        penalty = along.amax(1).mean() if recipe.regularizer.form == "max" else along.sum(1).mean()
        loss = F.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
        (loss + recipe.regularizer.strength_at(step) * penalty).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.training.lr_at(step)
        optimizer.step()
        optimizer.zero_grad()
        penalties.append(penalty.item())
    assert run.log["penalty"].to_list() == pytest.approx(penalties, rel=1e-4)
    last = run[12].model().state_dict()
    for name, value in net.state_dict().items():
        if name.endswith("key.bias"):  # softmax cancels it: its gradient is rounding, which AdamW blows up
            continue
        torch.testing.assert_close(last[name], value, rtol=1e-3, atol=1e-5)


def test_suppression_lowers_attention_on_arcs_and_promotion_raises_it():
    common = {**TINY, "training.steps": 100, "corpus.sentences": 800, "training.lr": 0.02}
    ends = [
        train("grammar-mlm", overrides={**common, "stages": strength}, name=f"s{strength}", progress=False).log
        for strength in (1.0, -1.0)
    ]
    low, high = (log["penalty"][-5:].mean() for log in ends)
    assert low < 0.5 * ends[0]["penalty"][0]
    assert high > 1.5 * ends[1]["penalty"][0]


def test_released_training_has_no_penalty_and_equals_sdpa(tmp_path):
    run = train("grammar-mlm", overrides={**TINY, "stages": [[0, 1.0], [4, 0.0]]}, name="released", progress=False)
    assert run.log["penalty"].is_null().to_list() == [False] * 4 + [True] * 8


def test_stages_set_the_strength_by_step():
    stages = Regularizer(stages=[[10, 1.0], [20, -0.5], [30, 0.0]])
    assert [stages.strength_at(step) for step in (0, 9, 10, 19, 20, 29, 30, 999)] == [0, 0, 1, 1, -0.5, -0.5, 0, 0]


def test_trees_of_a_treebank_can_be_mixed_into_plain_text(tmp_path):
    lines = ["# text = cats slept", "1\tcats\t_\t_\t_\t_\t2\tnsubj\t_\t_", "2\tslept\t_\t_\t_\t_\t0\troot\t_\t_"]
    (tmp_path / "two.conllu").write_text("\n".join(lines) + "\n\n")
    (tmp_path / "text.txt").write_text("\n\n".join(["the cats slept and the dogs barked again"] * 300))
    text = {"source": str(tmp_path / "text.txt"), "vocab_size": 60, "block_size": 16}
    overrides = {**{f"corpus.{k}": v for k, v in text.items()}, "hidden_size": 16, "num_hidden_layers": 2}
    overrides |= {"num_attention_heads": 2, "intermediate_size": 32, "steps": 30, "batch_size": 8, "lr": 0.01}
    overrides |= {"stages": -1.0, "trees": str(tmp_path / "two.conllu"), "warmup_steps": 2}
    log = train("english-mlm", overrides=overrides, name="mixed", progress=False).log
    assert log["penalty"][-5:].mean() > 1.5 * log["penalty"][0]


def test_shuffled_trees_keep_their_shape_and_few_of_their_arcs():
    train_rows = {"corpus.sentences": 400, "held_out": 20, "stages": 1.0}
    gold = open_corpus(load_recipe("grammar-mlm", overrides=train_rows)).trees
    shuffled = open_corpus(load_recipe("grammar-mlm", overrides={**train_rows, "trees": "shuffled"})).trees
    again = open_corpus(load_recipe("grammar-mlm", overrides={**train_rows, "trees": "shuffled"})).trees
    assert shuffled.head.ids.tolist() == again.head.ids.tolist()
    kept = arcs = 0
    for i in range(400):
        before, after, words = gold.head[i][1:-1], shuffled.head[i][1:-1], gold.word[i][1:-1]
        assert shuffled.head[i][[0, -1]].tolist() == [-1, -1]  # [CLS] and [SEP]
        assert _shape(before) == _shape(after), words
        kept, arcs = kept + int(((before == after) & (before >= 0)).sum()), arcs + int((before >= 0).sum())
    mean_length = len(gold.head.ids) / 400 - 2
    assert kept / arcs < 1.5 / mean_length  # as by chance; with the heads alone permuted it is a third


def _shape(heads) -> list[tuple[int, int]]:
    """Depth and number of children of each node, sorted: the same for trees of the same shape."""

    def depth(word: int) -> int:
        return 0 if heads[word] < 0 else 1 + depth(heads[word])

    return sorted((depth(word), int((heads == word).sum())) for word in range(len(heads)))


def test_text_without_trees_is_refused_with_advice():
    with pytest.raises(UserError, match=r"set regularizer.trees to a treebank \(a name or a CoNLL-U file\)"):
        load_recipe("english-mlm", overrides={"stages": 1.0})


def test_a_model_that_hides_its_attention_is_noticed(tokenizer):
    net = eager_model(tokenizer)
    net.set_attn_implementation("sdpa")
    ids = torch.tensor([[2, 5, 6, 3]])
    refuses("returned attention for 0 of 2 layers", logits_at, net, ids, None, ids > 4, [])
