"""Descent on circles, batch-norm regressions and batch-norm networks, with decay and without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from undertow.claims.normalization_flattens import (
    LR,
    READINGS,
    SPEED_READINGS,
    NormalizationFlattens,
)
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Tensor

    from undertow.data import Draws
    from undertow.train import NormalizedNetworks

REGRESSION_DECAY = 2e-4  # at learning rate 1
REGRESSION_READINGS = 8
FAR = 3.0  # tan psi of the regression at the start
CANDIDATES = 10  # of the largest eigenvalues, those that may be at the edge
ENDS = (1.0, 0.0)  # branches with all of the weight decay, and with none
FALL = 0.4  # of log sharpness, whose time is taken
# Effective rate x eigenvalue of those that count as being at the edge: an eigenvalue that does not
# fall gains nearly 2 of its logarithm in a time of 1, so that it is there after less than 0.1.
AT_THE_EDGE = 1.8
FORESEEN = (2, 6, 10)  # readings of a network at which its pace is foreseen
TESTED = (0, 5, 10, 15, READINGS - 2, READINGS - 1, READINGS)  # readings with accuracy
_POWER_STEPS = 25  # of the power iteration, from where the last reading ended

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Circle:
    """A start and a steepness drawn by the seed, at one intrinsic rate, with decay and without."""

    intrinsic_rate: float
    circle_time: float
    seed: int


@dataclass(frozen=True)
class Regression:
    """The parity of a label, by one linear unit under batch norm; fewer images than pixels."""

    images: Images
    regression_steps: int
    seed: int


@dataclass(frozen=True)
class Network:
    """Two hidden layers under batch norm, fitted and branched by weight decay; all labels."""

    images: Images
    width: int
    weight_decay: float
    branches: tuple[float, ...]  # their weight decay, in units of it
    fit_steps: int
    steps: int
    settling: int
    test_size: int | None
    seed: int


@dataclass(frozen=True)
class Pace:
    """The same with one output, the parity of the label; its pace is foreseen on the way."""

    images: Images
    width: int
    speed_weight_decay: float
    speed_fit: int
    speed_steps: int
    settling: int
    seed: int


def experiments(knobs: NormalizationFlattens, seed: int) -> dict[str, Experiment]:
    """The longest first."""
    own, more = (seeds(seed, count) for count in (knobs.seeds, knobs.pace_seeds))
    first = {"images": knobs.images, "test_size": knobs.test_size}
    cells = [
        first | {"width": knobs.widths[0], "branches": (1.0, *sorted(knobs.slower)[::-1], 0.0)}
    ]
    cells += [first | {"width": width, "branches": ENDS} for width in knobs.widths[1:]]
    if knobs.other is not None:
        others = Images(knobs.other, train_size=knobs.images.train_size)
        second: dict[str, Any] = {"images": others, "test_size": None, "branches": ENDS}
        cells += [second | {"width": width} for width in knobs.widths]
    fewer = replace(knobs.images, train_size=knobs.regression_size)
    half: dict[str, Any] = {"together": ("seed",), "group_size": (knobs.seeds + 1) // 2}
    return {
        "networks": Experiment(grid(Network, knobs, cell=cells, seed=own), train, **half),
        "pace": Experiment(grid(Pace, knobs, width=knobs.widths[:1], seed=more), follow, **half),
        "circles": Experiment(
            grid(Circle, knobs, intrinsic_rate=knobs.intrinsic_rates, seed=own), around, **half
        ),
        "regressions": Experiment(
            grid(Regression, knobs, images=[fewer], seed=own), regress, **half
        ),
    }


# ---- where the path is known


def around(trials: Sequence[Circle]) -> list[Rows]:
    """Where descent is and where the flow is, with decay; and how far it went without."""
    import numpy as np

    from undertow.train import circle_descent, circle_flow

    drawn = [np.random.default_rng((trial.seed, 1)) for trial in trials]
    angle = np.array([own.uniform(0.8, 1.6) for own in drawn])
    steepness = np.exp([own.uniform(np.log(0.5), np.log(4)) for own in drawn])
    first, count = trials[0], len(trials)
    run = circle_descent(
        np.tile(angle, 2),
        np.tile(steepness, 2),
        first.intrinsic_rate,
        first.circle_time,
        decay=[True] * count + [False] * count,
    )
    rows = []
    for place, (begin, steep) in enumerate(zip(angle, steepness, strict=True)):
        paths = {
            "": run.angle[:, place],
            "flow_": circle_flow(begin, steep, run.times),
            "still_": run.angle[:, count + place],
        }
        facts: dict[str, Any] = {f"{name}angle": path for name, path in paths.items()}
        facts |= {
            f"{name}fall": steep * (np.cos(path) - np.cos(begin)) for name, path in paths.items()
        }
        apart = float(abs(paths[""] - paths["flow_"]).max())
        facts |= {"tau": run.times, "log_gap": math.log(apart), "edge": float(run.edge[place])}
        rows.append(rows_of(facts | {"last": run.times == run.times[-1]}))
    return rows


def regress(trials: Sequence[Regression]) -> list[Rows]:
    """From minimisers far from the row space of the inputs, at the edge; with and without decay."""
    import torch

    from undertow import measure
    from undertow.train import normalized_networks

    first, count = trials[0], len(trials)
    own = [trial.seed for trial in trials]
    _, inputs, parity = _drawn(first.images, own)
    made = normalized_networks(
        (inputs.shape[2], 1),
        own,
        inputs.double(),
        parity.double(),
        lr=LR,
        weight_decay=REGRESSION_DECAY,
    )
    centred = made.inputs - made.inputs.mean(1, keepdim=True)
    unseen = torch.stack([measure.null_projector(each) for each in centred])
    within = torch.linalg.lstsq(centred, made.targets, driver="gelsd").solution[:, :, 0]
    within /= within.norm(dim=1, keepdim=True)
    beyond = torch.einsum("epq,eq->ep", unseen, made.weights[0][:, 0])
    beyond *= FAR / beyond.norm(dim=1, keepdim=True)
    made = replace(made, weights=[(within + beyond)[:, None]])
    sharpness, _, _ = made.sharpness(8 * _POWER_STEPS)
    length = (made.effective_lr * sharpness / 2).sqrt()[:, None, None]
    made = replace(made, weights=[length * weight for weight in made.weights])
    every = first.regression_steps // REGRESSION_READINGS
    # Until the oscillation is there.
    runs, rows = made.trained(every).branched((REGRESSION_DECAY, 0.0)), []
    for reading in range(REGRESSION_READINGS + 1):
        weights = runs.weights[0][:, 0]
        lost = torch.einsum("epq,eq->ep", unseen.repeat(2, 1, 1), weights)
        settled = runs.settled(every)
        sharpness, _, _ = settled.sharpness(8 * _POWER_STEPS)
        facts = {
            "decay": [True] * count + [False] * count,
            "step": reading * every,
            "tangent": lost.norm(dim=1) / (weights - lost).norm(dim=1),
            "log_sharpness": sharpness.log(),
            "edge": settled.effective_lr * sharpness,
        }
        rows.append(rows_of(facts))
        runs = runs.trained(every)
    return _by_trial(rows, count)


# ---- networks


def train(trials: Sequence[Network]) -> list[Rows]:
    """Sharpness, edge and accuracy of every branch, where its oscillation settles."""
    import torch

    from undertow.train import normalized_networks

    first, count = trials[0], len(trials)
    drawn, inputs, _ = _drawn(first.images, [trial.seed for trial in trials], first.test_size)
    targets = torch.nn.functional.one_hot(drawn.targets[drawn.train], drawn.num_classes)
    fitted = normalized_networks(
        (inputs.shape[2], first.width, first.width, drawn.num_classes),
        [trial.seed for trial in trials],
        inputs,
        targets.to(inputs),
        lr=LR,
        weight_decay=first.weight_decay,
    ).trained(first.fit_steps)
    runs = fitted.branched([first.weight_decay * own for own in first.branches])
    branch = [own for own in first.branches for _ in trials]
    flat = drawn.inputs.flatten(1)
    held_out = [flat[rows] for rows in drawn.test] * len(first.branches)
    labels = [drawn.targets[rows] for rows in drawn.test] * len(first.branches)
    rows, start, every = [], None, first.steps // READINGS
    crossed: list[Tensor] = []
    for reading in range(READINGS + 1):
        settled = runs.settled(first.settling)
        sharpness, residual, start = settled.sharpness(_POWER_STEPS * (1 + (start is None)), start)
        crossed.append(sharpness.double().log())
        facts = {
            "branch": branch,
            "step": reading * every,
            "tau": [reading * every * LR * first.weight_decay * own for own in branch],
            "log_sharpness": crossed[-1],
            "residual": residual,
            "edge": settled.effective_lr * sharpness,
            "loss": settled.losses(settled.weights),
            "last": reading > READINGS - 3,
        }
        if reading in TESTED:
            facts["accuracy"] = settled.accuracies(held_out, labels)
        if reading == READINGS:
            facts["crossing"] = _crossings(torch.stack(crossed), every)
            facts["seen_accuracy"] = _without_unseen(settled).accuracies(held_out, labels)
        rows.append(rows_of(facts))
        runs = runs.trained(every)
    return _by_trial(rows, count)


def follow(trials: Sequence[Pace]) -> list[Rows]:
    """Sharpness on the way, and at some readings what its gradient says of the pace."""
    from undertow.train import normalized_networks

    first = trials[0]
    _, inputs, parity = _drawn(first.images, [trial.seed for trial in trials])
    runs = normalized_networks(
        (inputs.shape[2], first.width, first.width, 1),
        [trial.seed for trial in trials],
        inputs,
        parity,
        lr=LR,
        weight_decay=first.speed_weight_decay,
    ).trained(first.speed_fit)
    rows, start, every = [], None, first.speed_steps // SPEED_READINGS
    for reading in range(SPEED_READINGS + 1):
        settled = runs.settled(first.settling)
        sharpness, residual, start = settled.sharpness(2 * _POWER_STEPS, start)
        facts = {
            "tau": reading * every * LR * first.speed_weight_decay,
            "log_sharpness": sharpness.double().log(),
            "residual": residual,
            "edge": settled.effective_lr * sharpness,
        }
        found = rows_of(facts)
        if reading in FORESEEN:
            foreseen = [_foreseen(settled, place, first) for place in range(len(trials))]
            found = [row | more for row, more in zip(found, foreseen, strict=True)]
        rows.append(found)
        runs = runs.trained(every)
    return [list(own) for own in zip(*rows, strict=True)]


def _foreseen(networks: NormalizedNetworks, place: int, trial: Pace) -> dict[str, Any]:
    """The pace by the largest eigenvalue's gradient, and by those of all that are at the edge."""
    from undertow import measure, predict

    objective = networks.objective(place)
    largest = measure.spherical_sharpness(objective, CANDIDATES).eigenvalues
    at_edge = int((networks.effective_lr[place] * largest >= AT_THE_EDGE).sum())
    found = measure.sharpness_gradient(
        objective, max(at_edge, 1), tolerance=LR * trial.speed_weight_decay / 2, rtol=1e-2
    )
    return {
        "at_edge": at_edge,
        "slope": found.slope,
        "alone": predict.sharpness_speed_limit(found.slope),
        "foreseen": predict.sharpness_speed_limit(gram=found.gram.numpy()),
    }


def _by_trial(readings: Sequence[Rows], count: int) -> list[Rows]:
    """The rows of each network, of all of whose branches the readings hold one after another."""
    by_run = list(zip(*readings, strict=True))
    return [[row for run in by_run[place::count] for row in run] for place in range(count)]


def _crossings(log_sharpness: Tensor, every: int) -> list[float | None]:
    """The steps after which each run's sharpness has fallen by e^FALL; None where it never has."""
    found: list[float | None] = []
    for path in (log_sharpness - log_sharpness[0] + FALL).T.tolist():
        later = [place for place, left in enumerate(path) if left <= 0]
        if later:
            before, after = path[later[0] - 1], path[later[0]]
            found.append(every * (later[0] - 1 + before / (before - after)))
        else:
            found.append(None)
    return found


def _without_unseen(networks: NormalizedNetworks) -> NormalizedNetworks:
    """The same without what no training input reaches in the first layer."""
    import torch

    from undertow import measure

    seen = torch.stack(
        [
            torch.eye(own.shape[1]) - measure.null_projector(own - own.mean(0)).to(own)
            for own in networks.inputs
        ]
    )
    first, *others = networks.weights
    return replace(networks, weights=[first @ seen, *others])


def _drawn(
    images: Images, own: Sequence[int], test_size: int | None = None
) -> tuple[Draws, Tensor, Tensor]:
    """The images of each seed, as vectors `[E, n, d]`, and the parity of their labels."""
    drawn = images.draw(own, test_size=test_size)
    parity = (drawn.targets[drawn.train] % 2)[:, :, None]
    inputs = drawn.inputs.flatten(1)[drawn.train]
    return drawn, inputs, parity.to(inputs)
