"""Ensembles from two starts, whose functions meet; norms, schedules, and full batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from undertow.claims import Networks
from undertow.claims.intrinsic_lr import CONTROLS, KINDS, IntrinsicLr
from undertow.claims.intrinsic_lr.norms import rest, turn_back
from undertow.claims.intrinsic_lr.trials import (
    CIRCLE,
    EARLY,
    FALLS,
    LONGER,
    SMALLER,
    SPLIT,
    TIMES,
    Circle,
    Clock,
    Meeting,
    Rest,
    Rows,
    Schedule,
    Weights,
    fresh,
    member,
    of_kind,
    trained_weights,
)
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Tensor, nn

_PERMUTATIONS = 199


def experiments(knobs: IntrinsicLr, seed: int) -> dict[str, Experiment]:
    """The longest first."""
    own, product = seeds(seed, knobs.seeds), knobs.products[1]
    norms, controls = ([{"kind": kind} for kind in own_kinds] for own_kinds in (KINDS, CONTROLS))
    at: dict[str, Any] = {"norm": norms, "seed": own}
    heavy = {"momentum": knobs.momentum, "lr": knobs.lr * (1 - knobs.momentum)}
    plain, fewer = {"momentum": 0.0}, (knobs.members + 1) // 2
    # The same product in other parts, twice as much of it, momentum, and without decay.
    cells = [
        plain | {"lr": knobs.lr * SPLIT},
        plain | {"lr": knobs.lr / SPLIT},
        plain | {"product": 2 * product},
        heavy,
        plain | {"decayed": False},
    ]
    resting = grid(Rest, knobs, product=[product], cell=cells, **at)
    resting += grid(Rest, knobs, product=[product], cell=[plain], norm=controls, seed=own)
    clocks = grid(Clock, knobs, product=[product], cell=[plain, heavy], **at)
    clocks += grid(Clock, knobs, product=[product], cell=[plain], norm=controls[:1], seed=own)
    usual = {"lr": knobs.annealed_lr, "steps": knobs.steps}
    small = usual | {"lr": knobs.annealed_lr / SMALLER}
    trained = [small | {"steps": LONGER * knobs.steps}, small, usual]
    # What is told apart there is small.
    schedules = grid(Schedule, knobs, cell=trained, norm=norms, seed=seeds(seed, 2 * knobs.seeds))
    return {
        "functions": Experiment(grid(Meeting, knobs, **at), meet, ("seed",), 6),
        "schedules": Experiment(schedules, anneal, ("seed",)),
        "weights": Experiment(
            grid(Weights, knobs, product=[product], members=[fewer], **at), keep_moving, ("seed",)
        ),
        "rest": Experiment(resting, rest, ("seed",)),
        "clock": Experiment(clocks, turn_back, ("seed",)),
        "circle": Experiment(grid(Circle, knobs, seed=own), descend),
    }


# ---- functions, and weights


def learned_at_random(trials: Sequence[Meeting] | Sequence[Weights]) -> list[nn.Module]:
    """For each trial a network that has learned random labels of its images."""
    members = [member(trial, 0, trial.lr, 4e-3 / trial.lr) for trial in trials]
    found = of_kind(trials, [fresh(trial, 1) for trial in trials], members, label_noise=1.0)
    found.ensemble.train(trials[0].random_steps)
    return [found.ensemble.module(number) for number in range(len(trials))]


def from_both(
    trials: Sequence[Meeting] | Sequence[Weights],
    far: Sequence[nn.Module],
    product: float,
    place: int = 0,
) -> Networks:
    """Of each trial two ensembles at one product, the far one with lr and decay in other parts.

    Ensembles at another place see other batches: all are independent.
    """
    each, modules, members = trials[0].members, list[Any](), list[Any]()
    for trial, learned in zip(trials, far, strict=True):
        modules += [fresh(trial)] * each + [learned] * each
        rates = [trial.lr] * each + [trial.lr / SPLIT] * each
        numbers = range(1 + 2 * each * place, 1 + 2 * each * (place + 1))
        members += [
            member(trial, number, lr, product / lr)
            for number, lr in zip(numbers, rates, strict=True)
        ]
    return of_kind(trials, modules, members)


def meet(trials: Sequence[Meeting]) -> list[Rows]:
    """How far apart ensembles are: from two starts, of two products, and after as many steps."""
    first, rows, far = trials[0], [Rows() for _ in trials], learned_at_random(trials)
    seen: dict[tuple[float, float], Tensor] = {}
    for place, product in enumerate(first.products):
        both = from_both(trials, far, product, place)
        steps = {round(time / product): time for time in (*TIMES, first.horizon)}
        for step in both.ensemble.read_at(steps):
            shown = both.held_out[:, : first.shown]
            outputs = both.ensemble.predict(both.pool[0], samples=shown)
            outputs = outputs.unflatten(0, (len(trials), 2, first.members))
            seen[product, steps[step]] = outputs[:, 0]
            for own, pair in zip(rows, outputs, strict=True):
                own.append(compared("starts", product, steps[step], *pair))
    pairs: list[tuple[str, tuple[float, float], tuple[float, float]]] = [
        ("products", (product, first.horizon), (twice, first.horizon))
        for twice, product in pairwise(first.products)
    ]
    least, most = first.products[-1], first.products[0]
    pairs.append(("steps", (least, EARLY), (most, EARLY * round(most / least))))
    for number, own in enumerate(rows):
        for what, one, other in pairs:
            own.append(compared(what, *one, seen[one][number], seen[other][number]))
    return rows


def compared(what: str, product: float, time: float, own: Tensor, other: Tensor) -> dict[str, Any]:
    """One distance in function space, with what chance alone sets apart."""
    from undertow import measure

    found = measure.distance_in_function_space(own, other, permutations=_PERMUTATIONS)
    facts = {"compared": what, "product": product, "time": float(time)}
    return facts | {"distance": found.value, "null": found.null, "p_value": found.p_value}


def keep_moving(trials: Sequence[Weights]) -> list[Rows]:
    """Cosines within an ensemble and between two, the way from where it was, averages over time."""
    import torch
    from torch.nn import functional

    first, rows = trials[0], [Rows() for _ in trials]
    both = from_both(trials, learned_at_random(trials), first.product)
    steps = {round(time / first.product): time for time in range(2, first.horizon + 1)}
    began: Tensor | None = None
    sums: dict[str, Tensor] = {}
    for count, step in enumerate(both.ensemble.read_at(steps), 1):
        weights = trained_weights(both)
        sums = {name: sums.get(name, 0) + value for name, value in weights.items()}
        flat = torch.cat([functional.normalize(own) for own in weights.values()], 1)
        unit = functional.normalize(flat).unflatten(0, (len(trials), 2, first.members))
        began = unit if began is None else began
        means = unit.mean(2)
        # Of pairs of different members, in either ensemble.
        within = (first.members * means.square().sum(2) - 1) / (first.members - 1)
        facts = {
            "time": float(steps[step]),
            "within": within.mean(1),
            "across": (means[:, 0] * means[:, 1]).sum(1),
            "moved": (unit - began).square().sum(3)[:, 0].mean(1),
            "loss": tested(both, weights, len(trials)),
            "averaged_loss": tested(
                both, {name: own / count for name, own in sums.items()}, len(trials)
            ),
        }
        for own, row in zip(rows, rows_of(facts), strict=True):
            own.append(row)
    return rows


def tested(both: Networks, weights: dict[str, Tensor], trials: int) -> Tensor:
    """Mean test loss of each trial's first ensemble at these weights, with statistics of their own.

    Batch norm's are those of all training images, as averaged weights have no others.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    each, losses = len(both.train) // (2 * trials), []
    for number in (number for number in range(len(both.train)) if number // each % 2 == 0):
        module, rows = both.ensemble.module(number), both.held_out[number]
        with torch.no_grad():
            for name, value in module.named_parameters():
                if name in weights:
                    value.copy_(weights[name][number].view_as(value))
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm1d):
                    layer.momentum = 1.0
            module.train()(both.data_of(number)[0])
            outputs = module.eval()(both.pool[0][rows])
            losses.append(functional.cross_entropy(outputs, both.pool[1][rows]))
    return torch.stack(losses).view(trials, each).mean(1)


# ---- schedules, and full batches


def anneal(trials: Sequence[Schedule]) -> list[Rows]:
    """Networks trained to the end, and how many of their test images they get right."""
    from undertow.train import schedules

    first = trials[0]
    falling = schedules.StepDecay(tuple(round(first.steps * share) for share in FALLS))
    members = [member(own, 0, own.lr, own.weight_decay, schedule=falling) for own in trials]
    found = of_kind(trials, [fresh(trial) for trial in trials], members)
    found.ensemble.train(first.steps)
    return [[{"accuracy": own}] for own in found.tested().accuracy.tolist()]


def descend(trial: Circle) -> Rows:
    """Where losses of full-batch descent go with decay, and where once decay is off."""
    import numpy as np

    angle = np.random.default_rng(trial.seed).uniform(0, 2 * np.pi)
    place = np.stack([np.cos(angle) + np.array([0, 1e-9]), np.full(2, np.sin(angle))])
    rows = []
    for decay in (CIRCLE["weight_decay"], 0.0):
        losses = []
        for _ in range(int(CIRCLE["steps"])):
            square = (place**2).sum(0)
            losses.append(place[0] ** 2 / square)
            slope = 2 * place[0] * place[1] / square**2
            gradient = slope * np.stack([place[1], -place[0]])
            place = (1 - CIRCLE["lr"] * decay) * place - CIRCLE["lr"] * gradient
        late = np.array(losses[len(losses) // 2 :])
        rows.append(
            {
                "decayed": decay > 0,
                "highest": late[:, 0].max(),
                "lowest": late[:, 0].min(),
                "apart": abs(late[:, 0] - late[:, 1]).max(),
            }
        )
    return rows
