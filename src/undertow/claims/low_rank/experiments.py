"""Networks trained from scratch, their ranks taken on the way: perceptrons, kernels, wide ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from undertow.claims import perceptrons
from undertow.claims.low_rank import LowRank
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from undertow.train import Ensemble, Evaluation

RULES = {"sgd": 0.0, "momentum": 0.9, "adamw": 0.0}  # update rules, and the momentum of each
FINE = 1e-3  # the paper's threshold; the knob is coarser so that `small` can resolve it
NETWORKS = {"conv": (1, False), "residual": (2, True)}  # blocks, and whether they have shortcuts
# A kernel of 32 x 288 starts with all its singular values between 0.118 and 0.236 of its norm.
KERNEL_THRESHOLD = 0.1
CONV = {"lr": 0.05, "weight_decay": 0.014}
# What two classes are still learned under, with lr x weight decay large enough for the bound.
WIDE = {"lr": 0.1, "weight_decay": 0.2}
WIDE_BATCHES = (1, 32)
WIDE_CLASSES = 2
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


@dataclass(frozen=True)
class Wide:
    """One wide perceptron that tells two classes apart, under much decay or none."""

    images: Images
    wide: int
    batch_size: int
    lr: float
    weight_decay: float
    threshold: float
    wide_steps: int
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
    training = grid(Training, knobs, cell=cells + rules, seed=own)
    fewer = {"images": replace(knobs.images, train_size=knobs.conv_images)}
    compared = [fewer | at for at in conv_cells(knobs).values()]
    kernels = grid(Convolution, knobs, network=NETWORKS, cell=compared, seed=own)
    wide = grid(Wide, knobs, cell=wide_cells().values(), seed=own)
    alike = ("seed", "lr", "weight_decay")
    return {
        "training": Experiment(training, train, together=alike),
        "kernels": Experiment(kernels, convolve, together=("seed",)),
        "wide": Experiment(wide, widen, together=alike),
    }


def cell(knobs: LowRank, rule: str = "sgd", **changed: Any) -> dict[str, Any]:
    """The baseline at the smallest batch size, but for what is changed.

    Every rule forgets at the same rate per step.
    """
    smallest, decay = min(knobs.batch_sizes), knobs.baseline_decay
    lr = knobs.baseline_lr * (1 - RULES[rule])
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


def wide_cells() -> dict[str, dict[str, Any]]:
    """With decay, at two batch sizes, and without."""
    small, large = WIDE_BATCHES
    return {
        "small": WIDE | {"batch_size": small},
        "large": WIDE | {"batch_size": large},
        "undecayed": WIDE | {"batch_size": small, "weight_decay": 0.0},
    }


def train(trials: Sequence[Training]) -> list[Rows]:
    """One group: at each snapshot a row for each hidden matrix."""
    first, beta = trials[0], RULES[trials[0].rule]
    options = {"path": "fused", "device": first.device} | _options(trials, first.rule, beta)
    networks = perceptrons(first.images, first.widths, **options)
    names = [name for name in networks.ensemble.parameters() if name.endswith("weight")][1:-1]
    total = first.epochs * -(-networks.train.shape[1] // first.steps_as)
    accuracies = networks.fit, networks.tested
    level = first.threshold
    return _followed(trials, networks.ensemble, names, (total, SNAPSHOTS, level), accuracies, beta)


def convolve(trials: Sequence[Convolution]) -> list[Rows]:
    """One group: at each snapshot a row for each kernel but the first, whose input is the image."""
    from torch.nn import functional

    from undertow import models
    from undertow.train import Ensemble

    first, (blocks, shortcuts) = trials[0], NETWORKS[trials[0].network]
    drawn = first.images.draw([trial.seed for trial in trials])
    pool, (channels, height, width) = (drawn.inputs, drawn.targets), drawn.inputs.shape[1:]
    sizes = ((channels, height, width), first.channels, blocks, drawn.num_classes)
    ensemble = Ensemble(
        lambda generator: models.residual_net(*sizes, shortcuts=shortcuts, generator=generator),
        functional.cross_entropy,
        pool,
        samples=drawn.train,
        path="vmap",
        **_options(trials, "sgd"),
    )
    names = [name for name, value in ensemble.parameters().items() if value.ndim == 5][1:]
    total = first.conv_epochs * -(-drawn.train.shape[1] // first.steps_as)
    accuracies = (
        lambda rows=rows: ensemble.evaluate(*pool, samples=rows)
        for rows in (drawn.train, drawn.test)
    )
    plan = total, CONV_SNAPSHOTS, KERNEL_THRESHOLD
    return _followed(trials, ensemble, names, plan, tuple(accuracies))


def _followed(
    trials: Sequence[Any],
    ensemble: Ensemble,
    names: Sequence[str],
    plan: tuple[int, Sequence[float], float],
    accuracies: tuple[Callable[[], Evaluation], ...],
    momentum: float = 0.0,
) -> list[Rows]:
    """The ensemble trained, with a row for each of its matrices at each snapshot."""
    total, snapshots, threshold = plan
    start = ensemble.parameters()
    rows: list[Rows] = [[] for _ in trials]
    parts = {round(part * total): part for part in snapshots}
    for step in ensemble.read_at(parts):
        fit, test = (evaluate() for evaluate in accuracies)
        facts = {
            "step": step,
            "part": parts[step],
            "final": step == total,
            "diverged": ensemble.diverged,
            "train_accuracy": fit.accuracy,
            "test_accuracy": test.accuracy,
        }
        now, alive = ensemble.parameters(), ensemble.alive
        hyper = [(trials[e].lr, trials[e].weight_decay, step) for e in alive]
        for name in names:
            pair = (one[name][alive].double().cpu().flatten(2) for one in (start, now))
            ranks = dict(zip(alive, rank_rows(*pair, hyper, threshold, momentum), strict=True))
            for e, own in enumerate(rows_of(facts | {"matrix": name})):
                rows[e].append(own | ranks.get(e, {}))
    return rows


def widen(trials: Sequence[Wide]) -> list[Rows]:
    """One group: the rank of the hidden matrix at the end, beside the paper's bound on it."""
    import torch
    from torch.nn import functional

    from undertow import measure, models, predict
    from undertow.train import Ensemble

    first = trials[0]
    drawn = first.images.draw([trial.seed for trial in trials])
    chosen = drawn.targets < WIDE_CLASSES
    place = torch.cumsum(chosen, 0) - 1  # of an image among those of the chosen classes
    samples = torch.stack([place[own[chosen[own]]] for own in drawn.train])
    pool = drawn.inputs[chosen].flatten(1), drawn.targets[chosen]
    sizes = (pool[0].shape[1], first.wide, first.wide, WIDE_CLASSES)
    ensemble = Ensemble(
        lambda generator: models.mlp(sizes, generator=generator),
        functional.cross_entropy,
        pool,
        samples=samples,
        path="fused",
        **_options(trials, "sgd"),
    ).train(first.wide_steps)
    (name,) = [name for name in ensemble.parameters() if name.endswith("weight")][1:-1]
    matrices = ensemble.parameters()[name].nan_to_num()  # those of a network that diverged are NaN
    ranks = measure.matrix_ranks(matrices, first.threshold)
    shape, threshold = (first.wide, first.wide), first.threshold
    bound = predict.rank_bound(
        batch_size=min(WIDE_BATCHES), shape=shape, threshold=threshold, **WIDE
    )
    facts = {
        "diverged": ensemble.diverged,
        "train_accuracy": ensemble.evaluate(*pool, samples=samples).accuracy,
        "rank": ranks.threshold_rank,
        "bound": bound.rank,
        "limit": bound.limit,
    }
    return [[row] for row in rows_of(facts)]


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
    law = {"shape": (rows, cols), "initial_std": std, "threshold": threshold}
    learned = split.learned_spectra
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
