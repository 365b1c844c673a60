"""Draws of the gradient noise against per-sample gradients, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from dense_curvature import draw, fill, flat_loss
from product_cases import (
    CLASSES,
    FEATURES,
    LOSSES,
    MODELS,
    SAMPLES,
    class_weight,
    labels,
    labels_with_gaps,
)
from token_models import Named, sliced, tokens
from torch import Tensor, nn

from undertow.objective import Objective


def per_sample_gradients(
    net: nn.Module, loss: Callable[..., Tensor], inputs: Tensor, targets: Tensor
) -> Tensor:
    rows = []
    for index in range(len(inputs)):
        piece = slice(index, index + 1)
        theta, _, whole = flat_loss(net, loss, inputs[piece], targets[piece])
        rows.append(torch.autograd.functional.jacobian(whole, theta))
    return torch.stack(rows)


@pytest.mark.parametrize("loss_name", ["cross_entropy", "mse", "huber", "generic", "mean"])
def test_noise_is_the_centred_combination_of_sample_gradients(loss_name: str) -> None:
    loss, make_targets = LOSSES[loss_name]
    net = fill(MODELS["batch norm, dropout"]())
    inputs, targets = draw(1, SAMPLES, FEATURES), make_targets()
    gradients = per_sample_gradients(net, loss, inputs, targets)
    centred = gradients - gradients.mean(0)
    for microbatch in (None, 4):
        objective = Objective(net, loss, (inputs, targets), microbatch=microbatch)
        generator = torch.Generator().manual_seed(5)
        found = objective.sample_noise(20, batch_size=4, generator=generator)
        normal = torch.randn(
            20, SAMPLES, generator=torch.Generator().manual_seed(5), dtype=torch.float64
        )
        torch.testing.assert_close(found, normal @ centred / math.sqrt(SAMPLES * 4))


def test_noise_has_the_covariance_of_a_mini_batch_gradient() -> None:
    net, loss = nn.Linear(2, 1).double(), nn.MSELoss()
    inputs, targets = draw(1, 9, 2), draw(2, 9, 1)
    gradients = per_sample_gradients(net, loss, inputs, targets)
    covariance = torch.cov(gradients.T, correction=0) / 5
    objective = Objective(net, loss, (inputs, targets))
    found = objective.sample_noise(40_000, batch_size=5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.cov(found.T), covariance, rtol=0.05, atol=0.02)
    assert found.mean(0).abs().max() < 4 * covariance.max().sqrt() / 200


def test_noise_of_weighted_samples_is_that_of_the_ratio_of_sums() -> None:
    net, loss = fill(nn.Linear(FEATURES, CLASSES)), nn.CrossEntropyLoss(weight=class_weight)
    inputs, targets = draw(1, SAMPLES, FEATURES), labels_with_gaps()
    objective = Objective(net, loss, (inputs, targets), microbatch=3)
    counted = targets >= 0
    counts = class_weight[targets.clamp(min=0)] * counted
    gradients = torch.zeros(SAMPLES, objective.num_params, dtype=torch.float64)
    gradients[counted] = per_sample_gradients(net, loss, inputs[counted], targets[counted])
    full = counts @ gradients / counts.sum()
    torch.testing.assert_close(objective.gradient(), full)
    centred = (gradients - full) * (counts / counts.mean())[:, None]
    found = objective.sample_noise(6, batch_size=2, generator=torch.Generator().manual_seed(1))
    normal = torch.randn(
        6, SAMPLES, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    torch.testing.assert_close(found, normal @ centred / math.sqrt(2 * SAMPLES))


def test_noise_of_a_models_own_loss() -> None:
    batch = tokens()
    objective = Objective(fill(Named(1)), None, sliced(batch, 2))
    whole = Objective(fill(Named(1)), None, [batch])
    found, expected = (
        o.sample_noise(3, batch_size=4, generator=torch.Generator().manual_seed(1))
        for o in (objective, whole)
    )
    torch.testing.assert_close(found, expected)


def test_bad_noise_arguments_are_named() -> None:
    net, loss = nn.Linear(FEATURES, CLASSES).double(), nn.CrossEntropyLoss()
    objective = Objective(net, loss, (draw(0, 4, FEATURES), labels()[:4]))
    generator = torch.Generator()
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        objective.sample_noise(0, batch_size=1, generator=generator)
    for wrong in (1.5, True, "2"):
        with pytest.raises(TypeError, match=f"batch_size must be a whole number, got {wrong!r}"):
            objective.sample_noise(1, batch_size=wrong, generator=generator)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be a torch\.Generator, got 0"):
        objective.sample_noise(1, batch_size=1, generator=0)  # type: ignore[arg-type]
    single = Objective(net, loss, (draw(0, 1, FEATURES), labels()[:1]))
    with pytest.raises(ValueError, match="one sample"):
        single.sample_noise(1, batch_size=1, generator=generator)
