"""Gradient flow: closed forms, what it conserves, how its error and its cost scale."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from undertow import Objective
from undertow.train import flows

DOUBLE = torch.float64
MATRIX = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=DOUBLE)
START = torch.tensor([1.0, -2.0], dtype=DOUBLE)


def quadratic(theta: Tensor) -> Tensor:
    return theta @ MATRIX @ theta / 2


def double_well(theta: Tensor) -> Tensor:
    return -(theta**2).sum() / 2 + (theta**4).sum() / 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def exact(times: list[float]) -> Tensor:
    return torch.stack([torch.matrix_exp(-MATRIX * time) @ START for time in times])


@pytest.mark.parametrize("method", ["LSODA", "DOP853"])
def test_a_quadratic_flows_as_the_matrix_exponential(method):
    times = [0.0, 0.3, 1.0, 2.0]
    flow = flows.gradient_flow(quadratic, times, start=START, method=method, dense=True)
    assert flow.times.tolist() == times
    assert flow.stopped == "time"
    assert flow.converged
    assert torch.allclose(flow.parameters, exact(times), atol=1e-6)
    assert torch.allclose(flow.losses, torch.stack([quadratic(x) for x in flow.parameters]))
    assert flow.at is not None
    assert torch.allclose(flow.at([0.5, 1.7]), exact([0.5, 1.7]), atol=1e-6)
    assert torch.allclose(flow.at(0.5), exact([0.5])[0], atol=1e-6)


@pytest.mark.parametrize("method", ["LSODA", "DOP853"])
def test_the_error_follows_the_tolerance(method):
    errors = []
    for rtol in (1e-4, 1e-7, 1e-10):
        flow = flows.gradient_flow(quadratic, [2.0], start=START, rtol=rtol, method=method)
        errors.append(float((flow.parameters[0] - exact([2.0])[0]).norm()))
    assert errors[2] < errors[1] < errors[0] < 1e-2
    assert errors[2] < 1e-7


def test_a_deep_linear_network_stays_balanced():
    first, second = draw(4, 3), draw(2, 4, seed=1)
    target = draw(2, 3, seed=2)

    def loss(theta: Tensor) -> Tensor:
        one, two = theta[:12].reshape(4, 3), theta[12:].reshape(2, 4)
        return (two @ one - target).square().sum() / 2

    start = torch.cat([first.flatten(), second.flatten()])
    flow = flows.gradient_flow(loss, 5.0, start=start, rtol=1e-11)
    ones, twos = (
        flow.parameters[:, :12].reshape(-1, 4, 3),
        flow.parameters[:, 12:].reshape(-1, 2, 4),
    )
    balance = ones @ ones.mT - twos.mT @ twos
    assert float(flow.losses[-1]) < 0.1 * float(flow.losses[0])
    assert torch.allclose(balance, balance[:1].expand_as(balance), atol=1e-8)


def test_the_loss_falls_by_the_integral_of_the_squared_gradient():
    times = torch.linspace(0, 3, 1201, dtype=DOUBLE)
    start = torch.tensor([0.1, -1.7], dtype=DOUBLE)
    flow = flows.gradient_flow(double_well, times.tolist(), start=start, rtol=1e-10)
    rates = (-flow.parameters + flow.parameters**3).square().sum(1)
    simpson = (rates[0] + rates[-1] + 4 * rates[1::2].sum() + 2 * rates[2:-1:2].sum()) * 0.0025 / 3
    assert float(flow.losses[0] - flow.losses[-1]) == pytest.approx(float(simpson), rel=1e-6)


def test_escape_takes_the_time_and_the_steps_of_the_logarithm_of_the_start():
    steps, times = [], []
    halfway = flows.Event(lambda theta: theta[0] - 0.5)
    for size in (1e-4, 1e-8, 1e-12):
        flow = flows.gradient_flow(
            double_well,
            1e3,
            start=torch.tensor([size], dtype=DOUBLE),
            gradient_tolerance=1e-8,
            events=[halfway],
        )
        assert flow.stopped == "stationary"
        steps.append(flow.steps)
        times.append(float(flow.event_times[0]))
        # theta^2 / (1 - theta^2) grows as e^(2t).
        grown = 0.5 * math.log((1 / 3) / (size**2 / (1 - size**2)))
        assert times[-1] == pytest.approx(grown, rel=1e-5)
        assert float(flow.event_parameters[0]) == pytest.approx(0.5, rel=1e-6)
    assert steps[2] - steps[1] == pytest.approx(steps[1] - steps[0], rel=0.3)
    assert steps[2] < 500


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_flow_turns_with_its_start(seed):
    turn, _ = torch.linalg.qr(draw(3, 3, seed=seed))
    target = draw(3, 3, seed=seed + 1)
    target = target @ target.T
    start = 0.1 * draw(3, 3, seed=seed + 2)

    def loss(factor: Tensor) -> Tensor:
        return (factor @ factor.T - target).square().sum() / 4

    plain = flows.gradient_flow(loss, [1.0], start=start, rtol=1e-9)
    turned = flows.gradient_flow(loss, [1.0], start=start @ turn, rtol=1e-9)
    assert plain.parameters.shape == (1, 3, 3)
    assert torch.allclose(plain.parameters @ turn, turned.parameters, atol=1e-6)


def test_stiffness_costs_hessians_and_not_steps():
    rates = torch.logspace(0, 6, 20, dtype=DOUBLE)
    start = torch.ones(20, dtype=DOUBLE)
    flow = flows.gradient_flow(lambda x: (rates * x * x).sum() / 2, [0.0, 1.0], start=start)
    assert flow.products > 0
    assert flow.gradients < 10_000  # an explicit method needs some 300,000
    assert float(flow.parameters[-1, 0]) == pytest.approx(math.exp(-1), rel=1e-6)


def test_a_logarithmic_clock_reaches_the_end_of_a_slow_flow():
    start = torch.zeros(1, dtype=DOUBLE)
    flow = flows.gradient_flow(
        lambda x: torch.exp(-x).sum(), [1.0, 1e10, 1e20], start=start, log_time=1.0
    )
    assert flow.times.tolist() == [1.0, 1e10, 1e20]
    assert torch.allclose(flow.parameters[:, 0], torch.log1p(flow.times), rtol=1e-7)
    assert flow.gradients < 1000


def test_a_piecewise_linear_loss_has_no_curvature_and_flows_at_a_constant_speed():
    def distance(theta: Tensor) -> Tensor:
        return theta.abs().sum()

    start = torch.tensor([3.0, -2.0], dtype=DOUBLE)
    flow = flows.gradient_flow(distance, 1.5, start=start)
    assert flow.parameters[-1].tolist() == pytest.approx([1.5, -0.5])
    # At a kink the flow would slide along it, which no solver of smooth equations does.
    stuck = flows.gradient_flow(distance, 2.5, start=start, max_steps=300)
    assert stuck.stopped == "steps"
    assert stuck.products > 0


@pytest.mark.parametrize("method", ["LSODA", "DOP853"])
def test_a_blow_up_is_recorded_with_what_came_before(method):
    start = torch.ones(1, dtype=DOUBLE)
    flow = flows.gradient_flow(
        lambda x: -(x**4).sum() / 4, [0.1, 0.4, 5.0], start=start, method=method
    )
    assert flow.stopped == "diverged"
    assert not flow.converged
    # x^-2 = 1 - 2t: infinite at t = 1/2.
    assert torch.allclose(flow.parameters[:2, 0] ** -2, 1 - 2 * flow.times[:2], atol=1e-6)
    assert float(flow.times[-1]) == pytest.approx(0.5, abs=1e-3)
    assert torch.isfinite(flow.parameters).all()
    assert "diverged" in repr(flow)


def test_a_terminal_event_ends_the_flow_and_direction_is_kept():
    circle = torch.tensor([0.0, 1.0], dtype=DOUBLE)

    def first(theta: Tensor) -> Tensor:
        return theta[0] - 0.5

    events = [flows.Event(first, direction=-1), flows.Event(first, terminal=True)]
    flow = flows.gradient_flow(
        lambda x: (x - 1).square().sum() / 2, 9.0, start=circle, events=events
    )
    assert flow.stopped == "event"
    assert flow.event_times[0].numel() == 0
    assert flow.event_parameters[0].shape == (0, 2)
    assert float(flow.times[-1]) == pytest.approx(math.log(2), rel=1e-6)


def test_too_few_steps_are_said():
    flow = flows.gradient_flow(quadratic, 1.0, start=START, max_steps=2)
    assert (flow.stopped, flow.steps, flow.converged) == ("steps", 2, False)


@pytest.fixture
def network() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2))
    inputs = torch.randn(12, 3, generator=generator)
    return model, (inputs, torch.randint(0, 2, (12,), generator=generator))


def test_an_objective_flows_in_double_precision_and_its_module_stays(network, global_rng_untouched):
    model, data = network
    before = copy.deepcopy(model.state_dict())
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
    objective = Objective(model, loss, data, params=["0.weight", "3.weight"])
    flow = flows.gradient_flow(objective, [0.0, 0.5], rtol=1e-9)
    assert flow.parameters.shape == (2, objective.num_params)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert next(model.parameters()).dtype == torch.float32
    assert all(parameter.grad is None for parameter in model.parameters())

    fine = copy.deepcopy(model).double().eval()
    weight = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0], dtype=DOUBLE))
    moving = [fine[0].weight, fine[3].weight]
    for _ in range(2000):  # Euler, whose error is of first order in the step
        slopes = torch.autograd.grad(weight(fine(data[0].double()), data[1]), moving)
        with torch.no_grad():
            for parameter, slope in zip(moving, slopes, strict=True):
                parameter -= 0.5 / 2000 * slope
    end = torch.cat([parameter.detach().flatten() for parameter in moving])
    assert torch.allclose(flow.parameters[-1], end, atol=1e-4)


def test_an_objective_starts_where_it_is_told(network, global_rng_untouched):
    model, data = network
    objective = Objective(model, nn.functional.cross_entropy, data)
    start = torch.zeros(objective.num_params)
    flow = flows.gradient_flow(objective, [0.0, 0.1], start=start)
    assert torch.equal(flow.parameters[0], start.double())
    with pytest.raises(ValueError, match="start must be a vector"):
        flows.gradient_flow(objective, 1.0, start=torch.zeros(2))


def test_what_an_objective_says_is_passed_on(network):
    model, data = network
    wrong = Objective(model, nn.functional.cross_entropy, (data[0], data[1] + 5))
    with pytest.raises(ValueError, match="targets"):
        flows.gradient_flow(wrong, 1.0)
    constant = Objective(model, lambda outputs, targets: torch.ones(()), data)
    with pytest.raises(ValueError, match="depends on none"):
        flows.gradient_flow(constant, 1.0)


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"time": -1.0}, "time"),
        ({"time": [1.0, 0.5]}, "time"),
        ({"time": math.nan}, "time"),
        ({"rtol": 0.0}, "rtol"),
        ({"atol": -1.0}, "atol"),
        ({"log_time": 0.0}, "log_time"),
        ({"gradient_tolerance": -1.0}, "gradient_tolerance"),
        ({"method": "Euler"}, "method"),
        ({"max_steps": 0}, "max_steps"),
        ({"start": None}, "start"),
        ({"start": torch.tensor([math.inf])}, "start"),
        ({"objective": lambda x: x.sum() * math.nan}, "objective"),
    ],
)
def test_what_is_out_of_range_is_named(knobs, named):
    given = {"objective": quadratic, "time": 1.0, "start": START} | knobs
    with pytest.raises(ValueError, match=named):
        flows.gradient_flow(given.pop("objective"), given.pop("time"), **given)


def test_what_is_of_another_kind_is_named():
    with pytest.raises(TypeError, match="scalar tensor"):
        flows.gradient_flow(lambda x: x, 1.0, start=START)
    with pytest.raises(TypeError, match="objective"):
        flows.gradient_flow(3.0, 1.0, start=START)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="start"):
        flows.gradient_flow(quadratic, 1.0, start=torch.ones(2, dtype=torch.int64))
    with pytest.raises(TypeError, match="event"):
        flows.Event(3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="direction"):
        flows.Event(quadratic, direction=2)  # type: ignore[arg-type]


def test_times_lie_within_the_flow():
    flow = flows.gradient_flow(quadratic, 1.0, start=START, dense=True)
    assert flow.at is not None
    with pytest.raises(ValueError, match="times"):
        flow.at(2.0)
