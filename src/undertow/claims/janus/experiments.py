"""Linear regressions on Gaussian inputs and on images, and deep networks; SGD and descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from undertow.claims import perceptrons
from undertow.claims.janus import DEEP_BATCH, Janus
from undertow.data import Images
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64
    from torch import Tensor

    from undertow.train import Ensemble

LINEAR = ("gaussian", "images")  # the regressions
_OUTPUTS = 10
_FIRST, _MIDDLE = "1.weight", "3.weight"  # an MLP's layer 0 flattens
_THRESHOLD = 1e-3  # of the deep networks' rank
_READINGS = (0.25, 0.5, 0.75, 1.0)  # fractions of the steps at which the null space is read
_LATE = 40  # updates over which the fluctuation at the end of training is taken

Order = Literal["epochs", "cyclic", "replacement", "full"]
_SHUFFLES: tuple[Order, ...] = ("epochs", "cyclic", "replacement")
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
    """The labels of images, one-hot."""

    images: Images


@dataclass(frozen=True)
class Deep:
    """A two-hidden-layer ReLU network, in float64."""

    images: Images
    width: int
    batch_size: int
    lr: float
    weight_decay: float
    steps: int
    seed: int


def experiments(knobs: Janus, seed: int) -> dict[str, Experiment]:
    """Regressions at equal epochs, at equal steps and late in training; deep networks."""
    own, fewer = seeds(seed, knobs.seeds), replace(knobs.images, train_size=knobs.samples)
    late = [
        {"weight_decay": decay, "steps": knobs.late_steps, "batch_size": size, "order": order}
        for decay in knobs.weight_decay
        for size, order in (
            *((knobs.smallest, order) for order in ("epochs", "cyclic")),
            (knobs.samples, "full"),
        )
    ]
    gaussian = grid(OnGaussian, knobs, cell=equal_ends(knobs) + late, seed=own)
    images = grid(OnImages, knobs, images=[fewer], cell=equal_ends(knobs), seed=own)
    deep = grid(
        Deep,
        knobs,
        fixed=[{"lr": 0.1, "steps": knobs.deep_steps}],
        batch_size=(DEEP_BATCH, knobs.images.train_size),
        weight_decay=knobs.deep_weight_decay,
        seed=own[: max(8, len(own) // 2)],
    )
    return {
        "deep": Experiment(deep, train_deep, together=("weight_decay", "seed"), group_size=64),
        "gaussian": Experiment(gaussian, on_gaussian, together=("weight_decay",)),
        "images": Experiment(images, on_images, together=("weight_decay", "seed"), group_size=64),
    }


def equal_ends(knobs: Janus) -> list[dict[str, Any]]:
    """Every batch size and order: as many epochs, with decay and without, and as many steps."""
    cells = []
    for size in (*knobs.batch_sizes, knobs.samples):
        steps, strong = knobs.steps_of(size), knobs.strongest
        ends = ((strong, steps), (0.0, steps), (strong, knobs.steps_of(1)))
        cells += [
            {"batch_size": size, "order": order, "weight_decay": decay, "steps": steps}
            for order in (("full",) if size == knobs.samples else _SHUFFLES)
            for decay, steps in ends
        ]
    return cells


def on_gaussian(trials: Sequence[OnGaussian]) -> list[Rows]:
    """Regressions on the data of one seed."""
    import torch

    first = trials[0]
    generator = torch.Generator().manual_seed(2**40 + first.seed)
    inputs, targets = (
        torch.randn((first.samples, size), generator=generator, dtype=torch.float64)
        for size in (first.dimension, _OUTPUTS)
    )
    return regress(trials, inputs, targets)


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
    samples: Int64[Tensor, "E n"] | None = None,
) -> list[Rows]:
    """What is left of the null space on the way, and the fluctuation at the end."""
    import torch
    from torch.nn import functional

    from undertow import measure, models
    from undertow.train import Ensemble, Member

    first = trials[0]
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
    if samples is None:
        count, projector = len(inputs), measure.null_projector(inputs)
    else:
        count = samples.shape[1]
        projector = torch.stack([measure.null_projector(inputs[rows]) for rows in samples])
    start = ensemble.parameters()[_FIRST]
    read = []
    for step in ensemble.read_at(round(fraction * first.steps) for fraction in _READINGS):
        facts = null_space(trials, projector, start, ensemble)
        facts |= {"step": step, "epochs": step * first.batch_size / count}
        read.append(rows_of(facts | {"final": step == first.steps}))
    end, seen = ensemble.parameters()[_FIRST], torch.eye(inputs.shape[1]).double() - projector
    stable = end.square().sum((1, 2)) / torch.linalg.matrix_norm(end, 2).square()
    late = ensemble.read_at(range(first.steps, first.steps + _LATE + 1))
    path = torch.stack([ensemble.parameters()[_FIRST] @ seen for _ in late])
    moving = {"stable_rank": stable, "fluctuation": measure.update_fluctuation(path)}
    read[-1] = [row | more for row, more in zip(read[-1], rows_of(moving), strict=True)]
    return [list(own) for own in zip(*read, strict=True)]


def train_deep(trials: Sequence[Deep]) -> list[Rows]:
    """One batch size: the rank of the middle matrix, and the null space of the first."""
    import torch

    from undertow import measure
    from undertow.train import Member

    first = trials[0]
    order: Order = "full" if first.batch_size == first.images.train_size else "epochs"
    members = [Member(trial.seed, trial.lr, trial.weight_decay, order=order) for trial in trials]
    options: dict[str, Any] = {"path": "fused", "dtype": torch.float64}
    networks = perceptrons(
        first.images, (first.width,) * 2, members, batch_size=first.batch_size, **options
    )
    ensemble = networks.ensemble
    projector = torch.stack([measure.null_projector(own) for own in networks.inputs])
    start = ensemble.parameters()[_FIRST]
    ensemble.train(first.steps)
    facts = null_space(trials, projector, start, ensemble)
    rows = rows_of(facts | {"train_accuracy": networks.fit().accuracy, "deep_rank": None})
    middle = ensemble.parameters()[_MIDDLE]
    for e in ensemble.alive:
        rows[e]["deep_rank"] = int(measure.matrix_ranks(middle[e], _THRESHOLD).threshold_rank)
    return [[row] for row in rows]


def null_space(
    trials: Sequence[Regression | Deep],
    projector: Float64[Tensor, "*E d d"],
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
