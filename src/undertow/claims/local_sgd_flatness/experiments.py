"""Workers in a valley, beside the slow equation there, and on diagonal networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undertow import predict
from undertow.claims.local_sgd_flatness import LocalSGDFlatness
from undertow.claims.local_sgd_flatness.networks import Convolution, flatten
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from undertow.train.flows import Manifold

_SMALL = 3e-4  # noise in the valley, so that its curvature stays one
_SETTLED = 8.0  # steps before a drift is read, over lr
_ALONG = 0.5  # standard deviation of the noise along the floor, where there is some
_READINGS = 10  # of a diagonal network
_SPARSE = 3  # entries of the target of diagonal networks that are one; the others are zero
_SPREAD = math.sqrt(0.5)  # of their layers at the start, before descent to a fit

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Valley:
    """Workers on e^u v^2 / 2 with so little noise that the curvature stays one."""

    lr: float
    period: int
    num_workers: int
    valley_steps: int
    replicas: int
    seed: int
    shared: bool = False


@dataclass(frozen=True)
class Path:
    """Workers on e^u v^2 / 2 with noise one across the floor, and `along` it, beside the SDE."""

    lr: float
    period: int
    num_workers: int
    time: float
    paths: int
    seed: int
    along: float = 0.0


@dataclass(frozen=True)
class Diagonal:
    """A diagonal network from a fit, a worker's step on so many samples."""

    num_workers: int
    period: int
    diagonal_lr: float
    diagonal_steps: int
    samples: int
    dimension: int
    seed: int
    noise: float = 1.0
    batch_size: int = 1


def experiments(knobs: LocalSGDFlatness, seed: int) -> dict[str, Experiment]:
    """The longest first."""
    own = seeds(seed, knobs.seeds)
    one, longest = {"num_workers": 1}, {"period": knobs.valley_periods[-1]}
    steep = {"lr": knobs.valley_lr}
    valley = [steep | {"period": period} for period in (1, *knobs.valley_periods)]
    valley += [{"lr": knobs.gentle_lr, "period": period} for period in knobs.gentle_periods]
    valley += [steep | longest | one, steep | longest | {"shared": True}]
    paths = [{"lr": lr, "period": period} for lr in knobs.lrs for period in (1, round(1 / lr))]
    paths += [
        {"lr": knobs.lrs[1], "period": period, "along": _ALONG}
        for period in (1, round(1 / knobs.lrs[1]))
    ]
    last = {"period": knobs.diagonal_periods[-1]}
    diagonal: list[dict[str, Any]] = [{"period": period} for period in (1, *knobs.diagonal_periods)]
    diagonal += [one | {"period": 1}, last | {"noise": 0.0}]
    diagonal.append(one | last | {"batch_size": knobs.num_workers})
    return {
        "networks": Experiment(
            grid(Convolution, knobs, seed=own, cell=cells(knobs)),
            flatten,
            ("seed", "method", "lr", "period", "noise", "falling"),
            group_size=len(cells(knobs)) * max(1, -(-knobs.seeds // 2)),
        ),
        "diagonal": Experiment(grid(Diagonal, knobs, cell=diagonal, seed=own), descend, ("seed",)),
        "paths": Experiment(grid(Path, knobs, cell=paths, seed=own), follow, ("seed",)),
        "valley": Experiment(grid(Valley, knobs, cell=valley, seed=own), drift, ("seed",)),
    }


def cells(knobs: LocalSGDFlatness) -> list[dict[str, Any]]:
    """Of the convolutional networks: SGD and Local SGD at two rates, without noise, and falling."""
    sgd, local = {"method": "sgd", "period": 1}, {"method": "local", "period": knobs.period}
    small, large = {"lr": knobs.lr}, {"lr": knobs.large_lr}
    found = [own | rate for own in (sgd, local) for rate in (small, large)]
    found.append(local | small | {"period": knobs.brief_period})
    found += [own | small | {"noise": "smooth"} for own in (sgd, local)]
    base = {"period": knobs.base}
    falling = [sgd, local | base, {"method": "qsr"} | base]
    return found + [own | {"lr": knobs.falling_lr, "falling": True} for own in falling]


def generators(trials: Sequence[Valley | Path | Diagonal], purpose: int) -> list[Generator]:
    """Of each trial its own; another purpose draws other numbers."""
    import torch

    return [torch.Generator().manual_seed(2**40 * purpose + trial.seed) for trial in trials]


# ---- the valley


def drift(trials: Sequence[Valley]) -> list[Rows]:
    """The drift down the valley over that of parallel SGD, and what it should be."""
    from undertow.train.noise import valley_paths

    first = trials[0]
    period, lr = first.period, first.lr
    begun, taken = (
        -(-math.ceil(steps) // period) * period for steps in (_SETTLED / lr, first.valley_steps)
    )
    ends = valley_paths(
        lr=lr,
        num_workers=first.num_workers,
        period=period,
        read_at=(begun, begun + taken),
        noise=(0.0, _SMALL),
        generators=generators(trials, 1),
        replicas=first.replicas,
        shared=first.shared,
    )
    before, after = (own[0].mean(1) for own in ends)
    usual = lr**3 * _SMALL**2 / (2 * (1 - (1 - lr) ** 2))
    alone = first.num_workers == 1 or first.shared
    workers = {"num_workers": 1 if alone else first.num_workers, "period": period}
    facts = {
        "multiplier": (before - after) / (taken * usual),
        "exact": predict.local_drift_multiplier(lr, 1.0, **workers),
        "continuous": predict.local_drift_multiplier(lr, 1.0, **workers, continuous=True),
    }
    return [[row] for row in rows_of(facts)]


def follow(trials: Sequence[Path]) -> list[Rows]:
    """Mean and spread of u, and by the slow equations of as many workers and of one."""
    from undertow.train.noise import valley_paths

    first = trials[0]
    rounds = max(1, round(first.time / first.lr**2 / first.period))
    steps = rounds * first.period
    (ends,) = valley_paths(
        lr=first.lr,
        num_workers=first.num_workers,
        period=first.period,
        read_at=[steps],
        noise=(first.along, 1.0),
        generators=generators(trials, 2),
        replicas=first.paths,
    )
    rows: list[Rows] = []
    for trial, own, generator in zip(trials, ends[0], generators(trials, 3), strict=True):
        foreseen = {
            workers: slow(trial, steps, workers, generator) for workers in (first.num_workers, 1)
        }
        facts = {"mean": float(own.mean()), "spread": float(own.std())}
        facts |= {
            "slow": float(foreseen[first.num_workers].mean()),
            "plain": float(foreseen[1].mean()),
        }
        if trial.along:
            facts["slow_spread"] = float(foreseen[first.num_workers].std())
        rows.append([facts])
    return rows


def slow(trial: Path, steps: int, workers: int, generator: Generator) -> Tensor:
    """U at the end by the slow equation; one path is enough where nothing moves it at random."""
    import torch

    from undertow.train.flows import local_sgd_slow_sde

    found = local_sgd_slow_sde(
        valley(trial.along, workers),
        steps * trial.lr**2,
        lr=trial.lr,
        num_workers=workers,
        period=trial.period,
        batch_size=workers,
        start=torch.zeros(2, dtype=torch.float64),
        generator=generator,
        replicas=trial.paths if trial.along else 1,
        steps=50,
    )
    return found.states[-1, :, 0]


def valley(along: float, batch_size: int) -> Manifold:
    """e^u v^2 / 2, its noise, of one sample in so many, and the way down to v = 0."""
    import torch

    from undertow.train.flows import Manifold

    noise = batch_size * torch.diag(torch.tensor([along**2, 1.0], dtype=torch.float64))
    return Manifold(
        lambda place: place[0].exp() * place[1] ** 2 / 2,
        lambda place: noise,
        # Along the gradient flow du / dv = v / 2.
        lambda block: torch.stack([block[:, 0] - block[:, 1] ** 2 / 4, 0 * block[:, 1]], 1),
    )


# ---- diagonal networks


def descend(trials: Sequence[Diagonal]) -> list[Rows]:
    """How fast the Hessian's trace falls from a fit, and what it should; a record a reading."""
    import torch

    from undertow.train.noise import diagonal_descent, diagonal_hessian_trace

    first = trials[0]
    inputs, targets, layers = fits(trials)
    begun = diagonal_hessian_trace(inputs, layers)
    early = round(1 / first.diagonal_lr)
    times = [round(first.diagonal_steps * share / _READINGS) for share in range(1, _READINGS + 1)]
    paths = diagonal_descent(
        inputs,
        targets,
        layers,
        lr=first.diagonal_lr,
        num_workers=first.num_workers,
        period=first.period,
        read_at=(early, *times),
        noise=first.noise,
        generators=generators(trials, 5),
        batch_size=first.batch_size,
    )
    logs = torch.stack([(diagonal_hessian_trace(inputs, own) / begun).log() for own in paths])
    at = torch.tensor(sorted({early, *times}), dtype=torch.float64)
    late = torch.tensor([step in times for step in at.tolist()])
    apart = at[late] - at[late].mean()
    time = first.diagonal_lr**2
    rate = (apart[:, None] * logs[late]).sum(0) / apart.square().sum() / time
    rows: list[Rows] = []
    for run, trial in enumerate(trials):
        known = {"rate": float(rate[run])} | forecast(trial, inputs[run], layers[:, run])
        own = {"step": at, "log_trace": logs[:, run], "early": at == early}
        rows.append([known | row for row in rows_of(own)])
    return rows


def fits(trials: Sequence[Diagonal]) -> tuple[Tensor, Tensor, Tensor]:
    """Gaussian inputs `[runs, n, d]`, targets of a sparse vector, and layers at a fit."""
    import torch

    from undertow.train.noise import diagonal_fit

    drawn = []
    for trial, own in zip(trials, generators(trials, 4), strict=True):
        shape = (trial.samples + 2, trial.dimension)
        drawn.append(torch.randn(shape, generator=own, dtype=torch.float64))
    both = torch.stack(drawn)
    inputs, layers = both[:, :-2], _SPREAD * both[:, -2:].transpose(0, 1)
    targets = inputs[..., :_SPARSE].sum(2)
    return inputs, targets, diagonal_fit(inputs, targets, layers)


def forecast(trial: Diagonal, inputs: Tensor, layers: Tensor) -> dict[str, float | None]:
    """The rate at the start, over lr^2, from the two covariances; None where there is no noise."""
    if not trial.noise or trial.batch_size > 1:
        return {"sampled": None, "additive": None}
    found: dict[str, float | None] = {}
    for form in ("sampled", "additive"):
        rate = predict.label_noise_flattening(
            inputs.numpy(),
            *layers.numpy(),
            lr=trial.diagonal_lr,
            num_workers=trial.num_workers,
            period=trial.period,
            noise=trial.noise,
            form=form,
        )
        found[form] = rate / trial.diagonal_lr**2
    return found
