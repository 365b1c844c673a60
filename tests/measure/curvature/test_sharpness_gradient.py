"""The gradient of log sharpness against dense derivatives, closed forms, and invariances."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev
from torch.nn import functional

from undertow.measure import sharpness_gradient, spherical_sharpness
from undertow.objective import Objective

DOUBLE = torch.float64


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def normal(size: int) -> nn.Module:
    return nn.BatchNorm1d(size, affine=False, track_running_stats=False, eps=1e-13)


def network(activation: nn.Module) -> tuple[Objective, nn.Sequential]:
    """Two normalised layers that fit 8 samples, fitted: the Hessian is that of Gauss and Newton."""
    net = nn.Sequential(
        *(nn.Linear(5, 4, bias=False), normal(4), activation),
        *(nn.Linear(4, 1, bias=False), normal(1)),
    ).double()
    inputs = draw(1, 8, 5)
    with torch.no_grad():
        for number, weight in enumerate(net.parameters()):
            weight.copy_(draw(number, *weight.shape))
        targets = net(inputs)
    return Objective(net, nn.MSELoss(), (inputs, targets)), net


def standardised(rows: Tensor) -> Tensor:
    """As batch norm does. Third derivatives of PyTorch's own are wrong in `torch.func.jacrev`."""
    return (rows - rows.mean(0)) / rows.var(0, correction=0).sqrt()


def dense(measured: Objective, k: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues on the sphere, and the filtered inner products, by whole derivatives."""
    (inputs, targets), *_ = measured.batches()
    theta = torch.cat([weight.detach().flatten() for weight in measured.model.parameters()])
    theta = theta / theta.norm()

    def outputs(flat: Tensor) -> Tensor:
        hidden = torch.tanh(standardised(inputs @ flat[:20].view(4, 5).T))
        return standardised(hidden @ flat[20:].view(1, 4).T).flatten()

    def loss(flat: Tensor) -> Tensor:
        return (outputs(flat) - targets.flatten()).square().mean()

    curvature = hessian(loss)
    values, vectors = torch.linalg.eigh(curvature(theta))
    values, vectors = values.flip(0), vectors.flip(1).T
    third = jacrev(curvature)(theta)
    rows = []
    for i in range(k):
        for j in range(i, k):
            change = torch.einsum("i,j,ijp->p", vectors[i], vectors[j], third) / values[0]
            rows.append(change * (1 if i == j else math.sqrt(2)))
    changes = torch.stack(rows)
    changes = changes - (changes @ theta)[:, None] * theta
    slopes = jacrev(outputs)(theta)
    matrix = 2 * slopes.T @ slopes / len(slopes)
    shift = tolerance * values[0]
    filtered = torch.linalg.solve(matrix + shift * torch.eye(len(theta)), shift * changes.T)
    return values, changes @ filtered


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-4])
def test_it_is_that_of_dense_derivatives(k: int, tolerance: float) -> None:
    measured, _ = network(nn.Tanh())
    found = sharpness_gradient(measured, k, tolerance=tolerance, rtol=1e-8)
    values, gram = dense(measured, k, tolerance)
    assert found.converged
    torch.testing.assert_close(found.eigenvalues, values[:k], rtol=1e-9, atol=0)
    # Eigenvectors have a sign, and with it what mixes two of them.
    torch.testing.assert_close(found.gram.abs(), gram.abs(), rtol=1e-5, atol=1e-6)
    assert found.slope**2 == pytest.approx(float(gram[0, 0]), rel=1e-6)
    assert found.gap == pytest.approx(float((values[k - 1] - values[k]) / values[0]))


def test_a_rough_answer_is_within_its_error() -> None:
    measured, _ = network(nn.Tanh())
    _, gram = dense(measured, 2, 1e-3)
    rough = sharpness_gradient(measured, 2, tolerance=1e-3, rtol=0.3)
    assert float((rough.gram.abs() - gram.abs()).abs().max()) <= rough.error
    assert float((rough.gram.abs() - gram.abs()).abs().max()) > 1e-6


@pytest.mark.parametrize("scale", [1e-2, 30.0])
def test_the_length_of_the_weights_does_not_matter(scale: float) -> None:
    measured, net = network(nn.Tanh())
    before = sharpness_gradient(measured, 2, rtol=1e-8)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(scale)
    after = sharpness_gradient(measured, 2, rtol=1e-8)
    # The signs of eigenvectors are nobody's.
    torch.testing.assert_close(after.gram.abs(), before.gram.abs(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(after.eigenvalues, before.eigenvalues, rtol=1e-8, atol=0)


@pytest.mark.parametrize("angle", [0.3, 1.2])
def test_batch_norm_regression_has_twice_the_tangent(angle: float) -> None:
    """lambda_1 is as 1 / cos^2 psi along the minimisers, psi the angle to the row space."""
    inputs, targets = draw(0, 5, 7), draw(1, 5, 1)
    targets = (targets - targets.mean()) / targets.std(correction=0)
    centred = inputs - inputs.mean(0)
    within = (torch.linalg.pinv(centred, rtol=1e-10) @ targets)[:, 0]
    beyond = draw(2, 7)
    beyond -= torch.linalg.pinv(centred, rtol=1e-10) @ (centred @ beyond)
    net = nn.Sequential(nn.Linear(7, 1, bias=False), normal(1)).double()
    with torch.no_grad():
        net[0].weight.copy_(
            math.cos(angle) * within / within.norm() + math.sin(angle) * beyond / beyond.norm()
        )
    measured = Objective(net, nn.MSELoss(), (inputs, targets))
    found = sharpness_gradient(measured, tolerance=1e-9)
    assert found.slope == pytest.approx(2 * math.tan(angle), rel=1e-5)
    expected = spherical_sharpness(measured).eigenvalues
    torch.testing.assert_close(found.eigenvalues, expected, rtol=1e-5, atol=0)


def test_what_it_says() -> None:
    measured, _ = network(nn.Tanh())
    found = sharpness_gradient(measured, 2)
    assert repr(found).startswith("Sharpness gradient: |grad log lambda_1| = ")
    assert "of the first of 2 eigenvalues" in repr(found)
    stopped = sharpness_gradient(measured, 1, max_products=5)
    assert not stopped.converged
    assert "NOT converged" in repr(stopped)
    told = found.as_dict()
    assert told["gram"] == found.gram.tolist()
    assert told["slope"] == found.slope


def test_what_has_no_such_gradient_is_refused() -> None:
    measured, net = network(nn.Tanh())
    (inputs, targets), *_ = measured.batches()
    elsewhere = Objective(net, nn.MSELoss(), (inputs, targets.flip(0)))
    with pytest.raises(ValueError, match="not near a minimum"):
        sharpness_gradient(elsewhere)
    plain = nn.Linear(5, 1, bias=False).double()
    with pytest.raises(ValueError, match="depends on the norm"):
        sharpness_gradient(Objective(plain, nn.MSELoss(), (inputs, targets)))
    for given, message in (
        ({"k": 24}, "k must be below the 24 parameters"),
        ({"tolerance": 0.0}, "tolerance must be between 0 and 1"),
        ({"rtol": 2.0}, "rtol must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            sharpness_gradient(measured, **given)  # type: ignore[arg-type]


class Written(nn.Module):
    """An activation written as a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, hidden: Tensor) -> Tensor:
        return self.function(hidden)


KINKED = {
    "relu": functional.relu,
    "prelu": lambda x: functional.prelu(x, x.new_tensor([0.1])),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_min": lambda x: torch.clamp_min(x, 0.0),
    "bounds": lambda x: torch.clamp(x, min=torch.zeros_like(x)),
    "maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "max": lambda x: torch.max(x, torch.zeros_like(x)),
    "abs": lambda x: (x + abs(x)) / 2,
    "method": lambda x: (x + x.abs()) / 2,
    "gate": lambda x: x * (x > 0),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "in place": lambda x: (x * 1).relu_(),
    "pool": lambda x: functional.max_pool1d(x[:, None], 3, 1, 1)[:, 0],
    "topk": lambda x: x - x.topk(2, dim=1).values[:, -1:],
    "elu": functional.elu,
    "selu": functional.selu,
    "celu": functional.celu,
    "relu6": functional.relu6,
    "hardtanh": functional.hardtanh,
    "shrink": functional.softshrink,
    "threshold": lambda x: functional.threshold(x, 0.1, 0.0),
}


@pytest.mark.parametrize("name", KINKED)
def test_kinks_are_refused_however_they_are_written(name: str) -> None:
    measured, _ = network(Written(KINKED[name]))
    with pytest.raises(ValueError, match="changes at kinks, which derivatives do not see"):
        sharpness_gradient(measured)


SMOOTH = {
    "gelu": functional.gelu,
    "normalised": lambda x: functional.normalize(functional.silu(x), dim=0),
    "softmax": lambda x: functional.softmax(x - x.detach().amax(1, keepdim=True), 1),
    "away": lambda x: torch.tanh(x).clamp(min=-2.0),
    "masked": lambda x: torch.where(torch.arange(4) > 1, torch.tanh(x), x.sigmoid()),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_kinks_that_nothing_comes_near_are_none(name: str) -> None:
    measured, _ = network(Written(SMOOTH[name]))
    assert sharpness_gradient(measured).converged


def test_what_has_no_third_derivative_is_refused() -> None:
    class Rough(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return torch.tanh(hidden) + 1e-7 * torch.sin(1e4 * hidden)

    measured, _ = network(Rough())
    with pytest.raises(ValueError, match="third derivative"):
        sharpness_gradient(measured)
