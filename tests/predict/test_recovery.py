"""What measurements determine: dimensions counted, and shifts against minimisers found."""

from __future__ import annotations

import math

import pytest
import torch

from undertow import train
from undertow.predict import minimiser_shift, recovery_window


@pytest.mark.parametrize(("dim", "rank"), [(5, 0), (5, 2), (7, 7), (20, 3)])
def test_the_window_counts_dimensions(dim: int, rank: int) -> None:
    window = recovery_window(dim, rank)
    # U U^T has dim x rank entries in U, less the rotations of its columns.
    assert window.freedom == dim * rank - math.comb(rank, 2)
    # A cone and its dual share the dimension: of all matrices, half are positive.
    assert recovery_window(dim, 0).positive == dim * (dim + 1) / 4
    assert window.freedom <= window.positive <= dim * (dim + 1) / 2


def test_positive_interpolants_are_one_above_the_window_and_many_within() -> None:
    """Descent from a large start, whose fit is any positive matrix that there is."""
    window = recovery_window(8, 1)
    missed = []
    for count in (round(0.5 * window.positive), round(1.5 * window.positive)):
        generator = torch.Generator().manual_seed(0)
        sensors = train.gaussian_sensors(count, 8, generator=generator)
        truth = torch.zeros(8, 8, dtype=torch.float64)
        truth[0, 0] = 1.0
        loss = train.recovery_loss(truth, train.sensor_gram(sensors))
        start = 0.3 * torch.randn(8, 8, generator=generator, dtype=torch.float64)
        factor = train.factored_descent(loss, start, lr=0.05, steps=3000)
        missed.append(float((factor @ factor.T - truth).norm()))
        assert float(loss(factor @ factor.T)) < 2e-3
    assert missed[0] > 0.3
    assert missed[1] < 0.1


@pytest.mark.parametrize("rank", [1, 2])
def test_minimisers_shift_by_the_root_mean_square(rank: int) -> None:
    dim, count, generator = 6, 5_000, torch.Generator().manual_seed(3)
    eigenvalues = (3.0, 1.5, 0.5)
    truth = torch.diag(torch.tensor([*eigenvalues, 0, 0, 0], dtype=torch.float64))
    cut = train.truncated_svd(truth, rank, positive=True)
    squares = []
    for _ in range(40):
        sensors = train.gaussian_sensors(count, dim, generator=generator)
        loss = train.recovery_loss(truth, train.sensor_gram(sensors))
        found = train.rank_minimiser(loss, cut, rank, lr=0.1, generator=generator, starts=0)
        squares.append(float((found - cut).square().sum()))
    predicted = minimiser_shift(eigenvalues, rank, dim=dim, measurements=count)
    # Of 40 draws, the mean square of a few weighted normals is off by a quarter at most.
    assert sum(squares) / len(squares) == pytest.approx(predicted**2, rel=0.3)


def test_of_full_rank_there_is_nothing_to_shift_by() -> None:
    assert minimiser_shift((2.0, 1.0), 2, dim=5, measurements=10) == 0.0


@pytest.mark.parametrize(
    ("eigenvalues", "rank", "message"),
    [
        ((1.0, 2.0), 1, "eigenvalues must be"),
        ((2.0, 0.0), 1, "eigenvalues must be"),
        ((3.0, 2.0, 1.0), 1, "at most dim = 2"),
        ((2.0,), 2, "rank must be at most the 1 eigenvalues"),
        ((2.0, 2.0), 1, "gap after the first 1"),
        ((2.0, 1.0), 0, "rank must be at least 1"),
    ],
)
def test_what_has_no_shift_is_named(
    eigenvalues: tuple[float, ...], rank: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        minimiser_shift(eigenvalues, rank, dim=2, measurements=10)


def test_a_rank_beyond_the_dimension_is_named() -> None:
    with pytest.raises(ValueError, match="rank must be at most dim = 3"):
        recovery_window(3, 4)
