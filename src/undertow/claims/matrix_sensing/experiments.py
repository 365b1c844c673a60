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

CURVE_EVERY = 25  # steps between the points of a curve
_EIGENVALUES_EVERY = 4  # steps
_SEARCH_LR = 0.1  # of the search for minimisers, at most

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

    problems = draw(trials)
    dim, rank = trials[0].dim, len(trials[0].spectrum)
    minimisers = every_minimiser(problems, rank)
    known = forecasts(problems, minimisers)
    for place, own in enumerate(minimisers):
        loss = problems.loss(place)
        greedy = train.greedy_low_rank(loss, dim, symmetric=True, max_rank=rank)
        for row, phase, found in zip(known[place], greedy.phases, own, strict=True):
            row["to_greedy"] = float((phase.matrix - found).norm() / found.norm())
    return approach(problems, minimisers, known)


def with_every_entry(trials: Sequence[Descent]) -> list[Rows]:
    """The same where the minimisers are truncations of X*."""
    problems = draw(trials)
    return approach(problems, problems.truncated, forecasts(problems, problems.truncated))


def before_the_last(trials: Sequence[Descent]) -> list[Rows]:
    """Closest approaches, times and forecasts of the phases of a rank below that of X*."""
    problems = draw(trials)
    minimisers = every_minimiser(problems, len(trials[0].spectrum) - 1)
    return approach(problems, minimisers, forecasts(problems, minimisers))


def without_gap(trials: Sequence[Descent]) -> list[Rows]:
    """Closest approaches to Z_1 alone."""
    problems = draw(trials)
    return approach(problems, every_minimiser(problems, 1), [[{}] for _ in problems.targets])


def recovery(trials: Sequence[Descent]) -> list[Rows]:
    """How far from X* a run ends, relative to it, and how much of what is measured it misses."""
    import torch

    problems = draw(trials)
    ended = problems.descend()
    errors, loss = problems.errors(ended), problems.loss()
    left = (loss(ended) / loss(torch.zeros_like(ended))).sqrt()
    return [
        [{"final_error": float(errors[place]), "missed": float(left[place])}]
        for place in problems.places
    ]


# ---- problems, and descent on them


@dataclass(frozen=True)
class Problems:
    """The problems of a group of trials, one for each seed, and the runs on each."""

    targets: Float64[Tensor, "seeds dim dim"]  # X*
    truncated: Float64[Tensor, "seeds phases dim dim"]  # X* cut to rank 1, 2, ...
    # The quadratic forms of the measurements (`train.sensor_gram`); none for all entries.
    grams: Float64[Tensor, "seeds coordinates coordinates"] | None
    starts: Float64[Tensor, "seeds runs dim width"]
    places: tuple[tuple[int, int], ...]  # of each trial, its seed and its run
    trial: Descent  # one of them; they differ in scale and seed alone

    def loss(self, place: int | None = None) -> Callable[[Tensor], Tensor]:
        """Of matrices `[seeds, runs, dim, dim]`, each on its seed's problem; or on one seed's."""
        from undertow import train

        if place is None:
            return train.recovery_loss(self.targets[:, None], self.grams)
        return train.recovery_loss(
            self.targets[place], None if self.grams is None else self.grams[place]
        )

    def descend(self, observe: Any = None) -> Float64[Tensor, "seeds runs dim dim"]:
        """U U^T at the end of every run."""
        from undertow import train

        lr, steps = self.trial.lr, self.trial.steps
        factors = train.factored_descent(
            self.loss(), self.starts, lr=lr, steps=steps, observe=observe
        )
        return factors @ factors.mT

    def errors(self, ended: Float64[Tensor, "seeds runs dim dim"]) -> Float64[Tensor, "seeds runs"]:
        """The distances from X*, relative to it."""
        missed = (ended - self.targets[:, None]).flatten(2).norm(dim=-1)
        return missed / self.targets.flatten(1).norm(dim=-1)[:, None]


def draw(trials: Sequence[Descent]) -> Problems:
    """The problems of the trials' seeds, with as many runs on each as the most that one has."""
    import torch

    from undertow import train

    first, double = trials[0], torch.float64
    scales: dict[int, list[float]] = {}
    places = []
    for trial in trials:
        runs = scales.setdefault(trial.seed, [])
        places.append((list(scales).index(trial.seed), len(runs)))
        runs.append(trial.scale)
    most = max(map(len, scales.values()))
    targets, grams, starts = [], [], []
    for seed, own in scales.items():
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(2, first.dim, first.dim, generator=generator, dtype=double)
        vectors = torch.linalg.qr(drawn[0])[0][:, : len(first.spectrum)]
        targets.append((vectors * torch.tensor(first.spectrum, dtype=double)) @ vectors.T)
        if first.measurements:
            sensors = train.gaussian_sensors(first.measurements, first.dim, generator=generator)
            grams.append(train.sensor_gram(sensors))
        start = drawn[1][:, : first.width]
        # A seed with fewer runs repeats its last, which is not read.
        sizes = torch.tensor(own + own[-1:] * (most - len(own)), dtype=double)
        starts.append(sizes[:, None, None] * (start / torch.linalg.matrix_norm(start, 2)))
    ranks = range(1, len(first.spectrum) + 1)
    cut = [train.truncated_svd(one, rank, positive=True) for one in targets for rank in ranks]
    return Problems(
        torch.stack(targets),
        torch.stack(cut).view(len(targets), len(ranks), first.dim, first.dim),
        torch.stack(grams) if grams else None,
        torch.stack(starts),
        tuple(places),
        first,
    )


# ---- saddles, and how near descent comes to them


def every_minimiser(problems: Problems, most: int) -> Float64[Tensor, "seeds phases dim dim"]:
    """Z_1, Z_2, ... of every problem, up to this rank."""
    import torch

    return torch.stack([minimiser(problems, rank) for rank in range(1, most + 1)], 1)


def minimiser(problems: Problems, rank: int) -> Float64[Tensor, "seeds dim dim"]:
    """Z_rank: the lowest that descent finds, from the truncation of X* and from random starts."""
    import torch

    from undertow import train

    lr = min(_SEARCH_LR, 0.5 / max(problems.trial.spectrum))
    generator = torch.Generator().manual_seed(rank)
    guess = problems.truncated[:, rank - 1]
    return train.rank_minimiser(problems.loss(), guess, rank, lr=lr, generator=generator)


def forecasts(
    problems: Problems, minimisers: Float64[Tensor, "seeds phases dim dim"]
) -> list[Rows]:
    """Of each seed and phase what the saddles' spectra say; without sensors no way turns."""
    from undertow import predict, train

    found: list[Rows] = []
    for place, own in enumerate(minimisers):
        spectra = train.saddle_spectra(problems.loss(place), list(own))
        phases = predict.saddle_phases(
            spectra.rates.numpy(), spectra.relaxations.numpy(), lr=problems.trial.lr
        )
        found.append([asdict(phase) for phase in phases])
        if problems.grams is None:
            found[-1] = [row | {"exponent": row["early_exponent"]} for row in found[-1]]
    return found


def approach(
    problems: Problems,
    minimisers: Float64[Tensor, "seeds phases dim dim"],
    known: Sequence[Rows],
) -> list[Rows]:
    """Of each run a row for each phase: how near it came and when, and what is known of it."""
    import torch

    from undertow import train

    phases = minimisers.shape[1]
    truncated = problems.truncated[:, :phases]
    near = train.ClosestApproach(torch.cat([minimisers, truncated], 1)[:, None], every=CURVE_EVERY)
    eigenvalues = torch.linalg.eigvalsh(minimisers).flip(-1)
    halves = eigenvalues.diagonal(dim1=1, dim2=2) / 2  # the s-th of Z_s
    learned = train.EigenvaluesLearned(halves[:, None], every=_EIGENVALUES_EVERY)

    def watch(step: int, matrices: Tensor) -> None:
        near(step, matrices)
        learned(step, matrices)

    errors = problems.errors(problems.descend(watch))
    sizes = minimisers.flatten(2).norm(dim=-1)
    apart = (minimisers - truncated).flatten(2).norm(dim=-1)
    curves = near.curve[..., :phases, :] / sizes[:, None, :, None]
    found = []
    for place, run in problems.places:
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
