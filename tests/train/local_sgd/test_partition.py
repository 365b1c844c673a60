"""Shards of data for workers: disjoint, equal, and with the classes that were asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from undertow.train import partition

WAYS = ("split", "by_class", ("dirichlet", 0.05), ("dirichlet", 100.0))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels(count: int, classes: int, seed: int = 1) -> Tensor:
    return torch.randint(classes, (count,), generator=generator(seed))


def histogram(targets: Tensor, shards: Tensor, classes: int) -> Tensor:
    return torch.stack([targets[own].bincount(minlength=classes) for own in shards])


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5), st.sampled_from(WAYS), st.data())
def test_shards_are_equal_disjoint_and_ascending(
    count: int, workers: int, classes: int, how: Any, data: st.DataObject
) -> None:
    workers = min(workers, count)
    own = generator(data.draw(st.integers(0, 99)))
    shards = partition(labels(count, classes), workers, how, generator=own)
    assert shards.shape == (workers, count // workers)
    assert len(shards.unique()) == shards.numel()
    assert (shards.diff(dim=1) > 0).all()
    assert 0 <= int(shards.min()) <= int(shards.max()) < count
    if workers == 1:
        assert torch.equal(shards[0], torch.arange(count))


def test_the_generator_alone_decides() -> None:
    targets = labels(90, 4)
    for how in WAYS:
        first, again, other = (
            partition(targets, 4, how, generator=generator(seed)) for seed in (3, 3, 4)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@given(st.integers(2, 12), st.integers(2, 6))
def test_by_class_cuts_as_few_classes_as_can_be(workers: int, classes: int) -> None:
    """K - 1 cuts in sorted labels leave C + K - 1 pieces at most."""
    targets = labels(20 * workers, classes)
    shards = partition(targets, workers, "by_class", generator=generator())
    held = histogram(targets, shards, classes) > 0
    assert int(held.sum()) <= classes + workers - 1
    blind = partition(targets, workers, "split", generator=generator())
    assert (histogram(targets, blind, classes) > 0).sum() > held.sum()


def test_dirichlet_mixtures_go_from_one_class_to_all() -> None:
    classes, targets = 5, labels(2000, 5)
    largest = []
    for concentration in (0.01, 1.0, 1e4):
        shards = partition(targets, 10, ("dirichlet", concentration), generator=generator(2))
        shares = histogram(targets, shards, classes) / shards.shape[1]
        largest.append(float(shares.max(1).values.median()))
    # Two workers that want one class must share it, so that few have nothing else.
    assert largest[0] > 0.6 > largest[1] > 0.3 > 0.25 > largest[2]


def test_targets_may_be_whole_numbers_in_any_type() -> None:
    signs = torch.where(labels(40, 2) == 1, 1.0, -1.0)[:, None]
    shards = partition(signs, 2, "by_class", generator=generator())
    assert {len(signs[own].unique()) for own in shards} <= {1, 2}
    ones = partition((labels(40, 2)), 2, "by_class", generator=generator())
    assert torch.equal(shards, ones)


@pytest.mark.parametrize(
    ("words", "error", "targets", "workers", "how"),
    [
        ("one would have none; take at most 3", ValueError, labels(3, 2), 4, "split"),
        ("one would have none", ValueError, labels(3, 2), 4, ("dirichlet", 0.1)),
        ("num_workers must be at least 1, got 0", ValueError, labels(3, 2), 0, "split"),
        ("num_workers must be a whole number", TypeError, labels(3, 2), 1.5, "split"),
        ("class labels, one whole number", ValueError, torch.rand(9), 2, "by_class"),
        ("class labels", ValueError, torch.ones(9, 2), 2, ("dirichlet", 1.0)),
        ("how must be split, by_class or", ValueError, labels(9, 2), 2, "random"),
        ("c above 0, got 0", ValueError, labels(9, 2), 2, ("dirichlet", 0.0)),
        ("c above 0, got nan", ValueError, labels(9, 2), 2, ("dirichlet", float("nan"))),
    ],
)
def test_what_cannot_be_divided_is_refused(
    words: str, error: type[Exception], targets: Tensor, workers: Any, how: Any
) -> None:
    with pytest.raises(error, match=words):
        partition(targets, workers, how, generator=generator())
