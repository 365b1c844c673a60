"""Flows of (rho, V), layer norms and neural collapse of trained networks, and convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from undertow.claims.square_loss import SquareLoss
from undertow.data import Images, per_class
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Tensor

# Fractions of the time, and of the steps, at which flows and networks are read.
FLOW_READINGS = (0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 1.0)
COLLAPSE_READINGS = (0.05, 0.2, 0.5, 1.0)
MAX_STEPS = 300_000  # of a flow
_COLLAPSE_LR, _COLLAPSE_MOMENTUM = 0.2, 0.9
_NORMS_LR = 0.2
_IMAGES, _SHUFFLE = 2**40, 2**41  # streams beside that of the weights
_KERNEL, _SIDE = 3, 8  # of the convolution that is written out as a matrix

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Flow:
    """The flow of (rho, V) on two classes with labels +-1, in float64.

    `speed` is that of V: `scaled`, slowed by rho^2 (see `undertow.train.flows.normalized_flow`), or
    its `own`.
    """

    images: Images
    classes: tuple[int, int]
    samples: int
    width: int
    initial_rho: float
    rho_decay: float
    time: float
    seed: int
    shuffled: bool = False
    speed: str = "scaled"


@dataclass(frozen=True)
class Norms:
    """The same network, not normalised, by full-batch descent with PyTorch's weight decay."""

    images: Images
    classes: tuple[int, int]
    samples: int
    width: int
    weight_decay: float
    norms_steps: int
    seed: int


@dataclass(frozen=True)
class Collapse:
    """A network on all classes with one-hot targets, square loss, full-batch momentum."""

    images: Images
    collapse_per_class: int
    collapse_width: int
    weight_decay: float
    collapse_steps: int
    seed: int


@dataclass(frozen=True)
class Toeplitz:
    """A random convolution against the same map written out as a matrix."""

    padding: int
    seed: int


def experiments(knobs: SquareLoss, seed: int) -> dict[str, Experiment]:
    """Flows over starts and decays with their controls; layer norms; collapse; convolutions."""
    own = seeds(seed, knobs.seeds)
    decays = {
        decay: {"rho_decay": decay, "time": knobs.horizon / (decay or knobs.weakest)}
        for decay in knobs.rho_decay
    }
    least = {"initial_rho": knobs.initial_rho[0]}
    apart = [
        least | decays[knobs.middle] | {"shuffled": True},
        least | decays[knobs.rho_decay[-1]] | {"speed": "own"},
    ]
    flows = grid(Flow, knobs, initial_rho=knobs.initial_rho, decay=decays.values(), seed=own)
    flows += grid(Flow, knobs, cell=apart, seed=own)
    norms = grid(Norms, knobs, weight_decay=(0.0, knobs.norms_decay), seed=own)
    collapse = grid(Collapse, knobs, seed=own, weight_decay=(0.0, knobs.collapse_decay))
    together = ("rho_decay", "time", "seed")
    return {
        "flows": Experiment(flows, follow, together, group_size=48),
        "norms": Experiment(norms, train_norms, together=("weight_decay",)),
        "collapse": Experiment(collapse, train_collapse, together=("weight_decay",)),
        "convolutions": Experiment(grid(Toeplitz, knobs, padding=(0, 1), seed=own), write_out),
    }


def two_classes(trials: Sequence[Flow | Norms]) -> tuple[Tensor, Tensor]:
    """Every trial's own unit images `[E, n, d]` and labels +-1 `[E, n]`, some shuffled."""
    import torch

    first = trials[0]
    inputs, labels = first.images.load().unit_vectors()
    half = first.samples // 2
    own = [per_class(labels, first.classes, half, seed=_IMAGES + trial.seed) for trial in trials]
    signs = torch.ones(len(trials), 2 * half, dtype=torch.float64)
    signs[:, half:] = -1
    for trial, sign in zip(trials, signs, strict=True):
        if getattr(trial, "shuffled", False):
            generator = torch.Generator().manual_seed(_SHUFFLE + trial.seed)
            sign.copy_(sign[torch.randperm(len(sign), generator=generator)])
    return inputs[torch.stack(own)], signs


# ---- the flow of (rho, V)


def follow(trials: Sequence[Flow]) -> list[Rows]:
    """Every trial's flow, read at fractions of its time; lost where it runs out of steps."""
    import torch

    from undertow.train.flows import normalized_flow

    inputs, labels = two_classes(trials)
    sizes = (inputs.shape[2], trials[0].width, trials[0].width, 1)
    generators = [torch.Generator().manual_seed(trial.seed) for trial in trials]
    layers = [
        torch.stack([torch.randn(b, a, generator=g, dtype=torch.float64) for g in generators])
        for a, b in pairwise(sizes)
    ]
    rho, decay, end = (
        torch.tensor([getattr(trial, name) for trial in trials], dtype=torch.float64)
        for name in ("initial_rho", "rho_decay", "time")
    )
    fractions = torch.tensor(FLOW_READINGS, dtype=torch.float64)
    given: dict[str, Any] = {"slowed": trials[0].speed == "scaled", "max_steps": MAX_STEPS}
    path = normalized_flow(
        inputs, labels, layers, rho, decay=decay, times=fractions * end[:, None], **given
    )
    margins, mean = path.margins, path.margins.mean(2)
    first = torch.full_like(rho[:, None], math.inf)
    facts = {
        "at": path.times,
        "fraction": fractions.expand_as(path.rho),
        "diverged": ~((path.rho > 0) & path.rho.isfinite()),
        "rho": path.rho,
        "moved": torch.cat([first, path.rho.log().diff(dim=1).abs()], dim=1),
        "equilibrium": path.equilibrium,
        "margin": mean,
        "least_margin": margins.amin(2),
        "margin_cv": margins.std(2, correction=0) / mean.abs(),
        "fitted": (margins > 0).double().mean(2),
        "loss": (path.rho[..., None] * margins - 1).square().mean(2),
        "stable_rank": path.stable_ranks[..., 0],
        "steps_taken": path.steps,
    }
    return [rows_of(run) for run in rows_of(facts)]


# ---- ordinary training


def train_norms(trials: Sequence[Norms]) -> list[Rows]:
    """Squared layer norms of networks without biases, and rho against its own equilibrium.

    At a stationary point <W_k, dL/dW_k> = -weight_decay ||W_k||^2 in every layer, and the left side
    is the same in all of them: all norms are equal, and rho = mu / (M + weight_decay / 2
    rho^(2/L - 2)).
    """
    import torch

    from undertow.models import mlp
    from undertow.train import Ensemble, Member

    first = trials[0]
    (inputs, *_), (labels, *_) = two_classes(trials)
    sizes = (inputs.shape[1], first.width, first.width, 1)
    ensemble = Ensemble(
        lambda generator: mlp(sizes, bias=False, generator=generator),
        torch.nn.functional.mse_loss,
        (inputs, labels[:, None]),
        [Member(own.seed, _NORMS_LR, own.weight_decay, order="full") for own in trials],
        batch_size=len(inputs),
        path="fused",
        dtype=torch.float64,
    ).train(first.norms_steps)
    parameters = ensemble.parameters().values()
    squares = torch.stack([value.square().sum((1, 2)) for value in parameters], dim=1)
    rho = squares.prod(1).sqrt()
    margins = labels * ensemble.predict(inputs)[..., 0] / rho[:, None]
    decay = torch.tensor([own.weight_decay for own in trials], dtype=torch.float64)
    effective = decay / 2 * rho ** (2 / squares.shape[1] - 2)
    facts = {
        "diverged": ensemble.diverged,
        "norm_spread": squares.amax(1) / squares.amin(1) - 1,
        "rho": rho,
        "equilibrium": margins.mean(1) / (margins.square().mean(1) + effective),
        "fitted": (margins > 0).double().mean(1),
    }
    facts |= {f"square_{k}": own for k, own in enumerate(squares.unbind(1), 1)}
    return [[row] for row in rows_of(facts)]


def train_collapse(trials: Sequence[Collapse]) -> list[Rows]:
    """NC1 to NC4 along training, of one seed's networks: they see the same images."""
    from torch.nn import functional

    from undertow import measure
    from undertow.models import mlp
    from undertow.objective import Objective
    from undertow.train import Ensemble, Member, rules

    first = trials[0]
    images, labels = first.images.load().unit_vectors()
    classes = int(labels.max()) + 1
    count = first.collapse_per_class
    chosen = per_class(labels, range(classes), count, seed=_IMAGES + first.seed)
    # Norm 4 rather than 1: at PyTorch's initial scale unit inputs leave the outputs near zero.
    inputs, targets = 4 * images[chosen].float(), labels[chosen]
    sizes = (inputs.shape[1], *[first.collapse_width] * 3, classes)
    ensemble = Ensemble(
        lambda generator: mlp(sizes, generator=generator),
        functional.mse_loss,
        (inputs, functional.one_hot(targets, classes).float()),
        [
            Member(own.seed, _COLLAPSE_LR, own.weight_decay, _COLLAPSE_MOMENTUM, order="full")
            for own in trials
        ],
        batch_size=len(inputs),
        rule=rules.momentum,
        path="fused",
    )
    fractions = {round(fraction * first.collapse_steps): fraction for fraction in COLLAPSE_READINGS}
    rows: list[Rows] = [[] for _ in trials]
    for step in ensemble.read_at(fractions):
        correct = ensemble.predict(inputs).argmax(2) == targets
        for e, lost in enumerate(ensemble.diverged):
            row = {"step": step, "fraction": fractions[step], "diverged": lost}
            rows[e].append(row)
            if not lost:
                # Cross-entropy only says how labels are read; no loss is taken.
                objective = Objective(
                    ensemble.module(e), functional.cross_entropy, (inputs, targets)
                )
                found = measure.neural_collapse(objective)
                row |= {f"nc{k}": getattr(found, f"nc{k}") for k in (1, 2, 3, 4)}
                row["accuracy"] = float(correct[e].double().mean())
    return rows


def write_out(trial: Toeplitz) -> dict[str, Any]:
    """||Toeplitz||_F / ||kernel||_F of a random convolution, from the matrix written out."""
    import torch

    from undertow import measure

    generator = torch.Generator().manual_seed(trial.seed)
    layer = torch.nn.utils.skip_init(
        torch.nn.Conv2d, 2, 3, _KERNEL, padding=trial.padding, bias=False, dtype=torch.float64
    )
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
        basis = torch.eye(2 * _SIDE**2, dtype=torch.float64).unflatten(1, (2, _SIDE, _SIDE))
        outputs = layer(basis)  # row i is the image of basis vector i
        kernel = float(layer.weight.norm())
    positions = outputs.shape[-1] * outputs.shape[-2]
    unit = kernel * math.sqrt(positions)
    return {
        "positions": positions,
        "ratio": float(outputs.norm()) / unit,
        "measured_ratio": measure.toeplitz_norm(layer, (_SIDE, _SIDE)) / unit,
    }
