"""Dynamics in deep classifiers trained with the square loss (Xu et al., Research, 2023).

A homogeneous ReLU network is g = rho f_V with normalised layers V_k = W_k / ||W_k||_F and rho the
product of the norms. Tested on the flow of (rho, V) itself, and on ordinary training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import altair as alt
import numpy as np
import polars as pl

from undertow import lab
from undertow.claims._claim import (
    Check,
    Claim,
    Figure,
    Verdict,
    check_above,
    check_below,
    check_within,
    decide,
    over_seeds,
    worst_over_seeds,
)

if TYPE_CHECKING:
    from torch import Tensor

Speed = Literal["scaled", "own"]
_READINGS = (0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 1.0)  # fractions of the time at which a flow is read
_MOVED = 0.01  # a flow is equilibrated when rho moved by less than this since the reading before
_MAX_STEPS = 300_000
_FITTED = 0.95  # share of the samples with a positive margin, of a flow or net that has fitted
_COLLAPSE_FIT = 0.99  # accuracy from which on neural collapse can be spoken of
_COLLAPSE_LR, _COLLAPSE_MOMENTUM = 0.2, 0.9
_COLLAPSE_READINGS = (0.05, 0.2, 0.5, 1.0)
_NORMS_LR = 0.2
_KERNEL, _SIDE = 3, 8  # of the convolution that is written out as a matrix


@dataclass(frozen=True)
class Config:
    """Knobs. lambda penalises rho^2; `weight_decay` is PyTorch's, of networks not normalised.

    Attributes:
        data: digits, fashion-mnist, mnist-5k or cifar10.
        data_root: folder of a dataset that you have.
        image_size: average-pool the images to this side; it must divide their own.
        classes: the two classes that the flow and the layer norms are tested on.
        samples: images of the two classes, half of each.
        width: of the two hidden layers of the flow's network.
        initial_rho: rho at the start of a flow, ascending.
        rho_decay: lambda, ascending from 0, which is the control.
        horizon: a flow runs for the time horizon / lambda; without decay, for the longest of them.
        norms_decay: weight decay of the networks whose layer norms are compared.
        norms_steps: their full-batch steps.
        collapse_per_class: images of every class for neural collapse.
        collapse_width: of its three hidden layers.
        collapse_decay: its weight decay.
        collapse_steps: its full-batch steps.
        seeds: independent repetitions: initial weights, and images drawn.
    """

    data: str = "digits"
    data_root: str | None = None
    image_size: int | None = None
    classes: tuple[int, int] = (3, 8)
    samples: int = 100
    width: int = 32
    initial_rho: tuple[float, ...] = (1.0, 50.0, 500.0)
    rho_decay: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1e-2)
    horizon: float = 5.0
    norms_decay: float = 1e-2
    norms_steps: int = 10_000
    collapse_per_class: int = 25
    collapse_width: int = 64
    collapse_decay: float = 1e-3
    collapse_steps: int = 6_000
    seeds: int = 8

    def __post_init__(self) -> None:
        if len(self.initial_rho) < 2 or not _ascending(self.initial_rho) or self.initial_rho[0] < 1:
            raise ValueError(
                f"initial_rho must hold two or more values, ascending from at least 1, got "
                f"{self.initial_rho}"
            )
        if len(self.rho_decay) < 2 or not _ascending(self.rho_decay) or self.rho_decay[0] != 0:
            raise ValueError(
                f"rho_decay must ascend from 0 (the control) to positive values, got "
                f"{self.rho_decay}"
            )
        if self.samples < 4 or self.samples % 2:
            raise ValueError(f"samples must be even and at least 4, got {self.samples}")
        if len(set(self.classes)) != 2:
            raise ValueError(f"classes must hold two different classes, got {self.classes}")
        for name in ("horizon", "norms_decay", "collapse_decay"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        # Two of collapse_per_class, or nothing varies within a class; the first reading is at 5%.
        least = {"collapse_per_class": 2, "collapse_steps": 20}
        counts = ("width", "norms_steps", "collapse_width", "seeds")
        for name in (*counts, *least):
            if getattr(self, name) < least.get(name, 1):
                raise ValueError(
                    f"{name} must be at least {least.get(name, 1)}, got {getattr(self, name)}"
                )

    @property
    def weakest(self) -> float:
        """The least positive lambda, at which equilibrium takes longest."""
        return self.rho_decay[1]

    @property
    def middle(self) -> float:
        """A positive lambda in the middle of those given."""
        return self.rho_decay[len(self.rho_decay) // 2]


def _ascending(values: Sequence[float]) -> bool:
    return all(low < high for low, high in pairwise(values))


# ---- trials


@dataclass(frozen=True)
class Flow:
    """The flow of (rho, V) on two classes with labels +-1, in float64."""

    data: str
    data_root: str | None
    image_size: int | None
    classes: tuple[int, int]
    samples: int
    width: int
    initial_rho: float
    rho_decay: float
    time: float
    shuffled: bool
    speed: Speed
    seed: int


@dataclass(frozen=True)
class Norms:
    """The same network, not normalised, by full-batch descent with PyTorch's weight decay."""

    data: str
    data_root: str | None
    image_size: int | None
    classes: tuple[int, int]
    samples: int
    width: int
    weight_decay: float
    steps: int
    seed: int


@dataclass(frozen=True)
class Collapse:
    """A network on all classes with one-hot targets, square loss, full-batch momentum."""

    data: str
    data_root: str | None
    image_size: int | None
    per_class: int
    width: int
    weight_decay: float
    steps: int
    seed: int


@dataclass(frozen=True)
class Toeplitz:
    """A random convolution against the same map written out as a matrix."""

    padding: int
    seed: int


Trial = Flow | Norms | Collapse | Toeplitz
_T = TypeVar("_T", Norms, Collapse)


def trials(config: Config, seed: int) -> list[Trial]:
    """Flows over starts and decays with their controls; layer norms; collapse; convolutions."""
    seeds = [seed * 10_000 + index for index in range(config.seeds)]
    source = (config.data, config.data_root, config.image_size)
    two = (*source, config.classes, config.samples, config.width)

    def flow(rho: float, decay: float, own: int, *, shuffled: bool, speed: Speed) -> Flow:
        time = config.horizon / (decay or config.weakest)
        return Flow(*two, rho, decay, time, shuffled, speed, own)

    least, strongest = config.initial_rho[0], config.rho_decay[-1]
    flows = [
        flow(rho, decay, own, shuffled=False, speed="scaled")
        for rho in config.initial_rho
        for decay in config.rho_decay
        for own in seeds
    ]
    flows += [flow(least, config.middle, own, shuffled=True, speed="scaled") for own in seeds]
    flows += [flow(least, strongest, own, shuffled=False, speed="own") for own in seeds]
    norms = [
        Norms(*two, decay, config.norms_steps, own)
        for decay in (0.0, config.norms_decay)
        for own in seeds
    ]
    collapse = [
        Collapse(
            *source,
            config.collapse_per_class,
            config.collapse_width,
            decay,
            config.collapse_steps,
            own,
        )
        for own in seeds
        for decay in (0.0, config.collapse_decay)
    ]
    convolutions = [Toeplitz(padding, own) for padding in (0, 1) for own in seeds]
    return [*flows, *norms, *collapse, *convolutions]


def group(trial: Trial) -> Hashable:
    """Flows from one start run as one, and so do networks of one shape."""
    if isinstance(trial, Flow):
        return replace(trial, rho_decay=0.0, time=0.0, seed=0)
    if isinstance(trial, Norms):
        return replace(trial, weight_decay=0.0, seed=0)
    if isinstance(trial, Collapse):
        # Two halves, one a core; a seed's networks stay together.
        return replace(trial, weight_decay=0.0, seed=trial.seed % 2)
    return "convolutions"


def run(group_trials: Sequence[Trial]) -> list[list[dict[str, Any]]]:
    """Run one group and return the records of each trial."""
    first = group_trials[0]
    if isinstance(first, Flow):
        return _run_flow([trial for trial in group_trials if isinstance(trial, Flow)])
    if isinstance(first, Norms):
        norms = [trial for trial in group_trials if isinstance(trial, Norms)]
        return _seed_by_seed(norms, _train_norms)
    if isinstance(first, Collapse):
        collapse = [trial for trial in group_trials if isinstance(trial, Collapse)]
        return _seed_by_seed(collapse, _train_collapse)
    return [[_convolution(trial)] for trial in group_trials if isinstance(trial, Toeplitz)]


def _images(trial: Flow | Norms | Collapse) -> tuple[Tensor, Tensor]:
    """All training images as unit vectors `[n, d]` in float64, and their labels."""
    from undertow import data

    loaded = data.load(trial.data, root=trial.data_root, image_size=trial.image_size)
    inputs = loaded.train_inputs.flatten(1).double()
    return inputs / inputs.norm(dim=1, keepdim=True), loaded.train_targets


def _drawn(labels: Tensor, classes: Sequence[int], per_class: int, seed: int) -> Tensor:
    """Positions of `per_class` images of each class; drawn in another stream than the weights."""
    import torch

    generator = torch.Generator().manual_seed(2**40 + seed)
    chosen = []
    for label in classes:
        members = (labels == label).nonzero()[:, 0]
        if len(members) < per_class:
            raise ValueError(
                f"{per_class} images of class {label} are asked for and there are {len(members)}: "
                "lower samples or collapse_per_class, or choose other classes"
            )
        chosen.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.cat(chosen)


def _two_classes(trials: Sequence[Flow] | Sequence[Norms]) -> tuple[Tensor, Tensor]:
    """Every trial's own images `[E, n, d]` and labels +-1 `[E, n]`, shuffled where it says so."""
    import torch

    inputs, labels = _images(trials[0])
    rows, signs = [], []
    for trial in trials:
        half = trial.samples // 2
        rows.append(inputs[_drawn(labels, trial.classes, half, trial.seed)])
        sign = torch.ones(2 * half, dtype=torch.float64)
        sign[half:] = -1
        if isinstance(trial, Flow) and trial.shuffled:
            generator = torch.Generator().manual_seed(2**41 + trial.seed)
            sign = sign[torch.randperm(len(sign), generator=generator)]
        signs.append(sign)
    return torch.stack(rows), torch.stack(signs)


# ---- the flow of (rho, V)


@dataclass(frozen=True)
class _Forward:
    """f_V of every member and sample, with what its derivative in each layer is made of.

    df_n / dV_k is the outer product of `signals[k][:, n]` and `activations[k][:, n]`.
    """

    f: Tensor
    activations: list[Tensor]
    signals: list[Tensor]

    def speed_bound(self) -> Tensor:
        """Trace `[E]` of the tangent kernel over n, on the product of spheres: bounds its norm."""
        squares = self.f.square()
        each = [
            a.square().sum(2) * d.square().sum(2) - squares
            for a, d in zip(self.activations, self.signals, strict=True)
        ]
        return sum(each[1:], each[0]).mean(1)


def _forward(inputs: Tensor, layers: Sequence[Tensor]) -> _Forward:
    import torch

    activations = [inputs]
    for layer in layers[:-1]:
        activations.append(torch.bmm(activations[-1], layer.mT).relu_())
    f = torch.bmm(activations[-1], layers[-1].mT)[..., 0]
    signals = [torch.ones_like(f)[..., None]]
    for layer, activation in zip(layers[:0:-1], activations[:0:-1], strict=True):
        signals.insert(0, torch.bmm(signals[0], layer) * (activation > 0))
    return _Forward(f, activations, signals)


def _unit(layers: Sequence[Tensor]) -> list[Tensor]:
    return [layer / layer.flatten(1).norm(dim=1)[:, None, None] for layer in layers]


def _directions(now: _Forward, layers: Sequence[Tensor], weights: Tensor) -> list[Tensor]:
    """sum_n weights_n (df_n / dV_k - V_k f_n) for every member and layer; weights `[E, n]`."""
    import torch

    found = []
    for layer, activation, signal in zip(layers, now.activations, now.signals, strict=True):
        gradient = torch.bmm((signal * weights[..., None]).mT, activation)
        inward = (gradient * layer).sum((1, 2), keepdim=True)
        found.append(gradient - layer * inward)
    return found


def _run_flow(group_trials: Sequence[Flow]) -> list[list[dict[str, Any]]]:
    """Every member's flow with steps of its own, until it has reached its last reading.

        rho' = -2 (rho M - mu) - 2 lambda rho
        V_k' = -(2 / N) rho sum_n (rho f_n - y_n) (df_n / dV_k - V_k f_n) / max(rho, 1)^2

    V moves rho^2 times as fast as the residual is fitted at rho = 1; dividing by rho^2 (speed
    "scaled") leaves every fixed point where it is and the path too, as long as V still fits much
    faster than rho moves. Euler steps shorter than half of what the fastest residual would bear.
    """
    import torch

    inputs, labels = _two_classes(group_trials)
    sizes = (inputs.shape[2], group_trials[0].width, group_trials[0].width, 1)
    generators = [torch.Generator().manual_seed(trial.seed) for trial in group_trials]
    layers = _unit(
        [
            torch.stack(
                [torch.randn(b, a, generator=own, dtype=torch.float64) for own in generators]
            )
            for a, b in pairwise(sizes)
        ]
    )

    def column(name: str) -> Tensor:
        values = [float(getattr(trial, name)) for trial in group_trials]
        return torch.tensor(values, dtype=torch.float64)

    rho, decay, end = column("initial_rho"), column("rho_decay"), column("time")
    scaled = torch.tensor([trial.speed == "scaled" for trial in group_trials])
    fractions = torch.tensor(_READINGS, dtype=torch.float64)
    member = torch.arange(len(group_trials))
    time, reading = torch.zeros_like(rho), torch.zeros_like(member)
    records: list[list[dict[str, Any]]] = [[] for _ in group_trials]
    steps = 0
    while len(member) and steps < _MAX_STEPS:
        now = _forward(inputs, layers)
        target = fractions[reading] * end
        due = (time >= target) | ~torch.isfinite(rho)
        if due.any():
            facts = _facts(now, layers, labels, rho, decay)
            for e in due.nonzero()[:, 0].tolist():
                rows = records[int(member[e])]
                rows.append(_row(facts, e, rows, float(time[e]), int(reading[e]), steps))
            reading = reading + due.long()
            kept = (reading < len(_READINGS)) & torch.isfinite(rho)
            inputs, labels, rho, decay, end = (
                value[kept] for value in (inputs, labels, rho, decay, end)
            )
            scaled, member, time, reading = (
                value[kept] for value in (scaled, member, time, reading)
            )
            layers = [layer[kept] for layer in layers]
            continue
        square = now.f.square().mean(1)  # M
        scale = torch.where(scaled, rho.clamp(min=1).square(), 1.0)
        weights = (rho[:, None] * now.f - labels) * (2 * rho / scale / now.f.shape[1])[:, None]
        directions = _directions(now, layers, weights)
        fastest = torch.stack([d.flatten(1).norm(dim=1) for d in directions]).amax(0)
        rate = rho.square() / scale * now.speed_bound() + square + decay
        step = torch.minimum(0.5 / rate, 0.1 / fastest.clamp(min=1e-12))
        left = target - time
        last = step >= left
        step = torch.where(last, left, step)
        layers = _unit(
            [
                layer - step[:, None, None] * way
                for layer, way in zip(layers, directions, strict=True)
            ]
        )
        pull = (labels * now.f).mean(1) - rho * (square + decay)
        rho = rho + 2 * step * pull
        time = torch.where(last, target, time + step)
        steps += 1
    for position in member.tolist():  # out of steps: judged like a flow that diverged
        records[position].append({"final": True, "diverged": True, "steps_taken": steps})
    return records


def _facts(
    now: _Forward, layers: Sequence[Tensor], labels: Tensor, rho: Tensor, decay: Tensor
) -> dict[str, list[float]]:
    """What a reading holds, for every member."""
    import torch

    margins = labels * now.f
    mean = margins.mean(1)
    first = torch.linalg.matrix_norm(torch.nan_to_num(layers[0]), 2)
    return {
        "rho": rho.tolist(),
        "equilibrium": (mean / (now.f.square().mean(1) + decay)).tolist(),
        "margin": mean.tolist(),
        "least_margin": margins.amin(1).tolist(),
        "margin_cv": (margins.std(1, correction=0) / mean.abs()).tolist(),
        "fitted": (margins > 0).double().mean(1).tolist(),
        "loss": (rho[:, None] * now.f - labels).square().mean(1).tolist(),
        "stable_rank": first.pow(-2).tolist(),
    }


def _row(
    facts: dict[str, list[float]],
    e: int,
    before: Sequence[dict[str, Any]],
    time: float,
    reading: int,
    steps: int,
) -> dict[str, Any]:
    row: dict[str, Any] = {name: values[e] for name, values in facts.items()}
    sound = row["rho"] > 0 and math.isfinite(row["rho"])
    moved = abs(math.log(row["rho"] / before[-1]["rho"])) if before and sound else math.inf
    return {
        "at": time,
        "fraction": _READINGS[reading],
        "final": reading == len(_READINGS) - 1,
        "diverged": not sound,
        "moved": moved,
        "steps_taken": steps,
        **row,
    }


# ---- ordinary training


def _seed_by_seed(
    trials: Sequence[_T], train: Callable[[Sequence[_T]], list[list[dict[str, Any]]]]
) -> list[list[dict[str, Any]]]:
    """`train` applied to the trials of each seed together: they see the same images."""
    found: dict[int, list[int]] = {}
    for position, trial in enumerate(trials):
        found.setdefault(trial.seed, []).append(position)
    records: list[list[dict[str, Any]]] = [[] for _ in trials]
    for positions in found.values():
        own = train([trials[position] for position in positions])
        for position, rows in zip(positions, own, strict=True):
            records[position] = rows
    return records


def _train_norms(members: Sequence[Norms]) -> list[list[dict[str, Any]]]:
    """Squared layer norms of networks without biases, and rho against its own equilibrium.

    At a stationary point <W_k, dL/dW_k> = -weight_decay ||W_k||^2 in every layer, and the left side
    is the same in all of them: all norms are equal, and rho = mu / (M + weight_decay / 2
    rho^(2/L - 2)).
    """
    import torch

    from undertow.models import mlp
    from undertow.train import Ensemble, Member

    (inputs, *_), (labels, *_) = _two_classes(members)
    sizes = (inputs.shape[1], members[0].width, members[0].width, 1)
    ensemble = Ensemble(
        lambda generator: mlp(sizes, bias=False, generator=generator),
        torch.nn.functional.mse_loss,
        (inputs, labels[:, None]),
        [Member(own.seed, _NORMS_LR, own.weight_decay, order="full") for own in members],
        batch_size=len(inputs),
        path="fused",
        dtype=torch.float64,
    ).train(members[0].steps)
    parameters = ensemble.parameters().values()
    squares = torch.stack([value.square().sum((1, 2)) for value in parameters], dim=1)
    rho = squares.prod(1).sqrt()
    margins = labels * ensemble.predict(inputs)[..., 0] / rho[:, None]
    decay = torch.tensor([own.weight_decay for own in members], dtype=torch.float64)
    effective = decay / 2 * rho ** (2 / squares.shape[1] - 2)
    equilibrium = margins.mean(1) / (margins.square().mean(1) + effective)
    fitted = (margins > 0).double().mean(1)
    return [
        [
            {
                "diverged": ensemble.diverged_at[e] is not None,
                "final": True,
                "norm_spread": float(squares[e].max() / squares[e].min() - 1),
                "rho": float(rho[e]),
                "equilibrium": float(equilibrium[e]),
                "fitted": float(fitted[e]),
                **{f"square_{k}": value for k, value in enumerate(squares[e].tolist(), 1)},
            }
        ]
        for e in range(len(members))
    ]


def _train_collapse(members: Sequence[Collapse]) -> list[list[dict[str, Any]]]:
    """NC1 to NC4 along training."""
    from torch.nn import functional

    from undertow import measure
    from undertow.models import mlp
    from undertow.objective import Objective
    from undertow.train import Ensemble, Member, rules

    first = members[0]
    images, labels = _images(first)
    classes = int(labels.max()) + 1
    chosen = _drawn(labels, range(classes), first.per_class, first.seed)
    # Norm 4 rather than 1: at PyTorch's initial scale unit inputs leave the outputs near zero.
    inputs, targets = 4 * images[chosen].float(), labels[chosen]
    sizes = (inputs.shape[1], *[first.width] * 3, classes)
    ensemble = Ensemble(
        lambda generator: mlp(sizes, generator=generator),
        functional.mse_loss,
        (inputs, functional.one_hot(targets, classes).float()),
        [
            Member(own.seed, _COLLAPSE_LR, own.weight_decay, _COLLAPSE_MOMENTUM, order="full")
            for own in members
        ],
        batch_size=len(inputs),
        rule=rules.momentum,
        path="fused",
    )
    records: list[list[dict[str, Any]]] = [[] for _ in members]
    for fraction in _COLLAPSE_READINGS:
        step = round(fraction * first.steps)
        ensemble.train(step - ensemble.steps_taken)
        correct = ensemble.predict(inputs).argmax(2) == targets
        for e, rows in enumerate(records):
            row: dict[str, Any] = {
                "step": step,
                "fraction": fraction,
                "final": fraction == 1,
                "diverged": ensemble.diverged_at[e] is not None,
            }
            if not row["diverged"]:
                # Cross-entropy only says how labels are read; no loss is taken.
                objective = Objective(
                    ensemble.module(e), functional.cross_entropy, (inputs, targets)
                )
                found = measure.neural_collapse(objective)
                row |= {f"nc{k}": getattr(found, f"nc{k}") for k in (1, 2, 3, 4)}
                row["accuracy"] = float(correct[e].double().mean())
            rows.append(row)
    return records


def _convolution(trial: Toeplitz) -> dict[str, Any]:
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
    return {
        "diverged": False,
        "positions": positions,
        "ratio": float(outputs.norm()) / kernel / math.sqrt(positions),
        "measured_ratio": measure.toeplitz_norm(layer, (_SIDE, _SIDE))
        / kernel
        / math.sqrt(positions),
    }


# ---- the verdict rule


def _by(frame: pl.DataFrame, expression: pl.Expr) -> dict[int, float]:
    """One number per seed."""
    values = frame.group_by("seed").agg(expression.alias("value")).drop_nulls().sort("seed")
    return dict(values.select("seed", "value").iter_rows())


def _ratio(first: dict[int, float], second: dict[int, float]) -> lab.Effect:
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    # A ratio that cannot be taken in one seed is unknown in all: the rest is no fair sample.
    sound = all(0 < value < math.inf for pair in pairs for value in pair)
    if len(pairs) < 2 or not sound:
        return lab.Effect(math.nan, (math.nan, math.nan), None, len(pairs), "too few runs")
    return lab.paired_ratio(*zip(*pairs, strict=True))


def _parts(records: pl.DataFrame) -> tuple[pl.DataFrame, ...]:
    """Records of flows, layer norms, collapse and convolutions; a kind that is missing is empty."""
    kept = records.filter(~pl.col("diverged"))
    have = set(kept.columns)
    marks = ("margin_cv", "norm_spread", "nc1", "ratio")
    return tuple(
        kept.filter(pl.col(mark).is_not_null()) if mark in have else kept.clear() for mark in marks
    )


def judge(records: pl.DataFrame, config: Config) -> Verdict:
    """Every check of the claim; the thresholds were fixed before the verdict seeds ran."""
    flows, norms, collapse, convolutions = _parts(records)
    checks = [
        *(_flow_checks(flows, config) if not flows.is_empty() else ()),
        *(_norm_checks(norms, config) if not norms.is_empty() else ()),
        *(_collapse_checks(collapse, config) if not collapse.is_empty() else ()),
        *(_convolution_checks(convolutions) if not convolutions.is_empty() else ()),
    ]
    lost, runs = (frame["trial"].n_unique() for frame in (records.filter("diverged"), records))
    wanted = len(trials(config, 0))
    ends = flows.filter("final")
    resting = int((ends["moved"] < _MOVED).sum())
    summary = f"{lost} of {wanted} runs diverged or ran out of steps and were left out."
    complete = not any(part.is_empty() for part in (flows, norms, collapse, convolutions))
    enough = runs - lost >= 0.9 * wanted and resting >= len(ends) / 2
    return decide(checks, summary, promises_verdict=config.seeds >= 8 and complete and enough)


_ERROR = (pl.col("rho") / pl.col("equilibrium") - 1).abs()


def _flow_checks(flows: pl.DataFrame, config: Config) -> list[Check]:
    plain = flows.filter(~pl.col("shuffled"), speed="scaled")
    ends = plain.filter("final")
    least, second, *_ = config.initial_rho
    *_, before, largest = config.initial_rho
    gated = flows.filter(pl.col("final"), pl.col("moved") < _MOVED)
    error = worst_over_seeds(gated, _ERROR)
    total = int(flows["final"].sum())

    def gap(high: float, low: float, decay: float) -> dict[int, float]:
        at = ends.filter(rho_decay=decay)
        pair = [pl.col("rho").filter(pl.col("initial_rho") == rho).first() for rho in (high, low)]
        return _by(at, (pair[0] / pair[1]).log().abs())

    shrunk = _ratio(gap(second, least, 0.0), gap(second, least, config.weakest))
    met = over_seeds(list(gap(largest, least, config.weakest).values()))
    begun = math.log(largest / before)
    kept = over_seeds([value / begun for value in gap(largest, before, 0.0).values()])
    return [
        check_below(
            "rho against mu / (M + lambda), error",
            error,
            bound=0.02,
            rule=f"at most 0.02, worst by seed of the {len(gated)} of {total} flows whose rho "
            f"moved by less than {_MOVED:g} in the last tenth of the time",
        ),
        check_above(
            f"log-gap of rho, no decay over lambda = {config.weakest:g}",
            shrunk,
            bound=2,
            rule=f"at least 2: starts at {second:g} and {least:g} draw together",
        ),
        check_below(
            f"log-gap of rho from {largest:g} and {least:g}, lambda = {config.weakest:g}",
            met,
            bound=0.1,
            rule=f"at most 0.1, of {math.log(largest / least):.3g} at the start: all head for one "
            "rho",
        ),
        check_above(
            f"log-gap of rho from {largest:g} and {before:g} kept without decay",
            kept,
            bound=0.8,
            rule="at least 0.8 of the gap at the start: without decay rho stays",
            control=True,
        ),
        *_margin_checks(plain, ends, config),
        *_other_flow_checks(flows, ends, config),
    ]


def _margin_checks(plain: pl.DataFrame, ends: pl.DataFrame, config: Config) -> list[Check]:
    decayed = plain.filter(rho_decay=config.weakest)
    spread = pl.col("margin_cv").log().mean().exp()  # geometric mean over the starts
    # Before it has fitted a flow's mean margin is near zero, and any fit would lower the spread.
    early = decayed.filter(pl.col("fitted") >= _FITTED, fraction=_READINGS[0])
    late = decayed.filter("final").join(early.select("trial"), on="trial", how="semi")
    fell = _ratio(_by(late, spread), _by(early, spread))
    least = ends.filter(initial_rho=config.initial_rho[0])
    decay_over_none = _ratio(
        _by(least.filter(rho_decay=config.weakest), pl.col("margin_cv").first()),
        _by(least.filter(rho_decay=0.0), pl.col("margin_cv").first()),
    )
    fitted = ends.filter(pl.col("fitted") >= _FITTED, pl.col("margin") > 0)
    power = lab.Effect(math.nan, (math.nan, math.nan), None, 0, "too few runs")
    if fitted["seed"].n_unique() > 1:
        power = lab.slope(
            np.log(fitted["rho"].to_numpy()),
            np.log(fitted["margin"].to_numpy()),
            clusters=fitted["seed"].to_list(),
        )
    return [
        check_below(
            "spread of the margins, end over early",
            fell,
            bound=0.5,
            rule=f"coefficient of variation at most 0.5 of that at {_READINGS[0]:g} of the time, "
            f"lambda = {config.weakest:g}, in the {len(early)} flows fitted by then: margins "
            "equalise",
        ),
        check_above(
            "spread of the margins, decay over none",
            decay_over_none,
            bound=1,
            rule="at least 1: it is the fit that equalises them, and decay limits the fit",
            control=True,
        ),
        check_within(
            "normalised margin's power of rho",
            power,
            -1.1,
            -0.9,
            f"-1.1 to -0.9 over {len(fitted)} fitted flows: the smaller rho, the larger the margin",
        ),
    ]


def _other_flow_checks(flows: pl.DataFrame, ends: pl.DataFrame, config: Config) -> list[Check]:
    least, largest = config.initial_rho[0], config.initial_rho[-1]
    start = ends.filter(initial_rho=least)
    rho = pl.col("rho").first()
    shuffled = _ratio(
        _by(flows.filter(pl.col("final"), pl.col("shuffled")), rho),
        _by(start.filter(rho_decay=config.middle), rho),
    )
    speed = _ratio(
        _by(flows.filter(pl.col("final"), speed="own"), rho),
        _by(start.filter(rho_decay=config.rho_decay[-1]), rho),
    )
    undecayed = ends.filter(rho_decay=0.0)
    rank = pl.col("stable_rank").first()
    low_rank = _ratio(
        _by(undecayed.filter(initial_rho=least), rank),
        _by(undecayed.filter(initial_rho=largest), rank),
    )
    return [
        check_within(
            "rho, V at its own speed over V slowed by rho^2",
            speed,
            0.98,
            1.02,
            f"0.98 to 1.02 at lambda = {config.rho_decay[-1]:g}: the scaled steps change no end",
        ),
        check_above(
            "rho, shuffled labels over true ones",
            shuffled,
            bound=1.2,
            rule=f"at least 1.2 at lambda = {config.middle:g}: no small rho without structure",
            control=True,
        ),
        check_below(
            f"stable rank without decay, rho_0 = {least:g} over {largest:g}",
            low_rank,
            bound=0.5,
            rule="at most 0.5: a small start alone gives low rank, so low rank shows no decay",
            control=True,
        ),
    ]


def _norm_checks(norms: pl.DataFrame, config: Config) -> list[Check]:
    fitted = norms.filter(pl.col("fitted") >= _FITTED)  # the layers of a dead net are equal too
    decayed, free = (fitted.filter(weight_decay=decay) for decay in (config.norms_decay, 0.0))
    equal = worst_over_seeds(decayed, pl.col("norm_spread"))
    apart = over_seeds(free.sort("seed")["norm_spread"])
    error = worst_over_seeds(decayed, _ERROR)
    return [
        check_below(
            "squared layer norms, largest over least less 1",
            equal,
            bound=0.05,
            rule=f"at most 0.05 at weight decay {config.norms_decay:g}, not normalised: "
            "they equalise",
        ),
        check_above(
            "the same without decay",
            apart,
            bound=0.15,
            rule="at least 0.15: their differences are conserved",
            control=True,
        ),
        check_below(
            "rho of trained networks against equilibrium, error",
            error,
            bound=0.02,
            rule="at most 0.02 of mu / (M + weight_decay / 2 rho^(2/L - 2)), L = 3",
        ),
    ]


def _collapse_checks(collapse: pl.DataFrame, config: Config) -> list[Check]:
    fitted = collapse.filter("final", pl.col("accuracy") >= _COLLAPSE_FIT)
    kept = collapse.join(fitted.select("trial"), on="trial", how="semi")
    decayed, free = (kept.filter(weight_decay=decay) for decay in (config.collapse_decay, 0.0))
    checks = []
    for number, bound in ((1, 0.5), (2, 0.75), (3, 0.5)):
        value = pl.col(f"nc{number}").first()
        fell = _ratio(
            _by(decayed.filter("final"), value),
            _by(decayed.filter(fraction=_COLLAPSE_READINGS[0]), value),
        )
        checks.append(
            check_below(
                f"NC{number}, end over early",
                fell,
                bound=bound,
                rule=f"at most {bound:g} of that at {_COLLAPSE_READINGS[0]:g} of the steps",
            )
        )
    nearest = over_seeds(decayed.filter("final").sort("seed")["nc4"])
    apart = _ratio(
        _by(free.filter("final"), pl.col("nc3").first()),
        _by(free.filter(fraction=_COLLAPSE_READINGS[0]), pl.col("nc3").first()),
    )
    return [
        *checks,
        check_below(
            "NC4 at the end",
            nearest,
            bound=0.01,
            rule="at most 0.01 of the samples: the net decides by the nearest class mean",
        ),
        check_above(
            "NC3 without decay, end over early",
            apart,
            bound=0.8,
            rule="at least 0.8: without decay weights and class means do not align",
            control=True,
        ),
    ]


def _convolution_checks(convolutions: pl.DataFrame) -> list[Check]:
    open_, padded = (convolutions.filter(padding=padding) for padding in (0, 1))
    off = pl.max_horizontal((pl.col("ratio") - 1).abs(), (pl.col("measured_ratio") - 1).abs())
    exact = worst_over_seeds(open_, off)
    less = over_seeds(padded.sort("seed")["ratio"])
    return [
        check_below(
            "Toeplitz norm over sqrt(positions) x kernel norm, error",
            exact,
            bound=1e-12,
            rule="at most 1e-12 without padding, from the matrix and from undertow.measure",
        ),
        check_below(
            "the same ratio with zero padding",
            less,
            bound=0.99,
            rule="at most 0.99: taps that fall on the padding do not count",
            control=True,
        ),
    ]


# ---- what a reader sees


def table(records: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Flows by lambda and start: where rho ended, and margins and rank there."""
    flows = _parts(records)[0]
    if flows.is_empty():
        return pl.DataFrame()
    return (
        flows.filter("final")
        .group_by("shuffled", "speed", "rho_decay", "initial_rho")
        .agg(
            pl.col("rho").mean(),
            pl.col("equilibrium").mean().alias("mu / (M + lambda)"),
            (pl.col("moved") < _MOVED).mean().alias("equilibrated"),
            pl.col("margin").mean().alias("mean margin"),
            pl.col("least_margin").mean().alias("least margin"),
            pl.col("margin_cv").mean().alias("margin CV"),
            pl.col("stable_rank").mean().alias("stable rank"),
            pl.col("fitted").mean(),
        )
        .rename({"rho_decay": "lambda", "initial_rho": "rho at start"})
        .sort("shuffled", "speed", "lambda", "rho at start", descending=[False, True, False, False])
    )


def figures(records: pl.DataFrame, config: Config) -> list[Figure]:
    """The charts of the report."""
    flows, norms, collapse, _ = _parts(records)
    drawn = []
    if not flows.is_empty():
        drawn += [_rho_figure(flows), _margin_figure(flows)]
    if not norms.is_empty():
        drawn.append(_norms_figure(norms))
    if not collapse.is_empty():
        drawn.append(_collapse_figure(collapse))
    return drawn


def _text(column: str) -> pl.Expr:
    return pl.col(column).map_elements(lambda value: f"{value:g}", return_dtype=pl.String)


def _log(field: str, title: str) -> alt.Y:
    return alt.Y(field, scale=alt.Scale(type="log"), title=title)


def _rho_figure(flows: pl.DataFrame) -> Figure:
    rows = (
        flows.filter(~pl.col("shuffled"), speed="scaled")
        .with_columns(
            pl.format("lambda = {}", _text("rho_decay")).alias("decay"),
            _text("initial_rho").alias("rho at start"),
        )
        .sort("rho_decay", "initial_rho", "seed", "fraction")
    )
    base = alt.Chart().encode(
        x=alt.X("fraction:Q", scale=alt.Scale(type="log"), title="share of the time"),
        color=alt.Color(
            "rho at start:N",
            sort=rows["rho at start"].unique(maintain_order=True).to_list(),
            legend=alt.Legend(orient="top"),
        ),
    )
    lines = base.mark_line(opacity=0.6, strokeWidth=1).encode(
        y=_log("rho:Q", "rho"), detail="seed:N"
    )
    ends = (
        base.transform_filter("datum.final")
        .mark_point(size=60)
        .encode(y=_log("equilibrium:Q", "rho"))
    )
    chart = (
        alt.layer(lines, ends, data=rows)
        .properties(width=150, height=240)
        .facet(
            column=alt.Column(
                "decay:N", title=None, sort=rows["decay"].unique(maintain_order=True).to_list()
            )
        )
    )
    return Figure(
        "rho",
        "With decay every start heads for the same rho",
        "rho along the flow, a line per seed; circles are the predicted mu / (M + lambda) at its "
        "end. The time is horizon / lambda, and that of the weakest decay for lambda = 0, where a "
        "large start stays large.",
        chart,
    )


def _margin_figure(flows: pl.DataFrame) -> Figure:
    rows = flows.filter(~pl.col("shuffled"), speed="scaled").with_columns(
        _text("rho_decay").alias("lambda")
    )
    order = rows.sort("rho_decay")["lambda"].unique(maintain_order=True).to_list()
    color = alt.Color("lambda:N", sort=order, legend=alt.Legend(orient="top"))
    ends = rows.filter("final", pl.col("margin") > 0)
    size = (
        alt.Chart(ends)
        .mark_point(filled=True, size=40, opacity=0.7)
        .encode(
            x=alt.X("rho:Q", scale=alt.Scale(type="log"), title="rho at the end"),
            y=_log("margin:Q", "mean normalised margin"),
            color=color,
        )
    )
    along = rows.group_by("lambda", "fraction").agg(pl.col("margin_cv").median()).sort("fraction")
    spread = (
        alt.Chart(along)
        .mark_line(point=True)
        .encode(
            x=alt.X("fraction:Q", scale=alt.Scale(type="log"), title="share of the time"),
            y=_log("margin_cv:Q", "spread of the margins (CV)"),
            color=color,
        )
    )
    return Figure(
        "margins",
        "A smaller rho is a larger margin, and fitting equalises the margins",
        "Left: mean of y f at the end against rho, a point per flow. Right: their coefficient of "
        "variation, median over starts and seeds. Without decay it falls furthest.",
        alt.hconcat(*(chart.properties(width=310, height=250) for chart in (size, spread))),
    )


def _norms_figure(norms: pl.DataFrame) -> Figure:
    columns = [name for name in norms.columns if name.startswith("square_")]
    rows = (
        norms.group_by("weight_decay")
        .agg(pl.col(name).mean().alias(f"layer {name[7:]}") for name in columns)
        .unpivot(index="weight_decay", variable_name="layer", value_name="square")
        .with_columns(pl.format("weight decay {}", _text("weight_decay")).alias("decay"))
        .sort("weight_decay", "layer")
    )
    chart = (
        alt.Chart(rows)
        .mark_bar()
        .encode(
            x=alt.X("square:Q", title="squared layer norm"),
            y=alt.Y("layer:N", title=None),
        )
        .properties(width=300, height=90)
        .facet(column=alt.Column("decay:N", title=None))
    )
    return Figure(
        "layer-norms",
        "Weight decay equalises the layers of a network that is not normalised",
        "Without decay the differences of the squared norms are those of the initial weights.",
        chart,
    )


def _collapse_figure(collapse: pl.DataFrame) -> Figure:
    rows = (
        collapse.group_by("weight_decay", "step")
        .agg(pl.col(f"nc{k}").mean().alias(f"NC{k}") for k in (1, 2, 3))
        .unpivot(index=["weight_decay", "step"], variable_name="measure", value_name="value")
        .with_columns(_text("weight_decay").alias("weight decay"))
        .sort("measure", "weight_decay", "step")
    )
    chart = (
        alt.Chart(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", title="steps"),
            y=_log("value:Q", "distance from collapse"),
            color=alt.Color("weight decay:N", legend=alt.Legend(orient="top")),
        )
        .properties(width=210, height=220)
        .facet(column=alt.Column("measure:N", title=None))
    )
    return Figure(
        "collapse",
        "Neural collapse along training, with decay and without",
        "All three are zero at collapse: NC1 is the spread within classes, NC2 the distance of the "
        "class means from a simplex, NC3 that of the weights from the class means.",
        chart,
    )


CLAIM = Claim(
    name="square-loss",
    title="The square loss with decay drives deep classifiers to one small norm",
    paper="Xu, Rangamani, Liao, Galanti and Poggio, Dynamics in Deep Classifiers trained with the "
    "Square Loss: Normalization, Low Rank, Neural Collapse and Generalization Bounds (Research, "
    "2023)",
    statement="A ReLU network is rho f_V with normalised layers. Under the square loss with a "
    "penalty lambda rho^2 the norm settles at rho = mu / (M + lambda), mu and M the means of the "
    "margins and of their squares, and it is the same small rho from every initial scale; without "
    "penalty it stays near where it began. The smaller rho, the larger the margin; margins "
    "equalise, neural collapse sets in, and complexity counts kernels, not Toeplitz matrices.",
    corrections=(
        "The equilibrium is the flow's own equation, rho' = 2 (M + lambda) (mu / (M + lambda) - "
        "rho): wherever rho rests, fitted or not, it holds. What decay adds is that rho rests at "
        "one value.",
        "Margins equalise because the loss interpolates labels of one size, faster without decay "
        "than with it, and where it does the mean normalised margin is 1 / rho: neither is a sign "
        "of the penalty. Likewise NC1 falls without decay; NC2 and NC3 need it, and in narrow nets "
        "stop well short of collapse.",
        "A small start alone lowers the stable rank, at lambda = 0 too: low rank is no evidence of "
        "decay unless the initial scale is the same.",
        "Weight decay on every layer is not lambda rho^2: its equilibrium is rho = mu / (M + "
        "weight_decay / 2 rho^(2/L - 2)) for L layers, and squared layer norms become equal.",
        "||Toeplitz||_F = sqrt(positions) ||kernel||_F holds without padding; with zero padding "
        "it is less.",
    ),
    config=Config,
    presets={
        "smoke": Config(
            samples=20,
            width=16,
            initial_rho=(1.0, 50.0),
            rho_decay=(0.0, 1e-3, 1e-2),
            horizon=2.0,
            norms_steps=500,
            collapse_per_class=8,
            collapse_width=32,
            collapse_steps=600,
            seeds=2,
        ),
        "small": Config(),
        "paper": Config(
            data="cifar10",
            classes=(1, 2),
            samples=10_000,
            width=1024,
            rho_decay=(0.0, 1e-5, 1e-4, 1e-3, 1e-2),
            collapse_per_class=5_000,
            collapse_width=1024,
            collapse_steps=50_000,
        ),
    },
    costs={"smoke": "14 s", "small": "3 min on two cores", "paper": "days on two cores"},
    trials=trials,
    group=group,
    group_size=48,
    run=run,
    judge=judge,
    figures=figures,
    table=table,
)
