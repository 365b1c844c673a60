"""Measures of single samples, where samples influence each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import undertow as ut
from undertow.measure import per_sample_gradient_norms
from undertow.measure.noise import noise_covariance


class Attending(nn.Module):
    """Attention over the samples, where `batch_first` was forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(5, 4), nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x)[:, None]
        return self.out(self.attention(hidden, hidden, hidden)[0][:, 0])


def root(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs, functional.one_hot(targets, 3).to(outputs)).sqrt()


def objective(model: bool, microbatch: int | None = None) -> ut.Objective:
    torch.manual_seed(0)
    net = Attending() if model else nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    data = torch.randn(12, 5).double(), torch.arange(12) % 3
    loss = nn.CrossEntropyLoss() if model else root
    return ut.Objective(net.double(), loss, data, microbatch=microbatch)


OF_SAMPLES: dict[str, Callable[[ut.Objective], Any]] = {
    "norms": per_sample_gradient_norms,
    "noise": ut.gradient_noise,
    "covariance": noise_covariance,
}


@pytest.mark.parametrize("model", [True, False])
@pytest.mark.parametrize("name", OF_SAMPLES)
def test_gradients_of_samples_are_refused(name: str, model: bool) -> None:
    with pytest.raises(ValueError, match="samples influence each other"):
        OF_SAMPLES[name](objective(model))


def test_margins_and_predictions_ask_nothing_of_the_loss() -> None:
    assert ut.margins(objective(False, 5)).per_sample.isfinite().all()
    assert len(objective(False, 5).predictions()) == 12
    with pytest.raises(ValueError, match="samples influence each other"):
        ut.margins(objective(True))
    with pytest.raises(ValueError, match="samples influence each other"):
        objective(True, 5).predictions()
    assert len(objective(True).predictions()) == 12  # as they are in that one batch


@pytest.mark.parametrize("model", [True, False])
def test_the_trace_of_one_batch_is_that_of_its_products(model: bool) -> None:
    found = objective(model)
    every = torch.eye(found.num_params).double()
    expected = float(found.ggnvp(every).trace())
    estimate = ut.hessian_trace(found, rtol=0.02, curvature="ggn")
    assert estimate.stderr > 0 or found.num_params <= 24
    low, high = estimate.interval
    assert low - 0.1 * abs(expected) <= expected <= high + 0.1 * abs(expected)
