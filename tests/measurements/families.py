"""Tiny random models of several families; the plainest loops: gradients of single tokens, heads read word by word."""

import numpy as np
import pytest
import torch
import transformers as hf

from lmdynamics.measurements.losses import Predictions
from lmdynamics.measurements.per_token_gradients import Tape

VOCAB = 40
SIZE = {
    "vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 32, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCAB, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32, "initializer_range": 0.3,
    "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
CAUSAL = {
    "gpt2": (hf.GPT2Config, GPT2),
    "neox": (hf.GPTNeoXConfig, SIZE),
    "llama": (hf.LlamaConfig, SIZE),
    "olmo2": (hf.Olmo2Config, SIZE),
    # as published in some sizes: heads that share keys and values, and a residual that is not parallel
    "llama-grouped": (hf.LlamaConfig, SIZE | {"num_key_value_heads": 2}),
    "olmo2-grouped": (hf.Olmo2Config, SIZE | {"num_key_value_heads": 1}),
    "neox-sequential": (hf.GPTNeoXConfig, SIZE | {"use_parallel_residual": False}),
}
MASKED = {
    "bert": (hf.BertConfig, SIZE),
    "roberta": (hf.RobertaConfig, SIZE),
    "modernbert": (hf.ModernBertConfig, SIZE | {"cls_token_id": 2, "sep_token_id": 3}),
}
FAMILIES = {**CAUSAL, **MASKED}
EACH = pytest.mark.parametrize("kind", FAMILIES)
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def tiny(kind: str, tied: bool = True, dtype=torch.float64, seed: int = 0, attention: str = "eager"):
    """A random model in evaluation mode; biases and norms, too, are random."""
    configuration, options = FAMILIES[kind]
    torch.manual_seed(seed)
    of_kind = hf.AutoModelForMaskedLM if kind in MASKED else hf.AutoModelForCausalLM
    config = configuration(**options, tie_word_embeddings=tied)
    model = of_kind.from_config(config, attn_implementation=attention).eval().to(torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.to(dtype)


def tiny_tape(model, kind: str, rows: int = 3, time: int = 9, padded: bool = False, seed: int = 0) -> Tape:
    """Random rows with what is predicted in them: next tokens, or a third of the tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCAB, (rows, time), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    if padded:
        for row in range(1, rows):
            mask[row, time - 2 * row :] = False
        ids = ids.where(mask, 0)
    if kind in MASKED:
        selected = mask & (torch.rand(ids.shape, generator=generator) < 0.4)
        selected[0, 1] = True
    else:
        selected = mask.roll(-1, dims=1)
        selected[:, -1] = False
    gold = torch.randint(4, VOCAB, (int(selected.sum()),), generator=generator)
    return Tape(model, Predictions(ids, mask if padded else None, selected, gold))


def random_update(model, seed: int = 0, size: float = 1e-3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
        for name, p in model.named_parameters()
    }


def naive_gradients(tape: Tape) -> list[dict[str, torch.Tensor]]:
    """One backward pass a token."""
    names, parameters = zip(*tape.model.named_parameters(), strict=True)
    return [
        dict(zip(names, torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True), strict=True))
        for loss in tape.losses
    ]


def given_as_words(tokenizer, words):
    """Token ids of a sentence and the word of each, as the tokenizer tells."""
    encoded = tokenizer(list(words), is_split_into_words=True)
    return encoded["input_ids"], encoded.word_ids(0)


def word_matrices(model, tokenizer, words, tokenize=given_as_words):
    """Word-level attention of one sentence, shape [layers, heads, words, words]."""
    ids, of_word = tokenize(tokenizer, words)
    with torch.no_grad():
        output = model(input_ids=torch.tensor([ids]), output_attentions=True)
    pieces = [[t for t, word in enumerate(of_word) if word == w] for w in range(len(words))]
    result = []
    for layer in output.attentions:
        for head in layer[0].double().numpy():
            matrix = np.zeros((len(words), len(words)))
            for i, queries in enumerate(pieces):
                for j, keys in enumerate(pieces):
                    if i != j:
                        matrix[i, j] = np.mean([sum(head[q, k] for k in keys) for q in queries])
            result.append(matrix)
    return np.array(result).reshape(len(output.attentions), -1, len(words), len(words))


def head_scores(model, tokenizer, treebank, relations, tokenize=given_as_words):
    """{(relation, layer, head, direction): (count, right, weight)} over all sentences."""
    scores = {}
    for sentence in treebank:
        matrices = word_matrices(model, tokenizer, sentence.words, tokenize)
        for word, (head, relation) in enumerate(zip(sentence.heads, sentence.relations, strict=True)):
            if head < 0 or relation not in relations:
                continue
            for layer, of_layer in enumerate(matrices):
                for number, matrix in enumerate(of_layer):
                    for direction, row in (("dependent→head", matrix[word]), ("head→dependent", matrix[:, word])):
                        right = row.max() > 0 and int(np.argmax(row)) == head
                        count, hits, weight = scores.get((relation, layer, number, direction), (0, 0, 0.0))
                        scores[relation, layer, number, direction] = (count + 1, hits + right, weight + row[head])
    return scores
