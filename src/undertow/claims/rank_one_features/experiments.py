"""Committees from a random start, and near equal neurons, where they must meet and where part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from undertow import predict
from undertow.claims import stream
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
TYPICAL = 0.55  # the mean size of the common pre-activations that are drawn
INSIDE = {"target": 1.2, "spread": 0.15}  # all neurons of a tanh where phi''' > 0, beyond 0.66
_NEAR = 0.01  # spread of neurons that start near one another
_EQUAL_GOALS, _UNEQUAL_GOALS = (0.3, 0.8), (0.3, 1.5)  # what is drawn where there is no target
_UNEQUAL = (0.5, 1.5)  # sizes of output weights, of either sign

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Committee:
    """One network with fixed output weights, trained in its pre-activations.

    `inputs` are orthonormal, independent (of random directions) or digit (images); `noise` is on
    the labels (label), on the weights (isotropic) or none; `weights` of the output are all one
    (equal) or unequal, of both signs. `target` is the common pre-activation at which equal neurons
    fit, for all inputs; None draws one for each. `spread` is that of the neurons around it at the
    start; None starts anywhere.
    """

    lr: float
    noise_std: float
    steps: int
    samples: int
    features: int
    neurons: int
    seed: int
    activation: str = "cubic"
    inputs: str = "orthonormal"
    noise: str = "label"
    weights: str = "equal"
    target: float | None = None
    spread: float | None = None


def experiments(knobs: RankOneFeatures, seed: int) -> dict[str, Experiment]:
    """From a random start; near equal neurons at several learning rates; at several points."""
    own = seeds(seed, knobs.seeds)
    # Of random inputs the most curved direction has about so many times the curvature of one.
    crowding = (1 + math.sqrt(knobs.samples / knobs.features)) ** 2
    usual, digits = knobs.lr_curvature, {"inputs": "digit", "target": 0.5, "features": 64}
    cubic, tanh = far(knobs, 2 * usual / crowding), far(knobs, usual, activation="tanh")
    started = [cubic, cubic | {"inputs": "independent"}, cubic | {"noise": "none"}, tanh]
    started.append(cubic | digits | {"samples": knobs.digits})
    started.append(far(knobs, usual / 3, activation="sinh") | {"weights": "unequal"})
    started.append(far(knobs, usual, activation="tanh", **INSIDE))
    two = ("orthonormal", "independent")
    slow = [near(knobs, curvature) for curvature in knobs.lr_curvatures]
    points = [
        near(knobs, usual, activation=name, target=target)
        for name, at in SIGN_POINTS.items()
        for target in at
    ]
    points.append(points[0] | {"noise": "isotropic", "steps": points[0]["steps"] // SHAKEN})

    collapse = grid(Committee, knobs, cell=started, seed=own)
    rates = grid(Committee, knobs, cell=slow, inputs=two, seed=own)
    signs = grid(Committee, knobs, cell=points, seed=own)
    together = ("inputs", "noise", "lr", "noise_std", "seed")
    return {
        "collapse": Experiment(collapse, follow, together, group_size=40),
        "rates": Experiment(rates, follow, together, group_size=80),
        "signs": Experiment(signs, follow, ("seed",), group_size=40),
    }


def noisy(
    knobs: RankOneFeatures, curvature: float, activation: str, at: float
) -> dict[str, float | str]:
    """The lr of an lr x curvature of equal neurons at `at`, 2 m phi'(at)^2, and what noise gives
    their pre-activation, an autoregression, the standard deviation `fluctuation`.
    """
    slope = float(predict.activation_derivatives(activation, at)[0])
    return {
        "activation": activation,
        "lr": curvature / (2 * knobs.neurons * slope**2),
        "noise_std": knobs.fluctuation * knobs.neurons * slope * math.sqrt(2 / curvature),
    }


def far(
    knobs: RankOneFeatures, curvature: float, *, activation: str = "cubic", **where: Any
) -> dict[str, Any]:
    """Neurons that start far from one another, for `far_time` units of 1 / (2 lr^2 s^2)."""
    at = where.get("target", TYPICAL)
    own: dict[str, Any] = noisy(knobs, curvature, activation, at)
    steps = knobs.far_time / (2 * (own["lr"] * own["noise_std"]) ** 2)
    return own | where | {"steps": max(READINGS, round(steps))}


def near(
    knobs: RankOneFeatures, curvature: float, *, activation: str = "cubic", **where: Any
) -> dict[str, Any]:
    """Neurons that start near one another, until their spread has moved by so many e-folds.

    Where nothing is to draw them, as long as the cubic's.
    """
    at = where.get("target", TYPICAL)
    own: dict[str, Any] = noisy(knobs, curvature, activation, at)
    first, third = predict.activation_derivatives(activation, at)
    rate = 2 * (own["lr"] * own["noise_std"]) ** 2 * abs(float(first * third) or 1.0)
    steps = max(SHAKEN * READINGS, round(knobs.decay / rate))
    return own | where | {"spread": _NEAR, "steps": steps}


def read_at(steps: int) -> list[int]:
    """The steps at which a run is read."""
    return [round(steps * index / READINGS) for index in range(READINGS + 1)]


# ---- committees


def follow(trials: Sequence[Committee]) -> list[Rows]:
    """Runs of one activation, size and length side by side, a record for every reading."""
    import torch

    from undertow.train import CommitteeMachine

    first = trials[0]
    starts = zip(*map(start, trials), strict=True)
    z, gram, flattest, weights = (torch.stack(own) for own in starts)
    committee = CommitteeMachine.fitting(first.activation, gram, flattest, weights)
    each = zip(trials, gram, flattest[:, 0], strict=True)
    known, modes = zip(*(closed_forms(*own) for own in each), strict=True)
    directions = torch.stack(modes)
    lr = torch.tensor([trial.lr for trial in trials], dtype=torch.float64)
    loud = [trial.noise_std * (trial.noise != "none") for trial in trials]
    given: dict[str, Any] = {"lr": lr, "noise_std": torch.tensor(loud, dtype=torch.float64)}
    path = z = committee.at_rest(z)
    shaken = dict(given)
    if first.noise == "isotropic":  # of as much variance in all as label noise has at the start
        steep = committee.slopes(z).square().mean((1, 2)).sqrt()
        shaken |= {"noise_std": lr * given["noise_std"] * 2 * steep, "on": "preactivations"}
    generators = [stream(trial.seed, 0) for trial in trials]
    limit = {
        "least_trace": committee.hessian_trace(flattest),
        "flattest_ratio": ranks(flattest)["rank_ratio"],
    }
    rows: list[Rows] = [[] for _ in trials]
    for before, stop in pairwise((0, *read_at(first.steps))):
        z = committee.descend(z, stop - before, generators, **shaken)
        path = committee.flatten(path, stop - before, **given)
        settled = committee.at_rest(z)
        facts = (
            ranks(settled)
            | {"step": stop, "trace": committee.hessian_trace(settled)}
            | {"bend_ratio": ranks(committee.bends(settled))["rank_ratio"]}
            | limit
            | spreads(settled, flattest, directions)
            | {"path_apart": spreads(path, flattest, directions)["apart"]}
        )
        for own, shared, row in zip(rows, known, rows_of(facts), strict=True):
            own.append(shared | row)
    return rows


def start(trial: Committee) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pre-activations `[m, n]`, X X^T `[n, n]`, the flattest fit `[m, n]` and output weights."""
    import torch

    generator = torch.Generator().manual_seed(trial.seed)
    inputs, signs = _inputs(trial, generator)
    theta = normals(generator, trial.neurons, trial.features)
    if trial.target is not None:
        goal = trial.target * signs
    else:
        low, high = _EQUAL_GOALS if trial.weights == "equal" else _UNEQUAL_GOALS
        drawn = torch.rand(1, trial.samples, generator=generator).double()
        goal = signs * (low + (high - low) * drawn)
    z, flattest = theta @ inputs.mT, goal.expand(trial.neurons, -1)
    weights = torch.ones(trial.neurons, dtype=torch.float64)
    if trial.weights == "unequal":
        low, high = _UNEQUAL
        sizes = low + (high - low) * torch.rand(trial.neurons, generator=generator).double()
        weights = sizes * normals(generator, trial.neurons).sign()
        flattest = torch.asinh(goal.sinh() / weights[:, None])  # sinh'' = c / a
    if trial.spread is not None:
        z = goal + trial.spread * z
    return z, inputs @ inputs.mT, flattest, weights


def _inputs(trial: Committee, generator: Generator) -> tuple[Tensor, Tensor]:
    """Inputs of norm one `[n, d]`, and the signs of their targets `[1, n]`."""
    import torch

    if trial.inputs == "digit":
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


def closed_forms(
    trial: Committee, gram: Tensor, goal: Tensor
) -> tuple[dict[str, float | None], Tensor]:
    """Of neurons near one another the rates per step, and of any start the least; and directions.

    Those `[n, n]` in the space of inputs along which spreads decay on their own, slowest first.
    """
    import torch

    names = ("predicted", "predicted_slowest", "predicted_at_lr", "predicted_least")
    if trial.weights != "equal" or trial.noise != "label":
        return dict.fromkeys(names), torch.eye(len(gram), dtype=torch.float64)

    def own(**given: Any) -> Any:
        return predict.rank_one_rate(trial.lr, trial.noise_std, **given)

    where: dict[str, Any] = {"activation": trial.activation, "preactivation": goal.numpy()}
    orthonormal = trial.inputs == "orthonormal"
    known = np.eye(len(gram)) if orthonormal else gram.numpy()  # without rounding's mixtures
    rates, modes = predict.rank_one_modes(own(**where), known)
    at_lr = float(own(**where, neurons=trial.neurons).mean()) if orthonormal else None
    slowest = float(np.linalg.eigvalsh(known)[0] * own(derivatives=(1.0, 1.0)))
    least = slowest if trial.activation == "cubic" else None  # phi' and phi''' at least one
    found = (float(rates.mean()), float(rates[0]), at_lr, least)
    return dict(zip(names, found, strict=True)), torch.from_numpy(modes)


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


def spreads(z: Tensor, flattest: Tensor, directions: Tensor) -> dict[str, Tensor]:
    """How far neurons are from the flattest fit, and from one another along `directions`."""
    spread = (z @ directions.mT).std(1)
    return {
        "apart": (z - flattest).square().mean((1, 2)).sqrt(),
        "widest": spread.amax(1),
        "narrowest": spread.amin(1),
        "log_spread": spread.log().mean(1),
        "log_spread_slowest": spread[:, 0].log(),
    }
