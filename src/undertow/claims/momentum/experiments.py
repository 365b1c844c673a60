"""Recursions and simulated paths, least squares on real inputs, and networks, with and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from undertow.claims import Networks, perceptrons
from undertow.claims.momentum import BATCH, Momentum
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

ORDERS = {0.0: 0.5, 0.5: 2.0, 1.0: 8.0}  # 1 - momentum = scale x lr^alpha: the scale by alpha
NOISES = ("additive", "state-dependent")
CURVATURES = (0.1, 0.5, 1.0, 1.5)  # lr x sharpness of the stationary runs
PAIR = ("sgd", "momentum")
TIMES = 4  # equal parts of the horizon at which moments of paths are compared

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Recursion:
    """E x^2 of both methods on x^2 / 2, by the exact recursion of second moments."""

    noise: str
    exponents: tuple[int, ...] = (8, 9, 10, 11, 12, 13, 14)  # lr = 2^-n


@dataclass(frozen=True)
class Paths:
    """Simulated paths on a loss that is not quadratic, under the same two-point noise."""

    replicas: int
    path_exponents: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Stationary:
    """Minibatch SGD on least squares: the variance along the top eigenvector of the Hessian.

    Batches are independent, as in the theory, or those of shuffled epochs.
    """

    images: Images
    momentum: float
    order: Literal["replacement", "epochs"]
    seed: int


@dataclass(frozen=True)
class Network:
    """A network trained by sgd, by momentum at lr x (1 - beta), or by raw: momentum at lr."""

    images: Images
    width: int
    batch_size: int
    steps: int
    momentum: float
    lr: float
    method: str
    level: int
    seed: int


def experiments(knobs: Momentum, seed: int) -> dict[str, Experiment]:
    """The networks, and for every seed paths and stationary runs; the exact recursions."""
    own = seeds(seed, knobs.seeds)
    svag = [{"lr": knobs.large_lr, "level": level} for level in sorted(knobs.svag_levels)[::-1]]
    plain = [{"lr": lr, "level": 1} for lr in knobs.lrs]
    size = knobs.regression_size or knobs.images.train_size
    fewer = replace(knobs.images, train_size=size)
    networks = grid(Network, knobs, cell=svag, method=PAIR, seed=own)
    networks += grid(Network, knobs, cell=plain, method=(*PAIR, "raw"), seed=own)
    stationary = grid(Stationary, knobs, images=[fewer], order=("replacement", "epochs"), seed=own)
    return {
        "networks": Experiment(networks, train, together=("seed",)),
        "paths": Experiment(grid(Paths, knobs, seed=own), simulate),
        "stationary": Experiment(stationary, stationary_variances),
        "recursions": Experiment(grid(Recursion, knobs, noise=NOISES), recursions),
    }


def momenta(lr: float) -> dict[float, float]:
    """The momentum at a learning rate, by alpha."""
    return {alpha: 1 - scale * lr**alpha for alpha, scale in ORDERS.items()}


def recursions(trial: Recursion) -> Rows:
    """The exact gap at each rate, for every alpha."""
    from undertow.predict import momentum_gap

    spread = 0.5 if trial.noise == "state-dependent" else 0.0
    return [
        {
            "exact_gap": momentum_gap(2.0**-exponent, kept, spread=spread),
            "exponent": exponent,
            "alpha": alpha,
        }
        for exponent in trial.exponents
        for alpha, kept in momenta(2.0**-exponent).items()
    ]


def simulate(trial: Paths) -> Rows:
    """Both methods on L = x^2 / 2 - cos(2x) / 4 from x = 1 to time 1, for all orders at once."""
    import torch

    from undertow.train import momentum_paths

    generator = torch.Generator().manual_seed(trial.seed)
    rows = []
    for exponent in trial.path_exponents:
        steps = 2**exponent
        read = momentum_paths(
            lambda x: x + torch.sin(2 * x) / 2,
            lambda x: (1 + torch.sin(x) ** 2 / 2).sqrt(),
            (0.0, *momenta(1 / steps).values()),
            lr=1 / steps,
            read_at=[steps // TIMES * time for time in range(1, TIMES + 1)],
            generator=generator,
            replicas=trial.replicas,
        )
        squares = torch.stack([place.square().mean(1) for place in read], dim=1)
        gaps = squares[1:] - squares[0]
        rows += rows_of({"path_gaps": gaps, "exponent": exponent, "alpha": list(ORDERS)})
    return rows


def stationary_variances(trial: Stationary) -> Rows:
    """Ridge regression of the label's parity, the same batches for all settings."""
    import torch

    from undertow import predict, train

    loaded = trial.images.load(seed=trial.seed)
    inputs, labels = loaded.train_inputs.flatten(1).double(), loaded.train_targets
    variances = train.stationary_variance(
        torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1),
        1.0 - 2.0 * (labels % 2).double(),
        (trial.momentum, 0.0),
        curvatures=CURVATURES,
        batch_size=BATCH,
        order=trial.order,
        generator=torch.Generator().manual_seed(trial.seed),
    )
    equal = [
        predict.momentum_equivalent(curvature, trial.momentum, form="ema", sharpness=1.0)
        for curvature in CURVATURES
    ]
    return rows_of(
        {
            "curvature": CURVATURES,
            "measured_ratio": variances[:, 0] / variances[:, 1],
            "predicted_ratio": [own.variance_ratio for own in equal],
        }
    )


def train(trials: Sequence[Network]) -> list[Rows]:
    """One cell: all seeds, with the loss that SGD had where momentum's lag leaves it."""
    from undertow import measure, predict

    first, networks = trials[0], _networks(trials)
    ensemble, steps = networks.ensemble, first.steps * first.level
    moved = predict.averaged_lr([(1 - first.momentum) * first.lr] * steps, first.momentum)
    # In short runs with much momentum the lag is longer than what follows the first quarter.
    behind = round(float(moved.sum()) / first.lr) if first.method == "sgd" else None
    early = steps // 4 if first.level == 1 else None
    facts: dict[str, Any] = {}
    for step in ensemble.read_at(step for step in (early, behind) if step is not None):
        if step == early:
            edges: list[float | None] = [None] * len(trials)
            for e in ensemble.alive:
                sharpest = measure.sharpness(networks.objective(e), rtol=0.05).eigenvalues[0]
                edges[e] = first.lr * float(sharpest)
            facts["edge"] = edges
        if step == behind:
            facts["lagged_loss"] = networks.fit().loss
    ensemble.train(steps - ensemble.steps_taken)
    facts |= {
        "diverged": ensemble.diverged,
        "loss": networks.fit().loss,
        "accuracy": networks.tested().accuracy,
    }
    return [[row] for row in rows_of(facts)]


def _networks(trials: Sequence[Network]) -> Networks:
    from undertow.train import Member, rules

    first = trials[0]
    kept = 0.0 if first.method == "sgd" else first.momentum
    lr = first.lr if first.method == "raw" else (1 - kept) * first.lr
    rule = rules.sgd if first.method == "sgd" else rules.momentum
    # Independent batches, as the theory has them: over shuffled epochs noise cancels.
    members = [Member(trial.seed, lr, momentum=kept, order="replacement") for trial in trials]
    options: dict[str, Any] = {"rule": rules.svag(rule, first.level), "path": "fused"}
    return perceptrons(
        first.images, (first.width,), members, batch_size=first.batch_size, **options
    )
