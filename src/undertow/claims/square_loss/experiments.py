"""Flows of (rho, V), networks by SGD and full batch, neural collapse, and bounds of small CNNs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from undertow.claims import networks, perceptrons, stream
from undertow.claims.square_loss import SquareLoss
from undertow.data import Images, random_labels
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Tensor, nn

    from undertow.data import Draws
    from undertow.train import Member

# Fractions of the time, and of the steps, at which flows and networks are read.
FLOW_READINGS = (0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 1.0)
NETWORK_READINGS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
COLLAPSE_READINGS = (0.05, 0.2, 0.5, 1.0)
MAX_STEPS = 300_000  # of a flow
RANK_THRESHOLD = 1e-2  # of a layer's Frobenius norm: smaller singular values do not count
MARGIN_QUANTILE = 0.1  # of the training images: the margin that a bound is divided by
ALL = 0  # the batch size that stands for the full batch
_NETWORK_LR, _DRAWN_BATCHES = 0.1, 25
_COLLAPSE_LR, _MOMENTUM = 0.2, 0.9
_BOUND_LR, _BOUND_BATCH = 0.05, 20
_LABELS, _WEIGHTS, _BATCHES = range(16, 19)  # streams beside those of a member and of its images

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Flow:
    """The flow of (rho, V) on two classes with labels +-1, a share of them flipped, in float64."""

    images: Images
    classes: tuple[int, int]
    samples: int
    width: int
    initial_rho: float
    rho_decay: float
    time: float
    seed: int
    flipped: float


@dataclass(frozen=True)
class Network:
    """The same network, not normalised, by SGD or full-batch descent with PyTorch's decay."""

    images: Images
    classes: tuple[int, int]
    samples: int
    width: int
    batch_size: int
    weight_decay: float
    network_steps: int
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
class Bound:
    """A small CNN without biases on all classes, from a multiple of PyTorch's initial weights."""

    images: Images
    bound_per_class: int
    bound_channels: tuple[int, ...]
    bound_steps: int
    label_noise: float
    scale: float
    weight_decay: float
    seed: int


def experiments(knobs: SquareLoss, seed: int) -> dict[str, Experiment]:
    """Flows over starts and decays with their controls; SGD; collapse; bounds."""
    own = seeds(seed, knobs.seeds)
    decays = {
        decay: {"rho_decay": decay, "time": knobs.horizon / (decay or knobs.weakest)}
        for decay in knobs.rho_decay
    }
    least, *_, largest = ({"initial_rho": rho} for rho in knobs.initial_rho)
    none, middle, strongest = (decays[own] for own in (0.0, knobs.middle, knobs.rho_decay[-1]))
    noisy = (least | none, largest | none, least | middle, least | strongest)
    plain: dict[str, Any] = {"flipped": [0.0], "initial_rho": knobs.initial_rho}
    flows = grid(Flow, knobs, **plain, decay=decays.values(), seed=own)
    flows += grid(Flow, knobs, cell=noisy, seed=own)  # where as many are flipped as the knob says
    sizes, ends = (knobs.batch_size, ALL), (0.0, knobs.network_decay)
    trained = grid(Network, knobs, batch_size=sizes, weight_decay=ends, seed=own)
    collapse = grid(Collapse, knobs, seed=own, weight_decay=(0.0, knobs.collapse_decay))
    scales, noise, ends = knobs.bound_scales, knobs.bound_noise, (0.0, knobs.bound_decay)
    bounds = grid(Bound, knobs, label_noise=[0.0], scale=scales, weight_decay=ends, seed=own)
    random = {"scale": scales[:1], "weight_decay": [0.0]}
    bounds += grid(Bound, knobs, label_noise=noise[1:], **random, seed=own)
    both, three = ("weight_decay", "seed"), ("label_noise", "scale", "weight_decay", "seed")
    some_seeds = 3 * (2 * len(scales) + len(noise))  # trials that run together
    return {
        "flows": Experiment(flows, follow, ("rho_decay", "time", "seed"), group_size=48),
        "networks": Experiment(trained, train_networks, both, group_size=48),
        "collapse": Experiment(collapse, train_collapse, both, group_size=12),
        "bounds": Experiment(bounds, train_bounds, three, group_size=some_seeds),
    }


def drawn(trials: Sequence[Any], count: int, classes: Sequence[int] | None = None) -> Draws:
    """So many images of each class for every trial's own seed, and all others to test on."""
    return trials[0].images.load().draws([own.seed for own in trials], count, classes)


def two_classes(trials: Sequence[Flow | Network]) -> list[Tensor]:
    """Every trial's own unit images `[E, n, d]` and labels +-1 `[E, n]`; and those to test on."""
    import torch

    first = trials[0]
    found = drawn(trials, first.samples // 2, first.classes)
    images = torch.nn.functional.normalize(found.inputs.flatten(1).double())
    signs = torch.where(found.targets == first.classes[0], 1.0, -1.0).double()
    return [own[rows] for rows in (found.train, found.test) for own in (images, signs)]


def follow(trials: Sequence[Flow]) -> list[Rows]:
    """Every trial's flow, read at fractions of its time; lost where it runs out of steps."""
    import torch

    from undertow.train.flows import normalized_flow

    inputs, labels, unseen, truth = two_classes(trials)
    for trial, own in zip(trials, labels, strict=True):
        generator = stream(trial.seed, _LABELS)
        own[torch.rand(len(own), generator=generator) < trial.flipped] *= -1
    sizes = (inputs.shape[2], trials[0].width, trials[0].width, 1)
    generators = [stream(trial.seed, _WEIGHTS) for trial in trials]
    layers = [
        torch.stack([torch.randn(b, a, generator=g, dtype=torch.float64) for g in generators])
        for a, b in pairwise(sizes)
    ]
    rho, decay, end = (
        torch.tensor([getattr(trial, name) for trial in trials], dtype=torch.float64)
        for name in ("initial_rho", "rho_decay", "time")
    )
    fractions = torch.tensor(FLOW_READINGS, dtype=torch.float64)
    times = fractions * end[:, None]
    path = normalized_flow(
        inputs, labels, layers, rho, decay=decay, times=times, max_steps=MAX_STEPS
    )
    error = (truth * path.predict(unseen) <= 0).double().mean(1)
    facts = path.facts() | {
        "at": path.times,
        "fraction": fractions.expand_as(path.rho),
        "end_error": error[:, None].expand_as(path.rho),  # of V at the end, at every time
    }
    return [rows_of(run) for run in rows_of(facts)]


def members(trials: Sequence[Any], lr: float, order: Any, momentum: float = 0.0) -> list[Member]:
    """A network for each trial, with its own seed and decay."""
    from undertow.train import Member

    return [Member(own.seed, lr, own.weight_decay, momentum, order=order) for own in trials]


def train_networks(trials: Sequence[Network]) -> list[Rows]:
    """How far the network's own steps are from zero, ranks and norms of its layers, over time.

    A step is that of a batch of the size it is trained with: grad L_S + weight_decay W, in parts
    of ||W||, its root mean square over batches.
    """
    import torch

    from undertow import measure
    from undertow.models import mlp
    from undertow.objective import Objective
    from undertow.train import Ensemble

    first = trials[0]
    inputs, labels, _, _ = two_classes(trials)
    sizes = (inputs.shape[2], first.width, first.width, 1)
    count, full = inputs.shape[1], first.batch_size == ALL
    loss, samples = torch.nn.functional.mse_loss, torch.arange(labels.numel()).view_as(labels)
    pool = inputs.flatten(0, 1), labels.flatten()[:, None]
    ensemble = Ensemble(
        lambda generator: mlp(sizes, bias=False, generator=generator),
        loss,
        pool,
        members(trials, _NETWORK_LR, "full" if full else "replacement"),
        batch_size=count if full else first.batch_size,
        samples=samples,
        path="fused",
        dtype=torch.float64,
    )
    if full:
        batches = [torch.arange(count)[None]] * len(trials)
    else:
        draws = [stream(own.seed, _BATCHES) for own in trials]
        shape = (_DRAWN_BATCHES, first.batch_size)
        batches = [torch.randint(count, shape, generator=own) for own in draws]
    fractions = {round(part * first.network_steps): part for part in NETWORK_READINGS}
    rows: list[Rows] = [[] for _ in trials]
    for step in ensemble.read_at(fractions):
        layers = [layer.nan_to_num() for layer in ensemble.parameters().values()]
        squares = torch.stack([layer.square().sum((1, 2)) for layer in layers], dim=1)
        ranks = [measure.matrix_ranks(own, RANK_THRESHOLD).threshold_rank for own in layers[:-1]]
        margins = labels * ensemble.predict(pool[0], samples=samples)[..., 0]
        facts = {
            "step": step,
            "fraction": fractions[step],
            "diverged": ensemble.diverged,
            "rank": torch.stack(ranks).sum(0),
            "norm_spread": squares.amax(1) / squares.amin(1) - 1,
            "fitted": (margins > 0).double().mean(1),
            "unrest": squares.sum(1).rsqrt(),
        }
        for e, row in enumerate(rows_of(facts)):
            if not row["diverged"]:
                own = Objective(ensemble.module(e), loss, (inputs[e], labels[e, :, None]))
                decay = trials[e].weight_decay
                norms = measure.batch_gradient_norms(own, batches[e], weight_decay=decay)
                lengths = torch.stack([*norms.values()]).square().sum(0)
                row["unrest"] *= float(lengths.mean().sqrt())
            rows[e].append(row)
    return rows


def train_collapse(trials: Sequence[Collapse]) -> list[Rows]:
    """NC1 to NC4 along training."""
    from torch.nn import functional

    from undertow import measure
    from undertow.train import rules

    first = trials[0]
    images = drawn(trials, first.collapse_per_class)
    # Norm 4 rather than 1: at PyTorch's initial scale unit inputs leave the outputs near zero.
    inputs = 4 * functional.normalize(images.inputs.flatten(1).double()).float()
    made = perceptrons(
        replace(images, inputs=inputs),
        [first.collapse_width] * 3,
        members(trials, _COLLAPSE_LR, "full", _MOMENTUM),
        loss="square",
        batch_size=images.train.shape[1],
        rule=rules.momentum,
        path="fused",
    )
    fractions = {round(fraction * first.collapse_steps): fraction for fraction in COLLAPSE_READINGS}
    rows: list[Rows] = [[] for _ in trials]
    for step in made.ensemble.read_at(fractions):
        facts = {
            "step": step,
            "fraction": fractions[step],
            "diverged": made.ensemble.diverged,
            "accuracy": made.fit().accuracy,
        }
        for e, row in enumerate(rows_of(facts)):
            if not row["diverged"]:
                found = measure.neural_collapse(made.objective(e))
                row |= {f"nc{k}": getattr(found, f"nc{k}") for k in (1, 2, 3, 4)}
            rows[e].append(row)
    return rows


def train_bounds(trials: Sequence[Bound]) -> list[Rows]:
    """Norm-based bounds and margins of CNNs on labels true and random, and errors on the rest."""
    import torch

    from undertow import measure
    from undertow.models import conv_net
    from undertow.train import rules

    def untrained(shape: tuple[int, int, int], classes: int) -> list[nn.Module]:
        return [
            conv_net(
                shape,
                trial.bound_channels,
                classes,
                bias=False,
                scale=trial.scale,
                generator=stream(trial.seed, _WEIGHTS),
            )
            for trial in trials
        ]

    first = trials[0]
    images = drawn(trials, first.bound_per_class)
    labels = [
        random_labels(
            own,
            trial.label_noise,
            images.num_classes,
            seed=stream(trial.seed, _LABELS).initial_seed(),
        )
        for own, trial in zip(images.targets[images.train], trials, strict=True)
    ]
    made = networks(
        images.relabelled(torch.stack(labels)),
        untrained,
        members(trials, _BOUND_LR, "replacement", _MOMENTUM),
        flat=False,
        loss="square",
        batch_size=_BOUND_BATCH,
        rule=rules.momentum,
        path="vmap",
    )
    before = [measure.norm_bounds(made.objective(e)).log_kernel for e in range(len(trials))]
    ensemble = made.ensemble.train(first.bound_steps)
    guessed = ensemble.predict(images.inputs, samples=images.test).argmax(2)
    wrong = guessed != images.targets[images.test]
    facts = {"diverged": ensemble.diverged, "error": wrong.double().mean(1)}
    rows = rows_of(facts | {"log_untrained": before})
    for e, row in enumerate(rows):
        if not row["diverged"]:
            trained = made.objective(e)
            bounds, margins = measure.norm_bounds(trained), measure.margins(trained, degree=1)
            row |= {
                "log_kernel": bounds.log_kernel,
                "log_toeplitz": bounds.log_toeplitz,
                "margin": float(margins.per_sample.quantile(MARGIN_QUANTILE)),
                "fitted": float((margins.per_sample > 0).double().mean()),
            }
    return [[row] for row in rows]
