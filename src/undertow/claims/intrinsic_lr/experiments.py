"""Ensembles from two starts, norms at rest and on their way there, schedules, and full batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from undertow.claims import Networks, networks
from undertow.claims.intrinsic_lr import CONTROLS, KINDS, IntrinsicLr
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from undertow.train import Member

# Parts of 1 / (lr x weight_decay) at which ensembles are read.
TIMES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
CLOCK = tuple(part / 20 for part in range(1, 21))  # and norms on their way
SPLIT = 4  # by so much lr is smaller, and weight_decay larger, from the far start
FAR = 2.0  # times initial weights: from where norms come back
SMALLER, LONGER = 100, 10  # an initial rate, and the steps that it is given
REPEATS, BATCHES = 4, 12  # networks of a seed, and batches a reading, where norms are read
ANNEALED = 2  # networks of a seed under each schedule
FALLS = (0.6, 0.8)  # parts of a training after which its rate falls to a tenth
# Of the toy: lr x weight_decay not too small, or its loss underflows before it comes back.
CIRCLE = {"lr": 0.1, "weight_decay": 0.1, "steps": 20_000}
_APART = 2**32  # between the seeds of two members, so that no two networks share one
_PERMUTATIONS = 199

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Networks of one kind, on images that the seed draws."""

    images: Images
    width: int
    batch_size: int
    kind: str
    lr: float
    horizon: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Meeting(Trained):
    """Ensembles from a fresh start, and from one that has learned random labels."""

    products: tuple[float, ...]
    members: int
    random_steps: int
    shown: int


@dataclass(frozen=True, kw_only=True)
class Weights(Trained):
    """Where an ensemble's weights go after its functions have come to rest."""

    product: float
    members: int
    random_steps: int


@dataclass(frozen=True, kw_only=True)
class Rest(Trained):
    """Norms and gradients at rest, layer by layer."""

    product: float
    momentum: float
    readings: int
    decayed: bool = True


@dataclass(frozen=True, kw_only=True)
class Clock(Trained):
    """Norms on their way, from initial weights that are far too large."""

    product: float
    momentum: float
    readings: int


@dataclass(frozen=True, kw_only=True)
class Schedule(Trained):
    """A whole training, whose rate falls to a tenth twice."""

    weight_decay: float
    steps: int


@dataclass(frozen=True)
class Circle:
    """Full-batch descent on x^2 / (x^2 + y^2), and a twin a hair off."""

    seed: int


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
    return {
        "functions": Experiment(grid(Meeting, knobs, **at), meet, ("seed",), 6),
        "schedules": Experiment(grid(Schedule, knobs, cell=trained, **at), anneal, ("seed",)),
        "weights": Experiment(
            grid(Weights, knobs, product=[product], members=[fewer], **at), keep_moving, ("seed",)
        ),
        "rest": Experiment(resting, rest, ("seed",)),
        "clock": Experiment(clocks, turn_back, ("seed",)),
        "circle": Experiment(grid(Circle, knobs, seed=own), descend),
    }


# ---- networks


def member(trial: Trained, number: int, lr: float, weight_decay: float, **more: Any) -> Member:
    """A member that shares its batches with no other one."""
    from undertow.train import Member

    return Member(trial.seed + number * _APART, lr, weight_decay, order="replacement", **more)


def of_kind(
    trials: Sequence[Trained], modules: Sequence[nn.Module], members: Sequence[Member], **more: Any
) -> Networks:
    """Networks from these weights, as many for each trial, on its own images."""
    each = len(members) // len(trials)
    options: dict[str, Any] = {"batch_size": trials[0].batch_size, "path": "vmap"} | more
    data = [trial.seed for trial in trials for _ in range(each)]
    return networks(trials[0].images, lambda *_: modules, members, data_seeds=data, **options)


def fresh(trial: Trained, start: int = 0, factor: float = 1.0) -> nn.Module:
    """A network with initial weights of its own, but for the head, which all starts share."""
    import torch

    from undertow import models
    from undertow.train import spawn_generators

    norm, activation = (KINDS | CONTROLS)[trial.kind]
    shown = trial.images.load(seed=trial.seed)
    features, classes = shown.train_inputs[0].numel(), shown.num_classes
    head, *starts, _ = (
        models.scale_invariant_mlp(
            (features, trial.width, trial.width, classes),
            norm=norm,
            activation=activation,
            frozen_head=trial.kind != "trained head",
            generator=generator,
        )
        for generator in spawn_generators(trial.seed, 4)
    )
    made = starts[start]
    made[-1].load_state_dict(head[-1].state_dict())
    with torch.no_grad():
        for layer in made[:-1].parameters():
            layer.mul_(factor)
    return made


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


# ---- functions


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
    for twice, product in pairwise(first.products):
        at_rest = seen[product, first.horizon], seen[twice, first.horizon]
        as_long = seen[product, 0.5], seen[twice, 1.0]
        for number, own in enumerate(rows):
            for what, time, pair in (("products", first.horizon, at_rest), ("steps", 0.5, as_long)):
                own.append(compared(what, product, time, *(laws[number] for laws in pair)))
    return rows


def compared(what: str, product: float, time: float, own: Tensor, other: Tensor) -> dict[str, Any]:
    """One distance in function space, with what chance alone sets apart."""
    from undertow import measure

    found = measure.distance_in_function_space(own, other, permutations=_PERMUTATIONS)
    facts = {"compared": what, "product": product, "time": float(time)}
    return facts | {"distance": found.value, "null": found.null, "p_value": found.p_value}


# ---- weights


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


def trained_weights(found: Networks) -> dict[str, Tensor]:
    """The layers that are trained, each `[members, numbers]`."""
    named = found.ensemble.module(0).named_parameters()
    weights = found.ensemble.parameters()
    return {name: weights[name].flatten(1).double() for name, own in named if own.requires_grad}


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


# ---- norms


def of_rest(
    trials: Sequence[Rest] | Sequence[Clock], decay: float, factor: float = 1.0
) -> Networks:
    """A few networks of each trial, with momentum where it has any."""
    from undertow.train import rules

    first, modules, members = trials[0], list[Any](), []
    for trial in trials:
        modules += [fresh(trial, factor=factor)] * REPEATS
        for own in range(REPEATS):
            members.append(member(trial, own, first.lr, decay, momentum=first.momentum))
    return of_kind(trials, modules, members, rule=rules.momentum if first.momentum else rules.sgd)


def late(trial: Rest | Clock) -> list[int]:
    """Steps at which norms at rest are read, over the second half."""
    first, last = trial.horizon / 2 / trial.product, trial.horizon / trial.product
    parts = range(1, trial.readings + 1)
    return [round(first + (last - first) * part / trial.readings) for part in parts]


def rest(trials: Sequence[Rest]) -> list[Rows]:
    """Each layer's norm, the square of its gradients at unit norm, and the turn of a step."""
    import torch

    from undertow.train import spawn_generators

    first, rows = trials[0], [Rows() for _ in trials]
    decay = first.product * (1 - first.momentum) / first.lr * first.decayed
    found = of_rest(trials, decay)
    generators = [spawn_generators(trial.seed, 4)[3] for trial in trials]
    read: dict[str, list[Tensor]] = {}
    for _ in found.ensemble.read_at(late(first)):
        before, squares = trained_weights(found), square_gradients(found, generators)
        found.ensemble.train(1)
        for name, after in trained_weights(found).items():
            norm, cosine = before[name].norm(dim=1), torch.cosine_similarity(before[name], after)
            numbers = torch.stack([norm**4, norm**2 * squares[name], 1 - cosine])
            read.setdefault(name, []).append(numbers.unflatten(1, (len(trials), -1)).mean(2))
    accuracy = found.tested().accuracy.view(len(trials), -1).mean(1)
    for layer, readings in enumerate(read.values(), 1):
        fourth, square, lost = torch.stack(readings, 1)
        facts = {
            "layer": layer,
            "fourth": fourth.mean(0),
            "square": square.mean(0),
            # In root mean square: 1 - cos is what the moments tell.
            "turned": 2 * (lost.mean(0) / 2).sqrt().asin(),
            "accuracy": accuracy,
        }
        for own, row in zip(rows, rows_of(facts), strict=True):
            own.append(row | (law(first, decay, row["square"]) if decay else {}))
    return rows


def law(trial: Rest, decay: float, square: float) -> dict[str, Any]:
    """What the closed forms make of the gradients' size."""
    from undertow import predict

    found = predict.equilibrium(trial.lr, decay, momentum=trial.momentum, gradient_sqnorm=square)
    assert found.norm is not None  # there is a size
    return {"predicted": found.norm**4, "predicted_turn": found.angular_update}


def square_gradients(found: Networks, generators: Sequence[Generator]) -> dict[str, Tensor]:
    """Mean square norm of the gradients of a few batches, by layer, for each member.

    The batches are drawn anew: what is measured of them has no part in how the weights came about.
    """
    import torch
    from torch.func import functional_call, grad, vmap
    from torch.nn import functional

    ensemble, (members, count) = found.ensemble, found.train.shape
    template = ensemble.module(0).train()

    def loss(weights: Any, buffers: Any, inputs: Tensor, labels: Tensor) -> Tensor:
        outputs = functional_call(template, (weights, buffers), (inputs,))
        return functional.cross_entropy(outputs, labels)

    shape = members // len(generators), ensemble.batch_size
    squares: dict[str, Tensor] = {}
    for _ in range(BATCHES):
        drawn = [torch.randint(count, shape, generator=own) for own in generators]
        rows = found.train.gather(1, torch.cat(drawn))
        data = found.pool[0][rows], found.pool[1][rows]
        state = ensemble.parameters(), ensemble.buffers()
        for name, own in vmap(grad(loss))(*state, *data).items():
            square = own.flatten(1).double().square().sum(1) / BATCHES
            squares[name] = squares[name] + square if name in squares else square
    return squares


def turn_back(trials: Sequence[Clock]) -> list[Rows]:
    """||w||^4 on its way, in parts of what it is at the end, mean over layers."""
    import torch

    first = trials[0]
    decay = first.product * (1 - first.momentum) / first.lr
    found = of_rest(trials, decay, FAR)

    def fourth() -> Tensor:
        own = [weights.norm(dim=1) ** 4 for weights in trained_weights(found).values()]
        return torch.stack(own).unflatten(1, (len(trials), -1)).mean(2)

    read = []
    steps = [round(part / first.product) for part in CLOCK]
    for _ in found.ensemble.read_at(steps):
        read.append(fourth())
    rest_at = torch.stack([fourth() for _ in found.ensemble.read_at(late(first))]).mean(0)
    ratios = (torch.stack(read) / rest_at).mean(1)
    return [
        [
            {"time": step * first.product, "ratio": float(ratio)}
            for step, ratio in zip(steps, own, strict=True)
        ]
        for own in ratios.unbind(1)
    ]


# ---- schedules, and full batches


def anneal(trials: Sequence[Schedule]) -> list[Rows]:
    """Networks trained to the end, and how many of their test images they get right."""
    from undertow.train import schedules

    first = trials[0]
    falling = schedules.StepDecay(tuple(round(first.steps * share) for share in FALLS))
    modules, members = list[Any](), list[Any]()
    for trial in trials:
        modules += [fresh(trial)] * ANNEALED
        members += [
            member(trial, own, trial.lr, trial.weight_decay, schedule=falling)
            for own in range(ANNEALED)
        ]
    found = of_kind(trials, modules, members)
    found.ensemble.train(first.steps)
    accuracy = found.tested().accuracy.view(len(trials), -1).mean(1)
    return [[{"accuracy": own}] for own in accuracy.tolist()]


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
