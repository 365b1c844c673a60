"""Committees from a random start, near equal neurons, and beyond the theorem; ordinary networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from undertow import predict
from undertow.claims.rank_one_features import READINGS, SHAKEN, RankOneFeatures
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Generator, Tensor

# Activations, and common pre-activations with phi''' above, at and below zero.
SIGN_POINTS = {
    "cubic": (0.5,),
    "quadratic": (0.5,),
    "tanh": (0.3, 1.0),
    "softplus": (-1.0, 1.0),
    "gelu": (-0.3, 0.5),
}
_NEAR = 0.02  # spread of neurons that start near one another
_TYPICAL = 0.55  # the mean size of the common pre-activations that are drawn
PREDICTED = ("predicted", "predicted_slowest", "predicted_at_lr")
_SIGN_STEP = 0.1  # lr x curvature of the runs that look for a sign

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Committee:
    """One network with output weights of one, trained in its pre-activations.

    `inputs` are orthonormal, independent, crowded (more of them than dimensions) or digits; `noise`
    is on the labels (label), on the weights (isotropic) or none. `target` is the common
    pre-activation at which equal neurons fit, for all inputs; None draws one for each. `spread` is
    that of the neurons around it at the start; None starts anywhere.
    """

    lr: float
    steps: int
    samples: int
    features: int
    neurons: int
    noise_std: float
    seed: int
    activation: str = "cubic"
    inputs: str = "orthonormal"
    noise: str = "label"
    target: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class Net:
    """An ordinary network of one hidden layer that tells a 3 from an 8 by squared error."""

    activation: str
    noise: str
    lr: float
    steps: int
    samples: int
    neurons: int
    noise_std: float
    seed: int


def experiments(knobs: RankOneFeatures, seed: int) -> dict[str, Experiment]:
    """From a random start, near equal neurons at several rates and points; beyond; networks."""
    own, noises = seeds(seed, knobs.seeds), ("label", "none")
    far = {"lr": knobs.collapse_lr, "steps": knobs.collapse_steps}
    started = [far, far | {"inputs": "independent"}, far | {"noise": "none"}]
    # More inputs, more curvature.
    crowded = {"inputs": "crowded", "samples": 2 * knobs.features, "lr": knobs.collapse_lr / 2}
    digits = {"inputs": "digits", "target": 0.5, "samples": knobs.digits, "features": 64}
    real = [far | digits | {"activation": name} for name in ("cubic", "tanh")]
    two, slow = ("orthonormal", "independent"), [near(knobs, lr) for lr in knobs.lrs]
    points = [at_point(knobs, name, target) for name, at in SIGN_POINTS.items() for target in at]
    points.append(points[0] | {"noise": "isotropic", "steps": knobs.sign_steps // SHAKEN})
    small = {"samples": 100, "neurons": 32, "noise_std": 0.5, "lr": 0.1, "steps": knobs.net_steps}
    nets = [small | {"activation": name} for name in ("tanh", "gelu", "softplus")]

    collapse = grid(Committee, knobs, cell=started, seed=own)
    beyond = grid(Committee, knobs, cell=[far | crowded], seed=own)
    if knobs.digits:
        beyond += grid(Committee, knobs, cell=real, noise=noises, seed=own)
    rates = grid(Committee, knobs, cell=slow, inputs=two, seed=own)
    trained = grid(Net, knobs, cell=nets if knobs.net_steps else (), noise=noises, seed=own)
    signs = grid(Committee, knobs, cell=points, seed=own)
    return {
        "collapse": Experiment(collapse, follow, ("inputs", "noise", "seed"), group_size=40),
        "beyond": Experiment(beyond, follow, ("noise", "seed"), group_size=40),
        "rates": Experiment(rates, follow, ("inputs", "seed"), group_size=40),
        "nets": Experiment(trained, train_nets, ("seed",), group_size=40),
        "signs": Experiment(signs, follow, ("target", "lr", "seed"), group_size=40),
    }


def near(knobs: RankOneFeatures, lr: float) -> dict[str, Any]:
    """Neurons that start near one another, for as long as their spread decays by so much."""
    typical = predict.rank_one_rate(lr, knobs.noise_std, activation="cubic", preactivation=_TYPICAL)
    return {"lr": lr, "steps": round(knobs.decay / float(typical)), "spread": _NEAR}


def at_point(knobs: RankOneFeatures, activation: str, target: float) -> dict[str, Any]:
    """Neurons that start near one pre-activation, at a fixed lr x curvature, 2 m phi'(z)^2."""
    slope, _ = predict.activation_derivatives(activation, target)
    lr = _SIGN_STEP / (2 * knobs.neurons * float(slope) ** 2)
    where = {"activation": activation, "target": target, "spread": _NEAR}
    return where | {"lr": lr, "steps": knobs.sign_steps}


def read_at(steps: int) -> list[int]:
    """The steps at which a run is read."""
    return [round(steps * index / READINGS) for index in range(READINGS + 1)]


# ---- committees


def follow(trials: Sequence[Committee]) -> list[Rows]:
    """Runs of one activation, size and length side by side, a record for every reading."""
    import torch

    from undertow.train import CommitteeMachine

    first = trials[0]
    z, gram, goal = (torch.stack(parts) for parts in zip(*map(start, trials), strict=True))
    committee = CommitteeMachine.agreeing(first.activation, gram, goal, first.neurons)
    each = zip(trials, gram.numpy(), goal.numpy(), strict=True)
    modes, predicted = zip(*(forecast(*own) for own in each), strict=True)
    directions = torch.from_numpy(np.stack(modes))
    least = committee.hessian_trace(goal[:, None].expand_as(z))
    z = committee.at_rest(z)
    lr = torch.tensor([trial.lr for trial in trials], dtype=torch.float64)
    loud = [trial.noise_std * (trial.noise != "none") for trial in trials]
    given: dict[str, Any] = {"lr": lr, "noise_std": torch.tensor(loud, dtype=torch.float64)}
    if first.noise == "isotropic":  # of as much variance in all as label noise has at the start
        steep = committee.slopes(z).square().mean((1, 2)).sqrt()
        given |= {"noise_std": lr * given["noise_std"] * 2 * steep, "on": "preactivations"}
    generators = [torch.Generator().manual_seed(2**40 + trial.seed) for trial in trials]
    rows: list[Rows] = [[] for _ in trials]
    for before, stop in pairwise((0, *read_at(first.steps))):
        z = committee.descend(z, stop - before, generators, **given)
        settled = committee.at_rest(z)
        log_spread = (settled @ directions.mT).std(1).clamp(min=1e-300).log()
        facts = ranks(settled) | {
            "step": stop,
            "trace": committee.hessian_trace(settled),
            "least_trace": least,
            "log_spread": log_spread.mean(1),
            "log_spread_slowest": log_spread[:, 0],
        }
        for own, known, row in zip(rows, predicted, rows_of(facts), strict=True):
            own.append(known | row)
    return rows


def start(trial: Committee) -> tuple[Tensor, Tensor, Tensor]:
    """Pre-activations `[m, n]`, the Gram matrix `[n, n]`, and the equal neurons' `[n]`."""
    import torch

    generator = torch.Generator().manual_seed(trial.seed)
    inputs, signs = _inputs(trial, generator)
    theta = normals(generator, trial.neurons, trial.features)
    if trial.inputs == "crowded":  # equal neurons must fit more targets than they have weights
        goal = normals(generator, 1, trial.features) @ inputs.mT
    elif trial.target is not None:
        goal = trial.target * signs
    else:
        goal = signs * (0.3 + 0.5 * torch.rand(1, trial.samples, generator=generator).double())
    z = theta @ inputs.mT
    if trial.spread is not None:
        z = goal + trial.spread * z
    return z, inputs @ inputs.mT, goal[0]


def _inputs(trial: Committee, generator: Generator) -> tuple[Tensor, Tensor]:
    """Inputs of norm one `[n, d]`, and the signs of their targets `[1, n]`."""
    import torch

    if trial.inputs == "digits":
        images, labels = Images().load().unit_vectors(centered=True)
        chosen = torch.randperm(len(images), generator=generator)[: trial.samples]
        return images[chosen], 1.0 - 2.0 * (labels[chosen][None] % 2).double()
    drawn = normals(generator, trial.samples, trial.features)
    signs = normals(generator, 1, trial.samples).sign()
    if trial.target is not None:
        signs = torch.ones_like(signs)
    if trial.inputs == "orthonormal":
        return torch.linalg.qr(drawn.mT).Q.mT, signs
    return torch.nn.functional.normalize(drawn), signs


def normals(generator: Generator, *size: int) -> Tensor:
    """Standard normal numbers in float64."""
    import torch

    return torch.randn(*size, generator=generator, dtype=torch.float64)


def forecast(
    trial: Committee, gram: np.ndarray, goal: np.ndarray
) -> tuple[np.ndarray, dict[str, float | None]]:
    """Directions in the space of inputs `[n, n]`, slowest first, and what rates are predicted."""
    if trial.inputs in ("crowded", "digits") or trial.noise == "isotropic":
        return np.eye(len(gram)), dict.fromkeys(PREDICTED)
    given: dict[str, Any] = {"activation": trial.activation, "preactivation": goal}
    free, known = (
        np.asarray(predict.rank_one_rate(trial.lr, trial.noise_std, neurons=neurons, **given))
        for neurons in (None, trial.neurons)
    )
    orthonormal, heard = trial.inputs == "orthonormal", float(trial.noise != "none")
    rates, modes = predict.rank_one_modes(free, np.eye(len(gram)) if orthonormal else gram)
    found = (heard * rates.mean(), heard * rates[0], heard * known.mean() if orthonormal else None)
    return modes, dict(zip(PREDICTED, found, strict=True))


def ranks(features: Tensor) -> dict[str, Tensor]:
    """Of features `[runs, rows, columns]`: s2 / s1 and the stable rank, NaN where not finite."""
    import torch

    finite = features.isfinite().flatten(1).all(1)
    singular = torch.linalg.svdvals(torch.where(finite[:, None, None], features, 0.0))
    relative = singular / singular[:, :1]
    return {
        "diverged": ~finite,
        "rank_ratio": relative[:, 1],
        "stable_rank": relative.square().sum(1),
    }


# ---- ordinary networks


def train_nets(trials: Sequence[Net]) -> list[Rows]:
    """All layers are trained, on minibatches, by the library's own rules."""
    from torch.nn import functional

    from undertow import measure, models
    from undertow.objective import Objective
    from undertow.train import Ensemble, Member, rules

    first = trials[0]
    inputs, targets = threes_and_eights(first.samples)
    sizes, noisy = (inputs.shape[1], first.neurons, 1), first.noise == "label"
    ensemble = Ensemble(
        lambda generator: models.mlp(sizes, activation=first.activation, generator=generator),
        functional.mse_loss,
        (inputs, targets),
        [Member(trial.seed, trial.lr) for trial in trials],
        batch_size=10,
        rule=rules.label_noise(rules.sgd, std=first.noise_std) if noisy else rules.sgd,
        path="fused",
        dtype=inputs.dtype,
    )
    rows: list[Rows] = [[] for _ in trials]
    for step in ensemble.read_at(read_at(first.steps)):
        weight, bias, *_ = ensemble.parameters().values()
        traces = [math.nan] * len(trials)
        for e in ensemble.alive:
            objective = Objective(ensemble.module(e), functional.mse_loss, (inputs, targets))
            traces[e] = measure.hessian_trace(objective, curvature="ggn").value
        facts = ranks(inputs @ weight.mT + bias[:, None]) | {
            "step": step,
            "trace": traces,
            "loss": ensemble.evaluate(inputs, targets).loss,
        }
        for own, row in zip(rows, rows_of(facts), strict=True):
            own.append(row)
    return rows


def threes_and_eights(count: int) -> tuple[Tensor, Tensor]:
    """Images of norm two `[count, 64]`, and 1 for a 3, -1 for an 8 `[count, 1]`."""
    import torch

    images, labels = Images().load().unit_vectors(centered=True)
    chosen = torch.cat([(labels == digit).nonzero()[: count // 2, 0] for digit in (3, 8)])
    return 2 * images[chosen], 1.0 - 2.0 * (labels[chosen][:, None] == 8).double()
