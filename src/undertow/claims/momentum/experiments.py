"""Recursions and simulated paths, least squares on real inputs, and networks, with and without."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from undertow.claims.momentum import BATCH, Momentum
from undertow.data import Images
from undertow.lab import Experiment, grid, seeds

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Generator, Tensor, nn

    from undertow.train import Ensemble

ORDERS = (0.0, 0.5, 1.0)  # alpha in 1 - momentum = scale x lr^alpha
SCALES = (0.5, 2.0, 8.0)
NOISES = ("additive", "state-dependent")
CURVATURES = (0.1, 0.5, 1.0, 1.5)  # lr x sharpness of the stationary runs
PAIR = ("sgd", "momentum")
_TIMES = 4  # equal parts of the horizon at which moments are compared
_RIDGE = 1e-2  # of the top eigenvalue
_BURN_IN = 200  # steps; 20 relaxation times at the smallest curvature

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

    `order` is `replacement` (independent batches, as in the theory) or `epochs` (shuffled).
    """

    images: Images
    momentum: float
    order: str
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


def recursions(trial: Recursion) -> Rows:
    """The exact gap at each rate, for every alpha."""
    from undertow import predict

    spread = 0.5 if trial.noise == "state-dependent" else 0.0
    return [
        {
            "exact_gap": predict.momentum_gap(
                2.0**-exponent, 1 - scale * (2.0**-exponent) ** alpha, spread=spread
            ),
            "exponent": exponent,
            "alpha": alpha,
        }
        for alpha, scale in zip(ORDERS, SCALES, strict=True)
        for exponent in trial.exponents
    ]


def simulate(trial: Paths) -> Rows:
    """Both methods on L = x^2 / 2 - cos(2x) / 4 from x = 1 to time 1, for all orders at once."""
    import torch

    generator = torch.Generator().manual_seed(trial.seed)
    rows = []
    for exponent in trial.path_exponents:
        lr = 2.0**-exponent
        kept = torch.tensor(
            [0.0, *(1 - s * lr**a for a, s in zip(ORDERS, SCALES, strict=True))],
            dtype=torch.float64,
        )[:, None]
        place = torch.ones(len(kept), trial.replicas, dtype=torch.float64)
        velocity = torch.zeros_like(place)
        steps = 2**exponent
        gaps = []
        for step in range(1, steps + 1):
            sign = torch.randint(0, 2, (trial.replicas,), generator=generator, dtype=torch.int8)
            noise = sign.double().mul_(2).sub_(1).div_(math.sqrt(lr))
            amplitude = torch.sin(place).square_().mul_(0.5).add_(1).sqrt_()
            gradient = torch.sin(2 * place).mul_(0.5).add_(place).addcmul_(amplitude, noise)
            velocity.mul_(kept).addcmul_(gradient, 1 - kept)
            place.sub_(velocity, alpha=lr)
            if step % (steps // _TIMES) == 0:
                squares = place.square().mean(1)
                gaps.append(squares[1:] - squares[0])
        rows += [
            {
                "path_gaps": [float(gap[index]) for gap in gaps],
                "exponent": exponent,
                "alpha": alpha,
            }
            for index, alpha in enumerate(ORDERS)
        ]
    return rows


def stationary_variances(trial: Stationary) -> Rows:
    """Ridge regression of the label's parity, 50 replicas, the same batches for all settings."""
    import torch

    from undertow import predict

    loaded = trial.images.load()
    inputs, labels = loaded.train_inputs.flatten(1), loaded.train_targets
    inputs = torch.cat([inputs.double(), torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    targets = 1.0 - 2.0 * (labels % 2).double()
    hessian = inputs.T @ inputs / len(inputs)
    ridge = _RIDGE * float(torch.linalg.eigvalsh(hessian)[-1])
    hessian += ridge * torch.eye(len(hessian), dtype=torch.float64)
    sharpness, top = (part[..., -1] for part in torch.linalg.eigh(hessian))
    best = torch.linalg.solve(hessian, inputs.T @ targets / len(inputs))

    settings = [(c, kept) for c in CURVATURES for kept in (trial.momentum, 0.0)]
    rates = torch.tensor([c / float(sharpness) for c, _ in settings]).double()[:, None, None]
    kept = torch.tensor([beta for _, beta in settings]).double()[:, None, None]
    replicas, steps = 50, 400
    batches = batches_of(trial, len(inputs), replicas)
    place = best.repeat(len(settings), replicas, 1)
    velocity, total = torch.zeros_like(place), torch.zeros(len(settings), dtype=torch.float64)
    for step in range(_BURN_IN + steps):
        drawn = next(batches)
        batch = inputs[drawn]
        residuals = torch.bmm(batch, place.permute(1, 2, 0)) - targets[drawn][:, :, None]
        gradient = torch.bmm(batch.transpose(1, 2), residuals).permute(2, 0, 1) / BATCH
        gradient += ridge * place
        velocity = kept * velocity + (1 - kept) * gradient
        place = place - rates * velocity
        if step >= _BURN_IN:
            total += ((place - best) @ top).square().mean(1)
    variances = total.view(len(CURVATURES), 2)
    return [
        {
            "curvature": curvature,
            "measured_ratio": float(with_momentum / without),
            "predicted_ratio": predict.momentum_equivalent(
                curvature, trial.momentum, form="ema", sharpness=1.0
            ).variance_ratio,
        }
        for curvature, (with_momentum, without) in zip(CURVATURES, variances, strict=True)
    ]


def batches_of(
    trial: Stationary, count: int, replicas: int
) -> Iterator[Int[Tensor, "replicas batch"]]:
    """The batches of the trial's order and seed, of so many samples, for each replica its own."""
    import torch

    generator = torch.Generator().manual_seed(trial.seed)
    if trial.order == "epochs":
        return epochs(count, BATCH, replicas, generator)
    return iter(
        lambda: torch.randint(0, count, (replicas, BATCH), generator=generator),
        None,
    )


def epochs(
    count: int, batch_size: int, replicas: int, generator: Generator
) -> Iterator[Int[Tensor, "replicas batch"]]:
    """Batches without replacement; what an epoch leaves over after whole batches is dropped."""
    import torch

    while True:
        keys = torch.rand(replicas, count, generator=generator)
        shuffled = keys.argsort(dim=1)
        whole = count // batch_size * batch_size
        yield from shuffled[:, :whole].split(batch_size, dim=1)


def train(trials: Sequence[Network]) -> list[Rows]:
    """One cell: all seeds, with the loss that SGD had where momentum's lag leaves it."""
    from undertow import predict

    first = trials[0]
    loaded = first.images.load()
    inputs, targets = loaded.train_inputs.flatten(1), loaded.train_targets
    ensemble = _ensemble(trials, inputs, targets, loaded.num_classes)
    steps = first.steps * first.level
    rows: list[dict[str, Any]] = [{} for _ in trials]
    moved = predict.averaged_lr(np.full(steps, (1 - first.momentum) * first.lr), first.momentum)
    # In short runs with much momentum the lag is longer than what follows the first quarter.
    behind = round(float(moved.sum()) / first.lr) if first.method == "sgd" else None
    early = steps // 4 if first.level == 1 else None
    for step in ensemble.read_at(step for step in (early, behind, steps) if step is not None):
        if step == early:
            for e in ensemble.alive:
                rows[e]["edge"] = first.lr * _sharpness(ensemble.module(e), inputs, targets)
        if step == behind:
            losses = ensemble.evaluate(inputs, targets).loss
            for row, lagged in zip(rows, losses.tolist(), strict=True):
                row["lagged_loss"] = lagged
    loss = ensemble.evaluate(inputs, targets).loss
    accuracy = ensemble.evaluate(loaded.test_inputs.flatten(1), loaded.test_targets).accuracy
    for e, row in enumerate(rows):
        row |= {
            "diverged": ensemble.diverged_at[e] is not None,
            "loss": float(loss[e]),
            "accuracy": float(accuracy[e]),
        }
    return [[row] for row in rows]


def _ensemble(
    trials: Sequence[Network], inputs: Tensor, targets: Tensor, num_classes: int
) -> Ensemble:
    from torch.nn import functional

    from undertow import models
    from undertow.train import Ensemble, Member, rules

    first = trials[0]
    sizes = (inputs.shape[1], first.width, num_classes)
    kept = 0.0 if first.method == "sgd" else first.momentum
    lr = first.lr if first.method == "raw" else (1 - kept) * first.lr
    rule = rules.sgd if first.method == "sgd" else rules.momentum
    return Ensemble(
        lambda generator: models.mlp(sizes, generator=generator),
        functional.cross_entropy,
        (inputs, targets),
        # Independent batches, as the theory has them: over shuffled epochs noise cancels.
        [Member(trial.seed, lr, momentum=kept, order="replacement") for trial in trials],
        batch_size=first.batch_size,
        rule=rules.svag(rule, first.level),
        path="fused",
    )


def _sharpness(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    from torch.nn import functional

    from undertow import measure
    from undertow.objective import Objective

    objective = Objective(model, functional.cross_entropy, (inputs, targets))
    return float(measure.sharpness(objective, rtol=0.05).eigenvalues[0])
