"""Masks have the right statistics; the batch of a step depends on seed and step alone."""

import numpy as np
import pytest
import torch

from lmdynamics.corpora.blocks import Blocks
from lmdynamics.training.batches import Batches, mix, pad
from lmdynamics.training.masking import Masker

MASKER = Masker(mask_id=4, vocab_size=1_000, special_ids=(0, 1, 2, 3, 4))


def test_selection_and_replacement_have_the_published_shares():
    ids = torch.randint(5, 1_000, (2_000, 500), generator=torch.Generator().manual_seed(0))
    corrupted, selected = MASKER(ids, 0.15, torch.Generator().manual_seed(1))
    n, k = ids.numel(), int(selected.sum())
    assert abs(k / n - 0.15) < 5 * (0.15 * 0.85 / n) ** 0.5
    for share, is_such in (
        (0.8, corrupted == 4),
        (0.1 + 0.1 / 1_000, (corrupted == ids) & selected),
        (0.1 - 0.1 / 1_000, (corrupted != 4) & (corrupted != ids)),
    ):
        assert abs(int(is_such.sum()) / k - share) < 5 * (share * (1 - share) / k) ** 0.5
    assert torch.equal(corrupted[~selected], ids[~selected])


def test_special_tokens_are_never_selected():
    ids = torch.arange(5).repeat(100, 50)
    assert not MASKER(ids, 0.99, torch.Generator().manual_seed(0))[1].any()


def rows(n: int = 500) -> Blocks:
    random = np.random.default_rng(0)
    return Blocks.from_rows([[2, *random.integers(5, 1_000, random.integers(2, 20)), 3] for _ in range(n)])


def batches(**changes) -> Batches:
    return Batches(**{"rows": rows(), "batch_size": 8, "seed": 0, "pad_id": 0, "masker": MASKER, **changes})


def test_any_step_can_be_asked_for_in_any_order():
    one, other = batches(), batches()
    forwards = [one[step] for step in range(130)]
    for step in (129, 3, 62, 61):
        again = other[step]
        assert torch.equal(again.ids, forwards[step].ids)
        assert torch.equal(again.selected, forwards[step].selected)
    assert not torch.equal(batches(seed=1)[0].targets, one[0].targets)


def test_an_epoch_shows_every_row_once():
    seen = [tuple(row[row != 0].tolist()) for step in range(500 // 8) for row in batches()[step].targets]
    assert len(set(seen)) == len(seen) == 496
    assert set(seen) <= {tuple(row.tolist()) for row in rows()}


def test_sorting_saves_padding():
    spent = sum(batches()[step].ids.numel() for step in range(62))
    used = sum(batches()[step].tokens for step in range(62))
    assert used / spent > 0.95


def test_causal_targets_are_the_next_tokens():
    batch = batches(masker=None)[0]
    for ids, targets, selected in zip(batch.ids, batch.targets, batch.selected, strict=True):
        length = int((ids != 0).sum())
        assert selected.tolist() == [True] * (length - 1) + [False] * (len(ids) - length + 1)
        assert torch.equal(targets[: length - 1], ids[1:length])


def test_shares_of_several_processes_are_the_whole():
    batch = batches()[0]
    shares = [batch.share(process, 3) for process in range(3)]
    assert sorted(map(tuple, torch.cat([s.ids for s in shares]).tolist())) == sorted(map(tuple, batch.ids.tolist()))
    assert sum(int(s.selected.sum()) for s in shares) == int(batch.selected.sum())


def test_padding_is_only_where_needed():
    ids, padded = pad([np.array([2, 7, 3]), np.array([2, 3])], 0)
    assert ids.tolist() == [[2, 7, 3], [2, 3, 0]]
    assert padded.tolist() == [[False, False, False], [False, False, True]]
    assert pad([np.array([2, 3]), np.array([4, 5])], 0)[1] is None


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (-1, 0), (0,)])
def test_mixed_seeds_differ(numbers):
    others = {mix(a, b) for a in range(50) for b in range(50)} - {mix(*numbers)}
    assert mix(*numbers) == mix(*numbers)
    assert len(others) >= 2_499
