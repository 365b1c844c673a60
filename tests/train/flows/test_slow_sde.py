"""The slow SDE of Local SGD against direct simulation, closed forms, and SGD at H = 1."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undertow.train.flows import Manifold, gradient_flow, local_sgd_slow_sde, valley_floor

WORKERS = 8
# The noise is across the minima, of variance 1 in a step of all workers.
TOY = Manifold(
    loss=lambda theta: theta[0].exp() * theta[1] ** 2 / 2,
    covariance=lambda theta: torch.diag(torch.stack([0 * theta[0], 0 * theta[0] + WORKERS])),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def predicted(
    period: int, *, lr: float, time: float, form: str = "discrete", steps: int = 40
) -> float:
    flow = local_sgd_slow_sde(
        TOY,
        time,
        lr=lr,
        num_workers=WORKERS,
        period=period,
        batch_size=WORKERS,
        start=torch.zeros(2),
        generator=generator(),
        form=form,  # type: ignore[arg-type]
        steps=steps,
    )
    return flow.states[-1, 0, 0].item()


def simulated(period: int, *, lr: float, time: float, replicas: int) -> tuple[float, float]:
    """The mean end of u under Local SGD from the stationary law of v, and its standard error."""
    draws = generator(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws).double()

    u = torch.zeros(replicas, WORKERS, dtype=torch.float64)
    v = (math.sqrt(lr / (2 - lr)) * normal(replicas, 1)).expand(-1, WORKERS)
    for step in range(1, round(time / lr**2) + 1):
        slope = u.exp()
        noise = math.sqrt(WORKERS) * normal(replicas, WORKERS)
        u, v = u - lr * slope * v**2 / 2, v - lr * (slope * v + noise)
        if step % period == 0:
            u, v = (part.mean(1, keepdim=True).expand(-1, WORKERS) for part in (u, v))
    ends = u.mean(1)
    return ends.mean().item(), ends.std().item() / math.sqrt(replicas)


@pytest.mark.slow
@pytest.mark.parametrize("period", [1, 10, 40, 160])
def test_the_toy_drifts_as_local_sgd_itself_does(period: int) -> None:
    lr, time = 0.0125, 0.2
    value, stderr = simulated(period, lr=lr, time=time, replicas=500)
    prediction = predicted(period, lr=lr, time=time)
    # Beside the noise, the theory has an error of a higher order in lr.
    assert abs(value - prediction) < 3 * stderr + lr * abs(prediction)


def test_the_discrete_form_at_one_local_step_is_sgd_and_the_continuous_form_is_not() -> None:
    lr, time = 0.02, 0.4
    found = predicted(1, lr=lr, time=time)
    alone = local_sgd_slow_sde(
        TOY,
        time,
        lr=lr,
        num_workers=1,
        period=1,
        batch_size=WORKERS,
        start=torch.zeros(2),
        generator=generator(),
        steps=40,
    )
    assert found == pytest.approx(alone.states[-1, 0, 0].item(), rel=1e-12)
    # du/dT = -1 / (4 (1 - lr e^u / 2)): nearly a straight line.
    assert found == pytest.approx(-time / 4 * (1 + lr / 2), rel=2e-3)
    spurious = predicted(1, lr=lr, time=time, form="continuous")
    assert spurious - found == pytest.approx(-time / 4 * (WORKERS - 1.5) * lr, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("period", "expected"), [(25, -0.328), (50, -0.449), (200, -0.675), (500, -0.748)]
)
def test_the_continuous_form_is_the_equation_of_the_toy(period: int, expected: float) -> None:
    found = predicted(period, lr=0.02, time=0.4, form="continuous", steps=100)
    assert found == pytest.approx(expected, abs=1e-3)


def test_forms_agree_for_small_learning_rates_and_many_local_steps() -> None:
    period, lr = 1000, 1e-3
    forms = [predicted(period, lr=lr, time=0.1, form=form) for form in ("discrete", "continuous")]
    assert forms[0] == pytest.approx(forms[1], rel=2e-3)


def test_many_local_steps_multiply_the_drift_by_the_number_of_workers() -> None:
    near = predicted(10**6, lr=1e-3, time=0.004)
    assert near == pytest.approx(WORKERS * predicted(1, lr=1e-3, time=0.004), rel=1e-2)


def circle(theta: Tensor) -> Tensor:
    return (theta.square().sum() - 1) ** 2 / 8


def isotropic(theta: Tensor) -> Tensor:
    return torch.eye(2, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("period", [1, 100])
def test_diffusion_along_a_circle_is_brownian_motion_whatever_the_local_steps(
    period: int,
) -> None:
    """By symmetry nothing drifts, and the angle has variance T / B."""
    manifold = Manifold(circle, isotropic, lambda x: x / x.norm(dim=1, keepdim=True))
    flow = local_sgd_slow_sde(
        manifold,
        0.5,
        lr=0.05,
        num_workers=2,
        period=period,
        batch_size=2,
        start=torch.tensor([1.0, 0.0]),
        replicas=2000,
        generator=generator(),
        steps=40,
    )
    value, stderr = flow.moment(1)
    wanted = torch.tensor([math.exp(-0.5 / (2 * 2)), 0.0], dtype=torch.float64)
    assert bool(((value[-1] - wanted).abs() < 4 * stderr[-1]).all())


def parabola(theta: Tensor) -> Tensor:
    """A valley y = x^2 whose walls steepen: the flow does not end at the nearest point."""
    return theta[0].exp() * (theta[1] - theta[0] ** 2) ** 2 / 2


def solved(block: Tensor) -> Tensor:
    return torch.stack([gradient_flow(parabola, 60.0, start=row).parameters[-1] for row in block])


@pytest.mark.slow
def test_without_a_projection_the_gradient_flow_is_followed() -> None:
    ends = [
        local_sgd_slow_sde(
            Manifold(parabola, isotropic, projection),
            0.2,
            lr=0.05,
            num_workers=1,
            period=1,
            batch_size=1,
            start=torch.tensor([0.5, 0.25]),
            replicas=2,
            generator=generator(),
            steps=4,
        ).states[-1]
        for projection in (None, solved)
    ]
    assert torch.allclose(ends[0], ends[1], atol=1e-4)
    assert torch.allclose(ends[0][:, 1], ends[0][:, 0] ** 2, atol=1e-6)
    assert not torch.allclose(ends[0], torch.tensor([0.5, 0.25]).double(), atol=0.1)


def test_a_replica_that_leaves_the_finite_numbers_touches_no_other() -> None:
    def breaks_below(theta: Tensor) -> Tensor:
        return TOY.covariance(theta) / (theta[0] > -0.05).double()

    flows = [
        local_sgd_slow_sde(
            Manifold(TOY.loss, breaks_below),
            0.4,
            lr=0.02,
            num_workers=1,
            period=1,
            batch_size=WORKERS,
            start=start,
            generator=generator(),
            steps=20,
        )
        for start in (torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    ]
    assert flows[0].diverged_at[0].item() == pytest.approx(0.22, abs=0.021)
    assert torch.allclose(flows[0].states[:, 1:], flows[1].states, rtol=1e-12)


@pytest.mark.slow
def test_a_replica_may_leave_the_finite_numbers_again() -> None:
    """From where it is put to go on unseen, the same happens."""
    beyond = Manifold(TOY.loss, lambda theta: TOY.covariance(theta) / (theta[0] > -0.01).double())
    flow = local_sgd_slow_sde(**(GOOD | {"manifold": beyond, "time": [1.0, 2.0, 3.0]}))  # type: ignore[arg-type]
    assert bool(flow.states.isnan().all())


def test_beyond_the_stability_of_sgd_a_replica_has_diverged() -> None:
    """Noise along the valley takes some to where its walls are steeper than 2 / lr."""
    lr, times = 0.5, [1.0, 1.1, 2.0]
    valley = Manifold(TOY.loss, isotropic, lambda block: block * torch.tensor([1.0, 0.0]))
    common = {"lr": lr, "num_workers": 1, "period": 1, "batch_size": 1, "steps": 20}
    problem = GOOD | common | {"manifold": valley, "time": times, "replicas": 200}
    flow = local_sgd_slow_sde(**problem)  # type: ignore[arg-type]
    beyond = flow.states[:-1, :, 0] > math.log(2 / lr)
    assert bool(beyond.any())
    assert bool(flow.states[1:][beyond].isnan().all())
    assert 0 < int(flow.diverged_at.isfinite().sum()) < 50
    # The equation in continuous time knows no such bound.
    assert local_sgd_slow_sde(**problem, form="continuous").converged  # type: ignore[arg-type]


GOOD = {
    "manifold": TOY,
    "time": 0.1,
    "lr": 0.02,
    "num_workers": 2,
    "period": 4,
    "batch_size": 4,
    "start": torch.zeros(2),
    "generator": generator(),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": torch.tensor([0.0, 0.5])}, "start must lie on the manifold of minima"),
        ({"start": torch.tensor([math.nan, 0.5])}, "start holds NaN"),
        ({"period": 0}, "period must be at least 1, got 0"),
        ({"num_workers": 0}, "num_workers must be"),
        ({"batch_size": 5}, "a multiple of 2, got 5"),
        ({"lr": 0.0}, "lr must be"),
        ({"lr": 2.5}, "lr must be below 2 / 1 = 2"),
        ({"form": "exact"}, "form must be"),
        ({"steps": 0}, "steps must be"),
        (
            {"manifold": Manifold(TOY.loss, lambda theta: -torch.eye(2, dtype=torch.float64))},
            "covariance at start has the negative eigenvalue -1",
        ),
        (
            {"manifold": Manifold(TOY.loss, lambda theta: torch.eye(3, dtype=torch.float64))},
            "covariance must give",
        ),
        (
            {"manifold": Manifold(lambda theta: -(theta**2).sum(), TOY.covariance)},
            "start must lie on the manifold",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        local_sgd_slow_sde(**(GOOD | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["num_workers", "period", "batch_size", "steps"])
def test_a_count_that_is_no_whole_number_is_a_type_error(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got 0.5"):
        local_sgd_slow_sde(**(GOOD | {name: 0.5}))  # type: ignore[arg-type]


def test_the_floor_of_a_valley_is_where_its_gradient_flow_ends() -> None:
    """And its slow equation that of the same manifold whose way down is followed."""
    floor = valley_floor(across=math.sqrt(WORKERS))
    assert floor.projection is not None
    aside = torch.tensor([[0.3, 0.7], [-0.5, -1.0]], dtype=torch.float64)
    for start, end in zip(aside, floor.projection(aside), strict=True):
        flow = gradient_flow(floor.loss, 60.0, start=start)
        torch.testing.assert_close(flow.parameters[-1], end, rtol=1e-4, atol=1e-6)
    run = {"lr": 0.05, "num_workers": WORKERS, "period": 20, "batch_size": WORKERS, "steps": 20}
    ends = [
        local_sgd_slow_sde(own, 0.3, start=torch.zeros(2), generator=generator(), **run)
        for own in (floor, TOY)
    ]
    torch.testing.assert_close(ends[0].states, ends[1].states, rtol=1e-6, atol=1e-8)
