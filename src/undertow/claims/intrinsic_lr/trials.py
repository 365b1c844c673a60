"""Trials of intrinsic-lr: what determines each, and the networks that they train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undertow.claims import Networks, networks
from undertow.claims.intrinsic_lr import CONTROLS, KINDS
from undertow.data import Images

if TYPE_CHECKING:
    from torch import Tensor, nn

    from undertow.train import Member

# Parts of 1 / (lr x weight_decay) at which ensembles are read.
TIMES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
EARLY = 0.5  # when the least product is held against the largest after as many steps
CLOCK = tuple(part / 20 for part in range(1, 21))  # and norms on their way
SPLIT = 4  # by so much lr is smaller, and weight_decay larger, from the far start
FAR = 2.0  # times initial weights: from where norms come back
SMALLER, LONGER = 100, 10  # an initial rate, and the steps that it is given
REPEATS, BATCHES = 4, 24  # networks of a seed, and batches a reading, where norms are read
FALLS = (0.6, 0.8)  # parts of a training after which its rate falls to a tenth
# Of the toy: lr x weight_decay not too small, or its loss underflows before it comes back.
CIRCLE = {"lr": 0.1, "weight_decay": 0.1, "steps": 20_000}
_APART = 2**32  # between the seeds of two members, so that no two networks share one

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


def trained_weights(found: Networks) -> dict[str, Tensor]:
    """The layers that are trained, each `[members, numbers]`."""
    named = found.ensemble.module(0).named_parameters()
    weights = found.ensemble.parameters()
    return {name: weights[name].flatten(1).double() for name, own in named if own.requires_grad}
