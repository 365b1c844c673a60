"""Networks trained from scratch, their ranks taken on the way: perceptrons, kernels, wide ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from undertow.claims import Networks, networks, perceptrons
from undertow.claims.low_rank import LowRank
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

RULES = {"sgd": 0.0, "momentum": 0.9, "adamw": 0.0}  # with the momentum of each
FINE = 1e-3  # the paper's threshold; the knob is coarser so that `small` can resolve it
NETWORKS = {"conv": (1, False), "residual": (2, True)}  # blocks, and whether they have shortcuts
# Of 32 channels, where a kernel starts with 0.118 to 0.236 of its norm; goes as channels^-1/2.
KERNEL_THRESHOLD = 0.1
CONV = {"lr": 0.05, "weight_decay": 0.014}
# What two classes are still learned under, with lr x weight decay large enough for the bound.
WIDE: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2}
WIDE_BATCH, WIDE_CLASSES = 32, 2
_ADAM_LR = 1e-3
# Fractions of the steps at which ranks are taken.
SNAPSHOTS = (0.08, 0.16, 0.25, 0.38, 0.5, 0.62, 0.75, 0.88, 1.0)
CONV_SNAPSHOTS = (0.25, 0.5, 0.75, 1.0)

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Training:
    """One perceptron, for as many steps as batches of `steps_as` samples need for the epochs.

    That is its own batch size at fixed epochs, another one's where steps are matched.
    """

    images: Images
    widths: tuple[int, ...]
    device: str
    rule: str
    batch_size: int
    lr: float
    weight_decay: float
    epochs: int
    steps_as: int
    threshold: float
    classes: int | None
    seed: int


@dataclass(frozen=True)
class Convolution:
    """One convolutional (`conv`) or residual network, with a norm after every kernel."""

    images: Images
    network: str
    channels: int
    batch_size: int
    lr: float
    weight_decay: float
    conv_epochs: int
    steps_as: int
    seed: int


def experiments(knobs: LowRank, seed: int) -> dict[str, Experiment]:
    """Fixed epochs over batch sizes, rates and decays; fixed steps over batch sizes; the rules."""
    own = seeds(seed, knobs.seeds)
    cells = []
    for size in knobs.batch_sizes:
        same_epochs = cell(knobs, batch_size=size, steps_as=size)
        cells += [same_epochs, same_epochs | {"weight_decay": 0.0}, cell(knobs, batch_size=size)]
    cells += [cell(knobs, lr=lr) for lr in knobs.lr]
    cells += [cell(knobs, weight_decay=decay) for decay in knobs.weight_decay]
    rules = [cell(knobs, rule) for rule in RULES]
    training = grid(Training, knobs, classes=[None], cell=cells + rules, seed=own)
    fewer = {"images": replace(knobs.images, train_size=knobs.conv_images)}
    compared = [fewer | at for at in conv_cells(knobs).values()]
    half = own[: (len(own) + 1) // 2]
    kernels = grid(Convolution, knobs, network=NETWORKS, cell=compared, seed=half)
    wide = grid(Training, knobs, cell=wide_cells(knobs).values(), seed=own)
    alike = ("seed", "lr", "weight_decay")
    return {
        "training": Experiment(training, train, together=alike),
        "kernels": Experiment(kernels, convolve, together=("seed",)),
        "wide": Experiment(wide, train, together=alike),
    }


def cell(knobs: LowRank, rule: str = "sgd", **changed: Any) -> dict[str, Any]:
    """The middle rate and decay at the smallest batch size, but for what is changed.

    Every rule forgets at the same rate per step.
    """
    decays = sorted(value for value in knobs.weight_decay if value > 0)
    smallest, decay = min(knobs.batch_sizes), decays[len(decays) // 2]
    lr = sorted(knobs.lr)[len(knobs.lr) // 2] * (1 - RULES[rule])
    if rule == "adamw":
        lr, decay = _ADAM_LR, lr * decay / _ADAM_LR
    shared = {"rule": rule, "batch_size": smallest, "steps_as": smallest}
    return shared | {"lr": lr, "weight_decay": decay} | changed


def conv_cells(knobs: LowRank) -> dict[str, dict[str, Any]]:
    """The smallest batch size, also without decay; the largest at its epochs and at its steps."""
    small, large = min(knobs.conv_batches), max(knobs.conv_batches)
    return {
        "small": CONV | {"batch_size": small, "steps_as": small},
        "undecayed": CONV | {"batch_size": small, "steps_as": small, "weight_decay": 0.0},
        "same epochs": CONV | {"batch_size": large, "steps_as": large},
        "same steps": CONV | {"batch_size": large, "steps_as": small},
    }


def wide_cells(knobs: LowRank) -> dict[str, dict[str, Any]]:
    """Two classes and a wide network, with decay at two batch sizes, and without."""
    shared = {"rule": "sgd", "widths": (knobs.wide, knobs.wide), "classes": WIDE_CLASSES}
    shared |= WIDE | {"epochs": knobs.wide_epochs, "steps_as": 1, "batch_size": 1}
    return {
        "small": shared,
        "large": shared | {"batch_size": WIDE_BATCH},
        "undecayed": shared | {"weight_decay": 0.0},
    }


def train(trials: Sequence[Training]) -> list[Rows]:
    """One group: at each snapshot a row for each hidden matrix."""
    first, beta = trials[0], RULES[trials[0].rule]
    options = _options(trials, first.rule, beta) | {"path": "fused", "device": first.device}
    made = perceptrons(first.images, first.widths, classes=first.classes, **options)
    names = [name for name in made.ensemble.parameters() if name.endswith("weight")][1:-1]
    total = first.epochs * -(-made.train.shape[1] // first.steps_as)
    parts = SNAPSHOTS if first.classes is None else SNAPSHOTS[-1:]
    return _followed(trials, made, names, (total, parts, first.threshold), beta)


def convolve(trials: Sequence[Convolution]) -> list[Rows]:
    """One group: at each snapshot a row for each kernel but the first, whose input is the image."""
    from undertow import models

    first, (blocks, shortcuts) = trials[0], NETWORKS[trials[0].network]

    def model(shape: tuple[int, int, int], classes: int) -> Any:
        sizes = (shape, first.channels, blocks, classes)
        return lambda generator: models.residual_net(
            *sizes, shortcuts=shortcuts, generator=generator
        )

    options = _options(trials, "sgd") | {"path": "vmap", "flat": False}
    made = networks(first.images, model, **options)
    kernels = [name for name, value in made.ensemble.parameters().items() if value.ndim == 5]
    total = first.conv_epochs * -(-made.train.shape[1] // first.steps_as)
    threshold = KERNEL_THRESHOLD * (32 / first.channels) ** 0.5
    return _followed(trials, made, kernels[1:], (total, CONV_SNAPSHOTS, threshold))


def _followed(
    trials: Sequence[Any],
    networks: Networks,
    names: Sequence[str],
    plan: tuple[int, Sequence[float], float],
    momentum: float = 0.0,
) -> list[Rows]:
    """The ensemble trained, with a row for each of its matrices at each snapshot."""
    (total, snapshots, threshold), ensemble = plan, networks.ensemble
    start = ensemble.parameters()
    rows: list[Rows] = [[] for _ in trials]
    parts = {round(part * total): part for part in snapshots}
    for step in ensemble.read_at(parts):
        facts = {
            "step": step,
            "part": parts[step],
            "final": step == total,
            "diverged": ensemble.diverged,
            "train_accuracy": networks.fit().accuracy,
            "test_accuracy": networks.tested().accuracy,
        }
        now, alive = ensemble.parameters(), ensemble.alive
        hyper = [(trials[e].lr, trials[e].weight_decay, step) for e in alive]
        for name in names:
            first, last = (one[name][alive].double().cpu().flatten(2) for one in (start, now))
            found = rank_rows(first, last, hyper, threshold, momentum)
            ranks = dict(zip(alive, found, strict=True))
            for e, own in enumerate(rows_of(facts | {"matrix": name})):
                rows[e].append(own | ranks.get(e, {}))
    return rows


def rank_rows(
    start: Float[Tensor, "E rows cols"],
    weights: Float[Tensor, "E rows cols"],
    hyper: Sequence[tuple[float, float, int]],
    threshold: float,
    momentum: float = 0.0,
) -> Rows:
    """Ranks of each network's weights, of the initial residue, of what was learned, and the law.

    `hyper` holds each network's learning rate, weight decay and steps. The law takes the learned
    part's singular values, E and the initialiser, and neither the weights nor their norm.
    """
    import numpy as np

    from undertow import measure, predict

    if not hyper:
        return []
    factors = np.array([predict.decay_factor(*own, momentum=momentum) for own in hyper])
    split = measure.split_matrices(weights, start, weights.new_tensor(factors))
    (rows, cols), ranks = weights.shape[1:], split.ranks(threshold)
    std = predict.initial_std("pytorch", fan_in=cols)
    law: dict[str, Any] = {"shape": (rows, cols), "initial_std": std, "threshold": threshold}
    learned = split.learned_spectra.numpy()
    return rows_of(
        {
            "rows": rows,
            "cols": cols,
            "decay_exponent": [predict.decay_exponent(*own, momentum=momentum) for own in hyper],
            "norm": split.norm,
            "spectrum": split.spectra / split.norm[:, None],
            "rank": ranks.rank,
            "survivors": ranks.surviving_rank,
            "learned_rank": ranks.learned_rank,
            "rank_law": predict.combined_rank(learned, decay_factor=factors, **law),
            "rank_unforgotten": predict.combined_rank(learned, 0.0, **law),
            "kept": split.kept(threshold),
            "kept_fine": split.kept(FINE),
        }
    )


def _options(trials: Sequence[Any], rule: str, beta: float = 0.0) -> dict[str, Any]:
    """What a group's trials say of its ensemble."""
    from undertow.train import Member, rules

    return {
        "members": [Member(t.seed, t.lr, t.weight_decay, momentum=beta) for t in trials],
        "batch_size": trials[0].batch_size,
        "rule": getattr(rules, rule),
    }
