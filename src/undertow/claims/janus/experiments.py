"""Linear regressions on Gaussian inputs and on images, and deep networks; SGD and descent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from undertow.claims import perceptrons, stream
from undertow.claims.janus import DEEP_BATCH, Janus
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float64, Int64
    from torch import Tensor

    from undertow.claims import Networks
    from undertow.train import Ensemble

    Array = Float64[np.ndarray, "n d"]

LINEAR = ("gaussian", "images")  # the regressions
_OUTPUTS = 10
_FIRST, _MIDDLE = "1.weight", "3.weight"  # an MLP's layer 0 flattens
_THRESHOLD = 1e-3  # of the deep networks' rank
_READINGS = (0.25, 0.5, 0.75, 1.0)  # fractions of the steps at which the null space is read
# The fluctuation is taken over at least so many updates, in whole epochs; deep networks vary more.
_LATE, _LATE_DEEP = 40, 100

Order = Literal["epochs", "cyclic", "full"]
_ORDERS: tuple[Order, ...] = ("epochs", "cyclic")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Regression:
    """Linear regression from random initial weights, in float64; order full is descent."""

    batch_size: int
    order: Order
    lr: float
    weight_decay: float
    steps: int
    seed: int


@dataclass(frozen=True)
class OnGaussian(Regression):
    """Gaussian inputs and targets, drawn from another stream than the initial weights."""

    samples: int
    dimension: int


@dataclass(frozen=True)
class OnImages(Regression):
    """The labels of images, one-hot; of each seed its own."""

    images: Images


@dataclass(frozen=True)
class Deep:
    """A network with two hidden layers, in float64."""

    images: Images
    width: int
    activation: str
    batch_size: int
    order: Order
    lr: float
    weight_decay: float
    steps: int
    seed: int


def experiments(knobs: Janus, seed: int) -> dict[str, Experiment]:
    """Regressions at equal epochs, at equal steps and late in training; deep networks."""
    own, fewer = seeds(seed, knobs.seeds), replace(knobs.images, train_size=knobs.samples)
    decays = [decay for decay in knobs.weight_decay if decay]

    def late(size: int, order: Order, decay: float) -> dict[str, Any]:
        steps = knobs.late_of(size)
        return {"batch_size": size, "order": order, "weight_decay": decay, "steps": steps}

    sizes, orders = knobs.batch_sizes, _ORDERS
    moving = [late(size, order, decay) for size in sizes for order in orders for decay in decays]
    still = [late(knobs.smallest, "epochs", 0.0)]
    still += [late(knobs.samples, "full", decay) for decay in decays]
    forced = [late(size, "cyclic", max(decays)) for size in sizes]
    gaussian = grid(OnGaussian, knobs, cell=equal_ends(knobs) + moving + still, seed=own)
    images = grid(OnImages, knobs, images=[fewer], cell=equal_ends(knobs) + forced, seed=own)
    deep = grid(Deep, knobs, fixed=[{"lr": 0.05}], cell=deep_cells(knobs), seed=own)
    options: dict[str, Any] = {"together": ("weight_decay", "seed"), "group_size": 64}
    return {
        "deep": Experiment(deep, train_deep, **options),
        "gaussian": Experiment(gaussian, on_gaussian, **options),
        "images": Experiment(images, on_images, **options),
    }


def equal_ends(knobs: Janus) -> list[dict[str, Any]]:
    """Every batch size with the strongest decay: for as many epochs, and for as many steps."""
    orders = dict.fromkeys(knobs.batch_sizes, "epochs") | {knobs.samples: "full"}
    return [
        {"batch_size": size, "order": order, "weight_decay": knobs.strongest, "steps": steps}
        for size, order in orders.items()
        for steps in sorted({knobs.steps_of(size), knobs.steps_of(1)})
    ]


def deep_cells(knobs: Janus) -> list[dict[str, Any]]:
    """SGD in shuffled and in fixed order beside descent; and descent on a smooth network."""
    full, decays = knobs.images.train_size, knobs.deep_weight_decay
    runs: list[tuple[int | None, Order, str, tuple[float, ...]]]
    runs = [(DEEP_BATCH, order, "relu", decays) for order in _ORDERS]
    runs += [(full, "full", "relu", decays), (full, "full", "tanh", (max(decays),))]
    names = "batch_size", "order", "activation", "weight_decay", "steps"
    return [
        dict(zip(names, (size, order, activation, decay, knobs.deep_steps), strict=True))
        for size, order, activation, own in runs
        for decay in own
    ]


def on_gaussian(trials: Sequence[OnGaussian]) -> list[Rows]:
    """Regressions on the data of each seed."""
    import torch

    first, own = trials[0], sorted({trial.seed for trial in trials})
    drawn = []
    for seed in own:
        generator = torch.Generator().manual_seed(seed)
        inputs, targets = (
            torch.randn((first.samples, size), generator=generator, dtype=torch.float64)
            for size in (first.dimension, _OUTPUTS)
        )
        drawn.append((inputs, targets))
    places = torch.tensor([own.index(trial.seed) for trial in trials])
    samples = places[:, None] * first.samples + torch.arange(first.samples)
    every, aims = map(torch.cat, zip(*drawn, strict=True))
    return regress(trials, every, aims, samples)


def on_images(trials: Sequence[OnImages]) -> list[Rows]:
    """Regressions on images, of each seed its own."""
    from torch.nn.functional import one_hot

    drawn = trials[0].images.draw([trial.seed for trial in trials])
    targets = one_hot(drawn.targets, drawn.num_classes).double()
    return regress(trials, drawn.inputs.flatten(1).double(), targets, drawn.train)


def regress(
    trials: Sequence[Regression],
    inputs: Float64[Tensor, "rows d"],
    targets: Float64[Tensor, "rows k"],
    samples: Int64[Tensor, "E n"],
) -> list[Rows]:
    """What is left of the null space on the way, and the fluctuation at the end."""
    import torch
    from torch.nn import functional

    from undertow import measure, models
    from undertow.train import Ensemble, Member

    first, count = trials[0], samples.shape[1]
    inputs = inputs / inputs.norm(dim=1, keepdim=True)
    sizes = (inputs.shape[1], targets.shape[1])
    ensemble = Ensemble(
        lambda generator: models.mlp(sizes, bias=False, generator=generator),
        functional.mse_loss,
        (inputs, targets),
        [Member(trial.seed, trial.lr, trial.weight_decay, order=trial.order) for trial in trials],
        batch_size=first.batch_size,
        path="fused",
        samples=samples,
        dtype=torch.float64,
    )
    projector = torch.stack([measure.null_projector(inputs[rows]) for rows in samples])
    start = ensemble.parameters()[_FIRST]
    read = []
    for step in ensemble.read_at(round(fraction * first.steps) for fraction in _READINGS):
        facts = null_space(trials, projector, start, ensemble)
        facts |= {"step": step, "epochs": step * first.batch_size / count}
        read.append(rows_of(facts | {"final": step == first.steps}))
    end, seen = ensemble.parameters()[_FIRST], torch.eye(inputs.shape[1]).double() - projector
    stable = end.square().sum((1, 2)) / torch.linalg.matrix_norm(end, 2).square()
    updates = whole_epochs(count, first.batch_size, _LATE)
    late = ensemble.read_at(range(first.steps, first.steps + updates + 1))
    path = torch.stack([ensemble.parameters()[_FIRST] @ seen for _ in late])
    moving = {"stable_rank": stable, "fluctuation": measure.update_fluctuation(path)}
    data = [(inputs[rows].numpy(), targets[rows].numpy()) for rows in samples]
    foreseen = [forecast(trial, *own) for trial, own in zip(trials, data, strict=True)]
    moving |= {name: [own[name] for own in foreseen] for name in ("ridge", "orbit")}
    read[-1] = [row | more for row, more in zip(read[-1], rows_of(moving), strict=True)]
    return [list(own) for own in zip(*read, strict=True)]


def whole_epochs(count: int, batch_size: int, least: int) -> int:
    """The steps of so many epochs that there are at least so many of them."""
    epoch = -(-count // batch_size)
    return epoch * -(-least // epoch)


def forecast(trial: Regression, inputs: Array, targets: Array) -> dict[str, float | None]:
    """The fluctuation that the data say: at the ridge solution, and on a fixed order's orbit."""
    import torch

    from undertow import measure, predict

    if not trial.weight_decay or trial.order == "full":
        return {"ridge": None, "orbit": None}
    options: dict[str, Any] = {"lr": trial.lr, "weight_decay": trial.weight_decay}
    options |= {"batch_size": trial.batch_size}
    found: dict[str, float | None] = {"ridge": predict.ridge_noise(inputs, targets, **options)}
    if trial.order != "cyclic":
        return found | {"orbit": None}
    generator = stream(trial.seed, 1)  # of a member's order
    rows = torch.randperm(len(inputs), generator=generator).numpy()
    orbit = torch.from_numpy(predict.fixed_order_orbit(inputs[rows], targets[rows], **options))
    return found | {"orbit": float(measure.update_fluctuation(orbit))}


def train_deep(trials: Sequence[Deep]) -> list[Rows]:
    """The rank of the middle matrix and the fluctuation of all weights, twice and at the end.

    First where descent has had as many epochs as SGD has at the end, then halfway there.
    """
    import torch

    from undertow import measure
    from undertow.train import Member

    first = trials[0]
    members = [Member(own.seed, own.lr, own.weight_decay, order=own.order) for own in trials]
    options: dict[str, Any] = {"path": "fused", "dtype": torch.float64}
    options |= {"activation": first.activation, "batch_size": first.batch_size}
    networks = perceptrons(first.images, (first.width,) * 2, members, **options)
    ensemble, count = networks.ensemble, networks.train.shape[1]
    epoch, updates = -(-count // DEEP_BATCH), whole_epochs(count, DEEP_BATCH, _LATE_DEEP)
    projector = torch.stack([measure.null_projector(own) for own in networks.inputs])
    start, read = ensemble.parameters()[_FIRST], []
    for step in (first.steps // epoch, first.steps // 2, first.steps):
        ensemble.train(step - ensemble.steps_taken)
        facts = null_space(trials, projector, start, ensemble)
        facts |= {"step": step, "epochs": step * first.batch_size / count}
        facts |= {"train_accuracy": networks.fit().accuracy, "rank": ranks(ensemble)}
        facts |= {"predicted": at_rest(networks, trials) if step == first.steps else None}
        facts["fluctuation"] = None
        if step >= first.steps // 2:
            late = ensemble.read_at(range(step, step + updates + 1))
            path = torch.stack([weights(ensemble) for _ in late])
            facts["fluctuation"] = measure.update_fluctuation(path)
        read.append(rows_of(facts | {"final": step == first.steps}))
    return [list(own) for own in zip(*read, strict=True)]


def weights(ensemble: Ensemble) -> Float64[Tensor, "E 1 p"]:
    """All of them, each network's in a row."""
    import torch

    return torch.cat([own.flatten(1) for own in ensemble.parameters().values()], 1)[:, None]


def ranks(ensemble: Ensemble) -> list[int | None]:
    """Of each network's middle matrix; None of one that diverged."""
    from undertow import measure

    middle, alive = ensemble.parameters()[_MIDDLE], set(ensemble.alive)
    return [
        int(measure.matrix_ranks(own, _THRESHOLD).threshold_rank) if e in alive else None
        for e, own in enumerate(middle)
    ]


def at_rest(networks: Networks, trials: Sequence[Deep]) -> list[float | None] | None:
    """SGD's fluctuation as the gradients say where descent ended; None of SGD itself.

    lr sqrt(tr Sigma / B (1 - B / n)) / ||w||, which at the ridge solution is `predict.ridge_noise`.
    """
    from undertow import measure

    if trials[0].order != "full":
        return None
    count, sizes = networks.train.shape[1], weights(networks.ensemble).norm(dim=(1, 2))
    found: list[float | None] = [None] * len(trials)
    for e in networks.ensemble.alive:
        trace = measure.gradient_noise(networks.objective(e)).trace
        spread = trace / DEEP_BATCH * (1 - DEEP_BATCH / count)
        found[e] = trials[e].lr * math.sqrt(spread) / float(sizes[e])
    return found


def null_space(
    trials: Sequence[Regression | Deep],
    projector: Float64[Tensor, "E d d"],
    start: Float64[Tensor, "E k d"],
    ensemble: Ensemble,
) -> dict[str, Any]:
    """How much of what the data cannot see is left of the weights, and how much is predicted."""
    import torch

    from undertow.predict import null_space_decay

    steps, now = ensemble.steps_taken, ensemble.parameters()[_FIRST]
    before, left = (torch.linalg.norm(own @ projector, dim=(1, 2)) for own in (start, now))
    return {
        "diverged": ensemble.diverged,
        "null_dimension": projector.diagonal(dim1=-2, dim2=-1).sum(-1).round(),
        "null_ratio": left / before,
        "null_predicted": [null_space_decay(t.lr, t.weight_decay, steps) for t in trials],
    }
