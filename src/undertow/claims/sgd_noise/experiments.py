"""Networks at rest and their minibatch gradients; networks under SGD, their ranks and their noise.

An epoch from where SGD has got to is taken in several data orders; what they do not share is noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from undertow.claims import Networks, networks, perceptrons
from undertow.claims.sgd_noise import KINDS, LR, SgdNoise
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

_MOMENTUM = 0.95  # heavy ball comes to rest at the same points as descent
_ORDERS = 16  # data orders from the same weights: one pair of them tells little of their spread
_OTHER_ORDER = 2**32  # between the seeds of two data orders, so that no two networks share one
_BATCHES = 100  # drawn where SGD has got to

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Rest:
    """A network brought to rest by full-batch descent, then its minibatch gradients."""

    images: Images
    width: int
    classes: int
    weight_decay: float
    steps: int
    batch_sizes: tuple[int, ...]
    batches: int
    seed: int


@dataclass(frozen=True)
class Training:
    """A network trained by SGD, with decay from the first step or without.

    It is read after as many epochs as the smallest batch has at the end, and after as many steps.
    """

    images: Images
    width: int
    kind: str
    batch_size: int
    small_batch: int
    lr: float
    weight_decay: float
    steps: int
    threshold: float
    seed: int


def experiments(knobs: SgdNoise, seed: int) -> dict[str, Experiment]:
    """Networks under SGD first, as they take longest; networks at rest over weight decays."""
    own = seeds(seed, knobs.seeds)
    rest = grid(Rest, knobs, classes=[10], weight_decay=knobs.weight_decay, seed=own)
    rest += grid(Rest, knobs, classes=[2], weight_decay=[middle(knobs)], seed=own)
    cells = [
        {
            "kind": kind,
            "lr": lr,
            "weight_decay": decay,
            "steps": round(knobs.decay_exponent / lr / most),
        }
        for kind, (lr, most) in list(KINDS.items())[::-1]
        for decay in (most, 0.0)
    ]
    more = replace(knobs.images, train_size=knobs.samples)
    sizes = (knobs.large_batch, knobs.small_batch)
    trained = grid(Training, knobs, images=[more], batch_size=sizes, cell=cells, seed=own)
    alike = ("weight_decay", "seed")
    return {
        "training": Experiment(trained, train, together=alike, group_size=64),
        "rest": Experiment(rest, come_to_rest, together=alike, group_size=25),
    }


def middle(knobs: SgdNoise) -> float:
    """The middle one of the weight decays."""
    return sorted(knobs.weight_decay)[len(knobs.weight_decay) // 2]


def come_to_rest(trials: Sequence[Rest]) -> list[Rows]:
    """All decays and seeds: the gradients of minibatches where that of all data is nearly zero."""
    import torch

    from undertow.train import Member, rules

    first = trials[0]
    resting = perceptrons(
        first.images,
        (first.width, first.width),
        [Member(t.seed, LR, t.weight_decay, _MOMENTUM, order="full") for t in trials],
        activation="tanh",
        modulo=first.classes,
        batch_size=1,  # of no account: a step takes all images
        rule=rules.momentum,
        path="fused",
        dtype=torch.float64,
    )
    ensemble = resting.ensemble.train(first.steps)
    accuracy = resting.fit().accuracy.tolist()
    records: list[Rows] = [[{"diverged": True, "train_accuracy": own}] for own in accuracy]
    for e in ensemble.alive:
        facts = {"diverged": False, "train_accuracy": accuracy[e]}
        records[e] = [
            facts | row for row in at_floor(trials[e], ensemble.module(e), resting.data_of(e))
        ]
    return records


def at_floor(trial: Rest, module: nn.Module, data: tuple[Tensor, Tensor]) -> Rows:
    """Regularised minibatch gradients of every matrix against the floor of its spectrum."""
    import torch
    from torch.nn import functional

    from undertow import measure
    from undertow.objective import Objective

    objective, count = Objective(module, functional.cross_entropy, data), len(data[0])
    norms = partial(measure.batch_gradient_norms, objective, weight_decay=trial.weight_decay)
    residual, singles = norms(torch.arange(count)[None]), torch.arange(count)[:, None]
    equal, generator = torch.ones(trial.batches, count), torch.Generator().manual_seed(trial.seed)
    rows = []
    for size in trial.batch_sizes:
        drawn = singles if size == 1 else torch.multinomial(equal, size, generator=generator)
        found = norms(drawn)
        floors = measure.noise_floor(module, weight_decay=trial.weight_decay, batch_size=size).table
        columns = floors.select("name", "floor", "frobenius_norm")
        for layer, (name, floor, norm) in enumerate(columns.iter_rows(), 1):
            noise = found[name]
            rows.append(
                {
                    "layer": layer,
                    "batch_size": size,
                    "floor": floor,
                    "decay": trial.weight_decay * norm,
                    "least": float(noise.min()),
                    "rms": float(noise.square().mean().sqrt()),
                    "residual": float(residual[name]),
                }
            )
    return rows


# ---- SGD with decay throughout


def train(trials: Sequence[Training]) -> list[Rows]:
    """One kind and batch size: a row a reading and hidden matrix, at the end with its noise."""
    from undertow import measure

    first, trained = trials[0], of_kind(trials)
    ensemble, rows = trained.ensemble, [Rows() for _ in trials]
    same = first.steps * first.small_batch // first.batch_size
    for step in ensemble.read_at({same, first.steps}):
        alive = ensemble.alive
        facts = {"diverged": ensemble.diverged, "train_accuracy": trained.fit().accuracy}
        facts |= {"equal_epochs": step == same, "equal_steps": step == first.steps}
        ended = step == first.steps and first.batch_size == first.small_batch
        noise = {e: restless(trials[e], trained, e) for e in alive if ended}
        matrices = {name: own for name, own in ensemble.parameters().items() if own.ndim > 2}
        for name in list(matrices)[1:-1]:
            found = measure.matrix_ranks(matrices[name].flatten(2).nan_to_num(), first.threshold)
            ranks = found.threshold_rank.tolist()
            for e, row in enumerate(rows_of(facts | {"layer": name})):
                own = {"rank": ranks[e] if e in alive else None}
                rows[e].append(row | own | noise.get(e, {}).get(name, {}))
    return rows


def of_kind(trials: Sequence[Training]) -> Networks:
    """Networks of one kind, each on images of its own seed."""
    from undertow import models
    from undertow.train import Member

    first, width = trials[0], trials[0].width

    def model(shape: tuple[int, int, int], classes: int) -> Callable[[Generator], nn.Module]:
        sizes = (math.prod(shape), width, width, classes)
        makers: dict[str, Callable[..., nn.Module]] = {
            "perceptron": partial(models.mlp, sizes),
            "batch norm": partial(models.mlp, sizes, batch_norm=True),
            "convolutions": partial(
                models.conv_net, shape, (width // 4, width // 2, width), classes
            ),
            # Without norms, under which the size of weights has no effect.
            "residual": partial(models.residual_net, shape, width, 1, classes, norms=False),
        }
        return lambda generator: makers[first.kind](generator=generator)

    members = [Member(trial.seed, trial.lr, trial.weight_decay) for trial in trials]
    # Fixed, so that the same trials give the same records.
    path = "fused" if first.kind in ("perceptron", "batch norm") else "vmap"
    options: dict[str, Any] = {"batch_size": first.batch_size, "path": path}
    return networks(first.images, model, members, flat=False, **options)


def restless(trial: Training, trained: Networks, member: int) -> dict[str, dict[str, float]]:
    """Of each matrix the floor and batches' gradients, and of all how far an epoch moves them.

    Batches are of one sample, or with batch norm of as many as in training.
    """
    import torch
    from torch.nn import functional

    from undertow import measure
    from undertow.objective import Objective
    from undertow.train import Ensemble, Member

    module, data = trained.ensemble.module(member), trained.data_of(member)
    decay, count = trial.weight_decay, len(data[1])
    size = trial.batch_size if trial.kind == "batch norm" else 1
    generator = torch.Generator().manual_seed(trial.seed)
    batches = torch.multinomial(torch.ones(_BATCHES, count), size, generator=generator)
    norms = gradient_norms(module.train(), (data[0][batches], data[1][batches]), decay)
    counted = Objective(module, functional.cross_entropy, (data[0][:2], data[1][:2]))
    floors = measure.noise_floor(module, weight_decay=decay, batch_size=size, patches=counted)
    members = [
        Member(trial.seed + order * _OTHER_ORDER, trial.lr, decay)
        for order in range(1, _ORDERS + 1)
    ]
    options: dict[str, Any] = {"batch_size": trial.batch_size, "path": trained.ensemble.path}
    runs = Ensemble(module, functional.cross_entropy, data, members, **options)
    per_epoch = -(-count // trial.batch_size)
    moved = measure.displacement(module, *map(runs.train(per_epoch).module, range(_ORDERS)))
    every = {
        "displacement": moved.total,
        "radial": moved.radial,
        "noise": moved.noise,
        "shrinkage": per_epoch * trial.lr * decay,
    }
    found = {}
    for name, floor in floors.table.select("name", "floor").iter_rows():
        own = norms[name]
        found[name] = every | {
            "floor": floor,
            "least": float(own.min()),
            "rms": float(own.square().mean().sqrt()),
        }
    return found


def gradient_norms(
    module: nn.Module, batches: tuple[Tensor, Tensor], weight_decay: float
) -> dict[str, Tensor]:
    """Of each parameter the norms of batches' regularised gradients, as training mode has them."""
    import torch
    from torch.nn import functional

    names, weights = zip(*module.named_parameters(), strict=True)
    norms = []
    for inputs, targets in zip(*batches, strict=True):
        loss = functional.cross_entropy(module(inputs), targets)
        gradients = torch.autograd.grad(loss, weights)
        pairs = zip(gradients, weights, strict=True)
        norms.append([(own + weight_decay * weight).detach().norm() for own, weight in pairs])
    return dict(zip(names, torch.tensor(norms).double().unbind(1), strict=True))
