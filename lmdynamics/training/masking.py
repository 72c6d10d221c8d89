"""Which tokens an MLM batch hides, and what stands in their place.

Selection is i.i.d. Bernoulli; of the selected, 80 % become [MASK], 10 % a random token, 10 % stay (Devlin et al.
2019; Ankner et al. 2023). Special tokens and padding are never selected.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Masker:
    """Corrupts batches for one tokenizer. Pure: the same generator state gives the same masks."""

    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]

    @classmethod
    def for_tokenizer(cls, tokenizer) -> "Masker":
        return cls(tokenizer.mask_token_id, len(tokenizer), tuple(sorted(set(tokenizer.all_special_ids))))

    def __call__(
        self, ids: Int[Tensor, "batch time"], rate: float, generator: torch.Generator
    ) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
        """Corrupted ids, and which positions were selected (their loss is taken)."""
        draw = torch.rand(ids.shape, generator=generator)  # one draw decides both selection and replacement
        selected = draw < rate
        for special in self.special_ids:
            selected &= ids != special
        corrupted = ids.masked_fill(selected & (draw < 0.8 * rate), self.mask_id)
        randomly = selected & (draw >= 0.8 * rate) & (draw < 0.9 * rate)
        corrupted[randomly] = torch.randint(
            self.vocab_size, (int(randomly.sum()),), generator=generator, dtype=ids.dtype
        )
        return corrupted, selected
