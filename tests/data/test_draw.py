"""Draws of as many samples of one class as of another."""

from __future__ import annotations

import pytest
import torch

from undertow import data

LABELS = torch.tensor([0, 1, 2] * 20)


def test_a_draw_holds_each_class_once_over_and_depends_on_its_seed_alone() -> None:
    chosen = data.per_class(LABELS, (2, 0), 5, seed=1)
    assert LABELS[chosen].tolist() == [2] * 5 + [0] * 5
    assert len(set(chosen.tolist())) == 10
    assert torch.equal(chosen, data.per_class(LABELS, (2, 0), 5, seed=1))
    assert not torch.equal(chosen, data.per_class(LABELS, (2, 0), 5, seed=2))


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="at most the 20 samples of class 1, got 21"):
        data.per_class(LABELS, (1, 0), 21, seed=0)
