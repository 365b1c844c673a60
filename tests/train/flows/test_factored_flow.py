"""Gradient flow on factors, seen as the flow of their product."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undertow.train import flows

DOUBLE = torch.float64
TARGET = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=DOUBLE))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def loss(matrix: Tensor) -> Tensor:
    return (matrix - TARGET).square().sum() / 2


def test_the_flow_of_one_factor_is_that_of_half_the_loss() -> None:
    start, times = 0.1 * draw(3, 2), [0.5, 1.0, 3.0]
    found = flows.factored_flow(loss, start, times, rtol=1e-10)
    factors = flows.gradient_flow(lambda u: loss(u @ u.T) / 2, times, start=start, rtol=1e-10)
    expected = factors.parameters @ factors.parameters.mT
    assert torch.allclose(found.parameters, expected, rtol=1e-8, atol=1e-10)
    assert found.losses.tolist() == pytest.approx(factors.losses.tolist(), rel=1e-8)


def test_directions_grow_exponentially_from_a_small_start() -> None:
    flow = flows.factored_flow(loss, 1e-6 * torch.eye(3, dtype=DOUBLE), [1.0, 2.0])
    grown = (flow.parameters[1] / flow.parameters[0]).diagonal()
    assert grown.tolist() == pytest.approx([math.exp(4), math.exp(2), 1.0], rel=1e-4)


@pytest.mark.parametrize("depth", [2, 3])
def test_a_balanced_product_follows_its_end_to_end_flow(depth: int) -> None:
    # Of a multiple w of the identity: dw/dt = depth w^(2 - 2 / depth) (1 - w).
    eye = torch.eye(3, dtype=DOUBLE)

    def apart(matrix: Tensor) -> Tensor:
        return (matrix - eye).square().sum() / 2

    step, start = 1e-4, [0.3 ** (1 / depth) * eye] * depth
    flow = flows.factored_flow(apart, start, [step], rtol=1e-12)
    speed = (float(flow.parameters[-1][0, 0]) - 0.3) / step
    assert speed == pytest.approx(depth * 0.3 ** (2 - 2 / depth) * 0.7, rel=1e-3)


def test_the_product_of_factors_of_any_shape_learns_what_it_can() -> None:
    factors = [0.3 * draw(3, 2, seed=1), 0.3 * draw(2, 5, seed=2), 0.3 * draw(5, 3, seed=3)]
    flow = flows.factored_flow(loss, factors, 200.0)
    assert flow.parameters.shape[1:] == (3, 3)
    assert torch.allclose(flow.parameters[0], factors[0] @ factors[1] @ factors[2])
    assert torch.allclose(flow.parameters[-1], TARGET, atol=1e-4)


def test_events_and_interpolation_see_the_product() -> None:
    def top(matrix: Tensor) -> Tensor:
        return matrix[0, 0] - 1.0

    half = flows.Event(top, terminal=True)
    flow = flows.factored_flow(loss, 0.1 * draw(3, 3), 50.0, events=[half, top], dense=True)
    assert flow.stopped == "event"
    assert float(flow.event_parameters[1][0, 0, 0]) == pytest.approx(1.0)
    assert flow.at is not None
    assert torch.allclose(flow.at(float(flow.times[-1])), flow.parameters[-1])
    assert flow.at([0.0, 0.1]).shape == (2, 3, 3)


@pytest.mark.parametrize("start", [[], [draw(3)], [draw(3, 2), draw(3, 2)], draw(2, 3, 3)])
def test_factors_that_do_not_fit_are_named(start: Tensor | list[Tensor]) -> None:
    with pytest.raises(ValueError, match="start must be matrices that can be multiplied"):
        flows.factored_flow(loss, start, 1.0)
