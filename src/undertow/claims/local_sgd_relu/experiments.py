"""Widths, periods, partitions, near-duplicates, small batches, images: each beside its round map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from undertow import predict
from undertow.claims.local_sgd_relu import LocalSgdRelu
from undertow.claims.local_sgd_relu.networks import Course, local_sgd, samples, started
from undertow.data import Images
from undertow.lab import Experiment, grid, seeds

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Tensor

READINGS = 15  # of every run after its start, equally spaced
EARLY = 4  # rounds in which a pair's first rate is read

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Network:
    """A network of two layers, its clients and their samples.

    `data`: random (labels too); clusters, of two classes; opposite and alike, random but for two
    samples at an `angle`, of two labels or of one; images. `partition`: iid or by_class. `scaling`:
    kernel (f = sum_j a_j relu, lr ~ 1 / m) or mean-field (m^-1/2 times that, lr ~ 1). `batch_size`
    0 is all of a client's samples. `counted`: whether flips are forecast.
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
    widths = [usual | {"width": width, "counted": True} for width in knobs.widths]
    widths += [
        usual | {"width": width, "scaling": "mean-field"} for width in knobs.widths[:-1]
    ]
    periods = [usual | {"period": period} for period in knobs.periods]
    split = wide | {
        "data": "clusters",
        "strength": knobs.strong,
        "period": knobs.long,
        "rounds": max(4, knobs.rounds // 4),
    }
    late = usual | {"strength": 4 * knobs.strength}
    soon = wide | {"rounds": EARLY, "data": "opposite"}
    pairs = [late | {"data": "opposite", "angle": angle} for angle in knobs.angles]
    pairs.append(late | {"data": "alike", "angle": knobs.angles[0]})
    pairs += [soon | {"angle": angle} for angle in knobs.angles]
    shown = [
        usual | {"data": "images", "width": width, "partition": partition, "features": 0}
        for width in knobs.widths[1:]
        for partition in ("iid", "by_class")
    ]

    def networks(cells: list[dict[str, Any]], *together: str, size: int = 16) -> Experiment:
        trials = grid(Network, knobs, cell=[{"batch_size": 0} | cell for cell in cells], seed=own)
        return Experiment(trials, follow, ("seed", *together), group_size=size)

    parts = [split | {"partition": partition} for partition in ("iid", "by_class")]
    return {
        "widths": networks(widths, size=8),
        "periods": networks(periods),
        "partitions": networks(parts, "partition", size=8),
        "pairs": networks(pairs, "angle", "data"),
        "batches": networks([wide | {"batch_size": knobs.batch_size}], size=8),
        "images": networks(shown, "partition"),
    }


def read_at(rounds: int) -> list[int]:
    """The rounds after which a run is read."""
    return sorted({max(1, round(rounds * part / READINGS)) for part in range(1, READINGS + 1)})


def follow(trials: Sequence[Network]) -> list[Rows]:
    """Networks of one width side by side, a record for every reading."""
    import torch

    first = trials[0]
    x, y, rows = (torch.stack(own) for own in zip(*map(samples, trials), strict=True))
    starts = (started(trial.width, x.shape[2], trial.seed) for trial in trials)
    weights, signs = (torch.stack(own) for own in zip(*starts, strict=True))
    gain = torch.tensor([trial.gain for trial in trials])
    batches = torch.stack(list(map(drawn, trials, rows)), 1) if first.batch_size else None
    course = local_sgd(
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

    generator = torch.Generator().manual_seed(2**41 + trial.seed)
    size = (trial.rounds, trial.clients, trial.period, trial.batch_size)
    chosen = torch.randint(rows.shape[1], size, generator=generator)
    return rows[torch.arange(trial.clients)[:, None, None], chosen]


# ---- records


def records(
    trial: Network,
    x: Float64[np.ndarray, "n d"],
    rows: np.ndarray,
    course: Course,
    run: int,
    batches: Tensor | None,
) -> Rows:
    """What was read of one run, beside what its round map says."""
    seen = None if batches is None else batches[:, run].numpy()
    path = np.stack([residuals[run].double().numpy() for residuals in course.residuals])
    if not np.isfinite(path).all():
        return [{"round": trial.rounds, "diverged": True}]
    kernel = predict.arc_cosine_kernel(x)
    known = forecast(trial, kernel, rows, path[0], batches=seen)
    losses = (path**2).mean(1) / 2
    facts: dict[str, Any] = {"diverged": False} | rates(losses, known.losses)
    facts["residual_error"] = largest(path - known.residuals) / np.linalg.norm(path[0])
    facts |= errors(trial, x, rows, path, seen) | pair_rates(trial, x, rows, path, known)
    facts |= flips(trial, x, rows, path[0], course, run)
    places = [place - 1 for place in read_at(trial.rounds)]
    shown = zip(places, course.distances, course.drifts, strict=True)
    return [
        facts
        | {
            "round": place + 1,
            "loss": losses[place + 1],
            "expected": known.losses[place + 1],
            "distance": float(distances[run]),
            "distance_expected": known.distances[place].mean(),
            "drift": float(drifts[run]),
            "drift_expected": known.gradient_drifts[place].mean(),
        }
        for place, distances, drifts in shown
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


def rates(losses: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Of the log loss a round: error, slope over all rounds and over the last third, linearity."""
    rounds, logs, known = np.arange(len(losses)), np.log(losses), np.log(expected)
    last = slice(2 * len(losses) // 3, None)
    return {
        "error": largest((logs - known)[:, None]),
        "rate": slope(rounds, logs),
        "rate_expected": slope(rounds, known),
        "r_squared": float(np.corrcoef(rounds, logs)[0, 1] ** 2),
        "late": slope(rounds[last], logs[last]),
        "late_expected": slope(rounds[last], known[last]),
    }


def errors(
    trial: Network, x: np.ndarray, rows: np.ndarray, path: np.ndarray, seen: np.ndarray | None
) -> dict[str, float | None]:
    """Largest errors in log loss of maps that are not the run's own."""
    kernel, logs = predict.arc_cosine_kernel(x), np.log((path**2).mean(1))

    def error(kernel: np.ndarray, rows: Any) -> float:
        other = forecast(trial, kernel, rows, path[0])
        return largest((logs - np.log((other.residuals**2).mean(1)))[:, None])

    everything = [np.arange(len(x))]
    found: dict[str, float | None] = {"error_linear": None, "error_partition": None}
    found |= {"error_parallel": None, "error_full": None}
    if trial.data in ("random", "images"):
        found["error_linear"] = error(x @ x.T / 2, rows)
    if trial.data in ("clusters", "images"):
        found["error_partition"] = error(kernel, other_partition(trial))
        found["error_parallel"] = error(kernel, everything)
    if seen is not None:
        found["error_full"] = error(kernel, rows)
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
    if trial.data != "opposite":
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
    trial: Network, x: np.ndarray, rows: np.ndarray, start: np.ndarray, course: Course, run: int
) -> dict[str, float | None]:
    """Shares of signs that differ, since the start and between clients, and their forecasts."""
    assert course.since_start is not None
    between = np.mean([float(share[run]) for share in course.flips])
    found: dict[str, float | None] = {
        "flips": float(course.since_start[run]),
        "between": float(between),
        "flips_expected": None,
        "between_expected": None,
    }
    if trial.counted:
        known = predict.relu_flips(
            x,
            width=trial.width,
            init_std=math.sqrt(2 / trial.width),
            clients=rows,
            period=trial.period,
            lr=trial.lr,
            rounds=trial.rounds,
            residual=start,
            seed=trial.seed,
        )
        places = [place - 1 for place in read_at(trial.rounds)]
        found["flips_expected"] = float(known.since_start[-1])
        found["between_expected"] = float(known.between[places].mean())
    return found


def largest(errors: np.ndarray) -> float:
    """The largest norm of any reading."""
    return float(np.linalg.norm(errors, axis=1).max())


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Of y on x, by least squares."""
    return float(np.polyfit(x, y, 1)[0])
