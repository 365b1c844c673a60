"""The SDE of SGD: exact moments, noise drawn through a network, and replicas that stay apart."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from undertow.objective import Objective
from undertow.train import Ensemble, Member
from undertow.train.flows import NoisyGradient, sgd_sde

CURVATURE = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, -0.5], [-0.5, 2.0]], dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hill(theta: Tensor) -> Tensor:
    return theta @ CURVATURE


def network(samples: int = 7, loss: nn.Module | None = None) -> Objective:
    """Two classes, with batch norm's statistics frozen."""
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    inputs = torch.randn(samples, 3, generator=generator(1))
    labels = torch.randint(2, (samples,), generator=generator(2))
    return Objective(model, loss or nn.CrossEntropyLoss(), (inputs, labels))


def test_moments_of_a_quadratic_are_those_of_its_ornstein_uhlenbeck_process() -> None:
    lr, time = 0.2, 1.5
    problem = NoisyGradient(hill, covariance=COVARIANCE)
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    flow = sgd_sde(
        problem, time, lr=lr, start=start, replicas=20_000, substeps=20, generator=generator()
    )
    values, vectors = torch.linalg.eigh(CURVATURE)
    mean = vectors @ torch.diag(torch.exp(-values * time)) @ vectors.T @ start
    sums = values[:, None] + values[None, :]
    turned = vectors.T @ COVARIANCE @ vectors
    spread = vectors @ (lr * turned * -torch.expm1(-sums * time) / sums) @ vectors.T
    ends = flow.states[-1]
    error = 5 / math.sqrt(len(ends))
    assert torch.allclose(ends.mean(0), mean, atol=error * spread.diagonal().max().sqrt())
    assert torch.allclose(ends.T.cov(), spread, atol=error * spread.diagonal().max())


def test_forms_of_one_covariance_give_the_same_law_and_diagonal_forms_the_same_paths() -> None:
    variances = torch.tensor([0.3, 2.0], dtype=torch.float64)
    forms: list[NoisyGradient] = [
        NoisyGradient(hill, covariance=variances),
        NoisyGradient(hill, factor=variances.sqrt().diag()),
        NoisyGradient(hill, noise=lambda theta, z: z * variances.sqrt()),
    ]
    ends = [
        sgd_sde(form, 1.0, lr=0.1, start=torch.ones(2), replicas=5, generator=generator()).states
        for form in forms
    ]
    for other in ends[1:]:
        assert torch.allclose(other, ends[0], atol=1e-12)


def explicit(objective: Objective, batch_size: int) -> NoisyGradient:
    """The objective's gradients and noise by its own methods, one replica at a time."""
    model = copy.deepcopy(objective.model).double()
    [(inputs, labels)] = objective.batches()
    inputs = inputs.double()
    twin = Objective(model, objective.loss, (inputs, labels))
    parameters = list(model.parameters())

    def at(theta: Tensor) -> Objective:
        nn.utils.vector_to_parameters(theta, parameters)
        return twin

    def noise(theta: Tensor, z: Tensor) -> Tensor:
        rows = []
        for own, numbers in zip(theta, z, strict=True):
            at(own)
            with torch.enable_grad():
                losses = nn.CrossEntropyLoss(reduction="none")(model.eval()(inputs), labels)
                drawn = (losses * (numbers - numbers.mean())).sum()
                grads = torch.autograd.grad(drawn, parameters)
            flat = torch.cat([grad.flatten() for grad in grads])
            rows.append(flat / math.sqrt(len(labels) * batch_size))
        return torch.stack(rows)

    return NoisyGradient(
        lambda theta: torch.stack([at(own).gradient() for own in theta]),
        noise=noise,
        noise_size=len(labels),
    )


def test_an_objective_gives_the_paths_of_its_gradient_and_its_noise_written_out() -> None:
    objective = network()
    own = torch.cat([p.detach().flatten() for p in objective.model.parameters()]).double()
    common = {"lr": 0.1, "replicas": 3, "substeps": 2, "weight_decay": 0.1}
    flow = sgd_sde(objective, [0.2, 0.5], batch_size=2, generator=generator(), **common)
    other = sgd_sde(explicit(objective, 2), [0.2, 0.5], start=own, generator=generator(), **common)
    assert torch.allclose(flow.states, other.states, rtol=1e-9, atol=1e-12)


def test_microbatches_do_not_change_the_paths() -> None:
    whole = network()
    parts = Objective(whole.model, whole.loss, next(whole.batches()), microbatch=3)
    ends = [
        sgd_sde(each, 0.3, lr=0.1, batch_size=2, replicas=3, generator=generator()).states
        for each in (whole, parts)
    ]
    assert torch.allclose(ends[0], ends[1], rtol=1e-10)


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]))],
    ids=["plain", "weighted"],
)
def test_noise_of_an_objective_has_the_covariance_of_sample_noise(loss: nn.Module) -> None:
    objective = network(loss=loss)
    draws = 5000
    flow = sgd_sde(
        objective, 1e-4, lr=1e-4, batch_size=2, replicas=draws, substeps=1, generator=generator()
    )
    own = torch.cat([p.detach().flatten() for p in objective.model.parameters()]).double()
    found = ((flow.states[-1] - own) / 1e-4).T.cov()
    wanted = objective.sample_noise(draws, batch_size=2, generator=generator(9)).double().T.cov()
    assert float((found - wanted).norm() / wanted.norm()) < 0.1
    drift = (own - flow.states[-1].mean(0)) / 1e-4
    stderr = found.diagonal().sqrt() / math.sqrt(draws)
    assert bool(((drift - objective.gradient().double()).abs() < 5 * stderr + 1e-6).all())


@pytest.mark.slow
def test_minibatch_sgd_itself_spreads_as_the_sde_says() -> None:
    """Real batches with replacement, from the same weights, against the SDE."""
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    pair = next(network(12).batches())
    lr, steps, runs = 0.05, 20, 800
    members = [Member(seed=seed, lr=lr, order="replacement") for seed in range(runs)]
    ensemble = Ensemble(
        model, nn.CrossEntropyLoss(), pair, members, batch_size=2, dtype=torch.float64
    )
    ensemble.train(steps=steps)
    ends = torch.cat([value.flatten(1) for value in ensemble.parameters().values()], 1)
    flow = sgd_sde(
        Objective(model, nn.CrossEntropyLoss(), pair),
        steps * lr,
        lr=lr,
        batch_size=2,
        replicas=runs,
        substeps=4,
        generator=generator(),
    )
    found, wanted = ends.T.cov(), flow.states[-1].T.cov()
    assert float(found.trace() / wanted.trace()) == pytest.approx(1, abs=0.1)
    assert float((found - wanted).norm() / wanted.norm()) < 0.2


def test_the_model_and_the_global_random_state_are_left_alone(global_rng_untouched: None) -> None:
    objective = network()
    objective.model.train()
    before = copy.deepcopy(objective.model.state_dict())
    sgd_sde(objective, 0.2, lr=0.1, batch_size=2, replicas=3, generator=generator())
    assert objective.model.training
    assert all(parameter.grad is None for parameter in objective.model.parameters())
    for name, value in objective.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_replica_that_diverges_is_masked_from_then_on_and_touches_no_other() -> None:
    """The flow x' = x^3 from 1 explodes at time 1/2; from 0 it stays."""
    problem = NoisyGradient(lambda x: -(x**3), covariance=torch.zeros(1))
    start = torch.tensor([[1.0], [0.0], [0.5]])
    flow = sgd_sde(problem, [0.4, 0.8], lr=0.01, start=start, generator=generator())
    alone = sgd_sde(problem, [0.4, 0.8], lr=0.01, start=start[1:], generator=generator())
    assert 0.5 < float(flow.diverged_at[0]) < 0.52
    assert bool(flow.diverged_at[1:].isinf().all())
    assert not flow.converged
    assert bool(torch.isfinite(flow.states[0]).all())
    assert bool(flow.states[1, 0].isnan())
    assert torch.equal(flow.states[:, 1:], alone.states)
    assert "1 of them DIVERGED" in repr(flow)


def test_a_replica_may_diverge_again_while_the_others_go_on() -> None:
    """A network far beyond its stable learning rate, whose masked replicas explode once more."""
    inputs = 1e3 * torch.randn(8, 3, generator=generator())
    with torch.random.fork_rng():
        objective = Objective(nn.Linear(3, 1), nn.MSELoss(), (inputs, torch.zeros(8, 1)))
    flow = sgd_sde(
        objective,
        [80.0, 160.0, 240.0],
        lr=1.0,
        batch_size=2,
        replicas=2,
        substeps=1,
        generator=generator(),
    )
    assert bool((flow.diverged_at < 80).all())
    assert bool(flow.states.isnan().all())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.05, 2.0), min_size=1, max_size=4, unique=True), st.integers(1, 9))
def test_without_noise_the_paths_are_gradient_descent_in_equal_steps(
    times: list[float], substeps: int
) -> None:
    times = sorted(times)
    problem = NoisyGradient(lambda x: 0.5 * x, covariance=torch.zeros(1))
    flow = sgd_sde(
        problem, times, lr=0.3, start=torch.ones(1), substeps=substeps, generator=generator()
    )
    assert flow.times.tolist() == times
    wanted, state, begin = [], 1.0, 0.0
    for end in times:
        count = math.ceil((end - begin) * substeps / 0.3 * (1 - 1e-12))
        state *= (1 - 0.5 * (end - begin) / count) ** count
        wanted.append(state)
        begin = end
    assert flow.states.flatten().tolist() == pytest.approx(wanted, rel=1e-12)


def test_one_substep_is_a_step_of_sgd_with_coupled_decay() -> None:
    lr, decay = 0.1, 0.5
    drawn: list[Tensor] = []

    def noise(theta: Tensor, z: Tensor) -> Tensor:
        drawn.append(z.clone())
        return z

    flow = sgd_sde(
        NoisyGradient(hill, noise=noise),
        2 * lr,
        lr=lr,
        weight_decay=decay,
        substeps=1,
        start=torch.ones(2),
        generator=generator(),
    )
    theta = torch.ones(1, 2, dtype=torch.float64)
    for z in drawn[-2:]:
        theta = theta - lr * (hill(theta) + z + decay * theta)
    assert torch.allclose(flow.states[-1], theta, rtol=1e-12)


def test_a_gradient_that_is_theta_itself_may_decay_too() -> None:
    problem = NoisyGradient(lambda x: x, covariance=torch.zeros(1))
    flow = sgd_sde(
        problem,
        0.2,
        lr=0.1,
        weight_decay=1.0,
        start=torch.ones(1),
        substeps=1,
        generator=generator(),
    )
    assert flow.states.item() == pytest.approx(0.8**2)


def test_a_single_replica_has_no_standard_error() -> None:
    flow = sgd_sde(**GOOD)  # type: ignore[arg-type]
    value, stderr = flow.moment(1)
    assert torch.equal(value, flow.states[:, 0])
    assert bool(stderr.isnan().all())


def test_the_start_can_be_asked_for_and_moments_have_error_bars() -> None:
    flow = sgd_sde(
        NoisyGradient(hill, covariance=COVARIANCE),
        [0.0, 0.5],
        lr=0.1,
        start=torch.tensor([3.0, 0.0]),
        replicas=100,
        generator=generator(),
    )
    value, stderr = flow.moment(2)
    assert value[0].tolist() == [9.0, 0.0]
    assert stderr[0].tolist() == [0.0, 0.0]
    assert torch.allclose(value[1], flow.states[1].square().mean(0))
    assert "100 replicas of 2 parameters" in repr(flow)


GOOD = {
    "problem": NoisyGradient(hill, covariance=COVARIANCE),
    "time": 1.0,
    "lr": 0.1,
    "start": torch.ones(2),
    "generator": generator(),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "lr must be a finite number above 0, got 0.0"),
        ({"lr": math.nan}, "lr must be a finite number above 0"),
        ({"time": -1.0}, "time must be"),
        ({"time": [0.5, 0.2]}, "time must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"substeps": 0}, "substeps must be"),
        ({"replicas": 0}, "replicas must be"),
        ({"start": torch.ones(4, 2), "replicas": 3}, "start has 4 replicas, but replicas=3"),
        ({"start": torch.tensor([math.nan, 1.0])}, "start holds NaN"),
        ({"start": torch.ones(3)}, "covariance has 2 rows for 3 parameters"),
        ({"start": torch.ones(1, 1, 2)}, r"start must be \[params\]"),
        ({"start": None}, "needs start"),
        ({"batch_size": 4}, "batch_size belongs to an Objective"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sgd_sde(**(GOOD | change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gradient", "error", "message"),
    [
        (lambda x: x[:, :1], ValueError, "gradient must give one row a replica"),
        (lambda x: x / len(x), ValueError, "must treat each replica alone"),
        (lambda x: x / 0, ValueError, "gradient at start holds NaN"),
        (lambda x: x.float(), TypeError, "gradient must give a float64 tensor"),
    ],
)
def test_a_gradient_that_does_not_fit_is_refused(
    gradient: object, error: type[Exception], message: str
) -> None:
    problem = NoisyGradient(gradient, covariance=COVARIANCE)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        sgd_sde(**(GOOD | {"problem": problem, "replicas": 3}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "noise", [lambda theta, z: z * theta.mean(0), lambda theta, z: z + z.mean(0, keepdim=True)]
)
def test_noise_that_mixes_replicas_is_refused(noise: Callable[[Tensor, Tensor], Tensor]) -> None:
    problem = NoisyGradient(hill, noise=noise)
    start = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    with pytest.raises(ValueError, match="noise must treat each replica alone"):
        sgd_sde(**(GOOD | {"problem": problem, "start": start}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({}, "exactly one"),
        ({"covariance": COVARIANCE, "factor": COVARIANCE}, "exactly one"),
        ({"covariance": torch.tensor([1.0, -1.0])}, "no negative eigenvalue; the smallest is -1"),
        ({"covariance": torch.tensor([[1.0, 2.0], [2.0, 1.0]])}, "the smallest is -1"),
        ({"covariance": torch.tensor([[1.0, 2.0], [0.0, 1.0]])}, "symmetric"),
        ({"covariance": torch.ones(2, 3)}, r"covariance must be \[params\]"),
        ({"covariance": torch.tensor([math.nan])}, "covariance holds NaN"),
        ({"factor": torch.ones(2)}, "factor must be"),
        ({"covariance": COVARIANCE, "noise_size": 3}, "noise_size"),
        ({"noise": lambda theta, z: z, "noise_size": 0}, "noise_size must be at least 1, got 0"),
    ],
)
def test_noise_that_makes_no_sense_is_refused(noise: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoisyGradient(hill, **noise)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"noise_size must be a whole number, got 2\.5"):
        NoisyGradient(hill, noise=lambda theta, z: z, noise_size=2.5)  # type: ignore[arg-type]


def test_things_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="problem must be an Objective or a NoisyGradient"):
        sgd_sde(**(GOOD | {"problem": hill}))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
        sgd_sde(**(GOOD | {"generator": 0}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="an Objective needs batch_size"):
        sgd_sde(network(), 1.0, lr=0.1, generator=generator())
    with pytest.raises(ValueError, match="one sample"):
        sgd_sde(network(1), 1.0, lr=0.1, batch_size=1, generator=generator())
