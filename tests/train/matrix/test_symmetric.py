"""Symmetric matrices measured by sensors, and the lowest minimum of each rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from undertow.train import (
    gaussian_sensors,
    rank_minimiser,
    recovery_loss,
    sensing_loss,
    sensor_gram,
    symmetric_coordinates,
    truncated_svd,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return found + found.mT


def positive(seed: int, dim: int = 4) -> Tensor:
    root = draw(dim, dim, seed=seed)
    return root @ root / dim


def test_coordinates_keep_lengths_and_angles() -> None:
    first, second = draw(2, 5, 5)
    inner = symmetric_coordinates(first) @ symmetric_coordinates(second)
    assert float(inner) == pytest.approx(float((first * second).sum()), rel=1e-14)


def test_the_loss_of_a_known_matrix_is_that_of_its_measurements() -> None:
    sensors = gaussian_sensors(30, 4, generator=torch.Generator().manual_seed(1))
    target, matrices = positive(2), draw(3, 4, 4, seed=3)
    measured = sensing_loss(sensors, sensors.flatten(1) @ target.flatten())
    found = recovery_loss(target, sensor_gram(sensors))(matrices)
    assert found.tolist() == pytest.approx(measured(matrices).tolist(), rel=1e-12)


def test_problems_side_by_side_have_their_own_losses() -> None:
    sensors = [gaussian_sensors(30, 4, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    targets = torch.stack([positive(3), positive(4)])
    grams = torch.stack(list(map(sensor_gram, sensors)))
    runs = draw(2, 3, 4, 4, seed=5)
    together = recovery_loss(targets[:, None], grams)(runs)
    assert together.shape == (2, 3)
    for place in range(2):
        alone = recovery_loss(targets[place], grams[place])(runs[place])
        assert torch.allclose(together[place], alone, rtol=1e-12)


def test_where_every_entry_is_measured_the_minimisers_are_truncations() -> None:
    targets = torch.stack([positive(6), positive(7)])
    for rank in (1, 2):
        found = rank_minimiser(
            recovery_loss(targets[:, None]),
            torch.zeros_like(targets),  # no help
            rank,
            lr=0.05,
            generator=torch.Generator().manual_seed(0),
        )
        for own, target in zip(found, targets, strict=True):
            assert torch.allclose(own, truncated_svd(target, rank, positive=True), atol=1e-8)


def test_a_guess_at_the_minimum_is_found_without_random_starts() -> None:
    target = positive(8)
    expected = truncated_svd(target, 2, positive=True)
    nowhere = torch.Generator()
    found = rank_minimiser(
        recovery_loss(target), target, 2, lr=0.05, generator=nowhere, starts=0, steps=200
    )
    assert torch.allclose(found, expected, atol=1e-10)


def test_arguments_out_of_range_are_named() -> None:
    generator, loss = torch.Generator(), recovery_loss(positive(0))
    with pytest.raises(ValueError, match="rank must be at most 4"):
        rank_minimiser(loss, positive(0), 5, lr=0.1, generator=generator)
    with pytest.raises(ValueError, match="matrices must be square"):
        symmetric_coordinates(torch.ones(2, 3))
