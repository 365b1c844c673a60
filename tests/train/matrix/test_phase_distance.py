"""How far a flow is from a phase of greedy learning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undertow.train import greedy_low_rank, phase_distance, phase_visits

TARGET = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))


def loss(matrix: Tensor) -> Tensor:
    return (matrix - TARGET).square().sum() / 2


def first_phase(keep_path: bool = True):
    return greedy_low_rank(loss, 2, symmetric=True, keep_path=keep_path).phases[0]


def test_a_phase_at_another_time_is_no_distance_apart() -> None:
    # w of the top direction obeys dw/dt = 2 w (2 - w), half of whose loss is learned where
    # (2 - w)^2 = 2; the flow here is five time units late.
    def at(times):
        w = [2 / (1 + (2 / (2 - math.sqrt(2)) - 1) * math.exp(-4 * (time - 5))) for time in times]
        zero = torch.zeros(len(w), 2, 2, dtype=torch.float64)
        zero[:, 0, 0] = torch.tensor(w, dtype=torch.float64)
        return zero

    phase = first_phase()
    assert phase_distance(phase, at, 5.1, end=100.0) < 1e-5
    away = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    off = phase_distance(phase, lambda times: at(times) + away, 5.0, end=100.0)
    assert off == pytest.approx(math.sqrt(2) / 2, rel=1e-3)  # of the norm 2 of the phase's matrix


def test_a_flow_from_a_smaller_start_is_nearer_by_half_the_relative_gap() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    scales = (1e-8, 1e-12)
    visits = phase_visits(loss, start, scales, max_rank=2, time=100.0)
    assert [(visit.scale, visit.phase) for visit in visits] == [
        (scale, phase) for scale in scales for phase in (1, 2)
    ]
    far, near = (visit for visit in visits if visit.phase == 1)
    exponent = math.log(near.distance / far.distance) / math.log(1e-4)
    assert far.predicted == pytest.approx((1 - 1 / 2) / 2)
    assert exponent == pytest.approx(far.predicted, rel=0.05)
    assert far.rate == pytest.approx(4)
    assert far.rate * (near.time - far.time) == pytest.approx(math.log(1e4), rel=1e-3)


def test_a_phase_that_the_flow_does_not_reach_is_left_out() -> None:
    start = torch.eye(2, dtype=torch.float64)
    early = phase_visits(loss, start, (1e-8,), max_rank=2, time=7.0)
    assert [visit.phase for visit in early] == [1]


def test_a_loss_with_nothing_to_learn_is_named() -> None:
    with pytest.raises(ValueError, match="loss must descend from zero"):
        phase_visits(lambda w: w.square().sum(), torch.eye(2).double(), (1e-4,), max_rank=1)


def test_a_phase_without_its_path_is_named() -> None:
    with pytest.raises(ValueError, match="keep_path=True"):
        phase_distance(first_phase(keep_path=False), lambda _: TARGET[None], 0.0, end=1.0)
