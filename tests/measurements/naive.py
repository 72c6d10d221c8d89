"""The published method, sentence by sentence and head by head: slow, and obviously right."""

import numpy as np
import torch


def given_as_words(tokenizer, words):
    """Token ids of a sentence and the word of each, as the tokenizer tells."""
    encoded = tokenizer(list(words), is_split_into_words=True)
    return encoded["input_ids"], encoded.word_ids(0)


def word_matrices(model, tokenizer, words, cut=given_as_words):
    """Word-level attention of one sentence, shape [layers, heads, words, words]."""
    ids, of_word = cut(tokenizer, words)
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


def head_scores(model, tokenizer, treebank, relations, cut=given_as_words):
    """{(relation, layer, head, direction): (count, right, weight)} over all sentences."""
    found = {}
    for sentence in treebank:
        matrices = word_matrices(model, tokenizer, sentence.words, cut)
        for word, (head, relation) in enumerate(zip(sentence.heads, sentence.relations, strict=True)):
            if head < 0 or relation not in relations:
                continue
            for layer, of_layer in enumerate(matrices):
                for number, matrix in enumerate(of_layer):
                    for direction, row in (("dependent→head", matrix[word]), ("head→dependent", matrix[:, word])):
                        right = row.max() > 0 and int(np.argmax(row)) == head
                        count, hits, weight = found.get((relation, layer, number, direction), (0, 0, 0.0))
                        found[relation, layer, number, direction] = (count + 1, hits + right, weight + row[head])
    return found
