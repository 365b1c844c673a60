"""A moved scheduler beside one that was not: its pace is seen, and its state is its own."""

from __future__ import annotations

import pytest
import torch

from apply.rescaling.test_schedulers import KINDS, advance, made
from undertow import apply

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("kind", KINDS)
def test_a_scheduler_that_stepped_with_the_optimizer_is_seen_to(kind: str) -> None:
    optimizer, scheduler = made(kind, "adam")
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    advance(optimizer, scheduler, 20)
    assert optimizer.state
    found = apply.rescale(optimizer, from_batch=32, to_batch=64, scheduler=scheduler)
    assert not any("by epochs" in note for note in found.notes)


def test_the_state_of_one_that_was_moved_is_of_no_use_to_one_that_was_not() -> None:
    optimizer, scheduler = made("CosineAnnealingLR")
    advance(optimizer, scheduler, 20)
    apply.rescale(optimizer, from_batch=32, to_batch=64, scheduler=scheduler).apply()
    other, unmoved = made("CosineAnnealingLR")
    unmoved.load_state_dict(scheduler.state_dict())
    with pytest.raises(TypeError):  # and no step at the old pace
        advance(other, unmoved, 1)


def test_the_same_batch_changes_nothing_at_all() -> None:
    optimizer, scheduler = made("CosineAnnealingLR", "adam")
    advance(optimizer, scheduler, 20)
    before = str(optimizer.state_dict()), str(scheduler.state_dict())
    found = apply.rescale(optimizer, from_batch=32, to_batch=32, scheduler=scheduler)
    assert found.apply() == []
    assert (str(optimizer.state_dict()), str(scheduler.state_dict())) == before
