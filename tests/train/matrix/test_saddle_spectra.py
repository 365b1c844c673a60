"""The spectra at saddles: closed forms, turned problems, and that they say when phases come."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from undertow import predict, train


def squares(target: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda matrix: (matrix - target).square().sum() / 2


def ranks_of(spectrum: Tensor) -> list[Tensor]:
    return [
        torch.diag(spectrum * (torch.arange(len(spectrum)) < rank))
        for rank in range(1, int((spectrum > 0).sum()) + 1)
    ]


def test_with_every_entry_measured_the_spectra_are_those_of_the_target() -> None:
    spectrum = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    found = train.saddle_spectra(squares(torch.diag(spectrum)), ranks_of(spectrum))
    for rank, rates in enumerate(found.rates):
        expected = sorted([*spectrum[rank:].tolist(), *[0.0] * rank], reverse=True)
        assert rates.tolist() == pytest.approx(expected, abs=1e-12)
    assert found.relaxations.tolist() == pytest.approx([1.0, 1.0, 1.0])  # 3 - 2, 2 - 1, 1 - 0
    assert "rates 3, 2, 1, " in repr(found)


def test_spectra_turn_with_the_problem() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = 0.5 + torch.rand(4, 4, generator=generator, dtype=torch.float64)
    weights = weights + weights.T
    spectrum = torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]

    def loss(matrix: Tensor) -> Tensor:
        return (weights * (matrix - torch.diag(spectrum)).square()).sum() / 2

    plain = train.saddle_spectra(loss, ranks_of(spectrum))
    turned = train.saddle_spectra(
        lambda matrix: loss(turn.T @ matrix @ turn),
        [turn @ matrix @ turn.T for matrix in ranks_of(spectrum)],
    )
    torch.testing.assert_close(turned.rates, plain.rates)
    torch.testing.assert_close(turned.relaxations, plain.relaxations)


@pytest.mark.slow
def test_directions_are_learned_when_the_spectra_say() -> None:
    """The time from a start a thousand times smaller, less that from the start, has no constant."""
    generator = torch.Generator().manual_seed(1)
    sensors = train.gaussian_sensors(120, 4, generator=generator)
    target = torch.diag(torch.tensor([3.0, 1.5, 0.0, 0.0], dtype=torch.float64))
    loss = train.sensing_loss(sensors, (sensors * target).sum((1, 2)))
    greedy = train.greedy_low_rank(loss, 4, symmetric=True, max_rank=2)
    spectra = train.saddle_spectra(loss, [phase.matrix for phase in greedy.phases])
    phases = predict.saddle_phases(spectra.rates.numpy(), spectra.relaxations.numpy())
    scales = torch.tensor([1e-4, 1e-7], dtype=torch.float64)
    start = torch.randn(4, 4, generator=generator, dtype=torch.float64) * scales[:, None, None]
    lr, learned = 0.002, torch.full((2, 2), math.nan, dtype=torch.float64)

    def watch(step: int, matrices: Tensor) -> None:
        above = torch.linalg.eigvalsh(matrices).flip(-1)[:, :2] > torch.tensor([1.5, 0.75])
        learned[above & learned.isnan()] = step * lr

    train.factored_descent(loss, start, lr=lr, steps=8_000, observe=watch)
    measured = (learned[1] - learned[0]) / math.log(1e3)
    assert measured.tolist() == pytest.approx([phase.arrival for phase in phases], rel=0.01)


@pytest.mark.parametrize("minimisers", [[], [torch.zeros(2, 3)], [torch.eye(2), torch.eye(3)]])
def test_what_is_no_minimiser_is_named(minimisers: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="minimisers must be one or more square matrices"):
        train.saddle_spectra(squares(torch.eye(2)), minimisers)
