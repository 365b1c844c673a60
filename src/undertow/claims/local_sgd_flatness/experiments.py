"""Workers in a valley, beside the slow equation of its floor, and on diagonal networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from undertow import predict
from undertow.claims import stream
from undertow.claims.local_sgd_flatness import (
    GENTLE_LR,
    GENTLE_PERIODS,
    TIME,
    LocalSGDFlatness,
)
from undertow.claims.local_sgd_flatness.networks import Convolution, cells, flatten
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Generator, Tensor

_ALONG = 0.5  # standard deviation of the noise along the floor, where there is some
_READINGS = 10  # of a diagonal network

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Valley:
    """Workers on e^u v^2 / 2 with noise so faint that the curvature stays one."""

    lr: float
    period: int
    num_workers: int
    valley_steps: int
    replicas: int
    seed: int
    shared: bool = False


@dataclass(frozen=True)
class Path:
    """Workers on e^u v^2 / 2 with noise of one across the floor, and of `along` it."""

    lr: float
    period: int
    num_workers: int
    replicas: int
    seed: int
    along: float = 0.0


@dataclass(frozen=True)
class Diagonal:
    """A diagonal network that starts from a fit, with label noise."""

    num_workers: int
    period: int
    diagonal_lr: float
    diagonal_steps: int
    samples: int
    dimension: int
    seed: int
    noise: float = 1.0
    batch_size: int = 1  # of a worker


def experiments(knobs: LocalSGDFlatness, seed: int) -> dict[str, Experiment]:
    """The longest first."""
    own, one = seeds(seed, knobs.seeds), {"num_workers": 1}
    steep, longest = {"lr": knobs.valley_lr}, {"period": knobs.valley_periods[-1]}
    valley = [steep | {"period": period} for period in (1, *knobs.valley_periods)]
    valley += [{"lr": GENTLE_LR, "period": period} for period in GENTLE_PERIODS]
    valley += [steep | longest | one, steep | longest | {"shared": True}]
    paths = [{"lr": lr, "period": period} for lr in knobs.lrs for period in (1, round(1 / lr))]
    paths += [path | {"along": _ALONG} for path in paths[2:4]]
    last = {"period": knobs.diagonal_periods[-1]}
    diagonal: list[dict[str, Any]] = [{"period": own} for own in (1, *knobs.diagonal_periods)]
    diagonal += [one | {"period": 1}, last | {"noise": 0.0}]
    diagonal.append(one | last | {"batch_size": knobs.num_workers})
    several = cells(knobs)
    alike = ("seed", "method", "lr", "period", "noise", "falling")
    half = len(several) * -(-knobs.seeds // 2)  # one start for all methods
    return {
        "networks": Experiment(
            grid(Convolution, knobs, seed=own, cell=several), flatten, alike, half
        ),
        "diagonal": Experiment(grid(Diagonal, knobs, cell=diagonal, seed=own), descend, ("seed",)),
        "paths": Experiment(grid(Path, knobs, cell=paths, seed=own), follow, ("seed",)),
        "valley": Experiment(grid(Valley, knobs, cell=valley, seed=own), drift, ("seed",)),
    }


def generators(trials: Sequence[Valley | Path | Diagonal], purpose: int) -> list[Generator]:
    """Of each trial its own; another purpose draws other numbers."""
    return [stream(trial.seed, purpose) for trial in trials]


def drift(trials: Sequence[Valley]) -> list[Rows]:
    """The drift down the valley over that of parallel SGD, and what it should be."""
    from undertow.train import valley_multiplier

    first = trials[0]
    run: dict[str, Any] = {"lr": first.lr, "period": first.period}
    found = valley_multiplier(
        **run,
        num_workers=first.num_workers,
        steps=first.valley_steps,
        generators=generators(trials, 1 + first.shared),
        replicas=first.replicas,
        shared=first.shared,
    )
    workers: dict[str, Any] = {
        "eigenvalue": 1.0,
        "num_workers": 1 if first.shared else first.num_workers,
    }
    laws = {
        name: predict.local_drift_multiplier(**run, **workers, continuous=name == "continuous")
        for name in ("exact", "continuous")
    }
    return [[row] for row in rows_of({"multiplier": found} | laws)]


def follow(trials: Sequence[Path]) -> list[Rows]:
    """Mean and spread of u, and by the slow equations of as many workers and of one."""
    from undertow.train import valley_paths

    first = trials[0]
    steps = first.period * max(1, round(TIME / first.lr**2 / first.period))
    (ends,) = valley_paths(
        lr=first.lr,
        num_workers=first.num_workers,
        period=first.period,
        read_at=[steps],
        noise=(first.along, 1.0),
        generators=generators(trials, 3),
        replicas=first.replicas,
    )
    # Where nothing moves it at random, the slow equation has one path.
    lone = None if first.along else slow_ends(first, steps)
    rows: list[Rows] = []
    for trial, own in zip(trials, ends[0], strict=True):
        slow = lone or slow_ends(trial, steps)
        rows.append([{"mean": float(own.mean()), "spread": float(own.std())} | slow])
    return rows


def slow_ends(trial: Path, steps: int) -> dict[str, float]:
    """Mean and spread of u at the end by the slow equation, and its mean by that of SGD."""
    import torch

    from undertow.train import flows

    ends = []
    for workers, generator in zip((trial.num_workers, 1), generators([trial] * 2, 4), strict=True):
        found = flows.local_sgd_slow_sde(
            flows.valley_floor(along=trial.along * workers**0.5, across=workers**0.5),
            steps * trial.lr**2,
            lr=trial.lr,
            num_workers=workers,
            period=trial.period,
            batch_size=workers,
            start=torch.zeros(2, dtype=torch.float64),
            generator=generator,
            replicas=trial.replicas if trial.along else 2,
            steps=50,
        )
        ends.append(found.states[-1, :, 0])
    return {"slow": float(ends[0].mean()), "plain": float(ends[1].mean())} | {
        "slow_spread": float(ends[0].std())
    }


def descend(trials: Sequence[Diagonal]) -> list[Rows]:
    """How fast the Hessian's trace falls from a fit, and what it should; a record a reading."""
    import torch

    from undertow import train

    first = trials[0]
    inputs, targets, layers = train.diagonal_problems(
        first.samples, first.dimension, generators=generators(trials, 5)
    )
    times = [round(first.diagonal_steps * share / _READINGS) for share in range(1, _READINGS + 1)]
    early = round(1 / first.diagonal_lr)
    steps = sorted({early, *times})
    paths = train.diagonal_descent(
        inputs,
        targets,
        layers,
        lr=first.diagonal_lr,
        num_workers=first.num_workers,
        period=first.period,
        read_at=steps,
        noise=first.noise,
        generators=generators(trials, 6 + (first.num_workers == 1)),
        batch_size=first.batch_size,
    )
    traces = torch.stack([train.diagonal_hessian_trace(inputs, own) for own in paths])
    logs = (traces / train.diagonal_hessian_trace(inputs, layers)).log()
    late = torch.tensor([step in times for step in steps])
    at = torch.tensor(steps, dtype=torch.float64) * first.diagonal_lr**2
    apart = at[late] - at[late].mean()
    rates = (apart[:, None] * logs[late]).sum(0) / apart.square().sum()
    rows: list[Rows] = []
    for run, (trial, rate) in enumerate(zip(trials, rates.tolist(), strict=True)):
        known = {"rate": rate} | forecast(trial, inputs[run], layers[:, run])
        own = {"step": steps, "log_trace": logs[:, run], "early": [s == early for s in steps]}
        rows.append([known | row for row in rows_of(own)])
    return rows


def forecast(trial: Diagonal, inputs: Tensor, layers: Tensor) -> dict[str, float | None]:
    """The rate at the start in time lr^2 x steps, by both covariances; None where it is not known.

    That is, without noise, and of workers with several samples each.
    """
    if not trial.noise or trial.batch_size > 1:
        return {"sampled": None, "additive": None}
    rate = partial(
        predict.label_noise_flattening,
        inputs.numpy(),
        *layers.numpy(),
        lr=trial.diagonal_lr,
        num_workers=trial.num_workers,
        period=trial.period,
        noise=trial.noise,
    )
    time = trial.diagonal_lr**2
    return {"sampled": rate(form="sampled") / time, "additive": rate(form="additive") / time}
