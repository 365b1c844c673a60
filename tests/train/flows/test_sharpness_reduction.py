"""The sharpness-reduction flow on manifolds where its solution is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from undertow import Objective
from undertow.train import flows

DOUBLE = torch.float64
STEEP = 1.5


def circle(weights: Tensor) -> Tensor:
    """Minimisers: the circle w3 = 0, of sharpness e^(STEEP cos phi)."""
    angle = torch.atan2(weights[1], weights[0])
    return weights[2] ** 2 / weights.square().sum() * torch.exp(STEEP * torch.cos(angle)) / 2


def on_circle(angle: float, length: float = 1.0) -> Tensor:
    return length * torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=DOUBLE)


@pytest.mark.parametrize("length", [1.0, 3.0])
def test_an_angle_on_a_circle_solves_its_own_equation(length):
    flow = flows.sharpness_reduction_flow(
        circle, [0.0, 0.5, 1.0, 2.0, 3.0], start=on_circle(1.0, length), rtol=1e-8
    )
    angle = torch.atan2(flow.parameters[:, 1], flow.parameters[:, 0])
    # d phi / d tau = 2 k sin phi / (4 + k^2 sin^2 phi), which integrates to:
    clock = 2 / STEEP * torch.log(torch.tan(angle / 2)) - STEEP / 2 * torch.cos(angle)
    assert torch.allclose(clock - clock[0], flow.times, atol=1e-6)
    assert torch.allclose(flow.sharpness, torch.exp(STEEP * torch.cos(angle)), rtol=1e-9)
    assert torch.allclose(flow.parameters.norm(dim=1), torch.ones(5, dtype=DOUBLE))
    assert (flow.sharpness.diff() < 0).all()
    assert (flow.dimension, flow.stopped, flow.converged) == (1, "time", True)
    assert float(flow.distance.max()) < 1e-10


def normalised_regression() -> tuple[Objective, Tensor, Tensor]:
    """Batch norm over one linear output, with a unit minimiser in the row space and one beyond."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 7, generator=generator, dtype=DOUBLE)
    targets = torch.randn(5, 1, generator=generator, dtype=DOUBLE)
    targets = (targets - targets.mean()) / targets.std(correction=0)
    normal = nn.BatchNorm1d(1, affine=False, track_running_stats=False, eps=1e-13)
    model = nn.Sequential(nn.Linear(7, 1, bias=False), normal).double()
    inverse = torch.linalg.pinv(inputs - inputs.mean(0), rtol=1e-10)
    inside = (inverse @ targets)[:, 0]
    beyond = torch.randn(7, generator=generator, dtype=DOUBLE)
    beyond -= inverse @ ((inputs - inputs.mean(0)) @ beyond)
    objective = Objective(model, nn.functional.mse_loss, (inputs, targets))
    return objective, inside / inside.norm(), beyond / beyond.norm()


def test_normalised_regression_forgets_its_null_space_at_the_rate_of_the_decay():
    objective, inside, beyond = normalised_regression()
    start = math.cos(1.2) * inside + math.sin(1.2) * beyond
    flow = flows.sharpness_reduction_flow(objective, [0.0, 1.0, 3.0], start=start)
    along, across = flow.parameters @ inside, flow.parameters @ beyond
    # tan psi(tau) = tan psi(0) e^(-tau), and lambda_1 = c / cos^2 psi.
    assert torch.allclose(across / along, math.tan(1.2) * torch.exp(-flow.times), rtol=1e-5)
    flat = flow.sharpness * along**2
    assert torch.allclose(flat, flat[:1].expand(3), rtol=1e-6)
    assert flow.dimension == 7 - 1 - 3  # the Hessian has the rank of centred inputs, less one


@pytest.mark.slow
def test_a_crossing_of_eigenvalues_ends_the_flow():
    def crossing(weights: Tensor) -> Tensor:
        angle = torch.atan2(weights[1], weights[0])
        normal = weights[2] ** 2 * torch.exp(STEEP * torch.cos(angle)) + weights[3] ** 2
        return normal / weights.square().sum() / 2

    start = torch.tensor([math.cos(1.0), math.sin(1.0), 0.0, 0.0], dtype=DOUBLE)
    flow = flows.sharpness_reduction_flow(crossing, 3.0, start=start)
    assert flow.stopped == "crossing"
    # The second eigenvalue is one everywhere: cos phi = 0.
    assert float(flow.sharpness[-1]) == pytest.approx(1.0, abs=1e-2)
    with pytest.raises(ValueError, match="not simple"):
        flows.sharpness_reduction_flow(crossing, 1.0, start=torch.eye(4, dtype=DOUBLE)[1])


@pytest.mark.parametrize(
    ("loss", "start", "named"),
    [
        (circle, on_circle(1.0) + torch.tensor([0.0, 0.0, 0.1]), "not a minimum"),
        (lambda w: -circle(w), on_circle(1.0), "not a minimum"),
        (
            lambda w: circle(w) - w[1] ** 2 / w.square().sum() / 9,
            on_circle(0.0),
            "saddle",
        ),
        (lambda w: (w.square().sum() - 1).square(), on_circle(1.0), "scale-invariant"),
        (circle, torch.zeros(3, dtype=DOUBLE) + 0.0, "objective|start"),
    ],
)
def test_a_start_off_the_minimisers_is_refused(loss, start, named):
    with pytest.raises(ValueError, match=named):
        flows.sharpness_reduction_flow(loss, 1.0, start=start)


@pytest.mark.parametrize("knob", [{"rtol": 0.0}, {"tolerance": 2.0}, {"max_steps": 0}])
def test_a_knob_out_of_range_is_named(knob):
    with pytest.raises(ValueError, match=next(iter(knob))):
        flows.sharpness_reduction_flow(circle, 1.0, start=on_circle(1.0), **knob)


def test_descent_at_the_edge_with_decay_follows_the_flow():
    """Steps (1 - lr decay) w - lr grad L, once its effective rate has reached 2 / lambda_1."""
    lr, decay = 0.5, 4e-4  # intrinsic rate sqrt(2 lr decay) = 0.02

    def slope(weights: Tensor) -> Tensor:
        point = weights.clone().requires_grad_()
        return torch.autograd.grad(circle(point), point)[0]

    angle = 1.0
    size = math.sqrt(lr * math.exp(STEEP * math.cos(angle)) / 2)  # lr / ||w||^2 = 2 / lambda_1
    weights = on_circle(angle, size) + torch.tensor([0.0, 0.0, 3e-3 * size], dtype=DOUBLE)
    steps = round(1.0 / (lr * decay))
    for _ in range(steps):
        weights = (1 - lr * decay) * weights - lr * slope(weights)
    flow = flows.sharpness_reduction_flow(circle, [1.0], start=on_circle(angle))
    reached = math.atan2(float(weights[1]), float(weights[0]))
    expected = math.atan2(float(flow.parameters[0, 1]), float(flow.parameters[0, 0]))
    assert abs(reached - expected) < 0.05 * (expected - angle)
