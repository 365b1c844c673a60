"""Convolutional networks that go on from one start: with SGD, with Local SGD, and with QSR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undertow.claims import convolutional, networks
from undertow.claims.local_sgd_flatness import LocalSGDFlatness
from undertow.data import Images
from undertow.lab import rows_of

if TYPE_CHECKING:
    from torch import nn

    from undertow.claims import Networks
    from undertow.train import Member

_FIRST_LR = 0.2  # of the start
_FALLS = (0.7, 0.25)  # where the start lowers its rate, in parts of its steps, and by what
_LATE = 6  # readings of test accuracy

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Convolution:
    """A convolutional network that goes on from a start, on the same samples.

    `method` is sgd (all the batch at each step), local (a fixed period) or qsr (`period` and up).
    `noise` is flips of labels, or smooth: none, and labels that are the mean of flipped ones.
    `falling` rates go to zero along a cosine.
    """

    method: str
    lr: float
    period: int
    images: Images
    channels: int
    num_workers: int
    local_batch: int
    flips: float
    alpha: float
    first_steps: int
    steps: int
    few_steps: int
    seed: int
    noise: str = "flips"
    falling: bool = False


def cells(knobs: LocalSGDFlatness) -> list[dict[str, Any]]:
    """SGD and Local SGD at two rates, in shorter rounds, without noise, and at falling rates."""
    sgd: dict[str, Any] = {"method": "sgd", "period": 1}
    local: dict[str, Any] = {"method": "local", "period": knobs.period}
    small: dict[str, Any] = {"lr": knobs.lr}
    brief = local | {"period": knobs.brief_period}
    found = [own | small for own in (sgd, local, brief)]
    found += [own | {"lr": knobs.large_lr} for own in (sgd, brief)]
    found += [own | small | {"noise": "smooth"} for own in (sgd, local)]
    base = {"period": knobs.base}
    falling = [sgd, local | base, {"method": "qsr"} | base]
    return found + [own | {"lr": knobs.falling_lr, "falling": True} for own in falling]


def falling_rates(knobs: LocalSGDFlatness) -> list[float]:
    """The learning rates that fall, one for each step: half a cosine down to zero."""
    steps = knobs.steps
    return [knobs.falling_lr * (1 + math.cos(math.pi * t / steps)) / 2 for t in range(steps)]


def flatten(trials: Sequence[Convolution]) -> list[Rows]:
    """Hessian's trace and test accuracy on the way from a common start, a record a reading.

    SGD takes the whole batch in one worker's step, which is what workers averaged at each step do.
    """
    first, begun = trials[0], begin({trial.seed: trial for trial in trials})
    rows: list[Rows] = [[] for _ in trials]
    kinds: dict[tuple[bool, str], list[int]] = {}
    for number, trial in enumerate(trials):
        kinds.setdefault((trial.method == "sgd", trial.noise), []).append(number)
    for (alone, noise), numbers in kinds.items():
        own = [trials[number] for number in numbers]
        size = first.local_batch * (first.num_workers if alone else 1)
        found = networks(
            first.images,
            lambda *_, own=own: [begun[trial.seed] for trial in own],
            list(map(member, own)),
            flat=False,
            data_seeds=[trial.seed for trial in own],
            batch_size=size,
            path="vmap",
            **labels(first, noise),
        )
        for step in found.ensemble.read_at(read_at(first)):
            facts = found.results() | {"step": step, "trace": None, "share": None}
            if step in (first.few_steps, first.steps):
                facts |= measured(found, own)
            for number, row in zip(numbers, rows_of(facts), strict=True):
                rows[number].append(row)
    return rows


def read_at(trial: Convolution) -> list[int]:
    """The steps at which a run is read: soon, and over its last quarter."""
    late = (trial.steps * (1 - share / (4 * _LATE)) for share in range(_LATE))
    return [trial.few_steps, *sorted(map(round, late))]


def begin(trials: dict[int, Convolution]) -> dict[int, nn.Module]:
    """By its seed each network that SGD has trained on smooth labels."""
    from undertow.train import Member, schedules

    first = next(iter(trials.values()))
    falls = schedules.StepDecay((round(_FALLS[0] * first.first_steps),), _FALLS[1])
    found = convolutional(
        first.images,
        (first.channels, 2 * first.channels),
        [Member(own, _FIRST_LR, schedule=falls, order="replacement") for own in trials],
        batch_size=first.local_batch * first.num_workers,
        **labels(first, "smooth"),
    )
    found.ensemble.train(first.first_steps)
    return {seed: found.ensemble.module(number) for number, seed in enumerate(trials)}


def labels(trial: Convolution, noise: str) -> dict[str, Any]:
    """Labels that are flipped anew at each step, or their mean; both give one mean loss."""
    from undertow.train import rules

    if noise == "smooth":
        return {"smoothing": trial.flips}
    classes = trial.images.load().num_classes
    flipped = rules.label_noise(rules.sgd, flip_probability=trial.flips, num_classes=classes)
    return {"rule": flipped}


def member(trial: Convolution) -> Member:
    """One that goes on, with batches of its own."""
    from undertow.train import Member, Rounds, Workers, schedules

    rounds = Rounds(trial.period, total_steps=trial.steps)
    if trial.method == "qsr":
        rounds = Rounds("qsr", trial.alpha, trial.period, total_steps=trial.steps)
    return Member(
        2**40 + trial.seed,
        trial.lr,
        schedule=schedules.Cosine(trial.steps) if trial.falling else None,
        order="replacement",
        workers=None if trial.method == "sgd" else Workers(trial.num_workers, rounds),
    )


def measured(found: Networks, trials: Sequence[Convolution]) -> dict[str, Any]:
    """The trace of the mean loss's Hessian at the workers' average, and how often they averaged.

    It is that of the Gauss-Newton matrix, which is exact and cheap, and the Hessian at a fit.
    """
    from undertow import measure

    taken = found.ensemble.steps_taken
    traces: list[float | None] = [None] * len(trials)
    for own in found.ensemble.alive:
        objective = found.objective(own, trials[own].flips)
        traces[own] = measure.hessian_trace(objective, curvature="ggn").value
    share = [
        1.0 if trial.method == "sgd" else rounds / taken
        for trial, rounds in zip(trials, found.ensemble.rounds_taken, strict=True)
    ]
    return {"trace": traces, "share": share}
