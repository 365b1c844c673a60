"""Gradient flow on factors learns rank after rank (Li, Luo and Lyu, arXiv 2012.09839).

From an infinitesimal start W = U U^T, or a deeper product, follows greedy low-rank learning, which
is not least nuclear norm. Tested by flows from starts down to 1e-32, each at its own adaptive
steps: their number grows with log(1 / scale), and no two starts share a time scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

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
    ratio_over_seeds,
)

if TYPE_CHECKING:
    from torch import Tensor

    from undertow.train import GreedyPhase
    from undertow.train.flows import GradientFlow

_EIGENVALUES, _DEGENERATE = (4.0, 2.0, 1.0), (4.0, 4.0, 1.0)
_DIM, _DEEP_DIM = 6, 4
_DEPTHS = (2, 3, 4)
# Of the counterexamples: rows and columns, what is observed (the last two are the strength R), the
# trace of the rank-one completion and the least trace.
_RANK_ONE: dict[str, Callable[[float], float]] = {
    "3x3": lambda strength: strength**2 + 2,
    "4x4": lambda strength: 2 * strength**2 + 2,
}
_LEAST: dict[str, Callable[[float], float]] = {
    "3x3": lambda strength: 4 * strength - 2 if strength > 2 else strength**2 + 2,
    "4x4": lambda strength: 4 * strength,
}
_SCALES = (1e-1, 1e-2, 1e-4, 1e-8)
_OBSERVED = {"3x3": ((0, 1), (0, 2), (1, 2)), "4x4": ((0, 1), (0, 2), (1, 3))}
_STARTS = ((2, 1e-3), (2, 1e-6), (3, 1e-3), (4, 1e-3))  # depth and scale, on whole matrices
_DEEP_METHODS = tuple(f"depth {depth}, {scale:g}" for depth, scale in _STARTS)
_METHODS = ("nuclear norm", *_DEEP_METHODS)
_INTERPOLATES = 1e-2
# Traces over the least: what rank one must exceed, and what an ordinary small start must not.
_APART, _ALIKE = 1.2, 1.35
_ORDINARY = 1e-4  # this start, of the 4x4 counterexample
_SMALL_ENOUGH = 1e-10  # the smallest start of a study that may give a verdict
_WIDE_ENOUGH = 1e-6  # and of the 4x4 counterexample, to the power of the relative gap
# Half of a real matrix is seen; of one of rank two, so few that least nuclear norm misses it.
_SEEN = {"low-rank": 0.25, "digits": 0.5, "tumours": 0.5}


@dataclass(frozen=True)
class Config:
    """Knobs.

    Attributes:
        scales: sizes of the start, in units of W, of the trajectories held against greedy learning.
        deep_scales: of products of 2, 3 and 4 factors.
        ratios: second over first eigenvalue of these products' target; 1 is a control.
        strength: R of the 3x3 counterexample, 3.6 or more.
        weak_strength: its control, at most 2, where least nuclear norm has rank one, too.
        wide_strength: R of the 4x4 counterexample, 2.3 or more.
        wide_scales: sizes of its start, 1e-4 among them.
        matrices: low-rank, digits, tumours; what is completed from a part of its entries.
        rows: of these matrices.
        columns: likewise.
        seeds: independent repetitions.
    """

    scales: tuple[float, ...] = (1e-4, 1e-8, 1e-12, 1e-16, 1e-20)
    deep_scales: tuple[float, ...] = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10)
    ratios: tuple[float, ...] = (0.5, 0.7, 0.9, 1.0)
    strength: float = 4.0
    weak_strength: float = 1.5
    wide_strength: float = 3.0
    wide_scales: tuple[float, ...] = (1e-2, 1e-4, 1e-8, 1e-16, 1e-24, 1e-32)
    matrices: tuple[str, ...] = ("low-rank", "digits", "tumours")
    rows: int = 40
    columns: int = 30
    seeds: int = 10

    def __post_init__(self) -> None:
        for name in ("scales", "deep_scales", "wide_scales"):
            scales = getattr(self, name)
            falling = all(later < earlier for earlier, later in pairwise(scales))
            if len(scales) < 3 or not falling or not 1e-40 <= scales[-1] <= scales[0] <= 0.1:
                raise ValueError(
                    f"{name} must hold three or more numbers that fall within 0.1 and 1e-40, "
                    f"got {scales}"
                )
        if 0.7 not in self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ValueError(f"ratios must lie in (0, 1] and hold 0.7, got {self.ratios}")
        if not 0 < self.weak_strength <= 2:
            raise ValueError(
                f"weak_strength must be above 0 and at most 2, got {self.weak_strength}"
            )
        for name, problem, above, apart in (
            ("strength", "3x3", 2, _APART),
            ("wide_strength", "4x4", 1, _ALIKE),
        ):
            strength = getattr(self, name)
            ratio = _RANK_ONE[problem](strength) / _LEAST[problem](strength) if strength else 0.0
            if strength <= above or ratio <= apart:
                raise ValueError(
                    f"{name} must be larger, so that rank one has more than {apart:g} times the "
                    f"least trace: {strength:g} gives {ratio:.3g}"
                )
        if not any(_is_ordinary(scale) for scale in self.wide_scales):
            raise ValueError(
                f"wide_scales must hold {_ORDINARY:g}, where the control looks, got "
                f"{self.wide_scales}"
            )
        if self.seeds < 2:
            raise ValueError(f"seeds must be at least 2, got {self.seeds}")
        unknown = set(self.matrices) - set(_SEEN)
        if unknown or not self.matrices:
            raise ValueError(
                "matrices must name one or more of low-rank, digits and tumours, got "
                f"{self.matrices}"
            )


def _is_ordinary(scale: float) -> bool:
    return abs(scale / _ORDINARY - 1) < 1e-6


def _small_enough(config: Config) -> bool:
    """Whether the smallest starts are in the limit that the rules speak of."""
    root = math.sqrt(1 + 4 * config.wide_strength**2)
    gap = 2 / (1 + root)  # of the eigenvalues (root + 1) / 2 and (root - 1) / 2
    return (
        max(config.scales[-1], config.deep_scales[-1]) <= _SMALL_ENOUGH
        and config.wide_scales[-1] ** gap <= _WIDE_ENOUGH
    )


# ---- trials


@dataclass(frozen=True)
class Trajectory:
    """Flows from shrinking starts beside greedy learning, on a weighted square loss."""

    eigenvalues: tuple[float, ...]
    scales: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Product:
    """A product of factors learns a matrix of rank two: what the second has when the first is half.

    `ratio` is the second eigenvalue of the target, the first being one.
    """

    depth: int
    ratio: float
    scales: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Counterexample:
    """A completion whose rank-one solution has not the least nuclear norm."""

    problem: str
    strength: float
    scales: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Completion:
    """A matrix completed from a part of its entries by products of factors and by convex means."""

    matrix: str
    rows: int
    columns: int
    seed: int


Trial = Trajectory | Product | Counterexample | Completion


def trials(config: Config, seed: int) -> list[Trial]:
    """Trajectories, products, counterexamples and completions, with their controls."""
    found: list[Trial] = []
    for own in (seed * 10_000 + index for index in range(config.seeds)):
        found += [Trajectory(kind, config.scales, own) for kind in (_EIGENVALUES, _DEGENERATE)]
        found += [
            Product(depth, ratio, config.deep_scales, own)
            for depth in _DEPTHS
            for ratio in config.ratios
        ]
        found += [
            Counterexample("3x3", config.strength, _SCALES, own),
            Counterexample("3x3", config.weak_strength, _SCALES[-1:], own),
            Counterexample("4x4", config.wide_strength, config.wide_scales, own),
        ]
        found += [Completion(name, config.rows, config.columns, own) for name in config.matrices]
    return found


def group(trial: Trial) -> Hashable:
    """Trials of one kind and seed run together."""
    return (type(trial).__name__, trial.seed)


def run(group_trials: Sequence[Trial]) -> list[list[dict[str, Any]]]:
    """Run one group and return the records of each trial."""
    return [_run(trial) for trial in group_trials]


def _run(trial: Trial) -> list[dict[str, Any]]:
    if isinstance(trial, Trajectory):
        return _trajectory(trial)
    if isinstance(trial, Product):
        return _product(trial)
    if isinstance(trial, Counterexample):
        return _counterexample(trial)
    return _completion(trial)


def _trajectory(trial: Trajectory) -> list[dict[str, Any]]:
    """Distance of each phase, and its time, from every start."""
    import torch

    from undertow.train import flows, greedy_low_rank

    generator = torch.Generator().manual_seed(trial.seed)
    turn, _ = torch.linalg.qr(torch.randn(_DIM, _DIM, generator=generator, dtype=torch.float64))
    basis = turn[:, : len(trial.eigenvalues)]
    target = basis * torch.tensor(trial.eigenvalues, dtype=torch.float64) @ basis.T
    start = torch.randn(_DIM, _DIM, generator=generator, dtype=torch.float64) / math.sqrt(_DIM)
    weights = 0.5 + torch.rand(_DIM, _DIM, generator=generator, dtype=torch.float64)
    weights = (weights + weights.T) / 2
    if trial.eigenvalues == _DEGENERATE:  # and stays so under equal weights alone
        weights = torch.ones_like(weights)

    def loss(matrix: Tensor) -> Tensor:
        return (weights * (matrix - target).square()).sum() / 2

    rate = float(torch.linalg.eigvalsh(weights * target)[-1])
    greedy = greedy_low_rank(
        loss, _DIM, symmetric=True, scale=1e-12, max_rank=len(trial.eigenvalues), keep_path=True
    )
    reached = [float(loss(torch.zeros_like(target))), *(phase.loss for phase in greedy.phases)]
    halves = [(before + after) / 2 for before, after in pairwise(reached)]
    predicted = _exponents(loss, greedy.phases)

    def at_level(level: float) -> Callable[[Tensor], Tensor]:
        return lambda factor: loss(factor @ factor.T) - level

    rows = []
    for scale in trial.scales:
        flow = flows.gradient_flow(
            lambda factor: loss(factor @ factor.T) / 2,
            1e4,
            start=math.sqrt(scale) * start,
            rtol=1e-10,
            dense=True,
            events=[
                *(flows.Event(at_level(level), direction=-1) for level in halves),
                flows.Event(at_level(1e-8), terminal=True),
            ],
        )
        rows += [
            {
                "experiment": "trajectory",
                "scale": scale,
                "phase": phase.rank,
                "rate": 2 * rate,
                "predicted": predicted.get(phase.rank),
                "time": float(times[0]),
                "distance": _distance(flow, float(times[0]), phase, level),
                "steps": flow.steps,
                "degenerate": trial.eigenvalues == _DEGENERATE,
            }
            for phase, level, times in zip(greedy.phases, halves, flow.event_times, strict=False)
            if len(times)
        ]
    return rows


def _exponents(loss: Callable[[Tensor], Tensor], phases: Sequence[GreedyPhase]) -> dict[int, float]:
    """Powers of the scale with which the distances of the first two phases fall, by our derivation.

    When the first is learned, the second direction has the amplitude b = scale^(gap / 2), with the
    relative gap of the eigenvalues. The second phase escapes a time ln(1/b) / eigenvalue later; by
    then the first has come to rest up to what is left at its slowest rate, and another direction,
    of amplitude b at most, has grown as well. The slower of these is the second phase's power for
    the smallest starts, and the least slope before.
    """
    import torch

    first, second = phases[0], phases[1]
    values, vectors = torch.linalg.eigh(first.matrix)
    factor = vectors[:, -1] * values[-1].sqrt()
    gradient = torch.func.grad(lambda u: loss(torch.outer(u, u)) / 2)
    hessian = torch.func.jacrev(gradient)(factor)
    slowest = float(torch.linalg.eigvalsh(hessian)[0])
    amplitude = first.gap / first.eigenvalue / 2
    return {1: amplitude, 2: amplitude * min(second.gap, slowest) / second.eigenvalue}


def _distance(flow: GradientFlow, crossed: float, phase: GreedyPhase, level: float) -> float:
    """Largest distance of a flow from a greedy phase while this is learned, at the best shift.

    Relative to the phase's matrix, over three growth times before and after half of it is learned.
    """
    import torch
    from scipy.optimize import minimize_scalar

    path, at = phase.path, flow.at
    assert path is not None
    assert at is not None
    middle = float(path.times[int((path.losses < level).double().argmax())])
    unit = 1 / phase.eigenvalue
    near = (path.times - middle).abs() < 3 * unit
    since, matrices = path.times[near] - middle, path.matrices[near]
    end = float(flow.times[-1])

    def apart(shift: float) -> float:
        times = (since + shift).clamp(0, end)
        factors = at(times.tolist())
        return float(torch.linalg.matrix_norm(factors @ factors.mT - matrices).max())

    found = minimize_scalar(
        apart,
        bounds=(crossed - unit / 2, crossed + unit / 2),
        method="bounded",
        options={"xatol": 1e-9 * unit},
    )
    return float(found.fun) / float(torch.linalg.matrix_norm(phase.matrix))


def _chain(factors: Sequence[Tensor] | Tensor) -> Tensor:
    """Their product, from left to right."""
    whole = factors[0]
    for factor in factors[1:]:
        whole = whole @ factor
    return whole


def _product(trial: Product) -> list[dict[str, Any]]:
    """The second singular value, and the time, when half of the first has been learned."""
    import torch

    from undertow.train import flows

    generator = torch.Generator().manual_seed(trial.seed)
    target = torch.zeros(_DEEP_DIM, _DEEP_DIM, dtype=torch.float64)
    target[0, 0], target[1, 1] = 1.0, trial.ratio
    sample = torch.randn(_DEEP_DIM, 2 * _DEEP_DIM, generator=generator, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(sample @ sample.T / (2 * _DEEP_DIM))

    rows = []
    for scale in trial.scales:
        # Balanced factors, equal roots of a positive matrix of this scale.
        root = vectors * (scale * values) ** (1 / trial.depth) @ vectors.T
        flow = flows.gradient_flow(
            lambda factors: (_chain(factors) - target).square().sum() / 2,
            1e12,
            start=root.expand(trial.depth, -1, -1).contiguous(),
            rtol=1e-9,
            events=[
                flows.Event(
                    lambda factors: torch.linalg.matrix_norm(_chain(factors), 2) - 0.5,
                    terminal=True,
                )
            ],
        )
        if flow.stopped == "event":
            singular = torch.linalg.svdvals(_chain(flow.parameters[-1]))
            rows.append(
                {
                    "experiment": "product",
                    "scale": scale,
                    "time": float(flow.times[-1]),
                    "second": float(singular[1]),
                    "steps": flow.steps,
                }
            )
    return rows


def _counterexample(trial: Counterexample) -> list[dict[str, Any]]:
    """Trace and rank of what the flow ends at, beside greedy learning and least nuclear norm."""
    import torch

    from undertow import train
    from undertow.train import flows

    size = int(trial.problem[0])
    observed = torch.zeros(size, size, dtype=torch.float64)
    for (row, column), value in zip(
        _OBSERVED[trial.problem], (1.0, trial.strength, trial.strength), strict=True
    ):
        observed[row, column] = observed[column, row] = value
    mask = observed != 0
    loss = train.completion_loss(observed, mask)
    least = train.nuclear_norm_completion(observed, mask, positive=True, rtol=1e-5)
    greedy = train.greedy_low_rank(loss, size, symmetric=True)
    values = torch.linalg.eigvalsh(observed).flip(0)
    generator = torch.Generator().manual_seed(trial.seed)
    start = torch.randn(size, size, generator=generator, dtype=torch.float64) / math.sqrt(size)
    rows = []
    for scale in trial.scales:
        flow = flows.gradient_flow(
            lambda factor: loss(factor @ factor.T) / 2,
            1e6,
            start=math.sqrt(scale) * start,
            rtol=1e-9,
            gradient_tolerance=1e-8,
        )
        eigenvalues = torch.linalg.eigvalsh(flow.parameters[-1] @ flow.parameters[-1].T).flip(0)
        rows.append(
            {
                "experiment": "counterexample",
                "scale": scale,
                "trace": float(eigenvalues.sum()),
                "second_over_first": float(eigenvalues[1].clamp_min(0) / eigenvalues[0]),
                "loss": float(flow.losses[-1]),
                "least_trace": float(least.nuclear_norm),
                "greedy_trace": float(greedy.matrix.trace()),
                "first_gap": 1 - float(values[1] / values[0]),
                "steps": flow.steps,
            }
        )
    return rows


def _completion(trial: Completion) -> list[dict[str, Any]]:
    """Hold-out error and effective rank where each method interpolates, and at its best stop."""
    import torch

    from undertow import train

    generator = torch.Generator().manual_seed(trial.seed)
    matrix = _matrix(trial, generator)
    part = torch.rand(matrix.shape, generator=generator)
    known, chosen_by, held_out = (
        part < _SEEN[trial.matrix],
        (part > 0.5) & (part < 0.75),
        part > 0.75,
    )

    def record(method: str, matrices: Tensor, scale: float | None, steps: int) -> dict[str, Any]:
        def error(entries: Tensor) -> Tensor:
            missed = ((matrices - matrix) * entries).square().sum((-2, -1))
            return (missed / (matrix * entries).square().sum()).sqrt()

        best, held = int(error(chosen_by).argmin()), error(held_out)
        return {
            "experiment": "completion",
            "method": method,
            "scale": scale,
            "missed": float(error(known)[-1]),
            "error": float(held[-1]),
            "best_error": float(held[best]),
            "effective_rank": _effective_rank(matrices[-1]),
            "steps": steps,
        }

    penalties = np.geomspace(0.5, 1e-3, 12).tolist()
    paths = [
        train.nuclear_norm_completion(matrix, known, penalty=penalty, rtol=1e-4)
        for penalty in [*penalties, 0.0]
    ]
    fitted = torch.stack([path.matrix for path in paths])
    rows = [record(_METHODS[0], fitted, None, sum(path.iterations for path in paths))]
    for (depth, scale), method in zip(_STARTS, _DEEP_METHODS, strict=True):
        flow, matrices = _deep_completion(matrix, known, depth, scale, generator)
        rows.append(record(method, matrices, scale, flow.steps))
    return rows


def _matrix(trial: Completion, generator: Any) -> Tensor:
    """A matrix `[rows, columns]` of mean zero and spectral norm one."""
    import torch

    shape, double = (trial.rows, trial.columns), torch.float64
    if trial.matrix == "low-rank":
        left, right = (
            torch.randn(size, 2, generator=generator, dtype=double) / math.sqrt(size)
            for size in shape
        )
        whole = left @ right.T
        return whole / torch.linalg.matrix_norm(whole, 2)
    if trial.matrix == "digits":
        from undertow import data

        table = data.load("digits").train_inputs.flatten(1).double()
        table = table[:, table.std(0) > 0.3]
    else:
        from sklearn.datasets import load_breast_cancer

        # Lengths, areas and their spreads: logarithms, since radius and area say the same.
        table = torch.from_numpy(load_breast_cancer().data)
        table = torch.log(table + 1e-3 * table.mean(0))
        table = (table - table.mean(0)) / table.std(0)
    rows = torch.randperm(len(table), generator=generator)[: trial.rows]
    columns = torch.randperm(table.shape[1], generator=generator)[: trial.columns]
    if (len(rows), len(columns)) != shape:
        raise ValueError(f"{trial.matrix} has at most {tuple(table.shape)} entries, got {shape}")
    whole = table[rows][:, columns]
    whole = whole - whole.mean()
    return whole / torch.linalg.matrix_norm(whole, 2)


def _deep_completion(
    matrix: Tensor, known: Tensor, depth: int, scale: float, generator: Any
) -> tuple[GradientFlow, Tensor]:
    """The flow of a product of factors until it interpolates, and its matrices on the way."""
    import torch

    from undertow import train
    from undertow.train import flows

    rows, columns = matrix.shape
    shapes = [(rows, columns), *[(columns, columns)] * (depth - 1)]
    sizes = [math.prod(shape) for shape in shapes]
    size = scale ** (1 / depth) / math.sqrt(columns)
    start = size * torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
    loss = train.completion_loss(matrix, known)
    level = _INTERPOLATES**2 * float(loss(torch.zeros_like(matrix)))

    def whole(flat: Tensor) -> Tensor:
        return _chain(
            [part.reshape(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        )

    flow = flows.gradient_flow(
        lambda flat: loss(whole(flat)),
        np.geomspace(1, 1e5, 150).tolist(),
        start=start,
        rtol=1e-4,
        atol=1e-5 * size,
        events=[flows.Event(lambda flat: loss(whole(flat)) - level, terminal=True)],
    )
    return flow, torch.stack([whole(flat) for flat in flow.parameters])


def _effective_rank(matrix: Tensor) -> float:
    """Exponential of the entropy of the singular values' shares."""
    import torch

    singular = torch.linalg.svdvals(matrix)
    shares = singular / singular.sum()
    return float(torch.special.entr(shares).sum().exp())


# ---- the verdict rule


def judge(records: pl.DataFrame, config: Config) -> Verdict:
    """Every check of the claim; the thresholds were fixed before the verdict seeds ran."""
    checks = [
        *_trajectory_checks(_of(records, "trajectory")),
        *_product_checks(_of(records, "product")),
        *_counterexample_checks(_of(records, "counterexample"), config),
        *_completion_checks(_of(records, "completion"), config),
    ]
    smallest = min(*config.scales, *config.wide_scales)
    summary = f"{len(records):,} flows and phases, from starts down to {smallest:g}."
    small = _small_enough(config)
    if not small:
        summary += " That is not small enough for a verdict."
    return decide(checks, summary, promises_verdict=config.seeds >= 8 and small)


def _of(records: pl.DataFrame, experiment: str) -> pl.DataFrame:
    return records.filter(pl.col("experiment") == experiment)


def _slopes(frame: pl.DataFrame, column: str) -> dict[int, float]:
    """Of each seed, the slope of log(column) on log(scale) over its three smallest scales."""
    found = {}
    for (seed,), own in frame.sort("scale").group_by("seed", maintain_order=True):
        last = own.head(3)
        if len(last) == 3 and (last[column] > 0).all():
            x, y = np.log(last["scale"].to_numpy()), np.log(last[column].to_numpy())
            found[int(str(seed))] = float(np.polyfit(x, y, 1)[0])
    return dict(sorted(found.items()))


def _value(frame: pl.DataFrame, column: str) -> dict[int, float]:
    """Of each seed, its first value."""
    firsts = frame.group_by("seed").agg(pl.col(column).first()).sort("seed")
    return dict(firsts.select("seed", column).iter_rows())


def _share(frame: pl.DataFrame, holds: pl.Expr) -> lab.Effect:
    each = frame.group_by("seed").agg(holds.all().alias("holds"))
    return lab.proportion(int(each["holds"].sum()), len(each))


def _trajectory_checks(flows: pl.DataFrame) -> list[Check]:
    simple = flows.filter(~pl.col("degenerate"))
    first = simple.filter(phase=1)
    slopes, predicted = _slopes(first, "distance"), _value(first, "predicted")
    falls = (
        simple.sort("scale", descending=True)
        .group_by("seed", "phase", maintain_order=True)
        .agg((pl.col("distance").last() / pl.col("distance").first()).alias("left"))
    )
    share = _share(falls, pl.col("left") < 0.5)
    # ln(1 / scale) / rate later: of e^(rate x time), the slope is -1.
    grown = first.with_columns((pl.col("rate") * pl.col("time")).exp().alias("grown"))
    escapes = [-slope for slope in _slopes(grown, "grown").values()]
    lost = flows.filter("degenerate", phase=1).filter(pl.col("scale") == pl.col("scale").min())
    return [
        check_within(
            "phase 1: exponent of the distance over predicted",
            ratio_over_seeds(slopes, predicted),
            0.85,
            1.15,
            "0.85 to 1.15 of half the relative gap, from the three smallest starts",
        ),
        check_above(
            "phase 2: exponent of the distance over its least",
            ratio_over_seeds(
                _slopes(simple.filter(phase=2), "distance"),
                _value(simple.filter(phase=2), "predicted"),
            ),
            bound=0.9,
            rule="at least 0.9: a sum of powers has no slope below the least",
        ),
        Check(
            "distance of every phase falls",
            share.value,
            share.interval,
            "below half from the largest start to the smallest, in every seed",
            passed=share.value == 1.0,
            refuted=share.interval[1] < 0.5,
        ),
        check_within(
            "escape time over ln(1/scale) / (2 lambda_1)",
            over_seeds(escapes),
            0.98,
            1.02,
            "0.98 to 1.02, as a slope",
        ),
        check_above(
            "distance at the smallest start, equal eigenvalues",
            over_seeds(list(_value(lost, "distance").values())),
            bound=0.2,
            rule="at least 0.2: without a gap there is no greedy direction to follow",
            control=True,
        ),
    ]


def _product_checks(flows: pl.DataFrame) -> list[Check]:
    def effect(depth: int, ratio: float, column: str) -> lab.Effect:
        own = flows.filter(depth=depth, ratio=ratio)
        return over_seeds(list(_slopes(own, column).values()))

    checks = [
        check_within(
            "depth 2: exponent of the second singular value",
            effect(2, 0.7, "second"),
            0.28,
            0.32,
            "0.28 to 0.32 where lambda_2 / lambda_1 = 0.7",
        ),
        *(
            check_above(
                f"depth {depth}: exponent of the second singular value",
                effect(depth, 0.7, "second"),
                bound=0.9,
                rule="at least 0.9 (theory: 1) where depth 2 has 0.3",
            )
            for depth in (3, 4)
        ),
        *(
            check_within(
                f"depth {depth}: exponent of the escape time",
                effect(depth, 0.7, "time"),
                2 / depth - 1 - 0.02,
                2 / depth - 1 + 0.02,
                f"-(1 - 2/{depth}) within 0.02",
            )
            for depth in (3, 4)
        ),
    ]
    if flows.filter(ratio=1.0).is_empty():
        return checks
    return [
        *checks,
        check_above(
            "depth 3: exponent without a gap",
            effect(3, 1.0, "second"),
            bound=0.9,
            rule="at least 0.9: it does not depend on the gap",
        ),
        check_within(
            "depth 2: exponent without a gap",
            effect(2, 1.0, "second"),
            -0.02,
            0.02,
            "within 0.02 of 0: both are learned at once",
            control=True,
        ),
    ]


def _counterexample_checks(flows: pl.DataFrame, config: Config) -> list[Check]:
    strong = flows.filter(pl.col("strength") == config.strength, pl.col("problem") == "3x3")
    weak = flows.filter(pl.col("strength") == config.weak_strength, pl.col("problem") == "3x3")
    larger = flows.filter(pl.col("problem") == "4x4")
    tiny, large = strong.filter(scale=_SCALES[-1]), strong.filter(scale=_SCALES[0])
    tiniest = larger.filter(pl.col("scale") == pl.col("scale").min())
    ordinary = larger.filter((pl.col("scale") / _ORDINARY - 1).abs() < 1e-6)
    rank_one = _share(tiny, (pl.col("second_over_first") < 1e-4) & (pl.col("loss") < 1e-10))

    def over(frame: pl.DataFrame, least: float) -> lab.Effect:
        return over_seeds([trace / least for trace in _value(frame, "trace").values()])

    least, wide = _LEAST["3x3"](config.strength), config.wide_strength
    return [
        check_above(
            f"3x3 from {_SCALES[-1]:g}: trace over the least",
            over(tiny, least),
            bound=_APART,
            rule=f"at least {_APART:g} (rank one: {_RANK_ONE['3x3'](config.strength) / least:.3f})",
        ),
        Check(
            f"3x3 from {_SCALES[-1]:g}: rank one, loss zero",
            rank_one.value,
            rank_one.interval,
            "sigma_2 < 1e-4 sigma_1 and loss < 1e-10, in every seed",
            passed=rank_one.value == 1.0,
            refuted=rank_one.interval[1] < 0.5,
        ),
        check_within(
            "3x3: exponent of sigma_2 / sigma_1 over predicted",
            ratio_over_seeds(_slopes(strong, "second_over_first"), _value(strong, "first_gap")),
            0.95,
            1.05,
            "0.95 to 1.05 of 1 - lambda_2 / lambda_1",
        ),
        check_within(
            f"4x4 from {config.wide_scales[-1]:g}: trace over that of rank one",
            over(tiniest, _RANK_ONE["4x4"](wide)),
            0.99,
            1.01,
            "0.99 to 1.01",
        ),
        check_below(
            "4x4 from 1e-4: trace over the least",
            over(ordinary, _LEAST["4x4"](wide)),
            bound=_ALIKE,
            rule=f"at most {_ALIKE:g}: an ordinary small start looks like least nuclear norm "
            f"(rank one: {_RANK_ONE['4x4'](wide) / _LEAST['4x4'](wide):.2f})",
            control=True,
        ),
        check_within(
            f"3x3, R = {config.weak_strength:g}: trace over the least",
            over(weak, _LEAST["3x3"](config.weak_strength)),
            0.99,
            1.01,
            "0.99 to 1.01: there the two agree",
            control=True,
        ),
        check_above(
            f"3x3 from {_SCALES[0]:g}: sigma_2 / sigma_1",
            over_seeds(list(_value(large, "second_over_first").values())),
            bound=0.01,
            rule="at least 0.01: a large start ends at no rank one",
            control=True,
        ),
    ]


def _completion_checks(flows: pl.DataFrame, config: Config) -> list[Check]:
    def ratio(name: str, method: str, column: str) -> lab.Effect:
        # A flow that ran out of time has not learned all ranks that it would need.
        own = flows.filter(pl.col("missed") <= 1.01 * _INTERPOLATES, matrix=name)
        return ratio_over_seeds(
            _value(own.filter(method=method), column),
            _value(own.filter(method=_METHODS[0]), column),
        )

    shallower, deepest = _DEEP_METHODS[-2:]
    checks = []
    for name in config.matrices:
        if name == "low-rank":
            checks.append(
                check_below(
                    "rank two: error of depth 4 over nuclear norm",
                    ratio(name, deepest, "error"),
                    bound=1.0,
                    rule="below 1, from a quarter of the entries",
                )
            )
            continue
        checks += [
            check_below(
                f"{name}: effective rank of depth 3 over nuclear norm",
                ratio(name, shallower, "effective_rank"),
                bound=0.95,
                rule="at most 0.95 where both interpolate",
            ),
            check_above(
                f"{name}: error of depth 4 over nuclear norm",
                ratio(name, deepest, "error"),
                bound=1.0,
                rule="at least 1: a matrix that is not of low rank gains nothing by it",
                control=True,
            ),
        ]
    return checks


# ---- what a reader sees


def table(records: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Completions: where each method interpolates, and at its best stop or penalty."""
    return (
        _of(records, "completion")
        .group_by("matrix", "method")
        .agg(
            pl.col("effective_rank").mean().alias("effective rank"),
            pl.col("error").mean().alias("hold-out error"),
            pl.col("best_error").mean().alias("at the best stop"),
        )
        .sort("matrix", pl.col("method").replace_strict(_METHODS, range(len(_METHODS))))
    )


def figures(records: pl.DataFrame, config: Config) -> list[Figure]:
    """The charts of the report."""
    drawn = [
        (_trajectory_figure, "trajectory"),
        (_product_figure, "product"),
        (_counterexample_figure, "counterexample"),
        (_completion_figure, "completion"),
    ]
    frames = [(draw, _of(records, experiment)) for draw, experiment in drawn]
    return [draw(frame) for draw, frame in frames if not frame.is_empty()]


def _log_axis(channel: Any, field: str, title: str) -> Any:
    return channel(
        f"{field}:Q",
        scale=alt.Scale(type="log"),
        axis=alt.Axis(format=".0e", tickCount=5),
        title=title,
    )


def _trajectory_figure(flows: pl.DataFrame) -> Figure:
    simple = flows.filter(~pl.col("degenerate"))
    distances = (
        flows.with_columns(
            pl.when("degenerate")
            .then(pl.lit("no gap (phase 1)"))
            .otherwise("phase " + pl.col("phase").cast(pl.String))
            .alias("what")
        )
        .filter(~pl.col("degenerate") | (pl.col("phase") == 1))
        .group_by("what", "scale")
        .agg(pl.col("distance").log().mean().exp())
        .sort("what", "scale")
    )
    colour = alt.Color("what:N", legend=alt.Legend(orient="top", title=None, labelLimit=0))
    left = (
        alt.Chart(distances)
        .mark_line(point=True)
        .encode(
            x=_log_axis(alt.X, "scale", "scale of the start"),
            y=_log_axis(alt.Y, "distance", "distance from greedy learning"),
            color=colour,
        )
        .properties(width=300, height=260)
    )
    rows = []
    for phase in (1, 2):
        own = simple.filter(phase=phase)
        predicted = _value(own, "predicted")
        rows += [
            {"what": f"phase {phase}", "measured": slope, "predicted": predicted[seed]}
            for seed, slope in _slopes(own, "distance").items()
        ]
    points = pl.DataFrame(
        rows, schema={"what": pl.String, "measured": pl.Float64, "predicted": pl.Float64}
    )
    most = max([0.0, *points["predicted"], *points["measured"]])
    diagonal = alt.Chart(pl.DataFrame({"predicted": [0.0, most], "measured": [0.0, most]}))
    right = diagonal.mark_line(strokeDash=[4, 4], opacity=0.5, strokeWidth=1).encode(
        x="predicted:Q", y="measured:Q"
    ) + alt.Chart(points).mark_point(filled=True, size=60).encode(
        x=alt.X("predicted:Q", title="predicted exponent"),
        y=alt.Y("measured:Q", title="measured exponent"),
        color=colour,
    )
    return Figure(
        "trajectory",
        "From a smaller start, the flow keeps closer to greedy learning",
        "Left: largest distance while a phase is learned, at the best shift in time, geometric "
        "mean over seeds. Right: its exponent in the scale, one point a seed; phase 1 falls with "
        "half the relative gap of the eigenvalues; for phase 2 the prediction is a lower bound.",
        left | right.properties(width=260, height=260),
    )


def _product_figure(flows: pl.DataFrame) -> Figure:
    rows, theory = [], []
    for (depth, ratio), own in flows.group_by("depth", "ratio"):
        label = f"depth {depth}"
        rows += [
            {"what": label, "ratio": ratio, "slope": slope}
            for slope in _slopes(own, "second").values()
        ]
        exponent = 1 - float(str(ratio)) if depth == 2 else 1.0
        theory.append({"what": label, "ratio": ratio, "slope": exponent})
    schema = {"what": pl.String, "ratio": pl.Float64, "slope": pl.Float64}
    colour = alt.Color("what:N", legend=alt.Legend(orient="top", title=None))
    x = alt.X(
        "ratio:Q",
        title="second over first eigenvalue",
        scale=alt.Scale(zero=False),
        axis=alt.Axis(values=flows["ratio"].unique().sort().to_list(), format=".2~f"),
    )
    y = alt.Y("slope:Q", title="exponent of the second singular value")
    points = (
        alt.Chart(pl.DataFrame(rows, schema=schema).sort("what", "ratio"))
        .mark_point(size=50)
        .encode(x=x, y=y, color=colour)
    )
    lines = (
        alt.Chart(pl.DataFrame(theory, schema=schema).sort("what", "ratio"))
        .mark_line(opacity=0.6)
        .encode(x=x, y=y, color=colour)
    )
    times = (
        flows.filter(ratio=0.7)
        .group_by("depth", "scale")
        .agg(pl.col("time").mean())
        .with_columns(("depth " + pl.col("depth").cast(pl.String)).alias("what"))
        .sort("depth", "scale")
    )
    escape = (
        alt.Chart(times)
        .mark_line(point=True)
        .encode(
            x=_log_axis(alt.X, "scale", "scale of the start"),
            y=_log_axis(alt.Y, "time", "time until half of the first is learned"),
            color=colour,
        )
        .properties(width=260, height=260)
    )
    return Figure(
        "product",
        "Three factors or more need no gap, and pay with time",
        "Left: what the second direction has when the first is half learned falls as a power of "
        "the scale; lines are the theory (1 - lambda_2 / lambda_1 at depth 2, otherwise 1), points "
        "the seeds. Right: the time that it takes, logarithmic at depth 2.",
        (lines + points).properties(width=300, height=260) | escape,
    )


def _counterexample_figure(flows: pl.DataFrame) -> Figure:
    strongest = flows.filter(pl.col("strength") == pl.col("strength").max().over("problem"))
    strengths = dict(strongest.group_by("problem").agg(pl.col("strength").first()).iter_rows())
    bounds = pl.DataFrame(
        [
            {"problem": problem, "what": what, "trace": trace[problem](strength)}
            for problem, strength in sorted(strengths.items())
            for what, trace in (("rank one", _RANK_ONE), ("least nuclear norm", _LEAST))
        ]
    )
    x = _log_axis(alt.X, "scale", "scale of the start")
    y = alt.Y("trace:Q", scale=alt.Scale(zero=False), title="trace")
    data = pl.concat([strongest.select("problem", "scale", "trace"), bounds], how="diagonal")
    chart = alt.layer(
        alt.Chart()
        .mark_rule(strokeDash=[4, 4])
        .encode(y=y, color=alt.Color("what:N", legend=alt.Legend(orient="top", title=None)))
        .transform_filter("isValid(datum.what)"),
        alt.Chart().mark_point(size=40).encode(x=x, y=y).transform_filter("isValid(datum.scale)"),
        data=data,
    ).properties(width=280, height=240)
    return Figure(
        "counterexample",
        "Less nuclear norm was to be had, and is not taken",
        "Trace of what gradient flow ends at, one point a seed, between that of the rank-one "
        "completion and the least there is. The 4x4 problem has a small relative gap (0.28): from "
        "1e-4 it still looks like least nuclear norm.",
        chart.facet(column=alt.Column("problem:N", title=None)).resolve_scale(
            x="independent", y="independent"
        ),
    )


def _completion_figure(flows: pl.DataFrame) -> Figure:
    rows = (
        flows.group_by("matrix", "method")
        .agg(pl.col("effective_rank").mean(), pl.col("error").mean(), pl.col("best_error").mean())
        .unpivot(index=["matrix", "method"], variable_name="what")
        .with_columns(
            pl.col("what").replace_strict(
                {
                    "effective_rank": "effective rank",
                    "error": "hold-out error",
                    "best_error": "hold-out error, best stop",
                }
            )
        )
        .sort("matrix", "what", "method")
    )
    chart = (
        alt.Chart(rows)
        .mark_bar()
        .encode(
            x=alt.X("value:Q", title=None),
            y=alt.Y(
                "method:N",
                title=None,
                sort=list(_METHODS),
            ),
            color=alt.Color("method:N", legend=None),
            row=alt.Row("matrix:N", title=None),
            column=alt.Column("what:N", title=None),
        )
        .properties(width=190, height=90)
        .resolve_scale(x="independent")
    )
    return Figure(
        "completion",
        "Lower rank with depth, and lower error only where the matrix is of low rank",
        "Completions where each method interpolates what it saw. From one scale the effective rank "
        "falls with depth on every matrix; the error does so on the matrix of rank two alone.",
        chart,
    )


CLAIM = Claim(
    name="greedy-low-rank",
    title="Gradient flow on factors learns rank after rank, and does not minimise nuclear norm",
    paper="Li, Luo and Lyu, Towards Resolving the Implicit Bias of Gradient Descent for Matrix "
    "Factorization: Greedy Low-Rank Learning (ICLR 2021, arXiv 2012.09839)",
    statement="From an infinitesimal start, gradient flow on W = U U^T follows greedy low-rank "
    "learning: it leaves each saddle along the top eigenvector of -grad f(W) and comes to rest at "
    "the next rank. It can end at more nuclear norm than necessary. With three factors or more it "
    "does so from far larger starts, whatever the gap of the eigenvalues.",
    corrections=(
        "The distance of the first phase falls as scale^((1 - lambda_2 / lambda_1) / 2), scale "
        "being that of W: the second direction enters W by its product with the first.",
        "The exponent of the second phase is at least that of the first, times the lesser of two: "
        "its own relative gap, and the slowest rate at which the first comes to rest over its "
        "top eigenvalue. The time between two escapes is short.",
        "An ordinary small start looks like least nuclear norm: at 1e-4 the 4x4 counterexample is "
        "still nearer to it than to rank one, and 1e-16 is needed to see rank one.",
        "Lower rank is not lower error: on real matrices that are not of low rank, depth 3 and 4 "
        "complete worse than least nuclear norm.",
    ),
    config=Config,
    presets={
        "smoke": Config(
            scales=(1e-2, 1e-3, 1e-4),
            deep_scales=(1e-2, 1e-3, 1e-4),
            ratios=(0.7,),
            wide_scales=(1e-2, 1e-4, 1e-8),
            matrices=("low-rank",),
            rows=16,
            columns=20,
            seeds=2,
        ),
        "small": Config(),
        "paper": Config(
            scales=(1e-4, 1e-8, 1e-12, 1e-16, 1e-20, 1e-24),
            deep_scales=(1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12),
            seeds=50,
        ),
    },
    costs={"smoke": "20 s", "small": "2 min on two cores", "paper": "15 min on two cores"},
    trials=trials,
    group=group,
    group_size=12,
    run=run,
    judge=judge,
    figures=figures,
    table=table,
)
