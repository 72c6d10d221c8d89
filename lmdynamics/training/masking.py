"""Which tokens a batch hides or replaces, and how many of them as training goes on.

Selection is i.i.d. Bernoulli; of the selected, 80 % become [MASK], 10 % a random token, 10 % stay (Devlin et al.
2019). Schedules of the rate over training: Ankner et al. 2023 (arXiv 2305.15096), over x = t/T from 0 to 1, where T is
the whole of training, whatever the learning rate does. Special tokens and padding are never selected.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lmdynamics.errors import UserError


@dataclass(frozen=True)
class Masker:
    """Corrupts batches for one tokenizer. Pure: the same generator state gives the same masks.

    `padded`: where a batch is padding. A tokenizer that declares no pad token pads with an ordinary one, so the ids
    alone do not tell.
    """

    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]

    @classmethod
    def for_tokenizer(cls, tokenizer) -> "Masker":
        if tokenizer.mask_token_id is None:
            raise UserError("the tokenizer has no mask token; tokenizer.add_special_tokens({'mask_token': '[MASK]'})")
        return cls(tokenizer.mask_token_id, len(tokenizer), tuple(sorted(set(tokenizer.all_special_ids))))

    def __call__(
        self,
        ids: Int[Tensor, "batch time"],
        rate: float,
        generator: torch.Generator,
        loss_share: float = 1.0,
        padded: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
        """Corrupted ids, and the positions whose loss is taken: all that were selected, or a random part of them."""
        draw = torch.rand(ids.shape, generator=generator)  # one draw decides both selection and replacement
        selected = (draw < rate) & self.ordinary(ids, padded)
        corrupted = ids.masked_fill(selected & (draw < 0.8 * rate), self.mask_id)
        self._replace(corrupted, selected & (draw >= 0.8 * rate) & (draw < 0.9 * rate), generator)
        if loss_share < 1:
            selected &= torch.rand(ids.shape, generator=generator) < loss_share
        return corrupted, selected

    def substitute(
        self,
        ids: Int[Tensor, "batch time"],
        rate: float,
        generator: torch.Generator,
        padded: Bool[Tensor, "batch time"] | None = None,
    ) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
        """Random-token substitution: ids with a share `rate` drawn anew, and which of them really changed."""
        replaced = ids.clone()
        drawn = torch.rand(ids.shape, generator=generator) < rate
        self._replace(replaced, drawn & self.ordinary(ids, padded), generator)
        return replaced, replaced != ids

    def ordinary(
        self, ids: Int[Tensor, "batch time"], padded: Bool[Tensor, "batch time"] | None = None
    ) -> Bool[Tensor, "batch time"]:
        """Where the tokens are neither special ones nor padding."""
        found = torch.ones_like(ids, dtype=torch.bool) if padded is None else ~padded
        for special in self.special_ids:
            found &= ids != special
        return found

    def _replace(self, ids: Tensor, where: Tensor, generator: torch.Generator) -> None:
        ids[where] = torch.randint(self.vocab_size, (int(where.sum()),), generator=generator, dtype=ids.dtype)
