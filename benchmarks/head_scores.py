"""Scoring every attention head of a BERT-base against gold trees: what it adds, and how a loop over heads compares.

    python benchmarks/head_scores.py [--treebank ewt] [--sentences 500] [--repeats 3]

Three things are timed in turn, on the same random BERT-base and the same sentences:

- bare: the model's body alone on our batches, attention computed the same way (eager) and not read;
- ours: the same batches, every head scored (word-level attention, both directions, predictions and gold weights);
- published: the same attentions scored as Clark et al. and Chen et al. do it: per sentence and head, a word-level
  matrix is made, and per dependent its largest entry is compared with the gold head, relation by relation.

Reported: what scoring adds to the forward pass, and how many times faster the scoring part is.
"""

import argparse
import statistics
import sys
import time

import numpy as np
import torch
import transformers as hf

from lmdynamics.corpora.tokens import train_tokenizer
from lmdynamics.corpora.treebanks import open_treebank
from lmdynamics.measurements.inputs import encode_treebank, gold_heads
from lmdynamics.measurements.syntax import attentions, parents


def published_scores(attention, of_word, gold, relation, right):
    """One sentence, as the published scripts do it, but with the comparison in numpy, which they do word by word.

    `attention` has shape [layers, heads, tokens, tokens]; adds to `right`, shape [layers, heads, 2, relations].
    """
    pieces = [[t for t, word in enumerate(of_word) if word == w] for w in range(len(gold))]
    inside = np.array([t for t, word in enumerate(of_word) if word is not None])
    whole = all(len(p) == 1 for p in pieces)
    for layer in range(attention.shape[0]):
        for head in range(attention.shape[1]):
            matrix = attention[layer, head]
            if whole:
                matrix = matrix[np.ix_(inside, inside)]
            else:
                matrix = np.stack([matrix[:, p].sum(1) for p in pieces], axis=1)
                matrix = np.stack([matrix[p].mean(0) for p in pieces])
            np.fill_diagonal(matrix, 0)
            for direction, parent in enumerate((matrix.argmax(1), matrix.argmax(0))):
                hits = np.bincount(relation, parent == gold, minlength=right.shape[-1])
                right[layer, head, direction] += hits.astype(int)


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--treebank", default="ewt")
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=6000)
    options = parser.parse_args()

    full = open_treebank(options.treebank)
    # a WordPiece of the treebank's own words, in place of BERT's: about as many words are split
    tokenizer = train_tokenizer((" ".join(s.words) for s in full), "wordpiece", options.vocabulary, True, 512)
    treebank = full.take(options.sentences, seed=0)
    torch.manual_seed(0)
    config = hf.BertConfig(num_hidden_layers=options.layers)
    model = hf.BertForMaskedLM._from_config(config, attn_implementation="eager").eval()
    encoded, gold = encode_treebank(tokenizer, treebank), gold_heads(treebank)
    filled = sum(int(b.attention_mask.sum()) for b in encoded.batches)
    padded = sum(b.input_ids.numel() for b in encoded.batches)
    split = sum(len(b.input_ids) for b in encoded.batches if b.membership is not None)
    print(
        f"{options.treebank}: {len(treebank)} sentences, {encoded.words} words, {filled} tokens ({padded} with padding)"
    )
    print(f"{split} sentences have a split word; {len(encoded.batches)} batches; {torch.get_num_threads()} threads")

    @torch.inference_mode()
    def bare():
        for batch in encoded.batches:
            model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)

    found = {}

    def ours():
        found["parents"] = parents(model, encoded, gold)

    bare(), ours()  # warm-up
    # taken in turn, so that whatever else the machine does falls on both
    rounds = [(seconds(bare), seconds(ours)) for _ in range(options.repeats)]
    forward, scored = (statistics.median(times) for times in zip(*rounds, strict=True))
    added = statistics.median(with_scores / alone - 1 for alone, with_scores in rounds)

    # the scoring parts alone, on attentions computed beforehand
    def number(batch) -> int:
        """The same for a batch and its copy on the same device."""
        return batch.columns.data_ptr()

    with torch.inference_mode():
        stored = {number(batch): tuple(a.clone() for a in attentions(model, batch)) for batch in encoded.batches}
    words = tokenizer([list(s.words) for s in treebank], is_split_into_words=True)
    first = np.cumsum([0, *map(len, treebank)])
    names, relation = np.unique([label for s in treebank for label in s.relations], return_inverse=True)
    right = np.zeros((config.num_hidden_layers, config.num_attention_heads, 2, len(names)), int)

    def published():
        for batch in encoded.batches:
            layers = torch.stack(stored[number(batch)]).numpy()
            starts = batch.columns[(batch.cells % batch.word_pairs.shape[-1]) == 0]
            for row, i in enumerate(np.searchsorted(first, starts.numpy(), side="right") - 1):
                n, at = encoded.tokens[i], slice(first[i], first[i + 1])
                published_scores(layers[:, row, :, :n, :n], words.word_ids(int(i)), gold[at], relation[at], right)

    loop = seconds(published)

    import lmdynamics.measurements.syntax as module

    copies = [{key: tuple(a.clone() for a in layers) for key, layers in stored.items()} for _ in range(options.repeats)]
    module.attentions = lambda model, batch: copies[-1][number(batch)]

    def scoring():
        parents(model, encoded, gold)
        copies.pop()

    part = statistics.median(seconds(scoring) for _ in range(options.repeats))

    hits = ((found["parents"].parent == gold) & (gold >= 0)).swapaxes(1, 2)
    differ = sum(int((hits[..., relation == r].sum(-1) != right[..., r]).sum()) for r in range(len(names)))
    print(f"bare forward pass              {forward:8.2f} s")
    print(f"forward pass and scoring       {scored:8.2f} s   adds {added:+.1%}")
    print(f"scoring alone                  {part:8.3f} s   {part / forward:.1%} of the forward pass")
    print(f"published method, scoring      {loop:8.2f} s   {loop / part:.1f} times as long")
    print(f"counts that differ between the two: {differ} of {right.size}")
    if differ:
        sys.exit("the two ways of scoring heads should count the same")


if __name__ == "__main__":
    main()
