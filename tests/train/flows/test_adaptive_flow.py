"""The SDEs of RMSprop and Adam: exact moments where v is known, invariances, and the start at 0."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from undertow.objective import Objective
from undertow.train.flows import NoisyGradient, adam_sde, rmsprop_sde

LR, TIME = 0.1, 0.5
CURVATURE = torch.tensor([0.5, 2.0], dtype=torch.float64)
VARIANCES = torch.tensor([25.0, 100.0], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slope(theta: Tensor) -> Tensor:
    return theta * CURVATURE


def problem(scale: float = 1.0) -> NoisyGradient:
    return NoisyGradient(lambda theta: scale * slope(theta), covariance=scale**2 * VARIANCES)


def test_rmsprop_at_rest_is_an_ornstein_uhlenbeck_process_with_a_preconditioner() -> None:
    eps = 2.0
    flow = rmsprop_sde(
        problem(),
        TIME,
        lr=LR,
        eps=eps,
        start=torch.ones(2),
        replicas=20_000,
        substeps=10,
        generator=generator(),
    )
    divisor = VARIANCES.sqrt() + eps  # v stays at the variance
    rate = CURVATURE / (LR * divisor)
    shrunk = torch.exp(-2 * rate * TIME)
    wanted = shrunk + VARIANCES / divisor**2 * (1 - shrunk) / (2 * rate)
    value, stderr = flow.moment(2)
    assert bool(((value[-1] - wanted).abs() < 4 * stderr[-1] + 0.003 * wanted).all())
    assert flow.square is not None
    assert torch.allclose(flow.square[-1], VARIANCES.expand(20_000, -1))


def test_averages_relax_at_the_rates_of_beta() -> None:
    """Without noise m and v are exponentials, exact for any number of substeps."""
    still = NoisyGradient(lambda theta: torch.full_like(theta, 3.0), covariance=torch.zeros(2))
    start_time, beta1, beta2 = 0.3, 0.95, 0.98
    flow = adam_sde(
        still,
        TIME,
        lr=LR,
        beta1=beta1,
        beta2=beta2,
        eps=1.0,
        start=torch.zeros(2),
        start_time=start_time,
        mean=torch.zeros(2),
        square=torch.full((2,), 4.0),
        substeps=1,
        generator=generator(),
    )
    rate1, rate2 = (1 - beta1) / LR**2, (1 - beta2) / LR**2
    assert flow.mean is not None
    assert flow.square is not None
    assert flow.mean[-1, 0, 0].item() == pytest.approx(3 * (1 - math.exp(-rate1 * TIME)))
    assert flow.square[-1, 0, 0].item() == pytest.approx(4 * math.exp(-rate2 * TIME))


def test_adam_with_a_constant_gradient_moves_at_the_speed_of_its_quotient() -> None:
    """With m / g1 = grad and v / g2 = diag C exactly, theta is a straight line from time 0 on."""
    gradient, variance, eps = 3.0, 16.0, 1.0
    still = NoisyGradient(
        lambda theta: torch.full_like(theta, gradient), covariance=torch.full((1,), variance)
    )
    flow = adam_sde(
        still,
        [0.1, TIME],
        lr=LR,
        eps=eps,
        start=torch.zeros(1),
        replicas=5000,
        generator=generator(),
    )
    value, stderr = flow.moment(1)
    wanted = -gradient * flow.times / (LR * (math.sqrt(variance) + eps))
    assert bool(((value[:, 0] - wanted).abs() < 4 * stderr[:, 0]).all())


def test_the_start_of_adam_has_a_limit() -> None:
    """Finer steps change the second moment at an early time less and less."""
    early = [
        adam_sde(
            problem(),
            2 * LR**2,
            lr=LR,
            start=torch.zeros(2),
            replicas=40_000,
            substeps=substeps,
            generator=generator(substeps),
        ).moment(2)[0][-1, 0]
        for substeps in (8, 16, 64)
    ]
    assert abs(early[1] - early[2]) < abs(early[0] - early[2]) < 0.2 * early[2]


@pytest.mark.parametrize("solve", [rmsprop_sde, adam_sde])
def test_a_loss_in_other_units_has_the_same_paths(solve) -> None:
    """Gradient, noise and eps times a constant: sigma is nowhere but in their ratio."""
    ends = [
        solve(
            problem(scale),
            TIME,
            lr=LR,
            eps=0.5 * scale,
            start=torch.ones(2),
            replicas=4,
            generator=generator(),
        ).states
        for scale in (1.0, 7.0)
    ]
    assert torch.allclose(ends[0], ends[1], rtol=1e-10)


@pytest.mark.parametrize("solve", [rmsprop_sde, adam_sde])
def test_the_square_root_rule_leaves_the_sde_as_it_is(solve) -> None:
    """Batch x k: lr sqrt(k), 1 - beta k, eps / sqrt(k) (2205.10287), time in lr^2 steps."""
    base, k = {"beta2": 0.99}, 4.0
    if solve is adam_sde:
        base["beta1"] = 0.95
    scaled = {name: 1 - k * (1 - beta) for name, beta in base.items()}
    ends = [
        solve(
            NoisyGradient(slope, covariance=VARIANCES / size),
            TIME,
            lr=LR * math.sqrt(size),
            eps=0.5 / math.sqrt(size),
            start=torch.ones(2),
            replicas=4,
            substeps=round(8 * size),
            generator=generator(),
            **betas,
        ).states
        for size, betas in ((1.0, base), (k, scaled))
    ]
    assert torch.allclose(ends[0], ends[1], rtol=1e-9)


@pytest.mark.parametrize("solve", [rmsprop_sde, adam_sde])
def test_squares_of_the_noise_stand_in_for_an_unknown_variance(solve) -> None:
    """A noise function gives the law of the same covariance given as numbers."""
    unknown = NoisyGradient(slope, noise=lambda theta, z: z * VARIANCES.sqrt())
    found = [
        solve(
            each, TIME, lr=LR, start=torch.ones(2), replicas=20_000, generator=generator(seed)
        ).moment(2)
        for seed, each in enumerate((problem(), unknown))
    ]
    (value, stderr), (other, other_stderr) = found
    spread = (stderr.square() + other_stderr.square()).sqrt()
    # Fluctuations of v bias its root by (1 - beta2) / (8 substeps).
    assert bool(((value - other).abs() < 4 * spread + 0.002 * value).all())


def test_the_default_square_of_an_objective_is_the_variance_of_its_gradient() -> None:
    model = nn.Linear(2, 1).double()
    inputs = torch.randn(9, 2, dtype=torch.float64, generator=generator(1))
    targets = torch.randn(9, 1, dtype=torch.float64, generator=generator(2))
    flow = rmsprop_sde(
        Objective(model, nn.MSELoss(), (inputs, targets)),
        [0.0, 0.01],
        lr=LR,
        batch_size=3,
        replicas=2,
        generator=generator(),
    )
    with torch.no_grad():
        slopes = 2 * (model(inputs) - targets) * torch.cat([inputs, torch.ones(9, 1)], 1)
    wanted = slopes.var(0, correction=0) / 3
    assert flow.square is not None
    assert torch.allclose(flow.square[0], wanted.expand(2, -1))
    assert bool(torch.isfinite(flow.states).all())


def test_the_default_square_counts_class_weights_and_pieces_of_the_data_as_the_noise_does() -> None:
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs = torch.randn(21, 3, dtype=torch.float64, generator=generator(1))
    labels = torch.randint(2, (21,), generator=generator(2))
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0], dtype=torch.float64))
    objective = Objective(model, loss, (inputs, labels), microbatch=10)
    start = torch.randn(2, objective.num_params, dtype=torch.float64, generator=generator(3))
    flow = rmsprop_sde(
        objective, [0.0, 1e-4], lr=LR, batch_size=3, start=start, generator=generator()
    )
    assert flow.square is not None
    for own, square in zip(start, flow.square[0], strict=True):
        nn.utils.vector_to_parameters(own, model.parameters())
        each = nn.functional.cross_entropy(model(inputs), labels, loss.weight, reduction="none")
        rows = torch.stack(
            [
                torch.cat([part.flatten() for part in parts])
                for parts in (
                    torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
                    for value in each
                )
            ]
        )
        counts = loss.weight[labels]
        away = rows - counts[:, None] * rows.sum(0) / counts.sum()
        wanted = away.square().mean(0) / (3 * counts.mean() ** 2)
        assert torch.allclose(square, wanted, rtol=1e-9)


def test_the_default_square_takes_samples_together() -> None:
    model = nn.Linear(2, 1)
    data = torch.randn(64, 2, generator=generator(1)), torch.randn(64, 1, generator=generator(2))
    objective = Objective(model, nn.MSELoss(), data)
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    rmsprop_sde(objective, 1e-9, lr=LR, batch_size=3, substeps=1, generator=generator())
    assert len(passes) < 64 / 4


GOOD = {"time": TIME, "lr": LR, "start": torch.ones(2), "generator": generator()}


@pytest.mark.parametrize("solve", [rmsprop_sde, adam_sde])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -0.1}, "lr must be a finite number above 0"),
        ({"beta2": 1.0}, "beta2 must be from 0 to below 1"),
        ({"eps": -1.0}, "eps must be"),
        ({"eps": math.nan}, "eps must be"),
        ({"substeps": 0}, "substeps must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(solve, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve(problem(), **(GOOD | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"square": torch.tensor([1.0, -1.0])}, "square is a mean of squares"),
        ({"square": torch.ones(3)}, r"square must be \[2\] or \[1, 2\], got \(3,\)"),
    ],
)
def test_a_square_that_makes_no_sense_is_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rmsprop_sde(problem(), **(GOOD | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta1": 1.0}, "beta1 must be"),
        ({"start_time": 1.0}, "start_time > 0, mean and square together"),
        ({"mean": torch.zeros(2), "square": torch.ones(2)}, "start_time > 0, mean and square"),
        ({"start_time": -1.0}, "start_time must be"),
    ],
)
def test_an_age_of_adam_that_makes_no_sense_is_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adam_sde(problem(), **(GOOD | change))
