"""Incremental learning in matrix sensing (Jin, Li, Lyu, Du and Lee, arXiv 2301.11500).

Gradient descent on U U^T from a start of size a passes the minimisers of rank 1, 2, ... of the
measured loss, the closer the smaller a. How close and when is predicted from the spectra at those
saddles.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

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

Kind = Literal["sensing", "identity", "degenerate", "few", "narrow"]

_SEARCH_LR, _SEARCH_STEPS, _SEARCH_STARTS = 0.1, 20_000, 3
_AT_REST = 1e-13  # the largest change of an entry in 50 steps of the search for minimisers
_ROUNDING = 1e-12  # closest approaches below are rounding
_EIGENVALUES_EVERY = 4  # steps
_POINTS = 5  # scales that the power law is fitted to, the smallest above rounding
_LAST = 3  # scales that the exponent in the limit is fitted to
_SMALL = 1e-2  # from here down a scale counts as small


@dataclass(frozen=True)
class Config:
    """Knobs.

    Attributes:
        dim: rows of U.
        spectrum: eigenvalues of X*, in descending order.
        measurements: gaussian sensors.
        scales: sizes of the start; 1 is added as a control.
        identity_scales: of the runs in which the measurements are all entries.
        narrow_scale: of the runs whose U has fewer columns than the rank of X*.
        degenerate: eigenvalues of X* in the control without a gap.
        degenerate_scales: of that control.
        few_measurements: sensors in the control that has too few.
        lr: step size of gradient descent.
        steps: of it.
        seeds: independent X*, sensors and starts; fewer than 17 cannot show a share of 0.8.
    """

    dim: int = 20
    spectrum: tuple[float, ...] = (3.0, 2.0, 1.0)
    measurements: int = 2000
    scales: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
    identity_scales: tuple[float, ...] = (1e-2, 1e-4, 1e-6, 1e-8)
    narrow_scale: float = 1e-4
    degenerate: tuple[float, ...] = (2.0, 2.0, 1.0)
    degenerate_scales: tuple[float, ...] = (1e-4, 1e-6, 1e-8)
    few_measurements: int = 40
    lr: float = 0.01
    steps: int = 7_500
    seeds: int = 24

    def __post_init__(self) -> None:
        for name in ("spectrum", "degenerate"):
            values = getattr(self, name)
            if not 2 <= len(values) <= self.dim or min(values) <= 0:
                raise ValueError(f"{name} must hold 2 to dim positive eigenvalues, got {values}")
            if list(values) != sorted(values, reverse=True):
                raise ValueError(f"{name} must descend, got {values}")
        for name in ("scales", "identity_scales", "degenerate_scales"):
            values = getattr(self, name)
            if len(values) < 2 or not all(0 < value < 1 for value in values):
                raise ValueError(f"{name} must hold two or more sizes below 1, got {values}")
        if self.narrow_scale not in self.scales:
            raise ValueError(
                f"narrow_scale must be one of scales {self.scales}, where recovery from enough "
                f"measurements is read, got {self.narrow_scale}"
            )
        largest = max(*self.spectrum, *self.degenerate)
        if not 0 < self.lr * largest < 0.5:
            raise ValueError(
                f"lr must be above 0 and below 1 / (2 x {largest:g}), the largest eigenvalue of "
                f"spectrum and degenerate, got {self.lr}"
            )
        for name, least in (
            ("measurements", 1),
            ("few_measurements", 1),
            ("steps", 2),
            ("seeds", 2),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


# ---- trials


@dataclass(frozen=True)
class Descent:
    """One run of gradient descent on U U^T."""

    kind: Kind
    dim: int
    spectrum: tuple[float, ...]
    measurements: int
    width: int
    scale: float
    lr: float
    steps: int
    curve: bool
    seed: int


def trials(config: Config, seed: int) -> list[Descent]:
    """Runs over scales with sensors and without, too narrow ones, and two controls."""
    rank = len(config.spectrum)
    plan: list[tuple[Kind, tuple[float, ...], int, int, tuple[float, ...]]] = [
        ("sensing", config.spectrum, config.measurements, config.dim, (1.0, *config.scales)),
        ("identity", config.spectrum, 0, config.dim, config.identity_scales),
        (
            "degenerate",
            config.degenerate,
            config.measurements,
            config.dim,
            config.degenerate_scales,
        ),
        ("few", config.spectrum, config.few_measurements, config.dim, (config.narrow_scale,)),
        *(
            ("narrow", config.spectrum, config.measurements, width, (config.narrow_scale,))
            for width in range(1, rank)
        ),
    ]
    return [
        Descent(
            kind,
            config.dim,
            spectrum,
            measurements,
            width,
            scale,
            config.lr,
            config.steps // 2 if kind in ("few", "narrow") else config.steps,
            curve=kind == "sensing" and index == 0,
            seed=seed * 10_000 + index,
        )
        for kind, spectrum, measurements, width, scales in plan
        for index in range(config.seeds)
        for scale in scales
    ]


def group(trial: Descent) -> Hashable:
    """Runs on one kind of problem differ in scale and seed alone."""
    return replace(trial, scale=0.0, curve=False, seed=0)


def run(group_trials: Sequence[Descent]) -> list[list[dict[str, Any]]]:
    """Run one group as one batched program, `[seeds, runs of a seed]`."""
    import torch

    from undertow import train

    seeds = list(dict.fromkeys(trial.seed for trial in group_trials))
    own = [[i for i, t in enumerate(group_trials) if t.seed == seed] for seed in seeds]
    most = max(len(positions) for positions in own)
    # Short rows are filled with repeats, whose results are not read.
    slots = [positions + positions[-1:] * (most - len(positions)) for positions in own]
    problems = [_problem(group_trials[positions[0]]) for positions in own]
    saddles = _saddles(problems, group_trials[0])
    scales = torch.tensor([[group_trials[i].scale for i in row] for row in slots]).double()
    starts = torch.stack([problem.start for problem in problems])[:, None]
    watch = _Watch(
        torch.stack([found.minimisers for found in saddles]),
        torch.stack([found.truncated for found in saddles]),
        scales.shape[1],
    )
    first = group_trials[0]
    ended = train.factored_descent(
        _losses(problems),
        scales[..., None, None] * starts,
        lr=first.lr,
        steps=first.steps,
        observe=watch,
    )
    ended = ended @ ended.mT
    rows: list[list[dict[str, Any]]] = [[] for _ in group_trials]
    for place, positions in enumerate(own):
        for column, i in enumerate(positions):
            target = problems[place].target
            error = float((ended[place, column] - target).norm() / target.norm())
            phases = watch.rows(place, column, ended[place, column])
            known = saddles[place].rows()
            rows[i] = [
                {"final_error": error} | one | two for one, two in zip(phases, known, strict=True)
            ]
            if group_trials[i].curve:
                rows[i] += watch.curve(place, column)
    return rows


@dataclass(frozen=True)
class _Problem:
    """X*, the quadratic form of the measurements (none where they are all entries), and U_0.

    The form is over `_coordinates`, a quarter of the one over all entries.
    """

    target: Tensor
    gram: Tensor | None
    start: Tensor

    def loss(self, matrix: Tensor) -> Tensor:
        error = _coordinates(matrix - self.target)
        image = error if self.gram is None else error @ self.gram
        return (image * error).sum(-1) / 2


def _coordinates(matrices: Tensor) -> Tensor:
    """The upper triangle, `[..., dim, dim]` to `[..., dim (dim + 1) / 2]`; an isometry."""
    import torch

    dim = matrices.shape[-1]
    row, column = torch.triu_indices(dim, dim)
    weights = torch.where(row == column, 1.0, math.sqrt(2)).to(matrices)
    return matrices.flatten(-2).index_select(-1, row * dim + column) * weights


def _problem(trial: Descent) -> _Problem:
    import torch

    from undertow import train

    generator = torch.Generator().manual_seed(trial.seed)
    drawn = torch.randn(2, trial.dim, trial.dim, generator=generator, dtype=torch.float64)
    vectors = torch.linalg.qr(drawn[0])[0][:, : len(trial.spectrum)]
    target = (vectors * torch.tensor(trial.spectrum, dtype=torch.float64)) @ vectors.T
    start = drawn[1][:, : trial.width]
    gram = None
    if trial.measurements:
        sensors = train.gaussian_sensors(trial.measurements, trial.dim, generator=generator)
        rows = _coordinates(sensors)
        gram = rows.T @ rows / trial.measurements
    return _Problem(target, gram, start / torch.linalg.matrix_norm(start, 2))


def _losses(problems: Sequence[_Problem]) -> Any:
    """The loss of each run on its seed's problem: `[seeds, runs, dim, dim]` to `[seeds, runs]`."""
    import torch

    targets = torch.stack([problem.target for problem in problems])[:, None]
    grams = [problem.gram for problem in problems if problem.gram is not None]
    stacked = torch.stack(grams) if grams else None

    def losses(matrices: Tensor) -> Tensor:
        errors = _coordinates(matrices - targets)
        images = errors if stacked is None else errors @ stacked
        return (images * errors).sum(-1) / 2

    return losses


class _Watch:
    """The closest approaches of every run to its saddles, kept while descent goes on."""

    def __init__(self, minimisers: Tensor, truncated: Tensor, runs: int) -> None:
        import torch

        seeds, self._phases = minimisers.shape[:2]
        self._targets = torch.cat([minimisers, truncated], 1).flatten(-2)[:, None]
        self._halves = torch.linalg.eigvalsh(minimisers)
        self._halves = torch.stack(
            [self._halves[:, s, -1 - s] / 2 for s in range(self._phases)], 1
        )[:, None]
        shape = (seeds, runs, 2 * self._phases)
        self._closest = torch.full(shape, math.inf, dtype=torch.float64)
        self._when = torch.zeros(shape, dtype=torch.float64)
        self._learned = torch.full((seeds, runs, self._phases), math.nan, dtype=torch.float64)
        self._sizes = minimisers.flatten(2).norm(dim=-1)
        self._curve: list[tuple[int, Tensor]] = []
        self._marks: set[int] = set()

    def __call__(self, step: int, matrices: Tensor) -> None:
        import torch

        distances = (matrices.flatten(-2)[:, :, None] - self._targets).norm(dim=-1)
        nearer = distances < self._closest
        self._when[nearer] = float(step)
        torch.minimum(self._closest, distances, out=self._closest)
        if step % _EIGENVALUES_EVERY == 0:
            largest = torch.linalg.eigvalsh(matrices).flip(-1)[..., : self._phases]
            self._learned[(largest > self._halves) & self._learned.isnan()] = float(step)
        if step % 25 == 0:
            self._curve.append((step, distances[..., : self._phases] / self._sizes[:, None]))

    def rows(self, place: int, column: int, ended: Tensor) -> list[dict[str, Any]]:
        targets = self._targets[place, 0]
        learned = self._learned[place, column]
        return [
            {
                "phase": s + 1,
                "closest": float(self._closest[place, column, s]),
                "closest_step": int(self._when[place, column, s]),
                "learned_step": None if bool(learned[s].isnan()) else float(learned[s]),
                "closest_to_truncated": float(self._closest[place, column, self._phases + s]),
                "end_distance": float((ended.flatten() - targets[s]).norm()),
                "size": float(self._sizes[place, s]),
                "apart": float((targets[s] - targets[self._phases + s]).norm()),
            }
            for s in range(self._phases)
        ]

    def curve(self, place: int, column: int) -> list[dict[str, Any]]:
        return [
            {"curve_step": step, "curve_phase": s + 1, "distance": float(values[place, column, s])}
            for step, values in self._curve
            for s in range(self._phases)
        ]


# ---- the saddles, and what their spectra predict


@dataclass(frozen=True)
class Forecast:
    """Of one phase: exponents of the closest approach, and time of arrival per log(1 / scale).

    `early_exponent` holds before the closest approach bends, `exponent` in the limit.
    """

    exponent: float
    early_exponent: float
    arrival: float


@dataclass(frozen=True)
class _Saddles:
    """The minimisers of each rank of a problem, and what is predicted from them."""

    minimisers: Tensor
    truncated: Tensor
    to_greedy: tuple[float, ...] | None = None
    forecasts: tuple[Forecast, ...] | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One for each phase."""
        names = ("exponent", "early_exponent", "arrival")
        return [
            {"to_greedy": None if self.to_greedy is None else self.to_greedy[s]}
            | {
                name: None if self.forecasts is None else getattr(self.forecasts[s], name)
                for name in names
            }
            for s in range(len(self.minimisers))
        ]


def _saddles(problems: Sequence[_Problem], trial: Descent) -> list[_Saddles]:
    import torch

    from undertow import train

    ranks = range(1, len(trial.spectrum) + 1)
    truncated = [
        torch.stack([train.truncated_svd(one.target, rank, positive=True) for rank in ranks])
        for one in problems
    ]
    if trial.kind == "few":  # its minimisers are not looked at
        return [_Saddles(own, own) for own in truncated]
    if trial.kind == "identity":
        forecasts = isotropic_forecasts(trial.spectrum)
        return [_Saddles(own, own, forecasts=forecasts) for own in truncated]
    minimisers = torch.stack([_minimisers(problems, truncated, rank, trial) for rank in ranks], 1)
    found = []
    for place, problem in enumerate(problems):
        if trial.kind != "sensing":
            found.append(_Saddles(minimisers[place], truncated[place]))
            continue
        greedy = train.greedy_low_rank(
            problem.loss, trial.dim, symmetric=True, max_rank=len(trial.spectrum)
        )
        apart = tuple(
            float((phase.matrix - own).norm() / own.norm())
            for phase, own in zip(greedy.phases, minimisers[place], strict=True)
        )
        rates, relaxations = saddle_spectra(problem.loss, list(minimisers[place]))
        forecasts = predict_phases(rates, relaxations)
        found.append(_Saddles(minimisers[place], truncated[place], apart, forecasts))
    return found


def _minimisers(
    problems: Sequence[_Problem], truncated: Sequence[Tensor], rank: int, trial: Descent
) -> Tensor:
    """Z_rank of each problem `[seeds, dim, dim]`: descent from X*_rank and from random starts."""
    import torch

    from undertow import train

    values, vectors = torch.linalg.eigh(torch.stack([own[rank - 1] for own in truncated]))
    informed = vectors[..., -rank:] * values[:, None, -rank:].sqrt()
    generator = torch.Generator().manual_seed(rank)
    shape = (len(problems), _SEARCH_STARTS, *informed.shape[1:])
    random = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    last: list[Tensor] = []

    def at_rest(step: int, matrices: Tensor) -> bool:
        if step % 50:
            return False
        last.append(matrices.clone())
        return len(last) > 1 and float((last[-1] - last.pop(0)).abs().max()) < _AT_REST

    losses = _losses(problems)
    ended = train.factored_descent(
        losses,
        torch.cat([informed[:, None], random], 1),
        lr=min(_SEARCH_LR, 0.5 / max(trial.spectrum)),
        steps=_SEARCH_STEPS,
        observe=at_rest,
    )
    matrices = ended @ ended.mT
    best = losses(matrices).argmin(1)
    return matrices[torch.arange(len(best)), best]


def saddle_spectra(
    loss: Any, minimisers: Sequence[Tensor]
) -> tuple[list[list[float]], list[float]]:
    """How fast directions grow at 0 and at each minimiser, and how slowly its own errors relax.

    Returns:
        The eigenvalues of -grad f in descending order at 0, Z_1, Z_2, ..., and at each Z_s the
        least eigenvalue of the Hessian of f(U U^T) / 2 over U `[dim, s]` that no rotation of
        U's columns explains.
    """
    import torch

    rates, relaxations = [], []
    for matrix in (torch.zeros_like(minimisers[0]), *minimisers):
        gradient = torch.func.grad(loss)(matrix)
        rates.append(torch.linalg.eigvalsh(-(gradient + gradient.T) / 2).flip(0).tolist())
    for rank, matrix in enumerate(minimisers, 1):
        values, vectors = torch.linalg.eigh(matrix)
        factor = vectors[:, -rank:] * values[-rank:].sqrt()
        shape = factor.shape

        def energy(flat: Tensor, shape: Any = shape) -> Tensor:
            return loss(flat.view(shape) @ flat.view(shape).T) / 2

        hessian = torch.func.jacrev(torch.func.grad(energy))(factor.flatten())
        spectrum = torch.linalg.eigvalsh((hessian + hessian.T) / 2)
        relaxations.append(float(spectrum[rank * (rank - 1) // 2]))
    return rates, relaxations


def predict_phases(
    rates: Sequence[Sequence[float]], relaxations: Sequence[float]
) -> tuple[Forecast, ...]:
    """What the spectra at the saddles say of each phase, for small scales a.

    In units of log(1 / a), direction j has size -1 at the start and grows at the j-th largest rate
    of each saddle while the flow stays there. Direction s arrives when its size reaches 0; the
    next is then at -g. A time t later it adds a^(2 g) e^(2 v t), with v the largest rate at Z_s,
    and the errors within rank s are c e^(-k t), from the way to Z_s, and a^g e^(-k t), from mixing
    with the next direction, with k the slowest relaxation. The sum is least where two parts meet:
    at a^(2 g (k + v) / (k + 2 v)) as long as a^g is above c, and at a^(2 g k / (k + 2 v)) beyond.
    """
    forecasts, now = [], 0.0
    sizes = np.full(len(relaxations) + 1, -1.0)
    for s, k in enumerate(relaxations):
        growth = np.maximum(rates[s][: len(sizes) - s], 0.0)
        stay = -sizes[s] / growth[0]
        sizes[s:] += growth * stay
        now += stay
        g, v = -float(sizes[s + 1]), max(rates[s + 1][0], 0.0)
        forecasts.append(
            Forecast(2 * g * k / (k + 2 * v), 2 * g * (k + v) / (k + 2 * v), float(now))
        )
    return tuple(forecasts)


def isotropic_forecasts(spectrum: Sequence[float]) -> tuple[Forecast, ...]:
    """The same where every entry is measured, so that c = 0: 2 (x_s - x_s+1) / (x_s + x_s+1)."""
    following = (*spectrum[1:], 0.0)
    exponents = [2 * (a - b) / (a + b) for a, b in zip(spectrum, following, strict=True)]
    return tuple(
        Forecast(exponent, exponent, 1 / value)
        for exponent, value in zip(exponents, spectrum, strict=True)
    )


# ---- the verdict rule


def _phases(records: pl.DataFrame, kind: str) -> pl.DataFrame:
    return records.filter(kind=kind).filter(pl.col("phase").is_not_null())


def power_laws(rows: pl.DataFrame) -> pl.DataFrame:
    """Of each seed and phase: slope and R^2 of log closest approach on log scale, and the limit.

    Fitted to the smallest scales above rounding; `limit` is the slope over the last of them, and
    `time` that of the learned step on log(1 / scale), in units of 1 / lr.
    """
    predicted = ("exponent", "early_exponent", "arrival")
    fits = []
    for (seed, phase), own in rows.group_by("seed", "phase", maintain_order=True):
        small = own.filter(pl.col("scale") < 1).sort("scale")
        kept = small.filter(pl.col("closest") > _ROUNDING).head(_POINTS)
        learned = small.filter(pl.col("scale") <= _SMALL, pl.col("learned_step").is_not_null())
        slope, fit = _slope(kept["scale"].log().to_numpy(), kept["closest"].log().to_numpy())
        last = kept.head(_LAST)
        limit, _ = _slope(last["scale"].log().to_numpy(), last["closest"].log().to_numpy())
        time, _ = _slope(
            -learned["scale"].log().to_numpy(),
            (learned["learned_step"] * own["lr"][0]).to_numpy(),
        )
        fits.append(
            {
                "seed": seed,
                "phase": phase,
                "slope": slope,
                "fit": fit,
                "limit": limit,
                "time": time,
                **{name: own[name][0] for name in predicted},
            }
        )
    return pl.DataFrame(fits, schema_overrides=dict.fromkeys(predicted, pl.Float64))


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The least-squares slope and R^2; NaN for fewer than two points."""
    if len(x) < 2:
        return math.nan, math.nan
    slope, offset = np.polyfit(x, y, 1)
    spread, missed = np.var(y), np.var(y - slope * x - offset)
    return float(slope), float(1 - missed / spread) if spread > 1e-20 else 0.0


def _median_departure(ratios: pl.Series) -> lab.Effect:
    """The median over seeds of ratio - 1: single problems bend beyond the smallest scale."""
    known = ratios.drop_nulls().drop_nans().to_numpy()
    return lab.paired_sign_test(known, np.ones_like(known)) if len(known) else over_seeds([])


def _worst_phase(rows: pl.DataFrame, expression: pl.Expr) -> lab.Effect:
    """The mean over seeds of each seed's worst phase; unknown where it is unknown of any phase.

    A phase that is never reached has no time and no exponent, and must not be passed over.
    """
    known = rows.select(expression.is_not_null() & expression.is_not_nan()).to_series()
    return worst_over_seeds(rows, expression) if known.all() else over_seeds([])


def _holding(cases: pl.DataFrame, holds: pl.Expr) -> lab.Effect:
    """The share of seeds in all of whose cases it holds: cases of one seed are not independent."""
    each = cases.group_by("seed").agg(holds.fill_null(value=False).all().alias("holds"))
    return lab.proportion(int(each["holds"].sum()), len(each))


def _share(name: str, cases: pl.DataFrame, holds: pl.Expr, rule: str) -> Check:
    """A prediction for every case of every seed: refuted where it holds in few seeds."""
    share = _holding(cases, holds)
    return Check(
        name,
        share.value,
        share.interval,
        rule,
        passed=share.value == 1.0,
        refuted=share.interval[1] < 0.5,
    )


def judge(records: pl.DataFrame, config: Config) -> Verdict:
    """Every check of the claim; the thresholds were fixed before the verdict seeds ran."""
    sensing = _phases(records, "sensing")
    small = sensing.filter(pl.col("scale") < 1)
    laws = power_laws(sensing)
    smallest = min(config.scales)
    checks = [
        *_approach_checks(small, laws, config),
        *_phase_checks(small, laws, config),
        *_narrow_checks(records, config),
        *_controls(records, laws, config),
    ]
    summary = (
        f"Closest approaches at a scale of {smallest:g}: "
        + ", ".join(
            f"{value:.2g} of ||Z_{s}||"
            for s, value in small.filter(scale=smallest)
            .group_by("phase")
            .agg((pl.col("closest") / pl.col("size")).mean())
            .sort("phase")
            .iter_rows()
        )
        + "."
    )
    return decide(checks, summary, promises_verdict=config.seeds >= 8)


def _approach_checks(small: pl.DataFrame, laws: pl.DataFrame, config: Config) -> list[Check]:
    rank = len(config.spectrum)
    rising = [
        check_above(
            f"slope of the closest approach to Z_{s}",
            over_seeds(laws.filter(phase=s)["slope"].drop_nans()),
            bound=0.0,
            rule="above 0: the approach is a power of the scale",
        )
        for s in range(1, rank + 1)
    ]
    before = laws.filter(pl.col("phase") < rank)
    limits = [
        check_within(
            f"exponent in the limit against the predicted, Z_{s}, median",
            _median_departure(
                before.filter(phase=s).select(pl.col("limit") / pl.col("exponent")).to_series()
            ),
            -0.1,
            0.1,
            "within 0.1 of 2 g k / (k + 2 v), from the spectra at the saddles",
        )
        for s in range(1, rank)
    ]
    bracket = pl.col("limit").is_between(0.95 * pl.col("exponent"), 1.05 * pl.col("early_exponent"))
    last = small.filter(pl.col("scale") == min(config.scales), pl.col("phase") < rank)
    ratio = pl.col("closest") / pl.col("closest_to_truncated")
    plateau = pl.col("closest_to_truncated") / pl.col("apart")
    return [
        *rising,
        check_below(
            "one minus R^2 of these power laws, worst phase",
            _worst_phase(laws, 1 - pl.col("fit")),
            bound=0.02,
            rule=f"at most 0.02 over the {_POINTS} smallest scales above rounding",
        ),
        *limits,
        check_above(
            "exponent between the predicted limit and the predicted early one",
            _holding(before, bracket),
            bound=0.8,
            rule="to 5% in every phase before the last, in at least 0.8 of the problems",
        ),
        _share(
            "closest approach to Z_s below half of that to X*_s",
            last,
            ratio < 0.5,
            "in every seed and phase before the last, at the smallest scale",
        ),
        check_within(
            "plateau of the approach to X*_s over ||Z_s - X*_s||",
            over_seeds(last.group_by("seed").agg(plateau.mean())["closest_to_truncated"]),
            0.9,
            1.1,
            "0.9 to 1.1: the truncated SVD is the wrong target",
        ),
    ]


def _phase_checks(small: pl.DataFrame, laws: pl.DataFrame, config: Config) -> list[Check]:
    early = small.filter(pl.col("scale") <= _SMALL)
    ordered = (
        early.sort("phase")
        .group_by("seed", "scale")
        .agg((pl.col("closest_step").diff().drop_nulls() > 0).all().alias("ordered"))
    )
    falling = (
        small.filter(pl.col("closest") > _ROUNDING)
        .sort("scale", descending=True)
        .group_by("seed", "phase")
        .agg((pl.col("closest").diff().drop_nulls() < 0).all().alias("falling"))
    )
    return [
        _share(
            "T_1 < T_2 < ...",
            ordered,
            pl.col("ordered"),
            f"in every seed, in all runs of scale {_SMALL:g} or less",
        ),
        check_below(
            "time of arrival against the predicted, worst phase",
            _worst_phase(laws, (pl.col("time") / pl.col("arrival") - 1).abs()),
            bound=0.05,
            rule="within 0.05: steps per log(1 / scale), from the spectra at the saddles",
        ),
        check_below(
            "greedy learning's phase s against Z_s, worst phase",
            _worst_phase(small, pl.col("to_greedy")),
            bound=1e-6,
            rule="at most 1e-6 of ||Z_s||: it finds the minimisers of each rank",
        ),
        _share(
            "descent comes nearer to greedy learning's phase with every smaller scale",
            falling,
            pl.col("falling"),
            "in every seed and phase",
        ),
    ]


def _narrow_checks(records: pl.DataFrame, config: Config) -> list[Check]:
    own = _phases(records, "narrow").filter(pl.col("phase") == pl.col("width"))
    nearness = pl.col("end_distance") / pl.col("size")
    return [
        check_below(
            "end of runs with too few columns against Z_width",
            _worst_phase(own, nearness),
            bound=1e-5,
            rule="at most 1e-5 of its norm: U of r columns ends at Z_r",
        ),
    ]


def _controls(records: pl.DataFrame, laws: pl.DataFrame, config: Config) -> list[Check]:
    rank = len(config.spectrum)
    identity = power_laws(_phases(records, "identity"))
    large = records.filter(kind="sensing", scale=1.0).filter(pl.col("phase") < rank)
    flat = power_laws(_phases(records, "degenerate")).filter(phase=1)
    few = _phases(records, "few").filter(phase=1).sort("seed")
    whole = _phases(records, "sensing").filter(
        pl.col("phase") == 1, pl.col("scale") == config.narrow_scale
    )
    typical = float(laws.filter(phase=1)["slope"].mean() or math.nan)  # type: ignore[arg-type]
    return [
        check_below(
            "every entry measured: exponents against 2 (x_s - x_s+1) / (x_s + x_s+1)",
            _worst_phase(identity, (pl.col("slope") / pl.col("exponent") - 1).abs()),
            bound=0.03,
            rule="within 0.03 in the worst phase",
            control=True,
        ),
        check_above(
            "closest approach at scale 1 over ||Z_s||, nearest phase",
            over_seeds(
                large.group_by("seed").agg((pl.col("closest") / pl.col("size")).min())["closest"]
            ),
            bound=0.15,
            rule="at least 0.15: a large start has no phases",
            control=True,
        ),
        check_below(
            "slope of the approach to Z_1 without a gap, over that with one",
            over_seeds((flat["slope"] / typical).drop_nans()),
            bound=1 / 3,
            rule="at most 1/3: without a gap phase 1 vanishes",
            control=True,
        ),
        check_above(
            f"error of recovery from {config.few_measurements} measurements",
            over_seeds(few["final_error"]),
            bound=0.3,
            rule="at least 0.3 of ||X*||",
            control=True,
        ),
        check_below(
            f"error of recovery from {config.measurements} measurements",
            over_seeds(whole["final_error"]),
            bound=1e-4,
            rule="at most 1e-4 of ||X*||",
            control=True,
        ),
    ]


# ---- what a reader sees


def table(records: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Closest approaches by phase and scale, with exponents and times beside their predictions."""
    sensing = _phases(records, "sensing")
    laws = (
        power_laws(sensing)
        .group_by("phase")
        .agg(
            pl.col("limit").mean().alias("exponent"),
            pl.col("exponent").mean().alias("predicted exponent"),
            pl.col("time").mean().alias("time"),
            pl.col("arrival").mean().alias("predicted time"),
        )
    )
    return (
        sensing.group_by("phase", "scale")
        .agg(
            (pl.col("closest") / pl.col("size")).mean().alias("closest to Z_s"),
            (pl.col("closest_to_truncated") / pl.col("size")).mean().alias("closest to X*_s"),
            pl.col("closest_step").mean().alias("at step"),
        )
        .join(laws, on="phase")
        .sort("phase", "scale", descending=[False, True])
    )


def figures(records: pl.DataFrame, config: Config) -> list[Figure]:
    """The charts of the report."""
    drawn = [_approach_figure(records, config)]
    curves = records.filter(pl.col("curve_step").is_not_null())
    if not curves.is_empty():
        drawn.append(_curve_figure(curves, config))
    drawn.append(_times_figure(_phases(records, "sensing"), config))
    return drawn


def _approach_figure(records: pl.DataFrame, config: Config) -> Figure:
    sensing = _phases(records, "sensing").filter(pl.col("phase") < len(config.spectrum))
    identity = _phases(records, "identity").filter(pl.col("phase") < len(config.spectrum))
    smallest = sensing.filter(pl.col("scale") == min(config.scales))
    anchored = sensing.filter(pl.col("scale") <= _SMALL).join(
        smallest.select("seed", "phase", pl.col("closest").alias("anchor")), on=["seed", "phase"]
    )
    predicted = anchored.with_columns(
        pl.col("anchor") * ((pl.col("scale") / min(config.scales)).log() * pl.col("exponent")).exp()
    )
    parts = {
        "to Z_s": (sensing, "closest"),
        "to X*_s (truncated SVD)": (sensing, "closest_to_truncated"),
        "predicted slope": (predicted, "anchor"),
        "to Z_s, every entry measured": (identity, "closest"),
    }
    rows = pl.concat(
        frame.group_by("phase", "scale")
        .agg((pl.col(column) / pl.col("size")).mean().alias("distance"))
        .with_columns(pl.lit(name).alias("what"), pl.format("phase {}", "phase").alias("panel"))
        for name, (frame, column) in parts.items()
    ).sort("panel", "what", "scale")
    dashes = alt.StrokeDash(
        "what:N",
        sort=list(parts),
        scale=alt.Scale(domain=list(parts), range=[[1, 0], [1, 0], [6, 4], [1, 0]]),
        legend=None,
    )
    chart = (
        alt.Chart(rows)
        .mark_line(point=True)
        .encode(
            x=alt.X(
                "scale:Q",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format=".0e"),
                title="scale of the start",
            ),
            y=alt.Y(
                "distance:Q",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(format=".0e"),
                title="closest approach / ||Z_s||",
            ),
            color=alt.Color(
                "what:N",
                sort=list(parts),
                legend=alt.Legend(orient="top", title=None, labelLimit=0, columns=2),
            ),
            strokeDash=dashes,
        )
        .properties(width=330, height=260)
        .facet(column=alt.Column("panel:N", title=None))
    )
    return Figure(
        "approach",
        "A power of the scale, toward the minimiser of the measured loss",
        "How near gradient descent comes to the minimiser of rank s. The dashed line has the slope "
        "that the spectra at the saddles predict for small scales; the truncated SVD is missed by "
        "the same amount at any scale. With every entry measured the law is another.",
        chart,
    )


def _curve_figure(curves: pl.DataFrame, config: Config) -> Figure:
    chosen = sorted({max(config.scales), 1e-3, 1e-6, min(config.scales)} & {*config.scales})
    panels = {scale: f"start of size {scale:g}" for scale in reversed(chosen)}
    rows = curves.filter(pl.col("scale").is_in(chosen)).with_columns(
        pl.format("Z_{}", "curve_phase").alias("target"),
        (pl.col("curve_step") * config.lr).alias("time"),
        pl.col("scale").replace_strict(panels).alias("panel"),
    )
    shown = rows.filter(pl.col("time") <= 0.6 * config.steps * config.lr)
    chart = (
        alt.Chart(shown)
        .mark_line()
        .encode(
            x=alt.X("time:Q", title="steps x lr"),
            y=alt.Y(
                "distance:Q",
                scale=alt.Scale(type="log", domain=[1e-4, 2], clamp=True),
                axis=alt.Axis(format=".0e"),
                title="||U U^T - Z_s|| / ||Z_s||",
            ),
            color=alt.Color("target:N", legend=alt.Legend(orient="top", title=None)),
        )
        .properties(width=150, height=200)
        .facet(column=alt.Column("panel:N", title=None, sort=list(panels.values())))
    )
    return Figure(
        "phases",
        "One minimiser after the other",
        "One problem from starts of several sizes: the smaller the start, the longer descent stays "
        "at each minimiser and the nearer it comes.",
        chart,
    )


def _times_figure(sensing: pl.DataFrame, config: Config) -> Figure:
    small = sensing.filter(
        pl.col("scale") <= _SMALL, pl.col("learned_step").is_not_null()
    ).with_columns(
        (pl.col("learned_step") * config.lr).alias("measured"),
        (-pl.col("scale").log() * pl.col("arrival")).alias("predicted"),
        pl.format("phase {}", "phase").alias("what"),
    )
    points = (
        alt.Chart(small.select("measured", "predicted", "what"))
        .mark_point(size=20)
        .encode(
            x=alt.X("predicted:Q", title="predicted: log(1 / scale) x arrival"),
            y=alt.Y("measured:Q", title="measured: steps x lr to half the eigenvalue"),
            color=alt.Color("what:N", legend=alt.Legend(orient="top", title=None)),
        )
    )
    most = float(small["predicted"].max() or 1.0)  # type: ignore[arg-type]
    diagonal = pl.DataFrame({"predicted": [0.0, most], "measured": [0.0, most]})
    line = (
        alt.Chart(diagonal)
        .mark_line(strokeDash=[6, 4], color="grey")
        .encode(x="predicted:Q", y="measured:Q")
    )
    return Figure(
        "times",
        "When each eigenvalue is learned",
        "Each point is one run. The predicted time adds up the stays at the saddles from their "
        "growth rates; the offset from the diagonal is a constant, not a slope.",
        (line + points).properties(width=420, height=320),
    )


CLAIM = Claim(
    name="matrix-sensing",
    title="Descent from a small start learns one rank after the other",
    paper="Jin, Li, Lyu, Du and Lee, Understanding Incremental Learning of Gradient Descent: A "
    "Fine-grained Analysis of Matrix Sensing (ICML 2023, arXiv 2301.11500)",
    statement="Gradient descent on U U^T from a start of size a comes close to the minimiser Z_s "
    "of rank s of the measured loss for s = 1, 2, ... in turn, and arbitrarily close as a goes to "
    "zero; with too few columns r it ends at Z_r. Greedy low-rank learning visits the same points.",
    corrections=(
        "The target of phase s is the minimiser of the measured loss, not the truncated SVD of X*: "
        "the distance to the latter stops at ||Z_s - X*_s|| at any scale.",
        "The closest approach is not one power of the scale. Its exponent bends from "
        "2 g (k + v) / (k + 2 v), which is 2 (x_s - x_s+1) / (x_s + x_s+1) where every entry is "
        "measured, to 2 g k / (k + 2 v), from the spectra at the saddles: with sensors the way to "
        "Z_s turns, which excites its slowest error k, however many measurements there are.",
    ),
    config=Config,
    presets={
        "smoke": Config(
            dim=8,
            measurements=200,
            scales=(1e-1, 1e-2, 1e-4, 1e-6),
            few_measurements=10,
            lr=0.02,
            steps=1_500,
            seeds=2,
        ),
        "small": Config(),
        "paper": Config(
            dim=50,
            spectrum=(5.0, 4.0, 3.0, 2.0, 1.0),
            degenerate=(5.0, 5.0, 3.0, 2.0, 1.0),
            measurements=12_500,
            few_measurements=250,
            steps=12_000,
            seeds=20,
        ),
    },
    costs={"smoke": "10 s", "small": "1 min on two cores", "paper": "hours on two cores"},
    trials=trials,
    group=group,
    group_size=36,
    run=run,
    judge=judge,
    figures=figures,
    table=table,
)
