"""Gradient descent on U U^T from starts of many sizes, and the saddles that it is held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from undertow.claims.matrix_sensing import MatrixSensing
from undertow.lab import Experiment, grid, rows_of, seeds

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Tensor

    from undertow.train import SensingProblems

CURVE_EVERY = 25  # steps between the points of a curve
_EIGENVALUES_EVERY = 4  # steps

Rows = list[dict[str, Any]]
Axes = dict[str, Iterable[Any]]


@dataclass(frozen=True)
class Descent:
    """One run of gradient descent on U U^T; without measurements every entry is measured."""

    dim: int
    spectrum: tuple[float, ...]
    measurements: int
    width: int
    scale: float
    lr: float
    steps: int
    seed: int


def experiments(knobs: MatrixSensing, seed: int) -> dict[str, Experiment]:
    """Runs over scales, narrow ones too, over numbers of measurements, and controls."""
    own, rank, half = seeds(seed, knobs.seeds), len(knobs.spectrum), [knobs.steps // 2]

    def batched(run: Callable[[Sequence[Descent]], list[Rows]], **axes: Iterable[Any]) -> Any:
        trials = grid(Descent, knobs, **({"width": [knobs.dim], "seed": own} | axes))
        return Experiment(trials, run, together=("scale", "seed"), group_size=36)

    flat: Axes = {"spectrum": [knobs.degenerate], "scale": [knobs.degenerate_scale]}
    narrow: Axes = {"width": [rank - 1], "scale": (1.0, *knobs.narrow_scales)}
    amounts: Axes = {"measurements": knobs.amounts, "scale": [min(knobs.scales)]}
    recovered: Axes = {"measurements": knobs.recoveries, "scale": (1.0, knobs.recovery_scale)}
    return {
        "sensing": batched(with_sensors, scale=(1.0, *knobs.scales)),
        "identity": batched(with_every_entry, measurements=[0], scale=knobs.identity_scales),
        "narrow": batched(before_the_last, **narrow, steps=half),
        "amounts": batched(before_the_last, **amounts, steps=half),
        "recovered": batched(recovery, **recovered, lr=[2 * knobs.lr], steps=half),
        "degenerate": batched(without_gap, **flat, steps=half),
    }


def with_sensors(trials: Sequence[Descent]) -> list[Rows]:
    """Closest approaches and times, with greedy learning's phases and the saddles' forecasts."""
    from undertow import train

    group = Group.of(trials)
    dim, rank = trials[0].dim, len(trials[0].spectrum)
    minimisers = group.problems.minimisers(rank)
    known = forecasts(group, minimisers)
    for place, own in enumerate(minimisers):
        loss = group.problems.loss(place)
        greedy = train.greedy_low_rank(loss, dim, symmetric=True, max_rank=rank)
        for row, phase, found in zip(known[place], greedy.phases, own, strict=True):
            row["to_greedy"] = float((phase.matrix - found).norm() / found.norm())
    return approach(group, minimisers, known)


def with_every_entry(trials: Sequence[Descent]) -> list[Rows]:
    """The same where the minimisers are truncations of X*, and no way turns."""
    group = Group.of(trials)
    truncated = group.problems.truncated(len(trials[0].spectrum))
    known = forecasts(group, truncated)
    straight = [[row | {"exponent": row["early_exponent"]} for row in rows] for rows in known]
    return approach(group, truncated, straight)


def before_the_last(trials: Sequence[Descent]) -> list[Rows]:
    """Closest approaches, times and forecasts of the phases of a rank below that of X*."""
    group = Group.of(trials)
    minimisers = group.problems.minimisers(len(trials[0].spectrum) - 1)
    return approach(group, minimisers, forecasts(group, minimisers))


def without_gap(trials: Sequence[Descent]) -> list[Rows]:
    """Closest approaches to Z_1 alone."""
    group = Group.of(trials)
    return approach(group, group.problems.minimisers(1), [[{}] for _ in group.problems.targets])


def recovery(trials: Sequence[Descent]) -> list[Rows]:
    """How far from X* a run ends, relative to it, and how much of what is measured it misses."""
    import torch

    group = Group.of(trials)
    ended, loss = group.descend(), group.problems.loss()
    facts = {
        "final_error": group.problems.errors(ended)[group.places],
        "missed": (loss(ended) / loss(torch.zeros_like(ended))).sqrt()[group.places],
    }
    return [[row] for row in rows_of(facts)]


@dataclass(frozen=True)
class Group:
    """Trials that run as one: a problem for each seed, and as many runs on each."""

    problems: SensingProblems
    scales: Float64[Tensor, "seeds runs"]
    places: tuple[list[int], list[int]]  # of each trial, its seed and its run
    trial: Descent  # one of them; they differ in scale and seed alone

    @classmethod
    def of(cls, trials: Sequence[Descent]) -> Group:
        """Of the trials; a seed with fewer runs repeats its last, which is not read."""
        import torch

        from undertow import train

        first, scales = trials[0], dict[int, list[float]]()
        places: tuple[list[int], list[int]] = [], []
        for trial in trials:
            runs = scales.setdefault(trial.seed, [])
            places[0].append(list(scales).index(trial.seed))
            places[1].append(len(runs))
            runs.append(trial.scale)
        most = max(map(len, scales.values()))
        filled = [own + own[-1:] * (most - len(own)) for own in scales.values()]
        problems = train.sensing_problems(
            list(scales),
            first.spectrum,
            dim=first.dim,
            measurements=first.measurements,
            width=first.width,
        )
        return cls(problems, torch.tensor(filled, dtype=torch.float64), places, first)

    def descend(self, observe: Any = None) -> Float64[Tensor, "seeds runs dim dim"]:
        """U U^T at the end of every run."""
        from undertow import train

        start = self.scales[..., None, None] * self.problems.starts[:, None]
        lr, steps = self.trial.lr, self.trial.steps
        loss = self.problems.loss()
        factors = train.factored_descent(loss, start, lr=lr, steps=steps, observe=observe)
        return factors @ factors.mT


def forecasts(group: Group, minimisers: Float64[Tensor, "seeds phases dim dim"]) -> list[Rows]:
    """Of each seed and phase what the saddles' spectra say."""
    phases = group.problems.saddle_phases(minimisers, lr=group.trial.lr)
    return [[asdict(phase) for phase in own] for own in phases]


def approach(
    group: Group, minimisers: Float64[Tensor, "seeds phases dim dim"], known: Sequence[Rows]
) -> list[Rows]:
    """Of each run a row for each phase: how near it came and when, and what is known of it."""
    import torch

    from undertow import train

    phases = minimisers.shape[1]
    truncated = group.problems.truncated(phases)
    near = train.ClosestApproach(torch.cat([minimisers, truncated], 1)[:, None], every=CURVE_EVERY)
    eigenvalues = torch.linalg.eigvalsh(minimisers).flip(-1)
    halves = eigenvalues.diagonal(dim1=1, dim2=2) / 2  # the s-th of Z_s
    learned = train.EigenvaluesLearned(halves[:, None], every=_EIGENVALUES_EVERY)

    def watch(step: int, matrices: Tensor) -> None:
        near(step, matrices)
        learned(step, matrices)

    errors = group.problems.errors(group.descend(watch))
    sizes = minimisers.flatten(2).norm(dim=-1)
    apart = (minimisers - truncated).flatten(2).norm(dim=-1)
    curves = near.curve[..., :phases, :] / sizes[:, None, :, None]
    found = []
    for place, run in zip(*group.places, strict=True):
        closest, steps = near.closest[place, run], learned.steps[place, run].tolist()
        facts = {
            "final_error": float(errors[place, run]),
            "phase": list(range(1, phases + 1)),
            "closest": closest[:phases],
            "closest_step": near.steps[place, run, :phases].long(),
            "learned_step": [None if math.isnan(step) else step for step in steps],
            "closest_to_truncated": closest[phases:],
            "size": sizes[place],
            "apart": apart[place],
            "distances": curves[place, run],  # relative to the minimiser, every few steps
        }
        rows = zip(rows_of(facts), known[place], strict=True)
        found.append([row | of_phase for row, of_phase in rows])
    return found
