"""Whether a tokenizer and a model agree on the vocabulary: how many tokens there are, and how many rows for them."""

from torch import nn

from lmdynamics.errors import UserError
from lmdynamics.progress import say_once


def check_ids(model: nn.Module, highest: int, what: str) -> None:
    """Raise a UserError if `what` holds a token id that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    if highest >= rows:
        raise UserError(
            f"{what} holds the token id {highest}, the model has embeddings for ids 0 to {rows - 1}: this tokenizer is "
            "not the model's; save the one it was trained with beside it"
        )


def unused_rows(model: nn.Module, checkpoint) -> int:
    """How many of the model's output rows belong to no token; said once, because the softmax runs over them, too.

    Raises
    ------
    UserError
        If a masked model has fewer rows than its tokenizer has tokens: the mask or a random token would have no row.
    """
    head, tokens = model.get_output_embeddings(), len(checkpoint.tokenizer)
    embeddings = model.get_input_embeddings().weight.shape[0]
    if checkpoint.objective != "clm" and tokens > embeddings:
        raise UserError(
            f"{checkpoint.run_name}: its tokenizer has {tokens:,} tokens, the model embeddings for {embeddings:,}, so "
            "a masked or random token may have none; save the tokenizer it was trained with beside it"
        )
    weight = getattr(head, "weight", None)  # a head of several layers does not say how many rows it has
    if weight is None or checkpoint.objective == "rts":
        return 0
    rows = weight.shape[0]
    if rows > tokens:
        say_once(
            f"{checkpoint.run_name}: the model has {rows:,} output rows, its tokenizer {tokens:,} tokens; the "
            f"{rows - tokens:,} unused rows share in every probability, and so in loss, pair scores and dissent"
        )
    return max(0, rows - tokens)
