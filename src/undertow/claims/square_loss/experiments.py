"""Flows of (rho, V), networks by SGD and full batch, neural collapse, and bounds of small CNNs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from undertow.claims.square_loss import SquareLoss
from undertow.data import Images, per_class, random_labels
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from torch import Tensor, nn

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
_IMAGES, _LABELS = 2**40, 2**41  # streams beside that of the weights

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
    noisy = [cell | {"flipped": knobs.flipped} for cell in (least | none, largest | none)]
    noisy += [least | decay | {"flipped": knobs.flipped} for decay in (middle, strongest)]
    axes: dict[str, Any] = {"initial_rho": knobs.initial_rho, "decay": decays.values()}
    flows = grid(Flow, knobs, flipped=[0.0], **axes, seed=own)
    flows += grid(Flow, knobs, cell=noisy, seed=own)
    sizes, ends = (knobs.batch_size, ALL), (0.0, knobs.network_decay)
    networks = grid(Network, knobs, batch_size=sizes, weight_decay=ends, seed=own)
    collapse = grid(Collapse, knobs, seed=own, weight_decay=(0.0, knobs.collapse_decay))
    cells = [
        {"label_noise": 0.0, "scale": scale, "weight_decay": decay}
        for scale in knobs.bound_scales
        for decay in (0.0, knobs.bound_decay)
    ]
    first = knobs.bound_scales[0]
    cells += [
        {"label_noise": noise, "scale": first, "weight_decay": 0.0} for noise in knobs.bound_noise
    ]
    bounds = grid(Bound, knobs, seed=own, cell=cells)
    both, three = ("weight_decay", "seed"), ("label_noise", "scale", "weight_decay", "seed")
    return {
        "flows": Experiment(flows, follow, ("rho_decay", "time", "seed"), group_size=48),
        "networks": Experiment(networks, train_networks, both, group_size=48),
        "collapse": Experiment(collapse, train_collapse, both, group_size=12),
        "bounds": Experiment(bounds, train_bounds, three, group_size=3 * len(cells)),
    }


# ---- what each seed draws


def drawn(
    trials: Sequence[Any], per: int, classes: Sequence[int] | None = None
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """All images with their labels; every trial's rows to train on, and all others to test on.

    Args:
        trials: with the images and their own seeds.
        per: images of a class to train on.
        classes: all by default.
    """
    import torch

    loaded = trials[0].images.load()
    inputs = torch.cat([loaded.train_inputs, loaded.test_inputs])
    labels = torch.cat([loaded.train_targets, loaded.test_targets])
    classes = range(loaded.num_classes) if classes is None else classes
    there = torch.isin(labels, torch.tensor(classes))
    train, test = [], []
    for trial in trials:
        train.append(per_class(labels, classes, per, seed=_IMAGES + trial.seed))
        left = there.clone()
        left[train[-1]] = False
        test.append(left.nonzero()[:, 0])
    return (inputs, labels), torch.stack(train), torch.stack(test)


def two_classes(trials: Sequence[Flow | Network]) -> list[Tensor]:
    """Every trial's own unit images `[E, n, d]` and labels +-1 `[E, n]`; and those to test on."""
    import torch

    first = trials[0]
    (images, labels), *rows = drawn(trials, first.samples // 2, first.classes)
    images = torch.nn.functional.normalize(images.flatten(1).double())
    signs = torch.where(labels == first.classes[0], 1.0, -1.0).double()
    return [own[places] for places in rows for own in (images, signs)]


# ---- the flow of (rho, V)


def follow(trials: Sequence[Flow]) -> list[Rows]:
    """Every trial's flow, read at fractions of its time; lost where it runs out of steps."""
    import torch

    from undertow.train.flows import normalized_flow

    inputs, labels, unseen, truth = two_classes(trials)
    for trial, own in zip(trials, labels, strict=True):
        generator = torch.Generator().manual_seed(_LABELS + trial.seed)
        own[torch.rand(len(own), generator=generator) < trial.flipped] *= -1
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
    times = fractions * end[:, None]
    path = normalized_flow(
        inputs, labels, layers, rho, decay=decay, times=times, max_steps=MAX_STEPS
    )
    margins, mean = path.margins, path.margins.mean(2)
    error = (truth * path.predict(unseen) <= 0).double().mean(1)
    first = torch.full_like(rho[:, None], math.inf)
    facts = {
        "at": path.times,
        "fraction": fractions.expand_as(path.rho),
        "diverged": ~((path.rho > 0) & path.rho.isfinite()),
        "rho": path.rho,
        "moved": torch.cat([first, path.rho.log().diff(dim=1).abs()], dim=1),
        "margin": mean,
        "least_margin": margins.amin(2),
        "margin_cv": margins.std(2, correction=0) / mean.abs(),
        "fitted": (margins > 0).double().mean(2),
        "loss": (path.rho[..., None] * margins - 1).square().mean(2),
        "stable_rank": path.stable_ranks[..., 0],
        "steps_taken": path.steps,
        # Of V at the end, in the records of every time.
        "end_error": error[:, None].expand_as(path.rho),
    }
    return [rows_of(run) for run in rows_of(facts)]


# ---- ordinary training


def members(trials: Sequence[Any], lr: float, momentum: float, order: Any) -> list[Member]:
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
    order = "full" if full else "replacement"
    ensemble = Ensemble(
        lambda generator: mlp(sizes, bias=False, generator=generator),
        loss,
        pool,
        members(trials, _NETWORK_LR, 0.0, order),
        batch_size=count if full else first.batch_size,
        samples=samples,
        path="fused",
        dtype=torch.float64,
    )
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
            generator = torch.Generator().manual_seed(_LABELS + trials[e].seed)
            shape = (_DRAWN_BATCHES, first.batch_size)
            batches = torch.randint(count, shape, generator=generator)
            if full:
                batches = torch.arange(count)[None]
            if not row["diverged"]:
                own = Objective(ensemble.module(e), loss, (inputs[e], labels[e, :, None]))
                decay = trials[e].weight_decay
                norms = measure.batch_gradient_norms(own, batches, weight_decay=decay)
                lengths = torch.stack([*norms.values()]).square().sum(0)
                row["unrest"] *= float(lengths.mean().sqrt())
            rows[e].append(row)
    return rows


def train_collapse(trials: Sequence[Collapse]) -> list[Rows]:
    """NC1 to NC4 along training."""
    import torch
    from torch.nn import functional

    from undertow import measure
    from undertow.models import mlp
    from undertow.objective import Objective
    from undertow.train import Ensemble, rules

    first = trials[0]
    (images, labels), chosen, _ = drawn(trials, first.collapse_per_class)
    classes = int(labels.max()) + 1
    # Norm 4 rather than 1: at PyTorch's initial scale unit inputs leave the outputs near zero.
    images = 4 * functional.normalize(images.flatten(1).double()).float()
    sizes = (images.shape[1], *[first.collapse_width] * 3, classes)
    ensemble = Ensemble(
        lambda generator: mlp(sizes, generator=generator),
        functional.mse_loss,
        (images, functional.one_hot(labels, classes).float()),
        members(trials, _COLLAPSE_LR, _MOMENTUM, "full"),
        batch_size=chosen.shape[1],
        samples=chosen,
        rule=rules.momentum,
        path="fused",
    )
    fractions = {round(fraction * first.collapse_steps): fraction for fraction in COLLAPSE_READINGS}
    rows: list[Rows] = [[] for _ in trials]
    for step in ensemble.read_at(fractions):
        for e, lost in enumerate(ensemble.diverged):
            row = {"step": step, "fraction": fractions[step], "diverged": lost}
            rows[e].append(row)
            if not lost:
                module, own = ensemble.module(e), (images[chosen[e]], labels[chosen[e]])
                # Cross-entropy only says how labels are read; no loss is taken.
                objective = Objective(module, functional.cross_entropy, own)
                found = measure.neural_collapse(objective)
                row |= {f"nc{k}": getattr(found, f"nc{k}") for k in (1, 2, 3, 4)}
                with torch.no_grad():
                    right = module(own[0]).argmax(1) == own[1]
                row["accuracy"] = float(right.double().mean())
    return rows


def train_bounds(trials: Sequence[Bound]) -> list[Rows]:
    """Norm-based bounds and margins of CNNs on labels true and random, and errors on the rest."""
    import torch
    from torch.nn import functional

    from undertow import measure
    from undertow.objective import Objective
    from undertow.train import Ensemble, rules

    first = trials[0]
    (images, labels), chosen, left = drawn(trials, first.bound_per_class)
    classes = int(labels.max()) + 1
    targets = torch.stack(
        [
            random_labels(labels[own], trial.label_noise, classes, seed=_LABELS + trial.seed)
            for own, trial in zip(chosen, trials, strict=True)
        ]
    )
    networks = [_convolutions(trial, images.shape[1:], classes) for trial in trials]
    ensemble = Ensemble(
        networks,
        functional.mse_loss,
        (images[chosen.flatten()], functional.one_hot(targets.flatten(), classes).float()),
        members(trials, _BOUND_LR, _MOMENTUM, "replacement"),
        batch_size=_BOUND_BATCH,
        samples=torch.arange(targets.numel()).view_as(targets),
        rule=rules.momentum,
        path="vmap",
    ).train(first.bound_steps)
    rows: list[Rows] = []
    for e, (network, lost) in enumerate(zip(networks, ensemble.diverged, strict=True)):
        row: dict[str, Any] = {"diverged": lost}
        rows.append([row])
        if not lost:
            own = images[chosen[e]], targets[e]
            trained = Objective(ensemble.module(e), functional.cross_entropy, own)
            before = Objective(network, functional.cross_entropy, own)
            bounds, margins = measure.norm_bounds(trained), measure.margins(trained, degree=1)
            with torch.no_grad():
                guessed = trained.model(images[left[e]]).argmax(1)
            row |= {
                "log_kernel": bounds.log_kernel,
                "log_toeplitz": bounds.log_toeplitz,
                "log_untrained": measure.norm_bounds(before).log_kernel,
                "margin": float(margins.per_sample.quantile(MARGIN_QUANTILE)),
                "fitted": float((margins.per_sample > 0).double().mean()),
                "error": float((guessed != labels[left[e]]).double().mean()),
            }
    return rows


def _convolutions(trial: Bound, shape: Sequence[int], classes: int) -> nn.Module:
    import torch

    from undertow.models import conv_net

    generator = torch.Generator().manual_seed(trial.seed)
    channels, height, width = shape
    size = (channels, height, width)
    network = conv_net(size, trial.bound_channels, classes, bias=False, generator=generator)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(trial.scale)
    return network
