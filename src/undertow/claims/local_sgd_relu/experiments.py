"""Widths, periods, partitions, near-duplicates, batches, images: each beside its round map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from undertow import predict
from undertow.claims import stream
from undertow.claims.local_sgd_relu import LocalSgdRelu
from undertow.claims.local_sgd_relu.deep import Deep, follow_deep
from undertow.claims.local_sgd_relu.networks import BATCHES, samples, started
from undertow.claims.local_sgd_relu.readings import rates, read_at, residual_error
from undertow.data import Images
from undertow.lab import Experiment, grid, seeds

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Tensor

    from undertow.train import TwoLayerRounds

EARLY = 2  # rounds in which a pair's first rate is read
_DRAWS = 1024  # units a sample, where flips are forecast

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Network:
    """A network of two layers, its clients and their samples.

    `data`: random (labels too); clusters, of two classes; random but for two samples at an `angle`,
    of two labels (opposite, or the two exchanged) or of one (alike); images. `partition`: iid or
    by_class. `scaling`: kernel (f = sum_j a_j relu, lr ~ 1 / m) or mean-field (m^-1/2 times that,
    lr ~ 1). `batch_size` 0 is all of a client's samples. `counted`: whether flips are forecast.
    """

    data: str
    width: int
    period: int
    strength: float
    rounds: int
    samples: int
    features: int
    clients: int
    images: Images
    seed: int
    partition: str = "iid"
    scaling: str = "kernel"
    batch_size: int = 0
    angle: float = 0.0
    counted: bool = False

    @property
    def gain(self) -> float:
        """|a_j|."""
        return 1.0 if self.scaling == "kernel" else self.width**-0.5

    @property
    def lr(self) -> float:
        """Of the weights."""
        return self.strength / (self.width * self.gain**2 * self.period)


def experiments(knobs: LocalSgdRelu, seed: int) -> dict[str, Experiment]:
    """Every kind of run, each on samples and from a start that its seed draws."""
    own = seeds(seed, knobs.seeds)
    usual: dict[str, Any] = {"data": "random", "width": knobs.middle}
    wide = usual | {"width": knobs.wide}
    narrower = knobs.widths[:-1]
    widths = [usual | {"width": width, "counted": True} for width in knobs.widths]
    widths += [usual | {"width": width, "scaling": "mean-field"} for width in narrower]
    periods = [usual | {"period": period} for period in knobs.periods]
    hard = {"strength": knobs.strong, "period": knobs.long, "rounds": max(4, knobs.rounds // 4)}
    split = wide | hard | {"data": "clusters"}
    late = usual | {"strength": 4 * knobs.strength}
    soon = wide | {"rounds": EARLY}
    pairs = [late | {"data": "opposite", "angle": angle} for angle in knobs.angles]
    pairs.append(late | {"data": "alike", "angle": knobs.angles[0]})
    pairs += [
        soon | {"data": data, "angle": angle}
        for data in ("opposite", "exchanged")
        for angle in knobs.angles
    ]
    parts = ("iid", "by_class")
    shown = [
        hard | {"data": "images", "width": width, "partition": partition, "features": 0}
        for width in narrower
        for partition in parts
    ]
    few = late | {"width": knobs.wide, "batch_size": knobs.batch_size}
    few["rounds"] = max(4, knobs.rounds // 2)

    def networks(cells: list[dict[str, Any]], *together: str, size: int = 16) -> Experiment:
        trials = grid(Network, knobs, cell=[{"batch_size": 0} | cell for cell in cells], seed=own)
        return Experiment(trials, follow, ("seed", *together), group_size=size)

    return {
        "widths": networks(widths, size=8),
        "periods": networks(periods),
        "partitions": networks(
            [split | {"partition": part} for part in parts], "partition", size=8
        ),
        "pairs": networks(pairs, "angle", "data"),
        "batches": networks([few], size=8),
        "images": networks(shown, "partition"),
        "deep": Experiment(
            grid(Deep, knobs, width=knobs.deep, partition=["by_class"], seed=own),
            follow_deep,
            ("seed",),
            group_size=16,
        ),
    }


def follow(trials: Sequence[Network]) -> list[Rows]:
    """Networks of one width side by side, a record for every reading."""
    import torch

    from undertow.train import two_layer_rounds

    first = trials[0]
    x, y, rows = (torch.stack(own) for own in zip(*map(samples, trials), strict=True))
    starts = (started(trial.width, x.shape[2], trial.seed) for trial in trials)
    weights, signs = (torch.stack(own) for own in zip(*starts, strict=True))
    gain = torch.tensor([trial.gain for trial in trials])
    batches = torch.stack(list(map(drawn, trials, rows)), 1) if first.batch_size else None
    course = two_layer_rounds(
        weights.float(),
        signs.float() * gain[:, None],
        x.float(),
        y.float(),
        rows,
        period=first.period,
        lr=torch.tensor([trial.lr for trial in trials]),
        rounds=first.rounds,
        read=read_at(first.rounds),
        batches=batches,
    )
    return [
        records(trial, x[run].numpy(), rows[run].numpy(), course, run, batches)
        for run, trial in enumerate(trials)
    ]


def drawn(trial: Network, rows: Tensor) -> Tensor:
    """Rows of each client's batches, with replacement, `[rounds, K, period, batch]`."""
    import torch

    generator = stream(trial.seed, BATCHES)
    size = (trial.rounds, trial.clients, trial.period, trial.batch_size)
    chosen = torch.randint(rows.shape[1], size, generator=generator)
    return rows[torch.arange(trial.clients)[:, None, None], chosen]


# ---- records


def records(
    trial: Network,
    x: Float64[np.ndarray, "n d"],
    rows: np.ndarray,
    course: TwoLayerRounds,
    run: int,
    batches: Tensor | None,
) -> Rows:
    """What was read of one run, beside what its round map says."""
    seen = None if batches is None else batches[:, run].numpy()
    path = course.residuals[:, run].double().numpy()
    if not np.isfinite(path).all():
        return [{"round": trial.rounds, "diverged": True}]
    kernel = predict.arc_cosine_kernel(x)
    known = forecast(trial, kernel, rows, path[0], batches=seen)
    losses = (path**2).mean(1) / 2
    facts: dict[str, Any] = {"diverged": False} | rates(losses, known.losses)
    facts["residual_error"] = residual_error(path, known.residuals)
    facts |= other_maps(trial, x, rows, path, seen) | pair_rates(trial, x, rows, path, known)
    places = [place - 1 for place in read_at(trial.rounds)]
    counted, drifts_known = flips(trial, x, rows, path[0], course, run)
    shown = zip(places, course.distances, course.gradient_drifts, drifts_known, strict=True)
    return [
        facts
        | counted
        | {
            "round": place + 1,
            "loss": losses[place + 1],
            "expected": known.losses[place + 1],
            "distance": float(distances[run]),
            "distance_expected": known.distances[place].mean(),
            "drift": float(drifts[run]),
            "drift_expected": known.gradient_drifts[place].mean(),
            "drift_forecast": forecasts,
        }
        for place, distances, drifts, forecasts in shown
    ]


def forecast(
    trial: Network,
    kernel: np.ndarray,
    rows: Any,
    start: np.ndarray,
    *,
    batches: np.ndarray | None = None,
) -> predict.KernelRounds:
    """The round map's course, from a run's own residuals at the start."""
    return predict.local_sgd_rounds(
        trial.width * trial.gain**2 * kernel,
        clients=rows,
        period=trial.period,
        lr=trial.lr,
        rounds=trial.rounds,
        residual=start,
        batches=batches,
    )


def other_maps(
    trial: Network, x: np.ndarray, rows: np.ndarray, path: np.ndarray, seen: np.ndarray | None
) -> dict[str, float | None]:
    """Errors of the residuals by maps that are not the run's own: with the kernel of a network
    whose units see all, of the other partition, of averaging at every step, of all samples.
    """
    kernel = predict.arc_cosine_kernel(x)
    others: dict[str, tuple[np.ndarray, Any]] = {}
    if trial.data in ("random", "images"):
        others["linear"] = x @ x.T / 2, rows
    if trial.data in ("clusters", "images"):
        others["partition"] = kernel, other_partition(trial)
        others["parallel"] = kernel, [np.arange(len(x))]
    if seen is not None:
        others["full"] = kernel, rows
    names = ("linear", "partition", "parallel", "full")
    found: dict[str, float | None] = dict.fromkeys(f"error_{name}" for name in names)
    for name, (own, clients) in others.items():
        known = forecast(trial, own, clients, path[0]).residuals
        found[f"error_{name}"] = residual_error(path, known)
    return found


def other_partition(trial: Network) -> np.ndarray:
    """The clients' rows, had the samples been dealt out the other way."""
    other = "by_class" if trial.partition == "iid" else "iid"
    return samples(replace(trial, partition=other))[2].numpy()


def pair_rates(
    trial: Network,
    x: np.ndarray,
    rows: np.ndarray,
    path: np.ndarray,
    known: predict.KernelRounds,
) -> dict[str, float | None]:
    """The first rate at which two near samples of opposite labels are told apart, and the late one
    of the kernel whose units see both or neither.
    """
    if trial.data not in ("opposite", "exchanged"):
        return dict.fromkeys(("first", "first_expected", "late_merged"))
    apart, expected = (at[:, 0] - at[:, 1] for at in (path, known.residuals))
    first = min(EARLY, trial.rounds)
    merged = forecast(trial, merged_kernel(x), rows, path[0]).losses
    return {
        "first": float(np.log(np.abs(apart[0] / apart[first]))) / first,
        "first_expected": float(np.log(np.abs(expected[0] / expected[first]))) / first,
        "late_merged": rates(merged, merged)["late"],
    }


def merged_kernel(x: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "n n"]:
    """The kernel of units that see both of the first two samples or neither of them."""
    seen = x.copy()
    seen[:2] = (x[0] + x[1]) / np.linalg.norm(x[0] + x[1])
    return predict.arc_cosine_kernel(seen) * (x @ x.T) / (seen @ seen.T)


def flips(
    trial: Network,
    x: np.ndarray,
    rows: np.ndarray,
    start: np.ndarray,
    course: TwoLayerRounds,
    run: int,
) -> tuple[dict[str, float | None], Sequence[float | None]]:
    """Shares of signs that differ, since the start and between clients, and their forecasts; and
    those of the gradient drift at each reading.
    """
    places = [place - 1 for place in read_at(trial.rounds)]
    found: dict[str, float | None] = {
        "flips": float(course.since_start[run]),
        "between": float(course.flips[:, run].mean()),
        "flips_expected": None,
        "between_expected": None,
    }
    if not trial.counted:
        return found, [None] * len(places)
    known = predict.relu_flips(
        x,
        width=trial.width,
        init_std=math.sqrt(2 / trial.width),
        clients=rows,
        period=trial.period,
        lr=trial.lr,
        rounds=trial.rounds,
        residual=start,
        draws=_DRAWS,
        seed=trial.seed + 2**32 * trial.width,
    )
    found["flips_expected"] = float(known.since_start[-1])
    found["between_expected"] = float(known.between[places].mean())
    return found, known.gradient_drifts[places].mean(1).tolist()
