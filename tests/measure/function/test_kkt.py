"""KKT residuals against exact support vector machines, margins from growth against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import optimize
from torch import Tensor, nn
from torch.nn import functional

from undertow import train
from undertow.measure import kkt_residual, margin_from_growth, margins
from undertow.models import mlp
from undertow.objective import Objective

DOUBLE = torch.float64
minimize: Any = optimize.minimize  # its overloads know no arrays of more than one kind


class Linear(nn.Module):
    """A network of degree L whose margin problem is convex: |w|^(L-1) w . x, of one output."""

    def __init__(self, weight: Tensor, degree: int = 1) -> None:
        super().__init__()
        self.weight, self.degree = nn.Parameter(weight), degree

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight.norm() ** (self.degree - 1) * (inputs @ self.weight)


def separable(seed: int, samples: int = 15, features: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, features, generator=generator, dtype=DOUBLE)
    signs = inputs[:, 0].sign()
    inputs[:, 0] += 0.5 * signs
    return inputs, signs


def machine(rows: Tensor) -> Tensor:
    """The shortest v with rows v >= 1, by another solver."""
    found = minimize(
        lambda v: v @ v / 2,
        [5.0] + [0.0] * (rows.shape[1] - 1),
        jac=lambda v: v,
        constraints={
            "type": "ineq",
            "fun": lambda v: rows.numpy() @ v - 1,
            "jac": lambda v: rows.numpy(),
        },
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert found.success
    return torch.from_numpy(found.x)


def at(weight: Tensor, data: tuple[Tensor, Tensor], degree: int = 1) -> Objective:
    return Objective(Linear(weight.clone(), degree), nn.SoftMarginLoss(), data)


@pytest.mark.parametrize("seed", range(4))
def test_zero_at_the_exact_solution_and_elsewhere_what_it_could_gain(seed: int) -> None:
    inputs, signs = separable(seed)
    best = machine(signs[:, None] * inputs)
    assert kkt_residual(at(best, (inputs, signs))).value == pytest.approx(0, abs=1e-6)
    other = best + 0.1 * torch.tensor([0.0, 1.0, -1.0], dtype=DOUBLE) * best.norm()
    found = kkt_residual(at(other, (inputs, signs)))
    least = float((signs * (inputs @ other)).min() / other.norm())
    assert found.value == pytest.approx(1 - (least * float(best.norm())) ** 2, rel=1e-6)
    assert found.converged
    assert found.stationarity**2 + 2 * found.complementarity == pytest.approx(found.value)
    assert found.stationarity**2 <= found.value
    assert found.support <= 3


def test_free_of_the_scale_of_parameters_and_inputs_and_of_how_small_the_loss_is() -> None:
    inputs, labels = separable(1, 20, 4)
    net = mlp((4, 6, 2), bias=False, generator=torch.Generator().manual_seed(2))
    labels = (labels > 0).long()
    stack = train.LogDomain([net], inputs[None], labels[None])
    train.past_zero_loss(stack, -5.0)
    once = kkt_residual(Objective(stack.module(0), functional.cross_entropy, (inputs, labels)))
    scaled = stack.module(0)
    with torch.no_grad():
        for each in scaled.parameters():
            each.mul_(20.0)
    far = kkt_residual(Objective(scaled, functional.cross_entropy, (3.0 * inputs, labels)))
    assert far.value == pytest.approx(once.value, rel=1e-6)
    assert far.stationarity == pytest.approx(once.stationarity, rel=1e-6)
    assert 0 < once.value < 1
    assert math.isfinite(far.alignment)


def dense(net: nn.Module, inputs: Tensor, labels: Tensor, degree: float) -> tuple[Tensor, Tensor]:
    """All gradients g of all classes' margins, and the ratios r."""
    own = list(net.parameters())
    rho = float(torch.stack([each.detach().norm() for each in own]).norm())
    rows, gaps = [], []
    for sample, label in zip(inputs, labels.tolist(), strict=True):
        scores = net(sample[None])[0]
        for other in range(len(scores)):
            if other != label:
                gap = scores[label] - scores[other]
                parts = torch.autograd.grad(gap, own, retain_graph=True)
                rows.append(torch.cat([part.reshape(-1) for part in parts]))
                gaps.append(float(gap.detach()))
    least = min(gaps)
    return torch.stack(rows) * rho / (degree * least), torch.tensor(gaps) / least


@pytest.mark.parametrize("batched", [False, True])
def test_of_several_classes_it_is_that_of_all_constraints(batched: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(30, 6, generator=generator, dtype=DOUBLE)
    labels = torch.randint(4, (30,), generator=generator)
    net = mlp((6, 12, 4), bias=False, generator=generator)
    stack = train.LogDomain([net], inputs[None], labels[None])
    train.past_zero_loss(stack, -3.0)
    net = stack.module(0)
    data: Any = list(zip(inputs.split(7), labels.split(7), strict=True))
    objective = Objective(net, functional.cross_entropy, data if batched else (inputs, labels))
    found = kkt_residual(objective, atol=1e-9)
    rows, ratios = dense(net, inputs, labels, 2)
    flat = torch.cat([each.detach().reshape(-1) for each in net.parameters()])
    torch.testing.assert_close(rows @ (flat / flat.norm()), ratios.double(), rtol=1e-6, atol=0)
    # The dual, by another solver: the most of sum mu - |mu rows|^2 / 2 over mu >= 0.
    gram = (rows @ rows.T).numpy()
    best = minimize(
        lambda mu: mu @ gram @ mu / 2 - mu.sum(),
        [0.01] * len(gram),
        jac=lambda mu: gram @ mu - 1,
        bounds=[(0, None)] * len(gram),
        method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-10, "maxiter": 20_000, "maxfun": 10**6},
    )
    assert found.value == pytest.approx(1 + 2 * best.fun, rel=1e-3)
    assert found.converged
    cut = kkt_residual(objective, atol=1e-9, max_active=64)
    assert cut.interval[0] - 1e-9 <= found.value <= cut.interval[1] + 1e-9


def test_the_losses_own_multipliers_are_its_gradient() -> None:
    inputs, signs = separable(2)
    weight = torch.tensor([1.0, 0.1, 0.1], dtype=DOUBLE)
    objective = at(weight, (inputs, signs))
    found = kkt_residual(objective, degree=1)
    gradient = objective.gradient()
    expected = -float(weight @ gradient / weight.norm() / gradient.norm())
    assert found.alignment == pytest.approx(expected, rel=1e-9)


def test_what_has_no_margin_is_refused_in_a_line() -> None:
    inputs, signs = separable(0)
    labels = (signs > 0).long()
    biased = mlp((3, 5, 2), generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(ValueError, match="must be homogeneous"):
        kkt_residual(Objective(biased, functional.cross_entropy, (inputs, labels)))
    with pytest.raises(ValueError, match=r"must be separated.*15 of 15"):
        kkt_residual(at(torch.tensor([-1.0, 0, 0], dtype=DOUBLE), (inputs, signs)))
    with pytest.raises(ValueError, match="atol"):
        kkt_residual(at(torch.ones(3, dtype=DOUBLE), (inputs, signs)), atol=0.0)
    with pytest.raises(ValueError, match="degree must be positive"):
        kkt_residual(at(torch.ones(3, dtype=DOUBLE), (inputs, signs)), degree=0.0)


# ---- margins from growth


def test_an_offset_is_no_part_of_the_slope() -> None:
    """Of 2^k like samples, log(1 / Loss) = q - k log 2: exactly a line in rho^L."""
    inputs = torch.tensor([[0.3]], dtype=DOUBLE).expand(64, 1)
    data = inputs, torch.ones(64, dtype=DOUBLE)
    readings = [
        margins(at(torch.tensor([size], dtype=DOUBLE), data, 3), degree=3, smoothing="exponential")
        for size in (3.0, 3.5, 4.5, 6.0)
    ]
    found = margin_from_growth(readings)
    assert found.value == pytest.approx(0.3, rel=1e-9)
    assert found.stderr < 1e-9
    assert found.offset == pytest.approx(math.log(64), rel=1e-6)
    assert found.smoothed < 0.3
    assert "offset of 4.16" in repr(found)
    assert "not an interval" in repr(found)


@pytest.mark.parametrize("seed", range(6))
def test_along_descent_it_is_the_exact_machine_within_its_error(seed: int) -> None:
    """Of a linear classifier, whose margin is known and whose start hides most of it."""
    inputs, signs = separable(seed)
    labels = (signs > 0).long()
    # Two outputs w and -w' start apart, so that the direction has a way to go.
    net = nn.Linear(3, 2, bias=False)
    stack = train.LogDomain([net], inputs[None], labels[None])
    readings = []
    for goal in (-2.0, -4.0, -8.0, -16.0, -32.0):
        train.past_zero_loss(stack, goal, relative_step=1e-3, momentum=0.0, period=10)
        data = Objective(stack.module(0), functional.cross_entropy, (inputs, labels))
        readings.append(margins(data, degree=1))
    found = margin_from_growth(readings)
    # q = (w_1 - w_2) . x is largest for given norm at w_1 = -w_2: sqrt(2) times the one row's.
    exact = math.sqrt(2) / float(machine(signs[:, None] * inputs).norm())
    assert abs(found.value - exact) <= 3 * found.stderr + 0.01 * exact
    assert abs(found.value - exact) < abs(readings[-1].smoothed - exact) + 0.01 * exact


def test_readings_that_make_no_line_are_refused() -> None:
    data = torch.tensor([[0.3]], dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)

    def reading(size: float, degree: int = 1) -> Any:
        return margins(at(torch.tensor([size], dtype=DOUBLE), data, degree), degree=degree)

    with pytest.raises(ValueError, match=r"at least 3.*got 2"):
        margin_from_growth([reading(5.0), reading(9.0)])
    with pytest.raises(ValueError, match="growing"):
        margin_from_growth([reading(9.0), reading(5.0), reading(10.0)])
    with pytest.raises(ValueError, match="one degree"):
        margin_from_growth([reading(5.0), reading(9.0), reading(10.0, 2)])
    with pytest.raises(ValueError, match="reading 0 has a loss above"):
        margin_from_growth([reading(-5.0), reading(9.0), reading(10.0)])
