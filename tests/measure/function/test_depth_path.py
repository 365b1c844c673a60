"""A path through layers that come one by one: that of the module, and its bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from undertow.measure import depth_convergence, follow_depth, row_norms
from undertow.models import identity_plus_noise_

WIDTH, DEPTH = 5, 12
START = torch.rand(3, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def stack() -> nn.Sequential:
    pairs = [(nn.Linear(WIDTH, WIDTH).double(), nn.ReLU()) for _ in range(DEPTH)]
    return identity_plus_noise_(nn.Sequential(*(module for pair in pairs for module in pair)))


def layers(state: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    net = stack()
    for n in range(DEPTH):
        linear = net[2 * n]
        assert isinstance(linear, nn.Linear)
        noise = linear.weight.detach() - torch.eye(WIDTH)
        state = linear(state).detach().relu()
        yield state, torch.linalg.matrix_norm(noise, 2).expand(3), torch.zeros(3).double()


def test_it_agrees_with_the_measure_of_a_module() -> None:
    path, module = follow_depth(START, layers(START), {4, DEPTH}), depth_convergence(stack(), START)
    assert list(path.states) == [0, 4, DEPTH]
    torch.testing.assert_close(row_norms(path.states[4]), module.state_norm[4])
    torch.testing.assert_close(path.end, path.states[DEPTH])
    ratio = (module.state_norm[-1] / module.norm_bound[-1]).log()
    torch.testing.assert_close(path.log_norm_ratio, ratio)
    over = (module.movement - module.bound) / module.state_norm[:-1].clamp(min=START.norm(dim=1))
    torch.testing.assert_close(path.excess, over.amax(0))
    assert path.excess.max() <= 1e-12


def test_both_bounds_are_met_where_every_layer_pushes_along_the_state() -> None:
    def along() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        state, unit = START, START / START.norm(dim=1, keepdim=True)
        for n in range(1, 6):
            bias = torch.full((3,), 0.5 / n, dtype=torch.float64)
            state = state + bias[:, None] * unit
            yield state, torch.zeros(3).double(), bias

    path = follow_depth(START, along())
    assert path.excess.abs().max() < 1e-14
    assert path.log_norm_ratio.abs().max() < 1e-14


def test_a_relu_on_a_negative_start_breaks_the_bound() -> None:
    nothing = torch.zeros(3).double()
    path = follow_depth(-START, [(torch.zeros_like(START), nothing, nothing)])
    torch.testing.assert_close(path.excess, torch.ones(3).double())
    assert path.log_norm_ratio.max() < -100


def test_layers_that_end_too_early_are_an_error() -> None:
    with pytest.raises(ValueError, match="they end before 13"):
        follow_depth(START, layers(START), {4, 13})


def test_norms_do_not_overflow_before_the_vectors_do() -> None:
    rows = [[3e200, 4e200], [3e-200, 4e-200], [0, 0], [math.inf, 1]]
    vectors = torch.tensor(rows, dtype=torch.float64)
    expected = torch.tensor([5e200, 5e-200, 0.0], dtype=torch.float64)
    torch.testing.assert_close(row_norms(vectors)[:3], expected, rtol=1e-12, atol=0)
    assert not row_norms(vectors)[3].isfinite()
